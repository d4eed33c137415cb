"""Checks that every implementation of a kind must pass; they ship with the package, for those who write one outside of it.

Each takes a way to make a fresh object and raises `AssertionError` that says what was broken.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from edge.scoring.scorers import Scorer
from edge.sensing.decoders import Decoder
from edge.sensing.decoders.layout import Clock
from edge.signal import Float32, Samples


def check_decoder(
    make: Callable[[Clock], Decoder],
    wire: bytes,
    expected: Float32,
    *,
    proves_values: bool,
    seed: int = 0,
    noise: int = 100_000,
    bound: int = 32 * 1024,
) -> None:
    """What every decoder owes.

    `make(clock)` gives a decoder that knows the columns of `wire`: undamaged bytes with the sensor's clock in them, in several
    frames or lines, which hold the values `expected` (C, n). With `proves_values` the format has a checksum, so `noise` bytes
    of garbage must give no value, and damaged bytes no wrong one. `bound` is how many bytes may be kept, whatever arrives.
    """
    rng = np.random.default_rng(seed)
    _check_values(make, wire, expected, rng)
    _check_stamps(make, wire)
    _check_garbage(make, proves_values, rng, noise, bound)
    if proves_values:
        _check_no_wrong_value(make, wire, expected, rng, noise)
    _check_recovery(make, wire, expected, rng)


def check_scorer(kind: type[Scorer], seed: int = 0) -> None:
    """What every scorer owes: higher is stranger, finite or infinite but never NaN, the same after a round trip, and no
    opinion on how windows are batched or on what the caller does with its arrays."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(6, 6))
    normal = (rng.normal(size=(600, 6)) @ mixing).astype(np.float32)
    far = (normal[:50] + 20 * mixing[0]).astype(np.float32)
    before = normal.copy()
    scorer = kind.fit(normal)
    assert np.array_equal(normal, before), "fit changed its input"
    usual, strange = scorer.score(normal), scorer.score(far)
    assert usual.dtype == np.float32, f"scores are {usual.dtype}, not float32"
    assert usual.shape == (600,), f"{usual.shape} scores for 600 windows"
    assert np.median(strange) > np.quantile(usual, 0.99), "what is far from normal does not score higher"
    assert np.allclose(scorer.score(normal[7:8]), usual[7:8], rtol=1e-4), "another score when alone than in a batch"
    assert scorer.score(normal[:0]).shape == (0,), "no windows, no scores"
    again = kind.from_arrays({name: array.copy() for name, array in scorer.arrays().items()})
    assert np.array_equal(again.score(normal), usual), "other scores after a round trip"
    assert all(array.dtype == np.float32 for array in scorer.arrays().values()), "a bundle holds float32 arrays only"
    broken = normal[:3].copy()
    broken[0, 0], broken[1, 0], broken[2] = np.nan, np.inf, 3e38
    assert (scorer.score(broken) > usual.max()).all(), "what is not finite must be the strangest of all"
    constant = normal.copy()
    constant[:, 2] = 5.0
    moved = constant[:1].copy()
    moved[0, 2] = 9.0
    fitted = kind.fit(constant)
    assert fitted.score(moved)[0] > fitted.score(constant[:1])[0], "a feature that never moved, moves, and nobody notices"


def feed_all(decoder: Decoder, pieces: Sequence[bytes], start_ns: int = 0, step_ns: int = 20_000_000) -> Samples:
    """Everything that the decoder makes of `pieces` which arrive `step_ns` apart."""
    parts = [decoder.feed(piece, start_ns + step_ns * i) for i, piece in enumerate(pieces)]
    return Samples(np.concatenate([part.time_ns for part in parts]), np.concatenate([part.x for part in parts], axis=1))


def split(data: bytes, rng: np.random.Generator, pieces: int) -> list[bytes]:
    """`data` in so many pieces, some of which may be empty."""
    cuts = [0, *sorted(rng.integers(0, len(data) + 1, pieces - 1).tolist()), len(data)]
    return [data[a:b] for a, b in pairwise(cuts)]


def flip_bits(data: bytes, rng: np.random.Generator, rate: float) -> bytes:
    """`data` with this share of its bits flipped."""
    flips = np.packbits(rng.random(8 * len(data)) < rate)
    return (np.frombuffer(data, np.uint8) ^ flips).tobytes()


