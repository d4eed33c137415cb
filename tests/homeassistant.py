"""A stand-in for Home Assistant: a client of a real broker that holds the rules of its MQTT integration for device discovery.

The rules were read from Home Assistant 2026.2.3 (`homeassistant/components/mqtt`: discovery, schemas, entity, client and the
platforms below) and are held here in our own words. Entities, states, commands, events, a dead device, a killed broker, its own
restart and what is taken back were once tried with Home Assistant 2025.4.4 itself, and came out the same. Stricter than the
original in one point: a key that it would drop in silence is a complaint here. Left out: states restored after its restart,
device triggers and tags, single-component discovery, abbreviations, everything about people's interface.
"""

import contextlib
import itertools
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.sandbox
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUPPORTED = words(
    "alarm_control_panel binary_sensor button camera climate cover device_automation device_tracker event fan humidifier image "
    "lawn_mower light lock notify number scene siren select sensor switch tag text update vacuum valve water_heater"
)
NO_ENTITIES = frozenset({"device_automation", "tag"})
"""Platforms that need no `unique_id`."""
DISCOVERY_TOPIC = re.compile(r"(\w+)/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config")

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool) or value in ("true", "false", "yes", "no", "on", "off")


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def topic(value: Any) -> bool:
    return (
        text(value)
        and 0 < len(value.encode()) <= 65535
        and not any(c in "+#" or c < " " or "\x7f" <= c <= "\x9f" for c in value)
    )


def template(value: Any) -> bool:
    try:
        jinja2.Environment().parse(value)
    except jinja2.TemplateError:
        return False
    return text(value)


def one_of(*values: Any) -> Check:
    return lambda value: value in values


def each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and bool(value) and all(check(item) for item in value)


AVAILABLE: dict[str, Check] = {
    "availability": each(
        lambda one: (
            isinstance(one, dict)
            and topic(one.get("topic"))
            and one.keys() <= {"topic", "payload_available", "payload_not_available", "value_template"}
        )
    ),
    "availability_mode": one_of("all", "any", "latest"),
    "availability_topic": topic,
    "availability_template": template,
    "payload_available": text,
    "payload_not_available": text,
}
SHARED = {*AVAILABLE, "state_topic", "command_topic"}
"""What a component takes over from the device unless it says something itself."""
COMMON: dict[str, Check] = AVAILABLE | {
    "default_entity_id": lambda value: text(value) and re.fullmatch(r"[a-z_]+\.[a-z0-9_]+", value) is not None,
    "device": lambda value: isinstance(value, dict),
    "enabled_by_default": flag,
    "encoding": text,
    "entity_category": one_of("config", "diagnostic"),
    "entity_picture": text,
    "icon": lambda value: text(value) and ":" in value,
    "json_attributes_template": template,
    "json_attributes_topic": topic,
    "name": lambda value: value is None or text(value),
    "origin": lambda value: isinstance(value, dict),
    "qos": one_of(0, 1, 2),
    "unique_id": text,
}
READ: dict[str, Check] = {"state_topic": topic, "value_template": template}
WRITE: dict[str, Check] = {"command_topic": topic, "command_template": template, "retain": flag}

BINARY_CLASSES = words(
    "battery battery_charging carbon_monoxide cold connectivity door garage_door gas heat light lock moisture motion moving "
    "occupancy opening plug power presence problem running safety smoke sound tamper update vibration window"
)
SENSOR_UNITS = {None: None, "duration": {"d", "h", "min", "s", "ms", "μs"}, "temperature": {"°C", "°F", "K"}}
"""Device classes that this project might use; the original knows some sixty."""


@dataclass(frozen=True)
class Platform:
    required: frozenset[str]
    keys: dict[str, Check]
    """Beside `COMMON`."""


