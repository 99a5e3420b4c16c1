"""The value of one ONNX operator on constants: numpy for the common ones, ONNX's reference evaluator for the others.

Used by constant folding. Element types are ONNX's: the result has the type that the inputs have, integer division
truncates towards zero, rounding is half to even.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Node
from qatc.compiler.model.protos import CHECK_ERRORS
from qatc.compiler.quant import Array
from qatc.compiler.reference import functions
from qatc.compiler.reference.evaluate import evaluate_onnx
from qatc.compiler.reference.moves import MOVES, Call

Values = Sequence["Array | None"]


class Refused(Exception):  # noqa: N818  # a node that is left in the graph is no error
    """A node that is not folded, with the reason."""


def evaluate(node: Node, values: Values, opset: int) -> list[Array]:
    """The outputs of an operator of ai.onnx in `opset`; absent optional inputs are None.

    Raises:
        Refused: for operators that are not evaluated (random, control flow, unknown).
        ValueError, TypeError, LookupError: when the inputs do not fit the operator.
    """
    call = _call(node, values)
    if node.op in MOVES:
        return MOVES[node.op](call)
    if node.op in _FORMS:
        return [np.asarray(_FORMS[node.op](call))]
    if node.op in _NEVER or not onnx.defs.has(node.op):
        raise Refused("it is not evaluated at compile time")
    try:
        return evaluate_onnx(node.op, "", opset, values, node.attrs, len(node.outputs))
    except CompileError as error:
        raise Refused(error.diagnostics[0].message) from error


def _call(node: Node, values: Values) -> Call:
    return Call(list(values), node.attrs, len(node.outputs))


# -- sizes --------------------------------------------------------------------------------------------------------


def size_of_result(node: Node, values: Values, opset: int) -> int | None:
    """The bytes that the results take, computed before they are; None where there is no telling.

    Raises:
        Refused: when the size itself is nonsense.
    """
    try:
        rule = _SIZES.get(node.op)
        return _inferred(node, values, opset) if rule is None else int(rule(_call(node, values)))
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RuntimeError) as error:
        raise Refused(f"its inputs do not fit it: {error}") from error


def _inferred(node: Node, values: Values, opset: int) -> int | None:
    """What ONNX's shape inference says of an operator without a rule of its own."""
    from qatc.compiler.model_io import node_proto

    proto = node_proto(node)
    held = {n: onnx.numpy_helper.from_array(v, n) for n, v in zip(proto.input, values, strict=False) if v is not None}
    outputs = [onnx.ValueInfoProto(name=n) for n in proto.output if n]
    graph = onnx.helper.make_graph([proto], "operator", [], outputs, list(held.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except CHECK_ERRORS as error:
        raise ValueError(str(error)) from error
    size = 0
    for kind in (v.type.tensor_type for v in found.output):
        dims = kind.shape.dim
        if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
            return None
        size += math.prod(d.dim_value for d in dims) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return size


def _chosen(call: Call) -> int:
    """Parts of a tensor, or where they are."""
    return call.x.size * max(call.x.itemsize, 8) * max(4, call.x.ndim)


def _broadcast(call: Call) -> int:
    shape: tuple[int, ...] = np.broadcast_shapes(*(a.shape for a in call.given))
    return math.prod(shape) * max(a.nbytes // max(1, a.size) for a in call.given)


def _same(call: Call) -> int:
    return sum(v.nbytes for v in call.given)


def _cast(call: Call) -> int:
    return call.x.size * onnx.helper.tensor_dtype_to_np_dtype(call.attr("to", 0)).itemsize


def _expand(call: Call) -> int:
    shape: tuple[int, ...] = np.broadcast_shapes(call.x.shape, tuple(call.operand(1)))
    return math.prod(shape) * call.x.itemsize


def _tile(call: Call) -> int:
    dims: list[int] = [max(0, d * r) for d, r in zip(call.x.shape, call.operand(1), strict=True)]
    return math.prod(dims) * call.x.itemsize


def _filled(call: Call) -> int:
    dims = call.operand(0)
    if any(d < 0 for d in dims) or len(dims) > 32:
        raise ValueError(f"{dims} is not a shape")
    value: Array | None = call.attrs.get("value")
    return math.prod(dims) * (4 if value is None else value.dtype.itemsize)


def _range_count(call: Call) -> int:
    start, limit, delta = (float(call.array(i).reshape(-1)[0]) for i in range(3))
    if not delta or not math.isfinite((limit - start) / delta):
        raise ValueError("the step of a Range is zero")
    return max(0, math.ceil((limit - start) / delta))


def _gathered(call: Call) -> int:
    x, axis = call.x, call.attr("axis", 0) % max(1, call.x.ndim)
    return math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :]) * call.array(1).size * x.itemsize


def _matmul(call: Call) -> int:
    a, b = call.x, call.array(1)
    shape: tuple[int, ...] = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = (a.shape[-2] if a.ndim > 1 else 1), (b.shape[-1] if b.ndim > 1 else 1)
    count: int = math.prod(shape) * rows * columns
    if count * a.shape[-1] > _WORK:
        raise ValueError("it takes too many multiplications")
    return count * a.itemsize


def _padded(call: Call) -> int:
    x, pads = call.x, call.operand(1)
    if len(pads) != 2 * x.ndim:
        raise ValueError("pads do not fit the rank")
    dims: list[int] = [max(0, d + pads[i] + pads[i + x.ndim]) for i, d in enumerate(x.shape)]
    return math.prod(dims) * x.itemsize


# -- the numpy forms ----------------------------------------------------------------------------------------------


def _elementwise(function: Callable[..., Array], *, wide: bool) -> Callable[[Call], Array]:
    """In the first operand's type; `wide`: floats in float64, rounded once, since libraries differ in the last bit."""

    def compute(call: Call) -> Array:
        given, kind = call.given, call.x.dtype
        if wide and kind.kind == "f":
            given = [v.astype(np.float64) for v in given]
        return np.asarray(function(*given)).astype(kind, copy=False)

    return compute


def _all(function: Callable[[Array, Array], Array]) -> Callable[[Call], Array]:
    """Any number of operands, one after the other."""
    return lambda call: functools.reduce(function, call.given)


def _logic(function: Callable[..., Array]) -> Callable[[Call], Array]:
    return lambda call: function(*call.given)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(np.divide(a, b))
    if not np.all(b):
        raise ValueError("division by zero")
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return quotient * np.sign(a).astype(np.int64) * np.sign(b).astype(np.int64)


def _clip(call: Call) -> Array:
    bounds = [None if v is None else v.reshape(()) for v in (call.optional(1), call.optional(2))]
    return np.asarray(functions.clip(call.x, *bounds))


def _to(call: Call) -> Array:
    kind = call.attr("to", 0)
    if kind == onnx.TensorProto.STRING or call.x.dtype.kind in "OSU":
        raise Refused("strings are not folded")
    return call.x.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _reduce(function: Callable[..., Array]) -> Callable[[Call], Array]:
    def compute(call: Call) -> Array:
        axes = tuple(call.ints("axes", 1) or ()) or None
        if axes is None and call.attr("noop_with_empty_axes", 0):
            return call.x
        result = function(call.x, axis=axes, keepdims=bool(call.attr("keepdims", 1)))
        return np.asarray(result).astype(call.x.dtype)

    return compute


def _range(call: Call) -> Array:
    start, _, delta = (call.array(i).reshape(-1)[0] for i in range(3))
    values: Array = start + np.arange(_range_count(call)) * delta
    return values.astype(call.x.dtype)


def _constant_of_shape(call: Call) -> Array:
    value: Array | None = call.attrs.get("value")
    return np.full(call.operand(0), np.float32(0) if value is None else value.reshape(-1)[0])


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORK: Final = 1 << 31  # multiplications that one folded MatMul may take
_NEVER: Final = _names(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli If Loop Scan "
    "SequenceMap Optional Resize Upsample OneHot CenterCropPad Conv ConvTranspose Gemm LSTM GRU RNN "
    "ImageDecoder Einsum Col2Im StringNormalizer RegexFullMatch StringConcat"
)
# Correctly rounded in every type, by IEEE 754
_EXACT: Final = _names("Abs Add Ceil Div Floor Mul Neg Reciprocal Relu Round Sign Sqrt Sub")
_ELEMENTWISE: Final[dict[str, Callable[..., Array]]] = {**functions.UNARY, **functions.BINARY, "Div": _divide}
_FORMS: Final[dict[str, Callable[[Call], Array]]] = {
    **{name: _elementwise(function, wide=name not in _EXACT) for name, function in _ELEMENTWISE.items()},
    **{name: _logic(function) for name, function in functions.LOGIC.items()},
    "Max": _all(np.maximum),
    "Min": _all(np.minimum),
    "Sum": _all(np.add),
    "Clip": _clip,
    "Cast": _to,
    "Tile": lambda call: np.tile(call.x, call.operand(1)),
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceMean": _reduce(np.mean),
    "MatMul": lambda call: np.asarray(np.matmul(call.x, call.array(1))),
}
_NO_LARGER: Final = functions.UNARY.keys() | _names(
    "Clip Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Concat ReduceSum ReduceMax ReduceMin ReduceProd "
    "ReduceMean"
)
_BROADCASTING: Final = {*functions.BINARY, *functions.LOGIC, "Div", "Sum", "Where"}
_SIZES: Final[dict[str, Callable[[Call], int]]] = {
    **dict.fromkeys(_NO_LARGER, _same),
    **dict.fromkeys(_BROADCASTING, _broadcast),
    "Cast": _cast,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _filled,
    "Range": lambda call: _range_count(call) * call.x.itemsize,
    "Gather": _gathered,
    "MatMul": _matmul,
    "Pad": _padded,
    **dict.fromkeys(_names("NonZero Compress Unique"), _chosen),
}
