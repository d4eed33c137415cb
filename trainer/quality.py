"""Are these recordings fit to be learned from? Faults of sensors, clocks and files, found before anything is trained.

Pure: arrays in, findings out. What is done about a finding is the recipe's to say (`QualityRecipe`); `decide` applies it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from edge.sensing.recordings import Recording
from edge.signal import Bool, Float32, Float64, Int64
from trainer.recipe import Policy, QualityRecipe

Kind = Literal[
    "constant", "clipped", "missing", "stretch", "duplicate", "jitter", "rates", "unordered", "absurd", "copy", "strange"
]

ABSURD = 1e15
"""From here on a value is an error code or a broken transfer (1e30, 3.4e38, infinity), in whatever unit."""
MOSTLY = 0.5
"""Share of values missing from which a channel is mostly missing."""
CLIPPED = 0.005
"""Share of values at one extreme from which a channel is suspected of being cut off there,"""
PILE = 5.0
"""and how many times more often the extreme has to occur than the values next to it."""
FEW_VALUES = 16
"""A channel with fewer different values is a switch or a counter of states: it is at an extreme by right."""
DUPLICATE = 1e-6
"""1 - r² up to which two channels say the same: a thousandth of the spread, what rounding to three digits leaves."""
JITTERY = 0.05
"""Share of the steps that are off by more than a quarter, from which the stamps jitter."""
RATES_APART = 0.1
"""By how much the median step of two stretches may differ before there are several rates."""
ROWS_LOOKED_AT = 16384
"""Of each recording, evenly, for what needs sorting or pairs of channels."""
BULK = 0.7
"""Share of the windows that the bulk is fitted to: up to nearly a third may be strange."""
STRAY = 0.002
"""Share of a recording's windows up to which strange ones are not worth a word."""
SHOWN = 3
"""Recordings that are named for the same finding."""
FEWEST = 40
"""Windows; among fewer nothing can be called unlike the rest."""
PER_DIRECTION = 30
"""Windows for each direction in which they are compared: with fewer the bulk is learned by heart and all else is strange."""
FENCE = 4.0
"""How many times the distance between median and 15 % quantile of the log distances a window lies above the median to be
strange. Chosen by trial: of white noise none in 4000 windows with up to 8 channels, one with 38; at 5, what is a fault in one
channel of three was lost. The lower half hardly moves when some windows are strange."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with a recording, and what was done about it."""

    kind: Kind
    recording: str
    channel: str = ""
    """Empty when it is about the whole recording."""
    figures: dict[str, float] = {}
    severity: Literal["note", "warning", "error"] = "warning"
    done: Literal["warned", "repaired", "excluded", "refused"] = "warned"
    text: str
    """What is wrong, for a person; without names and without what was done."""
    cure: str = ""

    @property
    def line(self) -> str:
        where = f"{self.recording}: {self.channel}" if self.channel else self.recording
        return f"{where}: {self.text} [{self.done}]" + (f"; {self.cure}" if self.cure else "")


@dataclass(frozen=True, slots=True)
class Bulk:
    """What most windows look like."""

    floor: Float64
    """(2 C,) what is added to spread and roughness before their logarithm is taken."""
    centre: Float64
    """(F,) of level, log spread and log roughness; F = 3 C."""
    directions: Float64
    """(F, K) uncorrelated ones, in which most windows have spread 1."""
    fence: float
    """Log of the squared distance from the centre beyond which a window is strange."""

    def distance(self, figures: Float64) -> Float64:
        """(n, F) → (n,) log of the squared distance."""
        logarithm: Float64 = np.log(
            (((_transformed(figures, self.floor) - self.centre) @ self.directions) ** 2).sum(axis=1) + 1e-12
        )
        return logarithm

    def strange(self, figures: Float64) -> Bool:
        """(n, F) → (n,) which windows look unlike the bulk by far."""
        return self.distance(figures) > self.fence


def figures_of(x: Float32) -> Float64:
    """(n, C, N) → (n, 3 C) level, spread and roughness (spread of the first difference) of each channel."""
    wide = x.astype(np.float64)
    return np.concatenate([wide.mean(axis=2), wide.std(axis=2), np.diff(wide, axis=2).std(axis=2)], axis=1)


