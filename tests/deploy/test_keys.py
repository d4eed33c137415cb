"""Keys: made, kept, replaced, revoked; what a real TUF client makes of it."""

import json
import re
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from shop import WORDS
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf_device import Device

from deploy import keyfiles, keys
from deploy import publish as publishing
from deploy.keyfiles import KeyRing, NewKey, Passphrases
from deploy.repository import Repository
from edge.errors import AccessError, CannotCreateError, DataError, GateError, NoInputError, UntrustedError, UsageError

SHIPPED_N = keyfiles.SCRYPT_N
NAMES = {"root-1", "root-2", "root-3", "targets-1", "snapshot-1", "timestamp-1"}


def passphrases(words: str = WORDS) -> Passphrases:
    return Passphrases({}, lambda prompt: words, lambda: True)


class Yard:
    """A repository whose keys lie where they belong: `stick-1` … `stick-3`, `laptop`, `server`."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self.repo, self.clock = folder, folder / "models", clock
        keys.init(self.repo, folder / "keys", passphrases(), clock=clock)
        for name, place in {
            "root-1": "stick-1",
            "root-2": "stick-2",
            "root-3": "stick-3",
            "targets-1": "laptop",
            "snapshot-1": "server",
            "timestamp-1": "server",
        }.items():
            (folder / place).mkdir(exist_ok=True)
            (folder / "keys" / f"{name}.pem").rename(folder / place / f"{name}.pem")
        self.first_root = (self.repo / "metadata" / "1.root.json").read_bytes()

    def ring(self, *places: str) -> KeyRing:
        return KeyRing([self.folder / place for place in places], passphrases())

    def device(self, name: str = "device") -> Device:
        return Device(self.folder / name, self.first_root, self.repo)

    def rotate(self, *names: str, at: tuple[str, ...], to: str = "new", revoked: bool = False) -> keys.Change:
        return keys.rotate(self.repo, self.ring(*at), names, self.folder / to, passphrases(), revoked=revoked, clock=self.clock)

    def signer(self, name: str) -> CryptoSigner:
        """Of any key there ever was: a thief's."""
        path = next(self.folder.glob(f"*/{name}.pem"))
        found = keyfiles.look_at(path)
        assert found is not None
        roots = Repository(self.repo, self.clock).roots
        public = next(root.signed.keys[found.keyid] for root in roots if found.keyid in root.signed.keys)
        return KeyRing([path], passphrases()).signer(public)

    def forge(self, role: type[Targets | Snapshot | Timestamp], version: int, **rest: object) -> bytes:
        """Signed by the first key of that role."""
        signed = role(version=version, expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=1), **rest)  # type: ignore[arg-type]
        metadata: Metadata[Targets | Snapshot | Timestamp] = Metadata(signed)
        metadata.sign(self.signer(f"{signed.type}-1"))
        return metadata.to_bytes()

    def thief_publishes(self, version: int = 1000) -> None:
        """With all three of the first keys, under a version that nothing of ours will reach."""
        at = self.repo / "metadata"
        targets = self.forge(Targets, version)
        (at / f"{version}.targets.json").write_bytes(targets)
        snapshot = self.forge(Snapshot, version, meta={"targets.json": MetaFile.from_data(version, targets, ["sha256"])})
        (at / f"{version}.snapshot.json").write_bytes(snapshot)
        meta = MetaFile.from_data(version, snapshot, ["sha256"])
        (at / "timestamp.json").write_bytes(self.forge(Timestamp, version, snapshot_meta=meta))


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_six_keys_each_for_its_owner_alone_and_none_of_them_in_the_clear(tmp_path: Path) -> None:
    change = keys.init(tmp_path / "models", tmp_path / "keys", passphrases())
    assert set(change.made) == NAMES
    for name in NAMES:
        path = tmp_path / "keys" / f"{name}.pem"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
        assert any(str(path) in line and keyfiles.PLACES[keyfiles.role_of(name)] in line for line in change.lines)
        assert WORDS.encode() not in path.read_bytes()
    root = Repository(tmp_path / "models").root
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
    assert len(root.keys) == 6, "no key has two roles"
    first_root = (tmp_path / "models" / "metadata" / "1.root.json").read_bytes()
    assert Device(tmp_path / "device", first_root, tmp_path / "models").offers() == {}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    keys.init(tmp_path / "models", tmp_path / "keys", passphrases())
    before = everything(tmp_path)
    with pytest.raises(CannotCreateError, match="holds a repository already"):
        keys.init(tmp_path / "models", tmp_path / "other", passphrases())
    with pytest.raises(CannotCreateError, match="never overwritten"):
        keys.init(tmp_path / "models-2", tmp_path / "keys", passphrases())
    with pytest.raises(CannotCreateError, match="never overwritten"):
        NewKey.make("targets-1", passphrases()).write(tmp_path / "keys")
    after = everything(tmp_path)
    assert {name: after[name] for name in before} == before


