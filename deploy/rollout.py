"""A model goes to a fleet in stages: where each device is, and whether to go on. Pure: what was heard and the time come in.

    waiting ─▶ asked ─▶ trying ─▶ probation ─▶ kept             a device
                 │         └─────────┴──▶ failed                its own data, or its own days, spoke against the model
                 ├──▶ unfit                                     made for other channels, another rate, a newer agent
                 └──▶ absent                                    nothing decided within the patience

    running ─▶ done                                             the roll-out
       └──▶ reverting ─▶ reverted, or halted                    a gate did not hold, or somebody said so

The offer is signed and held (`edge.updating.rules`): a device takes it only when it is asked for its number. Stages are shares
of every group, the first one small. A stage is over when each of its devices has decided, and the next begins when these gates
hold; the first that does not ends the roll-out, as soon as it can be known:

- at most `most_failed` of those asked so far did not keep the model;
- alarms: they grow by less than `times`. A device's bearable rate is that of its own past and of a day of what the whole
  fleet does; what the devices with the new model raise is held against the sum. It is the sequential test of
  `edge.updating.probation` (there for one device): of good models at most `mistaken` are halted for their alarms, however often
  one looks. It sees what no device alone can: thirty that each raise one alarm too many;
- latency: the median of the devices takes less than `slower` times as long as before;
- at least half of them were heard, and somebody keeps the model.

Time is the roll-out's own: it stands still while nobody drives it, or the broker is away.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec

from edge.delivery.topics import HealthPayload
from edge.updating.probation import SWARM_H
from edge.updating.workflow import Progress

DEFAULT_STAGES = (0.05, 0.25, 1.0)
MEMORY_H = 24.0
"""Of what the whole fleet does counts as much as so many hours of a device's own."""
LEAST_MS = 1.0
"""What takes less may take longer."""

State = Literal["running", "done", "halted", "reverting", "reverted"]
Place = Literal["waiting", "asked", "trying", "probation", "kept", "failed", "unfit", "absent", "returned"]
DECIDED = frozenset({"kept", "failed", "unfit", "absent", "returned"})
RUNS = ("probation", "kept")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is rolled out, and what the gates are."""

    model: str
    """`name-version`, as it was published."""
    number: int
    digest: str
    stages: tuple[float, ...] = DEFAULT_STAGES
    """Shares of every group, growing, the last one 1."""
    most_failed: float = 0.1
    times: float = 3.0
    mistaken: float = 0.01
    slower: float = 2.0
    patience_h: float = 72.0
    """From being asked until it has decided: a trial, an episode that has to end, a day of probation."""
    revert: bool = True
    """When a gate does not hold, take the model back wherever it runs."""


class Member(msgspec.Struct, kw_only=True):
    """One device in a roll-out. `before` and `after` it runs the new model: what it was seen to do."""

    device: str
    group: str
    stage: int
    place: Place = "waiting"
    reason: str = ""
    asked_s: float | None = None
    """Of the roll-out's time, when it was first asked to take the model."""
    late: bool = False
    """It is on probation for longer than the patience."""
    hours_before: float = 0.0
    alarms_before: int = 0
    """What came within an hour of the last that counted is one alarm."""
    ms_before: float | None = None
    """For one window."""
    hours_after: float = 0.0
    alarms_after: int = 0
    ms_after: float | None = None
    uptime_s: float = 0.0
    """Of the agent, and"""
    alarms: int = 0
    """alarms since its start, when it was last heard;"""
    alarm_h: float = -SWARM_H
    """and after how many hours, before and after, the last one came that counted."""


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of those that run the model, so far."""

    devices: int
    """Of the stage and those before,"""
    decided: int
    kept: int
    failed: int
    unfit: int
    absent: int
    hours: float
    """with the model, on all devices so far;"""
    alarms: int
    bearable: float
    """Alarms in that time, if nothing has changed."""
    evidence: float
    """Logarithm of how much likelier `alarms` are at `times` the bearable rate."""
    slower: float | None
    """Median of the devices' latency, now to before. None: not known."""


def members_of(devices: Mapping[str, str], stages: Sequence[float], seed: str) -> list[Member]:
    """Device → group; each gets a stage. Who comes first is by chance, but the same whenever it is asked: `seed` names the
    roll-out, so the same few devices are not the canaries of every model."""
    found = []
    for group in sorted({*devices.values()}):
        names = sorted((name for name in devices if devices[name] == group), key=lambda name: _chance(seed, name))
        ends = [math.ceil(share * len(names) - 1e-9) for share in stages]
        for position, name in enumerate(names):
            stage = next(stage for stage, end in enumerate(ends) if position < end)
            found.append(Member(device=name, group=group, stage=stage))
    return sorted(found, key=lambda member: (member.stage, member.device))


