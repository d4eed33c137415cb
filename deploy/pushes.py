"""The end of `amiss demo`: a better model is pushed to the device and stays; two bad ones do not.

    keys ─▶ signed repository ─▶ agent: trial on the stream's last minute ─▶ switch ─▶ probation ─▶ stays, or back

All three are signed: what is told here is what a device does when whoever makes its models is mistaken.
"""

import json
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from deploy import brokers, keys, machine, stage
from deploy.keyfiles import KeyRing, Passphrases
from deploy.publish import publish
from deploy.push import Row, push
from deploy.stage import NODE, STREAM, say, step
from edge.bundle import Bundle, Golden, members_of, pack_golden, unpack_arrays, verify, write_bundle
from edge.config import MqttConfig
from edge.delivery import topics
from edge.errors import GateError
from edge.operating.commission import commission
from edge.scoring.backends import OnnxBackend, run_in_slices
from edge.sensing.recordings import read_recording
from edge.updating.workflow import Progress

SPEED = 4.0
"""Times real time that the machine runs: nobody waits for an hour of its data."""
TRIAL_MINUTES = 1.2
PROBATION_HOURS = 0.02
DECIDED_S = 120.0
"""For the device to make up its mind."""
SECTION = """
[update]
repository = "{repo}"
root = "{root}"
trial_minutes = {trial}
probation_hours = {probation}
record_hours = 0.1
record_bytes_per_day = 8_000_000_000  # the machine runs several times as fast as it says
"""
FAR = 5.0
"""Times the highest vibration of any recording: no trial can find that."""
BROKEN = 1000.0
"""How severe the imbalance is when a blade comes off: beyond `FAR` within a few samples."""


@dataclass(slots=True)
class Told:
    """What happened, and whether it is what should have."""

    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def show(bundle: Path, more: Path, source: machine.Source, folder: Path) -> Told:
    """`bundle` runs; `more` is a recording of normal running that it has not seen. Configuration and log go to `folder`."""
    told = Told()
    with tempfile.TemporaryDirectory(prefix="amiss-demo-") as temporary, brokers.embedded(Path(temporary)) as broker_port:
        shop = Shop(Path(temporary), bundle)
        port = machine.SerialPort(Path(temporary) / "ttyDEMO")
        config = stage.configure(
            folder / "push.toml",
            bundle=bundle,
            state=Path(temporary) / "state",
            port=port.name,
            broker_port=broker_port,
            more=SECTION.format(repo=shop.repo, root=shop.root, trial=TRIAL_MINUTES, probation=PROBATION_HOURS),
        )
        running = Running(source, port)
        device = Device(broker_port)
        agent = stage.start_agent(config, anew=False)
        try:
            device.wait(lambda: device.progress is not None, stage.ONLINE_S, "the agent does not come up")
            running.start()
            with step("push a better model: what is ordinary, learned from 30 min more"):
                _better(told, shop, device, more)
            with step("push a bad one: an export that lost its input on the way"):
                _constant(told, shop, device)
            with step("push one that fails where the machine has never been, and let a blade come off"):
                _breaks(told, shop, device, running, more)
        finally:
            running.stop()
            agent.terminate()
            agent.wait(30)
            device.close()
            port.close()
    return told


def _better(told: Told, shop: "Shop", device: "Device", more: Path) -> None:
    path = shop.folder / "better.amiss"
    commission(shop.bundle, [more], path)
    digest = shop.offer(path, verify(path.read_bytes())[0].lineage, members_of(path))
    row = device.push()
    device.wait(lambda: device.at("idle", number=1), DECIDED_S, "the better model does not stay")
    if device.running != digest or row.failed:
        told.failures.append(f"the better model is not the one that runs: {row.outcome}")
    told.data["better_model"] = (
        f"version 1.1 was tried on the last {60 * TRIAL_MINUTES:g} s of the stream, watched for {3600 * PROBATION_HOURS:g} s, "
        f"and stays; {len(device.alerts)} alerts"
    )


