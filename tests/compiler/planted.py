"""Faults of a device, planted into the tensors of a package: what tests of `qatc compare` let it find.

Each planter computes the faulty tensor with code of its own, from the operator's inputs and the formula in
`compiler/integer.py`; it returns None where the operator cannot have the fault or the fault changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.compare.package import OpenPackage
from qatc.compiler.integer import Clamped, Conv, Lookup, MatMul, Op, Pool, Quantize
from qatc.compiler.quant import dtype_range
from qatc.compiler.reference import accumulate, execute_op
from qatc.compiler.runtime.sessions import OrtEvaluator

EVALUATE = OrtEvaluator()
Values = Mapping[str, np.ndarray]
Planter = Callable[[OpenPackage, Op, Values, np.random.Generator], "np.ndarray | None"]


def _products(op: Op) -> bool:
    return isinstance(op, (Conv, MatMul))


def accumulators(opened: OpenPackage, op: Op, values: Values, *, bias: bool = True, padding: int | None = None):
    """The accumulators of a product in int64, with another integer in the padding if so wished."""
    graph = opened.graph
    x, w = values[op.inputs[0]], values[op.inputs[1]]
    px, pw = graph.params(op.inputs[0]), graph.params(op.inputs[1])
    b = values[op.inputs[2]] if bias and len(op.inputs) > 2 and op.inputs[2] else None
    if isinstance(op, MatMul):
        return accumulate.matmul(x, px, w, pw, b).astype(np.int64)
    if padding is not None:
        rank = x.ndim - 2
        x = np.pad(x, [(0, 0), (0, 0), *zip(op.pads[:rank], op.pads[rank:], strict=True)], constant_values=padding)
        op = dataclasses.replace(op, pads=(0,) * (2 * rank))
    return accumulate.conv(op, x, px, w, pw, b).astype(np.int64)


def finished(opened: OpenPackage, op: Op, acc: np.ndarray, scales=None, *, clamp: bool = True) -> np.ndarray:
    """Accumulators to outputs under the package's profile, or (`clamp` off) in float64 and without its clamp."""
    out = opened.graph.params(op.output)
    axis = 1 if isinstance(op, Conv) else acc.ndim - 1
    scales = np.asarray(op.acc_scale if scales is None else scales, np.float64)
    if clamp:
        in_scale = opened.graph.params(op.inputs[0]).scale[0]
        return opened.profile.requantize(acc, scales, out, op.lo, op.hi, axis, in_scale=in_scale)
    shape = [-1 if i == axis else 1 for i in range(acc.ndim)]
    return (
        np.rint(acc * (scales.reshape(shape) if scales.size > 1 else scales[0]) / out.scale[0]).astype(np.int64)
        + out.zero_point[0]
    )


