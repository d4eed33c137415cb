"""docs/mqtt.md tells the truth: its examples are published and received, and what a real agent sends is in it."""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from homeassistant import component_trouble, device_trouble
from integration.test_agent import agent, configure, recording
from mosquitto import Listener, Mosquitto, executable, until
from small_bundle import build

from edge.config import parse
from edge.delivery import topics
from edge.delivery.homeassistant import components
from edge.delivery.mqtt import MqttSink
from edge.operating.requests import BODIES
from edge.sensing.recordings import write_recording
from edge.updating.workflow import Progress

TEXT = (Path(__file__).parent.parent / "docs" / "mqtt.md").read_text()
NODE = "pump-7"


@dataclass(frozen=True)
class Example:
    topic: str
    retained: bool
    qos: int
    payload: str

    @property
    def kind(self) -> str:
        """The last word of the topic, or, of requests and answers, the one before."""
        parts = self.topic.split("/")
        return parts[2] if parts[2] in ("request", "response") else parts[-1]


EXAMPLES = [
    Example(topic, retained == "retained", int(qos), payload.strip())
    for topic, retained, qos, payload in re.findall(
        r"^`(\S+)` · (retained|not retained) · QoS ([01])\n\n```(?:json|text)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL
    )
]
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "info": topics.InfoPayload,
    "health": topics.HealthPayload,
    "state": topics.StatePayload,
    "event": topics.EventPayload,
    "response": topics.Response,
    "update": Progress,
}
PAYLOADS: dict[str, Any] = STRUCTS | {"events": list[topics.EventPayload]}
REQUESTS: dict[str, Any] = BODIES | {"ack": topics.AckRequest}  # the latter is answered by the delivery itself


def test_no_example_is_overlooked() -> None:
    assert len(EXAMPLES) == len(re.findall(r"^```(json|text)$", TEXT, re.MULTILINE)) > 20
    assert {example.kind for example in EXAMPLES} == {*PAYLOADS, "availability", "request", "config"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.topic)
def test_an_example_is_what_the_program_means_by_it(example: Example) -> None:
    parts = example.topic.split("/")
    if example.kind == "availability":
        assert example.payload.encode() in (topics.ONLINE, topics.OFFLINE)
    elif example.kind == "request":
        msgspec.json.decode(example.payload, type=REQUESTS[parts[3]])
    elif example.kind == "config":
        example_is_announced(json.loads(example.payload))
    else:
        said = json.loads(example.payload)
        decoded = msgspec.json.decode(example.payload, type=PAYLOADS[example.kind])
        known = json.loads(msgspec.json.encode(decoded))
        assert missing(said, known) == set(), "the program knows no such field, or leaves it out when it says this"


def example_is_announced(said: dict[str, Any]) -> None:
    assert device_trouble(said) == ""
    config = {"node": NODE, "bundle": "m", "streams": {"pump": {"port": "p"}}, "homeassistant": {}}
    real = components(parse(config), 0.1)
    shared = {"availability": said["availability"], "availability_mode": said["availability_mode"]}
    for name, component in said["components"].items():
        assert component == real[name]
        rest = shared | component
        assert component_trouble(rest.pop("platform"), rest) == ""


def test_the_how_to_names_entities_that_there_are() -> None:
    text = (Path(__file__).parent.parent / "docs" / "howto" / "home-assistant.md").read_text()
    config = {"node": NODE, "bundle": "m", "streams": {"pump": {"port": "p"}}, "homeassistant": {}}
    there = {component["default_entity_id"] for component in components(parse(config), 0.1).values()}
    named = set(re.findall(r"\b[a-z_]+\.pump_7_\w+", text))
    assert len(named) >= 10
    assert named <= there


def missing(said: Any, known: Any, at: str = "") -> set[str]:
    """Keys, as paths, that are in `said` and not in `known`."""
    if isinstance(said, dict) and isinstance(known, dict):
        return {f"{at}{key}" for key in said.keys() - known.keys()} | {
            path for key in said.keys() & known.keys() for path in missing(said[key], known[key], f"{at}{key}.")
        }
    if isinstance(said, list) and isinstance(known, list):
        return {path for a, b in zip(said, known, strict=True) for path in missing(a, b, at)}
    return set()


def test_the_check_finds_a_field_that_does_not_exist() -> None:
    """The control: one letter is wrong, and the example no longer passes."""
    (state,) = (example for example in EXAMPLES if example.kind == "state")
    wrong = Example(state.topic, state.retained, state.qos, state.payload.replace('"latency_ms"', '"latency"'))
    with pytest.raises(AssertionError, match="no such field"):
        test_an_example_is_what_the_program_means_by_it(wrong)
    (request,) = (example for example in EXAMPLES if example.topic.endswith("request/feedback"))
    wrong = Example(request.topic, False, 1, request.payload.replace("verdict", "veredict"))
    with pytest.raises(msgspec.ValidationError):
        test_an_example_is_what_the_program_means_by_it(wrong)


@pytest.mark.parametrize("kind", ["info", "health", "state", "event", "update"])
def test_every_field_is_explained(kind: str) -> None:
    unexplained = [
        name for name in STRUCTS[kind].__struct_fields__ if not re.search(rf"[`.…]{name}(`|\.)", TEXT.replace("<stream>", ""))
    ]
    assert unexplained == []


