"""LSTM layers of TFLite, one node for all steps: written out where they compute in integers, ONNX's LSTM otherwise.

    x, W, R, b -> TFL_UNIDIRECTIONAL_SEQUENCE_LSTM          Transpose -> LSTM(x, W, R, b) -> Squeeze -> Transpose
    x, W, R, b, grids -> TFL_UNIDIRECTIONAL_SEQUENCE_LSTM   each step, as `frontends/common/lstm.py`

The operands are those that `frontends/tf/tflite_lstm.py` leaves: weights and biases of the gates input, forget, cell
and output, and in integers constants on the grids of the states. TFLite's integer kernel (`lstm_eval.cc`) rounds both
parts of a gate's sum to steps of 2^-12, sigmoids and hyperbolic tangents to steps of 2^-15, all in 16 bits. The inputs'
parts of all steps and gates are one product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from qatc.compiler.diagnostics import Diagnostic
from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, shape_of
from qatc.compiler.model_io import load, read_proto
from qatc.compiler.passes.strip import strip
from qatc.compiler.qdq import to_qdq
from qatc.compiler.quant import Array, QuantParams
from qatc.frontends.common import lstm
from qatc.frontends.common.integers import is_dq
from qatc.frontends.common.lstm import RefusedError, Sums, refused
from qatc.frontends.common.operands import constant_input
from qatc.frontends.common.params import linear_params

OPERATOR: Final = "TFL_UNIDIRECTIONAL_SEQUENCE_LSTM"
_WEIGHTS, _RECURRENT, _BIASES, _GRIDS = 1, 5, 9, 13  # where the operands begin
_OPERANDS: Final = 17
_ONNX_ORDER: Final = (0, 3, 1, 2)  # of the gates: input, output, forget, cell
_SUM: Final = QuantParams.per_tensor(2.0**-12, 0, "int16")
_FUNCTION: Final = QuantParams.per_tensor(2.0**-15, 0, "int16")


def write_out(path: Path) -> tuple[Diagnostic, ...]:
    """Rewrite the layers of an ONNX file that tf2onnx made, in standard operators and Q/DQ; returns notes.

    Raises:
        CompileError: QAT302 for a layer that cannot be written, QAT104 and QAT205 for operands that say nothing.
    """
    proto, _ = read_proto(path)
    if not any(node.op_type == OPERATOR for node in proto.graph.node):
        return ()
    graph, _ = load(path)
    rewrite(graph)
    graph.diagnostics.check()
    strip(graph)
    model = to_qdq(graph, bias="float").model
    model.producer_name, model.producer_version = proto.producer_name, proto.producer_version
    path.write_bytes(model.SerializeToString(deterministic=True))
    return tuple(graph.diagnostics.items)


def rewrite(graph: QuantGraph) -> None:
    """Rewrite all of them in place; findings go to `graph.diagnostics`."""
    found = [n for n in graph.nodes if n.op == OPERATOR]
    for node in found:
        if len(node.inputs) == _GRIDS:
            _to_onnx(graph, node)
    lstm.unroll(graph, [n for n in found if n.op == OPERATOR], _axis, lambda node, steps: _layer(graph, node, steps))
    graph.sort()


def _axis(node: Node) -> int:
    """That of time in what the layer reads."""
    return 0 if node.attr("time_major", 0) else 1


# -- operands -------------------------------------------------------------------------------------------------------
def _constant(graph: QuantGraph, node: Node, index: int) -> tuple[Array, QuantParams | None]:
    """The real numbers of a constant operand, and the grid where a DequantizeLinear makes them of integers."""
    maker = graph.producer(node.inputs[index])
    holder, at = (maker, 0) if maker is not None and is_dq(maker) else (node, index)
    found = constant_input(graph, holder, at, "operand")
    params = linear_params(graph, holder) if found is not None and holder is not node else None
    if found is None or (params is None and holder is not node):
        raise RefusedError
    if params is None:
        return found.astype(np.float32), None
    return params.dequantize(found.astype(np.int64)), params


def _rows(
    graph: QuantGraph, node: Node, begin: int, order: Sequence[int], shape: tuple[int, ...]
) -> tuple[Array, QuantParams | None]:
    """A constant of each gate, one below the other, and their grid with a scale for each row; None without one."""
    found = [_constant(graph, node, begin + gate) for gate in order]
    wrong = next((values.shape for values, _ in found if values.shape != shape), None)
    if wrong is not None:
        raise refused(graph, node, f"a gate has an operand of shape {list(wrong)}, not {list(shape)}")
    values = np.concatenate([values for values, _ in found])
    grids = [params for _, params in found if params is not None and not params.is_per_channel]
    if len(grids) < len(found) or len({params.dtype for params in grids}) > 1:
        return values, None
    scales, zeros = (
        [part for part in parts for _ in range(shape[0])]
        for parts in zip(*((g.scale[0], g.zero_point[0]) for g in grids), strict=True)
    )
    return values, QuantParams(tuple(scales), tuple(zeros), grids[0].dtype, 0)


def _sizes(graph: QuantGraph, node: Node) -> tuple[int, int]:
    """How many numbers a step reads, and how many it makes."""
    weight, read = _constant(graph, node, _WEIGHTS)[0].shape, shape_of(node.inputs[0])
    if len(weight) != 2 or 0 in weight:
        raise refused(graph, node, f"its weights are of shape {list(weight)}")
    if read is not None and (len(read) != 3 or (isinstance(read[2], int) and read[2] != weight[1])):
        raise refused(graph, node, f"it reads a tensor of shape {list(read)}, and {weight[1]} numbers a step")
    return weight[1], weight[0]


def _gates(graph: QuantGraph, node: Node, order: Sequence[int]) -> list[tuple[Array, QuantParams | None]]:
    """Weights, recurrent weights and biases of the gates in some order, each as `_rows` has them."""
    inputs, hidden = _sizes(graph, node)
    shapes = {_WEIGHTS: (hidden, inputs), _RECURRENT: (hidden, hidden), _BIASES: (hidden,)}
    return [_rows(graph, node, begin, order, shape) for begin, shape in shapes.items()]


# -- real numbers ---------------------------------------------------------------------------------------------------
def _to_onnx(graph: QuantGraph, node: Node) -> None:
    """ONNX's LSTM, whose weights stay on their grids; what TFLite does besides is said."""
    try:
        weight, recurrent, bias = _gates(graph, node, _ONNX_ORDER)
    except RefusedError:
        return
    hidden = len(bias[0]) // len(lstm.GATES)
    _tell(graph, node, is_hybrid=weight[1] is not None or recurrent[1] is not None)
    y = node.outputs[0]
    x, axis = node.inputs[0], _axis(node)
    if axis == 1:
        x = graph.apply("Transpose", [x], f"{y.name}_by_time", 1, attrs={"perm": [1, 0, 2]})
    both = np.concatenate([bias[0], np.zeros_like(bias[0])])[None]
    operands = [x, _held(graph, f"{y.name}_w", weight), _held(graph, f"{y.name}_r", recurrent)]
    operands.append(graph.constant(f"{y.name}_b", both.astype(np.float32)))
    all_steps = graph.apply("LSTM", operands, f"{y.name}_steps", 1, name=node.name, attrs={"hidden_size": hidden})
    node.attrs.clear()
    node.op, node.inputs = "Squeeze", [all_steps, graph.constant(f"{y.name}_axis", np.asarray([1], np.int64))]
    if axis == 1:
        steps = graph.apply("Squeeze", node.inputs, f"{y.name}_by_step", 1)
        node.op, node.inputs, node.attrs["perm"] = "Transpose", [steps], [1, 0, 2]


