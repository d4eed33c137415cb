"""An agent in this process, so that moments can be seen that it does not tell: `python -m benchmarks.inside JOB device.toml …`.

`throughput`: the real agent, its sensor replaced by bytes that are there already. What is counted is all that it does from
bytes to outbox, delivery included; between its rounds the bare runtime gets windows that are ready, in the same thread.

`latency`, and `streams` for several: the real agent on a real port; the time at which `Outbox.put` returned, that is, when the
record was on disk.
"""

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import models, wire
from benchmarks.models import Shape
from edge import config as configs
from edge.agent import Agent
from edge.delivery.outbox import Kind
from edge.scoring.backends import OUTPUTS, Outputs
from edge.sensing.decoders import open_decoder
from edge.sensing.sources import SerialSource, collect_s
from edge.sensing.windows import Windower
from edge.signal import Float32, Samples

ROUNDS = 9
ROUND_S = 0.2
"""Of CPU time, roughly."""
READY = 512
"""Windows that are ready for the bare runtime: more than a cache holds, as windows that arrive are not in one either."""


class Interleaved:
    """In place of `SerialSource`: what it would hand over in real time, as fast as it is taken, and the clocks."""

    def __init__(self, agent: Agent, shape: Shape) -> None:
        self._agent, self._shape = agent, shape
        self._decoder = open_decoder(agent.config.streams["machine"], agent.bundle.channels, shape.rate_hz)
        # A read begins with the first byte of a frame and takes what has arrived `collect_s` later.
        self.frames_per_chunk = 1 + int(collect_s(agent.bundle.manifest.hop / shape.rate_hz) * shape.rate_hz / shape.frame)
        manifest = agent.bundle.manifest
        windower = Windower(shape.channels, shape.rate_hz, manifest.window, manifest.hop, manifest.missing)
        n = manifest.window + (READY - 1) * manifest.hop
        time_ns = np.rint(np.arange(n) * 1e9 / shape.rate_hz).astype(np.int64)
        self._ready = windower.feed(Samples(time_ns, models.signal(shape, n, seed=3))).x
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(agent.config.bundle).with_suffix(".onnx")
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.result: dict[str, Any] = {}

    def epoch_offset_ns(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def samples(self) -> Iterator[Samples]:
        """The agent's thread runs this; while it is suspended in a `yield`, the agent works on the chunk."""
        stream, per_chunk = self._agent.streams["machine"], self.frames_per_chunk
        warm = 40
        lumps = wire.frames(self._shape, models.signal(self._shape, warm * per_chunk * self._shape.frame, seed=4))
        warm_s, position = time.process_time(), 0
        batches: list[int] = []
        run = self._agent.bundle.backend.run

        def noting(x: Float32) -> Outputs:
            batches.append(len(x))
            return run(x)

        self._agent.bundle.backend.run = noting  # type: ignore[method-assign]
        for at in range(0, len(lumps), per_chunk):
            yield self._decoder.feed(b"".join(lumps[at : at + per_chunk]), 0)
        self._agent.bundle.backend.run = run  # type: ignore[method-assign]
        chunk_s = (time.process_time() - warm_s) / warm
        chunks = int(np.clip(ROUND_S / chunk_s, 20, 2000))
        frames = chunks * per_chunk
        x = models.signal(self._shape, ROUNDS * frames * self._shape.frame, seed=5)
        # Numbered on from the warm-up, or the agent would see a sensor that started again.
        lumps = wire.frames(self._shape, x, first=len(lumps))
        pieces = [b"".join(lumps[at : at + per_chunk]) for at in range(0, len(lumps), per_chunk)]
        del x, lumps
        agent: list[float] = []
        single: list[float] = []
        formed: list[float] = []
        cpu_s = 0.0
        windows = 0
        for _ in range(ROUNDS):
            before, started_s = stream.windows, time.process_time()
            for piece in pieces[position : position + chunks]:
                yield self._decoder.feed(piece, 0)
            spent_s = time.process_time() - started_s
            position += chunks
            cpu_s, windows = cpu_s + spent_s, windows + stream.windows - before
            agent.append((stream.windows - before) / spent_s)
            single.append(self._bare([1]))
            formed.append(self._bare(batches))
        self.result = {
            "windows_per_cpu_s": statistics.median(agent),
            "bare_single_windows_per_cpu_s": statistics.median(single),
            "bare_formed_windows_per_cpu_s": statistics.median(formed),
            "of_limit": statistics.median(a / max(s, f) for a, s, f in zip(agent, single, formed, strict=True)),
            "of_limit_rounds": [round(a / max(s, f), 3) for a, s, f in zip(agent, single, formed, strict=True)],
            "cpu_ms_per_1000_samples": 1e6 * cpu_s / (ROUNDS * frames * self._shape.frame),
            "mean_batch": statistics.mean(batches),
            "samples_per_chunk": per_chunk * self._shape.frame,
            "windows": windows,
            "events": stream.events,
        }
        self._agent.stop()

    def _bare(self, batches: list[int]) -> float:
        """Windows a CPU second of `session.run` and nothing else, in batches of these sizes."""
        run, feeds, at, done = self._session.run, [], 0, 0
        for size in batches * (1 + READY // sum(batches)):
            at = at if at + size <= READY else 0
            feeds.append({"window": self._ready[at : at + size]})
            at, done = at + size, done + size
        windows, started_s = 0, time.thread_time()
        while time.thread_time() - started_s < ROUND_S / 2:
            for feed in feeds:
                run(OUTPUTS, feed)
            windows += done
        return windows / (time.thread_time() - started_s)


def throughput(config: Path, shape: Shape) -> dict[str, Any]:
    agent = Agent(configs.load(config))
    source = Interleaved(agent, shape)
    agent.streams["machine"].source = source
    agent.run()
    return source.result


def _time_puts(agent: Agent, note: Callable[[bytes, int], None]) -> None:
    """`note` is given each payload and when it was on disk, monotonic nanoseconds."""
    put = agent.outbox.put

    def timed(kind: Kind, topic: str, payload: Callable[[str], bytes] | bytes, *, durable: bool = True) -> str:
        built = []

        def build(record: str) -> bytes:
            built.append(payload if isinstance(payload, bytes) else payload(record))
            return built[0]

        record = put(kind, topic, build, durable=durable)
        note(built[0], time.monotonic_ns())
        return record

    agent.outbox.put = timed  # type: ignore[method-assign]  # there is no seam for it, and none is wanted


def latency(config: Path, shape: Shape) -> dict[str, Any]:
    """Until SIGTERM. For each event: number of its last sample, and when its bytes were read and it was on disk."""
    agent = Agent(configs.load(config))
    read_ns = 0

    def clock() -> int:  # called by the source when it has read
        nonlocal read_ns
        read_ns = time.monotonic_ns()
        return read_ns

    agent.streams["machine"].source = SerialSource(
        agent.config.streams["machine"],
        agent.bundle.channels,
        shape.rate_hz,
        clock=clock,
        collect_s=collect_s(agent.bundle.manifest.hop / shape.rate_hz),
    )
    noted: list[tuple[bytes, int, int]] = []
    _time_puts(agent, lambda payload, done_ns: noted.append((payload, read_ns, done_ns)))
    signal.signal(signal.SIGTERM, lambda *_: agent.later(agent.stop))
    agent.run()
    events = [(json.loads(payload), read, done) for payload, read, done in noted]
    return {
        "events": [
            {"sample": round(event["stream_ns"] * shape.rate_hz / 1e9), "read_ns": read, "done_ns": done, "type": event["type"]}
            for event, read, done in events
        ]
    }


def streams(config: Path, shape: Shape) -> dict[str, Any]:
    """As `latency`, for as many streams as there are, without the moment of reading."""
    agent = Agent(configs.load(config))
    noted: list[tuple[bytes, int]] = []
    _time_puts(agent, lambda payload, done_ns: noted.append((payload, done_ns)))
    signal.signal(signal.SIGTERM, lambda *_: agent.later(agent.stop))
    agent.run()
    return {
        "events": [
            {
                "stream": event["stream"],
                "sample": round(event["stream_ns"] * shape.rate_hz / 1e9),
                "done_ns": done,
                "type": event["type"],
            }
            for event, done in ((json.loads(payload), done) for payload, done in noted)
            if "stream_ns" in event
        ]
    }


if __name__ == "__main__":
    jobs = {"throughput": throughput, "latency": latency, "streams": streams}
    print(json.dumps(jobs[sys.argv[1]](Path(sys.argv[2]), models.SHAPES[int(sys.argv[3])])))
