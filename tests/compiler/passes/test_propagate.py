"""Parameters move through layout operators, clamps, concatenation and pooling: forward, and backward."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.propagate import propagate
from tests.graphs import expect, net, stripped


def after_propagate(signature: str, body: str, constants: str = "", *, opset: int = 17) -> QuantGraph:
    graph = stripped(net(signature, body, constants, opset=opset))
    propagate(graph)
    return graph


# -- forward ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "constants"),
    [
        ("Transpose<perm = [0, 2, 3, 1]>(a)", ""),
        ("Reshape(a, i)", "int64[2] i = {1, -1}"),
        ("Flatten(a)", ""),
        ("Squeeze(a, i)", "int64[1] i = {0}"),
        ("Unsqueeze(a, i)", "int64[1] i = {0}"),
        ("Slice(a, i, j)", "int64[1] i = {0}, int64[1] j = {1}"),
        ("Gather(a, i)", "int64[1] i = {0}"),
        ("Expand(a, i)", "int64[4] i = {2, 4, 4, 4}"),
        ("Tile(a, i)", "int64[4] i = {2, 1, 1, 1}"),
        ("DepthToSpace<blocksize = 2>(a)", ""),
        ("SpaceToDepth<blocksize = 2>(a)", ""),
        ("MaxPool<kernel_shape = [2, 2]>(a)", ""),
        ("GlobalMaxPool(a)", ""),
        ('Resize<mode = "nearest">(a, , r)', "float[4] r = {1.0, 1.0, 2.0, 2.0}"),
        ("Pad(a, p)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"),
        ("Pad(a, p, v)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float v = {-2.5}"),
        ('Pad<mode = "reflect">(a, p)', "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"),
    ],
)
def test_what_is_moved_stays_on_its_grid(call: str, constants: str) -> None:
    graph = after_propagate("(float[1,4,4,4] x) => (float[M] y)", f"a = A(x)\nm = {call}\ny = Sigmoid(m)", constants)
    assert str(graph.params["m"]) == "uint8 scale 0.5 zero 128"
    assert graph.origin["m"] == "m"


@pytest.mark.parametrize("target", ["onnx", "qdq"])
def test_an_output_that_is_turned_and_rounded_leaves_as_it_is(target: str, tmp_path: Path) -> None:
    """ONNX Runtime 1.32 moves a Transpose of an output behind the quantizer, and rounds the output with it."""
    body = "a = A(x)\nh = ReduceMean<axes = [1], keepdims = 1>(a)\nm = Transpose(h)\nb = B(m)\ny = Relu(b)"
    text = net("(float[5,4,3] x) => (float[3,1,5] y, float[5,1,3] h)", body)
    graph = stripped(text)
    propagate(graph)
    assert [n.op for n in graph.nodes] == ["ReduceMean", "Requantize", "Transpose", "Relu"]
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", target=target, output=tmp_path / "out")
    assert result.verification is not None
    assert result.verification.passed


def test_what_is_moved_is_not_rounded_onto_its_own_grid() -> None:
    """Where some read it rounded, and some as it is: behind the move both are the same."""
    body = "a = A(x)\nm = Flatten(a)\nq = {}(m)\ny = Mul(m, q)"
    signature = "(float[1,4,4,4] x) => (float[M] y)"
    assert [n.op for n in after_propagate(signature, body.format("A")).nodes] == ["Flatten", "Mul"]
    assert "Requantize" in [n.op for n in after_propagate(signature, body.format("B")).nodes]


@pytest.mark.parametrize(
    ("call", "constants"),
    [
        ("Pad(a, p, v)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float v = {0.3}"),  # between two steps of the grid
        ("Pad(a, p, v)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float v = {100.0}"),  # beyond its end
        ('Resize<mode = "linear">(a, , r)', "float[4] r = {1.0, 1.0, 2.0, 2.0}"),
        ("AveragePool<kernel_shape = [2, 2]>(a)", ""),
        ("Sigmoid(a)", ""),
        ("Add(a, a)", ""),
    ],
)
def test_what_computes_is_not_moved(call: str, constants: str) -> None:
    graph = after_propagate("(float[1,4,4,4] x) => (float[M] y)", f"a = A(x)\nm = {call}\ny = Sigmoid(m)", constants)
    assert "m" not in graph.params


def test_clamps_narrow_the_range() -> None:
    graph = after_propagate(
        "(float[2] x) => (float[2] p, float[2] q, float[2] r)",
        """
        a = A(x)
        b = Relu(a)
        c = Clip(b, , six)
        d = Clip(a, one, )
        p = Sigmoid(b)
        q = Sigmoid(c)
        r = Sigmoid(d)
        """,
        "float six = {6.0}, float one = {-1.0}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b<uint8[128,255] scale 0.5 zero 128> = Relu(x)
        c<uint8[128,140] scale 0.5 zero 128> = Clip(b, _, 6)
        d<uint8[126,255] scale 0.5 zero 128> = Clip(x, -1)
        p = Sigmoid(b)
        q = Sigmoid(c)
        r = Sigmoid(d)
        output p
        output q
        output r
        """,
    )


