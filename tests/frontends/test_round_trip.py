"""A random quantized network, written as PyTorch's or TensorFlow's exporters write it, is read back as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.passes.strip import strip
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.frontends import pytorch, tensorflow
from tests.frontends.networks import (
    Builder,
    Layer,
    Network,
    Spell,
    expected,
    fingerprint,
    graph_of,
    narrow_grids,
    networks,
    read,
    write,
)

Forms = Callable[[str, int], int]  # (name of a tensor, how many forms there are) -> which one


def forms(seed: int) -> Forms:
    """A choice of form per tensor, the same for the same seed."""
    return lambda name, count: int(np.random.default_rng([seed, *name.encode()]).integers(count))


def array(values: tuple[float, ...] | tuple[int, ...], dtype: str, flat: bool) -> np.ndarray:
    found = np.asarray(values, dtype)
    return found if flat or found.size > 1 else found.reshape(())


def q_and_dq(choose: Forms) -> Spell:
    """QuantizeLinear, Clip, DequantizeLinear, with parameters behind whatever exporters leave before them."""

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        flat = choose(name + "flat", 2) == 1
        scale = b.constant(f"{name}.s", array(params.scale, "float32", flat))
        match choose(name + "scale", 4):
            case 0:
                scale = b.node("Identity", [scale], f"{name}.s1")
            case 1:
                minus = b.node("Neg", [scale], f"{name}.s2")
                scale = b.node("Abs", [minus], f"{name}.s3")
            case 2:
                scale = b.node("Clip", [scale, b.constant(f"{name}.eps", 1e-9, "float32")], f"{name}.s4")
        match choose(name + "zero", 3):
            case 0:
                zero = b.constant(f"{name}.z", array(params.zero_point, params.dtype, flat))
            case 1:
                wide = b.constant(f"{name}.z", array(params.zero_point, "int32", flat))
                zero = b.node("Cast", [wide], f"{name}.z1", to=3 if params.dtype == "int8" else 2)
            case _:
                real = b.constant(f"{name}.z", np.asarray(array(params.zero_point, "float32", flat)) + np.float32(0.25))
                rounded = b.node("Round", [real], f"{name}.z2")
                zero = b.node("Cast", [rounded], f"{name}.z3", to=3 if params.dtype == "int8" else 2)
        axis = 0 if params.axis is None else params.axis - rank * choose(name + "axis", 2)
        q = b.node("QuantizeLinear", [x, scale, zero], f"{name}.q", axis=axis)
        if not params.is_full_range or choose(name + "clip", 2):
            low, high = dtype_range(params.dtype)
            ends = [
                "" if end == limit else b.constant(f"{name}.{limit}", end, params.dtype)
                for end, limit in ((params.qmin, low), (params.qmax, high))
            ]
            q = b.node("Clip", [q, *ends], f"{name}.c")
        return b.node("DequantizeLinear", [q, scale, zero], name, axis=axis)

    return spell


def arithmetic(choose: Forms) -> Spell:
    """Div, Round, Add, Clip, Sub, Mul in the orders that people write."""

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        shape = [1] * rank
        if params.axis is not None:
            shape[params.axis] = len(params.scale)
        scale = np.asarray(params.scale, np.float32).reshape(shape if params.axis is not None else [])
        s = b.constant(f"{name}.s", scale)
        z = b.constant(f"{name}.z", params.zero_point[0], "float32")
        low, high = (b.constant(f"{name}.{k}", v, "float32") for k, v in (("lo", params.qmin), ("hi", params.qmax)))
        inverse = b.constant(f"{name}.r", 1 / scale)
        division = choose(name + "division", 2)
        v = b.node("Mul", [x, inverse], f"{name}.1") if division else b.node("Div", [x, s], f"{name}.1")
        order = ("RAC", "ARC", "ACR")[choose(name + "order", 3)]
        for index, step in enumerate(order):
            out = f"{name}.{index + 2}"
            if step == "R":
                v = b.node("Round", [v], out)
            elif step == "A":
                v = b.node("Add", [v, z] if choose(name + "add", 2) else [z, v], out)
            elif choose(name + "clip", 2):
                v = b.node("Clip", [v, low, high], out)
            else:
                v = b.node("Min", [b.node("Max", [v, low], out + "a"), high], out)
        v = b.node("Sub", [v, z], f"{name}.5")
        return b.node("Mul", [v, s] if choose(name + "mul", 2) else [s, v], name)

    return spell


def coarse(params: QuantParams | None) -> QuantParams | None:
    """The same with a scale of eight bits, so that a range of 256 steps is exact in float32."""
    if params is None:
        return None
    parts = [math.frexp(s) for s in params.scale]
    return dataclasses.replace(params, scale=tuple(math.ldexp(round(m * 256), e - 8) for m, e in parts))


def coarsened(network: Network) -> Network:
    layers = [
        dataclasses.replace(layer, weight_params=coarse(layer.weight_params), output=coarse(layer.output))
        for layer in network.layers
    ]
    start = coarse(network.input)
    assert start is not None
    return dataclasses.replace(network, input=start, layers=tuple(layers))


def fake_quant_nodes(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    """FakeQuantWithMinMaxVars: the range in real numbers; weights are symmetric on 8 bits."""
    signed = params.dtype == "int8"
    middle = 128 if signed else 0
    ends = [params.scale[0] * (end - params.zero_point[0]) for end in (params.qmin, params.qmax)]
    low, high = (b.constant(f"{name}.{i}", end, "float32") for i, end in enumerate(ends))
    bits = (params.qmax + middle).bit_length()
    narrow = params.qmin + middle
    return b.node("FakeQuantWithMinMaxVars", [x, low, high], name, num_bits=bits, narrow_range=narrow)


def quantized_constants(choose: Forms, between: str) -> Spell:
    """Constants as integers behind a DequantizeLinear alone, values through Q, `between` and DQ.

    Brevitas' QCDQ clips integers, PyTorch's convert_fx casts them and gives scales of one element a shape.
    """

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        flat = between == "Cast" and choose(name + "flat", 2) == 1
        scale = b.constant(f"{name}.s", array(params.scale, "float32", flat))
        zero = b.constant(f"{name}.z", array(params.zero_point, params.dtype, flat))
        axis = 0 if params.axis is None else params.axis
        value = next((numpy_helper.to_array(c) for c in b.constants if c.name == x), None)
        if value is None:
            q = b.node("QuantizeLinear", [x, scale, zero], f"{name}.q")
        else:
            q = b.constant(f"{name}.integers", params.quantize(value))
        if between == "Cast" and value is None:
            q = b.node("Cast", [q], f"{name}.c", to=3 if params.dtype == "int8" else 2)
        elif between == "Clip":
            ends = [b.constant(f"{name}.{v}", v, params.dtype) for v in (params.qmin, params.qmax)]
            q = b.node("Clip", [q, *ends], f"{name}.c")
        return b.node("DequantizeLinear", [q, scale, zero], name, axis=axis)

    return spell


def floats_on_a_grid(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
    """tf2onnx of tfmot: weights are the floats that the integers stand for, values go through Q and DQ."""
    value = next((numpy_helper.to_array(c) for c in b.constants if c.name == x), None)
    if value is not None:
        return b.constant(name, params.dequantize(params.quantize(value)))
    grid = [
        b.constant(f"{name}.s", params.scale[0], "float32"),
        b.constant(f"{name}.z", params.zero_point[0], params.dtype),
    ]
    return b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, *grid], f"{name}.q", axis=0), *grid], name, axis=0)


def fully_used(network: Network) -> Network:
    """The same with every channel of every weight reaching the end of its range: what a grid of floats can tell."""
    layers: list[Layer] = []
    for layer in network.layers:
        if layer.weight is not None and layer.weight_params is not None:
            channels = np.moveaxis(layer.weight.copy(), 1 if layer.op == "ConvTranspose" else 0, 0)
            ends = np.resize(np.asarray(layer.weight_params.scale, np.float32) * np.float32(127), len(channels))
            channels[(slice(None), *([0] * (channels.ndim - 1)))] = ends
            steps = np.resize(np.asarray(layer.weight_params.scale, np.float32), len(channels))
            channels[(slice(None), *([0] * (channels.ndim - 2)), 1)] = steps  # no divisor is common to all
            layer = dataclasses.replace(layer, weight=np.moveaxis(channels, 0, 1 if layer.op == "ConvTranspose" else 0))
        layers.append(layer)
    return dataclasses.replace(network, layers=tuple(layers))


@st.composite
def unsigned_grids(draw: st.DrawFn) -> QuantParams:
    bits, narrow = draw(st.sampled_from([4, 8])), draw(st.integers(0, 1))
    top = (1 << bits) - 1
    scale = math.ldexp(draw(st.integers(129, 255)), -14)
    return QuantParams.per_tensor(scale, draw(st.integers(narrow, top)), "uint8", narrow, top)


@given(networks(), st.integers(0, 2**32 - 1))
def test_q_and_dq(network: Network, seed: int) -> None:
    graph = read(write(network, q_and_dq(forms(seed))), pytorch.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(narrow_grids()), st.integers(0, 2**32 - 1))
def test_q_and_dq_of_fewer_bits(network: Network, seed: int) -> None:
    graph = read(write(network, q_and_dq(forms(seed))), pytorch.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(), st.integers(0, 2**32 - 1))
def test_arithmetic(network: Network, seed: int) -> None:
    graph = read(write(network, arithmetic(forms(seed))), pytorch.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(unsigned_grids(), per_channel=False))
def test_tensorflow_s_nodes(network: Network) -> None:
    network = coarsened(network)
    graph = read(write(network, fake_quant_nodes), tensorflow.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(narrow_grids(), weight_low=-128), st.integers(0, 2**32 - 1))
def test_integers_behind_clip(network: Network, seed: int) -> None:
    graph = read(write(network, quantized_constants(forms(seed), "Clip")), pytorch.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(weight_low=-128), st.integers(0, 2**32 - 1))
def test_integers_behind_cast(network: Network, seed: int) -> None:
    graph = read(write(network, quantized_constants(forms(seed), "Cast")), pytorch.FRONTEND)
    assert fingerprint(graph) == fingerprint(expected(network))


@given(networks(weight_low=-128), st.integers(0, 2**32 - 1))
def test_tensorflow_s_q_and_dq(network: Network, seed: int) -> None:
    """QuantizeAndDequantize: per-tensor grids carry a stale axis."""
    model = write(network, q_and_dq(forms(seed)))
    model.producer_name = "tf2onnx"
    graph = graph_of(model)
    assert tensorflow.FRONTEND.recognize(graph, "tf2onnx") is not None
    assert fingerprint(normalized(graph)) == fingerprint(expected(network))


@given(networks().map(fully_used))
def test_tensorflow_s_floats_on_a_grid(network: Network) -> None:
    """The integers come back, and their scales up to the rounding of float32 products."""
    got, want = normalized(graph_of(write(network, floats_on_a_grid))), expected(network)
    assert [n.op for n in got.nodes] == [n.op for n in want.nodes]
    for one, two in zip(got.nodes, want.nodes, strict=True):
        for a, b in zip([*one.inputs, *one.outputs], [*two.inputs, *two.outputs], strict=True):
            ours, theirs = got.quant(a), want.quant(b)
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            steps = [np.resize(p.scale, max(len(ours.scale), len(theirs.scale))) for p in (ours, theirs)]
            np.testing.assert_allclose(*steps, rtol=1e-6)
            assert (ours.zero_point[0], ours.qmin, ours.qmax) == (theirs.zero_point[0], theirs.qmin, theirs.qmax)
            integers = [value_of(t) for t in (a, b)]
            if integers[0] is not None and integers[1] is not None:
                np.testing.assert_array_equal(*integers)


def normalized(graph: QuantGraph) -> QuantGraph:
    """What the frontend `tensorflow` makes of a graph, stripped."""
    tensorflow.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    strip(graph)
    graph.verify()
    return graph
