"""Layers of QONNX and FINN against their definitions, and annotated inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.frontends.qonnx import FRONTEND
from qatc.frontends.qonnx.layers import CHANNELS_LAST, annotated
from tests.frontends import networks as nets
from tests.frontends.networks import Builder
from tests.frontends.running import run, run_canonical, values

GENERAL = "qonnx.custom_op.general"
RNG = np.random.default_rng(0)


def read(b: Builder, shape: list[int], datatype: str | None = None) -> QuantGraph:
    model = nets.model_of(b, shape)
    if datatype is not None:
        note = model.graph.quantization_annotation.add(tensor_name="input")
        note.quant_parameter_tensor_names.add(key="finn_datatype", value=datatype)
    graph = nets.graph_of(model)
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


def standard(op: str, feeds: list[np.ndarray], **attrs: Any) -> np.ndarray:
    """What ONNX's own operator gives."""
    names = [f"i{i}" for i in range(len(feeds))]
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node(op, names, ["o"], **attrs)], "g", kinds, [out])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return run(model, *feeds)[0]


def integers(*shape: int, low: int = -4, high: int = 5) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.float32)


# -- channels last --------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "Conv": ([(5, 3, 2, 4)], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "strides": [2, 1], "group": 1}),
    "MaxPool": ([], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}),
    "BatchNormalization": ([(4,), (4,), (4,), (4,)], {"epsilon": 1e-3}),
}


@pytest.mark.parametrize("op", list(FORMS))
def test_channels_last(op: str) -> None:
    shapes, attrs = FORMS[op]
    constants = [np.abs(RNG.normal(1, 0.1, s)).astype(np.float32) for s in shapes]
    if op == "Conv":
        constants = [integers(*shapes[0])]
    b = Builder(opsets={"": 13, CHANNELS_LAST: 1})
    names = [b.constant(f"c{i}", c) for i, c in enumerate(constants)]
    b.node(op, ["input", *names], "output", CHANNELS_LAST, **attrs)
    graph = read(b, [2, 8, 6, 4])
    graph.diagnostics.check()
    x = integers(2, 8, 6, 4)
    weights = [c.transpose(0, 3, 1, 2) if c.ndim == 4 else c for c in constants]
    want = standard(op, [x.transpose(0, 3, 1, 2), *weights], **attrs).transpose(0, 2, 3, 1)
    assert np.allclose(run_canonical(graph, x)[0], want, atol=1e-5)
    assert CHANNELS_LAST not in graph.domains


def test_quantized_weight_channels_last() -> None:
    """The weight's scales move with its channels."""
    b = Builder(opsets={"": 13, CHANNELS_LAST: 1, GENERAL: 2})
    w = RNG.normal(0, 1, (5, 3, 3, 4)).astype(np.float32)
    s = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5], np.float32).reshape(5, 1, 1, 1)
    operands = [b.constant(n, v, np.float32) for n, v in {"w": w, "s": s, "z": 0, "b": 4}.items()]
    b.node("Quant", operands, "wq", GENERAL, signed=1, narrow=1, rounding_mode="ROUND")
    b.node("Conv", ["input", "wq"], "output", CHANNELS_LAST, kernel_shape=[3, 3], strides=[1, 1], pads=[0] * 4)
    graph = read(b, [1, 6, 6, 4])
    graph.diagnostics.check()
    x = integers(1, 6, 6, 4)
    wq = (np.clip(np.rint(w / s), -7, 7) * s).transpose(0, 3, 1, 2).astype(np.float32)
    want = standard("Conv", [x.transpose(0, 3, 1, 2), wq]).transpose(0, 2, 3, 1)
    assert np.allclose(values(graph, x), want, atol=1e-4)


# -- lowered convolutions -------------------------------------------------------------------------------------------


