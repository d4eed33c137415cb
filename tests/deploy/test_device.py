"""`amiss device new`: what it writes cloud-init and netplan understand, and a computer that is started with it is set up.

cloud-init is never started here: its package lies unpacked in .venv/cloud-init (see the Makefile). What it judges are the
keys of Debian 12's release, and none is used that is newer.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from card import CMDLINE, Computer, stock
from shop import Make, Run

from deploy import starter
from deploy.flash import boot, card, imager, new, package
from deploy.flash.wifi import keyfile, network_config, psk, wifi
from edge import config as configs
from edge.channel import ChannelSpec
from edge.errors import AccessError, AmissError, CannotCreateError, ConfigError, DataError, NoInputError, UsageError

ROOT = Path(__file__).parents[2]
UNPACKED = ROOT / ".venv/cloud-init"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampl me@pc"
PASSPHRASE = "correct horse"
PASSWORD = "s3cret-of-the-broker"
SSID = "Halle 7"
BROKER = {"AMISS_MQTT__USERNAME": "pump-7", "AMISS_MQTT__PASSWORD": PASSWORD, "AMISS_WIFI_PASSPHRASE": PASSPHRASE}

Prepare = Callable[..., new.Prepared]


def deb(path: Path, *, name: str = "amiss", architecture: str = "arm64", python: str = "3.13", after: str = "3.14") -> Path:
    """As `make dist` writes one, but for what is in it."""
    depends = f"python3 (>= {python}~), python3 (<< {after}~), libc6 (>= 2.28)"
    control = f"Package: {name}\nVersion: 0.1.0+deb13\nArchitecture: {architecture}\nDepends: {depends}\nDescription: x\n y\n"
    root = path.parent / f"{path.name}.d"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(f"Maintainer: m <m@example.org>\n{control}")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-b", root, path], check=True, capture_output=True)
    return path


AXES = (ChannelSpec("acceleration_x", "m/s2"), ChannelSpec("acceleration_z", "m/s2"))


@pytest.fixture
def bundle(make: Make) -> Path:
    return make(name="own", rate_hz=800.0, channels=AXES)


@pytest.fixture
def around(tmp_path: Path) -> new.Around:
    """A user with a key and a package."""
    home, packages = tmp_path / "home", tmp_path / "dist"
    (home / ".ssh").mkdir(parents=True)
    packages.mkdir()
    (home / ".ssh/id_ed25519.pub").write_text(f"{KEY}\n")
    deb(packages / "amiss_0.1.0+deb13_arm64.deb")
    return new.Around(environ=BROKER, home=home, packages=packages, terminal=lambda: False)


@pytest.fixture
def prepare(bundle: Path, around: new.Around) -> Prepare:
    def prepare(around: new.Around = around, **more: Any) -> new.Prepared:
        said = {"node": "pump-7", "board": "pi4", "sensor": "adxl345", "broker": "broker.local", "bundle": bundle} | more
        return new.prepare(new.Wish(**said), around)

    return prepare


def changed(around: new.Around, **more: Any) -> new.Around:
    return new.Around(**{name: getattr(around, name) for name in new.Around.__slots__} | more)


def text(prepared: new.Prepared, path: str) -> str:
    content = prepared.files[path]
    assert isinstance(content, bytes)
    return content.decode()


# What is written


WISHES = [
    {"board": board, **network, **sensor, **login}
    for board in boot.PIS
    for network in ({}, {"wifi": SSID, "country": "DE"}, {"wifi": 'Grüße: #1 "{x}"', "country": "AT", "hidden": True})
    for sensor in ({}, {"port": "gpio"})
    for login in ({}, {"timezone": "Europe/Vienna", "user": "me"})
]
KEYS = {"bootcmd", "hostname", "manage_etc_hosts", "power_state", "ssh_pwauth", "timezone", "users", "write_files"}
"""All of them are in cloud-init for ten years."""


SLIPS = [("  lock_passwd: true", "  lock_pass: true"), ("hostname: pump-7", "hostname: [pump-7]"), ("- path:", "- file:")]


def judged(*files: Path) -> list[str]:
    """What cloud-init's rules for user-data find wrong with each."""
    assert (UNPACKED / ".done").exists(), "cloud-init is not unpacked: make test does it"
    program = """
import json, sys
from cloudinit.config import schema as rules
found, schema = [], rules.get_schema()
for path in sys.argv[1:]:
    try:
        rules.validate_cloudconfig_file(path, schema)
        found.append("")
    except (RuntimeError, rules.SchemaValidationError) as error:
        found.append(str(error))
print(json.dumps(found))
"""
    environ = {**os.environ, "PYTHONPATH": str(UNPACKED / "usr/lib/python3/dist-packages")}
    done = subprocess.run([sys.executable, "-c", program, *files], env=environ, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_cloud_init_understands_every_user_data(prepare: Prepare, tmp_path: Path) -> None:
    files = []
    for at, wish in enumerate(WISHES):
        prepared = prepare(**wish)
        files.append(tmp_path / f"user-data-{at}")
        files[-1].write_text(text(prepared, "user-data"))
        data = yaml.safe_load(files[-1].read_text())
        assert files[-1].read_text().startswith("#cloud-config\n")
        assert data.keys() <= KEYS
        assert data["hostname"] == "pump-7"
        assert data["users"][0]["ssh_authorized_keys"] == [KEY]
        assert ("bootcmd" in data) == ("wifi" in wish)
        assert ("power_state" in data) == ("port" in wish)
        meta = yaml.safe_load(text(prepared, "meta-data"))
        assert meta == {"dsmode": "local", "instance-id": prepared.device.instance}
    for at, (old, slip) in enumerate(SLIPS):  # the controls
        good = files[0].read_text()
        assert old in good
        files.append(tmp_path / f"slip-{at}")
        files[-1].write_text(good.replace(old, slip))
    found = judged(*files)
    assert found[: len(WISHES)] == [""] * len(WISHES)
    assert all("schema errors" in one for one in found[len(WISHES) :]), found[len(WISHES) :]


def netplan(folder: Path, text: str, renderer: str) -> subprocess.CompletedProcess[str]:
    plans = folder / "etc/netplan"
    plans.mkdir(parents=True)
    for name, content in {"a": text, "b": f"network:\n  renderer: {renderer}\n"}.items():
        (plans / f"{name}.yaml").write_text(content)
        (plans / f"{name}.yaml").chmod(0o600)
    (libraries,) = UNPACKED.glob("usr/lib/*/libnetplan.so.0.0")
    environ = os.environ | {"LD_LIBRARY_PATH": str(libraries.parent)}
    tool = UNPACKED / "usr/libexec/netplan/generate"
    return subprocess.run([tool, "--root-dir", folder], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "network",
    [None, wifi(SSID, PASSPHRASE, "DE"), wifi('Grüße: #1 "{x}"', PASSPHRASE, "AT", hidden=True)],
    ids=lambda n: n and n.ssid,
)
@pytest.mark.parametrize("renderer", ["networkd", "NetworkManager"])
def test_netplan_understands_every_network_config(network: Any, renderer: str, tmp_path: Path) -> None:
    done = netplan(tmp_path, network_config(network), renderer)
    assert (done.returncode, done.stderr) == (0, "")
    made = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "wlan0" in path.name]
    assert bool(made) == (network is not None)
    if network is not None:
        found = "\n".join(path.read_text() for path in made)
        assert f"psk={network.psk}" in found
        assert network.ssid in found
        assert PASSPHRASE not in found
        assert renderer != "networkd" or f"country={network.country}" in found


