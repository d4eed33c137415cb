"""Store and forward: what `put` has returned for is on disk, and leaves it only delivered or counted as dropped.

    accepted = delivered + waiting + parked + dropped        to the record, whatever is killed and when

- One connection, under one lock, used by two threads: inference puts, delivery drains.
- WAL with `synchronous=FULL`: a commit is on the disk before `put` returns. `locking_mode=EXCLUSIVE` is set before the first
  access, so no second process can write (SQLite before 3.51.3 can corrupt a WAL that two connections write).
- Alerts leave before everything else, otherwise the oldest first. When the file would outgrow its budget the oldest
  telemetry goes, then what is parked, then the oldest alerts. Every loss is told in a `gap` record: count and time range,
  one per topic at a time, never dropped itself.
- A file that cannot be read is moved aside (one is kept, for whoever wants to look) and the agent goes on.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edge.delivery import topics
from edge.errors import AccessError, AmissError, CannotCreateError, StorageError

log = logging.getLogger(__name__)

Kind = Literal["alert", "telemetry"]
Build = Callable[[str], bytes]
"""Record id → payload."""

# The key is rank << 48 | sequence: one table, clustered in the order of delivery, and no second index to write.
_ALERT, _GAP, _TELEMETRY, _PARKED = range(4)
_SHIFT = 48
_MAX_PARKED = 100
"""Refused records are evidence, and a hundred of them are enough of it."""
_LOG_BYTES = 1024 * 1024
"""Shorter, and it is copied into the database (two more syncs) more often than every few hundred records."""
_VERSION = 1

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
    f"PRAGMA user_version = {_VERSION}",
)


@dataclass(frozen=True, slots=True)
class Record:
    sequence: int
    topic: str
    payload: bytes
    time_ns: int
    """Epoch, when it was put."""
    reason: str | None = None
    """Why it is parked."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the file was made. The first is the sum of the others. Gap records count like any other."""

    accepted: int
    delivered: int
    waiting: int
    parked: int
    dropped: int


