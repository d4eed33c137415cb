"""What a device is to be → the files of its boot partition. Pure.

    user-data, network-config, meta-data   what cloud-init reads; no secret but the key of the Wi-Fi network
    amiss/first-boot.sh                    does the rest, and says in amiss/first-boot.txt how it went
    amiss/etc/…                            goes to /etc/amiss
    amiss/secrets/…                        goes to /etc/amiss/secrets, for root's eyes, and from the partition
    amiss/amiss.service.d/…                tells systemd to hand the secrets to the service
    amiss/network-config.after             network-config as it is left there

The keys of `user-data` are such as cloud-init has had for years. Those that only Raspberry Pi's own build knows (`rpi`,
`enable_ssh`) are not needed: first-boot.sh does that part itself.
"""

import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.flash.wifi import Wifi, keyfile, network_config
from edge.errors import ConfigError, UsageError

ON_DEVICE = "/boot/firmware/amiss"
"""Where Raspberry Pi OS shows the folder amiss of the boot partition."""
BUNDLE = "model.amiss"
ANY_ADAPTER = "/dev/serial/by-id/*"
"""The one USB adapter that is plugged in, whatever it is; two are an error that names both."""


@dataclass(frozen=True, slots=True)
class Pi:
    uart: str
    """Serial port on the pins 8 and 10."""
    free: str
    """How first-boot.sh is told to take it from the console."""
    tag: str
    """As Raspberry Pi Imager calls boards that can run the same 64-bit image."""


PIS = {
    "raspberry-pi-zero-2w": Pi("/dev/serial0", "uart", "pi3-64bit"),
    "raspberry-pi-3": Pi("/dev/serial0", "uart", "pi3-64bit"),
    "raspberry-pi-4": Pi("/dev/serial0", "uart", "pi4-64bit"),
    # There serial0 is the plug for a debugger between the HDMI sockets.
    "raspberry-pi-5": Pi("/dev/ttyAMA0", "uart-5", "pi5-64bit"),
}
"""By the names of firmware-configs/boards."""

SETTINGS = {
    "mqtt-password": "AMISS_MQTT__PASSWORD_FILE",
    "requests-token": "AMISS_REQUESTS__TOKEN_FILE",
    "mqtt-key": None,  # its place is named in device.toml
}
"""Secrets → the variable that tells the agent in which file one is."""


