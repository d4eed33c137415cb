"""A story as it should be passes; whatever goes wrong in it is missed, and in the act that it belongs to."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from deploy.acts import ACTS, Story, judge
from deploy.stage import NODE, STREAM
from edge.delivery import topics

EVENT, STATE = topics.event(NODE, STREAM), topics.state(NODE, STREAM)
UNPLUG, STUCK, PERSON, OUTAGE, END = ACTS


def event(kind: str, number: int, *, of: str = "", **more: Any) -> dict[str, Any]:
    return {"record": f"r{number}", "id": of or f"e{number}", "type": kind, "duration_s": 1.0, **more}


def good() -> Story:
    """One second is as good as another, so acts begin at 100, 200, …"""
    marks = {UNPLUG: 100, "unplugged": 101, "plugged in": 106}
    marks |= {STUCK: 200, "stuck": 201, "free": 210}
    marks |= {
        PERSON: 300,
        "nuisance": 301,
        "false alarm": 315,
        "undo": 322,
        "maintenance": 330,
        "mended": 338,
        "maintenance over": 345,
    }
    marks |= {OUTAGE: 400, "broker killed": 401, "fault": 401, "agent killed": 410, "agent started": 415, "broker back": 418}
    marks |= {END: 500, "stop": 501, "stopped": 502}
    said: list[tuple[float, str, Any]] = [
        (108, EVENT, event("gap", 1, duration_s=7.0, reason="silence")),
        (203, EVENT, event("sensor_fault", 2, of="f", reason="stuck", channels=[{"channel": "vibration", "share": 1.0}])),
        (
            271,
            EVENT,
            event("sensor_fault", 3, of="f", reason="stuck", channels=[{"channel": "vibration", "share": 1.0}], until="t"),
        ),
        (305, EVENT, event("anomaly_started", 4, of="a")),
        (316, EVENT, event("anomaly_ended", 5, of="a", reason="false alarm")),
        (318, STATE, {"p_value": 0.5, "threshold": 0.01}),
        (323, STATE, {"p_value": 0.001, "threshold": 0.01}),
        (325, EVENT, event("anomaly_started", 6, of="b")),
        (331, EVENT, event("anomaly_ended", 7, of="b", reason="maintenance")),
        (333, STATE, {"p_value": 0.001, "threshold": 0.01, "maintenance": True}),
        (420, EVENT, event("anomaly_started", 8, of="c")),
        (420, EVENT, event("anomaly_started", 8, of="c")),  # a record that comes twice is one
        (421, EVENT, event("anomaly_ended", 9, of="c", reason="restart")),
        (425, topics.health(NODE), {"mqtt": {"queued": 0, "dropped": 0, "parked": 0}}),
    ]
    heard: list[tuple[float, str, bytes]] = [(at, topic, json.dumps(body).encode()) for at, topic, body in said]
    heard += [(107, topics.stream_availability(NODE, STREAM), b"online"), (501.5, topics.availability(NODE), b"offline")]
    facts: dict[str, Any] = {"port before": "/dev/pts/1", "port after": "/dev/pts/2", "stuck channel": "vibration"}
    facts |= {"waiting while dead": 1, "answers": [{"status": "ok"}], "exit code": 0}
    facts["counts"] = {"accepted": 9, "delivered": 9, "waiting": 0, "parked": 0, "dropped": 0}
    return Story(sorted(heard), {name: float(at) for name, at in marks.items()}, facts)


def also(story: Story, at_s: float, told: dict[str, Any]) -> None:
    story.heard.append((at_s, EVENT, json.dumps(told).encode()))
    story.facts["counts"]["accepted"] += 1
    story.facts["counts"]["delivered"] += 1


def without(story: Story, at_s: float, topic: str = EVENT) -> None:
    before = {record["record"] for _, record in story.events()}
    story.heard = [one for one in story.heard if (one[0], one[1]) != (at_s, topic)]
    gone = len(before) - len(story.events())
    story.facts["counts"]["accepted"] -= gone
    story.facts["counts"]["delivered"] -= gone


def as_strange(story: Story, at_s: float) -> None:
    without(story, at_s, STATE)
    story.heard.append((at_s, STATE, b'{"p_value": 0.001, "threshold": 0.01}'))


def test_a_story_as_it_should_be() -> None:
    assert {act.title: act.missed for act in judge(good())} == dict.fromkeys(ACTS, ())


Spoil = Callable[[Story], object]


@pytest.mark.parametrize(
    ("title", "spoil"),
    [
        pytest.param(UNPLUG, lambda s: also(s, 107, event("anomaly_started", 90)), id="an anomaly while unplugged"),
        pytest.param(UNPLUG, lambda s: without(s, 108), id="no gap"),
        pytest.param(UNPLUG, lambda s: also(s, 109, event("gap", 90, duration_s=7.0)), id="two gaps"),
        pytest.param(UNPLUG, lambda s: s.marks.update({"plugged in": 107.5}), id="data before the plug"),
        pytest.param(UNPLUG, lambda s: s.facts.update({"port after": "/dev/pts/1"}), id="the same port"),
        pytest.param(UNPLUG, lambda s: s.marks.update(unplugged=70.0), id="a gap much too short"),
        pytest.param(STUCK, lambda s: also(s, 205, event("anomaly_started", 90)), id="an anomaly while stuck"),
        pytest.param(STUCK, lambda s: without(s, 203), id="no fault"),
        pytest.param(STUCK, lambda s: without(s, 271), id="a fault without an end"),
        pytest.param(STUCK, lambda s: s.facts.update({"stuck channel": "current"}), id="another channel"),
        pytest.param(STUCK, lambda s: s.marks.update(stuck=180.0), id="told late"),
        pytest.param(PERSON, lambda s: without(s, 316), id="the episode goes on"),
        pytest.param(PERSON, lambda s: also(s, 319, event("anomaly_started", 90)), id="an alert after false alarm"),
        pytest.param(PERSON, lambda s: without(s, 325), id="undo brings nothing back"),
        pytest.param(PERSON, lambda s: (without(s, 323, STATE), without(s, 333, STATE)), id="nothing strange after undo"),
        pytest.param(PERSON, lambda s: as_strange(s, 318), id="as strange as before"),
        pytest.param(PERSON, lambda s: also(s, 340, event("anomaly_started", 90)), id="an alert in maintenance"),
        pytest.param(PERSON, lambda s: without(s, 333, STATE), id="nothing to keep still about"),
        pytest.param(PERSON, lambda s: s.facts.update(answers=[{"status": "error", "error": "no"}]), id="refused"),
        pytest.param(OUTAGE, lambda s: without(s, 420), id="the alert is lost"),
        pytest.param(OUTAGE, lambda s: also(s, 422, event("anomaly_started", 90)), id="two episodes"),
        pytest.param(OUTAGE, lambda s: s.facts.update({"waiting while dead": 0}), id="nothing on the disk"),
        pytest.param(OUTAGE, lambda s: s.marks.update({"broker back": 390.0}), id="it arrives late"),
        pytest.param(OUTAGE, lambda s: without(s, 425, topics.health(NODE)), id="no health"),
        pytest.param(END, lambda s: s.facts.update({"exit code": 1}), id="a bad end"),
        pytest.param(END, lambda s: s.facts.pop("exit code"), id="no end"),
        pytest.param(END, lambda s: s.facts["counts"].update(waiting=1), id="something waits"),
        pytest.param(END, lambda s: s.facts["counts"].update(accepted=10), id="a record lost on the way"),
        pytest.param(END, lambda s: s.facts["counts"].update(accepted=10, delivered=10), id="delivered and not heard"),
        pytest.param(END, lambda s: without(s, 501.5, topics.availability(NODE)), id="no goodbye"),
    ],
)
def test_what_goes_wrong_is_missed_in_its_act(title: str, spoil: Spoil) -> None:
    story = good()
    spoil(story)
    assert [act.title for act in judge(story) if not act.passed] == [title]


def test_a_story_that_never_happened_fails_everywhere() -> None:
    assert not any(act.passed for act in judge(Story()))


def test_the_end_of_a_sensor_s_fault_is_not_missed_by_who_leaves_before() -> None:
    story = good()
    without(story, 271)
    story.marks["agent killed"] = 260.0
    assert {act.title: act.passed for act in judge(story)}[STUCK]
