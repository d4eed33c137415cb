"""Windows on disk are those that the device's windower cuts, to the bit, and leave nothing behind."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import StorageError
from edge.sensing.recordings import Recording
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Samples
from trainer.windows import Spool, Strip, WindowArray, WindowSet, batches, lay_out

SECOND = 1_000_000_000


def in_parts(recording: Recording, sizes: list[int]) -> list[Recording]:
    edges = [0, *np.cumsum(sizes).tolist(), len(recording.time_ns)]
    return [recording.part(a, b) for a, b in pairwise(edges) if a < min(b, len(recording.time_ns))]


def laid_out(parts: list[Recording], length: int, hop: int, missing: MissingPolicy) -> tuple[WindowSet, Strip]:
    store = Spool(len(parts[0].channels))
    store.append(np.zeros((3, len(parts[0].channels))))  # what another recording left there
    strip = lay_out(parts, 1.0, length, hop, missing, store, Spool(3, np.int64))
    return WindowSet(store, strip.start, len(parts[0].channels), length), strip


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """With jitter, holes short and long, missing values in one channel or in all."""
    n, channels = draw(st.integers(1, 80)), draw(st.integers(1, 3))
    steps = draw(st.lists(st.sampled_from([1.0] * 12 + [0.7, 1.3, 2.0, 3.0, 4.1, 5.0, 9.0, 0.2]), min_size=n, max_size=n))
    time_ns = np.cumsum(np.array(steps) * SECOND).astype(np.int64)
    x = np.random.default_rng(n).normal(size=(channels, n)).astype(np.float32)
    for at, wide, channel in draw(
        st.lists(st.tuples(st.integers(0, n), st.integers(1, 6), st.integers(0, channels)), max_size=5)
    ):
        x[slice(None) if channel == channels else channel, at : at + wide] = np.nan
    return Recording("r", tuple("abc"[:channels]), time_ns, x)


@given(
    recordings(),
    st.lists(st.integers(1, 30), max_size=6),
    st.integers(2, 20),
    st.integers(1, 25),
    st.integers(0, 4),
)
@settings(max_examples=300, deadline=None)
def test_windows_are_the_windowers(recording: Recording, sizes: list[int], length: int, hop: int, max_fill: int) -> None:
    missing = MissingPolicy(max_fill=max_fill)
    expected = Windower(len(recording.channels), 1.0, length, hop, missing).feed(Samples(recording.time_ns, recording.x))
    windows, strip = laid_out(in_parts(recording, sizes), length, hop, missing)
    assert windows.shape == expected.x.shape
    np.testing.assert_array_equal(windows[:], expected.x)
    np.testing.assert_array_equal(strip.first, np.searchsorted(recording.time_ns, expected.start_ns))
    np.testing.assert_array_equal(strip.last, np.searchsorted(recording.time_ns, expected.end_ns))


def ramp(n: int) -> Recording:
    x = np.arange(n, dtype=np.float32)[None].repeat(2, axis=0)
    return Recording("r", ("a", "b"), np.arange(n, dtype=np.int64) * SECOND, x)


def test_indexed_as_an_array_is(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, _ = laid_out([ramp(100)], 8, 3, MissingPolicy())
    whole = windows[:]
    as_array: WindowArray = whole  # a plain array serves as well
    for index in (np.array([5, 0, 5]), np.empty(0, np.int64), slice(2, 9, 3), slice(0, 0)):
        np.testing.assert_array_equal(windows[index], as_array[index])
        assert windows[index].dtype == np.float32
    monkeypatch.setattr("trainer.windows.BATCH_BYTES", 7 * whole[0].nbytes)
    np.testing.assert_array_equal(np.concatenate(list(batches(windows))), whole)
    assert [len(batch) for batch in batches(as_array, np.arange(0, 20, 2))] == [7, 3]
    got = windows[:1]
    got[:] = -1  # a copy: what is stored stays
    assert windows[:1][0, 0, 0] == 0


def test_no_window_is_an_empty_array() -> None:
    windows, _ = laid_out([ramp(4)], 8, 3, MissingPolicy())
    assert (len(windows), windows[:].shape) == (0, (0, 2, 8))


def test_pages_given_back_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.windows.FORGET_BYTES", 1)
    windows, _ = laid_out([ramp(20_000)], 8, 3, MissingPolicy())
    np.testing.assert_array_equal(windows[:], windows[:])


def test_files_have_no_name(tmp_path: Path) -> None:
    store = Spool(2, folder=tmp_path)
    store.append(np.ones((10, 2)))
    assert store.array().sum() == 20
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent: the samples cannot be put there.*TMPDIR"):
        Spool(1, folder=tmp_path / "absent")
    full = Spool(1024)
    with open("/dev/full", "wb", buffering=0) as device:
        full._file = device  # type: ignore[assignment]
        with pytest.raises(StorageError, match="No space left"):
            full.append(np.ones((100, 1024)))