PLATFORMS = {
    "binary_sensor": Platform(
        frozenset({"state_topic"}),
        READ
        | {
            "device_class": one_of(None, *BINARY_CLASSES),
            "expire_after": count,
            "force_update": flag,
            "off_delay": count,
            "payload_off": text,
            "payload_on": text,
        },
    ),
    "sensor": Platform(
        frozenset({"state_topic"}),
        READ
        | {
            "device_class": one_of(*SENSOR_UNITS),
            "expire_after": count,
            "force_update": flag,
            "last_reset_value_template": template,
            "options": each(text),
            "state_class": one_of(None, "measurement", "measurement_angle", "total", "total_increasing"),
            "suggested_display_precision": count,
            "unit_of_measurement": lambda value: value is None or text(value),
        },
    ),
    "event": Platform(
        frozenset({"state_topic", "event_types"}),
        READ | {"device_class": one_of("button", "doorbell", "motion"), "event_types": each(text)},
    ),
    "update": Platform(
        frozenset({"state_topic"}),
        READ
        | {
            "command_topic": topic,
            "device_class": one_of(None, "firmware"),
            "display_precision": count,
            "latest_version_template": template,
            "latest_version_topic": topic,
            "payload_install": text,
            "release_summary": text,
            "release_url": text,
            "retain": flag,
            "title": text,
        },
    ),
    "button": Platform(
        frozenset({"command_topic"}),
        WRITE | {"device_class": one_of(None, "identify", "restart", "update"), "payload_press": text},
    ),
    "number": Platform(
        frozenset({"command_topic"}),
        READ
        | WRITE
        | {
            "max": number,
            "min": number,
            "mode": one_of("auto", "box", "slider"),
            "optimistic": flag,
            "payload_reset": text,
            "step": lambda value: number(value) and value >= 1e-3,
            "unit_of_measurement": lambda value: value is None or text(value),
        },
    ),
    "switch": Platform(
        frozenset({"command_topic"}),
        READ
        | WRITE
        | {
            "device_class": one_of(None, "outlet", "switch"),
            "optimistic": flag,
            "payload_off": text,
            "payload_on": text,
            "state_off": text,
            "state_on": text,
        },
    ),
}
UPDATE_PAYLOAD = words(
    "installed_version latest_version title release_summary release_url entity_picture in_progress update_percentage"
)
DEVICE = words(
    "identifiers connections manufacturer model model_id name hw_version serial_number sw_version via_device suggested_area "
    "configuration_url"
)
ORIGIN = frozenset({"name", "sw_version", "support_url"})
ROOT = {"device", "components", "origin", "qos", "encoding", *SHARED}

UNKNOWN, UNAVAILABLE = "unknown", "unavailable"


@dataclass
class Entity:
    entity_id: str
    platform: str
    config: dict[str, Any]
    value: str = UNKNOWN
    attributes: dict[str, Any] = field(default_factory=dict)
    available: dict[str, bool] = field(default_factory=dict)
    expires_s: float | None = None
    expired: bool = True
    """Only meaningful with `expire_after`: nothing was heard, or too long ago."""

    def topics(self) -> set[str]:
        named = {self.config.get(key) for key in ("state_topic", "json_attributes_topic", "latest_version_topic")}
        return {one for one in named if one} | set(self.watched())

    def watched(self) -> dict[str, tuple[str, str]]:
        """Availability topics → payloads that mean yes and no."""
        return {
            one["topic"]: (one.get("payload_available", "online"), one.get("payload_not_available", "offline"))
            for one in self.config.get("availability", [])
        }

    def reachable(self) -> bool:
        heard = [self.available.get(one, False) for one in self.watched()]
        if not heard:
            return True
        assert self.config.get("availability_mode") == "all", "the other modes are not modelled"
        return all(heard)


