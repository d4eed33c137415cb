"""Structured pruning with recovery: whole channels, units and heads' dimensions go, a few at a time; what is left learns on.

    detector ──cut──▶ smaller ──recover (the pretext, some steps)──▶ judge ──good enough──▶ cut again …
                                                                      └─────not─────▶ the last good one

What can go is found as groups: everything that has to go together. Convolutions are traced by torch-pruning (Fang et al.,
"DepGraph: Towards Any Structural Pruning", 2023). Recurrent layers and attention it leaves as they are, or breaks, without a
word; those are sliced here, gate by gate and head by head. The width of a transformer between its layers stays: positions and
normalisation span it. So do D and with it everything outside, and what ships is exported like any other model.

Which goes first: what costs the loss least for the most that it saves. The loss is estimated to first order as by Molchanov et
al., "Importance Estimation for Neural Network Pruning" (2019), equation 8, with the gate on whatever reads a unit.

Quality is measured without a label, on windows that were held back, in two ways: the pretext's loss, which all of encoder and
decoder have a part in, and the AUROC of injected faults by `mahalanobis(embedding)`. The default scorer would not do: it reads
nothing that the encoder makes, and by it all of the encoder could go. Nor would `mahalanobis(features)`: levels and residuals
are among them, and a blind encoder scored higher by it than a trained one. Weights never learn from these windows, but which of
a handful of models ships is chosen by them, as int8 is.
"""

import contextlib
import copy
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edge.errors import ConfigError, GateError
from edge.scoring.backends import Outputs, open_backend
from edge.scoring.ensemble import Ensemble
from edge.signal import Float32
from quantize.export import export
from quantize.int8 import quantize_int8
from quantize.measure import faults, sample
from quantize.parity import latency
from quantize.ranges import representative
from trainer.encoders.recurrent import Recurrent
from trainer.encoders.transformer import Layer, PatchTransformer
from trainer.metrics import auroc
from trainer.model import Detector
from trainer.pretexts.combined import Combined
from trainer.progress import Report, Step
from trainer.recipe import HEADS, PruneRecipe, Recipe
from trainer.train import MOST_JUDGED, deterministic, fit, loss_on

NOTCH = 8
"""Channels go in such numbers that a multiple of this is left, and never fewer: int8 kernels work on so many at once."""
SCORER = "mahalanobis(embedding)"
"""What injected faults are told by: it reads what the encoder makes and nothing else."""
MOST_FITTED = 4096
"""Windows that the scorer of the judge is fitted to."""
BATCHES = 8
"""That the worth of a unit is estimated on."""
MOST_TURNS = 3
"""Times `steps`, when the clock decides: latency falls slower than MACs do."""
ROUNDS = 300
NAMES = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}


