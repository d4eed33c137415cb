"""The only code that opens a sensor, or a recording in its place.

The caller opens, iterates, and when the sensor is lost waits and iterates again; counters and sequence numbers go on:

    source = port_source(config, channels, rate_hz)
    while True:
        try:
            for samples in source.samples(): …
        except SourceLostError: …  # back off, report, go round
"""

import contextlib
import dataclasses
import errno
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import serial

from edge.config import StreamConfig
from edge.errors import AccessError, ConfigError, DataError, SourceLostError
from edge.sensing.decoders import DECODERS, Decoder, open_decoder
from edge.sensing.modbus import ModbusMaster
from edge.sensing.ports import Ports
from edge.sensing.recordings import Recording, find_recordings, match_channels, read_recording
from edge.signal import Samples

CHUNK_S = 0.02
"""Bytes are collected for this long: per chunk the decoder costs some 25 µs, whatever is in it."""
LONGEST_CHUNK_S = 0.1
"""However seldom a window is complete: what an alert may wait for bytes that need not be waited for."""
IDLE_S = 0.5
"""However silent the sensor, the caller gets an empty chunk this often: time to ping a watchdog, or to stop."""
MAX_CHUNK = 256 * 1024
"""A backlog is read whole, because its newest byte is the one that arrived now. But a port that never runs dry must not
keep the caller waiting: at 3 Mbaud this is most of a second."""

ANSWER_SLICE_S = 0.02
"""An answer that has come is noticed at once; one that has not is given up this late at most."""

_MUCH, _REFILL_S = 2048, 0.002  # who has just emptied half of the driver's buffer waits for it to be filled again


def collect_s(hop_s: float) -> float:
    """How long to collect bytes when a window is complete every `hop_s`.

    Waking up costs a slow stream more than its samples do, and between two windows there is nothing to do with them.
    """
    return min(max(CHUNK_S, hop_s / 4), LONGEST_CHUNK_S)


class Source(Protocol):
    def samples(self) -> Iterator[Samples]:
        """Opens, then yields what comes, now and then nothing. Raises `SourceLostError`; may be called again after it."""

    def epoch_offset_ns(self) -> int:
        """Stream time + this = nanoseconds since the epoch, as far as is known now: the wall clock may still be set."""

    def close(self) -> None: ...


