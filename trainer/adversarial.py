"""How little does it take to fool it on purpose? Windows changed a little in just the direction that changes the score most.

Goodfellow, Shlens & Szegedy (2015), "Explaining and Harnessing Adversarial Examples": one step (FGSM); Madry et al. (2018),
"Towards Deep Learning Models Resistant to Adversarial Attacks": many small ones (PGD). Gradients are those of the float model;
the int8 model, which has none, is judged on the windows that were made against its float twin. Noise of the same size in a
random direction is the control: what it does too is not owed to the attack.
"""

from collections.abc import Callable

import numpy as np
import torch

from edge.bundle import Bundle
from edge.scoring.backends import OUTPUTS, Outputs
from edge.signal import Float32
from trainer.evaluate import judge_windows
from trainer.model import Detector
from trainer.stress import Aim, Attack, Attacked, Method, against

STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
STEPS = 10
"""Of PGD; together they may go two and a half times as far as they are allowed to end up."""
MOST = 64
"""Windows of each aim."""
NUDGE = 0.01
"""Spreads of an output; for the residual a share of it. So far it is moved to see what that does to the score."""


def attack(
    detector: Detector, twin: Bundle, shipped: Bundle, windows: Float32, normal: Float32, within: Float32, aim: Aim
) -> list[Attack]:
    """Attack `windows` (B, C, N), in the units of the sensor, at every strength and in every way.

    `twin` holds `detector` with a head of its own, `shipped` is the bundle; `normal` (A, C, N) is left alone and `within` (C,)
    is the spread of each channel.
    """
    bundles = {twin.manifest.precision: twin} | {shipped.manifest.precision: shipped}
    calm = {name: judge_windows(bundle, normal) for name, bundle in bundles.items()}
    scale = np.ascontiguousarray(within[:, None])
    sign = 1.0 if aim == "raise" else -1.0
    spread = _spread(detector, normal)
    random = np.random.default_rng(0).choice([-1, 1], size=windows.shape).astype(np.float32)

    def uphill(x: Float32) -> Float32:
        return (sign * np.sign(gradient(detector, twin, x, spread))).astype(np.float32)

    ways: dict[Method, Callable[[float], Float32]] = {
        "random": lambda most: windows + most * scale * random,
        "FGSM": lambda most: windows + most * scale * uphill(windows),
        "PGD": lambda most: _many_steps(windows, scale, most, uphill),
    }
    found = []
    for method, way in ways.items():
        points: dict[str, list[Attacked]] = {name: [] for name in bundles}
        for strength in STRENGTHS:
            x = (way(strength) if strength else windows).astype(np.float32)
            for name, bundle in bundles.items():
                verdicts = judge_windows(bundle, x)
                points[name].append(
                    Attacked(
                        strength=strength,
                        alarm_share=float((verdicts.p_value <= bundle.pipeline().policy.p_value).mean()),
                        told_apart=against(verdicts, calm[name]),
                    )
                )
        found += [Attack(aim=aim, method=method, model=name, points=tuple(points[name])) for name in bundles]
    return found


def gradient(detector: Detector, bundle: Bundle, x: Float32, spread: list[Float32]) -> Float32:
    """(B, C, N): of the score by every sample of the windows.

    The encoder's part is torch's; the scorer is plain numpy of any kind, so its part is measured: each output of the model is
    nudged a little, as large as `spread` says, and the score taken again.
    """
    window = torch.from_numpy(x.copy()).requires_grad_()
    outputs = detector(window)
    slopes = [torch.from_numpy(slope) for slope in _slopes(bundle, [one.detach().numpy() for one in outputs], spread)]
    (found,) = torch.autograd.grad(outputs, window, slopes)
    return np.asarray(found.numpy(), np.float32)


def _slopes(bundle: Bundle, outputs: list[Float32], spread: list[Float32]) -> list[Float32]:
    """Of the score by each output: arrays of their shapes, by central differences."""
    slopes = []
    for which, (name, values) in enumerate(zip(OUTPUTS, outputs, strict=True)):
        flat = values.reshape(len(values), -1)  # (B, K)
        count = flat.shape[1]
        # A residual is positive and counts by its logarithm.
        nudge = NUDGE * (np.maximum(flat, 1e-6) if name == "residual" else np.broadcast_to(spread[which], flat.shape))
        scores = []
        for direction in (1, -1):
            moved = np.repeat(flat[None], count, axis=0)  # (K, B, K)
            moved[np.arange(count), :, np.arange(count)] += direction * nudge.T
            arrays = [np.concatenate([one] * count) for one in outputs]  # (K B, …)
            arrays[which] = moved.reshape(-1, *values.shape[1:])
            scores.append(bundle.head.scorer.score(Outputs(*arrays)).reshape(count, -1).T)  # (B, K)
        slope = (scores[0].astype(np.float64) - scores[1]) / (2 * nudge)
        slopes.append(np.nan_to_num(slope, posinf=0, neginf=0).astype(np.float32).reshape(values.shape))
    return slopes


def _spread(detector: Detector, normal: Float32) -> list[Float32]:
    """(K,) of each output, over normal windows; never 0."""
    with torch.no_grad():
        outputs = [one.numpy() for one in detector(torch.from_numpy(np.ascontiguousarray(normal)))]
    return [np.maximum(one.reshape(len(one), -1).std(axis=0), 1e-4).astype(np.float32) for one in outputs]


def _many_steps(x: Float32, scale: Float32, most: float, uphill: Callable[[Float32], Float32]) -> Float32:
    away = np.zeros_like(x)  # in spreads
    for _ in range(STEPS):
        away = np.clip(away + 2.5 * most / STEPS * uphill((x + away * scale).astype(np.float32)), -most, most)
    return x + away * scale
