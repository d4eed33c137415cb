"""Bytes → `Samples`. Pure: a decoder owns no port and no clock, so a capture replays exactly.

| `format` | in a stream | protects against damage |
|---|---|---|
| `frames` | COBS + CRC-32 binary frames, see `frames` and docs/wire-format.md | yes, and knows what was lost |
| `csv` | one line of numbers a sample | no |
| `json` | one object a sample | no |
| `nmea` | one sentence with a checksum a sample, see `nmea` | nearly always |

A new format is a class in a file of its own and a line in `DECODERS`; `edge.testing.check_decoder` then tests it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from edge.config import StreamConfig
from edge.errors import ConfigError
from edge.sensing.decoders.frames import FrameDecoder
from edge.sensing.decoders.lines import CsvDecoder, JsonDecoder
from edge.sensing.decoders.nmea import NmeaDecoder
from edge.signal import Samples


class Decoder(Protocol):
    """Damage is counted, never raised. What is kept between calls is bounded, whatever arrives."""

    corrupt: int
    """Damaged frames or lines so far."""
    lost: int
    """Samples so far that are known to be missing, from sequence numbers."""
    trouble: str
    """What was wrong with the last damaged one, in words for whoever looks for a wrong setting."""

    def feed(self, data: bytes, time_ns: int) -> Samples:
        """The samples that these bytes complete; `time_ns` is when they arrived, on the host's monotonic clock.

        How bytes are split into calls never changes values; with the sensor's clock it never changes stamps either. Stamps
        are as regular as the sensor: a step of more than 1.5 periods is a hole, see `stamps`.
        """

    def reset(self) -> None:
        """The port was opened again: what comes next may begin anywhere. The counters go on."""


DECODERS: dict[str, Callable[..., Decoder]] = {
    "frames": FrameDecoder,
    "csv": CsvDecoder,
    "json": JsonDecoder,
    "nmea": NmeaDecoder,
}
"""By `StreamConfig.format`; arguments are (columns, channels, period_ns, clock, jitter_s)."""


def open_decoder(config: StreamConfig, channels: Sequence[str], rate_hz: float) -> Decoder:
    """The decoder for one stream of a model with these channels.

    Raises `ConfigError` when the sensor's columns do not hold the model's channels.
    """
    columns = config.columns
    if columns is None:
        # A JSON object has no order, so there is nothing to ask the user.
        time = ("time",) if config.format == "json" and config.clock == "sensor" else ()
        columns = (*channels, *time)
    try:
        return DECODERS[config.format](columns, channels, 1e9 / rate_hz, config.clock, config.jitter_s)
    except ConfigError as error:
        raise ConfigError(f"stream on {config.port}: {error}") from None
