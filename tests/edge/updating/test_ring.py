"""The stream on disk: what comes back is what came, within the budget, whatever kills the writer."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import build, members_for

from edge.bundle import Bundle, write_bundle
from edge.errors import ConfigError
from edge.scoring.backends import run_in_slices
from edge.sensing.simulate import CHANNELS, RATE_HZ, Machine
from edge.signal import Samples
from edge.updating import ring as ring_module
from edge.updating.ring import Ring, recorded

MEGA = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def samples(start: int, n: int, channels: int = 2, rate_hz: float = 100.0, seed: int = 0) -> Samples:
    time_ns = np.rint(np.arange(start, start + n) * 1e9 / rate_hz).astype(np.int64)
    return Samples(time_ns, np.random.default_rng((seed, start)).normal(size=(channels, n)).astype(np.float32))


def open_ring(folder: Path, clock: Clock, **changes: object) -> Ring:
    kept: dict[str, object] = {"hours": 24.0, "max_bytes": 100 * MEGA, "bytes_per_day": 300 * MEGA, "stretch": 256, **changes}
    return Ring(folder, ("a", "b"), 100.0, clock=clock, **kept)  # type: ignore[arg-type]


def fed(ring: Ring, clock: Clock, seconds: float, *, begin: int = 0, chunk: int = 25) -> int:
    """Live, at 100 Hz; how many samples there were."""
    count = round(seconds * 100)
    for at in range(begin, begin + count, chunk):
        ring.add(samples(at, chunk))
        clock.now_s += chunk / 100
    return count


def read(ring: Ring) -> Iterator[Samples]:
    ring.flush()
    return recorded(ring.folder)


def joined(parts: Iterator[Samples]) -> Samples:
    kept = list(parts)
    return Samples(np.concatenate([p.time_ns for p in kept]), np.concatenate([p.x for p in kept], axis=1))


def test_what_comes_back_is_what_came(tmp_path: Path) -> None:
    clock = Clock()
    ring = open_ring(tmp_path, clock)
    clock.now_s = 60.0  # so long the bucket fills
    count = fed(ring, clock, 300)
    found = joined(read(ring))
    assert len(found) == count
    sent = joined(samples(at, 25) for at in range(0, count, 25))
    assert np.array_equal(found.time_ns, sent.time_ns)
    assert np.abs(found.x - sent.x).max() < 1e-4


def test_it_begins_with_nothing_to_spend_so_that_no_number_of_starts_writes_more(tmp_path: Path) -> None:
    clock = Clock()
    for start in range(50):
        ring = open_ring(tmp_path, clock)
        ring.add(samples(start * 10_000, 500))
        ring.close()
    assert ring.written == 0
    assert not list(tmp_path.glob("*"))


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.floats(-1e6, 1e6, width=32),
            st.just(np.nan),
            st.sampled_from([0.0, 1.0, 1e30, -1e30, 3e38, np.inf]),
        ),
        min_size=1,
        max_size=80,
    ),
    st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=80),
)
def test_values_within_the_rounding_and_stamps_within_an_eighth_of_a_sample(values: list[float], times: list[int]) -> None:
    n = min(len(values), len(times))
    x = np.array([values[:n]], np.float32)
    time_ns = np.array(times[:n], np.int64)
    period_ns = 1e7
    blocks = [
        payload for block in ring_module._blocks(time_ns, x, 0, period_ns) for _, payload, _ in ring_module._frames(block)
    ]
    found = joined(map(ring_module._samples, blocks))
    assert np.abs(found.time_ns - time_ns).max() <= period_ns / 8
    finite = np.isfinite(x)
    assert not np.isfinite(found.x[~finite]).any()
    assert np.isfinite(found.x[finite]).all()
    if finite.any():
        span = float(x[finite].max()) - float(x[finite].min())
        ulp = float(np.spacing(np.abs(x[finite]).max()))
        assert np.abs(found.x[finite].astype(np.float64) - x[finite]).max() <= span / 131068 * 1.01 + 2 * ulp


def test_one_absurd_value_does_not_flatten_the_others(tmp_path: Path) -> None:
    x = samples(0, 3000).x
    x[0, 1234] = 1e30
    payload = ring_module._packed(samples(0, 3000).time_ns, x, 0, 1e7)
    found = ring_module._samples(memoryview(payload))
    rest = np.arange(3000) != 1234
    assert np.abs(found.x[:, rest] - x[:, rest]).max() < 1e-3


def test_jitter_of_stamps_stays_a_hole_has_exact_ends_and_a_clock_that_jumps_back_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    even = np.rint(np.arange(3000) * 1e7).astype(np.int64)
    even[1000:] += 3_600_000_000_123
    even[2000:] -= 9_000_000_000_777
    jittered = even + rng.integers(-2_000_000, 2_000_000, 3000)
    clock = Clock()
    ring = open_ring(tmp_path, clock)
    clock.now_s = 1000.0
    for at in range(0, 3000, 100):
        ring.add(Samples(jittered[at : at + 100], np.zeros((2, 100), np.float32)))
    found = joined(read(ring))
    assert len(found) == 3000
    assert np.abs(found.time_ns - jittered).max() <= 1e7 / 8
    assert [int(found.time_ns[i] - jittered[i]) for i in (0, 1000, 2000)] == [0, 0, 0]
    assert [len(part) for part in recorded(tmp_path)] == [1000, 1000, 1000]


def of_machine(path: Path, length: int = 128, windows: int = 1200) -> tuple[Bundle, npt.NDArray[np.float32]]:
    x = Machine(3).next(length * windows * 2).x
    cut = x.reshape(len(CHANNELS), 2 * windows, length).transpose(1, 0, 2).copy()
    manifest, members = members_for(cut[:windows], CHANNELS, RATE_HZ, "mahalanobis", centred=True)
    write_bundle(path, manifest, members)
    return Bundle.open(path), cut[windows:]


def test_what_rounding_does_to_scores_is_nothing_and_float16_would_have_done_more(tmp_path: Path) -> None:
    """The figure in ADR 19."""
    bundle, windows = of_machine(tmp_path / "m.amiss")
    x = windows.transpose(1, 0, 2).reshape(len(CHANNELS), -1)
    time_ns = np.rint(np.arange(x.shape[1]) * 1e9 / RATE_HZ).astype(np.int64)
    parts = []
    for at in range(0, x.shape[1], 8192):
        payload = ring_module._packed(time_ns[at : at + 8192], x[:, at : at + 8192], at, 1e9 / RATE_HZ)
        parts.append(ring_module._samples(memoryview(payload)).x)
    rounded = np.concatenate(parts, axis=1).reshape(len(CHANNELS), len(windows), -1).transpose(1, 0, 2)

    def error(other: npt.NDArray[np.float32]) -> float:
        true, found = (
            bundle.head.scorer.score(run_in_slices(bundle.backend, np.ascontiguousarray(w))) for w in (windows, other)
        )
        return float(np.max(np.abs(found - true) / (1 + np.abs(true))))

    sixteen, halves = error(rounded), error(windows.astype(np.float16).astype(np.float32))
    print(f"largest error of a score, relative to 1 + score: 16 bits of the span {sixteen:.1e}, float16 {halves:.1e}")
    assert sixteen < 3e-3
    assert halves > 10 * sixteen


def test_over_the_budget_whole_stretches_are_kept_evenly(tmp_path: Path) -> None:
    clock = Clock()
    ring = open_ring(tmp_path, clock, bytes_per_day=10 * MEGA)
    count = fed(ring, clock, 3600, chunk=50)
    found = joined(read(ring))
    assert 0.03 < len(found) / count < ring.share * 1.15 < 0.9
    rows = np.split(found.time_ns, np.flatnonzero(np.diff(found.time_ns) > 2e7) + 1)
    assert {len(row) for row in rows} <= {256}
    apart = np.diff([int(row[0]) for row in rows])
    assert apart[1:].max() < 1.2 * np.median(apart), "evenly, but for what the first file costs"
    assert "2.56 s of every" in ring.sentence()


@pytest.mark.parametrize("budget", [10 * MEGA, 50 * MEGA])
def test_no_day_writes_more_than_the_budget(tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts, pauses and all; counted where the bytes are written, a page for each append and two for each name on top."""
    clock, chance, written = Clock(), random.Random(7), 0
    really, told, real = [0], 0, os.write

    def counted(descriptor: int, data: bytes) -> int:
        count = real(descriptor, data)
        really[0] += count + ring_module.PAGE
        return count

    monkeypatch.setattr(os, "write", counted)
    ring = open_ring(tmp_path, clock, bytes_per_day=budget, max_bytes=20 * MEGA, hours=4.0)
    at, day_s = 0, 0.0
    spent: list[int] = []
    while len(spent) < 2:
        for _ in range(chance.randint(25, 1000)):
            index = np.arange(at, at + 2000)
            ring.add(Samples(index * 10_000_000, np.ones((2, 2000), np.float32)))
            at += 2000
            clock.now_s += 20.0
        if chance.random() < 0.5:
            clock.now_s += chance.uniform(0, 7200)
        ring.close()
        written += ring.written
        told += ring.written
        ring = open_ring(tmp_path, clock, bytes_per_day=budget, max_bytes=20 * MEGA, hours=4.0)
        if clock.now_s - day_s >= 86400:
            spent.append(written)
            written, day_s = 0, clock.now_s
    assert max(spent) <= budget * (clock.now_s / 2 / 86400 + 0.1)
    assert min(spent) > 0.5 * budget, "the control: it would spend it"
    assert 0.8 * told < really[0] <= told
    assert sum(path.stat().st_size for path in tmp_path.glob("*")) <= 20 * MEGA


