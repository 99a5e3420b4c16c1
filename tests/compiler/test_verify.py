"""Verification: the exact values and bounds it judges by, and that it sees what is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.backends.onnx import BACKEND
from qatc.compiler import processor
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import (
    Concat,
    Conv,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    Lookup,
    MatMul,
    Op,
    Pool,
    Quantize,
    Rescale,
    Softmax,
    Tensor,
    integer_tensor,
)
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.result import Verification
from qatc.compiler.simulation import Simulation, open_simulation
from qatc.compiler.verify import Limits, check, deployed, verify
from qatc.compiler.verify.boundary import UNIT, exact_at, kernel_error, sum_error
from tests.pipeline import canonical, folded, integer, passes
from tests.random_models import models, random_input

CORPUS = Path(__file__).parent.parent / "corpus"
ONNX, EXACT = get_profile("onnx"), get_profile("exact")
FEW = settings(max_examples=25)


# -- exact values ---------------------------------------------------------------------------------------------------
def one_op(op: Op, tensors: dict[str, tuple[np.ndarray, QuantParams | None]], out: QuantParams) -> IntegerGraph:
    graph = IntegerGraph("one", [], ["y"], [op], {}, {}, 21)
    for name, (value, params) in tensors.items():
        graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        if name in ("w", "b"):
            graph.constants[name] = value
        else:
            graph.inputs.append(name)
    graph.tensors["y"] = integer_tensor("y", out)
    graph.verify()
    return graph


def random_grid(rng: np.random.Generator, dtype: str = "uint8", step: float = 0.05) -> QuantParams:
    low = 0 if dtype == "uint8" else -128
    return QuantParams.per_tensor(float(rng.uniform(0.3, 1) * step), int(rng.integers(low, low + 256)), dtype)


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def conv_case(rng: np.random.Generator, *, transposed: bool) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    rank, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    kernel = tuple(int(k) for k in rng.integers(1, 4, rank))
    cin, cout = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    shape = (2, cin, *(int(d) for d in rng.integers(5, 8, rank)))
    w_shape = (cin, cout // groups, *kernel) if transposed else (cout, cin // groups, *kernel)
    x_params, out = random_grid(rng), random_grid(rng, step=2.0)
    scales = rng.uniform(0.001, 0.01, cout)
    w_params = QuantParams.per_tensor(float(scales[0]), 3, "int8") if transposed else QuantParams.per_channel(scales, 0)
    acc = tuple(x_params.scale[0] * s for s in (w_params.scale * cout if transposed else w_params.scale))
    strides = tuple(int(s) for s in rng.integers(1, 3, rank))
    attrs: dict[str, Any] = {
        "strides": strides,
        "pads": tuple(int(p) for p in rng.integers(0, min(kernel), 2 * rank)),
        "dilations": tuple(int(d) for d in rng.integers(1, 3, rank)),
        "output_padding": tuple(int(rng.integers(0, s)) for s in strides) if transposed else (),
    }
    op = Conv("c", ("x", "w", "b"), ("y",), lo=0, hi=255, groups=groups, acc_scale=acc, transposed=transposed, **attrs)
    x, w = integers(rng, shape), integers(rng, w_shape, "int8")
    bias = rng.integers(-9999, 9999, cout).astype(np.int32)
    graph = one_op(op, {"x": (x, x_params), "w": (w, w_params), "b": (bias, None)}, out)
    graph.real_biases["y"] = bias.astype(np.float64)
    return graph, {"x": x}


def matmul_case(rng: np.random.Generator) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    k, columns = int(rng.integers(1, 20)), int(rng.integers(1, 6))
    a_shape = (*((2, 3)[: int(rng.integers(0, 3))]), *([4] if rng.integers(2) else []), k)
    a, b = integers(rng, a_shape), integers(rng, (k, columns), "int8")
    a_params, out = random_grid(rng), random_grid(rng, step=2.0)
    w_params = QuantParams.per_channel(rng.uniform(0.001, 0.01, columns), 1)
    acc = tuple(a_params.scale[0] * s for s in w_params.scale)
    op = MatMul("m", ("x", "w"), ("y",), lo=0, hi=255, acc_scale=acc)
    return one_op(op, {"x": (a, a_params), "w": (b, w_params)}, out), {"x": a}


def simple_case(rng: np.random.Generator, kind: str) -> tuple[IntegerGraph, dict[str, np.ndarray]]:
    a, b = integers(rng, (2, 3, 5, 6)), integers(rng, (3, 1, 6) if kind != "Concat" else (2, 2, 5, 6))
    a_params, b_params, out = random_grid(rng), random_grid(rng), random_grid(rng, step=0.2)
    both = {"a": (a, a_params), "b": (b, b_params)}
    match kind:
        case "Add" | "Sub" | "Mul":
            op: Op = Elementwise("e", ("a", "b"), ("y",), lo=0, hi=255, op=kind)
        case "Concat":
            op = Concat("c", ("a", "b"), ("y",), lo=0, hi=255, axis=1)
        case "Rescale":
            op, both = Rescale("r", ("a",), ("y",), lo=0, hi=255), {"a": (a, a_params)}
        case "Quantize":
            real = rng.normal(0, 5, (2, 3, 4)).astype(np.float32)
            op, both = Quantize("q", ("a",), ("y",), lo=0, hi=255), {"a": (real, None)}
        case "Softmax":
            share = QuantParams.per_tensor(float(rng.choice([1 / 256, 0.01])), 0, "uint8")
            op = Softmax("s", ("a",), ("y",), lo=0, hi=255, axis=int(rng.integers(4)))
            return one_op(op, {"a": (a, a_params)}, share), {"a": a}
        case "LayerNorm":
            constants = {n: (rng.normal(1, 0.5, 6).astype(np.float32), None) for n in ("w", "b")}
            op = LayerNorm("n", ("a", "w", "b"), ("y",), lo=0, hi=255, epsilon=1e-5)
            return one_op(op, {"a": (a, a_params), **constants}, out), {"a": a}
        case _:
            window = {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "ceil_mode": bool(rng.integers(2))}
            attrs: dict[str, Any] = {} if kind == "GlobalPool" else window
            keep = kind != "GlobalPool" or bool(rng.integers(2))
            op = Pool("p", ("a",), ("y",), lo=0, hi=255, mode="average", keepdims=keep,
                      count_include_pad=bool(rng.integers(2)), **attrs)  # fmt: skip
            both = {"a": (a, a_params)}
    return one_op(op, both, out), {n: v for n, (v, _) in both.items()}


CASES: dict[str, Callable[[np.random.Generator], tuple[IntegerGraph, dict[str, np.ndarray]]]] = {
    "Conv": lambda rng: conv_case(rng, transposed=False),
    "ConvTranspose": lambda rng: conv_case(rng, transposed=True),
    "MatMul": matmul_case,
    **{
        kind: (lambda rng, kind=kind: simple_case(rng, kind))
        for kind in ("Add", "Sub", "Mul", "Concat", "Rescale", "Quantize", "Softmax", "LayerNorm", "Pool", "GlobalPool")
    },
}


@pytest.mark.parametrize("kind", CASES)
@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_exact_values_are_what_the_exact_profile_rounds(kind, seed):
    graph, feeds = CASES[kind](np.random.default_rng(seed))
    (op,) = graph.ops
    y = execute(graph, feeds, EXACT)["y"]
    exact = exact_at(graph, op, {**graph.constants, **feeds, "y": y}, np.arange(y.size))
    assert exact is not None
    different = np.clip(exact.rounded, 0, 255) != y.reshape(-1)
    ties = np.abs(np.abs(exact.value - np.rint(exact.value)) - 0.5) < 1e-9
    assert not (different & ~ties).any()


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
@settings(max_examples=100)
@given(zero=st.tuples(*[st.integers(0, 255)] * 3), steps=st.tuples(*[st.floats(2**-8, 2**8, width=32)] * 2))
def test_kernels_of_two_operands_stay_within_their_bound(kind, zero, steps):
    """All pairs of codes, on scales up to 256 steps of the result."""
    grids = [QuantParams.per_tensor(s, z, "uint8") for s, z in zip((*steps, 1.0), zero, strict=True)]
    a, b = (np.arange(256, dtype=np.uint8).reshape(shape) for shape in ((256, 1), (1, 256)))
    op = Elementwise("op", ("a", "b"), ("y",), lo=0, hi=255, op=kind)
    graph, feeds = one_op(op, {"a": (a, grids[0]), "b": (b, grids[1])}, grids[2]), {"a": a, "b": b}
    y = execute(graph, feeds, ONNX)["y"]
    exact = exact_at(graph, op, {**feeds, "y": y}, np.arange(y.size))
    assert exact is not None
    bound = kernel_error(graph, op)
    assert bound < 4 * UNIT * (510 + 510 * sum(steps)) + 1e-12
    assert exact.integers_may_give(y.reshape(-1), 0, 255, bound).all()


def test_a_code_that_is_off_where_no_tie_is_near_is_a_finding():
    """The kernel's bound excuses what lies next to a tie, nothing else."""
    grid = QuantParams.per_tensor(0.5, 128)
    op = Elementwise("op", ("a", "b"), ("y",), lo=0, hi=255, op="Add")
    codes = np.arange(100, 140, dtype=np.uint8)
    graph = one_op(op, {"a": (codes, grid), "b": (codes, grid)}, QuantParams.per_tensor(0.7, 128))
    exact = exact_at(graph, op, {"a": codes, "b": codes, "y": codes}, np.arange(codes.size))
    assert exact is not None
    clear = np.abs(exact.value - np.floor(exact.value) - 0.5) > 1e-3
    for off in (-1, 1):
        wrong = np.rint(exact.value) + off
        assert not exact.integers_may_give(wrong, 0, 255, kernel_error(graph, op))[clear].any()


