"""What a repository may do to a device, and what comes of it. In this process where the child's limits do not matter."""

import os
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import MetaFile, Root, TargetFile
from tuf.ngclient import Updater
from tuf_repository import NOW, Tuf, cut_after, key, make_offer, serving

from edge.updating.fetch import Reply, Request, _Folder, _interface, answer

MODEL = b"a bundle, as far as TUF is concerned" * 500


@pytest.fixture
def tuf() -> Tuf:
    made = Tuf()
    made.offer(1, MODEL)
    made.publish()
    return made


def ask(tuf: Tuf, place: Path, root: bytes | None = None, **changes: object) -> Reply:
    """From a folder, as a stick would be."""
    shutil.rmtree(place / "repository", ignore_errors=True)
    tuf.write(place / "repository")
    (place / "root.json").write_bytes(root or tuf.first_root)
    return answer(request(place, str(place / "repository"), **changes))


def request(place: Path, repository: str, **changes: object) -> Request:
    plain: dict[str, object] = {
        "repository": repository,
        "root": str(place / "root.json"),
        "folder": str(place / "tuf"),
        "deadline_s": 20.0,
    }
    return Request(**{**plain, **changes})  # type: ignore[arg-type]


def take(tuf: Tuf, place: Path, number: int = 1, content: bytes = MODEL, **changes: object) -> Reply:
    offer = make_offer(number, content)
    return ask(tuf, place, take=offer.path, digest=offer.digest, into=str(place / "got"), **changes)


def test_what_is_signed_is_offered_and_comes(tuf: Tuf, tmp_path: Path) -> None:
    assert ask(tuf, tmp_path).offers == (make_offer(1, MODEL),)
    assert take(tuf, tmp_path).state == "ok"
    assert (tmp_path / "got").read_bytes() == MODEL
    assert not (tmp_path / "got.part").exists()


def test_keys_may_be_replaced_one_after_the_other(tuf: Tuf, tmp_path: Path) -> None:
    first = tuf.first_root
    assert ask(tuf, tmp_path).state == "ok"
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        tuf.rotate(role, f"second {role} {tuf.root.version}")
        tuf.publish()
        assert ask(tuf, tmp_path, first).state == "ok", role
    shutil.rmtree(tmp_path / "tuf")
    assert ask(tuf, tmp_path, first).state == "ok", "also from the first root"


def test_a_root_that_only_the_new_keys_have_signed_is_none(tuf: Tuf, tmp_path: Path) -> None:
    tuf.root.version += 1
    tuf.root.revoke_key(key("root").public_key.keyid, "root")
    tuf.root.add_key(key("thief").public_key, "root")
    tuf.signers["root"] = [key("thief")]
    tuf.publish_root()
    assert ask(tuf, tmp_path).state == "untrusted"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_somebody_else_has_signed_is_not_believed(tuf: Tuf, tmp_path: Path, role: str) -> None:
    tuf.signers[role] = [key("thief")]
    tuf.offer(2)
    tuf.publish()
    assert ask(tuf, tmp_path).state == "untrusted"
    tuf.signers[role] = [key(role)]
    tuf.publish()
    assert ask(tuf, tmp_path).state == "ok", "the control"


def test_nobody_signs_for_a_threshold_of_two_alone(tmp_path: Path) -> None:
    tuf = Tuf()
    tuf.root.add_key(key("second").public_key, "targets")
    tuf.root.roles["targets"].threshold = 2
    tuf.publish_root()
    assert ask(tuf, tmp_path).state == "untrusted"
    tuf.signers["targets"].append(key("second"))
    tuf.publish()
    assert ask(tuf, tmp_path).state == "ok"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_what_has_expired_is_stale(tuf: Tuf, tmp_path: Path, role: str) -> None:
    signed = getattr(tuf, role)
    signed.expires = NOW - timedelta(days=1)
    if role == "root":
        signed.version += 1
        tuf.publish_root()
    tuf.publish()
    found = ask(tuf, tmp_path)
    assert (found.state, found.offers) == ("stale", ())
    assert "expired" in found.reason


