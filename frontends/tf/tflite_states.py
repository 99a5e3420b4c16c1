"""Variables of TFLite files, which outlive a call, as inputs and outputs: ONNX has none.

    call once: state = 0
    state, x -> CONCATENATION -> y                       state, x -> CONCATENATION -> y
                              -> STRIDED_SLICE -> state                            -> STRIDED_SLICE -> state_next

Networks that listen to a stream (wake words, detection of voices) keep what they have seen of it that way. Who calls
the network hands each new state back at the next call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from qatc.compiler.diagnostics import Diagnostic, Severity, printable
from qatc.compiler.model_io import read_proto
from qatc.frontends.tf.load import needed

_OF_VARIABLES: Final = ("CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
MAGIC: Final = b"TFL3"
_CALL, _HANDLE, _READ, _ASSIGN = _OF_VARIABLES
_NUMBERS: Final = {0: "<f4", 2: "<i4", 7: "<i2", 9: "i1"}  # by type
_NEXT: Final = b"_next"
_LISTED: Final = 3

Key = tuple[bytes, bytes]  # container and name


@dataclass(frozen=True)
class States:
    """The variables of a file that became its last inputs and outputs."""

    count: int = 0
    start: str = ""  # in words

    def told(self, converted: Path) -> tuple[Diagnostic, ...]:
        """QAT016, a note with the names that they have in the ONNX file."""
        if not self.count:
            return ()
        graph = read_proto(converted)[0].graph
        ports = zip(
            *([printable(p.name) for p in every][-self.count :] for every in (graph.input, graph.output)), strict=True
        )
        pairs = [f"{after} into {before}" for before, after in ports]
        rest = f" and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else ""
        what = "variables, each" if len(pairs) > 1 else "variable,"
        message = f"the network keeps {len(pairs)} {what} an input and an output here, from one call to the next"
        hint = f"at the first call feed {self.start}, from then on {', '.join(pairs[:_LISTED])}{rest}"
        return (Diagnostic("QAT016", message, Severity.NOTE, hint=hint),)


def states_as_ports(source: Path, destination: Path) -> tuple[Path, States]:
    """`source`, or, where it has variables, `destination` with the same network without them.

    A variable that is read before it is written becomes an input, behind those of the file, and what is written last an
    output. Left as they are: variables that loops or branches use, that have no constant to start from, and that are
    written on another grid than they are read on. tf2onnx refuses such files.
    """
    data = source.read_bytes()
    if data[4:8] != MAGIC:
        return source, States()
    numbers: Any = needed("tf2onnx.tflite.BuiltinOperator").BuiltinOperator
    model: Any = needed("tf2onnx.tflite.Model").Model.GetRootAsModel(data, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = {getattr(numbers, name): name for name in _OF_VARIABLES}
    names = [kinds.get(max(code.DeprecatedBuiltinCode(), code.BuiltinCode()), "") for code in codes]
    if _HANDLE not in names:
        return source, States()
    files = needed("tensorflow.lite.tools.flatbuffer_utils")
    content = files.read_model_from_bytearray(bytearray(data))
    found = _Variables.of(content, names)
    if found is None:
        return source, States()
    ports = _give_ports(content, names, found)
    destination.write_bytes(files.convert_object_to_bytearray(content))
    return destination, States(len(ports), _start([found.starts[key] for key in ports], content))


@dataclass(frozen=True)
class _Variables:
    """The variables of a file: the tensors of the first graph that stand for them, and where they start."""

    handles: Mapping[int, Key]
    starts: Mapping[Key, Any] = field(repr=False)  # tensors, constants all

    @classmethod
    def of(cls, content: Any, names: Sequence[str]) -> _Variables | None:
        """None for a file that uses variables otherwise than in its first graph."""
        main, *others = content.subgraphs
        calls = [op.builtinOptions.initSubgraphIndex for op in _operators(main, names, _CALL)]
        first = [content.subgraphs[i] for i in sorted(set(calls))]
        if any(_operators(graph, names, *_OF_VARIABLES) for graph in others if not any(graph is f for f in first)):
            return None
        starts: dict[Key, Any] = {}
        for graph in first:
            handles = _handles(graph, names)
            for op in _operators(graph, names, _ASSIGN):
                starts[handles[op.inputs[0]]] = graph.tensors[op.inputs[1]]
        found = cls(_handles(main, names), starts)
        return found if found._is_whole(content, names) else None

    def _is_whole(self, content: Any, names: Sequence[str]) -> bool:
        main = content.subgraphs[0]
        reads, writes = _operators(main, names, _READ), _operators(main, names, _ASSIGN)
        grids: dict[Key, list[Any]] = {}
        for op, index in (*((op, op.outputs[0]) for op in reads), *((op, op.inputs[1]) for op in writes)):
            grids.setdefault(self.handles[op.inputs[0]], []).append(main.tensors[index])
        if any(key not in self.starts or content.buffers[self.starts[key].buffer].data is None for key in grids):
            return False
        if any(_form(self.starts[key]) != _form(tensor) for key, tensors in grids.items() for tensor in tensors):
            return False
        used = [op for op in main.operators if names[op.opcodeIndex] not in _OF_VARIABLES and op.inputs is not None]
        return not any(int(i) in self.handles for op in used for i in op.inputs)


def _operators(graph: Any, names: Sequence[str], *wanted: str) -> list[Any]:
    return [op for op in graph.operators if names[op.opcodeIndex] in wanted]


def _handles(graph: Any, names: Sequence[str]) -> dict[int, Key]:
    found = ((op.outputs[0], op.builtinOptions) for op in _operators(graph, names, _HANDLE))
    return {int(i): (bytes(of.container or b""), bytes(of.sharedName or b"")) for i, of in found}


def _form(tensor: Any) -> tuple[object, ...]:
    """Type, shape and grid."""
    params = tensor.quantization
    rows: list[Any] = [tensor.shape, *(() if params is None else (params.scale, params.zeroPoint))]
    return tensor.type, *(tuple(row) for row in rows if row is not None)


def _give_ports(content: Any, names: Sequence[str], found: _Variables) -> list[Key]:
    """Take the operators of variables out of a file; the variables that became ports."""
    graph = content.subgraphs[0]
    now: dict[Key, int] = {}  # the tensor that holds a variable at this point of the walk
    inputs: dict[Key, int] = {}
    is_written: dict[Key, bool] = {}
    same: dict[int, int] = {}
    kept: list[Any] = []
    for op in graph.operators:
        kind = names[op.opcodeIndex]
        given: Any = () if op.inputs is None else op.inputs
        operands = [same.get(int(i), int(i)) for i in given]
        op.inputs = np.asarray(operands, np.int32)
        if kind not in _OF_VARIABLES:
            kept.append(op)
        elif kind in (_READ, _ASSIGN):
            key = found.handles[operands[0]]
            if kind == _ASSIGN:
                now[key], is_written[key] = operands[1], True
            elif key in now:
                same[int(op.outputs[0])] = now[key]
            else:
                now[key] = inputs[key] = int(op.outputs[0])
    graph.operators = kept
    ports = [key for key in inputs if key in is_written]
    for key in inputs.keys() - is_written.keys():
        graph.tensors[inputs[key]].buffer = found.starts[key].buffer
    results = [same.get(int(i), int(i)) for i in graph.outputs]
    for key in ports:
        name = key[1] or graph.tensors[inputs[key]].name
        graph.tensors[inputs[key]].name = name
        if now[key] not in (*inputs.values(), *graph.inputs, *results):
            graph.tensors[now[key]].name = name + _NEXT
    graph.inputs = np.asarray([*graph.inputs, *(inputs[key] for key in ports)], np.int32)
    graph.outputs = np.asarray([*results, *(now[key] for key in ports)], np.int32)
    for other in content.subgraphs[1:]:
        if _operators(other, names, *_OF_VARIABLES):
            other.operators, other.inputs, other.outputs = [], np.asarray([], np.int32), np.asarray([], np.int32)
    return ports


def _start(tensors: Sequence[Any], content: Any) -> str:
    """What to feed for the variables at the first call, in words."""
    zeros: set[int] = set()
    for tensor in tensors:
        params, data = tensor.quantization, np.asarray(content.buffers[tensor.buffer].data, np.uint8)
        zero = 0 if params is None or params.zeroPoint is None else int(params.zeroPoint[0])
        if np.any(data.view(_NUMBERS.get(tensor.type, np.uint8)) != zero):
            return "what the file stores for that (CALL_ONCE)"
        zeros.add(zero)
    integer = f"the integer {min(zeros)}" if len(zeros) == 1 else "the zero point of each"
    return f"0{f' ({integer})' if any(zeros) else ''}"
