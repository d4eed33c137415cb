"""Makes the captures of the sensors that come with amiss, and what the decoder must make of them. The same every time.

    PYTHONPATH=tests python tests/firmware/captures.py      # writes capture.bin and expected.csv of each

They are made up from each sensor's data sheet, and damaged as lines damage: what is expected is written down as it is made, and
not what a decoder said of it.
"""

import functools
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
from modbus_slave import Slave, framed
from replay import Found

from edge import profiles
from edge.profiles import Sensor
from edge.sensing.decoders.frames import encode_frame
from edge.signal import Float32

SENSORS = Path(__file__).parents[2] / "firmware-configs" / "sensors"
G = 9.80665


class Line:
    """What goes over a serial line, and what is right of it."""

    def __init__(self, sensor: Sensor, scale: float | None = None, started_us: int = 3_000_000) -> None:
        self.sensor, self.scale = sensor, scale
        self.wire = b""
        self.rows: list[Float32] = []
        self.places: list[int] = []
        self.corrupt = self.lost = 0
        self.sequence, self.started_us = 0, started_us
        self.place = 0  # of the next sample, in periods

    def restart(self, started_us: int) -> None:
        """The microcontroller begins anew: number 0, and its clock is set back."""
        self.place += round((started_us - self.time_us()) * self.sensor.rate_hz / 1e6)
        self.sequence, self.started_us = 0, started_us

    def time_us(self) -> int:
        return self.started_us + round(self.sequence * 1e6 / self.sensor.rate_hz)

    def frame(self, x: Float32, damage: Callable[[bytes], bytes] | None = None, torn: bool = False) -> None:
        """A frame of values (C, n), or, with a scale, of what is in registers. `damage` spoils it on its way."""
        n = x.shape[1]
        values = x.astype(np.float32) if self.scale is None else x.astype(np.float32) * np.float32(self.scale)
        frame = b"\0" + encode_frame(values, self.sequence, self.time_us(), self.scale)
        self.wire += damage(frame) if damage else frame
        if torn:
            pass  # the port was opened in the middle of it: neither damaged nor lost
        elif damage:
            self.corrupt += damage(frame) != b""
            self.lost += n
        else:
            self.rows += list(values.T)
            self.places += range(self.place, self.place + n)
        self.skip(n)

    def skip(self, samples: int, lost: bool = False) -> None:
        self.sequence += samples
        self.place += samples
        self.lost += samples * lost

    def text(self, line: bytes, row: list[float] | None = None, corrupt: bool = False) -> None:
        """A line, and the sample that it is, if it is one."""
        self.wire += line
        self.corrupt += corrupt
        if row is not None:
            self.rows.append(np.array(row, np.float32))
            self.places.append(self.place)
        self.place += row is not None or corrupt

    def found(self) -> tuple[bytes, Found]:
        places = np.array(self.places, np.int64)
        return self.wire, Found(places - places[0], np.array(self.rows, np.float32).T, self.corrupt, self.lost)


def flip(at: int) -> Callable[[bytes], bytes]:
    """One wrong bit."""
    return lambda data: data[:at] + bytes((data[at] ^ 4,)) + data[at + 1 :]


def cut(first: int, last: int) -> Callable[[bytes], bytes]:
    """Some bytes are not there."""
    return lambda data: data[:first] + data[last:]


def noise(data: bytes) -> bytes:
    """Something else was on the line."""
    return np.random.default_rng(6).integers(1, 256, 25, dtype=np.uint8).tobytes() + b"\0"


def gone(data: bytes) -> bytes:
    """All of it is not there: no room for it in the microcontroller."""
    return b""


def vibration(samples: int, rate_hz: float, steps_to_a_g: float, hz: float, seed: int) -> Float32:
    """(3, n) as in registers: gravity along Z, a rotation with its second harmonic, noise."""
    t = np.arange(samples) / rate_hz
    turn = 2 * np.pi * hz * t
    g = np.stack([0.4 * np.sin(turn), 0.3 * np.sin(turn + 1.2) + 0.1 * np.sin(2 * turn), 1 + 0.15 * np.cos(turn)])
    g += np.random.default_rng(seed).normal(0, 0.02, g.shape)
    return np.rint(g * steps_to_a_g).astype(np.float32) + np.float32(0)  # no minus zero