def rounding(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not isinstance(op, Clamped) or isinstance(op, (Lookup, Quantize)) or (isinstance(op, Pool) and op.mode == "max"):
        return None
    if opened.graph.params(op.output).dtype == "int32":
        return None
    others = [p for n, p in PROFILES.items() if n not in (opened.profile.name, "pow2")]
    profile = others[int(rng.integers(len(others)))]
    return execute_op(opened.graph, op, values, profile, EVALUATE)[0]


def rounds_down(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not _products(op) or opened.graph.params(op.output).dtype == "int32":
        return None
    out = opened.graph.params(op.output)
    acc = accumulators(opened, op, values)
    scales = np.asarray(op.acc_scale, np.float64)
    axis = 1 if isinstance(op, Conv) else acc.ndim - 1
    scales = scales.reshape([-1 if i == axis else 1 for i in range(acc.ndim)]) if scales.size > 1 else scales[0]
    q = np.floor(acc * scales / out.scale[0]) + out.zero_point[0]
    return np.clip(q, op.lo, op.hi).astype(out.container)


def wraps(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not _products(op) or opened.graph.params(op.output).dtype == "int32":
        return None
    out = opened.graph.params(op.output)
    low, high = dtype_range(out.dtype)
    wide = finished(opened, op, accumulators(opened, op, values), clamp=False)
    wrapped = (wide - low) % (high - low + 1) + low  # a cast where there should be a saturation
    wrong = np.clip(wrapped, op.lo, op.hi) if rng.integers(2) else wrapped
    right = values[op.output].astype(np.int64)
    return np.where(np.clip(wide, op.lo, op.hi) == wrong, right, wrong).astype(out.container)


def misses_clamp(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not _products(op) or opened.graph.params(op.output).dtype == "int32":
        return None
    out = opened.graph.params(op.output)
    wide = finished(opened, op, accumulators(opened, op, values), clamp=False)
    right = values[op.output].astype(np.int64)
    outside = (wide < op.lo) | (wide > op.hi)
    return np.where(outside, np.clip(wide, *dtype_range(out.dtype)), right).astype(out.container)


def flips_sign(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    value = values[op.output]
    if value.dtype.itemsize != 1:
        return None
    other = "int8" if value.dtype == np.uint8 else "uint8"
    if rng.integers(2):
        return (value.view(np.uint8) ^ np.uint8(0x80)).view(value.dtype)  # raw bytes of a device with the other type
    return (value.view(np.uint8) ^ np.uint8(0x80)).view(other)


def shifts(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    value, params = values[op.output], opened.graph.params(op.output)
    shift = int(rng.choice([-1, 1])) * int(rng.integers(2, 40))
    low, high = dtype_range(params.container.name)
    return np.clip(value.astype(np.int64) + shift, low, high).astype(value.dtype)


def channels_last(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    value = values[op.output]
    if value.ndim < 3:
        return None
    return np.ascontiguousarray(np.moveaxis(value, 1, -1)).reshape(value.shape)


def permutes(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    value = values[op.output]
    if value.ndim < 2 or value.shape[1] < 3:
        return None
    return np.ascontiguousarray(value[:, rng.permutation(value.shape[1])])


def other_scale(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not _products(op) or len(op.acc_scale) < 3 or opened.graph.params(op.output).dtype == "int32":
        return None
    acc = accumulators(opened, op, values)
    scales = np.asarray(op.acc_scale)
    kind = int(rng.integers(3))
    if kind == 0:
        scales = np.roll(scales, int(rng.integers(1, scales.size)))
    elif kind == 1:
        scales = np.full_like(scales, scales[int(rng.integers(scales.size))])
    else:
        first, second = rng.choice(scales.size, 2, replace=False)
        scales = scales.copy()
        scales[first] = scales[second]
    return finished(opened, op, acc, scales)


def misses_bias(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not _products(op) or len(op.inputs) < 3 or opened.graph.params(op.output).dtype == "int32":
        return None
    return finished(opened, op, accumulators(opened, op, values, bias=False))


def pads_otherwise(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    if not isinstance(op, Conv) or op.transposed or not any(op.pads):
        return None
    zero = opened.graph.params(op.inputs[0]).zero_point[0]
    wrong = 0 if zero else 128
    acc = accumulators(opened, op, values, padding=wrong)
    return acc.astype(np.int32) if opened.graph.params(op.output).dtype == "int32" else finished(opened, op, acc)


def swaps_bytes(opened: OpenPackage, op: Op, values: Values, rng: np.random.Generator):
    value = np.ascontiguousarray(values[op.output])
    if value.nbytes % 4:
        return None
    swapped = value.reshape(-1).view(np.uint8).reshape(-1, 4)[:, ::-1]
    return np.ascontiguousarray(swapped).reshape(-1).view(value.dtype).reshape(value.shape)


#: Planter -> the kind of cause that `compare` should name.
PLANTERS: dict[Planter, str] = {
    rounding: "rounding",
    rounds_down: "rounding",
    wraps: "saturation",
    misses_clamp: "saturation",
    flips_sign: "signedness",
    shifts: "zero-point",
    channels_last: "layout",
    permutes: "channel-order",
    other_scale: "scale",
    misses_bias: "bias",
    pads_otherwise: "padding",
    swaps_bytes: "byte-order",
}