def test_every_verb_has_its_row_and_every_field_of_its_body_is_named() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*)$", TEXT[TEXT.index("## What you can ask") :], re.MULTILINE)
    assert {verb for verb, _ in rows} >= REQUESTS.keys()
    for verb, body in REQUESTS.items():
        text = " ".join(row for name, row in rows if name == verb)
        fields = set(body.__struct_fields__) - {"transaction", "token"}
        assert {name for name in fields if f'"{name}"' not in text} == set(), verb


def test_every_example_is_published_and_received(mosquitto: Mosquitto) -> None:
    with Listener(mosquitto.port) as listener, Listener(mosquitto.port, "nothing") as sender:
        for example in EXAMPLES:
            sender._client.publish(example.topic, example.payload, example.qos, example.retained).wait_for_publish(5.0)
        listener.wait(lambda heard: len(heard) == len(EXAMPLES))
        assert [(one.topic, one.payload.decode()) for one in listener.heard] == [(e.topic, e.payload) for e in EXAMPLES]
    with Listener(mosquitto.port) as late:
        late.wait(lambda heard: len(heard) == len({e.topic for e in EXAMPLES if e.retained}))
        assert {one.topic for one in late.heard} == {e.topic for e in EXAMPLES if e.retained}


def test_what_a_real_agent_sends_is_all_in_the_document(tmp_path: Path, mosquitto: Mosquitto) -> None:
    write_recording(tmp_path / "r.csv", recording())
    config = configure(tmp_path, build(tmp_path / "small.amiss"), mosquitto.port, "[homeassistant]")
    with Listener(mosquitto.port) as listener:
        with agent(config, "--replay", str(tmp_path / "r.csv"), "--once") as process:
            assert process.wait(30) == 0
        listener.wait(lambda heard: heard[-1].topic == "amiss/n/availability" and heard[-1].payload == b"offline")
        heard = {one.topic.replace("amiss/n/", f"amiss/{NODE}/").replace("/s/", "/pump/"): one for one in listener.heard}
    described = {example.topic: example for example in EXAMPLES}
    heard[f"homeassistant/device/amiss_{NODE}/config"] = heard.pop("homeassistant/device/amiss_n/config")
    assert heard.keys() <= described.keys()
    assert {"info", "health", "state", "event"} <= {topic.rpartition("/")[2] for topic in heard}
    for topic, one in heard.items():
        kind = described[topic].kind
        if kind in STRUCTS:
            sent = json.loads(one.payload)
            for open_ended in ("config", "config_schema", "versions", "streams", "excerpt"):
                sent.pop(open_ended, None)
            named = {path for path in missing(sent, {}) if not re.search(rf"[`.]{path}(`|\.)", TEXT)}
            assert named == set(), topic


def test_the_acl_lets_everybody_do_his_work_and_no_more(tmp_path: Path) -> None:
    (acl,) = re.findall(r"^```acl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    broker = Mosquitto(tmp_path / "broker", password=("pump-7", "p"), acl=acl)
    for user in ("fan-1", "operator", "homeassistant", "display"):
        users = tmp_path / "broker" / "users"
        subprocess.run([executable("mosquitto_passwd"), "-b", users, user, "p"], check=True, capture_output=True)
    examples = {example.topic: example for example in EXAMPLES}
    ours = [topic for topic, example in examples.items() if example.kind != "request"]
    asked = [topic for topic, example in examples.items() if example.kind == "request"]
    with (
        broker,
        Listener(broker.port, user=("operator", "p")) as operator,
        Listener(broker.port, user=("homeassistant", "p")) as assistant,
        Listener(broker.port, user=("display", "p")) as display,
        Listener(broker.port, user=("fan-1", "p")) as stranger,
        Listener(broker.port, user=("pump-7", "p")) as device,
    ):
        for topic in ours:
            publish(device, topic)
        for topic in asked:
            publish(operator, topic)
            publish(assistant, topic)
        publish(assistant, "homeassistant/status")
        for who in (stranger, display):  # none of these arrives
            for topic in (*ours, *asked):
                publish(who, topic)
        publish(device, "amiss/pump-7/last/availability")
        until(lambda: any(one.topic == "amiss/pump-7/last/availability" for one in display.heard))
        time.sleep(0.2)

        def topics_of(listener: Listener) -> list[str]:
            return sorted(one.topic for one in listener.heard if one.topic != "amiss/pump-7/last/availability")

        config = f"homeassistant/device/amiss_{NODE}/config"
        assert topics_of(operator) == sorted([*(set(ours) - {config}), *asked, *asked, "homeassistant/status"])
        assert topics_of(assistant) == sorted([*ours, *asked, *asked, "homeassistant/status"])
        assert topics_of(device) == sorted([*asked, *asked, "homeassistant/status"])
        assert topics_of(stranger) == ["homeassistant/status"]
        seen = [topic for topic in ours if topic.rpartition("/")[2] in ("state", "availability")]
        assert topics_of(display) == sorted([*seen, "homeassistant/status"])
        # A device with these rights works: the whole of its session is allowed.
        sink = MqttSink(broker.config(username="fan-1", password="p"), "fan-1")
        sink.connect()
        until(lambda: not sink.turn(0.05) and sink.connected)
        sink.close()


def publish(listener: Listener, topic: str) -> None:
    listener._client.publish(topic, "x", 1).wait_for_publish(5.0)
