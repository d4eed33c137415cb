"""What is announced, when, and what is taken back; without a broker."""

import json
from typing import Any

import pytest
from homeassistant import COMMON, PLATFORMS, component_trouble, device_trouble
from homeassistant_device import info

from edge.config import DeviceConfig, parse
from edge.delivery import topics
from edge.delivery.homeassistant import JITTER_S, HomeAssistant, components, stale_topic
from edge.errors import ConfigError


def configured(**changes: Any) -> DeviceConfig:
    data: dict[str, Any] = {"node": "n", "bundle": "m.amiss", "streams": {"a": {"port": "p"}}, "homeassistant": {}}
    return parse(data | changes)


def assistant(config: DeviceConfig | None = None, **options: Any) -> HomeAssistant:
    return HomeAssistant(config or configured(), **{"judged_every_s": 1.0, "chance": lambda: 0.5, **options})


def announced(assistant: HomeAssistant, now_s: float) -> dict[str, Any]:
    topic, payload = assistant.announcement(info(), now_s)
    assert topic == "homeassistant/device/amiss_n/config"
    return dict(json.loads(payload))


UPDATE = {"repository": "mqtt:plant", "root": "root.json"}


@pytest.mark.parametrize("more", [{}, {"update": UPDATE}])
def test_home_assistant_takes_every_component(more: dict[str, Any]) -> None:
    payload = announced(assistant(configured(**more)), 0.0)
    assert device_trouble(payload) == ""
    shared = {"availability": payload["availability"], "availability_mode": payload["availability_mode"]}
    for name, component in payload["components"].items():
        config = shared | component
        assert component_trouble(config.pop("platform"), config) == "", name
    assert payload["device"] == {
        "identifiers": ["amiss_n"],
        "name": "n",
        "manufacturer": "amiss",
        "model": "pump",
        "sw_version": "0.1.0",
        "hw_version": "Raspberry Pi 4",
    }


@pytest.mark.parametrize("key", ["device", "components", "origin"])
def test_the_stand_in_wants_what_home_assistant_wants_of_a_device(key: str) -> None:
    payload = announced(assistant(), 0.0)
    del payload[key]
    assert key in device_trouble(payload)


def test_the_stand_in_wants_a_unique_id_a_known_platform_and_nothing_unknown() -> None:
    """The control of the tests that find no trouble."""
    for name, change in (("no platform", {"platform": "thermometer"}), ("unique_id", {"unique_id": None})):
        payload = announced(assistant(), 0.0)
        payload["components"]["a.score"] |= change
        assert name in device_trouble(payload)
    for platform, rules in PLATFORMS.items():
        for key in rules.required:
            assert key in component_trouble(platform, {"unique_id": "x"})
        for key in COMMON | rules.keys:
            assert component_trouble(platform, dict.fromkeys(rules.required, "x") | {key: object()})
    for change in ({"state_topc": "t"}, {"state_topic": "a/+"}, {"entity_category": "config"}, {"expire_after": -1}):
        assert component_trouble("sensor", {"state_topic": "t"} | change)


def test_ids_are_unique_whatever_the_streams_are_called() -> None:
    names = ["a", "a-b", "b", "event", "false-alarm", "model", "queued"]
    found = components(configured(node="a-b", streams={name: {"port": "p"} for name in names}), 1.0)
    other = components(configured(node="a", streams={"b-a": {"port": "p"}, "b": {"port": "p"}}), 1.0)
    ids = [one["unique_id"] for one in (*found.values(), *other.values())]
    assert len(ids) == len(set(ids)) == 10 * 9 + 2 * 3


def test_every_command_is_a_request_of_this_node() -> None:
    without, found = components(configured(), 1.0), components(configured(update=UPDATE), 1.0)
    verbs = {"feedback", "commission", "maintenance", "config"}
    for components_, more in ((without, set[str]()), (found, {"update", "rollback"})):
        commands = [one for one in components_.values() if "command_topic" in one]
        assert {topics.verb_of("n", one["command_topic"]) for one in commands} == verbs | more
        assert not any(one.get("retain", False) for one in commands)


@pytest.mark.parametrize(
    ("state_every_s", "judged_every_s", "expire_s"), [(1.0, 0.1, 30), (1.0, 60.0, 180), (100.0, 1.0, 300), (1.0, 10.01, 31)]
)
def test_a_value_expires_after_three_that_did_not_come(state_every_s: float, judged_every_s: float, expire_s: int) -> None:
    found = components(configured(mqtt={"state_every_s": state_every_s}), judged_every_s)
    assert {name for name, one in found.items() if "expire_after" in one} == {
        "a.anomaly",
        "a.score",
        "a.p_value",
        "a.latency",
        "queued",
    }
    assert found["a.score"]["expire_after"] == found["a.anomaly"]["expire_after"] == expire_s
    assert found["queued"]["expire_after"] == 180


