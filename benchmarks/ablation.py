"""What each part adds over an encoder that learned nothing: docs/results-ablation.md.

    python -m benchmarks.ablation [--sets skab,smd] [--seeds 3] [--limit 2] [--data ../shared/data] [--out bench-out]

Three questions, of one recipe of each set (`trainer/recipes/`) with one key changed at a time: what does each pretext add
beside masked reconstruction, what does each kind of encoder, and what does learning add to what each scorer finds? The control
is `encoder.kind = "random"`: a TCN whose weights stay as they were drawn, its decoder trained as ever.

The default scorer is given nothing that was learned, so pretexts and encoders are judged by scorers that are (`READING`).
Every figure is that of a bundle, int8 where there is int8, commissioned and judged as in `benchmarks.detect`. An encoder is
trained once per seed; all scorers hear the same outputs of its model.

What lies within the spread of the control's own seeds is called nothing. The report is written anew after every seed of a set.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.detect import (
    RECIPES,
    ROOT,
    TITLES,
    Encoders,
    Judge,
    commissioned,
    differs,
    learned,
    row_scores,
    seen,
    versions,
)
from benchmarks.detect_data import SETS, Group
from edge.bundle import Bundle
from edge.scoring.backends import Backend, Outputs
from edge.scoring.ensemble import DEFAULT_SCORER
from edge.signal import Float32, Float64
from trainer.recipe import apply_overrides, load

RESULTS = ROOT / "docs" / "results-ablation.md"
MADE_WITH = {"skab": "skab-64.toml", "smd": "smd-32.toml"}
CONTROL, USUAL = "random", "tcn, masked"
PRETEXTS = {
    USUAL: "",
    "masked + contrast": "pretext.weights.contrast=1",
    "masked + vicreg": "pretext.weights.vicreg=1",
    "masked + forecast": "pretext.weights.forecast=1",
    "masked + injected": "pretext.weights.injected=1",
    "masked, frequencies too": "pretext.frequency_ratio=0.3",
}
KINDS = {kind: f"encoder.kind={kind}" for kind in ("transformer", "lstm", "gru", "conv")}
VARIANTS = {CONTROL: "encoder.kind=random"} | PRETEXTS | KINDS
READING = ("mahalanobis(features)", "mahalanobis(embedding)", "subspace(map)")
"""They are given what the encoder makes of a window; pretexts and encoders are judged by them."""
HEADS = (
    *READING,
    "marginal(residual)",
    "knn(embedding)",
    "kmeans(features)",
    "subspace(trace)",
    "mahalanobis(signal)",
    "knn(signal)",
    DEFAULT_SCORER,
)
COLUMNS = {"auroc": "AUROC", "vus_pr": "VUS-PR"}

Key = tuple[str, str]
"""Variant and scorer."""


class Remembered:
    """A model that is asked once for each of the same windows."""

    def __init__(self, backend: Backend) -> None:
        self.name, self._backend = backend.name, backend
        self._known: dict[bytes, Outputs] = {}

    def run(self, x: Float32) -> Outputs:
        key = hashlib.sha256(str(x.shape).encode() + x.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._backend.run(x)
        return self._known[key]

    def versions(self) -> dict[str, str]:
        return self._backend.versions()


@dataclass(slots=True)
class Found:
    """Of one set."""

    figures: dict[Key, dict[str, list[float]]] = field(default_factory=dict)
    """Column → mean over the recordings, one of each seed."""
    shipped: dict[str, str] = field(default_factory=dict)
    """Variant → precision of its bundles."""
    recordings: int = 0

    @property
    def seeds(self) -> int:
        return min(len(of["auroc"]) for of in self.figures.values())

    def mean(self, key: Key, column: str) -> float:
        return float(np.mean(self.figures[key][column]))

    def spread(self, key: Key, column: str) -> float:
        """Standard deviation over the seeds; not a number when there is but one."""
        of = self.figures[key][column]
        return float(np.std(of, ddof=1)) if len(of) > 1 else float("nan")

    def added(self, key: Key, column: str) -> float:
        """Over the control, heard by the same scorer."""
        return self.mean(key, column) - self.mean((CONTROL, key[1]), column)

    def telling(self, key: Key, column: str) -> int:
        """1 when it adds more than the control's own seeds differ by, -1 when it takes as much away, 0 for nothing."""
        added, spread = self.added(key, column), self.spread((CONTROL, key[1]), column)
        return 0 if not abs(added) > spread else (1 if added > 0 else -1)


def scorers_of(variant: str) -> tuple[str, ...]:
    return HEADS if variant in (CONTROL, USUAL) else READING


def heard_by(bundle: Bundle, scorer: str, backend: Backend) -> Bundle:
    """The bundle with another scorer; it has no use before it is commissioned."""
    manifest = msgspec.structs.replace(bundle.manifest, scorer=scorer)
    return Bundle(
        manifest,
        bundle.digest,
        backend,
        bundle.head,
        bundle.golden,
        bundle.size,
    )