@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_float_convolutions_stay_within_the_bound(seed, run_op):
    rng = np.random.default_rng(seed)
    channels, size = int(rng.integers(8, 200)), 12
    x_params, w_params = random_grid(rng), QuantParams.per_channel(rng.uniform(0.001, 0.01, 4), 0)
    x, w = integers(rng, (1, channels, size, size)), integers(rng, (4, channels, 3, 3), "int8")
    operands = [x_params.dequantize(x), w_params.dequantize(w)]
    (real,) = run_op("Conv", operands, [np.float32], {"pads": [1] * 4}, fed=(0, 1))
    out = QuantParams.per_tensor(float(real.std() / 40), 128, "uint8")
    acc = tuple(x_params.scale[0] * s for s in w_params.scale)
    attrs: dict[str, Any] = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "groups": 1}
    op = Conv("c", ("x", "w"), ("y",), lo=0, hi=255, acc_scale=acc, **attrs)
    graph = one_op(op, {"x": (x, x_params), "w": (w, w_params)}, out)
    exact = exact_at(graph, op, {"x": x, "w": w, "y": np.empty(real.shape)}, np.arange(real.size))
    assert exact is not None
    found = real.reshape(-1).astype(np.float64) / out.scale[0] + out.zero_point[0]
    assert (np.abs(found - exact.value) <= exact.error).all()
    assert np.median(exact.error) < 0.05  # and the bound excuses little


