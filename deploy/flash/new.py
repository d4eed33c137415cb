"""`amiss device new`: what was said, the environment, and files → a card that starts as a device of ours."""

import getpass
import json
import os
import re
import secrets
import stat
import sys
import tempfile
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deploy.flash import boot, card, package
from deploy.flash.wifi import Wifi, wifi
from edge import config as configs
from edge import profiles
from edge.bundle import Bundle
from edge.channel import ChannelSpec
from edge.config import MqttConfig
from edge.errors import AccessError, ConfigError, DataError, NoInputError, UsageError
from edge.profiles import Sensor
from quantize import target

PASSPHRASE = "AMISS_WIFI_PASSPHRASE"
FALSE_ALARMS = "1/day"
"""Of a device that nobody has set: the alarm's own default promises no rate, and who is new to it is called in vain."""
OWN_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user said. `None`: nothing."""

    node: str | None = None
    """`None`: of the sensor and four digits, for whoever has one device and will not type its name often."""
    board: str
    sensor: str
    broker: str | None = None
    mqtt: Path | None = None
    """A file with a table [mqtt], instead of `broker` or below it."""
    ca: Path | None = None
    port: str | None = None
    bundle: Path | None = None
    package: Path | None = None
    no_package: bool = False
    repository: str | None = None
    root: Path | None = None
    wifi: str | None = None
    country: str | None = None
    hidden: bool = False
    user: str = "admin"
    ssh_key: Path | None = None
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    device: boot.Device
    files: card.Files
    notes: tuple[str, ...]
    """What the user should know before the card is in the Pi."""


@dataclass(frozen=True, slots=True)
class Around:
    """What is read that was not said; tests have one of their own."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    home: Path = field(default_factory=Path.home)
    packages: Path = Path("dist")
    ask: Callable[[str], str] = getpass.getpass
    terminal: Callable[[], bool] = lambda: sys.stdin.isatty()
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)


def prepare(wish: Wish, around: Around | None = None) -> Prepared:
    """Everything is looked at before anything is written. Raises what `AmissError`s there are, in one line each."""
    around = around or Around()
    board = target.board(wish.board).name
    pi = boot.pi(board)
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", wish.user) or wish.user in ("root", "amiss", "pi"):
        raise UsageError(
            f"--user {wish.user!r}: a name of its own, of lower case letters, digits, - and _ (not root, pi, amiss)"
        )
    if wish.timezone and wish.timezone not in zoneinfo.available_timezones():
        raise UsageError(f"--timezone {wish.timezone!r}: there is no such one; as in Europe/Berlin")
    sensor = profiles.load(wish.sensor)
    node = wish.node or f"{_safe(sensor.name)}-{secrets.token_hex(2)}"
    mqtt = configs.load_mqtt(wish.mqtt, wish.broker, around.environ)
    if wish.ca:
        mqtt = msgspec.structs.replace(mqtt, tls=configs.TlsConfig(ca=str(wish.ca)))
    etc, kept = _credentials(mqtt, configs.load_token(None, around.environ))
    config = _config(wish, node, sensor, boot.port(pi, sensor.port, wish.port), mqtt)
    bundle, content = _bundle(wish.bundle, sensor, around.say)
    if bundle.head.tail is not None:  # else it cannot be kept
        config["alarm"] = {"false_alarms": FALSE_ALARMS}
    if wish.repository or wish.root:
        config["update"], etc["root.json"] = _update(wish)
    device = boot.Device(
        node=node,
        board=board,
        config=config,
        bundle=content,
        # Another one each time: cloud-init does nothing for one that it has seen.
        instance=f"amiss-{node}-{secrets.token_hex(4)}",
        user=wish.user,
        ssh_keys=ssh_keys(wish.ssh_key, around.home),
        wifi=_wifi(wish, around),
        timezone=wish.timezone,
        etc=etc,
        secrets=kept,
    )
    files: dict[str, bytes | Path] = dict(boot.files(device))
    _prove(device, around.environ)
    notes = []
    found = None if wish.no_package else wish.package or package.find(around.packages)
    if found is not None:
        package.refuse_unfit(package.look_at(found), found)
        files[f"amiss/{found.name}"] = found
    elif not wish.no_package:
        raise NoInputError(
            f"there is no amiss_…+deb13_arm64.deb in {around.packages}/; `make dist` writes it, --package names another place, "
            "and with --no-package you put it into the folder amiss of the card yourself"
        )
    else:
        notes.append("put amiss_…+deb13_arm64.deb into the folder amiss of the card, else nothing is installed")
    if not device.ssh_keys:
        notes.append("no SSH key, so nobody can log in; --ssh-key FILE.pub names one (`ssh-keygen` makes one)")
    return Prepared(device, files, tuple(notes))


