"""A bundle on labelled recordings, through the pipeline that the device runs: what is measured is what is shipped."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.errors import DataError, NoInputError
from edge.operating.score import judge_recording, rows_to_windows
from edge.pipeline import Verdicts
from edge.sensing.recordings import Recording, find_recordings, match_channels, read_recording
from edge.signal import Float32, Float64, Int64, Samples
from trainer.data import unique_names
from trainer.metrics import Label, auc_pr, auroc, buffer_length, judge_alerts, poisson_interval, vus_pr
from trainer.progress import Report, Step

DAY_S = 86400.0
SLICE = 256
"""Windows that are judged at a time by `judge_windows`."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One recording. A figure that cannot be had (no label, only one kind of row) is None."""

    name: str
    rows: int
    anomalous: float | None
    """Share of the rows."""
    auroc: float | None = None
    auc_pr: float | None = None
    vus_pr: float | None = None
    episodes: int = 0
    detected: int = 0
    delay_s: float | None = None
    """Median over the detected episodes, from the first labelled row to the alert."""
    false_alarms: int = 0
    normal_s: float = 0.0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    bundle: str
    """Digest."""
    precision: str
    p_value: float
    """Threshold of the alerts."""
    recordings: tuple[Figures, ...]
    auroc: float | None
    auc_pr: float | None
    vus_pr: float | None
    """Means over the recordings that have them: one long recording must not drown the others."""
    event_recall: float | None
    delay_s: float | None
    """Median over the recordings."""
    false_alarms_per_day: float | None
    """Of normal operation."""
    false_alarms_per_day_95: tuple[float, float] | None
    """What so many alarms in so short a time allow, with 95 % confidence."""
    normal_h: float
    """How much normal operation there was to raise a false alarm in."""

    def lines(self) -> list[str]:
        names = [figures.name for figures in self.recordings]
        width = max(len(name) for name in [*names, "recording"])
        head = f"{'recording':{width}}    rows  amiss  AUROC  AUC-PR  VUS-PR  found  delay s  false"
        rows = [
            f"{f.name:{width}} {f.rows:7} {_cell(f.anomalous)}  {_cell(f.auroc)}   {_cell(f.auc_pr)}   {_cell(f.vus_pr)} "
            f"{f.detected:3}/{f.episodes:<2} {'' if f.delay_s is None else f'{f.delay_s:.1f}':>8} {f.false_alarms:6}"
            for f in self.recordings
        ]
        per_day = "unknown" if self.false_alarms_per_day is None else f"{self.false_alarms_per_day:.3g}"
        if self.false_alarms_per_day_95 is not None:
            per_day += " ({:.3g} to {:.3g} with 95 % confidence)".format(*self.false_alarms_per_day_95)
        return [
            head,
            *rows,
            f"{'mean':{width}}                {_cell(self.auroc)}   {_cell(self.auc_pr)}   {_cell(self.vus_pr)}",
            f"events found {_cell(self.event_recall).strip()}, false alarms per day of normal operation {per_day}, threshold"
            f" p ≤ {self.p_value:g}, {self.precision} bundle {self.bundle[:16]}…",
        ]


@dataclass(frozen=True, slots=True)
class Judged:
    """A recording and what the bundle said about it."""

    recording: Recording
    verdicts: Verdicts
    index: Int64
    """(n,) which window speaks for each row; -1: none, in a gap."""
    figures: Figures
    sha256: str
    """Of the file."""


def evaluate(bundle: Path, data: Iterable[Path], progress: Report | None = None) -> Evaluation:
    """Scores and alerts of `bundle` against the labels in `data`, row by row.

    A row's score is that of the window whose middle is nearest; rows in gaps have none and are left out. Alerts are those of
    the default policy. Raises `DataError` when no recording has a label.
    """
    opened = Bundle.open(bundle)
    return summarise(opened, judge(opened, data, progress))


def judge(bundle: Bundle, data: Iterable[Path], progress: Report | None = None) -> tuple[Judged, ...]:
    """Every recording in `data`. Raises `DataError` when none has a label, before any time is spent."""
    files = find_recordings(data)
    names = unique_names(files)
    recordings = [read_recording(file) for file in files]
    if all(recording.label is None for recording in recordings):
        raise DataError("no recording has a label column; there is nothing to judge by")
    found = []
    for i, (file, name, recording) in enumerate(zip(files, names, recordings, strict=True)):
        if progress:
            progress(Step(i, len(files), name))
        found.append(_judge(bundle, recording, name, sha256_of(file)))
    if progress:
        progress(Step(len(files), len(files), "judged"))
    return tuple(found)