def fit_bulk(figures: Float64) -> Bulk | None:
    """(n, 3 C) → what most of them look like; None when there are fewer than `FEWEST`, too few to tell.

    Robust: centre and scale of each figure are medians; then the covariance is taken from the nearest 70 % until that settles
    (concentration steps: Rousseeuw and Van Driessen, A fast algorithm for the minimum covariance determinant estimator, 1999).
    With few windows of many channels only the widest directions are compared.
    """
    if len(figures) < FEWEST:
        return None
    third = figures.shape[1] // 3
    floor = 1e-2 * np.median(figures[:, third:], axis=0) + 1e-12
    x = _transformed(figures, floor)
    centre = np.median(x, axis=0)
    scale = 1.4826 * np.median(np.abs(x - centre), axis=0)
    # A figure that hardly ever changes (a constant channel) has no scale to be measured in; infinity leaves it out.
    scale = np.where(scale > 1e-6 * (np.abs(centre) + 1e-6), scale, np.inf)
    if not np.isfinite(scale).any():
        return None
    z = (x - centre) / scale
    distance = (z**2).sum(axis=1)
    near = np.empty(0, np.int64)
    for _ in range(20):
        before, near = near, np.sort(np.argsort(distance)[: int(BULK * len(z))])
        if np.array_equal(before, near):
            break
        shift, directions = _ellipsoid(z[near], len(z))
        distance = (((z - shift) @ directions) ** 2).sum(axis=1)
    finite = np.where(np.isfinite(scale), scale, 0.0)
    return Bulk(floor, centre + shift * finite, directions / scale[:, None], _fence(distance))


