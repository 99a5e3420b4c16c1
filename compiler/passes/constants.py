"""Fold constants: a node whose inputs are all constants becomes a constant.

    Clip(Abs(p), 1e-8) -> s -> QuantizeLinear(x, s)      ->      QuantizeLinear(x, 0.0227)
    Shape(x: 1x3x32x32) -> Gather -> Concat -> Reshape   ->      Reshape(x, [1, 3, 1024])

QuantizeLinear and DequantizeLinear stay: what they say is the frontend's to read. So do quantized constants, operators
of other domains, random ones and those with bodies. Values are computed as ONNX defines them, in the type they have;
transcendental functions in float64, rounded once. The size of every result is known before it is computed: a model
cannot make the compiler allocate more than `_LIMIT` bytes, unless the result is no larger than what it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import onnx

from qatc.compiler.budget import active
from qatc.compiler.diagnostics import fail
from qatc.compiler.graph import (
    FAKE_QUANT,
    REQUANTIZE,
    Constant,
    Dim,
    Node,
    QuantGraph,
    Tensor,
    repeats_into,
    shape_of,
    value_of,
)
from qatc.compiler.passes.affine import scaled_weight
from qatc.compiler.passes.evaluate import Refused, evaluate, size_of_result
from qatc.compiler.passes.movement import is_movement, is_value_blind
from qatc.compiler.quant import Array, QuantParams

_KEEP: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", FAKE_QUANT, REQUANTIZE, "Dropout", "Identity"}
)
_LOSES_GRID: Final = frozenset(
    {"Erf", "Exp", "Gemm", "Log", "MatMul", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum",
     "ReduceSumSquare", "Sigmoid", "Sqrt", "Tanh"}
)  # fmt: skip
_LIMIT: Final = 64 << 20  # bytes of a result
_GROWTH: Final = 4  # times the limit: by how much all folded constants together may grow


def fold_constants(graph: QuantGraph, *, keep: Callable[[Node], bool] | None = None) -> int:
    """Fold in one sweep over the sorted graph; returns how many nodes went.

    `keep` says which nodes stay whatever their inputs are. What is not folded stays as it was; the reason goes to
    `graph.explain`.
    """
    folder = _Folder(graph)
    for node in list(graph.nodes):
        if _candidate(graph, node) and (keep is None or not keep(node)):
            folder.fold(node)
    folder.tidy()
    return folder.gone


class _Folder:
    """Turns nodes into constants of `graph`, within limits; knows how many went and by how much constants grew."""

    def __init__(self, graph: QuantGraph) -> None:
        self.graph = graph
        self.gone = self._grown = 0

    def fold(self, node: Node) -> None:
        """Make constants of the node's results; where that is refused, it stays, and why goes to `graph.explain`."""
        try:
            values = _fold(self.graph, node)
            held = [_held(self.graph, t, v) for t, v in zip(node.outputs, values, strict=False)]
            self._grown += _growth(node, values)
            if self._grown > _GROWTH * _LIMIT:
                raise Refused(f"what was folded already takes {self._grown:,} bytes more than what it was made of")
        except Refused as refused:
            self._stays(node, refused)
            return
        for tensor, value in zip(list(node.outputs), held, strict=False):
            if tensor.name:
                self.graph.fix(tensor, value)
        self.gone += 1

    def fold_quantized(self, node: Node, *, passed: bool) -> None:
        """Make a constant of a result of quantized constants, where it does not keep their grid.

        `passed` says that it only goes into what is rounded in the end.
        """
        graph, quantized = self.graph, [t.name in self.graph.params for t in node.inputs]
        if len(node.outputs) != 1 or not (passed or (any(quantized) and not is_movement(node))):
            return
        out = node.outputs[0]
        scaled = _scaled(graph, node) if quantized.count(True) == 1 else None
        if scaled is not None:
            self._put(out, *scaled)
            return
        loses_grid = passed or node.op in _LOSES_GRID or (node.op == "Div" and quantized[-1])
        if any(quantized) and out.name not in graph.params and not loses_grid:
            return  # it may keep its operands' grid
        try:
            value = _held(graph, out, _of_quantized(graph, node))
        except Refused as refused:
            self._stays(node, refused)
        else:
            self._put(out, value, graph.quant(out))

    def _put(self, tensor: Tensor, value: Array, params: QuantParams | None) -> None:
        self.graph.replace(tensor, self.graph.constant(tensor.name, value, params))
        self.gone += 1

    def _stays(self, node: Node, refused: Refused) -> None:
        """Say why a node stays."""
        self.graph.explain("constants", f"{node.op} {node.name} stays: {refused}")

    def tidy(self) -> None:
        """Take the nodes without readers out."""
        if self.gone:
            self.graph.sort()
            self.graph.clean()


