"""Fewer bytes, the same values."""

from pathlib import Path

import numpy as np
import onnx

from edge.scoring.backends import OUTPUTS, open_backend
from quantize.compact import _name, compact


def test_float_says_the_same_in_fewer_bytes(models: tuple[Path, Path], windows: tuple[np.ndarray, ...]) -> None:
    whole = models[0].read_bytes()
    found = compact(whole)
    onnx.checker.check_model(onnx.load_from_string(found))
    assert len(found) < len(whole) - 3000
    before, after = (open_backend(model).run(windows[1][:16]).arrays() for model in (whole, found))
    assert all(np.array_equal(before[name], after[name]) for name in OUTPUTS)
    assert not any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in onnx.load_from_string(found).graph.initializer)


def test_int8_says_nearly_the_same(models: tuple[Path, Path], windows: tuple[np.ndarray, ...]) -> None:
    whole = models[1].read_bytes()
    found = compact(whole)
    onnx.checker.check_model(onnx.load_from_string(found))
    assert len(found) < 0.8 * len(whole)
    exact, before, after = (open_backend(m).run(windows[1][:16]).map for m in (models[0].read_bytes(), whole, found))
    changed = np.abs(after - before).max()
    assert 0 < changed < 0.1 * np.abs(before - exact).max()


def test_again_changes_nothing(models: tuple[Path, Path]) -> None:
    for path in models:
        found = compact(path.read_bytes())
        assert compact(found) == found


def test_names() -> None:
    names = [_name(number) for number in range(800)]
    assert names[:2] == ["a.", "b."]
    assert names[25:28] == ["z.", "aa.", "ab."]
    assert len(set(names)) == 800
