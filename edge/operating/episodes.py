"""What was told of a stream, and the windows behind it: for the page, for feedback, and for the next training.

    <state>/streams/<stream>/episodes/<id>.json   the newest event of an anomaly, and what a person said of it
                                     <id>.npz    its strangest windows, as they came from the sensor

Written when an anomaly starts and ends and when somebody says something of it, not at every update: cards wear. The oldest go
first: those without windows (gaps, faults, drift), then anomalies, those that a person has judged, and last one that is on. A
disk that takes nothing costs the windows, not the agent.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.bundle import pack_arrays, unpack_arrays
from edge.delivery.topics import EventPayload
from edge.errors import AmissError, CannotCreateError
from edge.files import at_once, sweep
from edge.signal import Float32

log = logging.getLogger(__name__)

MOST = 100
"""Episodes that are remembered, those without windows (gaps, faults, drift) only in memory."""
MOST_BYTES = 16 * 1024 * 1024
"""Of all windows that are kept."""


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    event: EventPayload
    """The newest of it."""
    question: EventPayload | None = None
    """Whether this is how it runs from now on (`new_normal`), once that was asked."""
    verdict: str | None = None
    """`false_alarm`, `confirmed` or `new_normal`, once a person has said so."""

    @property
    def open(self) -> bool:
        return self.event.type in ("anomaly_started", "anomaly_updated")


class Episodes:
    """Of one stream. Used by its thread only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: OrderedDict[str, Episode] = OrderedDict()  # oldest first
        sweep(folder)
        for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            with contextlib.suppress(OSError, msgspec.MsgspecError):  # damaged: worth no more than an absent one
                self._known[file.stem] = msgspec.json.decode(file.read_bytes(), type=Episode)
        self._bytes = {file.stem: file.stat().st_size for file in folder.glob("*.npz")}  # of windows, by episode

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._known.values())

    def get(self, episode_id: str) -> Episode | None:
        return self._known.get(episode_id)

    def newest_anomaly(self) -> Episode | None:
        return next((one for one in reversed(self._known.values()) if one.event.type.startswith("anomaly")), None)

    def tell(self, event: EventPayload, windows: Float32 | None = None) -> None:
        """The newest event of an episode; `windows` (n, C, N) are its strangest so far."""
        before = self._known.pop(event.id, None)
        if before is None:
            self._known[event.id] = Episode(event=event)
        elif event.type == "new_normal":
            self._known[event.id] = msgspec.structs.replace(before, question=event)
        else:
            self._known[event.id] = msgspec.structs.replace(before, event=event)
        if event.type in ("anomaly_started", "anomaly_ended"):
            if windows is not None and len(windows):
                packed = pack_arrays({"x": windows})
                if self._write(f"{event.id}.npz", packed):
                    self._bytes[event.id] = len(packed)
            self._save(event.id)
        self._forget()

    def judge(self, episode_id: str, verdict: str | None) -> None:
        """What a person said; None: nothing after all. Raises KeyError for an episode that is not known."""
        self._known[episode_id] = msgspec.structs.replace(self._known[episode_id], verdict=verdict)
        self._save(episode_id)

    def windows(self, episode_id: str) -> Float32 | None:
        """(n, C, N) as they came from the sensor; None when they were not kept or cannot be read."""
        with contextlib.suppress(OSError, AmissError, KeyError):
            return unpack_arrays((self._folder / f"{episode_id}.npz").read_bytes())["x"]
        return None

    def _save(self, episode_id: str) -> None:
        self._write(f"{episode_id}.json", msgspec.json.encode(self._known[episode_id]))

    def _write(self, name: str, data: bytes) -> bool:
        try:
            with at_once(self._folder / name) as draft:
                draft.write_bytes(data)
        except CannotCreateError as error:
            log.warning("%s; the episode goes on without it", error)
            return False
        return True

    def _forget(self) -> None:
        """What is too much, in the order that is said above."""
        for rank in range(4):
            for episode_id, episode in list(self._known.items()):
                too_many, too_large = len(self._known) > MOST, sum(self._bytes.values()) > MOST_BYTES
                if not too_many and not too_large:
                    return
                if _rank(episode) == rank and (too_many or episode_id in self._bytes):
                    del self._known[episode_id]
                    self._bytes.pop(episode_id, None)
                    for suffix in (".json", ".npz"):
                        with contextlib.suppress(OSError):
                            (self._folder / f"{episode_id}{suffix}").unlink()


def _rank(episode: Episode) -> int:
    """Which go first."""
    if episode.open:
        return 3
    if episode.verdict is not None:
        return 2
    return int(episode.event.type.startswith("anomaly"))
