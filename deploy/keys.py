"""Who may sign models: made, replaced, taken away. Every change of keys is a new root, signed by two of the three root keys.

    init    six keys and an empty repository
    rotate  other keys in place of some, and a root that says so; without names only another two years
    revoke  the same for keys that somebody else may have: they sign nothing more, and what is offered is shown for a look
    sign    the signature of a root key that is kept elsewhere, on the draft that the others have begun

A root that has not all signatures yet waits as `root.draft.json` beside the metadata, where no device looks. It travels on a
stick, with the root before it, so that `sign` can show, far from the repository, what it is that gets signed.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Key, Metadata, Root

from deploy.keyfiles import ONLINE, PLACES, ROLES, KeyRing, NewKey, Passphrases, name_of, role_of
from deploy.repository import DAYS, Clock, Repository, complete, create, locked, parse_root, utc_now
from edge.errors import CannotCreateError, DataError, GateError, NoInputError, UntrustedError, UsageError
from edge.files import at_once
from edge.updating.fetch import DAYS_FIELD

ROOT_KEYS, THRESHOLD = 3, 2
DRAFT = "root.draft.json"


@dataclass(slots=True)
class Change:
    """What was done, for people and for programs."""

    root: int
    """Version of the root that is in force now."""
    made: dict[str, str] = field(default_factory=dict)
    """New keys: name → file."""
    lines: list[str] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        return {"root": self.root, "made": self.made}


def init(
    folder: Path,
    keys: Path,
    passphrases: Passphrases,
    *,
    days: Mapping[str, float] = {},
    unencrypted_online: bool = False,
    clock: Clock = utc_now,
) -> Change:
    """Make all keys and an empty repository.

    `unencrypted_online`: the keys of snapshot and timestamp are written as they are, for a computer that signs by itself.
    Raises `CannotCreateError` when there are keys or a repository already, `AccessError` without a passphrase.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written: {error.strerror}") from None
    with locked(folder):
        if any((folder / "metadata").glob("*")):
            raise CannotCreateError(f"{folder} holds a repository already; say another --repo, or `amiss keys rotate`")
        names = [f"root-{i}" for i in range(1, ROOT_KEYS + 1)] + [f"{role}-1" for role in ROLES[1:]]
        if there := [name for name in names if (keys / f"{name}.pem").exists()]:
            raise CannotCreateError(f"{keys / there[0]}.pem is there, and a key is never overwritten; name another --keys")
        ring = KeyRing([], passphrases)
        root = Root(
            expires=clock().replace(microsecond=0) + timedelta(days=float({**DAYS, **days}["root"])),
            consistent_snapshot=True,
            unrecognized_fields={DAYS_FIELD: {role: _number(given) for role, given in {**DAYS, **days}.items()}},
        )
        change = Change(1)
        # All passphrases are known before the first file is written.
        made = [NewKey.make(name, _unless(unencrypted_online, role_of(name), passphrases)) for name in names]
        _write(made, root, keys, ring, change)
        root.roles["root"].threshold = THRESHOLD
        create(folder, root, ring, clock)
    change.lines += [
        f"{folder}: an empty repository, signed",
        f"take {folder / 'metadata' / '1.root.json'} to each device as /etc/amiss/root.json; no secret, but must be that one",
        f"now take the keys where they belong, two copies of each root key, and leave none of root's in {keys}",
    ]
    return change


def rotate(
    folder: Path,
    ring: KeyRing,
    names: Sequence[str],
    new_keys: Path,
    passphrases: Passphrases,
    *,
    revoked: bool = False,
    days: Mapping[str, float] = {},
    unencrypted_online: bool = False,
    clock: Clock = utc_now,
) -> Change:
    """Put new keys in the place of `names`; none: the same keys for another while.

    `revoked`: the old ones sign nothing more, not even this. Raises `GateError` when root keys are missing here: the draft says
    which; `UsageError` for names that are none, `NoInputError` and `AccessError` when a key is missing or does not open.
    """
    with locked(folder):
        repository = Repository(folder, clock)
        if (folder / DRAFT).exists():
            raise CannotCreateError(
                f"{folder / DRAFT}: a change of keys waits for signatures; `amiss keys sign` ends it, deleting it drops it"
            )
        old = repository.root
        by_name = {name_of(old.keys[keyid]): (role, keyid) for role in ROLES for keyid in old.roles[role].keyids}
        for name in names:
            if name not in by_name:
                near = difflib.get_close_matches(name, by_name, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(by_name)}"
                raise UsageError(f"no key `{name}` in root {old.version}; {hint}")
        root = deepcopy(old)
        root.version += 1
        root.expires = (clock() + timedelta(days=repository.days("root", days))).replace(microsecond=0)
        root.unrecognized_fields[DAYS_FIELD] = {role: _number(repository.days(role, days)) for role in ROLES}
        # Opened before anything is made, so that a wrong passphrase leaves nothing behind.
        lost = {by_name[name][1] for name in names} if revoked else set()
        able = [old.get_key(keyid) for keyid in old.roles["root"].keyids if keyid not in lost]
        signers = [ring.signer(key) for key in able if ring.has(key)]
        change = Change(root.version)
        made: list[NewKey] = []
        for name in dict.fromkeys(names):
            role, keyid = by_name[name]
            root.revoke_key(keyid, role)
            new_name = _next_name(repository, [key.name for key in made], role)
            made.append(NewKey.make(new_name, _unless(unencrypted_online, role, passphrases)))
        _write(made, root, new_keys, ring, change)
        new = [keyid for keyid in root.roles["root"].keyids if keyid not in old.roles["root"].keyids]
        signers += [ring.signer(root.get_key(keyid)) for keyid in new]
        metadata = Metadata(root)
        for signer in signers:
            metadata.sign(signer, append=True)
        return _go_on(folder, metadata, repository, ring, change, revoked=revoked)


