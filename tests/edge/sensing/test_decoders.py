"""What every decoder owes, and what is special about lines."""

import functools
import json
import math
import operator
import re
from collections.abc import Callable
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import StreamConfig
from edge.errors import ConfigError
from edge.sensing.decoders import DECODERS, Decoder, open_decoder
from edge.sensing.decoders.frames import FrameDecoder, encode_frame
from edge.sensing.decoders.layout import Clock
from edge.sensing.decoders.lines import MAX_LINE, CsvDecoder, JsonDecoder
from edge.sensing.decoders.nmea import NmeaDecoder
from edge.sensing.windows import Windower
from edge.signal import Float32, Samples
from edge.testing import check_decoder, feed_all

PERIOD_NS = 2_500_000.0
CHANNELS = ("c", "a")  # not in the order of the wire, and not all of it


def signal(n: int = 200) -> Float32:
    x = np.random.default_rng(7).normal(size=(3, n)).astype(np.float32)
    x[1, 5:9] = np.nan
    x[2, 11] = np.nan
    return x


def as_frames(x: Float32) -> bytes:
    return b"".join(encode_frame(x[:, i : i + 8], i, 5000 + round(i * PERIOD_NS / 1000)) for i in range(0, x.shape[1], 8))


def as_csv(x: Float32) -> bytes:
    cells = [[f"{0.0025 * i:.4f}", *("" if np.isnan(v) else f"{v:.9g}" for v in x[:, i])] for i in range(x.shape[1])]
    return "".join(",".join(row) + "\r\n" for row in cells).encode()


def as_json(x: Float32) -> bytes:
    rows = [
        {"time": 0.0025 * i, "id": "§", **{n: None if np.isnan(v) else float(v) for n, v in zip("abc", x[:, i], strict=True)}}
        for i in range(x.shape[1])
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def sentence(body: str) -> bytes:
    return f"${body}*{functools.reduce(operator.xor, body.encode()):02X}\r\n".encode()


def as_nmea(x: Float32) -> bytes:
    cells = [("" if np.isnan(v) else f"{v:.15f}" for v in column) for column in x.T]
    return b"".join(sentence(",".join(("PAMI", f"{0.0025 * i:.4f}", *row, "M"))) for i, row in enumerate(cells))


WIRES: dict[str, tuple[Callable[[Float32], bytes], tuple[str, ...]]] = {
    "frames": (as_frames, ("a", "b", "c")),
    "csv": (as_csv, ("time", "a", "b", "c")),
    "json": (as_json, ("time", "a", "b", "c")),
    "nmea": (as_nmea, ("$PAMI", "time", "a", "b", "c", "=M")),
}


def maker(name: str) -> Callable[[Clock], Decoder]:
    return lambda clock: DECODERS[name](WIRES[name][1], CHANNELS, PERIOD_NS, clock)


@pytest.mark.parametrize("name", DECODERS)
def test_contract(name: str) -> None:
    x = signal()
    check_decoder(maker(name), WIRES[name][0](x), x[[2, 0]], proves_values=name == "frames")


# The contract itself: each safeguard off, and it has to notice.


class _Wrapped:
    """A decoder with a fault, the rest of it right."""

    def __init__(self, clock: Clock) -> None:
        self.inner = maker("frames")(clock)

    corrupt = property(lambda self: self.inner.corrupt)
    lost = property(lambda self: self.inner.lost)
    trouble = property(lambda self: self.inner.trouble)

    def feed(self, data: bytes, time_ns: int) -> Samples:
        return self.inner.feed(data, time_ns)

    def reset(self) -> None:
        self.inner.reset()


class _KeepsAll(_Wrapped):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.seen = b""

    def feed(self, data: bytes, time_ns: int) -> Samples:
        self.seen += data
        return super().feed(data, time_ns)


class _NeedsWholeFrames(_Wrapped):
    def feed(self, data: bytes, time_ns: int) -> Samples:
        return super().feed(data if data.endswith(b"\0") else data + b"\0", time_ns)


class _Raises(_Wrapped):
    def feed(self, data: bytes, time_ns: int) -> Samples:
        samples = super().feed(data, time_ns)
        if self.corrupt > 3:
            raise AssertionError("raised on noise")
        return samples


class _Invents(_Wrapped):
    def feed(self, data: bytes, time_ns: int) -> Samples:
        samples = super().feed(data, time_ns)
        return samples if len(samples) or not self.corrupt else Samples(np.array([time_ns]), np.ones((2, 1), np.float32))


class _StampsAnyhow(_Wrapped):
    def feed(self, data: bytes, time_ns: int) -> Samples:
        samples = super().feed(data, time_ns)
        back = (np.arange(len(samples))[::-1] * PERIOD_NS).astype(np.int64)
        return Samples(time_ns - back, samples.x)


class _ForgetsTheReset(_Wrapped):
    def reset(self) -> None:
        self.inner.feed(b"\0", 0)
        self.inner.feed(b"\xaa" * 9000, 0)
        self.inner.feed(b"\xaa", 0)
        self.feed = lambda data, time_ns: Samples.empty(2)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (_KeepsAll, "bytes kept"),
        (_NeedsWholeFrames, "wrong values when split"),
        (_Raises, "raised on noise"),
        (_Invents, "samples made of it"),
        (_StampsAnyhow, "though the sensor made them"),
        (_ForgetsTheReset, "not in step again"),
    ],
)
def test_the_contract_notices(broken: type[_Wrapped], says: str) -> None:
    x = signal()
    with pytest.raises(AssertionError, match=says):
        check_decoder(broken, as_frames(x), x[[2, 0]], proves_values=True)


