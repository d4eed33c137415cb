"""Binary frames: no wrong value gets through, and what was lost is known."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from cobs import cobs
from hypothesis import given, settings
from hypothesis import strategies as st

import edge.sensing.decoders.frames as frames
from edge.errors import ConfigError
from edge.sensing.decoders.frames import MAX_ENCODED, FrameDecoder, cobs_decode, cobs_encode, encode_frame
from edge.sensing.windows import Windower
from edge.signal import Float32
from edge.testing import feed_all

PERIOD_NS = 2_500_000.0  # 400 Hz
N = 8


def ramp(n: int, channels: int = 2) -> Float32:
    """Values that say which sample they belong to."""
    return (np.arange(n) + 0.25 * np.arange(channels)[:, None]).astype(np.float32)


def cut(x: Float32, n: int = N, sequence: int = 0, time_us: int = 1_000_000, scale: float | None = None) -> list[bytes]:
    return [
        encode_frame(x[:, at : at + n], sequence + at, time_us + round(at * PERIOD_NS / 1000), scale)
        for at in range(0, x.shape[1], n)
    ]


def decoder(clock: str = "arrival", channels: str = "ab", columns: str = "ab") -> FrameDecoder:
    return FrameDecoder(columns, channels, PERIOD_NS, "sensor" if clock == "sensor" else "arrival")


# What goes over the wire.


def test_the_examples_of_the_document_are_what_the_code_does() -> None:
    text = (Path(__file__).parents[3] / "docs/wire-format.md").read_text("utf-8")
    payload, wire, payload16, wire16 = (bytes.fromhex(line) for line in re.findall(r"(?m)^    ((?:[0-9a-f]{2} ?){24,})$", text))
    x = np.array([[1.0, -2.5], [0.25, np.nan]], np.float32)
    for body, sent, scale in ((payload, wire, None), (payload16, wire16, 0.25)):
        assert encode_frame(x, 300, 1_500_000, scale) == sent
        assert cobs.decode(sent[:-1]) == body
        assert zlib.crc32(body[:-4]) == int.from_bytes(body[-4:], "little")
        samples = decoder("sensor").feed(sent, 0)
        assert np.array_equal(samples.x, x, equal_nan=True)
        assert samples.time_ns.tolist() == [1_500_000_000, 1_502_500_000]
    assert "3a72196e" in text
    assert zlib.crc32(payload[:-4]) == 0x3A72196E
    assert str(MAX_ENCODED) in text


@given(st.binary(max_size=1200) | st.lists(st.sampled_from([b"\0", b"\1", b"x" * 253, b"y" * 254, b"z" * 255])).map(b"".join))
def test_cobs_agrees_with_an_independent_implementation(data: bytes) -> None:
    if data:
        assert cobs_decode(cobs.encode(data)) == bytearray(data)
    assert cobs.decode(cobs_encode(data)) == data
    assert b"\0" not in cobs_encode(data)


@given(st.binary(max_size=600).map(lambda data: data.replace(b"\0", b"\1")))
def test_cobs_refuses_what_an_independent_implementation_refuses(data: bytes) -> None:
    try:
        expected: bytearray | None = bytearray(cobs.decode(data))
    except cobs.DecodeError:
        expected = None
    if data:
        assert cobs_decode(data) == expected


@given(st.data())
@settings(max_examples=60)
def test_every_frame_comes_back(data: st.DataObject) -> None:
    channels, samples = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    value = st.floats(width=32, allow_infinity=False)
    flat = data.draw(st.lists(value, min_size=channels * samples, max_size=channels * samples))
    x = np.array(flat, np.float32).reshape(channels, samples)
    sequence, time_us = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 2**53))
    names = [f"c{i}" for i in range(channels)]
    samples_ = FrameDecoder(names, names[::-1], PERIOD_NS, "sensor").feed(encode_frame(x, sequence, time_us), 0)
    assert np.array_equal(samples_.x, x[::-1], equal_nan=True)
    assert samples_.time_ns[0] == time_us * 1000


def test_int16_is_exact_to_half_a_step_and_clips_instead_of_wrapping() -> None:
    x = np.array([[-1.0, 0.004, 5.0, 1e6, -1e6, np.nan]], np.float32)
    got = FrameDecoder("a", "a", PERIOD_NS).feed(encode_frame(x, 0, 0, scale=0.01), 0).x
    np.testing.assert_allclose(got, [[-1.0, 0.0, 5.0, 327.67, -327.67, np.nan]], atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (256, 1), (1, 256), (64, 64)])
def test_what_does_not_fit_a_frame_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="hold"):
        encode_frame(np.zeros(shape), 0, 0)


def test_the_largest_frame_fits() -> None:
    x = ramp(255, 8)[:, :255]
    sent = encode_frame(x, 0, 0)
    assert 8100 < len(sent) <= MAX_ENCODED + 1
    assert np.array_equal(FrameDecoder("abcdefgh", "abcdefgh", PERIOD_NS).feed(sent, 0).x, x)


# Damage. What a noisy line does is in tests/soak/test_serial.py.


@given(st.integers(0, 2**32 - 1), st.data())
def test_any_single_damaged_byte_costs_the_frame_and_nothing_else(seed: int, data: st.DataObject) -> None:
    x = ramp(4 * N)
    sent = cut(x)
    at = data.draw(st.integers(0, len(sent[1]) - 2))
    mask = data.draw(st.integers(1, 255))
    hit = bytearray(sent[1])
    hit[at] ^= mask
    made = decoder()
    got = made.feed(sent[0] + bytes(hit) + sent[2] + sent[3], 0).x
    assert np.array_equal(got, np.delete(x, range(N, 2 * N), axis=1))
    assert made.lost == N
    assert 1 <= made.corrupt <= 2  # two when the damage makes a delimiter


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: 2}, "version 2"),
        ({1: 7}, "kind 7"),
        ({2: 3}, "3 channels"),
        ({2: 1}, "1 channels"),
        ({3: 0}, "contradicts"),
        ({3: N + 1}, "contradicts"),
        ({3: N - 1}, "contradicts"),
        ({15: 0x80}, "contradicts"),
        ({1: 1}, "contradicts"),
    ],
)
def test_a_header_that_lies_under_a_right_checksum_is_refused(change: dict[int, int], says: str) -> None:
    body = bytearray(cobs.decode(cut(ramp(N))[0][:-1])[:-4])
    for at, value in change.items():
        body[at] = value
    made = decoder()
    assert not len(made.feed(cobs.encode(bytes(body) + zlib.crc32(body).to_bytes(4, "little")) + b"\0", 0))
    assert made.corrupt == 1
    assert says in made.trouble


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_makes_no_sense_is_refused(scale: float) -> None:
    made = decoder()
    with np.errstate(all="ignore"):
        sent = encode_frame(np.full((2, 3), np.nan), 0, 0, scale=scale)
    assert not len(made.feed(sent, 0))
    assert "scale" in made.trouble


def test_infinity_is_a_missing_value() -> None:
    assert np.isnan(decoder().feed(encode_frame([[np.inf], [-np.inf]], 0, 0), 0).x).all()


def test_a_frame_that_does_not_end_is_dropped_once_and_not_kept() -> None:
    made = decoder()
    for _ in range(100):
        made.feed(b"\xaa" * 1000, 0)
        assert len(made._pending) <= MAX_ENCODED
    assert made.corrupt == 1
    assert len(made.feed(b"\0" + cut(ramp(N))[0], 0)) == N
    assert made.corrupt == 1


def test_after_a_port_was_opened_again_the_torn_frame_is_no_damage() -> None:
    a, b, c = cut(ramp(3 * N))
    made = decoder()
    made.feed(a[:10], 0)
    made.reset()
    assert made.feed(b[10:] + c, 1).x[0, 0] == 2 * N
    assert made.corrupt == 0
    made.feed(b"\x05abc\0", 2)
    assert made.corrupt == 1, "only the first piece is excused"


# Sequence numbers.


def test_lost_frames_are_counted_to_the_sample_also_across_the_wrap() -> None:
    start = 2**32 - 20 * N
    sent = cut(ramp(40 * N), sequence=start)
    made = decoder()
    feed_all(made, sent[:15] + sent[18:21] + sent[25:], step_ns=round(N * PERIOD_NS))
    assert made.lost == 7 * N
    assert made.corrupt == 0


def test_a_repeated_frame_is_dropped() -> None:
    a, b = cut(ramp(2 * N))
    made = decoder()
    assert np.array_equal(made.feed(a + a + b + b + b, 0).x, ramp(2 * N))
    assert (made.lost, made.corrupt) == (0, 0)


@pytest.mark.parametrize("sequence", [0, 5 * N, 2**31 + 1, 3_000_000_000, 2**32 - N])
@pytest.mark.parametrize("clock", ["arrival", "sensor"])
def test_a_device_that_starts_again_has_lost_nothing_that_can_be_counted(sequence: int, clock: str) -> None:
    made = decoder(clock)
    first = made.feed(b"".join(cut(ramp(4 * N), sequence=sequence, time_us=90_000_000)), 10**9)
    again = made.feed(b"".join(cut(ramp(4 * N), time_us=20_000)), 4 * 10**9)
    assert made.lost == 0
    assert len(first) == len(again) == 4 * N
    if clock == "sensor":
        assert again.time_ns[0] == 20_000_000
    else:
        assert again.time_ns[-1] == 4 * 10**9


def test_a_start_that_also_sets_the_devices_clock_has_lost_nothing_either() -> None:
    made = decoder()
    made.feed(encode_frame(ramp(N), 4000, 10_000_000), 0)
    made.feed(encode_frame(ramp(N), 0, 1_767_225_600_000_000), 10**9)
    assert made.lost == 0


def test_a_start_without_a_clock_is_known_by_the_impossible_number_of_lost_samples() -> None:
    made = decoder()
    made.feed(encode_frame(ramp(N), 3_000_000_000, 0), 0)
    made.feed(encode_frame(ramp(N), 0, 0), 10**9)
    assert made.lost == 0


@pytest.mark.parametrize("together", [True, False])
def test_no_window_spans_a_start_even_when_it_hides_in_one_chunk(together: bool) -> None:
    before, after = cut(ramp(10 * N), time_us=90_000_000), cut(ramp(10 * N) + 1000, time_us=20_000)
    made = decoder()
    chunks = [b"".join(before + after)] if together else [b"".join(before), b"".join(after)]
    samples = feed_all(made, chunks, step_ns=1_000_000)
    windows = Windower(2, 400, 16, 4).feed(samples)
    assert [gap.reason for gap in windows.gaps] == ["silence"]
    assert all((window[0] >= 1000).all() or (window[0] < 1000).all() for window in windows.x)


# Stamps.


def arrivals(
    rng: np.random.Generator, frames_: list[bytes], jitter_s: float, period_ns: float = PERIOD_NS
) -> list[tuple[bytes, int]]:
    """Frames in the chunks and at the moments in which a host sees them: never early, up to `jitter_s` late, in order."""
    out, pending, at_ns = [], b"", 0
    for i, frame in enumerate(frames_, 1):
        pending += frame
        at_ns = max(at_ns, round(10**9 + i * N * period_ns + rng.uniform(0, jitter_s) * 1e9))
        if rng.random() < 0.5 or i == len(frames_):
            out.append((pending, at_ns))
            pending = b""
    return out


@given(st.integers(0, 10**6), st.sets(st.integers(1, 98), max_size=20), st.floats(0.97, 1.03))
@settings(max_examples=40, deadline=None)
def test_on_arrival_the_only_holes_are_lost_frames_and_each_is_as_wide_as_what_it_lacks(
    seed: int, lost: set[int], speed: float
) -> None:
    """… with jitter of twenty frames' length and a sensor whose own clock is wrong by up to 3 %."""
    sent = cut(ramp(100 * N))
    made = FrameDecoder("ab", "ab", PERIOD_NS, "arrival", jitter_s=0.45)
    stream = arrivals(np.random.default_rng(seed), sent, 0.4, PERIOD_NS * speed)
    chunks = [(b"".join(f for f in cut_again(chunk) if sent.index(f) not in lost), at) for chunk, at in stream]
    parts = [made.feed(chunk, at) for chunk, at in chunks]
    number = np.concatenate([part.x[0] for part in parts]).astype(int)
    stamps = np.concatenate([part.time_ns for part in parts])
    steps = np.diff(stamps) / PERIOD_NS
    assert made.lost == N * sum(1 for i in lost if i < max(set(range(100)) - lost) and i > min(set(range(100)) - lost))
    assert np.all(np.abs(steps - np.diff(number)) <= 0.11)
    truth = 10**9 + (number + 1) * PERIOD_NS * speed
    assert np.abs(stamps - truth).max() < 0.95e9