def test_without_a_passphrase_only_what_was_asked_for(tmp_path: Path) -> None:
    change = keys.init(tmp_path / "models", tmp_path / "keys", passphrases(), unencrypted_online=True)
    plain = {path.stem for path in (tmp_path / "keys").glob("*.pem") if b"ENCRYPTED" not in path.read_bytes()}
    assert plain == {"snapshot-1", "timestamp-1"}
    assert sum("NOT encrypted" in line for line in change.lines) == 2
    silent = Passphrases({}, terminal=lambda: False)
    publishing.refresh(tmp_path / "models", KeyRing([tmp_path / "keys"], silent))  # a timer can
    path = tmp_path / "keys" / "timestamp-1.pem"
    path.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        publishing.refresh(tmp_path / "models", KeyRing([tmp_path / "keys"], silent))


@pytest.mark.parametrize(
    ("answers", "says"),
    [(["short", "short"], "at least 10"), ([WORDS, WORDS + "!"], "differ"), ([WORDS, WORDS, WORDS, "x"], "differ")],
)
def test_a_slip_of_the_passphrase_leaves_nothing_behind(tmp_path: Path, answers: list[str], says: str) -> None:
    ask = iter(answers)
    with pytest.raises(AccessError, match=says):
        keys.init(tmp_path / "models", tmp_path / "keys", Passphrases({}, lambda prompt: next(ask), lambda: True))
    assert not (tmp_path / "keys").exists()
    assert not (tmp_path / "models" / "metadata").exists()


def test_passphrases_come_from_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(f"{WORDS}\n")
    given = Passphrases({"AMISS_KEY_PASSPHRASE_FILE": str(file)}, terminal=lambda: False)
    file.chmod(0o640)
    with pytest.raises(AccessError, match="chmod 600"):
        given.known("targets-1")
    file.chmod(0o600)
    assert given.known("targets-1") == given.chosen("root-1") == WORDS
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "targets-1").touch(0o600)
    each = Passphrases({"AMISS_KEY_PASSPHRASE_FILE": str(tmp_path / "several")}, terminal=lambda: False)
    with pytest.raises(AccessError, match="is empty"):
        each.known("targets-1")
    with pytest.raises(AccessError, match="no such file; it is to hold the passphrase of root-1"):
        each.known("root-1")
    with pytest.raises(AccessError, match="no terminal to ask"):
        Passphrases({}, terminal=lambda: False).known("targets-1")


def test_a_key_that_does_not_open_says_why_and_changes_nothing(yard: Yard) -> None:
    before = everything(yard.repo)
    path = yard.folder / "laptop" / "targets-1.pem"
    good = path.read_bytes()
    key = Repository(yard.repo).root.get_key(Repository(yard.repo).root.roles["targets"].keyids[0])
    with pytest.raises(AccessError, match="not the passphrase of targets-1"):
        KeyRing([path], passphrases("other words than these")).signer(key)
    for bad, says in [
        (good[:-60], "damaged"),
        (good.replace(b"scrypt: 16 ", b"scrypt: 999999999 "), "`scrypt:` is damaged"),
        (good.replace(b"scrypt: 16 ", b"scrypt: 17 "), "`scrypt:` is damaged"),
        (good.replace(b"scrypt: ", b"sprypt: "), "`scrypt:` is damaged"),
    ]:
        path.write_bytes(bad)
        with pytest.raises(DataError, match=says):
            KeyRing([path], passphrases()).signer(key)
    other = NewKey.make("targets-1", passphrases())
    path.write_bytes(other.pem.replace(other.signer.public_key.keyid.encode(), key.keyid.encode()))
    with pytest.raises(DataError, match="holds another key than it says"):
        KeyRing([path], passphrases()).signer(key)
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(NoInputError, match="the key targets-1 is not in"):
        KeyRing([path], passphrases()).signer(key)
    with pytest.raises(NoInputError, match="no such folder of keys"):
        yard.ring("nowhere")
    assert everything(yard.repo) == before


