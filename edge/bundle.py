"""What a model is: a `.amiss` file, a ZIP without compression and with fixed member names (docs/bundle-format.md).

    manifest.json   everything about it, and the SHA-256 of every other member
    model.onnx      raw windows (B, C, N) → embedding (B, D), residual and level (B, C); normalises inside
    model.tflite    the same for one window at a time; a bundle has one of the two or both
    stream.onnx     not in every bundle: the same for new samples alone, with state (`edge.scoring.streaming`)
    head.npz        scorer, calibrator, explainer and reference as plain arrays
    golden.npz      windows and the outputs that the build machine got for them
    README.md       model card
    bom.cdx.json    CycloneDX bill of materials

Rules, in order; the first that does not hold raises `BundleError` and nothing later is touched:

1. the file is no larger than `MAX_BYTES`, and only known members are in it, each once, stored, within its own limit;
2. the manifest is of a known schema and asks for no newer agent than this one;
3. every member has the size and the SHA-256 that the manifest names, and none is missing but an optional one;
4. only then is any of them parsed: arrays without pickle, then the model, by the first runtime named that is installed;
5. `self_test`: this machine computes from the golden windows what the build machine did.

The digest of a bundle is the SHA-256 of its file, what `sha256sum` prints. Every event names it.
"""

import hashlib
import io
import logging
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import msgspec
import numpy as np
import numpy.typing as npt

from edge.channel import ChannelSpec as ChannelSpec
from edge.config import AlarmConfig
from edge.errors import BundleError, NoInputError
from edge.files import at_once
from edge.head import Head
from edge.pipeline import Pipeline
from edge.scoring.alerts import AlarmPolicy
from edge.scoring.backends import (
    CPU,
    OUTPUTS,
    RUNTIMES,
    Backend,
    OnnxBackend,
    Outputs,
    first_installed,
    installed,
    run_in_slices,
)
from edge.scoring.ensemble import parse
from edge.scoring.inject import inject, usual_spread
from edge.scoring.smoothing import Smoother
from edge.scoring.streaming import StreamGraph, open_stream
from edge.sensing.health import SensorHealth
from edge.sensing.windows import MissingPolicy, Windower
from edge.signal import Float32, Windows

log = logging.getLogger(__name__)

SCHEMA = 1
FAULTS = 448
"""Windows that a forgiven episode is tried on."""
AGENT_VERSION = (0, 1, 0)

MEBIBYTE = 1 << 20
MEMBERS = {
    "manifest.json": 1 * MEBIBYTE,
    "model.onnx": 64 * MEBIBYTE,
    "stream.onnx": 64 * MEBIBYTE,
    "model.tflite": 64 * MEBIBYTE,
    "head.npz": 64 * MEBIBYTE,
    "golden.npz": 16 * MEBIBYTE,
    "README.md": 1 * MEBIBYTE,
    "bom.cdx.json": 4 * MEBIBYTE,
}
"""Every member there may be, and the most bytes it may have: far above any model that suits a small board, far below what
would fill its memory."""
MODELS = frozenset({"model.onnx", "model.tflite"})
"""One of these at least; all others have to be there,"""
OPTIONAL = frozenset({"stream.onnx"})
"""but for this one."""
MAX_BYTES = sum(MEMBERS.values())


