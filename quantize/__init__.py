"""A training run → a bundle: export, int8, parity with float, pack.

    RUN ──(prune)──▶ ──export──▶ fp32 ONNX ──ranges, int8──▶ int8 ONNX ──parity──▶ the better of the two ──pack──▶ .amiss
                       └───────────── qat, when int8 is over budget ◀────────┘
                                                                                           └── stream, if it is causal ──┘

Only `prune`, `export` and `qat` need PyTorch; `ranges`, `int8`, `compact`, `parity` and `pack` run where nobody trains.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.bundle import Bundle
from edge.errors import DataError, GateError
from edge.signal import Float32
from quantize.emulation import EmulationError, Emulator, find
from quantize.parity import Budget, Parity
from quantize.target import Board, Instructions, refusals

if TYPE_CHECKING:
    from quantize.prune import Pruning
    from trainer.model import Detector
    from trainer.progress import Report
    from trainer.recipe import PruneRecipe
    from trainer.train import RunInfo

DATA_IN_LINEAGE = 256
"""Recordings that the manifest names one by one; more go in as one digest of all."""


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
    bundle_bytes: int
    calibration_windows: int
    parity: Parity | None
    """`None` when there is no int8 model to compare, see `reason`."""
    pruned: "Pruning | None" = None
    """What was taken away before; `None` when nothing was to be."""
    target: str = ""
    """The board it was made for; empty: none in particular."""
    instructions: Instructions | None = None
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
        if self.instructions is not None:
            return {"target": f"{self.target}: {self.instructions.lines()} ({self.instructions.processor}, emulated)"}
        if self.parity is not None and self.target:
            return {"target": f"{self.target}; time on this machine decided, instructions were not counted: {self.not_counted}"}
        return {"target": self.target} if self.target else {}

    def lines(self) -> list[str]:
        return [
            f"{self.bundle}: {self.precision} ({self.reason})",
            f"  digest             {self.digest}",
            *(f"  {key:18} {value}" for key, value in self.table().items()),
            f"  calibrated on      {self.calibration_windows} windows",
        ]


def quantize(
    run: Path,
    out: Path,
    progress: "Report | None" = None,
    *,
    precision: Literal["auto", "int8", "float32"] = "auto",
    budget: Budget | None = None,
    name: str | None = None,
    version: str = "1",
    prune: "PruneRecipe | None" = None,
    target: Board | None = None,
    arm64: Callable[[], Emulator] = find,
) -> Quantized:
    """Write the bundle `out` from the training run `run`, whole or not at all. What is taken away first says `prune`, or, when
    that is `None`, the run's recipe.

    `auto` ships int8 unless there is none or it is over budget, and says why; `int8` raises `GateError` in that case. What is
    over budget is trained to be int8 first, for `qat.steps` of the recipe. With a `target` int8 must not be slower there, by
    instructions if `arm64` finds what counts them. Raises
    `NoInputError`, `DataError` for a run that cannot be read, `GateError` when the exported model differs from the trained one.
    """
    # Here and not above: the other modules of this package are imported through it, and they do without torch.
    from quantize.compact import compact
    from quantize.export import export
    from quantize.int8 import quantize_int8
    from quantize.pack import Description, pack
    from quantize.parity import compare
    from quantize.ranges import representative
    from quantize.stream import export_stream
    from trainer.checkpoint import load_detector, load_windows
    from trainer.progress import Step

    def tell(step: int, text: str) -> None:
        if progress:
            progress(Step(step, 5, text))

    emulator, not_counted = _emulator(target, arm64)
    tell(0, "reading the run")
    detector, info = load_detector(run)
    fit, calibration, position = load_windows(run)
    parameters, pruned = info.parameters, None
    settings = prune or info.recipe.prune
    if settings.target != "none":
        from quantize.prune import Stopwatch
        from quantize.prune import prune as cut_down

        stopwatch = Stopwatch(fit, calibration, int8=precision != "float32")
        detector, pruned = cut_down(detector, info.recipe, fit, calibration, settings, stopwatch, progress)
        parameters = pruned.after.parameters
    with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
        float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        tell(1, "exporting to ONNX")
        exported = export(detector, calibration[:64], float_path)
        models = {"float32": compact(float_path.read_bytes())}
        tell(2, "choosing int8 ranges")
        measured: Parity | str
        before = ""
        try:
            # What takes fewer instructions there may be slow here; then it is a figure from there that has to say so.
            activations = target.activations if target is not None and emulator is not None else "unsigned"
            quantize_int8(float_path, representative(fit), int8_path, activations=activations)
        except GateError as error:
            measured = str(error)
        else:
            # A stream is made of nodes that still have their names, and is to equal what ships to the last digit.
            models["int8"] = int8_path.read_bytes() if detector.causal else compact(int8_path.read_bytes())
            tell(3, "comparing int8 with float")
            measured = compare(models["float32"], models["int8"], fit, calibration, info.recipe.scorer)
            steps, lost = info.recipe.qat.steps, _lost(measured, budget or Budget())
            if precision != "float32" and steps and lost and not detector.causal:
                try:
                    trained = retrain(detector, info, fit, calibration, Path(folder), lambda text: tell(3, text))
                except (DataError, GateError) as error:
                    before = f"; quantization-aware training came to nothing: {error}"
                else:
                    again = compare(models["float32"], trained, fit, calibration, info.recipe.scorer)
                    still = _lost(again, budget or Budget())
                    if still:
                        before = f"; after {steps} steps of quantization-aware training still: {still}"
                    else:
                        before = f"; after {steps} steps of quantization-aware training; without them: {lost}"
                        models["int8"], measured = trained, again
        instructions: Instructions | None = None
        if target is not None and emulator is not None and "int8" in models:
            tell(3, f"counting instructions on {target.processor}")
            try:
                instructions = _count(emulator, models, fit, target)
            except EmulationError as error:
                not_counted = str(error)
        made_for = None if target is None else (target, instructions or not_counted)
        shipped, reason = choose(measured, precision, budget or Budget(), made_for, before)
        tell(4, "packing")
        stream, stream_hop = None, 0
        if detector.causal:
            stream_path = Path(folder) / "stream.onnx"
            stream_hop = export_stream(detector, models[shipped], calibration[:8], stream_path).hop
            stream = stream_path.read_bytes()
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
        lineage=lineage(run, info),
        metrics=_metrics(measured)
        | {"float_bytes": len(models["float32"]), "parameters": parameters}
        | (pruned.metrics() if pruned else {}),
    )
    digest = pack(out, models[shipped], fit, calibration, position, about, stream=stream)
    tell(5, "done")
    return Quantized(
        bundle=str(out),
        digest=digest,
        precision=shipped,
        reason=reason,
        parameters=parameters,
        export_difference=exported.difference,
        model_bytes=len(models[shipped]),
        bundle_bytes=out.stat().st_size,
        calibration_windows=Bundle.open(out).calibrator.windows,
        parity=None if isinstance(measured, str) else measured,
        pruned=pruned,
        target=target.name if target is not None else "",
        instructions=instructions,
        not_counted=not_counted,
    )


def retrain(
    detector: "Detector",
    info: "RunInfo",
    fit: Float32,
    calibration: Float32,
    folder: Path,
    tell: Callable[[str], None],
) -> bytes:
    """The int8 model of a detector that was trained on to be int8, with the ranges that it learned: unsigned, as it learned."""
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


def _emulator(target: Board | None, arm64: Callable[[], Emulator]) -> tuple[Emulator | None, str]:
    """What counts instructions on the target's processor, or why nothing does."""
    if target is None or target.processor is None:
        return None, "it is no Arm board" if target else ""
    try:
        return arm64(), ""
    except EmulationError as error:
        return None, str(error)


