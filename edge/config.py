"""device.toml → frozen structs. Defaults live here and nowhere else.

Order: flag > environment > file > default. `AMISS_MQTT__PASSWORD=…` sets `mqtt.password`; `AMISS_MQTT__PASSWORD_FILE=…`
reads it from a file; inside the file `${VAR}` and `${VAR:?message}` are replaced by the environment's value.
"""

import difflib
import functools
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from edge.errors import ConfigError, NoInputError

T = TypeVar("T")

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="lower case letters, digits and dashes")]
Positive = Annotated[float, Meta(gt=0)]
WEEK_H = 168.0
HOURS = {"hour": 1.0, "day": 24.0, "week": WEEK_H, "month": 730.5}
MOST_PER_WEEK = 60 * WEEK_H


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


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sensor on one serial port."""

    port: Annotated[str, Meta(min_length=1)]
    """Best a name that lasts, looked up whenever the port is opened: `usb:VID:PID` or `usb:VID:PID:SERIAL`, or a device file,
    as in /dev/serial/by-id/…; with `*` in it whatever file fits, if only one does. `amiss check` says what there is."""
    baud: Annotated[int, Meta(gt=0)] = 115200
    format: Literal["frames", "csv", "json", "modbus"] = "frames"
    """`frames`: COBS + CRC-32 binary frames; `csv`: one line of numbers a sample; `json`: one object a sample; `modbus`: a
    Modbus RTU device, which has to be asked."""
    columns: tuple[str, ...] | None = None
    """Names of the values in the order they come on the wire (csv, frames), or keys (json). `None`: the model's channels in
    its order. Names that the model does not know are read and dropped; `time` is the sensor's own clock in seconds."""
    clock: Literal["arrival", "sensor"] = "arrival"
    """Whose clock stamps the samples: this host's on arrival, or the sensor's own (frames, or a `time` column)."""
    jitter_s: Annotated[float, Meta(ge=0)] = 0.25
    """With `clock = "arrival"`: how late the host may notice a sample before a hole is inferred."""
    silence_s: Positive = 10.0
    """Without a sample for this long the stream counts as offline and the port is opened again."""
    modbus: ModbusConfig | None = None
    """With `format = "modbus"`: which registers to read, and from whom."""

    def __post_init__(self) -> None:
        if self.port.startswith("usb:") and not USB_PORT.fullmatch(self.port):
            raise ValueError(
                f'`port = "{self.port}"` is neither usb:VID:PID nor usb:VID:PID:SERIAL; VID and PID are four hexadecimal '
                "digits each, as lsusb prints them"
            )
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


