"""Store and forward: what `put` has returned for is on disk, and leaves it only delivered or counted as dropped.

    accepted = delivered + waiting + parked + dropped        to the record, whatever is killed and when

            put                    broker has it                application has it
    alert ───────▶ waiting ──────────────────────▶ (awaiting ───────────────────────▶) gone     with ack="application"
    else  ───────▶ waiting ──────────────────────▶ gone
                      └── refused ──▶ parked ── next start ──▶ waiting

- One connection, under one lock, used by two threads: inference puts, delivery drains.
- WAL with `synchronous=FULL`: a commit is on the disk before `put` returns. `locking_mode=EXCLUSIVE` is set before the first
  access, so no second process can write (SQLite before 3.51.3 can corrupt a WAL that two connections write).
- `put(…, durable=False)` is for what may be lost with the power: it returns at once, and up to 50 records or a tenth of a
  second of them become one commit. It spares the card; `docs/adr/0014` has the figures.
- Alerts leave before everything else, otherwise the oldest first. When the file would outgrow its budget the oldest
  telemetry goes, then what is parked, then the oldest alerts: first those that the broker has had. Every loss is told in a
  `gap` record: count and time range, one per topic at a time, never dropped itself.
- Flash wears out by what is written to it: over its budget for the day (UTC) telemetry is dropped and told, alerts never.
- A file that cannot be read is moved aside (one is kept, for whoever wants to look) and the agent goes on.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edge import database
from edge.delivery import topics
from edge.errors import AccessError, CannotCreateError, StorageError

log = logging.getLogger(__name__)

Kind = Literal["alert", "telemetry"]
Build = Callable[[str], bytes]
"""Record id → payload."""

# The key is rank << 48 | sequence: one table, clustered in the order of delivery, and no second index to write.
_ALERT, _GAP, _TELEMETRY, _PARKED, _SENT = range(5)
_SHIFT = 48
_MAX_PARKED = 100
"""Refused records are evidence, and a hundred of them are enough of it."""
_LOG_BYTES = 1024 * 1024
"""Shorter, and it is copied into the database (two more syncs) more often than every few hundred records."""
_GROUP = 50
"""Records in one commit, at most. More gain little: the bytes written per byte kept no longer fall."""
_RETELL_S = 900.0
"""Over the day's budget losses are told, and written at all, this seldom: telling them is writing too."""
_GUESSED_PAGES = 8
"""Written by a commit, where the system does not tell how much it was: log and database, two pages and what they hang on."""
_DAY_NS = 24 * 3600 * 1_000_000_000
_VERSION = 2

