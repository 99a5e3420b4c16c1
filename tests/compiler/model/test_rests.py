"""Sizes that a Reshape leaves open."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qatc.compiler.graph import shape_of
from qatc.compiler.model.rests import rests_of_reshapes
from qatc.compiler.shapes import infer_shapes
from tests.graphs import loaded


def declared(name: str, dims: list[int | str | None]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)


def told(given: list[int | str | None], made: list[int | str | None]) -> list[int | str] | None:
    """The shape that is told of one Reshape's result."""
    node = onnx.helper.make_node("Reshape", ["x", "s"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [declared("x", given)], [], value_info=[declared("y", made)])
    found = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in rests_of_reshapes(graph)]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("given", "made", "whole"),
    [
        (["n", 8, 4, 4], ["n", 8, "u"], ["n", 8, 16]),
        (["n", 8, 16], ["u", 8, 4, 4], ["n", 8, 4, 4]),
        ([2, 3, 4], ["u", 6], [4, 6]),
        (["n", "m", 8], ["n", "m", 2, "u"], ["n", "m", 2, 4]),
        (["n", "m", 8], ["n", "u", 2, 4], ["n", "m", 2, 4]),
        (["n", 8, 4], ["u", 8], None),  # n * 4: no size and no name
        (["n", "m", 4], ["n", "u"], None),
        (["n", 8, 4], ["u", "v", 4], None),
        (["n", 8, 4], ["u", "u", 4], None),
        (["n", 8, 4], ["n", "n", 4], None),
        (["n", 9], ["n", 2, "u"], None),  # no whole number
        (["n", 0], ["n", "u"], None),
        ([None, 8, 4], ["u", 8, 4], None),
        (["n", 8, 4], ["n", 8, 4], None),
    ],
)
def test_the_rest_of_a_reshape(
    given: list[int | str | None], made: list[int | str | None], whole: list[int | str] | None
) -> None:
    assert told(given, made) == whole


@given(st.lists(st.integers(1, 5) | st.sampled_from("nm"), min_size=1, max_size=4), st.data())
def test_what_is_told_holds_whatever_the_open_sizes_are(before: list[int | str], data: st.DataObject) -> None:
    after: list[int | str] = data.draw(st.permutations(before))
    place = data.draw(st.integers(0, len(after)))
    known = [*after[:place], *data.draw(st.lists(st.integers(1, 3), max_size=1)), *after[place + 1 :]]
    known.insert(min(place, len(known)), "u")
    sizes: dict[str, int] = data.draw(st.fixed_dictionaries({"n": st.integers(1, 4), "m": st.integers(1, 4)}))
    numbers = [sizes.get(str(d), d) for d in before]
    rest = Fraction(prod(map(int, numbers)), prod(int(sizes.get(str(d), d)) for d in known if d != "u"))
    assume(rest.denominator == 1)
    found = told(list(before), list(known))
    if found is not None:
        whole = [int(sizes.get(str(d), d)) for d in found]
        asked = [-1 if d == "u" else int(sizes.get(str(d), d)) for d in known]
        assert np.zeros(list(map(int, numbers))).reshape(asked).shape == tuple(whole)


def test_an_open_batch_opens_no_other_size() -> None:
    """`flatten(2)` as PyTorch's legacy exporter writes it, and what is made of its result behind that."""
    body = (
        "s = Shape(x) b = Slice(s, zero, two) w = Concat<axis=0>(b, minus) f = Reshape(x, w)"
        " t = Relu(f) r = Reshape(t, back) y = Abs(r)"
    )
    constants = "<int64[1] zero = {0}, int64[1] two = {2}, int64[1] minus = {-1}, int64[4] back = {-1, 8, 4, 4}>"
    text = f"g (float[n,8,4,4] x) => (float[A,B,C,D] y) {constants} {{ {body} }}"
    graph = loaded(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    infer_shapes(graph)
    shapes = {t.name: shape_of(t) for n in graph.nodes for t in n.outputs}
    assert (shapes["f"], shapes["t"], shapes["r"]) == (("n", 8, 16), ("n", 8, 16), ("n", 8, 4, 4))