def cut_again(chunk: bytes) -> list[bytes]:
    return [piece + b"\0" for piece in chunk.split(b"\0")[:-1]]


def test_stamps_from_the_moment_of_arrival_alone_would_show_holes_that_are_none() -> None:
    """Negative control of the test above: the stream as it is stamped without counting."""
    rng = np.random.default_rng(0)
    stream = arrivals(rng, cut(ramp(100 * N)), 0.4)
    naive = []
    for chunk, at in stream:
        n = N * len(cut_again(chunk))
        naive.append(at - np.arange(n)[::-1] * PERIOD_NS)
    steps = np.diff(np.concatenate(naive)) / PERIOD_NS
    assert (steps > 1.5).any()
    assert (steps < 0).any()


def test_silence_leaves_a_hole_though_no_number_is_missing() -> None:
    """A sensor that pauses without counting on."""
    sent = cut(ramp(40 * N))
    made = decoder()
    step = round(N * PERIOD_NS)
    parts = [made.feed(frame, 10**9 + i * step + (3 * 10**9 if i >= 20 else 0)) for i, frame in enumerate(sent)]
    steps = np.diff(np.concatenate([part.time_ns for part in parts]))
    assert (steps > 1.5 * PERIOD_NS).sum() == 1
    assert steps.max() == pytest.approx(3 * 10**9, rel=0.01)


