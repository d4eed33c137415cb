"""Archives made to do harm, with a good signature: none is opened, and nothing but the store is ever written."""

import hashlib
import io
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundle import build
from test_store import opened, put

from edge.bundle import Bundle
from edge.errors import BundleError
from edge.updating.store import Model

Craft = Callable[[dict[str, bytes]], bytes]


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def members_of(path: Path | io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def link(members: dict[str, bytes]) -> bytes:
    """`README.md` is a symbolic link to a password file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name == "README.md":
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                data = b"/etc/passwd"
            archive.writestr(info, data)
    return buffer.getvalue()


def patched(old: bytes, new: bytes) -> Craft:
    assert len(old) == len(new)
    return lambda members: zipped(members).replace(old, new)


def twice(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in [*members.items(), *members.items()]:
            archive.writestr(name, data)
    return buffer.getvalue()


CRAFTED: dict[str, Craft] = {
    "up and out": lambda members: zipped({**members, "../../outside": b"x"}),
    "from the root": lambda members: zipped({**members, f"{Path.cwd().parents[1]}/outside": b"x"}),
    "backslashes": lambda members: zipped({**members, "..\\..\\outside": b"x"}),
    "a drive": lambda members: zipped({**members, "C:outside": b"x"}),
    "an end of text": lambda members: zipped({**members, "x\0/../outside": b"x"}),
    "a folder": lambda members: zipped({**members, "model.onnx/": b""}),
    "a link": link,
    "a pickle": lambda members: zipped({**members, "head.pkl": b"cos\nsystem\n(S'touch outside'\ntR."}),
    "external weights": lambda members: zipped({**members, "model.onnx.data": b"x"}),
    "compressed": lambda members: zipped(members, zipfile.ZIP_DEFLATED),
    "a bomb": lambda members: zipped({**members, "README.md": bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "twice": twice,
    "renamed in one place": patched(b"README.md# small", b"OUTSIDEmd# small"),
    "nested": lambda members: zipped({"bundle.amiss": zipped(members)}),
    "cut": lambda members: zipped(members)[:-40],
    "another kind": lambda members: b"#!/bin/sh\ntouch outside\n",
    "a manifest that is another's": lambda members: zipped({**members, "manifest.json": b"{}"}),
    "arrays that are pickles": lambda members: zipped(
        {**members, "head.npz": zipped({"a.npy": b"\x93NUMPY\x01\0v\0{'descr': '|O'"})}
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that paths from where we are and from the store lead into, also those that lead up and those from the root."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


@pytest.mark.parametrize("how", CRAFTED)
def test_nothing_outside_the_store_is_written(place: Path, how: str) -> None:
    data = CRAFTED[how](members_of(build(place / "good.amiss")))
    digest = hashlib.sha256(data).hexdigest()
    with opened(place / "device") as models:
        before = set(place.rglob("*"))
        path = put(models, data)
        models.stage(Model(digest, 1))
        assert models.switch().path == path
        with pytest.raises(BundleError):
            Bundle.open(path)
        assert set(place.rglob("*")) - before == {path}
        models.mark_bad(digest, "not a bundle")
        assert models.serve().role == "factory"


@pytest.mark.parametrize("how", ["up and out", "from the root"])
def test_the_control_who_unpacks_as_it_says_writes_outside_the_store(place: Path, how: str) -> None:
    data = CRAFTED[how](members_of(build(place / "good.amiss")))
    with opened(place / "device") as models:
        before = set(place.rglob("*"))
        for name, content in members_of(io.BytesIO(data)).items():
            (models.store / name).write_bytes(content)
        written = {path for path in set(place.rglob("*")) - before if models.store not in path.parents}
        assert [path.name for path in written] == ["outside"]


def test_the_control_what_was_not_crafted_opens(tmp_path: Path) -> None:
    members = members_of(build(tmp_path / "good.amiss"))
    (tmp_path / "again.amiss").write_bytes(zipped(members))
    assert Bundle.open(tmp_path / "again.amiss").channels
