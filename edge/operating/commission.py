"""`amiss commission`: a bundle for a fleet and an hour of one machine → this machine's own bundle."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import Bundle, Golden, members_of, pack_golden, pack_head, write_bundle
from edge.errors import DataError
from edge.head import Head
from edge.scoring.backends import Outputs, run_in_slices
from edge.scoring.commission import Fitted, ForeignError, fit_head
from edge.sensing.recordings import find_recordings, match_channels, read_recording
from edge.sensing.windows import Windower
from edge.signal import Int64

WINDOWS = 2000
"""Aimed at: more of them overlap more and say little more."""


def commission(bundle_path: Path, normal: list[Path], out: Path, *, trusted: bool = False) -> str:
    """Write `out`: the same encoder, the head fitted to the recordings; returns one line that says what came of it.

    Windows that look unlike the rest are left out; with `trusted` none is. Raises `DataError` when the recordings do not fit
    the bundle, are too short, or look faulty.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    recordings = {path: match_channels(read_recording(path), bundle.channels) for path in find_recordings(normal)}
    hop = max(1, min(manifest.hop, sum(len(recording.time_ns) for recording in recordings.values()) // WINDOWS))
    parts: list[Outputs] = []
    ends: list[Int64] = []
    digests: dict[str, str] = {}
    for path, recording in recordings.items():
        windower = Windower(len(bundle.channels), manifest.rate_hz, manifest.window, hop, manifest.missing)
        for samples in recording.samples():
            windows = windower.feed(samples)
            if len(windows):
                parts.append(run_in_slices(bundle.backend, windows.x))
                ends.append(windows.end_ns)
        digests[f"commissioned/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        if not parts:
            raise ValueError(f"nowhere are {manifest.window} samples in a row usable")
        fitted = fit_head(
            manifest.scorer,
            Outputs.concatenate(parts),
            np.concatenate(ends),
            bundle.smoother(hop),
            overlap=-(-manifest.window // hop),
            trusted=trusted,
        )
    except ForeignError as error:
        raise DataError(
            f"{', '.join(map(str, normal))}: looks faulty or contaminated: {error}; record again while the machine runs "
            "normally, or say --trusted when all of it is normal"
        ) from None
    except ValueError as error:
        raise DataError(f"{', '.join(map(str, normal))}: {error}; record for longer") from None
    outputs = run_in_slices(bundle.backend, bundle.golden.x)
    head = Head(fitted.scorer, fitted.calibrator, fitted.explainer)
    golden = Golden(bundle.golden.x, outputs, head.scorer.score(outputs))
    members = members_of(bundle_path) | {
        "head.npz": pack_head(head),
        "golden.npz": pack_golden(golden),
    }
    vouched = {"commissioned_trusted": "yes" if trusted else "no"}
    manifest = msgspec.structs.replace(
        manifest,
        calibration_windows=head.calibrator.windows,
        calibration_floor=head.calibrator.floor,
        golden_tolerances=_tolerances(bundle),
        lineage=manifest.lineage | {"commissioned_from": bundle.digest} | vouched | digests,
    )
    digest = write_bundle(out, manifest, members)
    return (
        f"{out}: fitted to {head.calibrator.windows} windows of this machine, nothing rarer than "
        f"p = {head.calibrator.floor:.2g}; {_left_out(fitted)}digest {digest[:16]}…"
    )


def _left_out(fitted: Fitted) -> str:
    if not fitted.foreign:
        return ""
    return f"{fitted.foreign} windows left out because they look unlike the rest (--trusted keeps them); "


def _tolerances(bundle: Bundle) -> dict[str, float]:
    """The golden scores are of the runtime that is used here now: it has to meet them most closely, whichever did before."""
    found = bundle.manifest.golden_tolerances
    return {name: min(found.values()) if name == bundle.backend.name else max(found.values()) for name in found}
