"""Prometheus's own parser reads what we write."""

import math
import time
import tracemalloc
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosquitto import free_port
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from edge.operating.http import Server
from edge.operating.metrics import (
    BOUNDS_S,
    OPENMETRICS,
    TEXT,
    Histogram,
    Measured,
    Process,
    StreamCounters,
    render,
    route,
    wants_openmetrics,
)

CONVENTIONS = {
    "amiss_samples_total": {"stream"},
    "amiss_samples_rejected_total": {"stream", "reason"},
    "amiss_inference_duration_seconds_bucket": {"stream", "le"},
    "amiss_score": {"stream"},
    "amiss_alerts_total": {"stream", "type"},
    "amiss_serial_reconnects_total": {"stream"},
    "amiss_outbox_bytes": set(),
    "amiss_outbox_dropped_total": {"class"},
    "amiss_disk_written_bytes_total": set(),
    "amiss_last_sample_timestamp_seconds": {"stream"},
    "amiss_model_info": {"digest", "version"},
    "amiss_model_rollbacks_total": set(),
    "amiss_build_info": {"version", "python"},
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    "process_start_time_seconds": set(),
}


def measured(**fields: object) -> Measured:
    pump = StreamCounters(
        samples=2**60 + 1,
        windows=3,
        rejected={"corrupt": 2, "lost": 7},
        alerts={"anomaly_started": 1},
        score=0.5,
        p_value=0.25,
        anomaly=True,
        online=True,
        last_sample_s=1.5e9,
        reconnects=4,
    )
    for seconds in (0.0003, 0.0005, 0.004, 99.0):
        pump.inference.observe(seconds)
    values: dict[str, object] = {
        "streams": {"pump": pump, "fan": StreamCounters()},
        "version": "0.1.0",
        "python": "3.11.2",
        "model_digest": "ab" * 32,
        "model_version": "7",
        "connected": True,
        "waiting": 5,
        "outbox_bytes": 8192,
        "outbox_dropped": {"alert": 0, "telemetry": 9},
        "delivered": 6,
        "disk_written_bytes": 4096,
        "temperature_c": 51.5,
        "clock_synced": False,
        "process": Process.read(),
    }
    return Measured(**(values | fields))  # type: ignore[arg-type]


def parsed(page: bytes, openmetrics: bool) -> dict[str, Metric]:
    if openmetrics:
        return {family.name: family for family in openmetrics_parser.text_string_to_metric_families(page.decode())}
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_official_parser_finds_every_promised_name(openmetrics: bool) -> None:
    page = render(measured(), openmetrics=openmetrics)
    samples = [sample for family in parsed(page, openmetrics).values() for sample in family.samples]
    found = {sample.name: set(sample.labels) for sample in samples}
    assert {name: found.get(name) for name in CONVENTIONS} == CONVENTIONS
    value = {(s.name, *sorted(s.labels.items())): s.value for s in samples}
    assert value["amiss_samples_rejected_total", ("reason", "lost"), ("stream", "pump")] == 7
    assert value["amiss_alerts_total", ("stream", "pump"), ("type", "anomaly_started")] == 1
    assert value["amiss_alerts_total", ("stream", "fan"), ("type", "drift")] == 0, "told before the first one"
    assert value["amiss_clock_synced",] == 0
    assert ("amiss_score", ("stream", "fan")) not in value, "what is not known is not shown"
    assert b'amiss_samples_total{stream="pump"} 1152921504606846977\n' in page, "to the last digit"
    for family in parsed(page, openmetrics).values():
        assert family.documentation
        assert family.type != "unknown"


def test_units_are_told_where_the_format_knows_them() -> None:
    units = {name: family.unit for name, family in parsed(render(measured(), openmetrics=True), True).items()}
    assert units["amiss_disk_written_bytes"] == "bytes"
    assert units["amiss_inference_duration_seconds"] == "seconds"
    assert all(not unit or name.endswith(f"_{unit}") for name, unit in units.items())


def test_the_parser_would_notice() -> None:
    """The control: what is slightly wrong is refused, so what passes is right."""
    page = render(measured(), openmetrics=True)
    for right, wrong in [
        (b"# EOF\n", b""),
        (b'le="+Inf"', b'le="9"'),
        (b"amiss_samples_total{", b"amiss_samples{"),
        (b"# UNIT amiss_disk_written_bytes bytes", b"# UNIT amiss_disk_written_bytes seconds"),
        (b'stream="pump"', b'stream="pu"mp"'),
    ]:
        assert right in page
        with pytest.raises(ValueError):
            parsed(page.replace(right, wrong), True)


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")))
def test_any_text_survives_as_a_label(text: str) -> None:
    for openmetrics in (False, True):
        family = parsed(render(measured(model_version=text), openmetrics=openmetrics), openmetrics)
        info = family["amiss_model" if openmetrics else "amiss_model_info"]
        assert info.samples[0].labels["version"] == text


@given(st.lists(st.floats(0, 100), max_size=50))
def test_buckets_are_cumulative_and_hold_what_is_at_their_bound(seconds: list[float]) -> None:
    histogram = Histogram()
    for one in [*seconds, *BOUNDS_S]:
        histogram.observe(one)
    page = render(measured(streams={"s": StreamCounters(inference=histogram)}), openmetrics=True)
    samples = parsed(page, True)["amiss_inference_duration_seconds"].samples
    for sample in samples:
        if sample.name.endswith("_bucket"):
            assert sample.value == sum(one <= float(sample.labels["le"]) for one in [*seconds, *BOUNDS_S])
    assert samples[-1].name.endswith("_sum")
    assert samples[-1].value == pytest.approx(sum(seconds) + sum(BOUNDS_S))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_scores_beyond_numbers(value: float) -> None:
    page = render(measured(streams={"s": StreamCounters(score=value)}))
    assert parsed(page, False)["amiss_score"].samples[0].value == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;q=0.4", True),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.6", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
    ],
)
def test_what_the_reader_would_rather_have(accept: str, expected: bool) -> None:
    assert wants_openmetrics(accept) is expected


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"])
def test_scraped_over_http_as_prometheus_does(accept: str) -> None:
    port = free_port()
    server = Server("metrics", "127.0.0.1", port, {("GET", "/metrics"): route(measured)})
    server.start()
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            content_type, page = answer.headers["Content-Type"], answer.read()
    finally:
        server.close()
    assert content_type == (OPENMETRICS if accept else TEXT)
    assert parsed(page, bool(accept))["amiss_samples"].samples[0].value == 0, "the fan's, which comes first"


def test_this_process() -> None:
    found = Process.read()
    assert found.resident_bytes is not None
    assert 1e6 < found.resident_bytes < 1e11
    assert found.start_s is not None
    assert abs(found.start_s - time.time()) < 7 * 24 * 3600
    assert found.open_fds
    assert found.threads


def test_where_proc_is_missing_nothing_is_shown(tmp_path: Path) -> None:
    page = render(measured(process=Process.read(tmp_path), disk_written_bytes=None))
    assert b"process_" not in page
    assert b"amiss_disk_written" not in page


def test_observing_keeps_nothing_and_costs_next_to_nothing() -> None:
    histogram = Histogram()
    histogram.observe(0.001)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(10_000):
        histogram.observe(0.0012)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1000
    started_s = time.perf_counter()
    for _ in range(10_000):
        histogram.observe(0.0012)
    assert (time.perf_counter() - started_s) / 10_000 < 20e-6, "0.2 µs where nothing else runs"
