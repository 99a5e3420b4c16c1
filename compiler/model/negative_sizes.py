"""Sizes below zero, at which ONNX's shape inference ends the process.

    Conv[kernel_shape=5](x: Nx1x1x1) -> y: Nx8x-3x-3      Slice(y, ...) along such an axis: an assertion in C++ fails

A window larger than what it slides over gives them, and a Pad that cuts off more than there is: where a model is broken
and where a dynamic size is tried out with 1. Inference passes them on; only a Slice does not survive them (onnx 1.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx
import onnx.numpy_helper
import onnx.shape_inference

from qatc.compiler.diagnostics import fail
from qatc.compiler.model.links import label_of
from qatc.compiler.model.protos import captured_names

TOO_SMALL: Final = "give the model larger inputs, or repair it: ONNX Runtime cannot run it either"
_WINDOWS: Final = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})
_BY_OPERANDS: Final = frozenset({"CenterCropPad", "Expand", "Pad", "Resize", "Split", "Tile", "TopK"})
_OTHERS: Final = frozenset(
    {"Col2Im", "ConvInteger", "ConvTranspose", "DeformConv", "MaxUnpool", "QLinearConv", "RoiAlign", "Upsample"}
)


def up_to_negative_slice(model: onnx.ModelProto, *, data_prop: bool, trial: bool = False) -> onnx.ModelProto:
    """The model, or, where its sizes are only tried out, what comes before a Slice behind a size below zero.

    Where a node may give such a size, what is in front of the next Slice is inferred alone, with what is known of the
    pieces before it. In most models no node may: their windows fit whatever they slide over.

    Raises:
        CompileError: QAT004 where there is such a Slice and its sizes are the model's own.
        onnx.shape_inference.InferenceError: as inference does.
    """
    if not any(node.op_type == "Slice" for node in model.graph.node):
        return model
    known = {info.name: info for info in (*model.graph.input, *model.graph.value_info)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    piece: list[onnx.NodeProto] = []
    shrinks = False
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Slice" and shrinks:
            if not _infer(model, piece, known, constants, data_prop=data_prop):
                if not trial:
                    message = "a size before it is below zero: a window or a cut is larger than what it is taken of"
                    raise fail("QAT004", message, node=label_of(node), hint=TOO_SMALL)
                found = onnx.ModelProto()
                found.CopyFrom(model)
                del found.graph.node[index:]
                return found
            piece, shrinks = [], False
        piece.append(node)
        shrinks = shrinks or _may_shrink(node, constants, data_prop=data_prop)
    return model


def _may_shrink(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], *, data_prop: bool) -> bool:
    """Whether a result may have a size below zero though its operand has none; `data_prop` follows computed sizes."""
    if node.op_type in _WINDOWS:
        return not _fits_everything(node)
    if node.op_type not in _BY_OPERANDS:
        return node.op_type in _OTHERS
    held = [constants.get(name) for name in node.input[1:] if name]
    if data_prop and None in held:
        return True
    values = [onnx.numpy_helper.to_array(tensor) for tensor in held if tensor is not None]
    return any(value.dtype.kind not in "iuf" or (value < 0).any() for value in values)  # text is inference's to refuse


def _fits_everything(node: onnx.NodeProto) -> bool:
    """Whether a window reaches no further beyond its padding than a stride: then there is at least none of it."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attrs.get("auto_pad") in (b"SAME_UPPER", b"SAME_LOWER") and not {"dilations", "pads"} & attrs.keys():
        return True
    kernel = attrs.get("kernel_shape") or ()
    rank = len(kernel)
    strides, dilations = (attrs.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = attrs.get("pads") or [0] * 2 * rank
    if (
        not rank
        or not len(strides) == len(dilations) == rank == len(pads) / 2
        or min(*strides, *dilations, *kernel) < 1
    ):
        return False
    ends = zip(kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return all((k - 1) * d + 1 <= s + begin + end for k, s, d, begin, end in ends)


def _infer(
    model: onnx.ModelProto,
    piece: list[onnx.NodeProto],
    known: dict[str, onnx.ValueInfoProto],
    constants: dict[str, onnx.TensorProto],
    *,
    data_prop: bool,
) -> bool:
    """Infer a piece, add what it makes to `known`; whether every size is at least zero."""
    read = dict.fromkeys(name for node in piece for name in (*node.input, *captured_names(node)))
    graph = onnx.GraphProto(name="piece", node=piece)
    graph.input.extend(known[name] for name in read if name in known)
    graph.initializer.extend(constants[name] for name in read if name in constants)
    graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(n for p in piece for n in p.output) if name
    )
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    found = onnx.shape_inference.infer_shapes(part, data_prop=data_prop).graph
    made = [info for info in (*found.value_info, *found.output) if info.type.HasField("tensor_type")]
    known.update((info.name, info) for info in made)
    return all(dim.dim_value >= 0 for info in made for dim in info.type.tensor_type.shape.dim)
