"""The device's own tests, by the device's own Python, on the processors of small boards.

Those of what computes run on all of them. On the oldest and most common one sensing and scoring run as a whole, and with
AMISS_ARM64=all (`make arm64-all`) also what waits for brokers, ports and processes: slower, and QEMU was seen to hang there.
What cannot be run there is in a table, and what was run is held against what pytest finds here: a test in neither fails.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from inside import EDGE, FIRST, LEFT_OUT, ONCE, ROOT, Done, left_out, run_there

ALL = {
    "operating": [f"{EDGE}/operating"],
    "updating": [f"{EDGE}/updating"],
    "delivery": [f"{EDGE}/delivery"],
    "sensing": [f"{EDGE}/sensing"],
    "scoring and the rest": [f"{EDGE}/scoring", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / EDGE).glob("test_*.py"))],
}
SCORING = ("backends", "calibrate", "ensemble", "evidence", "explain", "memory", "scorers", "smoothing")
NUMBERS = {
    "what computes": [
        *(f"{EDGE}/sensing/test_{name}.py" for name in ("frames", "windows")),
        *(f"{EDGE}/scoring/test_{name}.py" for name in SCORING),
        f"{EDGE}/test_bundle.py",
        f"{EDGE}/test_pipeline.py",
    ]
}
WAITING = ("operating", "updating", "delivery") if os.environ.get("AMISS_ARM64") != "all" else ()
JOBS = [
    *((FIRST, part, paths) for part, paths in ALL.items() if part not in WAITING),
    *((processor, part, paths) for processor in ("cortex-a72", "cortex-a76") for part, paths in NUMBERS.items()),
]


@pytest.fixture(scope="session")
def tests() -> list[str]:
    """The names of all of the device's: as pytest finds them here."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", EDGE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.parametrize(("processor", "part", "paths"), JOBS, ids=[f"{job[0]}-{job[1]}" for job in JOBS])
def test_the_devices_own_tests_pass_there(
    processor: str,
    part: str,
    paths: list[str],
    jobs: dict[tuple[str, str], "Future[Done]"],
    tests: list[str],
    record_property: Callable[[str, object], None],
) -> None:
    done = jobs[processor, part].result()
    assert done.returncode == 0, done.output
    wanted = {name for name in tests if name.startswith(tuple(paths))}
    reasons = {name: why for name in wanted for start, why in left_out(processor).items() if name.startswith(start)}
    passed = {name for name, (outcome, _) in done.found.items() if outcome == "passed"}
    assert passed == wanted - set(reasons), f"neither passed nor left out: {sorted(passed ^ (wanted - set(reasons)))}"
    record_property("processor", processor)
    record_property("ran", len(passed))
    record_property("hung", done.hung)
    record_property("cpu_s", round(sum(seconds for _, seconds in done.found.values())))
    record_property("left_out", dict(Counter(reasons.values())))


def test_every_test_of_the_device_is_in_a_job_and_what_is_left_out_exists(tests: list[str]) -> None:
    covered = tuple(path for paths in ALL.values() for path in paths)
    assert [name for name in tests if not name.startswith(covered)] == []
    absent = [start for start in LEFT_OUT | ONCE if not any(name.startswith(start) for name in tests)]
    assert absent == [], "there is no test of this name"
    known = (ROOT / "CONTRIBUTING.md").read_text()
    assert [reason for reason in (LEFT_OUT | ONCE).values() if f"| {reason} |" not in known] == []


def test_what_fails_there_is_seen(tmp_path: Path) -> None:
    """The control: the same way, a test that cannot pass on this processor, and one that is not run at all."""
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text(
        "import platform, subprocess, sys\n"
        "def test_here(): assert platform.machine() != 'aarch64'\n"
        "def test_child():\n"
        "    code = 'import numpy, platform; print(platform.machine())'\n"
        "    assert subprocess.check_output([sys.executable, '-c', code], text=True, env={}) == 'aarch64\\n'\n"
        "def test_skipped():\n    import pytest; pytest.skip('for no reason')\n"
    )
    done = run_there(FIRST, [wrong])
    assert done.returncode == 1
    assert [outcome for outcome, _ in done.found.values()] == ["failed", "passed", "skipped"], done.output


def test_what_hangs_there_is_begun_again_and_what_had_failed_stays_failed(tmp_path: Path) -> None:
    """As QEMU does now and then when a program forks."""
    hangs = tmp_path / "test_hangs.py"
    hangs.write_text(
        "import pathlib, threading\n"
        "def test_before(): assert False\n"
        "def test_once():\n"
        "    seen = pathlib.Path(__file__).with_name('seen')\n"
        "    if not seen.exists():\n"
        "        seen.touch()\n"
        "        threading.Event().wait()\n"
        "def test_behind(): pass\n"
    )
    done = run_there(FIRST, [hangs], quiet_s=10.0)
    assert [outcome for outcome, _ in done.found.values()] == ["failed", "passed", "passed"], done.output
    assert (done.hung, done.returncode) == (1, 1)
    hangs.write_text("import threading\ndef test_always(): threading.Event().wait()\n")
    done = run_there(FIRST, [hangs], quiet_s=10.0)
    assert (done.hung, done.returncode, done.found) == (2, 1, {})
