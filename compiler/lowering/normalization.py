"""Softmax and layer normalization in integers: operators that only some targets have, made where they are asked for."""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import Node, Tensor, rank_of, shape_of
from qatc.compiler.integer import LayerNorm, Softmax
from qatc.compiler.lowering.state import State
from qatc.compiler.model_io import label_of
from qatc.compiler.quant import Array
from qatc.compiler.target import OPTIONAL_OPERATORS

_KINDS = {"Softmax": "Softmax", "LayerNormalization": "LayerNorm"}  # ONNX operator -> the integer one


def unasked(state: State, node: Node) -> str | None:
    """The option that would make a node an integer operator of this target, where that is all that is missing."""
    kind = None if node.domain else _KINDS.get(node.op)
    if kind is None or kind in state.options.operators or kind not in state.options.offered:
        return None
    if state.usable(node.outputs[0]) is None or not _fits(state, node):
        return None
    return next(f"{option}=integer" for option, name in OPTIONAL_OPERATORS.items() if name == kind)


def normalization(state: State, node: Node, out: Tensor, lo: int, hi: int) -> bool:
    """Softmax or LayerNormalization of an 8-bit tensor onto an 8-bit grid."""
    kind = None if node.domain else _KINDS.get(node.op)
    if kind not in state.options.operators or state.usable(out) is None or not _fits(state, node):
        return False
    x, label = node.inputs[0], label_of(node)
    if kind == "Softmax":
        inputs, axis = (state.int_name(x),), _axis(node)
        name = state.build.fresh(label)
        state.build.add(Softmax(name, inputs, (state.new_int(out),), lo=lo, hi=hi, axis=axis, source=label))
        return True
    names = [state.int_name(x)]
    for tensor in node.inputs[1:]:
        real = state.graph.real(tensor) if tensor.name else None
        if real is not None:
            names.append(state.build.constant(tensor.name, np.asarray(real, np.float32)))
    name, epsilon = state.build.fresh(label), _epsilon(node)
    state.build.add(LayerNorm(name, tuple(names), (state.new_int(out),), lo=lo, hi=hi, epsilon=epsilon, source=label))
    return True


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
