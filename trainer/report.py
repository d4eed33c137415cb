"""`amiss evaluate --report DIR`: everything that can be said about a bundle, figures (report.json) and a page (report.html).

What is normal comes from `--normal`, recordings of normal running:

- all of them are what the simple methods are fitted to;
- those that the model has not learned from (by their SHA-256, which the bundle names) show whether it keeps its promise, and
  are what faults are put into.

Without `--normal`, the rows of each labelled recording before its first label take their place: the simple methods get the
first half of them, and every method is then compared on the rows after that half. Labels are for judging and for this.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.errors import DataError
from edge.operating.score import judge_recording, rows_to_windows
from edge.scoring.backends import run_in_slices
from edge.scoring.inject import INJECTIONS
from edge.sensing.recordings import Recording, find_recordings, format_time, match_channels, read_recording
from edge.signal import Float32, Float64, Int64
from trainer import baselines, contamination, folder, promise, stress
from trainer.contamination import Contamination
from trainer.data import cut
from trainer.evaluate import Evaluation, Judged, buffer_of, judge, learned_from, mean, ranking, sha256_of, summarise
from trainer.metrics import episodes
from trainer.progress import Report, Step
from trainer.promise import Promise
from trainer.stress import Attack, Blame, Curve

FORMAT = 1
FILES = {"report.html", "report.json"}
LARGEST = 1536
"""Values in a window of the simple methods, channels × rows: a covariance of more takes minutes."""
ON_MAP = 600
"""Windows on the map, of either kind."""

Built = TypeVar("Built", bound=msgspec.Struct)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One alert."""

    recording: str
    began: str
    """RFC 3339: the first strange window."""
    began_s: float
    """From the start of the recording."""
    raised_s: float
    """When a person would have been told."""
    ended_s: float | None
    """None: it was still going on at the end of the recording."""
    p_value: float
    """The smallest within it."""
    channels: tuple[str, ...]
    """The three with most of the blame, most first."""
    judged: Literal["labelled", "false alarm", "not labelled"]


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the recordings that are labelled."""

    name: str
    auroc: float | None
    auc_pr: float | None
    vus_pr: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The same rows, judged by every method."""

    recordings: int
    methods: tuple[Method, ...]
    """The bundle first."""
    beaten_by: tuple[str, ...]
    """Methods with a higher VUS-PR than the bundle."""


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """The plane of the embeddings in which normal windows spread most (PCA)."""

    explained: tuple[float, float]
    """Share of the variance of normal windows along its two directions."""
    normal: int
    anomalous: int
    """Windows in it."""


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """report.json. None and empty: could not be measured, and `notes` says why."""

    format: int = FORMAT
    name: str
    """Of the bundle."""
    version: str
    window: int
    hop: int
    """Samples."""
    rate_hz: float
    channels: tuple[str, ...]
    evaluation: Evaluation
    findings: tuple[Finding, ...]
    comparison: Comparison | None = None
    promise: Promise | None = None
    blame: tuple[Blame, ...] = ()
    blamed_rightly: float | None = None
    """Of all windows with a fault in one known channel that were noticed: share in which it has most of the blame."""
    stress: tuple[Curve, ...] = ()
    contamination: Contamination | None = None
    adversarial: tuple[Attack, ...] = ()
    map: Map | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        found = self.evaluation.lines()
        if self.comparison:
            width = max(len(one.name) for one in self.comparison.methods)
            cells = [[one.auroc, one.auc_pr, one.vus_pr] for one in self.comparison.methods]
            found.append(f"{'':{width}}  AUROC  AUC-PR  VUS-PR")
            for one, row in zip(self.comparison.methods, cells, strict=True):
                found.append(f"{one.name:{width}}  " + "   ".join("    -" if v is None else f"{v:5.3f}" for v in row))
        if self.promise:
            p = self.promise
            more = "" if p.more_hours is None else f"; {p.more_hours:.3g} more hours are needed to tell"
            found.append(f"promise {p.verdict}: p ≤ {p.threshold.promised:g} for {p.threshold.measured:g} of normal time{more}")
        if self.blamed_rightly is not None:
            found.append(f"blame: {self.blamed_rightly:.1%} of the faults that were noticed, on the right channel")
        return [*found, *self.notes]


@dataclass(frozen=True, slots=True)
class Points:
    """What the map is drawn from."""

    normal: Float64
    """(n, 2)"""
    anomalous: Float64
    """(a, 2)"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the page draws and the figures do not hold."""

    bundle: Bundle
    judged: tuple[Judged, ...]
    points: Points | None