class PortSource(ABC):
    """What is on a serial port: opening it, losing it, closing it. Those who inherit say how samples come out of it.

    `samples()` raises `SourceLostError` (port absent, busy, gone, silent), `AccessError` (no right to open it) and
    `ConfigError` (the port cannot do the baud rate).
    """

    doing: str
    """What the port was lost at, for the message."""

    def __init__(
        self,
        config: StreamConfig,
        channels: Sequence[str],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        connect: Callable[[StreamConfig], serial.Serial] | None = None,
        ports: Ports | None = None,
    ) -> None:
        self.config = config
        self._channels = len(channels)
        self._clock, self._sleep = clock, sleep
        self._connect, self._ports = connect or _connect, ports or Ports()
        self._port: serial.Serial | None = None

    @property
    @abstractmethod
    def corrupt(self) -> int:
        """Damaged frames, lines or answers since the source was made."""

    @property
    @abstractmethod
    def lost(self) -> int:
        """Samples that are known to be missing, since the source was made."""

    @property
    @abstractmethod
    def trouble(self) -> str:
        """What was wrong with the last damaged one; for the person who looks for a wrong setting."""

    def samples(self) -> Iterator[Samples]:
        self.close()
        port = self._port = self._open()
        self._begin()
        valid_ns = self._clock()
        try:
            yield Samples.empty(self._channels)  # open: whoever waits for that need not wait for the sensor
            while True:
                now_ns, samples = self._next(port)
                if len(samples):
                    valid_ns = now_ns
                elif now_ns - valid_ns > self.config.silence_s * 1e9:
                    raise SourceLostError(
                        f"{self.config.port}: no valid sample for {self.config.silence_s:g} s; {self._silent()}"
                    )
                yield samples
        except (OSError, termios.error) as error:  # pyserial's own error is an OSError, termios.error is none
            raise SourceLostError(f"{self.config.port}: lost while {self.doing}: {error}; is it still plugged in?") from None
        finally:
            # Only its own: an iterator that was given up may be collected when the next one has opened the port again.
            if self._port is port:
                self._port = None
            _close(port)

    def epoch_offset_ns(self) -> int:
        return time.time_ns() - self._clock()

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            _close(port)

    @abstractmethod
    def _begin(self) -> None:
        """The port is open; whatever was under way when it was lost will not go on."""

    @abstractmethod
    def _next(self, port: serial.Serial) -> tuple[int, Samples]:
        """What came next, maybe nothing, and when; takes `IDLE_S` or little more at most."""

    @abstractmethod
    def _silent(self) -> str:
        """Why there may have been no valid sample for so long."""

    def _open(self) -> serial.Serial:
        port = self.config.port
        device = self._ports.resolve(port)
        if device != port:
            port = f"{port} ({device})"
        for attempt in ("first", "last"):
            try:
                return self._connect(msgspec.structs.replace(self.config, port=device))
            except (ValueError, OverflowError, NotImplementedError) as error:
                raise ConfigError(f"{port}: {error}; set baud = {self.config.baud} to a rate that the adapter has") from None
            except (OSError, termios.error) as error:
                code = getattr(error, "errno", None)
                if code in (errno.EACCES, errno.EPERM):
                    if attempt == "first":
                        self._sleep(1.0)  # a device that was just plugged in exists before udev has given it its group
                        continue
                    raise AccessError(
                        f"{port}: no right to open it; add the user to the group dialout (usermod -aG dialout USER, then log "
                        "in again; for a service SupplementaryGroups=dialout)"
                    ) from None
                if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                    raise SourceLostError(f"{port}: no such port; {self._ports.hint()}") from None
                if code in (errno.EBUSY, errno.EAGAIN):
                    raise SourceLostError(f"{port}: busy, another program has it open; `fuser -v {device}` names it") from None
                raise SourceLostError(f"{port}: cannot be opened: {error}; is it a serial port?") from None
        raise AssertionError  # the last attempt returns or raises


class SerialSource(PortSource):
    """A sensor that sends by itself.

    Raises `ConfigError` at once when the sensor's columns do not hold the model's channels.
    """

    doing = "reading"

    def __init__(
        self,
        config: StreamConfig,
        channels: Sequence[str],
        rate_hz: float,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        collect_s: float = CHUNK_S,
        connect: Callable[[StreamConfig], serial.Serial] | None = None,
        ports: Ports | None = None,
    ) -> None:
        super().__init__(config, channels, clock=clock, sleep=sleep, connect=connect, ports=ports)
        self._decoder = open_decoder(config, channels, rate_hz)
        self._collect_s = collect_s
        self._newest_ns: int | None = None
        self._silent_since(0)

    @property
    def corrupt(self) -> int:
        return self._decoder.corrupt

    @property
    def lost(self) -> int:
        return self._decoder.lost

    @property
    def trouble(self) -> str:
        return self._decoder.trouble

    def epoch_offset_ns(self) -> int:
        if self.config.clock == "sensor" and self._newest_ns is not None:
            return time.time_ns() - self._newest_ns
        return super().epoch_offset_ns()

    def _begin(self) -> None:
        # Opening empties the driver's buffer, so the first bytes may begin anywhere.
        self._decoder.reset()
        self._silent_since(self._decoder.corrupt)

    def _next(self, port: serial.Serial) -> tuple[int, Samples]:
        data = self._read(port)
        now_ns = self._clock()
        self._received += len(data)
        samples = self._decoder.feed(data, now_ns)
        if len(samples):
            self._newest_ns = int(samples.time_ns[-1])
            self._silent_since(self._decoder.corrupt)
            if self.config.clock == "sensor":
                samples = dataclasses.replace(samples, arrived_ns=now_ns)
        return now_ns, samples

    @property
    def received(self) -> int:
        """Bytes since the last sample."""
        return self._received

    def _silent_since(self, corrupt: int) -> None:
        """Only what came after the last sample can tell why no other did."""
        self._received, self._corrupt_before = 0, corrupt

    def _read(self, port: serial.Serial) -> bytes:
        """All that arrives within `collect_s` of the first byte; nothing when none comes within `IDLE_S`."""
        data = port.read(1)
        if data:
            self._sleep(self._collect_s)
            # Not once: the driver shows 4 KiB at a time, and the rest of a backlog would seem to have arrived later.
            backlog = False
            while len(data) < MAX_CHUNK:
                if waiting := port.in_waiting:
                    data += port.read(waiting)
                    backlog = waiting >= _MUCH
                elif backlog:
                    self._sleep(_REFILL_S)
                    backlog = False
                else:
                    break
        return data

    def _silent(self) -> str:
        received, corrupt = self._received, self._decoder.corrupt - self._corrupt_before
        if not received:
            return "nothing arrives at all: is the sensor powered, and does it send by itself?"
        if not corrupt:
            return (
                f"{received} bytes came, but no end of a sample: are baud = {self.config.baud} and "
                f"format = {self.config.format!r} right?"
            )
        return (
            f"{received} bytes came, {corrupt} damaged, the last: {self._decoder.trouble}; check baud = {self.config.baud}, "
            f"format = {self.config.format!r} and columns"
        )


