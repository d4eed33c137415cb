"""Recordings on disk: CSV (optionally .gz) or Parquet, with a time column, one column per channel and an optional label column.

Parquet takes pyarrow, which a device does not have; it is imported when such a file is met and not before.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.errors import DataError, NoInputError
from edge.files import at_once
from edge.signal import Float32, Float64, Int64, Samples

if TYPE_CHECKING:
    import pyarrow

TIME_NAMES = ("time", "timestamp", "datetime")
LABEL_NAMES = ("label", "anomaly", "changepoint", "window_label")
"""Never channels. The first that is present is the label; labels are for judging, no training ever sees them."""
PARQUET = ".parquet"
SUFFIXES = (".csv", ".csv.gz", PARQUET)
ROWS_PER_PART = 65536
"""What is handed on at a time."""
ROWS_AS_TEXT = 256
"""What is text in Python at a time. With more of its objects alive the garbage collector goes over all that a program has,
again and again: beside torch, reading takes three times as long with 65536.
"""

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

    The separator of CSV (`,`, `;` or tab) is found from the header. Raises `NoInputError` when the file is not there,
    `DataError`, naming line and column, when it is not a recording, and `ModuleNotFoundError` for Parquet without pyarrow,
    which `amiss` tells with its cure.
    """
    return _joined(list(read_parts(path)))


def read_parts(path: Path, rows: int = ROWS_PER_PART, *, raw: bool = False) -> Iterator[Recording]:
    """The recording in parts of at most `rows` rows, never none: memory stays bounded however long the file is.

    With `raw` the rows come as they stand in the file: times in any order, infinite values as such. Raises what
    `read_recording` does, for a part when that part is reached.
    """
    read, most = (_parquet_parts, rows) if path.name.lower().endswith(PARQUET) else (_csv_parts, min(rows, ROWS_AS_TEXT))
    last_ns: int | None = None
    ready: list[Recording] = []
    waiting, empty = 0, True
    for part, place, shown in read(path, most):
        if not raw:
            before = part.time_ns[:1] - 1 if last_ns is None else np.array([last_ns])
            backwards = np.flatnonzero(np.diff(np.concatenate([before, part.time_ns])) <= 0)
            if len(backwards):
                at = int(backwards[0])
                earlier = shown(at - 1) if at else format_time(int(before[0]))
                raise DataError(f"{place(at)}: time does not increase ({shown(at)} after {earlier})")
            part.x[np.isinf(part.x)] = np.nan
            last_ns = int(part.time_ns[-1])
        ready.append(part)
        empty = False
        waiting += len(part.time_ns)
        if waiting + most > rows:
            yield _joined(ready)
            ready, waiting = [], 0
    if ready:
        yield _joined(ready)
    if empty:
        raise DataError(f"{path}: a header but no rows")


def _joined(parts: list[Recording]) -> Recording:
    if len(parts) == 1:
        return parts[0]
    label = None if parts[0].label is None else np.concatenate([part.label for part in parts if part.label is not None])
    time_ns = np.concatenate([part.time_ns for part in parts])
    return replace(parts[0], time_ns=time_ns, x=np.concatenate([part.x for part in parts], axis=1), label=label)


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
    """Write CSV, or Parquet when the name ends so; `.gz` at the end compresses CSV. Raises `CannotCreateError`."""
    if path.name.lower().endswith(PARQUET):
        _write_parquet(path, recording)
        return
    titles = [f"{name} [{recording.units[name]}]" if name in recording.units else name for name in recording.channels]
    label = recording.label
    row = ",".join(["%s", *["%.9g"] * len(titles), *(["%d"] if label is not None else [])])
    with at_once(path) as draft, _open_for_writing(draft, compressed=path.name.lower().endswith(".gz")) as file:
        csv.writer(file, lineterminator="\n").writerow(["time", *titles, *(["label"] if label is not None else [])])
        for at in range(0, len(recording.time_ns), ROWS_AS_TEXT):
            part = slice(at, at + ROWS_AS_TEXT)
            columns = [format_times(recording.time_ns[part]), *recording.x[:, part].tolist()]
            if label is not None:
                columns.append(label[part].tolist())
            lines = "".join(f"{row % cells}\n" for cells in zip(*columns, strict=True))
            file.write(lines.replace(",nan", ","))  # nothing else in a row can look like it


