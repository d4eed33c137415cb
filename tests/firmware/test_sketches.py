"""Every sketch compiles for microcontrollers, and runs here against a simulated sensor: what it sends, its profile's
decoder takes, and what comes out is what the sensor measured.

A folder of firmware-configs/sensors with a sketch is compiled without being named here. tests/firmware/simulated/NAME.cpp is
the sensor as its data sheet describes it; where there is one, the sketch is run, too.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from replay import stream

from edge import profiles
from edge.profiles import Sensor
from edge.sensing.decoders import open_decoder
from edge.sensing.decoders.frames import FrameDecoder
from edge.signal import Float32, Int64

HERE = Path(__file__).parent
SENSORS = HERE.parents[1] / "firmware-configs" / "sensors"
LIBRARY = HERE.parents[1] / "firmware-configs" / "arduino" / "amiss" / "src"
SKETCHES = sorted(path for path in SENSORS.glob("*/*.ino"))
STRICT = ("-Wall", "-Wextra", "-Werror", f"-I{HERE / 'stand_in'}", f"-I{LIBRARY}", "-include", "Arduino.h")
CAREFUL = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""An index too far, a shift too wide, an overflow: on a microcontroller none of them is noticed."""
BOOT_US = 2**32 - 300_000
"""micros() when the simulation begins: its 32 bits are over 0.3 s later."""
BOARDS = {
    "RP2040": ("arm-none-eabi", "-mthumb", "-mcpu=cortex-m0plus", "-DARDUINO_ARCH_RP2040"),
    "SAMD51, STM32F4, nRF52": ("arm-none-eabi", "-mthumb", "-mcpu=cortex-m4"),
    "ESP32, its pins": ("arm-none-eabi", "-mthumb", "-mcpu=cortex-m4", "-DARDUINO_ARCH_ESP32"),  # not its processor
    "Uno": ("avr", "-mmcu=atmega328p"),  # ints of 16 bits, doubles of 32
}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda path: path.stem)
def test_it_compiles_for_a_microcontroller(sketch: Path, board: str, tmp_path: Path) -> None:
    tools, *options = BOARDS[board]
    command = [f"{tools}-g++", "-c", "-std=gnu++11", "-Os", *options, *STRICT, "-x", "c++", sketch, "-o", tmp_path / "x.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = subprocess.run([f"{tools}-size", tmp_path / "x.o"], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, size.splitlines()[1].split()[:3])
    assert text < 5000, f"{text} bytes of code; an Uno has 32 kB for everything"
    assert data + bss < (4096 if sketch.stem == "iis3dwb" else 512), f"{data + bss} bytes of RAM; an Uno has 2 kB"


@dataclass
class Run:
    """What came out of a sketch."""

    x: Float32
    """(C, n)"""
    number: Int64
    """(n,) of each sample since the sensor began, as the sequence says."""
    time_us: Int64
    """(n,)"""
    corrupt: int
    lost: int
    truth: Float32
    """(C, m) what the sensor measured."""


class Frames(FrameDecoder):
    """… that notes the numbers."""

    def __init__(self, sensor: Sensor) -> None:
        channels = [channel.name for channel in sensor.channels]
        super().__init__(channels, channels, 1e9 / sensor.rate_hz, "sensor")
        self.numbers: list[int] = []
        self.times: list[int] = []

    def _accept(self, piece: bytes) -> tuple[int, int, Float32] | None:
        frame = super()._accept(piece)
        if frame is not None:
            self.numbers += range(frame[0], frame[0] + len(frame[2]))
            self.times += [frame[1]] * len(frame[2])
        return frame


class Bench:
    """Sketches, compiled piece by piece when they are asked for, as the simulation takes the compiler most of the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def program(self, name: str, sketch: Path) -> Path:
        """Of this sketch, with the simulated sensor `name`."""
        simulation = self._object("simulation", HERE / "simulation.cpp")
        sensor = self._object(f"sensor {name}", HERE / "simulated" / f"{name}.cpp")
        return self._object(str(sketch), "-x", "c++", sketch, "-x", "none", simulation, sensor, link=True)

    def _object(self, key: str, *sources: str | Path, link: bool = False) -> Path:
        if key not in self._made:
            made = self._folder / f"{len(self._made)}{'' if link else '.o'}"
            command = ["g++", "-std=c++17", *STRICT, *CAREFUL, f"-I{HERE}", *([] if link else ["-c"]), *sources, "-o", made]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            self._made[key] = made
        return self._made[key]

    def run(self, name: str, seconds: float, *faults: str, sketch: Path | None = None) -> Run:
        """Run a sketch for so many seconds, with faults, and decode what it sends."""
        program = self.program(name, sketch or SENSORS / name / f"{name}.ino")
        done = subprocess.run([program, str(seconds), *faults], capture_output=True)
        said = done.stderr.decode()
        assert done.returncode == 0, said[-500:]
        sensor = profiles.load(name)
        decoder = Frames(sensor)
        samples = decoder.feed(done.stdout, 0)
        # … and as the agent reads it, with all that the profile says
        profiled = open_decoder(stream(sensor), [channel.name for channel in sensor.channels], sensor.rate_hz)
        assert np.array_equal(profiled.feed(done.stdout, 0).x, samples.x, equal_nan=True)
        truth = np.array([line.split(",") for line in said.splitlines()], np.float32).T
        return Run(samples.x, np.array(decoder.numbers), np.array(decoder.times), decoder.corrupt, decoder.lost, truth)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


VIBRATION = {"adxl345": 9.80665 / 256, "mpu6050": 9.80665 / 4096, "iis3dwb": 0.000488 * 9.80665}
"""Sensors with a FIFO, and what a step of theirs is, in m/s²."""
SIMULATED = [sketch.stem for sketch in SKETCHES if (HERE / "simulated" / f"{sketch.stem}.cpp").is_file()]


def test_every_sketch_that_comes_with_amiss_is_run() -> None:
    assert len(SIMULATED) == len(SKETCHES) >= 7


# Sensors with a FIFO.


@pytest.mark.parametrize("name", VIBRATION)
def test_every_sample_comes_and_is_what_the_sensor_measured(name: str, bench: Bench) -> None:
    every_sample_comes(bench, name)


def every_sample_comes(bench: Bench, name: str, sketch: Path | None = None) -> None:
    rate_hz = profiles.load(name).rate_hz
    seconds = 1.6 if name != "iis3dwb" else 0.6
    found = bench.run(name, seconds, sketch=sketch)
    assert (found.corrupt, found.lost) == (0, 0)
    assert len(found.number) > (seconds - 0.15) * rate_hz
    assert found.number.tolist() == list(range(len(found.number)))
    assert len(found.number) <= found.truth.shape[1]
    close(found.x, found.truth[:, found.number])
    assert np.ptp(found.truth, axis=1).min() > 1, "the control: something moves, on each axis"
    assert found.time_us.max() > 2**32, "and the clock went past its 32 bits"
    first = np.flatnonzero(np.diff(found.time_us, prepend=0))  # of each frame
    periods_us = np.diff(found.time_us[first]) / np.diff(found.number[first])
    assert np.median(periods_us) * rate_hz / 1e6 == pytest.approx(1, rel=0.02)


def close(found: Float32, truth: Float32) -> None:
    """Within what is left of a value in float32."""
    assert np.allclose(found, truth, rtol=1e-5, atol=1e-5)


def aligned(found: Run, after: int, tolerance: int) -> int:
    """By how many samples the numbers are off the truth, from number `after` on."""
    late = found.number >= after
    assert late.sum() > 100
    for off in sorted(range(-tolerance, tolerance + 1), key=abs):
        at = found.number[late] + off
        if at.min() >= 0 and at.max() < found.truth.shape[1] and np.allclose(found.x[:, late], found.truth[:, at], atol=1e-4):
            return off
    raise AssertionError(f"numbers are off by more than {tolerance}, or values are wrong")


@pytest.mark.parametrize(("name", "seconds"), [("adxl345", 0.035), ("mpu6050", 0.3), ("iis3dwb", 0.017)])
def test_what_piled_up_while_nobody_looked_is_not_lost(name: str, seconds: float, bench: Bench) -> None:
    """The processor is kept for nearly as long as the sensor's buffer holds. It comes faster than the line is: it waits."""
    found = bench.run(name, 1.5 if name != "iis3dwb" else 0.8, f"stall@0.5-{0.5 + seconds}")
    assert (found.corrupt, found.lost) == (0, 0)
    close(found.x, found.truth[:, found.number])


@pytest.mark.parametrize(("name", "seconds"), [("adxl345", 0.3), ("mpu6050", 0.7), ("iis3dwb", 0.05)])
def test_a_buffer_that_runs_over_is_a_jump_of_the_number(name: str, seconds: float, bench: Bench) -> None:
    """The processor is kept for longer; how many samples that cost is known by the clock, to within a few."""
    rate_hz = profiles.load(name).rate_hz
    found = bench.run(name, 1.5 if name != "iis3dwb" else 0.8, f"stall@0.5-{0.5 + seconds}")
    assert found.corrupt == 0
    assert 0 < found.lost <= seconds * rate_hz + 4
    (jump,) = found.number[1:][np.diff(found.number) > 1]
    assert abs(aligned(found, int(jump), 40)) <= max(3, 0.01 * found.lost)
    before = found.number < jump
    close(found.x[:, before], found.truth[:, found.number[before]])


def wrong(name: str, found: Run) -> int:
    """How many samples are none that the sensor measured."""
    right = {column.tobytes() for column in np.rint(found.truth.T / VIBRATION[name]).astype(int)}
    return sum(column.tobytes() not in right for column in np.rint(found.x.T / VIBRATION[name]).astype(int))


@pytest.mark.parametrize("name", VIBRATION)
def test_a_line_that_is_too_slow_loses_samples_and_says_how_many(name: str, bench: Bench) -> None:
    sensor = profiles.load(name)
    seconds = 2.5 if name != "iis3dwb" else 0.8
    found = bench.run(name, seconds, f"baud={sensor.baud // 8}")
    assert (found.corrupt, wrong(name, found)) == (0, 0)
    assert found.lost > sensor.rate_hz / 10
    assert found.number[-1] == pytest.approx(seconds * sensor.rate_hz, rel=0.2), "what is on its way is not said yet"
    passed = (found.time_us - found.time_us[0]) * sensor.rate_hz / 1e6
    assert np.abs(found.number - passed).max() < 300 if name == "iis3dwb" else 32, "the numbers keep to the clock"


@pytest.mark.parametrize("name", VIBRATION)
def test_a_wire_that_shakes_loose_is_a_gap_and_not_a_value(name: str, bench: Bench) -> None:
    rate_hz = profiles.load(name).rate_hz
    seconds = 2.0 if name != "iis3dwb" else 1.3
    found = bench.run(name, seconds, "loose@0.5-0.6")
    assert (found.corrupt, wrong(name, found)) == (0, 0)
    assert 0.09 * rate_hz < found.lost < 0.7 * rate_hz, "the gap, and half a second until it is tried again"
    assert len(found.number) + found.lost == pytest.approx(seconds * rate_hz, abs=0.08 * rate_hz), "the time is right again"


def test_a_wire_that_shakes_loose_in_the_middle_of_a_sample_is_no_value(bench: Bench) -> None:
    """SPI has no answer that says whether somebody is there. Cut at moments that are less than a sample's transfer apart."""
    for shift in range(0, 36, 4):
        begin = 0.05 + shift * 1e-6
        found = bench.run("iis3dwb", 0.53, f"loose@{begin:.6f}-0.06")  # what is half full goes out when it is there again
        assert (found.corrupt, wrong("iis3dwb", found)) == (0, 0), shift
        assert found.lost > 10_000


def test_words_of_another_kind_in_the_fifo_are_no_samples(bench: Bench) -> None:
    found = bench.run("iis3dwb", 0.53, "other-words@0.05-0.0503")
    assert (found.corrupt, wrong("iis3dwb", found)) == (0, 0)
    assert found.lost > 10_000


@pytest.mark.parametrize("name", VIBRATION)
def test_a_sensor_that_is_not_there_gives_nothing_until_it_is(name: str, bench: Bench) -> None:
    found = bench.run(name, 1.5, "loose@0-0.7")
    assert (found.corrupt, found.lost) == (0, 0)
    assert found.number[0] == 0
    assert found.time_us[0] > BOOT_US + 700_000


@pytest.mark.parametrize("name", ["adxl345", "mpu6050"])
def test_a_sensor_that_holds_the_bus_is_set_free(name: str, bench: Bench) -> None:
    """As after a start in the middle of a byte. No plug has to be pulled."""
    rate_hz = profiles.load(name).rate_hz
    found = bench.run(name, 1.6, "held@0.5-0.6")
    assert (found.corrupt, wrong(name, found)) == (0, 0)
    assert found.lost == pytest.approx(0.5 * rate_hz, abs=0.02 * rate_hz), "until it was tried again"
    assert len(found.number) + found.lost == pytest.approx(1.6 * rate_hz, abs=0.08 * rate_hz)


# Sensors that are asked.


@pytest.mark.parametrize("name", ["bme280", "pms5003", "skab"])
def test_seconds_that_are_over_are_not_made_up_for(name: str, bench: Bench) -> None:
    """The processor is kept for 3.5 s: what would have been then is a hole, and no value of now with a stamp of then."""
    found = bench.run(name, 9.5, "stall@2.2-5.7")
    assert (found.corrupt, found.lost) == (0, 3)
    steps_us = np.diff(found.time_us).tolist()
    assert sorted(steps_us) == [1_000_000] * (len(steps_us) - 1) + [4_000_000]
    if name == "skab":
        flow = found.x[7]
        assert np.allclose(flow, 32, rtol=0.03), "by the time that has passed"


def bosch(adc_p: int, adc_t: int, adc_h: int) -> tuple[float, float, float]:
    """The data sheet's other way, in integers (BST-BME280-DS001, 4.2.3), for the coefficients of simulated/bme280.cpp."""
    t1, t2, t3 = 27504, 26435, -1000
    p = (0, 36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000)
    h = (0, 75, 362, 0, 313, 50, 30)
    var1 = (((adc_t >> 3) - (t1 << 1)) * t2) >> 11
    var2 = (((((adc_t >> 4) - t1) * ((adc_t >> 4) - t1)) >> 12) * t3) >> 14
    fine = var1 + var2
    var1 = fine - 128000
    var2 = var1 * var1 * p[6] + ((var1 * p[5]) << 17) + (p[4] << 35)
    var1 = ((var1 * var1 * p[3]) >> 8) + ((var1 * p[2]) << 12)
    var1 = (((1 << 47) + var1) * p[1]) >> 33
    pressure = (((1048576 - adc_p) << 31) - var2) * 3125 // var1
    pressure = ((pressure + ((p[9] * (pressure >> 13) * (pressure >> 13)) >> 25) + ((p[8] * pressure) >> 19)) >> 8) + (
        p[7] << 4
    )
    v = fine - 76800
    v = (((adc_h << 14) - (h[4] << 20) - h[5] * v + 16384) >> 15) * (
        ((((((v * h[6]) >> 10) * (((v * h[3]) >> 11) + 32768)) >> 10) + 2097152) * h[2] + 8192) >> 14
    )
    v -= ((((v >> 15) * (v >> 15)) >> 7) * h[1]) >> 4
    return ((fine * 5 + 128) >> 8) / 100, (v >> 12) / 1024, pressure / 25600


def test_bme280(bench: Bench) -> None:
    found = bench.run("bme280", 20.5, "loose@5.5-7.5", "no-humidity@9.5-10.5", "stuck@14.5-15.5")
    assert (found.corrupt, found.lost) == (0, 0)
    assert np.diff(found.time_us).tolist() == [1_000_000] * 20, "on a schedule that does not drift"
    temperature, _, pressure = found.x[:, 0]
    assert temperature == pytest.approx(25.08, abs=0.01), "Bosch's own example"
    assert pressure == pytest.approx(1006.5327, abs=0.002)
    missing = np.isnan(found.x)
    assert np.flatnonzero(missing.all(axis=0)).tolist() == [6, 7, 15], "loose twice, stuck once"
    assert np.flatnonzero(missing[1] & ~missing[0]).tolist() == [10]
    measured = found.x[:, ~missing.all(axis=0)]
    assert measured.shape == found.truth.shape
    for (t, h, p), raw in zip(measured.T, found.truth.T.astype(int).tolist(), strict=True):
        said = bosch(*raw)
        assert t == pytest.approx(said[0], abs=0.011)
        assert p == pytest.approx(said[2], abs=0.01)
        assert np.isnan(h) or h == pytest.approx(said[1], abs=0.05)


def test_pms5003(bench: Bench) -> None:
    found = bench.run("pms5003", 45.2, "loose@33.9-34.5", "noise@36.9-37.5")
    assert (found.corrupt, found.lost) == (0, 0)
    assert (np.diff(found.time_us) == 1_000_000).all()
    missing = np.isnan(found.x).all(axis=0)
    assert missing[:30].all(), "not yet warm"
    assert np.flatnonzero(missing[30:]).tolist() == [4, 7], "no answer; one with a wrong checksum"
    right = {tuple(column) for column in found.truth.T.tolist()}
    assert len(right) > 10
    assert {tuple(column) for column in found.x[:, ~missing].T.tolist()} <= right


def test_sct_013(bench: Bench) -> None:
    found = bench.run("sct-013", 4.1, "overload@1.5-1.55", "stall@2.1-2.15")
    assert (found.corrupt, found.lost) == (0, 0)
    current, peak = found.x
    assert np.flatnonzero(np.isnan(current)).tolist() == [7, 10], "at its stop; too many slots missed"
    amperes = 5 + 0.3 * np.arange(len(current))
    there = ~np.isnan(current)
    assert np.allclose(current[there], amperes[there] * np.sqrt(1.04), rtol=0.005), (
        "with the third harmonic, without the offset"
    )
    assert (peak[there] > 1.1 * current[there]).all()


def test_skab(bench: Bench) -> None:
    found = bench.run("skab", 10.5, "loose@4.2-4.4", "open@6.5-7.5", "short@8.2-8.3")
    assert (found.corrupt, found.lost) == (0, 0)
    assert (np.diff(found.time_us) == 1_000_000).all()
    usual = [0.4016, 0.4016, 2.4, 2.5, 60.0, None, 230.0, 32.0]
    for channel, value in enumerate(usual):
        x = found.x[channel]
        if value is not None:
            assert np.allclose(x[~np.isnan(x)], value, rtol=0.01), profiles.load("skab").channels[channel].name
    missing = np.isnan(found.x)
    assert np.flatnonzero(missing[0]).tolist() == np.flatnonzero(missing[1]).tolist() == [1, 4], "beyond its range; loose"
    assert np.flatnonzero(missing[4]).tolist() == [8], "the NTC short-circuited"
    assert np.flatnonzero(missing[5]).tolist() == [6], "the thermocouple open"
    assert not missing[[2, 3, 6, 7]].any()
    thermocouple = found.x[5][~missing[5]]
    assert set((thermocouple * 4 % 1).tolist()) == {0}
    assert thermocouple[0] == pytest.approx(23.5, abs=0.26)


# The controls: a sketch that is wrong is found out.


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("adxl345", "= amiss_i16((int16_t)((uint16_t)raw[2 * axis + 1] << 8 | raw[2 * axis]))",
         "= amiss_i16((int16_t)((uint16_t)raw[2 * axis] << 8 | raw[2 * axis + 1]))"),
        ("adxl345", "RATE_800_HZ = 0x0D", "RATE_800_HZ = 0x0C"),
        ("adxl345", "9.80665f / 256", "9.80665f / 260"),
        ("mpu6050", "/ SIZE;  //", "/ SIZE + 1;  //"),
        ("mpu6050", "AFS_SEL_8_G = 0x02 << 3", "AFS_SEL_8_G = 0x03 << 3"),
    ],
)  # fmt: skip
def test_a_wrong_sketch_is_noticed(name: str, right: str, wrong: str, tmp_path: Path, bench: Bench) -> None:
    text = (SENSORS / name / f"{name}.ino").read_text()
    assert text.count(right) == 1
    (tmp_path / f"{name}.ino").write_text(text.replace(right, wrong))
    with pytest.raises(AssertionError):
        every_sample_comes(bench, name, tmp_path / f"{name}.ino")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  delay(1);", "delay() in loop()"),
        ("  uint8_t zeros[99] = {0}; Serial.write(zeros, 99);", "a write that has to wait"),
        ("  static uint8_t few[2]; volatile uint8_t i = 5; Serial.write(few[i]);", "index 5 out of bounds"),
    ],
)
def test_a_sketch_that_sleeps_waits_or_reaches_too_far_is_noticed(line: str, says: str, tmp_path: Path, bench: Bench) -> None:
    sketch = tmp_path / "adxl345.ino"
    text = (SENSORS / "adxl345" / "adxl345.ino").read_text()
    sketch.write_text(text.replace("void loop() {\n", f"void loop() {{\n{line}\n"))
    done = subprocess.run([bench.program("adxl345", sketch), "1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert says in done.stderr
