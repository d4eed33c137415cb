"""A staged roll-out to many devices on one broker: `python -m benchmarks.fleet [--devices 10 100 1000] [--out bench-out]`.

A real Mosquitto, the controller of `amiss fleet rollout` in a process of its own, and so many devices: each has its own
session with the broker, its own store on disk, and the workflow of the agent (`edge.updating.workflow`). Its machine, its
repository and the trial are played, and its time runs `SPEED` times as fast. A good model goes to all of them. Then a bad
one, which half of the devices refuse in their trial, and one that no trial refuses and that raises too many alarms: both have
to end with the canaries.

Told per device: messages and bytes through the broker (but for health, which comes once a minute whether anything is rolled out
or not; here once a second), processor time of controller and broker, their memory, and how long it took.
"""

import argparse
import contextlib
import hashlib
import json
import random
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks.agent import Json, machine, say
from deploy.brokers import free_port
from edge.bundle import SCHEMA
from edge.channel import ChannelSpec
from edge.delivery import topics
from edge.delivery.topics import HealthPayload, MqttHealth, Response, StreamHealth
from edge.errors import StorageError
from edge.updating import rules
from edge.updating.offer import Facts, Offer
from edge.updating.store import Models, Serving
from edge.updating.updater import Checked
from edge.updating.workflow import Progress, Tried, Updates

SPEED = 3 * 3600.0
"""A day of probation takes eight seconds."""
HEALTH_S = 1.0
PROBATION_H = 24.0
ALARMS_PER_H = 2 / 168
"""What is ordinary: two a week."""
CHANNELS = (ChannelSpec("vibration"), ChannelSpec("current"))
Kind = Literal["good", "refused", "noisy", "slow", "undecided"]
SHOWN: tuple[Kind, ...] = ("good", "refused", "noisy")


class Simulated:
    """One device. `kinds`: digest → what that model is like here. Driven by `Crowd`, which owns its session."""

    def __init__(self, node: str, group: str, folder: Path, port: int, kinds: dict[str, Kind], speed: float) -> None:
        self.node, self.group = node, group
        self.offers: list[Offer] = []
        self.bundles: dict[str, Path] = {}
        self._kinds, self._speed = kinds, speed
        self._chance = random.Random(node)
        self._began_s = time.monotonic()
        self._uptime_h = 300.0 + self._chance.random() * 100  # of the agent, in its own time
        self._alarms = sum(self._chance.random() < ALARMS_PER_H for _ in range(300))
        self._runs = ""
        self._known: set[str] = set()
        self._switched_h = self._told_h = self._uptime_h
        factory = folder.parent / "factory.amiss"
        factory.write_bytes(b"factory")
        self.models = Models(folder, factory=factory)
        serving = self.models.start()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"amiss-{node}", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_message = self._asked
        self.client.connect("127.0.0.1", port, keepalive=600)
        self.client.subscribe(f"amiss/{node}/request/+", 1)
        self.updates = Updates(self.models, serving, self, self._tell, poll_every_s=1e9, group=group, look_s=0.0, first_s=1e9)
        self._tell(self.updates.progress)

    @property
    def hours(self) -> float:
        return self._uptime_h + (time.monotonic() - self._began_s) * self._speed / 3600

    # What the workflow asks.

    def check(self, asked: int | None) -> Checked:
        facts = Facts(
            node=self.node, group=self.group, channels=CHANNELS, rate_hz=100.0, schema=SCHEMA, agent=(99,),
            runtimes=("onnxruntime",), asked=asked,
        )  # fmt: skip
        chosen = rules.choose(self.offers, facts, self.models.floor, self.models.bad, lost=self.models.lost)
        unfit = tuple((offer, "found bad here") for offer in self.offers if offer.digest in self.models.bad)
        return Checked("ok", chosen=chosen, unfit=unfit)

    def fetch(self, offer: Offer) -> Path:
        into = self.models.incoming / f"{offer.digest}.amiss"
        shutil.copy(self.bundles[offer.digest], into)
        return self.models.put(into, offer.digest)

    def trial(self, candidate: Path) -> Tried:
        odd = zlib.crc32(self.node.encode()) % 2
        match self._kinds[candidate.stem]:
            case "refused" if odd:
                return Tried("refused", "s: it says the same of everything")
            case "undecided" if odd:
                return Tried("unknown", "s: too little is recorded")
        return Tried("accepted")

    def quiet(self) -> bool:
        return True

    def run(self, serving: Serving) -> None:
        self._runs, self._switched_h = serving.digest, self.hours

    def verdict(self) -> tuple[Literal["go on", "commit", "roll back"], str]:
        return ("commit", "") if self.hours - self._switched_h > PROBATION_H else ("go on", "")

    # What it says and hears.

    def tell_health(self) -> None:
        kind = self._kinds.get(self._runs, "good")
        hours, self._told_h = self.hours - self._told_h, self.hours
        mean = hours * ALARMS_PER_H * (10 if kind == "noisy" else 1)
        self._alarms += self._chance.random() < mean
        stream = StreamHealth(
            online=True, samples=0, windows=0, events=0, filled=0, lost=0, reopened=0, alarms=self._alarms,
            latency_ms=(9.0 if kind == "slow" else 3.0) * self._chance.uniform(0.9, 1.1),
        )  # fmt: skip
        self._publish(
            topics.health(self.node),
            msgspec.json.encode(
                HealthPayload(
                    time="", time_ns=0, uptime_s=3600 * self.hours,
                    mqtt=MqttHealth(connected=True, queued=0, published=0, dropped=0, parked=0), streams={"s": stream},
                )
            ),
            0,
        )  # fmt: skip

    def _tell(self, progress: Progress) -> None:
        self._publish(topics.update(self.node), msgspec.json.encode(progress), 1)

    def _asked(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        body = json.loads(message.payload)
        verb = message.topic.rpartition("/")[2]
        known = body["transaction"] in self._known  # as the agent's `Requests` does: answered again, and not done again
        self._known.add(body["transaction"])
        if verb == "update" and not known:
            self.updates.look_now(body.get("number"))
        elif not known:
            self.updates.roll_back(body["reason"])
        answer = Response(status="ok", data={}, transaction=body["transaction"])
        self._publish(topics.response(self.node, verb), msgspec.json.encode(answer), 1, retain=False)

    def _publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = True) -> None:
        self.client.publish(topic, payload, qos, retain=retain)


