"""deploy/udev/60-amiss.rules, by udev's own rule engine beside the system's own rules, for adapters laid out as files.

`udevadm test` takes /sys and leaves links in /dev, so it gets both in a mount name space of its own. No daemon runs.
"""

import grp
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

RULES = Path(__file__).parents[2] / "deploy/udev/60-amiss.rules"
DIALOUT = f" GROUP {grp.getgrnam('dialout').gr_gid}\n"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /sys of its own, which takes root")


@dataclass(frozen=True)
class Adapter:
    vendor: str = "0403"
    product: str = "6001"
    serial: str = "A10K3Z"
    interface: str = "00"
    name: str = "ttyUSB0"
    driver: str = "ftdi_sio"


@dataclass(frozen=True)
class Judged:
    properties: dict[str, str]
    links: set[str]
    """Below /dev, as they were really made."""
    said: str
    """What the engine says of rules that it does not understand."""
    log: str


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def lay_out(sys: Path, adapter: Adapter | None, name: str) -> str:
    """A /sys with one port; its path from there."""
    (sys / "class/tty").mkdir(parents=True)
    if adapter is None:
        port, number = sys / "devices/platform/serial0/tty" / name, "204:64"
    else:
        device = sys / "devices/pci0000:00/usb1/1-1"
        interface = device / f"1-1:1.{int(adapter.interface)}"
        port, number = interface / f"{name}/tty/{name}", "188:0"
        write(device, {"idVendor": adapter.vendor, "idProduct": adapter.product, "product": "Serial", "manufacturer": "Maker"})
        write(device, {"bcdDevice": "0600", "uevent": "DEVTYPE=usb_device\nDRIVER=usb"})
        if adapter.serial:
            write(device, {"serial": adapter.serial})
        write(interface, {"uevent": f"DEVTYPE=usb_interface\nDRIVER={adapter.driver}", "bInterfaceNumber": adapter.interface})
        write(interface, {"bInterfaceClass": "ff", "bInterfaceSubClass": "ff", "bInterfaceProtocol": "00"})
        write(interface / name, {"uevent": f"DRIVER={adapter.driver}", "port_number": "0", "latency_timer": "16"})
        for where, bus in ((device, "usb"), (interface, "usb"), (interface / name, "usb-serial")):
            (sys / f"bus/{bus}/drivers/{adapter.driver}").mkdir(parents=True, exist_ok=True)
            (where / "subsystem").symlink_to(f"/sys/bus/{bus}")
            if where != device:
                (where / "driver").symlink_to(f"/sys/bus/{bus}/drivers/{adapter.driver}")
    major, minor = number.split(":")
    write(port, {"uevent": f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}", "dev": number})
    (port / "subsystem").symlink_to("/sys/class/tty")
    (port / "device").symlink_to("../..")
    return str(port.relative_to(sys))


SCRIPT = """
set -e
mount --bind {sys} /sys; mount --bind {dev} /dev; mount -t tmpfs none /run
mkdir -p /run/udev/rules.d; cp {rules} /run/udev/rules.d/60-amiss.rules
exec udevadm test --action={action} /sys/{port}
"""


def judge(
    folder: Path, adapter: Adapter | None, *, rules: str = "", name: str = "", action: str = "add", path: str = ""
) -> Judged:
    """What udev makes of a port that is plugged in, or of what has this `path`; `rules` in place of those that are shipped."""
    assert shutil.which("udevadm"), "udevadm is not installed: apt-get install udev"
    sys, dev, name = folder / "sys", folder / "dev", name or (adapter.name if adapter else "ttyAMA0")
    port = lay_out(sys, adapter, name)
    dev.mkdir(parents=True)
    (dev / "null").touch()
    file = folder / "60-amiss.rules"
    file.write_text(rules or RULES.read_text())
    script = SCRIPT.format(sys=sys, dev=dev, rules=file, port=path or port, action=action)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        # What is mounted there is no real sysfs, which it would refuse.
        env=os.environ | {"SYSTEMD_DEVICE_VERIFY_SYSFS": "0", "SYSTEMD_LOG_LEVEL": "debug"},
    )
    assert done.returncode == 0, done.stderr
    properties = dict(line.split("=", 1) for line in done.stdout.splitlines() if re.match(r"[.\w]+=", line))
    links = {str(path.relative_to(dev)) for path in dev.rglob("*") if path.is_symlink()}
    # What it does with a device begins with the device's name, what it does not understand with the file's.
    said = [line for line in done.stderr.splitlines() if re.match(r"\S*60-amiss\.rules", line)]
    return Judged(properties, links, "\n".join(said), done.stderr)


