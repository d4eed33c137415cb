"""A machine to play with: a motor on two bearings, five sensors, and faults to give it.

    machine = Machine(seed=1)
    machine.next(400)           # one second of normal operation
    machine.inject("bearing")
    machine.next(400)           # … of a bearing that begins to fail

The physics is that of textbooks, reduced to what the sensors show. Load drives everything: slip slows the shaft, current
heats the winding, vibration sits on multiples of the shaft's frequency. Load goes through its whole range within a few
minutes, so a model that was trained on six of them has seen what is normal. A fault of severity 1 leaves that range clearly
where it acts, but only there: a rule on the vibration's RMS finds imbalance and not the bearing.

The same seed gives the same values on every machine, however they are asked for: all randomness is drawn per block of
samples from a generator that is keyed with the seed and the block's number, and what a block leaves to the next is in `_State`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge.errors import UsageError
from edge.sensing.recordings import Recording
from edge.signal import Bool, Float32, Float64, Int64, Samples

CHANNELS = ("vibration_x", "vibration_y", "current", "temperature", "speed")
UNITS = {"vibration_x": "m/s2", "vibration_y": "m/s2", "current": "A", "temperature": "degC", "speed": "1/min"}
RATE_HZ = 400.0


@dataclass(frozen=True, slots=True)
class Fault:
    amount: float
    """What severity 1 adds, in the unit that `text` names."""
    onset_s: float
    """How long it takes to get there."""
    text: str
    sensor: bool = False
    """It is the sensor that fails; the machine is well."""


FAULTS: dict[str, Fault] = {
    "imbalance": Fault(1.0, 5.0, "a blade is fouled: vibration at shaft frequency grows by 1 m/s2"),
    "misalignment": Fault(0.6, 5.0, "the coupling has moved: vibration at twice the shaft frequency grows by 0.6 m/s2"),
    "bearing": Fault(0.4, 5.0, "a pit in the outer race: each passing ball strikes a resonance, 0.4 m/s2 a blow"),
    "overload": Fault(0.5, 3.0, "half the rated load on top: current and temperature rise, the shaft slows down"),
    "overheating": Fault(1.0, 5.0, "the fan is blocked: the winding is cooled half as well"),
    "stuck": Fault(1.0, 0.0, "the sensor of vibration_x repeats its last value", sensor=True),
    "dropout": Fault(0.5, 0.0, "a loose contact: half of the values of vibration_y are missing, in bursts", sensor=True),
}

_BLOCK = 512  # a power of two that is long against the cost of a block and short against every time constant but the ringing
_BURST = 64  # samples that a loose contact takes away at a time

_MAINS_HZ = 25.0  # four-pole motor at 50 Hz: the shaft would turn this fast without load
_SLIP = 0.05  # … and this much slower at rated load
_NO_LOAD_A, _LOAD_A = 2.1, 5.0  # magnetising and rated active current; they are at right angles
_AMBIENT_C = 22.0
_HEAT_K_PER_A2 = 1.7  # 24 K above ambient at mean load
_THERMAL_S = 60.0  # a real motor takes half an hour; nobody plays that long

# Amplitudes at 1, 2, 3, 4 times the shaft's frequency: 0.35 m/s2 at 24 Hz is 1.6 mm/s RMS, which ISO 20816 calls good.
_HARMONICS = np.array([[0.35, 0.18, 0.09, 0.05], [0.30, 0.20, 0.07, 0.06]])
_ROUGHNESS = 0.25  # broadband, from flow and friction

# A 6205: nine balls of 7.94 mm on a circle of 39.04 mm, contact angle 0. The outer race stands still, the cage moves at half
# the speed of the balls' inner contact.
_BPFO = 9 / 2 * (1 - 7.94 / 39.04)  # balls that pass a point of the outer race, per turn of the shaft: 3.585
_RESONANCE_HZ = 3000.0  # of the bearing's seat; what a slow sensor sees of it is put just below its own limit
_DAMPING = 0.08


@dataclass(frozen=True, slots=True)
class _State:
    """What one block leaves to the next."""

    turns: float = 0.0
    """Of the shaft, so far."""
    rise_k: float = _HEAT_K_PER_A2 * 14.0
    """Winding above ambient; begins where mean load would have taken it."""
    ringing: Float64 | None = None
    """What blows of this block still sound in those that follow."""
    held: float = 0.0
    """Last value that the sensor of vibration_x gave."""


class Machine:
    """Gives samples without end, the same ones however they are asked for. Stream time begins at `start_ns`."""

    channels = CHANNELS

    def __init__(self, seed: int, rate_hz: float = RATE_HZ, start_ns: int = 0) -> None:
        if not rate_hz > 0:
            raise ValueError(f"{rate_hz} samples a second")
        self.seed, self.rate_hz, self.start_ns = seed, rate_hz, start_ns
        self.position = 0
        """Number of the next sample."""
        self._state = _State()
        self._ready: tuple[Float32, _State] | None = None  # the current block, and the state after it
        self._knots: dict[str, list[tuple[int, float]]] = {}  # fault → (sample, severity), straight lines between
        # Machines of a kind differ: phases of load and harmonics, and a tenth in every amplitude.
        rng = np.random.default_rng(seed)
        self._load_phase = rng.uniform(0, 2 * math.pi, 4)
        self._phase = rng.uniform(0, 2 * math.pi, _HARMONICS.shape)
        self._amplitude = _HARMONICS * rng.uniform(0.9, 1.1, _HARMONICS.shape)
        resonance_hz = min(_RESONANCE_HZ, 0.4 * rate_hz)
        self._ring = (-_DAMPING + 1j) * 2 * math.pi * resonance_hz / rate_hz  # exponent per sample
        self._ring_samples = math.ceil(10 / -self._ring.real)  # e⁻¹⁰ is silence

    def inject(self, fault: str, severity: float = 1.0) -> None:
        """From the next sample on the machine (or a sensor) has this fault; severity 0 mends it.

        Raises `UsageError` for a fault that is not in `FAULTS`.
        """
        if fault not in FAULTS:
            raise UsageError(f"no fault {fault!r}; there are: {', '.join(FAULTS)}")
        at, before = self.position - 1, float(self._level(fault, np.array([self.position - 1]))[0])
        onset = max(1, round(FAULTS[fault].onset_s * self.rate_hz))
        knots = [knot for knot in self._knots.get(fault, []) if knot[0] < at]
        self._knots[fault] = [*knots, (at, before), (at + onset, severity)]
        self._ready = None  # the rest of the block is no longer as it was; what is past is computed anew, and the same

    def next(self, n: int) -> Samples:
        """The next `n` samples."""
        parts = [np.empty((len(CHANNELS), 0), np.float32)]
        time_ns = self.start_ns + np.rint(np.arange(self.position, self.position + n) * (1e9 / self.rate_hz)).astype(np.int64)
        while n > 0:
            if self._ready is None:
                self._ready = self._block(self._state, self.position // _BLOCK)
            x, after = self._ready
            offset = self.position % _BLOCK
            part = x[:, offset : offset + n]
            parts.append(part)
            n -= part.shape[1]
            self.position += part.shape[1]
            if self.position % _BLOCK == 0:
                self._state, self._ready = after, None
        return Samples(time_ns, np.concatenate(parts, axis=1))

    def _level(self, fault: str, index: Int64) -> Float64:
        """Severity at these samples."""
        knots = self._knots.get(fault)
        if not knots:
            return np.zeros(len(index))
        at, severity = np.array(knots, np.float64).T
        level: Float64 = np.interp(index, at, severity)
        return level

    def _load(self, t: Float64) -> Float64:
        """Share of rated load, 0.35 … 0.9: a duty cycle of a minute, and demand that never quite repeats."""
        a, b, c, _ = self._load_phase
        duty = np.tanh(3 * np.sin(2 * math.pi * t / 61.0 + a))
        load: Float64 = (
            0.62 + 0.16 * duty + 0.07 * np.sin(2 * math.pi * t / 23.0 + b) + 0.03 * np.sin(2 * math.pi * t / 7.3 + c)
        )
        return load

    def _block(self, state: _State, number: int) -> tuple[Float32, _State]:
        """All channels (C, _BLOCK) of one block, and the state after it."""
        # Everything is drawn, in the same order, whatever faults there are: only so does a fault change nothing but itself.
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, number], np.uint64)))
        noise = rng.standard_normal((len(CHANNELS), _BLOCK))
        blow = 1 + 0.25 * rng.standard_normal(_BLOCK)
        contact = np.repeat(rng.random(_BLOCK // _BURST), _BURST)

        index = number * _BLOCK + np.arange(_BLOCK)
        t = index / self.rate_hz
        level = {name: FAULTS[name].amount * self._level(name, index) for name in FAULTS}

        load = self._load(t) + level["overload"]
        shaft_hz = _MAINS_HZ * (1 - _SLIP * load)
        turns = state.turns + np.cumsum(shaft_hz) / self.rate_hz
        current = np.hypot(_NO_LOAD_A, _LOAD_A * load)
        rise = self._heat(state.rise_k, _HEAT_K_PER_A2 * (1 + level["overheating"]) * current**2)
        ambient = _AMBIENT_C + 0.8 * np.sin(2 * math.pi * t / 211.0 + self._load_phase[3])
        sound, ringing = self._blows(state, turns, level["bearing"] * (0.5 + 0.8 * load) * blow)

        x = np.stack(
            [
                self._harmonics(0, turns, load, shaft_hz),
                self._harmonics(1, turns, load, shaft_hz),
                current,
                ambient + rise,
                60 * shaft_hz,
            ]
        )
        angle = 2 * math.pi * turns
        # A turning force shows on both axes, a quarter turn apart; a bent coupling pushes along one more than the other.
        x[0] += level["imbalance"] * np.cos(angle) + 0.5 * level["misalignment"] * np.cos(2 * angle) + sound
        x[1] += level["imbalance"] * np.sin(angle) + level["misalignment"] * np.cos(2 * angle + 0.7) + 0.6 * sound
        x[:2] += _ROUGHNESS * (0.7 + 0.5 * load) * noise[:2]
        x[2:] += np.array([[0.05], [0.05], [0.6]]) * noise[2:]

        stuck = level["stuck"] > 0
        x[0] = _hold(x[0], stuck, state.held)
        held = float(x[0, -1])
        x[1, contact < level["dropout"]] = np.nan
        return x.astype(np.float32), replace(state, turns=float(turns[-1]), rise_k=float(rise[-1]), ringing=ringing, held=held)

    def _harmonics(self, axis: int, turns: Float64, load: Float64, shaft_hz: Float64) -> Float64:
        x = np.zeros(len(turns))
        for order, (amplitude, phase) in enumerate(zip(self._amplitude[axis], self._phase[axis], strict=True), 1):
            if order * _MAINS_HZ < 0.45 * self.rate_hz:  # beyond, the sensor's own filter has taken it away
                # Centrifugal force goes with the square of speed; what the coupling transmits, with load.
                strength = (shaft_hz / _MAINS_HZ) ** 2 if order == 1 else 0.6 + 0.6 * load
                x += amplitude * strength * np.cos(2 * math.pi * order * turns + phase)
        return x

    def _heat(self, rise_k: float, target_k: Float64) -> Float64:
        """rise' = (target − rise) / τ, solved for the block in one go: rise·eᵗ is a sum."""
        decay = -1 / (_THERMAL_S * self.rate_hz)
        growth = np.exp(-decay * np.arange(1, len(target_k) + 1))
        rise: Float64 = (rise_k + np.cumsum(target_k * growth) * -math.expm1(decay)) / growth
        return rise

    def _blows(self, state: _State, turns: Float64, strength: Float64) -> tuple[Float64, Float64]:
        """Sound of the balls that pass the pit in this block, and what of it comes after."""
        passed = _BPFO * np.concatenate([[state.turns], turns])
        at = np.flatnonzero(np.diff(np.floor(passed)) > 0)  # a ball has passed between the sample before and this one
        early = (passed[at + 1] - np.floor(passed[at + 1])) / (passed[at + 1] - passed[at])  # … this part of a sample ago
        sound = np.zeros(_BLOCK + self._ring_samples)
        if state.ringing is not None:
            sound[: self._ring_samples] += state.ringing
        if strength.any():
            tail = np.arange(self._ring_samples)
            rings = strength[at, None] * np.exp(self._ring * (early[:, None] + tail)).imag
            np.add.at(sound, at[:, None] + tail, rings)
        return sound[:_BLOCK], sound[_BLOCK:]


