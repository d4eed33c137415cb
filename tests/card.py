"""A card as Raspberry Pi OS comes on it, and a computer's files to start it in: what is run there is what a Pi would run."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=e5fdffb4-02 rootfstype=ext4 fsck.repair=yes rootwait"
STOCK = {
    "config.txt": "# http://rptl.io/configtxt\narm_64bit=1\n[pi4]\narm_boost=1\n[all]\n",
    "cmdline.txt": f"{CMDLINE}\n",
    "kernel8.img": "",
    "user-data": "#cloud-config\n\n#hostname: raspberrypi\n#users:\n#- default\nssh_pwauth: false\n",
    "network-config": "network:\n  version: 2\n\n  ethernets:\n    eth0:\n      dhcp4: true\n#  wifis:\n#    wlan0:\n",
    "meta-data": "dsmode: local\ninstance_id: rpios-image\n",
}
STAND_INS = ("systemctl", "apt-get", "dpkg", "dpkg-query", "journalctl", "iw", "rfkill", "nmcli", "amiss")
"""They would change this computer; what they do on another is the business of tests/packages."""


def stock(folder: Path, **changes: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**STOCK, **changes}.items():
        (folder / name).write_text(text)
    return folder


@dataclass(frozen=True)
class Computer:
    """A root file system in a folder."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Computer":
        for name in ("etc", "run", "proc/1", "var/lib/NetworkManager", "var/lib/systemd/rfkill", "tools"):
            (root / name).mkdir(parents=True)
        (root / "var/lib/NetworkManager/NetworkManager.state").write_text("[main]\nWirelessEnabled=false\n")
        (root / "var/lib/systemd/rfkill/platform-fe300000.mmcnr:wlan").write_text("1\n")
        (root / "proc/1/comm").write_text("systemd\n")
        found = cls(root)
        for name in STAND_INS:
            found.stand_in(name, "")
        stock(found.boot)
        return found

    @property
    def boot(self) -> Path:
        return self.root / "boot/firmware"

    @property
    def said(self) -> str:
        return (self.boot / "amiss/first-boot.txt").read_text()

    @property
    def log(self) -> list[str]:
        file = self.root / "log"
        return file.read_text().splitlines() if file.exists() else []

    def stand_in(self, name: str, script: str) -> None:
        """`script`: what it does beside being written down."""
        file = self.root / "tools" / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.root}/log"\n{script}\n')
        file.chmod(0o755)

    def start(self) -> list[int]:
        """What cloud-init does with user-data, as far as it concerns files and programs. Returns exit codes."""
        data: dict[str, Any] = yaml.safe_load((self.boot / "user-data").read_text())
        codes = []
        for command in data.get("bootcmd", []):
            assert command[:3] == ["cloud-init-per", "instance", "amiss-radio"]
            codes.append(self.run(*command[3:]))
        scripts = self.root / "var/lib/cloud/scripts/per-boot"
        if not scripts.exists():  # once for each instance
            for file in data["write_files"]:
                path = self.root / file["path"].lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file["content"].replace("/boot/firmware", str(self.boot)))
                path.chmod(int(file["permissions"], 8))
        return codes + [self.run(str(script)) for script in sorted(scripts.iterdir())]

    def run(self, *command: str) -> int:
        environ = {"PATH": f"{self.root}/tools:{os.environ['PATH']}", "AMISS_ROOT": str(self.root)}
        words = [word.replace("/boot/firmware", str(self.boot)) if word.startswith("/boot") else word for word in command]
        return subprocess.run(words, env=environ, check=False, capture_output=True, timeout=60).returncode

    def mentions(self, secret: str) -> list[Path]:
        """Files of the boot partition in which it is."""
        return [path for path in self.boot.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