def test_the_contract_notices_wrong_values() -> None:
    """CSV has no checksum and cannot promise what frames promise."""
    x = signal()
    with pytest.raises(AssertionError, match=r"samples (made of it|are wrong)"):
        check_decoder(maker("csv"), as_csv(x), x[[2, 0]], proves_values=True)


# CSV.


def csv_decoder(columns: str = "ab", clock: Clock = "arrival") -> CsvDecoder:
    return CsvDecoder(columns.split(",") if "," in columns else columns, "ab", PERIOD_NS, clock)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("1,2", [1, 2]),
        (" 1.5 ,\t-2e-3\r", [1.5, -2e-3]),
        ("nan,NaN", [math.nan, math.nan]),
        (",2", [math.nan, 2]),
        (",", [math.nan, math.nan]),
        ("inf,1e39", [math.nan, math.nan]),
        ("+.5,5.", [0.5, 5]),
    ],
)
def test_csv_lines_that_are_samples(line: str, values: list[float]) -> None:
    made = csv_decoder()
    for data in (f"{line}\n", f"7,8\n{line}\n9,9\n"):  # alone, and with lines that are read all at once
        x = made.feed(data.encode(), 0).x
        np.testing.assert_array_equal(x[:, len(x[0]) // 2], np.array(values, np.float32))
    assert made.corrupt == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"1", "1 values, the configuration names 2 columns"),
        (b"1,2,3", "3 values"),
        (b"1,x", "not a number"),
        (b"1,1_0", "not a number"),
        (b"1,2\0", "not a number"),
        (b"1,0x10", "not a number"),
        (b"1,\xd9\xa1", "not a number"),  # a digit in Arabic script
        (b"1 2,3", "not a number"),
        (b"\xff\xfe,1", "not a number"),
        (b"1;2", "1 values"),
        (b"1,2" + b" " * MAX_LINE, "no end of line"),
    ],
)
def test_csv_lines_that_are_damaged(line: bytes, says: str) -> None:
    made = csv_decoder()
    samples = made.feed(b"1,2\n" + line + b"\n3,4\n", 10**9)
    assert samples.x.tolist() == [[1, 3], [2, 4]]
    assert made.corrupt == 1
    assert says in made.trouble
    assert np.diff(samples.time_ns).tolist() == [2 * PERIOD_NS], "its place is left empty"


@pytest.mark.parametrize("line", ["", "  ", "\r", "# 1,2", " #", "a,b", " a , b \r"])
def test_csv_lines_that_are_not_meant_to_be_samples_leave_no_trace(line: str) -> None:
    made = csv_decoder()
    samples = made.feed(f"1,2\n{line}\n3,4\n".encode(), 10**9)
    assert np.diff(samples.time_ns).tolist() == [PERIOD_NS]
    assert made.corrupt == 0


@given(st.lists(st.text("0123456789.,-+eEnaif_#x \r\t", max_size=12), max_size=8))
@settings(max_examples=300)
def test_csv_lines_mean_the_same_alone_and_together(lines: list[str]) -> None:
    together, alone = csv_decoder(), csv_decoder()
    x = together.feed("".join(f"{line}\n" for line in lines).encode(), 0).x
    parts = [alone.feed(f"{line}\n".encode(), 0).x for line in lines]
    assert np.array_equal(x, np.concatenate([np.empty((2, 0)), *parts], axis=1), equal_nan=True)
    assert (together.corrupt, together._count) == (alone.corrupt, alone._count)