def test_netplan_would_notice_a_slip(tmp_path: Path) -> None:
    wrong = network_config(wifi(SSID, PASSPHRASE, "DE")).replace("regulatory-domain", "regulatory_domain")
    assert netplan(tmp_path, wrong, "networkd").returncode != 0


def test_the_key_of_a_network_is_the_one_of_the_standard() -> None:
    """IEEE 802.11, J.4.2."""
    assert psk("IEEE", "password") == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert psk("ThisIsASSID", "ThisIsAPassword") == "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"
    assert psk("x", "AB" * 32) == "ab" * 32
    assert "ssid=Halle 7\n" in keyfile(wifi(SSID, PASSPHRASE, "DE"))
    assert "ssid=194;181;59;\n" in keyfile(wifi("µ;", PASSPHRASE, "DE"))


def test_no_secret_is_where_cloud_init_keeps_copies(prepare: Prepare) -> None:
    prepared = prepare(wifi=SSID, country="DE")
    for path, content in prepared.files.items():
        assert isinstance(content, Path) or PASSPHRASE.encode() not in content
        assert isinstance(content, Path) or (PASSWORD.encode() in content) == (path == "amiss/secrets/mqtt-password"), path
        known = path in ("network-config", "amiss/secrets/wifi.nmconnection")
        assert isinstance(content, Path) or (psk(SSID, PASSPHRASE).encode() in content) == known, path