def test_a_port_that_was_opened_again_leaves_a_hole() -> None:
    sent = cut(ramp(4 * N))
    made = decoder()
    first = made.feed(sent[0] + sent[1], 10**9)
    made.reset()
    again = made.feed(sent[2] + sent[3], 10**9 + 5_000_000)
    assert again.time_ns[0] - first.time_ns[-1] > 0.25e9


def test_the_sensors_clock_is_taken_as_it_is() -> None:
    made = decoder("sensor")
    sent = cut(ramp(20 * N), time_us=5_000_000)
    stamps = feed_all(made, sent[:5] + sent[7:]).time_ns
    number = np.delete(np.arange(20 * N), range(5 * N, 7 * N))
    assert np.array_equal(stamps, 5_000_000_000 + (number * PERIOD_NS).astype(np.int64))


def test_a_pause_that_only_the_sensors_clock_knows_of_is_a_hole() -> None:
    x = ramp(4 * N)
    sent = [encode_frame(x[:, i * N : i * N + N], i * N, 10**6 + i * 20_000 + (i > 1) * 100_000) for i in range(4)]
    steps = np.diff(feed_all(decoder("sensor"), sent).time_ns)
    assert steps[2 * N - 1] == PERIOD_NS + 100_000_000
    assert (np.delete(steps, 2 * N - 1) == PERIOD_NS).all()


