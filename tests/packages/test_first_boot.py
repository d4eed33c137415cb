"""A card as `amiss device new` prepares it, started by the real cloud-init of Debian 13, without network.

What is not there: systemd as the first process, hardware, and what Raspberry Pi adds to Debian. The package is that of amd64.
"""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from card import CMDLINE, stock
from chroot import Chroot
from conftest import deb
from mosquitto import Authority, Listener, Mosquitto, free_port, until

from deploy.flash.wifi import psk
from edge.bundle import Bundle

REPOSITORY = Path(__file__).parents[2]
MORE = ("cloud-init", "dbus", "iproute2", "netplan.io", "openssh-server", "sudo")
SEED = """\
datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    seedfrom: file:///boot/firmware
ssh_deletekeys: false
ssh_genkeytypes: []
"""
"""What Raspberry Pi OS tells cloud-init (stage2/04-cloud-init of its pi-gen)."""
START = """
cloud-init init --local
cloud-init init
cloud-init modules --mode=config
cloud-init modules --mode=final
if [ -e /run/amiss-restart ]; then echo wants to restart; fi
"""
SSID, PASSPHRASE, PASSWORD = "Halle 7", "correct horse", "s3cret-of-the-broker"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampl me@pc"
PLAIN = free_port()
"""Where the test listens, without TLS."""


class Pi(Chroot):
    @property
    def boot(self) -> Path:
        return self.path / "boot/firmware"

    @property
    def said(self) -> str:
        return (self.boot / "amiss/first-boot.txt").read_text()

    def start(self) -> str:
        """cloud-init's four stages, in order; without a network, and with a host name of its own to change."""
        apart = ["unshare", "--net", "--uts", "--ipc", *self.command("sh", "-c", f"mount -t tmpfs tmpfs /run\n{START}")]
        done = subprocess.run(
            apart, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600
        )
        return done.stdout

    def holding(self, secret: str) -> set[str]:
        """Files of the boot partition in which it is."""
        files = [path for path in self.boot.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.boot)) for path in files if secret.encode() in path.read_bytes()}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Mosquitto:
    folder = tmp_path_factory.mktemp("broker")
    return Mosquitto(folder, tls=authority, password=("pump-7", PASSWORD), options=f"listener {PLAIN} 127.0.0.1")


@pytest.fixture(scope="module")
def pi(made: Path, authority: Authority, broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Pi:
    """Prepared by the command, with a starter for a model, and not started yet."""
    folder = tmp_path_factory.mktemp("pi")
    found = Pi(13, "amd64", folder / "root", MORE)
    found.write("/etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg", SEED)
    stock(found.boot)
    (folder / "home/.ssh").mkdir(parents=True)
    (folder / "home/.ssh/id_ed25519.pub").write_text(f"{KEY}\n")
    command = ["device", "new", "pump-7", "--board", "pi4", "--sensor", "adxl345", "--broker", f"localhost:{broker.port}"]
    command += ["--ca", authority.ca, "--wifi", SSID, "--country", "DE", "--port", "gpio", "--timezone", "Europe/Berlin"]
    secrets = {"AMISS_MQTT__USERNAME": "pump-7", "AMISS_MQTT__PASSWORD": PASSWORD, "AMISS_WIFI_PASSPHRASE": PASSPHRASE}
    environment = {**os.environ, **secrets, "HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-m", "amiss", *command, "--no-package", "--boot", found.boot], check=True, env=environment, cwd=folder
    )
    return found


def test_the_first_starts(pi: Pi, made: Path) -> None:
    """One without the package, and one with it."""
    key = psk(SSID, PASSPHRASE)
    assert pi.holding(PASSWORD) == {"amiss/secrets/mqtt-password"}
    assert pi.holding(key) == {"network-config", "amiss/secrets/wifi.nmconnection"}
    log = pi.start()
    assert "FAILED: no package" in pi.said, log
    assert "wants to restart" in log, "the pins are free from the next start on"
    assert pi.holding(PASSWORD) == pi.holding(key) == set()
    shutil.copy(deb(made, 13, "amd64"), pi.boot / "amiss")
    log = pi.start()
    assert pi.said.splitlines()[0].endswith("is installed and started"), log
    assert "wants to restart" not in log

    assert (pi.path / "etc/hostname").read_text() == "pump-7\n"
    assert (pi.path / "etc/timezone").read_text() == "Europe/Berlin\n"
    assert pi.run("id", "-nG", "admin").split() == ["admin", "adm", "dialout", "sudo"]
    assert (pi.path / "home/admin/.ssh/authorized_keys").read_text() == f"{KEY}\n"
    assert pi.run("passwd", "-S", "admin").split()[1] == "L"
    assert "/bin/bash" in pi.run("sudo", "-u", "admin", "sudo", "-n", "sh", "-c", "echo $SHELL")
    plan = pi.path / "etc/netplan/50-cloud-init.yaml"
    assert key in plan.read_text()
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    assert (pi.boot / "cmdline.txt").read_text() == (
        CMDLINE.replace("console=serial0,115200 ", "") + " cfg80211.ieee80211_regdom=DE\n"
    )
    assert "install ok installed" in pi.run("dpkg-query", "-s", "amiss")
    assert pi.run("systemctl", "is-enabled", "amiss", "ssh").split() == ["enabled", "enabled"]
    assert stat.S_IMODE((pi.path / "etc/amiss/secrets/mqtt-password").stat().st_mode) == 0o600
    assert tomllib.loads((pi.path / "etc/amiss/device.toml").read_text())["streams"]["adxl345"]["port"] == "/dev/serial0"
    assert Bundle.open(pi.path / "etc/amiss/model.amiss").manifest.learn_minutes > 0


def test_later_starts_change_nothing(pi: Pi) -> None:
    kept = ("etc/amiss", "etc/netplan", "etc/systemd", "boot/firmware", "home", "var/lib/dpkg/status", "etc/shadow")

    def contents() -> dict[Path, bytes]:
        paths = [path for name in kept for path in [pi.path / name, *(pi.path / name).rglob("*")]]
        return {path: path.read_bytes() for path in paths if path.is_file()}

    with (pi.path / "etc/amiss/device.toml").open("a") as file:
        file.write("# mine\n")
    before = contents()
    pi.start()
    assert contents() == before
    assert pi.run("ls", "/var/lib/cloud/scripts/per-boot") == ""


def test_the_agent_that_was_set_up_reaches_the_broker(pi: Pi, broker: Mosquitto) -> None:
    """As the unit starts it, but for systemd: the credential is read from where systemd would take it."""
    drop_in = (pi.path / "etc/systemd/system/amiss.service.d/secrets.conf").read_text()
    assert "LoadCredential=mqtt-password:/etc/amiss/secrets/mqtt-password" in drop_in
    (pi.path / "var/lib/amiss").mkdir(exist_ok=True)
    environment = {"AMISS_MQTT__PASSWORD_FILE": "/etc/amiss/secrets/mqtt-password", "STATE_DIRECTORY": "/var/lib/amiss"}
    broker.start()
    with Listener(PLAIN, "amiss/#", user=("pump-7", PASSWORD)) as listener:
        agent = subprocess.Popen(
            pi.command("amiss", "run", "--config", "/etc/amiss/device.toml"),
            env=pi.environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until(lambda: b"online" in listener.payloads("amiss/pump-7/availability") or agent.poll() is not None, 120)
        finally:
            agent.kill()  # and with it all that is in there
            said, _ = agent.communicate(timeout=60)
            broker.kill()
        assert b"online" in listener.payloads("amiss/pump-7/availability"), said
        assert PASSWORD not in said
