"""A page of ours as a program reads it."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "path", "rect", "circle", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th", "dd", "li"} & set(self.open):
            self.cells.add(data.strip())


def marked(value: Any, drawn: list[float]) -> Any:
    """Every number replaced by one that occurs nowhere else."""
    if isinstance(value, dict):
        return {key: marked(inner, drawn) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [marked(inner, drawn) for inner in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    drawn.append(100_003 + len(drawn) if isinstance(value, int) else round(0.2001 + 0.0001 * len(drawn), 4))
    return drawn[-1]
