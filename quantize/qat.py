"""Quantization-aware training: what is tried when int8 without it says something else than float.

The folded encoder is trained for a few hundred more steps with its convolutions and the tensors between them rounded as
`quantize.int8` will round them: weights to signed 8 bits with one scale an output channel, activations to unsigned 8 bits with
one scale a tensor. Gradients pass the rounding as if it were not there (straight-through, Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018), and reach scale and zero-point of every
activation too: Esser et al., "Learned Step Size Quantization" (2020), eq. 3, with the offset of Bhalgat et al., "LSQ+" (2020).
Scales are learned as logarithms, after Jain et al., "Trained Quantization Thresholds" (2020): they span decades.

What is minimised is the loss of the run on normal windows, and how far the maps are from those of the float encoder on windows
half of which hold a fault. Without the second, ranges would shrink to what normal operation needs and clip the anomalies.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edge.signal import Float32
from quantize.export import fold
from quantize.int8 import becomes_int8, key_of_input, key_of_relu, key_of_sum
from quantize.ranges import BATCH, Range, representative
from trainer.model import Detector
from trainer.pretexts.embedding import embed
from trainer.recipe import Recipe
from trainer.train import deterministic, fit

if TYPE_CHECKING:
    from trainer.encoders import Encoder
    from trainer.pretexts import Pretext
    from trainer.progress import Report

STEEPER = 30.0
"""Scales learn so much faster than weights: in some hundred steps a range has to be able to become a tenth of what it was."""
ALIKE_COUNT, ALIKE_SEED = 2048, 4
"""Windows on which the maps are to be alike; other faults than those that ranges and parity see."""
ALIKE_WEIGHT = 10.0
"""Beside the loss of the run. At 1 that loss moves the maps, and they end further from the float ones than they began."""

_CONVOLVE = {torch.conv2d, functional.conv2d}
_RELU = {torch.relu, functional.relu, Tensor.relu}
_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}


@dataclass(frozen=True, slots=True)
class Adapted:
    detector: Detector
    """Folded, in evaluation mode and an ordinary one: nothing in it rounds."""
    ranges: dict[str, Range]
    """What was learned for every tensor that becomes int8; names as `quantize.int8.tensors` has them."""
    losses: list[float]


def adapt(detector: Detector, recipe: Recipe, windows: Float32, progress: "Report | None" = None) -> Adapted:
    """`recipe.qat.steps` steps from the trained `detector`, which stays as it is, on normal windows (n, C, N).

    The same call gives the same weights and ranges to the bit on one kind of CPU. Raises `DataError` for an infinite loss.
    """
    # Nothing is set aside or left out as in the first training: the weights are where they are to be, all but the rounding.
    training = msgspec.structs.replace(
        recipe.training,
        steps=recipe.qat.steps,
        lr=recipe.qat.lr,
        weight_decay=0.0,
        patience=0,
        trim=0.0,
        device="cpu",
        precision="float32",
    )
    with deterministic(training.seed, training.threads):
        student, teacher = fold(detector), fold(detector)
        pretext = student.pretext
        with torch.no_grad():
            x = student.normalise(torch.from_numpy(representative(windows, ALIKE_SEED, ALIKE_COUNT)))[1]
        rounding = Rounding(student.encoder, (x[at : at + BATCH] for at in range(0, len(x), BATCH)))
        student.encoder = rounding
        student.pretext = cast("Pretext", Alike(pretext, teacher.encoder, x, training.batch))
        recipe = msgspec.structs.replace(recipe, training=training)
        fitted = fit(recipe, windows, windows[:BATCH], progress, detector=student)
        student.encoder, student.pretext = rounding.encoder, pretext
    return Adapted(student, rounding.ranges(), fitted.losses)


class Alike(nn.Module):
    """The loss of a run, and how far the encoder's maps are from those of another one, in spreads of these."""

    x: Tensor

    def __init__(self, pretext: "Pretext", teacher: "Encoder", x: Tensor, batch: int) -> None:
        """`x` (n, C, N): normalised windows, normal ones first and then as many with a fault."""
        super().__init__()
        self.pretext, self.batch = pretext, batch
        self.register_buffer("x", x, persistent=False)
        with torch.no_grad():
            self.wanted = torch.cat([teacher(part) for part in torch.split(x, BATCH)])  # (n, D, T)
            normal = self.wanted[: len(x) // 2]
            self.spread = normal.std((0, 2)).clamp_min(1e-6)[:, None]  # (D, 1)
            self.embedding_spread = embed(normal).std(0).clamp_min(1e-6)  # (2 D,)

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        index = torch.randint(len(self.x), (self.batch,), generator=rng)
        found, wanted = encoder(self.x[index]), self.wanted[index]
        far = ((found - wanted) / self.spread).square().mean()
        far = far + ((embed(found) - embed(wanted)) / self.embedding_spread).square().mean()
        return self.pretext.loss(encoder, x, rng) + ALIKE_WEIGHT * far


class Rounding(nn.Module):
    """An encoder that computes as its int8 form will; `ranges` are learned with its weights."""

    def __init__(self, encoder: "Encoder", batches: Iterable[Tensor]) -> None:
        """Ranges begin as the smallest and largest values on `batches` of (B, C, N), as without training."""
        super().__init__()
        self.encoder, self.dimension, self.stride = encoder, encoder.dimension, encoder.stride
        self.causal = encoder.causal
        self.weights = {
            id(module.weight): f"encoder.{name}.weight"
            for name, module in cast(nn.Module, encoder).named_modules()
            if isinstance(module, nn.Conv2d) and becomes_int8(f"encoder.{name}.weight")
        }
        found: dict[str, tuple[float, float]] = {}

        def observe(key: str, x: Tensor) -> Tensor:
            low, high = found.get(key, (0.0, 0.0))  # 0 has to be in it: that is what padding is
            found[key] = min(low, float(x.min())), max(high, float(x.max()))
            return x

        with torch.no_grad():
            for x in batches:
                with _Followed(self.weights, observe, lambda weight: weight):
                    encoder(x)
        self.first = {key: max(high - low, 1e-6) / 255 for key, (low, high) in found.items()}
        self.place = {key: place for place, key in enumerate(found)}
        self.first_zero = {key: -low / self.first[key] for key, (low, _) in found.items()}
        self.stretch = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in found])
        # What begins at 0 stays there: the graph has no ReLU left behind what it quantizes, it is where the range begins.
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(()), low < 0) for low, _ in found.values()])

    def forward(self, x: Tensor) -> Tensor:
        with _Followed(self.weights, self._activation, _weight):
            return self.encoder(x)

    def _activation(self, key: str, x: Tensor) -> Tensor:
        return cast(Tensor, _Round.apply(x, *self._learned(key)))  # type: ignore[no-untyped-call]

    def _learned(self, key: str) -> tuple[Tensor, Tensor]:
        place = self.place[key]
        scale = self.first[key] * (STEEPER * self.stretch[place]).exp()
        return scale, (self.first_zero[key] + STEEPER * self.shift[place]).clamp(0, 255)

    def ranges(self) -> dict[str, Range]:
        learned = {key: self._learned(key) for key in self.place}
        return {key: Range(float(scale.detach()), round(float(zero.detach()))) for key, (scale, zero) in learned.items()}


