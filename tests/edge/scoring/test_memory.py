import numpy as np
import pytest
from normal_outputs import reference, running, scores

from edge.scoring.backends import Outputs
from edge.scoring.memory import MOST_EACH, Memory


def slam(n: int, seed: int = 0) -> Outputs:
    return running(n, seed, 8.0, channel=1)


def faults() -> Outputs:
    """Of many sizes, in either channel."""
    parts = [running(60, 10 + i, size, channel) for channel in (0, 1) for i, size in enumerate((-9.0, -6.0, 16.0))]
    return Outputs.concatenate(parts)


def silenced(memory: Memory, outputs: Outputs) -> float:
    return float((memory.adjust(outputs, scores(outputs)) == 0).mean())


def test_what_was_forgiven_is_ordinary_at_once_and_nothing_else_is() -> None:
    memory = Memory(reference(), faults)
    assert memory.add("door", slam(3 * MOST_EACH)) == MOST_EACH
    assert silenced(memory, slam(500, 1)) > 0.8
    assert silenced(memory, running(500, 2, 8.0, channel=0)) == 0
    assert silenced(memory, running(500, 2, -8.0, channel=1)) == 0
    both = slam(500, 3)
    both.level[:, 0] += 9
    assert silenced(memory, both) == 0, "what else happens while the door slams is told"
    louder = slam(500, 4)
    louder.spectrum[:, 0, 1] += 10
    assert silenced(memory, louder) == 0
    assert memory.remove("door")
    assert silenced(memory, slam(500, 1)) == 0
    assert not memory.remove("door")


def test_every_other_score_stays_as_it_was_to_the_bit() -> None:
    memory = Memory(reference(), faults)
    memory.add("door", slam(8))
    mixed = Outputs.concatenate([running(300, 5), slam(20, 6), running(300, 7)])
    before = scores(mixed)
    after = memory.adjust(mixed, before)
    assert (after[300:320] == 0).mean() > 0.5
    others = np.r_[0:300, 320:620]
    assert np.array_equal(after[others], before[others])
    assert np.array_equal(before, scores(mixed)), "what the caller gave is his"


def test_empty_it_hands_back_what_it_was_given() -> None:
    outputs = running(50)
    score = scores(outputs)
    assert Memory(reference()).adjust(outputs, score) is score
    assert Memory(None).adjust(outputs, score) is score


def test_ordinary_windows_are_refused() -> None:
    memory = Memory(reference(), faults)
    middle = running(8)
    for array in middle.arrays().values():
        array[:] = np.median(array, axis=0)
    with pytest.raises(ValueError, match="nothing out of the ordinary"):
        memory.add("nothing", middle)
    assert memory.names == ()


def test_what_would_forgive_faults_is_refused_and_changes_nothing() -> None:
    memory = Memory(reference(), lambda: Outputs.concatenate([faults(), slam(60, 50)]))
    with pytest.raises(ValueError, match="of the faults on trial"):
        memory.add("door", slam(8))
    assert memory.names == ()
    assert silenced(memory, slam(500, 1)) == 0
    blind = Memory(reference(), None)
    blind.add("door", slam(8))
    assert silenced(blind, slam(500, 1)) > 0.8, "the control: untried, it forgives them"


def test_windows_far_apart_do_not_stand_for_each_other() -> None:
    memory = Memory(reference())
    wide = slam(8)
    wide.level[:, 1] = np.linspace(8, 80, 8)
    memory.add("wide", wide)
    between = slam(500, 1)
    between.level[:, 1] = 13.0
    assert silenced(memory, between) == 0


def test_without_a_reference_the_reason_is_said() -> None:
    with pytest.raises(ValueError, match="commission"):
        Memory(None).add("door", slam(8))


def test_it_is_full_at_last_and_the_oldest_go() -> None:
    memory = Memory(reference(), most=3 * MOST_EACH)
    for i in range(5):
        memory.add(f"{i}", slam(40, i))
    assert memory.names == ("2", "3", "4")
    assert len(memory) == 3 * MOST_EACH
    memory.add("2", slam(40, 9))
    assert memory.names == ("3", "4", "2"), "said again, it is the newest"


def test_the_same_after_a_round_trip() -> None:
    memory = Memory(reference(), most=3 * MOST_EACH)
    for name in ("b.with.dots", "a"):
        memory.add(name, slam(8, len(name)))
    arrays = memory.arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    again = Memory.from_arrays(dict(sorted(arrays.items())), reference())
    assert again.names == memory.names
    later = slam(200, 3)
    assert np.array_equal(again.adjust(later, scores(later)), memory.adjust(later, scores(later)))
    with pytest.raises(ValueError, match="another model"):
        Memory.from_arrays({name: array[:, :1] for name, array in arrays.items()}, reference())


def test_not_finite_is_never_forgiven() -> None:
    memory = Memory(reference())
    memory.add("door", slam(8))
    broken = slam(3, 1)
    broken.embedding[0], broken.level[1, 0], broken.residual[2] = np.nan, np.inf, np.nan
    assert silenced(memory, broken) == 0
