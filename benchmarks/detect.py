"""`make bench-detect`: how well the int8 bundle tells what is amiss, beside what is simple; same rows, same metrics, one run.

    python -m benchmarks.detect [--sets skab,smd] [--seeds 3] [--limit 2] [--data ../shared/data] [--out bench-out]

- *int8* is what counts: the bundle, its head fitted to the machine's own normal rows as `amiss commission` does it, and the
  rows judged by `judge_recording`, the pipeline of the device, with a hop of one sample. A row's score is that of the window
  around it. *float* is the same with the float model.
- *untrained* is the int8 bundle of an encoder that took a single step, at the end of whose schedule the learning rate is 0:
  weights as they were drawn, everything else alike. What it reaches is not owed to learning.
- Recipes are `trainer/recipes/<set>-*.toml`, one for each row: the default one but for its window. Labels are for the figures
  and nothing else.
- Figures are means over the recordings of a set, with mean and spread over seeds. None of them is point-adjusted. VUS-PR
  (Paparrizos et al. 2022) is that of the authors' package TSB-AD to the last digit but one (`trainer.metrics`).

Encoders are kept under `--out` and made again when the code that makes them, the recipe or the data has changed.
Nothing fails here: where ours loses, the report says so.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from benchmarks.baselines import BASELINES
from benchmarks.detect_data import SETS, Case, Group
from edge.bundle import Bundle
from edge.head import Head
from edge.operating.commission import WINDOWS
from edge.operating.score import judge_recording, rows_to_windows
from edge.scoring.backends import Outputs, run_in_slices
from edge.scoring.commission import fit_head
from edge.scoring.ensemble import DEFAULT_SCORER, VIEWS, parse
from edge.sensing.health import Usual
from edge.sensing.recordings import Recording, write_recording
from edge.signal import Float64, Windows
from quantize import quantize
from trainer.baselines import standardised
from trainer.data import cut
from trainer.evaluate import buffer_of
from trainer.metrics import Label, auc_pr, auroc, vus_pr
from trainer.recipe import Budget, Recipe, apply_overrides, as_toml, load
from trainer.train import train

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results.md"
RECIPES = ROOT / "trainer" / "recipes"
Precision = Literal["auto", "int8", "float32"]
COLUMNS = {"auroc": "AUROC", "auc_pr": "AUC-PR", "vus_pr": "VUS-PR", "best_f1": "best F1"}
TITLES = {"skab": "SKAB: pump and valves", "smd": "SMD: servers"}
NOTHING_LEARNED = """\
The default scorer is given the raw window, its levels and its bands, and nothing that was learned. So *untrained* is no worse,
and what is found is owed to the scorers and not to the encoder ([ADR 8](adr/0008-several-scorers.md) says what the encoder
would add)."""
ANY = Budget(embedding_error=math.inf, rank_correlation=-1.0, flips=1.0, auroc_loss=1.0, slower=math.inf)
"""int8 is measured here whatever it costs; what `amiss quantize` would say to it is in the report."""
STATED = Budget(slower=math.inf)
SOURCES = {
    package: hashlib.sha256(b"".join(file.read_bytes() for file in sorted((ROOT / package).rglob("*.py")))).digest()
    for package in ("trainer", "quantize", "edge/sensing", "edge/scoring")
}
"""Read when they are imported, not hours later when somebody may have changed them."""
MAKES_RUNS = ("trainer", "edge/sensing")
MAKES_BUNDLES = (*MAKES_RUNS, "quantize", "edge/scoring")

Figures = dict[str, float]


@dataclass(slots=True)
class Row:
    """One method on one set."""

    name: str
    ours: bool = False
    made_with: str = "–"
    """The file of the recipe."""
    files: dict[str, list[Figures]] = field(default_factory=dict)
    """Of each recording, one entry per seed; only one when no chance is in it."""

    def add(self, file: str, figures: Figures) -> None:
        self.files.setdefault(file, []).append(figures)

    def means(self, column: str) -> Float64:
        """(seeds,) mean over the recordings."""
        values: Float64 = np.array([[figures[column] for figures in seeds] for seeds in self.files.values()])
        return np.asarray(values.mean(axis=0))

    def mean(self, column: str) -> float:
        return float(self.means(column).mean())

    def cell(self, column: str) -> str:
        means = self.means(column)
        spread = f" ± {_short(float(means.std(ddof=1)))}" if len(means) > 1 else ""
        return _short(float(means.mean())) + spread


class Judge:
    """The metrics of one recording; what does not depend on the score is computed once."""

    def __init__(self, test: Recording) -> None:
        assert test.label is not None
        self.label = test.label
        self.buffer = buffer_of(test)
        self._known: dict[bytes, Figures] = {}

    def figures(self, score: Float64) -> Figures:
        """What scores alike to the bit, as every seed does that the scorer reads nothing of, is judged once."""
        digest = hashlib.sha256(score.tobytes()).digest()
        if digest not in self._known:
            self._known[digest] = self._figures(scaled(score))
        return self._known[digest]

    def _figures(self, score: Float64) -> Figures:
        return {
            "auroc": auroc(score, self.label),
            "auc_pr": auc_pr(score, self.label),
            "vus_pr": vus_pr(score, self.label, self.buffer),
            "best_f1": best_f1(score, self.label),
        }


def scaled(score: Float64) -> Float64:
    """Between 0 and 1; what is infinitely strange is as strange as the strangest that is not."""
    finite = score[np.isfinite(score)]
    if not len(finite):
        return np.zeros(len(score))
    low, high = float(finite.min()), float(finite.max())
    found: Float64 = (np.clip(np.nan_to_num(score, nan=high, posinf=high, neginf=low), low, high) - low) / (high - low + 1e-12)
    return found


def best_f1(score: Float64, label: Label) -> float:
    """Of the rows, over all thresholds; rows that score alike are flagged together. An oracle's threshold: an upper bound."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(np.asarray(label, bool)[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    return float((2 * hits[last] / (last + 1 + hits[-1])).max())


