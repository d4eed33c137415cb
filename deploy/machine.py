"""A serial port that behaves like a sensor: a pseudo-terminal on which binary frames arrive at the pace of the real thing."""

import errno
import os
import pty
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from edge.errors import CannotCreateError
from edge.sensing.decoders.frames import encode_frame
from edge.sensing.recordings import Recording
from edge.sensing.simulate import CHANNELS, UNITS, Machine
from edge.signal import Samples


class Source(Protocol):
    """As `edge.sensing.simulate.Machine`."""

    @property
    def channels(self) -> tuple[str, ...]: ...

    rate_hz: float

    def next(self, n: int) -> Samples: ...

    def inject(self, fault: str, severity: float = 1.0) -> None: ...


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
            self.device = os.ttyname(self._slave)
            name.symlink_to(self.device)
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


class Sensor:
    """The simulated machine's: about 25 frames a second, at `speed` times real time, to whatever port is plugged in."""

    def __init__(self, source: Source, port: SerialPort | None, *, speed: float = 1.0) -> None:
        self.source, self.port = source, port
        self._pace = source.rate_hz * speed
        self.sent = 0
        """Samples."""
        self.size = int(np.clip(round(self._pace / 25), 1, 64))
        self.started_s = time.monotonic()

    def wait(self) -> None:
        """Until the last sample of the next frame is due."""
        time.sleep(max(0.0, self.started_s + (self.sent + self.size) / self._pace - time.monotonic()))

    def send(self) -> Samples:
        """The next frame."""
        samples = self.source.next(self.size)
        if self.port is not None:
            self.port.write(encode_frame(samples.x, self.sent, int(samples.time_ns[0]) // 1000))
        self.sent += self.size
        return samples

    def close(self) -> None:
        if self.port is not None:
            self.port.close()
            self.port = None


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
    sensor = Sensor(Machine(seed, rate_hz), SerialPort(name))
    say(f"{name}: {', '.join(sensor.source.channels)} at {rate_hz:g} Hz as binary frames; stop with Ctrl-C")
    injected = fault is None
    try:
        while sensor.sent < seconds * rate_hz:
            if not injected and sensor.sent >= fault_at_s * rate_hz:
                assert fault is not None
                sensor.source.inject(fault, severity)
                injected = True
                say(f"fault: {fault}")
            sensor.wait()
            sensor.send()
    except KeyboardInterrupt:
        pass
    finally:
        sensor.close()


def recording_of(parts: Sequence[Samples], name: str) -> Recording:
    """What the simulated machine gave, put together."""
    time_ns, x = np.concatenate([part.time_ns for part in parts]), np.concatenate([part.x for part in parts], axis=1)
    return Recording(name, CHANNELS, time_ns, x, units=UNITS)