def lines(prepared: Prepared, place: Path, *, on_card: bool) -> list[str]:
    """What to do next."""
    device = prepared.device
    node, user = device.node, device.user
    if on_card:
        steps = ["1. Eject the card, put it into the Pi, plug in sensor and power."]
    else:
        steps = [
            '1. Write "Raspberry Pi OS Lite (64-bit)" to a card with Raspberry Pi Imager, without its customisation.',
            f"2. Copy what is in {place} onto its partition bootfs (cp -r {place}/. PARTITION/), and delete the folder if "
            "secrets are in it. Eject the card, put it into the Pi, plug in sensor and power.",
        ]
    reach = f", and `ssh {user}@{node}.local` opens a shell" if device.ssh_keys else ""
    steps.append(
        f"{len(steps) + 1}. After some minutes amiss/{node}/availability on the broker says online{reach}. If not: "
        "amiss/first-boot.txt on the card says why."
    )
    air = f", Wi-Fi {device.wifi.ssid} in {device.wifi.country}" if device.wifi else ""
    head = f"{place}: {node}, a {device.board} with {_port(device)}{air}"
    return [head, *(f"note: {note}" for note in prepared.notes), *steps]


def as_data(prepared: Prepared, written: list[Path]) -> dict[str, Any]:
    device = prepared.device
    return {
        "node": device.node,
        "board": device.board,
        "port": _port(device),
        "user": device.user,
        "ssh_keys": len(device.ssh_keys),
        "wifi": {"ssid": device.wifi.ssid, "country": device.wifi.country} if device.wifi else None,
        "instance": device.instance,
        "files": [str(path) for path in written],
        "notes": list(prepared.notes),
    }


def ssh_keys(file: Path | None, home: Path) -> tuple[str, ...]:
    """Public keys of a file; without one the user's own, if there is one. Raises `UsageError` when it holds no such keys."""
    if file is None:
        file = next((path for name in OWN_KEYS if (path := home / ".ssh" / name).is_file()), None)
        if file is None:
            return ()
    text = _read(file, "--ssh-key").decode("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise UsageError(f"--ssh-key {file}: that is the private key, which nobody else may see; name {file}.pub")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not keys or not all(re.match(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+ [A-Za-z0-9+/]{40,}={0,2}( |$)", key) for key in keys):
        raise UsageError(f"--ssh-key {file}: not a public key of OpenSSH; they begin like ssh-ed25519 AAAA…")
    return keys


def _safe(name: str) -> str:
    """For a topic, or a host."""
    return re.sub(r"[^a-z0-9-]", "-", name)


def _config(wish: Wish, node: str, sensor: Sensor, port: str, mqtt: MqttConfig) -> dict[str, Any]:
    """device.toml as plain data."""
    own = "/" in wish.sensor or wish.sensor.endswith(".toml")
    # A profile that only the user has is written down in full: the device does not have it.
    stream = profiles.fill({"port": port}, sensor) if own else {"sensor": sensor.name, "port": port}
    default = msgspec.to_builtins(MqttConfig())
    said = {key: value for key, value in msgspec.to_builtins(mqtt).items() if value != default[key] and key != "password"}
    if mqtt.tls is not None:
        places = {"ca": "ca.pem", "cert": "client.pem", "key": "${CREDENTIALS_DIRECTORY}/mqtt-key"}
        said["tls"] = {key: place for key, place in places.items() if getattr(mqtt.tls, key)}
        said["tls"] |= {key: f"/etc/amiss/{places[key]}" for key in said["tls"] if key != "key"}
    return {
        "node": node,
        "bundle": boot.BUNDLE,
        "streams": {_safe(sensor.name): stream},
        "mqtt": {"host": mqtt.host, **said},
    }


