"""Huawei Ascend: the integer models of AMCT and msModelSlim, whose nodes stand in the default domain.

    x -> AscendQuant(1/s, z) -> Conv(W int8, B int32) -> AscendDequant(d) -> y

    x -> FakeQuant(s, z) -> Conv(d/s * W, d * B) -> y

The operators between are standard ones that compute with integers: what is padded is the zero point, and the offset z
is taken off inside (Ascend's compiler folds it into the bias). A scale d is a float32 in the lower half of a uint64;
what AMCT puts above it, a shift or a zero point of the weights, is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, Tensor, Variable, is_constant, value_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import is_product, output_axis
from qatc.compiler.quant import Array, dtype_name
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import constant_input, number, refuse
from qatc.frontends.common.params import integer_range, make_params
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, grid, grid_behind, owned

_QUANT: Final = "AscendQuant"
_DEQUANT: Final = "AscendDequant"
_BACK: Final = "AscendAntiQuant"
_WEIGHT: Final = "AscendWeightQuant"
_WEIGHTS: Final = ("int4", "int8", "int16")
_NAMES: Final = frozenset({_QUANT, _DEQUANT, _BACK, _WEIGHT})
_FLOAT: Final = onnx.TensorProto.FLOAT
_UPPER: Final = np.uint64(32)
_CLOSE: Final = 1e-6
_HINT: Final = "AMCT's fake-quantized model (fake_quant_model.onnx) has the same values in standard operators"


def _owns(op: str, domain: str) -> bool:
    return op in _NAMES and not domain


def _quantize(graph: QuantGraph, node: Node) -> None:
    """AscendQuant, saturate(round(x * scale) + offset), becomes a FakeQuant; what only moves it reads real numbers."""
    bits, factor = _bits(node), number(graph, node, "scale", 1)
    offset = number(graph, node, "offset", 2) if node.attr("offset") is not None or len(node.inputs) > 2 else 0.0
    if factor is None or offset is None:
        return
    factor = factor * factor if node.attr("sqrt_mode", 0) else factor
    if bits is None or factor <= 0:
        what = f"{node.attr('dst_type')} numbers" if bits is None else f"a factor of {factor:.6g}"
        refuse(graph, node, "QAT103", f"AscendQuant makes {what}")
        return
    params = grid(graph, node, np.asarray(1 / factor), np.asarray(offset), integer_range(bits, signed=True))
    if params is None:
        return
    qdq.to_fake_quant(graph, node, params)
    waiting: list[Tensor] = [node.outputs[0]]
    for tensor in waiting:  # the file may state that these hold integers
        _float(tensor)
        waiting += [t for n in graph.consumers(tensor) if is_movement(n) for t in n.outputs]


def _bits(node: Node) -> int | None:
    """How wide the integers are: of AMCT's dst_type, or msModelSlim's quant_bit; None for other formats."""
    named = {"INT4": 4, "INT8": 8, "INT16": 16}.get(str(node.attr("dst_type", "INT8")))
    stated = node.attr("quant_bit", node.attr("quant_bits", named))
    return int(stated) if stated in (4, 8, 16) else None


def _dequantize(graph: QuantGraph, node: Node) -> None:
    """AscendDequant: its scale goes into the weight that the product before reads, and into its bias."""
    scale, (product, biases) = _scale(graph, node), _product(graph, node)
    if scale is None:
        return
    data, weight = (None, None) if product is None else (grid_behind(graph, product.inputs[0]), product.inputs[1])
    stored = value_of(weight)
    dtype = "" if stored is None else dtype_name(stored.dtype)
    if product is None or data is None or data.is_per_channel or stored is None or dtype not in _WEIGHTS:
        maker = product or graph.producer(node.inputs[0])
        made = f"what {maker.op if maker else 'a graph input'} makes"
        refuse(graph, node, "QAT104", f"this AscendDequant scales {made}, not a product of integers", _HINT)
        return
    if any(graph.only_consumer(t) is None for t in (node.inputs[0], product.outputs[0])):
        refuse(graph, node, "QAT104", "something else reads the integers that this AscendDequant scales", _HINT)
        return
    name, axis = product.inputs[1].name, output_axis(product, stored.ndim)
    params = make_params(graph, node, scale / data.scale[0], None, dtype, axis=axis, shape=stored.shape, tensor=name)
    if params is None:
        return
    product.inputs[1] = graph.constant(f"{name}_{dtype}", stored, params)
    graph.origin[product.inputs[1].name] = name
    for reader, index in biases:
        behind = stored.ndim - 2 if reader is not product and product.op in ("Conv", "ConvTranspose") else 0
        _scale_bias(graph, node, reader, index, scale.reshape(-1, *(1,) * behind))
    _float(product.outputs[0])
    _float(node.inputs[0])
    if node.attr("relu_flag", 0):
        node.op, node.inputs = "Relu", [node.inputs[0]]
        node.attrs.clear()
    else:
        graph.bypass(node)


def _scale_bias(graph: QuantGraph, node: Node, reader: Node, index: int, scale: Array) -> None:
    """Make real numbers of the bias that `reader` adds to the integers, by the scales of the AscendDequant `node`."""
    value = constant_input(graph, reader, index, "bias")
    if value is None:
        return
    try:
        real = (value.astype(np.float64) * scale).astype(np.float32)
    except ValueError:
        message = f"a bias of shape {list(value.shape)} does not fit {scale.size} scales"
        refuse(graph, node, "QAT204", message, _HINT)
        return
    reader.inputs[index] = graph.constant(f"{reader.inputs[index].name}_real", real)


def _scale(graph: QuantGraph, node: Node) -> Array | None:
    """The scales of an AscendDequant, float64 [C] or [1]; None with the finding recorded."""
    stored = constant_input(graph, node, 1, "scale")
    if stored is None:
        return None
    if stored.dtype != np.uint64:
        scale = stored.reshape(-1).astype(np.float64)
    elif np.any(stored >> _UPPER):
        message = "the scales of this AscendDequant hold a shift, or a zero point of the weights"
        refuse(graph, node, "QAT103", message, _HINT)
        return None
    else:
        scale = stored.reshape(-1).astype(np.uint32).view(np.float32).astype(np.float64)
    return scale * scale if node.attr("sqrt_mode", 0) else scale


def _product(graph: QuantGraph, node: Node) -> tuple[Node | None, list[tuple[Node, int]]]:
    """The product that an AscendDequant scales, and where its bias is read: as its third input, or by an Add behind."""
    biases: list[tuple[Node, int]] = []
    maker = graph.producer(node.inputs[0])
    if maker is not None and maker.op == "Add" and not maker.domain:
        index = next((i for i, t in enumerate(maker.inputs) if is_constant(t)), None)
        if index is not None:
            biases.append((maker, index))
            maker = graph.producer(maker.inputs[1 - index])
    if maker is None or not is_product(maker):
        return None, biases
    if maker.optional(2) is not None:
        biases.append((maker, 2))
    return maker, biases


def _float(tensor: Tensor) -> None:
    if isinstance(tensor, Variable):
        tensor.dtype = _FLOAT


def _back(graph: QuantGraph, node: Node) -> None:
    """AscendAntiQuant, (q + offset) * scale, makes real numbers again of what an AscendQuant made: those are there."""
    scale, offset = number(graph, node, "scale", 1), number(graph, node, "offset", 2)
    params = grid_behind(graph, node.inputs[0])
    if scale is None or offset is None:
        return
    scale = scale * scale if node.attr("sqrt_mode", 0) else scale
    same = params is not None and not params.is_per_channel and params.zero_point[0] == -offset
    if params is None or not same or abs(scale / params.scale[0] - 1) > _CLOSE:
        message = f"this AscendAntiQuant states a scale of {scale:.6g} and an offset of {offset:.6g}, its data {params}"
        refuse(graph, node, "QAT203", message)
        return
    graph.bypass(node)


def _weight(graph: QuantGraph, node: Node) -> None:
    """AscendWeightQuant, w - offset: without an offset the weight itself."""
    offset = constant_input(graph, node, 1, "offset")
    if offset is None:
        return
    if np.any(offset):
        refuse(graph, node, "QAT103", "this AscendWeightQuant takes an offset off its weights", _HINT)
        return
    graph.bypass(node)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=owned(_owns))
    graph.sort()
    rules = {_WEIGHT: _weight, _QUANT: _quantize, _DEQUANT: _dequantize, _BACK: _back}
    for op, rule in rules.items():  # each reads what those before it made
        for node in [n for n in graph.nodes if n.op == op and not n.domain]:
            rule(graph, node)
    if graph.diagnostics.errors:
        return
    graph.sort()
    graph.clean()
    finish(graph, options)


FRONTEND = Frontend(
    name="ascend",
    description="the integer models of Huawei's AMCT and msModelSlim (AscendQuant, AscendDequant)",
    recognize=by_operators(_owns),
    normalize=_normalize,
    confidence=80,
    exporters=("in their documented form: AMCT (deployed models; PyTorch and ONNX), msModelSlim (ONNX)",),
    limits=(
        "zero points of weights, and shifts beside the scales",
        "quantized AveragePool and recurrent layers, weights that are expanded for sparsity",
    ),
)
