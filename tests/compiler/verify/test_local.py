"""Operator by operator against the simulation: what lies off its grid, and real numbers that are almost right."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.integer import Conv, Float, Lookup, MatMul
from qatc.compiler.quant import QuantParams
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.local import on_grid
from qatc.compiler.verify.tally import Tally
from tests.agreeing import lowered
from tests.compiler.verify.cases import ONNX, emitted
from tests.graphs import net

GRIDS = [QuantParams.per_tensor(0.1, 3, "uint8"), QuantParams.per_channel([0.1, 0.25], 0, [0, 5], "int8")]


@pytest.mark.parametrize("params", GRIDS, ids=str)
def test_what_is_off_its_grid_is_found(params: QuantParams) -> None:
    """Whatever float32 makes of scale * (q - zero) is on it; a hundredth of a step beside it is not."""
    codes = np.stack([np.arange(params.qmin, params.qmax + 1)] * 2).astype(params.container)
    for real in (
        params.dequantize(codes),
        codes.astype(np.float32) * params.scale_array(2) - params.zero_array(2) * params.scale_array(2),
    ):
        tally = Tally("t", "Conv", "simulation")
        found = on_grid(real, params, tally)
        assert not tally.problems
        np.testing.assert_array_equal(found, codes)
    for spoil, words in ((np.float32(0.01), "0.1 LSB off the tensor's grid"), (np.float32(np.nan), "computes NaN")):
        tally = Tally("t", "Conv", "simulation")
        real = params.dequantize(codes)
        real[0, 7] += spoil
        assert on_grid(real, params, tally) is None
        assert words in tally.problems[0]


@pytest.mark.parametrize(("steps", "passed"), [(0.0, True), (6.0, False)])
def test_real_numbers_of_accumulators_are_right_but_for_float_error(steps: float, passed: bool) -> None:
    """A few steps of the accumulator are less than what float islands may differ by, and are a bias that is wrong."""
    weight = np.random.default_rng(0).integers(-127, 128, (64, 8))
    text = net(
        "(float[4,64] x) => (float[4,8] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\ny = Add(m, b)",
        f"int8[64,8] wq = {{{', '.join(map(str, weight.ravel()))}}}, float[8] b = {{1, 2, 3, 4, 5, 6, 7, 8}}",
    )
    graph, model = lowered(text), onnx.parser.parse_model(text)
    (bias,) = (name for name in graph.constants if name.endswith("bias"))
    graph.constants[bias] = graph.constants[bias] + np.float32(steps * 0.5 * 0.0625)
    feeds = {"x": np.random.default_rng(1).normal(0, 30, (4, 64)).astype(np.float32)}
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds])
    assert found.passed == passed
    assert any("beyond float error" in check.message for check in found.local) != passed


@pytest.mark.parametrize("scale", ["1e-41", "1.2e-38"])
def test_channels_that_float32_does_not_hold_may_be_zeros_where_they_are_not_rounded(
    scale: str, tmp_path: Path
) -> None:
    """Real numbers of accumulators are equal up to float error, of which a sum without terms has none."""
    text = net(
        "(float[2,4] x) => (float[2,3] y)",
        "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\ny = MatMul(a, w)",
        "int8[4,3] wq = {1, 20, -3, -127, 5, 64, 127, 80, -9, 100, 11, 12}, "
        f"float[3] ws = {{0.5, {scale}, 0.25}}, int8[3] wz = {{0, 0, 0}}",
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "out")
    assert not result.islands
    assert "QAT201" in {d.code for d in result.diagnostics}


@pytest.mark.parametrize(("spoil", "max_lsb", "passed"), [(0, 1, True), (1, 1, False), (0, 0, False)])
def test_ties_that_a_table_rounds_on_its_way_may_fall_to_either_side(spoil: int, max_lsb: int, passed: bool) -> None:
    """Float32's error of a Sigmoid, and a whole step between it and its product: more than one of the result."""
    text = net(
        "(float[1,1,16,16] x) => (float[1,1,16,16] y)",
        "a = A(x)\ns = Mul(a, k)\nt = B(s)\nm = Mul(a, t)\ny = A(m)",
        "float k = {0.25}",
    )
    graph, model = lowered(text), onnx.parser.parse_model(text)
    (table,) = (op for op in graph.ops if isinstance(op, Lookup))
    name, mine = table.inputs[1], graph.constants[table.inputs[1]]
    other = graph.doubts[table.output]  # as if the table had taken that side, and the simulation this one
    differ = np.flatnonzero(other != mine)
    assert differ.size > 10
    assert np.abs(other.astype(int) - mine).max() > 1
    graph.constants[name], graph.doubts[table.output] = other, mine.copy()
    graph.doubts[table.output][differ[5]] += spoil
    feeds = {"x": np.linspace(-64, 64, 256, dtype=np.float32).reshape(1, 1, 16, 16)}
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds], Limits(max_lsb=max_lsb))
    assert all(check.passed for check in found.local) == passed


