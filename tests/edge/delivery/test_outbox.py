"""The outbox on a real disk, with processes that are really killed."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from delivering import parked
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge import database
from edge.delivery import topics
from edge.delivery.outbox import _VERSION, Counts, Kind, Outbox, look, written_by_thread
from edge.errors import AmissError, CannotCreateError, DataError, StorageError

TOPIC = "amiss/n/pump/event"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def quick() -> Iterator[Path]:
    """In memory where there is some, for what does not depend on the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder) / "outbox.db"


def open_outbox(path: Path, boot: str = "b", max_bytes: int = 1 << 20, **options: Any) -> Outbox:
    return Outbox(path, device="n", boot=boot, max_bytes=max_bytes, **options)


def moved_aside(path: Path) -> bool:
    return path.with_name("outbox.db.damaged").exists()


def adds_up(counts: Counts) -> bool:
    return counts.accepted == counts.delivered + counts.waiting + counts.parked + counts.dropped


def test_alerts_leave_first_and_else_the_oldest(path: Path) -> None:
    outbox = open_outbox(path)
    kinds: list[Kind] = ["telemetry", "alert", "telemetry", "alert"]
    ids = [outbox.put(kind, TOPIC, str(i).encode()) for i, kind in enumerate(kinds)]
    assert ids == ["n-b-1", "n-b-2", "n-b-3", "n-b-4"]
    assert [record.payload for record in outbox.pending(10)] == [b"1", b"3", b"0", b"2"]
    assert [record.sequence for record in outbox.pending(2, besides={2})] == [4, 1]
    outbox.delivered([2, 1])
    assert [record.sequence for record in outbox.pending(10)] == [4, 3]
    assert outbox.counts == Counts(accepted=4, delivered=2, waiting=2, parked=0, dropped=0)


def test_the_payload_knows_its_record_and_the_record_its_time(path: Path) -> None:
    outbox = Outbox(path, device="n", boot="b", clock=lambda: 77)
    record = outbox.put("alert", TOPIC, lambda record: f"I am {record}".encode())
    assert [(kept.payload, kept.time_ns, kept.topic) for kept in outbox.pending(1)] == [(f"I am {record}".encode(), 77, TOPIC)]


