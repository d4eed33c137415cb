"""The page: whole, readable by machines that read to people, needing nothing from outside, and with every figure in it."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from made_report import made_report, material, recording
from read_page import Page, marked
from small_bundle import members

from edge.bundle import write_bundle
from edge.errors import CannotCreateError, DataError
from trainer import page
from trainer.contamination import Contaminated, Contamination, Refitted
from trainer.evaluate import sha256_of
from trainer.page import figure
from trainer.progress import Step
from trainer.promise import Verdict
from trainer.report import Drawn, Examination, examine, findings, leading, refuse_existing, write


@pytest.fixture(scope="module")
def folder() -> Path:
    return material()


@pytest.fixture(scope="module")
def made() -> tuple[Examination, Drawn]:
    return made_report()


@pytest.fixture(scope="module")
def html(made: tuple[Examination, Drawn]) -> str:
    return page.render(*made)


def test_every_figure_of_the_json_is_on_the_page(made: tuple[Examination, Drawn]) -> None:
    numbers: list[float] = []
    refitted = Refitted(left=0.0, injected=0.9, labelled=0.8, noticed=0.7)
    spoilt = Contamination(windows=9, trim=0.1, points=(Contaminated(share=0.1, plain=refitted, trimmed=refitted),))
    whole = msgspec.structs.replace(made[0], contamination=spoilt)
    found = msgspec.convert(marked(msgspec.to_builtins(whole), numbers), Examination)
    cells = Page(page.render(found, made[1])).cells
    assert len(set(numbers)) == len(numbers) > 200, "the control: there is something to look for"
    assert {figure(number) for number in numbers} - cells == set()
    assert figure(0.2) not in cells
    assert {found.evaluation.bundle, *found.notes, *(one.began for one in found.findings)} <= cells
    assert json.loads(msgspec.json.encode(found))["evaluation"]["recordings"][0]["rows"] in numbers


def test_it_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "xlink:href", "style"}, tag
            assert not name.startswith("on"), tag
            if name == "href":
                assert value is not None
                assert value.startswith("#"), value
    assert not re.search(r"url\(|@import|https?:|//[a-z]", html)


def test_it_can_be_read_out(html: str) -> None:
    found = Page(html)
    anchors = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
    assert anchors == {f"#{attributes['id']}" for tag, attributes in found.tags if tag == "section"}
    plots = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(plots) > 20
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in plots)
    tables = [tag for tag, _ in found.tags if tag in {"table", "caption"}]
    assert tables == ["table", "caption"] * (len(tables) // 2), "every table says what it is"
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in found.tags if tag == "th")
    assert dict(found.tags)["html"] == {"lang": "en"}
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_names_from_outside_stay_text(html: str) -> None:
    assert "<b>pump" not in html
    assert "&lt;b&gt;pump &amp; co.csv" in html


def test_the_same_input_gives_the_same_bytes(folder: Path, made: tuple[Examination, Drawn], html: str) -> None:
    again = examine(folder / "small.amiss", [folder / "data"], [folder / "normal.csv"])
    assert again[0] == made[0]
    assert page.render(*again) == html


def test_what_it_says(made: tuple[Examination, Drawn]) -> None:
    found = made[0]
    assert found.evaluation.event_recall == 1
    assert [one.judged for one in found.findings if one.judged == "labelled"] == ["labelled", "labelled"]
    assert all(one.channels[0] == "current" for one in found.findings if one.judged == "labelled")
    assert found.comparison is not None
    assert {method.name.split(",")[0] for method in found.comparison.methods} >= {"mean |z|", "PCA residual", "k-means"}
    assert found.comparison.recordings == 2
    assert found.blamed_rightly is not None
    assert any("--run" in note for note in found.notes)
    assert found.adversarial == ()
    assert any("AUROC" in line for line in found.lines())


@pytest.mark.parametrize("verdict", ["kept", "broken", "unknown"])
def test_every_verdict_on_the_promise_names_its_figures(made: tuple[Examination, Drawn], verdict: Verdict) -> None:
    assert made[0].promise is not None
    threshold = msgspec.structs.replace(made[0].promise.threshold, measured=0.0123)
    kept = msgspec.structs.replace(made[0].promise, verdict=verdict, threshold=threshold)
    said = page.render(msgspec.structs.replace(made[0], promise=kept), made[1])
    assert f'<p class="verdict {verdict}">' in said
    assert len(re.findall("and counted 1.23 %", said)) == 1


def test_without_normal_the_rows_before_the_first_label_stand_in(folder: Path) -> None:
    found, drawn = examine(folder / "small.amiss", [folder / "data"])
    assert [leading(one.recording) for one in drawn.judged] == [1500, 900, 0]
    assert found.promise is not None
    assert found.promise.hours == pytest.approx(2400 / 100 / 3600, rel=0.05)
    assert any("before the first label" in note for note in found.notes)


def test_what_was_learned_from_says_nothing_about_the_promise(
    folder: Path, made: tuple[Examination, Drawn], tmp_path: Path
) -> None:
    manifest, inside = members()
    lineage = {"data/normal.csv": sha256_of(folder / "normal.csv")}
    write_bundle(tmp_path / "known.amiss", msgspec.structs.replace(manifest, lineage=lineage), inside)
    known, _ = examine(tmp_path / "known.amiss", [folder / "data"], [folder / "normal.csv"])
    fresh = made[0]
    assert known.promise is not None
    assert fresh.promise is not None
    assert known.promise.windows < fresh.promise.windows
    assert any("has learned from every recording of --normal" in note for note in known.notes)
    assert known.comparison == fresh.comparison, "simple methods may learn from what the model learned from"


def test_normal_that_is_not_normal_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="labelled as amiss"):
        examine(folder / "small.amiss", [folder / "data"], [folder / "data" / "calm.csv"])


def test_progress_goes_up_to_the_end(folder: Path) -> None:
    steps: list[Step] = []
    examine(folder / "small.amiss", [folder / "data" / "calm.csv"], progress=steps.append)
    assert [step.step for step in steps] == sorted(step.step for step in steps)
    assert steps[-1].step == steps[-1].steps
    assert len({step.text for step in steps}) > 10


def test_findings_that_were_no_episode(folder: Path, tmp_path: Path) -> None:
    path = recording(tmp_path / "x.csv", 2000, 9, (1000, 1300))
    relabelled = path.read_text("utf-8").replace(",1\n", ",0\n")
    path.write_text(relabelled, "utf-8")
    found, drawn = examine(folder / "small.amiss", [path, folder / "data" / "calm.csv"])
    assert findings(drawn.judged[0], 0.16)[0].judged == "false alarm"
    assert found.evaluation.false_alarms_per_day is not None
    assert found.evaluation.false_alarms_per_day_95 is not None
    low, high = found.evaluation.false_alarms_per_day_95
    assert low < found.evaluation.false_alarms_per_day < high


def test_written_whole_or_not_at_all(made: tuple[Examination, Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report"
    write(out, *made)
    before = (out / "report.html").read_bytes()
    assert json.loads((out / "report.json").read_text("utf-8"))["name"] == "small"
    with pytest.raises(CannotCreateError, match="--overwrite"):
        write(out, *made)
    write(out, *made, overwrite=True)
    assert (out / "report.html").read_bytes() == before
    with monkeypatch.context() as patched:
        patched.setattr(page, "render", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(out, *made, overwrite=True)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "other", *made)
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "no draft is left behind"
    assert (out / "report.html").read_bytes() == before
    (out / "mine.txt").write_text("x")
    with pytest.raises(CannotCreateError, match="no report"):
        refuse_existing(out, overwrite=True)
