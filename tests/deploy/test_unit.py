"""deploy/systemd/amiss.service: understood by systemd to the last key, exposed to next to nothing, and still able to work.

systemd itself is not started here: its tools judge the file, and the kernel's part of it (which system calls are allowed) is
put on a real agent by hand.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy/systemd/amiss.service"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is not installed: apt-get install systemd"
    environ = os.environ | {"SYSTEMD_PAGER": "", "LC_ALL": "C"}
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, env=environ, check=False)


def unit(folder: Path, *changes: tuple[str, str]) -> Path:
    """The file as it is shipped, but for the program, which must exist to be verified, and `changes`."""
    text = UNIT.read_text("utf-8")
    for old, new in (("/opt/amiss/bin/amiss", "/bin/true"), *changes):
        assert old in text
        text = text.replace(old, new)
    path = folder / "amiss.service"
    path.write_text(text)
    return path


def complaints(path: Path) -> str:
    """`verify` says what it does not know on stderr, and calls it a success."""
    return analyze("verify", path).stderr


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert complaints(unit(tmp_path)) == ""


@pytest.mark.parametrize(
    "change",
    [
        ("WatchdogSec=60", "WatchDogSec=60"),
        ("Type=notify\n", "Type=notifies\n"),
        ("ProtectSystem=strict", "ProtectSystem=very"),
        ("SystemCallFilter=@system-service", "SystemCallFilter=@system-servce"),
        ("ExecStart=/bin/true", "ExecStart=/nowhere/amiss"),
    ],
)
def test_it_would_notice_a_slip(change: tuple[str, str], tmp_path: Path) -> None:
    assert complaints(unit(tmp_path, change)) != ""


def exposed(path: Path) -> bool:
    done = analyze("security", "--offline=yes", "--threshold=15", "--no-pager", path)
    assert "Overall exposure level" in done.stdout, done.stderr
    return done.returncode != 0


def test_it_is_exposed_to_next_to_nothing(tmp_path: Path) -> None:
    """At most 1.5 of 10."""
    assert not exposed(unit(tmp_path))


@pytest.mark.parametrize(
    "change", [("DynamicUser=yes\nUser=amiss", "User=root"), ("SystemCallFilter=", "#"), ("CapabilityBoundingSet=\n", "")]
)
def test_it_would_notice_an_open_door(change: tuple[str, str], tmp_path: Path) -> None:
    assert exposed(unit(tmp_path, change))


def value(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def test_what_no_restart_can_cure_is_not_restarted() -> None:
    from edge.errors import (
        AccessError,
        BundleError,
        ConfigError,
        DataError,
        NoInputError,
        SinkUnavailableError,
        StorageError,
        UsageError,
    )

    final = set(map(int, value("RestartPreventExitStatus")[0].split()))
    assert {kind.exit_code for kind in (UsageError, ConfigError, BundleError, AccessError, NoInputError, DataError)} <= final
    assert not {kind.exit_code for kind in (SinkUnavailableError, StorageError)} & final
    assert 70 not in final, "a bug may be gone after a restart"


def test_it_starts_offline_and_before_the_clock_is_set() -> None:
    assert value("Wants") == ["network-online.target time-sync.target"]
    assert not value("Requires")
    assert not value("BindsTo")


def test_the_password_is_read_from_the_credentials(tmp_path: Path) -> None:
    """The lines that the file holds ready, as systemd fills them in."""
    from edge import config as configs

    credential, setting = re.search(r"#LoadCredential=(\S+):\S+\n#Environment=(\S+)", UNIT.read_text("utf-8")).groups()  # type: ignore[union-attr]
    (tmp_path / credential).write_text("s3cret\n")
    name, _, path = setting.replace("%d", str(tmp_path)).partition("=")
    (tmp_path / "device.toml").write_text(configs.EXAMPLE)
    assert configs.load(tmp_path / "device.toml", environ={name: path}).mqtt.password == "s3cret"
    both = ("#LoadCredential", "LoadCredential"), ("#Environment=AMISS", "Environment=AMISS")
    assert complaints(unit(tmp_path, *both)) == ""


def test_what_a_gpu_wants_is_understood(tmp_path: Path) -> None:
    """The drop-in of docs/howto/jetson.md."""
    page = (UNIT.parents[2] / "docs/howto/jetson.md").read_text("utf-8")
    (block,) = re.findall(r"^    \[Service\]\n((?:    \w+=.*\n)+)", page, re.MULTILINE)
    more = "\n".join(line.strip() for line in block.splitlines())
    assert complaints(unit(tmp_path, ("\n[Install]", f"\n{more}\n[Install]"))) == ""
    assert complaints(unit(tmp_path, ("\n[Install]", "\nMemoryMaximum=2G\n[Install]"))) != "", "the control"


# What the kernel is told: the filter of the unit, put on a child of ours with libseccomp, as systemd would.

FILTERED = """
import ctypes, errno, sys
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p
ALLOW, REFUSE, MASKED = 0x7FFF0000, 0x00050000 | errno.EPERM, 7