USUAL_BAUD = (9600, 115200, 57600, 38400, 19200, 230400, 460800, 921600, 1000000, 2000000, 4800, 250000, 500000)
"""Rates that sensors have, the most frequent first."""
TRY_S, LONGEST_TRY_S = 1.0, 40.0
"""For how long a rate is listened to, unless three samples take longer; and for how long in all."""
BOOT_S = 4.0
"""A board that starts anew when its port is opened is silent for two seconds."""
SETTLE_S = 0.05
"""What an adapter had received at the rate before arrives this late, 16 ms with an FTDI."""


def what_decodes(
    config: StreamConfig, channels: Sequence[str], rate_hz: float, *, ports: Ports | None = None
) -> tuple[int, str] | None:
    """Baud rate and format at which a sensor that sends garbage makes sense; None: at none that is usual.

    For a person who waits, up to `LONGEST_TRY_S`: the port is opened once, because many a board starts anew when it is, and
    left at the rate of `config`. Raises what opening a port raises.
    """
    source = SerialSource(config, channels, rate_hz, ports=ports)
    port = source._open()
    # Two samples, of which the first may lack its beginning, and one for those that come late.
    each_s = max(TRY_S, 3 / rate_hz)
    formats = (config.format, *(name for name in DECODERS if name != config.format))
    try:
        until_s = time.monotonic() + LONGEST_TRY_S
        for baud in (config.baud, *(rate for rate in USUAL_BAUD if rate != config.baud)):
            try:
                port.baudrate = baud
            except (ValueError, OSError, termios.error):  # not one of this adapter's
                continue
            time.sleep(SETTLE_S)
            port.reset_input_buffer()
            decoders = _decoders(config, channels, rate_hz, formats)
            counts = dict.fromkeys(decoders, 0)
            port.timeout = LONGEST_CHUNK_S
            heard, turn_s = False, time.monotonic() + max(BOOT_S, each_s)
            while (now_s := time.monotonic()) < turn_s:
                data = port.read(max(1, min(port.in_waiting, MAX_CHUNK)))
                if data and not heard:  # silence says nothing of a rate
                    heard, turn_s = True, now_s + each_s
                for name, decoder in decoders.items():
                    counts[name] += len(decoder.feed(data, time.monotonic_ns()))
                    # A line without a checksum is sometimes one by chance; rarely thrice in a row, and seldom undamaged.
                    if counts[name] >= _ENOUGH[name] and decoder.corrupt <= counts[name] // 10:
                        return baud, name
            if time.monotonic() + each_s > until_s:
                return None
        return None
    except (OSError, termios.error) as error:
        raise SourceLostError(f"{config.port}: lost while trying other rates: {error}; is it still plugged in?") from None
    finally:
        with contextlib.suppress(ValueError, OSError, termios.error):
            port.baudrate = config.baud
        _close(port)


_ENOUGH = {"frames": 1, "csv": 2, "json": 2}
"""Samples by which a format is told: one with a checksum is no chance."""


