"""Every folder of firmware-configs/sensors is a test: whole, right, and its capture gives what it says. Nothing to register."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import captures
import numpy as np
import pytest
from replay import Found, expected, replay

from edge import profiles
from edge.errors import ConfigError
from edge.profiles import Sensor

ROOT = Path(__file__).parents[2]
SENSORS = ROOT / "firmware-configs" / "sensors"
FOLDERS = sorted(path for path in SENSORS.iterdir() if path.is_dir())
SECTIONS = ("Parts", "Wiring", "Line", "Cautions")
MOST_OF_A_LINE = 0.9
"""More than that and a microcontroller that is late once does not catch up."""


def trouble(folder: Path) -> list[str]:
    """What is wrong with the folder of a sensor, one phrase each."""
    wrong = [f"{name} is missing" for name in ("sensor.toml", "README.md", "capture.bin", "expected.csv")
             if not (folder / name).is_file()]  # fmt: skip
    if wrong:
        return wrong
    try:
        sensor = profiles.load(f"{folder}/sensor.toml")
    except ConfigError as error:
        return [str(error)]
    text = (folder / "README.md").read_text("utf-8")
    wrong += [f"README.md has no section {title}" for title in SECTIONS if f"\n## {title}\n" not in text]
    if not (folder / f"{folder.name}.ino").is_file() and "\n## Settings\n" not in text:
        wrong.append(f"neither a sketch {folder.name}.ino, nor a section Settings in README.md for what is bought ready")
    wiring = text.partition("\n## Wiring\n")[2].partition("\n## ")[0]
    if not re.search(r"^\|[^\n]*\b[Pp]in\b[^\n]*\|\n\|[-|: ]+\|\n(\|.*\|\n){2,}", wiring, re.MULTILINE):
        wrong.append("README.md has no table of pins under Wiring")
    if f"{sensor.baud:,}".replace(",", "") not in text.replace(",", ""):
        wrong.append(f"README.md does not say why {sensor.baud} baud")
    capture = (folder / "capture.bin").read_bytes()
    try:
        said = expected(folder, sensor)
        for pieces in (1, 2, 7, 50, len(capture)):
            found = replay(sensor, capture, pieces, seed=pieces)
            wrong += [f"in {pieces} pieces: {phrase}" for phrase in differences(said, found)]
            if wrong:
                break
    except (AssertionError, ValueError) as error:
        wrong.append(str(error))
    return wrong


def differences(said: Found, found: Found) -> list[str]:
    wrong = []
    if (said.corrupt, said.lost) != (found.corrupt, found.lost):
        wrong.append(f"expected.csv says corrupt = {said.corrupt}, lost = {said.lost}; it was {found.corrupt}, {found.lost}")
    if len(said.places) != len(found.places):
        return [*wrong, f"expected.csv has {len(said.places)} samples, the capture {len(found.places)}; {found.trouble}"]
    if not np.array_equal(said.x, found.x, equal_nan=True):
        row = int(np.argmax((said.x != found.x) & ~(np.isnan(said.x) & np.isnan(found.x)), axis=1).max())
        wrong.append(f"sample {row}: expected.csv has {said.x[:, row].tolist()}, the capture {found.x[:, row].tolist()}")
    if not np.array_equal(said.places, found.places):
        row = int(np.argmax(said.places != found.places))
        wrong.append(f"sample {row} comes {found.places[row]} periods after the first, expected.csv says {said.places[row]}")
    return wrong


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_whole_and_its_capture_gives_what_it_says(folder: Path) -> None:
    assert trouble(folder) == []
    assert load(folder).name == folder.name


def load(folder: Path) -> Sensor:
    return profiles.load(f"{folder}/sensor.toml")


def taken(folder: Path) -> tuple[float, float]:
    """Which part of its line a sensor takes: as sensor.toml says in a comment, and by the capture, ten bits to a byte."""
    sensor = load(folder)
    said = re.search(rf"^baud = {sensor.baud} .*?([\d.]+) % of it", (folder / "sensor.toml").read_text(), re.MULTILINE)
    assert said, "sensor.toml says in a comment behind `baud` how much of it is taken"
    places = expected(folder, sensor).places
    seconds = (int(np.abs(np.diff(places)).sum()) + 1) / sensor.rate_hz
    return float(said[1]) / 100, 10 * len((folder / "capture.bin").read_bytes()) / seconds / sensor.baud


OTHERS_ON_THE_LINE = {"wind-nmea", "bme280"}
"""… in whose captures there is more than the sensor's samples, or time that was set back."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_line_carries_it_and_what_is_said_of_that_is_so(folder: Path) -> None:
    said, share = taken(folder)
    assert max(said, share) <= MOST_OF_A_LINE
    assert folder.name in OTHERS_ON_THE_LINE or share == pytest.approx(said, rel=0.15)


