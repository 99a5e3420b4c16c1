"""The passes keep the meaning of random quantized models, and so does lowering (design section 4).

"Dyadic" models (tests/random_models.py) compute without rounding errors: there everything must be equal, bit for bit,
end to end. "Real" ones have arbitrary scales: there each operator, fed the simulation's own values, may differ by one
LSB, and only seldom does.
"""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.graph import QuantGraph, Tensor, is_constant
from qatc.compiler.integer import Conv, Elementwise, MatMul, Pool
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.passes.strip import strip
from qatc.compiler.qdq import to_qdq
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import OrtEvaluator, RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.pipeline import canonical, folded, passes, rounded_tensors, simulate
from tests.random_models import models, random_input

SLOW = settings(max_examples=120, suppress_health_check=list(HealthCheck), derandomize=True)
EXACT = PROFILES["exact"]


@SLOW
@given(models(dyadic=True))
def test_every_pass_keeps_every_bit(model: onnx.ModelProto) -> None:
    feeds = random_input(model, dyadic=True)
    want = RunnableModel(model).run(feeds)
    for name, graph in passes(model):
        got = simulate(graph, feeds)
        for output, value in want.items():
            np.testing.assert_array_equal(got[output], value, err_msg=f"{output} after {name}")


@SLOW
@given(models(dyadic=True))
def test_integers_are_those_of_the_simulation(model: onnx.ModelProto) -> None:
    """Lowering and the exact reference: every output, and every integer tensor that the source file holds."""
    feeds = random_input(model, dyadic=True)
    run = RunnableModel(model)
    for activations in ("uint8", "keep"):
        graph = lower(folded(model), LoweringOptions(activations=activations))
        graph.verify()
        result = execute(graph, feeds, EXACT, evaluate=OrtEvaluator())
        for output, value in run.run(feeds).items():
            np.testing.assert_array_equal(result[output], value, err_msg=output)
        made = rounded_tensors(graph)
        source = run.run(feeds, [name for name, _ in made.values()])
        for tensor, (name, params) in made.items():
            np.testing.assert_array_equal(result[tensor], params.quantize(source[name]), err_msg=f"{tensor} is {name}")


@SLOW
@given(models(dyadic=False))
def test_floats_that_only_move_keep_every_bit(model: onnx.ModelProto) -> None:
    """Strip and propagate compute nothing: with any scales, the outputs are equal."""
    feeds = random_input(model, dyadic=False)
    want = RunnableModel(model).run(feeds)
    for name, graph in passes(model):
        if name == "affine":
            return
        got = simulate(graph, feeds)
        for output, value in want.items():
            np.testing.assert_array_equal(got[output], value, err_msg=f"{output} after {name}")


@SLOW
@given(models(dyadic=False))
def test_one_operator_differs_by_one_lsb_at_most(model: onnx.ModelProto) -> None:
    """Design rule 8, with the exact profile and with ONNX Runtime's own arithmetic."""
    feeds = random_input(model, dyadic=False)
    run, graph = RunnableModel(model), lower(folded(model))
    made = rounded_tensors(graph)
    source = run.run(feeds, [name for name, _ in made.values()])
    forced = {tensor: params.quantize(source[name]) for tensor, (name, params) in made.items()}
    kinds = graph.producers()
    for profile in ("exact", "onnx"):
        result = execute(graph, feeds, PROFILES[profile], forced=forced, evaluate=OrtEvaluator())
        for tensor, value in forced.items():
            off = np.abs(result[tensor].astype(np.int64) - value)
            assert off.max(initial=0) <= 1, f"{tensor} is off by {off.max()} LSB with {profile}"
            if not isinstance(kinds[tensor], Conv | MatMul | Elementwise | Pool):
                assert not off.any(), f"{kinds[tensor].kind} {tensor} computes nothing that could round differently"


@SLOW
@given(models(dyadic=False))
def test_stripping_what_was_written_gives_the_same_graph(model: onnx.ModelProto) -> None:
    """Invariant 4: Q/DQ put back and stripped again."""
    graph = canonical(model)
    strip(graph)
    graph.verify()
    infer_shapes(graph)
    again = canonical(to_qdq(graph, bias="float", portable=False).model)
    strip(again)
    again.verify()
    assert said(graph) == said(again)
    assert [n.op for n in graph.nodes if n.op != "Identity"] == [n.op for n in again.nodes if n.op != "Identity"]


def said(graph: QuantGraph) -> list[str]:
    """What a graph says of its tensors' grids. A constant's range is not written: its integers lie in it anyway."""
    found = [str(p.with_range(*dtype_range(p.dtype)) if is_constant(t) else p) for t, p in quantized(graph)]
    return sorted(found)


def quantized(graph: QuantGraph) -> list[tuple[Tensor, QuantParams]]:
    return [(t, p) for t in graph.tensors() if (p := graph.quant(t)) is not None]