def test_the_oldest_goes_when_it_is_full_or_too_old(tmp_path: Path) -> None:
    clock = Clock()
    clock.now_s = 1e6
    ring = open_ring(tmp_path / "full", clock, max_bytes=200_000, hours=0.01)
    fed(ring, clock, 1200)
    ring.flush()
    first, last = (next(iter(recorded(tmp_path / "full"))), list(recorded(tmp_path / "full"))[-1])
    assert ring.size == sum(path.stat().st_size for path in (tmp_path / "full").glob("*")) <= 200_000
    assert last.time_ns[-1] == 119999 * 10_000_000
    assert first.time_ns[0] > 0
    old = open_ring(tmp_path / "old", clock, hours=0.2, max_bytes=100_000_000)
    fed(old, clock, 3600)
    old.flush()
    spanned_s = (3600e9 - int(next(iter(recorded(tmp_path / "old"))).time_ns[0])) / 1e9
    assert 720 <= spanned_s <= 720 * 1.15


def test_what_is_of_other_channels_is_thrown_away(tmp_path: Path) -> None:
    clock = Clock()
    ring = open_ring(tmp_path, clock)
    clock.now_s = 1000.0
    fed(ring, clock, 60)
    ring.close()
    Ring(tmp_path, ("a", "c"), 100.0, hours=1, max_bytes=MEGA, bytes_per_day=MEGA, stretch=64, clock=clock)
    assert not list(recorded(tmp_path))


