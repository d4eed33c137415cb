"""Each fault is found with its figures, and clean recordings give no finding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sensing.recordings import Recording
from edge.sensing.simulate import simulate
from trainer import quality
from trainer.quality import Finding, decide, figures_of, fit_bulk, summary
from trainer.recipe import QualityRecipe

N = 3000


def noise(channels: int = 3, seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, n)).astype(np.float32)


def found_in(x: np.ndarray, parts: int = 1000) -> list[Finding]:
    whole = Recording("r", tuple("abcdefgh"[: len(x)]), np.arange(x.shape[1]) * 10**9, x)
    split = [whole.part(at, at + parts) for at in range(0, x.shape[1], parts)]
    return quality.channels("r", split, x.shape[1], window=32, max_fill=3)


@pytest.mark.parametrize("seed", range(5))
def test_clean_recordings_give_no_finding(seed: int) -> None:
    assert found_in(noise(seed=seed)) == []
    assert found_in(np.round(noise(seed=seed) * 20)) == [], "whole numbers, as of a coarse sensor"
    assert found_in(simulate(30, seed=seed, rate_hz=100).x) == []
    switch = noise(seed=seed)
    switch[1] = switch[1] > 1
    rests = noise(seed=seed)
    rests[2] = np.maximum(rests[2], 0)
    assert found_in(switch) == found_in(rests) == []


@given(st.integers(1, 3000), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_how_it_comes_in_parts_is_of_no_matter(parts: int, seed: int) -> None:
    x = noise(2, seed)
    x[0] = np.minimum(x[0], 1)
    x[1, 500 : 500 + 10 * seed] = np.nan
    drop = [finding for finding in found_in(x, parts) if finding.kind == "stretch"]
    assert drop == [finding for finding in found_in(x, N) if finding.kind == "stretch"]
    clipped = [finding.figures for finding in found_in(x, parts) if finding.kind == "clipped"]
    assert clipped == [finding.figures for finding in found_in(x, N) if finding.kind == "clipped"]


def only(findings: list[Finding]) -> Finding:
    [finding] = findings
    assert "\n" not in finding.line
    return finding


def test_constant() -> None:
    x = noise()
    x[1] = 230.1
    finding = only(found_in(x))
    assert (finding.kind, finding.channel, finding.figures) == ("constant", "b", {"value": 230.1})


@pytest.mark.parametrize(("low", "high"), [(-9, 1.5), (-1.5, 9)])
def test_clipped(low: float, high: float) -> None:
    x = noise()
    x[2] = np.clip(x[2], low, high)
    finding = only(found_in(x))
    assert (finding.kind, finding.channel) == ("clipped", "c")
    assert finding.figures["share"] == pytest.approx(0.067, abs=0.015)
    assert abs(finding.figures["at"]) == 1.5


def test_mostly_missing_and_stretches() -> None:
    x = noise()
    x[0, 100:2000] = np.nan
    x[1, 100:300] = np.nan
    x[1, 900:902] = np.nan  # is filled
    mostly, stretch = found_in(x)
    assert (mostly.kind, mostly.channel, round(mostly.figures["share"], 2)) == ("missing", "a", 0.63)
    assert (stretch.kind, stretch.channel, stretch.figures) == ("stretch", "b", {"stretches": 1.0, "longest": 200.0})
    assert (stretch.severity, stretch.done) == ("note", "excluded")


@pytest.mark.parametrize(("factor", "offset"), [(1, 0), (1.8, 32), (-0.001, 5)])
def test_duplicates(factor: float, offset: float) -> None:
    x = noise()
    x[2] = factor * x[0] + offset
    finding = only(found_in(x))
    assert (finding.kind, finding.channel) == ("duplicate", "c")
    assert "is a ×" in finding.line
    assert finding.figures["factor"] == pytest.approx(factor, rel=1e-3)
    assert finding.figures["offset"] == pytest.approx(offset, abs=1e-4)
    x[2] += 0.02 * factor * x[1]  # nearly is not the same
    assert found_in(x) == []


def stretches(steps: np.ndarray) -> list[np.ndarray]:
    return np.array_split((steps * 1e7).astype(np.int64), 16)


def test_clocks() -> None:
    rng = np.random.default_rng(0)
    even = np.ones(2000)
    assert quality.clock("r", stretches(even)) == []
    assert quality.clock("r", stretches(even + rng.normal(0, 0.05, 2000))) == [], "a little jitter"
    assert quality.clock("r", stretches(np.where(rng.random(2000) < 0.1, 3, 1))) == [], "holes are no jitter"
    jitter = only(quality.clock("r", stretches(1 + rng.uniform(-0.5, 0.5, 2000))))
    assert (jitter.kind, round(jitter.figures["share"], 1)) == ("jitter", 0.5)
    rates = only(quality.clock("r", stretches(np.repeat([1.0, 2.0], 1000))))
    assert rates.kind == "rates"
    assert rates.figures == {"slowest_hz": 50, "fastest_hz": 100}


def windows(x: np.ndarray, length: int = 32) -> np.ndarray:
    count = x.shape[1] // length
    return np.ascontiguousarray(x[:, : count * length].reshape(len(x), count, length).transpose(1, 0, 2))


def share_strange(x: np.ndarray, length: int = 32) -> float:
    figures = figures_of(windows(x, length))
    bulk = fit_bulk(figures)
    assert bulk is not None
    return float(bulk.strange(figures).mean())


@pytest.mark.parametrize("channels", [1, 3, 8, 30])
def test_clean_windows_are_not_strange(channels: int) -> None:
    shares = [share_strange(noise(channels, seed, 32 * 1000)) for seed in range(5)]
    for seed in range(5):
        wander = np.cumsum(noise(channels, seed, 32 * 1000), axis=1) * np.float32(0.01)
        shares.append(share_strange(wander + noise(channels, 9 + seed, 32 * 1000)))
    assert np.mean(shares) < 0.0005
    assert share_strange(simulate(200, seed=channels, rate_hz=100).x) < 0.002


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15])
def test_contamination_is_found_for_what_it_is(share: float) -> None:
    clean = windows(noise(3, 1, 32 * 1000))
    count = int(share * 1000)
    for change in (lambda x: x + np.float32([[5], [0], [0]]), lambda x: x * np.float32([[1], [4], [1]])):
        x = clean.copy()
        x[:count] = change(x[:count])
        figures = figures_of(x)
        bulk = fit_bulk(figures)
        assert bulk is not None
        strange = bulk.strange(figures)
        assert strange[:count].mean() > 0.9
        assert strange[count:].mean() < 0.003
        finding = only(quality.unlike("r", strange))
        assert finding.figures["share"] == pytest.approx(share, rel=0.15)


def test_units_are_of_no_matter_to_what_is_strange() -> None:
    x = windows(noise(3, 2, 32 * 500))
    x[:20] += 5
    figures = figures_of(x), figures_of(x * np.float32([[1e-6], [1], [1e4]]) + np.float32([[0], [7], [1e5]]))
    one, other = (bulk.strange(f) for f in figures if (bulk := fit_bulk(f)) is not None)
    assert (one == other).mean() > 0.998


def test_too_few_or_dead_windows_tell_nothing() -> None:
    assert fit_bulk(figures_of(windows(noise(3, 0, 32 * 30)))) is None
    assert fit_bulk(figures_of(np.full((100, 2, 32), 3, np.float32))) is None
    assert quality.unlike("r", np.arange(1000) == 7) == [], "a stray one"


# Policy


def finding(kind: quality.Kind, recording: str, channel: str = "") -> Finding:
    return Finding(kind=kind, recording=recording, channel=channel, text="is odd", cure="mend it")


def test_policy_decides() -> None:
    all_have = [finding("constant", name, "a") for name in ("x", "y")]
    one_has = [finding("clipped", "x", "b"), finding("jitter", "y")]
    warned = decide([*all_have, *one_has], QualityRecipe(), ["x", "y"])
    assert {f.done for f in warned.findings} == {"warned"}
    assert not warned.channels | warned.recordings
    gone = decide([*all_have, *one_has], QualityRecipe(constant="exclude", clipped="exclude", clock="ignore"), ["x", "y"])
    assert (gone.channels, gone.recordings) == ({"a"}, {"x"})
    assert [f.done for f in gone.findings] == ["excluded"] * 3
    refused = decide(one_has, QualityRecipe(clock="refuse"), ["x", "y"]).findings[1]
    assert (refused.done, refused.severity) == ("refused", "error")
    assert refused.line == "y: is odd [refused]; mend it"


def test_a_fault_of_many_recordings_is_few_lines() -> None:
    lines = summary([*(finding("constant", f"r{i}", "a") for i in range(50)), finding("clipped", "r1", "b")])
    assert lines[:2] == ["r0: a: is odd [warned]; mend it", "r1: a: is odd [warned]; mend it"]
    assert lines[3:] == ["a constant: in 47 more recordings [warned]", "r1: b: is odd [warned]; mend it"]
