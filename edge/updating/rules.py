"""Which offer a device takes, and what time it is to take it by. No I/O, no clock; what does not hold raises.

Signatures, versions and hashes of metadata are TUF's to judge, before any of this. Then, in order:

 1. an offer is for this device when it names its node or its group, or nobody;
 2. one that is held is for whoever was asked to take that very number, not for who polls;
 3. its bundle is of the schema that this agent reads;
 4. it asks for no newer agent than this one;
 5. its channels are the sensor's: same names, same units, same order;
 6. its rate is the sensor's;
 7. one of its runtimes is installed;
 8. it is no larger than this device wants to fetch;
 9. its number is above the floor, which is the highest number that was ever committed here and never falls. So no replay
    of older metadata, however well signed, brings an older model; not even with TUF's own memory wiped;
10. its digest has not been found bad here: such a model is never tried again;
11. of what is left the highest number is taken; of equal numbers the smallest digest, so that devices agree;
12. the model that was committed last is not taken again under a higher number (`amiss publish --again`), unless its file is
    lost: then it may be fetched again, though it is not above the floor.

And of time:

13. metadata expires by the later of the clock and the newest signed time seen: a clock that is set back, or that starts in
    1970, does not revive what has expired;
14. what offline keys have signed is believed about time always; what the online key (timestamp) says only when it is not
    more than a day ahead of the clock: who steals that key cannot push the device into the future.

Expired metadata is stale: told, and nothing is taken from it. What runs goes on running.
"""

import math
from collections.abc import Collection, Iterable

import msgspec

from edge.errors import UnfitError
from edge.updating.offer import Facts, Offer

ONLINE_SLACK_S = 86400.0
"""Rule 14. Clocks without a battery are off by minutes, and time zones that were set wrong by hours."""
RATE_TOLERANCE = 1e-6
"""Relative. Rates are written by hand; two thirds of a hertz have no last digit."""


def fits(offer: Offer, facts: Facts, max_bytes: int | None = None) -> None:
    """Rules 1 to 8. Raises `UnfitError`, which names the first that does not hold."""
    what = f"model {offer.number} ({offer.name} {offer.version})"
    if (offer.devices or offer.groups) and facts.node not in offer.devices and (facts.group or None) not in offer.groups:
        raise UnfitError(f"{what} is for {_list((*offer.groups, *offer.devices))}, not for {facts.group or facts.node}")
    if offer.held and offer.number != facts.asked:
        raise UnfitError(f"{what} is rolled out in stages, and this device has not been asked to take it yet")
    if offer.schema != facts.schema:
        raise UnfitError(f"{what} is of bundle schema {offer.schema}; this agent reads schema {facts.schema}")
    if _version(offer.minimum_agent) > _padded(facts.agent):
        here = ".".join(map(str, facts.agent))
        raise UnfitError(f"{what} asks for agent {offer.minimum_agent} or newer; this is {here}: update amiss first")
    if offer.channels != facts.channels:
        theirs, ours = (
            [f"{c.name} [{c.unit}]" if c.unit else c.name for c in all_] for all_ in (offer.channels, facts.channels)
        )
        if sorted(theirs) == sorted(ours):
            raise UnfitError(f"{what} has the channels in another order: {_list(theirs)}; here they are {_list(ours)}")
        raise UnfitError(f"{what} is for channels {_list(theirs)}; here they are {_list(ours)}")
    if not math.isclose(offer.rate_hz, facts.rate_hz, rel_tol=RATE_TOLERANCE):
        raise UnfitError(f"{what} is for {offer.rate_hz:g} samples a second; here they are {facts.rate_hz:g}")
    if not set(offer.runtimes) & set(facts.runtimes):
        raise UnfitError(f"{what} runs with {_list(offer.runtimes)}; installed: {_list(facts.runtimes) or 'none'}")
    if max_bytes is not None and offer.size > max_bytes:
        raise UnfitError(f"{what} has {offer.size} bytes; `update.max_bytes` is {max_bytes}")


def choose(
    offers: Iterable[Offer],
    facts: Facts,
    floor: int,
    bad: Collection[str],
    *,
    max_bytes: int | None = None,
    active: str | None = None,
    lost: str | None = None,
) -> Offer | None:
    """Rules 9 to 12 on those that fit. `active`, `lost`: digest of the model of rule 12. None: there is nothing to take."""
    best: Offer | None = None
    for offer in offers:
        if offer.digest in bad or (offer.digest != lost and (offer.number <= floor or offer.digest == active)):
            continue
        try:
            fits(offer, msgspec.structs.replace(facts, asked=offer.number) if offer.digest == lost else facts, max_bytes)
        except UnfitError:
            continue
        if best is None or (-offer.number, offer.digest) < (-best.number, best.digest):
            best = offer
    return best


def reference_time(now_s: float, floor_s: float) -> float:
    """Rule 13: epoch seconds by which metadata has expired or not."""
    return max(now_s, floor_s)


def time_floor(floor_s: float, now_s: float, *, offline_s: float = 0.0, online_s: float = 0.0) -> float:
    """Rule 14: the newest signed time seen, with what was signed by offline keys and by the online one; epoch seconds."""
    believed = online_s if online_s <= reference_time(now_s, floor_s) + ONLINE_SLACK_S else 0.0
    return max(floor_s, offline_s, believed)


def _version(text: str) -> tuple[int, ...]:
    return _padded(tuple(int(part) for part in text.split(".")))


def _padded(version: tuple[int, ...]) -> tuple[int, ...]:
    return (*version, 0, 0, 0, 0)[:4]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
