"""MultiThreshold nodes against their definition: channels, layouts, sums of integers, tables, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.frontends.qonnx import DOMAINS, FRONTEND
from qatc.frontends.qonnx.lattice import unit_of
from tests.frontends import networks as nets
from tests.frontends.networks import Builder
from tests.frontends.running import values

DOMAIN = DOMAINS[0]


def definition(x: np.ndarray, rows: np.ndarray, axis: int, scale: float = 1.0, bias: float = 0.0) -> np.ndarray:
    """QONNX's own: how many thresholds are reached."""
    moved = np.moveaxis(x, axis, -1)[..., None]
    return np.moveaxis(scale * np.count_nonzero(moved >= rows, axis=-1) + bias, -1, axis).astype(np.float32)


def read(b: Builder, shape: list[int]) -> QuantGraph:
    graph = nets.graph_of(nets.model_of(b, shape))
    FRONTEND.normalize(graph, FrontendOptions())
    return graph


def thresholds(b: Builder, x: str, rows: np.ndarray, y: str, **attrs: Any) -> str:
    b.opsets[DOMAIN] = 1
    return b.node("MultiThreshold", [x, b.constant(f"{y}.t", rows, np.float32)], y, DOMAIN, **attrs)


def grids(graph: QuantGraph) -> list[str]:
    return [str(n.attrs["params"]) for n in graph.nodes if n.op == FAKE_QUANT]


@pytest.mark.parametrize(
    ("shape", "layout", "axis"),
    [([2, 3, 5, 4], "", 1), ([2, 5, 4, 3], "NHWC", 3), ([2, 5, 3], "", 2), ([2, 3, 5], "NCW", 1), ([7, 3], "", 1)],
)
@pytest.mark.parametrize("each", [True, False])
def test_evenly_spaced(shape: list[int], layout: str, axis: int, each: bool) -> None:
    """Thresholds of each channel, in every layout: one FakeQuant, and as many results off as lie on a threshold."""
    step = np.array([0.25, 0.125, 0.5])[: 3 if each else 1, None]
    rows = step * (np.arange(15) - 6.5) + 0.03
    b = Builder()
    thresholds(b, "input", rows, "q", out_dtype="INT4", out_bias=-8.0, data_layout=layout)
    b.node("Mul", ["q", b.constant("s", np.float32(0.25))], "output")
    graph = read(b, shape)
    graph.diagnostics.check()
    x = np.random.default_rng(0).normal(0, 1.5, shape).astype(np.float32)
    assert grids(graph) == ["int8[-8,7] scale 0.25 zero 0"]
    assert np.array_equal(values(graph, x), definition(x, rows, axis, 0.25, -2.0))
    assert [n.op for n in graph.nodes] == (["Mul", "Add", FAKE_QUANT] if each else ["Add", FAKE_QUANT])


@given(st.integers(0, 2**32 - 1), st.integers(1, 31))
@settings(max_examples=30)
def test_thresholds_of_integer_sums(seed: int, n: int) -> None:
    """Batch norm in the thresholds, rounded up to integers: exact at every sum, those on a threshold included."""
    rng = np.random.default_rng(seed)
    step, start = rng.uniform(1.5, 9, (4, 1)), rng.uniform(-30, 30, (4, 1))
    rows = np.ceil(start + step * np.arange(n))
    b = Builder()
    thresholds(b, "input", np.arange(-7, 8)[None] - 0.5, "x", out_dtype="INT4", out_bias=-8.0)
    w = rng.integers(-3, 4, (6, 4))
    w[0] = 1
    b.node("MatMul", ["x", b.constant("w", w, np.float32)], "sum")
    thresholds(b, "sum", rows, "output", out_dtype="UINT5")
    graph = read(b, [50, 6])
    refused = [d.code for d in graph.diagnostics.errors]
    if refused:  # no line is far enough from the integers
        assert refused == ["QAT103"]
        return
    x = rng.integers(-8, 8, (50, 6)).astype(np.float32)
    assert np.array_equal(values(graph, x), definition(x @ w.astype(np.float32), rows, 1))


