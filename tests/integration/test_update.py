"""A model is pushed, tried, runs and stays; worse ones do not. A real agent, a real repository, a real broker, a real port."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bad_models
import msgspec
import numpy as np
import pytest
from bad_models import BAD, packed, running
from mosquitto import Listener, Mosquitto, until
from test_agent import agent, configure
from test_asking import Person, Sensor, types

from deploy import keyfiles, keys
from deploy import publish as publishing
from deploy import push as pushing
from deploy.keyfiles import KeyRing, Passphrases

WORDS = "four random words here"
SECTION = """\
[update]
repository = "{repo}"
root = "{root}"
poll_every_s = 3600
trial_minutes = 0.4
probation_hours = 0.05
record_hours = 0.1
record_bytes_per_day = 8_000_000_000  # the machine runs twenty times as fast as it says
"""


class Machine(Sensor):
    """The one that the models are for."""

    def ordinary(self, part: int) -> np.ndarray[Any, Any]:
        return running(100, part)


class Shop:
    """Who makes models, and signs them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.repo, self.root = folder, folder / "shop", folder / "root.json"
        self._passphrases = Passphrases({}, lambda prompt: WORDS, lambda: True)
        keys.init(self.repo, folder / "keys", self._passphrases)
        self.root.write_bytes((self.repo / "metadata" / "1.root.json").read_bytes())

    def offer(self, version: str, made: tuple[Any, dict[str, bytes]]) -> str:
        """Publish it; returns its digest."""
        manifest, members = made
        manifest = msgspec.structs.replace(manifest, name="pump", version=version)
        path = packed(self._folder / f"pump-{version}.amiss", manifest, members)
        done = publishing.publish(path, self.repo, KeyRing([self._folder / "keys"], self._passphrases))
        assert done.offer is not None
        return done.offer.digest


@contextmanager
def plant(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Shop, Listener, Person, Machine]]:
    """A machine that runs, an agent with its factory's model, and a shop."""
    monkeypatch.setattr(keyfiles, "SCRYPT_N", 16)
    shop = Shop(tmp_path)
    factory = packed(tmp_path / "factory.amiss", *bad_models.good(0))
    config = configure(tmp_path, factory, mosquitto.port, SECTION.format(repo=shop.repo, root=shop.root))
    with Listener(mosquitto.port, "amiss/#") as listener, Machine(tmp_path / "tty", speed=20.0) as machine, agent(config):
        until(lambda: listener.payloads("amiss/n/update"))
        person = Person(mosquitto.port, listener)
        try:
            yield shop, listener, person, machine
        finally:
            person.close()


def progress(listener: Listener) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(listener.payloads("amiss/n/update")[-1])
    return found


def push(person: Person, listener: Listener, done: Any, timeout_s: float = 60.0) -> None:
    """Say that there is something, again and again: while too little is recorded, it waits."""
    for _ in range(40):
        assert person.ask("update")["status"] == "ok"
        for _ in range(15):
            if done(progress(listener)):
                return
            time.sleep(0.1)
    raise AssertionError(f"{progress(listener)}")


@pytest.mark.slow
def test_a_better_model_comes_worse_ones_do_not_and_a_person_takes_it_back(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plant(tmp_path, mosquitto, monkeypatch) as (shop, listener, person, machine):
        assert person.ask("rollback")["error"].startswith("the model of the configuration runs")
        better = shop.offer("1.1", bad_models.good(1))
        push(person, listener, lambda now: now["number"] == 1 and now["step"] == "idle")
        steps = [json.loads(payload)["step"] for payload in listener.payloads("amiss/n/update")]
        assert [step for step in ("checking", "fetching", "trying", "probation") if step in steps] == [
            "checking",
            "fetching",
            "trying",
            "probation",
        ]
        assert json.loads(listener.payloads("amiss/n/info")[-1])["model"]["digest"] == better
        machine.offset = np.array([[0], [6]], np.float32)
        listener.wait(lambda _: "anomaly_started" in types(listener))
        event = json.loads(listener.payloads("amiss/n/s/event")[-1])
        assert event["model"] == better, "every event names the model that judged"
        machine.offset = np.zeros((2, 1), np.float32)
        listener.wait(lambda _: "anomaly_ended" in types(listener))

        shop.offer("1.2", BAD["constant"].build())
        (row,) = pushing.push(mosquitto.config(), devices=["n"], watch_s=60.0)
        for _ in range(20):
            if "waits" not in row.outcome:  # too little is recorded
                break
            (row,) = pushing.push(mosquitto.config(), devices=["n"], watch_s=60.0)
        assert (row.answer, row.failed) == ("ok", True), row.outcome
        assert (progress(listener)["bad"], progress(listener)["step"]) == (1, "idle")
        assert (progress(listener)["number"], progress(listener)["digest"]) == (1, better)
        assert "model 2" in progress(listener)["reason"]
        assert "says the same of everything" in progress(listener)["reason"]
        assert types(listener).count("anomaly_started") == 1, "nobody was woken by it"

        shop.offer("1.3", BAD["not a number where the machine has not been"].build())
        push(person, listener, lambda now: now["number"] == 3 and now["step"] == "probation")
        machine.offset = np.array([[60], [0]], np.float32)
        until(lambda: progress(listener)["number"] == 1)
        assert "not finite" in progress(listener)["reason"]
        machine.offset = np.zeros((2, 1), np.float32)
        until(lambda: not json.loads(listener.payloads("amiss/n/s/state")[-1])["anomaly"])

        command = [
            sys.executable,
            "-m",
            "amiss",
            "rollback",
            "--config",
            tmp_path / "device.toml",
            "--reason",
            "I liked the old one",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "model 1 is taken back: I liked the old one\n"
        until(lambda: progress(listener)["number"] == 0)
        assert "I liked the old one" in progress(listener)["reason"]
        assert "gap" not in types(listener), "the stream was never without a model"
