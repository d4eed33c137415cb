import numpy as np
import pytest

from benchmarks.drift import PARTS, Cusum, louder, main, moved, report
from edge.sensing.simulate import CHANNELS


def test_plain_cusum_tells_a_shift_and_begins_anew() -> None:
    cusum = Cusum(5.0)
    assert cusum.update(np.zeros(1000)) is None
    assert cusum.update(np.full(20, 1.5)) == 5
    assert cusum.told == 3


def test_what_wanders_wanders_in_its_channel_only() -> None:
    x = np.random.default_rng(0).normal(size=(len(CHANNELS), 100)).astype(np.float32)
    far = np.linspace(0, 2, 100)
    for change in (moved("current")(x, far, 3.0), louder("current")(x, far, 0.5)):
        others = [i for i, channel in enumerate(CHANNELS) if channel != "current"]
        assert np.array_equal(change[others], x[others])
        assert change[2, -1] != x[2, -1]


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--only", "luck"])
    text = report({part: [f"| {part} |"] for part in PARTS}, "python -m benchmarks.drift")
    assert all(f"| {part} |" in text for part in PARTS)
