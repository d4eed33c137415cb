"""What goes into packages, as far as it can be told without building any; the rest is `make packages`."""

import gzip
import hashlib
import io
import itertools
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from deploy import deb, dist
from deploy.deb import PackageError, Target

UNIT = (deb.REPOSITORY / "deploy/systemd/amiss.service").read_text()


def test_the_unit_starts_the_program_of_the_package() -> None:
    text = deb.unit(UNIT)
    assert re.findall("^ExecStart=(.*)$", text, re.MULTILINE) == ["/usr/bin/amiss run --config /etc/amiss/device.toml"]
    assert "/opt/" not in text
    assert "/etc/systemd" not in text


@pytest.mark.parametrize(
    "slip",
    [
        ("ExecStart=/opt/amiss/bin/amiss ", "ExecStart=/opt/amiss/venv/bin/amiss "),
        ("ConditionPathExists=", "#ConditionPathExists="),
        ("EnvironmentFile=-", "EnvironmentFile="),
        ("# /etc/systemd/system/amiss.service; ", "# "),
    ],
)
def test_a_unit_that_no_longer_fits_is_refused(slip: tuple[str, str]) -> None:
    assert slip[0] in UNIT
    with pytest.raises(PackageError, match=r"amiss\.service"):
        deb.unit(UNIT.replace(*slip))


def test_versions_are_in_the_order_of_releases_and_of_debians() -> None:
    """By dpkg's own word."""
    order = [
        Target(d, "arm64").version(v)
        for v in ("0.1.0.dev1", "0.1.0a1", "0.1.0rc1", "0.1.0", "0.1.1", "0.10.0")
        for d in (12, 13)
    ]
    assert order[4:8] == ["0.1.0~rc1+deb12", "0.1.0~rc1+deb13", "0.1.0+deb12", "0.1.0+deb13"]
    for lower, higher in itertools.pairwise(order):
        subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)
    assert Target(13, "arm64").file_name("0.1.0") == "amiss_0.1.0+deb13_arm64.deb"


def test_a_requirement_that_pip_left_out_is_told(tmp_path: Path) -> None:
    """pip judges markers by the Python it runs under: this one is needed on 3.13 alone."""

    def distribution(name: str, version: str, *needs: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Requires-Dist: {need}\n" for need in needs]
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}")

    distribution("amiss", "1", "a>=1", 'b; extra == "update"', 'c; extra == "train"')
    distribution("a", "1.5", 'late; python_version >= "3.13"', 'arm; platform_machine == "aarch64"')
    distribution("b", "1", "a>=2")
    assert deb.lacking(tmp_path, Target(12, "amd64")) == ["a>=2"]
    assert deb.lacking(tmp_path, Target(13, "amd64")) == ["a>=2", "late"]
    assert deb.lacking(tmp_path, Target(12, "arm64")) == ["a>=2", "arm"]


def test_an_sdist_is_the_same_whoever_made_it_and_when(tmp_path: Path) -> None:
    def made(time_s: int, user: int, names: tuple[str, ...]) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid, member.uname = 4, time_s, user, f"user{user}"
                archive.addfile(member, io.BytesIO(b"text"))
        return dist._repacked(packed.getvalue(), 10)

    first, second = made(1, 0, ("a", "b")), made(2, 1000, ("b", "a"))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == ["a", "b"]
        assert archive.extractfile("a").read() == b"text"  # type: ignore[union-attr]
        assert {member.mtime for member in archive} == {10}
    assert gzip.decompress(first)


def test_the_sums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").write_text("one")
    sums = dist.write_sums(tmp_path)
    assert dist.write_sums(tmp_path).read_text() == sums.read_text(), "not of itself"
    assert sums.read_text().startswith(f"{hashlib.sha256(b'one').hexdigest()}  a\n")
    subprocess.run(["sha256sum", "-c", "--status", sums.name], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("another")
    assert subprocess.run(["sha256sum", "-c", "--status", sums.name], cwd=tmp_path, check=False).returncode == 1


def test_the_time_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "12")
    assert dist.epoch() == 12
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PackageError, match="whole number of seconds, not 'yesterday'"):
        dist.epoch()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert dist.epoch() > 1_700_000_000


def test_what_is_kept_is_not_shipped() -> None:
    """dpkg asks about a conffile that was there before it: device.toml is often written before the package is installed."""
    scripts = {
        name: re.sub("echo .*", "", (deb.DEBIAN / name).read_text()) for name in ("preinst", "postinst", "prerm", "postrm")
    }
    assert not [name for name, text in scripts.items() if re.search(r"(>|cp|mv|install|rm -rf?) +\S*/etc/amiss", text)]
    for text in scripts.values():
        assert text.startswith("#!/bin/sh\nset -e\n")
