"""A training run → a bundle: export, int8, parity with what was trained, pack.

    RUN ──(prune)──▶ ──export──▶ fp32 ONNX ────ranges, int8────▶ int8 ONNX ────┐
                  │    └──── qat, when int8 is over budget ◀───────┘           │
                  └──tflite──▶ float .tflite ──ranges──▶ int8 .tflite ──parity──▶ the better precision ──pack──▶ .amiss
                                                                                     └── stream, if it is causal ──┘

Only `prune`, `export`, `tflite` and `qat` need PyTorch; `ranges`, `int8`, `compact`, `parity`, `choice` and `pack` do without.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.bundle import Bundle
from edge.errors import DataError, GateError
from edge.scoring.backends import RUNTIMES, installed, run_in_slices
from edge.signal import Float32
from quantize.choice import Counted, Precision, choose_all, lost
from quantize.emulation import EmulationError, Emulator, find
from quantize.models import FORMATS, Models, make_models, retrain
from quantize.parity import Matrix, Parity
from quantize.target import Board, Instructions
from trainer.recipe import Budget

if TYPE_CHECKING:
    from quantize.prune import Pruning
    from trainer.model import Detector
    from trainer.progress import Report
    from trainer.recipe import PruneRecipe
    from trainer.train import RunInfo

DATA_IN_LINEAGE = 256
"""Recordings that the manifest names one by one; more go in as one digest of all."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a bundle was made of, for who wants to look closer."""

    detector: "Detector"
    """Trained, and pruned if it was to be."""
    models: Models
    here: tuple[str, ...]
    """Runtimes that are installed, the first one first."""
    measured: dict[str, Parity | str]
    """By runtime: int8 beside float, or why there is no int8."""
    fit: Float32
    calibration: Float32
    """(n, C, N) and (m, C, N)"""
    scorer: str
    budget: Budget
    """The board's share of flips in it, when it is made for a board."""
    asked: Precision


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a run."""

    bundle: str
    digest: str
    precision: str
    reason: str
    """Why that one was shipped, with the figures."""
    parameters: int
    export_difference: float
    """Between torch and ONNX Runtime, relative to the largest output."""
    model_bytes: int
    """Of all models in the bundle."""
    runtimes: tuple[str, ...]
    bundle_bytes: int
    calibration_windows: int
    parity: Parity | None
    """`None` when there is no int8 model to compare, see `reason`."""
    pruned: "Pruning | None" = None
    """What was taken away before; `None` when nothing was to be."""
    matrix: Matrix
    """Every model beside what was trained."""
    target: str = ""
    """The board it was made for; empty: none in particular."""
    instructions: dict[str, Instructions] = {}
    """By runtime, on the target's processor."""
    not_counted: str = ""
    """Why there are none, when there is a target."""

    def table(self) -> dict[str, str]:
        """For a person, one line an entry."""
        p, pruned = self.parity, self.pruned.table() if self.pruned else {}
        if p is None:
            size = f"{self.model_bytes / 1000:.0f} kB in float; the bundle {self.bundle_bytes / 1000:.0f} kB"
            return self._target() | pruned | {"size": size}
        return (
            self._target()
            | pruned
            | {
                "size": f"{p.int8_bytes / 1000:.0f} kB in int8, {p.float_bytes / 1000:.0f} kB in float; "
                f"the bundle {self.bundle_bytes / 1000:.0f} kB",
                "latency": f"p50 {p.int8_us:.0f} µs, p99 {p.int8_p99_us:.0f} µs a window in int8; "
                f"{p.float_us:.0f} and {p.float_p99_us:.0f} µs in float (this machine, one thread)",
                "int8_equals_float": f"{1 - p.flips:.1%} of {p.windows} verdicts, rank correlation {p.rank_correlation:.4f}",
            }
        )

    def _target(self) -> dict[str, str]:
        if self.instructions:
            each = [f"{runtime}: {n.lines()} ({n.processor}, emulated)" for runtime, n in self.instructions.items()]
            return {"target": f"{self.target}; {'; '.join(each)}"}
        if self.parity is not None and self.target:
            return {"target": f"{self.target}; time on this machine decided, instructions were not counted: {self.not_counted}"}
        return {"target": self.target} if self.target else {}

    def lines(self) -> list[str]:
        return [
            f"{self.bundle}: {self.precision} ({self.reason})",
            f"  digest             {self.digest}",
            *(f"  {key:18} {value}" for key, value in self.table().items()),
            *(f"  {'beside trained':18} {line}" for line in self.matrix.lines()),
            f"  calibrated on      {self.calibration_windows} windows",
        ]