def _held(graph: QuantGraph, hint: str, rows: tuple[Array, QuantParams | None]) -> Tensor:
    """A weight [1, rows, columns], on its grid where it has one."""
    values, params = rows
    constant = graph.constant(hint, values[None].astype(np.float32))
    if params is None:
        return constant
    return graph.apply(FAKE_QUANT, [constant], f"{hint}_q", 1, attrs={"params": replace(params, axis=1)})


def _tell(graph: QuantGraph, node: Node, *, is_hybrid: bool) -> None:
    """QAT014, a note, for what TFLite's operator does and ONNX's does not."""
    found: list[str] = []
    clip, shape = float(node.attr("cell_clip", 0.0)), shape_of(node.inputs[0])
    steps = shape[_axis(node)] if shape is not None else None
    if clip > 0 and not (isinstance(steps, int) and steps <= clip):  # a step adds 1 at most
        found.append(f"keeps the cell state within -{clip:g}..{clip:g}, which its converter adds to Keras' layer")
    if is_hybrid:
        found.append("rounds what its products read to 8 bits, at scales that it finds as it runs")
    if found:
        message = f"TFLite {' and '.join(found)}; the package does not"
        graph.diagnostics.note("QAT014", message, node=node.name, hint="compare accuracies (qatc evaluate)")