def format_time(time_ns: int) -> str:
    """Nanoseconds since the epoch → RFC 3339 in UTC with microseconds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"


def format_times(time_ns: Int64) -> list[str]:
    """As `format_time`, many at once."""
    texts: list[str] = np.datetime_as_string((time_ns // 1000).astype("datetime64[us]"), timezone="UTC").tolist()
    return texts


def _title(text: str) -> tuple[str, str]:
    """`current [A]` → name and unit; the unit is empty where there is none."""
    name, bracket, unit = text.strip().removesuffix("]").rpartition("[")
    return (name.strip(), unit.strip()) if bracket and text.strip().endswith("]") and name.strip() else (text.strip(), "")


def _open_for_writing(path: Path, *, compressed: bool) -> io.TextIOBase:
    if compressed:
        return gzip.open(path, "wt", encoding="utf-8", newline="")
    return path.open("w", encoding="utf-8", newline="")


_Part = tuple[Recording, Callable[[int], str], Callable[[int], str]]
"""Some rows, where in the file a row stands, and what its time looks like there."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column of a table is what."""

    names: list[str]
    units: list[str]
    time_at: int
    label_at: int | None
    value_at: list[int]

    def recording(self, path: Path, time_ns: Int64, values: Sequence[Float64], label: Float64 | None) -> Recording:
        with np.errstate(over="ignore"):  # what float32 cannot hold is as missing as any infinity
            x = np.stack(values).astype(np.float32)
        units = {self.names[i]: self.units[i] for i in self.value_at if self.units[i]}
        truth = None if label is None else (label > 0).astype(np.int8)
        return Recording(path.name, tuple(self.names[i] for i in self.value_at), time_ns, x, truth, units)


def _columns(path: Path, header: Iterable[str]) -> _Columns:
    """Raises `DataError` for a table that is no recording."""
    titles = [_title(title) for title in header]
    names = [name for name, _ in titles]
    lowered = [name.lower() for name in names]
    time_at = next((lowered.index(name) for name in TIME_NAMES if name in lowered), None)
    if time_at is None:
        raise DataError(f"{path}: no time column; the header needs one of {', '.join(TIME_NAMES)}, it has: {', '.join(names)}")
    if len(set(lowered)) != len(lowered):
        raise DataError(f"{path}: a column name appears twice: {', '.join(names)}")
    label_at = next((lowered.index(name) for name in LABEL_NAMES if name in lowered), None)
    value_at = [i for i, name in enumerate(lowered) if i != time_at and name not in LABEL_NAMES]
    if not value_at:
        raise DataError(f"{path}: no channel beside the time column")
    return _Columns(names, [unit for _, unit in titles], time_at, label_at, value_at)


def _csv_parts(path: Path, rows: int) -> Iterator[_Part]:
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path}: the file is empty")
    separator = max(",;\t", key=first.count)
    found = _columns(path, next(csv.reader([first], delimiter=separator), []))
    width = len(found.names)
    reader = csv.reader(lines, delimiter=separator)
    dates: bool | None = None
    while True:
        try:
            numbered = [(reader.line_num + 1, row) for row in islice(filter(None, reader), rows)]
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None
        if not numbered:
            return
        numbers, cells = zip(*numbered, strict=True)
        if set(map(len, cells)) != {width}:
            number, row = next((number, row) for number, row in numbered if len(row) != width)
            raise DataError(f"{path}:{number}: {len(row)} values, the header names {width}")
        columns = list(zip(*cells, strict=True))
        values = [_numbers(columns[i], path, found.names[i], numbers) for i in found.value_at]
        times = columns[found.time_at]
        time_ns, are_dates = _times(times, path, found.names[found.time_at], numbers)
        if dates not in (None, are_dates):
            raise DataError(f"{path}:{numbers[0]}: the time is {times[0]!r} here, dates and seconds in one file")
        dates = are_dates
        at = found.label_at
        label = None if at is None else _numbers(columns[at], path, found.names[at], numbers)
        part = found.recording(path, time_ns, values, label)
        yield part, lambda i, numbers=numbers: f"{path}:{numbers[i]}", lambda i, times=times: times[i]  # type: ignore[misc]


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open_for_reading(path) as file:
            for line in file:
                yield line.removesuffix("\n")
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; recordings are CSV in UTF-8, or Parquet with a name that says so") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror}") from None


def _open_for_reading(path: Path) -> io.TextIOBase:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parquet_parts(path: Path, rows: int) -> Iterator[_Part]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            found = _columns(path, file.schema_arrow.names)
            start = 0
            for batch in file.iter_batches(batch_size=rows):
                if not len(batch):
                    continue
                places = range(start + 1, start + 1 + len(batch))
                time_ns = _arrow_times(batch.column(found.time_at), path, found.names[found.time_at], places)
                values = [_arrow_numbers(batch.column(i), path, found.names[i]) for i in found.value_at]
                at = found.label_at
                label = None if at is None else _arrow_numbers(batch.column(at), path, found.names[at])
                yield (
                    found.recording(path, time_ns, values, label),
                    lambda i, places=places: f"{path}:{places[i]}",  # type: ignore[misc]
                    lambda i, time_ns=time_ns: format_time(int(time_ns[i])),  # type: ignore[misc]
                )
                start += len(batch)
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file: {str(error).splitlines()[0]}") from None


