"""From an offer to a model that has proved itself, one step after the other, in a thread of its own.

    idle ─▶ checking ─▶ fetching ─▶ trying ─▶ waiting ─▶ probation ─▶ idle, with the new model
              │            │          │                     │
              └── away ────┘          └─ refused, bad ──────┴─ worse: back to the model before, and never again

- *checking, fetching*: a child process reads the repository (`updater`). What is away is tried again at the next poll.
- *trying*: another child opens the candidate, replays its golden windows and lets it score the stream's own last hours beside
  the model that runs (`trial`). What it does there is nobody's loss.
- *waiting*: for a moment in which no episode is on, at most `PATIENCE_S`.
- *probation*: it runs, and is watched (`probation`). A start of the agent counts as one of three tries.

The model that runs is untouched until the switch, and a moment later it is there again. Whatever the repository or the network
does, inference goes on. A digest that was refused here is never tried again. Nothing of this depends on a report being heard.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from edge.errors import AmissError, BundleError, ConfigError, RepositoryAwayError, UnfitError, UntrustedError
from edge.updating.offer import Offer
from edge.updating.store import Models, Serving
from edge.updating.updater import Checked

log = logging.getLogger("amiss")

Outcome = Literal["accepted", "refused", "unknown"]
Became = Literal["kept", "refused", "taken back", "unfit"]
Step = Literal["idle", "checking", "fetching", "trying", "waiting", "probation"]
PATIENCE_S = 24 * 3600.0
"""That an update waits for an episode to end. What lasts for a day is how the machine is now."""
AGAIN_S = 60.0
"""What has recorded too little to try a model on is looked at again no sooner."""
LOOK_S = 1.0
FIRST_S = 30.0
"""After a start before the first look: what a fleet does after a power cut, it need not do at once."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the device is with its models; retained on `amiss/<node>/update`."""

    step: Step
    number: int
    """Of the model that runs; 0: that of the configuration."""
    digest: str
    offered: int | None = None
    """The one that is on its way."""
    name: str = ""
    version: str = ""
    reason: str = ""
    """Why the last one was not taken, or was taken back; what is waited for; in one line."""
    bad: int = 0
    """Models that were found bad here."""
    group: str = ""
    """Of devices, that this one belongs to."""
    became: Became | None = None
    """What became of the last offer that was looked at,"""
    about: int | None = None
    """and which that was."""


class Tried(NamedTuple):
    outcome: Outcome
    reason: str = ""
    again_s: float | None = None
    """Seconds until there is more to tell it by; None: nobody knows."""


class Device(Protocol):
    """What the workflow needs of the agent. Called from the workflow's thread; each call may take its time."""

    def check(self, asked: int | None) -> Checked:
        """`asked`: the number of a held offer that it was asked to take."""
        ...

    def fetch(self, offer: Offer) -> Path: ...

    def trial(self, candidate: Path) -> Tried:
        """On the device's own data, and why. `unknown`: not to be told yet. Raises nothing for what a model can do."""
        ...

    def quiet(self) -> bool:
        """No episode is on in any stream, and none is being commissioned."""
        ...

    def run(self, serving: Serving) -> None:
        """Let all streams go on with this one. Raises `AmissError`, and then they go on with what they had."""
        ...

    def verdict(self) -> tuple[Literal["go on", "commit", "roll back"], str]:
        """On probation: what the streams show of the model that runs since it does."""
        ...


