"""Integer operators with a scale and a zero point for each operand: the float operators that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from qatc.compiler.graph import Node, Tensor, rank_of
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.passes.movement import channels_to_end, channels_to_second
from qatc.frontends.common.operands import refuse
from qatc.frontends.qoperator import meanings
from qatc.frontends.qoperator.reader import Grid, Reader, Rule

_SAME_RANK: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Clip", "Relu", "MaxPool", "AveragePool", "Sigmoid"}
)
_WINDOW: Final = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


RULES: Final[dict[tuple[str, str], Rule]] = {}


def _on(op: str, *domains: str) -> Callable[[Rule], Rule]:
    """Register a rule for an operator, of com.microsoft where no domain is named."""

    def register(rule: Rule) -> Rule:
        for domain in domains or (MICROSOFT,):
            RULES[domain, op] = rule
        return rule

    return register


def _kept(node: Node, *names: str) -> dict[str, Any]:
    return {name: node.attrs[name] for name in names if name in node.attrs}


# -- the layout NHWC ----------------------------------------------------------------------------------------------


def _rank_of_window(node: Node) -> int | None:
    """The rank of what a pooling operator reads, from its window; None where the file does not say."""
    window: Sequence[int] = node.attr("kernel_shape", [])
    return len(window) + 2 if window else None


def _rank_behind(reader: Reader, x: Tensor) -> int | None:
    """The rank of a tensor of integers, as far as what made it tells."""
    tensor = x
    while (rank := rank_of(tensor)) is None:
        maker = reader.graph.producer(tensor)
        if maker is None or maker.domain:
            return None
        if maker.op == "Transpose" and "perm" in maker.attrs:
            return len(maker.attrs["perm"])
        if maker.op not in ("Conv", *_SAME_RANK):
            return None
        tensor = maker.inputs[1 if maker.op == "Conv" else 0]
    return rank


def _is_lost(reader: Reader, node: Node, rank: int | None) -> bool:
    """Whether an operator's channels come last in a tensor of unknown rank: it is refused."""
    if rank is not None or not node.attr("channels_last", 0):
        return False
    hint = "pin the dimensions with --shape NAME=1,3,224,224"
    refuse(reader.graph, node, "QAT302", f"{node.op} in the layout NHWC reads a tensor of unknown rank", hint)
    return True


def _first(reader: Reader, node: Node, x: Tensor, rank: int | None) -> Tensor:
    """The operand [N, spatial..., C] as [N, C, spatial...]; as it is where the operator's channels come second."""
    if rank is None or not node.attr("channels_last", 0):
        return x
    return reader.insert("Transpose", [x], f"{x.name}_nchw", {"perm": channels_to_second(rank)})


def _last(reader: Reader, node: Node, y: Tensor, rank: int | None) -> Tensor:
    """The result [N, C, spatial...] in the layout that the operator gives it."""
    if rank is None or not node.attr("channels_last", 0):
        return y
    return reader.insert("Transpose", [y], f"{y.name}_nhwc", {"perm": channels_to_end(rank)})


@_on("NhwcMaxPool")
def _max_pool(reader: Reader, node: Node) -> None:
    """A MaxPool of integers between transposes: the shared core moves them."""
    rank = _rank_of_window(node)
    if rank is None:
        refuse(reader.graph, node, "QAT104", f"{node.op} has no kernel_shape", "the file is damaged")
        return
    x, y = node.inputs[0], node.outputs[0]
    node.op, node.domain = "MaxPool", None
    first, made = reader.integers(f"{x.name}_nchw", x), reader.integers(f"{y.name}_nchw", x)
    reader.graph.insert("Transpose", [x], [first], attrs={"perm": channels_to_second(rank)})
    node.inputs, node.outputs = [first], [made]
    reader.graph.insert("Transpose", [made], [y], attrs={"perm": channels_to_end(rank)})
    known = reader.grids.get(id(x))
    if known is not None:
        reader.grids.update((id(t), known) for t in (first, made, y))


# -- operators ----------------------------------------------------------------------------------------------------


@_on("QLinearConv", "", MICROSOFT)
def _conv(reader: Reader, node: Node) -> None:
    rank = rank_of(node.inputs[3])
    if _is_lost(reader, node, rank):
        return
    operands = [_first(reader, node, reader.operand(node, 0), rank), reader.operand(node, 3, axis=0)]
    bias = node.optional(8)
    if bias is not None:
        scale = reader.product(node, 1, 4)
        if scale is None:
            return
        operands.append(reader.real(bias, Grid(scale, None), axis=0))
    y = reader.insert("Conv", operands, f"{node.outputs[0].name}_real", _kept(node, *_WINDOW))
    reader.finish(node, _last(reader, node, y, rank), reader.grid(node, 6))


