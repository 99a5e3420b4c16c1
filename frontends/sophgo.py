"""Sophgo: the nodes of MQBench in the domain Sophgo_custom or tpu_custom, and a bias rounding that no node states.

    x -> FakeQuant(s_x) -> Conv(w -> FakeQuant(s_w), b)         b -> FakeQuant(int32, s_x * s_w[c]) -> Conv

sophgo-mq (now tpu-mq) trains with every Conv, ConvTranspose and Gemm bias rounded to the grid of its accumulator, and
exports the unrounded one. With the rounding put back, the graph computes exactly what was trained.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, value_of
from qatc.compiler.quant import QuantParams
from qatc.frontends import mqbench
from qatc.frontends.common.vendor import by_operators, grid_behind

_BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})


def round_biases(graph: QuantGraph) -> None:
    """Put a FakeQuant onto every bias that sophgo-mq rounds: int32 on the grid s_x * s_w of its operator."""
    done: dict[tuple[int, QuantParams], Tensor] = {}
    for node in list(graph.nodes):
        if node.op not in _BIASED or node.domain or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        params = _accumulator(graph, node)
        if params is None or not isinstance(bias, Constant) or bias.name in graph.params:
            continue
        key = (id(bias), params)
        if key not in done:
            name, attrs = f"{bias.name}_rounding", {"params": params}
            done[key] = graph.apply(FAKE_QUANT, [bias], f"{bias.name}_rounded", 1, bias.shape, name=name, attrs=attrs)
        node.inputs[2] = done[key]
    graph.sort()


def _accumulator(graph: QuantGraph, node: Node) -> QuantParams | None:
    """The grid of the operator's accumulator along the bias, None where an operand is not quantized."""
    data, weight = (grid_behind(graph, t) for t in node.inputs[:2])
    bias = value_of(node.inputs[2])
    if data is None or weight is None or data.is_per_channel or bias is None:
        return None
    if (node.op == "Gemm" and node.attr("beta", 1.0) != 1.0) or bias.ndim == 0:
        return None
    scales = np.float32(data.scale[0]) * np.asarray(weight.scale, np.float32) * np.float32(node.attr("alpha", 1.0))
    if len(scales) not in (1, bias.shape[-1]) or np.any(scales <= 0):
        return None
    if len(scales) == 1:
        return QuantParams.per_tensor(float(scales[0]), 0, "int32")
    return QuantParams.per_channel(scales, bias.ndim - 1, 0, "int32")


def _normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    mqbench.read_nodes(graph, options)
    round_biases(graph)


FRONTEND = Frontend(
    name="sophgo",
    description="the fake-quantization nodes of sophgo-mq (Sophgo_custom), biases rounded as it trains them",
    recognize=by_operators(lambda op, domain: domain in mqbench.SOPHGO),
    normalize=_normalize,
    confidence=90,
    exporters=("sophgo-mq, main branch (BM168x, BM1690, CV18xx, CV186x)",),
    limits=("E4M3, E5M2 and FP4 fake quantization", "the deploy model beside it is float: use --ranges"),
)
