#!/usr/bin/python3
"""Take over what a person has put on the boot partition: the part of a card that every computer can write.

    amiss.toml        → /etc/amiss/device.toml, and its `node` becomes the name of this computer
    *.amiss           → /etc/amiss/            models
    root.json         → /etc/amiss/            whom to trust with new models
    *.pem             → /etc/amiss/            certificates, for a broker with TLS
    wifi.toml         → /etc/wpa_supplicant/   `country`, `ssid`, `password`
    authorized_keys   → /root/.ssh/            who may log in; without it there is no ssh

A file is proven, written to the disk, and taken away from the boot partition: what lies there is new by that alone, passwords
do not stay where everybody reads them, and a power cut at any moment only means that it is done again. Those of the first four
rows belong together and are taken over all or none. What is wrong is told on the console and in `amiss-error.txt` beside the
file that is wrong; that stays as it is, and so does what was taken over before.

Only the standard library: it also runs where the agent is broken.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

CONFIG, TOLD, STUCK = "amiss.toml", "amiss-error.txt", "var/lib/amiss-image/stuck.json"
MAX_BYTES = 278 * 1024 * 1024
"""The largest bundle that an agent opens."""
KEY = re.compile(r"(ssh-(?:ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+)\s+(\S+)")
PATIENCE_S = 300
"""For a program that proves a model: slow boards take a minute."""


class Wrong(Exception):
    """A file is not as it has to be; the message is for its owner."""


class Disk:
    """Where things go. `group` may read what only the agent should."""

    def __init__(self, root: Path, group: str) -> None:
        self.root, self.group = root, group

    def write(self, path: str, data: bytes, mode: int = 0o644, group: str | None = None) -> None:
        """Whole or not at all, also when the power goes."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.new")
        draft.unlink(missing_ok=True)
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            if group is not None:
                shutil.chown(draft, group=group)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Boot:
    """The boot partition, without files that were taken over and could not be taken away: `stuck`, by name and digest."""

    def __init__(self, folder: Path, stuck: dict[str, str]) -> None:
        self.folder, self._stuck = folder, stuck

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file() and ours(path.name) and self._is_new(path))

    def _is_new(self, path: Path) -> bool:
        return path.name not in self._stuck or self._stuck[path.name] != digest(self.read(path.name))

    def read(self, name: str) -> bytes:
        path = self.folder / name
        if path.stat().st_size > MAX_BYTES:
            raise Wrong(f"{name}: larger than anything that belongs here")
        return path.read_bytes()

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode("utf-8-sig")  # Windows puts a mark in front
        except UnicodeDecodeError:
            raise Wrong(f"{name}: not UTF-8; in the editor's `Save as`, choose UTF-8") from None

    def remove(self, name: str) -> None:
        """Its bytes, too, as far as a card forgets."""
        path = self.folder / name
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()

    def tell(self, problems: list[str]) -> None:
        told = self.folder / TOLD
        if not problems:
            told.unlink(missing_ok=True)
            return
        text = "".join(
            f"{line}\r\n" for line in [*problems, "", "Mend it in this folder, and switch the device on again with this card."]
        )
        draft = told.with_name("amiss-error.new")
        draft.write_text(f"amiss could not take over what is on this card:\r\n\r\n{text}", "utf-8", newline="")
        draft.replace(told)


def ours(name: str) -> bool:
    if name.startswith("."):  # macOS puts a `._pump.amiss` beside a pump.amiss
        return False
    known = name in (CONFIG, "root.json", "wifi.toml", "authorized_keys") or name.endswith((".amiss", ".pem"))
    return known or (name.endswith(".txt") and name != TOLD and ours(name.removesuffix(".txt")))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def take_over(boot: Boot, disk: Disk, amiss: list[str]) -> tuple[list[str], list[str]]:
    """Names that were taken over, and what is wrong."""
    names = boot.names()
    taken: list[str] = []
    problems = [f"{name}: call it {name.removesuffix('.txt')}" for name in names if name.endswith(".txt")]
    agent = [name for name in names if name in (CONFIG, "root.json") or name.endswith((".amiss", ".pem"))]
    for some, take in ((agent, take_agent), (["wifi.toml"], take_wifi), (["authorized_keys"], take_keys)):
        here = [name for name in some if name in names]
        if here:
            try:
                take(here, boot, disk, amiss)
            except Wrong as wrong:
                problems.append(str(wrong))
            except OSError as error:
                problems.append(f"{', '.join(here)}: {error.strerror or error}")
            else:
                taken += here
    return taken, problems