def quantize(
    run: Path,
    out: Path,
    progress: "Report | None" = None,
    *,
    precision: Precision = "auto",
    runtime: Literal["onnx", "tflite", "both"] | None = None,
    budget: Budget | None = None,
    name: str | None = None,
    version: str = "1",
    prune: "PruneRecipe | None" = None,
    target: Board | None = None,
    arm64: Callable[[], Emulator] = find,
    keep: Callable[[Made], None] | None = None,
) -> Quantized:
    """Write the bundle `out` from the training run `run`, whole or not at all. What is taken away first says `prune`, or, when
    that is `None`, the run's recipe; so with `runtime` and `budget`.

    `auto` ships int8 unless there is none or it is over budget, and says why; `int8` raises `GateError` in that case. What is
    over budget is trained to be int8 first, for `qat.steps` of the recipe, when only ONNX is made. With a `target` int8 must
    not be slower there, by instructions if `arm64` finds what counts them. `keep` is given what the bundle was made of when it
    is written. Raises `NoInputError`, `DataError` for a run that cannot be read, `GateError` when what
    would be shipped is over budget or an exported model differs from the trained one.
    """
    # Here and not above: the other modules of this package are imported through it, and they do without torch.
    from quantize.pack import Description, pack
    from trainer.checkpoint import load_detector, load_windows
    from trainer.progress import Step

    def tell(step: int, text: str) -> None:
        if progress:
            progress(Step(step, 5, text))

    emulator, not_counted = _emulator(target, arm64)
    tell(0, "reading the run")
    detector, info = load_detector(run)
    fit, calibration, position = load_windows(run)
    runtimes = _in_order(FORMATS[runtime or info.recipe.runtime], target)
    budget = budget or info.recipe.budget
    if target is not None:  # the board says it, to what is trained again as to what ships
        budget = msgspec.structs.replace(budget, flips=target.flips)
    if "litert" in runtimes:
        from quantize.tflite import require_convertible

        require_convertible(detector)
    parameters, pruned = info.parameters, None
    settings = prune or info.recipe.prune
    if settings.target != "none":
        from quantize.prune import Stopwatch
        from quantize.prune import prune as cut_down

        stopwatch = Stopwatch(fit, calibration, int8=precision != "float32")
        detector, pruned = cut_down(detector, info.recipe, fit, calibration, settings, stopwatch, progress)
        parameters = pruned.after.parameters
    tell(1, "exporting, choosing int8 ranges")
    # What takes fewer instructions there may be slow here; then it is a figure from there that has to say so.
    activations = target.activations if target is not None and emulator is not None else "unsigned"
    models, difference = make_models(detector, runtimes, fit, calibration, activations)
    here = [name for name in runtimes if installed(name)]
    tell(2, "comparing int8 with float, and both with what was trained")
    measured = beside_float(models, here, fit, calibration, info.recipe.scorer)
    table = beside_trained(detector, models, here, fit, calibration, info.recipe.scorer)
    also = ""
    if precision != "float32" and runtimes == ("onnxruntime",) and not detector.causal:
        also, measured["onnxruntime"], table = _regain(
            detector, info, models, measured["onnxruntime"], table, fit, calibration, budget, lambda text: tell(2, text)
        )
    counted: Counted = not_counted
    if target is None or emulator is None:
        tell(3, "choosing what ships")
    else:
        tell(3, f"counting instructions on {target.processor}")
        try:
            counted = _count(emulator, models, here, fit, target)
        except EmulationError as error:
            counted = str(error)
    shipped, reason = choose_all(measured, table, precision, budget, target, counted, also)
    members = {member: made[shipped] for member, made in models.items()}
    first = here[0]
    tell(4, "packing")
    stream, stream_hop = None, 0
    if detector.causal and "model.onnx" in members and "litert" not in runtimes:
        from quantize.stream import export_stream

        with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
            path = Path(folder) / "stream.onnx"
            stream_hop = export_stream(detector, members["model.onnx"], calibration[:8], path).hop
            stream = path.read_bytes()
    about = Description(
        name=name or out.stem,
        version=version,
        channels=info.channels,
        units=info.units,
        rate_hz=info.rate_hz,
        hop=info.hop,
        missing=info.missing,
        scorer=info.recipe.scorer,
        smoothing=info.recipe.smoothing_samples,
        stream_hop=stream_hop,
        precision=shipped,
        precision_reason=reason,
        target=target.name if target is not None else "",
        runtimes=runtimes,
        lineage=lineage(run, info),
        metrics=_metrics(measured[first])
        | {"float_bytes": len(models[RUNTIMES[first].member]["float32"]), "parameters": parameters}
        | (pruned.metrics() if pruned else {}),
    )
    digest = pack(out, members, fit, calibration, position, about, stream=stream)
    tell(5, "done")
    if keep:
        allowed = budget if target is None else msgspec.structs.replace(budget, flips=target.flips)
        keep(Made(detector, models, tuple(here), measured, fit, calibration, info.recipe.scorer, allowed, precision))
    return Quantized(
        bundle=str(out),
        digest=digest,
        precision=shipped,
        reason=reason,
        parameters=parameters,
        export_difference=difference,
        model_bytes=sum(map(len, members.values())),
        runtimes=runtimes,
        bundle_bytes=out.stat().st_size,
        calibration_windows=Bundle.open(out).head.calibrator.windows,
        parity=found if isinstance(found := measured[first], Parity) else None,
        matrix=table,
        pruned=pruned,
        target=target.name if target is not None else "",
        instructions={} if isinstance(counted, str) else dict(counted),
        not_counted=counted if isinstance(counted, str) else "",
    )


