"""An agent whose sensor and clocks are made up, so that a month passes in minutes: `python month.py device.toml HOUR [LEAK]`.

Everything but sensor and clocks is what `amiss run` runs. At the end of each hour it writes one line of JSON and waits for one,
while time stands still but for its loop: whoever has started it looks at it, asks it something or stops its broker, and has it
go on. `PLAN` says what happens to the sensor and the machine in which hour of every day, `shift` what happens over days.
"""

import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge import config as configs
from edge.agent import Agent
from edge.errors import SourceLostError
from edge.operating.clock import HostClock
from edge.signal import Float32, Samples

RATE_HZ = 20
"""At which single spikes are judged, too."""
HOUR_S = 3600
EPOCH_NS = 1_772_323_200_000_000_000
"""2026-03-01, when it begins."""
UNSYNCED_S, WRONG_S = 600, 200 * 24 * HOUR_S
"""So long after each start nobody has set the clock, and so much it is behind."""
PLAN = {
    1: "unplugged",
    3: "silent",
    5: "stuck",
    7: "spikes",
    9: "machine",
    11: "absent",
    13: "loose",
    15: "range",
    17: "machine",
}
"""What happens at twenty past, by hour of the day. Every other hour is calm."""
JUMPS_H = {4: 3, 8: -2, 12: -9, 20: 5}
"""By so much the wall clock is off for half of a calm hour."""
CALM_DAYS = (5, 6, 7, 8, 16, 17, 18, 19)
"""On which the plan is not followed: what comes to stay, or slowly, is to be seen alone."""
STORM_DAY = 11
"""On which a loose contact tells more than the disk has a budget for."""
SHIFTS = ((5, 8), (16, 99))
"""From the noon of one day to that of another the level of a channel is another one."""
DRIFT = (18.0, 19.5)
"""In between that level creeps by `CREPT`, and is back at once."""
MOVED, CREPT = 6.0, 0.8


def what(hour: int) -> str:
    day, at = divmod(hour, 24)
    if day == STORM_DAY and 2 <= at < 8:
        return "storm"
    return "calm" if day in CALM_DAYS else PLAN.get(at, "calm")


class World:
    def __init__(self, hour: int) -> None:
        self.began_ns = self.now_ns = hour * HOUR_S * 1_000_000_000
        self.away = False
        """Nothing comes from the sensor, and time passes by being asked for."""

    def monotonic_ns(self) -> int:
        if self.away:
            self.now_ns += 1_000_000_000
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.monotonic_ns() / 1e9

    def synced(self) -> bool:
        return self.now_ns - self.began_ns > UNSYNCED_S * 1e9

    def wall_ns(self) -> int:
        at_s = self.now_ns // 1_000_000_000
        hour, into_s = divmod(at_s, HOUR_S)
        wrong_s = 0 if self.synced() else -WRONG_S
        if what(hour) == "calm" and 1200 <= into_s < 3000:
            wrong_s += JUMPS_H.get(hour % 24, 0) * HOUR_S
        return EPOCH_NS + self.now_ns + wrong_s * 1_000_000_000


def level(seconds: Float32) -> Float32:
    """Of the second channel, over days."""
    day = seconds / (24 * HOUR_S)
    found = np.zeros_like(seconds)
    for begin, end in SHIFTS:
        found += np.where((day >= begin + 0.5) & (day < end + 0.5), MOVED, 0)
    begin, end = DRIFT
    return found + np.interp(day, [begin, end, end + 0.001], [0, CREPT, 0])


