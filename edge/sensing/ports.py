"""Which device file a configured port is right now. /dev/ttyUSB0 may be ttyUSB1 after the next plugging in; names that last:

- `usb:VID:PID` and `usb:VID:PID:SERIAL`: what a USB device says of itself;
- a device file whose name is made of that, below /dev/serial/by-id; with `*` in it the one file that fits.

Linux' /sys is read and not pyserial's list, which breaks (`int(None, 16)`) when a device is unplugged in the middle of it.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.config import USB_PORT
from edge.errors import SourceLostError


@dataclass(frozen=True, slots=True)
class Port:
    """A serial port that is there."""

    device: str
    """Device file."""
    usb: str | None = None
    """`usb:VID:PID:SERIAL`, or `usb:VID:PID` when the device has no serial number; None: it is not a USB device."""
    description: str = ""
    """What the device calls itself."""
    link: str | None = None
    """The name that lasts below /dev/serial: by-id, or by-path (the socket it is plugged into) where two have one id."""

    def __str__(self) -> str:
        name = self.usb or self.link
        return f"{name} ({', '.join(filter(None, (self.description, self.device)))})" if name else self.device


class Ports:
    """The serial ports of this machine; `sys` and `dev` are where Linux shows them."""

    def __init__(self, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        self._sys, self._dev = sys, dev

    def resolve(self, port: str) -> str:
        """The device file that a configured `port` is now. Raises `SourceLostError` when it is none, or more than one."""
        if match := USB_PORT.fullmatch(port):
            vid, pid, number = match.groups()
            prefix = f"usb:{vid}:{pid}".lower()
            fit = [
                one
                for one in self.there()
                if one.usb is not None and (one.usb == f"{prefix}:{number}" if number else one.usb[: len(prefix)] == prefix)
            ]
            choices = [str(one) for one in fit]
            if len({one.usb for one in fit}) < len(fit):  # two ports of one device, or two of a cheap kind without a number
                choices = [one.link or one.device for one in fit]
            files = [one.device for one in fit]
        elif "*" in port:
            files = choices = sorted(glob.glob(port))
        else:
            return port
        if len(files) == 1:
            return files[0]
        if not files:
            raise SourceLostError(f"{port}: no such port; {self.hint()}")
        raise SourceLostError(f"{port}: {len(files)} ports fit; set port to one of: {'; '.join(choices)}")

    def there(self) -> list[Port]:
        """Every port that leads somewhere."""
        folders = [self._dev / "serial" / folder for folder in ("by-path", "by-id")]
        links = {str(link.resolve()): str(link) for folder in folders for link in sorted(folder.glob("*"))}
        return sorted(self._ports(links), key=lambda one: one.device)

    def hint(self) -> str:
        """What there is, for whoever looks for a port."""
        there = [str(one) for one in self.there()]
        return f"there are: {'; '.join(there)}" if there else "there is none at all: is the sensor plugged in?"

    def _ports(self, links: dict[str, str]) -> Iterator[Port]:
        for entry in (self._sys / "class/tty").glob("*"):
            device, hardware = self._dev / entry.name, entry / "device"
            # Terminals in name only have no device; of the four ports that every PC could have had, the absent are of type 0.
            if not hardware.exists() or not device.exists() or _line(entry / "type") == "0":
                continue
            link, hardware = links.get(str(device.resolve())), hardware.resolve()
            usb = next((above for above in (hardware, *hardware.parents) if (above / "idVendor").is_file()), None)
            if usb is None:
                yield Port(str(device), link=link)
                continue
            vid, pid, number = _line(usb / "idVendor"), _line(usb / "idProduct"), _line(usb / "serial")
            if vid and pid:  # else it has just been unplugged
                yield Port(str(device), f"usb:{vid}:{pid}{':' + number if number else ''}", _line(usb / "product"), link)


def _line(path: Path) -> str:
    """Empty when there is no such file, or none any more."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
