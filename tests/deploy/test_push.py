"""Who is asked to look for a new model, and what is told of it. A real broker; each device says what a script has it say."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import paho.mqtt.client as paho
import pytest
from mosquitto import Mosquitto, executable, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from deploy import push as pushing
from deploy.push import push
from edge import config as configs
from edge.errors import AccessError, NoInputError, SinkUnavailableError
from edge.updating.workflow import Progress

DOCS = Path(__file__).parents[2] / "docs"


class Device:
    """Retains where it is; when asked, answers and goes through `steps`. One that is `deaf` hears nothing."""

    def __init__(
        self, port: int, node: str, group: str = "", *steps: Progress, error: str = "", deaf: bool = False, password: str = ""
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self._node, self._steps, self._error = node, steps, error
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if password:
            self._client.username_pw_set(node, password)
        self._client.on_message = self._asked
        ready: list[int] = []
        self._client.on_subscribe = lambda *rest: ready.append(1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._say(Progress(step="idle", number=1, digest="a" * 64, group=group)).wait_for_publish(10)
        if not deaf:
            self._client.subscribe(f"amiss/{node}/request/+", 1)
            until(lambda: ready)

    def _say(self, progress: Progress) -> paho.MQTTMessageInfo:
        return self._client.publish(f"amiss/{self._node}/update", msgspec.json.encode(progress), 1, retain=True)

    def _asked(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        body = json.loads(message.payload)
        self.asked.append(body)
        answer = {"status": "error", "error": self._error} if self._error else {"status": "ok", "data": {}}
        answer["transaction"] = body["transaction"]
        client.publish(f"amiss/{self._node}/response/update", json.dumps(answer), 1)
        for step in self._steps:
            self._say(step)

    def tell(self, topic: str, payload: bytes) -> None:
        self._client.publish(f"amiss/{self._node}/{topic}", payload, 1, retain=True).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()


def at(step: Any, *, number: int = 1, digest: str = "a", **more: Any) -> Progress:
    return Progress(step=step, number=number, digest=digest * 64, **more)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "_PATIENCE_S", 2.0)
    monkeypatch.setattr("deploy.retained.PATIENCE_S", 2.0)
    monkeypatch.setattr(pushing, "_SETTLED_S", 0.5)


@pytest.fixture
def plant(mosquitto: Mosquitto) -> Iterator[dict[str, Device]]:
    with ExitStack() as devices:
        yield {
            name: devices.enter_context(device)
            for name, device in {
                "pump-1": Device(
                    mosquitto.port,
                    "pump-1",
                    "pumps",
                    at("trying", offered=2, name="pump", version="1.1", group="pumps"),
                    at("probation", number=2, digest="b", offered=2, group="pumps"),
                ),
                "pump-2": Device(
                    mosquitto.port,
                    "pump-2",
                    "pumps",
                    at("checking", group="pumps"),
                    at(
                        "idle",
                        reason="model 2 is not taken: it says the same of everything",
                        became="refused",
                        about=2,
                        bad=1,
                        group="pumps",
                    ),
                ),
                "fan-1": Device(mosquitto.port, "fan-1", "fans", at("checking", group="fans"), at("idle", group="fans")),
                "odd": Device(mosquitto.port, "odd", error="this device takes no models"),
            }.items()
        }


def outcomes(rows: list[pushing.Row]) -> dict[str, tuple[str, bool]]:
    return {row.device: (row.outcome, row.failed) for row in rows}


def test_everybody_is_asked_and_each_tells_what_it_makes_of_it(mosquitto: Mosquitto, plant: dict[str, Device]) -> None:
    seen: list[str] = []
    rows = push(mosquitto.config(), watch_s=5.0, said=lambda row: seen.append(pushing.line(row)))
    assert outcomes(rows) == {
        "fan-1": ("nothing newer for it", False),
        "odd": ("this device takes no models", True),
        "pump-1": ("runs it, on probation", False),
        "pump-2": ("model 2 is not taken: it says the same of everything", True),
    }
    assert "pump-1: trying pump 1.1 (number 2)" in seen
    head, *lines = pushing.table(rows)
    assert head.split() == ["device", "group", "runs", "step", "outcome"]
    assert lines[2] == "pump-1  pumps  model 2  probation  runs it, on probation"


def test_what_became_of_an_earlier_model_is_no_news() -> None:
    before = at("idle", reason="model 1 was taken back: worse", became="taken back", about=1)
    assert not pushing.Row(device="pump-1", answer="ok", asked=before, progress=before).failed
    again = at("idle", reason="model 2 was taken back: worse", became="taken back", about=2)
    assert pushing.Row(device="pump-1", answer="ok", asked=before, progress=again).failed


@pytest.mark.parametrize(
    ("groups", "devices", "asked"),
    [
        ((), (), {"pump-1", "pump-2", "fan-1", "odd"}),
        (("pumps",), (), {"pump-1", "pump-2"}),
        ((), ("fan-1",), {"fan-1"}),
        (("pumps",), ("odd",), {"pump-1", "pump-2", "odd"}),
    ],
)
def test_only_who_is_meant_is_asked(
    mosquitto: Mosquitto, plant: dict[str, Device], groups: tuple[str, ...], devices: tuple[str, ...], asked: set[str]
) -> None:
    rows = push(mosquitto.config(), groups=groups, devices=devices)
    assert {row.device for row in rows} == asked == {name for name, device in plant.items() if device.asked}


def test_a_name_that_is_not_there_asks_nobody(mosquitto: Mosquitto, plant: dict[str, Device]) -> None:
    with pytest.raises(NoInputError, match=r"no device pump-9 .*; those that do: fan-1, odd, pump-1, pump-2"):
        push(mosquitto.config(), devices=["pump-1", "pump-9"])
    with pytest.raises(NoInputError, match="no device of group pump; groups there: fans, pumps"):
        push(mosquitto.config(), groups=["pump"])
    assert not any(device.asked for device in plant.values())


def test_nobody_there_at_all(mosquitto: Mosquitto) -> None:
    with pytest.raises(NoInputError, match=r"no device takes models; a section \[update\]"):
        push(mosquitto.config())


def test_one_that_is_off_does_not_answer(mosquitto: Mosquitto, plant: dict[str, Device]) -> None:
    with Device(mosquitto.port, "pump-3", "pumps", deaf=True):
        rows = push(mosquitto.config(), groups=["pumps"], watch_s=1.0)
    assert outcomes(rows)["pump-3"] == ("no answer; is it on?", True)
    assert outcomes(rows)["pump-1"] == ("runs it, on probation", False)


def test_the_token_goes_along(mosquitto: Mosquitto, plant: dict[str, Device], tmp_path: Path) -> None:
    push(mosquitto.config(), devices=["fan-1"])
    assert "token" not in plant["fan-1"].asked[-1]
    secret = tmp_path / "token"
    secret.write_text("horse battery\n")
    token = configs.load_token(None, {"AMISS_REQUESTS__TOKEN_FILE": str(secret)})
    push(mosquitto.config(), devices=["fan-1"], token=token)
    assert plant["fan-1"].asked[-1]["token"] == "horse battery"


def test_the_operator_of_the_acl_may_push_and_a_device_may_not(tmp_path: Path) -> None:
    """With the ACL of docs/mqtt.md."""
    (acl,) = re.findall(r"^```acl\n(.*?)^```$", (DOCS / "mqtt.md").read_text("utf-8"), re.M | re.S)
    with Mosquitto(tmp_path / "strict", password=("operator", "p"), acl=acl):
        pass
    broker = Mosquitto(tmp_path / "strict", password=("operator", "p"), acl=acl)
    users = tmp_path / "strict" / "users"
    subprocess.run([executable("mosquitto_passwd"), "-b", users, "pump-1", "p"], check=True, capture_output=True)
    with broker, Device(broker.port, "pump-1", "", at("idle"), password="p") as pump:
        rows = push(broker.config(username="operator", password="p"))
        assert outcomes(rows) == {"pump-1": ("nothing newer for it", False)}
        with pytest.raises(AccessError, match="ACL"):
            push(broker.config(username="pump-1", password="p"))
        assert len(pump.asked) == 1
    with pytest.raises(SinkUnavailableError):
        push(broker.config())


@pytest.mark.parametrize(("device", "code"), [("fan-1", 0), ("odd", 1), ("pump-9", 66)])
def test_the_command_line(mosquitto: Mosquitto, plant: dict[str, Device], device: str, code: int) -> None:
    command = [sys.executable, "-m", "amiss", "push", "--broker", f"127.0.0.1:{mosquitto.port}", "--device", device, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code < 2:
        assert [row["device"] for row in json.loads(done.stdout)] == [device]
    else:
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


def test_one_that_is_held_is_asked_for_by_its_number(mosquitto: Mosquitto, plant: dict[str, Device]) -> None:
    push(mosquitto.config(), devices=["pump-1"], number=7)
    push(mosquitto.config(), devices=["fan-1"])
    assert (plant["pump-1"].asked[0]["number"], "number" in plant["fan-1"].asked[0]) == (7, False)
    done = subprocess.run(
        [sys.executable, "-m", "amiss", "push", "--broker", "b", "--version", "pump-2"], capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--repo" in done.stderr


def test_without_a_broker_it_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "amiss", "push"], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--broker" in done.stderr
