"""Recordings → windows, as the windower of the device cuts them, and the split into those to learn from and those held back.

    files ─▶ rows on disk ─▶ quality ─▶ one rate ─▶ samples on disk ─▶ WindowSet: fit
                                                                   └▶ WindowSet: calibration

    Per recording:   |------------ fit ------------|- embargo -|-- calibration --|   time →

No window crosses a file or a gap. The windows that fit the encoder and those that calibrate lie one window apart, so they
share no sample and are not neighbours either; that holds across files too. Labels are never looked at. Everything goes by in
parts: how long the recordings are decides how much disk is taken, not how much memory.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge.errors import DataError
from edge.sensing.recordings import Recording, find_recordings
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Bool, Int64, Windows
from trainer import quality
from trainer.quality import Finding
from trainer.recipe import Recipe
from trainer.rows import Source, resample, rows_on_disk
from trainer.windows import Spool, Strip, WindowArray, WindowSet, batches, lay_out

FEWEST_WINDOWS = 32
"""Below this many windows to learn from there is nothing to be learned."""
FEWEST_CALIBRATION = 19
"""The smallest p-value is then 1/20; with fewer windows no alarm could ever mean anything."""
RATE_TOLERANCE = 0.05
WINDOWS_PER_BLOCK = 24
"""Long enough that the two embargoes cost less than a tenth of a block, so short that a day has many."""
MAX_BLOCKS = 64
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
    position: Int64
    """(m,) where each of those starts, in samples; between recordings and over gaps it jumps."""
    digests: dict[str, str]
    """SHA-256 of each file, by name."""
    notes: tuple[str, ...]
    """What was inferred or left out, one line each, for a person."""
    quality: tuple[Finding, ...] = ()
    """What was found wrong with the recordings, and what was done about it."""
    trouble: str = ""
    """Why nothing can be learned from them; only where that was asked for."""


def load(paths: Iterable[Path], recipe: Recipe, folder: Path | None = None, *, forgiving: bool = False) -> TrainingData:
    """Read, check and cut recordings of normal operation. The samples lie in nameless files in `folder` (`None`: the
    system's) for as long as the windows are in use.

    Raises `NoInputError` for files that are not there, `DataError`, with the cure, for recordings that cannot be used or that
    the recipe's policy refuses, and `StorageError` when the samples do not fit on the disk. `forgiving`: what is refused, or
    too little to learn from, is said in `trouble` instead.
    """
    files = find_recordings(paths)
    names = unique_names(files)
    sources, findings = rows_on_disk(names, files, recipe, folder)
    sources, notes = _same_channels(sources, recipe)
    units = _units(sources)
    sources, findings = _check(sources, findings, recipe, notes, forgiving)
    rate_hz, inferred = _rate(sources, recipe)
    notes = [*inferred, *notes]
    copies = _copies(sources)
    findings += [quality.copy(sources[later].name, sources[earlier].name) for later, earlier in copies]
    sources = _at_one_rate(sources, rate_hz, recipe, folder, notes)

    store, places = Spool(len(sources[0].channels), folder=folder), Spool(3, np.int64, folder)
    cutting = rate_hz, recipe.window, recipe.hop_samples, recipe.missing, store, places
    strips = [lay_out(source.parts(), *cutting) for source in sources]
    usable = [np.ones(len(strip), bool) for strip in strips]
    embargo_s = recipe.window / rate_hz
    for later, earlier in copies:
        usable[later] &= ~_beside(sources[later], strips[later], sources[earlier], embargo_s)
    for source, mask in zip(sources, usable, strict=True):
        if not mask.any():
            notes.append(f"{source.name}: no window of {recipe.window} samples fits between its gaps; left out")
    findings += _strange(sources, strips, usable, store, recipe, folder, forgiving)
    fit, held_back = _split(sources, strips, usable, embargo_s, recipe, folder)
    size = len(sources[0].channels), recipe.window
    x, held = WindowSet(store, fit, *size), WindowSet(store, held_back, *size)
    trouble = _not_enough(sources, x, held, recipe)
    if trouble and not forgiving:
        raise DataError(trouble)
    if any(finding.done == "refused" for finding in findings):
        trouble = "the recipe refuses these recordings, for the faults above"
    digests = {name: _digest(file) for name, file in zip(names, files, strict=True)}
    channels = sources[0].channels
    if not units:
        notes.append("no units in the headers; write a channel as `current [A]` and alerts will say so")
    kept_units = {name: unit for name, unit in units.items() if name in channels}
    return TrainingData(channels, kept_units, rate_hz, x, held, held_back, digests, tuple(notes), tuple(findings), trouble)


def lines(found: TrainingData, recipe: Recipe) -> list[str]:
    """For a person."""
    named = [f"{name} [{found.units[name]}]" if name in found.units else name for name in found.channels]
    return [
        f"{len(found.digests)} recordings of {', '.join(named)} at {found.rate_hz:g} Hz",
        f"windows of {recipe.window} samples every {recipe.hop_samples}: {len(found.fit)} to learn from, "
        f"{len(found.calibration)} held back to calibrate",
        *found.notes,
        *(quality.summary(found.quality) or ["nothing is wrong with them"]),
    ]


def cut(recording: Recording, rate_hz: float, window: int, hop: int, missing: MissingPolicy) -> Windows:
    """All windows of one recording."""
    windower = Windower(len(recording.channels), rate_hz, window, hop, missing)
    parts = [windower.feed(samples) for samples in recording.samples(65536)]
    return Windows(
        np.concatenate([part.start_ns for part in parts]),
        np.concatenate([part.end_ns for part in parts]),
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.fresh for part in parts]),
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


def _at_one_rate(sources: list[Source], rate_hz: float, recipe: Recipe, folder: Path | None, notes: list[str]) -> list[Source]:
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


# Windows


def _beside(source: Source, strip: Strip, other: Source, embargo_s: float) -> Bool:
    """Which windows lie in the time of another recording, or within `embargo_s` of it."""
    times, embargo_ns = source.times(), round(embargo_s * 1e9)
    low = int(np.searchsorted(times, int(other.times()[0]) - embargo_ns, side="right"))
    high = int(np.searchsorted(times, int(other.times()[-1]) + embargo_ns))
    return (strip.last >= low) & (strip.first < high)


def _strange(
    sources: list[Source],
    strips: list[Strip],
    usable: list[Bool],
    store: Spool,
    recipe: Recipe,
    folder: Path | None,
    forgiving: bool,
) -> list[Finding]:
    """Windows that look unlike the bulk of all; with `exclude` they are no longer usable."""
    if recipe.quality.strange == "ignore":
        return []
    apart = -(-recipe.window // recipe.hop_samples)  # windows that share no sample are enough
    channels = len(sources[0].channels)
    figures = Spool(3 * channels, np.float64, folder)
    for strip, mask in zip(strips, usable, strict=True):
        for windows in batches(WindowSet(store, strip.start[mask][::apart], channels, recipe.window)):
            figures.append(quality.figures_of(windows))
    evenly = np.linspace(0, len(figures) - 1, min(len(figures), WINDOWS_LOOKED_AT)).astype(np.int64)
    bulk = quality.fit_bulk(figures.array()[evenly])
    if bulk is None:
        return []
    findings: list[Finding] = []
    done = 0
    for i, (source, strip) in enumerate(zip(sources, strips, strict=True)):
        looked_at = np.flatnonzero(usable[i])[::apart]
        strange = _beyond(bulk, figures, done, done + len(looked_at))
        done += len(looked_at)
        found = quality.unlike(source.name, strange)
        if found and recipe.quality.strange == "exclude":
            for window in looked_at[strange]:
                usable[i] &= (strip.last < strip.first[window]) | (strip.first > strip.last[window])
        findings += found
    decided = quality.decide(findings, recipe.quality, [source.name for source in sources]).findings
    _refuse(decided, forgiving)
    return list(decided)


def _beyond(bulk: quality.Bulk, figures: Spool, start: int, stop: int) -> Bool:
    """Which windows, of those whose figures are in these rows, look unlike the bulk."""
    found = np.empty(stop - start, bool)
    for at in range(start, stop, WINDOWS_LOOKED_AT):
        some = figures.array()[at : min(at + WINDOWS_LOOKED_AT, stop)]
        found[at - start : at - start + len(some)] = bulk.strange(some)
        figures.seen(some.nbytes)
    return found


def _split(
    sources: list[Source],
    strips: list[Strip],
    usable: list[Bool],
    embargo_s: float,
    recipe: Recipe,
    folder: Path | None,
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
    starts = Spool(1, np.int64, folder), Spool(1, np.int64, folder)
    for masks, kept in zip((fit, held), starts, strict=True):
        for strip, mask in zip(strips, masks, strict=True):
            kept.append(strip.start[mask][:, None])
    return starts[0].array()[:, 0], starts[1].array()[:, 0]


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


def _not_enough(sources: list[Source], fit: WindowArray, calibration: WindowArray, recipe: Recipe) -> str:
    """Why nothing can be learned from so little, and the cure; empty when it can."""
    finite = np.stack([source.finite for source in sources])  # (recordings, C)
    if not finite.any():
        return "the recordings hold no finite value"
    for channel, name in enumerate(sources[0].channels):
        if not finite[:, channel].any():
            return (
                f'channel {name} has no finite value in any recording; leave the column out, or set quality.missing = "exclude"'
            )
    longest = max(len(source) for source in sources)
    if longest < recipe.window:
        return (
            f"the window of {recipe.window} samples is longer than the longest recording, which has {longest}; "
            f"set window to at most {max(8, longest // 8)}, or record for longer"
        )
    cure = f"record for longer, or set a window shorter than {recipe.window} or a hop shorter than {recipe.hop_samples}"
    if len(fit) < FEWEST_WINDOWS:
        return f"only {len(fit)} windows to learn from, at least {FEWEST_WINDOWS} are needed; {cure}"
    if len(calibration) < FEWEST_CALIBRATION:
        return f"only {len(calibration)} windows held back for calibration, at least {FEWEST_CALIBRATION} are needed; {cure}"
    return ""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
