"""Recordings → windows, as the windower of the device cuts them, and the split into those to learn from and those held back.

    files ─▶ rows on disk ─▶ quality ─▶ one rate ─▶ samples on disk ─▶ WindowSet: fit
                                                                   └▶ WindowSet: calibration

    Per recording:   |------------ fit ------------|- embargo -|-- calibration --|   time →

No window crosses a file or a gap. The windows that fit the encoder and those that calibrate lie one window apart, so they
share no sample and are not neighbours either; that holds across files too. Labels are never looked at. Everything goes by in
parts: how long the recordings are decides how much disk is taken, not how much memory.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.errors import DataError
from edge.sensing.recordings import ROWS_PER_PART, Recording, find_recordings, read_parts
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Bool, Float32, Float64, Int64, Windows
from trainer import quality
from trainer.quality import Finding
from trainer.recipes import Recipe
from trainer.windows import Spool, Strip, WindowArray, WindowSet, lay_out

FEWEST_WINDOWS = 32
"""Below this many windows to learn from there is nothing to be learned."""
FEWEST_CALIBRATION = 19
"""The smallest p-value is then 1/20; with fewer windows no alarm could ever mean anything."""
RATE_TOLERANCE = 0.05
WINDOWS_PER_BLOCK = 24
"""Long enough that the two embargoes cost less than a tenth of a block, so short that a day has many."""
MAX_BLOCKS = 64
STEPS_LOOKED_AT = 1 << 20
"""For the median distance of two rows; a recording of more rows is looked at in stretches."""
WINDOWS_LOOKED_AT = 4096
"""For what the bulk of the windows looks like; all of them are compared with it."""
ROWS_COMPARED = 64
"""To tell whether two recordings of the same time hold the same rows."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    channels: tuple[str, ...]
    units: dict[str, str]
    """Of the channels whose unit the recordings name."""
    rate_hz: float
    fit: WindowArray
    """(n, C, N) windows to learn from."""
    calibration: WindowArray
    """(m, C, N) held back."""
    digests: dict[str, str]
    """SHA-256 of each file, by name."""
    notes: tuple[str, ...]
    """What was inferred or left out, one line each, for a person."""
    quality: tuple[Finding, ...] = ()
    """What was found wrong with the recordings, and what was done about it."""


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


def load(paths: Iterable[Path], recipe: Recipe, folder: Path | None = None, *, forgiving: bool = False) -> TrainingData:
    """Read, check and cut recordings of normal operation. The samples lie in nameless files in `folder` (`None`: the
    system's) for as long as the windows are in use.

    Raises `NoInputError` for files that are not there, `DataError`, with the cure, for recordings that cannot be used or that
    the recipe's policy refuses (`forgiving` only marks those), and `StorageError` when the samples do not fit on the disk.
    """
    files = find_recordings(paths)
    names = unique_names(files)
    sources, findings = _rows_on_disk(names, files, recipe, folder)
    sources, notes = _same_channels(sources, recipe)
    units = _units(sources)
    sources, findings = _check(sources, findings, recipe, notes, forgiving)
    rate_hz, inferred = _rate(sources, recipe)
    notes = [*inferred, *notes]
    copies = _copies(sources)
    findings += [quality.copy(sources[later].name, sources[earlier].name) for later, earlier in copies]
    sources = _resampled(sources, rate_hz, recipe, folder, notes)

    store = Spool(len(sources[0].channels), folder=folder)
    strips = [lay_out(source.parts(), rate_hz, recipe.window, recipe.hop_samples, recipe.missing, store) for source in sources]
    usable = [np.ones(len(strip), bool) for strip in strips]
    embargo_s = recipe.window / rate_hz
    for later, earlier in copies:
        usable[later] &= ~_beside(sources[later], strips[later], sources[earlier], embargo_s)
    for source, mask in zip(sources, usable, strict=True):
        if not mask.any():
            notes.append(f"{source.name}: no window of {recipe.window} samples fits between its gaps; left out")
    findings += _strange(sources, strips, usable, store, recipe, forgiving)
    fit, held_back = _split(sources, strips, usable, embargo_s, recipe)
    size = len(sources[0].channels), recipe.window
    x, held = WindowSet(store, fit, *size), WindowSet(store, held_back, *size)
    _require_enough(sources, x, held, recipe)
    digests = {name: _digest(file) for name, file in zip(names, files, strict=True)}
    channels = sources[0].channels
    if not units:
        notes.append("no units in the headers; write a channel as `current [A]` and alerts will say so")
    kept_units = {name: unit for name, unit in units.items() if name in channels}
    return TrainingData(channels, kept_units, rate_hz, x, held, digests, tuple(notes), tuple(findings))


