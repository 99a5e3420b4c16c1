"""Modernize: bring the operators of opsets 7 to 12 to their opset 13 form, so that later passes see one form of each.

    Squeeze[axes=[2,3]](x)                  Squeeze(x, [2,3])           likewise Unsqueeze, ReduceSum, Split, Pad,
    Clip[min=0 max=6](x)                    Clip(x, 0, 6)               Slice, TopK: attributes become inputs
    Upsample[mode=nearest](x, scales)       Resize[asymmetric floor](x, _, scales)
    Softmax[axis=1](x: NxCxHxW)             Flatten -> Softmax -> Reshape: before 13 it spans all axes from `axis` on
    BatchNormalization -> y, mean, var      BatchNormalization -> y
    Max(Min(x, [[6.]]), 0.)                 Clip(Clip(x, _, 6), 0, _)   in every opset
    Resize(x, [], [], sizes)                Resize(x, _, _, sizes)
    CastLike(x, y: float)                   Cast[to=float](x)
    SequenceAt(SplitToSequence(x, s), 1)    the second output of Split(x, s): see `sequences`
    Swish(x), which is of opset 24          x * Sigmoid(x): see `later`
    Sum(x, y, z), ReduceMean(ReduceMean(x)) Add(Add(x, y), z), one ReduceMean: see `sums`
    FusedConv[activation=Relu](x, w, b)     Relu(Conv(x, w, b)): see `fused`
    QuantizeLinear(x: int32)                QuantizeLinear(Cast(x)): the integers are the numbers, in every opset

In every opset `Constant` nodes become constants, and what does nothing at inference goes: Identity, Dropout, and a Cast
to the type its input has. SAME padding becomes numbers where the sizes are known: runtimes refuse it with dilations, or
forget these.
Graph inputs and outputs keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, Variable, rank_of, shape_of, value_of
from qatc.compiler.model.links import is_op, label_of, relink
from qatc.compiler.passes.attention import attention_to_products
from qatc.compiler.passes.einsum import einsum_to_product
from qatc.compiler.passes.fused import FUSED, is_fused
from qatc.compiler.passes.later import LATER, drop_later_defaults
from qatc.compiler.passes.sequences import collected_sequences, split_sequences
from qatc.compiler.passes.sums import asks_for_rank, reduction_of_a_reduction, sum_of_pairs
from qatc.compiler.passes.training import drops, trains
from qatc.compiler.passes.widen import widen
from qatc.compiler.quant import Array
from qatc.compiler.rewrite import NoMatch, Rules, sweep
from qatc.compiler.shapes import infer_shapes
from qatc.compiler.windows import window

OPSET: Final = 13  # what the rules below write

# Operators and the lists of integers that they had as attributes, the required one first.
_LISTS: Final = {
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "ReduceSum": ("axes",),
    "Split": ("split",),
    "TopK": ("k",),
    "Slice": ("starts", "ends", "axes"),
}
_FLOAT: Final = int(onnx.TensorProto.FLOAT)
_DOUBLE: Final = int(onnx.TensorProto.DOUBLE)
_INT32: Final = int(onnx.TensorProto.INT32)
_SEQUENCES: Final = frozenset({"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceMap", "Optional"})

INERT: Final = Rules("modernize")
_TRAINING_IS_SAID: Final = 14  # the opset since which BatchNormalization has training_mode
UPGRADE: Final = Rules("modernize")
PRODUCTS: Final = Rules("modernize")
ALIKE: Final = Rules("modernize")
PRODUCTS.on("Einsum")(einsum_to_product)
PRODUCTS.on("Attention")(attention_to_products)
ALIKE.on("Sum")(sum_of_pairs)
ALIKE.on("ReduceMean", "ReduceSum")(reduction_of_a_reduction)


def modernize(graph: QuantGraph) -> None:
    """Rewrite the graph in place; afterwards `graph.opset` is at least 13.

    What cannot be brought up goes to `graph.diagnostics` as QAT006, what makes sequences of tensors as QAT302. Bodies
    of If, Loop and Scan stay as they are (`bodies`) until a branch is taken (`branches`).
    """
    graph.clean()  # what nobody reads is no reader of what it reads
    constants_from_nodes(graph)
    if graph.of("SplitToSequence"):
        infer_if_possible(graph)
        split_sequences(graph)
    collected_sequences(graph)
    for node in graph.of(*_SEQUENCES):
        hint = "export with fixed sizes, so that Split and Concat take its place"
        message = f"{node.op} makes a sequence of tensors"
        graph.diagnostics.error("QAT302", message, node=label_of(node), hint=hint)
    widen(graph)
    _sweep(graph, FUSED, is_fused)
    counts = _may_quantize_integers(graph)
    _sweep(
        graph,
        INERT,
        lambda n: _has_no_type(n) or (_is_same(n) and n.attr("dilations")) or (counts and _quantizes_the_unknown(n)),
    )
    _sweep(graph, PRODUCTS, lambda n: not n.domain)  # what did nothing hid constants
    if graph.opset < OPSET:
        sweep(graph, UPGRADE)
        graph.opset = OPSET
    _sweep(graph, ALIKE, lambda n: _resizes_some(n) or asks_for_rank(n) or any(_is_shaped_number(t) for t in n.inputs))
    drop_later_defaults(graph)
    _sweep(graph, LATER, lambda n: n.op == "InsertZeros")


def _sweep(graph: QuantGraph, rules: Rules, reads_shapes: Callable[[Node], bool]) -> None:
    """Try the rules, with shapes inferred anew where there is a node whose rule reads them."""
    nodes = rules.starts(graph.nodes)
    if any(map(reads_shapes, nodes)):
        infer_if_possible(graph)
    sweep(graph, rules, nodes)


def drop_inert_casts(graph: QuantGraph) -> bool:
    """Casts behind a vendor's nodes, which have types once these are FakeQuant: those that do nothing go.

    Returns whether types were looked for.
    """
    casts = graph.of("Cast")
    untyped = any(map(_has_no_type, casts))
    if untyped:
        infer_if_possible(graph)
        sweep(graph, INERT, casts)
    return untyped


def _has_no_type(node: Node) -> bool:
    """Whether a Cast or CastLike reads a tensor of unknown element type, or begins a stretch of double precision."""
    if not is_op(node, "Cast", "CastLike"):
        return False
    return any(element_type(t) is None for t in node.inputs) or (
        node.attr("to") == _DOUBLE and element_type(node.outputs[0]) is None
    )


def _may_quantize_integers(graph: QuantGraph) -> bool:
    """Whether there are int32 that a QuantizeLinear might read, of whose types the file says nothing."""
    return any(t.dtype == _INT32 for t in graph.inputs) or any(n.attr("to") == _INT32 for n in graph.of("Cast"))


def _quantizes_the_unknown(node: Node) -> bool:
    """Whether a QuantizeLinear reads a tensor of unknown element type."""
    return is_op(node, "QuantizeLinear") and bool(node.inputs) and element_type(node.inputs[0]) is None


def infer_if_possible(graph: QuantGraph) -> None:
    """ONNX shape inference for what it is worth: a graph that it cannot handle stays as it is."""
    try:
        infer_shapes(graph)
    except CompileError as error:
        graph.explain("modernize", f"ONNX shape inference gave up: {error}")


def element_type(tensor: Tensor) -> int | None:
    """The TensorProto element type of a tensor, None where it is unknown."""
    if isinstance(tensor, Constant):
        return int(onnx.helper.np_dtype_to_tensor_dtype(tensor.values.dtype))
    kind: Any = tensor.dtype
    if kind is None or isinstance(kind, int):
        return kind or None
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


# -- constants ----------------------------------------------------------------------------------------------------


def constants_from_nodes(graph: QuantGraph) -> None:
    """Turn every `Constant` node into a constant of the graph."""
    gone: list[Node] = []
    for node in list(graph.nodes):
        if node.op != "Constant" or node.domain:
            continue
        value = constant_value(node)
        if value is None:
            graph.diagnostics.error("QAT302", "a Constant node holds no dense tensor of numbers", node=label_of(node))
            continue
        gone.append(node)
        graph.fix(node.outputs[0], value)
    graph.remove(gone)
    if gone:
        graph.sort()


def constant_value(node: Node) -> Array | None:
    """What a `Constant` node holds, None for sparse tensors and strings."""
    for key in ("value_float", "value_int", "value_floats", "value_ints"):
        if key in node.attrs:
            return np.asarray(node.attrs[key], np.float32 if "float" in key else np.int64)
    value: Array | None = node.attrs.get("value")
    return None if value is None or value.dtype.kind in "OSU" else value


# -- what does nothing --------------------------------------------------------------------------------------------


def _bypass(graph: QuantGraph, node: Node) -> bool:
    """Bypass, unless both ends are names of the interface: then the copy is what gives the output its name."""
    source, result = node.inputs[0], node.outputs[0]
    fixed = isinstance(source, Constant) or graph.is_output(source) or any(i is source for i in graph.inputs)
    if graph.is_output(result) and fixed:
        if not graph.consumers(result):
            return False
        relink(result, source)
        return True
    graph.bypass(node)
    return True


@INERT.on("Identity")
def identity(graph: QuantGraph, node: Node) -> bool:
    """Identity(x) is x."""
    return _bypass(graph, node)


@INERT.on("Dropout")
def dropout(graph: QuantGraph, node: Node) -> bool:
    """Dropout does nothing at inference."""
    if drops(node) is not False:
        raise NoMatch("it is in training mode")
    if len(node.outputs) > 1 and (node.outputs[1].outputs or graph.is_output(node.outputs[1])):
        raise NoMatch("its mask is read")
    return _bypass(graph, node)


@INERT.on("Cast")
def no_op_cast(graph: QuantGraph, node: Node) -> bool:
    """Cast to the type the tensor has already."""
    kind = element_type(node.inputs[0])
    if kind is None:
        raise NoMatch("the type of its input is unknown")
    return kind == node.attr("to") and _bypass(graph, node)


@INERT.on("CastLike")
def cast_to_a_known_type(graph: QuantGraph, node: Node) -> bool:
    """A CastLike is a Cast to the type of its second input, and nothing where the first has that type already."""
    kind = element_type(node.inputs[1])
    if kind is None:
        raise NoMatch("the type that it casts to is unknown")
    if kind == element_type(node.inputs[0]) and _bypass(graph, node):
        return True
    node.op, node.inputs, node.attrs["to"] = "Cast", node.inputs[:1], kind
    return True


@INERT.on("QuantizeLinear")
def quantized_integers(graph: QuantGraph, node: Node) -> bool:
    """A QuantizeLinear of int32 rounds the numbers that its integers are: behind it, tensors are real."""
    if not node.inputs or element_type(x := node.inputs[0]) != _INT32:
        return False
    node.inputs[0] = graph.variable(f"{x.name}_real", _FLOAT, x.shape)
    graph.insert("Cast", [x], [node.inputs[0]], attrs={"to": _FLOAT})
    return True


@INERT.on("AveragePool", "Conv", "MaxPool")
def same_padding(_: QuantGraph, node: Node) -> bool:
    """SAME_UPPER and SAME_LOWER become numbers; with stride 1 they do not depend on the input's size."""
    if not _is_same(node):
        return False
    kernel = _kernel_of(node)
    moving = None if kernel is None else window(node, kernel)
    if moving is None:
        raise NoMatch("the padding depends on sizes that are not known")
    node.attrs["pads"] = list(moving.pads)
    node.attrs["auto_pad"] = "NOTSET"
    return True