def test_the_configuration_is_one_that_the_agent_reads(prepare: Prepare, tmp_path: Path) -> None:
    root, ca = tmp_path / "root.json", tmp_path / "authority.pem"
    root.write_text('{"signed": {"_type": "root"}, "signatures": []}')
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    prepared = prepare(broker="broker.local:8884", ca=ca, repository="mqtt:models", root=root)
    (tmp_path / "device.toml").write_text(text(prepared, "amiss/etc/device.toml"))
    config = configs.load(tmp_path / "device.toml", environ={})
    assert (config.node, config.mqtt.host, config.mqtt.port) == ("pump-7", "broker.local", 8884)
    assert config.mqtt.username == "pump-7"
    assert config.mqtt.password is None
    assert config.mqtt.tls is not None
    assert config.mqtt.tls.ca == "/etc/amiss/ca.pem"
    assert config.update is not None
    assert (config.update.repository, config.update.root) == ("mqtt:models", "/etc/amiss/root.json")
    stream = config.streams["adxl345"]
    assert (stream.port, stream.clock) == (boot.ANY_ADAPTER, "sensor")
    assert config.alarm.false_alarms == "1/day", "the default promises no rate"
    assert text(prepared, "amiss/etc/ca.pem") == ca.read_text()
    assert text(prepared, "amiss/etc/root.json") == root.read_text()


def test_a_sensor_of_ones_own_is_written_down_in_full(prepare: Prepare, tmp_path: Path) -> None:
    folder = tmp_path / "my-sensor"
    shutil.copytree(ROOT / "firmware-configs/sensors/adxl345", folder)
    prepared = prepare(sensor=f"{folder}/sensor.toml")
    ((name, stream),) = prepared.device.config["streams"].items()
    assert "sensor" not in stream
    assert stream["columns"] == ["acceleration_x", "acceleration_y", "acceleration_z"]
    (tmp_path / "device.toml").write_text(text(prepared, "amiss/etc/device.toml"))
    assert configs.load(tmp_path / "device.toml", environ={}).streams[name].clock == "sensor"


@pytest.mark.parametrize(
    ("board", "usual", "given", "found"),
    [
        ("raspberry-pi-4", None, None, boot.ANY_ADAPTER),
        ("raspberry-pi-4", "usb:1a86:7523", None, "usb:1a86:7523"),
        ("raspberry-pi-4", "usb:1a86:7523", "auto", boot.ANY_ADAPTER),
        ("raspberry-pi-4", None, "gpio", "/dev/serial0"),
        ("raspberry-pi-5", None, "gpio", "/dev/ttyAMA0"),
        ("raspberry-pi-3", "usb:1a86:7523", "/dev/ttyUSB3", "/dev/ttyUSB3"),
    ],
)
def test_the_user_need_not_know_the_port(board: str, usual: str | None, given: str | None, found: str) -> None:
    assert boot.port(boot.pi(board), usual, given) == found
    assert boot.on_pins(found) == (given == "gpio")


