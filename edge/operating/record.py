"""`amiss record`: a sensor's samples into a recording."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge.config import StreamConfig
from edge.errors import DataError, SourceLostError
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.sources import port_source
from edge.signal import Samples

TOLD_EVERY_S = 5.0


def record(
    stream: StreamConfig, columns: tuple[str, ...], rate_hz: float, seconds: float, out: Path, say: Callable[[str], None]
) -> int:
    """Record for that long; returns the number of samples. When it is interrupted or the sensor is lost, what came is kept.

    Raises `DataError` when nothing came at all, and what `port_source` raises when the port cannot be opened.
    """
    channels = tuple(name for name in columns if name != "time")
    source = port_source(stream, channels, rate_hz)
    parts: list[Samples] = []
    offset_ns = 0
    count, started_s = 0, time.monotonic()
    told_s = started_s
    try:
        for samples in source.samples():
            now_s = time.monotonic()
            if len(samples):
                parts.append(samples)
                count += len(samples)
                offset_ns = source.epoch_offset_ns()
            if now_s - told_s >= TOLD_EVERY_S:
                told_s = now_s
                say(f"{count} samples, {source.corrupt} damaged, {seconds - (now_s - started_s):.0f} s to go")
            if now_s - started_s >= seconds:
                break
    except SourceLostError as error:
        if not parts:
            raise
        say(f"{error}; what came before is kept")
    except KeyboardInterrupt:
        pass
    if not count:
        raise DataError(f"{stream.port}: nothing that makes sense as {stream.format} came; {out} is not written")
    time_ns = np.concatenate([part.time_ns for part in parts])
    # A sensor that restarted has set its clock back; what came after stays, one period behind what came before.
    step = np.diff(time_ns)
    jumps = np.where(step <= 0, round(1e9 / rate_hz) - step, 0)
    time_ns[1:] += np.cumsum(jumps)
    write_recording(out, Recording(out.name, channels, time_ns + offset_ns, np.concatenate([p.x for p in parts], axis=1)))
    return count
