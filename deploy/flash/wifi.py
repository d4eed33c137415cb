"""A Wi-Fi network, as netplan (cloud-init's `network-config`) and NetworkManager want it told."""

import hashlib
import json
import re
from dataclasses import dataclass

from edge.errors import UsageError


@dataclass(frozen=True, slots=True)
class Wifi:
    ssid: str
    psk: str
    """64 hexadecimal digits, made of name and passphrase: opens this network, and does not tell the passphrase."""
    country: str
    """ISO 3166: whose rules for transmitting hold."""
    hidden: bool = False


def wifi(ssid: str, passphrase: str, country: str, *, hidden: bool = False) -> Wifi:
    """Raises `UsageError` for what no network of WPA 2 can be."""
    if not 1 <= len(ssid.encode()) <= 32 or not ssid.isprintable():
        raise UsageError(f"--wifi {ssid!r}: a network's name has 1 to 32 bytes")
    if country == "UK":
        raise UsageError("--country UK: the code of the United Kingdom is GB")
    if not re.fullmatch("[A-Z]{2}", country):
        raise UsageError(f"--country {country!r}: two capital letters (ISO 3166), as in DE: its rules for transmitting hold")
    return Wifi(ssid, psk(ssid, passphrase), country, hidden)


def psk(ssid: str, passphrase: str) -> str:
    """IEEE 802.11, J.4.1: what is derived from a passphrase anyway. 64 hexadecimal digits are one already."""
    if re.fullmatch("[0-9a-fA-F]{64}", passphrase):
        return passphrase.lower()
    if not 8 <= len(passphrase.encode()) <= 63:
        raise UsageError("the passphrase of a Wi-Fi network has 8 to 63 characters; this one does not")
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()


def network_config(wifi: Wifi | None) -> str:
    """YAML, netplan's version 2."""
    lines = [
        "# Written by `amiss device new`.",
        "network:",
        "  version: 2",
        "  ethernets:",
        "    eth0:",
        "      dhcp4: true",
        "      optional: true",
    ]
    if wifi is not None:
        lines += [
            "  wifis:",
            "    wlan0:",
            "      dhcp4: true",
            "      optional: true",
            f'      regulatory-domain: "{wifi.country}"',
            "      access-points:",
            f"        {json.dumps(wifi.ssid, ensure_ascii=False)}:",
            # Outside of `auth`, so that netplan lets networks in transition to WPA 3 be joined as well.
            f'          password: "{wifi.psk}"',
            *(["          hidden: true"] if wifi.hidden else []),
        ]
    return "\n".join([*lines, ""])


def keyfile(wifi: Wifi) -> str:
    """A profile of NetworkManager."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]([A-Za-z0-9 _-]*[A-Za-z0-9_-])?", wifi.ssid)
    # Anything else as bytes, of which no character has a second meaning.
    ssid = wifi.ssid if plain else "".join(f"{byte};" for byte in wifi.ssid.encode())
    return "\n".join(
        [
            "[connection]",
            "id=amiss-wifi",
            "type=wifi",
            "[wifi]",
            "mode=infrastructure",
            f"ssid={ssid}",
            *(["hidden=true"] if wifi.hidden else []),
            "[wifi-security]",
            "key-mgmt=wpa-psk",
            f"psk={wifi.psk}",
            "[ipv4]",
            "method=auto",
            "[ipv6]",
            "method=auto",
            "",
        ]
    )