# What is not taken


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ({"board": "pi6"}, UsageError, "did you mean `pi"),
        ({"board": "jetson"}, UsageError, "NVIDIA"),
        ({"board": "generic-x86-64"}, UsageError, "install the package on it"),
        ({"sensor": "adxl346"}, ConfigError, "did you mean `adxl345`?"),
        ({"node": "Pump_7"}, ConfigError, "node"),
        ({"port": "usb:12"}, ConfigError, "usb:VID:PID"),
        ({"bundle": Path("gone.amiss")}, NoInputError, "gone.amiss"),
        ({"package": Path("gone.deb")}, NoInputError, "make dist"),
        ({"user": "root"}, UsageError, "--user"),
        ({"timezone": "Europe/Bärlin"}, UsageError, "Europe/Berlin"),
        ({"repository": "https://models.example.org"}, UsageError, "--root"),
        ({"wifi": "x" * 33, "country": "DE"}, UsageError, "32 bytes"),
        ({"wifi": SSID}, UsageError, "--country"),
        ({"wifi": SSID, "country": "UK"}, UsageError, "GB"),
        ({"wifi": SSID, "country": "Germany"}, UsageError, "ISO 3166"),
        ({"country": "DE"}, UsageError, "--wifi"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(wish: dict[str, Any], error: type[AmissError], says: str, prepare: Prepare) -> None:
    with pytest.raises(error, match=r"^.+$") as caught:
        prepare(**wish)
    assert says in str(caught.value)


def test_a_model_for_another_sensor_is_refused(prepare: Prepare, make: Make) -> None:
    with pytest.raises(ConfigError, match="vibration, current, and adxl345 sends acceleration_x"):
        prepare(bundle=make(name="foreign"))
    with pytest.raises(ConfigError, match="is for 100 samples a second, and adxl345 sends 800"):
        prepare(bundle=make(name="slow", rate_hz=100.0, channels=AXES))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"architecture": "amd64"}, "for amd64; .*_arm64.deb"),
        ({"architecture": "armhf"}, "for armhf"),
        ({"name": "mosquitto"}, "a package of mosquitto"),
        ({"python": "3.11", "after": "3.12"}, "for another Debian"),
        ({"python": "3.14", "after": "3.15"}, "for another Debian"),
    ],
)
def test_a_package_for_something_else_is_refused(what: dict[str, str], says: str, prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(package=deb(tmp_path / "x.deb", **what))


@pytest.mark.parametrize(
    "damage",
    [b"", b"!<arch>\n", b"PK\x03\x04", b"!<arch>\n" + b"debian-binary   0           0     0     100644  4         `\n2.0\n"],
)
def test_what_is_no_package_is_told(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(damage)
    with pytest.raises(DataError, match="not a Debian package"):
        package.look_at(tmp_path / "x.deb")
    whole = deb(tmp_path / "y.deb").read_bytes()
    (tmp_path / "x.deb").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match="not a Debian package"):
        package.look_at(tmp_path / "x.deb")
    assert package.look_at(tmp_path / "y.deb").name == "amiss"


def test_without_a_package_or_a_key_it_says_so(prepare: Prepare, around: new.Around, tmp_path: Path) -> None:
    nothing = changed(around, packages=tmp_path / "none", home=tmp_path / "nobody")
    with pytest.raises(NoInputError, match="make dist"):
        prepare(nothing)
    prepared = prepare(nothing, no_package=True)
    assert any("nothing is installed" in note for note in prepared.notes)
    assert any("nobody can log in" in note for note in prepared.notes)
    assert "ssh_authorized_keys" not in text(prepared, "user-data")
    private = tmp_path / "id_ed25519"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(UsageError, match="private key"):
        prepare(ssh_key=private)
    private.write_text("hello\n")
    with pytest.raises(UsageError, match="not a public key"):
        prepare(ssh_key=private)


def test_the_passphrase_comes_from_a_file_or_is_asked_for(prepare: Prepare, around: new.Around, tmp_path: Path) -> None:
    wish = {"wifi": SSID, "country": "DE"}
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    file.chmod(0o600)
    named = {"AMISS_WIFI_PASSPHRASE_FILE": str(file)}
    key = psk(SSID, PASSPHRASE)
    assert key in text(prepare(changed(around, environ=named), **wish), "network-config")
    asked = changed(around, environ={}, terminal=lambda: True, ask=lambda prompt: PASSPHRASE if SSID in prompt else "")
    assert key in text(prepare(asked, **wish), "network-config")
    with pytest.raises(AccessError, match="AMISS_WIFI_PASSPHRASE_FILE"):
        prepare(changed(around, environ={}), **wish)
    file.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        prepare(changed(around, environ=named), **wish)
    with pytest.raises(UsageError, match="8 to 63") as caught:
        prepare(changed(around, environ={"AMISS_WIFI_PASSPHRASE": "short"}), **wish)
    assert "short" not in str(caught.value)
    assert prepare(changed(around, environ=BROKER | {"LANG": "de_AT.UTF-8"}), wifi=SSID).device.wifi.country == "AT"  # type: ignore[union-attr]


# Onto a card


def test_what_the_system_brought_is_kept_beside_it(prepare: Prepare, tmp_path: Path) -> None:
    there = stock(tmp_path / "bootfs")
    before = {path.name: path.read_text() for path in there.iterdir()}
    prepared = prepare()
    written = card.write_card(there, prepared.files, force=False)
    assert written[-1] == there / "user-data", "without it nothing counts, so it is last"
    for name in card.SEEDS:
        assert (there / f"{name}.before-amiss").read_text() == before[name]
        assert (there / name).read_text() == text(prepared, name)
    assert (there / "cmdline.txt").read_text() == before["cmdline.txt"]
    assert (there / "amiss/amiss_0.1.0+deb13_arm64.deb").read_bytes()[:8] == b"!<arch>\n"

    with pytest.raises(CannotCreateError, match="user-data, meta-data, amiss there are not"):
        card.write_card(there, prepare().files, force=False)
    assert (there / "user-data").read_text() == text(prepared, "user-data")
    again = prepare(port="gpio")
    card.write_card(there, again.files, force=True)
    assert (there / "user-data").read_text() == text(again, "user-data")
    assert (there / "user-data.before-amiss").read_text() == before["user-data"], "the first one is kept, not ours"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("user-data", "#cloud-config\nhostname: theirs\n"),
        ("network-config", "network:\n  version: 2\n  wifis:\n    wlan0: {}\n"),
        ("meta-data", "instance-id: rpi-imager-1787993916805\n"),
    ],
)
def test_what_somebody_has_set_is_not_written_over(name: str, content: str, prepare: Prepare, tmp_path: Path) -> None:
    there = stock(tmp_path / "bootfs", **{name: content})
    before = {path: path.read_bytes() for path in there.iterdir()}
    with pytest.raises(CannotCreateError, match=f"{name} there is not .*--force"):
        card.write_card(there, prepare().files, force=False)
    assert {path: path.read_bytes() for path in there.iterdir()} == before
    card.write_card(there, prepare().files, force=True)
    assert (there / f"{name}.before-amiss").read_text() == content


