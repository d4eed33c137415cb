"""`amiss search`: what is tried, what is kept, and who may go on with it.

Where the question is not what a recipe is worth, a formula stands for training; the storage and its files are real throughout.
"""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import CannotCreateError, DataError, GateError, NoInputError, StorageError, UsageError
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize import search as searches
from quantize.measure import Cost, Figures
from quantize.search import Facts, Found, Trial, best_of, build_and_measure, front_of, search, write
from quantize.space import Choice, Range, Space
from trainer import recipe as recipes
from trainer.progress import Step
from trainer.recipe import Recipe, apply_overrides

REPOSITORY = Path(__file__).parents[2]
SPACE: Space = {
    "window": Choice((16, 32, 64)),
    "training.lr": Range(1e-4, 1e-2, log=True),
    "pretext.weights.vicreg": Choice((0.0, 1.0)),
    "scorer": Choice(("mahalanobis", "knn")),
}


def figures(detection: float, size: int, latency_us: float = 100.0) -> Figures:
    return Figures(
        detection=detection, by_kind={}, by_severity={}, windows=100, latency_us=latency_us, bytes=size, precision="int8"
    )


def formula(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
    """Longer windows find more and cost more; one learning rate is best."""
    tell("thinking")
    return figures(0.5 + recipe.window / 200 - abs(recipe.training.lr - 3e-3) * 10, recipe.window * 100)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_recording(tmp_path / "normal.csv", simulate(10, seed=1, rate_hz=50))
    return tmp_path / "normal.csv"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def shape(found: Found) -> list[tuple[int, dict[str, object], Figures | None]]:
    """What is to be the same whoever ran it, and when."""
    return [(trial.number, trial.values, trial.figures) for trial in found.trials]


points = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), max_size=25)