def test_a_table_without_ties_on_its_way_has_no_other_side() -> None:
    signature = "(float[1,1,4,4] x) => (float[1,1,4,4] y)"
    assert not lowered(net(signature, "a = A(x)\ns = Sigmoid(a)\nm = Mul(a, s)\ny = A(m)")).doubts
    assert not lowered(net(signature, "a = A(x)\ns = Mul(a, k)\nt = A(s)\ny = B(t)", "float k = {0.3137}")).doubts


@pytest.mark.parametrize("spoiled", [False, True])
def test_what_is_only_moved_since_it_was_rounded_is_judged_where_the_file_rounds(spoiled: bool) -> None:
    """A weight that is off in channel 2 alone is found there, behind a Reshape and a Transpose that stand before Q."""
    rng = np.random.default_rng(5)
    weight, bias = rng.integers(-127, 128, (4, 8)), rng.normal(0, 1, 4)
    text = net(
        "(float[1,8,3,5] x) => (float[5,3,4] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = Conv(a, w, b)\nr = Reshape(c, shape)\n"
        "t = Transpose<perm=[2,1,0]>(r)\ny = B(t)",
        f"int8[4,8,1,1] wq = {{{', '.join(map(str, weight.ravel()))}}}, int64[3] shape = {{4, 3, 5}},"
        f" float[4] b = {{{', '.join(f'{v:.6f}' for v in bias)}}}",
    )
    graph, model = lowered(text), onnx.parser.parse_model(text)
    (conv,) = (op for op in graph.ops if isinstance(op, Conv))
    assert [op.kind for op in graph.ops[graph.ops.index(conv) :]] == ["Conv", "Move", "Move", "Dequantize"]
    if spoiled:
        graph.constants[conv.inputs[1]] = graph.constants[conv.inputs[1]].copy()
        graph.constants[conv.inputs[1]][2, 5] -= 1
    feeds = {"x": rng.normal(0, 1.5, (1, 8, 3, 5)).astype(np.float32)}
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds])
    wrong = [check for check in found.local if not check.passed]
    assert [check.op for check in wrong] == ["Transpose"] * spoiled
    assert all(re.search(r"element \[\d, \d, 2\] is ", check.message) for check in wrong)


@pytest.mark.parametrize("hidden", [False, True])
def test_real_numbers_behind_what_the_file_does_not_show_judge_nothing(hidden: bool) -> None:
    """A wrong product is found where the file rounds it; where it has no such place, what reads it is not blamed."""
    rng = np.random.default_rng(5)
    weight = rng.integers(-127, 128, (8, 8))
    text = net(
        "(float[4,8] x) => (float[4,8] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\nq = B(m)\n"
        "l = LayerNormalization(q, one)\ny = A(l)",
        f"int8[8,8] wq = {{{', '.join(map(str, weight.ravel()))}}}, float[8] one = {{1, 1, 1, 1, 1, 1, 1, 1}}",
    )
    graph, model = lowered(text), onnx.parser.parse_model(text)
    (product,) = (op for op in graph.ops if isinstance(op, MatMul))
    graph.constants[product.inputs[1]] = -graph.constants[product.inputs[1]]
    (norm,) = (op for op in graph.ops if isinstance(op, Float))
    graph.tensors[norm.output] = replace(graph.tensors[norm.output], source="l")
    if hidden:
        graph.tensors[product.output] = replace(graph.tensors[product.output], source=None)
    feeds = {"x": rng.normal(0, 10, (4, 8)).astype(np.float32)}
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds])
    assert [check.op for check in found.local if not check.passed] == ([] if hidden else ["MatMul"])
    assert any("not judged" in check.message for check in found.local) == hidden


