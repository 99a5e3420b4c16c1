"""Floor, Ceil and Round in float islands: float error may flip them, and nothing else may."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.integer import Float
from qatc.compiler.result import Verification
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from qatc.compiler.verify.limits import Limits
from tests.agreeing import lowered
from tests.compiler.verify.cases import ONNX, emitted
from tests.graphs import net

# Squares of halves, in steps of one: every other one is a whole number, which two factors miss, from below or above.
FILE = "t = Mul(m, {part})\nu = Mul(t, {rest})\n"
PARTS = {"Floor": ("third", "three"), "Ceil": ("fifths", "other")}
MERGED = "steps = Mul(m, {factor})\n"
CONSTANTS = (
    "float third = {0.3}, float three = {3.333333}, float fifths = {0.6}, float other = {1.666667},"
    " float step = {0.25}, float one = {1}, float more = {1.0001}"
)


def _text(steps: str, way: str, behind: str) -> str:
    weight = np.eye(8, dtype=int) * 16
    return net(
        "(float[8,8] x) => (float[8,8] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nn = MatMul(a, w)\nm = Mul(n, n)\n" + steps + way + behind,
        f"int8[8,8] wq = {{{', '.join(map(str, weight.ravel()))}}}, {CONSTANTS}",
    )


def _verified(factor: str, way: str, mine: str, *, rounded: bool, limits: Limits | None = None) -> Verification:
    """The file against a graph that merged its factors; `mine` is how the graph rounds, `way` how the file does."""
    ends = [
        f"r{side} = Mul(whole{side}, step)\ny = B(r{side})" if rounded else f"y = Mul(whole{side}, step)"
        for side in "ab"
    ]
    part, rest = PARTS[way]
    file = onnx.parser.parse_model(_text(FILE.format(part=part, rest=rest), f"wholea = {way}(u)\n", ends[0]))
    graph = lowered(_text(MERGED.format(factor=factor), f"wholeb = {mine}(steps)\n", ends[1]))
    assert [op.op_type for op in graph.ops if isinstance(op, Float)] == ["Mul", "Mul", mine, "Mul"]
    feeds = {"x": np.arange(-32, 32, dtype=np.float32).reshape(8, 8) / 2}
    return verify(graph, ONNX, Simulation(file, "the file"), emitted(graph), [feeds], limits)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("way", ["Floor", "Ceil"])
def test_whole_numbers_that_float_error_reaches_may_fall_to_either_side(way: str, rounded: bool) -> None:
    found = _verified("one", way, way, rounded=rounded)
    assert found.passed
    (check,) = (check for check in found.local if check.tensor == "y")
    assert 0 < check.excused < 32
    strict = _verified("one", way, way, rounded=rounded, limits=Limits(max_lsb=0))
    assert not strict.passed


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("factor", "mine"), [("more", "Floor"), ("one", "Ceil"), ("one", "Round")])
def test_whole_numbers_farther_away_and_other_roundings_are_wrong(factor: str, mine: str, rounded: bool) -> None:
    """A ten-thousandth more than a whole number is no float error, and what lies between is nowhere near."""
    assert not _verified(factor, "Floor", mine, rounded=rounded).passed
