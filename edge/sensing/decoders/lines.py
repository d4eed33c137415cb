r"""Text, one sample a line: CSV and JSON. Easy to read and to write, and without any protection.

A line has no checksum: a flipped bit in a digit gives a number that is wrong and looks right. Use frames where values
matter (docs/wire-format.md). What can be seen is counted: a line that is not a sample is dropped, and its place is left
empty in the stamps, as it most likely was one.

Lines end with `\n` or `\r\n` and are at most 4 KiB long. Empty lines, lines that begin with `#` and, in CSV, a header that
names the columns are skipped.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec
import numpy as np

from edge.errors import ConfigError
from edge.sensing.decoders.layout import TIME, Clock, pick
from edge.sensing.decoders.stamps import StreamClock
from edge.signal import Float64, Samples

MAX_LINE = 4096
"""Bytes before the `\\n`: 200 numbers in full. Whatever arrives, no more than this is kept for later."""

_MAX_TIME_S = 9e9  # in nanoseconds it still fits an int64
_NAN = float("nan")


class LineDecoder(ABC):
    """Cuts, counts and stamps lines; those who inherit read them.

    How the bytes are split never changes the values, nor, with `clock="sensor"`, the stamps. `columns` are the names of the
    values on the wire, `channels` those that the model wants; see `layout.pick` for errors.
    """

    def __init__(
        self,
        columns: Sequence[str],
        channels: Sequence[str],
        period_ns: float,
        clock: Clock = "arrival",
        jitter_s: float = 0.25,
    ) -> None:
        self._pick = pick(columns, channels)
        self._columns = tuple(columns)
        if clock == "sensor" and TIME not in self._columns:
            raise ConfigError(f'columns: clock = "sensor" needs a column `{TIME}` with seconds; they are {", ".join(columns)}')
        self._time_at = self._columns.index(TIME) if clock == "sensor" else None
        self._clock = StreamClock(period_ns, jitter_s * 1e9, "arrival")
        self._pending = b""  # the line that is still coming in; at most MAX_LINE bytes, whatever arrives
        self._skip = False  # inside a line that is dropped, and counted already if it is to be
        self._count = 0  # lines so far that were samples or should have been
        self.corrupt = 0
        """Damaged lines so far."""
        self.lost = 0
        """Always 0: lines have no sequence number."""
        self.trouble = ""
        """What was wrong with the last damaged line; for the person who looks for a wrong setting."""

    def feed(self, data: bytes, time_ns: int) -> Samples:
        """The samples that these bytes complete; `time_ns` is when they arrived, on the host's monotonic clock."""
        head, newline, rest = (self._pending + data).rpartition(b"\n")
        samples = Samples.empty(len(self._pick))
        if newline:
            lines = head.split(b"\n")
            if self._skip:
                self._skip = False
                del lines[0]
            samples = self._samples(lines, time_ns)
        self._pending = rest
        if len(rest) > MAX_LINE:
            self._pending = b""
            if not self._skip:
                self._skip = True
                self._damaged(f"no end of line within {MAX_LINE} bytes; are baud rate and format right?")
        return samples

    def reset(self) -> None:
        """The port was opened again: the first line may lack its beginning (`25.0` of `1025.0`), so it is not looked at."""
        self._pending, self._skip = b"", True
        self._clock.restart()

    @abstractmethod
    def _rows(self, lines: list[bytes]) -> Float64 | None:
        """Values (n, columns) of lines that are all plain samples; None when one is not. `_row` reads them alike."""

    @abstractmethod
    def _row(self, line: bytes) -> Sequence[float] | str | None:
        """Values (columns,) of one line, or what is wrong with it, or None when it is not meant to be a sample."""

    def _samples(self, lines: list[bytes], time_ns: int) -> Samples:
        first = self._count
        rows = self._rows(lines) if max(map(len, lines), default=MAX_LINE + 1) <= MAX_LINE else None
        if rows is not None and self._placed(rows):
            self._count += len(rows)
            index = np.arange(first, self._count)
        else:
            rows, places = self._one_by_one(lines)
            index = np.array(places, np.int64)
        if not len(rows):
            return Samples.empty(len(self._pick))
        with np.errstate(over="ignore"):  # beyond float32 is beyond any sensor, and missing like other infinities
            x = rows[:, self._pick].T.astype(np.float32, order="C")
        x[np.isinf(x)] = np.nan
        if self._time_at is not None:
            return Samples(np.rint(rows[:, self._time_at] * 1e9).astype(np.int64), x)
        return Samples(self._clock.stamp(index, time_ns, self._count - 1), x)

    def _one_by_one(self, lines: list[bytes]) -> tuple[Float64, list[int]]:
        rows, places = [], []
        for line in lines:
            if len(line) > MAX_LINE:
                self._damaged(f"no end of line within {MAX_LINE} bytes; are baud rate and format right?")
                continue
            bare = line.strip()
            row = None if not bare or bare.startswith(b"#") else self._row(bare)
            if isinstance(row, str):
                self._damaged(f"{row}: {bare[:60]!r}")
            elif row is not None:
                if self._placed(found := np.array([row], np.float64)):
                    rows.append(found)
                    places.append(self._count)
                    self._count += 1
                else:
                    self._damaged(f"no time: {bare[:60]!r}")
        return np.concatenate(rows) if rows else np.empty((0, len(self._columns))), places

    def _placed(self, rows: Float64) -> bool:
        """Whether each row says when it was taken, if it has to."""
        return self._time_at is None or bool((np.abs(rows[:, self._time_at]) < _MAX_TIME_S).all())

    def _damaged(self, trouble: str) -> None:
        self.corrupt += 1
        self._count += 1
        self.trouble = trouble


