"""The image under QEMU: the whole way from a card to alerts, without the hardware.

    virt       QEMU's own board: kernel and initramfs come from the card's boot partition, frames over `pci-serial`
    raspi3b    a Raspberry Pi 3 Model B with its device tree: the card is an SD card, frames over `usb-serial`

In both, QEMU loads the kernel in the place of the GPU's firmware, which is not emulated; nor are Wi-Fi, GPIO, and a card's
wear. The guest reaches this computer's loopback as 10.0.2.2.
"""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from deploy.image.disk import ALIGN, SECTOR
from deploy.image.root import ImageError, need, run

Board = Literal["virt", "raspi3b"]
TOOLS = ("qemu-system-aarch64", "mcopy", "mdir", "zstd", "e2fsck", "debugfs")
CURE = "sudo apt-get install -y qemu-system-arm mtools zstd e2fsprogs"
CARD_BYTES = 4 * 1024**3
"""A power of two, as SD cards have to have for raspi3b; larger than the image, so that there is something to grow into."""
LATE_S = 300.0
HOST = "10.0.2.2"
PORTS: dict[Board, str] = {"virt": "/dev/ttyS0", "raspi3b": "/dev/serial/by-id/usb-QEMU*-port0"}
"""Where a guest finds the emulated adapter."""
DTB = "bcm2837-rpi-3-b.dtb"


def unpack(image: Path, card: Path) -> None:
    """A card with the image on it; `card` is as large as cards are and takes the room of what is in it."""
    need(TOOLS, CURE)
    run(["zstd", "-q", "-d", "-f", "--sparse", str(image), "-o", str(card)])
    if card.stat().st_size > CARD_BYTES:
        raise ImageError(f"{image} does not fit on a card of {CARD_BYTES >> 30} GiB")
    os.truncate(card, CARD_BYTES)


