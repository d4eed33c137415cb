"""What is kept of a roll-out, in SQLite and in a real PostgreSQL."""

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mosquitto import until

from deploy.brokers import free_port
from deploy.ledger import LEASE_S, Ledger
from deploy.rollout import Member, Plan
from edge.errors import AmissError, BusyError, CannotCreateError, DataError, NoInputError, StorageError

PLAN = Plan(model="pump-2", number=7, digest="b" * 64, stages=(0.1, 1.0))
MEMBERS = [
    Member(
        device="pump-1", group="pumps", stage=0, place="kept", hours_after=1.5, ms_after=3.25, asked_s=1.7e5 + 0.123, late=True
    ),
    Member(device="pump-2", group="", stage=1, reason="'quotes' and \"more\""),
]


def postgres(program: str) -> str:
    found = shutil.which(program) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{program}")), None)
    assert found, "the tests need PostgreSQL: sudo apt-get install -y postgresql"
    return found


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real PostgreSQL of its own, on a free port; its URL."""
    user: list[str] = []
    with tempfile.TemporaryDirectory(prefix="amiss-postgres-") as temporary:
        if os.getuid() == 0:  # it refuses to run as root
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(temporary, "postgres", "postgres")
        folder, port = Path(temporary), free_port()
        data = folder / "data"
        made = [*user, postgres("initdb"), "-D", data, "-U", "amiss", "-A", "trust", "-N"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder)
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [*user, postgres("postgres"), "-D", data, *options], stdout=log, stderr=log, cwd=folder
            ) as running,
        ):
            until(lambda: b"ready to accept connections" in (folder / "log").read_bytes())
            yield f"postgresql+psycopg://amiss:secret@127.0.0.1:{port}/postgres"
            running.send_signal(signal.SIGQUIT)  # nobody needs what is there


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "fleet.db") if request.param == "sqlite" else str(request.getfixturevalue("server"))


def test_it_is_there_again_as_it_was(place: str) -> None:
    with closing(Ledger(place, clock=lambda: 1000.0)) as ledger:
        begun = ledger.begin(PLAN, "broker b:1883", MEMBERS)
        ledger.note(begun.id, stage=1, state="halted", reason="why")
        ledger.keep(begun.id, [MEMBERS[0]], [Member(device="pump-3", group="pumps", stage=1)])
    with closing(Ledger(place)) as ledger:
        found = ledger.find("pump-2")
        assert (found.plan, found.broker, found.stage, found.state, found.reason) == (PLAN, "broker b:1883", 1, "halted", "why")
        assert (found.began_s, found.driven) == (1000.0, False)
        assert ledger.members(found.id) == [*MEMBERS, Member(device="pump-3", group="pumps", stage=1)]
        assert ledger.find(None).id == found.id
        with pytest.raises(NoInputError, match=r"no roll-out of fan-1; there are: pump-2"):
            ledger.find("fan-1")


def test_one_drives_at_a_time_and_who_dies_is_followed(place: str) -> None:
    now_s = [1000.0]
    with closing(Ledger(place, clock=lambda: now_s[0])) as one, closing(Ledger(place, clock=lambda: now_s[0])) as other:
        begun = one.begin(PLAN, "b", MEMBERS)
        with one.lease(begun.id) as renew:
            assert other.get(begun.id).driven
            with pytest.raises(BusyError, match="another process drives"), other.lease(begun.id):
                pass
            now_s[0] += LEASE_S - 1
            renew()
            now_s[0] += LEASE_S - 1
            with pytest.raises(BusyError), other.lease(begun.id):
                pass
            now_s[0] += 2  # it is late: as good as dead
            with other.lease(begun.id), pytest.raises(BusyError):
                renew()
        with other.lease(begun.id):
            pass
        assert not one.get(begun.id).driven


def test_what_a_person_decides_is_not_overruled_by_who_drives(place: str) -> None:
    with closing(Ledger(place)) as ledger:
        rollout = ledger.begin(PLAN, "b", [])
        with ledger.lease(rollout.id):
            ledger.note(rollout.id, state="halted", reason="it is Friday")
            assert not ledger.note(rollout.id, state="done", expected="running")
            assert (ledger.get(rollout.id).state, ledger.get(rollout.id).reason) == ("halted", "it is Friday")
            ledger.note(rollout.id, state="running")
            assert ledger.note(rollout.id, stage=1, expected="running")
        assert not ledger.note(rollout.id, state="done", expected="running"), "the lease is over"


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("no folder", CannotCreateError, "does the folder exist"),
        ("a folder", CannotCreateError, "unable to open"),
        ("not a database", StorageError, "not a database"),
        ("newer", DataError, "newer amiss"),
        ("no such driver", NoInputError, "postgresql"),
        ("no server", StorageError, "127.0.0.1"),
        ("no port", NoInputError, "no URL of a database"),
        ("no URL", NoInputError, "no URL of a database"),
    ],
)
def test_what_is_no_place_is_one_line_without_a_password(tmp_path: Path, what: str, error: type[AmissError], says: str) -> None:
    place = str(tmp_path / "fleet.db")
    match what:
        case "no folder":
            place = str(tmp_path / "none" / "fleet.db")
        case "a folder":
            place = str(tmp_path)
        case "not a database":
            Path(place).write_bytes(b"something else" * 100)
        case "newer":
            Ledger(place).close()
            with closing(sqlite3.connect(place)) as connection, connection:
                connection.execute("UPDATE amiss_schema SET version = 99")
        case "no such driver":
            place = "postgresql+nothing://amiss:secret@127.0.0.1/x"
        case "no port":
            place = "postgresql+psycopg://amiss:secret@db:port/x"
        case "no URL":
            place = "post gres://amiss:secret@db/x"
        case "no server":
            place = f"postgresql+psycopg://amiss:secret@127.0.0.1:{free_port()}/x"
    with pytest.raises(error, match=says) as caught:
        Ledger(place)
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value)