class CsvDecoder(LineDecoder):
    """One line of numbers a sample, separated by commas; an empty cell or `nan` is a missing value."""

    def _rows(self, lines: list[bytes]) -> Float64 | None:
        commas = len(self._columns) - 1
        if any([line.count(b",") != commas for line in lines]):  # noqa: C419  # a list is twice as fast
            return None
        text = b",".join(lines)
        if b"_" in text:  # float() takes 1_0 for 10
            return None
        try:
            # Faster than numpy's own reader, and it reads exactly what `_row` reads.
            return np.array(list(map(float, text.split(b","))), np.float64).reshape(len(lines), len(self._columns))
        except ValueError:
            return None

    def _row(self, line: bytes) -> Sequence[float] | str | None:
        cells = [cell.strip() for cell in line.split(b",")]
        if cells == [name.encode() for name in self._columns]:
            return None
        if len(cells) != len(self._columns):
            return f"{len(cells)} values, the configuration names {len(self._columns)} columns"
        try:
            return "not a number" if b"_" in line else [float(cell) if cell else _NAN for cell in cells]
        except ValueError:
            return "not a number"


class JsonDecoder(LineDecoder):
    """One object of numbers a sample; a key that is absent, `null` or `NaN` is a missing value, other keys do not matter."""

    def __init__(
        self,
        columns: Sequence[str],
        channels: Sequence[str],
        period_ns: float,
        clock: Clock = "arrival",
        jitter_s: float = 0.25,
    ) -> None:
        super().__init__(columns, channels, period_ns, clock, jitter_s)
        # Only what is wanted is read, so anything may stand under the other keys.
        self._columns = (*channels, *((TIME,) if clock == "sensor" else ()))
        self._pick = list(range(len(channels)))
        self._time_at = len(channels) if clock == "sensor" else None
        fields = [f"value_{i}" for i in range(len(self._columns))]  # names on the wire need not be names in Python
        try:
            row = msgspec.defstruct(
                "Row",
                [(field, float | None | msgspec.UnsetType, msgspec.UNSET) for field in fields],
                rename=dict(zip(fields, self._columns, strict=True)),
                gc=False,
            )
        except ValueError as error:
            raise ConfigError(f"columns: {error}") from None
        self._decode = msgspec.json.Decoder(row).decode

    def _rows(self, lines: list[bytes]) -> Float64 | None:
        try:
            # TypeError: a key is absent. Not decode_lines(), which lets an object run over several lines.
            return np.array([msgspec.structs.astuple(self._decode(line)) for line in lines], np.float64)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return None

    def _row(self, line: bytes) -> Sequence[float] | str | None:
        try:
            try:
                values = msgspec.structs.astuple(self._decode(line))
            except msgspec.DecodeError:  # NaN is not JSON, but Python and many a microcontroller write it
                values = msgspec.structs.astuple(self._decode(_BARE_NAN.sub(b"null", line)))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return str(error) or "nested too deeply"
        if all(value is msgspec.UNSET for value in values):
            return f"none of the keys {', '.join(self._columns)}"
        return [value if isinstance(value, float) else _NAN for value in values]


_BARE_NAN = re.compile(rb"(?<=[:\s])[-+]?nan(?=\s*[,}])", re.IGNORECASE)
