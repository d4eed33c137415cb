"""One sensor, from its bytes to events on disk, and what may be asked of it while it runs.

    Source ─▶ Pipeline ─▶ events ─▶ Outbox          `run`, in a thread of its own
                │  ▲
                │  └── head, memory, alarm policy, maintenance   changed by `ask`, between two chunks
                ▼
       history, episodes, commissioning

Everything here belongs to the stream's thread, but for `ask`, `stop` and what takes the lock. Whoever wants something changed
hands over a function; it runs between two chunks, so no sample ever meets half a change.
"""

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec import structs

from edge.bundle import Bundle, pack_arrays, unpack_arrays
from edge.config import AlarmConfig, DeviceConfig
from edge.delivery import Delivery, topics
from edge.delivery.outbox import Kind, Outbox
from edge.delivery.topics import EventPayload, StatePayload, StreamHealth
from edge.errors import AmissError, CannotCreateError, ConfigError, DataError, SourceLostError
from edge.event import Event
from edge.files import at_once
from edge.head import Head
from edge.operating.clock import HostClock
from edge.operating.commission import Commissioning
from edge.operating.episodes import Episodes
from edge.operating.heads import Heads
from edge.operating.metrics import Histogram, StreamCounters
from edge.operating.requests import RefusedError
from edge.operating.view import History, Learning, Situation
from edge.pipeline import Verdicts
from edge.scoring.backends import Outputs
from edge.sensing.sources import PortSource, Source
from edge.signal import Float32, Samples, Windows
from edge.updating.probation import Seen
from edge.updating.ring import Ring

log = logging.getLogger("amiss")

T = TypeVar("T")

REOPEN_S = (0.5, 4.5)
"""First and longest pause before a lost sensor is opened again."""
ANOTHER_MODEL = "another model came meanwhile; commission again"
ANSWER_S = 10.0
"""How long somebody waits for a stream to get round to what he asks: a port that is being opened may take some seconds."""
POINTS, POINT_NS = 600, 1_000_000_000
"""Of the history: one a second, or one a window where those come more seldom."""
RECENT_VALUES = 1 << 18
"""Of the signal that is kept in memory, channels and all: 1 MB."""
RECENT_S = 60.0
FORGIVING = ("false_alarm", "new_normal")
MOST_AGAIN = 16
"""Episodes that were forgiven under a model before: so many are shown to the next one."""
SNAPSHOT_VALUES = 8192


