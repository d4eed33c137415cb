"""The agent: run for ever.

    a thread per stream                                            one thread
    Source ─▶ Pipeline ─▶ Outbox (on disk) ── ─ ─ ─ ─ ─ ─ ─ ─ ─ ─▶ Delivery ─▶ broker
       ▲   `Stream`  └─── latest state (in memory) ─ ─ ─ ─ ─ ─ ─ ─▶   │
       │      ▲                                                       │ request/<verb>
       │      └── between two chunks ── main thread ◀── Requests ◀────┘
       └─ reopened with back-off            ▲
                                            └── the device's page, `amiss ask`

A stream's thread does everything between a byte and a durable event, so nothing is queued in memory on the way. A sensor
or a broker that is away is ordinary and only waited for; any other error ends the process, and the service manager starts
it again. The main thread answers requests one at a time, publishes health and looks after the others.
"""

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge import config as configs
from edge.bundle import AGENT_VERSION, Bundle
from edge.config import AlarmConfig, DeviceConfig
from edge.delivery import Delivery, topics
from edge.delivery.homeassistant import HomeAssistant, stale_topic
from edge.delivery.mqtt import MqttSink
from edge.delivery.outbox import Outbox
from edge.delivery.topics import (
    ChannelInfo,
    ClockHealth,
    EventPayload,
    HealthPayload,
    InfoPayload,
    ModelInfo,
    Response,
    StatePayload,
)
from edge.errors import AmissError, CannotCreateError, ConfigError, UndeliveredError
from edge.files import at_once
from edge.operating import metrics, system
from edge.operating import requests as asked
from edge.operating import settings as kept
from edge.operating.clock import HostClock
from edge.operating.control import Control
from edge.operating.episodes import MOST as MOST_EPISODES
from edge.operating.jobs import Jobs
from edge.operating.requests import RefusedError, Requests
from edge.operating.service import Heartbeat, Notifier
from edge.operating.settings import Learning, Pause, Settings
from edge.operating.stream import Stream
from edge.operating.upgrade import Upgrade, open_serving
from edge.operating.view import EPISODES, History, Situation
from edge.sensing.sources import ReplaySource, Source, collect_s, port_source
from edge.updating.store import Models, Serving
from edge.updating.workflow import Progress, Updates

if TYPE_CHECKING:
    from edge.operating.http import Server
    from edge.operating.web import Page

log = logging.getLogger("amiss")

FLUSH_S = 10.0
"""How long a stop waits for the broker. What is not delivered by then waits in the outbox for the next start."""
MOST_JOBS = 32
"""Requests that wait to be answered; more are refused at once."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Recordings that stand in for the sensors."""

    paths: tuple[Path, ...]
    speed: float | None
    """Times real time; None: as fast as they can be read."""


