import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle

from edge.bundle import Bundle, pack_arrays, unpack_arrays, verify, write_bundle
from edge.errors import AmissError, BundleError, CannotCreateError, NoInputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_bundle.build(tmp_path_factory.mktemp("bundle") / "small.amiss", windows=200).read_bytes()


def rewrite(data: bytes, change: Callable[[dict[str, bytes]], None], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with some members changed, as somebody without the build machine would."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def open_bytes(data: bytes, tmp_path: Path) -> Bundle:
    path = tmp_path / "b.amiss"
    path.write_bytes(data)
    return Bundle.open(path)


def test_the_digest_is_what_sha256sum_prints(whole: bytes, tmp_path: Path) -> None:
    assert open_bytes(whole, tmp_path).digest == hashlib.sha256(whole).hexdigest()


def test_the_same_input_gives_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    assert small_bundle.build(tmp_path / "again.amiss", windows=200).read_bytes() == whole


@pytest.mark.parametrize("scorer", ["mahalanobis", "knn"])
def test_a_scorer_survives_the_journey_and_golden_windows_give_golden_scores(scorer: str, tmp_path: Path) -> None:
    bundle = Bundle.open(small_bundle.build(tmp_path / "b.amiss", scorer=scorer, windows=200))
    assert bundle.self_test().worst == 0


def test_self_test_notices_another_model_under_the_same_golden_windows(whole: bytes, tmp_path: Path) -> None:
    manifest, members = small_bundle.members(windows=200)
    golden = dict(np.load(io.BytesIO(members["golden.npz"])))
    golden["score"] = golden["score"] * 1.01
    write_bundle(tmp_path / "b.amiss", manifest, {**members, "golden.npz": pack_arrays(golden)})
    with pytest.raises(BundleError, match=r"self-test failed: .* differ"):
        Bundle.open(tmp_path / "b.amiss").self_test()


def drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.pop(name) and None


def put(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({name: content})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("model.onnx"), "model.onnx or model.tflite is missing"),
        (drop("head.npz"), "head.npz is missing"),
        (put("model.tflite", b"x"), "the manifest does not name the members that are there"),
        (put("../../etc/passwd", b"x"), "unknown member"),
        (put("head.pkl", b"x"), "unknown member"),
        (put("model.onnx", b"x"), "model.onnx is not the file that the manifest names"),
        (put("manifest.json", b'{"schema": 99}'), "schema 99; this agent reads schema 1"),
        (put("manifest.json", b"{"), "manifest.json"),
        (put("README.md", b"x" * ((1 << 20) + 1)), "is the limit"),
    ],
)
def test_what_does_not_keep_the_rules_is_refused(
    change: Callable[[dict[str, bytes]], None], says: str, whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=says):
        open_bytes(rewrite(whole, change), tmp_path)
    open_bytes(rewrite(whole, lambda members: None), tmp_path)  # the control: unchanged, the same way of writing is accepted


def test_compressed_members_are_refused(whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="compressed"):
        open_bytes(rewrite(whole, lambda members: None, compression=zipfile.ZIP_DEFLATED), tmp_path)


def test_a_member_twice_is_refused(whole: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("README.md", b"another")
    with pytest.raises(BundleError, match="twice"):
        open_bytes(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 100])
def test_foreign_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle") as caught:
        open_bytes(content, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bundle_for_a_newer_agent_is_refused(tmp_path: Path) -> None:
    manifest, members = small_bundle.members(windows=200)
    write_bundle(tmp_path / "b.amiss", msgspec.structs.replace(manifest, minimum_agent="9.0.0"), members)
    with pytest.raises(BundleError, match=r"made for agent 9\.0\.0 or newer"):
        Bundle.open(tmp_path / "b.amiss")


def test_an_array_that_claims_more_than_there_is_is_refused_before_room_is_made_for_it() -> None:
    """Forty terabytes in a file of a few hundred bytes; numpy believes the header."""
    good = pack_arrays({"x": np.zeros((2, 3), np.float32)})
    assert unpack_arrays(good)["x"].shape == (2, 3)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(buffer, "w") as new:
        was, claims = b"(2, 3), }" + b" " * 11, b"(9999999999999,), } "
        data = old.read("x.npy")
        assert was in data
        new.writestr("x.npy", data.replace(was, claims))
    with pytest.raises(BundleError, match="claims"):
        unpack_arrays(buffer.getvalue())
    with pytest.raises(MemoryError), np.load(io.BytesIO(buffer.getvalue())) as control:
        control["x"]


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    manifest, members = small_bundle.members(windows=200)
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}], dtype=object))
    write_bundle(tmp_path / "b.amiss", manifest, {**members, "golden.npz": buffer.getvalue()})
    with pytest.raises(BundleError, match="of object"):
        Bundle.open(tmp_path / "b.amiss")


def test_a_model_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    manifest, members = small_bundle.members(windows=200)
    write_bundle(tmp_path / "b.amiss", manifest, {**members, "model.onnx": b"\x08\x07garbage"})
    with pytest.raises(BundleError, match="ONNX Runtime cannot load") as caught:
        Bundle.open(tmp_path / "b.amiss")
    assert "\n" not in str(caught.value)


def test_no_bit_may_flip_unnoticed(whole: bytes) -> None:
    """Wherever a member's content is damaged it is refused; in the archive's own bookkeeping a flip may be harmless."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            _manifest, members = verify(bytes(damaged))
        except BundleError:
            refused += 1
        else:
            assert members == {name: content for name, content in contents.items() if name != "manifest.json"}
    assert refused > 350


def test_truncation_anywhere_is_refused(whole: bytes) -> None:
    for length in np.random.default_rng(0).integers(0, len(whole), 60):
        with pytest.raises(BundleError):
            verify(whole[:length])


def test_absent_and_unwritable(tmp_path: Path, whole: bytes) -> None:
    with pytest.raises(NoInputError, match="amiss quantize"):
        Bundle.open(tmp_path / "none.amiss")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError):
        small_bundle.build(tmp_path / "file" / "b.amiss", windows=200)


def test_a_failed_write_leaves_the_old_bundle_and_no_crumbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_bundle.build(tmp_path / "b.amiss", windows=200)
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.files.os.fsync", full)
    with pytest.raises(AmissError, match="No space left"):
        small_bundle.build(path, windows=300)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
