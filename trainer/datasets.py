"""Public data sets: fetched from their source by commit, every byte proven, and turned into recordings.

None of them is part of this package; each has its own license, which is shown and has to be accepted. What is to be fetched is
in datasets/<name>.json; what becomes of it, in conversions.py. A fetched set is a folder:

    train/ test/   recordings; in some sets whole/ beside them
    README.md      source, commit, license, citation, and how to read the labels
    fetched.json   what is there, with SHA-256; written last, so a set is whole or not there
    the rest       the files as published, under their own paths: may be deleted, or serve another machine as a mirror

`AMISS_DATASETS=`, a folder or a file:// URL that holds <name>/<path as published>, takes the place of the network.
"""

import hashlib
import importlib.resources
import os
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import msgspec

from edge.errors import AccessError, DataError, NoInputError, UsageError
from edge.files import at_once
from edge.sensing.recordings import write_recording
from trainer.conversions import CONVERSIONS
from trainer.download import Proof, download, git_ids, writing
from trainer.progress import Report, Step

AT_A_TIME = 8
"""Files; one set has thousands of small ones."""
MANIFEST = "fetched.json"


class DataSet(msgspec.Struct, frozen=True, kw_only=True):
    """datasets/<name>.json"""

    name: str
    title: str
    what: str
    """In a few words."""
    channels: int
    rate: str
    """For a person."""
    rows: int
    """Of all recordings that the authors publish and we take, before anything is split or left out."""
    download_mb: float
    """About."""
    format: str
    """Of the recordings: `csv` or `parquet`."""
    source: str
    """Home page, for a person."""
    license: str
    cite: str
    notes: str
    """How it was split and what the labels are worth."""
    example: str
    """A recording to begin with; empty where all of train/ belongs together."""
    repository: str
    """For git."""
    commit: str
    url: str
    """Where files are fetched from: this, a slash, and the path. Holds the commit."""
    files: dict[str, str] = {}
    """Path → SHA-256, where all are known."""
    patterns: tuple[str, ...] = ()
    """Otherwise: which paths of the commit; `*` stays within a folder."""
    excerpt: tuple[str, ...] = ()
    """What a mirror may hold instead of the files as published: paths from the mirror's root, arrays in .npz."""


