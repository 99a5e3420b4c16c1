"""Sizes that a graph computes become constants where they are known, round after round, and not where they are not."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.passes.constants import fold_constants
from qatc.compiler.passes.sizes import fold_sizes
from qatc.compiler.quant import QuantParams
from qatc.compiler.shapes import infer_shapes
from tests.graphs import loaded, net, to_model

CHUNK = """
    s{n} = Shape({x})
    c{n} = Gather<axis = 0>(s{n}, one)
    p{n} = Add(c{n}, unit)
    h{n} = Div(p{n}, two)
    t{n} = Mul(h{n}, unit)
    y{n} = Slice({x}, zero, t{n}, one)
"""
CONSTANTS = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] unit = {1}, int64[1] two = {2}"


def chunks(count: int, header: str = "(float[n,16,4] y0) => (float[n,k,4] z)") -> QuantGraph:
    """`y0` cut in half `count` times, each half computed from the shape of what is cut."""
    body, x = "", "y0"
    for n in range(1, count + 1):
        body += CHUNK.format(n=n, x=x)
        x = f"y{n}"
    graph = loaded(net(header, f"{body}\nz = Relu({x})", CONSTANTS))
    infer_shapes(graph)
    return graph


def test_chunks_within_chunks() -> None:
    graph = chunks(3)
    fold_sizes(graph)
    assert [n.op for n in graph.nodes] == ["Slice", "Slice", "Slice", "Relu"]
    assert [value_of(n.inputs[2]).tolist() for n in graph.nodes[:3]] == [[8], [4], [2]]  # type: ignore[union-attr]
    shape = graph.nodes[-1].inputs[0].shape
    assert shape is not None
    assert list(shape)[1:] == [2, 4]


def test_a_size_that_is_open_stays_computed() -> None:
    graph = chunks(1, "(float[n,m,4] y0) => (float[n,k,4] z)")
    before = [n.op for n in graph.nodes]
    fold_sizes(graph)
    assert [n.op for n in graph.nodes] == before


def test_an_index_beyond_the_shape_is_left_to_the_runtime() -> None:
    header = "(float[n,16] x) => (int64[1] y)"
    graph = loaded(net(header, "s = Shape(x)\ny = Gather<axis = 0>(s, five)", "int64[1] five = {5}"))
    infer_shapes_of(graph)
    fold_sizes(graph)
    assert [n.op for n in graph.nodes] == ["Shape", "Gather"]


def test_a_size_that_is_a_result_keeps_its_name() -> None:
    graph = loaded(
        net("(float[n,16] x) => (int64[1] y)", "s = Shape(x)\ny = Gather<axis = 0>(s, last)", "int64[1] last = {-1}")
    )
    infer_shapes(graph)
    fold_sizes(graph)
    assert [o.name for o in graph.outputs] == ["y"]
    assert [n.op for n in graph.nodes] == ["Identity"] or not graph.nodes


def infer_shapes_of(graph: QuantGraph) -> None:
    """Shapes by hand: ONNX's own inference refuses an index that is out of bounds."""
    for tensor in graph.tensors():
        if tensor.name == "s":
            tensor.shape = [2]


def test_a_quantized_tensor_of_sizes_becomes_integers() -> None:
    """A mask, say, that is computed from the shape of a map and fake-quantized: it is folded after the strip."""
    body = """
    s = Shape(x)
    n = Gather<axis = 0>(s, one)
    f = Cast<to = 1>(n)
    h = Div(f, half)
    z = Add(x, h)
    """
    constants = "int64[1] one = {1}, float half = {0.5}"
    graph = loaded(net("(float[n,16] x) => (float[n,16] z)", body, constants))
    graph.params["h"] = QuantParams((0.5,), (3,), "uint8")
    infer_shapes(graph)
    fold_sizes(graph)
    graph.verify()
    (add,) = graph.nodes
    assert value_of(add.inputs[1]).tolist() == [67]  # type: ignore[union-attr]
    assert graph.quant(add.inputs[1]) == QuantParams((0.5,), (3,), "uint8")


