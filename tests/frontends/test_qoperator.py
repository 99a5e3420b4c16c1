"""QOperator: integer operators read back, against ONNX Runtime and against the network they were written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.compiler.diagnostics import Severity
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.processor import flattened
from qatc.frontends.qoperator import FRONTEND, MICROSOFT
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Layer, Network
from tests.frontends.qonnx.test_qonnx import values
from tests.frontends.running import run
from tests.runtimes import since

_TYPE = {"uint8": np.uint8, "int8": np.int8}
unsigned = st.builds(QuantParams.per_tensor, nets.scales, st.integers(0, 255))  # ORT wants one type throughout


def grid(b: Builder, name: str, params: QuantParams) -> list[str]:
    """Scale and zero point as constants."""
    count = () if not params.is_per_channel else (len(params.scale),)
    return [
        b.constant(f"{name}.scale", np.float32(params.scale).reshape(count)),
        b.constant(f"{name}.zero", np.asarray(params.zero_point, _TYPE[params.dtype]).reshape(count)),
    ]


def write(network: Network) -> nets.onnx.ModelProto:
    """The network in integer operators; every tensor between them is uint8 or int8."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = grid(b, "input", network.input)
    x = b.node("QuantizeLinear", ["input", *at], "input_int")
    by_channels = {network.channels: (x, at, network.input)}
    params, channels = network.input, network.channels
    for index, layer in enumerate(network.layers):
        name = f"t{index}"
        if layer.op == "MaxPool":
            x = b.node("MaxPool", [x], f"{name}_int", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif layer.output is not None:
            out = grid(b, name, layer.output)
            if layer.op == "Add":
                other, other_at, _ = by_channels[channels]
                x = b.node("QLinearAdd", [x, *at, other, *other_at, *out], f"{name}_int", MICROSOFT)
            else:
                x = _product(b, layer, name, x, at, params, out)
                channels = len(layer.bias) if layer.bias is not None else channels
            at, params = out, layer.output
        by_channels.setdefault(channels, (x, at, params))
    real = b.node("DequantizeLinear", [x, *at], "real")
    b.node("Identity", [real], "output")
    return nets.model_of(b, [1, network.channels, 6, 6])


def _product(b: Builder, layer: Layer, name: str, x: str, at: list[str], params: QuantParams, out: list[str]) -> str:
    assert layer.weight is not None
    assert layer.weight_params is not None
    assert layer.bias_params is not None
    w = b.constant(f"{name}.weight", layer.weight_params.quantize(layer.weight))
    bias = b.constant(f"{name}.bias", layer.bias_params.quantize(layer.bias))
    operands = [w, *grid(b, f"{name}.weight", layer.weight_params)]
    if layer.op == "Gemm":
        flat = b.node("Flatten", [x], f"{name}_flat")
        return b.node("QGemm", [flat, *at, *operands, bias, *out], f"{name}_int", MICROSOFT, transB=1)
    return b.node("QLinearConv", [x, *at, *operands, *out, bias], f"{name}_int", kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def quantized_biases(network: Network) -> Network:
    """Every bias on the grid of its accumulator, no ConvTranspose, and pools on their input's grid."""
    layers: list[Layer] = []
    current = network.input
    for layer in network.layers:
        if layer.op in ("ConvTranspose", "Relu"):
            continue
        if layer.op == "MaxPool":
            layers.append(Layer("MaxPool"))
            continue
        if layer.weight_params is not None:
            steps = np.float32(current.scale[0]) * np.float32(layer.weight_params.scale)
            one = len(steps) == 1
            grid = (
                QuantParams.per_tensor(float(steps[0]), 0, "int32")
                if one
                else QuantParams.per_channel(steps, 0, 0, "int32")
            )
            layer = Layer(layer.op, layer.weight, layer.bias, layer.weight_params, grid, layer.output)
        layers.append(layer)
        current = layer.output or current
    return Network(network.channels, network.input, tuple(layers))


def fitting(network: Network) -> bool:
    """Whether an integer operator is left, and channel counts still agree after layers were dropped."""
    channels = network.channels
    if all(layer.op == "MaxPool" for layer in network.layers):
        return False
    for layer in network.layers:
        if layer.weight is not None:
            inputs = layer.weight.shape[1] if layer.op == "Conv" else layer.weight.shape[1] // 36
            if inputs != channels:
                return False
            channels = layer.weight.shape[0]
    return True


@given(nets.networks(everywhere=True, weight_low=-128).map(quantized_biases).filter(fitting))
@settings(max_examples=25)
def test_round_trip(network: Network) -> None:
    got, want = nets.read(write(network), FRONTEND), nets.expected(network)
    assert nets.fingerprint(got) == nets.fingerprint(want)


@given(nets.networks(unsigned, everywhere=True, weight_low=-128).map(quantized_biases).filter(fitting))
@settings(max_examples=10)
def test_as_onnx_runtime_computes(network: Network) -> None:
    """Integers within one step of ONNX Runtime's (Add and accumulators round in float32 there)."""
    model = write(network)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # else x86 without VNNI saturates products
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(0, 1, (1, network.channels, 6, 6)).astype(np.float32)
    graph = nets.graph_of(model)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    want = session.run(None, {"input": x})[0]
    step = max([network.input.scale[0], *(p.output.scale[0] for p in network.layers if p.output)])
    layers = 1 + len(network.layers)
    assert np.abs(values(graph, x) - want).max() <= 4 * layers * step


def test_what_is_quantized_has_the_name_of_its_integers_in_the_file() -> None:
    """Else nothing between input and output could be compared with what the file computes there."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = grid(b, "g", QuantParams.per_tensor(0.5, 3, "uint8"))
    b.node("QuantizeLinear", ["input", *at], "q")
    weight = [b.constant("w", np.ones((2, 2, 1, 1), np.int8)), *grid(b, "h", QuantParams.per_tensor(0.25, 0, "int8"))]
    b.node("QLinearConv", ["q", *at, *weight, *at], "c")
    b.node("QLinearAdd", ["c", *at, "q", *at, *at], "s", MICROSOFT)
    b.node("DequantizeLinear", ["s", *at], "output")
    graph = nets.read(nets.model_of(b, [1, 2, 3, 3]), FRONTEND)
    named = {graph.origin.get(t.name) for t in graph.tensors() if graph.quant(t) is not None}
    assert named == {"q", "w", "c", "output"}


def one(op: str, domain: str, operands: list[object], **attrs: object) -> QuantGraph:
    """Q of the graph's input, one integer operator on it, DQ of its output."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    out = [b.constant("os", np.float32(0.25)), b.constant("oz", np.uint8(100))]
    x = b.node("QuantizeLinear", ["input", *at], "x")
    named = {"x": x, "at": at, "out": out}
    names: list[str] = []
    for index, value in enumerate(operands):
        if isinstance(value, str):
            found = named[value]
            names += found if isinstance(found, list) else [found]
        else:
            names.append(b.constant(f"p{index}", np.asarray(value)))
    b.node(op, names, "y", domain, **attrs)
    b.node("DequantizeLinear", ["y", *out], "output")
    return nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))


