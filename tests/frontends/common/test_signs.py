"""What Sign makes is on a grid: products with quantized weights read integers, and no value changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.frontends import pytorch, tensorflow
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded

QUANTIZED = "float[2,2,1,1] w = {0.5, -0.5, -0.5, 0.5}"
FLOAT = "float[2,2,1,1] w = {0.5, -0.31, -0.47, 0.123}"
BINARIZED = "a = Sign(x) b = Add(a, tenth) c = Sign(b)"
X = np.asarray([-2.0, 0.0, 0.3, 1.0, -0.1, 5.0, 0.0, -9.0], np.float32).reshape(1, 2, 2, 2)


def text_of(nodes: str, weight: str) -> str:
    return (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"g (float[1,2,2,2] x) => (float[] y) <float tenth = {{0.1}}, {weight}> {{ {nodes} }}"
    )


def test_a_one_that_gives_the_signs_another_dimension_stays() -> None:
    nodes = "s = Sign(x) b = Abs(s) o = Sub(one, b) c = Add(s, o) d = Squeeze(c, axis) y = Conv(d, w)"
    text = text_of(nodes, f"{QUANTIZED}, float[1,1,1,1,1] one = {{1}}, int64[1] axis = {{0}}")
    graph = loaded(text)
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


@pytest.mark.parametrize("frontend", [pytorch.FRONTEND, tensorflow.FRONTEND], ids=lambda f: f.name)
@pytest.mark.parametrize(
    "moved",
    ["y = Conv(c, w)", "t = Transpose<perm = [0, 1, 3, 2]>(c) m = MaxPool<kernel_shape = [1, 1]>(t) y = Conv(m, w)"],
)
def test_signs_meet_quantized_weights(frontend: Frontend, moved: str) -> None:
    text = text_of(f"{BINARIZED} {moved}", QUANTIZED)
    graph = loaded(text)
    frontend.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    (line,) = [line for line in graph.dump().splitlines() if "FakeQuant" in line]
    assert "FakeQuant[params=int8[-1,1] scale 1 zero 0](c)" in line
    np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


@pytest.mark.parametrize("frontend", [pytorch.FRONTEND, tensorflow.FRONTEND], ids=lambda f: f.name)
@pytest.mark.parametrize(
    "nodes",
    [  # QKeras: binary, and ternary
        "a = Sign(x) b = Abs(a) d = Sub(one, b) c = Add(a, d) y = Conv(c, w)",
        "a = Sign(x) b = Abs(a) d = Sub(one, b) c = Add(d, a) y = Conv(c, w)",
        "a = Abs(x) b = GreaterOrEqual(a, third) d = Cast<to = 1>(b) e = Sign(x) c = Mul(d, e) y = Conv(c, w)",
        "a = Abs(x) b = Less(third, a) d = Cast<to = 1>(b) e = Sign(x) c = Mul(e, d) y = Conv(c, w)",
    ],
)
def test_signs_of_qkeras(frontend: Frontend, nodes: str) -> None:
    text = text_of(nodes, f"{QUANTIZED}, float one = {{1}}, float third = {{0.33}}")
    graph = loaded(text)
    frontend.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "FakeQuant[params=int8[-1,1] scale 1 zero 0](c)" in graph.dump()
    np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


@pytest.mark.parametrize("frontend", [pytorch.FRONTEND, tensorflow.FRONTEND], ids=lambda f: f.name)
@pytest.mark.parametrize(
    ("nodes", "want"),
    [  # PyTorch: one (or minus one) for zero, steps, and roundings of a clamp
        ("a = Sign(x) b = Equal(a, zero) c = Where(b, one, a) y = Conv(c, w)", "int8[-1,1] scale 1 zero 0](c)"),
        ("a = Sign(x) b = Equal(zero, a) c = Where(b, less, a) y = Conv(c, w)", "int8[-1,1] scale 1 zero 0](c)"),
        ("a = Greater(x, zero) c = Where(a, one, zero) y = Conv(c, w)", "int8[-1,1] scale 1 zero 0](c)"),
        ("a = GreaterOrEqual(x, third) c = Where(a, one, less) y = Conv(c, w)", "int8[-1,1] scale 1 zero 0](c)"),
        ("a = Clip(x, zero, one) c = Round(a) y = Conv(c, w)", "uint8[0,1] scale 1 zero 0](x)"),
        ("a = Clip(x, less, three) c = Round(a) y = Conv(c, w)", "int8[-1,3] scale 1 zero 0](x)"),
        ("a = Round(x) c = Clip(a, less, three) y = Conv(c, w)", "int8[-1,3] scale 1 zero 0](x)"),
        (  # a bound in one dimension
            "a = Min(x, ends) r = Round(a) c = Clip(r, less, three) y = Conv(c, w)",
            "int8[-1,1] scale 1 zero 0](x)",
        ),
        (  # numbers in one dimension
            "p = Add(x, ends) a = Round(p) e = Clip(a, zero, three) c = Sub(e, ends) y = Conv(c, w)",
            "int8[-1,2] scale 1 zero 0](x)",
        ),
        (  # with a zero point, and with its scale behind the product
            "s = Mul(x, three) a = Round(s) p = Add(a, one) e = Clip(p, zero, three) c = Sub(e, one) v = Conv(c, w)"
            " y = Mul(v, third)",
            "int8[-1,2] scale 1 zero 0](s)",
        ),
        (  # of numbers that neither byte holds as they are: onnxsim moves such a scale into the weights behind
            "s = Div(x, third) a = Round(s) p = Add(a, seven) e = Clip(p, zero, byte) c = Sub(e, seven)"
            " t = Transpose<perm = [0, 1, 3, 2]>(c) y = Conv(t, w)",
            "uint8 scale 1 zero 77](s)",
        ),
    ],
)
def test_signs_of_pytorch(frontend: Frontend, nodes: str, want: str) -> None:
    numbers = ", float one = {1}, float zero = {0}, float less = {-1}, float third = {0.33}, float three = {3}"
    numbers += ", float[1] ends = {1}, float seven = {77}, float byte = {255}"
    text = text_of(nodes, QUANTIZED + numbers)
    graph = loaded(text)
    assert pytorch.recognize(graph, "pytorch")
    frontend.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert f"FakeQuant[params={want}" in graph.dump()
    np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Clip(x, zero, half) c = Round(a) y = Conv(c, w)",  # between two whole numbers
        "c = Round(x) y = Conv(c, w)",
        "a = Round(x) b = Relu(a) c = Add(b, two) y = Conv(c, w)",
        "a = Sign(x) b = Equal(a, zero) c = Where(b, two, a) y = Conv(c, w)",
        "a = Greater(x, zero) c = Where(a, two, zero) y = Conv(c, w)",
        "a = Relu(x) y = Conv(a, w)",
    ],
)
def test_what_is_no_sign_stays(nodes: str) -> None:
    text = text_of(nodes, f"{QUANTIZED}, float zero = {{0}}, float half = {{0.5}}, float two = {{2}}")
    graph = loaded(text)
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    assert "(c)" not in "".join(line for line in graph.dump().splitlines() if "FakeQuant" in line)
    np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


def test_other_sums_and_products_of_signs_stay() -> None:
    for nodes in (
        "a = Sign(x) b = Abs(a) d = Sub(two, b) c = Add(a, d) y = Conv(c, w)",
        "a = Sign(x) b = Abs(x) d = Sub(one, b) c = Add(a, d) y = Conv(c, w)",
        "i = Cast<to = 6>(x) d = Cast<to = 1>(i) e = Sign(x) c = Mul(d, e) y = Conv(c, w)",
    ):
        text = text_of(nodes, f"{QUANTIZED}, float one = {{1}}, float two = {{2}}")
        graph = loaded(text)
        pytorch.FRONTEND.normalize(graph, FrontendOptions())
        assert "(c)" not in "".join(line for line in graph.dump().splitlines() if "FakeQuant" in line)
        np.testing.assert_array_equal(run_canonical(graph, X)[0], run(onnx.parser.parse_model(text), X)[0])


@pytest.mark.parametrize(
    ("nodes", "weight"),
    [(f"{BINARIZED} y = Conv(c, w)", FLOAT), (f"{BINARIZED} d = Conv(x, w) y = Mul(c, d)", QUANTIZED)],
)
def test_signs_that_meet_no_quantized_weight_stay(nodes: str, weight: str) -> None:
    graph = loaded(text_of(nodes, weight))
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant" not in graph.dump()


def test_two_roundings_that_meet_in_a_product() -> None:
    """ONNX Runtime's optimizer moves the scales of both operands into the factor of a FusedMatMul."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[2,3] x) => (float[2,2] y)
        <float s = {0.02}, float t = {0.03}, float z = {99}, float low = {0}, float high = {255}>
        { a = Div(x, s) b = Round(a) c = Add(b, z) d = Clip(c, low, high) e = Sub(d, z)
          h = Div(x, t) i = Round(h) j = Add(i, z) k = Clip(j, low, high) l = Sub(k, z)
          y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.0006>(e, l) }"""
    graph = loaded(text)
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert graph.dump().count("FakeQuant[params=uint8 scale 1 zero 99]") == 2
    numbers = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        run_canonical(graph, numbers)[0], run(onnx.parser.parse_model(text), numbers)[0], rtol=1e-5
    )


def test_a_rounding_scaled_per_channel_is_no_count_of_ones() -> None:
    """Weights of qwix: a scale for each channel stands before the rounding, and no number."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[] y)
        <float[3,2] w = {-1.3, 0.26, 9.0, 0.1, -0.4, 0.5}, float[1,2] c = {0.5, 0.25}>
        { a = Div(w, c) b = Round(a) d = Cast<to=3>(b) e = Cast<to=1>(d) m = MatMul(x, e) y = Mul(m, c) }"""
    graph = loaded(text)
    pytorch.FRONTEND.recognize(graph, "")
    pytorch.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
