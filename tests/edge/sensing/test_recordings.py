"""What is not a recording is refused with file, line and column; what is comes back as it was written."""

import gzip
import math
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import CannotCreateError, DataError, NoInputError
from edge.sensing import recordings
from edge.sensing.recordings import (
    Recording,
    find_recordings,
    format_time,
    match_channels,
    read_parts,
    read_recording,
    write_recording,
)

# Bad input. Each message names the file, the line as an editor counts it, and the column, and says what is wrong.

BAD: list[tuple[str, str, str]] = [
    ("empty file", "", "{file}: the file is empty"),
    ("no time", "a,b\n1,2\n", "{file}: no time column; the header needs one of time, timestamp, datetime, it has: a, b"),
    ("no channel", "time,label\n1,0\n", "{file}: no channel beside the time column"),
    ("no rows", "time,a\n", "{file}: a header but no rows"),
    ("a name twice", "time,a,A\n1,2,3\n", "{file}: a column name appears twice: time, a, A"),
    ("too few values", "time,a\n1,2\n2\n", "{file}:3: 1 values, the header names 2"),
    ("too many values", "time,a\n1,2,3\n", "{file}:2: 3 values, the header names 2"),
    ("too many values after blank lines", "time,a\n1,2\n\n\n2,3,4\n", "{file}:5: 3 values, the header names 2"),
    ("no number", "time,a,b\n1,2,3\n2,3,x\n", "{file}:3: column b: 'x' is not a number"),
    ("no number after a blank line", "time,a\n1,2\n\n2,x\n", "{file}:4: column a: 'x' is not a number"),
    ("no number after an empty cell", "time,a\n1, \n2,x\n", "{file}:3: column a: 'x' is not a number"),
    ("a decimal comma", "time;a\n1;1,5\n", "{file}:2: column a: '1,5' is not a number"),
    ("no number in the label", "time,a,label\n1,2,yes\n", "{file}:2: column label: 'yes' is not a number"),
    ("a zero byte", "time,a\n1,2\0\n", "{file}:2: column a: "),
    (
        "no date",
        "time,a\n2026-01-01,1\nyesterday,2\n",
        "{file}:3: column time: 'yesterday' is neither epoch",
    ),
    ("no date after a blank line", "time,a\n2026-01-01,1\n\nx,2\n", "{file}:4: column time: 'x' is neither"),
    ("an empty time", "Timestamp,a\n1,1\n,2\n", "{file}:3: column Timestamp: "),
    ("time is nan", "time,a\n1,1\nnan,2\n", "{file}:3: column time: "),
    (
        "milliseconds",
        "time,a\n1767225600000,1\n1767225600001,2\n",
        "{file}:2: column time: '1767225600000' is no time",
    ),
    ("time stands still", "time,a\n1,1\n1,2\n", "{file}:3: time does not increase (1 after 1)"),
    ("time goes back after a blank line", "time,a\n1,1\n2,1\n\n1.5,2\n", "{file}:5: time does not increase (1.5 after 2)"),
    ("an endless cell", "time,a\n1," + "1" * 200_000 + "\n", "{file}:2: "),
]


@pytest.mark.parametrize(("text", "says"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_input_is_refused_with_file_line_and_column(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pump.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        read_recording(path)
    assert str(caught.value).startswith(says.format(file=path))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"\xff\xfet\0i\0", "not a text file"),
        ("a.csv.gz", b"time,a\n1,2\n", "not a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"time,a\n1,2\n", mtime=0)[:-5], "not a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 50, "not a whole gzip file"),
    ],
    ids=["another encoding", "no gzip file", "cut short", "damaged"],  # how gzip packs depends on Python
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=says):
        read_recording(tmp_path / name)


