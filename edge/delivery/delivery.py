"""The thread that carries the outbox to the broker. It owns the session; nobody else touches it.

    connect ──fails──▶ back off 1 … 60 s, with jitter, and again
       │
       ▼
    latest values, then records: alerts first, at most 20 unacknowledged
       │
       ├─ acknowledged ─▶ deleted from the outbox, or kept until the application acknowledges it too
       ├─ refused ──────▶ parked, the others flow on
       └─ session lost ─▶ what was unacknowledged stays in the outbox and is sent again (same `record` id)

What others send us is handed to who subscribed, in this thread; answers leave before records.

A broker that cannot say no hangs up instead. What was under way then is suspect: from now on messages go one at a time, each
to be acknowledged, until no suspect is left. One that was alone under way when three sessions in a row broke is parked.

With `mqtt.ack = "broker"` a record is forgotten when the *broker* has acknowledged it. A broker that is killed may have
acknowledged what it has not yet stored or forwarded: with its subscriber away Mosquitto loses all since it last saved. With
`"application"` an alert stays until `request/ack` names it, and is sent again after a pause that grows, and in a new session.

With `mqtt.batch_records` several records of one stream that wait leave as one message. A broker that refuses it is given them
one by one in this session, so that the one it dislikes is found and no other is parked for it.
"""

import hmac
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from paho.mqtt.client import topic_matches_sub

from edge.delivery import topics
from edge.delivery.mqtt import MAX_INCOMING_BYTES, Batch, MqttSink, SessionLostError, Token
from edge.delivery.outbox import Outbox, Record
from edge.errors import AmissError, SinkRejectedError, StorageError

log = logging.getLogger(__name__)

_HISTORICAL_NS = 60 * 1_000_000_000
"""Older than this when it leaves, an event is history and no longer a call to act."""
_EVENT_EXPIRY_S = 30 * 24 * 3600
_VALUE_EXPIRY_S = 3600
"""A score or a health report nobody has renewed for an hour says nothing any more."""
_BATCH_BYTES = 64 * 1024
_OUTCOMES, _OUTCOMES_S = 50, 0.1
"""So many, or so old, and what became of records is written down. A crash before sends them once more, under the same ids."""
_ANSWER_EXPIRY_S = 300
_MAX_ANSWERS = 100
"""Kept while nobody can be told; who asked so much longer ago has given up."""
_STRIKES = 3
_STABLE_S, _FLAPPING = 10.0, 3
"""A session that lasts that long starts the back-off anew; after so many shorter ones in a row nobody is told of each."""


@dataclass(slots=True)
class _Latest:
    """A retained value. Only the newest counts, so it is kept here and not in the outbox."""

    payload: bytes
    qos: int
    expiry_s: int | None
    dirty: bool = True


Receive = Callable[[str, bytes], None]
"""Topic, payload. Runs in the delivery thread: it may take note and `respond`, and what it raises ends the process."""


