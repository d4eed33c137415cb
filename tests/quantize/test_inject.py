"""Injected faults: one of every kind for every shape, in the size of the sensor, from a generator and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.scoring.inject import INJECTIONS, inject, usual_spread

shapes = st.tuples(st.integers(1, 6), st.integers(8, 64))


@pytest.mark.parametrize("kind", INJECTIONS)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_kind(kind: str, shape: tuple[int, int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    before = x.copy()
    spread = x.std(axis=1)
    first, second = (INJECTIONS[kind](x, spread, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(x, before)
    assert np.array_equal(first, second)
    assert first.shape == x.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert not np.array_equal(first, x)


@given(seed=st.integers(0, 1000), unit=st.sampled_from([1e-6, 1.0, 1e6]))
def test_faults_are_as_large_as_the_sensor_is(seed: int, unit: float) -> None:
    x = np.random.default_rng(seed).normal(size=(14, 3, 32)).astype(np.float32)
    scaled = (x * np.float32(unit)).astype(np.float32)
    a = inject(x, usual_spread(x), np.random.default_rng(1)) * unit
    b = inject(scaled, usual_spread(scaled), np.random.default_rng(1))
    assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * unit)


def test_spread_of_a_channel_that_never_moves() -> None:
    x = np.zeros((10, 3, 8), np.float32)
    x[0, 1, 0] = 5  # moves once
    x[:, 2] = np.arange(8)
    spread = usual_spread(x)
    assert spread[0] == 1
    assert spread[1] > 0
    assert spread[2] == pytest.approx(np.arange(8).std())
