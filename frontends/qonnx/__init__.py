"""QONNX: Quant, IntQuant, BipolarQuant and Trunc of Brevitas, QKeras and the QONNX tools.

    x -> Quant(s, z, bits){signed, narrow}          x -> FakeQuant
    x -> Quant{rounding_mode=FLOOR}                 x -> Div s -> Floor -> Mul s -> FakeQuant
    x -> Div s -> Quant(1, 0) -> Mul s              x -> FakeQuant              (arithmetic, with a zero point, too)
    x -> BipolarQuant(s)                            x -> Sign -> Add 1/2 -> Sign -> Mul s -> FakeQuant[-1, 1]
    x -> Trunc(s, z, 8 + k bits, 8 bits){FLOOR}     x -> Div s * 2^k -> Floor -> Mul s * 2^k -> FakeQuant(s * 2^k)
    x -> MultiThreshold(t)                          x -> Mul -> Add -> FakeQuant                (thresholds.py)

A constant is rounded here, as the operator defines it, so that every rounding mode is exact on it; {-1, +1} are the
integers of a bipolar constant. Rounding an activation in another way than to the nearest is written out: the FakeQuant
at the end then finds its input on the grid already and states the range (down and up, sums of integers become integers
so: the lowering's `cuts.py`). HALF_UP and HALF_DOWN differ from ONNX's half to even on exact ties alone; Trunc reads
integers, of which a quarter of one keeps those apart. QuantLSTMCell is written out step by step (lstm.py), the layers
of FINN's compiler become standard ones (layers.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, value_of
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.quant import Array, QuantParams, number_of
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import qdq
from qatc.frontends.common.chains import fit
from qatc.frontends.common.operands import constant_input, data_name, number, refuse
from qatc.frontends.common.params import integer_range, on_whole_zero
from qatc.frontends.common.roundings import never_negative
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, elementwise, grid, to_constant
from qatc.frontends.qonnx.layers import CHANNELS_LAST, LAYERS, state_inputs
from qatc.frontends.qonnx.lstm import unroll
from qatc.frontends.qonnx.thresholds import learn_shapes, multi_threshold

DOMAINS: Final = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
_QUANTIZERS: Final = frozenset({"Quant", "IntQuant", "BipolarQuant", "Trunc", "FloatQuant", "MultiThreshold"})
_LAYER_DOMAINS: Final = (*DOMAINS, CHANNELS_LAST)
_FORMS: Final = {  # what has to hold of the layers that are supported in one form alone
    "Im2Col": " but in front of MatMul, with weights of known shape",
    "XnorPopcountMatMul": " but with a constant matrix of {0, 1} as its second operand",
    "QuantAvgPool2d": " but on integers of up to 32 bits",
    "GenericPartition": ": it stands for a model in another file; compile that one, or the model before partitioning",
}
_WHOLE: Final = (
    "train with integer zero points; between integers, a weight's would need the sum of all inputs beside each product"
)
_RULES: Final = Rules("qonnx")
_WIDEST: Final = 32
_APART: Final = 16  # bits that float32 clamps exactly
_MOST_CUT: Final = 24  # bits: no Trunc cuts off so many
_FRACTION: Final = 1e-3  # how far from an integer a zero point may be and still count as one


def _away(x: Array) -> Array:
    return np.sign(x) * np.ceil(np.abs(x))


def _half_away(x: Array) -> Array:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def _half_toward(x: Array) -> Array:
    return np.sign(x) * np.ceil(np.abs(x) - 0.5)


@dataclass(frozen=True)
class _Rounding:
    """A rounding mode: on numbers, and in ONNX operators.

    `op` rounds so; where that holds for non-negative numbers alone (`sided`), of others it rounds the magnitudes.
    Without one FakeQuant's own rounding serves: of the 2^k-th parts of integers, which `off` is added to.
    """

    values: Callable[[Array], Array]
    op: str = ""
    sided: bool = False
    off: float = 0.0


_ROUNDING: Final[dict[str, _Rounding]] = {
    "ROUND": _Rounding(np.rint),
    "HALF_EVEN": _Rounding(np.rint),
    "HALF_UP": _Rounding(_half_away, sided=True, off=0.25),
    "HALF_DOWN": _Rounding(_half_toward, sided=True, off=-0.25),
    "FLOOR": _Rounding(np.floor, "Floor"),
    "CEIL": _Rounding(np.ceil, "Ceil"),
    "UP": _Rounding(_away, "Ceil", sided=True),
    "DOWN": _Rounding(np.trunc, "Floor", sided=True),
    "ROUND_TO_ZERO": _Rounding(np.trunc, "Floor", sided=True),
}


# -- Quant --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quantizer:
    """The constant operands of a Quant node, in the shapes that the file has them in."""

    scale: Array
    zero: Array
    bits: float
    signed: bool
    bounds: tuple[int, int]
    rounding: _Rounding
    mode: str

    def scaled(self, x: Array) -> Array:
        """X / s + z, in the precision that the operator computes it in."""
        kind = np.result_type(x.dtype, self.scale.dtype if self.scale.dtype.kind == "f" else np.float32)
        return np.asarray(x.astype(kind) / self.scale.astype(kind) + self.zero.astype(kind))


@_RULES.on("Quant", "IntQuant", domain=DOMAINS)
def _quant(graph: QuantGraph, node: Node) -> bool:
    """(clip(round(x / s + z), qmin, qmax) - z) * s."""
    read = _quantizer(graph, node)
    if read is None:
        return False
    x = value_of(node.inputs[0])
    if x is not None and not fit(x, read.scale, read.zero):
        shapes = ", ".join(str(list(a.shape)) for a in (x, read.scale, read.zero))
        return refuse(graph, node, "QAT204", f"the constant, its scale and its zero point do not broadcast: {shapes}")
    if read.bits == 1 and read.signed:
        return _one_bit(graph, node, read)
    if _is_taken_apart(graph, node, read):
        rounded = elementwise(graph, "Round", node.inputs[0])
        graph.replace(node.outputs[0], elementwise(graph, "Clip", rounded, *map(np.asarray, read.bounds)))
        return True
    if np.any(np.abs(read.zero - np.rint(read.zero)) > _FRACTION):
        return _between_integers(graph, node, read, x)
    params = grid(graph, node, read.scale, read.zero, read.bounds)
    if params is None:
        return False
    if x is not None and read.rounding.values is not np.rint:
        return to_constant(graph, node, np.clip(read.rounding.values(read.scaled(x)), *read.bounds), params)
    if x is None and read.rounding.op:
        _write_out(graph, node, read)
    elif x is None and read.rounding.values is not np.rint:
        message = f"rounding mode {read.mode} becomes half to even: the two differ on exact ties alone"
        graph.diagnostics.note("QAT307", message, node=label_of(node), tensor=data_name(node))
    return _fake_quant(graph, node, params)


def _is_taken_apart(graph: QuantGraph, node: Node, read: _Quantizer) -> bool:
    """Whether scale and zero point stand around a quantizer of whole numbers, as qonnx extracts them."""
    if read.rounding.values is not np.rint or np.any(read.scale != 1) or np.any(read.zero) or read.bits > _APART:
        return False
    before, after = graph.producer(node.inputs[0]), graph.only_consumer(node.outputs[0])
    before = graph.producer(before.inputs[0]) if is_op(before, "Add") else before
    moved = is_op(after, "Sub")
    after = graph.only_consumer(after.outputs[0]) if is_op(after, "Sub") else after
    factor = value_of(after.inputs[1]) if is_op(after, "Mul") else None
    if isinstance(node.inputs[0], Constant):
        return moved and factor is not None
    divisor = value_of(before.inputs[1]) if is_op(before, "Div") else None
    return factor is not None and divisor is not None and np.array_equal(factor, divisor)


def _quantizer(graph: QuantGraph, node: Node) -> _Quantizer | None:
    scale, zero = constant_input(graph, node, 1, "scale"), constant_input(graph, node, 2, "zero point")
    bits, mode = number(graph, node, "bitwidth", 3), _mode(graph, node, "ROUND")
    if scale is None or zero is None or bits is None or mode is None:
        return None
    if not np.isfinite(zero).all():
        refuse(graph, node, "QAT202", "the zero point is not finite")
        return None
    if not 1 <= bits <= _WIDEST:
        refuse(graph, node, "QAT103", f"{bits:g} bits are not an integer type of 1 to {_WIDEST} bits")
        return None
    signed = bool(node.attr("signed", 1))
    bounds = integer_range(bits, signed, bool(node.attr("narrow", 0)))
    return _Quantizer(scale, zero, bits, signed, bounds, _ROUNDING[mode], mode)


def _mode(graph: QuantGraph, node: Node, default: str) -> str | None:
    mode = str(node.attr("rounding_mode", default)).upper()
    if mode in _ROUNDING:
        return mode
    refuse(graph, node, "QAT104", f"unknown rounding mode {mode}", f"known are {', '.join(_ROUNDING)}")
    return None


def _between_integers(graph: QuantGraph, node: Node, read: _Quantizer, x: Array | None) -> bool:
    """Zero lies between two integers: an activation is rounded on a grid with zero, and moved by what that lacks.

    Half way, a constant is exact on a grid of half the step; else nothing is.
    """
    if x is None and read.scale.size == read.zero.size == 1 and read.rounding.values is np.rint:
        zero = float(read.zero.reshape(-1)[0])
        whole, offset = on_whole_zero(float(read.scale.reshape(-1)[0]), zero, read.bounds)
        moved = grid(graph, node, read.scale, np.full(read.zero.shape, whole), read.bounds)
        if moved is not None:
            qdq.to_fake_quant(graph, node, moved, offset)
        return moved is not None
    if x is None or np.any(np.abs(2 * read.zero - np.rint(2 * read.zero)) > _FRACTION):
        hint = "train with one integer zero point, rounded half to even" if x is None else _WHOLE
        return refuse(graph, node, "QAT103", f"the zero point {read.zero.reshape(-1)[0]:g} is not an integer", hint)
    limit = 2 * int(max(np.abs(bound - read.zero).max() for bound in read.bounds)) + 1
    params = grid(graph, node, read.scale / 2, np.zeros(read.zero.shape), (-limit, limit))
    if params is None:
        return False
    q = np.clip(read.rounding.values(read.scaled(x)), *read.bounds)
    halves = np.rint(2 * (q - read.zero))
    largest = int(np.abs(halves).max(initial=1))
    return to_constant(graph, node, halves, params.with_range(-largest, largest))


def _fake_quant(graph: QuantGraph, node: Node, params: QuantParams) -> bool:
    qdq.to_fake_quant(graph, node, params)
    return True


def _write_out(graph: QuantGraph, node: Node, read: _Quantizer) -> None:
    """Put x -> (round(x / s + z) - z) * s before the node, in ONNX operators."""
    op, x, shifted = read.rounding.op, node.inputs[0], bool(read.zero.any())
    of_one_sign = read.bounds[0] >= 0 or (not shifted and never_negative(graph, x))
    if of_one_sign or not read.rounding.sided:
        node.inputs[0] = _one_way(graph, x, op, read.scale)
        return
    v = elementwise(graph, "Div", x, read.scale)
    v = elementwise(graph, "Add", v, read.zero) if shifted else v
    rounded = elementwise(graph, op, elementwise(graph, "Abs", v))
    rounded = elementwise(graph, "Mul", rounded, elementwise(graph, "Sign", v))
    rounded = elementwise(graph, "Sub", rounded, read.zero) if shifted else rounded
    node.inputs[0] = elementwise(graph, "Mul", rounded, read.scale)


def _one_way(graph: QuantGraph, x: Tensor, op: str, scale: Array) -> Tensor:
    """A tensor rounded down or up to multiples of a step; a whole zero point changes nothing of that."""
    return elementwise(graph, "Mul", elementwise(graph, op, elementwise(graph, "Div", x, scale)), scale)


# -- BipolarQuant -------------------------------------------------------------------------------------------------


def _one_bit(graph: QuantGraph, node: Node, read: _Quantizer) -> bool:
    """QONNX defines a signed Quant of one bit as bipolar."""
    if read.zero.any():
        return refuse(graph, node, "QAT103", "a bipolar quantizer has no zero point")
    return _onto_signs(graph, node, read.scale)


@_RULES.on("BipolarQuant", domain=DOMAINS)
def _bipolar(graph: QuantGraph, node: Node) -> bool:
    """X >= 0 ? s : -s."""
    scale = constant_input(graph, node, 1, "scale")
    return scale is not None and _onto_signs(graph, node, scale)


def _onto_signs(graph: QuantGraph, node: Node, scale: Array) -> bool:
    params = grid(graph, node, scale, np.zeros(()), (-1, 1))
    if params is None:
        return False
    x = value_of(node.inputs[0])
    if x is not None:
        return to_constant(graph, node, np.where(x >= 0, 1, -1), params)
    twice = elementwise(
        graph, "Sign", elementwise(graph, "Add", elementwise(graph, "Sign", node.inputs[0]), np.asarray(0.5))
    )
    node.inputs[0] = elementwise(graph, "Mul", twice, scale)
    return _fake_quant(graph, node, params)


# -- Trunc --------------------------------------------------------------------------------------------------------


@_RULES.on("Trunc", domain=DOMAINS)
def _trunc(graph: QuantGraph, node: Node) -> bool:
    """Cut the k lowest bits off integers: version 1 keeps the scale, version 2 (six inputs) states the new one."""
    scale, zero = constant_input(graph, node, 1, "scale"), constant_input(graph, node, 2, "zero point")
    newer = len(node.inputs) > 5
    before, after = number(graph, node, "in_bitwidth", 3), number(graph, node, "out_bitwidth", 5 if newer else 4)
    out_scale = constant_input(graph, node, 4, "output scale") if newer else scale
    mode = _mode(graph, node, "FLOOR")
    if scale is None or zero is None or out_scale is None or before is None or after is None or mode is None:
        return False
    positive = not node.attr("signed", 1) if newer else never_negative(graph, node.inputs[0])
    lost = _bits_between(scale, out_scale) if newer else before - after
    if not -0.5 <= lost < _MOST_CUT - 0.5 or not 1 <= after <= _WIDEST:
        message = f"{before:g} bits cannot be truncated to {after:g} with a scale of 2^{lost:g}"
        return refuse(graph, node, "QAT103", message)
    k = round(lost)
    cut = zero / 2.0**k
    survives = np.all(cut == np.rint(cut)) and (newer or not zero.any())
    lost_zero = "the zero point does not survive truncation as an integer"
    problem = _misrounded(mode, k, cut, positive=positive) if survives else lost_zero
    if problem:
        return refuse(graph, node, "QAT103", problem)
    bounds = integer_range(after, not positive, bool(node.attr("narrow", 0)))
    rounding, x = _ROUNDING[mode], node.inputs[0]
    if k and rounding.op:
        node.inputs[0] = _one_way(graph, x, rounding.op, scale * 2.0**k)
    elif k and rounding.off:
        node.inputs[0] = elementwise(graph, "Add", x, scale * rounding.off)
    return _cut_bits(graph, node, scale * 2.0**k, out_scale, (cut, bounds))


def _misrounded(mode: str, k: int, zero: Array, *, positive: bool) -> str | None:
    """Why a rounding mode, of integers with k bits to be cut, is none that can be written; `zero` is cut already."""
    if k and _ROUNDING[mode].values is np.rint and np.any(zero % 2):  # QONNX rounds the sum with the zero point
        return f"rounding mode {mode} takes ties around an odd zero point, {zero.reshape(-1)[0]:g}, to odd numbers"
    if _ROUNDING[mode].sided and not positive:
        return f"rounding mode {mode} of numbers of both signs is not a shift and a rounding to the nearest"
    return None


def _bits_between(scale: Array, coarser: Array) -> float:
    """By how many bits the steps of one grid are larger than those of another; NaN where that is no number."""
    if 1 not in (scale.size, coarser.size) and scale.shape != coarser.shape:
        return math.nan
    with np.errstate(all="ignore"):
        return float(np.log2(coarser / scale).mean()) if scale.size and coarser.size else math.nan


def _cut_bits(
    graph: QuantGraph, node: Node, cut_scale: Array, out_scale: Array, cut: tuple[Array, tuple[int, int]]
) -> bool:
    """X -> FakeQuant(cut_scale) [-> Mul -> FakeQuant(out_scale)], the grid that the operator writes."""
    params = grid(graph, node, cut_scale, *cut)
    result = grid(graph, node, out_scale, *cut)
    if params is None or result is None:
        return False
    if not result.same_grid(params):
        x = node.inputs[0]
        y = graph.apply(FAKE_QUANT, [x], f"{x.name}_cut", 1, x.shape, attrs={"params": params})
        node.inputs[0] = elementwise(graph, "Mul", y, out_scale / cut_scale)
    return _fake_quant(graph, node, result)


# -- what is not integer -------------------------------------------------------------------------------------------


@_RULES.on("FloatQuant", domain=DOMAINS)
def _float_quant(graph: QuantGraph, node: Node) -> bool:
    widths = [number_of(value_of(t)) for t in node.inputs[2:4]]
    listed = [f"{width:g}" for width in widths if width is not None]
    name = f"E{listed[0]}M{listed[1]}" if len(listed) == 2 else "a minifloat"
    message, hint = f"FloatQuant rounds to {name}, a floating-point format", "train with integer quantizers (IntQuant)"
    return refuse(graph, node, "QAT103", message, hint)


_RULES.on("MultiThreshold", domain=DOMAINS)(multi_threshold)


def _refuse_others(graph: QuantGraph) -> None:
    hint = "export the layer as standard ONNX operators with Quant nodes around them"
    for node in graph.nodes:
        if node.domain in _LAYER_DOMAINS and node.op not in _QUANTIZERS and node.op != "QuantLSTMCell":
            message = f"{node.op} of {node.domain} is not supported{_FORMS.get(node.op, '')}"
            refuse(graph, node, "QAT302", message, hint)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph)
    sweep(graph, LAYERS)
    qdq.fold(graph)
    state_inputs(graph)
    learn_shapes(graph, [n for n in graph.nodes if n.domain in DOMAINS and n.op in _QUANTIZERS and n.inputs])
    sweep(graph, _RULES)
    unroll(graph, DOMAINS, _quant)
    _refuse_others(graph)
    finish(graph, options, _LAYER_DOMAINS)


FRONTEND = Frontend(
    name="qonnx",
    description="Quant, IntQuant, BipolarQuant, Trunc and QuantLSTMCell nodes, and FINN's MultiThreshold",
    recognize=by_operators(lambda op, domain: domain in _LAYER_DOMAINS),
    normalize=_normalize,
    confidence=80,
    exporters=(
        "Brevitas 0.7 to 0.13 (QONNX, onnx.brevitas), and 0.5 to 0.8 (FINN)",
        "QKeras 0.9 through qonnx 0.4 and 1.0",
        "QONNX model zoo (opset 9 to 14)",
        "qonnx 1.0 (channels last, lowered convolutions, counted bits, extracted scales, conversions to and from QCDQ)",
        "FINN+ 1.6 (converted, streamlined, thresholds rounded)",
    ),
    limits=(
        "QuantLSTMCell over more than 2,048 steps in all, GenericPartition, and FINN's hardware layers",
        "thresholds that are not evenly spaced, but for one row of them on an 8-bit tensor",
        "FloatQuant",
        "roundings toward zero or away from it of numbers of both signs, and roundings down and up onto steps that are"
        " no whole number of units of the sum, stay in float",
        "signs of what is no product (BipolarQuant behind a residual sum without a quantizer) are taken in float",
        "fractional zero points of weights, but for halves",
    ),
)
