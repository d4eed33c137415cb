"""Slow change, and change that has come to stay.

    windows of quiet times ─blocks─▶ Drift ─────▶ `drift`, when it begins and when it is over
    windows of unrest ──────parts──▶ Settling ──▶ `new_normal`, once: is this how it runs from now on?

Both see what the reference sees (`edge.scoring.reference`): the score, and of each channel shape, level and movement, and the
embedding. What is kept is sums of blocks, however many windows there are in one.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from edge.event import Event, Share
from edge.scoring.backends import Outputs
from edge.scoring.reference import CLIP, WATCHED, Reference, rms
from edge.signal import Bool, Float32, Float64, Int64

SEEN = 256
"""Windows of a block that are looked at, at most. Of those that overlap one is, where there are enough."""
THRESHOLD = 4.0
"""What has to add up beyond the allowance, in allowances."""
LARGEST = 0.6
"""Of the threshold is the most that one block adds: it takes two at least."""
TOGETHER = 32
"""Windows, or some of one call, that are put aside and looked at together."""
SETTLE_WINDOWS = 50
"""That share no sample: below that many nothing settles, however short they are."""
CALM = 8
"""Calm windows that an uneasy one outweighs: unrest is more than a ninth of the time."""
PARTS = 8
TREND = 22
"""Of Kendall's S over eight parts, whose largest is 28: so much on either side has a chance of 0.6 %."""


class Drift:
    """Does the ordinary move away from the reference, too slowly for an alarm?

    Page's cumulative sum (Page 1954, "Continuous inspection schemes"; Lorden 1971 shows that none is quicker for as few false
    alarms), of the means of blocks, on either side and for each quantity: S ← max(0, S + |mean| − allowance), told above
    `THRESHOLD` allowances and over when it is back at 0. The allowance is three tenths of a usual spread, or twice the spread
    of the reference's own blocks where those vary more; so a machine that goes to and fro within the time the reference saw
    does not drift. Blocks count windows, not time: a gap is no change.

    Windows of unrest are not looked at. A change that is sudden but too small for an alarm is told as drift too.
    """

    def __init__(
        self,
        reference: Reference,
        channels: tuple[str, ...],
        window_ns: float,
        hop_ns: int,
        model: str,
        new_episode: Callable[[], int],
    ) -> None:
        self._reference, self._channels, self._model = reference, channels, model
        self._new_episode = new_episode
        self._block = max(1, round(float(reference.block[0]) * window_ns / hop_ns))
        self._every = _every(self._block, window_ns / hop_ns)
        self._threshold = THRESHOLD * reference.allowance.astype(np.float64)
        size = len(reference.offset)
        self._sum = np.zeros((2, size))  # of up and down
        self._since = np.zeros((2, size), np.int64)  # first window of the block in which each left 0
        self._total: Float64
        self._embedded: Float64
        self._told: Bool = np.zeros((2, size), bool)  # above the threshold since the drift began
        self._episode = self._since_ns = 0
        self._reason, self._shares = "", tuple[Share, ...]()
        self._count = self._looked = self._first_ns = 0
        self._waiting: list[tuple[Float32, ...]] = []  # of windows that are not in the sums yet
        self._restart()

    @property
    def active(self) -> bool:
        return bool(self._told.any())

    @property
    def reason(self) -> str:
        """What moved most, and by how much, of the drift that is on: `level of current: +1.4 spreads`; else empty."""
        return self._reason if self.active else ""

    @property
    def room(self) -> int:
        """So many windows fit into the block that is being filled."""
        return self._block - self._count

    def clock_set_back(self) -> None:
        """The stream's clock jumped back; moments noted on it mean nothing any more."""
        self._restart()
        self._since[:] = np.iinfo(np.int64).max

    def update(self, end_ns: Int64, outputs: Outputs, score: Float32, ordinary: Bool) -> list[Event]:
        """Windows in order of time, at most `room` of them; those that are not `ordinary` (B,) do not count.

        `score` (B,) as the scorer gives it, unsmoothed.
        """
        count = int(np.count_nonzero(ordinary))
        if not count:
            return []
        skipped, all_of_them = -self._count % self._every, count == len(ordinary)
        if not self._count:
            self._first_ns = int(end_ns[0 if all_of_them else ordinary.argmax()])
        self._count += count
        if skipped < count:
            one = slice(skipped, None, self._every)
            chosen = one if all_of_them else np.flatnonzero(ordinary)[one]
            some = (outputs.embedding, outputs.residual, outputs.level, outputs.spectrum, score)
            self._waiting.append(tuple(array[chosen] for array in some))
            self._looked += len(self._waiting[-1][-1])
        if self._count < self._block:
            if len(self._waiting) >= TOGETHER:
                self._add()
            return []
        self._add()
        return self._closed(int(end_ns[-1 if all_of_them else np.flatnonzero(ordinary)[-1]]))

    def _add(self) -> None:
        """What was put aside: measured together it takes a tenth of the time."""
        if not self._waiting:
            return
        embedding, residual, level, spectrum, score = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting.clear()
        nothing = np.empty((len(score), 0), np.float32)
        some = Outputs(embedding, residual, level, spectrum, nothing, nothing)
        # One by one: the same windows give the same sums to the bit, however they are split into calls.
        for row in np.clip(self._reference.watched(some, score), -CLIP, CLIP):
            self._total += row
        for row in np.clip(self._reference.embedded(some), -CLIP, CLIP):
            self._embedded += row

    def _closed(self, time_ns: int) -> list[Event]:
        mean = np.append(self._total / self._looked, rms(self._embedded / self._looked)) - self._reference.offset
        first_ns = self._first_ns
        self._restart()
        beyond = np.stack([mean, -mean]) - self._reference.allowance
        beyond[1, [0, -1]] = -1.0  # a score, and a distance, that falls is no cause
        before = self._sum > 0
        self._sum = np.clip(self._sum + np.minimum(beyond, LARGEST * self._threshold), 0, 1.5 * self._threshold)
        left = ~before & (self._sum > 0)
        self._since[left] = first_ns
        self._since = np.minimum(self._since, first_ns)  # the clock may have been set back
        was = self.active
        self._told = (self._told & (self._sum > 0)) | (self._sum > self._threshold)
        if self.active == was:
            return []
        if self.active:
            self._episode, self._since_ns = self._new_episode(), int(self._since[self._told].min())
            moved = np.where(np.abs(mean) > self._reference.allowance, mean, 0.0)
            self._reason = said(moved, self._channels)
            self._shares = shares_of(moved, self._channels)
            return [self._event(time_ns, None)]
        return [self._event(time_ns, time_ns)]

    def end(self, time_ns: int) -> list[Event]:
        """What is ordinary is about to be something else: a drift that is on is over."""
        return [self._event(time_ns, time_ns)] if self.active else []

    def _event(self, time_ns: int, until_ns: int | None) -> Event:
        return Event(
            type="drift",
            episode=self._episode,
            time_ns=time_ns,
            since_ns=self._since_ns,
            until_ns=until_ns,
            channels=self._shares,
            model=self._model,
            reason=self._reason,
        )

    def _restart(self) -> None:
        self._count = self._looked = self._first_ns = 0
        self._waiting.clear()
        self._total = np.zeros(len(self._reference.offset) - 1)
        self._embedded = np.zeros(self._reference.embedding.shape[1])


