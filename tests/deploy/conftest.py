import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shop import WORDS, Make, Parts, Run, Shop
from small_bundle import members

import amiss
from deploy import keyfiles
from edge.bundle import write_bundle


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfiles, "SCRYPT_N", 16)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return members()


@pytest.fixture
def make(tmp_path: Path, parts: Parts) -> Make:
    """A real bundle with other words in its manifest."""

    def make(version: str = "1", name: str = "pump", readme: str = "", **changes: Any) -> Path:
        manifest, files = parts
        path = tmp_path / f"{name}-{version}{len(readme) or ''}.amiss"
        write_bundle(
            path,
            msgspec.structs.replace(manifest, name=name, version=version, **changes),
            files | {"README.md": readme.encode()},
        )
        return path

    return make


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    words = tmp_path / "words"
    words.touch(0o600)
    words.write_text(WORDS)
    monkeypatch.setenv("AMISS_KEY_PASSPHRASE_FILE", str(words))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amiss", *arguments])
        code = 0
        try:
            amiss.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
