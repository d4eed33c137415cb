"""A serial port that behaves like a sensor: a pseudo-terminal on which binary frames arrive at the pace of the real thing."""

import errno
import os
import pty
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edge.errors import CannotCreateError
from edge.sensing.decoders.frames import encode_frame
from edge.sensing.recordings import Recording
from edge.sensing.simulate import CHANNELS, UNITS, Machine
from edge.signal import Samples


class SerialPort:
    """A pseudo-terminal under a name of its own. What is written while nobody reads is lost, as on a wire."""

    def __init__(self, name: Path) -> None:
        """Raises `CannotCreateError` when the name is taken by anything but an old link."""
        self.name = name
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        try:
            if name.is_symlink():
                name.unlink()
            name.parent.mkdir(parents=True, exist_ok=True)
            name.symlink_to(os.ttyname(self._slave))
        except OSError as error:
            self._close()
            raise CannotCreateError(f"{name}: cannot be created: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._master, data) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                return

    def close(self) -> None:
        self.name.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        os.close(self._master)
        os.close(self._slave)


def frames(samples: Samples, *, sequence: int, period_ns: float, size: int) -> Iterator[tuple[float, bytes]]:
    """(seconds since the first sample at which it is due, frame of at most `size` samples)."""
    for at in range(0, len(samples), size):
        part = slice(at, min(at + size, len(samples)))
        due_s = (int(samples.time_ns[part.stop - 1]) - int(samples.time_ns[0]) + period_ns) / 1e9
        yield due_s, encode_frame(samples.x[:, part], sequence + at, int(samples.time_ns[at]) // 1000)


def play(
    port: SerialPort,
    recording: Recording,
    *,
    speed: float = 1.0,
    rate_hz: float,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], None] = lambda row: None,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Send a recording at `speed` times real time. `told` is called with the number of rows sent so far."""
    # About 25 frames a second, as a microcontroller that gathers samples would send; slow sensors send each at once.
    size = int(np.clip(rate_hz * speed / 25, 1, 64))
    samples = Samples(recording.time_ns, recording.x)
    started, sent = monotonic(), 0
    for due_s, frame in frames(samples, sequence=0, period_ns=1e9 / rate_hz, size=size):
        if stop():
            return
        if (wait := started + due_s / speed - monotonic()) > 0:
            sleep(wait)
        port.write(frame)
        sent = min(sent + size, len(samples))
        told(sent)


def serve(
    name: Path,
    *,
    seconds: float,
    rate_hz: float,
    fault: str | None,
    fault_at_s: float,
    severity: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """`amiss simulate --serial`: the simulated machine, live, until the time is over or somebody stops it."""
    machine = Machine(seed, rate_hz)
    port = SerialPort(name)
    size = max(1, round(rate_hz / 25))
    say(f"{name}: {', '.join(machine.channels)} at {rate_hz:g} Hz as binary frames; stop with Ctrl-C")
    started, sent, injected = time.monotonic(), 0, fault is None
    try:
        while sent < seconds * rate_hz:
            if not injected and sent >= fault_at_s * rate_hz:
                assert fault is not None
                machine.inject(fault, severity)
                injected = True
                say(f"fault: {fault}")
            samples = machine.next(size)
            time.sleep(max(0.0, started + (sent + size) / rate_hz - time.monotonic()))
            port.write(encode_frame(samples.x, sent, int(samples.time_ns[0]) // 1000))
            sent += size
    except KeyboardInterrupt:
        pass
    finally:
        port.close()


def recording_of(parts: Sequence[Samples], name: str) -> Recording:
    """What the simulated machine gave, put together."""
    time_ns, x = np.concatenate([part.time_ns for part in parts]), np.concatenate([part.x for part in parts], axis=1)
    return Recording(name, CHANNELS, time_ns, x, units=UNITS)
