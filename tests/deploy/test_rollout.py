"""Stages and gates, by themselves."""

import math
import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.rollout import Gates, Member, Plan, gates, heard, judge, late, measured, members_of
from edge.delivery.topics import HealthPayload, MqttHealth, StreamHealth
from edge.updating.workflow import Became, Progress, Step

PLAN = Plan(model="pump-2", number=7, digest="b" * 64)
QUIET = Gates(
    devices=10, decided=10, kept=10, failed=0, unfit=0, absent=0, hours=0.0, alarms=0, bearable=0.0, evidence=0.0, slower=None
)


def member(place: str = "asked", **more: object) -> Member:
    return msgspec.convert({"device": "pump-1", "group": "pumps", "stage": 0, "place": place, **more}, Member)


def progress(step: Step, *, new: bool = False, became: Became | None = None, about: int | None = None) -> Progress:
    return Progress(
        step=step, number=7 if new else 6, digest=("b" if new else "a") * 64, became=became, about=about, reason="why"
    )


def health(hours: float, alarms: int = 0, ms: float | None = 3.0) -> HealthPayload:
    stream = StreamHealth(
        online=True, samples=0, windows=0, events=0, filled=0, lost=0, reopened=0, alarms=alarms, latency_ms=ms
    )
    mqtt = MqttHealth(connected=True, queued=0, published=0, dropped=0, parked=0)
    return HealthPayload(time="", time_ns=0, uptime_s=3600 * hours, mqtt=mqtt, streams={"s": stream})


@given(
    groups=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    stages=st.sampled_from([(1.0,), (0.05, 0.25, 1.0), (0.01, 0.5, 1.0)]),
)
def test_each_stage_takes_its_share_of_every_group(groups: list[int], stages: tuple[float, ...]) -> None:
    devices = {f"d-{g}-{i}": f"g{g}" for g, size in enumerate(groups) for i in range(size)}
    found = members_of(devices, stages, "seed")
    assert {one.device: one.group for one in found} == devices
    for g, size in enumerate(groups):
        of_group = [one.stage for one in found if one.group == f"g{g}"]
        assert 0 in of_group, "a canary of every group"
        for stage, share in enumerate(stages):
            reached = sum(one <= stage for one in of_group)
            assert share * size - 1e-6 <= reached < share * size + 1


def test_who_comes_first_is_the_same_for_a_model_and_another_for_the_next() -> None:
    devices = {f"d-{i}": "g" for i in range(100)}
    first = [[one.device for one in members_of(devices, (0.05, 1.0), seed) if one.stage == 0] for seed in ("a", "a", "b")]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize(
    ("place", "says", "then"),
    [
        ("asked", progress("checking"), "asked"),
        ("asked", progress("trying"), "trying"),
        ("trying", progress("waiting"), "trying"),
        ("trying", progress("idle"), "asked"),
        ("asked", progress("probation", new=True), "probation"),
        ("waiting", progress("idle", new=True), "kept"),
        ("probation", progress("idle", new=True, became="kept", about=7), "kept"),
        ("asked", progress("idle", became="refused", about=7), "failed"),
        ("asked", progress("idle", became="unfit", about=7), "unfit"),
        ("unfit", progress("checking"), "unfit"),
        ("waiting", progress("idle", became="refused", about=7), "failed"),
        ("asked", progress("idle", became="refused", about=6), "asked"),
        ("probation", progress("idle", became="taken back", about=7), "failed"),
        ("kept", progress("idle", became="taken back", about=7), "failed"),
        ("absent", progress("probation", new=True), "probation"),
        ("absent", progress("idle"), "absent"),
        ("failed", progress("idle"), "failed"),
        ("waiting", progress("idle"), "waiting"),
    ],
)
def test_where_a_device_is_follows_from_what_it_says(place: str, says: Progress, then: str) -> None:
    one = member(place)
    heard(PLAN, one, says)
    assert one.place == then
    if then in ("failed", "trying") and place != then:
        assert one.reason == "why"


@pytest.mark.parametrize(("place", "then"), [("probation", "returned"), ("kept", "returned"), ("failed", "failed")])
def test_who_was_told_to_go_back_has_not_failed(place: str, then: str) -> None:
    one = member(place)
    heard(PLAN, one, progress("idle", became="taken back", about=7), reverting=True)
    assert one.place == then