def compute_quantized(graph: QuantGraph) -> None:
    """Compute what is made of quantized constants alone, in a stripped graph: the first step of an unrolled GRU, say.

    The result is rounded onto the grid that the graph states for it; where it states none, products and curves are
    computed, and what is made or moved of their results (the position bias of Swin V2 comes out of a network of its
    own). A factor for each channel is one of the scales: the weight g * v / |v| of a layer with weight normalization
    keeps the integers of v. Operators that move quantized elements stay, but for those between what is computed and
    what is rounded in the end: a tracer that quantizes all arithmetic quantizes that of weights, too (standardized
    ones, say), and leaves out what it does not know.
    """
    folder = _Folder(graph)
    between: set[int] | None = None
    for node in list(graph.nodes):
        if folder.gone and _candidate(graph, node):
            folder.fold(node)
            continue
        foreign = node.domain and node.op != REQUANTIZE
        if foreign or [t for t in node.inputs if not isinstance(t, Constant) and t.name]:
            continue
        between = _between(graph) if between is None else between
        folder.fold_quantized(node, passed=any(id(t) in between for t in node.outputs))
    folder.tidy()


def _between(graph: QuantGraph) -> set[int]:
    """The unrounded tensors made of constants alone that only go into such as are rounded in the end."""
    known: set[int] = set()
    for node in graph.nodes:
        of_constants = node.inputs and all(isinstance(t, Constant) or not t.name or id(t) in known for t in node.inputs)
        if of_constants and (not node.domain or node.op == REQUANTIZE):
            known.update(map(id, node.outputs))
    ends: set[int] = set()
    found: set[int] = set()
    for node in reversed(graph.nodes):
        for tensor in node.outputs:
            if id(tensor) not in known:
                continue
            readers = graph.consumers(tensor)
            if tensor.name in graph.params:
                ends.add(id(tensor))
            elif readers and not graph.is_output(tensor) and all(id(t) in ends for r in readers for t in r.outputs):
                ends.add(id(tensor))
                found.add(id(tensor))
    return found


def _scaled(graph: QuantGraph, node: Node) -> tuple[Array, QuantParams] | None:
    """A quantized constant times or by one number, or one for each channel: its integers with other scales.

    None for other operators, where a number is zero or none at all, and where the result is rounded once more.
    """
    if node.op not in ("Mul", "Div") or len(node.inputs) != 2 or node.outputs[0].name in graph.params:
        return None
    weight, factor = node.inputs if node.inputs[0].name in graph.params else node.inputs[::-1]
    params, value = graph.quant(weight), value_of(factor)
    if not isinstance(weight, Constant) or params is None or value is None or value.dtype != np.float32:
        return None
    rank = weight.values.ndim
    if value.ndim > rank or (node.op == "Div" and weight is not node.inputs[0]) or not value.all():
        return None
    sizes = (1,) * (rank - value.ndim) + value.shape
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(axes) > 1 or not np.isfinite(value).all() or not weight.values.size:
        return None
    axis = axes[0] if axes else params.axis or 0
    count = weight.values.shape[axis] if rank else 1
    if value.size not in (1, count):
        return None
    wide = np.broadcast_to(value.reshape(-1).astype(np.float64), (count,))
    return scaled_weight(weight.values, params, axis, wide if node.op == "Mul" else 1.0 / wide)


