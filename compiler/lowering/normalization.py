"""Softmax and layer normalization in integers: operators that only some targets have, made where they are asked for.

RMS normalization is a layer normalization without a mean.
"""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import Node, Tensor, rank_of, shape_of
from qatc.compiler.integer import LayerNorm, Softmax
from qatc.compiler.lowering.state import State
from qatc.compiler.lowering.unrolled import Unrolled, unrolled
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import Array
from qatc.compiler.target import OPTIONAL_OPERATORS

KINDS = {  # ONNX operator -> the integer one
    "Softmax": "Softmax",
    "LayerNormalization": "LayerNorm",
    "RMSNormalization": "LayerNorm",
}


def unasked(state: State, node: Node) -> str | None:
    """The option that would make a node an integer operator of this target, where that is all that is missing."""
    kind = None if node.domain else KINDS.get(node.op)
    if kind is None or kind in state.options.operators or kind not in state.options.offered:
        return None
    if state.usable(node.outputs[0]) is None or not _fits(state, node):
        return None
    return next(f"{option}=integer" for option, name in OPTIONAL_OPERATORS.items() if name == kind)


def unoffered(state: State, node: Node) -> bool:
    """Whether a node would need an operator that this target does not have: then no range makes it one of integers."""
    kind = None if node.domain else KINDS.get(node.op)
    return kind is not None and kind not in state.options.offered | state.options.operators


def normalization(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """Softmax or layer normalization of an 8-bit tensor onto an 8-bit grid."""
    if node.domain or state.usable(out) is None:
        return False
    label = label_of(node)
    if node.op == "Softmax":
        if "Softmax" not in state.options.operators or not _fits(state, node):
            return False
        inputs, outputs = (state.int_name(node.inputs[0]),), (state.new_int(out),)
        state.build.add(Softmax, label, inputs, outputs, lo=lo, hi=hi, axis=_axis(node), source=label)
        return True
    found = _layer_norm(state, node) if "LayerNorm" in state.options.operators else None
    if found is None:
        return False
    names = [state.int_name(found.x), state.build.constant(found.names[0], found.gamma)]
    if found.beta is not None:
        names.append(state.build.constant(found.names[1], found.beta))
    state.build.add(
        LayerNorm, label, tuple(names), (state.new_int(out),), lo=lo, hi=hi, epsilon=found.epsilon,
        uncentered=not found.centered, source=label,
    )  # fmt: skip
    return True


def _layer_norm(state: State, node: Node) -> Unrolled | None:
    """The layer normalization that a node ends, as one operator or written out, where it fits."""
    if KINDS.get(node.op) != "LayerNorm":
        found = unrolled(state.graph, node)
        return found if found is not None and state.usable(found.x) is not None else None
    if not _fits(state, node):
        return None
    gamma, *beta = (np.asarray(state.graph.real(t), np.float32) for t in node.inputs[1:] if t.name)
    names = (node.inputs[1].name, node.inputs[2].name if beta else "")
    centered = node.op == "LayerNormalization"
    return Unrolled(node.inputs[0], gamma, beta[0] if beta else None, _epsilon(node), names, centered)


def _fits(state: State, node: Node) -> bool:
    """Whether input and constants are what the integer operator takes."""
    if not node.inputs or state.usable(node.inputs[0]) is None:
        return False
    rank = rank_of(node.inputs[0])
    if rank is None or not -rank <= int(node.attr("axis", -1)) < rank:
        return False
    return node.op == "Softmax" or _constants_fit(state, node)


def _constants_fit(state: State, node: Node) -> bool:
    """Whether gamma and beta are constants with the shape of the axes that are normalized."""
    shape = shape_of(node.inputs[0])
    if shape is None or len(node.inputs) < 2 or not _epsilon(node) > 0:
        return False
    found: list[Array | None] = [state.graph.real(t) for t in node.inputs[1:] if t.name]
    wanted = shape[_axis(node) :]
    return all(v is not None and v.shape == wanted and bool(np.isfinite(v).all()) for v in found)


def _axis(node: Node) -> int:
    """The axis counted from the front (the rank is known)."""
    axis = int(node.attr("axis", -1))
    return axis + (rank_of(node.inputs[0]) or 0) if axis < 0 else axis


def _epsilon(node: Node) -> float:
    return float(np.float32(node.attr("epsilon", 1e-5)))