@pytest.mark.parametrize("seed", range(4))
def test_signs_behind_signs(seed: int) -> None:
    """{-1, 1} is a grid of step 2 and an addition; sums of them are exact on the threshold."""
    rng = np.random.default_rng(seed)
    b = Builder()
    signs = {"out_dtype": "BIPOLAR", "out_scale": 2.0, "out_bias": -1.0}
    thresholds(b, "input", np.zeros((1, 1)), "x", **signs)
    w = rng.choice([-1, 1], (8, 3))
    b.node("MatMul", ["x", b.constant("w", w, np.float32)], "sum")
    rows = np.array([[0.0], [2.0], [-4.0]])
    thresholds(b, "sum", rows, "output", **signs)
    graph = read(b, [64, 8])
    graph.diagnostics.check()
    x = rng.normal(0, 1, (64, 8)).astype(np.float32)
    sums = np.where(x >= 0, 1, -1) @ w
    assert np.array_equal(values(graph, x), definition(sums, rows, 1, 2.0, -1.0))


def quantized(b: Builder) -> str:
    b.opsets[DOMAIN] = 1
    numbers = [b.constant(f"p{i}", np.float32(v)) for i, v in enumerate((0.5, 3.0, 4.0))]
    return b.node("Quant", ["input", *numbers], "x", DOMAIN, signed=0, narrow=0, rounding_mode="ROUND")


def test_uneven_on_an_8_bit_tensor_is_a_table() -> None:
    rows = np.array([[-1.2, -0.1, 0.5, 0.6, 4.0]])
    b = Builder()
    thresholds(b, quantized(b), rows, "output", out_dtype="UINT3", out_scale=0.5)
    graph = read(b, [40, 6])
    graph.diagnostics.check()
    x = (np.random.default_rng(0).integers(-4, 20, (40, 6)) * 0.5).astype(np.float32)
    rounded = np.clip(x, -1.5, 6.0)
    assert [n.op for n in graph.nodes][-2:] == ["Gather", FAKE_QUANT]
    assert np.array_equal(values(graph, x), definition(rounded, rows, 1, 0.5))


@pytest.mark.parametrize(("fill", "code"), [(0.5, []), (0.3, ["QAT103"])])
def test_a_table_of_a_padded_tensor_needs_padding_on_its_grid(fill: float, code: list[str]) -> None:
    rows = np.array([[-1.2, -0.1, 0.4, 0.6, 4.0]])
    b = Builder()
    ends = b.constant("ends", np.array([0, 1, 0, 0]), np.int64)
    thresholds(b, b.node("Pad", [quantized(b), ends, b.constant("fill", np.float32(fill))], "p"), rows, "output")
    graph = read(b, [40, 6])
    assert [d.code for d in graph.diagnostics.errors] == code
    if not code:
        x = (np.random.default_rng(0).integers(-4, 20, (40, 6)) * 0.5).astype(np.float32)
        padded = np.pad(np.clip(x, -1.5, 6.0), [(0, 0), (1, 0)], constant_values=fill)
        assert np.array_equal(values(graph, x), definition(padded, rows, 1))


@pytest.mark.parametrize(
    ("rows", "attrs", "code"),
    [
        ([[0.0, 1.0, 5.0]], {}, "QAT103"),
        ([[0.0, 1.0], [0.0, 2.0]], {}, "QAT204"),
        ([[0.0, float("nan")]], {}, "QAT104"),
        ([0.0, 1.0], {}, "QAT104"),
        ([[0.0, 1.0]], {"out_scale": -1.0}, "QAT201"),
        ([[0.0, 1.0]], {"out_scale": 0.0}, "QAT201"),
    ],
)
def test_refused(rows: Any, attrs: dict[str, float], code: str) -> None:
    b = Builder()
    thresholds(b, "input", np.asarray(rows), "output", out_dtype="UINT2", **attrs)
    graph = read(b, [4, 3])
    assert [d.code for d in graph.diagnostics.errors] == [code]
    assert graph.diagnostics.errors[0].node