def run_seed(
    name: str,
    groups: list[Group],
    seed: int,
    encoders: Encoders,
    judges: dict[str, Judge],
    scores: dict[tuple[str, str, bytes], Float64],
    found: Found,
) -> None:
    """Adds the figures of one seed to `found`."""
    files: dict[Key, dict[str, list[float]]] = {}
    recipe = load(RECIPES / MADE_WITH[name])
    for group in groups:
        for variant, override in VARIANTS.items():
            started = time.monotonic()
            own = apply_overrides(recipe, [f"training.seed={seed}", *([override] if override else [])])
            label = f"{name}-{group.name}-{variant}-s{seed}".replace(" ", "").replace(",", "-").replace("+", "-")
            bundle = Bundle.open(encoders.bundles(label, group, own, "auto")["auto"])
            found.shipped[variant] = bundle.manifest.precision
            made = time.monotonic()
            for case in group.cases:
                backend = Remembered(bundle.backend)
                for scorer in scorers_of(variant):
                    own_bundle = heard_by(bundle, scorer, backend)
                    # As in `benchmarks.detect`: what a scorer is given is what its scores depend on.
                    key = case.name, scorer, seen(own_bundle, case.normal)
                    if key not in scores:
                        scores[key] = row_scores(commissioned(own_bundle, case.normal), case.test)
                    figures = judges[case.name].figures(scores[key])
                    columns = files.setdefault((variant, scorer), {column: [] for column in COLUMNS})
                    for column, values in columns.items():
                        values.append(figures[column])
            took = f"{made - started:.0f} s to make, {time.monotonic() - made:.0f} s to judge"
            print(f"{label}: {bundle.manifest.precision}, {took}", file=sys.stderr, flush=True)
    for one, columns in files.items():
        of = found.figures.setdefault(one, {column: [] for column in COLUMNS})
        for column, values in columns.items():
            of[column].append(float(np.mean(values)))
    found.recordings = len(judges)


def cell(found: Found, key: Key, column: str) -> str:
    spread = f" ± {_short(found.spread(key, column))}" if found.seeds > 1 else ""
    return _short(found.mean(key, column)) + spread


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def of_variants(found: Found, variants: Sequence[str]) -> list[str]:
    """Markdown: each variant, by each scorer that reads the encoder, and a sentence on what it adds."""
    head = ["", "ships", *(f"{title}, {scorer}" for scorer in READING for title in COLUMNS.values())]
    rows = [
        [variant, found.shipped[variant], *(cell(found, (variant, scorer), column) for scorer in READING for column in COLUMNS)]
        for variant in (CONTROL, *variants)
    ]
    return [*table(head, rows), "", *(f"- **{variant}** {judged(found, variant, READING)}." for variant in variants), ""]


def of_heads(found: Found) -> list[str]:
    """Markdown: each scorer with the control and with the encoder as it is trained by default."""
    head = ["", *(f"{title}, {variant}" for title in COLUMNS.values() for variant in (CONTROL, USUAL)), "learning adds"]
    rows = []
    for scorer in HEADS:
        cells = [cell(found, (variant, scorer), column) for column in COLUMNS for variant in (CONTROL, USUAL)]
        rows.append([scorer, *cells, judged(found, USUAL, [scorer]) if learned(scorer) else "is given nothing learned"])
    return [*table(head, rows), ""]


def judged(found: Found, variant: str, scorers: Sequence[str]) -> str:
    """What a variant adds over the control."""
    if found.seeds < 2:
        by = {column: [found.added((variant, scorer), column) for scorer in scorers] for column in COLUMNS}
        return ", ".join(f"{title} {' / '.join(f'{a:+.3f}' for a in by[column])}" for column, title in COLUMNS.items())
    parts = []
    for sign, verb in ((1, "adds"), (-1, "takes away")):
        told = [
            f"{abs(found.added((variant, scorer), column)):.3f} {title}" + (f" by {scorer}" if len(scorers) > 1 else "")
            for scorer in scorers
            for column, title in COLUMNS.items()
            if found.telling((variant, scorer), column) == sign
        ]
        if told:
            parts.append(f"{verb} {', '.join(told)}")
    return "; ".join(parts) or "adds nothing"