def take_agent(names: list[str], boot: Boot, disk: Disk, amiss: list[str]) -> None:
    draft = disk.root / "etc/amiss/.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    try:
        data = {name: boot.read(name) for name in names}
        for name in names:
            if name == CONFIG:
                data[name] = boot.text(name).encode()
            (draft / name).write_bytes(data[name])
        for name in names:
            if name.endswith(".amiss"):
                ask([*amiss, "inspect", "--verify", "--json", str(draft / name)], name, draft)
            elif name.endswith(".pem"):
                if b"-----BEGIN " not in data[name]:
                    raise Wrong(f"{name}: no PEM file; it begins with -----BEGIN")
            elif name == "root.json":
                prove_root(data[name])
        node = prove_config(names, draft, disk, amiss) if CONFIG in names else None
        # The configuration last: it names the others.
        for name in sorted(names, key=lambda name: name == CONFIG):
            secret = name == CONFIG or name.endswith(".pem")
            target = "device.toml" if name == CONFIG else name
            disk.write(f"etc/amiss/{target}", data[name], 0o640 if secret else 0o644, disk.group if secret else None)
        if node is not None:
            disk.write("etc/hostname", f"{node}\n".encode())
            disk.write("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {node}\n::1 localhost\n".encode())
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def prove_config(names: list[str], draft: Path, disk: Disk, amiss: list[str]) -> str:
    """The node's name."""
    ask([*amiss, "config", "check", "--config", str(draft / CONFIG)], CONFIG, draft)
    config = tomllib.loads((draft / CONFIG).read_text("utf-8"))
    needed = {"bundle": config["bundle"]}
    if "update" in config:
        needed["update.root"] = config["update"].get("root", "root.json")
    needed |= {f"mqtt.tls.{key}": path for key, path in config.get("mqtt", {}).get("tls", {}).items()}
    for key, name in needed.items():
        if "${" in name:  # the service's environment says where
            continue
        path = Path("/etc/amiss") / name
        brought = path.parent == Path("/etc/amiss") and path.name in names
        if not brought and not (disk.root / path.relative_to("/")).is_file():
            raise Wrong(f"{CONFIG}: {key} is {name}, which is not there; put {path.name} beside {CONFIG}")
    return str(config["node"])


