"""Modbus RTU: only the answer to what was asked is taken, whatever else is on the line."""

import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serial
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_slave import Slave, framed
from pymodbus.framer import FramerRTU

from edge.config import StreamConfig
from edge.errors import ConfigError, SourceLostError
from edge.profiles import ModbusConfig, RegisterConfig
from edge.sensing.modbus import ModbusMaster
from edge.sensing.sources import IDLE_S, ModbusSource
from edge.signal import Float32, Float64, Samples
from edge.testing import flip_bits, split


def registers(*of: tuple[str, int] | tuple[str, int, str] | RegisterConfig) -> tuple[RegisterConfig, ...]:
    return tuple(
        one
        if isinstance(one, RegisterConfig)
        else RegisterConfig(channel=one[0], address=one[1], **({"type": one[2]} if len(one) > 2 else {}))  # type: ignore[arg-type]
        for one in of
    )


def master(*of: Any, unit: int = 1, channels: str | None = None) -> ModbusMaster:
    wanted = registers(*of)
    return ModbusMaster(ModbusConfig(unit=unit, registers=wanted), channels or [one.channel for one in wanted])


def slave(unit: int = 1, **kinds: dict[int, int]) -> Slave:
    """Never plugged in: only what it would answer."""
    return Slave(Path(), unit, {(kind, at): word for kind, words in kinds.items() for at, word in words.items()})


def sample(made: ModbusMaster, answer: Callable[[bytes], list[bytes]]) -> Float32:
    """One sample, each request of it answered with these pieces."""
    made.begin()
    for group in range(len(made.groups)):
        for piece in answer(made.ask(group)):
            made.feed(piece)
        made.end()
    return made.row()


# What goes over the wire.


def test_request_and_answer_are_those_of_the_standard() -> None:
    made = master(("a", 0x6B, "uint16"), ("b", 0x6C, "uint16"), ("c", 0x6D, "uint16"), unit=0x11)
    made.begin()
    assert made.ask(0) == bytes.fromhex("1103006b00037687")
    made.feed(bytes.fromhex("110306ae415652434049ad"))
    assert made.wanted == 0
    assert made.row().tolist() == [0xAE41, 0x5652, 0x4340]


PACKED = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "float32": ">f"}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_value_comes_back_however_the_answer_is_split(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    made, truth, device = [], [], slave()
    address = data.draw(st.integers(0, 60000))
    for i in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["holding", "input"]))
        type_ = data.draw(st.sampled_from(sorted(PACKED)))
        order = data.draw(st.sampled_from(["big", "little"]))
        scale = data.draw(st.sampled_from([1.0, 0.1, -0.25, 1000.0]))
        one = RegisterConfig(channel=f"c{i}", address=address, kind=kind, type=type_, word_order=order, scale=scale)  # type: ignore[arg-type]
        raw = rng.bytes(2 * one.words)
        words = struct.unpack(f">{one.words}H", raw)
        for at, word in enumerate(words if order == "big" else words[::-1]):
            device.registers[kind, address + at] = word
        (value,) = struct.unpack(PACKED[type_], raw)
        with np.errstate(over="ignore"):
            truth.append(np.float32(value * scale) if np.isfinite(np.float32(value * scale)) else np.float32("nan"))
        made.append(one)
        address += one.words + data.draw(st.sampled_from([0, 0, 0, 1, 200]))
    names = [one.channel for one in made]
    order_of = rng.permutation(len(names))
    got = sample(
        ModbusMaster(ModbusConfig(registers=tuple(made)), [names[i] for i in order_of]),
        lambda request: split(device.answer(request), rng, 4),
    )
    np.testing.assert_array_equal(got, np.array(truth)[order_of])


def test_registers_next_to_each_other_are_read_at_once_and_holes_are_not() -> None:
    made = master(("a", 10, "int32"), ("b", 12), ("c", 14), ("d", 13), ("e", 16), ("x", 15), channels="abcde")
    assert [(one.address, one.count) for one in made.groups] == [(10, 5), (16, 1)]
    both = master(("a", 0), RegisterConfig(channel="b", address=1, kind="input"))
    assert [str(one) for one in both.groups] == ["holding register 0", "input register 1"]
    many = ModbusMaster(
        ModbusConfig(registers=registers(*((f"c{i}", 2 * i, "uint32") for i in range(100)))), [f"c{i}" for i in range(100)]
    )
    assert [(one.address, one.count) for one in many.groups] == [(0, 124), (124, 76)], "no value is torn apart"


# What is no answer.

DEVICE = slave(holding={0: 1111, 1: 2222})
RIGHT = [1111.0, 2222.0]


def pair() -> ModbusMaster:
    return master(("a", 0), ("b", 1))


