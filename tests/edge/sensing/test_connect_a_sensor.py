"""docs/howto/connect-a-sensor.md: its files are read by the program, and what it says about errors is what is said."""

import re
from pathlib import Path

import pytest

from edge import config as configs
from edge.config import DeviceConfig
from edge.errors import SourceLostError
from edge.operating.stream import REOPEN_S
from edge.sensing.ports import Ports
from edge.sensing.sources import port_source

TEXT = (Path(__file__).parents[3] / "docs/howto/connect-a-sensor.md").read_text("utf-8")
EXAMPLES = re.findall(r"(?ms)^```toml\n(.*?)^```", TEXT)


def read(tmp_path: Path, text: str) -> DeviceConfig:
    (tmp_path / "device.toml").write_text(text, "utf-8")
    return configs.load(tmp_path / "device.toml", environ={})


def test_the_shortest_file_comes_first() -> None:
    lines = [[line for line in text.splitlines() if line] for text in EXAMPLES]
    assert len(lines[0]) == min(map(len, lines)) == 5
    assert 'sensor = "' in EXAMPLES[0]


def test_there_is_an_example_for_every_format(tmp_path: Path) -> None:
    formats = {stream.format for text in EXAMPLES for stream in read(tmp_path, text).streams.values()}
    assert formats == {"frames", "csv", "json", "nmea", "modbus"}


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_a_file_that_works_but_for_the_sensor(text: str, tmp_path: Path) -> None:
    for stream in read(tmp_path, text).streams.values():
        channels = ["vibration_x", "current"]
        if stream.modbus is not None:
            channels = [register.channel for register in stream.modbus.registers]
        elif stream.format == "nmea":
            channels = ["wind_angle", "wind_speed"]
        elif stream.sensor is not None:
            channels = ["acceleration_x"]
        source = port_source(stream, channels, 5.0, ports=Ports(tmp_path, tmp_path))
        with pytest.raises(SourceLostError, match="no such port; there is none at all"):
            next(source.samples())


def test_the_figures_are_those_of_the_code() -> None:
    assert f"after half a second and then every {REOPEN_S[1]:g} s at most" in " ".join(TEXT.split())
    assert REOPEN_S[0] == 0.5
