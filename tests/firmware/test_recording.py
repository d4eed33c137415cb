"""Profiles where people meet them: `amiss sensors`, `amiss record --sensor`, and docs/howto/add-a-sensor.md as it stands."""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from modbus_slave import Slave
from replay import expected
from test_sensors import ROOT, SENSORS, trouble

from deploy.machine import SerialPort
from edge import config as configs
from edge import profiles
from edge.sensing.recordings import read_recording

TEXT = (ROOT / "docs" / "howto" / "add-a-sensor.md").read_text()


def amiss(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "amiss", *map(str, words)], capture_output=True, text=True, cwd=cwd)


@contextmanager
def sending(port: Path, pieces: Iterator[bytes], every_s: float) -> Iterator[None]:
    """Something at the other end of the line."""
    line, over = SerialPort(port), threading.Event()

    def send() -> None:
        while not over.wait(every_s):
            line.write(next(pieces))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        line.close()


def test_the_sensors_that_are_known_are_listed() -> None:
    said = amiss("sensors")
    for sensor in profiles.sensors().values():
        assert re.search(
            rf"^{sensor.name} +{sensor.rate_hz:g} Hz +{sensor.baud} baud +{re.escape(sensor.title)}$", said.stdout, re.M
        )
    listed = json.loads(amiss("sensors", "--json").stdout)
    assert [one["name"] for one in listed] == list(profiles.sensors())
    assert listed[0]["channels"][0] == {
        "name": "acceleration_x", "unit": "m/s2", "meaning": "gravity and vibration along X, as printed on the board",
    }  # fmt: skip


def test_one_is_shown_with_its_wiring() -> None:
    said = amiss("sensors", "sct-013").stdout
    assert "  line      frames at 115200 baud, stamped by the sensor\n" in said
    assert "**Mains is deadly.**" in said
    assert "| tip | GP26 / A0 (31) | GPIO 36 |" in said
    assert json.loads(amiss("sensors", "sct-013", "--json").stdout)["rate_hz"] == 5


def test_one_that_is_not_known_is_a_line() -> None:
    done = amiss("sensors", "sct013")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("amiss: unknown sensor 'sct013'; did you mean `sct-013`? known: adxl345, ")
    assert done.stderr.count("\n") == 1


def test_the_capture_of_a_sensor_is_recorded_by_its_name(tmp_path: Path) -> None:
    capture = (SENSORS / "adxl345" / "capture.bin").read_bytes()
    frames = [frame + b"\0" for frame in capture.split(b"\0")]
    with sending(tmp_path / "tty", cycle(frames), 0.01):
        done = amiss("record", "--sensor", "adxl345", "--port", tmp_path / "tty", "--seconds", 1.5, "--out", tmp_path / "r.csv")
    assert done.returncode == 0, done.stderr
    found = read_recording(tmp_path / "r.csv")
    assert found.channels == ("acceleration_x", "acceleration_y", "acceleration_z")
    right = {column.tobytes() for column in expected(SENSORS / "adxl345", profiles.load("adxl345")).x.T}
    assert len(found.time_ns) > 100
    assert {column.tobytes() for column in found.x.T} <= right


def test_a_meter_is_asked_for_what_its_profile_says(tmp_path: Path) -> None:
    """Real requests to a slave that knows these registers and no other."""
    values = [230.1, 229.8, 231.0, 6.4, 6.5, 6.3, 1200.0, 1210.0, 1190.0]
    words = [word for value in values for word in struct.unpack(">HH", struct.pack(">f", value))]
    with Slave(tmp_path / "tty", registers={("input", at): word for at, word in enumerate(words)}):
        out = tmp_path / "r.csv"
        done = amiss("record", "--sensor", "sdm630", "--port", tmp_path / "tty", "--rate", 5, "--seconds", 1.5, "--out", out)
    assert done.returncode == 0, done.stderr
    found = read_recording(out)
    assert found.channels == tuple(channel.name for channel in profiles.load("sdm630").channels)
    assert np.allclose(found.x, np.array(values, np.float32)[:, None])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--sensor", "adxl34", "--port", "x"), 78, "did you mean `adxl345`?"),
        (("--sensor", "adxl345"), 2, "say either --port"),
        (("--port", "x"), 2, "or --sensor NAME"),
        (("--port", "x", "--columns", "a"), 2, "say --rate with how many samples come in a second; or --sensor NAME"),
        (("--sensor", "adxl345", "--config", "device.toml"), 2, "say either --port"),
        (("--sensor", "adxl345", "--port", "x", "--columns", "a,b"), 69, "x: no such port"),
    ],
)
def test_what_is_wrong_is_a_line(words: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    done = amiss("record", *words, "--out", tmp_path / "r.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert says in done.stderr


# docs/howto/add-a-sensor.md


def test_every_step_of_the_howto(tmp_path: Path) -> None:
    profile, device = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^    ((?:amiss|stty|timeout|python|mv) .*)$", TEXT, re.MULTILINE)
    port = tmp_path / "tty"
    folder = tmp_path / "firmware-configs/sensors/scale"
    for place in (tmp_path / "scale", folder):
        place.mkdir(parents=True)
        (place / "sensor.toml").write_text(profile)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "device.toml").write_text(device.replace("usb:0403:6001", str(port)))
    lines = (b"%05.2f,0\r\n" % (12 + 0.01 * i) if i % 7 else b"1\xff.5,0\r\n" for i in range(10**6))
    ran = []
    with sending(port, lines, 0.1):
        for line in commands:
            line = line.replace("/dev/ttyUSB0", str(port)).replace("usb:0403:6001", str(port))
            line = line.replace("--seconds 10", "--seconds 2").replace("timeout 5", "timeout 2")
            program, *_ = words = shlex.split(line)
            if "pytest" in words:
                continue  # what it does is below
            if program == "amiss":
                line = f"{sys.executable} -m {line}"
            elif program == "python":
                line = line.replace("python", sys.executable, 1)
            done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == (124 if program == "timeout" else 0), (line, done.stderr)
            ran.append(done.stdout)
    assert len(ran) == 7
    assert ran[0].startswith("scale: Scale under the silo\n  rate      10 Hz\n")
    found = read_recording(tmp_path / "scale.csv")
    assert found.channels == ("weight",)
    assert 11 < np.nanmin(found.x) <= np.nanmax(found.x) < 20
    stream = json.loads(ran[2])["streams"]["scale"]
    assert (stream["baud"], stream["columns"]) == (19200, ["weight", "status"]), "its own word first, then the profile's"
    assert configs.load(tmp_path / "device.toml", environ={}).streams["scale"].format == "csv"
    head = (folder / "expected.csv").read_text().splitlines()[0]
    assert re.fullmatch(r"# corrupt = [1-9]\d*, lost = 0", head), "a line of it was damaged"
    assert trouble(folder) == ["README.md is missing"], "all that is left to write"
    shutil.copy(SENSORS / "adxl345" / "README.md", folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\n9600 baud\n\n## Settings\n")
    assert trouble(folder) == []
