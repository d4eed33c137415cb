"""Offers travel in signed metadata and come back as they were."""

import msgspec
import pytest
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical

from edge.channel import ChannelSpec
from edge.updating.offer import Offer, custom, from_custom


def offer(**changes: object) -> Offer:
    plain: dict[str, object] = {
        "number": 3,
        "name": "pump",
        "version": "2.1",
        "schema": 1,
        "minimum_agent": "0.1.0",
        "channels": (ChannelSpec("x", "m/s2"), ChannelSpec("y", "m/s2")),
        "rate_hz": 12.5,
        "runtimes": ("onnxruntime",),
        "digest": "ab" * 32,
        "size": 12345,
    }
    return Offer(**{**plain, **changes})  # type: ignore[arg-type]


def test_an_offer_comes_back_from_signed_json_as_it_was() -> None:
    there = offer(groups=("pumps",), note="häufiger")
    signed = encode_canonical(custom(there))
    assert from_custom(msgspec.json.decode(signed)) == there


def test_the_control_a_rate_as_a_number_cannot_be_signed() -> None:
    with pytest.raises(FormatError):
        encode_canonical(msgspec.to_builtins(offer()))


@pytest.mark.parametrize(
    "changes",
    [{"number": 0}, {"digest": "AB" * 32}, {"size": -1}, {"rate_hz": "nan"}, {"channels": []}, {"minimum_agent": "x"}],
)
def test_what_makes_no_sense_is_no_offer(changes: dict[str, object]) -> None:
    data = custom(offer())
    data["amiss"] = {**data["amiss"], **changes}  # type: ignore[dict-item]
    with pytest.raises(msgspec.ValidationError):
        from_custom(data)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "a+#"])
def test_a_target_is_called_what_is_safe_in_paths_and_topics(name: str) -> None:
    assert offer().path == "pump-2.1.amiss"
    odd = offer(name=name)
    with pytest.raises(ValueError, match="no name for a file"):
        _ = odd.path
