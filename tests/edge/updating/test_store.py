"""Which model a device runs, whatever has happened to its files. tests/soak/test_update_faults.py has the accidents."""

import contextlib
import hashlib
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import AmissError, BundleError, DataError, NoInputError, StorageError, UnfitError, UsageError
from edge.updating.store import MOST_BAD, MOST_TRIES, RESERVE_BYTES, Model, Models

FACTORY = b"the factory's"


def content(number: int) -> bytes:
    return b"model %d\n" % number * 1000


def model(number: int) -> Model:
    return Model(hashlib.sha256(content(number)).hexdigest(), number)


def moved_aside(place: Path) -> bool:
    return (place / "models/models.db.damaged").exists()


@contextlib.contextmanager
def opened(place: Path) -> Iterator[Models]:
    place.mkdir(exist_ok=True)
    if not (place / "factory.amiss").exists():
        (place / "factory.amiss").write_bytes(FACTORY)
    models = Models(place / "models", place / "factory.amiss", free_bytes=lambda folder: 1 << 40)
    try:
        yield models
    finally:
        models.close()


def put(models: Models, data: bytes) -> Path:
    """As though it had been downloaded."""
    download = models.incoming / "download"
    download.write_bytes(data)
    return models.put(download, hashlib.sha256(data).hexdigest())


def trial(models: Models, number: int) -> None:
    put(models, content(number))
    models.stage(model(number))
    models.switch()


def install(models: Models, number: int) -> None:
    trial(models, number)
    models.commit()


def test_a_models_way(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        assert models.serve().role == "factory"
        put(models, content(1))
        models.stage(model(1))
        assert (models.serve().role, models.pending, models.floor) == ("factory", model(1), 0)
        assert models.switch().number == 1
        assert (models.serve().role, models.trying, models.active) == ("trial", True, None)
    with opened(tmp_path) as models:
        assert models.start().role == "trial"
        models.commit()
        assert (models.active, models.previous, models.pending, models.floor) == (model(1), None, None, 1)
        install(models, 2)
        assert (models.active, models.previous, models.floor) == (model(2), model(1), 2)
        install(models, 3)
        assert sorted(path.stem for path in models.store.iterdir()) == sorted(model(n).digest for n in (2, 3))
    with opened(tmp_path) as models:
        models.mark_bad(model(3).digest, "the owner wants the old one")
        assert (models.serve().number, models.floor) == (2, 3)
        models.mark_bad(model(2).digest, "and the one before")
        assert models.serve().role == "factory"
        models.mark_bad(model(2).digest, "once more")
        assert models.bad[model(2).digest] == "and the one before"


def test_the_one_before_may_be_offered_again_under_a_new_number(tmp_path: Path) -> None:
    again = Model(model(1).digest, 3)
    with opened(tmp_path) as models:
        install(models, 1)
        install(models, 2)
        models.stage(again)
    with opened(tmp_path) as models:
        assert (models.active, models.previous, models.pending) == (model(2), None, again)
        models.switch()
    with opened(tmp_path) as models:
        assert models.start().number == 3
        models.commit()
        assert (models.active, models.previous, models.floor) == (again, model(2), 3)
    assert not moved_aside(tmp_path)


def test_what_was_refused_does_not_fill_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
        for number in (2, 3, 4):
            put(models, content(number))
            models.mark_bad(model(number).digest, "hears nothing")
            assert [path.stem for path in models.store.iterdir()] == [model(1).digest]
        for number in (5, 6):  # it waits, and then there is a newer one
            put(models, content(number))
            models.note_time(1e9 * number)
        assert {path.stem for path in models.store.iterdir()} == {model(1).digest, model(6).digest}


def test_what_was_bad_once_or_is_old_is_not_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 5)
        trial(models, 6)
        models.mark_bad(model(6).digest, "all-alarm")
        assert models.serve().number == 5
        for number, reason in ((6, "found bad here: all-alarm"), (5, "not newer than 5"), (4, "not newer")):
            put(models, content(number))
            with pytest.raises(UnfitError, match=reason):
                models.stage(model(number))
        with pytest.raises(UnfitError, match="not in the store"):
            models.stage(model(7))
        with pytest.raises(UsageError, match="no model waits"):
            models.switch()
        with pytest.raises(UsageError, match="no model is on trial"):
            models.commit()
        trial(models, 7)
        put(models, content(8))
        with pytest.raises(UnfitError, match="on trial"):
            models.stage(model(8))


