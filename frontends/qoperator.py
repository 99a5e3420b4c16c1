"""QOperator: networks that are written in integer operators are read back into float operators and Q/DQ.

    q_x -> QLinearConv(s_x, z_x, q_w, s_w, z_w, s_y, z_y, b) -> q_y

    q_x -> DQ(s_x, z_x) -> Conv(DQ(q_w, s_w, z_w), DQ(b, s_x * s_w)) -> Q(s_y, z_y) -> q_y

Likewise QLinearMatMul, and of com.microsoft QLinearAdd, Mul, Concat, Where, Sigmoid, LeakyRelu, Softmax, ReduceMean,
the average pools, QGemm and MatMulIntegerToFloat. ConvInteger and MatMulInteger know zero points alone: on weights of
step 1 they are float operators too, divided by the step of their input; what follows is carried over to real numbers.

What only moves integers is the shared core's business. MQBench's ONNX_QNN deployment quantizes integers a second time
and lets float operators read integers: both are read as they are meant. Quantization at run time has no grid to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, Tensor, Variable, is_constant, rank_of, value_of
from qatc.compiler.model_io import label_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.quant import Array
from qatc.frontends import qdq
from qatc.frontends.params import constant_input
from qatc.frontends.vendor import count, data_name, finish

MICROSOFT: Final = "com.microsoft"
_FLOAT: Final = onnx.TensorProto.FLOAT
_AT_RUN_TIME: Final = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_IN_BLOCKS: Final = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"})
_ON_INTEGERS: Final = frozenset(
    {"Clip", "Relu", "Min", "Max", "Cast", "Concat", "Shape", "Size"}
)  # the core reads them
_LEAST: Final = {  # inputs that an operator cannot do without; the others take five
    "QLinearConv": 8,
    "QLinearMatMul": 8,
    "QGemm": 6,
    "QLinearAdd": 7,
    "QLinearMul": 7,
    "QLinearWhere": 8,
    "QLinearSigmoid": 4,
    "QLinearLeakyRelu": 4,
    "QLinearReduceMean": 4,
    "MatMulIntegerToFloat": 4,
    "ConvInteger": 2,
    "MatMulInteger": 2,
}
_ON_ACCUMULATORS: Final = frozenset({"Add", "Sub", "Mul"})


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point as the file has them; `zero` is None where it is left out."""

    scale: Tensor
    zero: Tensor | None

    def same(self, other: _Grid) -> bool:
        """Whether both are constant and equal."""
        pairs = [(value_of(self.scale), value_of(other.scale)), (_zero_of(self), _zero_of(other))]
        return all(a is not None and b is not None and np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs)


def _zero_of(grid: _Grid) -> Array | None:
    return np.zeros(1, np.uint8) if grid.zero is None else value_of(grid.zero)


