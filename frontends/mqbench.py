"""MQBench: fake-quantization nodes that the exporter writes into the default domain, under names of its own.

    x -> LearnablePerTensorAffine(s, z, qmin, qmax) -> y                    x -> FakeQuant -> y
    w -> FakeQuantizeLearnablePerchannelAffine(s, z){quant_min} -> y        w -> FakeQuant(axis from the reader) -> y
    x -> FixedPerChannelAffine(s, z, axis, qmin, qmax) -> y                 x -> FakeQuant(axis) -> y

All of them mean clip(round(x / s) + round(z), qmin, qmax): zero points are floats as training left them. The learnable
per-channel node does not write its axis, which is that of the output channels in the operator that reads the weight.
The sophgo dialect has the same nodes in a domain of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.model.links import label_of
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import qdq
from qatc.frontends.common.params import constant_input
from qatc.frontends.common.vendor import count, finish, grid, implied_axis, number, refuse_formats

DOMAINS: Final = ("", "mqbench")
PER_TENSOR: Final = (
    "LearnablePerTensorAffine",
    "FixedPerTensorAffine",
    "FakeQuantizeDSQPertensor",
    "FakeQuantizeTqtAffine",
)
PER_CHANNEL: Final = (
    "FakeQuantizeLearnablePerchannelAffine",
    "FixedPerChannelAffine",
    "FakeQuantizeDSQPerchannel",
)
REFUSED: Final = {
    "NNIEQuantize": "the logarithmic format of NNIE",
    "FPEmuOp_per_tensor": "an 8-bit floating-point format",
    "FPEmuOp_per_channel": "an 8-bit floating-point format",
}
_NAMES: Final = frozenset({*PER_TENSOR, *PER_CHANNEL, *REFUSED})
_RULES: Final = Rules("mqbench")


def is_node_of(domains: tuple[str, ...]) -> Callable[[Node], bool]:
    """Tells the fake-quantization nodes of MQBench in any of these domains."""
    return lambda node: node.op in _NAMES and (node.domain or "") in domains


def affine(graph: QuantGraph, node: Node) -> bool:
    """One fake-quantization node of any of the forms becomes a FakeQuant; what is wrong with it is recorded."""
    scale, zero = constant_input(graph, node, 1, "scale"), constant_input(graph, node, 2, "zero point")
    last = max(len(node.inputs), 5) - 1  # behind x, scale and zero point the range comes last
    low, high = number(graph, node, "quant_min", last - 1), number(graph, node, "quant_max", last)
    if scale is None or zero is None or low is None or high is None:
        return False
    if low != round(low) or high != round(high):
        graph.diagnostics.error("QAT103", f"the range {low:g}..{high:g} is not one of integers", node=label_of(node))
        return False
    channels = max(scale.size, zero.size)
    axis: int | None = 0
    if node.op == "FixedPerChannelAffine" and len(node.inputs) > 5:
        written = number(graph, node, "ch_axis", 3)
        if written is None:
            return False
        axis = int(written)
    elif channels > 1:
        axis = implied_axis(graph, node.inputs[0], channels, node.outputs[0])
        if axis is None:
            message = f"nothing tells which axis the {channels} scales belong to"
            graph.diagnostics.error("QAT204", message, node=label_of(node), tensor=node.inputs[0].name)
            return False
    params = grid(graph, node, scale, zero, (round(low), round(high)), axis)
    if params is None:
        return False
    qdq.to_fake_quant(graph, node, params)
    return True


def refuse(graph: QuantGraph) -> None:
    """Record the formats that are not affine, each once."""
    hint = "train with an affine backend, for instance prepare_by_platform(model, BackendType.Tensorrt)"
    refuse_formats(graph, lambda node: REFUSED.get(node.op), hint)


def register(rules: Rules, domains: tuple[str, ...]) -> None:
    """Register the rules of all node forms for these domains."""
    for domain in domains:
        rules.on(*PER_TENSOR, *PER_CHANNEL, domain=domain)(affine)


register(_RULES, DOMAINS)
_OURS: Final = is_node_of(DOMAINS)


def _recognise(graph: QuantGraph, producer: str) -> str | None:
    return count(graph, _OURS)


def _normalise(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=_OURS)
    refuse(graph)
    sweep(graph, _RULES)
    finish(graph, options, DOMAINS)


FRONTEND = Frontend(
    name="mqbench",
    description="LearnablePerTensorAffine and the other fake-quantization nodes of MQBench",
    recognise=_recognise,
    normalise=_normalise,
    confidence=80,
    exporters=("MQBench 0.0.7 (TensorRT, PPL, ONNX_QNN, Vitis and academic backends) and its main branch",),
    limits=(
        "NNIE's logarithmic format",
        "exports of MQBench's main branch are plain Q/DQ, and lose ranges other than 0..127 (--quant-range)",
    ),
)