# Version 1, as a new file begins too: so the way from an old file to a new one is walked every day.
_SCHEMA = (
    """CREATE TABLE record (
        key     INTEGER PRIMARY KEY,
        topic   TEXT NOT NULL,
        payload BLOB NOT NULL,
        time_ns INTEGER NOT NULL,  -- epoch, when it was put
        rank    INTEGER NOT NULL,  -- as it was put, also while it is parked
        reason  TEXT               -- why it is parked
    )""",
    """CREATE TABLE loss (        -- dropped and not yet told
        topic    TEXT PRIMARY KEY,
        count    INTEGER NOT NULL,
        first_ns INTEGER NOT NULL,
        last_ns  INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE TABLE tally (accepted INTEGER NOT NULL, delivered INTEGER NOT NULL, dropped INTEGER NOT NULL)",
    "INSERT INTO tally VALUES (0, 0, 0)",
)
_MIGRATIONS = {
    1: (
        """CREATE TABLE sent (        -- the broker has it, the application has not said that it has; few bytes, often written
            sequence INTEGER PRIMARY KEY,
            tries    INTEGER NOT NULL,
            due_ns   INTEGER NOT NULL  -- epoch, when it is to be sent again
        )""",
        "CREATE INDEX due ON sent (due_ns)",
        """CREATE TABLE start (       -- of which start a record is: its id says so, its sequence does not
            sequence INTEGER PRIMARY KEY,
            prefix   TEXT NOT NULL     -- empty: not known, of a file of version 1
        )""",
        "INSERT INTO start VALUES (0, '')",
        "ALTER TABLE loss ADD COLUMN reason TEXT NOT NULL DEFAULT 'outbox_full'",
        "ALTER TABLE tally ADD COLUMN day INTEGER NOT NULL DEFAULT 0",  # since the epoch
        "ALTER TABLE tally ADD COLUMN written INTEGER NOT NULL DEFAULT 0",  # bytes on that day, but for the last commit
    ),
}


def written_by_thread() -> int | None:
    """Bytes that the calling thread has handed to write calls so far. None where the system does not count them."""
    try:
        handle = os.open("/proc/thread-self/io", os.O_RDONLY)
    except OSError:
        return None
    try:
        for line in os.read(handle, 1024).splitlines():
            if line.startswith(b"wchar:"):
                return int(line[6:])
    finally:
        os.close(handle)
    return None


@dataclass(frozen=True, slots=True)
class Record:
    sequence: int
    topic: str
    payload: bytes
    time_ns: int
    """Epoch, when it was put."""
    alert: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the file was made. The first is the sum of the next four. Gap records count like any other."""

    accepted: int
    delivered: int
    waiting: int
    parked: int
    dropped: int
    awaiting: int = 0
    """Of the waiting ones: alerts that the broker has, and that the application has not acknowledged."""
    dropped_alerts: int = field(default=0, compare=False)
    """Of the dropped ones, since this start."""


@dataclass(frozen=True, slots=True)
class _Put:
    """A record that has been put and is not on disk yet."""

    rank: int
    sequence: int
    topic: str
    payload: bytes
    time_ns: int


class Outbox:
    """The file at `path`. A record's id is `<device>-<boot>-<sequence>`; `boot` must differ at every start of the agent.

    `max_bytes` bounds the database file; its write-ahead log takes about 1 MiB on top. `bytes_per_day` bounds what telemetry
    makes it write. `ack`: whose word it takes for the arrival of an alert. `resend_s`: first and longest pause before an alert
    is pending again that the application does not acknowledge; it doubles. `group_s`: how long what is put with
    `durable=False` may take to the disk. `clock` gives epoch nanoseconds, `written` the bytes that the calling thread has
    written so far, None where nobody knows.

    Raises `CannotCreateError` or `AccessError` when there is no place to write to, `DataError` when a newer amiss wrote it, and
    `StorageError` when another agent has the file, the disk is full or it fails. Later calls raise only `StorageError`, and
    then nothing has changed.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        boot: str,
        max_bytes: int = 64 * 1024 * 1024,
        bytes_per_day: int | None = None,
        ack: Literal["broker", "application"] = "broker",
        resend_s: tuple[float, float] = (30.0, 3600.0),
        group_s: float = 0.1,
        clock: Callable[[], int] = time.time_ns,
        written: Callable[[], int | None] = written_by_thread,
    ) -> None:
        self.path, self.max_bytes, self.bytes_per_day, self.ack = path, max_bytes, bytes_per_day, ack
        self.on_flush: Callable[[], None] = lambda: None
        """Called when a group is on disk, by whichever thread has brought it there."""
        self._prefix = f"{device}-{boot}-"
        self._device = device
        self._clock, self._written, self._group_s = clock, written, group_s
        self._resend_ns = round(1e9 * resend_s[0]), round(1e9 * resend_s[1])
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # of the group
        self._group: list[_Put] = []
        self._losses: dict[str, tuple[int, int, int]] = {}  # topic → count, first and last time; dropped before the disk saw it
        self._due_s = math.inf  # monotonic, when group and losses are to be on disk
        self._flusher: threading.Thread | None = None
        self._failure: BaseException | None = None  # of the flusher
        self._told_s = -math.inf  # monotonic, when losses were last told
        self._closed = False
        self._mute: set[str] = set()  # topics whose gap record was refused: the loss is told after the next start
        _ensure_writable(path)
        with self._guarded():
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not database.is_damage(error):
                    raise
                self._move_aside(error)
                self._open()

    def put(self, kind: Kind, topic: str, payload: Build | bytes, *, durable: bool = True) -> str:
        """Keep one record; returns its id once it is on disk. What a payload builder raises passes through.

        With `durable=False` it returns before: a crash within `group_s` may cost the record, and then nothing tells of it. No
        later record is on disk before it.
        """
        rank = _ALERT if kind == "alert" else _TELEMETRY
        with self._lock:
            self._check()
            if kind == "telemetry" and self._over_budget():
                return self._drop_unseen(topic)
            if durable:
                with self._transaction():
                    new = self._made(rank, topic, payload)
                    self._insert(new)
                    self._trim()
                return f"{self._prefix}{new.sequence}"
            if self._failure is not None:
                self._commit_group()  # what the flusher could not do; raises, and then nobody is told that this one is kept
            new = self._made(rank, topic, payload)
            self._group.append(new)
            if len(self._group) < _GROUP:
                self._flush_by(self._group_s)
                return f"{self._prefix}{new.sequence}"
            try:
                self._commit_group()
            except BaseException:
                self._group.remove(new)
                self._sequence -= 1
                raise
        self.on_flush()
        return f"{self._prefix}{new.sequence}"

    def flush(self) -> None:
        """What was put without being durable is on disk now."""
        with self._lock:
            if self._group or self._losses:
                self._commit_group()

    def pending(self, limit: int, besides: Collection[int] = ()) -> list[Record]:
        """Up to `limit` records to deliver, in that order, none whose sequence is in `besides`.

        Alerts, then alerts that are due again, then what tells of losses, then telemetry.
        """
        with self._lock:
            self._check()
            with self._guarded():
                tells = self._untold - self._mute and self._may_tell() and self._tellable()
            if tells:
                with contextlib.suppress(StorageError):  # on a full disk the loss is told later, the records now
                    self._tell_losses()
            with self._guarded():
                rows = self._between(_ALERT, _GAP, limit + len(besides))
                if self._counts.awaiting and len(rows) < limit + len(besides):
                    rows += self._connection.execute(
                        """SELECT key, topic, payload, record.time_ns FROM sent JOIN record ON key = ? | sent.sequence
                           WHERE due_ns <= ? ORDER BY due_ns, sent.sequence LIMIT ?""",
                        (_SENT << _SHIFT, self._clock(), limit + len(besides) - len(rows)),
                    ).fetchall()
                rows += self._between(_GAP, _PARKED, limit + len(besides) - len(rows))
        records = [_record(*row) for row in rows]
        return [record for record in records if record.sequence not in besides][:limit]

    def delivered(self, sequences: Collection[int]) -> None:
        """The broker has them: forget them, or with `ack="application"` let alerts await that.

        One that is gone already was counted as dropped or acknowledged and stays so.
        """
        with self._lock:
            try:
                self._forget(sequences)
            except StorageError:
                if not self._group:
                    raise
                self._forget(sequences, alone=True)  # on a full disk it may be this that makes room for the group

    def acknowledge(self, records: Collection[str]) -> list[str]:
        """The application has them: forget them, whatever the broker says. Returns those that are not, or no longer, here."""
        unknown = []
        with self._lock, self._transaction():
            for record in dict.fromkeys(records):  # one that is named twice is not unknown
                start, _, number = record.rpartition("-")
                sequence = int(number) if number.isascii() and number.isdigit() and len(number) < 15 else 0
                key = self._key(sequence)
                if key is None or not self._is_of(sequence, f"{start}-"):
                    unknown.append(record)
                    continue
                self._remove(sequence)
                self._count(**{"parked" if key >> _SHIFT == _PARKED else "waiting": -1}, delivered=1)
        return unknown

    def recall(self) -> None:
        """A new session: the broker may have lost what it had. What awaits its acknowledgement is due now, but nothing that was
        sent within the first of `resend_s`, however often sessions break."""
        if not self._counts.awaiting:
            return
        now_ns = self._clock()
        first_ns, longest_ns = self._resend_ns
        with self._lock, self._transaction():
            self._connection.execute(
                """UPDATE sent SET due_ns = ?1 WHERE due_ns > ?1 AND (
                   due_ns - min(?2 << min(tries - 1, 16), ?3) <= ?1 - ?2 OR due_ns > ?1 + ?3)""",  # the latter: clock set back
                (now_ns, first_ns, longest_ns),
            )

    def park(self, sequence: int, reason: str) -> None:
        """It cannot be delivered as things are: keep it out of the way of the others until the next start."""
        with self._lock, self._transaction():
            key = self._key(sequence)
            if key is None or key >> _SHIFT == _PARKED:
                return
            if key >> _SHIFT == _GAP:
                # Told again at once it would be refused again, push another parked record out, and so on without end.
                self._mute.add(self._connection.execute("SELECT topic FROM record WHERE key = ?", (key,)).fetchone()[0])
            if key >> _SHIFT == _SENT:
                self._connection.execute("DELETE FROM sent WHERE sequence = ?", (sequence,))
                self._count(awaiting=-1)
            self._connection.execute(
                "UPDATE record SET key = ?, reason = ? WHERE key = ?", (_PARKED << _SHIFT | sequence, reason, key)
            )
            self._count(waiting=-1, parked=1)
            if self._counts.parked > _MAX_PARKED:
                self._drop(self._oldest(_PARKED))
            self._trim()

    @property
    def counts(self) -> Counts:
        """What is on disk, and what the day's budget has cost."""
        return self._counts  # one attribute, replaced as a whole: needs no lock

    @property
    def written_bytes_today(self) -> int:
        """Handed to the disk since midnight (UTC), log and database; what the file system and the flash make of it is more."""
        return self._written_today if self._clock() // _DAY_NS == self._day else 0

    def live_bytes(self) -> int:
        """Bytes of the file that hold something; the rest is free for what comes."""
        with self._lock, self._guarded():
            return self._live_bytes()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._group or self._losses:
                    self._commit_group()
            except StorageError as error:
                log.error("%d records are lost: %s", len(self._group), error)
            finally:
                self._connection.close()
                self._news.notify_all()
        if self._flusher is not None and self._flusher is not threading.current_thread():
            self._flusher.join()

    def _flush_late(self) -> None:
        """The flusher's thread: what is put in a group and followed by nothing has to get to the disk all the same."""
        try:
            while True:
                with self._lock:
                    while not self._closed and (left_s := self._due_s - time.monotonic()) > 0:
                        self._news.wait(min(left_s, threading.TIMEOUT_MAX))
                    if self._closed:
                        return
                    try:
                        self._commit_group()
                    except StorageError as error:
                        if self._failure is None:
                            log.error("%s", error)
                        self._failure, self._due_s = error, time.monotonic() + 1.0
                        continue
                self.on_flush()
        except BaseException as error:
            self._failure = error
            raise

    # What follows is called with the lock held.

    def _open(self) -> None:
        with database.opened(self.path) as connection:
            self._page_bytes: int = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // self._page_bytes}")
            version = database.version(connection, self.path, _VERSION)
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                version = 1
            for old in range(version, _VERSION):
                for statement in _MIGRATIONS[old]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            accepted, delivered, dropped, self._day, self._written_today = connection.execute(
                "SELECT accepted, delivered, dropped, day, written FROM tally"
            ).fetchone()
            kept = connection.execute("SELECT count(*) FROM record").fetchone()[0]
            awaiting = connection.execute("SELECT count(*) FROM sent").fetchone()[0]
            self._untold = {topic for (topic,) in connection.execute("SELECT topic FROM loss")}
        self._counts = Counts(accepted, delivered, kept, 0, dropped, awaiting)
        self._sequence: int = accepted  # the last one given away
        self._connection = connection
        with self._transaction():
            # A new start is a new chance: rights and limits may have been put right while we were away.
            self._connection.execute(
                "UPDATE record SET key = key - ((? - rank) << ?), reason = NULL WHERE key >= ? AND key < ?",
                (_PARKED, _SHIFT, _PARKED << _SHIFT, _SENT << _SHIFT),
            )
            if self.ack == "broker" and awaiting:  # nobody will acknowledge them any more: once again, on the broker's word
                self._connection.execute(
                    "UPDATE record SET key = key - (? << ?) WHERE key >= ?", (_SENT - _ALERT, _SHIFT, _SENT << _SHIFT)
                )
                self._connection.execute("DELETE FROM sent")
                self._count(awaiting=-awaiting)
            oldest = self._connection.execute(f"SELECT min(key & {(1 << _SHIFT) - 1}) FROM record").fetchone()[0]
            self._connection.execute("INSERT OR REPLACE INTO start VALUES (?, ?)", (accepted + 1, self._prefix))
            self._connection.execute(
                "DELETE FROM start WHERE sequence < (SELECT max(sequence) FROM start WHERE sequence <= ?)",
                (accepted + 1 if oldest is None else oldest,),
            )
            self._trim()  # the budget may be a smaller one

    def _move_aside(self, error: Exception) -> None:
        aside = database.move_aside(self.path)
        log.error("%s: damaged (%s), moved to %s; what was not delivered from it is lost", self.path, error, aside)

    @contextlib.contextmanager
    def _transaction(self, *, alone: bool = False) -> Iterator[None]:
        """What is done inside is on disk afterwards, or has not happened: neither in the file nor in the counts.

        With it goes what has been put before and is not on disk: one commit serves all, and no later sequence is on disk
        before. `alone` leaves that out; then nothing may be inserted.
        """
        group = [] if alone else self._group
        counts, untold, mute, sequence = self._counts, set(self._untold), set(self._mute), self._sequence
        before = self._written()
        try:
            with self._guarded():
                self._connection.execute("BEGIN IMMEDIATE")
                for new in group:
                    self._insert(new)
                for topic, (count, first_ns, last_ns) in self._losses.items():
                    self._note_loss(topic, count, first_ns, last_ns, "disk_budget")
                if group:
                    self._trim()
                yield
                day = self._clock() // _DAY_NS
                if day != self._day:
                    self._day, self._written_today = day, 0
                self._connection.execute(
                    "UPDATE tally SET accepted = ?, delivered = ?, dropped = ?, day = ?, written = ?",
                    (self._counts.accepted, self._counts.delivered, self._counts.dropped, day, self._written_today),
                )
                self._commit()
        except BaseException:
            self._counts, self._untold, self._mute, self._sequence = counts, untold, mute, sequence
            if self._connection.in_transaction:  # SQLite itself rolls back on a full disk
                self._connection.execute("ROLLBACK")
            raise
        finally:
            after = self._written()
            if before is None or after is None:
                self._written_today += _GUESSED_PAGES * self._page_bytes
            else:
                self._written_today += after - before
        self._losses.clear()
        if alone:
            return
        self._group.clear()
        self._due_s = math.inf
        if isinstance(self._failure, StorageError):
            self._failure = None

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _guarded(self) -> AbstractContextManager[None]:
        return database.guarded(self.path, room="lower outbox_max_bytes")

    def _forget(self, sequences: Collection[int], *, alone: bool = False) -> None:
        with self._transaction(alone=alone):
            for sequence in sequences:
                key = self._key(sequence)
                rank = None if key is None else key >> _SHIFT
                if rank == _PARKED or rank is None:
                    continue
                if self.ack == "application" and rank in (_ALERT, _SENT):
                    self._await(sequence, known=rank == _SENT)
                else:
                    self._remove(sequence)
                    self._count(delivered=1, waiting=-1)
            self._trim()  # what is awaited takes a few bytes more

    def _check(self) -> None:
        """A bug that ended the flusher is everybody's."""
        if self._failure is not None and not isinstance(self._failure, StorageError):
            raise self._failure

    def _commit_group(self) -> None:
        with self._transaction():
            pass

    def _flush_by(self, pause_s: float) -> None:
        """Have the group on disk in that time, if nothing takes it along before."""
        due_s = time.monotonic() + pause_s
        if due_s < self._due_s:
            self._due_s = due_s
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._flush_late, name="outbox", daemon=True)
                self._flusher.start()
            self._news.notify_all()

    def _made(self, rank: int, topic: str, payload: Build | bytes) -> _Put:
        sequence = self._sequence + 1
        body = payload if isinstance(payload, bytes) else payload(f"{self._prefix}{sequence}")
        self._sequence = sequence
        return _Put(rank, sequence, topic, body, self._clock())

    def _insert(self, new: _Put) -> None:
        self._connection.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, NULL)",
            (new.rank << _SHIFT | new.sequence, new.topic, new.payload, new.time_ns, new.rank),
        )
        self._count(accepted=1, waiting=1)
        if len(new.payload) > self.max_bytes // 4:
            log.warning(
                "outbox: %d bytes for %s are too much for a budget of %d; dropped", len(new.payload), new.topic, self.max_bytes
            )
            self._drop(self._key(new.sequence))

    def _over_budget(self) -> bool:
        return self.bytes_per_day is not None and self.written_bytes_today >= self.bytes_per_day

    def _may_tell(self) -> bool:
        return not self._over_budget() or time.monotonic() - self._told_s >= _RETELL_S

    def _drop_unseen(self, topic: str) -> str:
        """Dropped and counted, without writing a byte for it now."""
        now_ns = self._clock()
        count, first_ns, last_ns = self._losses.get(topic, (0, now_ns, now_ns))
        self._losses[topic] = count + 1, min(first_ns, now_ns), max(last_ns, now_ns)
        self._sequence += 1
        self._count(accepted=1, dropped=1)
        self._flush_by(_RETELL_S)
        return f"{self._prefix}{self._sequence}"

    def _between(self, first: int, end: int, limit: int) -> list[tuple[int, str, bytes, int]]:
        return self._connection.execute(
            "SELECT key, topic, payload, time_ns FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (first << _SHIFT, end << _SHIFT, max(0, limit)),
        ).fetchall()

    def _await(self, sequence: int, *, known: bool) -> None:
        """Once more the broker has it."""
        first_ns, longest_ns = self._resend_ns
        if not known:
            self._connection.execute(
                "UPDATE record SET key = ? WHERE key = ?", (_SENT << _SHIFT | sequence, _ALERT << _SHIFT | sequence)
            )
            self._connection.execute("INSERT INTO sent VALUES (?, 0, 0)", (sequence,))
            self._count(awaiting=1)
        self._connection.execute(
            "UPDATE sent SET tries = tries + 1, due_ns = ?2 + min(?3 << min(tries, 16), ?4) WHERE sequence = ?1",
            (sequence, self._clock(), first_ns, longest_ns),
        )

    def _is_of(self, sequence: int, prefix: str) -> bool:
        """A sequence says little: a file that was damaged has been followed by one that counts anew."""
        row = self._connection.execute(
            "SELECT prefix FROM start WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1", (sequence,)
        ).fetchone()
        return row is not None and (row[0] == prefix or (row[0] == "" and prefix.startswith(f"{self._device}-")))

    def _remove(self, sequence: int) -> tuple[str, int]:
        """Topic and time of a record that is there, and is no more."""
        key = self._key(sequence)
        assert key is not None
        if key >> _SHIFT == _SENT:
            self._connection.execute("DELETE FROM sent WHERE sequence = ?", (sequence,))
            self._count(awaiting=-1)
        row = self._connection.execute("DELETE FROM record WHERE key = ? RETURNING topic, time_ns", (key,)).fetchone()
        return row[0], row[1]

    def _key(self, sequence: int) -> int | None:
        row = self._connection.execute(
            "SELECT key FROM record WHERE key IN (?, ?, ?, ?, ?)", tuple(rank << _SHIFT | sequence for rank in range(5))
        ).fetchone()
        return None if row is None else int(row[0])

    def _oldest(self, rank: int) -> int | None:
        row = self._connection.execute(
            "SELECT key FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT 1", (rank << _SHIFT, (rank + 1) << _SHIFT)
        ).fetchone()
        return None if row is None else int(row[0])

    def _trim(self) -> None:
        while self._live_bytes() > self.max_bytes:
            for rank in (_TELEMETRY, _PARKED, _SENT, _ALERT):
                if (key := self._oldest(rank)) is not None:
                    self._drop(key)
                    break
            else:
                return

    def _drop(self, key: int | None) -> None:
        if key is None:
            return
        rank = key >> _SHIFT
        if rank == _PARKED:
            rank = self._connection.execute("SELECT rank FROM record WHERE key = ?", (key,)).fetchone()[0]
        topic, time_ns = self._remove(key & ((1 << _SHIFT) - 1))
        self._count(dropped_alerts=int(rank in (_ALERT, _SENT)))
        self._note_loss(topic, 1, time_ns, time_ns, "outbox_full")
        if key >> _SHIFT == _PARKED:
            self._count(parked=-1, dropped=1)
        else:
            self._count(waiting=-1, dropped=1)

    def _note_loss(self, topic: str, count: int, first_ns: int, last_ns: int, reason: str) -> None:
        self._connection.execute(
            """INSERT INTO loss VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (topic) DO UPDATE
               SET count = count + ?2, first_ns = min(first_ns, ?3), last_ns = max(last_ns, ?4), reason = ?5""",
            (topic, count, first_ns, last_ns, reason),
        )
        self._untold.add(topic)

    def _tellable(self) -> list[str]:
        """Topics with losses to tell; one whose last gap record is still on its way keeps adding up."""
        told = self._connection.execute(
            "SELECT topic FROM record WHERE key >= ? AND key < ?", (_GAP << _SHIFT, (_GAP + 1) << _SHIFT)
        ).fetchall()
        return sorted(self._untold - self._mute - {topic for (topic,) in told})

    def _tell_losses(self) -> None:
        """Turn losses into gap records."""
        with self._transaction():
            for topic in self._tellable():  # asked again, because the transaction may have noted more
                count, first_ns, last_ns, reason = self._connection.execute(
                    "DELETE FROM loss WHERE topic = ? RETURNING count, first_ns, last_ns, reason", (topic,)
                ).fetchone()
                sequence = self._sequence = self._sequence + 1
                payload = topics.dropped_payload(
                    stream=topics.stream_of(topic),
                    record=f"{self._prefix}{sequence}",
                    count=count,
                    first_ns=first_ns,
                    last_ns=last_ns,
                    reason=reason,
                )
                self._insert(_Put(_GAP, sequence, topic, topics.encode(payload), self._clock()))
                self._untold.discard(topic)
            self._trim()
        self._told_s = time.monotonic()

    def _live_bytes(self) -> int:
        pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
        free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * self._page_bytes

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + by for name, by in more.items()})


