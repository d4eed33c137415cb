"""When is it? Inside, everything runs on the monotonic clock; the wall clock is only what people are told.

A board without a battery starts in some past year until a time server answers. What happens before that is stamped all the
same, marked `unsynced`, and set right before it leaves as soon as the clock is known; a jump of the wall clock never reaches
the pipeline, so it neither opens nor closes an episode.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edge.operating import system

Quality = Literal["synced", "unsynced"]
_ASKED_EVERY_NS = 1_000_000_000


class HostClock:
    """`monotonic` and `wall` give nanoseconds; `synced` whether anybody has set the wall clock, None where nobody can say."""

    def __init__(
        self,
        monotonic: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        synced: Callable[[], bool | None] = system.clock_synced,
        boot: str | None = None,
    ) -> None:
        self._monotonic, self._wall, self._synced = monotonic, wall, synced
        self.boot = _boot_id() if boot is None else boot
        """Of this start of the computer: an offset from another one says nothing."""
        self._asked_ns: int | None = None
        self._answer: bool | None = None

    def now_ns(self) -> int:
        """Epoch, as far as it is known."""
        return self._wall()

    def offset_ns(self) -> int:
        """Monotonic time + this = epoch time, as far as it is known now."""
        return self._wall() - self._monotonic()

    def synced(self) -> bool | None:
        now_ns = self._monotonic()
        if self._asked_ns is None or now_ns - self._asked_ns >= _ASKED_EVERY_NS:
            self._asked_ns, self._answer = now_ns, self._synced()
        return self._answer

    def known(self) -> tuple[str, int] | None:
        """This start of the computer and the offset, once somebody has set the clock."""
        return (self.boot, self.offset_ns()) if self.synced() else None

    def quality(self) -> Quality | None:
        synced = self.synced()
        return None if synced is None else "synced" if synced else "unsynced"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16]
    except OSError:
        return ""
