"""Rounding down and up: the integers are the floor (ceiling) of the exact sum, on multiples of a step among others."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Conv, Elementwise, Float, IntegerGraph, MatMul
from qatc.compiler.lowering import LoweringOptions, cuts
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from tests.agreeing import agrees, lowered, reasons
from tests.compiler.lowering.test_signs import OPS, exact_sums, product_model, sample
from tests.graphs import net
from tests.pipeline import integer

EXACT: Final = ("onnx", "exact", "tosa", "tflite-single")  # what rounds once, by factors of many digits


def cut_model(rng: np.random.Generator, op: str, way: str, *, dyadic: bool, step: float, zero: int) -> onnx.ModelProto:
    """A product, a Relu or not, rounded one way."""
    relu = bool(rng.integers(2))
    lines = ["r = Relu(t)"] if relu else []
    lines += [f"d = Div({'r' if relu else 't'}, st)", f"f = {way}(d)", "y = Mul(f, st)"]
    more = {"st": np.float32(step), "sy": np.float32(step), "zy": np.uint8(zero)}
    limit = int(rng.choice([1, 7, 63, 128]))
    return product_model(rng, op, lines, dyadic=dyadic, limit=limit, bias=bool(rng.integers(2)), more=more)


def rounded(model: onnx.ModelProto, feeds: dict[str, np.ndarray], way: str) -> np.ndarray:
    """The output in rational numbers."""
    given_ = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    total, _ = exact_sums(model, feeds)
    step, zero = Fraction(float(given_["st"])), int(given_["zy"])
    if any(n.op_type == "Relu" for n in model.graph.node):
        total = np.maximum(total, Fraction(0))
    steps = np.vectorize(math.floor if way == "Floor" else math.ceil, otypes=[np.int64])(total / step)
    return (steps.clip(-zero, 255 - zero) * given_["st"]).astype(np.float32)


@pytest.mark.parametrize("way", ["Floor", "Ceil"])
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-2, 5))
def test_powers_of_two_are_cut_exactly(op: str, way: str, seed: int, exponent: int) -> None:
    """In every arithmetic that rounds once, in the emitted model and in the file."""
    rng = np.random.default_rng(seed)
    model = cut_model(rng, op, way, dyadic=True, step=2.0**exponent, zero=int(rng.choice([0, 1, 100, 128, 254])))
    feeds = sample(model, rng)
    wanted = rounded(model, feeds, way)
    np.testing.assert_array_equal(RunnableModel(model).run(feeds)["out"], wanted)
    for name in (*EXACT, "pow2", "tflite", "cmsis-nn"):
        graph = integer(model, arithmetic=name)
        found = execute(graph, feeds, get_profile(name))["out"]
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        if name in EXACT:
            assert exponent < 0 or not any(isinstance(o, Float) for o in graph.ops)
            emission = BACKEND.emit(graph, BACKEND.checked({}))
            np.testing.assert_array_equal(RunnableModel(emission.complete()).run(feeds)["out"], wanted, err_msg=name)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    op=st.sampled_from(OPS),
    way=st.sampled_from(["Floor", "Ceil"]),
    step=st.floats(0.01, 30) | st.sampled_from([0.3, 0.75, 3.0, 4.5, 20.0]),
    dyadic=st.booleans(),
)
def test_any_steps_are_cut_exactly_or_in_float(seed: int, op: str, way: str, step: float, dyadic: bool) -> None:
    """And the compile's own check sees no more than float32 at multiples of a step."""
    rng = np.random.default_rng(seed)
    model = cut_model(rng, op, way, dyadic=dyadic, step=step, zero=int(rng.choice([0, 128])))
    graph, feeds = integer(model), sample(model, rng)
    if dyadic and not any(isinstance(o, Float) for o in graph.ops):
        np.testing.assert_array_equal(execute(graph, feeds, get_profile("onnx"))["out"], rounded(model, feeds, way))
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [feeds])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]


