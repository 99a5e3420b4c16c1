"""What ONNX Runtime's optimizer fused means the same taken apart: it runs the file before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from qatc import CompileError, compile_model
from qatc.compiler.passes.modernize import modernize
from tests.graphs import loaded, to_model
from tests.runtimes import since

IMAGE, ROWS, CUBE = "2,3,6,6", "4,3", "2,4,3"
NUMBERS = {"k": [2, 3, 3, 3], "kb": [2], "w": [3, 5], "v": [5, 4], "e": [5], "g": [3], "h": [3], "s": [2, 4, 3]}


def text_of(x: str, body: str) -> str:
    rng = np.random.default_rng(0)
    constants = ", ".join(
        f"float{shape} {name} = {{{', '.join(f'{v:.4f}' for v in rng.normal(size=np.prod(shape)))}}}"
        for name, shape in NUMBERS.items()
        if name in body
    )
    body = body.replace("M.", "com.microsoft.")
    domains = '"": 17, "com.microsoft": 1'
    return f"<ir_version: 8, opset_import: [{domains}]>\ng (float[{x}] x) => (float[] y) <{constants}> {{ {body} }}"


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("x", "body", "left"),
    [
        (IMAGE, 'y = M.FusedConv<activation="Relu", strides=[2,2]>(x, k, kb)', {"Conv", "Relu"}),
        (IMAGE, 'y = M.FusedConv<activation="Clip", activation_params=[-0.5, 1.0]>(x, k)', {"Conv", "Clip"}),
        (IMAGE, 'y = M.FusedConv<activation="LeakyRelu", activation_params=[0.2]>(x, k)', {"Conv", "LeakyRelu"}),
        (
            IMAGE,
            'y = M.FusedConv<activation="HardSigmoid", activation_params=[0.3, 0.4]>(x, k)',
            {"Conv", "HardSigmoid"},
        ),
        (IMAGE, 'c = Conv(x, k) y = M.FusedConv<activation="Relu">(x, k, kb, c)', {"Conv", "Add", "Relu"}),
        (IMAGE, "c = Conv(x, k) y = M.FusedConv<pads=[0,0,0,0]>(x, k, , c)", {"Conv", "Add"}),
        (ROWS, 'y = M.FusedGemm<activation="Relu", alpha=0.5>(x, w, e)', {"Gemm", "Relu"}),
        (ROWS, 'y = M.FusedGemm<activation="LeakyRelu", activation_alpha=0.3>(x, w)', {"Gemm", "LeakyRelu"}),
        (ROWS, "y = M.FusedMatMul<transA=1, transB=1, alpha=0.25>(x, v)", {"MatMul", "Transpose", "Mul"}),
        (CUBE, "y = M.FusedMatMul<transB=1>(s, x)", {"MatMul", "Transpose"}),
        (CUBE, "y = M.BiasGelu(x, g)", {"Add", "Gelu"}),
        (CUBE, "y = M.SkipLayerNormalization<epsilon=0.01>(x, s, g, h)", {"Add", "LayerNormalization"}),
        pytest.param(
            CUBE,
            "a,,,b = M.SkipLayerNormalization(x, s, g, , h) y = Mul(a, b)",
            {"Add", "LayerNormalization", "Mul"},
            marks=since(1, 24, "computes it less exactly"),
        ),
        (CUBE, "y = M.FusedMatMul<transBatchA=1>(x, w)", {"FusedMatMul"}),
    ],
)
def test_taken_apart_it_means_the_same(x: str, body: str, left: set[str]) -> None:
    text = text_of(x, body)
    graph = loaded(text)
    modernize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert {node.op for node in graph.nodes} == left
    numbers = np.random.default_rng(1).normal(size=[int(d) for d in x.split(",")]).astype(np.float32)
    if body.startswith("y = M.FusedMatMul<transBatchA"):
        return
    want, got = run(onnx.parser.parse_model(text), numbers), run(to_model(graph), numbers)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_network_that_was_optimized_is_as_integer_as_before(tmp_path: Path) -> None:
    """Saved by ONNX Runtime at its extended level, whose FusedConv is a product all the same."""
    weight = ", ".join(map(str, np.random.default_rng(0).integers(-127, 128, 72)))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,8,8] x) => (float[1,4,8,8] y)
        <float s={{0.05}}, float r={{0.1}}, uint8 z={{128}}, uint8 n={{0}}, float sw={{0.01}}, int8 zw={{0}},
         int8[4,2,3,3] w={{{weight}}}> {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(w, sw, zw)
            c = Conv<pads=[1,1,1,1]>(d, k) a = Relu(c) p = QuantizeLinear(a, r, n) y = DequantizeLinear(p, r, n)
        }}"""
    fused = text.replace("Conv<", 'com.microsoft.FusedConv<activation = "Relu", ').replace("c = com", "a = com")
    fused = fused.replace("a = Relu(c)", "").replace('"": 17]', '"": 17, "com.microsoft": 1]')
    (tmp_path / "fused.onnx").write_bytes(onnx.parser.parse_model(fused).SerializeToString())
    result = compile_model(tmp_path / "fused.onnx", qat=True, output=tmp_path / "out")
    assert result.coverage.share == 1
    assert not result.islands


def test_a_bound_that_is_no_number_is_told() -> None:
    body = 'y = M.FusedGemm<activation = "Clip", activation_min = "low">(x, w)'
    with pytest.raises(CompileError, match=r"QAT004.*activation_min"):
        modernize(loaded(text_of(ROWS, body)))