def test_bytes_that_are_too_few_are_refused_when_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too small to try a model on"):
        open_ring(tmp_path, Clock(), max_bytes=10_000)


def test_a_disk_that_takes_nothing_costs_samples_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.now_s = 1000.0
    ring = open_ring(tmp_path, clock)
    fed(ring, clock, 60)
    ring.flush()
    whole, real = len(joined(recorded(tmp_path))), os.write

    def full(descriptor: int, data: bytes) -> int:
        real(descriptor, bytes(data)[:100])  # half a block gets there
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "write", full)
    fed(ring, clock, 40, begin=6000)
    ring.flush()
    assert len(joined(recorded(tmp_path))) == whole
    monkeypatch.setattr(os, "write", real)
    clock.now_s += 100
    fed(ring, clock, 60, begin=20000)
    found = joined(read(ring))
    assert len(found) == whole + 6000, "what was there is there, and it went on behind it"
    assert found.time_ns[-1] == 25999 * 10_000_000


# kill -9

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from edge.signal import Samples
from edge.updating import ring as module
module.APPEND_S = 0.0
if {torn}:
    def _write(self, data, _real=module.Ring._write):
        half = len(data) // 2
        _real(self, data[:half]); time.sleep(0.002)
        import os; os.write(self._descriptor, data[half:])
    module.Ring._write = _write
    module.APPEND_S = 0.0
begun = time.monotonic()
ring = module.Ring(Path({folder!r}), ("a", "b"), 100.0, hours=24, max_bytes=10_000_000, bytes_per_day=1 << 50, stretch=64,
                   clock=lambda: time.monotonic() * 1e6)