def test_what_ships_costs_a_thief_more_than_what_is_tested_here() -> None:
    assert 128 * SHIPPED_N * keyfiles.SCRYPT_R == 64 << 20


def test_two_root_keys_replace_the_third(yard: Yard) -> None:
    device = yard.device()
    device.offers()
    change = yard.rotate("root-3", at=("stick-1", "stick-2"), to="stick-4", revoked=True)
    assert set(change.made) == {"root-4"}
    device.offers()
    assert "metadata/2.root.json" in device.files.downloaded
    yard.rotate(at=("stick-1", "stick-4"))  # the new one counts; `revoke` had to sign with it as well
    assert yard.device("newcomer").offers() == {}
    with pytest.raises(UsageError, match="no key `root-3` in root 3; did you mean `root-4`"):
        yard.rotate("root-3", at=("stick-1", "stick-2"))


def test_one_root_key_alone_changes_nothing_and_the_others_are_named(yard: Yard) -> None:
    with pytest.raises(GateError, match="1 more signature of root-2 or root-3 needed, root-1 has signed"):
        yard.rotate("targets-1", at=("stick-1", "laptop", "server"))
    assert Repository(yard.repo).root.version == 1
    assert yard.device().offers() == {}
    with pytest.raises(CannotCreateError, match="waits for signatures"):
        yard.rotate("targets-1", at=("stick-1", "stick-2"))
    # Put where a complete one would be, neither a device nor we take it.
    draft = json.loads((yard.repo / keys.DRAFT).read_bytes())
    (yard.repo / "metadata" / "2.root.json").write_bytes(json.dumps(draft["next"]).encode())
    with pytest.raises(UnsignedMetadataError, match="1/2"):
        yard.device("other").offers()
    with pytest.raises(UntrustedError, match=r"2\.root\.json: not signed by as many keys"):
        Repository(yard.repo)


def test_three_places_sign_one_after_the_other(yard: Yard) -> None:
    yard.device().offers()
    with pytest.raises(GateError, match=r"not in force yet: 1 more .* root\.draft\.json"):
        yard.rotate("targets-1", "root-1", at=("stick-1",), to="laptop", revoked=False)
    draft = yard.folder / "stick-2" / "root.draft.json"
    (yard.repo / keys.DRAFT).rename(draft)
    with pytest.raises(NoInputError, match=r"no root key in .*laptop that has not signed yet; 1 more"):
        keys.sign(draft, yard.ring("laptop"))
    change = keys.sign(draft, yard.ring("stick-2"))
    assert [re.sub(r"  \w{64}$", "", line) for line in change.lines[1:-1]] == [
        "  root: 2 of 3 keys sign",
        "    stays  root-2",
        "    stays  root-3",
        "    comes  root-4",
        "    goes   root-1",
        "  targets: 1 of 1 keys sign",
        "    comes  targets-2",
        "    goes   targets-1",
        "  snapshot: 1 of 1 keys sign",
        "    stays  snapshot-1",
        "  timestamp: 1 of 1 keys sign",
        "    stays  timestamp-1",
    ]
    assert Repository(yard.repo).root.version == 1, "a complete draft is not in force by itself"
    keys.sign(draft, yard.ring("laptop", "server"), yard.repo)
    assert Repository(yard.repo).root.version == 2
    assert not draft.exists()
    assert yard.device().offers() == {}
    assert Repository(yard.repo).good("targets")


def test_a_draft_must_fit(yard: Yard) -> None:
    with pytest.raises(NoInputError, match="no such draft"):
        keys.sign(yard.repo / keys.DRAFT, yard.ring("stick-1"), yard.repo)
    (yard.repo / keys.DRAFT).write_text("{}")
    with pytest.raises(DataError, match="no draft of a root"):
        keys.sign(yard.repo / keys.DRAFT, yard.ring("stick-1"), yard.repo)
    (yard.repo / keys.DRAFT).unlink()
    with pytest.raises(GateError):
        yard.rotate("targets-1", at=("stick-1",))
    old = yard.folder / "old.json"
    (yard.repo / keys.DRAFT).rename(old)
    yard.rotate(at=("stick-1", "stick-2"))
    with pytest.raises(UntrustedError, match="begun from another root"):
        keys.sign(old, yard.ring("stick-2"), yard.repo)