def _in_order(runtimes: tuple[str, ...], target: Board | None) -> tuple[str, ...]:
    """The target's order; one that it does not name comes behind."""
    wanted = target.runtimes if target is not None else ()
    return tuple(sorted(runtimes, key=lambda name: wanted.index(name) if name in wanted else len(wanted)))


def _regain(
    detector: "Detector",
    info: "RunInfo",
    models: Models,
    before: Parity | str,
    table: Matrix,
    fit: Float32,
    calibration: Float32,
    budget: Budget,
    tell: Callable[[str], None],
) -> tuple[str, Parity | str, Matrix]:
    """Train what int8 lost, if it is over budget and that helps: then `models` holds what was made of it.

    What came of it, to be said behind the reason, and the two comparisons as they are now.
    """
    from quantize.parity import compare

    steps = info.recipe.qat.steps
    if isinstance(before, str) or not steps or not (over := lost(before, table, budget)):
        return "", before, table
    try:
        with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
            trained = retrain(detector, info, fit, calibration, Path(folder), tell)
    except (DataError, GateError) as error:
        return f"; quantization-aware training came to nothing: {error}", before, table
    made = models["model.onnx"]
    again = compare(made["float32"], trained, fit, calibration, info.recipe.scorer)
    others = {"model.onnx": made | {"int8": trained}}
    again_all = beside_trained(detector, others, ("onnxruntime",), fit, calibration, info.recipe.scorer)
    if still := lost(again, again_all, budget):
        return f"; after {steps} steps of quantization-aware training still: {still}", before, table
    made["int8"] = trained
    return f"; after {steps} steps of quantization-aware training; without them: {over}", again, again_all