@dataclass(frozen=True, slots=True)
class Device:
    node: str
    board: str
    config: Mapping[str, Any]
    """device.toml"""
    bundle: bytes
    instance: str
    """cloud-init does all of it again when this is another one than before."""
    user: str = "admin"
    """Who logs in by SSH; without a key nobody can."""
    ssh_keys: tuple[str, ...] = ()
    wifi: Wifi | None = None
    timezone: str | None = None
    etc: Mapping[str, bytes] = field(default_factory=dict)
    """More for /etc/amiss."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """See `SETTINGS`."""


def pi(board: str) -> Pi:
    """Raises `UsageError` for a board that no Raspberry Pi OS runs on, and says what to do with it instead."""
    if board in PIS:
        return PIS[board]
    if board.startswith("jetson"):
        raise UsageError(f"{board}: a Jetson is set up with NVIDIA's own image; install the package or the container on it")
    raise UsageError(f"{board}: there is no card to prepare; install the package on it, or take one of: {', '.join(PIS)}")


def port(board: Pi, usual: str | None, given: str | None) -> str:
    """Where the sensor is: as it is said (`gpio`: the board's own pins), else as is usual for it, else the only adapter."""
    if given == "gpio":
        return board.uart
    if given in (None, "auto"):
        return (usual if given is None else None) or ANY_ADAPTER
    assert given is not None
    return given


def on_pins(port: str) -> bool:
    return re.fullmatch(r"/dev/(serial0|ttyAMA0|ttyS0)", port) is not None


def files(device: Device) -> dict[str, bytes]:
    """By their paths from the root of the partition. Raises `ConfigError` for what cannot be written down."""
    found = {
        "user-data": user_data(device),
        "network-config": network_config(device.wifi),
        "meta-data": f"dsmode: local\ninstance-id: {device.instance}\n",
        "amiss/first-boot.sh": (importlib.resources.files("deploy") / "flash" / "first-boot.sh").read_text("utf-8"),
        "amiss/etc/device.toml": device_toml(device),
        **{f"amiss/secrets/{name}": f"{secret}\n" for name, secret in device.secrets.items()},
    }
    if device.secrets:
        found["amiss/amiss.service.d/secrets.conf"] = drop_in(device.secrets)
    if device.wifi is not None:
        found["amiss/secrets/wifi.nmconnection"] = keyfile(device.wifi)
        found["amiss/network-config.after"] = network_config(None)
    binary = {f"amiss/etc/{name}": content for name, content in {**device.etc, BUNDLE: device.bundle}.items()}
    return {path: text.encode() for path, text in found.items()} | binary


def user_data(device: Device) -> str:
    """cloud-config. JSON's strings are YAML's too."""
    uart = any(on_pins(stream["port"]) for stream in device.config["streams"].values())
    words = [
        "install",
        device.instance,
        *(["ssh"] if device.ssh_keys else []),
        *([pi(device.board).free] if uart else []),
    ]
    lines = [
        "#cloud-config",
        f"# Written by `amiss device new {device.node}`; what the agent is to do is in amiss/etc/device.toml.",
        f"hostname: {device.node}",
        "manage_etc_hosts: true",
        *([f"timezone: {_text(device.timezone)}"] if device.timezone else []),
        # Without a user of its own the system waits at its screen for somebody to make one.
        "users:",
        f"- name: {device.user}",
        "  groups: adm,dialout,sudo",
        "  shell: /bin/bash",
        "  lock_passwd: true",
        '  sudo: "ALL=(ALL) NOPASSWD:ALL"',
        *(["  ssh_authorized_keys:", *(f"  - {_text(key)}" for key in device.ssh_keys)] if device.ssh_keys else []),
        "ssh_pwauth: false",
    ]
    if device.wifi is not None:
        radio = ["cloud-init-per", "instance", "amiss-radio", "sh", f"{ON_DEVICE}/first-boot.sh", "radio", device.wifi.country]
        lines += ["bootcmd:", f"- {json.dumps(radio)}"]
    lines += [
        # And not runcmd, which has one try: a package that was forgotten can be added to the card.
        "write_files:",
        "- path: /var/lib/cloud/scripts/per-boot/amiss-first-boot",
        '  permissions: "0755"',
        "  content: |",
        "    #!/bin/sh",
        f"    exec sh {ON_DEVICE}/first-boot.sh {' '.join(words)}",
    ]
    if uart:
        lines += ["power_state:", "  mode: reboot", "  condition: test -e /run/amiss-restart"]
    return "\n".join([*lines, ""])


def drop_in(secrets: Mapping[str, str]) -> str:
    lines = ["# Written by `amiss device new`: root's files, shown to the service alone.", "[Service]"]
    for name in secrets:
        lines.append(f"LoadCredential={name}:/etc/amiss/secrets/{name}")
        if variable := SETTINGS[name]:
            lines.append(f"Environment={variable}=%d/{name}")
    return "\n".join([*lines, ""])


def device_toml(device: Device) -> str:
    head = [
        "# Written by `amiss device new`. On the device: `sudo systemctl reload amiss` reads it again, and",
        "# `sudo amiss doctor --config /etc/amiss/device.toml` says what is wrong. `amiss config schema`: what else there is.",
    ]
    return "\n".join([*head, *_table((), device.config), ""])


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    """TOML: first what is plain, then tables inside of it."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    if path and (lines or not table):
        lines = ["", f"[{'.'.join(path)}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table((*path, key), value)
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)


def _text(text: str) -> str:
    """In quotes, for TOML and YAML alike."""
    if not text.isprintable():
        raise ConfigError(f"{text!r}: a line break or a sign that is not to be seen; leave it out")
    return json.dumps(text, ensure_ascii=False)