def test_what_is_taken_apart_step_by_step_is_known_in_parts() -> None:
    """tf2onnx's symmetric padding with an open batch: the sizes in another order, one by one, choose what is kept."""
    body = """
    s = Shape(x)
    p = Gather<axis = 0>(s, order)
    n, h, w, c = Split(p)
    f = Slice(p, two, four)
    r = ReduceProd(f)
    k = ConstantOfShape<value = bool[1] {1}>(h)
    m = ScatterElements(k, ends, no)
    y = Compress<axis = 2>(x, m)
    z = Reshape(y, r2)
    b = ConstantOfShape<value = int64[1] {1}>(n)
    q = Concat<axis = 0>(r, b)
    """
    constants = (
        "int64[4] order = {0, 2, 3, 1}, int64[1] two = {2}, int64[1] four = {4}, int64[2] ends = {1, -2}, "
        "bool[2] no = {0, 0}, int64[2] r2 = {-1, 24}"
    )
    graph = loaded(net("(float[n,3,6,2] x) => (float[k,24] z, int64[j] q)", body, constants))
    infer_shapes(graph)
    fold_sizes(graph)
    (kept,) = [n for n in graph.nodes if n.op == "Gather" and n.attr("axis") == 2]
    assert value_of(kept.inputs[1]).tolist() == [0, 2, 3, 5]  # type: ignore[union-attr]
    (joined,) = [n for n in graph.nodes if n.op == "Concat"]
    assert value_of(joined.inputs[0]).tolist() == [6]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "sizes", "stated"),
    [
        ("n,16,4,4", "n two eight four four", [0, 2, 8, 4, 4]),  # halves of channels, shuffled
        ("n,16,4,4", "n rest", [0, 256]),  # x.view(x.size(0), -1)
        ("16,n,4,4", "n rest", [-1, 256]),  # not the size in that place
        ("n,16,h,w", "n four rest", [0, 4, -1]),
        ("n,16,h,w", "n four four h rest", None),
        ("n,16,h,w", "n w h rest", [0, -1, 0, 16]),
        ("n,16,h,w", "n w w rest", None),  # the name of another size
    ],
)
def test_a_view_of_an_open_batch_has_constant_sizes(shape: str, sizes: str, stated: list[int] | None) -> None:
    names = shape.split(",")
    taken = "".join(
        f"i{name} = Constant<value = int64[1] {{{names.index(name)}}}>()\n{name} = Gather<axis = 0>(s, i{name})\n"
        for name in names
        if name.isalpha()
    )
    joined = ", ".join(sizes.split())
    body = f"a = Relu(x)\ns = Shape(a)\n{taken}t = Concat<axis = 0>({joined})\nb = Reshape(a, t)\ny = Relu(b)"
    constants = "int64[1] two = {2}, int64[1] eight = {8}, int64[1] four = {4}, int64[1] rest = {-1}"
    result = ",".join("?" for _ in sizes.split())
    model = net(f"(float[{shape}] x) => (float[{result}] y)", body, constants)
    graph = loaded(model)
    fold_constants(graph)
    infer_shapes(graph)
    fold_sizes(graph)
    graph.verify()
    (reshape,) = [n for n in graph.nodes if n.op == "Reshape"]
    value = value_of(reshape.inputs[1])
    assert (None if value is None else value.tolist()) == stated
    assert ("Shape" in {n.op for n in graph.nodes}) == (stated is None)
    if stated is None:
        return
    before, after = onnx.parser.parse_model(model), to_model(graph)
    for size in (1, 3):
        dims = [size if d.isalpha() else int(d) for d in names]
        x = np.arange(math.prod(dims), dtype=np.float32).reshape(dims)
        want, got = (ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (before, after))
        np.testing.assert_array_equal(got, want)


def test_a_view_that_is_a_result_stays_as_it_is() -> None:
    """The file may declare the sizes that it was traced with."""
    body = "s = Shape(x)\nn = Gather<axis = 0>(s, zero)\nt = Concat<axis = 0>(n, rest)\ny = Reshape(x, t)"
    graph = loaded(net("(float[n,4,4] x) => (float[1,16] y)", body, "int64[1] zero = {0}, int64[1] rest = {-1}"))
    infer_shapes(graph)
    fold_sizes(graph)
    assert [n.op for n in graph.nodes] == ["Shape", "Gather", "Concat", "Reshape"]
