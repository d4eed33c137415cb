"""device.toml → frozen structs. Defaults live here and nowhere else.

Order: flag > environment > file > the sensor's profile > default. `AMISS_MQTT__PASSWORD=…` sets `mqtt.password`;
`AMISS_MQTT__PASSWORD_FILE=…` reads it from a file; inside the file `${VAR}` and `${VAR:?message}` are replaced by the
environment's value.
"""

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

from edge import profiles
from edge.errors import ConfigError, NoInputError
from edge.profiles import Positive, Wire
from edge.tables import converted, printable, refuse_unknown_keys, unwrap

T = TypeVar("T")

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="lower case letters, digits and dashes")]
WEEK_H = 168.0
HOURS = {"hour": 1.0, "day": 24.0, "week": WEEK_H, "month": 730.5}
MOST_PER_WEEK = 60 * WEEK_H
SERVICE = Path("/var/lib/amiss")
"""The state folder that systemd gives to the service."""


class StreamConfig(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sensor on one serial port."""

    port: Annotated[str, Meta(min_length=1)]
    """Best a name that lasts, looked up whenever the port is opened: `usb:VID:PID` or `usb:VID:PID:SERIAL`, or a device file,
    as in /dev/serial/by-id/…; with `*` in it whatever file fits, if only one does. `amiss check` says what there is."""
    sensor: Annotated[str, Meta(min_length=1)] | None = None
    """What is on it: one that `amiss sensors` lists, or a sensor.toml of one's own (a path, with `/` in it, from this file's
    folder). It says whatever is not said here. `None`: all is said here."""

    def __post_init__(self) -> None:
        if self.port.startswith("usb:") and not USB_PORT.fullmatch(self.port):
            raise ValueError(
                f'`port = "{self.port}"` is neither usb:VID:PID nor usb:VID:PID:SERIAL; VID and PID are four hexadecimal '
                "digits each, as lsusb prints them"
            )
        super().__post_init__()


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

    def service_path(self, environ: Mapping[str, str] = os.environ) -> Path:
        """Where the agent that runs has its things, for who is asked about it by hand. As root that is not root's home: the
        service has its own."""
        if not self.state_dir and not environ.get("STATE_DIRECTORY") and os.geteuid() == 0 and SERVICE.is_dir():
            return SERVICE
        return self.state_path(environ)


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
    _fill(data, path)
    config = parse(data, str(path))
    if not Path(config.bundle).is_absolute():
        config = msgspec.structs.replace(config, bundle=str(path.parent / config.bundle))
    if config.update is not None:  # an absolute path stays what it is
        update = msgspec.structs.replace(config.update, root=str(path.parent / config.update.root))
        config = msgspec.structs.replace(config, update=update)
    return config


def _fill(data: dict[str, Any], path: Path) -> None:
    """Streams get what their sensor's profile says and they do not."""
    streams = data.get("streams")
    if not isinstance(streams, dict):
        return  # which `parse` has words for
    for name, stream in streams.items():
        sensor = stream.get("sensor") if isinstance(stream, dict) else None
        if isinstance(sensor, str) and sensor:
            try:
                streams[name] = profiles.fill(stream, profiles.load(sensor, path.parent))
            except ConfigError as error:
                raise ConfigError(f"{path}: streams.{printable(name)}.sensor: {error}") from None


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
    return converted(data[name], kind, where, name)


def parse(data: Any, where: str = "configuration") -> DeviceConfig:
    """Validated configuration from plain dicts; raises `ConfigError`."""
    refuse_unknown_keys(data, DeviceConfig, where, "")
    streams = data.get("streams") if isinstance(data, dict) else None
    at = ""
    try:
        if isinstance(streams, dict):  # one by one: msgspec does not say which one it is that is wrong
            for name, stream in streams.items():
                at = f"streams.{printable(name)}"
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
    return converted(merged, AlarmConfig, "", "alarm")


@functools.cache
def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of device.toml."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(DeviceConfig)}
    stream = found["$defs"]["StreamConfig"]
    stream["required"].remove("port")
    stream["anyOf"] = [{"required": ["port"]}, {"required": ["sensor"]}]  # whose profile may say the port, too
    return found


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
sensor = "adxl345"      # or another that `amiss sensors` lists
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
            at = unwrap(get_args(at)[1])
        elif hasattr(at, "__struct_fields__"):
            at = unwrap(get_type_hints(at).get(key, str))
    for kind in (int, float):
        if at is kind:
            try:
                return kind(value)
            except ValueError:
                return value
    return value


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
