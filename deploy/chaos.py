"""`amiss demo --chaos`: the demo, and everything goes wrong that goes wrong on a shelf.

    machine ─▶ port that is pulled ─▶ agent that is killed ─▶ broker that is killed ─▶ somebody who disagrees
                                            │
                                          outbox

What is done and what is heard becomes a `deploy.acts.Story`, live and told in plain words; whether it is a good one is judged
there, from nothing else.
"""

import contextlib
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from deploy import acts, demo, machine, picture, stage
from deploy.acts import Story
from deploy.brokers import Mosquitto
from deploy.stage import NODE, STREAM, DemoResult, Listener, say
from edge.bundle import Bundle
from edge.delivery import topics
from edge.delivery.outbox import Counts, Outbox
from edge.errors import GateError
from edge.sensing.recordings import Recording
from edge.sensing.simulate import Machine
from edge.signal import Bool, Samples

NUISANCE, LITTLE = "imbalance", 0.25
"""What a person may well call a false alarm: a blade that is fouled a little."""
MQTT = 'ack = "application"\nhealth_every_s = 2\nstate_every_s = 0.2\n'
"""Alerts stay on the disk until the listener says that it has them: a broker that is killed may have taken them with it."""

WAIT_S = 30.0
"""For anything; what has not come by then is missing from the story."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things last, in seconds."""

    calm: float = 8.0
    unplugged: float = 5.0
    stuck: float = 9.0
    seen: float = 3.0
    """How long an alert lasts before somebody does something about it."""
    dead: float = 5.0
    """`RestartSec` of the systemd unit."""
    well: float = acts.WELL_S
    """From the end of a sensor's fault until it is told."""
    quiet: float = 6.0
    cool_down: float = 10.0
    """Of the alarm: what a person takes back in is to come back while somebody watches."""
    fades: float = 8.0
    """A fault that is mended, until nothing of it shows any more."""


def on_simulation(*, out: Path, fault: str, seed: int) -> DemoResult:
    """Learn as the demo does, then all acts. It fails when one of them does not go as it should."""
    demo.check_fault(fault)
    with tempfile.TemporaryDirectory(prefix="amiss-demo-") as temporary:
        broker = Mosquitto(Path(temporary))  # whether there is one is better known before a minute of learning
        source = Machine(seed)
        folder = stage.folder(out)
        bundle, measured = demo.learn_simulation(source, folder, seed)
        story, frames, started_s = play(folder / "demo.amiss", source, broker, Path(temporary), fault=fault)
    return tell(story, frames, started_s, bundle, folder, {"size": measured.table()["size"]})


def play(
    bundle: Path, source: machine.Source, broker: Mosquitto, temporary: Path, *, fault: str, pace: Pace | None = None
) -> tuple[Story, "list[Frame]", float]:
    """All acts, live; the story, what the sensor sent, and when that began. `temporary` is a folder that nobody minds."""
    show = Show(bundle, source, broker, temporary, pace or Pace(), fault)
    try:
        show.begin()
        show.unplug()
        show.stick()
        show.patience()
        show.see_well()
        show.outage()
        show.end()
    finally:
        show.close()
    return show.story, show.sensor.frames, show.sensor.started_s


def tell(
    story: Story, frames: "list[Frame]", started_s: float, bundle: Bundle, folder: Path, about: dict[str, Any]
) -> DemoResult:
    """The table, the picture and the verdict."""
    judged = acts.judge(story)
    path = folder / "chaos.png"
    _draw(path, story, frames, started_s, bundle)
    data: dict[str, Any] = {"model": f"{bundle.digest[:16]}…", **about}
    for act in judged:
        missing = f" · MISSING: {'; '.join(act.missed)}" if act.missed else ""
        data[act.title] = f"{_mark(act)} {act.happened}{missing}"
    data["picture"] = str(path)
    data["acts"] = [asdict(act) | {"passed": act.passed} for act in judged]
    data["events"] = [event for _, event in story.events()]
    failed = [act.title for act in judged if not act.passed]
    return DemoResult(data, f"not as it should be: {', '.join(failed)}; see {folder / 'agent.log'}" if failed else None)


@dataclass(frozen=True, slots=True)
class Frame:
    samples: Samples
    plugged: bool