USB_PORT = re.compile(r"usb:([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::(.+))?")
"""`port` by what the device says of itself: vendor, product, and its serial number."""


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What computes the model."""

    provider: Literal["cpu", "auto", "cuda", "tensorrt", "openvino"] = "cpu"
    """What ONNX Runtime hands the model to; `auto`: `cuda` where there is one. Where it is absent, cannot be started, takes
    nothing of the model upon itself or computes something else, the CPU does it as before, and a line of the log says why."""


class AlarmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a strange score becomes an alert. Durations are in windows because windows are what is judged."""

    false_alarms: str | float | None = None
    """How many alerts without a cause are bearable: `"1/week"`, or per hour, day or month; a number is per week. Then the
    threshold is found from the model's normal running, and `amiss check` says what it can promise."""
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.9
    """With which that is promised."""
    p_value: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Instead of `false_alarms`: windows at or below it count as strange. Neither: 0.001, or the rarest that the model's
    calibration can tell."""
    pending_windows: Annotated[int, Meta(ge=1)] | None = None
    """Strange windows in a row before an alert. `None`: as many as it takes until two of them share no sample."""
    clear_windows: Annotated[int, Meta(ge=1)] | None = None
    """Ordinary windows in a row before it is over. `None`: like `pending_windows`."""
    clear_ratio: Annotated[float, Meta(ge=1)] = 3.0
    """Hysteresis: a window is ordinary again when its p-value exceeds `p_value × clear_ratio`."""
    bridge_s: Annotated[float, Meta(ge=0)] | None = None
    """A pause of the sensor up to this long does not break a row of windows; 0: every pause does. `None`: where a sensor sleeps
    between a few windows, so that no row could ever be long enough, twice its usual pause; elsewhere every pause does."""
    cool_down_s: Annotated[float, Meta(ge=0)] = 30.0
    """No new alert of the same cause (the channel blamed most) this soon after the last was over; an anomaly that persists is
    raised when the time has passed. Doubles each time the cause comes back within a day. 0: no bound on the alerts of a day."""
    longest_cool_down_s: Positive = 3600.0
    """The cool-down doubles up to this. Over all causes, 12 alerts may come at once and one more each time this has passed."""
    update_every_s: Positive = 60.0
    """An alert that lasts is repeated after this time, then after twice as long, and so on,"""
    longest_update_s: Positive = 86400.0
    """up to this."""
    settle_s: Positive = 600.0
    """An anomaly that has not changed for this long (and for 50 windows) is asked about: is that how it runs from now on?"""

    def __post_init__(self) -> None:
        if self.per_week is not None and self.p_value is not None:
            raise ValueError("false_alarms and p_value are two ways to set the same threshold; leave out one of them")

    @property
    def per_week(self) -> float | None:
        """`false_alarms` as a number; raises ValueError for what is none."""
        if self.false_alarms is None:
            return None
        found = re.fullmatch(
            r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:(?:/|per|an?)\s*(hour|day|week|month)\s*)?", str(self.false_alarms)
        )
        count = float(found[1]) * WEEK_H / HOURS[found[2] or "week"] if found else math.nan
        if not 0 < count <= MOST_PER_WEEK:
            raise ValueError(
                f"false_alarms = {self.false_alarms!r}: expected how many alerts without a cause are bearable, as in "
                '"1/week" or "2/day" (hour, day, week, month), more than 0 and at most 60/hour'
            )
        return count


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ca: str | None = None
    """File with the authorities to trust. `None`: those of the system."""
    cert: str | None = None
    key: str | None = None
    """Client certificate and key, when the broker asks for them."""


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "localhost"
    port: Annotated[int, Meta(gt=0, lt=65536)] | None = None
    """`None`: 8883 with TLS, 1883 without."""
    version: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password: str | None = None
    """Better in AMISS_MQTT__PASSWORD_FILE than here."""
    tls: TlsConfig | None = None
    """Present (also when empty): the connection is encrypted and the broker's certificate is checked."""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    state_every_s: Positive = 1.0
    """`<stream>/state` is published at most this often."""
    health_every_s: Positive = 60.0
    ack: Literal["broker", "application"] = "broker"
    """When an alert may be forgotten: when the broker has it, or when the application that receives it has said so
    (`request/ack`). Until then it is sent again and again, at growing intervals."""
    batch_records: Annotated[int, Meta(ge=1, le=50)] = 1
    """Up to so many records that wait leave in one message, on `<stream>/events`; never alerts. 1: each alone."""


class RequestsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What others may ask of this device, over MQTT and on its page."""

    allow: tuple[str, ...] | None = None
    """Verbs that are answered over MQTT; `[]`: none. `None`: all. Who may ask at all is the broker's to say (its ACL)."""
    token: str | None = None
    """Demanded in the field `token` of every request that changes something. Better in AMISS_REQUESTS__TOKEN_FILE than here."""


class HomeAssistantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Present (also when empty): this device shows up in Home Assistant by itself."""

    prefix: Annotated[str, Meta(pattern=r"^[^/+#\x00][^+#\x00]*[^/+#\x00]$")] = "homeassistant"
    """Of its discovery topics, as set in Home Assistant. No `+` or `#`, and no `/` at either end."""


class WebConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Present (also when empty): the device has a page of its own."""

    host: str = "127.0.0.1"
    """`0.0.0.0` for everybody on the network; then a token is needed for what changes something."""
    port: Annotated[int, Meta(gt=0, lt=65536)] = 8642
    token: str | None = None
    """Asked for before anything is changed. Better in AMISS_WEB__TOKEN_FILE than here."""
    names: tuple[str, ...] = ()
    """Further names that the page is called by, of a proxy in front of it say. Its address, this host's name and the node's,
    with and without `.local`, need not be named."""

    def __post_init__(self) -> None:
        if self.token is None and not _is_loopback(self.host):
            raise ValueError(
                f"`host = {self.host!r}` can be reached from other computers, and anybody there could silence alerts; set "
                '`token` (best in AMISS_WEB__TOKEN_FILE), or host = "127.0.0.1"'
            )
        if self.token is not None and not re.fullmatch(r"[!-~]{8,256}", self.token):
            raise ValueError("`token` needs 8 to 256 letters, digits and signs, no spaces; `openssl rand -hex 16` makes one")


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Present (also when empty): Prometheus may read http://host:port/metrics."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(gt=0, lt=65536)] = 9642