def _of_quantized(graph: QuantGraph, node: Node) -> Array:
    values = [graph.real(t) if t.name else None for t in node.inputs]
    if node.op == REQUANTIZE and values[0] is not None:
        return values[0]  # which is rounded next
    if node.op == "Gemm":
        return _gemm(node, values)
    size = size_of_result(node, values, graph.opset)
    if size is None or size > _LIMIT:
        raise Refused("its result has no known size, or a large one")
    return _evaluated(graph, node, values)[0]


def _gemm(node: Node, values: list[Array | None]) -> Array:
    a, b, c = (*values, None)[:3]
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        raise Refused("its operands are no matrices")
    a, b = (a.T if node.attr("transA", 0) else a), (b.T if node.attr("transB", 0) else b)
    if a.shape[1] != b.shape[0] or a.shape[0] * b.shape[1] * 4 > _LIMIT:
        raise Refused("its operands do not fit, or its result is large")
    if c is not None and not repeats_into(c.shape, (a.shape[0], b.shape[1])):
        raise Refused("its bias does not fit")
    product = np.float32(node.attr("alpha", 1.0)) * (a @ b)
    return np.asarray(product if c is None else product + np.float32(node.attr("beta", 1.0)) * c, np.float32)


def _candidate(graph: QuantGraph, node: Node) -> bool:
    """Whether the node's value depends on nothing that is unknown."""
    if node.domain or node.op in _KEEP:
        return False
    inputs = node.inputs
    unknown = [t for t in inputs if not isinstance(t, Constant) and t.name]
    if unknown and is_value_blind(node):
        dims = shape_of(inputs[0])
        return dims is not None and all(isinstance(d, int) for d in dims_read(node, dims))
    if unknown or not inputs:
        return False
    if any(t.name in graph.params for t in inputs):
        return False
    return not any(isinstance(a, onnx.GraphProto) for a in node.attrs.values())


def dims_read(node: Node, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dimensions that a Shape or Size reads of a tensor that has `dims`."""
    return dims if node.op == "Size" else dims[node.attr("start", 0) : node.attr("end")]


def _held(graph: QuantGraph, tensor: Tensor, value: Array) -> Array:
    """What a constant in the place of `tensor` holds: the value, rounded onto the tensor's grid where it has one.

    Raises:
        CompileError: QAT204 for a grid with a scale for each of other channels than the value has.
    """
    params = graph.quant(tensor)
    if params is None:
        return value
    if value.dtype != np.float32 or np.isnan(value).any():
        raise Refused("its result cannot be quantized: it is no float32, or not a number")
    try:
        return params.quantize(value)
    except ValueError as error:  # a shape that was not known where the grid was read
        raise fail(
            "QAT204", str(error), tensor=tensor.name, hint="give the quantizer a scale for each channel"
        ) from error


def _fold(graph: QuantGraph, node: Node) -> list[Array]:
    if is_value_blind(node):
        dims = [int(d) for d in dims_read(node, shape_of(node.inputs[0]) or ()) if isinstance(d, int)]
        return [np.asarray(math.prod(dims) if node.op == "Size" else dims, np.int64)]
    values = [value_of(t) for t in node.inputs]
    have = sum({id(v): v.nbytes for v in values if v is not None}.values())  # a Concat of one tensor with itself grows
    size = size_of_result(node, values, graph.opset)
    if size is None:
        raise Refused("the size of its result is not known before it is computed")
    if size > max(_LIMIT, have):
        raise Refused(f"its result would take {size:,} bytes")
    active().ask(size, "folding a constant", node=node.name or None)
    return _evaluated(graph, node, values)


def _growth(node: Node, results: Iterable[Array]) -> int:
    """By how many bytes a folded node's results are larger than what they are made of."""
    made = sum(v.nbytes for v in results)
    return max(0, made - sum(v.nbytes for t in node.inputs if (v := value_of(t)) is not None))


def _evaluated(graph: QuantGraph, node: Node, values: Sequence[Array | None]) -> list[Array]:
    try:
        with np.errstate(all="ignore"):
            return evaluate(node, values, graph.opset)
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError, np.exceptions.AxisError) as error:
        raise Refused(f"it cannot be computed: {error}") from error
