"""Windows have no hidden gap, however the stream comes. Values say which sample they belong to."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Float32, Gap, Int64, Samples, Windows

RATE_HZ = 100.0
PERIOD_NS = 10_000_000
LENGTH, HOP = 12, 5


def stream(keep: list[int], channels: int = 2, nan: AbstractSet[tuple[int, int]] = frozenset()) -> Samples:
    """Samples number `keep` of an endless ramp, without the values (channel, number) in `nan`."""
    number = np.array(keep, np.int64)
    x = (number + 0.25 * np.arange(channels)[:, None]).astype(np.float32)
    for channel, at in nan:
        x[channel, number == at] = np.nan
    return Samples(10**12 + number * PERIOD_NS, x)


def windower(max_fill: int = 3, jitter_s: float = 0.0, channels: int = 2) -> Windower:
    return Windower(channels, RATE_HZ, LENGTH, HOP, MissingPolicy(max_fill=max_fill, jitter_s=jitter_s))


def feed(made: Windower, samples: Samples, cuts: list[int] | None = None) -> Windows:
    """All windows of a stream that is fed in pieces."""
    edges = [0, *sorted(min(cut, len(samples)) for cut in cuts or []), len(samples)]
    parts = [made.feed(Samples(samples.time_ns[a:b], samples.x[:, a:b])) for a, b in pairwise(edges)]
    return Windows(
        np.concatenate([part.start_ns for part in parts]),
        np.concatenate([part.end_ns for part in parts]),
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.fresh for part in parts]),
        tuple(gap for part in parts for gap in part.gaps),
    )


def number(time_ns: Int64) -> Int64:
    return (time_ns - 10**12) // PERIOD_NS


def named(gaps: tuple[Gap, ...]) -> list[Gap]:
    """Gaps with the numbers of samples in place of times."""
    at = [(gap.start_ns - 10**12) // PERIOD_NS for gap in gaps]
    ends = [None if gap.end_ns is None else (gap.end_ns - 10**12) // PERIOD_NS for gap in gaps]
    return [Gap(start, end, gap.reason) for start, end, gap in zip(at, ends, gaps, strict=True)]


# An independent statement of what windows are: one sample at a time, no arrays.


@dataclass
class Plain:
    max_fill: int
    channels: int = 2

    def windows(self, samples: Samples) -> tuple[list[tuple[int, list[list[float]]]], list[Gap]]:
        out: list[tuple[int, list[list[float]]]] = []
        gaps: list[Gap] = []
        run: list[tuple[int, list[float]]] = []  # usable samples without a gap, from where the next window begins
        hold, held = [float("nan")] * self.channels, [0] * self.channels
        last: int | None = None
        good: int | None = None
        missing = False

        def one(at: int, values: list[float]) -> None:
            nonlocal run, missing, good
            for c in range(self.channels):
                if values[c] == values[c]:
                    hold[c], held[c] = values[c], 0
                else:
                    held[c] += 1
            if all(held[c] <= self.max_fill and hold[c] == hold[c] for c in range(self.channels)):
                if missing:
                    gaps.append(Gap(at if good is None else good, at, "missing"))
                    missing = False
                good = at
                run.append((at, list(hold)))
                if len(run) == LENGTH:
                    out.append((run[0][0], [value for _, value in run]))
                    run = run[HOP:]
            else:
                if not missing:
                    gaps.append(Gap(at if good is None else good, None, "missing"))
                missing, run = True, []

        for at, values in zip(number(samples.time_ns).tolist(), samples.x.T.tolist(), strict=True):
            if last is not None and at != last + 1:
                if 0 < at - last - 1 <= self.max_fill:
                    for between in range(last + 1, at):
                        one(between, [float("nan")] * self.channels)
                else:
                    gaps.append(Gap(last, at, "silence" if at > last else "backwards"))
                    run = []
                    hold, held = [float("nan")] * self.channels, [0] * self.channels
            one(at, values)
            last = at
        return out, gaps


keeps = st.sets(st.integers(0, 119), min_size=1).map(sorted) | st.sets(st.integers(0, 119), max_size=6).map(
    lambda lost: [i for i in range(120) if i not in lost]
)
nans = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 119)), max_size=25)
cuttings = st.lists(st.integers(0, 120), max_size=12)


@given(keeps, nans, cuttings, st.integers(0, 4))
@settings(max_examples=400, deadline=None)
def test_windows_and_gaps_are_those_of_the_plain_statement(
    keep: list[int], nan: set[tuple[int, int]], cuts: list[int], max_fill: int
) -> None:
    samples = stream(keep, nan=nan)
    expected, gaps = Plain(max_fill).windows(samples)
    got = feed(windower(max_fill), samples, cuts)
    assert number(got.start_ns).tolist() == [start for start, _ in expected]
    assert got.x.transpose(0, 2, 1).tolist() == [values for _, values in expected]
    assert named(got.gaps) == gaps


@given(keeps, nans, cuttings, st.sampled_from([(2, 1), (3, 7), (12, 12), (8, 20)]))
@settings(max_examples=100, deadline=None)
def test_how_the_stream_is_split_changes_nothing(
    keep: list[int], nan: set[tuple[int, int]], cuts: list[int], shape: tuple[int, int]
) -> None:
    samples = stream(keep, nan=nan)
    whole, split = (Windower(2, RATE_HZ, *shape) for _ in range(2))
    a, b = feed(whole, samples), feed(split, samples, cuts)
    for one, other in ((a.start_ns, b.start_ns), (a.end_ns, b.end_ns), (a.x, b.x)):
        assert np.array_equal(one, other)
    assert a.gaps == b.gaps
    assert (whole.filled, whole.lost) == (split.filled, split.lost)


def spans_a_gap(windows: Windows, max_fill: int) -> bool:
    """Whether a window holds a value that is older than it may be: with ramps, a hole is a value that is too low or high."""
    first = windows.x[:, :1, :1].astype(np.float64)
    age = first + np.arange(windows.x.shape[2]) - windows.x[:, :1]
    return bool((np.abs(age) > max_fill).any())


@given(keeps, cuttings, st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_no_window_spans_a_gap(keep: list[int], cuts: list[int], max_fill: int) -> None:
    windows = feed(windower(max_fill), stream(keep), cuts)
    assert not spans_a_gap(windows, max_fill)
    assert np.isfinite(windows.x).all()
    assert (windows.end_ns - windows.start_ns == (LENGTH - 1) * PERIOD_NS).all()
    for gap in windows.gaps:
        assert gap.end_ns is not None
        assert not ((windows.start_ns <= gap.start_ns) & (windows.end_ns >= gap.end_ns)).any()


def test_with_too_much_tolerance_windows_would_span_gaps() -> None:
    """Negative control of the test above: jitter that nobody has hides holes."""
    keep = [i for i in range(120) if not 40 <= i < 50]
    assert spans_a_gap(feed(windower(jitter_s=1.0), stream(keep)), 3)
    assert not spans_a_gap(feed(windower(), stream(keep)), 3)


# Missing values.


@pytest.mark.parametrize(("hole", "gaps"), [(1, 0), (3, 0), (4, 1), (30, 1)])
def test_a_hole_in_one_channel_is_filled_up_to_the_limit(hole: int, gaps: int) -> None:
    nan = {(1, i) for i in range(40, 40 + hole)}
    made = windower()
    windows = feed(made, stream(list(range(120)), nan=nan))
    assert len(windows.gaps) == 2 * gaps  # one when it begins, one when it is over
    assert np.isfinite(windows.x).all()
    assert made.filled == min(hole, 3)
    if gaps:
        # The three samples that could be filled are good, the gap begins behind them.
        assert named(windows.gaps) == [Gap(42, None, "missing"), Gap(42, 40 + hole, "missing")]
        assert made.lost == hole - 3


def test_a_channel_that_never_has_a_value_gives_no_window_and_one_open_gap() -> None:
    windows = feed(windower(), stream(list(range(120)), nan={(0, i) for i in range(120)}), [10, 50])
    assert not len(windows)
    assert [(gap.end_ns, gap.reason) for gap in windows.gaps] == [(None, "missing")]


def test_infinity_is_as_missing_as_nan() -> None:
    samples = stream(list(range(60)))
    samples.x[0, 20] = np.inf
    samples.x[1, 30:40] = -np.inf
    windows = feed(windower(), samples)
    assert np.isfinite(windows.x).all()
    assert windows.gaps


def test_without_filling_every_missing_value_is_a_gap() -> None:
    assert len(feed(windower(max_fill=0), stream(list(range(60)), nan={(0, 30)})).gaps) == 2
    assert len(feed(windower(max_fill=0), stream([i for i in range(60) if i != 30])).gaps) == 1


# Clocks.


@given(st.lists(st.integers(-4_900_000, 4_900_000), min_size=120, max_size=120), cuttings)
@settings(max_examples=60, deadline=None)
def test_jitter_of_less_than_a_quarter_period_each_way_is_no_gap(jitter_ns: list[int], cuts: list[int]) -> None:
    regular = stream(list(range(120)))
    samples = Samples(regular.time_ns + np.array(jitter_ns) // 2, regular.x)
    windows = feed(windower(), samples, cuts)
    assert not windows.gaps
    assert len(windows) == (120 - LENGTH) // HOP + 1


@pytest.mark.parametrize("speed", [0.99, 1.01, 1.2])
def test_a_sensor_with_a_wrong_rate_never_looks_like_a_gap(speed: float) -> None:
    regular = stream(list(range(5000)))
    samples = Samples((regular.time_ns * speed).astype(np.int64), regular.x)
    assert not feed(windower(), samples).gaps


def test_lumps_of_arrival_need_the_declared_jitter() -> None:
    regular = stream(list(range(200)))
    lumpy = Samples(regular.time_ns // 50_000_000 * 50_000_000, regular.x)
    assert not feed(windower(jitter_s=0.05), lumpy).gaps
    assert feed(windower(), lumpy).gaps or len(feed(windower(), lumpy)) > len(feed(windower(), regular))  # negative control


@given(st.integers(1, 10**6), st.integers(20, 60))
@settings(max_examples=50, deadline=None)
def test_a_clock_that_jumps_back_is_a_gap_and_goes_on_from_there(jump: int, at: int) -> None:
    a, b = stream(list(range(at))), stream(list(range(60)))
    samples = Samples(np.concatenate([a.time_ns, b.time_ns - jump * PERIOD_NS]), np.concatenate([a.x, b.x + 1000], axis=1))
    windows = feed(windower(), samples)
    assert [gap.reason for gap in windows.gaps] == ["backwards"]
    assert not any((window[0] < 1000).any() and (window[0] >= 1000).any() for window in windows.x)
    assert (windows.x[-1] >= 1000).all()


# For ever.


def held_bytes(made: Windower) -> int:
    return sum(value.nbytes for value in vars(made).values() if isinstance(value, np.ndarray))


def test_memory_does_not_grow() -> None:
    rng = np.random.default_rng(0)
    made, at, most = windower(), 0, 0
    for _ in range(3000):
        n = int(rng.integers(1, 60))
        at += int(rng.choice([0, 0, 0, 2, 50]))
        made.feed(stream(list(range(at, at + n))))
        at += n
        most = max(most, held_bytes(made))
    assert most < 10_000
    made.feed(stream(list(range(at, at + 50_000))))
    assert held_bytes(made) > 400_000
    for first in range(at + 50_000, at + 150_000, 50):
        made.feed(stream(list(range(first, first + 50))))
    assert held_bytes(made) < 10_000, "a burst is not kept"


def test_windows_are_read_only_and_own_their_values() -> None:
    made = windower()
    samples = stream(list(range(20)))
    first = made.feed(samples)
    kept: Float32 = first.x.copy()
    made.feed(stream(list(range(20, 500))))
    samples.x[:] = 0
    assert np.array_equal(first.x, kept)
    with pytest.raises(ValueError, match="read-only"):
        first.x[0, 0, 0] = 1


@pytest.mark.parametrize(("channels", "rate", "length", "hop"), [(0, 1, 2, 1), (1, 0, 2, 1), (1, 1, 1, 1), (1, 1, 2, 0)])
def test_windows_that_cannot_be_are_refused(channels: int, rate: float, length: int, hop: int) -> None:
    with pytest.raises(ValueError, match="no windows"):
        Windower(channels, rate, length, hop)


def test_samples_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels, not 2"):
        windower().feed(stream([0], channels=3))


def test_windows_that_were_handed_out_never_change() -> None:
    """They are views of the windower's memory: a gap, a burst and all that comes later must write elsewhere."""
    windower = Windower(1, 100.0, 8, 1)
    time_ns = np.arange(300, dtype=np.int64) * 10_000_000
    time_ns[150:] += 10**9  # a gap within one feed
    x = np.arange(300, dtype=np.float32)[None]
    first = windower.feed(Samples(time_ns, x))
    kept = first.x.copy()
    assert np.array_equal(kept[:, 0, 0], np.r_[np.arange(143), np.arange(150, 293)])
    for chunk in range(50):
        windower.feed(Samples(time_ns + (chunk + 1) * 10**10, -x))
    assert np.array_equal(first.x, kept)
    with pytest.raises(ValueError, match="read-only"):
        first.x[0, 0, 0] = 1.0