class Agent:
    """Everything one device does. `run` returns when `stop` is called, or, with `once`, when there is nothing more to do.

    Everything that can be wrong with configuration and model is said when it is built, before a port or a connection is
    opened. `monotonic` gives seconds, `wall` epoch nanoseconds. It is a `edge.operating.view.View`.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        replay: Replay | None = None,
        once: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        clock: HostClock | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.config, self._replay, self._once = config, replay, once
        self._monotonic, self._clock = monotonic, clock or HostClock()
        self._notifier, self._heart, self._status = notifier or Notifier({}), Heartbeat(monotonic), ""
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._boot = secrets.token_hex(4)
        self._load = system.Load(monotonic)
        self._cpu: float | None = None
        self._started_s = monotonic()
        self._pauses_s: dict[str, float] = {}  # by stream: when its maintenance is over, on the monotonic clock
        self._jobs = Jobs(monotonic)
        self._place = config.state_path()
        self._home_memory = self._place / "homeassistant.json"

        self.models: Models | None = None
        if config.update is not None and replay is None:
            self.models = Models(self._place / "models", Path(config.bundle))
        serving: Serving | None = None
        if self.models is not None:
            self.bundle, serving, proof = open_serving(self.models, config.runtime.provider)
        else:
            self.bundle = Bundle.open(Path(config.bundle), provider=config.runtime.provider)
            proof = self.bundle.self_test()
        log.info("model %s verified: golden scores within %.1g, by %s", self.bundle.digest[:16], proof.worst, proof.runtime)
        self.settings = kept.load(self._place)
        alarm = self._promised()
        if self.settings.alarm:
            log.info("instead of what the configuration says, as was asked of the running agent: alarm %s", self.settings.alarm)
        sources = {name: _source(config, self.bundle, name, replay) for name in config.streams}
        log.info("false alarms: %s", self.bundle.policy(alarm).sentence())
        self.outbox = Outbox(
            self._place / "outbox.db",
            device=config.node,
            boot=self._boot,
            max_bytes=config.outbox_max_bytes,
            bytes_per_day=config.disk_budget_bytes_per_day,
            ack=config.mqtt.ack,
            clock=self._clock.now_ns,
        )
        self.delivery = Delivery(
            MqttSink(config.mqtt, config.node),
            self.outbox,
            token=config.requests.token,
            clock=monotonic,
            wall=self._clock.now_ns,
            known=self._clock.known,
        )
        self.streams = {
            name: Stream(
                name,
                source,
                self.bundle,
                config,
                alarm,
                outbox=self.outbox,
                delivery=self.delivery,
                clock=self._clock,
                boot=self._boot,
                later=self.later,
                replayed=replay is not None,
                once=once,
                monotonic=monotonic,
                beat=partial(self._heart.beat, name),
            )
            for name, source in sources.items()
        }
        self._requests = Requests(
            config.requests,
            {
                "ping": self._ping,
                "config": self._config,
                "maintenance": self._maintenance,
                "feedback": self._feedback,
                "commission": self._commission,
                "snapshot": self._snapshot,
                "update": self._update,
                "rollback": self._rollback,
            },
        )
        self._control = Control(self._place, partial(self._wait_for_answer, local=True))
        # A server's modules are 2 MB that a device without a page and metrics does without.
        self._page: Page | None = None
        if config.web is not None:
            from edge.operating import web

            self._page = web.Page(config.web, self)
        self._metrics: Server | None = None
        if (listen := config.metrics) is not None:
            from edge.operating import http

            routes = {("GET", "/metrics"): metrics.route(self.measured)}
            self._metrics = http.Server("metrics", listen.host, listen.port, routes, names={self.node, f"{self.node}.local"})
        self._home = self._home_assistant()
        self._updates: Updates | None = None
        if self.models is not None and serving is not None and config.update is not None:
            self._upgrade = Upgrade(
                config,
                self.models,
                self.bundle,
                serving.path,
                self.streams,
                alarm=lambda: self._alarm(self.settings),
                adopted=lambda bundle: self.later(partial(self._adopted, bundle)),
                monotonic=monotonic,
            )
            self._updates = Updates(
                self.models,
                serving,
                self._upgrade,
                self._tell_progress,
                poll_every_s=config.update.poll_every_s,
                group=config.update.group,
                clock=monotonic,
            )

    @property
    def node(self) -> str:
        return self.config.node

    def run(self) -> None:
        """Raises what a thread died of, and with `once` `UndeliveredError` when the broker did not take everything.

        What it did not take waits in the outbox for the next start.
        """
        threads = [
            threading.Thread(target=self._guard, args=(stream,), name=f"stream-{stream.name}", daemon=True)
            for stream in self.streams.values()
        ]
        self._resume()
        self.delivery.set_info(self.info())
        self.delivery.subscribe(topics.requests(self.node), self._heard)
        self.delivery.start()
        try:
            self._control.start()
            self._serve()
            for thread in threads:
                thread.start()
            if self._updates is not None:
                self._updates.start()
            self._notifier.ready()
            health_due_s = self._monotonic()
            while not self._stopping.is_set() and any(thread.is_alive() for thread in threads):
                self._jobs.work(0.2 if self._once else 1.0)
                self.delivery.check()
                if self._updates is not None:
                    self._updates.check()
                self._notify()
                self._forget_maintenance()
                self._greet_home_assistant()
                if self._monotonic() >= health_due_s:
                    self._cpu = self._load.cpu()
                    self.delivery.set_health(self.health())
                    health_due_s = self._monotonic() + self.config.mqtt.health_every_s
        finally:
            if self._updates is not None:
                self._upgrade.stopping = True
                self._updates.stop()
            self.stop()
            self._notifier.ping()
            self._control.close()
            if self._metrics is not None:
                self._metrics.close()
            if self._page is not None:
                self._page.close()
            for thread in threads:
                thread.join(FLUSH_S)
            for name in self.streams:
                self.delivery.set_availability(name, False)
            self.delivery.stop(FLUSH_S)
            self.outbox.close()
            if self.models is not None:
                self.models.close()
        if self._failure is not None:
            raise self._failure
        if self._once and (waiting := self.outbox.counts.waiting):
            raise UndeliveredError(
                f"{waiting} record{' waits' if waiting == 1 else 's wait'} in {self.outbox.path}: "
                f"{self.delivery.trouble or 'not acknowledged by the application yet'}; "
                "delivered at the next start"
            )

    def _serve(self) -> None:
        """Page and metrics. Where a port is taken the machine is watched all the same."""
        for what, server in (("page", self._page), ("metrics", self._metrics)):
            if server is not None:
                try:
                    server.start()
                    log.info("%s at %s", what, server.url)
                except AmissError as error:
                    log.error("no %s: %s", what, error)

    @staticmethod
    def examine(config: DeviceConfig) -> None:
        """Would an agent start with it? Opens the model and nothing else; raises what is wrong."""
        bundle = Bundle.open(Path(config.bundle))
        bundle.self_test()
        bundle.policy(configs.changed_alarm(config.alarm, kept.load(config.state_path()).alarm))
        for name in config.streams:
            _source(config, bundle, name, None)
        MqttSink(config.mqtt, config.node).close()

    def stop(self) -> None:
        """Ask `run` to end. A signal handler asks for it by `later`: it may have interrupted this very call, and its locks."""
        self._stopping.set()
        for stream in self.streams.values():
            stream.stop()

    def _guard(self, stream: Stream) -> None:
        """A thread must not die unseen: whatever ends it ends the process."""
        try:
            stream.run()
        except BaseException as error:
            self._failure = error
            self._stopping.set()
        finally:
            self._heart.end(stream.name)

    def _notify(self) -> None:
        """systemd hears that we are alive while every stream's loop turns, and how we are when that changes."""
        late = self._heart.late()
        self._notifier.turn(self._heart.alive())
        online = sum(stream.online for stream in self.streams.values())
        status = f"{online} of {len(self.streams)} streams online, broker {'connected' if self.delivery.connected else 'away'}"
        if late:
            status = f"standing still: {', '.join(sorted(late))}"
        if status != self._status:
            self._notifier.status(status)
            self._status = status
            if late:
                log.error("%s; under systemd the watchdog will end us", status)

    def _resume(self) -> None:
        """What was going on when the agent ended."""
        now_ns = self._clock.now_ns()
        for name, stream in self.streams.items():
            stream.end_orphans()
            pause = self.settings.maintenance.get(name)
            if pause is not None and pause.until_ns > now_ns:
                # A clock that is behind must not make a long silence of a short one.
                left_s = min((pause.until_ns - now_ns) / 1e9, pause.seconds)
                self._pauses_s[name] = self._monotonic() + left_s
                stream.maintain(left_s)
            if (learning := self.settings.commission.get(name)) is not None:
                log.info("%s: commissioning was interrupted; it begins anew", name)
                stream.commission(learning.minutes, trusted=learning.trusted, done=partial(self._commissioned, name, None))
            self._teach(stream)

    def _forget_maintenance(self) -> None:
        """What is over must not begin anew with a start whose clock is behind."""
        now_s = self._monotonic()
        lasting = {name: pause for name, pause in self.settings.maintenance.items() if self._pauses_s.get(name, 0.0) > now_s}
        if len(lasting) != len(self.settings.maintenance):
            with contextlib.suppress(CannotCreateError):  # the disk is full: a second later, then
                self._keep(msgspec.structs.replace(self.settings, maintenance=lasting))

    def later(self, job: Callable[[], None]) -> None:
        """Have it done by the main thread; safe from a signal handler."""
        self._jobs.put(job)

    # Home Assistant.

    def _home_assistant(self) -> HomeAssistant | None:
        try:
            memory = self._home_memory.read_bytes()
        except OSError:
            memory = b""
        if (stale := stale_topic(self.config, memory)) is not None:
            self.delivery.forget_retained(stale)
        if self.config.homeassistant is None:
            self._home_memory.unlink(missing_ok=True)
            return None
        judged_every_s = self.bundle.manifest.hop / self.bundle.manifest.rate_hz
        home = HomeAssistant(self.config, judged_every_s=max(judged_every_s, self.config.mqtt.state_every_s), memory=memory)
        self.delivery.subscribe(home.status_topic, lambda topic, payload: home.heard(topic, payload, self._monotonic()))
        return home

    def _greet_home_assistant(self) -> None:
        now_s = self._monotonic()
        if self._home is None or not self._home.due(now_s):
            return
        topic, payload = self._home.announcement(self.info(), now_s)
        memory = self._home.memory()
        try:
            if not self._home_memory.exists() or self._home_memory.read_bytes() != memory:
                with at_once(self._home_memory) as draft:
                    draft.write_bytes(memory)
        except (OSError, CannotCreateError) as error:
            log.warning("%s; an entity that is no longer configured may stay in Home Assistant", error)
        self.delivery.publish_retained(topic, payload)

    # Requests. The actions run in the main thread.

    def request(self, verb: str, body: Mapping[str, Any]) -> Response:
        return self._wait_for_answer(verb, msgspec.json.encode(body), local=True)

    def _heard(self, topic: str, payload: bytes) -> None:
        """In the delivery thread, which has other things to do."""
        verb = topics.verb_of(self.node, topic)
        if verb is None or verb == "ack":  # that one is the delivery's own
            return
        if len(self._jobs) >= MOST_JOBS:
            self._respond(verb, Response(status="error", error="too many requests at once; ask again later"))
        else:
            self._jobs.put(lambda: self._respond(verb, self._requests.answer(verb, payload)))

    def _respond(self, verb: str, response: Response) -> None:
        # What is not a verb makes no topic of its own.
        known = verb if verb in asked.BODIES else "error"
        self.delivery.respond(topics.response(self.node, known), topics.encode(response))

    def _wait_for_answer(self, verb: str, payload: bytes, *, local: bool) -> Response:
        """From any thread but the main one."""
        if len(self._jobs) >= MOST_JOBS:
            return Response(status="error", error="too many requests at once; ask again later")
        answer: Future[Response] = Future()
        self._jobs.put(lambda: answer.set_result(self._requests.answer(verb, payload, local=local)))
        try:
            return answer.result(2 * FLUSH_S)
        except TimeoutError:
            return Response(status="error", error="the agent is busy or about to end; ask again later")

    def _ping(self, body: asked.Ping) -> dict[str, Any]:
        now_ns = self._clock.now_ns()
        return {"node": self.node, "time": topics.rfc3339(now_ns), "time_ns": now_ns, "version": _version()}

    def _config(self, body: asked.Config) -> dict[str, Any]:
        if body.set is not None:
            changes = kept.alarm_keys(body.set)
            alarm = {key: value for key, value in (self.settings.alarm | changes).items() if value is not None}
            settings = msgspec.structs.replace(self.settings, alarm=alarm)
            config = self._alarm(settings)
            self.bundle.policy(config)  # what a start begins with, and goes back to
            for stream in self.streams.values():  # all of them could, or none does
                self.bundle.policy(config, stream.pipeline.head)
            self._keep(settings)
            for stream in self.streams.values():
                stream.post(partial(stream.use, config))
            self._tell_info()
        return self._effective()

    def _maintenance(self, body: asked.Maintenance) -> dict[str, Any]:
        if (body.minutes is None) == (not body.off):
            raise RefusedError('say either "minutes" or "off": true')
        streams = self._chosen(body.stream)
        seconds = None if body.minutes is None else 60 * body.minutes
        until_ns = 0 if seconds is None else self._clock.now_ns() + round(seconds * 1e9)
        pauses = {name: pause for name, pause in self.settings.maintenance.items() if self.streams.get(name) not in streams}
        if seconds is not None:
            pauses |= {stream.name: Pause(until_ns=until_ns, seconds=seconds) for stream in streams}
            self._pauses_s |= {stream.name: self._monotonic() + seconds for stream in streams}
        self._keep(msgspec.structs.replace(self.settings, maintenance=pauses))
        for stream in streams:
            stream.post(partial(stream.maintain, seconds))
        return {"streams": [stream.name for stream in streams], "until": topics.rfc3339(until_ns) if until_ns else None}

    def _feedback(self, body: asked.Feedback) -> dict[str, Any]:
        if (body.id is None) == (body.stream is None):
            raise RefusedError('say either the "id" of an episode, or the "stream" whose newest one is meant')
        if body.stream is not None:
            (stream,) = self._chosen(body.stream)
        else:
            stream = self._stream_with(body.id or "")
        return stream.ask(lambda: stream.feedback(body.id, body.verdict))

    def _commission(self, body: asked.Commission) -> dict[str, Any]:
        if (body.minutes is not None) + body.cancel + body.rollback != 1:
            raise RefusedError('say one of "minutes", "cancel": true and "rollback": true')
        (stream,) = self._chosen(body.stream)
        if body.minutes is None:
            answer = stream.ask(stream.cancel if body.cancel else stream.roll_back)
            self._forget_learning(stream.name)
            stream.post(partial(self._teach, stream))
            return answer
        begin = partial(
            stream.commission,
            body.minutes,
            trusted=body.trusted,
            done=partial(self._commissioned, stream.name, body.transaction),
        )
        before = self.settings
        learning = before.commission | {stream.name: Learning(minutes=body.minutes, trusted=body.trusted)}
        self._keep(msgspec.structs.replace(before, commission=learning))
        try:
            return stream.ask(begin)
        except AmissError:
            self._keep(before)
            raise

    def _commissioned(self, name: str, transaction: str | int | None, outcome: str, trouble: str) -> None:
        """It is over; whoever asked is told, by a second answer to the same transaction."""
        stream = self.streams[name]
        if not stream.commissioning:  # somebody asked for another one in its place, which is to be gone on with after a restart
            self._forget_learning(name)
        self._tell_info()
        if trouble:
            log.warning("%s: not commissioned: %s", name, trouble)
            response = Response(status="error", error=trouble, transaction=transaction)
        else:
            data = {"stream": name, "state": "done", "outcome": outcome}
            response = Response(status="ok", data=data, transaction=transaction)
        self._respond("commission", response)
        stream.post(partial(self._teach, stream))

    def _teach(self, stream: Stream) -> None:
        """In the stream's thread, or before it runs: what does not know its machine learns it, over and over until it does."""
        if stream.untaught and not stream.commissioning:
            minutes = stream.bundle.manifest.learn_minutes
            stream.commission(minutes, trusted=False, done=partial(self._commissioned, stream.name, None))

    def _forget_learning(self, name: str) -> None:
        if name in self.settings.commission:
            left = {key: value for key, value in self.settings.commission.items() if key != name}
            settings = msgspec.structs.replace(self.settings, commission=left)
            try:
                self._keep(settings)
            except CannotCreateError as error:
                log.warning("%s; %s is commissioned anew at the next start", error, name)
                self.settings = settings

    def _snapshot(self, body: asked.Snapshot) -> dict[str, Any]:
        (stream,) = self._chosen(body.stream)
        return stream.snapshot(body.seconds)

    # Models.

    def _update(self, body: asked.Update) -> dict[str, Any]:
        updates = self._updating()
        updates.look_now(body.number)
        found: dict[str, Any] = msgspec.to_builtins(updates.progress)
        return found

    def _rollback(self, body: asked.Rollback) -> dict[str, Any]:
        updates = self._updating()
        if updates.progress.number == 0:
            raise RefusedError("the model of the configuration runs; there is none before it")
        updates.roll_back(body.reason)
        return {"from": updates.progress.number, "reason": body.reason}

    def _updating(self) -> Updates:
        if self._updates is None:
            raise RefusedError("this device takes no models: there is no section [update] in its configuration")
        return self._updates

    def _tell_progress(self, progress: Progress) -> None:
        self.delivery.publish_retained(topics.update(self.node), msgspec.json.encode(progress))
        self.later(self._tell_info)

    def _adopted(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._promised()  # the streams have left out what it cannot tell
        log.info("model %s runs now", bundle.digest[:16])
        self._tell_info()

    def _chosen(self, name: str | None) -> list[Stream]:
        if name is None:
            return list(self.streams.values())
        if name not in self.streams:
            raise RefusedError(f"no stream `{name}`; there are: {', '.join(self.streams)}")
        return [self.streams[name]]

    def _stream_with(self, episode_id: str) -> Stream:
        for stream in self.streams.values():
            if stream.knows(episode_id):
                return stream
        raise RefusedError(f"no episode `{episode_id[:128]}`; the last {MOST_EPISODES} of each stream are known")

    # Settings.

    def _keep(self, settings: Settings) -> None:
        kept.save(self._place, settings)
        self.settings = settings

    def _promised(self) -> AlarmConfig:
        """`_alarm`, or without what was set since when this model cannot tell that: the machine is watched all the same."""
        alarm = self._alarm(self.settings)
        try:
            self.bundle.policy(alarm)
        except ConfigError as error:
            if not self.settings.alarm:
                raise
            log.error("what was asked of the running agent is left out, alarm %s: %s", self.settings.alarm, error)
            self.settings = msgspec.structs.replace(self.settings, alarm={})
            alarm = self.config.alarm
        return alarm

    def _alarm(self, settings: Settings) -> AlarmConfig:
        """`[alarm]` as it is in the file, and what was set since. Raises `ConfigError`."""
        if not settings.alarm:
            return self.config.alarm
        return configs.changed_alarm(self.config.alarm, settings.alarm)

    def _tell_info(self) -> None:
        self.delivery.set_info(self.info())
        if self._home is not None:
            self._home.changed(self._monotonic())

    def _effective(self) -> dict[str, Any]:
        data = configs.redacted(self.config)
        data["alarm"] = msgspec.to_builtins(self._alarm(self.settings))
        return data

    # What is told.

    def states(self) -> dict[str, StatePayload]:
        found = {name: stream.state() for name, stream in self.streams.items()}
        return {name: state for name, state in found.items() if state is not None}

    def situations(self) -> dict[str, Situation]:
        return {name: stream.situation() for name, stream in self.streams.items()}

    def verdicts(self) -> dict[str, str]:
        return {key: verdict for stream in self.streams.values() for key, verdict in stream.verdicts().items()}

    def history(self, stream: str) -> History | None:
        return self.streams[stream].history() if stream in self.streams else None

    def episodes(self) -> list[EventPayload]:
        events = [event for stream in self.streams.values() for event in stream.told()]
        return sorted(events, key=lambda event: event.time_ns, reverse=True)[:EPISODES]

    def health(self) -> HealthPayload:
        time_ns, synced = self._clock.now_ns(), self._clock.synced()
        return HealthPayload(
            time=topics.rfc3339(time_ns),
            time_ns=time_ns,
            uptime_s=round(self._monotonic() - self._started_s, 1),
            mqtt=self.delivery.health(),
            streams={name: stream.health() for name, stream in self.streams.items()},
            clock=None
            if synced is None
            else ClockHealth(synced=synced, boot=self._clock.boot, offset_ns=self._clock.offset_ns()),
            cpu=self._cpu,
            rss=system.resident_bytes(),
            temperature=system.temperature_c(),
            disk_written_bytes=system.disk_written_bytes(),
        )

    def measured(self) -> metrics.Measured:
        """For Prometheus; from any thread."""
        counts, manifest = self.outbox.counts, self.bundle.manifest
        return metrics.Measured(
            streams={name: stream.counters() for name, stream in self.streams.items()},
            version=_version(),
            python=system.versions()["python"],
            model_digest=self.bundle.digest,
            model_version=manifest.version,
            connected=self.delivery.connected,
            waiting=counts.waiting,
            outbox_bytes=self.outbox.live_bytes(),
            outbox_dropped={"alert": counts.dropped_alerts, "other": counts.dropped - counts.dropped_alerts},
            delivered=counts.delivered,
            rollbacks=self._updates.taken_back if self._updates is not None else 0,
            disk_written_bytes=system.disk_written_bytes(),
            temperature_c=system.temperature_c(),
            clock_synced=self._clock.synced(),
            process=metrics.Process.read(),
        )

    def _latest(self) -> ModelInfo | None:
        """What is on its way here, or was not taken."""
        progress = self._updates.progress if self._updates is not None else None
        if progress is None or progress.offered is None:
            return None
        return ModelInfo(digest="", name=progress.name, version=progress.version)

    def info(self) -> InfoPayload:
        manifest = self.bundle.manifest
        return InfoPayload(
            node=self.node,
            versions={"amiss": _version()} | system.versions() | self.bundle.backend.versions(),
            model=ModelInfo(digest=self.bundle.digest, name=manifest.name, version=manifest.version),
            latest_model=self._latest(),
            channels=tuple(ChannelInfo(name=channel.name, unit=channel.unit) for channel in manifest.channels),
            config=self._effective(),
            false_alarms_per_week=self._alarm(self.settings).per_week,
            backend=self.bundle.backend.name,
            provider=self.bundle.backend.provider,
            machine=os.uname().machine,
            board=system.board(),
            config_schema=configs.schema(),
        )


def _source(config: DeviceConfig, bundle: Bundle, name: str, replay: Replay | None) -> Source:
    stream, rate_hz = config.streams[name], bundle.manifest.rate_hz
    if replay is not None:
        return ReplaySource(replay.paths, bundle.channels, replay.speed, rate_hz=rate_hz)
    return port_source(stream, bundle.channels, rate_hz, collect_s=collect_s(bundle.manifest.hop / rate_hz))


def _version() -> str:
    return ".".join(map(str, AGENT_VERSION))


def run_until_told(load: Callable[[], DeviceConfig], replay: Replay | None = None, *, once: bool = False) -> None:
    """Run an agent until SIGTERM or SIGINT. SIGHUP reads the configuration again: one that an agent can start with takes the
    place of the present one at once, one that is wrong is told and changes nothing.

    Raises what `load` and `Agent` do. Only for the main thread of a process.
    """
    running: list[Agent] = []
    ended = reload = False
    notifier = Notifier()

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        for agent in running:
            agent.later(agent.stop)

    def look_again(*_: object) -> None:
        for agent in running:
            agent.later(consider)

    def consider() -> None:
        nonlocal reload
        notifier.ping()
        notifier.reloading()
        try:
            Agent.examine(load())
        except AmissError as error:
            log.error("not reloaded, the agent goes on as before: %s", error)
            notifier.ready()
        else:
            reload = True
            running[0].stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, look_again)
    while True:
        running[:] = [Agent(load(), replay=replay, once=once, notifier=notifier)]
        if ended:
            return
        running[0].run()
        if ended or not reload:
            notifier.stopping()
            return
        notifier.ping()
        reload = False
        log.info("configuration read again")