def _weight(weight: Tensor) -> Tensor:
    """(O, I, 1, k) as ONNX Runtime rounds it: each output channel by its largest weight, symmetric, to ±127."""
    scale = weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12) / 127
    rounded = (weight.detach() / scale).round() * scale
    return weight + (rounded - weight.detach())  # the gradient passes as if nothing had been rounded


class _Round(torch.autograd.Function):
    """x, scale, zero-point → x in 256 steps of that scale. By hand: autograd would take three times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        zero = zero.round()
        whole = x.div(scale).round_()
        steps = whole.clamp(-zero, 255 - zero)
        ctx.save_for_backward(x, scale, steps, whole == steps)
        return steps * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, steps, inside = ctx.saved_tensors
        back = gradients[0] * inside
        beyond = gradients[0] - back
        slower = 1 / (x.numel() * 255) ** 0.5  # Esser et al., section 2.2
        whole = torch.dot(gradients[0].flatten(), steps.flatten())
        to_scale = whole - torch.dot(back.flatten(), x.flatten()) / scale
        return back, to_scale * slower, -scale * beyond.sum() * slower


@dataclass(slots=True)
class _Tensor:
    """What comes out of a node that becomes int8, or goes into one."""

    key: str
    exact: Tensor
    rounded: Tensor | None = None


class _Followed(TorchFunctionMode):
    """Within it whatever `quantize.int8` makes int8 is rounded, by the same rules: they are about the graph, not about layers.

    A tensor is rounded when something reads it. So a ReLU can get it as it was: in int8 the two are one node with one range.
    """

    def __init__(
        self, weights: Mapping[int, str], activation: Callable[[str, Tensor], Tensor], weight: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.weights, self.activation, self.weight = weights, activation, weight
        self.known: dict[int, _Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLVE and (name := self.weights.get(id(args[1]))):
            x, weight, *others = args
            known = self._of(x) or self._remember(key_of_input(name), x)
            return self._remember(name, func(self._rounded(known), self.weight(weight), *others, **kwargs)).exact
        if func in _RELU and (before := self._of(args[0])):
            return self._remember(key_of_relu(before.key), func(before.exact, *args[1:], **kwargs)).exact
        if func in _ADD and (both := [self._of(x) for x in args[:2]]) and all(both):
            first, second = cast(list[_Tensor], both)
            total = func(self._rounded(first), self._rounded(second), *args[2:], **kwargs)
            return self._remember(key_of_sum(first.key, second.key), total).exact
        return func(*(self._rounded(before) if (before := self._of(x)) else x for x in args), **kwargs)

    def _of(self, x: object) -> _Tensor | None:
        return self.known.get(id(x))

    def _remember(self, key: str, x: Tensor) -> _Tensor:
        self.known[id(x)] = found = _Tensor(key, x)  # which keeps x alive, so that no other tensor gets its id
        return found

    def _rounded(self, known: _Tensor) -> Tensor:
        if known.rounded is None:
            known.rounded = self.activation(known.key, known.exact)
        return known.rounded
