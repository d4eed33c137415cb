"""Sessions and delivery against a real Mosquitto; a scripted broker only for what no real one does on command."""

import gc
import json
import logging
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from delivering import (
    AVAILABILITY,
    EVENT_TOPIC,
    NODE,
    SOON,
    STATE_TOPIC,
    delivering,
    events,
    noticed_within_s,
    parked,
    put,
    records,
    send,
    somebody,
)
from mosquitto import Authority, Listener, Mosquitto, free_port, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from scripted import Scripted, puback

from edge.config import MqttConfig, TlsConfig
from edge.delivery import Delivery, topics
from edge.delivery.mqtt import MAX_INCOMING_BYTES, MAX_UNACKNOWLEDGED, MqttSink, SessionLostError, connect_once
from edge.delivery.outbox import Counts, Outbox
from edge.errors import AccessError, AmissError, ConfigError, SinkUnavailableError, StorageError


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path / "outbox.db", device=NODE, boot="b")) as outbox:
        yield outbox


def adds_up(counts: Counts) -> bool:
    return counts.accepted == counts.delivered + counts.waiting + counts.parked + counts.dropped


def forever(sink: MqttSink) -> None:
    while True:
        sink.turn(0.1)


# What is on the bus.


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_life_from_birth_to_a_good_end(mosquitto: Mosquitto, outbox: Outbox, version: Any) -> None:
    with Listener(mosquitto.port) as listener:
        with delivering(mosquitto.config(version=version), outbox) as delivery:
            delivery.publish_retained(STATE_TOPIC, b'{"p_value":0.5}', qos=0)
            delivery.set_availability("pump", True)
            record = put(outbox, delivery)
            listener.wait(lambda heard: len(heard) >= 4)
            until(lambda: outbox.counts.delivered == 1)
            assert delivery.connected
            assert (delivery.published, delivery.trouble) == (1, "")
            assert delivery.health() == topics.MqttHealth(
                connected=True, queued=0, published=1, dropped=0, parked=0, written_bytes_today=outbox.written_bytes_today
            )
            assert outbox.written_bytes_today > 0
            with Listener(mosquitto.port) as late:  # what is there for who comes later
                late.wait(lambda heard: len(heard) >= 3)
                assert {(heard.topic, heard.payload, heard.retained) for heard in late.heard} == {
                    (AVAILABILITY, b"online", True),
                    (STATE_TOPIC, b'{"p_value":0.5}', True),
                    (topics.stream_availability(NODE, "pump"), b"online", True),
                }
            delivery.stop(5.0)
            assert not delivery.connected
        listener.wait(lambda heard: heard[-1].topic == AVAILABILITY and heard[-1].payload == b"offline")
        assert listener.payloads(AVAILABILITY) == [b"online", b"offline"]
        assert records(listener) == [record]
    assert "amiss-node-1 disconnected." in mosquitto.log.read_text() or "Received DISCONNECT" in mosquitto.log.read_text()
    delivery.check()


