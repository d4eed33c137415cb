"""The chaos demo, live: a real broker and a real agent are killed, a port is pulled, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from deploy import chaos
from deploy.brokers import Mosquitto
from edge.bundle import Bundle
from edge.errors import SinkUnavailableError
from edge.signal import Float32, Samples

# `fades` is longer than what is forgiven reaches back, which is 48 windows of 16 samples: with windows of the fault's beginning
# it would be too wide, and refused.
FAST = chaos.Pace(calm=2.0, unplugged=2.0, stuck=6.0, well=0.0, seen=0.5, dead=1.0, quiet=2.0, cool_down=4.0, fades=9.0)


class Noise:
    """Ordinary noise at 100 Hz, and faults that are there and gone at once."""

    channels, rate_hz = CHANNELS, 100.0

    def __init__(self) -> None:
        self.position = 0
        self.faults: dict[str, float] = {}
        self._held: Float32 | None = None

    def inject(self, fault: str, severity: float = 1.0) -> None:
        self.faults[fault] = severity

    def next(self, n: int) -> Samples:
        x = normal(n, seed=self.position)
        x[1] += 6.0 * any(severity for fault, severity in self.faults.items() if fault != "stuck")
        if self.faults.get("stuck"):
            self._held = x[0, :1].copy() if self._held is None else self._held
            x[0] = self._held
        else:
            self._held = None
        time_ns = 10**18 + (self.position + np.arange(n, dtype=np.int64)) * 10_000_000
        self.position += n
        return Samples(time_ns, x)


@pytest.mark.slow
def test_everything_goes_wrong_and_nothing_is_lost(tmp_path: Path) -> None:
    out, rest = tmp_path / "out", tmp_path / "rest"
    out.mkdir()
    rest.mkdir()
    bundle = build(out / "demo.amiss")
    played = chaos.play(bundle, Noise(), Mosquitto(rest), rest, fault="bearing", pace=FAST)
    result = chaos.tell(*played, Bundle.open(bundle), out, {})
    assert result.failure is None, json.dumps(result.data["acts"], indent=1)
    assert [act["passed"] for act in result.data["acts"]] == [True] * 5
    assert (out / "chaos.png").read_bytes().startswith(b"\x89PNG")
    lines = result.lines()
    assert sum("✓" in line for line in lines) == 5
    end = result.data["acts"][-1]["figures"]
    assert end["accepted"] == end["delivered"] == end["heard"] == len(result.data["events"])


def demo(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "amiss", "demo", "--chaos", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_recording_cannot_be_unplugged(tmp_path: Path) -> None:
    done = demo("--recording", tmp_path / "x.csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--recording" in done.stderr


def test_without_a_mosquitto_it_says_what_to_install_before_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.brokers.shutil.which", lambda *_, **__: None)
    with pytest.raises(SinkUnavailableError, match="apt-get install -y mosquitto") as caught:
        chaos.on_simulation(out=tmp_path / "out", fault="bearing", seed=0)
    assert caught.value.exit_code == 69
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_the_simulated_machine(tmp_path: Path) -> None:
    done = demo("--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [act["passed"] for act in json.loads(done.stdout)["acts"]] == [True] * 5
