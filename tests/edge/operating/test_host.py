"""Troubles of the computer, laid out as files: each is found, and without it nothing is said."""

import datetime
import grp
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mosquitto import until

from edge.errors import AccessError, StorageError
from edge.operating import host as machine
from edge.operating.finding import Finding, exit_code
from edge.operating.host import Holder, Host

BOARDS = Path(__file__).parents[3] / "firmware-configs/boards"
PI = {
    "proc/meminfo": "MemTotal:  948000 kB\nMemAvailable:  500000 kB\n",
    "proc/vmstat": "nr_free_pages 1\noom_kill 0\n",
    "proc/swaps": "Filename Type Size Used Priority\n/var/swap file 102396 0 -2\n",
    "proc/mounts": "/dev/mmcblk0p2 / ext4 rw,noatime,errors=remount-ro 0 0\n",
    "proc/cmdline": "console=tty1 root=/dev/mmcblk0p2\n",
    "proc/1/comm": "systemd\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
    "sys/class/thermal/thermal_zone0/temp": "51540\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt\n",
    "sys/fs/ext4/mmcblk0p2/errors_count": "0\n",
    "sys/class/rtc/rtc0/name": "rtc\n",
    "run/systemd/timesync/synchronized": "",
}
WELL = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\nMainPID=7\n"


class Board(Host):
    """A Raspberry Pi that is well, but for `changes`."""

    def __init__(self, root: Path, changes: dict[str, str], systemctl: str = WELL, vcgencmd: str = "") -> None:
        super().__init__(root, self._answer)
        self._systemctl, self._vcgencmd = systemctl, vcgencmd
        for name, text in (PI | changes).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (root / "run/systemd/system").mkdir(parents=True)

    def _answer(self, command: Sequence[str]) -> str:
        if command == ["vcgencmd", "get_throttled"]:
            return self._vcgencmd
        assert command[:3] == ["systemctl", "show", "amiss.service"]
        return self._systemctl


def examine(host: Host) -> list[Finding]:
    found = [
        *machine.examine(host),
        *machine.grabbers(host),
        *machine.console(host, "/dev/ttyAMA0"),
        *machine.pins(host, "/dev/serial0", 115200, "none"),
    ]
    return [one for one in found if one.what != "clock"]  # the kernel's, and not the board's


def test_a_board_that_is_well(tmp_path: Path) -> None:
    found = examine(Board(tmp_path, {}))
    assert [one for one in found if one.severity != "ok"] == []
    assert {one.what for one in found} == {"power", "temperature", "memory", "processor", "service"}


@pytest.mark.parametrize(
    ("changes", "what", "says"),
    [
        ({"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"}, "power", "under-voltage"),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, "power", "under-voltage"),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50000"}, "power", "since the last start"),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "4"}, "power", "throttled"),
        ({"sys/class/thermal/thermal_zone0/temp": "84500"}, "temperature", "84 °C"),
        ({"proc/meminfo": "MemAvailable:  20000 kB\n"}, "memory", "20 MB"),
        ({"proc/vmstat": "oom_kill 2\n"}, "memory", "2 processes killed"),
        ({"proc/swaps": "Filename Type Size Used Priority\n/var/swap file 102396 9000 -2\n"}, "swap", "/var/swap"),
        ({"proc/swaps": "Filename Type Size Used Priority\n/dev/mmcblk0p3 partition 99 9 -2\n"}, "swap", "mmcblk0p3"),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"}, "processor", "lowest clock"),
        ({"proc/812/comm": "ModemManager\n"}, "ModemManager", "USB port"),
        ({"proc/813/comm": "brltty\n"}, "brltty", "CH340"),
        ({"proc/cmdline": "console=ttyAMA0,115200 console=tty1\n"}, "console on ttyAMA0", "login prompt"),
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}, "memory limit", "MemoryMax= has no effect"),
        (
            {"sys/class/hwmon/hwmon2/name": "soctherm_oc", "sys/class/hwmon/hwmon2/oc1_event_cnt": "7"},
            "power",
            "throttled 7 times",
        ),
    ],
)
def test_troubles_laid_out_as_files(changes: dict[str, str], what: str, says: str, tmp_path: Path) -> None:
    (found,) = [one for one in examine(Board(tmp_path, changes)) if one.severity != "ok"]
    assert (found.what, found.severity) == (what, "warning")
    assert says in found.message
    assert found.repair
    assert exit_code([found]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "intel_pstate",
        },
        {"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 102396 9000 100\n"},
        {"sys/devices/platform/soc/soc:firmware/get_throttled": "0"},
        {"proc/cmdline": "console=ttyAMA01,115200\n"},
        {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"},
        {"sys/class/hwmon/hwmon2/name": "soctherm_oc", "sys/class/hwmon/hwmon2/oc1_event_cnt": "0"},
        {"proc/812/comm": "ModemManager\n", "etc/udev/rules.d/60-amiss.rules": "our rules tell it what is no modem"},
    ],
)
def test_what_only_looks_like_trouble(changes: dict[str, str], tmp_path: Path) -> None:
    assert all(one.severity == "ok" for one in examine(Board(tmp_path, changes)))