def _emulator(target: Board | None, arm64: Callable[[], Emulator]) -> tuple[Emulator | None, str]:
    """What counts instructions on the target's processor, or why nothing does."""
    if target is None or target.processor is None:
        return None, "it is no Arm board" if target else ""
    try:
        return arm64(), ""
    except EmulationError as error:
        return None, str(error)


def _count(
    emulator: Emulator, models: Models, runtimes: Sequence[str], windows: Float32, target: Board
) -> dict[str, Instructions]:
    """By runtime. tflite-runtime has no wheel for the system that is emulated."""
    assert target.processor is not None
    counted = {}
    for name in runtimes:
        made = models[RUNTIMES[name].member]
        if "int8" in made and name != "tflite-runtime":
            both = {precision: made[precision] for precision in ("float32", "int8")}
            found = emulator.instructions(both, windows[:1], target.processor)
            counted[name] = Instructions(processor=target.processor, float32=found["float32"][1], int8=found["int8"][1])
    return counted


def beside_float(
    models: Models, runtimes: Sequence[str], fit: Float32, calibration: Float32, scorer: str
) -> dict[str, Parity | str]:
    """By runtime: int8 beside float, or why there is no int8."""
    from quantize.parity import compare

    found: dict[str, Parity | str] = {}
    for name in runtimes:
        made = models[RUNTIMES[name].member]
        whole, small = made["float32"], made.get("int8")
        found[name] = compare(whole, small, fit, calibration, scorer) if small else made["why"].decode()
    return found


def beside_trained(
    detector: "Detector", models: Models, runtimes: Sequence[str], fit: Float32, calibration: Float32, scorer: str
) -> Matrix:
    """Every model beside what was trained. One head serves them all, as in the bundle: that of the first runtime."""
    from quantize.export import outputs_of
    from quantize.parity import Contestant, matrix

    contestants = []
    for name in runtimes:
        made = models[RUNTIMES[name].member]
        for precision in (key for key in ("float32", "int8") if key in made):
            run = partial(run_in_slices, RUNTIMES[name].open(made[precision]))
            head = None if name == runtimes[0] else f"{runtimes[0]} {precision}"
            contestants.append(Contestant(name, precision, len(made[precision]), run, head))
    return matrix(partial(outputs_of, detector), contestants, fit, calibration, scorer)


def _metrics(measured: Parity | str) -> dict[str, float]:
    if isinstance(measured, str):
        return {}
    return {
        "embedding_error": measured.embedding_error,
        "rank_correlation": measured.rank_correlation,
        "verdict_flips": measured.flips,
        "int8_bytes": measured.int8_bytes,
    }


def lineage(run: Path, info: "RunInfo") -> dict[str, str]:
    """Digests and versions that lead from a bundle back to recipe, code and data."""
    import onnxruntime

    found = {
        "program": info.version,
        "encoder": info.recipe.encoder.kind,
        "torch": info.torch,
        "onnxruntime": onnxruntime.__version__,
        "seed": str(info.recipe.training.seed),
        "recipe": hashlib.sha256(msgspec.json.encode(info.recipe)).hexdigest(),
        "run": hashlib.sha256((run / "run.json").read_bytes()).hexdigest(),
        "checkpoint": hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest(),
    }
    if len(info.data) <= DATA_IN_LINEAGE:
        return found | {f"data/{name}": digest for name, digest in info.data.items()}
    everything = hashlib.sha256("\n".join(f"{digest}  {name}" for name, digest in sorted(info.data.items())).encode())
    return found | {"data": everything.hexdigest()}
