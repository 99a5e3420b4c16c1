"""Layers of the QONNX domains as standard operators: channels last, lowered convolutions, counted bits, markers.

    x -> channels_last::Conv(w)                    x -> Transpose -> Conv(Transpose(w)) -> Transpose   likewise MaxPool
    x -> Im2Col(k, s, p) -> MatMul(w)              x -> [Pad] -> Transpose -> Conv -> Transpose
    a -> XnorPopcountMatMul(w), both of {0, 1}     a -> Mul(2) -> Add(-1) -> MatMul(2 w - 1) -> Mul(1/2) -> Add(K / 2)
    x -> QuantAvgPool2d, of integers               x -> AveragePool -> Mul(k * k / 2^b) -> Add -> FakeQuant(1)
    x -> DebugMarker                               x

`state_inputs` reads the annotations that FINN leaves on graph inputs: their values are integers of a type.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, rank_of, shape_of, value_of
from qatc.compiler.model.links import is_op, relink
from qatc.compiler.passes.movement import channels_to_end, channels_to_second
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.rewrite import NoMatch, Rules
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.params import integer_range
from qatc.frontends.common.vendor import container

CHANNELS_LAST: Final = "qonnx.custom_op.channels_last"
GENERAL: Final = ("qonnx.custom_op.general", "finn.custom_op.general")
LAYERS: Final = Rules("qonnx layers")
_FLOAT: Final = 1
_ANNOTATION: Final = "finn_datatype"
_INTEGERS: Final = re.compile(r"(U?)INT(\d{1,2})")
_FIXED: Final = re.compile(r"FIXED<(\d{1,2}),(\d{1,2})>")
_NAMED: Final = {"BIPOLAR": (-1, 1), "TERNARY": (-1, 1), "BINARY": (0, 1)}


def _replaced(node: Node, op: str, inputs: list[Tensor], attrs: dict[str, object]) -> None:
    """Put `op` in a node's place."""
    node.op, node.domain = op, None
    node.inputs = inputs
    node.attrs.clear()
    node.attrs.update(attrs)


def _apply(graph: QuantGraph, op: str, inputs: list[Tensor], attrs: dict[str, object] | None = None) -> Tensor:
    return graph.apply(op, inputs, f"{inputs[0].name}_{op.lower()}", _FLOAT, attrs=attrs)


def _after(graph: QuantGraph, node: Node, op: str, others: list[Tensor], attrs: dict[str, object]) -> None:
    """Put `op` between a node and those who read its result."""
    y = node.outputs[0]
    inner = graph.variable(f"{y.name}_before_{op.lower()}", _FLOAT)
    node.outputs[0] = inner
    graph.insert(op, [inner, *others], [y], attrs=attrs)


def _number(graph: QuantGraph, hint: str, value: float) -> Tensor:
    return graph.constant(hint, np.asarray(value, np.float32))


# -- channels last --------------------------------------------------------------------------------------------------


@LAYERS.on("MaxPoolNHWC", domain=GENERAL)
@LAYERS.on("Conv", "MaxPool", "BatchNormalization", domain=CHANNELS_LAST)
def channels_first(graph: QuantGraph, node: Node) -> bool:
    """A standard operator between two transpositions."""
    op = node.op.removesuffix("NHWC")
    weighted = op == "Conv"
    if len(node.inputs) < 1 + weighted:
        raise NoMatch("it has no weight")
    rank = rank_of(node.inputs[1] if weighted and len(node.inputs) > 1 else node.inputs[0])
    if rank is None and "kernel_shape" in node.attrs:
        rank = len(node.attr("kernel_shape", [])) + 2
    if rank is None or rank < 2:
        return refuse(graph, node, "QAT009", f"the rank of the input of {node.op} is unknown")
    inputs = list(node.inputs)
    for index in range(2 if weighted else 1):
        inputs[index] = _apply(graph, "Transpose", [inputs[index]], {"perm": channels_to_second(rank)})
    _replaced(node, op, inputs, dict(node.attrs))
    _after(graph, node, "Transpose", [], {"perm": channels_to_end(rank)})
    return True


