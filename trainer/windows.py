"""Windows that are cut when they are asked for.

Windows overlap: four times at the usual hop, N times at a hop of one sample. So the samples lie on disk once, as the device's
windower would fill them, and a set of windows is where each one starts, which lies on disk too: there may be millions. The
files have no name: whatever ends the process, nothing of them is left behind.
"""

import contextlib
import math
import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.errors import StorageError
from edge.sensing.recordings import Recording
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Float32, Int64, Samples

FORGET_BYTES = 64 * 1024 * 1024
"""Of a mapped file, after which its pages are given back. They stay in the cache of the system, which takes what is free, but
no longer count as this process's memory."""
BATCH_BYTES = 4 * 1024 * 1024
"""Of windows that are looked at together; what is computed from them takes a few times as much."""
AROUND_BYTES = 64 * 1024
"""What Linux maps around a place that is looked at."""


class WindowArray(Protocol):
    """Windows (n, C, N) to take some of; a plain array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int64 | slice, /) -> Float32: ...


class Spool:
    """Rows of `width` values, appended to a nameless file in `folder` (`None`: the system's), then read from it.

    Raises `StorageError` when the disk is full or there is no such folder.
    """

    def __init__(self, width: int, dtype: npt.DTypeLike = np.float32, folder: Path | None = None) -> None:
        self._width, self._dtype, self._where = width, np.dtype(dtype), folder or Path(tempfile.gettempdir())
        self._rows = self._read = 0
        self._map: mmap.mmap | None = None
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="amiss-")  # noqa: SIM115  lives as long as this object
        except OSError as error:
            raise self._trouble(error) from None
        weakref.finalize(self, _close, self._file)

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: npt.NDArray[Any]) -> None:
        """(n, width); before the first `array()`."""
        try:
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        except OSError as error:
            raise self._trouble(error) from None
        self._rows += len(rows)

    def array(self) -> npt.NDArray[Any]:
        """(n, width), read-only, mapped: it takes memory only where it is looked at. No rows can be appended any more."""
        if not self._rows:
            return np.empty((0, self._width), self._dtype)
        if self._map is None:
            try:
                self._file.flush()
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise self._trouble(error) from None
        return np.frombuffer(self._map, self._dtype).reshape(self._rows, self._width)

    def seen(self, count: int) -> None:
        """Say that `count` bytes were looked at; now and then the pages are given back."""
        self._read += count
        if self._map is not None and self._read >= FORGET_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0

    def _trouble(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._where}: the samples cannot be put there: {error.strerror or error}; "
            "free some space or set TMPDIR to a folder with more"
        )


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what could not be written is of no use any more
        file.close()


@dataclass(frozen=True, slots=True)
class Strip:
    """Where the windows of one recording lie."""

    places: Spool
    """Of all recordings, a row for each window: start, first, last."""
    at: int
    """Row of `places` at which those of this recording begin."""
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def start(self) -> Int64:
        """(n,) in the rows of the store."""
        return self._column(0)

    @property
    def first(self) -> Int64:
        """(n,) row of the recording at which each window begins,"""
        return self._column(1)

    @property
    def last(self) -> Int64:
        """(n,) and the row at which it ends."""
        return self._column(2)

    def _column(self, which: int) -> Int64:
        """A view of the disk."""
        found: Int64 = self.places.array()[self.at : self.at + self.count, which]
        self.places.seen(3 * found.nbytes)
        return found


class WindowSet:
    """Windows (n, C, N) of samples that lie on disk: a `WindowArray`."""

    def __init__(self, samples: Spool, start: Int64, channels: int, length: int) -> None:
        self._samples, self._start = samples, start
        self.shape = (len(start), channels, length)
        rows = samples.array()
        enough = len(rows) >= length
        # (rows - N + 1, C, N): a view, so nothing is read.
        view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0) if enough else None
        self._all: Float32 = np.empty((0, channels, length), np.float32) if view is None else view

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: Int64 | slice, /) -> Float32:
        """(k, C, N), a copy."""
        found: Float32 = np.ascontiguousarray(self._all[self._start[index]])
        self._samples.seen(found.nbytes if isinstance(index, slice) else len(found) * AROUND_BYTES)
        return found


def batches(windows: WindowArray, index: Int64 | None = None) -> Iterator[Float32]:
    """The windows that `index` names, or all, in order; as many at a time as fit into `BATCH_BYTES`."""
    count = len(windows) if index is None else len(index)
    size = max(1, BATCH_BYTES // (4 * math.prod(windows.shape[1:])))
    for at in range(0, count, size):
        yield windows[at : at + size] if index is None else windows[index[at : at + size]]


def lay_out(
    parts: Iterable[Recording], rate_hz: float, length: int, hop: int, missing: MissingPolicy, store: Spool, places: Spool
) -> Strip:
    """Append the samples of one recording, in parts, to `store` (rows of C values), filled and interrupted as the device's
    windower does it, and to `places` (rows of three) the windows that it would cut from them.
    """
    at = len(places)
    begun = np.empty((0, 2), np.int64)  # windows that have not ended yet: start and first
    run_at = run_length = 0  # where in the store the unbroken run began, and its samples so far
    for fresh, rows, x in _unbroken(parts, rate_hz, missing):
        if fresh:
            begun = begun[:0]  # the end of their run cut them short
            run_at, run_length = len(store), 0
        store.append(x)
        position = np.arange(run_length, run_length + len(x))
        run_length += len(x)
        begins = position % hop == 0
        ends = (position >= length - 1) & ((position - (length - 1)) % hop == 0)
        begun = np.concatenate([begun, np.stack([run_at + position[begins], rows[begins]], axis=1)])
        last = rows[ends]
        places.append(np.concatenate([begun[: len(last)], last[:, None]], axis=1))
        begun = begun[len(last) :]
    return Strip(places, at, len(places) - at)


def _unbroken(parts: Iterable[Recording], rate_hz: float, missing: MissingPolicy) -> Iterator[tuple[bool, Int64, Float32]]:
    """Samples in unbroken runs, in pieces: whether a run begins, (n,) row of each in the recording, (n, C) filled samples.

    A sample that fills a hole has the row of the one after the hole.
    """
    windower: Windower | None = None
    end_ns: int | None = None  # of the newest pair
    offset = 0  # rows of the recording before this part
    tail = np.empty(0, np.int64)  # the stamp of the newest of them: a run may begin with it
    for part in parts:
        if windower is None:
            # Pairs of neighbours tell all: what is filled does not depend on the length of a window, and a pair that does
            # not begin where the one before it ended begins a run. A run of a single sample holds no window anyway.
            windower = Windower(len(part.channels), rate_hz, 2, 1, missing)
        stamps = np.concatenate([tail, part.time_ns])
        pairs = windower.feed(Samples(part.time_ns, part.x))
        if len(pairs):
            fresh = np.empty(len(pairs), bool)
            fresh[0] = pairs.start_ns[0] != end_ns
            fresh[1:] = pairs.start_ns[1:] != pairs.end_ns[:-1]
            edges = [0, *(np.flatnonzero(fresh[1:]) + 1).tolist(), len(pairs)]
            for at, until in pairwise(edges):
                time_ns, x = pairs.end_ns[at:until], pairs.x[at:until, :, 1]
                if fresh[at]:
                    time_ns = np.concatenate([pairs.start_ns[at : at + 1], time_ns])
                    x = np.concatenate([pairs.x[at : at + 1, :, 0], x])
                yield bool(fresh[at]), offset - len(tail) + np.searchsorted(stamps, time_ns), x
            end_ns = int(pairs.end_ns[-1])
        offset += len(part.time_ns)
        tail = part.time_ns[-1:]
