"""Delivery under everything that a broker, a network and a process can do, counted; each with its control."""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho
import pytest
from delivering import EVENT_TOPIC, NODE, delivering, events, noticed_within_s, put, records, send, somebody
from mosquitto import Authority, Listener, Mosquitto, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from scripted import BlackHole, Slow

from edge.delivery import Delivery, topics
from edge.delivery.mqtt import MAX_UNACKNOWLEDGED, MqttSink, SessionLostError
from edge.delivery.outbox import Counts, Outbox

soak = pytest.mark.soak


def adds_up(counts: Counts) -> bool:
    return counts.accepted == counts.delivered + counts.waiting + counts.parked + counts.dropped


# The agent is killed.

LIFE = """
import os, random, sys, time
from pathlib import Path
from edge.config import MqttConfig
from edge.delivery import Delivery
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
outbox = Outbox(Path(sys.argv[2]), device="node-1", boot=sys.argv[3])
if sys.argv[4] == "nothing deleted":  # the control: what the broker has is not forgotten
    outbox.delivered = lambda sequences: None
delivery = Delivery(MqttSink(MqttConfig(host="127.0.0.1", port=int(sys.argv[1])), "node-1"), outbox)
delivery.start()
while not delivery.connected:
    time.sleep(0.01)
os.write(1, b"online\\n")
chance = random.Random(sys.argv[3])
while True:
    kind = chance.choice(["alert", "telemetry"])
    record = outbox.put(kind, "amiss/node-1/pump/event", lambda record: b'{"record":"%s"}' % record.encode())
    os.write(1, b"%s\\n" % record.encode())
    delivery.wake()
    time.sleep(0.002)
"""


def kill_agents(mosquitto: Mosquitto, path: Path, kills: int, kind: str = "") -> tuple[set[str], list[str], Counts]:
    """What `put` had returned for, what arrived, and what the outbox says in the end."""
    accepted, chance = set[str](), random.Random(8)
    with Listener(mosquitto.port, EVENT_TOPIC) as listener:
        for i in range(kills):
            arguments = [sys.executable, "-c", LIFE, str(mosquitto.port), str(path), f"b{i}", kind]
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as agent:
                assert agent.stdout is not None
                assert agent.stdout.readline() == "online\n"
                before = len(listener.heard)
                listener.wait(lambda heard, before=before: len(heard) > before)  # it is killed while it delivers
                killer = threading.Timer(chance.uniform(0.3, 1.0), agent.send_signal, (signal.SIGKILL,))
                killer.start()
                accepted |= {line.strip() for line in agent.stdout if line.endswith("\n")}
                assert agent.wait() == -signal.SIGKILL
        with closing(Outbox(path, device=NODE, boot="end")) as outbox, delivering(mosquitto.config(), outbox):
            until(lambda: not outbox.counts.waiting, 60)
            counts = outbox.counts
        listener.wait(lambda heard: len(set(records(listener))) >= counts.accepted)
        return accepted, records(listener), counts


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=soak)])
def test_a_killed_agent_loses_nothing_and_repeats_little(mosquitto: Mosquitto, tmp_path: Path, kills: int) -> None:
    accepted, heard, counts = kill_agents(mosquitto, tmp_path / "outbox.db", kills)
    lost, twice = len(accepted - set(heard)), len(heard) / len(set(heard)) - 1
    print(f"{kills} kills: {len(accepted)} accepted, {lost} lost, {twice:.1%} twice")
    assert len(accepted) > 20 * kills
    assert accepted <= set(heard)
    assert len(set(heard)) == counts.accepted == counts.delivered
    assert len(heard) - len(set(heard)) <= 0.05 * len(set(heard))


def test_a_killed_agent_that_deletes_nothing_repeats_much(tmp_path: Path) -> None:
    # It sends all it has over and over: a broker with a bounded queue would drop some of that for a listener that is slow.
    with Mosquitto(tmp_path / "broker", options="max_queued_messages 0") as broker:
        accepted, heard, _ = kill_agents(broker, tmp_path / "outbox.db", 2, "nothing deleted")
    assert accepted <= set(heard)
    assert len(heard) - len(set(heard)) > 0.05 * len(set(heard))


# The broker is killed.


