"""Drift, the question for a new normal, and what forgiving costs: on the simulated machine, and on public sets beside it.

    python -m benchmarks.drift [--days 30] [--data ../shared/data] [--out bench-out]

The simulated machine runs at 100 Hz, with windows of 64 samples and the default recipe. Its head is fitted to the first hour
of that very machine, as `amiss commission` does it. What follows comes later, and nothing has seen any of it.

Beside ours stands *plain CUSUM*: of the raw score of every window that shares no sample with the one before, in usual
spreads of the first hour, with the textbook's allowance of half a standard deviation and threshold of 5 (Montgomery,
"Introduction to Statistical Quality Control"), and with a threshold of 25.

- *false drifts*: stationary running, three machines, a window every five seconds. With 0 in n months the truth is below 3 / n
  a month, with 95 % confidence.
- *delay*: a channel wanders off evenly. How long after it began, and how far it was by then, in usual spreads; and when the
  first alert came.
- *stays*: a channel jumps and stays there. Exactly one `anomaly_started` and one `new_normal` is what is wanted.
- *faults*: a fault that is not slow. `drift` would be the wrong word for it.
- *forgiven*: of each fault an episode is called ordinary; then the same fault at another time, and all others. Share of the
  windows of the fault with an episode on.
- *sets*: normal running, earlier and later, of `benchmarks.promise`, whose report says that normal moves on in most of them.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import promise
from benchmarks.detect import ANY, ROOT, commissioned, versions
from edge.bundle import Bundle
from edge.event import Event
from edge.pipeline import Pipeline
from edge.scoring.backends import Outputs
from edge.scoring.reference import WATCHED
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.simulate import CHANNELS, FAULTS, Machine
from edge.signal import Float32, Float64, Samples
from quantize import quantize
from trainer.recipe import Recipe
from trainer.train import train

RESULTS = ROOT / "docs" / "results-drift.md"
RATE_HZ, WINDOW, STEPS = 100.0, 64, 60
HOUR = round(3600 * RATE_HZ)
CHUNK = 51_200
MACHINES = 3
SPEEDS = 0.3, 1.0, 3.0, 10.0, 30.0
"""Usual spreads an hour."""
SIZES = 1.0, 2.0, 4.0, 8.0
"""Usual spreads."""
FAULTY = tuple(name for name, fault in FAULTS.items() if not fault.sensor)
SEVERITIES = 0.5, 1.0, 2.0
SETS = "skab", "smd", "nab"
QUIET = 25.0
"""A threshold for plain CUSUM that is as rarely wrong as a person would ask for."""


class Cusum:
    """Page 1954, one-sided, of values in standard deviations."""

    def __init__(self, threshold: float, allowance: float = 0.5) -> None:
        self.threshold, self._allowance, self.sum, self.told = threshold, allowance, 0.0, 0

    def update(self, values: Float64) -> int | None:
        """Which of them raised it first; begins anew each time."""
        first = None
        for i, value in enumerate(values.tolist()):
            self.sum = max(0.0, self.sum + value - self._allowance)
            if self.sum > self.threshold:
                self.sum, self.told = 0.0, self.told + 1
                first = i if first is None else first
        return first


@dataclass(frozen=True, slots=True)
class Site:
    """A machine, its own bundle, and its running after the hour that this was fitted to."""

    bundle: Bundle
    machine: Machine
    centre: float
    """Of the raw score in that hour, by scorers that did not learn from what they score,"""
    spread: float
    """and its usual spread."""

    def running(self, samples: int) -> Iterator[Samples]:
        for at in range(0, samples, CHUNK):
            yield self.machine.next(min(CHUNK, samples - at))

    def scores(self, samples: Samples) -> Float64:
        """In standard deviations, of windows that share nothing."""
        count = samples.x.shape[1] // WINDOW
        x = samples.x[:, : count * WINDOW].reshape(len(CHANNELS), count, WINDOW).transpose(1, 0, 2)
        pipeline = self.bundle.pipeline()
        score = self.bundle.head.scorer.score(pipeline.outputs(np.ascontiguousarray(x)))
        return (score.astype(np.float64) - self.centre) / self.spread


def learned(folder: Path, recording: Recording, window: int) -> Bundle:
    recipe = Recipe(window=window)
    recipe = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, steps=STEPS, device="cpu"))
    write_recording(folder / "normal.parquet", recording)
    train(recipe, [folder / "normal.parquet"], folder / "run", overwrite=True)
    quantize(folder / "run", folder / "b.amiss", precision="int8", budget=ANY)
    return Bundle.open(folder / "b.amiss")


def site(fleet: Bundle, seed: int) -> Site:
    machine = Machine(seed, RATE_HZ)
    hour = machine.next(HOUR)
    bundle = commissioned(fleet, Recording("hour", CHANNELS, hour.time_ns, hour.x), hop=WINDOW)
    reference = bundle.head.reference
    assert reference is not None
    return Site(bundle, machine, float(reference.score[0]), float(reference.score[1]))


def stationary(fleet: Bundle, days: float) -> list[str]:
    lines = [
        f"| machine | days | drifts | of those, score alone | plain CUSUM, h = 5 | h = {QUIET:g} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for seed in range(1, MACHINES + 1):
        place = site(fleet, seed)
        pipeline = place.bundle.pipeline(hop=8 * WINDOW, smooth=False)
        plain, quiet = Cusum(5.0), Cusum(QUIET)
        events: list[Event] = []
        total = round(days * 24 * HOUR / MACHINES)
        for part in place.running(total):
            verdicts = pipeline.judge(part)
            events += verdicts.events
            values = (verdicts.score.astype(np.float64) - place.centre) / place.spread
            plain.update(values)
            quiet.update(values)
        drifts = [event for event in events if event.type == "drift" and event.until_ns is None]
        alone = sum(event.reason.startswith("score") for event in drifts)
        lines.append(f"| {seed} | {days / MACHINES:g} | {len(drifts)} | {alone} | {plain.told} | {quiet.told} |")
        say(lines[-1])
    return lines


Change = Callable[[Float32, Float64, float], Float32]
"""Samples (C, n), how far it has gone in each (n,) in usual spreads, one usual spread in the channel's unit."""


