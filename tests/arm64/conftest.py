"""Emulated test runs are begun before the first test and go on beside it. At the end it is printed how many tests were run on
which processor, how many were not, and why."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from inside import WANTED, Done, run_there

from quantize.emulation import find

AT_A_TIME = 2


@pytest.fixture(scope="session", autouse=True)
def jobs(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], "Future[Done]"]]:
    """(processor, part) → what became of it; of those that somebody has asked for."""
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(job["processor"], job["part"]): job["paths"] for job in asked if "part" in job}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        if wanted:
            find().packages(*WANTED)
        yield {job: pool.submit(run_there, job[0], paths) for job, paths in wanted.items()}
        pool.shutdown(cancel_futures=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that only wait go last."""
    items.sort(key=lambda item: "test_the_devices_own_tests_pass_there" in item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, seconds, hung, left_out = Counter[str](), Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for report in terminalreporter.getreports("passed"):
        found = dict(report.user_properties)
        if report.when == "call" and "processor" in found:
            processor = str(found["processor"])
            ran[processor] += int(str(found["ran"]))
            hung[processor] += int(str(found["hung"]))
            seconds[processor] += int(str(found["cpu_s"]))
            left_out.setdefault(processor, Counter()).update(found["left_out"])
    if ran:
        terminalreporter.section("the device's own tests, emulated")
    for processor, n in sorted(ran.items()):
        terminalreporter.write_line(f"{processor}: {n} passed in {seconds[processor]} s of CPU time")
        if hung[processor]:
            terminalreporter.write_line(f"    stood still {hung[processor]} times; what it was at was run again")
        for why, count in left_out[processor].most_common():
            terminalreporter.write_line(f"    {count} not run: {why}")