class Updates:
    """`serving` runs. `tell` is given every change. `clock` is monotonic seconds. What has ended its thread `check` raises."""

    def __init__(
        self,
        models: Models,
        serving: Serving,
        device: Device,
        tell: Callable[[Progress], None],
        *,
        poll_every_s: float,
        group: str = "",
        clock: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
        first_s: float = FIRST_S,
    ) -> None:
        self._models, self._device, self._tell = models, device, tell
        self._poll_every_s, self._group, self._clock, self._look_s = poll_every_s, group, clock, look_s
        self._due_s = clock() + first_s
        self._wake = threading.Event()
        self._stopping = False
        self._back: str | None = None  # why somebody wants the model before
        self._halted: str | None = None  # why a switch did not come to its end
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)
        self._failure: BaseException | None = None
        self._serving = serving
        self._offer: Offer | None = None
        self._asked: int | None = None
        self._reason = ""
        self._became: tuple[Became, int] | None = None
        self.taken_back = 0
        """Models, since the start."""
        self.progress = self._at("probation" if self._serving.role == "trial" else "idle")

    def start(self) -> None:
        self._tell(self.progress)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def check(self) -> None:
        """Raises what ended the thread, if that was not `stop`."""
        if self._failure is not None:
            raise self._failure

    def look_now(self, number: int | None = None) -> None:
        """There may be something in the repository, or the offer of this number is to be taken; from any thread.

        0: no held offer is to be taken any more. That is no reason to look.
        """
        if number == 0:
            self._asked = None
            return
        self._asked = number if number is not None else self._asked
        self._due_s = self._clock()
        self._wake.set()

    def roll_back(self, reason: str) -> None:
        """Back to the model before, for good; from any thread. Needs no network."""
        self._back = reason
        self._wake.set()

    # The workflow's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self.turn()
                except AmissError as error:  # a disk that is full, say: the machine is watched, whatever becomes of its models
                    if str(error) != self._reason:  # it is tried again every second
                        log.warning("updates: %s", error)
                    self._show(self.progress.step, str(error))
                self._wake.wait(self._look_s)
                self._wake.clear()
        except BaseException as error:
            self._failure = error
            log.error("updates ended: %s", error)

    def turn(self) -> None:
        """Do what is due: take back, judge who is on probation, look for a new one."""
        if self._back is not None:
            self._take_back(self._back)
        elif self._halted is not None:
            self._undo(self._halted)
        elif self._serving.role == "trial":
            self._judge()
        elif self._clock() >= self._due_s:
            self._due_s = self._clock() + self._poll_every_s
            self._update()

    def _update(self) -> None:
        self._show("checking")
        asked = self._asked
        checked = self._device.check(asked)
        offer = checked.chosen
        unfit = sorted(checked.unfit, key=lambda one: one[0].number != asked)
        if asked is not None and unfit and unfit[0][0].number == asked and (self._became or ("", 0))[1] != asked:
            self._became = "unfit", asked  # what was found out about it is more than that it is not taken again
        if offer is None:
            self._show("idle", checked.reason or next((why for _, why in unfit), self._reason))
            return
        self._offer = offer
        self._show("fetching", "")  # what was said of another one is over
        lost = offer.digest == self._models.lost
        try:
            candidate = self._device.fetch(offer)
            if lost:  # it has proved itself here before
                self._return()
                return
            self._show("trying")
            tried = self._device.trial(candidate)
            if tried.outcome == "unknown":
                if tried.again_s is not None:
                    self._due_s = min(self._due_s, self._clock() + max(tried.again_s, AGAIN_S))
                raise RepositoryAwayError(f"model {offer.number} waits: {tried.reason}")
            if tried.outcome == "refused":
                self._models.mark_bad(offer.digest, tried.reason)
                raise UnfitError(tried.reason)
            self._models.stage(offer)
            self._wait_for_quiet(offer)
            if not self._wanted(offer):
                self._offer = None
                raise RepositoryAwayError(f"model {offer.number} waits: nobody asks for it any more")
            if not self._stopping and self._back is None:
                self._switch()
        except RepositoryAwayError as error:
            self._show("idle", str(error))
        except (UntrustedError, UnfitError, ConfigError, BundleError) as error:
            log.warning("model %d is not taken: %s", offer.number, error)
            self._offer = None
            self._decided("refused", offer.number)
            self._show("idle", f"model {offer.number} is not taken: {error}")
        except AmissError as error:  # of this device, not of the model
            log.warning("model %d waits: %s", offer.number, error)
            self._show("idle", f"model {offer.number} waits: {error}")

    def _return(self) -> None:
        """The active model's file was lost, and is there again."""
        serving = self._go_on()
        log.info("model %d is there again", serving.number)
        self._show("idle", "")

    def _wanted(self, offer: Offer) -> bool:
        return not offer.held or offer.number == self._asked

    def _wait_for_quiet(self, offer: Offer) -> None:
        until_s = self._clock() + PATIENCE_S
        while not self._device.quiet() and self._clock() < until_s and not self._stopping and self._back is None:
            if not self._wanted(offer):
                return
            self._show("waiting", "an episode is on, or a commissioning; the model changes when it is over")
            self._wake.wait(self._look_s)
            self._wake.clear()  # a hint is for later; what ends the wait is looked at above

    def _switch(self) -> None:
        serving = self._serving = self._models.switch()  # some streams may have it, whatever `run` says
        try:
            self._device.run(serving)
        except (BundleError, UnfitError, ConfigError) as error:
            self._take_back(str(error))
            return
        except AmissError as error:  # of this device: a stream that does not answer, a disk that takes no head
            log.warning("model %d does not run yet: %s", serving.number, error)
            self._undo(f"model {serving.number} waits: {error}")
            return
        log.info("model %d runs, on probation", serving.number)
        self._show("probation", "")

    def _undo(self, reason: str) -> None:
        """All streams go on with the model before, and the new one waits; done again at the next turn where that fails too."""
        self._halted = reason
        self._models.unswitch()
        self._go_on()
        self._halted = None
        self._show("idle", reason)

    def _judge(self) -> None:
        verdict, reason = self._device.verdict()
        if verdict == "commit":
            self._models.commit()
            self._serving = self._models.serve()
            log.info("model %d has proved itself: %s", self._serving.number, reason)
            self._offer = None
            self._decided("kept", self._serving.number)
            self._show("idle", "")
        elif verdict == "roll back":
            self._take_back(reason)

    def _take_back(self, reason: str) -> None:
        """What fails here is done again at the next turn, and is about the same model then: the one that runs."""
        self._back, running = reason, self._serving
        if running.role == "factory":
            self._back = None
            self._show("idle", "the model of the configuration runs; there is none before it")
            return
        self._models.mark_bad(running.digest, reason)
        serving = self._go_on()
        self._back = self._halted = None
        self.taken_back += 1
        self._decided("taken back", running.number)
        log.warning("model %d was taken back: %s; model %d runs again", running.number, reason, serving.number)
        self._show("idle", f"model {running.number} was taken back: {reason}")

    def _decided(self, became: Became, number: int) -> None:
        """Whoever wants it once more asks once more."""
        self._became = became, number
        if self._asked == number:
            self._asked = None

    def _go_on(self) -> Serving:
        """With the model that the store says, whatever runs."""
        serving = self._models.serve()
        self._device.run(serving)
        self._serving, self._offer = serving, None
        return serving

    def _show(self, step: Step, reason: str | None = None) -> None:
        if reason is not None:
            self._reason = reason
        progress = self._at(step)
        if progress != self.progress:
            self.progress = progress
            self._tell(progress)

    def _at(self, step: Step) -> Progress:
        offer = self._offer
        return Progress(
            step=step,
            number=self._serving.number,
            digest=self._serving.digest,
            offered=offer.number if offer else None,
            name=offer.name if offer else "",
            version=offer.version if offer else "",
            reason=self._reason,
            bad=len(self._models.bad),
            group=self._group,
            became=self._became[0] if self._became else None,
            about=self._became[1] if self._became else None,
        )
