"""Models with damaged structure end in coded errors or in sound graphs, never in a crash of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.lowering import lower
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.model_io import load
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.strip import strip
from qatc.compiler.shapes import infer_shapes
from tests.graphs import normalize
from tests.mutations import damage
from tests.random_models import Seeded, random_model


def compile_middle(path: Path) -> None:
    """The road from the file to the integer graph; every stage leaves a sound graph behind."""
    graph, _ = load(path)
    normalize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    strip(graph)
    graph.diagnostics.check()
    graph.verify()
    infer_shapes(graph)
    propagate(graph)
    graph.verify()
    fold_affine(graph)
    graph.diagnostics.check()
    graph.verify()
    infer_shapes(graph)
    propagate(graph)
    missing_ranges(graph)
    integer = lower(graph)
    graph.diagnostics.check()
    integer.verify()
    integer.dump()


@settings(max_examples=250, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
def test_damaged_models_never_crash(tmp_path_factory: pytest.TempPathFactory, model: int, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    sound = random_model(Seeded(np.random.default_rng(model)), dyadic=False, layers=5)
    onnx.save(damage(sound, seed), path)
    try:
        compile_middle(path)
    except CompileError as error:
        codes = {d.code for d in error.diagnostics}
        if any(code.startswith("QAT9") for code in codes):
            raise
