"""A TUF repository in a folder that any web server, bucket or stick can hold: read, verified, written.

    metadata/1.root.json …    who may sign what; each signed by a threshold of the keys of the one before and of its own
    metadata/timestamp.json   which snapshot is the newest; the only file whose name stays and whose content changes
    metadata/N.snapshot.json  which targets file is the newest, and its SHA-256
    metadata/N.targets.json   what is offered to whom, `edge.updating.offer.Offer`
    targets/SHA256.NAME       the bundles

Rules:

1. Nothing is believed because it lies here: every file is verified from 1.root.json on, as a device does it.
2. What is offered is what the newest N.targets.json says whose signature is good now. If there is none, because its key was
   replaced a moment ago, it is the one that the snapshot names, by the root that was in force then; it is signed anew.
3. Whatever needs a key is signed in memory before the first byte is written. Files are written whole (`edge.files.at_once`),
   what is named before what names it, the timestamp last: at every moment a reader finds the state of before or of after.
4. One writer at a time, by a lock.
"""

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from deploy.keyfiles import KeyRing, name_of
from edge.errors import AccessError, BusyError, CannotCreateError, NoInputError, UntrustedError
from edge.files import at_once
from edge.updating.fetch import DAYS_FIELD, SIGNED_FIELD

DAYS = {"root": 730, "targets": 365, "snapshot": 30, "timestamp": 7}
"""How long a signature lasts. A device that finds it expired keeps its model and takes no new one."""
NUMBER_FIELD = "x-amiss-number"
"""In targets: the highest number ever given, though it was withdrawn."""
KEPT = 8
"""Versions of snapshot and targets: a device that began to read a while ago still finds what it was told of."""
MOST_METADATA_BYTES = 1 << 20

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Written:
    """What a device that knew the state of before downloads of metadata."""

    sizes: dict[str, int] = field(default_factory=dict)
    """File name → bytes."""

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


