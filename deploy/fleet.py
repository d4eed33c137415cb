"""Drive a roll-out: ask the devices of a stage, hear what becomes of it, go on or take it back. And show how it stands.

What is decided is `deploy.rollout`'s, what is kept `deploy.ledger`'s, who is there `deploy.plant`'s. Whoever drives may die at
any moment: another one goes on from the ledger, and devices do not notice.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from deploy.ledger import LEASE_S, Ledger, Rollout
from deploy.plant import ASKED_S, Plant
from deploy.push import columns
from deploy.rollout import Member, Place, Plan, State, gates, heard, judge, late, measured, members_of
from edge.errors import GateError, NoInputError, UsageError

AGAIN_S = 300.0
"""Until a device that has not moved is asked once more: it was off, or its repository did not have the model yet."""
SAVE_S = 1.0
PLACES: tuple[Place, ...] = ("waiting", "asked", "trying", "probation", "kept", "failed", "absent", "returned")


def begin(ledger: Ledger, plant: Plant, plan: Plan, names: Sequence[str], *, resume: bool = False) -> Rollout:
    """A new roll-out to these devices, or the one of this very model that has begun.

    Raises `UsageError` for one that was halted, unless `resume`, and for one that was taken back.
    """
    for known in ledger.all():
        if known.plan.digest != plan.digest:
            busy = {member.device for member in ledger.members(known.id)} if known.state in ("running", "reverting") else set()
            if both := sorted(busy & {*names}):
                model = known.plan.model
                raise UsageError(
                    f"{model} is being rolled out to {both[0]} and others; end that first: amiss fleet halt {model}"
                )
            continue
        if known.state == "reverting":
            raise UsageError(
                f"{plan.model} is being taken back ({known.reason}); amiss fleet revert {plan.model} goes on with that"
            )
        if known.state == "reverted":
            raise UsageError(f"{plan.model} was taken back ({known.reason}); devices never try it again: publish a new version")
        if known.plan.number != plan.number:  # offered anew since
            continue
        if known.state == "halted":
            if not resume:
                raise UsageError(f"{plan.model} was halted ({known.reason}); --resume goes on all the same")
            ledger.note(known.id, state="running", reason="")
        return ledger.get(known.id)
    if not names:
        raise NoInputError(f"{plant.where}: no device that {plan.model} is for")
    groups = {name: plant.devices[name].progress.group for name in names}
    return ledger.begin(plan, plant.where, members_of(groups, plan.stages, plan.digest))


class Controller:
    """Drives one roll-out, turn by turn, until `over`. `said` is told, in a line, what a person would want to hear of.

    `audience`: who else is of it, should a device show up that was not there in the beginning. `wall` is epoch seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        plant: Plant,
        rollout: Rollout,
        *,
        said: Callable[[str], None],
        audience: Callable[[str, str], bool] = lambda node, group: True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._plant, self._id, self._plan = ledger, plant, rollout.id, rollout.plan
        self._said, self._audience, self._wall = said, audience, wall
        self._state: State = rollout.state
        self._since_s = rollout.changed_s  # in this state
        self._stage = rollout.stage
        self._members = {member.device: member for member in ledger.members(rollout.id)}
        self._seen: dict[str, tuple[Any, Any]] = {}  # progress and health that were taken into account
        self._asked_s: dict[tuple[str, str], float] = {}  # device and verb → epoch, when this process asked last
        self._changed: set[str] = set()
        self._saved_s = -LEASE_S
        self._last = len(self._plan.stages) - 1

    @property
    def over(self) -> bool:
        return self._state in ("done", "halted", "reverted")

    def drive(self) -> Rollout:
        """To the end. Raises what `Plant.turn` and `Ledger` do; then the same call goes on where this one was."""
        with self._ledger.lease(self._id) as renew:
            renewed_s = self._wall()
            self._announce()
            self._take(set(self._plant.devices))
            while not self.over:
                if self._wall() - renewed_s > LEASE_S / 4:
                    renew()
                    renewed_s = self._wall()
                self.turn(0.25)
            self._save(force=True)
        return self._ledger.get(self._id)

    def turn(self, timeout_s: float) -> None:
        """Listen so long, and do what is due: for all of them, so not once for every message."""
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._take(self._plant.turn(left_s))
        self._answers()
        now_s = self._wall()
        for member in self._members.values():
            before, asked_s = member.place, member.asked_s
            late(self._plan, member, now_s, self._since_s if self._state == "reverting" else None)
            self._note(member, before)
            if member.asked_s != asked_s:
                self._changed.add(member.device)
        if self._save() and self._state == "running" and (known := self._ledger.get(self._id)).state != "running":
            self._turn_to(known.state)  # somebody has decided otherwise
        if self._state == "running":
            self._advance(now_s)
        elif self._state == "reverting":
            self._revert(now_s)

    # What is heard.

    def _take(self, names: set[str]) -> None:
        for name in sorted(names):
            device = self._plant.devices[name]
            member = self._members.get(name)
            if member is None:
                if self._state != "running" or not self._audience(name, device.progress.group):
                    continue
                member = self._members[name] = Member(device=name, group=device.progress.group, stage=self._last)
                self._ledger.keep(self._id, (), [member])
            progress, health = self._seen.get(name, (None, None))
            before = member.place
            if device.progress is not progress:
                heard(self._plan, member, device.progress, reverting=self._state == "reverting")
            if device.health is not None and device.health is not health:
                measured(member, device.health)
                self._changed.add(name)
            self._seen[name] = device.progress, device.health
            self._note(member, before)

    def _answers(self) -> None:
        """Only what is refused is news: what becomes of a request that is not, a device tells by itself."""
        answers, self._plant.answers[:] = list(self._plant.answers), []
        for answer in answers:
            member = self._members.get(answer.node)
            if member is not None and member.place == "asked" and answer.verb == "update" and answer.response.status == "error":
                before, member.place, member.reason = member.place, "failed", answer.response.error
                self._note(member, before)

    def _note(self, member: Member, before: Place) -> None:
        if member.place != before:
            self._changed.add(member.device)
            if member.place in ("failed", "absent"):
                self._said(f"{member.device}: {member.place}: {member.reason}")

    # What is done.

    def _advance(self, now_s: float) -> None:
        for member in self._members.values():
            if member.stage <= self._stage and member.place in ("waiting", "asked"):
                self._ask(member, "update", AGAIN_S, now_s, number=self._plan.number)
        verdict, why = judge(self._plan, gates(self._plan, self._stage, self._members.values()))
        if verdict == "halt":
            self._settle("reverting" if self._plan.revert else "halted", why)
        elif verdict == "next" and self._stage == self._last:
            self._settle("done", "")
        elif verdict == "next":
            self._stage += 1
            self._ledger.note(self._id, stage=self._stage)
            self._announce()

    def _revert(self, now_s: float) -> None:
        for member in self._members.values():
            if member.place in ("probation", "kept"):
                self._ask(member, "rollback", ASKED_S, now_s, reason=f"roll-out of {self._plan.model} was halted")
            elif member.place == "asked" and now_s - self._asked_s.get((member.device, "update"), 0.0) > 2 * ASKED_S:
                # Nor does it now: the broker has forgotten what was asked.
                member.place, member.reason = "returned", "it had not begun"
                self._changed.add(member.device)
        if not any(member.place in ("asked", "trying", "probation", "kept") for member in self._members.values()):
            self._settle("reverted", None)

    def _ask(self, member: Member, verb: str, pause_s: float, now_s: float, **body: Any) -> None:
        if now_s - self._asked_s.get((member.device, verb), -pause_s) < pause_s or not self._plant.room:
            return
        self._plant.ask(member.device, verb, **body)
        self._asked_s[member.device, verb] = now_s
        if member.place == "waiting":
            member.place, member.asked_s = "asked", now_s
            self._changed.add(member.device)

    def _settle(self, state: State, reason: str | None) -> None:
        self._save(force=True)
        self._ledger.note(self._id, state=state, reason=reason)
        self._turn_to(state)

    def _turn_to(self, state: State) -> None:
        self._state, self._since_s = state, self._wall()
        self._announce()

    def _save(self, *, force: bool = False) -> bool:
        if not force and self._wall() - self._saved_s < SAVE_S:
            return False
        if self._changed:
            self._ledger.keep(self._id, [self._members[name] for name in sorted(self._changed)])
        self._changed, self._saved_s = set(), self._wall()
        return True

    def _announce(self) -> None:
        self._said(headline(self._ledger.get(self._id), list(self._members.values())))


