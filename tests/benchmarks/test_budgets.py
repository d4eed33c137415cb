"""The benchmark counts what the device would do, and its table says which budget was not kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.budget import METHODS, Row, cell, episodes, process, remembering, table
from edge.config import AlarmConfig
from edge.scoring.alerts import Alarm, AlarmPolicy
from edge.scoring.calibrate import Calibrator


@given(st.lists(st.sampled_from([0.001, 0.02, 0.5]), max_size=80), st.integers(1, 4))
def test_it_counts_the_episodes_that_the_alarm_begins(p_values: list[float], pending: int) -> None:
    config = AlarmConfig(p_value=0.01, pending_windows=pending, clear_windows=pending, cool_down_s=0.0)
    policy = AlarmPolicy.of(config, calibrator=Calibrator.fit(np.arange(999, dtype=np.float32)), length=4, hop=1)
    p = np.array(p_values)
    shares = np.ones((len(p), 1), np.float32)
    events, _ = Alarm(policy, ("all",), 10**9, "").update(np.arange(len(p)) * 10**9, p.astype(np.float32), p, shares)
    assert episodes(p, 0.01, pending) == sum(event.type == "anomaly_started" for event in events)


def test_the_process_remembers_for_as_long_as_it_says() -> None:
    found = remembering(200_000, np.random.default_rng(0), 20)
    assert abs(found.std() - 1) < 0.05
    assert abs(np.corrcoef(found[:-20], found[20:])[0, 1] - np.exp(-1)) < 0.05


def test_the_naive_one_breaks_and_ours_holds() -> None:
    rows = process("calm", 1)
    assert [row.times for row in rows] == [6.0, 1.0, 0.1]
    for row in rows:
        assert row.cells["naive"].low > row.cells["naive"].asked
        assert row.cells["budget"].low <= row.cells["budget"].asked
    assert rows[0].cells["counting"].of == 1
    assert rows[2].cells["counting"].of == 0, "nothing is promised that was not counted"


def test_the_table_marks_what_was_not_kept() -> None:
    cells = {method: cell(5.0, [5, 5]) for method in METHODS} | {"naive": cell(5.0, [50, 60]), "counting": cell(5.0, [])}
    *_, line = table([Row(name="calm", times=1, hours=1, cells=cells)])
    kept = "1.00 (0.48 to 1.84), kept 2/2"
    assert line == f"| calm | 1 in T | **11 (9.04 to 13), kept 0/2** | {kept} | – | {kept} | {kept} |"
