"""Random quantized networks for round trips: written in a dialect, read back, and compared as canonical graphs.

A network is a chain (with residual sums) of operators on [1, C, 6, 6], every tensor that is to be quantized spelled
through a callback. The expected graph is spelled with a placeholder that becomes a FakeQuant directly, past every
frontend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.frontend import Frontend, FrontendOptions
from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.model_io import load
from qatc.compiler.passes.strip import strip
from qatc.compiler.quant import Array, QuantParams
from qatc.frontends.common import qdq


@dataclass(frozen=True)
class Layer:
    """One operator: its weight and bias (where it has any) and the grids of weight, bias and output."""

    op: str
    weight: Array | None = None
    bias: Array | None = None
    weight_params: QuantParams | None = None
    bias_params: QuantParams | None = None
    output: QuantParams | None = None


@dataclass(frozen=True)
class Network:
    """The grid of the input, and the layers in order."""

    channels: int
    input: QuantParams
    layers: tuple[Layer, ...]


@dataclass
class Builder:
    """A model in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=lambda: {"": 17})

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        array = np.asarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, domain: str = "", **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n{len(self.nodes)}", domain=domain, **attrs))
        return output


# (builder, tensor, its grid, rank of the tensor, name for the result) -> result
Spell = Callable[[Builder, str, QuantParams, int, str], str]


# -- strategies ---------------------------------------------------------------------------------------------------

scales = st.floats(2**-9, 2**-2, width=32).map(float)


@st.composite
def activation_grids(draw: st.DrawFn) -> QuantParams:
    """Per tensor, 8 bits, any zero point."""
    if draw(st.booleans()):
        return QuantParams.per_tensor(draw(scales), draw(st.integers(0, 255)), "uint8")
    return QuantParams.per_tensor(draw(scales), 0, "int8")


@st.composite
def symmetric_grids(draw: st.DrawFn) -> QuantParams:
    """Per tensor, int8, zero point 0."""
    low = draw(st.sampled_from([-128, -127]))
    return QuantParams.per_tensor(draw(scales), 0, "int8", low, 127)


@st.composite
def narrow_grids(draw: st.DrawFn) -> QuantParams:
    """Per tensor, 2 to 8 bits of either sign, narrow or not."""
    bits, signed, narrow = draw(st.integers(2, 8)), draw(st.booleans()), draw(st.booleans())
    if signed:
        return QuantParams.per_tensor(draw(scales), 0, "int8", -(1 << (bits - 1)) + narrow, (1 << (bits - 1)) - 1)
    top = (1 << bits) - 1 - narrow
    return QuantParams.per_tensor(draw(scales), draw(st.integers(0, top)), "uint8", 0, top)


@st.composite
def networks(
    draw: st.DrawFn,
    activations: st.SearchStrategy[QuantParams] | None = None,
    *,
    everywhere: bool = False,
    per_channel: bool = True,
    weight_low: int = -127,
) -> Network:
    """A random network; with `everywhere` the output of every operator is quantized."""
    grids = activations if activations is not None else activation_grids()
    channels = draw(st.integers(2, 4))
    layers: list[Layer] = []
    current = channels
    for _ in range(draw(st.integers(1, 4))):
        op = draw(st.sampled_from(["Conv", "ConvTranspose", "Relu", "Add", "MaxPool"]))
        output = draw(grids) if everywhere or op in ("Conv", "Add") or draw(st.booleans()) else None
        if op not in ("Conv", "ConvTranspose"):
            layers.append(Layer(op, output=output))
            continue
        new = draw(st.integers(2, 4))
        layers.append(draw(_products(op, current, new, output, per_channel, weight_low)))
        current = new
    if draw(st.booleans()):
        layers.append(draw(_products("Gemm", current, draw(st.integers(2, 5)), draw(grids), per_channel, weight_low)))
    return Network(channels, draw(grids), tuple(layers))


@st.composite
def _products(
    draw: st.DrawFn, op: str, inputs: int, outputs: int, output: QuantParams | None, per_channel: bool, low: int
) -> Layer:
    shape = {"Conv": (outputs, inputs, 3, 3), "ConvTranspose": (inputs, outputs, 3, 3), "Gemm": (outputs, inputs * 36)}[
        op
    ]
    axis = 1 if op == "ConvTranspose" else 0
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = random.normal(0, 0.2, shape).astype(np.float32)
    bias = random.normal(0, 0.5, outputs).astype(np.float32)
    if per_channel and draw(st.booleans()):
        steps = draw(st.lists(scales, min_size=outputs, max_size=outputs))
        params = QuantParams.per_channel(steps, axis, 0, "int8", low, 127)
    else:
        params = QuantParams.per_tensor(draw(scales), 0, "int8", low, 127)
    return Layer(op, weight, bias, params, None, output)


