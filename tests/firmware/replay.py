"""A sensor's capture through the decoder that its profile asks for.

    python tests/firmware/replay.py firmware-configs/sensors/NAME   # what expected.csv would be: look at it

expected.csv, first line: `# corrupt = 1, lost = 32`, what the decoder must have counted. Then `time` in seconds since the first
sample, and the channels; an empty cell is a missing value. Times are compared in whole sample periods.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge import profiles
from edge.config import StreamConfig
from edge.profiles import Sensor
from edge.sensing.decoders import open_decoder
from edge.sensing.modbus import ModbusMaster
from edge.signal import Float32, Int64
from edge.testing import split

ANY_JITTER_S = 1e9  # when bytes of a capture arrived is not known, and must not matter


@dataclass
class Found:
    places: Int64
    """(n,) in sample periods since the first sample."""
    x: Float32
    """(C, n)"""
    corrupt: int
    lost: int
    trouble: str = ""

    def table(self, sensor: Sensor) -> str:
        lines = [f"# corrupt = {self.corrupt}, lost = {self.lost}"]
        lines.append(",".join(("time", *(channel.name for channel in sensor.channels))))
        for place, row in zip(self.places.tolist(), self.x.T, strict=True):
            cells = ("" if np.isnan(value) else f"{value!s}" for value in row)
            lines.append(",".join((f"{place / sensor.rate_hz:.6f}".rstrip("0").rstrip("."), *cells)))
        return "\n".join(lines) + "\n"


def stream(sensor: Sensor) -> StreamConfig:
    return msgspec.convert({"port": "none", **sensor.stream(), "jitter_s": ANY_JITTER_S}, StreamConfig)


def replay(sensor: Sensor, capture: bytes, pieces: int = 1, seed: int = 0) -> Found:
    """As a port would bring it that was just opened, in so many pieces."""
    channels = [channel.name for channel in sensor.channels]
    if sensor.modbus is not None:
        return ask(sensor, channels, capture, np.random.default_rng(seed))
    decoder = open_decoder(stream(sensor), channels, sensor.rate_hz)
    decoder.reset()
    parts = [
        decoder.feed(piece, round(i * 1e9 / pieces))
        for i, piece in enumerate(split(capture, np.random.default_rng(seed), pieces))
    ]
    time_ns = np.concatenate([part.time_ns for part in parts])
    steps = np.rint(np.diff(time_ns) * (sensor.rate_hz / 1e9)).astype(np.int64)
    places = np.concatenate([[0], np.cumsum(steps)])[: len(time_ns)]
    return Found(places, np.concatenate([part.x for part in parts], axis=1), decoder.corrupt, decoder.lost, decoder.trouble)


def ask(sensor: Sensor, channels: list[str], capture: bytes, rng: np.random.Generator) -> Found:
    """Of a bus: each request has to be in the capture as we would send it, and what follows it is the answer."""
    assert sensor.modbus is not None
    master = ModbusMaster(sensor.modbus, channels)
    assert len(master.groups) == 1, "a capture of several requests a sample: write down here how they take turns"
    head, *answers = capture.split(master.groups[0].request)
    assert answers, f"the capture has no request {master.groups[0].request.hex(' ')}, which is what the profile asks for"
    assert not head, "the capture begins with a request"
    places, rows = [], []
    for place, answer in enumerate(answers):
        master.begin()
        master.ask(0)
        for piece in split(answer, rng, 4):
            master.feed(piece)
        master.end()
        if not np.isnan(master.row()).all():
            places.append(place)
            rows.append(master.row())
    at = np.array(places, np.int64)
    return Found(at - at[0], np.array(rows, np.float32).T, master.corrupt, len(answers) - len(rows), master.trouble)


def expected(folder: Path, sensor: Sensor) -> Found:
    """What expected.csv says."""
    head, names, *lines = (folder / "expected.csv").read_text("utf-8").splitlines()
    counts = re.fullmatch(r"# corrupt = (\d+), lost = (\d+)", head)
    assert counts, f"the first line of expected.csv says what was counted, as in `# corrupt = 1, lost = 0`, and is {head!r}"
    assert names == ",".join(("time", *(channel.name for channel in sensor.channels))), f"expected.csv has the columns {names}"
    rows = [[float(cell) if cell else np.nan for cell in line.split(",")] for line in lines]
    time_s, *x = np.array(rows).T
    places = np.rint((time_s - time_s[0]) * sensor.rate_hz).astype(np.int64)
    return Found(places, np.array(x).astype(np.float32), int(counts[1]), int(counts[2]))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    known = profiles.load(f"{given}/sensor.toml")
    print(replay(known, (given / "capture.bin").read_bytes()).table(known), end="")
