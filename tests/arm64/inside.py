"""Tests of the device, run by a pytest that is emulated; and which of them are not run there."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

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
DAYS = "days of samples, to which the processor adds nothing"
STARTS = "it starts a process again and again, which takes seconds there; the ways to get a model are run"
ENOUGH = "it is run on the Cortex-A53, and takes long"
SIMULATOR = "it is about the simulated machine, which stands on a PC"
RATES = "QEMU sets a port to no rate above 460,800 and to none that has no constant"
LEFT_OUT = {
    f"{EDGE}/delivery/test_outbox.py::test_a_group_is_on_disk_in_its_time_and_told": TIME,
    f"{EDGE}/operating/test_baud.py": RATES,
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
    f"{EDGE}/updating/test_shadow.py::test_a_head_fitted_to_the_recording_keeps_its_promise_on_what_follows": TIME,
    f"{EDGE}/updating/test_shadow.py::test_what_shadow_cannot_see_is_taken_back_on_probation": TIME,
    f"{EDGE}/updating/test_trial.py": TIME,
    f"{EDGE}/updating/test_updater.py::test_who_drips_or_never_ends_takes_a_deadline_and_no_more": TIME,
    f"{EDGE}/updating/test_updater.py::test_the_child_is_held_to_what_it_may_take": TIME,
    f"{EDGE}/updating/test_updater.py::test_a_child_that_goes_wrong_costs_the_agent_nothing": TIME,
    f"{EDGE}/updating/test_updater.py::test_what_a_check_costs": TIME,
    f"{EDGE}/updating/test_updater.py::test_a_bomb_of_json_stays_in_the_child": STARTS,
    f"{EDGE}/updating/test_updater.py::test_a_lost_model_is_fetched_again": STARTS,
    f"{EDGE}/updating/test_updater.py::test_who_asks_for_one_that_is_older_than_what_was_committed_hears_why_not": STARTS,
    f"{EDGE}/updating/test_updater.py::test_a_replay_brings_nothing_even_with_tufs_folder_wiped_or_zeroed": STARTS,
    f"{EDGE}/updating/test_updater.py::test_time_is_noted_and_a_clock_set_back_revives_nothing": STARTS,
    f"{EDGE}/updating/test_tuf_conformance.py::test_downloads_by_the_command_line_itself": STARTS,
    f"{EDGE}/updating/test_ring.py::test_no_day_writes_more_than_the_budget": DAYS,
    f"{EDGE}/updating/test_ring.py::test_the_oldest_goes_when_it_is_full_or_too_old": DAYS,
    f"{EDGE}/updating/test_shadow.py::test_good_models_are_seldom_refused": MANY,
    f"{EDGE}/scoring/test_alerts.py::test_a_flapping_channel_is_one_alert_and_told_ever_more_rarely": DAYS,
    f"{EDGE}/scoring/test_alerts.py::test_a_level_shift_that_stays_for_a_week_is_one_alert_and_few_updates": DAYS,
    f"{EDGE}/scoring/test_alerts.py::test_causes_that_take_turns_are_rationed": DAYS,
    f"{EDGE}/scoring/test_drift.py::test_a_machine_that_goes_to_and_fro_within_the_time_of_the_reference": DAYS,
    f"{EDGE}/scoring/test_drift.py::test_an_alarm_that_goes_on_and_off_asks_once": DAYS,
    f"{EDGE}/scoring/test_drift.py::test_what_still_evolves_is_not_asked_about_before_it_has_stopped": DAYS,
    f"{EDGE}/scoring/test_drift.py::test_without_its_threshold_normal_running_would_drift": DAYS,
    f"{EDGE}/scoring/test_budget.py::test_what_is_promised_and_what_is_estimated_holds": MANY,
    f"{EDGE}/test_commission.py::test_the_promise_holds_on_windows_that_nobody_was_fitted_on": MANY,
    f"{EDGE}/test_commission.py::test_on_clean_windows_leaving_out_breaks_no_promise": MANY,
    f"{EDGE}/test_commission.py::test_leaving_strange_windows_out_of_the_calibration_too_would_break_it": MANY,
    f"{EDGE}/test_weight.py::test_reading_a_recording_takes_nothing_heavy_until_it_is_parquet": PARQUET,
    f"{EDGE}/test_weight.py::test_the_check_would_notice": HERE,
    f"{EDGE}/test_weight.py::test_the_device_install_asks_for_nothing_heavy": HERE,
    f"{EDGE}/scoring/test_providers.py::test_one_that_computes_is_taken": HERE,
}
"""What a test's name begins with → why it is not run there."""
ONCE = {
    f"{EDGE}/sensing/test_windows.py::test_memory_does_not_grow": ENOUGH,
    f"{EDGE}/test_pipeline.py::test_faults_gaps_and_anomalies_keep_their_order": ENOUGH,
    f"{EDGE}/test_pipeline.py::test_how_samples_are_split_into_calls_never_changes_the_events": ENOUGH,
    f"{EDGE}/test_pipeline.py::test_drift_and_questions_come_in_the_same_order": ENOUGH,
    f"{EDGE}/test_pipeline.py::test_a_sensor_that_is_stuck_is_no_drift": ENOUGH,
    f"{EDGE}/test_pipeline.py::test_a_shift_that_stays_is_one_alert_one_question_and_no_drift": ENOUGH,
}
"""The same, of what is run on the Cortex-A53 alone."""