def _ellipsoid(z: Float64, count: int) -> tuple[Float64, Float64]:
    """(n, F) → centre (F,) and the widest directions (F, K), in which they have spread 1."""
    variance, vectors = np.linalg.eigh(np.atleast_2d(np.cov(z, rowvar=False)))  # ascending
    wide = (variance > 1e-4 * variance[-1]) & (np.arange(len(variance)) >= len(variance) - max(1, count // PER_DIRECTION))
    return z.mean(axis=0), vectors[:, wide] / np.sqrt(variance[wide])


def _fence(distance: Float64) -> float:
    low, middle = np.quantile(np.log(distance + 1e-12), [0.15, 0.5])
    return float(middle + FENCE * (middle - low))


def unlike(name: str, strange: Bool) -> list[Finding]:
    """(n,) which windows of a recording are strange → a finding, unless they are a stray one or two in a thousand."""
    count = int(strange.sum())
    if count < max(2, STRAY * len(strange)):
        return []
    at = np.flatnonzero(strange)
    first, last = at[[0, -1]] / len(strange)
    text = f"{count} of {len(strange)} windows look unlike the others, from {first:.0%} to {last:.0%} of its length"
    cure = 'a fault, or a rare state? look there; quality.strange = "exclude" leaves them out'
    return [Finding(kind="strange", recording=name, figures={"share": _short(count / len(strange))}, text=text, cure=cure)]


def channels(name: str, parts: Iterable[Recording], rows: int, window: int, max_fill: int) -> list[Finding]:
    """Each channel by itself and beside the others; `parts` are those of one recording of `rows` rows."""
    seen: _Seen | None = None
    for part in parts:
        seen = seen or _Seen(part.channels, rows, max_fill)
        seen.look(part.x)
    if seen is None:
        return []
    found: list[Finding] = []
    for i, channel in enumerate(seen.names):
        found += seen.of_channel(name, channel, i, window)
    return found + _duplicates(name, seen)


class _Seen:
    """What is counted while a recording goes by."""

    def __init__(self, names: Sequence[str], rows: int, max_fill: int) -> None:
        count = len(names)
        self.names, self.rows, self._max_fill = tuple(names), rows, max_fill
        self.finite = np.zeros(count, np.int64)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self.at_low, self.at_high = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.longest, self.stretches = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._run = np.zeros(count, np.int64)  # values missing in a row so far
        self._stride = max(1, rows // ROWS_LOOKED_AT)
        self._sample: list[Float32] = []

    @cached_property
    def sample(self) -> Float64:
        """(C, k) evenly taken; when all has been seen."""
        return np.concatenate(self._sample, axis=1).astype(np.float64)

    def look(self, x: Float32) -> None:
        for i, values in enumerate(x):
            good = values[np.isfinite(values)]
            self.finite[i] += len(good)
            if len(good):
                self._extreme(i, float(good.min()), float(good.max()), good)
            if len(good) < len(values) or self._run[i]:
                self._stretch(i, ~np.isfinite(values))
        self._sample.append(x[:, :: self._stride].copy())  # a view would keep all of it

    def _extreme(self, i: int, low: float, high: float, good: Float32) -> None:
        if low <= self.low[i]:
            self.at_low[i] = int((good == low).sum()) + (self.at_low[i] if low == self.low[i] else 0)
            self.low[i] = low
        if high >= self.high[i]:
            self.at_high[i] = int((good == high).sum()) + (self.at_high[i] if high == self.high[i] else 0)
            self.high[i] = high

    def _stretch(self, i: int, missing: Bool) -> None:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]])))
        lengths = edges[1::2] - edges[::2]
        if not len(lengths):
            self._run[i] = 0
            return
        before = int(self._run[i]) if missing[0] else 0
        lengths[0] += before
        self.longest[i] = max(self.longest[i], int(lengths.max()))
        self.stretches[i] += int((lengths > self._max_fill).sum()) - (before > self._max_fill)
        self._run[i] = lengths[-1] if missing[-1] else 0

    def of_channel(self, name: str, channel: str, i: int, window: int) -> list[Finding]:
        found: list[Finding] = []
        share = 1 - self.finite[i] / max(1, self.rows)
        if share >= MOSTLY:
            cure = 'quality.missing = "exclude" leaves it out'
            text = f"{share:.0%} of the values are missing"
            found.append(_about("missing", name, channel, {"share": share}, text, cure))
        elif self.longest[i] > max(self._max_fill, window):
            text = (
                f"{self.stretches[i]} stretches without a value, the longest of {self.longest[i]} samples; no window spans them"
            )
            figures = {"stretches": float(self.stretches[i]), "longest": float(self.longest[i])}
            stretch = _about("stretch", name, channel, figures, text, "")
            found.append(msgspec.structs.replace(stretch, severity="note", done="excluded"))
        if self.finite[i] > 1 and self.still(i):
            cure = 'a dead sensor? quality.constant = "exclude" leaves it out'
            found.append(_about("constant", name, channel, {"value": self.low[i]}, f"always {self.low[i]:.6g}", cure))
        elif self.finite[i]:
            found += self._clipped(name, channel, i)
        return found

    def still(self, i: int) -> bool:
        """The rounding of float32 is no movement."""
        return bool(self.high[i] - self.low[i] <= 1e-6 * max(abs(self.high[i]), abs(self.low[i])))

    def _clipped(self, name: str, channel: str, i: int) -> list[Finding]:
        sample = self.sample[i]
        values, counts = np.unique(sample[np.isfinite(sample)], return_counts=True)
        if len(values) < FEW_VALUES:
            return []
        found: list[Finding] = []
        sides = ((self.low[i], self.at_low[i], counts, "smallest"), (self.high[i], self.at_high[i], counts[::-1], "largest"))
        for extreme, count, ordered, which in sides:
            share = float(count / self.finite[i])
            piled = ordered[0] > PILE * ordered[1 : FEW_VALUES // 2 + 1].mean()
            if extreme != 0 and share >= CLIPPED and piled:  # at exactly 0 a machine rests
                text = f"{share:.1%} of the values are the {which}, {extreme:.6g}; the sensor is cut off there"
                cure = "widen its range and record again"
                found.append(_about("clipped", name, channel, {"share": share, "at": float(extreme)}, text, cure))
        return found


def _duplicates(name: str, seen: _Seen) -> list[Finding]:
    moving = [i for i in range(len(seen.names)) if seen.finite[i] > MOSTLY * seen.rows and not seen.still(i)]
    x = seen.sample[moving]
    x = x[:, np.isfinite(x).all(axis=0)]
    if x.shape[1] < FEW_VALUES or len(moving) < 2:
        return []
    centred = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1))
    spread[spread == 0] = np.inf  # still where it was looked at
    correlation = (centred / spread[:, None]) @ (centred / spread[:, None]).T / x.shape[1]
    found: list[Finding] = []
    for later in range(1, len(moving)):
        first = next((i for i in range(later) if 1 - correlation[i, later] ** 2 <= DUPLICATE), None)
        if first is not None:
            slope = float(correlation[first, later] * spread[later] / spread[first])
            offset = float(x[later].mean() - slope * x[first].mean())
            original = seen.names[moving[first]]
            text = f"is {original} × {slope:.6g} + {offset:.6g}, it adds nothing"
            cure = 'quality.duplicate = "exclude" leaves it out'
            figures = {"factor": slope, "offset": offset}
            found.append(_about("duplicate", name, seen.names[moving[later]], figures, text, cure))
    return found


