"""Real exports: the canonical graph computes what ONNX Runtime computes on the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qatc.compiler.frontend import FrontendOptions, RangeOverride
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.compiler.model_io import load
from qatc.frontends import pytorch, tensorflow
from tests.frontends.running import run, run_canonical

CORPUS = Path(__file__).parent.parent / "corpus"
CASES = sorted(p.parent.name for p in CORPUS.glob("*/model.onnx") if not (p.parent / "expect").exists())
QUANTIZED_NOW = {"convbias_relulayer", "unet_ct", "partial_float_head"}  # tfmot left weights of these in float


def normalized(case: str, options: FrontendOptions | None = None) -> QuantGraph:
    graph, source = load(CORPUS / case / "model.onnx")
    frontend = tensorflow.FRONTEND if case.startswith("tf") else pytorch.FRONTEND
    assert frontend.recognize(graph, source.producer)
    frontend.normalize(graph, options or FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    return graph


def sample(case: str) -> np.ndarray:
    return np.load(CORPUS / case / "input_0.npy")


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_as_the_file(case: str) -> None:
    graph = normalized(case)
    assert not [n for n in graph.nodes if n.op in ("QuantizeLinear", "DequantizeLinear")]
    assert [n for n in graph.nodes if n.op == FAKE_QUANT]
    (want,) = run(CORPUS / case / "model.onnx", sample(case))
    (got,) = run_canonical(graph, sample(case))
    if case.split("__")[1] in QUANTIZED_NOW:
        assert (got.argmax(-1) == want.argmax(-1)).mean() > 0.95
    elif case.startswith("tf"):  # weights are integers times a scale now: the same up to the last bit
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * np.abs(want).max())
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("tf")])
def test_weights_have_the_levels_that_were_trained(case: str) -> None:
    stated = json.loads((CORPUS / case / "meta.json").read_text()).get("weights_grid", [])
    graph = normalized(case)
    for weight in stated:
        params = graph.params.get(weight["initializer"])
        if params is None or weight["channels_on_grid"] < weight["channels"]:
            continue
        assert max(params.qmax, -params.qmin) >= weight["levels_k_min_max"][1]
        assert params.is_per_channel == (not weight["per_tensor_grid"])


def test_ranges_that_dynamo_lost_are_suggested_not_assumed() -> None:
    suggested = [c for c in CASES if "QAT107" in {d.code for d in normalized(c).diagnostics}]
    assert [c for c in suggested if "x86" not in c] == []


def test_a_stated_range_reaches_every_activation() -> None:
    case = next(c for c in CASES if c.startswith("fxqd"))
    graph = normalized(case, FrontendOptions(ranges=RangeOverride(activations=(0, 127))))
    spans = {
        (n.attrs["params"].qmin, n.attrs["params"].qmax)
        for n in graph.nodes
        if n.op == FAKE_QUANT and n.inputs[0].inputs
    }
    assert spans == {(0, 127)}
