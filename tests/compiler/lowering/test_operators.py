"""Everything but products: pairs, pools, concatenation, movement."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Elementwise, Move, Pool, Rescale
from qatc.compiler.reference import execute
from tests.agreeing import lowered_net, reasons
from tests.graphs import expect


# -- pairs, pools, concatenation -----------------------------------------------------------------------------------
def test_sums_and_products_of_two_tensors() -> None:
    graph = lowered_net(
        "(float[2] x, float[2] u) => (float[2] y)",
        "a = A(x)\nb = B(u)\ns = Sub(a, b)\nd = C(s)\nk = D(c)\nm = Mul(d, k)\ny = B(m)",
        "float[2] c = {0.5, 1.0}",
    )
    expect(
        graph,
        """
        input x<float32 2>
        input u<float32 2>
        constant c_int8<uint8 scale 0.0625 zero 128 2> {136,144}
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](u)
        s_quantized<uint8 scale 0.125 zero 131 2> = Elementwise[hi=255 lo=0 op=Sub](x_quantized, u_quantized)
        y_quantized<uint8 scale 0.25 zero 0 2> = Elementwise[hi=255 lo=0 op=Mul](s_quantized, c_int8)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


@pytest.mark.parametrize(
    "body",
    [
        "s = Sum(a, b, a, k)",
        "p = Add(a, b)\nq = Add(p, a)\ns = Add(q, k)",
        "p = Add(a, b)\nq = Add(a, k)\ns = Add(p, q)",
    ],
)
def test_a_sum_of_many_is_rounded_once(body: str) -> None:
    graph = lowered_net(
        "(float[2] x, float[2] u) => (float[2] y)",
        f"a = A(x)\nb = B(u)\nk = D(c)\n{body}\ny = C(s)",
        "float[2] c = {0.5, 1.0}",
    )
    (total,) = [op for op in graph.ops if isinstance(op, Elementwise)]
    assert (total.op, total.inputs) == ("Add", ("x_quantized", "u_quantized", "x_quantized", "c_int8"))
    assert not reasons(graph)
    feeds = {"x": np.float32([0.4, -3.3]), "u": np.float32([0.06, 1.1])}
    a, b = np.rint(feeds["x"] / 0.5) * 0.5, np.rint(np.maximum(feeds["u"], 0) / 0.25) * 0.25
    want = np.rint((2 * a + b + [0.5, 1.0]) / 0.125) * 0.125
    assert execute(graph, feeds, get_profile("onnx"))["y"].tolist() == want.tolist()


def test_a_partial_sum_that_somebody_else_reads_is_made_in_float() -> None:
    graph = lowered_net(
        "(float[2] x, float[2] u) => (float[2] y, float[2] p)",
        "a = A(x)\nb = B(u)\np = Add(a, b)\ns = Add(p, a)\ny = C(s)",
    )
    assert reasons(graph) == [
        "Add: its result is not quantized by the model",
        "Add: its input is not quantized by the model",
    ]


@pytest.mark.parametrize(
    ("call", "mode", "kernel", "pads", "keepdims"),
    [
        ("AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)", "average", (2, 2), (0, 0, 0, 0), True),
        ('AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(a)', "average", (2, 2), (0, 0, 1, 1), True),
        ("AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(a)", "average", (2, 2), (0, 0, 0, 0), True),
        ("GlobalAveragePool(a)", "average", (), (), True),
        ("ReduceMean<axes = [2, 3], keepdims = 1>(a)", "average", (), (), True),
        ("ReduceMean<axes = [-1, -2], keepdims = 0>(a)", "average", (), (), False),
        ("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)", "max", (3, 3), (1, 1, 1, 1), True),
        ("GlobalMaxPool(a)", "max", (), (), True),
    ],
)
def test_pools(call: str, mode: str, kernel: tuple[int, ...], pads: tuple[int, ...], keepdims: bool) -> None:
    graph = lowered_net("(float[1,2,4,4] x) => (float[M] y)", f"a = A(x)\np = {call}\ny = A(p)")
    (pool,) = [op for op in graph.ops if isinstance(op, Pool)]
    assert (pool.mode, pool.kernel, pool.pads, pool.keepdims) == (mode, kernel, pads, keepdims)
    assert not reasons(graph)


