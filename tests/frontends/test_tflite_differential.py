"""TFLite's own converter and interpreter, which share no code with qatc, arrive at the same integers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import Constant, QuantGraph
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.model_io import load
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.strip import strip
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import OrtEvaluator
from qatc.compiler.shapes import infer_shapes
from qatc.frontends import tensorflow
from tests.tflite_file import Stored, stored_tensors

CORPUS = Path(__file__).parent.parent / "corpus"
CASES = sorted(p.parent.name for p in CORPUS.glob("*/model.tflite"))
#: The networks end in a softmax, which TFLite rounds to steps of 1/256 and qatc leaves in float.
OUTPUT_STEP = 1 / 256
#: Not those with concatenations and resized images, where TFLite's converter puts ranges that training did not have.
WHOLE_NETWORK = {"tfmot-op13__bn_negative_gamma", "tfmot-op13__mlp", "tfmot-op13__mobilenetv2", "tfmot-op13__smallcnn"}


def normalized(case: str) -> QuantGraph:
    graph, _ = load(CORPUS / case / "model.onnx")
    tensorflow.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    return graph


def kernels(graph: QuantGraph) -> list[tuple[np.ndarray, QuantParams]]:
    """The weights that the frontend found: integers and their grid."""
    return [
        (np.asarray(t.values), graph.params[t.name])
        for t in graph.tensors()
        if isinstance(t, Constant) and t.name in graph.params and t.values.size > 1
    ]


def layouts(kernel: np.ndarray) -> list[np.ndarray]:
    """TFLite's kernel (OHWI, 1HWC of a depthwise convolution, OI of a dense layer) in each layout of ONNX."""
    if kernel.ndim == 4:
        return [kernel.transpose(0, 3, 1, 2), kernel.transpose(3, 0, 1, 2), kernel.transpose(3, 0, 2, 1)]
    return [kernel, kernel.T]


def reduced(q: np.ndarray, params: QuantParams) -> np.ndarray:
    """The integers of each channel without their common divisor: a scale twice as large says the same with half."""
    channels = np.moveaxis(q.astype(np.int64) - params.zero_array(q.ndim), params.axis or 0, 0)
    return np.moveaxis(np.stack([c // max(math.gcd(*map(int, c.ravel())), 1) for c in channels]), 0, params.axis or 0)


def matches(stored: Stored, found: list[tuple[np.ndarray, QuantParams]]) -> tuple[bool, bool]:
    """Whether a weight of TFLite's is among ours: the very integers, and up to a common divisor of a channel."""
    same = divided = False
    for q, params in found:
        for kernel in layouts(stored.values):
            if kernel.shape != q.shape:
                continue
            same |= np.array_equal(kernel, q)
            plain = QuantParams(params.scale, (0,) * len(params.scale), "int8", params.axis)
            divided |= np.array_equal(reduced(kernel, plain), reduced(q, params))
    return same, divided


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_integers_of_tflite(case: str) -> None:
    found = kernels(normalized(case))
    stored = [s for s in stored_tensors(CORPUS / case / "model.tflite") if s.values.dtype == np.int8]
    weights = [s for s in stored if s.values.ndim in (2, 4) and s.values.size > 1]
    assert weights
    for weight in weights:
        same, divided = matches(weight, found)
        assert divided, weight.name
        if weight.scale.size == 1:
            assert same, weight.name


def lowered(case: str) -> IntegerGraph:
    graph = normalized(case)
    strip(graph)
    infer_shapes(graph)
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    propagate(graph)
    return lower(graph, LoweringOptions())


@pytest.mark.parametrize("case", sorted(WHOLE_NETWORK))
def test_the_reference_with_tflite_s_arithmetic_is_the_interpreter(case: str) -> None:
    graph = lowered(case)
    (given,), (wanted,) = graph.inputs, graph.outputs
    for index in range(4):
        x = np.load(CORPUS / case / f"input_{index}.npy")
        want = np.load(CORPUS / case / f"tflite_output_{index}.npy")
        got = execute(graph, {given: x}, get_profile("tflite"), evaluate=OrtEvaluator())[wanted]
        np.testing.assert_allclose(got, want, rtol=0, atol=OUTPUT_STEP)