def test_the_captures_are_those_that_are_made() -> None:
    for name, make in captures.MADE.items():
        sensor = load(SENSORS / name)
        wire, found = make(sensor)
        assert wire == (SENSORS / name / "capture.bin").read_bytes(), (
            f"{name}: PYTHONPATH=tests python tests/firmware/captures.py"
        )
        assert found.table(sensor) == (SENSORS / name / "expected.csv").read_text("utf-8"), name


def test_most_of_them_are_damaged_and_something_is_lost() -> None:
    counts = [expected(folder, load(folder)) for folder in FOLDERS]
    assert sum(found.corrupt > 0 for found in counts) >= 8
    assert sum(found.lost > 0 for found in counts) >= 6


def test_what_the_issue_asks_for_is_there() -> None:
    assert len(FOLDERS) >= 9
    assert {sensor.format for sensor in profiles.sensors().values()} >= {"frames", "nmea", "modbus"}


# The controls: each part away or wrong, and it has to be told.


def copy(folder: Path, name: str = "adxl345") -> Path:
    shutil.copytree(SENSORS / name, folder / name)
    return folder / name


def spoil(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize("part", ["sensor.toml", "README.md", "capture.bin", "expected.csv", "adxl345.ino"])
def test_a_folder_without_one_of_its_parts_fails(part: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    assert trouble(folder) == []
    (folder / part).unlink()
    (phrase,) = trouble(folder)
    assert part in phrase


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("sensor.toml", "rate_hz", "rate", r"unknown key `rate`; did you mean `rate_hz`\?"),
        ("sensor.toml", "baud = 115200", "baud = 57600", "does not say why 57600 baud"),
        ("sensor.toml", "rate_hz = 800", "rate_hz = 400", "periods after the first"),
        ("README.md", "## Cautions", "## Notes", "no section Cautions"),
        ("README.md", "\n|---", "\n|xxx", "no table of pins"),
        ("expected.csv", "lost = 32", "lost = 16", "says corrupt = 1, lost = 16; it was 1, 32"),
        ("expected.csv", "\n0.00125,", "\n0.0025,", "sample 1 comes 1 periods after the first, expected.csv says 2"),
        ("expected.csv", "acceleration_y", "acceleration_w", "expected.csv has the columns"),
        ("expected.csv", "# corrupt", "#corrupt", "the first line of expected.csv says"),
    ],
)
def test_a_folder_that_is_wrong_is_told(file: str, old: str, new: str, says: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    spoil(folder / file, old, new)
    phrases = trouble(folder)
    assert any(re.search(says, phrase) for phrase in phrases), phrases


def test_a_line_that_is_too_slow_is_told(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    spoil(folder / "sensor.toml", "baud = 115200", "baud = 57600")
    assert taken(folder)[1] > 1


@pytest.mark.parametrize("name", ["adxl345", "wind-nmea", "sdm630"])
def test_one_digit_that_is_wrong_is_noticed(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path, name)
    lines = (folder / "expected.csv").read_text().splitlines()
    cells = lines[7].split(",")
    cells[1] = f"{float(cells[1]) + 0.1:.4f}"
    lines[7] = ",".join(cells)
    (folder / "expected.csv").write_text("\n".join(lines) + "\n")
    assert any("sample 5: expected.csv has" in phrase for phrase in trouble(folder))


def test_a_register_that_is_not_the_captures_is_noticed(tmp_path: Path) -> None:
    folder = copy(tmp_path, "sdm630")
    spoil(folder / "sensor.toml", "address = 16", "address = 18")
    assert any("the capture has no request" in phrase or "several requests" in phrase for phrase in trouble(folder))


def test_a_wheel_has_the_profiles_and_nothing_else_of_a_sensor(tmp_path: Path) -> None:
    """As setuptools sees it; tests/test_install.py installs one."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["edge"]
    shipped = {path for pattern in data if pattern.startswith("sensors") for path in (ROOT / "edge").glob(pattern)}
    assert {path.parent.name for path in shipped} == {folder.name for folder in FOLDERS}
    assert {path.name for path in shipped} == {"sensor.toml"}
    assert (ROOT / "edge" / "sensors").readlink() == Path("../firmware-configs/sensors")


def test_expected_is_made_for_a_sensor_of_ones_own(tmp_path: Path) -> None:
    """As docs/howto/add-a-sensor.md has it."""
    folder = copy(tmp_path)
    said = (folder / "expected.csv").read_text()
    done = subprocess.run([sys.executable, ROOT / "tests/firmware/replay.py", folder], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (said, "")
