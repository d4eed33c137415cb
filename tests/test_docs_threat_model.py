"""docs/threat-model.md tells the truth as far as a program can see: its files are there, its settings mean something."""

import re
import tomllib
from pathlib import Path

import pytest

from edge.config import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "threat-model.md").read_text()
MENTIONED = set(re.findall(r"`((?:edge|deploy|docs|tests)/[\w/.-]+)`", TEXT))
SETTINGS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


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
