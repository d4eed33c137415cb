"""`amiss demo`: the whole road in one command, with the parts that ship.

    recordings ─train─▶ run ─quantize─▶ bundle ─▶ agent process ◀─frames─ serial port ◀─ machine or recording
                                                      │
                                     this process ◀─ MQTT ─ broker

Nothing is shown that did not come over MQTT, except what the table says was computed afterwards.
"""

import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy import brokers, machine, picture, pushes, stage
from deploy.stage import NODE, STREAM, DemoResult, say, step
from edge.bundle import Bundle
from edge.delivery import topics
from edge.errors import DataError, GateError, UsageError
from edge.operating.commission import commission
from edge.operating.score import judge_recording
from edge.pipeline import Verdicts
from edge.sensing.recordings import Recording, read_recording, write_recording
from edge.sensing.simulate import FAULTS, Machine
from edge.signal import Float64, Int64
from quantize import quantize
from trainer import recipe as recipes
from trainer.progress import progress
from trainer.train import train

LEARN_S = 900.0
"""Normal running to learn from."""
LIVE_NORMAL_S, LIVE_FAULT_S = 15.0, 20.0
"""What the agent sees live before and after the fault begins."""
UNSEEN_S = 1800.0
"""Normal running that nobody has seen, scored afterwards to count false alarms."""
MENDED_S = 300.0
"""After a fault: the winding has cooled down, and nothing of it shows any more."""
REPLAY_S = 60.0
"""A recording is played fast enough to take this long."""
LAST_WORD_S = 3.0
"""How long an alert may be on its way after the last frame."""


@dataclass(slots=True)
class Story:
    """What came over MQTT, and when the frames behind it were sent."""

    events: list[dict[str, Any]] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)
    sent_s: Float64 = field(default_factory=lambda: np.empty(0))
    """When each row had been written to the port, on this process's monotonic clock."""


def on_simulation(*, out: Path, fault: str, seed: int) -> DemoResult:
    """Simulate, learn, compress, run, inject `fault`, alert; then push a better model and two bad ones.

    It fails when no alert comes, or one comes before the fault, or a push does not end as it should.
    """
    check_fault(fault)
    folder = stage.folder(out)
    source = Machine(seed)
    bundle, measured = learn_simulation(source, folder, seed)
    with step("record what nobody has seen, and a fault"):
        rate_hz = source.rate_hz
        unseen = machine.recording_of([source.next(round(UNSEEN_S * rate_hz))], "unseen")
        live_normal = source.next(round(LIVE_NORMAL_S * rate_hz))
        source.inject(fault)
        live = machine.recording_of([live_normal, source.next(round(LIVE_FAULT_S * rate_hz))], "live")
        onset = len(live_normal)
        label = (np.arange(len(live.time_ns)) >= onset).astype(np.int8)
        live = replace(live, label=label)
        write_recording(folder / "live.csv", live)
    story = _live(bundle, live, folder, brokers.embedded, speed=1.0, told=f"{fault} fault")
    with step(f"score {UNSEEN_S / 60:g} min of unseen normal running, offline"):
        false_alarms = sum(event.type == "anomaly_started" for event in judge_recording(bundle, unseen).events)
    extra = {"false_alarms_offline": f"{false_alarms} in {UNSEEN_S / 60:g} min of unseen normal running"}
    result = _tell(bundle, live, story, measured, folder, onset, speed=1.0, extra=extra)
    if result.failure:
        return result
    source.inject(fault, 0.0)
    source.next(round(MENDED_S * source.rate_hz))
    write_recording(folder / "unseen.csv", unseen)
    told = pushes.show(folder / "demo.amiss", folder / "unseen.csv", source, folder)
    return DemoResult(result.data | told.data, "; ".join(told.failures) or None)


