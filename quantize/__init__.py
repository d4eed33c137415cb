"""A training run → a bundle: export, int8, parity with what was trained, pack.

    RUN ──(prune)──▶ ──export──▶ fp32 ONNX ────ranges, int8────▶ int8 ONNX ────┐
                  │    └──── qat, when int8 is over budget ◀───────┘           │
                  └──tflite──▶ float .tflite ──ranges──▶ int8 .tflite ──parity──▶ the better precision ──pack──▶ .amiss

Only `prune`, `export`, `tflite` and `qat` need PyTorch; `ranges`, `int8`, `compact`, `parity` and `pack` do without.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.bundle import Bundle
from edge.errors import DataError, GateError
from edge.scoring.backends import RUNTIMES, installed, run_in_slices
from edge.signal import Float32
from quantize.parity import Matrix, Parity
from trainer.recipe import Budget

if TYPE_CHECKING:
    from quantize.export import Exported
    from quantize.prune import Pruning
    from trainer.model import Detector
    from trainer.progress import Report
    from trainer.recipe import PruneRecipe
    from trainer.train import RunInfo

DATA_IN_LINEAGE = 256
"""Recordings that the manifest names one by one; more go in as one digest of all."""

FORMATS = {
    "onnx": ("onnxruntime",),
    "tflite": ("litert", "tflite-runtime"),
    "both": ("litert", "onnxruntime", "tflite-runtime"),
}
"""What `--runtime` says → runtimes that can run the bundle, in the order in which a device looks for them. The first is the one
that the scorer is fitted with, and that it is built with."""


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

    def table(self) -> dict[str, str]:
        """For a person, one line an entry."""
        p, pruned = self.parity, self.pruned.table() if self.pruned else {}
        if p is None:
            size = f"{self.model_bytes / 1000:.0f} kB in float; the bundle {self.bundle_bytes / 1000:.0f} kB"
            return pruned | {"size": size}
        return pruned | {
            "size": f"{p.int8_bytes / 1000:.0f} kB in int8, {p.float_bytes / 1000:.0f} kB in float; "
            f"the bundle {self.bundle_bytes / 1000:.0f} kB",
            "latency": f"p50 {p.int8_us:.0f} µs, p99 {p.int8_p99_us:.0f} µs a window in int8; "
            f"{p.float_us:.0f} and {p.float_p99_us:.0f} µs in float (this machine, one thread)",
            "int8_equals_float": f"{1 - p.flips:.1%} of {p.windows} verdicts, rank correlation {p.rank_correlation:.4f}",
        }

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
    precision: Literal["auto", "int8", "float32"] = "auto",
    runtime: Literal["onnx", "tflite", "both"] | None = None,
    budget: Budget | None = None,
    name: str | None = None,
    version: str = "1",
    prune: "PruneRecipe | None" = None,
) -> Quantized:
    """Write the bundle `out` from the training run `run`, whole or not at all. What is taken away first says `prune`, or, when
    that is `None`, the run's recipe.

    `auto` ships int8 unless there is none or it is over budget, and says why; `int8` raises `GateError` in that case. What
    is over budget is trained to be int8 first, for `qat.steps` of the recipe, when only ONNX is made. Runtime
    and budget are the recipe's unless they are said. Raises `NoInputError`, `DataError` for a run that cannot be read,
    `GateError` when what would be shipped is over budget or an exported model differs from the trained one.
    """
    # Here and not above: the other modules of this package are imported through it, and they do without torch.
    from quantize.pack import Description, pack
    from quantize.parity import compare
    from trainer.checkpoint import load_detector, load_windows
    from trainer.progress import Step

    def tell(step: int, text: str) -> None:
        if progress:
            progress(Step(step, 5, text))

    tell(0, "reading the run")
    detector, info = load_detector(run)
    fit, calibration, position = load_windows(run)
    runtimes = FORMATS[runtime or info.recipe.runtime]
    budget = budget or info.recipe.budget
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
    models, difference = make_models(detector, runtimes, fit, calibration)
    here = [name for name in runtimes if installed(name)]
    tell(2, "comparing int8 with float")
    measured = beside_float(models, here, fit, calibration, info.recipe.scorer)
    before = ""
    if precision != "float32" and runtimes == FORMATS["onnx"] and isinstance(alone := measured["onnxruntime"], Parity):
        steps, lost = info.recipe.qat.steps, _lost(alone, budget)
        if steps and lost:
            made = models["model.onnx"]
            try:
                with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
                    trained = retrain(detector, info, fit, calibration, Path(folder), lambda text: tell(2, text))
            except (DataError, GateError) as error:
                before = f"; quantization-aware training came to nothing: {error}"
            else:
                again = compare(made["float32"], trained, fit, calibration, info.recipe.scorer)
                if still := _lost(again, budget):
                    before = f"; after {steps} steps of quantization-aware training still: {still}"
                else:
                    before = f"; after {steps} steps of quantization-aware training; without them: {lost}"
                    made["int8"], measured["onnxruntime"] = trained, again
    tell(3, "comparing with what was trained")
    table = beside_trained(detector, models, here, fit, calibration, info.recipe.scorer)
    shipped, reason = choose_all(measured, table, precision, budget, before)
    members = {member: made[shipped] for member, made in models.items()}
    first = runtimes[0]
    tell(4, "packing")
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
        precision=shipped,
        precision_reason=reason,
        lineage=lineage(run, info),
        metrics=_metrics(measured[first])
        | {"float_bytes": len(models[RUNTIMES[first].member]["float32"]), "parameters": parameters}
        | (pruned.metrics() if pruned else {}),
        runtimes=runtimes,
    )
    digest = pack(out, members, fit, calibration, position, about)
    tell(5, "done")
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
        calibration_windows=Bundle.open(out).calibrator.windows,
        parity=found if isinstance(found := measured[first], Parity) else None,
        matrix=table,
        pruned=pruned,
    )


def retrain(
    detector: "Detector", info: "RunInfo", fit: Float32, calibration: Float32, folder: Path, tell: Callable[[str], None]
) -> bytes:
    """The int8 model of a detector that was trained on to be int8, with the ranges that it learned."""
    from quantize.compact import compact
    from quantize.export import export
    from quantize.int8 import quantize_int8
    from quantize.qat import adapt
    from quantize.ranges import representative

    adapted = adapt(
        detector,
        info.recipe,
        fit,
        lambda step: tell(f"int8 is over budget; quantization-aware training {step.step}/{step.steps}: {step.text}"),
    )
    export(adapted.detector, calibration[:64], folder / "adapted.onnx")
    quantize_int8(folder / "adapted.onnx", representative(fit), folder / "adapted-int8.onnx", adapted.ranges)
    return compact((folder / "adapted-int8.onnx").read_bytes())


def _lost(measured: Parity, budget: Budget) -> str:
    """What is over budget and can be learned, which speed cannot: and what a clock measured does not go into the bundle."""
    return "; ".join(measured.failures(msgspec.structs.replace(budget, slower=math.inf)))


Models = dict[str, dict[str, bytes]]
"""Member of a bundle → precision → model. `int8` is left out where there is none, and `why` says the reason."""


def make_models(detector: "Detector", runtimes: Sequence[str], fit: Float32, calibration: Float32) -> tuple[Models, float]:
    """Every model that these runtimes need, and the largest difference of a float one from what was trained."""
    from quantize.compact import compact
    from quantize.export import export
    from quantize.int8 import quantize_int8
    from quantize.ranges import representative

    models: Models = {}
    worst = 0.0
    for member in dict.fromkeys(RUNTIMES[name].member for name in runtimes):
        make: Callable[[Detector, Float32, Path], Exported] = export
        shrink: Callable[[Path, Float32, Path], None] = quantize_int8
        if member == "model.tflite":
            from quantize.tflite import export_tflite, quantize_tflite

            make, shrink = export_tflite, quantize_tflite
        lean = compact if member == "model.onnx" else bytes
        with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
            whole, small = Path(folder) / "float", Path(folder) / "int8"
            worst = max(worst, make(detector, calibration[:64], whole).difference)
            models[member] = {"float32": lean(whole.read_bytes())}
            try:
                shrink(whole, representative(fit), small)
            except GateError as error:
                models[member]["why"] = str(error).encode()
            else:
                models[member]["int8"] = lean(small.read_bytes())
    return models, worst


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


def choose_all(
    measured: Mapping[str, Parity | str],
    table: Matrix,
    precision: Literal["auto", "int8", "float32"],
    budget: Budget,
    before: str = "",
) -> tuple[str, str]:
    """Precision to ship for all runtimes, and why. Raises `GateError` when that is over budget, float or int8 by request."""
    choices = {name: choose(found, precision, budget, before) for name, found in measured.items()}
    refused = [
        f"{name}: {reason}" if len(choices) > 1 else reason for name, (kind, reason) in choices.items() if kind != "int8"
    ]
    if not refused:
        over = table.failures(budget, "int8")
        if over and precision == "int8":
            raise GateError(f"the int8 model is not as good as what was trained: {'; '.join(over)}{before}")
        if not over:
            return "int8", next(iter(choices.values()))[1]
        refused = [f"int8 was over budget: {'; '.join(over)}{before}"]
    if over := table.failures(budget, "float32"):
        raise GateError(f"over budget even in float: {'; '.join(over)}; widen [budget] in the recipe")
    return "float32", "; ".join(dict.fromkeys(refused))


def _metrics(measured: Parity | str) -> dict[str, float]:
    if isinstance(measured, str):
        return {}
    return {
        "embedding_error": measured.embedding_error,
        "rank_correlation": measured.rank_correlation,
        "verdict_flips": measured.flips,
        "int8_bytes": measured.int8_bytes,
    }


def choose(
    measured: Parity | str, precision: Literal["auto", "int8", "float32"], budget: Budget, also: str = ""
) -> tuple[str, str]:
    """Precision to ship, and why. Without an int8 model `measured` is the reason; `also` is said behind what was measured.

    Raises `GateError` when `int8` was asked for and there is none, or it is over budget.
    """
    if precision == "float32":
        return "float32", "asked for"
    if isinstance(measured, str):
        if precision == "int8":
            raise GateError(f"no int8 model: {measured}")
        return "float32", measured
    if precision == "int8":
        measured.require(budget)
    if failures := measured.failures(budget):
        return "float32", f"int8 was over budget: {'; '.join(failures)}{also}"
    # Nothing that a clock measured goes into the bundle: the same run is to give the same bytes.
    return "int8", (
        f"{1 - measured.flips:.1%} of {measured.windows} verdicts as in float, {measured.int8_bytes} bytes instead of "
        f"{measured.float_bytes}{also}"
    )


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