@INERT.on("AveragePool")
def dilations_of_one(_: QuantGraph, node: Node) -> bool:
    """Only opset 19 and later know them: ONNX Runtime's optimizer hands them to an operator that does not."""
    dilations: Sequence[int] = node.attr("dilations", [])
    if not dilations or any(dilation != 1 for dilation in dilations):
        return False
    del node.attrs["dilations"]
    return True


def _is_same(node: Node) -> bool:
    names = ("AveragePool", "Conv", "MaxPool")
    return node.op in names and not node.domain and node.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _kernel_of(node: Node) -> tuple[int, ...] | None:
    """The kernel, stated or that of weights [M, C, taps...]; None where it, or what belongs to it, does not fit."""
    weight = shape_of(node.inputs[1]) if len(node.inputs) > 1 else None
    stated: Sequence[Any] = node.attr("kernel_shape") or (weight or ())[2:]
    sizes = tuple(k for k in stated if isinstance(k, int))
    lengths = [len(node.attr(name) or sizes) for name in ("strides", "dilations")]
    if not sizes or {len(stated), *lengths, (rank_of(node.inputs[0]) or len(sizes) + 2) - 2} != {len(sizes)}:
        return None
    return sizes


# -- attributes that became inputs --------------------------------------------------------------------------------


def _integers(graph: QuantGraph, node: Node, what: str, values: Any) -> Constant:
    return graph.constant(f"{node.outputs[0].name}_{what}", np.asarray(values, np.int64).reshape(-1))


