"""The benchmark of a fast sensor: the line is full, what is sent can be read, and what is lost is seen."""

from itertools import islice

import numpy as np
import pytest

from benchmarks import serial as bench
from edge.sensing.decoders.frames import FrameDecoder


@pytest.mark.parametrize("baud", bench.BAUDS)
@pytest.mark.parametrize("way", ["amiss", "readline"])
def test_the_line_is_full_and_the_frames_are_of_the_recommended_length(way: str, baud: int) -> None:
    count, data = map(sum, zip(*((n, len(sent)) for n, sent in islice(bench.lumps(way, baud), 200)), strict=True))
    assert data / count * bench.rate(way, baud) == pytest.approx(baud / 10, rel=0.01)
    if way == "amiss":
        size = bench.frame_size(baud)
        assert size == bench.MOST or 0.01 <= size / bench.rate(way, baud) <= 0.04


def test_the_frames_hold_the_signal() -> None:
    decoder = FrameDecoder(bench.CHANNELS, bench.CHANNELS, 1e9 / bench.rate("amiss", 921_600))
    parts = [decoder.feed(data, at) for at, (_, data) in enumerate(islice(bench.lumps("amiss", 921_600), 20))]
    x = np.concatenate([part.x for part in parts], axis=1)
    assert (decoder.corrupt, decoder.lost, x.shape) == (0, 0, (3, 20 * 255))
    assert np.array_equal(np.rint(x / np.float32(bench.SCALE)), bench.signal(64 * bench.MOST)[:, : 20 * 255])


def test_a_reader_of_its_own_and_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench.run("amiss", 115_200, 0.5)
    assert found["corrupt"] == 0
    assert found["lost"] < 0.5
    assert found["us"] > 0

    write = bench.Port.write

    def leaky(port: bench.Port, data: bytes, *, wait: bool = True) -> None:
        write(port, data[: len(data) // 2], wait=wait)

    monkeypatch.setattr(bench.Port, "write", leaky)
    assert bench.run("amiss", 115_200, 0.5)["lost"] > 0.9, "the control"


def test_the_goal_is_judged() -> None:
    row = {
        "lost": 0.0,
        "corrupt": 0,
        "core": 0.2,
        "baud": 921_600,
        "way": "amiss",
        "rate_hz": 15_000.0,
        "us": 1.5,
        "to_limit": 6.0,
    }
    assert bench.kept(row)
    assert not any(bench.kept(row | worse) for worse in ({"lost": 1e-6}, {"corrupt": 1}, {"core": 0.26}))
    assert "| 6.0 × |" in bench.line(row)
    assert "| < 0.1% |" in bench.line(row | {"lost": 1e-6})