def simulate(
    seconds: float,
    *,
    seed: int,
    rate_hz: float = RATE_HZ,
    fault: str | None = None,
    fault_at_s: float = 0.0,
    severity: float = 1.0,
    start_ns: int = 0,
) -> Recording:
    """A recording of the machine; its label is 1 from the moment of the fault. Raises `UsageError` for an unknown fault."""
    machine = Machine(seed, rate_hz, start_ns)
    n = round(seconds * rate_hz)
    healthy = n if fault is None else min(n, round(fault_at_s * rate_hz))
    parts = [machine.next(healthy)]
    if fault is not None:
        machine.inject(fault, severity)
        parts.append(machine.next(n - healthy))
    label: npt.NDArray[np.int8] = (np.arange(n) >= healthy).astype(np.int8)
    time_ns = np.concatenate([part.time_ns for part in parts])
    return Recording(fault or "normal", CHANNELS, time_ns, np.concatenate([part.x for part in parts], axis=1), label, UNITS)


def _hold(x: Float64, stuck: Bool, before: float) -> Float64:
    """`x`, where `stuck` the last value that was not; `before` is the one before the first."""
    free = np.maximum.accumulate(np.where(stuck, -1, np.arange(len(x))))
    held: Float64 = np.where(free >= 0, x[free], before)
    return held
