"""What a broker retains, all of it, as it is now."""

import time
from collections.abc import Callable

from edge.delivery.mqtt import Message, MqttSink
from edge.errors import AccessError

PATIENCE_S = 30.0


def retained(sink: MqttSink, mark: str, hint: str, clock: Callable[[], float] = time.monotonic) -> list[Message]:
    """What `sink` has subscribed to. `mark` is a topic that it hears too, and may write.

    The broker has sent all that it retains by the time that a message of our own comes back. Raises `AccessError` when it does
    not let us read, or nothing comes back: then `hint` says what the user should be allowed.
    """
    found: list[Message] = []
    deadline_s = clock() + PATIENCE_S
    sink.publish(mark, mark, b"")
    while clock() < deadline_s:
        sink.turn(0.2)
        if refusals := sink.refusals():
            raise AccessError(f"{sink.where}: does not let this user read {refusals[0][0]} ({refusals[0][1]}); see its ACL")
        for message in sink.messages():
            if message.topic == mark:
                return found
            found.append(message)
    raise AccessError(f"{sink.where}: {hint} See its ACL")