class Settling:
    """Has the machine settled in an anomaly that lasts? Asked once an episode, and once about one state.

    An episode begins an unrest, and calm windows end it, as many as an eighth of the stretch that is looked at; each uneasy one
    takes back `CALM` of them. A change that the alarm only just sees goes on and off, and is one change all the same; some
    strange windows here and there are none.

    The newest stretch of the unrest, `settle_s` long and at least two blocks of the reference, has no trend and does not
    vary more and more: in every quantity the means of its halves differ by no more than blocks may, the spread of both is like
    the reference's or like each other, and the means of its eighths do not go one way (Mann 1945, "Nonparametric tests
    against trend"). An anomaly that still evolves fails one of them; it is asked about when it has stopped.

    A fault that stays as it is looks the same as a change that was meant. That is why it is a question.
    """

    def __init__(
        self, reference: Reference, channels: tuple[str, ...], window_ns: float, hop_ns: int, model: str, settle_s: float
    ) -> None:
        self._reference, self._channels, self._model = reference, channels, model
        longest_ns = max(settle_s * 1e9, SETTLE_WINDOWS * window_ns, 2 * float(reference.block[0]) * window_ns)
        self._part = max(1, math.ceil(longest_ns / hop_ns / PARTS))
        self._every = _every(self._part, window_ns / hop_ns)
        self._episode: Event | None = None  # that began it, or the newest one
        self._began_ns = 0
        self._open = False  # nobody was asked about this unrest yet
        self._quiet = 0
        self._asked: Float64 | None = None  # the state that was last asked about
        self._parts: deque[tuple[Float64, Float64]] = deque(maxlen=PARTS)  # mean and mean square of each, (Q − 1 + D,)
        self._count = self._looked = 0
        self._total: Float64
        self._squares: Float64
        self._restart()

    @property
    def room(self) -> int:
        """So many windows fit into the part that is being filled."""
        return self._part - self._count

    def update(
        self, end_ns: Int64, outputs: Outputs, score: Float32, uneasy: Bool, alerts: Sequence[Event]
    ) -> tuple[list[Event], Bool]:
        """Windows in order of time, at most `room` of them; `alerts` as the alarm gave them. `uneasy` (B,): an episode was on,
        or the window was strange.

        Returns the events and, per window, whether it was one of unrest.
        """
        unrest = np.zeros(len(end_ns), bool)
        if self._episode is None and not alerts:
            return [], unrest
        begun = {event.time_ns: event for event in alerts if event.type == "anomaly_started"}
        found: list[Event] = []
        for i in range(len(end_ns)):
            if (event := begun.get(int(end_ns[i]))) is not None:
                if self._episode is None:
                    self._quiet = 0
                    self._began_ns, self._open = event.since_ns, True
                    self._parts.clear()
                    self._restart()
                self._episode = event
            self._quiet = max(0, self._quiet - CALM) if uneasy[i] else self._quiet + 1
            if self._quiet > self._part:
                self._episode = None
            if self._episode is None:
                continue
            unrest[i] = True
            if self._count % self._every == 0:
                one = slice(i, i + 1)
                row = np.concatenate(
                    [self._reference.watched(outputs.part(one), score[one])[0], self._reference.embedded(outputs.part(one))[0]]
                )
                self._total += row
                self._squares += np.square(row, dtype=np.float64)
                self._looked += 1
            self._count += 1
            if self._count == self._part:
                self._parts.append((self._total / self._looked, self._squares / self._looked))
                self._restart()
                found += self._asks(int(end_ns[i]))
        return found, unrest

    def _asks(self, time_ns: int) -> list[Event]:
        if len(self._parts) < PARTS or self._episode is None or not self._open or not self._settled():
            return []
        self._open = False
        state: Float64 = self._means().mean(axis=0)
        if self._asked is not None and (np.abs(state - self._asked) <= self._tolerance()).all():
            return []  # the same state as before: an alarm that goes on and off does not ask again and again
        self._asked = state
        watched = len(self._reference.offset) - 1
        moved: Float64 = np.append(state[:watched], rms(state[watched:])) - self._reference.offset
        return [
            Event(
                type="new_normal",
                episode=self._episode.episode,
                time_ns=time_ns,
                since_ns=self._began_ns,
                channels=shares_of(moved, self._channels),
                model=self._model,
                reason=said(moved, self._channels),
            )
        ]

    def _settled(self) -> bool:
        means = self._means()
        squares = np.array([square for _, square in self._parts])
        half = PARTS // 2
        first, last = means[:half].mean(axis=0), means[half:].mean(axis=0)
        spreads = np.sqrt(
            np.maximum([squares[:half].mean(axis=0) - first**2, squares[half:].mean(axis=0) - last**2], 0)
        )  # (2, K)
        calm = 2 * self._per_quantity(self._reference.width)
        alike = spreads.max(axis=0) <= 1.5 * spreads.min(axis=0)
        wider = np.maximum(1, spreads.mean(axis=0) / self._per_quantity(self._reference.width))
        moved = np.abs(last - first) / wider
        one_way = np.abs(np.sign(means[None] - means[:, None])[np.triu_indices(PARTS, 1)].sum(axis=0)) >= TREND
        tolerance = self._tolerance()
        steady = (moved <= tolerance) & ~(one_way & (moved > 0.25 * tolerance))
        return bool((steady & (alike | (spreads.max(axis=0) <= calm))).all())

    def _means(self) -> Float64:
        """(PARTS, K)"""
        return np.array([mean for mean, _ in self._parts])

    def _tolerance(self) -> Float64:
        """(K,) how far two halves may be apart: the difference of two blocks varies more than one."""
        return 1.5 * self._per_quantity(self._reference.allowance)

    def _per_quantity(self, values: Float32) -> Float64:
        """(Q,) → (K,): each dimension of the embedding has what the embedding has."""
        return np.concatenate([values[:-1], np.full(self._reference.embedding.shape[1], values[-1])]).astype(np.float64)

    def _restart(self) -> None:
        self._count = self._looked = 0
        size = len(self._reference.offset) - 1 + self._reference.embedding.shape[1]
        self._total, self._squares = np.zeros(size), np.zeros(size)


