"""The agent's side of an update: what `edge.updating.workflow` asks of a device, with real streams.

The model is replaced in every stream between two chunks, so no window is missed and no event lost. A head that was fitted to
the stream's own recording while the candidate was tried goes with it.
"""

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edge.bundle import AGENT_VERSION, SCHEMA, Bundle, SelfTest, unpack_arrays
from edge.config import AlarmConfig, DeviceConfig
from edge.errors import AmissError, BundleError, ConfigError, SinkUnavailableError, StorageError
from edge.files import at_once
from edge.head import Head
from edge.operating import control
from edge.operating.requests import RefusedError
from edge.operating.stream import Stream
from edge.scoring.backends import CPU, RUNTIMES, installed
from edge.updating import updater
from edge.updating.offer import Facts, Offer
from edge.updating.probation import Action, Before, Probation, Seen
from edge.updating.probation import Serving as Watch
from edge.updating.shadow import Limits
from edge.updating.store import Models, Serving
from edge.updating.trial import Order, Result, try_out
from edge.updating.updater import Checked
from edge.updating.workflow import Tried

log = logging.getLogger("amiss")

SURVIVED_S = 3600.0
"""Of service, after which the starts before are not the model's doing: power fails, too, and a probation takes days."""
MOST_ENDED = 3
"""Trials of a model that are killed from outside, or say what makes no sense: once is chance, thrice is the model."""
MOST_COUNTED = 1e9
"""Windows, episodes, hours or seconds, in what a trial says; far above any recording."""
SILENT_S = 3600.0
"""Without a window, after which a stream that has not served out its probation is not waited for: its sensor may be gone."""
KEPT_EVERY_S = 600.0
"""What a probation has shown is written down so often; a start of the agent costs it no more than that."""


def open_serving(models: Models, provider: str = CPU) -> tuple[Bundle, Serving, SelfTest]:
    """The model to start with: one that is on trial or active, unless it does not open; in the end that of the configuration.

    What does not open is bad once another one does: where none does, say without a runtime, that is no fault of theirs. Raises
    what opening the last one raises.
    """
    serving = models.start()
    broken: dict[str, str] = {}
    try:
        while (started := _started(serving, provider, broken)) is None:
            serving = models.serve(but=broken)
    except AmissError:
        with contextlib.suppress(AmissError):
            models.count_anew()
        raise
    for digest, reason in broken.items():
        models.mark_bad(digest, reason)
    return started[0], serving, started[1]


def _started(serving: Serving, provider: str, broken: dict[str, str]) -> tuple[Bundle, SelfTest] | None:
    try:
        bundle = Bundle.open(serving.path, provider=provider)
        return bundle, bundle.self_test()
    except BundleError as error:
        if serving.role == "factory":
            raise
        log.error("model %d does not start: %s", serving.number, error)
        broken[serving.digest] = str(error)
        return None


def roll_back(config: DeviceConfig, reason: str) -> dict[str, Any]:
    """By hand, on the device: by the agent, or where none runs in its store, for the next one that starts.

    Returns the number of the model that it was, and why. Raises `RefusedError` when there is nothing to go back from, and
    `SinkUnavailableError` when an agent runs and does not answer.
    """
    if config.update is None:
        raise RefusedError("this device takes no models: there is no section [update] in its configuration")
    place = config.service_path()
    try:
        answer = control.ask(place, "rollback", msgspec.json.encode({"reason": reason}))
    except SinkUnavailableError:
        if not (place / "models").is_dir():
            raise
        try:
            models = Models(place / "models", Path(config.bundle))
        except StorageError:  # somebody has it: an agent that starts, or that hangs
            models = None
        if models is None:
            raise
    else:
        if answer.status == "error":
            raise RefusedError(answer.error)
        found: dict[str, Any] = answer.data
        return found
    with contextlib.closing(models):
        serving = models.serve()
        if serving.role == "factory":
            raise RefusedError("the model of the configuration would run next; there is none before it")
        models.mark_bad(serving.digest, reason)
        return {"from": serving.number, "reason": reason}


