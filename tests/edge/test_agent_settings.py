"""What the agent makes of settings, requests and ports that cannot be: the machine is watched all the same. No broker."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mosquitto import free_port
from small_bundle import build

from edge import config as configs
from edge.agent import Agent
from edge.bundle import Bundle
from edge.errors import CannotCreateError, ConfigError
from edge.operating import settings as kept
from edge.operating.http import Server
from edge.operating.requests import Config
from edge.operating.settings import Learning, Settings


@contextmanager
def agent(folder: Path, **more: Any) -> Iterator[Agent]:
    bundle = folder / "m.amiss"
    if not bundle.exists():
        build(bundle, windows=1200)
    data = {
        "node": "n",
        "bundle": str(bundle),
        "streams": {"s": {"port": "/dev/null"}},
        "state_dir": str(folder / "state"),
        "mqtt": {"host": "127.0.0.1", "port": 1},
    }
    made = Agent(configs.parse(data | more))
    try:
        yield made
    finally:
        made.delivery.stop(0)
        made.outbox.close()


def ask(agent: Agent, verb: str, **body: Any) -> tuple[str, str]:
    answer = agent._requests.answer(verb, json.dumps(body).encode(), local=True)
    return answer.status, answer.error


def test_a_setting_that_the_model_cannot_tell_is_left_out_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    kept.save(tmp_path / "state", Settings(alarm={"p_value": 1e-9}))
    with agent(tmp_path) as started:
        assert started.settings.alarm == {}
    assert "1e-09" in caplog.text
    with pytest.raises(ConfigError, match="cannot be told"), agent(tmp_path, alarm={"p_value": 1e-9}):
        """The control: what the file says is no matter of taste."""


def test_a_setting_that_the_model_before_cannot_tell_is_left_out_when_that_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    finer = Bundle.open(build(tmp_path / "other" / "m.amiss"))
    with agent(tmp_path) as started:
        before = started.bundle
        started.streams["s"].replace(finer)
        started._adopted(finer)
        p_value = (before.head.calibrator.floor * finer.head.calibrator.floor) ** 0.5
        started._config(Config(set={"alarm.p_value": p_value}))
        started._adopted(finer)
        assert started._effective()["alarm"]["p_value"] == p_value, "the control: this one can"
        started._adopted(before)
        assert started._effective()["alarm"]["p_value"] is None
    assert "cannot be told" in caplog.text


def test_what_only_the_head_of_this_machine_can_tell_is_refused(tmp_path: Path) -> None:
    """A start begins with the bundle's head: it would be the last one."""
    (tmp_path / "other").mkdir()
    finer = Bundle.open(build(tmp_path / "other" / "m.amiss"))
    with agent(tmp_path) as started:
        stream = started.streams["s"]
        stream._adopt(finer.head, started.config.alarm)
        coarse, fine = started.bundle.head.calibrator.floor, finer.head.calibrator.floor
        assert fine < coarse
        status, error = ask(started, "config", set={"alarm.p_value": (coarse * fine) ** 0.5})
        assert status == "error"
        assert "cannot be told" in error
        assert ask(started, "config", set={"alarm.p_value": 1.1 * coarse})[0] == "ok"


def test_a_way_back_to_a_head_that_cannot_tell_the_threshold_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    finer = Bundle.open(build(tmp_path / "other" / "m.amiss"))
    with agent(tmp_path) as started:
        stream = started.streams["s"]
        stream.heads.keep(finer.head, made="2026-01-01T00:00:00Z", windows=1200, trusted=False)
        stream._adopt(finer.head, started.config.alarm)
        floors = started.bundle.head.calibrator.floor, finer.head.calibrator.floor
        stream.use(msgspec.structs.replace(started.config.alarm, p_value=(floors[0] * floors[1]) ** 0.5))
        with pytest.raises(ConfigError, match="cannot be told"):
            stream.roll_back()
        assert stream.pipeline.head is finer.head
        assert stream.heads.about is not None
        stream.use(started.config.alarm)
        assert stream.roll_back()["to"] == "the bundle's"


def test_a_disk_that_takes_nothing_ends_no_agent_that_was_commissioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    kept.save(tmp_path / "state", Settings(commission={"s": Learning(minutes=1.0)}))

    def full(*_: object) -> None:
        raise CannotCreateError("settings.json: no space left")

    with agent(tmp_path) as started:
        monkeypatch.setattr(kept, "save", full)
        started._commissioned("s", None, "fitted", "")
        assert started.settings.commission == {}
        assert "commissioned anew at the next start" in caplog.text
        status, error = ask(started, "commission", stream="s", minutes=1)
        assert (status, "no space left" in error) == ("error", True)
        assert not started.streams["s"].commissioning, "what cannot be kept is not begun"


def test_a_port_that_is_taken_costs_the_page_and_not_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    other = Server("other", "127.0.0.1", port, {})
    other.start()
    with closing(other), agent(tmp_path, web={"port": port}, metrics={"port": free_port()}) as started:
        started._serve()
        assert f"no page: web.port: 127.0.0.1:{port} is taken" in caplog.text
        assert "metrics at http://127.0.0.1:" in caplog.text
        assert started._metrics is not None
        started._metrics.close()


def test_a_start_proves_its_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven: list[str] = []
    real = Bundle.self_test
    monkeypatch.setattr(Bundle, "self_test", lambda bundle: proven.append(bundle.digest) or real(bundle))
    with agent(tmp_path, update={"repository": "/media/usb"}) as started:
        assert proven == [started.bundle.digest]
        assert started._updates is not None
        assert started._updates.progress.digest == started.bundle.digest


def test_a_provider_that_is_absent_does_not_keep_the_agent_from_watching(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with agent(tmp_path, runtime={"provider": "cuda"}) as started:
        info = started.info()
    assert (info.backend, info.provider) == ("onnxruntime", "cpu")
    assert info.config["runtime"]["provider"] == "cuda"
    assert len([one for one in caplog.records if "has no cuda" in one.message and one.levelno == logging.WARNING]) == 1


def test_a_pushed_model_goes_to_the_provider_by_the_same_rules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"update": {"repository": str(tmp_path), "root": "/none"}, "runtime": {"provider": "cuda"}}
    with agent(tmp_path, **data) as started:
        assert started.info().provider == "cpu"
        assert "has no cuda" in caplog.text, "the factory's model, through the store"
