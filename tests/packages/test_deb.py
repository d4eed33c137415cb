"""The Debian packages, in the Debians they are for: what dpkg, apt and lintian make of them, and that amiss works from them."""

import csv
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroot import Chroot
from conftest import deb
from mosquitto import Listener, Mosquitto, until

from deploy.deb import GLIBC, LIB, TARGETS, Target, released

NATIVE = [Target(12, "amd64"), Target(13, "amd64")]
TRIED = [*NATIVE, Target(13, "arm64")]
Figures = dict[str, dict[str, object]]


def name(target: Target) -> str:
    return f"{target.debian}-{target.architecture}"


def install(root: Chroot, package: Path, code: int | None = 0) -> str:
    """As a user would: apt sees to what it depends on, or says why not."""
    return root.run("apt-get", "install", "--allow-downgrades", "--reinstall", root.put(package, "/tmp/amiss.deb"), code=code)


def of_version(package: Path, version: str, folder: Path) -> Path:
    """The same package under another version."""
    subprocess.run(["dpkg-deb", "-R", package, folder / version], check=True)
    control = folder / version / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE))
    other = folder / f"{version}.deb"
    subprocess.run(["dpkg-deb", "-b", "-Znone", folder / version, other], check=True, stdout=subprocess.DEVNULL)
    return other


def configure(root: Chroot, port: str, broker_port: int) -> None:
    """One stream of the small bundle's channels."""
    root.write(
        "/etc/amiss/device.toml",
        f'node = "n"\nbundle = "/srv/small.amiss"\nstate_dir = "/var/lib/amiss"\n[streams.s]\nport = "{port}"\n'
        f'columns = ["vibration", "y", "current", "t", "speed"]\n[mqtt]\nhost = "127.0.0.1"\nport = {broker_port}\n',
    )


@pytest.fixture(scope="module", params=TRIED, ids=name)
def installed(request: pytest.FixtureRequest, made: Path, device: Path, tmp_path_factory: pytest.TempPathFactory) -> Chroot:
    target: Target = request.param
    root = Chroot(target.debian, target.architecture, tmp_path_factory.mktemp("root") / "root")
    install(root, deb(made, target.debian, target.architecture))
    for file in device.iterdir():
        root.put(file, f"/srv/{file.name}")
    return root


@pytest.fixture
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chroot]:
    root = Chroot(request.param.debian, request.param.architecture, tmp_path / "root")
    yield root
    shutil.rmtree(root.path)


def test_it_scores_as_here(installed: Chroot, device: Path) -> None:
    assert installed.run("amiss", "--version") == f"amiss {released()}\n"
    assert "golden scores within" in installed.run("amiss", "inspect", "/srv/small.amiss", "--verify")
    installed.run("amiss", "score", "/srv/small.amiss", "/srv/r.csv", "--out", "/srv/there.csv")
    with (device / "scores.csv").open() as ours, (installed.path / "srv/there.csv").open() as theirs:
        rows = list(zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True))
    assert len(rows) == 400
    for here, there in rows:
        assert here.keys() == there.keys()
        assert (here["time"], here["alarm"]) == (there["time"], there["alarm"])
        for column in here.keys() - {"time", "alarm"}:
            assert here[column] == there[column] or float(there[column]) == pytest.approx(float(here[column]), abs=1e-4)


def test_its_python_is_its_own(installed: Chroot) -> None:
    """Not even a broken numpy of the user's gets in; the control: into Debian's Python it does."""
    python = f"python{Target(installed.debian, 'amd64').python}"
    site = f"/root/.local/lib/{python}/site-packages"
    for folder in (site, "/srv/path"):
        installed.write(f"{folder}/numpy/__init__.py", "raise SystemExit('not ours')")
    environment = {"PYTHONPATH": "/srv/path"}
    assert "not ours" in installed.run(python, "-c", "import numpy", code=1)
    assert "not ours" in installed.run(python, "-c", "import numpy", code=1, env=environment)
    installed.run("amiss", "inspect", "/srv/small.amiss", "--verify", env=environment)
    installed.run("sh", "-c", "cd /srv/path && amiss inspect /srv/small.amiss --verify")


def test_what_some_devices_need_is_there(installed: Chroot) -> None:
    """For updates and Modbus, as a child of the agent finds it."""
    told = installed.run(
        f"/{LIB}/bin/python3", "-c", "import edge.updating.fetch, tuf, cryptography, pymodbus, sys; print(sys.path)"
    )
    assert f"/{LIB}/lib" in told
    assert "dist-packages" not in told