def test_a_clip_off_the_grid_stays() -> None:
    """Its bound is no integer of the grid: the clipped value is a number that the grid does not have."""
    graph = after_propagate(
        "(float[2] x) => (float[2] y)", "a = A(x)\nb = Clip(a, , c)\ny = Sigmoid(b)", "float c = {1.3}"
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b = Clip(x, _, 1.29999995)
        y = Sigmoid(b)
        output y
        """,
    )


def test_a_clip_beyond_the_range_changes_nothing() -> None:
    graph = after_propagate(
        "(float[2] x) => (float[2] y)",
        "a = A(x)\nb = Clip(a, l, h)\ny = Sigmoid(b)",
        "float l = {-1000.3}, float h = {64.2}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b<uint8 scale 0.5 zero 128> = Clip(x, -1000.29999, 64.1999969)
        y = Sigmoid(b)
        output y
        """,
    )


def test_a_clip_whose_bounds_are_computed_stays() -> None:
    graph = after_propagate("(float[2] x, float h) => (float[2] y)", "a = A(x)\nb = Clip(a, , h)\ny = Sigmoid(b)")
    assert list(graph.params) == ["x"]


def test_concat_of_one_grid() -> None:
    graph = after_propagate(
        "(float[2] x, float[2] u) => (float[4] y)",
        """
        a = A(x)
        b = A(u)
        r = Relu(b)
        m = Concat<axis = 0>(a, r)
        y = Sigmoid(m)
        """,
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        input u<uint8 scale 0.5 zero 128>
        r<uint8[128,255] scale 0.5 zero 128> = Relu(u)
        m<uint8 scale 0.5 zero 128> = Concat[axis=0](x, r)
        y = Sigmoid(m)
        output y
        """,
    )


def test_concat_of_different_grids_stays() -> None:
    graph = after_propagate(
        "(float[2] x, float[2] u) => (float[4] y)",
        """
        a = A(x)
        b = B(u)
        m = Concat<axis = 0>(a, b)
        y = Sigmoid(m)
        """,
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        input u<uint8 scale 0.25 zero 0>
        m = Concat[axis=0](x, u)
        y = Sigmoid(m)
        output y
        """,
    )


def test_every_output_of_a_split() -> None:
    graph = after_propagate(
        "(float[4] x) => (float[2] y, float[2] z)",
        """
        a = A(x)
        b, c = Split(a)
        y = Sigmoid(b)
        z = B(c)
        """,
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b<uint8 scale 0.5 zero 128>, z<uint8 scale 0.25 zero 0> = Split(x)
        y = Sigmoid(b)
        output y
        output z
        """,
    )


def test_the_channel_axis_moves() -> None:
    graph = after_propagate(
        "(float[1,2,3,4] x) => (float[12,2] y)",
        """
        q = QuantizeLinear<axis = 1>(x, s, z)
        a = DequantizeLinear<axis = 1>(q, s, z)
        b = Transpose<perm = [0, 2, 3, 1]>(a)
        c = Reshape(b, i)
        y = Sigmoid(c)
        """,
        "float[2] s = {0.5, 0.25}, uint8[2] z = {0, 128}, int64[2] i = {12, 2}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.25..0.5 zero 0..128 axis 1 x2>
        b<uint8 scale 0.25..0.5 zero 0..128 axis 3 x2> = Transpose[perm=[0,2,3,1]](x)
        c<uint8 scale 0.25..0.5 zero 0..128 axis 1 x2> = Reshape(b, i:int64[2]{12,2})
        y = Sigmoid(c)
        output y
        """,
    )