class FileSpec(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """manifest.json. Fields may be added within a schema; a reader ignores those it does not know."""

    schema: int = SCHEMA
    name: str
    version: str
    created: str
    """RFC 3339, UTC."""
    channels: tuple[ChannelSpec, ...]
    rate_hz: float
    window: int
    hop: int
    """Samples."""
    missing: MissingPolicy
    scorer: str
    """As `edge.scoring.ensemble.parse` reads it."""
    smoothing: int = 0
    """Samples from the oldest to the newest of the windows whose scores are averaged; 0: each stands for itself."""
    stream_hop: int = 0
    """Samples. Up to this hop `stream.onnx` is taken to be cheaper and runs in place of `model.onnx`; 0: there is none."""
    calibration_windows: int
    calibration_floor: float
    """The smallest p-value that is counted; below it they are estimated."""
    precision: str
    """`int8` or `float32`."""
    precision_reason: str
    """Why that one was shipped, with the figures."""
    target: str = ""
    """The board it was made for, by the name of its file in `firmware-configs/boards`; empty: none in particular."""
    golden_tolerance: float
    """Largest difference of a golden score, relative to 1 + score, that another machine may have."""
    runtimes: tuple[str, ...] = ("onnxruntime",)
    """What can run it, as `edge.scoring.backends.RUNTIMES` calls them; the first that is installed does."""
    golden_tolerances: dict[str, float] = {}
    """Instead of `golden_tolerance`, by runtime: those that did not compute the golden scores round at other places."""
    minimum_agent: str = "0.1.0"
    lineage: dict[str, str] = {}
    """Digests and versions that lead from here to recipe, code and data."""
    metrics: dict[str, float] = {}
    """Measured when it was built; names carry the unit."""
    files: dict[str, FileSpec] = {}


@dataclass(frozen=True, slots=True)
class Golden:
    x: Float32
    """(G, C, N) windows as they come from the sensor."""
    outputs: Outputs
    score: Float32
    """(G,) what the build machine computed."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How far this machine's golden scores are from the build machine's."""

    worst: float
    """Relative to 1 + score."""
    tolerance: float
    runtime: str
    """And on what, where that is not the CPU."""


class Bundle:
    """An opened, verified bundle."""

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        backend: Backend,
        head: Head,
        golden: Golden,
        size: int,
        stream: StreamGraph | None = None,
    ) -> None:
        self.manifest, self.digest, self.size = manifest, digest, size
        self.backend, self.head = backend, head
        self.golden, self.stream = golden, stream
        self.declined = ""
        """Why the CPU computes although another provider was asked for."""
        self._faults: Outputs | None = None

    @classmethod
    def open(cls, path: Path, runtime: str | None = None, *, provider: str = CPU) -> Self:
        """Read, verify and load, for this `runtime` or for the first of the manifest's that is installed.

        A `provider` of ONNX Runtime (`auto`: cuda, if there is one) goes before that where it gives the golden scores.
        Raises `NoInputError` when there is no file, `BundleError` when a rule does not hold or no runtime is installed.
        """
        data = _read(path)
        try:
            manifest, members = verify(data)
            head = Head.from_arrays(manifest.scorer, unpack_arrays(members["head.npz"]))
            golden = unpack_arrays(members["golden.npz"])
            chosen = RUNTIMES[runtime or first_installed(manifest.runtimes)]
            backend = chosen.open(members[chosen.member])
            stream = open_stream(members["stream.onnx"]) if "stream.onnx" in members else None
            if stream and stream.window != manifest.window:
                raise BundleError(f"stream.onnx is for windows of {stream.window} samples, the manifest says {manifest.window}")
            proof = Golden(golden["x"], Outputs(*(golden[name] for name in OUTPUTS)), golden["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path}: an array is missing or of the wrong kind: {error}") from None
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        digest = hashlib.sha256(data).hexdigest()
        bundle = cls(manifest, digest, backend, head, proof, len(data), stream)
        if provider != CPU:
            bundle._hand_to(provider, members.get("model.onnx"))
        return bundle

    def _hand_to(self, provider: str, model: bytes | None) -> None:
        """Have the windows computed there, or say why not and leave everything as it is.

        A device that goes on watching is better than one that stops, and a number that is another one is worse than both.
        """
        usual = self.backend
        try:
            if model is None or "onnxruntime" not in self.manifest.runtimes or not installed("onnxruntime"):
                raise BundleError(f"{usual.name} runs this bundle, and providers are ONNX Runtime's")
            self.backend = OnnxBackend(model, "cuda" if provider == "auto" else provider)
            self.self_test()
        except Exception as error:  # what a driver says while it computes comes as one of ONNX Runtime's bare classes
            self.backend, self.declined = usual, f"{error}".partition("\n")[0]
            level = logging.INFO if provider == "auto" else logging.WARNING
            log.log(level, 'runtime.provider = "%s" is not used, the CPU computes: %s', provider, self.declined)

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.manifest.channels)

    @property
    def tolerance(self) -> float:
        """Of golden scores, for the runtime that it was opened with."""
        return self.manifest.golden_tolerances.get(self.backend.name, self.manifest.golden_tolerance)

    def self_test(self) -> SelfTest:
        """Replay the golden windows; raises `BundleError` when this machine computes something else."""
        x, wanted = self.golden.x, self.golden.score
        found = [run_in_slices(self.backend, x)]
        if self.stream:
            nowhere = np.zeros(len(x), np.int64)
            found.append(self.stream.start(1).run(Windows(nowhere, nowhere, x, fresh=np.ones(len(x), bool))))
        scores = [self.head.scorer.score(outputs) for outputs in found]
        worst = max(float(np.max(np.abs(score - wanted) / (1 + np.abs(wanted)), initial=0.0)) for score in scores)
        if not worst <= self.tolerance:
            raise BundleError(
                f"self-test failed: with {self._computed_by()} this machine's scores differ from the build machine's by "
                f"{worst:.2g}, {self.tolerance:.2g} is allowed; rebuild the bundle for this runtime and processor"
            )
        return SelfTest(worst, self.tolerance, self._computed_by())

    def _computed_by(self) -> str:
        return self.backend.name if self.backend.provider == CPU else f"{self.backend.name} on {self.backend.provider}"

    def smoother(self, hop: int, *, smooth: bool = True) -> Smoother:
        """Over scores of windows `hop` samples apart, at positions in nanoseconds."""
        manifest = self.manifest
        period_ns = 1e9 / manifest.rate_hz
        return Smoother(manifest.smoothing * period_ns * smooth, hop * period_ns, manifest.window * period_ns)

    def policy(self, alarm: AlarmConfig | None = None, head: Head | None = None, *, hop: int | None = None) -> AlarmPolicy:
        """What an alarm means with this head, or with the bundle's own; raises like `pipeline`."""
        head = head or self.head
        return AlarmPolicy.of(
            alarm or AlarmConfig(),
            calibrator=head.calibrator,
            tail=head.tail,
            length=self.manifest.window,
            hop=hop or self.manifest.hop,
            rate_hz=self.manifest.rate_hz,
        )

    def pipeline(
        self, alarm: AlarmConfig | None = None, *, hop: int | None = None, smooth: bool = True, health: bool = True
    ) -> Pipeline:
        """A pipeline for one stream.

        `hop` in samples overrides what the manifest says; without `smooth` each window is judged by itself, and without
        `health` a sensor is never to blame. Raises `ConfigError` when the alarm's threshold cannot be reached.
        """
        manifest, hop, alarm = self.manifest, hop or self.manifest.hop, alarm or AlarmConfig()
        return Pipeline(
            Windower(len(manifest.channels), manifest.rate_hz, manifest.window, hop, manifest.missing),
            self.backend,
            self.head,
            self.policy(alarm, hop=hop),
            self.smoother(hop, smooth=smooth),
            channels=self.channels,
            model=self.digest,
            stream=self.stream.start(hop) if self.stream and hop <= manifest.stream_hop else None,
            settle_s=alarm.settle_s,
            faults=self.faults,
            health=self.sensor_health(smooth=smooth) if health else None,
        )

    def sensor_health(self, *, smooth: bool = True) -> SensorHealth:
        manifest = self.manifest
        return SensorHealth(
            self.head.usual,
            len(manifest.channels),
            manifest.rate_hz,
            manifest.window,
            smoothing=manifest.smoothing * smooth,
            jitter_s=manifest.missing.jitter_s,
        )

    def faults(self) -> Outputs:
        """Of golden windows with all kinds of faults in them: what nobody must be able to forgive unawares. Computed once: it
        takes as long as hundreds of windows do."""
        if self._faults is None:
            x = np.tile(self.golden.x, (-(-FAULTS // len(self.golden.x)), 1, 1))[:FAULTS]
            self._faults = run_in_slices(self.backend, inject(x, usual_spread(self.golden.x), np.random.default_rng(3)))
        return self._faults


def self_tests(path: Path) -> list[SelfTest]:
    """Replay the golden windows with every runtime of the manifest that is installed; raises like `Bundle.self_test`."""
    manifest = verify(_read(path))[0]
    first_installed(manifest.runtimes)
    able = [name for name in manifest.runtimes if name in RUNTIMES and installed(name)]
    return [Bundle.open(path, runtime).self_test() for runtime in able]


def members_of(path: Path) -> dict[str, bytes]:
    """The verified members of a bundle, without its manifest; to make another bundle of them."""
    return verify(_read(path))[1]


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> str:
    """Write a bundle at once or not at all; returns its digest.

    `members` holds everything but the manifest, whose `files` are filled in here. The same input gives the same bytes.
    Raises `CannotCreateError`; ValueError for members that no reader would accept.
    """
    complete = _missing({"manifest.json", *members}) is None and members.keys() < MEMBERS.keys()
    if not complete or any(len(data) > MEMBERS[name] for name, data in members.items()) or _unfit(manifest, members):
        raise ValueError(f"not the members of a bundle: { {name: len(data) for name, data in members.items()} }")
    files = {name: FileSpec(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(members.items())}
    manifest = msgspec.structs.replace(manifest, files=files)
    everything = {"manifest.json": msgspec.json.format(msgspec.json.encode(manifest), indent=2), **members}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in (name for name in MEMBERS if name in everything):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), everything[name])
    with at_once(path) as draft:
        draft.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def pack_arrays(arrays: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """Arrays → bytes of an .npz without compression, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), inner.getvalue())
    return buffer.getvalue()


def pack_golden(golden: Golden) -> bytes:
    """golden.npz"""
    return pack_arrays({"x": golden.x, **golden.outputs.arrays(), "score": golden.score})


def pack_head(head: Head) -> bytes:
    """head.npz"""
    return pack_arrays(head.arrays())


def verify(data: bytes) -> tuple[Manifest, dict[str, bytes]]:
    """Rules 1 to 3 on the bytes of a bundle; raises `BundleError`. Nothing but the manifest is parsed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            for entry in entries:
                if entry.filename not in MEMBERS:
                    raise BundleError(f"unknown member {entry.filename!r}; not a bundle, or one of a newer format")
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
                    raise BundleError(f"{entry.filename} is compressed or encrypted; members of a bundle are stored")
                if entry.file_size > MEMBERS[entry.filename]:
                    raise BundleError(f"{entry.filename} has {entry.file_size} bytes; {MEMBERS[entry.filename]} is the limit")
            if len(set(names)) != len(names):
                raise BundleError("a member appears twice")
            if missing := _missing(set(names)):
                raise BundleError(f"{missing} is missing")
            members = {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"not a bundle, or a damaged one: {error}") from None
    manifest = _manifest(members.pop("manifest.json"))
    if set(manifest.files) != set(members):
        raise BundleError("the manifest does not name the members that are there")
    if unfit := _unfit(manifest, members):
        raise BundleError(unfit)
    for name, content in members.items():
        if len(content) != manifest.files[name].size or hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
            raise BundleError(f"{name} is not the file that the manifest names: damaged or tampered with")
    return manifest, members


def _missing(names: set[str]) -> str | None:
    """What a bundle of these members lacks."""
    required = set(MEMBERS) - MODELS - OPTIONAL - names
    if not MODELS & names:
        required.add(" or ".join(sorted(MODELS)))
    return ", ".join(sorted(required)) or None


def _unfit(manifest: Manifest, members: Mapping[str, bytes]) -> str | None:
    """What is wrong when the manifest names a runtime whose model is not there."""
    for name in manifest.runtimes:
        if name in RUNTIMES and RUNTIMES[name].member not in members:
            return f"manifest.json names {name}, but {RUNTIMES[name].member} is not there"
    return None


def _fits(file: IO[bytes], size: int, name: str) -> None:
    """A header may claim any shape, and numpy believes it before it looks for the bytes."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise BundleError(f"array {name}: version {version} of the format; 1.0 and 2.0 are read")
    shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise BundleError(f"array {name} claims {shape} of {dtype}, which are not the {size} bytes that are there")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such bundle; `amiss quantize RUN --out {path}` makes one") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BundleError(f"{path}: larger than any bundle may be ({MAX_BYTES} bytes)")
    return data


def _manifest(data: bytes) -> Manifest:
    try:
        schema = msgspec.json.decode(data, type=dict).get("schema")
        if schema != SCHEMA:
            raise BundleError(f"schema {schema}; this agent reads schema {SCHEMA}")
        manifest = msgspec.json.decode(data, type=Manifest)
        wanted = tuple(int(part) for part in manifest.minimum_agent.split("."))
    except (msgspec.MsgspecError, ValueError) as error:
        raise BundleError(f"manifest.json: {error}") from None
    if wanted > AGENT_VERSION:
        raise BundleError(f"made for agent {manifest.minimum_agent} or newer; this is {'.'.join(map(str, AGENT_VERSION))}")
    if not 0 <= manifest.missing.max_fill <= manifest.window:
        # What is filled is held in memory: a month's hole at 10 kHz would be all of it, long after the model was accepted.
        raise BundleError(
            f"manifest.json: fills holes of up to {manifest.missing.max_fill} samples; a window has {manifest.window}, "
            "and nothing that long can be filled"
        )
    try:
        parse(manifest.scorer)
    except ValueError as error:
        raise BundleError(f"manifest.json: {error}") from None
    return manifest


def unpack_arrays(data: bytes) -> dict[str, Float32]:
    """An .npz of finite float32 arrays; stored members only, so its size bounds what it unpacks to. Raises `BundleError`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise BundleError("arrays are compressed; those of a bundle are stored")
                with archive.open(entry) as file:
                    _fits(file, entry.file_size, entry.filename)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise BundleError(f"arrays cannot be read: {error}") from None
    for name, array in found.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise BundleError(f"array {name} is not finite float32")
    return found