def test_byte_code_is_there_after_the_install(installed: Chroot) -> None:
    ours = installed.path / LIB
    sources = {path for path in ours.rglob("*.py") if "site-packages" in path.parts}
    compiled = {path.parent.parent / f"{path.name.split('.')[0]}.py" for path in ours.rglob("__pycache__/*.pyc")}
    assert compiled >= {path for path in sources if path.is_relative_to(ours) and "/edge/" in str(path)}
    assert len(compiled) > 0.95 * len(sources)


AGENT = """
amiss simulate --serial /srv/tty --seconds 900 --rate 100 2>/srv/machine.log &
until [ -e /srv/tty ]; do sleep 0.2; done
amiss check --config /etc/amiss/device.toml || exit 99
amiss run --config /etc/amiss/device.toml 2>/srv/agent.log &
agent=$!
read -r go_on
grep -E '^(Rss|Private_)' /proc/$agent/smaps_rollup
amiss ask ping
kill -TERM $agent
wait $agent
"""


def test_the_agent_runs_from_it(installed: Chroot, mosquitto: Mosquitto, figures: Figures) -> None:
    """On a serial port, against a broker: found well by `amiss check`, online, asked by `amiss ask`, ended in order."""
    configure(installed, "/srv/tty", mosquitto.port)
    (installed.path / "var/lib/amiss").mkdir(exist_ok=True)
    compiled = set((installed.path / LIB).rglob("*.pyc"))
    with Listener(mosquitto.port, "amiss/#") as listener:
        agent = subprocess.Popen(
            installed.command("sh", "-c", AGENT),
            env=installed.environment({"PYTHONDONTWRITEBYTECODE": "1"}),  # as the unit has it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until(lambda: b"online" in listener.payloads("amiss/n/s/availability") or agent.poll() is not None, 300)
            if agent.poll() is None:
                time.sleep(10.0)
            said, _ = agent.communicate("\n", timeout=300)
        finally:
            agent.kill()
    assert agent.returncode == 0, said
    assert '"node": "n"' in said
    assert set((installed.path / LIB).rglob("*.pyc")) == compiled
    if installed.architecture == "amd64":  # else it is the emulator's
        memory = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", said, re.MULTILINE)}
        private = sum(value for key, value in memory.items() if key.startswith("Private"))
        figures[f"deb{installed.debian}"] = {"rss_mb": memory["Rss"] / 1e3, "private_mb": private / 1e3}


# What a person, an upgrade and a purge do to it.


@pytest.mark.parametrize("fresh", NATIVE, ids=name, indirect=True)
def test_the_life_of_a_package(fresh: Chroot, made: Path, tmp_path: Path) -> None:
    """Install, again, upgrade, back, remove, purge. What its owner wrote stays as it is all the way."""
    before = fresh.tree()
    package = deb(made, fresh.debian, "amd64")
    older = of_version(package, f"0.0.9+deb{fresh.debian}", tmp_path)
    config = fresh.write("/etc/amiss/device.toml", 'node = "kept"\n')  # as cloud-init does, before there is a package
    link = fresh.path / "etc/systemd/system/multi-user.target.wants/amiss.service"

    def kept() -> bool:
        return config.read_text() == 'node = "kept"\n'

    said = install(fresh, older)
    assert kept()
    assert "device.toml" not in said
    assert link.is_symlink(), "it starts with systemd, also when systemd did not run here"
    defaults = fresh.write("/etc/default/amiss", "AMISS_MQTT__HOST=broker.example.org\n")
    state = fresh.write("/var/lib/private/amiss/outbox.db", "alerts")
    (fresh.path / "var/lib/amiss").symlink_to("private/amiss")
    fresh.run("systemctl", "disable", "amiss.service")

    assert "Unpacking amiss" in install(fresh, package), "an upgrade"
    assert released() in fresh.run("amiss", "--version")
    assert kept()
    assert "broker.example.org" in defaults.read_text()
    assert not link.is_symlink(), "who has disabled it wants it disabled"
    install(fresh, package)
    assert "downgrading amiss" in fresh.run("dpkg", "-i", fresh.put(older, "/tmp/older.deb"))
    assert kept()
    assert state.read_text() == "alerts"

    fresh.run("apt-get", "remove", "amiss")
    assert not (fresh.path / LIB).exists()
    assert not (fresh.path / "usr/bin/amiss").exists()
    assert kept()
    assert state.read_text() == "alerts"
    assert defaults.exists()
    said = fresh.run("apt-get", "purge", "amiss")
    assert "/etc/amiss was written by you" in said
    assert kept()
    after = fresh.tree()
    assert after - before == {"etc/amiss", "etc/amiss/device.toml"} | ({"var/lib/private"} - before)
    assert before - after == set()


@pytest.mark.parametrize("fresh", NATIVE, ids=name, indirect=True)
def test_a_purge_leaves_nothing_where_nobody_wrote_anything(fresh: Chroot, made: Path) -> None:
    before = fresh.tree()
    assert "write /etc/amiss/device.toml" in install(fresh, deb(made, fresh.debian, "amd64"))
    assert fresh.tree() > before
    fresh.run("apt-get", "purge", "amiss")
    assert fresh.tree() == before


SYSTEMCTL = """#!/bin/sh
echo "$*" >>/asked
case "$*" in *preset* | *is-enabled*) exec systemctl.real --root=/ "$@" ;; esac
"""


@pytest.mark.parametrize("fresh", NATIVE[1:], ids=name, indirect=True)
def test_what_systemd_is_told(fresh: Chroot, made: Path, tmp_path: Path) -> None:
    """Not by a systemd that runs (the image's boot is for that): by a program that writes down what it is asked."""
    package = deb(made, fresh.debian, "amd64")
    older = of_version(package, f"0.0.9+deb{fresh.debian}", tmp_path)
    log = fresh.write("/asked", "")
    real = fresh.path / "usr/bin/systemctl"  # not in /usr/local: apt tells dpkg a path without that
    real.rename(real.with_name("systemctl.real"))
    fresh.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)
    (fresh.path / "run/systemd/system").mkdir(parents=True)

    def asked() -> list[str]:
        lines = [line for line in log.read_text().splitlines() if re.search(r"start|stop|reload", line)]
        log.write_text("")
        return [line.replace("--quiet ", "").replace("--system ", "") for line in lines]

    install(fresh, older)
    assert asked() == ["daemon-reload", "start amiss.service"]
    install(fresh, package)
    assert asked() == ["daemon-reload", "try-restart amiss.service"], "what its owner has stopped stays so"
    fresh.run("apt-get", "remove", "amiss")
    assert asked() == ["stop amiss.service", "daemon-reload"]
    install(fresh, package)
    assert asked() == ["daemon-reload", "start amiss.service"], "what was removed and is installed again is started again"
    assert not (fresh.path / "run/amiss-is-new").exists()


