"""What the operating system knows of this device. Everything is None where it does not tell."""

import ctypes
import functools
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import paho.mqtt
import serial

_TIME_ERROR = 5  # adjtimex(2): nobody has set the clock


class Load:
    """Use of the processor between one call of `cpu` and the next."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._at_s, self._used_s = monotonic(), _cpu_s()

    def cpu(self) -> float | None:
        """Share of one core since the last call, 0 … number of cores."""
        at_s, used_s = self._monotonic(), _cpu_s()
        span_s = at_s - self._at_s
        share = (used_s - self._used_s) / span_s if span_s > 0 else None
        self._at_s, self._used_s = at_s, used_s
        return None if share is None else round(share, 4)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that matter. Asked from the modules: importlib.metadata would cost 4 MB of memory."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": numpy.__version__,
        "paho-mqtt": paho.mqtt.__version__,
        "pyserial": serial.__version__,
    }


def clock_synced(run: Path = Path("/run")) -> bool | None:
    """Has something (NTP, GPS) set this computer's clock?"""
    try:
        # A zeroed struct timex asks and changes nothing; 512 bytes are more than it has on any platform.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        state = -1
    if state >= 0:
        return bool(state != _TIME_ERROR)
    # A service that may not set the clock (ProtectClock=) may not ask the kernel either: systemd-timesyncd leaves a file.
    timesync = run / "systemd/timesync"
    return (timesync / "synchronized").exists() if timesync.is_dir() else None


def resident_bytes() -> int | None:
    """Memory that this process holds now; getrusage only knows the peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def disk_written_bytes() -> int | None:
    """What this process has caused to be written to disks since it started."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes:")), None)


def temperature_c() -> float | None:
    """Of the processor."""
    try:
        return int(Path("/sys/class/thermal/thermal_zone0/temp").read_text()) / 1000
    except (OSError, ValueError):
        return None


@functools.cache
def board() -> str | None:
    """What the device tree calls the board; a PC has none."""
    try:
        return Path("/proc/device-tree/model").read_text().rstrip("\0\n")
    except OSError:
        return None


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
