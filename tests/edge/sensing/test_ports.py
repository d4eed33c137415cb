"""Which device file is meant, however often it is plugged in again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from usb import Machine, Plug

from edge.errors import SourceLostError
from edge.sensing.ports import Ports


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    plugs: list[Plug] = []
    plug_in = made.plug_in
    made.plug_in = lambda *a, **k: plugs.append(plug_in(*a, **k)) or plugs[-1]  # type: ignore[method-assign, func-returns-value]
    yield made
    for plug in plugs:
        made.unplug(plug)


@pytest.fixture
def ports(machine: Machine) -> Ports:
    return Ports(machine.sys, machine.dev)


def test_a_usb_port_is_found_by_what_it_is_also_after_it_was_given_another_name(machine: Machine, ports: Ports) -> None:
    first = machine.plug_in()
    assert ports.resolve("usb:0403:6001:A10K") == ports.resolve("usb:0403:6001") == str(machine.dev / "ttyUSB0")
    machine.unplug(first)
    machine.plug_in("1a86", "7523", "", "USB Serial")  # somebody else takes its name
    machine.plug_in()
    assert ports.resolve("usb:0403:6001:A10K") == str(machine.dev / "ttyUSB1")
    assert ports.resolve("usb:1A86:7523") == str(machine.dev / "ttyUSB0"), "hexadecimal digits of either case"
    by_id = f"{machine.dev}/serial/by-id/*A10K*"
    assert Path(ports.resolve(by_id)).resolve() == (machine.dev / "ttyUSB1").resolve()


def test_what_is_not_there_is_named_with_what_is(machine: Machine, ports: Ports) -> None:
    machine.plug_in()
    machine.plug_in("1a86", "7523", "", "USB Serial")
    with pytest.raises(SourceLostError) as caught:
        ports.resolve("usb:0403:6001:OTHER")
    assert str(caught.value) == (
        f"usb:0403:6001:OTHER: no such port; there are: {machine.dev}/ttyS0; "
        f"usb:0403:6001:A10K (FT232R USB UART, {machine.dev}/ttyUSB0); usb:1a86:7523 (USB Serial, {machine.dev}/ttyUSB1)"
    )
    with pytest.raises(SourceLostError, match=r"by-id/\*nothing\*: no such port; there are"):
        ports.resolve(f"{machine.dev}/serial/by-id/*nothing*")


def test_no_port_at_all(tmp_path: Path) -> None:
    with pytest.raises(SourceLostError, match="none at all: is the sensor plugged in"):
        Ports(tmp_path, tmp_path).resolve("usb:0403:6001")


def test_several_that_fit_are_told_apart_by_serial_number(machine: Machine, ports: Ports) -> None:
    machine.plug_in()
    machine.plug_in(serial="B20K")
    with pytest.raises(SourceLostError, match=r"usb:0403:6001: 2 ports fit; .* usb:0403:6001:A10K \(.*; usb:0403:6001:B20K \("):
        ports.resolve("usb:0403:6001")
    assert ports.resolve("usb:0403:6001:B20K").endswith("ttyUSB1")
    with pytest.raises(SourceLostError, match=r"2 ports fit; .*by-id/usb-0403_6001_A10K-if00-port0; .*B20K"):
        ports.resolve(f"{machine.dev}/serial/by-id/*")


def test_those_without_a_number_are_told_apart_by_where_they_are_plugged_in(machine: Machine, ports: Ports) -> None:
    for _ in range(2):
        machine.plug_in("1a86", "7523", "")
    with pytest.raises(SourceLostError) as caught:
        ports.resolve("usb:1a86:7523")
    choices = str(caught.value).partition("one of: ")[2].split("; ")
    assert len(choices) == 2
    assert {Path(ports.resolve(choice)).resolve() for choice in choices} == {
        (machine.dev / f"ttyUSB{i}").resolve() for i in (0, 1)
    }


def test_a_device_that_goes_while_it_is_looked_at_is_not_there(machine: Machine, ports: Ports) -> None:
    plug = machine.plug_in()
    (machine.sys / "devices/pci0/usb1" / plug.name / "idProduct").unlink()
    with pytest.raises(SourceLostError, match="no such port"):
        ports.resolve("usb:0403:6001")


def test_a_plain_device_file_is_left_to_be_opened(ports: Ports) -> None:
    assert ports.resolve("/dev/ttyUSB7") == "/dev/ttyUSB7"