def revert(ledger: Ledger, rollout: Rollout, reason: str) -> Rollout:
    """From now on it is taken back, by whoever drives it. Raises `GateError` when there is nothing to take back any more."""
    if rollout.state == "reverted":
        raise GateError(f"{rollout.plan.model} was taken back already ({rollout.reason})")
    ledger.note(rollout.id, state="reverting", reason=reason)
    return ledger.get(rollout.id)


def halt(ledger: Ledger, rollout: Rollout, reason: str) -> Rollout:
    """No device is asked any more; those that have begun go on by themselves. Raises `GateError` for one that is over."""
    if rollout.state != "running":
        raise GateError(f"{rollout.plan.model} is not being rolled out: it is {rollout.state}")
    ledger.note(rollout.id, state="halted", reason=reason)
    return ledger.get(rollout.id)


# What is shown.


def headline(rollout: Rollout, members: Sequence[Member]) -> str:
    plan = rollout.plan
    match rollout.state:
        case "running":
            here = sum(member.stage == rollout.stage for member in members)
            share = f"{plan.stages[rollout.stage]:.0%}"
            return (
                f"{plan.model}: stage {rollout.stage + 1} of {len(plan.stages)}, {here} devices, up to {share} of every group"
            )
        case "done":
            kept = sum(member.place == "kept" for member in members)
            return f"{plan.model}: done, {kept} of {len(members)} devices keep it"
        case "reverted":
            left = sum(member.place == "absent" for member in members)
            more = f"; {left} devices were not heard, and may run it" if left else ""
            return f"{plan.model}: taken back, {rollout.reason}{more}"
        case "reverting":
            return f"{plan.model}: is being taken back, {rollout.reason}"
        case "halted":
            return f"{plan.model}: halted, {rollout.reason}"


