"""What holds for all documents: links lead somewhere, words are in order, numbers are given once."""

import ast
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from edge.config import UpdateConfig
from edge.updating.ring import Ring

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "firmware-configs").rglob("*.md"), *ROOT.glob("*.md")], key=str)


def anchors(document: Path) -> set[str]:
    """What GitHub makes of headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def dead_links(document: Path) -> list[str]:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert dead_links(document) == []


def test_a_dead_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: here\n[a](#a-title-here) [b](page.md) [c](gone.md) [d](page.md#gone) [e](https://example.org/x)"
    )
    assert dead_links(page) == ["gone.md", "page.md#gone"]


def collected(source: str) -> set[str]:
    """Functions of a file that pytest takes for tests: at its top, or in a class `Test…` without a constructor."""
    found = set()
    for node in ast.parse(source).body:
        inside = [node]
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            inside = [] if any(getattr(one, "name", "") == "__init__" for one in node.body) else node.body
        found |= {one.name for one in inside if isinstance(one, ast.FunctionDef) and one.name.startswith("test")}
    return found


def trouble(path: str, name: str) -> str:
    file = ROOT / path
    if not file.is_file():
        return f"{path}: no such file"
    if not file.name.startswith("test_"):
        return f"{path}: pytest does not look into it"
    return "" if name in collected(file.read_text()) else f"{path}: no test {name}"


@pytest.mark.parametrize(("name", "least"), [("threat-model.md", 60), ("reliability.md", 50)])
def test_every_promise_names_tests_that_there_are(name: str, least: int) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > least
    assert [said for path, test in named if (said := trouble(path, test))] == []
    assert text.count("::test_") == len(named), "one is written so that this does not see it"
    assert [path for path in re.findall(r"`(tests/[\w/]+\.py)`", text) if not (ROOT / path).is_file()] == []


def test_a_test_that_is_gone_would_be_noticed() -> None:
    """The controls: one that was renamed, a file that is gone, a function that pytest does not collect."""
    here = "tests/test_docs.py"
    assert trouble(here, "test_a_test_that_is_gone_would_be_noticed") == ""
    assert "no test" in trouble(here, "test_no_more")
    assert "no such file" in trouble("tests/test_gone.py", "test_no_more")
    assert collected("def test_a(): ...\nclass A:\n  def test_b(self): ...\nclass TestC:\n  def test_d(self): ...") == {
        "test_a",
        "test_d",
    }


def test_every_row_of_what_is_promised_is_there() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 23))
    for number, row in rows:
        promise, suite, *rest = (cell.strip() for cell in row.split("|"))
        assert promise, number
        assert suite.startswith("`tests/"), number
        assert len(rest) == 2, number
        assert all(rest), f"row {number}: a dash says that there is none"


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    words = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)[1:]
    assert len(words) > 100
    in_order = [re.sub("[^a-z ]", "", word.lower().replace("-", " ")) for word in words]
    assert in_order == sorted(set(in_order))


def test_every_decision_has_a_number_of_its_own_and_says_it() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        title, text = path.read_text().split("\n", 1)
        assert re.match(rf"# (ADR )?{int(path.name[:4])}[.:] ", title), path.name
        assert "onsequences" in text, path.name


def test_the_map_has_every_room_of_the_device() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (rooms,) = re.findall(r"^    edge/ .*?(?=^    trainer/)", text, re.MULTILINE | re.DOTALL)
    modules = {path.stem for path in (ROOT / "edge").rglob("*.py")} - {
        "__init__",
        "frames",
        "layout",
        "lines",
        "nmea",
        "stamps",
    }
    assert {module for module in modules if not re.search(rf"\b{module}\b", rooms)} == set()


def test_every_setting_of_updates_is_told_with_its_default() -> None:
    text = (ROOT / "docs" / "howto" / "receive-a-model.md").read_text()
    (block,) = re.findall(r"^    \[update\].*\n((?:    .*\n)+)", text, re.MULTILINE)
    told = tomllib.loads(re.sub(r"^    #?", "", block, flags=re.MULTILINE))
    real = msgspec.to_builtins(UpdateConfig(repository="https://models.example.org"))
    assert told.keys() == real.keys()
    # Those that are off unless they are said have an example in the place of their default.
    assert {name: told[name] for name in told if real[name] not in (None, "")} == {
        name: value for name, value in real.items() if value not in (None, "")
    }


def test_what_is_recorded_by_default_is_what_it_says(tmp_path: Path) -> None:
    real = UpdateConfig(repository="x")
    ring = Ring(
        tmp_path,
        ("x", "y", "z"),
        10_000.0,
        hours=real.record_hours,
        max_bytes=real.record_max_bytes,
        bytes_per_day=real.record_bytes_per_day,
        stretch=16 * 1024,
    )
    assert f"\n> {ring.sentence()}\n" in (ROOT / "docs" / "howto" / "updates-on-the-device.md").read_text()
    costs = (ROOT / "docs" / "adr" / "0019-tried-on-its-own-data.md").read_text()
    assert f"Up to {real.record_bytes_per_day >> 20} MiB a day" in costs
    assert f"{real.record_max_bytes >> 20} MiB, pays for {ring.share:.1%}".replace("%", " %") in costs
