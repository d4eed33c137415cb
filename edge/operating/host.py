"""What can be wrong with the computer itself, read from /proc and /sys; nothing is changed, and no other program is asked
but systemctl, a Raspberry Pi's vcgencmd, and Python whether libraries can be loaded.

Every probe takes a `Host`, whose root may be a folder that looks like the computer somebody has trouble with.
"""

import datetime
import grp
import os
import re
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import AccessError, BundleError, StorageError
from edge.operating import system
from edge.operating.finding import Finding, fault, ok, warning

HOT_C = 80.0
"""A Raspberry Pi slows down from 80 °C on; others a little later."""
LITTLE_MEMORY = 64 * 1024 * 1024
"""Less than the agent itself takes."""
CARD_YEARS = 5.0
CARD_FILLS = 100
"""How often the agent may fill a card of its own size in its life: cheap cards bear some 500 to 1000 erasures a cell, and small
synced writes cost several times their size."""
SETTLING_S = 3600.0
"""The first hour of an agent says nothing of a day."""
PATIENCE_S = 20.0
"""With another program. A Pi Zero takes seven seconds to load a library."""
MINI_BAUD = 115200
"""What a mini UART is good for: it holds back eight bytes and goes by the core's clock."""

BOARDS = (
    ("raspberry-pi-zero-2w", r"Raspberry Pi Zero 2"),
    ("raspberry-pi-3", r"Raspberry Pi (3|Compute Module 3)"),
    ("raspberry-pi-4", r"Raspberry Pi (4|Compute Module 4)"),
    ("raspberry-pi-5", r"Raspberry Pi (5|Compute Module 5)"),
    ("jetson-orin-nano", r"(NVIDIA )?(Jetson )?Orin N"),
)
"""A file of firmware-configs/boards, and how the device tree's name of the board begins."""
MINI_UART = ("raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4")
"""Their one good port is Bluetooth's, and the pins have a small one (`ttyS0`)."""
RULES = ("etc/udev/rules.d/60-amiss.rules", "usr/lib/udev/rules.d/60-amiss.rules", "lib/udev/rules.d/60-amiss.rules")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True, slots=True)
class Mount:
    device: str
    point: str
    kind: str
    options: tuple[str, ...]


