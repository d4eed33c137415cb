"""A broker that does on command what a real one does on a bad day."""

import contextlib
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from mosquitto import Authority

from edge.config import MqttConfig, TlsConfig


class Scripted:
    """Speaks just enough MQTT, encrypted with `tls`. `on_publish(packet id, topic)` says what to answer to a QoS 1 publish."""

    def __init__(
        self, on_publish: Callable[[int, str], bytes] = lambda mid, topic: b"", *, tls: Authority | None = None
    ) -> None:
        self.on_publish = on_publish
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls.issue("localhost"))
        self._tls = tls
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
                if self._context is not None:
                    self.connection = self._context.wrap_socket(self.connection, server_side=True)
                self.published.append([])
                with self.connection:
                    self._session(self.connection)
            except (OSError, ValueError):  # the latter: closed by another thread while this one waited for it
                if self._server.fileno() == -1:
                    return

    def _session(self, connection: socket.socket) -> None:
        while True:
            head = self._read(connection, 1)
            length = shift = 0
            while True:
                byte = self._read(connection, 1)[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = self._read(connection, length)
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

    def _read(self, connection: socket.socket, length: int) -> bytes:
        """One thread reads and writes: TLS of one connection takes no two."""
        data = b""
        while len(data) < length:
            pending = isinstance(connection, ssl.SSLSocket) and connection.pending()
            if not pending and not select.select([connection], [], [], 0.002)[0]:
                self.on_idle(connection)
                continue
            if not (some := connection.recv(length - len(data))):
                raise ConnectionError("the client has gone")
            data += some
        return data

    def on_idle(self, connection: socket.socket) -> None:
        """Nothing has come for a moment."""

    def hang_up(self) -> None:
        assert self.connection is not None
        socket.socket.shutdown(self.connection, socket.SHUT_RDWR)  # a TLS socket's own would go on unencrypted

    def config(self, **options: Any) -> MqttConfig:
        if self._tls is not None:
            options = {"host": "localhost", "tls": TlsConfig(ca=self._tls.ca), **options}
        return MqttConfig(**{"host": "127.0.0.1", "port": self.port, "version": "3.1.1", **options})

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()
        if self.connection is not None:
            self.connection.close()


def puback(mid: int, topic: str = "") -> bytes:
    return b"\x40\x02" + mid.to_bytes(2, "big")


class Slow(Scripted):
    """Acknowledges late, a few at a time, and hangs up now and then; counts what is unacknowledged."""

    def __init__(self, *, tls: Authority | None = None, patience: int = 30) -> None:
        super().__init__(self._note, tls=tls)
        self.worst = 0
        """Most messages that were unacknowledged at any time."""
        self.messages = 0
        self._open: set[int] = set()
        self._chance, self._patience, self._session_number, self._turns = random.Random(11), patience, 0, 0

    def _note(self, mid: int, topic: str) -> bytes:
        if self._session_number != len(self.published):
            self._session_number = len(self.published)
            self._open.clear()
        self._open.add(mid)
        self.messages += 1
        self.worst = max(self.worst, len(self._open))
        return b""

    def on_idle(self, connection: socket.socket) -> None:
        if self._session_number != len(self.published) or not self._open:
            return
        some = self._chance.sample(sorted(self._open), self._chance.randrange(min(8, len(self._open)) + 1))
        self._open.difference_update(some)
        connection.sendall(b"".join(map(puback, some)))
        self._turns += 1
        # By chance, or one message would be on its way each time, and taken for the cause; but once for certain.
        if self._patience and (self._turns == self._patience or self._chance.randrange(self._patience) == 0):
            self.hang_up()


class BlackHole:
    """A way to the broker that can swallow everything in both directions, while TCP goes on as if nothing were."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.swallows = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if not self.swallows:
                    other.sendall(data)
            if not self.swallows:
                other.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