def plainly(found: Found) -> list[str]:
    """Markdown: which of all parts add nothing."""
    if found.seeds < 2:
        return [
            "One seed, so nobody knows how much is chance: the sentences below are differences from the control, no more.",
            "",
        ]
    parts = [*PRETEXTS, *KINDS]
    none = [v for v in parts if not any(found.telling((v, s), c) == 1 for s in READING for c in COLUMNS)]
    everywhere = [v for v in parts if all(found.telling((v, s), c) == 1 for s in READING for c in COLUMNS)]
    lines = [f"Adds nothing by any of these scorers in any column: {_listed(none, parts)}."]
    lines += [f"Adds something by all of them in all columns: {_listed(everywhere, parts)}."]
    for scorer in READING:
        without = [v for v in parts if not any(found.telling((v, scorer), c) == 1 for c in COLUMNS)]
        lines.append(f"Adds nothing by {scorer}: {_listed(without, parts)}.")
    for column, title in COLUMNS.items():
        _, unlearned = max((found.mean((CONTROL, scorer), column), scorer) for scorer in HEADS if not learned(scorer))
        above = [k for k in found.figures if learned(k[1]) and found.mean(k, column) > found.mean((CONTROL, unlearned), column)]
        said = ", ".join(f"{v} by {s}" for v, s in above) or "nothing that was learned"
        lines.append(f"Ahead of the best scorer without anything learned ({unlearned}) in {title}: {said}.")
    return [*(f"- {line}" for line in lines), ""]


def report(sets: dict[str, Found], command: str, seeds: int) -> str:
    """docs/results-ablation.md"""
    lines = [
        "# What each part adds",
        "",
        f"Written by `{command}`; do not edit. That file says what is measured.",
        "",
        "The control, *random*, is the TCN with weights as they were drawn. Each row changes one key of the recipe. The",
        "default scorer is given nothing that was learned ([ADR 8](adr/0008-several-scorers.md)), so pretexts and encoders are",
        f"judged by scorers that are: {', '.join(f'`{scorer}`' for scorer in READING)}. Bundles, int8 where there is",
        "int8, fitted to each recording's own normal rows and judged by the pipeline of the device; means over the recordings.",
        "*Adds* means: more than the standard deviation of the control's own seeds. With few seeds that is a rough measure,",
        "and among so many comparisons some pass it by chance.",
        "",
    ]
    for name, found in sets.items():
        count = f"{found.seeds} seed{'' if found.seeds == 1 else 's'}" + (f" of {seeds}" if found.seeds < seeds else "")
        plural = "" if found.recordings == 1 else "s"
        lines += [f"## {TITLES[name]}, {found.recordings} recording{plural}, {count}", "", *plainly(found)]
        lines += ["### Pretexts, with a TCN", "", *of_variants(found, list(PRETEXTS))]
        lines += ["### Encoders, with masked reconstruction", "", *of_variants(found, list(KINDS))]
        lines += ["### Scorers", "", *of_heads(found)]
    lines += ["## Made with", "", "Recipes, in `trainer/recipes/`, with what differs from the default there:", ""]
    lines += [*(f"- `{MADE_WITH[name]}`: {differs(load(RECIPES / MADE_WITH[name]))}" for name in sets), ""]
    lines += [
        "Changed in a row:",
        "",
        *(f"- {variant}: `{override}`" for variant, override in VARIANTS.items() if override),
        "",
    ]
    lines += [", ".join(f"{key} {value}" for key, value in versions().items()) + ".", ""]
    return "\n".join(lines)


def _listed(some: Sequence[str], of: Sequence[str]) -> str:
    return "all of them" if len(some) == len(of) else "; ".join(some) or "none of them"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="judge only so many recordings of each set; the report stays in --out")
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the sets; $AMISS_DATA, ../shared/data")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    sets = options.sets.split(",")
    if unknown := set(sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    if options.seeds < 1 or (options.limit or 1) < 1:
        parser.error("--seeds and --limit are at least 1")
    command = f"python -m benchmarks.ablation --sets {options.sets} --seeds {options.seeds}"
    command += f" --limit {options.limit}" if options.limit else ""
    groups = {name: SETS[name](options.data / name, options.limit) for name in sets}
    judges = {name: {c.name: Judge(c.test) for group in groups[name] for c in group.cases} for name in sets}
    scores: dict[str, dict[tuple[str, str, bytes], Float64]] = {name: {} for name in sets}
    encoders = Encoders(options.out / "encoders")
    found: dict[str, Found] = {}
    target = RESULTS if options.limit is None else options.out / "results-ablation.md"
    for seed in range(options.seeds):
        for name in sets:
            run_seed(name, groups[name], seed, encoders, judges[name], scores[name], found.setdefault(name, Found()))
            about: dict[str, Any] = {"command": command, "versions": versions(), "sets": {}}
            for done, of in found.items():
                by_row = {" | ".join(key): columns for key, columns in of.figures.items()}
                about["sets"][done] = {"precision": of.shipped, "recordings": of.recordings, "figures": by_row}
            (options.out / "ablation.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
            target.write_text(report(found, command, options.seeds), "utf-8")
    print(target.read_text("utf-8"))


if __name__ == "__main__":
    main()
