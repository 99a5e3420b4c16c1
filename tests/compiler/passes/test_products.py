"""Products: where the channels of their results are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qatc.compiler.graph import Constant, Node, Variable
from qatc.compiler.passes.products import mac_of, output_axis
from tests.frontends.running import run


@pytest.mark.parametrize(
    ("op", "shapes", "operand", "channels", "attrs"),
    [
        ("Conv", [(1, 4, 5, 5), (6, 4, 3, 3)], 1, 1, {}),
        ("Conv", [(1, 4, 5), (6, 2, 3)], 1, 1, {"group": 2}),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 6, 3, 3)], 1, 1, {}),
        ("MatMul", [(2, 3), (3, 4)], 1, -1, {}),
        ("MatMul", [(2, 3), (5, 3, 4)], 1, -1, {}),
        ("MatMul", [(2, 3), (3, 4)], 0, -2, {}),
        ("Gemm", [(2, 3), (3, 4)], 1, -1, {}),
        ("Gemm", [(2, 3), (4, 3)], 1, -1, {"transB": 1}),
        ("Gemm", [(2, 3), (3, 4)], 0, -2, {}),
        ("Gemm", [(3, 2), (3, 4)], 0, -2, {"transA": 1}),
    ],
)
def test_a_channel_of_zeros_makes_a_channel_of_zeros(
    op: str, shapes: list[tuple[int, ...]], operand: int, channels: int, attrs: dict[str, Any]
) -> None:
    node = Node(op, "n", attrs, [Variable("a"), Variable("b")], [Variable("y")])
    axis = output_axis(node, len(shapes[operand]), operand)
    assert axis is not None
    random = np.random.default_rng(0)
    values = [random.uniform(1, 2, s).astype(np.float32) for s in shapes]
    values[operand].swapaxes(0, axis)[1] = 0
    proto = onnx.helper.make_node(op, ["a", "b"], ["y"], **attrs)
    ports = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in zip("ab", shapes, strict=True)]
    graph = onnx.helper.make_graph([proto], "g", ports, [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    found = np.moveaxis(run(model, *values)[0], channels, 0)
    assert [bool(c.any()) for c in found] == [i != 1 for i in range(len(found))]


def test_vectors_and_data_have_no_output_channels() -> None:
    for op, rank, operand in (("MatMul", 1, 1), ("MatMul", None, 1), ("Conv", 4, 0), ("Add", 2, 1)):
        assert output_axis(Node(op, "n", {}, [], []), rank, operand) is None


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "want"),
    [
        ("Conv", (6, 2, 3, 3), {"group": 2}, (0, -3, 6)),
        ("ConvTranspose", (4, 6, 3), {}, (1, -2, 6)),
        ("ConvTranspose", (4, 6, 3), {"group": 2}, None),  # its groups share the weight's axis
        ("Conv", (6, 2), {}, None),
        ("Gemm", (4, 3), {"transB": 1}, (0, -1, 4)),
        ("MatMul", (4, 3), {}, (1, -1, 3)),
        ("MatMul", (2, 4, 3), {}, None),
    ],
)
def test_products_with_a_constant_weight(
    op: str, shape: tuple[int, ...], attrs: dict[str, Any], want: tuple[int, int, int] | None
) -> None:
    weight = Constant("w", np.zeros(shape, np.int8))
    found = mac_of(Node(op, "n", attrs, [Variable("x"), weight], [Variable("y")]))
    assert (None if found is None else (found.axis, found.from_end, found.channels)) == want