def test_a_builder_that_fails_leaves_nothing_behind(path: Path) -> None:
    outbox = open_outbox(path)
    with pytest.raises(ZeroDivisionError):
        outbox.put("alert", TOPIC, lambda record: bytes(1 // 0))
    assert outbox.put("alert", TOPIC, b"next") == "n-b-1"
    assert outbox.counts == Counts(1, 0, 1, 0, 0)


def test_a_delivery_that_is_told_twice_counts_once(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.put("alert", TOPIC, b"a")
    outbox.delivered([1, 1, 99])
    outbox.delivered([1])
    assert outbox.counts == Counts(1, 1, 0, 0, 0)
    outbox.put("alert", TOPIC, b"b")
    outbox.park(2, "refused")
    outbox.delivered([2])
    assert outbox.counts == Counts(2, 1, 0, 1, 0)


def test_records_and_counts_outlive_the_process(path: Path) -> None:
    with contextlib.closing(open_outbox(path)) as outbox:
        for i in range(5):
            outbox.put("alert", TOPIC, str(i).encode())
        outbox.delivered([1, 2])
    again = open_outbox(path, boot="c")
    assert again.counts == Counts(5, 2, 3, 0, 0)
    assert again.put("alert", TOPIC, b"x") == "n-c-6"  # a sequence is never used twice
    assert [record.sequence for record in again.pending(9)] == [3, 4, 5, 6]


def test_the_disk_is_asked_for_what_the_promise_needs(path: Path) -> None:
    outbox = open_outbox(path)
    asked = {
        name: outbox._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode")
    }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive"}
    assert not path.with_name("outbox.db-shm").exists()  # set before the first access


# The application's word.

S = 1_000_000_000
NOON = 1_700_000_000 * S // (86400 * S) * 86400 * S + 43200 * S


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


def sequences(outbox: Outbox, limit: int = 10**6) -> list[int]:
    return [record.sequence for record in outbox.pending(limit)]


def test_an_alert_stays_until_the_application_has_it(path: Path) -> None:
    outbox = open_outbox(path, ack="application")
    alert, telemetry = outbox.put("alert", TOPIC, b"a"), outbox.put("telemetry", TOPIC, b"t")
    assert [(record.sequence, record.alert) for record in outbox.pending(9)] == [(1, True), (2, False)]
    outbox.delivered([1, 2])
    assert outbox.counts == Counts(2, 1, 1, 0, 0, awaiting=1)
    assert sequences(outbox) == []
    assert outbox.acknowledge([telemetry, alert, "n-b-3", "n-b-x", "", "n-b-\u0661", "9" * 40]) == [
        telemetry,
        "n-b-3",
        "n-b-x",
        "",
        "n-b-\u0661",
        "9" * 40,
    ]
    assert outbox.counts == Counts(2, 2, 0, 0, 0)
    assert outbox.acknowledge([alert]) == [alert]  # told twice counts once
    assert outbox.counts == Counts(2, 2, 0, 0, 0)
    again = outbox.put("alert", TOPIC, b"b")
    assert outbox.acknowledge([again, again, telemetry, telemetry]) == [telemetry]
    assert outbox.counts == Counts(3, 3, 0, 0, 0)


def test_the_applications_word_counts_before_the_brokers_and_for_what_it_refused(path: Path) -> None:
    outbox = open_outbox(path, ack="application")
    early, refused = outbox.put("alert", TOPIC, b"a"), outbox.put("alert", TOPIC, b"b")
    outbox.park(2, "Not authorized")
    assert outbox.acknowledge([early, refused]) == []
    outbox.delivered([1])  # the PUBACK, late
    assert outbox.counts == Counts(2, 2, 0, 0, 0)
    assert parked(outbox) == []


def test_what_nobody_acknowledges_is_due_again_after_pauses_that_grow(path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(path, ack="application", clock=clock)
    outbox.put("alert", TOPIC, b"a")
    outbox.delivered([1])
    pauses = []
    for i in range(10):
        if i == 5:  # also by the next process
            outbox.close()
            outbox = open_outbox(path, "c", ack="application", clock=clock)
            assert outbox.counts.awaiting == 1
        begin = clock.now
        while not outbox.pending(1):
            clock.now += S
        pauses.append((clock.now - begin) // S)
        outbox.delivered([1])
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_a_new_session_makes_due_what_the_broker_may_have_lost_but_not_at_once_again(path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(path, ack="application", clock=clock)
    for i in range(3):
        outbox.put("alert", TOPIC, b"%d" % i)
    outbox.delivered([1])
    for _ in range(4):  # its pause is 8 minutes by now
        clock.now += 3600 * S
        outbox.delivered([1])
    clock.now += 31 * S
    outbox.delivered([2])
    outbox.recall()
    assert sequences(outbox) == [3, 1]  # what was never sent first, then again what was sent long enough ago
    outbox.delivered([1, 3])
    for _ in range(10):
        clock.now += S
        outbox.recall()  # a session that breaks every second
        assert sequences(outbox) == []
    clock.now -= 86400 * S  # the clock is set back
    outbox.recall()
    assert sequences(outbox) == [1, 2, 3]


def test_another_setting_finds_its_way_with_the_file(path: Path) -> None:
    with contextlib.closing(open_outbox(path, ack="application")) as outbox:
        first, second = (outbox.put("alert", TOPIC, b"%d" % i) for i in range(2))
        outbox.delivered([1])
    with contextlib.closing(open_outbox(path, "c")) as outbox:  # now on the broker's word
        assert outbox.counts == Counts(2, 0, 2, 0, 0)
        assert sequences(outbox) == [1, 2]
        assert [record.alert for record in outbox.pending(9)] == [True, True]
        outbox.delivered([1])
    with contextlib.closing(open_outbox(path, "d", ack="application")) as outbox:
        assert outbox.acknowledge([first, second]) == [first]
        assert outbox.counts == Counts(2, 2, 0, 0, 0)


def test_an_acknowledgement_of_another_file_deletes_nothing(path: Path) -> None:
    """After a damaged file sequences begin again; whoever acknowledges what it had from the old one means no record of ours."""
    with contextlib.closing(open_outbox(path, "old", ack="application")) as outbox:
        old = [outbox.put("alert", TOPIC, b"x" * 300) for _ in range(60)]
    damage(path, "cut")
    with contextlib.closing(open_outbox(path, "new", ack="application")) as outbox:
        new = [outbox.put("alert", TOPIC, b"%d" % i) for i in range(3)]
        assert outbox.acknowledge(old) == old
        assert outbox.counts.waiting == 3
    with contextlib.closing(open_outbox(path, "newer", ack="application")) as outbox:
        newer = outbox.put("alert", TOPIC, b"y")
        wrong = ["n-newer-1", "n-new-4", "m-new-1"]
        assert outbox.acknowledge([*new, *wrong, newer]) == wrong
        assert outbox.counts == Counts(4, 4, 0, 0, 0)


def test_starts_are_forgotten_with_their_records(path: Path) -> None:
    for i in range(20):
        with contextlib.closing(open_outbox(path, f"b{i}", ack="application")) as outbox:
            outbox.put("alert", TOPIC, b"x")
            if i > 2:
                outbox.acknowledge([f"n-b{i - 2}-{i - 1}"])
    outbox = open_outbox(path, "end")
    kept = outbox._connection.execute("SELECT prefix FROM start ORDER BY sequence").fetchall()
    assert ("n-b0-",) in kept  # its record is still there
    outbox.acknowledge(["n-b0-1", "n-b1-2"])
    outbox.close()
    kept = open_outbox(path, "ende")._connection.execute("SELECT prefix FROM start ORDER BY sequence").fetchall()
    assert kept == [("n-b18-",), ("n-b19-",), ("n-ende-",)]


def test_of_alerts_those_go_first_that_the_broker_has_had(quick: Path) -> None:
    outbox = open_outbox(quick, max_bytes=BUDGET, ack="application")
    for _ in range(60):
        outbox.put("alert", TOPIC, b"a" * 400)
    outbox.delivered(range(31, 61))
    while outbox.counts.awaiting:
        assert outbox.pending(1)[0].sequence == 1
        outbox.put("alert", TOPIC, b"a" * 400)
    assert not outbox._connection.execute("SELECT * FROM sent").fetchall()
    assert adds_up(outbox.counts)


# A file of another version.

VERSION_1 = """
    CREATE TABLE record (
        key     INTEGER PRIMARY KEY,
        topic   TEXT NOT NULL,
        payload BLOB NOT NULL,
        time_ns INTEGER NOT NULL,
        rank    INTEGER NOT NULL,
        reason  TEXT
    );
    CREATE TABLE loss (
        topic    TEXT PRIMARY KEY,
        count    INTEGER NOT NULL,
        first_ns INTEGER NOT NULL,
        last_ns  INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE tally (accepted INTEGER NOT NULL, delivered INTEGER NOT NULL, dropped INTEGER NOT NULL);
    INSERT INTO tally VALUES (9, 2, 3);
    INSERT INTO record VALUES (0 << 48 | 4, 'amiss/n/pump/event', 'alert', 40, 0, NULL);
    INSERT INTO record VALUES (2 << 48 | 5, 'amiss/n/pump/event', 'telemetry', 50, 2, NULL);
    INSERT INTO record VALUES (3 << 48 | 6, 'amiss/n/pump/event', 'parked alert', 60, 0, 'Not authorized');
    INSERT INTO record VALUES (0 << 48 | 9, 'amiss/n/pump/event', 'alert', 90, 0, NULL);
    INSERT INTO loss VALUES ('amiss/n/pump/event', 3, 10, 30);
    PRAGMA user_version = 1;
    PRAGMA journal_mode = WAL;
"""


@pytest.mark.parametrize("ack", ["broker", "application"])
def test_a_file_of_version_1_opens(path: Path, ack: Literal["broker", "application"]) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(VERSION_1)
    with contextlib.closing(open_outbox(path, "c", ack=ack)) as outbox:
        assert not moved_aside(path)
        assert outbox.counts == Counts(9, 2, 4, 0, 3)
        *records, gap, telemetry = outbox.pending(9)
        assert [record.sequence for record in records] == [4, 6, 9]
        assert telemetry.payload == "telemetry"
        assert (gap_of(gap.payload).count, gap_of(gap.payload).reason) == (3, "outbox_full")
        assert outbox.put("alert", TOPIC, b"new") == "n-c-11"
        assert outbox.acknowledge(["n-whatever-4", "m-whatever-6", "n-c-9", "n-whatever-11", "n-c-11"]) == [
            "m-whatever-6",
            "n-whatever-11",
        ]
        assert outbox.counts == Counts(11, 5, 3, 0, 3)
    with contextlib.closing(open_outbox(path, "d", ack=ack)) as outbox:
        assert outbox.counts == Counts(11, 5, 3, 0, 3)
        assert outbox._connection.execute("PRAGMA user_version").fetchone() == (2,)


# Several records in one commit.


def test_a_group_is_on_disk_in_its_time_and_told(path: Path) -> None:
    outbox, flushed = open_outbox(path, group_s=0.05), threading.Event()
    outbox.on_flush = flushed.set
    ids = [outbox.put("telemetry", TOPIC, lambda record: record.encode(), durable=False) for _ in range(3)]
    assert outbox.counts == Counts(0, 0, 0, 0, 0)
    assert outbox.pending(9) == []
    assert flushed.wait(5.0)
    assert [record.payload.decode() for record in outbox.pending(9)] == ids == ["n-b-1", "n-b-2", "n-b-3"]
    assert outbox.counts == Counts(3, 0, 3, 0, 0)
    outbox.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "outbox"]


def test_whatever_is_committed_takes_the_group_along(path: Path) -> None:
    outbox = open_outbox(path, group_s=60.0)
    for commit in (
        lambda: outbox.put("alert", TOPIC, b"a"),
        lambda: outbox.delivered([]),
        lambda: outbox.park(1, "no"),
        lambda: outbox.acknowledge([]),
        outbox.flush,
        lambda: [outbox.put("telemetry", TOPIC, b"t", durable=False) for _ in range(49)],
    ):
        before = outbox.counts.accepted
        outbox.put("telemetry", TOPIC, b"t", durable=False)
        assert outbox.counts.accepted == before
        commit()
        assert outbox.counts.accepted > before
    outbox.put("telemetry", TOPIC, b"t", durable=False)
    outbox.close()
    again = open_outbox(path, "c")
    assert again.counts.accepted == again.counts.waiting == 57
    kept = {key & (1 << 48) - 1 for (key,) in again._connection.execute("SELECT key FROM record")}
    assert kept == set(range(1, 58))


def test_a_failure_costs_the_group_nothing_and_is_told_to_who_comes_next(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = open_outbox(path, group_s=0.02)
    outbox._connection.execute("PRAGMA max_page_count = 12")
    with pytest.raises(ZeroDivisionError):
        outbox.put("telemetry", TOPIC, lambda record: bytes(1 // 0), durable=False)
    first = outbox.put("telemetry", TOPIC, bytes(60_000), durable=False)
    deadline = time.monotonic() + 5.0
    while "disk full" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for durable in (True, False):
        with pytest.raises(StorageError, match="disk full"):
            outbox.put("telemetry", TOPIC, b"t", durable=durable)
    assert outbox.counts.accepted == 0
    outbox._connection.execute("PRAGMA max_page_count = 1000")
    second = outbox.put("telemetry", TOPIC, b"t", durable=False)
    outbox.flush()
    assert (first, second) == ("n-b-1", "n-b-2")
    assert [len(record.payload) for record in outbox.pending(9)] == [60_000, 1]


def test_on_a_full_disk_a_delivery_makes_room_for_the_group(path: Path) -> None:
    outbox = open_outbox(path, group_s=60.0)
    for _ in range(20):
        outbox.put("telemetry", TOPIC, bytes(3000))
    pages = outbox._connection.execute("PRAGMA page_count").fetchone()[0]
    outbox._connection.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        outbox.put("telemetry", TOPIC, bytes(3000), durable=False)
    with pytest.raises(StorageError, match="disk full"):
        outbox.flush()
    outbox.delivered(range(1, 11))
    assert outbox.counts == Counts(20, 10, 10, 0, 0)
    outbox.flush()
    assert outbox.counts == Counts(23, 10, 13, 0, 0)


def test_a_bug_in_the_flusher_does_not_stay_unseen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    outbox = open_outbox(path, group_s=0.01)
    monkeypatch.setattr(outbox, "_commit_group", lambda: 1 // 0)
    outbox.put("telemetry", TOPIC, b"t", durable=False)
    assert outbox._flusher is not None
    outbox._flusher.join(5.0)
    with pytest.raises(ZeroDivisionError):
        outbox.put("alert", TOPIC, b"a")
    with pytest.raises(ZeroDivisionError):
        outbox.pending(1)


def test_groups_spare_the_card(path: Path) -> None:
    """Bytes written to log and database for each byte of payload, from put to delivered."""
    cost: dict[str, float] = {}
    for name, durable, together in (("single", True, 1), ("grouped", False, 50)):
        outbox = open_outbox(path.with_name(name), max_bytes=1 << 24, group_s=60.0)
        before = written_by_thread()
        for _ in range(20):
            for _ in range(50):
                outbox.put("telemetry", TOPIC, bytes(700), durable=durable)
            outbox.flush()
            records = outbox.pending(50)
            for i in range(0, 50, together):
                outbox.delivered([record.sequence for record in records[i : i + together]])
        after = written_by_thread()
        if before is None or after is None:
            pytest.skip("this system does not count what is written")
        assert after - before <= outbox.written_bytes_today <= after - before + 100_000  # and what opening wrote
        cost[name] = (after - before) / (20 * 50 * 700)
    print(json.dumps(cost))
    assert cost["grouped"] < 8
    assert cost["single"] > 4 * cost["grouped"]


# What may be written on a day.


def test_over_the_days_budget_telemetry_is_dropped_and_told_and_alerts_are_not(path: Path) -> None:
    clock = Clock()
    outbox = open_outbox(path, bytes_per_day=200_000, clock=clock)
    put = dict.fromkeys(("alert", "telemetry"), 0)

    def fill(kind: Kind, times: int) -> None:
        for _ in range(times):
            clock.now += S
            outbox.put(kind, TOPIC, bytes(700), durable=kind == "alert")
            put[kind] += 1
        outbox.flush()

    while outbox.written_bytes_today < 200_000:
        fill("telemetry", 10)
    assert outbox.counts.dropped == 0
    kept = put["telemetry"]
    written = outbox.written_bytes_today
    for _ in range(1000):
        clock.now += S // 100
        outbox.put("telemetry", TOPIC, bytes(700), durable=False)
        put["telemetry"] += 1
    assert outbox.written_bytes_today == written  # dropping costs nothing
    fill("alert", 50)
    fill("telemetry", 30)
    assert outbox.counts == Counts(kept + 1030 + 50, 0, kept + 50, 0, 1030)
    gaps, arrived = [], []

    def drain() -> None:
        while records := outbox.pending(50):
            gaps.extend(gap_of(record.payload) for record in records if record.payload[:1] == b"{")
            arrived.extend(record.sequence for record in records)
            outbox.delivered([record.sequence for record in records])

    drain()
    assert [(gap.count, gap.reason) for gap in gaps] == [(1030, "disk_budget")]
    fill("telemetry", 20)  # told at the next occasion, but not for every handful anew: telling is writing too
    drain()
    assert len(gaps) == 1
    outbox.close()
    outbox = open_outbox(path, "c", bytes_per_day=200_000, clock=clock)
    assert outbox.written_bytes_today > 200_000  # the day outlives the process
    clock.now += 86400 * S
    assert outbox.written_bytes_today == 0
    fill("telemetry", 20)
    drain()
    assert sum(gap.count or 0 for gap in gaps) == outbox.counts.dropped == 1050
    assert outbox.counts.accepted == len(arrived) + outbox.counts.dropped
    assert outbox.counts.waiting == 0


def test_where_nobody_counts_what_is_written_it_is_guessed(path: Path) -> None:
    outbox = open_outbox(path, bytes_per_day=1 << 20, written=lambda: None)
    for _ in range(200):
        outbox.put("telemetry", TOPIC, bytes(700))
    assert 0 < outbox.counts.dropped < 180


# Killed at any moment.

CHILD = """
import os, random, sys, time
from contextlib import contextmanager
from pathlib import Path
from edge.delivery.outbox import Outbox

path, boot, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if kind == "later":  # the control: `put` returns before the commit
    class Later(Outbox):
        @contextmanager
        def _transaction(self):
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
                self.puts = 0
            yield
            self.puts += 1
            self._connection.execute("UPDATE tally SET accepted = ?", (self._counts.accepted,))
            if self.puts >= 1000000:
                self._connection.execute("COMMIT")
    Outbox = Later
outbox = Outbox(path, device="n", boot=boot, max_bytes=1 << 24, group_s=60.0 if kind == "ungrouped" else 0.1)
os.write(1, b"ready\\n")
chance = random.Random(boot)
while True:
    payload = lambda record: record.encode() + b" " * chance.randrange(900)
    record = outbox.put(chance.choice(["alert", "telemetry"]), "amiss/n/pump/event", payload, durable="grouped" not in kind)
    os.write(1, b"accepted %s %d\\n" % (record.encode(), time.monotonic_ns()))
    if "grouped" in kind:
        time.sleep(0.01)
    if kind == "deliver" and chance.random() < 0.3:
        some = outbox.pending(3)
        os.write(1, b"".join(b"gone %s\\n" % r.payload.split()[0] for r in some))
        outbox.delivered([r.sequence for r in some])
"""


def killed_child(path: Path, boot: str, kind: str, after_s: float) -> tuple[dict[str, int], set[str], int]:
    """Record ids that `put` has returned, and when; those handed to `delivered`; when the process was killed that did it."""
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path), boot, kind], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        killer = threading.Timer(after_s, child.send_signal, (signal.SIGKILL,))
        killer.start()
        said = [line.split() for line in child.stdout.read().decode().splitlines()]
        assert child.wait() == -signal.SIGKILL
    put = {words[1]: int(words[2]) for words in said if len(words) == 3 and words[0] == "accepted"}
    return put, {words[1] for words in said if len(words) == 2 and words[0] == "gone"}, max(put.values(), default=0)


def kill_often(path: Path, kind: str, times: int) -> tuple[int, int]:
    """How many were accepted, how many of them are neither stored nor were delivered."""
    chance, accepted, gone = random.Random(1), set[str](), set[str]()
    for i in range(times):
        put, delivered, _ = killed_child(path, f"boot{i}", kind, chance.uniform(0.005, 0.15))
        accepted |= put.keys()
        gone |= delivered
    outbox = open_outbox(path, max_bytes=1 << 24)
    assert not moved_aside(path)
    stored = {record.payload.split()[0].decode() for record in outbox.pending(10**6)}
    assert len(stored) == outbox.counts.waiting
    if kind == "deliver":
        assert adds_up(outbox.counts)
        assert len(gone - stored) <= outbox.counts.delivered <= len(gone)
    outbox.close()
    return len(accepted), len(accepted - stored - gone)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_nothing_accepted_is_lost_by_kill(path: Path, kills: int) -> None:
    accepted, lost = kill_often(path, "deliver", kills)
    assert accepted > kills
    assert lost == 0


def age_of_the_lost(path: Path, kind: str, kills: int) -> float:
    """How long before the kill the oldest record was put that is not there."""
    chance, ages = random.Random(2), list[float]()
    for i in range(kills):
        said, _, last_ns = killed_child(path, f"boot{i}", kind, chance.uniform(0.2, 0.5))
        with contextlib.closing(open_outbox(path, f"look{i}", max_bytes=1 << 24)) as outbox:
            assert not moved_aside(path)
            assert adds_up(outbox.counts)
            stored = {record.payload.split()[0].decode() for record in outbox.pending(10**6)}
        ages += [(last_ns - when) / 1e9 for record, when in said.items() if record not in stored]
    print(json.dumps({"kills": kills, "lost": len(ages), "oldest_s": max(ages, default=0.0)}))
    return max(ages, default=0.0)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_a_kill_costs_of_what_need_not_be_durable_a_tenth_of_a_second_at_most(path: Path, kills: int) -> None:
    assert 0.0 < age_of_the_lost(path, "grouped", kills) < 0.1 + 0.1  # and what the commit itself takes


def test_without_the_flusher_a_kill_would_cost_more(path: Path) -> None:
    assert age_of_the_lost(path, "ungrouped", 4) > 0.2


def test_the_kill_test_would_notice(path: Path) -> None:
    accepted, lost = kill_often(path, "later", 3)
    assert accepted > 0
    assert lost > 0


# A file that cannot be read.


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    chance = random.Random(kind)
    match kind:
        case "text":
            data = bytearray(b"this is not a database, it is a poem\n" * 40)
        case "zeros":
            data = bytearray(len(data))
        case "cut":
            data = data[: len(data) // 2]
        case "flips":
            for _ in range(400):
                data[chance.randrange(4096, len(data))] ^= 1 << chance.randrange(8)
        case "version":
            data[60:64] = b"\x7f\x01\x02\x03"
        case "names":  # of a table, in the schema: SQLite's message about it is no text
            assert b"tablerecord" in data
            data = data.replace(b"tablerecord", b"tablere\xff\xfe\xfd")
        case "foreign":
            path.unlink()
            with contextlib.closing(sqlite3.connect(path)) as foreign:
                foreign.execute("CREATE TABLE record (somebody TEXT)")
            return
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["text", "zeros", "cut", "flips", "version", "names", "foreign"])
def test_a_damaged_file_is_moved_aside_and_life_goes_on(path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(open_outbox(path)) as outbox:
        for i in range(60):
            outbox.put("alert", TOPIC, str(i).encode() * 300)
    damage(path, kind)
    damaged = path.read_bytes()
    again = open_outbox(path, boot="c")
    assert moved_aside(path)
    assert path.with_name("outbox.db.damaged").read_bytes()[200:] == damaged[200:]
    assert len([record for record in caplog.records if "damaged" in record.message]) == 1
    assert again.put("alert", TOPIC, b"new") == "n-c-1"
    assert again.counts == Counts(1, 0, 1, 0, 0)


def test_a_sound_file_is_not_moved(path: Path) -> None:
    open_outbox(path).close()
    open_outbox(path)
    assert not moved_aside(path)


def test_an_older_agent_does_not_throw_away_what_a_newer_one_wrote(path: Path) -> None:
    open_outbox(path).close()
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {_VERSION + 1}")
    for use in (open_outbox, look):
        with pytest.raises(DataError, match=rf"^{path}: written by a newer amiss"):
            use(path)
    assert path.exists()
    assert not moved_aside(path)


# Nowhere to write.


def said_by(path: Path, *, user: int | None = None) -> tuple[str, str]:
    """Class and message of the error with which a process of its own fails to open the outbox."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from edge.delivery.outbox import Outbox\n"
        "from edge.errors import AmissError\n"
        "if len(sys.argv) > 2: os.setuid(int(sys.argv[2]))\n"
        "try: Outbox(Path(sys.argv[1]), device='n', boot='b')\n"
        "except AmissError as error: print(type(error).__name__); print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(path), *([] if user is None else [str(user)])]
    kind, message = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    return kind, message


def test_a_second_agent_is_told_so(path: Path) -> None:
    outbox = open_outbox(path)
    kind, message = said_by(path)
    assert kind == "StorageError"
    assert "another agent is running with this state_dir" in message
    outbox.put("alert", TOPIC, b"still mine")


def test_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match="choose another state_dir"):
        open_outbox(tmp_path / "file" / "state" / "outbox.db")


def test_a_database_that_is_a_directory(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CannotCreateError, match="state_dir"):
        open_outbox(path)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int | None]]:
    """A folder that others may enter, and a user who is not its owner; root sees no rights, so it becomes somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder), 65534 if os.getuid() == 0 else None
        Path(folder).chmod(0o755)


def test_a_directory_of_somebody_else(foreign: tuple[Path, int | None]) -> None:
    folder, user = foreign
    folder.chmod(0o555)
    kind, message = said_by(folder / "outbox.db", user=user)
    assert (kind, "not writable; give it to the user that runs the agent" in message) == ("AccessError", True)
    kind, message = said_by(folder / "state" / "outbox.db", user=user)
    assert (kind, "cannot be created" in message) == ("AccessError", True)


def test_a_file_of_somebody_else(foreign: tuple[Path, int | None]) -> None:
    folder, user = foreign
    open_outbox(folder / "outbox.db").close()
    folder.chmod(0o777)
    (folder / "outbox.db").chmod(0o444)
    kind, message = said_by(folder / "outbox.db", user=user)
    assert (kind, "give it to the user that runs the agent" in message) == ("AccessError", True)


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[bool]:
    """A file system of that size, where this user may mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_nothing_that_was_accepted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 768) as real:
        path = tmp_path / "disk" / "outbox.db"
        outbox = open_outbox(path, max_bytes=1 << 26)
        if not real:
            outbox._connection.execute("PRAGMA max_page_count = 64")
        else:
            (tmp_path / "disk" / "ballast").write_bytes(bytes(100_000))
        accepted: list[str] = []
        fill = (outbox.put("telemetry", TOPIC, lambda record: record.encode() + bytes(500)) for _ in range(10_000))
        with pytest.raises(StorageError, match=r"^\S+outbox\.db: disk full; free some space there or lower outbox_max_bytes$"):
            accepted.extend(fill)
        assert 50 < len(accepted) == outbox.counts.accepted
        for _ in range(3):
            with pytest.raises(StorageError, match="disk full"):
                outbox.put("alert", TOPIC, bytes(20_000))
        assert len(outbox.pending(10**6)) == len(accepted)
        if real:
            outbox.close()
            (tmp_path / "disk" / "ballast").unlink()
            outbox = open_outbox(path, boot="c", max_bytes=1 << 26)
        else:
            outbox._connection.execute("PRAGMA max_page_count = 1000")
        outbox.delivered(range(1, 31))
        assert outbox.put("alert", TOPIC, b"room again")
        stored = [record.payload.rstrip(b"\0").decode() for record in outbox.pending(10**6)]
        assert stored == ["room again", *accepted[30:]]
        assert adds_up(outbox.counts)
        outbox.close()


# The budget.

BUDGET = 64 * 1024


def gap_of(record_payload: bytes) -> topics.EventPayload:
    return msgspec.json.decode(record_payload, type=topics.EventPayload)


def test_a_long_outage_keeps_to_the_budget_and_accounts_for_every_record(quick: Path) -> None:
    now = [1_700_000_000_000_000_000]
    outbox = Outbox(quick, device="n", boot="b", max_bytes=4 * BUDGET, clock=lambda: now[0])
    alerts = []
    for i in range(3000):
        now[0] += 60_000_000_000
        kind: Kind = "alert" if i % 30 == 0 else "telemetry"
        record = outbox.put(kind, f"amiss/n/s{i % 2}/event", lambda record: record.encode() + b" " * 400)
        alerts += [record] if kind == "alert" else []
        if i % 100 == 0:
            assert quick.stat().st_size <= 4 * BUDGET + 5 * 4096
            assert quick.with_name("outbox.db-wal").stat().st_size <= 1.2 * 2**20
    records = outbox.pending(10**6)
    gaps = [gap_of(record.payload) for record in records if record.payload.startswith(b"{")]
    kept = [record.payload.split()[0].decode() for record in records if not record.payload.startswith(b"{")]
    assert outbox.live_bytes() <= 4 * BUDGET
    assert kept[: len(alerts)] == alerts  # telemetry went first, and there was enough of it
    telemetry = [int(record.rpartition("-")[2]) for record in kept[len(alerts) :]]
    assert telemetry == sorted(telemetry)
    assert telemetry[-1] == 3000
    assert 3000 - len(kept) == outbox.counts.dropped
    assert [(gap.stream, gap.reason) for gap in gaps] == [("s0", "outbox_full"), ("s1", "outbox_full")]
    oldest_kept_ns = min(record.time_ns for record in records if record.payload.split()[0].decode() not in alerts)
    for gap in gaps:
        assert 1_700_000_000_000_000_000 < gap.since_ns < gap.time_ns < oldest_kept_ns
    told = 0
    while records := outbox.pending(50):  # what the gap records themselves pushed out is told by the next ones
        told += sum(gap_of(record.payload).count or 0 for record in records if record.payload.startswith(b"{"))
        outbox.delivered([record.sequence for record in records])
    assert told == outbox.counts.dropped
    assert adds_up(outbox.counts)


def test_alerts_go_only_when_nothing_else_is_left(quick: Path) -> None:
    outbox = open_outbox(quick, max_bytes=BUDGET)
    for _ in range(40):
        outbox.put("telemetry", TOPIC, b"t" * 400)
    for i in range(300):
        outbox.put("alert", TOPIC, b"%d " % i + b"a" * 400)
        left = outbox.pending(10**6, besides=())
        numbers = [int(record.payload.split()[0]) for record in left if record.payload.endswith(b"a")]
        assert numbers[-1] == i
        if numbers[0] > 0:
            assert not any(record.payload.startswith(b"t") for record in left)
    assert numbers[0] > 0


def test_a_gap_is_told_once_and_the_next_one_after_it(quick: Path) -> None:
    outbox = open_outbox(quick, max_bytes=BUDGET)

    def overflow() -> None:
        before = outbox.counts.dropped
        while outbox.counts.dropped < before + 10:
            outbox.put("telemetry", TOPIC, b"t" * 400)

    def gaps() -> list[tuple[int, topics.EventPayload]]:
        return [(record.sequence, gap_of(record.payload)) for record in outbox.pending(10**6) if record.payload[:1] == b"{"]

    overflow()
    ((first, gap),) = gaps()
    told = gap.count
    overflow()
    written = outbox.written_bytes_today
    assert gaps() == [(first, gap)]  # it may be on its way already: what it says stays
    assert outbox.written_bytes_today == written, "there was nothing to tell"
    outbox.delivered([first])
    ((second, gap),) = gaps()
    assert (told or 0) + (gap.count or 0) == outbox.counts.dropped
    assert gap.record == f"n-b-{second}"
    outbox.close()
    assert [record.sequence for record in open_outbox(quick, boot="c").pending(1)] == [second]


def test_over_the_days_budget_a_loss_that_could_not_be_told_yet_waits_only_for_the_one_before_it(quick: Path) -> None:
    outbox = open_outbox(quick, max_bytes=BUDGET)
    for _ in range(2):
        before = outbox.counts.dropped
        while outbox.counts.dropped == before:
            outbox.put("telemetry", TOPIC, b"t" * 400)
        outbox.pending(1)
    outbox.close()
    outbox = open_outbox(quick, boot="c", max_bytes=BUDGET, bytes_per_day=0)
    first, *_ = outbox.pending(1)
    outbox.delivered([first.sequence])
    second, *_ = outbox.pending(1)
    assert (gap_of(first.payload).record, gap_of(second.payload).record[:4]) == (f"n-b-{first.sequence}", "n-c-")


def test_one_record_that_is_too_large_does_not_push_out_the_others(path: Path) -> None:
    outbox = open_outbox(path, max_bytes=BUDGET)
    outbox.put("alert", TOPIC, b"small")
    outbox.put("alert", TOPIC, bytes(BUDGET // 4 + 1))
    assert outbox.counts == Counts(accepted=2, delivered=0, waiting=1, parked=0, dropped=1)
    small, gap = outbox.pending(9)
    assert (small.payload, gap_of(gap.payload).count) == (b"small", 1)


class OutboxMachine(RuleBasedStateMachine):
    """Against a list. Which records the budget costs is the outbox's choice; that it may cost them is checked."""

    ack: Literal["broker", "application"] = "broker"

    def open(self) -> Outbox:
        return Outbox(self.path, device="n", boot=str(self.boot), max_bytes=BUDGET, ack=self.ack, resend_s=(3600.0, 3600.0))

    @initialize()
    def begin(self) -> None:
        # Memory where there is some: what is checked here is not the disk.
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.path = Path(self.folder.name) / "outbox.db"
        self.boot = 0
        self.outbox = self.open()
        self.sent: dict[int, str] = {}  # alerts that the broker has → id
        self.ids: dict[int, str] = {}
        self.alerts: list[int] = []
        self.telemetry: list[int] = []
        self.gaps: dict[int, int] = {}
        self.parked: dict[int, list[int]] = {}
        self.untold = 0
        self.delivered = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.outbox.close()
            self.folder.cleanup()

    @rule(
        kind=st.sampled_from(["alert", "telemetry"]), size=st.integers(0, 6000), times=st.integers(1, 20), durable=st.booleans()
    )
    def put(self, kind: Kind, size: int, times: int, durable: bool) -> None:
        for _ in range(times):
            record = self.outbox.put(kind, TOPIC, b"x" * size, durable=durable)
            sequence = int(record.rpartition("-")[2])
            self.ids[sequence] = record
            (self.alerts if kind == "alert" else self.telemetry).append(sequence)
            if durable:
                self.forget_dropped()
        self.outbox.flush()
        self.forget_dropped()

    def forget_dropped(self) -> None:
        connection = self.outbox._connection
        there = {key & (1 << 48) - 1 for (key,) in connection.execute("SELECT key FROM record")}
        lost_telemetry = [sequence for sequence in self.telemetry if sequence not in there]
        lost_alerts = [sequence for sequence in self.alerts if sequence not in there]
        assert lost_telemetry == self.telemetry[: len(lost_telemetry)], "not the oldest telemetry"
        assert lost_alerts == self.alerts[: len(lost_alerts)], "not the oldest alerts"
        if lost_alerts:
            assert len(lost_telemetry) == len(self.telemetry), "an alert before telemetry"
        lost_sent = [sequence for sequence in self.sent if sequence not in there]
        assert sorted(lost_sent) == sorted(self.sent)[: len(lost_sent)], "not the oldest of those that the broker has"
        if lost_sent:
            assert len(lost_telemetry) == len(self.telemetry), "an alert before telemetry"
        if lost_alerts:
            assert len(lost_sent) == len(self.sent), "what the broker never had before what it had"
        for sequence in lost_sent:
            del self.sent[sequence]
        self.untold += len(lost_sent)
        lost_parked = [sequence for sequence in self.parked if sequence not in there]
        if lost_alerts:
            assert len(lost_parked) == len(self.parked), "an alert before what is parked"
        del self.telemetry[: len(lost_telemetry)], self.alerts[: len(lost_alerts)]
        for sequence in lost_parked:
            del self.parked[sequence]
        assert set(self.gaps) <= there, "a gap record was dropped"
        self.untold += len(lost_alerts) + len(lost_telemetry) + len(lost_parked)

    @rule(limit=st.integers(1, 60))
    def look(self, limit: int) -> None:
        tells = self.untold and not self.gaps
        records = self.outbox.pending(limit)
        if tells:  # and the gap record may cost others their place
            ((sequence, count),) = [
                (key & (1 << 48) - 1, gap_of(payload).count)
                for key, payload in self.outbox._connection.execute(
                    "SELECT key, payload FROM record WHERE key >= 1 << 48 AND key < 2 << 48"
                )
            ]
            assert count == self.untold
            self.gaps, self.untold = {sequence: count}, 0
            self.forget_dropped()
        expected = [*self.alerts, *self.gaps, *self.telemetry][:limit]
        assert [record.sequence for record in records] == expected

    @precondition(lambda self: self.alerts or self.telemetry or self.gaps)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from([*self.alerts, *self.gaps, *self.telemetry]), unique=True, max_size=30))
        self.outbox.delivered(gone)
        if self.ack == "application":
            self.sent |= {sequence: self.ids[sequence] for sequence in sorted(set(gone) & set(self.alerts))}
        self.delivered += len(set(gone) - self.sent.keys())
        for queue in (self.alerts, self.telemetry):
            queue[:] = [sequence for sequence in queue if sequence not in gone]
        self.gaps = {sequence: count for sequence, count in self.gaps.items() if sequence not in gone}
        self.forget_dropped()  # to remember what is awaited takes room

    @precondition(lambda self: self.sent or self.alerts)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        known = data.draw(st.lists(st.sampled_from([*self.sent, *self.alerts]), unique=True, max_size=10))
        unknown = data.draw(st.lists(st.sampled_from(["n-0-999999", "n-x-1", "n-1", ""]), unique=True))
        assert self.outbox.acknowledge([*(self.ids[sequence] for sequence in known), *unknown]) == unknown
        self.delivered += len(known)
        self.alerts[:] = [sequence for sequence in self.alerts if sequence not in known]
        for sequence in known:
            self.sent.pop(sequence, None)

    @precondition(lambda self: self.alerts or self.telemetry)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        queue = data.draw(st.sampled_from([queue for queue in (self.alerts, self.telemetry) if queue]))
        sequence = data.draw(st.sampled_from(queue))
        queue.remove(sequence)
        self.parked[sequence] = queue
        self.outbox.park(sequence, "why not")
        self.forget_dropped()

    @rule()
    def start_again(self) -> None:
        self.outbox.close()
        self.boot += 1
        self.outbox = self.open()
        for sequence, queue in self.parked.items():
            queue.append(sequence)
            queue.sort()
        self.parked.clear()
        self.forget_dropped()

    @invariant()
    def accounts_for_everything(self) -> None:
        if not hasattr(self, "outbox"):
            return
        counts = self.outbox.counts
        assert adds_up(counts)
        assert counts.waiting == len(self.alerts) + len(self.telemetry) + len(self.gaps) + len(self.sent)
        assert counts.awaiting == len(self.sent)
        assert counts.parked == len(self.parked)
        assert counts.delivered == self.delivered
        assert self.outbox.live_bytes() <= BUDGET


OutboxMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestAgainstAModel = OutboxMachine.TestCase


class AckMachine(OutboxMachine):
    ack = "application"


AckMachine.TestCase.settings = OutboxMachine.TestCase.settings
TestAgainstAModelThatAwaits = AckMachine.TestCase


# What the broker refuses.


def test_what_is_parked_is_kept_out_of_the_way_and_tried_again_after_a_start(path: Path) -> None:
    outbox = open_outbox(path)
    for i in range(4):
        outbox.put("alert" if i % 2 else "telemetry", TOPIC, str(i).encode())
    outbox.park(2, "Not authorized")
    outbox.park(1, "Packet too large")
    outbox.park(1, "again")
    assert parked(outbox) == [(1, "Packet too large"), (2, "Not authorized")]
    assert [record.sequence for record in outbox.pending(9)] == [4, 3]
    assert outbox.counts == Counts(4, 0, 2, 2, 0)
    outbox.close()
    again = open_outbox(path, boot="c")
    assert again.counts == Counts(4, 0, 4, 0, 0)
    assert [(record.sequence, record.payload) for record in again.pending(9)] == [(2, b"1"), (4, b"3"), (1, b"0"), (3, b"2")]


def test_evidence_is_bounded(quick: Path) -> None:
    outbox = open_outbox(quick)
    for i in range(130):
        outbox.put("alert", TOPIC, b"%d" % i)
        outbox.park(i + 1, "no")
    assert [sequence for sequence, _ in parked(outbox)] == list(range(31, 131))
    assert outbox.counts == Counts(130, 0, 0, 100, 30)


def test_a_topic_that_is_refused_altogether_does_not_make_gaps_without_end(quick: Path) -> None:
    outbox = open_outbox(quick)
    for _ in range(150):
        outbox.put("alert", TOPIC, b"x")
    rounds = 0
    while records := outbox.pending(20):
        rounds += 1
        assert rounds < 20
        for record in records:
            outbox.park(record.sequence, "Not authorized")
    assert adds_up(outbox.counts)
    outbox.close()
    assert any(record.payload[:1] == b"{" for record in open_outbox(quick, boot="c").pending(10**6))


# Two threads, as in the agent.


def test_two_threads_share_it(quick: Path) -> None:
    outbox, arrived, stop = open_outbox(quick, max_bytes=1 << 24), list[bytes](), threading.Event()

    def drain() -> None:
        while not stop.is_set() or outbox.counts.waiting:
            records = outbox.pending(20)
            arrived.extend(record.payload for record in records)
            outbox.delivered([record.sequence for record in records])

    thread = threading.Thread(target=drain)
    thread.start()
    put = [outbox.put("alert", TOPIC, lambda record: record.encode()) for _ in range(400)]
    stop.set()
    thread.join(20)
    assert [payload.decode() for payload in arrived] == put
    assert outbox.counts == Counts(400, 400, 0, 0, 0)


def test_errors_are_one_line_and_of_our_tree(path: Path) -> None:
    for code in ("BUSY", "FULL", "READONLY", "CANTOPEN", "IOERR", "CORRUPT"):
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
        explained = database.explained(error, path)
        assert isinstance(explained, AmissError)
        assert "\n" not in str(explained)
        assert str(explained).count(";") == 1  # cause; cure
    bug = sqlite3.ProgrammingError("x")
    assert database.explained(bug, path) is bug


def test_put_is_quick(path: Path) -> None:
    """A bound that only a change of kind crosses, such as rewriting the file at every put; figures go to the log."""
    outbox, took_s = open_outbox(path), []
    for _ in range(300):
        begin = time.perf_counter()
        outbox.put("alert", TOPIC, b"x" * 700)
        took_s.append(time.perf_counter() - begin)
    took_s.sort()
    print(json.dumps({"put_p50_ms": 1e3 * took_s[150], "put_p99_ms": 1e3 * took_s[297]}))
    assert took_s[150] < 0.05