REPOSITORY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a repository of models may be called on a broker."""


class UpdateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Present: new models are taken from a signed repository. Needs `pip install 'amiss[update]'`."""

    repository: Annotated[str, Meta(min_length=1)]
    """`https://…`, a folder (as `/media/usb/models`), or `mqtt:NAME` for the one that `[mqtt]`'s broker keeps."""
    root: str = "/etc/amiss/root.json"
    """The first root of trust, brought by hand and never over the network. A relative path is looked up beside this file."""
    group: Annotated[str, Meta(max_length=200)] = ""
    """Models may be for some groups of devices; this one's."""
    ca: str | None = None
    """File with the authorities that the repository's HTTPS certificate may be of. `None`: those of the system."""
    poll_every_s: Annotated[float, Meta(ge=10)] = 3600.0
    max_bytes: Annotated[int, Meta(ge=65536, le=278 * 1024 * 1024)] = 32 * 1024 * 1024
    """A larger model is not fetched."""
    deadline_s: Annotated[float, Meta(ge=5, le=3600)] = 120.0
    """For all of a check, and for all of a download; a download that it cuts goes on from there the next time."""

    trial_minutes: Annotated[float, Meta(gt=0, le=10_000)] = 30.0
    """Of judged signal that a new model is tried on at least; while there is less, it waits."""
    probation_hours: Annotated[float, Meta(gt=0, le=720)] = 24.0
    """Of judged signal, for which a new model is watched before it stays."""
    record_hours: Annotated[float, Meta(gt=0, le=168)] = 6.0
    """Of each stream, on the device's own disk: what a new model is tried on before it is trusted."""
    record_max_bytes: Annotated[int, Meta(ge=65536)] = 64 * 1024 * 1024
    record_bytes_per_day: Annotated[int, Meta(ge=65536)] = 128 * 1024 * 1024
    """Written for that, for each stream. What it does not pay for is passed over in stretches."""

    def __post_init__(self) -> None:
        kind, colon, rest = self.repository.partition(":")
        if kind == "mqtt" and not REPOSITORY_NAME.fullmatch(rest):
            raise ValueError(
                f'`repository = "{self.repository}"`: after mqtt: comes a name of lower case letters, digits and dashes'
            )
        if colon and kind not in ("mqtt", "https", "http", "file"):
            raise ValueError(f'`repository = "{self.repository}"` is neither https://…, nor mqtt:NAME, nor a folder')


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of device.toml."""

    node: Name
    """Name of this device; part of every topic."""
    bundle: str
    """The model: a .amiss file. A relative path is looked up beside the configuration file."""
    streams: Annotated[dict[Name, StreamConfig], Meta(min_length=1)]
    mqtt: MqttConfig = MqttConfig()
    alarm: AlarmConfig = AlarmConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    requests: RequestsConfig = RequestsConfig()
    homeassistant: HomeAssistantConfig | None = None
    web: WebConfig | None = None
    metrics: MetricsConfig | None = None
    update: UpdateConfig | None = None
    state_dir: str | None = None
    """Where outbox and models live. `None`: $STATE_DIRECTORY, else $XDG_STATE_HOME/amiss, else ~/.local/state/amiss."""
    outbox_max_bytes: Annotated[int, Meta(ge=65536)] = 64 * 1024 * 1024
    """Undelivered records are kept up to this size; then the oldest go first."""
    disk_budget_bytes_per_day: Annotated[int, Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    """What the outbox may write on a day (UTC), to spare the card. Over it telemetry is dropped and counted, alerts never."""

    def state_path(self, environ: Mapping[str, str] = os.environ) -> Path:
        if self.state_dir:
            return Path(self.state_dir)
        if systemd := environ.get("STATE_DIRECTORY"):
            return Path(systemd.split(":")[0])
        return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "amiss"


def load(path: Path, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> DeviceConfig:
    """Read device.toml.

    Raises `NoInputError` when there is no such file and `ConfigError`, naming file, key and cure, when it is wrong.
    """
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    data = _substitute(data, environ, str(path))
    _merge(data, _from_environment(environ, path))
    _merge(data, overrides or {})
    config = parse(data, str(path))
    if not Path(config.bundle).is_absolute():
        config = msgspec.structs.replace(config, bundle=str(path.parent / config.bundle))
    if config.update is not None:  # an absolute path stays what it is
        update = msgspec.structs.replace(config.update, root=str(path.parent / config.update.root))
        config = msgspec.structs.replace(config, update=update)
    return config


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise NoInputError(
            f"{path}: no such configuration file; `amiss config show --example` prints one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def load_mqtt(path: Path | None, broker: str | None, environ: Mapping[str, str] = os.environ) -> MqttConfig:
    """`[mqtt]` alone, for who publishes and is no device: of a file, or of HOST[:PORT], with what the environment says.

    Raises `NoInputError` and `ConfigError` like `load`.
    """
    more: dict[str, Any] = {}
    if broker:
        host, _, port = broker.rpartition(":") if re.search(r":\d+$", broker) else (broker, "", "")
        more = {"host": host.strip("[]"), **({"port": int(port)} if port else {})}
    return _section("mqtt", MqttConfig, path, environ, more)


def load_token(path: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """`requests.token` alone, for who asks devices for something. Raises `NoInputError` and `ConfigError` like `load`."""
    return _section("requests", RequestsConfig, path, environ, {}).token


def _section(name: str, kind: type[T], path: Path | None, environ: Mapping[str, str], more: dict[str, Any]) -> T:
    """One table of a file, if there is one, with what the environment says, and `more` above both."""
    where = str(path or "environment and options")
    try:
        data = _substitute({name: tomllib.loads(_text(path) if path else "").get(name, {})}, environ, where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    _merge(data, {name: _from_environment(environ, Path(where)).get(name, {})})
    _merge(data, {name: more})
    refuse_unknown_keys(data[name], kind, where, f"{name}.")
    return _converted(data[name], kind, f"{where}: {name}")


def _converted(data: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        raise ConfigError(f"{where}{at.rstrip('`')}: {message[0].lower()}{message[1:]}") from None


def parse(data: Any, where: str = "configuration") -> DeviceConfig:
    """Validated configuration from plain dicts; raises `ConfigError`."""
    refuse_unknown_keys(data, DeviceConfig, where, "")
    streams = data.get("streams") if isinstance(data, dict) else None
    at = ""
    try:
        if isinstance(streams, dict):  # one by one: msgspec does not say which one it is that is wrong
            for name, stream in streams.items():
                at = f"streams.{_printable(name)}"
                msgspec.convert(stream, StreamConfig)
        at = ""
        return msgspec.convert(data, DeviceConfig)
    except msgspec.ValidationError as error:
        message, _, inside = str(error).partition(" - at `$")
        key = (at + inside.rstrip("`").replace("[...]", "")).lstrip(".")
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{message[0].lower()}{message[1:]}") from None


def changed_alarm(alarm: AlarmConfig, changes: Mapping[str, Any]) -> AlarmConfig:
    """`[alarm]` with other values for some of its keys; raises `ConfigError`."""
    merged = {**msgspec.to_builtins(alarm), **changes}
    refuse_unknown_keys(merged, AlarmConfig, "alarm", "alarm.")
    return _converted(merged, AlarmConfig, "alarm")


@functools.cache
def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of device.toml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(DeviceConfig)}


def redacted(config: DeviceConfig) -> dict[str, Any]:
    """The effective configuration as plain data, without secrets."""
    data: dict[str, Any] = msgspec.to_builtins(config)
    for section, key in (("mqtt", "password"), ("requests", "token"), ("web", "token")):
        if data[section] is not None and data[section][key] is not None:
            data[section][key] = "***"
    return data


EXAMPLE = """\
node = "pump-7"
bundle = "pump.amiss"

