"""What does the broker let this node do? Asked under a client id of its own, so that an agent which runs keeps its session.

One message is published, not retained, on `response/doctor`, which nobody else uses; it is also what we listen for.
"""

import re
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge.config import MqttConfig
from edge.delivery import topics
from edge.delivery.mqtt import MqttSink, connect_once

PATIENCE_S = 3.0


@dataclass(slots=True)
class Rights:
    publish: str = ""
    """Why it does not let us; empty: it does, or cannot say no (MQTT 3.1.1)."""
    subscribe: str = ""
    echoed: bool = False
    """What we published came back: both are allowed."""
    availability: bytes | None = None
    """What is retained of the node."""
    certificates: dict[str, datetime] = field(default_factory=dict)
    """Whose → until when it is valid."""


def ask(config: MqttConfig, node: str) -> Rights:
    """Raises what `MqttSink.connect` does when there is no session to be had."""
    connect_once(config, node)
    found = Rights()
    if config.tls is not None and config.tls.cert:
        _note(found, "client certificate", ssl.PEM_cert_to_DER_cert(_first_pem(Path(config.tls.cert))))
    version5 = config.version == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"amiss-{node}-doctor",
        protocol=MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311,
        clean_session=None if version5 else True,
        reconnect_on_failure=False,
    )
    sink = MqttSink(config, node, client_id=f"amiss-{node}-doctor")
    ours, mine = topics.response(node, "doctor"), topics.requests(node)
    asked: dict[int | None, str] = {}
    acknowledged = False

    def on_connect(client: paho.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        for topic in (ours, topics.availability(node), mine):
            asked[client.subscribe(topic, 1)[1]] = topic

    def on_subscribe(client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        if asked.pop(mid, "") == mine and reasons and reasons[0].is_failure:
            found.subscribe = str(reasons[0])
        if not asked:
            client.publish(ours, topics.encode(topics.Response(status="ok", data="amiss doctor was here")), qos=1)

    def on_publish(client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        nonlocal acknowledged
        acknowledged = True
        if reason.is_failure:
            found.publish = str(reason)

    def on_message(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic == ours:
            found.echoed = True
        elif message.retain and message.topic == topics.availability(node):
            found.availability = bytes(message.payload)

    client.on_connect, client.on_subscribe = on_connect, on_subscribe
    client.on_publish, client.on_message = on_publish, on_message
    if config.username is not None or config.password is not None:
        client.username_pw_set(config.username or "", config.password)
    try:
        if config.tls is not None:
            client.tls_set_context(sink._tls_context())
        client.connect(config.host, sink.port, config.keepalive_s)
        if isinstance(encrypted := client.socket(), ssl.SSLSocket) and (der := encrypted.getpeercert(binary_form=True)):
            _note(found, "broker's certificate", der)
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s and client.loop(0.1) == paho.MQTT_ERR_SUCCESS:
            if acknowledged and (found.echoed or found.publish):
                break
        client.disconnect()
        client.loop(0.1)
    except OSError:
        pass  # it has let us in a moment ago; what is known now is all there is to know
    finally:
        sink.close()
    return found


_VALIDITY = re.compile(rb"\x30.(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)", re.DOTALL)
"""SEQUENCE of two times: the only one in a certificate before its extensions (RFC 5280, 4.1.2.5)."""


def valid_until(der: bytes) -> datetime | None:
    """Of an X.509 certificate; the standard library reads only those that it has verified."""
    if (match := _VALIDITY.search(der)) is None:
        return None
    short, long = match.group(3), match.group(4)
    text = long.decode() if long else ("20" if int(short[:2]) < 50 else "19") + short.decode()
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _note(found: Rights, whose: str, der: bytes) -> None:
    if (until := valid_until(der)) is not None:
        found.certificates[whose] = until


def _first_pem(path: Path) -> str:
    text = path.read_text("ascii", "replace")
    start, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return f"{start}{text.partition(start)[2].partition(end)[0]}{end}\n"