# -- lowered convolutions -------------------------------------------------------------------------------------------


@LAYERS.on("Im2Col", domain=GENERAL)
def lowered_convolution(graph: QuantGraph, node: Node) -> bool:
    """Im2Col and the products that read it are convolutions."""
    readers = graph.consumers(node.outputs[0])
    kernel = [int(k) for k in node.attr("kernel_size", [])]
    products = [r for r in readers if is_op(r, "MatMul") and r.inputs[0] is node.outputs[0]]
    shapes = [_columns(r) for r in products]
    size = int(np.prod(kernel)) if len(kernel) == 2 else 0
    if not size or len(products) < len(readers) or not readers or graph.is_output(node.outputs[0]):
        raise NoMatch("something else than a MatMul reads the windows")
    if any(s is None or s[0] % size for s in shapes):
        raise NoMatch("the weights of a product behind it have no known shape")
    x = _padded(graph, node)
    x = _apply(graph, "Transpose", [x], {"perm": channels_to_second(4)})
    attrs: dict[str, object] = {
        "kernel_shape": kernel,
        "strides": [int(s) for s in node.attr("stride", [1, 1])],
        "dilations": [int(d) for d in node.attr("dilations", [1, 1])],
    }
    for product, shape in zip(products, shapes, strict=True):
        if shape is not None:
            weight, group = _kernel(graph, product.inputs[1], (*kernel, shape[0] // size, shape[1]))
            _replaced(product, "Conv", [x, weight], {**attrs, "group": group})
            _after(graph, product, "Transpose", [], {"perm": channels_to_end(4)})
    return True


def _columns(product: Node) -> tuple[int, int] | None:
    shape = [d for d in shape_of(product.inputs[1]) or () if isinstance(d, int)]
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _padded(graph: QuantGraph, node: Node) -> Tensor:
    """The input, padded with the value that the node states."""
    pads = [int(p) for p in node.attr("pad_amount", [0, 0, 0, 0])]
    if not any(pads):
        return node.inputs[0]
    ends = np.asarray([0, *pads[:2], 0, 0, *pads[2:], 0], np.int64)
    value = _number(graph, "pad_value", float(node.attr("pad_value", 0)))
    return _apply(graph, "Pad", [node.inputs[0], graph.constant("pads", ends), value])


def _kernel(graph: QuantGraph, weight: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """[kh * kw * C, M] as [M, C, kh, kw], or as [C, 1, kh, kw] with C groups where only those are not zero."""
    value = value_of(weight)
    if value is not None and graph.quant(weight) is None:
        whole = np.ascontiguousarray(value.reshape(shape).transpose(3, 2, 0, 1))
        own = _diagonal(whole)
        return graph.constant(f"{weight.name}_kernel", whole if own is None else own), 1 if own is None else len(own)
    sizes = graph.constant("kernel_sizes", np.asarray(shape, np.int64))
    return _apply(graph, "Transpose", [_apply(graph, "Reshape", [weight, sizes])], {"perm": [3, 2, 0, 1]}), 1


def _diagonal(whole: Array) -> Array | None:
    """The kernels of a depthwise convolution that is written as a full one."""
    if whole.shape[0] != whole.shape[1] or whole.shape[0] == 1:
        return None
    own = whole[np.arange(len(whole)), np.arange(len(whole))]
    return own[:, None] if np.count_nonzero(own) == np.count_nonzero(whole) else None


# -- others -----------------------------------------------------------------------------------------------------------


@LAYERS.on("XnorPopcountMatMul", domain=GENERAL)
def counted_bits(graph: QuantGraph, node: Node) -> bool:
    """The number of equal bits is (a . w + K) / 2 with {0, 1} as {-1, 1}."""
    weight = value_of(node.optional(1))
    if weight is None or weight.ndim != 2:
        raise NoMatch("its second operand is no constant matrix")
    name = node.inputs[1].name
    signs = _apply(graph, "Mul", [node.inputs[0], _number(graph, "two", 2.0)])
    signs = _apply(graph, "Add", [signs, _number(graph, "minus_one", -1.0)])
    _replaced(node, "MatMul", [signs, graph.constant(f"{name}_signs", (2 * weight - 1).astype(np.float32))], {})
    _after(graph, node, "Add", [_number(graph, "half_length", weight.shape[0] / 2)], {})
    _after(graph, node, "Mul", [_number(graph, "half", 0.5)], {})
    return True


@LAYERS.on("QuantAvgPool2d", domain=GENERAL)
def average_of_integers(graph: QuantGraph, node: Node) -> bool:
    """The sum of integers, its lowest bits cut off: half of what is cut shifts the rounding, with no tie left."""
    kernel, stride, bits = (int(node.attr(name, 1)) for name in ("kernel", "stride", "ibits"))
    wide, signed = int(node.attr("obits", 1)), bool(node.attr("signed", 0))
    if not (1 <= kernel <= 1024 and 1 <= bits <= 32 and 1 <= wide <= 32):
        raise NoMatch("its widths are out of range")
    shift = max((((1 << bits) - 1) * kernel * kernel).bit_length() - wide, 0)
    bounds = integer_range(wide, signed)
    dtype = container(*bounds)
    if dtype is None:
        raise NoMatch("no integer type holds its results")
    last = node.attr("data_layout", "NCHW") == "NHWC"
    x = node.inputs[0]
    x = _apply(graph, "Transpose", [x], {"perm": channels_to_second(4)}) if last else x
    x = _apply(graph, "AveragePool", [x], {"kernel_shape": [kernel] * 2, "strides": [stride] * 2})
    x = _apply(graph, "Mul", [x, _number(graph, "pool_size", kernel * kernel / 2.0**shift)])
    cut = (2.0**shift - 1) / 2 ** (shift + 1)
    x = _apply(graph, "Add", [x, _number(graph, "pool_cut", -cut)]) if cut else x
    _replaced(node, FAKE_QUANT, [x], {"params": QuantParams.per_tensor(1.0, 0, dtype).with_range(*bounds)})
    if last:
        _after(graph, node, "Transpose", [], {"perm": channels_to_end(4)})
    return True


@LAYERS.on("DebugMarker", domain=GENERAL)
def marker(graph: QuantGraph, node: Node) -> bool:
    """Nothing is computed."""
    _replaced(node, "Identity", [node.inputs[0]], {})
    return True


# -- inputs -----------------------------------------------------------------------------------------------------------


def annotated(name: str) -> QuantParams | None:
    """The grid of a FINN data type, None where it is no integer or fixed-point one of up to 32 bits.

    >>> str(annotated("UINT8")), annotated("FLOAT32"), str(annotated("FIXED<8,2>"))
    ('uint8 scale 1 zero 0', None, 'int8 scale 0.015625 zero 0')
    """
    scale, bounds = 1.0, _NAMED.get(name)
    if (found := _INTEGERS.fullmatch(name)) is not None:
        bits = int(found[2])
        bounds = (0, 2**bits - 1) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits else None
    elif (found := _FIXED.fullmatch(name)) is not None and int(found[1]):
        bits = int(found[1])
        scale, bounds = 2.0 ** (int(found[2]) - bits), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    dtype = None if bounds is None or bounds == (0, 0) else container(*bounds)
    return None if dtype is None or bounds is None else QuantParams.per_tensor(scale, 0, dtype).with_range(*bounds)


def state_inputs(graph: QuantGraph) -> None:
    """Round the graph inputs that the file says to hold integers onto those, where no quantizer does."""
    for tensor in graph.inputs:
        params = annotated(graph.annotations.get(tensor.name, {}).get(_ANNOTATION, ""))
        readers = graph.consumers(tensor)
        if params is None or tensor.dtype not in (None, _FLOAT) or any(r.op == FAKE_QUANT for r in readers):
            continue
        y = graph.variable(f"{tensor.name}_{params.dtype}", _FLOAT, tensor.shape)
        relink(tensor, y)
        graph.nodes.insert(0, graph.insert(FAKE_QUANT, [tensor], [y], attrs={"params": params}))
        graph.nodes.pop()