def test_a_mean_of_means_is_one() -> None:
    """`x.mean(3).mean(2)`, which many networks end in."""
    means = "m = ReduceMean<axes = [3], keepdims = 0>(a)\np = ReduceMean<axes = [2], keepdims = 0>(m)"
    graph = lowered_net("(float[1,2,4,4] x) => (float[M] y)", f"a = A(x)\n{means}\ny = A(p)")
    (pool,) = [op for op in graph.ops if isinstance(op, Pool)]
    assert (pool.mode, pool.kernel, pool.keepdims) == ("average", (), False)
    assert not reasons(graph)


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "moves"),
    [
        ("1,4,3", "2", 0, 0),
        ("1,4,3", "1", 0, 1),  # the tokens of a transformer, [N, T, C]
        ("1,4,3", "1", 1, 2),
        ("1,4,4,3", "1, 2", 0, 1),  # the positions of an image, [N, H, W, C]
        ("1,4,4,3", "-3, -2", 1, 2),
    ],
)
def test_means_over_other_dimensions(shape: str, axes: str, keepdims: int, moves: int) -> None:
    """The averaged dimensions go behind the other two first, and back where they are kept."""
    graph = lowered_net(
        f"(float[{shape}] x) => (float[M] y)",
        f"a = A(x)\np = ReduceMean<axes = [{axes}], keepdims = {keepdims}>(a)\ny = A(p)",
    )
    assert not reasons(graph)
    assert len([op for op in graph.ops if isinstance(op, Move)]) == moves


def test_concat_rescales_each_input() -> None:
    graph = lowered_net(
        "(float[2] x, float[2] u) => (float[4] y)",
        "a = A(x)\nb = B(u)\nc = Concat<axis = -1>(a, b)\nr = Relu(c)\ny = C(r)",
    )
    expect(
        graph,
        """
        input x<float32 2>
        input u<float32 2>
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](u)
        c_quantized<uint8[131,255] scale 0.125 zero 131 4> = Concat[axis=0 hi=255 lo=131](x_quantized, u_quantized)
        y<float32 4> = Dequantize(c_quantized)
        output y
        """,
    )


# -- movement ------------------------------------------------------------------------------------------------------
def test_movement_and_shape_arithmetic() -> None:
    graph = lowered_net(
        "(float[N,2,3] x) => (float[N,M] y)",
        """
        a = A(x)
        s = Shape(a)
        n = Gather(s, zero)
        d = Concat<axis = 0>(n, rest)
        r = Reshape(a, d)
        y = A(r)
        """,
        "int64[1] zero = {0}, int64[1] rest = {-1}",
    )
    expect(
        graph,
        """
        input x<float32 Nx2x3>
        constant zero<int64 1> {0}
        constant rest<int64 1> {-1}
        x_quantized<uint8 scale 0.5 zero 128 Nx2x3> = Quantize[hi=255 lo=0](x)
        s<int64 3> = Float[op_type=Shape](x_quantized)
        n<int64 1> = Move[op_type=Gather](s, zero)
        d<int64 2> = Move[axis=0 op_type=Concat](n, rest)
        y_quantized<uint8 scale 0.5 zero 128 NxM> = Move[op_type=Reshape](x_quantized, d)
        y<float32 NxM> = Dequantize(y_quantized)
        output y
        """,
    )


