"""Downloads from a real server that misbehaves, and lists of files from a real repository."""

import hashlib
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from origin import Origin, repository

from edge.errors import CannotCreateError, DataError, SourceLostError, StorageError
from trainer.download import ATTEMPTS, Proof, download, git_ids

CONTENT = bytes(range(256)) * 2000  # more than the buffers between server and client hold
WANTED = Proof("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"a b/data.csv": CONTENT}) as running:
        yield running


def bring(origin: Origin, folder: Path, proof: Proof = WANTED) -> list[float]:
    """Fetches the file; returns the pauses that were made."""
    pauses: list[float] = []
    download(f"{origin.url}/a%20b/data.csv", folder / "x/data.csv", proof, sleep=pauses.append)
    return pauses


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_comes_whole(origin: Origin, tmp_path: Path) -> None:
    bring(origin, tmp_path)
    assert (tmp_path / "x/data.csv").read_bytes() == CONTENT
    assert left(tmp_path) == ["data.csv"]


@given(cuts=st.lists(st.integers(1, len(CONTENT) // 4), max_size=12), ranges=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_often_it_is_cut_it_comes_whole(cuts: list[int], ranges: bool, origin: Origin, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    origin.asked.clear()
    cuts = cuts if ranges else cuts[: ATTEMPTS - 1]  # without Range every attempt begins anew, and not for ever
    origin.cuts, origin.ranges = list(cuts), ranges
    bring(origin, tmp_path)
    assert (tmp_path / "x/data.csv").read_bytes() == CONTENT
    assert left(tmp_path) == ["data.csv"]
    if ranges:  # each went on exactly where the one before it broke off
        at = [0, *(sum(cuts[: i + 1]) for i in range(len(cuts)))]
        expected = [f"bytes={start}-" if start else None for start in at if start < len(CONTENT)]
        assert [wanted for _, wanted in origin.asked][: len(expected)] == expected


def test_the_next_call_goes_on_where_the_last_one_stopped(origin: Origin, tmp_path: Path) -> None:
    origin.cuts = [1000] + [0] * ATTEMPTS
    with pytest.raises(SourceLostError, match="what has come is kept"):
        bring(origin, tmp_path)
    assert left(tmp_path) == [".data.csv.part"]
    origin.cuts = []
    bring(origin, tmp_path)
    assert origin.asked[-1] == ("a b/data.csv", "bytes=1000-")
    assert (tmp_path / "x/data.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_source_that_never_gets_further_is_given_up(ranges: bool, origin: Origin, tmp_path: Path) -> None:
    origin.cuts, origin.ranges = [100] + [0 if ranges else 100] * 50, ranges
    with pytest.raises(SourceLostError, match="connection was cut"):
        bring(origin, tmp_path)
    assert len(origin.asked) == 1 + ATTEMPTS


def test_a_server_that_misplaces_a_range_does_no_harm(origin: Origin, tmp_path: Path) -> None:
    origin.cuts, origin.misplaced = [5000], True
    bring(origin, tmp_path)
    assert (tmp_path / "x/data.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"not the beginning of it", CONTENT, CONTENT + b"more"], ids=["damaged", "whole", "longer"])
def test_whatever_lies_there_from_before_the_file_comes_right(part: bytes, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/.data.csv.part").write_bytes(part)
    bring(origin, tmp_path)
    assert (tmp_path / "x/data.csv").read_bytes() == CONTENT
    assert left(tmp_path) == ["data.csv"]


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_another_content_is_refused_and_nothing_of_it_kept(kind: str, origin: Origin, tmp_path: Path) -> None:
    right = Proof(kind, Proof(kind, "").of(_file(tmp_path / "right", CONTENT)))
    bring(origin, tmp_path / "control", right)  # the control: the right one passes
    origin.files["a b/data.csv"] = CONTENT[:-1] + b"\x00"
    with pytest.raises(DataError, match=f"{kind} .*expected {right.digest[:16]}"):
        bring(origin, tmp_path / "out", right)
    assert left(tmp_path / "out") == []


def test_a_source_that_is_busy_is_asked_again_when_it_says(origin: Origin, tmp_path: Path) -> None:
    origin.refusals = [(503, {}), (429, {"Retry-After": "7"}), (429, {"Retry-After": "100000"})]
    assert bring(origin, tmp_path) == [1.0, 7.0, 60.0]


def test_a_file_that_is_not_there_is_asked_for_once(origin: Origin, tmp_path: Path) -> None:
    del origin.files["a b/data.csv"]
    with pytest.raises(SourceLostError, match="404"):
        bring(origin, tmp_path)
    assert len(origin.asked) == 1


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(SourceLostError, match=r"127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", WANTED, sleep=lambda _: None)


def test_a_full_disk_is_one_line(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/.data.csv.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        bring(origin, tmp_path)
    assert not (tmp_path / "x/data.csv").exists()


def test_a_place_that_cannot_be_written_to_is_one_line(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file where a folder should be")
    with pytest.raises(CannotCreateError, match="cannot be written"):
        bring(origin, tmp_path)


def test_git_ids_are_those_of_the_contents(tmp_path: Path) -> None:
    files = {"data/a b.csv": b"1\n", "data/deep/c.csv": b"", "top.txt": "ü\r\n".encode()}
    url, commit = repository(tmp_path / "repository", files)
    ids = git_ids(url, commit)
    assert set(ids) == set(files)
    for path, content in files.items():
        assert Proof("git", ids[path]).fits(_file(tmp_path / "f", content))
        assert not Proof("git", ids[path]).fits(_file(tmp_path / "f", content + b"!"))


def test_a_symbolic_link_in_a_repository_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/link").symlink_to("/etc/passwd")
    assert set(git_ids(*repository(tmp_path / "repository", {"a": b"1"}))) == {"a"}


def test_only_the_list_is_fetched_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, commit = repository(tmp_path / "repository", {"big": os.urandom(300_000), "small": b"1"})
    monkeypatch.setenv("GIT_TRACE_PACKET", str(tmp_path / "trace"))
    assert len(git_ids(url, commit)) == 2
    assert "filter blob:none" in (tmp_path / "trace").read_text()


def test_a_commit_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    url, _ = repository(tmp_path / "repository", {"a": b"1"})
    with pytest.raises(SourceLostError, match=r"git cannot fetch the list of files: .*not our ref"):
        git_ids(url, "1" * 40)
    with pytest.raises(SourceLostError, match="git cannot fetch"):
        git_ids((tmp_path / "nowhere").as_uri(), "1" * 40)


def test_a_forged_folder_does_not_pass_for_the_commit(tmp_path: Path) -> None:
    """A repository that serves another list under the right id of the commit."""
    url, commit = repository(tmp_path / "repository", {"a.csv": b"1\n"})
    folder = tmp_path / "repository"
    ids = git_ids(url, commit)
    tree = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD^{tree}"], capture_output=True, text=True, check=True)
    entry = b"100644 a.csv\0" + bytes.fromhex("11" * 20)
    forged = folder / ".git/objects" / tree.stdout[:2] / tree.stdout[2:].strip()
    forged.chmod(0o644)
    forged.write_bytes(zlib.compress(b"tree %d\0" % len(entry) + entry))
    with pytest.raises(SourceLostError, match="git cannot fetch"):
        git_ids(url, commit)
    assert set(ids) == {"a.csv"}  # the control: it was accepted before


def test_without_git_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceLostError, match="apt install git"):
        git_ids("https://example.org/x", "1" * 40)


def _file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