def _check_values(make: Callable[[Clock], Decoder], wire: bytes, expected: Float32, rng: np.random.Generator) -> None:
    """How bytes are split changes neither values nor counters nor, with the sensor's clock, stamps."""
    whole = feed_all(make("sensor"), [wire])
    splits = [[wire], [wire[i : i + 1] for i in range(len(wire))], *(split(wire, rng, n) for n in (2, 3, 10, 50))]
    for pieces in splits:
        for clock in ("arrival", "sensor"):
            decoder = make("sensor" if clock == "sensor" else "arrival")
            samples = feed_all(decoder, pieces)
            assert samples.x.dtype == np.float32, f"values are {samples.x.dtype}, not float32"
            assert samples.time_ns.dtype == np.int64, f"stamps are {samples.time_ns.dtype}, not int64"
            assert np.array_equal(samples.x, expected, equal_nan=True), f"wrong values when split into {len(pieces)} pieces"
            assert decoder.corrupt == 0, f"{decoder.corrupt} damaged in undamaged data: {decoder.trouble}"
            if clock == "sensor":
                same = np.array_equal(samples.time_ns, whole.time_ns)
                assert same, f"other stamps when split into {len(pieces)} pieces, though the sensor made them"


def _check_stamps(make: Callable[[Clock], Decoder], wire: bytes) -> None:
    """The newest sample of the first chunk came when the chunk came; stamps never go back, however much comes at once."""
    decoder = make("arrival")
    arrived = (10**12, 10**12 + 1, 10**12 + 10**9, 10**12 + 10**9)
    stamps = [decoder.feed(wire, at).time_ns for at in arrived]
    assert stamps[0][-1] == arrived[0], f"arrived at {arrived[0]}, stamped {stamps[0][-1]}"
    assert (np.diff(np.concatenate(stamps)) >= 0).all(), "stamps of arrival go back"


def _check_garbage(
    make: Callable[[Clock], Decoder], proves_values: bool, rng: np.random.Generator, noise: int, bound: int
) -> None:
    """Garbage is counted, the same however it is split; it is not raised, not kept and, with a checksum, gives no value."""
    text = np.frombuffer(b'0123456789.,-+eEnaN{}[]":_# \r\n\t', np.uint8)
    kinds = {
        "random bytes": rng.bytes(noise),
        "bytes without an end of line or frame": rng.integers(14, 256, noise, dtype=np.uint8).tobytes(),
        "random text": rng.choice(text, noise).tobytes(),
        "brackets": b"[" * noise + b"\n" + b'{"a":' * 800 + b"\n",
        "ends of line and frame": b"\0\n\r" * (noise // 3) + b"x\0x\n",
    }
    for kind, data in kinds.items():
        decoder, other = make("arrival"), make("arrival")
        values = 0
        for at in range(0, len(data), 997):
            values += len(decoder.feed(data[at : at + 997], at))
            assert (kept := _size(decoder)) <= bound, f"{kept} bytes kept of {kind}"
        for piece in split(data, rng, 300):
            other.feed(piece, 0)
        assert decoder.corrupt > 0, f"{kind}: not counted"
        assert decoder.corrupt == other.corrupt, f"{kind}: {decoder.corrupt} or {other.corrupt} damaged, as it is split"
        assert not (proves_values and values), f"{kind}: {values} samples made of it"


def _check_no_wrong_value(
    make: Callable[[Clock], Decoder], wire: bytes, expected: Float32, rng: np.random.Generator, noise: int
) -> None:
    right = {column.tobytes() for column in expected.T}
    for rate in (1e-4, 1e-3, 1e-2):
        decoder = make("arrival")
        data = flip_bits(wire * (1 + noise // len(wire)), rng, rate)
        samples = feed_all(decoder, split(data, rng, 100))
        wrong = sum(column.tobytes() not in right for column in samples.x.T)
        assert not wrong, f"{wrong} of {len(samples)} samples are wrong with {rate:g} of the bits flipped"


def _check_recovery(make: Callable[[Clock], Decoder], wire: bytes, expected: Float32, rng: np.random.Generator) -> None:
    """After garbage, and after a port was opened again in the middle of things, undamaged data gets through."""
    for what in ("garbage", "a port that was opened again"):
        decoder = make("arrival")
        if what == "garbage":
            decoder.feed(rng.bytes(20_000), 0)
        else:
            decoder.feed(wire[: len(wire) // 3], 0)
            decoder.reset()
        decoder.feed(wire, 10**9)  # the first frame or line of it may be hit
        corrupt, again = decoder.corrupt, decoder.feed(wire, 2 * 10**9)
        assert np.array_equal(again.x, expected, equal_nan=True), f"not in step again after {what}"
        assert decoder.corrupt == corrupt, f"undamaged data counted as damaged after {what}"


def _size(value: object) -> int:
    """Bytes of data that an object holds on to."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return sum(map(_size, value))
    return 8 + _size(getattr(value, "__dict__", ()))