def test_csv_with_the_sensors_clock() -> None:
    made = csv_decoder("b,time,a", "sensor")
    samples = made.feed(b"2,0.5,1\n2,nan,1\n2,,1\n2,1e300,1\n2,1767225600.25,1\n2,-3,1\n", 10**9)
    expected = [500_000_000, 1767225600_250_000_000, -3_000_000_000]
    np.testing.assert_allclose(samples.time_ns, expected, rtol=0, atol=200)  # what a double leaves of a date
    assert made.corrupt == 3
    assert "no time" in made.trouble
    with pytest.raises(ConfigError, match="`time`"):
        csv_decoder("ab", "sensor")


def test_a_time_column_is_dropped_when_arrival_counts() -> None:
    samples = csv_decoder("time,a,b").feed(b"99,1,2\n", 10**9)
    assert samples.time_ns.tolist() == [10**9]
    assert samples.x.tolist() == [[1], [2]]


@pytest.mark.parametrize("make", [CsvDecoder, JsonDecoder])
def test_a_line_that_does_not_end_is_counted_once_however_it_comes(make: type[CsvDecoder]) -> None:
    for size in (1, 1000, MAX_LINE, MAX_LINE + 1, 10**6):
        made = make("ab", "ab", PERIOD_NS)
        data = b"1" * 9000 + b"\n"
        for at in range(0, len(data), size):
            made.feed(data[at : at + size], 0)
            assert len(made._pending) <= MAX_LINE
        assert made.corrupt == 1
        assert made._count == 1


def test_after_a_port_was_opened_again_half_a_number_is_no_number() -> None:
    made = csv_decoder()
    made.feed(b"1025.0,1\n10", 0)
    made.reset()
    assert made.feed(b"25.0,1\n3,4\n", 10**9).x.tolist() == [[3], [4]]
    assert made.corrupt == 0

    careless = csv_decoder()  # negative control
    careless.feed(b"1025.0,1\n10", 0)
    careless._pending = b""
    assert 25.0 in careless.feed(b"25.0,1\n3,4\n", 10**9).x


# JSON.


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('{"a":1,"b":2.5}', [1, 2.5]),
        (' { "b" : 1e3 , "x" : [1,{"a":9}] , "a" : -0.5 } \r', [-0.5, 1000]),
        ('{"a":null,"b":1}', [math.nan, 1]),
        ('{"b":1}', [math.nan, 1]),
        ('{"a":NaN,"b":1}', [math.nan, 1]),
        ('{"a": -nan ,"b":1}', [math.nan, 1]),
        ('{"a":1e39,"b":1}', [math.nan, 1]),
        ('{"a":123456789012345678901234567890,"b":1}', [1.2345679e29, 1]),
    ],
)
def test_json_lines_that_are_samples(line: str, values: list[float]) -> None:
    made = JsonDecoder("ab", "ab", PERIOD_NS)
    for data in (f"{line}\n", f'{{"a":7,"b":8}}\n{line}\n{{"a":7,"b":8}}\n'):
        x = made.feed(data.encode(), 0).x
        np.testing.assert_array_equal(x[:, len(x[0]) // 2], np.array(values, np.float32))
    assert made.corrupt == 0, made.trouble


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1,"b":2',
        b'{"a":"1","b":2}',
        b'{"a":[1],"b":2}',
        b'{"a":true,"b":2}',
        b"[1,2]",
        b"1",
        b"{}",
        b'{"x":1}',
        b'{"a":1,"b":2}{"a":1,"b":2}',
        b'{"a":1,"b":2} junk',
        b'{"a":1,\xff"b":2}',
        b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"a":1,"b":Infinity}',
    ],
)
def test_json_lines_that_are_damaged(line: bytes) -> None:
    made = JsonDecoder("ab", "ab", PERIOD_NS)
    samples = made.feed(b'{"a":1,"b":2}\n' + line + b'\n{"a":3,"b":4}\n', 10**9)
    assert samples.x.tolist() == [[1, 3], [2, 4]]
    assert made.corrupt == 1
    assert made.trouble
    assert np.diff(samples.time_ns).tolist() == [2 * PERIOD_NS]


def test_a_json_object_does_not_run_over_lines() -> None:
    made = JsonDecoder("ab", "ab", PERIOD_NS)
    assert not len(made.feed(b'{"a":1,\n"b":2}\n', 0))
    assert made.corrupt == 2


