"""A month with faults on every hand, in minutes: the real agent and a real broker, with a sensor and clocks that are made up.

What happens to sensor, machine and clock is in `month.py`. Here is what people and brokers do meanwhile, and what must hold
afterwards. It is seen from outside, by /proc and by a subscriber: what can be counted is not taken from the agent's own books.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import month
import numpy as np
import pytest
from delivering import NODE, send, somebody
from month import DRIFT, HOUR_S, JUMPS_H, PLAN, SHIFTS, what
from mosquitto import Listener, Mosquitto, until
from small_bundle import members

from edge.bundle import write_bundle
from edge.delivery.outbox import Counts, Outbox
from edge.operating import episodes

EVENT, BUDGET = f"amiss/{NODE}/pump/event", 4 * 1024 * 1024
REPOSITORY = Path(__file__).parents[2]
OUTAGES = {day * 24 + hour: length for day, hour, length in ((1, 2, 3), (6, 2, 1), (12, 0, 72), (22, 10, 6))}
"""At the end of which hour the broker goes, and for how many hours."""
BLINKS = (4 * 24 + 9, 9 * 24 + 13, 17 * 24 + 9)
"""Hours within which it is away for a moment."""
KILLED = (10 * 24, 25 * 24 + 10, 25 * 24 + 11, 25 * 24 + 12, 25 * 24 + 14)
LIVES = dict.fromkeys(KILLED, signal.SIGKILL) | {20 * 24: signal.SIGTERM}
"""How the agent ends in which hour; killed it is in the middle of it, and that hour is lived anew."""
MAINTAINED = (2 * 24 + 9, 10 * 24 + 9, 23 * 24 + 9)
FORGIVEN, UNDONE = 3 * 24 + 18, 5 * 24 + 2
COMMISSIONED = 17 * 24 + 2
MOST_A_DAY = {"memory": 400_000.0, "open files": 0.0, "threads": 0.0, "files": 0.5}
"""Growth that is none."""
NONSENSE: tuple[tuple[str, bytes], ...] = (
    ("ping", b"{"),
    ("ping", b"\xff\xfe"),
    ("ping", b"[" * 5000),
    ("ping", b'"' + b"x" * 40_000 + b'"'),
    ("maintenance", b'{"minutes": -1}'),
    ("maintenance", b'{"minutes": 1e99}'),
    ("feedback", b'{"id": "nobody", "verdict": "false_alarm"}'),
    ("feedback", b'{"stream": "pump", "verdict": "perhaps"}'),
    ("commission", b'{"stream": "cellar", "minutes": 5}'),
    ("config", b'{"set": {"alarm.p_value": 1e-300}}'),
    ("config", b'{"set": {"mqtt.host": "elsewhere"}}'),
    ("snapshot", b'{"stream": "pump", "seconds": 3600}'),
    ("format", b'{"disk": "all"}'),
)


class Month:
    """An agent's life, hour by hour, and who is around it."""

    def __init__(self, folder: Path, leak: str = "") -> None:
        self._folder, self._leak = folder, leak
        self.rows: list[dict[str, Any]] = []
        """What the agent says, and what the system says of it, at the end of each hour."""
        self.life = 0
        self.heard: dict[str, dict[str, Any]] = {}
        """Events by record."""
        self._read = 0
        self.broker = Mosquitto(folder / "broker")

    def __enter__(self) -> Self:
        self.broker.start()
        self._events = Listener(self.broker.port, EVENT, name="application")
        self._answers = Listener(self.broker.port, f"amiss/{NODE}/response/+")
        write_bundle(self._folder / "small.amiss", *members(16, rate_hz=month.RATE_HZ, hop=8))
        (self._folder / "device.toml").write_text(
            f"""\
node = "{NODE}"
bundle = "{self._folder}/small.amiss"
state_dir = "{self._folder}/state"
outbox_max_bytes = 65536
disk_budget_bytes_per_day = {BUDGET}
[mqtt]
host = "127.0.0.1"
port = {self.broker.port}
[streams.pump]
port = "/dev/null"
""",
            "utf-8",
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._end(signal.SIGKILL)
        self._answers.close()
        self._events.close()
        self.broker.kill()

    def live(self, hours: int, lives: Mapping[int, int] = LIVES) -> None:
        chance, back = random.Random(3), -1
        self._start(0)
        for hour in range(1, hours + 1):
            row = self._hour()
            assert row["hour"] == hour
            assert row["accepted"] == row["delivered"] + row["waiting"] + row["parked"] + row["dropped"]
            if hour == back:
                self._back()
            if row["connected"]:
                self._people(hour, chance)
            if hour in OUTAGES or hour in BLINKS:
                self.told()
                self.broker.stop()
                back = hour + OUTAGES.get(hour, 0)
            if hour in lives and lives[hour] == signal.SIGTERM:
                self._end(signal.SIGTERM)
                self._start(hour)
            elif hour in lives:
                self._go_on()
                time.sleep(chance.uniform(0.02, 0.2))
                self._end(signal.SIGKILL)
                self._start(hour)
            elif hour < hours:
                self._go_on()
            if hour in BLINKS:
                time.sleep(0.05)
                self._back()

    def _back(self) -> None:
        sessions = self._events.sessions, self._answers.sessions
        self.broker.start()
        until(lambda: self._events.sessions > sessions[0] and self._answers.sessions > sessions[1])

    def _people(self, hour: int, chance: random.Random) -> None:
        self.ask(*chance.choice(NONSENSE), "error")
        if hour in MAINTAINED:
            self.ask("maintenance", b'{"minutes": 50}', "ok")
        if hour == FORGIVEN:
            self._forgiven = self.ask("feedback", b'{"stream": "pump", "verdict": "false_alarm"}', "ok")["data"]["id"]
        if hour == UNDONE:
            self.ask("feedback", json.dumps({"id": self._forgiven, "verdict": "undo"}).encode(), "ok")
        if hour == COMMISSIONED:
            self.ask("commission", b'{"stream": "pump", "minutes": 120}', "ok")

    def ask(self, verb: str, body: bytes, wanted: str) -> dict[str, Any]:
        topic = f"amiss/{NODE}/response/{'error' if verb == 'format' else verb}"
        before = len(self._answers.payloads(topic))
        with somebody(self.broker) as person:
            send(person, f"amiss/{NODE}/request/{verb}", body)
            until(lambda: len(self._answers.payloads(topic)) > before)
        answer: dict[str, Any] = json.loads(self._answers.payloads(topic)[before])
        assert answer["status"] == wanted, answer
        return answer

    # The process.

    def _start(self, hour: int) -> None:
        self.life += 1
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        with (self._folder / "log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, month.__file__, str(self._folder / "device.toml"), str(hour), self._leak],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )

    def _hour(self) -> dict[str, Any]:
        assert self._agent.stdout is not None
        line = self._agent.stdout.readline()
        assert line, (self._folder / "log").read_text()[-3000:]
        process = Path(f"/proc/{self._agent.pid}")
        state = [file for file in (self._folder / "state").rglob("*") if file.is_file()]
        seen = {
            "life": self.life,
            "memory": int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "open files": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
            "files": len([file for file in state if file.parent.name != "episodes"]),
            "episodes": len([file for file in state if file.parent.name == "episodes"]),
            "bytes": sum(file.stat().st_size for file in state),
        }
        self.rows.append(json.loads(line) | seen)
        return self.rows[-1]

    def _go_on(self) -> None:
        assert self._agent.stdin is not None
        self._agent.stdin.write("\n")
        self._agent.stdin.flush()

    def _end(self, how: int) -> None:
        self._agent.send_signal(how)
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        try:
            self._agent.wait(40)
        finally:
            self._agent.stdin.close()
            self._agent.stdout.close()

    def close(self) -> Counts:
        """What the outbox says when all is over."""
        self._end(signal.SIGTERM)
        with closing(Outbox(self._folder / "state/outbox.db", device=NODE, boot="end")) as outbox:
            return outbox.counts

    # What was heard.

    def listen(self) -> dict[str, dict[str, Any]]:
        payloads = self._events.payloads(EVENT)
        for event in map(json.loads, payloads[self._read :]):
            self.heard[event["record"]] = event
        self._read = len(payloads)
        return self.heard

    def told(self) -> None:
        """Time stands still until everything has arrived."""
        row = self.rows[-1]
        until(lambda: len(self.listen()) >= row["accepted"] - row["dropped"] - row["parked"], 60)

    def dropped(self) -> int:
        """As they were told."""
        return sum(event.get("count", 0) for event in self.listen().values() if event["type"] == "gap")

    def events(self, kind: str, begin_h: float = 0, end_h: float = 1e9) -> list[dict[str, Any]]:
        """In the order of the stream's time, which is hours since the month began."""
        found = [
            event | {"hour": event["stream_ns"] / 1e9 / HOUR_S}
            for event in self.listen().values()
            if event["type"] == kind and "stream_ns" in event
        ]
        return sorted((one for one in found if begin_h <= one["hour"] < end_h), key=lambda event: event["hour"])

    def row(self, hour: int) -> dict[str, Any]:
        return self.rows[hour - 1] if hour else {"dropped": 0}

    def spared(self, hour: int) -> bool:
        """The agent was killed in it, or the broker was away so long that of what was told in it much was dropped."""
        return hour in KILLED or any(begin <= hour < begin + length for begin, length in OUTAGES.items() if length > 24)

    kept_still = frozenset(MAINTAINED) | frozenset(range(FORGIVEN, UNDONE))
    """Hours of which a person has said that nothing is to be raised in them."""

    def unquiet(self, hour: int) -> bool:
        """Something else than the clock is on: a level that begins or ends to be another one, or creeps."""
        day = hour / 24
        edges = [edge + 0.5 for shift in SHIFTS for edge in shift]
        commissioned = COMMISSIONED <= hour <= COMMISSIONED + 3  # the episode that lasts ends with it
        return (
            hour in KILLED or commissioned or any(abs(day - edge) < 0.1 for edge in edges) or DRIFT[0] <= day < DRIFT[1] + 0.1
        )


def slope(rows: list[dict[str, Any]], name: str, settled_h: int) -> float:
    """Growth a day within the longest life, once it has settled: Theil and Sen's, which single hours do not move."""
    longest = Counter(row["life"] for row in rows).most_common(1)[0][0]
    kept = [row for row in rows if row["life"] == longest][settled_h:]
    t, y = (np.array([row[key] for row in kept], float) for key in ("hour", name))
    i, j = np.triu_indices(len(t), 1)
    return float(np.median((y[j] - y[i]) / (t[j] - t[i]))) * 24


def growth(found: Month, settled_h: int) -> dict[str, float]:
    return {name: slope(found.rows, name, settled_h) for name in MOST_A_DAY}


def account(found: Month) -> str:
    """Every record has arrived, or was told as dropped; what its end has left it in is said."""
    found.told()
    until(lambda: found.listen() and found.dropped() == found.rows[-1]["dropped"])
    counts = found.close()
    assert counts.accepted == counts.delivered + counts.waiting + counts.parked + counts.dropped
    assert (counts.waiting, counts.parked) == (0, 0)
    assert found.dropped() == counts.dropped
    lost = counts.accepted - len(found.listen())
    # What is under way when the outbox overflows, or the broker goes, may arrive and be told as dropped; never the other way.
    assert 0.8 * counts.dropped <= lost <= counts.dropped
    return f"{counts.accepted} accepted, {len(found.heard)} arrived, {counts.dropped} told as dropped"


def blamed_on_the_sensor(found: Month, hours: int) -> Counter[str]:
    """No fault of a sensor is an anomaly of the machine, and each that can be told is; the machine's own are told. How many
    hours of which kind could be judged: not those of which something was dropped."""
    judged: Counter[str] = Counter()
    faults = {"stuck": "stuck", "spikes": "spikes", "absent": "dropout", "range": "range"}
    for hour in range(hours):
        kind, span = what(hour), (hour, hour + 1)
        starts = len(found.events("anomaly_started", *span))
        if found.spared(hour) or found.row(hour)["dropped"] != found.row(hour + 1)["dropped"]:
            continue
        judged[kind] += 1
        if kind in faults:
            assert faults[kind] in {event["reason"] for event in found.events("sensor_fault", *span)}, (hour, kind)
        if kind in ("unplugged", "silent", "loose"):
            assert found.events("gap", *span), (hour, kind)
        assert starts == (kind == "machine" and hour not in found.kept_still) or kind == "calm", (hour, kind, starts)
    return judged


def jumps_change_nothing(found: Month, hours: int) -> int:
    """In calm hours in which only the wall clock jumps nothing begins and nothing ends."""
    calm = [hour for hour in range(hours) if hour % 24 in JUMPS_H and what(hour) == "calm" and not found.unquiet(hour)]
    for hour in calm:
        for kind in ("anomaly_started", "anomaly_ended", "gap", "sensor_fault"):
            assert not found.events(kind, hour, hour + 1), (hour, kind)
    return len(calm)


@pytest.mark.slow
def test_a_day_with_faults_on_every_hand(tmp_path: Path) -> None:
    with Month(tmp_path) as found:
        found.live(18, {12: signal.SIGKILL})
        print(account(found))
        judged = blamed_on_the_sensor(found, 18)
        print(f"hours judged: {dict(judged)}")
        assert judged.keys() == {*PLAN.values(), "calm"}
        assert judged.total() >= 15
        assert jumps_change_nothing(found, 18) == 3
        assert found.rows[-1]["open files"] <= 10
        assert found.rows[-1]["threads"] <= 6


@pytest.mark.soak
def test_a_month_with_faults_on_every_hand(tmp_path: Path) -> None:
    """Thirty days; the longest life is ten of them. 7 minutes beside another load."""
    hours = 30 * 24
    with Month(tmp_path) as found:
        found.live(hours)
        print(account(found))
        grown = growth(found, 48)
        print("growth a day:", {name: round(value, 2) for name, value in grown.items()})
        assert all(grown[name] <= most for name, most in MOST_A_DAY.items()), grown
        # Two files for each; they grow with what happens, until the oldest go.
        assert max(row["episodes"] for row in found.rows) <= 2 * episodes.MOST

        starts = [event["hour"] for event in found.events("anomaly_started")]
        most = max(sum(begin <= hour < begin + 24 for hour in starts) for begin in starts)
        print(f"{len(starts)} alerts, at most {most} within a day of {found.rows[-1]['at_most']}")
        assert most <= found.rows[-1]["at_most"]

        written = max(row["written"] for row in found.rows)
        usual = float(np.median(list({row["hour"] // 24: row["written"] for row in found.rows}.values())))
        print(f"at most {written / 1e6:.2f} MB written on a day, of {BUDGET / 1e6:.2f} MB; {usual / 1e6:.2f} MB usually")
        assert written <= 1.25 * BUDGET  # beyond it alerts are still written, and what is delivered is deleted

        judged, jumps = blamed_on_the_sensor(found, hours), jumps_change_nothing(found, hours)
        print(f"hours judged: {dict(judged)}; {jumps} jumps of the clock in calm hours")
        assert judged.total() >= 500
        assert min(judged[kind] for kind in PLAN.values()) >= 12
        assert jumps > 50
        for begin, end in SHIFTS:
            span = 24 * begin + 11, 24 * min(end, begin + 1) + 11
            assert [len(found.events(kind, *span)) for kind in ("anomaly_started", "new_normal")] == [1, 1], span
        creeping = found.events("drift", 24 * DRIFT[0], 24 * DRIFT[1])
        alerts = found.events("anomaly_started", 24 * DRIFT[0], 24 * DRIFT[1])
        assert creeping
        assert not alerts or creeping[0]["hour"] < alerts[0]["hour"]
        assert not [event for event in found.events("drift") if what(int(event["hour"])) != "calm"], "faults are no drift"


@pytest.mark.soak
@pytest.mark.parametrize("leak", list(MOST_A_DAY))
def test_a_leak_is_seen(leak: str, tmp_path: Path) -> None:
    """The control: a day of an agent that leaks a little every hour. 15 s each beside another load."""
    with Month(tmp_path, leak) as found:
        found.live(24, {})
        grown = growth(found, 4)
        print(grown)
        assert grown[leak] > MOST_A_DAY[leak]
