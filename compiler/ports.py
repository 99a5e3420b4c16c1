"""What a user sees of a graph's tensors: its inputs and outputs, and the list of quantized tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Final

import numpy as np
import onnx

from qatc.compiler.graph import QuantGraph, Tensor, shape_of
from qatc.compiler.integer import Conv, IntegerGraph, Lookup, MatMul
from qatc.compiler.result import Port, TensorRecord

_DERIVED: Final = re.compile(r"_(?:u?int\d+|scaled|\d+)$")


def port_of(graph: QuantGraph, tensor: Tensor) -> Port:
    """An input or output of the source file, with the parameters that were found for it."""
    kind = graph.integer_ports.get(tensor.name) or (
        tensor.dtype if isinstance(tensor.dtype, int) and tensor.dtype else 0
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind or onnx.TensorProto.FLOAT).name
    return Port(tensor.name, dtype, shape_of(tensor), graph.quant(tensor))


def ports_of_integer(graph: IntegerGraph, names: Iterable[str]) -> tuple[Port, ...]:
    """Inputs or outputs of the deployed graph; a float one shows the grid that its values are rounded onto, if any."""
    grids: dict[str, str] = {}  # float tensor -> the integers beside it; what quantizes it counts first
    for op in graph.ops:
        if op.kind == "Dequantize":
            grids.setdefault(op.outputs[0], op.inputs[0])
    for op in reversed(graph.ops):
        if op.kind == "Quantize":
            grids[op.inputs[0]] = op.outputs[0]

    def port(name: str) -> Port:
        tensor = graph.tensors[name]
        params = tensor.params
        if params is None and name in grids:
            params = graph.tensors[grids[name]].params
        return Port(name, tensor.dtype, tensor.shape, params)

    return tuple(map(port, names))


def integer_ports(graph: IntegerGraph) -> dict[str, int]:
    """The inputs and outputs that the deployed graph has in integers, with their element types (TensorProto)."""
    ports = (graph.tensors[name] for name in (*graph.inputs, *graph.outputs))
    return {t.name: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)) for t in ports if t.params is not None}


def tensor_records(graph: IntegerGraph, names: Mapping[str, str], known: Container[str]) -> tuple[TensorRecord, ...]:
    """Every quantized tensor of the deployed graph in execution order.

    Args:
        graph: the deployed graph.
        names: its tensors' names in the emitted model.
        known: the tensors of the source file: what a viewer of it shows.
    """
    return tuple(_records(graph, names, known))


def _records(graph: IntegerGraph, names: Mapping[str, str], known: Container[str]) -> Iterator[TensorRecord]:
    roles = dict.fromkeys(graph.inputs, "input") | dict.fromkeys(graph.outputs, "output")
    for op in graph.ops:
        if isinstance(op, Conv | MatMul):
            roles.update(dict.fromkeys((n for n in op.inputs[1:2] if n in graph.constants), "weight"))
    ordered = dict.fromkeys(
        [*graph.inputs, *(n for op in graph.ops for n in (*op.inputs, *op.outputs) if n), *graph.outputs]
    )
    tables = {op.inputs[1] for op in graph.ops if isinstance(op, Lookup)}
    for name in ordered:
        tensor = graph.tensors.get(name)
        if tensor is None or tensor.params is None or name in tables:
            continue
        role = roles.get(name) or ("accumulator" if tensor.dtype == "int32" else "activation")
        source = tensor.source or (name if name in graph.constants else "")
        yield TensorRecord(in_source(source, known), names.get(name, name), role, tensor.params)


def in_source(name: str, known: Container[str]) -> str | None:
    """The source's tensor that became `name`, None where no tensor of the source is the same.

    A constant that is made of another one is called after it: `conv.weight_int8`, `conv.weight_int8_scaled`.
    """
    while name and name not in known:
        stem = _DERIVED.sub("", name)
        if stem == name:
            return None
        name = stem
    return name or None