def test_the_bound_of_a_sum_grows_with_its_root():
    assert sum_error(100_000) / sum_error(1_000) < 12
    assert sum_error(1) < 1e-5
    assert sum_error(1) <= sum_error(2) <= sum_error(3)


# -- whole models ----------------------------------------------------------------------------------------------------
def emitted(graph: IntegerGraph) -> Emission:
    return BACKEND.emit(graph, BACKEND.checked({})).whole()


def verified(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: Any) -> Verification:
    graph = integer(model)
    return verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds], **options)


@settings(max_examples=40)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_random_models_pass(model, seed):
    found = verified(model, random_input(model, seed, dyadic=False))
    assert found.passed, (found.first_bad, [c for c in (*found.package, *found.local) if not c.passed])


@settings(max_examples=20)
@given(model=models(dyadic=True), seed=st.integers(0, 1000))
def test_models_without_float_error_are_equal(model, seed):
    found = verified(model, random_input(model, seed, dyadic=True))
    assert found.passed
    assert all(c.max_lsb == 0 for c in found.local if c.op in ("Conv", "MatMul"))


@settings(max_examples=15)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_the_graph_written_back_is_a_simulation_as_well(model, seed):
    feeds = random_input(model, seed, dyadic=False)
    graph = integer(model)
    stripped = next(g for name, g in passes(model) if name == "strip")
    found = verify(graph, ONNX, Simulation.of_graph(stripped), emitted(graph), [feeds])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]
    direct = verified(model, feeds)
    assert [(c.op, c.elements) for c in found.tensors] == [(c.op, c.elements) for c in direct.tensors]


