"""What the public tuf-conformance suite asks of a client, asked of ours by its own command line, over real HTTP.

Where `process` is not set the command line runs in this process, which is quicker and no other code. The suite itself needs
faketime and a network; docs/howto/tuf-conformance.md says how to run it, and what came of it.
"""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets
from tuf_repository import NOW, ROLES, Server, Tuf, key, serving

from edge.updating.conformance import main


class Client:
    """`days`: how far ahead its clock is."""

    def __init__(self, tuf: Tuf, server: Server, place: Path) -> None:
        self.tuf, self.server, self.place = tuf, server, place
        self.said, self.process, self.days = "", False, 0.0
        (place / "root.json").write_bytes(tuf.first_root)
        (place / "metadata").mkdir()
        (place / "targets").mkdir()
        assert self._run("init", str(place / "root.json")) == 0
        assert server.asked == []

    def _run(self, *arguments: str) -> int:
        whole = ["--metadata-dir", str(self.place / "metadata"), *arguments]
        if not self.process:
            clock = SimpleNamespace(time=lambda: time.time() + self.days * 86400)
            with contextlib.redirect_stderr(io.StringIO()) as said, mock.patch("edge.updating.conformance.time", clock):
                status = main(whole)
            self.said = said.getvalue()
            return status
        command = [sys.executable, "-m", "edge.updating.conformance", *whole]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
        self.said = done.stderr
        assert "Traceback" not in done.stderr
        return done.returncode

    def refresh(self) -> int:
        self.server.asked.clear()
        self.server.files = self.tuf.files
        return self._run("--metadata-url", f"{self.server.url}/metadata", "refresh")

    def download(self, *names: str) -> int:
        self.server.asked.clear()
        self.server.files = self.tuf.files
        urls = ["--metadata-url", f"{self.server.url}/metadata", "--target-base-url", f"{self.server.url}/targets"]
        wanted = [argument for name in names for argument in ("--target-name", name)]
        return self._run(*urls, *wanted, "--target-dir", str(self.place / "targets"), "download")

    def version(self, role: str) -> int | None:
        path = self.place / "metadata" / f"{role}.json"
        return int(Metadata.from_file(str(path)).signed.version) if path.exists() else None

    @property
    def trusted(self) -> dict[str, int]:
        """Version of each role that is kept."""
        kept = (self.place / "metadata").glob("*.json")
        return {path.stem: int(Metadata.from_file(str(path)).signed.version) for path in kept}

    @property
    def downloaded(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in (self.place / "targets").rglob("*") if path.is_file())


@pytest.fixture
def tuf() -> Tuf:
    return Tuf()


@pytest.fixture
def client(tuf: Tuf, tmp_path: Path) -> Iterator[Client]:
    with serving(tuf.files) as server:
        yield Client(tuf, server, tmp_path)


def sign_again(tuf: Tuf, *roles: str) -> None:
    """Snapshot and timestamp as they are, their versions too. Without hashes, which would be the first to notice."""
    if "snapshot" in roles:
        tuf.files[f"metadata/{tuf.snapshot.version}.snapshot.json"] = tuf.signed(tuf.snapshot, *tuf.signers["snapshot"])
        tuf.timestamp.snapshot_meta = MetaFile(tuf.snapshot.version)
    tuf.files["metadata/timestamp.json"] = tuf.signed(tuf.timestamp, *tuf.signers["timestamp"])


def test_refresh_asks_for_what_it_needs_and_no_more(client: Client, tuf: Tuf) -> None:
    assert client.refresh() == 0
    assert client.server.asked == [
        f"/metadata/{name}" for name in ("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json")
    ]
    assert [client.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1, 1, 1, 1]
    assert client.refresh() == 0
    assert client.server.asked == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_what_is_kept_is_what_was_served_to_the_byte(client: Client, tuf: Tuf) -> None:
    tuf.files["metadata/timestamp.json"] += b" \n"
    assert client.refresh() == 0
    for role in ROLES:
        served = tuf.files[f"metadata/{'' if role == 'timestamp' else '1.'}{role}.json"]
        assert (client.place / "metadata" / f"{role}.json").read_bytes() == served


