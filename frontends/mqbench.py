"""MQBench: fake-quantization nodes under names of its own, which the exporter writes into the default domain.

    x -> LearnablePerTensorAffine(s, z, qmin, qmax) -> y                    x -> FakeQuant -> y
    w -> FakeQuantizeLearnablePerchannelAffine(s, z){quant_min} -> y        w -> FakeQuant(axis from the reader) -> y
    x -> FixedPerChannelAffine(s, z, axis, qmin, qmax) -> y                 x -> FakeQuant(axis) -> y

All of them mean clip(round(x / s) + round(z), qmin, qmax): zero points are floats as training left them. The learnable
per-channel node does not write its axis, which is that of the output channels in the operator that reads the weight.
Its descendants put these nodes into domains of theirs, which current PyTorch demands (mqbench-torch2 mqbench_custom):
the names tell, whatever the domain. In sophgo-mq's domains they mean more than they say: that is the sophgo dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.rewrite import Rules, sweep
from qatc.frontends.common import qdq
from qatc.frontends.common.operands import constant_input, number, refuse
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import by_operators, grid, implied_axis, refuse_formats

SOPHGO: Final = ("Sophgo_custom", "tpu_custom")
_AFFINE: Final = (
    "LearnablePerTensorAffine",
    "FixedPerTensorAffine",
    "FakeQuantizeDSQPertensor",
    "FakeQuantizeTqtAffine",
    "FakeQuantizeLearnablePerchannelAffine",
    "FixedPerChannelAffine",
    "FakeQuantizeDSQPerchannel",
)
_REFUSED: Final = {
    "NNIEQuantize": "the logarithmic format of NNIE",
    "FPEmuOp_per_tensor": "an 8-bit floating-point format",
    "FPEmuOp_per_channel": "an 8-bit floating-point format",
}
_NAMES: Final = frozenset({*_AFFINE, *_REFUSED})


def _is_node(node: Node) -> bool:
    """Tells the fake-quantization nodes of MQBench and its descendants, sophgo-mq's among them."""
    return node.op in _NAMES


def _means_what_it_says(node: Node) -> bool:
    return _is_node(node) and node.domain not in SOPHGO


def _affine(graph: QuantGraph, node: Node) -> bool:
    """One fake-quantization node of any of the forms becomes a FakeQuant; what is wrong with it is recorded."""
    scale, zero = constant_input(graph, node, 1, "scale"), constant_input(graph, node, 2, "zero point")
    last = max(len(node.inputs), 5) - 1  # behind x, scale and zero point the range comes last
    low, high = number(graph, node, "quant_min", last - 1), number(graph, node, "quant_max", last)
    if scale is None or zero is None or low is None or high is None:
        return False
    if low != round(low) or high != round(high):
        return refuse(graph, node, "QAT103", f"the range {low:g}..{high:g} is not one of integers")
    channels = max(scale.size, zero.size)
    axis: int | None = 0
    if node.op == "FixedPerChannelAffine" and (len(node.inputs) > 5 or "ch_axis" in node.attrs):
        written = number(graph, node, "ch_axis", 3)
        if written is None:
            return False
        axis = int(written)
    elif channels > 1:
        axis = implied_axis(graph, node.inputs[0], channels, node.outputs[0])
        if axis is None:
            return refuse(graph, node, "QAT204", f"nothing tells which axis the {channels} scales belong to")
    params = grid(graph, node, scale, zero, (round(low), round(high)), axis)
    if params is None:
        return False
    qdq.to_fake_quant(graph, node, params)
    return True


def read_nodes(graph: QuantGraph, options: FrontendOptions, is_node: Callable[[Node], bool] = _is_node) -> None:
    """Normalize a graph with fake-quantization nodes of MQBench: of those that `is_node` tells."""
    domains = tuple(sorted({node.domain or "" for node in graph.nodes if is_node(node)}))
    qdq.prepare(graph, keep=is_node)
    hint = "train with an affine backend, for instance prepare_by_platform(model, BackendType.Tensorrt)"
    refuse_formats(graph, lambda node: _REFUSED.get(node.op) if is_node(node) else None, hint)
    rules = Rules("mqbench")
    rules.on(*_AFFINE, domain=domains)(_affine)
    sweep(graph, rules)
    finish(graph, options, domains)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    read_nodes(graph, options, _means_what_it_says)


FRONTEND = Frontend(
    name="mqbench",
    description="LearnablePerTensorAffine and the other fake-quantization nodes of MQBench",
    recognize=by_operators(lambda op, domain: op in _NAMES and domain not in SOPHGO),
    normalize=_normalize,
    confidence=80,
    exporters=(
        "MQBench 0.0.7 (TensorRT, PPL, ONNX_QNN, Vitis and academic backends) and its main branch",
        "mqbench-torch2 0.1 (TensorRT, OpenVINO, SNPE, ONNX_QNN and PPL backends; torch 2.13)",
        "in its documented form: MMDeploy (the nodes that MMRazor 1.0 exports)",
    ),
    limits=(
        "NNIE's logarithmic format",
        "exports of MQBench's main branch are plain Q/DQ, and lose ranges other than 0..127 (--quant-range)",
    ),
)