@settings(max_examples=10)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_stages_of_any_size_find_the_same(model, seed):
    feeds = random_input(model, seed, dyadic=False)
    assert verified(model, feeds) == verified(model, feeds, budget=1)


@pytest.mark.parametrize("profile", ["exact", "tflite", "tosa"])
@settings(max_examples=10)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_other_arithmetic_passes_too(profile, model, seed):
    graph = integer(model)
    feeds = random_input(model, seed, dyadic=False)
    found = verify(graph, get_profile(profile), Simulation(model, "the file"), emitted(graph), [feeds])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]


def corpus_case(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    folder = CORPUS / name
    model = onnx.load(folder / "model.onnx")
    return model, {model.graph.input[0].name: np.load(folder / "input_0.npy")}


RESNET, UNET, SHARED = "fx-fbgemm-nofold__resnet8", "fx-u8pc__unet", "fxqd-u8pc-dynamo__shared"


@pytest.mark.parametrize("name", [RESNET, UNET, SHARED, "eager-u8pc-convert__eager", "pt2e-xnnpack__kws1d"])
def test_real_models_pass_tensor_by_tensor(name):
    model, feeds = corpus_case(name)
    found = verified(model, feeds)
    assert found.passed
    assert found.samples == 1
    assert len(found.local) >= 10
    assert not any("not judged" in c.message for c in found.local)
    assert all(c.max_lsb <= 1 for c in found.local)
    assert all(o.argmax_agreement in (None, 1.0) for o in found.outputs)
    check(found)


# -- planted faults --------------------------------------------------------------------------------------------------
Plant = Callable[[IntegerGraph], str]


def first(graph: IntegerGraph, kind: type[Op], skip: int = 0) -> int:
    return [i for i, op in enumerate(graph.ops) if isinstance(op, kind)][skip]


def change(graph: IntegerGraph, index: int, **fields: Any) -> str:
    graph.ops[index] = replace(graph.ops[index], **fields)
    return graph.ops[index].output


def wrong_weight(graph: IntegerGraph) -> str:
    op = graph.ops[first(graph, Conv, 2)]
    weight = graph.constants[op.inputs[1]].copy()
    weight[0] = np.roll(weight[0], 1)
    graph.constants[op.inputs[1]] = weight
    return op.output


def wrong_bias(graph: IntegerGraph) -> str:
    op = graph.ops[first(graph, Conv, 1)]
    graph.constants[op.inputs[2]] = graph.constants[op.inputs[2]] + np.int32(2)
    return op.output


def missing_bias(graph: IntegerGraph) -> str:
    op = graph.ops[first(graph, Conv, 3)]
    return change(graph, graph.ops.index(op), inputs=op.inputs[:2])


def wrong_scale(graph: IntegerGraph) -> str:
    index = first(graph, Conv, 2)
    op = graph.ops[index]
    assert isinstance(op, Conv)
    return change(graph, index, acc_scale=tuple(s * 1.004 for s in op.acc_scale))


def swapped_channels(graph: IntegerGraph) -> str:
    index = first(graph, Conv, 2)
    op = graph.ops[index]
    assert isinstance(op, Conv)
    return change(graph, index, acc_scale=op.acc_scale[::-1])


def wrong_padding(graph: IntegerGraph) -> str:
    index = next(
        i for i, op in enumerate(graph.ops) if isinstance(op, Conv) and any(op.pads) and set(op.strides) == {1}
    )
    op = graph.ops[index]
    assert isinstance(op, Conv)
    rank = len(op.strides)
    shifted = tuple(p + 1 for p in op.pads[:rank]) + tuple(p - 1 for p in op.pads[rank:])
    return change(graph, index, pads=shifted)


def wrong_clamp(graph: IntegerGraph) -> str:
    index = first(graph, Elementwise)
    op = graph.ops[index]
    assert isinstance(op, Elementwise)
    return change(graph, index, hi=op.lo + (op.hi - op.lo) // 2)


def wrong_zero_point(graph: IntegerGraph) -> str:
    op = graph.ops[first(graph, Conv, 1)]
    tensor = graph.tensors[op.output]
    assert tensor.params is not None
    zero = tensor.params.zero_point[0]
    moved = QuantParams.per_tensor(tensor.params.scale[0], zero + (1 if zero < 128 else -1), tensor.params.dtype)
    graph.tensors[op.output] = replace(tensor, params=moved)
    return op.output


@pytest.mark.parametrize(
    "plant",
    [
        wrong_weight,
        wrong_bias,
        missing_bias,
        wrong_scale,
        swapped_channels,
        wrong_padding,
        wrong_clamp,
        wrong_zero_point,
    ],
)
def test_a_fault_of_the_compiler_is_found_where_it_is(plant: Plant):
    model, feeds = corpus_case(RESNET)
    graph = integer(model)
    tensor = plant(graph)
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds])
    assert not found.passed
    assert found.first_bad == graph.tensors[tensor].source
    with pytest.raises(CompileError) as caught:
        check(found)
    assert caught.value.exit_code == 3
    assert {d.code for d in caught.value.diagnostics} == {"QAT402"}
    assert caught.value.diagnostics[0].tensor == found.first_bad