def test_a_download_begins_with_a_refresh(client: Client) -> None:
    assert client.download("missing") == 1
    assert client.trusted == dict.fromkeys(ROLES, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: root["signed"].pop("version"),
        lambda root: root["signatures"].clear(),
        lambda root: root["signed"].update(version=2),
        lambda root: root["signatures"][0].update(sig="00" * 64),
    ],
    ids=["no version", "no signature", "changed", "signature of something else"],
)
def test_with_a_first_root_that_is_not_sound_nothing_is_asked(client: Client, spoil: Callable[[Any], None]) -> None:
    path = client.place / "root.json"
    root = json.loads(path.read_bytes())
    spoil(root)
    path.write_text(json.dumps(root))
    client._run("init", str(path))
    assert client.refresh() == 1
    assert client.server.asked == []


@pytest.mark.parametrize(
    ("role", "trusted"),
    [
        ("root", {"root": 1}),
        ("timestamp", {"root": 2}),
        ("snapshot", {"root": 2, "timestamp": 2}),
        ("targets", {"root": 2, "timestamp": 2, "snapshot": 2}),
    ],
)
def test_what_nobody_has_signed_ends_it(client: Client, tuf: Tuf, role: str, trusted: dict[str, int]) -> None:
    tuf.signers[role] = []
    tuf.root.version += 1
    tuf.publish_root()
    tuf.publish()
    assert client.refresh() == 1
    assert client.trusted == trusted, "what came before is kept"


@pytest.mark.parametrize(("role", "trusted"), [("timestamp", (1, 1, 1)), ("snapshot", (2, 1, 1)), ("targets", (2, 2, 1))])
def test_what_is_missing_ends_it(client: Client, tuf: Tuf, role: str, trusted: tuple[int, ...]) -> None:
    assert client.refresh() == 0
    tuf.publish()
    del tuf.files["metadata/timestamp.json" if role == "timestamp" else f"metadata/2.{role}.json"]
    assert client.refresh() == 1
    assert (client.version("timestamp"), client.version("snapshot"), client.version("targets")) == trusted


def test_a_repository_without_consistent_snapshots(tmp_path: Path) -> None:
    tuf = Tuf(consistent=False)
    target = tuf.add(b"content", path="file")
    tuf.files["targets/file"] = tuf.files.pop(f"targets/{target.hashes['sha256']}.file")
    tuf.publish()
    with serving(tuf.files) as server:
        client = Client(tuf, server, tmp_path)
        assert client.download("file") == 0
        assert client.downloaded == [b"content"]
        assert "/metadata/snapshot.json" in server.asked


def test_roots_are_followed_one_by_one(client: Client, tuf: Tuf) -> None:
    for name in ("second", "third", "fourth"):
        tuf.rotate("root", name)
    tuf.rotate("targets", "second targets")
    tuf.publish()
    assert client.refresh() == 0
    assert client.version("root") == 5
    tuf.root.version += 2
    tuf.files["metadata/6.root.json"] = tuf.publish_root()
    assert client.refresh() == 1, "a version was left out"
    assert client.version("root") == 5


def test_a_new_root_needs_the_old_keys_and_its_own(client: Client, tuf: Tuf) -> None:
    good = tuf.signers["root"]
    tuf.root.add_key(key("other").public_key, "root")
    tuf.root.roles[Root.type].threshold = 2
    tuf.root.version += 1
    tuf.publish_root()
    assert client.refresh() == 1
    assert client.version("root") == 1
    tuf.signers["root"] = [*good, key("other")]
    tuf.publish_root()
    assert client.refresh() == 0
    assert client.version("root") == 2


