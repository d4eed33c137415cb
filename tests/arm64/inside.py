"""Tests of the device, run by a pytest that is emulated; and which of them are not run there."""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quantize.emulation import find

ROOT = Path(__file__).parents[2]
EDGE = "tests/edge"
WANTED = (
    "tests",
    *("pytest", "hypothesis", "onnx", "cobs", "psutil", "trustme", "prometheus-client", "jinja2", "jsonschema"),
    *("paho-mqtt", "pyserial", "pymodbus", "typer", "tuf", "securesystemslib", "cryptography", "urllib3", "sqlalchemy"),
)
"""Folder and packages: beside what opens a bundle, the rest of what a device has, and what its tests import."""
BROWSER = "it is about what a browser shows"
PARQUET = "no device has what reads Parquet"
PROC = "QEMU hides the processes of the machine, and shows nothing of the emulated one"
TIME = "it is about how long something takes, and emulated everything takes ten times as long"
FEW = "a control that needs more examples than are made there"
HERE = "it is about what is installed on a developer's computer"
MANY = "a promise that is counted over very many windows, and of numpy alone"
SIMULATOR = "it is about the simulated machine, which stands on a PC"
LEFT_OUT = {
    f"{EDGE}/delivery/test_outbox.py::test_a_group_is_on_disk_in_its_time_and_told": TIME,
    f"{EDGE}/operating/test_page.py": BROWSER,
    f"{EDGE}/operating/test_doctor.py::test_a_device_that_is_well_and_an_agent_that_is_not_disturbed": PROC,
    f"{EDGE}/operating/test_doctor.py::test_a_port_that_somebody_else_reads": PROC,
    f"{EDGE}/operating/test_host.py::test_who_has_a_file_open": PROC,
    f"{EDGE}/operating/test_prometheus.py::test_this_process": PROC,
    f"{EDGE}/operating/test_http.py::test_the_same_bytes_would_have_changed_something_without_the_check": FEW,
    f"{EDGE}/operating/test_service.py::test_a_process_whose_inference_hangs_is_not_pinged_for": TIME,
    f"{EDGE}/sensing/test_recordings.py::test_what_is_written_comes_back": PARQUET,
    f"{EDGE}/sensing/test_recordings.py::test_parts_are_the_whole": PARQUET,
    f"{EDGE}/sensing/test_recordings.py::test_parquet_": PARQUET,
    f"{EDGE}/sensing/test_recordings.py::test_what_is_called_parquet_and_is_not": PARQUET,
    f"{EDGE}/sensing/test_simulate.py": SIMULATOR,
    f"{EDGE}/updating/test_ring.py::test_whatever_moment_it_is_killed_at_what_is_read_is_what_was_written": TIME,
    f"{EDGE}/updating/test_shadow.py::test_two_good_models_agree": TIME,
    f"{EDGE}/updating/test_shadow.py::test_too_little_is_unknown_and_says_how_much_more": TIME,
    f"{EDGE}/updating/test_shadow.py::test_alarms_": TIME,
    f"{EDGE}/updating/test_shadow.py::test_what_shadow_cannot_see_is_taken_back_on_probation": TIME,
    f"{EDGE}/updating/test_trial.py": TIME,
    f"{EDGE}/updating/test_updater.py::test_who_drips_or_never_ends_takes_a_deadline_and_no_more": TIME,
    f"{EDGE}/updating/test_updater.py::test_the_child_is_held_to_what_it_may_take": TIME,
    f"{EDGE}/updating/test_updater.py::test_a_child_that_goes_wrong_costs_the_agent_nothing": TIME,
    f"{EDGE}/updating/test_updater.py::test_what_a_check_costs": TIME,
    f"{EDGE}/scoring/test_budget.py::test_what_is_promised_and_what_is_estimated_holds": MANY,
    f"{EDGE}/test_commission.py::test_the_promise_holds_on_windows_that_nobody_was_fitted_on": MANY,
    f"{EDGE}/test_commission.py::test_on_clean_windows_leaving_out_breaks_no_promise": MANY,
    f"{EDGE}/test_commission.py::test_leaving_strange_windows_out_of_the_calibration_too_would_break_it": MANY,
    f"{EDGE}/test_weight.py::test_reading_a_recording_takes_nothing_heavy_until_it_is_parquet": PARQUET,
    f"{EDGE}/test_weight.py::test_the_check_would_notice": HERE,
    f"{EDGE}/test_weight.py::test_the_device_install_asks_for_nothing_heavy": HERE,
}
"""What a test's name begins with → why it is not run there."""


LONGEST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    output: str
    found: dict[str, tuple[str, float]]
    """Test → outcome and CPU seconds."""


def run_there(processor: str, paths: list[str]) -> Done:
    arm64 = find()
    arm64.packages(*WANTED)
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        report, not_there = Path(folder, "report.json"), Path(folder, "not-there.json")
        not_there.write_text(json.dumps(list(LEFT_OUT)))
        options = ["-p", "emulated", f"--report-to={report}", f"--not-there={not_there}", f"--basetemp={folder}/tmp"]
        ignored = [f"--ignore={start}" for start in LEFT_OUT if "::" not in start]
        done = subprocess.run(
            [arm64.interpreter(processor), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *ignored, *paths],
            cwd=ROOT,
            env=arm64.environment(Path(__file__).parent),
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        found = json.loads(report.read_text()) if report.exists() else {}
    return Done(done.returncode, done.stdout + done.stderr, found)


def why(name: str) -> str:
    """It is left out."""
    return next(reason for start, reason in LEFT_OUT.items() if name.startswith(start))