def test_a_wrong_table_entry_is_found():
    model, feeds = corpus_case("tfmot-op13__acts_mix")
    graph = integer_of("tfmot-op13__acts_mix")
    seen = execute(graph, {n: feeds[n] for n in graph.inputs}, ONNX)
    op = graph.ops[first(graph, Lookup)]
    code = int(np.bincount(seen[op.inputs[0]].reshape(-1)).argmax())  # one that the sample uses
    table = graph.constants[op.inputs[1]].copy()
    table[code] += np.uint8(1) if table[code] < 255 else np.uint8(255)
    graph.constants[op.inputs[1]] = table
    found = verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds])
    assert not found.passed
    assert found.first_bad == graph.tensors[op.output].source


def integer_of(name: str) -> IntegerGraph:
    """A TensorFlow case: its weights need the dialect."""
    from qatc.compiler.frontend import FrontendOptions
    from qatc.compiler.graph import infer_shapes
    from qatc.compiler.lowering import lower
    from qatc.compiler.model_io import load
    from qatc.compiler.passes.affine import fold_affine
    from qatc.compiler.passes.propagate import propagate
    from qatc.compiler.passes.strip import strip
    from qatc.frontends.tensorflow import FRONTEND

    graph, _ = load(CORPUS / name / "model.onnx")
    FRONTEND.normalise(graph, FrontendOptions())
    strip(graph)
    infer_shapes(graph)
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    propagate(graph)
    return lower(graph)


def spoiled(emission: Emission, spoil: Callable[[dict[str, np.ndarray], onnx.ModelProto], str]) -> tuple[Emission, str]:
    """The package with something wrong in its model alone."""
    model = emission.complete()
    constants = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    tensor = spoil(constants, model)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return Emission(model, emission.names), tensor


