"""What does the broker let this node do? Asked under a client id of its own, so that an agent which runs keeps its session.

One message is published, not retained, on `response/doctor`, which nobody else uses; it is also what we listen for.
"""

import contextlib
import re
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edge.config import MqttConfig
from edge.delivery import topics
from edge.delivery.mqtt import MqttSink, SessionLostError

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
    found = Rights()
    ours, mine = topics.response(node, "doctor"), topics.requests(node)
    greeting = topics.encode(topics.Response(status="ok", data="amiss doctor was here"))
    with contextlib.closing(MqttSink(config, node, client_id=f"amiss-{node}-doctor", retained=True)) as sink:
        for topic in (topics.availability(node), mine, ours):  # ours last: what comes back comes when all have been answered
            sink.subscribe(topic)
        sink.connect()
        if config.tls is not None and config.tls.cert:
            _note(found, "client certificate", ssl.PEM_cert_to_DER_cert(_first_pem(Path(config.tls.cert))))
        if (der := sink.certificate()) is not None:
            _note(found, "broker's certificate", der)
        try:
            sink.publish("greeting", ours, greeting)
            deadline_s, acknowledged = time.monotonic() + PATIENCE_S, False
            while not (acknowledged and (found.echoed or found.publish)) and time.monotonic() < deadline_s:
                for receipt in sink.turn(0.1):
                    acknowledged, found.publish = True, receipt.refusal
                for message in sink.messages():
                    if message.topic == topics.availability(node):
                        found.availability = message.payload
                    found.echoed |= message.topic == ours and message.payload == greeting
                for topic, reason in sink.refusals():
                    if topic == mine:
                        found.subscribe = reason
        except SessionLostError:
            pass  # it has let us in a moment ago; what is known now is all there is to know
        sink.disconnect()
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
