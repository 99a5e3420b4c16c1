"""Shapes of pools that round up: ONNX's inference counts a window that does not exist before opset 22."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qatc.compiler.model.pools import rounded_down
from tests.agreeing import agrees
from tests.graphs import net


def windows(size: int, reach: int, stride: int, begin: int, end: int) -> int:
    """How many windows there are, one after the other: until the padded input is covered or its data are over."""
    count = 1
    while (count - 1) * stride + reach < begin + size + end and count * stride < begin + size:
        count += 1
    return count


@given(data=st.data(), op=st.sampled_from(["AveragePool", "LpPool", "MaxPool"]))
def test_the_windows_of_a_pool_that_rounds_up(data: st.DataObject, op: str) -> None:
    kernel, stride, dilation = (data.draw(st.integers(1, 4)) for _ in range(3))
    begin, end = (data.draw(st.integers(0, kernel - 1)) for _ in range(2))
    reach = (kernel - 1) * dilation + 1
    size = data.draw(st.integers(max(1, reach - begin - end), 20))
    attrs: dict[str, Any] = {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation], "ceil_mode": 1}
    node = helper.make_node(op, ["x"], ["y"], pads=[begin, end], **attrs)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([rounded_down(node)], "g", [x], [y])
    inferred = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), strict_mode=True
    )
    assert inferred.graph.output[0].type.tensor_type.shape.dim[2].dim_value == windows(size, reach, stride, begin, end)


@pytest.mark.parametrize(
    "attrs",
    [
        {"ceil_mode": 0, "pads": [1, 1]},
        {"ceil_mode": 1, "auto_pad": "SAME_UPPER"},
        {"ceil_mode": 1, "strides": [1, 1]},  # not for this kernel: the inference says so
    ],
)
def test_other_pools_stay_as_they_are(attrs: dict[str, Any]) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], **attrs)
    assert rounded_down(node) is node


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_what_reads_such_a_pool_knows_its_size(op: str, opset: int) -> None:
    """A Reshape by the size that the inference counts would not fit (found by a fuzzer)."""
    graph = agrees(
        net(
            "(float[1,2,6,6] x) => (float[1,2,3,3] y)",
            f"a = A(x)\np = {op}<kernel_shape = [1, 1], strides = [2, 2], ceil_mode = 1>(a)\nb = A(p)\n"
            "s = Sigmoid(b)\ny = B(s)",
            opset=opset,
        )
    )
    pooled = [op.output for op in graph.ops if op.kind == "Pool"]
    assert [graph.tensors[name].shape for name in pooled] == [(1, 2, 3, 3)]