@pytest.mark.parametrize("fresh", NATIVE, ids=name, indirect=True)
def test_the_state_of_a_newer_release_is_not_touched(fresh: Chroot, made: Path, device: Path) -> None:
    """What a downgrade may meet. Refused in one line that says what to do, with the exit code that systemd takes for final."""
    install(fresh, deb(made, fresh.debian, "amd64"))
    fresh.put(device / "small.amiss", "/srv/small.amiss")
    configure(fresh, "/dev/null", 1)
    state = fresh.path / "var/lib/amiss"
    state.mkdir()
    newer = "import sqlite3; sqlite3.connect('/var/lib/amiss/outbox.db').execute('PRAGMA user_version = 3')"
    fresh.run("python3", "-c", newer)
    said = fresh.run("amiss", "run", "--config", "/etc/amiss/device.toml", code=65)
    assert said.endswith("outbox.db: written by a newer amiss; install that one again or move the file away\n"), said
    assert [path.name for path in state.iterdir()] == ["outbox.db"], "nothing was moved aside"
    assert (state / "outbox.db").read_bytes()[60:64] == b"\0\0\0\3"


# What cannot work is refused before anything is installed.


@pytest.mark.parametrize("fresh", NATIVE, ids=name, indirect=True)
def test_a_package_for_another_debian_or_processor_is_refused(fresh: Chroot, made: Path) -> None:
    before = fresh.tree()
    other = 25 - fresh.debian
    said = install(fresh, deb(made, other, "amd64"), code=100)
    assert re.search(r"amiss : Depends: python3 \((>= 3\.13~|<<? 3\.12~)\)", said), said
    fresh.put(deb(made, fresh.debian, "arm64"), "/tmp/arm64.deb")
    said = fresh.run("dpkg", "-i", "/tmp/arm64.deb", code=1)
    assert "package architecture (arm64) does not match system (amd64)" in said
    assert fresh.tree() == before


@pytest.mark.parametrize("fresh", NATIVE, ids=name, indirect=True)
def test_this_debian_understands_the_unit(fresh: Chroot, made: Path) -> None:
    """Each line of it; the control: a slip is told."""
    install(fresh, deb(made, fresh.debian, "amd64"))
    unit = fresh.path / "usr/lib/systemd/system/amiss.service"
    (fresh.path / "run/systemd/system").mkdir(parents=True, exist_ok=True)
    assert fresh.run("systemd-analyze", "verify", "/usr/lib/systemd/system/amiss.service") == ""
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "WatchDogSec" in fresh.run("systemd-analyze", "verify", "/usr/lib/systemd/system/amiss.service")