def test_a_clock_that_is_wrong(tuf: Tuf, tmp_path: Path) -> None:
    """Ten years back, two years ahead; and what the clock cannot revive."""
    now_s = NOW.timestamp()
    year_s = 365 * 86400.0
    assert ask(tuf, tmp_path, now_s=now_s - 10 * year_s).state == "ok", "without a time floor nobody knows better"
    assert ask(tuf, tmp_path, now_s=now_s + 2 * year_s).state == "stale"
    assert ask(tuf, tmp_path, now_s=now_s - 10 * year_s, time_floor_s=now_s + 31 * 86400.0).state == "stale"
    assert ask(tuf, tmp_path, now_s=now_s - 10 * year_s, time_floor_s=now_s).state == "ok"


def test_who_signed_when_is_told(tuf: Tuf, tmp_path: Path) -> None:
    earlier = NOW - timedelta(days=3)
    tuf.offer(2, created=earlier.isoformat())
    tuf.timestamp.unrecognized_fields["x-amiss-signed"] = NOW.isoformat()
    tuf.publish()
    found = ask(tuf, tmp_path)
    assert (found.offline_s, found.online_s) == (earlier.timestamp(), NOW.timestamp())
    tuf.offer(3, created=(NOW + timedelta(days=10)).isoformat())
    tuf.publish()
    found = ask(tuf, tmp_path)
    assert found.offline_s == NOW.timestamp(), "built by a clock that is ahead"
    del tuf.timestamp.unrecognized_fields["x-amiss-signed"]
    tuf.root.unrecognized_fields["x-amiss-days"] = {"timestamp": 31}
    tuf.root.version += 1
    tuf.publish_root()
    tuf.publish()
    assert ask(tuf, tmp_path).online_s == (tuf.expires - timedelta(days=31)).timestamp()


def replay(tuf: Tuf, tmp_path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    old = dict(tuf.files)
    tuf.offer(2)
    tuf.publish()
    assert ask(tuf, tmp_path).state == "ok"
    return old, dict(tuf.files)


def test_replay_freeze_and_mix(tuf: Tuf, tmp_path: Path) -> None:
    old, new = replay(tuf, tmp_path)
    tuf.files = {**new, "metadata/timestamp.json": old["metadata/timestamp.json"]}
    assert ask(tuf, tmp_path).state == "untrusted", "an old timestamp"
    snapshot = f"metadata/{tuf.snapshot.version}.snapshot.json"
    tuf.files = {**new, snapshot: old[f"metadata/{tuf.snapshot.version - 1}.snapshot.json"]}
    shutil.rmtree(tmp_path / "tuf")
    assert ask(tuf, tmp_path).state == "untrusted", "a new timestamp with an old snapshot"
    targets = f"metadata/{tuf.targets.version}.targets.json"
    tuf.files = {**new, targets: old[f"metadata/{tuf.targets.version - 1}.targets.json"]}
    assert ask(tuf, tmp_path).state == "untrusted", "new ones with old targets"
    tuf.files = new
    assert ask(tuf, tmp_path).state == "ok"


def test_the_control_raw_tuf_accepts_a_replay_once_its_folder_is_wiped(tuf: Tuf, tmp_path: Path) -> None:
    """Which is why the floor is not kept there; tests/edge/updating/test_updater.py has the other half."""
    old, _ = replay(tuf, tmp_path)
    tuf.files = old
    assert ask(tuf, tmp_path).state == "untrusted"
    shutil.rmtree(tmp_path / "tuf")
    folder = tmp_path / "repository"
    fetcher = _interface(_Folder(folder))
    (tmp_path / "raw").mkdir()
    updater = Updater(str(tmp_path / "raw"), f"file://{folder}/metadata/", fetcher=fetcher, bootstrap=tuf.first_root)
    updater.refresh()
    assert updater.get_targetinfo("pump-1.amiss") is not None
    assert updater.get_targetinfo("pump-2.amiss") is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [("metadata/2.root.json", 16384), ("metadata/timestamp.json", 4096), ("snapshot", 8192), ("targets", 65536)],
)
def test_a_file_that_is_too_long_is_not_read(tuf: Tuf, tmp_path: Path, name: str, limit: int) -> None:
    if name in ("snapshot", "targets"):
        tuf.snapshot.meta["targets.json"].length = None
        tuf.timestamp.snapshot_meta.length = None
        name = f"metadata/{getattr(tuf, name).version}.{name}.json"
    tuf.files[name] = tuf.files.get(name, b"") + b" " * (limit + 1)
    assert ask(tuf, tmp_path).state == "untrusted"