class HomeAssistant:
    """`start`, `stop` and `kill` as often as you like: the entity registry outlives them, everything else does not.

    `complaints` is what the original would have written to its log as a warning or an error. `clock` is for `expire_after`.
    """

    def __init__(self, port: int, *, prefix: str = "homeassistant", clock: Callable[[], float] = time.monotonic) -> None:
        self.prefix, self._port, self._clock = prefix, port, clock
        self.registry: dict[tuple[str, str], str] = {}
        """Platform and unique id → entity id."""
        self.complaints: list[str] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        """Entity id, type, attributes: what automations react to."""
        self.devices: dict[str, dict[str, Any]] = {}
        """By discovery topic."""
        self.births = 0
        self._lock = threading.RLock()
        self._client: paho.Client | None = None
        self._forget()

    def _forget(self) -> None:
        self._entities: dict[tuple[str, str], Entity] = {}  # platform, `<object id> <component id>`
        self._connected = False
        self._born = False

    # Its life.

    def start(self) -> "HomeAssistant":
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311, clean_session=True)
        client.will_set(f"{self.prefix}/status", "offline", qos=0, retain=False)
        client.reconnect_delay_set(1, 1)
        client.on_connect, client.on_disconnect, client.on_message = self._on_connect, self._on_disconnect, self._on_message
        self._client = client
        client.connect_async("127.0.0.1", self._port, 60)
        client.loop_start()
        return self

    def stop(self) -> None:
        assert self._client is not None
        self._client.publish(f"{self.prefix}/status", "offline").wait_for_publish(1.0)
        self._client.disconnect()
        self._end()

    def kill(self) -> None:
        assert self._client is not None
        if (open_socket := self._client.socket()) is not None:
            self._client.disconnect = lambda *_: None  # type: ignore[assignment]
            with contextlib.suppress(OSError):  # the broker may have been killed a moment before
                open_socket.shutdown(2)
        self._end()

    def _end(self) -> None:
        assert self._client is not None
        self._client.on_connect = self._client.on_message = None
        self._client._thread_terminate = True  # it would reconnect
        self._client.loop_stop()
        self._client = None
        with self._lock:
            self._forget()

    def __enter__(self) -> "HomeAssistant":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self._client is not None:
            self.kill()

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: paho.ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            return
        with self._lock:
            self._connected = True
            topics = {one for entity in self._entities.values() for one in entity.topics()}
        for one in (f"{self.prefix}/device/+/config", f"{self.prefix}/device/+/+/config", *topics):
            client.subscribe(one, qos=0)
        # The original waits until no discovery has come for two seconds.
        threading.Timer(0.3, self._say_birth, (client,)).start()

    def _say_birth(self, client: paho.Client) -> None:
        if client is self._client and self._connected:
            client.publish(f"{self.prefix}/status", "online", qos=0, retain=False)
            self.births += 1

    def _on_disconnect(self, *rest: Any) -> None:
        with self._lock:
            self._connected = False

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        with self._lock:
            payload = message.payload.decode()
            if message.topic.startswith(f"{self.prefix}/"):
                new = self._discover(message.topic, payload)
            else:
                new = set()
                for entity in list(self._entities.values()):
                    if message.topic in entity.topics():
                        self._hear(entity, message.topic, payload, retained=message.retain)
        for one in new:  # again for those that have it already: the broker repeats what it retains
            client.subscribe(one, qos=1)

    # Discovery.

    def _complain(self, text: str) -> None:
        self.complaints.append(text)

    def _discover(self, discovery_topic: str, payload: str) -> set[str]:
        """Topics to subscribe to."""
        match = DISCOVERY_TOPIC.fullmatch(discovery_topic.removeprefix(f"{self.prefix}/"))
        if match is None:
            self._complain(f"{discovery_topic}: no discovery topic")
            return set()
        _, node_id, object_id = match.groups()
        owner = f"{node_id} {object_id}" if node_id else object_id
        if payload == "":
            mine = [key for key in self._entities if key[1].split(" ")[0] == owner]
            if not mine:
                self._complain(f"{discovery_topic}: nothing to clean up")
            for key in mine:
                self._remove(key)
            self.devices.pop(discovery_topic, None)
            return set()
        try:
            device = json.loads(payload)
        except ValueError:
            self._complain(f"{discovery_topic}: no JSON")
            return set()
        if trouble := device_trouble(device):  # the original drops the whole message then
            self._complain(f"{discovery_topic}: {trouble}")
            return set()
        self.devices[discovery_topic] = device["device"]
        shared = {key: value for key, value in device.items() if key in SHARED}
        new: set[str] = set()
        for component_id, said in device["components"].items():
            config = dict(said)
            platform = config.pop("platform")
            key = (platform, f"{owner} {component_id}")
            if not config:
                self._remove(key)
                continue
            new |= self._set_up(key, shared | config)
        return new

    def _set_up(self, key: tuple[str, str], config: dict[str, Any]) -> set[str]:
        platform, discovery_id = key
        if trouble := component_trouble(platform, config):  # this component is dropped then
            self._complain(f"{discovery_id}: {trouble}")
            return set()
        if (entity := self._entities.get(key)) is not None:
            entity.config = config
            return entity.topics()
        entry = (platform, config["unique_id"])
        if any((one.platform, one.config["unique_id"]) == entry for one in self._entities.values()):
            self._complain(f"{discovery_id}: {entry} is not unique")
            return set()
        if entry not in self.registry:
            wanted = config["default_entity_id"]
            taken = set(self.registry.values())
            names = itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(2)))
            self.registry[entry] = next(name for name in names if name not in taken)
        entity = Entity(self.registry[entry], platform, config)
        self._entities[key] = entity
        return entity.topics()

    def _remove(self, key: tuple[str, str]) -> None:
        """What has not been discovered since its own start is not removed, though the registry may know it."""
        if (entity := self._entities.pop(key, None)) is not None:
            del self.registry[entity.platform, entity.config["unique_id"]]

    # Values.

    def render(self, source: str, **variables: Any) -> str:
        """Raises `jinja2.TemplateError`. Something undefined that is printed is a warning in the original's log."""
        log = logging.Logger("undefined")
        stand_in = self

        class Complaints(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                stand_in._complain(f"{source}: {record.getMessage()}")

        log.addHandler(Complaints())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.make_logging_undefined(log))
        return environment.from_string(source).render(**variables).strip()

    def _value(self, source: str | None, payload: str) -> str:
        if source is None or not any(mark in source for mark in ("{{", "{%", "{#")):
            return payload if source is None else source
        variables: dict[str, Any] = {"value": payload}
        with contextlib.suppress(ValueError):
            variables["value_json"] = json.loads(payload)
        try:
            return self.render(source, **variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            self._complain(f"{source}: {error}")
            return ""

    def _hear(self, entity: Entity, topic: str, payload: str, *, retained: bool) -> None:
        config = entity.config
        if topic in (watched := entity.watched()):
            yes, no = watched[topic]
            if payload in (yes, no):
                entity.available[topic] = payload == yes
        if topic == config.get("json_attributes_topic"):
            try:
                found = json.loads(self._value(config.get("json_attributes_template"), payload))
                entity.attributes = dict(found)
            except (ValueError, TypeError):
                self._complain(f"{entity.entity_id}: attributes are no JSON object")
        if topic == config.get("state_topic"):
            if expire_s := config.get("expire_after"):
                entity.expired, entity.expires_s = False, self._clock() + expire_s
            getattr(self, f"_hear_{entity.platform}")(entity, self._value(config.get("value_template"), payload), retained)

    def _hear_binary_sensor(self, entity: Entity, value: str, retained: bool) -> None:
        meanings = {
            entity.config.get("payload_on", "ON"): "on",
            entity.config.get("payload_off", "OFF"): "off",
            "None": UNKNOWN,
        }
        if value in meanings:
            entity.value = meanings[value]
        elif value:
            self._complain(f"{entity.entity_id}: `{value}` means nothing")

    def _hear_sensor(self, entity: Entity, value: str, retained: bool) -> None:
        numeric = any(entity.config.get(key) for key in ("state_class", "unit_of_measurement", "suggested_display_precision"))
        if value == "None":
            entity.value = UNKNOWN
        elif value == "":
            return
        elif numeric:
            try:
                float(value)
            except ValueError:
                self._complain(f"{entity.entity_id}: `{value}` is no number")
                return
            entity.value = value
        elif len(value) > 255:
            self._complain(f"{entity.entity_id}: a state of {len(value)} characters")
        else:
            entity.value = value

    def _hear_number(self, entity: Entity, value: str, retained: bool) -> None:
        if value == "":
            return
        if value == entity.config.get("payload_reset", "None"):
            entity.value = UNKNOWN
            return
        try:
            in_range = entity.config.get("min", 1) <= float(value) <= entity.config.get("max", 100)
        except ValueError:
            in_range = False
        if in_range:
            entity.value = value
        else:
            self._complain(f"{entity.entity_id}: `{value}` is out of range, or no number")

    def _hear_switch(self, entity: Entity, value: str, retained: bool) -> None:
        on = entity.config.get("state_on") or entity.config.get("payload_on", "ON")
        off = entity.config.get("state_off") or entity.config.get("payload_off", "OFF")
        entity.value = {on: "on", off: "off", "None": UNKNOWN}.get(value, entity.value)

    def _hear_update(self, entity: Entity, value: str, retained: bool) -> None:
        if value in ("", "{}"):
            return
        try:
            found = json.loads(value)
        except ValueError:
            found = value
        if not isinstance(found, dict):
            found = {"installed_version": value}
        if not found.keys() <= UPDATE_PAYLOAD or not all(
            text(found.get(key, "")) for key in ("installed_version", "latest_version")
        ):
            self._complain(f"{entity.entity_id}: {found} is no update")
            return
        entity.attributes |= found
        installed, latest = (entity.attributes.get(key) for key in ("installed_version", "latest_version"))
        entity.value = UNKNOWN if installed is None or latest is None else "off" if installed == latest else "on"

    def _hear_event(self, entity: Entity, value: str, retained: bool) -> None:
        if retained or value in ("", "None", "{}"):
            return
        try:
            attributes = json.loads(value)
            kind = str(attributes.pop("event_type"))
        except (ValueError, KeyError, AttributeError):
            self._complain(f"{entity.entity_id}: `{value}` is no event")
            return
        if kind not in entity.config["event_types"]:
            self._complain(f"{entity.entity_id}: unknown event type `{kind}`")
            return
        entity.value, entity.attributes = f"event {len(self.events)}", {"event_type": kind} | attributes  # a time, in truth
        self.events.append((entity.entity_id, kind, attributes))

    # What a person sees and does.

    def states(self) -> dict[str, str]:
        """Of every entity that the registry knows. One that nobody announces any more is unavailable, too."""
        with self._lock:
            live = {entity.entity_id: entity for entity in self._entities.values()}
            return {name: self._state(live[name]) if name in live else UNAVAILABLE for name in self.registry.values()}

    def _state(self, entity: Entity) -> str:
        if not self._connected or not entity.reachable():
            return UNAVAILABLE
        if entity.config.get("expire_after"):
            if entity.expires_s is not None and self._clock() >= entity.expires_s:
                entity.expired = True
            if entity.expired:
                return UNAVAILABLE
        return entity.value

    def entity(self, entity_id: str) -> Entity:
        with self._lock:
            return next(entity for entity in self._entities.values() if entity.entity_id == entity_id)

    def live(self) -> set[str]:
        """Entities that have been announced since the last start."""
        with self._lock:
            return {entity.entity_id for entity in self._entities.values()}

    def press(self, entity_id: str) -> None:
        self._command(entity_id, self.entity(entity_id).config.get("payload_press", "PRESS"))

    def turn(self, entity_id: str, on: bool) -> None:
        config = self.entity(entity_id).config
        self._command(entity_id, config.get("payload_on", "ON") if on else config.get("payload_off", "OFF"))

    def set(self, entity_id: str, value: float) -> None:
        self._command(entity_id, int(value) if float(value).is_integer() else value)

    def _command(self, entity_id: str, value: Any) -> None:
        entity = self.entity(entity_id)
        assert self._state(entity) != UNAVAILABLE, f"{entity_id} is greyed out"
        assert self._client is not None
        source = entity.config.get("command_template")
        payload = str(value) if source is None else self.render(source, value=value)
        config = entity.config
        self._client.publish(config["command_topic"], payload, config.get("qos", 0), config.get("retain", False))


def device_trouble(device: Any) -> str:
    """Why the whole announcement is dropped; empty: it is not."""
    if not isinstance(device, dict):
        return "no object"
    if missing := {"device", "components", "origin"} - device.keys():
        return f"{sorted(missing)} missing"
    if unknown := device.keys() - ROOT:
        return f"{sorted(unknown)} unknown"
    about = device["device"]
    if not isinstance(about, dict) or not (about.get("identifiers") or about.get("connections")):
        return "a device without identifiers"
    if unknown := about.keys() - DEVICE:
        return f"device: {sorted(unknown)} unknown"
    if not all(text(value) for key, value in about.items() if key not in ("identifiers", "connections")):
        return "device: not all text"
    origin = device["origin"]
    if not isinstance(origin, dict) or not text(origin.get("name")) or origin.keys() - ORIGIN:
        return "origin: needs a name, and has only name, sw_version, support_url"
    if trouble := _checked({key: value for key, value in device.items() if key in AVAILABLE}, AVAILABLE):
        return trouble
    for name, component in device["components"].items():
        if not isinstance(component, dict) or component.get("platform") not in SUPPORTED:
            return f"{name}: no platform that is supported"
        if len(component) > 1 and component["platform"] not in NO_ENTITIES and not text(component.get("unique_id")):
            return f"{name}: unique_id missing"
    return ""


def component_trouble(platform: str, config: dict[str, Any]) -> str:
    """Why this component is dropped; empty: it is not."""
    rules = PLATFORMS.get(platform)
    if rules is None:
        return f"{platform} is not modelled here"
    if missing := rules.required - config.keys():
        return f"{sorted(missing)} missing"
    # Shared options that mean nothing to a platform are no mistake of the component.
    if trouble := _checked(config, COMMON | rules.keys):
        return trouble
    if platform in ("sensor", "binary_sensor") and config.get("entity_category") == "config":
        return "what is only read cannot be of the category `config`"
    if platform == "sensor":
        units = SENSOR_UNITS[config.get("device_class")]
        if units is not None and config.get("unit_of_measurement") not in units:
            return f"the unit of a {config['device_class']} is one of {sorted(units)}"
    if platform == "number" and config.get("min", 1) > config.get("max", 100):
        return "min > max"
    if "default_entity_id" in config and config["default_entity_id"].split(".")[0] != platform:
        return "default_entity_id is of another platform"
    return ""


def _checked(config: dict[str, Any], checks: dict[str, Check]) -> str:
    for key, value in config.items():
        if key not in checks:
            return f"`{key}` unknown"
        if not checks[key](value):
            return f"`{key}`: not {value!r}"
    return ""