def test_who_makes_up_the_root_before_hides_none_of_his_keys(yard: Yard) -> None:
    with pytest.raises(GateError):
        yard.rotate(at=("stick-1",))
    draft = yard.repo / keys.DRAFT
    good = json.loads(draft.read_bytes())
    thief = NewKey.make("root-4", passphrases())
    before, after = (Metadata.from_dict(json.loads(json.dumps(good[part]))) for part in ("previous", "next"))
    for root in (before, after):
        root.signed.add_key(thief.signer.public_key, "root")
        root.signed.roles["root"].threshold = 1
        root.signatures.clear()
    draft.write_text(json.dumps({"previous": before.to_dict(), "next": after.to_dict()}))
    with pytest.raises(UntrustedError, match="not signed as it must be"):
        keys.sign(draft, yard.ring("stick-2"))
    for root in (before, after):  # by himself it is
        root.sign(thief.signer)
    draft.write_text(json.dumps({"previous": before.to_dict(), "next": after.to_dict()}))
    change = keys.sign(draft, yard.ring("stick-2"))
    assert change.lines[1] == "  root: 1 of 4 keys sign"
    assert any(line.startswith("    stays  root-4") for line in change.lines)


def test_a_signature_by_another_key_counts_for_nothing(yard: Yard) -> None:
    stranger, second = NewKey.make("root-9", passphrases()), yard.signer("root-2")
    root: Metadata[Root] = Metadata(Repository(yard.repo).root)
    root.signed.version = 2
    root.sign(yard.signer("root-1"))
    forged = stranger.signer.sign(root.signed_bytes)
    forged.keyid = second.public_key.keyid  # says it was root-2
    root.signatures[forged.keyid] = forged
    (yard.repo / "metadata" / "2.root.json").write_bytes(root.to_bytes())
    with pytest.raises(UnsignedMetadataError):
        yard.device().offers()
    root.sign(second, append=True)  # the control
    (yard.repo / "metadata" / "2.root.json").write_bytes(root.to_bytes())
    assert yard.device().offers() == {}


@pytest.mark.parametrize("revoked", [True, False], ids=["revoked", "control"])
def test_a_revoked_targets_key_signs_nothing_more(yard: Yard, revoked: bool) -> None:
    yard.device().offers()
    if revoked:
        yard.rotate("targets-1", at=("stick-1", "stick-3", "server"), to="new-laptop", revoked=True)
    repository = Repository(yard.repo)
    version = repository.targets.version + 1
    forged = yard.forge(Targets, version)
    (yard.repo / "metadata" / f"{version}.targets.json").write_bytes(forged)
    assert Repository(yard.repo).targets.version == (version - 1 if revoked else version)
    # Even with the keys of the server, which the thief does not have.
    publishing.refresh(yard.repo, yard.ring("server"))
    snapshot = Repository(yard.repo).snapshot
    snapshot.version += 1
    snapshot.meta["targets.json"] = MetaFile.from_data(version, forged, ["sha256"])
    signed: Metadata[Snapshot] = Metadata(snapshot)
    signed.sign(yard.signer("snapshot-1"))
    (yard.repo / "metadata" / f"{snapshot.version}.snapshot.json").write_bytes(signed.to_bytes())
    timestamp = Repository(yard.repo).timestamp
    timestamp.version += 1
    timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, signed.to_bytes(), ["sha256"])
    stamped: Metadata[Timestamp] = Metadata(timestamp)
    stamped.sign(yard.signer("timestamp-1"))
    (yard.repo / "metadata" / "timestamp.json").write_bytes(stamped.to_bytes())
    if revoked:
        with pytest.raises(UnsignedMetadataError):
            yard.device().offers()
    else:
        assert yard.device().offers() == {}


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all", "control"])
def test_a_thief_with_every_online_key_is_outlived(yard: Yard, all_of_them: bool) -> None:
    """He has shown devices version 1000. With the keys of snapshot and timestamp replaced, they forget that."""
    good = everything(yard.repo / "metadata")
    device = yard.device()
    yard.thief_publishes()
    device.offers()
    for name, data in good.items():
        (yard.repo / "metadata" / name).write_bytes(data)
    for name in ("1000.targets.json", "1000.snapshot.json"):
        (yard.repo / "metadata" / name).unlink()
    names = ("targets-1", "snapshot-1", "timestamp-1") if all_of_them else ("targets-1",)
    yard.rotate(*names, at=("stick-1", "stick-2", *(() if all_of_them else ("server",))), revoked=True)
    if all_of_them:
        assert device.offers() == {}
    else:
        with pytest.raises(BadVersionNumberError):
            device.offers()


