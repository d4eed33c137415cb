"""A stream while its model is replaced: no window is missed, no number given twice, and what is known of it stays."""

from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bad_models import BAD, NEVER, packed, running
from small_bundle import CHANNELS, build, normal

from edge.bundle import Bundle
from edge.config import AlarmConfig, DeviceConfig, MqttConfig, StreamConfig
from edge.delivery import Delivery
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
from edge.errors import ConfigError
from edge.head import Head
from edge.operating.clock import HostClock
from edge.operating.heads import MOST, Heads
from edge.operating.stream import ANOTHER_MODEL, Stream
from edge.sensing.sources import ReplaySource
from edge.signal import Float32, Int64, Samples

PERIOD = 10_000_000


class Told:
    """A stream on a disk of its own, and the end of every window that it judges."""

    def __init__(self, folder: Path, bundle: Bundle, alarm: AlarmConfig | None = None) -> None:
        (folder / "r.csv").write_text("time," + ",".join(CHANNELS) + "\n0,0,0\n")
        config = DeviceConfig(
            node="n",
            bundle="b",
            streams={"s": StreamConfig(port="/dev/null")},
            state_dir=str(folder),
            mqtt=MqttConfig(host="127.0.0.1", port=1),
        )
        self.outbox = Outbox(folder / "outbox.db", device="n", boot="b")
        self._delivery = Delivery(MqttSink(config.mqtt, "n"), self.outbox)
        self.stream = Stream(
            "s",
            ReplaySource([folder / "r.csv"], CHANNELS),
            bundle,
            config,
            alarm or config.alarm,
            outbox=self.outbox,
            delivery=self._delivery,
            clock=HostClock(boot="b"),
            boot="b",
            later=lambda job: job(),
        )
        self.ends: list[int] = []
        self._at = 0

    def feed(self, x: Float32, size: int = 7) -> None:
        for start in range(0, x.shape[1], size):
            part = x[:, start : start + size]
            time_ns = (self._at + np.arange(part.shape[1], dtype=np.int64)) * PERIOD
            self._at += part.shape[1]
            self.stream.pipeline.tap = lambda windows, outputs: self.ends.extend(windows.end_ns.tolist())
            self.stream.take(Samples(time_ns, part))

    def close(self) -> None:
        self._delivery.stop(0)
        self.outbox.close()


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Bundle, Bundle]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return Bundle.open(build(tmp_path / "a" / "m.amiss")), Bundle.open(build(tmp_path / "b" / "m.amiss", windows=1200))


def steps(ends: list[int]) -> Int64:
    return np.diff(np.array(ends, np.int64)) // PERIOD


@pytest.mark.parametrize("at", [100, 101, 103, 250])
def test_no_window_is_missed_when_the_model_is_replaced(at: int, tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    assert old.digest != new.digest
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(at), size=1)
        told.stream.replace(new)
        told.feed(normal(300, seed=1))
        assert told.stream.pipeline.head is new.head
        assert steps(told.ends).max() <= old.manifest.hop
        assert steps(told.ends).min() > 0


def test_the_control_a_model_that_starts_from_nothing_misses_some(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(100))
        told.stream.pipeline = new.pipeline()
        told.feed(normal(300, seed=1))
        assert steps(told.ends).max() > old.manifest.hop


