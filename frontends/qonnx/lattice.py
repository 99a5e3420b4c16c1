"""What a tensor's values are whole multiples of: sums and products of tensors on grids stay on one.

FakeQuant<0.5> -> Conv(weights on a grid of 0.25, bias of whole 0.125) -> MaxPool        0.125
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, value_of
from qatc.compiler.passes.movement import is_movement, pad_value
from qatc.compiler.quant import Array, QuantParams, number_of
from qatc.frontends.common.grid import find_grid

_FAR: Final = 64  # operators that are looked back over
_PARTS: Final = range(1, 17)  # of a unit, that constants are whole numbers of
_SAME: Final = frozenset({"Identity", "Relu", "MaxPool", "Neg", "Abs", "GlobalMaxPool"})
_SUMS: Final = frozenset({"Add", "Sub"})
_PRODUCTS: Final = frozenset({"Conv", "MatMul"})


def unit_of(graph: QuantGraph, tensor: Tensor) -> float | None:
    """The largest number known that all values of a tensor are whole multiples of, None where there is none."""
    factor, added = 1.0, list[Array]()
    for _ in range(_FAR):
        own = _own_unit(graph, tensor)
        if own is not None:
            units = (factor * own / part for part in _PARTS)
            return next((unit for unit in units if all(_whole(value, unit) for value in added)), None)
        node = graph.producer(tensor)
        behind = None if node is None or node.domain else _behind(graph, node)
        if behind is None:
            return None
        tensor, times, plus = behind
        if plus is not None:
            added.append(plus.astype(np.float64) * factor)
        factor *= times
    return None


def _own_unit(graph: QuantGraph, tensor: Tensor) -> float | None:
    if isinstance(tensor, Constant):
        return _constant_unit(graph, tensor)
    node = graph.producer(tensor)
    params: QuantParams | None = node.attrs["params"] if node is not None and node.op == FAKE_QUANT else None
    return None if params is None or params.is_per_channel else params.scale[0]


def _constant_unit(graph: QuantGraph, tensor: Tensor) -> float | None:
    params = graph.quant(tensor)
    if params is None:
        value = value_of(tensor)
        found = None if value is None or value.dtype.kind != "f" else find_grid(value, None)
        params = None if found is None else found.params
    if params is None or params.is_per_channel:
        return None
    return params.scale[0]


def _behind(graph: QuantGraph, node: Node) -> tuple[Tensor, float, Array | None] | None:
    """(x, factor, constant): what a node makes is factor times a sum of x's values, plus a constant."""
    if node.op in _SAME or is_movement(node):
        fill = pad_value(node) if node.op == "Pad" and node.attr("mode", "constant") == "constant" else None
        return node.inputs[0], 1.0, None if fill is None else np.asarray([fill])
    if node.op in _PRODUCTS:
        times, bias = _own_unit(graph, node.inputs[1]), node.optional(2)
        if times is None or (bias is not None and not isinstance(bias, Constant)):
            return None
        return node.inputs[0], times, value_of(bias)
    if node.op in _SUMS | {"Mul"}:
        for x, other in (node.inputs, node.inputs[::-1]):
            value = value_of(other)
            if value is None or isinstance(x, Constant):
                continue
            if node.op in _SUMS:
                return x, 1.0, value
            factor = number_of(value)
            return (x, abs(factor), None) if factor else None
    return None


def _whole(value: Array, unit: float) -> bool:
    if not unit:
        return False
    steps = value / unit
    return bool(np.all(np.abs(steps - np.rint(steps)) <= 2.0**-16 + 2.0**-20 * np.abs(steps)))
