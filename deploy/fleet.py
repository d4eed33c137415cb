"""Drive a roll-out: ask the devices of a stage, hear what becomes of it, go on or take it back. And show how it stands.

What is decided is `deploy.rollout`'s, what is kept `deploy.ledger`'s, who is there `deploy.plant`'s. Whoever drives may die at
any moment: another one goes on from the ledger, and devices do not notice.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from deploy.ledger import LEASE_S, Ledger, Rollout
from deploy.plant import ASKED_S, Plant
from deploy.push import columns
from deploy.rollout import RUNS, Member, Place, Plan, State, gates, heard, judge, late, measured, members_of
from edge.errors import GateError, NoInputError, UsageError

AGAIN_S = 300.0
"""Until a device that has said nothing is asked once more: it was off."""
MOST_TURN_S = 5.0
"""That a turn counts for, of the roll-out's own time."""
SAVE_S = 1.0
PLACES: tuple[Place, ...] = ("waiting", "asked", "trying", "probation", "kept", "failed", "unfit", "absent", "returned")


def begin(ledger: Ledger, plant: Plant, plan: Plan, names: Sequence[str], *, resume: bool = False) -> Rollout:
    """A new roll-out to these devices, or the one of this very model on this broker that has begun.

    Raises `UsageError` for one that was halted, or that was begun with other gates, unless `resume`: then it goes on, with
    these; for one that was taken back; and when another model is being rolled out to one of these devices.
    """
    known = [one for one in ledger.all() if one.broker == plant.where]
    for one in known:
        other = one.plan.digest != plan.digest and one.state in ("running", "reverting")
        if both := sorted({member.device for member in ledger.members(one.id)} & {*names}) if other else []:
            model = one.plan.model
            raise UsageError(f"{model} is being rolled out to {both[0]} and others; end that first: amiss fleet halt {model}")
    mine = next((one for one in known if one.plan.digest == plan.digest), None)
    if mine is not None and mine.state == "reverting":
        raise UsageError(f"{plan.model} is being taken back ({mine.reason}); amiss fleet revert {plan.model} goes on with that")
    if mine is not None and mine.state == "reverted":
        raise UsageError(f"{plan.model} was taken back ({mine.reason}); devices never try it again: publish a new version")
    if mine is not None and mine.plan.number == plan.number:
        members = ledger.members(mine.id)
        if mine.state == "halted" and not resume:
            raise UsageError(f"{plan.model} was halted ({mine.reason}); --resume goes on all the same")
        if mine.state in ("running", "halted"):
            if mine.plan != plan and not resume:
                raise UsageError(
                    f"{plan.model} was begun with other stages or gates; say the same ones, or --resume to take these"
                )
            if mine.plan.stages != plan.stages:
                raise UsageError(f"{plan.model} was begun with the stages {_percent(mine.plan.stages)}; they stay")
            if resume:
                again = [
                    msgspec.structs.replace(one, place="waiting", asked_s=None) for one in members if one.place == "absent"
                ]
                ledger.keep(mine.id, again)
                ledger.note(mine.id, state="running", reason="", plan=plan)
            return ledger.get(mine.id)
        if {*names} <= {member.device for member in members}:
            return mine  # done, for all of these
    if not names:
        raise NoInputError(f"{plant.where}: no device that {plan.model} is for")
    groups = {name: plant.devices[name].progress.group for name in names}
    return ledger.begin(plan, plant.where, members_of(groups, plan.stages, plan.digest))


