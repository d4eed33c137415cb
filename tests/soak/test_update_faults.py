"""One whole update, killed, starved and unplugged at every call that writes: what loads afterwards is whole, and no older."""

import hashlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from powerloss import Disk, Rest, traced

from edge.errors import AmissError
from edge.updating.store import Model, Models

FIRST, SECOND = random.Random(1).randbytes(150_000), random.Random(2).randbytes(200_000)
FACTORY = b"the factory's"
WRITE_CALLS = "write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,unlink,unlinkat,ftruncate,fallocate,mkdir"

CHILD = """
import os, random, sys
from pathlib import Path
from edge.errors import AmissError
from edge.updating import store
from edge.updating.store import Model, Models

folder, how, begin = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
contents = {1: random.Random(1).randbytes(150_000), 2: random.Random(2).randbytes(200_000)}
if "careless" in sys.argv:  # the control: nothing is synced
    os.fsync = lambda descriptor: None
if "naive" in sys.argv:  # the control: written where it belongs, and believed because it is there
    Models._is_whole = lambda self, digest: self.path(digest).exists()
    def naive(self, download, digest):
        with self.path(digest).open("wb", buffering=0) as file, download.open("rb") as source:
            while chunk := source.read(65536):
                file.write(chunk)
    Models._adopt = naive
    Models._sweep = lambda self: None

def tell(what):
    if "telling" in sys.argv:
        os.write(1, what.encode() + b"\\n")

try:
    models = Models(folder, folder.parent / "factory.amiss", free_bytes=lambda place: 1 << 40)
    if "careless" in sys.argv:
        models._connection.execute("PRAGMA synchronous = OFF")
    tell("ready")
    for number in range(begin, 3):
        content = contents[number]
        digest = __import__("hashlib").sha256(content).hexdigest()
        download = models.incoming / (digest + ".amiss")
        try:
            download.write_bytes(content)
        except OSError:
            sys.exit(74)  # whoever downloads is another process, and says so
        models.put(download, digest)
        models.stage(Model(digest, number))
        models.switch()
        models.start()
        if how == "good" or number == 1:
            models.commit()
            tell(f"committed {number}")
        else:
            models.mark_bad(digest, "all-alarm")
            tell("rolled back")
    models.close()
except AmissError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def model(content: bytes, number: int) -> Model:
    return Model(hashlib.sha256(content).hexdigest(), number)


def put(models: Models, content: bytes) -> None:
    download = models.incoming / "download.amiss"
    download.write_bytes(content)
    models.put(download, hashlib.sha256(content).hexdigest())


def one_committed(place: Path) -> Path:
    """A device that has run model 1 for a while."""
    place.mkdir(parents=True)
    (place / "factory.amiss").write_bytes(FACTORY)
    models = Models(place / "models", place / "factory.amiss")
    first = model(FIRST, 1)
    put(models, FIRST)
    models.stage(first)
    models.switch()
    models.commit()
    models.close()
    return place


def arguments(folder: Path, how: str, begin: int, *more: str) -> list[str]:
    return [sys.executable, "-B", "-c", CHILD, str(folder), how, str(begin), *more]


def violation(folder: Path, how: str, committed: int = 1, rolled_back: bool = False) -> str | None:
    """What is wrong after the accident; None: nothing. Then the update is done once more, undisturbed."""
    try:
        models = Models(folder, folder.parent / "factory.amiss")
    except AmissError as error:
        return f"does not open: {error}"
    try:
        serving = models.serve()
        content = {0: FACTORY, 1: FIRST, 2: SECOND}[serving.number]
        if serving.path.read_bytes() != content:
            return "a torn model is served"
        if models.floor < committed:
            return f"the floor fell to {models.floor}"
        if serving.number < models.floor:
            return f"model {serving.number} is served, {models.floor} was committed"
        second = model(SECOND, 2)
        if rolled_back and (serving.number == 2 or second.digest not in models.bad):
            return "a bad model is forgotten"
        if how == "good" and models.bad:
            return "a good model is called bad"
        if models.floor < 2 and second.digest not in models.bad:
            if models.floor == 0:
                return None
            if not models.trying:
                put(models, SECOND)
                models.stage(second)
                models.switch()
            models.commit()
            if models.serve().path.read_bytes() != SECOND:
                return "a torn model is served after the next update"
        files = sum(1 for _ in models.store.iterdir())
        return f"{files} files are kept" if files > 3 else None
    finally:
        models.close()


def write_calls(place: Path, how: str) -> list[tuple[str, int]]:
    """Every call that writes, as strace counts them: name, and the how manieth of that name."""
    log = place / "calls"
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={WRITE_CALLS}", *arguments(place / "models", how, 2)]
    subprocess.run(command, check=True, capture_output=True)
    names = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    return [(name, i + 1) for name, count in Counter(names).items() for i in range(count)]


def accidents(place: Path, how: str, every: int, *more: str) -> Iterator[str | None]:
    before = one_committed(place / "before")
    calls = write_calls(Path(shutil.copytree(before, place / "counted")), how)
    assert len(calls) > 40
    cases = [(name, count, fault) for name, count in calls for fault in ("signal=KILL", "error=EIO", "error=ENOSPC")]
    random.Random(3).shuffle(cases)
    for name, count, fault in cases[::every]:
        now = place / "now"
        shutil.copytree(before, now)
        command = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={name}:{fault}:when={count}"]
        done = subprocess.run([*command, *arguments(now / "models", how, 2, *more)], capture_output=True, check=False)
        wrong = violation(now / "models", how)
        if "KILL" not in fault and done.returncode not in (0, 73, 74, 77):
            wrong = f"an accident: {done.stderr.decode()[-300:]}"
        yield None if wrong is None else f"{fault} at {name} {count}: {wrong}"
        shutil.rmtree(now)


@pytest.mark.parametrize("how", ["good", "bad"])
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.soak)])
def test_killed_or_failed_at_every_call_that_writes(tmp_path: Path, how: str, every: int) -> None:
    found = list(accidents(tmp_path, how, every))
    print(f"{how}: {len(found)} accidents")
    assert [wrong for wrong in found if wrong is not None] == []


def test_the_control_a_naive_store_serves_torn_models(tmp_path: Path) -> None:
    before = one_committed(tmp_path / "before")
    torn = 0
    for count in (1, 2, 3, 4):
        now = Path(shutil.copytree(before, tmp_path / f"now-{count}"))
        command = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=write:signal=KILL:when={count}"]
        subprocess.run([*command, *arguments(now / "models", "good", 2, "naive")], capture_output=True, check=False)
        subprocess.run(arguments(now / "models", "good", 2, "naive"), capture_output=True, check=False)
        models = Models(now / "models", now / "factory.amiss")
        torn += models.lost is not None
        models.close()
    assert torn > 0


@dataclass
class Tally:
    states: int = 0
    violations: int = 0


def crash_often(place: Path, how: str, states: int, *more: str) -> Tally:
    """The power goes at calls chosen by chance; three images of each, as in `tests/powerloss.py`."""
    place.mkdir(exist_ok=True)
    folder, log, chance = place / "models", place / "calls", random.Random(how)
    (place / "factory.amiss").write_bytes(FACTORY)
    assert traced(arguments(folder, how, 1, "telling", *more), log) == 0
    calls = sum(1 for _ in Disk(folder).replay(log))
    chosen = sorted(chance.randrange(calls) for _ in range(states // 3))
    tally, disk = Tally(), Disk(folder)
    rests: tuple[Rest, ...] = ("none", "all", "some")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as quick:
        (Path(quick) / "factory.amiss").write_bytes(FACTORY)
        image = Path(quick) / "models"
        for number, _ in enumerate(disk.replay(log)):
            while chosen and chosen[0] == number:
                del chosen[0]
                for rest in rests:
                    disk.crash(image, rest, chance)
                    committed = sum(1 for said in disk.told if said.startswith("committed"))
                    wrong = violation(image, how, committed, "rolled back" in disk.told)
                    tally.states += 1
                    tally.violations += wrong is not None
                    if wrong is not None and not more:
                        print(f"call {number}, {rest}: {wrong}")
    print(f"{how} {more}: {tally}, {calls} calls")
    return tally


@pytest.mark.parametrize("how", ["good", "bad"])
@pytest.mark.parametrize("states", [150, pytest.param(3000, marks=pytest.mark.soak)])
def test_no_loss_of_power_costs_a_model_that_was_committed(tmp_path: Path, how: str, states: int) -> None:
    tally = crash_often(tmp_path, how, states)
    assert tally.states > 0.8 * states
    assert tally.violations == 0


def test_the_control_without_syncing_it_does(tmp_path: Path) -> None:
    assert crash_often(tmp_path, "good", 150, "careless").violations > 0
