"""Damage to a sound model, as broken exporters and hostile authors would do it: to its structure, not to its bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPS = [
    "Conv", "MatMul", "Add", "Reshape", "Clip", "Gemm", "Concat", "Transpose", "Pad", "Split", "BatchNormalization",
    "MaxPool", "AveragePool", "Relu", "QuantizeLinear", "DequantizeLinear", "Foo", "Squeeze", "Flatten", "Gather",
    "Slice", "Resize", "ReduceMean", "If",
]  # fmt: skip
NAMES = ["axis", "perm", "axes", "group", "auto_pad", "pads", "strides", "kernel_shape", "mode"]


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))] if len(options) else None


def _input_lost(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = _pick(rng, graph.node)
    if node.input:
        index = int(rng.integers(len(node.input)))
        if rng.integers(2):
            node.input[index] = ""
        else:
            del node.input[index]


def _input_crossed(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = _pick(rng, graph.node)
    names = [i.name for i in graph.initializer] + [n for other in graph.node for n in other.output]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, names)


def _operator_changed(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = _pick(rng, graph.node)
    if rng.integers(2):
        node.op_type = _pick(rng, OPS)
    else:
        node.domain = _pick(rng, ["com.microsoft", "x", "ai.onnx"])


def _attribute_damaged(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = _pick(rng, graph.node)
    attribute = _pick(rng, node.attribute)
    if attribute is None:
        node.attribute.append(helper.make_attribute(_pick(rng, NAMES), _pick(rng, [-9, 3, [1, 2], "x", 0.5])))
    elif rng.integers(2):
        node.attribute.remove(attribute)
    elif len(attribute.ints):
        attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(rng, [-1, 0, 7, 2**40])
    else:
        attribute.i = _pick(rng, [-5, 0, 99])


def _values_damaged(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    initializer = _pick(rng, graph.initializer)
    value = numpy_helper.to_array(initializer)
    wild = [np.nan, np.inf, 0, -1, 3e38] if value.dtype.kind == "f" else [0]
    initializer.CopyFrom(numpy_helper.from_array(np.full_like(value, _pick(rng, wild)), initializer.name))


def _form_damaged(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    initializer = _pick(rng, graph.initializer)
    value = numpy_helper.to_array(initializer)
    forms: list[Callable[[], np.ndarray]] = [
        lambda: value.reshape(-1),
        lambda: value[None],
        lambda: np.resize(value, (2, 2)),
        lambda: value.reshape(-1)[:0],
        lambda: np.nan_to_num(value, posinf=0, neginf=0).astype(np.int64),
        lambda: value.astype(np.float64),
    ]
    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(_pick(rng, forms)()), initializer.name))


def _port_damaged(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    kind = graph.input[0].type.tensor_type
    match int(rng.integers(3)):
        case 0:
            kind.ClearField("shape")
        case 1:
            kind.elem_type = _pick(rng, [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT8])
        case _:
            name = _pick(rng, graph.node).output[0]
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


DAMAGES = [
    _input_lost, _input_crossed, _operator_changed, _attribute_damaged, _values_damaged, _form_damaged, _port_damaged,
]  # fmt: skip


def damage(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with one or two damages that `seed` decides."""
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 3))):
        _pick(rng, DAMAGES)(rng, model.graph)
    return model