def moved(channel: str) -> Change:
    def change(x: Float32, far: Float64, spread: float) -> Float32:
        y = x.copy()
        y[CHANNELS.index(channel)] += (far * spread).astype(np.float32)
        return y

    return change


def louder(channel: str) -> Change:
    def change(x: Float32, far: Float64, spread: float) -> Float32:
        y = x.copy()
        at = CHANNELS.index(channel)
        middle = np.float32(np.median(y[at]))
        y[at] = middle + (y[at] - middle) * np.exp(far * spread).astype(np.float32)
        return y

    return change


WANDERINGS: dict[str, tuple[Change, str, str]] = {
    "temperature creeps up": (moved("temperature"), "level", "temperature"),
    "current creeps up": (moved("current"), "level", "current"),
    "vibration_x grows louder": (louder("vibration_x"), "movement", "vibration_x"),
}


def usual(place: Site, kind: str, channel: str, hour: Samples) -> float:
    """One usual spread in the channel's unit, or in the logarithm of its amplitude."""
    reference = place.bundle.head.reference
    assert reference is not None
    at = CHANNELS.index(channel)
    scale = float(reference.scale[WATCHED.index(kind), at])
    if kind == "movement":
        return scale
    # Levels are in the model's units: found by moving the channel and looking.
    pipeline = place.bundle.pipeline()
    x = hour.x[None, :, :WINDOW]
    y = x.copy()
    y[:, at] += 1
    step = float(pipeline.outputs(y).level[0, at] - pipeline.outputs(x).level[0, at])
    return scale / step


