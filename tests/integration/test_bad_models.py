"""Every kind of bad model is offered to a live agent, signed as it should be, while its machine runs and fails now and then.

None of them stays; the stream misses no window, every fault is told, and every record arrives.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import bad_models
import msgspec
import numpy as np
import pytest
from bad_models import BAD, LENGTH, Bad
from mosquitto import Listener, Mosquitto, until
from test_asking import types
from test_update import SECTION, Machine, Shop, plant, progress

from deploy import publish as publishing
from edge.updating.offer import Offer

soak = pytest.mark.soak
HOP = LENGTH // 4
HEADS = ("alarms at everything", "alarms at nothing", "threshold out of reach")
"""Their scorer or calibrator is bad, and their encoder is not."""
FEW = ("another rate", "constant", "not a number where the machine has not been")
PATIENCE_S = 300.0
"""Two kinds compute without an end: their minute of processor time has to pass."""


class Careless(Shop):
    """Signs what its manifest says, and proves nothing."""

    def offer(self, version: str, made: tuple[Any, dict[str, bytes]]) -> str:
        manifest = msgspec.structs.replace(made[0], name="pump", version=version)

        def examine(bundle: Path, groups: Any, devices: Any, note: str) -> tuple[bytes, Offer]:
            data = bundle.read_bytes()
            said = {
                name: getattr(manifest, name) for name in ("name", "version", "schema", "minimum_agent", "channels", "rate_hz")
            }
            return data, Offer(
                number=1, digest=hashlib.sha256(data).hexdigest(), size=len(data), runtimes=manifest.runtimes, **said
            )  # fmt: skip

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publishing, "examine", examine)
            return super().offer(version, (manifest, made[1]))


def fault(listener: Listener, machine: Machine, offset: float = 6.0) -> None:
    """The machine does something that it has never done, and is mended; both are told."""
    before = types(listener).count("anomaly_started")
    machine.offset = np.array([[0], [offset]], np.float32)
    until(lambda: types(listener).count("anomaly_started") > before)
    machine.offset = np.zeros((2, 1), np.float32)
    until(lambda: types(listener).count("anomaly_ended") == types(listener).count("anomaly_started"))
    assert types(listener).count("anomaly_started") == before + 1


def offered(number: int, kind: Bad, shop: Shop, listener: Listener, machine: Machine, ask: Any) -> str:
    """What becomes of it. A fault begins and ends while it is tried, and one more, where it has never been, once it serves."""
    shop.offer(f"1.{number}", kind.build())
    until_s = time.monotonic() + PATIENCE_S
    asked_s = 0.0
    troubled = False
    while time.monotonic() < until_s:
        now = progress(listener)
        if now.get("about") == number and now["step"] == "idle":
            return str(now["became"])
        if now["step"] == "trying" and now.get("offered") == number and not troubled:
            fault(listener, machine)
            troubled = True
        elif now["step"] == "probation" and now["number"] == number and kind.stopped_by == "probation":
            machine.offset = np.array([[60], [0]], np.float32)
            until(lambda: progress(listener)["number"] != number)
            machine.offset = np.zeros((2, 1), np.float32)
            until(lambda: types(listener).count("anomaly_ended") == types(listener).count("anomaly_started"))
        elif now["step"] == "idle" and time.monotonic() - asked_s > 1.5:
            assert ask("update", number=number)["status"] == "ok"
            asked_s = time.monotonic()
        time.sleep(0.05)
    raise AssertionError(f"{number}: {progress(listener)}")


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [FEW, pytest.param(tuple(BAD), marks=soak)])
def test_no_bad_model_stays_and_the_stream_misses_nothing(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr("test_update.Shop", Careless)
    monkeypatch.setattr(
        "test_update.SECTION",
        "health_every_s = 0.5\n[alarm]\ncool_down_s = 2\nlongest_cool_down_s = 2\n" + SECTION,
    )
    rolled_back, taken_back, mended, faults = 0, 0, 0, 0
    with plant(tmp_path, mosquitto, monkeypatch) as (shop, listener, person, machine):
        until(lambda: listener.payloads("amiss/n/health"))
        shop.offer("1.0", bad_models.good(1))  # number 1, which is good
        for number, name in enumerate(kinds, 2):
            became = offered(number, BAD[name], shop, listener, machine, person.ask)
            now = progress(listener)
            print(f"{name:45} {became}: {now.get('reason', '')}", flush=True)
            if BAD[name].stopped_by == "nothing":
                assert became == "kept"
                continue
            if name in HEADS and became == "kept":  # the device has fitted a head of its own to its encoder, which is good
                fault(listener, machine)
                mended += 1
                continue
            assert became in ("refused", "unfit", "taken back")
            ran = became == "taken back"  # where the machine has been once, the trial finds what else only service would
            assert ran <= (BAD[name].stopped_by == "probation")
            taken_back += ran
            assert now["number"] < number
            rolled_back += 1
            fault(listener, machine)  # what runs is as good as before
            faults += 1
        machine.stop()
        told = len(listener.payloads("amiss/n/health"))

        def samples() -> list[int]:
            return [json.loads(one)["streams"]["s"]["samples"] for one in listener.payloads("amiss/n/health")[told:]]

        until(lambda: len(samples()) >= 3 and samples()[-1] == samples()[-2])  # all that was sent is judged
        health = json.loads(listener.payloads("amiss/n/health")[-1])
        stream = health["streams"]["s"]
        missed = (stream["samples"] - LENGTH) // HOP + 1 - stream["windows"]
        events = [json.loads(payload) for payload in listener.payloads("amiss/n/s/event")]
        numbers = sorted({int(event["record"].rpartition("-")[2]) for event in events})
        print(
            f"{rolled_back} bad models, {stream['windows']} windows, {missed} missed, {len(numbers)} records, {faults} faults"
        )
        assert missed == 0
        assert stream["lost"] == 0
        assert numbers == list(range(1, len(numbers) + 1)), "no record is missing"
        assert health["mqtt"]["dropped"] == 0
        assert "gap" not in types(listener)
    assert taken_back
    assert rolled_back + mended == sum(BAD[name].stopped_by != "nothing" for name in kinds)
