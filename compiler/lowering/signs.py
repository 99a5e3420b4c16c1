"""Signs of sums: a quantized tensor that depends on the sign of a convolution's or matrix product's result alone.

    Conv(x, w, b) -> Sign -> Add(0.5) -> Sign -> Mul(s) -> rounded          Conv(x, 2 * w, odd) -> clamped

The real result is `unit * (S + B)` with an integer S (the sum of products) and B = bias / unit. With an odd number in
place of B it is never zero, and has the same sign:

    S + B >= 0   <=>   2 * S + 2 * floor(B) + 1 > 0

for any B that is no integer; for an integer one 2 * B + 1 counts a sum of zero among the positive ones, 2 * B - 1 among
the negative, and 2 * B leaves it zero. That is exact, and so is all that follows: a factor, a power of two for any kind
of arithmetic, that takes 1 and -1 to the two results or beyond, and the clamp between them.

Binary, ternary and other weights of up to 7 bits fit 8 when they are doubled. Those of 8 bits are used twice, side by
side, for twice the multiplications; wider ones stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.graph import Node, Tensor, rank_of
from qatc.compiler.integer import Sign
from qatc.compiler.lowering import mac
from qatc.compiler.lowering.operands import Operands
from qatc.compiler.lowering.state import Function, State, is_float
from qatc.compiler.model.links import is_op
from qatc.compiler.passes.products import Vector
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference.functions import SIGNS, evaluate

_INT8: Final = dtype_range("int8")
_MOST: Final = 2**31 - 1


def as_sign(state: State, node: Node, scalars: Sequence[float | None]) -> Function | None:
    """A node that compares a tensor of real numbers with one number; `scalars` are its constant operands' values."""
    if not is_op(node, *SIGNS):
        return None
    at = next((s for s in scalars if s is not None), 0.0)
    root = next(t for t, s in zip(node.inputs, scalars, strict=True) if s is None)
    if not math.isfinite(at) or state.params(root) is not None or not is_float(root):
        return None
    if any((rank_of(t) or 0) > (rank_of(root) or 0) for t in node.inputs):
        return None
    around = np.asarray([-np.inf, at, np.inf])
    values = evaluate(node, [around if s is None else np.asarray(s) for s in scalars])
    return None if values is None else Function(root, values, f"{node.op}({root.name})", at)


def sign_of(
    state: State,
    function: Function,
    product: Node,
    bias: Vector | None,
    alpha: float,
    out: Tensor,
    make: Callable[[], str],
) -> bool:
    """The integers `make()` on the grid of `out`, a function of the sign of `alpha * product + bias`.

    False where it must stay float.
    """
    params = state.usable(out)
    if params is None or function.at is None:
        return False
    below, at, above = params.quantize(function.values.astype(np.float32)).tolist()
    if not (below < above and below <= at <= above and at in (below, above, params.zero_point[0])):
        return False
    found = mac.operands(state, product, alpha)
    if found is None or found.values is None or found.channels is None:
        return False
    own = mac.own_bias(state, product)
    real = mac.sum_of(None if own is None else own * alpha, bias, np.asarray([-function.at])) / found.acc_scale
    unit = 2.0 ** math.ceil(math.log2(max(above - params.zero_point[0], params.zero_point[0] - below)))
    stored = _odd(real, mac.reach_of(found), (at > below) - (at < above), unit)
    if stored is None or not _doubled(found, stored):
        return False
    if (stored % 2 == 0).all():
        stored //= 2
    else:
        real = real * 2
    result = make()
    state.build.graph.signs[result] = Sign(real, (below, at, above))
    inputs = [found.x, mac.weight_name(state, found), state.build.constant(f"{out.name}_bias", stored)]
    mac.add(state, found, tuple(inputs), result, below, above, np.asarray([params.scale[0] * unit]))
    return True


def _odd(bias: Vector, reach: Vector, at_zero: int, factor: float) -> npt.NDArray[np.int32] | None:
    """What twice the sums take in place of twice the real bias, per channel; None where 32 bits do not hold them all.

    A bias beyond the reach of the sums decides for them: no more is needed than what exceeds them. Fixed-point
    arithmetic multiplies by up to twice the `factor` before it shifts.
    """
    whole = np.floor(bias)
    most = 2 * reach + 1
    if not (2 * most * 2 * factor <= _MOST).all():
        return None
    twice = 2 * whole + np.where(whole == bias, at_zero, 1)
    return np.asarray(np.clip(twice, -most, most), np.int32)


def _doubled(found: Operands, stored: npt.NDArray[Any]) -> bool:
    """Double the weight, less its zero points, where some channel's sums must be odd; False where that is too large."""
    if (stored % 2 == 0).all():
        return True
    own = found.weight_params
    twice = 2 * (found.integers.astype(np.int32) - own.zero_array(found.integers.ndim))
    low, high = int(twice.min(initial=0)), int(twice.max(initial=0))
    if low < 2 * _INT8[0] or high > 2 * _INT8[1]:
        return False
    dtype = "int8" if _INT8[0] <= low and high <= _INT8[1] else "int16"
    halved = tuple(s / 2 for s in own.scale)
    found.weight_params = QuantParams(halved, (0,) * len(halved), dtype, own.axis)
    found.values = twice.astype(found.weight_params.container)
    return True