def test_a_stray_byte_or_an_echo_before_the_answer_does_no_harm() -> None:
    for before in (b"\0", b"\xff\xff", b"\x01", b"\x01\x03", b"\x01\x03\x04", b"\x01\x83", "echo"):
        made = pair()
        got = sample(made, lambda request, b=before: [(request if b == "echo" else b) + DEVICE.answer(request)])  # type: ignore[misc]
        assert got.tolist() == RIGHT
        assert made.corrupt == 0


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (framed(bytes.fromhex("020304") + bytes(4)), "no answer of unit 1"),  # of another unit
        (framed(bytes.fromhex("010404") + bytes(4)), "no answer"),  # to another function
        (framed(bytes.fromhex("010302") + bytes(2)), "no answer"),  # to a request for fewer
        (framed(bytes.fromhex("010306") + bytes(6)), "no answer"),  # and for more
        (framed(bytes.fromhex("010305") + bytes(5)), "no answer"),
        (framed(bytes.fromhex("010304") + bytes(4))[:-1], "no answer"),  # torn
        (bytes.fromhex("010304") + bytes(6), "no answer"),  # damaged
        (framed(bytes.fromhex("018302")), r"unit 1 refuses holding registers 0 to 1: no such register \(code 2\)"),
        (framed(bytes.fromhex("018363")), "code 99"),
        (framed(bytes.fromhex("028302")), "no answer"),
    ],
)
def test_what_is_no_answer_is_counted_and_gives_no_value(what: bytes, says: str) -> None:
    made = pair()
    assert np.isnan(sample(made, lambda request: [what])).all()
    assert made.corrupt == 1
    assert re.search(says, made.trouble)
    assert sample(made, lambda request: [DEVICE.answer(request)]).tolist() == RIGHT, "the next one is taken"
    assert made.corrupt == 1


def test_an_answer_may_still_come_as_long_as_it_cannot_have_come() -> None:
    made = pair()
    for received, may_come in ((b"", True), (b"\0\0", True), (bytes(9), False), (framed(b"\x01\x83\x02"), False)):
        made.ask(0)
        made.feed(received)
        assert made.end() is may_come
    assert "does not answer" not in made.trouble
    made.ask(0)
    assert made.end()
    assert made.trouble == "unit 1 does not answer about holding registers 0 to 1"


def test_one_of_two_requests_that_is_refused_leaves_the_other_its_value() -> None:
    made = master(("a", 0), ("b", 7))
    got = sample(made, lambda request: [DEVICE.answer(request)])
    assert got[0] == 1111
    assert np.isnan(got[1])
    made.begin()
    assert np.isnan(made.row()).all(), "no value outlives its sample"


@given(st.binary(min_size=9, max_size=9).filter(any), st.integers(0, 9))
def test_damage_of_any_kind_costs_the_answer(mask: bytes, cut: int) -> None:
    """Up to three bits, or a burst of 16, for certain; more with one chance in 65536 (docs/adr/0012-modbus.md)."""
    sent = DEVICE.answer(pair().ask(0))
    hit = bytes(a ^ b for a, b in zip(sent, mask, strict=True))
    x = sample(pair(), lambda request: [hit[:cut], hit[cut:]])
    assert np.isnan(x).all() or hit[:1] + hit[-8:] == framed(hit[:-2])