def prove_root(data: bytes) -> None:
    try:
        kind = json.loads(data)["signed"]["_type"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind != "root":
        raise Wrong("root.json: no root of trust; take metadata/1.root.json of the repository")


def ask(command: list[str], name: str, draft: Path) -> None:
    """Raises `Wrong` with what the program says, in terms of the boot partition."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Wrong(f"{name}: cannot be proven: {error}") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        text = said[-1].removeprefix("amiss: ").replace(f"{draft}/", "")
        raise Wrong(text if text.startswith(f"{name}:") else f"{name}: {text}")


def take_wifi(names: list[str], boot: Boot, disk: Disk, amiss: list[str]) -> None:
    try:
        wifi = tomllib.loads(boot.text("wifi.toml"))
    except tomllib.TOMLDecodeError as error:
        raise Wrong(f"wifi.toml: not valid TOML: {error}") from None
    if unknown := sorted(wifi.keys() - {"country", "ssid", "password"}):
        raise Wrong(f"wifi.toml: unknown key `{unknown[0]}`; there are country, ssid and password")
    country, ssid, password = (wifi.get(key) for key in ("country", "ssid", "password"))
    if not isinstance(country, str) or not re.fullmatch("[A-Z]{2}", country):
        raise Wrong('wifi.toml: `country` is two capital letters, as in country = "DE": it says which channels are allowed')
    if not isinstance(ssid, str) or not 1 <= len(ssid.encode()) <= 32:
        raise Wrong("wifi.toml: `ssid` is the name of the network, 1 to 32 bytes")
    if password is not None and not (isinstance(password, str) and re.fullmatch("[ -~]{8,63}", password)):
        raise Wrong(
            "wifi.toml: `password` has 8 to 63 plain letters, digits and signs; leave it out where the network has none"
        )
    lines = ["ctrl_interface=DIR=/run/wpa_supplicant", f"country={country}", "network={", f"\tssid={ssid.encode().hex()}"]
    if password is None:
        lines.append("\tkey_mgmt=NONE")
    else:  # the key and not the password, which may be somebody's elsewhere, too
        lines.append(f"\tpsk={hashlib.pbkdf2_hmac('sha1', password.encode(), ssid.encode(), 4096, 32).hex()}")
    disk.write("etc/wpa_supplicant/wpa_supplicant-wlan0.conf", ("\n".join([*lines, "}"]) + "\n").encode(), 0o600)


def take_keys(names: list[str], boot: Boot, disk: Disk, amiss: list[str]) -> None:
    text = boot.text("authorized_keys")
    if "PRIVATE KEY" in text:
        raise Wrong("authorized_keys: a private key, which nobody else may have; put in what is in the .pub file beside it")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise Wrong("authorized_keys: no key in it")
    for number, line in enumerate(lines, 1):
        found = KEY.search(line)
        if found is None or not is_whole(found[1], found[2]):
            raise Wrong(f"authorized_keys: key {number} is none; each line is a whole .pub file")
    (disk.root / "root/.ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
    disk.write("root/.ssh/authorized_keys", ("\n".join(lines) + "\n").encode(), 0o600)


def is_whole(kind: str, encoded: str) -> bool:
    """A public key is fields, each behind its length; the first is the kind, once more."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    fields = []
    while len(blob) >= 4:
        end = 4 + int.from_bytes(blob[:4], "big")
        if end > len(blob):
            return False
        fields.append(blob[4:end])
        blob = blob[end:]
    return not blob and len(fields) >= 2 and fields[0] == kind.encode()


def remounted(boot: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(boot)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take over what a person has put on the boot partition.")
    parser.add_argument("--boot", type=Path, default=Path("/boot/firmware"))
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--group", default="amiss", help="who reads secrets")
    parser.add_argument(
        "--amiss",
        nargs=argparse.REMAINDER,
        default=["amiss"],
        help="the program that proves configurations and models; the rest of the line",
    )
    parser.add_argument("--remount", action="store_true", help="the partition is mounted to be read only")
    arguments = parser.parse_args()
    for line in run(arguments.boot, arguments.root, arguments.group, arguments.amiss, arguments.remount):
        print(f"amiss: {line}", flush=True)


def run(folder: Path, root: Path, group: str, amiss: list[str], remount: bool) -> Iterator[str]:
    """What there is to say. Never raises for what is on the boot partition: the device starts with what it has."""
    record = root / STUCK
    try:
        stuck: dict[str, str] = json.loads(record.read_text())
    except (OSError, ValueError):
        stuck = {}
    boot, disk = Boot(folder, stuck), Disk(root, group)
    if not boot.names() and not (folder / TOLD).exists():
        return
    if remount:
        remounted(folder, "rw")
    try:
        taken, problems = take_over(boot, disk, amiss)
        for name in taken:
            try:
                boot.remove(name)
                yield f"{name} is taken over"
            except OSError as error:
                # It is not news at the next start.
                stuck[name] = digest(boot.read(name))
                disk.write(STUCK, json.dumps(stuck).encode(), 0o600)
                yield f"{name} is taken over and cannot be taken away from the boot partition: {error.strerror}"
        for problem in problems:
            yield f"NOT taken over: {problem}"
        try:
            boot.tell(problems)
        except OSError as error:
            yield f"{TOLD} cannot be written: {error.strerror}"
        if root == Path("/") and CONFIG in taken:
            Path("/proc/sys/kernel/hostname").write_text((root / "etc/hostname").read_text().strip())
    finally:
        if remount:
            os.sync()
            remounted(folder, "ro")


if __name__ == "__main__":
    main()
