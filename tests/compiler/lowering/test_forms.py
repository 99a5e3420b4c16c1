"""Activations of few values begin at 0: which ones, and that it changes no number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Conv, IntegerGraph, Rescale
from qatc.compiler.reference import execute
from tests.agreeing import agrees, kinds, lowered_net, reasons
from tests.graphs import net

_INPUT = "float[1,2,4,4] x"
_WEIGHT = "float[2,2,1,1] w = {0.5, -1.0, 7.9375, -8.0}"
_CONV = "k = D(w)\nc = Conv({}, k)\ny = D(c)"


def _form(graph: IntegerGraph, name: str = "") -> tuple[int, int, int]:
    """(zero point, qmin, qmax) of a tensor's integers, of those that the first product reads where it has no name."""
    products = [op.inputs[0] for op in graph.ops if isinstance(op, Conv)]
    params = graph.params(f"{name}_quantized" if name else products[0])
    assert params.dtype == "uint8"
    return params.zero_point[0], params.qmin, params.qmax


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ("r = Relu(x)\na = D(r)", (0, 0, 127)),
        ("r = Relu(x)\na = A(r)", (0, 0, 127)),  # uint8, zero point 128
        ("r = Relu(x)\nm = MaxPool<kernel_shape = [2, 2]>(r)\na = D(m)", (0, 0, 127)),
        ("q = D(x)\nm = MaxPool<kernel_shape = [2, 2]>(q)\nr = Relu(m)\na = D(r)", (128, 0, 255)),  # begins as q does
        ("q = D(x)\nr = Relu(q)\na = A(r)", (0, 0, 16)),  # its largest is the other grid's 127
        ("r = Clip(x, half, )\na = D(r)", (0, 8, 127)),  # 0 is still on the grid
        ("r = Clip(x, low, half)\na = D(r)", (16, 0, 24)),
        ("r = Relu(x)\nq = D(r)\nm = GlobalAveragePool(q)\na = D(m)", (0, 0, 127)),
        ("r = Relu(x)\nq = D(r)\nm = GlobalAveragePool(q)\na = A(m)", (0, 0, 16)),
        ("t = Softmax(x)\na = D(t)", (0, 0, 16)),
        ("a = D(x)", (128, 0, 255)),
        ("r = Relu(x)\na = C(r)", (0, 0, 124)),  # int8, zero point 3
        ("r = Clip(x, low, )\na = D(r)", (128, 0, 255)),  # 144 values
        ("r = Relu(x)\na = B(r)", (0, 0, 255)),  # begins there anyway
    ],
)
def test_which_begin_at_zero(body: str, form: tuple[int, int, int]) -> None:
    graph = lowered_net(
        f"({_INPUT}) => (float[1,2,h,v] y)",
        f"{body}\n{_CONV.format('a')}",
        f"{_WEIGHT}, float half = {{0.5}}, float low = {{-1.0}}",
    )
    assert _form(graph) == form


def test_a_clamp_that_cuts_nothing_off_stays_none() -> None:
    """Padding reaches further than what it pads, which is on the same grid and keeps its own range."""
    body = "t = Transpose<perm = [0, 1, 3, 2]>(x)\nr = Clip(t, zero, zero)\np = Pad(r, pads, half)\na = D(p)\n"
    graph = lowered_net(
        f"({_INPUT}) => (float[1,2,h,v] y)",
        body + _CONV.format("a"),
        f"{_WEIGHT}, float zero = {{0}}, float half = {{0.5}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}",
    )
    assert (_form(graph)[:2], kinds(graph).count("Rescale")) == ((0, 0), 0)


def test_only_what_a_product_reads() -> None:
    graph = lowered_net(f"({_INPUT}) => ({_INPUT.replace(' x', ' y')})", "r = Relu(x)\ny = D(r)")
    assert _form(graph, "y") == (128, 0, 255)