at = max(ring._position, 0)
print("go", flush=True)
while True:
    index = np.arange(at, at + 50)
    # Every value is known from its stamp.
    ring.add(Samples(index * 10_000_000, np.stack([np.sin(index), index % 7]).astype(np.float32)))
    at += 50
"""


def wrong(folder: Path) -> int:
    """Samples that are not what was written."""
    count = 0
    for part in recorded(folder):
        index = part.time_ns // 10_000_000
        count += int((np.abs(part.x - np.stack([np.sin(index), index % 7])) > 1e-3).any(axis=0).sum())
        count += int((part.time_ns % 10_000_000 != 0).sum())
    return count


def killed(folder: Path, rounds: int, *, torn: bool = True) -> list[int]:
    """After each kill: how many samples there are."""
    chance, found = random.Random(3), []
    for _ in range(rounds):
        code = WRITER.format(folder=str(folder), torn=torn)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.15))
            os.kill(process.pid, signal.SIGKILL)
        found.append(sum(map(len, recorded(folder))))
        assert wrong(folder) == 0
    return found


@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_whatever_moment_it_is_killed_at_what_is_read_is_what_was_written(tmp_path: Path, rounds: int) -> None:
    found = killed(tmp_path, rounds)
    assert found == sorted(found), "nothing that was read before is lost, and it is gone on with"
    assert found[-1] > found[0]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.ring")) <= 10_000_000


def test_without_the_check_a_torn_block_would_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: read by one that believes every checksum."""
    clock = Clock()
    clock.now_s = 1000.0
    ring = open_ring(tmp_path, clock)
    fed(ring, clock, 60)
    ring.close()
    (path,) = tmp_path.glob("*.ring")
    data = bytearray(path.read_bytes())
    sound = joined(recorded(tmp_path)).x
    data[-700:-188] = bytes(512)  # a sector that never got to the disk
    path.write_bytes(data)
    assert sum(map(len, recorded(tmp_path))) < sound.shape[1]

    def believed(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
        at = 0
        while at < len(data):
            length = ring_module._FRAME.unpack_from(data, at)[1]
            at += 12 + length
            yield data[at - length : at - length + 1], memoryview(data)[at - length : at], at

    monkeypatch.setattr(ring_module, "_frames", believed)
    assert np.abs(joined(recorded(tmp_path)).x - sound).max() > 0.1


@pytest.mark.parametrize(
    ("rate_hz", "channels", "most"),
    [(10_000.0, 3, 0.03), (100.0, 8, 0.003)],
)
def test_it_takes_little_of_a_core(tmp_path: Path, rate_hz: float, channels: int, most: float) -> None:
    """All of the signal, which is the dearest; processor time for a minute of it, in chunks of 20 ms or a few samples."""
    clock = Clock()
    names = tuple(f"c{i}" for i in range(channels))
    ring = Ring(tmp_path, names, rate_hz, hours=1, max_bytes=1 << 40, bytes_per_day=1 << 50, stretch=4096, clock=clock)
    chunk = max(4, round(rate_hz / 50))
    parts = [samples(at, chunk, channels, rate_hz) for at in range(0, round(60 * rate_hz), chunk)]
    clock.now_s = 10.0
    began = time.process_time()
    for part in parts:
        ring.add(part)
        clock.now_s += chunk / rate_hz
    ring.close()
    spent = (time.process_time() - began) / 60
    print(f"{rate_hz:g} Hz × {channels}: {spent:.2%} of a core")
    assert len(joined(recorded(tmp_path))) == len(parts) * chunk
    assert spent < most


def test_a_bundle_reads_it(tmp_path: Path) -> None:
    """The pipeline meets holes between stretches as it meets any other."""
    clock = Clock()
    ring = open_ring(tmp_path / "ring", clock, bytes_per_day=10 * MEGA)
    fed(ring, clock, 600)
    pipeline = Bundle.open(build(tmp_path / "b.amiss")).pipeline()
    kept = list(read(ring))
    count, samples = sum(len(pipeline.judge(part)) for part in kept), sum(map(len, kept))
    assert count > 0.9 * (samples / 4 - samples / 256 * 4) > 0
