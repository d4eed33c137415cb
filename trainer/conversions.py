"""Public data sets → recordings: from the files as their authors published them to what `amiss` reads. Pure but for reading.

Each function takes path → file, as published or as an excerpt (.npz), and yields (name, recording) with names like
`train/x` and `test/x`. Recordings below train/ carry no label column; those below test/ do.

Where a set has no times, they count from 0 in the steps that its authors give. Raises `DataError` for files that are not what
they should be.
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import DataError
from edge.sensing.recordings import Recording, read_recording
from edge.signal import Float32, Int64

Files = Mapping[str, Path]
Recordings = Iterator[tuple[str, Recording]]

SKAB_UNITS = {
    "Accelerometer1RMS": "g",
    "Accelerometer2RMS": "g",
    "Current": "A",
    "Pressure": "bar",
    "Temperature": "degC",
    "Thermocouple": "degC",
    "Voltage": "V",
    "Volume Flow RateRMS": "l/min",
}
SKAB_NORMAL_ROWS = 400
"""Of each labelled file: what its authors train on."""
NAB_PROBATION = 0.15
"""Of each series: what its authors do not score."""
CWRU_TRAIN = 0.6
FEMTO_RATE_HZ = 25_600
FEMTO_EVERY_S = 10
FEMTO_TRAIN, FEMTO_HEALTHY, FEMTO_LAST = 0.2, 0.4, 10
"""Up to which part of a life is learned from; up to which it counts as healthy; how many of the last snapshots as failed."""


def skab(files: Files) -> Recordings:
    """The first 400 rows of each labelled file, and the anomaly-free file, are normal; the rest is for judging."""
    for path, file in sorted(files.items()):
        name = path.removesuffix(".csv").replace("/", "-")
        recording = read_recording(file)
        units = {channel: unit for channel, unit in SKAB_UNITS.items() if channel in recording.channels}
        recording = replace(recording, units=units)
        if recording.label is None:
            yield "train/anomaly-free", recording
            continue
        if name != "other-2":  # 296 of its first 400 rows are anomalous
            yield f"train/{name}", replace(recording.part(0, SKAB_NORMAL_ROWS), label=None)
        yield f"test/{name}", recording.part(SKAB_NORMAL_ROWS)


def smd(files: Files) -> Recordings:
    """One machine, one row per minute; the second half of its five weeks is labelled."""
    machines = sorted({Path(path).stem for path in files}, key=lambda name: [int(part) for part in name.split("-")[1:]])
    for machine in machines:
        ours = {path: file for path, file in files.items() if Path(path).stem == machine}
        if len(ours) == 1:
            ((path, file),) = ours.items()
            with _arrays(path, file) as arrays:
                train, test, label = arrays["train"], arrays["test"], arrays["test_label"]
        else:
            train, test, label = (_text(*_only(ours, part)) for part in ("/train/", "/test/", "/test_label/"))
        if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or label.size != len(test):
            raise DataError(f"smd: {machine}: {train.shape} values to train on, {test.shape} to test and {label.size} labels")
        minutes = np.arange(len(train) + len(test), dtype=np.int64) * 60_000_000_000
        channels = tuple(f"metric_{number:02}" for number in range(1, train.shape[1] + 1))
        yield f"train/{machine}", Recording(machine, channels, minutes[: len(train)], _channels(train))
        yield f"test/{machine}", Recording(machine, channels, minutes[len(train) :], _channels(test), _label(label.ravel() > 0))


def cwru(files: Files) -> Recordings:
    """The first 60 % of the recording of the good bearing to train on, the rest and every damaged bearing for judging."""
    for path, file in sorted(files.items()):
        name = Path(path).stem.removeprefix("1797_").removesuffix("_DE48")
        with _arrays(path, file) as arrays:
            ends = [arrays[key].ravel() * float(arrays.get(f"{key}_scale", 1.0)) for key in ("DE", "FE")]
        if len(ends[0]) != len(ends[1]):
            raise DataError(f"cwru: {path}: {len(ends[0])} samples of the drive end, {len(ends[1])} of the fan end")
        units = {"DE": "g", "FE": "g"}
        whole = Recording(name, ("DE", "FE"), _ticks(len(ends[0]), 48_000), _channels(np.stack(ends, 1)), None, units)
        n = len(whole.time_ns)
        if name == "Normal":
            yield "train/Normal", whole.part(0, int(n * CWRU_TRAIN))
            yield "test/Normal", replace(whole, label=np.zeros(n, np.int8)).part(int(n * CWRU_TRAIN))
        else:
            yield f"test/{name}", replace(whole, label=np.ones(n, np.int8))


def femto(files: Files) -> Recordings:
    """Bearings run to failure: 0.1 s every 10 s. The authors give no labels: these are ours, see the constants."""
    for bearing in sorted({_bearing(path) for path in files}):
        ours = {path: file for path, file in files.items() if _bearing(path) == bearing}
        number, x, of = _snapshots(ours)  # (n,), (n, samples, 2)
        samples = x.shape[1]
        start_ns = (number - 1) * FEMTO_EVERY_S * 1_000_000_000
        time_ns = (start_ns[:, None] + _ticks(samples, FEMTO_RATE_HZ)).ravel()
        channels = ("horizontal", "vertical")
        whole = Recording(bearing, channels, time_ns, _channels(x.reshape(-1, 2)), None, dict.fromkeys(channels, "g"))
        life, failed = number / of, number > of - FEMTO_LAST
        yield f"train/{bearing}", _rows(whole, np.repeat(life <= FEMTO_TRAIN, samples))
        labelled = replace(whole, label=_label(np.repeat(failed, samples)))
        judged = ((life > FEMTO_TRAIN) & (life <= FEMTO_HEALTHY)) | failed
        yield f"test/{bearing}", _rows(labelled, np.repeat(judged, samples))
        yield f"whole/{bearing}", whole


def nab(files: Files) -> Recordings:
    """The first 15 % of each series to learn from, the rest with the windows that its authors labelled.

    Rows whose time does not go forward (an hour told twice when the clocks change) are left out.
    """
    windows_path, windows_file = _only(files, "combined_windows.json")
    try:
        windows = json.loads(windows_file.read_text("utf-8"))
        for path, file in sorted(files.items()):
            if path == windows_path:
                continue
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
            time_ns = np.array([_moment(row["timestamp"]) for row in rows], np.int64)
            x = np.array([[float(row["value"]) for row in rows]], np.float32)
            label = np.zeros(len(rows), bool)
            for first, last in windows[f"realKnownCause/{file.name}"]:
                label |= (time_ns >= _moment(first)) & (time_ns <= _moment(last))
            forward = np.ones(len(rows), bool)
            forward[1:] = time_ns[1:] > np.maximum.accumulate(time_ns)[:-1]
            series = _rows(Recording(file.stem, ("value",), time_ns, x, _label(label)), forward)
            cut = int(len(series.time_ns) * NAB_PROBATION)
            yield f"train/{file.stem}", replace(series.part(0, cut), label=None)
            yield f"test/{file.stem}", series.part(cut)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"nab: not as its authors publish it: {type(error).__name__}: {error}") from None


CONVERSIONS: dict[str, Callable[[Files], Recordings]] = {"skab": skab, "smd": smd, "cwru": cwru, "femto": femto, "nab": nab}


def _bearing(path: str) -> str:
    """`Learning_set/Bearing1_1/acc_00001.csv` or `femto/Bearing1_1.npz` → `Bearing1_1`."""
    return Path(path).stem if path.endswith(".npz") else Path(path).parent.name


def _snapshots(files: Files) -> tuple[Int64, npt.NDArray[Any], int]:
    """Numbers counted from 1, (n, samples, 2) in g, and how many snapshots the whole run has."""
    if len(files) == 1 and next(iter(files)).endswith(".npz"):
        ((path, file),) = files.items()
        with _arrays(path, file) as arrays:
            x = arrays["x"].astype(np.float32) * np.float32(arrays["scale"])
            return arrays["snapshot"].astype(np.int64), x, int(arrays["n_snapshots"])
    ordered = sorted(files.items())
    values = [_text(path, file) for path, file in ordered]
    for (path, _), value in zip(ordered, values, strict=True):
        if value.shape != (len(values[0]), 6):
            raise DataError(f"femto: {path}: {value.shape[0]} rows of {value.shape[1]} values, expected {len(values[0])} of 6")
    number = np.array([int(Path(path).stem.removeprefix("acc_")) for path, _ in ordered], np.int64)
    return number, np.stack([value[:, 4:] for value in values]), int(number[-1])


def _text(path: str, file: Path) -> npt.NDArray[np.float32]:
    """Numbers in rows, separated by commas or semicolons."""
    try:
        with file.open() as lines:
            separator = ";" if ";" in lines.readline() else ","
        return np.loadtxt(file, np.float32, delimiter=separator, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: not a table of numbers: {error}") from None


@contextmanager
def _arrays(path: str, file: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    try:
        with np.load(file, allow_pickle=False) as found:
            yield {name: found[name] for name in found.files}
    except KeyError as error:
        raise DataError(f"{path}: there is no array {error} in it") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of arrays: {error}") from None


def _only(files: Files, part: str) -> tuple[str, Path]:
    found = [(path, file) for path, file in files.items() if part in path]
    if len(found) != 1:
        raise DataError(f"{len(found)} files with {part} in their path, expected one, among: {', '.join(sorted(files))}")
    return found[0]


def _rows(recording: Recording, kept: npt.NDArray[np.bool_]) -> Recording:
    label = None if recording.label is None else recording.label[kept]
    return replace(recording, time_ns=recording.time_ns[kept], x=recording.x[:, kept], label=label)


def _channels(x: npt.NDArray[Any]) -> Float32:
    """(n, C) → (C, n)."""
    return np.ascontiguousarray(x.T, np.float32)


def _label(strange: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    return strange.astype(np.int8)


def _ticks(n: int, rate_hz: int) -> Int64:
    """Nanoseconds of n samples from 0, each rounded by itself: no error adds up."""
    return (np.arange(n, dtype=np.int64) * 1_000_000_000 + rate_hz // 2) // rate_hz


def _moment(text: str) -> int:
    """Without a zone, as UTC, in nanoseconds."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
