"""A Modbus RTU device on a pseudo-terminal, written from the standard and not with the library that the agent uses."""

import contextlib
import os
import select
import struct
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def crc16(data: bytes) -> bytes:
    """Bit by bit: polynomial 8005 reflected, starting from FFFF, low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return struct.pack("<H", crc)


def framed(body: bytes) -> bytes:
    return body + crc16(body)


@dataclass
class Slave:
    """Answers from `registers` (kind, address) → 16 bits. `spoil` turns a right answer into what is sent, piece by piece:
    bytes, or seconds to wait. `tick` is called before each request is looked at, so that values can follow it."""

    name: Path
    unit: int = 1
    registers: dict[tuple[str, int], int] = field(default_factory=dict)
    spoil: Callable[[bytes], list[bytes | float]] = lambda answer: [answer]
    tick: Callable[["Slave"], None] = lambda slave: None

    def __post_init__(self) -> None:
        self.requests: list[bytes] = []
        self.foreign = 0
        """Bytes that were no request to anybody."""
        self._fd: int | None = None
        self._thread: threading.Thread | None = None

    def plug_in(self) -> "Slave":
        self._fd, slave = os.openpty()
        tty.setraw(slave)
        with contextlib.suppress(FileNotFoundError):
            self.name.unlink()
        self.name.symlink_to(os.ttyname(slave))
        os.close(slave)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(self._fd, self._stop), daemon=True)
        self._thread.start()
        return self

    def unplug(self) -> None:
        if self._fd is not None and self._thread is not None:
            self._stop.set()
            self._thread.join()
            self.name.unlink()
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "Slave":
        return self.plug_in()

    def __exit__(self, *exc: object) -> None:
        self.unplug()

    def write(self, data: bytes) -> None:
        assert self._fd is not None
        os.write(self._fd, data)

    def answer(self, request: bytes) -> bytes:
        unit, function, address, count = struct.unpack(">BBHH", request[:6])
        kind = {3: "holding", 4: "input"}.get(function)
        if kind is None:
            return framed(bytes((unit, function | 0x80, 1)))
        words = [self.registers.get((kind, at)) for at in range(address, address + count)]
        if not 1 <= count <= 125 or None in words:
            return framed(bytes((unit, function | 0x80, 2 if None in words else 3)))
        return framed(struct.pack(f">BBB{count}H", unit, function, 2 * count, *(word for word in words if word is not None)))

    def _serve(self, fd: int, stop: threading.Event) -> None:
        pending = b""
        while not stop.is_set():
            ready, _, _ = select.select([fd], [], [], 0.02)
            if not ready:
                self.foreign += len(pending)
                pending = b""  # a silence ends whatever it was
                continue
            try:
                pending += os.read(fd, 4096)
            except OSError:  # nobody has the port open
                time.sleep(0.005)
                continue
            while len(pending) >= 8:
                request, pending = pending[:8], pending[8:]
                if framed(request[:6]) != request or request[0] != self.unit:
                    self.foreign += 8
                    continue
                self.requests.append(request)
                self.tick(self)
                for piece in self.spoil(self.answer(request)):
                    if isinstance(piece, float):
                        stop.wait(piece)
                    else:
                        with contextlib.suppress(OSError):
                            os.write(fd, piece)
