"""Widen: tensors of half precision become float32, so that later passes see one type of real numbers.

So do those of a graph that is of double precision throughout, as `model.double()` leaves it; see below.

    x: float16 -> Conv(W: float16) -> Relu -> y: float16
    x: float16 -> Cast -> Conv(W: float32) -> Relu -> Cast -> y: float16

Graph inputs and outputs of float16 keep their type (those of bfloat16, which NumPy lacks, become float32). Casts
between half and single precision in the graph do nothing any more and go (`modernize`). The quantized values are those
of the float32 computation: training computed them in float32 as a rule (mixed precision), and where it did not they
differ by what half precision loses. The integers of weights are the file's own: from opset 23 on QuantizeLinear divides
in the precision of its scale, and to half precision one quotient in seventy falls on another side of a tie.

Grids are of float32 (`real = scale * (q - zero_point)`), so what computes on them in double precision alone means the
same in float32, but for ties. Doubles beside float32 stay: they are there for what float32 cannot hold, such as the
products of 32-bit mantissas in I-BERT.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np
import onnx
import onnx.numpy_helper

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, Variable
from qatc.compiler.model.links import relink
from qatc.compiler.model.protos import all_bodies, tensors_of
from qatc.compiler.quant import Array
from qatc.compiler.storage import release

_SINGLE: Final = int(onnx.TensorProto.FLOAT)
_HALF: Final = int(onnx.TensorProto.FLOAT16)
_DIVIDES_IN_HALF: Final = 23  # the opset from which on QuantizeLinear has a precision, its scale's by default
_DOUBLE: Final = int(onnx.TensorProto.DOUBLE)
_HALVES: Final = frozenset({_HALF, int(onnx.TensorProto.BFLOAT16)})
_DOUBLES: Final = frozenset({_DOUBLE})
_NAMES: Final = {"float16": _HALF, "bfloat16": int(onnx.TensorProto.BFLOAT16), "float64": _DOUBLE, "float32": _SINGLE}
_KEPT: Final = frozenset({_HALF, _DOUBLE})  # the types of inputs and outputs that NumPy has
_TYPED: Final = ("to", "dtype")  # attributes that name the type of a result


def widen(graph: QuantGraph) -> None:
    """Rewrite a graph of half, or throughout of double precision, in place, the bodies of its nodes with it."""
    held = _kinds(graph)
    kinds = _HALVES if held & _HALVES else _DOUBLES
    if not held & kinds or (kinds is _DOUBLES and _SINGLE in held):
        return
    if kinds is _HALVES and graph.opset >= _DIVIDES_IN_HALF:
        _round_weights(graph)
    given = [t for t in graph.inputs if t.dtype in kinds & _KEPT]
    wanted = [t for t in graph.outputs if isinstance(t, Variable) and t.inputs and t.dtype in kinds & _KEPT]
    types = {id(t): t.dtype for t in (*given, *wanted) if isinstance(t.dtype, int)}
    for tensor in list(graph.tensors()):
        _widen_tensor(graph, tensor, kinds)
    for node in graph.nodes:
        _widen_attributes(node, kinds)
    for tensor in given:
        _cast_input(graph, tensor, types[id(tensor)])
    for tensor in wanted:
        _cast_output(graph, tensor, types[id(tensor)])
    graph.sort()
    graph.restated.append("half or double precision is computed in float32")
    precision, kept = ("half", " of float16") if kinds is _HALVES else ("double", "")
    graph.diagnostics.note(
        "QAT108",
        f"tensors of {precision} precision are computed in float32",
        hint=f"inputs and outputs{kept} keep their type",
    )


def _widen_tensor(graph: QuantGraph, tensor: Tensor, kinds: frozenset[int]) -> None:
    if isinstance(tensor, Constant):
        if _NAMES.get(tensor.values.dtype.name) in kinds:
            single = graph.storage.empty(tensor.values.shape, np.float32)
            with np.errstate(over="ignore"):  # a mask's -1e300 is minus infinity
                single[...] = tensor.values
            release(tensor.values)
            release(single)
            tensor.values = single
    elif isinstance(tensor, Variable) and tensor.dtype in kinds:
        tensor.dtype = _SINGLE


def _widen_attributes(node: Node, kinds: frozenset[int]) -> None:
    for key, value in node.attrs.items():
        if key in _TYPED and value in kinds:
            node.attrs[key] = _SINGLE
        elif isinstance(value, np.ndarray) and _NAMES.get(str(cast("Array", value).dtype)) in kinds:
            node.attrs[key] = cast("Array", value).astype(np.float32)
        elif isinstance(value, onnx.GraphProto):
            node.attrs[key] = _widened_body(value, kinds)


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


def _cast_input(graph: QuantGraph, tensor: Variable, kind: int) -> None:
    """The input keeps its type; what reads it reads a cast."""
    single = graph.variable(f"{tensor.name}_single", _SINGLE, tensor.shape)
    relink(tensor, single)
    tensor.dtype = kind
    graph.insert("Cast", [tensor], [single], attrs={"to": _SINGLE})


def _cast_output(graph: QuantGraph, tensor: Variable, kind: int) -> None:
    """The output keeps its type and name; what made it makes its value in float32."""
    single = graph.variable(f"{tensor.name}_single", _SINGLE, tensor.shape)
    maker = graph.producer(tensor)
    if maker is None:
        return
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = single
    relink(tensor, single)
    tensor.dtype = kind
    graph.insert("Cast", [single], [tensor], attrs={"to": kind})


def _kinds(graph: QuantGraph) -> set[int]:
    """The types of real numbers that a graph's constants hold, and that it states of tensors."""
    cast = {n.attr("to") for n in graph.nodes if n.op == "Cast"}
    held = {t.values.dtype for t in graph.constants()}  # few: NumPy takes long to say a name
    stated = {t.dtype for t in graph.made() if isinstance(t.dtype, int)}
    return {_NAMES.get(d.name, 0) for d in held} | stated | {kind for kind in _NAMES.values() if kind in cast}


def _widened_body(body: onnx.GraphProto, kinds: frozenset[int]) -> onnx.GraphProto:
    """The body with float32 in the place of these types, and so the bodies in it."""
    made = onnx.GraphProto()
    made.CopyFrom(body)
    for graph in (made, *all_bodies(made.node)):
        for port in (*graph.input, *graph.output, *graph.value_info):
            if port.type.tensor_type.elem_type in kinds:
                port.type.tensor_type.elem_type = _SINGLE
        attributes = [a for node in graph.node for a in node.attribute]
        for attribute in attributes:
            if attribute.name in _TYPED and attribute.i in kinds:
                attribute.i = _SINGLE
        for tensor in (*graph.initializer, *(t for a in attributes for t in tensors_of(a))):
            if tensor.data_type in kinds:
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