def _credentials(mqtt: MqttConfig, token: str | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files for /etc/amiss, and secrets."""
    etc: dict[str, bytes] = {}
    kept = {"mqtt-password": mqtt.password, "requests-token": token}
    if mqtt.tls is not None:
        for path, name in ((mqtt.tls.ca, "ca.pem"), (mqtt.tls.cert, "client.pem")):
            if path:
                etc[name] = _read(Path(path), "mqtt.tls")
        if mqtt.tls.key:
            kept["mqtt-key"] = _read(Path(mqtt.tls.key), "mqtt.tls.key").decode("utf-8", "replace").rstrip("\n")
    return etc, {name: secret for name, secret in kept.items() if secret}


def _update(wish: Wish) -> tuple[dict[str, Any], bytes]:
    if not wish.repository or not wish.root:
        raise UsageError(
            "--repository and --root go together: where models are, and the root of trust that `amiss keys init` wrote"
        )
    root = _read(wish.root, "--root")
    try:
        if json.loads(root)["signed"]["_type"] != "root":
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"--root {wish.root}: not a root of trust; it is root.json of the folder that `amiss keys init` wrote"
        ) from None
    return {"repository": wish.repository, "root": "/etc/amiss/root.json"}, root


def _bundle(path: Path | None, sensor: Sensor, say: Callable[[str], None]) -> tuple[Bundle, bytes]:
    """Without one, a starter (docs/adr/0026-starter.md): some ten seconds, and PyTorch."""
    if path is None:
        from deploy import starter

        say(f"no --bundle: making a starter for {sensor.name}, which learns its machine on the device")
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / boot.BUNDLE
            channels = [ChannelSpec(channel.name, channel.unit) for channel in sensor.channels]
            starter.build(channels, sensor.rate_hz, made, name=sensor.name, window=sensor.window, hop=sensor.hop)
            return Bundle.open(made), made.read_bytes()
    bundle = Bundle.open(path)
    sent = {channel.name for channel in sensor.channels}
    another = "name the sensor that it was trained for, or a model for this one"
    if absent := [name for name in bundle.channels if name not in sent]:
        raise ConfigError(f"{path}: judges {', '.join(absent)}, and {sensor.name} sends {', '.join(sorted(sent))}; {another}")
    if not 0.95 < (rate_hz := bundle.manifest.rate_hz) / sensor.rate_hz < 1.05:
        raise ConfigError(f"{path}: is for {rate_hz:g} samples a second, and {sensor.name} sends {sensor.rate_hz:g}; {another}")
    return bundle, _read(path, "--bundle")


def _wifi(wish: Wish, around: Around) -> Wifi | None:
    if wish.wifi is None:
        if wish.hidden or wish.country:
            raise UsageError("--country and --hidden go with --wifi NAME")
        return None
    country = wish.country
    if country is None:
        locale = around.environ.get("LC_ALL") or around.environ.get("LANG") or ""
        country = found[1] if (found := re.match(r"[a-z]{2,3}_([A-Z]{2})\b", locale)) else ""
        if not country:
            raise UsageError("--wifi needs --country, as in DE: its rules for transmitting hold")
    return wifi(wish.wifi, _passphrase(wish.wifi, around), country, hidden=wish.hidden)


def _passphrase(ssid: str, around: Around) -> str:
    if said := around.environ.get(PASSPHRASE):
        return said
    if named := around.environ.get(f"{PASSPHRASE}_FILE"):
        path = Path(named)
        text = _read(path, f"{PASSPHRASE}_FILE").decode("utf-8", "replace").strip("\r\n")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise AccessError(f"{PASSPHRASE}_FILE: {path} can be read by others: chmod 600 {path}")
        return text
    if not around.terminal():
        raise AccessError(f"no terminal to ask for the passphrase of {ssid}; put it into a file, {PASSPHRASE}_FILE=FILE")
    return around.ask(f"passphrase of the Wi-Fi network {ssid}: ")


def _prove(device: boot.Device, environ: Mapping[str, str]) -> None:
    """device.toml as it is written, read as the agent will read it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "device.toml"
        file.write_text(boot.device_toml(device), "utf-8")
        try:
            configs.load(file, environ={"CREDENTIALS_DIRECTORY": "/run/credentials/amiss.service"})
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}/", "")) from None


def _port(device: boot.Device) -> str:
    ((name, stream),) = device.config["streams"].items()
    return f"{name} on {stream['port']}"


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoInputError(f"{option}: {path}: {error.strerror or error}") from None
