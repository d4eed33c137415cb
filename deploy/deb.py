"""A Debian package from the wheel of amiss: everything a device needs in one file, nothing compiled, nothing fetched later.

    /usr/bin/amiss                  a shell script that starts the next two
    /usr/lib/amiss                  a virtual environment without pip: bin/python3 (a link to Debian's), the wheels' files
    /usr/lib/systemd/system, udev   the unit of deploy/systemd and the rules of deploy/udev, if there are any
    /etc/default/amiss              the only conffile
    /usr/share/doc/amiss            how-tos, an example of device.toml, whose licenses apply

Wheels are for one minor version of Python and one processor, so there is a package for each Debian and each architecture; pip
chooses them for a computer that is not this one. The same wheel, constraints and time give the same bytes.
"""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from edge import config as configs
from edge.errors import AmissError

REPOSITORY = Path(__file__).parents[1]
DEBIAN = Path(__file__).with_name("debian")
PYTHONS = {12: "3.11", 13: "3.13"}
"""Debian → the minor version of its Python, which wheels are made for."""
GLIBC = "2.28"
"""The newest symbols that a wheel below may use."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name of an architecture → the kernel's and the wheels'."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
EXTRAS = ("update", "modbus")
"""What a device may need though not every one does: who installs a package has no pip to add it with."""
LIB = "usr/lib/amiss"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
UNIT = "usr/lib/systemd/system/amiss.service"

UNUSED = (
    "bin",  # made for the Python that pip ran under
    "**/tests",
    "**/test-*.sh",
    "numpy/_core/_*_tests.*.so",
    "**/.gitignore",
    "typer/.agents",
    "**/*.pyi",
    "**/*.h",
    "**/*.a",
    "onnxruntime/capi/libonnxruntime.so*",  # for programs in C: what Python loads has all of it inside
    "onnxruntime/quantization",  # for the computer on which models are made
    "onnxruntime/tools",
    "onnxruntime/transformers",
    # They name files that are gone or places of the build; dpkg has sums of its own.
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
)
"""A quarter of what the wheels unpack to, and never imported on a device."""


class PackageError(AmissError):
    """A package cannot be made here. The message names what is missing."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class Target:
    debian: int
    architecture: str

    @property
    def python(self) -> str:
        return PYTHONS[self.debian]

    def version(self, released: str) -> str:
        """Of a Python version: `0.2.0rc1` → `0.2.0~rc1+deb13`. Higher for a newer Debian, whose upgrade so takes ours along."""
        early = re.sub(r"(a|b|rc)(?=[0-9])", r"~\1", released.replace(".dev", "~~dev"))
        return f"{early}+deb{self.debian}"

    def file_name(self, released: str) -> str:
        return f"amiss_{self.version(released)}_{self.architecture}.deb"


TARGETS = tuple(Target(debian, architecture) for debian in PYTHONS for architecture in MACHINES)


def build(wheel: Path, target: Target, out: Path, epoch: int) -> Path:
    """Write the package of this wheel into the folder `out`. `epoch` is the time of everything in it, in seconds since 1970.
    Raises `PackageError`."""
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="amiss-deb-") as folder:
        root = Path(folder) / "root"
        _vendor(wheel, target, root)
        _ours(target, root, version, epoch)
        _control(target, root, version)
        _settle(root, epoch)
        out.mkdir(parents=True, exist_ok=True)
        draft = Path(folder) / "amiss.deb"
        # Its member times come from the environment, and the order from their names.
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
        call("dpkg-deb", "--root-owner-group", "-Zxz", "-b", root, draft, environment=environment)
        return Path(shutil.move(draft, out / target.file_name(version)))


def released() -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"])


def site(target: Target) -> str:
    return f"{LIB}/lib/python{target.python}/site-packages"


