"""Samples → bytes on a pseudo-terminal, at the pace of a sensor or as fast as they are taken."""

import os
import pty
import time
import tty
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.models import Shape
from edge.sensing.decoders.frames import encode_frame
from edge.signal import Float32, Int64

PATIENCE_S = 30.0


def frames(shape: Shape, x: Float32, first: int = 0) -> list[bytes]:
    """COBS frames of `shape.frame` samples each, numbered from `first`; a rest that fills no frame is left out."""
    start = first * shape.frame
    return [
        encode_frame(x[:, at : at + shape.frame], start + at, round((start + at) * 1e6 / shape.rate_hz))
        for at in range(0, x.shape[1] - shape.frame + 1, shape.frame)
    ]


def lines(shape: Shape, x: Float32) -> list[bytes]:
    """The same samples as text, in lumps of as many lines as a frame has samples, six digits as firmware would print."""
    row = ",".join(["%.6g"] * shape.channels) + "\n"
    text = [(row % tuple(values)).encode() for values in x.T.tolist()]
    return [b"".join(text[at : at + shape.frame]) for at in range(0, len(text) - shape.frame + 1, shape.frame)]


class Port:
    """Unlike `deploy.machine.SerialPort` it can wait for a reader that is late, so that both readers get every sample."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.name = os.ttyname(self._slave)

    def write(self, data: bytes, *, wait: bool = True) -> None:
        patient_until = time.monotonic() + PATIENCE_S
        while data:
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                if not wait:
                    return
                if time.monotonic() > patient_until:
                    raise TimeoutError(f"{self.name}: nobody has read for {PATIENCE_S:g} s") from None
                time.sleep(0.0005)

    def close(self) -> None:
        """Ends whoever reads."""
        os.close(self._slave)
        os.close(self._master)


class Player:
    """Sends lumps one after the other and remembers when the last byte of each was written."""

    def __init__(self, port: Port, lumps: Sequence[bytes], lump_s: float) -> None:
        self._port, self._lumps, self._lump_s = port, lumps, lump_s
        self.at = 0
        """The next lump."""
        self.sent_ns: Int64 = np.zeros(len(lumps), np.int64)
        """CLOCK_MONOTONIC, which all processes share."""

    def play(self, count: int, *, flat_out: bool = False, wait: bool = True, until: Callable[[], bool] | None = None) -> None:
        """The next `count` lumps, fewer when `until` comes true. Without `wait`, what does not fit into the port is lost."""
        started, first = time.monotonic(), self.at
        for _ in range(min(count, len(self._lumps) - first)):
            if not flat_out and (early := started + (self.at - first + 1) * self._lump_s - time.monotonic()) > 0:
                time.sleep(early)
            if until is not None and until():
                return
            self._port.write(self._lumps[self.at], wait=wait)
            self.sent_ns[self.at] = time.monotonic_ns()
            self.at += 1