class Repository:
    """Opened and verified; `settle` and `put_root` change it, inside `locked`.

    Raises `NoInputError` when there is none, `UntrustedError` when something in it is not signed as it must be.
    """

    def __init__(self, folder: Path, clock: Clock = utc_now) -> None:
        self.folder, self._clock = folder, clock
        self.metadata, self.bundles = folder / "metadata", folder / "targets"
        self._read_again()

    def _read_again(self) -> None:
        folder = self.folder
        if not (self.metadata / "1.root.json").exists():
            raise _none(folder)
        self.roots = self._chain()
        self.timestamp: Timestamp
        self.snapshot: Snapshot
        self.targets: Targets
        self.timestamp, self.timestamp_good = self._newest("timestamp", ["timestamp.json"])
        self.snapshot, self.snapshot_good = self._newest("snapshot", self._names("snapshot"))
        self.targets, self.targets_good = self._offered()

    @property
    def root(self) -> Root:
        return self.roots[-1].signed

    @property
    def now(self) -> datetime:
        return self._clock()

    def signed(self, role: str) -> Signed:
        return {"root": self.root, "targets": self.targets, "snapshot": self.snapshot, "timestamp": self.timestamp}[role]

    def good(self, role: str) -> bool:
        """Signed by keys that are in force now, though it may have expired."""
        return {"targets": self.targets_good, "snapshot": self.snapshot_good, "timestamp": self.timestamp_good}.get(role, True)

    def days(self, role: str, asked: Mapping[str, float] = {}) -> float:
        stored = self.root.unrecognized_fields.get(DAYS_FIELD, {})
        return float(asked.get(role, stored.get(role, DAYS[role])))

    def left(self, role: str) -> timedelta:
        return self.signed(role).expires - self.now

    def due(self, role: str, part: float = 0.5) -> bool:
        """Is less than this part of its time left?"""
        return self.left(role) < timedelta(days=self.days(role)) * part

    def settle(
        self,
        ring: KeyRing,
        targets: Targets | None = None,
        days: Mapping[str, float] = {},
        *,
        bundles: Mapping[str, bytes] = {},
        hand_over: bool = False,
    ) -> Written:
        """Sign and write what has changed, is not signed by keys in force, or expires before long; the timestamp always.

        `targets`: what is offered from now on, if something else; `bundles`: files that it names, which are written when all is
        signed. `hand_over`: only that, for somebody else's `settle`, where the keys of snapshot and timestamp are. Raises
        `NoInputError` or `AccessError` when a key is missing or does not open; then nothing was written.
        """
        self.refuse_expired_root()
        written: dict[str, bytes] = {}
        # Renewing without a change needs the publisher's key: done where it is at hand, elsewhere there is a warning in time.
        renew = self.due("targets", 1 / 3) and self._at_hand("targets", ring)
        if targets is not None or not self.targets_good or renew:
            new = deepcopy(self.targets if targets is None else targets)
            data = self._sign(new, ring, days)
            written[self._name(new)] = data
        else:
            new = self.targets
        if not hand_over:
            self._sign_online(new, written, ring, days)
        for name, data in bundles.items():
            with at_once(self.bundles / name) as draft:
                draft.write_bytes(data)
        for name, data in written.items():  # in this order: the timestamp is the last
            with at_once(self.metadata / name) as draft:
                draft.write_bytes(data)
        self._read_again()
        return Written({name: len(data) for name, data in written.items()})

    def put_root(self, root: Metadata[Root]) -> None:
        """The next root, complete; whoever reads now meets it with the rest still signed as before."""
        with at_once(self.metadata / f"{root.signed.version}.root.json") as draft:
            draft.write_bytes(root.to_bytes())
        self._read_again()

    def prune(self) -> list[str]:
        """Remove old metadata, and bundles that no metadata names any more; what was removed."""
        gone: list[Path] = []
        # Counted from what is good: files that somebody has put there under high numbers must not drive that out.
        for role in ("snapshot", "targets"):
            gone += [self.metadata / name for name in self._names(role) if _version(name) <= self.signed(role).version - KEPT]
        named = set()
        for name in (name for name in self._names("targets") if self.metadata / name not in gone):
            with contextlib.suppress(UntrustedError):
                for target in _targets(self._read(name)).targets.values():
                    named |= set(target.get_prefixed_paths())
        if self.bundles.is_dir():
            gone += [path for path in self.bundles.iterdir() if path.name not in named and path.suffix == ".amiss"]
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink()
        return [path.name for path in gone]

    def refuse_expired_root(self) -> None:
        if self.left("root") <= timedelta(0):
            raise AccessError(
                f"{self.folder}: root {self.root.version} has expired on {self.root.expires:%Y-%m-%d}; with two root keys at "
                f"hand, `amiss keys rotate --repo {self.folder}` renews it"
            )

    def files(self) -> dict[str, bytes]:
        """The metadata that readers need now: every root, the newest targets and snapshot, the timestamp, in this order."""
        names = [f"{root.signed.version}.root.json" for root in self.roots]
        targets = self.snapshot.meta["targets.json"].version
        names += [f"{targets}.targets.json", f"{self.timestamp.snapshot_meta.version}.snapshot.json", "timestamp.json"]
        return {name: self._read(name) for name in names}

    def published(self) -> Targets:
        """What readers are told now; `targets` may be newer, when its publisher has only handed it over."""
        version = self.snapshot.meta["targets.json"].version
        return self.targets if version == self.targets.version else _targets(self._read(f"{version}.targets.json"))

    def signers(self, role: str) -> list[str]:
        """Names of the keys, in force now, that have signed what is there of a role."""
        signed = self.signed(role)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        metadata: Metadata[Any] = Metadata.from_bytes(self._read(name))
        result = self.root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        return sorted(map(name_of, result.signed.values()))

    def _at_hand(self, role: str, ring: KeyRing) -> bool:
        found = self.root.roles[role]
        return sum(keyid in ring.files for keyid in found.keyids) >= found.threshold

    def _sign_online(self, targets: Targets, written: dict[str, bytes], ring: KeyRing, days: Mapping[str, float]) -> None:
        name = self._name(targets)
        data = written.get(name) or self._read(name)
        snapshot, bytes_of = self.snapshot, self._read(self._name(self.snapshot))
        named = MetaFile.from_data(targets.version, data, ["sha256"])
        if named != snapshot.meta["targets.json"] or not self.snapshot_good or self.due("snapshot"):
            snapshot = deepcopy(snapshot)
            snapshot.meta["targets.json"] = named
            bytes_of = self._sign(snapshot, ring, days)
            written[self._name(snapshot)] = bytes_of
        timestamp = deepcopy(self.timestamp)
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, bytes_of, ["sha256"])
        written["timestamp.json"] = self._sign(timestamp, ring, days)

    def _sign(self, signed: Targets | Snapshot | Timestamp, ring: KeyRing, days: Mapping[str, float]) -> bytes:
        """The next version of it."""
        signed.version += 1
        date(signed, self.now, self.days(signed.type, days))
        return sign(signed, self.root, ring)

    @staticmethod
    def _name(signed: Signed) -> str:
        return f"{signed.version}.{signed.type}.json"

    def _names(self, role: str) -> list[str]:
        """Newest first."""
        pattern = rf"[1-9]\d{{0,9}}\.{role}\.json"
        names = [path.name for path in self.metadata.iterdir() if re.fullmatch(pattern, path.name)]
        return sorted(names, key=_version, reverse=True)

    def _read(self, name: str) -> bytes:
        try:
            with (self.metadata / name).open("rb") as file:
                data = file.read(MOST_METADATA_BYTES + 1)
        except OSError as error:
            raise UntrustedError(
                f"{self.metadata / name}: cannot be read: {error.strerror}; bring the repository back from a copy"
            ) from None
        if len(data) > MOST_METADATA_BYTES:
            raise UntrustedError(f"{self.metadata / name}: no metadata of ours is that large; bring it back from a copy")
        return data

    def _chain(self) -> list[Metadata[Root]]:
        roots: list[Metadata[Root]] = []
        while (self.metadata / f"{len(roots) + 1}.root.json").exists():
            name = f"{len(roots) + 1}.root.json"
            root = parse_root(self._read(name), str(self.metadata / name))
            previous = roots[-1].signed if roots else None
            if root.signed.version != len(roots) + 1 or not complete(previous, root):
                raise UntrustedError(
                    f"{self.metadata / name}: not signed by as many keys as it takes; bring it back from a copy"
                )
            roots.append(root)
        return roots

    def _newest(self, role: str, names: list[str]) -> tuple[Any, bool]:
        """The newest with a good signature; if none has one now, the newest that had one under an earlier root."""
        for root in reversed(self.roots):
            for name in names:
                if (signed := self._verified(role, name, root.signed)) is not None:
                    return signed, root is self.roots[-1]
        raise UntrustedError(
            f"{self.metadata}: no {role} metadata with a good signature; bring the repository back from a copy"
        )

    def _verified(self, role: str, name: str, root: Root) -> Any:
        try:
            found: Metadata[Any] = Metadata.from_bytes(self._read(name))
            root.verify_delegate(role, found.signed_bytes, found.signatures)
        except (DeserializationError, UnsignedMetadataError, UntrustedError):
            return None
        return found.signed if found.signed.type == role and name in (self._name(found.signed), f"{role}.json") else None

    def _offered(self) -> tuple[Targets, bool]:
        for name in self._names("targets"):
            if (targets := self._verified("targets", name, self.root)) is not None:
                return targets, True
        meta = self.snapshot.meta["targets.json"]
        name = f"{meta.version}.targets.json"
        try:
            meta.verify_length_and_hashes(self._read(name))
        except RepositoryError:
            where = self.metadata / name
            raise UntrustedError(f"{where} is not the file that the snapshot names; bring it back from a copy") from None
        return self._newest("targets", [name])[0], False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else writes meanwhile. Raises `BusyError` when somebody else does, `NoInputError` when there is no such folder."""
    try:
        file = (folder / ".lock").open("wb")
    except FileNotFoundError:
        raise _none(folder) from None
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"{folder}: somebody else is publishing there now; try again when that is done") from None
        yield


def date(signed: Targets | Snapshot | Timestamp, now: datetime, days: float) -> None:
    """When it expires, and when it was signed, from which a device with a wrong clock learns how late it is at least."""
    signed.expires = (now + timedelta(days=days)).replace(microsecond=0)
    if signed.type != "snapshot":
        signed.unrecognized_fields[SIGNED_FIELD] = f"{now:%Y-%m-%dT%H:%M:%SZ}"


def sign(signed: Targets | Snapshot | Timestamp, root: Root, ring: KeyRing) -> bytes:
    """Signed by as many keys of its role as the root wants; raises `NoInputError` or `AccessError` for a key."""
    metadata: Metadata[Any] = Metadata(signed)
    role = root.roles[signed.type]
    keys = sorted((root.get_key(keyid) for keyid in role.keyids), key=lambda key: not ring.has(key))
    for key in keys[: role.threshold]:
        metadata.sign(ring.signer(key), append=True)
    root.verify_delegate(signed.type, metadata.signed_bytes, metadata.signatures)
    return metadata.to_bytes()


def complete(previous: Root | None, root: Metadata[Root]) -> bool:
    """Has a root the signatures of the one before and its own?"""
    return root.signed.get_root_verification_result(previous, root.signed_bytes, root.signatures).verified


def parse_root(data: bytes, where: str) -> Metadata[Root]:
    """Raises `UntrustedError` for what is no root metadata; no signature is looked at."""
    try:
        found: Metadata[Root] = Metadata.from_bytes(data)
    except DeserializationError:
        raise UntrustedError(f"{where}: no TUF metadata, or damaged; bring it back from a copy") from None
    if found.signed.type != "root":
        raise UntrustedError(f"{where}: is {found.signed.type} metadata and no root; bring it back from a copy")
    return found


def create(folder: Path, root: Root, ring: KeyRing, clock: Clock = utc_now) -> Repository:
    """A new, empty repository, signed by every key of `root`. Raises `CannotCreateError`."""
    signed = Metadata(root)
    for keyid in root.roles["root"].keyids:
        signed.sign(ring.signer(root.get_key(keyid)), append=True)
    days = root.unrecognized_fields[DAYS_FIELD]

    def dated(part: Targets | Snapshot | Timestamp) -> bytes:
        date(part, clock(), float(days[part.type]))
        return sign(part, root, ring)

    targets = dated(Targets(unrecognized_fields={NUMBER_FIELD: 0}))
    snapshot = dated(Snapshot(meta={"targets.json": MetaFile.from_data(1, targets, ["sha256"])}))
    timestamp = dated(Timestamp(snapshot_meta=MetaFile.from_data(1, snapshot, ["sha256"])))
    files = {
        "1.targets.json": targets,
        "1.snapshot.json": snapshot,
        "timestamp.json": timestamp,
        "1.root.json": signed.to_bytes(),  # the last: with it there is a repository
    }
    try:
        (folder / "targets").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written: {error.strerror or error}") from None
    for name, data in files.items():
        with at_once(folder / "metadata" / name) as draft:
            draft.write_bytes(data)
    return Repository(folder, clock)


def _none(folder: Path) -> NoInputError:
    return NoInputError(f"{folder}: no repository of models; `amiss keys init --repo {folder}` makes one")


def _version(name: str) -> int:
    return int(name.partition(".")[0])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _targets(data: bytes) -> Targets:
    try:
        found: Metadata[Targets] = Metadata.from_bytes(data)
    except DeserializationError:
        raise UntrustedError("no TUF metadata, or damaged") from None
    return found.signed