def test_a_fault_of_the_emitter_is_found_where_it_is():
    model, feeds = corpus_case(RESNET)
    graph = integer(model)

    def spoil(constants: dict[str, np.ndarray], package: onnx.ModelProto) -> str:
        node = [n for n in package.graph.node if n.op_type == "QLinearConv"][2]
        constants[node.input[3]] = np.roll(constants[node.input[3]], 1)
        return node.output[0]

    package, tensor = spoiled(emitted(graph), spoil)
    found = verify(graph, ONNX, Simulation(model, "the file"), package, [feeds])
    bad = [c.tensor for c in found.package if not c.passed]
    assert not found.passed
    assert len(bad) == 1
    assert tensor in (bad[0], next(n for n in package.model.graph.node if tensor in n.input).input[0])
    assert not any(not c.passed for c in found.local)
    with pytest.raises(CompileError) as caught:
        check(found)
    assert caught.value.exit_code == 3
    assert caught.value.diagnostics[0].code == "QAT401"


def test_a_fault_of_the_optimizer_is_found(monkeypatch: pytest.MonkeyPatch):
    """What users run is the optimized model; here it gets other weights than the one that is read tensor by tensor."""
    model, feeds = corpus_case(RESNET)
    graph = integer(model)

    def last_weights_turned(constants: dict[str, np.ndarray], package: onnx.ModelProto) -> str:
        node = [n for n in package.graph.node if n.op_type == "QLinearConv"][-1]
        constants[node.input[3]] = constants[node.input[3]][::-1].copy()
        return node.output[0]

    package = emitted(graph)
    wrong, _ = spoiled(emitted(graph), last_weights_turned)

    class Optimizing(deployed.RunnableModel):
        def __init__(self, model: onnx.ModelProto, *arguments: Any, **options: Any) -> None:
            super().__init__(wrong.model if options.get("optimize") else model, *arguments, **options)

    assert verify(graph, ONNX, Simulation(model, "the file"), package, [feeds]).passed
    monkeypatch.setattr(deployed, "RunnableModel", Optimizing)
    found = verify(graph, ONNX, Simulation(model, "the file"), package, [feeds])
    assert not found.passed
    with pytest.raises(CompileError, match="optimizations change") as caught:
        check(found)
    assert [d.code for d in caught.value.diagnostics] == ["QAT401"]
    assert caught.value.diagnostics[0].tensor == package.names[graph.outputs[0]]


def test_a_package_that_does_not_load_is_said():
    model, feeds = corpus_case(RESNET)
    graph = integer(model)
    package = emitted(graph)
    package.model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(CompileError) as caught:
        verify(graph, ONNX, Simulation(model, "the file"), package, [feeds])
    assert caught.value.diagnostics[0].code == "QAT401"


def test_limits_of_the_user_are_kept():
    model, feeds = corpus_case(RESNET)
    found = verified(model, feeds, limits=Limits(output_lsb=0))
    assert not found.passed
    with pytest.raises(CompileError) as caught:
        check(found)
    assert caught.value.diagnostics[0].code == "QAT404"
    assert verified(model, feeds, limits=Limits(output_lsb=20, agreement=1.0)).passed


# -- the simulation --------------------------------------------------------------------------------------------------
def small_model(ir_version: int = 8) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["m"], ["y"], "same"),
        helper.make_node("MatMul", ["x", "w"], ["m"], "same", domain="ai.onnx"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32) * 2, "w")],
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT, [7, 7])],  # stale
    )
    imports = [helper.make_opsetid("", 11), helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("never.used", 3)]
    imports.append(helper.make_opsetid("ai.onnx.ml", 99))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


