"""Home Assistant finds this device by itself. Pure: values in, topic and payload out.

    <prefix>/device/amiss_<node>/config   retained, from the device   one device with all its entities
    <prefix>/status                       from Home Assistant         `online` when it has started

What Home Assistant's MQTT integration does decides what is done here:

- it remembers an entity by its `unique_id` and never forgets one because it is left out. A component with nothing but its
  `platform` takes the entity away, if Home Assistant has been told of it since *its own* last start. So what was announced
  once is remembered (`memory`) and taken back when it is no longer there: at once, and again when Home Assistant has started
  (it is told of it and then told to remove it). Only then it is forgotten;
- an entity that it has never heard the availability of is unavailable, and `availability_mode: all` wants every topic of the
  list to say `online`: a dead device is "unavailable", never "normal". `expire_after` does the same for a device that holds its
  connection and says nothing;
- commands go straight to `amiss/<node>/request/<verb>`. The announcement is retained, for everybody to read: where requests
  need a token there are no controls. Nor are there any for verbs that `requests.allow` does not list.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec

from edge.config import DeviceConfig
from edge.delivery import topics
from edge.delivery.topics import InfoPayload
from edge.event import EventType

JITTER_S = 30.0
"""A fleet does not answer Home Assistant's start all at once."""
_APART_S = 5.0
"""Home Assistant drops the rest of an announcement when it is still busy with the one before."""
_MAINTENANCE_MINUTES = 8 * 60
"""A shift: what nobody switches off ends by itself."""
_COMMISSION_MINUTES = 60
_SILENT_S = 30
"""Shortest `expire_after`: a broker that restarts is no reason to call a device dead."""

# `type` is called `event_type` there; the excerpt is too large for its data base.
_EVENT = "{{ dict(value_json.items() | rejectattr(0, 'in', ['type', 'excerpt']), event_type=value_json.type) | tojson }}"
# Nothing while all is well: what changes every second would fill that data base too.
_ATTRIBUTES = (
    "{{ ({'since': value_json.since | default(none), 'top_channels': value_json.top_channels | default([])} "
    "if value_json.anomaly else {}) | tojson }}"
)
_VERSIONS = (
    "{{ {'installed_version': value_json.model.version, "
    "'latest_version': (value_json.latest_model | default(value_json.model)).version, "
    "'title': value_json.model.name} | tojson }}"
)

Component = dict[str, Any]


class Memory(msgspec.Struct, frozen=True):
    """What was announced and not yet taken back."""

    topic: str
    components: dict[str, Component]


