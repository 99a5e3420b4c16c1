"""The road's middle, pass by pass, and its simulation: what the property tests compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from qatc.compiler.graph import QuantGraph
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.model_io import load
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.biases import part_biases
from qatc.compiler.passes.constant_operands import place_constants
from qatc.compiler.passes.dilations import dilate
from qatc.compiler.passes.factors import move_factors
from qatc.compiler.passes.needless import leave_out_moves
from qatc.compiler.passes.padding import absorb_padding
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.passes.strip import strip
from qatc.compiler.qdq import to_qdq
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import normalize

Values = Mapping[str, np.ndarray]


def read(model: onnx.ModelProto) -> QuantGraph:
    """A model as the loader gives it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return load(path)[0]


def canonical(model: onnx.ModelProto) -> QuantGraph:
    """A model of standard Q/DQ in canonical form."""
    graph = read(model)
    normalize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    return graph


def passes(model: onnx.ModelProto) -> Iterator[tuple[str, QuantGraph]]:
    """The same graph after each pass, verified."""
    graph = canonical(model)
    strip(graph)
    yield _checked("strip", graph)
    infer_shapes(graph)
    propagate(graph)
    yield _checked("propagate", graph)
    dilate(graph)
    leave_out_moves(graph)
    yield _checked("needless", graph)
    absorb_padding(graph)
    yield _checked("padding", graph)
    part_biases(graph)
    yield _checked("biases", graph)
    place_constants(graph)
    yield _checked("constant operands", graph)
    move_factors(graph)
    yield _checked("factors", graph)
    fold_affine(graph)
    yield _checked("affine", graph)
    infer_shapes(graph)
    propagate(graph)
    yield _checked("propagate again", graph)


def _checked(name: str, graph: QuantGraph) -> tuple[str, QuantGraph]:
    graph.diagnostics.check()
    graph.verify()
    return name, graph


def folded(model: onnx.ModelProto) -> QuantGraph:
    """The graph after all passes, ready to be lowered."""
    for _, graph in passes(model):  # noqa: B007 - the last one is wanted
        pass
    return graph


def integer(model: onnx.ModelProto, **options: str) -> IntegerGraph:
    """The integer graph of a model."""
    graph = folded(model)
    lowered = lower(graph, LoweringOptions(**options))
    graph.diagnostics.check()
    lowered.verify()
    return lowered


def simulate(graph: QuantGraph, feeds: Values) -> dict[str, np.ndarray]:
    """The graph's outputs, with its Q/DQ written back, in ONNX Runtime."""
    return RunnableModel(to_qdq(graph, bias="float", portable=False).model).run(feeds)


def rounded_tensors(graph: IntegerGraph) -> dict[str, tuple[str, QuantParams]]:
    """Quantized tensors of an integer graph that operators make: name -> (tensor of the source file, params)."""
    made = graph.producers()
    return {
        name: (tensor.source, tensor.params)
        for name, tensor in graph.tensors.items()
        if name in made and tensor.source and tensor.params is not None
    }
