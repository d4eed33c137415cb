"""Is the false-alarm rate that a bundle promises what normal running later shows? On six public sets, normal rows only.

    python -m benchmarks.promise [--sets skab,smd,…] [--steps 60] [--data ../shared/data] [--out bench-out]

Of each set a bundle learns from the earlier part of what is normal, with the default recipe but for the window. A quarter
of that part, dealt out over all of it, is held back from encoder and scorer and calibrates. What is normal and later is
judged, by the pipeline of the device: neither encoder nor scorer nor calibrator has seen any of it.

- *measured*: share of those windows with p at or below the threshold of the alerts; between which shares the truth lies with
  95 % confidence, and the verdict, as `amiss evaluate --report` says them (`trainer/promise.py`).
- *in turn*: the control. The same windows, the same scores, but calibrated on every other stretch of the later running itself
  and measured on the stretches between. Less here than there: normal has moved on since the bundle was made. Too much here
  too: what is strange comes in few, long stretches (seasons, jobs), which no calibration on some of them covers.
- *commissioned*: the cure. `amiss commission` on the first half of the later running, measured on the second half.
- *moved*: how far the median of the channel that moved most lies from where it was when the bundle learned, in standard
  deviations of that channel then. (A vibration that grows louder does not move its median.)

The default scorer reads nothing that the encoder learned (docs/adr/0008-several-scorers.md), so few steps serve.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.detect import ANY, ROOT, commissioned, versions
from benchmarks.detect_data import minutes, unlabelled
from edge.bundle import Bundle
from edge.operating.score import judge_recording
from edge.pipeline import Verdicts
from edge.scoring.calibrate import Calibrator
from edge.sensing.recordings import Recording, read_recording, write_recording
from edge.signal import Float32, Float64
from quantize import quantize
from trainer.promise import Point, Promise, judge, keep, measure
from trainer.recipe import Recipe
from trainer.train import train

RESULTS = ROOT / "docs" / "results-promise.md"
EARLIER = 0.6
"""Share of a recording that is learned from, where the set's authors do not say."""
STRETCHES = 20
"""Of the later running, dealt in turn."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One machine: normal running, earlier and later."""

    name: str
    earlier: tuple[Recording, ...]
    later: tuple[Recording, ...]
    window: int


def skab(folder: Path) -> Iterator[Trial]:
    """The anomaly-free recording. (What the labelled files call normal is minutes, each on another day.)"""
    (file,) = folder.glob("anomaly-free/*.csv")
    yield parted("SKAB, anomaly-free", unlabelled(read_recording(file), file.stem), 32)


def smd(folder: Path) -> Iterator[Trial]:
    """The halves that are called normal; nobody has labelled them."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            yield parted(f"SMD, {file.stem}", minutes(file.stem, arrays["train"]), 32)


def cwru(folder: Path) -> Iterator[Trial]:
    with np.load(folder / "Normal.npz", allow_pickle=False) as arrays:
        x = np.stack([arrays[key] * np.float32(arrays[f"{key}_scale"]) for key in ("DE", "FE")])
        yield parted("CWRU, healthy", at_rate("normal", ("drive_end", "fan_end"), x, float(arrays["fs"])), 256)


def femto(folder: Path) -> Iterator[Trial]:
    """The first fifth of a life, and the second. Snapshots of a tenth of a second; no window spans two."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            life, rate_hz = arrays["life_frac"], float(arrays["fs"])
            x = (arrays["x"] * arrays["scale"]).astype(np.float32)
        parts = [
            snapshots(f"{file.stem}-{name}", ("horizontal", "vertical"), x[which], rate_hz, 10.0)
            for name, which in (("earlier", life <= 0.2), ("later", (life > 0.2) & (life <= 0.4)))
        ]
        yield Trial(f"FEMTO, {file.stem}", (parts[0],), (parts[1],), 256)


