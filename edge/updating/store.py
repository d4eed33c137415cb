"""The models that a device has, and which of them it runs.

    <folder>/store/<sha256>.amiss    by content: a file that is there is whole, and is never written again
    <folder>/incoming/               downloads that are not done
    <folder>/models.db               which is which
    <folder>/models.json             the same once more, written first

              stage            switch             commit
    offer ───────────▶ pending ─────────▶ on trial ─────────▶ active ──▶ previous ──▶ gone
                          │ mark_bad  ◀───────┤ mark_bad         │ mark_bad
                          ▼          unswitch ▼                  ▼
                         bad                 bad                bad, and `previous` is active

- A transition happens whole or not at all: one SQLite transaction (FULL, WAL, EXCLUSIVE).
- `active` and `previous` were both committed: what is on trial takes the place of neither until it has proved itself.
- The floor is the highest number ever committed. It rises and never falls: it is the higher of what the two records say, and
  a loss of either costs nothing. So with what is bad and with the newest signed time.
- A file is written beside, synced, renamed, and its folder synced; its SHA-256 is computed again whenever it is served.
- Where nothing else can be served the factory's model is: the file that the configuration names, which is never touched.
- A database that cannot be read is moved aside; `models.json` says where we were.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge import database
from edge.errors import (
    AccessError,
    BundleError,
    CannotCreateError,
    NoInputError,
    StorageError,
    UnfitError,
    UsageError,
)
from edge.updating.offer import Digest, Offer

log = logging.getLogger(__name__)

RESERVE_BYTES = 8 * 1024 * 1024
"""Left on the disk by a download: outbox and system want to go on writing."""
STORE = "store"
MOST_TRIES = 3
"""Starts that a model on trial is given. Power fails, so one is not enough; a model that kills the agent does so every time."""
MOST_BAD = 256
"""Digests that are remembered as bad; the oldest go first."""
_VERSION = 1
_SCHEMA = (
    "CREATE TABLE model (digest TEXT PRIMARY KEY, number INTEGER NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL) STRICT",
    """CREATE TABLE state (
        one      INTEGER PRIMARY KEY CHECK (one = 1),
        active   TEXT REFERENCES model,   -- NULL: the factory's
        previous TEXT REFERENCES model,
        pending  TEXT REFERENCES model,
        trying   INTEGER NOT NULL,        -- pending is the one that runs
        tries    INTEGER NOT NULL,        -- starts since it does
        floor    INTEGER NOT NULL,        -- highest number ever committed
        time_s   REAL NOT NULL,           -- newest signed time seen, epoch
        sha256   TEXT NOT NULL            -- of all of it: SQLite does not notice a flipped bit in a value
    ) STRICT""",
    "CREATE TABLE bad (digest TEXT PRIMARY KEY, reason TEXT NOT NULL, sequence INTEGER NOT NULL) STRICT",
)


class Model(msgspec.Struct, frozen=True):
    """One bundle that came from a repository."""

    digest: Digest
    number: int
    """As in its offer."""
    name: str = ""
    version: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known but the files themselves."""

    active: Model | None = None
    """Committed last. None: the factory's."""
    previous: Model | None = None
    """Committed before that."""
    pending: Model | None = None
    """Fetched, and not committed."""
    trying: bool = False
    """`pending` is the one that runs."""
    tries: int = 0
    """Starts of the agent since then."""
    floor: int = 0
    time_s: float = 0.0
    """Newest signed time seen, epoch seconds."""
    bad: dict[str, str] = {}
    """Digest → why; the newest last."""


class _Copy(msgspec.Struct, frozen=True):
    """models.json"""

    state: msgspec.Raw
    sha256: str
    """Of the bytes of `state`: what is half there, or zeroed and patched, is no record."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What is to be run now; its file had the digest a moment ago."""

    path: Path
    digest: str
    number: int
    """0: the factory's."""
    role: Literal["trial", "active", "previous", "factory"]


def glance(folder: Path) -> Serving | None:
    """What is to be run, for who only looks while an agent has the database. None: nothing was ever switched to here, or the
    record cannot be read."""
    state = _read_copy(folder / "models.json")
    model = (state.pending if state.trying else state.active) if state else None
    if model is None:
        return None
    return Serving(
        folder / STORE / f"{model.digest}.amiss", model.digest, model.number, "trial" if state and state.trying else "active"
    )


