"""One session with the broker at a time, turned by the thread that owns it. Makes one attempt; retry is `delivery`'s.

paho-mqtt does the protocol. What its 2.x does when left alone, and what is done here about it:

- it queues in memory while offline and sends the whole queue at once on reconnecting: a new `Client` for every session,
  and nothing is published before the CONNACK;
- an exception in a callback kills its thread while `is_connected()` stays true: it gets no thread. Callbacks only note what
  happened, and run inside `turn`;
- it notices a dead peer after two keep-alives: ours gives up when nothing was heard for one and a half;
- a PUBACK may say no: every one is looked at. Only MQTT 5 can say it; a 3.1.1 broker acknowledges what its ACL throws away.

What is subscribed to: with MQTT 5 the broker keeps our subscriptions and what arrives for them through a hole of up to five
minutes, so that a push of a button on a Wi-Fi that comes and goes is not lost; what is older is not what anybody still wants,
and an agent that starts begins anew. A message that the broker sends a second time for want of our PUBACK is known by its
packet id and handed on once. With MQTT 3.1.1 such a session would last for ever: there it is a clean one, and what is asked
of a device that is away is lost.
"""

import contextlib
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.config import MqttConfig
from edge.delivery import topics
from edge.errors import AccessError, AmissError, ConfigError, SinkRejectedError, SinkUnavailableError

MAX_UNACKNOWLEDGED = 20
"""Messages sent and not yet acknowledged. More gain nothing on a local network and are sent twice after a lost session."""

MAX_INCOMING_BYTES = 64 * 1024
"""Of a payload. No request is that long; of a longer one a byte more is handed on, enough to see that it is too long."""

_MAX_PACKET_BYTES = 256 * 1024
"""What an MQTT 5 broker may send us. A 3.1.1 broker cannot be told; its own limit has to do."""
_HEADER_BYTES = 64
"""Of a PUBLISH: what is neither topic nor payload, properties included."""
_SESSION_EXPIRY_S = 300
_TAKEN_OVER = 0x8E
_TCP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Several records in one message."""

    topic: str
    """Of each of them, were it alone."""
    sequences: tuple[int, ...]


Token = int | str | Batch
"""What the caller knows a message by: the sequence of a record, a batch of them, or the topic of a latest value."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the broker said to one message."""

    token: Token
    refusal: str = ""
    """Why it does not want it; empty: it has it."""


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody has sent us."""

    topic: str
    payload: bytes
    """The first `MAX_INCOMING_BYTES` + 1 of them."""


class _Tidy(ssl.SSLSocket):
    """paho lets go of the socket whose handshake fails, and does not close it."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class SessionLostError(SinkUnavailableError):
    """An established session has ended. `by_broker`: it hung up, perhaps because of what it was sent last."""

    def __init__(self, message: str, *, by_broker: bool = False) -> None:
        super().__init__(message)
        self.by_broker = by_broker