def _arrow_numbers(column: "pyarrow.Array[Any]", path: Path, name: str) -> Float64:
    """A null is a missing value."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_boolean(column.type):
        column = column.cast(pyarrow.int8())
    if not (kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_decimal(column.type)):
        raise DataError(f"{path}: column {name}: holds {column.type}, not numbers; leave the column out")
    return np.asarray(column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _arrow_times(column: "pyarrow.Array[Any]", path: Path, name: str, places: Sequence[int]) -> Int64:
    import pyarrow

    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}:{places[at]}: column {name}: a row without a time")
    kinds = pyarrow.types
    if kinds.is_timestamp(column.type) or kinds.is_date(column.type):
        zone = column.type.tz if kinds.is_timestamp(column.type) else None
        return np.asarray(column.cast(pyarrow.timestamp("ns", zone)).cast(pyarrow.int64()).to_numpy(), np.int64)
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        return _times(column.to_pylist(), path, name, places)[0]
    seconds = _arrow_numbers(column, path, name)
    return _epoch_seconds(seconds, path, name, places, lambda at: f"{seconds[at]:.15g}")


def _write_parquet(path: Path, recording: Recording) -> None:
    import pyarrow
    import pyarrow.parquet

    titles = [f"{name} [{recording.units[name]}]" if name in recording.units else name for name in recording.channels]
    columns = {"time": pyarrow.array(recording.time_ns, pyarrow.timestamp("ns", "UTC"))}
    # from_pandas: NaN is written as what Parquet has for a missing value.
    columns |= {title: pyarrow.array(x, from_pandas=True) for title, x in zip(titles, recording.x, strict=True)}
    if recording.label is not None:
        columns["label"] = pyarrow.array(recording.label)
    with at_once(path) as draft:
        # Steps between times are all but equal: a hundredth of the size.
        pyarrow.parquet.write_table(
            pyarrow.table(columns), draft, use_dictionary=titles, column_encoding={"time": "DELTA_BINARY_PACKED"}
        )


def _numbers(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> npt.NDArray[np.float64]:
    """Text → numbers; an empty cell or `nan` is a missing value."""
    try:
        return np.array(column, dtype=np.float64)
    except ValueError:
        cells = [cell if cell.strip() else "nan" for cell in column]
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        line, cell = next(item for item in zip(lines, cells, strict=True) if not _reads(float, item[1]))
        raise DataError(f"{path}:{line}: column {name}: {cell!r} is not a number") from None


def _times(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> tuple[Int64, bool]:
    """Epoch seconds or RFC 3339 (a blank instead of the T is fine, no zone means UTC) → nanoseconds, and whether dates."""
    if not all(map(str.strip, column)):
        line = next(line for line, cell in zip(lines, column, strict=True) if not cell.strip())
        raise DataError(f"{path}:{line}: column {name}: a row without a time")
    try:
        seconds = np.array(column, dtype=np.float64)
    except ValueError:
        return _dates(column, path, name, lines), True
    return _epoch_seconds(seconds, path, name, lines, lambda at: column[at]), False


def _epoch_seconds(seconds: Float64, path: Path, name: str, lines: Sequence[int], shown: Callable[[int], str]) -> Int64:
    beyond = np.flatnonzero(~(np.abs(seconds) < _MAX_TIME_S))
    if len(beyond):
        at = int(beyond[0])
        raise DataError(f"{path}:{lines[at]}: column {name}: {shown(at)!r} is no time in seconds; divide milliseconds by 1000")
    return np.round(seconds * 1e9).astype(np.int64)


def _dates(column: Sequence[str], path: Path, name: str, lines: Sequence[int]) -> Int64:
    try:
        moments = [datetime.fromisoformat(cell.strip()) for cell in column]
    except ValueError:
        others = [item for item in zip(lines, column, strict=True) if not _reads(datetime.fromisoformat, item[1].strip())]
        line, cell = next((item for item in others if not _reads(float, item[1])), others[0])
        if _reads(float, cell):
            raise DataError(f"{path}:{line}: the time is {cell!r} here, dates and seconds in one file") from None
        raise DataError(
            f"{path}:{line}: column {name}: {cell!r} is neither epoch seconds nor a date like 2026-01-31T12:00:00Z"
        ) from None
    since = [(moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH for moment in moments]
    # Whole numbers: a float has no microseconds left.
    microseconds = [(past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds for past in since]
    return np.array(microseconds, np.int64) * 1000


def _reads(kind: Callable[[str], object], cell: str) -> bool:
    try:
        kind(cell)
    except ValueError:
        return False
    return True
