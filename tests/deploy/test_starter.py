"""A model for a machine that nobody has recorded: it learns the one that it is put on, and then finds its faults."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

from amiss import main
from deploy.starter import FEWEST, learning_minutes, usual_window
from edge.bundle import Bundle
from edge.config import AlarmConfig
from edge.errors import DataError
from edge.operating.commission import commission
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import CHANNELS, UNITS, simulate

RATE_HZ = 100.0


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command that people type, for a sensor of their own."""
    folder = tmp_path_factory.mktemp("starter")
    channels = "".join(f'[[channels]]\nname = "{name}"\nunit = "{UNITS[name]}"\n' for name in CHANNELS)
    (folder / "sensor.toml").write_text(f'title = "a pump"\nrate_hz = {RATE_HZ}\nwindow = 64\nformat = "csv"\n{channels}')
    words = ["amiss", "starter", "--sensor", str(folder / "sensor.toml"), "--out", str(folder / "pump.amiss")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, "argv", words)
        with contextlib.suppress(SystemExit):
            main()
    assert "learns its machine for 60 min" in said.getvalue()
    return folder / "pump.amiss"


def test_it_says_what_it_is(starter: Path) -> None:
    bundle = Bundle.open(starter)
    assert bundle.self_test().worst == 0
    assert bundle.manifest.learn_minutes == 60
    assert [channel.unit for channel in bundle.manifest.channels] == list(UNITS.values())
    assert bundle.head.usual is None, "what a sensor does when all is well is not known"
    assert bundle.head.reference is None
    bundle.policy(AlarmConfig(p_value=0.001))  # what people write into device.toml is no error before it has learned
    bundle.policy(AlarmConfig(false_alarms="1/week"))


def test_with_a_machine_of_its_own_it_finds_faults_and_is_silent_otherwise(starter: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "normal.csv", simulate(1200, rate_hz=RATE_HZ, seed=1))
    commission(starter, [tmp_path / "normal.csv"], tmp_path / "own.amiss")
    own = Bundle.open(tmp_path / "own.amiss")
    assert own.manifest.learn_minutes == 0
    assert own.head.usual is not None
    assert own.head.reference is not None

    def alerts(fault: str | None) -> list[float]:
        """When, in seconds; as `amiss device new` sets the alarm."""
        pipeline = own.pipeline(AlarmConfig(false_alarms="1/day"))
        played = simulate(120, rate_hz=RATE_HZ, seed=2, fault=fault, fault_at_s=60)
        events = [event for samples in played.samples() for event in pipeline.feed(samples)]
        return [event.time_ns / 1e9 for event in events if event.type == "anomaly_started"]

    assert alerts(None) == []
    for fault in ("bearing", "imbalance", "overload", "overheating", "misalignment"):
        assert 60 < min(alerts(fault), default=0) < 90, fault


def test_nobody_is_pushed_a_starter(starter: Path) -> None:
    from deploy.publish import examine

    with pytest.raises(DataError, match="is a starter, which knows no machine"):
        examine(starter, (), (), "")


@pytest.mark.parametrize(("rate_hz", "window"), [(0.1, 64), (1, 64), (100, 128), (400, 512), (3200, 512)])
def test_a_window_is_about_a_second_and_there_are_enough_to_learn_from(rate_hz: float, window: int) -> None:
    assert usual_window(rate_hz) == window
    assert learning_minutes(rate_hz, window // 4) * 60 * rate_hz >= FEWEST * window // 4