def sign(draft: Path, ring: KeyRing, folder: Path | None = None, clock: Clock = utc_now) -> Change:
    """Add the signatures of the root keys at hand to a draft; with `folder`, and once they suffice, put it in force there.

    Raises `NoInputError` without a draft or a key for it, `GateError` while signatures are missing, `UntrustedError` for a
    draft that does not belong to the repository, or that begins from a root which nobody has signed.
    """
    previous, root = _read_draft(draft)
    able = {keyid: signed.get_key(keyid) for signed in (previous.signed, root.signed) for keyid in signed.roles["root"].keyids}
    mine = [key for key in able.values() if ring.has(key) and key.keyid not in root.signatures]
    if not mine and not complete(previous.signed, root):
        where = ", ".join(map(str, ring.places)) or "--keys"
        raise NoInputError(f"no root key in {where} that has not signed yet; {_missing(previous.signed, root)}")
    change = Change(previous.signed.version, lines=_differences(previous.signed, root.signed))
    for key in mine:
        root.sign(ring.signer(key), append=True)
    if folder is None:
        _write_draft(draft, previous, root)
        if not complete(previous.signed, root):
            raise GateError(f"{draft}: signed, not enough yet: {_missing(previous.signed, root)}")
        change.lines.append(f"{draft} has all signatures; take it back: amiss keys sign {draft} --repo DIR")
        return change
    with locked(folder):
        repository = Repository(folder, clock)
        if previous.signed != repository.root:
            raise UntrustedError(f"{draft}: begun from another root than that in force in {folder}; delete it and rotate again")
        change.root = root.signed.version
        result = _go_on(folder, root, repository, ring, change, revoked=False)
    draft.unlink(missing_ok=True)
    return result


def overview(folder: Path, places: Sequence[Path], clock: Clock = utc_now) -> list[dict[str, Any]]:
    """Role by role: threshold, expiry, keys, and where they are among `places`."""
    repository = Repository(folder, clock)
    ring = KeyRing([place for place in places if place.exists()], Passphrases())
    rows = []
    for role in ROLES:
        found = repository.root.roles[role]
        keys = []
        for key in (repository.root.get_key(keyid) for keyid in found.keyids):
            file = ring.files.get(key.keyid)
            keys.append(
                {
                    "name": name_of(key),
                    "id": key.keyid,
                    "file": str(file.path) if file else None,
                    "encrypted": file.encrypted if file else None,
                }
            )
        left = repository.left(role)
        rows.append(
            {
                "role": role,
                "version": repository.signed(role).version,
                "threshold": found.threshold,
                "expires": f"{repository.signed(role).expires:%Y-%m-%dT%H:%M:%SZ}",
                "days_left": round(left.total_seconds() / 86400, 1),
                "warning": warning(repository, role),
                "keys": keys,
            }
        )
    return rows


def overview_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        lines.append(
            f"{row['role']:9}  version {row['version']}, {row['threshold']} of {len(row['keys'])} keys, "
            f"until {row['expires'][:10]}" + (f"  WARNING: {row['warning']}" if row["warning"] else "")
        )
        for key in row["keys"]:
            where = "not here" if key["file"] is None else key["file"] + ("" if key["encrypted"] else ", not encrypted")
            lines.append(f"  {key['name']:12} {key['id'][:16]}…  {where}")
    return lines


def warning(repository: Repository, role: str) -> str:
    """What is to be done before long, and how; empty: nothing."""
    folder = repository.folder
    cure = {
        "root": f"amiss keys rotate --repo {folder}, with two root keys",
        "targets": f"amiss publish --refresh --repo {folder}, with the targets key",
    }.get(role, f"amiss publish --refresh --repo {folder}; is the timer running?")
    if not repository.good(role):
        return f"signed by a key that is no longer in force: amiss publish --refresh --repo {folder}"
    if repository.left(role) <= timedelta(0):
        return f"expired, devices take nothing new: {cure}"
    # Snapshot and timestamp are renewed by a timer at half their time; a third left means that it stands still.
    if repository.due(role, 1 / 3 if role in ONLINE else 1 / 6):
        return f"expires in {repository.left(role).days} days: {cure}"
    return ""


def _number(value: float) -> int | str:
    """Signed JSON knows no fractions."""
    return int(value) if value == int(value) else repr(float(value))