def _decoders(config: StreamConfig, channels: Sequence[str], rate_hz: float, formats: Sequence[str]) -> dict[str, Decoder]:
    """Those that these columns go with."""
    found = {}
    for name in formats:
        with contextlib.suppress(ConfigError):
            found[name] = open_decoder(msgspec.structs.replace(config, format=name), channels, rate_hz)
            found[name].reset()
    return found


class ModbusSource(PortSource):
    """A Modbus RTU device, asked for a sample `rate_hz` times a second.

    A sample's stamp is when it was due; what cannot be asked for within half a period of that is a hole. Values without an
    answer are NaN, and a sample without any is a hole too. Raises `ConfigError` at once when a channel has no register, and
    when the line is too slow for so many registers so often.
    """

    doing = "asking"

    def __init__(self, config: StreamConfig, channels: Sequence[str], rate_hz: float, *, ports: Ports | None = None) -> None:
        super().__init__(config, channels, ports=ports)
        assert config.modbus is not None
        try:
            self._master = ModbusMaster(config.modbus, channels)
        except ConfigError as error:
            raise ConfigError(f"stream on {config.port}: {error}") from None
        self._period_ns = 1e9 / rate_hz
        self._timeout_ns = round(config.modbus.timeout_s * 1e9)
        self._character_s = (9 + (config.modbus.parity != "none") + config.modbus.stopbits) / config.baud
        # Silence between two messages: 3.5 characters, and above 19200 baud 1.75 ms, as no clock of a device is finer.
        self._gap_ns = round(1e9 * max(config.modbus.pause_s, max(3.5 * self._character_s, 0.00175)))
        self._lost = 0
        needed_s = sum(
            (len(group.request) + group.answer_size + 3.5) * self._character_s + self._gap_ns / 1e9
            for group in self._master.groups
        )
        if needed_s * rate_hz > 1:
            raise ConfigError(
                f"stream on {config.port}: at {config.baud} baud the {len(self._master.groups)} requests for one sample take "
                f"{needed_s * 1000:.0f} ms, the model wants one every {1000 / rate_hz:.3g} ms; raise baud, lay registers next "
                "to each other, or take a model with a lower rate"
            )
        if config.silence_s * rate_hz < 2:
            raise ConfigError(
                f"stream on {config.port}: silence_s = {config.silence_s:g}, but the model wants a sample only every "
                f"{1 / rate_hz:g} s; set it to {3 / rate_hz:g} or more"
            )

    @property
    def corrupt(self) -> int:
        return self._master.corrupt

    @property
    def lost(self) -> int:
        return self._lost

    @property
    def trouble(self) -> str:
        return self._master.trouble

    def _begin(self) -> None:
        self._started_ns = self._ready_ns = self._clock()
        self._number = 0  # of the sample
        self._group = 0  # of its registers, to be asked for next

    def _next(self, port: serial.Serial) -> tuple[int, Samples]:
        due_ns = self._started_ns + round(self._number * self._period_ns)
        ready_ns = self._ready_ns if self._group else max(self._ready_ns, due_ns)
        if (wait_s := (ready_ns - self._clock()) / 1e9) > 0:
            self._sleep(min(wait_s, IDLE_S))
        now_ns = self._clock()
        if wait_s > IDLE_S:
            return now_ns, Samples.empty(self._channels)
        if not self._group:
            late = round((now_ns - due_ns) / self._period_ns)
            self._lost += late
            self._number += late
            due_ns = self._started_ns + round(self._number * self._period_ns)
            self._master.begin()
        if not self._group or now_ns - due_ns < self._period_ns:
            self._ask(port)
            self._group += 1
            if self._group < len(self._master.groups):
                return self._clock(), Samples.empty(self._channels)
        self._number, self._group = self._number + 1, 0
        row = self._master.row()
        if np.isnan(row).all():
            self._lost += 1
            return self._clock(), Samples.empty(self._channels)
        return self._clock(), Samples(np.array([due_ns]), row[:, None])

    def _ask(self, port: serial.Serial) -> None:
        """One request and its answer."""
        port.reset_input_buffer()  # what came since the last answer is none to this request
        request = self._master.ask(self._group)
        port.write(request)
        on_wire_s = (len(request) + self._master.groups[self._group].answer_size) * self._character_s
        until_ns = self._clock() + round(on_wire_s * 1e9) + self._timeout_ns
        while self._master.wanted and self._clock() < until_ns:
            self._master.feed(port.read(max(self._master.wanted, port.in_waiting)))
        late = self._master.end()
        # Who has not answered may do so yet. Nothing tells that answer from one to the next request, so it is waited for.
        self._ready_ns = self._clock() + max(self._gap_ns, self._timeout_ns if late else 0)

    def _silent(self) -> str:
        assert self.config.modbus is not None
        return (
            f"the last trouble: {self._master.trouble}; check power and wiring (A and B), modbus.unit = {self._master.unit}, "
            f"baud = {self.config.baud} and modbus.parity = {self.config.modbus.parity!r}"
        )


