"""Bearings, where the shape of a vibration tells and its size does not: beside what maintenance engineers use.

    python -m benchmarks.bearings [--seeds 3] [--data ../shared/data] [--out bench-out]

- *CWRU*: windows of 2048 samples, each brought to unit variance and put under white noise of 12 dB more power, so that neither
  loudness nor the naked ear helps. Learned from the first 60 % of the healthy recording; the rest of it is to be told from each
  of the faulty ones, window by window. AUROC, mean over the recordings.
- *FEMTO*: bearings run until they fail. Learned from the first fifth of each life; an alert before two fifths is false.
  When, as a share of its life, is the first alert raised? A rule on the RMS, mean + 6 σ, stands beside: at the first window
  above it, and at the first two in a row, which is what an alert of ours waits for. One seed is enough where the scorer is
  given nothing learned: no other chance is in it.

Recipes: `trainer/recipes/cwru.toml` and `femto.toml`, the default one with another window and hop. int8 bundles, judged by the
pipeline of the device.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.detect import ANY, RECIPES, ROOT, commissioned, differs, learned
from edge.bundle import Bundle
from edge.operating.score import judge_recording
from edge.scoring.scorers import MahalanobisScorer
from edge.sensing.recordings import Recording, write_recording
from edge.signal import Bool, Float32, Float64
from quantize import quantize
from trainer.metrics import auroc
from trainer.recipe import Recipe, apply_overrides, load
from trainer.train import train

CWRU, FEMTO = RECIPES / "cwru.toml", RECIPES / "femto.toml"
NOISE_DB = 12
LEARNED = 0.6
"""Share of CWRU's healthy recording."""
STEP = 256
"""Samples from one window to learn from to the next."""
PERIOD_NS = 20_833
SIGMAS = 6.0


def bursts(windows: Float32, channels: tuple[str, ...], name: str) -> Recording:
    """Windows (n, C, N) with a pause after each, so that nothing is judged across two of them."""
    count, _, length = windows.shape
    time_ns = (np.arange(count)[:, None] * 3 * length + np.arange(length)).ravel() * PERIOD_NS
    x = np.ascontiguousarray(windows.transpose(1, 0, 2).reshape(len(channels), -1), np.float32)
    return Recording(name, channels, time_ns.astype(np.int64), x)


def noisy(signal: Float64, length: int, step: int, rng: np.random.Generator) -> Float32:
    """(n,) → (k, 1, N): windows of unit variance under white noise."""
    windows = np.lib.stride_tricks.sliding_window_view(signal, length)[::step]
    windows = (windows - windows.mean(axis=1, keepdims=True)) / windows.std(axis=1, keepdims=True)
    found: Float32 = (windows + rng.normal(0, 10 ** (NOISE_DB / 20), windows.shape)).astype(np.float32)[:, None]
    return found