def signal_of(hour: int) -> tuple[Any, Float32]:
    """Times in ns and values of one hour, as they would leave a sensor that is well."""
    n = HOUR_S * RATE_HZ
    index = hour * n + np.arange(n)
    x = np.random.default_rng((7, hour)).normal(size=(2, n)).astype(np.float32)
    x[1] += level(index / RATE_HZ).astype(np.float32)
    return index * (1_000_000_000 // RATE_HZ), x


class Sensor:
    def __init__(self, world: World, stream: Any, hour: int, report: Any) -> None:
        self._world, self._stream, self._hour, self._report = world, stream, hour, report
        self._begin_s = 0.0  # of the hour, from which on it goes on
        self._attempts = 0

    def epoch_offset_ns(self) -> int:
        return self._world.wall_ns() - self._world.now_ns

    def close(self) -> None:
        pass

    def samples(self) -> Iterator[Samples]:
        if self._attempts:
            self._attempts -= 1
            raise SourceLostError("/dev/ttyUSB0: no such port")
        self._world.away = False
        while True:
            yield from self._an_hour()
            self._hour, self._begin_s = self._hour + 1, 0.0
            self._report(self._hour)
            while not select.select([sys.stdin], [], [], 0.002)[0]:
                yield Samples.empty(2)
            if not sys.stdin.readline():
                os._exit(1)  # whoever started it is gone

    def _an_hour(self) -> Iterator[Samples]:
        time_ns, x = signal_of(self._hour)
        kept = np.ones(x.shape[1], bool)
        kept[: int(self._begin_s * RATE_HZ)] = False
        rate, at = RATE_HZ, 1200 * RATE_HZ
        kind, lost_at = what(self._hour), None
        match kind:
            case "unplugged":
                lost_at = at
            case "silent":
                kept[at : at + 300 * rate] = False
            case "stuck":
                x[0, at : at + 600 * rate] = x[0, at]
            case "spikes":
                x[0, at : at + 360 * rate : 15 * rate] += 60
            case "machine":
                x[1, at : at + 180 * rate] += MOVED
            case "absent":
                x[0, at : at + 180 * rate] = np.nan
            case "loose":
                for hole in range(at, at + 600 * rate, 20 * rate):
                    kept[hole : hole + 2 * rate] = False
            case "range":
                x[0, at : at + 120 * rate : 5 * rate] = 1e6
            case "storm":
                for hole in range(0, len(kept), 10 * rate):
                    kept[hole : hole + rate] = False
        chance, begin = random.Random(self._hour), 0
        while begin < len(kept):
            end = min(len(kept), begin + chance.randint(1, 60 * rate))
            if lost_at is not None and self._begin_s == 0 and begin <= lost_at < end:
                end = lost_at
            if end > begin:
                self._world.now_ns = max(self._world.now_ns, int(time_ns[end - 1]))
                some = kept[begin:end]
                yield Samples(time_ns[begin:end][some], np.ascontiguousarray(x[:, begin:end][:, some]))
                self._stream.flushed()
            if end == lost_at and self._begin_s == 0:
                self._begin_s, self._attempts, self._world.away = 1800.0, 2, True
                raise SourceLostError("/dev/ttyUSB0: lost while reading")
            begin = end


def leaking(kind: str) -> Any:
    """Called once a simulated hour."""
    kept: list[Any] = []

    def leak(state: Path, hour: int) -> None:
        match kind:
            case "memory":
                kept.append(os.urandom(200_000))
            case "open files":
                kept.append(open(os.devnull, "rb"))  # noqa: SIM115
            case "threads":
                threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
            case "files":
                (state / f"left-{hour}").write_bytes(b"x")

    return leak


class Flushing:
    """A chunk takes longer than a group of records waits for its commit; here it takes no time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def flushed(self) -> None:
        outbox = self._agent.outbox
        if outbox.written_bytes_today < (outbox.bytes_per_day or 0):  # beyond it losses wait for a quarter of an hour
            outbox.flush()


def main(path: Path, hour: int, leak: str = "") -> None:
    world, leaks = World(hour), leaking(leak)
    clock = HostClock(world.monotonic_ns, world.wall_ns, world.synced, f"start{hour}")
    agent = Agent(configs.load(path), monotonic=world.monotonic_s, clock=clock)

    def report(now: int) -> None:
        leaks(agent.config.state_path(), now)
        counts = agent.outbox.counts
        found = {
            "hour": now,
            "accepted": counts.accepted,
            "delivered": counts.delivered,
            "waiting": counts.waiting,
            "parked": counts.parked,
            "dropped": counts.dropped,
            "written": agent.outbox.written_bytes_today,
            "at_most": agent.streams["pump"].pipeline.policy.alerts_at_most(24 * HOUR_S * 1_000_000_000),
            "connected": agent.delivery.connected,
            "active": agent.streams["pump"].pipeline.alarm.active,
        }
        print(json.dumps(found), flush=True)

    agent.streams["pump"].source = Sensor(world, Flushing(agent), hour, report)
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    agent.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
