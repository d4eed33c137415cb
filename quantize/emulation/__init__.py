"""64-bit Arm without the board: a device's programs run under `qemu-aarch64`, and their instructions are counted.

    <folder>/root/usr      Python and the C library of Debian 13, unpacked and never booted
    <folder>/site          the device's packages: wheels for aarch64, of the versions that are installed here
    <folder>/cortex-a53 …  what a program sees as `/` on this processor: links to the root, and a /proc/cpuinfo that fits;
                           and `python`, a script that starts the emulated Python there
    <folder>/count.so      count.c, compiled
    <folder>/key           of everything that the folder was made from; written last

`prepare` makes it (`python -m quantize.emulation`, or `make arm64`) from the packages qemu-user, mmdebstrap and gcc; it needs
neither root nor a boot. Emulated time says nothing; a number of instructions says how much work it is, the same on every
machine within some tenths of a percent.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge.errors import AmissError
from edge.signal import Float32, Int64

SUITE, PYTHON = "trixie", "3.13"
SYSTEM = ("base-files", "libc6", "libstdc++6", "libgcc-s1", "python3")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
WHEELS = ("numpy", "onnxruntime", "msgspec", "ai-edge-litert")
"""What a device needs to open a bundle and to run it; those that are installed here."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
OLD = "fp asimd evtstrm crc32 cpuid"
NEW = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PROCESSORS = {"cortex-a53": (OLD, "0xd03"), "cortex-a72": (OLD, "0xd08"), "cortex-a76": (NEW, "0xd0b")}
"""By QEMU's name: features and part number of /proc/cpuinfo. Never QEMU's default: with the SVE of its version 7.2 int8 comes
out wrong. And never the host's cpuinfo: ONNX Runtime dies of it."""
CURE = "sudo apt-get install -y qemu-user mmdebstrap gcc libc6-dev, then python -m quantize.emulation"
SCRIPT = """#!/bin/sh
# QEMU is told this script's name as the program's: so it is sys.executable, and what is started as that is emulated, too.
here=${{0%/*}} marks=$AMISS_MARKS
unset AMISS_MARKS
# Nobody's folders are to be littered with another Python's byte code, and the second start is to be quick.
export PYTHONHOME="$here/../root/usr" PYTHONPYCACHEPREFIX="$here/../bytecode"
exec qemu-aarch64 -cpu {processor} -seed 1 ${{marks:+-plugin "$here/../count.so,out=$marks"}} -L "$here" -0 "$0" \\
  "$here/../root/usr/bin/python{python}" "$@"
"""
RUNS = (2, 12)
"""Few and many: what starting and marking takes falls out of the difference."""
TIMEOUT_S = 900.0


class EmulationError(AmissError):
    """Nothing can be emulated here, or what was emulated failed. Go on without figures, or follow the cure in the message."""

    exit_code = 69


def home() -> Path:
    """Beside the packages whose versions it follows: in a virtual environment it goes where that goes."""
    return Path(sys.prefix) / "arm64"


class Emulator(Protocol):
    def instructions(
        self, models: Mapping[str, bytes], windows: Float32, processor: str, batches: Sequence[int] = (1,)
    ) -> dict[str, dict[int, int]]:
        """Model → batch → instructions for one window in a batch of that many. Raises `EmulationError`."""
        ...


@dataclass(frozen=True, slots=True)
class Arm64:
    """Ready to run. `find` says where it is."""

    folder: Path

    def python(self, processor: str, *arguments: str | Path, marks: Path | None = None, timeout_s: float = TIMEOUT_S) -> str:
        """What `python3 *arguments` prints on this processor; it can import `edge`. Raises `EmulationError`.

        Counts at marks go to the file `marks`, a line each. What it starts as `sys.executable` is emulated, too, and not
        counted; other programs are those of this machine.
        """
        environment = self.environment() | ({} if marks is None else {"AMISS_MARKS": str(marks)})
        try:
            return _run(self.interpreter(processor), *arguments, environment=environment, timeout_s=timeout_s)
        except EmulationError as error:
            raise EmulationError(f"{processor}, emulated: {error}") from None

    def interpreter(self, processor: str) -> Path:
        """Its Python, for those who start programs themselves, in `environment`."""
        return self.folder / processor / "python"

    def environment(self, *more: Path) -> dict[str, str]:
        """What the emulated Python wants; `more` are folders to import from, beside ours."""
        return {
            "HOME": "/nonexistent",
            "PATH": os.environ.get("PATH", ""),
            "TMPDIR": tempfile.gettempdir(),
            "PYTHONPATH": os.pathsep.join(map(str, [*more, _ours()])),
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def packages(self, name: str, *wanted: str) -> None:
        """Install more packages for the emulated Python, in the folder `name`, of the versions that are installed here, unless
        they are there. Raises `EmulationError`."""
        folder, made_from = self.folder / name, self.folder / f"{name}.key"
        key = hashlib.sha256(repr(sorted(_constraints())).encode() + repr(sorted(wanted)).encode()).hexdigest()
        if not made_from.exists() or made_from.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, _versions(wanted))
            made_from.write_text(key)

    def instructions(
        self, models: Mapping[str, bytes], windows: Float32, processor: str, batches: Sequence[int] = (1,)
    ) -> dict[str, dict[int, int]]:
        """Model → batch → instructions for one window in a batch of that many. `windows` (B, C, N) are real ones, enough for
        the largest batch: what they hold decides what is computed. Raises `EmulationError`.
        """
        with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
            at = Path(folder)
            for i, model in enumerate(models.values()):
                (at / f"{i}.model").write_bytes(model)
            np.save(at / "windows.npy", windows[: max(batches)])
            files = [str(at / f"{i}.model") for i in range(len(models))]
            plan = {"models": files, "windows": str(at / "windows.npy"), "batches": list(batches), "runs": RUNS}
            marks = self.marks(processor, Path(__file__).with_name("guest.py"), plan, 3 * len(models) * len(batches))
        few, many = np.diff(marks.reshape(len(models), len(batches), 3), axis=2).transpose(2, 0, 1)
        each = (many - few) / (RUNS[1] - RUNS[0]) / np.array(batches)
        return {name: {b: round(each[i, j]) for j, b in enumerate(batches)} for i, name in enumerate(models)}

    def marks(self, processor: str, guest: Path, plan: Mapping[str, Any], count: int) -> Int64:
        """Instructions so far at each of `count` marks, calls of getppid, that the program `guest` makes when it is given the
        file of a plan. Raises `EmulationError`."""
        with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
            at = Path(folder)
            (at / "job.json").write_text(json.dumps(plan))
            self.python(processor, guest, at / "job.json", marks=at / "marks")
            lines = (at / "marks").read_text().split()
        if len(lines) != count:
            raise EmulationError(f"{len(lines)} marks were counted, {count} were made: another QEMU?")
        return np.array(lines, np.int64)