class Stream:
    """`later` hands a function to the agent's main thread. Raises what `Bundle.pipeline` does."""

    def __init__(
        self,
        name: str,
        source: Source,
        bundle: Bundle,
        config: DeviceConfig,
        alarm: AlarmConfig,
        *,
        outbox: Outbox,
        delivery: Delivery,
        clock: HostClock,
        boot: str,
        later: Callable[[Callable[[], None]], None],
        replayed: bool = False,
        once: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.source, self.bundle, self.config = name, source, bundle, config
        self.online = False
        self.samples = self.windows = self.events = self.reopened = self.strange = self.not_finite = 0
        self.beat_s = monotonic()
        """When its loop last turned."""
        self.inference = Histogram()
        self.alerts: dict[str, int] = {}
        """By type of event."""
        self.arrived_ns: int | None = None
        """When the newest samples came, on the host's clock."""
        self._beat = beat
        self._outbox, self._delivery, self._clock, self._boot = outbox, delivery, clock, boot
        self._later, self._replayed, self._once, self._monotonic = later, replayed, once, monotonic
        folder = self.folder = config.state_path() / "streams" / name
        self._memory_file = _memory_file(folder, bundle)
        self.heads = Heads(folder / "heads", model=bundle.digest, scorer=bundle.manifest.scorer)
        self.episodes = Episodes(folder / "episodes")
        self.pipeline = bundle.pipeline(alarm)
        self._alarm_config = alarm
        self.ring: Ring | None = None
        """Its last hours on disk, where new models are tried on them."""
        if (update := config.update) is not None and not replayed:
            manifest = bundle.manifest
            self.ring = Ring(
                folder / "ring",
                bundle.channels,
                manifest.rate_hz,
                hours=update.record_hours,
                max_bytes=update.record_max_bytes,
                bytes_per_day=update.record_bytes_per_day,
                stretch=16 * manifest.window + manifest.smoothing,
                clock=monotonic,
            )
            log.info("%s: %s", name, self.ring.sentence())
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards what others look at: `_recent`, `_points`, `_state`
        self._recent: deque[Samples] = deque()
        self._recent_count = 0
        manifest = bundle.manifest
        most = min(int(RECENT_S * manifest.rate_hz), RECENT_VALUES // len(manifest.channels))
        self._most_recent = max(48 * manifest.window, most)
        self._points: deque[tuple[int, float, float, bool]] = deque(maxlen=POINTS)
        self._state: StatePayload | None = None
        self._latencies: deque[float] = deque(maxlen=64)  # seconds for a window, of the newest chunks
        self._state_sent_s = -1e9
        self._maintained_until_s: float | None = None
        self._commissioning: Commissioning | None = None
        self._commissioned: Callable[[str, str], None] = lambda outcome, trouble: None
        self._active_id: str | None = None
        self._judged_ns = 0  # end of the newest window
        self._learned = ""  # what came of the last commissioning
        self._to_forgive: deque[str] = deque()  # episodes, under a model before; not shown to this one yet
        if (own := self._own(bundle, self.heads, alarm)) is not None:
            self._adopt(own, alarm)
        self._load_memory()
        self._hold()

    # The stream's thread.

    def run(self) -> None:
        """Follow the sensor until `stop`; with `once` until there is nothing more to do. A lost sensor is opened again."""
        try:
            self._follow()
        finally:
            if self.ring is not None:
                self.ring.close()

    def _follow(self) -> None:
        pause_s, told = REOPEN_S[0], ""
        while not self._stopping.is_set():
            try:
                with closing(self.source) as source:
                    for samples in source.samples():
                        self._turn()
                        if self._stopping.is_set():
                            return
                        if not len(samples):
                            continue
                        pause_s, told = REOPEN_S[0], ""
                        self._set_online(True)
                        self.take(samples)
                        if self._once and not self._replayed and self.windows:
                            return
                if self._once:
                    return  # a recording is over
            except SourceLostError as error:
                self._set_online(False)
                if str(error) != told:  # once per cause, not once per attempt
                    log.warning("%s: %s", self.name, error)
                    told = str(error)
                self.reopened += 1
                self._wait(pause_s)
                pause_s = min(2 * pause_s, REOPEN_S[1])

    def take(self, samples: Samples) -> None:
        """Judge them, and have on disk what there is to tell before this returns."""
        self.samples += len(samples)
        self._remember(samples)
        if self.ring is not None:
            self.ring.add(samples)
        began_s = self._monotonic()
        verdicts = self.pipeline.judge(samples)
        if len(verdicts):
            self.inference.observe(self._monotonic() - began_s)
        self.arrived_ns = self._clock.now_ns()
        for event in verdicts.events:
            self._put(event)
        if not len(verdicts):
            return
        self.windows += len(verdicts)
        self._judged_ns = int(verdicts.end_ns[-1])
        self.strange += int(np.count_nonzero((verdicts.p_value <= self.pipeline.policy.p_value) & ~verdicts.excused))
        self.not_finite += int(np.count_nonzero(~verdicts.finite))
        self._latencies.append((self._monotonic() - began_s) / len(verdicts))
        self._draw(verdicts)
        now_s = self._monotonic()
        if now_s - self._state_sent_s >= self.config.mqtt.state_every_s:
            self._state_sent_s = now_s
            self._tell_state(verdicts, now_s - began_s)

    def _turn(self) -> None:
        """Between two chunks: what was asked, and what is due."""
        self.beat_s = self._monotonic()
        self._beat()
        while not self._asked.empty():
            action, answer = self._asked.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(action())
            except AmissError as error:
                answer.set_exception(error)
        if self._to_forgive:
            self._forgive_next()
        if self._maintained_until_s is not None and self.beat_s >= self._maintained_until_s:
            self._end_maintenance()
        if self._commissioning is not None and self._commissioning.over(self.beat_s):
            self._fit(self._commissioning)

    def _wait(self, seconds: float) -> None:
        until_s = self._monotonic() + seconds
        while not self._stopping.is_set() and (left_s := until_s - self._monotonic()) > 0:
            self._turn()
            self._stopping.wait(min(left_s, 0.2))

    def _set_online(self, online: bool) -> None:
        if online != self.online:
            self.online = online
            log.info("%s: %s", self.name, "online" if online else "offline")
            self._delivery.set_availability(self.name, online)

    # What is told. `_put` has it on disk when it returns.

    def _put(self, event: Event) -> None:
        self.events += 1
        self.alerts[event.type] = self.alerts.get(event.type, 0) + 1
        offset_ns = self.source.epoch_offset_ns()
        payload = topics.event_payload(
            event,
            stream=self.name,
            episode_id=f"{self.config.node}-{self._boot}-{self.name}-{event.episode}",
            record="",
            offset_ns=offset_ns,
            historical=self._replayed,
        )
        payload = self._stamped(payload, self._clock.quality())
        if event.type == "anomaly_started":
            # First, so that whatever ends the agent now, its next start ends the episode.
            self._remember_episode(payload)
        payload = self._record(payload)
        if event.type.startswith("anomaly"):
            self._active_id = None if event.type == "anomaly_ended" else payload.id
            self._remember_episode(payload, self.pipeline.evidence.x)
        else:
            self._remember_episode(payload)
        blame = ", ".join(f"{share.channel} {share.share:.0%}" for share in event.channels[:3]) or event.reason
        log.info("%s: %s since %s: %s", self.name, event.type, payload.since, blame)

    def _record(self, payload: EventPayload) -> EventPayload:
        """An alert is on disk when it returns, telemetry a tenth of a second later; the payload with its record's id."""
        told: list[EventPayload] = []

        def build(record: str) -> bytes:
            told.append(structs.replace(payload, record=record))
            return topics.encode(told[0])

        # A question is for a person too, who must not miss it.
        kind: Kind = "alert" if payload.type.startswith("anomaly") or payload.type == "new_normal" else "telemetry"
        self._outbox.put(kind, topics.event(self.config.node, self.name), build, durable=kind == "alert")
        self._delivery.wake()
        return told[0] if told else payload  # over the day's budget of the disk telemetry is dropped, and counted

    def _remember_episode(self, payload: EventPayload, windows: Float32 | None = None) -> None:
        with self._lock:
            self.episodes.tell(payload, windows)

    def _stamped(self, payload: EventPayload, quality: str | None) -> EventPayload:
        """Marked, and with what it takes to set it right later, where nobody has set the clock. A recording has its own."""
        if quality is None or self._replayed:
            return payload
        if quality == "synced":
            return structs.replace(payload, time_quality="synced")
        return structs.replace(payload, time_quality="unsynced", boot=self._clock.boot, clock_offset_ns=self._clock.offset_ns())

    def end_orphans(self) -> None:
        """Episodes that were open when the agent ended: nobody else will ever say that they are over."""
        for episode in list(self.episodes):
            if episode.open:
                event = episode.event
                ended = structs.replace(
                    event, type="anomaly_ended", reason="restart", until=event.time, until_ns=event.time_ns, excerpt=None
                )
                self._remember_episode(self._record(ended))

    def _tell_state(self, verdicts: Verdicts, latency_s: float) -> None:
        offset_ns = self.source.epoch_offset_ns()
        alarm, shares = self.pipeline.alarm, verdicts.shares[-1]
        time_ns = int(verdicts.end_ns[-1]) + offset_ns
        order = (-shares).argsort(kind="stable")[:3]
        state = StatePayload(
            time=topics.rfc3339(time_ns),
            time_ns=time_ns,
            anomaly=alarm.active,
            score=min(float(verdicts.score[-1]), 3e38),  # JSON knows no infinity
            p_value=None if self.untaught else float(verdicts.p_value[-1]),
            threshold=self.pipeline.policy.p_value,
            model=self.bundle.digest,
            time_quality=self._clock.quality(),
            since=None if alarm.since_ns is None else topics.rfc3339(alarm.since_ns + offset_ns),
            top_channels=tuple(self.pipeline.channels[i] for i in order),
            maintenance=self._maintained_until_s is not None,
            learning=self.untaught,
            latency_ms=round(1e3 * latency_s, 3),
        )
        with self._lock:
            self._state = state
        self._delivery.set_state(self.name, state)

    def health(self) -> StreamHealth:
        """From any thread: numbers that are a moment old at most."""
        windower, source, learning = self.pipeline.windower, self.source, self._commissioning
        latency_s = self._latency_s()
        return StreamHealth(
            online=self.online,
            samples=self.samples,
            windows=self.windows,
            events=self.events,
            filled=windower.filled,
            lost=windower.lost,
            reopened=self.reopened,
            rejected=source.corrupt if isinstance(source, PortSource) else 0,
            faults=self.pipeline.faults,
            commissioned=None if (about := self.heads.about) is None else about.made,
            learning=None if learning is None else round(learning.share, 3),
            alarms=self.alerts.get("anomaly_started", 0),
            latency_ms=None if latency_s is None else round(1e3 * latency_s, 3),
        )

    # What others look at.

    def seen(self) -> Seen:
        """All there is so far, to be subtracted; from any thread."""
        return Seen(
            samples=self.samples,
            windows=self.windows,
            strange=self.strange,
            alarms=self.alerts.get("anomaly_started", 0),
            latency_s=self._latency_s(),
            not_finite=self.not_finite,
            lost=self.pipeline.windower.lost + self.alerts.get("gap", 0),  # a clock that jumps back loses no sample
        )

    @property
    def head_file(self) -> Path | None:
        """Of the head that serves; None: the bundle's, also where the settings ask more than that of the machine can tell."""
        return None if self.pipeline.head is self.bundle.head else self.heads.path

    def _latency_s(self) -> float | None:
        latencies = list(self._latencies)  # it grows in another thread
        return float(np.median(latencies)) if latencies else None

    def counters(self) -> StreamCounters:
        """From any thread, for Prometheus."""
        health, state = self.health(), self.state()
        return StreamCounters(
            samples=health.samples,
            windows=health.windows,
            rejected={"corrupt": health.rejected, "lost": health.lost},
            alerts=self.alerts,
            inference=self.inference,
            score=None if state is None else state.score,
            p_value=None if state is None else state.p_value,
            anomaly=state is not None and state.anomaly,
            online=health.online,
            last_sample_s=None if self.arrived_ns is None else self.arrived_ns / 1e9,
            reconnects=health.reopened,
        )

    def state(self) -> StatePayload | None:
        with self._lock:
            return self._state

    def situation(self) -> Situation:
        now_s, now_ns = self._monotonic(), self._clock.now_ns()
        until_s, learning = self._maintained_until_s, self._commissioning
        with self._lock:
            newest = self._recent[-1] if self._recent else None
        last_ns = None if newest is None else int(newest.time_ns[-1]) + self.source.epoch_offset_ns()
        progress = None
        if learning is not None:
            progress = Learning(running=True, progress=learning.share, left_s=60 * learning.minutes_left)
        elif self._learned:
            progress = Learning(running=False, progress=1.0, left_s=0.0, outcome=self._learned)
        return Situation(
            last_sample_ns=last_ns,
            maintenance_until_ns=None if until_s is None else now_ns + round((until_s - now_s) * 1e9),
            learning=progress,
            can_roll_back=self.heads.about is not None,
        )

    def verdicts(self) -> dict[str, str]:
        with self._lock:
            return {episode.event.id: episode.verdict for episode in self.episodes if episode.verdict is not None}

    def told(self) -> list[EventPayload]:
        """The newest event of each episode, and the question about it where there is one, oldest first."""
        with self._lock:
            return [event for episode in self.episodes for event in (episode.event, episode.question) if event is not None]

    @property
    def commissioning(self) -> bool:
        return self._commissioning is not None

    @property
    def untaught(self) -> bool:
        """A starter serves that has not learned this machine yet: whatever it finds strange is so for no reason."""
        return self.bundle.manifest.learn_minutes > 0 and self.pipeline.head is self.bundle.head

    def knows(self, episode_id: str) -> bool:
        with self._lock:
            return self.episodes.get(episode_id) is not None

    def history(self) -> History | None:
        with self._lock:
            points, recent = list(self._points), list(self._recent)
        if not points:
            return None
        offset_ns, policy = self.source.epoch_offset_ns(), self.pipeline.policy
        time_ns, score, p_value, anomaly = (np.array(column) for column in zip(*points, strict=True))
        signal = _newest(recent, 2 * self.bundle.manifest.window)
        return History(
            time_ns + offset_ns,
            score.astype(np.float32),
            p_value,
            anomaly,
            policy.allowance.score if policy.allowance else self.pipeline.head.calibrator.score_at(policy.p_value),
            signal.time_ns + offset_ns,
            signal.x,
        )

    def _remember(self, samples: Samples) -> None:
        with self._lock:
            self._recent.append(samples)
            self._recent_count += len(samples)
            while self._recent_count - len(self._recent[0]) >= self._most_recent:
                self._recent_count -= len(self._recent.popleft())

    def _draw(self, verdicts: Verdicts) -> None:
        """The strangest of each second."""
        end_ns, last = verdicts.end_ns, len(verdicts) - 1
        edges = [0, last + 1]
        if end_ns[0] // POINT_NS != end_ns[last] // POINT_NS:  # else one second, as nearly always, and nothing to look for
            edges[1:1] = (np.flatnonzero(np.diff(end_ns // POINT_NS)) + 1).tolist()
        with self._lock:
            for start, stop in pairwise(edges):
                at_ns = int(end_ns[stop - 1])
                if stop - start == 1:
                    score, p_value = float(verdicts.score[start]), float(verdicts.p_value[start])
                    anomaly = bool(verdicts.alarm[start])
                else:
                    score, p_value = float(verdicts.score[start:stop].max()), float(verdicts.p_value[start:stop].min())
                    anomaly = bool(verdicts.alarm[start:stop].any())
                if self._points and self._points[-1][0] // POINT_NS == at_ns // POINT_NS:
                    _, before, rarest, earlier = self._points.pop()
                    score, p_value, anomaly = max(score, before), min(p_value, rarest), anomaly or earlier
                self._points.append((at_ns, score, p_value, anomaly))

    # What may be asked, from any thread. `ask` hands the rest of these to the stream's own.

    def ask(self, action: Callable[[], T]) -> T:
        """Have it done between two chunks. Raises what it raises, and `RefusedError` when there is no getting through."""
        answer: Future[T] = Future()
        self._asked.put((action, answer))
        try:
            return answer.result(ANSWER_S)
        except (TimeoutError, CancelledError):
            answer.cancel()
            raise RefusedError(f"{self.name}: no answer in {ANSWER_S:.0f} s; is its port blocked? Try again later") from None

    def post(self, action: Callable[[], Any]) -> None:
        """Have it done between two chunks, however long that takes. It may raise nothing that its caller could mend."""
        self._asked.put((action, Future()))

    def replace(
        self, bundle: Bundle, *, head: Head | None = None, back: bool = False, alarm: AlarmConfig | None = None
    ) -> None:
        """Go on with another model, of the same channels at the same rate, from the next window on. None is missed, for it has
        seen the newest samples by then. An episode that is on ends, with the reason `new model`; a commissioning is over
        without a result. The head that was fitted on site is the old model's and comes back with it. What was forgiven is
        shown to the new one as it was kept, an episode at every turn, and is forgiven as that sees it.

        `head`: fitted to this stream for that model. `back`: the model so far was taken back, or is tried anew, and its heads
        are of no use any more. `alarm`: its settings from now on; None: they stay. Raises `ConfigError` or
        `CannotCreateError`, and changes nothing. With the model that it has nothing is to do: whoever heard no answer asks
        again.
        """
        if bundle.digest == self.bundle.digest:
            return
        alarm = alarm or self._alarm_config
        pipeline = bundle.pipeline(alarm)
        if head is not None:
            bundle.policy(alarm, head)
        forgiven = (*self._to_forgive, *self.pipeline.memory.names)
        if back:
            self.heads.forget()
        heads = Heads(self.folder / "heads", model=bundle.digest, scorer=bundle.manifest.scorer)
        if head is not None:
            made = topics.rfc3339(self._clock.now_ns())
            heads.keep(head, made=made, windows=head.calibrator.windows, trusted=False)
        own = self._own(bundle, heads, alarm)
        self._end("new model")
        for event in pipeline.take_over(self.pipeline):
            self._put(event)
        if self._commissioning is not None:
            self._commissioning = None
            self._not_commissioned(ANOTHER_MODEL)
        self.bundle, self.pipeline, self.heads, self._alarm_config = bundle, pipeline, heads, alarm
        self._memory_file = _memory_file(self.folder, bundle)
        if own is not None:
            self._adopt(own, alarm)
        self._load_memory()
        self._hold()
        self._forgive_again(forgiven)
        with self._lock:
            recent = list(self._recent)
        if recent:
            self.pipeline.judge(_newest(recent, bundle.manifest.window - 1))  # one short of a window

    def _own(self, bundle: Bundle, heads: Heads, alarm: AlarmConfig) -> Head | None:
        """The head that was fitted on site. One that cannot tell what the settings ask, which were perhaps made for another
        model, is left where it is: the bundle's serves, and the machine is watched."""
        if (own := heads.load()) is None:
            return None
        try:
            bundle.policy(alarm, own)
        except ConfigError as error:
            log.error("%s: the head that was fitted on site is left out, that of the bundle serves: %s", self.name, error)
            return None
        return own

    def stop(self) -> None:
        self._stopping.set()

    def use(self, alarm: AlarmConfig) -> None:
        """Other alarm settings from now on. Raises `ConfigError` for those that cannot be."""
        self.pipeline.set_alarm(self.bundle.policy(alarm, self.pipeline.head), alarm.settle_s)
        self._alarm_config = alarm

    def maintain(self, seconds: float | None) -> None:
        """Nothing is raised for so long, by the host's clock: the stream's may stand still, or be set back.

        None: from now on again.
        """
        if seconds is None:
            self._end_maintenance()
            return
        self._maintained_until_s = self._monotonic() + seconds
        self._hold()
        self._show_maintenance()
        log.info("%s: maintenance for %.0f min", self.name, seconds / 60)

    def _hold(self) -> None:
        """Nothing is raised while somebody works on the machine, nor by a model that does not know it yet."""
        if self._maintained_until_s is None and not self.untaught:
            self.pipeline.alarm.unmute()
        elif (event := self.pipeline.alarm.mute()) is not None:
            self._put(event)

    def _show_maintenance(self) -> None:
        """At once, also while the sensor is silent: a switch that does not follow is pressed again."""
        with self._lock:
            if self._state is None:
                return
            active = self.pipeline.alarm.active
            state = structs.replace(
                self._state,
                maintenance=self._maintained_until_s is not None,
                anomaly=active,
                since=self._state.since if active else None,
            )
            self._state = state
        self._delivery.set_state(self.name, state)

    def _end_maintenance(self) -> None:
        if self._maintained_until_s is not None:
            self._maintained_until_s = None
            self._hold()
            self._show_maintenance()
            log.info("%s: maintenance is over", self.name)

    def feedback(self, episode_id: str | None, verdict: str) -> dict[str, Any]:
        """What a person says of an episode, the newest without an id. Raises `RefusedError`."""
        episode = self.episodes.newest_anomaly() if episode_id is None else self.episodes.get(episode_id)
        if episode is None:
            raise RefusedError(f"{self.name}: {'no anomaly has been told yet' if episode_id is None else 'no such episode'}")
        event, memory = episode.event, self.pipeline.memory
        if not event.type.startswith("anomaly") and event.type != "new_normal":
            raise RefusedError(f"{event.id} is a {event.type}; only of an anomaly can be said whether it was one")
        if verdict in ("undo", "confirmed"):  # what was forgiven before was no false alarm after all
            memory.remove(event.id)
            if event.id in self._to_forgive:
                self._to_forgive.remove(event.id)
            self.pipeline.alarm.relent()
        else:
            self._forgive(event.id, verdict)
        self._write_memory()
        with self._lock:
            self.episodes.judge(event.id, None if verdict == "undo" else verdict)
        return {"id": event.id, "verdict": verdict, "remembered": len(memory.names)}

    def _forgive(self, episode_id: str, verdict: str) -> None:
        windows = self.episodes.windows(episode_id)
        ours = episode_id == self._active_id
        if ours and len(self.pipeline.evidence.x):
            windows = self.pipeline.evidence.x  # more of them by now
        if windows is None or not len(windows):
            raise RefusedError(f"{episode_id}: its windows were not kept, so there is nothing to remember it by")
        if ours or verdict == "new_normal":
            windows = np.concatenate([windows, self._newest_windows()])  # it still lasts, and may have changed
        try:
            self.pipeline.memory.add(episode_id, self.pipeline.outputs(windows))
        except ValueError as error:
            raise RefusedError(f"{episode_id}: {error}") from None
        if ours:
            # Some of its windows are like no prototype, and whoever has just said so is not to be told again.
            self._end(verdict.replace("_", " "), longest=True)

    def _forgive_again(self, names: Sequence[str]) -> None:
        """What a person said under another model holds under this one, as far as the windows were kept; the newest few."""
        memory = self.pipeline.memory
        for name in (known := memory.names):  # said before this model was replaced, and perhaps taken back since
            if (episode := self.episodes.get(name)) is not None and episode.verdict not in FORGIVING:
                memory.remove(name)
        self._to_forgive = deque([name for name in names if name not in memory.names][-MOST_AGAIN:])
        if known and not self._to_forgive:
            self._forgiven_again()

    def _forgive_next(self) -> None:
        """One of them at a turn: together they take as long as hundreds of windows do, and samples keep coming."""
        name, memory, manifest = self._to_forgive.popleft(), self.pipeline.memory, self.bundle.manifest
        if name not in memory.names:  # nobody has said it once more
            windows = self.episodes.windows(name)
            try:
                if windows is None or windows.shape[1:] != (len(manifest.channels), manifest.window):
                    raise ValueError("no windows of this length were kept")
                memory.add(name, self.pipeline.outputs(windows))
            except ValueError as error:
                log.warning("%s: what was forgiven as %s may be raised again: %s", self.name, name, error)
        if not self._to_forgive:
            self._forgiven_again()

    def _forgiven_again(self) -> None:
        try:
            self._write_memory()
        except RefusedError as error:
            log.warning("%s: %s", self.name, error)

    def _newest_windows(self) -> Float32:
        """(n, C, N) of what the sensor says now, side by side, as many as the memory of the signal holds and at most 48."""
        length = self.bundle.manifest.window
        with self._lock:
            recent = list(self._recent)
        x = _newest(recent, 48 * length).x
        count = x.shape[1] // length
        windows = x[:, x.shape[1] - count * length :].reshape(len(x), count, length).transpose(1, 0, 2)
        return np.ascontiguousarray(windows[np.isfinite(windows).all(axis=(1, 2))])

    def commission(self, minutes: float, *, trusted: bool, done: Callable[[str, str], None]) -> dict[str, Any]:
        """Learn what is ordinary from what comes in the next minutes; `done(outcome, trouble)` is called in the main thread."""
        if self._commissioning is not None:
            if not self.untaught:
                left = self._commissioning.minutes_left
                raise RefusedError(f"{self.name}: is being commissioned already, {left:.3g} min to go; `cancel` ends that")
            self._not_commissioned("begun anew")  # by itself; whoever asks now knows better for how long
        self._commissioning = Commissioning(
            self.bundle, minutes, self.pipeline.windower.hop, trusted=trusted, now_s=self._monotonic()
        )
        self._commissioned = done
        self.pipeline.tap = self._collect
        log.info("%s: commissioning, %.3g min", self.name, minutes)
        return {"stream": self.name, "minutes": minutes, "state": "collecting"}

    def cancel(self) -> dict[str, Any]:
        if self._commissioning is None:
            raise RefusedError(f"{self.name}: is not being commissioned")
        if self.untaught:
            raise RefusedError(
                f"{self.name}: does not know this machine yet and has to learn it; say other `minutes` to begin anew"
            )
        self._commissioning = self.pipeline.tap = None
        return {"stream": self.name, "state": "cancelled"}

    def roll_back(self) -> dict[str, Any]:
        """Back to the head before this one; in the end to the bundle's. Raises `ConfigError` when the alarm's settings ask more
        of that than it can tell, and changes nothing."""
        if self.heads.about is None:
            raise RefusedError(f"{self.name}: has the head of its bundle; there is nothing to go back to")
        before = self.heads.before() or self.bundle.head
        self.bundle.policy(self._alarm_config, before)
        self.heads.roll_back()
        self._adopt(before, self._alarm_config)
        about = self.heads.about
        return {"stream": self.name, "state": "rolled back", "to": about.made if about else "the bundle's"}

    def snapshot(self, seconds: float) -> dict[str, Any]:
        """The newest samples. Raises `RefusedError` when there are none, or for more than an answer holds."""
        manifest = self.bundle.manifest
        most_s = SNAPSHOT_VALUES / len(manifest.channels) / manifest.rate_hz
        if seconds > most_s:
            raise RefusedError(f"{self.name}: an answer holds {most_s:.3g} s of this stream at most")
        with self._lock:
            recent = list(self._recent)
        if not recent:
            raise RefusedError(f"{self.name}: nothing has come from the sensor yet")
        samples = _newest(recent, max(1, round(seconds * manifest.rate_hz)))
        time_ns = samples.time_ns + self.source.epoch_offset_ns()
        return {
            "stream": self.name,
            "time": topics.rfc3339(int(time_ns[0])),
            "time_ns": time_ns.tolist(),
            "units": {channel.name: channel.unit for channel in manifest.channels},
            "values": {
                name: [round(value, 6) if math.isfinite(value) else None for value in row]
                for name, row in zip(self.bundle.channels, samples.x.tolist(), strict=True)
            },
        }

    # Commissioning.

    def _collect(self, windows: Windows, outputs: Outputs) -> None:
        if self._commissioning is not None:
            # Of values the head that is to be replaced knows what was usual for another machine.
            kinds = {kind for kind, _ in self.pipeline.health.open} if self.pipeline.health else set()
            self._commissioning.feed(windows, outputs, faulty=not kinds.isdisjoint(("dropout", "rate")))

    def _fit(self, commissioning: Commissioning) -> None:
        """In a thread of its own, which takes what the stream leaves: a fit takes seconds, and samples keep coming."""
        self._commissioning = self.pipeline.tap = None

        def work() -> None:
            with contextlib.suppress(OSError, AttributeError):  # a thread is a process to the scheduler, on Linux
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
            try:
                head = commissioning.fit()
            except DataError as error:
                self._not_commissioned(str(error))
            except BaseException as error:  # a bug here is one of the agent
                self._asked.put((partial(_raise, error), Future()))
            else:
                self._asked.put((partial(self._fitted, commissioning, head), Future()))

        threading.Thread(target=work, name=f"fit-{self.name}", daemon=True).start()

    def _fitted(self, commissioning: Commissioning, head: Head) -> None:
        if commissioning.bundle is not self.bundle:
            self._not_commissioned(ANOTHER_MODEL)
            return
        try:
            self._adopt(head, self._alarm_config)
            made = topics.rfc3339(self._clock.now_ns())
            self.heads.keep(head, made=made, windows=commissioning.windows, trusted=commissioning.trusted)
        except AmissError as error:  # no threshold for it, or no room on the disk: what was there goes on
            self._adopt(self._own(self.bundle, self.heads, self._alarm_config) or self.bundle.head, self._alarm_config)
            self._not_commissioned(str(error))
            return
        outcome = self._learned = f"fitted to {commissioning.windows} windows of this machine"
        log.info("%s: commissioned, %s", self.name, outcome)
        self._later(partial(self._commissioned, outcome, ""))

    def _not_commissioned(self, why: str) -> None:
        self._learned = why
        self._later(partial(self._commissioned, "", why))

    def _adopt(self, head: Head, alarm: AlarmConfig) -> None:
        policy = self.bundle.policy(alarm, head)
        self._end("commissioned")
        for event in self.pipeline.adopt(head, policy):
            self._put(event)
        self._hold()

    def _end(self, reason: str, *, longest: bool = False) -> None:
        if (ended := self.pipeline.alarm.end(self._judged_ns, reason, longest=longest)) is not None:
            self._put(ended)

    def _load_memory(self) -> None:
        try:
            known = unpack_arrays(self._memory_file.read_bytes())
            self.pipeline.memory.load(known)
        except FileNotFoundError:
            pass
        except (OSError, AmissError, KeyError, ValueError) as error:
            log.error("%s: cannot be used (%s); what was called a false alarm may be raised again", self._memory_file, error)

    def _write_memory(self) -> None:
        try:
            with at_once(self._memory_file) as draft:
                draft.write_bytes(pack_arrays(self.pipeline.memory.arrays()))
        except CannotCreateError as error:
            raise RefusedError(f"{error}; it holds until the agent ends") from None


def _memory_file(folder: Path, bundle: Bundle) -> Path:
    return folder / f"memory-{bundle.digest[:16]}.npz"  # another encoder sees other things


def _newest(parts: list[Samples], count: int) -> Samples:
    """The last `count` samples."""
    kept: list[Samples] = []
    for part in reversed(parts):
        if count <= 0:
            break
        kept.append(Samples(part.time_ns[-count:], part.x[:, -count:]))
        count -= len(part)
    kept.reverse()
    return Samples(np.concatenate([p.time_ns for p in kept]), np.concatenate([p.x for p in kept], axis=1))


def _raise(error: BaseException) -> None:
    raise error
