"""Views and faults of normalised windows: what they change, and what they leave."""

import pytest
import torch

from edge.scoring import inject as on_arrays
from trainer import augment
from trainer.augment import INJECTIONS, LIMIT, inject, jitter, overlapping
from trainer.model import CLIP
from trainer.testing import rhythm


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("length", [8, 9, 32, 33, 71])
def test_parts_overlap_where_they_say(stride: int, length: int) -> None:
    x, rng = rhythm(2, length=length), seeded()
    seen = set()
    for _ in range(200):
        earlier, later, overlap = overlapping(x, stride, rng)
        shared = overlap * stride
        assert torch.equal(earlier[:, :, -shared:], later[:, :, :shared])
        assert earlier.shape[2] % stride == later.shape[2] % stride == 0
        assert shared >= length // stride * stride / 2
        seen.add((earlier.shape[2], later.shape[2], overlap))
    assert len(seen) > 1 or length < 2 * stride


def test_faults_have_the_names_that_they_have_on_arrays() -> None:
    assert set(INJECTIONS) == {*on_arrays.INJECTIONS, "frequency"}
    assert LIMIT == CLIP


@pytest.mark.parametrize("kind", INJECTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fault_changes_nearly_every_window_and_never_its_input(kind: str, channels: int) -> None:
    x = rhythm(256, channels=channels)
    before = x.clone()
    y = INJECTIONS[kind](x, seeded())
    assert torch.equal(x, before)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert ((y - x).abs().amax((1, 2)) > augment.VISIBLE).float().mean() > 0.95
    assert torch.equal(y, INJECTIONS[kind](x, seeded()))
    assert not torch.equal(y, INJECTIONS[kind](x, seeded(1))) or (kind, channels) == ("swap", 1)


def test_what_each_fault_does() -> None:
    x = rhythm(256)
    changed = (augment.spike(x, seeded()) != x).flatten(1).sum(1)
    assert set(changed.tolist()) == {1, 2, 3}
    step = augment.level_shift(x, seeded()) - x
    assert ((step.diff(dim=2).abs() > 1e-3).sum(2) <= 1).all()
    assert step.abs().amax() <= 10.001
    assert (augment.trend(x, seeded()) - x).diff(dim=2).diff(dim=2).abs().max() < 1e-4
    held = augment.stuck(x, seeded())[:, :, -16:]
    assert ((held == held[:, :, :1]).all(2).any(1)).all()
    tone = (augment.frequency(x, seeded()) - x).square()
    assert tone.amax() <= 25.001
    loud = (augment.noise(x, seeded()) - x).std(2)
    assert (loud.amax(1) > 0.5).all()
    swapped = augment.swap(x, seeded())
    assert torch.allclose(swapped.sum(1), x.sum(1), atol=1e-5)
    assert ((swapped != x).any(2).sum(1) == 2).all()


def test_warped_time_is_time_at_another_speed() -> None:
    y = augment.warp(torch.arange(64.0).expand(50, 2, -1), seeded())
    assert (y[:, :, 0] == 0).all()
    speed = y[:, 0, 1]
    assert torch.allclose(y[:, :, :20], (torch.arange(20) * speed[:, None])[:, None, :], atol=1e-3)
    factor = torch.maximum(speed, 1 / speed)
    assert 1.3 <= factor.min() < factor.max() <= 2.001
    assert (speed < 1).any()
    assert (speed > 1).any()


def test_injected_windows_are_as_the_encoder_could_get_them() -> None:
    x = rhythm(512)
    x = x - x.mean(2, keepdim=True)
    before = x.clone()
    y, kind = inject(x, seeded())
    assert torch.equal(x, before)
    assert y.abs().max() <= LIMIT
    assert y.mean(2).abs().max() < 3  # only what the limit cuts off
    assert set(kind.tolist()) == set(range(1 + len(INJECTIONS)))
    assert 0.4 < (kind == 0).float().mean() < 0.65
    assert (y - x)[kind == 0].abs().max() < augment.VISIBLE


def test_a_fault_that_changes_nothing_is_no_fault() -> None:
    y, kind = inject(torch.zeros(512, 3, 32), seeded())
    names = [None, *INJECTIONS]
    seen = {names[place] for place in kind.tolist()}
    assert not seen & {"stuck", "swap", "warp"}  # of a channel that never moves
    assert {"spike", "noise", "trend"} <= seen
    assert (y[kind == 0].abs() < augment.VISIBLE).all()


def test_jitter_is_slight() -> None:
    x = rhythm(64)
    change = (jitter(x, seeded()) - x).std()
    assert 0.05 < change < 0.2
