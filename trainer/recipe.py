"""recipe.toml → frozen structs. Defaults live here and nowhere else.

A recipe and the recordings are all that a run depends on; a run keeps a copy of its recipe.
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import ConfigError, NoInputError
from edge.scoring.ensemble import DEFAULT_SCORER
from edge.scoring.ensemble import parse as parse_scorer
from edge.sensing.windows import MissingPolicy
from edge.tables import refuse_unknown_keys

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1000)]
Size = Literal["5k", "20k", "30k", "50k", "200k"]
DEFAULT_SIZE: Size = "30k"
_CONVOLUTIONS: dict[Size, tuple[int, int]] = {"5k": (24, 2), "20k": (40, 4), "30k": (48, 4), "50k": (64, 4), "200k": (128, 4)}
SIZES: dict[str, dict[Size, tuple[int, int]]] = {
    "tcn": _CONVOLUTIONS,
    "random": _CONVOLUTIONS,
    "conv": _CONVOLUTIONS,
    "transformer": {"5k": (16, 2), "20k": (32, 2), "30k": (40, 2), "50k": (52, 2), "200k": (88, 3)},
    "lstm": {"5k": (18, 1), "20k": (40, 1), "30k": (48, 1), "50k": (64, 1), "200k": (128, 1)},
    "gru": {"5k": (20, 1), "20k": (44, 1), "30k": (54, 1), "50k": (72, 1), "200k": (144, 1)},
}
"""kind → size → width and depth that give about so many parameters to an encoder of 8 channels, all else at its default. Runs
keep the name of their size, so a row that is changed makes the checkpoints of those that have it unreadable."""
STEM_KERNEL = 5
"""Taps of the first convolution, whose stride is 2."""
LEAST_STEPS = 4
"""Of a causal encoder whose whole reach lies inside the window. The embedding is their mean and spread."""
HEADS = 4
"""Of the transformer's attention; its width is a multiple of it."""


class EncoderRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["tcn", "transformer", "lstm", "gru", "conv", "random"] = "tcn"
    """`random` is the control: a TCN whose weights stay as they were drawn."""
    size: Size | None = None
    """About so many parameters: sets width and depth. `None`: 30k, except for what `width` and `depth` say."""
    width: Annotated[int, Meta(ge=4, le=512)] | None = None
    """Channels inside the encoder. Below 48, int8 on a desktop processor is no faster than float."""
    depth: Annotated[int, Meta(ge=1, le=12)] | None = None
    """Blocks or layers; the n-th block of a TCN looks 2ⁿ⁻¹ times as far as the first."""
    kernel: Annotated[int, Meta(ge=1, le=31)] = 3
    """Taps of each convolution in time; odd. Recurrent encoders and the transformer have none."""
    embedding: Annotated[int, Meta(ge=2, le=256)] = 16
    """D, values a step of the encoder."""
    separable: bool = False
    """Depthwise-separable convolutions: a quarter of the weights, but slower in int8 (docs/adr/0004-convolutions.md). In a TCN
    only."""
    stride: Literal[2, 4, 8] = 4
    """Samples per step of the encoder: T = N / stride."""
    causal: bool = False
    """Each step knows only the past, and the model only what a stream can carry on, so that the device can score every new
    sample at the price of one step (docs/adr/0010-streaming.md). In a TCN only; costs `reach` − 1 samples of each window."""

    @property
    def shape(self) -> tuple[int, int]:
        """Width and depth."""
        width, depth = SIZES[self.kind][self.size or DEFAULT_SIZE]
        return self.width or width, self.depth or depth

    @property
    def places(self) -> list[tuple[int, int]]:
        """Stride and dilation, in steps, of each block of a TCN behind its stem."""
        halvings = self.stride.bit_length() - 2  # what is left of the stride behind the stem
        return [(2, 1)] * halvings + [(1, 2**i) for i in range(max(0, self.shape[1] - halvings))]

    @property
    def reach(self) -> int:
        """Samples that a step of a TCN depends on, its own included."""
        samples, apart = STEM_KERNEL, 2
        for stride, dilation in self.places:
            samples += (self.kernel - 1) * dilation * apart
            apart *= stride
        return samples


