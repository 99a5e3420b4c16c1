"""Sums and means over any dimensions are products with ones: rounded once, exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Conv, Float, IntegerGraph, MatMul, Pool
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from tests.pipeline import folded, integer


def reduction_model(
    op: str, shape: list[Any], axes: list[int] | None, grids: list[tuple[float, int]], *, keepdims: int, opset: int = 18
) -> onnx.ModelProto:
    """`op` between two uint8 quantizers; axes are an input from opset 18 on, and of ReduceSum before."""
    (sx, zx), (sy, zy) = grids
    values = {
        "sx": np.float32(sx), "zx": np.uint8(zx), "sy": np.float32(sy), "zy": np.uint8(zy),
        "axes": np.asarray(axes or [], np.int64),
    }  # fmt: skip
    as_input = opset >= 18 or op == "ReduceSum"
    attrs = {} if as_input or axes is None else {"axes": axes}
    inputs = ["xd", "axes"] if as_input and axes is not None else ["xd"]
    make = helper.make_node
    graph = helper.make_graph(
        [
            make("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
            make("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
            make(op, inputs, ["t"], keepdims=keepdims, **attrs),
            make("QuantizeLinear", ["t", "sy", "zy"], ["yq"]),
            make("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
        ],
        "reduction",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def is_integer(graph: IntegerGraph) -> bool:
    return not any(isinstance(op, Float) for op in graph.ops)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    op = draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceL1"]))
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1, unique=True))
    return op, shape, [a - len(shape) if draw(st.booleans()) else a for a in axes]


@settings(max_examples=150)
@given(
    case=cases(),
    keepdims=st.integers(0, 1),
    opset=st.sampled_from([17, 18]),
    zero=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    exponents=st.tuples(st.integers(-6, 0), st.integers(-3, 4)),
    seed=st.integers(0, 999),
)
def test_the_result_is_the_exact_one_rounded_to_even(
    case: tuple[str, list[int], list[int]], keepdims: int, opset: int, zero: tuple[int, int],
    exponents: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    """In fractions, in the emitted model, and in the file itself; scales are powers of two, so that ties are many."""
    op, shape, axes = case
    zero_x = 0 if op == "ReduceL1" else zero[0]
    grids = [(2.0 ** exponents[0], zero_x), (2.0 ** exponents[1], zero[1])]
    model = reduction_model(op, shape, axes, grids, keepdims=keepdims, opset=opset)
    graph = integer(model)
    assert is_integer(graph)
    q = np.random.default_rng(seed).integers(0, 256, shape)
    feeds = {"x": ((q - zero_x) * grids[0][0]).astype(np.float32)}
    total = (q - zero_x).sum(axis=tuple(axes), keepdims=bool(keepdims)).astype(object) * Fraction(grids[0][0])
    count = np.prod([shape[a] for a in axes], dtype=int) if op == "ReduceMean" else 1
    real = np.asarray(total / int(count) / Fraction(grids[1][0]), object)
    steps = np.vectorize(round, otypes=[object])(real)
    want = ((steps + zero[1]).clip(0, 255) - zero[1]).astype(np.float32) * np.float32(grids[1][0])
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    found = {name: execute(graph, feeds, get_profile(name))["y"] for name in ("exact", "onnx")}
    found["package"] = RunnableModel(emission.complete()).run(feeds)["y"]
    if count & (count - 1) == 0:
        found["file"] = RunnableModel(model).run(feeds)["y"]
        tied = np.zeros(want.shape, np.bool_)
    else:  # the K-th part of a scale is no floating-point number: a tie may fall to either side
        tied = np.asarray(np.vectorize(lambda r: r % 1 == Fraction(1, 2), otypes=[bool])(real))
    for name, value in found.items():
        assert value.shape == want.shape
        assert ((value == want) | (tied & (np.abs(value - want) <= grids[1][0]))).all(), name


@settings(max_examples=40)
@given(case=cases(), scales=st.tuples(st.floats(0.01, 0.1), st.floats(0.05, 3)), seed=st.integers(0, 999))
def test_any_scales_pass_verification(
    case: tuple[str, list[int], list[int]], scales: tuple[float, float], seed: int
) -> None:
    op, shape, axes = case
    zero = 0 if op == "ReduceL1" else 120
    model = reduction_model(op, shape, axes, [(scales[0], zero), (scales[1], 90)], keepdims=1)
    graph = integer(model)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    x = np.random.default_rng(seed).normal(0, 128 * scales[0], shape).astype(np.float32)
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [{"x": x}])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]


GRIDS = [(0.05, 128), (0.5, 128)]


def test_means_over_positions_stay_pooling() -> None:
    graph = integer(reduction_model("ReduceMean", [1, 4, 5, 5], [2, 3], GRIDS, keepdims=1))
    assert [op.kind for op in graph.ops if isinstance(op, MatMul | Pool)] == ["Pool"]


def test_dimensions_that_stay_may_be_symbolic() -> None:
    model = reduction_model("ReduceSum", ["N", 4, "H", 5], [1, -1], GRIDS, keepdims=1)
    graph = integer(model)
    assert is_integer(graph)
    x = np.random.default_rng(0).normal(0, 3, (2, 4, 3, 5)).astype(np.float32)
    found = RunnableModel(BACKEND.emit(graph, BACKEND.checked({})).complete()).run({"x": x})["y"]
    np.testing.assert_array_equal(found, execute(graph, {"x": x}, get_profile("onnx"))["y"])
    assert found.shape == (2, 1, 3, 1)


@pytest.mark.parametrize(
    ("op", "shape", "axes", "grids"),
    [
        pytest.param("ReduceSum", [2, "T", 3], [1], GRIDS, id="a sum of unknown length"),
        pytest.param("ReduceSum", [2, 3], [0, 1], GRIDS, id="everything"),
        pytest.param("ReduceSum", [2, 3], None, GRIDS, id="everything, unsaid"),
        pytest.param("ReduceL1", [2, 3], [1], GRIDS, id="magnitudes of both signs"),
        pytest.param("ReduceL2", [2, 3], [1], [(0.05, 0), (0.5, 0)], id="squares"),
        pytest.param("ReduceMean", [2, 96], [1], [(0.05, 128), (1e-7, 126)], id="a mean of rounding errors"),
    ],
)
def test_what_is_no_product_with_ones_stays_in_float(
    op: str, shape: list[Any], axes: list[int] | None, grids: list[tuple[float, int]]
) -> None:
    assert not is_integer(integer(reduction_model(op, shape, axes, grids, keepdims=1)))


def test_a_mean_of_rounding_errors_says_so(tmp_path: Path) -> None:
    """What a normalization makes has the mean zero, but for float32: calibration gave that a range of its own."""
    model = reduction_model("ReduceMean", [2, 96], [1], [(0.05, 128), (1e-7, 126)], keepdims=1)
    onnx.save(model, tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    (island,) = result.islands
    assert "rounding errors" in island.reason


def test_a_sum_of_unknown_length_says_so(tmp_path: Path) -> None:
    onnx.save(reduction_model("ReduceSum", [2, "T", 3], [1], GRIDS, keepdims=1), tmp_path / "model.onnx")
    (island,) = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out").islands
    assert "how many elements it adds up is not known" in island.reason
    pinned = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out", shapes={"x": [2, 5, 3]})
    assert not pinned.islands


def scaled_model(
    op: str, shape: list[int], grids: list[tuple[float, int]], then: list[tuple[str, float]], attrs: dict[str, Any]
) -> onnx.ModelProto:
    """`op` and element-wise operators with one number each, between two uint8 quantizers."""
    (sx, zx), (sy, zy) = grids
    values = {
        "sx": np.float32(sx), "zx": np.uint8(zx), "sy": np.float32(sy), "zy": np.uint8(zy),
        "axes": np.asarray(attrs.pop("axes", []), np.int64),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        make("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        make(op, ["xd", "axes"] if values["axes"].size else ["xd"], ["t0"], **attrs),
    ]
    for index, (name, number) in enumerate(then):
        values[f"c{index}"] = np.float32(number)
        nodes.append(make(name, [f"t{index}", f"c{index}"], [f"t{index + 1}"]))
    nodes += [
        make("QuantizeLinear", [f"t{len(then)}", "sy", "zy"], ["yq"]),
        make("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


# operator -> attributes, and by how much it divides
REDUCERS: dict[str, tuple[dict[str, Any], int]] = {
    "ReduceSum": ({"axes": [1, -1]}, 1), "ReduceMean": ({"axes": [2]}, 4), "GlobalAveragePool": ({}, 32),
    "AveragePool": ({"kernel_shape": [2, 4], "strides": [1, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1}, 8),
}  # fmt: skip


@settings(max_examples=80)
@given(
    op=st.sampled_from(sorted(REDUCERS)),
    scale=st.tuples(st.sampled_from(["Mul", "Div"]), st.sampled_from([0.5, -0.25, 3.0, -1.0, 8.0])),
    offset=st.none() | st.sampled_from([1.5, -0.625, 40.0]),
    exponents=st.tuples(st.integers(-6, 0), st.integers(-3, 4)),
    zero=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    seed=st.integers(0, 999),
)
def test_a_factor_and_an_offset_are_part_of_the_sum(
    op: str,
    scale: tuple[str, float],
    offset: float | None,
    exponents: tuple[int, int],
    zero: tuple[int, int],
    seed: int,
) -> None:
    """One integer operator, which rounds once what the file computes before its quantizer."""
    grids = [(2.0 ** exponents[0], zero[0]), (2.0 ** exponents[1], zero[1])]
    then = [scale] + ([("Add", offset)] if offset is not None else [])
    attrs, count = REDUCERS[op]
    model = scaled_model(op, [2, 4, 4, 8], grids, then, dict(attrs))
    graph = integer(model)
    assert is_integer(graph)
    assert sum(isinstance(o, MatMul | Pool | Conv) for o in graph.ops) == 1
    feeds = {"x": np.random.default_rng(seed).normal(0, 128 * grids[0][0], (2, 4, 4, 8)).astype(np.float32)}
    want = RunnableModel(model).run(feeds)["y"]
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    found = {name: execute(graph, feeds, get_profile(name))["y"] for name in ("exact", "onnx")}
    found["package"] = RunnableModel(emission.complete()).run(feeds)["y"]
    unit = Fraction(grids[0][0]) / count * abs(Fraction(scale[1]) if scale[0] == "Mul" else 1 / Fraction(scale[1]))
    is_whole = (Fraction(offset or 0) / unit).denominator == 1
    for name, value in found.items():
        if (
            scale == ("Div", 3.0) or not is_whole
        ):  # a third is no float, a bias a whole number: a tie may fall to a side
            assert np.abs(value - want).max() <= grids[1][0], name
        else:
            np.testing.assert_array_equal(value, want, err_msg=name)


@pytest.mark.parametrize(
    "then", [[("Mul", np.float32(1) / np.float32(35))], [("Div", 35.0)], [("Div", 7.0), ("Mul", 0.2)]]
)
def test_a_sum_divided_by_its_count_is_a_mean(then: list[tuple[str, float]]) -> None:
    """Whether an exporter multiplies or divides: pooling, as ReduceMean is."""
    graph = integer(scaled_model("ReduceSum", [1, 3, 5, 7], GRIDS, then, {"axes": [2, 3]}))
    assert [op.kind for op in graph.ops if isinstance(op, MatMul | Pool)] == ["Pool"]


@pytest.mark.parametrize(
    ("op", "attrs", "then"),
    [
        pytest.param("ReduceSum", {"axes": [1]}, [("Mul", 0.0)], id="nothing is left of it"),
        pytest.param("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [("Mul", 9.0)], id="other counts"),
        pytest.param("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, [("Mul", 4.0)], id="cut at the end"),
        pytest.param("ReduceSum", {"axes": [1]}, [("Mul", float("nan"))], id="no number"),
    ],
)
def test_what_is_no_multiple_of_an_integer_sum_stays(
    op: str, attrs: dict[str, Any], then: list[tuple[str, float]]
) -> None:
    assert not is_integer(integer(scaled_model(op, [1, 4, 5, 5], GRIDS, then, dict(attrs))))


def test_a_sum_needs_no_range_before_its_factor() -> None:
    """--calibrate asks for none: sum and factor are one operator."""
    graph = folded(scaled_model("ReduceSum", [1, 4, 5, 5], GRIDS, [("Mul", 0.3), ("Add", 1.0)], {"axes": [1]}))
    assert missing_ranges(graph) == []


@pytest.mark.parametrize(
    ("op", "shape", "axes"),
    [("ReduceMean", [1, 1, 3000, 3000], [2, 3]), ("ReduceSum", [1, 9_000_000], [1])],
)
def test_more_elements_than_32_bits_hold_stay_in_float(op: str, shape: list[int], axes: list[int]) -> None:
    """Runtimes add in int32, and wrap around: a mean was 12 where it is 2."""
    graph = integer(reduction_model(op, shape, axes, [(0.01, 0), (1e5, 0)], keepdims=1))
    assert [op.reason for op in graph.islands()] == ["it adds up more elements than 32 bits hold"]


def test_a_finer_unit_for_the_bias_leaves_room_for_the_sum() -> None:
    """Ones were made 127, whatever they add up: 90,000 elements wrapped around."""
    step, shape, attrs = 2e-5, [1, 1, 300, 300], {"kernel_shape": [300, 300]}
    graph = integer(scaled_model("AveragePool", shape, [(0.01, 0), (step, 0)], [("Add", -2.549)], attrs))
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    (found,) = RunnableModel(emission.complete()).run({"x": np.full(shape, 2.55, np.float32)}).values()
    exact = 255 * float(np.float32(0.01)) - float(np.float32(2.549))
    np.testing.assert_allclose(found, round(exact / step) * step, rtol=1e-6)
