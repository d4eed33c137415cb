"""`make bench`: the agent, the loop one would write instead, and the bare runtime; same model, same samples, one run.

    python -m benchmarks.agent [--out bench-out] [--only 3]

Four cases: 8 channels at 100 Hz and 3 channels at 10 kHz, each with a hop of a quarter window and of one sample. In each:

- *inside*: the agent fed with frames that are in memory already, in chunks as its serial source would hand them over in real
  time, and between its rounds `session.run` on windows that are ready: the limit. What counts as agent is everything from
  bytes to outbox and broker but the reading of the port. The limit is the better of batches of one and the batches that
  the agent forms, on one thread, with the runtime's own defaults otherwise.
- *outside*: the agent as it is started by `amiss run`, and `benchmarks.handwritten`, each a process of its own that reads a
  pseudo-terminal and talks to a Mosquitto. They get the same samples, as frames and as lines of text: each is what its user
  would send. The port waits for a reader that is late, so nothing is lost. CPU time is that of all threads of the process,
  the kernel's work for it included.
- *late*: the agent in real time, in an anomaly that lasts and is told again and again. From the last byte of the frame that
  completes a window to the moment at which `Outbox.put` has returned, on one clock. How many windows an alarm waits for
  (`alarm.pending_windows`) comes on top by choice.

Nothing fails here. Goals are printed with what is reached.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks import models, wire
from benchmarks.models import SHAPES, Shape
from deploy.brokers import mosquitto
from edge.bundle import verify
from edge.delivery import topics

NODE, STREAM = "bench", "machine"
STARTS = 3
START_S = 15.0
"""How long a start may take before it counts as failed."""
REAL_S = 6.0
"""Of real time, for CPU and resident memory."""
LATE_S = 10.0
UPDATE_S = 0.07
"""How often the lasting anomaly is told: no multiple of the time that a chunk takes, so that all phases of it are met."""
FLAT_OUT_S = 2.0
"""Roughly, for the agent and for the hand-written loop."""
TICK_S = 0.25
IDLE_CPU_S = 0.006
"""Less than this in a tick: the process has read everything and waits."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    shape: Shape
    hop: int

    @property
    def name(self) -> str:
        return f"{self.shape.name}, hop {self.hop}"


