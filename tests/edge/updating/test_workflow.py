"""What becomes of an offer: taken, refused or taken back, and what runs meanwhile. Real store; the device is a small class."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from edge.channel import ChannelSpec
from edge.errors import BundleError, RepositoryAwayError, StorageError, UntrustedError
from edge.operating.requests import RefusedError
from edge.updating.offer import Offer
from edge.updating.store import Models, Serving
from edge.updating.updater import Checked
from edge.updating.workflow import PATIENCE_S, Outcome, Progress, Tried, Updates

FACTORY = b"the factory's"
Verdict = Literal["go on", "commit", "roll back"]


def offer(number: int, data: bytes) -> Offer:
    return Offer(
        number=number,
        name="m",
        version=str(number),
        schema=1,
        minimum_agent="0.1.0",
        channels=(ChannelSpec("x"),),
        rate_hz=100.0,
        runtimes=("onnxruntime",),
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
    )


class Pump:
    """A device whose streams run what they are told to, on a repository that holds what it is told to."""

    def __init__(self, folder: Path) -> None:
        (folder / "factory.amiss").write_bytes(FACTORY)
        self._folder = folder
        self.now_s = 0.0
        self.told: list[Progress] = []
        self.ran: list[int] = []
        self.offers: list[tuple[Offer, bytes]] = []
        self.trouble: Exception | None = None
        self.tried: list[str] = []
        self.refusal = ""
        self.unfit: list[Offer] = []
        self.asked: int | None = None
        self.outcome: Outcome | None = None
        self.again_s: float | None = None
        self.calm = True
        self.broken: set[int] = set()
        self.deaf = 0  # how often nobody answers
        self.says: tuple[Verdict, str] = "go on", ""
        self.open()

    def open(self, poll_every_s: float = 60.0) -> None:
        """As an agent that starts does."""
        self.models = Models(self._folder / "models", factory=self._folder / "factory.amiss")
        self.updates = Updates(
            self.models,
            self.models.start(),
            self,
            self.told.append,
            poll_every_s=poll_every_s,
            clock=lambda: self.now_s,
            look_s=0.0,
            first_s=0.0,
        )

    def again(self, poll_every_s: float = 60.0) -> None:
        self.models.close()
        self.open(poll_every_s)

    def turns(self, count: int = 1, seconds: float = 60.0) -> None:
        for _ in range(count):
            self.updates.turn()
            self.now_s += seconds

    def put(self, number: int, data: bytes | None = None) -> Offer:
        data = data or f"model {number}".encode()
        found = offer(number, data)
        self.offers.append((found, data))
        return found

    # What the workflow asks.

    def check(self, asked: int | None) -> Checked:
        self.asked = asked
        if self.trouble is not None:
            return Checked("away", str(self.trouble))
        models = self.models
        known = models.bad
        fit = [
            one
            for one, _ in self.offers
            if one.digest == models.lost or (one.number > models.floor and one.digest not in known)
        ]
        unfit = tuple((one, "not for this one") for one in self.unfit)
        return Checked("ok", chosen=max(fit, key=lambda one: one.number, default=None), unfit=unfit)

    def fetch(self, wanted: Offer) -> Path:
        data = next(data for one, data in self.offers if one is wanted)
        download = self.models.incoming / wanted.digest
        download.write_bytes(data)
        return self.models.put(download, wanted.digest)

    def trial(self, candidate: Path) -> Tried:
        self.tried.append(candidate.stem)
        return Tried(self.outcome or ("refused" if self.refusal else "accepted"), self.refusal, self.again_s)

    def quiet(self) -> bool:
        self.now_s += 600
        return self.calm

    def run(self, serving: Serving) -> None:
        if serving.number in self.broken:
            raise BundleError("it does not open here")
        if self.deaf:
            self.deaf -= 1
            raise RefusedError("s: no answer in 10 s")
        self.ran.append(serving.number)

    def verdict(self) -> tuple[Verdict, str]:
        return self.says

    @property
    def last(self) -> Progress:
        return self.told[-1]


@pytest.fixture
def pump(tmp_path: Path) -> Iterator[Pump]:
    pump = Pump(tmp_path)
    yield pump
    pump.models.close()


def test_a_better_model_is_tried_runs_on_probation_and_stays(pump: Pump) -> None:
    pump.put(1)
    pump.turns()
    assert [progress.step for progress in pump.told] == ["checking", "fetching", "trying", "probation"]
    assert pump.ran == [1]
    assert pump.models.floor == 0, "on probation nothing is final"
    pump.turns(5)
    pump.says = "commit", "as good as before"
    pump.turns()
    assert (pump.last.step, pump.last.number, pump.models.floor) == ("idle", 1, 1)
    pump.again()
    pump.turns(3)
    assert pump.updates.progress.number == 1
    assert pump.ran == [1], "and nothing is done twice"


def test_what_its_own_data_speak_against_never_runs_and_is_never_tried_again(pump: Pump) -> None:
    pump.refusal = "twelve times as many alerts"
    pump.put(1)
    pump.turns(5)
    assert pump.ran == []
    assert len(pump.tried) == 1
    assert "twelve times" in pump.last.reason
    pump.again()
    pump.turns(5)
    assert len(pump.tried) == 1
    pump.refusal = ""
    pump.put(2)
    pump.turns()
    assert pump.ran == [2], "the control: another one is"


def test_where_there_is_too_little_to_try_it_on_it_waits_and_is_not_bad(pump: Pump) -> None:
    pump.outcome, pump.refusal = "unknown", "20 minutes of the stream are recorded; 40 more are needed"
    pump.put(1)
    pump.turns(3)
    assert (pump.ran, len(pump.tried), pump.models.bad) == ([], 3, {})
    assert "40 more" in pump.last.reason
    pump.outcome = "accepted"
    pump.turns()
    assert pump.ran == [1]


@pytest.mark.parametrize(("again_s", "at_s"), [(None, 3600), (1200, 1200), (1, 60), (7200, 3600)])
def test_once_enough_is_recorded_it_is_tried_without_waiting_for_the_next_poll(
    pump: Pump, again_s: float | None, at_s: float
) -> None:
    pump.updates._poll_every_s = 3600
    pump.outcome, pump.refusal, pump.again_s = "unknown", "20 more min", again_s
    pump.put(1)
    pump.turns(seconds=at_s - 1)
    pump.turns(seconds=1)
    assert len(pump.tried) == 1
    pump.turns(seconds=0)
    assert len(pump.tried) == 2


def test_one_that_is_worse_is_taken_back_at_once_and_for_good(pump: Pump) -> None:
    pump.put(1)
    pump.turns()
    pump.says = "commit", ""
    pump.turns()
    pump.put(2)
    pump.says = "go on", ""
    pump.turns(2)
    assert pump.ran == [1, 2]
    pump.says = "roll back", "all windows are strange"
    pump.turns()
    assert pump.ran == [1, 2, 1]
    assert (pump.last.step, pump.last.number) == ("idle", 1)
    assert "all windows are strange" in pump.last.reason
    pump.says = "go on", ""
    pump.turns(10)
    assert pump.ran == [1, 2, 1]


def test_what_became_of_the_last_one_is_told_in_one_word(pump: Pump) -> None:
    def now() -> tuple[object, int | None]:
        return pump.last.became, pump.last.about

    one = pump.put(1)
    pump.turns()
    assert now() == (None, None)
    pump.says = "commit", "as good as before"
    pump.turns()
    assert now() == ("kept", 1)
    pump.refusal = "says the same of everything"
    pump.put(2)
    pump.turns()
    assert now() == ("refused", 2)
    pump.refusal = ""
    pump.put(3)
    pump.says = "roll back", "worse"
    pump.turns(2)
    assert now() == ("taken back", 3)
    pump.offers.clear()
    pump.unfit = [msgspec.structs.replace(one, number=4), msgspec.structs.replace(one, number=5)]
    pump.turns()
    assert now() == ("taken back", 3), "nobody asked it to take one of these"
    pump.updates.look_now(5)
    pump.turns()
    assert (now(), pump.asked) == (("unfit", 5), 5)


@pytest.mark.parametrize("became", ["kept", "refused", "taken back"])
def test_what_became_of_the_one_that_was_asked_for_stays_told(pump: Pump, became: str) -> None:
    asked = pump.put(7)
    pump.refusal = "says the same of everything" if became == "refused" else ""
    pump.says = ("commit" if became == "kept" else "roll back"), ""
    pump.updates.look_now(7)
    pump.turns(2)
    pump.offers.clear()
    pump.unfit = [asked]
    for number in (None, None, 7):
        pump.updates.look_now(number)
        pump.turns()
        assert (pump.last.became, pump.last.about, pump.asked) == (became, 7, number)


def test_a_request_for_a_held_one_is_withdrawn_by_zero(pump: Pump) -> None:
    pump.trouble = RepositoryAwayError("no route")
    pump.updates.look_now(7)
    pump.turns(seconds=1.0)
    assert pump.asked == 7
    told = len(pump.told)
    pump.updates.look_now(0)
    pump.turns(seconds=1.0)
    assert len(pump.told) == told, "it is no reason to look"
    pump.turns(60, seconds=1.0)
    assert (pump.asked, len(pump.told) > told) == (None, True)


def test_one_that_is_withdrawn_while_it_waits_for_an_episode_to_end_does_not_run(
    pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pump.put(7)
    pump.offers[:] = [(msgspec.structs.replace(one, held=True), pump.offers[0][1])]
    waited: list[int] = []

    def quiet() -> bool:
        waited.append(1)
        if len(waited) == 3:
            pump.updates.look_now(0)
        return len(waited) > 5

    monkeypatch.setattr(pump, "quiet", quiet)
    pump.updates.look_now(7)
    pump.turns()
    assert (len(waited), pump.ran, pump.models.bad) == (3, [], {})
    assert (pump.last.step, pump.last.reason) == ("idle", "model 7 waits: nobody asks for it any more")
    assert pump.last.offered is None
    pump.updates.look_now(7)
    pump.turns(3)
    assert pump.ran == [7], "the control: asked for again it does"


def test_a_take_back_that_fails_is_done_again_and_costs_no_other_model(pump: Pump) -> None:
    for number in (1, 2):
        pump.put(number)
        pump.says = "commit", "as good as before"
        pump.turns(2)
    bad = pump.put(3)
    pump.says = "go on", ""
    pump.turns()
    pump.says, pump.deaf = ("roll back", "all windows are strange"), 2
    for _ in range(2):
        with pytest.raises(RefusedError):
            pump.turns()
        pump.says = "commit", "what it says of another model by now is not heard"
    pump.turns(3)
    assert list(pump.models.bad) == [bad.digest]
    assert (pump.last.step, pump.last.number, pump.ran[-1], pump.updates.taken_back) == ("idle", 2, 2, 1)


@pytest.mark.parametrize("deaf", [1, 2, 4])
def test_a_stream_that_does_not_answer_says_nothing_against_the_model(pump: Pump, deaf: int) -> None:
    pump.deaf = deaf
    pump.put(1)
    pump.turns()
    for _ in range(deaf - 2):
        with pytest.raises(RefusedError):
            pump.turns(seconds=1.0)
    pump.turns(seconds=1.0)
    if deaf > 1:
        assert (pump.last.step, pump.last.number, pump.ran) == ("idle", 0, [0])
        assert pump.last.reason == "model 1 waits: s: no answer in 10 s"
    pump.turns(2)
    assert (pump.models.bad, pump.ran) == ({}, [0, 1])
    assert (pump.last.step, pump.last.number) == ("probation", 1)


def test_what_is_taken_back_is_what_runs(pump: Pump) -> None:
    one = pump.put(1)
    pump.says = "commit", "as good as before"
    pump.turns(2)
    two = pump.put(2)
    pump.turns(2)
    pump.offers.clear()
    pump.models.path(two.digest).write_bytes(b"damaged")
    pump.again()
    assert pump.updates.progress.number == 1
    pump.updates.roll_back("a person")
    pump.turns()
    assert list(pump.models.bad) == [one.digest]
    assert pump.last.number == 0


def test_one_that_cannot_run_here_is_taken_back_before_it_runs(pump: Pump) -> None:
    pump.broken.add(1)
    pump.put(1)
    pump.turns(5)
    assert pump.ran == [0]
    assert "does not open" in pump.last.reason


def test_a_model_that_ends_the_agent_gets_three_starts(pump: Pump) -> None:
    pump.put(1)
    pump.turns()
    for _ in range(4):
        pump.again()
    assert pump.updates.progress.number == 0
    pump.turns(5)
    assert pump.ran == [1], "never again"


def test_power_that_fails_on_probation_is_no_fault_of_the_model(pump: Pump) -> None:
    pump.put(1)
    pump.turns()
    pump.again()
    assert (pump.updates.progress.step, pump.updates.progress.number) == ("probation", 1)
    pump.says = "commit", ""
    pump.turns()
    assert pump.models.floor == 1


def test_an_episode_that_is_on_is_waited_for_but_not_for_ever(pump: Pump) -> None:
    pump.calm = False
    pump.put(1)
    pump.turns()
    assert "waiting" in {progress.step for progress in pump.told}
    assert pump.ran == [1]
    assert pump.now_s >= PATIENCE_S


def test_a_hint_while_it_waits_for_an_episode_to_end_wakes_it_once(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    awake: list[bool] = []

    def quiet() -> bool:
        awake.append(pump.updates._wake.is_set())
        return len(awake) == 4

    monkeypatch.setattr(pump, "quiet", quiet)
    pump.put(1)
    pump.updates.look_now()
    pump.turns()
    assert (awake, pump.ran) == ([True, False, False, False], [1])


def test_a_person_takes_it_back_without_a_network(pump: Pump) -> None:
    pump.put(1)
    pump.says = "commit", ""
    pump.turns(2)
    pump.trouble = RepositoryAwayError("no route")
    pump.updates.roll_back("asked for")
    pump.turns()
    assert pump.ran == [1, 0]
    assert pump.last.number == 0
    pump.trouble = None
    pump.turns(5)
    assert pump.ran == [1, 0], "what was taken back is not taken again"
    pump.updates.roll_back("asked for")
    pump.turns()
    assert "there is none before it" in pump.last.reason


def test_a_disk_that_is_full_is_waited_for(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    pump.put(1)

    def full(*_: object) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(pump, "fetch", full)
        pump.turns(2)
    assert (pump.last.step, pump.last.reason) == ("idle", "model 1 waits: disk full")
    assert not pump.models.bad
    pump.turns()
    assert pump.last.step == "probation"
    pump.says = "commit", "as good as before"
    with monkeypatch.context() as patch:
        patch.setattr(pump.models, "commit", full)
        with pytest.raises(StorageError):
            pump.turns()
    pump.turns()
    assert (pump.last.step, pump.last.number, pump.models.floor) == ("idle", 1, 1)
    pump.updates.roll_back("a person")
    with monkeypatch.context() as patch:
        patch.setattr(pump.models, "mark_bad", full)
        with pytest.raises(StorageError):
            pump.turns()
    pump.turns()
    assert pump.last.number == 0, "what a person wants is not forgotten over it"


def test_what_a_turn_raises_is_told_and_ends_nothing(pump: Pump, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def full() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise StorageError("disk full")
        pump.updates.stop(0.0)

    monkeypatch.setattr(pump.updates, "turn", full)
    pump.updates._run()
    pump.updates.check()
    assert (len(calls), [progress.reason for progress in pump.told]) == (4, ["disk full"])

    def bug() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pump.updates, "_stopping", False)
    monkeypatch.setattr(pump.updates, "turn", bug)
    pump.updates._run()
    with pytest.raises(ZeroDivisionError):
        pump.updates.check()


def test_a_model_whose_file_was_lost_is_fetched_and_runs_without_another_trial(pump: Pump) -> None:
    one = pump.put(1)
    pump.turns()
    pump.says = "commit", "as good as before"
    pump.turns()
    pump.models.path(one.digest).unlink()
    pump.again()
    pump.turns()
    assert pump.tried == [one.digest]
    assert pump.ran == [1, 1]
    assert (pump.last.step, pump.last.number, pump.last.digest) == ("idle", 1, one.digest)


@pytest.mark.parametrize("trouble", [RepositoryAwayError("gone"), UntrustedError("not signed")])
def test_whatever_the_repository_does_the_model_runs_on_and_is_asked_again(pump: Pump, trouble: Exception) -> None:
    pump.put(1)
    fetch = pump.fetch

    def fails(wanted: Offer) -> Path:
        raise trouble

    pump.fetch = fails  # type: ignore[method-assign]  # a repository that is away, for this moment
    pump.turns(3)
    assert pump.ran == []
    assert str(trouble) in pump.last.reason
    pump.fetch = fetch  # type: ignore[method-assign]  # a repository that is away, for this moment
    pump.turns()
    assert pump.ran == [1]


def test_what_has_expired_is_told_and_the_model_that_runs_goes_on(pump: Pump) -> None:
    pump.put(1)
    pump.says = "commit", ""
    pump.turns(2)
    check = pump.check
    pump.put(2)
    pump.check = lambda *_: Checked("stale", "timestamp expired")  # type: ignore[method-assign]  # a repository that is away, for this moment
    for _ in range(2):
        pump.turns(3)
        assert (pump.last.step, pump.last.number, pump.last.reason) == ("idle", 1, "timestamp expired")
        assert (pump.models.serve().role, pump.models.serve().number) == ("active", 1)
        assert pump.ran == [1]
        pump.again()
    pump.check = check  # type: ignore[method-assign]  # a repository that is away, for this moment
    pump.turns(2)
    assert pump.ran == [1, 2], "the control: signed anew it is taken"


def test_a_hint_is_only_a_hint(pump: Pump) -> None:
    """Nobody polls here: what is looked at, is looked at because of the hint, and however many come, once."""
    pump.again(poll_every_s=1e9)

    def checks() -> int:
        return sum(progress.step == "checking" for progress in pump.told)

    pump.put(1)
    pump.says = "commit", ""
    pump.turns(2)
    pump.put(2)
    pump.turns(10)
    assert (pump.ran, checks()) == ([1], 1)
    for _ in range(100):
        pump.updates.look_now()
    pump.turns(10)
    assert (pump.ran, checks()) == ([1, 2], 2)
