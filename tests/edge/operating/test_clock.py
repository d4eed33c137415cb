"""People are told when something happened, also on a board that did not know what day it was."""

from edge.delivery import topics
from edge.delivery.topics import EventPayload
from edge.operating.clock import HostClock

YEAR_NS = 365 * 86400 * 10**9


class Host:
    """A computer that starts in the past and learns the time later."""

    def __init__(self) -> None:
        self.monotonic_ns, self.behind_ns, self.known = 10**9, 20 * YEAR_NS, False

    def clock(self, boot: str = "b") -> HostClock:
        return HostClock(lambda: self.monotonic_ns, self.wall, lambda: self.known, boot)

    def wall(self) -> int:
        return 56 * YEAR_NS + self.monotonic_ns - (0 if self.known else self.behind_ns)


def event(clock: HostClock, host: Host) -> EventPayload:
    """Something that happened just now, and began three seconds ago."""
    now_ns = clock.now_ns()
    return EventPayload(
        id="e",
        record="r",
        type="anomaly_started",
        stream="s",
        time=topics.rfc3339(now_ns),
        time_ns=now_ns,
        since=topics.rfc3339(now_ns - 3 * 10**9),
        since_ns=now_ns - 3 * 10**9,
        duration_s=3.0,
        historical=False,
        time_quality=clock.quality(),
        boot=clock.boot,
        clock_offset_ns=clock.offset_ns(),
    )


def test_what_was_stamped_before_the_clock_was_set_is_put_right() -> None:
    host = Host()
    clock = host.clock()
    before = event(clock, host)
    assert before.time_quality == "unsynced"
    assert before.time.startswith("2005")
    host.monotonic_ns += 5 * 10**9
    host.known = True
    after = topics.corrected(before, clock.boot, clock.offset_ns())
    assert after.time_quality == "corrected"
    assert after.time_ns == 56 * YEAR_NS + 10**9
    assert after.time_ns - after.since_ns == 3 * 10**9
    assert after.since == topics.rfc3339(after.since_ns)
    assert after.clock_offset_ns is None


def test_another_start_of_the_computer_says_nothing_about_this_one() -> None:
    host = Host()
    before = event(host.clock("earlier"), host)
    assert topics.corrected(before, "later", 0) is before


def test_what_was_stamped_by_a_clock_that_was_set_stays() -> None:
    host = Host()
    host.known = True
    stamped = event(host.clock(), host)
    assert stamped.time_quality == "synced"
    assert topics.corrected(stamped, "b", 0) is stamped


def test_the_system_is_not_asked_for_every_event() -> None:
    host, asked = Host(), []
    clock = HostClock(lambda: host.monotonic_ns, host.wall, lambda: bool(asked.append(1)) or host.known, "b")
    for _ in range(100):
        clock.quality()
    assert len(asked) == 1
    host.monotonic_ns += 2 * 10**9
    host.known = True
    assert clock.quality() == "synced"