def test_delegations_lead_nowhere(tuf: Tuf, tmp_path: Path) -> None:
    tuf.delegate("friend", ["*"])
    offer = make_offer(9, MODEL)
    tuf.add(MODEL, offer, role="friend")
    tuf.publish()
    assert [o.number for o in ask(tuf, tmp_path).offers] == [1]
    assert take(tuf, tmp_path, 9).state == "away"


def test_a_target_whose_offer_is_of_another_file_is_none(tuf: Tuf, tmp_path: Path) -> None:
    tuf.add(b"other", make_offer(2, MODEL))
    tuf.add(b"file", path="no-offer.amiss")
    tuf.add(b"file", make_offer(3, b"file"), path="../../etc/passwd.amiss")
    tuf.publish()
    found = ask(tuf, tmp_path)
    assert [offer.number for offer in found.offers] == [1]
    assert len(found.skipped) == 3


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"!", lambda d: d[:-1], lambda d: d + b"!", lambda d: b""])
def test_a_bundle_that_is_not_the_one_signed_never_arrives(tuf: Tuf, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    name = next(name for name in tuf.files if name.startswith("targets/"))
    tuf.files[name] = change(MODEL)
    assert take(tuf, tmp_path).state in ("untrusted", "away")
    assert not (tmp_path / "got").exists()


def test_a_part_that_was_tampered_with_is_thrown_away(tuf: Tuf, tmp_path: Path) -> None:
    (tmp_path / "got.part").write_bytes(b"?" * 1000)
    assert take(tuf, tmp_path).state == "ok"
    (tmp_path / "got.part").write_bytes(b"?" * (len(MODEL) + 5))
    assert take(tuf, tmp_path).state == "ok"
    (tmp_path / "got.part").write_bytes(b"?" * len(MODEL))
    assert take(tuf, tmp_path).state == "ok"
    assert (tmp_path / "got").read_bytes() == MODEL


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_was_cut_goes_on_from_there(tuf: Tuf, tmp_path: Path, knows_ranges: bool) -> None:
    (tmp_path / "root.json").write_bytes(tuf.first_root)
    offer = make_offer(1, MODEL)
    with serving(tuf.files) as server:
        server.knows_ranges = knows_ranges
        asked = request(tmp_path, server.url, take=offer.path, digest=offer.digest, into=str(tmp_path / "got"))
        server.odd["targets/"] = cut_after(5000)
        assert answer(asked).state == "away"
        assert (tmp_path / "got.part").stat().st_size == 5000
        server.odd.clear()
        server.sent = 0
        assert answer(asked).state == "ok"
        assert server.ranges == ["bytes=5000-"]
        assert (server.sent < len(MODEL)) == knows_ranges
    assert (tmp_path / "got").read_bytes() == MODEL


def test_a_server_that_is_not_there_or_has_half_of_it_is_away(tuf: Tuf, tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(tuf.first_root)
    found = answer(request(tmp_path, "http://127.0.0.1:1"))
    assert (found.state, "refused" in found.reason) == ("away", True)
    del tuf.files[f"metadata/{tuf.targets.version}.targets.json"]
    assert ask(tuf, tmp_path).state == "away"
    assert answer(request(tmp_path, str(tmp_path / "stick"))).reason.endswith("is the stick in?")


def test_what_is_no_file_on_a_stick_is_not_waited_for(tuf: Tuf, tmp_path: Path) -> None:
    ask(tuf, tmp_path)
    path = tmp_path / "repository/metadata/timestamp.json"
    path.unlink()
    os.mkfifo(path)
    assert answer(request(tmp_path, str(tmp_path / "repository"))).state == "away"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert answer(request(tmp_path, str(tmp_path / "repository"))).state == "away"


def test_a_root_that_is_not_there_is_the_owners_to_mend(tuf: Tuf, tmp_path: Path) -> None:
    found = answer(request(tmp_path, str(tmp_path)))
    assert (found.state, "root.json" in found.reason) == ("config", True)
    (tmp_path / "root.json").write_bytes(b"{}")
    assert answer(request(tmp_path, str(tmp_path))).state == "untrusted"


def odd_folder(folder: Path, chance: random.Random) -> None:
    """Whatever a power cut, a cheap card or a friend of hers may do to TUF's folder."""
    for path in [*folder.rglob("*"), folder]:
        match chance.randrange(8):
            case 0:
                path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
            case 1 if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
            case 2 if path.is_file():
                path.write_bytes(chance.randbytes(chance.randrange(300)))
            case 3 if path.is_file():
                path.write_bytes(path.read_bytes()[: chance.randrange(100)])
            case 4 if path.is_file():
                path.unlink()
                path.mkdir()


@pytest.mark.parametrize("seeds", [25, pytest.param(1000, marks=pytest.mark.soak)])
def test_whatever_lies_in_tufs_folder_the_next_check_works(tuf: Tuf, tmp_path: Path, seeds: int) -> None:
    first = tuf.first_root
    tuf.rotate("timestamp", "second timestamp")
    tuf.publish()
    for seed in range(seeds):
        assert ask(tuf, tmp_path, first).state == "ok", seed
        odd_folder(tmp_path / "tuf", random.Random(seed))


@pytest.mark.parametrize("mutants", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_no_mutant_is_believed(tuf: Tuf, tmp_path: Path, mutants: int) -> None:
    """One file of the repository changed by chance: nothing comes of it but what was signed, and nobody dies of it."""
    refused, without_effect, believed = try_mutants(tuf, tmp_path, mutants)
    assert (believed, refused + without_effect) == (0, mutants)
    assert refused > 0.5 * mutants
    print(f"{mutants} mutants: {refused} refused, {without_effect} without effect")


def test_the_control_without_signatures_and_hashes_mutants_are_believed(
    tuf: Tuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, check in (
        (Root, "verify_delegate"),
        (MetaFile, "verify_length_and_hashes"),
        (TargetFile, "verify_length_and_hashes"),
    ):
        monkeypatch.setattr(kind, check, lambda *_: None)
    assert try_mutants(tuf, tmp_path, 100)[2] > 0


def try_mutants(tuf: Tuf, place: Path, mutants: int) -> tuple[int, int, int]:
    """Refused; without effect; believed, so that other than what was signed is offered or fetched."""
    offer = make_offer(1, MODEL)
    tuf.write(place / "repository")
    (place / "root.json").write_bytes(tuf.first_root)
    got = place / "got"
    asked = request(place, str(place / "repository"), take=offer.path, digest=offer.digest, into=str(got))
    names = [name for name in tuf.files if name.startswith(("metadata/t", "metadata/2.", "targets/"))]
    chance, refused, without_effect, believed = random.Random(5), 0, 0, 0
    for _ in range(mutants):
        name = chance.choice(names)
        (place / "repository" / name).write_bytes(mutated(tuf.files[name], tuf.files, chance))
        found = answer(asked)
        if found.state != "ok":
            assert not got.exists()
            refused += 1
        elif got.read_bytes() == MODEL and found.offers == (offer,):
            without_effect += 1
        else:
            believed += 1
        for left in (got, place / "got.part"):
            left.unlink(missing_ok=True)
        shutil.rmtree(place / "tuf", ignore_errors=True)
        (place / "repository" / name).write_bytes(tuf.files[name])
    return refused, without_effect, believed


def mutated(data: bytes, others: dict[str, bytes], chance: random.Random) -> bytes:
    made = bytearray(data)
    at = chance.randrange(len(made))
    match chance.randrange(8):
        case 0:
            made[at] ^= 1 << chance.randrange(8)
        case 1:
            del made[at:]
        case 2:
            made[at:at] = chance.randbytes(chance.randrange(1, 50))
        case 3:
            return chance.choice(sorted(others.values()))
        case 4:
            return b"[" * chance.randrange(1, 16000)
        case 5:
            digits = [i for i, byte in enumerate(made) if chr(byte).isdigit()]
            made[chance.choice(digits or [at])] = ord(str(chance.randrange(10)))
        case 6:
            return msgspec.json.encode(chance.choice([None, [], {}, {"signed": {}, "signatures": []}, 1e308, "x" * 5000]))
        case 7:
            part = made[at : at + chance.randrange(1, 200)]
            made[at:at] = part
    return bytes(made)