def test_a_new_root_is_taken_when_both_thresholds_are_met(tmp_path: Path) -> None:
    """Whoever holds the keys before and after, and whoever else signs: two counts decide, and nothing else."""
    chance, taken = random.Random(7), []
    with serving({}) as server:
        for number in range(16):
            tuf = Tuf()
            role = tuf.root.roles[Root.type]
            old, new, by = (chance.sample("abcde", chance.randint(2, 4)) for _ in range(3))
            before, after = chance.randint(1, 2), chance.randint(1, 2)
            for version, holders, threshold, signing in ((1, old, before, old), (2, new, after, by)):
                role.keyids.clear()
                for name in holders:
                    tuf.root.add_key(key(f"root {name}").public_key, Root.type)
                tuf.root.version, role.threshold = version, threshold
                tuf.signers[Root.type] = [key(f"root {name}") for name in signing]
                tuf.publish_root()
            (place := tmp_path / str(number)).mkdir()
            server.asked.clear()
            client = Client(tuf, server, place)
            wanted = len({*by} & {*old}) >= before and len({*by} & {*new}) >= after
            assert client.refresh() == (0 if wanted else 1), (old, before, new, after, by)
            assert client.version(Root.type) == (2 if wanted else 1)
            taken.append(wanted)
    assert 4 <= sum(taken) <= 12, "both happen"


def test_a_threshold_that_is_not_met(client: Client, tuf: Tuf) -> None:
    for name in ("second", "third"):
        tuf.root.add_key(key(name).public_key, "snapshot")
        tuf.signers["snapshot"].append(key(name))
    tuf.root.roles["snapshot"].threshold = 3
    tuf.root.version += 1
    tuf.publish_root()
    tuf.publish()
    assert client.refresh() == 0
    tuf.signers["snapshot"].pop()
    tuf.publish()
    assert client.refresh() == 1
    tuf.signers["snapshot"].append(key("third"))
    tuf.root.roles["snapshot"].threshold = 4
    tuf.root.version += 1
    tuf.publish_root()
    tuf.publish()
    assert client.refresh() == 1, "more than there are keys"
    assert client.version("root") == 3
    assert client.version("snapshot") != 4


@pytest.mark.parametrize("threshold", [1, 3])
def test_a_key_counts_once(client: Client, tuf: Tuf, threshold: int) -> None:
    role = tuf.root.roles["snapshot"]
    role.keyids, role.threshold = role.keyids * threshold, threshold
    tuf.root.version += 1
    tuf.publish_root()
    snapshot = json.loads(tuf.files["metadata/1.snapshot.json"])
    snapshot["signatures"] *= 3
    tuf.files["metadata/1.snapshot.json"] = json.dumps(snapshot).encode()
    tuf.timestamp.snapshot_meta = MetaFile(1)
    sign_again(tuf)
    assert client.refresh() == 1
    assert client.version("snapshot") is None


@pytest.mark.parametrize("make", [CryptoSigner.generate_rsa, CryptoSigner.generate_ecdsa, CryptoSigner.generate_ed25519])
def test_keys_of_each_kind_sign(client: Client, tuf: Tuf, make: Callable[[], CryptoSigner]) -> None:
    signer = make()
    tuf.root.add_key(signer.public_key, "root")
    tuf.signers["root"].append(signer)
    tuf.root.roles["root"].threshold = 2
    tuf.root.version = 2
    good = json.loads(tuf.publish_root())
    assert client.refresh() == 0
    tuf.root.version = 3
    root = json.loads(tuf.publish_root())
    root["signatures"][1] = good["signatures"][1]
    tuf.files["metadata/3.root.json"] = json.dumps(root).encode()
    assert client.refresh() == 1, "a signature of that key, but of what was before"
    assert client.version("root") == 2


