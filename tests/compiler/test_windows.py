"""How kernels move: padding in every form, and the sizes of transposed convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Conv
from qatc.compiler.lowering import lower
from qatc.compiler.reference import execute
from tests.agreeing import agrees, lowered, lowered_net
from tests.graphs import net, stripped


@pytest.mark.parametrize(
    ("call", "pads"),
    [
        ("Conv<pads = [1, 2, 3, 4]>(a, w)", (1, 2, 3, 4)),
        ('Conv<auto_pad = "VALID">(a, w)', (0, 0, 0, 0)),
        ('Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(a, w)', (0, 0, 1, 1)),
        ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(a, w)', (1, 1, 0, 0)),
        ('Conv<auto_pad = "SAME_UPPER", dilations = [2, 2]>(a, w)', (2, 2, 2, 2)),
        ("ConvTranspose<strides = [2, 2], output_shape = [8, 8]>(a, w)", (1, 1, 0, 0)),
        ('Conv<auto_pad = "SAME_UPPER", strides = [5, 5]>(a, w)', (0, 0, 0, 0)),  # windows that leave something out
        ('ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(a, w)', (0, 0, 1, 1)),
        ('ConvTranspose<strides = [4, 3], auto_pad = "SAME_LOWER">(a, w)', (0, 0, 0, 0)),
        ('ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER", output_padding = [1, 0]>(a, w)', (1, 0, 1, 1)),
    ],
)
def test_paddings_of_every_form(call: str, pads: tuple[int, ...]) -> None:
    text = net(
        "(float[1,1,4,4] x) => (float[1,1,P,Q] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = {call}\ny = A(c)",
        "int8[1,1,3,3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9}",
    )
    graph = lowered(text) if "dilations" in call else agrees(text)  # ONNX Runtime has none beside SAME
    assert [op.pads for op in graph.ops if op.kind == "Conv"] == [pads]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("sizes", "added"), [("[9, 8]", (1, 0)), ("[8, 11]", (0, 3))])
def test_an_output_that_is_larger_than_the_input_makes(sizes: str, added: tuple[int, int]) -> None:
    """A kernel of 2 and a stride of 2 make 8 of 4; what is missing is nothing, at the end."""
    graph = lowered_net(
        "(float[1,1,4,4] x) => (float[1,1,P,Q] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\n"
        f"c = ConvTranspose<strides = [2, 2], output_shape = {sizes}>(a, w)\ny = A(c)",
        "int8[1,1,2,2] wq = {16, 32, 48, 64}",
    )
    (op,) = (op for op in graph.ops if isinstance(op, Conv))
    assert (op.pads, op.output_padding) == ((0, 0, 0, 0), added)
    made = execute(graph, {"x": np.ones((1, 1, 4, 4), np.float32)}, get_profile("onnx"))["y"]
    assert made.shape == (1, 1, 8 + added[0], 8 + added[1])
    np.testing.assert_array_equal(made[0, 0, :8, :8], np.tile([[1, 2], [3, 4]], (4, 4)))
    assert not made[0, 0, 8:].any()
    assert not made[0, 0, :, 8:].any()


@pytest.mark.parametrize(
    "call",
    [
        'Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(a, w)',
        'MaxPool<auto_pad = "SAME_LOWER", strides = [2, 2], kernel_shape = [3, 3]>(a)',
    ],
)
def test_padding_that_needs_an_unknown_size(call: str) -> None:
    graph = stripped(
        net(
            "(float[1,1,H,4] x) => (float[1,1,P,Q] y)",
            f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = {call}\ny = A(c)",
            "int8[1,1,3,3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9}",
        )
    )
    lower(graph)
    assert [d.code for d in graph.diagnostics.errors] == ["QAT009"]