def port_source(
    config: StreamConfig, channels: Sequence[str], rate_hz: float, *, collect_s: float = CHUNK_S, ports: Ports | None = None
) -> PortSource:
    """The source for a stream of a model with these channels; `collect_s` is for sensors that send by themselves."""
    if config.format == "modbus":
        return ModbusSource(config, channels, rate_hz, ports=ports)
    return SerialSource(config, channels, rate_hz, collect_s=collect_s, ports=ports)


class ReplaySource:
    """Recordings in place of a sensor, one after the other on one time line.

    `speed` 1.0 is as it was, `None` as fast as possible. `rate_hz`, when given, is what the recordings must have.
    Raises `NoInputError` at once when there are none; `samples()` raises `DataError`, naming the file, when one does not fit.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        channels: Sequence[str],
        speed: float | None = None,
        *,
        rate_hz: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if speed is not None and not speed > 0:
            raise ValueError(f"speed {speed}")
        self._paths = find_recordings(paths)
        self._channels, self._speed, self._rate_hz = tuple(channels), speed, rate_hz
        self._clock, self._sleep = clock, sleep

    def samples(self) -> Iterator[Samples]:
        for path in self._paths:
            recording = match_channels(read_recording(path), self._channels)
            if self._rate_hz is not None and len(recording.time_ns) > 1 and not 0.9 < recording.rate_hz / self._rate_hz < 1.1:
                raise DataError(f"{path}: {recording.rate_hz:g} samples a second, the model needs {self._rate_hz:g}")
            if self._speed is None:
                yield from recording.samples()
            else:
                yield from self._paced(recording, self._speed)

    def epoch_offset_ns(self) -> int:
        return 0  # a recording's time is wall-clock time

    def close(self) -> None:
        pass

    def _paced(self, recording: Recording, speed: float) -> Iterator[Samples]:
        started_ns, first_ns = self._clock(), int(recording.time_ns[0])
        rate_hz = recording.rate_hz if len(recording.time_ns) > 1 else 1.0
        # A tenth of a second at a time looks live and costs little.
        for samples in recording.samples(max(1, round(rate_hz * speed * 0.1))):
            due_ns = started_ns + (int(samples.time_ns[-1]) - first_ns) / speed
            while (wait_s := (due_ns - self._clock()) / 1e9) > 0:
                self._sleep(min(wait_s, IDLE_S))
                if wait_s > IDLE_S:
                    yield Samples.empty(len(self._channels))
            yield samples


def _connect(config: StreamConfig) -> serial.Serial:
    if config.modbus is None:
        parity, stopbits, wait_s = "none", 1, min(IDLE_S, config.silence_s / 2)
    else:
        parity, stopbits, wait_s = (
            config.modbus.parity,
            config.modbus.stopbits,
            min(ANSWER_SLICE_S, config.modbus.timeout_s / 2),
        )
    return serial.Serial(
        config.port,
        config.baud,
        parity=_PARITY[parity],
        stopbits=stopbits,
        timeout=wait_s,
        write_timeout=IDLE_S,  # a driver that no longer takes bytes must not hold the caller for ever
        exclusive=True,  # only among those who ask for it: it keeps two agents apart, not a terminal program away
    )


_PARITY = {"none": serial.PARITY_NONE, "even": serial.PARITY_EVEN, "odd": serial.PARITY_ODD}


def _close(port: serial.Serial) -> None:
    with contextlib.suppress(OSError, termios.error):  # it is gone, which is as good as closed
        port.close()
