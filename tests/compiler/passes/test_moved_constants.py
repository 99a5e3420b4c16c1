"""Constants that are only moved before they are read: their integers move, their channel axis with them."""

from __future__ import annotations

from tests.compiler.passes.test_propagate import after_propagate
from tests.graphs import expect


def test_integers_of_a_weight_are_moved() -> None:
    """DQ -> Reshape -> Transpose in front of a product (Gemm and attention weights of several exporters)."""
    graph = after_propagate(
        "(float[1,2] x) => (float[1,3] y)",
        """
        w = DequantizeLinear<axis = 0>(wq, s, z)
        r = Reshape(w, i)
        t = Transpose(r)
        m = MatMul(x, t)
        y = Relu(m)
        """,
        "int8[3,1,2] wq = {1, 2, 3, 4, 5, 6}, float[3] s = {0.5, 0.25, 1.0}, int8[3] z = {0, 0, 0}, "
        "int64[2] i = {3, 2}",
    )
    expect(
        graph,
        """
        input x
        m = MatMul(x, t_1<int8 scale 0.25..1 zero 0 axis 1 x3>:int8[2, 3]{1,3,5,2,4,6})
        y = Relu(m)
        output y
        """,
    )


def test_a_moved_weight_that_is_rounded_once_more() -> None:
    graph = after_propagate(
        "(float[1,2] x) => (float[1,3] y)",
        "w = DequantizeLinear(wq, sC, zC)\nt = Transpose(w)\nr = A(t)\ny = MatMul(x, r)",
        "int8[3,2] wq = {1, 2, 3, 4, 5, 60}",
    )
    expect(
        graph,
        """
        input x
        y = MatMul(x, t_1<uint8 scale 0.5 zero 128>:uint8[2, 3]{128,128,128,128,128,142})
        output y
        """,
    )


def test_a_rounding_between_two_reshapes_counts() -> None:
    """Channels that do not stay whole end in front of it: the second Reshape reads what is rounded."""
    graph = after_propagate(
        "(float[1,3] x) => (float[1,2] y)",
        "w = DequantizeLinear<axis = 1>(wq, s, z)\nr = Reshape(w, i)\nb = A(r)\nt = Reshape(b, j)\ny = MatMul(x, t)",
        "int8[3,2] wq = {1, 2, 3, 4, 5, 6}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}, int64[2] i = {2, 3}, "
        "int64[2] j = {3, 2}",
    )
    assert [n.op for n in graph.nodes] == ["Reshape", "Reshape", "MatMul"]
    assert str(graph.params["r"]) == "uint8 scale 0.5 zero 128"


def test_a_moved_weight_that_is_also_read_in_place() -> None:
    """Tied weights: the embedding table is the transposed weight of the last product."""
    graph = after_propagate(
        "(float[1,2] x, int64[1] i) => (float[1,3] y, float[1,2] z)",
        """
        w = DequantizeLinear(wq, sD, zD)
        t = Transpose(w)
        y = MatMul(x, t)
        z = Gather(w, i)
        """,
        "int8[3,2] wq = {1, 2, 3, 4, 5, 6}",
    )
    expect(
        graph,
        """
        input x
        input i
        y = MatMul(x, t_1<int8 scale 0.0625 zero 0>:int8[2, 3]{1,3,5,2,4,6})
        z<int8 scale 0.0625 zero 0> = Gather(wq<int8 scale 0.0625 zero 0>:int8[3, 2]{1,2,3,4,5,6}, i)
        output y
        output z
        """,
    )


def test_channels_of_a_constant_that_do_not_stay_whole_end_there() -> None:
    """Rows of four elements, of channels of three."""
    graph = after_propagate(
        "(float[1] x) => (float[3,4] y)",
        """
        w = DequantizeLinear<axis = 1>(wq, s, z)
        r = Reshape(w, i)
        y = Mul(x, r)
        """,
        "int8[2,2,3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}, "
        "int64[2] i = {3, 4}",
    )
    assert [n.op for n in graph.nodes] == ["Reshape", "Mul"]
    assert "r" not in graph.params


def test_channels_of_a_constant_that_join_others_are_repeated() -> None:
    """The heads of an attention and their sizes as one axis: a scale for each size is one for each of all heads."""
    graph = after_propagate(
        "(float[1] x) => (float[3,4] y)",
        """
        w = DequantizeLinear<axis = 2>(wq, s, z)
        r = Reshape(w, i)
        y = Mul(x, r)
        """,
        "int8[3,2,2] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}, "
        "int64[2] i = {3, 4}",
    )
    (product,) = graph.nodes
    params = graph.params[product.inputs[1].name]
    assert (params.axis, params.scale) == (1, (0.5, 0.25, 0.5, 0.25))


def test_a_float_constant_that_is_only_moved_before_it_is_rounded() -> None:
    """ViT's class token: a plain float constant, expanded to the batch, beside the patches."""
    graph = after_propagate(
        "(float[N,4,3] x, int64[3] shape) => (float[N,5,3] y)",
        """
        e = Expand(token, shape)
        c = Concat<axis = 1>(e, x)
        y = A(c)
        """,
        "float[1,1,3] token = {0.1, 1.0, -1.0}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        input shape
        e<uint8 scale 0.5 zero 128> = Expand(token_uint8<uint8 scale 0.5 zero 128>:uint8[1, 1, 3]{128,130,126}, shape)
        y<uint8 scale 0.5 zero 128> = Concat[axis=1](e, x)
        output y
        """,
    )


def test_a_float_table_whose_rows_are_rounded() -> None:
    graph = after_propagate(
        "(int64[N] i) => (float[N,2] y)", "g = Gather(table, i)\ny = A(g)", "float[2,2] table = {0.1, 1.0, -1.0, 2.0}"
    )
    expect(
        graph,
        """
        input i
        y<uint8 scale 0.5 zero 128> = Gather(table_uint8<uint8 scale 0.5 zero 128>:uint8[2, 2]{128,130,126,132}, i)
        output y
        """,
    )
