"""docs/threat-model.md tells the truth as far as a program can see: its tests are there, its settings mean something."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from edge.config import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
MENTIONED = set(re.findall(r"`((?:edge|deploy|docs|tests)/[\w/.-]+)`", TEXT))
SETTINGS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


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


def test_every_promise_names_tests_that_there_are() -> None:
    assert len(NAMED) > 60
    assert [said for path, name in NAMED if (said := trouble(path, name))] == []
    assert TEXT.count("::test_") == len(NAMED), "one is written so that this does not see it"


def test_the_check_would_notice() -> None:
    """The controls: a test that was renamed, a file that is gone, a function that pytest does not collect."""
    path, name = NAMED[0]
    assert "no test" in trouble(path, f"{name}_no_more")
    assert "no such file" in trouble("tests/test_gone.py", name)
    assert collected("def test_a(): ...\nclass A:\n  def test_b(self): ...\nclass TestC:\n  def test_d(self): ...") == {
        "test_a",
        "test_d",
    }


def test_every_file_that_it_names_is_there() -> None:
    assert {path for path in MENTIONED if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("toml", SETTINGS)
def test_the_settings_are_understood(toml: str) -> None:
    smallest = {"node": "pump-7", "bundle": "m", "streams": {"pump": {"port": "p"}}}
    parse(smallest | tomllib.loads(toml))


def test_the_lines_of_the_acl_are_those_of_the_whole_one() -> None:
    (whole,) = re.findall(r"^```acl\n(.*?)^```$", (ROOT / "docs" / "mqtt.md").read_text(), re.MULTILINE | re.DOTALL)
    (some,) = re.findall(r"^```acl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert some.splitlines()
    assert set(some.splitlines()) <= set(whole.splitlines())


def test_what_it_counts_is_what_the_code_has() -> None:
    from edge import agent
    from edge.delivery.mqtt import MAX_UNACKNOWLEDGED
    from edge.operating import episodes, heads, http, requests
    from edge.scoring import memory

    said = " ".join(TEXT.split())
    for words in (
        f"at most {requests.MAX_BYTES // 1024} KiB",
        f"At most {agent.MOST_JOBS} requests wait",
        f"({requests.LONGEST_MINUTES / 1440:.0f} days at most)",
        f"at most {memory.MOST} prototypes",
        f"at most {MAX_UNACKNOWLEDGED} messages",
        f"({episodes.MOST_BYTES >> 20} MiB and {episodes.MOST} a stream)",
    ):
        assert words in said, words
    assert (memory.MOST_FORGIVEN, heads.MOST) == (1 / 20, 4), "a twentieth, four"
    assert (http.CONNECTIONS, http.DEADLINE_S) == (8, 10), "eight, ten seconds"