def test_revoking_asks_for_a_look_at_what_is_offered_and_never_signs_with_what_it_revokes(yard: Yard) -> None:
    with pytest.raises(GateError, match="root-3 needed"):
        yard.rotate("root-1", at=("stick-1", "stick-2"), to="stick-4", revoked=True)
    draft = json.loads((yard.repo / keys.DRAFT).read_bytes())
    stolen = yard.signer("root-1").public_key.keyid
    assert stolen not in {signature["keyid"] for signature in draft["next"]["signatures"]}


def test_a_root_in_force_without_the_new_key_at_hand_says_what_is_left_to_do(yard: Yard) -> None:
    with pytest.raises(GateError, match=r"root 2 is in force.*targets is still the old one.*--refresh.*snapshot-1 is not in"):
        yard.rotate("targets-1", at=("stick-1", "stick-2"), to="laptop")
    with pytest.raises(UnsignedMetadataError):
        yard.device().offers()
    assert "no longer in force" in keys.warning(Repository(yard.repo), "targets")
    publishing.refresh(yard.repo, yard.ring("laptop", "server"))
    assert yard.device("other").offers() == {}


def test_an_expired_root_is_renewed_by_its_keys(tmp_path: Path) -> None:
    now = [datetime.now(UTC) - timedelta(days=800)]
    yard = Yard(tmp_path, lambda: now[0])
    now[0] += timedelta(days=800)
    with pytest.raises(ExpiredMetadataError):
        yard.device().offers()
    with pytest.raises(AccessError, match=r"root 1 has expired on .*amiss keys rotate"):
        publishing.refresh(yard.repo, yard.ring("laptop", "server"), clock=yard.clock)
    yard.rotate(at=("stick-2", "stick-3"))
    publishing.refresh(yard.repo, yard.ring("laptop", "server"), clock=yard.clock)
    assert yard.device("after").offers() == {}


def test_an_old_timestamp_is_refused(yard: Yard) -> None:
    device, at = yard.device(), yard.repo / "metadata" / "timestamp.json"
    old = at.read_bytes()
    publishing.refresh(yard.repo, yard.ring("server"))
    device.offers()
    at.write_bytes(old)
    with pytest.raises(BadVersionNumberError):
        device.offers()
    assert yard.device("newcomer").offers() == {}, "the control: it is its memory that refuses"


def test_expiry_is_seen_coming(tmp_path: Path) -> None:
    now = [datetime.now(UTC)]
    yard = Yard(tmp_path, lambda: now[0])
    assert not any(row["warning"] for row in keys.overview(yard.repo, [], yard.clock))
    now[0] += timedelta(days=5)
    warned = {row["role"]: row["warning"] for row in keys.overview(yard.repo, [], yard.clock)}
    assert {role for role, text in warned.items() if text} == {"timestamp"}
    assert "is the timer running?" in warned["timestamp"]
    now[0] += timedelta(days=310)
    warned = {row["role"]: row["warning"] for row in keys.overview(yard.repo, [], yard.clock)}
    assert "expires in 49 days: amiss publish --refresh" in warned["targets"]
    assert "expired, devices take nothing new" in warned["snapshot"]
    rows = keys.overview(yard.repo, [tmp_path / "laptop", tmp_path / "nowhere"], yard.clock)
    assert [key["file"] is not None for row in rows for key in row["keys"]] == [False] * 3 + [True] + [False] * 2
    assert "not here" in "\n".join(keys.overview_lines(rows))


def test_what_was_changed_by_others_is_refused(yard: Yard) -> None:
    at = yard.repo / "metadata" / "timestamp.json"
    at.write_bytes(at.read_bytes().replace(b'"version":1}}', b'"version":2}}'))
    with pytest.raises(UntrustedError, match="no timestamp metadata with a good signature"):
        Repository(yard.repo)
    with pytest.raises(RepositoryError):
        yard.device().offers()
    with pytest.raises(NoInputError, match="amiss keys init"):
        Repository(yard.folder / "nowhere")


def test_a_wrong_passphrase_is_never_called_damage(tmp_path: Path) -> None:
    """What one in some 270 makes of the file looks whole, and is no key: among so many there are such."""
    keys.init(tmp_path / "models", tmp_path / "keys", passphrases())
    root = Repository(tmp_path / "models").root
    key = root.keys[root.roles["targets"].keyids[0]]
    for i in range(1500):
        with pytest.raises(AccessError, match="not the passphrase of targets-1; if it is, the file is damaged"):
            KeyRing([tmp_path / "keys"], passphrases(f"other words {i}")).signer(key)