@dataclass(frozen=True, slots=True)
class Twins:
    """Made from the same run as the bundle."""

    run: Path
    float32: Path
    untrained: Path


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal running."""

    given: tuple[Recording, ...]
    """By --normal; what the simple methods are fitted to."""
    unseen: tuple[Recording, ...]
    """That the model has not learned from."""
    notes: tuple[str, ...]

    def for_case(self, recording: Recording) -> tuple[Recording, int] | None:
        """What the simple methods are fitted to for one labelled recording, and from which of its rows on they are compared.

        None when there is too little of it.
        """
        if self.given:
            first = self.given[0]
            # A few of the windows that are drawn from it span two recordings; among thousands they are of no consequence.
            time_ns = np.concatenate([one.time_ns for one in self.given])
            return Recording(first.name, first.channels, time_ns, np.concatenate([one.x for one in self.given], axis=1)), 0
        rows = leading(recording) // 2
        return (recording.part(0, rows), rows) if rows else None


def examine(
    bundle_path: Path,
    data: Iterable[Path],
    normal: Sequence[Path] = (),
    twins: Twins | None = None,
    progress: Report | None = None,
) -> tuple[Examination, Drawn]:
    """Everything that can be measured with what is given. Raises as `evaluate` does."""
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    data = find_recordings(data)
    of_run = 3 + contamination.DRAWS if twins else 0
    tell = _Steps(progress, 3 + 2 * len(data) + len(INJECTIONS) + len(stress.troubles(len(bundle.channels))) + of_run)
    judged = judge(bundle, data, lambda step: tell(f"judging {step.text}") if step.step < step.steps else None)
    if twins:
        other = [Bundle.open(path) for path in (twins.float32, twins.untrained)]
    evaluation = summarise(bundle, judged)
    tell("normal running")
    ordinary = find_normal(bundle, find_recordings(normal) if normal else [], judged)
    notes = [*ordinary.notes]
    beside = {"float32 twin": other[0], "untrained encoder": other[1]} if twins else {}
    comparison, left_out = compare(bundle, judged, ordinary, beside, tell)
    notes += left_out
    tell("the promise")
    verdicts = [judge_recording(bundle, one) for one in ordinary.unseen]
    kept = promise.keep(bundle, verdicts) if verdicts else None
    material = stress.gather(bundle, ordinary.unseen, judged)
    blames: list[Blame] = []
    curves: list[Curve] = []
    attacks: list[Attack] = []
    spoilt: Contamination | None = None
    points, chart = None, None
    if material is None:
        notes.append("nothing normal that the model has not learned from: no promise, blame, stress or map; say --normal")
    else:
        for fault in INJECTIONS:
            tell(f"blame for {fault}")
            blames.append(stress.blame(bundle, material, fault))
        for trouble in stress.troubles(len(bundle.channels)):
            tell(trouble.name)
            curves.append(stress.curve(bundle, trouble, material))
        if not len(material.anomalous):
            notes.append(
                "no labelled stretch is longer than a window and a half: stress says nothing about what is still found"
            )
        if twins:
            spoilt, more = _contamination(bundle, twins.run, material, tell)
            notes += more
            attacks, more = _attacks(bundle, other[0], twins.run, material, tell)
            notes += more
        tell("the map")
        chart, points = _map(bundle, material)
    if not twins:
        notes.append(
            "without --run RUN: no untrained encoder, no float model, no curve of what faults among the recordings cost, no "
            "attacks that need gradients"
        )
    tell("done")
    noticed = [round(one.noticed * one.windows) for one in blames]
    right = sum(n * one.right for n, one in zip(noticed, blames, strict=True) if one.right is not None)
    found = Examination(
        name=manifest.name,
        version=manifest.version,
        window=manifest.window,
        hop=manifest.hop,
        rate_hz=manifest.rate_hz,
        channels=bundle.channels,
        evaluation=evaluation,
        findings=tuple(finding for one in judged for finding in findings(one, manifest.window / manifest.rate_hz)),
        comparison=comparison,
        promise=kept,
        blame=tuple(blames),
        blamed_rightly=right / sum(noticed) if sum(noticed) else None,
        stress=tuple(curves),
        contamination=spoilt,
        adversarial=tuple(attacks),
        map=chart,
        notes=tuple(notes),
    )
    return rounded(found), Drawn(bundle, judged, points)


def find_normal(bundle: Bundle, files: Sequence[Path], judged: Sequence[Judged]) -> Normal:
    """Raises `DataError` when a file of --normal has a label that says something is amiss in it."""
    known = learned_from(bundle.manifest.lineage)
    notes = []
    if "data" in bundle.manifest.lineage:
        notes.append(
            "the bundle does not name each recording it learned from, so none could be told from those it has not seen"
        )
    if files:
        given, unseen = [], []
        for file in files:
            recording = match_channels(read_recording(file), bundle.channels)
            if recording.label is not None and recording.label.any():
                raise DataError(f"{file}: labelled as amiss in places; --normal takes normal running only, leave it out there")
            given.append(recording)
            if sha256_of(file) not in known and len(recording.time_ns) >= bundle.manifest.window:
                unseen.append(recording)
        if not unseen:
            notes.append(
                "the model has learned from every recording of --normal: they say nothing about its promise; the rows before "
                "the first label of each labelled recording stand in (if it learned from those too, as other files, nobody "
                "noticed)"
            )
            return Normal(tuple(given), _leading_parts(bundle, judged, known), tuple(notes))
        return Normal(tuple(given), tuple(unseen), tuple(notes))
    notes.append("without --normal DIR: the rows before the first label of each labelled recording count as normal running")
    return Normal((), _leading_parts(bundle, judged, known), tuple(notes))


def leading(recording: Recording) -> int:
    """Rows before the first that is labelled; 0 without labels."""
    if recording.label is None:
        return 0
    return int(recording.label.argmax()) if recording.label.any() else len(recording.time_ns)


def _leading_parts(bundle: Bundle, judged: Sequence[Judged], known: set[str]) -> tuple[Recording, ...]:
    least = 2 * bundle.manifest.window
    parts = [one.recording.part(0, leading(one.recording)) for one in judged if one.sha256 not in known]
    return tuple(part for part in parts if len(part.time_ns) >= least and _has_windows(bundle, part))


def _has_windows(bundle: Bundle, recording: Recording) -> bool:
    manifest = bundle.manifest
    return len(cut(recording, manifest.rate_hz, manifest.window, manifest.hop, manifest.missing)) > 0


def findings(one: Judged, grace_s: float) -> list[Finding]:
    """The alerts of one recording; for `grace_s` after a labelled episode an alert still counts as its."""
    time_ns, label = one.recording.time_ns, one.recording.label
    stretches = [] if label is None else [(int(time_ns[a]), int(time_ns[b]) + round(grace_s * 1e9)) for a, b in episodes(label)]
    found = []
    for started in one.verdicts.events:
        if started.type != "anomaly_started":
            continue
        last = [event for event in one.verdicts.events if event.episode == started.episode and event.type != "gap"][-1]
        hit = any(a <= started.time_ns <= b for a, b in stretches)
        found.append(
            Finding(
                recording=one.figures.name,
                began=format_time(started.since_ns),
                began_s=_seconds(started.since_ns, time_ns),
                raised_s=_seconds(started.time_ns, time_ns),
                ended_s=_seconds(last.time_ns, time_ns) if last.type == "anomaly_ended" else None,
                p_value=last.p_value if last.p_value is not None else 1.0,
                channels=tuple(share.channel for share in last.channels[:3]),
                judged="not labelled" if label is None else "labelled" if hit else "false alarm",
            )
        )
    return found


def compare(
    bundle: Bundle, judged: Sequence[Judged], normal: Normal, beside: dict[str, Bundle], tell: Callable[[str], None]
) -> tuple[Comparison | None, list[str]]:
    """The bundle, `beside` and the simple methods on the same rows; and what was left out."""
    manifest = bundle.manifest
    length = max(2, min(manifest.window, LARGEST // len(bundle.channels)))
    methods, notes = simple_methods(length, manifest.hop)
    figures: dict[str, list[tuple[float | None, float | None, float | None]]] = {}
    used = 0
    for one in judged:
        tell(f"simple methods on {one.figures.name}")
        recording, found = one.recording, normal.for_case(one.recording)
        if recording.label is None or found is None or len(found[0].time_ns) < 2 * length:
            continue
        ordinary, first = found
        rows = (one.index >= 0) & (np.arange(len(one.index)) >= first)
        label, buffer = recording.label[rows], buffer_of(recording)
        if not 0 < label.sum() < len(label):
            continue
        used += 1
        scores: dict[str, Float32 | Float64] = {f"this bundle ({manifest.precision})": one.verdicts.score[one.index]}
        for name, other in beside.items():
            verdicts = judge_recording(other, recording)
            scores[name] = verdicts.score[rows_to_windows(recording.time_ns, verdicts)]
        fit, test = baselines.standardised(ordinary, recording)
        for name, method in methods.items():
            scores[name] = method(fit, test)
        for name, score in scores.items():
            figures.setdefault(name, []).append(ranking(score[rows], label, buffer))
    if not used:
        return None, [*notes, "no recording has normal rows to fit simple methods to and labelled ones to judge; say --normal"]
    rows_of = [
        Method(
            name=name, auroc=mean([f[0] for f in all_]), auc_pr=mean([f[1] for f in all_]), vus_pr=mean([f[2] for f in all_])
        )
        for name, all_ in figures.items()
    ]
    ours = rows_of[0].vus_pr or 0.0
    beaten_by = tuple(one.name for one in rows_of[1:] if (one.vus_pr or 0.0) > ours)
    return Comparison(recordings=used, methods=tuple(rows_of), beaten_by=beaten_by), notes


Score = Callable[[Float32, Float32], Float64]


def simple_methods(length: int, stride: int) -> tuple[dict[str, Score], list[str]]:
    """Name → from normal rows and rows to judge to scores; and what is left out."""
    found: dict[str, Score] = {
        "mean |z|": baselines.mean_abs,
        f"PCA residual, windows of {length}": partial(baselines.pca_residual, length=length, stride=stride),
        f"k-means, windows of {length}": partial(baselines.kmeans, length=length, stride=stride),
    }
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError:
        return found, ["scikit-learn is not installed: no isolation forest beside the others"]

    def isolation_forest(normal: Float32, test: Float32) -> Float64:
        model = IsolationForest(n_estimators=100, random_state=0).fit(normal)
        score: Float64 = -model.score_samples(test[::stride])
        return baselines.centred(score, len(test), 1, stride)

    return found | {"isolation forest": isolation_forest}, []


def _contamination(
    bundle: Bundle, run: Path, material: stress.Material, tell: "_Steps"
) -> tuple[Contamination | None, list[str]]:
    from trainer.checkpoint import load_windows

    if "commissioned_from" in bundle.manifest.lineage:
        return None, [
            "the bundle was commissioned: its scorer is not fitted to the windows of the run, so what faults among those cost "
            "says nothing about it and was not measured"
        ]
    fit, held_back, _ = load_windows(run)
    return contamination.contaminate(bundle, fit, held_back, material, tell), []


def _attacks(
    bundle: Bundle, twin: Bundle, run: Path, material: stress.Material, tell: "_Steps"
) -> tuple[list[Attack], list[str]]:
    from trainer import adversarial
    from trainer.checkpoint import load_detector

    tell("attacks: the float model")
    detector, _ = load_detector(run)
    normal = stress.middle(stress.thinned(material.normal, adversarial.MOST), material.length)
    anomalous = stress.middle(stress.thinned(material.anomalous, adversarial.MOST), material.length)
    found: list[Attack] = []
    aims: tuple[tuple[stress.Aim, Float32], ...] = (("raise", normal), ("hide", anomalous))
    for aim, windows in aims:
        tell(f"attacks that {aim}")
        if len(windows):
            found += adversarial.attack(detector, twin, bundle, windows, normal, material.within, aim)
    notes = [] if len(anomalous) else ["no labelled stretch is long enough to try to hide it"]
    return found, notes


def _map(bundle: Bundle, material: stress.Material) -> tuple[Map, Points]:
    def embedded(x: Float32) -> Float64:
        if not len(x):
            return np.empty((0, 0))
        return run_in_slices(bundle.backend, stress.middle(stress.thinned(x, ON_MAP), material.length)).embedding.astype(
            np.float64
        )

    normal, anomalous = embedded(material.normal), embedded(material.anomalous)
    mean_, spread = normal.mean(axis=0), normal.std(axis=0)
    spread = np.where(spread < 1e-6, 1.0, spread)
    z = (normal - mean_) / spread
    values, vectors = np.linalg.eigh(z.T @ z)
    directions = vectors[:, :-3:-1]  # (D, 2), the widest first
    # Which of its two ends an eigenvector points to is chance, and differs between machines.
    directions = directions * np.where(directions[np.abs(directions).argmax(axis=0), [0, 1]] < 0, -1, 1)
    shares = values[:-3:-1] / max(float(values.sum()), 1e-12)
    points = Points(z @ directions, (anomalous - mean_) / spread @ directions if len(anomalous) else np.empty((0, 2)))
    return Map(explained=(float(shares[0]), float(shares[1])), normal=len(normal), anomalous=len(anomalous)), points


def rounded(found: Built) -> Built:
    """Every number to four digits: what more there is differs between machines and means nothing."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [short(inner) for inner in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return msgspec.convert(short(msgspec.to_builtins(found)), type(found))


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Before the time is spent, not after. Raises `CannotCreateError`."""
    folder.refuse_existing(out, FILES, overwrite)


def write(out: Path, found: Examination, drawn: Drawn, *, overwrite: bool = False) -> None:
    """The folder `out`, whole or not at all. Raises `CannotCreateError` when it exists; with `overwrite` a report is
    replaced."""
    from trainer.page import render

    folder.write(out, {"report.json": folder.json(found), "report.html": render(found, drawn).encode()}, overwrite)


def _seconds(at_ns: int, time_ns: Int64) -> float:
    return (at_ns - int(time_ns[0])) / 1e9


class _Steps:
    """Counts, and says what comes next."""

    def __init__(self, report: Report | None, steps: int) -> None:
        self._report, self._steps, self._step = report, steps, 0

    def __call__(self, text: str) -> None:
        if self._report:
            self._report(Step(self._steps if text == "done" else min(self._step, self._steps), self._steps, text))
        self._step += 1
