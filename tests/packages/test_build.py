"""`make dist`: whoever makes it again gets the same bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY, deb

from deploy.deb import released
from deploy.oci import DEBIAN


def again(folder: Path, *what: str, time_s: str | None = None) -> Path:
    """Elsewhere, with another umask, another time zone and another language."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    environment = os.environ | {"TMPDIR": str(temporary), "TZ": "Pacific/Kiritimati", "LC_ALL": "C"}
    if time_s is not None:
        environment["SOURCE_DATE_EPOCH"] = time_s
    command = [sys.executable, "-m", "deploy.dist", *what, "--out", folder / "out"]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, umask=0o077)
    return folder / "out"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheel_and_sdist_are_the_same_when_made_again(made: Path, tmp_path: Path) -> None:
    """The control: with another time they are not."""
    same, other = again(tmp_path / "same", "wheel"), again(tmp_path / "other", "wheel", time_s="1000000000")
    for name in (f"amiss-{released()}-py3-none-any.whl", f"amiss-{released()}.tar.gz"):
        assert digest(same / name) == digest(made / name)
        assert digest(other / name) != digest(made / name)


def test_a_package_is_the_same_when_made_again(made: Path, tmp_path: Path) -> None:
    out = again(tmp_path / "same", "deb", "--debian", str(DEBIAN), "--arch", "arm64")
    package = deb(made, DEBIAN, "arm64")
    assert digest(out / package.name) == digest(package)


def test_the_sums_are_of_everything(made: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=made, check=True)
    named = {line.split("  ", 1)[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in made.iterdir()} - {"SHA256SUMS"}


def test_the_wheel_has_the_boards(made: Path) -> None:
    """In the repository they are behind a link."""
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", made / f"amiss-{released()}-py3-none-any.whl"], capture_output=True, text=True
    )
    assert "quantize/boards/raspberry-pi-4.toml" in listed.stdout
