"""QOperator: networks that are written in integer operators are read back into float operators and Q/DQ.

    q_x -> QLinearConv(s_x, z_x, q_w, s_w, z_w, s_y, z_y, b) -> q_y

    q_x -> DQ(s_x, z_x) -> Conv(DQ(q_w, s_w, z_w), DQ(b, s_x * s_w)) -> Q(s_y, z_y) -> q_y

Likewise QLinearMatMul, and of com.microsoft QLinearAdd, Mul, Concat, Where, Sigmoid, LeakyRelu, Softmax, ReduceMean,
the average pools, QGemm and MatMulIntegerToFloat. ConvInteger and MatMulInteger know zero points alone: on weights of
step 1 they are float operators too, divided by the step of their input; what follows is carried over to real numbers.
Integers that arithmetic rounds for them are stated first (see `casts`).

Operators in the layout NHWC, which ONNX Runtime's optimizer writes too, stand between transposes here. What only moves
integers is the shared core's business. MQBench's ONNX_QNN deployment quantizes integers a second time and lets float
operators read integers: both are read as they are meant. Quantization at run time has no grid to read.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import Node, QuantGraph, is_constant, rank_of
from qatc.compiler.model.protos import MICROSOFT, domain_of
from qatc.compiler.passes.bodies import nodes_in_bodies, quantized_bodies
from qatc.compiler.passes.modernize import infer_if_possible
from qatc.frontends.common import qdq
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import listed
from qatc.frontends.qoperator.casts import SUMS, state_grids
from qatc.frontends.qoperator.meanings import MEANINGS, declare_inputs, is_table
from qatc.frontends.qoperator.operators import RULES
from qatc.frontends.qoperator.reader import Reader, is_unreadable

__all__ = ["FRONTEND", "MICROSOFT"]


def _is_ours(node: Node) -> bool:
    return (node.domain or "", node.op) in RULES


def _is_asked(node: Node) -> bool:
    """Whether the node is a product of constants, by which a model of ours chooses its form (docs/adr/0009)."""
    return node.op == "MatMulInteger" and all(is_constant(t) or not t.name for t in node.inputs)


def _quantizes_inside(graph: QuantGraph) -> bool:
    """Whether a body holds what would have had to be read with the graph around it."""
    inner = ((domain_of(n.domain), n.op_type) for _, nodes in nodes_in_bodies(graph) for n in nodes)
    return any(kind in RULES for kind in inner) or bool(quantized_bodies(graph))


def _recognize(graph: QuantGraph, producer: str) -> str | None:
    """What is read, or refused by its name."""
    found = Counter({kind: n for kind, n in graph.source_ops.items() if kind[::-1] in RULES or is_unreadable(*kind)})
    found.update((n.op, "") for n in graph.of("Gather", "GatherElements") if is_table(n))
    return listed(found)


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    qdq.prepare(graph, keep=lambda node: _is_ours(node) and not _is_asked(node))
    products = [n for n in graph.nodes if n.op in SUMS and not n.domain]
    if any(rank_of(n.outputs[0]) is None for n in products):
        infer_if_possible(graph)  # functions that were inlined hold no shapes
    state_grids(graph, products)
    reader = Reader(graph, RULES, MEANINGS)
    declare_inputs(reader)
    reader.run()
    if graph.diagnostics.errors:
        return
    if graph.of("If") and not _quantizes_inside(graph):
        qdq.settle(graph)  # what decides a branch behind ONNX Runtime's own operators has sizes only now
    finish(graph, options, [MICROSOFT])
    for name, source in list(graph.origin.items()):
        integers = reader.sources.get(source, source)  # the file has no real numbers there
        if integers in graph.known:
            graph.origin[name] = integers
        else:
            del graph.origin[name]


FRONTEND: Final = Frontend(
    name="qoperator",
    description="integer operators (QLinearConv, QGemm, MatMulInteger, ...) read back",
    recognize=_recognize,
    normalize=_normalize,
    confidence=75,
    exporters=(
        "ONNX Runtime 1.5, 1.8, 1.10, 1.12, 1.14, 1.16, 1.20 and 1.31 quantize_static (QuantFormat.QOperator)",
        "neural-compressor 2.3 (QOperator)",
        "MQBench 0.0.7 (ONNX_QNN deployment)",
        "Brevitas 0.5, 0.7 and 0.10 (QLinear operators; biases of 32 bits)",
        "SparseML 1.5 (quantize_torch_qat_export of PyTorch 1.9 and 1.12)",
        "onnx-neural-compressor 1.0 (QOperator)",
        "onnx-quantize 0.2 (static)",
        "torchao 0.18 Int8StaticActivationInt8WeightConfig (dynamo exporter, _int_mm translated to MatMulInteger)",
        "qatc (every package of the targets onnx and drpai)",
    ),
    limits=(
        "dynamic quantization (scales found at run time), as Keras 3 writes it (model.quantize)",
        "weights in blocks (MatMulNBits)",
        "Aidge 0.10 after quantize_network: Gemm of int8 (as jax2onnx writes products of bytes), QuantizeLinear to"
        " float32 and floats that are stated to be integers (set_to_qdq), which ONNX does not have",
        "QAttention and other fused operators of com.microsoft",
        "QuantizeML 1.2 of BrainChip (integer arithmetic of its own, in functions of com.brainchip)",
    ),
)
