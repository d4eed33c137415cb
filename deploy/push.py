"""Tell devices that there may be a new model, and see what becomes of it.

A device that takes models retains where it is with them on `amiss/<node>/update`: who is there, and of which group, is read
from that. Each one that is asked looks into its repository at once and decides by itself: nothing here makes it take a model.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from deploy.retained import retained
from edge.config import MqttConfig
from edge.delivery import topics
from edge.delivery.mqtt import Message, MqttSink
from edge.errors import AccessError, NoInputError
from edge.updating.workflow import Progress

_PATIENCE_S = 15.0
"""For a device to answer."""
_SETTLED_S = 5.0
"""Idle for so long after it had looked, a device has decided."""

Answer = Literal["ok", "refused", "none"]


class Row(msgspec.Struct, kw_only=True):
    """One device."""

    device: str
    progress: Progress
    answer: Answer = "none"
    error: str = ""
    """Why it refused to look."""
    changed_s: float = 0.0
    """When it last said where it is, on the clock of here."""
    before: str = ""
    """Digest of the model that ran when it was asked."""

    @property
    def outcome(self) -> str:
        if self.answer == "none":
            return "no answer; is it on?"
        if self.answer == "refused":
            return self.error
        if self.progress.step == "probation":
            return "runs it, on probation"
        if self.progress.step != "idle":
            return self.progress.reason or "under way"
        if self.progress.digest != self.before:
            return self.progress.reason or "runs it"
        return self.progress.reason or "nothing newer for it"

    @property
    def failed(self) -> bool:
        """It could not be asked, or tried a model and did not keep it."""
        return self.answer != "ok" or " not taken: " in self.progress.reason or " taken back: " in self.progress.reason


def push(
    config: MqttConfig,
    *,
    groups: Sequence[str] = (),
    devices: Sequence[str] = (),
    token: str | None = None,
    watch_s: float = 0.0,
    said: Callable[[Row], None] = lambda row: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Ask the devices of these groups and names, or all; what they answered, by name.

    With `watch_s` it stays until each has decided, at most so long; `said` is told of every change meanwhile. Raises what
    `MqttSink.connect` does; `AccessError` when the broker does not let us look or ask; `NoInputError` when nobody is there.
    """
    mine = f"amiss-push-{secrets.token_hex(4)}"
    sink = MqttSink(config, mine, client_id=mine, retained=True, clock=clock)
    for topic_filter in (topics.of_all("update"), topics.of_all("response", "update"), topics.request(mine, "mark")):
        sink.subscribe(topic_filter)
    try:
        sink.connect()
        rows = _chosen(_there(sink, mine, clock), groups, devices, sink.where)
        body = {"transaction": mine} | ({"token": token} if token else {})
        for device in rows:
            while not sink.room:
                sink.turn(0.2)
            sink.publish(device, topics.request(device, "update"), msgspec.json.encode(body))
        asked_s = clock()
        while True:
            for receipt in sink.turn(0.2):
                if receipt.refusal:
                    raise AccessError(
                        f"{sink.where}: refuses {topics.request(str(receipt.token), 'update')} ({receipt.refusal}); see its ACL"
                    )
            for message in sink.messages():
                if (row := _heard(rows, message, mine, clock())) is not None:
                    said(row)
            waited_s = clock() - asked_s
            answered = all(row.answer != "none" for row in rows.values()) or waited_s > _PATIENCE_S
            decided = all(_decided(row, asked_s, clock()) for row in rows.values())
            if answered and (watch_s <= 0 or decided or waited_s > watch_s):
                sink.disconnect()
                return list(rows.values())
    finally:
        sink.close()


def _there(sink: MqttSink, mine: str, clock: Callable[[], float]) -> dict[str, Row]:
    """All devices that take models."""
    hint = f"does not pass on what this user writes to {topics.of_all('request', '+')}; may it?"
    found: dict[str, Row] = {}
    for message in retained(sink, topics.request(mine, "mark"), hint, clock):
        if (progress := _progress(message)) is not None:
            device = message.topic.split("/")[1]
            found[device] = Row(device=device, progress=progress, before=progress.digest)
    return dict(sorted(found.items()))


def _chosen(there: dict[str, Row], groups: Sequence[str], devices: Sequence[str], where: str) -> dict[str, Row]:
    if missing := [device for device in devices if device not in there]:
        raise NoInputError(
            f"{where}: no device {', '.join(missing)} that takes models; those that do: {', '.join(there) or 'none'}"
        )
    known = {row.progress.group for row in there.values()}
    if missing := [group for group in groups if group not in known]:
        raise NoInputError(
            f"{where}: no device of group {', '.join(missing)}; groups there: {', '.join(sorted(known - {''})) or 'none'}"
        )
    everybody = not groups and not devices
    rows = {name: row for name, row in there.items() if everybody or name in devices or row.progress.group in groups}
    if not rows:
        raise NoInputError(f"{where}: no device takes models; a section [update] in device.toml lets it")
    return rows


def _heard(rows: dict[str, Row], message: Message, mine: str, now_s: float) -> Row | None:
    """The row that a message changes."""
    row = rows.get(message.topic.split("/")[1])
    if row is None:
        return None
    if (progress := _progress(message)) is not None:
        row.progress, row.changed_s = progress, now_s
        return row
    if message.topic == topics.response(row.device, "update"):
        try:
            answer = msgspec.json.decode(message.payload, type=topics.Response)
        except msgspec.MsgspecError:
            return None
        if answer.transaction == mine:
            row.answer, row.error = ("ok", "") if answer.status == "ok" else ("refused", answer.error)
            row.changed_s = now_s
            return row if row.answer == "refused" else None
    return None


def _progress(message: Message) -> Progress | None:
    if not message.topic.endswith("/update") or "/response/" in message.topic:
        return None
    try:
        return msgspec.json.decode(message.payload, type=Progress)
    except msgspec.MsgspecError:  # cleared, or of another time
        return None


def _decided(row: Row, asked_s: float, now_s: float) -> bool:
    if row.answer != "ok":
        return row.answer == "refused" or now_s - asked_s > _PATIENCE_S
    return row.progress.step == "idle" and now_s - row.changed_s > _SETTLED_S


def line(row: Row) -> str:
    """Where it is, while one watches."""
    progress = row.progress
    if row.answer == "refused":
        return f"{row.device}: {row.error}"
    coming = f" {progress.name} {progress.version} (number {progress.offered})" if progress.offered is not None else ""
    return f"{row.device}: {progress.step}{coming}{': ' + progress.reason if progress.reason else ''}"


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"device": row.device, "answer": row.answer, "outcome": row.outcome, "failed": row.failed, "before": row.before}
        | msgspec.to_builtins(row.progress)
        for row in rows
    ]


def table(rows: Sequence[Row]) -> list[str]:
    cells = [("device", "group", "runs", "step", "outcome")] + [
        (row.device, row.progress.group or "-", f"model {row.progress.number}", row.progress.step, row.outcome) for row in rows
    ]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(cell[:4], widths, strict=True)), cell[4]]) for cell in cells]
