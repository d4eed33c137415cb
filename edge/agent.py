"""The agent: run for ever.

    one thread per stream                                         one thread
    Source ─▶ Pipeline ─▶ Outbox (on disk) ── ─ ─ ─ ─ ─ ─ ─ ─ ─▶ Delivery ─▶ broker
       ▲          └────── latest state (in memory) ─ ─ ─ ─ ─ ─ ─▶    │
       └─ reopened with back-off                                     └─ reconnects with back-off

The stream's thread does everything between a byte and a durable event, so nothing is queued in memory on the way. A sensor
or a broker that is away is ordinary and only waited for; any other error ends the process, and the service manager starts
it again. The main thread publishes health and looks after the others.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge import config as configs
from edge.bundle import AGENT_VERSION, Bundle
from edge.config import DeviceConfig
from edge.delivery import Delivery, topics
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Kind, Outbox
from edge.delivery.topics import ChannelInfo, ClockHealth, HealthPayload, InfoPayload, ModelInfo, StatePayload, StreamHealth
from edge.errors import SourceLostError, UndeliveredError
from edge.event import Event
from edge.operating import system
from edge.pipeline import Pipeline, Verdicts
from edge.sensing.sources import PortSource, ReplaySource, Source, collect_s, port_source

log = logging.getLogger("amiss")

REOPEN_S = (0.5, 5.0)
"""First and longest pause before a lost sensor is opened again."""
FLUSH_S = 10.0
"""How long a stop waits for the broker. What is not delivered by then waits in the outbox for the next start."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Recordings that stand in for the sensors."""

    paths: tuple[Path, ...]
    speed: float | None
    """Times real time; None: as fast as they can be read."""


@dataclass(slots=True)
class Stream:
    """One sensor and what is known of it. Written by its own thread only."""

    name: str
    source: Source
    pipeline: Pipeline
    online: bool = False
    samples: int = 0
    windows: int = 0
    events: int = 0
    reopened: int = 0
    state_sent_s: float = -1e9


