"""Parameters of quantizers: what the integers of a constant stand for is finite, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.graph import QuantGraph
from qatc.frontends.common.params import make_params
from tests.graphs import loaded

HUGE = 3e38  # one step is within float32, two are not


def node_on(body: str, constants: str) -> QuantGraph:
    """A graph whose last node quantizes; a constant `w`, an input `x`."""
    return loaded(
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (int8[2,3] x) => (float[2,3] y) <{constants}> {{ {body} }}'
    )


def found(graph: QuantGraph, scale: list[float], zero: int = 0, **how: int) -> list[str]:
    """The codes that making the parameters of the graph's last node records; none where they are made."""
    scales = np.asarray(scale, np.float32)
    zeros = np.full(len(scale), zero, np.int8)
    params = make_params(graph, graph.nodes[-1], scales, zeros, "int8", shape=(2, 3), **how)
    codes = [d.code for d in graph.diagnostics.errors]
    assert (params is None) is bool(codes)
    return codes


SCALE = "float s = {1}"
DEQUANTIZE = "y = DequantizeLinear(w, s)"


@pytest.mark.parametrize(
    ("values", "scale", "zero", "codes"),
    [
        ("1, 0, -1, 1, 0, 1", HUGE, 0, []),
        ("1, 0, 2, 1, 0, 1", HUGE, 0, ["QAT201"]),
        ("1, 0, -2, 1, 0, 1", HUGE, 0, ["QAT201"]),
        ("5, 4, 3, 4, 4, 4", HUGE, 4, []),
        ("6, 4, 3, 4, 4, 4", HUGE, 4, ["QAT201"]),
        ("-128, 127, 0, 0, 0, 0", 2.6e36, 0, []),  # the last step that all integers may take
        ("-128, 127, 0, 0, 0, 0", 2.7e36, 0, ["QAT201"]),
    ],
)
def test_integers_of_a_constant_stand_for_finite_numbers(
    values: str, scale: float, zero: int, codes: list[str]
) -> None:
    graph = node_on(DEQUANTIZE, f"{SCALE}, int8[2,3] w = {{{values}}}")
    assert found(graph, [scale], zero) == codes


@pytest.mark.parametrize(
    ("values", "codes"), [("2.2e38, 0, 0, 0, 0, 0", []), ("2.2e38, 0, 0, -3.4e38, 0, 0", ["QAT201"])]
)
def test_so_do_floats_once_they_are_rounded(values: str, codes: list[str]) -> None:
    """The end of float32, which masks hold, is nearest to a step beyond it."""
    graph = node_on("y = QuantizeLinear(w, s)", f"{SCALE}, float[2,3] w = {{{values}}}")
    assert found(graph, [1.15e38]) == codes


@pytest.mark.parametrize(("high", "codes"), [(1, []), (2, ["QAT201"])])
def test_a_clip_above_is_looked_through(high: int, codes: list[str]) -> None:
    body = "c = Clip(w, low, high) y = DequantizeLinear(c, s)"
    ends = f"int8 low = {{-2}}, int8 high = {{{high}}}"
    graph = node_on(body, f"{SCALE}, {ends}, int8[2,3] w = {{9, 0, 0, 0, 0, -1}}")
    assert found(graph, [HUGE], qmin=-2, qmax=high) == codes


def test_what_is_not_known_is_not_judged() -> None:
    assert found(node_on("y = DequantizeLinear(x, s)", SCALE), [HUGE]) == []
    above = "r = Relu(w) y = DequantizeLinear(r, s)"
    assert found(node_on(above, f"{SCALE}, int8[2,3] w = {{2, 2, 2, 2, 2, 2}}"), [HUGE]) == []


@pytest.mark.parametrize(
    ("scale", "axis", "codes"),
    [([1.0, HUGE], 0, []), ([HUGE, 1.0], 0, ["QAT201"]), ([1.0, HUGE, 1.0], 1, []), ([1.0, 1.0, HUGE], -1, ["QAT201"])],
)
def test_each_channel_has_its_own_step(scale: list[float], axis: int, codes: list[str]) -> None:
    """The constant is 0 1 2 / 1 1 1."""
    graph = node_on(DEQUANTIZE, f"{SCALE}, int8[2,3] w = {{0, 1, 2, 1, 1, 1}}")
    assert found(graph, scale, axis=axis) == codes
