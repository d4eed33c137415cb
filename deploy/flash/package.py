"""What a Debian package says of itself, and whether today's Raspberry Pi OS can take it."""

import io
import lzma
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConfigError, DataError, NoInputError

PYTHON = (3, 13)
"""Of Debian 13, which Raspberry Pi OS is made of since October 2025."""
MOST_CONTROL = 4 << 20
"""Bytes. What is larger holds more than a description."""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str
    architecture: str
    depends: str


def look_at(path: Path) -> Package:
    """Raises `NoInputError` when it is not there, `DataError` when it is no Debian package."""
    try:
        with path.open("rb") as file:
            fields = _fields(file)
        return Package(fields["Package"], fields["Version"], fields["Architecture"], fields.get("Depends", ""))
    except OSError as error:
        raise NoInputError(f"{path}: {error.strerror or error}; `make dist` writes packages into dist/") from None
    except (KeyError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise DataError(f"{path}: not a Debian package, or a damaged one: {error}") from None


def refuse_unfit(package: Package, path: Path) -> None:
    """Raises `ConfigError` that says which one is wanted instead."""
    wanted = f"Raspberry Pi OS Lite (64-bit) wants amiss_…+deb{PYTHON[1]}_arm64.deb"  # Debian 13 happens to have Python 3.13
    if package.name != "amiss":
        raise ConfigError(f"{path}: a package of {package.name}; {wanted}")
    if package.architecture not in ("arm64", "all"):
        raise ConfigError(f"{path}: for {package.architecture}; {wanted}")
    for relation, major, minor in re.findall(r"\bpython3 \(([<>]=|<<|>>|=) (\d+)\.(\d+)", package.depends):
        version = (int(major), int(minor))
        if (relation == ">=" and version > PYTHON) or (relation == "<<" and version <= PYTHON):
            raise ConfigError(f"{path}: for another Debian (python3 {relation} {major}.{minor}); {wanted}")


def find(folder: Path) -> Path | None:
    """The newest package in `folder` that fits."""
    fitting = sorted(folder.glob(f"amiss_*+deb{PYTHON[1]}_arm64.deb"), key=lambda path: path.stat().st_mtime)
    return fitting[-1] if fitting else None


def _fields(file: io.BufferedReader) -> dict[str, str]:
    """Of `control`. A package is an `ar` archive (deb(5)): a magic line, then members with headers of 60 bytes."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError("it does not begin as one")
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith("control.tar"):
            if size > MOST_CONTROL:
                raise ValueError(f"{name} has {size} bytes")
            with tarfile.open(fileobj=io.BytesIO(file.read(size))) as archive:
                member = archive.extractfile("./control")
                assert member is not None
                text = member.read(MOST_CONTROL).decode()
            return dict(re.findall(r"^([A-Za-z-]+): *(.*)$", text, re.MULTILINE))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it has no description of itself")