def classical(windows: Float32) -> Float32:
    """(k, 1, N) → (k, 13): what bearings are watched by: moments, factors, and the shape of the spectrum."""
    x = windows[:, 0].astype(np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    size, rms = np.abs(x), x.std(axis=1)
    power = np.abs(np.fft.rfft(x)) ** 2
    power /= power.sum(axis=1, keepdims=True)
    frequency = np.linspace(0, 0.5, power.shape[1])
    centre = power @ frequency
    spread = np.sqrt((power * (frequency - centre[:, None]) ** 2).sum(axis=1))
    features = [
        rms,
        (x**3).mean(axis=1) / rms**3,
        (x**4).mean(axis=1) / rms**4,
        size.max(axis=1),
        np.ptp(x, axis=1),
        size.mean(axis=1),
        size.max(axis=1) / rms,
        rms / size.mean(axis=1),
        size.max(axis=1) / size.mean(axis=1),
        np.sqrt(size).mean(axis=1) ** 2,
        centre,
        spread,
        -(power * np.log(power + 1e-12)).sum(axis=1),
    ]
    return np.stack(features, axis=1).astype(np.float32)


def made(recipe: Recipe, recording: Recording, out: Path) -> Bundle:
    """An int8 bundle, learned from the recording and commissioned on it."""
    write_recording(out / "normal.parquet", recording)
    train(recipe, [out / "normal.parquet"], out / "run")
    quantize(out / "run", out / "b.amiss", precision="int8", budget=ANY)
    # A hop that is no shorter: what lies here beside each other was recorded seconds apart, and no window is to span two.
    return commissioned(Bundle.open(out / "b.amiss"), recording, recipe.hop)


def cwru(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Method → recording → AUROC."""
    rng = np.random.default_rng(seed)
    healthy = _vibration(folder / "Normal.npz")
    cut = int(LEARNED * len(healthy))
    recipe = apply_overrides(load(CWRU), [f"training.seed={seed}"])
    untrained = apply_overrides(recipe, ["training.steps=1"])
    window = recipe.window
    learned, fresh = noisy(healthy[:cut], window, STEP, rng), noisy(healthy[cut:], window, window, rng)
    scores: dict[str, dict[str, float]] = {"classical features": {}, "untrained": {}, "**int8**": {}}
    with tempfile.TemporaryDirectory(prefix="amiss-cwru-") as one, tempfile.TemporaryDirectory(prefix="amiss-cwru-") as two:
        recording = bursts(learned, ("drive end",), "normal")
        ours = made(recipe, recording, Path(one))
        drawn = made(untrained, recording, Path(two))
    simple = MahalanobisScorer.fit(classical(learned))
    for file in sorted(folder.glob("*_DE48.npz")):
        faulty = noisy(_vibration(file), window, window, rng)
        windows = np.concatenate([fresh, faulty])
        label = np.r_[np.zeros(len(fresh)), np.ones(len(faulty))].astype(np.int8)
        scores["classical features"][file.stem] = auroc(simple.score(classical(windows)), label)
        for name, bundle in (("untrained", drawn), ("**int8**", ours)):
            verdicts = judge_recording(bundle, bursts(windows, ("drive end",), file.stem))
            scores[name][file.stem] = auroc(verdicts.score, label)
        print(f"cwru {file.stem}: " + ", ".join(f"{n} {s[file.stem]:.3f}" for n, s in scores.items()), file=sys.stderr)
    return scores


def femto(file: Path, seed: int) -> dict[str, float | None]:
    """Share of the life at the first alert, and of the false ones how many there were."""
    with np.load(file, allow_pickle=False) as arrays:
        life, x = arrays["life_frac"], (arrays["x"] * arrays["scale"]).astype(np.float32)  # (n, 2560, 2)
    windows = x.transpose(0, 2, 1)
    learned = life <= 0.2
    channels = ("horizontal", "vertical")

    def stream(part: Float32, name: str) -> Recording:
        joined = np.ascontiguousarray(part.transpose(1, 0, 2).reshape(2, -1))
        return Recording(name, channels, np.arange(joined.shape[1], dtype=np.int64) * 39_063, joined)

    recipe = apply_overrides(load(FEMTO), [f"training.seed={seed}"])
    with tempfile.TemporaryDirectory(prefix="amiss-femto-") as folder:
        bundle = made(recipe, stream(windows[learned], "normal"), Path(folder))
    later = windows[~learned]
    pipeline = bundle.pipeline()
    events = [event for samples in stream(later, "life").samples() for event in pipeline.feed(samples)]
    at = [
        life[~learned][min(e.time_ns // (39_063 * x.shape[1]), len(later) - 1)] for e in events if e.type == "anomaly_started"
    ]
    rms = np.sqrt((windows.astype(np.float64) ** 2).mean(axis=2)).max(axis=1)
    limit = rms[learned].mean() + SIGMAS * rms[learned].std()
    loud = rms[~learned] > limit
    often = np.append(False, loud[1:] & loud[:-1])
    real = [float(a) for a in at if a > 0.4]
    return {
        "first alert": real[0] if real else None,
        "false alerts": sum(bool(a <= 0.4) for a in at),
        "RMS rule": _first(life[~learned], loud),
        "RMS rule, twice": _first(life[~learned], often),
    }


def _first(life: Float64, alarm: Bool) -> float | None:
    return float(life[alarm][0]) if alarm.any() else None


def _vibration(file: Path) -> Float64:
    with np.load(file, allow_pickle=False) as arrays:
        found: Float64 = arrays["DE"].astype(np.float64) * float(arrays["DE_scale"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the sets; $AMISS_DATA, ../shared/data")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    runs = [cwru(options.data / "cwru_48k", seed) for seed in range(options.seeds)]
    means = {name: [float(np.mean(list(run[name].values()))) for run in runs] for name in runs[0]}
    files = sorted((options.data / "femto").glob("*.npz"))
    again = options.seeds if learned(load(FEMTO).scorer) else 1
    lives = {file.stem: [femto(file, seed) for seed in range(again)] for file in files}
    made_with = {"classical features": "–", "untrained": f"{CWRU.name}, 1 step", "**int8**": CWRU.name}
    lines = [
        "# Bearings",
        "",
        f"Written by `python -m benchmarks.bearings --seeds {options.seeds}`; do not edit. That file says what is measured.",
        "",
        f"## CWRU under {NOISE_DB} dB of noise, {len(runs[0]['**int8**'])} recordings",
        "",
        "|  | AUROC | of the worst recording | made with |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.mean(of):.3f}{_deviation(of)} | {np.mean([min(run[name].values()) for run in runs]):.3f} "
            f"| {made_with[name]} |"
            for name, of in means.items()
        ),
        "",
        "## FEMTO: share of the life at the first alert",
        "",
        f"| bearing | int8 ({FEMTO.name}), by seed | false alerts, by seed | RMS rule | RMS rule, two in a row |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {', '.join(_share(r['first alert']) for r in of)} "
            f"| {', '.join(str(r['false alerts']) for r in of)} | {_share(of[0]['RMS rule'])} "
            f"| {_share(of[0]['RMS rule, twice'])} |"
            for name, of in lives.items()
        ),
        "",
        "## Made with",
        "",
        "Recipes, in `trainer/recipes/`, with what differs from the default there:",
        "",
        *(f"- `{file.name}`: {differs(load(file))}" for file in (CWRU, FEMTO)),
        "",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bearings.json").write_text(json.dumps({"cwru": runs, "femto": lives}, indent=1) + "\n", "utf-8")
    (ROOT / "docs" / "results-bearings.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


def _deviation(of: Sequence[float]) -> str:
    return f" ± {np.std(of, ddof=1):.3f}" if len(of) > 1 else ""


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