DENSE: Final = """x = A(i)
w = DequantizeLinear<axis = 1>(wq, ws, wz)
t = MatMul(x, w)"""
FLOOR: Final = """d = Div({x}, st)
f = Floor(d)
y = Mul(f, st)
o = {grid}(y)"""
WEIGHTS: Final = (
    "int8[4,2] wq = {127, -3, 5, 7, -128, 100, 1, 2}, float[2] ws = {0.0078125, 0.00390625}, int8[2] wz = {0, 0}"
)


def dense(rest: str, *, step: float = 0.0625, grid: str = "D", x: str = "t", more: str = "", op: str = "Floor") -> str:
    """A product that is rounded one way: 16 and 32 units to a step of 1/16."""
    body = "\n".join([DENSE, *([rest] if rest else []), FLOOR.format(x=x, grid=grid).replace("Floor", op)])
    return net("(float[3,4] i) => (float[3,2] o)", body, f"{WEIGHTS}, float st = {{{step}}}{more}")


def product_of(graph: IntegerGraph) -> Conv | MatMul:
    assert not reasons(graph)
    (op,) = [op for op in graph.ops if isinstance(op, Conv | MatMul)]
    return op


def test_sums_that_may_be_negative_count_from_the_lowest_integer_on() -> None:
    """So that ties, which a smaller factor moves toward zero, move down."""
    graph = agrees(dense(""))
    made = product_of(graph)
    assert graph.params(made.output).zero_point == (0,)
    (moved,) = [op for op in graph.ops if op.title == "Identity"]
    assert moved.inputs == (made.output,)
    assert graph.params(moved.output).zero_point == (128,)
    assert graph.constants[made.inputs[2]].tolist() == [1 - 8 + 128 * 16, 1 - 16 + 128 * 32]
    assert made.acc_scale[0] < 2.0**-8


@pytest.mark.parametrize(
    ("rest", "x", "more"),
    [
        ("r = Relu(t)", "r", ""),
        ("c = Clip(t, no, three)", "c", ", float no = {0}, float three = {3.3}"),
        ("r = Relu(t)\nu = Reshape(r, sizes)", "u", ", int64[2] sizes = {3, 2}"),
        ("u = Transpose<perm = [1, 0]>(t)\nr = Relu(u)\nv = Transpose<perm = [1, 0]>(r)", "v", ""),
    ],
)
def test_clamps_and_moves_in_front_are_the_integers_own(rest: str, x: str, more: str) -> None:
    graph = agrees(dense(rest, x=x, grid="B", step=0.25, more=more))
    made = product_of(graph)
    assert not any(op.title == "Identity" for op in graph.ops)
    assert graph.params(made.output).zero_point == (0,)
    assert graph.constants[made.inputs[2]].tolist() == [1 - 32, 1 - 64]


def test_a_target_that_rounds_ties_up_takes_half_a_step_off() -> None:
    graph = agrees(dense(""), LoweringOptions(arithmetic="pow2"), samples=0)
    made = product_of(graph)
    assert graph.constants[made.inputs[2]].tolist() == [-8, -16]
    assert made.acc_scale == (2.0**-8, 2.0**-9)


def test_a_target_that_rounds_twice_cuts_in_float() -> None:
    graph = agrees(dense(""), LoweringOptions(arithmetic="tflite"))
    assert reasons(graph) == [
        f"{op}: it rounds down or up, which no integer operator does exactly with these scales"
        for op in ("Floor", "Mul")
    ]


def test_steps_that_are_no_whole_number_of_units_are_cut_in_float() -> None:
    text = dense("", step=0.0625).replace("0.0078125", "0.0078")
    assert [r.split(":")[0] for r in reasons(agrees(text))][:1] == ["Floor"]


def test_more_channels_than_memory_allows_to_prove_are_cut_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    text = dense("")
    assert not reasons(agrees(text))
    monkeypatch.setattr(cuts, "_MOST_PROVEN", 2 * 255 - 1)
    assert [r.split(":")[0] for r in reasons(agrees(text))][:1] == ["Floor"]


