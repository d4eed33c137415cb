"""A starter that has learned its machine, beside a model trained on the same half hour: `python -m benchmarks.starter`.

Both are given 30 minutes of the simulated machine, at 100 and at 400 Hz. Then come 30 minutes that neither has seen, in which
every alert is a false one: with the alarm's default, which promises no rate, and with the budget of one a day that `amiss
device new` sets. And, with that budget, five faults after a minute of each.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.agent import Json, machine, say
from deploy import starter
from edge.bundle import Bundle, ChannelSpec
from edge.config import AlarmConfig
from edge.operating.commission import commission
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.simulate import CHANNELS, UNITS, simulate
from quantize import quantize
from trainer.recipe import Recipe
from trainer.train import train

SETTINGS = ((100.0, 64), (400.0, 256))
"""Rate and window."""
MINUTES = 30
FAULT_AT_S = 60
FAULTS = ("bearing", "imbalance", "misalignment", "overload", "overheating")
ALARMS = {"default": AlarmConfig(), "1/day": AlarmConfig(false_alarms="1/day")}
HEAD = f"| Hz | model | false alerts in {MINUTES} min: default, 1/day | {' | '.join(FAULTS)} |\n{'|---' * (3 + len(FAULTS))}|"


def alerts(bundle: Bundle, alarm: AlarmConfig, played: Recording) -> list[float]:
    """When, in seconds."""
    pipeline = bundle.pipeline(alarm)
    events = [event for samples in played.samples() for event in pipeline.feed(samples)]
    return [event.time_ns / 1e9 for event in events if event.type == "anomaly_started"]


def measure(rate_hz: float, window: int, folder: Path) -> list[Json]:
    normal = folder / "normal.csv"
    write_recording(normal, simulate(60 * MINUTES, rate_hz=rate_hz, seed=1))
    unseen = simulate(60 * MINUTES, rate_hz=rate_hz, seed=7)
    channels = [ChannelSpec(name, UNITS[name]) for name in CHANNELS]
    starter.build(channels, rate_hz, folder / "starter.amiss", window=window)
    commission(folder / "starter.amiss", [normal], folder / "taught.amiss", trusted=True)
    train(Recipe(window=window), [normal], folder / "run")
    quantize(folder / "run", folder / "trained.amiss")
    rows = []
    for name in ("taught", "trained"):
        bundle = Bundle.open(folder / f"{name}.amiss")
        delays = {}
        for fault in FAULTS:
            played = simulate(120, rate_hz=rate_hz, seed=2, fault=fault, fault_at_s=FAULT_AT_S)
            after = [at - FAULT_AT_S for at in alerts(bundle, ALARMS["1/day"], played) if at >= FAULT_AT_S]
            delays[fault] = min(after, default=None)
        false = {told: len(alerts(bundle, alarm, unseen)) for told, alarm in ALARMS.items()}
        rows.append({"rate_hz": rate_hz, "model": name, "false": false, "delay_s": delays})
        say(row(rows[-1]))
    return rows


def row(r: Json) -> str:
    delays = ["not found" if delay is None else f"{delay:.1f} s" for delay in r["delay_s"].values()]
    name = {"taught": "a starter, taught", "trained": "trained"}[r["model"]]
    return f"| {r['rate_hz']:g} | {name} | {', '.join(map(str, r['false'].values()))} | {' | '.join(delays)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="A starter beside a trained model; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for starter.json.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Json] = []
    for rate_hz, window in SETTINGS:
        with tempfile.TemporaryDirectory(prefix="amiss-starter-") as folder:
            rows += measure(rate_hz, window, Path(folder))
    (args.out / "starter.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", "utf-8")
    print(HEAD)
    print("\n".join(map(row, rows)))


if __name__ == "__main__":
    main()
