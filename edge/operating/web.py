"""The device's own page: how each stream is doing now, what was amiss and why, and what a person says to that.

    GET  /                     the page, one file; asks for nothing else from anywhere
    GET  /api/now              everything that changes by the second; `?streams=a,b` adds what is drawn of those
    GET  /api/episodes         what happened last, newest first, `?limit=12` of it; another one when `mark` above is
    POST /api/request/<verb>   feedback, maintenance, commission: the same as over MQTT

All of it is read through a `View`. What is sent is made for a picture of a few hundred pixels, and bounded.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.config import WebConfig
from edge.delivery.topics import EventPayload, Response
from edge.event import Excerpt
from edge.operating.http import Answer, Request, Route, Routes, Server, refusal
from edge.operating.view import EPISODES, History, View
from edge.signal import Float64, Int64

VERBS = ("feedback", "maintenance", "commission")
"""What the page can ask for; the rest is for MQTT and the command line."""
DRAWN = 16
"""Streams in one answer at most; a screen shows two or three."""
SIGNAL_POINTS = 160
SCORE_POINTS = 300
EXCERPT_CHANNELS, EXCERPT_POINTS = 3, 96
LEVELS = 1000
"""A value is sent as its height in the picture, 0 … LEVELS: three digits instead of nine."""

OPEN_TYPES = ("sensor_fault", "drift", "new_normal")
"""Events that last and do not end by themselves as an anomaly does."""


class Page:
    def __init__(self, config: WebConfig, view: View) -> None:
        names = {*config.names, view.node, f"{view.node}.local"}
        self.server = Server("web", config.host, config.port, routes(config, view), names=names, token=config.token)

    def start(self) -> None:
        """Raises `ConfigError` or `AccessError` when the port cannot be had."""
        self.server.start()

    def close(self) -> None:
        self.server.close()

    @property
    def url(self) -> str:
        return self.server.url


def routes(config: WebConfig, view: View) -> Routes:
    page = page_answer((Path(__file__).parent / "page.html").read_bytes())
    asks = config.token is not None

    def answer_now(request: Request) -> Answer:
        return Answer(msgspec.json.encode(now(view, tuple(request.query.get("streams", "").split(",")), asks)))

    def answer_episodes(request: Request) -> Answer:
        limit = request.query.get("limit", "")
        return Answer(msgspec.json.encode(episodes(view, int(limit) if re.fullmatch("[0-9]{1,3}", limit) else EPISODES)))

    def asked(verb: str) -> Route:
        return lambda request: _requested(view, verb, request.body)

    found: dict[tuple[str, str], Route] = {
        ("GET", "/"): lambda request: page,
        ("GET", "/api/now"): answer_now,
        ("GET", "/api/episodes"): answer_episodes,
    }
    for verb in VERBS:
        found["POST", f"/api/request/{verb}"] = asked(verb)
    return found


def page_answer(html: bytes) -> Answer:
    """The page with a policy that lets nothing run or load but the one script and the one style that are in it."""

    def digest(tag: bytes) -> str:
        (inside,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Answer(html, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


def now(view: View, drawn: tuple[str, ...] = (), asks: bool = False) -> dict[str, Any]:
    """What /api/now says. `drawn`: streams whose signal and score are wanted too; `asks`: changes need a token."""
    info, health, states, happened = view.info(), view.health(), view.states(), view.episodes()
    said = view.verdicts()
    return {
        "node": view.node,
        "ms": health.time_ns // 1_000_000,
        "asks": asks,
        "mark": _mark(happened, said),
        "streams": [
            {
                "name": name,
                "state": states.get(name),
                "health": health.streams.get(name),
                "last_ms": _ms(situation.last_sample_ns),
                "maintenance_until_ms": _ms(situation.maintenance_until_ns),
                "learning": situation.learning,
                "can_roll_back": situation.can_roll_back,
                "troubles": _troubles(name, happened, said),
                "drawn": _drawn(view, name) if name in drawn[:DRAWN] else None,
            }
            for name, situation in view.situations().items()
        ],
        "channels": info.channels,
        "model": info.model,
        "version": info.versions.get("amiss", ""),
        "health": {name: getattr(health, name) for name in _HEALTH},
    }


_HEALTH = ("uptime_s", "mqtt", "clock", "cpu", "rss", "temperature", "disk_written_bytes")


def episodes(view: View, limit: int = EPISODES) -> dict[str, Any]:
    """What /api/episodes says: the newest of `total`."""
    happened, said = view.episodes(), view.verdicts()
    return {"total": len(happened), "episodes": [_told(event, said.get(event.id)) for event in happened[:limit]]}


def _told(event: EventPayload, verdict: str | None) -> dict[str, Any]:
    return {
        "id": event.id,
        "record": event.record,
        "type": event.type,
        "stream": event.stream,
        "since_ms": _ms(event.since_ns),
        "until_ms": _ms(event.until_ns),
        "ms": _ms(event.time_ns),
        "duration_s": event.duration_s,
        "p_value": event.p_value,
        "channels": event.channels[:8],
        "reason": event.reason[:200],
        "count": event.count,
        "model": event.model[:12],
        "excerpt": _excerpt(event.excerpt),
        "verdict": verdict,
    }


def _requested(view: View, verb: str, body: bytes) -> Answer:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return refusal(400, "the body is not JSON")
    if not isinstance(asked, dict):
        return refusal(400, "the body is not a JSON object")
    response: Response = view.request(verb, asked)
    return Answer(msgspec.json.encode(response), 200 if response.status == "ok" else 409)


def _troubles(stream: str, happened: list[EventPayload], said: Mapping[str, str]) -> list[dict[str, Any]]:
    """What lasts and is no anomaly, newest first."""
    return [
        {"type": event.type, "id": event.id, "since_ms": _ms(event.since_ns), "reason": event.reason[:200]}
        | {"channels": [share.channel for share in event.channels[:3]]}
        for event in happened
        if event.stream == stream and event.type in OPEN_TYPES and event.until_ns is None and event.id not in said
    ]


def _mark(happened: list[EventPayload], said: Mapping[str, str]) -> str:
    """Another one when /api/episodes has something new to say."""
    return f"{zlib.crc32(repr(([event.record for event in happened], sorted(said.items()))).encode()):08x}"


def _drawn(view: View, stream: str) -> dict[str, Any] | None:
    history: History | None = view.history(stream)
    if history is None:
        return None
    score_ns, score = _highest(history.time_ns, history.score)
    _, anomaly = _highest(history.time_ns, history.anomaly)
    threshold = history.threshold_score if np.isfinite(history.threshold_score) else None
    signal_ns, signal = _extremes(history.signal_ns, history.signal.astype(np.float64))
    return {
        "score": {
            "from_ms": _ms(int(score_ns[0])) if len(score_ns) else None,
            "to_ms": _ms(int(score_ns[-1])) if len(score_ns) else None,
            "x": _places(score_ns),
            "threshold": threshold,
            "anomaly": _runs(anomaly > 0),
            **_levels(score, at_least=threshold),
        },
        "signal": {
            "from_ms": _ms(int(signal_ns[0])) if len(signal_ns) else None,
            "to_ms": _ms(int(signal_ns[-1])) if len(signal_ns) else None,
            "x": _places(signal_ns),
            "channels": [_levels(row) | {"last": _last(whole)} for row, whole in zip(signal, history.signal, strict=True)],
        },
    }


def _excerpt(excerpt: Excerpt | None) -> dict[str, Any] | None:
    if excerpt is None:
        return None
    found = []
    for name, values in list(excerpt.channels.items())[:EXCERPT_CHANNELS]:
        row = np.array([np.nan if value is None else value for value in values], np.float64)
        _, thinned = _extremes(np.arange(len(row), dtype=np.int64), row[None], EXCERPT_POINTS)
        found.append({"name": name, **_levels(thinned[0])})
    length = max((len(values) for values in excerpt.channels.values()), default=0)
    return {"span_s": excerpt.step_ns * max(length - 1, 0) / 1e9, "channels": found}


def _highest(time_ns: Int64, values: Any) -> tuple[Int64, Float64]:
    """At most SCORE_POINTS of (P,) values, each the highest of a few."""
    values = np.asarray(values, np.float64)
    if (share := -(-len(values) // SCORE_POINTS)) <= 1:
        return time_ns, values
    starts = np.arange(0, len(values), share)
    return time_ns[np.minimum(starts + share - 1, len(values) - 1)], np.fmax.reduceat(values, starts)


def _extremes(time_ns: Int64, x: Float64, points: int = SIGNAL_POINTS) -> tuple[Int64, Float64]:
    """At most `points` of the S in (C, S), lowest and highest of each stretch: a spike of one sample is still seen."""
    if x.shape[1] <= points:
        return time_ns, x
    share = -(-2 * x.shape[1] // points)
    starts = np.arange(0, x.shape[1], share)
    both = np.stack([np.fmin.reduceat(x, starts, axis=1), np.fmax.reduceat(x, starts, axis=1)], axis=2)
    middle = np.minimum(starts + share // 2, x.shape[1] - 1)
    return np.stack([time_ns[starts], time_ns[middle]], axis=1).ravel(), both.reshape(len(x), -1)


def _places(time_ns: Int64) -> list[int]:
    """Where each stands between the first and the last, 0 … LEVELS."""
    if not len(time_ns):
        return []
    span = max(int(time_ns[-1] - time_ns[0]), 1)
    places: list[int] = ((time_ns - time_ns[0]) / span * LEVELS).round().astype(np.int64).clip(0, LEVELS).tolist()
    return places


def _levels(row: Float64, at_least: float | None = None) -> dict[str, Any]:
    """Heights in the picture, -1 where there is none, and the values at its bottom and top; `at_least` is in it."""
    known = row[np.isfinite(row)]
    if not len(known):
        return {"low": None, "high": None, "y": [-1] * len(row)}
    low, high = float(known.min()), float(known.max())
    if at_least is not None:
        low, high = min(low, at_least), max(high, at_least)
    with np.errstate(invalid="ignore", over="ignore"):
        # Halves: the span of two floats may be more than a float.
        place = (row / 2 - low / 2) / ((high / 2 - low / 2) or 1.0) if high > low else np.where(np.isfinite(row), 0.5, row)
        y = np.where(np.isfinite(row), (place * LEVELS).round(), -1).astype(np.int64)
    return {"low": _short(low), "high": _short(high), "y": y.tolist()}


def _last(row: Any) -> float | None:
    known = row[np.isfinite(row)]
    return _short(float(known[-1])) if len(known) else None


def _runs(active: Any) -> list[list[int]]:
    """[first, last] index of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [[int(first), int(end) - 1] for first, end in edges.reshape(-1, 2)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _ms(time_ns: int | None) -> int | None:
    return None if time_ns is None else time_ns // 1_000_000
