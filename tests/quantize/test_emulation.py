"""Where nothing can be emulated that is said, with the cure. What is emulated is shown in tests/arm64."""

from pathlib import Path

import pytest

from quantize import emulation
from quantize.emulation import EmulationError, find, key


def test_what_was_not_prepared_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(EmulationError, match=r"there is no .*python -m quantize.emulation") as caught:
        find(tmp_path / "arm64")
    assert caught.value.exit_code == 69
    (tmp_path / "arm64").mkdir()
    (tmp_path / "arm64" / "key").write_text("of another time")
    with pytest.raises(EmulationError, match="of other versions"):
        find(tmp_path / "arm64")
    (tmp_path / "arm64" / "key").write_text(key())
    assert find(tmp_path / "arm64").folder == tmp_path / "arm64", "the control"


def test_without_qemu_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (find, emulation.prepare):
        with pytest.raises(EmulationError, match=r"qemu-aarch64.* not installed: sudo apt-get install"):
            ask(tmp_path / "arm64")
    assert list(tmp_path.iterdir()) == []


def test_the_key_follows_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    assert key() == before
    monkeypatch.setattr(emulation, "WHEELS", ("numpy",))
    assert key() != before