class HomeAssistant:
    """What Home Assistant is to know, and when. `judged_every_s`: pause between two verdicts on a stream.

    The agent asks `due` in its loop, keeps `memory` on disk and publishes `announcement`, in this order; `heard` may be called
    from another thread. Nothing is to be done when a session begins: `Delivery` repeats retained values by itself.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        judged_every_s: float,
        memory: bytes = b"",
        chance: Callable[[], float] = random.random,
    ) -> None:
        assert config.homeassistant is not None
        self.topic = config_topic(config)
        self.status_topic = f"{config.homeassistant.prefix}/status"
        """To be subscribed to, for `heard`."""
        self._node, self._chance = config.node, chance
        self._components = components(config, judged_every_s)
        before = _remembered(memory)
        self._former = (
            {key: old for key, old in before.components.items() if key not in self._components}
            if before is not None and before.topic == self.topic
            else {}
        )
        self._changed_s: float | None = -math.inf  # not announced at all yet
        self._born_s: float | None = None
        self._sent_s = -math.inf
        self._revived = False

    def heard(self, topic: str, payload: bytes, now_s: float) -> None:
        """A message from `status_topic`."""
        if topic == self.status_topic and payload == topics.ONLINE:
            self._born_s = now_s + JITTER_S * self._chance()

    def changed(self, now_s: float) -> None:
        """`info` is another one than at the last announcement."""
        self._changed_s = now_s

    def due(self, now_s: float) -> bool:
        wanted = any(at_s is not None and at_s <= now_s for at_s in (self._changed_s, self._born_s))
        return wanted and now_s >= self._sent_s + _APART_S

    def announcement(self, info: InfoPayload, now_s: float) -> tuple[str, bytes]:
        """Topic and payload, to be published retained. What it takes back, `due` and `memory` know afterwards."""
        born = self._born_s is not None and self._born_s <= now_s
        if born:
            self._born_s = None
        revive = born and bool(self._former)
        gone = self._former if revive else {key: {"platform": old["platform"]} for key, old in self._former.items()}
        if self._revived and not revive:
            self._former = {}
        self._revived = revive
        self._changed_s = now_s if revive else None
        self._sent_s = now_s
        return self.topic, msgspec.json.encode(_device(self._node, info, self._components | gone))

    def memory(self) -> bytes:
        """To be handed to the next `HomeAssistant`, after a restart."""
        return msgspec.json.encode(Memory(self.topic, self._components | self._former))


def config_topic(config: DeviceConfig) -> str:
    assert config.homeassistant is not None
    return f"{config.homeassistant.prefix}/device/{_identity(config.node)}/config"


def stale_topic(config: DeviceConfig, memory: bytes) -> str | None:
    """Where an earlier configuration announced this device and the present one does not; to be cleared (published empty)."""
    before = _remembered(memory)
    if before is None or (config.homeassistant is not None and before.topic == config_topic(config)):
        return None
    return before.topic


def components(config: DeviceConfig, judged_every_s: float) -> dict[str, Component]:
    """Every entity by its id, which is `<stream>.<what>` or, of the whole device, `<what>`."""
    found: dict[str, Component] = {}
    for stream in config.streams:
        found |= _of_stream(config, stream, judged_every_s)
    return found | _of_node(config)


def _of_stream(config: DeviceConfig, stream: str, judged_every_s: float) -> dict[str, Component]:
    node = config.node
    state, online = topics.state(node, stream), topics.stream_availability(node, stream)
    here = {"availability": [{"topic": topics.availability(node)}, {"topic": online}]}
    alive = here | {"state_topic": state, "expire_after": _expire_after(max(config.mqtt.state_every_s, judged_every_s))}
    measured = alive | {"state_class": "measurement"}

    def request(verb: str, **body: Any) -> Component:
        return {"command_topic": topics.request(node, verb), "payload_press": _body(stream=stream, **body), "qos": 1}

    found: dict[str, Component] = {
        "anomaly": alive
        | {
            "platform": "binary_sensor",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.anomaly else 'OFF' }}",
            "json_attributes_topic": state,
            "json_attributes_template": _ATTRIBUTES,
        },
        "link": {
            "platform": "binary_sensor",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": online,
            "payload_on": topics.ONLINE.decode(),
            "payload_off": topics.OFFLINE.decode(),
        },
        "score": measured
        | {"platform": "sensor", "value_template": "{{ value_json.score }}", "suggested_display_precision": 2},
        "p_value": measured
        | {
            "platform": "sensor",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.p_value }}",
            "suggested_display_precision": 4,
        },
        "latency": measured
        | {
            "platform": "sensor",
            "device_class": "duration",
            "unit_of_measurement": "ms",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.latency_ms | default('None') }}",
            "suggested_display_precision": 0,
        },
        # A gap or a sensor fault is told while the stream is offline: only the node's own availability counts.
        "event": {
            "platform": "event",
            "state_topic": topics.event(node, stream),
            "event_types": list(get_args(EventType)),
            "value_template": _EVENT,
            "qos": 1,
        },
    }
    if _may(config, "feedback"):
        found["false_alarm"] = request("feedback", verdict="false_alarm") | {"platform": "button"}
    if _may(config, "commission"):
        setting = {"platform": "button", "entity_category": "config"}
        found["recalibrate"] = here | request("commission", minutes=_COMMISSION_MINUTES) | setting
        found["roll_back"] = request("commission", rollback=True) | setting
    if _may(config, "maintenance"):
        found["maintenance"] = {
            "platform": "switch",
            "state_topic": state,
            "value_template": "{{ 'ON' if value_json.maintenance | default(false) else 'OFF' }}",
            "state_on": "ON",
            "state_off": "OFF",
            "command_topic": topics.request(node, "maintenance"),
            "payload_on": _body(stream=stream, minutes=_MAINTENANCE_MINUTES),
            "payload_off": _body(stream=stream, off=True),
            "qos": 1,
        }
    return {f"{stream}.{what}": _entity(node, stream, what, component) for what, component in found.items()}


def _of_node(config: DeviceConfig) -> dict[str, Component]:
    node = config.node
    found: dict[str, Component] = {
        "queued": {
            "platform": "sensor",
            "state_topic": topics.health(node),
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.mqtt.queued }}",
            "expire_after": _expire_after(config.mqtt.health_every_s),
        },
        "model": {
            "platform": "update",
            "state_topic": topics.info(node),
            "entity_category": "diagnostic",
            "value_template": _VERSIONS,
        },
    }
    if config.update is not None and _may(config, "update"):
        found["model"] |= {"command_topic": topics.request(node, "update"), "payload_install": _body(), "qos": 1}
    if config.update is not None and _may(config, "rollback"):
        found["previous_model"] = {
            "platform": "button",
            "command_topic": topics.request(node, "rollback"),
            "payload_press": _body(reason="asked for in Home Assistant"),
            "entity_category": "config",
            "qos": 1,
        }
    if _may(config, "config"):
        found["false_alarms"] = {
            "platform": "number",
            "state_topic": topics.info(node),
            "value_template": "{{ value_json.false_alarms_per_week | default('None') }}",
            "command_topic": topics.request(node, "config"),
            "command_template": '{"set": {"alarm.false_alarms": "{{ value }}/week"}}',
            "entity_category": "config",
            "mode": "box",
            "min": 0.01,
            "max": 1000,
            "step": 0.01,
            "qos": 1,
        }
    return {what: _entity(node, "", what, component) for what, component in found.items()}


_NAMES = {"queued": "waiting records", "false_alarms": "false alarms per week", "p_value": "p-value"}


def _entity(node: str, stream: str, what: str, component: Component) -> Component:
    own = f"{stream}.{what}" if stream else what
    name = " ".join(filter(None, (stream, _NAMES.get(what, what.replace("_", " ")))))
    # What Home Assistant before 2025.10 makes of the names by itself, so that automations fit both.
    slug = re.sub(r"[^a-z0-9]+", "_", f"{node} {name}")
    return component | {
        "name": name,
        "unique_id": f"amiss.{node}.{own}",
        "default_entity_id": f"{component['platform']}.{slug}",
    }


def _device(node: str, info: InfoPayload, components: Mapping[str, Component]) -> dict[str, Any]:
    version = info.versions["amiss"]
    device = {"identifiers": [_identity(node)], "name": node, "manufacturer": "amiss", "model": info.model.name}
    return {
        "device": device | {"sw_version": version} | ({"hw_version": info.board} if info.board else {}),
        "origin": {"name": "amiss", "sw_version": version},
        "availability": [{"topic": topics.availability(node)}],
        "availability_mode": "all",
        "components": components,
    }


def _identity(node: str) -> str:
    return f"amiss_{node}"


def _expire_after(every_s: float) -> int:
    return max(_SILENT_S, math.ceil(3 * every_s))


def _may(config: DeviceConfig, verb: str) -> bool:
    requests = config.requests
    return requests.token is None and (requests.allow is None or verb in requests.allow)


def _body(**fields: Any) -> str:
    return msgspec.json.encode(fields).decode()


def _remembered(memory: bytes) -> Memory | None:
    """What cannot be read is forgotten: at worst an entity is left in Home Assistant, to be deleted by hand."""
    try:
        return msgspec.json.decode(memory, type=Memory)
    except msgspec.DecodeError:
        return None