def _number(graph: QuantGraph, node: Node, what: str, value: float) -> Constant:
    kind = element_type(node.inputs[0])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(np.float32)
    return graph.constant(f"{node.outputs[0].name}_{what}", np.asarray(value, dtype))


@UPGRADE.on(*_LISTS)
def lists_become_inputs(graph: QuantGraph, node: Node) -> bool:
    """Lists of integers: attributes before 13 (axes, split) or before 10 (k, starts, ends)."""
    names = [name for name in _LISTS[node.op] if name in node.attrs]
    if not names or names[0] != _LISTS[node.op][0]:
        return False
    node.inputs += [_integers(graph, node, name, node.attrs.pop(name)) for name in names]
    return True


@UPGRADE.on("Clip")
def clip_becomes_inputs(graph: QuantGraph, node: Node) -> bool:
    """min, max: attributes before 11."""
    if "min" not in node.attrs and "max" not in node.attrs:
        return False
    for name in ("min", "max"):
        bound = node.attrs.pop(name, None)
        node.inputs.append(Variable("") if bound is None else _number(graph, node, name, bound))
    return True


@UPGRADE.on("Pad")
def pads_become_inputs(graph: QuantGraph, node: Node) -> bool:
    """pads, value: attributes before 11."""
    if "pads" not in node.attrs:
        return False
    node.inputs.append(_integers(graph, node, "pads", node.attrs.pop("pads")))
    value = node.attrs.pop("value", 0.0)
    if node.attr("mode", "constant") == "constant":
        node.inputs.append(_number(graph, node, "value", value))
    return True


