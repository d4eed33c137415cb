"""Recordings → windows, through the windower of the device, and the split in time.

Per recording:   |------------ fit ------------|- embargo -|-- calibration --|   time →

No window crosses a file or a gap. The windows that fit the encoder and those that calibrate lie one window apart, so they
share no sample and are not neighbours either. Labels are never looked at.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import DataError
from edge.sensing.recordings import Recording, find_recordings, read_recording
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Float32, Windows
from trainer.recipes import Recipe

FEWEST_WINDOWS = 32
"""Below this many windows to learn from there is nothing to be learned."""
FEWEST_CALIBRATION = 19
"""The smallest p-value is then 1/20; with fewer windows no alarm could ever mean anything."""
RATE_TOLERANCE = 0.05
WINDOWS_PER_BLOCK = 24
"""Long enough that the two embargoes cost less than a tenth of a block, so short that a day has many."""
MAX_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class TrainingData:
    channels: tuple[str, ...]
    units: dict[str, str]
    """Of the channels whose unit the recordings name."""
    rate_hz: float
    fit: Float32
    """(n, C, N) windows to learn from."""
    calibration: Float32
    """(m, C, N) held back."""
    digests: dict[str, str]
    """SHA-256 of each file, by name."""
    notes: tuple[str, ...]
    """What was inferred or left out, one line each, for a person."""


def load(paths: Iterable[Path], recipe: Recipe) -> TrainingData:
    """Read, check and cut recordings of normal operation.

    Raises `NoInputError` for files that are not there and `DataError`, with the cure, for recordings that cannot be used.
    """
    files = find_recordings(paths)
    recordings = [read_recording(file) for file in files]
    names = unique_names(files)
    require_channels(names, recordings)
    rate_hz, notes = _rate(names, recordings, recipe.rate_hz)
    fit: list[Float32] = []
    calibration: list[Float32] = []
    for name, recording in zip(names, recordings, strict=True):
        windows = cut(recording, rate_hz, recipe.window, recipe.hop_samples, recipe.missing)
        if not len(windows):
            notes.append(f"{name}: no window of {recipe.window} samples fits between its gaps; left out")
            continue
        ours, held_back = split(windows, recording, recipe)
        fit.append(ours)
        calibration.append(held_back)
    x, held = _together(fit), _together(calibration)
    _require_enough(recordings, x, held, recipe)
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in zip(names, files, strict=True)}
    return TrainingData(recordings[0].channels, _units(names, recordings), rate_hz, x, held, digests, tuple(notes))


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


def split(windows: Windows, recording: Recording, recipe: Recipe) -> tuple[Float32, Float32]:
    """Windows to fit and windows to calibrate, one window length apart.

    A long recording is cut into several blocks that are each split alike: otherwise calibration would see the last hours of it
    only, and take the slow wander that the other hours went through for strange.
    """
    n, length = len(recording.time_ns), recipe.window
    blocks = max(1, min(MAX_BLOCKS, n // (WINDOWS_PER_BLOCK * length)))
    first = np.searchsorted(recording.time_ns, windows.start_ns)
    last = np.searchsorted(recording.time_ns, windows.end_ns)
    fit, held_back = np.zeros(len(first), bool), np.zeros(len(first), bool)
    for block in range(blocks):
        start, stop = n * block // blocks, n * (block + 1) // blocks
        boundary = start + int((stop - start) * (1 - recipe.training.held_back))
        fit |= (first >= start + (length if block else 0)) & (last < boundary)
        held_back |= (first >= boundary + length) & (last < stop)
    return windows.x[fit], windows.x[held_back]


def unique_names(files: list[Path]) -> list[str]:
    """File names, with as many folders before them as it takes to tell them apart."""
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        names = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(names)) == len(names):
            return names
    raise DataError(f"{next(f for f in files if files.count(f) > 1)}: named twice among the recordings")


def require_channels(names: list[str], recordings: list[Recording]) -> None:
    """Raises `DataError` unless all recordings have the same channels in the same order."""
    wanted = recordings[0].channels
    for name, recording in zip(names, recordings, strict=True):
        if recording.channels != wanted:
            raise DataError(
                f"{name} has the channels {', '.join(recording.channels)}, {names[0]} has {', '.join(wanted)}; recordings "
                "that belong together need the same channels in the same order"
            )


def _units(names: list[str], recordings: list[Recording]) -> dict[str, str]:
    """Raises `DataError` when two recordings name different units: their numbers do not belong together."""
    found: dict[str, str] = {}
    for name, recording in zip(names, recordings, strict=True):
        for channel, unit in recording.units.items():
            if found.setdefault(channel, unit) != unit:
                raise DataError(f"{name} has {channel} in {unit}, others in {found[channel]}; bring them to one unit")
    return found


def _rate(names: list[str], recordings: list[Recording], wanted_hz: float | None) -> tuple[float, list[str]]:
    rates = {name: r.rate_hz for name, r in zip(names, recordings, strict=True) if len(r.time_ns) > 1}
    if not rates:
        raise DataError("no recording has more than one row; nothing can be learned from them")
    rate_hz = wanted_hz or float(f"{np.median(list(rates.values())):.6g}")
    for name, found_hz in rates.items():
        if abs(found_hz / rate_hz - 1) > RATE_TOLERANCE:
            others = "the recipe says" if wanted_hz else "the others have"
            raise DataError(
                f"{name} has {found_hz:g} samples per second, {others} {rate_hz:g}; train on recordings of one rate"
            )
    return rate_hz, [] if wanted_hz else [f"rate_hz = {rate_hz:g}, from the recordings"]


def _together(parts: list[Float32]) -> Float32:
    return np.concatenate(parts) if parts else np.empty((0, 0, 0), np.float32)


def _require_enough(recordings: list[Recording], fit: Float32, calibration: Float32, recipe: Recipe) -> None:
    if not any(np.isfinite(recording.x).any() for recording in recordings):
        raise DataError("the recordings hold no finite value")
    for channel, name in enumerate(recordings[0].channels):
        if not any(np.isfinite(recording.x[channel]).any() for recording in recordings):
            raise DataError(f"channel {name} has no finite value in any recording; leave the column out")
    longest = max(len(recording.time_ns) for recording in recordings)
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