@given(st.text("time,al0123456789.-:TZ;\t\n\r\"' \0", max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_recording_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_text("time,a\n" + text, "utf-8")
        try:
            recording = read_recording(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert (np.diff(recording.time_ns) > 0).all()
            assert not np.isinf(recording.x).any()


# Good input.


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_names_of_time_and_labels(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "x.csv"
    text = "\ufeffdatetime,a, b ,changepoint,anomaly\n2026-01-01 00:00:00,1,,0,1\n2026-01-01T00:00:00.25Z,nan,2,1,0\n\n"
    path.write_text(text.replace(",", separator), "utf-8")
    recording = read_recording(path)
    assert recording.channels == ("a", "b")
    np.testing.assert_array_equal(recording.x, np.array([[1, math.nan], [math.nan, 2]], np.float32))
    assert recording.label is not None
    assert recording.label.tolist() == [1, 0], "the name that comes first in LABEL_NAMES"
    assert recording.rate_hz == 4.0


ZONES = [UTC, timezone(timedelta(hours=5))]
moments = st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1), timezones=st.sampled_from(ZONES))


@given(moments)
@settings(max_examples=100, deadline=None)
def test_dates_are_exact_to_the_microsecond(moment: datetime) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_text(f"time,a\n{moment.isoformat()},1\n", "utf-8")
        expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
        assert read_recording(path).time_ns.tolist() == [expected]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_written_comes_back(data: st.DataObject) -> None:
    n, channels = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    value = st.floats(width=32, allow_infinity=False)
    x = np.array(data.draw(st.lists(value, min_size=n * channels, max_size=n * channels)), np.float32).reshape(channels, n)
    steps = data.draw(st.lists(st.integers(1, 10**9), min_size=n, max_size=n))
    time_ns = 1_767_225_600_000_000_000 + np.cumsum(steps) * 1000
    label = np.arange(n).astype(np.int8) % 2 if data.draw(st.booleans()) else None
    recording = Recording("x", tuple("abcd"[:channels]), time_ns, x, label)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deeper" / data.draw(st.sampled_from(["x.csv", "x.csv.gz", "x.parquet"]))
        write_recording(path, recording)
        back = read_recording(path)
    assert back.channels == recording.channels
    assert np.array_equal(back.time_ns, time_ns)
    assert np.array_equal(back.x, x, equal_nan=True)
    assert (back.label is None) == (label is None)
    assert label is None or (back.label is not None and np.array_equal(back.label, label))


@given(st.lists(st.integers(-(10**19) // 2, 9 * 10**18), min_size=1, max_size=20, unique=True))
def test_stamps_in_a_file_are_those_of_format_time(time_ns: list[int]) -> None:
    time_ns.sort()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        write_recording(path, Recording("x", ("a",), np.array(time_ns), np.full((1, len(time_ns)), np.nan, np.float32)))
        rows = path.read_text().splitlines()[1:]
    assert rows == [f"{format_time(moment)}," for moment in time_ns], "and what is missing is written as nothing"


@pytest.mark.parametrize("date", [False, True])
@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("{time},high", "column a: 'high' is not a number"),
        (",5", "column time: a row without a time"),
        ("{time},5,6", "3 values, the header names 2"),
        ("x,5", "column time: 'x' is neither epoch seconds nor a date"),
        ("{before},5", "time does not increase"),
    ],
)
def test_the_row_is_named_wherever_it_is(tmp_path: Path, cell: str, says: str, date: bool) -> None:
    def time(i: int) -> str:
        return format_time(i * 10**9) if date else str(i)

    for at in (0, 255, 256, 700):
        rows = [f"{time(i)},{i % 7}" for i in range(1, 1001)]
        rows[at] = cell.format(time=time(at + 1), before=time(at - 1))
        if at:
            rows[at - 1] = "\n\n" + rows[at - 1]  # empty lines are skipped, and counted
        path = tmp_path / "x.csv"
        path.write_text("\n".join(["time,a", *rows]))
        if not at and "increase" in says:
            continue
        with pytest.raises(DataError) as caught:
            read_recording(path)
        assert str(caught.value).startswith(f"{path}:{at + 2 + 2 * bool(at)}: {says}")


def test_format_time() -> None:
    assert format_time(1_767_225_600_250_000_999) == "2026-01-01T00:00:00.250000Z"


def test_one_row_has_no_rate(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,a\n1,2\n")
    assert math.isnan(read_recording(tmp_path / "x.csv").rate_hz)


# Several.


def test_recordings_are_found_in_order_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("b.csv", "a.CSV.GZ", "sub/c.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.parquet").touch()
    assert [path.name for path in find_recordings([tmp_path])] == ["a.CSV.GZ", "b.csv", "d.parquet", "c.csv"]
    assert find_recordings([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    with pytest.raises(NoInputError, match="absent: no such file"):
        find_recordings([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match=r"no recordings in it.*\.csv"):
        find_recordings([tmp_path / "empty"])
    with pytest.raises(NoInputError, match="no such file"):
        read_recording(tmp_path / "absent.csv")


def test_channels_are_matched_by_name() -> None:
    recording = Recording("r.csv", ("a", "b", "c"), np.array([1]), np.array([[1], [2], [3]], np.float32))
    assert match_channels(recording, ("c", "a")).x.tolist() == [[3], [1]]
    with pytest.raises(DataError, match=r"r\.csv: no column d; it has a, b, c, the model needs a, d"):
        match_channels(recording, ("a", "d"))


def test_parts_and_streams() -> None:
    recording = Recording("r", ("a",), np.arange(10), np.arange(10, dtype=np.float32)[None], np.arange(10).astype(np.int8))
    assert [len(chunk) for chunk in recording.samples(4)] == [4, 4, 2]
    part = recording.part(3, 5)
    assert part.time_ns.tolist() == [3, 4]
    assert part.label is not None
    assert part.label.tolist() == [3, 4]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match=r"file.x\.csv: cannot be written"):
        write_recording(tmp_path / "file" / "x.csv", Recording("r", ("a",), np.array([1]), np.array([[1]], np.float32)))


def test_units_in_the_header_are_units_and_no_part_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("time,current [A],odd[,[],temperature [degC] \n1,1,2,3,4\n2,1,2,3,4\n")
    found = read_recording(path)
    assert found.channels == ("current", "odd[", "[]", "temperature")
    assert found.units == {"current": "A", "temperature": "degC"}
    write_recording(tmp_path / "again.csv", found)
    again = read_recording(tmp_path / "again.csv")
    assert (again.channels, again.units) == (found.channels, found.units)
    assert match_channels(found, ["temperature", "current"]).units == found.units


# In parts.


@given(st.integers(1, 7), st.integers(1, 9), st.sampled_from(["x.csv", "x.csv.gz", "x.parquet"]))
@settings(max_examples=40, deadline=None)
def test_parts_are_the_whole(rows: int, as_text: int, name: str) -> None:
    x = np.arange(40, dtype=np.float32).reshape(2, 20)
    whole = Recording(name, ("a", "b"), np.arange(20, dtype=np.int64) * 1000, x, np.arange(20).astype(np.int8) % 2, {"a": "A"})
    with tempfile.TemporaryDirectory() as folder, patch.object(recordings, "ROWS_AS_TEXT", as_text):
        write_recording(Path(folder) / name, whole)
        parts = list(read_parts(Path(folder) / name, rows))
    each = rows if name.endswith(".parquet") else rows // min(as_text, rows) * min(as_text, rows)
    assert [len(part.time_ns) for part in parts] == [each] * (20 // each) + ([20 % each] if 20 % each else [])
    np.testing.assert_array_equal(np.concatenate([part.time_ns for part in parts]), whole.time_ns)
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts], axis=1), x)
    assert all((part.name, part.channels, part.units) == (name, ("a", "b"), {"a": "A"}) for part in parts)


def test_order_holds_from_part_to_part_and_raw_is_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time,a\n1,1\n2,inf\n2,3\n")
    with pytest.raises(DataError, match=r"x\.csv:4: time does not increase \(2 after 1970-01-01T00:00:02"):
        list(read_parts(path, 2))
    raw = list(read_parts(path, 2, raw=True))
    assert [part.time_ns.tolist() for part in raw] == [[10**9, 2 * 10**9], [2 * 10**9]]
    assert math.isinf(raw[0].x[0, 1])


def test_dates_and_seconds_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time,a\n1,1\n2026-01-01,2\n")
    with pytest.raises(DataError, match=r":3: the time is '2026-01-01' here"):
        list(read_parts(path, 1))
    with pytest.raises(DataError, match=r":2: the time is '1' here, dates and seconds in one file"):
        read_recording(path)


# Parquet.


def parquet(path: Path, **columns: object) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    import pyarrow as pa

    moment = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    columns = {
        "Timestamp": [moment, moment + timedelta(milliseconds=250)],
        "current [A]": pa.array([1, None], pa.int64()),
        "on": [True, False],
        "label": [0, 1],
    }
    found = read_recording(parquet(tmp_path / "x.PARQUET", **columns))
    (tmp_path / "x.csv").write_text(
        "Timestamp,current [A],on,label\n2025-12-31T23:00:00Z,1,1,0\n2025-12-31T23:00:00.25Z,,0,1\n"
    )
    same = read_recording(tmp_path / "x.csv")
    assert (found.channels, found.units) == (same.channels, same.units) == (("current", "on"), {"current": "A"})
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.time_ns, same.time_ns)
    assert found.label is not None
    assert found.label.tolist() == [0, 1]


@pytest.mark.parametrize("time", [[1.5, 2.5], ["1970-01-01T00:00:01.5Z", "1970-01-01 00:00:02.5"], ["1.5", "2.5"]])
def test_parquet_times(tmp_path: Path, time: list[object]) -> None:
    found = read_recording(parquet(tmp_path / "x.parquet", time=time, a=[1.0, 2.0]))
    assert found.time_ns.tolist() == [1_500_000_000, 2_500_000_000]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": [1.0]}, "no time column"),
        ({"time": [1.0]}, "no channel beside"),
        ({"time": [], "a": []}, "a header but no rows"),
        ({"time": [1, 2], "a": ["x", "y"]}, "column a: holds string, not numbers"),
        ({"time": [1, 2], "a": [[1], [2]]}, "column a: holds list"),
        ({"time": [1.0, None], "a": [1, 2]}, ":2: column time: a row without a time"),
        ({"time": [2, 1], "a": [1, 2]}, ":2: time does not increase"),
        ({"time": [1767225600000, 1767225600001], "a": [1, 2]}, ":1: column time: '1767225600000' is no time"),
    ],
)
def test_parquet_that_is_no_recording(tmp_path: Path, columns: dict[str, object], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_recording(parquet(tmp_path / "x.parquet", **columns))
    assert str(caught.value).startswith(str(tmp_path / "x.parquet"))
    assert says in str(caught.value)


def test_what_is_called_parquet_and_is_not(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "x.parquet", time=[1], a=[1]).read_bytes()
    for content in (b"", b"time,a\n1,2\n", whole[:-20]):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.parquet: not a whole Parquet file") as caught:
            read_recording(tmp_path / "x.parquet")
        assert "\n" not in str(caught.value)
    with pytest.raises(NoInputError):
        read_recording(tmp_path / "absent.parquet")