def test_numbers_go_on_and_an_open_episode_ends(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        told.feed(normal(200, seed=1) + np.array([[0], [6]], np.float32))
        told.stream.replace(new)
        told.feed(normal(6000, seed=2))
        told.feed(normal(200, seed=3) + np.array([[6], [0]], np.float32))
        events = told.stream.told()
    anomalies = [event for event in events if event.type.startswith("anomaly")]
    assert [(event.id, event.type) for event in anomalies] == [("n-b-s-1", "anomaly_ended"), ("n-b-s-2", "anomaly_started")]
    assert anomalies[0].reason == "new model"
    assert [event.model for event in anomalies] == [old.digest, new.digest]


def test_what_was_learned_on_site_comes_back_with_its_model(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        told.stream.heads.keep(old.head, made="2026-01-01T00:00:00Z", windows=1, trusted=False)
        told.stream.replace(new)
        assert told.stream.heads.about is None
        told.stream.replace(old)
        assert told.stream.heads.about is not None


def test_a_commissioning_is_over_and_whoever_asked_is_told(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        outcomes: list[tuple[str, str]] = []
        told.stream.commission(1.0, trusted=False, done=lambda *outcome: outcomes.append(outcome))
        late = told.stream._commissioning
        assert late is not None
        told.stream.replace(new)
        assert outcomes == [("", ANOTHER_MODEL)]
        assert not told.stream.commissioning
        told.stream._fitted(late, old.head)  # the thread that fits had begun before
        assert outcomes == [("", ANOTHER_MODEL)] * 2
        assert told.stream.pipeline.head is new.head, "and not one that was fitted to another encoder"
        assert told.stream.heads.about is None


def test_a_fault_of_the_sensor_ends_with_its_model(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(400))
        x = normal(800, seed=1)
        x[1, 100:] = x[1, 100]
        told.feed(x)
        assert [event.until for event in told.stream.told() if event.type == "sensor_fault"] == [None]
        told.stream.replace(new)
        faults = [event for event in told.stream.told() if event.type == "sensor_fault"]
        assert len(faults) == 1
        assert faults[0].until is not None


def test_a_head_for_the_candidate_comes_and_goes_with_it(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        told.stream.heads.keep(old.head, made="2026-01-01T00:00:00Z", windows=1, trusted=False)
        for _ in range(2 * MOST):  # as many that were tried and taken back
            told.stream.replace(new, head=new.head)
            assert told.stream.heads.about is not None
            told.stream.replace(old, back=True)
        assert told.stream.heads.about is not None, "what was learned for the old one is still there"
        told.stream.replace(new)
        assert told.stream.heads.about is None


def test_what_is_asked_again_forgets_nothing(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        told.stream.heads.keep(old.head, made="2026-01-01T00:00:00Z", windows=1, trusted=False)
        told.stream.replace(new, head=new.head)
        for _ in range(2):  # the first answer was not heard
            told.stream.replace(old, back=True)
        assert told.stream.heads.about is not None


def rarer(head: Head) -> AlarmConfig:
    """A little more than this one can tell."""
    return AlarmConfig(p_value=0.9 * head.calibrator.floor)


def test_a_head_of_the_machine_that_cannot_tell_what_was_set_since_is_left_out(
    tmp_path: Path, bundles: tuple[Bundle, Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    new, old = bundles[0], Bundle.open(build(tmp_path / "m.amiss", windows=2000))
    coarse = bundles[1].head
    kept = Heads(tmp_path / "streams/s/heads", model=old.digest, scorer=old.manifest.scorer)
    kept.keep(coarse, made="2026-01-01T00:00:00Z", windows=1, trusted=False)
    with closing(Told(tmp_path, new)) as told:
        told.feed(normal(200))
        told.stream.use(rarer(coarse))
        told.stream.replace(old, back=True)
        assert (told.stream.bundle, told.stream.pipeline.head) == (old, old.head)
        assert told.stream.pipeline.policy.p_value == rarer(coarse).p_value
        assert told.stream.heads.about is not None, "it may serve again"
        assert told.stream.head_file is None, "no candidate is held against it"
        told.feed(normal(100, seed=1))
    assert "cannot be told" in caplog.text
    with closing(Told(tmp_path, old, rarer(coarse))) as told:
        assert told.stream.pipeline.head is old.head, "nor is it a reason not to start"
    with closing(Told(tmp_path, old)) as told:
        assert told.stream.pipeline.head.calibrator.windows == coarse.calibrator.windows, "the control"
        assert told.stream.head_file is not None


def test_one_that_cannot_be_replaced_by_is_as_if_it_had_not_come(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, coarse = bundles
    new = Bundle.open(build(tmp_path / "m.amiss", windows=2000))
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(200))
        told.stream.use(rarer(coarse.head))
        pipeline, heads = told.stream.pipeline, told.stream.heads
        for bundle, head in ((coarse, None), (new, coarse.head)):
            with pytest.raises(ConfigError, match="cannot be told"):
                told.stream.replace(bundle, head=head)
            assert (told.stream.bundle, told.stream.pipeline, told.stream.heads) == (old, pipeline, heads)
        told.stream.replace(new)
        assert told.stream.heads.about is None, "no head was kept for what did not come to run"
        told.stream.replace(coarse, back=True, alarm=AlarmConfig())
        assert told.stream.pipeline.policy.p_value == coarse.policy().p_value


def test_how_long_it_takes_to_settle_may_change_while_it_runs(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    with closing(Told(tmp_path, bundles[0])) as told:
        before = told.stream.pipeline.settling
        told.stream.use(AlarmConfig())
        assert told.stream.pipeline.settling is before
        told.stream.use(AlarmConfig(settle_s=3600.0))
        assert told.stream.pipeline.settling is not before


def test_what_is_not_finite_is_counted_however_the_score_is_averaged(tmp_path: Path) -> None:
    manifest, members = BAD["not a number where the machine has not been"].build()
    manifest = msgspec.structs.replace(manifest, smoothing=256)
    x = running(1000)
    x[0, 600] = NEVER + 10
    with closing(Told(tmp_path, Bundle.open(packed(tmp_path / "m.amiss", manifest, members)))) as told:
        told.feed(x[:, :600])
        assert (told.stream.seen().not_finite, told.stream.windows > 100) == (0, True)
        told.feed(x[:, 600:], size=1)
        assert told.stream.seen().not_finite == manifest.window // manifest.hop


@pytest.mark.parametrize("kind", ["missing", "silence", "backwards"])
def test_what_no_window_is_made_of_is_seen_to_be_the_doing_of_the_sensor(
    kind: str, tmp_path: Path, bundles: tuple[Bundle, Bundle]
) -> None:
    with closing(Told(tmp_path, bundles[0])) as told:
        told.feed(normal(400))
        told.feed(normal(15, seed=1))
        assert told.stream.seen().lost == 0, "the control: regular"
        for _ in range(3):
            before = told.stream.seen()
            if kind == "missing":
                told.feed(np.full((2, 15), np.nan, np.float32))
            else:
                told._at += 100 if kind == "silence" else -50
                told.feed(normal(15))
            now = told.stream.seen()
            assert now.lost > before.lost
            assert now.windows == before.windows or kind == "missing", "what is held for a while still makes one"


def forgiven(told: Told, shift: tuple[float, float] = (0, 6)) -> str:
    """A person calls the anomaly that is on a false alarm."""
    told.feed(normal(400, seed=1) + np.array(shift, np.float32)[:, None])
    (episode,) = (event.id for event in told.stream.told() if event.type == "anomaly_started")
    told.stream.feedback(episode, "false_alarm")
    told.feed(normal(200, seed=2))
    return episode


def three(told: Told) -> list[str]:
    """Of different kinds."""
    found = []
    for shift in ((0, 6), (6, 6), (6, -6)):
        told.feed(normal(400))
        found.append(forgiven(told, shift))
    told.feed(normal(400))
    return found


def strange(told: Told) -> int:
    """Windows of the same kind that count as strange, of a hundred."""
    before = told.stream.strange
    told.feed(normal(416, seed=3) + np.array([[0], [6]], np.float32))
    found = told.stream.strange - before
    told.feed(normal(400, seed=4))
    return found


def test_what_a_person_forgave_is_forgiven_by_the_next_model_too(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(400))
        episode = forgiven(told)
        under_the_old_one = strange(told)
        told.stream.replace(new)
        told.stream._turn()
        assert told.stream.pipeline.memory.names == (episode,)
        assert strange(told) <= under_the_old_one + 10
        told.stream.feedback(episode, "undo")
        assert strange(told) > 80, "the control: without it all of them are"
        told.stream.replace(old, back=True)
        assert told.stream.pipeline.memory.names == (), "taken back under one it is taken back under the other"
        assert strange(told) > 80


def test_what_was_not_kept_is_said_and_ends_nothing(
    tmp_path: Path, bundles: tuple[Bundle, Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old)) as told:
        told.feed(normal(400))
        episode = forgiven(told)
        for file in tmp_path.rglob(f"{episode}.npz"):
            file.unlink()
        told.stream.replace(new)
        told.stream._turn()
        assert f"what was forgiven as {episode} may be raised again" in caplog.text
        assert told.stream.pipeline.memory.names == ()
        told.stream.replace(old)
        assert told.stream.pipeline.memory.names == (episode,), "the old model's own memory is there"


AT_ONCE = AlarmConfig(cool_down_s=0.0, longest_cool_down_s=1e-9)
"""Tells one anomaly however soon it follows another."""


def test_what_was_forgiven_is_shown_to_the_next_model_one_by_one_while_samples_come(
    tmp_path: Path, bundles: tuple[Bundle, Bundle]
) -> None:
    old, new = bundles
    with closing(Told(tmp_path, old, AT_ONCE)) as told:
        episodes = three(told)
        told.stream.replace(new)
        for count in range(3):
            assert told.stream.pipeline.memory.names == tuple(episodes[:count])
            told.feed(normal(40))
            told.stream._turn()
        assert told.stream.pipeline.memory.names == tuple(episodes)
    with closing(Told(tmp_path, new)) as told:
        assert told.stream.pipeline.memory.names == tuple(episodes), "they are on the disk"


def test_what_is_said_meanwhile_counts(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    old, new = bundles
    third = Bundle.open(build(tmp_path / "m.amiss", windows=2000))
    with closing(Told(tmp_path, old, AT_ONCE)) as told:
        first, second, last = three(told)
        told.stream.replace(new)
        told.stream._turn()
        told.stream.feedback(second, "undo")
        told.stream.replace(third)  # before all was shown
        for _ in range(4):
            told.stream._turn()
        assert set(told.stream.pipeline.memory.names) == {first, last}


def test_faults_to_try_it_on_are_computed_once(bundles: tuple[Bundle, Bundle]) -> None:
    assert bundles[0].faults() is bundles[0].faults()