def summarise(bundle: Bundle, judged: Sequence[Judged]) -> Evaluation:
    found = [one.figures for one in judged]
    labelled = [figures for figures in found if figures.anomalous is not None]
    total = sum(figures.episodes for figures in labelled)
    normal_s = sum(figures.normal_s for figures in labelled)
    false = sum(figures.false_alarms for figures in labelled)
    delays = [figures.delay_s for figures in labelled if figures.delay_s is not None]
    low, high = poisson_interval(false)
    return Evaluation(
        bundle=bundle.digest,
        precision=bundle.manifest.precision,
        p_value=bundle.pipeline().policy.p_value,
        recordings=tuple(found),
        auroc=mean([figures.auroc for figures in labelled]),
        auc_pr=mean([figures.auc_pr for figures in labelled]),
        vus_pr=mean([figures.vus_pr for figures in labelled]),
        event_recall=sum(figures.detected for figures in labelled) / total if total else None,
        delay_s=float(np.median(delays)) if delays else None,
        false_alarms_per_day=false * DAY_S / normal_s if normal_s else None,
        false_alarms_per_day_95=(low * DAY_S / normal_s, high * DAY_S / normal_s) if normal_s else None,
        normal_h=normal_s / 3600,
    )


def ranking(score: Float32 | Float64, label: Label, length: int) -> tuple[float | None, float | None, float | None]:
    """AUROC, AUC-PR and VUS-PR with buffers of up to `length` rows; None where there is only one kind of row.

    Without anything normal every order would be perfect.
    """
    if not 0 < label.sum() < len(label):
        return None, None, None
    return auroc(score, label), auc_pr(score, label), vus_pr(score, label, length)


def buffer_of(recording: Recording) -> int:
    """The longest buffer of VUS-PR for a recording: from its first channel that has values."""
    for row in recording.x:
        if np.isfinite(row).any():
            return buffer_length(np.nan_to_num(row, nan=float(np.nanmean(row))))
    return buffer_length(np.zeros(len(recording.time_ns)))


@dataclass(frozen=True, slots=True)
class WindowVerdicts:
    score: Float64
    """(B,) higher is stranger; NaN for a window that was not scored, because too much of it was missing."""
    p_value: Float64
    """(B,)"""
    shares: Float32
    """(B, C)"""


def judge_windows(bundle: Bundle, x: Float32) -> WindowVerdicts:
    """Single windows (B, C, N), in the units of the sensor, NaN is missing: each as though it came after a long silence.

    They take the road of the device, with its policy for what is missing, but each stands for itself: the device averages over
    several, which vary less, so that fewer of the normal ones would alarm.
    """
    count, channels, length = x.shape
    pipeline = bundle.pipeline(hop=length, smooth=False, health=False)
    rate_hz, missing = bundle.manifest.rate_hz, bundle.manifest.missing
    distance = 2 * length + missing.max_fill + int(np.ceil(missing.jitter_s * rate_hz)) + 2  # in samples, start to start
    score, p_value = np.full(count, np.nan), np.full(count, np.nan)
    shares = np.full((count, channels), np.nan, np.float32)
    for at in range(0, count, SLICE):
        part = x[at : at + SLICE]
        sample = (at + np.arange(len(part)))[:, None] * distance + np.arange(length)  # (b, N)
        time_ns = np.round(sample.ravel() * (1e9 / rate_hz)).astype(np.int64)
        found = pipeline.judge(Samples(time_ns, np.ascontiguousarray(part.transpose(1, 0, 2).reshape(channels, -1))))
        which = np.round(found.start_ns * (rate_hz / 1e9)).astype(np.int64) // distance
        score[which], p_value[which], shares[which] = found.score, found.p_value, found.shares
    return WindowVerdicts(score, p_value, shares)


def _judge(bundle: Bundle, recording: Recording, name: str, sha256: str) -> Judged:
    verdicts = judge_recording(bundle, recording)
    recording = match_channels(recording, bundle.channels)
    index = rows_to_windows(recording.time_ns, verdicts)
    rows = len(recording.time_ns)
    if recording.label is None:
        return Judged(recording, verdicts, index, Figures(name=name, rows=rows, anomalous=None), sha256)
    scored = index >= 0
    figures = ranking(verdicts.score[index[scored]], recording.label[scored], buffer_of(recording))
    alerts = judge_alerts(
        recording.time_ns,
        recording.label,
        [event.time_ns for event in verdicts.events if event.type == "anomaly_started"],
        [event.time_ns for event in verdicts.events if event.type == "anomaly_ended"],
        grace_ns=round(bundle.manifest.window / bundle.manifest.rate_hz * 1e9),
    )
    found = Figures(
        name=name,
        rows=rows,
        anomalous=float(recording.label.mean()),
        auroc=figures[0],
        auc_pr=figures[1],
        vus_pr=figures[2],
        episodes=alerts.episodes,
        detected=alerts.detected,
        delay_s=float(np.median(alerts.delays_s)) if alerts.delays_s else None,
        false_alarms=alerts.false_alarms,
        normal_s=alerts.normal_s,
    )
    return Judged(recording, verdicts, index, found, sha256)


def sha256_of(file: Path) -> str:
    """Raises `NoInputError`."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise NoInputError(f"{file}: cannot be read: {error.strerror}") from None


def learned_from(lineage: Mapping[str, str], *prefixes: str) -> set[str]:
    """SHA-256 of the recordings that a bundle was made from, by training (`data/`) or commissioning (`commissioned/`)."""
    return {digest for name, digest in lineage.items() if name.startswith(prefixes or ("data/", "commissioned/"))}


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cell(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"