def test_json_keys_need_not_be_names_in_python() -> None:
    made = JsonDecoder(["vibration x", "class", "é"], ["é", "class"], PERIOD_NS)
    assert made.feed('{"é": 1, "class": 2}\n'.encode(), 0).x.tolist() == [[1], [2]]
    with pytest.raises(ConfigError, match="columns"):
        JsonDecoder(['"'], ['"'], PERIOD_NS)


# Sentences.

WIND = ("$WIMWV", "angle", "=R", "speed", "=M", "status")


def wind(*sentences: bytes) -> tuple[NmeaDecoder, list[list[float]]]:
    made = NmeaDecoder(WIND, ("speed", "angle"), 1e9)
    return made, made.feed(b"".join(sentences), 0).x.T.tolist()


def test_a_sentence_is_a_sample_and_others_are_not_looked_at() -> None:
    made, rows = wind(
        sentence("WIMWV,214.8,R,3.1,M,A"),
        sentence("WIMWV,214.8,T,3.1,M,A"),  # over ground
        sentence("WIMWV,214.8,R,6.0,N,A"),  # in knots
        sentence("GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W"),
        sentence("WIMWV,,R,-.5,M,A"),
        sentence("WIMWV,1.,R,+2,M,A").replace(b"\r\n", b"\n"),
    )
    assert rows[0] == [pytest.approx(3.1), pytest.approx(214.8)]
    assert rows[1][0] == -0.5
    assert math.isnan(rows[1][1])
    assert rows[2:] == [[2, 1]]
    assert (made.corrupt, made.lost) == (0, 0)


def test_what_the_sensor_calls_void_is_missing_and_has_its_place() -> None:
    made, rows = wind(sentence("WIMWV,214.8,R,3.1,M,A"), sentence("WIMWV,214.8,R,9.9,M,V"), sentence("WIMWV,1,R,2,M,"))
    assert np.isnan(rows[1:]).all()
    assert made.corrupt == 0
    timed = NmeaDecoder(("$X", "time", "a", "status"), "a", 1e9, "sensor")
    samples = timed.feed(sentence("X,5,1,V"), 0)
    assert samples.time_ns.tolist() == [5 * 10**9], "it is known when there was nothing"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"$WIMWV,214.8,R,3.1,M,A*00\r\n", "wrong checksum"),
        (sentence("WIMWV,214.8,R,3.1,M,A").replace(b"3.1", b"3.2"), "wrong checksum"),
        (b"$WIMWV,214.8,R,3.1,M,A\r\n", r"no sentence of the form \$…\*hh"),
        (b"$WIMWV,214.8,R,3.1,M,A*2\r\n", "no sentence"),
        (b"WIMWV,214.8\n", "no sentence"),
        (sentence("WIMWV,214.8,R,3.1,M"), r"4 fields, the configuration names 5 after \$WIMWV"),
        (sentence("WIMWV,1e9,R,3.1,M,A"), "angle is not a number"),
        (sentence("WIMWV,nan,R,3.1,M,A"), "angle is not a number"),
        (sentence("WIMWV,1_0,R,3.1,M,A"), "angle is not a number"),
    ],
)
def test_a_sentence_that_is_wrong_is_counted_and_told(line: bytes, says: str) -> None:
    made, rows = wind(sentence("WIMWV,214.8,R,3.1,M,A"), line, sentence("WIMWV,214.8,R,3.1,M,A"))
    assert (len(rows), made.corrupt) == (2, 1)
    assert re.match(says, made.trouble)


def test_no_flipped_bit_and_no_burst_of_eight_makes_a_wrong_value() -> None:
    """What the checksum promises. The control: a flip of the same bit in two bytes is not found."""
    good = sentence("WIMWV,214.8,R,3.1,M,A")
    _, right = wind(good)

    def gets_through(data: bytes) -> bool:
        return any(row != right[0] for row in wind(data)[1])

    bits = np.unpackbits(np.frombuffer(good, np.uint8))
    for first in range(len(bits)):
        for burst in (0b1, 0b11, 0b1001, 0b10000001, 0b11111111):
            mask = np.array([burst >> i & 1 for i in range(8)], np.uint8)[: len(bits) - first]
            damaged = bits.copy()
            damaged[first : first + len(mask)] ^= mask
            assert not gets_through(np.packbits(damaged).tobytes()), (first, burst)
    assert gets_through(good.replace(b"214.8", b"204.9"))


