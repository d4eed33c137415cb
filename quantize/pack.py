"""Write the bundle: scorer, calibrator and explainer fitted on the outputs of the very model that is shipped.

Fitted on any other model's outputs, the calibrator's promise would be void: the int8 scores are not the float scores.
"""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import ChannelSpec, Golden, Manifest, pack_golden, pack_head, write_bundle
from edge.errors import DataError
from edge.head import Head
from edge.scoring.backends import OUTPUTS, RUNTIMES, installed, run_in_slices
from edge.scoring.budget import Tail
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble
from edge.scoring.inject import inject, usual_spread
from edge.scoring.reference import Reference
from edge.scoring.smoothing import Smoother, smoothed
from edge.sensing.health import Usual
from edge.sensing.windows import MissingPolicy
from edge.signal import Float32, Int64
from quantize.fitting import fit_to, thinned

GOLDEN = 8
"""Normal windows in the self-test, and as many with a fault in them: int8 differs most where activations are large."""
TOLERANCE = {"int8": 0.02, "float32": 1e-3}
"""Largest difference of a golden score, relative to 1 + score. Float runtimes differ in the order of summation; int8 ones round
at other places too, and one step of an activation is 1/255 of its range."""
ELSEWHERE = {"int8": 0.5, "float32": 1e-3}
"""The same for a runtime that did not compute the golden scores and is not installed here. With scorers that hear the encoder,
int8 scores of two runtimes were up to 0.27 apart for a TCN, with the same verdicts: enough to tell a broken one, no more."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifest says that cannot be found out from the model and the windows."""

    name: str
    version: str
    channels: tuple[str, ...]
    units: dict[str, str] = {}
    rate_hz: float
    hop: int
    missing: MissingPolicy
    scorer: str
    smoothing: int = 0
    """Samples from the oldest to the newest of the windows whose scores are averaged."""
    stream_hop: int = 0
    """Up to which the stateful model is the cheaper one; 0 without one."""
    precision: str
    precision_reason: str
    target: str = ""
    runtimes: tuple[str, ...] = ("onnxruntime",)
    """Which can run it; the scorer is fitted with the first."""
    lineage: dict[str, str] = {}
    metrics: dict[str, float] = {}


def pack(
    out: Path,
    models: Mapping[str, bytes],
    fit: Float32,
    calibration: Float32,
    position: Int64,
    about: Description,
    *,
    stream: bytes | None = None,
) -> str:
    """Write the bundle `out`, whole or not at all; returns its digest. `stream` is the stateful twin of `model.onnx`.

    `models` is by the member that holds it. `fit` and `calibration` are normal windows (n, C, N); the encoder learned from the
    first and never saw the second. `position` (m,) is where those of the second stand, in samples; a jump is a gap.
    The same input gives the same bytes when SOURCE_DATE_EPOCH is set. Raises `DataError` and `CannotCreateError`.
    """
    first = about.runtimes[0]
    backend = RUNTIMES[first].open(models[RUNTIMES[first].member])
    try:
        scorer, held_back, explainer = fit_to(backend, about.scorer, fit, calibration)
        smoother = Smoother(about.smoothing, about.hop, fit.shape[2])
        scores, at = smoothed(smoother, position, held_back)
        calibrator, tail = Calibrator.fit(scores), Tail.fit(scores, at, smoother, hour=3600 * about.rate_hz)
        some = run_in_slices(backend, thinned(calibration))
        reference = Reference.fit(some, scorer.score(some), thinned(position), fit.shape[2])
    except ValueError as error:
        raise DataError(f"{out}: {error}; train again on more or other recordings") from None
    usual = Usual.fit(np.concatenate([thinned(fit), thinned(calibration)]))
    golden_x = _golden(calibration)
    outputs = run_in_slices(backend, golden_x)
    golden = Golden(golden_x, outputs, scorer.score(outputs))
    manifest = Manifest(
        name=about.name,
        version=about.version,
        created=_now(),
        channels=tuple(ChannelSpec(name, about.units.get(name, "")) for name in about.channels),
        rate_hz=about.rate_hz,
        window=fit.shape[2],
        hop=about.hop,
        missing=about.missing,
        scorer=about.scorer,
        smoothing=about.smoothing,
        stream_hop=about.stream_hop,
        calibration_windows=calibrator.windows,
        calibration_floor=calibrator.floor,
        precision=about.precision,
        precision_reason=about.precision_reason,
        target=about.target,
        golden_tolerance=TOLERANCE[about.precision],
        runtimes=about.runtimes,
        golden_tolerances=_tolerances(models, about, golden, scorer),
        lineage=about.lineage,
        metrics=about.metrics,
    )
    members = {
        **models,
        "head.npz": pack_head(Head(scorer, calibrator, explainer, reference, usual, tail)),
        "golden.npz": pack_golden(golden),
        "README.md": _card(manifest).encode(),
        "bom.cdx.json": _bill_of_materials(manifest, models).encode(),
    }
    if stream is not None:
        members["stream.onnx"] = stream
    return write_bundle(out, manifest, members)