class MqttSink:
    """The session of `node`. Only `wake` may be called from another thread.

    `client_id` other than the node's own, as `connect_once` uses, makes a session that says nothing about the node: no
    birth, no last will. With `retained`, `messages` has what the broker had retained too, and all of it. Raises `ConfigError`
    when the TLS files cannot be used.
    """

    def __init__(
        self,
        config: MqttConfig,
        node: str,
        *,
        client_id: str | None = None,
        retained: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.node = config, node
        self._retained = retained
        if config.tls:
            self._tls_context()  # a wrong path is found when built
        self.port = config.port or (8883 if config.tls else 1883)
        self.where = f"broker {config.host}:{self.port}"
        self._client_id = client_id or f"amiss-{node}"
        self._present = client_id is None
        self._filters: list[str] = []
        self._resuming = False  # this process has had a session that the broker may still hold
        self._messages: list[Message] = []  # acknowledged by paho, so they outlive the session
        self._taken: deque[tuple[float, tuple[int, str, int]]] = deque(maxlen=4 * MAX_UNACKNOWLEDGED)  # when, what
        self._clock = clock
        self._version5 = config.version == "5"
        self._client: paho.Client | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._forget()

    def _forget(self) -> None:
        self._welcome: ReasonCode | None = None
        self._lost: SessionLostError | None = None
        self._complaint = ""  # paho's last error, which says more than its reason code
        self._outstanding: dict[int, tuple[Token, float]] = {}  # packet id → token, when it was sent
        self._receipts: list[Receipt] = []
        self._refusals: list[tuple[str, str]] = []
        self._asked: dict[int, str] = {}  # packet id → filter of a SUBSCRIBE
        self._heard_s = self._clock()
        self._keepalive_s = float(self.config.keepalive_s)
        self._receive_maximum = MAX_UNACKNOWLEDGED
        self._maximum_bytes = 0

    def subscribe(self, topic_filter: str) -> None:
        """Ask for it in every session from the next one on."""
        if topic_filter not in self._filters:
            self._filters.append(topic_filter)

    def connect(self) -> None:
        """Open a session, subscribe and say `online`. Blocks, up to 5 s for each of: the name, TCP, TLS, the broker's welcome.

        Raises `SinkUnavailableError` (try later), `AccessError` (credentials, certificates) or `ConfigError`.
        """
        self._drop()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if self._version5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if self._version5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _TCP_TIMEOUT_S
        client.max_inflight_messages_set(MAX_UNACKNOWLEDGED)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_log = self._on_publish, self._on_log
        client.on_message, client.on_subscribe = self._on_message, self._on_subscribe
        if self.config.username is not None or self.config.password is not None:
            client.username_pw_set(self.config.username or "", self.config.password)
        if self.config.tls:
            client.tls_set_context(self._tls_context())
        if self._present:
            client.will_set(topics.availability(self.node), topics.OFFLINE, qos=1, retain=True)
        options: dict[str, Any] = {}
        if self._version5:
            options = {"clean_start": not self._resuming, "properties": _properties(PacketTypes.CONNECT)}
            options["properties"].SessionExpiryInterval = _SESSION_EXPIRY_S if self._filters else 0
            options["properties"].ReceiveMaximum = MAX_UNACKNOWLEDGED
            options["properties"].MaximumPacketSize = _MAX_PACKET_BYTES
        self._client = client
        try:
            client.connect(self.config.host, self.port, self.config.keepalive_s, **options)
        except (OSError, ValueError) as error:  # ValueError: no host name at all
            self._drop()
            raise self._unreachable(error) from error
        deadline = self._clock() + _TCP_TIMEOUT_S
        while self._welcome is None:
            if self._lost is not None or (left_s := deadline - self._clock()) <= 0:
                silence = self._unwelcome(hung_up=self._lost is not None)
                self._drop()
                raise silence
            self._move(left_s)
        if self._welcome.is_failure:
            refusal = self._refused(self._welcome)
            self._drop()
            raise refusal
        self._heard_s = self._clock()
        self._resuming = bool(self._filters)
        for topic_filter in self._filters:  # also those that a resumed session has: rights may have changed
            _, mid = client.subscribe(topic_filter, qos=1)
            if mid is not None:
                self._asked[mid] = topic_filter
        if self._present:
            self.publish(topics.availability(self.node), topics.availability(self.node), topics.ONLINE, retain=True)

    @property
    def connected(self) -> bool:
        return self._welcome is not None and self._lost is None

    @property
    def room(self) -> int:
        """How many messages `publish` takes now; 0 also while bytes of earlier ones wait for the network."""
        if not self.connected or self._client is None or self._client.want_write():
            return 0
        return max(0, min(MAX_UNACKNOWLEDGED, self._receive_maximum) - len(self._outstanding))

    def certificate(self) -> bytes | None:
        """The broker's (DER); `None` without TLS, and without a session."""
        ours = None if self._client is None else self._client.socket()
        return ours.getpeercert(binary_form=True) if isinstance(ours, ssl.SSLSocket) else None

    def payload_bytes(self, topic: str) -> int:
        """The longest payload that the broker takes under `topic`."""
        return self._maximum_bytes - len(topic) - _HEADER_BYTES if self._maximum_bytes else 1 << 28

    def publish(
        self,
        token: Token,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        binary: bool = False,
    ) -> None:
        """Send one message; with QoS 1 a later `turn` returns its receipt. Needs `room`.

        `expiry_s`: how long the broker keeps it for whom it cannot reach now (MQTT 5). `binary`: it is no text. Raises
        `SinkRejectedError` when it can never be sent as it is. When the session is lost meanwhile, the next `turn` says so.
        """
        if self._client is None or not self.connected:
            return
        if len(payload) > self.payload_bytes(topic):
            raise SinkRejectedError(f"{len(payload)} bytes; the broker takes packets of up to {self._maximum_bytes}")
        properties = None
        if self._version5:
            properties = _properties(PacketTypes.PUBLISH)
            if binary:
                properties.ContentType = "application/octet-stream"
            elif payload:
                properties.PayloadFormatIndicator = 1
                properties.ContentType = "application/json" if payload[:1] in b"{[" else "text/plain"
            if expiry_s is not None:
                properties.MessageExpiryInterval = expiry_s
        try:
            sent = self._client.publish(topic, payload, qos, retain, properties)
        except ValueError as error:
            raise SinkRejectedError(f"no message that MQTT can carry: {error}") from error
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose(f"sending failed ({paho.error_string(sent.rc)})")
        if qos:
            self._outstanding[sent.mid] = (token, self._clock())

    def turn(self, timeout_s: float) -> list[Receipt]:
        """Move bytes for up to `timeout_s`, less when something arrives or `wake` is called; what was acknowledged.

        Raises `SessionLostError` once all receipts of the lost session have been returned.
        """
        self._move(0.0 if self._receipts else timeout_s)
        self._listen()
        if self._receipts:
            receipts, self._receipts = self._receipts, []
            return receipts
        if (lost := self._lost) is not None:
            self._drop()
            raise lost
        return []

    def messages(self) -> list[Message]:
        """What has arrived since the last call, in that order. What the broker had retained only if asked for: a request is no
        value."""
        messages, self._messages = self._messages, []
        return messages

    def refusals(self) -> list[tuple[str, str]]:
        """Filters that the broker does not let us subscribe to, and why, since the last call."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def disconnect(self, timeout_s: float = 1.0) -> None:
        """Say `offline` and leave in good order. Where that is not to be had, the broker finds us gone and says it for us."""
        deadline = self._clock() + timeout_s
        if self._present:
            self.publish("offline", topics.availability(self.node), topics.OFFLINE, retain=True)
            while self._awaits("offline") and self.connected and (left_s := deadline - self._clock()) > 0:
                self._move(left_s)
        if self._client is not None and self.connected and not self._awaits("offline"):
            properties = None
            if self._version5:
                properties = _properties(PacketTypes.DISCONNECT)
                properties.SessionExpiryInterval = 0  # whoever leaves for good leaves nothing to keep
                self._resuming = False
            self._client.disconnect(properties=properties)
            while self._client.socket() is not None and (left_s := deadline - self._clock()) > 0:
                self._move(left_s)
        self._drop()

    def wait(self, timeout_s: float) -> None:
        """Without a session: until `wake` is called, at most `timeout_s`."""
        if select.select([self._wake_in], [], [], max(0.0, timeout_s))[0]:
            self._drain_wake()

    def wake(self) -> None:
        """End the `turn` or `wait` that is going on, or the next one. From any thread."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody is left to wake
            self._wake_out.send(b"\0")

    def close(self) -> None:
        self._drop()
        self._wake_in.close()
        self._wake_out.close()

    def _drop(self) -> None:
        """Forget the session without a word to the broker; it will publish the last will."""
        client, self._client = self._client, None
        if client is not None and (open_socket := client.socket()) is not None:
            client.on_disconnect = None
            open_socket.close()
        if self._welcome is not None:
            # What was taken earlier is acknowledged for certain, and its packet id free for another message.
            certain_s = self._heard_s - 1.5 * self._keepalive_s
            while self._taken and self._taken[0][0] < certain_s:
                self._taken.popleft()
        self._forget()

    def _awaits(self, token: Token) -> bool:
        return any(token == sent for sent, _ in self._outstanding.values())

    def _move(self, timeout_s: float) -> None:
        """Let bytes in and out."""
        if self._client is None or (ours := self._client.socket()) is None:
            return self._lose("the connection was closed", by_broker=True)
        # poll, because select fails on descriptors from 1024 on.
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(ours, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        if isinstance(ours, ssl.SSLSocket) and ours.pending():  # decrypted already, so the descriptor stays silent
            timeout_s = 0.0
        # Not longer than a second at once: keep-alive is looked after in between.
        ready = dict(poll.poll(1000 * min(timeout_s, 1.0)))
        if self._wake_in.fileno() in ready:
            self._drain_wake()
        events = ready.get(ours.fileno(), 0)
        if events & ~select.POLLOUT or (isinstance(ours, ssl.SSLSocket) and ours.pending()):
            self._heard_s = self._clock()
            self._client.loop_read()
        if events & select.POLLOUT:
            self._client.loop_write()
        self._client.loop_misc()

    def _listen(self) -> None:
        """Is anybody there? A half-open connection takes our bytes for many minutes before TCP gives it up."""
        now_s, patience_s = self._clock(), 1.5 * self._keepalive_s
        if self._keepalive_s and now_s - self._heard_s > patience_s:
            self._lose(f"nothing heard for {now_s - self._heard_s:.0f} s")
        elif self._outstanding and now_s - next(iter(self._outstanding.values()))[1] > 1.5 * self.config.keepalive_s:
            self._lose("the broker answers, but does not acknowledge what it is sent", by_broker=True)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _lose(self, why: str, *, by_broker: bool = False) -> None:
        if self._lost is None:  # what comes first is the reason, the rest follows from it
            self._lost = SessionLostError(f"{self.where}: {why}", by_broker=by_broker)

    # Callbacks: they run inside `_move` and `publish`, and only note what happened.

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._welcome = reason
        if properties is not None:
            self._keepalive_s = float(getattr(properties, "ServerKeepAlive", self._keepalive_s))
            self._receive_maximum = getattr(properties, "ReceiveMaximum", MAX_UNACKNOWLEDGED)
            self._maximum_bytes = getattr(properties, "MaximumPacketSize", 0)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if (sent := self._outstanding.pop(mid, None)) is not None:  # QoS 0 is "published" too, and not among them
            said = getattr(properties, "ReasonString", "")
            refusal = f"{reason}{f': {said}' if said else ''}" if reason.is_failure else ""
            self._receipts.append(Receipt(sent[0], refusal))

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.retain and not self._retained:
            return
        payload = bytes(message.payload)
        if message.qos:
            seen = message.mid, message.topic, hash(payload)
            if message.dup and any(seen == taken for _, taken in self._taken):
                return
            self._taken.append((self._clock(), seen))
        self._messages.append(Message(message.topic, payload if self._retained else payload[: MAX_INCOMING_BYTES + 1]))

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        topic_filter = self._asked.pop(mid, "")
        self._refusals += [(topic_filter, str(reason)) for reason in reasons if reason.is_failure]

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server and reason.value == _TAKEN_OVER:
            self._lose(f"another client took over as `{self._client_id}`; does a second agent use this node's name?")
        elif flags.is_disconnect_packet_from_server:
            self._lose(f"the broker ended the session: {reason}", by_broker=True)
        else:
            self._lose(self._complaint or "the connection was closed", by_broker=True)

    def _on_log(self, client: paho.Client, userdata: Any, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._complaint = text

    # What went wrong, and what to do about it, in one line.

    def _tls_context(self) -> ssl.SSLContext:
        """Read anew for every session, so that a renewed certificate needs no restart."""
        tls = self.config.tls
        assert tls is not None
        if bool(tls.cert) != bool(tls.key):
            raise ConfigError("mqtt.tls: `cert` and `key` go together; one of them is missing")
        at, path = "ca", tls.ca
        try:
            context = ssl.create_default_context(cafile=tls.ca)
            context.sslsocket_class = _Tidy
            if tls.cert:
                at, path = "cert", tls.cert
                context.load_cert_chain(tls.cert, tls.key)
        except FileNotFoundError:
            raise ConfigError(f"mqtt.tls.{at}: {path}{f' or {tls.key}' if at == 'cert' else ''}: no such file") from None
        except PermissionError:
            raise AccessError(f"mqtt.tls.{at}: {path}: may not be read by the user that runs the agent") from None
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"mqtt.tls.{at}: {path}: no PEM file that can be used ({_tls_reason(error)})") from None
        return context

    def _unreachable(self, error: Exception) -> AmissError:
        host = self.config.host
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
                return AccessError(f"{self.where}: its certificate is not for `{host}`; set mqtt.host to the name it is for")
            return AccessError(
                f"{self.where}: its certificate is not trusted ({error.verify_message}); "
                "set mqtt.tls.ca to the authority that signed it"
            )
        if isinstance(error, ssl.SSLError):
            return self._tls_refused(_tls_reason(error))
        if isinstance(error, (socket.gaierror, ValueError)):
            return SinkUnavailableError(f"{self.where}: no such host; check mqtt.host and this network's name service")
        if isinstance(error, ConnectionRefusedError):
            return SinkUnavailableError(f"{self.where}: refuses the connection; does it run, and is mqtt.port right?")
        if isinstance(error, TimeoutError):
            return SinkUnavailableError(f"{self.where}: no answer in {_TCP_TIMEOUT_S:.0f} s; is it on, is there a firewall?")
        if isinstance(error, ConnectionResetError) and self.config.tls:
            return self._tls_refused("connection reset")
        return SinkUnavailableError(f"{self.where}: cannot be reached: {getattr(error, 'strerror', None) or error}")

    def _tls_refused(self, reason: str) -> AmissError:
        if "certificate" in reason or "unknown ca" in reason or "handshake failure" in reason:
            cure = "does not accept" if self.config.tls and self.config.tls.cert else "wants a client certificate:"
            return AccessError(f"{self.where}: {cure} mqtt.tls.cert and mqtt.tls.key ({reason})")
        return SinkUnavailableError(f"{self.where}: TLS fails ({reason}); does this port speak TLS? Usually that is 8883")

    def _unwelcome(self, *, hung_up: bool) -> AmissError:
        """TCP, and TLS if wanted, but no welcome. With TLS 1.3 only now we learn what it thinks of our certificate."""
        if hung_up and (verdict := self._tls_verdict()):
            return self._tls_refused(verdict)
        what = "hung up instead of answering" if hung_up else f"no MQTT answer in {_TCP_TIMEOUT_S:.0f} s"
        hint = "a client certificate?" if self.config.tls else "TLS (an [mqtt.tls] section)?"
        return SinkUnavailableError(f"{self.where}: {what}; is it an MQTT broker, and does it want {hint}")

    def _tls_verdict(self) -> str:
        """What the broker's TLS has against us. Its alert is often lost in the reset that our CONNECT provokes, so ask again
        without one."""
        if self.config.tls is None:
            return ""
        try:
            with (
                socket.create_connection((self.config.host, self.port), _TCP_TIMEOUT_S) as plain,
                self._tls_context().wrap_socket(plain, server_hostname=self.config.host) as encrypted,
            ):
                encrypted.settimeout(1.0)
                encrypted.recv(1)
        except ssl.SSLError as error:
            return _tls_reason(error)
        except OSError:
            pass
        return ""

    def _refused(self, reason: ReasonCode) -> AmissError:
        match reason.value:
            case 0x84:
                return ConfigError(f'{self.where}: does not speak MQTT {self.config.version}; set mqtt.version = "3.1.1"')
            case 0x85:
                return ConfigError(f"{self.where}: does not accept the client id `{self._client_id}`; choose another `node`")
            case 0x86 | 0x87 | 0x8A | 0x8C:
                who = f"user `{self.config.username}`" if self.config.username else "a client without a user name"
                return AccessError(f"{self.where}: does not let {who} in ({reason}); check mqtt.username and mqtt.password")
        return SinkUnavailableError(f"{self.where}: refuses the session ({reason}); see the broker's log")


def connect_once(config: MqttConfig, node: str) -> None:
    """Can this node reach its broker and log in? Raises the line to show, as `MqttSink.connect` does.

    Under a client id of its own, so that an agent which is running keeps its session.
    """
    sink = MqttSink(config, node, client_id=f"amiss-{node}-check")
    try:
        sink.connect()
        sink.disconnect()
    finally:
        sink.close()


def _properties(packet: int) -> Any:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _tls_reason(error: object) -> str:
    """`[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)` → its middle."""
    text = str(error)
    return text.rpartition("] ")[2].partition(" (_ssl")[0].lower() or text
