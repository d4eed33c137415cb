"""docs/howto/my-alarm-is-wrong.md: each of its commands is typed, in that order, on a device with a real agent."""

import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from mosquitto import Mosquitto, until
from small_bundle import CHANNELS, build, normal
from test_agent import agent, events
from test_asking import back, running, types

from edge.config import parse
from edge.operating import episodes, requests
from edge.operating.control import ask
from edge.scoring import alerts, evidence, memory
from edge.sensing.recordings import Recording, find_recordings, read_recording, write_recording

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "howto" / "my-alarm-is-wrong.md").read_text()
COMMANDS = re.findall(r"^    ((?:sudo|amiss) .*)$", TEXT, re.MULTILINE)
(PYTHON,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EPISODE = "pump-7-5c1f0a9e-pump-4"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


def command(line: str, config: Path, episode: str) -> list[str]:
    """As it is typed on the device of these tests, whose stream is `s`, and with less patience."""
    line = line.replace("/etc/amiss/device.toml", str(config)).replace(EPISODE, episode).replace("stream=pump", "stream=s")
    words = shlex.split(line.replace("--seconds 600", "--seconds 2"))
    assert words[0] == "amiss", line
    at = ["--config", str(config)] if words[1] == "ask" else []
    return [sys.executable, "-m", "amiss", *words[1:], *at]


@pytest.mark.slow
def test_every_command_does_what_it_says(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    config, state = tmp_path / "device.toml", tmp_path / "state"
    (tmp_path / "pump.amiss").write_bytes(bundle.read_bytes())
    x = normal(20_000, seed=99)
    time_ns = 10**18 + np.arange(x.shape[1], dtype=np.int64) * 10_000_000
    write_recording(tmp_path / "normal.csv", Recording("normal", CHANNELS, time_ns, x))
    said: dict[str, str] = {}
    with running(tmp_path, bundle, mosquitto) as (listener, _, sensor, process):
        sensor.offset = np.array([[0], [6]], np.float32)
        listener.wait(lambda _: types(listener) == ["anomaly_started"])
        episode = events(listener)[0]["id"]
        time.sleep(0.5)
        left = list(COMMANDS)
        while (line := left.pop(0)) != "sudo systemctl stop amiss":
            if "rollback=true" in line:  # an hour has passed, so to say
                assert ask(state, "commission", b'{"stream": "s", "minutes": 0.3}').status == "ok"
                until(lambda: (state / "streams/s/heads/index.json").exists())
            done = subprocess.run(command(line, config, episode), capture_output=True, text=True, cwd=tmp_path)
            said[line] = done.stdout
            if line.startswith("amiss doctor"):  # what it thinks of this computer is another matter
                assert "ok       configuration" in done.stdout, done.stderr
            else:
                assert done.returncode == 0, (line, done.stderr)
        process.terminate()
        process.wait(15)
        while left:
            line = left.pop(0)
            if line == "sudo systemctl start amiss":
                with agent(config):
                    back(listener)
            elif line.startswith("sudo cp -r /var/lib/amiss/streams/pump/episodes "):
                subprocess.run(["cp", "-r", state / "streams/s/episodes", tmp_path], check=True)
                subprocess.run([sys.executable, "-c", PYTHON], check=True, cwd=tmp_path)
            else:
                done = subprocess.run(command(line, config, episode), capture_output=True, text=True, cwd=tmp_path)
                assert done.returncode == 0, (line, done.stderr)
                said[line] = done.stdout + done.stderr

    verdicts = [json.loads(text)["verdict"] for line, text in said.items() if "verdict=" in line]
    assert verdicts == ["false_alarm", "false_alarm", "undo", "confirmed", "new_normal"]
    assert events(listener)[1]["reason"] == "false alarm"
    assert "rolled back" in said["amiss ask commission stream=pump rollback=true"]
    assert len(json.loads(said["amiss ask snapshot stream=pump seconds=2"])["time_ns"]) > 0
    assert json.loads(said["amiss ask config"])["alarm"]["false_alarms"] is None, "taken back"
    assert len(read_recording(tmp_path / "suspicious.csv").time_ns) > 0
    assert (tmp_path / "scores.csv").read_text().startswith("time,score,p_value,alarm,vibration,current\n")
    made = [read_recording(path) for path in find_recordings([tmp_path / "forgiven"])]
    with np.load(state / f"streams/s/episodes/{episode}.npz") as arrays:
        kept = arrays["x"]
    assert len(made) == len(kept) > 0
    assert {one.rate_hz for one in made} == {100.0}
    assert sorted(float(one.x.sum()) for one in made) == pytest.approx(sorted(kept.sum(axis=(1, 2)).tolist()), rel=1e-5)
    (looked,) = (text for line, text in said.items() if "--dry-run" in line)
    assert f"{len(made) + 1} recordings" in looked


def test_no_command_is_overlooked() -> None:
    assert len(COMMANDS) > 15
    assert {line.split("verdict=")[1].split()[0] for line in COMMANDS if "verdict=" in line} == set(
        requests.Verdict.__args__  # type: ignore[attr-defined]
    )
    assert not re.search(r"^ {0,3}amiss |^```(sh|bash|console)", TEXT, re.MULTILINE), "written so that the test does not see it"


def test_the_settings_are_understood() -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    smallest = {"node": "pump-7", "bundle": "m", "streams": {"pump": {"port": "p"}}}
    assert parse(smallest | tomllib.loads(toml)).alarm.per_week == 1


def test_what_it_counts_is_what_the_code_has() -> None:
    defaults = parse({"node": "n", "bundle": "m", "streams": {"s": {"port": "p"}}}).alarm
    assert (memory.MOST, memory.MOST_EACH, memory.MOST_FORGIVEN, evidence.MOST) == (128, 16, 1 / 20, 24)
    assert (episodes.MOST, episodes.MOST_BYTES >> 20) == (100, 16)
    assert (defaults.settle_s, defaults.cool_down_s, defaults.longest_cool_down_s) == (600, 30, 3600)
    assert alerts.BURST + 24 == 36
    said = " ".join(TEXT.split())
    counts = "At most 128 prototypes", "up to sixteen windows", "ten minutes", "36 alerts", "(24 at most)", "A hundred episodes"
    for words in counts:
        assert words in said, words
