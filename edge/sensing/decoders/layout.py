"""Which value on the wire is which channel of the model."""

from collections.abc import Sequence
from typing import Literal

from edge.errors import ConfigError

Clock = Literal["arrival", "sensor"]
"""Whose clock stamps the samples: this host's when they arrive, or the sensor's own."""

TIME = "time"
"""The column with the sensor's own clock; never a channel."""


def pick(columns: Sequence[str], channels: Sequence[str]) -> list[int]:
    """For each channel, in the model's order, the place of its value among the columns.

    Columns that the model does not know are dropped. Raises `ConfigError` when a channel is not among the columns or a
    name is there twice.
    """
    columns = list(columns)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ConfigError(f"columns: {', '.join(twice)} named twice")
    absent = [name for name in channels if name not in columns or name == TIME]
    if absent or not channels:
        raise ConfigError(
            f"columns: the model needs {', '.join(absent) or 'at least one channel'}, which the sensor does not send "
            f"(columns: {', '.join(columns)}); name the sensor's columns as the model's channels or take another model"
        )
    return [columns.index(name) for name in channels]
