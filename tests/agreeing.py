"""A model in ONNX text (see tests.graphs) as integers, beside ONNX Runtime on the text itself."""

from __future__ import annotations

import numpy as np
import onnx.parser

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Dequantize, Float, IntegerGraph, Move, Quantize
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.quant import Array
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import net, stripped

_AROUND = (Quantize, Dequantize)


def lowered(text: str, options: LoweringOptions | None = None) -> IntegerGraph:
    """The integer graph of a model that standard Q/DQ quantizes."""
    graph = stripped(text)
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    propagate(graph)
    result = lower(graph, options)
    graph.diagnostics.check()
    result.verify()
    return result


def lowered_net(signature: str, body: str, constants: str = "", *, opset: int = 17, **options: str) -> IntegerGraph:
    """The same of a network as `tests.graphs.net` writes it; `options` are those of the lowering."""
    return lowered(net(signature, body, constants, opset=opset), LoweringOptions(**options))


def reasons(graph: IntegerGraph) -> list[str]:
    """What stays in float, and why."""
    graph.verify()
    return [f"{op.op_type}: {op.reason}" for op in graph.islands()]


def agrees(text: str, options: LoweringOptions | None = None, samples: int = 4) -> IntegerGraph:
    """The integer graph, asserting that its outputs are those of the file in ONNX Runtime, to the last bit."""
    graph = lowered(text, options)
    file = RunnableModel(onnx.parser.parse_model(text))
    for seed in range(samples):
        feeds = {name: _sample(graph, name, np.random.default_rng(seed)) for name in graph.inputs}
        wanted, found = file.run(feeds), execute(graph, feeds, get_profile("onnx"))
        for name in graph.outputs:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=f"{name} of sample {seed}")
    return graph


def _sample(graph: IntegerGraph, name: str, rng: np.random.Generator) -> Array:
    tensor = graph.tensors[name]
    shape = [d if isinstance(d, int) else 2 for d in tensor.shape or ()]
    if tensor.dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    return rng.normal(0, 30, shape).astype(tensor.dtype)


def kinds(graph: IntegerGraph) -> list[str]:
    """What computes or chooses, in order: `Where`, `Rescale`, ... (floats in parentheses)."""
    return [
        op.op_type if isinstance(op, Move) else f"({op.op_type})" if isinstance(op, Float) else op.kind
        for op in graph.ops
        if not isinstance(op, _AROUND)
    ]
