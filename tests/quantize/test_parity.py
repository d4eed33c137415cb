"""The matrix: every model under every runtime beside what was trained, and what is over budget."""

import dataclasses
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_tflite import dynamic_range

from edge.errors import BundleError, GateError
from edge.scoring.backends import RUNTIMES, LiteRtBackend, Outputs, run_in_slices
from edge.scoring.ensemble import DEFAULT_SCORER
from edge.scoring.inject import usual_spread
from quantize.choice import choose_all
from quantize.elsewhere import Elsewhere
from quantize.export import outputs_of
from quantize.models import Models
from quantize.parity import LEARNED, Contestant, Matrix, Run, matrix, told_apart, windows_of
from quantize.tflite import hybrid
from trainer.checkpoint import load_detector
from trainer.metrics import auroc
from trainer.recipe import Budget

GOLDEN = Path(__file__).parents[1] / "golden"
BUDGET = Budget()


@pytest.fixture(scope="module")
def trained(run: Path) -> Run:
    return partial(outputs_of, load_detector(run)[0])


@pytest.fixture(scope="module")
def table(trained: Run, models_of_all: Models, windows: tuple[np.ndarray, ...], tflite_runtime: Path) -> Matrix:
    """All there is, with the oldest runtime."""
    contestants = []
    for runtime in ("onnxruntime", "litert"):
        for precision in ("float32", "int8"):
            model = models_of_all[RUNTIMES[runtime].member][precision]
            here = partial(run_in_slices, RUNTIMES[runtime].open(model))
            contestants.append(Contestant(runtime, precision, len(model), here))
    oldest = models_of_all["model.tflite"]["int8"]
    there = Elsewhere(tflite_runtime, "tflite-runtime", oldest)
    contestants.append(Contestant("tflite-runtime", "int8", len(oldest), there.run, "litert int8"))
    return matrix(trained, contestants, *windows[:2], DEFAULT_SCORER)


def test_everything_that_is_written_is_within_budget(table: Matrix) -> None:
    assert [row.name for row in table.rows] == [
        "onnxruntime float32",
        "onnxruntime int8",
        "litert float32",
        "litert int8",
        "tflite-runtime int8",
    ]
    assert set(table.windows) == {"normal", "anomalous", "stress"}
    for row in table.rows:
        assert row.failures(BUDGET) == []
        assert set(row.rank_correlation) == {DEFAULT_SCORER, LEARNED}
        if row.precision == "float32":
            assert row.embedding_error < 1e-5
            assert max(flips for cell in row.groups.values() for flips in cell.flips.values()) == 0
        else:
            assert row.embedding_error > 1e-3, "int8 is something else than float"
    assert len(table.lines()) == len(table.rows)


def test_dynamic_range_goes_wrong_without_an_error_and_the_matrix_sees_it(
    windows: tuple[np.ndarray, ...], tflite_runtime: Path
) -> None:
    """Under the oldest runtime, in the matrix products of a recurrent net. Its float file is the control; LiteRT is right."""
    model = (GOLDEN / "recurrent.tflite").read_bytes()
    wrong = dynamic_range(model)
    assert "FULLY_CONNECTED" in hybrid(wrong)
    float32, dynamic = (Elsewhere(tflite_runtime, "tflite-runtime", each).run for each in (model, wrong))
    contestants = [
        Contestant("tflite-runtime", "float32", len(model), float32),
        Contestant("tflite-runtime", "dynamic", len(wrong), dynamic),
        Contestant("litert", "dynamic", len(wrong), partial(run_in_slices, LiteRtBackend(wrong))),
    ]
    table = matrix(partial(run_in_slices, LiteRtBackend(model)), contestants, *windows[:2], "mahalanobis(embedding)")
    assert table.failures(BUDGET, "float32") == []
    failures = table.failures(BUDGET, "dynamic")
    assert any("embedding error" in failure for failure in failures)
    assert all(failure.startswith("tflite-runtime") for failure in failures)


