"""What the public tuf-conformance suite asks of a client, asked of ours by its own command line, over real HTTP.

Where `process` is not set the command line runs in this process, which is quicker and no other code. The suite itself needs
faketime and a network; docs/howto/tuf-conformance.md says how to run it. These are its main cases.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Targets
from tuf_repository import NOW, Server, Tuf, key, serving

from edge.updating.conformance import main


class Client:
    def __init__(self, tuf: Tuf, server: Server, place: Path) -> None:
        self.tuf, self.server, self.place = tuf, server, place
        self.said, self.process = "", False
        (place / "root.json").write_bytes(tuf.first_root)
        (place / "metadata").mkdir()
        (place / "targets").mkdir()
        assert self._run("init", str(place / "root.json")) == 0
        assert server.asked == []

    def _run(self, *arguments: str) -> int:
        whole = ["--metadata-dir", str(self.place / "metadata"), *arguments]
        if not self.process:
            with contextlib.redirect_stderr(io.StringIO()) as said:
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

    def download(self, name: str) -> int:
        self.server.asked.clear()
        self.server.files = self.tuf.files
        urls = ["--metadata-url", f"{self.server.url}/metadata", "--target-base-url", f"{self.server.url}/targets"]
        return self._run(*urls, "--target-name", name, "--target-dir", str(self.place / "targets"), "download")

    def version(self, role: str) -> int | None:
        path = self.place / "metadata" / f"{role}.json"
        return int(Metadata.from_file(str(path)).signed.version) if path.exists() else None

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


def test_refresh_asks_for_what_it_needs_and_no_more(client: Client, tuf: Tuf) -> None:
    assert client.refresh() == 0
    assert client.server.asked == [
        f"/metadata/{name}" for name in ("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json")
    ]
    assert [client.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1, 1, 1, 1]
    assert client.refresh() == 0
    assert client.server.asked == ["/metadata/2.root.json", "/metadata/timestamp.json"]


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
    assert client.version("targets") == 1


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