def noisy(count: int, rate: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Values that are wrong, undamaged answers that were missed, and undamaged answers, of `count` at this bit error rate."""
    made, wrong, missed, undamaged = pair(), 0, 0, 0
    sent = DEVICE.answer(made.ask(0))
    for _ in range(count):
        hit = flip_bits(sent, rng, rate)
        got = sample(made, lambda request, hit=hit: [hit])  # type: ignore[misc]
        wrong += int((~np.isnan(got) & (got != RIGHT)).any())
        if hit == sent:
            undamaged += 1
            missed += got.tolist() != RIGHT
    return wrong, missed, undamaged


@pytest.mark.parametrize(("count", "rate"), [(3000, 1e-2), pytest.param(1_000_000, 1e-3, marks=pytest.mark.soak)])
def test_on_a_noisy_line_no_value_is_wrong_and_no_right_one_missed(count: int, rate: float) -> None:
    wrong, missed, undamaged = noisy(count, rate, np.random.default_rng(1))
    print(f"{count} answers at {rate:g}, {undamaged} undamaged, {missed} of them missed, {wrong} wrong values")
    assert (wrong, missed) == (0, 0)
    assert undamaged > count / 3


def test_without_the_checksum_wrong_values_would_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(FramerRTU, "check_CRC", classmethod(lambda cls, data, check: True))
    wrong, _, _ = noisy(3000, 1e-2, np.random.default_rng(1))
    assert wrong > 100


def values_from_garbage(total: int, rng: np.random.Generator, head: bytes = b"") -> int:
    """How many answers are found in so many bytes of noise, `head` put in every eighth place or so."""
    made, values, done = pair(), 0, 0
    while done < total:
        made.begin()
        made.ask(0)
        for _ in range(20):
            data = rng.bytes(500)
            made.feed(data.replace(data[:1], head) if head else data)
            assert len(made._pending) < made.groups[0].answer_size
            done += 500
        made.end()
        values += int(not np.isnan(made.row()).all())
    return values


def test_garbage_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    assert values_from_garbage(200_000, rng) == 0
    assert values_from_garbage(20_000, rng, b"\x01\x03\x04") == 0, "not even behind the right beginning"
    monkeypatch.setattr(FramerRTU, "check_CRC", classmethod(lambda cls, data, check: True))
    assert values_from_garbage(20_000, rng, b"\x01\x03\x04") > 0, "the control"


# What is said before anything is opened.


def test_a_channel_without_a_register_or_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"modbus.registers: the model needs c, which no register is \(there are: a, b\)"):
        master(("a", 0), ("b", 1), channels="ac")
    with pytest.raises(ConfigError, match="a is there twice"):
        master(("a", 0), ("a", 1))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus.framer", None)
    with pytest.raises(ConfigError, match=r"pip install 'amiss\[modbus\]'"):
        pair()


def test_a_line_that_is_too_slow_for_the_model() -> None:
    config = StreamConfig(port="p", baud=9600, format="modbus", modbus=ModbusConfig(registers=registers(("a", 0), ("b", 9))))
    ModbusSource(config, "ab", 10)
    with pytest.raises(
        ConfigError, match=r"9600 baud the 2 requests for one sample take \d\d ms, the model wants one every 20 ms"
    ):
        ModbusSource(config, "ab", 50)
    with pytest.raises(ConfigError, match=r"silence_s = 10, but .* every 20 s; set it to 60 or more"):
        ModbusSource(config, "ab", 0.05)


# On a line.

PERIOD_S = 0.05
WRAP_MS = 1 << 20  # a float32 holds them to the sixteenth


def clock_ms(device: Slave) -> None:
    """The registers tell the time, so that a value shows when it was asked for."""
    now = time.monotonic_ns() // 1_000_000 % WRAP_MS
    device.registers["holding", 0], device.registers["holding", 1] = now >> 16 & 0xFFFF, now & 0xFFFF


def source(device: Slave, **more: Any) -> ModbusSource:
    # A pseudo-terminal has no parity, and may refuse to be given one.
    settings = {
        "timeout_s": 0.06,
        "parity": "none",
        "registers": registers(RegisterConfig(channel="ms", address=0, type="uint32")),
    } | more
    silence_s = settings.pop("silence_s", 1.0)
    config = StreamConfig(port=str(device.name), silence_s=silence_s, format="modbus", modbus=ModbusConfig(**settings))
    return ModbusSource(config, [one.channel for one in settings["registers"]], 1 / PERIOD_S)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Slave]:
    with Slave(tmp_path / "tty", registers={("holding", 0): 0, ("holding", 1): 0}, tick=clock_ms) as made:
        yield made


def collect(made: ModbusSource, seconds: float) -> Samples:
    parts, until = [], time.monotonic() + seconds
    for samples in made.samples():
        parts.append(samples)
        if time.monotonic() > until:
            break
    made.close()
    return Samples(np.concatenate([part.time_ns for part in parts]), np.concatenate([part.x for part in parts], axis=1))


def age_ms(got: Samples) -> Float64:
    """How long after a sample was due its value was made; that of an answer to an earlier request was made before."""
    half = WRAP_MS / 2
    age: Float64 = (got.x[0].astype(np.float64) - got.time_ns / 1e6 + half) % WRAP_MS - half
    return age


def test_samples_come_at_the_models_rate(device: Slave) -> None:
    made = source(device)
    got = collect(made, 1.0)
    assert 16 <= len(got) + made.lost <= 22
    assert len(got) >= 8, "a busy machine may be late now and then"
    steps = np.diff(got.time_ns) / (PERIOD_S * 1e9)
    assert np.abs(steps - np.rint(steps)).max() < 1e-6, "stamps are as regular as the plan"
    assert abs(int(got.time_ns[-1]) + made.epoch_offset_ns() - time.time_ns()) < 0.5e9
    assert made.corrupt == 0
    assert device.foreign == 0


TIMEOUT_S, LATE = 0.3, 0.4
"""What is late comes well before twice the timeout, also when the machine that runs this is busy."""


def test_a_late_answer_is_not_taken_for_that_to_the_next_request(device: Slave) -> None:
    device.spoil = lambda answer: [LATE, answer] if len(device.requests) % 3 == 0 else [answer]
    made = source(device, timeout_s=TIMEOUT_S)
    got = collect(made, 3.0)
    assert len(device.requests) > 8
    assert made.lost >= 4
    assert age_ms(got).min() > -0.6 * PERIOD_S * 1000, "asked at most half a period early"

    # The control: who asks again at once takes the old value for the new one.
    hasty = source(device, timeout_s=TIMEOUT_S)
    hasty._master.end = lambda: False  # type: ignore[method-assign]
    assert age_ms(collect(hasty, 2.0)).min() < -0.6 * PERIOD_S * 1000


def test_whatever_happens_on_the_line_no_value_is_wrong(device: Slave) -> None:
    rng = np.random.default_rng(3)

    def spoil(answer: bytes) -> list[bytes | float]:
        other = framed(b"\x02" + answer[1:-2])
        kinds: list[list[bytes | float]] = [
            [answer],
            [answer],
            [rng.bytes(3) + answer],
            [answer[:4], 0.01, answer[4:]],  # in two pieces, which is fine
            [answer[: int(rng.integers(1, len(answer)))]],
            [flip_bits(answer, rng, 0.02)],
            [other],
            [framed(bytes((1, 0x83, 4)))],
            [],
            [0.7 * TIMEOUT_S, answer],
            [rng.bytes(200)],
            [answer, answer],
        ]
        return kinds[int(rng.integers(len(kinds)))]

    device.spoil = spoil
    made = source(device, silence_s=30, timeout_s=TIMEOUT_S / 2)
    got = collect(made, 4.0)
    assert len(device.requests) > 12
    assert len(got) > 4
    assert age_ms(got).min() > -0.6 * PERIOD_S * 1000
    assert age_ms(got).max() < 1000, "the busiest machine"
    assert made.corrupt > 1
    assert made.lost > 4


def test_registers_that_are_refused_are_missing_values(device: Slave) -> None:
    made = source(
        device, registers=registers(("a", 0), RegisterConfig(channel="b", address=3, kind="input")), timeout_s=TIMEOUT_S
    )
    got = collect(made, 0.4)
    assert np.isfinite(got.x[0]).any()
    assert np.isnan(got.x[1]).all()
    assert made.corrupt > 0
    assert "unit 1 refuses input register 3: no such register" in made._master.trouble


def test_a_device_that_is_silent_is_lost_with_what_to_look_at(device: Slave) -> None:
    device.spoil = lambda answer: []
    made = source(device, silence_s=0.8)
    moments = [time.monotonic()]
    with pytest.raises(SourceLostError) as caught:
        moments.extend(time.monotonic() for samples in made.samples() if not len(samples))
    assert str(caught.value) == (
        f"{device.name}: no valid sample for 0.8 s; the last trouble: unit 1 does not answer about holding registers 0 to 1; "
        "check power and wiring (A and B), modbus.unit = 1, baud = 115200 and modbus.parity = 'none'"
    )
    turns = np.diff(moments)
    assert np.median(turns) < 1.5 * IDLE_S, "the caller lives meanwhile"
    assert sum(turns) < 60


def test_unplugged_between_two_requests_it_is_lost_and_comes_back(device: Slave) -> None:
    made = source(device)
    for _ in range(3):
        stream = made.samples()
        while not len(next(stream)):
            pass
        device.unplug()
        with pytest.raises(SourceLostError, match=r"tty: lost while asking: .*plugged in"):
            list(stream)
        with pytest.raises(SourceLostError, match="no such port"):
            next(made.samples())
        device.plug_in()


def test_a_driver_that_takes_no_bytes_is_a_lost_port(device: Slave) -> None:
    class Stuck(serial.Serial):
        def write(self, data: Any, /) -> int:
            raise serial.SerialTimeoutException("Write timeout")

    made = source(device)
    made._connect = lambda config: Stuck(config.port, timeout=0.01)
    with pytest.raises(SourceLostError, match=r"tty: lost while asking: Write timeout; is it still plugged in\?"):
        list(made.samples())


def test_the_line_is_set_as_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pseudo-terminal has a parity, so only what the port is opened with can be looked at."""
    opened: dict[str, Any] = {}

    def refuse(port: str, baud: int, **how: Any) -> None:
        opened.update(how, port=port, baud=baud)
        raise FileNotFoundError(2, "absent")

    monkeypatch.setattr(serial, "Serial", refuse)
    device = Slave(Path("/dev/none"))
    for parity, stopbits, letter in (("even", 1, "E"), ("odd", 2, "O"), ("none", 2, "N")):
        with pytest.raises(SourceLostError, match="no such port"):
            next(source(device, parity=parity, stopbits=stopbits).samples())
        assert (opened["parity"], opened["stopbits"], opened["exclusive"]) == (letter, stopbits, True)
        assert opened["write_timeout"] == IDLE_S
        assert opened["timeout"] <= 0.06
