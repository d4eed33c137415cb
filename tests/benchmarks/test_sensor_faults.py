"""The sensors of the simulated machine fail, and are blamed: a short cut of `python -m benchmarks.sensor_faults`."""

import numpy as np
import pytest
from small_bundle import members_for

from benchmarks import sensor_faults
from benchmarks.sensor_faults import BROKEN, Clean, Counts, Machine, Subject, at_fault, put, tables, undisturbed
from edge.bundle import Bundle, write_bundle
from edge.sensing.recordings import Recording
from edge.sensing.simulate import CHANNELS, FAULTS, RATE_HZ, simulate
from edge.signal import Float32

NORMAL = simulate(300, seed=1)
CENTRE, SPREAD = (of(NORMAL.x, axis=1, dtype=np.float64)[:, None] for of in (np.mean, np.std))


def standard(recording: Recording, start: int = 0) -> Recording:
    """In units that a graph without normalisation bears."""
    x = ((recording.x[:, start:] - CENTRE) / SPREAD).astype(np.float32)
    label = None if recording.label is None else recording.label[start:]
    return Recording(recording.name, CHANNELS, recording.time_ns[start:], x, label)


def windows(x: Float32, length: int = 256, hop: int = 64) -> Float32:
    found = np.lib.stride_tricks.sliding_window_view(x, length, axis=1)[:, ::hop].transpose(1, 0, 2)
    return np.ascontiguousarray(found[np.random.default_rng(0).permutation(len(found))])


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path = tmp_path_factory.mktemp("machine") / "machine.amiss"
    write_bundle(
        path, *members_for(windows(standard(NORMAL).x), CHANNELS, RATE_HZ, "subspace(trace) + knn(signal)", centred=True)
    )
    bundle = Bundle.open(path)
    machine = {
        name: (bundle, [standard(simulate(60, seed=1, fault=name, fault_at_s=30.0, severity=3.0))])
        for name, fault in FAULTS.items()
        if not fault.sensor
    }
    return Subject("simulated", bundle, (standard(simulate(600, seed=1), round(300 * RATE_HZ)),), machine)


@pytest.mark.parametrize("kind", ["stuck", "drop-out", "spikes", "range"])
def test_the_sensor_is_blamed_and_not_the_machine(subject: Subject, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its control: without health the machine is blamed."""
    monkeypatch.setattr(sensor_faults, "MOST", 2)
    worst = [one for one in BROKEN if one.kind == kind][-1]
    counts = Counts()
    put(subject.bundle, subject.clean[0], worst, counts, {})
    assert (counts.trials, counts.blamed, counts.alerts, counts.before) == (2, 2, 0, 2)


def test_values_that_are_missing_are_the_sensors(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_faults, "MOST", 1)
    counts = Counts()
    put(subject.bundle, subject.clean[0], next(one for one in BROKEN if "half missing" in one.severity), counts, {})
    assert (counts.trials, counts.blamed, counts.alerts) == (1, 1, 0)


def test_the_machine_is_blamed_for_its_own(subject: Subject) -> None:
    found = at_fault(subject)
    assert found.cases == found.before == 5
    assert found.lost == found.blamed == []


def test_sound_sensors_are_left_in_peace(subject: Subject) -> None:
    found = undisturbed(subject)
    assert found.faults == []
    assert found.alerts == found.before


def test_the_report_says_what_was_counted() -> None:
    found = {"m": ({("stuck", "for good"): Counts(4, 3, 1, 4)}, Clean(0.5, ["a: stuck"], 0, 0), Machine(2, 2, ["x"], []))}
    text = "\n".join(tables(found))
    assert "75 % / 25 % (100 %)" in text
    assert "1 (a: stuck) | 2 |" in text
    assert "| m | 2 | 2 | 1: x | none |" in text