def test_what_is_moved_begins_alike() -> None:
    """No Rescale between a tensor, its parts and what they are brought together in."""
    graph = lowered_net(
        f"({_INPUT}) => (float[1,2,4,4] y)",
        "r = Relu(x)\na = D(r)\nu, v = Split<axis = 1>(a)\np = D(u)\nq = D(v)\nj = Concat<axis = 1>(q, p)\nb = D(j)\n"
        + _CONV.format("b"),
        _WEIGHT,
    )
    forms = {_form(graph, name[: -len("_quantized")]) for name in graph.tensors if name.endswith("_quantized")}
    assert forms == {(0, 0, 127), _form(graph, "y")}
    assert not [op for op in graph.ops if isinstance(op, Rescale)]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("r = Relu(x)\na = D(r)\ns = D(x)\nj = Concat<axis = 1>(a, s)\nb = D(j)\nk = D(v)", ""),
        ("r = Relu(x)\na = D(r)\no = D(ones)\nj = Concat<axis = 1>(a, o)\nb = D(j)\nk = D(v)", ""),
        ("r = Relu(x)\na = D(r)\nb = Pad(a, pads, minus)\nk = D(w)", ""),
    ],
)
def test_what_brings_other_numbers_in_keeps_a_tensor_as_it_was(body: str, constants: str) -> None:
    graph = lowered_net(
        f"({_INPUT}) => (float[1,2,h,v] y)",
        f"{body}\nc = Conv(b, k)\ny = D(c)",
        f"{_WEIGHT}, float[2,4,1,1] v = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.5}}, "
        f"float[1,2,4,4] ones = {{{', '.join(['1.0'] * 32)}}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, "
        f"float minus = {{-7.5}}{constants}",
    )
    assert _form(graph, "r")[0] == 128
    assert not reasons(graph)


def test_a_port_of_integers_stays_as_it_is() -> None:
    """What the file itself hands out as int8 0 to 127 is that, whatever reads it inside."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    net (float[1,2,4,4] x) => (int8[1,2,4,4] q, float[1,2,4,4] y)
    <float s = {0.0625}, int8 z = {0}, float[2,2,1,1] w = {0.5, -1.0, 7.9375, -8.0}> {
      r = Relu(x)
      q = QuantizeLinear(r, s, z)
      a = DequantizeLinear(q, s, z)
      wq = QuantizeLinear(w, s, z)
      k = DequantizeLinear(wq, s, z)
      c = Conv(a, k)
      cq = QuantizeLinear(c, s, z)
      y = DequantizeLinear(cq, s, z)
    }"""
    graph = agrees(text)
    assert graph.tensors["q"].dtype == "int8"


_STEPS = (
    "Relu({})",
    "Clip({}, low, high)",
    "Transpose<perm = [0, 1, 3, 2]>({})",
    "Pad({}, pads, pad)",
    "MaxPool<kernel_shape = [2, 2], pads = [1, 1, 0, 0]>({})",
    "A({})",
    "D({})",
    "Concat<axis = 2>({0}, {0})",
    "GlobalAveragePool({})",
)


# -- the numbers stay ----------------------------------------------------------------------------------------------
@st.composite
def _networks(draw: st.DrawFn) -> str:
    """A few layers, each rounded onto a grid of its own, with clamps and moves between."""
    lines: list[str] = []
    at = "x"
    for index in range(draw(st.integers(1, 4))):
        for step in range(draw(st.integers(0, 3))):
            body = draw(st.sampled_from(_STEPS))
            lines.append(f"t{index}_{step} = {body.format(at)}")
            at = f"t{index}_{step}"
        grid = draw(st.sampled_from("ABCD"))
        lines += [f"q{index} = {grid}({at})", f"c{index} = Conv(q{index}, k)"]
        at = f"c{index}"
    return "\n".join([*lines, f"y = {draw(st.sampled_from('ACD'))}({at})"])


@settings(max_examples=60, deadline=None)
@given(body=_networks(), ends=st.tuples(st.integers(-40, 200), st.integers(0, 200)), pad=st.integers(-8, 8))
def test_the_numbers_are_those_of_the_other_form(body: str, ends: tuple[int, int], pad: int) -> None:
    """Begun at 0 or kept as they were trained: the integers stand for the same real numbers."""
    low = ends[0] / 16
    text = (
        "(float[1,2,6,6] x) => (float[1,2,h,v] y)",
        f"k = D(w)\n{body}",
        f"{_WEIGHT}, float low = {{{low}}}, float high = {{{low + ends[1] / 16}}}, float pad = {{{pad / 4}}}, "
        "int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}",
    )
    ours, kept = lowered_net(*text), lowered_net(*text, activations="keep")
    feeds = {"x": np.random.default_rng(0).normal(0, 6, (1, 2, 6, 6)).astype(np.float32)}
    exact = get_profile("exact")
    np.testing.assert_array_equal(execute(ours, feeds, exact)["y"], execute(kept, feeds, exact)["y"])
    assert kinds(ours).count("Rescale") <= kinds(kept).count("Rescale")


def test_a_symmetric_network_agrees_with_the_file() -> None:
    agrees(
        net(
            f"({_INPUT}) => (float[1,2,4,4] y)",
            f"r = Relu(x)\na = D(r)\n{_CONV.format('a').replace('y = D(c)', 'b = Relu(c)')}\nd = D(b)\n"
            "e = Conv(d, k)\ny = D(e)",
            _WEIGHT,
        )
    )
