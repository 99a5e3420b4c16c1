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

from qatc.compiler.graph import Node
from qatc.compiler.quant import Array
from qatc.compiler.reference.moves import MOVES, Call

Values = Sequence["Array | None"]


class Refused(Exception):  # noqa: N818  # a node that is left in the graph is no error
    """A node that is not folded, with the reason."""


def evaluate(node: Node, values: list[Array | None]) -> list[Array]:
    """The outputs of an operator of the default domain; absent optional inputs are None.

    Raises:
        Refused: for operators that are not evaluated (random, control flow, unknown).
        ValueError, TypeError, LookupError: when the inputs do not fit the operator.
    """
    move, fast = MOVES.get(node.op), _FAST.get(node.op)
    if move is not None:
        return move(Call(values, node.attrs, len(node.outputs)))
    if fast is not None:
        return [np.asarray(fast(node, values))]
    if node.op in _NEVER or not onnx.defs.has(node.op):
        raise Refused("it is not evaluated at compile time")
    return _by_reference(node, values)


def _by_reference(node: Node, values: list[Array | None]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    from qatc.compiler.model_io import node_proto

    proto = node_proto(node)
    try:
        session = ReferenceEvaluator(proto)
        feeds = {n: v for n, v in zip(proto.input, values, strict=False) if n and v is not None}
        results: list[Array] = session.run(None, feeds)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
        return [np.asarray(v) for v in results]
    except (ValueError, TypeError, LookupError):
        raise
    except Exception as error:  # whatever the evaluator's own code raises: the node stays as it is
        raise Refused(f"ONNX's reference evaluator gave up: {type(error).__name__}: {error}") from error


# -- sizes --------------------------------------------------------------------------------------------------------


def size_of_result(node: Node, values: Values) -> int | None:
    """The bytes that the results take, computed before they are; None where there is no telling.

    Raises:
        Refused: when the size itself is nonsense.
    """
    try:
        return int(SIZED[node.op](node, values)) if node.op in SIZED else _inferred(node, values)
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RuntimeError) as error:
        raise Refused(f"its inputs do not fit it: {error}") from error


def _inferred(node: Node, values: Values) -> int | None:
    """What ONNX's shape inference says of an operator without a rule of its own."""
    from qatc.compiler.model_io import node_proto

    proto = node_proto(node)
    held = {n: onnx.numpy_helper.from_array(v, n) for n, v in zip(proto.input, values, strict=False) if v is not None}
    outputs = [onnx.ValueInfoProto(name=n) for n in proto.output if n]
    graph = onnx.helper.make_graph([proto], "operator", [], outputs, list(held.values()))
    try:
        found = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph), strict_mode=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ValueError(str(error)) from error
    size = 0
    for kind in (v.type.tensor_type for v in found.output):
        dims = kind.shape.dim
        if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
            return None
        size += math.prod(d.dim_value for d in dims) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return size


def _chosen(node: Node, values: Values) -> int:
    """Parts of a tensor, or where they are."""
    x = _first(values)
    return x.size * max(x.itemsize, 8) * max(4, x.ndim)


