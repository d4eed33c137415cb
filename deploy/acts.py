"""What `amiss demo --chaos` has to show, act by act, and whether it did. Pure: the whole story in, five judgements out.

A story is what was done, when, and what came over MQTT, all on one monotonic clock. What it says nothing of has not happened.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from deploy.stage import NODE, STREAM
from edge.delivery import topics

BACK_S = 8.0
"""A sensor that is plugged in again: the longest pause before the agent looks for it, and opening it."""
FAULT_TOLD_S = 8.0
"""A sensor's fault: within 5 s, and a window."""
WELL_S = 70.0
"""Its end: what comes and goes within a minute is one fault."""
ARRIVES_S = 20.0
"""What waited, once there is a broker: the agent tries ever more seldom, and has tried for a while."""
AT_ONCE_S = 2.0
"""From a request to what it brings about."""
AGAIN_S = 15.0
"""An alert that is taken back in: the cool-down, and a few windows."""
FORGIVEN = 0.1
"""How much smaller the share of strange scores is while a fault is forgiven that is still there. It is not all of them: what
is forgiven is narrow, and a machine that carries another load is another sight."""
STOPS_S = 10.0


@dataclass(slots=True)
class Story:
    heard: list[tuple[float, str, bytes]] = field(default_factory=list)
    """When, topic, payload."""
    marks: dict[str, float] = field(default_factory=dict)
    """When what was done. Each act begins at its own title in `ACTS`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was seen without MQTT: names of ports, records on disk, an exit code."""

    def span(self, title: str) -> tuple[float, float]:
        """From when to when an act lasted."""
        titles = list(ACTS)
        following = [self.marks[later] for later in titles[titles.index(title) + 1 :] if later in self.marks]
        return self.marks.get(title, math.inf), min(following, default=math.inf)

    def on(self, topic: str, span: tuple[float, float] = (-math.inf, math.inf)) -> list[tuple[float, bytes]]:
        return [(at_s, payload) for at_s, heard, payload in self.heard if heard == topic and span[0] <= at_s < span[1]]

    def events(self, span: tuple[float, float] = (-math.inf, math.inf)) -> list[tuple[float, dict[str, Any]]]:
        """Each record once, when it came first."""
        found: dict[str, tuple[float, dict[str, Any]]] = {}
        for at_s, payload in self.on(topics.event(NODE, STREAM)):
            event = json.loads(payload)
            found.setdefault(event["record"], (at_s, event))
        return [(at_s, event) for at_s, event in found.values() if span[0] <= at_s < span[1]]

    def states(self, span: tuple[float, float] = (-math.inf, math.inf)) -> list[tuple[float, dict[str, Any]]]:
        return [(at_s, json.loads(payload)) for at_s, payload in self.on(topics.state(NODE, STREAM), span)]

    def healths(self, span: tuple[float, float]) -> list[dict[str, Any]]:
        """What the agent said of its delivery."""
        return [json.loads(payload)["mqtt"] for _, payload in self.on(topics.health(NODE), span)]

    def after(self, mark: str, moments: Iterable[float]) -> float | None:
        """Seconds from the mark to the first of these moments behind it."""
        begun_s = self.marks.get(mark, math.inf)
        return min((at_s - begun_s for at_s in moments if at_s >= begun_s), default=None)

    def lasted(self, begin: str, end: str) -> float:
        return self.marks.get(end, math.nan) - self.marks.get(begin, math.nan)


@dataclass(frozen=True, slots=True)
class Act:
    title: str
    expected: str
    happened: str
    figures: dict[str, float | int | str | None]
    """By name; seconds end in `_s`."""
    missed: tuple[str, ...]
    """What should have been and was not; nothing: it went as it should."""

    @property
    def passed(self) -> bool:
        return not self.missed


def judge(story: Story) -> list[Act]:
    return [look(story) for look in ACTS.values()]


def unplugged(story: Story) -> Act:
    title = "unplug the sensor"
    span = story.span(title)
    events = story.events(span)
    gaps = [event["duration_s"] for _, event in events if event["type"] == "gap"]
    away_s = story.lasted("unplugged", "plugged in")
    online = [at_s for at_s, payload in story.on(topics.stream_availability(NODE, STREAM), span) if payload == topics.ONLINE]
    back_s = story.after("plugged in", online)
    before, after = story.facts.get("port before"), story.facts.get("port after")
    alarms = _alarms(events)
    return Act(
        title,
        f"one gap and no anomaly; data again within {BACK_S:g} s, whatever the port is called now",
        f"away for {away_s:.1f} s as {before}, back as {after}; data again after {_s(back_s)}; told as a gap of "
        f"{', '.join(f'{gap:.1f} s' for gap in gaps) or '–'}",
        {"away_s": away_s, "data_again_s": back_s, "gaps": len(gaps), "gap_s": sum(gaps), "anomalies": len(alarms)},
        _missed(
            ("the port has another name", before != after),
            (f"data flows again within {BACK_S:g} s", _within(back_s, BACK_S)),
            ("one gap is told", len(gaps) == 1),
            ("it is as long as the sensor was away", bool(gaps) and away_s - 1 <= gaps[0] <= away_s + BACK_S + 1),
            ("no anomaly", not alarms),
        ),
    )