def commissioned(bundle: Bundle, normal: Recording, hop: int | None = None) -> Bundle:
    """The bundle with a head fitted to `normal`: what `amiss commission` writes, in memory."""
    manifest = bundle.manifest
    outputs, windows, hop = of_normal(bundle, normal, hop)
    # The authors of the sets vouch for these rows, and the simple methods beside it are given all of them too.
    smoother, overlap, stride = bundle.smoother(hop), -(-manifest.window // hop), max(1, manifest.hop // hop)
    head = fit_head(manifest.scorer, outputs, windows.end_ns, smoother, overlap, trusted=True, stride=stride)
    return Bundle(
        manifest,
        bundle.digest,
        bundle.backend,
        Head(head.scorer, head.calibrator, head.explainer, head.reference, Usual.fit(windows.x), head.tail),
        bundle.golden,
        bundle.size,
        bundle.stream,
    )


def of_normal(bundle: Bundle, normal: Recording, hop: int | None = None) -> tuple[Outputs, Windows, int]:
    """What the model says of the windows that a head is fitted to, the windows, and samples from one to the next."""
    manifest = bundle.manifest
    hop = hop or max(1, min(manifest.hop, len(normal.time_ns) // WINDOWS))
    windows = cut(normal, manifest.rate_hz, manifest.window, hop, manifest.missing)
    return run_in_slices(bundle.backend, windows.x), windows, hop


def seen(bundle: Bundle, normal: Recording) -> bytes:
    """A digest of what the scorer is given of normal windows. Where two bundles of one window agree on it, their heads are
    the same and so are their scores: the seed and the weights have no part in them."""
    outputs, _, _ = of_normal(bundle, normal)
    found = hashlib.sha256(bundle.manifest.scorer.encode())
    for _, view in parse(bundle.manifest.scorer):
        found.update(VIEWS[view](outputs).tobytes())
    return found.digest()


def row_scores(bundle: Bundle, test: Recording) -> Float64:
    """(n,) from the device's pipeline with a hop of one sample. In a gap the nearest row that has a score speaks: the
    baselines score every row, and all are to be judged on the same ones."""
    verdicts = judge_recording(bundle, test, hop=1)
    index = rows_to_windows(test.time_ns, verdicts)
    known = np.flatnonzero(index >= 0)
    if len(known) < len(index):
        rows = np.arange(len(index))
        after = np.clip(np.searchsorted(known, rows), 0, len(known) - 1)
        before = np.maximum(after - 1, 0)
        index = index[np.where(rows - known[before] <= known[after] - rows, known[before], known[after])]
    return verdicts.score[index].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Encoders:
    """Makes bundles, and keeps them."""

    out: Path

    def bundles(self, name: str, group: Group, recipe: Recipe, *precisions: Precision) -> dict[str, Path]:
        """Precision → bundle."""
        data = msgspec.json.encode(recipe) + b"".join(
            hashlib.sha256(recording.time_ns.tobytes() + recording.x.tobytes()).digest() for recording in group.training
        )
        run = self.out / f"{name}-{_digest(data, MAKES_RUNS)}"
        if not run.exists():
            with tempfile.TemporaryDirectory(prefix="amiss-detect-") as folder:
                for recording in group.training:
                    write_recording(Path(folder) / f"{recording.name}.csv", recording)
                train(recipe, [Path(folder)], run)
        key = _digest(b"", MAKES_BUNDLES)
        found: dict[str, Path] = {}
        for precision in precisions:
            path = self.out / f"{run.name}-{key}-{precision}.amiss"
            if not path.exists():
                made = quantize(run, path, precision=precision, budget=ANY, name=name)
                if made.parity and (failures := made.parity.failures(STATED)):
                    path.with_suffix(".txt").write_text("; ".join(failures) + "\n", "utf-8")
            found[precision] = path
        return found


def _digest(data: bytes, packages: Sequence[str]) -> str:
    found = hashlib.sha256(data)
    for package in packages:
        found.update(SOURCES[package])
    return found.hexdigest()[:12]


def recipes_of(name: str) -> dict[int, Path]:
    """Window → recipe of a set, by length."""
    return dict(sorted((load(file).window, file) for file in RECIPES.glob(f"{name}-*.toml")))


def run_set(name: str, groups: list[Group], seeds: int, encoders: Encoders) -> tuple[list[Row], list[str]]:
    """The rows of one table, and what there is to say about int8."""
    simple = [Row(baseline.name) for baseline in BASELINES]
    files = recipes_of(name)
    ours = {
        (kind, n): Row(f"{kind}, windows of {n}", kind == "int8", file.name + (", 1 step" if kind == "untrained" else ""))
        for kind in ("untrained", "float", "int8")
        for n, file in files.items()
    }
    judges = {case.name: Judge(case.test) for group in groups for case in group.cases}
    for group in groups:
        for case in group.cases:
            normal, test = standardised(case.normal, case.test)
            for baseline, row in zip(BASELINES, simple, strict=True):
                for seed in range(seeds if baseline.seeded else 1):
                    started = time.monotonic()
                    row.add(case.name, judges[case.name].figures(baseline.score(normal, test, seed)))
                    _tell(name, case, baseline.name, seed, row, started)
    notes = []
    scores: dict[tuple[str, int, bytes], Float64] = {}
    for seed in range(seeds):
        for group in groups:
            for n, file in files.items():
                trained = apply_overrides(load(file), [f"training.seed={seed}"])
                one = apply_overrides(trained, ["training.steps=1"])
                label = f"{name}-{group.name}-w{n}-s{seed}"
                started = time.monotonic()
                made = encoders.bundles(label, group, trained, "int8", "float32")
                drawn = encoders.bundles(f"{label}-untrained", group, one, "int8")
                print(f"{label}: encoders, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                over = made["int8"].with_suffix(".txt")
                if over.exists():
                    notes.append(f"{label}: `amiss quantize` would ship float: {over.read_text('utf-8').strip()}")
                for kind, path in (("int8", made["int8"]), ("float", made["float32"]), ("untrained", drawn["int8"])):
                    bundle = Bundle.open(path)
                    for case in group.cases:
                        started = time.monotonic()
                        key = case.name, n, seen(bundle, case.normal)
                        if key not in scores:
                            scores[key] = row_scores(commissioned(bundle, case.normal), case.test)
                        ours[kind, n].add(case.name, judges[case.name].figures(scores[key]))
                        _tell(name, case, kind, seed, ours[kind, n], started)
    return [*simple, *ours.values()], notes


def _tell(name: str, case: Case, method: str, seed: int, row: Row, started: float) -> None:
    figures = ", ".join(f"{title} {_short(row.files[case.name][-1][key])}" for key, title in COLUMNS.items())
    took = f"{time.monotonic() - started:.1f} s"
    print(f"{name} {case.name}: {row.name}, seed {seed}: {figures} ({took})", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown that is a plain table too."""
    cells = [["", *COLUMNS.values(), "made with"]]
    cells += [[f"**{r.name}**" if r.ours else r.name, *(r.cell(column) for column in COLUMNS), r.made_with] for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def verdict(rows: Sequence[Row]) -> list[str]:
    """One sentence for each of ours: what it loses to, and in which columns."""
    others = [row for row in rows if row.name.split(",")[0] not in ("int8", "float")]
    found = []
    for row in (row for row in rows if row.ours):
        losses = []
        for other in others:
            worse = [title for column, title in COLUMNS.items() if other.mean(column) > row.mean(column)]
            if worse:
                losses.append(f"{other.name} ({'in everything' if len(worse) == len(COLUMNS) else ', '.join(worse)})")
        said = f"loses to {'; '.join(losses)}" if losses else "is ahead of every other row in every column"
        found.append(f"- **{row.name}** {said}.")
    return found


def report(tables: dict[str, tuple[list[Row], list[str]]], command: str, seeds: int) -> str:
    """docs/results.md"""
    lines = [
        "# What it finds",
        "",
        f"Written by `{command}`; do not edit.",
        "",
        "What counts is **int8**: the bundle as it ships, judged by the pipeline that a device runs, a window around every",
        "row. The recipe is the default one and only the window differs; its file stands in the row. Labels were used for",
        "these figures and for nothing else, and none of them is point-adjusted. *Untrained* is the same encoder with weights",
        f"as they were drawn. Best F1 takes the threshold of an oracle. Means over the recordings; {_seeds(seeds)}.",
        "",
        *([] if learned(DEFAULT_SCORER) else [NOTHING_LEARNED, ""]),
    ]
    for name, (rows, notes) in tables.items():
        count = len(rows[0].files)
        lines += [f"## {TITLES[name]}, {count} recording{'' if count == 1 else 's'}", "", *table(rows), ""]
        lines += ["Where ours loses:", "", *verdict(rows), ""]
        if notes:
            lines += ["int8 over the budget of `amiss quantize`:", "", *(f"- {note}" for note in notes), ""]
    used = [file for name in tables for file in recipes_of(name).values()]
    lines += ["## Made with", "", "Recipes, in `trainer/recipes/`, with what differs from the default there:", ""]
    lines += [*(f"- `{file.name}`: {differs(load(file))}" for file in used), ""]
    lines += [", ".join(f"{key} {value}" for key, value in versions().items()) + ".", ""]
    return "\n".join(lines)


def differs(recipe: Recipe) -> str:
    """From the default, in one line."""
    return ", ".join(f"`{line}`" for line in as_toml(recipe).splitlines()) or "nothing"


def learned(scorer: str) -> bool:
    """Whether any of its members is given what the encoder makes of a window."""
    return any(view not in ("signal", "level", "trace") for _, view in parse(scorer))


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("amiss", "numpy", "torch", "onnxruntime", "scikit-learn"):
        with suppress(PackageNotFoundError):  # the last one only comes with the extra `bench`, and not all need it
            found[name] = version(name)
    return found | {"on": platform.machine()}


def _seeds(seeds: int) -> str:
    return "one seed, so no spread is known" if seeds == 1 else f"± is the standard deviation over {seeds} seeds"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="judge only so many recordings of each set")
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the sets; $AMISS_DATA, ../shared/data")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    sets = options.sets.split(",")
    if unknown := set(sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    if options.seeds < 1 or (options.limit or 1) < 1:
        parser.error("--seeds and --limit are at least 1")
    whole = set(sets) == set(SETS) and options.limit is None
    groups = {name: SETS[name](options.data / name, options.limit) for name in sets}
    encoders = Encoders(options.out / "encoders")
    tables = {name: run_set(name, found, options.seeds, encoders) for name, found in groups.items()}
    command = f"python -m benchmarks.detect --sets {options.sets} --seeds {options.seeds}"
    command += f" --limit {options.limit}" if options.limit else ""
    about: dict[str, Any] = {"command": command, "versions": versions()}
    about["sets"] = {
        name: {row.name: {"mean": {c: row.means(c).tolist() for c in COLUMNS}, "files": row.files} for row in rows}
        for name, (rows, _) in tables.items()
    }
    (options.out / "detect.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    # What is not the whole benchmark does not take the place of its results.
    target = RESULTS if whole else options.out / "results.md"
    target.write_text(report(tables, command, options.seeds), "utf-8")
    for name, (rows, _) in tables.items():
        print("\n".join([TITLES[name], *table(rows), *verdict(rows), ""]))
    print(f"{target} and {options.out / 'detect.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
