"""MultiThreshold of QONNX and FINN: a count of thresholds that are reached, which is a quantizer where they are even.

    y = scale * #{i : x >= t[c, i]} + bias
    x -> MultiThreshold(t)             x -> Mul(f[c]) -> Add(o[c]) -> FakeQuant           evenly spaced in each channel
    q -> MultiThreshold(t)             q -> its integers -> Gather(table) -> FakeQuant    8 bits, one row of thresholds

FINN folds batch norm into the thresholds of each channel; the factors f and offsets o take it out again, and fold into
the product before. A factor and an addition behind (FINN's `MultiThreshold -> Add -> Mul`) belong to the quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import counted
from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, is_constant, rank_of, shape_of, value_of
from qatc.compiler.passes.modernize import infer_if_possible
from qatc.compiler.quant import Array, Doubles, QuantParams, dtype_range, number_of
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import constant_input, refuse
from qatc.frontends.common.params import on_whole_zero
from qatc.frontends.common.vendor import elementwise, grid, grid_behind
from qatc.frontends.qonnx.lattice import unit_of
from qatc.frontends.qonnx.steps import Steps, even_steps

_ONE: Final = 1e-6  # a factor this near 1 is 1 computed in float32
_INT64: Final = 7  # TensorProto's number
_MOST: Final = 1 << 16
_LAYOUTS: Final = {2: "NC", 3: "NWC", 4: "NCHW"}  # what the operator assumes where the node does not say
_HINT: Final = (
    "evenly spaced thresholds compile, and on the values of one 8-bit quantizer one row of any thresholds;"
    " export the model as QONNX Quant nodes, before activations become thresholds"
)


def multi_threshold(graph: QuantGraph, node: Node) -> bool:
    """Rewrite a MultiThreshold into a FakeQuant; False with QAT103, QAT104 or QAT204 recorded where it is none."""
    rows, axis = _thresholds(graph, node), _channel_axis(node)
    if rows is None or not _fits(graph, node, rows, axis):
        return False
    scale, bias = float(node.attr("out_scale", 1.0)), float(node.attr("out_bias", 0.0))
    scale, bias = _with_followers(graph, node, scale, bias)
    placed = _grid(graph, node, scale, bias, rows.shape[1])
    if placed is None:
        return False
    steps = even_steps(rows, unit_of(graph, node.inputs[0]))
    if steps is not None:
        _affine(graph, node, steps, (scale, bias), axis)
    elif not _table(graph, node, rows, scale, bias):
        message = "the thresholds of this MultiThreshold are not evenly spaced, so that no integer grid has its steps"
        return refuse(graph, node, "QAT103", message, _HINT)
    qdq.to_fake_quant(graph, node, *placed)
    return True


def learn_shapes(graph: QuantGraph, quantizers: Sequence[Node]) -> None:
    """Infer shapes where thresholds have channels to be found: files need not state them, quantizers keep them."""
    if all(rank_of(n.inputs[0]) is not None for n in quantizers if n.op == "MultiThreshold" and n.inputs):
        return
    own = [n.op for n in quantizers]
    for node in quantizers:
        node.op = FAKE_QUANT  # which inference sees through
    infer_if_possible(graph)
    for node, op in zip(quantizers, own, strict=True):
        node.op = op


# -- what the node says ---------------------------------------------------------------------------------------------


def _thresholds(graph: QuantGraph, node: Node) -> Doubles | None:
    """The thresholds, ascending, [rows, n]: a row for each channel or one for all."""
    value = constant_input(graph, node, 1, "thresholds")
    if value is None:
        return None
    if value.ndim != 2 or not value.size or value.shape[1] >= _MOST or np.isnan(value).any():
        message = f"the thresholds have shape {list(value.shape)}, not [channels, steps] of up to {_MOST - 1} numbers"
        refuse(graph, node, "QAT104", message)
        return None
    return np.sort(value.astype(np.float64), axis=1)


def _channel_axis(node: Node) -> int:
    rank = rank_of(node.inputs[0]) or 0
    layout = str(node.attr("data_layout", "") or _LAYOUTS.get(rank, ""))
    return layout.index("C") if "C" in layout else 1


def _fits(graph: QuantGraph, node: Node, rows: Doubles, axis: int) -> bool:
    """Whether there is a row for each channel, or one for all; QAT204 where there is not."""
    shape = shape_of(node.inputs[0])
    if len(rows) == 1 or (shape is not None and axis < len(shape) and shape[axis] in (len(rows), None)):
        return True
    size = "unknown shape" if shape is None else f"shape {list(shape)}"
    message = f"{counted(len(rows), 'row')} of thresholds along axis {axis} of a tensor of {size}"
    return refuse(graph, node, "QAT204", message)


def _with_followers(graph: QuantGraph, node: Node, scale: float, bias: float) -> tuple[float, float]:
    """Scale and bias with the scalars that the only reader multiplies by or adds, which are taken out of the graph."""
    while (reader := graph.only_consumer(node.outputs[0])) is not None and len(reader.inputs) == 2:
        value = value_of(reader.inputs[1])
        first = reader.inputs[0] is node.outputs[0]
        if not first and reader.op in ("Mul", "Add"):
            value = value_of(reader.inputs[0])
        elif not first:
            break
        by = number_of(value)
        if reader.domain or value is None or by is None or not _keeps_rank(value, node.outputs[0]):
            break
        match reader.op:
            case "Mul" if by > 0:
                scale, bias = scale * by, bias * by
            case "Div" if by > 0:
                scale, bias = scale / by, bias / by
            case "Add":
                bias += by
            case "Sub":
                bias -= by
            case _:
                break
        y = reader.outputs[0]
        reader.outputs.clear()
        node.outputs[0] = y
    return scale, bias


def _keeps_rank(value: Array, tensor: Tensor) -> bool:
    return value.ndim <= (rank_of(tensor) or 0)


def _grid(graph: QuantGraph, node: Node, scale: float, bias: float, count: int) -> tuple[QuantParams, float] | None:
    """The grid of the results, and what its numbers lack: zero is on it where the bias is whole steps."""
    if not (np.isfinite(scale) and np.isfinite(bias) and scale > 0):
        refuse(graph, node, "QAT201", f"the results are {scale:g} times a count, plus {bias:g}: no grid of steps")
        return None
    lowest = bias / scale
    if abs(lowest - np.rint(lowest)) <= _ONE * max(1.0, abs(lowest)):
        low = int(np.rint(lowest))
        params = grid(graph, node, np.asarray(scale), np.zeros(()), (low, low + count))
        return None if params is None else (params, 0.0)
    whole, offset = on_whole_zero(scale, -lowest, (0, count))
    params = grid(graph, node, np.asarray(scale), np.asarray(whole), (0, count))
    return None if params is None else (params, offset)


# -- what it becomes ------------------------------------------------------------------------------------------------


def _affine(graph: QuantGraph, node: Node, steps: Steps, result: tuple[float, float], axis: int) -> None:
    """Put x -> x * f + o before the node, which rounding to the nearest then makes its count of."""
    scale, bias = result
    factor = scale / steps.step
    with np.errstate(invalid="ignore"):
        offset = np.where(np.isinf(steps.step), steps.start, 0.5 - steps.start / steps.step) * scale + bias
    rank = rank_of(node.inputs[0])
    shape = () if factor.size == 1 or rank is None else [-1 if i == axis else 1 for i in range(rank)]
    for op, value, nothing in (("Mul", factor, np.abs(factor - 1)), ("Add", offset, np.abs(offset) / scale)):
        if np.all(nothing <= _ONE):
            continue
        constant = graph.constant(f"{node.outputs[0].name}_{op.lower()}", value.astype(np.float32).reshape(shape))
        node.inputs[0] = elementwise(graph, op, node.inputs[0], constant)


def _table(graph: QuantGraph, node: Node, rows: Doubles, scale: float, bias: float) -> bool:
    """Look the result up by the integers of an 8-bit tensor; False where the node does not read one."""
    x = node.inputs[0]
    params = grid_behind(graph, x)
    if params is None or params.is_per_channel or not params.is_8bit or len(rows) > 1 or is_constant(x):
        return False
    low, high = dtype_range(params.dtype)
    values = params.dequantize(np.arange(low, high + 1)).astype(np.float32)
    counts = np.searchsorted(rows[0].astype(np.float32), values, side="right")
    name = node.outputs[0].name
    step, first = (
        graph.constant(f"{name}_{what}", np.asarray(value, np.float32))
        for what, value in (("step", params.scale[0]), ("first", params.zero_point[0] - low))
    )
    place = elementwise(graph, "Round", elementwise(graph, "Div", x, step))
    place = elementwise(graph, "Add", place, first)
    place = graph.apply("Cast", [place], f"{name}_places", _INT64, x.shape, attrs={"to": _INT64})
    table = graph.constant(f"{name}_table", (scale * counts + bias).astype(np.float32))
    found = graph.apply("Gather", [table, place], f"{name}_found", 1, x.shape, attrs={"axis": 0})
    node.inputs[0] = found
    return True