def test_sentences_need_their_address_first() -> None:
    with pytest.raises(ConfigError, match="the first has to be the address of the sentence, as in \"\\$WIMWV\", and is 'a'"):
        NmeaDecoder(("a", "b"), "ab", 1e9)
    with pytest.raises(ConfigError, match="needs c"):
        NmeaDecoder(("$X", "a", "b"), "abc", 1e9)
    with pytest.raises(ValueError, match="needs `columns`"):
        StreamConfig(port="p", format="nmea")


# Stamps of lines.


@given(st.integers(0, 10**6), st.floats(0.97, 1.03))
@settings(max_examples=40, deadline=None)
def test_lines_that_arrive_in_lumps_make_no_hole(seed: int, speed: float) -> None:
    rng = np.random.default_rng(seed)
    made, at_ns, sent, stamps = csv_decoder(), 0, 0, []
    while sent < 2000:
        n = int(rng.integers(1, 60))
        sent += n
        at_ns = max(at_ns, round(10**9 + sent * PERIOD_NS * speed + rng.uniform(0, 0.2) * 1e9))
        stamps.append(made.feed(b"1,2\n" * n, at_ns).time_ns)
    time_ns = np.concatenate(stamps)
    assert np.abs(np.diff(time_ns) / PERIOD_NS - 1).max() < 0.11
    truth = 10**9 + np.arange(1, sent + 1) * PERIOD_NS * speed
    assert np.abs(time_ns - truth).max() < 0.45e9
    assert not Windower(1, 400, 50, 10).feed(Samples(time_ns, np.ones((1, sent), np.float32))).gaps


def test_a_silence_of_lines_is_a_hole_and_a_stall_of_the_host_is_none() -> None:
    made = csv_decoder()
    first = made.feed(b"1,2\n" * 40, 10**9)
    stalled = made.feed(b"1,2\n" * 800, 3 * 10**9)  # the host slept for two seconds, the driver kept everything
    silent = made.feed(b"1,2\n" * 40, 5 * 10**9)
    steps = np.diff(np.concatenate([part.time_ns for part in (first, stalled, silent)])) / PERIOD_NS
    assert (steps > 1.5).sum() == 1
    assert steps[839] == pytest.approx(761, abs=1)
    assert stalled.time_ns[-1] == 3 * 10**9


def test_a_sensor_that_is_far_faster_than_said_never_drives_the_stamps_ahead_of_the_clock() -> None:
    made = csv_decoder()
    for i in range(1, 200):
        last = made.feed(b"1,2\n" * 16, 10**9 + i * 20_000_000).time_ns  # twice as fast
        assert (np.diff(last) >= 0).all()
        assert last[-1] <= 10**9 + i * 20_000_000 + 0.25e9 + PERIOD_NS


# From the configuration.


def test_open_decoder_uses_the_models_channels_unless_told() -> None:
    config = StreamConfig(port="/dev/ttyUSB0", format="csv")
    made = open_decoder(config, ("x", "y"), 400)
    assert isinstance(made, CsvDecoder)
    assert made.feed(b"1,2\n", 0).x.tolist() == [[1], [2]]
    assert isinstance(open_decoder(StreamConfig(port="p"), "ab", 400), FrameDecoder)
    timed = open_decoder(StreamConfig(port="p", format="json", clock="sensor"), "ab", 400)
    assert timed.feed(b'{"a":1,"time":3,"b":2}\n', 0).time_ns.tolist() == [3 * 10**9]


def test_open_decoder_names_the_stream_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"/dev/ttyUSB0: columns: .* needs y"):
        open_decoder(StreamConfig(port="/dev/ttyUSB0", columns=("x",)), ("x", "y"), 400)
    with pytest.raises(ConfigError, match="`time`"):
        open_decoder(StreamConfig(port="p", format="csv", clock="sensor"), "ab", 400)


def test_the_registry_has_every_format_of_the_configuration() -> None:
    for name in DECODERS:
        columns = ("$X", "a", "b") if name == "nmea" else None
        open_decoder(StreamConfig(port="p", format=name, columns=columns), "ab", 400)  # type: ignore[arg-type]
    assert set(get_args(get_type_hints(StreamConfig)["format"])) == {*DECODERS, "modbus"}, "which is asked, and not decoded"


def test_feed_all_is_what_it_says() -> None:
    samples = feed_all(csv_decoder(), [b"1,2\n", b"", b"3,4\n"], start_ns=10, step_ns=0)
    assert samples.x.tolist() == [[1, 3], [2, 4]]