@dataclass
class _Reader:
    """Rewrites one graph; `grids` knows the tensors of integers by what made them."""

    graph: QuantGraph
    grids: dict[int, _Grid] = field(default_factory=dict[int, _Grid])
    gone: list[Node] = field(default_factory=list[Node])
    accumulators: list[Tensor] = field(default_factory=list[Tensor])
    sources: dict[str, str] = field(default_factory=dict[str, str])  # real numbers -> the integers in the file

    # -- building -------------------------------------------------------------------------------------------------
    def insert(self, op: str, inputs: Sequence[Tensor], hint: str, attrs: dict[str, Any] | None = None) -> Tensor:
        """A new float operator of ai.onnx; returns its output."""
        y = self.graph.variable(hint, _FLOAT)
        self.graph.insert(op, inputs, [y], hint=f"{hint}_{op}", attrs=attrs)
        return y

    def real(self, x: Tensor, grid: _Grid, axis: int = 0) -> Tensor:
        """The real numbers of integers."""
        inputs = [x, grid.scale] if grid.zero is None else [x, grid.scale, grid.zero]
        y = self.insert("DequantizeLinear", inputs, f"{x.name}_dequantized", {"axis": axis})
        self.sources[y.name] = x.name
        return y

    def operand(self, node: Node, index: int, axis: int = 0) -> Tensor:
        """The real numbers of the operand at `index`, whose scale and zero point follow it."""
        return self.real(node.inputs[index], self.grid(node, index + 1), axis)

    def grid(self, node: Node, index: int) -> _Grid:
        """The scale at input `index` and the zero point behind it."""
        zero = node.inputs[index + 1] if index + 1 < len(node.inputs) and node.inputs[index + 1].name else None
        return _Grid(node.inputs[index], zero)

    def finish(self, node: Node, y: Tensor, grid: _Grid | None) -> None:
        """`y` takes the place of the node's output, rounded onto `grid` where there is one."""
        old = node.outputs[0]
        self.gone.append(node)
        node.outputs.clear()
        if grid is None:
            self.graph.replace(old, y)
            return
        zero = grid.zero or self.graph.constant(f"{old.name}_zero", np.zeros((), _element(old)))
        self.graph.insert("QuantizeLinear", [y, grid.scale, zero], [old], hint=f"{old.name}_quantize")
        self.grids[id(old)] = _Grid(grid.scale, zero)

    def product(self, node: Node, first: int, second: int, factor: float = 1.0) -> Tensor | None:
        """The grid of an accumulator: the product of two scales."""
        a, b = constant_input(self.graph, node, first, "scale"), constant_input(self.graph, node, second, "scale")
        if a is None or b is None:
            return None
        scale = np.asarray(a.reshape(-1).astype(np.float32) * b.reshape(-1).astype(np.float32) * np.float32(factor))
        return self.graph.constant(
            f"{node.outputs[0].name}_accumulator_scale", scale if scale.size > 1 else scale.reshape(())
        )

    # -- the walk -------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Rewrite the nodes in order."""
        for node in list(self.graph.nodes):
            domain = node.domain or ""
            rule = _RULES.get((domain, node.op))
            if node.op in _AT_RUN_TIME:
                self.refuse(
                    node,
                    "QAT205",
                    f"{node.op} finds its scale at run time",
                    "quantize statically, with calibration data",
                )
            elif domain == MICROSOFT and node.op in _IN_BLOCKS:
                self.refuse(
                    node,
                    "QAT103",
                    f"{node.op} holds {node.attr('bits', 4)}-bit weights in blocks, beside activations of floats",
                    "quantize weights per tensor or channel, and activations too",
                )
            elif rule is not None and (len(node.inputs) < _LEAST.get(node.op, 5) or not node.outputs):
                self.refuse(node, "QAT104", f"{node.op} has {len(node.inputs)} inputs only", "the file is damaged")
            elif rule is not None:
                rule(self, node)
            elif domain == MICROSOFT and not qdq.is_q(node) and not qdq.is_dq(node) and self.reads_integers(node):
                self.refuse(node, "QAT302", f"{node.op} of {MICROSOFT} is not supported", None)
            else:
                self.follow(node)
        self.graph.remove(self.gone)
        self.carry_over()
        self.graph.sort()
        self.graph.clean()

    def refuse(self, node: Node, code: str, message: str, hint: str | None) -> None:
        """Record an error at a node."""
        self.graph.diagnostics.error(code, message, node=label_of(node), tensor=data_name(node), hint=hint)

    def reads_integers(self, node: Node) -> bool:
        """Whether an operand is known to hold integers."""
        return any(id(t) in self.grids for t in node.inputs)

    def follow(self, node: Node) -> None:
        """Standard operators: where integers come from, where they go, and where they are read as numbers."""
        if qdq.is_dq(node) or len(node.inputs) < 1 + qdq.is_q(node):
            return
        if qdq.is_q(node):
            self.requantize(node)
        elif is_movement(node) or node.op in _ON_INTEGERS:
            known = self.grids.get(id(node.inputs[0]))
            if known is not None and node.op not in ("Shape", "Size"):
                self.grids.update((id(y), known) for y in node.outputs)
        elif node.op == "Resize" and not node.domain and id(node.inputs[0]) in self.grids:
            self.interpolate(node, self.grids[id(node.inputs[0])])
        elif self.reads_integers(node) and not node.domain:
            self.read_as_real(node)

    def interpolate(self, node: Node, grid: _Grid) -> None:
        """A Resize between integers: the same between the real numbers, back onto their grid."""
        x = self.real(node.inputs[0], grid)
        y = self.insert("Resize", [x, *node.inputs[1:]], f"{node.outputs[0].name}_real", dict(node.attrs))
        self.graph.diagnostics.note(
            "QAT307",
            "Resize interpolates between integers, which runtimes round in different ways; here it is to the nearest",
            node=label_of(node),
            tensor=node.outputs[0].name,
        )
        self.finish(node, y, grid)

    def requantize(self, node: Node) -> None:
        """QuantizeLinear of integers: nothing on their own grid, a rescaling on another."""
        x, grid = node.inputs[0], self.grid(node, 1)
        known = self.grids.get(id(x))
        if known is not None and known.same(grid):
            self.graph.replace(node.outputs[0], x)
            self.gone.append(node)
            return
        if known is not None:
            node.inputs[0] = self.real(x, known)
        self.grids[id(node.outputs[0])] = grid

    def read_as_real(self, node: Node) -> None:
        """A float operator on integers is ill-typed ONNX: it means the real numbers."""
        for index, tensor in enumerate(list(node.inputs)):
            known = self.grids.get(id(tensor))
            if known is None:
                continue
            node.inputs[index] = self.real(tensor, known)
            self.graph.diagnostics.warning(
                "QAT104",
                f"{node.op} reads integers as if they were numbers; the real numbers they stand for are taken",
                node=label_of(node),
                tensor=tensor.name,
                hint="the exporter left out a DequantizeLinear",
            )

    # -- accumulators ---------------------------------------------------------------------------------------------
    def carry_over(self) -> None:
        """Operators on int32 accumulators become operators on real numbers, up to their Cast to float."""
        waiting = list(self.accumulators)
        while waiting:
            tensor = waiting.pop()
            if isinstance(tensor, Variable):
                tensor.dtype = _FLOAT
            for node in dict.fromkeys(self.graph.consumers(tensor)):
                if node.op == "Cast" and node.attr("to") == _FLOAT:
                    self.graph.bypass(node)
                elif is_movement(node) or (node.op in _ON_ACCUMULATORS and not node.domain and self.numbers(node)):
                    waiting.extend(node.outputs)
                elif node.op != "Shape":
                    self.refuse(
                        node, "QAT302", f"{node.op} computes with an int32 accumulator", "cast it to float first"
                    )

    def numbers(self, node: Node) -> bool:
        """Integer constants of an operator on accumulators as float32; False where another operand is not constant."""
        others = [t for t in node.inputs if not any(t is a for a in self.accumulators)]
        for index, tensor in enumerate(node.inputs):
            value = value_of(tensor)
            if value is not None and value.dtype.kind in "iu":
                node.inputs[index] = self.graph.constant(f"{tensor.name}_real", value.astype(np.float32))
        return len(others) < 2

    def accumulate(self, node: Node, op: str, attrs: dict[str, Any]) -> None:
        """ConvInteger and MatMulInteger: (x - z_x) * (w - z_w) summed, as an int32 accumulator."""
        x, w = node.inputs[:2]
        zeros = [node.inputs[i] if i < len(node.inputs) and node.inputs[i].name else None for i in (2, 3)]
        one = self.graph.constant("one", np.asarray(1, np.float32))
        data, weight = self.grids.get(id(x)), self.grids.get(id(w))
        stated = [g if g is not None else _Grid(one, z) for g, z in zip((data, weight), zeros, strict=True)]
        operands = [
            self.real(t, g, axis) for t, g, axis in zip((x, w), stated, (1, 0 if op == "Conv" else -1), strict=True)
        ]
        y = self.insert(op, operands, f"{node.outputs[0].name}_sum", attrs)
        for grid in stated:
            if grid.scale is not one:
                y = self.insert("Div", [y, grid.scale], f"{node.outputs[0].name}_integers")
        self.finish(node, y, None)
        self.accumulators.append(y)