def _constant(told: Told, shop: "Shop", device: "Device") -> None:
    before = len(device.alerts)
    shop.offer_operated(scaled(0.0))
    row = device.push()
    ran = device.progress is None or device.progress.number != 1
    if not row.failed or ran or len(device.alerts) > before:
        told.failures.append(f"the model that says the same of everything was not refused in its trial: {row.outcome}")
    told.data["bad_export"] = f"never ran: {row.outcome}; {len(device.alerts) - before} alerts"


def _breaks(told: Told, shop: "Shop", device: "Device", running: "Running", more: Path) -> None:
    before = len(device.alerts)
    shop.offer_operated(fails_beyond(FAR * float(np.nanmax(read_recording(more).x[0]))))
    device.push(until=lambda: device.at("probation", number=3))
    say("  ── it runs; a blade comes off ──")
    running.inject("imbalance", BROKEN)
    broken_s = time.monotonic()
    device.wait(lambda: device.at("idle", number=1), 30.0, "it is not taken back")
    back_s = time.monotonic() - broken_s
    device.wait(lambda: len(device.alerts) > before, 30.0, "nobody is told of the blade")
    heard_s, _ = device.alerts[before]
    reason = device.progress.reason if device.progress is not None else ""
    told.data["breaks_in_service"] = (
        f"version 1.1 runs again {back_s:.1f} s after the blade came off: {reason}; "
        f"the alert came {heard_s - broken_s:.1f} s after it"
    )


class Shop:
    """Who makes models, and signs them. Its keys live as long as the demo."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, bundle
        self.repo, self.root = folder / "models", folder / "root.json"
        words = secrets.token_hex(16)
        self._passphrases = Passphrases({}, lambda prompt: words, lambda: True)
        self._versions = 0
        with step("make keys and a repository"):
            keys.init(self.repo, folder / "keys", self._passphrases)
            self.root.write_bytes((self.repo / "metadata" / "1.root.json").read_bytes())

    def offer(self, made_of: Path, lineage: dict[str, str], members: dict[str, bytes]) -> str:
        """The next version, of these members; returns its digest."""
        self._versions += 1
        manifest = msgspec.structs.replace(
            verify(made_of.read_bytes())[0], version=f"1.{self._versions}", lineage=lineage, stream_hop=0
        )
        path = self.folder / f"{manifest.name}-{manifest.version}.amiss"
        digest = write_bundle(path, manifest, {name: data for name, data in members.items() if name != "stream.onnx"})
        publish(path, self.repo, KeyRing([self.folder / "keys"], self._passphrases))
        return digest

    def offer_operated(self, change: Callable[[onnx.GraphProto], None]) -> str:
        """The bundle with another graph, and golden scores that agree with that: nothing is wrong with it but what it says."""
        members = members_of(self.bundle)
        model = onnx.load_from_string(members["model.onnx"])
        change(model.graph)
        x = unpack_arrays(members["golden.npz"])["x"]
        data = model.SerializeToString()
        outputs = run_in_slices(OnnxBackend(data), x)
        golden = Golden(x, outputs, Bundle.open(self.bundle).head.scorer.score(outputs))
        manifest = verify(self.bundle.read_bytes())[0]
        return self.offer(self.bundle, manifest.lineage, {**members, "model.onnx": data, "golden.npz": pack_golden(golden)})


def scaled(factor: float) -> Callable[[onnx.GraphProto], None]:
    """All that the model is given is multiplied by this."""

    def change(graph: onnx.GraphProto) -> None:
        _before(graph, [helper.make_node("Mul", [graph.input[0].name, "factor"], ["changed"])], {"factor": factor})

    return change


def fails_beyond(limit: float) -> Callable[[onnx.GraphProto], None]:
    """Where the first channel is beyond the limit, the model gives no number."""

    def change(graph: onnx.GraphProto) -> None:
        window = graph.input[0].name
        graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
        nodes = [
            helper.make_node("Gather", [window, "first"], ["vibration"], axis=1),
            helper.make_node("Greater", ["vibration", "limit"], ["far"]),
            helper.make_node("Where", ["far", "nothing", window], ["changed"]),
        ]
        _before(graph, nodes, {"limit": limit, "nothing": float("nan")})

    return change


def _before(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: dict[str, float]) -> None:
    """Nodes that make `changed` of the input, which everything else is given from then on."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == graph.input[0].name:
                node.input[i] = "changed"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items())