def kill_broker(folder: Path, kills: int, ack: Literal["broker", "application"]) -> tuple[int, int]:
    """Alerts put, and those that a subscriber never gets which is away all the time, for which the broker keeps a session."""
    with (
        closing(Outbox(folder / "outbox.db", device=NODE, boot="b", ack=ack, resend_s=(0.2, 5.0))) as outbox,
        Mosquitto(folder / "broker", options="max_queued_messages 0") as broker,
    ):
        Listener(broker.port, EVENT_TOPIC, name="application").close()
        broker.save()
        until((broker.log.parent / "mosquitto.db").exists)
        alerts: list[str] = []
        with delivering(broker.config(), outbox) as delivery:
            for _ in range(kills):
                until(lambda: delivery.connected)
                alerts += [put(outbox, delivery) for _ in range(10)]
                # It has said of every one that it has it.
                until(lambda: outbox.counts.waiting == outbox.counts.awaiting, 20)
                broker.kill()
                until(lambda: not delivery.connected)
                broker.start()
            with Listener(broker.port, EVENT_TOPIC, name="application") as application, somebody(broker) as acknowledging:
                deadline, done = time.monotonic() + 60.0, set[str]()
                while len(done) < len(alerts) and time.monotonic() < deadline:
                    new = sorted(set(records(application)) - done)
                    if ack == "application":
                        send(acknowledging, topics.request(NODE, "ack"), json.dumps({"records": new[:1000]}).encode())
                        done |= set(new[:1000])
                    elif not outbox.counts.waiting:
                        time.sleep(2.0)
                        done |= set(records(application))
                        break
                    time.sleep(0.1)
                if ack == "application":
                    until(lambda: not outbox.counts.waiting)
        assert adds_up(outbox.counts)
    return len(alerts), len(set(alerts) - done)


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=soak)])
def test_no_alert_is_lost_with_the_broker_when_the_application_has_to_acknowledge(tmp_path: Path, kills: int) -> None:
    put_, lost = kill_broker(tmp_path, kills, "application")
    print(f"{kills} kills: {lost} of {put_} lost")
    assert lost == 0


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=soak)])
def test_on_the_brokers_word_alerts_are_lost_with_it(tmp_path: Path, kills: int) -> None:
    put_, lost = kill_broker(tmp_path, kills, "broker")
    print(f"{kills} kills: {lost} of {put_} lost")
    assert lost > 0


# Three days without a broker.


def long_outage(mosquitto: Mosquitto, path: Path, every_s: int) -> tuple[Counts, list[dict[str, Any]]]:
    now = [1_700_000_000_000_000_000]
    chance, budget = random.Random(10), 256 * 1024
    options: dict[str, Any] = {"device": NODE, "max_bytes": budget, "clock": lambda: now[0]}
    outbox = Outbox(path, boot="0", **options)
    for i in range(72 * 3600 // every_s):
        now[0] += every_s * 1_000_000_000
        if i % 1000 == 999:
            outbox.close()
            outbox = Outbox(path, boot=str(i), **options)
        if i % (3600 // every_s) == 0:  # an alert an hour
            put(outbox)
        else:
            topic = topics.event(NODE, chance.choice(["pump", "fan"]))
            outbox.put(
                "telemetry",
                topic,
                lambda record: b'{"record":"%s","telemetry":1,"pad":"%s"}' % (record.encode(), b"." * 400),
                durable=False,
            )
        if i % 500 == 0:
            outbox.flush()
            assert outbox.live_bytes() <= budget
            assert path.stat().st_size <= budget + 16 * 4096
    outbox.flush()
    with closing(outbox), Listener(mosquitto.port, "amiss/+/+/#") as listener:
        with delivering(mosquitto.config(batch_records=50), outbox):
            until(lambda: not outbox.counts.waiting, 60)
        counts = outbox.counts

        def heard() -> list[dict[str, Any]]:
            return events(listener) + events(listener, topics.event(NODE, "fan"))

        until(lambda: len(heard()) >= counts.delivered)
        return counts, heard()


@pytest.mark.parametrize("every_s", [90, pytest.param(10, marks=soak)])
def test_three_days_without_a_broker_are_accounted_for_to_the_record(
    mosquitto: Mosquitto, tmp_path: Path, every_s: int
) -> None:
    counts, heard = long_outage(mosquitto, tmp_path / "outbox.db", every_s)
    different = {event["record"]: event for event in heard}
    gaps = [event for event in different.values() if event.get("type") == "gap"]
    told = sum(gap["count"] for gap in gaps)
    print(f"{counts}; {len(different)} different arrived, {len(gaps)} of them gaps that tell of {told}")
    assert adds_up(counts)
    assert counts.waiting == counts.parked == 0
    assert len(different) == counts.delivered
    assert told == counts.dropped > 0
    sequences = [int(record.rpartition("-")[2]) for record, event in different.items() if event.get("telemetry")]
    assert len(sequences) > 100
    assert max(sequences) - min(sequences) < 1.2 * len(sequences)  # the newest telemetry, without holes but for alerts
    alerts = sum(1 for event in different.values() if event.get("type") == "anomaly_started")
    assert alerts == 72  # and no alert before telemetry


def test_the_account_would_notice_a_loss_that_nobody_tells(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outbox, "_note_loss", lambda self, *arguments: None)
    counts, heard = long_outage(mosquitto, tmp_path / "outbox.db", 90)
    assert sum(event.get("count", 0) for event in heard) < counts.dropped


# A storm after a reconnect.


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=soak)])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_never_more_than_twenty_are_unacknowledged_at_any_time(
    tmp_path: Path, version: Any, transport: str, count: int
) -> None:
    tls = Authority(tmp_path / "authority") if transport == "tls" else None
    with (
        closing(Outbox(tmp_path / "outbox.db", device=NODE, boot="b")) as outbox,
        Slow(tls=tls, patience=count // 10) as broker,
    ):
        for i in range(count):
            outbox.put("alert" if i % 3 else "telemetry", EVENT_TOPIC, b'{"i":%d}' % i, durable=False)
        outbox.flush()
        with delivering(broker.config(version=version), outbox, backoff_s=(0.001, 0.01)) as delivery:
            for i in range(30):
                delivery.publish_retained(f"amiss/{NODE}/s{i}/availability", b"online")
                delivery.respond(topics.response(NODE, "ping"), b"%d" % i)
            until(lambda: outbox.counts.delivered == count, 60 + count / 10)
        print(f"{broker.messages} messages in {len(broker.published)} sessions, {broker.worst} unacknowledged at worst")
        assert len(broker.published) > 1
        assert 2 <= broker.worst <= MAX_UNACKNOWLEDGED


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_the_client_library_alone_has_its_whole_backlog_unacknowledged(version: MQTTProtocolVersion) -> None:
    with Slow(patience=0) as broker:
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=version)
        for _ in range(500):
            client.publish("x", b"", qos=1)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        until(lambda: broker.messages >= 500)
        client.loop_stop()
        assert broker.worst > 4 * MAX_UNACKNOWLEDGED


