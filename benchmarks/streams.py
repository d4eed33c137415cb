"""Many sensors on one core: `python -m benchmarks.streams [--out bench-out] [--channels 1 8 38] [--streams 1 2 4 8]`.

`amiss run`, held to one core, with a pseudo-terminal for each stream of 100 Hz. Each sends frames of four samples, at times of
its own. For some seconds of quiet running: the share of the core that the agent needs, all threads and the kernel's work for it
included, and its memory. Then, in an agent in which the moment can be seen, an anomaly that lasts in all streams at once and is
told about once a second in each: from the last byte of the frame that completes a window to the event on the disk.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import models, wire
from benchmarks.agent import Case, Json, Setup, cpu_seconds, machine, private_mb, resident_mb, say, watch
from benchmarks.models import SHAPES, Shape
from deploy.brokers import mosquitto
from edge.delivery import topics
from edge.signal import Float32, Int64

WINDOW, RATE_HZ, FRAME = 64, 100.0, 4
QUIET_S, LATE_S, START_S = 8.0, 12.0, 20.0
UPDATE_S = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure many streams; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for bundles and streams.json.")
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 8, 38])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for channels in args.channels:
        shape = next((s for s in SHAPES if (s.channels, s.rate_hz) == (channels, RATE_HZ)), None)
        shape = shape or Shape(f"{channels} ch, 100 Hz", channels, RATE_HZ, WINDOW, FRAME)
        for streams in args.streams:
            with tempfile.TemporaryDirectory(prefix="amiss-bench-") as temporary:
                results.append(measure(shape, streams, args.out, Path(temporary)))
            say(row(results[-1]))
    (args.out / "streams.json").write_text(json.dumps({"machine": machine(), "rows": results}, indent=2) + "\n", "utf-8")
    print("| streams × channels | of one core | of it each stream | resident, MB (private) | byte to disk, p50 / p99 ms |")
    print("|---|---|---|---|---|")
    print("\n".join(map(row, results)))


def row(r: Json) -> str:
    late = r["latency_ms"]
    return (
        f"| {r['streams']} × {r['channels']} | {r['core']:.1%} | {r['core'] / r['streams']:.1%} "
        f"| {r['rss_mb']:.0f} ({r['rss_private_mb']:.0f}) | {late['p50']:.0f} / {late['p99']:.0f} |"
    )


class Sensors:
    """Several ports, each with a frame every 40 ms, evenly shifted against each other."""

    def __init__(self, shape: Shape, streams: int, x: Float32) -> None:
        self.ports = [wire.Port() for _ in range(streams)]
        self._lumps = wire.frames(shape, x)
        self._lump_s = shape.frame / shape.rate_hz
        self.at = 0
        self.sent_ns: Int64 = np.zeros((streams, len(self._lumps)), np.int64)

    def play(self, seconds: float, seen: Sequence[str] = (), first_s: dict[str, float] | None = None) -> None:
        """For so long, or until all of `seen` have been said."""
        began, first = time.monotonic(), self.at
        while self.at - first < seconds / self._lump_s and self.at < len(self._lumps):
            for i, port in enumerate(self.ports):
                due = began + (self.at - first + i / len(self.ports)) * self._lump_s
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                port.write(self._lumps[self.at], wait=False)
                self.sent_ns[i, self.at] = time.monotonic_ns()
            self.at += 1
            if first_s is not None and all(topic in first_s for topic in seen):
                return

    def close(self) -> None:
        for port in self.ports:
            port.close()


def measure(shape: Shape, streams: int, folder: Path, temporary: Path) -> Json:
    say(f"{streams} × {shape.name}")
    bundle = temporary / "model.amiss"
    models.with_hop(models.bundle(shape, folder), shape.window // 4, bundle)
    with mosquitto(temporary) as broker, Setup(Case(shape, shape.window // 4), bundle, broker, temporary) as setup:
        quiet = running(setup, shape, streams, temporary)
        late = lateness(setup, shape, streams, temporary)
    return {"streams": streams, "channels": shape.channels, **quiet, "latency_ms": late}


def device(folder: Path, setup: Setup, sensors: Sensors, alarm: str = "") -> Path:
    """As `Setup.config`, with a stream for each port."""
    one = setup.config(sensors.ports[0].name, alarm)
    text = one.read_text("utf-8")
    more = [f'[streams.s{i}]\nport = "{port.name}"\nclock = "sensor"\n' for i, port in enumerate(sensors.ports) if i]
    path = folder / f"streams-{one.name}"
    path.write_text(text + "".join(more), "utf-8")
    return path


def names(sensors: Sensors) -> list[str]:
    return ["machine", *(f"s{i}" for i in range(1, len(sensors.ports)))]


def running(setup: Setup, shape: Shape, streams: int, temporary: Path) -> Json:
    sensors = Sensors(shape, streams, models.signal(shape, int((START_S + QUIET_S + 5) * RATE_HZ), seed=6))
    states = [topics.state("bench", name) for name in names(sensors)]
    with watch(setup.broker) as seen:
        process = setup.spawn("amiss", "run", "--config", str(device(temporary, setup, sensors)))
        os.sched_setaffinity(process.pid, {0})
        sensors.play(START_S, states, seen.first_s)
        if missing := [topic for topic in states if topic not in seen.first_s]:
            raise SystemExit(f"no score from {missing}\n{setup.last_words()}")
        for task in Path(f"/proc/{process.pid}/task").iterdir():  # those that were started before it was held to one
            os.sched_setaffinity(int(task.name), {0})
        sensors.play(2.0)
        cpu_s, began = cpu_seconds(process.pid), time.monotonic()
        sensors.play(QUIET_S)
        core = (cpu_seconds(process.pid) - cpu_s) / (time.monotonic() - began)
        rss, private = resident_mb(process.pid), private_mb(process.pid)
        process.terminate()
        process.communicate(timeout=30)
    sensors.close()
    return {"core": core, "rss_mb": rss, "rss_private_mb": private, "gaps": seen.gaps}


def lateness(setup: Setup, shape: Shape, streams: int, temporary: Path) -> Json:
    strange = 8 * models.signal(shape, int((START_S + LATE_S + 5) * RATE_HZ), seed=7)
    sensors = Sensors(shape, streams, strange)
    alarm = (
        f"pending_windows = 1\nclear_windows = 1\ncool_down_s = 0\nupdate_every_s = {UPDATE_S}\nlongest_update_s = {UPDATE_S}"
    )
    states = [topics.state("bench", name) for name in names(sensors)]
    with watch(setup.broker) as seen:
        process = setup.spawn("benchmarks.inside", "streams", str(device(temporary, setup, sensors, alarm)), "0")
        os.sched_setaffinity(process.pid, {0})
        sensors.play(START_S, states, seen.first_s)
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {0})
        sensors.play(1.0)
        first = sensors.at
        sensors.play(LATE_S)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    answer = setup.answer(process)
    sensors.close()
    ordinal = {name: i for i, name in enumerate(names(sensors))}
    late = [
        event["done_ns"] - sensors.sent_ns[ordinal[event["stream"]], event["sample"] // shape.frame]
        for event in answer["events"]
        if event["type"].startswith("anomaly") and event["sample"] // shape.frame in range(first, sensors.at)
    ]
    if not late:
        raise SystemExit(f"no event came\n{setup.last_words()}")
    p50, p99 = np.percentile(np.array(late) / 1e6, (50, 99))
    return {"events": len(late), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


if __name__ == "__main__":
    sys.exit(main())