def run_command(command: Sequence[str]) -> str:
    """stdout; empty when it cannot be run or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Host:
    """A computer. `root` is where its / is, `run` runs a command there and gives its output."""

    def __init__(self, root: Path = Path("/"), run: Callable[[Sequence[str]], str] = run_command) -> None:
        self.root, self.run = root, run

    def text(self, path: str) -> str:
        """Of a small file; empty when it is not there or may not be read."""
        try:
            return (self.root / path).read_text("utf-8", "replace").strip("\0\n ")
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        text = self.text(path)
        try:
            return int(text, 0)
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))

    def fields(self, path: str) -> dict[str, int]:
        """Lines like `MemFree:  123 kB` or `oom_kill 0`."""
        rows = (line.replace(":", " ").split() for line in self.text(path).splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}

    def processes(self) -> Iterator[Holder]:
        for entry in self.glob("proc/[0-9]*/comm"):
            yield Holder(int(entry.split("/")[1]), self.text(entry))

    def holders(self, file: Path) -> list[Holder]:
        """Other processes that have `file` open, as far as we may know: root knows of all, others of their own."""
        wanted, found = str(file.resolve()), []
        for process in self.processes():
            try:
                with os.scandir(self.root / f"proc/{process.pid}/fd") as entries:
                    targets = {os.readlink(entry.path) for entry in entries}
            except OSError:  # not ours to see, or it has just ended
                continue
            # A simulated sensor: whoever makes a pseudo-terminal has both of its ends.
            maker = wanted.startswith("/dev/pts/") and bool({"/dev/ptmx", "/dev/pts/ptmx"} & targets)
            if wanted in targets and not maker and process.pid != os.getpid():
                found.append(process)
        return found

    def mount(self, folder: Path) -> Mount | None:
        """What holds `folder`."""
        rows = (line.split() for line in self.text("proc/mounts").splitlines())
        mounts = [Mount(row[0], row[1].replace("\\040", " "), row[2], tuple(row[3].split(","))) for row in rows if len(row) > 3]
        at = folder.resolve()
        above = [mount for mount in mounts if at.is_relative_to(mount.point)]
        return max(reversed(above), key=lambda mount: len(mount.point), default=None)  # of two, the later covers the first


def examine(host: Host) -> list[Finding]:
    return [
        *clock(host),
        *power(host),
        *temperature(host),
        *memory(host),
        *processor(host),
        *service(host),
        *limits(host),
    ]


def model_name(host: Host) -> str:
    """What the device tree calls the board; empty on a PC."""
    return host.text("proc/device-tree/model") or host.text("sys/firmware/devicetree/base/model")


def board(host: Host) -> str | None:
    """Its file in firmware-configs/boards; None: none of those that are there is about it."""
    called = model_name(host)
    return next((name for name, begins in BOARDS if re.match(begins, called)), None)


def clock(host: Host, now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)) -> list[Finding]:
    synced, rtc = system.clock_synced(host.root / "run"), bool(host.glob("sys/class/rtc/rtc*"))
    if now().year < 2024:
        return [
            warning(
                "clock",
                f"it says {now():%Y-%m-%d}: nobody has set it; TLS certificates seem not yet valid and times are wrong",
                "sudo timedatectl set-ntp true; then timedatectl timesync-status says which server answers",
            )
        ]
    if synced is False:
        return [
            warning(
                "clock",
                "not synchronised: events are marked `unsynced`" + ("" if rtc else ", and after a power cut time stands still"),
                "sudo timedatectl set-ntp true; then timedatectl timesync-status says which server answers",
            )
        ]
    beside = "" if rtc else "; there is no battery-backed clock, so after a power cut it is wrong until the network is there"
    return [ok("clock", ("synchronised" if synced else "nobody tells whether it is synchronised") + beside)]


def power(host: Host) -> list[Finding]:
    """A Raspberry Pi tells of too little voltage, through a sensor or, with older kernels, a word of bits."""
    low = [
        path
        for path in host.glob("sys/class/hwmon/hwmon*/name")
        if host.text(path) == "rpi_volt" and host.number(path.replace("/name", "/in0_lcrit_alarm"))
    ]
    told = host.text("sys/devices/platform/soc/soc:firmware/get_throttled")
    if not told and model_name(host).startswith("Raspberry Pi"):
        told = host.run(["vcgencmd", "get_throttled"]).strip().removeprefix("throttled=")
    try:
        bits = int(told, 16)  # without 0x, or with it
    except ValueError:
        bits = 0
    if low or bits & 0x1:
        return [
            warning(
                "power",
                "under-voltage: the board resets and cards are damaged some day",
                "use the board's own supply and a short, thick cable; move USB devices to a powered hub",
            )
        ]
    if bits & 0x10000:
        return [
            warning("power", "there was under-voltage since the last start", "use the board's own supply and a short cable")
        ]
    if bits & 0x4:
        return [warning("power", "the processor is throttled now", "give it a heat sink or air")]
    jetson = [path for path in host.glob("sys/class/hwmon/hwmon*/name") if host.text(path) == "soctherm_oc"]
    counts = [host.number(at) or 0 for path in jetson for at in host.glob(path.replace("/name", "/oc*_event_cnt"))]
    if sum(counts):
        return [
            warning(
                "power",
                f"throttled {sum(counts)} times since the start because the board took more power than it may",
                "a stronger supply, or a smaller power mode: sudo nvpmodel -q says which, -m N sets one",
            )
        ]
    return [ok("power", "no under-voltage")] if told or counts or _has_volt(host) else []


def _has_volt(host: Host) -> bool:
    return any(host.text(path) == "rpi_volt" for path in host.glob("sys/class/hwmon/hwmon*/name"))


def temperature(host: Host) -> list[Finding]:
    zones = [value / 1000 for path in host.glob("sys/class/thermal/thermal_zone*/temp") if (value := host.number(path))]
    if not zones:
        return []
    if max(zones) >= HOT_C:
        return [warning("temperature", f"{max(zones):.0f} °C: the processor slows down", "give it a heat sink, air, or shade")]
    return [ok("temperature", f"{max(zones):.0f} °C")]


def memory(host: Host) -> list[Finding]:
    found: list[Finding] = []
    fields = host.fields("proc/meminfo")
    available = fields.get("MemAvailable", 0) * 1024
    if fields and available < LITTLE_MEMORY:
        found.append(
            warning(
                "memory", f"{available / 1e6:.0f} MB available", "ps -eo rss,comm --sort=-rss | head; stop what is not needed"
            )
        )
    if killed := host.fields("proc/vmstat").get("oom_kill", 0):
        found.append(
            warning(
                "memory",
                f"{killed} process{'' if killed == 1 else 'es'} killed since the start because memory ran out",
                "journalctl -k --grep 'Out of memory'",
            )
        )
    if fields and not found:
        found.append(ok("memory", f"{available / 1e6:.0f} MB available"))
    rows = (line.split() for line in host.text("proc/swaps").splitlines()[1:])
    for name, kind, used in ((row[0], row[1], row[3]) for row in rows if len(row) > 3):
        on = name if kind == "partition" else (mount.device if (mount := host.mount(Path(name))) else "")
        if _is_card(on) and used.isdecimal() and int(used):
            found.append(
                warning(
                    "swap",
                    f"{name} is on an SD card and in use: it wears the card and stalls everything",
                    "sudo dphys-swapfile swapoff && sudo systemctl disable dphys-swapfile",
                )
            )
    return found


def processor(host: Host) -> list[Finding]:
    path = "sys/devices/system/cpu/cpu0/cpufreq/"
    governor, driver = host.text(path + "scaling_governor"), host.text(path + "scaling_driver")
    # With the two drivers of PCs `powersave` is the one that follows the load.
    if governor == "powersave" and not driver.startswith(("intel_pstate", "amd-pstate")):
        return [
            warning(
                "processor",
                "the governor `powersave` keeps it at its lowest clock",
                "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
            )
        ]
    return [ok("processor", f"governor {governor}")] if governor else []


_SHOWN = "LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,MainPID"
_RESULTS = {
    "watchdog": "systemd ended it because no stream's loop turned for WatchdogSec",
    "oom-kill": "it was killed because memory ran out",
    "timeout": "it did not start or stop in time",
    "core-dump": "it crashed",
    "start-limit-hit": "it was started too often in too short a time",
}
_CODES = {
    65: "the bundle or what the agent keeps is damaged, or of a newer amiss",
    66: "a file that the configuration names is not there",
    77: "it has no right to something",
    78: "the configuration is wrong",
}


def service(host: Host) -> list[Finding]:
    """Silent where there is no systemd."""
    if not (host.root / "run/systemd/system").is_dir():
        return []
    shown = host.run(["systemctl", "show", "amiss.service", f"--property={_SHOWN}"])
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    logs = "journalctl -u amiss -n 50"
    if state.get("LoadState") != "loaded":
        return [
            warning(
                "service",
                "not installed: after a power cut the agent does not come back by itself",
                "docs/howto/run-as-a-service.md; sudo systemctl enable --now amiss",
            )
        ]
    found: list[Finding] = []
    if state.get("UnitFileState") not in ("enabled", "enabled-runtime", "static"):
        found.append(warning("service", "not enabled: it does not start by itself", "sudo systemctl enable amiss"))
    result, status = state.get("Result", "success"), state.get("ExecMainStatus", "0")
    code = int(status) if status.isdecimal() else 0
    why = _RESULTS.get(result) or (f"exit code {code}" + (f", {_CODES[code]}" if code in _CODES else "") if code else result)
    if state.get("ActiveState") == "failed":
        found.append(Finding("service", "fault", f"failed: {why}", f"{logs}; then sudo systemctl restart amiss", code or 70))
    elif state.get("SubState") == "auto-restart":
        found.append(Finding("service", "fault", f"ended and about to be started again: {why}", logs, code or 70))
    elif (restarts := state.get("NRestarts", "0")) != "0":
        found.append(warning("service", f"systemd has started it again {restarts} times since the last start by hand", logs))
    elif state.get("ActiveState") != "active":
        found.append(warning("service", "installed and not running", "sudo systemctl start amiss"))
    return found or [ok("service", f"running as process {state.get('MainPID', '?')}")]


def grabbers(host: Host) -> list[Finding]:
    """Programs that are known to open every new serial port."""
    names = {process.name for process in host.processes()}
    found = []
    if "ModemManager" in names and not any(host.text(path) for path in RULES):
        found.append(
            warning(
                "ModemManager",
                "it opens every new USB port for some seconds, looking for a modem, and writes to the sensor",
                "sudo install -m 644 deploy/udev/60-amiss.rules /etc/udev/rules.d/   (or systemctl disable --now ModemManager)",
            )
        )
    if "brltty" in names:
        found.append(
            warning(
                "brltty",
                "it takes CH340 and CP210x adapters for braille displays and keeps them",
                "sudo apt-get remove brltty",
            )
        )
    return found


def console(host: Host, device: str) -> list[Finding]:
    """Does the kernel write to the port, too?"""
    name = tty_name(device)
    if any(word.split(",")[0] == f"console={name}" for word in host.text("proc/cmdline").split()):
        return [
            warning(
                f"console on {name}",
                "the kernel and a login prompt write to this port",
                "sudo raspi-config nonint do_serial_cons 1; elsewhere take console= off the kernel's command line",
            )
        ]
    return []


def tty_name(device: str) -> str:
    """/dev/serial0 → ttyS0"""
    return Path(device).resolve().name


def rights(device: Path) -> list[Finding]:
    """May the service open it? root, who looks, may open everything."""
    status = device.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    if group == "dialout" and status.st_mode & 0o060 == 0o060:
        return []
    return [
        warning(
            f"right to {device.name}",
            f"{stat.filemode(status.st_mode)[1:]} of the group {group}: the service is in dialout and may not open it",
            "a login prompt leaves ports so: sudo systemctl disable --now serial-getty@"
            f"{tty_name(str(device))} (Jetson: nvgetty), then reboot",
        )
    ]


def letting_go(holder: Holder, device: str) -> str:
    """How somebody else stops having the port open."""
    if holder.name in ("agetty", "getty", "login"):
        return f"sudo systemctl disable --now serial-getty@{tty_name(device)}   (on a Jetson: nvgetty)"
    if holder.name == "gpsd":
        return "sudo systemctl disable --now gpsd.socket gpsd"
    return f"sudo kill {holder.pid}   (what starts it: systemctl status {holder.pid})"


def pins(host: Host, port: str, baud: int, parity: str) -> list[Finding]:
    """The port on a Raspberry Pi's pins, which is off until somebody turns it on, and on most of them a small one."""
    board_name, device = board(host), host.root / port.lstrip("/")
    if board_name not in (*MINI_UART, "raspberry-pi-5") or Path(port).name not in ("serial0", "ttyS0", "ttyAMA0"):
        return []
    what, turn_on = f"pins of {Path(port).name}", "sudo raspi-config nonint do_serial_hw 0 && sudo reboot"
    on_pins = '"/dev/ttyAMA0"' if board_name == "raspberry-pi-5" else '"/dev/serial0"'
    if not device.exists():
        return [warning(what, f"{port} is not there: the port on the pins is off", f"{turn_on}; then port = {on_pins}")]
    name = device.resolve().name
    if name == "ttyAMA10":
        return [warning(what, f"{port} is the small debug socket on this board, and not on the pins", f"port = {on_pins}")]
    settings = _boot_settings(host)
    if name == "ttyAMA0" and board_name in MINI_UART and not settings & {"dtoverlay=disable-bt", "dtoverlay=miniuart-bt"}:
        return [warning(what, f"{port} is Bluetooth's on this board, and not on the pins", 'port = "/dev/serial0"')]
    if name != "ttyS0" or board_name not in MINI_UART:
        return []
    better = (
        f'add dtoverlay=disable-bt to /{_boot(host)}, sudo systemctl disable hciuart, sudo reboot; then port = "/dev/serial0"'
    )
    if parity != "none":
        return [warning(what, f"{port} is the mini UART, which knows no parity; the stream wants {parity}", better)]
    if not any(one == "enable_uart=1" or one.startswith(("core_freq=", "core_freq_min=")) for one in settings):
        return [
            warning(
                what,
                f"{port} is the mini UART, whose baud rate follows the clock of the core: it is wrong whenever that changes",
                f"enable_uart=1 in /{_boot(host)} holds the clock; better: {better}",
            )
        ]
    if baud > MINI_BAUD:
        return [warning(what, f"{port} is the mini UART: at {baud} baud it loses bytes when the processor is busy", better)]
    return [ok(what, f"{port} is the mini UART, its clock is held; good for {MINI_BAUD} baud")]