class Running:
    """The machine, faster than life, in a thread."""

    def __init__(self, source: machine.Source, port: machine.SerialPort) -> None:
        self._sensor = machine.Sensor(source, port, speed=SPEED)
        self._faults: queue.Queue[tuple[str, float]] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._sensor.started_s = time.monotonic()
        self._thread.start()

    def inject(self, fault: str, severity: float) -> None:
        self._faults.put((fault, severity))

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            while not self._faults.empty():
                self._sensor.source.inject(*self._faults.get())
            self._sensor.wait()
            self._sensor.send()


class Device:
    """What it says over MQTT."""

    def __init__(self, broker_port: int) -> None:
        self._config = MqttConfig(host="127.0.0.1", port=broker_port)
        self._listener = stage.Listener(broker_port)
        self.progress: Progress | None = None
        self.running = ""
        """Digest of the model that runs."""
        self.events: list[tuple[float, dict[str, Any]]] = []
        """When each came, on the monotonic clock of here."""

    @property
    def alerts(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at_s, event) for at_s, event in self.events if event["type"] == "anomaly_started"]

    def at(self, step: str, *, number: int) -> bool:
        return self.progress is not None and (self.progress.step, self.progress.number) == (step, number)

    def push(self, until: Callable[[], bool] | None = None) -> Row:
        """As `amiss push --watch` does, until the device has decided or is so far; again while it has recorded too little."""
        until_s = time.monotonic() + DECIDED_S
        while time.monotonic() < until_s:
            (row,) = push(
                self._config,
                devices=[NODE],
                watch_s=0.0 if until else DECIDED_S,
                said=lambda row: self._heed(),
            )
            while until is not None and not until() and not self._waits() and time.monotonic() < until_s:
                self._heed(0.1)
            self._heed()
            if until() if until is not None else not self._waits():
                return row
            time.sleep(1.0)
        raise GateError(f"the device has not decided within {DECIDED_S:g} s: {self.progress.reason if self.progress else ''}")

    def _waits(self) -> bool:
        return self.progress is not None and self.progress.step == "idle" and " waits: " in self.progress.reason

    def wait(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Raises `GateError` when it does not become true."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s:
                reason = f": {self.progress.reason}" if self.progress is not None and self.progress.reason else ""
                raise GateError(f"{otherwise} within {timeout_s:g} s{reason}")
            self._heed(0.1)

    def _heed(self, timeout_s: float = 0.0) -> None:
        while True:
            try:
                received_s, topic, payload = self._listener.inbox.get(timeout=timeout_s) if timeout_s else self._now()
            except queue.Empty:
                return
            timeout_s = 0.0
            if topic == topics.update(NODE) and payload:
                before, self.progress = self.progress, msgspec.json.decode(payload, type=Progress)
                self.running = self.progress.digest
                if before is not None and before.step != self.progress.step:
                    why = self.progress.reason if self.progress.step == "idle" else ""
                    say(f"  {self.progress.step}{f': {why}' if why else ''}")
            elif topic == topics.event(NODE, STREAM):
                event = json.loads(payload)
                self.events.append((received_s, event))
                if event["type"] == "anomaly_started":
                    say(f"  ▶ {event['type']}: {stage.blame(event)}, model {event['model'][:12]}")

    def _now(self) -> tuple[float, str, bytes]:
        return self._listener.inbox.get_nowait()

    def close(self) -> None:
        self._listener.close()