# Nobody at the other end.


@contextmanager
def swallowed(mosquitto: Mosquitto, keepalive_s: int) -> Iterator[tuple[BlackHole, MqttSink]]:
    hole = BlackHole(mosquitto.port)
    sink = MqttSink(mosquitto.config(port=hole.port, keepalive_s=keepalive_s), NODE)
    yield hole, sink
    sink.close()
    hole.close()


def silence_s(sink: MqttSink, hole: BlackHole) -> float:
    """From the moment that nothing gets through to the one that the session counts as lost."""
    sink.connect()
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        sink.turn(0.1)
    hole.swallows = True
    begin_s = time.monotonic()
    with contextlib.suppress(SessionLostError):
        while True:
            sink.turn(1.0)
    return time.monotonic() - begin_s


@pytest.mark.parametrize("keepalive_s", [6, pytest.param(38, marks=soak)])
def test_a_half_open_connection_is_noticed_in_one_and_a_half_keepalives(mosquitto: Mosquitto, keepalive_s: int) -> None:
    with swallowed(mosquitto, keepalive_s) as (hole, sink):
        took_s = silence_s(sink, hole)
    print(f"keep-alive {keepalive_s} s: noticed after {took_s:.1f} s")
    assert took_s <= noticed_within_s(keepalive_s)


@pytest.mark.parametrize("keepalive_s", [6, pytest.param(38, marks=soak)])
def test_the_client_library_alone_notices_a_half_open_connection_late(
    mosquitto: Mosquitto, keepalive_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MqttSink, "_listen", lambda self: None)
    with swallowed(mosquitto, keepalive_s) as (hole, sink):
        took_s = silence_s(sink, hole)
    print(f"keep-alive {keepalive_s} s: noticed after {took_s:.1f} s")
    assert took_s > noticed_within_s(keepalive_s)


def test_an_exception_in_a_callback_is_noticed_at_once(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with closing(Outbox(tmp_path / "outbox.db", device=NODE, boot="b")) as outbox:
        delivery = Delivery(MqttSink(mosquitto.config(), NODE), outbox)

        def bug(topic: str, payload: bytes) -> None:
            raise ZeroDivisionError

        delivery.subscribe(topics.requests(NODE), bug)
        delivery.start()
        with somebody(mosquitto) as client:
            until(lambda: "SUBACK" in mosquitto.log.read_text())
            begin_s = time.monotonic()
            send(client, topics.request(NODE, "ping"), b"")
        until(lambda: not delivery.connected)
        assert time.monotonic() - begin_s < 60.0
        with pytest.raises(ZeroDivisionError):
            delivery.check()


def test_the_client_library_alone_goes_on_as_if_it_were_connected(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is dead, and it does not say so."""
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: died.set())
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda *arguments: 1 // 0
    client.on_connect = lambda client, *rest: client.subscribe("#", qos=1)
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    with somebody(mosquitto) as other:
        until(lambda: "SUBACK" in mosquitto.log.read_text())
        send(other, "x", b"")
    assert died.wait(5.0)
    time.sleep(0.5)
    assert client.is_connected()
    raw = client.socket()
    assert isinstance(raw, socket.socket)
    raw.close()