class Upgrade:
    """`bundle`, of the file at `path`, runs. `adopted` is told of every model that does from now on; `alarm` gives the settings
    that hold now."""

    def __init__(
        self,
        config: DeviceConfig,
        models: Models,
        bundle: Bundle,
        path: Path,
        streams: Mapping[str, Stream],
        *,
        alarm: Callable[[], AlarmConfig],
        adopted: Callable[[Bundle], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._models, self._streams = config, models, streams
        self._alarm, self._adopted, self._monotonic = alarm, adopted, monotonic
        self._started_s = monotonic()
        self._bundle, self._path = bundle, path
        self._fitted: dict[str, Head] = {}  # by stream, for the candidate that was tried last
        self._ended: Counter[str] = Counter()  # by digest: trials that came to no end of their own
        self._before: dict[str, Before] = {}  # by stream, what that showed
        self._watched: dict[str, tuple[Watch, Seen]] = {}  # by stream, on probation
        self._heard_s: dict[str, float] = {}  # by stream, when windows came last
        self._file = models.folder / "probation.json"
        self._kept_s = -math.inf
        self.stopping = False

    def check(self, asked: int | None) -> Checked:
        manifest = self._bundle.manifest
        facts = Facts(
            node=self._config.node,
            group=self._config.update.group if self._config.update else "",
            channels=manifest.channels,
            rate_hz=manifest.rate_hz,
            schema=SCHEMA,
            agent=AGENT_VERSION,
            runtimes=tuple(name for name in RUNTIMES if installed(name)),
            asked=asked,
        )
        return updater.check(self._config, facts, self._models, stopping=lambda: self.stopping)

    def fetch(self, offer: Offer) -> Path:
        return updater.fetch(self._config, offer, self._models, stopping=lambda: self.stopping)

    def trial(self, candidate: Path) -> Tried:
        """Each stream's own hours have to speak for it."""
        self._fitted, self._before = {}, {}
        for name, stream in self._streams.items():
            out = self._models.incoming / f"{name}.head.npz"
            out.unlink(missing_ok=True)  # of a trial that the agent did not outlast
            try:
                tried = self._try_out(name, stream, candidate, out)
            finally:
                out.unlink(missing_ok=True)
            if tried.outcome != "accepted":
                return tried._replace(reason=f"{name}: {tried.reason}")
        return Tried("accepted")

    def _try_out(self, name: str, stream: Stream, candidate: Path, out: Path) -> Tried:
        if stream.ring is None:
            return Tried("unknown", "nothing of the stream is recorded")
        stream.ask(stream.ring.flush)
        head = stream.head_file
        result = try_out(
            Order(
                candidate=str(candidate.resolve()),
                live=str(self._path.resolve()),
                ring=str(stream.ring.folder.resolve()),
                live_head=str(head.resolve()) if head else "",
                head_out=str(out.resolve()),
                alarm=self._alarm(),
                limits=Limits(minutes=self._config.update.trial_minutes) if self._config.update else Limits(),
            ),
            stopping=lambda: self.stopping,
        )
        log.info("%s: candidate %s: %s", name, candidate.stem[:16], result.sentence())
        if result.verdict != "accepted":
            reason = "; ".join(result.reasons) or result.sentence()
            if result.killed:
                return self._no_end(candidate, reason)
            # Of a sensor that is off nothing is recorded, however long one waits.
            soon = result.minutes_missing > 0 and stream.online
            return Tried(result.verdict, reason, 60 * result.minutes_missing / stream.ring.share if soon else None)
        try:
            self._learn(name, result, out)
        except (OSError, AmissError, KeyError, TypeError, ValueError) as error:
            return self._no_end(candidate, f"what its trial has answered makes no sense: {error}")
        return Tried("accepted")

    def _no_end(self, candidate: Path, reason: str) -> Tried:
        self._ended[candidate.stem] += 1
        count = self._ended[candidate.stem]
        return Tried("unknown", reason) if count < MOST_ENDED else Tried("refused", f"{reason}; {count} times")

    def _learn(self, name: str, result: Result, out: Path) -> None:
        """What a process has said that may have run anything: only what is checked here is believed of it."""
        report, made = result.refitted if result.serves == "refitted" else result.own, result.made
        if report is None or (new := report.candidate) is None or made is None:
            raise ValueError("accepted, and no figures")
        latency_s = new.latency_s.get("median", 0.0)
        for value, most in (
            (new.windows, MOST_COUNTED),
            (new.strange, new.windows),
            (new.episodes, MOST_COUNTED),
            (report.live.episodes, MOST_COUNTED),
            (new.hours, MOST_COUNTED),
            (latency_s, MOST_COUNTED),
        ):
            if not 0 <= value <= most:  # an integer may have hundreds of digits, which no float has
                raise ValueError("a figure that no recording comes to")
        if result.serves == "refitted":
            self._fitted[name] = Head.from_arrays(made.scorer, unpack_arrays(out.read_bytes()))
        self._before[name] = Before(
            hours=new.hours,
            alarms=max(new.episodes, report.live.episodes),
            strange_share=new.strange_share,
            window=made.window,
            hop=made.hop,
            rate_hz=made.rate_hz,
            latency_s=latency_s,
        )

    def quiet(self) -> bool:
        return not any(
            stream.pipeline.alarm.active or (stream.commissioning and not stream.untaught) for stream in self._streams.values()
        )

    def run(self, serving: Serving) -> None:
        bundle = Bundle.open(serving.path, provider=self._config.runtime.provider)
        if bundle.digest != serving.digest:
            raise BundleError(f"{serving.path}: not the file that it was a moment ago")
        bundle.self_test()
        tried = serving.role == "trial"
        alarm = self._promised(bundle, tried=tried)
        bundle.faults()  # here, and not in a stream between two chunks
        over = set(self._models.bad)  # whose heads are of no use any more
        if not tried and (pending := self._models.pending) is not None:
            over.add(pending.digest)  # it waits, and is tried and fitted anew
        for name, stream in self._streams.items():
            back = stream.bundle.digest in over
            head = self._fitted.get(name) if tried else None
            stream.ask(partial(stream.replace, bundle, head=head, back=back, alarm=alarm))
        self._bundle, self._path = bundle, serving.path
        self._fitted, self._watched = {}, {}
        if tried:
            self._watch(self._before, {})
        self._adopted(bundle)

    def _promised(self, bundle: Bundle, *, tried: bool) -> AlarmConfig:
        """The settings that hold now. What was set for a model on trial may be more than the one before can tell: that goes on
        with those of the configuration, or the worse one would run for ever."""
        alarm = self._alarm()
        try:
            bundle.policy(alarm)
        except ConfigError as error:
            if tried:
                raise
            alarm = self._config.alarm
            bundle.policy(alarm)
            log.error("the alarm is set as the configuration says again: %s", error)
        return alarm

    def verdict(self) -> tuple[Action, str]:
        """The worst of the streams; it stays when it has proved itself in all of them that say anything, and that is one at
        least: a sensor that is silent for an hour keeps nothing up."""
        if not self._watched:
            self._resume()
        now_s = self._monotonic()
        decisions = []
        for name, (watch, last) in self._watched.items():
            now = self._streams[name].seen()
            self._watched[name] = watch, now
            if now.windows > last.windows:
                self._heard_s[name] = now_s
            decisions.append((name, watch.update(_since(last, now))))
        self._keep()
        for name, decision in decisions:
            if decision.action == "roll back":
                return "roll back", f"{name}: {decision.reason}"
        proved = [(name, decision.reason) for name, decision in decisions if decision.action == "commit"]
        rest = [name for name, decision in decisions if decision.action != "commit"]
        if proved and not any(self._speaks(name, now_s) for name in rest):
            return "commit", "; ".join(f"{name}: {reason}" for name, reason in proved)
        return "go on", ""

    def _speaks(self, name: str, now_s: float) -> bool:
        silent_s = max(SILENT_S, 2 * self._watched[name][0].before.hop_s)  # a slow stream is silent most of the time
        return now_s - self._heard_s.get(name, -math.inf) < silent_s

    def _watch(self, before: Mapping[str, Before], states: Mapping[str, dict[str, float]]) -> None:
        update = self._config.update
        hours = update.probation_hours if update else 24.0
        rules = Probation(hours=hours, per_week=self._alarm().per_week or Probation().per_week)
        self._heard_s = {}
        for name, stream in self._streams.items():
            watch = Watch(before.get(name) or _unknown(self._bundle), rules)
            if name in states:
                watch.load(states[name])
            if watch.hours:  # before this start: it is given time to speak again
                self._heard_s[name] = self._monotonic()
            self._watched[name] = watch, stream.seen()

    def _keep(self) -> None:
        """A start of the agent is not a new chance; a disk that takes nothing makes it one."""
        now_s = self._monotonic()
        if now_s - self._kept_s < KEPT_EVERY_S:
            return
        self._kept_s = now_s
        kept = _Kept(
            digest=self._bundle.digest,
            before={name: watch.before for name, (watch, _) in self._watched.items()},
            states={name: watch.state() for name, (watch, _) in self._watched.items()},
        )
        try:
            with at_once(self._file) as draft:
                draft.write_bytes(msgspec.json.encode(kept))
            if now_s - self._started_s >= SURVIVED_S:
                self._models.count_anew()
        except AmissError as error:
            log.warning("%s", error)

    def _resume(self) -> None:
        kept = _Kept(digest="")
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        if kept.digest == self._bundle.digest:
            with contextlib.suppress(KeyError, ValueError):
                return self._watch(kept.before, kept.states)
        self._watch({}, {})


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """probation.json"""

    digest: str
    before: dict[str, Before] = {}
    states: dict[str, dict[str, float]] = {}


def _unknown(bundle: Bundle) -> Before:
    manifest = bundle.manifest
    return Before(
        hours=0.0,
        alarms=0,
        strange_share=0.0,
        window=manifest.window,
        hop=manifest.hop,
        rate_hz=manifest.rate_hz,
        latency_s=0.0,
    )


def _since(last: Seen, now: Seen) -> Seen:
    counts = ("samples", "windows", "strange", "alarms", "not_finite", "lost")
    return msgspec.structs.replace(now, **{name: getattr(now, name) - getattr(last, name) for name in counts})