def test_decimal_steps_are_whole_numbers_but_for_float32(tmp_path: Path) -> None:
    """0.1 * 0.1 goes 30 times into 0.3: -30 is one step down, although float32 may say it is two."""
    nodes = (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, s, wz) t = MatMul(d, w) "
        "a = Div(t, st) f = Floor(a) c = Clip(f, lo, hi) y = Mul(c, st)"
    )
    constants = (
        "float s = {0.1}, uint8 z = {128}, int8[1,1] wq = {1}, int8 wz = {0}, float st = {0.3}, float lo = {-128}, "
        "float hi = {127}"
    )
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[250,1] x) => (float[250,1] y) <{constants}> {{ {nodes} }}'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    x = (np.arange(-125, 125, dtype=np.float32) * np.float32(0.1)).reshape(-1, 1)
    np.save(tmp_path / "x.npy", x)
    found = compile_model(
        tmp_path / "model.onnx", qat=True, output=tmp_path / "out", inputs={"x": str(tmp_path / "x.npy")}
    )
    assert found.verification is not None
    assert found.verification.passed
    assert not found.islands
    got = RunnableModel(onnx.load(tmp_path / "out" / "model.onnx")).run({"x": x})["y"]
    np.testing.assert_array_equal(np.rint(got / 0.3), np.arange(-125, 125).reshape(-1, 1) // 30)


@pytest.mark.parametrize("op", ["Floor", "Ceil"])
@pytest.mark.parametrize("grids", ["AA", "AB", "BA", "BD", "CD"])
def test_sums_of_two_tensors(op: str, grids: str) -> None:
    """A third one, constant, keeps them from ties; integers of both signs, and multiples of a step."""
    one, two = grids
    body = f"a = {one}(i)\nb = {two}(j)\nt = Add(a, b)\n" + FLOOR.format(x="t", grid="A").replace("Floor", op)
    graph = agrees(net("(float[3,40] i, float[3,40] j) => (float[3,40] o)", body, "float st = {0.5}"))
    (made,) = [o for o in graph.ops if isinstance(o, Elementwise)]
    assert len(made.inputs) == (2 if grids == "AA" else 3)
    assert not reasons(graph)


def test_sums_that_are_multiples_of_a_step_have_nothing_to_cut() -> None:
    body = "a = A(i)\nb = B(j)\nt = Add(a, b)\n" + FLOOR.format(x="t", grid="D")
    graph = agrees(net("(float[3,40] i, float[3,40] j) => (float[3,40] o)", body, "float st = {0.0625}"))
    (made,) = [o for o in graph.ops if isinstance(o, Elementwise)]
    assert len(made.inputs) == 2
    assert not reasons(graph)


@pytest.mark.parametrize("op", ["Floor", "Ceil"])
@pytest.mark.parametrize(
    ("pool", "shape", "grid"),
    [
        ("AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", "1,3,3,3", "A"),
        ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)", "1,3,6,6", "A"),
        ("GlobalAveragePool(x)", "1,3,1,1", "A"),
        ("ReduceMean<axes = [2, 3], keepdims = 0>(x)", "1,3", "A"),
        ("ReduceMean<axes = [3]>(x)", "1,3,6,1", "A"),
    ],
)
def test_averages(op: str, pool: str, shape: str, grid: str) -> None:
    body = f"x = A(i)\nt = {pool}\n" + FLOOR.format(x="t", grid=grid).replace("Floor", op)
    graph = agrees(net(f"(float[1,3,6,6] i) => (float[{shape}] o)", body, "float st = {0.5}"))
    assert not reasons(graph)


def test_a_table_cuts_by_itself() -> None:
    graph = agrees(
        net("(float[3,4] i) => (float[3,4] o)", "x = D(i)\n" + FLOOR.format(x="x", grid="A"), "float st = {0.5}")
    )
    assert [op.kind for op in graph.ops] == ["Quantize", "Lookup", "Dequantize"]


