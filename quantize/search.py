"""Which recipe finds most for what it costs? Many are trained, quantized and measured, and the Pareto front is what is left.

    recipe + space ──Optuna──▶ a recipe ──train, quantize──▶ bundle ──measure──▶ detection, cost ──▶ study ──▶ the next one

What was measured lies in a storage that several processes, and machines, may share; each works on a trial of its own and all
learn from each other. A study is known by what it depends on (`Facts`): another recipe, space or recording is another study,
and the figures of two never mix. The folder `out` holds what a person looks at, written anew after every trial:

    OUT/search.json     every trial with its figures, and which are on the front
    OUT/best.toml       the recipe to train, chosen by `best_of`; OUT/pareto/NN.toml are the others on the front
    OUT/pareto.svg      the front
    OUT/study.db        the storage, unless another one is named

Nothing is pruned half-way: with two objectives Optuna has no rule for it, and the detection of half a training says little.
"""

import contextlib
import hashlib
import math
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import sqlalchemy.exc
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from edge.bundle import Bundle
from edge.errors import (
    BundleError,
    CannotCreateError,
    ConfigError,
    DataError,
    GateError,
    NoInputError,
    StorageError,
    UsageError,
)
from edge.files import at_once
from edge.sensing.recordings import find_recordings
from quantize import quantize
from quantize.measure import Cost, Figures, measure
from quantize.space import Choice, Scalar, Space, recipe_at, values_of
from trainer.checkpoint import load_windows
from trainer.progress import Report, Step
from trainer.recipe import Budget, Recipe, as_toml
from trainer.train import train

Attempt = Callable[[Recipe, Callable[[str], None]], Figures]
"""A recipe, its data in it, → what was measured; tells on the way how it goes. Raises what training and quantizing raise."""

TRIALS = 30
MARGIN = 0.01
"""Two detections closer than this count as equal: three seeds of one recipe lay within 0.007 on the simulated machine."""
ENOUGH = 100
"""Normal windows; with fewer the AUROC of one kind and size is off by about 0.04 or more (Hanley & McNeil 1982)."""
PATIENT = Budget(slower=math.inf)
"""What ships is not to depend on what else this machine does; how slow int8 is, the search sees for itself."""
PREFIX = "amiss-search-"
JOURNAL = "journal:///"
_OURS = {"search.json", "best.toml", "pareto.svg", "pareto", "study.db", "study.db-journal"}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures of a study depend on; digests are SHA-256."""

    recipe: str
    space: str
    recordings: str
    cost: Cost

    @property
    def digest(self) -> str:
        return _digest(self)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    values: dict[str, Scalar]
    """What it changed in the recipe, by dotted key."""
    figures: Figures | None = None
    """`None`: it failed, see `reason`."""
    reason: str = ""
    same_as: int | None = None
    """The trial that had the same values; its figures were taken over."""
    seconds: float = 0.0
    processor: str = ""

    @property
    def measured(self) -> Figures:
        """Of a trial that did not fail."""
        assert self.figures is not None
        return self.figures

    def line(self) -> str:
        """For a person."""
        f = self.measured
        values = ", ".join(f"{key}={_short(value)}" for key, value in self.values.items())
        return f"{f.detection:.3f}, {f.latency_us:.0f} µs, {f.bytes / 1000:.0f} kB {f.precision}: {values}"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All of search.json."""

    format: int = 1
    facts: Facts
    trials: tuple[Trial, ...]
    """Done or failed, in order of number."""
    front: tuple[int, ...]
    """Numbers of the trials that no other beats in both, the cheapest first."""
    best: int | None
    rule: str = f"the cheapest on the front whose detection is within {MARGIN:g} of the best"
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    def lines(self, out: Path) -> list[str]:
        """For a person."""
        by_number = {trial.number: trial for trial in self.trials}
        failed = [trial for trial in self.trials if trial.figures is None and trial.same_as is None]
        different = sum(trial.same_as is None for trial in self.trials)
        lines = [
            f"{len(self.trials)} trials of {different} recipes, {len(failed)} failed, {len(self.front)} on the front:",
            *(f"  {'→' if n == self.best else ' '} {n:3}  {by_number[n].line()}" for n in self.front),
        ]
        if self.best is not None:
            by_kind = by_number[self.best].measured.by_kind
            lines += [
                f"best: trial {self.best}, {self.rule}",
                f"  finds {', '.join(f'{kind} {value:.2f}' for kind, value in by_kind.items())}",
                f"  amiss train {out / 'best.toml'} --out run",
            ]
        lines += [f"failed: trial {trial.number}: {trial.reason}" for trial in failed]
        return [*lines, *self.notes]


