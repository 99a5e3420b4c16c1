"""Sony's Model Compression Toolkit: its own quantizer nodes (format MCTQ, domain `mct_quantizers`).

    x -> ActivationPOTQuantizer{threshold, signed, num_bits} -> y           likewise ActivationSymmetricQuantizer
    x -> ActivationUniformQuantizer{min_range, max_range, num_bits} -> y
    w -> WeightsPOTQuantizer(threshold){num_bits, per_channel, channel_axis} -> y    and WeightsSymmetricQuantizer
    w -> WeightsUniformQuantizer(min_range, max_range){...} -> y

A threshold t on n bits is t / 2^(n-1) a step and the integers -2^(n-1)..2^(n-1)-1, without a sign t / 2^n and
0..2^n-1. A range is moved until it holds zero, then by less than a step until zero is on its grid. The format
FAKELY_QUANT of the same toolkit is plain Q/DQ with weights that are floats on a grid: `pytorch` reads it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.quant import Array
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import constant_input, number, refuse
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, grid, owned, refuse_formats

DOMAIN: Final = "mct_quantizers"
_MOST_BITS: Final = 16
_RULES: Final = Rules("mct")


def _named(*endings: str) -> tuple[str, ...]:
    return tuple(start + end for start in ("Activation", "Weights") for end in endings)


_THRESHOLDS: Final = _named("POTQuantizer", "SymmetricQuantizer")
_RANGES: Final = _named("UniformQuantizer")
_TABLES: Final = _named("LUTPOTQuantizer", "LUTSymmetricQuantizer")


def _bits(graph: QuantGraph, node: Node) -> int | None:
    """The width of the integers; None with QAT103 recorded where no container holds them."""
    bits = number(graph, node, "num_bits", len(node.inputs))
    if bits is None:
        return None
    if bits != int(bits) or not 1 <= bits <= _MOST_BITS:
        refuse(graph, node, "QAT103", f"{node.op} has {bits:g} bits, not 1 to {_MOST_BITS}")
        return None
    return int(bits)


def _operand(graph: QuantGraph, node: Node, name: str, index: int) -> Array | None:
    """A number of an activation (an attribute), or the numbers of a weight (input `index`), as float64."""
    if node.op.startswith("Weights"):
        value = constant_input(graph, node, index, name)
        return None if value is None else value.astype(np.float64)
    stated = number(graph, node, name, len(node.inputs))
    return None if stated is None else np.asarray(stated, np.float64)


def _to_fake_quant(graph: QuantGraph, node: Node, scale: Array, zero: Array, bounds: tuple[int, int]) -> bool:
    params = grid(graph, node, scale, zero, bounds, int(node.attr("channel_axis", 0)))
    if params is not None:
        qdq.to_fake_quant(graph, node, params)
    return params is not None


@_RULES.on(*_THRESHOLDS, domain=DOMAIN)
def threshold(graph: QuantGraph, node: Node) -> bool:
    """A threshold: a grid around zero, or from zero on."""
    bits, largest = _bits(graph, node), _operand(graph, node, "threshold", 1)
    if bits is None or largest is None:
        return False
    half = 1 << (bits - 1)
    bounds = (-half, half - 1) if node.attr("signed", 1) else (0, 2 * half - 1)
    return _to_fake_quant(graph, node, largest / (bounds[1] + 1), np.zeros(()), bounds)


@_RULES.on(*_RANGES, domain=DOMAIN)
def uniform(graph: QuantGraph, node: Node) -> bool:
    """A range: its ends are those of the grid, but that zero is on it."""
    bits, low, high = _bits(graph, node), _operand(graph, node, "min_range", 1), _operand(graph, node, "max_range", 2)
    if bits is None or low is None or high is None:
        return False
    if 1 not in (low.size, high.size) and low.shape != high.shape:
        message = f"its minima and maxima have the shapes {list(low.shape)} and {list(high.shape)}"
        return refuse(graph, node, "QAT104", message)
    top = (1 << bits) - 1
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = (high - low) / top
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(scale > 0, np.rint(-low / scale), 0.0)
    return _to_fake_quant(graph, node, scale, zero, (0, top))


def _format_of(node: Node) -> str | None:
    return "a table of values" if node.domain == DOMAIN and node.op in _TABLES else None


def _owns(op: str, domain: str) -> bool:
    return domain == DOMAIN and op in (*_THRESHOLDS, *_RANGES, *_TABLES)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=owned(_owns))
    hint = "choose a target platform whose quantization methods are POWER_OF_TWO, SYMMETRIC or UNIFORM"
    refuse_formats(graph, _format_of, hint)
    sweep(graph, _RULES)
    finish(graph, options, (DOMAIN,), quantize_weights=False)


FRONTEND = Frontend(
    name="mct",
    description="the quantizer nodes of Sony's Model Compression Toolkit (mct_quantizers)",
    recognize=by_operators(_owns),
    normalize=_normalize,
    confidence=80,
    exporters=("model-compression-toolkit 2.6 with mct-quantizers 1.7 (PyTorch; after training and QAT; MCTQ)",),
    limits=("quantizers to a table of values (LUT)",),
)