def _broadcast(node: Node, values: Values) -> int:
    arrays = [v for v in values if v is not None]
    shape: tuple[int, ...] = np.broadcast_shapes(*(a.shape for a in arrays))
    return math.prod(shape) * max(a.nbytes // max(1, a.size) for a in arrays)


def _same(node: Node, values: Values) -> int:
    return sum(v.nbytes for v in values if v is not None)


def _cast(node: Node, values: Values) -> int:
    return _first(values).size * onnx.helper.tensor_dtype_to_np_dtype(int(node.attr("to"))).itemsize


def _expand(node: Node, values: Values) -> int:
    x = _first(values)
    shape: tuple[int, ...] = np.broadcast_shapes(x.shape, tuple(_ints(values, 1)))
    return math.prod(shape) * x.itemsize


def _tile(node: Node, values: Values) -> int:
    x = _first(values)
    dims: list[int] = [max(0, d * r) for d, r in zip(x.shape, _ints(values, 1), strict=True)]
    return math.prod(dims) * int(x.dtype.itemsize)


def _filled(node: Node, values: Values) -> int:
    dims = _ints(values, 0)
    if any(d < 0 for d in dims) or len(dims) > 32:
        raise ValueError(f"{dims} is not a shape")
    value: Array | None = node.attrs.get("value")
    return math.prod(dims) * (4 if value is None else value.dtype.itemsize)


def _range_size(node: Node, values: Values) -> int:
    start, limit, delta = (float(_at(values, i).reshape(-1)[0]) for i in range(3))
    if not delta or not math.isfinite((limit - start) / delta):
        raise ValueError("the step of a Range is zero")
    return max(0, math.ceil((limit - start) / delta)) * _first(values).itemsize


def _gathered(node: Node, values: Values) -> int:
    x, indices = _first(values), _at(values, 1)
    axis = int(node.attr("axis", 0)) % max(1, x.ndim)
    return math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :]) * indices.size * x.itemsize


def _matmul_size(node: Node, values: Values) -> int:
    a, b = _first(values), _at(values, 1)
    shape: tuple[int, ...] = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = (a.shape[-2] if a.ndim > 1 else 1), (b.shape[-1] if b.ndim > 1 else 1)
    count: int = math.prod(shape) * rows * columns
    if count * a.shape[-1] > _WORK:
        raise ValueError("it takes too many multiplications")
    return count * int(a.dtype.itemsize)


def _padded(node: Node, values: Values) -> int:
    x, pads = _first(values), _ints(values, 1)
    if len(pads) != 2 * x.ndim:
        raise ValueError("pads do not fit the rank")
    dims: list[int] = [max(0, d + pads[i] + pads[i + x.ndim]) for i, d in enumerate(x.shape)]
    return math.prod(dims) * int(x.dtype.itemsize)


# -- the numpy forms ----------------------------------------------------------------------------------------------


def _at(values: Values, index: int) -> Array:
    value = values[index] if index < len(values) else None
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def _first(values: Values) -> Array:
    return _at(values, 0)


def _optional(values: Values, index: int) -> Array | None:
    return values[index] if index < len(values) else None


def _ints(values: Values, index: int) -> list[int]:
    return [int(v) for v in _at(values, index).reshape(-1)]


def _axes(node: Node, values: Values) -> tuple[int, ...] | None:
    listed = node.attr("axes")
    given = _optional(values, 1)
    if listed is None and given is not None:
        listed = given.reshape(-1).tolist()
    return tuple(int(a) for a in listed) if listed else None


def _unary(function: Callable[[Array], Array], *, wide: bool = False) -> Callable[[Node, Values], Array]:
    """An element-wise operator; `wide` computes floats in float64 and rounds once: libraries differ in the last bit."""

    def compute(node: Node, values: Values) -> Array:
        x = _first(values)
        if wide and x.dtype.kind == "f":
            return function(x.astype(np.float64)).astype(x.dtype)
        return np.asarray(function(x)).astype(x.dtype, copy=False)

    return compute


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Node, Values], Array]:
    return lambda node, values: np.asarray(function(_first(values), _at(values, 1)))


def _folded(function: Callable[[Array, Array], Array]) -> Callable[[Node, Values], Array]:
    return lambda node, values: functools.reduce(function, [v for v in values if v is not None])


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(np.divide(a, b))
    if not np.all(b):
        raise ValueError("division by zero")
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return (quotient * np.sign(a).astype(np.int64) * np.sign(b).astype(np.int64)).astype(a.dtype)


def _power(node: Node, values: Values) -> Array:
    base, exponent = _first(values), _at(values, 1)
    if base.dtype.kind == "f":
        return np.power(base.astype(np.float64), exponent.astype(np.float64)).astype(base.dtype)
    return np.power(base, exponent).astype(base.dtype)


