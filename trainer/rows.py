"""Recordings as rows on disk: in order of time, absurd values missing, at one rate. How long they are takes no memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.errors import DataError
from edge.sensing.recordings import ROWS_PER_PART, Recording, read_parts
from edge.signal import Bool, Float32, Float64, Int64
from trainer import quality
from trainer.quality import Finding
from trainer.recipe import Recipe
from trainer.windows import Spool

STEPS_LOOKED_AT = 1 << 20
"""For the median distance of two rows; a recording of more rows is looked at in stretches."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of all recordings lie. One file for each number of channels: open files are few."""

    time: Spool
    x: dict[int, Spool]
    """By number of channels."""


@dataclass(frozen=True, slots=True)
class Source:
    """A recording whose rows lie on disk, in order of time."""

    name: str
    channels: tuple[str, ...]
    units: Mapping[str, str]
    time: Spool
    time_at: int
    """Row of `time` at which it begins."""
    x: Spool
    x_at: int
    order: tuple[int, ...]
    """Columns of `x` that are its channels."""
    count: int
    finite: Bool = field(repr=False)
    """(C,) whether a channel has any value."""

    def __len__(self) -> int:
        return self.count

    def times(self) -> Int64:
        """(n,) nanoseconds; a view of the disk."""
        stamps: Int64 = self.time.array()[self.time_at : self.time_at + self.count, 0]
        return stamps

    def parts(self, rows: int = ROWS_PER_PART) -> Iterator[Recording]:
        times = self.times()
        for at in range(0, self.count, rows):
            yield Recording(self.name, self.channels, times[at : at + rows], self.values(at, at + rows), units=self.units)

    def values(self, start: int, stop: int) -> Float32:
        """(C, stop - start), a copy."""
        stop = min(stop, self.count)
        taken: Float32 = self.x.array()[self.x_at + start : self.x_at + stop][:, self.order].T
        self.x.seen(taken.nbytes)
        self.time.seen(8 * (stop - start))
        return taken

    def steps(self) -> list[Int64]:
        """Distances of neighbouring stamps, in stretches from its start to its end."""
        times = self.times()
        if len(times) <= STEPS_LOOKED_AT:
            return np.array_split(np.diff(times), 16)
        each = STEPS_LOOKED_AT // 64
        return [np.diff(times[at : at + each]) for at in np.linspace(0, len(times) - each, 64).astype(np.int64)]

    @property
    def rate_hz(self) -> float:
        """Samples per second, from the median distance of two rows."""
        return 1e9 / float(np.median(np.concatenate(self.steps())))

    def only(self, names: Sequence[str]) -> "Source":
        """With these channels, in this order."""
        at = [self.channels.index(name) for name in names]
        units = {name: unit for name, unit in self.units.items() if name in names}
        return replace(self, channels=tuple(names), units=units, order=tuple(self.order[i] for i in at), finite=self.finite[at])


def rows_on_disk(
    names: list[str], files: list[Path], recipe: Recipe, folder: Path | None
) -> tuple[list[Source], list[Finding]]:
    """All recordings, and what was found in them while they were read.

    Raises what `read_parts` does, and `DataError` for rows that go back in time where the recipe refuses these.
    """
    rows = Rows(Spool(1, np.int64, folder), {})
    findings: list[Finding] = []
    sources = [_read(name, file, rows, recipe, folder, findings) for name, file in zip(names, files, strict=True)]
    return sources, findings