def _element(tensor: Tensor) -> np.dtype[Any]:
    """The integer type of a tensor, uint8 where the file does not say."""
    kind: Any = tensor.dtype
    if isinstance(kind, int) and kind:
        return onnx.helper.tensor_dtype_to_np_dtype(kind)
    return np.dtype(np.uint8) if kind is None or kind == 0 else np.dtype(kind)


# -- operators ----------------------------------------------------------------------------------------------------

_Rule = Callable[[_Reader, Node], None]
_RULES: Final[dict[tuple[str, str], _Rule]] = {}


def _on(op: str, *domains: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for domain in domains or (MICROSOFT,):
            _RULES[domain, op] = rule
        return rule

    return register


def _kept(node: Node, *names: str) -> dict[str, Any]:
    return {name: node.attrs[name] for name in names if name in node.attrs}


_WINDOW: Final = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@_on("QLinearConv", "", MICROSOFT)
def _conv(reader: _Reader, node: Node) -> None:
    if _is_channels_last(reader, node):
        return
    operands = [reader.operand(node, 0), reader.operand(node, 3, axis=0)]
    if len(node.inputs) > 8 and node.inputs[8].name:
        scale = reader.product(node, 1, 4)
        if scale is None:
            return
        operands.append(reader.real(node.inputs[8], _Grid(scale, None), axis=0))
    y = reader.insert("Conv", operands, f"{node.outputs[0].name}_real", _kept(node, *_WINDOW))
    reader.finish(node, y, reader.grid(node, 6))


@_on("QLinearMatMul", "", MICROSOFT)
def _matmul(reader: _Reader, node: Node) -> None:
    rank = rank_of(node.inputs[3])
    rows = max((rank_of(node.inputs[0]) or 2) - 2, 0)
    columns = -1 if rank is None else rank - 1
    operands = [reader.operand(node, 0, axis=rows), reader.operand(node, 3, axis=columns)]
    y = reader.insert("MatMul", operands, f"{node.outputs[0].name}_real")
    reader.finish(node, y, reader.grid(node, 6))


@_on("QGemm")
def _gemm(reader: _Reader, node: Node) -> None:
    transposed = bool(node.attr("transB", 0))
    operands = [reader.operand(node, 0), reader.operand(node, 3, axis=0 if transposed else 1)]
    if len(node.inputs) > 6 and node.inputs[6].name:
        scale = reader.product(node, 1, 4, float(node.attr("alpha", 1.0)))
        if scale is None:
            return
        bias = node.inputs[6]
        operands.append(reader.real(bias, _Grid(scale, None), axis=max((rank_of(bias) or 1) - 1, 0)))
    y = reader.insert("Gemm", operands, f"{node.outputs[0].name}_real", _kept(node, "alpha", "transA", "transB"))
    reader.finish(node, y, reader.grid(node, 7) if len(node.inputs) > 7 and node.inputs[7].name else None)


@_on("QLinearAdd")
@_on("QLinearMul")
def _binary(reader: _Reader, node: Node) -> None:
    op = node.op.removeprefix("QLinear")
    y = reader.insert(op, [reader.operand(node, 0), reader.operand(node, 3)], f"{node.outputs[0].name}_real")
    reader.finish(node, y, reader.grid(node, 6))


@_on("QLinearConcat")
def _concat(reader: _Reader, node: Node) -> None:
    if len(node.inputs) % 3 != 2:
        reader.refuse(node, "QAT104", f"{node.op} has {len(node.inputs)} inputs", "the file is damaged")
        return
    parts = [reader.operand(node, i) for i in range(2, len(node.inputs), 3)]
    y = reader.insert("Concat", parts, f"{node.outputs[0].name}_real", _kept(node, "axis"))
    reader.finish(node, y, reader.grid(node, 0))


@_on("QLinearWhere")
def _where(reader: _Reader, node: Node) -> None:
    parts = [node.inputs[0], reader.operand(node, 1), reader.operand(node, 4)]
    reader.finish(node, reader.insert("Where", parts, f"{node.outputs[0].name}_real"), reader.grid(node, 7))


@_on("QLinearSigmoid")
@_on("QLinearLeakyRelu")
@_on("QLinearAveragePool")
@_on("QLinearGlobalAveragePool")
@_on("QLinearReduceMean")
def _unary(reader: _Reader, node: Node) -> None:
    if _is_channels_last(reader, node):
        return
    op = node.op.removeprefix("QLinear")
    attrs = _kept(
        node,
        "alpha",
        "auto_pad",
        "ceil_mode",
        "count_include_pad",
        "kernel_shape",
        "pads",
        "strides",
        "axes",
        "keepdims",
    )
    operands = [reader.operand(node, 0)]
    if op == "LeakyRelu":
        attrs.setdefault("alpha", 0.01)
    if op == "ReduceMean" and reader.graph.opset >= 18 and "axes" in attrs:  # an input there
        operands.append(reader.graph.constant("axes", np.asarray(attrs.pop("axes"), np.int64)))
    y = reader.insert(op, operands, f"{node.outputs[0].name}_real", attrs)
    reader.finish(node, y, reader.grid(node, 3))


@_on("QLinearSoftmax")
def _softmax(reader: _Reader, node: Node) -> None:
    """Before opset 13, Softmax spans all axes from `axis` on."""
    x, axis, rank = reader.operand(node, 0), int(node.attr("axis", -1)), rank_of(node.inputs[0])
    name = f"{node.outputs[0].name}_real"
    if int(node.attr("opset", 13)) >= 13 or axis == -1 or axis + 1 == rank:
        y = reader.insert("Softmax", [x], name, {"axis": axis})
    else:
        flat = reader.insert("Softmax", [reader.insert("Flatten", [x], name, {"axis": axis})], name, {"axis": -1})
        y = reader.insert("Reshape", [flat, reader.insert("Shape", [x], f"{name}_shape")], name)
    reader.finish(node, y, reader.grid(node, 3))


@_on("MatMulIntegerToFloat")
def _matmul_to_float(reader: _Reader, node: Node) -> None:
    """Inputs a, b, their scales, their zero points, and a float bias."""
    zeros = [node.inputs[i] if i < len(node.inputs) and node.inputs[i].name else None for i in (4, 5)]
    rank = rank_of(node.inputs[1])
    a = reader.real(node.inputs[0], _Grid(node.inputs[2], zeros[0]))
    b = reader.real(node.inputs[1], _Grid(node.inputs[3], zeros[1]), axis=-1 if rank is None else rank - 1)
    y = reader.insert("MatMul", [a, b], f"{node.outputs[0].name}_real")
    if len(node.inputs) > 6 and node.inputs[6].name:
        y = reader.insert("Add", [y, node.inputs[6]], f"{node.outputs[0].name}_biased")
    reader.finish(node, y, None)


@_on("ConvInteger", "")
def _conv_integer(reader: _Reader, node: Node) -> None:
    reader.accumulate(node, "Conv", _kept(node, *_WINDOW))


@_on("MatMulInteger", "")
def _matmul_integer(reader: _Reader, node: Node) -> None:
    reader.accumulate(node, "MatMul", {})


def _is_channels_last(reader: _Reader, node: Node) -> bool:
    """NHWC operators are what ONNX Runtime's own optimizer writes, for one machine: refused."""
    if not node.attr("channels_last", 0):
        return False
    hint = "save the quantized model before ONNX Runtime optimizes it (graph_optimization_level)"
    reader.refuse(node, "QAT302", f"{node.op} in the layout NHWC is ONNX Runtime's internal form", hint)
    return True


# -- the dialect --------------------------------------------------------------------------------------------------


def _is_ours(node: Node) -> bool:
    return (node.domain or "", node.op) in _RULES


def _is_asked(node: Node) -> bool:
    """Whether the node is a product of constants, by which a model of ours chooses its form (docs/adr/0009)."""
    return node.op == "MatMulInteger" and all(is_constant(t) or not t.name for t in node.inputs)


def _is_known(node: Node) -> bool:
    """Whether the node is read, or refused by its name."""
    return _is_ours(node) or node.op in _AT_RUN_TIME or ((node.domain or "") == MICROSOFT and node.op in _IN_BLOCKS)


def _recognise(graph: QuantGraph, producer: str) -> str | None:
    return count(graph, _is_known)


def _normalise(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=lambda node: _is_ours(node) and not _is_asked(node))
    reader = _Reader(graph)
    reader.run()
    if graph.diagnostics.errors:
        return  # what is left of the integers would only be blamed again
    finish(graph, options, [MICROSOFT])
    for name, source in list(graph.origin.items()):
        integers = reader.sources.get(source, source)  # the file has no real numbers there
        if integers in graph.known:
            graph.origin[name] = integers
        else:
            del graph.origin[name]


FRONTEND = Frontend(
    name="qoperator",
    description="integer operators (QLinearConv, QGemm, MatMulInteger, ...) read back",
    recognise=_recognise,
    normalise=_normalise,
    confidence=75,
    exporters=(
        "ONNX Runtime 1.31 quantize_static (QuantFormat.QOperator)",
        "MQBench 0.0.7 (ONNX_QNN deployment)",
    ),
    limits=(
        "dynamic quantization (scales found at run time)",
        "weights in blocks (MatMulNBits)",
        "NHWC models saved after ONNX Runtime's optimizer",
        "QAttention and other fused operators of com.microsoft",
    ),
)
