"""Every model that a bundle may ship: in each format that its runtimes take, in float and in int8."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.errors import GateError
from edge.scoring.backends import RUNTIMES
from edge.signal import Float32

if TYPE_CHECKING:
    from quantize.export import Exported
    from trainer.model import Detector
    from trainer.train import RunInfo

FORMATS = {
    "onnx": ("onnxruntime",),
    "tflite": ("litert", "tflite-runtime"),
    "both": ("litert", "onnxruntime", "tflite-runtime"),
}
"""What `--runtime` says → runtimes that can run the bundle, in the order in which a device looks for them. The first is the one
that the scorer is fitted with, and that it is built with."""

Models = dict[str, dict[str, bytes]]
"""Member of a bundle → precision → model. `int8` is left out where there is none, and `why` says the reason."""


def make_models(
    detector: "Detector",
    runtimes: Sequence[str],
    fit: Float32,
    calibration: Float32,
    activations: Literal["unsigned", "signed"] = "unsigned",
) -> tuple[Models, float]:
    """Every model that these runtimes need, and the largest difference of a float one from what was trained.

    `activations` are those of int8 ONNX; .tflite files know signed ones only.
    """
    from quantize.compact import compact
    from quantize.export import export
    from quantize.int8 import quantize_int8
    from quantize.ranges import representative

    models: Models = {}
    worst = 0.0
    ranges_from = representative(fit)
    for member in dict.fromkeys(RUNTIMES[name].member for name in runtimes):
        make: Callable[[Detector, Float32, Path], Exported] = export
        with tempfile.TemporaryDirectory(prefix="amiss-quantize-") as folder:
            whole, small = Path(folder) / "float", Path(folder) / "int8"
            if member == "model.tflite":
                from quantize.tflite import export_tflite, quantize_tflite

                make = export_tflite
            worst = max(worst, make(detector, calibration[:64], whole).difference)
            lean = compact if member == "model.onnx" else bytes
            models[member] = {"float32": lean(whole.read_bytes())}
            try:
                if member == "model.tflite":
                    quantize_tflite(whole, ranges_from, small)
                else:
                    quantize_int8(whole, ranges_from, small, activations=activations)
            except GateError as error:
                models[member]["why"] = str(error).encode()
            else:
                # A stream is made of nodes that still have their names, and is to equal what ships to the last digit.
                models[member]["int8"] = small.read_bytes() if detector.causal else lean(small.read_bytes())
    return models, worst


def retrain(
    detector: "Detector", info: "RunInfo", fit: Float32, calibration: Float32, folder: Path, tell: Callable[[str], None]
) -> bytes:
    """The int8 ONNX model of a detector that was trained on to be int8, with the ranges that it learned: unsigned ones."""
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
