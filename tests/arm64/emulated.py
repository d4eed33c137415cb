"""A plugin for the pytest that runs on the emulated processor: few examples of everything, and a report of what was run.

    python -m pytest -p emulated --report-to=FILE --not-there=FILE.json …

Loaded with -p, it is there before any test is imported.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

EXAMPLES, STEPS = 5, 10
"""What depends on the processor shows in the first ones; all are run on x86."""


class Few(hypothesis.settings):
    """What a test asks for, but no more examples than are affordable here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        for name, most in (("max_examples", EXAMPLES), ("stateful_step_count", STEPS)):
            if name in options:
                options[name] = min(options[name], most)
        super().__init__(*args, **options)


hypothesis.settings = Few  # type: ignore[misc]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report-to", type=Path, help="gets a line for each test when it is over")
    parser.addoption("--not-there", type=Path, help='{"starts": what of a test\'s name begins with, "names": tests}')


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Report(config.getoption("--report-to"), config.getoption("--not-there")))


class Report:
    """[test, outcome, CPU seconds with its children's], a line each."""

    def __init__(self, path: Path, not_there: Path) -> None:
        self._path = path
        self._not_there = json.loads(not_there.read_text())
        self._outcome = ""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        # conftest.py, where a profile is chosen, has been read by now. It holds for what asks for nothing itself.
        few = Few(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
        hypothesis.settings.register_profile("emulated", few)
        hypothesis.settings.load_profile("emulated")
        starts, names = tuple(self._not_there["starts"]), set(self._not_there["names"])
        out = [item for item in items if item.nodeid.startswith(starts) or item.nodeid in names]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before, self._outcome = sum(os.times()[:4]), "passed"
        try:
            return (yield)
        finally:
            with self._path.open("a") as file:
                file.write(json.dumps([item.nodeid, self._outcome, round(sum(os.times()[:4]) - before, 2)]) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._outcome = report.outcome
