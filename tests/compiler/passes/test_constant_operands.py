"""Constants of matrix products with scales per row or per matrix: convolutions that mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.backends.onnx import BACKEND
from qatc.compiler.graph import QuantGraph
from qatc.compiler.integer import Conv, Float
from qatc.compiler.passes.constant_operands import place_constants
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.strip import strip
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.pipeline import canonical, integer, simulate


def product_model(
    weight: tuple[int, ...],
    axis: int | None,
    data: list[Any],
    *,
    left: bool = True,
    bias: tuple[int, ...] | None = None,
) -> onnx.ModelProto:
    """A MatMul of an int8 constant and a uint8 tensor `x`, with an Add where there is a bias, and a quantizer."""
    rng = np.random.default_rng(sum(weight))
    count = 1 if axis is None else weight[axis]
    scales = rng.uniform(0.01, 0.03, count).astype(np.float32)
    values: dict[str, Any] = {
        "w": rng.integers(-127, 128, weight).astype(np.int8), "wz": np.zeros(count, np.int8), "ws": scales,
        "xs": np.float32(0.05), "xz": np.uint8(120), "ys": np.float32(0.25), "yz": np.uint8(131),
    }  # fmt: skip
    if axis is None:
        values.update(ws=scales[0], wz=np.int8(0))
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        make("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **({} if axis is None else {"axis": axis})),
        make("MatMul", ["wd", "xd"] if left else ["xd", "wd"], ["m"]),
    ]
    if bias is not None:
        values["b"] = rng.normal(0, 5, bias).astype(np.float32)
        nodes.append(make("Add", ["m", "b"], ["n"]))
    nodes += [
        make("QuantizeLinear", ["n" if bias is not None else "m", "ys", "yz"], ["yq"]),
        make("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stripped(model: onnx.ModelProto) -> QuantGraph:
    graph = canonical(model)
    strip(graph)
    infer_shapes(graph)
    propagate(graph)
    return graph


@st.composite
def products(draw: st.DrawFn) -> tuple[tuple[int, ...], int | None, list[int], bool, tuple[int, ...] | None]:
    """Shape of the constant, axis of its scales, shape of the data, side, shape of a bias."""
    left = draw(st.booleans())
    channels, depth, width, heads, batch = (draw(st.integers(2, 4)) for _ in range(5))
    batched = not left or draw(st.booleans())
    weight = (*((heads,) if batched else ()), *((channels, depth) if left else (depth, channels)))
    outer = draw(st.sampled_from([[heads], [batch, heads]] if batched else [[], [batch], [batch, heads]]))
    data = [*outer, *((depth, width) if left else (width, depth))]
    axis = draw(st.sampled_from([0, 1] if batched else [0])) if left else 0
    bias = draw(st.sampled_from([None, (channels, 1), (1, channels, 1)])) if left and len(outer) else None
    return weight, axis, data, left, bias


@settings(max_examples=60)
@given(case=products())
def test_the_results_are_those_of_the_product(
    case: tuple[tuple[int, ...], int | None, list[int], bool, tuple[int, ...] | None],
) -> None:
    """One integer convolution; in real numbers and in the emitted model."""
    weight, axis, data, left, bias = case
    model = product_model(weight, axis, data, left=left, bias=bias)
    feeds = {"x": np.random.default_rng(0).normal(0, 3, data).astype(np.float32)}
    graph = stripped(model)
    assert place_constants(graph) == 1
    graph.verify()
    want = RunnableModel(model).run(feeds)["y"]
    near = simulate(graph, feeds)["y"]  # the same sums in another order: a value near a boundary may fall to a side
    assert near.shape == want.shape
    assert np.abs(near - want).max() <= 0.25
    lowered = integer(model)
    assert not any(isinstance(op, Float) for op in lowered.ops) or (bias is not None and len(weight) > 2)
    assert sum(isinstance(op, Conv) for op in lowered.ops) == 1
    found = RunnableModel(BACKEND.emit(lowered, BACKEND.checked({})).complete()).run(feeds)["y"]
    assert np.abs(found - want).max() <= 0.25


@pytest.mark.parametrize(
    ("data", "feed"),
    [
        pytest.param(["N", 3, 4, "T"], (2, 3, 4, 5), id="batch and width"),
        pytest.param([3, 4, "T"], (3, 4, 5), id="width"),
    ],
)
def test_sizes_may_be_open(data: list[Any], feed: tuple[int, ...]) -> None:
    model = product_model((3, 2, 4), 0, data)
    lowered = integer(model)
    assert not any(isinstance(op, Float) for op in lowered.ops)
    feeds = {"x": np.random.default_rng(0).normal(0, 3, feed).astype(np.float32)}
    found = RunnableModel(BACKEND.emit(lowered, BACKEND.checked({})).complete()).run(feeds)["y"]
    assert np.abs(found - RunnableModel(model).run(feeds)["y"]).max() <= 0.25


def test_one_open_size_around_matrices_follows_from_the_others() -> None:
    model = product_model((2, 4), 0, ["N", 3, 4, 5])
    lowered = integer(model)
    assert not any(isinstance(op, Float) for op in lowered.ops)
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 3, 4, 5)).astype(np.float32)}
    found = RunnableModel(BACKEND.emit(lowered, BACKEND.checked({})).complete()).run(feeds)["y"]
    assert np.abs(found - RunnableModel(model).run(feeds)["y"]).max() <= 0.25


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(product_model((2, 4), None, [1, 4, 5]), id="one scale: the product has it"),
        pytest.param(product_model((4, 2), 1, [1, 5, 4], left=False), id="a scale per column: the product has it"),
        pytest.param(product_model((3, 4, 2), 2, [3, 5, 4], left=False), id="per column of each matrix"),
        pytest.param(product_model((3, 2, 4), 0, [4, 5]), id="one matrix for all"),
        pytest.param(product_model((3, 2, 4), 0, [1, 4, 5]), id="one matrix for all, said"),
        pytest.param(product_model((2, 4), 0, ["N", "M", 4, 5]), id="two open sizes"),
        pytest.param(product_model((2, 4), 0, ["N", 2, 4, "T"]), id="an open size around, and the width"),
        pytest.param(product_model((2, 4), None, [1, 4, 2], bias=(2,)), id="a bias per column"),
    ],
)
def test_what_stays_a_product(model: onnx.ModelProto) -> None:
    assert place_constants(stripped(model)) == 0