# -- integers -------------------------------------------------------------------------------------------------------
def _layer(graph: QuantGraph, node: Node, steps: int) -> lstm.Layer:
    if len(node.inputs) != _OPERANDS:
        raise refused(graph, node, f"it has {len(node.inputs)} operands")
    weight, recurrent, bias = _gates(graph, node, range(len(lstm.GATES)))
    output, cell, *others = (_constant(graph, node, i)[1] for i in range(_GRIDS, _OPERANDS))
    if output is None or cell is None or output.is_per_channel or cell.is_per_channel:
        raise refused(graph, node, "the grids of its states are not stated")
    if any(other is None or not other.same_grid(output) for other in others):
        hint = "TFLite's converter does so for Bidirectional; convert the layer unrolled (unroll=True)"
        message = (
            "TFLite reads the integers of this layer on another grid than it computes them on; the package does not"
        )
        graph.diagnostics.warning("QAT014", message, node=node.name, hint=hint)
    clip = float(node.attr("cell_clip", 0.0))
    if 0 < clip < 1 or not math.isfinite(clip):
        raise refused(graph, node, f"its cell state is kept within {clip:g}")
    if clip > 0:
        low, high = (min(max(int(end / cell.scale[0]), cell.qmin), cell.qmax) for end in (-clip, clip))
        cell = cell.with_range(low, high)
    return _Layer(graph, node, steps, weight=weight, recurrent=recurrent, bias=bias[0], output=output, cell=cell)


@dataclass(kw_only=True)
class _Layer(lstm.Layer):
    weight: tuple[Array, QuantParams | None]
    recurrent: tuple[Array, QuantParams | None]
    bias: Array
    output: QuantParams
    cell: QuantParams
    columns: Tensor | None = None  # the recurrent weights, for all steps

    def data(self) -> Tensor:
        rows = self._shaped(self.node.inputs[0], [-1, self.weight[0].shape[1]])
        bias = self.graph.constant(f"{self.prefix}/bias", self.bias.astype(np.float32))
        total = self._sum(self.apply("Gemm", [rows, self._columns(self.weight), bias]))
        sizes = [-1, len(self.bias)]
        sizes.insert(_axis(self.node), self.steps)
        return self._shaped(total, sizes)

    def _shaped(self, x: Tensor, sizes: list[int]) -> Tensor:
        return self.apply("Reshape", [x, self.graph.constant(f"{self.prefix}/shape", np.asarray(sizes, np.int64))])

    def states(self) -> tuple[Tensor | None, Tensor | None]:
        self.columns = self._columns(self.recurrent)
        return None, None  # TFLite begins with zeros

    def sums(self, x: Tensor, hidden: Tensor | None) -> Sums:
        if hidden is not None and self.columns is not None:
            x = self._sum(self.apply("Add", [x, self._sum(self.apply("MatMul", [hidden, self.columns]))]))
        size = len(self.bias) // len(lstm.GATES)
        sizes = self.graph.constant(f"{self.prefix}/sizes", np.full(len(lstm.GATES), size, np.int64))
        gates = [self.graph.variable(f"{self.prefix}/{gate}", 1) for gate in lstm.GATES]
        self.graph.insert("Split", [x, sizes], gates, hint=f"{self.prefix}/Split", attrs={"axis": 1})
        return lambda gate: gates[gate]

    def quant(self, name: str, x: Tensor) -> Tensor:
        grid = {"output": self.output, "cell_state": self.cell}.get(name, _FUNCTION)
        return self.fake_quant(x, f"{self.prefix}/{name}", grid)

    def _sum(self, x: Tensor) -> Tensor:
        return self.fake_quant(x, f"{self.prefix}/sum", _SUM)

    def _columns(self, rows: tuple[Array, QuantParams | None]) -> Tensor:
        """A weight [inputs, gates] on its grid."""
        values, params = rows
        constant = self.graph.constant(f"{self.prefix}/weight", np.ascontiguousarray(values.T, np.float32))
        if params is None:
            raise refused(self.graph, self.node, "its weights lie on no grid with one scale a gate")
        return self.fake_quant(constant, f"{self.prefix}/weight_quant", replace(params, axis=1))
