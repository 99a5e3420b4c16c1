"""A random quantized network, written as PyTorch's or TensorFlow's exporters write it, is read back as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.quant import QuantParams, dtype_range
from qatc.frontends import pytorch, tensorflow
from tests.frontends.networks import Builder, Network, Spell, expected, fingerprint, narrow_grids, networks, read, write

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
