"""Keras' PReLU, written as two halves, is one operator that computes the same."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.frontends import tensorflow
from qatc.frontends.tf.slopes import slopes_from_halves
from tests.graphs import loaded, net, to_model

SLOPES = "float[1,3,1,1] c = {-0.25, 0.5, 0.0}, float[2,3,2,1] d = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}"
HALVES = "u = Relu(x)\nn = Neg(x)\nl = Relu(n)\n"
X = {"x": np.random.default_rng(0).normal(size=(1, 3, 2, 4)).astype(np.float32)}


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (HALVES + "m = Mul(l, c)\ny = Add(u, m)", 1),
        (HALVES + "m = Mul(c, l)\ny = Add(m, u)", 1),
        (HALVES + "m = Mul(l, c)\ny = Sub(u, m)", 0),
        (HALVES + "m = Mul(l, d)\ny = Add(u, m)", 0),  # two for each number
        (HALVES + "m = Mul(l, x)\ny = Add(u, m)", 0),  # no constant slope
        ("a = Relu(x)\nu = Relu(a)\nn = Neg(x)\nl = Relu(n)\nm = Mul(l, c)\ny = Add(u, m)", 0),  # of another tensor
    ],
)
def test_the_halves_of_one_tensor(body: str, count: int) -> None:
    text = net("(float[1,3,2,4] x) => (float[] y)", body, SLOPES)
    graph = loaded(text)
    slopes_from_halves(graph)
    graph.verify(stripped=False)
    assert sum(n.op == "PRelu" for n in graph.nodes) == count
    before, after = (RunnableModel(m).run(X)["y"] for m in (onnx.parser.parse_model(text), to_model(graph)))
    np.testing.assert_array_equal(after, before)


def test_the_dialect_reads_it() -> None:
    body = f"a = A(x)\n{HALVES.replace('(x)', '(a)')}m = Mul(l, c)\ns = Add(u, m)\ny = A(s)"
    graph = loaded(net("(float[1,3,2,4] x) => (float[1,3,2,4] y)", body, SLOPES))
    tensorflow.FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes] == ["FakeQuant", "PRelu", "FakeQuant"]