@pytest.mark.parametrize("garbage", ["", "\0\xff", "999999999999999999999 x", "-1", "a: b\n\n:"])
def test_nonsense_in_proc_and_sys_does_no_harm(garbage: str, tmp_path: Path) -> None:
    machine.examine(Board(tmp_path, dict.fromkeys(PI, garbage)))
    machine.disk(Board(tmp_path / "2", dict.fromkeys(PI, garbage)), tmp_path, 0)


def test_a_pc_without_any_of_it(tmp_path: Path) -> None:
    assert [one.what for one in machine.examine(Host(tmp_path))] == ["clock"]


@pytest.mark.parametrize(
    ("answer", "severity", "says", "code"),
    [
        ("LoadState=not-found\n", "warning", "not installed", 0),
        ("", "warning", "not installed", 0),
        (WELL.replace("=enabled", "=disabled"), "warning", "not enabled", 0),
        (WELL.replace("NRestarts=0", "NRestarts=17"), "warning", "again 17 times", 0),
        (WELL.replace("=active", "=inactive").replace("running", "dead"), "warning", "not running", 0),
        (
            WELL.replace("=active", "=failed").replace("success", "exit-code") + "ExecMainStatus=78\n",
            "fault",
            "78, the conf",
            78,
        ),
        (WELL.replace("=active", "=failed").replace("success", "watchdog") + "ExecMainStatus=6\n", "fault", "loop turned", 6),
        (WELL.replace("=active", "=activating").replace("running", "auto-restart") + "ExecMainStatus=1\n", "fault", "again", 1),
    ],
)
def test_the_service(answer: str, severity: str, says: str, code: int, tmp_path: Path) -> None:
    (found,) = machine.service(Board(tmp_path, {}, answer))
    assert (found.severity, found.exit_code) == (severity, code)
    assert says in found.message
    assert found.repair


def test_without_systemd_nothing_is_said_of_the_service(tmp_path: Path) -> None:
    assert machine.service(Host(tmp_path)) == []


def test_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool | None] = [True]
    monkeypatch.setattr(machine.system, "clock_synced", lambda run: synced[0])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with_rtc, without = Board(tmp_path / "a", {}), Host(tmp_path)
    assert [one.severity for one in machine.clock(with_rtc, lambda: now)] == ["ok"]
    assert "no battery" in machine.clock(without, lambda: now)[0].message
    assert "1970" in machine.clock(with_rtc, lambda: datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC))[0].message
    synced[0] = False
    (found,) = machine.clock(without, lambda: now)
    assert found.severity == "warning"
    assert "power cut" in found.message
    synced[0] = None
    assert machine.clock(with_rtc, lambda: now)[0].severity == "ok"


