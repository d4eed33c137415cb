"""A bundle on labelled recordings, through the pipeline that the device runs: what is measured is what is shipped."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.errors import DataError
from edge.operating.score import judge_recording, rows_to_windows
from edge.sensing.recordings import find_recordings, read_recording
from trainer.data import unique_names
from trainer.metrics import auc_pr, auroc, judge_alerts

DAY_S = 86400.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One recording. A figure that cannot be had (no label, only one kind of row) is None."""

    name: str
    rows: int
    anomalous: float | None
    """Share of the rows."""
    auroc: float | None = None
    auc_pr: float | None = None
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
    """Means over the recordings that have them: one long recording must not drown the others."""
    event_recall: float | None
    delay_s: float | None
    """Median over the recordings."""
    false_alarms_per_day: float | None
    """Of normal operation."""

    def lines(self) -> list[str]:
        names = [figures.name for figures in self.recordings]
        width = max(len(name) for name in [*names, "recording"])
        head = f"{'recording':{width}}    rows  amiss  AUROC  AUC-PR  found  delay s  false"
        rows = [
            f"{f.name:{width}} {f.rows:7} {_cell(f.anomalous)}  {_cell(f.auroc)}   {_cell(f.auc_pr)} "
            f"{f.detected:3}/{f.episodes:<2} {'' if f.delay_s is None else f'{f.delay_s:.1f}':>8} {f.false_alarms:6}"
            for f in self.recordings
        ]
        per_day = "unknown" if self.false_alarms_per_day is None else f"{self.false_alarms_per_day:.3g}"
        return [
            head,
            *rows,
            f"{'mean':{width}}                {_cell(self.auroc)}   {_cell(self.auc_pr)}",
            f"events found {_cell(self.event_recall).strip()}, false alarms per day of normal operation {per_day}, threshold"
            f" p ≤ {self.p_value:g}, {self.precision} bundle {self.bundle[:16]}…",
        ]


def evaluate(bundle: Path, data: Iterable[Path]) -> Evaluation:
    """Scores and alerts of `bundle` against the labels in `data`, row by row.

    A row's score is that of the window whose middle is nearest; rows in gaps have none and are left out. Alerts are those of
    the default policy. Raises `DataError` when no recording has a label.
    """
    opened = Bundle.open(bundle)
    files = find_recordings(data)
    found = [_judge(opened, file, name) for file, name in zip(files, unique_names(files), strict=True)]
    if all(figures.anomalous is None for figures in found):
        raise DataError("no recording has a label column; there is nothing to judge by")
    labelled = [figures for figures in found if figures.anomalous is not None]
    total = sum(figures.episodes for figures in labelled)
    normal_s = sum(figures.normal_s for figures in labelled)
    delays = [figures.delay_s for figures in labelled if figures.delay_s is not None]
    return Evaluation(
        bundle=opened.digest,
        precision=opened.manifest.precision,
        p_value=opened.pipeline().policy.p_value,
        recordings=tuple(found),
        auroc=_mean([figures.auroc for figures in labelled]),
        auc_pr=_mean([figures.auc_pr for figures in labelled]),
        event_recall=sum(figures.detected for figures in labelled) / total if total else None,
        delay_s=float(np.median(delays)) if delays else None,
        false_alarms_per_day=sum(figures.false_alarms for figures in labelled) * DAY_S / normal_s if normal_s else None,
    )


def _judge(bundle: Bundle, file: Path, name: str) -> Figures:
    recording = read_recording(file)
    verdicts = judge_recording(bundle, recording)
    if recording.label is None:
        return Figures(name=name, rows=len(recording.time_ns), anomalous=None)
    index = rows_to_windows(recording.time_ns, verdicts)
    scored = index >= 0
    label, score = recording.label[scored], verdicts.score[index[scored]]
    alerts = judge_alerts(
        recording.time_ns,
        recording.label,
        [event.time_ns for event in verdicts.events if event.type == "anomaly_started"],
        [event.time_ns for event in verdicts.events if event.type == "anomaly_ended"],
        grace_ns=round(bundle.manifest.window / bundle.manifest.rate_hz * 1e9),
    )
    return Figures(
        name=name,
        rows=len(recording.time_ns),
        anomalous=float(recording.label.mean()),
        auroc=_known(auroc(score, label)),
        # Without anything normal every order is perfect.
        auc_pr=_known(auc_pr(score, label)) if not label.all() else None,
        episodes=alerts.episodes,
        detected=alerts.detected,
        delay_s=float(np.median(alerts.delays_s)) if alerts.delays_s else None,
        false_alarms=alerts.false_alarms,
        normal_s=alerts.normal_s,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _cell(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"
