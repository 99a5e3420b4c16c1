"""Later: operators and attributes that are newer than the opset which a file states, or that only its exporter knows.

    Swish(x)                     x * Sigmoid(alpha * x)                      before opset 24
    Mish(x)                      x * Tanh(Softplus(x))                       before opset 18
    Gelu(x)                      x * (1 + Erf(x / sqrt(2))) / 2              before opset 20, likewise with Tanh
    HardSwish(x)                 x * HardSigmoid(x)                          before opset 14
    LayerNormalization(x, g, b)  Sub, Mul, ReduceMean, Sqrt, Div, Mul, Add   before opset 17, and RMS before 23
    ReduceMean(x, axes)          ReduceMean[axes](x)                         before opset 18, likewise its relatives
    Reshape[allowzero=0](x, s)   Reshape(x, s)                               what it means where it is left out;
                                                                             or 1, where s has no zero
    Shape[start=1](x)            Slice(Shape(x), [1], [END])                 before opset 15
    Split[num_outputs=2](x)      Split(x, [3, 2])                            before opset 18
    InsertZeros[stride=2](x)     Unsqueeze -> Pad -> Reshape -> Slice        OpenPPL's half of a ConvTranspose

tf2onnx writes such operators, OpenPPL's exporters stamp opset 13 on whatever they have, and converting a file to an
older opset leaves some. `bring_down` is for targets that read no newer opset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
import onnx.defs
import onnx.helper

from qatc.compiler.graph import Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.rewrite import NoMatch, Rules, sweep

LATER: Final = Rules("modernize")
_SINCE: Final = {
    "Gelu": 20, "HardSwish": 14, "LayerNormalization": 17, "Mish": 18, "RMSNormalization": 23, "Reshape": 14,
    "Shape": 15, "Split": 18, "Swish": 24,
}  # fmt: skip
_FLOAT: Final = onnx.TensorProto.FLOAT
_LAST: Final = 2**63 - 1  # an end beyond every dimension
_AXES_SINCE: Final = 18  # axes are an operand of reductions from here on


def bring_down(graph: QuantGraph, opset: int) -> None:
    """Write the graph in an older opset, in place, as far as the rules here go: ONNX's checker finds what is left."""
    if graph.opset > opset:
        graph.opset = opset
        drop_later_defaults(graph)
        sweep(graph, LATER)


def drop_later_defaults(graph: QuantGraph) -> None:
    """Drop attributes that the opset does not know yet where they say what it means without them."""
    defaults: dict[str, dict[str, object]] = {}
    for node in graph.nodes:
        if node.domain or not node.attrs:
            continue
        if node.op not in defaults:
            defaults[node.op] = _later_defaults(node.op, graph.opset)
        for name, default in defaults[node.op].items():
            if name in node.attrs and node.attr(name) == default:
                del node.attrs[name]


def _later_defaults(op: str, opset: int) -> dict[str, object]:
    """The attributes that newer versions of an operator have, with what they are where they are left out."""
    if not onnx.defs.has(op, opset, ""):
        return {}
    known, newest = onnx.defs.get_schema(op, opset, "").attributes, onnx.defs.get_schema(op).attributes
    values = {name: a.default_value for name, a in newest.items() if name not in known}
    return {name: _plain_value(v) for name, v in values.items() if v.type != v.UNDEFINED}


def _plain_value(attribute: onnx.AttributeProto) -> object:
    """An attribute's number, list or text."""
    value: object = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


@LATER.on("Gelu", "HardSwish", "Mish", "Swish")
def gate(graph: QuantGraph, node: Node) -> bool:
    """A product of x and its gate, in operators that opset 13 has."""
    if graph.opset >= _SINCE[node.op]:
        return False
    x, name = node.inputs[0], node.outputs[0].name
    if node.op == "HardSwish":
        factor = made(graph, "HardSigmoid", [x], f"{name}_gate", alpha=1 / 6, beta=0.5)
    elif node.op == "Gelu":
        factor = _gelu_gate(graph, x, name, str(node.attr("approximate", "none")))
    elif node.op == "Mish":
        factor = made(graph, "Tanh", [made(graph, "Softplus", [x], f"{name}_softplus")], f"{name}_gate")
    else:
        alpha = float(node.attr("alpha", 1.0))
        scaled = x if alpha == 1 else _times(graph, x, alpha, f"{name}_scaled")
        factor = made(graph, "Sigmoid", [scaled], f"{name}_gate")
    node.op, node.inputs = "Mul", [x, factor]
    node.attrs.clear()
    return True


