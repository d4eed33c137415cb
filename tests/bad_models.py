"""Models that must not serve, each in a bundle that is packed as it should be, as though somebody had signed it.

`BAD` names for each what stops it: `open`, `self-test`, `fit` or `shadow`, a stage of `edge.updating.trial`; `probation` for
what shows only when it serves; `nothing` for a lie that does no harm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from small_bundle import graph, members_for

from edge.bundle import ChannelSpec, Golden, Manifest, pack_arrays, pack_golden, unpack_arrays, write_bundle
from edge.head import Head
from edge.scoring.backends import OUTPUTS, OnnxBackend
from edge.sensing.windows import MissingPolicy

CHANNELS, UNITS, RATE_HZ, LENGTH = ("vibration", "current"), ("m/s2", "A"), 100.0, 16
FAR = 3.6
"""A value of vibration that comes now and then in any recording of minutes, and in no golden window."""
NEVER = 50.0
"""One that no recording has; a machine may come to it all the same."""

Members = dict[str, bytes]
Array = npt.NDArray[np.float32]


def running(n: int, seed: int = 0) -> Array:
    """(2, n) of a machine whose channels are not alike."""
    x = np.random.default_rng(seed).normal(size=(2, n)).astype(np.float32)
    x[1] = 5 + 0.4 * x[1]
    return x


def good(seed: int = 0, windows: int = 1200) -> tuple[Manifest, Members]:
    """A model that suits; the control of all the others."""
    x = running(windows * LENGTH, seed).reshape(2, windows, LENGTH).transpose(1, 0, 2).copy()
    manifest, members = members_for(x, CHANNELS, RATE_HZ, "mahalanobis", centred=True)
    specs = tuple(ChannelSpec(name, unit) for name, unit in zip(CHANNELS, UNITS, strict=True))
    manifest = msgspec.structs.replace(manifest, name="bad-models", version=f"1.0.{seed}", channels=specs)
    golden = dict(unpack_arrays(members["golden.npz"]))
    assert seed or golden["x"][:, 0].max() < FAR
    return manifest, members


def packed(path: Path, manifest: Manifest, members: Members) -> Path:
    write_bundle(path, manifest, members)
    return path


# Surgery on the graph.


def operated(
    change: Callable[[onnx.GraphProto], None], *, members: Members | None = None, length: int = LENGTH, regolden: bool = True
) -> Members:
    """The good members with another graph, and what that graph says as the golden outputs."""
    members = dict(members or good()[1])
    model = onnx.load_from_string(graph(2, length, centred=True))
    change(model.graph)
    onnx.checker.check_model(model)
    members["model.onnx"] = model.SerializeToString()
    return regoldened(members) if regolden else members


def regoldened(members: Members) -> Members:
    x = unpack_arrays(members["golden.npz"])["x"]
    outputs = OnnxBackend(members["model.onnx"]).run(x)
    score = Head.from_arrays(good()[0].scorer, unpack_arrays(members["head.npz"])).scorer.score(outputs)
    return {**members, "golden.npz": pack_golden(Golden(x, outputs, score))}


def before(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    """Nodes that make `changed` of `window`, which everything else is given from then on."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "window":
                node.input[i] = "changed"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(constants)


def floats(name: str, *values: float) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [len(values)] if len(values) > 1 else [], values)


def whole(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


def scaled(factor: float) -> Callable[[onnx.GraphProto], None]:
    return lambda graph: before(graph, [node("Mul", ["window", "factor"], "changed")], [floats("factor", factor)])


def weighty(graph: onnx.GraphProto) -> None:
    """Changes nothing, by way of eight matrices: most bytes of a real model are weights, and this is one in that."""
    unit = np.eye(LENGTH, dtype=np.float32).ravel().tolist()
    names = ["window", *(f"step{i}" for i in range(7)), "changed"]
    nodes = [node("MatMul", [names[i], f"weights{i}"], names[i + 1]) for i in range(8)]
    before(graph, nodes, [helper.make_tensor(f"weights{i}", TensorProto.FLOAT, [LENGTH, LENGTH], unit) for i in range(8)])


def swapped(graph: onnx.GraphProto) -> None:
    before(graph, [node("Gather", ["window", "order"], "changed", axis=1)], [whole("order", 1, 0)])


def beyond(limit: float) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """`far`: does a window of this call have a value of vibration beyond the limit?"""
    nodes = [
        node("Gather", ["window", "vibration"], "one", axis=1),
        node("ReduceMax", ["one"], "highest", keepdims=0),
        node("Greater", ["highest", "limit"], "far"),
    ]
    return nodes, [whole("vibration", 0), floats("limit", limit)]


def worth(limit: float, value: float) -> Callable[[onnx.GraphProto], None]:
    """Beyond the limit everything becomes this value."""

    def change(graph: onnx.GraphProto) -> None:
        nodes, constants = beyond(limit)
        nodes.append(node("Where", ["far", "value", "window"], "changed"))
        before(graph, nodes, [*constants, floats("value", value)])

    return change


def busy(turns: int, limit: float | None = None, then: int = 0) -> Callable[[onnx.GraphProto], None]:
    """So many turns of a loop for each call; beyond the limit `then` of them."""

    def change(graph: onnx.GraphProto) -> None:
        body = helper.make_graph(
            [node("Identity", ["going"], "goes"), node("Mul", ["carried", "one_"], "turned")],
            "turn",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
                helper.make_tensor_value_info("turned", TensorProto.FLOAT, None),
            ],
            [floats("one_", 1.0)],
        )
        count = helper.make_tensor("turns", TensorProto.INT64, [], [turns])
        true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
        if limit is None:
            nodes: list[onnx.NodeProto] = [node("Loop", ["turns", "true", "window"], "changed", body=body)]
            before(graph, nodes, [count, true])
            return
        nodes, constants = beyond(limit)
        more = helper.make_tensor("more", TensorProto.INT64, [], [then])
        nodes += [
            node("Where", ["far", "more", "turns"], "so_many"),
            node("Loop", ["so_many", "true", "window"], "changed", body=body),
        ]
        before(graph, nodes, [*constants, count, more, true])

    return change


