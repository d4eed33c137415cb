"""NMEA 0183 and what looks like it: `$WIMWV,214.8,R,3.1,M,A*2D`, a sentence of text with a checksum.

`columns` say what its fields are, the address first: `["$WIMWV", "wind_angle", "=R", "wind_speed", "=M", "status"]`

- `$…`: the address. Sentences of another address are somebody else's: skipped, and neither counted nor missed.
- `=R`: this field has to be `R`; if not, the sentence tells something else (wind over ground, knots), and is skipped too.
- `status`: `A` is valid. With anything else all values of the sentence are missing.
- `time`: the sensor's clock in seconds, for `clock = "sensor"`. Not hhmmss, which begins anew every day.
- Any other name is a value. An empty field is a missing one; names that the model does not know may be no numbers.

The checksum, eight bits, is demanded. It finds every wrong bit, and every row of wrong bits up to eight long; of garbage one
sentence in 256 would get through, if it has the right address and fields. So it is better than CSV, and not as good as frames.
"""

import functools
import operator
import re
from collections.abc import Sequence

from edge.errors import ConfigError
from edge.sensing.decoders.layout import Clock
from edge.sensing.decoders.lines import LineDecoder
from edge.signal import Float64

STATUS, VALID = "status", b"A"
_NUMBER = re.compile(rb"\s*[-+]?(\d+\.?\d*|\.\d+)\s*")  # float() takes more than a sensor can mean: 1e9, nan, 1_0
_SUM = re.compile(rb"[0-9A-Fa-f]{2}")
_NAN = float("nan")


class NmeaDecoder(LineDecoder):
    """One sentence a sample."""

    def __init__(
        self,
        columns: Sequence[str],
        channels: Sequence[str],
        period_ns: float,
        clock: Clock = "arrival",
        jitter_s: float = 0.25,
    ) -> None:
        self._address, *self._fields = columns
        if not self._address.startswith("$"):
            raise ConfigError(
                f'columns: the first has to be the address of the sentence, as in "$WIMWV", and is {self._address!r}'
            )
        named = [field for field in self._fields if not field.startswith("=")]
        super().__init__(named, channels, period_ns, clock, jitter_s)
        wanted = {named[place] for place in self._pick} | ({named[self._time_at]} if self._time_at is not None else set())
        self._wanted = [field in wanted for field in self._fields]

    def _rows(self, lines: list[bytes]) -> Float64 | None:
        return None

    def _row(self, line: bytes) -> Sequence[float] | str | None:
        body, star, checksum = line[1:].rpartition(b"*")
        if line[:1] != b"$" or not star or not _SUM.fullmatch(checksum):
            return "no sentence of the form $…*hh"
        if functools.reduce(operator.xor, body, 0) != int(checksum, 16):
            return "wrong checksum"
        address, *fields = body.split(b",")
        if address != self._address[1:].encode():
            return None
        if len(fields) != len(self._fields):
            return f"{len(fields)} fields, the configuration names {len(self._fields)} after {self._address}"
        row: list[float] = []
        valid = True
        for name, field, wanted in zip(self._fields, fields, self._wanted, strict=True):
            if name.startswith("="):
                if field != name[1:].encode():
                    return None
                continue
            valid = valid and (name != STATUS or field == VALID)
            if not (wanted and field.strip()):
                row.append(_NAN)
            elif _NUMBER.fullmatch(field):
                row.append(float(field))
            else:
                return f"{name} is not a number"
        if valid:
            return row
        return [value if place == self._time_at else _NAN for place, value in enumerate(row)]
