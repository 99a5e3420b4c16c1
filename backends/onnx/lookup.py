"""Lookup: a table of 256 entries as the fastest ONNX operators that reproduce it exactly.

Measured on 1x64x56x56 bytes, one thread (docs/performance.md): Clip 0.007 ms, QLinearConcat of one tensor 0.037,
QLinearSigmoid and QLinearLeakyRelu 0.05, the former with QLinearMul behind it 0.09, GatherElements on the flattened
tensor 0.12, Gather 0.55. So a table that *is* one of the former becomes it, proven entry by entry; every other is a
GatherElements. With the option `tables=fast` a SiLU is DequantizeLinear, QuickGelu and QuantizeLinear (0.06), proven
likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from qatc.backends.onnx.writer import Writer, in_bytes, stored
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Lookup
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.quant import LARGEST, SMALLEST, Array, Floats, QuantParams, dtype_range

_ERROR = 5e-7  # how far a kernel's sigmoid may be from the truth: ONNX Runtime's was measured within 1.7e-7


@dataclass(frozen=True)
class _Table:
    """What the table maps: the codes that occur, their results, and both grids."""

    codes: Array
    results: Array
    have: QuantParams
    want: QuantParams

    @property
    def steps(self) -> Array:
        """The results as steps from the zero point of their grid."""
        return self.results.astype(np.int64) - self.want.zero_point[0]

    @property
    def saturates(self) -> npt.NDArray[np.bool_]:
        """Which results are ends of their type, and so may be nearer than what they stand for."""
        return np.isin(self.results, dtype_range(stored(self.want)))

    @property
    def real(self) -> Floats:
        """The real numbers of the codes, as ONNX Runtime dequantizes them."""
        return self.have.dequantize(self.codes)

    def is_quantized(self, real: Array) -> bool:
        """Whether rounding `real` onto the result's grid gives the table."""
        if np.isnan(real).any():  # of a grid that reaches beyond float32
            return False
        full = QuantParams.per_tensor(self.want.scale[0], self.want.zero_point[0], stored(self.want))
        return bool(np.array_equal(full.quantize(real), self.results))


@np.errstate(all="ignore")  # wide grids reach beyond float32; what comes of it is checked
def lookup(w: Writer, op: Lookup) -> None:
    """`Lookup` as one of the operators above."""
    name = op.inputs[0]
    have, want = w.graph.params(name), w.graph.params(op.output)
    table = w.graph.constants[op.inputs[1]]
    lowest = int(np.iinfo(have.container).min)
    codes = np.arange(have.qmin, have.qmax + 1)
    view = _Table(codes.astype(have.container), table[codes - lowest], have, want)
    if _clamp(w, op, view) or (not w.standard and have.container == want.container and _contrib(w, op, view)):
        return
    if w.float_tables and not w.standard and want.is_byte and _is_silu(view):
        w.quantize(w.node("QuickGelu", [w.real(name)], domain=MICROSOFT, alpha=1.0), want, op.output)
        return
    _gather(w, op, table, signed=lowest < 0)


def _clamp(w: Writer, op: Lookup, view: _Table) -> bool:
    """A table that only bounds its input is a Clip."""
    lo, hi = int(view.results.min()), int(view.results.max())
    same_type = view.have.container == view.want.container
    if not same_type or not np.array_equal(view.results, view.codes.clip(lo, hi)):
        return False
    w.clip(w.read(op.inputs[0]), lo, hi, stored(view.want), op.output)
    return True


def _contrib(w: Writer, op: Lookup, view: _Table) -> bool:
    """A table that is a rescaling, a sigmoid or a leaky Relu is ONNX Runtime's operator for it."""
    want, have = view.want, view.have
    x = w.read(op.inputs[0])
    scaled = _scaled(view)
    if scaled is not None and w.rank(op.inputs[0]) != 0:
        w.node("QLinearConcat", (w.scale(want), w.zero(want), *w.on(x, scaled)), op.output, domain=MICROSOFT, axis=0)
        return True
    inputs = (*w.on(x, have), w.scale(want), w.zero(want))
    if _is_sigmoid(view):
        w.node("QLinearSigmoid", inputs, op.output, domain=MICROSOFT)
        return True
    factor = w.graph.factors.get(op.output)
    if factor is not None and _is_gated(view, factor):
        gate = w.node("QLinearSigmoid", (*w.on(x, have), w.scale(factor), w.zero(factor)), domain=MICROSOFT)
        sides = (*w.on(x, have), *w.on(gate, factor))
        w.node("QLinearMul", (*sides, w.scale(want), w.zero(want)), op.output, domain=MICROSOFT)
        return True
    alpha = _leak(view)
    if alpha is not None:
        w.node("QLinearLeakyRelu", inputs, op.output, domain=MICROSOFT, alpha=alpha)
        return True
    return False