@_on("QLinearMatMul", "", MICROSOFT)
def _matmul(reader: Reader, node: Node) -> None:
    rank = rank_of(node.inputs[3])
    rows = max((rank_of(node.inputs[0]) or 2) - 2, 0)
    columns = -1 if rank is None else rank - 1
    left, factor = meanings.on_own_step(reader, node.inputs[0], reader.grid(node, 1))
    operands = [reader.real(node.inputs[0], left, axis=rows), reader.operand(node, 3, axis=columns)]
    y = _times(reader, node, reader.insert("MatMul", operands, f"{node.outputs[0].name}_real"), factor)
    reader.finish(node, y, reader.grid(node, 6))


def _times(reader: Reader, node: Node, y: Tensor, factor: Tensor | None) -> Tensor:
    return y if factor is None else reader.insert("Mul", [y, factor], f"{node.outputs[0].name}_scaled")


@_on("QGemm")
def _gemm(reader: Reader, node: Node) -> None:
    transposed = bool(node.attr("transB", 0))
    operands = [reader.operand(node, 0), reader.operand(node, 3, axis=0 if transposed else 1)]
    bias = node.optional(6)
    if bias is not None:
        scale = reader.product(node, 1, 4, float(node.attr("alpha", 1.0)))
        if scale is None:
            return
        operands.append(reader.real(bias, Grid(scale, None), axis=max((rank_of(bias) or 1) - 1, 0)))
    y = reader.insert("Gemm", operands, f"{node.outputs[0].name}_real", _kept(node, "alpha", "transA", "transB"))
    reader.finish(node, y, None if node.optional(7) is None else reader.grid(node, 7))


@_on("QLinearAdd")
@_on("QLinearMul")
def _binary(reader: Reader, node: Node) -> None:
    op = node.op.removeprefix("QLinear")
    if meanings.mirror(reader, node):
        return
    a, b = reader.operand(node, 0), reader.operand(node, 3)
    source = reader.mirrored.get(id(node.inputs[3])) if op == "Add" else None
    if source is not None:
        op, b = "Sub", reader.real(*source)
    reader.finish(node, reader.insert(op, [a, b], f"{node.outputs[0].name}_real"), reader.grid(node, 6))


@_on("QLinearConcat")
def _concat(reader: Reader, node: Node) -> None:
    if len(node.inputs) % 3 != 2:
        refuse(reader.graph, node, "QAT104", f"{node.op} has {len(node.inputs)} inputs", "the file is damaged")
        return
    parts = [reader.operand(node, i) for i in range(2, len(node.inputs), 3)]
    y = reader.insert("Concat", parts, f"{node.outputs[0].name}_real", _kept(node, "axis"))
    reader.finish(node, y, reader.grid(node, 0))


@_on("QLinearWhere")
def _where(reader: Reader, node: Node) -> None:
    parts = [node.inputs[0], reader.operand(node, 1), reader.operand(node, 4)]
    reader.finish(node, reader.insert("Where", parts, f"{node.outputs[0].name}_real"), reader.grid(node, 7))


@_on("QLinearSigmoid")
@_on("QLinearLeakyRelu")
@_on("QLinearAveragePool")
@_on("QLinearGlobalAveragePool")
@_on("QLinearReduceMean")
def _unary(reader: Reader, node: Node) -> None:
    rank = _rank_of_window(node) or _rank_behind(reader, node.inputs[0])
    if _is_lost(reader, node, rank):
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
    operands = [_first(reader, node, reader.operand(node, 0), rank)]
    if op == "LeakyRelu":
        attrs.setdefault("alpha", 0.01)
    if op == "ReduceMean" and reader.graph.opset >= 18 and "axes" in attrs:  # an input there
        operands.append(reader.graph.constant("axes", np.asarray(attrs.pop("axes"), np.int64)))
    y = reader.insert(op, operands, f"{node.outputs[0].name}_real", attrs)
    reader.finish(node, _last(reader, node, y, rank), reader.grid(node, 3))


@_on("QLinearSoftmax")
def _softmax(reader: Reader, node: Node) -> None:
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
def _matmul_to_float(reader: Reader, node: Node) -> None:
    """Inputs a, b, their scales, their zero points, and a float bias."""
    rank, bias = rank_of(node.inputs[1]), node.optional(6)
    left, factor = meanings.on_own_step(reader, node.inputs[0], Grid(node.inputs[2], node.optional(4)))
    a = reader.real(node.inputs[0], left)
    b = reader.real(node.inputs[1], Grid(node.inputs[3], node.optional(5)), axis=-1 if rank is None else rank - 1)
    y = _times(reader, node, reader.insert("MatMul", [a, b], f"{node.outputs[0].name}_real"), factor)
    if bias is not None:
        y = reader.insert("Add", [y, bias], f"{node.outputs[0].name}_biased")
    reader.finish(node, y, None)


@_on("ConvInteger", "")
def _conv_integer(reader: Reader, node: Node) -> None:
    reader.accumulate(node, "Conv", _kept(node, *_WINDOW))


@_on("MatMulInteger", "")
def _matmul_integer(reader: Reader, node: Node) -> None:
    reader.accumulate(node, "MatMul", {})
