"""What the device's page costs, and how it looks: python -m benchmarks.page [--pictures docs/images]

Served from a made-up device with 8 streams of 8 channels; asked as the page asks. The pictures are taken with the system's
Chromium.
"""

import argparse
import gzip
import json
import shutil
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.config import WebConfig
from edge.delivery.topics import (
    ChannelInfo,
    ClockHealth,
    EventPayload,
    HealthPayload,
    InfoPayload,
    ModelInfo,
    MqttHealth,
    Response,
    StatePayload,
    StreamHealth,
    rfc3339,
)
from edge.event import EventType, Excerpt, Share
from edge.operating.view import History, Learning, Situation
from edge.operating.web import Page

CHANNELS = (
    ("vibration", "m/s²"),
    ("current", "A"),
    ("pressure", "bar"),
    ("flow", "l/min"),
    ("temperature", "°C"),
    ("noise", "dB"),
    ("torque", "Nm"),
    ("speed", "1/min"),
)
SECOND, MINUTE = 1_000_000_000, 60_000_000_000


class MadeView:
    """A device that is made up: everything is as usual until a test or a picture says otherwise. Keeps what it is asked."""

    def __init__(
        self,
        streams: tuple[str, ...] = ("pump",),
        channels: tuple[tuple[str, str], ...] = CHANNELS[:4],
        now_ns: int | None = None,
    ) -> None:
        self.node = "pump-7"
        self.now_ns = time.time_ns() if now_ns is None else now_ns
        self.channels = channels
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.answer = Response(status="ok", data={})
        self.health_now = HealthPayload(
            time=rfc3339(self.now_ns),
            time_ns=self.now_ns,
            uptime_s=11 * 86400.0,
            mqtt=MqttHealth(connected=True, queued=0, published=1204, dropped=0, parked=0),
            streams={name: self.stream_health() for name in streams},
            clock=ClockHealth(synced=True),
            cpu=0.07,
            rss=61_000_000,
            temperature=48.2,
            disk_written_bytes=41_000_000,
        )
        self.states_now = {name: self.state() for name in streams}
        self.situations_now = {name: Situation(last_sample_ns=self.now_ns) for name in streams}
        self.happened: list[EventPayload] = []
        self.said: dict[str, str] = {}
        self.histories: dict[str, History] = {name: self.drawn(seed) for seed, name in enumerate(streams)}

    # View.

    def info(self) -> InfoPayload:
        return InfoPayload(
            node=self.node,
            versions={"amiss": "0.1.0"},
            model=ModelInfo(digest="9f2c" * 16, name="pump", version="3"),
            channels=tuple(ChannelInfo(name=name, unit=unit) for name, unit in self.channels),
            config={},
        )

    def health(self) -> HealthPayload:
        return self.health_now

    def states(self) -> dict[str, StatePayload]:
        return self.states_now

    def situations(self) -> dict[str, Situation]:
        return self.situations_now

    def history(self, stream: str) -> History | None:
        return self.histories.get(stream)

    def episodes(self) -> list[EventPayload]:
        return self.happened

    def verdicts(self) -> dict[str, str]:
        return self.said

    def request(self, verb: str, body: Mapping[str, Any]) -> Response:
        self.asked.append((verb, body))
        if self.answer.status == "ok" and verb == "feedback" and "id" in body:
            if body["verdict"] == "undo":
                self.said.pop(str(body["id"]), None)
            else:
                self.said[str(body["id"])] = str(body["verdict"])
        return self.answer

    # What can be made to happen.

    @staticmethod
    def stream_health(online: bool = True) -> StreamHealth:
        return StreamHealth(
            online=online, samples=95_040_000, windows=1_485_000, events=3, filled=12, lost=0, reopened=1, rejected=4
        )

    def state(self, anomaly: bool = False, ago_s: float = 0, top: tuple[str, ...] = ()) -> StatePayload:
        return StatePayload(
            time=rfc3339(self.now_ns),
            time_ns=self.now_ns,
            anomaly=anomaly,
            score=6.2 if anomaly else 0.3,
            p_value=0.0004 if anomaly else 0.41,
            threshold=0.001,
            model="9f2c" * 16,
            since=rfc3339(self.now_ns - int(ago_s * SECOND)) if anomaly else None,
            top_channels=top or tuple(name for name, _ in self.channels[:3]),
            time_quality="synced",
        )

    def drawn(self, seed: int = 0, *, amiss_s: float = 0, points: int = 300) -> History:
        """Ten minutes of score, the last `amiss_s` of them strange, and four seconds of signal at 100 Hz."""
        chance = np.random.default_rng(seed)
        time_ns = self.now_ns - np.arange(points, dtype=np.int64)[::-1] * (10 * MINUTE // points)
        smooth = np.convolve(chance.normal(size=points + 8), np.ones(9) / 3, "valid")
        score = (0.2 + 0.35 * smooth).astype(np.float32)
        strange = time_ns > self.now_ns - int(amiss_s * SECOND)
        score[strange] += np.minimum(np.arange(np.count_nonzero(strange)) * 0.4, 5).astype(np.float32)
        steps = 400
        t = np.arange(steps) / 100
        rows = []
        for i in range(len(self.channels)):
            row = (
                np.sin(2 * np.pi * (0.9 + 0.37 * i) * t + i)
                + 0.25 * np.sin(2 * np.pi * (5 + i) * t)
                + chance.normal(0, 0.12, steps)
            )
            if amiss_s and i == 0:
                row += 2.5 * np.sign(np.sin(2 * np.pi * 3.1 * t)) * np.exp(-((t * 3.1 % 0.5) ** 2) * 30)
            rows.append(2.0 + i * 7 + (0.4 + 0.3 * i) * row)
        return History(
            time_ns=time_ns,
            score=score,
            p_value=np.exp(-np.maximum(score, 0).astype(np.float64)),
            anomaly=strange & (score > 2.4),
            threshold_score=2.4,
            signal_ns=self.now_ns - np.arange(steps, dtype=np.int64)[::-1] * (SECOND // 100),
            signal=np.array(rows, np.float32),
        )

    def event(
        self,
        type: EventType,
        episode: int,
        ago_s: float,
        lasted_s: float | None = None,
        *,
        stream: str = "pump",
        reason: str = "",
        channels: tuple[tuple[str, float], ...] = (),
        record: str | None = None,
        points: int = 96,
    ) -> EventPayload:
        since_ns = self.now_ns - int(ago_s * SECOND)
        until_ns = None if lasted_s is None else since_ns + int(lasted_s * SECOND)
        time_ns = self.now_ns if until_ns is None else until_ns
        t = np.arange(points) / points
        glance = {
            name: tuple(float(value) for value in 2 + np.sin(20 * t + i) + (t > 0.6) * share * 3 * np.sin(90 * t))
            for i, (name, share) in enumerate(channels[:3])
        }
        judged = type.startswith("anomaly")
        return EventPayload(
            id=f"{self.node}-1f2e3d4c-{stream}-{episode}",
            record=record or f"{self.node}-1f2e3d4c-{stream}-{episode}-{type}",
            type=type,
            stream=stream,
            time=rfc3339(time_ns),
            time_ns=time_ns,
            since=rfc3339(since_ns),
            since_ns=since_ns,
            duration_s=(time_ns - since_ns) / 1e9,
            historical=False,
            until=None if until_ns is None else rfc3339(until_ns),
            until_ns=until_ns,
            score=6.2 if judged else None,
            p_value=0.00008 if judged else None,
            threshold=0.001 if judged else None,
            channels=tuple(Share(name, share) for name, share in channels),
            model="9f2c" * 16,
            reason=reason,
            excerpt=Excerpt(since_ns, SECOND // 50, glance) if glance else None,
        )

    def something_amiss(self, stream: str = "pump") -> None:
        top = ("vibration", "current", "pressure")
        self.states_now[stream] = self.state(anomaly=True, ago_s=140, top=top)
        self.histories[stream] = self.drawn(1, amiss_s=150)
        self.happened.insert(
            0,
            self.event(
                "anomaly_updated",
                9,
                140,
                stream=stream,
                channels=(("vibration", 0.71), ("current", 0.18), ("pressure", 0.08), ("flow", 0.03)),
            ),
        )

    def some_past(self, stream: str = "pump") -> None:
        """Earlier episodes, newest first."""
        self.happened += [
            self.event(
                "anomaly_ended", 7, 7200, 310, stream=stream, channels=(("current", 0.58), ("vibration", 0.33), ("flow", 0.09))
            ),
            self.event("gap", 6, 30_000, 42, stream=stream, reason="silence"),
            self.event("sensor_fault", 5, 60_000, 900, stream=stream, reason="stuck", channels=(("flow", 1.0),)),
        ]


def eight() -> MadeView:
    """The largest device that one core is meant for, with a hundred episodes."""
    names = tuple(f"machine-{i + 1}" for i in range(8))
    view = MadeView(names, CHANNELS)
    blame = tuple((name, round(0.3 / (i + 1), 3)) for i, (name, _) in enumerate(CHANNELS))
    view.happened = [
        view.event("anomaly_ended", 200 - i, 600.0 * i, 90, stream=names[i % 8], channels=blame) for i in range(100)
    ]
    return view


def measure(repeats: int = 200) -> dict[str, Any]:
    view = eight()
    page = Page(WebConfig(port=0), view)
    page.start()
    found: dict[str, Any] = {}
    names = list(view.histories)
    asked = {
        "page": "",
        "now, nothing drawn": "api/now",
        "now, 2 streams drawn": f"api/now?streams={','.join(names[:2])}",
        "now, 8 streams drawn": f"api/now?streams={','.join(names)}",
        "episodes, 12": "api/episodes?limit=12",
        "episodes, 100": "api/episodes",
    }
    try:
        for what, path in asked.items():
            body = urllib.request.urlopen(page.url + path).read()
            took, used = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                urllib.request.urlopen(page.url + path).read()
            took, used = time.perf_counter() - took, time.process_time() - used
            found[what] = {
                "bytes": len(body),
                "gzip_bytes": len(gzip.compress(body, 6)),
                "ms": round(took / repeats * 1e3, 2),
                "cpu_ms": round(used / repeats * 1e3, 2),
            }
    finally:
        page.close()
    return found


def pictures(folder: Path) -> list[Path]:
    """Chromium looks at the page in several situations."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    made: list[Path] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def take(name: str, view: MadeView, width: int, height: int, scheme: str = "light", press: str = "") -> None:
            page = Page(WebConfig(port=0), view)
            page.start()
            try:
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if scheme == "dark" else "light",
                    timezone_id="Europe/Berlin",
                    locale="en-GB",
                    reduced_motion="reduce",
                )
                tab = context.new_page()
                tab.goto(page.url)
                tab.wait_for_selector("article .line[d^=M]", state="attached")
                if press:
                    tab.click(press)
                    tab.evaluate("scrollTo(0, 0)")
                tab.wait_for_timeout(300)
                made.append(folder / f"page-{name}.png")
                tab.screenshot(path=made[-1])
                Image.open(made[-1]).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(made[-1], optimize=True)
                context.close()
            finally:
                page.close()

        at_ns = 1_780_400_580 * SECOND  # so that a picture taken again is the same
        view = MadeView(now_ns=at_ns)
        view.some_past()
        take("calm", view, 1100, 900)
        view.something_amiss()
        take("amiss", view, 1100, 1180)
        take("telephone", view, 390, 844)
        view = MadeView(("pump", "fan", "press", "mixer"), CHANNELS[:3], now_ns=at_ns)
        view.some_past()
        view.something_amiss("fan")
        view.health_now = msgspec.structs.replace(
            view.health_now, streams=view.health_now.streams | {"press": view.stream_health(False)}
        )
        view.situations_now["press"] = Situation(last_sample_ns=at_ns - 7 * MINUTE)
        view.situations_now["mixer"] = Situation(
            last_sample_ns=at_ns, learning=Learning(True, 0.3, 42 * 60.0), can_roll_back=True
        )
        take("dark", view, 1100, 1000, "dark", press="article[data-stream=mixer] summary")
        browser.close()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="take them into this folder instead of measuring")
    chosen = parser.parse_args()
    if chosen.pictures:
        for path in pictures(chosen.pictures):
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    else:
        print(json.dumps(measure(), indent=2))


if __name__ == "__main__":
    main()