class LiveSensor:
    """The machine and its sensor, in a thread of their own. The agent knows the port by a name that stays."""

    def __init__(self, source: machine.Source, folder: Path) -> None:
        self.name = folder / "by-id-usb-sensor"
        self.frames: list[Frame] = []
        self._folder, self._count = folder, 0
        self._lock = threading.Lock()
        self._sensor = machine.Sensor(source, None)
        self._spare: machine.SerialPort | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)

    @property
    def started_s(self) -> float:
        return self._sensor.started_s

    def start(self) -> None:
        self._sensor.started_s = time.monotonic()
        self._thread.start()

    def plug_in(self) -> str:
        """What the port is called this time."""
        with self._lock:
            port = self._sensor.port = self._spare or self._port()
            self._spare = None
        self.name.symlink_to(port.name)
        return port.device

    def unplug(self) -> None:
        # There is another before this one is gone, or the system would give it the same name again.
        self._spare = self._port()
        self.name.unlink()
        with self._lock:
            self._sensor.close()

    def inject(self, fault: str, severity: float = 1.0) -> None:
        with self._lock:
            self._sensor.source.inject(fault, severity)

    def close(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        self._sensor.close()
        if self._spare is not None:
            self._spare.close()

    def _port(self) -> machine.SerialPort:
        self._count += 1
        return machine.SerialPort(self._folder / f"ttyUSB{self._count}")

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._sensor.wait()
            with self._lock:
                self.frames.append(Frame(self._sensor.send(), self._sensor.port is not None))


class Show:
    """Does things to the agent, and listens. Raises `GateError` when the agent ends that nobody has killed."""

    def __init__(
        self, bundle: Path, source: machine.Source, broker: Mosquitto, temporary: Path, pace: Pace, fault: str
    ) -> None:
        self.story, self.sensor = Story(), LiveSensor(source, temporary)
        self._pace, self._fault, self._broker, self._temporary = pace, fault, broker, temporary
        self._state = temporary / "state"
        self._config = stage.configure(
            bundle.parent / "device.toml",
            bundle=bundle,
            state=self._state,
            port=self.sensor.name,
            broker_port=broker.port,
            alarm=f"cool_down_s = {pace.cool_down:g}\n",
            mqtt=MQTT,
        )
        self._stuck_channel = source.channels[0]
        self._agent: subprocess.Popen[bytes] | None = None
        self._listener: Listener | None = None
        self._asked = 0

    # The acts.

    def begin(self) -> None:
        self._broker.start()
        self._listener = Listener(self._broker.port, lasting=True)
        self.story.facts["port before"] = device = self.sensor.plug_in()
        self.sensor.start()
        say(f"broker on port {self._broker.port}, sensor on {self.sensor.name} ({device})")
        self._start_agent(anew=True)
        self._wait(lambda: self._heard(topics.stream_availability(NODE, STREAM), topics.ONLINE))
        self._tell("the sensor sends, the agent judges; first a little calm")
        self._listen(self._pace.calm)

    def unplug(self) -> None:
        with self._act("unplug the sensor"):
            self._do("unplugged", "somebody pulls the sensor's plug")
            self.sensor.unplug()
            self._listen(self._pace.unplugged)
            self.story.facts["port after"] = device = self.sensor.plug_in()
            self._do("plugged in", f"… and puts it back; to the system it is {device} now")
            self._wait(lambda: self._since("plugged in", "gap"))

    def stick(self) -> None:
        with self._act("a channel sticks", judged=False):
            self.story.facts["stuck channel"] = self._stuck_channel
            self._do("stuck", f"the sensor of {self._stuck_channel} repeats its last value from now on")
            self.sensor.inject("stuck")
            self._listen(self._pace.stuck)
            self._do("free", "it moves again")
            self.sensor.inject("stuck", 0.0)
            self._tell("that it is well again is told a minute from now")
            self._listen(self._pace.calm)

    def see_well(self) -> None:
        """The end of the sensor's fault, which nobody would tell if the agent were killed before."""
        left_s = self._pace.well + self.story.marks["free"] - time.monotonic()
        self._wait(lambda: self._since("free", "sensor_fault"), left_s)
        self._judge("a channel sticks")

    def patience(self) -> None:
        with self._act("a person's word"):
            self._do("nuisance", f"something smaller begins: {NUISANCE}, a quarter of what it can be")
            self.sensor.inject(NUISANCE, LITTLE)
            if not self._wait(lambda: self._since("nuisance", "anomaly_started")):
                return
            self._listen(self._pace.fades)  # a fault that grows is forgiven as it was, and told again as it is
            episode = self._since("nuisance", "anomaly_started")[0]["id"]
            self._do("false alarm", f"somebody says: {episode} is a false alarm")
            self._ask("feedback", id=episode, verdict="false_alarm")
            self._wait(lambda: self._since("false alarm", "anomaly_ended"), acts.AT_ONCE_S)
            self._listen(self._pace.quiet)
            self._do("undo", "quiet, though the fault is still there. He was wrong, and takes it back")
            self._ask("feedback", id=episode, verdict="undo")
            self._wait(lambda: self._since("undo", "anomaly_started"))
            self._do("maintenance", "maintenance, for an hour")
            self._ask("maintenance", minutes=60)
            self._wait(lambda: self._since("maintenance", "anomaly_ended"), acts.AT_ONCE_S)
            self._listen(self._pace.quiet)
            self.sensor.inject(NUISANCE, 0.0)
            self._do("mended", "nothing was raised. The machine is mended")
            self._listen(self._pace.fades)
            self._do("maintenance over", "maintenance is over")
            self._ask("maintenance", off=True)
            self._listen(2.0)

    def outage(self) -> None:
        with self._act("no broker, no power"):
            self._do("broker killed", "the broker is killed")
            self._broker.kill()
            before = self._log().count("anomaly_started")
            self._do("fault", f"and now a fault begins: {self._fault}. Nobody can be told")
            self.sensor.inject(self._fault)
            self._wait(lambda: self._log().count("anomaly_started") > before)
            self._do("raised", "the agent has seen it, as its log says; the alert is on the disk")
            self._listen(self._pace.seen)
            self._kill_agent()
            self.story.facts["waiting while dead"] = waiting = self._on_disk().waiting
            self._tell(f"kill -9: the agent is dead in the middle of it. On the disk: {waiting} record(s) that wait")
            self.sensor.inject(self._fault, 0.0)
            self._tell("meanwhile the machine is mended")
            self._listen(self._pace.dead)
            online = self._log().count("machine: online")
            self._start_agent(anew=False)
            self._do("agent started", "the agent is started again, as the service manager would; still no broker")
            self._wait(lambda: self._log().count("machine: online") > online)
            self._listen(1.0)
            self._broker.start()
            self._do("broker back", "the broker is back")
            self._wait(lambda: self._since("broker back", "anomaly_ended"))
            told_s = time.monotonic()
            self._wait(lambda: any(acts.settled(mqtt) for mqtt in self.story.healths((told_s, math.inf))))

    def end(self) -> None:
        with self._act("a clean end"):
            agent, self._agent = self._agent, None
            assert agent is not None
            self._listen(self._pace.seen)
            self._do("stop", "SIGTERM")
            agent.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.story.facts["exit code"] = agent.wait(2 * acts.STOPS_S)
            self.story.marks["stopped"] = time.monotonic()
            if agent.poll() is None:
                self._agent = agent
                self._kill_agent()
            self._wait(lambda: self._heard(topics.availability(NODE), topics.OFFLINE, since="stop"), 2.0)
            self.story.facts["counts"] = asdict(self._on_disk())
            self.story.marks["end"] = time.monotonic()

    def close(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait(10)
        if self._listener is not None:
            self._listener.close()
        self._broker.stop()
        self.sensor.close()

    # What is done.

    @contextmanager
    def _act(self, title: str, *, judged: bool = True) -> Iterator[None]:
        self.story.marks[title] = time.monotonic()
        say(f"\n── {title} ──")
        yield
        if judged:
            self._judge(title)

    def _judge(self, title: str) -> None:
        act = acts.ACTS[title](self.story)
        say(f"  {title}, expected: {act.expected}")
        say(f"  {_mark(act)} {act.happened}")
        for what in act.missed:
            say(f"    missing: {what}")

    def _do(self, mark: str, line: str) -> None:
        self.story.marks[mark] = time.monotonic()
        self._tell(line)

    def _tell(self, line: str) -> None:
        say(f"{time.monotonic() - self.sensor.started_s:6.1f} s  {line}")

    def _start_agent(self, *, anew: bool) -> None:
        self._agent = stage.start_agent(self._config, anew=anew)

    def _kill_agent(self) -> None:
        assert self._agent is not None
        agent, self._agent = self._agent, None
        self.story.marks["agent killed"] = time.monotonic()
        agent.kill()
        agent.wait(10)

    def _ask(self, verb: str, **body: Any) -> None:
        """The answer becomes part of the story."""
        assert self._listener is not None
        self._asked += 1
        self._listener.say(topics.request(NODE, verb), msgspec.json.encode(body | {"transaction": self._asked}))
        transaction, answers = self._asked, self.story.facts.setdefault("answers", [])

        def answered() -> bool:
            for _, payload in self.story.on(topics.response(NODE, verb)):
                answer = json.loads(payload)
                if answer.get("transaction") == transaction:
                    answers.append(answer)
                    return True
            return False

        if not self._wait(answered):
            answers.append({"status": "error", "error": f"no answer to {verb}"})

    # What is heard and seen.

    def _listen(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _wait(self, condition: Callable[[], Any], most_s: float = WAIT_S) -> bool:
        """Listen until it holds; whether it does."""
        assert self._listener is not None
        until_s = time.monotonic() + most_s
        while not condition():
            if self._agent is not None and self._agent.poll() is not None:
                raise GateError(
                    f"the agent ended with exit code {self._agent.returncode}; its last words are in "
                    f"{stage.agent_log(self._config)}"
                )
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            with contextlib.suppress(queue.Empty):
                self._take(*self._listener.inbox.get(timeout=min(left_s, 0.1)))
        return True

    def _take(self, at_s: float, topic: str, payload: bytes) -> None:
        assert self._listener is not None
        self.story.heard.append((at_s, topic, payload))
        if topic == topics.event(NODE, STREAM):
            event = json.loads(payload)
            if event["type"].startswith("anomaly"):
                self._listener.say(topics.request(NODE, "ack"), msgspec.json.encode({"records": [event["record"]]}))
            self._tell(f"▶ {_words(event)}")

    def _since(self, mark: str, kind: str) -> list[dict[str, Any]]:
        return [event for at_s, event in self.story.events() if at_s >= self.story.marks[mark] and event["type"] == kind]

    def _heard(self, topic: str, payload: bytes, since: str = "") -> bool:
        return any(at_s >= self.story.marks.get(since, 0.0) and what == payload for at_s, what in self.story.on(topic))

    def _log(self) -> str:
        return stage.agent_log(self._config).read_text("utf-8", "replace")

    def _on_disk(self) -> Counts:
        """Of a copy: the agent's own file stays as it was left."""
        with tempfile.TemporaryDirectory(dir=self._temporary) as copy:
            for file in self._state.glob("outbox.db*"):
                shutil.copy(file, copy)
            outbox = Outbox(Path(copy) / "outbox.db", device=NODE, boot=os.urandom(4).hex())
            try:
                return outbox.counts
            finally:
                outbox.close()


def _mark(act: acts.Act) -> str:
    return "✓" if act.passed else "✗"


def _words(event: dict[str, Any]) -> str:
    if event["type"] == "gap":
        return f"gap: nothing can be said of {event['duration_s']:.1f} s ({event['reason']})"
    channels = stage.blame(event)
    if event["type"] == "sensor_fault":
        now = "is well again" if "until" in event else "is to blame, not the machine"
        return f"sensor fault: {event['channels'][0]['channel']} {event['reason']}; the sensor {now}"
    if event["type"] == "anomaly_started":
        return f"ALERT: {channels}; p {event['p_value']:.2g}, {event['id']}"
    reason = event.get("reason")
    return f"{event['type']}: {event['id']}, {event['duration_s']:.1f} s" + (f" ({reason})" if reason else "")


def _draw(path: Path, story: Story, frames: list[Frame], started_s: float, bundle: Bundle) -> None:
    marks = story.marks

    def spans(*pairs: tuple[str, str]) -> list[tuple[float, float]]:
        return [(marks[begin] - started_s, marks[end] - started_s) for begin, end in pairs if begin in marks and end in marks]

    open_at: dict[str, float] = {}
    told: dict[str, list[tuple[float, float]]] = {"sensor_fault": [], "anomaly": []}
    moments = []
    for at_s, event in story.events():
        kind = event["type"].partition("_")[0] if event["type"].startswith("anomaly") else event["type"]
        moments.append((at_s - started_s, event["type"], event.get("reason", "")))
        if event["type"] == "gap":
            continue
        if event["id"] in open_at and ("until" in event):
            told.setdefault(kind, []).append((open_at.pop(event["id"]), at_s - started_s))
        else:
            open_at.setdefault(event["id"], at_s - started_s)
    lanes = {
        "sensor unplugged": spans(("unplugged", "plugged in")),
        "channel stuck": spans(("stuck", "free")),
        "broker away": spans(("broker killed", "broker back")),
        "agent dead": spans(("agent killed", "agent started")),
        "fault in the machine": spans(("nuisance", "mended"), ("fault", "agent killed")),
        "maintenance": spans(("maintenance", "maintenance over")),
        "told: sensor fault": told["sensor_fault"],
        "told: anomaly": told["anomaly"],
    }
    recording, plugged = _recording(frames, bundle)
    states = [(at_s - started_s, state) for at_s, state in story.states()]
    picture.draw_chaos(path, recording, plugged, bundle, states=states, lanes=lanes, moments=moments)


def _recording(frames: list[Frame], bundle: Bundle) -> tuple[Recording, Bool]:
    """All that the machine did, and which samples were sent to a port that was plugged in."""
    units = {channel.name: channel.unit for channel in bundle.manifest.channels}
    time_ns = np.concatenate([frame.samples.time_ns for frame in frames])
    x = np.concatenate([frame.samples.x for frame in frames], axis=1)
    plugged = np.concatenate([np.full(len(frame.samples), frame.plugged) for frame in frames])
    return Recording("chaos", bundle.channels, time_ns, x, units=units), plugged