def stuck(story: Story) -> Act:
    title = "a channel sticks"
    span = story.span(title)
    faults = [(at_s, event) for at_s, event in story.events() if event["type"] == "sensor_fault"]
    begun = [(at_s, event) for at_s, event in faults if event.get("until") is None]
    over = [(at_s, event) for at_s, event in faults if event.get("until") is not None]
    told_s, over_s = (story.after(*asked) for asked in (("stuck", [at for at, _ in begun]), ("free", [at for at, _ in over])))
    channel = story.facts.get("stuck channel")
    told = {(event.get("reason"), *(share["channel"] for share in event.get("channels", ()))) for _, event in faults}
    alarms = _alarms(story.events(span))
    listened_s = min(story.marks.get("agent killed", math.inf), story.heard[-1][0] if story.heard else -math.inf)
    late = over_s is None and listened_s > story.marks.get("free", math.inf) + WELL_S
    return Act(
        title,
        f"a sensor fault that names it, within {FAULT_TOLD_S:g} s, and after a minute without one its end; no anomaly",
        f"{channel} repeats one value for {story.lasted('stuck', 'free'):.1f} s; told after {_s(told_s)}, and as over "
        f"{_s(over_s)} after it moved again",
        {"stuck_s": story.lasted("stuck", "free"), "told_s": told_s, "over_s": over_s, "anomalies": len(alarms)},
        _missed(
            (f"the fault is told within {FAULT_TOLD_S:g} s", _within(told_s, FAULT_TOLD_S)),
            (f"so is its end within {WELL_S:g} s", not late and (over_s is None or _within(over_s, WELL_S))),
            ("once each, under one id", len(begun) == 1 and [event["id"] for _, event in over] in ([], [begun[0][1]["id"]])),
            (f"it is {channel} that is stuck, and nothing else", told == {("stuck", channel)}),
            ("no anomaly", not alarms),
        ),
    )


def patience(story: Story) -> Act:
    title = "a person's word"
    span = story.span(title)
    events = story.events(span)
    started = [at_s for at_s, event in events if event["type"] == "anomaly_started"]
    ended = {event.get("reason", ""): at_s for at_s, event in events if event["type"] == "anomaly_ended"}
    alert_s = story.after("nuisance", started)
    ended_s = story.after("false alarm", [at_s for reason, at_s in ended.items() if reason == "false alarm"])
    again_s = story.after("undo", started)
    still_s = story.after("maintenance", [at_s for reason, at_s in ended.items() if reason == "maintenance"])
    forgiven = (story.marks.get("false alarm", math.inf), story.marks.get("undo", math.inf))
    maintained = (story.marks.get("maintenance", math.inf), span[1])
    disturbed = [at_s for at_s in started if any(begin <= at_s < end for begin, end in (forgiven, maintained))]
    undone = (forgiven[1], story.marks.get("mended", math.inf))
    strange = _strange([state for _, state in story.states(maintained) if state.get("maintenance", False)])
    before, after = (_share([state for _, state in story.states(part)]) for part in (forgiven, undone))
    refused = [answer["error"] for answer in story.facts.get("answers", []) if answer["status"] != "ok"]
    return Act(
        title,
        f'"false alarm" ends it within {AT_ONCE_S:g} s and keeps it quiet, "undo" brings it back, maintenance keeps still',
        f'alert after {_s(alert_s)}; ended {_s(ended_s)} after "false alarm", then quiet for {forgiven[1] - forgiven[0]:.1f} s '
        f'with {before:.0%} of the scores strange; {after:.0%} after "undo", and an alert {_s(again_s)} later; maintenance '
        f"ended it after {_s(still_s)}, and {strange} strange scores raised nothing",
        {
            "alert_s": alert_s,
            "ended_s": ended_s,
            "quiet_s": forgiven[1] - forgiven[0],
            "strange_while_forgiven": before,
            "strange_after_undo": after,
            "back_s": again_s,
            "maintenance_s": still_s,
            "strange_in_maintenance": strange,
            "alerts_out_of_place": len(disturbed),
        },
        _missed(
            ("every request is answered with ok" + "".join(f": {why}" for why in refused), not refused),
            ("the fault raises an alert", alert_s is not None),
            (f'"false alarm" ends it within {AT_ONCE_S:g} s', _within(ended_s, AT_ONCE_S)),
            ("what looks like it is forgiven, until it is taken back", before + FORGIVEN <= after),
            (f'"undo" brings it back within {AGAIN_S:g} s', _within(again_s, AGAIN_S)),
            (f"maintenance ends it within {AT_ONCE_S:g} s", _within(still_s, AT_ONCE_S)),
            ("there was something to keep still about", strange > 0),
            ("no alert after a false alarm, nor in maintenance", not disturbed),
        ),
    )


