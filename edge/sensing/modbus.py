"""Modbus RTU, the side that asks: requests out, bytes in, values out. Pure: it owns no port and no clock.

    master.begin()                              # a sample: no value is known
    for group in range(len(master.groups)):     # registers next to each other are read at once
        send(master.ask(group))
        while master.wanted and there_is_time:  # how many bytes at least are still to come; 0: answered
            master.feed(receive())
        master.end()                            # whether an answer may still be on its way
    row = master.row()                          # (C,), NaN where no answer came

An answer counts when unit, function, number of bytes and CRC-16 are those of the request; it need not be the first thing that
arrives, because a line that changes its direction likes to begin with a stray byte. What does not count is counted.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import ConfigError
from edge.profiles import ModbusConfig, RegisterConfig
from edge.signal import Float32

if TYPE_CHECKING:
    from pymodbus.framer import FramerRTU

MOST_REGISTERS = 125
"""That one request may ask for, says the standard."""

_FUNCTION = {"holding": 3, "input": 4}
_FORMAT = {"int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "float32": "f"}
_REFUSAL = 0x80  # in the function of an answer
_REASONS = {
    1: "it does not know this kind of register",
    2: "no such register",
    3: "not so many at once",
    4: "it has a fault of its own",
    6: "it is busy",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Registers that one request asks for."""

    function: int
    address: int
    count: int
    request: bytes
    places: tuple[tuple[int, RegisterConfig], ...]
    """Which channel of the model each value is."""

    @property
    def answer_size(self) -> int:
        """Bytes: unit, function, number of bytes, registers, checksum."""
        return 5 + 2 * self.count

    def __str__(self) -> str:
        kind = "input" if self.function == _FUNCTION["input"] else "holding"
        return f"{kind} register{'' if self.count == 1 else 's'} {self.address}" + (
            f" to {self.address + self.count - 1}" if self.count > 1 else ""
        )


class ModbusMaster:
    """Asks one unit for the registers that hold these channels.

    Raises `ConfigError` when a channel has no register, or two, and where pymodbus is not installed.
    """

    def __init__(self, config: ModbusConfig, channels: Sequence[str]) -> None:
        named = [register.channel for register in config.registers]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ConfigError(f"modbus.registers: {', '.join(twice)} is there twice; keep one")
        if absent := [name for name in channels if name not in named]:
            raise ConfigError(
                f"modbus.registers: the model needs {', '.join(absent)}, which no register is (there are: {', '.join(named)}); "
                "name each register's channel as the model's, or take another model"
            )
        self.unit = config.unit
        self._framer = _framer()
        self._channels = len(channels)
        places = {name: i for i, name in enumerate(channels)}
        wanted = [register for register in config.registers if register.channel in places]
        self.groups = tuple(self._group(run, places) for run in _runs(wanted))
        self._row = np.full(self._channels, np.nan, np.float32)
        self._group_asked: Group | None = None  # None: nothing is asked, or it is answered
        self._pending = b""  # what may be the beginning of an answer; less than one, whatever arrives
        self._received = 0  # bytes since the request
        self.wanted = 0
        """Bytes that are at least still to come; 0 when the answer is there."""
        self.corrupt = 0
        """Answers so far that were damaged, somebody else's, or a refusal."""
        self.trouble = "nothing was asked yet"
        """What was wrong with the last one, or that none came; for the person who looks for a wrong setting."""

    def begin(self) -> None:
        """A new sample."""
        self._row = np.full(self._channels, np.nan, np.float32)

    def ask(self, group: int) -> bytes:
        """The request for one of `groups`; what was received before is forgotten."""
        self._group_asked = self.groups[group]
        self._pending, self._received, self.wanted = b"", 0, 5
        return self._group_asked.request

    def feed(self, data: bytes) -> None:
        """Bytes that came after the request."""
        group = self._group_asked
        if group is None:
            return
        self._received += len(data)
        heads = (
            (bytes((self.unit, group.function, 2 * group.count)), group.answer_size),
            (bytes((self.unit, group.function | _REFUSAL)), 5),
        )
        found = self._pending + data
        keep, missing = len(found), []
        at = -1
        while (at := found.find(self.unit, at + 1)) >= 0:
            there = len(found) - at
            for head, size in heads:
                if not found.startswith(head[:there], at):
                    continue
                if there < size:  # what follows is looked at all the same: this may be noise that looks like a beginning
                    keep = min(keep, at)
                    missing.append(size - there)
                elif self._accept(group, found[at : at + size]):
                    self._group_asked, self._pending, self.wanted = None, b"", 0
                    return
        self._pending, self.wanted = found[keep:], min(missing, default=5)

    def end(self) -> bool:
        """There is no more time. True: the answer may still come, and must not be taken for that to another request."""
        group, self._group_asked, self.wanted = self._group_asked, None, 0
        if group is None:
            return False
        if self._received:
            self.corrupt += 1
            self.trouble = f"{self._received} bytes came that are no answer of unit {self.unit} about {group}"
        else:
            self.trouble = f"unit {self.unit} does not answer about {group}"
        return self._received < group.answer_size

    def row(self) -> Float32:
        """(C,) the values since `begin`; NaN where none came."""
        return self._row

    def _group(self, run: list[RegisterConfig], places: dict[str, int]) -> Group:
        from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

        address = run[0].address
        count = max(register.address + register.words for register in run) - address
        kind = ReadHoldingRegistersRequest if run[0].kind == "holding" else ReadInputRegistersRequest
        request = self._framer.buildFrame(kind(dev_id=self.unit, address=address, count=count))
        return Group(_FUNCTION[run[0].kind], address, count, request, tuple((places[one.channel], one) for one in run))

    def _accept(self, group: Group, frame: bytes) -> bool:
        """Whether these bytes, of the right beginning and length, are the answer."""
        _, message = self._framer.handleFrame(frame, self.unit, 0)  # None when the checksum is wrong
        if message is None:
            return False
        if message.isError():
            self.corrupt += 1
            code = message.exception_code
            self.trouble = f"unit {self.unit} refuses {group}: {_REASONS.get(code, 'the device says why')} (code {code})"
            return True
        if len(message.registers) != group.count:
            return False
        for place, register in group.places:
            at = register.address - group.address
            words = list(message.registers[at : at + register.words])
            if register.word_order == "little":
                words.reverse()
            (value,) = struct.unpack(">" + _FORMAT[register.type], struct.pack(f">{len(words)}H", *words))
            with np.errstate(over="ignore"):
                self._row[place] = value * register.scale
        self._row[np.isinf(self._row)] = np.nan
        return True


def _runs(registers: Sequence[RegisterConfig]) -> list[list[RegisterConfig]]:
    """Registers without a hole between them, as many as one request may ask for. What lies in a hole may not exist, and one
    register that does not makes a device refuse them all."""
    runs: list[list[RegisterConfig]] = []
    end = 0
    for one in sorted(registers, key=lambda one: (one.kind, one.address)):
        after = one.address + one.words
        first = runs[-1][0] if runs else one
        if runs and one.kind == first.kind and one.address <= end and after - first.address <= MOST_REGISTERS:
            runs[-1].append(one)
            end = max(end, after)
        else:
            runs.append([one])
            end = after
    return runs


def _framer() -> "FramerRTU":
    try:
        from pymodbus.framer import FramerRTU
        from pymodbus.pdu import DecodePDU
    except ImportError:
        raise ConfigError("format = \"modbus\" needs pymodbus, which is not installed; pip install 'amiss[modbus]'") from None
    return FramerRTU(DecodePDU(False))
