"""What a repository says of a model, and what a device says of itself. Plain values; both sides import them.

An offer is signed: it travels as `{"amiss": …}` in the `custom` field of a target in TUF's targets metadata (`custom`,
`from_custom`; that JSON is not quite an Offer's).
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from edge.channel import ChannelSpec

Text = Annotated[str, Meta(max_length=200)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Version = Annotated[str, Meta(pattern=r"^\d{1,4}(\.\d{1,4}){0,3}$")]
Several = Annotated[tuple[Text, ...], Meta(max_length=256)]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One model in a repository. Fields may be added; a reader ignores those it does not know."""

    number: Annotated[int, Meta(ge=1, lt=2**53)]
    """Grows with every publish into a repository: 1, 2, 3 … It is what a device's floor counts."""
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(min_length=1, max_length=200)]
    schema: int
    """Of the bundle."""
    minimum_agent: Version
    channels: Annotated[tuple[ChannelSpec, ...], Meta(min_length=1, max_length=256)]
    """In the model's order."""
    rate_hz: Annotated[float, Meta(gt=0)]
    runtimes: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=16)]
    """What can run it, as the manifest of a bundle has them."""
    digest: Digest
    """SHA-256 of the file."""
    size: Annotated[int, Meta(ge=1)]
    """Bytes of the file."""
    groups: Several = ()
    devices: Several = ()
    """Who it is for: a device whose group or node is named. Both empty: everybody."""
    held: bool = False
    """Only for who is asked to take it, by its number: so a roll-out goes from stage to stage."""
    created: Text = ""
    """RFC 3339, UTC."""
    note: Annotated[str, Meta(max_length=2000)] = ""

    @property
    def path(self) -> str:
        """Of the target in the repository. What is no plain name of a file raises ValueError."""
        name = f"{self.name}-{self.version}.amiss"
        if not TARGET_PATH.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a file: letters, digits, and . _ + - after the first")
        return name


TARGET_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,190}\.amiss")
"""All that a target of ours may be called: it ends up in paths, addresses and topics."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is, as far as it decides which models are for it."""

    node: str
    group: str
    channels: tuple[ChannelSpec, ...]
    rate_hz: float
    """Of the model that runs: what its sensors send."""
    schema: int
    """Of bundles that this agent reads."""
    agent: tuple[int, ...]
    """Version of this agent."""
    runtimes: tuple[str, ...]
    """Those that are installed."""
    asked: int | None = None
    """The number of a held offer that it was asked to take."""


class _Custom(msgspec.Struct, frozen=True):
    amiss: Offer


def custom(offer: Offer) -> dict[str, object]:
    """The `custom` field of the target, as plain data. The rate is a string there: signed JSON knows no fractions."""
    return {"amiss": {**msgspec.to_builtins(offer), "rate_hz": repr(float(offer.rate_hz))}}


def from_custom(data: object) -> Offer:
    """Raises `msgspec.ValidationError` for what is none."""
    return msgspec.convert(data, _Custom, strict=False).amiss