def columns(
    x: np.ndarray, kernel: list[int], stride: list[int], pads: list[int], dilations: list[int], fill: float
) -> np.ndarray:
    """The windows of [N, H, W, C] as [N, OH, OW, kh * kw * C]."""
    x = np.pad(x, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)], constant_values=fill)
    high, wide = ((x.shape[i + 1] - dilations[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))
    parts = [
        x[
            :,
            dilations[0] * i : dilations[0] * i + stride[0] * (high - 1) + 1 : stride[0],
            dilations[1] * j : dilations[1] * j + stride[1] * (wide - 1) + 1 : stride[1],
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return np.concatenate(parts, axis=3)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilations", "fill"),
    [
        ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 0),
        ([3, 2], [2, 1], [0, 1, 1, 0], [1, 2], 0),
        ([2, 2], [1, 2], [1, 1, 1, 1], [1, 1], -1),
        ([1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 0),
    ],
)
@pytest.mark.parametrize("filters", [5, 3])
def test_lowered_convolution(
    kernel: list[int], stride: list[int], pads: list[int], dilations: list[int], fill: int, filters: int
) -> None:
    w = integers(kernel[0] * kernel[1] * 3, filters)
    b = Builder(opsets={"": 13, GENERAL: 1})
    attrs = {"kernel_size": kernel, "stride": stride, "pad_amount": pads, "dilations": dilations, "pad_value": fill}
    b.node("Im2Col", ["input"], "cols", GENERAL, input_shape="(2,8,7,3)", depthwise=0, **attrs)
    b.node("MatMul", ["cols", b.constant("w", w)], "output")
    graph = read(b, [2, 8, 7, 3])
    graph.diagnostics.check()
    x = integers(2, 8, 7, 3)
    assert np.array_equal(values(graph, x), columns(x, kernel, stride, pads, dilations, fill) @ w)
    assert [n.attr("group") for n in graph.nodes if n.op == "Conv"] == [1]


def test_lowered_depthwise_convolution() -> None:
    own = integers(9, 4, low=1)
    w = np.zeros((9, 4, 4), np.float32)
    w[:, np.arange(4), np.arange(4)] = own
    b = Builder(opsets={"": 13, GENERAL: 1})
    b.node("Im2Col", ["input"], "cols", GENERAL, input_shape="", kernel_size=[3, 3], stride=[1, 1], depthwise=1)
    b.node("MatMul", ["cols", b.constant("w", w.reshape(36, 4))], "output")
    graph = read(b, [1, 6, 6, 4])
    graph.diagnostics.check()
    x = integers(1, 6, 6, 4)
    want = columns(x, [3, 3], [1, 1], [0] * 4, [1, 1], 0) @ w.reshape(36, 4)
    assert np.array_equal(values(graph, x), want)
    assert [n.attr("group") for n in graph.nodes if n.op == "Conv"] == [4]


# -- others -----------------------------------------------------------------------------------------------------------


def test_counted_bits() -> None:
    w = integers(9, 4, low=0, high=2)
    b = Builder(opsets={"": 13, GENERAL: 1})
    b.node("XnorPopcountMatMul", ["input", b.constant("w", w)], "output", GENERAL)
    graph = read(b, [6, 9], "BINARY")
    graph.diagnostics.check()
    x = integers(6, 9, low=0, high=2)
    assert np.array_equal(values(graph, x), (x[:, :, None] == w[None]).sum(axis=1))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("signed", [0, 1])
def test_average_of_integers(layout: str, signed: int) -> None:
    b = Builder(opsets={"": 13, GENERAL: 1})
    attrs = {"kernel": 2, "stride": 2, "ibits": 4, "obits": 4, "signed": signed, "data_layout": layout}
    b.node("QuantAvgPool2d", ["input"], "output", GENERAL, **attrs)
    x = integers(2, 3, 4, 6, low=-8 if signed else 0, high=8 if signed else 16)
    sums = x.reshape(2, 3, 2, 2, 3, 2).sum(axis=(3, 5)).astype(np.int64)
    want = sums >> 2  # 6 bits hold the sum of four numbers of 4
    if layout == "NHWC":
        x, want = x.transpose(0, 2, 3, 1), want.transpose(0, 2, 3, 1)
    graph = read(b, list(x.shape))
    graph.diagnostics.check()
    assert np.array_equal(values(graph, np.ascontiguousarray(x)), want)


def test_markers_are_nothing() -> None:
    b = Builder(opsets={"": 13, GENERAL: 1})
    b.node("DebugMarker", ["input"], "m", GENERAL, export_debug_name="here")
    b.node("Relu", ["m"], "output")
    graph = read(b, [3])
    graph.diagnostics.check()
    assert GENERAL not in {n.domain for n in graph.nodes}


@pytest.mark.parametrize(
    ("op", "attrs", "words"),
    [
        ("Im2Col", {"kernel_size": [3, 3], "stride": [1, 1]}, "in front of MatMul"),
        ("GenericPartition", {"model": "part.onnx"}, "another file"),
        ("XnorPopcountMatMul", {}, "constant matrix"),
        ("StreamingPass", {}, "is not supported"),
        ("QuantAvgPool2d", {"kernel": 2, "stride": 2, "ibits": 33, "obits": 4}, "of up to 32 bits"),
        ("QuantAvgPool2d", {"kernel": 2, "stride": 2, "ibits": 8, "obits": 0}, "of up to 32 bits"),
        ("QuantAvgPool2d", {"kernel": 0, "stride": 1, "ibits": 8, "obits": 8}, "of up to 32 bits"),
    ],
)
def test_refused(op: str, attrs: dict[str, Any], words: str) -> None:
    b = Builder(opsets={"": 13, GENERAL: 1})
    b.node(op, ["input"] if op != "XnorPopcountMatMul" else ["input", "input"], "output", GENERAL, **attrs)
    graph = read(b, [1, 4, 4, 2])
    found = graph.diagnostics.errors
    assert [(d.code, d.node, d.tensor) for d in found] == [("QAT302", "n0", "input")]
    assert words in found[0].message


@pytest.mark.parametrize(("op", "domain"), [("XnorPopcountMatMul", GENERAL), ("Conv", CHANNELS_LAST)])
def test_layers_without_a_weight_are_refused(op: str, domain: str) -> None:
    b = Builder(opsets={"": 13, domain: 1})
    b.node(op, ["input"], "output", domain)
    assert [d.code for d in read(b, [1, 4, 4, 2]).diagnostics.errors] == ["QAT302"]


# -- annotations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("UINT8", "uint8 scale 1 zero 0"),
        ("INT4", "int8[-8,7] scale 1 zero 0"),
        ("BIPOLAR", "int8[-1,1] scale 1 zero 0"),
        ("FIXED<8,2>", "int8 scale 0.015625 zero 0"),
        ("FLOAT32", "None"),
        ("INT0", "None"),
        ("UINT99", "None"),
        ("", "None"),
    ],
)
def test_data_types(name: str, grid: str) -> None:
    assert str(annotated(name)) == grid


def test_an_annotated_input_lies_on_its_grid() -> None:
    w = integers(6, 4)
    b = Builder(opsets={"": 13, GENERAL: 1})
    b.node("MatMul", ["input", b.constant("w", w)], "m")
    rows = np.array([[-3.0, 1.0, 5.0, 9.0]], np.float32)
    b.node("MultiThreshold", ["m", b.constant("t", rows)], "output", GENERAL, out_dtype="UINT3")
    graph = read(b, [9, 6], "INT4")
    graph.diagnostics.check()
    assert graph.nodes[0].op == FAKE_QUANT
    x = integers(9, 6, low=-8, high=8)
    assert np.array_equal(values(graph, x), ((x @ w)[..., None] >= rows).sum(axis=-1))