CASES = tuple(Case(shape, hop) for shape in SHAPES for hop in (shape.window // 4, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the agent; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for bundles and agent.json.")
    parser.add_argument("--only", type=int, choices=range(len(CASES)), help="One case, to look closer.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results = []
    for case in CASES if args.only is None else CASES[args.only : args.only + 1]:
        with tempfile.TemporaryDirectory(prefix="amiss-bench-") as temporary:
            results.append(measure(case, args.out, Path(temporary)))
    report: Json = {
        "command": " ".join(["python -m benchmarks.agent", *sys.argv[1:]]),
        "machine": machine(),
        "took_s": round(time.monotonic() - began, 1),
        "cases": results,
        "goals": goals(results),
    }
    path = args.out / "agent.json"
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print("\n".join(table(report)))
    say(f"{path}: written; the run took {report['took_s']:.0f} s")


def measure(case: Case, folder: Path, temporary: Path) -> Json:
    shape = case.shape
    say(f"{case.name}: model")
    bundle = temporary / "model.amiss"
    models.with_hop(models.bundle(shape, folder), case.hop, bundle)
    manifest, _ = verify(bundle.read_bytes())
    with mosquitto(temporary) as broker, Setup(case, bundle, broker, temporary) as setup:
        say(f"{case.name}: inside")
        inside = setup.inside("throughput")
        say(f"{case.name}: outside, {STARTS} starts, {REAL_S:g} s of real time, flat out")
        outside = agent_outside(setup, inside)
        say(f"{case.name}: hand-written")
        plain = handwritten_outside(setup, tuned=False)
        tuned = handwritten_outside(setup, tuned=True)
        say(f"{case.name}: late, {LATE_S:g} s")
        late = lateness(setup)
        spent = setup.start_profile()
    return {
        "case": case.name,
        "channels": shape.channels,
        "rate_hz": shape.rate_hz,
        "window": shape.window,
        "hop": case.hop,
        "precision": manifest.precision,
        "model_bytes": manifest.files["model.onnx"].size,
        "inside": inside,
        "agent": outside,
        "handwritten": plain,
        "handwritten_tuned": tuned,
        "latency_ms": late,
        "start_profile_ms": spent,
    }


class Setup:
    """What the processes of one case share."""

    def __init__(self, case: Case, bundle: Path, broker: int, folder: Path) -> None:
        self.case, self.bundle, self.broker, self.folder = case, bundle, broker, folder
        self._states = 0
        self._spawned: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Setup":
        return self

    def __exit__(self, *_: object) -> None:
        """An agent that was left behind would look for its port for ever, and find the one of the next run."""
        for process in self._spawned:
            if process.poll() is None:
                process.kill()
                process.wait()

    def config(self, port: str = "/dev/null", alarm: str = "") -> Path:
        """A device.toml, with an outbox of its own: an old one would tell old stories."""
        self._states += 1
        path = self.folder / f"device-{self._states}.toml"
        path.write_text(
            f"""\
node = "{NODE}"
bundle = "{self.bundle}"
state_dir = "{self.folder}/state-{self._states}"
[streams.{STREAM}]
port = "{port}"
clock = "sensor"
[mqtt]
host = "127.0.0.1"
port = {self.broker}
[alarm]
{alarm}
""",
            "utf-8",
        )
        return path

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        self._spawned.append(process)
        return process

    def inside(self, job: str, config: Path | None = None) -> Json:
        process = self.spawn("benchmarks.inside", job, str(config or self.config()), str(SHAPES.index(self.case.shape)))
        return self.answer(process)

    def last_words(self) -> str:
        return (self.folder / "log").read_text()[-3000:]

    def start_profile(self) -> dict[str, float]:
        return dict(self.answer(self.spawn("benchmarks.start", repr(time.monotonic()), str(self.config()))))

    def answer(self, process: "subprocess.Popen[str]") -> Json:
        text, _ = process.communicate(timeout=120)
        if process.returncode or not text:
            raise SystemExit(f"{process.args!r}: ended with {process.returncode}\n{self.last_words()}")
        answer: Json = json.loads(text.splitlines()[-1])
        return answer


def agent_outside(setup: Setup, inside: Json) -> Json:
    """`amiss run`: start, real time, flat out."""
    shape = setup.case.shape
    flat_out = int(FLAT_OUT_S * 1e6 / inside["cpu_ms_per_1000_samples"] / shape.frame)
    real = int(REAL_S * shape.rate_hz / shape.frame)
    spare = int(START_S * shape.rate_hz / shape.frame)
    lumps = wire.frames(shape, models.signal(shape, (spare + real + flat_out) * shape.frame, seed=6))
    starts: list[Json] = []
    for left in reversed(range(STARTS)):
        port = wire.Port()
        player = wire.Player(port, lumps, shape.frame / shape.rate_hz)
        with watch(setup.broker) as seen:
            began = time.monotonic()
            process = setup.spawn("amiss", "run", "--config", str(setup.config(port.name)))
            # Like a sensor, it sends before anybody listens; what is not taken is lost.
            state = topics.state(NODE, STREAM)
            player.play(spare, wait=False, until=lambda seen=seen, state=state: state in seen.first_s)  # type: ignore[misc]
            if state not in seen.first_s:
                raise SystemExit(f"{setup.case.name}: no score within {START_S:g} s\n{setup.last_words()}")
            online_s, first_score_s = seen.first_s[topics.availability(NODE)] - began, seen.first_s[state] - began
            starts.append({"online_s": round(online_s, 3), "first_score_s": round(first_score_s, 3)})
            if not left:
                real_time = spend(process.pid, player, real)
                rss, private = resident_mb(process.pid), private_mb(process.pid)
                backlog = spend(process.pid, player, flat_out, flat_out=True)
                peak = resident_mb(process.pid)
                gaps = seen.gaps
        process.terminate()
        process.communicate(timeout=30)
        port.close()
    if gaps:
        raise SystemExit(f"{gaps} gaps, though nothing was lost on the way: does somebody else read {port.name}?")
    return {
        "starts": starts,
        "online_s": statistics.median(start["online_s"] for start in starts),
        "first_score_s": statistics.median(start["first_score_s"] for start in starts),
        "window_fill_s": shape.window / shape.rate_hz,
        "real_time": per_sample(setup.case, real_time),
        "flat_out": per_sample(setup.case, backlog),
        "rss_mb": rss,
        "rss_private_mb": private,
        "rss_after_flat_out_mb": peak,
    }


def handwritten_outside(setup: Setup, *, tuned: bool) -> Json:
    """Flat out first, to see whether it can follow the sensor at all."""
    case, shape = setup.case, setup.case.shape
    real = int(REAL_S * shape.rate_hz / shape.frame)
    # Sizes from a first guess of what a line costs; the figures are per sample anyway.
    guess_s = (0.03e-3 if tuned else 0.25e-3) + 0.1e-3 / case.hop
    flat_out = int(min(FLAT_OUT_S / guess_s, 60_000) / shape.frame)
    lumps = wire.lines(shape, models.signal(shape, (real + flat_out) * shape.frame, seed=6))
    port = wire.Port()
    player = wire.Player(port, lumps, shape.frame / shape.rate_hz)
    sizes = ["--channels", shape.channels, "--window", shape.window, "--hop", case.hop]
    process = setup.spawn(
        *("benchmarks.handwritten", port.name, str(setup.bundle.with_suffix(".onnx")), "--mqtt", str(setup.broker)),
        *(*map(str, sizes), "--threshold", "1000", *(["--tuned"] if tuned else [])),
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    backlog = per_sample(case, spend(process.pid, player, flat_out, flat_out=True))
    follows = backlog["samples_per_s"] > shape.rate_hz
    real_time = per_sample(case, spend(process.pid, player, real)) if follows else None
    rss = resident_mb(process.pid)
    port.close()
    said, _ = process.communicate(timeout=30)
    if json.loads(said)["samples"] != player.at * shape.frame:
        raise SystemExit(f"{said.strip()} read, {player.at * shape.frame} samples sent: does somebody else read {port.name}?")
    return {"flat_out": backlog, "real_time": real_time, "keeps_up": follows, "rss_mb": rss}


def lateness(setup: Setup) -> Json:
    """Percentiles in ms, over the events of an anomaly that lasts."""
    shape = setup.case.shape
    count = int(LATE_S * shape.rate_hz / shape.frame)
    spare = int(START_S * shape.rate_hz / shape.frame)
    strange = 8 * models.signal(shape, (spare + count) * shape.frame, seed=7)
    port = wire.Port()
    player = wire.Player(port, wire.frames(shape, strange), shape.frame / shape.rate_hz)
    config = setup.config(
        port.name,
        f"pending_windows = 1\nclear_windows = 1\ncool_down_s = 0\nupdate_every_s = {UPDATE_S}\nlongest_update_s = {UPDATE_S}",
    )
    with watch(setup.broker) as seen:
        process = setup.spawn("benchmarks.inside", "latency", str(config), str(SHAPES.index(shape)))
        state = topics.state(NODE, STREAM)
        player.play(spare, wait=False, until=lambda: state in seen.first_s)
        first = player.at + round(0.5 * shape.rate_hz / shape.frame)  # what was on its way while it started
        player.play(count)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    port.close()
    events = [event for event in setup.answer(process)["events"] if event["sample"] >= first * shape.frame]
    if not events:
        raise SystemExit(f"{setup.case.name}: no event came\n{setup.last_words()}")
    sent = player.sent_ns[[event["sample"] // shape.frame for event in events]]
    read, done = (np.array([event[key] for event in events]) for key in ("read_ns", "done_ns"))

    def percentiles(ns: Any) -> Json:
        p50, p99 = np.percentile(ns / 1e6, (50, 99))
        return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(ns.max() / 1e6), 2)}

    return {
        "events": len(events),
        "total": percentiles(done - sent),
        "collecting": percentiles(read - sent),
        "read_to_outbox": percentiles(done - read),
    }


def spend(pid: int, player: wire.Player, count: int, *, flat_out: bool = False) -> Json:
    """Play lumps until the process has read them all; what it took."""
    quiet(pid)
    cpu_s, began, first = cpu_seconds(pid), time.monotonic(), player.at
    player.play(count, flat_out=flat_out)
    idle_s = quiet(pid)
    return {"lumps": player.at - first, "cpu_s": cpu_seconds(pid) - cpu_s, "wall_s": time.monotonic() - began - idle_s}


def quiet(pid: int) -> float:
    """Returns once the process has nothing to do, and how long it had had nothing to do by then, in seconds."""
    while True:
        before = cpu_seconds(pid)
        time.sleep(TICK_S)
        if cpu_seconds(pid) - before < IDLE_CPU_S:
            return TICK_S


def per_sample(case: Case, spent: Json) -> Json:
    samples = spent["lumps"] * case.shape.frame
    return {
        "samples": samples,
        "cpu_s": round(spent["cpu_s"], 4),
        "wall_s": round(spent["wall_s"], 3),
        "cpu_ms_per_1000_samples": 1e6 * spent["cpu_s"] / samples,
        "windows_per_cpu_s": samples / case.hop / spent["cpu_s"],
        "samples_per_s": samples / spent["wall_s"],
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, to the nanosecond; /proc/PID/stat would count in hundredths of a second."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def private_mb(pid: int) -> float:
    """Of that, what no file backs: the rest are pages of libraries, which the system can drop and other processes share."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


class Seen:
    """When something was first said on each topic, and the gaps that the agent told."""

    def __init__(self) -> None:
        self.first_s: dict[str, float] = {}
        self.gaps = 0
        self.subscribed = threading.Event()

    def note(self, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            return  # of the run before
        self.first_s.setdefault(message.topic, time.monotonic())
        if message.topic == topics.event(NODE, STREAM) and json.loads(message.payload)["type"] == "gap":
            self.gaps += 1


@contextmanager
def watch(broker: int) -> Iterator[Seen]:
    seen = Seen()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe("amiss/#", qos=1)
    client.on_subscribe = lambda *_: seen.subscribed.set()
    client.on_message = lambda _client, _data, message: seen.note(message)
    client.connect("127.0.0.1", broker)
    client.loop_start()
    try:
        if not seen.subscribed.wait(5):
            raise SystemExit("the broker does not answer")
        yield seen
    finally:
        client.disconnect()
        client.loop_stop()


def goals(results: list[Json]) -> list[Json]:
    """What was wanted, what is reached."""
    found: list[Json] = []

    def add(goal: str, some: list[Json], value: Callable[[Json], float], good: Callable[[float], bool], form: str) -> None:
        values = {result["case"]: value(result) for result in some}
        text = ", ".join(f"{format(value, form)} ({case})" for case, value in values.items())
        if not values:  # left out by --only
            return
        found.append({"goal": goal, "reached": all(map(good, values.values())), "values": values, "text": text})

    fast = [result for result in results if result["rate_hz"] >= 10_000]
    add("(1) at least 80 % of (3) at 10 kHz", fast, lambda r: float(r["inside"]["of_limit"]), lambda v: v >= 0.8, ".0%")
    add("(1) at least 5 times (2), flat out", results, ratio, lambda v: v >= 5, ".1f")
    add("at most 70 MB resident, ever", results, lambda r: float(r["agent"]["rss_after_flat_out_mb"]), lambda v: v <= 70, ".1f")
    add("first score 1.5 s after the start", results, lambda r: float(r["agent"]["first_score_s"]), lambda v: v <= 1.5, ".2f")
    return found


def ratio(result: Json, other: str = "handwritten") -> float:
    return float(result["agent"]["flat_out"]["windows_per_cpu_s"] / result[other]["flat_out"]["windows_per_cpu_s"])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(report: Json) -> list[str]:
    results: list[Json] = report["cases"]

    def real(key: str) -> Callable[[Json], str]:
        return lambda r: number(r[key]["real_time"]["cpu_ms_per_1000_samples"]) if r[key]["real_time"] else "cannot follow"

    def flat(key: str) -> Callable[[Json], str]:
        return lambda r: number(r[key]["flat_out"]["cpu_ms_per_1000_samples"])

    def rate(key: str) -> Callable[[Json], str]:
        return lambda r: f"{r[key]['flat_out']['windows_per_cpu_s']:,.0f}"

    def late(part: str) -> Callable[[Json], str]:
        return lambda r: f"{r['latency_ms'][part]['p50']:.1f} / {r['latency_ms'][part]['p99']:.1f}"

    rows: list[tuple[str, Callable[[Json], str]]] = [
        ("WINDOWS PER SECOND OF ONE CORE", lambda r: ""),
        ("inside: (3) session.run, batches of 1", lambda r: f"{r['inside']['bare_single_windows_per_cpu_s']:,.0f}"),
        ("        (3) session.run, the agent's batches", lambda r: f"{r['inside']['bare_formed_windows_per_cpu_s']:,.0f}"),
        ("            mean batch", lambda r: f"{r['inside']['mean_batch']:.1f}"),
        ("        (1) agent, bytes to outbox", lambda r: f"{r['inside']['windows_per_cpu_s']:,.0f}"),
        ("        (1) of (3)", lambda r: f"{r['inside']['of_limit']:.0%}"),
        ("outside, flat out: (1) agent", rate("agent")),
        ("        (2) hand-written", rate("handwritten")),
        ("        (2) hand-written, tuned", rate("handwritten_tuned")),
        ("        (1) to (2)", lambda r: f"{ratio(r):.1f}"),
        ("        (1) to (2), tuned", lambda r: f"{ratio(r, 'handwritten_tuned'):.1f}"),
        ("CPU ms PER 1,000 SAMPLES", lambda r: ""),
        ("inside: (1) agent without port", lambda r: number(r["inside"]["cpu_ms_per_1000_samples"])),
        ("outside, real time: (1) agent", real("agent")),
        ("        (2) hand-written", real("handwritten")),
        ("        (2) hand-written, tuned", real("handwritten_tuned")),
        ("outside, flat out: (1) agent", flat("agent")),
        ("        (2) hand-written", flat("handwritten")),
        ("        (2) hand-written, tuned", flat("handwritten_tuned")),
        ("LAST BYTE TO OUTBOX, ms, p50 / p99", late("total")),
        ("        of it collecting, on purpose", late("collecting")),
        ("        of it read to outbox", late("read_to_outbox")),
        ("        events", lambda r: str(r["latency_ms"]["events"])),
        ("RESIDENT MEMORY, MB: (1) agent, real time", lambda r: f"{r['agent']['rss_mb']:.1f}"),
        ("        of it private", lambda r: f"{r['agent']['rss_private_mb']:.1f}"),
        ("        (1) agent, after flat out", lambda r: f"{r['agent']['rss_after_flat_out_mb']:.1f}"),
        ("        (2) hand-written", lambda r: f"{r['handwritten']['rss_mb']:.1f}"),
        ("START, s: to online", lambda r: f"{r['agent']['online_s']:.2f}"),
        ("        to first score", lambda r: f"{r['agent']['first_score_s']:.2f}"),
        ("        of it one window of samples", lambda r: f"{r['agent']['window_fill_s']:.2f}"),
    ]
    cells = [["", *(r["case"] for r in results)], *([name, *(cell(r) for r in results)] for name, cell in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(results) + 1)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    info = report["machine"]
    lines += ["", f"{info['cpu']}, {info['cores']} cores; " + ", ".join(f"{name} {v}" for name, v in info["versions"].items())]
    lines += ["; ".join(f"{r['case']}: {r['precision']}, {r['model_bytes']:,} bytes" for r in results)]
    lines += ["", "goal"]
    lines += [f"  {'yes' if g['reached'] else 'NO '}  {g['goal']}: {g['text']}" for g in report["goals"]]
    return lines


def machine() -> Json:
    names = ("amiss", "numpy", "onnxruntime", "paho-mqtt", "pyserial")
    names_of_cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names_of_cpu[0] if names_of_cpu else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_before": os.getloadavg(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
