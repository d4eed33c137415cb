"""What Prometheus reads: plain values in, text out.

The agent keeps a `StreamCounters` per stream, which the stream's own thread writes, and fills in a `Measured` when somebody
asks. Both formats are written here by hand: prometheus-client would cost every device its import (docs/adr/0002), to write
some forty lines.

https://prometheus.io/docs/instrumenting/exposition_formats/ (text 0.0.4) and OpenMetrics 1.0.
"""

import bisect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edge.event import EventType

if TYPE_CHECKING:
    from edge.operating.http import Answer, Request, Route

BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the buckets: from a streamed window on a fast board to one that is far too late."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram", "info"]
Labels = Mapping[str, str]


class Histogram:
    """How long something took. One thread observes, another may read, without a lock: only one writes.

    The reader may see a count before the sum that belongs to it; by the next scrape both are there.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        """Per bucket, not cumulative; the last one holds what is beyond all bounds."""
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds


@dataclass(slots=True)
class StreamCounters:
    """What one stream has counted since the agent started. Written by its own thread only."""

    samples: int = 0
    windows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason → samples, frames or lines that were not used: `corrupt`, `lost`, `late` …"""
    alerts: dict[str, int] = field(default_factory=dict)
    """Type of event → how many."""
    inference: Histogram = field(default_factory=Histogram)
    """From samples to verdicts, once per chunk that completed a window."""
    score: float | None = None
    p_value: float | None = None
    anomaly: bool = False
    online: bool = False
    last_sample_s: float | None = None
    """Epoch."""
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class Process:
    """This process as /proc shows it; None where it does not."""

    cpu_s: float | None = None
    resident_bytes: int | None = None
    virtual_bytes: int | None = None
    start_s: float | None = None
    """Epoch."""
    open_fds: int | None = None
    max_fds: int | None = None
    threads: int | None = None

    @classmethod
    def read(cls, proc: Path = Path("/proc")) -> "Process":
        try:
            # The name in parentheses may hold anything, blanks and parentheses too.
            stat = (proc / "self/stat").read_text().rpartition(")")[2].split()
            boot_s = next(
                int(line.split()[1]) for line in (proc / "stat").read_text().splitlines() if line.startswith("btime ")
            )
            limits = (proc / "self/limits").read_text().splitlines()
            most = next((line.split()[3] for line in limits if line.startswith("Max open files")), "unlimited")
            ticks = os.sysconf("SC_CLK_TCK")
            return cls(
                cpu_s=(int(stat[11]) + int(stat[12])) / ticks,
                resident_bytes=int(stat[21]) * os.sysconf("SC_PAGE_SIZE"),
                virtual_bytes=int(stat[20]),
                start_s=boot_s + int(stat[19]) / ticks,
                open_fds=len(os.listdir(proc / "self/fd")),
                max_fds=int(most) if most.isdigit() else None,
                threads=int(stat[17]),
            )
        except (OSError, ValueError, IndexError, StopIteration):
            return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The device at the moment of a scrape. None: not known here, and then not shown."""

    streams: Mapping[str, StreamCounters]
    version: str
    """Of the agent."""
    python: str = ""
    model_digest: str = ""
    model_version: str = ""
    connected: bool | None = None
    """To the broker."""
    waiting: int | None = None
    """Records in the outbox."""
    outbox_bytes: int | None = None
    outbox_dropped: Mapping[str, int] = field(default_factory=dict)
    """Class (`alert`, `telemetry` …) → records that the budget cost."""
    delivered: int | None = None
    disk_written_bytes: int | None = None
    temperature_c: float | None = None
    clock_synced: bool | None = None
    rollbacks: int = 0
    process: Process = Process()


def wants_openmetrics(accept: str) -> bool:
    """Does this Accept header prefer OpenMetrics to plain text?"""
    best = {OPENMETRICS.partition(";")[0]: 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if name not in best:
            continue
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        best[name] = max(best[name], quality)
    openmetrics, text = best.values()
    return openmetrics > 0 and openmetrics >= text


def route(measure: Callable[[], Measured]) -> "Route":
    """What answers GET /metrics: on a server of its own, or beside the page."""
    from edge.operating.http import Answer  # here: a device without metrics loads no server

    def answer(request: "Request") -> "Answer":
        openmetrics = wants_openmetrics(request.header("Accept"))
        return Answer(render(measure(), openmetrics=openmetrics), content_type=OPENMETRICS if openmetrics else TEXT)

    return answer


def render(measured: Measured, *, openmetrics: bool = False) -> bytes:
    """The whole answer to a scrape; its content type is `OPENMETRICS` or `TEXT`."""
    page = _Page(openmetrics)
    page.info("amiss_build", "Version of the agent.", {"version": measured.version, "python": measured.python})
    if measured.model_digest:
        model = {"digest": measured.model_digest, "version": measured.model_version}
        page.info("amiss_model", "The model that judges.", model)
    page.counter("amiss_model_rollbacks", "Models that were taken back.", [({}, measured.rollbacks)])
    _streams(page, {name: measured.streams[name] for name in sorted(measured.streams)})
    page.gauge("amiss_mqtt_connected", "1 while there is a session with the broker.", [({}, measured.connected)])
    page.gauge("amiss_outbox_records", "Records that wait to be delivered.", [({}, measured.waiting)])
    page.gauge("amiss_outbox_bytes", "Bytes of the outbox that hold something.", [({}, measured.outbox_bytes)], unit="bytes")
    dropped = [({"class": name}, count) for name, count in sorted(dict(measured.outbox_dropped).items())]
    page.counter("amiss_outbox_dropped", "Records that the budget cost.", dropped)
    page.counter("amiss_outbox_delivered", "Records that the broker has acknowledged.", [({}, measured.delivered)])
    page.counter(
        "amiss_disk_written_bytes",
        "Bytes this process has written to disks.",
        [({}, measured.disk_written_bytes)],
        unit="bytes",
    )
    page.gauge("amiss_temperature_celsius", "Of the processor.", [({}, measured.temperature_c)], unit="celsius")
    page.gauge("amiss_clock_synced", "1 once something has set this computer's clock.", [({}, measured.clock_synced)])
    _process(page, measured.process)
    return page.text()


def _streams(page: "_Page", streams: Mapping[str, StreamCounters]) -> None:
    each = [({"stream": name}, counters) for name, counters in streams.items()]
    page.gauge("amiss_stream_online", "1 while the sensor delivers.", [(at, c.online) for at, c in each])
    page.counter("amiss_samples", "Samples that were read.", [(at, c.samples) for at, c in each])
    rejected = [({**at, "reason": reason}, count) for at, c in each for reason, count in sorted(c.rejected.copy().items())]
    page.counter("amiss_samples_rejected", "Samples, frames or lines that were not used.", rejected)
    page.counter("amiss_windows", "Windows that were judged.", [(at, c.windows) for at, c in each])
    page.histogram(
        "amiss_inference_duration_seconds",
        "From samples to the verdict on the windows that they completed.",
        [(at, c.inference) for at, c in each],
        unit="seconds",
    )
    page.gauge("amiss_score", "How strange the newest window is; 0 is ordinary.", [(at, c.score) for at, c in each])
    page.gauge("amiss_p_value", "How rare a score this high is on the good machine.", [(at, c.p_value) for at, c in each])
    page.gauge("amiss_anomaly", "1 during an episode.", [(at, c.anomaly) for at, c in each])
    # Each type from the start, with zeros: an increase from nothing at all is none in Prometheus.
    types = sorted({*get_args(EventType), *(kind for _, c in each for kind in c.alerts.copy())})
    alerts = [({**at, "type": kind}, c.alerts.get(kind, 0)) for at, c in each for kind in types]
    page.counter("amiss_alerts", "Events that left the pipeline.", alerts)
    page.counter(
        "amiss_serial_reconnects", "Times that a lost sensor was opened again.", [(at, c.reconnects) for at, c in each]
    )
    page.gauge(
        "amiss_last_sample_timestamp_seconds",
        "When the newest sample arrived.",
        [(at, c.last_sample_s) for at, c in each],
        unit="seconds",
    )


def _process(page: "_Page", process: Process) -> None:
    """Names and meanings that every Prometheus client library shares."""
    page.counter("process_cpu_seconds", "User and system time.", [({}, process.cpu_s)], unit="seconds")
    page.gauge("process_resident_memory_bytes", "Memory held.", [({}, process.resident_bytes)], unit="bytes")
    page.gauge("process_virtual_memory_bytes", "Addresses taken.", [({}, process.virtual_bytes)], unit="bytes")
    page.gauge("process_start_time_seconds", "When it started.", [({}, process.start_s)], unit="seconds")
    page.gauge("process_open_fds", "Open files.", [({}, process.open_fds)])
    page.gauge("process_max_fds", "Files it may open.", [({}, process.max_fds)])
    page.gauge("process_threads", "Threads.", [({}, process.threads)])


class _Page:
    """Lines in one of the two formats, which differ in the names of counters and in a few words."""

    def __init__(self, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._lines: list[str] = []

    def text(self) -> bytes:
        return ("\n".join([*self._lines, *(["# EOF"] if self._openmetrics else [])]) + "\n").encode()

    def counter(self, name: str, what: str, values: Iterable[tuple[Labels, float | None]], *, unit: str = "") -> None:
        self._family("counter", name, "_total", what, unit, values)

    def gauge(self, name: str, what: str, values: Iterable[tuple[Labels, float | None]], *, unit: str = "") -> None:
        self._family("gauge", name, "", what, unit, values)

    def info(self, name: str, what: str, labels: Labels) -> None:
        self._family("info", name, "_info", what, "", [(labels, 1)])

    def histogram(self, name: str, what: str, values: Iterable[tuple[Labels, Histogram]], *, unit: str) -> None:
        values = list(values)
        if values:
            self._head("histogram", name, "", what, unit)
        for labels, found in values:
            counts, total_s, below = found.counts.copy(), found.sum, 0
            for bound, count in zip((*BOUNDS_S, float("inf")), counts, strict=True):
                below += count
                self._sample(f"{name}_bucket", {**labels, "le": _number(bound)}, below)
            self._sample(f"{name}_count", labels, below)
            self._sample(f"{name}_sum", labels, total_s)

    def _family(
        self, kind: Kind, name: str, suffix: str, what: str, unit: str, values: Iterable[tuple[Labels, float | None]]
    ) -> None:
        known = [(labels, value) for labels, value in values if value is not None]
        if known:
            self._head(kind, name, suffix, what, unit)
        for labels, value in known:
            self._sample(name + suffix, labels, value)

    def _head(self, kind: Kind, name: str, suffix: str, what: str, unit: str) -> None:
        if not self._openmetrics:  # there a family is called like its samples, infos are gauges and units are unknown
            name, kind, unit = name + suffix, "gauge" if kind == "info" else kind, ""
        self._lines.append(f"# HELP {name} {what}")
        self._lines.append(f"# TYPE {name} {kind}")
        if unit:
            self._lines.append(f"# UNIT {name} {unit}")

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        self._lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    """Whole numbers stay whole: a float would lose the last digits of a large counter."""
    if isinstance(value, int):
        return str(int(value))  # also of True
    if value == float("inf"):
        return "+Inf"
    if value == float("-inf"):
        return "-Inf"
    return "NaN" if value != value else repr(float(value))
