"""Whatever stands in device.toml: a configuration, or one line that names file, key and cure. Never a traceback."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import config as configs
from edge.config import DeviceConfig
from edge.errors import AmissError, ConfigError

WHOLE: dict[str, Any] = tomllib.loads(
    """
node = "pump-7"
bundle = "pump.amiss"
state_dir = "/tmp/x"
outbox_max_bytes = 1000000
disk_budget_bytes_per_day = 10000000
[streams.pump]
port = "/dev/ttyUSB0"
baud = 9600
format = "csv"
columns = ["time", "a"]
clock = "sensor"
jitter_s = 0.1
silence_s = 5
[streams.meter]
port = "usb:0403:6001"
format = "modbus"
[streams.meter.modbus]
unit = 3
registers = [{ channel = "a", address = 4 }]
[mqtt]
host = "h"
port = 1
version = "3.1.1"
username = "u"
password = "p"
ack = "application"
batch_records = 5
tls = { ca = "ca.pem" }
[alarm]
false_alarms = "1/week"
confidence = 0.95
pending_windows = 3
cool_down_s = 5
[requests]
allow = ["ping"]
token = "secret"
[homeassistant]
prefix = "ha"
[web]
host = "0.0.0.0"
token = "0123456789"
[metrics]
port = 9000
"""
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1/week", "-1/week", "usb:1", "usb:0403:6001", "*", "${HOME}", "${NONE:?say it}", "modbus", "5", "/"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """To every value, and to every table and list."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path for key, value in inside for path in ((*at, key), *paths(value, (*at, key)))]


PATHS = paths(WHOLE)
CHANGES = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from(["set", "drop", "rename"]), VALUES, st.text(max_size=8)),
    min_size=1,
    max_size=4,
)


def changed(changes: list[tuple[tuple[Any, ...], str, Any, str]]) -> dict[str, Any]:
    data = copy.deepcopy(WHOLE)
    for path, what, value, name in changes:
        at: Any = data
        try:
            for key in path[:-1]:
                at = at[key]
            if what == "set":
                at[path[-1]] = value
            elif what == "drop":
                del at[path[-1]]
            elif isinstance(at, dict):
                at[name] = at.pop(path[-1])
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    return data


def check(data: Any) -> None:
    try:
        found = configs.parse(configs._substitute(data, {"HOME": "/root"}, "device.toml"), "device.toml")
    except ConfigError as error:
        said = str(error)
        assert said.startswith("device.toml: "), said  # which mistake it is differs with the example
        assert "\n" not in said, said
        assert len(said) < 2000
    else:
        assert isinstance(found, DeviceConfig)
        shown = configs.redacted(found)
        assert "secret" not in repr(shown["requests"])


def test_the_whole_of_it_is_right() -> None:
    assert isinstance(configs.parse(copy.deepcopy(WHOLE)), DeviceConfig)


@given(CHANGES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_mistake_is_one_line(changes: list[Any]) -> None:
    check(changed(changes))


def test_a_stream_whose_name_breaks_a_line_is_one_line() -> None:
    """Found by the long one: a stream that is wrong, and called a line break; or one of its keys is."""
    check(changed([(("streams", "pump"), "set", None, ""), (("streams", "pump"), "rename", None, "\n")]))
    check(changed([(("streams", "meter", "port"), "rename", None, ""), (("streams", "meter"), "rename", None, "\n")]))


@given(VALUES)
@settings(max_examples=100)
def test_anything_at_all_is_one_line(data: Any) -> None:
    check(data)


@pytest.mark.soak
@given(CHANGES)
@settings(max_examples=100_000, suppress_health_check=[HealthCheck.too_slow])
def test_any_mistake_is_one_line_for_long(changes: list[Any]) -> None:
    check(changed(changes))


@given(VALUES, st.sampled_from(["adxl345", "adxl34", "sdm630", "./x.toml", "", "\n", "a/\0", "/\n", "/tmp"]), CHANGES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_a_sensor_that_is_anything_is_one_line(value: Any, name: str, changes: list[Any]) -> None:
    """Filled from a profile, or from none that there is, and wrong besides."""
    data = changed(changes)
    streams = data.get("streams")
    for stream in streams.values() if isinstance(streams, dict) else ():
        if isinstance(stream, dict):
            stream["sensor"] = value if name == "" else name
    try:
        configs._fill(data, Path("device.toml"))
    except ConfigError as error:
        said = str(error)
        assert said.startswith("device.toml: streams."), said  # which mistake it is differs with the example
        assert "\n" not in said, said
    else:
        check(data)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_anything_is_one_line(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "device.toml"
    file.write_bytes(data)
    with pytest.raises(AmissError) as caught:
        configs.load(file, environ={})
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


KEYS = [path for path in PATHS if isinstance(path[-1], str) and not (path[0] == "streams" and len(path) == 2)]
"""Not the names of streams, which are for the user to choose."""


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ".".join(map(str, path)))
def test_a_key_that_is_misspelt_is_named_with_the_one_that_was_meant(path: tuple[Any, ...]) -> None:
    data = copy.deepcopy(WHOLE)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1] + "x"] = at.pop(path[-1])
    with pytest.raises(ConfigError, match="did you mean") as caught:
        configs.parse(data, "device.toml")
    assert f"{path[-1]}x" in str(caught.value)
    assert f"`{path[-1]}`" in str(caught.value)