def clock(name: str, stretches: Sequence[Int64]) -> list[Finding]:
    """Distances of neighbouring stamps in nanoseconds, in stretches from the start to the end of one recording."""
    stretches = [steps for steps in stretches if len(steps) >= 8]
    if not stretches:
        return []
    period = float(np.median(np.concatenate(stretches)))
    medians = np.array([float(np.median(steps)) for steps in stretches])
    # How far a median may be off by chance, when every step jitters.
    off = max(1.86 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(len(steps)) for steps in stretches)
    if medians.max() > (1 + RATES_APART) * medians.min() + 6 * off:
        slow, fast = 1e9 / medians.max(), 1e9 / medians.min()
        text = f"between {slow:.4g} and {fast:.4g} samples per second in one recording"
        cure = "cut it where the rate changes"
        return [_about("rates", name, "", {"slowest_hz": slow, "fastest_hz": fast}, text, cure)]
    steps = np.concatenate(stretches) / period
    share = float(((np.abs(steps - 1) > 0.25) & (steps < 1.75)).mean())  # what is longer is a hole
    if share < JITTERY:
        return []
    text = f"{share:.0%} of the stamps are off by more than a quarter of a period"
    cure = "stamp in the sensor, or set missing.jitter_s"
    return [_about("jitter", name, "", {"share": share, "period_s": period / 1e9}, text, cure)]


def unordered(name: str, count: int, rows: int) -> Finding:
    text = f"{count} of {rows} rows repeat a time or go back; left out"
    found = _about("unordered", name, "", {"rows": float(count)}, text, "")
    return msgspec.structs.replace(found, done="repaired")


def absurd(name: str, channel: str, count: int, largest: float, policy: Literal["repair", "refuse"]) -> Finding:
    refused = policy == "refuse"
    text = f"{count} value{'s' if count > 1 else ''} like {largest:.3g}" + ("" if refused else ", taken for missing")
    cure = 'mend the file or set quality.absurd = "repair"' if refused else ""
    figures = {"values": float(count), "largest": largest if math.isfinite(largest) else math.copysign(3.4e38, largest)}
    found = _about("absurd", name, channel, figures, text, cure)
    return msgspec.structs.replace(found, done="refused" if refused else "repaired", severity="error" if refused else "warning")


def copy(name: str, of: str) -> Finding:
    found = _about("copy", name, "", {}, f"holds rows of {of} again; they are used once", "")
    return msgspec.structs.replace(found, done="repaired")


@dataclass(frozen=True, slots=True)
class Decision:
    findings: tuple[Finding, ...]
    """With what was done about each."""
    channels: frozenset[str]
    """To be left out of all recordings,"""
    recordings: frozenset[str]
    """and those to be left out."""


def decide(findings: Iterable[Finding], policy: QualityRecipe, recordings: Sequence[str]) -> Decision:
    """Apply the recipe's policy to what was found in `recordings`; what is to be ignored is dropped."""
    found = list(findings)
    out_channels: set[str] = set()
    out_recordings: set[str] = set()
    decided: list[Finding] = []
    for finding in found:
        action = _policy(finding.kind, policy)
        if action is None:  # done already
            decided.append(finding)
        elif action == "warn":
            decided.append(msgspec.structs.replace(finding, done="warned"))
        elif action == "refuse":
            decided.append(msgspec.structs.replace(finding, done="refused", severity="error"))
        elif action == "exclude":
            everywhere = {f.recording for f in found if (f.kind, f.channel) == (finding.kind, finding.channel)}
            if finding.channel and everywhere == set(recordings):
                out_channels.add(finding.channel)
            elif finding.kind != "strange":  # of those only the windows go
                out_recordings.add(finding.recording)
            decided.append(msgspec.structs.replace(finding, done="excluded", cure=""))
    return Decision(tuple(decided), frozenset(out_channels), frozenset(out_recordings))


def summary(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding; one for all of them where many recordings share it."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.kind, finding.channel, finding.done), []).append(finding)
    lines: list[str] = []
    for group in alike.values():
        lines += [finding.line for finding in group[:SHOWN]]
        if len(group) > SHOWN:
            about = f"{group[0].channel} " if group[0].channel else ""
            lines.append(f"{about}{group[0].kind}: in {len(group) - SHOWN} more recordings [{group[0].done}]")
    return lines


def _policy(kind: Kind, policy: QualityRecipe) -> Policy | None:
    match kind:
        case "constant" | "clipped" | "missing" | "duplicate" | "strange":
            action: Policy = getattr(policy, kind)
            return action
        case "jitter" | "rates":
            return policy.clock
        case "stretch" | "unordered" | "absurd" | "copy":
            return None


def _about(kind: Kind, recording: str, channel: str, figures: dict[str, float], text: str, cure: str) -> Finding:
    kept = {name: _short(value) for name, value in figures.items()}
    return Finding(kind=kind, recording=recording, channel=channel, figures=kept, text=text, cure=cure)


def _short(value: float) -> float:
    """Six digits are enough to read, and alike on every machine."""
    return float(f"{value:.6g}")


def _transformed(figures: Float64, floor: Float64) -> Float64:
    third = figures.shape[1] // 3
    return np.concatenate([figures[:, :third], np.log(figures[:, third:] + floor)], axis=1)