def _every(block: int, overlap: float) -> int:
    """Of a block of so many windows, as many as share samples with the next one: from one that is looked at to the next."""
    return max(1, block // SEEN, min(round(overlap), block // 8))


def said(moved: Float64, channels: tuple[str, ...]) -> str:
    """What of (Q,) moved most, in usual spreads: `level of current: +1.4 spreads`, `score: …`, `embedding: …`.

    A channel before score and embedding, which move when a channel does.
    """
    inner = np.abs(moved[1:-1])
    if inner.size and inner.max() > 0:
        at = int(inner.argmax())
        kind, channel = divmod(at, len(channels))
        return f"{WATCHED[kind]} of {channels[channel]}: {moved[1 + at]:+.1f} spreads"
    return f"embedding: {moved[-1]:+.1f} spreads" if moved[-1] > moved[0] else f"score: {moved[0]:+.1f} spreads"


def shares_of(moved: Float64, channels: tuple[str, ...]) -> tuple[Share, ...]:
    """Of (Q,), which channels: most moved first; empty when only score or embedding did."""
    size = np.abs(moved[1:-1]).reshape(len(WATCHED), len(channels)).max(axis=0)
    total = float(size.sum())
    order = np.argsort(-size, kind="stable")
    return tuple(Share(channels[i], round(float(size[i]) / total, 4)) for i in order if size[i] > 0) if total else ()
