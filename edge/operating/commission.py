"""What counts as ordinary, fitted to one machine's own running: from recordings into a bundle, or live on the device."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import Bundle, Golden, members_of, pack_golden, pack_head, write_bundle
from edge.errors import DataError
from edge.head import Head
from edge.scoring.backends import Outputs, run_in_slices
from edge.scoring.commission import Fitted, ForeignError, fit_head
from edge.sensing.health import Usual
from edge.sensing.recordings import find_recordings, match_channels, read_recording
from edge.sensing.windows import Windower
from edge.signal import Float32, Int64, Windows

WINDOWS = 2000
"""Aimed at: more of them overlap more and say little more."""
MOST_BYTES = 48 * 1024 * 1024
"""Of windows that a running agent keeps for it."""
MOST_FAULTY = 0.05
"""Share of the windows in which the sensor itself was to blame."""


def commission(bundle_path: Path, normal: list[Path], out: Path, *, trusted: bool = False) -> str:
    """Write `out`: the same encoder, the head fitted to the recordings; returns one line that says what came of it.

    Windows that look unlike the rest are left out; with `trusted` none is. Raises `DataError` when the recordings do not fit
    the bundle, are too short, or look faulty.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.manifest
    recordings = {path: match_channels(read_recording(path), bundle.channels) for path in find_recordings(normal)}
    hop = max(1, min(manifest.hop, sum(len(recording.time_ns) for recording in recordings.values()) // WINDOWS))
    material = Material()
    digests: dict[str, str] = {}
    for path, recording in recordings.items():
        windower = Windower(len(bundle.channels), manifest.rate_hz, manifest.window, hop, manifest.missing)
        for samples in recording.samples():
            windows = windower.feed(samples)
            if len(windows):
                material.add(windows, run_in_slices(bundle.backend, windows.x))
        digests[f"commissioned/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    names = ", ".join(map(str, normal))
    head, fitted = fit(
        bundle, material, hop, trusted=trusted, where=names, again="record again", trust="--trusted", longer="record for longer"
    )
    outputs = run_in_slices(bundle.backend, bundle.golden.x)
    golden = Golden(bundle.golden.x, outputs, head.scorer.score(outputs))
    members = members_of(bundle_path) | {
        "head.npz": pack_head(head),
        "golden.npz": pack_golden(golden),
    }
    vouched = {"commissioned_trusted": "yes" if trusted else "no"}
    manifest = msgspec.structs.replace(
        manifest,
        calibration_windows=head.calibrator.windows,
        calibration_floor=head.calibrator.floor,
        golden_tolerances=_tolerances(bundle),
        learn_minutes=0.0,  # it knows its machine now
        lineage=manifest.lineage | {"commissioned_from": bundle.digest} | vouched | digests,
    )
    digest = write_bundle(out, manifest, members)
    return (
        f"{out}: fitted to {head.calibrator.windows} windows of this machine, nothing rarer than "
        f"p = {head.calibrator.floor:.2g}; {_left_out(fitted)}digest {digest[:16]}…"
    )


class Material:
    """Normal windows, and what the model says of them, oldest first."""

    def __init__(self) -> None:
        self._outputs: list[Outputs] = []
        self._ends: list[Int64] = []
        self._x: list[Float32] = []
        self.count = 0

    def add(self, windows: Windows, outputs: Outputs) -> None:
        self._outputs.append(outputs)
        self._ends.append(windows.end_ns)
        self._x.append(windows.x)
        self.count += len(windows)

    def outputs(self) -> Outputs:
        return Outputs.concatenate(self._outputs)

    def x(self) -> Float32:
        """(n, C, N)"""
        return np.concatenate(self._x)

    def end_ns(self) -> Int64:
        return np.concatenate(self._ends)


def fit(
    bundle: Bundle, material: Material, hop: int, *, trusted: bool, where: str, again: str, trust: str, longer: str
) -> tuple[Head, Fitted]:
    """A head from windows `hop` samples apart. Raises `DataError`: `where` names what does not serve, `again`, `trust`
    and `longer` say what to do when it looks faulty or is too short."""
    manifest = bundle.manifest
    try:
        if not material.count:
            raise ValueError(f"nowhere are {manifest.window} samples in a row usable")
        fitted = fit_head(
            manifest.scorer,
            material.outputs(),
            material.end_ns(),
            bundle.smoother(hop),
            overlap=-(-manifest.window // hop),
            trusted=trusted,
            stride=max(1, manifest.hop // hop),
        )
    except ForeignError as error:
        raise DataError(
            f"{where}: looks faulty or contaminated: {error}; {again} while the machine runs normally, "
            f"or say {trust} when all of it is normal"
        ) from None
    except ValueError as error:
        raise DataError(f"{where}: {error}; {longer}") from None
    return Head(
        fitted.scorer, fitted.calibrator, fitted.explainer, fitted.reference, Usual.fit(material.x()), fitted.tail
    ), fitted


class Commissioning:
    """Collects what a running stream sees until it has seen so many `minutes` of it, then fits a head to that.

    About `WINDOWS` windows are kept, evenly over the time, whatever that is: memory is bounded by them. A stretch in which the
    sensor is to blame does not count. `patience` times the stated time after the start it is given up.
    """

    def __init__(self, bundle: Bundle, minutes: float, hop: int, *, trusted: bool, now_s: float, patience: float = 3.0) -> None:
        manifest = bundle.manifest
        self.trusted, self.minutes = trusted, minutes
        self.bundle, self._material = bundle, Material()
        self._wanted = max(1, round(minutes * 60 * manifest.rate_hz / hop))
        """Windows as the stream cuts them."""
        most = WINDOWS * (1 if _bytes(bundle) * WINDOWS <= MOST_BYTES else MOST_BYTES / (_bytes(bundle) * WINDOWS))
        self._each = max(1, round(self._wanted / most))
        self._hop = hop * self._each
        self._seen = self.faulty = 0
        self._give_up_s = now_s + patience * 60 * minutes + 60

    @property
    def share(self) -> float:
        """Of the time that is collected already, 0 … 1."""
        return min(1.0, self._seen / self._wanted)

    @property
    def minutes_left(self) -> float:
        return self.minutes * (1 - self.share)

    @property
    def windows(self) -> int:
        return self._material.count

    def over(self, now_s: float) -> bool:
        return self._seen >= self._wanted or now_s >= self._give_up_s

    def feed(self, windows: Windows, outputs: Outputs, *, faulty: bool = False) -> None:
        if faulty:
            self.faulty += len(windows)
            return
        kept = np.flatnonzero((self._seen + np.arange(len(windows))) % self._each == 0)
        self._seen += len(windows)
        if len(kept):
            some = Windows(windows.start_ns[kept], windows.end_ns[kept], windows.x[kept], windows.fresh[kept])
            self._material.add(some, outputs.part(kept))

    def fit(self) -> Head:
        """Takes seconds on a small board; nothing else may use this object meanwhile. Raises `DataError`."""
        where = f"{self.share * self.minutes:.3g} of {self.minutes:.3g} min collected"
        if self.faulty > MOST_FAULTY * (self.faulty + self._seen):
            raise DataError(f"{where}: the sensor was faulty for {self.faulty} windows; mend it, then commission again")
        if self._seen < self._wanted:
            raise DataError(f"{where} in {self.minutes * 3:.3g} min; is the sensor there? Commission again when it is")
        again, trust, longer = "commission again", '"trusted": true', "commission for longer"
        return fit(
            self.bundle, self._material, self._hop, trusted=self.trusted, where=where, again=again, trust=trust, longer=longer
        )[0]


def _bytes(bundle: Bundle) -> int:
    """Of a window and what the model says of it."""
    golden = bundle.golden
    return int(sum(array[:1].nbytes for array in (golden.x, *golden.outputs.arrays().values())))


def _left_out(fitted: Fitted) -> str:
    if not fitted.foreign:
        return ""
    return f"{fitted.foreign} windows left out because they look unlike the rest (--trusted keeps them); "


def _tolerances(bundle: Bundle) -> dict[str, float]:
    """The golden scores are of the runtime that is used here now: it has to meet them most closely, whichever did before."""
    found = bundle.manifest.golden_tolerances
    return {name: min(found.values()) if name == bundle.backend.name else max(found.values()) for name in found}