def search(
    recipe: Recipe,
    space: Space,
    paths: Iterable[Path],
    out: Path,
    *,
    storage: str | None = None,
    trials: int = TRIALS,
    minutes: float | None = None,
    cost: Cost = "latency",
    progress: Report | None = None,
    clock: Callable[[], float] = time.monotonic,
    attempt: Attempt | None = None,
) -> Found:
    """Go on until the study holds `trials` trials or every recipe of the space; no new one begins after `minutes`.

    The recipe's seed decides what is tried, as far as the clock does not: latency differs from run to run, bytes do not.
    Ctrl-C ends the search and keeps what was found. Raises `CannotCreateError` when `out` or the storage holds another search,
    `StorageError` when the storage fails, `GateError` when every trial failed, and whatever is wrong with the recordings.
    """
    files = [path.absolute() for path in paths]
    facts = Facts(
        # Where the files lie is of no consequence; what they hold is.
        recipe=_digest(msgspec.structs.replace(recipe, data=())),
        space=_digest(space),
        recordings=_digest([_file_digest(file) for file in find_recordings(files)]),
        cost=cost,
    )
    require_ours(out, facts)
    started = clock()
    base = msgspec.structs.replace(recipe, data=tuple(map(str, files)))
    url = storage or f"sqlite:///{(out / 'study.db').absolute()}"
    with _quiet(), _telling(url):
        study = open_study(url, facts, values_of(recipe, space), recipe.training.seed)
        interrupted = False
        took: list[float] = []
        while True:
            found = read_trials(study)
            left = trials - len(found)
            spent = clock() - started
            write(out, base, facts, found)
            if left <= 0 or interrupted or exhausted(space, found) or (minutes is not None and spent >= 60 * minutes):
                break
            eta_s = float(np.mean(took)) * left if took else None
            if eta_s is not None and minutes is not None:
                eta_s = min(eta_s, 60 * minutes - spent)

            def tell(text: str, done: int = len(found), eta_s: float | None = eta_s) -> None:
                if progress:
                    progress(Step(done, trials, text, eta_s))

            begun = clock()
            interrupted = not try_one(study, base, space, cost, found, attempt or build_and_measure, tell)
            took.append(clock() - begun)
    result = write(out, base, facts, found, interrupted=interrupted)
    draw(out / "pareto.svg", result)
    if not result.front and not interrupted and found:
        raise GateError(f"none of {len(found)} trials gave a bundle; the first said: {found[0].reason}")
    return result


def try_one(
    study: optuna.Study,
    base: Recipe,
    space: Space,
    cost: Cost,
    found: Sequence[Trial],
    attempt: Attempt,
    tell: Callable[[str], None],
) -> bool:
    """Make one recipe, see what comes of it and put that down. False when it was interrupted.

    A trial fails, and the search goes on, when the recipe contradicts itself, its windows are too few, or the loss diverges.
    """
    started = time.monotonic()
    trial = study.ask()
    try:
        # Seeded by its number: what a trial draws depends neither on who draws it nor on how often a search was resumed.
        # TPE draws each value when it is asked for, so it is not too late.
        study.sampler = _sampler(base.training.seed, trial.number)
        values = {key: _suggest(trial, key, domain) for key, domain in space.items()}
        trial.set_user_attr("processor", _processor())
        if same := next((t for t in found if t.values == values), None):
            trial.set_user_attr("same_as", same.number if same.same_as is None else same.same_as)
            figures, reason = same.figures, same.reason
        else:
            figures, reason = None, ""
            try:
                figures = attempt(recipe_at(base, values), lambda text: tell(f"trial {trial.number}: {text}"))
            except (ConfigError, DataError, GateError, BundleError) as error:
                reason = str(error)
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        if figures is None:
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=TrialState.FAIL)
            tell(f"trial {trial.number} failed: {reason}")
        else:
            trial.set_user_attr("figures", msgspec.to_builtins(figures))
            study.tell(trial, [figures.detection, figures.cost(cost)])
            tell(f"trial {trial.number}: detection {figures.detection:.3f}, {figures.latency_us:.0f} µs")
    except BaseException as error:
        # Without a reason it counts as never begun. What is wrong with the storage may keep us from saying even that.
        with contextlib.suppress(Exception):
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        if isinstance(error, KeyboardInterrupt):
            return False
        raise
    return True


def exhausted(space: Space, found: Sequence[Trial]) -> bool:
    """Whether there is nothing left to try."""
    lengths = [len(domain.values) if isinstance(domain, Choice) else math.inf for domain in space.values()]
    return sum(trial.same_as is None for trial in found) >= math.prod(lengths)


def build_and_measure(recipe: Recipe, tell: Callable[[str], None]) -> Figures:
    """Train, quantize, and measure what ships, on the windows that the run held back."""

    def training(step: Step) -> None:
        tell(f"training {step.step / step.steps:.0%}, {step.text}")

    with tempfile.TemporaryDirectory(prefix="amiss-search-") as name:
        run, bundle = Path(name) / "run", Path(name) / "trial.amiss"
        train(recipe, map(Path, recipe.data), run, training)
        quantize(run, bundle, lambda step: tell(step.text), budget=PATIENT)
        tell("measuring")
        return measure(Bundle.open(bundle), load_windows(run)[1])


