"""The devices that take models, as they tell of themselves on the bus; and what can be asked of them.

Each retains where it is with its models on `amiss/<node>/update`, and how it is on `amiss/<node>/health`: who is there, and of
which group, is read from that. Nothing here makes a device take a model: it is asked, and decides by itself.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from deploy.retained import retained
from edge.config import MqttConfig
from edge.delivery import topics
from edge.delivery.mqtt import Message, MqttSink, SessionLostError
from edge.delivery.topics import HealthPayload, Response
from edge.errors import AccessError, NoInputError, SinkUnavailableError
from edge.updating.workflow import Progress

ASKED_S = 60
"""So long the broker keeps what is asked of a device that it cannot reach: whoever comes back later is asked again."""
LONGEST_PAUSE_S = 60.0
MOST = 1 << 53
"""Of anything that a device counts."""


@dataclass(slots=True)
class Device:
    node: str
    progress: Progress
    health: HealthPayload | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    node: str
    verb: str
    response: Response


class Plant:
    """One session with the broker; `with` opens it. Raises what `MqttSink.connect` does, `AccessError` when the broker does not
    let us read or ask, and `NoInputError` when no device takes models.

    `devices`: by name. `watch`: hear of their health too. `token`: of their `[requests]`.
    """

    def __init__(
        self,
        config: MqttConfig,
        *,
        token: str | None = None,
        watch: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"amiss-plant-{secrets.token_hex(4)}"
        """Of this session; the transactions of its requests begin with it."""
        self.devices: dict[str, Device] = {}
        self.answers: list[Answer] = []
        """To our requests, since somebody last took them away."""
        self._health: dict[str, HealthPayload] = {}  # of nodes that have not told where they are with their models
        self._body = {"token": token} if token else {}
        self._asked = 0
        self._clock = clock
        self._sink = MqttSink(config, self.name, client_id=self.name, retained=True, clock=clock)
        self.where = self._sink.where
        self._again_s, self._pause_s = 0.0, 0.0  # without a session: when to try again, and how long to wait after that
        topics_heard = [topics.of_all("update"), topics.of_all("response", "+"), topics.request(self.name, "mark")]
        for topic_filter in topics_heard + ([topics.of_all("health")] if watch else []):
            self._sink.subscribe(topic_filter)

    def __enter__(self) -> Self:
        try:
            self._sink.connect()
            mark = topics.request(self.name, "mark")
            hint = f"does not pass on what this user writes to {topics.of_all('request', '+')}; may it?"
            for message in retained(self._sink, mark, hint, self._clock):
                self._hear(message)
            if not self.devices:
                raise NoInputError(f"{self.where}: no device takes models; a section [update] in device.toml lets it")
        except BaseException:
            self._sink.close()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        with contextlib.suppress(SinkUnavailableError):
            self._sink.disconnect()
        self._sink.close()

    def chosen(self, groups: Sequence[str], devices: Sequence[str]) -> list[str]:
        """The names of these devices and of those of these groups; of all when neither is named. Raises `NoInputError` for a
        device or group that is not there."""
        there = {name: self.devices[name].progress.group for name in sorted(self.devices)}
        if missing := [name for name in devices if name not in there]:
            raise NoInputError(
                f"{self.where}: no device {', '.join(missing)} that takes models; those that do: {', '.join(there)}"
            )
        if missing := [group for group in groups if group not in there.values()]:
            known = ", ".join(sorted({*there.values()} - {""})) or "none"
            raise NoInputError(f"{self.where}: no device of group {', '.join(missing)}; groups there: {known}")
        return [name for name, group in there.items() if not (groups or devices) or name in devices or group in groups]

    @property
    def connected(self) -> bool:
        return self._sink.connected

    @property
    def room(self) -> int:
        """How many requests `ask` takes now."""
        return self._sink.room

    def ask(self, node: str, verb: str, **body: Any) -> None:
        """Needs `room`. Each request is one of its own: a device answers the same one again without doing it again."""
        self._asked += 1
        payload = msgspec.json.encode(body | self._body | {"transaction": f"{self.name}-{self._asked}"})
        self._sink.publish(node, topics.request(node, verb), payload, expiry_s=ASKED_S)

    def turn(self, timeout_s: float) -> set[str]:
        """Listen so long, less when something comes; names of the devices that told something new. A session that is lost is
        opened again, and what is retained then heard anew. Raises `AccessError` when the broker refuses a request."""
        changed = set()
        try:
            if not self._sink.connected:
                self._sink.wait(min(timeout_s, max(0.0, self._again_s - self._clock())))
                if self._clock() < self._again_s:
                    return set()
                self._sink.connect()
            for receipt in self._sink.turn(timeout_s):
                if receipt.refusal:
                    raise AccessError(
                        f"{self.where}: refuses {topics.request(str(receipt.token), '+')} ({receipt.refusal}); see its ACL"
                    )
            self._pause_s = 0.0
        except SinkUnavailableError as error:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s) or 1.0
            self._again_s = self._clock() + (0.0 if isinstance(error, SessionLostError) else self._pause_s)
        for message in self._sink.messages():
            if (node := self._hear(message)) is not None:
                changed.add(node)
        return changed

    def _hear(self, message: Message) -> str | None:
        """The device that it tells something new of."""
        _, node, *rest = message.topic.split("/")
        try:
            match rest:
                case ["update"]:
                    progress = _plain(msgspec.json.decode(message.payload, type=Progress))
                    if node in self.devices:
                        self.devices[node].progress = progress
                    else:
                        self.devices[node] = Device(node, progress, self._health.pop(node, None))
                case ["health"]:
                    health = msgspec.json.decode(message.payload, type=HealthPayload)
                    if not _sensible(health):
                        return None
                    if node not in self.devices:  # what is retained comes in any order
                        self._health[node] = health
                        return None
                    self.devices[node].health = health
                case ["response", verb]:
                    response = msgspec.json.decode(message.payload, type=Response)
                    if not str(response.transaction).startswith(f"{self.name}-"):
                        return None
                    self.answers.append(Answer(node, verb, response))
                case _:
                    return None
        except msgspec.MsgspecError:  # cleared, or of another time
            return None
        return node


def _plain(progress: Progress) -> Progress:
    """What a device says of itself ends up on terminals and in databases, of which some take no NUL."""
    return msgspec.structs.replace(
        progress, reason=progress.reason.replace("\0", "")[:500], group=progress.group.replace("\0", "")[:200]
    )


def _sensible(health: HealthPayload) -> bool:
    """Figures that one can reckon with, and keep."""
    return 0 <= health.uptime_s < MOST and all(
        0 <= stream.alarms < MOST and 0 <= (stream.latency_ms or 0.0) < MOST for stream in health.streams.values()
    )
