"""A broker that does on command what a real one does on a bad day."""

import socket
import threading
from collections.abc import Callable
from typing import Any

from edge.config import MqttConfig


class Scripted:
    """Speaks just enough MQTT. `on_publish(packet id, topic)` says what to answer to a QoS 1 publish."""

    def __init__(self, on_publish: Callable[[int, str], bytes] = lambda mid, topic: b"") -> None:
        self.on_publish = on_publish
        self.published: list[list[tuple[int, str]]] = []
        """Packet ids and topics of the QoS 1 messages of each session."""
        self.payloads: list[bytes] = []
        """Of the events."""
        self.latest = b""
        """The QoS 1 message that `on_publish` is asked about, all of it."""
        self.farewells = 0
        """Sessions that ended with a DISCONNECT."""
        self.acknowledged: list[int] = []
        """Packet ids of our messages that the client has acknowledged."""
        self.clean_starts: list[bool] = []
        """What each session began with."""
        self.pings = True
        self.on_subscribe = 1
        """Reason code of every SUBACK."""
        self.connection: socket.socket | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self.connection, _ = self._server.accept()
                self.published.append([])
                with self.connection:
                    self._session(self.connection)
            except OSError:
                if self._server.fileno() == -1:
                    return

    def _session(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb", buffering=0)
        while head := stream.read(1):
            length = shift = 0
            while True:
                byte = stream.read(1)[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = stream.read(length)
            match head[0] >> 4:
                case 1:
                    version5 = body[6] == 5
                    self.clean_starts.append(bool(body[7] & 2))
                    connection.sendall(b"\x20\x03\x00\x00\x00" if version5 else b"\x20\x02\x00\x00")
                case 3 if head[0] & 6:
                    size = int.from_bytes(body[:2], "big")
                    topic, mid = body[2 : 2 + size].decode(), int.from_bytes(body[2 + size : 4 + size], "big")
                    self.published[-1].append((mid, topic))
                    self.latest = body
                    if topic.endswith("/event"):
                        self.payloads.append(body[4 + size :])
                    connection.sendall(self.on_publish(mid, topic))
                case 4:
                    self.acknowledged.append(int.from_bytes(body[:2], "big"))
                case 8:
                    said = body[:2] + (b"\0" if version5 else b"") + bytes([self.on_subscribe])
                    connection.sendall(bytes([0x90, len(said)]) + said)
                case 12 if self.pings:
                    connection.sendall(b"\xd0\x00")
                case 14:
                    self.farewells += 1

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)

    def config(self, **options: Any) -> MqttConfig:
        return MqttConfig(**{"host": "127.0.0.1", "port": self.port, "version": "3.1.1", **options})

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()
        if self.connection is not None:
            self.connection.close()


def puback(mid: int, topic: str = "") -> bytes:
    return b"\x40\x02" + mid.to_bytes(2, "big")