def _vendor(wheel: Path, target: Target, root: Path) -> None:
    into = root / site(target)
    machine = MACHINES[target.architecture]
    platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_{machine}")]
    python = ["--implementation", "cp", "--python-version", target.python, *platforms]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    asked = f"amiss[{','.join(EXTRAS)}] @ {wheel.absolute().as_uri()}"
    call(*pip, *python, "-c", REPOSITORY / "constraints.txt", "--target", into, asked)
    if absent := lacking(into, target):
        raise PackageError(f"pip left out what Python {target.python} on {machine} needs: {', '.join(absent)}")
    for pattern in UNUSED:
        for path in sorted(into.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def lacking(site: Path, target: Target) -> list[str]:
    """Requirements that nothing in this folder meets. pip judges `python_version >= "3.13"` by the Python it runs under, and
    not by the one that was asked for."""
    there = {_key(d.metadata["Name"]): d for d in metadata.distributions(path=[str(site)])}
    environment: Mapping[str, str] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": target.python,
        "python_full_version": f"{target.python}.0",
        "platform_machine": MACHINES[target.architecture],
    }
    absent = set()
    for name, distribution in there.items():
        for line in distribution.requires or []:
            needed = Requirement(line)
            extras = EXTRAS if name == "amiss" else ("",)
            if needed.marker and not any(needed.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                continue
            found = there.get(_key(needed.name))
            if found is None or not needed.specifier.contains(found.version, prereleases=True):
                absent.add(f"{needed.name}{needed.specifier}")
    return sorted(absent)


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _ours(target: Target, root: Path, released: str, epoch: int) -> None:
    lib = root / LIB
    (lib / "bin").mkdir()
    (lib / "bin" / "python3").symlink_to(f"../../../bin/python{target.python}")
    (lib / "bin" / "amiss").write_text("from amiss import main\n\nmain()\n")
    (lib / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {target.python}\n")
    _put(root / "usr/bin/amiss", (DEBIAN / "launcher").read_text()).chmod(0o755)
    _put(root / UNIT, unit((REPOSITORY / "deploy/systemd/amiss.service").read_text()))
    for rules in sorted((REPOSITORY / "deploy/udev").glob("*.rules")):
        _put(root / "usr/lib/udev/rules.d" / rules.name, rules.read_text())
    _put(root / "etc/default/amiss", (DEBIAN / "default").read_text())
    (root / "etc/amiss").mkdir()

    version, date = target.version(released), formatdate(epoch)
    doc = root / "usr/share/doc/amiss"
    for page in sorted((REPOSITORY / "docs/howto").glob("*.md")):
        _put(doc / page.name, page.read_text())
    _put(doc / "mqtt.md", (REPOSITORY / "docs/mqtt.md").read_text())
    _put(doc / "examples" / "device.toml", configs.EXAMPLE)
    _put(doc / "copyright", _licenses(root / site(target), target))
    _pack(doc / "CHANGELOG.md.gz", (REPOSITORY / "CHANGELOG.md").read_text())
    news = f"amiss ({version}) stable; urgency=medium\n\n  * {released}: CHANGELOG.md.gz says what is new."
    _pack(doc / "changelog.gz", f"{news}\n\n -- {_maintainer()}  {date}\n")
    _pack(root / "usr/share/man/man1/amiss.1.gz", (DEBIAN / "amiss.1").read_text().replace("@VERSION@", released))
    _put(root / "usr/share/lintian/overrides/amiss", (DEBIAN / "lintian-overrides").read_text())


def unit(text: str) -> str:
    """deploy/systemd/amiss.service, for this program. Raises `PackageError` when that file no longer says what is replaced."""
    for old, new in (
        (re.compile(r"\A# /etc/systemd/system/amiss.service; .*\n"), ""),
        (re.compile(r"^ExecStart=/opt/amiss/bin/amiss ", re.MULTILINE), "ExecStart=/usr/bin/amiss "),
    ):
        text, times = old.subn(new, text)
        if times != 1:
            raise PackageError(f"deploy/systemd/amiss.service: {times} times {old.pattern!r}, not once")
    for needed in ("ConditionPathExists=/etc/amiss/device.toml", "EnvironmentFile=-/etc/default/amiss"):
        if f"\n{needed}\n" not in text:
            raise PackageError(f"deploy/systemd/amiss.service: {needed} is gone, and the package counts on it")
    return text


def _licenses(site: Path, target: Target) -> str:
    lines = [
        "amiss",
        "",
        "No license has been declared for amiss yet. Until one is, nobody but its authors may copy it.",
        "",
        "Packages of others, unchanged but for files that a device does not use (tests, headers, tools). Their licenses are in",
        f"/{LIB}/lib/python{target.python}/site-packages/*.dist-info.",
        "Apache's is in /usr/share/common-licenses/Apache-2.0, too.",
        "",
    ]
    for distribution in sorted(metadata.distributions(path=[str(site)]), key=lambda d: _key(d.metadata["Name"])):
        meta = distribution.metadata
        if meta["Name"] != "amiss":
            lines.append(f"{meta['Name']} {distribution.version}: {_license(distribution)}")
    return "\n".join(lines) + "\n"


def _license(distribution: metadata.Distribution) -> str:
    meta = distribution.metadata
    classified = [line.rpartition(" :: ")[2] for line in meta.get_all("Classifier") or [] if line.startswith("License :: ")]
    said = meta["License-Expression"] or ", ".join(classified) or (meta["License"] or "").strip().partition("\n")[0]
    if not said:
        raise PackageError(f"{meta['Name']} {distribution.version} does not say under which license it comes")
    return said


def _maintainer() -> str:
    (who,) = re.findall(r"^Maintainer: (.+)$", (DEBIAN / "control").read_text(), re.MULTILINE)
    return str(who)


def _control(target: Target, root: Path, released: str) -> None:
    into = root / "DEBIAN"
    into.mkdir()
    files = list(_files(root))
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n" for path in files
    ]
    major, minor = target.python.split(".")
    fill = {
        "VERSION": target.version(released),
        "ARCH": target.architecture,
        # As dpkg counts: each file in whole KiB, each folder one.
        "SIZE": str(sum(-(-path.stat().st_size // 1024) for path in files) + sum(path.is_dir() for path in root.rglob("*"))),
        "DEBIAN": str(target.debian),
        "PYTHON": target.python,
        "NEXT": f"{major}.{int(minor) + 1}",
        "GLIBC": GLIBC,
    }
    (into / "md5sums").write_text("".join(sums))
    (into / "conffiles").write_text("/etc/default/amiss\n")
    for name in ("control", *SCRIPTS):
        text = re.sub("@([A-Z]+)@", lambda found: fill[found[1]], (DEBIAN / name).read_text())
        _put(into / name, text)


def _settle(root: Path, epoch: int) -> None:
    """Rights and times as they are to be, whatever pip and this user's umask made of them."""
    programs = {root / "usr/bin/amiss", *(root / "DEBIAN" / name for name in SCRIPTS)}
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (epoch, epoch))


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _pack(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def call(
    *command: str | Path, environment: Mapping[str, str] | None = None, folder: Path | None = None, stdin: str | None = None
) -> str:
    """What it prints. Raises `PackageError` with the last line it complained in."""
    try:
        done = subprocess.run([*map(str, command)], env=environment, cwd=folder, input=stdin, capture_output=True, text=True)
    except OSError as error:
        raise PackageError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said or ["it says nothing"]
        name = " ".join(map(str, command[1:3])) if str(command[0]) == sys.executable else command[0]
        raise PackageError(f"{name}: exit {done.returncode}: {errors[-1]}")
    return done.stdout