def test_the_name_of_the_instance_on_the_kernels_command_line_is_ours(prepare: Prepare, tmp_path: Path) -> None:
    """Raspberry Pi Imager writes one there, which is stronger than meta-data: cloud-init would do nothing anew."""
    line = f"{CMDLINE} ds=nocloud;i=rpi-imager-1787993916805 cfg80211.ieee80211_regdom=JP\n"
    there = stock(tmp_path / "bootfs", **{"cmdline.txt": line})
    prepared = prepare()
    card.write_card(there, prepared.files, force=False)
    renewed = line.replace("rpi-imager-1787993916805", prepared.device.instance)
    assert (there / "cmdline.txt").read_text() == renewed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda there: (there / "config.txt").unlink(), "no config.txt"),
        (lambda there: [path.unlink() for path in there.iterdir()], "no config.txt and no cmdline.txt"),
        (lambda there: (there / "kernel7l.img").touch(), "32-bit"),
        (lambda there: (there / "user-data").unlink(), "does not read user-data"),
    ],
)
def test_another_partition_is_left_alone(change: Callable[[Path], Any], says: str, prepare: Prepare, tmp_path: Path) -> None:
    there = stock(tmp_path / "bootfs")
    change(there)
    before = sorted(there.iterdir())
    with pytest.raises(UsageError, match=says):
        card.write_card(there, prepare().files, force=True)
    assert sorted(there.iterdir()) == before


def test_a_folder_is_for_its_owner_alone(prepare: Prepare, tmp_path: Path) -> None:
    there = tmp_path / "pump-7"
    card.write_folder(there, prepare().files, force=False)
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    assert stat.S_IMODE((there / "amiss/secrets/mqtt-password").stat().st_mode) == 0o600
    with pytest.raises(CannotCreateError, match="--force"):
        card.write_folder(there, prepare().files, force=False)
    card.write_folder(there, prepare(around=new.Around(environ={}), no_package=True).files, force=True)
    assert not (there / "amiss/secrets").exists(), "of the call before nothing is left"


# What the device does with it


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer.make(tmp_path / "root")


@pytest.fixture
def flashed(computer: Computer, prepare: Prepare) -> Callable[..., new.Prepared]:
    def flashed(around: new.Around | None = None, *, force: bool = False, **wish: Any) -> new.Prepared:
        prepared = prepare(around, **wish) if around else prepare(**wish)
        card.write_card(computer.boot, prepared.files, force=force)
        return prepared

    return flashed


Flashed = Callable[..., new.Prepared]


def test_the_first_start_sets_everything_up(flashed: Flashed, computer: Computer, tmp_path: Path) -> None:
    prepared = flashed(wifi=SSID, country="DE")
    assert computer.mentions(PASSWORD), "the control: before the first start it is there"
    assert computer.mentions(psk(SSID, PASSPHRASE))
    assert computer.start() == [0, 0]

    etc = computer.root / "etc/amiss"
    assert (etc / "device.toml").read_text() == text(prepared, "amiss/etc/device.toml")
    assert (etc / "model.amiss").read_bytes() == prepared.device.bundle
    assert stat.S_IMODE((etc / "device.toml").stat().st_mode) == 0o644
    secret = etc / "secrets/mqtt-password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    assert secret.read_text() == f"{PASSWORD}\n"
    drop_in = computer.root / "etc/systemd/system/amiss.service.d/secrets.conf"
    assert "LoadCredential=mqtt-password:/etc/amiss/secrets/mqtt-password" in drop_in.read_text()

    assert computer.mentions(PASSWORD) == []
    assert computer.mentions(psk(SSID, PASSPHRASE)) == []
    assert "ethernets" in (computer.boot / "network-config").read_text()
    assert yaml.safe_load((computer.boot / "user-data").read_text())["hostname"] == "pump-7", "it is set again at each start"

    assert computer.said.splitlines()[0].endswith("is installed and started")
    calls = "\n".join(computer.log)
    assert "apt-get install -y -q --no-install-recommends" in calls
    assert "amiss_0.1.0+deb13_arm64.deb" in calls
    assert calls.index("systemctl enable --now ssh") < calls.index("apt-get") < calls.index("systemctl enable --now amiss")