def adxl345(sensor: Sensor) -> tuple[bytes, Found]:
    """Two seconds. Begins within a frame; one frame with a wrong bit, one for which there was no room."""
    line = Line(sensor, G / 256)
    x = vibration(1600, 800, 256, 24.5, 1)
    for i in range(0, 1600, 16):
        damage = {0: cut(0, 37), 320: flip(50), 960: gone}.get(i)
        line.frame(x[:, i : i + 16], damage, torn=i == 0)
    return line.found()


def mpu6050(sensor: Sensor) -> tuple[bytes, Found]:
    """Two seconds. Three bytes lost on the line; at another place the sensor's own buffer ran over, 173 samples long."""
    line = Line(sensor, G / 4096)
    x = vibration(1000, 500, 4096, 49.0, 2)
    x[0, 500] = 32767  # at its stop
    for i in range(0, 992, 16):
        if i == 608:
            line.skip(173, lost=True)
        line.frame(x[:, i : i + 16], {240: cut(60, 63)}.get(i))
    return line.found()


def iis3dwb(sensor: Sensor) -> tuple[bytes, Found]:
    """A tenth of a second, as that is 16 kB. One wrong bit in a frame of 255 samples."""
    line = Line(sensor, 0.000488 * G)
    x = vibration(2550, sensor.rate_hz, 1 / 0.000488, 1800.0, 3)
    for i in range(0, 2550, 255):
        line.frame(x[:, i : i + 255], {1020: flip(700)}.get(i))
    return line.found()


def bme280(sensor: Sensor) -> tuple[bytes, Found]:
    """Half a minute. The sensor is loose for two samples; a frame is damaged; then the microcontroller starts anew."""
    line = Line(sensor)
    for i in range(30):
        if i == 20:
            line.restart(410_000)
        t = 21.5 + 0.02 * i
        row = np.array([[t], [43.0 - 0.1 * i], [1009.3 + 0.01 * i]], np.float32)
        line.frame(np.full_like(row, np.nan) if i in (8, 9) else row, {14: flip(30)}.get(i))
    return line.found()


def pms5003(sensor: Sensor) -> tuple[bytes, Found]:
    """40 seconds: 30 until it is warm, an answer that did not come, and a burst of noise where a frame was."""
    line = Line(sensor)
    rng = np.random.default_rng(5)
    for i in range(40):
        pm1 = rng.integers(3, 7)
        row = np.array(
            [[pm1], [pm1 + rng.integers(2, 5)], [pm1 + rng.integers(4, 9)], [900 + 10 * rng.integers(0, 30)]], np.float32
        )
        line.frame(np.full_like(row, np.nan) if i < 30 or i == 33 else row, noise if i == 36 else None)
    return line.found()


def sct_013(sensor: Sensor) -> tuple[bytes, Found]:
    """Five seconds of a motor that starts. A frame comes twice, which is none the more; one is cut short."""
    line = Line(sensor)
    for i in range(25):
        current = 0.05 if i < 5 else 4.2 + 18 * np.exp(-(i - 5) / 2)
        row = np.array([[current], [1.45 * current]], np.float32)
        before = len(line.wire)
        line.frame(row, {16: lambda data: data[:20]}.get(i))
        if i == 10:
            line.wire += line.wire[before:]
    # The frame that was cut short has no end, so the 00 in front of the next one ends it.
    return line.found()


def sentence(body: str) -> bytes:
    return f"${body}*{functools.reduce(operator.xor, body.encode()):02X}\r\n".encode()


