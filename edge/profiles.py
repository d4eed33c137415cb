"""What a sensor sends, and how: the settings of its wire, and profiles that hold them ready for sensors that are known.

A profile is a file, `firmware-configs/sensors/NAME/sensor.toml`, beside the sensor's wiring, its sketch, a capture and what the
decoder must make of it. Here they are in `edge/sensors`, a link in the repository and a copy of the profiles in a wheel.
`sensor = "NAME"` in a stream of device.toml takes from there whatever the stream does not say itself.
"""

import difflib
import importlib.resources
import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import ConfigError
from edge.tables import converted, printable, refuse_unknown_keys

Positive = Annotated[float, Meta(gt=0)]


class RegisterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value among a Modbus device's registers."""

    channel: Annotated[str, Meta(min_length=1)]
    """The model's channel that it is; others are not read."""
    address: Annotated[int, Meta(ge=0, le=65535)]
    """As on the wire, from 0: what manuals call holding register 40001, or input register 30001, is 0."""
    kind: Literal["holding", "input"] = "holding"
    type: Literal["int16", "uint16", "int32", "uint32", "float32"] = "int16"
    """Those of 32 bits take this address and the next."""
    word_order: Literal["big", "little"] = "big"
    """Which half of 32 bits stands first: the high one (`big`, as the standard has it) or the low one."""
    scale: float = 1.0
    """Value = what is in the register × scale."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"`scale = {self.scale:g}` leaves nothing of the value; leave it out for the plain number")
        if self.address + self.words > 65536:
            raise ValueError(f"`address = {self.address}` is the last, and {self.type} takes two; take one before it")

    @property
    def words(self) -> int:
        return 2 if self.type.endswith("32") else 1


class ModbusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Modbus RTU device; it is asked for a sample as often as the model wants one. Needs `pip install 'amiss[modbus]'`."""

    registers: Annotated[tuple[RegisterConfig, ...], Meta(min_length=1)]
    unit: Annotated[int, Meta(ge=1, le=247)] = 1
    """Its address on the bus (slave id)."""
    parity: Literal["even", "odd", "none"] = "even"
    """`even` is the standard's, `none` that of many devices."""
    stopbits: Literal[1, 2] = 1
    timeout_s: Annotated[float, Meta(gt=0, le=5)] = 0.2
    """How long an answer may take, beyond the time that it is on the wire."""
    pause_s: Annotated[float, Meta(ge=0, le=5)] = 0.0
    """Least silence before a request. The 3.5 characters of the standard are always kept."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes over a serial port."""

    baud: Annotated[int, Meta(gt=0)] = 115200
    format: Literal["frames", "csv", "json", "nmea", "modbus"] = "frames"
    """`frames`: COBS + CRC-32 binary frames; `csv`: one line of numbers a sample; `json`: one object a sample; `nmea`:
    one sentence `$…*hh` a sample; `modbus`: a Modbus RTU device, which has to be asked."""
    columns: tuple[str, ...] | None = None
    """Names of the values in the order they come on the wire (csv, frames), or keys (json). `None`: the model's channels in
    its order. Names that the model does not know are read and dropped; `time` is the sensor's own clock in seconds. Of a
    sentence (nmea) the address comes first, as in `"$WIMWV"`, and `"=M"` is a field that has to be `M`."""
    clock: Literal["arrival", "sensor"] = "arrival"
    """Whose clock stamps the samples: this host's on arrival, or the sensor's own (frames, or a `time` column)."""
    jitter_s: Annotated[float, Meta(ge=0)] = 0.25
    """With `clock = "arrival"`: how late the host may notice a sample before a hole is inferred."""
    silence_s: Positive = 10.0
    """Without a sample for this long the stream counts as offline and the port is opened again."""
    modbus: ModbusConfig | None = None
    """With `format = "modbus"`: which registers to read, and from whom."""

    def __post_init__(self) -> None:
        if self.format == "nmea" and not (self.columns and self.columns[0].startswith("$")):
            raise ValueError('`format = "nmea"` needs `columns`: address and fields, as in ["$WIMWV", "angle", "=R"]')
        if self.format != "modbus":
            if self.modbus is not None:
                raise ValueError(f'`modbus` says what to read, but `format = "{self.format}"`; set `format = "modbus"`')
        elif self.modbus is None:
            raise ValueError(
                '`format = "modbus"` needs a table `modbus` with `registers`; there is one in docs/howto/connect-a-sensor.md'
            )
        elif self.columns is not None:
            raise ValueError("`columns` is for sensors that send by themselves; name each `channel` in `modbus.registers`")
        elif self.clock == "sensor":
            raise ValueError('a Modbus device has no clock of its own; leave `clock = "sensor"` out')


STAMPED = {"arrival": "on arrival", "sensor": "by the sensor"}


class SensorChannel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value of a sample."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .-]*$")]
    """As recordings and models call it."""
    unit: str = ""
    """`""`: a plain number."""
    meaning: str = ""
    """In words, where the name does not say it all."""