@pytest.mark.parametrize("seed", range(3))
def test_decimal_scales_have_ties_that_floats_break_either_way(seed: int):
    """0.02 * 0.002 / 0.01 = 1 / 250: one sum in 250 lies half way, but for the last bits of three scales."""
    weight = np.random.default_rng(seed).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    body = """agraph (float[1,8,32,32] x) => (float[M] y) <float sx = {0.02}, float sw = {0.002}, float sy = {0.01},
        int8 z = {0}> {
        qx = QuantizeLinear(x, sx, z)  dx = DequantizeLinear(qx, sx, z)  dw = DequantizeLinear(w, sw, z)
        c = Conv(dx, dw)  qc = QuantizeLinear(c, sy, z)  y = DequantizeLinear(qc, sy, z) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {body}')
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    x = np.random.default_rng(seed).uniform(-1, 1, (1, 8, 32, 32)).astype(np.float32)
    found = verified(model, {"x": x})
    assert found.passed, [c.message for c in found.local]
    (product,) = (c for c in found.local if c.op == "Conv")
    assert product.max_lsb == 1  # there are such sums, and the two do not agree on all of them


def test_files_that_onnx_runtime_refuses_for_their_form_run():
    x = np.full((3, 64), 1.5, np.float32)
    model = small_model(ir_version=14)
    before = model.SerializeToString(deterministic=True)
    found = Simulation(model, "odd").run({"x": x}, ["m", "y", "x"])
    assert (found["m"] == 3).all()
    assert found["m"].shape == (3, 64)
    assert found["x"] is not None
    assert model.SerializeToString(deterministic=True) == before


def test_external_data_stay_where_they_are(tmp_path: Path):
    onnx.save(small_model(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()}
    found = Simulation.of_file(tmp_path / "model.onnx").run({"x": np.ones((1, 64), np.float32)}, ["m"])
    assert (found["m"] == 2).all()
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before


def test_what_onnx_runtime_cannot_run_is_simulated_from_the_graph(tmp_path: Path):
    model, feeds = corpus_case(RESNET)
    stripped = next(g for name, g in passes(model) if name == "strip")
    model.graph.node[-1].domain = "vendor"
    onnx.save(model, tmp_path / "model.onnx")
    simulation = open_simulation(tmp_path / "model.onnx", stripped, feeds)
    assert "normalized graph" in simulation.description
    assert "does not run: " in simulation.description
    assert "[ONNXRuntimeError]" not in simulation.description
    assert simulation.run(feeds, simulation.outputs)
    with pytest.raises(CompileError) as caught:
        Simulation.of_file(tmp_path / "model.onnx").run(feeds, ["output"])
    assert caught.value.diagnostics[0].code == "QAT403"


@pytest.mark.parametrize("exact", [True, False])
def test_a_file_whose_integer_products_saturate_is_no_reference(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On such a processor ONNX Runtime computes something else than the file says, without an error."""
    model, feeds = corpus_case(RESNET)
    stripped = next(g for name, g in passes(model) if name == "strip")
    operands = [np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int8)]
    names = ["one", "other"]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for a, n in zip(operands, names, strict=True))
    model.graph.node.add(op_type="MatMulInteger", name="product", input=names, output=["sums"])
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(processor, "is_exact", lambda: exact)
    simulation = open_simulation(tmp_path / "model.onnx", stripped, feeds)
    assert ("saturates" in simulation.description) == (not exact)
    assert simulation.run(feeds, simulation.outputs)


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(CompileError) as caught:
        Simulation(small_model(), "small").run({"x": np.ones((1, 64), np.float32)}, ["nowhere"])
    assert caught.value.diagnostics[0].code == "QAT403"


def test_files_of_the_corpus_and_their_graphs_written_back_agree():
    for name in (RESNET, UNET, SHARED):
        model, feeds = corpus_case(name)
        stripped = next(g for step, g in passes(model) if step == "strip")
        direct, written = Simulation(model, "file"), Simulation.of_graph(stripped)
        for output in direct.outputs:
            np.testing.assert_array_equal(
                direct.run(feeds, [output])[output], written.run(feeds, [output])[output], strict=True
            )
        assert canonical(model).origin  # what ties both to the integer graph
        assert folded(model).params