def test_a_bad_signature_beside_a_good_one_does_no_harm(client: Client, tuf: Tuf) -> None:
    tuf.root.add_key(key("second").public_key, "timestamp")
    tuf.signers["timestamp"].append(key("second"))
    tuf.root.version += 1
    tuf.publish_root()
    tuf.publish()
    for version, bad in ((2, json.loads(tuf.files["metadata/timestamp.json"])["signatures"][0]["sig"]), (3, "")):
        tuf.publish()
        timestamp = json.loads(tuf.files["metadata/timestamp.json"])
        timestamp["signatures"][0]["sig"] = bad
        tuf.files["metadata/timestamp.json"] = json.dumps(timestamp).encode()
        assert client.refresh() == 0
        assert client.version("timestamp") == version + 1


def test_fields_that_nobody_knows_are_signed_too(client: Client, tuf: Tuf) -> None:
    signer = CryptoSigner.generate_ed25519()
    signer.public_key.unrecognized_fields = {"keyid_hash_algorithms": ["md5"], "x-owner": {"a": 1}}
    tuf.root.add_key(signer.public_key, "root")
    tuf.signers["root"].append(signer)
    tuf.root.roles["root"].threshold = 2
    tuf.root.roles["root"].unrecognized_fields["x-period"] = 7
    tuf.root.unrecognized_fields["x-more"] = "of the owner"
    tuf.root.version = 2
    tuf.publish_root()
    assert client.refresh() == 0
    assert client.version("root") == 2
    tuf.root.version = 3
    root = json.loads(tuf.publish_root())
    root["signed"]["x-more"] = "of somebody else"
    tuf.files["metadata/3.root.json"] = json.dumps(root).encode()
    assert client.refresh() == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_what_has_expired_is_not_trusted(client: Client, tuf: Tuf, role: str) -> None:
    assert client.refresh() == 0
    getattr(tuf, role).expires = NOW - timedelta(minutes=5)
    if role == "root":
        tuf.root.version += 1
        tuf.publish_root()
    tuf.publish()
    assert client.refresh() == 1
    assert "expired" in client.said
    assert client.version("root") == (2 if role == "root" else 1)
    assert client.version("timestamp") == (1 if role in ("root", "timestamp") else 2)
    assert client.version("snapshot") == (2 if role == "targets" else 1)
    assert client.version("targets") == 1


@pytest.mark.parametrize("role", ["root", "timestamp"])
def test_what_has_expired_leads_on_to_what_has_not(client: Client, tuf: Tuf, role: str) -> None:
    def publish(days: int) -> None:
        getattr(tuf, role).expires = NOW + timedelta(days=days)
        if role == "root":
            tuf.root.version += 1
            tuf.publish_root()
        else:
            tuf.publish()

    publish(7)
    assert client.refresh() == 0
    client.days = 18
    assert client.refresh() == 1
    publish(21)
    assert client.refresh() == 0
    assert client.version(role) == 3


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a_version_that_is_not_that_of_its_name(client: Client, tuf: Tuf, role: str) -> None:
    signed = getattr(tuf, role)
    signed.version = 2
    tuf.files[f"metadata/1.{role}.json"] = tuf.signed(signed, key(role))
    if role == "targets":
        tuf.snapshot.meta["targets.json"] = MetaFile(1)
        sign_again(tuf, "snapshot")
    else:
        tuf.timestamp.snapshot_meta = MetaFile(1)
        sign_again(tuf)
    assert client.refresh() == 1
    assert client.version(role) is None


def test_a_timestamp_that_changes_within_its_version_is_not_taken(client: Client, tuf: Tuf) -> None:
    assert client.refresh() == 0
    kept = (client.place / "metadata" / "timestamp.json").read_bytes()
    tuf.timestamp.snapshot_meta = MetaFile(100)
    sign_again(tuf)
    assert client.refresh() == 0
    assert client.server.asked[-1] == "/metadata/timestamp.json"
    assert (client.place / "metadata" / "timestamp.json").read_bytes() == kept


def test_a_snapshot_is_no_timestamp(client: Client, tuf: Tuf) -> None:
    """Signed by the right key, and all that a timestamp says is in it."""
    odd = Snapshot(version=2, expires=NOW + timedelta(days=9), meta={"snapshot.json": MetaFile(1)})
    tuf.files["metadata/timestamp.json"] = tuf.signed(odd, key("timestamp"))
    assert client.refresh() == 1
    assert client.trusted == {"root": 1}