class Size(msgspec.Struct, frozen=True, kw_only=True):
    macs: int
    """Multiplications of one window: convolutions, products of matrices, recurrent layers."""
    parameters: int
    """Of what goes onto the device."""
    latency_us: float
    """Median of one window at a time on one thread of this machine, in the precision that is meant to ship. Before and after
    take turns."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One model on the way."""

    share: float
    """What is left of the target."""
    macs: int
    parameters: int
    loss_cut: float
    """Of the pretext on windows held back, before recovery …"""
    loss: float
    """… and behind it."""
    detection: float
    """AUROC of injected faults, mean over kinds and severities, by `SCORER`."""


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken away, and what it cost."""

    target: str
    ratio: float
    """Of the target that was to be left."""
    before: Size
    after: Size
    curve: tuple[Point, ...]
    """Quality against size. The first is the trained model; when quality gave out, the last is the one that was refused."""
    kept: int
    """Which of them ships."""
    reason: str
    """Why it went no further."""

    def table(self) -> dict[str, str]:
        """For a person, one line an entry."""
        before, after = self.before, self.after
        first, kept = self.curve[0], self.curve[self.kept]
        return {
            "pruned": f"{after.macs / before.macs:.0%} of the MACs, {after.parameters / before.parameters:.0%} of the "
            f"parameters, {before.latency_us:.0f} → {after.latency_us:.0f} µs a window: {self.reason}",
            "cost_of_pruning": f"loss {first.loss:.4f} → {kept.loss:.4f}, injected faults {first.detection:.4f} → "
            f"{kept.detection:.4f} ({SCORER})",
            "curve": "; ".join(f"{p.share:.2f}: {p.loss:.3f}, {p.detection:.3f}" for p in self.curve)
            + f" ({NAMES[self.target]} left: loss, injected faults)",
        }

    def metrics(self) -> dict[str, float]:
        """For the manifest; nothing that a clock measured, unless a clock decided."""
        return {
            "macs": self.after.macs,
            "macs_trained": self.before.macs,
            "parameters_trained": self.before.parameters,
            "pruned_loss": self.curve[self.kept].loss,
            "pruned_loss_trained": self.curve[0].loss,
        }


Clock = Callable[[Sequence[Detector]], list[float]]
"""Detectors → µs a window of each, all measured in turns."""


def prune(
    detector: Detector,
    recipe: Recipe,
    windows: Float32,
    held_back: Float32,
    settings: PruneRecipe,
    clock: Clock,
    progress: Report | None = None,
) -> tuple[Detector, Pruning]:
    """A smaller detector in evaluation mode; the one given stays as it is.

    `windows` (n, C, N) are what it recovers on, `held_back` (m, C, N) what it is judged on. One seed gives the same weights to
    the bit on one CPU, unless the target is latency. Raises `ConfigError` for an encoder of which is not known what can go.
    """
    by_clock = settings.target == "latency"
    with deterministic(recipe.training.seed, recipe.training.threads):
        judge = Judge(recipe, windows, held_back)
        curve, kept, now = [judge.point(detector, detector, 1.0)], 0, detector
        most = curve[0].loss * (1 + settings.allowed_loss)
        least = curve[0].detection - settings.allowed_detection
        cost = judge.parameters if settings.target == "parameters" else judge.macs
        reason = f"nothing more can go, or not in {MOST_TURNS * settings.steps} cuts" if by_clock else "nothing more can go"
        for cut, recovered in descend(detector, recipe, judge, settings, progress):
            if by_clock:
                before_us, after_us = clock([detector, recovered])
                share = after_us / before_us
            else:
                share = cost(recovered) / cost(detector)
            point = judge.point(cut, recovered, share)
            curve.append(point)
            if not (point.loss <= most and point.detection >= least):
                reason = (
                    f"stopped before {share:.0%} of the {NAMES[settings.target]}: there the loss is {point.loss:.4f}, injected "
                    f"faults {point.detection:.4f}; {most:.4f} and {least:.4f} are allowed"
                )
                break
            now, kept = recovered, len(curve) - 1
            if share <= settings.ratio:
                reason = f"{settings.ratio:.0%} of the {NAMES[settings.target]} was asked for"
                break
        before_us, after_us = clock([detector, now])
    found = Pruning(
        target=settings.target,
        ratio=settings.ratio,
        before=Size(macs=curve[0].macs, parameters=curve[0].parameters, latency_us=before_us),
        after=Size(macs=curve[kept].macs, parameters=curve[kept].parameters, latency_us=after_us),
        curve=tuple(curve),
        kept=kept,
        reason=reason,
    )
    return now.eval(), found


def descend(
    detector: Detector, recipe: Recipe, judge: "Judge", settings: PruneRecipe, progress: Report | None = None
) -> Iterator[tuple[Detector, Detector]]:
    """Ever smaller ones, each before and behind its recovery, until the target is reached or nothing more can go.

    For latency MACs go down by the same factor each time, until whoever asks has seen enough.
    """
    by_clock = settings.target == "latency"
    cost = judge.parameters if settings.target == "parameters" else judge.macs
    whole, turns = cost(detector), settings.steps * (MOST_TURNS if by_clock else 1)
    pace = Pace(turns, settings.recovery_steps, progress)
    for turn in range(1, turns + 1):
        wanted = whole * settings.ratio ** (turn / settings.steps)
        if turn == settings.steps and not by_clock:
            wanted = whole * settings.ratio  # to the bit, because it is compared with that
        before = cost(detector)
        if before <= wanted:
            continue  # the last cut was a deep one
        cut = cut_to(detector, wanted, cost, judge)
        if (left := cost(cut)) == before:
            return
        pace.turn(turn, f"{left / whole:.0%} of the {NAMES['macs' if by_clock else settings.target]}")
        detector = recover(cut, recipe, judge.windows, judge.held_back, settings.recovery_steps, pace.step)
        yield cut, detector


class Pace:
    """Tells how far it is, and how long it will take if it goes all the way."""

    def __init__(self, turns: int, steps: int, progress: Report | None) -> None:
        self._turns, self._steps, self._progress = turns, max(1, steps), progress
        self._turn, self._text, self._started = 1, "", time.monotonic()

    def turn(self, turn: int, text: str) -> None:
        self._turn, self._text = turn, text
        self.step(Step(0, self._steps, "cut"))

    def step(self, step: Step) -> None:
        if not self._progress:
            return
        done = (self._turn - 1 + step.step / self._steps) / self._turns
        eta_s = (time.monotonic() - self._started) * (1 - done) / done if done else None
        self._progress(Step(self._turn - 1, self._turns, f"pruning to {self._text}, {step.text}", eta_s, step.figures))


def recover(
    detector: Detector, recipe: Recipe, windows: Float32, held_back: Float32, steps: int, progress: Report | None = None
) -> Detector:
    """A copy that has learned on for so many steps, from the same tasks at the same rate; a third of it recovered less."""
    found = copy.deepcopy(detector)
    if not steps:
        return found
    training = msgspec.structs.replace(
        recipe.training,
        steps=steps,
        patience=0,
        trim=0.0,  # what a run keeps was trimmed when it was trained
        # A run from a machine with a GPU is pruned on one without, too.
        device="auto" if recipe.training.device == "cuda" else recipe.training.device,
    )
    return fit(msgspec.structs.replace(recipe, training=training), windows, held_back, progress, detector=found).detector


def macs(detector: Detector, windows: Float32) -> int:
    """Multiplications of one window such as these (n, C, N)."""
    counter = FlopCounterMode(display=False)
    # oneDNN's recurrent layers are one operation, in which nothing would be counted; switching it warns of GPUs by Intel.
    with warnings.catch_warnings(action="ignore"), torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), counter:
        detector(torch.zeros(1, *windows.shape[1:]))
    return int(counter.get_total_flops()) // 2


class Judge:
    """Size and quality of a detector, on the same windows, masks and faults every time."""

    def __init__(self, recipe: Recipe, windows: Float32, held_back: Float32) -> None:
        self.recipe, self.windows, self.held_back = recipe, windows, held_back
        self._fitted = windows[np.linspace(0, len(windows) - 1, min(MOST_FITTED, len(windows))).astype(np.int64)]
        self._normal = sample(held_back)
        self._faulty = [part for _, parts in faults(self._normal) for part in parts.values()]

    def point(self, cut: Detector, recovered: Detector, share: float) -> Point:
        return Point(
            share=share,
            macs=self.macs(recovered),
            parameters=self.parameters(recovered),
            loss_cut=self.loss(cut),
            loss=self.loss(recovered),
            detection=self.detection(recovered),
        )

    def macs(self, detector: Detector) -> int:
        return macs(detector, self.windows)

    def parameters(self, detector: Detector) -> int:
        """Of what is exported: the heads of the other tasks stay behind."""
        return sum(p.numel() for name, p in detector.named_parameters() if not name.startswith("pretext.others."))

    def loss(self, detector: Detector) -> float:
        index = np.arange(0, len(self.held_back), max(1, len(self.held_back) // MOST_JUDGED))
        rng = torch.Generator().manual_seed(self.recipe.training.seed)
        return loss_on(detector, self.recipe, self.held_back, index, rng, "float32")

    def detection(self, detector: Detector) -> float:
        known = run(detector, self._normal)
        scorer = Ensemble.fit(SCORER, run(detector, self._fitted), known)
        normal, label = scorer.score(known), np.repeat([False, True], len(known))
        return float(np.mean([auroc(np.concatenate([normal, scorer.score(run(detector, x))]), label) for x in self._faulty]))

    def worth(self, detector: Detector) -> list[Tensor]:
        """(R, U) of each of its groups: the mean over batches of the squared change of the loss without the unit."""
        # All weights, those included that are not trained.
        copied = copy.deepcopy(detector).eval().requires_grad_(True)
        known = groups(copied)
        rng = torch.Generator().manual_seed(self.recipe.training.seed)
        found = []
        for _ in range(BATCHES):
            index = torch.randint(len(self.windows), (self.recipe.training.batch,), generator=rng).numpy()
            copied.zero_grad(set_to_none=True)
            x = copied.normalise(torch.from_numpy(self.windows[index]))[1]
            copied.pretext.loss(copied.encoder, x, rng).backward()  # type: ignore[no-untyped-call]
            found.append([group.influence() for group in known])
        return [torch.stack(batches).square().mean(0) for batches in zip(*found, strict=True)]


def run(detector: Detector, windows: Float32) -> Outputs:
    """What the device would get, (B, C, N) at a time as many as torch likes."""
    with torch.no_grad():
        parts = [detector(torch.from_numpy(np.ascontiguousarray(windows[at : at + 256]))) for at in range(0, len(windows), 256)]
    return Outputs.concatenate([Outputs(*(tensor.numpy() for tensor in part)) for part in parts])


class Stopwatch:
    """The `Clock` of this machine: ONNX Runtime, one thread, one window, medians; in int8 where there is one and it may be."""

    def __init__(self, windows: Float32, held_back: Float32, int8: bool) -> None:
        self._windows, self._held_back, self._int8 = windows, held_back, int8
        self._known: tuple[Detector, bytes] | None = None

    def __call__(self, detectors: Sequence[Detector]) -> list[float]:
        models = [open_backend(self._model(detector)) for detector in detectors]
        return latency(models, self._held_back[:1], ROUNDS)[0]

    def _model(self, detector: Detector) -> bytes:
        """As it would ship; the first one is the one that the others are compared with, again and again."""
        if self._known and self._known[0] is detector:
            return self._known[1]
        with tempfile.TemporaryDirectory(prefix="amiss-prune-") as folder:
            float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            export(detector, self._held_back[:8], float_path)
            found = float_path.read_bytes()
            if self._int8:
                with contextlib.suppress(GateError):  # recurrent ones ship in float
                    quantize_int8(float_path, representative(self._windows), int8_path)
                    found = int8_path.read_bytes()
        self._known = self._known or (detector, found)
        return found


def cut_to(detector: Detector, wanted: float, cost: Callable[[Detector], int], judge: Judge) -> Detector:
    """A copy that costs at most `wanted`, or as little as can be had."""
    found = copy.deepcopy(detector).eval()
    while (now := cost(found)) > wanted:
        # Anew for every cut: without a unit, others are worth more.
        worth = judge.worth(found)
        best: tuple[float, Detector] | None = None
        for at, group in enumerate(groups(found)):
            if not group.fewer:
                continue
            least = worth[at].argsort(dim=1, stable=True)[:, : group.units - group.fewer]
            lost = float(worth[at].gather(1, least).sum())
            smaller = without(found, at, least)
            saved = now - cost(smaller)
            if saved > 0 and (best is None or lost / saved < best[0]):
                best = lost / saved, smaller
        if best is None:
            break
        found = best[1]
    return found


def without(detector: Detector, group: int, which: Tensor) -> Detector:
    """A copy without the units `which` (R, n) of that group."""
    found = copy.deepcopy(detector)
    fixed = {name for name, p in found.named_parameters() if not p.requires_grad}
    groups(found)[group].drop(which)
    # Whoever slices makes new parameters, and those would be trained.
    for name, p in found.named_parameters():
        p.requires_grad_(name not in fixed)
    return found


@dataclass(frozen=True, slots=True)
class Group:
    """Units that go together. In each of R rows, layers or heads say, as many go, but each row says which."""

    name: str
    rows: int
    units: int
    notch: int
    """A multiple of it is left."""
    influence: Callable[[], Tensor]
    """→ (R, U): the derivative of the loss by a gate on each unit, from the gradients that its weights hold."""
    drop: Callable[[Tensor], None]
    """Take away the units (R, n), in place."""

    @property
    def fewer(self) -> int:
        """How many are left after the smallest cut; 0: none can go."""
        return (self.units - 1) // self.notch * self.notch


def groups(detector: Detector) -> list[Group]:
    """All that can go, in an order that cuts do not change. Raises `ConfigError` for an encoder of which that is not known."""
    encoder, dimension = cast(nn.Module, detector.encoder), detector.encoder.dimension
    decoder = cast(Combined, detector.pretext)
    if isinstance(encoder, Recurrent):
        found = _recurrent(encoder)
    elif isinstance(encoder, PatchTransformer):
        found = []
        for i, layer in enumerate(encoder.layers):
            if isinstance(layer, Layer):
                part = layer.forward_part
                shape = (layer.answer.out_channels, 1, 4)
                found += [_attention(layer, f"attention {i}"), *_traced(part, shape, last=part[-1], name=f"forward {i} ")]
    elif isinstance(last := getattr(encoder, "project", None), nn.Conv2d):
        stem = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d))
        found = _traced(encoder, (stem.in_channels, 4 * detector.encoder.stride), last=last)
    else:
        raise ConfigError(
            f"what can go of a {type(encoder).__name__} is not known; leave out --prune and the recipe's table [prune]"
        )
    heads = nn.Sequential(decoder.widen, decoder.relu, decoder.project)
    return found + _traced(heads, (dimension, 1, 4), last=decoder.project, name="decoder ")


Reader = tuple[Callable[[], Tensor], Callable[[Tensor], None]]
"""What reads the last of what was traced, from outside: its influence (U,), and how it keeps only some (K,) of its inputs."""


def _traced(
    module: nn.Module, shape: Sequence[int], *, last: nn.Module | None, name: str = "", reader: Reader | None = None
) -> list[Group]:
    """Of the convolutions of `module`, which takes (B, *shape); the outputs of `last` stay."""
    trained = {p: p.requires_grad for p in module.parameters()}
    mode = {m: m.training for m in module.modules()}
    module.requires_grad_(True)  # gradients are what it follows
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(module, (torch.zeros(2, *shape),))
    for p, wanted in trained.items():
        p.requires_grad_(wanted)
    for m, training in mode.items():
        m.training = training
    names = {m: f"{name}{inside}" for inside, m in module.named_modules()}
    every = graph.get_all_groups(ignored_layers=[last] if last else [], root_module_types=[nn.Conv2d])
    return [_convolutions(graph, group, names[group[0].dep.target.module], reader) for group in every]


def _convolutions(graph: Any, group: Any, name: str, reader: Reader | None) -> Group:
    units = len(group[0].idxs)
    readers = [
        (dep.target.module, [int(i) for i in index])
        for dep, index in group
        if isinstance(dep.target.module, nn.Conv2d)
        and graph.is_in_channel_pruning_fn(dep.handler)
        and dep.target.module.groups == 1  # a depthwise one hands a channel on, and the next one reads it
    ]

    def influence() -> Tensor:
        found = [slope(module.weight).sum((0, 2, 3))[index] for module, index in readers]
        return torch.stack(found).sum(0, keepdim=True) if found or not reader else reader[0]()[None]

    def drop(which: Tensor) -> None:
        root = group[0].dep
        graph.get_pruning_group(root.target.module, root.handler, which[0].tolist()).prune(record_history=False)
        if reader and not readers:
            reader[1](others(which, units)[0])

    return Group(name, 1, units, NOTCH, influence, drop)


def _recurrent(encoder: Recurrent) -> list[Group]:
    """Of the stem, which the first layer reads, and of the states: each layer's own, of each as many, as torch wants it."""
    layers, project = encoder.recurrent, encoder.project
    depth, units = layers.num_layers, layers.hidden_size
    stem = next(m for m in encoder.stem.modules() if isinstance(m, nn.Conv2d))

    def reads_stem() -> Tensor:
        return slope(layers.weight_ih_l0).sum(0)

    def keeps_of_stem(kept: Tensor) -> None:
        keep_inputs(layers, "weight_ih_l0", kept)
        layers.input_size = len(kept)

    def influence() -> Tensor:
        onward = [slope(getattr(layers, f"weight_ih_l{i}")).sum(0) for i in range(1, depth)]
        onward.append(slope(project.weight).sum((0, 2, 3)))
        own = [slope(getattr(layers, f"weight_hh_l{i}")).sum(0) for i in range(depth)]
        return torch.stack(onward) + torch.stack(own)

    def drop(which: Tensor) -> None:
        kept = others(which, units)
        for i in range(depth):
            keep_states(layers, i, kept[i])
            if i:
                keep_inputs(layers, f"weight_ih_l{i}", kept[i - 1])
        layers.hidden_size = kept.shape[1]
        keep_inputs(project, "weight", kept[-1])
        project.in_channels = kept.shape[1]

    convolutions = _traced(encoder.stem, (stem.in_channels, 1, 32), last=None, name="stem ", reader=(reads_stem, keeps_of_stem))
    return [*convolutions, Group("states", depth, units, NOTCH, influence, drop)]