[streams.pump]
port = "/dev/ttyUSB0"

[mqtt]
host = "localhost"
"""


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


_SECTIONS = ("mqtt", "alarm", "runtime", "streams", "requests", "homeassistant", "web", "metrics", "update")


def _from_environment(environ: Mapping[str, str], path: Path) -> dict[str, Any]:
    """AMISS_A__B=value → {"a": {"b": value}}. Only keys of the configuration; other AMISS_ variables are not ours."""
    found: dict[str, Any] = {}
    known = set(DeviceConfig.__struct_fields__)
    for name, value in sorted(environ.items()):
        if not name.startswith("AMISS_"):
            continue
        keys = name.removeprefix("AMISS_").lower().split("__")
        if keys[-1].endswith("_file"):
            try:
                value = Path(value).read_text("utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{name}={value}: cannot be read: {error.strerror}") from None
            keys[-1] = keys[-1].removesuffix("_file")
        if keys[0] not in known or (len(keys) == 1 and keys[0] in _SECTIONS):
            continue
        at = found
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = _typed(keys, value)
    return found


def _typed(keys: list[str], value: str) -> Any:
    """The environment holds text; a number is meant where the configuration wants one."""
    at: Any = DeviceConfig
    for key in keys:
        if get_origin(at) is dict:
            at = _unwrap(get_args(at)[1])
        elif hasattr(at, "__struct_fields__"):
            at = _unwrap(get_type_hints(at).get(key, str))
    for kind in (int, float):
        if at is kind:
            try:
                return kind(value)
            except ValueError:
                return value
    return value


def _unwrap(hint: Any) -> Any:
    """The one type that matters in `Annotated[T, …] | None`."""
    if get_origin(hint) is Annotated:
        return _unwrap(get_args(hint)[0])
    if type(None) in (args := get_args(hint)):
        return _unwrap(next(arg for arg in args if arg is not type(None)))
    return hint


_VARIABLE = re.compile(r"\$\{(\w+)(?::\?([^}]*))?\}")


def _substitute(value: Any, environ: Mapping[str, str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, environ, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, environ, where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, message = match.groups()
        if name not in environ:
            raise ConfigError(f"{where}: ${{{name}}} is not set{': ' + message if message else ''}")
        return environ[name]

    return _VARIABLE.sub(replace, value)


def _is_loopback(host: str) -> bool:
    """Can only this computer reach it?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _printable(text: str) -> str:
    """TOML lets a quoted key hold anything, but what is said of it is one line."""
    return text if text.isprintable() else repr(text)[1:-1]


def refuse_unknown_keys(data: Any, struct: Any, where: str, prefix: str) -> None:
    """msgspec refuses unknown keys too, but cannot say which known one was meant."""
    if not isinstance(data, dict):
        return
    hints = get_type_hints(struct, include_extras=True)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(hints))}"
            raise ConfigError(f"{where}: unknown key `{prefix}{_printable(key)}`; {hint}")
        inner = _unwrap(hints[key])
        if hasattr(inner, "__struct_fields__"):
            refuse_unknown_keys(value, inner, where, f"{prefix}{key}.")
        elif get_origin(inner) is tuple and isinstance(value, list):
            for i, item in enumerate(value):
                refuse_unknown_keys(item, _unwrap(get_args(inner)[0]), where, f"{prefix}{key}[{i}].")
        elif get_origin(inner) is dict and isinstance(value, dict):
            for name, item in value.items():
                refuse_unknown_keys(item, _unwrap(get_args(inner)[1]), where, f"{prefix}{key}.{_printable(name)}.")