FIRST = "cortex-a53"
QUIET_S = 100.0
"""Longer than any test waits for something that does not come."""
MOST_HUNG = 2


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    output: str
    found: dict[str, tuple[str, float]]
    """Test → outcome and CPU seconds."""
    hung: int
    """How often it stood still: QEMU, or a test."""


def left_out(processor: str) -> dict[str, str]:
    return LEFT_OUT if processor == FIRST else LEFT_OUT | ONCE


def run_there(processor: str, paths: Sequence[str | Path], quiet_s: float = QUIET_S) -> Done:
    """QEMU 7.2 can hang in a fork; how often is not measured. Then what was not over yet is begun again: at most twice."""
    find().packages(*WANTED)
    found, output, hung = dict[str, tuple[str, float]](), "", 0
    while True:
        returncode, said = _attempt(processor, paths, found, quiet_s)
        output += said
        if returncode is not None or hung == MOST_HUNG:
            bad = any(outcome == "failed" for outcome, _ in found.values())
            return Done(1 if returncode is None or (bad and not returncode) else returncode, output, found, hung)
        hung += 1


def _attempt(
    processor: str, paths: Sequence[str | Path], found: dict[str, tuple[str, float]], quiet_s: float
) -> tuple[int | None, str]:
    """Run what is not in `found` yet, and put it there. Exit code, `None` when it hung, and what it printed."""
    arm64, out = find(), left_out(processor)
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        report, not_there, printed = Path(folder, "report"), Path(folder, "not-there.json"), Path(folder, "printed")
        not_there.write_text(json.dumps({"starts": list(out), "names": list(found)}))
        report.touch()
        options = ["-p", "emulated", f"--report-to={report}", f"--not-there={not_there}", f"--basetemp={folder}/tmp"]
        ignored = [f"--ignore={start}" for start in out if "::" not in start]
        command = [arm64.interpreter(processor), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *ignored]
        with printed.open("w") as stdout:
            child = subprocess.Popen(
                [*command, *paths],
                cwd=ROOT,
                env=arm64.environment(Path(__file__).parent),
                stdout=stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        hangs = _hangs(child, quiet_s)
        found |= {name: (outcome, cpu_s) for name, outcome, cpu_s in map(json.loads, report.read_text().splitlines())}
        return (None if hangs else child.returncode), printed.read_text()


def _hangs(child: "subprocess.Popen[bytes]", quiet_s: float) -> bool:
    """Wait for its end. Or kill it and what it has started, once they have done nothing for that long: no test waits longer."""
    process = psutil.Process(child.pid)
    spent_s, since_s = 0.0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
            return False
        family = [process, *process.children(recursive=True)]
        now_s = 0.0
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                now_s += sum(one.cpu_times()[:4])
        if abs(now_s - spent_s) > 0.2:
            spent_s, since_s = now_s, time.monotonic()
        elif time.monotonic() - since_s > quiet_s:
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            child.wait()
            return True
