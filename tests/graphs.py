"""Small QuantGraphs written as ONNX text (https://github.com/onnx/onnx/blob/main/docs/Syntax.md), for tests."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx.parser

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph, infer_shapes
from qatc.compiler.model_io import load
from qatc.compiler.passes.strip import strip
from qatc.frontends import qdq

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def loaded(text: str) -> QuantGraph:
    """A graph in ONNX text as the loader gives it."""
    model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return load(path)[0]


def canonical(text: str) -> QuantGraph:
    """A graph of standard Q/DQ in canonical form: FakeQuant nodes and quantized constants."""
    graph = loaded(text)
    qdq.normalise(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    return graph


def stripped(text: str) -> QuantGraph:
    """A graph of standard Q/DQ after strip, with shapes."""
    graph = canonical(text)
    strip(graph)
    graph.diagnostics.check()
    graph.verify()
    infer_shapes(graph)
    return graph
