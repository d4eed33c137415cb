"""Offer models to devices: put a bundle into the repository, say who it is for, take it back, keep the signatures fresh.

A bundle is proven before it is offered, as a device would: every rule of `edge.bundle`, and its golden windows. What the
metadata says of it is taken from its manifest, so that a device can refuse what does not fit before it downloads.
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile, Targets

from deploy.keyfiles import ROLES, KeyRing
from deploy.keys import warning
from deploy.repository import NUMBER_FIELD, Clock, Repository, locked, utc_now
from edge.bundle import Bundle, self_tests
from edge.errors import BundleError, DataError, NoInputError, UsageError
from edge.updating.offer import Offer, custom, from_custom

METADATA_BUDGET_BYTES = 2_000
"""What a device should download of metadata to learn of a new model."""


@dataclass(slots=True)
class Published:
    """What was done, for people and for programs."""

    offer: Offer | None = None
    metadata_bytes: int = 0
    """What a device that knew the state of before downloads to learn of this one."""
    superseded: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        return {
            "offer": msgspec.to_builtins(self.offer),
            "metadata_bytes": self.metadata_bytes,
            "superseded": list(self.superseded),
        }


def publish(
    bundle: Path,
    folder: Path,
    ring: KeyRing,
    *,
    groups: Sequence[str] = (),
    devices: Sequence[str] = (),
    note: str = "",
    days: Mapping[str, float] = {},
    number: int = 0,
    keep: bool = False,
    again: bool = False,
    hold: bool = False,
    hand_over: bool = False,
    clock: Clock = utc_now,
) -> Published:
    """Offer a bundle to these groups and devices, or to all.

    It takes the place of earlier versions for the same devices, unless `keep`. The very same offer is not made twice, unless
    `again`: then it has a new number, and devices that left it come back. With `hold` only devices take it that are asked to,
    as `amiss fleet rollout` does, and everything else stays; offered without it later, it keeps its number. `number`: at least
    this one. `hand_over`: sign with
    the targets key only; `refresh` puts it in force where the other keys are.

    Raises `NoInputError`, `BundleError` (no bundle, or this machine computes something else), `DataError` (a version that is
    there with other bytes, or a name that is none), and what `Repository.settle` raises; then readers notice nothing.
    """
    data, offer = examine(bundle, groups, devices, note)
    offer = msgspec.structs.replace(offer, held=hold)
    with locked(folder):
        repository = Repository(folder, clock)
        repository.refuse_expired_root()
        targets = deepcopy(repository.targets)
        _refuse_other_bytes(repository, offer)
        there = offers(targets).get(offer.path)
        highest = max(int(targets.unrecognized_fields.get(NUMBER_FIELD, 0)), *(o.number for o in offers(targets).values()), 0)
        let_go = there is not None and there.held and not hold and not again and number <= there.number
        offer = msgspec.structs.replace(offer, number=there.number if there and let_go else max(highest + 1, number))
        if there is not None and not again and msgspec.structs.replace(offer, number=there.number) == there and not number:
            written = repository.settle(ring, days=days, hand_over=hand_over)  # ends what was begun, too
            result = Published(there, written.total)
            result.lines = [f"{there.path} is offered already, as number {there.number}; --again offers it anew"]
            return result
        there_now = offers(targets).items()
        older = [path for path, other in there_now if other.number <= offer.number and _supersedes(offer, other)]
        gone = [] if keep or hold else older
        for path in gone:
            del targets.targets[path]
        targets.targets[offer.path] = _target(offer, data)
        targets.unrecognized_fields[NUMBER_FIELD] = offer.number
        file = repository.bundles / targets.targets[offer.path].get_prefixed_paths()[0]
        bundles = {} if file.exists() and file.read_bytes() == data else {file.name: data}
        written = repository.settle(ring, targets, days, bundles=bundles, hand_over=hand_over)
        repository.prune()
    result = Published(offer, written.total, tuple(path for path in gone if path != offer.path))
    audience = _audience(offer)
    result.lines = [
        f"{offer.path} is {'held for' if hold else 'offered to'} {audience} as number {offer.number} "
        f"({offer.size} bytes, {offer.digest[:16]}…)",
        *(f"{path} is no longer offered" for path in result.superseded),
        f"to learn of it a device downloads {result.metadata_bytes} bytes of metadata ({_sizes(repository)})",
    ]
    if result.metadata_bytes > METADATA_BUDGET_BYTES:
        result.lines.append(
            f"that is more than {METADATA_BUDGET_BYTES}: {len(targets.targets)} models are offered; withdraw what nobody needs"
        )
    if hand_over:
        result.lines = [
            f"{offer.path} is signed as number {offer.number}; `amiss publish --refresh` puts it in force where the "
            "keys of snapshot and timestamp are"
        ]
    return result


def withdraw(
    what: str, folder: Path, ring: KeyRing, *, days: Mapping[str, float] = {}, hand_over: bool = False, clock: Clock = utc_now
) -> Published:
    """Offer NAME-VERSION no more, and delete it. Devices that run it go on with it until another is offered.

    Raises `NoInputError` when it is not offered, and what `Repository.settle` raises.
    """
    with locked(folder):
        repository = Repository(folder, clock)
        targets = deepcopy(repository.targets)
        path = what if what.endswith(".amiss") else f"{what}.amiss"
        if path not in targets.targets:
            there = ", ".join(sorted(targets.targets)) or "nothing"
            raise NoInputError(f"{path} is not offered by {folder}; {there} is")
        highest = max(int(targets.unrecognized_fields.get(NUMBER_FIELD, 0)), *(o.number for o in offers(targets).values()), 0)
        targets.unrecognized_fields[NUMBER_FIELD] = highest
        target = targets.targets.pop(path)
        written = repository.settle(ring, targets, days, hand_over=hand_over)
        if not hand_over:
            for file in target.get_prefixed_paths():
                (repository.bundles / file).unlink(missing_ok=True)
        repository.prune()
    result = Published(metadata_bytes=written.total)
    result.lines = [f"{path} is no longer offered; devices that run it go on with it until another is offered"]
    return result


def refresh(folder: Path, ring: KeyRing, *, days: Mapping[str, float] = {}, clock: Clock = utc_now) -> Published:
    """A new timestamp, and whatever else is due, was handed over, or has lost its signature with a key."""
    with locked(folder):
        repository = Repository(folder, clock)
        written = repository.settle(ring, days=days)
        repository.prune()
    result = Published(metadata_bytes=written.total)
    until = f"{repository.timestamp.expires:%Y-%m-%d %H:%M} UTC"
    result.lines = [f"{folder}: renewed {', '.join(written.sizes)}; good until {until}"]
    result.lines += [f"WARNING: {role}: {text}" for role in ROLES if (text := warning(repository, role))]
    return result


def held(folder: Path, what: str) -> Offer:
    """The offer NAME-VERSION, as it is in force, for a roll-out. Raises `NoInputError` when there is none that is held."""
    known = offers(Repository(folder).published())
    offer = known.get(what if what.endswith(".amiss") else f"{what}.amiss")
    if offer is None:
        there = ", ".join(sorted(path.removesuffix(".amiss") for path in known)) or "nothing"
        raise NoInputError(f"{what} is not offered by {folder}; {there} is")
    if not offer.held:
        raise NoInputError(f"{what} is offered to everybody it is for: devices take it as they look; publish it with --hold")
    return offer


def provenance(folder: Path, digest: str, clock: Clock = utc_now) -> tuple[Path | None, dict[str, Any]]:
    """From a model's digest, or its first eight or more characters, to its file in this repository and who signed what of it.

    The file is None when somebody has deleted it. Raises `NoInputError` when no model of that digest is offered here.
    """
    repository = Repository(folder, clock)
    found = [offer for offer in offers(repository.published()).values() if offer.digest.startswith(digest)]
    if len(digest) < 8 or len(found) != 1:
        raise NoInputError(
            f"{digest[:16]}: {'several models' if found else 'no model'} of that digest in {folder}; `amiss publish --list` "
            "shows what is offered"
        )
    (offer,) = found
    file = repository.bundles / f"{offer.digest}.{offer.path}"
    data = {
        "number": offer.number,
        "audience": _audience(offer) + (", held" if offer.held else ""),
        "note": offer.note,
        "signatures": {role: {"version": repository.signed(role).version, "keys": repository.signers(role)} for role in ROLES},
    }
    return (file if file.is_file() else None), data


def listing(folder: Path, clock: Clock = utc_now) -> dict[str, Any]:
    """What is offered to whom, and until when everything is good."""
    repository = Repository(folder, clock)
    published = repository.published()
    return {
        "offers": [msgspec.to_builtins(offer) for offer in sorted(offers(published).values(), key=lambda offer: -offer.number)],
        "waiting": sorted(repository.targets.targets.keys() - published.targets.keys()),
        "highest_number": int(repository.targets.unrecognized_fields.get(NUMBER_FIELD, 0)),
        "metadata_bytes": sum(len(data) for name, data in repository.files().items() if not name.endswith("root.json")),
        "roles": [
            {
                "role": role,
                "version": repository.signed(role).version,
                "expires": f"{repository.signed(role).expires:%Y-%m-%dT%H:%M:%SZ}",
                "days_left": round(repository.left(role) / timedelta(days=1), 1),
                "warning": warning(repository, role),
            }
            for role in ROLES
        ],
    }


def listing_lines(data: dict[str, Any]) -> list[str]:
    lines = [f"{'number':>6}  {'model':32}  {'bytes':>9}  for"] if data["offers"] else ["nothing is offered"]
    for item in data["offers"]:
        offer = msgspec.convert(item, Offer)
        title = offer.path.removesuffix(".amiss")
        audience = _audience(offer) + (", held" if offer.held else "")
        lines.append(f"{offer.number:6}  {title:32}  {offer.size:9}  {audience}  {offer.note}".rstrip())
    if data["waiting"]:
        lines.append(f"handed over and not in force yet: {', '.join(data['waiting'])}")
    lines.append(f"metadata {data['metadata_bytes']} bytes")
    lines += [
        f"{row['role']:9}  version {row['version']}, until {row['expires']}, {row['days_left']:g} days"
        + (f"  WARNING: {row['warning']}" if row["warning"] else "")
        for row in data["roles"]
    ]
    return lines


def examine(bundle: Path, groups: Sequence[str], devices: Sequence[str], note: str) -> tuple[bytes, Offer]:
    """Prove a bundle on this machine; its bytes, and what is said of it (its number is not known yet)."""
    opened = Bundle.open(bundle)
    try:
        self_tests(bundle)
    except BundleError as error:
        raise BundleError(f"{bundle}: {error}") from None
    data = bundle.read_bytes()
    if hashlib.sha256(data).hexdigest() != opened.digest:
        raise DataError(f"{bundle}: was changed while it was read; publish it again when nobody writes it")
    manifest = opened.manifest
    if manifest.learn_minutes:
        raise DataError(
            f"{bundle}: is a starter, which knows no machine; devices would forget theirs. Train a model on recordings, "
            "or fit this one to some with `amiss commission`"
        )
    offer = Offer(
        number=1,
        name=manifest.name,
        version=manifest.version,
        schema=manifest.schema,
        minimum_agent=manifest.minimum_agent,
        channels=manifest.channels,
        rate_hz=manifest.rate_hz,
        runtimes=manifest.runtimes,
        digest=opened.digest,
        size=len(data),
        groups=tuple(sorted(set(groups))),
        devices=tuple(sorted(set(devices))),
        created=manifest.created,
        note=note,
    )
    try:  # what a device would not take is better known before it is signed
        from_custom(custom(offer))
        _ = offer.path
    except msgspec.ValidationError as error:
        raise UsageError(f"{bundle}: cannot be offered like that: {error}") from None
    except ValueError as error:
        raise DataError(f"{bundle}: {error}; name it otherwise when it is made") from None
    return data, offer


def offers(targets: Targets) -> dict[str, Offer]:
    """Path → what is said of it; targets that are not ours are left out."""
    found = {}
    for path, target in targets.targets.items():
        try:
            found[path] = from_custom(target.custom)
        except msgspec.ValidationError:
            continue
    return found


def _target(offer: Offer, data: bytes) -> TargetFile:
    target = TargetFile.from_data(offer.path, data, ["sha256"])
    target.unrecognized_fields["custom"] = _without_empty(custom(offer))
    return target


def _without_empty(data: Any) -> Any:
    """What is empty need not be said: it would be in every device's download."""
    if isinstance(data, dict):
        return {key: _without_empty(value) for key, value in data.items() if value is not False and value not in ("", [], ())}
    return [_without_empty(value) for value in data] if isinstance(data, list | tuple) else data


