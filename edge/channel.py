"""What a model or a sensor calls one of its values."""

import msgspec


class ChannelSpec(msgspec.Struct, frozen=True):
    name: str
    unit: str = ""
