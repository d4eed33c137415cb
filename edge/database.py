"""A SQLite file that one process has for itself, on a card that may fail: opened so that a commit is on the disk, its errors as
ours, and moved aside when it is damaged."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import AccessError, AmissError, CannotCreateError, DataError, StorageError

_CODE = 0xFF  # the rest of an error code says more than anybody asks for


class DamagedError(sqlite3.DatabaseError):
    """It opens, but it is not what we wrote."""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, held against everybody else, in a transaction that is committed in the end. The connection stays open, unless
    something is raised: what SQLite raises, and `DamagedError` when the file is not sound."""
    # Isolation level None: transactions are ours to begin and end. A second of patience, for an agent that is started again
    # while the old one still closes.
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")  # takes the lock, and EXCLUSIVE keeps it
        check(connection)
        yield connection
        connection.execute("COMMIT")
    except UnicodeDecodeError as error:  # Python's, of SQLite's message about bytes that are no text
        connection.close()
        raise DamagedError(str(error)) from None
    except BaseException:
        connection.close()
        raise


def check(connection: sqlite3.Connection) -> None:
    """Raises `DamagedError` when pages or indices do not agree."""
    if (found := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
        raise DamagedError(found)


def version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    """What wrote it; 0 of a new file. Raises `DataError` for a newer one than ours, `DamagedError` for none of ours."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if newest < found < 100:  # beyond that it is no version of ours but a damaged header
        raise DataError(f"{path}: written by a newer amiss; install that one again or move the file away")
    if not 0 <= found <= newest:
        raise DamagedError("not a file of ours")
    return found


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Everything that is not about the disk, the rights or somebody else: a damaged file has many ways to say so."""
    return isinstance(error, DamagedError) or getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _CODE not in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOMEM,
    )


def move_aside(path: Path) -> Path:
    """The file and what belongs to it; where it is now. Raises `StorageError`."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    except OSError as error:
        raise StorageError(f"{path}: damaged, and cannot be moved aside: {error.strerror}; move it yourself") from None
    return aside


@contextmanager
def guarded(path: Path, *, room: str = "") -> Iterator[None]:
    """SQLite's errors as ours; one that is not the disk's is a bug and passes as it is. `room`: what else makes some."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise explained(error, path, room) from error


def explained(error: sqlite3.DatabaseError, path: Path, room: str = "") -> AmissError | sqlite3.DatabaseError:
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _CODE:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StorageError(f"{path}: another agent is running with this state_dir; stop it or choose another one")
        case sqlite3.SQLITE_FULL:
            return StorageError(f"{path}: disk full; free some space there{f' or {room}' if room else ''}")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return AccessError(f"{path}: not writable; give it to the user that runs the agent")
        case sqlite3.SQLITE_CANTOPEN:
            return CannotCreateError(f"{path}: cannot be created or opened; check the directory or choose another state_dir")
        case sqlite3.SQLITE_IOERR:
            return StorageError(f"{path}: the disk fails ({error}); replace it")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StorageError(f"{path}: damaged ({error}); start the agent again, it moves the file aside and goes on")
    return error