def find(folder: Path | None = None) -> Arm64:
    """What `prepare` made. Raises `EmulationError` when it is not there, or not of today's versions."""
    folder = folder or home()
    if shutil.which("qemu-aarch64") is None:
        raise EmulationError(f"qemu-aarch64 is not installed: {CURE}")
    try:
        made_from = (folder / "key").read_text()
    except OSError:
        raise EmulationError(f"there is no {folder}: {CURE}") from None
    if made_from != key():
        raise EmulationError(f"{folder} is of other versions: {CURE}")
    return Arm64(folder)


def key() -> str:
    """Of everything that the folder is made from."""
    text = repr((SUITE, PYTHON, SYSTEM, sorted(_versions(WHEELS)), PLATFORMS, PROCESSORS, SCRIPT))
    return hashlib.sha256(text.encode() + Path(__file__).with_name("count.c").read_bytes()).hexdigest()


def prepare(folder: Path | None = None) -> Arm64:
    """Make the folder, whole or not at all, unless it is there. About a minute. Raises `EmulationError`."""
    folder = folder or home()
    try:
        return find(folder)
    except EmulationError:
        if absent := [tool for tool in ("qemu-aarch64", "mmdebstrap", "cc") if shutil.which(tool) is None]:
            raise EmulationError(f"{', '.join(absent)} not installed: {CURE}") from None
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        draft.mkdir(parents=True)
        _system(draft / "root")
        _install(draft / "site", _versions(WHEELS))
        for processor, (features, part) in PROCESSORS.items():
            _see(draft / processor, features, part)
        source = Path(__file__).with_name("count.c")
        _run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", draft / "count.so", source)
        (draft / "key").write_text(key())
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError as error:
        raise EmulationError(f"{folder}: cannot be made: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return find(folder)


def _system(root: Path) -> None:
    # From the mirror that this machine uses. It is told on stdin, and what mmdebstrap notes of it goes.
    source = f"deb [signed-by={KEYRING}] {_mirror()} {SUITE} main\n"
    options = ["--variant=extract", "--architectures=arm64", f"--include={','.join(SYSTEM)}"]
    if os.geteuid() != 0:
        options.append("--mode=chrootless")  # it only unpacks; the other modes want rights or packages for nothing
    _run("mmdebstrap", *options, SUITE, root, "-", stdin=source)
    for entry in root.iterdir():
        if entry.name not in ("usr", "lib"):
            entry.unlink() if entry.is_symlink() or entry.is_file() else shutil.rmtree(entry)


def _mirror() -> str:
    """Debian's, by the sources that apt has here."""
    targets = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    for uri in targets.splitlines():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise EmulationError("apt has no Debian mirror among its sources, and the emulated system comes from one")


def _install(folder: Path, wanted: Sequence[str]) -> None:
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    python = [*platforms, "--implementation", "cp", "--python-version", PYTHON]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{line}\n" for line in _constraints())
        constraints.flush()
        _run(*pip, *python, "-c", constraints.name, "--target", folder, *wanted)
    # Not by PYTHONPATH: what a device starts with a clean environment finds them, too.
    at = folder.parent / "root" / "usr" / "lib" / "python3" / "dist-packages"
    at.mkdir(parents=True, exist_ok=True)
    (at / f"{folder.name}.pth").write_text(os.path.relpath(folder, at) + "\n")


def _constraints() -> list[str]:
    """The version of everything that is installed here; one with a + is somebody's own build, and nowhere to be had."""
    return [f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if "+" not in d.version]


def _versions(names: Sequence[str]) -> list[str]:
    """As requirements; without those that are not installed here."""
    found = []
    for name in names:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _see(root: Path, features: str, part: str) -> None:
    (root / "proc").mkdir(parents=True)
    for name in ("usr", "lib"):
        (root / name).symlink_to(Path("..") / "root" / name)
    (root / "proc" / "cpuinfo").write_text(
        f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
    )
    (root / "python").write_text(SCRIPT.format(processor=root.name, python=PYTHON))
    (root / "python").chmod(0o755)


def _ours() -> Path:
    """Where `edge` is imported from."""
    return Path(__file__).parents[2]


def _run(
    *command: str | Path,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """What it prints."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [*map(str, command)], input=stdin, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except OSError as error:
        raise EmulationError(f"{name}: cannot be started: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise EmulationError(f"{name} took more than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise EmulationError(f"{name}: exit {done.returncode}: {_last(done.stderr)}")
    return done.stdout


def _last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