def _tolerances(models: Mapping[str, bytes], about: Description, golden: Golden, scorer: Ensemble) -> dict[str, float]:
    """By runtime, where there are several: twice what each is off here, and never less than the first is allowed."""
    found = {}
    for name in about.runtimes if len(about.runtimes) > 1 else ():
        if name == about.runtimes[0]:
            found[name] = TOLERANCE[about.precision]
        elif installed(name):
            score = scorer.score(run_in_slices(RUNTIMES[name].open(models[RUNTIMES[name].member]), golden.x))
            off = float(np.max(np.abs(score - golden.score) / (1 + np.abs(golden.score))))
            found[name] = max(TOLERANCE[about.precision], math.ceil(200 * off) / 100)
        else:
            found[name] = ELSEWHERE[about.precision]
    return found


def _golden(calibration: Float32) -> Float32:
    normal = calibration[np.linspace(0, len(calibration) - 1, min(GOLDEN, len(calibration))).astype(np.int64)]
    return np.concatenate([normal, inject(normal, usual_spread(thinned(calibration)), np.random.default_rng(2))])


def _now() -> str:
    """https://reproducible-builds.org/specs/source-date-epoch"""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _card(manifest: Manifest) -> str:
    """Model card with the front matter that Hugging Face reads."""
    rows = _table({"measured": manifest.metrics, "made from": manifest.lineage})
    return f"""\
---
library_name: amiss
pipeline_tag: time-series-forecasting
tags: [anomaly-detection, time-series, onnx, self-supervised, {manifest.precision}]
---

# {manifest.name} {manifest.version}

Tells how unusual a window of {manifest.window} samples of {", ".join(c.name for c in manifest.channels)} at
{manifest.rate_hz:g} Hz is, against the normal operation that it was trained on. It was trained without labels and has no idea
what is wrong; it is of no use for another machine, other sensors or another way of mounting them before its scorer and
calibration are fitted anew.

- scorer: {manifest.scorer}, calibrated on {manifest.calibration_windows} windows that the encoder did not see; nothing rarer
  than p = {manifest.calibration_floor:.3g} can be told
- precision: {manifest.precision} ({manifest.precision_reason})
- made: {manifest.created}

{rows}
"""


def _table(sections: Mapping[str, Mapping[str, object]]) -> str:
    lines: list[str] = []
    for title, entries in sections.items():
        if entries:
            lines += [f"| {title} | |", "| --- | --- |"]
            lines += [f"| {key} | {f'{value:.6g}' if isinstance(value, float) else value} |" for key, value in entries.items()]
            lines.append("")
    return "\n".join(lines).rstrip()


def _bill_of_materials(manifest: Manifest, models: Mapping[str, bytes]) -> str:
    """CycloneDX 1.6: one machine-learning model, the files that hold it, the data and the programs it was made with."""
    lineage = manifest.lineage
    data = {key.removeprefix("data/"): value for key, value in lineage.items() if key.startswith("data/")}
    data |= {"all recordings": lineage["data"]} if "data" in lineage else {}
    programs = {"amiss": lineage.get("program"), "torch": lineage.get("torch"), "onnxruntime": lineage.get("onnxruntime")}
    component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.version,
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "self-supervised"},
                "task": "anomaly detection",
                **({"architectureFamily": lineage["encoder"]} if "encoder" in lineage else {}),
                "inputs": [{"format": f"float32 (batch, {len(manifest.channels)}, {manifest.window})"}],
                "outputs": [{"format": f"float32 {', '.join(OUTPUTS)}"}],
                "datasets": [{"ref": f"data-{i}"} for i in range(len(data))],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {"type": name, "value": f"{value:.6g}"} for name, value in sorted(manifest.metrics.items())
                ]
            },
        },
        "properties": [
            {"name": f"amiss:{name}", "value": lineage[name]}
            for name in ("recipe", "run", "checkpoint", "seed")
            if name in lineage
        ],
    }
    files = [
        {"type": "file", "bom-ref": name, "name": name, "hashes": [_sha256(hashlib.sha256(content).hexdigest())]}
        for name, content in sorted(models.items())
    ]
    sets = [
        {"type": "data", "bom-ref": f"data-{i}", "name": name, "hashes": [_sha256(digest)]}
        for i, (name, digest) in enumerate(data.items())
    ]
    tools = [{"type": "application", "name": name, "version": version} for name, version in programs.items() if version]
    # Named after what it describes, so that the same bundle gets the same serial number.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"amiss:{manifest.name}:{manifest.version}:{sorted(lineage.items())}")
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": manifest.created, "tools": {"components": tools}, "component": component},
        "components": files + sets,
        "dependencies": [{"ref": "model", "dependsOn": [one["bom-ref"] for one in files + sets]}],
    }
    return json.dumps(bom, indent=2) + "\n"


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