def _record(key: int, topic: str, payload: bytes, time_ns: int) -> Record:
    return Record(key & ((1 << _SHIFT) - 1), topic, payload, time_ns, alert=key >> _SHIFT in (_ALERT, _SENT))


def _ensure_writable(file: Path) -> None:
    """SQLite would say of all of this only that it is unable to open the file, or that the disk fails."""
    path = file.parent
    try:
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for made in missing:  # a directory is only there for good once its parent is synced
            handle = os.open(made.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except PermissionError as error:
        raise AccessError(f"{path}: cannot be created: {error.strerror}; create it for the user that runs the agent") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: disk full; free some space there or choose another state_dir") from None
        raise CannotCreateError(f"{path}: cannot be created: {error.strerror}; choose another state_dir") from None
    for place in (path, file):
        if place.exists() and not os.access(place, os.W_OK):
            raise AccessError(f"{place}: not writable; give it to the user that runs the agent or choose another state_dir")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is in an outbox that no agent has open."""

    waiting: int
    oldest_ns: int | None
    """Epoch, of what waits."""
    parked: int
    reason: str
    """Why the newest parked record was refused."""


def look(path: Path) -> Backlog:
    """Look into the file without touching it: opening it would take its lock, and as root make files of root's.

    Raises `StorageError` when it is damaged or cannot be read, `DataError` when a newer amiss wrote it.
    """
    with tempfile.TemporaryDirectory(prefix="amiss-outbox-") as folder:
        copy = Path(folder) / "outbox.db"
        try:
            shutil.copyfile(path, copy)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
            with contextlib.closing(sqlite3.connect(copy)) as connection:
                database.check(connection)
                database.version(connection, path, _VERSION)
                waiting, oldest_ns = connection.execute(
                    "SELECT count(*), min(time_ns) FROM record WHERE reason IS NULL"
                ).fetchone()
                parked = connection.execute("SELECT count(*) FROM record WHERE reason IS NOT NULL").fetchone()[0]
                last = connection.execute("SELECT reason FROM record WHERE reason IS NOT NULL ORDER BY time_ns DESC LIMIT 1")
                reason = (last.fetchone() or ("",))[0]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise StorageError(f"{path}: damaged ({error}); the agent moves it aside at its next start and goes on") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}; run this as root") from None
    return Backlog(waiting, oldest_ns, parked, reason)