def test_an_adapter_gets_a_short_name_beside_the_long_one_and_is_no_modem(tmp_path: Path) -> None:
    found = judge(tmp_path, Adapter())
    assert found.said == ""
    assert found.links >= {"amiss/A10K3Z", "serial/by-id/usb-Maker_Serial_A10K3Z-if00-port0"}
    assert found.properties["ID_MM_DEVICE_IGNORE"] == "1"
    assert " writing " not in found.log, "the chip's latency stays what it is"
    assert DIALOUT in found.log, "the system's own rules see to that"


def test_the_second_port_of_an_adapter_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert {link for link in judge(tmp_path, Adapter(interface="01")).links if "amiss" in link} == {"amiss/A10K3Z-if01"}


def test_without_a_number_there_is_no_short_name(tmp_path: Path) -> None:
    found = judge(tmp_path, Adapter(serial=""))
    assert not [link for link in found.links if "amiss" in link]
    assert found.properties["ID_MM_DEVICE_IGNORE"] == "1"


@pytest.mark.parametrize("serial", ["../../etc/x", "a b/c", "{}$env"])
def test_a_device_that_calls_itself_strange_names_is_kept_inside(serial: str, tmp_path: Path) -> None:
    (name,) = [link for link in judge(tmp_path, Adapter(serial=serial)).links if "amiss" in link]
    assert name.count("/") == 1


@pytest.mark.parametrize(
    ("vendor", "product", "ignored"),
    [
        ("1a86", "7523", True),
        ("10c4", "ea60", True),
        ("2341", "0043", True),
        ("0483", "5740", True),
        ("2c7c", "0125", False),
        ("12d1", "1506", False),
        ("0483", "3748", False),
    ],
)
def test_modem_manager_keeps_its_modems(vendor: str, product: str, ignored: bool, tmp_path: Path) -> None:
    adapter = Adapter(vendor=vendor, product=product)
    assert ("ID_MM_DEVICE_IGNORE" in judge(tmp_path / "port", adapter).properties) == ignored
    # It asks the device, and the port of it.
    device = judge(tmp_path / "device", adapter, path="devices/pci0000:00/usb1/1-1")
    assert ("ID_MM_DEVICE_IGNORE" in device.properties) == ignored
    assert not [link for link in device.links if "amiss" in link]


@pytest.mark.parametrize("name", ["ttyAMA0", "ttyTHS1", "ttyS0"])
def test_ports_that_are_soldered_in_are_dialouts_without_us(name: str, tmp_path: Path) -> None:
    found = judge(tmp_path, None, name=name)
    assert DIALOUT in found.log
    assert not [link for link in found.links if "amiss" in link]
    assert DIALOUT not in judge(tmp_path / "control", None, name="tty5").log, "a console is not for everybody who has a port"


def test_nothing_is_made_when_it_is_pulled_out(tmp_path: Path) -> None:
    assert not [link for link in judge(tmp_path, Adapter(), action="remove").links if "amiss" in link]


def test_the_line_for_modbus_does_what_it_says(tmp_path: Path) -> None:
    text, line = RULES.read_text(), '#SUBSYSTEMS=="usb-serial", DRIVERS=="ftdi_sio"'
    assert text.count(line) == 1
    found = judge(tmp_path, Adapter(), rules=text.replace(line, line[1:]))
    assert found.said == ""
    assert re.search(r"ttyUSB0/device/latency_timer' writing '1'", found.log)
    other = judge(tmp_path / "other", Adapter(driver="ch341"), rules=text.replace(line, line[1:]))
    assert " writing " not in other.log


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('SUBSYSTEM!="tty"', 'SUBSYTEM!="tty"'),
        ('IMPORT{builtin}="usb_id"', 'IMPORT{bultin}="usb_id"'),
        ('LABEL="amiss_end"', 'LABEL="amis_end"'),
        ('ENV{ID_BUS}!="usb"', 'ENV{ID_BUS!="usb"'),
        ('SYMLINK+="amiss/$env{ID_SERIAL_SHORT}"', 'SYMLINK+="amiss/$enw{ID_SERIAL_SHORT}"'),
    ],
)
def test_a_slip_would_be_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    """The controls."""
    assert right in RULES.read_text()
    assert judge(tmp_path, Adapter(), rules=RULES.read_text().replace(right, wrong)).said


def test_the_rules_that_set_the_number_come_later(tmp_path: Path) -> None:
    """The control of the IMPORT: without it there is no short name."""
    without = re.sub(r'^SUBSYSTEMS=="usb", IMPORT.*\n', "", RULES.read_text(), flags=re.MULTILINE)
    found = judge(tmp_path, Adapter(), rules=without)
    assert not [link for link in found.links if "amiss" in link]
