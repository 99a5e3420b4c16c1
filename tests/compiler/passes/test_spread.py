"""Constants that are spread to a shape which run time decides are read as they are."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.constants import fold_constants
from qatc.compiler.passes.spread import unspread
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded

CONSTANTS = "float[1,1] c = {3}, float[1,3] d = {1, 2, 4}, float two = {2}, int64[1] three = {3}, int64[1] zero = {0}"
SIZES = "a = Shape(x) b = Gather(a, zero) s = Concat<axis=0>(b, three)"


def text_of(nodes: str, sizes: str = SIZES) -> str:
    return (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[n,3] x, float[m,3] z) => (float[p,3] y) <{CONSTANTS}> '
        f"{{ {sizes} {nodes} }}"
    )


def unspread_graph(text: str) -> QuantGraph:
    graph = loaded(text)
    unspread(graph)
    fold_constants(graph)
    graph.clean()
    graph.verify(stripped=False)
    return graph


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("e = Expand(c, s) y = Mul(x, e)", ["Mul"]),
        (
            "e = Expand(c, s) f = Expand(d, s) g = Pow(two, f) h = Neg(g) i = Add(h, e) k = Mul(i, d) y = Div(x, k)",
            ["Div"],
        ),
        ("e = ConstantOfShape<value = float[1] {2.0}>(s) f = Mul(e, two) g = Greater(x, f) y = Where(g, f, x)", None),
        ("e = Expand(d, s) r = Relu(x) g = Less(r, e) y = Where(g, e, r)", ["Less", "Relu", "Where"]),
    ],
)
def test_no_tensor_is_spread_to_the_shape_of_another(nodes: str, left: list[str] | None) -> None:
    text = text_of(nodes)
    graph = unspread_graph(text)
    assert sorted(n.op for n in graph.nodes) == (left or ["Greater", "Where"])
    x = np.asarray([[-1, 2, 3.5], [0.5, 70, -8]], np.float32)
    (found,) = run_canonical(graph, x, x)
    np.testing.assert_array_equal(found, run(onnx.parser.parse_model(text), x, x)[0])


@pytest.mark.parametrize(
    "nodes",
    [
        "e = Expand(c, s) y = Mul(z, e)",  # another batch, which may be one
        "e = Expand(c, s) f = Mul(e, two) y = Add(f, z)",
    ],
)
def test_what_gives_a_result_its_shape_stays_spread(nodes: str) -> None:
    text = text_of(nodes)
    graph = unspread_graph(text)
    assert "Expand" in {n.op for n in graph.nodes}
    x, z = np.ones((2, 3), np.float32), np.full((1, 3), 5, np.float32)
    (found,) = run_canonical(graph, x, z)
    np.testing.assert_array_equal(found, run(onnx.parser.parse_model(text), x, z)[0])


def test_a_row_that_no_data_meets_stays_as_it_is() -> None:
    """What quantizes a class token behind its Expand is one quantizer, not two halves."""
    graph = loaded(text_of("e = Expand(d, s) f = Mul(e, two) r = Round(f) y = Concat<axis = 0>(r, x)"))
    before = graph.dump()
    assert not unspread(graph)
    assert graph.dump() == before
