"""Which offers are taken, rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_offer import offer

from edge.channel import ChannelSpec
from edge.errors import UnfitError
from edge.updating.offer import Facts, Offer
from edge.updating.rules import ONLINE_SLACK_S, choose, fits, reference_time, time_floor

DAY_S = 86400.0


def facts(**changes: object) -> Facts:
    plain: dict[str, object] = {
        "node": "pump-7",
        "group": "pumps",
        "channels": (ChannelSpec("x", "m/s2"), ChannelSpec("y", "m/s2")),
        "rate_hz": 12.5,
        "schema": 1,
        "agent": (0, 1, 0),
        "runtimes": ("onnxruntime",),
    }
    return Facts(**{**plain, **changes})  # type: ignore[arg-type]


def test_what_fits_fits() -> None:
    fits(offer(), facts(), max_bytes=12345)
    fits(offer(devices=("pump-7",)), facts(group=""))
    fits(offer(groups=("others", "pumps")), facts())
    fits(offer(minimum_agent="0.1"), facts())
    fits(offer(rate_hz=2 / 3), facts(rate_hz=0.6666667))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"devices": ("pump-8",)}, "is for pump-8, not for pumps"),
        ({"groups": ("fans",)}, "is for fans"),
        ({"schema": 2}, "schema 2; this agent reads schema 1"),
        ({"minimum_agent": "0.1.1"}, "asks for agent 0.1.1 or newer; this is 0.1.0"),
        ({"minimum_agent": "1"}, "asks for agent 1"),
        ({"channels": (ChannelSpec("x", "m/s2"),)}, "for channels x"),
        ({"channels": (ChannelSpec("y", "m/s2"), ChannelSpec("x", "m/s2"))}, "another order"),
        ({"channels": (ChannelSpec("x", "g"), ChannelSpec("y", "g"))}, r"x \[g\]"),
        ({"rate_hz": 12.6}, "12.6 samples a second; here they are 12.5"),
        ({"rate_hz": float("inf")}, "inf samples"),
        ({"runtimes": ("litert",)}, "runs with litert; installed: onnxruntime"),
        ({"size": 12346}, "max_bytes"),
        ({"held": True}, "rolled out in stages, and this device has not been asked"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UnfitError, match=reason):
        fits(offer(**changes), facts(), max_bytes=12345)
    assert choose([offer(**changes)], facts(), 0, (), max_bytes=12345) is None


def test_what_is_held_is_for_who_is_asked_to_take_it() -> None:
    held, older = offer(number=7, held=True, digest="a" * 64), offer(number=6, digest="b" * 64)
    assert choose([held, older], facts(), 0, ()) is older
    assert choose([held, older], facts(asked=7), 0, ()) is held
    assert choose([held, older], facts(asked=6), 0, ()) is older
    assert choose([held, older], facts(asked=7), 7, ()) is None, "to be asked lowers no floor"
    assert choose([held, older], facts(asked=7), 0, {held.digest}) is older, "nor is what was bad here tried again"
    assert choose([held], facts(), 7, (), lost=held.digest) is held, "one that runs here and was lost comes back"


def test_a_device_without_a_group_is_of_no_group_that_has_no_name() -> None:
    with pytest.raises(UnfitError):
        fits(offer(groups=("",)), facts(group=""))


@given(
    st.lists(st.builds(lambda n, d, fit: offer(number=n, digest=f"{d:064x}", schema=1 if fit else 2),
                       st.integers(1, 9), st.integers(0, 9), st.booleans())),
    st.integers(0, 9),
    st.sets(st.integers(0, 9)),
)  # fmt: skip
def test_the_highest_that_fits_above_the_floor_and_is_not_bad(offers: list[Offer], floor: int, bad: set[int]) -> None:
    wrong = {f"{d:064x}" for d in bad}
    chosen = choose(offers, facts(), floor, wrong)
    good = [o for o in offers if o.number > floor and o.digest not in wrong and o.schema == 1]
    assert (chosen is None) == (not good)
    if chosen is not None:
        assert chosen in good
        assert chosen.number == max(o.number for o in good)
        assert chosen == choose(offers[::-1], facts(), floor, wrong), "the order in a file decides nothing"


def test_only_the_very_model_that_was_lost_comes_back_from_the_floor() -> None:
    lost, older = offer(number=5, digest="aa" * 32), offer(number=4, digest="bb" * 32)
    assert choose([lost, older], facts(), 5, ()) is None
    assert choose([lost, older], facts(), 5, (), lost=lost.digest) == lost
    assert choose([lost], facts(), 5, (lost.digest,), lost=lost.digest) is None, "not when it is bad"


def test_what_runs_is_not_taken_again_under_another_number() -> None:
    runs, again, newer = (offer(number=n, digest=digest) for n, digest in ((5, "aa" * 32), (7, "aa" * 32), (6, "bb" * 32)))
    assert choose([again], facts(), 5, (), active=runs.digest) is None
    assert choose([again, newer], facts(), 5, (), active=runs.digest) == newer
    assert choose([again], facts(), 5, (), active=runs.digest, lost=runs.digest) == again
    assert choose([again], facts(), 6, (), active=newer.digest) == again, "a device that has left it comes back"


def test_a_clock_that_is_set_back_revives_nothing() -> None:
    floor = time_floor(0.0, 100 * DAY_S, offline_s=50 * DAY_S, online_s=100 * DAY_S)
    assert reference_time(now_s=0.0, floor_s=floor) == 100 * DAY_S
    assert reference_time(now_s=120 * DAY_S, floor_s=floor) == 120 * DAY_S


def test_who_has_the_online_key_cannot_push_the_device_into_the_future() -> None:
    now = 100 * DAY_S
    assert time_floor(0.0, now, online_s=now + ONLINE_SLACK_S + 1) == 0.0
    assert time_floor(0.0, now, online_s=now + ONLINE_SLACK_S) == now + ONLINE_SLACK_S
    assert time_floor(0.0, now, offline_s=now + 300 * DAY_S) == now + 300 * DAY_S, "offline keys are believed"


@given(st.floats(0, 1e10), st.floats(0, 1e10), st.floats(0, 1e10), st.floats(0, 1e10))
def test_time_never_goes_back(floor: float, now: float, offline: float, online: float) -> None:
    assert time_floor(floor, now, offline_s=offline, online_s=online) >= floor
