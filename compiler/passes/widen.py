"""Widen: tensors of half precision become float32, so that later passes see one type of real numbers.

    x: float16 -> Conv(W: float16) -> Relu -> y: float16
    x: float16 -> Cast -> Conv(W: float32) -> Relu -> Cast -> y: float16

Graph inputs and outputs of float16 keep their type (those of bfloat16, which NumPy lacks, become float32). Casts
between half and single precision in the graph do nothing any more and go (`modernize`). The quantized values are those
of the float32 computation: training computed them in float32 as a rule (mixed precision), and where it did not they
differ by what half precision loses. The integers of weights are the file's own: from opset 23 on QuantizeLinear divides
in the precision of its scale, and to half precision one quotient in seventy falls on another side of a tie.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np
import onnx
import onnx.numpy_helper

from qatc.compiler.graph import Constant, QuantGraph, Variable
from qatc.compiler.model.links import relink
from qatc.compiler.model.protos import all_bodies, tensors_of
from qatc.compiler.quant import Array
from qatc.compiler.storage import release

_SINGLE: Final = int(onnx.TensorProto.FLOAT)
_HALF: Final = int(onnx.TensorProto.FLOAT16)
_DIVIDES_IN_HALF: Final = 23  # the opset from which on QuantizeLinear has a precision, its scale's by default
_HALVES: Final = frozenset({_HALF, int(onnx.TensorProto.BFLOAT16)})
_NAMES: Final = frozenset({"float16", "bfloat16"})
_TYPED: Final = ("to", "dtype")  # attributes that name the type of a result


def widen(graph: QuantGraph) -> None:
    """Rewrite a graph of half precision in place, the bodies of its nodes (If, Loop, Scan) with it."""
    if not _has_halves(graph):
        return
    if graph.opset >= _DIVIDES_IN_HALF:
        _round_weights(graph)
    given = [t for t in graph.inputs if t.dtype == _HALF]
    wanted = [t for t in graph.outputs if isinstance(t, Variable) and t.inputs and t.dtype == _HALF]
    for tensor in list(graph.tensors()):
        if isinstance(tensor, Constant):
            if _holds_halves(tensor):
                single = graph.storage.empty(tensor.values.shape, np.float32)
                single[...] = tensor.values
                release(tensor.values)
                release(single)
                tensor.values = single
        elif isinstance(tensor, Variable) and _is_half(tensor.dtype):
            tensor.dtype = _SINGLE
    for node in graph.nodes:
        for key, value in node.attrs.items():
            if key in _TYPED and value in _HALVES:
                node.attrs[key] = _SINGLE
            elif isinstance(value, np.ndarray) and str(cast("Array", value).dtype) in _NAMES:
                node.attrs[key] = cast("Array", value).astype(np.float32)
            elif isinstance(value, onnx.GraphProto):
                node.attrs[key] = _widened_body(value)
    for tensor in given:
        _cast_input(graph, tensor)
    for tensor in wanted:
        _cast_output(graph, tensor)
    graph.sort()
    graph.diagnostics.note(
        "QAT108",
        "tensors of half precision are computed in float32",
        hint="inputs and outputs of float16 keep their type",
    )


def _round_weights(graph: QuantGraph) -> None:
    """Give each QuantizeLinear of a constant the numbers on the grid that it rounds to in half precision."""
    for node in graph.nodes:
        x, scale = (*node.inputs[:2], None, None)[:2]
        if node.op != "QuantizeLinear" or node.domain or not (isinstance(x, Constant) and isinstance(scale, Constant)):
            continue
        kinds = {x.values.dtype.name, scale.values.dtype.name}
        if kinds != {"float16"} or node.attr("precision", 0) not in (0, _HALF) or node.attr("block_size", 0):
            continue
        step = scale.values
        if step.size > 1:
            axis = int(node.attr("axis", 1)) % max(x.values.ndim, 1)
            if step.ndim != 1 or x.values.shape[axis : axis + 1] != step.shape:
                continue  # what is wrong with it is told where it is read
            step = step.reshape([-1 if i == axis else 1 for i in range(x.values.ndim)])
        with np.errstate(all="ignore"):
            rounded = np.rint(np.asarray(x.values / step, np.float32)) * step.astype(np.float32)
        if np.isfinite(rounded).all():
            node.inputs[0] = graph.constant(f"{x.name}_rounded", rounded)


def _cast_input(graph: QuantGraph, tensor: Variable) -> None:
    """The input keeps its type; what reads it reads a cast."""
    single = graph.variable(f"{tensor.name}_single", _SINGLE, tensor.shape)
    relink(tensor, single)
    tensor.dtype = _HALF
    graph.insert("Cast", [tensor], [single], attrs={"to": _SINGLE})


def _cast_output(graph: QuantGraph, tensor: Variable) -> None:
    """The output keeps its type and name; what made it makes its value in float32."""
    single = graph.variable(f"{tensor.name}_single", _SINGLE, tensor.shape)
    maker = graph.producer(tensor)
    if maker is None:
        return
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = single
    relink(tensor, single)
    tensor.dtype = _HALF
    graph.insert("Cast", [single], [tensor], attrs={"to": _HALF})


def _has_halves(graph: QuantGraph) -> bool:
    if any(n.op == "Cast" and n.attr("to") in _HALVES for n in graph.nodes):
        return True
    return any(_holds_halves(t) if isinstance(t, Constant) else _is_half(t.dtype) for t in graph.tensors())


def _holds_halves(constant: Constant) -> bool:
    dtype = constant.values.dtype
    return dtype.itemsize == 2 and dtype.name in _NAMES  # numpy takes longer to say its name


def _is_half(kind: object) -> bool:
    return kind in _HALVES


def _widened_body(body: onnx.GraphProto) -> onnx.GraphProto:
    """The body with float32 in the place of half precision, and so the bodies in it."""
    made = onnx.GraphProto()
    made.CopyFrom(body)
    for graph in (made, *all_bodies(made.node)):
        for port in (*graph.input, *graph.output, *graph.value_info):
            if _is_half(port.type.tensor_type.elem_type):
                port.type.tensor_type.elem_type = _SINGLE
        attributes = [a for node in graph.node for a in node.attribute]
        for attribute in attributes:
            if attribute.name in _TYPED and _is_half(attribute.i):
                attribute.i = _SINGLE
        for tensor in (*graph.initializer, *(t for a in attributes for t in tensors_of(a))):
            if _is_half(tensor.data_type):
                single = np.asarray(onnx.numpy_helper.to_array(tensor), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(single, tensor.name))
        _drop_casts(graph)
    return made


def _drop_casts(body: onnx.GraphProto) -> None:
    """Casts of float32 to float32 do nothing, and ONNX Runtime takes them away from bodies inside that read them."""
    ports = (*body.input, *body.value_info)
    single = {p.name for p in ports if p.type.tensor_type.elem_type == _SINGLE}
    single.update(t.name for t in body.initializer if t.data_type == _SINGLE)
    for node in body.node:
        if node.op_type == "Cast" and any(a.name == "to" and a.i == _SINGLE for a in node.attribute):
            if node.input[0] in single:
                node.op_type = "Identity"
                del node.attribute[:]
            single.update(node.output)
