"""install.sh where there is no package: in a Debian that plays another system, with wheels from a folder instead of PyPI."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chroot import Chroot

from deploy.deb import PLATFORMS, PYTHONS, released

DEBIAN = 12
WHEEL = f"amiss-{released()}-py3-none-any.whl"
LINKS = {".amiss-install", "bin", "current", "lib", "pyvenv.cfg"}
STATE = "/var/lib/private/amiss/outbox.db"


@pytest.fixture(scope="module")
def wheels(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would fetch."""
    folder = tmp_path_factory.mktemp("wheels")
    target = ["--implementation", "cp", "--python-version", PYTHONS[DEBIAN]]
    target += [option for name in PLATFORMS for option in ("--platform", f"{name}_x86_64")]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    wanted = f"{made / WHEEL}[update,modbus]"
    subprocess.run([*pip, *target, "-c", made / "constraints.txt", "-d", folder, wanted], check=True)
    return folder


@pytest.fixture(scope="module")
def system(made: Path, device: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Chroot:
    root = Chroot(DEBIAN, "amd64", tmp_path_factory.mktemp("system") / "root")
    beside = ("install.sh", "constraints.txt", "amiss.service", "60-amiss.rules", WHEEL, "SHA256SUMS")
    for file in [made / name for name in beside if (made / name).exists()]:
        root.put(file, f"/srv/new release/{file.name}")  # a folder with a blank
    for file in wheels.iterdir():
        root.put(file, f"/srv/wheels/{file.name}")
    for file in device.iterdir():
        root.put(file, f"/srv/{file.name}")
    return root


OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/srv/wheels", "PIP_ROOT_USER_ACTION": "ignore"}


def install(root: Chroot, *options: str, code: int = 0) -> str:
    return root.run("sh", "/srv/new release/install.sh", *options, code=code, env=OFFLINE)


def test_the_life_of_an_installation(system: Chroot, device: Path, tmp_path: Path) -> None:
    """Told first, installed, again, an upgrade that fails and one that does not, taken away; what is its owner's stays."""
    before = system.tree()
    config = system.write("/etc/amiss/device.toml", 'node = "kept"\n')
    state = system.write(STATE, "alerts")
    (system.path / "var/lib/amiss").symlink_to("private/amiss")
    own = system.tree() - before
    program, unit = system.path / "opt/amiss/bin/amiss", system.path / "etc/systemd/system/amiss.service"

    def kept() -> bool:
        return config.read_text() == 'node = "kept"\n' and state.read_text() == "alerts"

    told = install(system, "--dry-run")
    assert f"amiss {released()} for x86_64" in told
    assert "/etc/amiss/device.toml                    is kept as it is" in told
    assert system.tree() == before | own

    assert install(system, "--yes").endswith(f"amiss {released()} is installed.\n")
    assert system.run("amiss", "--version") == f"amiss {released()}\n"
    system.run("amiss", "score", "/srv/small.amiss", "/srv/r.csv", "--out", "/tmp/there.csv")
    assert (system.path / "tmp/there.csv").read_text() == (device / "scores.csv").read_text()
    system.run("/opt/amiss/bin/python", "-c", "import edge.updating.fetch, tuf, pymodbus")
    assert "amiss" in system.run("/opt/amiss/bin/pip", "list", "--disable-pip-version-check")
    assert system.run("systemd-analyze", "verify", "/etc/systemd/system/amiss.service") == ""
    assert (system.path / "etc/systemd/system/multi-user.target.wants/amiss.service").is_symlink()
    assert kept()

    first = os.readlink(system.path / "opt/amiss/current")
    install(system, "--yes")
    second = os.readlink(system.path / "opt/amiss/current")
    assert first != second
    assert {path.name for path in (system.path / "opt/amiss").iterdir()} == LINKS | {second}

    # A newer release, for which a wheel is not to be had: what was there goes on.
    (numpy,) = (system.path / "srv/wheels").glob("numpy-*.whl")
    away = numpy.rename(system.path / "srv" / numpy.name)
    said = install(system, "--yes", code=69)
    assert "Nothing was changed" in said
    assert os.readlink(system.path / "opt/amiss/current") == second
    assert {path.name for path in (system.path / "opt/amiss").iterdir()} == LINKS | {second}
    assert system.run("amiss", "--version") == f"amiss {released()}\n"
    away.rename(numpy)
    assert kept()

    said = system.run("sh", "/srv/new release/install.sh", "--uninstall", "--yes")
    assert "leaves /etc/amiss" in said
    assert not program.exists()
    assert not unit.exists()
    assert kept()
    left = system.tree() - before - own
    assert {path for path in left if "systemd" not in path} <= {"etc/udev/rules.d"}


def test_purge_takes_what_was_learned(system: Chroot) -> None:
    install(system, "--yes")
    state = system.write(STATE, "alerts")
    system.run("sh", "/srv/new release/install.sh", "--uninstall", "--purge", "--yes")
    assert not state.exists()
    assert not (system.path / "var/lib/amiss").is_symlink()


def test_another_place(system: Chroot) -> None:
    install(system, "--yes", "--prefix", "/usr/local/lib/amiss")
    text = (system.path / "etc/systemd/system/amiss.service").read_text()
    assert re.findall("^ExecStart=(.*?) ", text, re.MULTILINE) == ["/usr/local/lib/amiss/bin/amiss"]
    assert system.run("amiss", "--version") == f"amiss {released()}\n"
    system.run("sh", "/srv/new release/install.sh", "--uninstall", "--yes", "--prefix", "/usr/local/lib/amiss")


def test_beside_a_package_it_is_refused(system: Chroot) -> None:
    """The status that dpkg writes; the package itself would be built for nothing else."""
    status = system.path / "var/lib/dpkg/status"
    was = status.read_text()
    entry = "Package: amiss\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nMaintainer: x\nDescription: x\n"
    status.write_text(f"{was}\n{entry}")
    try:
        assert "installed as a Debian package" in install(system, "--yes", code=73)
    finally:
        status.write_text(was)


def test_what_is_real_and_does_not_fit_is_refused(system: Chroot, tmp_path: Path) -> None:
    """A byte of the wheel, and a Python without venv."""
    wheel = system.path / "srv/new release" / WHEEL
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    try:
        assert "half a download" in install(system, "--yes", code=65)
    finally:
        wheel.write_bytes(whole)
    ensurepip = system.path / f"usr/lib/python{PYTHONS[DEBIAN]}/ensurepip"
    away = ensurepip.rename(ensurepip.with_name("away"))
    try:
        assert "no venv module" in install(system, "--yes", code=69)
    finally:
        away.rename(ensurepip)
