"""firmware-configs/arduino/amiss: what sketches send is what `encode_frame` makes, byte for byte, and the decoder takes it."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sensing.decoders.frames import FLOAT32, INT16, MAX_PAYLOAD, FrameDecoder, encode_frame
from edge.signal import Float32
from edge.testing import split

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "firmware-configs" / "arduino" / "amiss" / "src"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all")


class Library:
    """One sender in C; `SIZE` is more than any frame."""

    SIZE = 3 * MAX_PAYLOAD

    def __init__(self, include: Path, folder: Path) -> None:
        made = folder / "library.so"
        command = [
            "cc",
            "-std=c99",
            *STRICT,
            "-O1",
            "-shared",
            "-fPIC",
            f"-I{include}",
            str(HERE / "library.c"),
            "-o",
            str(made),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.c = ctypes.CDLL(str(made))
        self.c.start.argtypes = [ctypes.c_int] * 3 + [ctypes.c_float, ctypes.c_uint32, ctypes.c_uint64]
        self.c.add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self.c.clamped.argtypes = [ctypes.c_int32]
        self.c.dropped.restype = ctypes.c_uint32

    def start(self, channels: int, samples: int, scale: float | None = None, sequence: int = 0, time_us: int = 0) -> None:
        self._type = np.float32 if scale is None else np.int16
        self.c.start(FLOAT32 if scale is None else INT16, channels, samples, scale or 1.0, sequence, time_us)

    def add(self, values: object, when_us: int = 0) -> None:
        row = np.ascontiguousarray(values, self._type)
        self.c.add(row.ctypes.data, when_us % 2**32)

    def take(self, room: int = SIZE) -> bytes:
        into = ctypes.create_string_buffer(room)
        size = self.c.take(into, room)
        return into.raw[:size]

    def frame(self, x: Float32, sequence: int, time_us: int, scale: float | None) -> bytes:
        """All of x (C, n) in a frame, as a sketch would send it."""
        self.start(len(x), 255, scale, sequence, time_us)
        if scale is not None:
            raw = np.rint(x / np.float32(scale))
            x = np.where(np.isnan(raw), -32768, np.clip(raw, -32767, 32767))
        for row in x.T:
            self.add(row, time_us)
        self.c.flush()
        return self.take()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(SOURCE, tmp_path_factory.mktemp("library"))


def values(kind: str, channels: int, samples: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    if kind == "zeros":
        return np.zeros((channels, samples), np.float32)
    if kind == "no zeros":  # runs without a 00 as long as the frame
        return rng.integers(1, 256, (channels, samples, 4), dtype=np.uint8).view("<f4")[..., 0].astype(np.float32)
    x = rng.normal(size=(channels, samples)).astype(np.float32) * np.float32(10.0 ** rng.integers(-5, 6))
    if kind == "missing":
        x[rng.random(x.shape) < 0.3] = np.nan
    return x


SHAPES = st.tuples(st.integers(1, 255), st.integers(1, 255)).filter(lambda shape: 24 + 4 * shape[0] * shape[1] <= MAX_PAYLOAD)


@given(
    SHAPES,
    st.sampled_from(["zeros", "no zeros", "values", "missing"]),
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1]),
    st.integers(1, 2**53) | st.sampled_from([1, 2**32 - 1, 2**32, 2**53]),
    st.none() | st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_byte_for_byte(
    library: Library, shape: tuple[int, int], kind: str, sequence: int, time_us: int, scale: float | None, seed: int
) -> None:
    with np.errstate(all="ignore"):
        x = values(kind, *shape, seed)
        x[np.isnan(x)] = np.nan  # one of the many that there are
        assert library.frame(x, sequence, time_us, scale) == b"\0" + encode_frame(x, sequence, time_us, scale)


@pytest.mark.parametrize("channels", [1, 255])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_as_few_and_as_many_channels_as_there_may_be(library: Library, channels: int, scale: float | None) -> None:
    x = values("missing", channels, 8, 1)
    assert library.frame(x, 7, 9, scale) == b"\0" + encode_frame(x, 7, 9, scale)


def test_runs_around_254(library: Library) -> None:
    """No 00 in the whole payload, whose length passes 254 and 508; and one 00 in each place around those."""
    sequence, time_us, scale = 0x01010101, 0x0101010101010101, float(np.uint32(0x3F818181).view(np.float32))
    for length in (*range(110, 122), *range(238, 250)):
        full = np.full((1, length), 0x0101 * scale, np.float32)
        for at in (None, *range(105, min(length, 121)), *range(235, length)):
            x = full.copy()
            if at is not None:
                x[0, at] = (0x0100 if length % 2 else 0x0001) * scale
            assert library.frame(x, sequence, time_us, scale) == b"\0" + encode_frame(x, sequence, time_us, scale)


def test_the_decoder_takes_what_a_sketch_sends(library: Library) -> None:
    """Also across the wrap of the sequence, in any split."""
    x = values("missing", 3, 400, 5)
    library.start(3, 16, sequence=2**32 - 100, time_us=10**9)
    wire = b""
    for i, row in enumerate(x.T):
        library.add(row, 10**9 + 1000 * i)
        wire += library.take()
    decoder = FrameDecoder("abc", "abc", 1e6, "sensor")
    found = [decoder.feed(piece, 0) for piece in split(wire, np.random.default_rng(0), 40)]
    assert np.array_equal(np.concatenate([part.x for part in found], axis=1), x, equal_nan=True)
    assert np.array_equal(np.concatenate([part.time_ns for part in found]), 10**12 + 10**6 * np.arange(400))
    assert (decoder.corrupt, decoder.lost) == (0, 0)


def decoded(library: Library, rows: int, room: int, per_frame: int = 8) -> tuple[FrameDecoder, Float32]:
    """`rows` samples that count up, with so many bytes of room after each."""
    library.start(1, per_frame)
    wire = b""
    for i in range(rows):
        library.add([i], 1000 * i)
        wire += library.take(room)
    while piece := library.take():
        wire += piece
    decoder = FrameDecoder("a", "a", 1e6, "sensor")
    return decoder, decoder.feed(wire, 0).x[0]


def test_a_line_that_is_too_slow_loses_whole_frames_and_says_how_many(library: Library) -> None:
    decoder, x = decoded(library, 800, room=3)  # a frame of 58 bytes needs 8 × 8
    assert library.c.dropped() > 20
    assert decoder.corrupt == 0, "never half a frame"
    assert decoder.lost + len(x) == int(x[-1]) + 1
    assert decoder.lost == 8 * library.c.dropped() or decoder.lost == 8 * (library.c.dropped() - 1), "the last may be unsaid"
    assert (np.diff(x) > 0).all()
    decoder, x = decoded(library, 800, room=8)
    assert (decoder.lost, len(x)) == (0, 800), "the control: with room enough none is lost"


def test_what_the_sensor_lost_is_told(library: Library) -> None:
    library.start(1, 16)
    wire = b""
    for i in range(64):
        if i == 21:
            library.c.skip(5)
        library.add([i], 1000 * i)
        wire += library.take()
    library.c.flush()
    wire += library.take()
    decoder = FrameDecoder("a", "a", 1e6, "sensor")
    assert decoder.feed(wire, 0).x[0].tolist() == list(range(64))
    assert decoder.lost == 5


def test_the_clock_goes_on_when_its_32_bits_are_over(library: Library) -> None:
    library.start(1, 1)
    stamps, hour_us = [], 3_600_000_000
    decoder = FrameDecoder("a", "a", 600e9, "sensor")
    for minutes in range(0, 600, 10):  # ten hours: eight times over
        now_us = 123 + hour_us * minutes // 60
        library.c.tick(ctypes.c_uint32(now_us % 2**32))
        library.add([1], now_us - 40_000 if minutes else now_us)  # a sensor that buffers is read late
        stamps += decoder.feed(library.take(), 0).time_ns.tolist()
    assert (np.diff(stamps)[1:] == 600 * 10**9).all()


def test_stamps_never_go_back(library: Library) -> None:
    library.start(1, 1)
    stamps = []
    for when_us in (5000, 4000, 6000, 5999, 7000):
        library.c.tick(ctypes.c_uint32(10_000))
        library.add([1], when_us)
        wire = library.take()
        stamps.append(int.from_bytes(bytes(decoder_payload(wire)[8:16]), "little"))
    assert stamps == [5000, 5000, 6000, 6000, 7000]


def decoder_payload(wire: bytes) -> bytes:
    from edge.sensing.decoders.frames import cobs_decode

    payload = cobs_decode(wire.strip(b"\0"))
    assert payload is not None
    return bytes(payload)


def test_a_value_at_its_stop_is_not_missing(library: Library) -> None:
    assert [library.c.clamped(v) for v in (-40000, -32768, -32767, 0, 32767, 40000)] == [
        -32767, -32767, -32767, 0, 32767, 32767,
    ]  # fmt: skip


def test_it_is_cpp_of_2011_as_well(tmp_path: Path) -> None:
    (tmp_path / "x.cpp").write_text("#include <amiss.h>\nAMISS_SENDER(a, 3, 16, AMISS_FLOAT32, 1);\nvoid* f() { return &a; }\n")
    command = ["g++", "-std=c++11", *STRICT, "-fsyntax-only", f"-I{SOURCE}", str(tmp_path / "x.cpp")]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("sender", ["0, 16, AMISS_INT16, 1", "3, 256, AMISS_INT16, 1", "255, 16, AMISS_FLOAT32, 1"])
def test_a_sender_that_no_frame_holds_does_not_compile(sender: str, tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text(f"#include <amiss.h>\nAMISS_SENDER(a, {sender});\nvoid* f(void) {{ return &a; }}\n")
    done = subprocess.run(["cc", "-fsyntax-only", f"-I{SOURCE}", tmp_path / "x.c"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "a_holds_1_to_255_channels_and_samples_and_8192_bytes" in done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("0xEDB88320", "0xEDB88321"),  # the polynomial
        ("0xFFFFFFFFu;", "0;"),  # where the checksum begins
        ("*code == 255", "*code == 254"),
        ("amiss_put(s->payload + 8, stamp, 8)", "amiss_put(s->payload + 8, stamp, 4)"),
        ("s->payload[3] = s->count", "s->payload[3] = s->samples"),
    ],
)
def test_a_library_that_is_wrong_is_found_out(right: str, wrong: str, tmp_path: Path) -> None:
    """The control: each of these was put in on purpose."""
    text = (SOURCE / "amiss.h").read_text()
    assert text.count(right) == 1
    (tmp_path / "amiss.h").write_text(text.replace(right, wrong))
    broken = Library(tmp_path, tmp_path)
    x = values("no zeros", 3, 60, 1)
    assert broken.frame(x, 1, 2**40 + 1, None) != b"\0" + encode_frame(x, 1, 2**40 + 1)
