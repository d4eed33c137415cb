"""USB serial adapters as Linux shows them: a folder for /sys and one for /dev, in which pseudo-terminals stand for devices."""

import os
import shutil
import tty
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Plug:
    """What is plugged in: the far end of its line, and the name that it has been given this time."""

    fd: int
    name: str
    open: bool = True

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)


class Machine:
    """Plugging in gives the lowest ttyUSB number that is free, as the kernel does."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev = root / "sys", root / "dev"
        (self.sys / "class/tty").mkdir(parents=True)
        (self.dev / "serial/by-id").mkdir(parents=True)
        (self.dev / "serial/by-path").mkdir(parents=True)
        # As on a real machine: a terminal that is no port, a port that is none, and one that is.
        (self.sys / "class/tty/ptmx").mkdir()
        for name, kind in (("ttyS0", "4"), ("ttyS3", "0")):
            (self.sys / "devices/pnp0" / name).mkdir(parents=True)
            (self.sys / "class/tty" / name).mkdir()
            (self.sys / "class/tty" / name / "type").write_text(f"{kind}\n")
            (self.sys / "class/tty" / name / "device").symlink_to(self.sys / "devices/pnp0" / name)
            (self.dev / name).touch()

    def plug_in(self, vid: str = "0403", pid: str = "6001", serial: str = "A10K", product: str = "FT232R USB UART") -> Plug:
        fd, slave = os.openpty()
        tty.setraw(slave)
        name = next(f"ttyUSB{i}" for i in range(100) if not (self.sys / f"class/tty/ttyUSB{i}").exists())
        device = self.sys / "devices/pci0/usb1" / name
        port = device / "1-1:1.0" / name
        port.mkdir(parents=True)
        for file, text in (("idVendor", vid), ("idProduct", pid), ("serial", serial), ("product", product)):
            if text:
                (device / file).write_text(text + "\n")
        (self.sys / "class/tty" / name).mkdir()
        (self.sys / "class/tty" / name / "device").symlink_to(port)
        (self.dev / name).symlink_to(os.ttyname(slave))
        os.close(slave)
        for link in (self._by_id(vid, pid, serial), self.dev / f"serial/by-path/pci-usb-{name[-1]}-port0"):
            link.unlink(missing_ok=True)
            link.symlink_to(self.dev / name)
        return Plug(fd, name)

    def unplug(self, plug: Plug) -> None:
        if not plug.open:
            return
        plug.open = False
        shutil.rmtree(self.sys / "class/tty" / plug.name)
        shutil.rmtree(self.sys / "devices/pci0/usb1" / plug.name)
        for link in (self.dev / "serial").glob("*/*"):
            if link.readlink() == self.dev / plug.name:
                link.unlink()
        (self.dev / plug.name).unlink()
        os.close(plug.fd)

    def _by_id(self, vid: str, pid: str, serial: str) -> Path:
        return self.dev / f"serial/by-id/usb-{vid}_{pid}{'_' + serial if serial else ''}-if00-port0"