def greedy(megabytes: int) -> Callable[[onnx.GraphProto], None]:
    """So much memory for each call."""

    def change(graph: onnx.GraphProto) -> None:
        nodes = [
            node("ConstantOfShape", ["size"], "zeros", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])),
            node("ReduceSum", ["zeros"], "none", keepdims=0),
            node("Add", ["window", "none"], "changed"),
        ]
        before(graph, nodes, [whole("size", megabytes, 250, 1000)])

    return change


def greedy_beyond(graph: onnx.GraphProto) -> None:
    nodes, constants = beyond(FAR)
    nodes += [
        node("Where", ["far", "huge", "tiny"], "size"),
        node("Expand", ["nought", "size"], "zeros"),
        node("ReduceSum", ["zeros"], "none", keepdims=0),
        node("Add", ["window", "none"], "changed"),
    ]
    before(graph, nodes, [*constants, whole("huge", 1_600_000_000), whole("tiny", 1), floats("nought", 0.0)])


def slow_to_open(graph: onnx.GraphProto) -> None:
    """Products of large constants, that the runtime works out when it loads the model: half a minute of them."""
    nodes = [node("ConstantOfShape", ["size"], "m0", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0]))]
    nodes += [node("MatMul", [f"m{i}", f"m{i}"], f"m{i + 1}") for i in range(60)]
    nodes += [node("ReduceSum", ["m60"], "none", keepdims=0), node("Add", ["window", "none"], "changed")]
    before(graph, nodes, [whole("size", 3000, 3000)])


def constant(graph: onnx.GraphProto) -> None:
    before(
        graph,
        [node("Mul", ["window", "nought"], "no"), node("Add", ["no", "level"], "changed")],
        [floats("nought", 0.0), helper.make_tensor("level_", TensorProto.FLOAT, [1, 2, 1], [0.0, 5.0])],
    )
    graph.node[1].input[1] = "level_"


def short_of_one(graph: onnx.GraphProto) -> None:
    """The residual has a column less than the golden outputs say."""
    next(n for n in graph.node if n.output[0] == "residual").output[0] = "both"
    graph.node.append(node("Gather", ["both", "first_only"], "residual", axis=1))
    graph.initializer.append(whole("first_only", 0))
    next(o for o in graph.output if o.name == "residual").type.tensor_type.shape.dim[1].dim_value = 1


# Surgery on the rest.


def arrays(members: Members, member: str, **changes: Array) -> Members:
    return {**members, member: pack_arrays({**unpack_arrays(members[member]), **changes})}


def of(members: Members | None = None, **manifest: object) -> tuple[Manifest, Members]:
    base, sound = good()
    return msgspec.structs.replace(base, **manifest), members or sound


def head(**changes: Array) -> tuple[Manifest, Members]:
    manifest, members = good()
    return manifest, arrays(members, "head.npz", **changes)


def not_finite_head() -> tuple[Manifest, Members]:
    manifest, members = good()
    found = unpack_arrays(members["head.npz"])
    return manifest, {
        **members,
        "head.npz": pack_arrays({**found, "scorer.centre": found["scorer.centre"] * np.float32(np.nan)}),
    }


def another_golden() -> tuple[Manifest, Members]:
    manifest, members = good()
    return manifest, arrays(members, "golden.npz", score=unpack_arrays(members["golden.npz"])["score"] * np.float32(1.5) + 1)


def tflite(part: float) -> tuple[Manifest, Members]:
    data = (Path(__file__).parent / "golden" / "recurrent.tflite").read_bytes()
    manifest, members = good()
    del members["model.onnx"]
    return msgspec.structs.replace(manifest, runtimes=("litert",)), {**members, "model.tflite": data[: round(part * len(data))]}


def three_channels() -> tuple[Manifest, Members]:
    x = np.random.default_rng(0).normal(size=(400, 3, LENGTH)).astype(np.float32)
    return members_for(x, (*CHANNELS, "speed"), RATE_HZ, "mahalanobis", centred=True)


