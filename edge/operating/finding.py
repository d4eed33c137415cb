"""What an examination says of one thing: is it well, what does it mean, and which command mends it."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import AmissError

Severity = Literal["ok", "warning", "fault"]

_MARKS: dict[Severity, tuple[str, str]] = {"ok": ("ok", "32"), "warning": ("warning", "33"), "fault": ("FAULT", "31;1")}
"""What stands in the first column, and its ANSI colour."""


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    """The thing: `model`, `port of pump` …"""
    severity: Severity
    """`fault`: the agent cannot do its work; `warning`: it can, and something will go wrong some day."""
    message: str
    repair: str = ""
    """A command, or what to edit."""
    exit_code: int = 0


def ok(what: str, message: str) -> Finding:
    return Finding(what, "ok", message)


def warning(what: str, message: str, repair: str = "") -> Finding:
    return Finding(what, "warning", message, repair)


def fault(what: str, error: AmissError, repair: str = "") -> Finding:
    """Our errors say cause and cure in one line, with a semicolon between them."""
    cause, _, cure = str(error).partition("; ")
    return Finding(what, "fault", cause, repair or cure, error.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """Of the first fault: they are in the order of a start, and what comes later often follows from it. 0 without one."""
    return next((finding.exit_code for finding in findings if finding.severity == "fault"), 0)


def as_data(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "what": finding.what,
            "ok": finding.severity != "fault",
            "severity": finding.severity,
            "message": finding.message,
            "repair": finding.repair,
        }
        for finding in findings
    ]


def table(findings: Sequence[Finding], *, colour: bool = False, width: int = 100) -> list[str]:
    """Lines of at most `width` characters; but a repair is never broken, so that it can be copied."""
    longest = max((len(finding.what) for finding in findings), default=0)
    indent = " " * (longest + 11)
    lines = []
    for finding in findings:
        mark, ansi = _MARKS[finding.severity]
        cell = f"{mark:7}"
        shown = f"\033[{ansi}m{cell}\033[0m" if colour else cell
        first, *rest = textwrap.wrap(
            finding.message, max(40, width - len(indent)), break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines.append(f"{shown}  {finding.what:{longest}}  {first}".rstrip())
        lines += [f"{indent}{line}" for line in rest]
        if finding.repair:
            lines.append(f"{indent}→ {finding.repair}")
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _MARKS}
    faults, warnings = counts["fault"], counts["warning"]
    told = [
        f"{faults} fault{'' if faults == 1 else 's'}" if faults else "no fault",
        *([f"{warnings} warning{'' if warnings == 1 else 's'}"] if warnings else []),
        f"{counts['ok']} ok",
    ]
    return [*lines, "", ", ".join(told) + ("; mend the first fault first: others may follow from it" if faults > 1 else "")]