def test_the_timestamp_never_goes_back(client: Client, tuf: Tuf) -> None:
    assert client.refresh() == 0
    old = tuf.files["metadata/timestamp.json"]
    tuf.publish()
    assert client.refresh() == 0
    tuf.files["metadata/timestamp.json"] = old
    assert client.refresh() == 1
    assert client.version("timestamp") == 2


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_no_version_goes_back(client: Client, tuf: Tuf, role: str) -> None:
    tuf.publish()
    assert client.refresh() == 0
    getattr(tuf, role).version = 0
    tuf.publish()
    tuf.timestamp.version = 9
    assert client.refresh() == 1


def test_a_snapshot_that_forgets_a_role_is_refused(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["f*"])
    tuf.publish()
    assert client.refresh() == 0
    del tuf.snapshot.meta["friend.json"]
    del tuf.delegated["friend"]
    tuf.publish()
    assert client.refresh() == 1
    assert client.version("snapshot") == 2


def test_fast_forward_is_recovered_from_by_new_keys(client: Client, tuf: Tuf) -> None:
    """Somebody stole keys and set versions to the highest there is; new keys begin anew."""
    tuf.timestamp.version = 99998
    tuf.snapshot.version = 99998
    tuf.publish()
    assert client.refresh() == 0
    assert client.version("timestamp") == 99999
    tuf.rotate("timestamp", "new timestamp")
    tuf.rotate("snapshot", "new snapshot")
    tuf.timestamp.version, tuf.snapshot.version = 1, 1
    tuf.publish()
    assert client.refresh() == 0
    assert client.version("timestamp") == 2


def test_a_new_snapshot_key_lets_targets_begin_anew(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["f*"])
    tuf.targets.version = 98
    tuf.publish()
    assert client.refresh() == 0
    assert client.version("targets") == 99
    tuf.rotate("snapshot", "new snapshot")
    tuf.targets.version = 0
    del tuf.delegated["friend"], tuf.snapshot.meta["friend.json"]
    tuf.publish()
    assert client.refresh() == 0
    assert client.version("targets") == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_key_that_is_no_longer_the_roles_signs_nothing(client: Client, tuf: Tuf, role: str) -> None:
    assert client.refresh() == 0
    tuf.rotate(role, f"other {role}")
    tuf.signers[role] = [key(role)]
    tuf.publish()
    assert client.refresh() == 1
    tuf.signers[role] = [key(f"other {role}")]
    tuf.publish()
    assert client.refresh() == 0


def test_metadata_that_is_not_what_was_named_is_refused(client: Client, tuf: Tuf) -> None:
    good = tuf.files["metadata/1.snapshot.json"]
    tuf.files["metadata/1.snapshot.json"] = good + b" "
    assert client.refresh() == 1
    tuf.files["metadata/1.snapshot.json"] = good
    assert client.refresh() == 0


def test_downloads_by_the_command_line_itself(client: Client, tuf: Tuf) -> None:
    client.process = True
    tuf.add(b"first", path="a/b/file.txt")
    tuf.add(b"other", path="other.txt")
    tuf.publish()
    assert client.download("a/b/file.txt") == 0
    assert client.downloaded == [b"first"]
    assert client.download("a/b/file.txt") == 0
    assert not any("targets/" in path.removeprefix("/metadata") and "file.txt" in path for path in client.server.asked), "kept"
    tuf.add(b"second", path="a/b/file.txt")
    tuf.publish()
    assert client.download("a/b/file.txt") == 0
    assert client.downloaded == [b"second"], "in the place of the first"
    assert client.download("missing") == 1
    for name in [name for name in tuf.files if "other.txt" in name]:
        tuf.files[name] = b"malicious data, and longer"
    assert client.download("other.txt") == 1
    for name in [name for name in tuf.files if "other.txt" in name]:
        tuf.files[name] = b"bad"
    assert client.download("other.txt") == 1
    assert client.downloaded == [b"second"]