def _unless(plain: bool, role: str, passphrases: Passphrases) -> Passphrases | None:
    return None if plain and role in ONLINE else passphrases


def _write(made: Sequence[NewKey], root: Root, folder: Path, ring: KeyRing, change: Change) -> None:
    for key in made:
        file = key.write(folder)
        root.add_key(key.signer.public_key, role_of(key.name))
        ring.add(file, key.signer)
        change.made[key.name] = str(file.path)
        secret = "" if file.encrypted else ", NOT encrypted: whoever reads the file can sign"
        change.lines.append(f"{file.path}  {PLACES[role_of(key.name)]}{secret}")


def _next_name(repository: Repository, made: list[str], role: str) -> str:
    """No name is given twice, so that an old stick is never taken for a new one."""
    names = [*made, *(name_of(key) for root in repository.roots for key in root.signed.keys.values())]
    used = [re.fullmatch(rf"{role}-(\d+)", name) for name in names]
    return f"{role}-{max((int(match[1]) for match in used if match), default=0) + 1}"


def _go_on(
    folder: Path, root: Metadata[Root], repository: Repository, ring: KeyRing, change: Change, *, revoked: bool
) -> Change:
    """Put a root in force if it has all signatures, and sign the rest anew; else keep it as a draft."""
    previous = repository.roots[-1]
    if not complete(previous.signed, root):
        draft = folder / DRAFT
        _write_draft(draft, previous, root)
        made = f"; new keys: {', '.join(change.made.values())}" if change.made else ""
        raise GateError(
            f"not in force yet: {_missing(previous.signed, root)}; take {draft} there and type "
            f"`amiss keys sign {draft.name} --keys DIR`{made}"
        )
    repository.put_root(root)
    (folder / DRAFT).unlink(missing_ok=True)  # also one that was copied and signed elsewhere: its time is over
    change.lines.append(f"root {root.signed.version} is in force, until {root.signed.expires:%Y-%m-%d}")
    stale = [role for role in ROLES[1:] if not repository.good(role)]
    if stale:
        if revoked and repository.targets.targets:
            names = ", ".join(sorted(repository.targets.targets))
            change.lines.append(f"is all that is offered yours? {names}; `amiss publish --withdraw` takes back what is not")
        try:
            repository.settle(ring)
        except NoInputError as error:
            raise GateError(
                f"root {root.signed.version} is in force, but the signature of {' and '.join(stale)} is still the old one, and "
                f"devices take nothing new: `amiss publish --refresh --repo {folder}` where the new key is ({error})"
            ) from None
        change.lines.append(f"signed anew: {', '.join(stale)}")
    return change


def _missing(previous: Root, root: Metadata[Root]) -> str:
    """`1 more signature of root-2 or root-3 is needed`."""
    result = root.signed.get_root_verification_result(previous, root.signed_bytes, root.signatures)
    parts = []
    for part in (result.first, result.second):
        if part.missing:
            names = " or ".join(sorted(name_of(key) for key in part.unsigned.values()))
            has = ", ".join(sorted(name_of(key) for key in part.signed.values())) or "nobody"
            text = f"{part.missing} more signature{'s' * (part.missing > 1)} of {names} needed, {has} has signed"
            if text not in parts:
                parts.append(text)
    return "; and ".join(parts)


def _differences(old: Root, new: Root) -> list[str]:
    """What somebody signs who signs `new`: all of it. `old` came with the draft, and whoever made that up may have put his keys
    into it already."""

    def held(root: Root, role: str) -> dict[str, Key]:
        return {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}

    lines = [f"root {new.version}, until {new.expires:%Y-%m-%d}"]
    for role in ROLES:
        before, after = held(old, role), held(new, role)
        wanted, was = new.roles[role].threshold, old.roles[role].threshold
        lines.append(
            f"  {role}: {wanted} of {len(after)} keys sign" + (f"; so far {was} of {len(before)}" if was != wanted else "")
        )
        lines += [f"    {'stays' if keyid in before else 'comes'}  {name_of(key)}  {keyid}" for keyid, key in after.items()]
        lines += [f"    goes   {name_of(key)}  {keyid}" for keyid, key in before.items() if keyid not in after]
    return lines


def _write_draft(path: Path, previous: Metadata[Root], root: Metadata[Root]) -> None:
    with at_once(path) as draft:
        draft.write_bytes(msgspec.json.encode({"previous": previous.to_dict(), "next": root.to_dict()}))


def _read_draft(path: Path) -> tuple[Metadata[Root], Metadata[Root]]:
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
        previous, root = (parse_root(bytes(data[part]), str(path)) for part in ("previous", "next"))
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such draft; `amiss keys rotate` or `revoke` begins one") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, KeyError, UntrustedError):
        raise DataError(f"{path}: no draft of a root, or damaged; take it from the repository again") from None
    if not complete(None, previous):
        raise UntrustedError(
            f"{path}: the root that it begins from is not signed as it must be; take it from the repository again"
        )
    if root.signed.version != previous.signed.version + 1:
        raise DataError(f"{path}: root {root.signed.version} does not follow {previous.signed.version}; begin the change anew")
    return previous, root
