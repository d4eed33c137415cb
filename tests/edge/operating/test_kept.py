"""What a stream keeps on disk: heads to go back to, episodes with their windows, settings; damage costs that, and no more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import build

from edge.bundle import Bundle
from edge.config import AlarmConfig, changed_alarm
from edge.delivery.topics import EventPayload
from edge.errors import ConfigError
from edge.event import EventType
from edge.head import Head
from edge.operating import settings
from edge.operating.episodes import MOST, Episodes
from edge.operating.heads import Heads
from edge.operating.settings import Learning, Pause, Settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build(tmp_path_factory.mktemp("bundle") / "small.amiss"))


def heads(folder: Path, bundle: Bundle, model: str | None = None) -> Heads:
    return Heads(folder, model=model or bundle.digest, scorer=bundle.manifest.scorer)


def same(one: Head, other: Head) -> bool:
    a, b = one.arrays(), other.arrays()
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def moved(head: Head, by: float) -> Head:
    """Another head, told by its calibration."""
    arrays = head.arrays()
    arrays["calibrator.scores"] = np.sort(arrays["calibrator.scores"] + np.float32(by))
    return Head.from_arrays("mahalanobis", arrays)


def test_the_newest_head_serves_and_the_way_back_ends_at_the_bundle(tmp_path: Path, bundle: Bundle) -> None:
    kept = heads(tmp_path, bundle)
    assert kept.load() is None
    first, second = moved(bundle.head, 1), moved(bundle.head, 2)
    kept.keep(first, made="2026-01-01T00:00:00Z", windows=100, trusted=False)
    kept.keep(second, made="2026-01-02T00:00:00Z", windows=200, trusted=True)
    again = heads(tmp_path, bundle)
    assert same(again.load(), second)  # type: ignore[arg-type]
    assert again.about is not None
    assert again.about.windows == 200
    assert again.roll_back()
    assert same(heads(tmp_path, bundle).load(), first)  # type: ignore[arg-type]
    assert again.roll_back()
    assert heads(tmp_path, bundle).load() is None
    assert not again.roll_back()
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"], "what is not used takes no room"


def test_a_head_of_another_model_does_not_serve_and_is_kept_for_its_return(tmp_path: Path, bundle: Bundle) -> None:
    heads(tmp_path, bundle).keep(bundle.head, made="m", windows=1, trusted=False)
    assert heads(tmp_path, bundle, "another").load() is None
    assert heads(tmp_path, bundle).load() is not None


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "index"])
def test_a_damaged_head_gives_way_to_the_one_before(damage: str, tmp_path: Path, bundle: Bundle) -> None:
    kept = heads(tmp_path, bundle)
    first, second = moved(bundle.head, 1), moved(bundle.head, 2)
    kept.keep(first, made="1", windows=1, trusted=False)
    kept.keep(second, made="2", windows=1, trusted=False)
    assert kept.about is not None
    file = tmp_path / kept.about.file
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:100])
    elif damage == "gone":
        file.unlink()
    else:
        (tmp_path / "index.json").write_bytes(b"[{]")
    found = heads(tmp_path, bundle).load()
    if damage == "index":
        assert found is None
    else:
        assert found is not None
        assert same(found, first)


def event(episode: str, kind: EventType = "anomaly_started", **fields: Any) -> EventPayload:
    times = {"time": "t", "time_ns": 2, "since": "s", "since_ns": 1, "duration_s": 0.0, "historical": False}
    return EventPayload(id=episode, record=f"{episode}-r", type=kind, stream="s", **(times | fields))


def test_an_episode_its_windows_and_what_was_said_of_it_outlive_the_agent(tmp_path: Path) -> None:
    episodes = Episodes(tmp_path)
    x = np.arange(2 * 2 * 4, dtype=np.float32).reshape(2, 2, 4)
    episodes.tell(event("a"), x)
    episodes.judge("a", "false_alarm")
    again = Episodes(tmp_path)
    (kept,) = list(again)
    assert kept.open
    assert kept.verdict == "false_alarm"
    assert np.array_equal(again.windows("a"), x)  # type: ignore[arg-type]
    again.tell(event("a", "anomaly_ended"))
    assert not next(iter(Episodes(tmp_path))).open
    assert next(iter(Episodes(tmp_path))).verdict == "false_alarm", "an end takes nothing back"


def test_gaps_and_updates_write_nothing(tmp_path: Path) -> None:
    episodes = Episodes(tmp_path)
    episodes.tell(event("g", "gap"))
    episodes.tell(event("a"), np.zeros((1, 2, 4), np.float32))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    episodes.tell(event("a", "anomaly_updated", score=3.0), np.zeros((1, 2, 4), np.float32))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert episodes.get("a").event.score == 3.0  # type: ignore[union-attr]
    assert [one.event.id for one in episodes] == ["g", "a"]


def test_an_anomaly_that_is_on_outlives_any_number_of_gaps(tmp_path: Path) -> None:
    episodes = Episodes(tmp_path)
    episodes.tell(event("a"), np.zeros((1, 2, 4), np.float32))
    episodes.tell(event("b"), np.zeros((1, 2, 4), np.float32))
    episodes.tell(event("b", "anomaly_ended"))
    for i in range(3 * MOST):
        episodes.tell(event(f"g{i}", "gap"))
    assert len(list(episodes)) == MOST
    assert episodes.windows("a") is not None
    assert [one.event.id for one in Episodes(tmp_path)] == ["a", "b"]
    for i in range(MOST):
        episodes.tell(event(f"c{i}"))
        episodes.tell(event(f"c{i}", "anomaly_ended"))
    assert episodes.get("b") is None
    assert episodes.get("a") is not None, "nobody has said that it is over"


def test_what_is_kept_is_bounded_and_what_a_person_judged_goes_last(tmp_path: Path) -> None:
    episodes = Episodes(tmp_path)
    episodes.tell(event("judged"), np.zeros((1, 2, 4), np.float32))
    episodes.tell(event("judged", "anomaly_ended"))
    episodes.judge("judged", "confirmed")
    for i in range(3 * MOST):
        episodes.tell(event(f"e{i}"), np.zeros((1, 2, 4), np.float32))
        episodes.tell(event(f"e{i}", "anomaly_ended"))
    assert len(list(episodes)) == MOST
    assert episodes.get("judged") is not None
    assert len(list(tmp_path.glob("*.npz"))) == MOST


def test_a_damaged_episode_is_none(tmp_path: Path) -> None:
    episodes = Episodes(tmp_path)
    episodes.tell(event("a"), np.zeros((1, 2, 4), np.float32))
    (tmp_path / "a.npz").write_bytes(b"PK")
    assert Episodes(tmp_path).windows("a") is None
    (tmp_path / "a.json").write_bytes(b"{")
    assert list(Episodes(tmp_path)) == []


def test_a_disk_that_takes_nothing_does_not_stop_the_story(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    episodes = Episodes(tmp_path / "file" / "below")
    episodes.tell(event("a"), np.zeros((1, 2, 4), np.float32))
    assert episodes.get("a") is not None


def test_settings_come_back(tmp_path: Path) -> None:
    assert settings.load(tmp_path) == Settings()
    pause = Pause(until_ns=5, seconds=60)
    said = Settings(alarm={"p_value": 0.01}, maintenance={"s": pause}, commission={"s": Learning(minutes=60)})
    settings.save(tmp_path, said)
    assert settings.load(tmp_path) == said
    (tmp_path / "settings.json").write_bytes(b"{")
    assert settings.load(tmp_path) == Settings()


def test_only_the_alarm_can_be_changed_at_run_time() -> None:
    assert settings.alarm_keys({"alarm.p_value": 0.01}) == {"p_value": 0.01}
    for key in ("mqtt.host", "alarm", "alarm.", ""):
        with pytest.raises(ConfigError, match="alarm"):
            settings.alarm_keys({key: 1})
    assert changed_alarm(AlarmConfig(), {"p_value": 0.01}).p_value == 0.01
    with pytest.raises(ConfigError, match="did you mean `p_value`"):
        changed_alarm(AlarmConfig(), {"p_valu": 0.01})
    with pytest.raises(ConfigError, match="p_value"):
        changed_alarm(AlarmConfig(), {"p_value": 2})
