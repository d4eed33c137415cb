"""The graph with state says of every window what the windowed graph says, however samples arrive and whatever is missing."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edge.bundle import Bundle, members_of, write_bundle
from edge.errors import BundleError, GateError
from edge.scoring.backends import Backend, open_backend, run_in_slices
from edge.scoring.streaming import MOST, StreamGraph, open_stream
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from edge.sensing.windows import Windower
from edge.signal import Float32, Samples
from quantize import quantize
from quantize.export import export
from quantize.int8 import quantize_int8
from quantize.stream import export_stream
from trainer.encoders.tcn import Tcn
from trainer.model import Detector
from trainer.recipe import Budget, EncoderRecipe, Recipe, apply_overrides
from trainer.train import train

PERIOD_NS = 10_000_000
SHAPES = {"50": (50, 2, 8, 3), "41": (41, 2, 4, 5), "130": (130, 3, 4, 3)}
"""Name → window, depth, stride, kernel: with and without a rest; traces and maps that are averaged and that are not."""


def wander(channels: int, n: int, seed: int) -> Float32:
    """(C, n) noise on levels that wander far and jump now and then."""
    rng = np.random.default_rng(seed)
    jumps = np.cumsum(rng.normal(size=(channels, n)) * (rng.random((channels, n)) < 0.01) * 20, axis=1)
    return (rng.normal(size=(channels, n)) + 0.1 * np.cumsum(rng.normal(size=(channels, n)), axis=1) + jumps + 200).astype("f4")


def detector_of(window: int, depth: int, stride: int, kernel: int) -> tuple[Detector, Float32]:
    encoder = EncoderRecipe(width=32, depth=depth, stride=stride, kernel=kernel, embedding=8, causal=True)  # type: ignore[arg-type]
    x = wander(3, 128 * window, seed=1).reshape(3, 128, window).swapaxes(0, 1).copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(3, Recipe(window=window, encoder=encoder))
        detector.fit_normalisation(x)
        for _ in range(3):  # so that folding has statistics to fold
            detector.encoder(detector.normalise(torch.from_numpy(x))[1])
    return detector.eval(), x


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Backend, StreamGraph]]:
    """Windowed and stateful model, in float of every shape and in int8 of one."""
    found = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(f"stream-{name}")
        detector, x = detector_of(*shape)
        models = [folder / "float.onnx"]
        export(detector, x[:8], models[0])
        if name == "41":
            models.append(folder / "int8.onnx")
            quantize_int8(models[0], x, models[1])
            assert "QLinearConv" in {node.op_type for node in onnx.load(str(models[1])).graph.node}
        for model in models:
            made = export_stream(detector, model.read_bytes(), x[:1], folder / "stream.onnx")
            assert made.difference < 1e-5
            stream = (folder / "stream.onnx").read_bytes()
            found[f"{name} {model.stem}"] = open_backend(model.read_bytes()), open_stream(stream)
    return found


def difference(
    pair: tuple[Backend, StreamGraph], samples: Samples, hop: int, cuts: list[int], *, forget: bool = True, bound: float = 1e9
) -> tuple[float, int]:
    """The largest between both, relative to 1 + size of the output, and of how many windows."""
    backend, graph = pair
    windower, stream, worst, count = Windower(len(samples.x), 100.0, graph.window, hop), graph.start(hop), 0.0, 0
    for a, b in pairwise([0, *sorted(min(cut, len(samples)) for cut in cuts), len(samples)]):
        windows = windower.feed(Samples(samples.time_ns[a:b], samples.x[:, a:b]))
        if not len(windows):
            continue
        if count and not forget:
            windows.fresh[:] = False
        found = stream.run(windows).arrays()
        for name, array in run_in_slices(backend, windows.x).arrays().items():
            assert found[name].shape == array.shape, name
            apart = float((np.abs(found[name] - array) / (1 + np.abs(array))).max())
            assert apart <= bound, f"{name} differs by {apart:.2g}"
            worst = max(worst, apart)
        count += len(windows)
    return worst, count


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_stream_says_what_the_window_says(data: st.DataObject, pairs: dict[str, tuple[Backend, StreamGraph]]) -> None:
    pair = pairs[data.draw(st.sampled_from(sorted(pairs)))]
    hop = data.draw(st.integers(1, 8) | st.integers(1, pair[1].window))
    n = data.draw(st.integers(1, 400))
    x = wander(3, n, data.draw(st.integers(0, 1000)))
    time_ns = np.arange(n) * PERIOD_NS
    for at, length in data.draw(st.lists(st.tuples(st.integers(0, n), st.integers(1, 6)), max_size=3)):
        x[data.draw(st.integers(0, 2)), at : at + length] = np.nan  # up to 3 are filled, more are a gap
    for at in data.draw(st.lists(st.integers(0, n), max_size=2)):
        time_ns[at:] += data.draw(st.integers(-50, 50)) * PERIOD_NS
    if data.draw(st.booleans()):
        x[:, n // 2] = data.draw(st.sampled_from([1e30, -1e30, 1e6]))
    worst, _ = difference(pair, Samples(time_ns, x), hop, data.draw(st.lists(st.integers(0, n), max_size=12)))
    assert worst <= 1e-4


def test_one_sample_at_a_time(pairs: dict[str, tuple[Backend, StreamGraph]]) -> None:
    pair, n = pairs["41 int8"], 3 * MOST
    worst, count = difference(pair, Samples(np.arange(n) * PERIOD_NS, wander(3, n, 5)), 1, list(range(n)))
    assert count == n - 41 + 1
    assert worst <= 1e-4


def test_a_state_that_is_kept_over_a_gap_is_seen(pairs: dict[str, tuple[Backend, StreamGraph]]) -> None:
    n = 300
    time_ns = np.arange(n) * PERIOD_NS
    time_ns[150:] += 100 * PERIOD_NS
    samples = Samples(time_ns, wander(3, n, 6))
    for name, pair in pairs.items():
        assert difference(pair, samples, 2, [150])[0] <= 1e-4, name
        assert difference(pair, samples, 2, [150], forget=False)[0] > 1e-2, name


def test_an_encoder_that_looks_ahead_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, x = detector_of(*SHAPES["50"])
    inside = Tcn.inside

    def ahead(self: Tcn, x: Tensor) -> Tensor:
        return inside(self, functional.pad(x[:, :, 1:], (0, 1)))

    monkeypatch.setattr(Tcn, "inside", ahead)
    export(detector, x[:4], tmp_path / "model.onnx")
    with pytest.raises(GateError, match="the stream differs from the window by"):
        export_stream(detector, (tmp_path / "model.onnx").read_bytes(), x[:2], tmp_path / "stream.onnx")


def test_a_hop_that_leaves_samples_out_is_refused(pairs: dict[str, tuple[Backend, StreamGraph]]) -> None:
    with pytest.raises(ValueError, match="leave samples out"):
        pairs["50 float"][1].start(51)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    write_recording(folder / "normal.csv", simulate(120, seed=1, rate_hz=50))
    wanted = ["window=48", "encoder.causal=true", "encoder.width=32", "encoder.depth=2", "encoder.stride=2"]
    wanted += ["encoder.embedding=8", "training.steps=40", "training.batch=32", "scorer=mahalanobis(everything)"]
    train(apply_overrides(Recipe(), wanted), [folder / "normal.csv"], folder / "run")
    # What ships is not to depend on what else this machine is doing.
    quantize(folder / "run", folder / "causal.amiss", budget=Budget(slower=1000))
    return folder / "causal.amiss"


def test_a_pipeline_with_state_has_the_same_verdicts(bundle: Path, tmp_path: Path) -> None:
    made = Bundle.open(bundle).manifest
    assert made.stream_hop >= 1
    members = members_of(bundle)
    write_bundle(tmp_path / "streamed.amiss", msgspec.structs.replace(made, stream_hop=8), members)
    opened = Bundle.open(tmp_path / "streamed.amiss")
    assert opened.stream is not None
    opened.self_test()
    del members["stream.onnx"]
    write_bundle(tmp_path / "windowed.amiss", msgspec.structs.replace(opened.manifest, stream_hop=0), members)
    plain = Bundle.open(tmp_path / "windowed.amiss")
    assert plain.stream is None
    recording = simulate(40, seed=2, rate_hz=50)
    recording.x[0, 900:] += 3 * recording.x[0].std()
    recording.time_ns[600:] += 10**9
    samples = Samples(recording.time_ns, recording.x)
    for hop in (1, 2, opened.manifest.stream_hop, opened.manifest.stream_hop + 1):
        a, b = (one.pipeline(hop=hop).judge(samples) for one in (opened, plain))
        assert np.array_equal(a.end_ns, b.end_ns)
        assert a.score == pytest.approx(b.score, rel=1e-3, abs=1e-3)
        assert [(event.type, event.time_ns) for event in a.events] == [(event.type, event.time_ns) for event in b.events]
        assert len(a.events) >= 2, "nothing happens in it"
    pipeline = opened.pipeline(hop=opened.manifest.stream_hop)
    pipeline._backend = None  # type: ignore[assignment]  # so whole windows are what it cannot judge
    assert len(pipeline.judge(samples))
    pipeline = opened.pipeline(hop=opened.manifest.stream_hop + 1)
    pipeline._backend = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        pipeline.judge(samples)


def test_a_stream_of_another_model_fails_the_self_test(bundle: Path, tmp_path: Path) -> None:
    manifest, members = Bundle.open(bundle).manifest, members_of(bundle)
    model = onnx.load_from_string(members["stream.onnx"])
    for tensor in model.graph.initializer:
        if tensor.name == "to_between":
            tensor.CopyFrom(onnx.numpy_helper.from_array(3 * onnx.numpy_helper.to_array(tensor), "to_between"))
    write_bundle(tmp_path / "other.amiss", manifest, members | {"stream.onnx": model.SerializeToString()})
    with pytest.raises(BundleError, match="self-test failed"):
        Bundle.open(tmp_path / "other.amiss").self_test()


def test_what_is_no_graph_with_state_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="lacks samples"):
        open_stream(members_of(bundle)["model.onnx"])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["41 float", "41 int8"])
def test_a_million_samples_later_it_still_does(name: str, pairs: dict[str, tuple[Backend, StreamGraph]]) -> None:
    n, rng = 1_000_000, np.random.default_rng(7)
    cuts = np.cumsum(rng.integers(1, 64, n // 32)).tolist()
    worst, count = difference(pairs[name], Samples(np.arange(n) * PERIOD_NS, wander(3, n, 8)), 1, cuts, bound=1e-4)
    print(f"{name}: {count} windows, equal within {worst:.2g}")
    assert count == n - 41 + 1
    assert worst <= 1e-4