# -- operators that say the same ----------------------------------------------------------------------------------


@ALIKE.on("Min", "Max")
def bound_by_a_number(graph: QuantGraph, node: Node) -> bool:
    """The smaller or larger of a tensor and one real number is a Clip with one bound."""
    if len(node.inputs) != 2:
        return False
    index = next((i for i, t in enumerate(node.inputs) if _one_real(t) is not None), None)
    number = None if index is None else _one_real(node.inputs[index])
    if index is None or number is None:
        return False
    x = node.inputs[1 - index]
    rank = rank_of(x)
    if isinstance(x, Constant) or (number.ndim and (rank is None or number.ndim > rank)):
        raise NoMatch("the number may give the result another rank")
    bound = graph.constant(f"{node.outputs[0].name}_bound", number.reshape(()))
    node.inputs = [x, Variable(""), bound] if node.op == "Min" else [x, bound]
    node.op = "Clip"
    return True


def _one_real(tensor: Tensor) -> Array | None:
    """A constant that is one real number, of any rank."""
    value = value_of(tensor)
    return value if value is not None and value.size == 1 and value.dtype.kind == "f" else None


def _resizes_some(node: Node) -> bool:
    return is_op(node, "Resize") and "axes" in node.attrs


def _is_shaped_number(tensor: Tensor) -> bool:
    number = _one_real(tensor)
    return number is not None and number.ndim > 0


@ALIKE.on("Resize")
def absent_is_not_empty(graph: QuantGraph, node: Node) -> bool:
    """Opset 11 leaves an input out by an empty tensor; since 18 both scales and sizes are refused."""
    del graph
    empty = [
        index
        for index, tensor in enumerate(node.inputs)
        if index and isinstance(tensor, Constant) and not tensor.values.size
    ]
    for index in empty:
        node.inputs[index] = Variable("")
    return bool(empty)


@ALIKE.on("Resize")
def resize_of_all_axes(graph: QuantGraph, node: Node) -> bool:
    """Scales or sizes of some axes, and those that the others keep: ONNX Runtime takes them for all where it moves the
    channels to the end.
    """
    if not _resizes_some(node):
        return False
    shape, index = shape_of(node.inputs[0]), 3 if node.optional(2) is None else 2
    given = value_of(node.optional(index))
    alike = node.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize" or not alike:
        raise NoMatch("what belongs to its axes is more than their sizes")
    if shape is None or given is None:
        raise NoMatch("the sizes of its other axes are not known")
    whole: list[Any] = [1.0] * len(shape) if index == 2 else list(shape)
    axes = [int(axis) for axis in node.attrs["axes"] if -len(shape) <= axis < len(shape)]
    if not len({axis % len(shape) for axis in axes}) == len(node.attrs["axes"]) == given.size:
        raise NoMatch("its axes are not those of its input")
    for axis, value in zip(axes, given.reshape(-1).tolist(), strict=True):
        whole[axis] = value
    if not all(isinstance(n, (int, float)) for n in whole):
        raise NoMatch("the sizes of its other axes are not known")
    del node.attrs["axes"]
    node.inputs[index] = graph.constant(f"{node.outputs[0].name}_all", np.asarray(whole, given.dtype))
    return True


