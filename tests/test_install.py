"""What a device gets from `pip install .`: everything that `amiss run` needs and nothing of the training stack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from edge.sensing.recordings import Recording, write_recording

REPOSITORY = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "onnx",
    "onnxscript",
    "scipy",
    "pandas",
    "scikit-learn",
    "matplotlib",
    "iotcore",
    "sympy",
    "pydantic",
    "pyarrow",
}


@pytest.mark.slow
def test_a_device_install_is_light_and_works(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: str | Path) -> str:
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt", REPOSITORY)
    installed = {entry["name"].lower() for entry in json.loads(call(python, "-m", "pip", "list", "--format", "json"))}
    assert {"amiss", "numpy", "onnxruntime", "paho-mqtt", "pyserial"} <= installed
    assert installed.isdisjoint(HEAVY)
    assert "adxl345" in call(python, "-c", "from edge.profiles import sensors; print(*sensors())")
    (folder,) = (tmp_path / "venv").glob("lib/python*/site-packages/edge/sensors")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"sensor.toml"}, "no sketch and no capture"
    assert "raspberry-pi-4" in call(python, "-c", "from quantize.target import boards; print(*boards())")

    bundle = build(tmp_path / "small.amiss", windows=200)
    recording = Recording("r", CHANNELS, 10**18 + 10_000_000 * np.arange(100), normal(100))
    write_recording(tmp_path / "r.csv", recording)
    amiss = tmp_path / "venv" / "bin" / "amiss"
    assert "golden scores within" in call(amiss, "inspect", bundle, "--verify")
    call(amiss, "score", bundle, "r.csv", "--out", "scores.csv")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 101
    done = subprocess.run(
        [amiss, "train", "--data", "r.csv", "--out", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 69
    assert "pip install 'amiss[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