def as_data(rollout: Rollout, members: Sequence[Member]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(rollout)
    found["gates"] = msgspec.to_builtins(gates(rollout.plan, rollout.stage, members))
    found["devices"] = [msgspec.to_builtins(member) for member in members]
    return found


def table(rollout: Rollout, members: Sequence[Member], *, every: bool = False) -> list[str]:
    """A line for each stage, the gates, and the devices that need somebody; `every`: all that have begun."""
    plan = rollout.plan
    idle = "" if rollout.driven or rollout.state in ("done", "halted", "reverted") else "  (nobody drives it now)"
    lines = [headline(rollout, members) + idle]
    shown = [place for place in PLACES if any(member.place == place for member in members)]
    cells = [("stage", "up to", "devices", *shown)]
    for stage, share in enumerate(plan.stages):
        here = [member for member in members if member.stage == stage]
        mark = "▶" if stage == rollout.stage and rollout.state == "running" else " "
        counts = [str(sum(member.place == place for member in here)) for place in shown]
        cells.append((f"{mark} {stage + 1}", f"{share:.0%}", str(len(here)), *counts))
    lines += columns(cells)
    found = gates(plan, rollout.stage, members)
    if found.hours:
        slower = f", a window takes {found.slower:.2g} times as long as before" if found.slower is not None else ""
        bearable = f"{found.bearable:.2g} by what was before" if found.bearable < float("inf") else "nothing known of before"
        lines.append(f"{found.alarms} alarms in {found.hours:.3g} device hours with it ({bearable}){slower}")
    rows = [member for member in members if member.place != "waiting"] if every else []
    rows = rows or [member for member in members if member.place in ("failed", "absent")][:20]
    if rows:
        lines += ["", *columns([("device", "group", "stage", "", "why")] + [_cells(member) for member in rows])]
    return lines


def _cells(member: Member) -> tuple[str, ...]:
    return member.device, member.group or "-", str(member.stage + 1), member.place, member.reason