def test_the_largest_of_a_product_is_cut_in_front() -> None:
    body = """x = A(i)
w = DequantizeLinear(wq, ws, wz)
t = Conv(x, w)
m = MaxPool<kernel_shape = [2, 2]>(t)
r = Relu(m)
""" + FLOOR.format(x="r", grid="B")
    constants = "int8[2,1,1,1] wq = {127, -3}, float ws = {0.0078125}, int8 wz = {0}, float st = {0.25}"
    graph = agrees(net("(float[1,1,4,4] i) => (float[1,2,3,3] o)", body, constants))
    assert [op.title for op in graph.ops] == ["Quantize", "Conv", "MaxPool", "Dequantize"]
    assert not reasons(graph)


@pytest.mark.parametrize("value", ["0", "-1", "1e38", "1e-38"])
def test_steps_beyond_any_sum_stay(value: str) -> None:
    graph = lowered(dense("", step=1).replace("float st = {1}", f"float st = {{{value}}}"))
    assert "Floor: " in " ".join(reasons(graph))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_steps_that_are_no_numbers_are_told(value: str) -> None:
    with pytest.raises(CompileError) as caught:
        lowered(dense("", step=1).replace("float st = {1}", f"float st = {{{value}}}"))
    assert {d.code for d in caught.value.diagnostics} == {"QAT210"}


@pytest.mark.parametrize("wrong", ["bias", "scale"])
def test_a_wrong_cut_is_found(wrong: str) -> None:
    model = onnx.parser.parse_model(dense(""))
    graph = lowered(dense(""))
    made = product_of(graph)
    if wrong == "scale":
        graph.ops[graph.ops.index(made)] = replace(made, acc_scale=tuple(s * 0.99 for s in made.acc_scale))
    else:
        graph.constants[made.inputs[2]] = graph.constants[made.inputs[2]] - 2
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    steps = np.arange(-120, 120, dtype=np.float32).reshape(-1, 3, 4) / 2
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [{"i": x} for x in steps])
    assert not found.passed


@pytest.mark.parametrize(
    ("axis", "factor"), [pytest.param(2, 0.5, id="other lengths"), pytest.param(1, -0.5, id="other signs")]
)
def test_two_sums_of_one_tensor_have_weights_of_their_own(axis: int, factor: float) -> None:
    """Both are products with ones of one scale: the second one read the first one's."""
    body = """
        xa = A(x)
        p = ReduceSum(xa, one)
        q = ReduceSum(xa, axis)
        p1 = Mul(p, half)
        q1 = Mul(q, factor)
        p2 = Div(p1, half)
        q2 = Div(q1, half)
        p3 = Floor(p2)
        q3 = Floor(q2)
        p4 = Mul(p3, half)
        q4 = Mul(q3, half)
        y = A(p4)
        z = A(q4)
    """
    constants = f"int64[1] one = {{1}}, int64[1] axis = {{{axis}}}, float half = {{0.5}}, float factor = {{{factor}}}"
    graph = agrees(net("(float[2,4,8] x) => (float y, float z)", body, constants))
    assert not reasons(graph)


@pytest.mark.parametrize(("scaled", "more"), [("Div(p, t)", ""), ("Mul(p, part)", ", float part = {10}")])
def test_clamps_in_front_end_where_float32_rounds_them_to(scaled: str, more: str, tmp_path: Path) -> None:
    """0.5 / 0.1 is 5 in float32, and less than that of the numbers it holds: what is clamped was 4."""
    weight = np.random.default_rng(0).integers(-127, 128, (8, 8))
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[1,8,6,6] x) => (float[1,8,6,6] y)
        <float s={{0.1}}, int8 z={{0}}, float sw={{0.05}}, int8[8,8,1,1] w={{{", ".join(map(str, weight.ravel()))}}},
         float t={{0.1}}, float lo={{0}}, float hi={{0.5}}{more}> {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(w, sw, z)
            c = Conv(d, k) p = Clip(c, lo, hi) v = {scaled} f = Floor(v) y = Mul(f, t)
        }}"""
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    found = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert found.verification is not None
    assert found.verification.passed
    assert any(check.op == "Conv" for check in found.verification.local)
