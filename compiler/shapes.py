"""Shapes and element types: ONNX's shape inference on a QuantGraph, without its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import fail
from qatc.compiler.graph import (
    FAKE_QUANT,
    REQUANTIZE,
    Dim,
    Node,
    QuantGraph,
    Variable,
    elements,
    rank_of,
    shape_of,
)
from qatc.compiler.model.foreign import shape_twins
from qatc.compiler.model.links import label_of
from qatc.compiler.model.negative_sizes import TOO_SMALL, up_to_negative_slice
from qatc.compiler.model.pools import rounded_down
from qatc.compiler.model.protos import BODIES, CHECK_ERRORS
from qatc.compiler.model.rests import rests_of_reshapes
from qatc.compiler.model_io import dims_of, node_proto, value_info

_MOST_SIZES: Final = 1024  # elements of a constant that shape inference is given
_LONGEST: Final = 1 << 20  # elements of a list whose values shape inference may follow
_BLIND_OPSET: Final = 13  # in which ONNX's inference does not see through the computed shapes of a Reshape
_NO_SIZES: Final = frozenset(  # element types that sizes are never of
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
#: What moves over its input, and the smallest size of a result that ONNX Runtime takes.
_WINDOWS: Final = {"AveragePool": 0, "Conv": 0, "ConvTranspose": 1, "LpPool": 0, "MaxPool": 0}
_MADE_UP: Final = "unk__"  # what the names begin with that inference gives to sizes that it cannot tell
_DimProto = onnx.TensorShapeProto.Dimension


def model_skeleton(graph: QuantGraph) -> onnx.ModelProto:
    """The graph as a ModelProto without its large constants (they become inputs), for ONNX's shape inference."""
    extra: list[onnx.ValueInfoProto] = []
    small: list[onnx.TensorProto] = []
    for tensor in graph.constants():
        value = tensor.values
        if value.size <= _MOST_SIZES and tensor.name not in graph.params:
            small.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), tensor.name))
        else:
            kind = (
                onnx.TensorProto.FLOAT
                if tensor.name in graph.params
                else onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            )
            declared = onnx.ValueInfoProto(name=tensor.name)  # the helper takes ten times as long
            declared.type.tensor_type.elem_type = kind
            declared.type.tensor_type.shape.dim.extend(_DimProto(dim_value=d) for d in value.shape)
            extra.append(declared)
    nodes: list[onnx.NodeProto] = []
    for n in graph.nodes:
        if n.op in (REQUANTIZE, FAKE_QUANT):
            nodes.append(onnx.helper.make_node("Identity", [n.inputs[0].name], [n.outputs[0].name]))
        else:
            nodes += shape_twins(rounded_down(node_proto(n)))
    imports = [onnx.helper.make_opsetid(d, v) for d, v in {"": graph.opset, **graph.domains}.items()]
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION, opset_import=imports)  # the helpers copy all of it twice
    model.graph.name = graph.name or "graph"
    model.graph.node.extend(nodes)
    model.graph.input.extend([*(value_info(t) for t in graph.inputs), *extra])
    model.graph.output.extend(value_info(t) for t in graph.outputs)
    model.graph.initializer.extend(small)
    return model


def infer_shapes(graph: QuantGraph, pinned: Mapping[str, Sequence[int]] | None = None) -> None:
    """Fill in shapes and element types by ONNX shape inference; large constants are not serialized for it.

    A second inference with symbolic dimensions pinned (to `pinned` by input name, else to 1) fills
    `graph.sample_shapes`, which see through shapes that are computed in the graph.
    """
    skeleton = model_skeleton(graph)
    if graph.opset == _BLIND_OPSET and all(len(n.outputs) == 1 for n in graph.nodes if n.op == "BatchNormalization"):
        skeleton.opset_import[0].version += 1  # the operators say the same there
    known = _inferred(skeleton)
    shapes = _shapes(known)
    _fill_in(graph, known, shapes)
    for node in graph.nodes:
        if node.op in _WINDOWS and not node.domain:
            _refuse_other_rank(node)
    _name_sizes(graph)
    _pin(skeleton, pinned or {})
    if not _is_static(graph):
        shapes = _shapes(_inferred(skeleton, trial=True))
    inputs = {i.name: i.type.tensor_type for i in skeleton.graph.input}
    for name, dims in (shapes | _shapes(inputs)).items():
        sizes = tuple(d for d in dims if isinstance(d, int))
        if len(sizes) == len(dims):
            graph.sample_shapes[name] = sizes


def _fill_in(
    graph: QuantGraph, known: Mapping[str, onnx.TypeProto.Tensor], shapes: Mapping[str, tuple[Dim, ...]]
) -> None:
    for tensor in graph.made():
        found = known.get(tensor.name)
        if found is None or not isinstance(tensor, Variable):
            continue
        if found.elem_type:
            tensor.dtype = found.elem_type
        if tensor.name in shapes:
            tensor.shape = list(shapes[tensor.name])
            if None in tensor.shape or 0 in tensor.shape:
                _refuse_too_large(graph, tensor, found)


