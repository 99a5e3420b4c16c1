"""Small QuantGraphs written as ONNX text (https://github.com/onnx/onnx/blob/main/docs/Syntax.md), for tests."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx.parser

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.integer import IntegerGraph
from qatc.compiler.model_io import load, node_proto, value_info
from qatc.compiler.passes.strip import strip
from qatc.compiler.shapes import infer_shapes
from qatc.frontends.common import qdq
from qatc.frontends.common.lift import lift

# Grids by letter, for `net`: scale, zero point, type.
GRIDS = {
    "A": (0.5, 128, "uint8"),
    "B": (0.25, 0, "uint8"),
    "C": (0.125, 3, "int8"),
    "D": (0.0625, 0, "int8"),
    "W": (0.5, 0, "int16"),
}
HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def net(signature: str, body: str, constants: str = "", *, opset: int = 17) -> str:
    """A model in ONNX text.

    In `body`, `y = A(x)` is x fake-quantized on grid A (see GRIDS); every other line is ONNX text as it is.
    """
    lines: list[str] = []
    for line in body.strip().splitlines():
        call = re.fullmatch(r"\s*(\w+) = ([A-Z])\((\w+)\)\s*", line)
        if call is None:
            lines.append(line)
            continue
        y, grid, x = call.groups()
        lines.append(f"{y}_q = QuantizeLinear({x}, s{grid}, z{grid})")
        lines.append(f"{y} = DequantizeLinear({y}_q, s{grid}, z{grid})")
    values = [constants] if constants else []
    for name, (scale, zero, dtype) in GRIDS.items():
        if re.search(rf"\bs{name}\b", "\n".join(lines)):
            values.append(f"float s{name} = {{{scale}}}, {dtype} z{name} = {{{zero}}}")
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    given = f"<{', '.join(values)}>\n" if values else ""
    return f"{header}net {signature}\n{given}{{\n" + "\n".join(lines) + "\n}"


def expect(graph: QuantGraph | IntegerGraph, text: str) -> None:
    """Assert that the graph is sound and that its dump, but for the first line, is `text` (indented lines go on)."""
    graph.verify()
    wanted = re.sub(r"\n {4,}", " ", textwrap.dedent(text).strip())
    assert graph.dump().split("\n", 1)[1].strip() == wanted


def loaded(text: str | onnx.ModelProto) -> QuantGraph:
    """A model, or a graph in ONNX text, as the loader gives it."""
    if isinstance(text, str):
        model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    else:
        model = text
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return load(path)[0]


def normalize(graph: QuantGraph, options: FrontendOptions | None = None) -> None:
    """Bring a graph of standard Q/DQ, and of nothing else, to the canonical form."""
    qdq.prepare(graph)
    lift(graph)
    qdq.apply_ranges(graph, options or FrontendOptions())


def canonical(text: str) -> QuantGraph:
    """A graph of standard Q/DQ in canonical form: FakeQuant nodes and quantized constants."""
    graph = loaded(text)
    normalize(graph)
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


def to_model(graph: QuantGraph) -> onnx.ModelProto:
    """The graph as a ModelProto with all constants inside (integers for quantized ones)."""
    constants: list[onnx.TensorProto] = []
    for tensor in graph.tensors():
        value = value_of(tensor)
        if value is not None:
            constants.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), tensor.name))
    body = onnx.helper.make_graph(
        [node_proto(n) for n in graph.nodes],
        graph.name or "graph",
        [value_info(t) for t in graph.inputs],
        [value_info(t) for t in graph.outputs],
        constants,
    )
    imports = [
        onnx.helper.make_opsetid("", graph.opset),
        *(onnx.helper.make_opsetid(d, v) for d, v in sorted(graph.domains.items())),
    ]
    return onnx.helper.make_model(body, opset_imports=imports, ir_version=10)