FORMS = [
    ("QLinearSigmoid", ["x", "at", "out"], {}),
    ("QLinearLeakyRelu", ["x", "at", "out"], {"alpha": 0.25}),
    ("QLinearAveragePool", ["x", "at", "out"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("QLinearGlobalAveragePool", ["x", "at", "out"], {"channels_last": 0}),
    ("QLinearSoftmax", ["x", "at", "out"], {"axis": -1, "opset": 13}),
    ("QLinearSoftmax", ["x", "at", "out"], {"axis": 1, "opset": 11}),
    ("QLinearAdd", ["x", "at", "x", "at", "out"], {}),
    ("QLinearMul", ["x", "at", "x", "at", "out"], {}),
    ("QLinearConcat", ["out", "x", "at", "x", "at"], {"axis": 1}),
    ("QLinearReduceMean", ["x", "at", "out"], {"axes": [2, 3], "keepdims": 1}),
    ("QLinearWhere", [np.ones((1, 2, 4, 4), bool), "x", "at", "x", "at", "out"], {}),
]


@pytest.mark.parametrize(("op", "operands", "attrs"), FORMS)
def test_each_operator(op: str, operands: list[object], attrs: dict[str, object]) -> None:
    graph = one(op, MICROSOFT, operands, **attrs)
    assert FRONTEND.recognize(graph, "") == f"1 {op} ({MICROSOFT})"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert MICROSOFT not in graph.domains
    fakes = [n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT]
    assert QuantParams.per_tensor(0.25, 100, "uint8") in fakes
    assert QuantParams.per_tensor(0.5, 128, "uint8") in fakes


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_a_zero_point_that_is_left_out_has_the_type_of_what_is_read(op: str) -> None:
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = [b.constant("s", np.float32(0.125)), b.constant("z", np.int8(3))]
    x = b.node("QuantizeLinear", ["input", *at], "x")
    out = b.constant("os", np.float32(0.25))
    b.node(op, [x, *at, x, *at, out], "y", MICROSOFT)
    b.node("DequantizeLinear", ["y", out, b.constant("none", np.int8(0))], "output")
    model = nets.model_of(b, [1, 2, 4, 4])
    graph = nets.graph_of(model)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    data = np.random.default_rng(0).normal(0, 6, (1, 2, 4, 4)).astype(np.float32)
    (wanted,) = run(model, data)
    assert np.abs(values(graph, data) - wanted).max() <= 0.25


def test_the_axes_of_a_mean_are_an_input_from_opset_18_on() -> None:
    b = Builder(opsets={"": 18, MICROSOFT: 1})
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    q = b.node("QuantizeLinear", ["input", *at], "q")
    mean = b.node("QLinearReduceMean", [q, *at, *at], "mean", MICROSOFT, axes=[2, 3], keepdims=1)
    b.node("DequantizeLinear", [mean, *at], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "mean_real = ReduceMean[keepdims=1](q_dequantized, axes:int64[2]{2,3})" in graph.dump()


def test_integers_quantized_again_on_another_grid() -> None:
    b = Builder()
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    other = [b.constant("s2", np.float32(2)), b.constant("z2", np.int8(3))]
    again = b.node("QuantizeLinear", [b.node("QuantizeLinear", ["input", *at], "q"), *other], "again")
    b.node("DequantizeLinear", [again, *other], "output")
    b.opsets[MICROSOFT] = 1
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    found = [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT]
    assert found == ["uint8 scale 0.5 zero 128", "int8 scale 2 zero 3"]


NO_SIGNED_CONV = since(1, 24, "has no ConvInteger of int8")


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("op", [pytest.param("ConvInteger", marks=NO_SIGNED_CONV), "MatMulInteger"])
def test_accumulators(op: str, moved: bool) -> None:
    """X -> Q -> ConvInteger -> Cast -> Mul(s_x * s_w): the integers' sum, in real numbers."""
    b = Builder()
    random = np.random.default_rng(1)
    shape = (3, 2, 3, 3) if op == "ConvInteger" else (4, 4)
    w = random.integers(-100, 100, shape).astype(np.int8)
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    q = b.node("QuantizeLinear", ["input", *at], "q")
    attrs = {"kernel_shape": [3, 3]} if op == "ConvInteger" else {}
    acc = b.node(op, [q, b.constant("w", w), "z", b.constant("wz", np.int8(0))], "acc", **attrs)
    acc = b.node("Add", [acc, b.node("Transpose", [acc], "turned", perm=[0, 1, 3, 2])], "both") if moved else acc
    biased = b.node("Add", [acc, b.constant("b", np.int32(1000))], "biased")
    b.node("Mul", [b.node("Cast", [biased], "f", to=1), b.constant("m", np.float32(0.5 * 0.01))], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    model = nets.model_of(b, [1, 2, 4, 4]).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = random.normal(0, 20, (1, 2, 4, 4)).astype(np.float32)
    want = session.run(None, {"input": x})[0]
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert np.allclose(values(graph, x), want, rtol=1e-5, atol=1e-3)
    assert sum(n.op == FAKE_QUANT for n in graph.nodes) == 1


def test_integers_quantized_again_and_read_as_numbers() -> None:
    """MQBench's ONNX_QNN deployment: Q of integers on their own grid, then a float Gemm on integers."""
    b = Builder()
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    q = b.node("QuantizeLinear", ["input", *at], "q")
    again = b.node("QuantizeLinear", [q, *at], "again")
    flat = b.node("Flatten", [again], "flat")
    b.node("Gemm", [flat, b.constant("w", np.ones((32, 2), np.float32))], "output")
    b.opsets[MICROSOFT] = 1
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert [(d.code, d.severity) for d in graph.diagnostics] == [("QAT104", Severity.WARNING)]
    assert [n.op for n in graph.nodes] == [FAKE_QUANT, "Flatten", "Gemm"]


@pytest.mark.parametrize(
    ("op", "domain", "attrs", "code"),
    [
        ("DynamicQuantizeMatMul", MICROSOFT, {}, "QAT205"),
        ("QAttention", MICROSOFT, {"num_heads": 2}, "QAT302"),
        ("QLinearWhere", MICROSOFT, {}, "QAT104"),
    ],
)
def test_refused(op: str, domain: str, attrs: dict[str, object], code: str) -> None:
    graph = one(op, domain, ["x", "at", "out"], **attrs)
    FRONTEND.normalize(graph, FrontendOptions())
    assert code in [d.code for d in graph.diagnostics.errors]


def test_a_resize_interpolates_between_real_numbers() -> None:
    """What lies between two integers is rounded to the nearest, on their grid."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    sizes = ["", b.constant("scales", np.float32([1, 1, 2, 2]))]
    x = b.node("QuantizeLinear", ["input", *at], "x")
    y = b.node("QLinearSigmoid", [x, *at, *at], "y", MICROSOFT)
    r = b.node("Resize", [y, *sizes], "r", mode="linear")
    b.node("DequantizeLinear", [r, *at], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT307", "note")]
    graph.verify(stripped=False)
    got = values(graph, np.linspace(-4, 4, 32, dtype=np.float32).reshape(1, 2, 4, 4))
    assert set(np.unique(got)) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_which_integer_is_the_largest_needs_no_real_numbers(op: str) -> None:
    """ONNX Runtime's quantizer leaves the operator on integers: nothing is wrong with that, and nothing is said."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    x = b.node("QuantizeLinear", ["input", *at], "x")
    y = b.node("QLinearSigmoid", [x, *at, *at], "y", MICROSOFT)
    b.node("Cast", [b.node(op, [y], "place", axis=1, keepdims=0)], "output", to=onnx.TensorProto.FLOAT)
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert not list(graph.diagnostics)
    graph.verify(stripped=False)


@pytest.mark.parametrize(("op", "code"), [("MatMulNBits", "QAT103"), ("DynamicQuantizeMatMul", "QAT205")])
def test_what_is_quantized_otherwise_is_refused_by_name(op: str, code: str) -> None:
    """Weights in blocks and scales of run time stand alone in their files: they are seen, and named."""
    b = Builder(opsets={"": 17, MICROSOFT: 1})
    weight, scale = b.constant("w", np.zeros((8, 1, 16), np.uint8)), b.constant("s", np.ones(8, np.float32))
    b.node(op, ["input", weight, scale], "output", MICROSOFT)
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    assert FRONTEND.recognize(graph, "") is not None
    FRONTEND.normalize(graph, FrontendOptions())
    found = list(graph.diagnostics.errors)
    assert [d.code for d in found] == [code]
    assert op in found[0].message


def test_sums_of_channels_with_zero_points_of_their_own() -> None:
    """onnx-quantize: a scale, a zero point and a bias a channel, in functions, so that no shape is written."""
    dice = np.random.default_rng(0)
    w, zeros, bias = dice.integers(-99, 99, (32, 3)), np.array([0, 3, -7]), dice.integers(-500, 500, 3)
    scales = np.float32([0.25, 0.5, 1.0])
    b = Builder()
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    q = b.node("QuantizeLinear", [b.node("Flatten", ["input"], "flat"), *at], "q")
    operands = [q, b.constant("w", w.astype(np.int8)), at[1], b.constant("wz", zeros.astype(np.int8))]
    sums = b.node("Add", [b.node("MatMulInteger", operands, "sums"), b.constant("bias", bias.astype(np.int32))], "more")
    b.node("DequantizeLinear", [sums, b.constant("scales", scales)], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    x = dice.integers(-128, 128, (1, 2, 4, 4)).astype(np.float32) / 2
    want = ((x.reshape(1, -1) * 2) @ (w - zeros) + bias) * scales
    np.testing.assert_allclose(values(graph, x), want, rtol=1e-6)


@pytest.mark.parametrize(("scale", "code"), [("data", "QAT205"), ("constant", "QAT104")])
def test_integers_that_arithmetic_rounds_are_refused(scale: str, code: str) -> None:
    """Keras 3 finds the scale of the data at hand; the product of integers is named, and no node that is not there."""
    b = Builder()
    step = b.constant("step", np.array([20, 21], np.float32).reshape(1, 2, 1, 1))  # no product of integers has these
    if scale == "data":
        largest = b.node("ReduceMax", [b.node("Abs", ["input"], "magnitude")], "largest")
        step = b.node("Div", [b.constant("top", np.float32(127)), largest], "by")
    rounded = b.node("Round", [b.node("Mul", ["input", step], "scaled")], "rounded")
    ends = [b.constant(name, np.float32(v)) for name, v in (("low", -127), ("high", 127))]
    x = b.node("Cast", [b.node("Clip", [rounded, *ends], "clipped")], "integers", to=onnx.TensorProto.INT8)
    flat = b.node("Flatten", [x], "flat")
    b.node("MatMulInteger", [flat, b.constant("w", np.ones((32, 2), np.int8))], "sums")
    b.node("Cast", ["sums"], "output", to=onnx.TensorProto.FLOAT)
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(d.code, d.tensor) for d in graph.diagnostics.errors] == [(code, "clipped")]


@pytest.mark.parametrize("ends", [(-128, 127), (-100, 90)])
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_integers_that_arithmetic_rounds(moved: bool, zero: int, ends: tuple[int, int]) -> None:
    """So does torchao, which moves integers to uint8 for its product; a second product reads them, too."""
    b, dice = Builder(), np.random.default_rng(zero)
    weights = [dice.integers(-127, 128, (32, 3)).astype(np.int8) for _ in range(2)]
    rounded = b.node("Round", [b.node("Mul", ["input", b.constant("factor", np.float32(20))], "scaled")], "rounded")
    whole = b.node("Add", [rounded, b.constant("zero", np.float32(zero))], "whole") if zero else rounded
    limits = [b.constant(f"end{e}", np.float32(e)) for e in ends]
    q = b.node("Cast", [b.node("Clip", [whole, *limits], "clipped")], "integers", to=onnx.TensorProto.INT8)
    sums: list[str] = []
    for index, w in enumerate(weights):
        x, name = b.node("Flatten", [q], f"flat{index}"), f"product{index}"
        if moved:
            x = b.node("Cast", [x], f"wide{index}", to=onnx.TensorProto.INT32)
            x = b.node("Add", [x, b.constant(f"by{index}", np.int32(128))], f"added{index}")
            x = b.node("Cast", [x], f"moved{index}", to=onnx.TensorProto.UINT8)
        origin = ((zero + 128 * moved) * w.astype(np.int64).sum(axis=0)).astype(np.int32)
        product = b.node("MatMulInteger", [x, b.constant(f"w{index}", w)], name)
        product = b.node("Sub", [product, b.constant(f"origin{index}", origin)], f"{name}_centered")
        sums.append(b.node("Cast", [product], f"{name}_real", to=onnx.TensorProto.FLOAT))
    total = b.node("Add", sums, "total")
    b.node("Mul", [total, b.constant("scale", np.float32(0.05 * 0.01))], "output")
    model = nets.model_of(b, [1, 2, 4, 4])
    x = dice.normal(0, 3, (1, 2, 4, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {"input": x})[0]
    graph = nets.graph_of(model)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert np.allclose(values(graph, x), want, rtol=1e-5, atol=1e-3)
    assert all(n.op not in ("Round", "MatMulInteger") for n in graph.nodes)
    assert sum(n.op == FAKE_QUANT for n in graph.nodes) == 1 + 2 * moved


@pytest.mark.parametrize(
    ("ends", "factor", "moved"),
    [(None, 20.0, 0.0), ((-128, 255), 20.0, 0.0), ((-128, 127), 1e-38, 0.0), ((-128, 127), 20.0, 0.25)],
)
def test_casts_that_state_no_grid(ends: tuple[int, int] | None, factor: float, moved: float) -> None:
    """Runtimes wrap around there, or saturate; no float32 holds the numbers of steps that large; a part of a step is
    added before the rounding, and the rest behind it.
    """
    b = Builder()
    x = b.node("Mul", ["input", b.constant("factor", np.float32(factor))], "scaled")
    x = b.node("Add", [x, b.constant("before", np.float32(moved))], "shifted") if moved else x
    x = b.node("Round", [x], "rounded")
    x = b.node("Add", [x, b.constant("behind", np.float32(1 - moved))], "shifted_on") if moved else x
    if ends is not None:
        x = b.node("Clip", [x, *(b.constant(f"end{e}", np.float32(e)) for e in ends)], "clipped")
    x = b.node("Flatten", [b.node("Cast", [x], "integers", to=onnx.TensorProto.INT8)], "flat")
    b.node("MatMulInteger", [x, b.constant("w", np.ones((32, 2), np.int8))], "sums")
    b.node("Cast", ["sums"], "output", to=onnx.TensorProto.FLOAT)
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


def test_a_package_that_chooses_by_processor_is_read_back(tmp_path: Path) -> None:
    """Both forms are in our own model.onnx; the fast one is read, under the names that it has there."""
    corpus = Path(__file__).resolve().parent.parent / "corpus"
    first = compile_model(corpus / "tfmot-op13__mlp" / "model.onnx", output=tmp_path / "first", qat=True)
    model = onnx.load(tmp_path / "first" / "model.onnx")
    assert "If" in {n.op_type for n in model.graph.node}
    again = compile_model(tmp_path / "first" / "model.onnx", output=tmp_path / "again", qat=True)
    assert again.dialect == "qoperator"
    assert again.coverage == first.coverage
    assert again.package_ops == first.package_ops
    flat = flattened(model, exact=True).graph
    there = {name for node in flat.node for name in node.output} | {t.name for t in flat.initializer}
    inside = {t.source for t in again.tensors if t.role == "activation"} - {port.name for port in flat.input}
    assert inside
    assert inside <= there


@pytest.mark.parametrize(("at_run_time", "code"), [(False, "QAT302"), (True, "QAT205")])
def test_what_is_added_to_an_accumulator_has_to_be_known(at_run_time: bool, code: str) -> None:
    b = Builder()
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(128))]
    q = b.node("QuantizeLinear", ["input", *at], "q")
    acc = b.node("MatMulInteger", [q, b.constant("w", np.ones((4, 4), np.int8)), "z"], "acc")
    scale = b.node("ReduceMax", ["input"], "largest") if at_run_time else "s"
    total = b.node("Add", [acc, b.node("Cast", [b.node("Div", ["input", scale], "steps")], "whole", to=6)], "total")
    b.node("Cast", [total], "output", to=1)
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == [code]