def _gelu_gate(graph: QuantGraph, x: Tensor, name: str, form: str) -> Tensor:
    """(1 + Erf(x / sqrt(2))) / 2, or (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""
    if form == "tanh":
        square = made(graph, "Mul", [x, x], f"{name}_square")
        weighted = _times(graph, square, 0.044715 * np.sqrt(2 / np.pi), f"{name}_weighted")
        offset = _plus(graph, weighted, np.sqrt(2 / np.pi), f"{name}_offset")
        curve = made(graph, "Tanh", [made(graph, "Mul", [x, offset], f"{name}_cubic")], f"{name}_curve")
    else:
        curve = made(graph, "Erf", [_times(graph, x, np.sqrt(0.5), f"{name}_scaled")], f"{name}_curve")
    return _times(graph, _plus(graph, curve, 1.0, f"{name}_raised"), 0.5, f"{name}_gate")


def _times(graph: QuantGraph, x: Tensor, factor: float, name: str) -> Tensor:
    return made(graph, "Mul", [x, graph.constant(f"{name}_by", np.asarray(factor, np.float32))], name)


def _plus(graph: QuantGraph, x: Tensor, term: float, name: str) -> Tensor:
    return made(graph, "Add", [x, graph.constant(f"{name}_by", np.asarray(term, np.float32))], name)


@LATER.on("LayerNormalization", "RMSNormalization")
def normalization(graph: QuantGraph, node: Node) -> bool:
    """Write it as d / sqrt(mean(d * d) + epsilon) * factor + bias, d being x less its mean, or x itself (RMS)."""
    if graph.opset >= _SINCE[node.op]:
        return False
    x, name, axis, rank = node.inputs[0], node.outputs[0].name, int(node.attr("axis", -1)), rank_of(node.inputs[0])
    if any(t.name for t in node.outputs[1:]):
        raise NoMatch("its mean or deviation is read, too")
    if axis >= 0 and rank is None:
        raise NoMatch("how many dimensions it normalizes is not known")
    operands = [t for t in node.inputs[1:] if t.name]
    if not 1 <= len(operands) <= 2:
        raise NoMatch("it has no factor, or more than a factor and a bias")
    factor, *bias = operands
    axes = list(range(axis, 0 if axis < 0 else rank or 0))

    def mean(of: Tensor, what: str) -> Tensor:
        return made(graph, "ReduceMean", [of], f"{name}_{what}", axes=axes, keepdims=1)

    if node.op == "LayerNormalization":
        x = made(graph, "Sub", [x, mean(x, "mean")], f"{name}_centered")
    variance = mean(made(graph, "Mul", [x, x], f"{name}_squared"), "variance")
    raised = _plus(graph, variance, float(node.attr("epsilon", 1e-5)), f"{name}_raised")
    scaled = made(graph, "Div", [x, made(graph, "Sqrt", [raised], f"{name}_deviation")], f"{name}_scaled")
    if bias:
        scaled = made(graph, "Mul", [scaled, factor], f"{name}_unbiased")
    node.op, node.inputs, node.outputs = "Add" if bias else "Mul", [scaled, *(bias or [factor])], node.outputs[:1]
    node.attrs.clear()
    return True


@LATER.on(
    "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare",
)  # fmt: skip
def axes_as_attribute(graph: QuantGraph, node: Node) -> bool:
    """Constant axes as the attribute that they were."""
    axes = value_of(node.optional(1))
    if graph.opset >= _AXES_SINCE or axes is None or not axes.size:
        return False
    node.inputs = node.inputs[:1]
    node.attrs["axes"] = [int(a) for a in axes.reshape(-1)]
    node.attrs.pop("noop_with_empty_axes", None)  # they are not empty
    return True


@LATER.on("Reshape")
def without_zeros(graph: QuantGraph, node: Node) -> bool:
    """What a size of zero means need not be said where there is none; computed ones are those of empty tensors."""
    shape = value_of(node.optional(1))
    if graph.opset >= _SINCE["Reshape"] or (shape is not None and not shape.all()):
        return False
    return node.attrs.pop("allowzero", None) is not None


@LATER.on("Shape")
def part_of_shape(graph: QuantGraph, node: Node) -> bool:
    """Some of the dimensions, cut out of all of them."""
    if graph.opset >= _SINCE["Shape"] or not node.attrs:
        return False
    name = node.outputs[0].name
    whole = made(graph, "Shape", node.inputs, f"{name}_whole", onnx.TensorProto.INT64)
    ends = (int(node.attr("start", 0)), int(node.attr("end", _LAST)))
    node.op, node.inputs = "Slice", [whole, *(graph.constant(f"{name}_end", np.asarray([e], np.int64)) for e in ends)]
    node.attrs.clear()
    return True


@LATER.on("Split")
def split_by_count(graph: QuantGraph, node: Node) -> bool:
    """num_outputs: parts of one size, the last one smaller where it does not divide."""
    if graph.opset >= _SINCE["Split"] or "num_outputs" not in node.attrs:
        return False
    count, shape = len(node.outputs), shape_of(node.inputs[0])
    if node.attrs.pop("num_outputs") != count:
        raise NoMatch(f"num_outputs is not the {count} outputs that it has")
    axis = int(node.attr("axis", 0))
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if isinstance(size, int) and size % count:
        part = -(-size // count)
        sizes = np.asarray([part] * (count - 1) + [size - part * (count - 1)], np.int64)
        node.inputs = [node.inputs[0], graph.constant(f"{node.outputs[0].name}_sizes", sizes)]
    return True


@LATER.on("InsertZeros")
def insert_zeros(graph: QuantGraph, node: Node) -> bool:
    """Each element of [N, C, spatial...] with zeros behind it, the last ones of a row but `output_padding` cut off."""
    x = node.inputs[0]
    shape = shape_of(x)
    spatial = [] if shape is None else [d for d in shape[2:] if isinstance(d, int)]
    if shape is None or not spatial or len(spatial) != len(shape) - 2:
        raise NoMatch("the sizes of what InsertZeros reads are not known")
    strides = _each(node, "stride", 1, len(spatial))
    extra = _each(node, "output_padding", 0, len(spatial))
    axes = [3 + 2 * i for i in range(len(spatial))]
    ends = [0] * (2 + 2 * len(spatial))
    for axis, stride in zip(axes, strides, strict=True):
        ends[axis] = stride - 1
    sizes = [size * stride for size, stride in zip(spatial, strides, strict=True)]
    kept = [size - stride + 1 + more for size, stride, more in zip(sizes, strides, extra, strict=True)]
    name = node.outputs[0].name

    def listed(values: list[int]) -> Tensor:
        return graph.constant(f"{name}_sizes", np.asarray(values, np.int64))

    y = made(graph, "Unsqueeze", [x, listed(axes)], f"{name}_apart")
    y = made(graph, "Pad", [y, listed([0] * len(ends) + ends)], f"{name}_padded")
    y = made(graph, "Reshape", [y, listed([0, 0, *sizes])], f"{name}_together")
    spans = [listed(v) for v in ([0] * len(kept), kept, list(range(2, 2 + len(kept))))]
    node.op, node.inputs = "Slice", [y, *spans]
    node.attrs.clear()
    return True


def _each(node: Node, name: str, default: int, count: int) -> list[int]:
    """An attribute with one number for each spatial axis, or one for all."""
    is_list = isinstance(node.attrs.get(name), list)
    values = [int(v) for v in (node.attr(name, [default]) if is_list else [node.attr(name, default)])]
    if len(values) not in (1, count):
        raise NoMatch(f"its {name} {values} does not fit {count} spatial axes")
    return values * count if len(values) == 1 else values


def made(
    graph: QuantGraph, op: str, inputs: Sequence[Tensor], name: str, dtype: int | None = _FLOAT, **attrs: object
) -> Tensor:
    """The result of a new node, both of one name."""
    return graph.apply(op, inputs, name, dtype, name=name, attrs=attrs)