class Controller:
    """Drives one roll-out, turn by turn, until `over`. `said` is told, in a line, what a person would want to hear of.

    `audience`: who else is of it, should a device show up that was not there in the beginning. `clock` is monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        plant: Plant,
        rollout: Rollout,
        *,
        said: Callable[[str], None],
        audience: Callable[[str, str], bool] = lambda node, group: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._plant, self._id, self._plan = ledger, plant, rollout.id, rollout.plan
        self._said, self._audience, self._clock = said, audience, clock
        self._state: State = rollout.state
        self._stage = rollout.stage
        self._now_s, self._since_s = rollout.driven_s, rollout.since_s  # of the roll-out's own time
        self._turned_s = clock()
        self._members = {member.device: member for member in ledger.members(rollout.id)}
        self._seen: dict[str, tuple[Any, Any]] = {}  # progress and health that were taken into account
        self._asked: dict[tuple[str, str], tuple[float, Any]] = {}  # device and verb → when, and what it had told by then
        self._answered = False  # somebody has said yes
        self._changed: set[str] = set()
        self._saved_s = -math.inf
        self._last = len(self._plan.stages) - 1

    @property
    def over(self) -> bool:
        return self._state in ("done", "halted", "reverted")

    def drive(self) -> Rollout:
        """To the end. Raises what `Plant.turn` and `Ledger` do; then the same call goes on where this one was."""
        with self._ledger.lease(self._id) as renew:
            renewed_s = self._clock()
            self._announce()
            self._take(set(self._plant.devices))
            while not self.over:
                if self._clock() - renewed_s > LEASE_S / 4:
                    renew(self._now_s)
                    renewed_s = self._clock()
                self.turn(0.25)
            self._save(force=True)
            renew(self._now_s)
        return self._ledger.get(self._id)

    def turn(self, timeout_s: float) -> None:
        """Listen so long, and do what is due: for all of them, so not once for every message."""
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._take(self._plant.turn(left_s))
        now_s = self._clock()
        if self._plant.connected:  # a computer that slept, or a broker that is away, is no device's fault
            self._now_s += min(now_s - self._turned_s, MOST_TURN_S)
        self._turned_s = now_s
        self._answers()
        for member in self._members.values():
            before = msgspec.structs.replace(member)
            late(self._plan, member, self._now_s, self._since_s if self._state == "reverting" else None)
            self._note(member, before)
        if self._save():
            self._obey()
        if self._state == "running":
            self._advance()
        elif self._state == "reverting":
            self._revert()

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
            before = msgspec.structs.replace(member)
            if device.progress is not progress:
                heard(self._plan, member, device.progress, reverting=self._state == "reverting")
            if device.health is not None and device.health is not health:
                measured(member, device.health)
            self._seen[name] = device.progress, device.health
            self._note(member, before)

    def _answers(self) -> None:
        """What becomes of a request that is not refused a device tells by itself."""
        answers, self._plant.answers[:] = list(self._plant.answers), []
        for answer in answers:
            member, error = self._members.get(answer.node), answer.response.error
            if member is None:
                continue
            before = msgspec.structs.replace(member)
            if answer.response.status == "ok":
                self._answered |= answer.verb == "update"
                if self._state == "reverting" and answer.verb == "update" and member.place == "asked":
                    member.place, member.reason = "returned", "it had not begun"
            elif answer.verb == "rollback" and self._state == "reverting":
                member.place, member.reason = "absent", error
            elif answer.verb == "update" and member.place == "asked":
                if not self._answered:  # a token that is missing, say: that is nothing that speaks against the model
                    self._settle("halted", f"{answer.node}: {error}")
                    return
                member.place, member.reason = "failed", error
            self._note(member, before)

    def _note(self, member: Member, before: Member) -> None:
        if member != before:
            self._changed.add(member.device)
        if member.place != before.place and member.place in ("failed", "unfit", "absent"):
            self._said(f"{member.device}: {member.place}: {member.reason}")

    # What is done.

    def _advance(self) -> None:
        for member in self._members.values():
            if member.stage <= self._stage and member.place in ("waiting", "asked"):
                self._ask(member, "update", number=self._plan.number)
        verdict, why = judge(self._plan, gates(self._plan, self._stage, self._members.values()))
        if verdict == "halt":
            tried = any(member.place in (*RUNS, "failed") for member in self._members.values())
            self._settle("reverting" if self._plan.revert and tried else "halted", why)
        elif verdict == "next" and self._stage == self._last:
            self._settle("done", "")
        elif verdict == "next":
            self._stage += 1
            if self._ledger.note(self._id, stage=self._stage, expected="running"):
                self._announce()
            else:
                self._obey()

    def _revert(self) -> None:
        for member in self._members.values():
            if member.place in RUNS:
                self._ask(member, "rollback", reason=f"roll-out of {self._plan.model} was halted")
            elif member.place == "asked":
                self._ask(member, "update", number=0)  # not any more
        if not any(member.place in ("asked", "trying", *RUNS) for member in self._members.values()):
            self._settle("reverted", None)

    def _ask(self, member: Member, verb: str, **body: Any) -> None:
        """Once, and again where that may help: of a running model that it is to leave it, once a minute; to take one, when it
        has said nothing since, or was started anew and has forgotten."""
        device = self._plant.devices.get(member.device)
        asked_s, said = self._asked.get((member.device, verb), (-math.inf, None))
        since_s = self._now_s - asked_s
        if math.isfinite(since_s):
            again = self._state == "reverting" and since_s > ASKED_S
            if self._state == "running" and since_s > AGAIN_S and device is not None:
                silent = device.progress is said
                again = silent or (device.health is not None and device.health.uptime_s < since_s)
            if not again:
                return
        if not self._plant.room:
            return
        self._plant.ask(member.device, verb, **body)
        self._asked[member.device, verb] = self._now_s, None if device is None else device.progress
        if member.place == "waiting":
            member.place, member.asked_s = "asked", self._now_s
            self._changed.add(member.device)

    def _settle(self, state: State, reason: str | None) -> None:
        self._save(force=True)
        if self._ledger.note(self._id, state=state, reason=reason, since_s=self._now_s, expected=self._state):
            self._turn_to(state)
        else:
            self._obey()

    def _obey(self) -> None:
        """Somebody may have decided otherwise."""
        if (known := self._ledger.get(self._id)).state != self._state:
            self._turn_to(known.state)

    def _turn_to(self, state: State) -> None:
        self._state, self._since_s, self._asked = state, self._now_s, {}
        if state == "reverting":  # also those that were given up: they may run it
            self._seen.clear()
            self._take(set(self._plant.devices))
        self._announce()

    def _save(self, *, force: bool = False) -> bool:
        if not force and self._clock() - self._saved_s < SAVE_S:
            return False
        if self._changed:
            self._ledger.keep(self._id, [self._members[name] for name in sorted(self._changed)])
        self._changed, self._saved_s = set(), self._clock()
        return True

    def _announce(self) -> None:
        self._said(headline(self._ledger.get(self._id), list(self._members.values())))


def revert(ledger: Ledger, rollout: Rollout, reason: str) -> Rollout:
    """From now on it is taken back, by whoever drives it. Raises `GateError` when there is nothing to take back any more."""
    if rollout.state == "reverted":
        raise GateError(f"{rollout.plan.model} was taken back already ({rollout.reason})")
    if rollout.state != "reverting":
        ledger.note(rollout.id, state="reverting", reason=reason, since_s=rollout.driven_s)
    return ledger.get(rollout.id)


def halt(ledger: Ledger, rollout: Rollout, reason: str) -> Rollout:
    """No device is asked any more; those that have begun go on by themselves. Raises `GateError` for one that is over."""
    if rollout.state != "running":
        raise GateError(f"{rollout.plan.model} is not being rolled out: it is {rollout.state}")
    ledger.note(rollout.id, state="halted", reason=reason)
    return ledger.get(rollout.id)


def _percent(stages: Sequence[float]) -> str:
    return ",".join(f"{share:.3g}%" for share in (100 * share for share in stages))


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
    found["gates"] = {
        name: None if isinstance(value, float) and math.isinf(value) else value  # which JSON does not know
        for name, value in msgspec.to_builtins(gates(rollout.plan, rollout.stage, members)).items()
    }
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
    rows = rows or [member for member in members if member.place in ("failed", "unfit", "absent")][:20]
    if rows:
        lines += ["", *columns([("device", "group", "stage", "", "why")] + [_cells(member) for member in rows])]
    return lines


def _cells(member: Member) -> tuple[str, ...]:
    return member.device, member.group or "-", str(member.stage + 1), member.place, member.reason
