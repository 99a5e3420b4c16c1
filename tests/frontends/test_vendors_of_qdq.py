"""ModelOpt and Quark: round trips of Q/DQ in vendor domains; formats that are not integers are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import FAKE_QUANT
from qatc.compiler.quant import QuantParams
from qatc.frontends import horizon, modelopt, quark
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Network, Spell

ml_dtypes = pytest.importorskip("ml_dtypes")  # of onnx's from 1.18 on


def speller(domain: str, q: str = "QuantizeLinear", dq: str = "DequantizeLinear") -> Spell:
    """Q/DQ of any domain; narrow ranges as a Clip between them."""

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        kind = {"int8": np.int8, "uint8": np.uint8}[params.dtype]
        shape = (len(params.scale),) if params.is_per_channel else ()
        grid = [
            b.constant(f"{name}.scale", np.float32(params.scale).reshape(shape)),
            b.constant(f"{name}.zero", np.asarray(params.zero_point, kind).reshape(shape)),
        ]
        attrs = {} if params.axis is None else {"axis": params.axis}
        if domain:
            b.opsets[domain] = 1
        integers = b.node(q, [x, *grid], f"{name}_int", domain, **attrs)
        if not params.is_full_range:
            ends = [b.constant(f"{name}.{end}", kind(v)) for end, v in (("low", params.qmin), ("high", params.qmax))]
            integers = b.node("Clip", [integers, *ends], f"{name}_clip")
        return b.node(dq, [integers, *grid], name, domain, **attrs)

    return spell


@st.composite
def full_symmetric_grids(draw: st.DrawFn) -> QuantParams:
    """Per tensor, int8 over its whole range, zero point 0."""
    return QuantParams.per_tensor(draw(nets.scales), 0, "int8")


@pytest.mark.parametrize(
    "spell",
    [
        speller("com.microsoft"),
        speller("com.amd.quark", "ExtendedQuantizeLinear", "ExtendedDequantizeLinear"),
        speller("com.vai.quantize", "VitisQuantizeLinear", "VitisDequantizeLinear"),
        speller("ai.onnx.contrib", "VaiQuantize", "VaiDeQuantize"),
    ],
    ids=["com.microsoft", "com.amd.quark", "com.vai.quantize", "ai.onnx.contrib"],
)
@given(network=nets.networks(weight_low=-128))
@settings(max_examples=10)
def test_quark_round_trip(spell: Spell, network: Network) -> None:
    model = nets.write(network, spell)
    model.opset_import.append(nets.helper.make_opsetid("com.amd.quark", 1))
    assert nets.fingerprint(nets.read(model, quark.FRONTEND)) == nets.fingerprint(nets.expected(network))


def horizon_spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    """HzQuantize and HzDequantize; the zero point is int8 whatever the bits, as older exports have it."""
    bits = 16 if params.dtype == "int16" else 8
    b.opsets["horizon"] = 1
    axis = 1 if params.axis is None else params.axis
    shape = (len(params.scale),)
    grid = [b.constant(f"{name}.s", np.float32(params.scale)), b.constant(f"{name}.z", np.zeros(shape, np.int8))]
    integers = b.node("HzQuantize", [x, *grid], f"{name}_int", "horizon", bits=bits, axis=axis)
    return b.node("HzDequantize", [integers, *grid], name, "horizon", axis=axis)


@given(nets.networks(full_symmetric_grids(), weight_low=-128))
@settings(max_examples=15)
def test_horizon_round_trip(network: Network) -> None:
    model = nets.write(network, horizon_spell)
    assert nets.fingerprint(nets.read(model, horizon.FRONTEND)) == nets.fingerprint(nets.expected(network))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("fixed", [True, False])
def test_vitis_bits(bits: int, fixed: bool) -> None:
    """FixNeuron is both quantizers, and fewer bits than 8 are a narrower range."""
    domain = "com.vai.quantize" if fixed else "ai.onnx.contrib"
    b = Builder(opsets={"": 17, domain: 1})
    grid = [b.constant("s", np.float32(0.25)), b.constant("z", np.int8(0))]
    if fixed:
        b.node("FixNeuron", ["input", *grid], "output", domain, bit_width=bits)
    else:
        b.node("VaiQuantize", ["input", *grid], "q", domain, bit_width=bits)
        b.node("VaiDeQuantize", ["q", *grid], "output", domain, bit_width=bits)
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    assert quark.FRONTEND.recognize(graph, "") is not None
    quark.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    (node,) = (n for n in graph.nodes if n.op == FAKE_QUANT)
    params = node.attrs["params"]
    half = 1 << (bits - 1)
    assert (params.scale, params.qmin, params.qmax) == ((0.25,), -half, half - 1)


@pytest.mark.parametrize(("dtype", "ends"), [(np.int8, (-8, 7)), (np.uint8, (0, 15))])
def test_bits_beside_a_zero_point_that_nodes_make(dtype: type, ends: tuple[int, int]) -> None:
    """PyTorch's exporter writes operands of operators that it does not know as Constant, with a Cast behind."""
    b = Builder(opsets={"": 17, "ai.onnx.contrib": 1})
    zero = b.node("Constant", [], "z", value=nets.numpy_helper.from_array(np.asarray(0, np.int64)))
    kind = int(nets.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    grid = [b.constant("s", np.float32(0.25)), b.node("Cast", [zero], "narrow", to=kind)]
    b.node("VaiQuantize", ["input", *grid], "q", "ai.onnx.contrib", bit_width=4)
    b.node("VaiDeQuantize", ["q", *grid], "output", "ai.onnx.contrib", bit_width=4)
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    quark.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    (node,) = (n for n in graph.nodes if n.op == FAKE_QUANT)
    assert (node.attrs["params"].qmin, node.attrs["params"].qmax) == ends


def test_operators_of_others_in_the_contrib_domain_are_not_ours() -> None:
    b = Builder(opsets={"": 17, "ai.onnx.contrib": 1})
    b.node("BertTokenizer", ["input"], "output", "ai.onnx.contrib")
    assert quark.FRONTEND.recognize(nets.graph_of(nets.model_of(b, [2])), "") is None


@pytest.mark.parametrize(
    ("op", "attrs", "code"), [("HzQuantize", {"bits": 4, "axis": 1}, "QAT103"), ("RoiResize", {}, "QAT302")]
)
def test_horizon_refuses(op: str, attrs: dict[str, int], code: str) -> None:
    found = refused(horizon.FRONTEND, op, "horizon", [np.float32([1]), np.zeros(1, np.int8)], **attrs)
    assert [c for c, _ in found] == [code]


def test_horizon_writes_zero_points_of_8_bits_where_its_integers_have_16() -> None:
    b = Builder(opsets={"": 17, "horizon": 1})
    grid = [b.constant("s", np.float32([0.25])), b.constant("z", np.zeros(1, np.int8))]
    b.node("HzQuantize", ["input", *grid], "q", "horizon", bits=16, axis=1)
    b.node("HzDequantize", ["q", *grid], "output", "horizon", axis=1)
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    horizon.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT] == ["int16 scale 0.25 zero 0"]