@dataclass(frozen=True, slots=True)
class Card:
    """A file that is an SD card. Only for while no guest has it."""

    path: Path

    @property
    def _boot(self) -> str:
        return f"{self.path}@@{ALIGN}"

    def names(self) -> list[str]:
        """Files at the top of the boot partition."""
        return run(["mdir", "-b", "-i", self._boot, "::"]).replace("::/", "").split("\n")[:-1]

    def put(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            run(["mcopy", "-o", "-i", self._boot, "-", f"::{name}"], stdin=data)

    def get(self, name: str, to: Path) -> Path:
        run(["mcopy", "-n", "-o", "-i", self._boot, f"::{name}", str(to)])
        return to

    def text(self, name: str, folder: Path) -> str:
        return self.get(name, folder / name).read_text()

    def partitions(self) -> list[tuple[int, int]]:
        """Start and size in bytes, by the table."""
        with self.path.open("rb") as file:
            table = file.read(SECTOR)[446:510]
        entries = [struct.unpack_from("<II", table, 16 * i + 8) for i in range(4)]
        return [(start * SECTOR, size * SECTOR) for start, size in entries if size]

    def system(self, to: Path) -> "System":
        """A copy of the root file system, at most as large as the card."""
        start, size = self.partitions()[1]
        where = [f"skip={start // ALIGN}", f"count={size // ALIGN}", "bs=4M", "conv=sparse", "status=none"]
        run(["dd", f"if={self.path}", f"of={to}", *where])
        os.truncate(to, size // ALIGN * ALIGN)
        return System(to)


@dataclass(frozen=True, slots=True)
class System:
    """A root file system, looked at from outside."""

    path: Path

    def check(self) -> None:
        """What the next start does: replay the journal. Raises `ImageError` if that is not enough."""
        run(["e2fsck", "-p", str(self.path)], good=(0, 1))
        run(["e2fsck", "-f", "-n", str(self.path)])

    def size(self) -> int:
        """Bytes, by its superblock."""
        with self.path.open("rb") as file:
            file.seek(1024)
            superblock = file.read(1024)
        blocks, log_size = struct.unpack_from("<I", superblock, 4)[0], struct.unpack_from("<I", superblock, 24)[0]
        return int(blocks << (10 + log_size))

    def ask(self, request: str) -> str:
        """What debugfs prints: `cat /etc/hostname`, `stat PATH`, `ls -p PATH`."""
        return run(["debugfs", "-R", request, str(self.path)])


class Wire:
    """This end of the emulated serial cable. An emulated board is late at times, more than a real one: what is sent waits."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(LATE_S)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


class Guest:
    """The computer that starts from a card. `folder` gets its console and its end of the cable."""

    def __init__(self, card: Card, folder: Path, board: Board, *, show: bool = False) -> None:
        need(TOOLS, CURE)
        self.card, self.board = card, board
        folder.mkdir(parents=True, exist_ok=True)
        self._console, self._cable = folder / "console.txt", folder / "cable"
        self.started_s = time.monotonic()
        self._console.unlink(missing_ok=True)
        command = self._command(folder, show)
        with (folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=None if show else log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.wire = Wire(self._cable)
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise ImageError(f"qemu-system-aarch64 does not start: {(folder / 'qemu.log').read_text().strip()[-300:]}")
            time.sleep(0.05)

    def _command(self, folder: Path, show: bool) -> list[str]:
        names = self.card.names()
        kernel, initrd = (next((n for n in names if re.match(start, n)), "") for start in ("vmlinuz", "initrd.img"))
        if not kernel or not initrd:
            raise ImageError(f"{self.card.path}: no kernel and initramfs among {', '.join(names)}: not our image?")
        self._cable.unlink(missing_ok=True)
        console = "stdio" if show else f"file:{self._console}"
        common = [
            *("qemu-system-aarch64", "-M", self.board, "-display", "none", "-monitor", "none", "-no-reboot"),
            *("-kernel", str(self.card.get(kernel, folder / "kernel"))),
            *("-initrd", str(self.card.get(initrd, folder / "initrd"))),
            *("-netdev", "user,id=net"),
            *("-chardev", f"socket,id=cable,path={self._cable},server=on,wait=off"),
        ]
        # As in the image's own command line; and what takes a board a second takes this one a minute, on a busy computer two.
        said = "root=LABEL=rootfs rw rootwait systemd.show_status=1 systemd.log_color=0"
        said += " systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900"
        # What is logged is to be seen here: systemd says nothing on a console once somebody may log in there.
        said += " systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info"
        if self.board == "virt":
            # Never QEMU's default processor: with the SVE of its version 7.2 int8 comes out wrong.
            return [
                *common,
                *("-cpu", "cortex-a72", "-smp", "2", "-m", "1024", "-serial", console),
                *("-append", f"console=ttyAMA0 {said}"),
                *("-drive", f"if=none,id=card,format=raw,file={self.card.path}", "-device", "virtio-blk-pci,drive=card"),
                *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "pci-serial,chardev=cable"),
            ]
        return [
            *common,
            *("-dtb", str(self.card.get(DTB, folder / DTB)), "-serial", "null", "-serial", console),
            *("-append", f"console=ttyS1,115200 net.ifnames=0 {said}"),
            *("-drive", f"if=sd,format=raw,file={self.card.path}"),
            *("-device", "usb-net,netdev=net", "-device", "usb-serial,chardev=cable,serial=AMISS0001"),
        ]

    @property
    def console(self) -> str:
        return self._console.read_text("utf-8", "replace") if self._console.exists() else ""

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> float:
        """Seconds since the start. Raises `ImageError` with the console's last lines."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                ended = "QEMU ended" if self._process.poll() is not None else f"not within {timeout_s:.0f} s"
                raise ImageError(f"{what}: {ended}; the console's last words:\n{self.console[-3000:]}")
            time.sleep(0.2)
        return time.monotonic() - self.started_s

    def kill(self) -> None:
        """As though somebody pulled the plug."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        self.wire.close()

    def wait_for_end(self) -> None:
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
