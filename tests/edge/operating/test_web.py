"""What the page is told: bounded, true to the extremes, and nothing that is secret."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from benchmarks.page import MadeView, eight
from edge import config as configs
from edge.config import WebConfig
from edge.delivery.topics import Response
from edge.errors import ConfigError
from edge.event import Excerpt
from edge.operating import web
from edge.operating.http import Answer, Route, Server
from edge.operating.view import History, Learning, Situation
from edge.operating.web import Page


def figures(text: bytes) -> Route:
    return lambda request: Answer(text, content_type="text/plain; version=0.0.4; charset=utf-8")


@pytest.fixture
def view() -> MadeView:
    return MadeView()


@pytest.fixture
def page(view: MadeView) -> Iterator[Page]:
    found = Page(WebConfig(port=0), view)
    found.start()
    yield found
    found.close()


def asked(page: Page, path: str) -> Any:
    return json.loads(urllib.request.urlopen(page.url + path).read())


def configured(**section: str) -> WebConfig:
    data = {"node": "n", "bundle": "b", "streams": {"s": {"port": "/dev/x"}}, "web": section}
    web = configs.parse(data).web
    assert web is not None
    return web


def test_it_is_reached_by_this_computer_only_unless_there_is_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "pump-7.local"):
        with pytest.raises(ConfigError, match=r"web: `host = .* set `token`"):
            configured(host=host)
        configured(host=host, token="0123456789abcdef")
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        configured(host=host)


@pytest.mark.parametrize("token", ["", "short", "with a space", "ümlaute-hier", "x" * 257])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"web: `token` needs 8 to 256"):
        configured(token=token)


def test_the_page_lets_only_its_own_script_run(page: Page) -> None:
    answer = urllib.request.urlopen(page.url)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    html = answer.read().decode()
    assert html.count("<script>") == html.count("<style>") == 1
    assert "innerHTML" not in html
    assert "://" not in html.replace("http://www.w3.org/2000/svg", ""), "nothing is asked of anybody else"
    assert " style=" not in html
    assert " onclick=" not in html


def test_now_says_how_it_is(page: Page, view: MadeView) -> None:
    view.something_amiss()
    now = asked(page, "api/now")
    (stream,) = now["streams"]
    assert (now["node"], now["asks"], stream["name"], stream["drawn"]) == ("pump-7", False, "pump", None)
    assert stream["state"]["anomaly"] is True
    assert now["health"]["mqtt"]["connected"] is True
    assert "config" not in now


def test_a_stream_is_drawn_when_asked_for(page: Page, view: MadeView) -> None:
    view.something_amiss()
    (stream,) = asked(page, "api/now?streams=pump,none")["streams"]
    score, signal = stream["drawn"]["score"], stream["drawn"]["signal"]
    assert score["threshold"] == pytest.approx(2.4)
    assert len(score["x"]) == len(score["y"]) <= web.SCORE_POINTS
    ((first, last),) = score["anomaly"]
    assert 0 < first < last == len(score["y"]) - 1
    assert len(signal["channels"]) == 4
    assert all(len(channel["y"]) == len(signal["x"]) <= web.SIGNAL_POINTS for channel in signal["channels"])


def test_the_mark_changes_when_the_episodes_do(page: Page, view: MadeView) -> None:
    marks = [asked(page, "api/now")["mark"]]
    view.some_past()
    marks.append(asked(page, "api/now")["mark"])
    view.said[view.happened[0].id] = "confirmed"
    marks.append(asked(page, "api/now")["mark"])
    assert len(set(marks)) == 3
    assert asked(page, "api/now")["mark"] == marks[-1]


def test_episodes_are_told_with_what_was_said_of_them(page: Page, view: MadeView) -> None:
    view.some_past()
    view.said[view.happened[0].id] = "false_alarm"
    told = asked(page, "api/episodes?limit=2")
    assert told["total"] == 3
    assert [(episode["type"], episode["verdict"]) for episode in told["episodes"]] == [
        ("anomaly_ended", "false_alarm"),
        ("gap", None),
    ]
    assert [channel["name"] for channel in told["episodes"][0]["excerpt"]["channels"]] == ["current", "vibration", "flow"]


def test_what_lasts_and_is_no_anomaly_is_a_trouble_until_it_is_over_or_answered(page: Page, view: MadeView) -> None:
    view.happened = [
        view.event("drift", 4, 900, reason="slow"),
        view.event("sensor_fault", 3, 1000, reason="stuck", channels=(("flow", 1.0),)),
        view.event("sensor_fault", 2, 2000, 60, reason="stuck"),
        view.event("gap", 1, 3000, reason="silence"),
    ]
    troubles = asked(page, "api/now")["streams"][0]["troubles"]
    assert [(trouble["type"], trouble["channels"]) for trouble in troubles] == [("drift", []), ("sensor_fault", ["flow"])]
    view.said[view.happened[0].id] = "new_normal"
    assert [trouble["type"] for trouble in asked(page, "api/now")["streams"][0]["troubles"]] == ["sensor_fault"]


@pytest.mark.parametrize("verb", web.VERBS)
def test_a_request_is_passed_on_and_its_answer_back(page: Page, view: MadeView, verb: str) -> None:
    def ask() -> tuple[int, Any]:
        asked = urllib.request.Request(
            f"{page.url}api/request/{verb}", b'{"stream": "pump"}', {"Content-Type": "application/json"}
        )
        try:
            answer = urllib.request.urlopen(asked)
        except urllib.error.HTTPError as error:
            answer = error
        return answer.status, json.loads(answer.read())

    assert ask() == (200, {"status": "ok", "data": {}})
    assert view.asked == [(verb, {"stream": "pump"})]
    view.answer = Response(status="error", error="no such stream; there is `pump`")
    assert ask() == (409, {"status": "error", "error": "no such stream; there is `pump`"})


def test_metrics_are_served_alone() -> None:
    alone = Server("metrics", "127.0.0.1", 0, {("GET", "/metrics"): figures(b"amiss_build_info 2\n")})
    alone.start()
    try:
        answer = urllib.request.urlopen(alone.url + "metrics")
        assert answer.read() == b"amiss_build_info 2\n"
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(alone.url)
    finally:
        alone.close()


def test_what_is_sent_is_bounded() -> None:
    view, names = eight(), tuple(f"machine-{i + 1}" for i in range(8))
    for name in names:
        view.histories[name] = view.drawn(points=50_000)
    assert len(msgspec.json.encode(web.now(view, names))) < 90_000
    assert len(msgspec.json.encode(web.episodes(view, 12))) < 30_000
    assert len(msgspec.json.encode(web.episodes(view))) < 250_000


def test_nothing_known_yet_is_no_mistake(page: Page, view: MadeView) -> None:
    view.states_now, view.histories = {}, {}
    view.situations_now = {"pump": Situation()}
    view.health_now = msgspec.structs.replace(view.health_now, streams={}, clock=None, cpu=None, rss=None)
    (stream,) = asked(page, "api/now?streams=pump")["streams"]
    assert (stream["state"], stream["health"], stream["last_ms"], stream["drawn"]) == (None, None, None, None)
    empty = np.empty(0, np.int64)
    view.histories["pump"] = History(
        empty, np.empty(0, np.float32), np.empty(0), np.empty(0, bool), float("inf"), empty, np.empty((4, 0), np.float32)
    )
    (stream,) = asked(page, "api/now?streams=pump")["streams"]
    assert stream["drawn"]["score"]["threshold"] is None
    assert stream["drawn"]["score"]["y"] == []


def test_what_people_asked_for_is_told(page: Page, view: MadeView) -> None:
    view.situations_now["pump"] = Situation(view.now_ns, view.now_ns + 3600 * 10**9, Learning(True, 0.25, 2700.0), True)
    (stream,) = asked(page, "api/now")["streams"]
    assert stream["maintenance_until_ms"] - stream["last_ms"] == 3_600_000
    assert stream["learning"] == {"running": True, "progress": 0.25, "left_s": 2700.0, "outcome": ""}
    assert stream["can_roll_back"] is True


@given(
    some.lists(some.floats(width=32), min_size=1, max_size=700),
    some.one_of(some.none(), some.floats(allow_nan=False, allow_infinity=False, width=32)),
)
@settings(deadline=None, max_examples=200)
def test_any_signal_can_be_drawn(values: list[float], limit: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.array([values], np.float32).astype(np.float64)
        time_ns, thinned = web._extremes(np.arange(len(values), dtype=np.int64), x)
        levels = web._levels(thinned[0], limit)
    assert len(time_ns) == thinned.shape[1] <= web.SIGNAL_POINTS
    assert all(-1 <= level <= web.LEVELS for level in levels["y"])
    known = x[np.isfinite(x)]
    if len(values) <= web.SIGNAL_POINTS:
        assert [level >= 0 for level in levels["y"]] == np.isfinite(x[0]).tolist()
    if len(known) and np.isfinite(x).all() and limit is None:
        assert levels["high"] == pytest.approx(known.max(), rel=1e-3), "the highest is never thinned away"
        assert levels["low"] == pytest.approx(known.min(), rel=1e-3)


def test_a_spike_of_one_sample_is_seen() -> None:
    row = np.zeros((1, 40_000))
    row[0, 23_456] = 5.0
    assert web._extremes(np.arange(40_000, dtype=np.int64), row)[1].max() == 5.0
    assert row[:, :: 40_000 // web.SIGNAL_POINTS].max() == 0, "the control: taking every so manieth loses it"


def test_an_excerpt_with_holes_and_one_without_anything() -> None:
    told = web._excerpt(Excerpt(0, 10_000_000, {"a": (1.0, float("nan"), 3.0), "b": ()}))
    assert told == {
        "span_s": 0.02,
        "channels": [
            {"name": "a", "low": 1.0, "high": 3.0, "y": [0, -1, 1000]},
            {"name": "b", "low": None, "high": None, "y": []},
        ],
    }


def test_the_agent_without_a_page_loads_no_server() -> None:
    script = "import edge.agent, sys; print('http.server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
