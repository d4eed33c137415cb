"""The same graph in fewer bytes and nodes: what goes over the air is worth a pass.

For one window at a time two thirds of the time of a small model go into nodes that compute next to nothing, so those that undo
each other are left out.
Names of nodes and tensors, the shapes between them and constants that are there twice cost a small model a tenth of its file.
Where the rest is int8, weights of float convolutions are kept in 16 bits: ONNX Runtime turns them back when it loads the model,
so they cost no time, and rounding to 11 bits is far below what int8 does elsewhere.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORTH_A_NODE = 128
"""Bytes that a tensor has to save before a node is added for it."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def compact(model: bytes) -> bytes:
    """An ONNX model → one with the same inputs, outputs and values, up to the rounding of float weights beside int8 ones."""
    found = onnx.load_from_string(model)
    graph = found.graph
    del graph.value_info[:]
    _once(graph)
    _straighten(graph)
    if any(node.op_type.startswith("QLinear") for node in graph.node):
        _halve(graph)
    kept = {entry.name for entry in (*graph.input, *graph.output)} | {""}
    short = {name: name for name in kept}
    for node in graph.node:
        node.name = ""
        for tensors in (node.input, node.output):
            tensors[:] = [short.setdefault(name, _name(len(short))) for name in tensors]
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if short.get(weight.name) in used]
    del graph.initializer[:]
    for weight in weights:
        weight.name = short[weight.name]
    graph.initializer.extend(weights)
    return bytes(found.SerializeToString(deterministic=True))


def _once(graph: Any) -> None:
    """Constants that are alike become one."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead = {}
    for weight in graph.initializer:
        key = weight.data_type, tuple(weight.dims), numpy_helper.to_array(weight).tobytes()
        instead[weight.name] = first.setdefault(key, weight.name)
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


def _straighten(graph: Any) -> None:
    """What squeezes and unsqueezes again, or squeezes and then reshapes, does only the last."""
    made = {node.output[0]: node for node in graph.node}
    constant = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    outputs = {entry.name for entry in graph.output}
    same: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        before = made.get(node.input[0])
        if before is None or before.op_type != "Squeeze":
            continue
        # Named axes, and not all that happen to be 1; a 0 in a shape would mean one of the axes that are gone.
        if node.op_type == "Unsqueeze" and node.input[1:] == before.input[1:] != [] and node.output[0] not in outputs:
            same[node.output[0]] = before.input[0]
        elif node.op_type == "Reshape" and 0 not in constant.get(node.input[1], [0]):
            node.input[0] = before.input[0]
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            return
        del graph.node[:]
        graph.node.extend(kept)


def _halve(graph: Any) -> None:
    """Large float constants of convolutions become 16 bits wide, with a node that widens them."""
    read = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    widened = []
    for weight in graph.initializer:
        if weight.name not in read or weight.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(weight)
        half = array.astype(np.float16)
        if array.nbytes - half.nbytes < WORTH_A_NODE or not np.isfinite(half).all():
            continue
        narrow = f"{weight.name}.half"
        widened.append(helper.make_node("Cast", [narrow], [weight.name], to=TensorProto.FLOAT))
        weight.CopyFrom(numpy_helper.from_array(half, narrow))
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _name(number: int) -> str:
    """a … z, aa …; a dot behind it, since no input or output ends in one."""
    text = ""
    while number >= 0:
        number, letter = divmod(number, len(LETTERS))
        text, number = LETTERS[letter] + text, number - 1
    return f"{text}."
