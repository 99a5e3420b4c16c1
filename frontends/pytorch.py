"""PyTorch: FX and eager QAT, the dynamo exporter, PT2E, and whatever else writes standard Q/DQ or arithmetic.

The node forms are in `frontends/lift.py` (Q/DQ) and `frontends/arithmetic.py`. What is PyTorch's own is what its
exporters lose: `quantize_per_tensor` of the dynamo exporter ignores quant_min and quant_max, so that a model trained on
0..127 (the default of the fbgemm and x86 qconfigs) is written as one on 0..255. The file cannot tell; the user can.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, is_constant, value_of
from qatc.compiler.quant import QuantParams
from qatc.frontends import arithmetic, grid
from qatc.frontends.qdq import apply_ranges, fake_quants, is_dq, is_q, lift, prepare

_STEPS_SHOWN: Final = 64  # a weight grid is narrower if no channel uses more than this share of 127 steps


def recognise(graph: QuantGraph, producer: str) -> str | None:
    """Standard Q/DQ of any exporter, or fake quantization written as arithmetic."""
    found = evidence(graph)
    return f"{found}, producer {producer or 'unknown'}" if found else None


def evidence(graph: QuantGraph) -> str:
    """What of standard Q/DQ and of quantizers in arithmetic is in a graph; "" where there is nothing."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if is_q(node) or is_dq(node):
            counts[node.op] += 1
        elif _looks_like_quantizer(node):
            counts["fake quantization written as arithmetic"] += 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), reverse=True))


def _looks_like_quantizer(node: Node) -> bool:
    """A Round whose result is clamped and scaled, or clamped before."""
    if not arithmetic.heads_quantizer(node) or not node.inputs:
        return False
    nearby = [*node.inputs[0].inputs, *node.outputs[0].outputs]
    nearby += [reader for near in node.outputs[0].outputs for reader in near.outputs[0].outputs]
    return any(n.op in ("Clip", "Min", "Max") for n in nearby)


def normalise(graph: QuantGraph, options: FrontendOptions) -> None:
    """Bring the graph to the canonical form; findings go to `graph.diagnostics`."""
    standard(graph)
    grid.recover_weights(graph, quantize_others=options.float_weights == "quantize")
    apply_ranges(graph, options)
    if not graph.diagnostics.errors:
        _suggest_ranges(graph, options)


def standard(graph: QuantGraph) -> None:
    """The common road: modern operators, quantizers in arithmetic, folded constants, Q/DQ lifted."""
    prepare(graph, keep=arithmetic.heads_quantizer)
    arithmetic.rewrite(graph)
    prepare(graph)  # what looked like a quantizer and was none
    lift(graph)


# -- ranges that the exporter lost --------------------------------------------------------------------------------


def _suggest_ranges(graph: QuantGraph, options: FrontendOptions) -> None:
    """A note where the weights use far fewer steps than their type has (QAT107)."""
    if options.ranges.weights is not None:
        return
    narrow: Counter[int] = Counter()
    total = 0
    first = ""
    for node in fake_quants(graph):
        params: QuantParams = node.attrs["params"]
        weight = node.inputs[0]
        if not is_constant(weight) or not params.is_full_range or not params.is_8bit or any(params.zero_point):
            continue
        total += 1
        steps = _steps(node, params)
        if steps is not None and steps <= _STEPS_SHOWN:
            narrow[steps] += 1
            first = first or node.outputs[0].name
    if total and sum(narrow.values()) == total:
        top = max(narrow)
        end = 1 << top.bit_length()
        graph.diagnostics.note(
            "QAT107",
            f"no weight uses more than {top} steps of its 8-bit type: it may have been trained with fewer bits, and the"
            " exporter has lost the range",
            tensor=first,
            hint=f"state the range it was trained with, for example --quant-range weight={-end}..{end - 1}",
        )


def _steps(node: Node, params: QuantParams) -> int | None:
    """The largest integer that a weight needs, rounding the scale's own error away."""
    value = value_of(node.inputs[0])
    if value is None or not value.size:
        return None
    with np.errstate(all="ignore"):
        return int(np.abs(np.rint(value / params.scale_array(value.ndim))).max())


FRONTEND: Final = Frontend(
    name="pytorch",
    description="standard QuantizeLinear/DequantizeLinear and fake quantization written as arithmetic",
    recognise=recognise,
    normalise=normalise,
    confidence=10,
    exporters=(
        "torch.onnx.export of FX, eager and PT2E models (torch 1.13 to 2.13, legacy and dynamo exporter)",
        "ONNX Runtime quantize_static (QDQ)",
        "Brevitas QCDQ",
        "NNCF strip",
        "hand-written LSQ",
        "Renesas DRP-AI recipe",
    ),
    limits=(
        "the dynamo exporter drops quant_min and quant_max of activations: state them with --quant-range",
        "bfloat16 and float8 Q/DQ, and scales for blocks of weights, are refused",
    ),
)