def keep_states(layers: nn.RNNBase, layer: int, kept: Tensor) -> None:
    """Of one LSTM or GRU layer: the rows of these states in each gate, and what the states say to each other."""
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        whole = getattr(layers, f"{name}_l{layer}").detach()
        gates = whole.unflatten(0, (-1, layers.hidden_size))[:, kept].flatten(0, 1)  # 4 in an LSTM, 3 in a GRU
        setattr(layers, f"{name}_l{layer}", nn.Parameter(gates[:, kept] if name == "weight_hh" else gates))


def keep_inputs(module: nn.Module, name: str, kept: Tensor) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).detach()[:, kept]))


def _attention(layer: Layer, name: str) -> Group:
    """Of the dimensions inside each head. Rows: queries and keys of each head, which meet each other, then its values."""
    ask, answer = layer.ask, layer.answer
    width = answer.in_channels
    each = width // HEADS

    def influence() -> Tensor:
        # A gate on a query's dimension is one on the product with its key.
        assert ask.bias is not None
        query = (slope(ask.weight).sum((1, 2, 3)) + slope(ask.bias))[:width]
        return torch.cat([query, slope(answer.weight).sum((0, 2, 3))]).view(2 * HEADS, each)

    def drop(which: Tensor) -> None:
        assert ask.bias is not None
        kept = others(which, each)
        begin = torch.arange(HEADS)[:, None] * each
        query, value = (kept[:HEADS] + begin).flatten(), (kept[HEADS:] + begin).flatten()
        rows = torch.cat([query, query + width, value + 2 * width])
        weight, bias = ask.weight.detach()[rows], ask.bias.detach()[rows]
        # Attention divides by the root of the dimensions, of which there are fewer now.
        gain = math.sqrt(len(value) / width)
        weight[: len(value)] *= gain
        bias[: len(value)] *= gain
        ask.weight, ask.bias, ask.out_channels = nn.Parameter(weight), nn.Parameter(bias), len(rows)
        keep_inputs(answer, "weight", value)
        answer.in_channels = len(value)

    return Group(name, 2 * HEADS, each, max(1, NOTCH // HEADS), influence, drop)


def slope(weight: Tensor) -> Tensor:
    """Each weight's part in the derivative of the loss by a gate on all of them; 0 for what had no part in the loss."""
    return torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).detach()


def others(which: Tensor, units: int) -> Tensor:
    """(R, n) of so many → the rest (R, units - n), in order."""
    kept = torch.ones(len(which), units, dtype=torch.bool).scatter(1, which, False)
    return kept.nonzero()[:, 1].view(len(which), -1)