def _read(name: str, file: Path, rows: Rows, recipe: Recipe, folder: Path | None, findings: list[Finding]) -> Source:
    """One recording, to the end of `rows`: in order of time, absurd values missing."""
    source: Source | None = None
    total = dropped = 0
    last_ns = np.iinfo(np.int64).min
    for part in read_parts(file, raw=True):
        if source is None:
            width = len(part.channels)
            x = rows.x.setdefault(width, Spool(width, folder=folder))
            at = len(rows.time), len(x)
            every = tuple(range(width))
            source = Source(name, part.channels, part.units, rows.time, at[0], x, at[1], every, 0, np.zeros(width, bool))
            worst, absurd = np.zeros(width, np.float32), np.zeros(width, np.int64)
        newest = np.maximum.accumulate(np.concatenate([[last_ns], part.time_ns]))
        kept = part.time_ns > newest[:-1]
        if not kept.all() and recipe.quality.unordered == "refuse":
            _refuse_unordered(file)
        last_ns = int(newest[-1])
        total, dropped = total + len(kept), dropped + int((~kept).sum())
        values = part.x[:, kept]
        beyond = np.abs(values) >= quality.ABSURD
        if beyond.any():
            absurd += beyond.sum(axis=1)
            largest = np.where(beyond, values, 0)
            most = np.take_along_axis(largest, np.abs(largest).argmax(axis=1)[:, None], axis=1)[:, 0]
            worst = np.where(np.abs(most) > np.abs(worst), most, worst)
            values[beyond] = np.nan
        rows.time.append(part.time_ns[kept, None])
        source.x.append(values.T)
        source = replace(source, count=source.count + int(kept.sum()), finite=source.finite | np.isfinite(values).any(axis=1))
    assert source is not None  # a file without a row is refused where it is read
    if dropped:
        findings.append(quality.unordered(name, dropped, total))
    for channel, count, value in zip(source.channels, absurd.tolist(), worst.tolist(), strict=True):
        if count:
            findings.append(quality.absurd(name, channel, count, value, recipe.quality.absurd))
    return source


def _refuse_unordered(file: Path) -> None:
    try:
        for _ in read_parts(file):
            pass
    except DataError as error:
        raise DataError(f'{error}; mend the file, or set quality.unordered = "repair" to leave such rows out') from None


def resample(source: Source, own_hz: float, rate_hz: float, max_fill: int, *, mean: bool) -> Iterator[Recording]:
    """The recording with samples every 1 / rate_hz, in parts.

    With `mean` a sample is the mean of the values within half a period of it, otherwise it lies on the straight line between
    its neighbours. It is missing where a neighbour is, or where these are more than `max_fill` rows apart.
    """
    times = source.times()
    period_ns = 1e9 / rate_hz
    count = int((int(times[-1]) - int(times[0])) / period_ns) + 1
    reach_ns = (max_fill + 1.5) * 1e9 / own_hz
    for at in range(0, count, ROWS_PER_PART):
        grid = int(times[0]) + np.round(np.arange(at, min(at + ROWS_PER_PART, count)) * period_ns).astype(np.int64)
        margin = round(period_ns + reach_ns)
        low = max(0, int(np.searchsorted(times, grid[0] - margin)) - 1)
        high = min(len(source), int(np.searchsorted(times, grid[-1] + margin)) + 1)
        stamps, x = times[low:high], source.values(low, high)
        values = _means(stamps, x, grid, period_ns) if mean else _lines(stamps, x, grid, reach_ns)
        yield Recording(source.name, source.channels, grid, values.astype(np.float32), units=source.units)


def _means(stamps: Int64, x: Float32, grid: Int64, period_ns: float) -> Float64:
    edges = np.concatenate([grid - round(period_ns / 2), grid[-1:] + round(period_ns / 2)])
    at = np.searchsorted(stamps, edges)
    good = np.isfinite(x)
    sums = np.concatenate([np.zeros((len(x), 1)), np.where(good, x, 0).cumsum(axis=1, dtype=np.float64)], axis=1)
    counts = np.concatenate([np.zeros((len(x), 1)), good.cumsum(axis=1, dtype=np.float64)], axis=1)
    with np.errstate(invalid="ignore"):
        means: Float64 = (sums[:, at[1:]] - sums[:, at[:-1]]) / (counts[:, at[1:]] - counts[:, at[:-1]])
    return means


def _lines(stamps: Int64, x: Float32, grid: Int64, reach_ns: float) -> Float64:
    after = np.clip(np.searchsorted(stamps, grid, side="right"), 1, len(stamps) - 1)
    before = after - 1
    span = stamps[after] - stamps[before]
    share = (grid - stamps[before]) / span
    values: Float64 = x[:, before] * (1 - share) + x[:, after] * share
    values[:, (span > reach_ns) & (share > 0) & (share < 1)] = np.nan
    # At a stamp its own value serves, whatever is beside it.
    values[:, share == 0] = x[:, before[share == 0]]
    values[:, share == 1] = x[:, after[share == 1]]
    return values
