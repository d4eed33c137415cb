"""The report as a person sees it: report.html from file:// in a real browser, wide and narrow, light, dark and on paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROSE, browser, crowded, faint, opened, too_wide
from made_report import made_report
from playwright.sync_api import Browser

from trainer.report import write

SECTIONS = (
    "What was found, and when",
    "The figures of each recording",
    "Beside simple methods",
    "Does it keep its promise?",
    "Does it blame the right channel?",
    "What sensors go through",
    "If some of the recordings had been faulty",
    "If somebody wanted to fool it",
    "What the model sees",
    "About this report",
)
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    write(out, *made_report())
    return out / "report.html"


def spoilt(html: Path, tmp_path: Path, more: str, *, policy: bool = True) -> Path:
    """The page with something added at its end; without `policy`, nothing forbids it to load."""
    text = html.read_text("utf-8")
    lines = [line for line in text.splitlines() if policy or "Content-Security-Policy" not in line]
    found = tmp_path / "spoilt.html"
    found.write_text("\n".join(lines).replace("</body>", f"{more}</body>"), "utf-8")
    return found


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_it_can_be_seen(chromium: Browser, html: Path, width: int, scheme: str) -> None:
    with opened(chromium, html, width, scheme) as seen:
        page = seen.page
        assert (seen.requests, seen.complaints) == ([], [])
        assert tuple(page.locator("h2").all_inner_texts()) == SECTIONS
        boxes = [plot.bounding_box() for plot in page.locator("figure > svg").all()]
        assert len(boxes) > 10
        assert all(box is not None and box["width"] > 300 and box["height"] > 100 for box in boxes)
        assert too_wide(page) == []
        assert crowded(page) == []
        assert page.locator(PROSE).count() > 200, "the control: there is text to look at"
        assert faint(page) == []
        assert "{" not in page.locator("body").inner_text(), "a placeholder that was never filled in"


def test_it_prints(chromium: Browser, html: Path) -> None:
    with opened(chromium, html, 718) as seen:  # the width of A4 between its margins
        hidden = seen.page.locator("details table").first
        assert not hidden.is_visible()
        seen.page.emulate_media(media="print")
        assert hidden.is_visible(), "on paper nobody can unfold it"
        assert too_wide(seen.page) == []
        assert seen.page.locator("nav").is_hidden()
        paper = seen.page.pdf(format="A4")
    assert paper.startswith(b"%PDF-")
    assert paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") > 3


def test_without_a_browser_nothing_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install chromium"), browser():
        pass


def test_a_page_that_asks_for_something_is_caught(chromium: Browser, html: Path, tmp_path: Path) -> None:
    image = '<img src="https://example.org/pixel.png" alt="">'
    with opened(chromium, spoilt(html, tmp_path, image, policy=False), 1280) as seen:
        assert seen.requests == ["https://example.org/pixel.png"]
        assert seen.complaints
    with opened(chromium, spoilt(html, tmp_path, image), 1280) as seen:
        assert seen.requests == [], "the page's own policy forbids it before the browser asks"
        assert "Content Security Policy" in seen.complaints[0]


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ('<p><span class="one">' + "too long " * 40 + "</span></p>", too_wide),
        ("<style>.many { grid-template-columns: 25rem }</style>", too_wide),
        ("<style>:root { --soft: #888 }</style>", faint),
        ("<style>figure > svg { min-width: 0 !important }</style>", crowded),
        ("<style>svg text { font-size: 40px }</style>", crowded),
    ],
)
def test_what_does_not_look_right_is_caught(chromium: Browser, html: Path, tmp_path: Path, more: str, where) -> None:  # type: ignore[no-untyped-def]
    with opened(chromium, spoilt(html, tmp_path, more), 390) as seen:
        assert where(seen.page) != []
