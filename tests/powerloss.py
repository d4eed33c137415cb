"""What a disk may hold after the power went, from the system calls of a process that wrote to it.

A crash image has what was synced, and of the rest nothing, everything or any sectors; a file or a name that its folder was
not synced for may be missing. That is less than file systems promise in practice, and all that POSIX does.
"""

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SECTOR = 512
Rest = Literal["none", "all", "some"]

_CALLS = "openat,close,dup,dup2,dup3,write,pwrite64,ftruncate,fallocate,fsync,fdatasync,unlink,rename,lseek,writev,pwritev"
_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")


def traced(arguments: list[str], log: Path) -> int:
    """Run it; its calls are in `log` afterwards. What it tells on standard output is among them, in its place."""
    strace = shutil.which("strace")
    assert strace is not None, "strace is not installed: apt-get install strace"
    command = [strace, "-f", "-xx", "-s", "1000000", "-o", str(log), "-e", f"trace={_CALLS}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).returncode


@dataclass
class _File:
    synced: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes since then: offset and bytes, or a new length and None."""

    def sync(self) -> None:
        self.synced = self.image("all", random.Random(0))
        self.since = []

    def image(self, rest: Rest, chance: random.Random) -> bytearray:
        image = bytearray(self.synced)
        if rest == "none":
            return image
        for at, data in self.since:
            if data is None:
                if rest == "all" or chance.random() < 0.5:
                    image[at:] = bytes(max(0, at - len(image)))
                continue
            for begin in range(0, len(data), SECTOR):
                if rest == "all" or chance.random() < 0.5:
                    part, where = data[begin : begin + SECTOR], at + begin
                    image += bytes(max(0, where - len(image)))
                    image[where : where + len(part)] = part
        return image


class Disk:
    """One folder and what is in it, call by call. Names of folders are taken to be there always."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._open: dict[int, str] = {}
        self._at: dict[int, int] = {}  # where the next `write` goes
        self._files: dict[str, _File] = {}
        self._names: dict[str, _File] = {}  # as far as their folder is synced
        self._folders = {self._folder}
        self.told: list[str] = []
        """What the process had said by then."""

    def replay(self, log: Path) -> Iterator[None]:
        """Yields after every call that changes something."""
        with log.open() as lines:
            for line in lines:
                assert "<unfinished" not in line, "two threads at once: their calls have no order"
                match = _LINE.match(line)
                if match is not None and int(match[3]) >= 0 and self._call(match[1], match[2], int(match[3])):
                    yield

    def _call(self, name: str, text: str, result: int) -> bool:
        arguments = text.split(", ")
        if name == "openat":
            path = _bytes(arguments[1]).decode()
            self._open.pop(result, None)
            if path == self._folder or path.startswith(f"{self._folder}/"):
                self._open[result], self._at[result] = path, 0
                if "O_DIRECTORY" in arguments[2]:
                    self._folders.add(path)
                if "O_CREAT" in arguments[2] and path not in self._files:
                    self._files[path] = _File()
                if "O_TRUNC" in arguments[2]:
                    self._files[path].since.append((0, None))
            return False
        if name in ("unlink", "rename"):
            paths = [_bytes(argument).decode() for argument in arguments]
            if paths[0] in self._files:
                file = self._files.pop(paths[0])
                if name == "rename":
                    self._files[paths[1]] = file
                return True
            return False
        number = int(arguments[0])
        if name == "close":
            self._open.pop(number, None)
            return False
        if name == "write" and number == 1:
            self.told += _bytes(arguments[1]).decode().splitlines()
            return False
        if (path := self._open.get(number, "")) == "":
            return False
        assert name in ("pwrite64", "write", "ftruncate", "fsync", "fdatasync", "lseek"), f"{name} is not understood"
        if name == "lseek":
            self._at[number] = result
            return False
        if path in self._folders:
            others = {name: file for name, file in self._names.items() if str(Path(name).parent) != path}
            here = {name: file for name, file in self._files.items() if str(Path(name).parent) == path}
            self._names = {**others, **here}
            return True
        file = self._files[path]
        if name == "pwrite64":
            file.since.append((int(arguments[-1]), _bytes(arguments[1])[:result]))
        elif name == "write":
            file.since.append((self._at[number], _bytes(arguments[1])[:result]))
            self._at[number] += result
        elif name == "ftruncate":
            file.since.append((int(arguments[1]), None))
        else:
            file.sync()
        return True

    def crash(self, folder: Path, rest: Rest, chance: random.Random) -> None:
        """Make `folder` what the disk may look like if the power went now."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        names = dict(self._files if rest == "all" else self._names)
        if rest == "some":
            for name in {*self._files, *self._names}:
                if chance.random() < 0.5 and name in self._files:
                    names[name] = self._files[name]
        for name, file in names.items():
            place = folder / Path(name).relative_to(self._folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.image(rest, chance))


def _bytes(text: str) -> bytes:
    assert text[0] == text[-1] == '"', f"cut short: {text[:80]}"
    return bytes.fromhex(text[1:-1].replace("\\x", ""))