def test_it_is_announced_at_the_start_when_something_changes_and_when_home_assistant_starts() -> None:
    one = assistant()
    assert one.due(0.0)
    announced(one, 0.0)
    assert not one.due(1e9)
    one.changed(100.0)
    assert one.due(100.0)
    announced(one, 100.0)
    one.heard("homeassistant/status", b"offline", 200.0)
    one.heard("other/status", b"online", 200.0)
    assert not one.due(1e9)
    one.heard("homeassistant/status", b"online", 200.0)
    assert not one.due(200.0 + JITTER_S / 2 - 0.1)
    assert one.due(200.0 + JITTER_S / 2)
    announced(one, 215.0)
    assert not one.due(1e9)


def test_chance_decides_within_half_a_minute() -> None:
    for chance, due_s in ((0.0, 0.0), (0.999, 29.97)):
        one = assistant(chance=lambda chance=chance: chance)
        announced(one, -100.0)
        one.heard(one.status_topic, b"online", 0.0)
        assert not one.due(due_s - 0.01)
        assert one.due(due_s)


def test_two_announcements_are_never_close() -> None:
    one = assistant()
    announced(one, 0.0)
    one.changed(0.1)
    assert not one.due(4.9)
    assert one.due(5.0)


def test_what_was_announced_is_taken_back_at_once_and_once_more_after_home_assistants_start() -> None:
    before = assistant(configured(streams={"a": {"port": "p"}, "b": {"port": "p"}}))
    announced(before, 0.0)
    after = assistant(memory=before.memory())
    gone = {"b.anomaly": "binary_sensor", "b.maintenance": "switch", "b.score": "sensor"}

    def of_b(payload: dict[str, Any]) -> dict[str, Any]:
        return {key: one for key, one in payload["components"].items() if key.startswith("b.")}

    first = announced(after, 0.0)
    assert all(list(one) == ["platform"] for one in of_b(first).values())
    assert {key: of_b(first)[key]["platform"] for key in gone} == gone
    assert "a.score" in first["components"]
    assert "b.score" in json.loads(after.memory())["components"], "Home Assistant may not have been there"

    after.heard(after.status_topic, b"online", 100.0)
    told = announced(after, 115.0)
    assert device_trouble(told) == ""
    assert of_b(told)["b.score"]["unique_id"] == "amiss.n.b.score"
    assert not after.due(119.9)
    assert after.due(120.0)
    assert all(list(one) == ["platform"] for one in of_b(announced(after, 120.0)).values())
    assert not after.due(1e9)
    assert "b.score" not in json.loads(after.memory())["components"]
    after.changed(200.0)
    assert of_b(announced(after, 200.0)) == {}


def test_a_birth_between_the_two_starts_over() -> None:
    before = assistant(configured(streams={"b": {"port": "p"}}))
    after = assistant(memory=before.memory())
    announced(after, 0.0)
    after.heard(after.status_topic, b"online", 100.0)
    announced(after, 115.0)
    after.heard(after.status_topic, b"online", 116.0)
    assert len(announced(after, 120.0)["components"]["b.score"]) == 1
    assert after.due(131.0)


def test_a_stream_that_comes_back_is_not_taken_back() -> None:
    both = configured(streams={"a": {"port": "p"}, "b": {"port": "p"}})
    without = assistant(memory=assistant(both).memory())
    again = assistant(both, memory=without.memory())
    assert len(announced(again, 0.0)["components"]["b.score"]) > 1


@pytest.mark.parametrize("memory", [b"", b"{", b"[]", b'{"topic": 1}', b"\xff"])
def test_a_memory_that_cannot_be_read_is_none(memory: bytes) -> None:
    assert announced(assistant(memory=memory), 0.0)["components"].keys() == components(configured(), 1.0).keys()
    assert stale_topic(configured(), memory) is None


def test_where_it_was_announced_before_is_known() -> None:
    memory = assistant().memory()
    assert stale_topic(configured(), memory) is None
    assert stale_topic(configured(homeassistant=None), memory) == "homeassistant/device/amiss_n/config"
    assert stale_topic(configured(homeassistant={"prefix": "ha"}), memory) == "homeassistant/device/amiss_n/config"
    elsewhere = HomeAssistant(configured(homeassistant={"prefix": "ha"}), judged_every_s=1.0, memory=memory)
    topic, payload = elsewhere.announcement(info(), 0.0)
    assert topic == "ha/device/amiss_n/config"
    assert all("unique_id" in one for one in json.loads(payload)["components"].values())


@pytest.mark.parametrize("prefix", ["", "/", "a/", "/a", "a+b", "#"])
def test_a_prefix_that_makes_no_topic_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"homeassistant\.prefix"):
        configured(homeassistant={"prefix": prefix})


def test_controls_are_there_for_what_may_be_asked() -> None:
    def controls(update: dict[str, Any] | None = None, **requests: Any) -> set[str]:
        more = {} if update is None else {"update": update}
        return {name for name, one in components(configured(requests=requests, **more), 1.0).items() if "command_topic" in one}

    every = {"a.false_alarm", "a.recalibrate", "a.roll_back", "a.maintenance", "false_alarms"}
    assert controls() == every
    assert controls(allow=["feedback", "config"]) == {"a.false_alarm", "false_alarms"}
    assert controls(update=UPDATE, allow=["update", "rollback"]) == {"model", "previous_model"}
    assert controls(allow=["update", "rollback"]) == set(), "a device that takes no models"
    assert controls(allow=[]) == controls(token="t") == controls(token="t", allow=["feedback"]) == set()
