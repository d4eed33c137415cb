"""The report of `amiss quantize`: what quantize returned, all of it, on a page that can be seen and that asks for nothing."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from browser import browser, crowded, faint, opened, too_wide
from playwright.sync_api import Browser
from read_page import Page, marked

import quantize as package
from edge.errors import CannotCreateError, UsageError
from edge.scoring.backends import OnnxBackend, run_in_slices
from edge.scoring.calibrate import Calibrator
from quantize import Made, Quantized, page, quantize
from quantize.fitting import fit_to
from quantize.parity import LEARNED, told_apart, windows_of
from quantize.prune import Point, Pruning, Size
from quantize.report import FIGURES, PAGE, Compression, Drawn, examine, refuse, refused, write
from quantize.target import Instructions
from trainer.frame import figure
from trainer.progress import Step
from trainer.recipe import Budget

# What was pruned and what was counted take minutes to make; here they only have to be shown.
PRUNED = Pruning(
    target="macs",
    ratio=0.5,
    before=Size(macs=4000, parameters=400, latency_us=40.5),
    after=Size(macs=2000, parameters=200, latency_us=30.5),
    curve=(
        Point(share=1.0, macs=4000, parameters=400, loss_cut=1.1, loss=1.1, detection=0.61),
        Point(share=0.7, macs=2800, parameters=280, loss_cut=1.3, loss=1.12, detection=0.6),
        Point(share=0.5, macs=2000, parameters=200, loss_cut=1.6, loss=1.4, detection=0.55),
    ),
    kept=1,
    reason="stopped before 50% of the MACs",
)
COUNTED = {"onnxruntime": Instructions(processor="cortex-a72", float32=607_000, int8=568_000)}


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantized, Made]:
    kept: list[Made] = []
    out = tmp_path_factory.mktemp("reported") / "<b>pump & co.amiss"
    return quantize(run, out, budget=Budget(unnoticed_us=1e9), keep=kept.append), kept[0]


@pytest.fixture(scope="module")
def examined(made: tuple[Quantized, Made]) -> tuple[Compression, Drawn]:
    steps: list[Step] = []
    found = examine(*made, steps.append)
    assert [step.step for step in steps] == [0, 1, 2, 3]
    return found


@pytest.fixture(scope="module")
def whole(examined: tuple[Compression, Drawn], made: tuple[Quantized, Made]) -> tuple[Compression, Drawn]:
    """With everything in it that a report can hold."""
    found, drawn = examined
    result = msgspec.structs.replace(found.quantized, pruned=PRUNED, instructions=COUNTED, target="raspberry-pi-4")
    assert result.parity is not None
    more = msgspec.structs.replace(
        found, quantized=result, refused=refused(result, made[1]), others={"litert": msgspec.structs.replace(result.parity)}
    )
    return more, drawn


@pytest.fixture(scope="module")
def html(whole: tuple[Compression, Drawn], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    write(out, *whole)
    return out / PAGE


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def test_the_json_has_the_figures_that_quantize_returned(
    made: tuple[Quantized, Made], examined: tuple[Compression, Drawn], tmp_path: Path
) -> None:
    result, kept = made
    write(tmp_path / "report", *examined)
    found = json.loads((tmp_path / "report" / FIGURES).read_text("utf-8"))
    assert found["quantized"] == json.loads(msgspec.json.encode(result))
    by_precision = {one["precision"]: one for one in found["costs"]}
    assert result.parity is not None
    assert by_precision["float32"]["one_us"] == result.parity.float_us
    assert by_precision["int8"]["one_p99_us"] == result.parity.int8_p99_us
    assert by_precision["int8"]["bytes"] == result.parity.int8_bytes == result.model_bytes
    assert found["budget"]["unnoticed_us"] == 1e9
    assert found["macs"] > 10_000
    for one in found["quality"]:
        (row,) = [row for row in result.matrix.rows if row.precision == one["precision"]]
        assert one["auroc"] == result.matrix.auroc[one["scorer"]] - row.auroc_loss[one["scorer"]]
    assert any("no board was named" in note for note in found["notes"])
    assert found["refused"] == []
    assert kept.asked == "auto"


def test_the_scores_that_are_drawn_are_those_that_were_compared(
    made: tuple[Quantized, Made], examined: tuple[Compression, Drawn]
) -> None:
    matrix, drawn = made[0].matrix, examined[1].scores
    assert set(drawn) == {"float32", "int8"}
    for row in matrix.rows:
        for scorer, lost in row.auroc_loss.items():
            groups = drawn[row.precision][scorer].groups
            assert told_apart(groups["normal"], groups["anomalous"]) == pytest.approx(matrix.auroc[scorer] - lost, abs=1e-9)
    assert not np.array_equal(drawn["float32"][LEARNED].groups["normal"], drawn["int8"][LEARNED].groups["normal"])


def test_what_counts_as_strange_is_what_the_calibrator_says(
    made: tuple[Quantized, Made], windows: tuple[np.ndarray, ...], examined: tuple[Compression, Drawn]
) -> None:
    backend = OnnxBackend(made[1].models["model.onnx"]["float32"])
    fit, calibration, _ = windows
    fitted = fit_to(backend, LEARNED, fit, calibration)
    calibrator = Calibrator.fit(fitted.held_back)
    limit = calibrator.usual_p_value
    share = {
        group: float((calibrator.p_value(fitted.scorer.score(run_in_slices(backend, x))) <= limit).mean())
        for group, x in windows_of(calibration).items()
    }
    assert share["normal"] < 0.05 < share["anomalous"]
    spreads = [one for one in examined[0].spreads if one.scorer == LEARNED and one.precision == "float32"]
    assert {one.group: one.strange for one in spreads} == pytest.approx(share, abs=0.01)
    assert all(one.low <= one.middle <= one.high for one in spreads)


def test_every_figure_of_the_json_is_on_the_page(whole: tuple[Compression, Drawn], monkeypatch: pytest.MonkeyPatch) -> None:
    # Known there by name only, so that the package can be imported without torch; to read it back it has to be there.
    monkeypatch.setattr(package, "Pruning", Pruning, raising=False)
    numbers: list[float] = []
    found = msgspec.convert(marked(msgspec.to_builtins(whole[0]), numbers), Compression)
    cells = Page(page.render(found, whole[1])).cells
    assert len(set(numbers)) == len(numbers) > 150, "the control: there is something to look for"
    assert {figure(number) for number in numbers} - cells == set()
    assert figure(0.2) not in cells
    assert {found.quantized.digest, found.quantized.reason, *found.notes, *found.refused} <= cells


def test_names_from_outside_stay_text(whole: tuple[Compression, Drawn]) -> None:
    said = page.render(*whole)
    assert "<b>pump" not in said
    assert "&lt;b&gt;pump &amp; co.amiss" in said


def test_a_float_model_alone_says_why(made: tuple[Quantized, Made], examined: tuple[Compression, Drawn]) -> None:
    result, kept = made
    rows = tuple(row for row in result.matrix.rows if row.precision == "float32")
    alone = msgspec.structs.replace(
        result,
        precision="float32",
        reason="no GRU in int8",
        parity=None,
        matrix=msgspec.structs.replace(result.matrix, rows=rows),
    )
    costs = tuple(one for one in examined[0].costs if one.precision == "float32")
    found = msgspec.structs.replace(examined[0], quantized=alone, costs=costs, refused=refused(alone, kept))
    said = page.render(found, Drawn({"float32": examined[1].scores["float32"]}))
    assert "int8 was not shipped: no GRU in int8" in Page(said).cells
    assert "There is no int8 model" in said


def test_memory_is_that_of_a_process_of_its_own(examined: tuple[Compression, Drawn]) -> None:
    found = examined[0].costs[0].memory_mb
    assert found is not None
    # This process holds PyTorch, which alone takes two hundred.
    assert 30 < found < 150


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_it_can_be_seen(chromium: Browser, html: Path, width: int, scheme: str) -> None:
    with opened(chromium, html, width, scheme) as seen:
        assert (seen.requests, seen.complaints) == ([], [])
        assert seen.page.locator("h2").count() == 8
        assert seen.page.locator("figure > svg").count() == 4, "two of scores, two of pruning"
        assert too_wide(seen.page) == []
        assert crowded(seen.page) == []
        assert faint(seen.page) == []
        assert "{" not in seen.page.locator("body").inner_text(), "a placeholder that was never filled in"


def test_what_looks_wrong_is_caught(chromium: Browser, html: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    wide = '<p><span class="one">' + "too long " * 40 + '</span></p><img src="https://example.org/x.png" alt="">'
    spoilt.write_text(html.read_text("utf-8").replace("</body>", f"{wide}</body>"), "utf-8")
    with opened(chromium, spoilt, 390) as seen:
        assert too_wide(seen.page) != []
        assert seen.complaints != []


def test_written_whole_or_not_at_all(
    examined: tuple[Compression, Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    refuse(out, tmp_path / "pump.amiss", overwrite=False)
    write(out, *examined)
    assert sorted(path.name for path in out.iterdir()) == [PAGE, FIGURES]
    for attempt in (partial(refuse, out, tmp_path / "pump.amiss"), partial(write, out, *examined)):
        with pytest.raises(CannotCreateError, match="--overwrite"):
            attempt(overwrite=False)
    write(out, *examined, overwrite=True)
    with monkeypatch.context() as patched:
        patched.setattr(page, "render", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "other", *examined)
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "no draft is left behind"
    (out / "mine.txt").write_text("x")
    with pytest.raises(CannotCreateError, match="no report"):
        refuse(out, tmp_path / "pump.amiss", overwrite=True)


def test_a_bundle_in_the_folder_of_the_report_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose another"):
        refuse(tmp_path / "new", tmp_path / "new" / "pump.amiss", overwrite=False)


def test_it_prints(chromium: Browser, html: Path) -> None:
    with opened(chromium, html, 718) as seen:  # the width of A4 between its margins
        seen.page.emulate_media(media="print")
        assert too_wide(seen.page) == []
        assert seen.page.locator("details table").first.is_visible(), "on paper nobody can unfold it"
