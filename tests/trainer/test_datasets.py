"""Data sets from a mirror: every file is checked, nothing wrong is kept, and what is there is not fetched again."""

import hashlib
from pathlib import Path

import pytest
import skab

from edge.errors import AccessError, DataError, NoInputError, SourceLostError, UsageError
from trainer import datasets
from trainer.datasets import DATASETS, DataSet, fetch

FILES = {"a/one.csv": b"time,x\n0,1\n", "b.csv": b"time,x\n0,2\n"}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}
    tiny = DataSet(
        name="tiny", title="Tiny", source="https://example.org", license="CC0", url="http://127.0.0.1:9/x", files=digests
    )
    monkeypatch.setitem(DATASETS, "tiny", tiny)
    for path, content in FILES.items():
        (tmp_path / "mirror/tiny" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror/tiny" / path).write_bytes(content)
    return tmp_path / "mirror"


def get(mirror: Path | str | None, dest: Path, said: list[str] | None = None) -> int:
    environ = {} if mirror is None else {"AMISS_DATASETS": str(mirror)}
    say = (said if said is not None else []).append
    return fetch("tiny", dest, accept_license=True, say=say, environ=environ)


def test_fetches_from_a_folder_and_a_file_url(mirror: Path, tmp_path: Path) -> None:
    for number, where in enumerate((mirror, mirror.as_uri())):
        dest = tmp_path / f"out{number}"
        assert get(where, dest) == 2
        assert {path: (dest / "tiny" / path).read_bytes() for path in FILES} == FILES


def test_continues_where_it_stopped(mirror: Path, tmp_path: Path) -> None:
    get(mirror, tmp_path / "out")
    (tmp_path / "out/tiny/b.csv").write_bytes(b"half")
    (mirror / "tiny/a/one.csv").unlink()  # not needed: the copy is right
    said: list[str] = []
    get(mirror, tmp_path / "out", said)
    assert (tmp_path / "out/tiny/b.csv").read_bytes() == FILES["b.csv"]
    assert [line for line in said if ".csv" in line] == ["  2/2 b.csv"]


def test_a_tampered_file_is_refused_and_not_kept(mirror: Path, tmp_path: Path) -> None:
    (mirror / "tiny/b.csv").write_bytes(b"time,x\n0,3\n")
    with pytest.raises(DataError, match=r"b\.csv: SHA-256"):
        get(mirror, tmp_path / "out")
    assert not (tmp_path / "out/tiny/b.csv").exists()


def test_license_is_shown_and_has_to_be_accepted(mirror: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(AccessError, match="--accept-license"):
        fetch("tiny", tmp_path / "out", say=said.append, environ={"AMISS_DATASETS": str(mirror)})
    assert "CC0" in said[0]
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="skab"):
        fetch("skabb", tmp_path)
    with pytest.raises(NoInputError, match="AMISS_DATASETS"):
        get(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SourceLostError, match=r"127\.0\.0\.1"):  # a port where nobody listens
        get(None, tmp_path / "out")


def test_the_table_is_complete() -> None:
    table = DATASETS["skab"]
    assert len(table.files) == 35
    assert all(len(digest) == 64 for digest in table.files.values())
    assert "b2c0d46c2971dcbfe71e26087b6d231998bb91c2" in table.url
    assert not any(Path(path).is_absolute() or ".." in path for path in table.files)


def test_skab_from_a_real_mirror(tmp_path: Path) -> None:
    environ = {"AMISS_DATASETS": str(skab.folder().parent)}
    assert datasets.fetch("skab", tmp_path, accept_license=True, say=lambda _: None, environ=environ) == 35
    assert (tmp_path / "skab/valve1/0.csv").is_file()