def _count(emulator: Emulator, models: Mapping[str, bytes], windows: Float32, target: Board) -> Instructions:
    assert target.processor is not None
    found = emulator.instructions(models, windows[:1], target.processor)
    return Instructions(processor=target.processor, float32=found["float32"][1], int8=found["int8"][1])


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
    measured: Parity | str,
    precision: Literal["auto", "int8", "float32"],
    budget: Budget,
    made_for: tuple[Board, Instructions | str] | None = None,
    also: str = "",
) -> tuple[str, str]:
    """Precision to ship, and why. Without an int8 model `measured` is the reason. `made_for` is a board and what was counted on
    its processor, or why nothing was; `also` is said behind what was measured.

    Raises `GateError` when `int8` was asked for and there is none, or it is over budget.
    """
    if precision == "float32":
        return "float32", "asked for"
    if isinstance(measured, str):
        if precision == "int8":
            raise GateError(f"no int8 model: {measured}")
        return "float32", measured
    if made_for is not None:
        return _choose_for(*made_for, measured, precision, budget)
    if precision == "int8":
        measured.require(budget)
    if failures := measured.failures(budget):
        return "float32", f"int8 was over budget: {'; '.join(failures)}{also}"
    # Nothing that a clock measured goes into the bundle: the same run is to give the same bytes.
    return "int8", (
        f"{1 - measured.flips:.1%} of {measured.windows} verdicts as in float, {measured.int8_bytes} bytes instead of "
        f"{measured.float_bytes}{also}"
    )


def _choose_for(board: Board, counted: Instructions | str, measured: Parity, precision: str, budget: Budget) -> tuple[str, str]:
    if failures := refusals(board, measured, counted, budget):
        if precision == "int8":
            raise GateError(f"int8 is not for {board.name}: {'; '.join(failures)}")
        return "float32", f"int8 is not for {board.name}: {'; '.join(failures)}"
    cost = "instructions were not counted" if isinstance(counted, str) else f"{counted.lines()} on {counted.processor}"
    return "int8", f"for {board.name}: {1 - measured.flips:.1%} of {measured.windows} verdicts as in float; {cost}"


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