def _name_sizes(graph: QuantGraph) -> None:
    """Open sizes of the outputs get the file's names for them where inference made one up."""
    for tensor in graph.outputs:
        stated, found = graph.declared.get(tensor.name), shape_of(tensor)
        if isinstance(tensor, Variable) and stated and found and len(stated) == len(found):
            tensor.shape = [
                name if isinstance(name, str) and str(size).startswith(_MADE_UP) else size
                for name, size in zip(stated, found, strict=True)
            ]


def _refuse_other_rank(node: Node) -> None:
    """QAT004 for a window over a tensor of another rank: inference leaves its result open and goes on."""
    weight = rank_of(node.inputs[1]) if len(node.inputs) > 1 else None
    wanted, rank = weight or len(node.attr("kernel_shape", [])) + 2, rank_of(node.inputs[0])
    if rank not in (None, wanted) and wanted > 2:
        message = f"{node.op} has a window for {wanted} dimensions, its input has {rank}"
        hint = "repair the model: ONNX Runtime cannot run it either"
        raise fail("QAT004", message, node=label_of(node), tensor=node.inputs[0].name, hint=hint)


def _refuse_too_large(graph: QuantGraph, tensor: Variable, found: onnx.TypeProto.Tensor) -> None:
    """QAT004 for a window that is larger than what it slides over: inference goes on with sizes below zero."""
    maker = graph.producer(tensor)
    if maker is None or maker.domain or maker.op not in _WINDOWS:
        return
    sizes = [dim.dim_value for dim in list(found.shape.dim)[2:] if dim.HasField("dim_value")]
    if sizes and min(sizes) < _WINDOWS[maker.op]:
        message = f"{maker.op} would have a result of size {min(sizes)}: its window or padding is too large"
        raise fail("QAT004", message, node=label_of(maker), tensor=tensor.name, hint=TOO_SMALL)


def infer_new_shapes(graph: QuantGraph, pinned: Mapping[str, Sequence[int]] | None = None) -> None:
    """`infer_shapes` again, where there are tensors that it has not seen."""
    seen = graph.sample_shapes
    unseen = [t for t in graph.made() if t.name and (t.dtype is None or t.name not in seen)]
    if unseen:
        infer_shapes(graph, pinned)


def _is_static(graph: QuantGraph) -> bool:
    return all(elements(shape_of(t)) is not None for t in graph.inputs)


def _pin(model: onnx.ModelProto, pinned: Mapping[str, Sequence[int]]) -> None:
    """Give every symbolic dimension of the inputs a number, and forget what the outputs declare."""
    for info in model.graph.input:
        shape = pinned.get(info.name)
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = shape[axis] if shape is not None and axis < len(shape) else 1
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _inferred(model: onnx.ModelProto, *, trial: bool = False) -> dict[str, onnx.TypeProto.Tensor]:
    """What inference knows; sizes that are only tried out may turn out to be too small for the model."""
    try:
        model = up_to_negative_slice(model, data_prop=False, trial=trial)
        found = onnx.shape_inference.infer_shapes(model).graph
        if _computes_sizes(found) and not any(map(_is_long, (*found.input, *found.value_info, *found.output))):
            model = up_to_negative_slice(model, data_prop=True, trial=trial)
            found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
            told = [] if trial else rests_of_reshapes(found)
            if told:
                known = onnx.ModelProto()
                known.CopyFrom(model)
                known.graph.value_info.extend(told)
                found = onnx.shape_inference.infer_shapes(known, data_prop=True).graph
    except CHECK_ERRORS as error:
        message = f"the shapes or types of the model contradict each other: {error}"
        raise fail("QAT004", message, hint="onnx.checker.check_model(path, full_check=True) tells more") from error
    return {v.name: v.type.tensor_type for v in [*found.value_info, *found.output] if v.type.HasField("tensor_type")}


def _computes_sizes(graph: onnx.GraphProto) -> bool:
    """Whether operators make integers that may be sizes; where none does, there are no values to follow."""
    if any(v.type.tensor_type.elem_type not in _NO_SIZES for v in (*graph.value_info, *graph.output)):
        return True
    return any(a.type in BODIES for n in graph.node for a in n.attribute)


def _is_long(info: onnx.ValueInfoProto) -> bool:
    """Whether a list has more elements than any list of sizes: following its values would take gigabytes."""
    dims = info.type.tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > _LONGEST


def _shapes(kinds: Mapping[str, onnx.TypeProto.Tensor]) -> dict[str, tuple[Dim, ...]]:
    """The shapes of the tensors whose rank is known."""
    return {name: dims_of(kind) for name, kind in kinds.items() if kind.HasField("shape")}