def wind_nmea(sensor: Sensor) -> tuple[bytes, Found]:
    """A minute among sentences of others. Void while it rains hard; a damaged digit; wind over ground, not asked for."""
    line = Line(sensor)
    line.wire = sentence("WIMWV,200.0,R,1.0,M,A")[7:]  # the port is opened in the middle of it
    for i in range(60):
        angle, speed = round((200 + 25 * np.sin(i / 7)) % 360, 1), round(4 + 2 * np.sin(i / 3), 1)
        body = f"WIMWV,{angle:.1f},R,{speed:.1f},M,{'V' if 20 <= i < 24 else 'A'}"
        if i == 35:
            line.text(sentence(body).replace(b",M", b"7,M"), corrupt=True)
        else:
            line.text(sentence(body), [np.nan, np.nan] if 20 <= i < 24 else [angle, speed])
        line.text(sentence(f"WIMWV,{angle + 10:.1f},T,{speed:.1f},M,A"))
        if i % 10 == 0:
            line.text(sentence(f"WIXDR,C,{19 + i / 100:.1f},C,AIRTEMP"))
    return line.found()


def sdm630(sensor: Sensor) -> tuple[bytes, Found]:
    """A minute on the bus: our requests, and the answers of a device as in tests/modbus_slave.py. One is damaged, one is none,
    one comes from another device on the bus."""
    assert sensor.modbus is not None
    line = Line(sensor)
    rng = np.random.default_rng(8)
    for i in range(60):
        volts = 230 + rng.normal(0, 0.5, 3)
        amperes = (0.2 if i < 20 else 6.4) + rng.normal(0, 0.02, 3)
        values = np.array([*volts, *amperes, *(volts * amperes * 0.83)], np.float32)
        words = np.frombuffer(values.astype(">f4").tobytes(), ">u2").tolist()
        slave = Slave(Path("none"), registers={("input", at): word for at, word in enumerate(words)})
        request = framed(bytes((1, 4, 0, 0, 0, 18)))
        answer = slave.answer(request)
        spoil = {13: flip(9)(answer), 27: b"", 41: framed(b"\2" + answer[1:-2])}.get(i)
        line.wire += request + (answer if spoil is None else spoil)
        line.corrupt += bool(spoil)
        if spoil is None:
            line.rows.append(values)
            line.places.append(i)
        line.lost += spoil is not None
    return line.found()


def skab(sensor: Sensor) -> tuple[bytes, Found]:
    """A minute. The thermocouple is open for a while, a frame is damaged, and a valve closes: less flow, more pressure."""
    line = Line(sensor)
    rng = np.random.default_rng(9)
    for i in range(60):
        shut = np.clip((i - 35) / 10, 0, 1)
        usual = np.array([0.027, 0.040, 2.4, 0.33, 71.0, 25.0, 228.0, 32.0])
        off = np.array([0.004, 0.006, -0.3, 0.4, 0.5, 0.1, 0, -20.0]) * shut
        row = (usual + off + rng.normal(0, 1, 8) * [0.001, 0.001, 0.02, 0.02, 0.1, 0.05, 1.0, 0.3]).astype(np.float32)
        row[5] = np.nan if 10 <= i < 14 else np.rint(row[5] * 4) / 4
        line.frame(row[:, None], {50: flip(33)}.get(i))
    return line.found()


MADE = {
    "adxl345": adxl345,
    "mpu6050": mpu6050,
    "iis3dwb": iis3dwb,
    "bme280": bme280,
    "pms5003": pms5003,
    "sct-013": sct_013,
    "wind-nmea": wind_nmea,
    "sdm630": sdm630,
    "skab": skab,
}

if __name__ == "__main__":
    for name, make in MADE.items():
        sensor = profiles.load(name)
        wire, found = make(sensor)
        (SENSORS / name / "capture.bin").write_bytes(wire)
        (SENSORS / name / "expected.csv").write_text(found.table(sensor), "utf-8")
        print(f"{name}: {len(wire)} bytes, {len(found.places)} samples, {found.corrupt} damaged, {found.lost} lost")
