"""Files from the network, whole and proven, or not at all.

A download that was cut goes on where it stopped (HTTP Range), in the same call and in the next one: what has come lies in a
hidden `.part` file beside the target. The target itself appears only after its content is proven. There are two proofs:

- the SHA-256 of the file;
- the id that git gives its content. A commit id is a hash over the ids of its folders, theirs over the ids of their files, so
  whoever pins a commit has pinned every byte below it. `git_ids` has git fetch and check that chain without the files
  themselves. It is as strong as git's SHA-1, with git's own detection of forged collisions.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import CannotCreateError, DataError, SourceLostError, StorageError

TIMEOUT_S = 30.0
LISTING_TIMEOUT_S = 300.0
ATTEMPTS = 5
"""In a row that bring nothing new; one that does starts the count again."""
LONGEST_WAIT_S = 60.0
CHUNK = 1 << 16
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a file has to be."""

    kind: str
    """`sha256` or `git`."""
    digest: str
    """In hexadecimal, small letters."""

    def of(self, path: Path) -> str:
        """The digest that the file has."""
        with path.open("rb") as file:
            if self.kind == "sha256":
                found = hashlib.sha256()
            else:
                found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while chunk := file.read(1 << 20):
                found.update(chunk)
        return found.hexdigest()

    def fits(self, path: Path) -> bool:
        return path.is_file() and self.of(path) == self.digest


class _CutError(Exception):
    """Worth another attempt."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """How long the source wants to be left alone."""


def download(url: str, target: Path, proof: Proof, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Bring one file to `target`.

    Raises `SourceLostError` when the source does not answer (what has come is kept for the next call), `DataError` when it
    gives something else than `proof` wants (nothing is kept), `StorageError` when the disk is full and `CannotCreateError` for
    every other trouble with it.
    """
    part = target.with_name(f".{target.name}.part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier, fruitless, most = _size(part) > 0, 0, _size(part)
        while True:
            try:
                _continue(url, part)
            except _CutError as cut:
                fruitless = 0 if _size(part) > most else fruitless + 1
                most = max(most, _size(part))
                if fruitless >= ATTEMPTS:
                    raise SourceLostError(f"{url}: {cut}; try again later, what has come is kept") from None
                sleep(min(LONGEST_WAIT_S, max(cut.wait_s, 2.0**fruitless - 1)))
                continue
            if proof.fits(part):
                _settle(part, target)
                return
            found = proof.of(part)
            part.unlink()
            if not earlier:
                raise DataError(
                    f"{url}: {proof.kind} {found[:16]}…, expected {proof.digest[:16]}…; the source was changed or damaged on "
                    "the way, nothing of it was kept"
                )
            earlier = False  # the first part came from an earlier call and may be at fault: once more, from the start


def git_ids(repository: str, commit: str) -> dict[str, str]:
    """Path → git's id of its content, for every plain file of a commit; checked up to the commit's own id.

    Fetches the commit and its folders, not the files. Raises `SourceLostError` when there is no git, or no answer.
    """
    with tempfile.TemporaryDirectory(prefix="amiss-") as folder:
        _git("init", "-q", "--bare", folder)
        _git("--git-dir", folder, "remote", "add", "origin", repository)
        _git("--git-dir", folder, "fetch", "-q", "--depth", "1", "--no-tags", "--filter=blob:none", "origin", commit)
        listing = _git("--git-dir", folder, "ls-tree", "-r", "-z", "--full-tree", commit).decode()
    found = {}
    for entry in filter(None, listing.split("\0")):
        facts, path = entry.split("\t", 1)
        mode, kind, digest = facts.split()
        if kind == "blob" and mode.startswith("100"):  # no symbolic links
            found[path] = digest
    return found


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Trouble with the disk, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{target}: the disk is full; free some space and say the same again: what has come is kept"
            ) from None
        raise CannotCreateError(f"{target}: cannot be written: {error.strerror or error}") from None


def _continue(url: str, part: Path) -> None:
    """What is missing of `part`, appended to it; from the start when the source can not do otherwise."""
    have = _size(part)
    headers = {"User-Agent": "amiss", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing beyond what we have: the proof tells whether that is all, or too much
            return
        if error.code in TRANSIENT:
            seconds = error.headers.get("Retry-After", "")
            raise _CutError(
                f"the source answers {error.code} {error.reason}", float(seconds) if seconds.isdigit() else 0.0
            ) from None
        raise SourceLostError(f"{url}: the source answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _CutError(_reason(error)) from None
    with answer:
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        goes_on = answer.status == 206 and start is not None and int(start[1]) == have
        if answer.status == 206 and not goes_on:
            part.unlink()
            raise _CutError("the source gave another part of the file than was asked for")
        length = answer.headers.get("Content-Length", "")
        wanted = int(length) if length.isdigit() else None
        came = 0
        with part.open("ab" if goes_on else "wb") as file:
            while True:
                try:
                    chunk = answer.read1(CHUNK)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _CutError(f"the connection was cut: {_reason(error)}") from None
                if not chunk:
                    break
                file.write(chunk)
                came += len(chunk)
        if wanted is not None and came < wanted:
            raise _CutError(f"the connection was cut after {came} of {wanted} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _settle(part: Path, target: Path) -> None:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__


def _git(*arguments: str) -> bytes:
    # The folder, the terminal and the language are ours, not those of a repository that the command happens to stand in.
    environ = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environ |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *arguments], env=environ, capture_output=True, timeout=LISTING_TIMEOUT_S, check=True)
    except FileNotFoundError:
        raise SourceLostError("git proves what is fetched and is not installed: apt install git") from None
    except subprocess.TimeoutExpired:
        raise SourceLostError(f"git {arguments[-2]}: no answer within {LISTING_TIMEOUT_S:g} s; try again") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise SourceLostError(f"git cannot fetch the list of files: {said[-1]}") from None
    return done.stdout