def test_what_it_counts_is_of_the_model_that_runs() -> None:
    one = member("waiting")
    measured(one, health(100, 2, 3.0))
    assert (one.hours_before, one.alarms_before, one.ms_before) == (100, 2, 3.0)
    measured(one, health(101, 3, None))
    assert (one.hours_before, one.alarms_before, one.ms_before) == (101, 3, 3.0)
    heard(PLAN, one, progress("probation", new=True))
    measured(one, health(103, 9, 5.0))
    assert (one.hours_before, one.hours_after, one.alarms_after) == (101, 0, 0), "how much of it was before nobody knows"
    measured(one, health(105, 10, 5.0))
    measured(one, health(105.5, 12, 6.0))  # of one swarm
    measured(one, health(107, 13, 6.0))
    assert (one.hours_after, one.alarms_after, one.ms_after) == (4, 2, 6.0)
    measured(one, health(1, 1, 6.0))  # the agent was started anew
    assert (one.hours_after, one.alarms_after) == (5, 3)
    measured(one, health(0.5))
    assert one.hours_after == 5.5
    assert (one.hours_before, one.alarms_before) == (101, 3)


def test_what_it_counted_while_nobody_listened_counts() -> None:
    one = member("probation", uptime_s=3600.0)
    measured(one, health(21, 10))
    assert (one.hours_after, one.alarms_after) == (20, 10)
    measured(one, health(30, 4))  # fewer than before: it was started anew, and is ahead in time all the same
    assert (one.hours_after, one.alarms_after) == (50, 14)
    one = member("waiting")
    for minute in range(10):  # a swarm is one alarm, before as after
        measured(one, health(100 + minute / 60, 10 + minute))
    assert one.alarms_before == 10


def test_who_is_given_up_counts_for_neither() -> None:
    one = member("absent", uptime_s=3600.0)
    measured(one, health(50, 30))
    assert (one.hours_before, one.alarms_before, one.hours_after) == (0, 0, 0)


def test_who_does_not_decide_in_time_is_absent() -> None:
    for place, absent in (("asked", True), ("trying", True), ("kept", False), ("waiting", False)):
        one = member(place, asked_s=1000.0)
        late(PLAN, one, 1000.0 + 72 * 3600)
        assert one.place == place
        late(PLAN, one, 1001.0 + 72 * 3600)
        assert (one.place == "absent") is absent
    one = member("probation")
    late(PLAN, one, 1e6)
    assert (one.place, one.asked_s) == ("probation", 1e6), "who asked it died before it was written down"
    one = member("kept", asked_s=1.0)
    late(PLAN, one, 1e9, back_s=1e9 - 3600)
    assert one.place == "kept"
    late(PLAN, one, 1e9, back_s=1e9 - 73 * 3600)
    assert one.place == "absent"


def test_who_is_on_probation_for_long_is_waited_for_no_more_and_runs_it_all_the_same() -> None:
    members = [member("probation", asked_s=0.0), member("kept", device="pump-2", asked_s=0.0)]
    assert judge(PLAN, gates(PLAN, 0, members))[0] == "stay"
    for one in members:
        late(PLAN, one, 73 * 3600)
    assert [one.place for one in members] == ["probation", "kept"]
    found = gates(PLAN, 0, members)
    assert (found.decided, found.absent) == (2, 1)
    assert judge(PLAN, found)[0] == "next"


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        ({}, "next", ""),
        ({"decided": 9}, "stay", ""),
        ({"failed": 1}, "next", ""),
        ({"failed": 2, "decided": 2}, "halt", "2 of 10 devices did not keep it; 10% may"),
        ({"evidence": 4.5}, "stay", ""),
        ({"evidence": 4.7, "alarms": 5, "hours": 30.0, "bearable": 0.2}, "halt", "5 alarms in 30 device hours"),
        ({"slower": 2.0}, "next", ""),
        ({"slower": 2.1, "decided": 3}, "halt", "2.1 times as long"),
        ({"kept": 5, "absent": 5}, "next", ""),
        ({"kept": 4, "absent": 6}, "halt", "6 of 10 devices had not decided in time"),
        ({"kept": 1, "unfit": 9}, "next", ""),
        ({"kept": 0, "unfit": 9, "absent": 1}, "halt", "none of 10 devices keeps it, 9 cannot run it"),
        ({"devices": 0, "decided": 0, "kept": 0}, "next", ""),
    ],
)
def test_the_gates(changes: dict[str, float], verdict: str, why: str) -> None:
    found = msgspec.structs.replace(QUIET, **changes)
    if "evidence" in changes and verdict == "stay":
        found = msgspec.structs.replace(found, decided=9)
    assert judge(PLAN, found)[0] == verdict
    assert why in judge(PLAN, found)[1]