def _suggest(trial: optuna.Trial, key: str, domain: Any) -> Scalar:
    if isinstance(domain, Choice):
        found: Scalar = trial.suggest_categorical(key, domain.values)  # type: ignore[assignment]
        return found
    if domain.whole:
        return trial.suggest_int(key, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log)


def _sampler(seed: int, number: int) -> TPESampler:
    """Watanabe (2023), "Tree-structured Parzen estimator"; for several objectives Ozaki et al. (2022)."""
    return TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), multivariate=False)


def open_study(url: str, facts: Facts, first: dict[str, Scalar], seed: int) -> optuna.Study:
    """The study of these facts, made if it is not there; its first trial takes the values `first`.

    One storage holds one search: raises `CannotCreateError` when it holds another. `UsageError`, `StorageError`.
    """
    storage = open_storage(url)
    name = PREFIX + facts.digest[:16]
    ours = [study for study in optuna.get_all_study_summaries(storage) if study.study_name.startswith(PREFIX)]
    if ours and name not in [study.study_name for study in ours]:
        other = ours[0].user_attrs.get("facts", {})
        raise CannotCreateError(
            f"{shown(url)}: holds a search with {differences(facts, other)}; choose another place with --out or --storage"
        )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        directions=["maximize", "minimize"],  # detection, cost
        sampler=_sampler(seed, 0),
    )
    study.set_user_attr("facts", msgspec.to_builtins(facts))
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(first)
    return study


def open_storage(url: str) -> BaseStorage:
    """`sqlite:///FILE`, `postgresql://…`, or `journal:///FILE` for a folder that several machines mount.

    Raises `UsageError` for any other and `StorageError` when it cannot be opened.
    """
    if url.startswith(JOURNAL):
        path = str(Path(url.removeprefix(JOURNAL)).absolute())
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    try:
        sqlite = sqlalchemy.engine.make_url(url).get_backend_name() == "sqlite"
        # Two processes that write at once wait for each other; connections may be dropped during a long trial.
        options: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
        for attempt in range(5):
            try:
                return RDBStorage(url, engine_kwargs=options)
            except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError):
                # Another process may be making the same tables just now.
                if attempt == 4:
                    raise
                time.sleep(0.1 * 2**attempt)
    except sqlalchemy.exc.ArgumentError:
        raise UsageError(
            "--storage: expected sqlite:///FILE, postgresql://USER@HOST/DATABASE or journal:///FILE (for a shared folder)"
        ) from None
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None) or "its driver"
        raise StorageError(f"{shown(url)}: needs {driver}, which is not installed; install it with pip") from None
    except RuntimeError as error:  # tables of another version
        raise StorageError(f"{shown(url)}: {str(error).splitlines()[0]}; choose another place with --storage") from None
    raise AssertionError("unreachable")


