"""Which model an agent starts with, and what a trial and a probation are told of real streams. Real store, real bundles."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bad_models
import msgspec
import pytest
from bad_models import BAD, packed

from edge.bundle import Bundle
from edge.config import AlarmConfig, DeviceConfig, MqttConfig, RuntimeConfig, StreamConfig, UpdateConfig
from edge.errors import BundleError, ConfigError, NoInputError, SinkUnavailableError
from edge.operating import upgrade
from edge.operating.requests import RefusedError
from edge.operating.upgrade import Upgrade, open_serving, roll_back
from edge.scoring import backends
from edge.updating.probation import Seen
from edge.updating.shadow import ShadowReport, Side
from edge.updating.store import Model, Models
from edge.updating.trial import Made, Order, Result


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Models]:
    factory = packed(tmp_path / "factory.amiss", *bad_models.good(0))
    found = Models(tmp_path / "models", factory, free_bytes=lambda folder: 1 << 40)
    yield found
    found.close()


def put(models: Models, number: int, made: tuple[bad_models.Manifest, bad_models.Members] | None = None) -> str:
    """On trial from now on."""
    path = packed(models.incoming / f"{number}.amiss", *(made or bad_models.good(number)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    models.put(path, digest)
    models.stage(Model(digest, number))
    models.switch()
    return digest


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda runtime: False)


def test_a_model_that_does_not_open_is_bad_and_the_one_before_runs(models: Models) -> None:
    good = put(models, 1)
    models.commit()
    bad = put(models, 2, BAD["wrong golden outputs"].build())
    bundle, serving, _ = open_serving(models)
    assert (bundle.digest, serving.digest) == (good, good)
    assert list(models.bad) == [bad]


def test_where_no_model_opens_none_is_to_blame(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(models, 1)
    models.commit()
    second = put(models, 2)
    with monkeypatch.context() as patch:
        missing(patch)
        for _ in range(5):
            with pytest.raises(BundleError, match="pip install onnxruntime"):
                open_serving(models)
        models.factory.rename(models.factory.with_suffix(".away"))
        with pytest.raises(NoInputError):
            open_serving(models)
    assert models.bad == {}
    assert open_serving(models)[0].digest == second
    assert (models.active and models.active.digest, models.tries) == (first, 1)


# Trials.


class Pump:
    """What `Upgrade` asks of a stream."""

    def __init__(self, folder: Path) -> None:
        self.bundle: Bundle
        self.head_file: Path | None = None
        self.ring = SimpleNamespace(folder=folder, flush=lambda: None, share=0.5)
        self.online = True
        self.now = Seen(samples=0, windows=0, strange=0)
        self.replaced: list[tuple[str, dict[str, Any]]] = []

    def replace(self, bundle: Bundle, **how: Any) -> None:
        assert bundle._faults is not None, "that takes a while, and the stream has no time for it"
        self.bundle = bundle
        self.replaced.append((bundle.digest, how))

    def ask(self, action: Callable[[], Any]) -> Any:
        return action()

    def seen(self) -> Seen:
        return self.now


def device(models: Models, *names: str, now_s: Sequence[float] = (0.0,)) -> tuple[Upgrade, dict[str, Pump]]:
    config = DeviceConfig(
        node="n",
        bundle=str(models.factory),
        streams={name: StreamConfig(port="/dev/null") for name in names},
        state_dir=str(models.folder),
        mqtt=MqttConfig(host="127.0.0.1", port=1),
        update=UpdateConfig(repository="/r", root="/r.json"),
    )
    pumps = {name: Pump(models.folder) for name in names}
    made = Upgrade(
        config,
        models,
        Bundle.open(path := models.serve().path),
        path,
        pumps,  # type: ignore[arg-type]  # of a stream, only what `Upgrade` asks of it
        alarm=lambda: config.alarm,
        adopted=lambda bundle: None,
        monotonic=lambda: now_s[0],
    )
    return made, pumps


def side(**figures: Any) -> Side:
    about = dict.fromkeys(("hours", "promised", "heard", "hop_s"), 1.0)
    counts = dict.fromkeys(("windows", "episodes", "strange", "excused", "not_finite"), 1)
    plain: dict[str, Any] = {"model": "", "score": {}, "p_value": {}, "latency_s": {}, **about, **counts}
    return Side(**plain | figures)


def says(**figures: Any) -> dict[str, Any]:
    """In place of what is said of the candidate."""
    return {"own": msgspec.structs.replace(REPORT, candidate=side(**figures))}


REPORT = ShadowReport(
    verdict="accepted", reasons=(), head="own", minutes=1.0, minutes_missing=0.0, live=side(), candidate=side()
)
MADE = Made(window=16, hop=4, rate_hz=100.0, scorer="mahalanobis")
ACCEPTED = Result(verdict="accepted", stage="done", serves="own", own=REPORT, refitted=REPORT, made=MADE)


@pytest.mark.parametrize(
    ("changes", "head", "outcome"),
    [
        ({}, b"", "accepted"),
        ({"own": None}, b"", "unknown"),
        ({"made": None}, b"", "unknown"),
        ({"own": msgspec.structs.replace(REPORT, candidate=None)}, b"", "unknown"),
        (says(windows=100, strange=100, episodes=3, hours=72.0, latency_s={"median": 0.01}), b"", "accepted"),
        (says(windows=10**400), b"", "unknown"),
        (says(strange=10**400), b"", "unknown"),
        (says(strange=2), b"", "unknown"),
        (says(episodes=10**400), b"", "unknown"),
        (says(episodes=-1), b"", "unknown"),
        (says(hours=math.inf), b"", "unknown"),
        (says(hours=math.nan), b"", "unknown"),
        (says(latency_s={"median": math.inf}), b"", "unknown"),
        ({"own": msgspec.structs.replace(REPORT, live=side(episodes=10**400))}, b"", "unknown"),
        ({"serves": "refitted"}, bad_models.good()[1]["head.npz"], "accepted"),
        ({"serves": "refitted"}, bad_models.good()[1]["golden.npz"], "unknown"),
        ({"serves": "refitted"}, b"no arrays", "unknown"),
        ({"serves": "refitted"}, b"", "unknown"),
        ({"serves": "refitted", "made": msgspec.structs.replace(MADE, scorer="none")}, b"PK", "unknown"),
    ],
)
def test_of_what_a_trial_answers_nothing_is_believed_that_makes_no_sense(
    models: Models, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], head: bytes, outcome: str
) -> None:
    def answers(order: Order, **more: object) -> Result:
        if head:
            Path(order.head_out).write_bytes(head)
        return msgspec.structs.replace(ACCEPTED, **changes)

    monkeypatch.setattr(upgrade, "try_out", answers)
    made, _ = device(models, "s")
    (models.incoming / "s.head.npz").write_bytes(bad_models.good()[1]["head.npz"])  # of an earlier one
    assert made.trial(models.factory)[0] == outcome
    assert not list(models.incoming.iterdir())


@pytest.mark.parametrize(("online", "again_s"), [(True, 360.0), (False, None)])
def test_when_there_will_be_enough_to_try_it_on(
    models: Models, monkeypatch: pytest.MonkeyPatch, online: bool, again_s: float | None
) -> None:
    answer = Result(verdict="unknown", stage="shadow", reasons=("3 more min",), minutes_missing=3.0)
    monkeypatch.setattr(upgrade, "try_out", lambda order, **more: answer)
    made, pumps = device(models, "s")
    pumps["s"].online = online
    assert made.trial(models.factory) == ("unknown", "s: 3 more min", again_s)


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        (Result(verdict="unknown", stage="shadow", reasons=("killed from outside",), killed=True), "refused"),
        (msgspec.structs.replace(ACCEPTED, made=None), "refused"),
        (Result(verdict="unknown", stage="shadow", reasons=("3 more min",)), "unknown"),
    ],
)
def test_what_is_killed_in_every_trial_is_not_tried_for_ever(
    models: Models, monkeypatch: pytest.MonkeyPatch, answer: Result, last: str
) -> None:
    monkeypatch.setattr(upgrade, "try_out", lambda order, **more: answer)
    made, _ = device(models, "s")
    outcomes = [made.trial(models.factory)[0] for _ in range(3)]
    assert outcomes == ["unknown", "unknown", last]
    assert made.trial(models.factory.with_name("another.amiss"))[0] == "unknown"


def test_what_the_agent_divides_by_is_bounded() -> None:
    for wrong in ({"hop": 0}, {"window": 1 << 80}, {"rate_hz": 0.0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(MADE) | wrong), type=Made)


# The switch.


def test_what_was_set_meanwhile_keeps_no_model_from_being_taken_back(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    bad = put(models, 1)
    made, pumps = device(models, "a", "b")
    for pump in pumps.values():
        pump.bundle = made._bundle
    made._alarm = lambda: AlarmConfig(p_value=1e-9)
    with pytest.raises(ConfigError, match="cannot be told"):
        made.run(models.serve())  # one on trial that cannot tell what is asked
    assert not pumps["a"].replaced
    models.mark_bad(bad, "worse")
    made.run(serving := models.serve())
    for pump in pumps.values():
        assert pump.replaced == [(serving.digest, {"head": None, "back": True, "alarm": AlarmConfig()})]
    assert "as the configuration says again: alarm.p_value = 1e-09 cannot be told" in caplog.text


def test_the_next_model_is_handed_to_the_provider_as_well(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    put(models, 1)
    made, pumps = device(models, "a")
    pumps["a"].bundle = made._bundle
    made._config = msgspec.structs.replace(made._config, runtime=RuntimeConfig(provider="cuda"))
    made.run(models.serve())
    assert [one.message for one in caplog.records if "has no cuda" in one.message]


def test_one_that_did_not_come_to_run_everywhere_leaves_no_head_behind(models: Models) -> None:
    put(models, 1)
    models.commit()
    first = models.serve()
    made, pumps = device(models, "a", "b")
    pumps["a"].bundle = pumps["b"].bundle = made._bundle
    put(models, 2)
    second = models.serve()
    made.run(second)
    pumps["b"].bundle = Bundle.open(first.path)  # it did not answer
    models.unswitch()
    made.run(models.serve())
    backs = [(name, digest, how["back"]) for name, pump in pumps.items() for digest, how in pump.replaced]
    assert backs == [
        ("a", second.digest, False),
        ("a", first.digest, True),
        ("b", second.digest, False),
        ("b", first.digest, False),
    ]


# Probation.


def hours(pump: Pump, count: int, **more: int) -> None:
    """As the model of `good` sees them: 25 windows a second."""
    windows = pump.now.windows + 90_000 * count
    pump.now = msgspec.structs.replace(pump.now, windows=windows, samples=4 * windows, **more)


def on_probation(models: Models, *names: str, now_s: Sequence[float] = (0.0,)) -> tuple[Upgrade, dict[str, Pump]]:
    if not models.trying:
        put(models, 1)
    made, pumps = device(models, *names, now_s=now_s)
    assert made.verdict() == ("go on", "")
    return made, pumps


def test_a_sensor_that_is_silent_does_not_keep_a_model_on_probation(models: Models) -> None:
    made, pumps = on_probation(models, "a", "b", "c")
    assert made.verdict()[0] == "go on", "the control: nobody has said anything"
    hours(pumps["a"], 30)
    hours(pumps["b"], 3)
    assert made.verdict()[0] == "go on", "nor is one that has begun"
    hours(pumps["b"], 30)
    verdict, reason = made.verdict()
    assert (verdict, reason) == ("commit", "a: 30 h served, 0 alarms; b: 33 h served, 0 alarms")


def test_what_the_sensor_lost_before_is_no_excuse_for_a_model_that_says_nothing(models: Models) -> None:
    made, pumps = on_probation(models, "a")
    now = pumps["a"].now
    pumps["a"].now = msgspec.structs.replace(now, lost=5)
    assert made.verdict()[0] == "go on"
    pumps["a"].now = msgspec.structs.replace(now, lost=5, samples=1_000_000)
    assert made.verdict()[0] == "roll back"


def test_nor_does_one_that_fell_silent_after_it_had_begun(models: Models) -> None:
    now_s = [0.0]
    made, pumps = on_probation(models, "a", "b", now_s=now_s)
    hours(pumps["b"], 3)
    now_s[0] = 600.0
    assert made.verdict()[0] == "go on"
    now_s[0] += 4000.0
    assert made.verdict()[0] == "go on", "nobody speaks for it yet"
    hours(pumps["a"], 30)
    assert made.verdict() == ("commit", "a: 30 h served, 0 alarms")


def test_one_that_has_begun_is_given_time_to_speak_after_a_start(models: Models) -> None:
    now_s = [0.0]
    made, pumps = on_probation(models, "a", "b", now_s=now_s)
    hours(pumps["a"], 30)
    hours(pumps["b"], 3)
    now_s[0] = 3000.0
    assert made.verdict()[0] == "go on"
    again, _ = on_probation(models, "a", "b", now_s=now_s)
    now_s[0] = 6500.0
    assert again.verdict()[0] == "go on"
    now_s[0] = 6601.0
    assert again.verdict()[0] == "commit"


@pytest.mark.parametrize(("hours", "runs"), [(0.9, 0), (1.1, 1)])
def test_power_that_fails_now_and_then_on_probation_does_not_take_the_model_back(
    models: Models, hours: float, runs: int
) -> None:
    put(models, 1)
    for _ in range(6):
        models.start()
        now_s = [0.0]
        if not models.trying:
            break
        made, _ = on_probation(models, "a", now_s=now_s)
        now_s[0] = 3600 * hours
        made.verdict()
    assert models.serve().number == runs


def test_by_hand_where_no_agent_runs(models: Models, tmp_path: Path) -> None:
    bad = put(models, 1)
    models.commit()
    config = DeviceConfig(
        node="n", bundle=str(tmp_path / "factory.amiss"), state_dir=str(tmp_path), mqtt=MqttConfig(host="h"),
        streams={"s": StreamConfig(port="/dev/null")}, update=UpdateConfig(repository="/r", root="/r.json"),
    )  # fmt: skip
    with pytest.raises(SinkUnavailableError, match="no agent answers"):
        roll_back(config, "who has the store may be an agent that starts")
    models.close()
    assert roll_back(config, "people complain") == {"from": 1, "reason": "people complain"}
    with pytest.raises(RefusedError, match="none before it"):
        roll_back(config, "once more")
    again = Models(tmp_path / "models", tmp_path / "factory.amiss")
    assert (again.serve().role, again.bad) == ("factory", {bad: "people complain"})
    again.close()
    with pytest.raises(RefusedError, match=r"no section \[update\]"):
        roll_back(msgspec.structs.replace(config, update=None), "")
    with pytest.raises(SinkUnavailableError):
        roll_back(msgspec.structs.replace(config, state_dir=str(tmp_path / "none")), "")