@given(st.lists(st.integers(-9_000, 9_000), min_size=60, max_size=60), st.floats(0.96, 1.04))
@settings(max_examples=40, deadline=None)
def test_a_sensor_that_stamps_when_it_sends_or_drifts_makes_no_holes(late_us: list[int], speed: float) -> None:
    """The stamp of each frame is off by half of its length, and sampling is 4 % off what was promised."""
    made = decoder("sensor")
    x = ramp(60 * N)
    sent = [
        encode_frame(x[:, i * N : (i + 1) * N], i * N, 10**6 + round(i * N * PERIOD_NS * speed / 1000) + late_us[i])
        for i in range(60)
    ]
    steps = np.diff(feed_all(made, sent).time_ns) / PERIOD_NS
    assert np.abs(steps - 1).max() <= 0.11


# Settings.


def test_a_channel_that_the_sensor_does_not_send_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"needs c, which .*columns: a, b"):
        FrameDecoder("ab", "ac", PERIOD_NS)
    with pytest.raises(ConfigError, match="a named twice"):
        FrameDecoder("aba", "ab", PERIOD_NS)


def test_limits_are_those_of_the_checksum() -> None:
    """Up to 91,607 bits CRC-32 has a Hamming distance of 4 (Koopman 2002)."""
    assert frames.MAX_PAYLOAD * 8 < 91_607