def test_movement_onto_another_grid_rescales_behind_it() -> None:
    graph = lowered_net("(float[4] x) => (float[2] y, float[2] z)", "a = A(x)\nb, c = Split(a)\ny = Relu(b)\nz = B(c)")
    expect(
        graph,
        """
        input x<float32 4>
        x_quantized<uint8 scale 0.5 zero 128 4> = Quantize[hi=255 lo=0](x)
        b_quantized<uint8 scale 0.5 zero 128 2>, z_moved<uint8 scale 0.5 zero 128 2> =
            Move[op_type=Split](x_quantized)
        z_quantized<uint8 scale 0.25 zero 0 2> = Rescale[hi=255 lo=0](z_moved)
        y_quantized<uint8[128,255] scale 0.5 zero 128 2> = Rescale[hi=255 lo=128](b_quantized)
        y<float32 2> = Dequantize(y_quantized)
        z<float32 2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_movement_into_a_narrower_range_clamps() -> None:
    graph = lowered_net(
        "(float[2,3] x) => (float[3,2] y)",
        "a = A(x)\nt = Transpose(a)\nq = QuantizeLinear(t, sA, zA)\nc = Clip(q, l, h)\ny = DequantizeLinear(c, sA, zA)",
        "uint8 l = {100}, uint8 h = {200}",
    )
    expect(
        graph,
        """
        input x<float32 2x3>
        x_quantized<uint8 scale 0.5 zero 128 2x3> = Quantize[hi=255 lo=0](x)
        y_moved<uint8 scale 0.5 zero 128 3x2> = Move[op_type=Transpose](x_quantized)
        y_quantized<uint8[100,200] scale 0.5 zero 128 3x2> = Rescale[hi=200 lo=100](y_moved)
        y<float32 3x2> = Dequantize(y_quantized)
        output y
        """,
    )


@pytest.mark.parametrize(("last", "clamped"), [(200, False), (201, True)])
def test_a_constant_moved_into_a_narrower_range_is_clamped_where_it_leaves_it(last: int, *, clamped: bool) -> None:
    """A table reads back with the range of its type: qdq packages have no other, what its readers state they do say."""
    graph = lowered_net(
        "(float[4] x) => (float[4] y)",
        """
        w = DequantizeLinear(k, sA, zA)
        g = Gather(w, i)
        q = QuantizeLinear(g, sA, zA)
        c = Clip(q, l, h)
        d = DequantizeLinear(c, sA, zA)
        a = A(x)
        s = Add(a, d)
        y = A(s)
        """,
        f"uint8[3] k = {{100, 150, {last}}}, int64[4] i = {{0, 1, 2, 1}}, uint8 l = {{100}}, uint8 h = {{200}}",
    )
    (gather,) = (op for op in graph.ops if isinstance(op, Move))
    assert [isinstance(op, Rescale) for op in graph.ops if gather.output in op.inputs] == [clamped]
    moved = execute(graph, {"x": np.zeros(4, np.float32)}, get_profile("onnx"))["y"]
    assert moved.tolist() == [-14.0, 11.0, 36.0, 11.0]


def test_pad_values_are_integers_of_the_grid() -> None:
    graph = lowered_net(
        "(float[2] x) => (float[3] y)", "a = A(x)\np = Pad(a, i, v)\ny = A(p)", "int64[2] i = {0, 1}, float v = {-2.5}"
    )
    assert graph.constants["pad_value"].item() == 123


@pytest.mark.parametrize("value", ["", "v"])
def test_the_axes_of_a_pad_without_a_constant_stay_its_fourth_operand(value: str) -> None:
    """In reflect mode nothing is filled in, whether the file states a value or not."""
    graph = lowered_net(
        "(float[2,3] x) => (float[2,4] y)",
        f'a = A(x)\np = Pad<mode = "reflect">(a, i, {value}, k)\ny = A(p)',
        "int64[2] i = {0, 1}, int64[1] k = {1}" + (", float v = {0.0}" if value else ""),
        opset=18,
    )
    (pad,) = (op for op in graph.ops if isinstance(op, Move))
    assert [graph.constants[name].tolist() if name else None for name in pad.inputs[1:]] == [[0, 1], None, [1]]
    x = np.asarray([[0, 1, 2], [3, 4, 5]], np.float32)
    padded = execute(graph, {"x": x}, get_profile("onnx"))["y"]
    np.testing.assert_array_equal(padded, np.pad(x, [(0, 0), (0, 1)], mode="reflect"))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("opset", [13, 20])
def test_largest_and_smallest_are_taken_of_integers(op: str, opset: int) -> None:
    call = f"m = {op}<axes = [1]>(a)" if opset < 18 else f"m = {op}(a, axis)"
    graph = lowered_net(
        "(float[2,3] x) => (float[2,1] y)", f"a = A(x)\n{call}\ny = A(m)", "int64[1] axis = {1}", opset=opset
    )
    assert reasons(graph) == []
    moves = [op for op in graph.ops if isinstance(op, Move)]
    assert [(m.op_type, graph.tensors[m.output].dtype) for m in moves] == [(op, "uint8")]