def test_several_targets_in_one_go(client: Client, tuf: Tuf) -> None:
    for name in ("one", "two", "three"):
        tuf.add(name.encode(), path=name)
    tuf.publish()
    assert client.download("one", "missing", "two") == 1
    assert client.downloaded == [b"one"], "in that order, up to the first that fails"
    assert client.download("two", "one", "three") == 0
    assert client.downloaded == [b"one", b"three", b"two"]
    assert [path.rpartition(".")[2] for path in client.server.asked if "/targets/" in path] == ["two", "three"]


@pytest.mark.parametrize("hashes", [["sha512"], ["sha256", "sha512"]])
def test_targets_by_other_hashes(client: Client, tuf: Tuf, hashes: list[str]) -> None:
    target = TargetFile.from_data("file", b"content", hashes)
    tuf.targets.targets["file"] = target
    tuf.files |= {f"targets/{value}.file": b"content" for value in target.hashes.values()}
    tuf.publish()
    assert client.download("file") == 0
    assert client.downloaded == [b"content"]
    target.hashes = {"unheard-of": target.hashes["sha512"]}
    tuf.publish()
    (client.place / "targets" / "file").unlink()
    assert client.download("file") == 1
    assert client.downloaded == []


def test_names_that_want_out_stay_in(client: Client, tuf: Tuf) -> None:
    tuf.add(b"content", path="../../outside")
    for name in [name for name in tuf.files if "outside" in name]:
        tuf.files[name.replace("targets/../../", "")] = tuf.files[name]
    tuf.publish()
    client.download("../../outside")
    assert not (client.place.parent / "outside").exists()
    assert not (client.place / "outside").exists()


def test_delegations_are_walked_in_order(client: Client, tuf: Tuf) -> None:
    tuf.delegate("a", ["x*"])
    tuf.delegate("b", ["*"])
    tuf.delegate("c/d", ["x*"], parent="a")
    tuf.add(b"of a", path="x1", role="a")
    tuf.add(b"of b", path="x1", role="b")
    tuf.add(b"of c", path="x2", role="c/d")
    tuf.add(b"not its to give", path="y", role="a")
    tuf.publish()
    assert client.download("x1") == 0
    assert client.downloaded == [b"of a"]
    assert client.download("x2") == 0
    assert "/metadata/2.c%2Fd.json" in client.server.asked
    assert client.downloaded == [b"of a", b"of c"]
    assert client.download("y") == 1


@pytest.mark.parametrize(
    ("delegations", "walked"),
    [
        ("targets>a targets>b a>c a>d", "acdb"),
        ("targets>a targets>b a>c c>d", "acdb"),
        ("targets>a! targets>b a>c", "ac"),
        ("targets>a targets>b a>c! a>d c>e", "ace"),
        ("targets>a targets>b b>c c>d d>b", "abcd"),
        ("targets>a targets>b b>c a>c", "acb"),
        ("targets>a=*.txt targets>b a>c", "b"),
        ("targets>a targets>b b>c a>c=*.txt", "abc"),
    ],
)
def test_the_way_through_delegations(client: Client, tuf: Tuf, delegations: str, walked: str) -> None:
    """`parent>role`, `!`: nobody else is asked after it, `=`: the paths."""
    for delegation in delegations.split():
        parent, _, role = delegation.partition(">")
        role, _, path = role.partition("=")
        tuf.delegate(role.rstrip("!"), [path or "*"], parent, terminating=role.endswith("!"))
    tuf.publish()
    assert client.download("missing") == 1
    assert client.server.asked[4:] == [f"/metadata/2.{role}.json" for role in walked]