class Crowd:
    """Devices, all in one thread: a process each would measure this computer."""

    def __init__(
        self, count: int, folder: Path, port: int, kinds: dict[str, Kind], *, groups: int = 2, speed: float = SPEED
    ) -> None:
        # Per device: a socket, a database and its log, a lock.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        folder.mkdir()
        self.devices = [
            Simulated(f"d-{i:04}", f"group-{i % groups}", folder / f"d-{i:04}", port, kinds, speed) for i in range(count)
        ]
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def offer(self, offer: Offer, bundle: Path) -> None:
        for device in self.devices:
            device.bundles[offer.digest] = bundle
            device.offers = [*device.offers, offer]

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        for device in self.devices:
            device.client.disconnect()
            device.models.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._failure = error

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for device in self.devices:
                if (connection := device.client.socket()) is None:
                    raise StorageError(f"{device.node}: lost its session at once")
                selector.register(connection, selectors.EVENT_READ, device)
            due = {device: time.monotonic() + HEALTH_S * i / len(self.devices) for i, device in enumerate(self.devices)}
            while not self._stopping.is_set():
                asked = {key.data for key, _ in selector.select(0.05)}
                now_s = time.monotonic()
                for device in self.devices:
                    if device in asked:
                        device.client.loop_read()
                    if now_s >= due[device]:
                        due[device] = now_s + HEALTH_S
                        device.tell_health()
                        device.client.loop_misc()
                        device.updates.turn()
                    elif device in asked:
                        device.updates.turn()
                    while device.client.want_write():
                        device.client.loop_write()


def bundle(folder: Path, version: str, size: int = 100_000) -> tuple[Offer, Path]:
    """Bytes that are tried by nobody, and an offer of them."""
    path = folder / f"pump-{version}.amiss"
    path.write_bytes(random.Random(version).randbytes(size))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    offer = Offer(
        number=int(version), name="pump", version=version, schema=SCHEMA, minimum_agent="0.1", channels=CHANNELS, rate_hz=100.0,
        runtimes=("onnxruntime",), digest=digest, size=size, held=True,
    )  # fmt: skip
    return offer, path