# -- writing ------------------------------------------------------------------------------------------------------


def write(network: Network, spell: Spell) -> onnx.ModelProto:
    """The network as a model, its fake quantization in the dialect that `spell` writes."""
    b = Builder()
    x = spell(b, "input", network.input, 4, "input_q")
    by_channels: dict[int, str] = {network.channels: x}
    channels = network.channels
    for index, layer in enumerate(network.layers):
        name = f"t{index}"
        if layer.weight is None:
            y = _plain(b, layer.op, x, by_channels[channels], name)
        else:
            y = _product(b, layer, x, name, spell)
            channels = len(layer.bias) if layer.bias is not None else channels
        x = y if layer.output is None else spell(b, y, layer.output, 2 if layer.op == "Gemm" else 4, f"{name}_q")
        by_channels.setdefault(channels, x)
    b.node("Identity", [x], "output")
    return model_of(b, [1, network.channels, 6, 6])


def _plain(b: Builder, op: str, x: str, other: str, name: str) -> str:
    if op == "Add":
        return b.node("Add", [x, other], name)
    if op == "MaxPool":
        return b.node("MaxPool", [x], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return b.node(op, [x], name)


def _product(b: Builder, layer: Layer, x: str, name: str, spell: Spell) -> str:
    w = b.constant(f"{name}.weight", layer.weight)
    bias = b.constant(f"{name}.bias", layer.bias)
    if layer.weight_params is not None and layer.weight is not None:
        w = spell(b, w, layer.weight_params, layer.weight.ndim, f"{name}.weight_q")
    if layer.bias_params is not None:
        bias = spell(b, bias, layer.bias_params, 1, f"{name}.bias_q")
    if layer.op == "Gemm":
        return b.node("Gemm", [b.node("Flatten", [x], f"{name}_flat"), w, bias], name, transB=1)
    return b.node(layer.op, [x, w, bias], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def model_of(b: Builder, shape: list[int]) -> onnx.ModelProto:
    """The builder's nodes as a model with one input and one output."""
    graph = helper.make_graph(
        b.nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        b.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in b.opsets.items()], ir_version=8
    )


# -- reading ------------------------------------------------------------------------------------------------------


def graph_of(model: onnx.ModelProto) -> QuantGraph:
    """The model as the loader gives it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return load(path)[0]


def read(model: onnx.ModelProto, frontend: Frontend, options: FrontendOptions | None = None) -> QuantGraph:
    """The canonical graph that a frontend makes of a model, stripped; the frontend must have recognized it."""
    graph = graph_of(model)
    if frontend.read is None:
        assert frontend.recognize(graph, "") is not None
    frontend.normalize(graph, options or FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    strip(graph)
    graph.verify()
    return graph


def expected(network: Network) -> QuantGraph:
    """The same network, its FakeQuant nodes made directly."""
    grids: list[QuantParams] = []

    def placeholder(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        grids.append(params)
        b.opsets["test"] = 1
        return b.node("Placeholder", [x], name, domain="test", index=len(grids) - 1)

    graph = graph_of(write(network, placeholder))
    qdq.prepare(graph)
    for node in graph.nodes:
        if node.op == "Placeholder":
            qdq.to_fake_quant(graph, node, grids[node.attr("index")])
    strip(graph)
    graph.verify()
    return graph


def fingerprint(graph: QuantGraph) -> str:
    """The graph without names: operators, attributes, grids, and the values of constants."""
    number: dict[int, str] = {id(t): f"in{i}" for i, t in enumerate(graph.inputs)}
    lines = [f"in{i} {graph.quant(t)}" for i, t in enumerate(graph.inputs)]
    for index, node in enumerate(graph.nodes):
        operands: list[str] = []
        for tensor in node.inputs:
            value = value_of(tensor)
            if value is None:
                operands.append(number.get(id(tensor), "_"))
            else:
                content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:8]
                operands.append(f"{graph.quant(tensor)}:{value.dtype}{list(value.shape)}#{content}")
        attrs = sorted((k, str(v)) for k, v in node.attrs.items())
        for position, tensor in enumerate(node.outputs):
            number[id(tensor)] = f"{index}.{position}"
        grids = ", ".join(str(graph.quant(t)) for t in node.outputs)
        lines.append(f"{index} {node.op} {attrs} ({', '.join(operands)}) -> {grids}")
    return "\n".join([*lines, *(f"out {number[id(t)]}" for t in graph.outputs)])