class Outbox:
    """The file at `path`. A record's id is `<device>-<boot>-<sequence>`; `boot` must differ at every start of the agent.

    `max_bytes` bounds the database file; its write-ahead log takes about 1 MiB on top. `clock` gives epoch nanoseconds.

    Raises `CannotCreateError` or `AccessError` when there is no place to write to, and `StorageError` when another agent
    has the file, the disk is full or it fails. Later calls raise only `StorageError`, and then nothing has changed.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        boot: str,
        max_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.moved_aside = 0
        """Damaged files found by this start: 0 or 1."""
        self._prefix = f"{device}-{boot}-"
        self._clock = clock
        self._lock = threading.Lock()
        self._mute: set[str] = set()  # topics whose gap record was refused: the loss is told after the next start
        _ensure_writable(path)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise self._explained(error) from error
            self._move_aside(error)
            try:
                self._open()
            except sqlite3.DatabaseError as again:
                raise self._explained(again) from again

    def put(self, kind: Kind, topic: str, payload: Build | bytes) -> str:
        """Keep one record; returns its id once it is on disk. What a payload builder raises passes through."""
        with self._lock, self._transaction():
            sequence = self._counts.accepted + 1
            record = f"{self._prefix}{sequence}"
            body = payload if isinstance(payload, bytes) else payload(record)
            self._insert(_ALERT if kind == "alert" else _TELEMETRY, sequence, topic, body)
            if len(body) > self.max_bytes // 4:
                log.warning(
                    "outbox: %d bytes for %s are too much for a budget of %d; dropped", len(body), topic, self.max_bytes
                )
                self._drop(self._key(sequence))
            self._trim()
        return record

    def pending(self, limit: int, besides: Collection[int] = ()) -> list[Record]:
        """Up to `limit` records to deliver, in that order, none whose sequence is in `besides`."""
        with self._lock:
            if self._untold - self._mute:
                with contextlib.suppress(StorageError):  # on a full disk the loss is told later, the records now
                    self._tell_losses()
            with self._guarded():
                rows = self._connection.execute(
                    "SELECT key, topic, payload, time_ns FROM record WHERE key < ? ORDER BY key LIMIT ?",
                    (_PARKED << _SHIFT, limit + len(besides)),
                ).fetchall()
        records = [_record(*row) for row in rows]
        return [record for record in records if record.sequence not in besides][:limit]

    def delivered(self, sequences: Collection[int]) -> None:
        """They have arrived: forget them. One that is gone already was counted as dropped and stays so."""
        with self._lock, self._transaction():
            for sequence in sequences:
                if (key := self._key(sequence)) is not None and key >> _SHIFT != _PARKED:
                    self._connection.execute("DELETE FROM record WHERE key = ?", (key,))
                    self._count(delivered=1, waiting=-1)

    def park(self, sequence: int, reason: str) -> None:
        """It cannot be delivered as things are: keep it out of the way of the others until the next start."""
        with self._lock, self._transaction():
            key = self._key(sequence)
            if key is None or key >> _SHIFT == _PARKED:
                return
            if key >> _SHIFT == _GAP:
                # Told again at once it would be refused again, push another parked record out, and so on without end.
                self._mute.add(self._connection.execute("SELECT topic FROM record WHERE key = ?", (key,)).fetchone()[0])
            self._connection.execute(
                "UPDATE record SET key = ?, reason = ? WHERE key = ?", (_PARKED << _SHIFT | sequence, reason, key)
            )
            self._count(waiting=-1, parked=1)
            if self._counts.parked > _MAX_PARKED:
                self._drop(self._oldest(_PARKED))
            self._trim()

    def parked(self) -> list[Record]:
        """What was refused since the start, and why; oldest first."""
        with self._lock, self._guarded():
            rows = self._connection.execute(
                "SELECT key, topic, payload, time_ns, reason FROM record WHERE key >= ? ORDER BY key", (_PARKED << _SHIFT,)
            ).fetchall()
        return [_record(*row) for row in rows]

    @property
    def counts(self) -> Counts:
        return self._counts  # one attribute, replaced as a whole: needs no lock

    def live_bytes(self) -> int:
        """Bytes of the file that hold something; the rest is free for what comes."""
        with self._lock, self._guarded():
            return self._live_bytes()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # What follows is called with the lock held.

    def _open(self) -> None:
        # Isolation level None: transactions are ours to begin and end. A second of patience, for an agent that is started
        # again while the old one still closes.
        connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._page_bytes: int = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // self._page_bytes}")
            connection.execute("BEGIN IMMEDIATE")  # takes the lock, and EXCLUSIVE keeps it
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
            elif _VERSION < version < 100:  # beyond that it is no version of ours but a damaged header
                raise StorageError(f"{self.path}: written by a newer amiss; install that one again or move the file away")
            elif version != _VERSION:
                raise _Damaged("not an outbox")
            if (found := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise _Damaged(found)
            accepted, delivered, dropped = connection.execute("SELECT accepted, delivered, dropped FROM tally").fetchone()
            kept = connection.execute("SELECT count(*) FROM record").fetchone()[0]
            self._untold = {topic for (topic,) in connection.execute("SELECT topic FROM loss")}
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._counts = Counts(accepted, delivered, kept, 0, dropped)
        self._connection = connection
        with self._transaction():
            # A new start is a new chance: rights and limits may have been put right while we were away.
            self._connection.execute(
                "UPDATE record SET key = key - ((? - rank) << ?), reason = NULL WHERE key >= ?",
                (_PARKED, _SHIFT, _PARKED << _SHIFT),
            )
            self._trim()  # the budget may be a smaller one

    def _move_aside(self, error: Exception) -> None:
        aside = f"{self.path}.damaged"
        with self._guarded():
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        self.moved_aside = 1
        log.error("%s: damaged (%s), moved to %s; what was not delivered from it is lost", self.path, error, aside)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is done inside is on disk afterwards, or has not happened: neither in the file nor in the counts."""
        counts, untold, mute = self._counts, set(self._untold), set(self._mute)
        try:
            with self._guarded():
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute(
                    "UPDATE tally SET accepted = ?, delivered = ?, dropped = ?",
                    (self._counts.accepted, self._counts.delivered, self._counts.dropped),
                )
                self._commit()
        except BaseException:
            self._counts, self._untold, self._mute = counts, untold, mute
            if self._connection.in_transaction:  # SQLite itself rolls back on a full disk
                self._connection.execute("ROLLBACK")
            raise

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """SQLite's errors as ours; one that is not the disk's is a bug and passes as it is."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.DatabaseError) -> AmissError | sqlite3.DatabaseError:
        match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StorageError(f"{self.path}: another agent is running with this state_dir; stop it or choose another one")
            case sqlite3.SQLITE_FULL:
                return StorageError(f"{self.path}: disk full; free some space there or lower outbox_max_bytes")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return AccessError(f"{self.path}: not writable; give it to the user that runs the agent")
            case sqlite3.SQLITE_CANTOPEN:
                return CannotCreateError(
                    f"{self.path}: cannot be created or opened; check the directory or choose another state_dir"
                )
            case sqlite3.SQLITE_IOERR:
                return StorageError(f"{self.path}: the disk fails ({error}); replace it")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return StorageError(
                    f"{self.path}: damaged ({error}); start the agent again, it moves the file aside and goes on"
                )
        return error

    def _insert(self, rank: int, sequence: int, topic: str, payload: bytes, time_ns: int | None = None) -> None:
        self._connection.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, NULL)",
            (rank << _SHIFT | sequence, topic, payload, self._clock() if time_ns is None else time_ns, rank),
        )
        self._count(accepted=1, waiting=1)

    def _key(self, sequence: int) -> int | None:
        row = self._connection.execute(
            "SELECT key FROM record WHERE key IN (?, ?, ?, ?)", tuple(rank << _SHIFT | sequence for rank in range(4))
        ).fetchone()
        return None if row is None else int(row[0])

    def _oldest(self, rank: int) -> int | None:
        row = self._connection.execute(
            "SELECT key FROM record WHERE key >= ? AND key < ? ORDER BY key LIMIT 1", (rank << _SHIFT, (rank + 1) << _SHIFT)
        ).fetchone()
        return None if row is None else int(row[0])

    def _trim(self) -> None:
        while self._live_bytes() > self.max_bytes:
            for rank in (_TELEMETRY, _PARKED, _ALERT):
                if (key := self._oldest(rank)) is not None:
                    self._drop(key)
                    break
            else:
                return

    def _drop(self, key: int | None) -> None:
        if key is None:
            return
        topic, time_ns = self._connection.execute(
            "DELETE FROM record WHERE key = ? RETURNING topic, time_ns", (key,)
        ).fetchone()
        self._connection.execute(
            """INSERT INTO loss VALUES (?1, 1, ?2, ?2) ON CONFLICT (topic) DO UPDATE
               SET count = count + 1, first_ns = min(first_ns, ?2), last_ns = max(last_ns, ?2)""",
            (topic, time_ns),
        )
        self._untold.add(topic)
        if key >> _SHIFT == _PARKED:
            self._count(parked=-1, dropped=1)
        else:
            self._count(waiting=-1, dropped=1)

    def _tell_losses(self) -> None:
        """Turn losses into gap records; a topic whose last one is still on its way keeps adding up."""
        with self._transaction():
            told = self._connection.execute(
                "SELECT topic FROM record WHERE key >= ? AND key < ?", (_GAP << _SHIFT, (_GAP + 1) << _SHIFT)
            ).fetchall()
            for topic in sorted(self._untold - self._mute - {topic for (topic,) in told}):
                count, first_ns, last_ns = self._connection.execute(
                    "DELETE FROM loss WHERE topic = ? RETURNING count, first_ns, last_ns", (topic,)
                ).fetchone()
                sequence = self._counts.accepted + 1
                payload = topics.dropped_payload(
                    stream=topics.stream_of(topic),
                    record=f"{self._prefix}{sequence}",
                    count=count,
                    first_ns=first_ns,
                    last_ns=last_ns,
                )
                self._insert(_GAP, sequence, topic, topics.encode(payload))
                self._untold.discard(topic)
            self._trim()

    def _live_bytes(self) -> int:
        pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
        free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * self._page_bytes

    def _count(self, *, accepted: int = 0, delivered: int = 0, waiting: int = 0, parked: int = 0, dropped: int = 0) -> None:
        counts = self._counts
        self._counts = replace(
            counts,
            accepted=counts.accepted + accepted,
            delivered=counts.delivered + delivered,
            waiting=counts.waiting + waiting,
            parked=counts.parked + parked,
            dropped=counts.dropped + dropped,
        )


class _Damaged(sqlite3.DatabaseError):
    """It opens, but it is not what we wrote."""


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # SQLITE_ERROR while opening means a schema that is not ours.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return isinstance(error, _Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _record(key: int, topic: str, payload: bytes, time_ns: int, reason: str | None = None) -> Record:
    return Record(key & ((1 << _SHIFT) - 1), topic, payload, time_ns, reason)


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
