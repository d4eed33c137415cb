"""The image on an emulated board: from the files that a person puts on a card to an alert over a real Mosquitto.

`make image-boot` runs it on QEMU's own board, `make image-boot BOARD=raspi3b` on a Raspberry Pi 3. Times are told at the end.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto

from deploy import demo, machine
from deploy.image import boot, disk
from deploy.push import push
from deploy.pushes import Shop
from deploy.repository import Repository
from deploy.shelf import shelve
from edge.bundle import Bundle, Golden, members_of, pack_golden
from edge.operating.commission import commission
from edge.scoring.backends import run_in_slices
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import Machine

BOARD: boot.Board = "raspi3b" if os.environ.get("BOARD") == "raspi3b" else "virt"
IMAGE = Path(os.environ.get("IMAGE", ""))
PATIENCE_S = float(os.environ.get("PATIENCE_S", "900"))
"""For what has to come some time: emulated boards are slow, and on a busy computer slower."""
NODE, STREAM = "pump-7", "machine"
CONFIG = """\
node = "pump-7"
bundle = "pump.amiss"

[streams.machine]
port = "{port}"
clock = "sensor"
silence_s = 120.0  # an emulated board on a busy computer stands still for a while

[mqtt]
host = "10.0.2.2"
port = {broker}

[update]
repository = "mqtt:pumps"
trial_minutes = 0.8
probation_hours = 0.01
record_hours = 0.1
record_bytes_per_day = 8_000_000_000
"""
QUIET_S = 40.0
"""As long as the fault is waited for in the run without emulation, and as long as there must be no alert without it."""
SEED = 3


class Times:
    """What happened when, for the table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []

    def note(self, what: str, at_s: float) -> None:
        self.rows.append((what, at_s))

    def table(self) -> str:
        return "\n".join(f"{at_s:8.0f} s  {what}" for what, at_s in self.rows)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as it comes out of the .zst."""
    assert IMAGE.is_file(), "IMAGE says which to boot; `make image-boot` makes one"
    path = tmp_path_factory.mktemp("image") / "image"
    boot.unpack(IMAGE, path)
    return path


def card(image: Path, folder: Path) -> boot.Card:
    """A fresh one."""
    boot.run(["cp", "--sparse=always", str(image), str(folder / "card.img")])
    return boot.Card(folder / "card.img")


@pytest.fixture(scope="module")
def source() -> Machine:
    return Machine(SEED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, source: Machine) -> Path:
    """Learned from the machine that the guest will watch, compressed to int8: what a real device has."""
    folder = tmp_path_factory.mktemp("model")
    demo.learn_simulation(source, folder, SEED)
    return folder / "demo.amiss"


class Running:
    """The machine at the other end of the cable, in a thread, at its own pace."""

    def __init__(self, source: Machine, wire: boot.Wire) -> None:
        self.source = source
        self._wire, self._stop, self._fault = wire, threading.Event(), ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def inject(self, fault: str) -> None:
        self._fault = fault

    def _run(self) -> None:
        sensor = machine.Sensor(self.source, self._wire)  # type: ignore[arg-type]  # it only writes and closes
        while not self._stop.is_set():
            if self._fault:
                self.source.inject(self._fault)
                self._fault = ""
            sensor.wait()
            sensor.send()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker", options="max_queued_messages 10000") as running:
        yield running


def events(listener: Listener, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(payload) for payload in listener.payloads(f"amiss/{NODE}/{STREAM}/event")]
    return [event for event in told if event["type"] == kind]


def last(listener: Listener, topic: str) -> dict[str, Any]:
    payloads = [payload for payload in listener.payloads(f"amiss/{NODE}/{topic}") if payload]
    return json.loads(payloads[-1]) if payloads else {}


def availability(listener: Listener) -> bytes:
    return (listener.payloads(f"amiss/{NODE}/availability") or [b""])[-1]


def test_from_the_card_to_the_alert(
    image: Path, source: Machine, bundle: Path, broker: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, times = Shop(tmp_path / "shop", bundle), Times()
    at = card(image, tmp_path)
    before = at.system(tmp_path / "before")
    small = before.size()
    assert at.path.stat().st_size > small + 2**30, "there is something to grow into"
    assert before.ask("cat /etc/machine-id") == "", "no two devices have the same"
    assert "ssh_host_" not in before.ask("ls -p /etc/ssh")
    config = CONFIG.format(port=boot.PORTS[BOARD], broker=broker.port)
    at.put({"amiss.toml": config.encode(), "pump.amiss": bundle.read_bytes(), "root.json": shop.root.read_bytes()})

    with Listener(broker.port, "amiss/#") as listener, boot.Guest(at, tmp_path / "guest", BOARD) as guest:
        for name in ("amiss.toml", "pump.amiss", "root.json"):
            guest.wait(lambda name=name: f"amiss: {name} is taken over" in guest.console, name, PATIENCE_S)  # type: ignore[misc]
        times.note("configuration, model and root of trust are taken over", time.monotonic() - guest.started_s)
        started = re.compile(r"Started.*amiss\.service")
        times.note("the unit is active", guest.wait(lambda: bool(started.search(guest.console)), "the unit", PATIENCE_S))
        times.note("online at the broker", guest.wait(lambda: availability(listener) == b"online", "online", PATIENCE_S))
        guest.wait(lambda: bool(last(listener, "info") and last(listener, "update")), "what it says of itself", PATIENCE_S)
        info = last(listener, "info")
        assert info["model"]["digest"] == Bundle.open(bundle).digest
        if BOARD == "raspi3b":
            assert info["board"].startswith("Raspberry Pi 3 Model B"), info["board"]

        running = Running(source, guest.wire)
        try:
            scored = guest.wait(lambda: "score" in last(listener, f"{STREAM}/state"), "the first score", PATIENCE_S)
            times.note("the first score of what comes over the cable", scored)
            quiet_until = time.monotonic() + QUIET_S
            guest.wait(lambda: time.monotonic() > quiet_until, "nothing", PATIENCE_S)
            assert events(listener, "anomaly_started") == [], "the control: without a fault there is no alert"
            assert events(listener, "gap") == [], "every frame came through"

            digest = offer_better(shop, tmp_path)
            assert shelve(Repository(shop.repo), "pumps", broker.config()).left_out == ()
            number = pushed(guest, broker, listener)
            assert number == 1
            assert last(listener, "info")["model"]["digest"] == digest
            times.note("a better model is pushed, tried and stays", time.monotonic() - guest.started_s)
            assert events(listener, "anomaly_started") == [], "nobody was woken by it"

            resident_bytes = last(listener, "health")["rss"]  # of an agent that has taken a model since it started

            injected = time.monotonic()
            running.inject("imbalance")
            alarmed = guest.wait(lambda: bool(events(listener, "anomaly_started")), "the alert", PATIENCE_S)
            times.note(f"a fault is told, {time.monotonic() - injected:.0f} s after it began", alarmed)
            (event,) = events(listener, "anomaly_started")
            assert event["model"] == digest
            assert event["channels"][0]["channel"].startswith("vibration")
        finally:
            running.stop()
        guest.kill()
        listener.wait(lambda heard: availability(listener) == b"offline")
        times.note("offline by its last will, after the plug was pulled", time.monotonic() - guest.started_s)

    after = at.system(tmp_path / "after")
    after.check()
    start, size = at.partitions()[1]
    assert len(at.partitions()) == 2
    assert start + size > boot.CARD_BYTES - disk.ALIGN, "the root partition has grown"
    assert size - disk.ALIGN <= after.size() <= size, "and its file system with it"
    assert not {"amiss.toml", "pump.amiss", "root.json", "amiss-error.txt"} & set(at.names()), "taken away"
    assert "README.txt" in at.names()
    assert re.fullmatch(r"[0-9a-f]{32}\n", after.ask("cat /etc/machine-id"))
    assert after.ask("cat /etc/hostname") == f"{NODE}\n"
    assert after.ask("cat /etc/amiss/device.toml") == config
    assert re.search(r"Mode: +0640 ", after.ask("stat /etc/amiss/device.toml"))
    assert "ssh_host_" not in after.ask("ls -p /etc/ssh"), "nobody asked for ssh"
    with capsys.disabled():
        print(f"\n\n{BOARD}, emulated, from power on:\n{times.table()}\n{resident_bytes / 1e6:8.0f} MB resident\n")


def offer_better(shop: Shop, folder: Path) -> str:
    """What is ordinary, learned from more of the same machine; with few golden windows, so that it fits into a message."""
    more, better = folder / "more.csv", folder / "better.amiss"
    elsewhere = Machine(SEED)
    write_recording(more, machine.recording_of([elsewhere.next(round(900 * elsewhere.rate_hz))], "more"))
    commission(shop.bundle, [more], better)
    members, opened = members_of(better), Bundle.open(better)
    x = opened.golden.x[:4]
    outputs = run_in_slices(opened.backend, x)
    members["golden.npz"] = pack_golden(Golden(x, outputs, opened.head.scorer.score(outputs)))
    return shop.offer(better, opened.manifest.lineage, members)


def pushed(guest: boot.Guest, broker: Mosquitto, listener: Listener) -> int:
    """As `amiss push --watch` does, until it stays; again while the device has recorded too little. The number that runs."""

    def stays() -> bool:
        now = last(listener, "update")
        if (now["step"], now["number"]) == ("idle", 1):
            return True
        if now["step"] == "idle":
            assert now.get("became", "") not in ("refused", "unfit", "taken back"), now["reason"]
            time.sleep(2.0)
            (row,) = push(broker.config(), devices=[NODE])
            assert row.answer != "refused", row.error
        return False

    guest.wait(stays, "the model that was pushed", PATIENCE_S)
    number: int = last(listener, "update")["number"]
    return number


def test_a_wrong_configuration_is_told_on_the_card_and_starts_nothing(
    image: Path, bundle: Path, broker: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control of the other test, too: what it takes for a unit that runs can be missing."""
    at = card(image, tmp_path)
    config = CONFIG.format(port=boot.PORTS[BOARD], broker=broker.port).replace("bundle =", "bundel =")
    at.put({"amiss.toml": config.encode(), "pump.amiss": bundle.read_bytes()})
    with Listener(broker.port, "amiss/#") as listener, boot.Guest(at, tmp_path / "guest", BOARD) as guest:
        told = guest.wait(lambda: "NOT taken over: amiss.toml: unknown key" in guest.console, "it is told", PATIENCE_S)
        up = guest.wait(lambda: "Reached target multi-user.target" in guest.console, "the system", PATIENCE_S)
        assert not re.search(r"Started.*amiss\.service", guest.console)
        assert availability(listener) == b""
        guest.kill()
    assert "amiss.toml: unknown key `bundel`; did you mean `bundle`?" in at.text("amiss-error.txt", tmp_path)
    assert {"amiss.toml", "pump.amiss"} <= set(at.names()), "to be mended"
    assert "device.toml" not in at.system(tmp_path / "after").ask("ls -p /etc/amiss")
    with capsys.disabled():
        print(
            f"\n\n{BOARD}, emulated, wrong amiss.toml:\n{told:8.0f} s  told on the console\n{up:8.0f} s  everything else runs\n"
        )
