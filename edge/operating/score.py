"""`amiss score`: a recording in, one row per row out."""

import csv
from pathlib import Path

import numpy as np

from edge.bundle import Bundle
from edge.errors import DataError
from edge.files import at_once
from edge.pipeline import Verdicts
from edge.sensing.recordings import ROWS_AS_TEXT, Recording, format_times, match_channels, read_recording
from edge.signal import Int64


def judge_recording(bundle: Bundle, recording: Recording, *, hop: int | None = None) -> Verdicts:
    """Everything the device's pipeline says about a recording. Raises `DataError` when it does not fit the bundle."""
    recording = match_channels(recording, bundle.channels)
    manifest = bundle.manifest
    if len(recording.time_ns) < manifest.window:
        raise DataError(f"{recording.name}: {len(recording.time_ns)} rows; one window of this model is {manifest.window}")
    if not 0.95 < recording.rate_hz / manifest.rate_hz < 1.05:
        raise DataError(
            f"{recording.name}: sampled at {recording.rate_hz:.4g} Hz; the model was made for {manifest.rate_hz:g} Hz"
        )
    pipeline = bundle.pipeline(hop=hop)
    parts = [pipeline.judge(samples) for samples in recording.samples()]
    if not any(len(part) for part in parts):
        raise DataError(f"{recording.name}: too many gaps; nowhere are {manifest.window} samples in a row usable")
    return Verdicts(
        np.concatenate([part.start_ns for part in parts]),
        np.concatenate([part.end_ns for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.p_value for part in parts]),
        np.concatenate([part.shares for part in parts]),
        np.concatenate([part.alarm for part in parts]),
        np.concatenate([part.excused for part in parts]),
        np.concatenate([part.finite for part in parts]),
        tuple(event for part in parts for event in part.events),
    )


def rows_to_windows(time_ns: Int64, verdicts: Verdicts, *, newest: bool = False) -> Int64:
    """For each row the window that speaks for it, or -1 where none does (in a gap).

    By default the window whose middle is nearest, among those that hold the row. With `newest`, the last one that had ended
    by then: what the device knew at that time.
    """
    if newest:
        index = np.searchsorted(verdicts.end_ns, time_ns, side="right") - 1
        return index.astype(np.int64)
    middle = (verdicts.start_ns + verdicts.end_ns) // 2
    after = np.clip(np.searchsorted(middle, time_ns), 0, len(middle) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(middle[before] - time_ns) <= np.abs(middle[after] - time_ns), before, after)
    # The hop may not divide the recording: what is left over at its end speaks through the last window.
    last = verdicts.end_ns[-1]
    inside = (verdicts.start_ns[nearest] <= time_ns) & (
        time_ns <= np.where(nearest == len(middle) - 1, max(last, time_ns[-1]), verdicts.end_ns[nearest])
    )
    return np.where(inside, nearest, -1)


def score_file(bundle_path: Path, file: Path, out: Path, *, hop: int | None = None, newest: bool = False) -> str:
    """Write the scores of `file`; returns one line that says what was found. The file appears whole or not at all."""
    bundle = Bundle.open(bundle_path)
    recording = read_recording(file)
    verdicts = judge_recording(bundle, recording, hop=hop)
    index = rows_to_windows(recording.time_ns, verdicts, newest=newest)
    with at_once(out) as draft, draft.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["time", "score", "p_value", "alarm", *bundle.channels])
        said = [
            f"{score:.6g},{p_value:.6g},{alarm:d}," + ",".join(f"{share:.4f}" for share in shares)
            for score, p_value, alarm, shares in zip(
                *(column.tolist() for column in (verdicts.score, verdicts.p_value, verdicts.alarm, verdicts.shares)),
                strict=True,
            )
        ]
        said.append("," * (2 + len(bundle.channels)))  # of no window, -1
        for at in range(0, len(index), ROWS_AS_TEXT):
            part = slice(at, at + ROWS_AS_TEXT)
            times = format_times(recording.time_ns[part])
            target.writelines(f"{time},{said[i]}\n" for time, i in zip(times, index[part].tolist(), strict=True))
    episodes = sum(event.type == "anomaly_started" for event in verdicts.events)
    silent = int((index < 0).sum())
    return f"{out}: {len(index)} rows, {len(verdicts)} windows, {episodes} episode{'' if episodes == 1 else 's'}" + (
        f", {silent} rows without a score (gaps)" if silent else ""
    )
