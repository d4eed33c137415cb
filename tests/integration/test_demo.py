"""The whole road, with the parts that ship: on real recordings, and on the simulated machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import skab

from amiss import main
from edge.bundle import Bundle
from edge.sensing.recordings import read_recording


def demo(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "amiss", "demo", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_real_pump_recordings_through_serial_port_and_mosquitto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the normal part alone, relabelled as though it held a fault, raises nothing, and the demo says so."""
    data = skab.folder()
    normal = skab.normal_parts(data, tmp_path / "normal")
    played = data / "valve1" / "0.csv"
    own = skab.own_part(data, "valve1/0.csv", tmp_path / "own.csv")
    fast = ["--speed", "60", "--out", tmp_path / "out", "--json"]
    done = demo("--recording", played, "--normal", normal, "--own", own, *fast)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    recording = read_recording(played)
    assert recording.label is not None
    episode = recording.time_ns[recording.label == 1]
    started = [event for event in result["events"] if event["type"] == "anomaly_started"]
    assert started
    assert episode[0] <= started[0]["stream_ns"] <= episode[-1], "the alert came outside the labelled episode"
    early = [event for event in started if event["stream_ns"] < episode[0]]
    assert early == [], "an alert in the normal part"
    assert started[0]["historical"] is False
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")

    def learned(normal: object, folder: Path, **_: object) -> tuple[Bundle, Any]:
        shutil.copy(tmp_path / "out" / "demo.amiss", folder / "demo.amiss")
        return Bundle.open(folder / "demo.amiss"), SimpleNamespace(precision="as before", parameters=0, table=dict)

    monkeypatch.setattr("deploy.demo._learn", learned)  # a minute that would bring the same model
    lines = played.read_text().splitlines()[:500]
    lied = [lines[0], *lines[1:300], *(line[: line.index(";0.0;0.0")] + ";1.0;0.0" for line in lines[300:])]
    (tmp_path / "lie.csv").write_text("\n".join(lied) + "\n")
    lie = ["--recording", tmp_path / "lie.csv", "--normal", normal, "--own", own, "--speed", "60", "--out", tmp_path / "lied"]
    monkeypatch.setattr("sys.argv", ["amiss", "demo", *map(str, lie)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "no alert came" in capsys.readouterr().err.splitlines()[-1]


def test_a_demo_without_anything_normal_is_a_usage_mistake(tmp_path: Path) -> None:
    done = demo("--recording", tmp_path / "x.csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--normal" in done.stderr


@pytest.mark.slow
def test_the_simulated_machine(tmp_path: Path) -> None:
    done = demo("--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["events"][0]["type"] == "anomaly_started"
    assert result["device_equals_offline"].startswith("yes")
    assert "and stays; 0 alerts" in result["better_model"]
    assert result["bad_export"].startswith("never ran: model 2 is not taken: ")
    assert "model 3 was taken back: machine: what it says of" in result["breaks_in_service"]
    assert "; the alert came " in result["breaks_in_service"]
