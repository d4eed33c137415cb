"""A device without a sensor, as its own process, to be killed: the real delivery, the real announcements, made-up values.

    python homeassistant_device.py FOLDER BROKER_PORT OPTIONS      then one command a line on stdin

OPTIONS (JSON): `streams`, `requests` and `prefix` of device.toml; `deaf`: does not hear Home Assistant start. For its
announcements time runs 20 times as fast, so that a test need not wait for them.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.config import DeviceConfig, parse
from edge.delivery import Delivery, topics
from edge.delivery.homeassistant import HomeAssistant, stale_topic
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
from edge.delivery.topics import InfoPayload, ModelInfo, StatePayload
from edge.event import Event, Share
from edge.files import at_once

NODE = "pump-7"


def configuration(port: int, options: dict[str, Any]) -> DeviceConfig:
    data: dict[str, Any] = {
        "node": NODE,
        "bundle": "pump.amiss",
        "streams": {name: {"port": "/dev/null"} for name in options.get("streams", ["pump", "fan"])},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "requests": options.get("requests", {}),
    }
    if options.get("prefix") is not False:
        data["homeassistant"] = {"prefix": options.get("prefix", "homeassistant")}
    return parse(data)


def info(version: str = "3", budget: float | None = 2.0) -> InfoPayload:
    return InfoPayload(
        node=NODE,
        versions={"amiss": "0.1.0"},
        model=ModelInfo(digest="d" * 64, name="pump", version=version),
        channels=(),
        config={},
        board="Raspberry Pi 4",
        false_alarms_per_week=budget,
    )


def event(number: int) -> Event:
    return Event(
        type="anomaly_started",
        episode=number,
        time_ns=0,
        since_ns=0,
        score=4.0,
        p_value=1e-5,
        threshold=1e-3,
        channels=(Share("current", 0.75), Share("vibration", 0.25)),
        model="d" * 64,
    )


def now_s() -> float:
    return 20 * time.monotonic()


def main(folder: Path, port: int, options: dict[str, Any]) -> None:
    config = configuration(port, options)
    outbox = Outbox(folder / "outbox.db", device=NODE, boot=f"{time.time_ns():x}")
    delivery = Delivery(MqttSink(config.mqtt, NODE), outbox, backoff_s=(0.05, 0.2))
    remembered = folder / "homeassistant.json"
    memory = remembered.read_bytes() if remembered.exists() else b""
    if (stale := stale_topic(config, memory)) is not None:
        delivery.forget_retained(stale)
    assistant = None
    if config.homeassistant is not None:
        assistant = HomeAssistant(config, judged_every_s=0.2, memory=memory, chance=lambda: 0.05)
        if not options.get("deaf"):
            heard = assistant.heard
            delivery.subscribe(assistant.status_topic, lambda topic, payload: heard(topic, payload, now_s()))
    about, state = info(), {"anomaly": False, "maintenance": False}
    mute: set[str] = set()
    delivery.set_info(about)
    delivery.start()

    def obey() -> None:
        nonlocal about
        for line in sys.stdin:
            word, _, argument = line.strip().partition(" ")
            if word in state:
                state[word] = argument == "on"
            elif word == "mute":
                mute.add(argument)
            elif word == "offline":
                mute.add(argument)
                delivery.set_availability(argument, False)
            elif word == "event":
                outbox.put(
                    "alert",
                    topics.event(NODE, argument),
                    lambda record: topics.encode(
                        topics.event_payload(event(1), stream="pump", episode_id="e-1", record=record, offset_ns=time.time_ns())
                    ),
                )
                delivery.wake()
            elif word == "model":
                about = info(argument)
                delivery.set_info(about)
                assert assistant is not None
                assistant.changed(now_s())

    threading.Thread(target=obey, daemon=True).start()
    while True:
        delivery.check()
        if assistant is not None and assistant.due(now_s()):
            announced = assistant.announcement(about, now_s())
            with at_once(remembered) as draft:
                draft.write_bytes(assistant.memory())
            delivery.publish_retained(*announced)
        time_ns = time.time_ns()
        for stream in config.streams.keys() - mute:
            delivery.set_availability(stream, True)
            payload = StatePayload(
                time=topics.rfc3339(time_ns),
                time_ns=time_ns,
                anomaly=state["anomaly"],
                score=1.5,
                p_value=0.25,
                threshold=0.001,
                model="d" * 64,
                since=topics.rfc3339(time_ns) if state["anomaly"] else None,
                top_channels=("current", "vibration"),
                maintenance=state["maintenance"],
                latency_ms=12.5,
            )
            delivery.set_state(stream, payload)
        delivery.publish_retained(
            topics.health(NODE),
            topics.encode(
                topics.HealthPayload(time="", time_ns=0, uptime_s=1.0, mqtt=delivery.health(), streams={}),
            ),
            qos=0,
        )
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
