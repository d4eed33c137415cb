"""Recordings on disk: CSV (optionally .gz) with a time column, one column per channel and an optional label column."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import DataError, NoInputError
from edge.files import at_once
from edge.signal import Float32, Int64, Samples

TIME_NAMES = ("time", "timestamp", "datetime")
LABEL_NAMES = ("label", "anomaly", "changepoint", "window_label")
"""Never channels. The first that is present is the label; labels are for judging, no training ever sees them."""
SUFFIXES = (".csv", ".csv.gz")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME_S = 9e9  # the year 2255; in nanoseconds it still fits an int64


@dataclass(frozen=True, slots=True)
class Recording:
    name: str
    channels: tuple[str, ...]
    time_ns: Int64
    """(n,) nanoseconds since the epoch (or since an arbitrary zero, when the file counts from 0), strictly increasing."""
    x: Float32
    """(C, n); NaN is missing."""
    label: npt.NDArray[np.int8] | None = None
    """(n,) 1 where something is amiss."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Of the channels whose unit is known."""

    @property
    def rate_hz(self) -> float:
        """Samples per second, from the median distance of two samples; NaN when there is only one."""
        if len(self.time_ns) < 2:
            return float("nan")
        return 1e9 / float(np.median(np.diff(self.time_ns)))

    def samples(self, chunk: int = 4096) -> Iterator[Samples]:
        """The recording as a stream."""
        for at in range(0, len(self.time_ns), chunk):
            yield Samples(self.time_ns[at : at + chunk], self.x[:, at : at + chunk])

    def part(self, start: int, stop: int | None = None) -> "Recording":
        """Rows `start:stop`."""
        label = None if self.label is None else self.label[start:stop]
        return replace(self, time_ns=self.time_ns[start:stop], x=self.x[:, start:stop], label=label)


