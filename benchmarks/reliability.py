"""What reliability costs: `python -m benchmarks.reliability [--out bench-out] [--rounds 151]`, a part of `make bench`.

The same frames, in chunks as a serial source would hand them over, in turns through

- *bare*: decoder and `Pipeline`, the way from window to alarm: nobody looks after the sensor, for drift, for a new
  normal, and nothing is remembered;
- bare *and drift* (and settling), *and health*, *and both*;
- *all of it*: decoder and `Stream.take`, as the agent calls it between two chunks: sensor health, drift, settling, a memory
  that is full, history, the state for the broker, an outbox on disk.

Medians over the rounds, of the CPU time of the thread. *Undisturbed* are the
rounds of each way that nobody else on the machine has made slower: the twentieth that took least.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, wire
from benchmarks.agent import CASES, Case, Json
from benchmarks.models import Shape
from edge.bundle import Bundle
from edge.config import AlarmConfig, DeviceConfig, MqttConfig, StreamConfig
from edge.delivery import Delivery
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
from edge.operating.clock import HostClock
from edge.operating.stream import Stream
from edge.pipeline import Pipeline
from edge.sensing.decoders import open_decoder
from edge.sensing.sources import SerialSource, collect_s
from edge.signal import Samples

ROUND_S = 0.04
"""Of CPU time, roughly, of one way in one round: so short that what else the machine does touches all ways alike."""
GOAL = 0.15

Way = Callable[[Samples], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what reliability costs; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for bundles and reliability.json.")
    parser.add_argument("--rounds", type=int, default=151)
    parser.add_argument("--only", type=int, choices=range(len(CASES)), help="One case, to look closer.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for case in CASES if args.only is None else CASES[args.only : args.only + 1]:
        with tempfile.TemporaryDirectory(prefix="amiss-bench-") as temporary:
            results.append(measure(case, args.out, Path(temporary), args.rounds))
            print(line(results[-1]), flush=True)
    (args.out / "reliability.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    worst = max(result["cost"] for result in results)
    print(
        f"{'yes' if worst <= GOAL else 'NO '}  reliability costs at most {GOAL:.0%} of throughput: {worst:.1%}", file=sys.stderr
    )


def measure(case: Case, folder: Path, temporary: Path, rounds: int) -> Json:
    shape, path = case.shape, temporary / "model.amiss"
    models.with_hop(models.bundle(shape, folder), case.hop, path)
    bundle = Bundle.open(path)
    config = DeviceConfig(
        node="bench",
        bundle=str(path),
        state_dir=str(temporary),
        streams={"machine": StreamConfig(port="/dev/null", clock="sensor")},
        mqtt=MqttConfig(host="127.0.0.1", port=1),
    )
    with closing(Outbox(temporary / "outbox.db", device="bench", boot="b")) as outbox:
        delivery = Delivery(MqttSink(config.mqtt, "bench"), outbox)  # never started: what it would do is not this thread's
        pipelines = {name: with_parts(bundle, name) for name in ("bare", "and drift", "and health", "and both")}
        stream = Stream(
            "machine",
            SerialSource(config.streams["machine"], bundle.channels, shape.rate_hz),
            bundle,
            config,
            AlarmConfig(),
            outbox=outbox,
            delivery=delivery,
            clock=HostClock(),
            boot="b",
            later=lambda job: None,
        )
        remember(stream.pipeline, bundle)
        ways: dict[str, Way] = {name: pipeline.judge for name, pipeline in pipelines.items()} | {"all of it": stream.take}
        spent = in_turns(shape, bundle, config, ways, rounds)
        delivery.stop(0.0)
    bare, whole = spent["bare"], spent["all of it"]
    return {
        "case": case.name,
        "us_per_sample": {name: statistics.median(times) for name, times in spent.items()},
        "cost": 1 - 1 / statistics.median(w / b for w, b in zip(whole, bare, strict=True)),
        "cost_undisturbed": 1 - float(np.quantile(bare, 0.05) / np.quantile(whole, 0.05)),
    }


def with_parts(bundle: Bundle, what: str) -> Pipeline:
    pipeline = bundle.pipeline(health=what in ("and health", "and both"))
    if what in ("bare", "and health"):
        pipeline.drift = pipeline.settling = None
    return pipeline


def remember(pipeline: Pipeline, bundle: Bundle) -> None:
    """As much as a memory holds, and nothing that is met: it is asked whenever a window is a little strange."""
    x = bundle.golden.x + 30 * np.random.default_rng(1).normal(size=bundle.golden.x.shape).astype(np.float32)
    for i in range(8):
        try:
            pipeline.memory.add(f"episode-{i}", pipeline.outputs(x * (1 + i)))
        except ValueError as error:
            print(f"not remembered: {error}", file=sys.stderr)


def in_turns(shape: Shape, bundle: Bundle, config: DeviceConfig, ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """µs a sample, of each round."""
    decoders = {name: open_decoder(config.streams["machine"], bundle.channels, shape.rate_hz) for name in ways}
    per_chunk = 1 + int(collect_s(bundle.manifest.hop / shape.rate_hz) * shape.rate_hz / shape.frame)
    warm = 40
    first = wire.frames(shape, models.signal(shape, warm * per_chunk * shape.frame, seed=4))
    began_s = time.thread_time()
    for name, way in ways.items():
        play(first, per_chunk, decoders[name].feed, way)
    chunk_s = (time.thread_time() - began_s) / warm / len(ways)
    lumps = int(np.clip(ROUND_S / chunk_s, 8, 2000)) * per_chunk
    size = lumps * shape.frame
    # One signal, so that no way meets a jump between two rounds, and numbered on from the warm-up.
    later = wire.frames(shape, models.signal(shape, rounds * size, seed=5), first=len(first))
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        some = later[number * lumps : (number + 1) * lumps]
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            began_s = time.thread_time()
            play(some, per_chunk, decoders[name].feed, ways[name])
            spent[name].append(1e6 * (time.thread_time() - began_s) / size)
    return spent


def play(lumps: list[bytes], per_chunk: int, decode: Callable[[bytes, int], Samples], way: Way) -> None:
    for i in range(0, len(lumps), per_chunk):
        way(decode(b"".join(lumps[i : i + per_chunk]), 0))


def line(result: Json) -> str:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in result["us_per_sample"].items())
    cost = f"{result['cost']:.1%} of throughput ({result['cost_undisturbed']:.1%} in undisturbed rounds)"
    return f"{result['case']}: {cost}; µs a sample: {parts}"


if __name__ == "__main__":
    main()