def _refuse_other_bytes(repository: Repository, offer: Offer) -> None:
    known = {target.path: next(iter(target.hashes.values())) for target in repository.targets.targets.values()}
    on_disk = {path.name.partition(".")[2]: path.name.partition(".")[0] for path in repository.bundles.glob("*.amiss")}
    digest = {**on_disk, **known}.get(offer.path, offer.digest)
    if digest != offer.digest:
        raise DataError(
            f"{offer.path} is there with other bytes ({digest[:16]}…, now {offer.digest[:16]}…); a version never changes: make "
            "the bundle with a higher one"
        )


def _supersedes(new: Offer, old: Offer) -> bool:
    """Is there no device left that `old` would be for, and `new` not?"""

    def shape(offer: Offer) -> tuple[Any, ...]:
        return (offer.name, offer.schema, offer.channels, offer.rate_hz, offer.groups, offer.devices)

    def agent(offer: Offer) -> tuple[int, ...]:
        return tuple(int(part) for part in offer.minimum_agent.split("."))

    return shape(new) == shape(old) and agent(new) <= agent(old) and set(old.runtimes) <= set(new.runtimes)


def _sizes(repository: Repository) -> str:
    sizes = {name.removesuffix(".json").rpartition(".")[2]: len(data) for name, data in repository.files().items()}
    return ", ".join(f"{role} {sizes[role]}" for role in ("timestamp", "snapshot", "targets"))


def _audience(offer: Offer) -> str:
    parts = [f"group {name}" for name in offer.groups] + [f"device {name}" for name in offer.devices]
    return ", ".join(parts) or "all devices"