class Meter:
    """Messages and bytes that pass through the broker, health left out. A listener of its own."""

    def __init__(self, port: int) -> None:
        self.messages = self.bytes = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._count
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([(f"amiss/+/{kind}", 1) for kind in ("update", "request/+", "response/+")])
        self._client.loop_start()

    def _count(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if not message.retain:
            self.messages += 1
            self.bytes += len(message.topic) + len(message.payload)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


ROLLOUT = """
import contextlib, resource, sys, json, msgspec
from deploy import fleet
from deploy.ledger import Ledger
from deploy.plant import Plant
from deploy.rollout import Plan
from edge.config import MqttConfig
plan = msgspec.json.decode(sys.argv[1], type=Plan)
broker = MqttConfig(host="127.0.0.1", port=int(sys.argv[3]))
with contextlib.closing(Ledger(sys.argv[2])) as ledger, Plant(broker, watch=True) as plant:
    began = resource.getrusage(resource.RUSAGE_SELF)
    rollout = fleet.begin(ledger, plant, plan, plant.chosen((), ()))
    done = fleet.Controller(ledger, plant, rollout, said=lambda line: print(line, file=sys.stderr, flush=True)).drive()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "rollout": fleet.as_data(done, ledger.members(done.id)),
        "cpu_s": used.ru_utime + used.ru_stime - began.ru_utime - began.ru_stime,
        "rss_mb": int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024,
    }))
"""


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A Mosquitto that keeps everything in memory, and its process."""
    port = free_port()
    settings = folder / "mosquitto.conf"
    settings.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n", "utf-8")
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin") or "mosquitto"
    with (
        (folder / "mosquitto.log").open("wb") as log,
        subprocess.Popen([program, "-c", settings], stdout=log, stderr=log) as run,
    ):
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                    break
                time.sleep(0.05)
            yield port, psutil.Process(run.pid)
        finally:
            run.terminate()


def measure(count: int, folder: Path) -> list[Json]:
    kinds: dict[str, Kind] = {}
    rows = []
    # The meter comes first: paho's own loop can use no file descriptor above 1023.
    with (
        _broker(folder) as (port, process),
        contextlib.closing(Meter(port)) as meter,
        Crowd(count, folder / "devices", port, kinds) as crowd,
    ):
        for number, kind in enumerate(SHOWN, 1):
            offer, path = bundle(folder, str(number))
            kinds[offer.digest] = kind
            crowd.offer(offer, path)
            before, began_s, broker_s = (meter.messages, meter.bytes), time.monotonic(), sum(process.cpu_times()[:2])
            plan = {"model": f"pump-{number}", "number": number, "digest": offer.digest}
            done = subprocess.run(
                [sys.executable, "-c", ROLLOUT, json.dumps(plan), str(folder / "fleet.db"), str(port)],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            found = json.loads(done.stdout)
            took_s = time.monotonic() - began_s
            messages, size = meter.messages - before[0], meter.bytes - before[1]
            members = found["rollout"]["devices"]
            began = [member for member in members if member["place"] != "waiting"]
            rows.append(
                {
                    "devices": count,
                    "model": kind,
                    "state": found["rollout"]["state"],
                    "reason": found["rollout"]["reason"],
                    "stage": found["rollout"]["stage"] + 1,
                    "reached": len(began),
                    "still_run_it": sum(member["place"] in ("probation", "kept") for member in members),
                    "seconds": took_s,
                    "messages": messages,
                    "messages_per_device": messages / max(1, len(began)),
                    "bytes_per_device": size / max(1, len(began)),
                    "controller_cpu_ms_per_device": 1e3 * found["cpu_s"] / count,
                    "controller_rss_mb": found["rss_mb"],
                    "broker_cpu_ms_per_device": 1e3 * (sum(process.cpu_times()[:2]) - broker_s) / count,
                    "broker_rss_mb": process.memory_info().rss / 2**20,
                }
            )
            say(row(rows[-1]))
    return rows


HEAD = (
    "| devices | model | ended | reached | still run it | s | messages a device | bytes a device "
    "| controller: ms a device, MB | broker: ms a device, MB |\n|---|---|---|---|---|---|---|---|---|---|"
)


def row(r: Json) -> str:
    return (
        f"| {r['devices']} | {r['model']} | {r['state']} in stage {r['stage']} | {r['reached']} | {r['still_run_it']} "
        f"| {r['seconds']:.0f} | {r['messages_per_device']:.1f} | {r['bytes_per_device']:.0f} "
        f"| {r['controller_cpu_ms_per_device']:.1f}, {r['controller_rss_mb']:.0f} "
        f"| {r['broker_cpu_ms_per_device']:.1f}, {r['broker_rss_mb']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Roll out to many devices; see the docstring of this module.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="Folder for fleet.json.")
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1000])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Json] = []
    for count in args.devices:
        with tempfile.TemporaryDirectory(prefix="amiss-fleet-") as temporary:
            rows += measure(count, Path(temporary))
    (args.out / "fleet.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", "utf-8")
    print(HEAD)
    print("\n".join(map(row, rows)))


if __name__ == "__main__":
    main()