DOCUMENT = (Path(__file__).parents[2] / "docs/howto/install.md").read_text()


def commands(heading: str) -> list[str]:
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.partition("  # ")[0].strip() for line in re.findall("^    (.+)$", section, re.MULTILINE)]


@pytest.mark.parametrize("fresh", NATIVE[1:], ids=name, indirect=True)
def test_each_command_of_the_how_to_does_what_it_says(fresh: Chroot, made: Path) -> None:
    """In their order. An editor and a service manager are stubs here; the processor is this one."""
    fresh.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n', 0o755)
    fresh.write("/usr/local/bin/sudoedit", '#!/bin/sh\nsed -i s/pump-7/mine/ "$1"\n', 0o755)
    fresh.write("/usr/local/sbin/systemctl", "#!/bin/sh\n", 0o755)
    package = deb(made, fresh.debian, "amd64")
    fresh.put(package, f"/srv/{package.name}")
    fresh.put(made / "SHA256SUMS", "/srv/SHA256SUMS")
    (check,) = re.findall("^    (sha256sum .+)$", DOCUMENT, re.MULTILINE)
    said: dict[str, str] = {}
    for line in [check, *commands("Debian and Raspberry Pi OS")]:
        code = 66 if "doctor" in line else 0  # there is no bundle yet, and doctor says so
        typed = line.replace("_arm64", "_amd64")
        said[line] = fresh.run("sh", "-c", f"set -e; cd /srv; {typed}", code=code)
        if "tee" in line:
            assert (fresh.path / "etc/amiss/device.toml").read_text() == said[line]
        if "purge" in line:
            assert 'node = "mine"' in (fresh.path / "etc/amiss/device.toml").read_text()
    assert said[check] == f"{package.name}: OK\n"
    assert "ok       configuration" in said["sudo amiss doctor --config /etc/amiss/device.toml"]
    assert list(said)[-1] == "sudo apt-get purge amiss"


# What can be seen without installing.


@pytest.fixture(scope="module", params=TARGETS, ids=name)
def unpacked(request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Path, Path]:
    target: Target = request.param
    package, folder = deb(made, target.debian, target.architecture), tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    return target, package, folder


def test_lintian_has_no_objection(unpacked: tuple[Target, Path, Path]) -> None:
    _, package, _ = unpacked
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", package], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


PROVIDED = {
    "libc6": (
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "librt.so.1",
        "libpthread.so.0",
        "ld-linux-aarch64.so.1",
        "ld-linux-x86-64.so.2",
    ),
    "libgcc-s1": ("libgcc_s.so.1",),
    "libstdc++6": ("libstdc++.so.6",),
    "zlib1g": ("libz.so.1",),
}


def test_libraries_want_only_what_the_package_depends_on(unpacked: tuple[Target, Path, Path]) -> None:
    """And may be loaded where pages are larger than 4 KiB: a Raspberry Pi 5's have 16, some kernels for Arm 64."""
    target, _, folder = unpacked
    libraries = [path for path in (folder / LIB).rglob("*.so*") if path.is_file()]
    assert len(libraries) > 20
    bundled = {path.name for path in libraries}
    (depends,) = re.findall("^Depends: (.*)$", (folder / "DEBIAN/control").read_text(), re.MULTILINE)
    given = {name for package, names in PROVIDED.items() if package in re.split(r"[ ,]+", depends) for name in names}
    for library in libraries:
        told = subprocess.run(["readelf", "-dVlW", library], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", told))
        assert needed <= given | bundled, library
        newest = max((tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", told)), default=(0,))
        assert newest <= tuple(map(int, GLIBC.split("."))), library
        aligned = [int(found, 16) for found in re.findall(r"^ +LOAD .* (0x[0-9a-f]+)$", told, re.MULTILINE)]
        assert aligned
        if target.architecture == "arm64":
            assert min(aligned) >= 0x10000, library
        machine = {"arm64": "AArch64", "amd64": "X86-64"}[target.architecture]
        header = subprocess.run(["readelf", "-h", library], capture_output=True, text=True, check=True).stdout
        assert machine in header, library


def test_nothing_tells_where_it_was_made(unpacked: tuple[Target, Path, Path]) -> None:
    _, _, folder = unpacked
    here = str(Path(__file__).parents[2]).encode()
    assert [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and here in path.read_bytes()] == []