class Agent:
    """Everything one device does. `run` returns when `stop` is called, or, with `once`, when there is nothing more to do.

    Everything that can be wrong with configuration and model is said when it is built, before a port or a connection is
    opened. `monotonic` gives seconds, `wall` epoch nanoseconds.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        replay: Replay | None = None,
        once: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.config, self._replay, self._once = config, replay, once
        self._monotonic, self._wall = monotonic, wall
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._boot = secrets.token_hex(4)
        self._load = system.Load(monotonic)
        self._started_s = monotonic()

        self.bundle = Bundle.open(Path(config.bundle))
        proof = self.bundle.self_test()
        log.info("model %s verified: golden scores within %.1g", self.bundle.digest[:16], proof.worst)
        self.streams = [Stream(name, self._source(name), self.bundle.pipeline(config.alarm)) for name in config.streams]
        self.outbox = Outbox(
            config.state_path() / "outbox.db", device=config.node, boot=self._boot, max_bytes=config.outbox_max_bytes
        )
        self.delivery = Delivery(MqttSink(config.mqtt, config.node), self.outbox)

    def run(self) -> None:
        """Raises what a thread died of, and with `once` `UndeliveredError` when the broker did not take everything.

        What it did not take waits in the outbox for the next start.
        """
        threads = [
            threading.Thread(target=self._guard, args=(stream,), name=f"stream-{stream.name}", daemon=True)
            for stream in self.streams
        ]
        self.delivery.set_info(self._info())
        self.delivery.start()
        try:
            for thread in threads:
                thread.start()
            health_due_s = self._monotonic()
            while not self._stopping.wait(0.2 if self._once else 1.0) and any(thread.is_alive() for thread in threads):
                self.delivery.check()
                if self._monotonic() >= health_due_s:
                    self.delivery.set_health(self._health())
                    health_due_s = self._monotonic() + self.config.mqtt.health_every_s
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(FLUSH_S)
            for stream in self.streams:
                self.delivery.set_availability(stream.name, False)
            self.delivery.stop(FLUSH_S)
            self.outbox.close()
        if self._failure is not None:
            raise self._failure
        if self._once and (waiting := self.outbox.counts.waiting):
            raise UndeliveredError(
                f"{waiting} record{' waits' if waiting == 1 else 's wait'} in {self.outbox.path}: {self.delivery.trouble}; "
                "delivered at the next start"
            )

    def stop(self) -> None:
        """Ask `run` to end; safe from a signal handler."""
        self._stopping.set()

    # A stream's thread.

    def _guard(self, stream: Stream) -> None:
        """A thread must not die unseen: whatever ends it ends the process."""
        try:
            self._follow(stream)
        except BaseException as error:
            self._failure = error
            self._stopping.set()

    def _follow(self, stream: Stream) -> None:
        pause_s, told = REOPEN_S[0], ""
        while not self._stopping.is_set():
            try:
                with closing(stream.source) as source:
                    for samples in source.samples():
                        if self._stopping.is_set():
                            return
                        if not len(samples):
                            continue
                        pause_s, told = REOPEN_S[0], ""
                        self._set_online(stream, True)
                        stream.samples += len(samples)
                        self._tell(stream, stream.pipeline.judge(samples))
                        if self._once and self._replay is None and stream.windows:
                            return
                if self._once:
                    return  # a recording is over
            except SourceLostError as error:
                self._set_online(stream, False)
                if str(error) != told:  # once per cause, not once per attempt
                    log.warning("%s: %s", stream.name, error)
                    told = str(error)
                stream.reopened += 1
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, REOPEN_S[1])

    def _tell(self, stream: Stream, verdicts: Verdicts) -> None:
        for event in verdicts.events:
            self._put(stream, event)
        if not len(verdicts):
            return
        stream.windows += len(verdicts)
        now_s = self._monotonic()
        if now_s - stream.state_sent_s >= self.config.mqtt.state_every_s:
            stream.state_sent_s = now_s
            self.delivery.set_state(stream.name, self._state(stream, verdicts))

    def _put(self, stream: Stream, event: Event) -> None:
        stream.events += 1
        offset_ns = stream.source.epoch_offset_ns()

        def build(record: str) -> bytes:
            return topics.encode(
                topics.event_payload(
                    event,
                    stream=stream.name,
                    episode_id=f"{self.config.node}-{self._boot}-{stream.name}-{event.episode}",
                    record=record,
                    offset_ns=offset_ns,
                    historical=self._replay is not None,
                )
            )

        kind: Kind = "alert" if event.type.startswith("anomaly") else "telemetry"
        self.outbox.put(kind, topics.event(self.config.node, stream.name), build)
        self.delivery.wake()
        blame = ", ".join(f"{share.channel} {share.share:.0%}" for share in event.channels[:3]) or event.reason
        log.info("%s: %s since %s: %s", stream.name, event.type, topics.rfc3339(event.since_ns + offset_ns), blame)

    def _set_online(self, stream: Stream, online: bool) -> None:
        if online != stream.online:
            stream.online = online
            log.info("%s: %s", stream.name, "online" if online else "offline")
            self.delivery.set_availability(stream.name, online)

    # What is told.

    def _source(self, name: str) -> Source:
        config, rate_hz = self.config.streams[name], self.bundle.manifest.rate_hz
        if self._replay is not None:
            return ReplaySource(self._replay.paths, self.bundle.channels, self._replay.speed, rate_hz=rate_hz)
        return port_source(config, self.bundle.channels, rate_hz, collect_s=collect_s(self.bundle.manifest.hop / rate_hz))

    def _state(self, stream: Stream, verdicts: Verdicts) -> StatePayload:
        offset_ns = stream.source.epoch_offset_ns()
        alarm, shares = stream.pipeline.alarm, verdicts.shares[-1]
        time_ns, synced = int(verdicts.end_ns[-1]) + offset_ns, system.clock_synced()
        order = (-shares).argsort(kind="stable")[:3]
        return StatePayload(
            time=topics.rfc3339(time_ns),
            time_ns=time_ns,
            anomaly=alarm.active,
            score=min(float(verdicts.score[-1]), 3e38),  # JSON knows no infinity
            p_value=float(verdicts.p_value[-1]),
            threshold=stream.pipeline.policy.p_value,
            model=self.bundle.digest,
            time_quality=None if synced is None else "synced" if synced else "unsynced",
            since=None if alarm.since_ns is None else topics.rfc3339(alarm.since_ns + offset_ns),
            top_channels=tuple(stream.pipeline.channels[i] for i in order),
        )

    def _health(self) -> HealthPayload:
        time_ns, synced = self._wall(), system.clock_synced()
        return HealthPayload(
            time=topics.rfc3339(time_ns),
            time_ns=time_ns,
            uptime_s=round(self._monotonic() - self._started_s, 1),
            mqtt=self.delivery.health(),
            streams={stream.name: self._stream_health(stream) for stream in self.streams},
            clock=None if synced is None else ClockHealth(synced=synced),
            cpu=self._load.cpu(),
            rss=system.resident_bytes(),
            temperature=system.temperature_c(),
            disk_written_bytes=system.disk_written_bytes(),
        )

    def _stream_health(self, stream: Stream) -> StreamHealth:
        windower = stream.pipeline.windower
        return StreamHealth(
            online=stream.online,
            samples=stream.samples,
            windows=stream.windows,
            events=stream.events,
            filled=windower.filled,
            lost=windower.lost,
            reopened=stream.reopened,
            rejected=stream.source.corrupt if isinstance(stream.source, PortSource) else 0,
        )

    def _info(self) -> InfoPayload:
        manifest = self.bundle.manifest
        return InfoPayload(
            node=self.config.node,
            versions={"amiss": ".".join(map(str, AGENT_VERSION))} | system.versions() | self.bundle.backend.versions(),
            model=ModelInfo(digest=self.bundle.digest, name=manifest.name, version=manifest.version),
            channels=tuple(ChannelInfo(name=channel.name, unit=channel.unit) for channel in manifest.channels),
            config=configs.redacted(self.config),
            backend=self.bundle.backend.name,
            machine=os.uname().machine,
            board=system.board(),
            config_schema=configs.schema(),
        )