def test_a_pattern_ends_with_its_folder(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["*.md", "part-?.bin"])
    for path in ("a.md", "docs/a.md", "a.MD", "part-1.bin", "part-10.bin"):
        tuf.add(b"content", path=path, role="friend")
    tuf.publish()
    assert [client.download(path) for path in ("a.md", "docs/a.md", "a.MD", "part-1.bin", "part-10.bin")] == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", "a%2Fb"])
def test_odd_names_of_roles_stay_in(client: Client, tuf: Tuf, role: str) -> None:
    tuf.delegate(role, ["*"])
    tuf.add(b"content", path="file", role=role)
    tuf.publish()
    assert client.download("file") == 0
    assert f"/metadata/2.{quote(role, safe='')}.json" in client.server.asked
    assert len(client.trusted) == 5
    assert {path.name for path in client.place.iterdir()} == {"metadata", "targets", "root.json"}


def test_a_role_that_the_snapshot_does_not_list_is_not_asked(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["*"])
    tuf.add(b"content", path="file", role="friend")
    tuf.publish()
    del tuf.snapshot.meta["friend.json"]
    sign_again(tuf, "snapshot")
    assert client.download("file") == 1
    assert client.trusted.keys() == {*ROLES}
    assert not any("friend" in path for path in client.server.asked)


def test_a_delegated_role_that_has_expired_gives_nothing(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["*"])
    tuf.delegated["friend"].expires = NOW - timedelta(minutes=5)
    tuf.add(b"one", path="one", role="friend")
    tuf.add(b"two", path="two", role="friend")
    tuf.publish()
    assert client.refresh() == 0
    assert client.download("one") == 1
    assert client.trusted.keys() == {*ROLES}
    tuf.delegated["friend"].expires = NOW + timedelta(days=7)
    tuf.publish()
    assert client.download("one") == 0
    client.days = 18
    assert client.download("two") == 1, "it is kept, and too old by now"
    assert client.downloaded == [b"one"]
    tuf.delegated["friend"].expires = NOW + timedelta(days=21)
    tuf.publish()
    assert client.download("two") == 0


def test_a_role_that_two_delegate_to_is_verified_for_each(client: Client, tuf: Tuf) -> None:
    """What one of them vouches for is nothing that the other has said, in the same process neither."""
    for parent in ("a", "b"):
        tuf.delegate(parent, [f"{parent}/*"])
        tuf.delegate("shared", [f"{parent}/*"], parent)
        tuf.add(parent.encode(), path=f"{parent}/file", role="shared")
    tuf.delegated["b"].revoke_key(key("shared").public_key.keyid, "shared")
    tuf.delegated["b"].add_key(key("of b alone").public_key, "shared")
    tuf.publish()
    assert client.download("a/file", "b/file") == 1
    assert client.downloaded == [b"a"]
    tuf.signers["shared"].append(key("of b alone"))
    tuf.publish()
    assert client.download("a/file", "b/file") == 0
    assert client.downloaded == [b"a", b"b"]


def test_a_delegation_by_another_key_is_refused(client: Client, tuf: Tuf) -> None:
    tuf.delegate("friend", ["*"])
    tuf.add(b"content", path="x", role="friend")
    tuf.signers["friend"] = [key("thief")]
    tuf.publish()
    assert client.download("x") == 1
    assert isinstance(tuf.delegated["friend"], Targets)


def test_a_repository_of_others_at_rest(tmp_path: Path) -> None:
    """As static files that a web server has: nothing is computed when they are asked for."""
    tuf = Tuf()
    tuf.add(b"content", path="file")
    tuf.publish()
    tuf.write(tmp_path / "static")
    files = {str(path.relative_to(tmp_path / "static")): path.read_bytes() for path in (tmp_path / "static").rglob("*.*")}
    with serving(files) as server:
        (tmp_path / "client").mkdir()
        client = Client(tuf, server, tmp_path / "client")
        tuf.files = files
        assert client.download("file") == 0


def test_a_command_line_that_is_incomplete_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge.updating.conformance", "--metadata-dir", str(tmp_path), "refresh"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert "--metadata-url is missing" in done.stderr