def test_channels_that_do_not_stay_whole_end_there() -> None:
    graph = after_propagate(
        "(float[1,2,3,4] x) => (float[24] y)",
        """
        q = QuantizeLinear<axis = 2>(x, s, z)
        a = DequantizeLinear<axis = 2>(q, s, z)
        b = Reshape(a, i)
        y = Sigmoid(b)
        """,
        "float[3] s = {0.5, 0.25, 1.0}, uint8[3] z = {0, 128, 3}, int64[1] i = {24}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.25..1 zero 0..128 axis 2 x3>
        b = Reshape(x, 24)
        y = Sigmoid(b)
        output y
        """,
    )


@pytest.mark.parametrize(
    ("pads", "zeros", "carries"),
    [
        ("0, 0, 1, 1, 0, 0, 1, 1", "7, 7", True),
        ("0, 0, 1, 1, 0, 0, 1, 1", "7, 8", False),  # no one integer is the zero of both
        ("0, 1, 0, 0, 0, 0, 0, 0", "7, 7", False),  # a channel of its own, which has no scale
    ],
)
def test_zeros_around_channels(pads: str, zeros: str, carries: bool) -> None:
    body = (
        "q = QuantizeLinear<axis = 1>(x, s, z)\na = DequantizeLinear<axis = 1>(q, s, z)\nb = Pad(a, p)\ny = Sigmoid(b)"
    )
    constants = f"float[2] s = {{0.5, 0.25}}, uint8[2] z = {{{zeros}}}, int64[8] p = {{{pads}}}"
    graph = after_propagate("(float[1,2,3,4] x) => (float[M] y)", body, constants)
    assert graph.params.get("b") == (graph.params["x"] if carries else None)


# -- backward ---------------------------------------------------------------------------------------------------------
def test_rounding_moves_in_front_of_movement() -> None:
    graph = after_propagate(
        "(float[2,3] x) => (float[6] y)",
        """
        n = Sigmoid(x)
        t = Transpose(n)
        f = Reshape(t, i)
        y = A(f)
        """,
        "int64[1] i = {6}",
    )
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.5 zero 128> = Sigmoid(x)
        t<uint8 scale 0.5 zero 128> = Transpose(n)
        y<uint8 scale 0.5 zero 128> = Reshape(t, 6)
        output y
        """,
    )
    assert graph.origin == {"y": "y"}  # n and t hold unrounded values in the file