class Stored(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int
    rows: int


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """fetched.json"""

    name: str
    origin: str
    proven: bool
    """False: taken from a mirror on trust."""
    files: dict[str, Stored]

    @property
    def rows(self) -> int:
        return sum(stored.rows for stored in self.files.values())


def _known() -> dict[str, DataSet]:
    folder = importlib.resources.files("trainer") / "datasets"
    found = (
        msgspec.json.decode(entry.read_bytes(), type=DataSet) for entry in folder.iterdir() if entry.name.endswith(".json")
    )
    return {dataset.name: dataset for dataset in sorted(found, key=lambda dataset: dataset.name)}


DATASETS = _known()


def terms(name: str) -> str:
    """What a person should read before accepting the license. Raises `UsageError` for an unknown name."""
    dataset = _named(name)
    return f"{dataset.title}\n  from     {dataset.source}\n  license  {dataset.license}\n  cite     {dataset.cite}"


def fetch(
    name: str,
    dest: Path,
    *,
    accept_license: bool = False,
    say: Callable[[str], None] = print,
    report: Report = lambda step: None,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Put a data set into `dest`/`name`.

    Continues where it stopped: files that are there and right are kept. When anything fails, the recordings of an earlier call
    are still there. Raises `UsageError` for an unknown name, `AccessError` when the license is not accepted, `SourceLostError`
    when the source does not answer, `NoInputError` when a mirror does not have it, `DataError` when something else comes than
    should, `StorageError` and `CannotCreateError` for trouble with the disk.
    """
    dataset, folder = _named(name), dest / name
    if not accept_license:
        raise AccessError(
            f"{name}: the license ({dataset.license}) is not accepted; read it at {dataset.source}, then say --accept-license"
        )
    if dataset.format == "parquet":
        import pyarrow  # noqa: F401  # an absent one should be known before the download, not after
    mirror = _mirror(environ)
    origin = f"{dataset.repository} at {dataset.commit}" if mirror is None else f"mirror {mirror}"
    there = fetched(name, dest)
    if there and there.origin == origin and _is_whole(there, folder):
        say(f"  nothing to do: {folder} is whole")
        return there
    if mirror is None:
        files, proven = _from_source(dataset, folder, report, sleep), True
    else:
        files, proven = _from_mirror(dataset, mirror)
    say(f"  {len(files)} files, now to be turned into recordings")
    result = _convert(dataset, files, folder, origin, proven)
    if not proven:
        say(f"  taken from {mirror} on trust: not compared with the commit")
    return result


def _named(name: str) -> DataSet:
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}; there are: {', '.join(DATASETS)}")
    return DATASETS[name]


def fetched(name: str, dest: Path) -> Fetched | None:
    """What lies in `dest`/`name`; None when the set is not there or not whole, going by the sizes."""
    try:
        found = msgspec.json.decode((dest / name / MANIFEST).read_bytes(), type=Fetched)
        whole = all((dest / name / path).stat().st_size == stored.bytes for path, stored in found.files.items())
    except (OSError, msgspec.MsgspecError):
        return None
    return found if whole else None


def _is_whole(there: Fetched, folder: Path) -> bool:
    return all(Proof("sha256", stored.sha256).fits(folder / path) for path, stored in there.files.items())


def _mirror(environ: Mapping[str, str]) -> Path | None:
    mirror = environ.get("AMISS_DATASETS")
    if not mirror:
        return None
    scheme = urllib.parse.urlsplit(mirror).scheme
    if scheme == "file":
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(mirror).path))
    if scheme in ("http", "https"):
        raise UsageError(f"AMISS_DATASETS={mirror}: a mirror is a folder or a file:// URL")
    return Path(mirror)


def _from_source(dataset: DataSet, folder: Path, report: Report, sleep: Callable[[float], None]) -> dict[str, Path]:
    proofs = {path: Proof("sha256", digest) for path, digest in dataset.files.items()}
    if not proofs:
        ids = git_ids(dataset.repository, dataset.commit)
        for pattern in dataset.patterns:
            matching = [path for path in ids if _matches(path, pattern)]
            if not matching:
                raise DataError(f"{dataset.name}: nothing in {dataset.repository} at {dataset.commit[:12]} matches {pattern}")
            proofs |= {path: Proof("git", ids[path]) for path in matching}
    for path in proofs:
        if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute():
            raise DataError(f"{dataset.name}: {path!r} leads out of the folder")
    with writing(folder):
        missing = sorted(path for path, proof in proofs.items() if not proof.fits(folder / path))
    done = len(proofs) - len(missing)
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        work = {
            pool.submit(download, f"{dataset.url}/{urllib.parse.quote(path)}", folder / path, proofs[path], sleep=sleep): path
            for path in missing
        }
        for future in as_completed(work):
            future.result()
            done += 1
            report(Step(done, len(proofs), work[future]))
    finally:
        pool.shutdown(cancel_futures=True)
    return {path: folder / path for path in proofs}


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _from_mirror(dataset: DataSet, mirror: Path) -> tuple[dict[str, Path], bool]:
    """The files, where they are, and whether they are proven to be those of the commit."""
    base = mirror / dataset.name
    if dataset.files:
        for path, digest in sorted(dataset.files.items()):
            try:
                found = Proof("sha256", digest).of(base / path)
            except OSError as error:
                raise NoInputError(
                    f"{base / path}: cannot be read: {error.strerror}; AMISS_DATASETS names the mirror"
                ) from None
            if found != digest:
                raise DataError(f"{base / path}: SHA-256 {found[:16]}…, expected {digest[:16]}…; the mirror is damaged")
        return {path: base / path for path in dataset.files}, True
    published = _found(base, dataset.patterns)
    excerpt = _found(mirror, dataset.excerpt)
    if not published and not excerpt:
        wanted = " nor ".join([str(base / dataset.patterns[0]), *(str(mirror / pattern) for pattern in dataset.excerpt[:1])])
        raise NoInputError(f"the mirror has no {dataset.name}: neither {wanted}; AMISS_DATASETS names the mirror")
    return published or excerpt, False


def _found(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Path from `folder` → file; empty unless every pattern has some."""
    found = [sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in patterns]
    return {path.relative_to(folder).as_posix(): path for paths in found for path in paths} if all(found) else {}


def _convert(dataset: DataSet, files: Mapping[str, Path], folder: Path, origin: str, proven: bool) -> Fetched:
    """Everything is written beside the place where it belongs, and moved there when all of it is whole."""
    draft = folder / ".recordings.part"
    stored = {}
    try:
        with writing(draft):
            shutil.rmtree(draft, ignore_errors=True)
            for name, recording in CONVERSIONS[dataset.name](files):
                path = f"{name}.{dataset.format}"
                write_recording(draft / path, recording)
                stored[path] = _stored(draft / path, len(recording.time_ns))
            (draft / "README.md").write_text(_readme(dataset, origin, proven), "utf-8")
            before = fetched(dataset.name, folder.parent)
            (folder / MANIFEST).unlink(missing_ok=True)  # from here to the end the set is not whole
            for path in [*stored, "README.md"]:
                (folder / path).parent.mkdir(exist_ok=True)
                os.replace(draft / path, folder / path)
            for path in set(before.files if before else ()) - set(stored):
                (folder / path).unlink(missing_ok=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    result = Fetched(name=dataset.name, origin=origin, proven=proven, files=stored)
    with at_once(folder / MANIFEST) as manifest:
        manifest.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    return result


def _stored(file: Path, rows: int) -> Stored:
    with file.open("rb") as content:
        return Stored(hashlib.file_digest(content, "sha256").hexdigest(), file.stat().st_size, rows)


def _readme(dataset: DataSet, origin: str, proven: bool) -> str:
    how = "every file compared with it" if proven else "taken on trust, not compared with the commit"
    train, test = (f"{part}/{dataset.example}.{dataset.format}" if dataset.example else part for part in ("train", "test"))
    return f"""# {dataset.title}

{dataset.what}.

- Source: {dataset.source}, commit `{dataset.commit}`
- Fetched from: {origin}; {how}
- License: {dataset.license}
- Cite: {dataset.cite}

{dataset.notes}

    amiss train --data {train} --out run
    amiss quantize run --out model.amiss
    amiss evaluate model.amiss {test}
"""
