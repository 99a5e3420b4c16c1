"""IntegerGraph -> INT8 ONNX: one walk in execution order, each operator by the function that knows its forms."""

from __future__ import annotations

from collections.abc import Mapping

from qatc.backends.onnx.elementwise import concat, dequantize, elementwise, quantize, rescale
from qatc.backends.onnx.lookup import lookup
from qatc.backends.onnx.matmul import matmul
from qatc.backends.onnx.moves import float_op, move
from qatc.backends.onnx.pooling import pool
from qatc.backends.onnx.products import conv
from qatc.backends.onnx.writer import Writer
from qatc.compiler.backend import Emission
from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
)


def emit(graph: IntegerGraph, options: Mapping[str, str]) -> Emission:
    """The model of `graph` for ONNX Runtime.

    Args:
        graph: a verified integer graph.
        options: `domain`, `accumulators`, `weights` and `data` (see `BACKEND`).
    """
    w = Writer(
        graph,
        standard=options["domain"] == "standard",
        fast=options["accumulators"] == "fast",
        data_file=options["data"] == "file",
        weights=options["weights"],
    )
    done: set[str] = set()
    for op in graph.ops:
        if op.name not in done:
            w.begin(op)
            fused = _reader(w, op)
            if fused is not None:
                done.add(fused.name)
                w.absorbed.add(op.output)
            _write(w, op, fused)
    return w.finish()


def _reader(w: Writer, op: Op) -> Dequantize | None:
    """The Dequantize that alone reads the raw accumulator that `op` makes, if there is one."""
    if not isinstance(op, (Conv, MatMul)) or w.graph.params(op.output).dtype != "int32" or op.output in w.outputs:
        return None
    readers = w.consumers.get(op.output, [])
    if len(readers) != 1 or not isinstance(readers[0], Dequantize):
        return None
    return readers[0] if w.graph.tensors[readers[0].output].dtype == "float32" else None


def _write(w: Writer, op: Op, fused: Dequantize | None) -> None:
    match op:
        case Conv():
            conv(w, op, fused)
        case MatMul():
            matmul(w, op, fused)
        case Elementwise():
            elementwise(w, op)
        case Lookup():
            lookup(w, op)
        case Rescale():
            rescale(w, op)
        case Pool():
            pool(w, op)
        case Concat():
            concat(w, op)
        case Quantize():
            quantize(w, op)
        case Dequantize():
            dequantize(w, op)
        case Move():
            move(w, op)
        case Float():
            float_op(w, op)
        case _:
            raise TypeError(f"no ONNX form is defined for {op.kind}")
