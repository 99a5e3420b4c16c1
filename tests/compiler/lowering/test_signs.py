"""Signs of sums: a product whose result is the sign of the exact sum, whatever the bias and the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import PROFILES, get_profile
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Conv, Float, IntegerGraph, MatMul
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import check, verify
from qatc.compiler.verify.boundary import ExactSign, exact_at
from tests.agreeing import agrees, reasons
from tests.graphs import net
from tests.pipeline import integer

# What is made of the sum `t`, and the values below zero, at zero and above.
SIGNS: Final = {
    "sign": (["y = Sign(t)"], (-1, 0, 1)),
    "bipolar": (["u = Sign(t)", "v = Add(u, half)", "y = Sign(v)"], (-1, 1, 1)),
    "scaled": (["u = Sign(t)", "v = Add(u, half)", "n = Sign(v)", "y = Mul(n, hundred)"], (-100, 100, 100)),
    "step": (["g = Greater(t, none)", "y = Where(g, one, none)"], (0, 0, 1)),
    "hard": (["h = Clip(t, minus, one)", "g = GreaterOrEqual(h, none)", "y = Where(g, one, minus)"], (-1, 1, 1)),
}
CONSTANTS: Final = {"half": 0.5, "hundred": 100.0, "none": 0.0, "one": 1.0, "minus": -1.0}
OPS: Final = ("MatMul", "Gemm", "Conv", "Depthwise", "ConvTranspose")


def product_model(
    rng: np.random.Generator, op: str, lines: list[str], *, dyadic: bool, limit: int = 64, bias: bool = True,
    more: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """Sign(product + bias) between quantizers; `dyadic` numbers make float32 exact, and sums of zero common."""
    outputs, inner = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    if op == "Depthwise":
        outputs = inner
    w_shape = {
        "MatMul": (inner, outputs), "Gemm": (outputs, inner), "Conv": (outputs, inner, 1, 2),
        "Depthwise": (outputs, 1, 2, 1), "ConvTranspose": (inner, outputs, 2, 2),
    }[op]  # fmt: skip
    axis = {"MatMul": 1, "Gemm": 0, "Conv": 0, "Depthwise": 0, "ConvTranspose": 1}[op]
    x_shape = (3, inner) if len(w_shape) == 2 else (1, inner, 4, 3)
    scales = 2.0 ** rng.integers(-3, 2, outputs) if dyadic else rng.uniform(0.01, 0.3, outputs)
    x_scale = 0.25 if dyadic else float(rng.uniform(0.01, 0.1))
    units = x_scale * scales
    offset = rng.integers(-40, 40, outputs) * units
    offset += rng.choice([0.0, 0.5], outputs) * units if dyadic else rng.choice([0.0, 1.0], outputs) * 0.3 * units
    given_ = {
        "wq": rng.integers(-limit, min(limit, 127) + 1, w_shape).astype(np.int8),
        "ws": scales.astype(np.float32),
        "wz": np.zeros(outputs, np.int8),
        "bias": (offset if bias else np.zeros(outputs)).astype(np.float32),
        "sx": np.float32(x_scale), "zx": np.uint8(rng.integers(256)), "sy": np.float32(1), "zy": np.int8(0),
        **{name: np.float32(value) for name, value in CONSTANTS.items()}, **(more or {}),
    }  # fmt: skip
    make = helper.make_node
    body = [
        make("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        make("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        make("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=axis),
    ]
    if op == "MatMul":
        body += [make("MatMul", ["xd", "w"], ["m"]), make("Add", ["m", "bias"], ["t"])]
    elif op == "Gemm":
        body.append(make("Gemm", ["xd", "w", "bias"], ["t"], transB=1))
    else:
        groups = inner if op == "Depthwise" else 1
        kind = op if op == "ConvTranspose" else "Conv"
        body.append(make(kind, ["xd", "w", "bias"], ["t"], group=groups, pads=[0, 1, 1, 0], strides=[2, 1]))
    for line in lines:
        made, call = line.split(" = ")
        name, _, operands = call.rstrip(")").partition("(")
        body.append(make(name, operands.split(", "), [made]))
    body += [make("QuantizeLinear", ["y", "sy", "zy"], ["yq"]), make("DequantizeLinear", ["yq", "sy", "zy"], ["out"])]
    graph = helper.make_graph(
        body,
        "signs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given_.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sample(model: onnx.ModelProto, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    codes = rng.integers(-20, 20, shape).clip(-int(constants["zx"]), 255 - int(constants["zx"]))
    return {"x": (codes * constants["sx"]).astype(np.float32)}


def exact_sums(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What is compared with zero as exact fractions, and the sum of the magnitudes: ONNX Runtime sums up integers."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    q = np.rint(feeds["x"] / constants["sx"])
    parts: list[np.ndarray] = []
    for x, w in ((q, constants["wq"]), (np.abs(q), np.abs(constants["wq"].astype(np.int64)))):
        only = helper.make_node(node.op_type, ["x", "w"], ["s"])
        only.attribute.extend(node.attribute)
        infos = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, None) for n in ("x", "w", "s")]
        graph = helper.make_graph([only], "sums", infos[:2], infos[2:])
        plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        floats = {"x": x.astype(np.float32), "w": w.astype(np.float32)}
        for info in plain.graph.input:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
        plain.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        parts.append(RunnableModel(plain).run(floats)["s"].astype(np.int64))
    axis = 1 if parts[0].ndim > 2 else -1
    units = [Fraction(float(constants["sx"])) * Fraction(float(s)) for s in constants["ws"]]
    biases = [Fraction(float(b)) for b in constants["bias"]]
    moved = [np.moveaxis(part, axis, -1).astype(object) for part in parts]
    total = moved[0] * np.asarray(units) + np.asarray(biases)
    size = moved[1] * np.asarray(units) + np.asarray([abs(b) for b in biases])
    return np.moveaxis(total, -1, axis), np.moveaxis(size, -1, axis)


def products(graph: IntegerGraph) -> list[Conv | MatMul]:
    return [op for op in graph.ops if isinstance(op, Conv | MatMul)]


@pytest.mark.parametrize("form", SIGNS)
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_result_is_the_sign_of_the_exact_sum(op: str, form: str, seed: int) -> None:
    """In every arithmetic, in the emitted model, and in the file itself where float32 is exact."""
    rng = np.random.default_rng(seed)
    dyadic = bool(rng.integers(2))
    model = product_model(rng, op, SIGNS[form][0], dyadic=dyadic, limit=int(rng.choice([1, 7, 63, 128])))
    graph, feeds = integer(model), sample(model, rng)
    assert not any(isinstance(o, Float) for o in graph.ops)
    total, size = exact_sums(model, feeds)
    below, at, above = SIGNS[form][1]
    wanted = np.where(total < 0, below, np.where(total > 0, above, at)).astype(np.float32)
    clear = (np.abs(total) > size * Fraction(2) ** -50) | (total == 0)  # of the rounding of B to float64
    assert clear.all()
    for name in PROFILES:
        found = execute(graph, feeds, get_profile(name))["out"]
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    np.testing.assert_array_equal(RunnableModel(emission.complete()).run(feeds)["out"], wanted)
    if dyadic:
        np.testing.assert_array_equal(RunnableModel(model).run(feeds)["out"], wanted)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), op=st.sampled_from(OPS), form=st.sampled_from(sorted(SIGNS)))
def test_sums_that_float32_cannot_tell_from_zero_pass_verification(seed: int, op: str, form: str) -> None:
    rng = np.random.default_rng(seed)
    model = product_model(rng, op, SIGNS[form][0], dyadic=False, limit=1, bias=bool(rng.integers(2)))
    graph = integer(model)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [sample(model, rng)])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]


def test_signs_of_scales_without_a_short_form_may_differ_where_the_sum_is_zero() -> None:
    """What the rule is for: three times 0.1 less 0.3 is not zero in float32, and is in integers."""
    rng, differ = np.random.default_rng(1), 0
    for _ in range(40):
        model = product_model(rng, "MatMul", SIGNS["bipolar"][0], dyadic=False, limit=1, bias=False)
        graph, feeds = integer(model), sample(model, rng)
        total, _ = exact_sums(model, feeds)
        file, ours = RunnableModel(model).run(feeds)["out"], execute(graph, feeds, get_profile("onnx"))["out"]
        differ += int((file != ours).sum())
        assert (total[file != ours] == 0).all()
    assert differ > 0


@pytest.mark.parametrize("wrong", ["bias", "weight", "clamp"])
def test_a_wrong_sign_is_found(wrong: str) -> None:
    """Verification looks at the exact sum: what is more than float error from zero has one sign."""
    rng = np.random.default_rng(5)
    model = product_model(rng, "Conv", SIGNS["bipolar"][0], dyadic=False, limit=7)
    graph, feeds = integer(model), sample(model, rng)
    (op,) = products(graph)
    if wrong == "clamp":
        graph.ops[graph.ops.index(op)] = replace(op, hi=op.lo)
    else:
        name = op.inputs[2 if wrong == "bias" else 1]
        graph.constants[name] = graph.constants[name] + (60 if wrong == "bias" else 1)
        graph.constants[name] = graph.constants[name].astype(np.int32 if wrong == "bias" else np.int8)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [feeds])
    assert found.first_bad == graph.tensors[op.output].source
    with pytest.raises(CompileError) as caught:
        check(found)
    assert {d.code for d in caught.value.diagnostics} == {"QAT402"}


# Between sum and sign: pooling, with what does not change where the sign of the largest lies.
POOLINGS: Final = {
    "windows": ["p = MaxPool(t)"],
    "all": ["p = GlobalMaxPool(t)"],
    "twice, and a clamp": ["q = MaxPool(t)", "c = Clip(q, minus, one)", "p = MaxPool(c)"],
    "another layout": ["p = Transpose(t)"],
    "windows, and another layout": ["q = MaxPool(t)", "p = Transpose(q)"],
}
KINDS: Final = {"MaxPool": "Pool", "GlobalMaxPool": "Pool", "Transpose": "Move"}


def pooled_model(
    rng: np.random.Generator, form: str, pooling: str, *, dyadic: bool, op: str = "Conv", bias: bool = True
) -> onnx.ModelProto:
    lines = [*POOLINGS[pooling], *(line.replace("(t", "(p") for line in SIGNS[form][0])]
    model = product_model(rng, op, lines, dyadic=dyadic, limit=7, bias=bias)
    for node in model.graph.node:
        if node.op_type == "MaxPool":
            attributes = {"kernel_shape": [2, 2], "strides": [1, 2], "pads": [1, 0, 0, 1]}
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        elif node.op_type == "Transpose":
            node.attribute.append(helper.make_attribute("perm", [0, 2, 3, 1]))
    return model


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(sorted(SIGNS)), op=st.sampled_from(["Conv", "Depthwise"]))
def test_the_largest_of_signs_is_the_sign_of_the_largest(pooling: str, seed: int, form: str, op: str) -> None:
    rng = np.random.default_rng(seed)
    model = pooled_model(rng, form, pooling, dyadic=True, op=op)
    graph, feeds = integer(model), sample(model, rng)
    assert not any(isinstance(o, Float) for o in graph.ops)
    between = [KINDS[op] for line in POOLINGS[pooling] if (op := line.split("= ")[1].split("(")[0]) in KINDS]
    assert [o.kind for o in graph.ops[1:-1]] == ["Conv", *between]
    wanted = RunnableModel(model).run(feeds)["out"]
    for name in PROFILES:
        np.testing.assert_array_equal(execute(graph, feeds, get_profile(name))["out"], wanted, err_msg=name)
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    np.testing.assert_array_equal(RunnableModel(emission.complete()).run(feeds)["out"], wanted)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    form=st.sampled_from(sorted(SIGNS)),
    pooling=st.sampled_from(["windows", "all", "another layout"]),
)
def test_signs_behind_pooling_are_judged_and_pass(seed: int, form: str, pooling: str) -> None:
    rng = np.random.default_rng(seed)
    model = pooled_model(rng, form, pooling, dyadic=False, bias=bool(rng.integers(2)))
    graph = integer(model)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [sample(model, rng)])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]
    assert not any("not judged" in c.message for c in found.local)


def test_a_wrong_sign_is_found_behind_pooling() -> None:
    rng = np.random.default_rng(8)
    model = pooled_model(rng, "bipolar", "windows", dyadic=False)
    graph, feeds = integer(model), sample(model, rng)
    (op,) = products(graph)
    graph.constants[op.inputs[2]] = graph.constants[op.inputs[2]] - np.int32(400)
    emission = BACKEND.emit(graph, BACKEND.checked({})).whole()
    found = verify(graph, get_profile("onnx"), Simulation(model, "the file"), emission, [feeds])
    assert [c.op for c in found.local if not c.passed] == ["MaxPool"]


def test_where_a_sign_may_go_either_way() -> None:
    """Only as near to zero as the bound says, and not at all for the integers."""
    model = product_model(np.random.default_rng(2), "MatMul", SIGNS["sign"][0], dyadic=False)
    graph, feeds = integer(model), sample(model, np.random.default_rng(3))
    (op,) = products(graph)
    values: dict[str, Any] = {**graph.constants}
    values[op.inputs[0]] = graph.params(op.inputs[0]).quantize(feeds["x"])
    values[op.output] = execute(graph, feeds, get_profile("onnx"))[op.output]
    exact = exact_at(graph, op, values, np.arange(values[op.output].size))
    assert isinstance(exact, ExactSign)
    near = replace(exact, value=np.asarray([-2.0, -0.5, 0.0, 0.5, 2.0]), error=np.ones(5), size=np.ones(5))
    below, at, above = near.codes
    may = [near.float_may_give(np.full(5, code), 0, 255).tolist() for code in near.codes]
    assert may == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    must = [near.integers_may_give(np.full(5, code), 0, 255).tolist() for code in near.codes]
    assert must == [[1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert near.are_near(np.asarray([below]), np.asarray([above]), 1).all()
    assert not near.are_near(np.asarray([below]), np.asarray([at]), 0).any()


@pytest.mark.parametrize(("weight", "dtype"), [(-64, "int8"), (63, "int8"), (64, "int16"), (-128, "int16")])
def test_weights_are_as_wide_as_their_double(weight: int, dtype: str) -> None:
    model = product_model(np.random.default_rng(4), "MatMul", SIGNS["bipolar"][0], dyadic=False)
    weights = next(t for t in model.graph.initializer if t.name == "wq")
    weights.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weights), weight), "wq"))
    graph = integer(model)
    (op,) = products(graph)
    assert (graph.constants[op.inputs[1]] == 2 * weight).all()
    assert graph.params(op.inputs[1]).dtype == dtype


def test_weights_too_wide_to_be_doubled_stay_in_float() -> None:
    """Less their zero points these take nine bits."""
    model = product_model(np.random.default_rng(4), "Conv", SIGNS["bipolar"][0], dyadic=False, limit=127)
    for name, value in (("wz", -100), ("wq", 100)):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), value), name))
    assert [op.op_type for op in integer(model).ops if isinstance(op, Float)] == ["Sign", "Add", "Sign"]


def test_no_weight_is_doubled_where_zero_is_a_sign_of_its_own() -> None:
    """Whole biases and three results need no odd number: full-range weights stay as they are."""
    model = product_model(np.random.default_rng(6), "Gemm", SIGNS["sign"][0], dyadic=True, limit=127, bias=False)
    graph = integer(model)
    (op,) = products(graph)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}["wq"]
    np.testing.assert_array_equal(graph.constants[op.inputs[1]], weights.T)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["l = Less(t, none)", "y = Where(l, one, minus)"], id="falls"),
        pytest.param(["u = Sign(t)", "y = Abs(u)"], id="is no sign"),
        pytest.param(["h = Relu(t)", "y = Sign(h)"], id="of a clamp that ends at zero"),
        pytest.param(["u = Sign(t)", "y = Mul(u, t)"], id="and the sum itself"),
        pytest.param(["u = Sign(t)", "v = Sign(t)", "y = Add(u, v)"], id="read twice"),
        pytest.param(  # 99 below zero, 0 at zero, 101 above
            ["u = Sign(t)", "v = Abs(u)", "m = Mul(v, hundred)", "y = Add(m, u)"], id="rises on both sides of zero"
        ),
    ],
)
def test_what_is_no_rising_sign_of_one_sum_stays_in_float(lines: list[str]) -> None:
    rng = np.random.default_rng(7)
    model = product_model(rng, "Conv", lines, dyadic=True, limit=7)
    graph, feeds = integer(model), sample(model, rng)
    assert any(isinstance(op, Float) for op in graph.ops)
    wanted = RunnableModel(model).run(feeds)["out"]
    np.testing.assert_array_equal(execute(graph, feeds, get_profile("onnx"))["out"], wanted)


def test_the_sign_of_a_sum_of_two_tensors_stays_in_float() -> None:
    """It is no sum of products, and its own rounding would move what lies near zero to the other side."""
    text = net(
        "(float[2,3] x, float[2,3] u) => (float[2,3] y)", "a = A(x)\nb = C(u)\ns = Add(a, b)\nt = Sign(s)\ny = D(t)"
    )
    graph = agrees(text)
    assert reasons(graph) == [
        "Add: its result is not quantized by the model",
        "Sign: its input is not quantized by the model",
    ]


def test_the_sign_of_what_is_rounded_is_not_that_of_the_sum() -> None:
    """A Clip of 16-bit numbers: those below half a step are zero."""
    body = """
        xa = A(x)
        wd = DequantizeLinear(w, sD, zD)
        t = MatMul(xa, wd)
        r = W(t)
        c = Clip(r, low, high)
        s = Sign(c)
        y = D(s)
    """
    constants = "int8[2,2] w = {1, -1, 2, 1}, float low = {-3.3}, float high = {3.3}"
    graph = agrees(net("(float[64,2] x) => (float[64,2] y)", body, constants, opset=21))
    assert any("int16" in reason for reason in reasons(graph))