def heard(plan: Plan, member: Member, progress: Progress, *, reverting: bool = False) -> None:
    """It says where it is with its models. `reverting`: it has been told to go back."""
    about = progress.became if progress.about == plan.number else None
    if progress.digest == plan.digest:
        if member.place not in RUNS:
            member.uptime_s = 0.0  # what it has counted so far is of the model before
        member.place, member.reason = ("probation" if progress.step == "probation" else "kept"), ""
    elif member.place in ("failed", "unfit", "returned"):
        return
    elif member.place in RUNS or about in ("refused", "taken back"):
        member.place = "returned" if reverting and member.place != "waiting" else "failed"
        member.reason = progress.reason or f"is back on model {progress.number}"
    elif about == "unfit":
        member.place, member.reason = "unfit", progress.reason
    elif member.place in ("asked", "trying", "absent"):
        busy = progress.step in ("fetching", "trying", "waiting")
        member.place = "trying" if busy else "asked" if member.place == "trying" else member.place
        member.reason = progress.reason


def measured(member: Member, health: HealthPayload) -> None:
    """What it counted since it was last heard; what it counted before that, from its start on, if this is the first time."""
    alarms = sum(stream.alarms for stream in health.streams.values())
    times_ms = [stream.latency_ms for stream in health.streams.values() if stream.latency_ms is not None]
    first = not member.uptime_s
    anew = health.uptime_s < member.uptime_s or alarms < member.alarms  # it was started since, and counts from zero
    hours = (health.uptime_s - (0.0 if anew or first else member.uptime_s)) / 3600
    more = alarms - (0 if anew or first else member.alarms)
    member.uptime_s, member.alarms = health.uptime_s, alarms
    if member.place in RUNS:
        member.ms_after = max(times_ms, default=member.ms_after)
        if not first:  # how much of it was before, nobody knows
            member.hours_after += hours
            member.alarms_after += _apart(member, more)
    elif member.place in ("waiting", "asked", "trying"):
        member.ms_before = max(times_ms, default=member.ms_before)
        member.hours_before += hours
        member.alarms_before += _apart(member, more)


def _apart(member: Member, more: int) -> int:
    """Of so many alarms that came since it was last heard, those that were not of one swarm, as far as one can tell."""
    hours = member.hours_before + member.hours_after
    count = min(more, int((hours - member.alarm_h) / SWARM_H))
    if count > 0:
        member.alarm_h = hours
    return max(0, count)


def late(plan: Plan, member: Member, now_s: float, back_s: float | None = None) -> None:
    """It has had its time, since it was asked, or since all were told to go back. Seconds of the roll-out."""
    if member.asked_s is None and member.place != "waiting":
        member.asked_s = now_s  # somebody asked it and died before that was on the disk, or it has the model by other ways
    begun_s = member.asked_s if back_s is None else back_s
    if begun_s is None or now_s - begun_s <= 3600 * plan.patience_h:
        return
    if member.place in ("asked", "trying") or (back_s is not None and member.place in RUNS):
        member.place, member.reason = "absent", member.reason or f"had not decided after {plan.patience_h:g} h"
    elif member.place == "probation":
        member.late = True


def gates(plan: Plan, stage: int, members: Collection[Member]) -> Gates:
    """As they stand by this stage."""
    here = [member for member in members if member.stage <= stage]
    count = {place: sum(member.place == place for member in here) for place in DECIDED}
    count["absent"] += sum(member.place == "probation" and member.late for member in here)
    known_h = sum(member.hours_before for member in members)
    fleet_per_h = (sum(member.alarms_before for member in members) + 1) / known_h if known_h else math.inf
    with_it = [member for member in members if member.hours_after]
    bearable = sum(
        member.hours_after * (member.alarms_before + fleet_per_h * MEMORY_H) / (member.hours_before + MEMORY_H)
        for member in with_it
    )
    alarms = sum(member.alarms_after for member in with_it)
    ratios = [
        member.ms_after / max(member.ms_before, LEAST_MS / plan.slower)
        for member in with_it
        if member.ms_before is not None and member.ms_after is not None
    ]
    return Gates(
        devices=len(here),
        decided=sum(count.values()),
        kept=count["kept"],
        failed=count["failed"],
        unfit=count["unfit"],
        absent=count["absent"],
        hours=sum(member.hours_after for member in with_it),
        alarms=alarms,
        bearable=bearable,
        evidence=alarms * math.log(plan.times) - (plan.times - 1) * bearable if with_it else 0.0,
        slower=median(ratios) if ratios else None,
    )


def judge(plan: Plan, found: Gates) -> tuple[Literal["stay", "next", "halt"], str]:
    """What becomes of the roll-out, and why."""
    if found.failed > plan.most_failed * found.devices:
        return "halt", f"{found.failed} of {found.devices} devices did not keep it; {plan.most_failed:.0%} may"
    if found.evidence >= -math.log(plan.mistaken):
        return "halt", (
            f"{found.alarms} alarms in {found.hours:.3g} device hours with it; by what was before, {found.bearable:.2g} "
            "would be ordinary"
        )
    if found.slower is not None and found.slower > plan.slower:
        return "halt", f"a window takes {found.slower:.2g} times as long as before; {plan.slower:g} are bearable"
    if found.decided < found.devices:
        return "stay", ""
    if 2 * found.absent > found.devices:
        return "halt", f"{found.absent} of {found.devices} devices had not decided in time; are they on?"
    if found.devices and not found.kept:
        return "halt", f"none of {found.devices} devices keeps it, {found.unfit} cannot run it"
    return "next", ""


def _chance(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