def read_trials(study: optuna.Study) -> list[Trial]:
    """Done or failed ones, in order of number. Not those that run, nor those that were interrupted."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [_trial(trial) for trial in ended if trial.user_attrs.keys() & {"figures", "reason"}]


def _trial(trial: FrozenTrial) -> Trial:
    kept = ("figures", "reason", "same_as", "seconds", "processor")
    attributes = {key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}
    return msgspec.convert({"number": trial.number, "values": trial.params, **attributes}, Trial)


def front_of(trials: Sequence[Trial], cost: Cost) -> list[Trial]:
    """Those that no other beats in both, the cheapest first; of equals the one that came first."""
    front: list[Trial] = []
    done = [trial for trial in trials if trial.figures is not None]
    for trial in sorted(done, key=lambda t: (t.measured.cost(cost), -t.measured.detection, t.number)):
        if not front or trial.measured.detection > front[-1].measured.detection:
            front.append(trial)
    return front


def best_of(front: Sequence[Trial]) -> Trial | None:
    """The cheapest whose detection is within `MARGIN` of the best: what is less than that is chance, what it costs is not."""
    if not front:
        return None
    return next(trial for trial in front if trial.measured.detection >= front[-1].measured.detection - MARGIN)


def write(out: Path, base: Recipe, facts: Facts, trials: Sequence[Trial], *, interrupted: bool = False) -> Found:
    """search.json and the recipes; each file whole or not at all. Raises `CannotCreateError`."""
    front = front_of(trials, facts.cost)
    best = best_of(front)
    found = Found(
        facts=facts,
        trials=tuple(trials),
        front=tuple(trial.number for trial in front),
        best=best.number if best else None,
        notes=tuple(_notes(base, trials, front, facts.cost)),
        interrupted=interrupted,
    )
    recipes = {out / "pareto" / f"{trial.number:02}.toml": _recipe_file(base, trial) for trial in front}
    if best:
        recipes[out / "best.toml"] = _recipe_file(base, best, found.rule)
    for path, text in recipes.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            with at_once(path) as draft:
                draft.write_text(text, "utf-8")
    with at_once(out / "search.json") as draft:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    for path in (out / "pareto").glob("*.toml"):
        if path.stem.isdecimal() and path not in recipes:
            path.unlink(missing_ok=True)
    return found


def _recipe_file(base: Recipe, trial: Trial, rule: str = "") -> str:
    told = [f"trial {trial.number} of `amiss search`{f': {rule}' if rule else ''}", f"detection {trial.line()}"]
    return "".join(f"# {line}\n" for line in told) + "\n" + as_toml(recipe_at(base, trial.values))


def _notes(base: Recipe, trials: Sequence[Trial], front: Sequence[Trial], cost: Cost) -> list[str]:
    notes = []
    processors = sorted({trial.processor for trial in trials if trial.figures})
    if cost == "latency" and len(processors) > 1:
        notes.append(f"latency was measured on {', '.join(processors)} and is not to be compared; --cost bytes is")
    if (fewest := min((trial.measured.windows for trial in front), default=ENOUGH)) < ENOUGH:
        notes.append(f"detection was measured on as few as {fewest} normal windows and is rough; record for longer")
    if any(recipe_at(base, trial.values).pretext.weights.injected > 0 for trial in front):
        notes.append("pretext.weights.injected teaches the faults that detection is measured with; its figures flatter")
    return notes


def require_ours(out: Path, facts: Facts) -> None:
    """Raises `CannotCreateError` when `out` holds something else than this very search."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in out.iterdir()}
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be created: {error.strerror}") from None
    if "search.json" in inside:
        try:
            other = msgspec.json.decode((out / "search.json").read_bytes(), type=Found).facts
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            raise CannotCreateError(f"{out}: its search.json is of another version, or damaged; choose another --out") from None
        if other != facts:
            different = differences(facts, msgspec.to_builtins(other))
            raise CannotCreateError(f"{out}: holds a search with {different}; choose another --out")
    elif strange := inside & (_OURS - {"study.db", "study.db-journal"}):
        raise CannotCreateError(f"{out}: holds {min(strange)}, but is no search; choose another --out")


def differences(facts: Facts, other: dict[str, str]) -> str:
    """What another search depends on that this one does not, in words."""
    words = {"recipe": "another recipe", "space": "another space", "recordings": "other recordings", "cost": "another --cost"}
    ours = msgspec.to_builtins(facts)
    return " and ".join(text for key, text in words.items() if ours[key] != other.get(key)) or "other facts"


def draw(path: Path, found: Found) -> None:
    """The front as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    unit, scale = ("latency [µs a window]", 1.0) if found.facts.cost == "latency" else ("bundle [kB]", 1e-3)
    done = {trial.number: trial.figures for trial in found.trials if trial.figures is not None}
    at = {number: (figures.cost(found.facts.cost) * scale, figures.detection) for number, figures in done.items()}
    figure, axis = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    axis.scatter([x for x, _ in at.values()], [y for _, y in at.values()], s=18, color="#9aa7b4", label="trials")
    front = [at[number] for number in found.front]
    axis.step([x for x, _ in front], [y for _, y in front], where="post", color="#33608c", marker="o", ms=5, label="front")
    for number in found.front:
        axis.annotate(str(number), at[number], xytext=(5, -11), textcoords="offset points", fontsize=8, color="#33608c")
    if found.best is not None:
        axis.scatter(*at[found.best], s=110, facecolor="none", edgecolor="#c4472c", linewidth=1.6, label="best.toml")
    axis.set_xlabel(unit)
    axis.set_ylabel("detection of injected faults (AUROC)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="best")
    axis.set_title(f"amiss search · {len(done)} trials")
    with at_once(path) as draft:
        figure.savefig(draft, format="svg")
    pyplot.close(figure)


def shown(url: str) -> str:
    """The storage as it may be printed: without a password."""
    return url if url.startswith(JOURNAL) else sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)


@contextlib.contextmanager
def _telling(url: str) -> Iterator[None]:
    """What is wrong with the storage, as one line."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ else error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise StorageError(f"{shown(url)}: {reason}; what was measured so far is kept, start again to go on") from None
    except OSError as error:
        if not url.startswith(JOURNAL) or not str(error.filename).startswith(str(Path(url.removeprefix(JOURNAL)).absolute())):
            raise
        raise StorageError(f"{url}: {error.strerror or error}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it Optuna logs nothing; our progress says what there is to say."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _short(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror}") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()