def _scaled(view: _Table) -> QuantParams | None:
    """The grid for the input on which rounding alone gives the table (a product with a constant), or none."""
    if view.is_quantized(view.real):
        return view.have
    distance = view.codes.astype(np.int64) - view.have.zero_point[0]
    least, most = _slope(view, distance, distance != 0)
    scale = (least + most) / 2
    if least > most or not SMALLEST < scale < LARGEST:
        return None
    candidate = QuantParams.per_tensor(scale, view.have.zero_point[0], view.have.dtype)
    return candidate if view.is_quantized(candidate.dequantize(view.codes)) else None


def _slope(view: _Table, x: Array, counts: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Between which numbers a factor must lie that makes the results' real numbers of `x`, where it `counts`."""
    inner = counts & ~view.saturates
    if not inner.any():
        return math.inf, -math.inf
    steps, x = view.steps[inner], x[inner]  # steps - 1/2 <= factor * x / scale <= steps + 1/2
    ends = np.sort([(steps - 0.5) / x, (steps + 0.5) / x], axis=0) * view.want.scale[0]
    return float(ends[0].max()), float(ends[1].min())


def _is_sigmoid(view: _Table) -> bool:
    made = _sigmoid(view, view.want)
    return made is not None and np.array_equal(made, view.results)


def _is_gated(view: _Table, factor: QuantParams) -> bool:
    """Whether the table is the codes times their sigmoid, which is rounded to the grid `factor` first."""
    gate = _sigmoid(view, factor) if factor.container == view.have.container else None
    if gate is None:
        return False
    grid, want = (in_bytes(params, stored(params)) for params in (factor, view.want))
    sides = (view.codes, view.have), (gate, grid)
    product = get_profile("onnx").elementwise("Mul", sides, want, want.qmin, want.qmax)
    return np.array_equal(product, view.results)


def _is_silu(view: _Table) -> bool:
    """Whether the table is x * sigmoid(x), computed in float32."""
    real = view.real.astype(np.float64)
    made = _surely(real / (1.0 + np.exp(-real)), _ERROR * np.maximum(np.abs(real), 1.0), view.want)
    return made is not None and np.array_equal(made, view.results)


def _sigmoid(view: _Table, want: QuantParams) -> Array | None:
    """What QLinearSigmoid makes of the codes, None where that is not sure."""
    real = view.real.astype(np.float64)
    error = np.where(real == 0, 0.0, _ERROR)  # at 0 every kernel gives 1/2
    return _surely(1.0 / (1.0 + np.exp(-real)), error, want)


def _surely(exact: Array, error: Array, want: QuantParams) -> Array | None:
    """What becomes of real numbers on a grid of whole bytes; None where one is that near a rounding boundary."""
    unit = exact / np.float32(want.scale[0])
    if not (np.abs(unit - np.floor(unit) - 0.5) * want.scale[0] >= error).all():
        return None
    return in_bytes(want, stored(want)).quantize(exact.astype(np.float32))


def _leak(view: _Table) -> float | None:
    """The slope below zero with which a leaky Relu gives the table, None where none does."""
    real = view.real.astype(np.float64)
    least, most = _slope(view, real, real < 0)
    if least > most:
        return None
    alpha = _simplest(least, most)
    slope = np.float32(alpha)
    leaky = np.where(view.real >= 0, view.real, slope * view.real)
    return alpha if view.is_quantized(leaky) else None


def _simplest(least: float, most: float) -> float:
    """The decimal number of fewest digits between two numbers."""
    for digits in range(1, 9):
        candidate = round((least + most) / 2, digits)
        if least <= candidate <= most:
            return candidate
    return (least + most) / 2


def _gather(w: Writer, op: Lookup, table: Array, *, signed: bool) -> None:
    """GatherElements on the flattened tensor: four times as fast as Gather, which copies each byte with memcpy."""
    if signed:  # a negative index counts from the end
        table = np.roll(table, 128)
    x = w.read(op.inputs[0])
    rank = w.rank(op.output)
    name = w.array(table, f"{op.name}_table")
    flat = x if rank == 1 else w.node("Reshape", (x, w.ints([-1])))
    index = w.node("Cast", [flat], to=TensorProto.INT32)
    made = w.node("GatherElements", (name, index), op.output if rank == 1 else "", axis=0)
    if rank != 1:
        w.reshape_like(made, op.inputs[0], op.output)
