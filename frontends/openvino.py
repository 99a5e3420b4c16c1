"""OpenVINO: FakeQuantize nodes of NNCF, also mixed with Q/DQ.

    x -> FakeQuantize(lo, hi, lo, hi){levels}       x -> FakeQuant(s = (hi - lo) / (levels - 1), z = -lo / s)
    x -> FakeQuantize(lo, hi, LO, HI)               x -> Mul -> Add -> FakeQuant(grid of LO, HI)

What is rounded is the position between the input bounds; where the output bounds differ, an affine takes one range onto
the other first. Integers need zero on the output grid: ranges that miss it are refused, except two levels on a
constant, -s and +s, which are the integers -1 and +1.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, repeats_into, value_of
from qatc.compiler.model.links import label_of
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import constant_input, data_name, number, refuse
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, elementwise, grid, owned, refuse_formats, to_constant

DOMAINS: Final = ("org.openvinotoolkit", "")
_RULES: Final = Rules("openvino")
_MOST_LEVELS: Final = 1 << 16
_HALF_PRECISION: Final = 2.0**-11  # how far rounding to float16 moves the ends, of the larger one
_NAMES: Final = ("input low", "input high", "output low", "output high")
_ALIGN: Final = (
    "integer arithmetic needs zero on the grid: let NNCF align the ranges (its asymmetric quantizers do, but for"
    " weights with overflow_fix: make those symmetric, or set overflow_fix to disable)"
)


def _owns(op: str, domain: str) -> bool:
    return op == "FakeQuantize" and domain in DOMAINS


def _format_of(node: Node) -> str | None:
    return "FP8" if node.op == "FakeConvert" and (node.domain or "") in DOMAINS else None


@_RULES.on("FakeQuantize", domain=DOMAINS)
def _fake_quantize(graph: QuantGraph, node: Node) -> bool:
    """round((x - lo) / (hi - lo) * (levels - 1)) / (levels - 1) * (HI - LO) + LO, saturated."""
    found = [constant_input(graph, node, index + 1, name) for index, name in enumerate(_NAMES)]
    levels = number(graph, node, "levels", len(node.inputs))
    ends = [end.astype(np.float64) for end in found if end is not None]
    if levels is None or len(ends) < len(_NAMES):
        return False
    shapes = [end.shape for end in ends]
    if not _alike(shapes) or not _fits(value_of(node.inputs[0]), np.broadcast_shapes(*shapes)):
        listed = ", ".join(str(list(shape)) for shape in shapes)
        message = f"the ends of the range have shapes that do not fit each other, or the constant: {listed}"
        return refuse(graph, node, "QAT104", message)
    low, high, out_low, out_high = _broadcast(ends)
    steps = round(levels) - 1
    if not all(np.isfinite(end).all() for end in ends):
        return refuse(graph, node, "QAT201", "the ends of the range are not finite")
    if not 1 <= steps < _MOST_LEVELS:
        return refuse(graph, node, "QAT104", f"{levels:g} levels are not 2 to {_MOST_LEVELS}")
    if np.any(high < low) or np.any(out_high < out_low):
        return refuse(graph, node, "QAT104", "the lower end of the range lies above the upper end")
    if np.any(high == low) or np.any(out_high == out_low):
        return _dead_channels(graph, node, (low, high, out_low, out_high), steps)
    return _ranges(graph, node, (low, high, out_low, out_high), steps)


_Ends = tuple[Array, Array, Array, Array]


def _ranges(graph: QuantGraph, node: Node, ends: _Ends, steps: int) -> bool:
    low, high, out_low, out_high = ends
    scale = (out_high - out_low) / steps
    zero = -out_low / scale
    x = value_of(node.inputs[0])
    beside = np.abs(zero - np.rint(zero)).max()
    if beside > _tolerance(steps):
        if x is None and beside < 0.5 - _tolerance(steps) and np.isin(np.rint(zero), (0, steps)).all():
            how = "ends {:.2g} steps beside zero, and is moved there, as nncf.strip does"
            return _move_to_zero(graph, node, ends, steps, how.format(beside))
        if beside <= steps * _HALF_PRECISION and all(np.all(end == end.astype(np.float16)) for end in ends):
            how = "of half precision has a level {:.2g} steps beside zero, and is moved there"
            return _move_to_zero(graph, node, ends, steps, how.format(beside))
        if x is not None and steps == 1 and np.allclose(out_low, -out_high, rtol=1e-5, atol=0):
            signs = np.where(x > (low + high) / 2, 1, -1)
            params = grid(graph, node, out_high, np.zeros(()), (-1, 1))
            return params is not None and to_constant(graph, node, signs, params)
        first, last = out_low.reshape(-1)[0], out_high.reshape(-1)[0]
        return refuse(graph, node, "QAT103", f"zero is not one of the levels between {first:g} and {last:g}", _ALIGN)
    params = _grid(graph, node, scale, np.rint(zero), steps)
    if params is None:
        return False
    same = np.allclose(low, out_low, rtol=1e-6, atol=1e-30) and np.allclose(high, out_high, rtol=1e-6, atol=1e-30)
    if not same:
        factor = scale * steps / (high - low)
        for op, by, nothing in (("Mul", factor, 1.0), ("Add", out_low - low * factor, 0.0)):
            if np.any(by != nothing):
                node.inputs[0] = elementwise(graph, op, node.inputs[0], by)
    qdq.to_fake_quant(graph, node, params)
    return True


def _move_to_zero(graph: QuantGraph, node: Node, ends: _Ends, steps: int, how: str) -> bool:
    """A range one of whose levels is almost zero: it is moved by that much.

    NNCF aligns ranges in training, but for those that begin or end less than half a step beside zero, which its own
    `nncf.strip` moves in the same way; rounding their ends to half precision takes them apart again.
    """
    low, high, out_low, out_high = ends
    graph.diagnostics.note("QAT307", f"the range {how}", node=label_of(node), tensor=data_name(node))
    scale = (out_high - out_low) / steps
    offset = -np.rint(-out_low / scale) * scale - out_low
    return _ranges(graph, node, (low + offset, high + offset, out_low + offset, out_high + offset), steps)


def _alike(shapes: list[tuple[int, ...]]) -> bool:
    """Whether the ends broadcast to the shape of the largest one: they vary along the same axis, or not at all."""
    try:
        count = math.prod(np.broadcast_shapes(*shapes))
    except ValueError:
        return False
    return 0 < count == max(math.prod(shape) for shape in shapes)


def _fits(x: Array | None, ends: tuple[int, ...]) -> bool:
    """Whether the ends only repeat themselves to meet what is quantized, where that is a constant."""
    return x is None or math.prod(ends) == 1 or repeats_into(ends, x.shape)


def _broadcast(ends: list[Array]) -> _Ends:
    low, high, out_low, out_high = np.broadcast_arrays(*ends)
    return low, high, out_low, out_high


def _tolerance(steps: int) -> float:
    """How far from an integer -lo / s may be: bounds are float32, so that it grows with the number of levels."""
    return max(2e-3, steps * 2.0**-20)


def _grid(graph: QuantGraph, node: Node, scale: Array, zero: Array, steps: int) -> QuantParams | None:
    """Signed where every channel is symmetric (or one step from it), else unsigned from zero."""
    middle = (steps + 1) // 2
    if np.all(zero == middle):
        return grid(graph, node, scale, np.zeros(zero.shape), (-middle, steps - middle))
    return grid(graph, node, scale, zero, (0, steps))


def _dead_channels(graph: QuantGraph, node: Node, ends: _Ends, steps: int) -> bool:
    """A range of no width is one number: where that is zero, in a constant, any scale will do, else it is an error."""
    low, high, out_low, out_high = ends
    dead = (high == low) | (out_high == out_low)
    x = value_of(node.inputs[0])
    if x is None or dead.all() or any(np.any(end[dead] != 0) for end in ends):
        return refuse(graph, node, "QAT201", f"{int(dead.sum())} of {dead.size} ranges have no width")
    live = int(np.flatnonzero(~dead.reshape(-1))[0])
    node.inputs[0] = graph.constant(f"{node.inputs[0].name}_live", np.where(dead, 0, x).astype(x.dtype))
    return _ranges(graph, node, _broadcast([np.where(dead, end.reshape(-1)[live], end) for end in ends]), steps)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    refuse_formats(graph, _format_of, "quantize to INT8 (nncf.quantize without a mode)")
    qdq.prepare(graph, keep=owned(_owns))
    sweep(graph, _RULES)
    finish(graph, options, DOMAINS)


FRONTEND = Frontend(
    name="openvino",
    description="FakeQuantize nodes, alone or mixed with Q/DQ",
    recognize=by_operators(lambda op, domain: domain == DOMAINS[0] or _owns(op, domain)),
    normalize=_normalize,
    confidence=80,
    exporters=(
        "NNCF 2.9 and 3.4 (PyTorch, unstripped or stripped)",
        "MMRazor 1.0 (OpenVINO exporter; torch 2.14)",
        "in its documented form: MQBench (OpenVINO deployment)",
    ),
    limits=(
        "ranges whose grid has no zero, but for those that end within half a step of it, and of half precision",
        "more than 65536 levels",
        "FakeConvert (FP8)",
    ),
)