@given(points=points)
def test_the_front_is_what_no_other_beats(points: list[tuple[float, int]]) -> None:
    trials = [Trial(number=i, values={}, figures=figures(*point)) for i, point in enumerate(points)]
    trials.append(Trial(number=99, values={}, reason="failed"))
    front = front_of(trials, "bytes")

    def beats(a: tuple[float, int], b: tuple[float, int]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    on_front = {points[trial.number] for trial in front}
    assert on_front == {point for point in points if not any(beats(other, point) for other in points)}
    assert len(on_front) == len(front)
    assert [points[t.number][1] for t in front] == sorted(points[t.number][1] for t in front)
    best = best_of(front)
    if points:
        assert best is not None
        near = [point for point in points if point[0] >= max(points)[0] - searches.MARGIN]
        assert points[best.number][1] == min(size for _, size in near)
    else:
        assert best is None


def test_what_is_left_in_the_folder(data: Path, tmp_path: Path) -> None:
    told: list[Step] = []
    base = apply_overrides(Recipe(), ["encoder.size=5k", "scorer=mahalanobis"])
    found = search(base, SPACE, [data], tmp_path / "out", trials=14, cost="bytes", attempt=formula, progress=told.append)
    out = tmp_path / "out"
    assert [trial.number for trial in found.trials] == list(range(14))
    # The first is the recipe itself; what the search proposes is never worse than what was there.
    assert found.trials[0].values == {"window": 32, "training.lr": 3e-3, "pretext.weights.vicreg": 0.0, "scorer": "mahalanobis"}
    assert found.best in found.front
    best = found.trials[found.best or 0]
    assert names(out) == {"study.db", "search.json", "best.toml", "pareto.svg", *(f"pareto/{n:02}.toml" for n in found.front)}
    made = recipes.load(out / "best.toml")
    assert made == msgspec.structs.replace(made, encoder=base.encoder)  # what was not searched stays
    assert (made.data, made.window, made.training.lr) == ((str(data),), best.values["window"], best.values["training.lr"])
    assert msgspec.json.decode((out / "search.json").read_bytes(), type=Found) == found
    assert (out / "pareto.svg").read_text().startswith("<?xml")
    assert all("\n" not in line for line in found.lines(out))
    assert "trial 3: thinking" in {step.text for step in told}
    assert {step.steps for step in told} == {14}
    assert any(step.eta_s is not None for step in told)


def test_the_same_seed_tries_the_same_whether_resumed_or_not(data: Path, tmp_path: Path) -> None:
    def run(folder: str, trials: int, seed: int = 0) -> Found:
        recipe = apply_overrides(Recipe(), [f"training.seed={seed}"])
        url = f"journal:///{tmp_path / folder}.journal"
        return search(recipe, SPACE, [data], tmp_path / folder, storage=url, trials=trials, cost="bytes", attempt=formula)

    whole = run("whole", 14)
    run("parts", 3)
    run("parts", 11)
    assert shape(run("parts", 14)) == shape(whole)  # beyond the ten that are drawn blindly
    assert shape(run("other", 14, seed=1)) != shape(whole)
    before = (tmp_path / "whole" / "search.json").read_bytes()
    assert shape(run("whole", 5)) == shape(whole)  # nothing is left to do
    assert (tmp_path / "whole" / "search.json").read_bytes() == before


def test_a_failed_trial_is_said_and_the_search_goes_on(data: Path, tmp_path: Path) -> None:
    tried: list[str] = []

    def without_knn(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
        tried.append(recipe.scorer)
        if recipe.scorer == "knn":
            raise DataError("the loss is nan")
        return formula(recipe, tell)

    # gru has no kernel: a quarter of the recipes contradict themselves and are never built.
    space: Space = {"encoder.kind": Choice(("tcn", "gru")), "encoder.kernel": Choice((3, 5)), "scorer": SPACE["scorer"]}
    found = search(Recipe(), space, [data], tmp_path / "out", trials=200, cost="bytes", attempt=without_knn)
    reasons = [trial.reason for trial in found.trials if trial.figures is None and trial.same_as is None]
    assert sum(reason == "the loss is nan" for reason in reasons) == tried.count("knn") == 3
    assert sum("encoder.kernel: gru has no convolutions" in reason for reason in reasons) == 2
    assert len(tried) == 6  # no recipe twice, though more trials asked for it …
    assert len({json.dumps(trial.values) for trial in found.trials}) == 8
    assert len(found.trials) < 200  # … and when all were tried it ends
    assert sum(line.startswith("failed: trial") for line in found.lines(tmp_path)) == 5


def test_every_trial_failed(data: Path, tmp_path: Path) -> None:
    """Really trained: a learning rate at which the loss is no number."""
    long = tmp_path / "long.csv"
    write_recording(long, simulate(60, seed=1, rate_hz=50))
    base = apply_overrides(Recipe(), ["training.steps=10", "encoder.size=5k", "training.threads=1"])
    with pytest.raises(GateError, match="none of 1 trials gave a bundle; the first said: the loss is nan"):
        search(base, {"training.lr": Choice((1e30,))}, [long], tmp_path / "out", trials=3)
    assert names(tmp_path / "out") == {"study.db", "search.json", "pareto.svg"}
    with pytest.raises(DataError, match="windows"):
        build_and_measure(msgspec.structs.replace(base, data=(str(data),), window=64), print)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_done_is_kept(error: type[BaseException], data: Path, tmp_path: Path) -> None:
    def breaks(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
        if len(done) == 2:
            raise error
        done.append(recipe)
        return formula(recipe, tell)

    done: list[Recipe] = []
    out = tmp_path / "out"
    if error is KeyboardInterrupt:
        found = search(Recipe(), SPACE, [data], out, trials=5, cost="bytes", attempt=breaks)
        assert found.interrupted
        assert (out / "pareto.svg").exists()
    else:
        with pytest.raises(error):
            search(Recipe(), SPACE, [data], out, trials=5, cost="bytes", attempt=breaks)
    kept = msgspec.json.decode((out / "search.json").read_bytes(), type=Found)
    assert len(kept.trials) == 2
    assert recipes.load(out / "best.toml").window in (16, 32, 64)
    after = search(Recipe(), SPACE, [data], out, trials=5, cost="bytes", attempt=formula)
    assert not after.interrupted
    assert shape(after)[:2] == shape(kept)
    assert [trial.number for trial in after.trials] == [0, 1, 3, 4, 5]  # what broke off is no trial


def test_figures_to_be_read_with_care_are_named(data: Path, tmp_path: Path) -> None:
    def notes(out: str, windows: int = 100, space: Space = SPACE) -> tuple[str, ...]:
        def counted(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
            return msgspec.structs.replace(formula(recipe, tell), windows=windows)

        return search(Recipe(), space, [data], tmp_path / out, trials=1, attempt=counted).notes

    assert notes("sound") == ()
    assert "as few as 99 normal windows" in " ".join(notes("few", windows=99))
    teaches: Space = {"pretext.weights.injected": Choice((1.0,))}
    assert "its figures flatter" in " ".join(notes("injected", space=teaches))
    trials = [
        Trial(number=i, values={}, figures=figures(0.5 + i, 100, 90.0 + i), processor=name) for i, name in enumerate("AB")
    ]
    told = {
        cost: write(tmp_path / cost, Recipe(), Facts(recipe="", space="", recordings="", cost=cost), trials).notes
        for cost in get_args(Cost)
    }
    assert told == {"latency": ("latency was measured on A, B and is not to be compared; --cost bytes is",), "bytes": ()}


def test_no_trial_begins_after_the_time(data: Path, tmp_path: Path) -> None:
    now = [0.0]

    def slow(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
        now[0] += 50
        return formula(recipe, tell)

    found = search(
        Recipe(), SPACE, [data], tmp_path / "out", trials=99, minutes=2, cost="bytes", attempt=slow, clock=lambda: now[0]
    )
    assert len(found.trials) == 3


def test_another_search_is_refused(data: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    other = tmp_path / "other.csv"
    write_recording(other, simulate(10, seed=2, rate_hz=50))

    def go(
        out: str, *, window: int = 32, space: Space = SPACE, paths: tuple[Path, ...] = (data,), cost: Cost = "bytes"
    ) -> Found:
        recipe = Recipe(window=window)
        return search(recipe, space, paths, tmp_path / out, storage=url, trials=1, cost=cost, attempt=formula)

    first = go("first")
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*.*") if path.is_file()}
    smaller: Space = {"window": Choice((16, 32))}
    moved = tmp_path / "elsewhere.csv"
    moved.write_bytes(data.read_bytes())
    assert shape(go("second", paths=(moved,))) == shape(first)  # where the recordings lie is of no consequence
    for place, holder in {"first": str(tmp_path / "first"), "third": url}.items():  # the folder, the storage
        holds = rf"^{holder}: holds a search with"
        with pytest.raises(CannotCreateError, match=rf"{holds} another recipe; choose another"):
            go(place, window=48)
        with pytest.raises(CannotCreateError, match=rf"{holds} another space; choose another"):
            go(place, space=smaller)
        with pytest.raises(CannotCreateError, match=rf"{holds} other recordings and another --cost; choose another"):
            go(place, paths=(other,), cost="latency")
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(NoInputError):
        go("first", paths=(tmp_path / "absent.csv",))


def test_a_folder_that_is_no_search_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "best.toml").write_text("window = 99\n")
    with pytest.raises(CannotCreateError, match=r"holds best\.toml, but is no search"):
        search(Recipe(), SPACE, [data], tmp_path / "mine", trials=1, attempt=formula)
    (tmp_path / "mine" / "search.json").write_text("{}")
    with pytest.raises(CannotCreateError, match=r"search\.json is of another version, or damaged"):
        search(Recipe(), SPACE, [data], tmp_path / "mine", trials=1, attempt=formula)
    assert (tmp_path / "mine" / "best.toml").read_text() == "window = 99\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError):
        search(Recipe(), SPACE, [data], tmp_path / "file", trials=1, attempt=formula)


def test_storages_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 1000)
    for url, error, told in [
        ("study.db", UsageError, "expected sqlite:///FILE"),
        ("mongo://u:hush@h/d", UsageError, "expected sqlite:///FILE"),
        (f"sqlite:///{tmp_path}/absent/x.db", StorageError, "unable to open"),
        (f"sqlite:///{tmp_path}/text.db", StorageError, "not a database"),
        (f"journal:///{tmp_path}/absent/x", StorageError, "No such file"),
        ("oracle://user:hush@nowhere/db", StorageError, "needs .*, which is not installed"),
    ]:
        with pytest.raises(error, match=told) as raised:
            search(Recipe(), SPACE, [data], tmp_path / "out", storage=url, trials=1, attempt=formula)
        assert "hush" not in str(raised.value)
        assert "\n" not in str(raised.value)


TWO = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[5:]
from test_search import SPACE, formula
from quantize.search import search
from trainer.recipe import Recipe

def slow(recipe, tell):
    time.sleep(0.05)
    print("tried", flush=True)
    return formula(recipe, tell)

name, data, *urls = sys.argv[1:5]
for number, url in enumerate(urls):
    print("ready", flush=True)
    sys.stdin.readline()
    out = Path(f"{name}{number}")
    search(Recipe(), SPACE, [Path(data)], out, storage=url, trials=12, cost="bytes", attempt=slow)
"""


def test_two_processes_share_one_storage(data: Path, tmp_path: Path) -> None:
    urls = [f"{kind}:///{tmp_path / kind}" for kind in ("sqlite", "journal")]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, tmp_path / name, data, *urls, REPOSITORY, Path(__file__).parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    tried = []
    for _ in urls:  # at once, on a storage that is not there yet
        for process in both:
            assert process.stdout is not None
            tried.append(list(takewhile(lambda line: line != "ready\n", process.stdout)))
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in both]
    assert [(process.returncode, stderr) for process, (_, stderr) in zip(both, ended, strict=True)] == [(0, "")] * 2
    assert all([*tried[2:], *(stdout for stdout, _ in ended)])  # each did some, on either storage
    for number, url in enumerate(urls):
        found = search(Recipe(), SPACE, [data], tmp_path / f"c{number}", storage=url, trials=1, cost="bytes", attempt=formula)
        # The last of each may overlap, no trial is lost and none counted twice; each has seen what the other did.
        assert 12 <= len(found.trials) <= 13
        assert len({trial.number for trial in found.trials}) == len(found.trials)
        for name in ("a", "b"):
            seen = msgspec.json.decode((tmp_path / f"{name}{number}" / "search.json").read_bytes(), type=Found)
            assert len(seen.trials) >= 12
    # Text and numbers only: whoever can write to the storage cannot make us run anything.
    assert all(json.loads(line) for line in (tmp_path / "journal").read_text().splitlines())
    with sqlite3.connect(tmp_path / "sqlite") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        cells = [cell for table in tables for row in database.execute(f"select * from {table}") for cell in row]
    assert len(cells) > 100
    assert {type(cell) for cell in cells} <= {str, int, float, type(None)}


WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
sys.addaudithook(watch)
import amiss
if sys.argv[1] == "control":
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
else:
    amiss.main()
"""


@pytest.mark.slow
def test_the_whole_road_until_it_is_stopped(tmp_path: Path) -> None:
    """Really trained, by the command, which is then interrupted as by Ctrl-C. Nothing goes over the network."""
    write_recording(tmp_path / "normal.csv", simulate(80, seed=1, rate_hz=50))
    (tmp_path / "recipe.toml").write_text(
        'data = ["normal.csv"]\ntraining.steps = 10\ntraining.batch = 16\nencoder.size = "5k"\n'
        '[search]\nwindow = [16, 32]\n"training.lr" = { low = 1e-4, high = 1e-2, log = true }\n'
    )
    command = [sys.executable, "-c", WATCHED]
    control = subprocess.run([*command, "control"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "NETWORK socket.connect" in control.stderr
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*command, "search", tmp_path / "recipe.toml", "--out", out, "--trials", "500"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not (out / "best.toml").exists():
        time.sleep(0.1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "best: trial" in stdout
    # Our progress and nothing else: neither Optuna's log nor a warning, and no connection anywhere.
    assert all(re.match(r"search \d+/500 trial \d+", line) for line in stderr.splitlines()), stderr
    found = msgspec.json.decode((out / "search.json").read_bytes(), type=Found)
    assert found.trials
    assert all(trial.figures and trial.figures.precision == "int8" for trial in found.trials)
    made = recipes.load(out / "best.toml")
    assert made.data == (str(tmp_path / "normal.csv"),)
    assert made.training.steps == 10
