"""How much of a processor reading a fast sensor takes: `python -m benchmarks.serial`, a part of `make bench`.

Three axes of 16 bits on a pseudo-terminal that is fed at the pace of a real line, ten bits to a byte, with as many samples a
second as the line bears. A frame holds what comes in 20 ms, and at most the 255 samples that it can (docs/wire-format.md). What
does not fit into the port when it is due is lost, as on a wire. Read in turns, each by a process of its own, by

- *amiss*: `SerialSource` and its decoder, as the agent does: values with stamps;
- *frame by frame*: the same frames with the same decoder, but found by pyserial's `read_until`, as one would;
- *readline*: what most scripts do: the sensor sends lines of text, pyserial's `readline` finds them, `split` and `float` read
  them. The same line bears fewer samples so;
- *os.read*: whenever something has come, and nothing is done with it;
- *limit*: the same, but every 20 ms, which is how *amiss* collects.

CPU is that of the reading process, its part of the kernel included, for each sample that arrived, times the samples that are
sent in a second; medians over the rounds. Then the fastest usual rate, 921,600 baud, for longer. The machine may be busy with
others: that touches processor time little; but who gets no processor for most of a second loses bytes, whichever way it reads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import serial

from benchmarks.agent import Json, machine, say
from benchmarks.wire import Port
from edge.config import StreamConfig
from edge.errors import SourceLostError
from edge.sensing.decoders import open_decoder
from edge.sensing.decoders.frames import encode_frame
from edge.sensing.sources import CHUNK_S, SerialSource

BAUDS = (115_200, 460_800, 921_600, 3_000_000)
GOAL_BAUD, GOAL = 921_600, 0.25
CHANNELS = ("x", "y", "z")
FRAME_S, MOST = 0.02, 255
SCALE = 9.80665 / 16384
SLICE_S, DRAIN_S = 0.002, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure reading a fast sensor; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for serial.json.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each round.")
    parser.add_argument("--sustained", type=float, default=30.0, help="Seconds at 921,600 baud; 0: not.")
    parser.add_argument("--baud", type=int, nargs="+", default=BAUDS)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        way, port, baud = args.read
        print(json.dumps(measured(WAYS[way](port, int(baud)))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [row for baud in args.baud for row in compare(baud, args.rounds, args.seconds)]
    if args.sustained:
        found = run("amiss", GOAL_BAUD, args.sustained)
        rows.append({**summary([found]), "baud": GOAL_BAUD, "way": f"amiss, {args.sustained:g} s"})
    (args.out / "serial.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", "utf-8")
    print("| baud | | samples/s | of one core | to the limit | µs a sample | lost | corrupt |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(map(line, rows)))
    missed = [row for row in rows if row["way"].startswith("amiss") and row["baud"] == GOAL_BAUD and not kept(row)]
    if missed:
        print(f"\nwanted at {GOAL_BAUD:,} baud: 0 lost and at most {GOAL:.0%} of one core; not reached", file=sys.stderr)


def kept(row: Json) -> bool:
    return row["lost"] == row["corrupt"] == 0 and row["core"] <= GOAL


def line(row: Json) -> str:
    ratio = f"{row['to_limit']:.1f} ×" if "to_limit" in row else ""
    lost = f"{row['lost']:.1%}" if row["lost"] >= 0.001 else ("0" if not row["lost"] else "< 0.1%")
    return (
        f"| {row['baud']:,} | {row['way']} | {row['rate_hz']:,.0f} | {row['core']:.1%} | {ratio} "
        f"| {row['us']:.1f} | {lost} | {row['corrupt']} |"
    )


# The sensor's side.


def frame_size(baud: int) -> int:
    """Samples in a frame of 20 ms, if there is room for so many."""
    return min(MOST, int((baud / 10 * FRAME_S - 30) / 6))


def signal(n: int) -> np.ndarray:
    """(3, n) counts of an accelerometer on a machine that hums, gravity on its last axis."""
    noise = np.random.default_rng(0).normal(0, 40, (3, n))
    hum = 400 * np.sin(2 * np.pi * 50 / 8000 * np.arange(n))
    return np.rint(noise + hum + np.array([[0], [0], [16384]])).astype(np.int16)


def lumps(way: str, baud: int) -> Iterator[tuple[int, bytes]]:
    """(samples, bytes), for ever."""
    size, counts = frame_size(baud), signal(64 * MOST)
    values = counts * np.float32(SCALE)
    rate_hz, at = rate(way, baud), 0
    while True:
        part = slice(at % (63 * MOST), at % (63 * MOST) + size)
        if way == "readline":
            yield size, b"".join(b"%d,%d,%d\r\n" % tuple(row) for row in counts[:, part].T.tolist())
        else:
            yield size, encode_frame(values[:, part], at, round(at * 1e6 / rate_hz), SCALE)
        at += size


def rate(way: str, baud: int) -> float:
    """Samples a second that fill the line."""
    size = frame_size(baud)
    if way == "readline":
        counts = signal(64 * MOST)
        text = sum(len(b"%d,%d,%d\r\n" % tuple(row)) for row in counts.T.tolist())
        return baud / 10 / (text / counts.shape[1])
    encoded = len(encode_frame(signal(MOST)[:, :size] * np.float32(SCALE), 0, 0, SCALE))
    return baud / 10 / encoded * size


def feed(port: Port, way: str, baud: int, seconds: float) -> int:
    """At the pace of the line; how many samples were sent."""
    source, pending, sent, bytes_s = lumps(way, baud), bytearray(), 0, baud / 10
    began, gone = time.monotonic(), 0
    while (now_s := time.monotonic() - began) < seconds:
        due = int(now_s * bytes_s) - gone
        while len(pending) < due:
            size, data = next(source)
            pending += data
            sent += size
        port.write(bytes(pending[:due]), wait=False)
        del pending[:due]
        gone += due
        time.sleep(max(0.0, began + (gone / bytes_s) + SLICE_S - time.monotonic()))
    port.write(bytes(pending), wait=False)
    return sent


# Those who read: they yield how many samples, lost and corrupt ones have come so far, until the port is closed behind them.

Reading = Iterator[tuple[int, int, int]]


def config(port: str, baud: int) -> StreamConfig:
    return StreamConfig(port=port, baud=baud)


def amiss(port: str, baud: int) -> Reading:
    source, count = SerialSource(config(port, baud), CHANNELS, rate("amiss", baud)), 0
    for samples in source.samples():
        count += len(samples)
        yield count, source.lost, source.corrupt


def frame_by_frame(port: str, baud: int) -> Reading:
    decoder, count = open_decoder(config(port, baud), CHANNELS, rate("amiss", baud)), 0
    with serial.Serial(port, baud) as opened:
        yield 0, 0, 0
        while True:
            count += len(decoder.feed(opened.read_until(b"\0"), time.monotonic_ns()))
            yield count, decoder.lost, decoder.corrupt


def readline(port: str, baud: int) -> Reading:
    count = corrupt = 0
    with serial.Serial(port, baud) as opened:
        yield 0, 0, 0
        while True:
            try:
                _x, _y, _z = (float(cell) for cell in opened.readline().split(b","))
                count += 1
            except ValueError:
                corrupt += 1
            yield count, 0, corrupt


def plain(port: str, baud: int, every_s: float = 0.0) -> Reading:
    """What comes is counted in bytes, and told in samples."""
    each, got, fd = baud / 10 / rate("limit", baud), 0, os.open(port, os.O_RDONLY | os.O_NOCTTY)
    tty.setraw(fd)
    yield 0, 0, 0
    while data := os.read(fd, 65536):
        got += len(data)
        yield round(got / each), 0, 0
        if every_s:
            time.sleep(every_s)


WAYS: dict[str, Callable[[str, int], Reading]] = {
    "amiss": amiss,
    "frame by frame": frame_by_frame,
    "readline": readline,
    "os.read": plain,
    "limit": partial(plain, every_s=CHUNK_S),
}


def measured(reading: Reading) -> Json:
    """Processor time of this process from the first sample to the last."""
    found, began_s, ended_s = next(reading), 0.0, 0.0
    print("ready", flush=True)
    try:
        for found in reading:
            if found[0]:
                ended_s = time.process_time()
                began_s = began_s or ended_s
    except (OSError, SourceLostError):  # it has been pulled out
        pass
    samples, lost, corrupt = found
    return {"samples": samples, "lost": lost, "corrupt": corrupt, "cpu_s": ended_s - began_s}


# Both.


def run(way: str, baud: int, seconds: float) -> Json:
    port = Port()
    command = [sys.executable, "-m", "benchmarks.serial", "--read", way, port.name, str(baud)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n", "the reader did not start"
    sent = feed(port, way, baud, seconds)
    time.sleep(DRAIN_S)
    port.close()
    found: Json = json.loads(reader.communicate()[0])
    # The text has no numbers, so what is missing of it is reckoned.
    missing = max(0, sent - found["samples"])
    each_s = found["cpu_s"] / max(1, found["samples"])
    return {
        "baud": baud,
        "way": way,
        "rate_hz": rate(way, baud),
        "core": each_s * rate(way, baud),  # and not what it took: who loses samples has less to do
        "us": 1e6 * each_s,
        "lost": missing / sent,
        "corrupt": found["corrupt"],
    }


def summary(rounds: list[Json]) -> Json:
    """The median of what it costs, the worst of what went wrong."""
    first, costs = rounds[0], ("core", "us")
    worst = {key: max(each[key] for each in rounds) for key in ("lost", "corrupt")}
    return first | {key: statistics.median(each[key] for each in rounds) for key in costs} | worst


def compare(baud: int, rounds: int, seconds: float) -> list[Json]:
    say(f"{baud:,} baud: frames of {frame_size(baud)} samples, {rate('amiss', baud):,.0f} samples a second")
    found: dict[str, list[Json]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, of_it in found.items():
            of_it.append(run(way, baud, seconds))
    rows = [summary(each) for each in found.values()]
    return [{**row, "to_limit": row["core"] / rows[-1]["core"]} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
