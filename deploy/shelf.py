"""A repository on a broker: each file a retained message, for devices that have nothing but MQTT.

    amiss-models/NAME/metadata/FILE           what readers need now: every root, the newest targets and snapshot, timestamp.json
    amiss-models/NAME/targets/SHA256.BUNDLE   bundles of up to 256 kB

Order, as in the folder: bundles, roots, targets, snapshot, the timestamp last; only then is taken away what nobody needs any
more. A device that asks in between finds the state of before or of after, or misses a file and asks again later. What is there
is read back in the end, because a 3.1.1 broker acknowledges even what its ACL throws away.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from tuf.api.exceptions import RepositoryError

from deploy.repository import Repository
from deploy.retained import PATIENCE_S, retained
from edge.config import MqttConfig
from edge.delivery import topics
from edge.delivery.mqtt import MqttSink
from edge.errors import AccessError, NoInputError, SinkRejectedError, SinkUnavailableError

MOST_BUNDLE_BYTES = 256_000
"""Larger ones would be in the memory of a broker for good, and in one packet on a slow line."""


@dataclass(frozen=True, slots=True)
class Shelved:
    put: int
    """Messages that had to be sent."""
    cleared: int
    bytes: int
    left_out: tuple[str, ...]
    """Bundles that are too large: devices get them over HTTPS only."""

    def line(self, where: str) -> str:
        large = f"; too large for MQTT, to be fetched over HTTPS: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{where}: {self.put} messages put ({self.bytes} bytes), {self.cleared} cleared{large}"


def shelve(repository: Repository, name: str, config: MqttConfig, clock: Callable[[], float] = time.monotonic) -> Shelved:
    """Make the broker hold what the folder holds. Raises what `MqttSink.connect` does; `AccessError` when the broker takes or
    shows less than that; `NoInputError` when a bundle is missing in the folder."""
    wanted, left_out = _wanted(repository, name)
    sink = MqttSink(config, "publisher", client_id=f"amiss-publish-{secrets.token_hex(4)}", retained=True, clock=clock)
    sink.subscribe(topics.models(name, "metadata", "+"))
    sink.subscribe(topics.models(name, "targets", "+"))
    try:
        sink.connect()
        there = _there(sink, name, clock)
        # All of the metadata, so that its order holds whatever is there; of the bundles only what is missing.
        put = {topic: data for topic, data in wanted.items() if "/metadata/" in topic or there.get(topic) != data}
        keep = wanted.keys() | _before(there, name)
        cleared = {topic: b"" for topic in there if topic not in keep}
        for messages in (put, cleared):
            _send(sink, messages, clock)
        sink.disconnect()
        sink.messages()  # what came back of our own, as it passed, says nothing about what is kept
        sink.connect()
        found = _there(sink, name, clock)
        lost = [topic for topic, data in wanted.items() if found.get(topic) != data]
        if lost:
            raise AccessError(
                f"{sink.where}: took {lost[0]} and does not have it; may this user write amiss-models/{name}/#? See its ACL"
            )
        sink.disconnect()
    finally:
        sink.close()
    return Shelved(len(put), len(cleared), sum(map(len, put.values())), left_out)


def _wanted(repository: Repository, name: str) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Topic → payload, in the order to send them."""
    wanted, left_out = {}, []
    for target in repository.published().targets.values():
        if target.length > MOST_BUNDLE_BYTES or "+" in target.path:  # `+` is not allowed in a topic
            left_out.append(target.path)
            continue
        file = target.get_prefixed_paths()[0]
        try:
            data = (repository.bundles / file).read_bytes()
            target.verify_length_and_hashes(data)
        except (OSError, RepositoryError):
            raise NoInputError(
                f"{repository.bundles / file}: missing or damaged; withdraw {target.path} and publish it again"
            ) from None
        wanted[topics.models(name, "targets", file)] = data
    for file, data in repository.files().items():
        wanted[topics.models(name, "metadata", file)] = data
    return wanted, tuple(left_out)


def _before(there: dict[str, bytes], name: str) -> set[str]:
    """What the timestamp that was there leads to: who has read it a moment ago asks for them next. Cleared the next time."""

    def version(data: bytes, file: str) -> int | None:
        try:
            return int(msgspec.json.decode(data)["signed"]["meta"][file]["version"])
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            return None

    snapshot = f"{version(there.get(topics.models(name, 'metadata', 'timestamp.json'), b''), 'snapshot.json')}.snapshot.json"
    targets = f"{version(there.get(topics.models(name, 'metadata', snapshot), b''), 'targets.json')}.targets.json"
    return {topics.models(name, "metadata", file) for file in (snapshot, targets)}


def _there(sink: MqttSink, name: str, clock: Callable[[], float]) -> dict[str, bytes]:
    """Topic → payload of all that is there."""
    hint = f"does not show what is under amiss-models/{name}/; may this user read and write it?"
    mark = topics.models(name, "metadata", f"mark-{secrets.token_hex(8)}")
    return {message.topic: message.payload for message in retained(sink, mark, hint, clock)}


def _send(sink: MqttSink, messages: dict[str, bytes], clock: Callable[[], float]) -> None:
    """One after the other: each is acknowledged before the next is sent, so their order is the broker's too."""
    for topic, data in messages.items():
        deadline = clock() + PATIENCE_S
        while not sink.room:
            sink.turn(0.2)
        try:
            sink.publish(topic, topic, data, retain=True, binary="/targets/" in topic)
        except SinkRejectedError as error:
            raise AccessError(f"{sink.where}: {topic}: {error}; raise the broker's largest packet") from None
        taken = False
        while not taken:
            for receipt in sink.turn(0.2):
                if receipt.refusal:
                    raise AccessError(
                        f"{sink.where}: refuses {topic} ({receipt.refusal}); may this user write amiss-models/#? See its ACL"
                    )
                taken = taken or receipt.token == topic
            if clock() > deadline:
                raise SinkUnavailableError(f"{sink.where}: no answer to {topic} in {PATIENCE_S:.0f} s; try again")
