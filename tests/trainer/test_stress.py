"""Troubles do what they are named for, more of them does more, and none of them does nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from edge.bundle import Bundle
from edge.operating.score import judge_recording
from edge.scoring.explain import Explainer
from edge.sensing.recordings import Recording
from trainer import stress
from trainer.evaluate import judge_windows
from trainer.stress import Material, blame, clock_skew, curve, middle, troubles

TROUBLES = {trouble.name: trouble for trouble in troubles(len(CHANNELS))}


def recording(rows: int, seed: int) -> Recording:
    return Recording("r", CHANNELS, np.arange(rows, dtype=np.int64) * 10_000_000, normal(rows, seed))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build(tmp_path_factory.mktemp("bundle") / "small.amiss"))


@pytest.fixture(scope="module")
def material(bundle: Bundle) -> Material:
    found = stress.gather(bundle, [recording(9000, 11)], [])
    assert found is not None
    anomalous = found.normal.copy()
    anomalous[:, 0] += 1.5
    return Material(found.normal, anomalous, found.length, found.within, found.overall, found.centre)


def test_single_windows_get_the_verdicts_that_the_stream_gets(bundle: Bundle) -> None:
    one = recording(160, 3)
    stream = judge_recording(bundle, one, hop=16)
    alone = judge_windows(bundle, one.x.reshape(2, 10, 16).transpose(1, 0, 2))
    assert alone.score == pytest.approx(stream.score.astype(float))
    assert alone.p_value == pytest.approx(stream.p_value)
    assert alone.shares == pytest.approx(stream.shares)
    x = one.x.reshape(2, 10, 16).transpose(1, 0, 2).copy()
    x[4, 1, 3:9] = np.nan  # too long to fill
    x[5, 0, 3:5] = np.nan  # short enough
    assert np.flatnonzero(np.isnan(judge_windows(bundle, x).score)).tolist() == [4]


@pytest.mark.parametrize("name", TROUBLES)
def test_none_of_a_trouble_is_no_trouble(bundle: Bundle, material: Material, name: str) -> None:
    """The control of everything below."""
    trouble = TROUBLES[name]
    assert trouble.strengths[0] == 0
    for part in (material.normal, material.anomalous):
        x = trouble.disturb(part, material, 0.0, np.random.default_rng(0))
        assert np.array_equal(x, middle(part, material.length))
    first = curve(bundle, trouble, material).points[0]
    assert first.told_apart == 0.5
    assert first.alarm_share is not None
    assert first.alarm_share < 0.02
    assert first.still_found is not None
    assert first.still_found > 0.95
    assert first.scored == 1


@pytest.mark.parametrize("name", ["noise", "drift", "spike", "gain"])
def test_a_lot_of_it_is_noticed(bundle: Bundle, material: Material, name: str) -> None:
    points = curve(bundle, TROUBLES[name], material).points
    told = [point.told_apart or 0 for point in points]
    assert told == sorted(told)
    assert told[-1] > 0.9
    assert (points[-1].alarm_share or 0) > (points[0].alarm_share or 0) + 0.3
    if name != "gain":  # it makes what was strange stranger too
        assert (points[-1].still_found or 1) < (points[0].still_found or 0) - 0.05, "what is everywhere hides the rest"


def test_what_never_arrives_is_not_scored(bundle: Bundle, material: Material) -> None:
    scored = [point.scored for point in curve(bundle, TROUBLES["drop-out"], material).points]
    assert scored == sorted(scored, reverse=True)
    assert scored[-1] < 0.6


def test_a_clock_that_runs_fast_makes_a_tone_lower_and_leaves_noise_alone(bundle: Bundle, material: Material) -> None:
    n, longer = material.length, material.normal.shape[2]
    start = (longer - n) // 2
    at = np.arange(longer) - start - (n - 1) / 2
    tone = np.sin(at * 0.8)[None, None].repeat(2, axis=1).astype(np.float32)
    found = clock_skew(tone, material, 0.1, np.random.default_rng(0))[0, 0]
    assert found == pytest.approx(np.sin(at[start : start + n] * 0.88), abs=0.02)
    assert np.abs(found - tone[0, 0, start : start + n]).max() > 0.2, "the control: it was changed"
    assert curve(bundle, TROUBLES["clock skew"], material).points[-1].told_apart == pytest.approx(0.5, abs=0.07)


def test_stuck_and_missing_channels(material: Material) -> None:
    rng = np.random.default_rng
    half = TROUBLES["stuck"].disturb(material.normal, material, 0.5, rng(0))
    still = (np.diff(half[:, :, material.length // 2 :], axis=2) == 0).all(axis=2)
    assert (still.sum(axis=1) == 1).all()
    gone = TROUBLES["missing channel"].disturb(material.normal, material, 1, rng(0))
    assert ((gone == material.centre[:, None]).all(axis=2).sum(axis=1) == 1).all()
    assert "missing channel" not in {trouble.name for trouble in troubles(1)}


@pytest.mark.parametrize("fault", ["noise", "level_shift", "trend"])
def test_blame(bundle: Bundle, material: Material, fault: str) -> None:
    found = blame(bundle, material, fault)
    assert found.noticed > 0.3
    assert found.right is not None
    assert found.right >= 0.9
    arrays = bundle.head.explainer.arrays()
    wrong = Explainer(**{name: np.ascontiguousarray(array[:, ::-1]) for name, array in arrays.items()})
    wrong.shares = lambda *seen: bundle.head.explainer.shares(*seen)[:, ::-1]  # type: ignore[method-assign]
    turned = Bundle(
        bundle.manifest, "", bundle.backend, replace(bundle.head, explainer=wrong), bundle.golden, 0
    )  # fmt: skip
    assert (blame(turned, material, fault).right or 0) < 0.1, "the control: shares the wrong way round are found out"


def test_nothing_normal(bundle: Bundle, tmp_path: Path) -> None:
    assert stress.gather(bundle, [], []) is None
    assert stress.gather(bundle, [recording(20, 0)], []) is None


def test_without_labelled_anomalies_nothing_is_said_about_them(bundle: Bundle, material: Material) -> None:
    alone = replace(material, anomalous=material.normal[:0])
    for trouble in TROUBLES.values():
        found = curve(bundle, trouble, alone)
        assert {point.still_found for point in found.points} == {None}
        assert found.points[1].told_apart is not None


def test_windows_that_were_strange_before_take_no_part_in_the_blame(bundle: Bundle, material: Material) -> None:
    half = material.normal.copy()
    half[::2, 1] += 5
    assert blame(bundle, replace(material, normal=half), "noise").windows == pytest.approx(len(half) / 2, abs=3)
