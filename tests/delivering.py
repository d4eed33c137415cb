"""Records put, delivered and heard: what tests of delivery have in common."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
from mosquitto import Listener, Mosquitto
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge.config import MqttConfig
from edge.delivery import Delivery, topics
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Kind, Outbox
from edge.event import Event

NODE = "node-1"
EVENT_TOPIC = topics.event(NODE, "pump")
STATE_TOPIC = topics.state(NODE, "pump")
AVAILABILITY = topics.availability(NODE)
SOON = (0.05, 0.3)
"""Back-off of tests: nobody wants to wait."""


@contextmanager
def delivering(config: MqttConfig, outbox: Outbox, **options: Any) -> Iterator[Delivery]:
    delivery = Delivery(MqttSink(config, NODE), outbox, **{"backoff_s": SOON, **options})
    delivery.start()
    try:
        yield delivery
    finally:
        delivery.stop(0.0)


def put(outbox: Outbox, delivery: Delivery | None = None, topic: str = EVENT_TOPIC, *, kind: Kind = "alert") -> str:
    event = Event(type="anomaly_started", episode=1, time_ns=2_000_000_000, since_ns=1_000_000_000, p_value=0.001)

    def payload(record: str) -> bytes:
        return topics.encode(
            topics.event_payload(event, stream="pump", episode_id="e", record=record, offset_ns=time.time_ns())
        )

    record = outbox.put(kind, topic, payload)
    if delivery is not None:
        delivery.wake()
    return record


def parked(outbox: Outbox) -> list[tuple[int, str]]:
    """Sequence of each record that was refused since the start, and why; oldest first."""
    with outbox._lock:
        rows = outbox._connection.execute(
            "SELECT key & 0xffffffffffff, reason FROM record WHERE reason IS NOT NULL ORDER BY key"
        )
        return rows.fetchall()


def records(listener: Listener, topic: str = EVENT_TOPIC) -> list[str]:
    """Those that came alone."""
    return [json.loads(payload)["record"] for payload in listener.payloads(topic)]


def events(listener: Listener, topic: str = EVENT_TOPIC) -> list[dict[str, Any]]:
    """Those that came alone, then those that came together."""
    together = [event for payload in listener.payloads(topics.batch(topic)) for event in json.loads(payload)]
    return [*(json.loads(payload) for payload in listener.payloads(topic)), *together]


@contextmanager
def somebody(broker: Mosquitto) -> Iterator[paho.Client]:
    """Who asks."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def send(client: paho.Client, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """It has arrived at the broker when this returns."""
    client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5.0)


def noticed_within_s(keepalive_s: int) -> float:
    """What is promised of a connection with nobody at the other end. paho alone needs two keep-alives: to tell the two apart,
    a keep-alive has to be longer than 3 s."""
    return min(60.0, 1.5 * keepalive_s + 1.5)