# -- operators that changed ---------------------------------------------------------------------------------------


@UPGRADE.on("Upsample")
def upsample_becomes_resize(graph: QuantGraph, node: Node) -> bool:
    """Upsample (scales as attribute before 9) is Resize with asymmetric coordinates."""
    if "scales" in node.attrs:
        scales: Tensor = graph.constant(
            f"{node.outputs[0].name}_scales", np.asarray(node.attrs.pop("scales"), np.float32)
        )
    else:
        scales = node.inputs[1]
    return _to_resize(node, scales)


@UPGRADE.on("Resize")
def resize_of_opset_10(graph: QuantGraph, node: Node) -> bool:
    """Resize of opset 10 has no `roi` and asymmetric coordinates."""
    if graph.body_opset != 10 or len(node.inputs) != 2:
        return False
    return _to_resize(node, node.inputs[1])


def _to_resize(node: Node, scales: Tensor) -> bool:
    mode = node.attr("mode", "nearest")
    node.op = "Resize"
    node.inputs = [node.inputs[0], Variable(""), scales]  # roi is read by tf_crop_and_resize alone
    node.attrs.clear()
    node.attrs["mode"] = "linear" if mode in ("linear", "bilinear") else mode
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    if mode == "nearest":
        node.attrs["nearest_mode"] = "floor"
    return True


@UPGRADE.on("Softmax", "LogSoftmax", "Hardmax")
def softmax_over_one_axis(graph: QuantGraph, node: Node) -> bool:
    """Before 13 the input is flattened to two dimensions at `axis` (default 1), and each row is normalized."""
    axis, x = int(node.attr("axis", 1)), node.inputs[0]
    rank = rank_of(x)
    if axis == -1 or (rank is not None and axis in (rank - 1, -1)):
        node.attrs["axis"] = -1
        return True
    result = node.outputs[0]
    flat = graph.variable(f"{result.name}_flat", onnx.TensorProto.FLOAT)
    rows = graph.variable(f"{result.name}_rows", onnx.TensorProto.FLOAT)
    shape = graph.variable(f"{result.name}_shape", onnx.TensorProto.INT64)
    graph.insert("Flatten", [x], [flat], attrs={"axis": axis})
    graph.insert("Shape", [x], [shape])
    node.inputs[0], node.outputs[0], node.attrs["axis"] = flat, rows, -1
    graph.insert("Reshape", [rows, shape], [result])
    return True


@UPGRADE.on("BatchNormalization")
def batch_norm_of_each_channel(graph: QuantGraph, node: Node) -> bool:
    """Attributes that newer opsets lack say nothing, but for statistics of single positions."""
    if not node.attrs.pop("spatial", 1):
        graph.diagnostics.error(
            "QAT006",
            "BatchNormalization with spatial=0 has no form in newer opsets",
            node=label_of(node),
            hint="export the model again with opset 9 or newer",
        )
        return False
    for name in ("is_test", "consumed_inputs"):
        node.attrs.pop(name, None)
    return True


@ALIKE.on("BatchNormalization")
def batch_norm_of_inference(graph: QuantGraph, node: Node) -> bool:
    """The statistics that exports below opset 14 list as outputs are read by nobody, and change nothing if computed.

    There they mean training mode: the input's own statistics count, not those that are given.
    """
    if len(node.outputs) == 1 or node.attr("training_mode", 0):
        return False
    if graph.opset < _TRAINING_IS_SAID and trains(node) and all(isinstance(t, Constant) for t in node.inputs[3:5]):
        raise NoMatch("it normalizes with the statistics of its input")
    if any(t.outputs or graph.is_output(t) for t in node.outputs[1:]):
        raise NoMatch("its statistics are read")
    for index in range(len(node.outputs) - 1, 0, -1):
        node.outputs.pop(index)
    return True