def test_integers_of_the_file_that_the_package_stores_from_0_on(tmp_path: Path) -> None:
    """Uint8 around 128 behind a Relu between real numbers, read by an integer operator: stored as 0 to 127."""
    weight = ", ".join(map(str, np.random.default_rng(0).integers(-90, 90, 36)))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,6,6] x) => (float[1,2,6,6] y)
        <float s={{0.05}}, uint8 z={{128}}, float t={{0.04}}, float sw={{0.01}}, int8 zw={{0}}, float u={{0.03}},
         int8[2,2,3,3] w={{{weight}}}> {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(w, sw, zw)
            c = Conv<pads=[1,1,1,1]>(d, k) r = Relu(c) a = QuantizeLinear(r, t, z)
            b = QLinearConv<pads=[1,1,1,1]>(a, t, z, w, sw, zw, u, z) y = DequantizeLinear(b, u, z)
        }}"""
    (tmp_path / "mixed.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = compile_model(tmp_path / "mixed.onnx", qat=True, output=tmp_path / "out")
    assert result.verification is not None
    assert result.verification.passed
    assert {"Conv"} == {check.op for check in result.verification.local if check.tensor in "ay"}


def test_a_bias_that_is_rounded_by_steps_of_the_output_is_no_defect() -> None:
    """Depthwise weights of one scale: a unit of the sums is four steps of the output, and so is the bias's."""
    text = net(
        "(float[1,2,2,4] x) => (float[1,2,2,4] y)",
        "a = A(x)\nw = DequantizeLinear(wq, ws, wz)\nm = Conv<group = 2>(a, w, b)\ny = A(m)",
        "int8[2,1,1,1] wq = {100, 127}, float ws = {4.0}, int8 wz = {0}, float[2] b = {0.8, 20.9}",
    )
    feeds = {"x": (np.arange(16).reshape(1, 2, 2, 4) % 3 / 2).astype(np.float32) - 0.5}
    graph = lowered(text)
    found = verify(graph, ONNX, Simulation(onnx.parser.parse_model(text), "the file"), emitted(graph), [feeds])
    (check,) = (check for check in found.local if check.op == "Conv")
    assert (check.passed, check.max_lsb) == (True, 2)
    (bias,) = (name for name in graph.constants if name.endswith("bias"))
    graph.constants[bias] = graph.constants[bias] + np.int32(1)
    found = verify(graph, ONNX, Simulation(onnx.parser.parse_model(text), "the file"), emitted(graph), [feeds])
    assert [check.op for check in found.local if not check.passed] == ["Conv"]


@pytest.mark.parametrize("share", [0.999, 1.0])
def test_sums_far_larger_than_a_step_are_rounded_otherwise_as_often_as_float_errs(share: float) -> None:
    """Depthwise weights of MediaPipe's pose landmarks reach 504, and an output step is 0.02."""
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-127, 128, 512), rng.integers(-110, 110, (4096, 512))
    x = np.hstack(
        [x, x + rng.integers(-3, 4, x.shape) * (rng.random(x.shape) < 0.005)]
    )  # nearly the same, of weights with the other sign
    text = net(
        "(float[4096,1024] x) => (float[4096,1] y)",
        "a = A(x)\nw = DequantizeLinear(wq, ws, wz)\nm = MatMul(a, w)\ny = A(m)",
        f"int8[1024,1] wq = {{{', '.join(map(str, [*weight, *-weight]))}}}, float ws = {{1.234567}}, int8 wz = {{0}}",
    )
    graph, simulation = lowered(text), Simulation(onnx.parser.parse_model(text), "the file")
    feeds = {"x": x.astype(np.float32) / 2}
    found = verify(graph, ONNX, simulation, emitted(graph), [feeds], limits=Limits(equal_share=share))
    (check,) = (check for check in found.local if check.op == "MatMul")
    assert check.equal_share < 0.999
    assert check.passed == (share < 1)


def test_any_number_of_ties_may_be_broken_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second sum is a tie, and a file that computes floor(x + 0.5) rounds half of these otherwise."""
    monkeypatch.setattr("qatc.compiler.verify.local._MOST_EXACT", 10)
    signature, sums = "(float[1,4,16,16] x, float[1,4,16,16] z) => (float[1,4,16,16] y)", "a = C(x)\nb = C(z)\n"
    sums += "s = Add(a, b)\n"
    file = "v = Div(s, step)\nw = Add(v, half)\nf = Floor(w)\nc = Clip(f, lo, hi)\ny = Mul(c, step)"
    constants = "float step = {0.25}, float half = {0.5}, float lo = {0}, float hi = {255}"
    simulation = Simulation(onnx.parser.parse_model(net(signature, sums + file, constants)), "the file")
    rng = np.random.default_rng(3)
    feeds = {name: rng.normal(3, 3, (1, 4, 16, 16)).astype(np.float32) for name in "xz"}
    graph = lowered(net(signature, sums + "y = B(s)"))
    found = verify(graph, ONNX, simulation, emitted(graph), [feeds])
    (check,) = (check for check in found.local if check.op == "Add")
    assert check.passed
    assert check.excused > 100
