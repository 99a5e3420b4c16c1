"""What a graph that was read must keep, so that its operators can be run at all: a compiled one does by construction.

`IntegerGraph.verify` sees to names and ranges. Whether sizes fit each other shows when the operators run (ValueError).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    IntegerGraph,
    LayerNorm,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Resize,
    Softmax,
)
from qatc.compiler.quant import dtype_name

_ANY: Final = 1 << 31
#: kind -> how many operands it takes at least and at most, and how many of the first ones are quantized
_OPERANDS: Final[Mapping[type[Op], tuple[int, int, int]]] = {
    Concat: (1, _ANY, _ANY),
    Conv: (2, 3, 2),
    Dequantize: (1, 2, 1),
    Elementwise: (2, _ANY, _ANY),
    LayerNorm: (2, 3, 1),
    Lookup: (2, 2, 1),
    MatMul: (2, 3, 2),
    Pool: (1, 1, 1),
    Quantize: (1, 1, 0),
    Rescale: (1, 1, 1),
    Resize: (1, 1, 1),
    Softmax: (1, 1, 1),
}
_BYTES: Final = ("int8", "uint8")


def check_read(graph: IntegerGraph) -> None:
    """Check what running an operator takes for granted. ValueError names the first breach."""
    for tensor in graph.tensors.values():
        if tensor.params is not None and tensor.dtype != dtype_name(tensor.params.container):
            raise ValueError(f"tensor {tensor.name} is {tensor.dtype} and has parameters of {tensor.params.dtype}")
    for op in graph.ops:
        _check_operands(graph, op)
        if isinstance(op, (Conv, Pool)):
            _check_window(op)


def _check_operands(graph: IntegerGraph, op: Op) -> None:
    if type(op) not in _OPERANDS:  # an ONNX operator, which ONNX Runtime checks; random numbers are made of nothing
        if not any(op.inputs) and (op.inputs or isinstance(op, Move)):
            raise ValueError(f"{op.kind} {op.name} has no operand")
        return
    least, most, quantized = _OPERANDS[type(op)]
    if isinstance(op, Elementwise) and op.op != "Add":
        most = least
    if not least <= len(op.inputs) <= most or not all(op.inputs[:least]):
        raise ValueError(f"{op.kind} {op.name} cannot have the operands {list(op.inputs)}")
    if len(op.outputs) != 1 or not op.output:
        raise ValueError(f"{op.kind} {op.name} cannot have the results {list(op.outputs)}")
    for name in op.inputs[:quantized]:
        if name not in graph.tensors or graph.tensors[name].params is None:
            raise ValueError(f"{op.kind} {op.name} reads {name}, which is not quantized")
    if isinstance(op, (Lookup, Softmax, LayerNorm)) and graph.tensors[op.inputs[0]].dtype not in _BYTES:
        raise ValueError(f"{op.kind} {op.name} reads {op.inputs[0]}, which is not of 8 bits")


def _check_window(op: Conv | Pool) -> None:
    """One stride and dilation for each axis, two pads."""
    rank = len(op.strides)
    extra = op.output_padding if isinstance(op, Conv) else op.kernel
    if len(op.dilations) != rank or len(op.pads) != 2 * rank or len(extra) not in (0, rank):
        raise ValueError(f"{op.kind} {op.name} has strides, dilations and pads of different axes")