def _boot(host: Host) -> str:
    """config.txt, whose place has changed."""
    return next(
        (path for path in ("boot/firmware/config.txt", "boot/config.txt") if host.text(path)), "boot/firmware/config.txt"
    )


def _boot_settings(host: Host) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in host.text(_boot(host)).splitlines())
    return {re.sub(r"\s*=\s*", "=", line) for line in lines if line}


def limits(host: Host) -> list[Finding]:
    """Raspberry Pi OS turns off what MemoryMax= needs. Silent where there is no systemd."""
    controllers = host.text("sys/fs/cgroup/cgroup.controllers").split()
    if not controllers or "memory" in controllers or not (host.root / "run/systemd/system").is_dir():
        return []
    return [
        warning(
            "memory limit",
            "the kernel counts no memory of services: MemoryMax= has no effect, and when memory runs out anybody may be killed",
            "add cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt, sudo reboot",
        )
    ]


def libraries(host: Host, modules: Sequence[str], python: str) -> list[Finding]:
    """Can they be loaded? Asked of another process, because one that does not fit the processor ends whoever loads it."""
    begun: list[str] = []
    ended: dict[str, str] = {}
    for line in host.run([python, "-c", _LOAD, *modules]).splitlines():
        mark, _, rest = line.partition(" ")
        name, _, told = rest.partition("\t")
        if mark == "loading" and name in modules:
            begun.append(name)
        elif mark == "loaded" and name in begun:
            ended[name] = told
    found = []
    for module in begun:  # none that is not told of: it took too long
        if (told := ended.get(module, "")) == "":
            error = BundleError(f"{module} ends the process that loads it: it is not for this processor")
            found.append(fault("wheels", error, _wheel_cure("", module, python)))
        elif told != "ok":
            error = BundleError(f"{module} is installed and cannot be loaded: {told}")
            found.append(fault("wheels", error, _wheel_cure(told, module, python)))
    return found


_LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    print("\\nloading " + name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
    else:
        told = "ok"
    print("\\nloaded " + name + "\\t" + told, flush=True)
"""


def _package(module: str) -> str:
    return {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}.get(module, module)


def _wheel_cure(told: str, module: str, python: str) -> str:
    """By what the loader says."""
    again = f"{python} -m pip install --force-reinstall --no-cache-dir {_package(module)}"
    if re.search(r"GLIBC(XX)?_[0-9.]+' not found", told):
        return (
            "the system is older than the wheel: Debian 12, Raspberry Pi OS bookworm, Ubuntu 22.04 or newer, or the container"
        )
    if re.search(r"ld-linux|musl|symbol not found", told):
        return "wheels are for glibc, and this system has another C library (musl?): use Debian, or the container"
    if re.search(r"ELF|too short|cannot open shared object", told):
        return f"a wheel of another processor or half of one: {again}"
    if re.search(r"numpy|_ARRAY_API", told):
        return f"built for another numpy: {again} numpy   (tflite-runtime wants 'numpy<2')"
    return again


def python(host: Host) -> list[Finding]:
    """32-bit programs under a 64-bit kernel, which `uname -m` does not show."""
    if os.uname().machine in ("aarch64", "x86_64") and struct.calcsize("P") == 4:
        return [
            warning(
                "python",
                f"a 32-bit Python under a 64-bit kernel ({os.uname().machine}): onnxruntime and litert have no wheels for it",
                "flash the 64-bit Raspberry Pi OS",
            )
        ]
    return []


def disk(host: Host, folder: Path, needs_bytes: int) -> list[Finding]:
    """The file system that holds `folder`, which exists: may it be written, has it room, does it fail, does it wear?"""
    what, mount = "disk", host.mount(folder)
    usage = os.statvfs(folder)
    if mount is not None and "ro" in mount.options:
        after = ", as the kernel does when the disk fails" if "errors=remount-ro" in mount.options else ""
        return [
            fault(
                what,
                StorageError(f"{mount.point} is mounted read-only{after}: nothing can be kept"),
                f"sudo mount -o remount,rw {mount.point}   (when it comes again: sudo dmesg | grep -i error, replace the card)",
            )
        ]
    found = []
    free = usage.f_bavail * usage.f_frsize
    if free < 1 << 20:
        full = StorageError(f"full: {free} bytes left for {folder}")
        found.append(
            fault(
                what, full, f"sudo du -xh {mount.point if mount else '/'} | sort -h | tail; sudo journalctl --vacuum-size=50M"
            )
        )
    elif free < needs_bytes:
        found.append(
            warning(
                what,
                f"{free / 1e6:.0f} MB free for {folder}, the outbox may need {needs_bytes / 1e6:.0f} MB more",
                f"free some space, or set outbox_max_bytes = {max(65536, free // 2)}",
            )
        )
    if usage.f_files and usage.f_favail == 0:
        found.append(
            fault(what, StorageError(f"no inodes left for {folder}"), f"sudo du --inodes -x {folder} | sort -n | tail")
        )
    if mount is not None:
        device = Path(mount.device).name
        if errors := host.number(f"sys/fs/ext4/{device}/errors_count"):
            found.append(
                warning(
                    what,
                    f"the file system on {mount.device} has counted {errors} errors: the card is dying, or lost its power",
                    "sudo dmesg | grep EXT4; copy what matters, then sudo touch /forcefsck && sudo reboot",
                )
            )
    return found or [ok(what, f"{free / 1e6:.0f} MB free for {folder}")]


def kept(host: Host, folder: Path) -> list[Finding]:
    """Is what is written there still there after a power cut?"""
    mount = host.mount(folder)
    if mount is None:
        return []
    # Raspberry Pi OS' read-only mode lays a tmpfs over the card.
    upper = next((one.removeprefix("upperdir=") for one in mount.options if one.startswith("upperdir=")), "")
    below = host.mount(Path(upper)) if mount.kind == "overlay" and upper else mount
    if below is None or below.kind not in ("tmpfs", "ramfs"):
        return []
    return [
        warning(
            "disk",
            f"{mount.point} is kept in memory (read-only root?): what waits in the outbox, and what was learned here, is gone "
            "with the power",
            f"give {folder} a file system of its own, or sudo raspi-config nonint disable_overlayfs && sudo reboot",
        )
    ]


def wear(host: Host, folder: Path, agent: Holder | None) -> list[Finding]:
    """How long the card would last at the rate at which the running agent writes."""
    mount = host.mount(folder)
    if agent is None or mount is None or not _is_card(mount.device):
        return []
    stat = host.text(f"proc/{agent.pid}/stat").rpartition(")")[2].split()
    uptime = host.text("proc/uptime").partition(" ")[0]
    written = host.fields(f"proc/{agent.pid}/io").get("write_bytes")
    if written is None or len(stat) < 20 or not uptime:
        return []
    seconds = float(uptime) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    if seconds < SETTLING_S:
        return []
    usage = os.statvfs(folder)
    per_day = written / seconds * 86400
    years = usage.f_blocks * usage.f_frsize * CARD_FILLS / max(per_day, 1) / 365
    told = f"the agent writes {per_day / 1e6:.0f} MB a day"
    if years < CARD_YEARS:
        return [
            warning(
                "card",
                f"{told}: the SD card may last {years:.1f} years (reckoned with {CARD_FILLS} times its size)",
                "look at amiss_disk_written_bytes_total; fewer events, or a disk in place of the card",
            )
        ]
    return [ok("card", f"{told}, which the SD card bears for {min(years, 99):.0f} years and more")]


def writable(folder: Path) -> None:
    """Write for real, and leave nothing behind. Raises `AccessError` or `StorageError`."""
    probe = folder / f".amiss-doctor-{os.getpid()}"
    try:
        try:
            with probe.open("xb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except PermissionError as error:
        raise AccessError(f"{folder}: not writable ({error.strerror}); give it to the user that runs the agent") from None
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written: {error.strerror}; see dmesg, free space or replace the disk"
        ) from None


def _is_card(device: str) -> bool:
    return Path(device).name.startswith("mmcblk")
