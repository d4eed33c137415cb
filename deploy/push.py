"""Tell devices that there may be a new model, and see what becomes of it.

Each one that is asked looks into its repository at once and decides by itself: nothing here makes it take a model.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from deploy.plant import Plant
from edge.config import MqttConfig
from edge.updating.workflow import Progress

_PATIENCE_S = 15.0
"""For a device to answer."""
_SETTLED_S = 5.0
"""Idle for so long after it had looked, a device has decided."""


class Row(msgspec.Struct, kw_only=True):
    """One device."""

    device: str
    progress: Progress
    answer: Literal["ok", "refused", "none"] = "none"
    error: str = ""
    """Why it refused to look."""
    changed_s: float = 0.0
    """When it last said where it is, on the clock of here."""
    asked: Progress
    """Where it was when it was asked."""
    number: int | None = None
    """Of the held offer that it was asked to take."""

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
        if self.progress.digest != self.asked.digest:
            return self.progress.reason or "runs it"
        return self.progress.reason or "nothing newer for it"

    @property
    def failed(self) -> bool:
        """It could not be asked, or tried a model since and did not keep it."""
        became, about = self.progress.became, self.progress.about
        ours = (became, about) != (self.asked.became, self.asked.about) or (about is not None and about == self.number)
        return self.answer != "ok" or (ours and became in ("refused", "taken back", "unfit"))


def push(
    config: MqttConfig,
    *,
    groups: Sequence[str] = (),
    devices: Sequence[str] = (),
    token: str | None = None,
    number: int | None = None,
    watch_s: float = 0.0,
    said: Callable[[Row], None] = lambda row: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Ask the devices of these groups and names, or all; what they answered, by name. `number`: of a held offer to take.

    With `watch_s` it stays until each has decided, at most so long; `said` is told of every change meanwhile. Raises what
    `Plant` does.
    """
    with Plant(config, token=token, clock=clock) as plant:
        now = {name: plant.devices[name].progress for name in plant.chosen(groups, devices)}
        rows = {name: Row(device=name, progress=progress, asked=progress, number=number) for name, progress in now.items()}
        waiting = list(rows)
        asked_s = clock()
        while True:
            while waiting and plant.room:
                plant.ask(waiting.pop(0), "update", **({} if number is None else {"number": number}))
                asked_s = clock()
            for name in sorted(plant.turn(0.2) & rows.keys()):
                if (progress := plant.devices[name].progress) is not rows[name].progress:
                    rows[name].progress, rows[name].changed_s = progress, clock()
                    said(rows[name])
            for answer in plant.answers:
                if (row := rows.get(answer.node)) is not None and answer.verb == "update":
                    row.answer, row.error = ("ok", "") if answer.response.status == "ok" else ("refused", answer.response.error)
                    row.changed_s = clock()
                    if row.answer == "refused":
                        said(row)
            plant.answers.clear()
            waited_s = clock() - asked_s
            answered = all(row.answer != "none" for row in rows.values()) or waited_s > _PATIENCE_S
            decided = all(_decided(row, asked_s, clock()) for row in rows.values())
            if not waiting and answered and (watch_s <= 0 or decided or waited_s > watch_s):
                return list(rows.values())


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
        {"device": row.device, "answer": row.answer, "outcome": row.outcome, "failed": row.failed, "before": row.asked.digest}
        | msgspec.to_builtins(row.progress)
        for row in rows
    ]


def table(rows: Sequence[Row]) -> list[str]:
    cells = [("device", "group", "runs", "step", "outcome")] + [
        (row.device, row.progress.group or "-", f"model {row.progress.number}", row.progress.step, row.outcome) for row in rows
    ]
    return columns(cells)


def columns(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table, each column as wide as it has to be."""
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(cells[0]) - 1)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(cell, widths, strict=False)), cell[-1]]) for cell in cells]