class Sensor(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """sensor.toml"""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """That of the folder it is in, or of a file that is not called sensor.toml."""
    title: Annotated[str, Meta(min_length=1)]
    """For a person."""
    channels: Annotated[tuple[SensorChannel, ...], Meta(min_length=1, max_length=255)]
    """What it measures. Without `columns` they come in this order."""
    rate_hz: Positive
    """Samples a second."""
    port: str | None = None
    """Where it is found usually, for a sensor that is always the same USB device."""
    window: Annotated[int, Meta(ge=2)] | None = None
    """Samples to judge at once, for who trains a model. `None`: found from the recordings."""
    hop: Annotated[int, Meta(ge=1)] | None = None
    """… every so many samples. `None`: as the recipe says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [channel.name for channel in self.channels]
        if "time" in names or len(set(names)) < len(names):
            raise ValueError(f"`channels` ({', '.join(names)}): each name once, and `time` is the sensor's clock and none")
        sent = self.columns if self.modbus is None else [register.channel for register in self.modbus.registers]
        if absent := [name for name in names if sent is not None and name not in sent]:
            where = "columns" if self.modbus is None else "modbus.registers"
            raise ValueError(f"`channels` has {', '.join(absent)}, which is not among `{where}` ({', '.join(sent or ())})")
        if self.hop is not None and (self.window is None or self.hop > self.window):
            raise ValueError(f"`hop = {self.hop}` needs a `window` of at least as many samples")

    def stream(self) -> dict[str, Any]:
        """What it says of a stream, as plain data."""
        data: dict[str, Any] = {key: msgspec.to_builtins(getattr(self, key)) for key in Wire.__struct_fields__}
        data["columns"] = data["columns"] or (None if self.modbus else self._order())
        return {key: value for key, value in {**data, "port": self.port}.items() if value is not None}

    def measures(self) -> str:
        """Its channels in a line, those of one unit together."""
        return "; ".join(
            ", ".join(channel.name for channel in run) + (f" [{unit}]" if unit else "")
            for unit, run in itertools.groupby(self.channels, key=lambda channel: channel.unit)
        )

    def lines(self) -> list[str]:
        """For a person."""
        wide = max(len(channel.name) for channel in self.channels)
        window = f"{self.window} samples" + (f" every {self.hop}" if self.hop else "") if self.window else "as recordings say"
        return [
            f"{self.name}: {self.title}",
            f"  rate      {self.rate_hz:g} Hz",
            f"  line      {self.format} at {self.baud} baud, stamped {STAMPED[self.clock]}",
            f"  window    {window}",
            *([f"  port      {self.port}"] if self.port else []),
            *(
                f"  {'channels' if not i else '':8}  " + f"{one.name:{wide}}  {one.unit or '-':6} {one.meaning}".rstrip()
                for i, one in enumerate(self.channels)
            ),
        ]

    def _order(self) -> list[str]:
        time = ["time"] if self.format == "json" and self.clock == "sensor" else []  # by name, so nobody has to say where
        return [*(channel.name for channel in self.channels), *time]


def sensors() -> dict[str, Sensor]:
    """All that are known, by name. Raises `ConfigError` for a file that is wrong."""
    return {name: load(name) for name in _names()}


def load(name_or_path: str, beside: Path = Path()) -> Sensor:
    """A sensor that is known by its name; or, with a `/` in it or `.toml` at its end, of a file, maybe relative to `beside`.

    Raises `ConfigError` in one line: what may have been meant, or the file, the key and the cure.
    """
    file, where, name = _place(name_or_path, beside)
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such sensor profile; docs/howto/add-a-sensor.md tells how to write one") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except (OSError, ValueError) as error:  # it may be no text, or the path none
        raise ConfigError(f"{where}: cannot be read: {error}") from None
    return parse(data, name, where)


def wiring(name_or_path: str, beside: Path = Path()) -> str | None:
    """How it is wired, in words, where the profile has its folder beside it: in the repository, not in a wheel."""
    file = _place(name_or_path, beside)[0]
    try:
        return (file.parent / "README.md").read_text("utf-8")
    except (OSError, ValueError):
        return None


def parse(data: Any, name: str, where: str) -> Sensor:
    """Validated profile from plain dicts; raises `ConfigError`, naming `where`, key and cure."""
    refuse_unknown_keys(data, Sensor, where, "")
    if "name" in data:
        raise ConfigError(f"{where}: name: a sensor is called as its folder is; leave it out")
    return converted({**data, "name": name}, Sensor, where)


def fill(stream: Mapping[str, Any], sensor: Sensor) -> dict[str, Any]:
    """A stream's own settings, and below them those of a profile, table by table."""
    below = sensor.stream()
    if stream.get("format", sensor.format) != sensor.format:  # then the profile's layout is one of something else
        below.pop("modbus", None)
        below.pop("columns", None)
    return _over(below, stream)


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: (below[key], value) for key, value in above.items() if key in below}
    tables = {
        key: _over(under, over) for key, (under, over) in both.items() if isinstance(under, dict) and isinstance(over, dict)
    }
    return {**below, **above, **tables}


def _folder() -> Path:
    return Path(str(importlib.resources.files("edge"))) / "sensors"


def _names() -> list[str]:
    return sorted(file.parent.name for file in _folder().glob("*/sensor.toml"))


def _place(name_or_path: str, beside: Path) -> tuple[Path, str, str]:
    """The file of a profile, what to call it in a message, and the sensor's name."""
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        file = beside / name_or_path
        if file.is_dir():
            file /= "sensor.toml"
        called = file.absolute().parent.name if file.name == "sensor.toml" else file.stem
        return file, printable(str(file)), re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-") or "sensor"
    names = _names()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path.lower(), names, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise ConfigError(
            f"unknown sensor {name_or_path!r}; {hint}known: {', '.join(names)}; one of your own: ./FOLDER/sensor.toml"
        )
    return _folder() / name_or_path / "sensor.toml", f"sensors/{name_or_path}/sensor.toml", name_or_path
