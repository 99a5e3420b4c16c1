"""Constants added to quantized tensors move to where they cost nothing: behind the products that read them.

    q -> Add(c) -> Conv(w, b)               q -> Conv(w, b + c * sum(w))        without padding
    q -> Add(c) -> Conv(w, b), padded       q -> Conv(w, b) -> Add(K)           K: c times the sum of what is inside
    q -> Add(c) -> MaxPool | Reshape        q -> MaxPool | Reshape -> Add(c)    averages, too
    q -> Add(c), r -> Add(d) -> Add         q, r -> Add -> Add(c + d)     and constants on the way add up
    Relu(y) -> Add(c) -> rounded            Add(y, c) -> Clip(c, inf) -> rounded

This is how a quantizer with an offset of a fraction of a step (LSQ+) is integer arithmetic: real = scale * (q - z) + c
with a whole z. All five are exact. `fold_affine` takes the sums and constants into biases afterwards. A sum of two such
tensors stays float: what is left of the offsets is no whole number of the result's steps, and an integer sum of two
tensors has whole zero points (QLinearAdd), a product one step for both (docs/arithmetic.md).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, Variable, shape_of
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import MEANS, Mac, Vector, mac_of, put_behind, with_number
from qatc.compiler.passes.propagate import clamp_bounds
from qatc.compiler.quant import Array
from qatc.compiler.windows import Window, window

_FLOAT: Final = onnx.TensorProto.FLOAT


def move_offsets(graph: QuantGraph) -> int:
    """Move every such constant as far as it goes, in one sweep over the sorted graph; returns how many moves."""
    moves = 0
    known: dict[int, bool] = {}  # see `_is_moved`
    for node in list(graph.nodes):
        moves += (
            _behind(graph, node, known)
            or _behind_sum(graph, node, known)
            or _added_up(graph, node)
            or _before_clamps(graph, node)
        )
    if moves:
        graph.sort()
        graph.clean()
    return moves


def _sum(graph: QuantGraph, node: Node | None) -> tuple[Tensor, float] | None:
    """The tensor and the one number that a node adds or subtracts."""
    found = with_number(graph, node, "Add", "Sub")
    return None if found is None or node is None else (found[0], found[1] if node.op == "Add" else -found[1])


def _offset(graph: QuantGraph, tensor: Tensor) -> tuple[Tensor, float] | None:
    """What a tensor that nobody rounds is the sum of: another tensor and one number."""
    return None if tensor.name in graph.params else _sum(graph, graph.producer(tensor))


def _append(graph: QuantGraph, node: Node, offset: Tensor) -> None:
    """Add an offset to what a node makes."""
    name = node.outputs[0].name
    put_behind(graph, node, "Add", offset, f"{name}_without_offset", f"{name}_offset")


# -- behind products and movement ---------------------------------------------------------------------------------


def _behind(graph: QuantGraph, node: Node, known: dict[int, bool]) -> bool:
    """Let a node read the tensor without its offset, and add what the offset makes of its result."""
    found = _offset(graph, node.inputs[0]) if node.inputs and len(node.outputs) == 1 else None
    if found is None or (found[0].name not in graph.params and not _is_moved(graph, found[0], known)):
        return False
    x, number = found
    out = node.outputs[0]
    if out.name in graph.params and mac_of(node) is None:
        return False
    if _commutes(node):
        value: Vector | None = np.asarray(number)
    else:
        mac = mac_of(node)
        value = None if mac is None or mac.weight.name not in graph.params else _of_product(graph, mac, number)
    if value is None:
        return False
    graph.explain("offsets", f"the offset {number:.6g} moved behind {label_of(node)}")
    node.inputs[0] = x
    _append(graph, node, _spread(graph, value, out))
    return True


def _behind_sum(graph: QuantGraph, node: Node, known: dict[int, bool]) -> bool:
    """Let a sum of two tensors read them without their offsets, and add those to its result."""
    if not is_op(node, "Add") or any(isinstance(t, Constant) for t in node.inputs):
        return False
    found = [_offset(graph, t) for t in node.inputs]
    quantized = [f is not None and (f[0].name in graph.params or _is_moved(graph, f[0], known)) for f in found]
    total = sum(f[1] for f, is_one in zip(found, quantized, strict=True) if f is not None and is_one)
    if not any(quantized):
        return False
    for index, (offset, is_one) in enumerate(zip(found, quantized, strict=True)):
        if offset is not None and is_one:
            node.inputs[index] = offset[0]
    out = node.outputs[0]
    graph.explain("offsets", f"the offset {total:.6g} moved behind {label_of(node)}")
    _append(graph, node, graph.constant(f"{out.name}_offset", np.asarray(total, np.float32)))
    return True


def _added_up(graph: QuantGraph, node: Node) -> bool:
    """One number in place of two that are added to a sum one after the other."""
    found = _sum(graph, node)
    if found is None:
        return False
    x, number = _without_offset(graph, found[0], node)
    if x is found[0]:
        return False
    constant = graph.constant(f"{node.outputs[0].name}_offset", np.asarray(found[1] + number, np.float32))
    node.op, node.inputs = "Add", [x, constant]
    return True


def _without_offset(graph: QuantGraph, tensor: Tensor, reader: Node) -> tuple[Tensor, float]:
    """The sum of two tensors that a tensor is plus a number, which `reader` alone reads; else it itself, and zero."""
    found = _offset(graph, tensor) if graph.only_consumer(tensor) is reader else None
    maker = None if found is None else graph.producer(found[0])
    if found is None or not is_op(maker, "Add"):
        return tensor, 0.0
    return (tensor, 0.0) if any(isinstance(t, Constant) for t in maker.inputs) else found


def _spread(graph: QuantGraph, value: Vector, out: Tensor) -> Tensor:
    """A constant of few different rows (borders, and all between), repeated along its axes when the model is loaded."""
    places: list[tuple[int, Array]] = []
    for axis in range(1, value.ndim):
        index = np.ascontiguousarray(np.moveaxis(value, axis, 0)).reshape(value.shape[axis], -1)
        _, first, inverse = np.unique(index, axis=0, return_index=True, return_inverse=True)
        if len(first) < value.shape[axis]:
            value = np.take(value, first, axis=axis)
            places.append((axis, inverse.reshape(-1).astype(np.int64)))
    current: Tensor = graph.constant(f"{out.name}_offset", np.asarray(value, np.float32))
    for axis, rows in places:
        wide = graph.variable(f"{out.name}_offsets", _FLOAT)
        graph.insert("Gather", [current, graph.constant(f"{out.name}_rows", rows)], [wide], attrs={"axis": axis})
        current = wide
    return current


def _is_moved(graph: QuantGraph, tensor: Tensor, known: dict[int, bool]) -> bool:
    """Whether a tensor is a quantized one that operators before moved or averaged.

    `known` keeps the answers by the tensors' identities: each operator before is looked at once, however long the way.
    """
    walked: list[int] = []
    moved = False
    while id(tensor) not in known:
        walked.append(id(tensor))
        maker = graph.producer(tensor)
        if maker is None or not _commutes(maker):
            break
        tensor = maker.inputs[0]
        if tensor.name in graph.params:
            moved = True
            break
    moved = known.get(id(tensor), moved)
    known.update(dict.fromkeys(walked, moved))
    return moved


def _commutes(node: Node) -> bool:
    """Whether the node makes of x + c what it makes of x, plus c."""
    if node.domain:
        return False
    if node.op in MEANS:
        pads = any(node.attr("pads") or ()) and bool(node.attr("count_include_pad", 0))
        return not pads and node.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    padded = node.op == "Pad" and node.attr("mode", "constant") == "constant"
    return is_movement(node) and not padded and node.op != "Identity"  # which names an output: one sum makes both


def _of_product(graph: QuantGraph, mac: Mac, number: float) -> Vector | None:
    """What a product makes of a tensor that is `number` everywhere: per channel, or per position where it is padded."""
    node, weight = mac.node, graph.real(mac.weight)
    if weight is None or node.op == "ConvTranspose" or node.attr("transA", 0):
        return None
    weight = weight.astype(np.float64) * number
    if node.op != "Conv":
        alpha = float(node.attr("alpha", 1.0)) if node.op == "Gemm" else 1.0
        return np.asarray(alpha * weight.sum(axis=1 - mac.axis))
    per_tap = weight.sum(axis=1)  # [M, taps...]
    moving = window(node, per_tap.shape[1:])
    if moving is not None and not any(moving.pads):
        return np.asarray(per_tap.reshape(len(per_tap), -1).sum(axis=1).reshape(-1, *(1,) * len(moving.kernel)))
    sizes = [d for d in (shape_of(node.inputs[0]) or ())[2:] if isinstance(d, int)]
    if moving is None or len(sizes) != len(moving.kernel):
        graph.explain("offsets", f"an offset stays before {label_of(node)}: it is padded, and its sizes are not known")
        return None
    return _inside(moving, per_tap, sizes)


def _inside(moving: Window, per_tap: Vector, sizes: list[int]) -> Vector:
    """The sums of the taps [M, taps...] that lie inside, at every position: [M, positions...]."""
    sums: Vector = per_tap
    for axis, size in enumerate(sizes):
        (before, after), stride = moving.borders[axis], moving.strides[axis]
        count = (size + before + after - moving.reach(axis)) // stride + 1
        taps = np.arange(moving.kernel[axis]) * moving.dilations[axis]
        at = np.add.outer(np.arange(count) * stride - before, taps)
        inside = np.asarray((at >= 0) & (at < size), np.float64)  # [positions, taps]
        sums = np.moveaxis(np.tensordot(inside, sums, ([1], [axis + 1])), 0, axis + 1)
    return sums


# -- before clamps ------------------------------------------------------------------------------------------------


def _before_clamps(graph: QuantGraph, node: Node) -> bool:
    """Add a constant that is rounded next before the clamp in front of it, whose bounds move with it."""
    found = _sum(graph, node)
    if found is None or node.outputs[0].name not in graph.params:
        return False
    (clamped, number), out = found, node.outputs[0]
    clamp = graph.producer(clamped)
    if clamp is None or clamped.name in graph.params:
        return False
    bounds, y = clamp_bounds(graph, clamp), clamp.inputs[0]
    if bounds is None or y.name in graph.params or graph.only_consumer(clamped) is not node:
        return False
    moved = graph.variable(f"{clamped.name}_moved", _FLOAT, shape_of(clamped))
    total, offset = _without_offset(graph, y, clamp)
    name = f"{moved.name}_offset"
    constant = graph.constant(name, np.asarray(number + offset, np.float32))
    graph.insert("Add", [total, constant], [moved], hint=name)
    ends = [np.float32(b) + np.float32(number) for b in bounds]
    given = [
        graph.constant(f"{out.name}_bound", np.asarray(e, np.float32)) if np.isfinite(e) else Variable("") for e in ends
    ]
    node.op, node.inputs = "Clip", [moved, *given]
    return True