class Delivery:
    """Delivers what is in `outbox`, and the latest values it is given, until `stop`. The sink is its own from now on.

    `token` is demanded of who acknowledges. `backoff_s` is the first and the longest pause between attempts to connect. `known`
    says what time it really is, once that is known. `clock` is monotonic seconds, `wall` epoch nanoseconds, `chance` 0 … 1.
    """

    def __init__(
        self,
        sink: MqttSink,
        outbox: Outbox,
        *,
        token: str | None = None,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        chance: Callable[[], float] = random.random,
        known: Callable[[], topics.Known | None] = lambda: None,
    ) -> None:
        self.node = sink.node
        self.published = 0
        """Records that the broker has acknowledged since the start."""
        self.trouble = ""
        """Why nothing flows at the moment, or not what should, in one line."""
        self._sink, self._outbox, self._token, self._backoff_s = sink, outbox, token, backoff_s
        self._ack_topic = topics.request(self.node, "ack")
        self._clock, self._wall, self._chance, self._known = clock, wall, chance, known
        self._lock = threading.Lock()  # guards the next three; never held while the sink is used
        self._latest: dict[str, _Latest] = {}
        self._answers: dict[str, tuple[str, bytes]] = {}  # token → topic, payload
        self._answered = 0
        self._receivers: list[tuple[str, Receive]] = []
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._stop_at_s: float | None = None
        self._failure: BaseException | None = None
        # Of the delivery thread alone from here on.
        self._under_way: set[Token] = set()
        self._outcomes: dict[int, str] = {}  # sequence → refusal or "", not yet written to the outbox
        self._outcomes_due_s = 0.0
        self._alerts: set[int] = set()  # among what is or soon will be under way
        self._unbatched: set[str] = set()  # topics whose batch was refused in this session
        self._loose: set[Token] = set()  # sent with QoS 0 in this session
        self._suspects: set[Token] = set()
        self._strikes: dict[Token, int] = {}
        self._short_sessions = 0  # in a row
        self._proven = False  # this session has acknowledged something
        self._told = ""  # the last line about the broker
        self._disk_trouble = ""
        self._complained: set[tuple[str, str]] = set()

    def subscribe(self, topic_filter: str, receive: Receive) -> None:
        """Before `start`. `receive` gets every message that matches, but none that the broker had retained, and of one longer
        than `mqtt.MAX_INCOMING_BYTES` a byte more than that."""
        assert self._thread.ident is None, "subscribe before start"
        self._receivers.append((topic_filter, receive))
        self._sink.subscribe(topic_filter)

    def start(self) -> None:
        if self._outbox.ack == "application" and not any(
            topic_matches_sub(topic_filter, self._ack_topic) for topic_filter, _ in self._receivers
        ):
            self._sink.subscribe(self._ack_topic)
        self._outbox.on_flush = self._sink.wake
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._sink.wake()

    def check(self) -> None:
        """Raises what ended the delivery thread, if it did not end by `stop`. The agent asks in its loop."""
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout_s: float) -> None:
        """Deliver what can be delivered in that time, say `offline`, end the session and the thread."""
        try:
            self._outbox.flush()
        except StorageError as error:
            log.error("%s", error)
        self._stop_at_s = self._clock() + timeout_s
        self._sink.wake()
        if self._thread.ident is None:
            self._sink.close()
        else:
            # On top: saying `offline`. A thread that hangs in a name lookup is left behind; it is a daemon.
            self._thread.join(timeout_s + 2.0)

    @property
    def connected(self) -> bool:
        return self._sink.connected

    def health(self) -> topics.MqttHealth:
        counts = self._outbox.counts
        return topics.MqttHealth(
            connected=self.connected,
            queued=counts.waiting,
            published=self.published,
            dropped=counts.dropped,
            parked=counts.parked,
            awaiting=counts.awaiting,
            written_bytes_today=self._outbox.written_bytes_today,
        )

    def set_info(self, payload: topics.InfoPayload) -> None:
        self.publish_retained(topics.info(self.node), topics.encode(payload))

    def set_health(self, payload: topics.HealthPayload) -> None:
        self.publish_retained(topics.health(self.node), topics.encode(payload), qos=0, expiry_s=_VALUE_EXPIRY_S)

    def set_availability(self, stream: str, online: bool) -> None:
        self.publish_retained(topics.stream_availability(self.node, stream), topics.ONLINE if online else topics.OFFLINE)

    def set_state(self, stream: str, payload: topics.StatePayload) -> None:
        """Sent when connected and as often as it is called: the caller limits the rate."""
        self.publish_retained(topics.state(self.node, stream), topics.encode(payload), qos=0, expiry_s=_VALUE_EXPIRY_S)

    def publish_retained(self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None) -> None:
        """The value of `topic` from now on; sent now, and again whenever a session begins. Nothing of it is on disk."""
        with self._lock:
            self._latest[topic] = _Latest(payload, qos, expiry_s)
        self._sink.wake()

    def forget_retained(self, topic: str) -> None:
        """No value for `topic` any more, here and at the broker."""
        self.publish_retained(topic, b"")

    def respond(self, topic: str, payload: bytes) -> None:
        """Send an answer, before all records. In memory only: it is lost when the process ends, and of more than 100 that
        wait for a broker the oldest is."""
        with self._lock:
            self._answered += 1
            self._answers[f"answer {self._answered}"] = (topic, payload)
            if len(self._answers) > _MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
        self._sink.wake()

    # The delivery thread.

    def _run(self) -> None:
        try:
            attempt = 0
            while self._stop_at_s is None:
                try:
                    self._sink.connect()
                except AmissError as error:
                    self._short_sessions = 0
                    self._tell(str(error))
                else:
                    attempt = self._live(attempt)
                self._pause(attempt)
                attempt += 1
        except BaseException as error:
            self._failure = error
            log.error("delivery ended: %s", error)
        finally:
            self._sink.close()

    def _live(self, attempt: int) -> int:
        """One session from beginning to end; returns how long the chain of failures now is."""
        began_s = self._clock()
        self.trouble = ""
        if self._short_sessions < _FLAPPING:
            log.info("%s: connected as amiss-%s", self._sink.where, self.node)
            self._told = ""
        try:
            self._session()
        except SessionLostError as error:
            under_way = bool(self._under_way)
            self._receive()
            self._write_outcomes()
            self._suspect(error)
            self._under_way.clear()
            self._loose.clear()
            lasted = self._clock() - began_s >= _STABLE_S
            self._short_sessions = 0 if lasted else self._short_sessions + 1
            if lasted or (under_way and self._proven):  # the latter: to find the culprit soon
                attempt = 0
            line = str(error)
            if self._short_sessions >= _FLAPPING and not under_way:
                line = f"{self._sink.where}: no session lasts {_STABLE_S:.0f} s; does a second agent use this node's name?"
            self._tell(line)
        return attempt

    def _pause(self, attempt: int) -> None:
        shortest_s, longest_s = self._backoff_s
        # Half of it by chance, so that a fleet does not come back to a restarted broker all at once.
        pause_s = min(longest_s, shortest_s * 2.0 ** min(attempt, 20)) * (0.5 + 0.5 * self._chance())
        until_s = self._clock() + pause_s
        while self._stop_at_s is None and (left_s := until_s - self._clock()) > 0:
            self._sink.wait(left_s)

    def _tell(self, trouble: str) -> None:
        """Once for every change of state; a broker that is away for a week is one line."""
        self.trouble = trouble
        if trouble != self._told:
            log.warning("%s", trouble)
            self._told = trouble

    def _session(self) -> None:
        """From the welcome until `stop`; raises `SessionLostError`."""
        self._proven = False
        self._unbatched.clear()
        try:
            self._outbox.recall()
        except StorageError as error:
            self._complain_of_disk(error)
        with self._lock:
            for latest in self._latest.values():  # the broker may have lost what it retained
                latest.dirty = True
        while True:
            left = self._send()
            wait_s = max(0.0, self._outcomes_due_s - self._clock()) if self._outcomes else 1.0
            if self._stop_at_s is not None:
                wait_s = self._stop_at_s - self._clock()
                if wait_s <= 0 or not (left or self._under_way):
                    self._write_outcomes()
                    self._sink.disconnect()
                    return
            self._settle(wait_s)

    def _window(self) -> int:
        """How many messages may be handed to the sink now."""
        room = self._sink.room
        return min(room, 1 - len(self._under_way)) if self._suspects else room

    def _send(self) -> bool:
        """Hand over what there is and what there is room for. Is anything left?"""
        while self._window() > 0 and (value := self._next_latest()) is not None:
            topic, latest = value
            # In doubt every message is to be acknowledged, or the one that the broker dislikes is never found.
            self._publish(topic, topic, latest.payload, 1 if self._suspects else latest.qos, True, latest.expiry_s)
        while self._window() > 0 and (answer := self._next_answer()) is not None:
            self._publish(*answer, 1, False, _ANSWER_EXPIRY_S)
        records: list[Record] = []
        if (window := self._window()) > 0:
            batching = 1 if self._suspects else self._sink.config.batch_records
            busy = {sequence for token in self._under_way for sequence in _sequences(token)} | self._outcomes.keys()
            records = self._outbox.pending(window * batching, besides=busy)
            for token, topic, payload in self._packed(records, batching):
                if self._window() <= 0:
                    break
                self._publish(token, topic, payload, 1, False, _EVENT_EXPIRY_S)
        if not records and window > 0 and not self._under_way:
            self._suspects.clear()  # nothing is left to send: those still in there exist no more
        self._write_outcomes_in_time()
        return window <= 0 or bool(records)

    def _packed(self, records: list[Record], batching: int) -> list[tuple[Token, str, bytes]]:
        """Alerts and gaps one by one, as they come; then telemetry, as many of a stream in one message as may be."""
        known = self._known()
        messages: list[tuple[Token, str, bytes]] = []
        waiting: dict[str, list[Record]] = {}
        for record in records:
            payload = topics.leaving(
                record.payload, put_ns=record.time_ns, now_ns=self._wall(), history_ns=_HISTORICAL_NS, known=known
            )
            if record.alert:
                self._alerts.add(record.sequence)
            if batching > 1 and not record.alert and payload[:1] == b"{" and record.topic not in self._unbatched:
                waiting.setdefault(record.topic, []).append(replace(record, payload=payload))
            else:
                messages.append((record.sequence, record.topic, payload))
        for topic, several in waiting.items():
            limit = min(_BATCH_BYTES, self._sink.payload_bytes(topics.batch(topic)))
            while several:
                count, size = 1, 2 + len(several[0].payload)
                while count < min(batching, len(several)) and size + 1 + len(several[count].payload) <= limit:
                    size += 1 + len(several[count].payload)
                    count += 1
                some, several = several[:count], several[count:]
                if count == 1:
                    messages.append((some[0].sequence, topic, some[0].payload))
                else:
                    together = b"[" + b",".join(record.payload for record in some) + b"]"
                    sequences = tuple(record.sequence for record in some)
                    messages.append((Batch(topic, sequences), topics.batch(topic), together))
        return messages

    def _next_latest(self) -> tuple[str, _Latest] | None:
        with self._lock:
            for topic, latest in self._latest.items():
                if latest.dirty and self._strikes.get(topic, 0) < _STRIKES:
                    latest.dirty = False
                    return topic, latest
        return None

    def _next_answer(self) -> tuple[str, str, bytes] | None:
        with self._lock:
            for token, (topic, payload) in self._answers.items():
                if token not in self._under_way:
                    return token, topic, payload
        return None

    def _publish(self, token: Token, topic: str, payload: bytes, qos: int, retain: bool, expiry_s: int | None) -> None:
        try:
            self._sink.publish(token, topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)
        except SinkRejectedError as error:
            self._refuse(token, str(error))
        else:
            (self._under_way if qos else self._loose).add(token)

    def _settle(self, wait_s: float) -> None:
        """Wait for receipts and act on them."""
        for receipt in self._sink.turn(wait_s):
            self._under_way.discard(receipt.token)
            self._proven = True
            if receipt.refusal:
                self._refuse(receipt.token, receipt.refusal)
            elif isinstance(receipt.token, str):
                self._settled(receipt.token)
            for sequence in () if receipt.refusal else _sequences(receipt.token):
                self._note_outcome(sequence, "")
                self.published += 1
                self._suspects.discard(sequence)
            self._suspects.discard(receipt.token)
            self._strikes.pop(receipt.token, None)
        self._receive()
        self._write_outcomes_in_time()

    def _settled(self, token: str) -> None:
        """An answer is sent once, a value that was taken back is forgotten once the broker knows."""
        with self._lock:
            self._answers.pop(token, None)
            latest = self._latest.get(token)
            if latest is not None and not latest.payload and not latest.dirty:
                del self._latest[token]

    def _receive(self) -> None:
        for message in self._sink.messages():
            if message.topic == self._ack_topic:
                answer = self._acknowledge(message.payload)
                self.respond(topics.response(self.node, "ack"), topics.encode(answer))
                continue
            for topic_filter, receive in self._receivers:
                if topic_matches_sub(topic_filter, message.topic):
                    receive(message.topic, message.payload)
        for topic_filter, reason in self._sink.refusals():
            self.trouble = (
                f"{self._sink.where}: does not let `{self._sink.config.username or 'anonymous'}` subscribe to {topic_filter} "
                f"({reason}); allow it to read that topic in the broker's ACL"
            )
            if (topic_filter, reason) not in self._complained:
                self._complained.add((topic_filter, reason))
                log.warning("%s", self.trouble)

    def _acknowledge(self, payload: bytes) -> topics.Response:
        """The answer to `request/ack`."""
        if len(payload) > MAX_INCOMING_BYTES:
            return _error(f"more than {MAX_INCOMING_BYTES} bytes; acknowledge fewer at once")
        try:
            request = msgspec.json.decode(payload, type=topics.AckRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(f'{error}; send {{"records": ["<record>", …]}}', _transaction_of(payload))
        if self._token is not None and not hmac.compare_digest((request.token or "").encode(), self._token.encode()):
            return _error("wrong or missing `token`; requests.token of the device's configuration has it", request.transaction)
        if self._outbox.ack != "application":
            return _error(
                'here alerts go with the broker\'s word; set mqtt.ack = "application" on the device', request.transaction
            )
        try:
            unknown = self._outbox.acknowledge(request.records)
        except StorageError as error:
            return _error(str(error), request.transaction)
        data = {"deleted": len(set(request.records) - set(unknown)), "unknown": unknown}
        return topics.Response(status="ok", data=data, transaction=request.transaction)

    def _note_outcome(self, sequence: int, refusal: str) -> None:
        if not self._outcomes:
            self._outcomes_due_s = self._clock() + _OUTCOMES_S
        if sequence in self._alerts:  # an alert that comes twice wakes somebody twice
            self._outcomes_due_s = self._clock()
        self._outcomes[sequence] = refusal

    def _refuse(self, token: Token, refusal: str) -> None:
        if isinstance(token, Batch):
            # Perhaps for one of them, perhaps for their size or their topic: they stay in the outbox and go one by one.
            self._unbatched.add(token.topic)
            return
        if isinstance(token, int):
            self._note_outcome(token, refusal)
            self._strikes.pop(token, None)
            return
        self._settled(token)
        if token.startswith("answer "):
            self._strikes.pop(token, None)
            log.warning("an answer was refused: %s", refusal)
        elif (token, refusal) not in self._complained:  # a latest value comes again; the complaint does not
            self._complained.add((token, refusal))
            log.warning("%s: refused: %s", token, refusal)

    def _write_outcomes_in_time(self) -> None:
        if len(self._outcomes) >= _OUTCOMES or self._clock() >= self._outcomes_due_s:
            self._write_outcomes()

    def _write_outcomes(self) -> None:
        """On a full disk nothing can be deleted either: delivery goes on, and what was delivered is remembered here."""
        if not self._outcomes:
            return
        try:
            self._outbox.delivered([sequence for sequence, refusal in self._outcomes.items() if not refusal])
            for sequence, refusal in self._outcomes.items():
                if refusal:
                    self._outbox.park(sequence, refusal)
                    log.warning("record %d: parked until the next start: %s", sequence, refusal)
            self._alerts &= self._under_way
            self._outcomes.clear()
            self._disk_trouble = ""
        except StorageError as error:
            self._outcomes_due_s = self._clock() + 1.0
            self._complain_of_disk(error)

    def _complain_of_disk(self, error: StorageError) -> None:
        if self._disk_trouble != str(error):
            self._disk_trouble = str(error)
            log.error("%s", error)

    def _suspect(self, error: SessionLostError) -> None:
        """The broker hung up: because of what it was sent?"""
        if not error.by_broker:
            return
        for token in self._under_way | self._loose:
            self._suspects |= set(token.sequences) if isinstance(token, Batch) else {token}
        if len(self._under_way) == 1 and not self._loose:
            (token,) = self._under_way
            if isinstance(token, Batch):
                return
            self._strikes[token] = self._strikes.get(token, 0) + 1
            if self._strikes[token] >= _STRIKES:
                self._suspects.discard(token)
                self._refuse(token, f"{_STRIKES} sessions broke when it was sent")


def _sequences(token: Token) -> tuple[int, ...]:
    """Of the records in a message."""
    if isinstance(token, int):
        return (token,)
    return token.sequences if isinstance(token, Batch) else ()


def _error(error: str, transaction: str | int | None = None) -> topics.Response:
    return topics.Response(status="error", error=error, transaction=transaction)


def _transaction_of(payload: bytes) -> str | int | None:
    """So that whoever asked badly learns at least which request it was."""
    try:
        request = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    transaction = request.get("transaction") if isinstance(request, dict) else None
    return transaction if isinstance(transaction, str | int) and not isinstance(transaction, bool) else None