def test_the_radio_may_transmit_before_the_network_comes_up(flashed: Flashed, computer: Computer) -> None:
    flashed(wifi=SSID, country="DE")
    computer.start()
    assert (computer.boot / "cmdline.txt").read_text() == f"{CMDLINE} cfg80211.ieee80211_regdom=DE\n"
    assert "WirelessEnabled=true" in (computer.root / "var/lib/NetworkManager/NetworkManager.state").read_text()
    assert next((computer.root / "var/lib/systemd/rfkill").iterdir()).read_text() == "0\n"
    assert "iw reg set DE" in computer.log
    assert "rfkill unblock wifi" in computer.log
    computer.start()
    assert (computer.boot / "cmdline.txt").read_text().count("regdom") == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_profile_of_the_network_outlives_the_first_start(known: bool, flashed: Flashed, computer: Computer) -> None:
    """On some releases of Raspberry Pi OS what cloud-init made of network-config was gone, or empty, at the second start."""
    flashed(wifi=SSID, country="DE")
    plan = computer.root / "etc/netplan/50-cloud-init.yaml"
    plan.parent.mkdir()
    plan.write_text((computer.boot / "network-config").read_text() if known else "")
    computer.start()
    profile = computer.root / "etc/NetworkManager/system-connections/amiss-wifi.nmconnection"
    assert profile.exists() != known
    if not known:
        assert stat.S_IMODE(profile.stat().st_mode) == 0o600
        assert f"psk={psk(SSID, PASSPHRASE)}" in profile.read_text()
        assert "nmcli connection reload" in computer.log


def test_a_second_start_does_nothing(flashed: Flashed, computer: Computer) -> None:
    flashed(wifi=SSID, country="DE", port="gpio")
    computer.start()
    (computer.root / "etc/amiss/device.toml").write_text("# changed\n")
    calls, said = computer.log, computer.said
    files = {path: path.read_bytes() for path in computer.root.rglob("*") if path.is_file() and path.name != "log"}
    (computer.root / "run/amiss-restart").unlink()  # /run is empty after a start
    files.pop(computer.root / "run/amiss-restart")
    wrapper = computer.root / "var/lib/cloud/scripts/per-boot/amiss-first-boot"
    assert not wrapper.exists()
    assert computer.run("sh", str(computer.boot / "amiss/first-boot.sh"), "install", *arguments(computer)) == 0
    assert computer.log == calls
    assert computer.said == said
    assert {path: path.read_bytes() for path in computer.root.rglob("*") if path.is_file() and path.name != "log"} == files


def arguments(computer: Computer) -> list[str]:
    content = yaml.safe_load((computer.boot / "user-data").read_text())["write_files"][0]["content"]
    return str(content).split(" install ")[1].split()


def test_what_fails_says_why_and_is_tried_again(flashed: Flashed, computer: Computer) -> None:
    flashed(wifi=SSID, country="DE")
    computer.stand_in("apt-get", "echo 'E: Unable to correct problems, you have held broken packages.'; exit 100")
    assert computer.start()[-1] == 1
    first = computer.said.splitlines()
    assert "FAILED: the package could not be installed" in first[0]
    assert first[1] == "E: Unable to correct problems, you have held broken packages."
    assert computer.mentions(PASSWORD) == [], "they go whatever else goes wrong"
    assert computer.mentions(psk(SSID, PASSPHRASE)) == []

    (computer.root / "etc/amiss/device.toml").write_text("# changed meanwhile\n")
    computer.stand_in("apt-get", "")
    assert computer.start()[-1] == 0
    assert "installed and started" in computer.said
    assert (computer.root / "etc/amiss/device.toml").read_text() == "# changed meanwhile\n"
    assert computer.start() == [0], "only the radio"


def test_a_package_that_was_forgotten_can_be_added(flashed: Flashed, around: new.Around, computer: Computer) -> None:
    flashed(changed(around, packages=Path("nowhere")), no_package=True)
    (computer.root / "tools/amiss").unlink()
    assert computer.start() == [1]
    assert "FAILED: no package" in computer.said
    assert "Put amiss_…_arm64.deb into the folder amiss" in computer.said
    for name in ("amiss_1_arm64.deb", "amiss_2_arm64.deb"):
        shutil.copy(around.packages / "amiss_0.1.0+deb13_arm64.deb", computer.boot / "amiss" / name)
    assert computer.start() == [1]
    assert "FAILED: 2 packages" in computer.said
    (computer.boot / "amiss/amiss_1_arm64.deb").unlink()
    assert computer.start() == [0]
    assert "installed and started" in computer.said


def test_an_agent_that_does_not_run_is_told(flashed: Flashed, computer: Computer) -> None:
    flashed()
    computer.stand_in("systemctl", '[ "$1" != is-active ]')
    computer.stand_in("journalctl", "echo 'amiss: /etc/amiss/device.toml: no such bundle'")
    assert computer.start() == [1]
    assert "FAILED: amiss is installed, and does not run\namiss: /etc/amiss/device.toml: no such bundle" in computer.said