def test_rounding_per_channel_moves_in_front_of_a_transpose() -> None:
    """As NNCF quantizes what a depthwise convolution of TensorFlow reads, channels last."""
    graph = after_propagate(
        "(float[1,2,3,4] x) => (float[1,3,4,2] y)",
        """
        n = Sigmoid(x)
        t = Transpose<perm = [0, 2, 3, 1]>(n)
        q = QuantizeLinear<axis = 3>(t, s, z)
        y = DequantizeLinear<axis = 3>(q, s, z)
        """,
        "float[2] s = {0.25, 0.5}, uint8[2] z = {0, 128}",
    )
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.25..0.5 zero 0..128 axis 1 x2> = Sigmoid(x)
        y<uint8 scale 0.25..0.5 zero 0..128 axis 3 x2> = Transpose[perm=[0,2,3,1]](n)
        output y
        """,
    )


@pytest.mark.parametrize("call", ["Reshape(n, i)", "Squeeze(n)"])
def test_rounding_per_channel_stays_behind_what_moves_elements_otherwise(call: str) -> None:
    body = f"n = Sigmoid(x)\nt = {call}\nq = QuantizeLinear<axis = 0>(t, s, z)\ny = DequantizeLinear<axis = 0>(q, s, z)"
    constants = "float[2] s = {0.25, 0.5}, uint8[2] z = {0, 128}, int64[2] i = {2, 3}"
    graph = after_propagate("(float[1,2,3] x) => (float[2,3] y)", body, constants)
    assert set(graph.params) == {"y"}


def test_rounding_moves_in_front_of_concat_and_pooling() -> None:
    graph = after_propagate(
        "(float[1,2,4,4] x) => (float[1,4,2,2] y)",
        """
        n = Sigmoid(x)
        m = Neg(x)
        c = Concat<axis = 1>(n, m)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
        y = A(p)
        """,
    )
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.5 zero 128> = Sigmoid(x)
        m<uint8 scale 0.5 zero 128> = Neg(x)
        c<uint8 scale 0.5 zero 128> = Concat[axis=1](n, m)
        y<uint8 scale 0.5 zero 128> = MaxPool[kernel_shape=[2,2] strides=[2,2]](c)
        output y
        """,
    )


@pytest.mark.parametrize(
    ("clamp", "span"),
    [
        pytest.param("r = Relu(p)", (128, 255), id="an end on the grid"),
        pytest.param("r = Clip(p, low, high)", (127, 129), id="ends between its points"),
        pytest.param("c = Clip(p, low, high)\nr = Relu(c)", (128, 129), id="one behind another"),
    ],
)
def test_rounding_moves_in_front_of_a_clamp_of_what_is_moved(clamp: str, span: tuple[int, int]) -> None:
    """As a clamp of the integers: the largest of them is found in 8 bits."""
    graph = after_propagate(
        "(float[1,1,4,4] x, float[1,1,4,4] u) => (float[1,1,2,2] y)",
        f"s = Add(x, u)\np = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s)\n{clamp}\ny = A(r)",
        "float low = {-0.3}, float high = {0.6}",
    )
    for name in ("s", "p"):
        assert (graph.params[name].qmin, graph.params[name].qmax) == span
    assert graph.origin["p"] == graph.origin["y"]


def test_a_clamp_that_is_not_alone_keeps_its_rounding() -> None:
    graph = after_propagate(
        "(float[1,1,4,4] x, float[1,1,4,4] u) => (float[1,1,2,2] y, float[1,1,2,2] z)",
        "s = Add(x, u)\np = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s)\nr = Relu(p)\ny = A(r)\nz = Exp(p)",
    )
    assert "p" not in graph.params


def test_a_reader_of_the_unrounded_value_forbids_it() -> None:
    graph = after_propagate(
        "(float[2,3] x) => (float[3,2] y, float[2,3] z)",
        """
        n = Sigmoid(x)
        t = Transpose(n)
        y = A(t)
        z = Neg(n)
        """,
    )
    expect(
        graph,
        """
        input x
        n = Sigmoid(x)
        y<uint8 scale 0.5 zero 128> = Transpose(n)
        z = Neg(n)
        output y
        output z
        """,
    )


def test_readers_that_round_differently_forbid_it() -> None:
    graph = after_propagate(
        "(float[2,3] x) => (float[3,2] y, float[6] z)",
        """
        n = Sigmoid(x)
        t = Transpose(n)
        u = Flatten(n)
        y = A(t)
        z = B(u)
        """,
    )
    expect(
        graph,
        """
        input x
        n = Sigmoid(x)
        y<uint8 scale 0.5 zero 128> = Transpose(n)
        z<uint8 scale 0.25 zero 0> = Flatten(n)
        output y
        output z
        """,
    )