def _clip(node: Node, values: Values) -> Array:
    x = _first(values)
    low, high = _optional(values, 1), _optional(values, 2)
    if low is not None:
        x = np.maximum(x, low.reshape(()))
    if high is not None:
        x = np.minimum(x, high.reshape(()))
    return np.asarray(x)


def _to(node: Node, values: Values) -> Array:
    kind, x = int(node.attr("to")), _first(values)
    if kind == onnx.TensorProto.STRING or x.dtype.kind in "OSU":
        raise Refused("strings are not folded")
    return x.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _reduce(function: Callable[..., Array]) -> Callable[[Node, Values], Array]:
    def compute(node: Node, values: Values) -> Array:
        x = _first(values)
        axes = _axes(node, values)
        if axes is None and node.attr("noop_with_empty_axes", 0):
            return x
        result = function(x, axis=axes, keepdims=bool(node.attr("keepdims", 1)))
        return np.asarray(result).astype(x.dtype)

    return compute


def _range(node: Node, values: Values) -> Array:
    start, limit, delta = (_at(values, i).reshape(-1)[0] for i in range(3))
    count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
    values_of_range: Array = start + np.arange(count) * delta
    return values_of_range.astype(_first(values).dtype)


def _constant_of_shape(node: Node, values: Values) -> Array:
    value: Array | None = node.attrs.get("value")
    return np.full(_ints(values, 0), np.float32(0) if value is None else value.reshape(-1)[0])


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _round(x: Array) -> Array:
    return np.rint(x)


def _matmul(node: Node, values: Values) -> Array:
    return np.asarray(np.matmul(_first(values), _at(values, 1)))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORK: Final = 1 << 31  # multiplications that one folded MatMul may take
_NEVER: Final = _names(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli If Loop Scan "
    "SequenceMap Optional Resize Upsample OneHot CenterCropPad Conv ConvTranspose Gemm LSTM GRU RNN "
    "ImageDecoder Einsum Col2Im StringNormalizer RegexFullMatch StringConcat"
)
_FAST: Final[dict[str, Callable[[Node, Values], Array]]] = {
    "Abs": _unary(np.abs),
    "Neg": _unary(np.negative),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(_round),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Not": _unary(np.logical_not),
    "Relu": _unary(lambda x: np.maximum(x, np.zeros((), x.dtype))),
    "Exp": _unary(np.exp, wide=True),
    "Log": _unary(np.log, wide=True),
    "Tanh": _unary(np.tanh, wide=True),
    "Sigmoid": _unary(_sigmoid, wide=True),
    "Softplus": _unary(_softplus, wide=True),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _power,
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Min": _folded(np.minimum),
    "Max": _folded(np.maximum),
    "Sum": _folded(np.add),
    "Clip": _clip,
    "Cast": _to,
    "Tile": lambda node, values: np.tile(_first(values), _ints(values, 1)),
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceMean": _reduce(np.mean),
    "MatMul": _matmul,
}
_NO_LARGER: Final = _names(
    "Abs Neg Sign Floor Ceil Round Sqrt Reciprocal Not Relu Exp Log Tanh Sigmoid Softplus Clip Reshape "
    "Flatten Squeeze Unsqueeze Transpose Slice Split Concat ReduceSum ReduceMax ReduceMin ReduceProd "
    "ReduceMean"
)
_BROADCASTING: Final = _names(
    "Add Sub Mul Div Pow Equal Less LessOrEqual Greater GreaterOrEqual And Or Min Max Sum Where"
)
SIZED: Final[dict[str, Callable[[Node, Values], int]]] = {
    **dict.fromkeys(_NO_LARGER, _same),
    **dict.fromkeys(_BROADCASTING, _broadcast),
    "Cast": _cast,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _filled,
    "Range": _range_size,
    "Gather": _gathered,
    "MatMul": _matmul_size,
    "Pad": _padded,
    **dict.fromkeys(_names("NonZero Compress Unique"), _chosen),
}