def test_an_encoder_of_zeros_is_over_budget(trained: Run, windows: tuple[np.ndarray, ...]) -> None:
    def broken(x: np.ndarray) -> Outputs:
        found = trained(x)
        return dataclasses.replace(found, embedding=np.zeros_like(found.embedding), residual=np.zeros_like(found.residual))

    table = matrix(trained, [Contestant("none", "int8", 0, broken)], *windows[:2], DEFAULT_SCORER)
    failures = table.failures(BUDGET)
    assert any("AUROC" in failure for failure in failures) or any("rank correlation" in failure for failure in failures)
    assert all(DEFAULT_SCORER not in failure for failure in failures)


def test_a_shared_head_is_that_of_the_other(trained: Run, windows: tuple[np.ndarray, ...]) -> None:
    """Outputs twice as large need a head of their own; with another's, verdicts change."""

    def doubled(x: np.ndarray) -> Outputs:
        found = trained(x)
        return dataclasses.replace(found, trace=2 * found.trace, spectrum=2 * found.spectrum)

    first = Contestant("first", "int8", 0, trained)
    own, shared = (Contestant("second", "int8", 0, doubled, head) for head in (None, "first int8"))
    flips = [
        matrix(trained, [first, second], *windows[:2], DEFAULT_SCORER).rows[1].groups["normal"].flips[DEFAULT_SCORER]
        for second in (own, shared)
    ]
    assert flips[0] < 0.05 < flips[1]


def test_told_apart_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        normal, strange = rng.integers(0, 9, 30).astype(np.float32), rng.integers(3, 12, 17).astype(np.float32)
        label = np.repeat([False, True], [30, 17])
        assert told_apart(normal, strange) == pytest.approx(auroc(np.concatenate([normal, strange]), label))


def test_the_groups_are_what_their_names_say(windows: tuple[np.ndarray, ...]) -> None:
    calibration = windows[1]
    groups = windows_of(calibration)
    assert len({len(x) for x in groups.values()}) == 1
    assert all(any(np.array_equal(x, y) for y in calibration) for x in groups["normal"])
    for name in ("anomalous", "stress"):
        assert all(
            np.isfinite(x).all() and not np.array_equal(x, y) for x, y in zip(groups[name], groups["normal"], strict=True)
        )
    assert (np.abs(groups["stress"] - groups["normal"]) > 1e5 * usual_spread(calibration)[:, None]).any(
        axis=(1, 2)
    ).mean() > 0.2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embedding_error": 0.5}, "embedding error 0.500"),
        ({"embedding_error": float("nan")}, "embedding error"),
        ({"rank_correlation": {LEARNED: 0.5}}, "rank correlation 0.5000 with mahalanobis"),
        ({"auroc_loss": {LEARNED: 0.1}}, "AUROC of injected faults 0.1000 lower"),
        ({"groups": "flips"}, "50.0% of the verdicts on stress windows differ"),
    ],
)
def test_what_is_over_budget_is_not_shipped(change: dict[str, object], told: str, table: Matrix) -> None:
    rows = [row for row in table.rows if row.runtime == "litert"]
    if change.get("groups"):
        stress = msgspec.structs.replace(rows[1].groups["stress"], flips={LEARNED: 0.5})
        change = {"groups": rows[1].groups | {"stress": stress}}
    for at, precision in enumerate(("float32", "int8")):
        changed = rows.copy()
        changed[at] = msgspec.structs.replace(rows[at], **change)
        over = msgspec.structs.replace(table, rows=tuple(changed))
        if precision == "float32":
            with pytest.raises(GateError, match=told):
                choose_all({"litert": "none in int8"}, over, "auto", BUDGET)
            with pytest.raises(GateError, match=told):
                choose_all({"litert": "none in int8"}, over, "float32", BUDGET)
        assert [told in failure for failure in over.failures(BUDGET)] == [True]
    good = msgspec.structs.replace(table, rows=tuple(rows))
    assert choose_all({"litert": "none in int8"}, good, "auto", BUDGET) == ("float32", "none in int8")


def test_elsewhere_says_what_went_wrong(tflite_runtime: Path) -> None:
    with pytest.raises(BundleError, match="tflite-runtime cannot load the model"):
        Elsewhere(tflite_runtime, "tflite-runtime", b"no model").run(np.zeros((1, 2, 8), np.float32))