class PretextWeights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each task's loss counts in the sum; at 0 the task is not built. Names as in `trainer.pretexts.PRETEXTS`."""

    masked: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Masked reconstruction. Never 0: the device takes its residual from there."""
    contrast: Weight = 0.0
    """Moments known again among other moments and other windows (TS2Vec)."""
    vicreg: Weight = 0.0
    """Two views of a window, one embedding (VICReg)."""
    forecast: Weight = 0.0
    """The continuation of a window told from those of others (CPC)."""
    injected: Weight = 0.0
    """Faults put in, to be told apart."""


class PretextRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["masked"] = "masked"
    """What reconstructs, and so gives the device its residual."""
    weights: PretextWeights = PretextWeights()
    time_ratio: Share = 0.3
    """Share of the time patches that is hidden in all channels at once."""
    patch: Count = 8
    """Samples in a time patch."""
    channel_ratio: Share = 0.2
    """Chance of each channel to be hidden for the whole window."""
    frequency_ratio: Share = 0.0
    """Share of the bins of a window's spectrum that is hidden in all channels at once; 0: none."""
    visible_weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Weight of the error on what was not hidden. On the device nothing is hidden, so 0 would leave the residual untrained."""

    @property
    def tasks(self) -> dict[str, float]:
        """Name → weight of those that have one; masked first."""
        return {name: weight for name, weight in msgspec.structs.asdict(self.weights).items() if weight > 0}


class TrainingRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    steps: Count = 600
    batch: Annotated[int, Meta(ge=2)] = 64
    lr: Positive = 3e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-2
    held_back: Annotated[float, Meta(gt=0, lt=1)] = 0.3
    """Share of each recording, at its end, that the encoder does not see and that the calibration is made from."""
    split: Literal["time", "recording"] = "time"
    """`recording`: instead, that share of the recordings, each as a whole and evenly among them."""
    seed: Annotated[int, Meta(ge=0)] = 0
    patience: Annotated[int, Meta(ge=0)] = 0
    """Looks without a better loss after which training stops; the best weights are kept. 0: train to the end, keep the last.
    What is looked at is an eighth of the windows to learn from, set aside for this, never those that calibrate: chosen by
    them, the weights would suit them better than what comes later, and p-values would be too small."""
    look_every: Count = 50
    """Steps from one look to the next; counts with `patience` only."""
    trim: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Share of the windows that is left out, of each batch and of those that the scorer is fitted to, because it does not look
    like the others: for recordings that may hold faults. What is rare but normal, a start-up say, is left out with them, and
    will be an alert. Take half as much again as you expect of faults."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU where there is one. To the bit a run repeats itself only on "cpu"."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of what the encoder computes with; weights stay float32. `auto`: bfloat16 on a GPU that knows it, float32 otherwise."""
    threads: Count = 1
    """Part of the recipe because the order of summation, and with it the last bit, depends on it. One is nearly as fast for
    models this small; several wait for each other, and on a machine that has other things to do ten times as long."""


Policy = Literal["ignore", "warn", "exclude", "refuse"]
"""`exclude` leaves a channel out when all recordings have the fault, and otherwise the recordings that have it."""


class QualityRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do about faults in the recordings; `trainer.quality` says when something is one."""

    constant: Policy = "warn"
    """A channel that never changes."""
    clipped: Policy = "warn"
    """A channel that is cut off at its smallest or largest value."""
    missing: Policy = "warn"
    """A channel without a value in half of the rows or more."""
    duplicate: Policy = "warn"
    """A channel that says what an earlier one says, up to factor and offset."""
    clock: Policy = "warn"
    """Stamps that jitter, or several rates in one recording."""
    unordered: Literal["repair", "refuse"] = "refuse"
    """Stamps that repeat or go back; repaired by leaving those rows out."""
    absurd: Literal["repair", "refuse"] = "repair"
    """Values like 1e30 or infinity; repaired by taking them for missing."""
    strange: Policy = "warn"
    """Windows that look unlike all others: faults, or a rare state. `exclude` leaves these windows out."""


class ResampleRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    method: Literal["none", "linear", "mean"] = "none"
    """How recordings of another rate are brought to `rate_hz`. `none`: they are refused. `mean`: to a lower rate by the mean of
    each period, which keeps most of what is too fast for it from coming back as something slow; to a higher one as `linear`.
    `linear`: a straight line between neighbours, with no such filter."""


class PruneRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `amiss quantize` takes away before it exports; `quantize.prune`."""

    target: Literal["none", "macs", "parameters", "latency"] = "none"
    """What is to become less. `latency` is measured, on the machine that quantizes: what ships then depends on its clock."""
    ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Share of it that is to be left."""
    steps: Annotated[int, Meta(ge=1, le=50)] = 3
    """Cuts on the way there; behind each one the encoder recovers and is judged."""
    recovery_steps: Annotated[int, Meta(ge=0)] = 300
    """Of training, behind each cut."""
    allowed_loss: Annotated[float, Meta(ge=0)] = 0.05
    """Share by which the loss on windows held back may rise. The last model within it ships."""
    allowed_detection: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """By how much the AUROC of injected faults, told by the embedding alone, may fall."""


class QatRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quantization-aware training, which `amiss quantize` tries when int8 without it is over budget."""

    steps: Annotated[int, Meta(ge=0)] = 200
    """0: never; what is over budget ships in float."""
    lr: Positive = 1e-3


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far what is compressed may be from what was trained; `quantize.parity` measures it."""

    embedding_error: Annotated[float, Meta(ge=0)] = 0.15
    """Of the part of an embedding that tells windows apart."""
    rank_correlation: Annotated[float, Meta(ge=-1, le=1)] = 0.98
    """At least so well do the scores agree on which window is stranger."""
    flips: Annotated[float, Meta(ge=0, le=1)] = 0.03
    """Share of windows on which the verdict differs."""
    auroc_loss: Annotated[float, Meta(ge=0, le=1)] = 0.02
    """By so much may the AUROC of injected faults be lower."""
    slower: Annotated[float, Meta(ge=0)] = 1.05
    """int8 ÷ float, in time for one window."""
    unnoticed_us: Annotated[float, Meta(ge=0)] = 10.0
    """… unless it is less than this. A device judges tens of windows a second; the smaller model is worth more than this."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of recipe.toml; an empty file is a recipe."""

    data: tuple[str, ...] = ()
    """Recordings or directories of them, of normal operation. A relative path is looked up beside the recipe."""
    window: Annotated[int, Meta(ge=8, le=65536)] = 32
    """N, samples per window. Long enough to hold what repeats (turns of a shaft, strokes of a pump), short enough that the
    alert is not late: it comes after about two windows."""
    hop: Count | None = None
    """Samples from one window to the next. `None`: a quarter of the window."""
    rate_hz: Positive | None = None
    """`None`: as in the recordings."""
    channels: Literal["same", "common"] = "same"
    """`same`: recordings with different channels are refused. `common`: the channels that all of them have are used."""
    missing: MissingPolicy = MissingPolicy()
    resample: ResampleRecipe = ResampleRecipe()
    quality: QualityRecipe = QualityRecipe()
    encoder: EncoderRecipe = EncoderRecipe()
    pretext: PretextRecipe = PretextRecipe()
    training: TrainingRecipe = TrainingRecipe()
    prune: PruneRecipe = PruneRecipe()
    qat: QatRecipe = QatRecipe()
    scorer: str = DEFAULT_SCORER
    """`scorer(view)`, several joined by `+`: see `edge/scoring/ensemble.py`."""
    smoothing: Annotated[float, Meta(ge=0, le=64)] = 1.0
    """Windows' lengths from the oldest to the newest of the windows whose scores are averaged; 0 for none."""
    runtime: Literal["onnx", "tflite", "both"] = "onnx"
    """What `amiss quantize` writes when it is not told."""
    budget: Budget = Budget()

    @property
    def smoothing_samples(self) -> int:
        """From the oldest to the newest of the windows that are averaged."""
        return round(self.smoothing * self.window)

    @property
    def hop_samples(self) -> int:
        return self.hop or max(1, self.window // 4)


def load(path: Path) -> Recipe:
    """Read recipe.toml.

    What `amiss search` may change, its table `search`, is no part of a run and is left out. Raises `NoInputError` when there is
    no such file and `ConfigError`, naming file, key and cure, when it is wrong.
    """
    data = read(path)
    data.pop("search", None)
    recipe = parse(data, str(path))
    found = tuple(name if Path(name).is_absolute() else str(path.parent / name) for name in recipe.data)
    return msgspec.structs.replace(recipe, data=found)


def read(path: Path) -> dict[str, Any]:
    """recipe.toml as plain dicts; raises like `load`."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such recipe; an empty file is one, with every default") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse(data: Any, where: str = "recipe") -> Recipe:
    """Validated recipe from plain dicts; raises `ConfigError`."""
    recipe = typed(data, where)
    if wrong := contradiction(recipe.encoder):
        raise ConfigError(f"{where}: encoder.{wrong}")
    try:
        parse_scorer(recipe.scorer)
    except ValueError as error:
        raise ConfigError(f"{where}: scorer: {error}") from None
    if wrong := out_of_reach(recipe):
        raise ConfigError(f"{where}: {wrong}")
    if recipe.hop_samples > recipe.window:
        raise ConfigError(
            f"{where}: hop: {recipe.hop} leaves samples between windows of {recipe.window} that nobody would look at"
        )
    if recipe.pretext.patch >= recipe.window:
        raise ConfigError(f"{where}: pretext.patch: {recipe.pretext.patch} is no part of a window of {recipe.window} samples")
    if recipe.pretext.time_ratio == recipe.pretext.channel_ratio == recipe.pretext.frequency_ratio == 0:
        raise ConfigError(f"{where}: pretext: nothing is ever hidden; set time_ratio, channel_ratio or frequency_ratio")
    if recipe.pretext.weights.forecast > 0 and recipe.window < 2 * recipe.encoder.stride:
        raise ConfigError(
            f"{where}: pretext.weights.forecast: a window of {recipe.window} samples is one step of the encoder and no past; "
            f"take {2 * recipe.encoder.stride} or more"
        )
    return recipe


def typed(data: Any, where: str = "recipe") -> Recipe:
    """Like `parse`, but each key is looked at by itself: what cannot be had together passes."""
    refuse_unknown_keys(data, Recipe, where, "")
    try:
        return msgspec.convert(data, Recipe)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".")
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{message[0].lower()}{message[1:]}") from None


def contradiction(encoder: EncoderRecipe) -> str | None:
    """Key and reason, in one line, when what the keys say cannot be had together."""
    kind = encoder.kind
    if encoder.kernel % 2 == 0:
        return f"kernel: {encoder.kernel} is even; take {encoder.kernel + 1}"
    if encoder.size is not None and (encoder.width is not None or encoder.depth is not None):
        width, depth = SIZES[kind][encoder.size]
        return f"size: {encoder.size} is width {width} and depth {depth} for {kind}; say either the size or width and depth"
    if encoder.separable and kind not in ("tcn", "random"):
        return f"separable: {kind} has no separable convolutions, tcn has; leave it out"
    if encoder.causal and (kind not in ("tcn", "random") or encoder.separable):
        what = "separable convolutions take" if kind in ("tcn", "random") else f"{kind} takes"
        return f"causal: {what} no stream sample by sample, a tcn of whole convolutions does; leave it out"
    if encoder.kernel != EncoderRecipe().kernel and kind in ("transformer", "lstm", "gru"):
        return f"kernel: {kind} has no convolutions to give it to; leave it out"
    if kind == "transformer" and encoder.shape[0] % HEADS:
        return (
            f"width: {encoder.shape[0]} does not divide among {HEADS} heads; take {encoder.shape[0] // HEADS * HEADS + HEADS}"
        )
    return None


def out_of_reach(recipe: Recipe) -> str | None:
    """Key and reason when too few steps of a causal encoder see nothing but the window, in which they are to be judged."""
    encoder, window = recipe.encoder, recipe.window
    if not encoder.causal:
        return None
    needed = encoder.reach + (LEAST_STEPS - 1) * encoder.stride
    if needed <= window:
        return None
    # Its width stays what it was: only how far it looks has to change.
    smaller = (
        msgspec.structs.replace(encoder, size=None, width=encoder.shape[0], depth=depth)
        for depth in range(encoder.shape[1] - 1, 0, -1)
    )
    fitting = (other.shape[1] for other in smaller if other.reach + (LEAST_STEPS - 1) * other.stride <= window)
    depth = next(fitting, None)
    return (
        f"encoder.causal: a step depends on {encoder.reach} samples and {LEAST_STEPS} steps {encoder.stride} samples apart on "
        f"{needed}; a window has {window}. Take window = {needed} or more"
        + (f", or encoder.depth = {depth} (with encoder.width = {encoder.shape[0]}, without size)" if depth else "")
    )


def pruning(said: Iterable[str], recipe: PruneRecipe) -> PruneRecipe:
    """What `--prune` says, over a recipe: `macs=0.5`, the share to be left; `steps=3`, any key of [prune]; or `none`.

    Raises `ConfigError` for anything else.
    """
    pairs = []
    for text in said:
        key, equals, value = (part.strip() for part in text.partition("="))
        if key in ("macs", "parameters", "latency") and equals:
            pairs += [f"prune.target={key}", f"prune.ratio={value}"]
        elif text.strip() == "none":
            pairs.append("prune.target=none")
        elif key in PruneRecipe.__struct_fields__ and equals:
            pairs.append(f"prune.{key}={value}")
        else:
            keys = ", ".join(PruneRecipe.__struct_fields__)
            raise ConfigError(
                f"--prune {text}: expected macs=0.5, parameters=0.5 or latency=0.5, the share that is to be left; none; or "
                f"KEY=VALUE with a key of the recipe's table [prune]: {keys}"
            )
    return apply_overrides(Recipe(prune=recipe), pairs, "--prune").prune


def apply_overrides(recipe: Recipe, overrides: Iterable[str], option: str = "--set") -> Recipe:
    """`key=value` pairs, as in `--set training.steps=300`, over a recipe. Values are TOML; bare words are text.

    Raises `ConfigError` when a pair is no such thing, names no key or has a value that does not fit.
    """
    data: dict[str, Any] = msgspec.to_builtins(recipe)
    for pair in overrides:
        key, equals, text = pair.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"{option} {pair}: expected key=value, for example training.steps=300")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        at = data
        for part in keys[:-1]:
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{option} {pair}: `{part}` is a value, it has no keys inside")
            at = inner
        at[keys[-1]] = value
    return parse(data, option)


def as_toml(recipe: Recipe) -> str:
    """The inverse of `load`: what differs from the defaults, as TOML."""
    lines: list[str] = []

    def put(found: msgspec.Struct, default: msgspec.Struct, prefix: str) -> None:
        for key, value in msgspec.structs.asdict(found).items():
            usual = getattr(default, key)
            if isinstance(value, msgspec.Struct):
                put(value, usual, f"{prefix}{key}.")
            elif value != usual:
                # JSON's texts, numbers and arrays are TOML's too; only DEL has to be escaped there.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{prefix}{key} = {text}")

    put(recipe, Recipe(), "")
    return "".join(f"{line}\n" for line in lines)
