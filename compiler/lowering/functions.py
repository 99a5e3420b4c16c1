"""Element-wise functions of one tensor, evaluated in float64 on the 256 values an 8-bit tensor can have.

A chain of such functions is a table, exact by construction (design rule 4.5). The formulas are those of the ONNX
operator specification (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Node

Values = npt.NDArray[np.float64]
_erf: Final = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Values) -> Values:
    return 1.0 / (1.0 + np.exp(-x))


def _softplus(x: Values) -> Values:
    return np.logaddexp(0.0, x)


def _gelu(node: Node, x: Values) -> Values:
    if node.attr("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _hard_sigmoid(node: Node, x: Values) -> Values:
    return np.clip(node.attr("alpha", 0.2) * x + node.attr("beta", 0.5), 0.0, 1.0)


def _elu(node: Node, x: Values) -> Values:
    return np.where(x < 0, node.attr("alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


def _selu(node: Node, x: Values) -> Values:
    alpha, gamma = node.attr("alpha", 1.6732632423543772), node.attr("gamma", 1.0507009873554805)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(node: Node, x: Values) -> Values:
    alpha = node.attr("alpha", 1.0)
    return np.maximum(0, x) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _clip(node: Node, x: Values, low: Values | None = None, high: Values | None = None) -> Values:
    result = x if low is None else np.maximum(x, low)
    return result if high is None else np.minimum(result, high)


_PLAIN: Final[dict[str, Callable[..., Values]]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: 1.0 / x,
    "Abs": np.abs,
    "Neg": np.negative,
    "Sign": np.sign,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sin": np.sin,
    "Cos": np.cos,
    "Atan": np.arctan,
    "Erf": _erf,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Identity": lambda x: x,
    "Requantize": lambda x: x,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Min": np.minimum,
    "Max": np.maximum,
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
}
_WITH_NODE: Final[dict[str, Callable[..., Values]]] = {
    "LeakyRelu": lambda n, x: np.where(x < 0, n.attr("alpha", 0.01) * x, x),
    "HardSigmoid": _hard_sigmoid,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Clip": _clip,
    "ThresholdedRelu": lambda n, x: np.where(x > n.attr("alpha", 1.0), x, 0.0),
    "Swish": lambda n, x: x * _sigmoid(n.attr("alpha", 1.0) * x),
}
ELEMENTWISE: Final = frozenset(_PLAIN) | frozenset(_WITH_NODE)
_CONTRIB: Final = frozenset({"Gelu", "QuickGelu", "FastGelu", "BiasGelu"})


def is_elementwise(node: Node) -> bool:
    """Whether `evaluate` knows the node (variadic Min, Max take two operands)."""
    if node.op == "Requantize":
        return True
    if node.domain == "com.microsoft":
        return node.op == "Gelu"
    return not node.domain and node.op in ELEMENTWISE and len(node.inputs) <= 3


def evaluate(node: Node, operands: Sequence[Values | None]) -> Values | None:
    """The node's value for operands of 256 elements or scalars (absent optional ones are None), in float64.

    None where the result is not a number somewhere: such a node cannot become a table.
    """
    with np.errstate(all="ignore"):
        plain: Any = _PLAIN.get(node.op)
        present: list[Any] = list(operands)
        while present and present[-1] is None:
            present.pop()
        if plain is not None:
            if len(present) == 1 or node.op not in ("Min", "Max"):
                result = plain(*present) if node.op not in ("Min", "Max") else present[0]
            else:
                result = plain(present[0], present[1]) if len(present) == 2 else plain(plain(*present[:2]), present[2])
        else:
            result = _WITH_NODE[node.op](node, *present)
    result = np.asarray(result, np.float64)
    return None if np.isnan(result).any() else result