def delays(fleet: Bundle) -> list[str]:
    lines = [
        f"| what | spreads an hour | drift after | gone by then | told as | first alert | CUSUM, h = 5 | h = {QUIET:g} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (change, kind, channel) in WANDERINGS.items():
        for speed in SPEEDS:
            place = site(fleet, 11)
            one = usual(place, kind, channel, place.machine.next(WINDOW))
            pipeline = place.bundle.pipeline(hop=2 * WINDOW)
            plain, quiet = Cusum(5.0), Cusum(QUIET)
            began: dict[str, float] = {}
            reason, at = "", 0
            limit = round((1 + 2 / speed) * HOUR)
            for part in place.running(limit):
                far = speed * (at + np.arange(len(part))) / HOUR
                samples = Samples(part.time_ns, change(part.x, far, one))
                for event in pipeline.feed(samples):
                    hours = at_hours(event, limit, place)
                    if event.type == "drift" and event.until_ns is None and "drift" not in began:
                        began["drift"], reason = hours, event.reason
                    if event.type == "anomaly_started" and "alert" not in began:
                        began["alert"] = hours
                values = place.scores(samples)
                for key, cusum in (("plain", plain), ("quiet", quiet)):
                    found = cusum.update(values)
                    if found is not None and key not in began:
                        began[key] = (at + found * WINDOW) / HOUR
                at += len(part)
                if {"drift", "alert", "plain", "quiet"} <= began.keys():
                    break
            gone = f"{began['drift'] * speed:.2g}" if "drift" in began else "–"
            cells = [hours_said(began.get(key)) for key in ("drift", "alert", "plain", "quiet")]
            lines.append(
                f"| {name} | {speed:g} | {cells[0]} | {gone} | {reason or '–'} | {cells[1]} | {cells[2]} | {cells[3]} |"
            )
            say(lines[-1])
    return lines


def at_hours(event: Event, limit: int, place: Site) -> float:
    return (event.time_ns - place.machine.start_ns) / 3.6e12 - 1  # the machine had run for an hour


def hours_said(hours: float | None) -> str:
    return "–" if hours is None else f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def stays(fleet: Bundle) -> tuple[list[str], str]:
    lines = [
        "| channel | size | anomaly_started | new_normal | asked after | drift |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    exact = seen = 0
    hours = 24.0 / (len(SIZES) * len(CHANNELS))
    place = site(fleet, 21)
    quiet, rest = place.machine.next(HOUR // 6), place.machine.next(round(hours * HOUR))
    for channel in CHANNELS:
        one = usual(place, "level", channel, quiet)
        for size in SIZES:
            pipeline = place.bundle.pipeline(hop=WINDOW // 2)
            pipeline.feed(quiet)
            shifted = moved(channel)(rest.x, np.full(len(rest), size), one)
            events = pipeline.feed(Samples(rest.time_ns, shifted))
            count = {kind: sum(e.type == kind for e in events) for kind in ("anomaly_started", "new_normal", "drift")}
            asked = [event.time_ns - int(rest.time_ns[0]) for event in events if event.type == "new_normal"]
            if count["anomaly_started"]:
                seen += 1
                exact += count["anomaly_started"] == count["new_normal"] == 1
            lines.append(
                f"| {channel} | {size:g} | {count['anomaly_started']} | {count['new_normal']} | "
                f"{hours_said(asked[0] / 3.6e12) if asked else '–'} | {count['drift']} |"
            )
            say(lines[-1])
    return lines, f"Of {seen} shifts that raised an alert at all, {exact} raised exactly one and one question."


def faults(fleet: Bundle) -> list[str]:
    lines = [
        "| fault | severity | first told as | after | anomaly_started | new_normal | drift |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault in FAULTY:
        for severity in SEVERITIES:
            place = site(fleet, 31)
            pipeline = place.bundle.pipeline(hop=WINDOW // 2)
            pipeline.feed(place.machine.next(HOUR // 4))
            place.machine.inject(fault, severity)
            began_ns = round(1.25 * 3.6e12)
            events = [event for part in place.running(HOUR) for event in pipeline.feed(part)]
            count = {kind: sum(e.type == kind for e in events) for kind in ("anomaly_started", "new_normal", "drift")}
            first = next((e for e in events if e.type in ("anomaly_started", "drift")), None)
            cells = ["–", "–"] if first is None else [first.type, f"{(first.time_ns - began_ns) / 1e9:.0f} s"]
            lines.append(f"| {fault} | {severity:g} | {' | '.join(cells)} | {' | '.join(map(str, count.values()))} |")
            say(lines[-1])
    return lines


def forgiven(fleet: Bundle) -> list[str]:
    """Rows: what was forgiven. Columns: what came then."""
    place = site(fleet, 41)
    position = place.machine.position
    later: dict[str, Samples] = {}
    episode: dict[str, Samples] = {}
    for found, after, seconds in ((episode, 60, 300), (later, 1800, 300)):
        for fault in FAULTY:
            machine = Machine(41, RATE_HZ)
            machine.next(position + after * round(RATE_HZ))
            machine.inject(fault, 1.0)
            found[fault] = machine.next(seconds * round(RATE_HZ))
    healthy = Machine(41, RATE_HZ)
    healthy.next(position)
    normal = healthy.next(HOUR // 2)

    def recall(pipeline: Pipeline, fault: str) -> float:
        return float(pipeline.judge(later[fault]).alarm.mean())

    def fresh() -> Pipeline:
        return place.bundle.pipeline(hop=WINDOW // 4)

    lines = [
        f"| forgiven | prototypes | {' | '.join(FAULTY)} | normal, p ≤ 0.01 |",
        f"| --- | --- | {' | '.join('---' for _ in FAULTY)} | --- |",
    ]

    def line(name: str, prototypes: str, make: Callable[[], Pipeline]) -> str:
        cells = [f"{100 * recall(make(), fault):.0f} %" for fault in FAULTY]
        rare = 100 * float((make().judge(normal).p_value <= 0.01).mean())
        return f"| {name} | {prototypes} | {' | '.join(cells)} | {rare:.2g} % |"

    lines.append(line("nothing", "0", fresh))
    say(lines[-1])
    for fault in FAULTY:
        first = fresh()
        first.feed(episode[fault])
        outputs = first.outputs(first.evidence.x)
        try:
            kept = first.memory.add(fault, outputs)
        except ValueError as error:
            lines.append(f"| {fault} | refused: {error} |{' |' * (len(FAULTY) + 1)}")
            say(lines[-1])
            continue

        def make(fault: str = fault, outputs: Outputs = outputs) -> Pipeline:
            pipeline = fresh()
            pipeline.memory.add(fault, outputs)
            return pipeline

        lines.append(line(fault, str(kept), make))
        say(lines[-1])

        def undone(make: Callable[[], Pipeline] = make, fault: str = fault) -> Pipeline:
            pipeline = make()
            pipeline.memory.remove(fault)
            return pipeline

        before, after = recall(fresh(), fault), recall(undone(), fault)
        assert before == after, f"{fault}: {before} before, {after} after it was forgiven and that was undone"
    return lines


def cost(fleet: Bundle) -> list[str]:
    """µs for each call of `judge` with one new window, as a device makes them."""
    place = site(fleet, 41)
    normal = place.machine.next(HOUR // 6)
    place.machine.inject("overload", 1.0)
    place.machine.next(1000)
    strange = place.machine.next(HOUR // 6)
    hop = WINDOW // 4

    def spent(pipelines: Sequence[Pipeline], samples: Samples) -> Float64:
        """Of each; they take turns, and the quickest rounds count: the machine is not ours alone."""
        took: list[list[float]] = []
        for at in range(0, len(samples) - 64 * hop, 64 * hop):
            parts = [Samples(samples.time_ns[i : i + hop], samples.x[:, i : i + hop]) for i in range(at, at + 64 * hop, hop)]
            took.append([])
            for pipeline in pipelines:
                started = time.perf_counter()
                for part in parts:
                    pipeline.judge(part)
                took[-1].append((time.perf_counter() - started) / 64)
        return np.asarray(1e6 * np.quantile(took, 0.25, axis=0))

    def made(*, full: bool, reference: bool = True) -> Pipeline:
        pipeline = place.bundle.pipeline(hop=hop)
        if not reference:
            pipeline.drift = pipeline.settling = None
        if full:
            for i, fault in enumerate(FAULTY[:4] * 2):
                machine = Machine(41, RATE_HZ)
                machine.next(HOUR + i * 5000)
                machine.inject("imbalance" if fault == "overload" else fault, 2.0)
                machine.next(1000)
                windows = machine.next(8 * WINDOW).x.reshape(len(CHANNELS), 8, WINDOW).transpose(1, 0, 2)
                pipeline.memory.add(f"{i}", pipeline.outputs(np.ascontiguousarray(windows)))
        return pipeline

    rows = {
        "neither drift nor memory": made(full=False, reference=False),
        "drift, memory empty": made(full=False),
        "drift, memory full": made(full=True),
    }
    lines = ["| | prototypes | ordinary running | during an anomaly |", "| --- | --- | --- | --- |"]
    calm, excited = (spent(list(rows.values()), samples) for samples in (normal, strange))
    for i, (name, pipeline) in enumerate(rows.items()):
        lines.append(f"| {name} | {len(pipeline.memory)} | {calm[i]:.0f} µs | {excited[i]:.0f} µs |")
        say(lines[-1])
    return lines


def sets(data: Path) -> list[str]:
    lines = [
        "| set | later running | strange | first alert | drift | told as | new_normal | plain CUSUM, h = 5 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in SETS:
        for trial in promise.SETS[name](data / name):
            with tempfile.TemporaryDirectory(prefix="amiss-drift-") as folder:
                bundle = learned(Path(folder), trial.earlier[0], trial.window)
            (later,) = trial.later
            pipeline = bundle.pipeline()
            verdicts = [pipeline.judge(samples) for samples in later.samples()]
            events = [event for one in verdicts for event in one.events]
            p_value = np.concatenate([one.p_value for one in verdicts])
            begin_ns = int(later.time_ns[0])

            def after(found: Event | None, begin_ns: int = begin_ns) -> str:
                return "–" if found is None else promise.duration((found.time_ns - begin_ns) / 3.6e12)

            alert = next((event for event in events if event.type == "anomaly_started"), None)
            drift = next((event for event in events if event.type == "drift"), None)
            asked = sum(event.type == "new_normal" for event in events)
            lines.append(
                f"| {trial.name} | {promise.duration((int(later.time_ns[-1]) - begin_ns) / 3.6e12)} | "
                f"{100 * float((p_value <= pipeline.policy.p_value).mean()):.2g} % | {after(alert)} | {after(drift)} | "
                f"{drift.reason if drift else '–'} | {asked} | {cusum_on(bundle, trial)} |"
            )
            say(lines[-1])
    return lines


def cusum_on(bundle: Bundle, trial: promise.Trial) -> str:
    """When plain CUSUM on the raw score says something, against the calibration's scores."""
    pipeline = bundle.pipeline(hop=trial.window, smooth=False)
    reference = bundle.head.reference
    assert reference is not None
    centre, spread = float(reference.score[0]), float(reference.score[1])
    cusum = Cusum(5.0)
    for samples in trial.later[0].samples():
        found = pipeline.judge(samples)
        first = cusum.update((found.score.astype(np.float64) - centre) / spread)
        if first is not None:
            return promise.duration((int(found.end_ns[first]) - int(trial.later[0].time_ns[0])) / 3.6e12)
    return "–"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


PARTS = "stationary", "delays", "stays", "faults", "forgiven", "cost", "sets"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=9.0, help="of stationary running, all machines together")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the sets; $AMISS_DATA, ../shared/data")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="amiss-drift-") as folder:
        hour = Machine(0, RATE_HZ).next(HOUR)
        fleet = learned(Path(folder), Recording("fleet", CHANNELS, hour.time_ns, hour.x), WINDOW)
    kept = options.out / "drift.json"
    text: dict[str, list[str]] = {}
    if kept.exists() and tuple(chosen) != PARTS:
        text = msgspec.json.decode(kept.read_bytes(), type=dict[str, list[str]])
    for part in chosen:
        if part == "stationary":
            text[part] = stationary(fleet, options.days)
        elif part == "delays":
            text[part] = delays(fleet)
        elif part == "stays":
            lines, said = stays(fleet)
            text[part] = [said, "", *lines]
        elif part == "sets":
            text[part] = sets(options.data)
        else:
            text[part] = {"faults": faults, "forgiven": forgiven, "cost": cost}[part](fleet)
        kept.write_bytes(msgspec.json.encode(text))
        # What is not the whole benchmark does not take the place of its results; parts that were measured before count.
        target = RESULTS if set(text) == set(PARTS) else options.out / "results-drift.md"
        command = f"python -m benchmarks.drift --days {options.days:g}"
        target.write_text(report({name: text[name] for name in PARTS if name in text}, command), "utf-8")
        say(f"{part}: {time.monotonic() - started:.0f} s since the start; {target}")


TITLES = {
    "stationary": "False drifts",
    "delays": "Delay against speed",
    "stays": "Level shifts that stay, 24 hours of them",
    "faults": "Faults of the machine",
    "forgiven": "What forgiving costs",
    "cost": "What it costs to run",
    "sets": "Public sets: does drift say so?",
}


def report(text: dict[str, list[str]], command: str) -> str:
    """docs/results-drift.md"""
    lines = ["# Drift, new normal, memory", "", f"Written by `{command}`; do not edit.", ""]
    lines += [(__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    for name, found in text.items():
        lines += [f"## {TITLES[name]}", "", *found, ""]
    lines += ["## Made with", "", ", ".join(f"{key} {value}" for key, value in versions().items()) + ".", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