@pytest.mark.parametrize(
    ("op", "by", "first", "grid"),
    [
        ("Mul", 0.25, False, "uint8[0,15] scale 0.25 zero 0"),
        ("Mul", 0.25, True, "uint8[0,15] scale 0.25 zero 0"),
        ("Div", 4, False, "uint8[0,15] scale 0.25 zero 0"),
        ("Add", 1, True, "uint8[1,16] scale 1 zero 0"),
        ("Sub", 8, False, "int8[-8,7] scale 1 zero 0"),
    ],
)
def test_arithmetic_behind_belongs_to_the_quantizer(op: str, by: float, first: bool, grid: str) -> None:
    b = Builder()
    thresholds(b, "input", np.arange(15)[None] + 0.5, "q", out_dtype="UINT4")
    operands = ["q", b.constant("s", np.float32(by))]
    b.node(op, operands[::-1] if first else operands, "output")
    graph = read(b, [4, 3])
    graph.diagnostics.check()
    assert grids(graph) == [grid]
    x = np.random.default_rng(1).normal(5, 5, (4, 3)).astype(np.float32)
    want = definition(x, np.arange(15)[None] + 0.5, 1)
    apply = {"Mul": np.multiply, "Div": np.divide, "Add": np.add, "Sub": np.subtract}[op]
    assert np.array_equal(values(graph, x), apply(want, np.float32(by)))


def test_what_takes_a_number_minus_the_count_is_not_the_quantizer_s() -> None:
    b = Builder()
    thresholds(b, "input", np.arange(15)[None] + 0.5, "q", out_dtype="UINT4")
    b.node("Sub", [b.constant("s", np.float32(8)), "q"], "output")
    graph = read(b, [4, 3])
    assert grids(graph) == ["uint8[0,15] scale 1 zero 0"]
    assert graph.nodes[-1].op == "Sub"


def test_a_factor_that_others_read_too_stays() -> None:
    """What multiplies one of two readers is not the quantizer's."""
    b = Builder()
    thresholds(b, "input", np.arange(15)[None] + 0.5, "q", out_dtype="UINT4")
    b.node("Mul", ["q", b.constant("s", np.float32(0.25))], "m")
    b.node("Add", ["m", "q"], "output")
    graph = read(b, [4, 3])
    graph.diagnostics.check()
    x = np.random.default_rng(1).normal(5, 5, (4, 3)).astype(np.float32)
    want = definition(x, np.arange(15)[None] + 0.5, 1)
    assert grids(graph) == ["uint8[0,15] scale 1 zero 0"]
    assert np.array_equal(values(graph, x), want * np.float32(1.25))


def test_unit_of_sums() -> None:
    b = Builder()
    thresholds(b, "input", np.arange(3)[None] + 0.5, "x", out_dtype="UINT2", out_scale=0.5)
    b.node("Relu", ["x"], "r")
    b.node("MatMul", ["r", b.constant("w", [[0.75], [-0.5], [0.25]], np.float32)], "m")
    b.node("Add", ["m", b.constant("c", [0.1875], np.float32)], "a")
    b.node("Softmax", ["a"], "output")
    graph = read(b, [4, 3])
    tensors = {t.name: t for t in graph.tensors()}
    found = [unit_of(graph, tensors[name]) for name in ("x", "r", "a", "output", "input")]
    assert found == [0.5, 0.5, 0.0625, None, None]


def test_unit_of_what_is_padded() -> None:
    b = Builder()
    thresholds(b, "input", np.arange(3)[None] + 0.5, "x", out_dtype="UINT2", out_scale=0.5)
    ends = b.constant("ends", np.array([0, 1, 0, 0]), np.int64)
    b.node("Pad", ["x", ends, b.constant("fill", np.float32(0.125))], "output")
    graph = read(b, [4, 3])
    assert unit_of(graph, graph.outputs[0]) == 0.125


def test_what_is_multiplied_by_zero_has_no_unit() -> None:
    """Zero is a multiple of everything, and no number is one of zero."""
    b = Builder()
    thresholds(b, "input", np.arange(3)[None] + 0.5, "x", out_dtype="UINT2", out_scale=0.5)
    b.node("Mul", ["x", b.constant("none", np.float32(0))], "output")
    graph = read(b, [4, 3])
    assert unit_of(graph, graph.outputs[0]) is None
