"""A real Chromium, shut off from the network: what it would have asked for is written down."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROSE = "p, li, dt, dd, h1, h2, h3, th, td, caption, figcaption, summary, a, svg text"


@contextmanager
def browser() -> Iterator[Browser]:
    """Fails, and does not skip, where none is installed: without it nobody has seen the page."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise AssertionError("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as play:
        # Chromium refuses to start as root with its sandbox; what it opens here is our own.
        started = play.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@dataclass
class Opened:
    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses other than the page's own that it asked for; none was answered."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on the console, exceptions."""


@contextmanager
def opened(on: Browser, at: Path | str, width: int, scheme: str = "light") -> Iterator[Opened]:
    """A file, or an address and what is below it, in a window `width` pixels wide; `scheme` is `light` or `dark`."""
    context = on.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    found, own = Opened(page), at.absolute().as_uri() if isinstance(at, Path) else at
    page.on("console", lambda message: found.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))

    def answer(route: Route) -> None:
        asked = route.request.url
        if asked == own or (not isinstance(at, Path) and asked.startswith(own)):
            route.continue_()
        else:
            found.requests.append(asked)
            route.abort()

    page.route("**/*", answer)
    page.goto(own)
    yield found
    context.close()


def too_wide(page: Page) -> list[str]:
    """What reaches beyond the right edge of the page, and is not in a box of its own that scrolls."""
    found: list[str] = page.evaluate(
        """() => {
            const edge = document.documentElement.clientWidth + 0.5
            const scrolls = e => e && e !== document.body && e !== document.documentElement &&
                (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement))
            const wide = [...document.body.querySelectorAll('*')]
                .filter(e => e.getBoundingClientRect().right > edge && !scrolls(e.parentElement))
                .map(e => e.tagName + ': ' + e.textContent.slice(0, 40))
            if (document.documentElement.scrollWidth > document.documentElement.clientWidth) wide.push('the page scrolls')
            return wide
        }"""
    )
    return found


def faint(page: Page, least: float = 4.5, texts: str = PROSE) -> list[str]:
    """Visible texts whose contrast with what is behind them is below `least` (WCAG 2.2, 1.4.3)."""
    found: list[str] = page.evaluate(
        """([selector, least]) => {
            const rgb = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number)
            const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
            const behind = e => {
                for (; e; e = e.parentElement) {
                    const colour = rgb(getComputedStyle(e).backgroundColor)
                    if ((colour[3] ?? 1) > 0) return colour
                }
                return [255, 255, 255]
            }
            return [...document.querySelectorAll(selector)].filter(e => e.checkVisibility() && e.textContent.trim()).map(e => {
                const style = getComputedStyle(e)
                const a = light(rgb(e instanceof SVGElement ? style.fill : style.color)), b = light(behind(e))
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)]
            }).filter(([ratio]) => !(ratio >= least)).map(([ratio, text]) => ratio.toFixed(2) + ' ' + text)
        }""",
        [texts, least],
    )
    return found


def crowded(page: Page, smallest: float = 9.0) -> list[str]:
    """Texts of plots that reach out of their plot, lie on another one, or are smaller than `smallest` pixels."""
    found: list[str] = page.evaluate(
        """smallest => [...document.querySelectorAll('figure > svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect(), name = svg.getAttribute('aria-label').slice(0, 40) + ': '
            const texts = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect(),
                parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)])
            const wrong = texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1 ||
                box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([text]) => name + text + ' is cut off')
            wrong.push(...texts.filter(([, , size]) => size < smallest).map(([text]) => name + text + ' is too small'))
            texts.forEach(([one, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
                if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
                    wrong.push(name + one + ' lies on ' + other)
            }))
            return wrong
        })""",
        smallest,
    )
    return found
