"""Models to verify, and how: what the tests of the comparisons share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from hypothesis import settings

from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.integer import (
    IntegerGraph,
)
from qatc.compiler.result import Verification
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify import verify
from tests.pipeline import integer

CORPUS = Path(__file__).parent.parent.parent / "corpus"
ONNX, EXACT = get_profile("onnx"), get_profile("exact")
FEW = settings(max_examples=25)


def emitted(graph: IntegerGraph) -> Emission:
    return BACKEND.emit(graph, BACKEND.checked({})).whole()


def verified(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: Any) -> Verification:
    graph = integer(model)
    return verify(graph, ONNX, Simulation(model, "the file"), emitted(graph), [feeds], **options)


def corpus_case(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    folder = CORPUS / name
    model = onnx.load(folder / "model.onnx")
    return model, {model.graph.input[0].name: np.load(folder / "input_0.npy")}


RESNET, UNET, SHARED = "fx-fbgemm-nofold__resnet8", "fx-u8pc__unet", "fxqd-u8pc-dynamo__shared"


def integer_of(name: str) -> IntegerGraph:
    """A TensorFlow case: its weights need the dialect."""
    from qatc.compiler.frontend import FrontendOptions
    from qatc.compiler.lowering import lower
    from qatc.compiler.model_io import load
    from qatc.compiler.passes.affine import fold_affine
    from qatc.compiler.passes.propagate import propagate
    from qatc.compiler.passes.strip import strip
    from qatc.compiler.shapes import infer_shapes
    from qatc.frontends.tensorflow import FRONTEND

    graph, _ = load(CORPUS / name / "model.onnx")
    FRONTEND.normalize(graph, FrontendOptions())
    strip(graph)
    infer_shapes(graph)
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    propagate(graph)
    return lower(graph)
