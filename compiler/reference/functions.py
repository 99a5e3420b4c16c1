"""Element-wise functions of one tensor, evaluated on the 256 values an 8-bit tensor can have.

A chain of such functions is a table, exact by construction. The formulas are those of the ONNX
operator specification (https://onnx.ai/onnx/operators/). Each is computed in float64 and its result rounded to float32,
which is what the trained model computes: for + - * / and the square root to the last bit, so that exact ties (a
quantized tensor times 0.5 has one at every other code) fall to the same side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from qatc.compiler.graph import REQUANTIZE, Constant, Node
from qatc.compiler.model.protos import MICROSOFT

Values = npt.NDArray[np.float64]
_erf: Final = np.vectorize(math.erf, otypes=[np.float64])
_INDICES: Final = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})  # what integers of a function are


def _number(node: Node, name: str, default: float) -> float:
    return float(node.attr(name, default))


def _sigmoid(x: Values) -> Values:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _softplus(x: Values) -> Values:
    return np.asarray(np.logaddexp(0.0, x))


def _gelu(node: Node, x: Values) -> Values:
    if node.attr("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))
    bell: Values = _erf(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + bell))


def _hard_sigmoid(node: Node, x: Values) -> Values:
    return np.clip(_number(node, "alpha", 0.2) * x + _number(node, "beta", 0.5), 0.0, 1.0)


def _elu(node: Node, x: Values) -> Values:
    return np.where(x < 0, _number(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


def _selu(node: Node, x: Values) -> Values:
    alpha, gamma = _number(node, "alpha", 1.6732632423543772), _number(node, "gamma", 1.0507009873554805)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(node: Node, x: Values) -> Values:
    alpha = _number(node, "alpha", 1.0)
    return np.maximum(0, x) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _shrink(node: Node, x: Values) -> Values:
    bias, threshold = _number(node, "bias", 0.0), _number(node, "lambd", 0.5)
    return np.where(x < -threshold, x + bias, np.where(x > threshold, x - bias, 0.0))


def _is_infinite(node: Node, x: Values) -> Values:
    below, above = bool(node.attr("detect_negative", 1)), bool(node.attr("detect_positive", 1))
    return np.where(((x == np.inf) & above) | ((x == -np.inf) & below), 1.0, 0.0)


def _quotient(node: Node, one: Values, two: Values) -> Values:
    """One divided by two; integers are cut off towards zero. The integers of a quantized constant are real numbers."""
    computed = [t.dtype for t in node.inputs if not isinstance(t, Constant)]
    return np.trunc(one / two) if any(kind in _INDICES for kind in computed) else one / two


def clip(x: Values, low: Values | None = None, high: Values | None = None) -> Values:
    """The value of a Clip, whose bounds may be absent."""
    result = x if low is None else np.maximum(x, low)
    return result if high is None else np.minimum(result, high)


UNARY: Final[dict[str, Callable[[Values], Values]]] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Erf": _erf,
    "Exp": np.exp,
    "Floor": np.floor,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x,
    "Log": np.log,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Neg": np.negative,
    "Reciprocal": lambda x: 1.0 / x,
    "Relu": lambda x: np.maximum(x, 0),
    "Requantize": lambda x: x,
    "Round": np.rint,
    "Sigmoid": _sigmoid,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Sqrt": np.sqrt,
    "Tan": np.tan,
    "Tanh": np.tanh,
}
BINARY: Final[dict[str, Callable[[Values, Values], Values]]] = {
    "Add": np.add,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "Pow": np.power,
    "Sub": np.subtract,
}
_WITH_ATTRIBUTES: Final[dict[str, Callable[[Node, Values], Values]]] = {
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "IsInf": _is_infinite,
    "LeakyRelu": lambda node, x: np.where(x < 0, _number(node, "alpha", 0.01) * x, x),
    "QuickGelu": lambda node, x: x * _sigmoid(_number(node, "alpha", 1.702) * x),
    "Selu": _selu,
    "Shrink": _shrink,
    "Swish": lambda node, x: x * _sigmoid(_number(node, "alpha", 1.0) * x),
    "ThresholdedRelu": lambda node, x: np.where(x > _number(node, "alpha", 1.0), x, 0.0),
}
# what is true is 1, what is false is 0
LOGIC: Final[dict[str, Callable[..., Values]]] = {
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
# what tells of a number only on which side of another it lies
SIGNS: Final = frozenset({"Sign", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_VARIADIC: Final = frozenset({"Max", "Min"})
_OF_MICROSOFT: Final = frozenset({"Gelu", "QuickGelu"})
_STANDARD: Final = frozenset({"Clip", "Div", "Where", *UNARY, *BINARY, *LOGIC, *_WITH_ATTRIBUTES}) - {
    "QuickGelu",
    "Requantize",
}


def is_elementwise(node: Node) -> bool:
    """Whether `evaluate` knows the node."""
    if node.op == REQUANTIZE or is_table(node):
        return True
    if node.op == "Cast":
        return not node.domain and node.attr("to") in _INDICES
    if node.domain:
        return node.domain == MICROSOFT and node.op in _OF_MICROSOFT
    return node.op in _STANDARD


def is_table(node: Node) -> bool:
    """Whether the node reads a constant list of numbers at places that are computed: a function of those."""
    if node.op != "Gather" or node.domain or len(node.inputs) != 2 or node.attr("axis", 0) != 0:
        return False
    entries = node.inputs[0]
    return isinstance(entries, Constant) and entries.values.ndim == 1 and not isinstance(node.inputs[1], Constant)


def _entries(table: Values, places: Values) -> Values:
    """The entries of a list, counted from its end where a place is negative; NaN where it has none."""
    table = np.atleast_1d(table)
    size = table.size
    if not size:
        return np.full_like(places, np.nan)
    inside = (places >= -size) & (places < size)
    return np.where(inside, table[np.where(inside, places, 0).astype(np.int64)], np.nan)


def evaluate(node: Node, operands: Sequence[Values | None]) -> Values | None:
    """The node's float32 value, held as float64; operands are 256 elements or scalars (absent optional ones: None).

    None where the result is not a number somewhere, or an operand is missing: such a node cannot become a table.
    """
    given = [v for v in operands if v is not None]
    result: Values | None
    with np.errstate(all="ignore"):
        if node.op == "Clip":
            x, *bounds = operands or [None]
            result = None if x is None else clip(x, *bounds)
        elif node.op == "Gather":
            result = _entries(given[0], given[1])
        elif node.op == "Cast":
            end = 2.0**31 if node.attr("to") == onnx.TensorProto.INT32 else 2.0**63  # processors differ beyond it
            result = np.where(np.abs(given[0]) < end, np.trunc(given[0]), np.nan)
        elif node.op == "Where":
            result = np.where(given[0] != 0, given[1], given[2])
        elif node.op == "Div":
            result = _quotient(node, given[0], given[1]) if len(given) == 2 else None
        elif node.op in LOGIC:
            result = LOGIC[node.op](*given).astype(np.float64)
        elif node.op in _VARIADIC:
            result = functools.reduce(BINARY[node.op], given) if given else None
        elif node.op in BINARY:
            result = BINARY[node.op](given[0], given[1]) if len(given) == 2 else None
        elif node.op in UNARY:
            result = UNARY[node.op](given[0]) if len(given) == 1 else None
        else:
            result = _WITH_ATTRIBUTES[node.op](node, given[0]) if len(given) == 1 else None
        single = None if result is None else np.asarray(result, np.float32)
    return None if single is None or np.isnan(single).any() else single.astype(np.float64)