def roll(rate_before: float, rate_after: float, chance: random.Random, *, devices: int = 50, hours: int = 72) -> str:
    """Device-hours of Poisson alarms, looked at every hour: what becomes of it."""
    members = []
    for i in range(devices):
        own = rate_before * chance.gammavariate(2, 0.5)  # devices differ
        one = member("waiting", device=f"d-{i}", stage=0 if i < devices // 2 else 1)
        past = 24 * chance.randint(1, 20)
        measured(one, health(past, sum(chance.random() < own for _ in range(past))))
        members.append((one, own))
    for one, _ in members[: devices // 2]:
        one.place = "probation"
    for _ in range(hours):
        for one, own in members:
            rate = own * rate_after / rate_before if one.place == "probation" else own
            measured(one, health(one.uptime_s / 3600 + 1, one.alarms + (chance.random() < rate)))
        verdict, _ = judge(PLAN, gates(PLAN, 0, [one for one, _ in members]))
        if verdict == "halt":
            return verdict
    return "stay"


def test_a_model_that_alarms_no_more_than_before_is_hardly_ever_halted_and_one_that_does_is() -> None:
    chance = random.Random(5)
    rate = 2 / 168
    good = Counter(roll(rate, rate, chance) for _ in range(150))
    assert good["halt"] <= 0.03 * 150, "promised is 1 %, for a rate of before that is known"
    bad = Counter(roll(rate, 6 * rate, chance) for _ in range(30))
    assert bad["halt"] == 30
    alone = Counter(roll(rate, 6 * rate, chance, devices=2, hours=24) for _ in range(60))
    assert alone["halt"] <= 20, "what a fleet tells, one device does not"


@pytest.mark.parametrize(
    ("devices", "times", "share"), [(2, 10, (0.4, 0.7)), (10, 6, (0.95, 1)), (50, 3, (0.95, 1)), (50, 1, (0, 0.01))]
)
def test_how_small_a_growth_shows_within_a_day(devices: int, times: float, share: tuple[float, float]) -> None:
    """What docs/howto/roll-out.md says. The rate of before is known here: two a week."""
    chance = np.random.default_rng(7)
    rate = 2 / 168

    def halted() -> bool:
        alarms = 0
        for hour in range(1, 25):
            alarms += int(chance.poisson(times * rate * devices))
            bearable = rate * devices * hour
            evidence = alarms * math.log(PLAN.times) - (PLAN.times - 1) * bearable
            found = msgspec.structs.replace(QUIET, decided=9, alarms=alarms, bearable=bearable, evidence=evidence)
            if judge(PLAN, found)[0] == "halt":
                return True
        return False

    plays = 1000
    assert share[0] <= sum(halted() for _ in range(plays)) / plays <= share[1]


def test_slow_is_what_most_devices_are() -> None:
    def fleet(*after: float, before: float = 3.0) -> Gates:
        return gates(PLAN, 0, [member("kept", hours_after=1.0, ms_before=before, ms_after=ms) for ms in after])

    assert fleet(3.3, 3.0, 9.0).slower == pytest.approx(1.1)
    assert fleet(7.0, 3.0, 9.0).slower == pytest.approx(7 / 3)
    assert fleet(0.9, before=0.1).slower == pytest.approx(1.8), "under a millisecond nobody asks"
    assert gates(PLAN, 0, [member("kept", hours_after=1.0, ms_after=9.0)]).slower is None


def test_with_nothing_known_of_before_alarms_halt_nothing() -> None:
    found = gates(PLAN, 0, [member("probation", hours_after=1.0, alarms_after=1)])
    assert judge(PLAN, found) == ("stay", "")