class Compare(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

context = ctypes.c_void_p(seccomp.seccomp_init(REFUSE))
for name in open(sys.argv[1]).read().split():
    if (number := seccomp.seccomp_syscall_resolve_name(name.encode())) >= 0:
        if name in ("mmap", "mprotect", "pkey_mprotect"):  # MemoryDenyWriteExecute=
            bits = 2 | 4 if name == "mmap" else 4
            for kept in ([0, 2, 4] if name == "mmap" else [0]):
                rule = Compare(2, MASKED, bits, kept)
                assert seccomp.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(rule)) == 0
        else:
            assert seccomp.seccomp_rule_add_array(context, ALLOW, number, 0, None) == 0
assert seccomp.seccomp_load(context) == 0
import runpy
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def allowed(folder: Path, *without: str) -> Path:
    names: set[str] = set()
    for line in value("SystemCallFilter"):
        sets = line.removeprefix("~").split()
        found = {name for part in sets for name in calls(part)}
        names = names - found if line.startswith("~") else names | found
    path = folder / "allowed"
    path.write_text("\n".join(names - {name for part in without for name in calls(part)}))
    return path


def calls(name: str) -> set[str]:
    """The system calls of a set, sets inside of it included."""
    if not name.startswith("@"):
        return {name}
    listed = [line.strip() for line in analyze("syscall-filter", name).stdout.splitlines()[1:]]
    return {call for entry in listed if entry and not entry.startswith("#") for call in calls(entry)}


def agent(folder: Path, filter_: Path) -> subprocess.CompletedProcess[str]:
    import numpy as np
    from small_bundle import CHANNELS, build, normal

    from edge.sensing.recordings import Recording, write_recording

    time_ns = 10**18 + np.arange(400, dtype=np.int64) * 10_000_000
    write_recording(folder / "r.csv", Recording("r.csv", CHANNELS, time_ns, normal(400, seed=3)))
    arguments = ["amiss", "score", str(build(folder / "b.amiss")), str(folder / "r.csv"), "--out", str(folder / "s.csv")]
    return subprocess.run(
        [sys.executable, "-c", FILTERED, str(filter_), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_model_runs_under_the_filter(tmp_path: Path) -> None:
    done = agent(tmp_path, allowed(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "400 rows" in done.stderr


@pytest.mark.parametrize("without", [(), ("setpriority",)])
def test_a_pushed_model_is_tried_under_the_filter(tmp_path: Path, without: tuple[str, ...]) -> None:
    """At a lower priority, and at the agent's where somebody forbids that: nothing is recorded yet, and it comes that far."""
    import msgspec
    from small_bundle import build

    from edge.updating.trial import Order, Result

    bundle = str(build(tmp_path / "b.amiss"))
    order = msgspec.json.encode(Order(candidate=bundle, live=bundle, ring=str(tmp_path / "ring")))
    command = [sys.executable, "-c", FILTERED, str(allowed(tmp_path, *without)), "edge.updating.trial"]
    done = subprocess.run(command, input=order + b"\n", capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert msgspec.json.decode(done.stdout.splitlines()[-1], type=Result).stage == "shadow"
    (tmp_path / "nicer.py").write_text("import os\nos.nice(10)\n")
    nicer = subprocess.run(
        [*command[:-1], "nicer"], capture_output=True, check=False, timeout=120, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert (nicer.returncode == 0) == (not without), "the filter is what says so"


def test_the_filter_is_really_there(tmp_path: Path) -> None:
    assert agent(tmp_path, allowed(tmp_path, "rename", "renameat", "renameat2")).returncode == 73