def test_a_card_that_is_prepared_anew_sets_up_anew_and_loses_nothing(flashed: Flashed, computer: Computer) -> None:
    flashed()
    computer.start()
    (computer.root / "etc/amiss/device.toml").write_text("# mine\n")
    prepared = flashed(force=True, broker="other.local")
    shutil.rmtree(computer.root / "var/lib/cloud")  # another instance
    assert computer.start() == [0]
    assert (computer.root / "etc/amiss/device.toml").read_text() == text(prepared, "amiss/etc/device.toml")
    assert (computer.root / "etc/amiss/device.toml.before").read_text() == "# mine\n"


@pytest.mark.parametrize(("board", "parameter"), [("pi3", "enable_uart=1"), ("pi5", "dtparam=uart0=on")])
def test_the_console_lets_go_of_the_pins(board: str, parameter: str, flashed: Flashed, computer: Computer) -> None:
    flashed(board=board, port="gpio")
    assert computer.start() == [0]
    assert (computer.boot / "cmdline.txt").read_text() == CMDLINE.replace("console=serial0,115200 ", "") + "\n"
    assert (computer.boot / "config.txt").read_text().endswith(f"\n[all]\n{parameter}\n")
    assert (computer.root / "run/amiss-restart").exists()
    assert "restarts once" in computer.said


def test_a_usb_sensor_leaves_the_console_alone(flashed: Flashed, computer: Computer) -> None:
    before = (computer.boot / "config.txt").read_text(), (computer.boot / "cmdline.txt").read_text()
    flashed()
    computer.start()
    assert ((computer.boot / "config.txt").read_text(), (computer.boot / "cmdline.txt").read_text()) == before
    assert not (computer.root / "run/amiss-restart").exists()


