"""IntegerGraph -> INT8 ONNX: one walk in execution order, each operator by the function that knows its forms."""

from __future__ import annotations

from collections.abc import Mapping

from qatc.backends.onnx.conv import conv
from qatc.backends.onnx.elementwise import concat, dequantize, elementwise, is_shift, quantize, rescale
from qatc.backends.onnx.lookup import lookup
from qatc.backends.onnx.matmul import matmul
from qatc.backends.onnx.moves import float_op, move
from qatc.backends.onnx.normalization import layer_norm, softmax
from qatc.backends.onnx.pooling import pool
from qatc.backends.onnx.products import product_of, write
from qatc.backends.onnx.resizing import resize
from qatc.backends.onnx.stem import foldable, folded
from qatc.backends.onnx.writer import Writer
from qatc.compiler.backend import Emission
from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
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


def emit(graph: IntegerGraph, options: Mapping[str, str]) -> Emission:
    """The model of `graph` for ONNX Runtime.

    Args:
        graph: a verified integer graph.
        options: `domain`, `accumulators`, `tables`, `weights` and `data` (see `BACKEND`).
    """
    w = Writer(
        graph,
        standard=options["domain"] == "standard",
        float_sums=options["accumulators"] == "fast",
        float_tables=options["tables"] == "fast",
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


def _reader(w: Writer, op: Op) -> Dequantize | Rescale | Conv | None:
    """The operator that `op` is written together with: the only one that reads its result, if it is of these kinds.

    A raw accumulator and its Dequantize; a Quantize and the Rescale to the byte type of the other signedness, or the
    first convolution.
    """
    readers = w.consumers.get(op.output, [])
    if len(readers) != 1 or op.output in w.outputs:
        return None
    match op, readers[0]:
        case (Conv() | MatMul(), Dequantize() as reader) if w.graph.params(op.output).dtype == "int32":
            return reader if w.graph.tensors[reader.output].dtype == "float32" else None
        case (Quantize(), Rescale() as reader) if is_shift(w.graph.params(op.output), w.graph.params(reader.output)):
            return reader
        case (Quantize() as made, Conv() as reader) if foldable(w, made, reader):
            return reader
        case _:
            return None


def _write(w: Writer, op: Op, fused: Dequantize | Rescale | Conv | None) -> None:
    match op, fused:
        case Conv(), Dequantize() | None:
            conv(w, op, fused)
        case MatMul(), Dequantize() | None:
            matmul(w, op, fused)
        case Quantize(), Conv():
            write(w, folded(w, op, fused), product_of(w, fused, None), fused.output)
        case Quantize(), Rescale() | None:
            quantize(w, op, fused)
        case _:
            _write_alone(w, op)


def _write_alone(w: Writer, op: Op) -> None:
    match op:
        case Elementwise():
            elementwise(w, op)
        case Lookup():
            lookup(w, op)
        case Rescale():
            rescale(w, op)
        case Pool():
            pool(w, op)
        case Resize():
            resize(w, op)
        case Softmax():
            softmax(w, op)
        case LayerNorm():
            layer_norm(w, op)
        case Concat():
            concat(w, op)
        case Dequantize():
            dequantize(w, op)
        case Move():
            move(w, op)
        case Float():
            float_op(w, op)
        case _:
            raise TypeError(f"no ONNX form is defined for {op.kind}")