def cut(recording: Recording, rate_hz: float, window: int, hop: int, missing: MissingPolicy) -> Windows:
    """All windows of one recording."""
    windower = Windower(len(recording.channels), rate_hz, window, hop, missing)
    parts = [windower.feed(samples) for samples in recording.samples(65536)]
    return Windows(
        np.concatenate([part.start_ns for part in parts]),
        np.concatenate([part.end_ns for part in parts]),
        np.concatenate([part.x for part in parts]),
        tuple(gap for part in parts for gap in part.gaps),
    )


def split(strip: Strip, rows: int, recipe: Recipe) -> tuple[Bool, Bool]:
    """Which windows of a recording of `rows` rows fit and which calibrate, one window length apart.

    A long recording is cut into several blocks that are each split alike: otherwise calibration would see the last hours of it
    only, and take the slow wander that the other hours went through for strange.
    """
    length = recipe.window
    blocks = max(1, min(MAX_BLOCKS, rows // (WINDOWS_PER_BLOCK * length)))
    fit, held_back = np.zeros(len(strip), bool), np.zeros(len(strip), bool)
    for block in range(blocks):
        start, stop = rows * block // blocks, rows * (block + 1) // blocks
        boundary = start + int((stop - start) * (1 - recipe.training.held_back))
        fit |= (strip.first >= start + (length if block else 0)) & (strip.last < boundary)
        held_back |= (strip.first >= boundary + length) & (strip.last < stop)
    return fit, held_back


def unique_names(files: list[Path]) -> list[str]:
    """File names, with as many folders before them as it takes to tell them apart."""
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        names = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(names)) == len(names):
            return names
    raise DataError(f"{next(f for f in files if files.count(f) > 1)}: named twice among the recordings")


# Reading


def _rows_on_disk(
    names: list[str], files: list[Path], recipe: Recipe, folder: Path | None
) -> tuple[list[Source], list[Finding]]:
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


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# What belongs together


def _same_channels(sources: list[Source], recipe: Recipe) -> tuple[list[Source], list[str]]:
    """Raises `DataError` when channels differ and the recipe does not say what to do about it. Their order is of no matter."""
    wanted = sources[0].channels
    if recipe.channels == "common":
        common = [name for name in wanted if all(name in source.channels for source in sources)]
        if not common:
            raise DataError("no channel is in all of the recordings; they do not belong together")
        left_out = sorted({name for source in sources for name in source.channels} - set(common))
        notes = [f"left out, not in all recordings: {', '.join(left_out)}"] if left_out else []
        return [source.only(common) for source in sources], notes
    for source in sources:
        if set(source.channels) != set(wanted):
            raise DataError(
                f"{source.name} has the channels {', '.join(source.channels)}, {sources[0].name} has {', '.join(wanted)}; "
                'train on recordings that belong together, or set channels = "common" to use those that all of them have'
            )
    return [source.only(wanted) for source in sources], []


def _units(sources: list[Source]) -> dict[str, str]:
    """Raises `DataError` when two recordings name different units: their numbers do not belong together."""
    found: dict[str, str] = {}
    for source in sources:
        for channel, unit in source.units.items():
            if found.setdefault(channel, unit) != unit:
                raise DataError(f"{source.name} has {channel} in {unit}, others in {found[channel]}; bring them to one unit")
    return found


def _check(
    sources: list[Source], findings: list[Finding], recipe: Recipe, notes: list[str], forgiving: bool
) -> tuple[list[Source], list[Finding]]:
    """What the recipe's policy leaves of the recordings."""
    for source in sources:
        findings += quality.channels(source.name, source.parts(), len(source), recipe.window, recipe.missing.max_fill)
        findings += quality.clock(source.name, source.steps())
    decision = quality.decide(findings, recipe.quality, [source.name for source in sources])
    _refuse(decision.findings, forgiving)
    left = [source for source in sources if source.name not in decision.recordings]
    channels = [name for name in sources[0].channels if name not in decision.channels]
    if not left or not channels:
        what = "channel" if left else "recording"
        raise DataError(
            f"nothing is left: every {what} has a fault that the recipe excludes; say less of [quality] is excluded"
        )
    if decision.channels:
        notes.append(f"left out by [quality]: {', '.join(sorted(decision.channels))}")
    if decision.recordings:
        notes.append(f"left out by [quality]: {', '.join(sorted(decision.recordings))}")
    return [source.only(channels) for source in left], list(decision.findings)


def _refuse(findings: Iterable[Finding], forgiving: bool) -> None:
    refused = [finding for finding in findings if finding.done == "refused"]
    if refused and not forgiving:
        more = f" (and {len(refused) - 1} more; amiss train --dry-run lists them)" if len(refused) > 1 else ""
        raise DataError(refused[0].line + more)


def _rate(sources: list[Source], recipe: Recipe) -> tuple[float, list[str]]:
    rates = {source.name: source.rate_hz for source in sources if len(source) > 1}
    if not rates:
        raise DataError("no recording has more than one row; nothing can be learned from them")
    wanted_hz = recipe.rate_hz
    rate_hz = wanted_hz or float(f"{np.median(list(rates.values())):.6g}")
    for name, found_hz in rates.items():
        if not _near(found_hz, rate_hz) and recipe.resample.method == "none":
            others = "the recipe says" if wanted_hz else "the others have"
            raise DataError(
                f"{name} has {found_hz:g} samples per second, {others} {rate_hz:g}; train on recordings of one rate, or set "
                'resample.method = "mean"' + ("" if wanted_hz else " and rate_hz")
            )
    return rate_hz, [] if wanted_hz else [f"rate_hz = {rate_hz:g}, from the recordings"]


def _near(one_hz: float, other_hz: float) -> bool:
    return abs(one_hz / other_hz - 1) <= RATE_TOLERANCE


def _copies(sources: list[Source]) -> list[tuple[int, int]]:
    """Pairs of recordings, the later one first, that hold the same rows: what is learned from in one could otherwise be held
    back in the other.
    """
    spans = [(int(source.times()[0]), int(source.times()[-1])) for source in sources]
    found: list[tuple[int, int]] = []
    for later in range(1, len(sources)):
        for earlier in range(later):
            start = max(spans[earlier][0], spans[later][0])
            if start <= min(spans[earlier][1], spans[later][1]) and _same_rows(sources[earlier], sources[later], start):
                found.append((later, earlier))
    return found


def _same_rows(one: Source, other: Source, start_ns: int) -> bool:
    """Whether both say the same from `start_ns` on."""
    at, there = (int(np.searchsorted(source.times(), start_ns)) for source in (one, other))
    count = min(ROWS_COMPARED, len(one) - at, len(other) - there)
    same_time = np.array_equal(one.times()[at : at + count], other.times()[there : there + count])
    return same_time and np.array_equal(one.values(at, at + count), other.values(there, there + count), equal_nan=True)


# One rate


def _resampled(sources: list[Source], rate_hz: float, recipe: Recipe, folder: Path | None, notes: list[str]) -> list[Source]:
    if all(len(source) < 2 or _near(source.rate_hz, rate_hz) for source in sources):
        return sources
    width = len(sources[0].channels)
    time, x = Spool(1, np.int64, folder), Spool(width, folder=folder)
    moved: list[Source] = []
    for source in sources:
        if len(source) < 2 or _near(source.rate_hz, rate_hz):
            moved.append(source)
            continue
        at = len(x)
        own_hz = source.rate_hz
        down = recipe.resample.method == "mean" and own_hz > rate_hz
        for part in resample(source, own_hz, rate_hz, recipe.missing.max_fill, mean=down):
            time.append(part.time_ns[:, None])
            x.append(part.x.T)
        every = tuple(range(width))
        moved.append(replace(source, time=time, time_at=at, x=x, x_at=at, order=every, count=len(x) - at))
        how = "by the mean of each period" if down else "along straight lines"
        risk = "; what was too fast for the new rate comes back as something slow" if not down and own_hz > rate_hz else ""
        notes.append(f"{source.name}: from {own_hz:g} to {rate_hz:g} samples per second {how}{risk}")
    return moved


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


# Windows


def _beside(source: Source, strip: Strip, other: Source, embargo_s: float) -> Bool:
    """Which windows lie in the time of another recording, or within `embargo_s` of it."""
    times, embargo_ns = source.times(), round(embargo_s * 1e9)
    low = int(np.searchsorted(times, int(other.times()[0]) - embargo_ns, side="right"))
    high = int(np.searchsorted(times, int(other.times()[-1]) + embargo_ns))
    return (strip.last >= low) & (strip.first < high)


def _strange(
    sources: list[Source], strips: list[Strip], usable: list[Bool], store: Spool, recipe: Recipe, forgiving: bool
) -> list[Finding]:
    """Windows that look unlike the bulk of all; with `exclude` they are no longer usable."""
    if recipe.quality.strange == "ignore":
        return []
    apart = -(-recipe.window // recipe.hop_samples)  # windows that share no sample are enough
    looked_at = [np.flatnonzero(mask)[::apart] for mask in usable]
    channels = len(sources[0].channels)
    some = [strip.start[at] for strip, at in zip(strips, looked_at, strict=True)]
    figures = [_figures(WindowSet(store, start, channels, recipe.window)) for start in some]
    together = np.concatenate(figures)
    if not len(together):
        return []
    evenly = np.linspace(0, len(together) - 1, min(len(together), WINDOWS_LOOKED_AT)).astype(np.int64)
    bulk = quality.fit_bulk(together[evenly])
    if bulk is None:
        return []
    findings: list[Finding] = []
    for i, (source, strip, at) in enumerate(zip(sources, strips, looked_at, strict=True)):
        strange = bulk.strange(figures[i])
        found = quality.unlike(source.name, strange)
        if found and recipe.quality.strange == "exclude":
            for window in at[strange]:
                usable[i] &= (strip.last < strip.first[window]) | (strip.first > strip.last[window])
        findings += found
    decided = quality.decide(findings, recipe.quality, [source.name for source in sources]).findings
    _refuse(decided, forgiving)
    return list(decided)


def _figures(windows: WindowSet) -> Float64:
    parts = [quality.figures_of(windows[at : at + 4096]) for at in range(0, len(windows), 4096)]
    return np.concatenate(parts) if parts else np.empty((0, 3 * windows.shape[1]))


def _split(
    sources: list[Source], strips: list[Strip], usable: list[Bool], embargo_s: float, recipe: Recipe
) -> tuple[Int64, Int64]:
    """Where in the store the windows to learn from start, and those held back."""
    if recipe.training.split == "recording":
        parts = _whole(sources, usable, recipe)
    else:
        parts = [split(strip, len(source), recipe) for source, strip in zip(sources, strips, strict=True)]
    fit = [ours & mask for (ours, _), mask in zip(parts, usable, strict=True)]
    held = [theirs & mask for (_, theirs), mask in zip(parts, usable, strict=True)]
    for i, j in _neighbours(sources, embargo_s):
        if fit[j].any():
            held[i] &= ~_beside(sources[i], strips[i], sources[j], embargo_s)
    starts = [[strip.start[mask] for strip, mask in zip(strips, masks, strict=True)] for masks in (fit, held)]
    return np.concatenate(starts[0]), np.concatenate(starts[1])


def _whole(sources: list[Source], usable: list[Bool], recipe: Recipe) -> list[tuple[Bool, Bool]]:
    """Recordings to learn from and recordings held back, these evenly among all."""
    some = [i for i, mask in enumerate(usable) if mask.any()]
    if len(some) < 2:
        raise DataError(
            f'training.split = "recording" takes two recordings with windows, here {len(some)} has some; '
            'record more, or set training.split = "time"'
        )
    count = min(max(1, round(recipe.training.held_back * len(some))), len(some) - 1)
    back = {some[int((i + 0.5) * len(some) / count)] for i in range(count)}
    return [(mask & (i not in back), mask & (i in back)) for i, mask in enumerate(usable)]


def _neighbours(sources: list[Source], embargo_s: float) -> Iterator[tuple[int, int]]:
    """Pairs of recordings of which one begins within `embargo_s` after the other ended, both ways round.

    Recordings of the same time are of different machines, or count from zero: what they share was found before.
    """
    order = sorted(range(len(sources)), key=lambda i: int(sources[i].times()[0]))
    begins = np.array([int(sources[i].times()[0]) for i in order])
    for i in order:
        end = int(sources[i].times()[-1])
        low, high = np.searchsorted(begins, [end + 1, end + round(embargo_s * 1e9)], side="left")
        for j in order[low:high]:
            yield i, j
            yield j, i


def _require_enough(sources: list[Source], fit: WindowArray, calibration: WindowArray, recipe: Recipe) -> None:
    finite = np.stack([source.finite for source in sources])  # (recordings, C)
    if not finite.any():
        raise DataError("the recordings hold no finite value")
    for channel, name in enumerate(sources[0].channels):
        if not finite[:, channel].any():
            raise DataError(
                f'channel {name} has no finite value in any recording; leave the column out, or set quality.missing = "exclude"'
            )
    longest = max(len(source) for source in sources)
    if longest < recipe.window:
        raise DataError(
            f"the window of {recipe.window} samples is longer than the longest recording, which has {longest}; "
            f"set window to at most {max(8, longest // 8)}, or record for longer"
        )
    cure = f"record for longer, or set a window shorter than {recipe.window} or a hop shorter than {recipe.hop_samples}"
    if len(fit) < FEWEST_WINDOWS:
        raise DataError(f"only {len(fit)} windows to learn from, at least {FEWEST_WINDOWS} are needed; {cure}")
    if len(calibration) < FEWEST_CALIBRATION:
        raise DataError(
            f"only {len(calibration)} windows held back for calibration, at least {FEWEST_CALIBRATION} are needed; {cure}"
        )