# The disk


def test_the_disk_is_well(tmp_path: Path) -> None:
    assert [one.severity for one in machine.disk(Host(), tmp_path, 1000)] == ["ok"]


def test_little_room_read_only_and_errors(tmp_path: Path) -> None:
    (found,) = machine.disk(Host(), tmp_path, 10**18)
    assert found.severity == "warning"
    assert "outbox_max_bytes" in found.repair
    readonly = Board(tmp_path / "a", {"proc/mounts": PI["proc/mounts"].replace("rw,", "ro,")})
    (found,) = machine.disk(readonly, tmp_path, 0)
    assert (found.severity, found.exit_code) == ("fault", 74)
    assert "when the disk fails" in found.message
    assert found.repair.startswith("sudo mount -o remount,rw /")
    dying = Board(tmp_path / "b", {"sys/fs/ext4/mmcblk0p2/errors_count": "3"})
    assert ["3 errors" in one.message for one in machine.disk(dying, tmp_path, 0)] == [True]


def test_the_mount_that_counts_is_the_deepest_and_of_two_the_later(tmp_path: Path) -> None:
    (tmp_path / "x/y").mkdir(parents=True)
    rows = f"a / e rw 0 0\nb {tmp_path} e rw 0 0\nc {tmp_path}/x e rw 0 0\nd {tmp_path}/x e ro 0 0\ne {tmp_path}/xx e rw 0 0\n"
    found = Board(tmp_path / "r", {"proc/mounts": rows}).mount(tmp_path / "x/y")
    assert found is not None
    assert found.device == "d"


def in_tmpfs(options: str, prepare: str, tmp_path: Path) -> str:
    """What `machine.disk` and `writable` say of a real file system of its own."""
    place = tmp_path / "fs"
    place.mkdir(parents=True)
    code = f"""
from pathlib import Path
from edge.errors import AmissError
from edge.operating import host
place = Path({str(place)!r})
for found in host.disk(host.Host(), place, 1000): print(found.severity, found.exit_code, found.message)
try: host.writable(place)
except AmissError as error: print("writing", error.exit_code, error)
print(list(place.glob(".amiss*")))
"""
    steps = ["mount -t tmpfs -o size=2m none {place}", prepare, options, 'exec "$0" -c "$1"']
    script = " && ".join(steps).replace("{place}", str(place))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own, which takes root")


@root_only
def test_a_file_system_that_is_really_well_full_or_read_only(tmp_path: Path) -> None:
    well = in_tmpfs("true", "true", tmp_path / "a")
    assert well.startswith("ok 0")
    assert "writing" not in well
    full = in_tmpfs("true", "! head -c 9m /dev/zero > {place}/x 2> /dev/null", tmp_path / "b")
    assert "fault 74 full" in full
    assert "writing 74" in full
    assert "No space left" in full
    readonly = in_tmpfs("mount -o remount,ro {place}", "true", tmp_path / "c")
    assert "fault 74" in readonly
    assert "read-only" in readonly
    assert "writing 74" in readonly
    assert well.endswith("[]\n")
    assert full.endswith("[]\n"), "nothing is left behind"


@root_only
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    machine.writable(tmp_path)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises((AccessError, StorageError)) as caught:
            machine.writable(tmp_path)
    finally:
        os.seteuid(0)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize(("written", "hours", "severity"), [(10**9, 24, "ok"), (10**12, 24, "warning"), (10**12, 0.5, None)])
