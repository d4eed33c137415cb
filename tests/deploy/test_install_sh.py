"""deploy/install.sh refuses what cannot work in one line, before it does anything. That it works where it can is for
`make packages`, in a Debian of its own; the computers here are stubs on its PATH."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.dist import write_sums

SCRIPT = Path(__file__).parents[2] / "deploy/install.sh"
REAL = ("sh", "sed", "grep", "dirname", "sha256sum", "readlink", "cat", "mkdir", "mktemp", "chmod", "rm")
PYTHON = """
case "$1 $2" in
"-m "*) echo "$*" >>"{log}" ;;
*version_info*) echo "{version}" ;;
*struct*) exit {narrow} ;;
*venv*) exit {venv} ;;
esac
"""


@dataclass
class Computer:
    folder: Path
    system: str = "Linux"
    machine: str = "aarch64"
    libc: str = "glibc 2.36"
    python: str = "3.11"
    narrow: int = 0
    venv: int = 0
    user: int = 0
    arguments: tuple[str, ...] = ("--yes",)
    spoil: Callable[[Path], object] = field(default=lambda files: None)

    def run(self, script: bytes | None = None) -> subprocess.CompletedProcess[str]:
        files, tools = self.folder / "files", self.folder / "bin"
        files.mkdir()
        tools.mkdir()
        (files / "install.sh").write_bytes(script or SCRIPT.read_bytes())
        for name in ("amiss-0.1.0-py3-none-any.whl", "constraints.txt", "amiss.service", "60-amiss.rules"):
            (files / name).write_text(f"this is {name}")
        write_sums(files)
        self.spoil(files)
        for tool in REAL:
            (tools / tool).symlink_to(shutil.which(tool) or "/nonexistent")
        self._stub("uname", f'[ "$1" = -s ] && echo {self.system} || echo {self.machine}')
        self._stub("getconf", f"echo {self.libc}" if self.libc else "exit 1")
        self._stub("id", f"echo {self.user}")
        if self.python:
            log = self.folder / "log"
            self._stub("python3", PYTHON.format(version=self.python, narrow=self.narrow, venv=self.venv, log=log))
        return subprocess.run(
            [tools / "sh", files / "install.sh", *self.arguments],
            env={"PATH": str(tools)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def _stub(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def untouched(self) -> bool:
        return not (self.folder / "opt").exists() and not (self.folder / "log").exists()


WHEEL = "amiss-0.1.0-py3-none-any.whl"


def cut(files: Path) -> None:
    os.truncate(files / WHEEL, 5)


def second_wheel(files: Path) -> None:
    (files / "amiss-0.2.0-py3-none-any.whl").write_text("another")
    write_sums(files)


def unnamed(files: Path) -> None:
    sums = files / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "constraints" not in line))


REFUSED = {
    "32-bit Arm": ({"machine": "armv7l"}, 69, "no ONNX Runtime for armv7l"),
    "another system": ({"system": "Darwin"}, 69, "this is Darwin"),
    "musl": ({"libc": ""}, 69, "not glibc"),
    "old glibc": ({"libc": "glibc 2.27"}, 69, "glibc 2.27 is too old"),
    "old Python": ({"python": "3.10"}, 69, "Python 3.10 is too old"),
    "no Python": ({"python": ""}, 69, "there is no python3"),
    "another Python than asked": ({"arguments": ("--python", "python3.12")}, 69, "there is no python3.12"),
    "32-bit Python": ({"narrow": 1}, 69, "32-bit program"),
    "no venv": ({"venv": 1}, 69, "no venv module: sudo apt-get install python3.11-venv"),
    "not root": ({"user": 1000}, 77, "sudo sh install.sh"),
    "half a wheel": ({"spoil": cut}, 65, "half a download"),
    "no wheel": ({"spoil": lambda files: (files / WHEEL).unlink()}, 66, "is not there"),
    "two wheels": ({"spoil": second_wheel}, 65, "several wheels"),
    "changed constraints": (
        {"spoil": lambda files: (files / "constraints.txt").write_text("numpy==1")},
        65,
        "not what SHA256SUMS",
    ),
    "changed unit": ({"spoil": lambda files: (files / "amiss.service").write_text("[Service]")}, 65, "not what SHA256SUMS"),
    "changed rules": ({"spoil": lambda files: (files / "60-amiss.rules").write_text("")}, 65, "not what SHA256SUMS"),
    "a file without a sum": ({"spoil": unnamed}, 65, "does not name constraints.txt"),
    "no sums": ({"spoil": lambda files: (files / "SHA256SUMS").unlink()}, 66, "SHA256SUMS is not there"),
    "empty sums": ({"spoil": lambda files: (files / "SHA256SUMS").write_text("")}, 65, "names no wheel"),
    "nobody to ask": ({"arguments": ()}, 2, "say --yes"),
    "an unknown option": ({"arguments": ("--frobnicate",)}, 2, "--frobnicate is no option"),
    "a prefix for sed": ({"arguments": ("--prefix", "/opt/a|b")}, 2, "only letters"),
    "no whole path": ({"arguments": ("--prefix", "opt")}, 2, "whole path"),
    "the root": ({"arguments": ("--prefix", "/")}, 2, "whole path"),
    "an option without its value": ({"arguments": ("--prefix",)}, 2, "wants a value"),
    "purge without uninstall": ({"arguments": ("--purge",)}, 2, "goes with --uninstall"),
    "somebody else's folder": ({"arguments": ("--yes", "--prefix", "/usr/lib")}, 73, "was not made by install.sh"),
    "uninstall of nothing": ({"arguments": ("--yes", "--uninstall", "--prefix", "/usr/lib")}, 66, "nothing to take away"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_in_one_line(case: str, tmp_path: Path) -> None:
    how, code, why = REFUSED[case]
    prefix = () if "--prefix" in how.get("arguments", ()) else ("--prefix", str(tmp_path / "opt"))
    computer = Computer(tmp_path, **{**how, "arguments": (*how.get("arguments", ("--yes",)), *prefix)})
    done = computer.run()
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("install.sh: ")
    assert why in done.stderr
    assert computer.untouched()


def test_it_says_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    """The control of all the refusals: nothing is wrong here."""
    prefix = str(tmp_path / "opt")
    computer = Computer(tmp_path, user=1000, arguments=("--dry-run", "--prefix", prefix))
    done = computer.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"amiss 0.1.0 for aarch64, with {tmp_path}/bin/python3 (3.11):" in done.stdout
    assert prefix in done.stdout
    assert computer.untouched()


def test_it_would_have_gone_on(tmp_path: Path) -> None:
    """And with --yes the first thing that it does is done."""
    computer = Computer(tmp_path, arguments=("--yes", "--prefix", str(tmp_path / "opt")))
    done = computer.run()
    assert done.returncode != 0, "this Python makes no virtual environment"
    assert "-m venv" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_half_of_it_does_nothing(share: float, tmp_path: Path) -> None:
    whole = SCRIPT.read_bytes()
    computer = Computer(tmp_path, arguments=("--yes", "--prefix", str(tmp_path / "opt")))
    computer.run(whole[: int(share * len(whole))])
    assert computer.untouched()


def test_shellcheck_has_no_objection() -> None:
    tool = shutil.which("shellcheck")
    assert tool, "shellcheck is not installed: apt-get install shellcheck"
    scripts = [SCRIPT, *(SCRIPT.parent / "debian" / name for name in ("preinst", "postinst", "prerm", "postrm", "launcher"))]
    done = subprocess.run([tool, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
