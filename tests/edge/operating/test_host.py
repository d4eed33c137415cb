"""Troubles of the computer, laid out as files: each is found, and without it nothing is said."""

import datetime
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mosquitto import until

from edge.errors import AccessError, StorageError
from edge.operating import host as machine
from edge.operating.finding import Finding, exit_code
from edge.operating.host import Holder, Host

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

    def __init__(self, root: Path, changes: dict[str, str], systemctl: str = WELL) -> None:
        super().__init__(root, self._answer)
        self._systemctl = systemctl
        for name, text in (PI | changes).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (root / "run/systemd/system").mkdir(parents=True)

    def _answer(self, command: Sequence[str]) -> str:
        assert command[:3] == ["systemctl", "show", "amiss.service"]
        return self._systemctl


def examine(host: Host) -> list[Finding]:
    found = [*machine.examine(host), *machine.grabbers(host), *machine.console(host, "/dev/ttyAMA0")]
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
