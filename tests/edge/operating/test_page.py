"""The page as a person sees and uses it: in a real Chromium, wide and narrow, light and dark, with and without a token."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from browser import Opened, browser, faint, opened, too_wide
from playwright.sync_api import Browser, Page, expect

from benchmarks.page import CHANNELS, MINUTE, SECOND, MadeView
from edge.config import WebConfig
from edge.delivery.topics import ClockHealth, Response
from edge.operating import web
from edge.operating.view import Learning, Situation

TOKEN = "0123456789abcdef"
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>' + "W" * 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@dataclass
class Served:
    seen: Opened
    server: web.Page

    @property
    def page(self) -> Page:
        return self.seen.page


@contextlib.contextmanager
def served(on: Browser, view: MadeView, width: int = 390, scheme: str = "light", token: str | None = None) -> Iterator[Served]:
    """The page, drawn; at the end nothing was asked of anybody else, and nothing complained about but a refused token."""
    server = web.Page(WebConfig(port=0, token=token), view)
    server.start()
    try:
        with opened(on, server.url, width, scheme) as seen:
            expect(seen.page.locator("#link")).to_have_text("live")
            yield Served(seen, server)
            assert seen.requests == []
            assert [text for text in seen.complaints if "401" not in text and "409" not in text] == []
    finally:
        server.close()


def says(page: Page, stream: str = "pump"):  # type: ignore[no-untyped-def]
    return page.locator(f"article[data-stream={stream}] .says")


def everything() -> MadeView:
    """All that the page can show, at once."""
    names = ("pump", "fan", "press", "mixer", "drill", "saw", "lathe", "mill")
    view = MadeView(names, CHANNELS)
    view.some_past()
    view.something_amiss("fan")
    view.happened += [
        view.event("drift", 31, 900, stream="drill", reason="slow", channels=(("torque", 0.9), ("speed", 0.1))),
        view.event("sensor_fault", 32, 900, stream="saw", reason="stuck", channels=(("flow", 1.0),)),
        view.event("new_normal", 33, 900, stream="lathe"),
    ]
    view.said[view.happened[1].id] = "false_alarm"
    view.health_now = msgspec.structs.replace(
        view.health_now,
        streams=view.health_now.streams | {"press": view.stream_health(False)},
        clock=ClockHealth(synced=False),
        mqtt=msgspec.structs.replace(view.health_now.mqtt, connected=False, queued=12_345, parked=3),
    )
    view.situations_now["press"] = Situation(view.now_ns - 7 * MINUTE)
    view.situations_now["mixer"] = Situation(view.now_ns, learning=Learning(True, 0.3, 42 * 60.0))
    view.situations_now["mill"] = Situation(
        view.now_ns, view.now_ns + 60 * MINUTE, Learning(False, 1, 0, "fitted to 812 windows"), can_roll_back=True
    )
    return view


def wrong(page: Page) -> list[str]:
    """What somebody who does not see, does not use a mouse, or has large fingers would stumble over."""
    found: list[str] = page.evaluate(
        """() => {
            const wrong = [], all = [...document.querySelectorAll('*')], seen = e => e.checkVisibility()
            const by = e => document.getElementById(e.getAttribute('aria-labelledby'))
            const labels = e => [...(e.labels || [])].map(label => label.textContent).join('')
            const named = e => (e.getAttribute('aria-label') || e.textContent || labels(e) || by(e)?.textContent || '').trim()
            const tell = (selector, bad, what) => all.filter(e => e.matches(selector) && bad(e))
                .forEach(e => wrong.push(what + ': ' + (named(e) || e.outerHTML).slice(0, 60)))
            const ids = all.map(e => e.id).filter(Boolean)
            ids.filter((id, i) => ids.indexOf(id) !== i).forEach(id => wrong.push('twice: ' + id))
            tell('[aria-labelledby]', e => !by(e), 'labelled by nothing')
            tell('button, input, summary, section, article, dialog, fieldset', e => seen(e) && !named(e), 'without a name')
            tell('[role=img], [role=progressbar]', e => seen(e) && !e.getAttribute('aria-label'), 'without a name')
            tell('svg', e => !e.hasAttribute('aria-hidden') && e.getAttribute('role') !== 'img', 'a picture that is none')
            tell('button, input, summary', e => seen(e) && e.tabIndex < 0, 'out of reach')
            tell('button, input, summary', e => {
                const box = e.getBoundingClientRect()
                return seen(e) && (box.height < 44 || box.width < 44)
            }, 'small')
            const text = e => [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
            tell('body *', e => seen(e) && text(e) && parseFloat(getComputedStyle(e).fontSize) < 12, 'tiny')
            let level = 0
            document.querySelectorAll('h1, h2, h3').forEach(e => {
                if (Number(e.tagName[1]) > level + 1) wrong.push('a heading is skipped before ' + e.textContent)
                level = Number(e.tagName[1])
            })
            if (!document.documentElement.lang) wrong.push('no language')
            return wrong
        }"""
    )
    return found


TEXTS = "p, li, dt, dd, h1, h2, h3, span, legend, button, summary, figcaption, label, footer, .given"


def pale(page: Page) -> list[str]:
    return faint(page, texts=TEXTS)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_everybody_can_read_it(chromium: Browser, width: int, scheme: str) -> None:
    with served(chromium, everything(), width, scheme) as it:
        for summary in it.page.locator("summary").all():
            summary.click()
        expect(it.page.locator("#episodes > li")).to_have_count(7)
        assert too_wide(it.page) == []
        assert wrong(it.page) == []
        assert pale(it.page) == []
        assert it.page.locator(TEXTS).count() > 150, "the control: there is text to look at"


@pytest.mark.parametrize(
    ("spoil", "look"),
    [
        ("button { min-height: 0; padding: 0; line-height: 1 }", wrong),
        (".small { font-size: 11px }", wrong),
        (":root { --soft: #aaa }", pale),
        (".legend, legend { color: #999 }", pale),
        (".channels { width: 600px }", too_wide),
    ],
)
def test_what_could_not_be_read_is_caught(chromium: Browser, spoil: str, look) -> None:  # type: ignore[no-untyped-def]
    with served(chromium, everything()) as it:
        it.page.locator("summary").first.click()
        it.page.evaluate(
            "css => { const sheet = new CSSStyleSheet(); sheet.replaceSync(css); document.adoptedStyleSheets.push(sheet) }",
            spoil,
        )
        assert look(it.page) != []


def test_each_status_is_said_in_words_and_with_a_sign_of_its_own(chromium: Browser) -> None:
    with served(chromium, everything()) as it:
        expected = {
            "pump": "Running as usual",
            "fan": "Something is amiss since",
            "press": "No data since",
            "mixer": "Learning, 42 min to go",
            "drill": "Slowly changing since",
            "saw": "The sensor looks faulty since",
            "lathe": "Running differently since",
            "mill": "Maintenance until",
        }
        for stream, words in expected.items():
            expect(says(it.page, stream)).to_contain_text(words)
        expect(says(it.page, "fan")).to_contain_text(": vibration")
        expect(it.page.locator("#overall")).to_have_text("2 of 8 need a look")
        expect(it.page).to_have_title("⚠ pump-7 · amiss")
        signs = it.page.locator(".status").evaluate_all(
            "those => those.map(e => [e.className, e.querySelector('path').getAttribute('d')])"
        )
        for sign in ("status good", "status bad", "status watch", "status idle"):
            own = {path for look, path in signs if look == sign}
            assert own.isdisjoint(path for look, path in signs if look != sign), "colour is never the only sign"


def test_it_follows_what_happens(chromium: Browser) -> None:
    view = MadeView()
    with served(chromium, view) as it:
        expect(says(it.page)).to_have_text("Running as usual")
        expect(it.page.locator("#calm")).to_contain_text("Nothing yet")
        before = it.page.locator("svg.big .line").get_attribute("d")
        view.something_amiss()
        expect(says(it.page)).to_contain_text("Something is amiss since")
        expect(it.page.locator("#episodes > li")).to_have_count(1)
        expect(it.page.locator("#episodes h3")).to_have_text("Something is amiss: vibration")
        expect(it.page.locator(".blame .share").first).to_have_text("71 %")
        expect(it.page.locator(".glances svg")).to_have_count(3)
        expect(it.page.locator(".channels .blamed .label")).to_have_text("▲ vibration")
        assert it.page.locator("svg.big .line").get_attribute("d") != before
        assert it.page.locator("svg.big .band").get_attribute("d")
        view.states_now["pump"] = view.state()
        view.happened[0] = view.event("anomaly_ended", 9, 140, 120, channels=(("vibration", 1.0),))
        expect(says(it.page)).to_have_text("Running as usual")
        expect(it.page.locator("#episodes h3")).to_have_text("Something was amiss: vibration")


def test_a_false_alarm_is_told_shown_and_taken_back(chromium: Browser) -> None:
    view = MadeView()
    view.something_amiss()
    episode = view.happened[0].id
    with served(chromium, view) as it:
        it.page.get_by_role("button", name="False alarm").click()
        expect(it.page.locator("#episodes .outcome")).to_have_text("✓ Noted: a false alarm. The like will not be raised again.")
        expect(it.page.locator("#episodes .given")).to_have_text("✓ You said: a false alarm")
        assert view.asked == [("feedback", {"id": episode, "verdict": "false_alarm"})]
        it.page.get_by_role("button", name="Undo").click()
        expect(it.page.get_by_role("button", name="False alarm")).to_be_visible()
        assert view.asked[1:] == [("feedback", {"id": episode, "verdict": "undo"})]


def test_why_something_was_refused_is_shown(chromium: Browser) -> None:
    view = MadeView()
    view.something_amiss()
    view.answer = Response(status="error", error="the memory is full; take something back first")
    with served(chromium, view) as it:
        it.page.get_by_role("button", name="This is normal now").click()
        expect(it.page.locator("#episodes .outcome")).to_have_text(
            "That did not work: the memory is full; take something back first"
        )
        assert view.asked == [("feedback", {"id": view.happened[0].id, "verdict": "new_normal"})]


def test_maintenance_and_learning(chromium: Browser) -> None:
    view = MadeView()
    with served(chromium, view) as it:
        page = it.page
        page.locator("summary").click()
        expect(page.get_by_role("button", name="End it now")).to_be_hidden()
        page.get_by_role("button", name="1 hour").click()
        expect(page.locator("article .outcome")).to_contain_text("Maintenance has begun")
        view.situations_now["pump"] = Situation(view.now_ns, view.now_ns + 60 * MINUTE)
        expect(says(page)).to_contain_text("Maintenance until")
        page.get_by_role("button", name="End it now").click()
        expect(page.locator("article .outcome")).to_contain_text("Maintenance is over")
        view.situations_now["pump"] = Situation(view.now_ns)

        page.get_by_label("Minutes").fill("0")
        page.get_by_role("button", name="Start learning").click()
        page.get_by_label("Minutes").fill("45")
        page.get_by_role("button", name="Start learning").click()
        expect(page.locator("article .outcome")).to_contain_text("Learning has begun")
        view.situations_now["pump"] = Situation(view.now_ns, learning=Learning(True, 0.5, 1320.0))
        expect(says(page)).to_have_text("Learning, 22 min to go")
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
        page.get_by_role("button", name="Stop learning").click()
        expect(page.locator("article .outcome")).to_contain_text("Learning was stopped")
        view.situations_now["pump"] = Situation(view.now_ns, learning=Learning(False, 1, 0, "812 windows"), can_roll_back=True)
        expect(page.get_by_text("Last time: 812 windows")).to_be_visible()
        page.get_by_role("button", name="Go back to before").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Go back to before").click()
        page.get_by_role("button", name="Go back", exact=True).click()
        expect(page.locator("article .outcome")).to_contain_text("What was normal before counts again")
        assert view.asked == [
            ("maintenance", {"stream": "pump", "minutes": 60}),
            ("maintenance", {"stream": "pump", "off": True}),
            ("commission", {"stream": "pump", "minutes": 45}),
            ("commission", {"stream": "pump", "cancel": True}),
            ("commission", {"stream": "pump", "rollback": True}),
        ]


def test_the_token_is_asked_for_once(chromium: Browser) -> None:
    view = MadeView()
    view.something_amiss()
    with served(chromium, view, token=TOKEN) as it:
        page = it.page
        page.get_by_role("button", name="Confirmed").click()
        expect(page.get_by_role("dialog")).to_contain_text("Who asks?")
        page.get_by_role("textbox", name="Token").fill("something else")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("That was not the token")
        assert view.asked == []
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#episodes .given")).to_be_visible()
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_role("button", name="Confirmed")).to_be_visible()
        assert [body["verdict"] for _, body in view.asked] == ["confirmed", "undo"], "it was not asked for again"
        page.reload()
        page.get_by_role("button", name="Confirmed").click()
        expect(page.locator("#episodes .given")).to_be_visible()
        assert page.evaluate("[Object.keys(localStorage).length, document.cookie]") == [0, ""], "gone with the tab"


def test_who_has_no_token_only_looks(chromium: Browser) -> None:
    view = MadeView()
    view.something_amiss()
    with served(chromium, view, token=TOKEN) as it:
        it.page.get_by_role("button", name="False alarm").click()
        it.page.get_by_role("button", name="Cancel").click()
        expect(it.page.get_by_role("button", name="False alarm")).to_be_enabled()
        expect(it.page.locator("#episodes .outcome")).to_have_text("")
        assert view.asked == []


def test_what_comes_from_the_device_stays_text(chromium: Browser) -> None:
    view = MadeView(channels=((NASTY, NASTY), ("current", "A")))
    view.something_amiss()
    view.states_now["pump"] = view.state(anomaly=True, ago_s=60, top=(NASTY,))
    view.happened = [view.event("anomaly_updated", 1, 60, reason=NASTY, channels=((NASTY, 0.9), ("current", 0.1)))]
    view.situations_now["pump"] = Situation(view.now_ns, learning=Learning(False, 1, 0, NASTY))
    view.answer = Response(status="error", error=NASTY)
    with served(chromium, view) as it:
        expect(says(it.page)).to_contain_text("<img src=x")
        it.page.locator("summary").click()
        it.page.get_by_role("button", name="False alarm").click()
        expect(it.page.locator("#episodes .outcome")).to_contain_text("<script>")
        assert it.page.locator("img, main script").count() == 0
        assert it.page.title() == "⚠ pump-7 · amiss"
        assert too_wide(it.page) == []


def test_even_if_it_were_made_html_nothing_would_run(chromium: Browser) -> None:
    """The policy holds where the script would have made a mistake; the complaint is the control that it was tried."""
    server = web.Page(WebConfig(port=0), MadeView())
    server.start()
    try:
        with opened(chromium, server.url, 390) as seen:
            expect(seen.page.locator("#link")).to_have_text("live")
            seen.page.evaluate(
                "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"document.title=666\">')"
            )
            seen.page.wait_for_timeout(200)
            assert seen.page.title() != "666"
            assert any("Content Security Policy" in text for text in seen.complaints)
    finally:
        server.close()


def test_a_device_that_is_gone_is_told_and_found_again(chromium: Browser) -> None:
    view = MadeView()
    server = web.Page(WebConfig(port=0), view)
    server.start()
    port = int(server.url.rstrip("/").rsplit(":", 1)[1])
    try:
        with opened(chromium, server.url, 390) as seen:
            expect(seen.page.locator("#link")).to_have_text("live")
            server.close()
            expect(seen.page.locator("#lost")).to_contain_text("The device does not answer since", timeout=15_000)
            expect(seen.page.locator("#link")).to_have_text("no answer")
            assert pale(seen.page) == []
            server = web.Page(WebConfig(port=port), view)
            server.start()
            expect(seen.page.locator("#lost")).to_be_hidden(timeout=15_000)
            expect(seen.page.locator("#link")).to_have_text("live")
    finally:
        server.close()


def test_only_what_is_in_sight_is_asked_for(chromium: Browser) -> None:
    view = MadeView(tuple(f"machine-{i}" for i in range(8)), CHANNELS)
    drawn: list[str] = []
    history = view.history
    view.history = lambda stream: drawn.append(stream) or history(stream)  # type: ignore[method-assign,func-returns-value]
    with served(chromium, view) as it:
        it.page.wait_for_selector("article[data-stream=machine-0] svg.big .line[d^=M]")
        it.page.wait_for_timeout(1200)
        drawn.clear()
        it.page.wait_for_timeout(1300)
        assert "machine-0" in drawn
        assert "machine-7" not in drawn
        it.page.locator("article[data-stream=machine-7]").scroll_into_view_if_needed()
        it.page.wait_for_selector("article[data-stream=machine-7] svg.big .line[d^=M]")
        assert "machine-7" in drawn


def test_the_keyboard_reaches_and_keeps_its_place(chromium: Browser) -> None:
    view = MadeView()
    view.something_amiss()
    with served(chromium, view) as it:
        expect(it.page.get_by_role("button", name="False alarm")).to_be_visible()
        for _ in range(20):
            it.page.keyboard.press("Tab")
            if it.page.evaluate("document.activeElement.textContent") == "False alarm":
                break
        assert it.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        view.happened[0] = msgspec.structs.replace(view.happened[0], record="newer")
        it.page.wait_for_timeout(1500)
        assert it.page.evaluate("document.activeElement.closest('li')?.dataset.id") == view.happened[0].id
        it.page.keyboard.press("Enter")
        expect(it.page.locator("#episodes .given")).to_be_visible()


def test_an_empty_device_is_a_calm_one(chromium: Browser) -> None:
    view = MadeView()
    view.states_now, view.histories, view.situations_now = {}, {}, {"pump": Situation()}
    view.health_now = msgspec.structs.replace(view.health_now, streams={}, clock=None, cpu=None, rss=None, temperature=None)
    with served(chromium, view) as it:
        expect(says(it.page)).to_have_text("Starting")
        view.health_now = msgspec.structs.replace(view.health_now, streams={"pump": view.stream_health(False)})
        expect(says(it.page)).to_have_text("No data yet")
        whole = view.drawn()
        view.histories["pump"] = replace(whole, threshold_score=float("inf"), signal=np.full_like(whole.signal, np.nan))
        view.states_now["pump"] = view.state()
        view.health_now = msgspec.structs.replace(view.health_now, streams={"pump": view.stream_health()})
        expect(says(it.page)).to_have_text("Running as usual")
        expect(it.page.locator(".channels .now").first).to_have_text("– m/s²")


def test_times_are_those_of_the_persons_zone(chromium: Browser) -> None:
    view = MadeView(now_ns=1_780_400_580 * SECOND)  # 11:43 UTC
    view.situations_now["pump"] = Situation(view.now_ns, view.now_ns + 17 * MINUTE)
    server = web.Page(WebConfig(port=0), view)
    server.start()
    try:
        for zone, there in (("Europe/Berlin", "14:00"), ("Asia/Kolkata", "17:30")):
            page = chromium.new_context(timezone_id=zone, locale="en-GB").new_page()
            page.goto(server.url)
            expect(says(page)).to_have_text(f"Maintenance until {there}")
            page.context.close()
    finally:
        server.close()


def test_a_hidden_tab_asks_seldom(chromium: Browser) -> None:
    view = MadeView()
    asked: list[float] = []
    info = view.info
    view.info = lambda: asked.append(time.monotonic()) or info()  # type: ignore[method-assign,func-returns-value]
    with served(chromium, view) as it:
        asked.clear()
        it.page.wait_for_timeout(2200)
        assert len(asked) >= 2
        it.page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        it.page.wait_for_timeout(1500)
        asked.clear()
        it.page.wait_for_timeout(2200)
        assert len(asked) == 0
        it.page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        it.page.wait_for_timeout(500)
        assert len(asked) >= 1
