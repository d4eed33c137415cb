"""Roll-outs on disk: what was planned, where each device is, what was decided. SQLite in a file, or PostgreSQL by its URL, for
those whose controller moves between computers.

One controller at a time drives a roll-out: it holds a lease, which it renews; when it dies another one can take over.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import msgspec
import sqlalchemy as sa

from deploy.rollout import Member, Plan, State
from edge.errors import AccessError, BusyError, CannotCreateError, DataError, NoInputError, StorageError

LEASE_S = 20.0
_SCHEMA = 1


def _column(name: str, hint: Any) -> sa.Column[Any]:
    """A field of `Member`, as a column."""
    kinds = set(get_args(hint)) if NoneType in get_args(hint) else {hint}
    kind = next(
        (sql for python, sql in ((bool, sa.Boolean()), (float, sa.Float(53)), (int, sa.BigInteger())) if python in kinds),
        sa.Text(),
    )
    return sa.Column(name, kind, primary_key=name == "device", nullable=NoneType in kinds)


_metadata = sa.MetaData()
_about = sa.Table("amiss_schema", _metadata, sa.Column("version", sa.Integer, nullable=False))
_rollouts = sa.Table(
    "rollout",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),  # JSON
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("broker", sa.Text, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("began_s", sa.Float(53), nullable=False),
    sa.Column("changed_s", sa.Float(53), nullable=False),
    sa.Column("driven_s", sa.Float(53), nullable=False, default=0.0),
    sa.Column("since_s", sa.Float(53), nullable=False, default=0.0),
    sa.Column("holder", sa.Text, nullable=False, default=""),
    sa.Column("held_until_s", sa.Float(53), nullable=False, default=0.0),
)
_members = sa.Table(
    "member",
    _metadata,
    sa.Column("rollout", sa.ForeignKey(_rollouts.c.id), primary_key=True),
    *(_column(name, hint) for name, hint in get_type_hints(Member).items()),
)


class Rollout(msgspec.Struct, kw_only=True):
    """One roll-out, as it stands."""

    id: int
    plan: Plan
    broker: str
    stage: int
    state: State
    reason: str
    began_s: float
    changed_s: float
    """Epoch."""
    driven_s: float
    """For which somebody has driven it, with a session: its own time;"""
    since_s: float
    """and when in that it came to its state."""
    driven: bool
    """A controller is at it now."""


class Ledger:
    """Raises `CannotCreateError`, `AccessError` or `StorageError` with the cause when the database does not do what it should,
    and `DataError` for one that a newer amiss has made."""

    def __init__(self, place: str, *, clock: Callable[[], float] = time.time) -> None:
        """`place`: a file, or the URL of a database."""
        self._clock = clock
        self._me = secrets.token_hex(8)
        url = place if "://" in place else f"sqlite:///{Path(place).absolute()}"
        try:
            self._url = sa.make_url(url)
            self._engine = sa.create_engine(self._url)
        except (sa.exc.ArgumentError, ModuleNotFoundError, ValueError) as error:  # the last: a port that is no number
            raise NoInputError(
                f"--state {_shown(place)}: {_cause(error)}; a file, or postgresql+psycopg://USER@HOST/NAME with `pip install "
                "psycopg[binary]`"
            ) from None
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _careful)
        with self._transaction() as connection:
            _metadata.create_all(connection)
            version = connection.scalar(sa.select(_about.c.version))
            if version is None:
                connection.execute(_about.insert().values(version=_SCHEMA))
            elif version > _SCHEMA:
                raise DataError(f"{self}: made by a newer amiss (schema {version}, this one knows {_SCHEMA})")

    def __str__(self) -> str:
        return _shown(self._url.render_as_string(hide_password=True).removeprefix("sqlite:///"))

    def close(self) -> None:
        self._engine.dispose()

    def begin(self, plan: Plan, broker: str, members: Iterable[Member]) -> Rollout:
        now_s = self._clock()
        with self._transaction() as connection:
            row = {"plan": _text(plan), "model": plan.model, "broker": broker, "began_s": now_s, "changed_s": now_s}
            made = connection.execute(_rollouts.insert().values(**row, stage=0, state="running", reason=""))
            assert made.inserted_primary_key is not None
            rollout: int = made.inserted_primary_key[0]
            if rows := [{"rollout": rollout, **msgspec.structs.asdict(member)} for member in members]:
                connection.execute(_members.insert(), rows)
        return self.get(rollout)

    def all(self) -> list[Rollout]:
        """The newest first."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_rollouts).order_by(_rollouts.c.id.desc())).mappings().all()
        return [self._rollout(row) for row in rows]

    def get(self, rollout: int) -> Rollout:
        with self._transaction() as connection:
            row = connection.execute(sa.select(_rollouts).where(_rollouts.c.id == rollout)).mappings().one()
        return self._rollout(row)

    def find(self, model: str | None) -> Rollout:
        """The newest one of this model, or of all. Raises `NoInputError`."""
        known = self.all()
        for one in known:
            if model in (None, one.plan.model):
                return one
        there = ", ".join(dict.fromkeys(one.plan.model for one in known)) or "none"
        raise NoInputError(f"{self}: no roll-out{f' of {model}' if model else ''}; there are: {there}")

    def members(self, rollout: int) -> list[Member]:
        order = (_members.c.stage, _members.c.device)
        with self._transaction() as connection:
            rows = (
                connection.execute(sa.select(_members).where(_members.c.rollout == rollout).order_by(*order)).mappings().all()
            )
        return [Member(**{name: row[name] for name in Member.__struct_fields__}) for row in rows]

    @contextmanager
    def lease(self, rollout: int) -> Iterator[Callable[[float], None]]:
        """Nobody else drives it meanwhile, as long as what is given is called at least every `LEASE_S` seconds, with the
        roll-out's own time. Raises `BusyError` when somebody does; so does a call that comes too late, once somebody has taken
        over."""

        def renew(driven_s: float | None = None) -> None:
            now_s = self._clock()
            values = {"holder": self._me, "held_until_s": now_s + LEASE_S}
            values |= {} if driven_s is None else {"driven_s": driven_s}
            mine = sa.or_(_rollouts.c.holder == self._me, _rollouts.c.held_until_s < now_s)
            change = _rollouts.update().where(_rollouts.c.id == rollout, mine)
            with self._transaction() as connection:
                if not connection.execute(change.values(**values)).rowcount:
                    raise BusyError(f"{self}: another process drives this roll-out; `amiss fleet status` shows it")

        renew()
        try:
            yield renew
        finally:
            with self._transaction() as connection:
                mine = _rollouts.update().where(_rollouts.c.id == rollout, _rollouts.c.holder == self._me)
                connection.execute(mine.values(holder="", held_until_s=0.0))

    def note(
        self,
        rollout: int,
        *,
        state: State | None = None,
        reason: str | None = None,
        plan: Plan | None = None,
        stage: int | None = None,
        since_s: float | None = None,
        expected: State | None = None,
    ) -> bool:
        """What is said of it now; whether it was. `expected`: only while it is in that state, and the lease is ours."""
        values = {"state": state, "reason": reason, "stage": stage, "since_s": since_s}
        known: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if plan is not None:
            known["plan"] = _text(plan)
        change = _rollouts.update().where(_rollouts.c.id == rollout)
        if expected is not None:
            change = change.where(_rollouts.c.state == expected, _rollouts.c.holder == self._me)
        with self._transaction() as connection:
            return bool(connection.execute(change.values(changed_s=self._clock(), **known)).rowcount)

    def keep(self, rollout: int, members: Iterable[Member], new: Iterable[Member] = ()) -> None:
        """How these stand now; `new`: those that were not there before."""
        with self._transaction() as connection:
            if rows := [{"rollout": rollout, **msgspec.structs.asdict(member)} for member in new]:
                connection.execute(_members.insert(), rows)
            if rows := [{"which": rollout, "who": member.device, **msgspec.structs.asdict(member)} for member in members]:
                whose = (_members.c.rollout == sa.bindparam("which"), _members.c.device == sa.bindparam("who"))
                connection.execute(_members.update().where(*whose), rows)

    def _rollout(self, row: Any) -> Rollout:
        known = {
            name: row[name]
            for name in ("id", "broker", "stage", "state", "reason", "began_s", "changed_s", "driven_s", "since_s")
        }
        try:
            plan = msgspec.json.decode(row["plan"], type=Plan)
        except msgspec.MsgspecError as error:
            raise DataError(f"{self}: roll-out {row['id']} holds no plan ({error})") from None
        return Rollout(plan=plan, driven=row["held_until_s"] > self._clock(), **known)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            cause = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
            if "unable to open" in cause:
                raise CannotCreateError(f"{self}: {cause}; does the folder exist, and may you write there?") from None
            if "readonly" in cause or "denied" in cause or "password" in cause:
                raise AccessError(f"{self}: {cause}") from None
            raise StorageError(f"{self}: {cause}") from None


def _careful(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")  # who looks does not keep waiting who drives
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 10000")


def _text(plan: Plan) -> str:
    return msgspec.json.encode(plan).decode()


def _shown(place: str) -> str:
    """Without a password."""
    if "://" not in place:
        return place
    try:
        return sa.make_url(place).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return place.partition("://")[0] + "://…"


def _cause(error: Exception) -> str:
    """Its first line, without the URL that it may repeat."""
    return "no URL of a database" if isinstance(error, ValueError | sa.exc.ArgumentError) else str(error).splitlines()[0]
