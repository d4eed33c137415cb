"""Public data sets: fetched from their source by commit, every file checked by SHA-256.

None of them is part of this package; each has its own license, which is shown and has to be accepted. What is to be fetched is
in datasets/<name>.json. `AMISS_DATASETS=`, a folder or a file:// URL that holds <name>/<path>, takes the place of the network.
"""

import hashlib
import importlib.resources
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from edge.errors import AccessError, DataError, NoInputError, SourceLostError, UsageError
from edge.files import at_once

TIMEOUT_S = 30.0


class DataSet(msgspec.Struct, frozen=True, kw_only=True):
    """datasets/<name>.json"""

    name: str
    title: str
    source: str
    """Home page, for a person."""
    license: str
    url: str
    """Where files are fetched from: this, a slash, and the key in `files`. Holds the commit."""
    files: dict[str, str]
    """Path → SHA-256."""


def _known() -> dict[str, DataSet]:
    folder = importlib.resources.files("trainer") / "datasets"
    found = (
        msgspec.json.decode(entry.read_bytes(), type=DataSet) for entry in folder.iterdir() if entry.name.endswith(".json")
    )
    return {dataset.name: dataset for dataset in sorted(found, key=lambda dataset: dataset.name)}


DATASETS = _known()


def fetch(
    name: str,
    dest: Path,
    *,
    accept_license: bool = False,
    say: Callable[[str], None] = print,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Put a data set into `dest`/`name`; returns the number of its files.

    Continues where it stopped: files that are there and right are kept. Raises `UsageError` for an unknown name,
    `AccessError` when the license is not accepted, `SourceLostError` when the source does not answer and `DataError` when it
    gives something else than it should.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}; there are: {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    say(f"{dataset.title}\n  from {dataset.source}\n  license {dataset.license}")
    if not accept_license:
        raise AccessError(f"{name} comes under {dataset.license}; read it at {dataset.source}, then say --accept-license")
    for number, (path, digest) in enumerate(sorted(dataset.files.items()), 1):
        target = dest / name / path
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == digest:
            continue
        content = _read(dataset, path, environ.get("AMISS_DATASETS"))
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise DataError(
                f"{name}/{path}: SHA-256 {found[:16]}…, expected {digest[:16]}…; the source was changed or damaged on the way, "
                "nothing of it was kept"
            )
        with at_once(target) as draft:
            draft.write_bytes(content)
        say(f"  {number}/{len(dataset.files)} {path}")
    return len(dataset.files)


def _read(dataset: DataSet, path: str, mirror: str | None) -> bytes:
    if mirror:
        root = urllib.request.url2pathname(urllib.parse.urlsplit(mirror).path) if mirror.startswith("file://") else mirror
        file = Path(root) / dataset.name / path
        try:
            return file.read_bytes()
        except OSError as error:
            raise NoInputError(f"{file}: cannot be read: {error.strerror}; AMISS_DATASETS names the mirror") from None
    url = f"{dataset.url}/{urllib.parse.quote(path)}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise SourceLostError(f"{url}: the source answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceLostError(f"{url}: {getattr(error, 'reason', error)}; try again, what was fetched is kept") from None