def test_a_model_that_kills_the_agent_is_taken_back(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
        trial(models, 2)
    for _ in range(MOST_TRIES):
        with opened(tmp_path) as models:
            assert models.start().number == 2
    with opened(tmp_path) as models:
        assert models.start().number == 1
        assert "in 3 starts" in models.bad[model(2).digest]


def test_what_is_damaged_is_not_served(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
        install(models, 2)
        trial(models, 3)
        models.path(model(3).digest).write_bytes(content(3)[:-1] + b"!")
        assert (models.serve().number, models.bad) == (2, {}), "it may be fetched again"
        models.path(model(2).digest).unlink()
        assert (models.serve().number, models.lost) == (1, model(2).digest)
        put(models, content(2))
        assert (models.serve().role, models.lost) == ("active", None)
        for number in (1, 2):
            models.path(model(number).digest).write_bytes(b"")
        assert models.serve().role == "factory"
        (tmp_path / "factory.amiss").unlink()
        with pytest.raises(NoInputError, match="factory"):
            models.serve()


def test_only_what_was_signed_gets_in_and_only_where_there_is_room(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        download = models.incoming / "x"
        download.write_bytes(b"other")
        with pytest.raises(BundleError):
            models.put(download, model(1).digest)
        assert not download.exists()
        download.write_bytes(content(1))
        assert models.put(download, model(1).digest).read_bytes() == content(1)
        assert not download.exists()
        models._free_bytes = lambda folder: RESERVE_BYTES + 100
        with pytest.raises(StorageError, match="do not fit"):
            models.room_for(101)
        models.room_for(100)
        assert [path.stem for path in models.store.iterdir()] == [model(1).digest]


def test_what_was_bad_is_remembered_within_bounds(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        models._change(bad={f"{number:064x}": "long ago" for number in range(MOST_BAD)})
        for number in range(MOST_BAD, MOST_BAD + 5):
            models.mark_bad(f"{number:064x}", "x" * 1000)
        assert len(models.bad) == MOST_BAD
        assert f"{MOST_BAD + 4:064x}" in models.bad
        assert max(map(len, models.bad.values())) == 500


def test_two_agents_do_not_share_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StorageError, match="another agent"), opened(tmp_path):
        pass


def test_threads_may_call(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        failed: list[AmissError] = []

        def mark(number: int) -> None:
            try:
                models.mark_bad(f"{number:064x}", "by a thread")
                models.serve()
            except AmissError as error:
                failed.append(error)

        threads = [threading.Thread(target=mark, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (failed, len(models.bad)) == ([], 8)


def test_time_never_goes_back_and_is_not_written_all_the_time(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        models.note_time(1e9)
        before = (models.folder / "models.json").stat().st_ino
        models.note_time(1e9 - 5e8)
        models.note_time(1e9 + 60)
        assert models.state.time_s == 1e9
        assert (models.folder / "models.json").stat().st_ino == before
        models.note_time(1e9 + 7200)
    with opened(tmp_path) as models:
        assert models.state.time_s == 1e9 + 7200


def spoil(path: Path, chance: random.Random) -> None:
    match chance.randrange(5):
        case 0:
            path.unlink(missing_ok=True)
        case 1:
            path.write_bytes(bytes(path.stat().st_size))
        case 2:
            path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        case 3:
            data = bytearray(path.read_bytes())
            for _ in range(20):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data)
        case 4:
            path.write_bytes(chance.randbytes(5000))


@pytest.mark.parametrize("seeds", [40, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("which", ["models.db", "models.json"])
def test_either_record_may_be_lost_and_the_floor_never_falls(tmp_path: Path, which: str, seeds: int) -> None:
    with opened(tmp_path / "before") as models:
        install(models, 3)
        install(models, 4)
        trial(models, 5)
        models.mark_bad(model(5).digest, "bad")
    for seed in range(seeds):
        place = Path(shutil.copytree(tmp_path / "before", tmp_path / "now"))
        spoil(place / "models" / which, random.Random(seed))
        for _ in range(2):
            with opened(place) as models:
                assert (models.serve().number, models.floor, set(models.bad)) == (4, 4, {model(5).digest}), seed
        shutil.rmtree(place)


def test_a_database_that_others_have_written_is_moved_aside(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
    with sqlite3.connect(tmp_path / "models/models.db") as connection:
        connection.execute("DROP TABLE state")
    connection.close()
    with opened(tmp_path) as models:
        assert (models.serve().number, models.floor) == (1, 1)
    assert moved_aside(tmp_path)
    with sqlite3.connect(tmp_path / "models/models.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(DataError, match="newer amiss"), opened(tmp_path):
        pass


def test_a_value_that_changed_by_itself_is_noticed(tmp_path: Path) -> None:
    """SQLite's own check does not: a floor too high would keep every new model out for good."""
    with opened(tmp_path) as models:
        install(models, 1)
    with sqlite3.connect(tmp_path / "models/models.db") as connection:
        connection.execute("UPDATE state SET floor = 1000000")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with opened(tmp_path) as models:
        assert models.floor == 1
    assert moved_aside(tmp_path)


def test_a_database_from_before_the_last_commit_does_not_bring_back_the_old_model(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
    shutil.copy(tmp_path / "models/models.db", tmp_path / "old.db")
    with opened(tmp_path) as models:
        install(models, 2)
    shutil.copy(tmp_path / "old.db", tmp_path / "models/models.db")
    with opened(tmp_path) as models:
        assert (models.serve().number, models.floor) == (2, 2)
    assert not moved_aside(tmp_path)


def test_with_both_records_gone_the_factorys_model_serves(tmp_path: Path) -> None:
    with opened(tmp_path) as models:
        install(models, 1)
    for name in ("models.db", "models.json"):
        (tmp_path / "models" / name).write_bytes(b"\0" * 4096)
    with opened(tmp_path) as models:
        assert models.serve().role == "factory"
    assert moved_aside(tmp_path)


STEPS = st.lists(
    st.sampled_from(["put", "stage", "switch", "unswitch", "commit", "mark_bad", "start", "reopen", "serve"]), max_size=30
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_in_whatever_order_it_is_called(tmp_path: Path, steps: list[str]) -> None:
    """What is asked for at the wrong time is refused; what is served is whole; the floor only rises; files stay few."""
    place, number, floor = tmp_path / "any", 1, 0
    shutil.rmtree(place, ignore_errors=True)
    stack = contextlib.ExitStack()
    models = stack.enter_context(opened(place))
    for step in steps:
        with contextlib.suppress(UsageError, UnfitError):
            match step:
                case "put":
                    put(models, content(number))
                case "stage":
                    models.stage(model(number))
                    number += 1
                case "reopen":
                    stack.close()
                    stack = contextlib.ExitStack()
                    models = stack.enter_context(opened(place))
                case "mark_bad":
                    if (running := models.serve()).role != "factory":
                        models.mark_bad(running.digest, "why not")
                case _:
                    getattr(models, step)()
        serving = models.serve()
        assert serving.path.read_bytes() == (content(serving.number) if serving.number else FACTORY)
        assert serving.digest not in models.bad
        assert models.floor >= floor
        floor = models.floor
        assert sum(1 for _ in models.store.iterdir()) <= 4
    stack.close()