def test_mqtt_5_says_what_it_is_and_how_long_it_keeps(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with Listener(mosquitto.port) as listener, delivering(mosquitto.config(), outbox) as delivery:
        delivery.set_state(
            "pump", topics.StatePayload(time="t", time_ns=1, anomaly=False, score=1.0, p_value=0.5, threshold=0.01, model="m")
        )
        put(outbox, delivery)
        listener.wait(lambda heard: {EVENT_TOPIC, STATE_TOPIC} <= {one.topic for one in heard})
        by_topic = {heard.topic: heard.properties for heard in listener.heard}
        for topic, kind, expiry_s in (
            (AVAILABILITY, "text/plain", None),
            (EVENT_TOPIC, "application/json", 30 * 24 * 3600),
            (STATE_TOPIC, "application/json", 3600),
        ):
            assert getattr(by_topic[topic], "ContentType", None) == kind
            said = getattr(by_topic[topic], "MessageExpiryInterval", None)
            assert said == expiry_s or (expiry_s and said and expiry_s - 5 <= said <= expiry_s)


def test_the_newest_value_comes_again_with_every_session(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with delivering(mosquitto.config(), outbox) as delivery:
        for i in range(50):
            delivery.publish_retained(STATE_TOPIC, b'{"i":%d}' % i, qos=0)
        until(lambda: delivery.connected)
        mosquitto.kill()
        until(lambda: not delivery.connected)
        delivery.publish_retained(STATE_TOPIC, b'{"i":"newest"}', qos=0)
        for name in ("mosquitto.db",):
            (mosquitto.log.parent / name).unlink(missing_ok=True)  # the broker has forgotten everything
        mosquitto.start()
        with Listener(mosquitto.port) as listener:
            listener.wait(lambda heard: any(one.payload == b'{"i":"newest"}' for one in heard))
            assert listener.payloads(AVAILABILITY)[-1] == b"online"


AGENT = """
import sys, time
from pathlib import Path
from edge.config import MqttConfig
from edge.delivery import Delivery
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
outbox = Outbox(Path(sys.argv[2]), device="node-1", boot=sys.argv[3])
delivery = Delivery(MqttSink(MqttConfig(host="127.0.0.1", port=int(sys.argv[1])), "node-1"), outbox)
delivery.start()
while not delivery.connected:
    time.sleep(0.01)
print("online", flush=True)
while True:
    print(outbox.put("alert", "amiss/node-1/pump/event", lambda record: b'{"record":"%s"}' % record.encode()), flush=True)
    delivery.wake()
    time.sleep(0.002)
"""


def test_the_broker_tells_of_a_killed_agent_and_the_next_one_delivers_the_rest(mosquitto: Mosquitto, tmp_path: Path) -> None:
    accepted = []
    with Listener(mosquitto.port) as listener:
        for boot in ("b1", "b2"):
            arguments = [sys.executable, "-c", AGENT, str(mosquitto.port), str(tmp_path / "o.db"), boot]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as agent:
                assert agent.stdout is not None
                assert agent.stdout.readline() == "online\n"
                accepted += [agent.stdout.readline().strip() for _ in range(100)]
                agent.kill()
                accepted += [line.strip() for line in agent.stdout if line.endswith("\n")]
        listener.wait(lambda heard: listener.payloads(AVAILABILITY)[-1:] == [b"offline"])
        with closing(Outbox(tmp_path / "o.db", device=NODE, boot="b3")) as outbox, delivering(mosquitto.config(), outbox):
            until(lambda: not outbox.counts.waiting)
        heard = records(listener)
    assert set(heard) >= set(accepted)
    assert len(heard) - len(set(heard)) <= 2 * MAX_UNACKNOWLEDGED  # what was under way when it was killed
    assert listener.payloads(AVAILABILITY)[:4] == [b"online", b"offline", b"online", b"offline"]


def test_events_outlive_a_broker_that_is_killed_again_and_again(tmp_path: Path, outbox: Outbox) -> None:
    # Unlimited in flight, so that Mosquitto forwards at once and keeps little in its memory. It acknowledges a moment before it
    # forwards, and with its connection goes what the listener had not read: a kill costs what is on its way. That is the
    # broker's promise to keep; ours is the next test.
    accepted: list[str] = []
    with (
        Mosquitto(tmp_path / "broker", options="max_inflight_messages 0\nmax_queued_messages 0") as broker,
        Listener(broker.port, EVENT_TOPIC, name="keeper") as listener,
        delivering(broker.config(), outbox) as delivery,
    ):
        broker.save()  # that there is a listener
        until((broker.log.parent / "mosquitto.db").exists)
        for kills in (1, 2, 3):
            accepted += [put(outbox, delivery) for _ in range(60)]
            listener.wait_for_different(len(accepted) - kills * MAX_UNACKNOWLEDGED)
            broker.kill()
            accepted += [put(outbox, delivery)]
            broker.start()
            until(lambda: not outbox.counts.waiting)
            # What waits in the broker's memory for a listener that is away would go with the next kill.
            listener.wait_for_session(kills + 1)
            listener.wait_for_different(len(accepted) - kills * MAX_UNACKNOWLEDGED)
    assert set(records(listener)) <= set(accepted)
    assert outbox.counts.delivered == len(accepted)


def test_nothing_is_forgotten_that_the_broker_has_not_acknowledged(outbox: Outbox) -> None:
    """The connection breaks before or after every seventh acknowledgement or so; the broker's memory is perfect."""
    chance = random.Random(3)
    broker = Scripted()

    def answer(mid: int, topic: str) -> bytes:
        moment = chance.random() if topic == EVENT_TOPIC else 1.0
        if moment < 0.07:
            broker.hang_up()
        if moment > 0.07:
            assert broker.connection is not None
            broker.connection.sendall(puback(mid))
        if 0.07 < moment < 0.14:
            broker.hang_up()
        return b""

    broker.on_publish = answer
    with broker, delivering(broker.config(), outbox, backoff_s=(0.001, 0.002)) as delivery:
        accepted = [put(outbox, delivery) for _ in range(100)]
        until(lambda: not outbox.counts.waiting)
    seen = [json.loads(payload)["record"] for payload in broker.payloads]
    assert len(broker.published) > 5
    assert set(seen) == set(accepted)
    assert outbox.counts.delivered == 100
    assert outbox.counts.parked == 0


def test_an_event_that_waited_is_history(mosquitto: Mosquitto, outbox: Outbox) -> None:
    old, new = put(outbox), put(outbox)
    outbox._connection.execute("UPDATE record SET time_ns = time_ns - 61000000000 WHERE key = 1")
    with Listener(mosquitto.port, EVENT_TOPIC) as listener, delivering(mosquitto.config(), outbox):
        listener.wait(lambda heard: len(heard) == 2)
    said = [msgspec.json.decode(payload, type=topics.EventPayload) for payload in listener.payloads(EVENT_TOPIC)]
    assert {event.record: event.historical for event in said} == {old: True, new: False}


def test_stop_delivers_what_it_can_in_its_time(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with delivering(mosquitto.config(), outbox) as delivery:
        until(lambda: delivery.connected)
        for _ in range(200):
            put(outbox)
        delivery.stop(10.0)
        assert outbox.counts.delivered == 200


def test_stop_does_not_wait_for_a_broker_that_is_not_there(outbox: Outbox) -> None:
    put(outbox)
    with delivering(MqttConfig(host="127.0.0.1", port=free_port()), outbox, backoff_s=(600.0, 600.0)) as delivery:
        until(lambda: delivery.trouble)
        begin = time.monotonic()
        delivery.stop(600.0)
        assert time.monotonic() - begin < 60.0
    assert outbox.counts.waiting == 1


def test_a_broker_that_stops_answering_cannot_keep_us_from_stopping(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with Listener(mosquitto.port) as listener:
        with delivering(mosquitto.config(), outbox) as delivery:
            until(lambda: delivery.connected)
            mosquitto.signal(signal.SIGSTOP)
            put(outbox, delivery)
            begin = time.monotonic()
            delivery.stop(0.5)
            assert time.monotonic() - begin < 20.0, "as long as the broker stands still: for ever"
            mosquitto.signal(signal.SIGCONT)
        listener.wait(lambda heard: listener.payloads(AVAILABILITY)[-1:] == [b"offline"])  # said by us or by the last will
    assert outbox.counts.waiting + outbox.counts.delivered == 1


def test_who_cannot_say_offline_leaves_it_to_the_last_will(outbox: Outbox) -> None:
    """A DISCONNECT would tell the broker to forget the will, and `online` would stay for ever."""
    with Scripted() as broker, delivering(broker.config(), outbox) as delivery:
        until(lambda: delivery.connected)
        delivery.stop(0.0)
        time.sleep(0.2)  # a farewell would need that to arrive
        assert broker.farewells == 0
        assert [topic for _, topic in broker.published[0]] == [AVAILABILITY, AVAILABILITY]


# What others send.

REQUESTS = topics.requests(NODE)
PING = topics.request(NODE, "ping")


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_requests_are_heard_and_answered_in_every_session(mosquitto: Mosquitto, outbox: Outbox, version: Any) -> None:
    heard: list[tuple[str, bytes]] = []
    delivery = Delivery(MqttSink(mosquitto.config(version=version), NODE), outbox, backoff_s=SOON)

    def receive(topic: str, payload: bytes) -> None:
        heard.append((topic, payload))
        delivery.respond(topics.response(NODE, "ping"), b'{"status":"ok","n":%d}' % len(heard))

    delivery.subscribe(REQUESTS, receive)
    delivery.start()
    until(lambda: delivery.connected)
    with Listener(mosquitto.port, "amiss/+/response/+") as listener:
        for session in (1, 2):
            with somebody(mosquitto) as client:
                send(client, PING, b"{}")
                send(client, EVENT_TOPIC, b"{}")  # not subscribed to
                send(client, PING, bytes(200_000))
                until(lambda: len(heard) == 2 * session)  # noqa: B023
            listener.wait(lambda _: len(set(listener.payloads(topics.response(NODE, "ping")))) == 2 * session)  # noqa: B023
            if session == 1:
                mosquitto.kill()
                until(lambda: not delivery.connected)
                mosquitto.start()
                until(lambda: delivery.connected)
                listener.wait_for_session(2)
    delivery.stop(5.0)
    delivery.check()
    assert [(topic, len(payload)) for topic, payload in heard] == [(PING, 2), (PING, MAX_INCOMING_BYTES + 1)] * 2


def test_what_the_broker_has_retained_is_no_request(mosquitto: Mosquitto, outbox: Outbox) -> None:
    heard: list[bytes] = []
    with somebody(mosquitto) as client:
        send(client, PING, b"old", retain=True)
        delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox, backoff_s=SOON)
        delivery.subscribe(REQUESTS, lambda topic, payload: heard.append(payload))
        delivery.start()
        until(lambda: delivery.connected and "SUBACK" in mosquitto.log.read_text())
        send(client, PING, b"new", retain=True)
        until(lambda: b"new" in heard)
        delivery.stop(1.0)
    assert heard == [b"new"]


def test_what_is_longer_than_any_request_does_not_reach_the_device(mosquitto: Mosquitto, outbox: Outbox) -> None:
    """The broker is told so; MQTT 3.1.1 has no words for it."""
    heard: list[int] = []
    delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox, backoff_s=SOON)
    delivery.subscribe(REQUESTS, lambda topic, payload: heard.append(len(payload)))
    delivery.start()
    with somebody(mosquitto) as client:
        until(lambda: delivery.connected and "SUBACK" in mosquitto.log.read_text())
        for size in (MAX_INCOMING_BYTES, 300_000, MAX_INCOMING_BYTES + 5, 1):
            send(client, PING, bytes(size))
        until(lambda: heard[-1:] == [1])
        assert delivery.connected
        delivery.stop(1.0)
    assert heard == [MAX_INCOMING_BYTES, MAX_INCOMING_BYTES + 1, 1]


@pytest.mark.parametrize(("version", "kept"), [("5", [b"while away"]), ("3.1.1", [])])
def test_a_request_into_a_hole_of_the_network(mosquitto: Mosquitto, outbox: Outbox, version: Any, kept: list[bytes]) -> None:
    heard: list[bytes] = []
    sink = MqttSink(mosquitto.config(version=version), NODE)
    delivery = Delivery(sink, outbox, backoff_s=(1.0, 1.0))
    delivery.subscribe(REQUESTS, lambda topic, payload: heard.append(payload))
    delivery.start()
    with somebody(mosquitto) as client:
        until(lambda: delivery.connected and "SUBACK" in mosquitto.log.read_text())
        assert sink._client is not None
        raw = sink._client.socket()
        assert raw is not None
        raw.shutdown(socket.SHUT_RDWR)
        until(lambda: not delivery.connected)
        send(client, PING, b"while away")
        until(lambda: delivery.connected and mosquitto.log.read_text().count("Sending SUBACK to amiss-node-1") == 2)
        send(client, PING, b"back")
        until(lambda: heard[-1:] == [b"back"])
        delivery.stop(1.0)
        assert heard == [*kept, b"back"]
        # Whoever has left for good comes back to a clean table.
        send(client, PING, b"after the end")
        with closing(MqttSink(mosquitto.config(version=version), NODE)) as again:
            again.subscribe(REQUESTS)
            again.connect()
            send(client, PING, b"again")
            until(lambda: (again.turn(0.1), again._messages)[1])
            assert [message.payload for message in again.messages()] == [b"again"]


def test_a_request_that_the_broker_repeats_is_handed_on_once(outbox: Outbox) -> None:
    """Its PUBACK was lost with the session: the broker has to send it again, with the same packet id and marked so."""
    body = len(PING).to_bytes(2, "big") + PING.encode() + b"\0\7" + b"\0" + b"{}"
    heard: list[bytes] = []
    with Scripted(puback) as broker:
        delivery = Delivery(MqttSink(broker.config(version="5"), NODE), outbox, backoff_s=SOON)
        delivery.subscribe(REQUESTS, lambda topic, payload: heard.append(payload))
        delivery.start()
        for session, (flags, expected) in enumerate([(0x32, 1), (0x3A, 1), (0x32, 2)]):
            until(lambda: len(broker.published) == session + 1 and broker.published[session])  # noqa: B023
            assert broker.connection is not None
            broker.connection.sendall(bytes([flags, len(body)]) + body)
            until(lambda: len(broker.acknowledged) == session + 1)  # noqa: B023
            broker.hang_up()
            until(lambda: len(heard) == expected)  # noqa: B023
        delivery.stop(0.0)
    assert broker.clean_starts[:3] == [True, False, False]


@pytest.mark.parametrize(("version", "code"), [("5", 0x87), ("3.1.1", 0x80)])
def test_a_broker_that_forbids_subscribing_is_told_of_once(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, version: Any, code: int
) -> None:
    with Scripted(puback) as broker:
        broker.on_subscribe = code
        delivery = Delivery(MqttSink(broker.config(version=version), NODE), outbox, backoff_s=SOON)
        delivery.subscribe(REQUESTS, lambda topic, payload: None)
        delivery.start()
        put(outbox, delivery)
        until(lambda: delivery.trouble and outbox.counts.delivered == 1)  # records flow all the same
        broker.hang_up()
        until(lambda: len(broker.published) == 2 and delivery.trouble.endswith("ACL"))
        delivery.stop(0.0)
    said = [line for line in caplog.messages if "does not let `anonymous` subscribe to amiss/node-1/request/+" in line]
    assert len(said) == 1
    assert said[0].endswith("allow it to read that topic in the broker's ACL")


def test_answers_wait_for_the_broker_and_the_oldest_goes(mosquitto: Mosquitto, outbox: Outbox) -> None:
    records_, answers = [put(outbox) for _ in range(3)], topics.response(NODE, "ping")
    delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox, backoff_s=SOON)
    for i in range(130):
        delivery.respond(answers, b"%d" % i)
    with Listener(mosquitto.port) as listener:
        delivery.start()
        listener.wait(lambda heard: len(records(listener)) == 3)
        delivery.stop(1.0)
    assert listener.payloads(answers) == [b"%d" % i for i in range(30, 130)]
    told = [heard.topic for heard in listener.heard]
    assert max(i for i, topic in enumerate(told) if topic == answers) < told.index(EVENT_TOPIC)
    assert records(listener) == records_


def test_a_value_can_be_taken_back(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with delivering(mosquitto.config(), outbox) as delivery:
        delivery.publish_retained(STATE_TOPIC, b"{}")
        with Listener(mosquitto.port, STATE_TOPIC) as listener:
            listener.wait(lambda heard: heard)
            delivery.forget_retained(STATE_TOPIC)
            listener.wait(lambda heard: len(heard) == 2)
        until(lambda: STATE_TOPIC not in delivery._latest)
        with Listener(mosquitto.port, "amiss/#") as late:
            late.wait(lambda heard: heard)
            assert {heard.topic for heard in late.heard} == {AVAILABILITY}
        delivery.publish_retained(STATE_TOPIC, b'{"anew":1}')
        with Listener(mosquitto.port, STATE_TOPIC) as late:
            late.wait(lambda heard: heard and heard[-1].payload == b'{"anew":1}')


def test_what_a_receiver_raises_ends_the_delivery_thread(mosquitto: Mosquitto, outbox: Outbox) -> None:
    def bug(topic: str, payload: bytes) -> None:
        raise ZeroDivisionError("in a receiver")

    delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox, backoff_s=SOON)
    delivery.subscribe(REQUESTS, bug)
    delivery.start()
    with somebody(mosquitto) as client:
        until(lambda: delivery.connected and "SUBACK" in mosquitto.log.read_text())
        send(client, PING, b"{}")
    until(lambda: not delivery._thread.is_alive())
    with pytest.raises(ZeroDivisionError, match="in a receiver"):
        delivery.check()
    delivery.stop(1.0)


# The application's word.

ACK, ACKED = topics.request(NODE, "ack"), topics.response(NODE, "ack")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox that keeps alerts until the application has them; it waits for that less long than a real one."""
    with closing(Outbox(tmp_path / "keeper.db", device=NODE, boot="b", ack="application", resend_s=(0.5, 2.0))) as outbox:
        yield outbox


def answer(listener: Listener, number: int = 1) -> dict[str, Any]:
    listener.wait(lambda heard: len(listener.payloads(ACKED)) >= number)
    said: dict[str, Any] = json.loads(listener.payloads(ACKED)[number - 1])
    return said


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_an_alert_comes_again_until_the_application_has_it(mosquitto: Mosquitto, keeper: Outbox, version: Any) -> None:
    with (
        Listener(mosquitto.port) as listener,
        delivering(mosquitto.config(version=version), keeper) as delivery,
        somebody(mosquitto) as application,
    ):
        alerts, telemetry = [put(keeper) for _ in range(30)], put(keeper, delivery, kind="telemetry")
        listener.wait(lambda heard: {*alerts, telemetry} == set(records(listener)))
        until(lambda: (keeper.counts.awaiting, keeper.counts.delivered) == (30, 1))
        listener.wait(lambda heard: records(listener).count(alerts[0]) >= 3)
        assert delivery.health().awaiting == delivery.health().queued == 30
        send(application, ACK, json.dumps({"records": [*alerts[:29], "n-x-1"], "transaction": 7}).encode())
        assert answer(listener) == {"status": "ok", "data": {"deleted": 29, "unknown": ["n-x-1"]}, "transaction": 7}
        assert keeper.counts.waiting == 1
        listener.wait(lambda heard: records(listener).count(alerts[29]) > records(listener).count(alerts[28]) + 1)
        send(application, ACK, json.dumps({"records": alerts}).encode())
        assert answer(listener, 2)["data"] == {"deleted": 1, "unknown": alerts[:29]}
        assert adds_up(keeper.counts)
        assert keeper.counts.delivered == 31


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", "Input data was truncated; send"),
        (b"\xff\xfe", "JSON is malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"transaction": "t"}', "missing required field `records`"),
        (b'{"records": [1], "transaction": "t"}', "Expected `str`, got `int`"),
        (b'{"records": [], "all": true, "transaction": "t"}', "unknown field `all`"),
        (b'{"records": [' + b'"",' * 1000 + b'""], "transaction": "t"}', "Expected `array` of length <= 1000"),
        (b'{"records": ["%s"]}' % (b"x" * 70_000), "more than 65536 bytes; acknowledge fewer at once"),
    ],
)
def test_an_acknowledgement_that_makes_no_sense_changes_nothing(
    mosquitto: Mosquitto, keeper: Outbox, payload: bytes, error: str
) -> None:
    with Listener(mosquitto.port) as listener, delivering(mosquitto.config(), keeper), somebody(mosquitto) as application:
        put(keeper)
        until(lambda: keeper.counts.awaiting == 1)
        send(application, ACK, payload)
        said = answer(listener)
        assert (said["status"], said.get("transaction")) == ("error", "t" if b'"t"' in payload else None)
        assert error in said["error"]
        assert "\n" not in said["error"]
    assert keeper.counts.awaiting == 1


def test_who_acknowledges_has_to_know_the_token(mosquitto: Mosquitto, keeper: Outbox) -> None:
    with (
        Listener(mosquitto.port) as listener,
        delivering(mosquitto.config(), keeper, token="geheim"),
        somebody(mosquitto) as application,
    ):
        record = put(keeper)
        until(lambda: keeper.counts.awaiting == 1)
        for number, token in enumerate(({}, {"token": "guess"}, {"token": "geheim"})):
            assert keeper.counts.awaiting == 1
            send(application, ACK, json.dumps({"records": [record], **token}).encode())
            assert answer(listener, number + 1)["status"] == ("ok" if number == 2 else "error")
        assert "wrong or missing `token`" in listener.payloads(ACKED)[0].decode()
        assert keeper.counts.awaiting == 0


def test_where_the_brokers_word_counts_an_acknowledgement_is_answered_so(mosquitto: Mosquitto, outbox: Outbox) -> None:
    delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox, backoff_s=SOON)
    elsewhere: list[bytes] = []
    delivery.subscribe(REQUESTS, lambda topic, payload: elsewhere.append(payload))
    delivery.start()
    with Listener(mosquitto.port) as listener, somebody(mosquitto) as application:
        until(lambda: delivery.connected and "SUBACK" in mosquitto.log.read_text())
        send(application, ACK, b'{"records":["n-b-1"]}')
        assert "set mqtt.ack" in answer(listener)["error"]
    delivery.stop(1.0)
    assert elsewhere == []  # it is answered once


# Several records in one message.

BATCH_TOPIC = topics.batch(EVENT_TOPIC)


def test_what_waited_leaves_together_in_order_and_alerts_before_it_alone(mosquitto: Mosquitto, outbox: Outbox) -> None:
    telemetry, others, alerts = [], [], []
    other = topics.event(NODE, "fan")
    for i in range(120):
        telemetry.append(put(outbox, kind="telemetry"))
        if i % 20 == 0:
            others.append(put(outbox, topic=other, kind="telemetry"))
            alerts.append(put(outbox))
    with Listener(mosquitto.port, "amiss/#") as listener:
        with delivering(mosquitto.config(batch_records=50), outbox) as delivery:
            until(lambda: outbox.counts.delivered == 132)
            assert delivery.published == 132
            late = put(outbox, delivery, kind="telemetry")
            listener.wait(lambda heard: late in records(listener))
            until(lambda: outbox.counts.delivered == 133)
        batches = [json.loads(payload) for payload in listener.payloads(BATCH_TOPIC)]
    assert [len(batch) for batch in batches] == [50, 50, 20]
    assert [event["record"] for batch in batches for event in batch] == telemetry
    assert [event["record"] for event in json.loads(listener.payloads(topics.batch(other))[0])] == others
    assert records(listener) == [*alerts, late]  # one that is alone has no company to wait for
    told = [heard.topic for heard in listener.heard]
    assert told.index(BATCH_TOPIC) > [i for i, topic in enumerate(told) if topic == EVENT_TOPIC][len(alerts) - 1]


def test_a_batch_that_waited_is_history_and_none_is_longer_than_the_broker_takes(tmp_path: Path, outbox: Outbox) -> None:
    kept = [put(outbox, kind="telemetry") for _ in range(60)]
    outbox._connection.execute("UPDATE record SET time_ns = time_ns - 61000000000")
    with (
        Mosquitto(tmp_path / "broker", options="max_packet_size 4000") as broker,
        Listener(broker.port, BATCH_TOPIC) as listener,
        delivering(broker.config(batch_records=50), outbox),
    ):
        until(lambda: outbox.counts.delivered == 60)
        listener.wait(lambda heard: len(events(listener)) == 60)
    assert [event["record"] for event in events(listener)] == kept
    assert {event["historical"] for event in events(listener)} == {True}
    assert max(map(len, listener.payloads(BATCH_TOPIC))) < 4000


def test_a_batch_that_is_refused_is_taken_apart(tmp_path: Path, outbox: Outbox) -> None:
    """The broker forbids the batches' topic: the records go alone, on theirs."""
    kept = [put(outbox, kind="telemetry") for _ in range(200)]
    with (
        Mosquitto(tmp_path / "broker", acl=ACL) as broker,
        Listener(broker.port, "amiss/#") as listener,
        delivering(broker.config(batch_records=50), outbox),
    ):
        listener.wait(lambda heard: len(records(listener)) == 200)
        until(lambda: outbox.counts.delivered == 200)
        assert broker.log.read_text().count(f"Denied PUBLISH from amiss-{NODE}") <= 4
    assert sorted(records(listener)) == sorted(kept)
    assert outbox.counts.parked == 0


def test_of_a_batch_that_the_broker_hangs_up_on_only_the_culprit_is_parked(outbox: Outbox) -> None:
    sent = [put(outbox, kind="telemetry") for _ in range(9)]
    culprit = outbox.put("telemetry", EVENT_TOPIC, b'{"record":"poison"}')
    sent += [put(outbox, kind="telemetry") for _ in range(9)]
    with Scripted() as broker:

        def receive(mid: int, topic: str) -> bytes:
            if b"poison" in broker.latest:
                broker.hang_up()
                return b""
            return puback(mid)

        broker.on_publish = receive
        with delivering(broker.config(batch_records=50), outbox, backoff_s=(0.001, 0.002)):
            until(lambda: not outbox.counts.waiting)
    assert [f"{NODE}-b-{sequence}" for sequence, _ in parked(outbox)] == [culprit]
    assert outbox.counts.delivered == len(sent)


# Who is not let in.


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def said(config: MqttConfig) -> tuple[type[AmissError], str]:
    with pytest.raises(AmissError) as caught:
        connect_once(config, NODE)
    assert "\n" not in str(caught.value)
    return type(caught.value), str(caught.value)


def test_a_wrong_password(tmp_path: Path) -> None:
    for version in ("5", "3.1.1"):
        with Mosquitto(tmp_path / version, password=("pump", "right")) as broker:
            kind, line = said(broker.config(username="pump", password="wrong", version=version))
            assert kind is AccessError
            assert line.startswith(f"broker 127.0.0.1:{broker.port}: does not let user `pump` in (Not authorized")
            assert line.endswith("check mqtt.username and mqtt.password")
            assert "a client without a user name" in said(broker.config(version=version))[1]
            connect_once(broker.config(username="pump", password="right", version=version), NODE)


def test_nobody_listens_on_the_port() -> None:
    port = free_port()
    kind, line = said(MqttConfig(host="127.0.0.1", port=port))
    assert kind is SinkUnavailableError
    assert line == f"broker 127.0.0.1:{port}: refuses the connection; does it run, and is mqtt.port right?"


def test_nobody_has_the_name() -> None:
    kind, line = said(MqttConfig(host="no-such-host.invalid", port=1883))
    assert kind is SinkUnavailableError
    assert line == "broker no-such-host.invalid:1883: no such host; check mqtt.host and this network's name service"


def test_tls_with_the_authority_and_a_client_certificate(tmp_path: Path, authority: Authority, outbox: Outbox) -> None:
    cert, key = authority.issue("node-1.example")
    tls = TlsConfig(ca=authority.ca, cert=cert, key=key)
    with Mosquitto(tmp_path / "broker", tls=authority, client_certificates=True) as broker:
        connect_once(broker.config(tls=tls), NODE)
        with delivering(broker.config(tls=tls), outbox) as delivery:
            for _ in range(300):
                put(outbox, delivery)
            until(lambda: outbox.counts.delivered == 300)
        kind, line = said(broker.config(tls=TlsConfig(ca=authority.ca)))
        assert kind is AccessError
        assert "wants a client certificate: mqtt.tls.cert and mqtt.tls.key" in line
        foreign = Authority(tmp_path / "foreign").issue("node-1.example")
        kind, line = said(broker.config(tls=TlsConfig(ca=authority.ca, cert=foreign[0], key=foreign[1])))
        assert kind is AccessError
        assert "does not accept mqtt.tls.cert and mqtt.tls.key" in line


def test_a_certificate_that_cannot_be_trusted(tmp_path: Path, authority: Authority) -> None:
    with Mosquitto(tmp_path / "broker", tls=authority) as broker:
        connect_once(broker.config(tls=TlsConfig(ca=authority.ca)), NODE)
        for tls in (TlsConfig(), TlsConfig(ca=Authority(tmp_path / "other").ca)):
            kind, line = said(broker.config(tls=tls))
            assert kind is AccessError
            assert "its certificate is not trusted" in line
            assert line.endswith("set mqtt.tls.ca to the authority that signed it")
        kind, line = said(broker.config(tls=TlsConfig(ca=authority.ca), host="127.0.0.1"))
        assert kind is AccessError
        assert "its certificate is not for `127.0.0.1`; set mqtt.host to the name it is for" in line


def test_a_handshake_that_fails_leaves_no_connection_open(tmp_path: Path, authority: Authority) -> None:
    def encrypted() -> set[int]:
        return {id(each) for each in gc.get_objects() if issubclass(type(each), ssl.SSLSocket) and each.fileno() != -1}

    with Mosquitto(tmp_path / "broker", tls=authority) as broker:
        before = encrypted()
        with pytest.raises(AccessError) as held:
            connect_once(broker.config(tls=TlsConfig()), NODE)
        assert encrypted() <= before, held


def test_tls_on_one_side_only(tmp_path: Path, authority: Authority, mosquitto: Mosquitto) -> None:
    kind, line = said(mosquitto.config(tls=TlsConfig(ca=authority.ca)))
    assert kind is SinkUnavailableError
    assert "does this port speak TLS?" in line
    with Mosquitto(tmp_path / "tls", tls=authority) as broker:
        kind, line = said(broker.config())
        assert kind is SinkUnavailableError
        assert "does it want TLS (an [mqtt.tls] section)?" in line


def test_tls_files_are_looked_at_when_built(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "text").write_text("no certificate")
    for tls, line in (
        (TlsConfig(ca="/nowhere/ca.pem"), "mqtt.tls.ca: /nowhere/ca.pem: no such file"),
        (TlsConfig(ca=str(tmp_path / "text")), "mqtt.tls.ca: .*: no PEM file that can be used"),
        (TlsConfig(cert="c.pem"), "`cert` and `key` go together"),
        (TlsConfig(cert="c.pem", key="k.pem"), "mqtt.tls.cert: c.pem or k.pem: no such file"),
    ):
        with pytest.raises(ConfigError, match=line):
            MqttSink(MqttConfig(tls=tls), NODE)


def test_what_is_no_broker_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        kind, line = said(MqttConfig(host="127.0.0.1", port=server.getsockname()[1]))
        thread.join()
    assert kind is SinkUnavailableError
    assert "hung up instead of answering; is it an MQTT broker" in line


def test_a_check_leaves_a_running_agent_alone(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with Listener(mosquitto.port) as listener, delivering(mosquitto.config(), outbox) as delivery:
        until(lambda: delivery.connected)
        connect_once(mosquitto.config(), NODE)
        put(outbox, delivery)
        listener.wait(lambda heard: records(listener))
        assert listener.payloads(AVAILABILITY) == [b"online"]
        assert delivery.connected


def test_trouble_is_told_once_per_change(tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broker = Mosquitto(tmp_path / "broker")
    with delivering(broker.config(), outbox, backoff_s=(0.01, 0.02)) as delivery:
        until(lambda: "refuses the connection" in delivery.trouble)
        time.sleep(0.3)  # some 20 attempts
        with broker:
            until(lambda: delivery.connected)
            until(lambda: not delivery.trouble)
            delivery.stop(1.0)
    lines = [record.message.partition(f":{broker.port}: ")[2] for record in caplog.records if record.name.startswith("edge")]
    assert lines == ["refuses the connection; does it run, and is mqtt.port right?", "connected as amiss-node-1"]


def test_back_off_grows_to_its_limit_and_is_half_chance(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery(MqttSink(MqttConfig(), NODE), outbox, chance=lambda: 0.0)
    waited: list[float] = []
    now = [0.0]

    def wait(timeout_s: float) -> None:
        waited.append(timeout_s)
        now[0] += timeout_s

    monkeypatch.setattr(delivery, "_clock", lambda: now[0])
    monkeypatch.setattr(delivery._sink, "wait", wait)
    for attempt in range(9):
        delivery._pause(attempt)
    delivery._chance = lambda: 1.0
    delivery._pause(0)
    delivery._pause(10_000)
    assert waited == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30, 1, 60])
    delivery.stop(0.0)


def test_a_take_over_is_called_that() -> None:
    with Scripted() as broker, closing(MqttSink(broker.config(version="5"), NODE)) as sink:
        sink.connect()
        assert broker.connection is not None
        broker.connection.sendall(b"\xe0\x02\x8e\x00")
        with pytest.raises(SessionLostError, match=r"another client took over as `amiss-node-1`; does a second agent") as lost:
            forever(sink)
        assert not lost.value.by_broker


def test_two_agents_of_one_name_do_not_fight_at_full_speed(
    mosquitto: Mosquitto, outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"backoff_s": (0.02, 1.0), "chance": lambda: 1.0}
    with (
        closing(Outbox(tmp_path / "other.db", device=NODE, boot="b")) as other,
        delivering(mosquitto.config(), outbox, **options) as one,
        delivering(mosquitto.config(), other, **options) as two,
    ):
        until(lambda: sum("does a second agent use this node's name?" in line for line in caplog.messages) == 2)
        lines = len([record for record in caplog.records if record.name.startswith("edge")])
        connects = mosquitto.log.read_text().count("New client connected")
        time.sleep(2.0)
        assert len([record for record in caplog.records if record.name.startswith("edge")]) == lines  # said once
        assert mosquitto.log.read_text().count("New client connected") - connects < 12
        one.check()
        two.check()


# What the broker refuses.

ACL = """\
topic readwrite $SYS/#
topic read #
topic write amiss/node-1/availability
topic write amiss/node-1/pump/event
"""


def test_what_the_broker_forbids_is_parked_and_the_others_flow(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    with Mosquitto(tmp_path / "broker", acl=ACL) as broker, Listener(broker.port, EVENT_TOPIC) as listener:
        forbidden = topics.event(NODE, "secret")
        for _ in range(30):  # more than may be under way
            put(outbox, topic=forbidden)
        allowed = [put(outbox) for _ in range(30)]
        with delivering(broker.config(), outbox) as delivery:
            delivery.publish_retained(topics.info(NODE), b"{}")
            delivery.publish_retained(topics.info(NODE), b'{"again":1}')
            listener.wait(lambda heard: len(heard) == 30)
            until(lambda: outbox.counts.parked == 30)
            until(lambda: outbox.counts.waiting == 0)
            assert delivery.health().parked == 30
        assert records(listener) == allowed
    assert (outbox.counts.delivered, outbox.counts.waiting) == (30, 0)
    assert {refusal for _, refusal in parked(outbox)} == {"Not authorized"}
    assert len([line for line in caplog.messages if line.startswith("amiss/node-1/info: refused: Not authorized")]) == 1
    assert len([line for line in caplog.messages if "parked until the next start: Not authorized" in line]) == 30


def test_without_parking_what_the_broker_forbids_would_stop_the_flow(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(Outbox, "park", lambda *arguments: None)
    with Mosquitto(tmp_path / "broker", acl=ACL) as broker, Listener(broker.port, EVENT_TOPIC) as listener:
        for _ in range(30):
            put(outbox, topic=topics.event(NODE, "secret"))
        put(outbox)
        with delivering(broker.config(), outbox):
            until(lambda: broker.log.read_text().count("Denied PUBLISH") > 60)
        assert records(listener) == []


def test_what_is_too_large_is_parked_and_the_others_flow(tmp_path: Path, outbox: Outbox) -> None:
    """The limit that the broker announces (packets), and the one that it only applies (payloads)."""
    for i, options in enumerate(["max_packet_size 2000", "message_size_limit 2000"]):
        with Mosquitto(tmp_path / str(i), options=options) as broker, Listener(broker.port, EVENT_TOPIC) as listener:
            outbox.put("alert", EVENT_TOPIC, b"x" * 3000)
            record = put(outbox)
            with delivering(broker.config(), outbox):
                listener.wait(lambda heard: len(heard) == 1, 5)
                until(lambda: outbox.counts.waiting == 0)
            assert set(records(listener)) == {record}
    # Mosquitto 2.0 says no to the second with a code that the standard does not have there, and paho hangs up.
    assert [refusal for _, refusal in parked(outbox)] == [
        "3000 bytes; the broker takes packets of up to 2000",
        "3 sessions broke when it was sent",
    ]


def test_a_broker_that_can_only_hang_up_does_not_stop_the_flow(tmp_path: Path, outbox: Outbox) -> None:
    """MQTT 3.1.1 has no way to say that a packet is too large: the broker ends the session, every time."""
    broker = Mosquitto(tmp_path / "broker", options="max_packet_size 2000")
    before = [put(outbox) for _ in range(5)]
    outbox.put("alert", EVENT_TOPIC, b"x" * 3000)
    after = [put(outbox) for _ in range(5)]
    with broker, Listener(broker.port, "amiss/#") as listener, delivering(broker.config(version="3.1.1"), outbox) as delivery:
        delivery.publish_retained(STATE_TOPIC, b'{"small":1}', qos=0)
        delivery.publish_retained(topics.health(NODE), b"y" * 3000, qos=0)
        listener.wait(lambda heard: len({one.payload for one in heard if one.topic == EVENT_TOPIC}) == 10)
        until(lambda: outbox.counts.waiting == 0)
        assert set(records(listener)) == {*before, *after}
        assert listener.payloads(STATE_TOPIC)
    assert [refusal for _, refusal in parked(outbox)] == ["3 sessions broke when it was sent"]
    assert outbox.counts.delivered == 10


def test_a_topic_that_mqtt_cannot_carry_is_parked(mosquitto: Mosquitto, outbox: Outbox) -> None:
    put(outbox, topic="amiss/node-1/#")
    record = put(outbox)
    with Listener(mosquitto.port, EVENT_TOPIC) as listener, delivering(mosquitto.config(), outbox):
        listener.wait(lambda heard: records(listener) == [record])
        until(lambda: outbox.counts.parked == 1 and outbox.counts.delivered == 1)


# A broker that does on command what a real one does on a bad day.


def test_never_more_than_twenty_are_unacknowledged(outbox: Outbox) -> None:
    for _ in range(60):
        put(outbox)
    with Scripted() as broker, delivering(broker.config(), outbox) as delivery:
        for i in range(30):
            delivery.publish_retained(f"amiss/{NODE}/s{i}/availability", b"online")
        until(lambda: broker.published and len(broker.published[0]) == MAX_UNACKNOWLEDGED)
        time.sleep(0.3)
        assert len(broker.published[0]) == MAX_UNACKNOWLEDGED  # the birth counts too
        assert delivery._sink._client is not None
        assert len(delivery._sink._client._out_messages) == MAX_UNACKNOWLEDGED  # nor does paho queue the rest
        assert broker.connection is not None
        broker.connection.sendall(puback(broker.published[0][0][0]))
        until(lambda: len(broker.published[0]) == MAX_UNACKNOWLEDGED + 1)  # one place is free, one more comes
        broker.hang_up()
        until(lambda: len(broker.published) > 1 and len(broker.published[1]) >= 2)
        time.sleep(0.3)
        assert len(broker.published[1]) == 2  # the birth, and one at a time until it is clear why the broker hung up
        broker.on_publish = lambda mid, topic: puback(mid) if len(broker.published[-1]) < 60 else b""
        broker.hang_up()
        until(lambda: len(broker.published) > 2 and len(broker.published[2]) > 70)  # and then many again
        broker.on_publish = puback
        broker.hang_up()
        until(lambda: outbox.counts.delivered == 60)


def test_a_broker_that_takes_fewer_is_given_fewer(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker", options="max_inflight_messages 3")
    with broker, closing(MqttSink(broker.config(), NODE)) as sink:
        sink.connect()
        until(lambda: sink.turn(0.1))
        assert sink.room == 3


def test_the_client_library_alone_would_send_its_whole_backlog() -> None:
    """The control: the same broker, the same library, used in the usual way."""
    with Scripted() as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        for _ in range(200):
            client.publish("x", b"", qos=1)
        client.connect("127.0.0.1", broker.port)
        until(lambda: client.loop(0.1) or (broker.published and len(broker.published[0]) > MAX_UNACKNOWLEDGED))
        client.disconnect()


def test_a_broker_that_is_quiet_is_not_gone(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with delivering(mosquitto.config(keepalive_s=2), outbox, backoff_s=(60.0, 60.0)) as delivery:
        until(lambda: delivery.connected)
        delivery.publish_retained(STATE_TOPIC, b"{}", qos=0)
        time.sleep(3.5)
        assert delivery.connected


def test_a_broker_that_went_silent_is_noticed_in_one_and_a_half_keepalives(mosquitto: Mosquitto, outbox: Outbox) -> None:
    with delivering(mosquitto.config(keepalive_s=4), outbox, backoff_s=(60.0, 60.0)) as delivery:
        until(lambda: delivery.connected)
        mosquitto.signal(signal.SIGSTOP)  # the kernel still takes our bytes
        begin = time.monotonic()
        while delivery.connected and time.monotonic() - begin < 20.0:
            delivery.publish_retained(STATE_TOPIC, b"{}", qos=0)
            time.sleep(0.02)
        assert time.monotonic() - begin <= noticed_within_s(4)
        until(lambda: "nothing heard for" in delivery.trouble)
        mosquitto.signal(signal.SIGCONT)


def test_the_client_library_alone_would_notice_later(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MqttSink, "_listen", lambda self: None)
    with closing(MqttSink(mosquitto.config(keepalive_s=4), NODE)) as sink:
        sink.connect()
        mosquitto.signal(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(SessionLostError):
            forever(sink)
        mosquitto.signal(signal.SIGCONT)
        assert time.monotonic() - begin > noticed_within_s(4)


def test_a_broker_that_answers_but_does_not_acknowledge_is_left(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    put(outbox)
    broker = Scripted(lambda mid, topic: puback(mid) if topic == AVAILABILITY else b"")
    with broker, delivering(broker.config(keepalive_s=1), outbox):
        until(lambda: len(broker.published) >= 2)
        assert any("answers, but does not acknowledge what it is sent" in line for line in caplog.messages)
        broker.on_publish = puback
        until(lambda: outbox.counts.delivered == 1)


def test_a_session_that_ends_at_once_is_not_tried_at_full_speed(outbox: Outbox) -> None:
    with Scripted() as broker:
        broker.on_publish = lambda mid, topic: broker.hang_up() or b""  # type: ignore[func-returns-value]
        with delivering(broker.config(), outbox, backoff_s=(0.1, 10.0), chance=lambda: 1.0):
            time.sleep(1.5)
    assert 3 <= len(broker.published) <= 5  # at 0, 0.1, 0.3, 0.7 and 1.5 s


# What must not go unnoticed.


def test_a_delivery_thread_that_dies_is_noticed(mosquitto: Mosquitto, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with delivering(mosquitto.config(), outbox) as delivery:
        until(lambda: delivery.connected)
        delivery.check()

        def bug(*arguments: object) -> None:
            raise ZeroDivisionError("in a callback")

        assert delivery._sink._client is not None
        delivery._sink._client.on_publish = bug
        put(outbox, delivery)
        until(lambda: not delivery._thread.is_alive())
        assert not delivery.connected
        with pytest.raises(ZeroDivisionError, match="in a callback"):
            delivery.check()
        delivery.stop(1.0)  # also now


def test_a_disk_that_takes_no_deletion_does_not_stop_delivery(
    mosquitto: Mosquitto, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = [True]
    delete = Outbox.delivered

    def delivered(self: Outbox, sequences: Any) -> None:
        if full[0]:
            raise StorageError("disk full")
        delete(self, sequences)

    monkeypatch.setattr(Outbox, "delivered", delivered)
    with Listener(mosquitto.port, EVENT_TOPIC) as listener, delivering(mosquitto.config(), outbox) as delivery:
        put_ = [put(outbox, delivery) for _ in range(50)]
        listener.wait(lambda heard: len(heard) == 50)
        time.sleep(0.2)
        assert records(listener) == put_  # and each only once
        full[0] = False
        put_ += [put(outbox, delivery)]
        until(lambda: outbox.counts.delivered == 51)
        assert records(listener) == put_
    assert caplog.messages.count("disk full") == 1


def test_no_descriptor_is_left_behind_by_many_sessions(mosquitto: Mosquitto) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        descriptors = Path("/dev/fd")
    with closing(MqttSink(mosquitto.config(), NODE)) as sink:
        sink.connect()
        before = len(list(descriptors.iterdir()))
        for _ in range(50):
            sink.connect()
        assert len(list(descriptors.iterdir())) <= before
