"""Model Compression Toolkit: round trips over its quantizer nodes, ranges around zero, tables refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT
from qatc.compiler.quant import QuantParams
from qatc.frontends import mct
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Network, Spell

coarse = st.integers(129, 255).map(lambda mantissa: float(np.ldexp(mantissa, -14)))  # a range of it is exact in float32


@st.composite
def grids(draw: st.DrawFn) -> QuantParams:
    """Of a threshold with or without sign, or of a range."""
    bits, scale = draw(st.sampled_from([2, 4, 8])), draw(coarse)
    top = (1 << bits) - 1
    if draw(st.booleans()):
        return QuantParams.per_tensor(scale, 0, "int8", -(top + 1) // 2, top // 2)
    return QuantParams.per_tensor(scale, draw(st.integers(0, top)), "uint8", 0, top)


def speller(forms: st.DataObject) -> Spell:
    """Writes activations with attributes, weights with inputs; where zero is an end there are two ways to say it."""

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        b.opsets[mct.DOMAIN] = 1
        weight = any(c.name == x for c in b.constants)
        kind = "Weights" if weight else "Activation"
        scale = np.float32(params.scale)
        levels = params.qmax - params.qmin + 1
        attrs: dict[str, object] = {"num_bits": levels.bit_length() - 1}
        if weight:
            attrs |= {"per_channel": int(params.is_per_channel), "channel_axis": params.axis or 0}
        signed = params.qmin < 0
        if signed or (not any(params.zero_point) and forms.draw(st.booleans())):
            op = forms.draw(st.sampled_from(["POTQuantizer", "SymmetricQuantizer"]))
            ends = {"threshold": scale * np.float32(params.qmax + 1)}
            attrs["signed"] = int(signed)
        else:
            op = "UniformQuantizer"
            zero = np.float32(params.zero_point)
            ends = {"min_range": -scale * zero, "max_range": scale * (levels - 1 - zero)}
        if not weight:
            return b.node(kind + op, [x], name, mct.DOMAIN, **attrs, **{k: float(v[0]) for k, v in ends.items()})
        values = [b.constant(f"{name}.{k}", v if params.is_per_channel else v[0]) for k, v in ends.items()]
        return b.node(kind + op, [x, *values], name, mct.DOMAIN, **attrs)

    return spell


def test_ends_that_do_not_belong_together() -> None:
    b = Builder(opsets={"": 17, mct.DOMAIN: 1})
    w = b.constant("w", np.ones((2, 32), np.float32))
    ends = [b.constant(f"end{n}", np.full(n, n - 2.5, np.float32)) for n in (2, 3)]
    v = b.node("WeightsUniformQuantizer", [w, *ends], "v", mct.DOMAIN, num_bits=8, per_channel=1, channel_axis=0)
    b.node("Add", ["input", v], "output")
    graph = nets.graph_of(nets.model_of(b, [2, 32]))
    mct.FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


@given(nets.networks(grids(), weight_low=-128), st.data())
@settings(max_examples=40)
def test_round_trip(network: Network, forms: st.DataObject) -> None:
    model = nets.write(network, speller(forms))
    assert nets.fingerprint(nets.read(model, mct.FRONTEND)) == nets.fingerprint(nets.expected(network))


def one(op: str, shape: list[int], operands: list[object], **attrs: object) -> list[str] | QuantParams:
    """The grid that a single node gets, or the codes of what is wrong with it."""
    b = Builder(opsets={"": 17, mct.DOMAIN: 1})
    names = [b.constant(f"p{i}", np.asarray(v)) for i, v in enumerate(operands)]
    b.node(op, ["input", *names], "output", mct.DOMAIN, **attrs)
    graph = nets.graph_of(nets.model_of(b, shape))
    assert mct.FRONTEND.recognize(graph, "") == f"1 {op} (mct_quantizers)"
    mct.FRONTEND.normalize(graph, FrontendOptions())
    found: list[QuantParams] = [n.attrs["params"] for n in graph.nodes if n.op == FAKE_QUANT]
    return [d.code for d in graph.diagnostics.errors] or found[0]


def test_a_range_is_moved_until_zero_is_on_its_grid() -> None:
    """-1.1..2.0 on 4 bits: the step stays, zero goes to the nearest integer."""
    got = one("ActivationUniformQuantizer", [2], [], min_range=-1.1, max_range=2.0, num_bits=4)
    assert got == QuantParams.per_tensor(float(np.float32(3.1 / 15)), 5, "uint8", 0, 15)
    positive = one("ActivationUniformQuantizer", [2], [], min_range=1.0, max_range=1.5, num_bits=2)
    assert positive == QuantParams.per_tensor(0.5, 0, "uint8", 0, 3)


def test_wide_activations_and_weights_per_channel() -> None:
    wide = one("ActivationPOTQuantizer", [2], [], threshold=4.0, signed=1, num_bits=16)
    assert wide == QuantParams.per_tensor(2.0**-13, 0, "int16")
    ends = [np.float32([-1.0, -0.5]), np.float32([0.5, 0.25])]
    got = one("WeightsUniformQuantizer", [3, 2], ends, num_bits=2, per_channel=1, channel_axis=1)
    assert got == QuantParams.per_channel([0.5, 0.25], 1, 2, "uint8", 0, 3)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "codes"),
    [
        ("ActivationPOTQuantizer", [], {"threshold": 0.0, "num_bits": 8}, ["QAT201"]),
        ("ActivationPOTQuantizer", [], {"threshold": 1.0}, ["QAT104"]),
        ("ActivationPOTQuantizer", [], {"threshold": 1.0, "num_bits": 40}, ["QAT103"]),
        ("ActivationUniformQuantizer", [], {"min_range": 0.0, "max_range": 0.0, "num_bits": 8}, ["QAT201"]),
        ("WeightsSymmetricQuantizer", [], {"num_bits": 8}, ["QAT104"]),
        ("WeightsSymmetricQuantizer", [np.float32([1, 2, 3])], {"num_bits": 8, "channel_axis": 0}, ["QAT204"]),
        ("WeightsLUTSymmetricQuantizer", [np.float32([-1, 0, 2]), np.float32([1])], {"num_bits": 2}, ["QAT103"]),
    ],
)
def test_refused(op: str, operands: list[object], attrs: dict[str, object], codes: list[str]) -> None:
    assert one(op, [2, 2], operands, **attrs) == codes
