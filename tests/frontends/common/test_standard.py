"""What every dialect reads beside its own nodes: quantizers in arithmetic, and signs."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.frontends import mqbench, openvino, qonnx
from tests.frontends.running import run_canonical
from tests.graphs import loaded

VENDORS = {
    "qonnx": (qonnx.FRONTEND, "v = qonnx.custom_op.general.Quant(x, s, zero, bits)"),
    "mqbench": (mqbench.FRONTEND, "v = mqbench.FixedPerTensorAffine(x, s, zero, low, high)"),
    "openvino": (openvino.FRONTEND, "v = org.openvinotoolkit.FakeQuantize<levels = 256>(x, bottom, top, bottom, top)"),
}
CONSTANTS = (
    "float s = {0.25}, float zero = {0}, float bits = {8}, float low = {-128}, float high = {127}, float t = {0.5}, "
    "float bottom = {-32}, float top = {31.75}, float a = {-8}, float b = {7}, float[3,2] w = {1, -1, 1, 1, -1, -1}"
)
DOMAINS = '"" : 17, "qonnx.custom_op.general" : 1, "mqbench" : 1, "org.openvinotoolkit" : 1'


def normalized(frontend: Frontend, nodes: str) -> QuantGraph:
    text = f"<ir_version: 8, opset_import: [{DOMAINS}]>\ng (float[2,3] x) => (float[] y) <{CONSTANTS}> {{ {nodes} }}"
    graph = loaded(text)
    frontend.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    return graph


@pytest.mark.parametrize("name", VENDORS)
def test_arithmetic_behind_a_vendors_quantizer(name: str) -> None:
    frontend, own = VENDORS[name]
    graph = normalized(frontend, f"{own} d = Div(v, t) r = Round(d) c = Clip(r, a, b) y = Mul(c, t)")
    assert [n.op for n in graph.nodes] == ["FakeQuant", "FakeQuant"]
    x = np.asarray([[-40, -3.3, -0.2], [0.6, 1.4, 2.9]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], [[-4, -3, 0], [0.5, 1.5, 3]])


def test_signs_behind_a_vendors_quantizer() -> None:
    frontend, own = VENDORS["qonnx"]
    weight = "k = qonnx.custom_op.general.Quant(w, s, zero, bits)"
    graph = normalized(frontend, f"{own} {weight} i = Sign(v) h = Add(i, s) g = Sign(h) y = MatMul(g, k)")
    product = next(n for n in graph.nodes if n.op == "MatMul")
    maker = graph.producer(product.inputs[0])
    assert maker is not None
    assert maker.op == "FakeQuant"
    assert str(maker.attrs["params"]) == "int8[-1,1] scale 1 zero 0"