def check_fault(fault: str) -> None:
    if fault not in FAULTS:
        raise UsageError(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")
    if FAULTS[fault].sensor:
        raise UsageError(f"{fault} is a fault of the sensor and told as such: there would be no alert. Choose another fault")


def learn_simulation(source: Machine, folder: Path, seed: int) -> tuple[Bundle, Any]:
    """`folder`/demo.amiss, from what the machine does in the next `LEARN_S`; the bundle, and what quantizing it measured."""
    with step(f"record {LEARN_S:g} s of normal running at {source.rate_hz:g} Hz: {', '.join(source.channels)}"):
        normal = machine.recording_of([source.next(round(LEARN_S * source.rate_hz))], "normal")
        write_recording(folder / "normal.csv", normal)
    # 0.64 s hold 16 turns of the shaft: enough to tell a rhythm, short enough to alert within seconds.
    return _learn([folder / "normal.csv"], folder, window=256, seed=seed)


def on_recording(
    recording: Path, normal: list[Path], own: list[Path], *, out: Path, speed: float | None, seed: int
) -> DemoResult:
    """Learn from `normal`, then play `recording` through the serial port and a real Mosquitto at `speed` times real time.

    The encoder learns from all of `normal`. With `own`, normal running of the very machine that is played, the head is fitted
    to it, as commissioning does on site.

    When the recording has labels, it fails unless the first alert is inside a labelled episode.
    """
    if not normal:
        raise UsageError("say what normal looks like: --normal FILE-or-FOLDER (may be repeated)")
    played = read_recording(recording)
    folder = stage.folder(out)
    bundle, measured = _learn(normal, folder, window=None, seed=seed)
    if own:
        with step("commission: fit what counts as ordinary to this machine"):
            say(f"  {commission(folder / 'demo.amiss', own, folder / 'demo.amiss')}")
        bundle = Bundle.open(folder / "demo.amiss")
    if played.channels != bundle.channels:
        raise DataError(
            f"{recording} has channels {', '.join(played.channels)}, the normal recordings {', '.join(bundle.channels)}"
        )
    length_s = (int(played.time_ns[-1]) - int(played.time_ns[0])) / 1e9
    pace = speed or max(1.0, length_s / REPLAY_S)
    onset = int(played.label.argmax()) if played.label is not None and played.label.any() else None
    story = _live(bundle, played, folder, brokers.mosquitto, speed=pace, told="labelled anomaly")
    return _tell(bundle, played, story, measured, folder, onset, speed=pace, extra={})


def _learn(normal: list[Path], folder: Path, *, window: int | None, seed: int) -> tuple[Bundle, Any]:
    recipe = recipes.apply_overrides(recipes.Recipe(), [f"training.seed={seed}", *([f"window={window}"] if window else [])])
    with step("learn what normal looks like (self-supervised, no labels)"), progress("train") as report:
        info = train(recipe, normal, folder / "run", progress=report, overwrite=True)
    say(f"  {info.parameters} parameters, {info.fit_windows} windows to learn from, {info.calibration_windows} to calibrate")
    with step("compress to int8, compare with float, pack"), progress("quantize") as report:
        measured = quantize(folder / "run", folder / "demo.amiss", progress=report)
    return Bundle.open(folder / "demo.amiss"), measured


def _live(
    bundle: Bundle,
    recording: Recording,
    folder: Path,
    broker: Callable[[Path], AbstractContextManager[int]],
    *,
    speed: float,
    told: str,
) -> Story:
    """The agent as its own process on a serial port; what it says over MQTT is the story."""
    story = Story(sent_s=np.full(len(recording.time_ns), np.nan))
    # In a folder of its own that is gone afterwards: an old outbox would tell old stories.
    with tempfile.TemporaryDirectory(prefix="amiss-demo-") as temporary, broker(Path(temporary)) as broker_port:
        port = machine.SerialPort(Path(temporary) / "ttyDEMO")
        config = stage.configure(
            folder / "device.toml",
            bundle=folder / "demo.amiss",
            state=Path(temporary) / "state",
            port=port.name,
            broker_port=broker_port,
        )
        say(f"broker on port {broker_port}, sensor on {port.name}; starting the agent: amiss run --config {config}")
        listener = stage.Listener(broker_port)
        agent = stage.start_agent(config)
        stop = threading.Event()
        player = threading.Thread(target=_play, args=(port, recording, bundle, speed, stop, story), daemon=True)
        try:
            _follow(agent, player, listener.inbox, story, recording, folder, told=told, speed=speed)
        finally:
            stop.set()
            agent.terminate()
            agent.wait(30)
            listener.close()
            if player.ident is not None:
                player.join(5)
            port.close()
    return story


def _play(
    port: machine.SerialPort, recording: Recording, bundle: Bundle, speed: float, stop: threading.Event, story: Story
) -> None:
    def sent(rows: int) -> None:
        fresh = np.isnan(story.sent_s[:rows])
        story.sent_s[:rows][fresh] = time.monotonic()

    machine.play(port, recording, speed=speed, rate_hz=bundle.manifest.rate_hz, stop=stop.is_set, told=sent)


def _follow(
    agent: "subprocess.Popen[bytes]",
    player: threading.Thread,
    inbox: "queue.Queue[tuple[float, str, bytes]]",
    story: Story,
    recording: Recording,
    folder: Path,
    *,
    told: str,
    speed: float,
) -> None:
    """Show what arrives until the recording is over and the last alert had time to come."""
    deadline = time.monotonic() + stage.ONLINE_S
    over_s: float | None = None
    onset_told = recording.label is None or not recording.label.any()
    onset = 0 if onset_told or recording.label is None else int(recording.label.argmax())
    shown_s = 0.0
    while over_s is None or time.monotonic() < over_s:
        if agent.poll() is not None:
            raise GateError(f"the agent ended with exit code {agent.returncode}; its last words are in {folder / 'agent.log'}")
        if player.ident is None and time.monotonic() > deadline:
            raise GateError(
                f"the agent was not online after {stage.ONLINE_S:g} s; its last words are in {folder / 'agent.log'}"
            )
        if player.ident is not None and over_s is None and not player.is_alive():
            over_s = time.monotonic() + LAST_WORD_S
        rows = int(np.count_nonzero(~np.isnan(story.sent_s)))
        if not onset_told and rows > onset:
            onset_told = True
            say(f"  ── {told} begins ──")
        try:
            received_s, topic, payload = inbox.get(timeout=0.1)
        except queue.Empty:
            continue
        if topic == topics.availability(NODE) and payload == topics.ONLINE and player.ident is None:
            say("agent online; the sensor starts to send")
            player.start()
        elif topic == topics.event(NODE, STREAM):
            event = json.loads(payload)
            story.events.append(event)
            story.received_s.append(received_s)
            say(_event_line(event, recording))
        elif topic == topics.state(NODE, STREAM) and received_s - shown_s >= 2.0:
            shown_s = received_s
            state = json.loads(payload)
            verdict = "ANOMALY" if state["anomaly"] else "normal"
            place_s = rows / max(1, len(story.sent_s)) * (recording.time_ns[-1] - recording.time_ns[0]) / 1e9
            say(f"  {place_s:6.0f} s  score {state['score']:7.2f}  p {state['p_value']:.4f}  {verdict}")


def _event_line(event: dict[str, Any], recording: Recording) -> str:
    start_ns = int(recording.time_ns[0])
    line = f"  ▶ {event['type']} at {(event['stream_ns'] - start_ns) / 1e9:.1f} s"
    if event["type"].startswith("anomaly"):
        line += (
            f": {stage.blame(event)}; for {event['duration_s']:.1f} s now, p {event['p_value']:.2g}"
            f" ≤ {event['threshold']:.2g}, model {event['model'][:12]}"
        )
    return line


def _tell(
    bundle: Bundle,
    recording: Recording,
    story: Story,
    measured: Any,
    folder: Path,
    onset: int | None,
    *,
    speed: float,
    extra: dict[str, Any],
) -> DemoResult:
    """The table, the picture and the verdict on the demo itself."""
    started = [event for event in story.events if event["type"] == "anomaly_started"]
    onset_ns = None if onset is None else int(recording.time_ns[onset])
    early = [event for event in started if onset_ns is not None and event["stream_ns"] < onset_ns]
    first = next((event for event in started if event not in early), None)
    verdicts = judge_recording(bundle, recording)
    path = folder / "demo.png"
    picture.draw(path, recording, verdicts, bundle, started, onset_ns)
    data: dict[str, Any] = {
        "model": f"{bundle.digest[:16]}… {measured.precision}, {measured.parameters} parameters",
        **measured.table(),
    }
    if first is not None:
        data["alert"] = ", ".join(c["channel"] for c in first["channels"][:2]) + f" (p {first['p_value']:.2g})"
        if onset_ns is not None:
            data["delay"] = f"{(first['stream_ns'] - onset_ns) / 1e9:.2f} s from onset to alert, on the machine's clock"
        data["on_its_way"] = f"{_way_ms(first, recording, story):.0f} ms from the last frame on the port to the alert over MQTT"
    data["false_alarms_live"] = f"{len(early)} before the onset" if onset_ns is not None else "unknown: no labels"
    data.update(extra)
    data["device_equals_offline"] = _agrees(story, verdicts)
    data["picture"] = str(path)
    data["events"] = story.events
    failure = None
    if early:
        failure = "an alert came before the fault"
    elif onset_ns is not None and first is None:
        failure = "no alert came"
    elif recording.label is not None and first is not None and not recording.label[_row(first, recording.time_ns)]:
        failure = "the first alert came outside the labelled episode"
    return DemoResult(data, failure and f"{failure}; see {path} and {folder / 'agent.log'}")


def _row(event: dict[str, Any], time_ns: Int64) -> int:
    return int(np.clip(np.searchsorted(time_ns, event["stream_ns"]), 0, len(time_ns) - 1))


def _way_ms(event: dict[str, Any], recording: Recording, story: Story) -> float:
    received_s = story.received_s[story.events.index(event)]
    return float(received_s - story.sent_s[_row(event, recording.time_ns)]) * 1e3


def _agrees(story: Story, verdicts: Verdicts) -> str:
    """The device and a scoring of the same samples here must tell the same alerts, at the same sample."""
    here = [e.time_ns for e in verdicts.events if e.type == "anomaly_started"]
    there = [e["stream_ns"] for e in story.events if e["type"] == "anomaly_started"]
    # The wire carries microseconds.
    same = len(here) == len(there) and all(abs(a - b) < 1000 for a, b in zip(here, there, strict=True))
    return "yes: the same alerts at the same samples" if same else f"no: {len(there)} alerts on the device, {len(here)} offline"