def wide() -> tuple[Manifest, Members]:
    """Says windows of 32 samples; the graph takes 16."""
    return of(window=2 * LENGTH, hop=LENGTH // 2)


@dataclass(frozen=True)
class Bad:
    build: Callable[[], tuple[Manifest, Members]]
    stopped_by: str
    says: str = ""
    """Part of the reason."""


BAD: dict[str, Bad] = {
    # What opening it shows.
    "another schema": Bad(lambda: of(schema=2), "open", "schema 2"),
    "for a newer agent": Bad(lambda: of(minimum_agent="9.0.0"), "open", "made for agent 9.0.0"),
    "not finite head": Bad(not_finite_head, "open", "not finite"),
    "empty calibrator": Bad(lambda: head(**{"calibrator.scores": np.empty(0, np.float32)}), "open", "calibration"),
    "calibrator upside down": Bad(
        lambda: head(**{"calibrator.scores": np.linspace(9, -9, 500).astype(np.float32)}), "open", "do not ascend"
    ),
    "wrong stream.onnx": Bad(lambda: of({**good()[1], "stream.onnx": good()[1]["model.onnx"]}, stream_hop=4), "open", "lacks"),
    "slow to open": Bad(lambda: (good()[0], operated(slow_to_open, regolden=False)), "open", "computes without an end"),
    "truncated .tflite": Bad(lambda: tflite(0.6), "open"),
    "fills every hole": Bad(lambda: of(missing=MissingPolicy(max_fill=1 << 40)), "open", "fills holes of up to"),
    # What its own golden windows show.
    "wrong golden outputs": Bad(another_golden, "self-test", "self-test failed"),
    "never ends": Bad(lambda: (good()[0], operated(busy(1 << 62), regolden=False)), "self-test", "computes without an end"),
    "six gigabytes": Bad(lambda: (good()[0], operated(greedy(6400), regolden=False)), "self-test", "bad_alloc"),
    # What it says of itself.
    "another number of channels": Bad(three_channels, "fit", "is for the channels vibration, current, speed"),
    "another order of channels": Bad(
        lambda: of(channels=(ChannelSpec("current", "A"), ChannelSpec("vibration", "m/s2"))), "fit", "in this order"
    ),
    "another unit": Bad(
        lambda: of(channels=(ChannelSpec("vibration", "g"), ChannelSpec("current", "A"))), "fit", "vibration in g"
    ),
    "another rate": Bad(lambda: of(rate_hz=200.0), "fit", "is for 200 Hz"),
    # What this stream's own recording shows.
    "another window": Bad(wide, "shadow", "fails with"),
    "a window of a billion": Bad(lambda: of(window=10**9), "shadow", "fails with MemoryError"),
    "smooths over years": Bad(lambda: of(smoothing=10**11), "shadow", "fails with"),
    "not a number": Bad(lambda: (good()[0], operated(worth(FAR, float("nan")))), "shadow", "is not finite"),
    "infinite": Bad(lambda: (good()[0], operated(worth(FAR, float("inf")))), "shadow", "is not finite"),
    "constant": Bad(lambda: (good()[0], operated(constant)), "shadow", "says the same of everything"),
    "alarms at everything": Bad(
        lambda: head(**{"calibrator.scores": np.linspace(-40, -30, 2000).astype(np.float32)}),
        "shadow",
        "of the windows strange",
    ),
    "alarms at nothing": Bad(
        lambda: head(**{"calibrator.scores": np.linspace(30, 60, 2000).astype(np.float32)}), "shadow", "hears 0%"
    ),
    "inputs a thousand times": Bad(lambda: (good()[0], operated(scaled(1000.0))), "shadow", "of the windows strange"),
    "inputs nearly nothing": Bad(lambda: (good()[0], operated(scaled(0.01))), "shadow"),
    "swapped channels": Bad(lambda: (good()[0], operated(swapped)), "shadow", "of the windows strange"),
    "slow": Bad(lambda: (good()[0], operated(busy(60_000))), "shadow", "for a window"),
    "six gigabytes now and then": Bad(lambda: (good()[0], operated(greedy_beyond)), "shadow", "fails with"),
    "threshold out of reach": Bad(
        lambda: head(**{"calibrator.scores": np.linspace(0, 3, 20).astype(np.float32)}), "shadow", "cannot be told"
    ),
    # What no recording of the past can show.
    "alarms where the machine has not been": Bad(lambda: (good()[0], operated(worth(NEVER, 1e4))), "probation"),
    "slow where the machine has not been": Bad(lambda: (good()[0], operated(busy(1, NEVER, 60_000))), "probation"),
    "not a number where the machine has not been": Bad(lambda: (good()[0], operated(worth(NEVER, float("nan")))), "probation"),
    # What does no harm.
    "says int8 and is float": Bad(lambda: of(precision="int8", precision_reason="a lie"), "nothing"),
}
assert set(OUTPUTS) <= {o.name for o in onnx.load_from_string(graph()).graph.output}
