"""Whole models pass, and what is planted in them is found where it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import (
    Conv,
    Elementwise,
    IntegerGraph,
    Lookup,
    Op,
)
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.result import Verification
from qatc.compiler.runtime import sessions as runtime
from qatc.compiler.runtime.sessions import OrtEvaluator
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import Limits, check, deployed, verify
from qatc.compiler.verify.optimized import Drift, OptimizedCheck
from qatc.compiler.verify.proof import stages
from tests.compiler.verify.cases import (
    ONNX,
    RESNET,
    SHARED,
    UNET,
    corpus_case,
    emitted,
    integer_of,
    verified,
)
from tests.pipeline import integer, passes
from tests.random_models import models, random_input
from tests.runtimes import since

# -- whole models -----------------------------------------------------------------------------------------------------
TRANSPOSED = since(1, 24, "makes int32 of what it moves in front of a Transpose: QAT401, docs/targets.md")


@TRANSPOSED
@settings(max_examples=40)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_random_models_pass(model, seed):
    found = verified(model, random_input(model, seed, dyadic=False))
    assert found.passed, (found.first_bad, [c for c in (*found.package, *found.local) if not c.passed])


@TRANSPOSED
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


def test_nothing_of_a_sample_is_held_behind_its_last_stage():
    """The tensors of the last stage, often all, were held for every sample: 40 of them took twice the memory."""
    graph = integer(corpus_case(UNET)[0])
    read = {name for op in graph.ops for name in op.inputs} | {*graph.outputs}
    located = {name: name for op in graph.ops for name in op.outputs}
    for budget, count in ((1, len(graph.ops)), (1 << 28, 1)):
        parts = list(stages(graph, located, budget))
        assert len(parts) == count
        assert {name for part in parts for name in part.dead} == read


@pytest.mark.parametrize("profile", ["exact", "tflite", "tosa"])
@settings(max_examples=10)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_other_arithmetic_passes_too(profile, model, seed):
    graph = integer(model)
    feeds = random_input(model, seed, dyadic=False)
    found = verify(graph, get_profile(profile), Simulation(model, "the file"), emitted(graph), [feeds])
    assert found.passed, [c for c in (*found.package, *found.local) if not c.passed]


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


# -- planted faults ---------------------------------------------------------------------------------------------------
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


def test_a_package_too_deep_to_be_optimized_is_the_one_that_was_read(monkeypatch: pytest.MonkeyPatch):
    """Opening it once more would tell nothing; the end-to-end comparison stays."""
    model, feeds = corpus_case(RESNET)
    graph = integer(model)
    opened: list[bool] = []
    real = runtime.open_session
    monkeypatch.setattr(runtime, "open_session", lambda *of, **how: opened.append(True) or real(*of, **how))

    def sessions() -> tuple[Verification, int]:
        opened.clear()
        return verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds]), len(opened)

    shallow, many = sessions()
    monkeypatch.setattr(runtime, "_DEEP", 3)
    deep, few = sessions()
    assert deep.passed
    assert deep.outputs
    assert deep == shallow
    assert few == many - 1


@pytest.mark.parametrize(
    ("end", "drift"),
    [
        ("out = Mul(f, two)", Drift.FLOATS),
        ("r = Floor(f) out = Mul(r, two)", Drift.STEPS),
        ("r = Floor(d) out = Mul(r, two)", Drift.FLOATS),  # of integers: nothing has drifted before
        ("b = Less(f, two) out = Cast<to = 1>(b)", Drift.STEPS),
        ("out = Identity(d)", Drift.NONE),
    ],
)
def test_how_far_optimizations_may_move_an_output(end: str, drift: Drift):
    """The last bit of a float sum decides what is rounded or compared behind it."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] out)'
        " <float s = {0.1}, int8 z = {0}, float two = {2}, float[4,4] w = {0.3,0.1,0.7,0.2,0.5,0.9,0.4,0.8,"
        "0.11,0.13,0.17,0.19,0.23,0.29,0.31,0.37}>"
        f" {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = MatMul(d, w) {end} }}"
    )
    graph = integer(model)
    package = deployed.DeployedCheck(graph, ONNX, emitted(graph), OrtEvaluator())
    assert OptimizedCheck(graph, package, Limits()).drifts["out"] is drift


@pytest.mark.parametrize(("ulps", "passes"), [(2.0**-21, True), (2.0**-17, False)])
def test_sums_in_float_whose_terms_cancel_out_end_as_far_apart_as_the_terms_are_large(ulps: float, passes: bool):
    """The hands' positions in meters of MediaPipe with 16 bits: 672 terms, of which thousandths are left."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,2] x) => (float[1,2] y)'
        " <float s = {0.1}, int16 z = {0}, float[2,2] w = {3.1, 1.0, -3.1, 2.0}, float[2] b = {0.001, 0.1}>"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Gemm(d, w, b)"
        " r = QuantizeLinear(m, s, z) y = DequantizeLinear(r, s, z) }"
    )
    graph = integer(model)
    package = deployed.DeployedCheck(graph, ONNX, emitted(graph), OrtEvaluator())
    (product,) = (op for op in graph.islands() if op.op_type == "Gemm")
    values = {**graph.constants, product.inputs[0]: np.full((1, 2), 100, np.float32)}
    off = np.asarray([[0.001 + 620 * ulps, 300.1]], np.float32)
    package.step(product, values, {package.names[product.output]: off})
    (tally,) = package.finish()
    assert (not tally.problems) == passes


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
    assert re.fullmatch(r"the output is off by \d+ LSB .* output_lsb allows 0", caught.value.diagnostics[0].message)
    assert verified(model, feeds, limits=Limits(output_lsb=20, agreement=1.0)).passed