def outage(story: Story) -> Act:
    title = "no broker, no power"
    events = story.events(story.span(title))
    started = [(at_s, event) for at_s, event in events if event["type"] == "anomaly_started"]
    ended = [event for _, event in events if event["type"] == "anomaly_ended"]
    arrived_s = story.after("broker back", [at_s for at_s, _ in started])
    ids = {event["id"] for event in _alarms(events)}
    waited = story.facts.get("waiting while dead", 0)
    health = story.healths(story.span(title))
    return Act(
        title,
        f"the alert waits on the disk and arrives within {ARRIVES_S:g} s of the broker's return; exactly one episode",
        f"broker away for {story.lasted('broker killed', 'broker back'):.1f} s, agent dead for "
        f"{story.lasted('agent killed', 'agent started'):.1f} s of them; {waited} record(s) on the disk meanwhile; the alert "
        f"came {_s(arrived_s)} after the broker, as {len(ids)} episode(s)",
        {
            "broker_away_s": story.lasted("broker killed", "broker back"),
            "agent_dead_s": story.lasted("agent killed", "agent started"),
            "waiting_on_disk": waited,
            "arrived_s": arrived_s,
            "episodes": len(ids),
            "queued_after": health[-1]["queued"] if health else None,
            "dropped": health[-1]["dropped"] if health else None,
        },
        _missed(
            ("the alert was on the disk when the agent was killed", waited > 0),
            (f"it arrives within {ARRIVES_S:g} s of the broker's return", _within(arrived_s, ARRIVES_S)),
            ("exactly one episode", len(ids) == 1 and len(started) == 1),
            ("it is ended, and the restart is named", [event.get("reason") for event in ended] == ["restart"]),
            ("health says that nothing waits and nothing was dropped", bool(health) and settled(health[-1])),
        ),
    )


def goodbye(story: Story) -> Act:
    title = "a clean end"
    offline = [at_s for at_s, payload in story.on(topics.availability(NODE)) if payload == topics.OFFLINE]
    stopped_s = story.lasted("stop", "stopped")
    counts = story.facts.get("counts", {})
    accepted, delivered = counts.get("accepted"), counts.get("delivered")
    heard = len(story.events())
    code = story.facts.get("exit code")
    waiting = sum(counts.get(key, 0) for key in ("waiting", "parked", "dropped"))
    return Act(
        title,
        f"exit code 0 within {STOPS_S:g} s; nothing waits; accepted = delivered = heard, to the record",
        f"exit code {code} after {stopped_s:.1f} s; of {accepted} records {delivered} delivered, {heard} heard, {waiting} left",
        {
            "stopped_s": stopped_s,
            "exit_code": code,
            "accepted": accepted,
            "delivered": delivered,
            "heard": heard,
            "left_over": waiting,
        },
        _missed(
            (f"it ends within {STOPS_S:g} s, with exit code 0", code == 0 and _within(stopped_s, STOPS_S)),
            ("it says goodbye", story.after("stop", offline) is not None),
            ("nothing waits, is parked or was dropped", bool(counts) and not waiting),
            ("accepted = delivered = heard", accepted is not None and accepted == delivered == heard),
        ),
    )


ACTS: dict[str, Callable[[Story], Act]] = {
    "unplug the sensor": unplugged,
    "a channel sticks": stuck,
    "a person's word": patience,
    "no broker, no power": outage,
    "a clean end": goodbye,
}


def _alarms(events: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [event for _, event in events if event["type"].startswith("anomaly")]


def _strange(states: list[dict[str, Any]]) -> int:
    return sum(state["p_value"] <= state["threshold"] for state in states)


def _share(states: list[dict[str, Any]]) -> float:
    return _strange(states) / len(states) if states else math.nan


def settled(mqtt: dict[str, Any]) -> bool:
    """Nothing waits, and nothing was lost."""
    return not (mqtt["queued"] or mqtt["dropped"] or mqtt["parked"])


def _within(seconds: float | None, most_s: float) -> bool:
    return seconds is not None and 0 <= seconds <= most_s


def _missed(*checks: tuple[str, bool]) -> tuple[str, ...]:
    return tuple(what for what, held in checks if not held)


def _s(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