def test_readers_of_the_shape_do_not_forbid_it() -> None:
    graph = after_propagate(
        "(float[2,3] x) => (float[3,2] y, int64[2] z)",
        """
        n = Sigmoid(x)
        t = Transpose(n)
        y = A(t)
        z = Shape(n)
        """,
    )
    assert str(graph.params["n"]) == "uint8 scale 0.5 zero 128"


def test_a_graph_output_forbids_it() -> None:
    graph = after_propagate(
        "(float[2,3] x) => (float[2,3] n, float[3,2] y)", "n = Sigmoid(x)\nt = Transpose(n)\ny = A(t)"
    )
    assert "n" not in graph.params
    assert [n.op for n in graph.nodes] == ["Sigmoid", "Requantize", "Transpose"]


def test_a_pad_value_off_the_grid_forbids_it() -> None:
    graph = after_propagate(
        "(float[2] x) => (float[3] y)",
        "n = Sigmoid(x)\np = Pad(n, i, v)\ny = A(p)",
        "int64[2] i = {1, 0}, float v = {0.3}",
    )
    assert list(graph.params) == ["y"]


def test_a_split_rounded_in_two_ways_stays() -> None:
    graph = after_propagate(
        "(float[4] x) => (float[2] y, float[2] z)",
        """
        n = Sigmoid(x)
        b, c = Split(n)
        y = A(b)
        z = B(c)
        """,
    )
    expect(
        graph,
        """
        input x
        n = Sigmoid(x)
        y<uint8 scale 0.5 zero 128>, z<uint8 scale 0.25 zero 0> = Split(n)
        output y
        output z
        """,
    )


def test_a_tensor_that_is_concatenated_with_itself() -> None:
    graph = after_propagate("(float[2] x) => (float[4] y)", "n = Sigmoid(x)\nc = Concat<axis = 0>(n, n)\ny = A(c)")
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.5 zero 128> = Sigmoid(x)
        y<uint8 scale 0.5 zero 128> = Concat[axis=0](n, n)
        output y
        """,
    )


def test_a_function_is_rounded_for_each_reader_that_moves_it_onto_a_grid_of_its_own() -> None:
    """A table for each grid: in YOLO's neck the same SiLU goes onto one grid in a Concat, onto another upsampled."""
    graph = after_propagate(
        "(float[1,1,2,2] x) => (float[1,2,2,2] y, float[1,1,4,4] z, float[1,1,4] t)",
        """
        a = A(x)
        s = Sigmoid(a)
        f = Mul(a, s)
        b = B(f)
        m = Concat<axis = 1>(b, b)
        y = Relu(m)
        r = Resize<mode = "nearest">(f, , sizes)
        c = C(r)
        z = Neg(c)
        d = Reshape(f, shape)
        t = C(d)
        """,
        "float[4] sizes = {1.0, 1.0, 2.0, 2.0}, int64[3] shape = {1, 1, 4}",
    )
    made = {n.name: n for n in graph.nodes if n.op == "Requantize"}
    assert sorted(str(graph.quant(n.outputs[0])) for n in made.values()) == [
        "int8 scale 0.125 zero 3",  # for Resize and Reshape together
        "uint8 scale 0.25 zero 0",
    ]
    moved = {n.op: n.inputs[0] for n in graph.nodes if n.op in ("Resize", "Reshape")}
    assert moved["Resize"] is moved["Reshape"]


@pytest.mark.parametrize("of", ["x", "p"])  # a float, and the raw result of a product: no table
def test_what_is_no_function_of_8_bits_is_not_rounded_for_one_reader(of: str) -> None:
    graph = after_propagate(
        "(float[1,1,2,2] x, float[1,1,2,2] u) => (float[1,1,2,2] y, float[1,1,4,4] z)",
        f"""
        a = A(u)
        p = MatMul(a, a)
        s = Sigmoid({of})
        f = Mul({of}, s)
        y = B(f)
        r = Resize<mode = "nearest">(f, , sizes)
        z = C(r)
        """,
        "float[4] sizes = {1.0, 1.0, 2.0, 2.0}",
    )
    assert [n.outputs[0].name for n in graph.nodes if n.op == "Requantize"] == ["y"]