def fan_mems(folder: Path) -> Iterator[Trial]:
    """Snippets of one second, at two speeds; no window spans two."""
    for file in sorted(folder.glob("*_normal.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            rate_hz = int(arrays["fs"])
            x = arrays["x"].reshape(-1, rate_hz, arrays["x"].shape[1])
        half = len(x) // 2
        parts = [
            snapshots(f"{file.stem}-{name}", ("ax", "ay", "az"), some, rate_hz, 2.0)
            for name, some in (("earlier", x[:half]), ("later", x[half:]))
        ]
        yield Trial(f"fan_mems, {file.stem.removesuffix('_normal')}", (parts[0],), (parts[1],), 32)


def nab(folder: Path) -> Iterator[Trial]:
    """The sensors among its series, up to the first window that its authors label."""
    for name in ("ambient_temperature_system_failure", "machine_temperature_system_failure"):
        with (folder / "realKnownCause" / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        first = next(i for i, row in enumerate(rows) if row["window_label"] == "1")
        moments = [datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp() for row in rows[:first]]
        x = np.array([[float(row["value"]) for row in rows[:first]]], np.float32)
        # Hours or five minutes apart; where rows are missing the windower finds the gap.
        time_ns, unique = np.unique((np.array(moments) * 1e9).astype(np.int64), return_index=True)
        short = name.removesuffix("_system_failure")
        yield parted(f"NAB, {short}", Recording(short, ("temperature",), time_ns, np.ascontiguousarray(x[:, unique])), 32)


SETS: dict[str, Callable[[Path], Iterator[Trial]]] = {
    "skab": skab,
    "smd": smd,
    "cwru_48k": cwru,
    "femto": femto,
    "fan_mems": fan_mems,
    "nab": nab,
}


def parted(name: str, whole: Recording, window: int) -> Trial:
    """Earlier and later, one window length apart."""
    rows = int(EARLIER * len(whole.time_ns))
    return Trial(name, (whole.part(0, rows),), (whole.part(rows + window),), window)


def at_rate(name: str, channels: tuple[str, ...], x: Float32, rate_hz: float) -> Recording:
    time_ns = np.round(np.arange(x.shape[1]) * 1e9 / rate_hz).astype(np.int64)
    return Recording(name, channels, time_ns, np.ascontiguousarray(x))


def snapshots(name: str, channels: tuple[str, ...], x: Float32, rate_hz: float, every_s: float) -> Recording:
    """(n, rows, C), one every so many seconds."""
    within = np.round(np.arange(x.shape[1]) * 1e9 / rate_hz).astype(np.int64)
    time_ns = (np.arange(len(x)) * round(every_s * 1e9))[:, None] + within
    return Recording(name, channels, time_ns.ravel(), np.ascontiguousarray(x.reshape(-1, x.shape[2]).T))


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one trial."""

    name: str
    promise: Promise
    in_turn: Point
    """The control."""
    commissioned: Promise
    """On the first half of the later running; measured on the second."""
    moved: float
    """Of the channel that moved most, in standard deviations."""
    moved_channel: str


def made(trial: Trial, steps: int) -> Bundle:
    recipe = Recipe(window=trial.window)
    recipe = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, steps=steps, device="cpu"))
    with tempfile.TemporaryDirectory(prefix="amiss-promise-") as name:
        folder = Path(name)
        for i, recording in enumerate(trial.earlier):
            write_recording(folder / f"{i}.parquet", recording)
        train(recipe, sorted(folder.glob("*.parquet")), folder / "run")
        quantize(folder / "run", folder / "b.amiss", precision="int8", budget=ANY)
        return Bundle.open(folder / "b.amiss")


def tried(trial: Trial, steps: int) -> Row:
    bundle = made(trial, steps)
    verdicts = [judge_recording(bundle, recording) for recording in trial.later]
    (later,) = trial.later
    half = len(later.time_ns) // 2
    own = commissioned(bundle, later.part(0, half))
    moved = shifts(trial)
    worst = int(moved.argmax())
    return Row(
        name=trial.name,
        promise=keep(bundle, verdicts),
        in_turn=in_turn(bundle, verdicts),
        commissioned=keep(own, [judge_recording(own, later.part(half + trial.window))]),
        moved=float(moved[worst]),
        moved_channel=trial.later[0].channels[worst],
    )


def in_turn(bundle: Bundle, verdicts: Sequence[Verdicts]) -> Point:
    """Calibrated on every other stretch of the windows and measured on the others, at the threshold of the alerts."""
    overlap = bundle.manifest.window / bundle.manifest.hop
    apart = int(np.ceil(overlap + bundle.manifest.smoothing / bundle.manifest.hop))
    scores = np.concatenate([one.score for one in verdicts])
    level = max(bundle.pipeline().policy.p_value, 2 / (len(scores) // 2 + 1))
    stretches = np.array_split(scores, max(4, min(STRETCHES, len(scores) // (4 * apart))))
    ruler = Calibrator.fit(np.concatenate([stretch[apart:] for stretch in stretches[::2]]))
    found, _ = measure([ruler.p_value(stretch[apart:]) for stretch in stretches[1::2]], level, overlap)
    return found


def shifts(trial: Trial) -> Float64:
    """(C,)"""
    before, after = (
        np.concatenate([one.x for one in part], axis=1).astype(np.float64) for part in (trial.earlier, trial.later)
    )
    spread = before.std(axis=1)
    away = np.abs(np.median(after, axis=1) - np.median(before, axis=1))
    return np.asarray(np.where(spread > 0, away / np.where(spread > 0, spread, 1), 0.0))


def share(value: float) -> str:
    return f"{100 * value:.2g} %"


def duration(hours: float) -> str:
    for unit, per in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * per:
            return f"{float(f'{hours / per:.2g}'):g} {unit}"
    return f"{hours * 3600:.2g} s"


WORDS = {"kept": "kept", "broken": "**not kept**", "unknown": "too few data"}


def table(rows: Sequence[Row]) -> list[str]:
    head = [
        "set",
        "later running",
        "independent windows",
        "promised",
        "measured",
        "95 % interval",
        "verdict",
        "more needed",
        "alerts",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        p, t = row.promise, row.promise.threshold
        more = "" if p.more_hours is None else duration(p.more_hours)
        interval = f"{share(t.low)} to {share(t.high)}"
        figures = [duration(p.hours), f"{p.independent:.0f} of {p.windows}", share(t.promised), share(t.measured), interval]
        lines.append([row.name, *figures, WORDS[p.verdict], more, str(p.alerts)])
    return [f"| {' | '.join(line)} |" for line in lines]


def why(rows: Sequence[Row]) -> list[str]:
    head = ["set", "verdict", "in turn: promised", "measured", "verdict", "commissioned: promised", "measured", "verdict"]
    head += ["moved most", "by, in σ"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = []
        for point in (row.in_turn, row.commissioned.threshold):
            figures += [share(point.promised), share(point.measured), WORDS[judge(point)]]
        lines.append([row.name, WORDS[row.promise.verdict], *figures, row.moved_channel, f"{row.moved:.2g}"])
    return [f"| {' | '.join(line)} |" for line in lines]


def reasons(rows: Sequence[Row]) -> list[str]:
    """One sentence for each that is not kept."""
    found = []
    for row in rows:
        if row.promise.verdict != "broken":
            continue
        t, c = row.promise.threshold, row.in_turn
        if c.low > c.promised:
            said = "Too much in turn as well: strange moments come in few, long stretches."
        elif c.high < t.low:
            said = "Less in turn, and not by chance: normal has moved on."
        elif c.measured < t.measured:
            said = "Less in turn, which points to normal having moved on; too few data to rule out chance."
        else:
            said = "As much in turn: nothing points to normal having moved on."
        found.append(
            f"- **{row.name}**: {share(t.measured)} of the time for {share(t.promised)} promised; in turn {share(c.measured)}, "
            f"at most {share(c.high)}. {said} The median of "
            f"{row.moved_channel} moved by {row.moved:.2g} σ."
        )
    return found or ["Everywhere it is kept, or too few data to tell."]


def report(rows: Sequence[Row], command: str) -> str:
    """docs/results-promise.md"""
    count = {verdict: sum(row.promise.verdict == verdict for row in rows) for verdict in WORDS}
    still = sum(row.commissioned.verdict == "broken" for row in rows)
    method = (__doc__ or "").split("\n\n", 2)[2].strip()
    return "\n".join(
        [
            "# Does it keep its promise?",
            "",
            f"Written by `{command}`; do not edit.",
            "",
            f"Of {len(rows)} machines it is kept on {count['kept']}, not kept on {count['broken']}, and on {count['unknown']} "
            "there are too few data to tell.",
            "",
            method,
            "",
            "## Later normal running",
            "",
            *table(rows),
            "",
            "*Independent*: so many windows that share nothing they are worth, of so many that were judged.",
            "*More needed*: so much more normal running until there is a verdict, if it goes on as it did.",
            "",
            "## Where it is not kept, and why",
            "",
            *reasons(rows),
            "",
            "A calibration promises for what is like the running that it was made on, and for nothing else.",
            "",
            "## Control and cure",
            "",
            f"Commissioned on the first half of the later running it is not kept in the second half on {still} of {len(rows)}: "
            "some machines go on moving.",
            "",
            *why(rows),
            "",
            "## Made with",
            "",
            ", ".join(f"{key} {value}" for key, value in versions().items()) + ".",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--steps", type=int, default=60)
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the sets; $AMISS_DATA, ../shared/data")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    sets = options.sets.split(",")
    if unknown := set(sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in sets:
        for trial in SETS[name](options.data / name):
            started = time.monotonic()
            rows.append(tried(trial, options.steps))
            (options.out / "promise.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
            print(f"{table(rows)[-1]} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    command = f"python -m benchmarks.promise --sets {options.sets} --steps {options.steps}"
    # What is not the whole benchmark does not take the place of its results.
    target = RESULTS if set(sets) == set(SETS) else options.out / "results-promise.md"
    target.write_text(report(rows, command), "utf-8")
    print(target.read_text("utf-8"))


if __name__ == "__main__":
    main()