@pytest.mark.parametrize(
    "zero", [np.asarray("a"), np.complex64(1j), np.float32(np.nan), np.int32(300), np.float32(0.5)]
)
def test_horizon_zero_points_that_no_integer_of_its_bits_holds(zero: np.ndarray) -> None:
    found = refused(horizon.FRONTEND, "HzQuantize", "horizon", [np.float32(1), zero], bits=8, axis=1)
    assert [c for c, _ in found] == ["QAT202"]


def test_operators_of_tensorrt_in_a_long_row() -> None:
    b = Builder(opsets={"": 20, "trt": 1})
    x = "input"
    for i in range(3000):
        x = b.node("Quantize", [x], f"t{i}" if i < 2999 else "output", "trt")
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    modelopt.FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics.errors
    assert found.message.startswith("3,000 operators quantize to Quantize of TensorRT")


@given(nets.networks(nets.symmetric_grids()))
@settings(max_examples=10)
def test_modelopt_round_trip(network: Network) -> None:
    model = nets.write(network, speller(""))
    for node in model.graph.node:
        node.name = f"/layer/input_quantizer/{node.name}"
    assert nets.fingerprint(nets.read(model, modelopt.FRONTEND)) == nets.fingerprint(nets.expected(network))


def refused(frontend: Frontend, op: str, domain: str, operands: list[object], **attrs: object) -> list[tuple[str, str]]:
    b = Builder(opsets={"": 20, domain: 1})
    names = [b.constant(f"p{i}", np.asarray(v)) for i, v in enumerate(operands)]
    b.node(op, ["input", *names], "output", domain, **attrs)
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    assert frontend.recognize(graph, "") is not None
    frontend.normalize(graph, FrontendOptions())
    return [(d.code, d.message) for d in graph.diagnostics.errors]


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "name"),
    [
        ("TRT_FP8QuantizeLinear", [np.float32(1)], {}, "FP8 (E4M3)"),
        ("QuantizeLinear", [np.float32(1), np.zeros(1, ml_dtypes.float8_e4m3fn)], {}, "FP8 (E4M3)"),
        ("DequantizeLinear", [np.ones((2, 1), np.float32)], {"axis": 0, "block_size": 128}, "INT4 in blocks of 128"),
        ("TRT_FP4DynamicQuantize", [np.float32(1)], {}, "NVFP4"),
        ("TRT_MXFP8DynamicQuantize", [np.float32(1)], {}, "MXFP8"),
    ],
)
def test_modelopt_names_the_format(op: str, operands: list[object], attrs: dict[str, object], name: str) -> None:
    found = refused(modelopt.FRONTEND, op, modelopt.DOMAIN, operands, **attrs)
    assert [code for code, _ in found] == ["QAT103"]
    assert name in found[0][1]


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "code", "name"),
    [
        ("ExtendedQuantizeLinear", [np.float32(1), np.zeros((), ml_dtypes.bfloat16)], {}, "QAT103", "BF16"),
        ("ExtendedQuantizeLinear", [np.float32(1), np.float16(0)], {}, "QAT103", "FP16"),
        ("BFPQuantizeDequantize", [], {"bit_width": 16, "block_size": 8}, "QAT103", "block floating point (16 bits)"),
        ("MXQuantizeDequantize", [], {"element_dtype": "fp8_e4m3"}, "QAT103", "microscaling (MX) blocks FP8_E4M3"),
        ("ExtendedInstanceNormalization", [], {}, "QAT302", "ExtendedInstanceNormalization"),
    ],
)
def test_quark_names_the_format(
    op: str, operands: list[object], attrs: dict[str, object], code: str, name: str
) -> None:
    found = refused(quark.FRONTEND, op, "com.amd.quark", operands, **attrs)
    assert [c for c, _ in found] == [code]
    assert name in found[0][1]


def test_biases_keep_a_grid_of_their_own() -> None:
    """XINT8: int8 biases whose scale is not s_x * s_w."""
    b = Builder(opsets={"": 17, "com.vai.quantize": 1})
    zero = b.constant("z", np.int8(0))
    w = b.node(
        "DequantizeLinear",
        [b.constant("w", np.ones((3, 2, 1, 1), np.int8)), b.constant("ws", np.float32(0.5)), zero],
        "wr",
    )
    bias = b.node(
        "DequantizeLinear", [b.constant("b", np.int8([1, 2, 3])), b.constant("bs", np.float32(2**-9)), zero], "br"
    )
    b.node("Conv", ["input", w, bias], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 2, 4, 4]))
    quark.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert sorted(str(p) for p in graph.params.values()) == ["int8 scale 0.001953125 zero 0", "int8 scale 0.5 zero 0"]