def test_systemd_understands_the_drop_in(tmp_path: Path) -> None:
    unit = (ROOT / "deploy/systemd/amiss.service").read_text().replace("/opt/amiss/bin/amiss", "/bin/true")
    (tmp_path / "amiss.service").write_text(unit)
    (tmp_path / "amiss.service.d").mkdir()
    drop_in = tmp_path / "amiss.service.d/secrets.conf"

    def complaints() -> str:
        command = ["systemd-analyze", "verify", tmp_path / "amiss.service"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    drop_in.write_text(boot.drop_in(dict.fromkeys(boot.SETTINGS, "x")))
    assert complaints() == ""
    drop_in.write_text(drop_in.read_text().replace("LoadCredential=", "LoadCredentials="))
    assert "LoadCredentials" in complaints(), "the control"


def test_the_script_is_clean() -> None:
    tool = shutil.which("shellcheck")
    assert tool, "shellcheck is not installed: apt-get install shellcheck"
    done = subprocess.run([tool, ROOT / "deploy/flash/first-boot.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# The verbs


def test_three_inputs_are_enough(
    run: Run, bundle: Path, around: new.Around, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Board, sensor, broker. `run` works in tmp_path, where dist/ is. Starters are made for real in test_starter.py."""
    asked: list[Any] = []

    def build(*wanted: Any, name: str, window: int | None, hop: int | None) -> None:
        asked.extend((wanted[0], wanted[1], name, window, hop))
        shutil.copy(bundle, wanted[2])

    monkeypatch.setattr(starter, "build", build)
    monkeypatch.setenv("HOME", str(around.home))
    code, out, err = run("device", "new", "--board", "pi4", "--sensor", "adxl345", "--broker", "broker.local")
    assert code == 0
    node = out.partition(":")[0]
    assert re.fullmatch("adxl345-[0-9a-f]{4}", node), "a name that the next device with this sensor does not have"
    assert err == "no --bundle: making a starter for adxl345, which learns its machine on the device\n"
    assert [line[:2] for line in out.splitlines()[1:]] == ["1.", "2.", "3."]
    assert (tmp_path / node / "amiss/etc/model.amiss").read_bytes() == bundle.read_bytes()
    axes = [ChannelSpec(f"acceleration_{axis}", "m/s2") for axis in "xyz"]
    assert asked == [axes, 800, "adxl345", 512, 256]


def test_what_it_prints_is_what_to_do_next(
    run: Run, bundle: Path, around: new.Around, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(around.home))
    words = (
        "device",
        "new",
        "pump-7",
        "--board",
        "pi4",
        "--sensor",
        "adxl345",
        "--broker",
        "broker.local",
        "--bundle",
        str(bundle),
    )
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "pump-7: pump-7, a raspberry-pi-4 with adxl345 on /dev/serial/by-id/*"
    assert [line[:2] for line in lines[1:]] == ["1.", "2.", "3."]
    assert (tmp_path / "pump-7/user-data").exists()
    code, out, err = run(*words, "--boot", str(stock(tmp_path / "bootfs")), "--json")
    assert code == 0
    assert json.loads(out)["port"] == "adxl345 on /dev/serial/by-id/*"
    assert run(*words, "--boot", "x", "--out", "y")[0] == 2
    code, out, err = run(*words[:-4], "--bundle", str(bundle))
    assert (code, out) == (2, "")
    assert "--broker HOST" in err


HOWTO = (ROOT / "docs/howto/flash-a-pi.md").read_text()


def test_every_command_of_the_how_to_does_what_it_says(
    run: Run, bundle: Path, around: new.Around, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the PC; those of the Pi need one."""
    monkeypatch.setenv("HOME", str(around.home))
    for name, secret in BROKER.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setattr(starter, "build", lambda channels, rate_hz, out, **more: shutil.copy(bundle, out))
    there = stock(tmp_path / "bootfs")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/root.json").write_text('{"signed": {"_type": "root"}, "signatures": []}')
    shutil.copy(bundle, tmp_path / "pump.amiss")
    (tmp_path / "dist/amiss-0.1.0-arm64.img").write_bytes(bytes(4096))
    subprocess.run(["zstd", "-q", tmp_path / "dist/amiss-0.1.0-arm64.img"], check=True)
    commands = re.findall(r"^    amiss (device .*?)(?:  +#.*)?$", HOWTO, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        code, _, err = run(*shlex.split(command.replace("/media/$USER/bootfs", str(there))))
        assert code == 0, (command, err)
    assert (there / "user-data.before-amiss").exists()
    assert (tmp_path / "pump-9/amiss/etc/root.json").exists()
    assert json.loads((tmp_path / "os_list.json").read_text())["os_list"][0]["extract_size"] == 4096


def test_what_the_first_start_may_say_is_in_the_how_to() -> None:
    script = (ROOT / "deploy/flash/first-boot.sh").read_text()
    failures = set(re.findall(r'fail "([a-z][^"$]*)"', script)) - {"the service could not be enabled"}  # of who makes an image
    assert len(failures) == 4
    told = set(re.findall(r"^\| `FAILED: (.*?)` \|", HOWTO, re.MULTILINE))
    assert failures - told == {"cannot write to /etc/amiss"}, "a card that is full or broken says so itself"
    assert told <= failures
    for ending in re.findall(r"^\| `ok: (?:amiss )?… (.*?)` \|", HOWTO, re.MULTILINE):
        assert ending in script


# The list for Raspberry Pi Imager


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "amiss-0.1.0-arm64.img"
    file.write_bytes(bytes(range(256)) * 4096)
    return file


@pytest.fixture(params=["", ".xz", ".zst"])
def packed(request: pytest.FixtureRequest, image: Path) -> Path:
    tool = {".xz": ["xz", "-k"], ".zst": ["zstd", "-q", "-k"]}
    if request.param:
        subprocess.run([*tool[request.param], image], check=True)
    return image.with_name(image.name + request.param)


def test_imager_is_told_what_it_wants_to_know(packed: Path, image: Path, run: Run) -> None:
    import hashlib

    code, out, err = run("device", "imager-json", str(packed), "--url", f"https://example.org/{packed.name}")
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)["os_list"]
    assert entry["extract_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert entry["extract_size"] == image.stat().st_size
    assert entry["image_download_size"] == packed.stat().st_size
    assert entry["image_download_sha256"] == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert entry["name"] == "amiss 0.1.0 arm64"
    assert imager.describe(packed)["os_list"][0]["url"] == packed.as_uri()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in imager.REQUIRED),
        ("extract_sha256", "0" * 63),
        ("extract_size", "1048576"),
        ("extract_size", 1000),
        ("release_date", "31.1.2026"),
        ("devices", ["pi4"]),
        ("devices", []),
        ("url", "https://example.org/x.img.rar"),
        ("url", "x.img.xz"),
        ("init_format", "system-d"),
    ],
)
def test_a_list_that_imager_would_not_take_is_refused(key: str, value: object, image: Path) -> None:
    good = imager.describe(image)
    entry = {**good["os_list"][0], key: value}
    if value is None:
        del entry[key]
    with pytest.raises(ConfigError, match=key if key != "name" else "name: needs"):
        imager.refuse_unfit({"os_list": [entry]})
    imager.refuse_unfit(good)


def test_a_damaged_image_is_told(image: Path) -> None:
    for tool, ending in ((["xz", "-k"], ".xz"), (["zstd", "-q", "-k"], ".zst")):
        subprocess.run([*tool, image], check=True)
        file = image.with_name(image.name + ending)
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(DataError, match="damaged"):
            imager.describe(file)
    with pytest.raises(NoInputError, match="make image"):
        imager.describe(image.with_name("gone.img"))
    with pytest.raises(UsageError, match="expected an image"):
        imager.describe(Path(__file__))
