"""Numbers that quantized tensors are multiplied by: where they go, and that they mean the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.factors import move_factors
from qatc.compiler.shapes import infer_shapes
from tests.graphs import net, stripped
from tests.pipeline import simulate

WEIGHT = "int8[2,2,3,3] wq = {" + ", ".join(str(v % 17 - 8) for v in range(0, 36 * 5, 5)) + "}, float k = {-0.17}"
READERS = {
    "a convolution with padding and a bias": (
        "w = DequantizeLinear(wq, sD, zD)\nc = Conv<pads = [1, 1, 1, 1]>(s, w, b)",
        "float[2] b = {0.3, -1.}, float sD = {0.0625}, int8 zD = {0}",
    ),
    "a product of two activations": ("t = Transpose<perm = [0, 1, 3, 2]>(s)\nc = MatMul(s, t)", ""),
    "a mean": ("c = ReduceMean<axes = [1]>(s)", ""),
    "a sum": ("c = ReduceSum(s, axes)", "int64[2] axes = {1, 2}"),
    "an average": ("c = AveragePool<kernel_shape = [2, 2]>(s)", ""),
    "a move before a mean": ("f = Flatten(s)\nc = ReduceMean<axes = [1]>(f)", ""),
}  # fmt: skip


def before(body: str, constants: str) -> QuantGraph:
    graph = stripped(net("(float[1,2,6,6] x) => (float[] y)", f"a = A(x)\n{body}\ny = A(c)", constants))
    infer_shapes(graph)
    return graph


@pytest.mark.parametrize("factor", ["Mul(a, k)", "Mul(k, a)", "Div(a, k)"])
@pytest.mark.parametrize("reader", READERS)
def test_all_products_are_integers_and_mean_the_same(factor: str, reader: str, tmp_path: Path) -> None:
    """Verified against the file itself."""
    body, constants = READERS[reader]
    text = net(
        "(float[1,2,6,6] x) => (float[] y)",
        f"a = A(x)\ns = {factor}\n{body}\ny = A(c)",
        ", ".join(filter(None, [WEIGHT, constants])),
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "package", qat=True)
    assert (result.coverage.share, result.islands) == (1.0, ())
    assert result.verification is not None
    assert result.verification.passed


def test_query_and_key_each_times_the_root_of_the_scale() -> None:
    """What torch's exporter makes of scaled_dot_product_attention."""
    graph = before("s = Mul(a, k)\nt = Transpose<perm = [0, 1, 3, 2]>(s)\nc = MatMul(s, t)", "float k = {0.5}")
    x = {"x": np.random.default_rng(0).normal(0, 30, (1, 2, 6, 6)).astype(np.float32)}
    want = simulate(graph, x)["y"]
    assert move_factors(graph) == 3
    np.testing.assert_array_equal(simulate(graph, x)["y"], want)
    assert [n.op for n in graph.nodes] == ["Transpose", "MatMul", "Mul", "Mul"]


def test_the_scales_of_a_weight_take_the_factor() -> None:
    graph = before(
        "s = Div(a, k)\nw = DequantizeLinear(wq, sw, zw)\nc = MatMul(s, w)",
        "int8[6,2] wq = {1,2,3,4,5,6,7,8,9,10,11,12}, float sw = {0.5}, int8 zw = {0}, float k = {4.}",
    )
    assert move_factors(graph) == 1
    (product,) = graph.nodes
    assert graph.params[product.inputs[1].name].scale == (0.125,)


STAYS: dict[str, tuple[str, str]] = {
    "what is rounded after its factor": ("t = Mul(a, k)\ns = B(t)\nc = ReduceMean<axes = [1]>(s)", "float k = {0.5}"),
    "a factor for each channel": ("s = Mul(a, k)\nc = ReduceMean<axes = [2]>(s)", "float[2,1,1] k = {0.5, 2.}"),
    "more dimensions": ("s = Mul(a, k)\nc = ReduceMean<axes = [2]>(s)", "float[1,1,1,1,1] k = {0.5}"),
    "zero": ("s = Mul(a, k)\nc = ReduceMean<axes = [1]>(s)", "float k = {0.}"),
    "the reciprocal": ("s = Div(k, a)\nc = ReduceMean<axes = [1]>(s)", "float k = {2.}"),
    "a maximum of what falls": ("s = Mul(a, k)\nc = GlobalMaxPool(s)", "float k = {-1.}"),
    "magnitudes of what falls": ("s = Mul(a, k)\nc = ReduceL1<axes = [1]>(s)", "float k = {-1.}"),
    "padding with a number": (
        "s = Mul(a, k)\np = Pad(s, pads, one)\nc = ReduceMean<axes = [1]>(p)",
        "float k = {0.5}, float one = {1.}, int64[8] pads = {0,0,1,1,0,0,1,1}",
    ),
    "a curve": ("s = Mul(a, k)\nc = Sigmoid(s)", "float k = {0.5}"),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(case: str) -> None:
    assert move_factors(before(*STAYS[case])) == 0


def test_other_readers_keep_the_product() -> None:
    graph = before("s = Mul(a, k)\nm = ReduceMean<axes = [1]>(s)\ng = Sigmoid(s)\nc = Add(m, g)", "float k = {0.5}")
    assert move_factors(graph) == 1
    assert sorted(n.op for n in graph.nodes) == ["Add", "Mul", "Mul", "ReduceMean", "Sigmoid"]


def test_a_raw_product_times_a_number_is_one_accumulator(tmp_path: Path) -> None:
    """Scores of an attention whose Softmax is float: their scale is that of the accumulator, and no operator."""
    body = "a = A(x)\nt = Transpose<perm = [0, 1, 3, 2]>(a)\nm = MatMul(a, t)\ns = Div(m, k)\nc = Softmax(s)\ny = A(c)"
    text = net("(float[1,2,6,6] x) => (float[] y)", body, "float k = {300.}")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    result: Any = compile_model(tmp_path / "model.onnx", output=tmp_path / "package", qat=True)
    assert [i.op_type for i in result.islands] == ["Softmax"]
    assert result.verification.passed