class Models:
    """The folder's models. `factory` is the bundle of the configuration.

    Any thread may call; `free_bytes` tells how much room the file system of a folder has.

    Raises `CannotCreateError`, `AccessError` or `StorageError` when it cannot be opened, and `DataError` when a newer amiss
    wrote it. Later calls raise `StorageError`, and then nothing has changed.
    """

    def __init__(
        self,
        folder: Path,
        factory: Path,
        *,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self.folder, self.factory = folder, factory
        self._free_bytes = free_bytes
        self._lock = threading.RLock()
        self._fresh: str | None = None  # digest of the newest that was put, and not staged yet
        self._database, self._copy = folder / "models.db", folder / "models.json"
        with _disk(folder):
            for place in (folder, self.store, self.incoming):
                place.mkdir(parents=True, exist_ok=True)
        copy = _read_copy(self._copy)
        with self._guarded():
            try:
                found = self._open()
            except sqlite3.DatabaseError as error:
                if not database.is_damage(error):
                    raise
                self._move_aside(error)
                found = self._open()
        self._state = State()
        with self._guarded():
            wanted = _joined(found, copy)
            # Also where nothing is new: a copy that was lost is there again.
            if found != wanted or copy != wanted:
                self._write(wanted)
        self._state = wanted
        self._sweep()

    @property
    def store(self) -> Path:
        return self.folder / STORE

    @property
    def incoming(self) -> Path:
        """Where downloads grow; on the file system of the store."""
        return self.folder / "incoming"

    @property
    def state(self) -> State:
        return self._state  # one attribute, replaced as a whole: needs no lock

    @property
    def active(self) -> Model | None:
        """Committed last; None: the factory's model. Not what runs while another is on trial (`serve`)."""
        return self._state.active

    @property
    def previous(self) -> Model | None:
        return self._state.previous

    @property
    def pending(self) -> Model | None:
        return self._state.pending

    @property
    def trying(self) -> bool:
        return self._state.trying

    @property
    def tries(self) -> int:
        return self._state.tries

    @property
    def floor(self) -> int:
        return self._state.floor

    @property
    def bad(self) -> dict[str, str]:
        """Digest → why it was found bad."""
        return dict(self._state.bad)

    @property
    def lost(self) -> str | None:
        """Digest of the active model when its file is not there, or not what it was."""
        active = self._state.active
        return active.digest if active is not None and not self._is_whole(active.digest) else None

    def path(self, digest: str) -> Path:
        return self.store / f"{digest}.amiss"

    # Files.

    def holds(self, digest: str) -> bool:
        """Its file is in the store, and whole; and it stays there for now, staged or not."""
        with self._lock:
            if not self._is_whole(digest):
                return False
            self._fresh = digest
            return True

    def room_for(self, size: int) -> None:
        """Raises `StorageError` when so many bytes more would leave too little on the disk. Nothing is written."""
        with _disk(self.folder):
            free = self._free_bytes(self.folder)
        if free < size + RESERVE_BYTES:
            raise StorageError(
                f"{self.folder}: {size} bytes do not fit: {free} are free and {RESERVE_BYTES} stay so; free some space there"
            )

    def put(self, download: Path, digest: str) -> Path:
        """Move a bundle from `incoming` into the store; returns its file once that is on the disk.

        Raises `BundleError` when it does not have the digest, `StorageError`, and then nothing is in the store.
        """
        path = self.path(digest)
        with self._lock, _disk(self.store):
            if self.holds(digest):
                download.unlink(missing_ok=True)
                return path
            self._adopt(download, digest)
            self._fresh = digest
        return path

    def _adopt(self, download: Path, digest: str) -> None:
        if _digest_of(download) != digest:
            download.unlink(missing_ok=True)
            raise BundleError(f"{download.name}: not the file that was signed; fetch it again")
        with download.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(download, self.path(digest))
        _sync_folder(self.store)

    def _is_whole(self, digest: str) -> bool:
        try:
            return _digest_of(self.path(digest)) == digest
        except OSError:
            return False

    # Transitions.

    def stage(self, offer: Offer | Model) -> None:
        """Its bundle is in the store, and it is what is tried next. The previous one, when it is offered under a new number, is
        only that from now on. Raises `UnfitError` for what may not be tried."""
        model = offer if isinstance(offer, Model) else Model(offer.digest, offer.number, offer.name, offer.version)
        with self._lock:
            state = self._state
            if state.trying:
                raise UnfitError("another model is on trial; wait until that is over")
            if model.digest in state.bad:
                raise UnfitError(f"model {model.number} was found bad here: {state.bad[model.digest]}")
            if model.number <= state.floor:
                raise UnfitError(f"model {model.number} is not newer than {state.floor}, which has been committed here")
            if not self._is_whole(model.digest):
                raise UnfitError(f"model {model.number} is not in the store; fetch it first")
            again = state.previous is not None and state.previous.digest == model.digest
            self._change(previous=None if again else state.previous, pending=model, tries=0)

    def switch(self) -> Serving:
        """Try the pending model from now on. Raises `UsageError` when there is none, `UnfitError` when its file is damaged."""
        with self._lock:
            pending = self._state.pending
            if pending is None or self._state.trying:
                raise UsageError("no model waits to be tried")
            if not self._is_whole(pending.digest):
                self._change(pending=None)
                raise UnfitError(f"the file of model {pending.number} is damaged; it will be fetched again")
            self._change(trying=True, tries=0)
            return self._serving(pending, "trial")

    def unswitch(self) -> None:
        """The model on trial waits again, and is not bad: it did not come to run. Again it changes nothing."""
        with self._lock:
            if self._state.trying:
                self._change(trying=False, tries=0)

    def commit(self) -> None:
        """The model on trial has proved itself: it is active, and its number is the floor."""
        with self._lock:
            state = self._state
            if state.pending is None or not state.trying:
                raise UsageError("no model is on trial")
            self._change(
                previous=state.active,
                active=state.pending,
                pending=None,
                trying=False,
                tries=0,
                floor=max(state.floor, state.pending.number),
            )

    def mark_bad(self, digest: str, reason: str) -> None:
        """It is never tried again, and nothing runs it any more: `serve` says what does. Again it changes nothing."""
        with self._lock:
            if digest in self._state.bad:
                return
            self._change(bad=_noted(self._state.bad, {digest: reason[:500] or "no reason was given"}))

    def note_time(self, time_s: float) -> None:
        """The newest signed time seen; an older one changes nothing. It is kept to the hour, to spare the disk."""
        with self._lock:
            if time_s >= self._state.time_s + 3600.0:
                self._change(time_s=float(time_s))

    def count_anew(self) -> None:
        """What its starts so far came to is no fault of the model on trial."""
        with self._lock:
            if self._state.tries:
                self._change(tries=0)

    def start(self) -> Serving:
        """What to run now that the agent starts: counts the start of a model on trial, and takes it back after `MOST_TRIES`.

        Raises like `serve`.
        """
        with self._lock:
            state = self._state
            if state.trying and state.pending is not None:
                if state.tries >= MOST_TRIES:
                    self.mark_bad(state.pending.digest, f"did not get through its trial in {state.tries} starts")
                else:
                    self._change(tries=state.tries + 1)
            return self.serve()

    def serve(self, but: Collection[str] = ()) -> Serving:
        """The model on trial, else the active one, else the previous one, else the factory's: the first that is whole, and
        whose digest is not one of `but`.

        Raises `NoInputError` when the factory's is not there, and no other is.
        """
        with self._lock:
            state = self._state
            if state.trying and state.pending is not None and state.pending.digest not in but:
                if self._is_whole(state.pending.digest):
                    return self._serving(state.pending, "trial")
                log.error("model %d on trial is damaged on the disk", state.pending.number)
                self._change(pending=None, trying=False, tries=0)  # not bad: it may be fetched again
            for model, role in ((state.active, "active"), (state.previous, "previous")):
                if model is None or model.digest in but:
                    continue
                if self._is_whole(model.digest):
                    return self._serving(model, "active" if role == "active" else "previous")
                log.error("the %s model, number %d, is damaged or not there", role, model.number)
            try:
                found = _digest_of(self.factory)
            except OSError as error:
                raise NoInputError(f"{self.factory}: cannot be read: {error.strerror}") from None
            return Serving(self.factory, found, 0, "factory")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _serving(self, model: Model, role: Literal["trial", "active", "previous"]) -> Serving:
        return Serving(self.path(model.digest), model.digest, model.number, role)

    # Records.

    def _change(self, **changes: Any) -> None:
        new = _consistent(msgspec.structs.replace(self._state, **changes))
        with self._guarded():
            self._write(new)
        self._state = new
        self._sweep()

    def _write(self, new: State) -> None:
        """The copy first: floor and bad are believed from whichever record says more, so it may be ahead and never behind."""
        self._write_copy(new)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for table in ("state", "model", "bad"):
                self._connection.execute(f"DELETE FROM {table}")
            models = {model.digest: model for model in (new.active, new.previous, new.pending) if model is not None}
            self._connection.executemany(
                "INSERT INTO model VALUES (?, ?, ?, ?)", [msgspec.structs.astuple(model) for model in models.values()]
            )
            self._connection.executemany(
                "INSERT INTO bad VALUES (?, ?, ?)", [(digest, why, i) for i, (digest, why) in enumerate(new.bad.items())]
            )
            names = [model.digest if model is not None else None for model in (new.active, new.previous, new.pending)]
            self._connection.execute(
                "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*names, new.trying, new.tries, new.floor, new.time_s, _sum(new)),
            )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write_copy(self, new: State) -> None:
        body = msgspec.json.encode(new)
        data = msgspec.json.encode(_Copy(msgspec.Raw(body), hashlib.sha256(body).hexdigest()))
        draft = self._copy.with_suffix(".json.part")
        with _disk(self._copy):
            with draft.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            os.replace(draft, self._copy)
            _sync_folder(self.folder)

    def _open(self) -> State | None:
        with database.opened(self._database) as connection:
            if database.version(connection, self._database, _VERSION) == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            state = _read(connection)
        self._connection = connection
        return state

    def _move_aside(self, error: Exception) -> None:
        aside = database.move_aside(self._database)
        log.error("%s: damaged (%s), moved to %s; %s says where we were", self._database, error, aside, self._copy.name)

    def _sweep(self) -> None:
        """Active, previous and pending stay, the newest that was put, and one unfinished download; the rest goes, and so does
        what is bad. What cannot go now goes later."""
        state = self._state
        keep = {model.digest for model in (state.active, state.previous, state.pending) if model is not None}
        if self._fresh is not None and self._fresh not in state.bad:
            keep.add(self._fresh)
        names = {f"{digest}.amiss" for digest in keep}
        with contextlib.suppress(OSError):
            for entry in self.store.iterdir():
                if entry.name not in names:
                    with contextlib.suppress(OSError):
                        entry.unlink()
        with contextlib.suppress(OSError):
            unfinished = sorted(self.incoming.glob("*.amiss*"), key=lambda entry: entry.stat().st_mtime)
            for entry in unfinished[:-1]:
                with contextlib.suppress(OSError):
                    entry.unlink()

    def _guarded(self) -> AbstractContextManager[None]:
        return database.guarded(self._database)


def _read_copy(file: Path) -> State | None:
    try:
        copy = msgspec.json.decode(file.read_bytes(), type=_Copy)
        if hashlib.sha256(copy.state).hexdigest() != copy.sha256:
            raise msgspec.ValidationError("not the bytes that were written")
        return msgspec.json.decode(copy.state, type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("%s: cannot be read (%s); the database alone counts", file, error)
        return None


def _read(connection: sqlite3.Connection) -> State | None:
    """None: of a new file. Raises `database.DamagedError` for rows that no version of ours has written."""
    rows = connection.execute("SELECT active, previous, pending, trying, tries, floor, time_s, sha256 FROM state").fetchall()
    if not rows:
        return None
    try:
        models: dict[str | None, Model] = {
            row[0]: msgspec.convert(dict(zip(("digest", "number", "name", "version"), row, strict=True)), Model)
            for row in connection.execute("SELECT digest, number, name, version FROM model")
        }
        active, previous, pending, trying, tries, floor, time_s, said = rows[0]
        state = State(
            active=None if active is None else models[active],
            previous=None if previous is None else models[previous],
            pending=None if pending is None else models[pending],
            trying=bool(trying),
            tries=tries,
            floor=floor,
            time_s=time_s,
            bad=dict(connection.execute("SELECT digest, reason FROM bad ORDER BY sequence").fetchall()),
        )
        if _sum(state) != said:
            raise database.DamagedError("not the values that were written")
        return state
    except (KeyError, TypeError, ValueError) as error:  # those of msgspec are ValueErrors
        raise database.DamagedError(f"rows that make no sense: {error}") from None


def _sum(state: State) -> str:
    return hashlib.sha256(msgspec.json.encode(state)).hexdigest()


def _joined(found: State | None, copy: State | None) -> State:
    """The database says which is which, unless the copy has seen a later commit. Of time and what is bad both are believed."""
    if found is None or copy is None:
        return _consistent(found or copy or State())
    return _consistent(
        msgspec.structs.replace(
            copy if copy.floor > found.floor else found,
            time_s=max(found.time_s, copy.time_s),
            bad=found.bad if found.bad == copy.bad else _noted(found.bad, copy.bad),
        )
    )


def _consistent(state: State) -> State:
    """Nothing runs, or waits to, that is bad or that is no longer new."""
    active, previous, pending = state.active, state.previous, state.pending
    if previous is not None and previous.digest in state.bad:
        previous = None
    if active is not None and active.digest in state.bad:
        active, previous = previous, None
    if pending is not None and (pending.digest in state.bad or (pending.number <= state.floor and not state.trying)):
        pending = None
    trying = state.trying and pending is not None
    tries = state.tries if trying else 0
    return msgspec.structs.replace(state, active=active, previous=previous, pending=pending, trying=trying, tries=tries)


def _noted(bad: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    together = {**{digest: why for digest, why in bad.items() if digest not in more}, **more}
    return dict(list(together.items())[-MOST_BAD:])


@contextlib.contextmanager
def _disk(place: Path) -> Iterator[None]:
    """What the operating system says, as what the caller can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{place}: disk full; free some space there") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessError(f"{place}: not writable; give it to the user that runs the agent") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise CannotCreateError(f"{place}: something else is in the way; move it") from error
        raise StorageError(f"{place}: the disk fails ({error.strerror or error}); replace it") from error


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Unlike `edge.files` with its errors: a name that may be gone after a power cut is not in the store."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)
