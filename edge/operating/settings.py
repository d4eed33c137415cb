"""What was said to a running agent and outlives it: alarm settings that replace the file's, maintenance, commissioning.

    <state>/settings.json

What is set here wins over device.toml until it is taken back; the agent says so at its start, so nobody edits a file in vain.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import ConfigError
from edge.files import at_once

log = logging.getLogger(__name__)


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """A commissioning that was asked for and is not over."""

    minutes: float
    trusted: bool = False


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Maintenance that was asked for."""

    until_ns: int
    """Epoch."""
    seconds: float
    """As long as it was to be."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    alarm: dict[str, Any] = {}
    """Keys of `[alarm]`."""
    maintenance: dict[str, Pause] = {}
    """By stream."""
    commission: dict[str, Learning] = {}
    """By stream."""


def load(folder: Path) -> Settings:
    """Empty where there are none, or none that can be read (which is told)."""
    file = folder / "settings.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except (OSError, msgspec.MsgspecError) as error:
        log.error("%s: cannot be read (%s); device.toml alone counts", file, error)
        return Settings()


def save(folder: Path, settings: Settings) -> None:
    """Raises `CannotCreateError`."""
    with at_once(folder / "settings.json") as draft:
        draft.write_bytes(msgspec.json.encode(settings))


def alarm_keys(asked: dict[str, Any]) -> dict[str, Any]:
    """`{"alarm.false_alarms": …}` → `{"false_alarms": …}`. Raises `ConfigError` for keys that cannot be changed at run time."""
    found = {}
    for key, value in asked.items():
        section, _, name = key.partition(".")
        if section != "alarm" or not name:
            raise ConfigError(f"`{key[:64]}` cannot be changed while the agent runs; keys that can begin with `alarm.`")
        found[name] = value
    return found