def test_wear(written: int, hours: float, severity: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 16 GB: at 1 GB a day it lasts 4 years and more than 5 as reckoned; the first hour says nothing."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 32 * 10**9 // 4096, 0, 0, 0, 0, 0, 0, 255)))
    ticks = os.sysconf("SC_CLK_TCK")
    started = " ".join(["S", *["0"] * 18, str(100 * ticks), "0"])
    files = {
        "proc/7/stat": f"7 (a) b) {started}",
        "proc/uptime": f"{100 + hours * 3600} 1",
        "proc/7/io": f"rchar: 1\nwrite_bytes: {written}\n",
    }
    found = machine.wear(Board(tmp_path, files), tmp_path, Holder(7, "amiss"))
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert machine.wear(Board(tmp_path / "2", files), tmp_path, None) == []
    disk = {"proc/mounts": "/dev/sda1 / ext4 rw 0 0\n"}
    assert machine.wear(Board(tmp_path / "3", files | disk), tmp_path, Holder(7, "amiss")) == []


def test_who_has_a_file_open(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    assert Host().holders(file) == []
    with file.open() as opened:
        child = subprocess.Popen(["sleep", "60"], stdin=opened)
    try:
        until(lambda: [str(one) for one in Host().holders(file)] == [f"sleep (process {child.pid})"])
    finally:
        child.kill()
        child.wait()


# What boards have of their own


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberry-pi-zero-2w"),
        ("Raspberry Pi 3 Model B", "raspberry-pi-3"),
        ("Raspberry Pi 3 Model A Plus Rev 1.0", "raspberry-pi-3"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4"),
        ("Raspberry Pi 400 Rev 1.0", "raspberry-pi-4"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "raspberry-pi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 500 Rev 1.0", "raspberry-pi-5"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"),
        ("Raspberry Pi Zero W Rev 1.1", None),
        ("Raspberry Pi 2 Model B Rev 1.1", None),
        ("Radxa ROCK 5B", None),
        ("", None),
    ],
)
def test_which_board_it_is(model: str, name: str | None, tmp_path: Path) -> None:
    found = machine.board(Board(tmp_path, {"proc/device-tree/model": model + "\0"}))
    assert found == name
    assert found is None or (BOARDS / f"{found}.toml").is_file()


def test_every_board_that_has_a_file_can_be_recognised() -> None:
    files = {path.stem for path in BOARDS.glob("*.toml") if not path.stem.startswith("generic")}
    assert files == {name for name, _ in machine.BOARDS}


def test_a_raspberry_pi_is_asked_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    model = {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}
    (found,) = machine.power(Board(tmp_path / "a", model, vcgencmd="throttled=0x50000\n"))
    assert "since the last start" in found.message
    (found,) = machine.power(Board(tmp_path / "b", model, vcgencmd="throttled=0x0\n"))
    assert found.severity == "ok"
    assert machine.power(Board(tmp_path / "c", model))[0].severity == "ok", "it is not installed"
    told = Board(tmp_path / "d", model | {"sys/devices/platform/soc/soc:firmware/get_throttled": "0"}, vcgencmd="throttled=0x1")
    assert machine.power(told)[0].severity == "ok", "the kernel's word is enough"


PI4 = "Raspberry Pi 4 Model B Rev 1.4"
HELD = {"boot/firmware/config.txt": "# enable_uart=0\nenable_uart = 1\n"}


def at_the_pins(
    folder: Path,
    model: str,
    *,
    leads: str | None = "ttyS0",
    port: str = "/dev/serial0",
    files: dict[str, str] | None = None,
    baud: int = 115200,
    parity: str = "none",
) -> list[Finding]:
    """`leads` is where /dev/serial0 leads to."""
    host = Board(folder, {"proc/device-tree/model": model + "\0", **(files or {})})
    (folder / "dev").mkdir()
    for name in ("ttyS0", "ttyAMA0", "ttyAMA10"):
        (folder / "dev" / name).touch()
    if leads:
        (folder / "dev/serial0").symlink_to(leads)
    return machine.pins(host, port, baud, parity)


@pytest.mark.parametrize(
    ("what", "says", "cure"),
    [
        ({"model": PI4, "leads": None}, "is off", "raspi-config"),
        ({"model": PI4}, "follows the clock", "enable_uart=1"),
        ({"model": PI4, "files": {"boot/config.txt": "#enable_uart=1\n"}}, "follows the clock", "in /boot/config.txt"),
        ({"model": PI4, "files": HELD, "parity": "even"}, "no parity", "disable-bt"),
        ({"model": PI4, "files": HELD, "baud": 921600}, "loses bytes", "disable-bt"),
        ({"model": PI4, "files": HELD, "port": "/dev/ttyAMA0"}, "Bluetooth's", 'port = "/dev/serial0"'),
        ({"model": "Raspberry Pi Zero 2 W Rev 1.0", "port": "/dev/ttyS0"}, "follows the clock", "disable-bt"),
        ({"model": "Raspberry Pi 5 Model B Rev 1.0", "leads": "ttyAMA10"}, "debug socket", 'port = "/dev/ttyAMA0"'),
        ({"model": "Raspberry Pi 5 Model B Rev 1.0", "leads": None}, "is off", 'port = "/dev/ttyAMA0"'),
    ],
)
def test_the_traps_of_the_port_on_the_pins(what: dict[str, Any], says: str, cure: str, tmp_path: Path) -> None:
    (found,) = at_the_pins(tmp_path, **what)
    assert found.severity == "warning"
    assert says in found.message
    assert cure in found.repair


@pytest.mark.parametrize(
    "what",
    [
        {"model": PI4, "files": HELD},
        {"model": PI4, "leads": "ttyAMA0", "files": {"boot/firmware/config.txt": "dtoverlay=disable-bt\n"}, "parity": "even"},
        {"model": "Raspberry Pi 5 Model B Rev 1.0", "port": "/dev/ttyAMA0", "baud": 921600},
        {"model": PI4, "port": "usb:0403:6001", "parity": "even"},
        {"model": "NVIDIA Jetson Orin Nano Developer Kit", "port": "/dev/ttyS0", "parity": "even"},
        {"model": "", "port": "/dev/ttyS0", "baud": 921600},
    ],
)
def test_a_port_on_the_pins_that_is_well(what: dict[str, Any], tmp_path: Path) -> None:
    assert [one for one in at_the_pins(tmp_path, **what) if one.severity != "ok"] == []


def test_the_console_is_found_behind_a_link(tmp_path: Path) -> None:
    host = Board(tmp_path, {"proc/cmdline": "console=ttyS0,115200 console=tty1\n"})
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ttyS0").touch()
    (tmp_path / "dev/serial0").symlink_to("ttyS0")
    (found,) = machine.console(host, str(tmp_path / "dev/serial0"))
    assert found.what == "console on ttyS0"
    assert machine.console(host, str(tmp_path / "dev/serial1")) == []


def test_who_has_a_port_is_told_how_to_let_go() -> None:
    assert "serial-getty@ttyAMA0" in machine.letting_go(Holder(7, "agetty"), "/dev/ttyAMA0")
    assert "nvgetty" in machine.letting_go(Holder(7, "agetty"), "/dev/ttyTHS1")
    assert "gpsd.socket" in machine.letting_go(Holder(7, "gpsd"), "/dev/ttyACM0")
    assert "sudo kill 7" in machine.letting_go(Holder(7, "minicom"), "/dev/ttyUSB0")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group, which takes root")
def test_a_port_that_the_service_may_not_open(tmp_path: Path) -> None:
    port = tmp_path / "ttyTHS1"
    port.touch()
    os.chown(port, 0, grp.getgrnam("dialout").gr_gid)
    port.chmod(0o660)
    assert machine.rights(port) == []
    port.chmod(0o640)
    assert "may not open it" in machine.rights(port)[0].message
    os.chown(port, 0, grp.getgrnam("tty").gr_gid)
    port.chmod(0o660)
    (found,) = machine.rights(port)
    assert "group tty" in found.message
    assert "nvgetty" in found.repair
    os.chown(port, 0, 54321)
    assert "group 54321" in machine.rights(port)[0].message


def test_what_is_kept_in_memory(tmp_path: Path) -> None:
    card = "/dev/mmcblk0p2 / ext4 rw 0 0\n"
    root = "overlayroot / overlay rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay 0 0\n"
    overlay = f"tmpfs /media/root-rw tmpfs rw 0 0\n{root}"
    container = "overlay / overlay rw,lowerdir=/a,upperdir=/var/lib/containers/x/diff 0 0\n"
    said = {
        name: [one.message for one in machine.kept(Board(tmp_path / name, {"proc/mounts": rows}), tmp_path)]
        for name, rows in {
            "card": card,
            "overlay": card + overlay,
            "own": card + overlay + f"/dev/sda1 {tmp_path} ext4 rw 0 0\n",
            "tmpfs": card + f"none {tmp_path} tmpfs rw 0 0\n",
            "container": card + container,
            "nothing": "",
        }.items()
    }
    assert {name for name, found in said.items() if found} == {"overlay", "tmpfs"}
    assert "gone with the power" in said["overlay"][0]


# Libraries, loaded for real by a Python of their own.


def library(folder: Path, code: str, shared: bytes | None = None) -> Host:
    """A computer whose onnxruntime is this."""
    package = folder / "site/onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    if shared is not None:
        (package / "_native.abi3.so").write_bytes(shared)
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}

    def run(command: Sequence[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20, check=False).stdout

    return Host(folder, run)


def elf(machine_number: int, bits: int) -> bytes:
    """The head of a shared object for another processor (ELF's e_machine)."""
    return (
        b"\x7fELF"
        + bytes([bits // 32, 1, 1])
        + bytes(9)
        + (3).to_bytes(2, "little")
        + machine_number.to_bytes(2, "little")
        + bytes(999)
    )


@pytest.mark.parametrize(
    ("code", "shared", "says", "cure"),
    [
        (
            "from . import _native",
            elf(183 if os.uname().machine == "x86_64" else 62, 64),
            "_native.abi3.so",
            "another processor",
        ),
        ("from . import _native", elf(40, 32), "ELF", "another processor"),
        ("from . import _native", b"cut", "_native.abi3.so", "another processor"),
        ('raise ImportError("/lib/libc.so.6: version `GLIBC_2.38\' not found")', None, "GLIBC_2.38", "older than the wheel"),
        ("raise ImportError('Error relocating x.so: __memcpy_chk: symbol not found')", None, "relocating", "musl"),
        ("raise ImportError('libx: ld-linux-aarch64.so.1: cannot open shared object file')", None, "ld-linux", "musl"),
        ("raise AttributeError('_ARRAY_API not found')", None, "_ARRAY_API", "another numpy"),
        ("raise ImportError('numpy.core.multiarray failed to import')", None, "multiarray", "another numpy"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", None, "not for this processor", "--force-reinstall"),
    ],
)
def test_a_wheel_that_does_not_fit(code: str, shared: bytes | None, says: str, cure: str, tmp_path: Path) -> None:
    (found,) = machine.libraries(library(tmp_path, code, shared), ["onnxruntime", "json"], sys.executable)
    assert (found.what, found.severity, found.exit_code) == ("wheels", "fault", 65)
    assert says in found.message
    assert cure in found.repair


def test_wheels_that_fit(tmp_path: Path) -> None:
    assert machine.libraries(library(tmp_path, "print('hello')"), ["onnxruntime", "json"], sys.executable) == []
    assert machine.libraries(Host(tmp_path, lambda command: ""), ["onnxruntime"], sys.executable) == [], "it took too long"


def test_a_32_bit_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.python(Host(tmp_path)) == []
    monkeypatch.setattr("struct.calcsize", lambda kind: 4)
    assert "64-bit Raspberry Pi OS" in machine.python(Host(tmp_path))[0].repair
