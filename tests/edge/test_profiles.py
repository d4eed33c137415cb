"""Profiles of sensors: what a stream gets from them, and what is said of one that is wrong."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from edge import config as configs
from edge import profiles
from edge.config import DeviceConfig
from edge.errors import ConfigError

OWN = """\
title = "A sensor of one's own"
rate_hz = 10
format = "csv"
baud = 9600
columns = ["time", "b", "a"]
clock = "sensor"
channels = [{ name = "a" }, { name = "b", unit = "V", meaning = "of the battery" }]
"""
METER = """\
title = "A meter"
rate_hz = 1
format = "modbus"
baud = 2400
channels = [{ name = "power", unit = "W" }]
[modbus]
parity = "none"
registers = [{ channel = "power", kind = "input", address = 12, type = "float32" }]
"""
SMALLEST = 'node = "n"\nbundle = "b.amiss"\n[streams.fan]\nsensor = "adxl345"\nport = "/dev/ttyUSB0"\n'


def load(folder: Path, text: str, environ: dict[str, str] | None = None, **overrides: object) -> DeviceConfig:
    (folder / "device.toml").write_text(text, "utf-8")
    return configs.load(folder / "device.toml", overrides, environ or {})


def own(folder: Path, text: str = OWN) -> profiles.Sensor:
    (folder / "Mine").mkdir(exist_ok=True)
    (folder / "Mine" / "sensor.toml").write_text(text, "utf-8")
    return profiles.load("Mine/sensor.toml", folder)


def test_the_smallest_file_names_node_model_sensor_and_port(tmp_path: Path) -> None:
    stream = load(tmp_path, SMALLEST).streams["fan"]
    sensor = profiles.load("adxl345")
    assert stream.columns == tuple(channel.name for channel in sensor.channels)
    assert (stream.baud, stream.format, stream.clock) == (sensor.baud, sensor.format, sensor.clock)
    assert (stream.sensor, stream.port) == ("adxl345", "/dev/ttyUSB0")


def test_flag_goes_before_environment_before_file_before_profile_before_default(tmp_path: Path) -> None:
    own(tmp_path, OWN + "silence_s = 1\n")
    text = SMALLEST.replace('"adxl345"', '"Mine/sensor.toml"')
    seen = []
    for said, environ, flags in (
        ("", {}, {}),
        ("silence_s = 2\n", {}, {}),
        ("silence_s = 2\n", {"AMISS_STREAMS__FAN__SILENCE_S": "3"}, {}),
        ("silence_s = 2\n", {"AMISS_STREAMS__FAN__SILENCE_S": "3"}, {"streams": {"fan": {"silence_s": 4}}}),
    ):
        stream = load(tmp_path, text + said, environ, **flags).streams["fan"]
        seen.append(stream.silence_s)
        assert stream.jitter_s == 0.25, "nobody says it"
        assert stream.columns == ("time", "b", "a")
    assert seen == [1, 2, 3, 4]


def test_the_environment_may_name_the_sensor(tmp_path: Path) -> None:
    environ = {"AMISS_STREAMS__FAN__SENSOR": "adxl345"}
    assert load(tmp_path, SMALLEST.replace('sensor = "adxl345"\n', ""), environ).streams["fan"].clock == "sensor"


def test_one_key_of_a_table_may_be_said_and_the_profile_says_the_others(tmp_path: Path) -> None:
    own(tmp_path, METER)
    text = SMALLEST.replace('"adxl345"', '"./Mine"') + "[streams.fan.modbus]\nunit = 7\n"
    modbus = load(tmp_path, text).streams["fan"].modbus
    assert modbus is not None
    assert (modbus.unit, modbus.parity, modbus.registers[0].address) == (7, "none", 12)


def test_who_sends_another_format_keeps_nothing_of_the_layout(tmp_path: Path) -> None:
    own(tmp_path, METER)
    stream = load(tmp_path, SMALLEST.replace('"adxl345"', '"./Mine"\nformat = "csv"')).streams["fan"]
    assert (stream.modbus, stream.columns, stream.baud) == (None, None, 2400)


def test_the_profile_may_say_the_port(tmp_path: Path) -> None:
    own(tmp_path, 'port = "usb:303a:1001"\n' + OWN)
    text = SMALLEST.replace('"adxl345"', '"./Mine"').replace('port = "/dev/ttyUSB0"\n', "")
    assert load(tmp_path, text).streams["fan"].port == "usb:303a:1001"
    with pytest.raises(ConfigError, match=r"streams\.fan: .*missing required field `port`"):
        load(tmp_path, SMALLEST.replace('port = "/dev/ttyUSB0"\n', ""))


@pytest.mark.parametrize(
    ("sensor", "says"),
    [
        ("adxl34", r"device\.toml: streams\.fan\.sensor: unknown sensor 'adxl34'; did you mean `adxl345`\? known: .*adxl345"),
        ("ADXL345", r"did you mean `adxl345`\?"),
        ("x", r"unknown sensor 'x'; known: .*adxl345"),
        ("./gone.toml", r"gone\.toml: no such sensor profile; docs/howto/add-a-sensor\.md"),
        ("Mine/sensor.toml", r"Mine/sensor\.toml: unknown key `titel`; did you mean `title`\?"),
    ],
)
def test_a_sensor_that_is_wrong_is_one_line(sensor: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "Mine").mkdir()
    (tmp_path / "Mine/sensor.toml").write_text(OWN.replace("title", "titel"))
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, SMALLEST.replace("adxl345", sensor))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rate_hz = 10", 'rate_hz = "10"', "rate_hz: expected `float`, got `str`"),
        ("rate_hz = 10", "rate_hz = 0", "rate_hz: expected `float` > 0"),
        ("rate_hz = 10\n", "", "missing required field `rate_hz`"),
        ("rate_hz = 10", "rate_hz = 10\nhop = 5", "`hop = 5` needs a `window`"),
        ("rate_hz = 10", 'rate_hz = 10\nname = "x"', "leave it out"),
        ('unit = "V"', 'units = "V"', r"unknown key `channels\[1\]\.units`; did you mean `unit`"),
        ('{ name = "a" }', '{ name = "c" }', "has c, which is not among `columns`"),
        ('{ name = "a" }', '{ name = "b" }', "each name once"),
        ('{ name = "a" }', '{ name = "time" }', "`time` is the sensor's clock"),
        ('{ name = "a" }', '{ name = "a,b" }', r": channels\[0\]\.name: expected `str` matching"),
        ('"csv"', '"cvs"', "format: invalid enum value 'cvs'"),
        ('format = "csv"', "format = ", "not valid TOML"),
    ],
)
def test_a_profile_that_is_wrong_is_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    assert old in OWN
    with pytest.raises(ConfigError, match=says) as caught:
        own(tmp_path, OWN.replace(old, new))
    assert str(caught.value).startswith(str(tmp_path / "Mine" / "sensor.toml"))
    assert "\n" not in str(caught.value)
    own(tmp_path)


def test_a_register_that_no_channel_is_and_a_channel_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has current, which is not among `modbus\.registers` \(power\)"):
        own(tmp_path, METER.replace('name = "power"', 'name = "current"'))


def test_the_schema_takes_a_stream_whose_profile_says_the_port_and_none_that_says_nothing() -> None:
    validator = jsonschema.Draft202012Validator(configs.schema())
    assert validator.is_valid(tomllib.loads(SMALLEST))
    assert validator.is_valid(tomllib.loads(SMALLEST.replace('port = "/dev/ttyUSB0"\n', "")))
    assert validator.is_valid(tomllib.loads(SMALLEST.replace('sensor = "adxl345"\n', "")))
    assert not validator.is_valid(
        tomllib.loads(SMALLEST.replace('port = "/dev/ttyUSB0"\n', "").replace('sensor = "adxl345"', "baud = 1"))
    )


def test_of_a_sensor_that_names_its_keys_the_clock_has_one_too(tmp_path: Path) -> None:
    sensor = own(tmp_path, OWN.replace('"csv"', '"json"').replace('columns = ["time", "b", "a"]\n', ""))
    assert sensor.stream()["columns"] == ["a", "b", "time"]


def test_all_that_are_known_are_right() -> None:
    known = profiles.sensors()
    assert "adxl345" in known
    assert [sensor.name for sensor in known.values()] == list(known)


def test_one_of_ones_own_is_called_as_its_folder_or_its_file_is(tmp_path: Path) -> None:
    assert own(tmp_path).name == "mine"
    (tmp_path / "Silo_2 (left).toml").write_text(OWN)
    assert profiles.load("./Silo_2 (left).toml", tmp_path).name == "silo-2-left"
    (tmp_path / "§.toml").write_text(OWN)
    assert profiles.load("./§.toml", tmp_path).name == "sensor"
