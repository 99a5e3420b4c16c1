"""Movement: rounding commutes with it, and a channel axis is where `axis_through` says it is."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qatc.compiler.graph import Constant, Node, Variable
from qatc.compiler.model_io import node_proto
from qatc.compiler.passes.movement import axis_through, is_movement, move_constant, on_grid, pad_value, params_through
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.sessions import OrtEvaluator

GRID = QuantParams.per_tensor(0.25, 100, "uint8")
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
RUN = OrtEvaluator()


def node_of(op: str, shape: tuple[int | str | None, ...] | None, *operands: np.ndarray | None, **attrs: object) -> Node:
    inputs = [Variable("x", shape=None if shape is None else list(shape))]
    inputs += [Variable("") if v is None else Constant(f"c{i}", v) for i, v in enumerate(operands)]
    return Node(op, "n", attrs, inputs, [Variable("y")])


def run(node: Node, x: np.ndarray, opset: int = 17) -> np.ndarray:
    arrays = [x, *(t.values if isinstance(t, Constant) else None for t in node.inputs[1:])]
    return RUN(node.op, "", opset, arrays, node.attrs, 1)[0]


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


# -- rounding commutes ------------------------------------------------------------------------------------------------
MOVES = [
    node_of("Transpose", (2, 4, 4, 6), perm=[3, 1, 0, 2]),
    node_of("Reshape", (2, 4, 4, 6), ints(4, -1)),
    node_of("Flatten", (2, 4, 4, 6), axis=2),
    node_of("Slice", (2, 4, 4, 6), ints(1), ints(4), ints(3), ints(2)),
    node_of("Gather", (2, 4, 4, 6), ints(3, 0, 0), axis=1),
    node_of("Expand", (2, 4, 4, 6), ints(3, 1, 1, 1, 1)),
    node_of("Tile", (2, 4, 4, 6), ints(1, 2, 1, 1)),
    node_of("DepthToSpace", (2, 4, 4, 6), blocksize=2),
    node_of("SpaceToDepth", (2, 4, 4, 6), blocksize=2),
    node_of("MaxPool", (2, 4, 4, 6), kernel_shape=[2, 3], pads=[1, 1, 0, 1]),
    node_of("GlobalMaxPool", (2, 4, 4, 6)),
    node_of("Pad", (2, 4, 4, 6), ints(0, 0, 1, 0, 0, 0, 0, 2), np.asarray(0.5, np.float32)),
    node_of("Pad", (2, 4, 4, 6), ints(0, 0, 1, 0, 0, 0, 0, 2), mode="reflect"),
    node_of("Resize", (2, 4, 4, 6), None, np.asarray([1, 1, 1.5, 2], np.float32), mode="nearest"),
]


@pytest.mark.parametrize("node", MOVES, ids=lambda n: n.op)
def test_rounding_commutes_with_movement(node: Node) -> None:
    """Q(move(x)) = move(Q(x)), element for element."""
    assert is_movement(node)
    assert params_through(node, GRID) == GRID
    x = np.random.default_rng(0).normal(0, 20, (2, 4, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(GRID.fake_quantize(run(node, x)), run(node, GRID.fake_quantize(x)))


@pytest.mark.parametrize(
    "node",
    [
        node_of("AveragePool", (1, 1, 4, 4), kernel_shape=[2, 2]),
        node_of("Resize", (1, 1, 4, 4), None, np.asarray([1, 1, 2, 2], np.float32), mode="linear"),
        node_of(
            "Resize", (1, 1, 4, 4), None, np.asarray([1, 1, 2, 2], np.float32),
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        node_of("Relu", (1,)),
        node_of("Concat", (1,)),
        Node("Transpose", "n", {}, [Variable("x")], [Variable("y")], "com.example"),
        Node("MaxPool", "n", {"kernel_shape": [2, 2]}, [Variable("x")], [Variable("y"), Variable("indices")]),
        Node("Pad", "n", {}, [Variable("x"), Constant("p", ints(0, 1)), Variable("v")], [Variable("y")]),
        Node("Transpose", "n", {}, [], [Variable("y")]),
    ],
    ids=lambda n: n.op,
)  # fmt: skip
def test_what_is_not_movement(node: Node) -> None:
    assert not is_movement(node)


@pytest.mark.parametrize(("value", "carries"), [(0.0, True), (-25.0, True), (38.75, True), (0.1, False), (39.0, False)])
def test_pad_values_must_be_on_the_grid(value: float, carries: bool) -> None:
    node = node_of("Pad", (4,), ints(0, 1), np.asarray(value, np.float32))
    assert (params_through(node, GRID) is not None) == carries
    assert on_grid(value, GRID) == carries


def test_pad_values_of_any_form() -> None:
    assert pad_value(node_of("Pad", (4,), ints(0, 1))) == 0.0
    assert pad_value(node_of("Pad", (4,), ints(0, 1), np.asarray([1.5], np.float32))) == 1.5
    assert pad_value(node_of("Pad", (4,), ints(0, 1), None)) == 0.0
    assert not on_grid(math.inf, GRID)
    assert not on_grid(-math.inf, GRID)


# -- where the channels go --------------------------------------------------------------------------------------------
def channels_after(node: Node, shape: tuple[int, ...], axis: int) -> tuple[np.ndarray, int | None]:
    """The node run on a tensor that holds the index along `axis`, and where `axis_through` says the axis is."""
    view = [-1 if i == axis else 1 for i in range(len(shape))]
    x = np.broadcast_to(np.arange(shape[axis], dtype=np.float32).reshape(view), shape)
    moved = run(node, np.ascontiguousarray(x))
    node.outputs[0].shape = list(moved.shape)
    return moved, axis_through(node, axis)


def is_channel_axis(moved: np.ndarray, axis: int, channels: int) -> bool:
    view = [-1 if i == axis else 1 for i in range(moved.ndim)]
    if moved.shape[axis] != channels:
        return False
    return bool((moved == np.arange(channels, dtype=np.float32).reshape(view)).all())


@given(SHAPES, st.data())
def test_axis_through_transpose(shape: tuple[int, ...], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    axis = data.draw(st.integers(0, len(shape) - 1))
    moved, found = channels_after(node_of("Transpose", shape, perm=list(order)), shape, axis)
    assert found == order.index(axis)
    assert is_channel_axis(moved, found, shape[axis])


@given(SHAPES, st.data())
def test_axis_through_reshape(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Whatever it answers is right; where exactly the other dimensions are merged or split, it has an answer."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    assume(shape[axis] > 1)
    size = math.prod(shape)
    first = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    second = data.draw(st.sampled_from([d for d in range(1, size // first + 1) if size // first % d == 0]))
    target = (first, second, size // first // second)
    moved, found = channels_after(node_of("Reshape", shape, ints(*target)), shape, axis)
    if found is not None:
        assert is_channel_axis(moved, found, shape[axis])
    keeps = [i for i in range(3) if math.prod(target[:i]) == math.prod(shape[:axis]) and target[i] == shape[axis]]
    if keeps:
        assert found is not None


@given(SHAPES, st.data())
def test_channels_that_a_reshape_splits_or_joins_keep_their_parameters(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Groups of a weight's rows, quantized as [groups, elements], or heads that become one axis with their sizes.

    Each element keeps its scale and its zero point, wherever each row, or each column, has one.
    """
    axis = data.draw(st.integers(0, len(shape) - 1))
    assume(shape[axis] > 1)
    size = math.prod(shape)
    first = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    node = node_of("Reshape", shape, ints(first, size // first))
    node.outputs[0].shape = [first, size // first]
    channels = shape[axis]
    params = QuantParams(tuple(0.5 + i for i in range(channels)), tuple(range(channels)), "uint8", axis)
    moved = params_through(node, params)
    for written in ("scale_array", "zero_array"):
        before = np.broadcast_to(getattr(params, written)(len(shape)), shape).reshape(first, size // first)
        rows, columns = bool((before == before[:, :1]).all()), bool((before == before[:1]).all())
        if moved is not None:
            np.testing.assert_array_equal(np.broadcast_to(getattr(moved, written)(2), before.shape), before)
        else:
            assert not rows or first == size
            assert not columns or first == 1


@pytest.mark.parametrize(
    ("before", "after", "axis", "want"),
    [
        (("N", 8, 4, 4), ("N", 8, 16), 1, 1),
        (("N", 8, "H", "W"), ("N", 8, None), 1, 1),
        (("N", 8, 4, 4), ("N", 128), 1, None),
        (("N", 8), ("N", 8, 1, 1), 1, 1),
        (("N", 4, 8), (None, 8), 2, 1),
        (("N", "C", 4), ("N", "C", 2, 2), 1, None),  # a channel axis of unknown size cannot be told
        (("A", 8, 4), ("B", 8, 4), 1, 1),
        (("A", 8, 4), ("B", 8, "C"), 1, None),
        ((None, 8, None), (None, 8, None), 1, None),  # two unknown sizes need not be the same
        ((None, 8, 4), (None, 8, 4), 1, 1),
    ],
)
def test_axis_through_unknown_dimensions(
    before: tuple[int | str | None, ...], after: tuple[int | str | None, ...], axis: int, want: int | None
) -> None:
    node = node_of("Reshape", before, ints(0))
    node.outputs[0].shape = list(after)
    assert axis_through(node, axis) == want


def test_axis_through_needs_shapes() -> None:
    assert axis_through(node_of("Reshape", None, ints(0)), 1) is None
    assert axis_through(node_of("Transpose", None), 1) is None
    assert axis_through(node_of("Transpose", None, perm=[1, 0]), 1) == 0


# -- constants --------------------------------------------------------------------------------------------------------
CONSTANT_MOVES = [
    node_of("Transpose", (2, 1, 6), perm=[2, 0, 1]),
    node_of("Transpose", (2, 1, 6)),
    node_of("Reshape", (2, 1, 6), ints(0, -1, 3)),
    node_of("Reshape", (2, 1, 6), ints(12)),
    node_of("Flatten", (2, 1, 6), axis=-1),
    node_of("Flatten", (2, 1, 6), axis=0),
    node_of("Squeeze", (2, 1, 6), ints(1)),
    node_of("Squeeze", (2, 1, 6), ints(-2)),
    node_of("Squeeze", (2, 1, 6)),
    node_of("Unsqueeze", (2, 1, 6), ints(0, -1)),
]


@pytest.mark.parametrize("node", CONSTANT_MOVES, ids=lambda n: n.op)
def test_move_constant_does_what_the_operator_does(node: Node) -> None:
    value = np.arange(12, dtype=np.float32).reshape(2, 1, 6)
    np.testing.assert_array_equal(move_constant(node, value), run(node, value))


def test_constants_whose_movement_is_computed_stay() -> None:
    value = np.zeros((2, 3), np.int8)
    for op in ("Reshape", "Unsqueeze", "Squeeze"):
        node = Node(op, "n", {}, [Variable("x"), Variable("computed")], [Variable("y")])
        assert move_constant(node, value) is None
    assert move_constant(node_of("Gather", (2, 3), ints(0)), value) is None


def test_nodes_of_the_tests_are_valid() -> None:
    """The operators above are what ONNX Runtime knows under these names."""
    assert onnxruntime.__version__
    assert all(node_proto(n).op_type == n.op for n in MOVES)
