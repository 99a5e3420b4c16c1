"""Movement, in numpy or by ONNX's own reference: what ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.reference import evaluate_onnx
from qatc.compiler.reference.resize import resize_nearest

X = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
I64 = np.int64
MOVES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Reshape", [X, np.array([0, -1, 5], I64)], {}, 1),
    ("Reshape", [X[:0], np.array([0, 60], I64)], {"allowzero": 1}, 1),
    ("Transpose", [X], {"perm": [3, 1, 0, 2]}, 1),
    ("Transpose", [X], {}, 1),
    ("Flatten", [X], {"axis": -2}, 1),
    ("Flatten", [X], {}, 1),
    ("Flatten", [X], {"axis": 0}, 1),
    ("Squeeze", [X[:1, :, :1], np.array([0, 2], I64)], {}, 1),
    ("Squeeze", [X[:1, :, :1]], {}, 1),
    ("Squeeze", [X[:1, :, :1], np.array([], I64)], {}, 1),
    ("Unsqueeze", [X, np.array([0, -1], I64)], {}, 1),
    ("Slice", [X, np.array([1, 0], I64), np.array([3, 99], I64), np.array([1, -1], I64), np.array([1, 2], I64)], {}, 1),
    ("Slice", [X, np.array([-1], I64), np.array([-(2**40)], I64), np.array([3], I64), np.array([-2], I64)], {}, 1),
    ("Slice", [X, np.array([1], I64), np.array([2], I64)], {}, 1),
    ("Slice", [X, np.array([-99], I64), np.array([-999], I64), np.array([3], I64), np.array([-1], I64)], {}, 1),
    ("Gather", [X, np.array([[2, -1], [0, 0]], I64)], {"axis": 1}, 1),
    ("Gather", [X, np.array(1, I64)], {"axis": -1}, 1),
    ("GatherElements", [X, np.array([[[[3, -1, 0]]]], I64)], {"axis": -1}, 1),
    ("GatherElements", [X[:1], np.zeros((70, 1, 2, 5), I64)], {}, 1),
    ("Concat", [X, X[:, :1], X[:, 1:]], {"axis": -3}, 1),
    ("Split", [X, np.array([1, 4], I64)], {"axis": -1}, 2),
    ("Split", [X], {"axis": 3, "num_outputs": 3}, 3),
    ("Shape", [X], {"start": 1, "end": -1}, 1),
    ("Shape", [X], {}, 1),
    ("Expand", [X[:, :1], np.array([3, 1, 1], I64)], {}, 1),
    ("Cast", [X.astype(np.float32) / 3], {"to": 6}, 1),
    ("Pad", [X, np.array([1, 0, 2, 0, 0, 1, 0, 3], I64), np.array(7, np.uint8)], {}, 1),
    ("Pad", [X, np.array([1, 2, 0, 1], I64), None, np.array([2, -1], I64)], {"mode": "reflect"}, 1),
    ("Pad", [X, np.array([1, 0, 0, 0, 0, 1, 0, 2], I64)], {"mode": "edge"}, 1),
    ("Pad", [X, np.array([0, -1, 0, 0, 0, 0, 0, -2], I64)], {}, 1),
    ("Identity", [X], {}, 1),
    ("Relu", [X.astype(np.float32) - 60], {}, 1),
    ("Add", [X.astype(np.float32), np.float32(0.1)], {}, 1),
    ("DepthToSpace", [X.reshape(1, 24, 1, 5).astype(np.float32)], {"blocksize": 2, "mode": "CRD"}, 1),
    ("MaxPool", [X.astype(np.float32) - 60], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, 1),
    ("MaxPool", [X.astype(np.float32) - 60], {"kernel_shape": [4, 1], "pads": [0, 0, 1, 0], "strides": [2, 2]}, 1),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "dilations": [2, 1], "strides": [1, 3], "ceil_mode": 1}, 1),
    ("MaxPool", [X.astype(np.float32)], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, 1),
    ("AveragePool", [X.astype(np.float32)], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, 1),
    ("AveragePool", [X.astype(np.float32)], {"kernel_shape": [4, 1], "pads": [0, 0, 1, 0], "strides": [2, 2]}, 1),
    ("Softmax", [X.astype(np.float32)], {"axis": 1}, 1),
    ("Gelu", [X.astype(np.float32) / 50 - 1], {"approximate": "tanh"}, 1),
]


@pytest.mark.parametrize("index", range(len(MOVES)), ids=[f"{m[0]}{i}" for i, m in enumerate(MOVES)])
def test_movement_is_that_of_onnx(run_op, index):
    op_type, inputs, attrs, outputs = MOVES[index]
    results = evaluate_onnx(op_type, "", 21, inputs, attrs, outputs)
    expected = run_op(op_type, inputs, [r.dtype for r in results], attrs)
    assert len(results) == outputs
    for ours, theirs in zip(results, expected, strict=True):
        if op_type in ("Softmax", "Gelu", "AveragePool"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_older_opsets_hold_their_arguments_in_attributes():
    for op_type, attrs, expected in [
        ("Squeeze", {"axes": [0]}, X[:1][0]),
        ("Unsqueeze", {"axes": [0]}, X[None, :1]),
        ("Slice", {"starts": [1], "ends": [3], "axes": [2]}, X[:1, :, 1:3]),
        (
            "Pad",
            {"pads": [0, 0, 0, 0, 0, 0, 0, 1], "value": 2.0},
            np.pad(X[:1], [(0, 0)] * 3 + [(0, 1)], constant_values=2),
        ),
    ]:
        (result,) = evaluate_onnx(op_type, "", 9, [X[:1]], attrs, 1)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("sizes", [None, (2, 3, 8, 10), (2, 3, 7, 3), (2, 3, 1, 12)])
def test_nearest_resize_is_that_of_onnx(run_op, transformation, nearest, sizes):
    scales = np.array([1, 1, 2, 3], np.float32) if sizes is None else None
    wanted = None if sizes is None else np.array(sizes, I64)
    attrs = {"coordinate_transformation_mode": transformation, "nearest_mode": nearest}
    (expected,) = run_op("Resize", [X, None, scales, wanted], [np.uint8], {**attrs, "mode": "nearest"})
    result = evaluate_onnx("Resize", "", 21, [X, None, scales, wanted], attrs, 1)
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("nearest", ["floor", "ceil"])
@pytest.mark.parametrize("scales", [(1 / 3, 0.7), (0.6, 0.1), (0.3, 2.2), (2 / 3, 1.7)])
def test_where_float32_rounds_decides_what_is_nearest(run_op, transformation, nearest, scales):
    x = np.arange(12 * 20, dtype=np.uint8).reshape(1, 1, 12, 20)  # 20 * float32(0.7) is 14, and below it in float64
    given = np.array([1, 1, *scales], np.float32)
    attrs = {"coordinate_transformation_mode": transformation, "nearest_mode": nearest}
    (expected,) = run_op("Resize", [x, None, given], [np.uint8], {**attrs, "mode": "nearest"})
    np.testing.assert_array_equal(evaluate_onnx("Resize", "", 21, [x, None, given], attrs, 1)[0], expected)


def test_what_is_halfway_but_for_float32_is_halfway():
    """14 to 4: the second of four lies at 3.5, which float32 takes for 3.4999998."""
    x, sizes = np.arange(14, dtype=np.int16)[None], np.array([1, 4], I64)
    for nearest, expected in (("round_prefer_ceil", [0, 4, 7, 11]), ("round_prefer_floor", [0, 3, 7, 10])):
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest}
        assert evaluate_onnx("Resize", "", 21, [x, None, None, sizes], attrs, 1)[0].tolist() == [expected]


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "floor"])
def test_the_resize_that_old_tensorflow_exports_use(run_op, nearest):
    scales = np.array([1, 1, 2, 3], np.float32)
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": nearest}
    (expected,) = run_op(
        "Resize", [X, np.zeros(0, np.float32), scales], [np.uint8], {**attrs, "mode": "nearest"}, opset=11
    )
    (result,) = evaluate_onnx("Resize", "", 11, [X, None, scales], attrs, 1)
    np.testing.assert_array_equal(result, expected)


def test_resize_leaves_what_it_does_not_know_to_onnx():
    assert resize_nearest(X, None, None, "half_pixel", "floor") is None
    assert resize_nearest(X, np.array([1, 1, 2, 2.0]), None, "tf_crop_and_resize", "floor") is None
    assert resize_nearest(X, np.array([1, 1, 2, 2.0]), None, "half_pixel", "up") is None
    assert resize_nearest(X, np.array([1, 1, 2, 2.0]), None, "half_pixel_symmetric", "floor") is None


def test_an_operator_that_nothing_can_run_is_a_diagnostic():
    with pytest.raises(CompileError, match=r"QAT302.*Unheard"):
        evaluate_onnx("Unheard", "", 21, [X], {}, 1)
    with pytest.raises(CompileError, match=r"QAT302.*com\.example\.Unheard"):
        evaluate_onnx("Unheard", "com.example", 1, [X], {"table": np.arange(3), "n": np.int64(3)}, 1)
    with pytest.raises(CompileError, match=r"QAT302.*MatMul"):
        evaluate_onnx("MatMul", "", 21, [X, X[..., :1]], {}, 1)


@pytest.mark.parametrize(
    ("op_type", "operands", "attrs"),
    [
        ("Gather", [np.array([2], I64)], {}),
        ("Reshape", [np.array([7, -1], I64)], {}),
        ("Slice", [np.array([0], I64), np.array([1], I64), np.array([4], I64)], {}),
        ("Split", [], {"axis": 4}),
        ("Pad", [np.zeros(2, I64), None, np.array([4], I64)], {}),
        ("Cast", [], {"to": 99}),
    ],
)
def test_operands_that_do_not_fit_are_a_diagnostic(op_type, operands, attrs):
    with pytest.raises(CompileError, match=rf"QAT302.*{op_type} cannot be evaluated"):
        evaluate_onnx(op_type, "", 21, [X, *operands], attrs, 1)