def find_recordings(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, directories as all recordings below them in order of name.

    Raises `NoInputError` when a path does not exist or nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES))
            if not inside:
                raise NoInputError(f"{path}: no recordings in it; expected files that end in {' or '.join(SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise NoInputError(f"{path}: no such file or directory")
    return found


def read_recording(path: Path) -> Recording:
    """Read one recording.

    The separator (`,`, `;` or tab) is found from the header. Raises `NoInputError` when the file is not there, `DataError`,
    naming line and column, when it is not a recording.
    """
    lines = _read_text(path).splitlines()
    if not lines:
        raise DataError(f"{path}: the file is empty")
    separator = max(",;\t", key=lines[0].count)
    titles = [_title(title) for title in next(csv.reader([lines[0]], delimiter=separator))]
    header = [name for name, _ in titles]
    lowered = [name.lower() for name in header]
    time_at = next((lowered.index(name) for name in TIME_NAMES if name in lowered), None)
    if time_at is None:
        raise DataError(f"{path}: no time column; the header needs one of {', '.join(TIME_NAMES)}, it has: {', '.join(header)}")
    if len(set(lowered)) != len(lowered):
        raise DataError(f"{path}: a column name appears twice: {', '.join(header)}")
    label_at = next((lowered.index(name) for name in LABEL_NAMES if name in lowered), None)
    value_at = [i for i, name in enumerate(lowered) if i != time_at and name not in LABEL_NAMES]
    if not value_at:
        raise DataError(f"{path}: no channel beside the time column")

    reader = csv.reader(lines[1:], delimiter=separator)
    try:
        numbered = [(reader.line_num + 1, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None
    if not numbered:
        raise DataError(f"{path}: a header but no rows")
    for number, row in numbered:
        if len(row) != len(header):
            raise DataError(f"{path}:{number}: {len(row)} values, the header names {len(header)}")
    numbers, rows = zip(*numbered, strict=True)
    columns = list(zip(*rows, strict=True))
    with np.errstate(over="ignore"):  # what float32 cannot hold is as missing as any infinity
        x = np.stack([_numbers(columns[i], path, header[i], numbers) for i in value_at]).astype(np.float32)
    x[np.isinf(x)] = np.nan
    time_ns = _times(columns[time_at], path, header[time_at], numbers)
    backwards = np.flatnonzero(np.diff(time_ns) <= 0)
    if len(backwards):
        at = int(backwards[0]) + 1
        raise DataError(
            f"{path}:{numbers[at]}: time does not increase ({columns[time_at][at]} after {columns[time_at][at - 1]})"
        )
    label = None
    if label_at is not None:
        label = (_numbers(columns[label_at], path, header[label_at], numbers) > 0).astype(np.int8)
    units = {titles[i][0]: titles[i][1] for i in value_at if titles[i][1]}
    return Recording(path.name, tuple(header[i] for i in value_at), time_ns, x, label, units)


def match_channels(recording: Recording, channels: Sequence[str]) -> Recording:
    """The recording with a model's channels in the model's order; raises `DataError` when one is absent."""
    if absent := [name for name in channels if name not in recording.channels]:
        raise DataError(
            f"{recording.name}: no column {', '.join(absent)}; it has {', '.join(recording.channels)}, the model needs "
            f"{', '.join(channels)}"
        )
    order = [recording.channels.index(name) for name in channels]
    return replace(recording, channels=tuple(channels), x=recording.x[order])


def write_recording(path: Path, recording: Recording) -> None:
    """Write CSV; `.gz` at the end of the name compresses. Raises `CannotCreateError`."""
    with at_once(path) as draft, _open_for_writing(draft, compressed=path.name.endswith(".gz")) as file:
        writer = csv.writer(file, lineterminator="\n")
        label = recording.label
        titles = [f"{name} [{recording.units[name]}]" if name in recording.units else name for name in recording.channels]
        writer.writerow(["time", *titles, *(["label"] if label is not None else [])])
        for i in range(len(recording.time_ns)):
            values = ["" if np.isnan(v) else f"{v:.9g}" for v in recording.x[:, i]]
            writer.writerow([format_time(int(recording.time_ns[i])), *values, *([int(label[i])] if label is not None else [])])


def format_time(time_ns: int) -> str:
    """Nanoseconds since the epoch → RFC 3339 in UTC with microseconds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"


def _title(text: str) -> tuple[str, str]:
    """`current [A]` → name and unit; the unit is empty where there is none."""
    name, bracket, unit = text.strip().removesuffix("]").rpartition("[")
    return (name.strip(), unit.strip()) if bracket and text.strip().endswith("]") and name.strip() else (text.strip(), "")


def _open_for_writing(path: Path, *, compressed: bool) -> io.TextIOBase:
    if compressed:
        return gzip.open(path, "wt", encoding="utf-8", newline="")
    return path.open("w", encoding="utf-8", newline="")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; recordings are CSV in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror}") from None


def _numbers(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> npt.NDArray[np.float64]:
    """Text → numbers; an empty cell or `nan` is a missing value."""
    cells = [cell if cell.strip() else "nan" for cell in column]
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        for line, cell in zip(lines, cells, strict=True):
            try:
                float(cell)
            except ValueError:
                raise DataError(f"{path}:{line}: column {name}: {cell!r} is not a number") from None
        raise


def _times(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> Int64:
    """Epoch seconds or RFC 3339 (a blank instead of the T is fine, no zone means UTC) → nanoseconds."""
    for line, cell in zip(lines, column, strict=True):
        if not cell.strip():
            raise DataError(f"{path}:{line}: column {name}: a row without a time")
    try:
        seconds = np.array(column, dtype=np.float64)
    except ValueError:
        return _dates(column, path, name, lines)
    beyond = np.flatnonzero(~(np.abs(seconds) < _MAX_TIME_S))
    if len(beyond):
        at = int(beyond[0])
        raise DataError(f"{path}:{lines[at]}: column {name}: {column[at]!r} is no time in seconds; divide milliseconds by 1000")
    return np.round(seconds * 1e9).astype(np.int64)


def _dates(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> Int64:
    out = np.empty(len(column), np.int64)
    for i, cell in enumerate(column):
        try:
            moment = datetime.fromisoformat(cell.strip())
        except ValueError:
            raise DataError(
                f"{path}:{lines[i]}: column {name}: {cell!r} is neither epoch seconds nor a date like 2026-01-31T12:00:00Z"
            ) from None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        out[i] = (moment - _EPOCH) // timedelta(microseconds=1) * 1000  # whole numbers: a float has no microseconds left
    return out
