"""Backend: what emits a target's model, as a value; Emission: what came out, its weights apart and never copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from qatc.compiler.diagnostics import CompileError, Diagnostic, printable, suggested
from qatc.compiler.quant import Array
from qatc.compiler.storage import release

if TYPE_CHECKING:
    import onnx

    from qatc.compiler.arithmetic import Profile
    from qatc.compiler.graph import QuantGraph
    from qatc.compiler.integer import IntegerGraph
    from qatc.compiler.result import CompileResult

_ALIGNMENT: Final = 4096  # external data starts on a page, so that a runtime can map it
_TILE: Final = 256
_PROTOBUF_LIMIT: Final = (1 << 31) - 1  # a message of two gigabytes cannot be parsed
# Field numbers of onnx.proto: their wire format is length-delimited (type 2).
_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_TENSOR_RAW_DATA: Final = 9


class Stream(Protocol):
    """A file that is written front to back."""

    def write(self, data: bytes | memoryview, /) -> Any:
        """Append."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...


@dataclass(frozen=True)
class BackendOption:
    """One `-p name=value`: `choices` are the values it takes (none listed: any text), `default` the one without it."""

    name: str
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""


DATA_OPTION: Final = BackendOption(
    "data", "auto: weights in a file of their own only beyond two gigabytes; file: always", ("auto", "file"), "auto"
)


@dataclass(frozen=True)
class Emission:
    """An emitted model.

    `model` is complete but for the data of the tensors in `external`: (initializer name, array), in the order in which
    they lie in the data file; the initializers state offset and length there. `names` maps the tensors of the graph
    that was emitted to their names in `model`. `data_file` says whether the arrays go to a file of their own, as they
    must beyond two gigabytes, or into the model file. `wide` are other nodes for the same tensors, for processors on
    which products saturate (`compiler/runtime/processor.py`); the file that is written holds both.
    """

    model: onnx.ModelProto
    names: Mapping[str, str]
    external: tuple[tuple[str, Array], ...] = ()
    data_file: bool = False
    wide: onnx.GraphProto | None = None

    def deployed(self) -> onnx.ModelProto:
        """The model that is written, without the data in `external`."""
        if self.wide is None:
            return self.model
        from qatc.compiler.runtime.processor import by_processor

        return by_processor(self.model, self.wide)

    def write(self, open_file: Callable[[str], Stream], name: str) -> None:
        """Write the model as file `name`, and its weights as `name`.data where they have a file of their own.

        Weights go from their arrays (memory-mapped ones too) straight to the file.

        Args:
            open_file: opens a file of the package for writing, given its path there.
            name: the model's path in the package.
        """
        model = self.deployed()
        if not self.data_file:
            with open_file(name) as stream:
                for chunk in self._chunks(model):
                    stream.write(chunk)
                    release(np.frombuffer(chunk, np.uint8))
            return
        apart = {tensor for tensor, _ in self.external}
        for tensor in model.graph.initializer:
            if tensor.name in apart:
                tensor.external_data[0].value = f"{name.rsplit('/', 1)[-1]}.data"
        with open_file(name) as stream:
            stream.write(model.SerializeToString(deterministic=True))
        with open_file(f"{name}.data") as stream:
            position = 0
            for _, array in self.external:
                start = aligned(position)
                stream.write(b"\0" * (start - position))
                stream.write(bytes_of(array))
                release(array)
                position = start + array.nbytes

    def complete(self) -> onnx.ModelProto:
        """What is written, with all its data in memory (below two gigabytes)."""
        model = self.deployed()
        if not self.external:
            return model
        import onnx

        return onnx.ModelProto.FromString(b"".join(bytes(chunk) for chunk in self._chunks(model)))

    def whole(self) -> Emission:
        """The same with what is written as its model, all data inside: what is run and compared."""
        return dataclasses.replace(self, model=self.complete(), external=(), wide=None)

    def _chunks(self, model: onnx.ModelProto) -> list[bytes | memoryview]:
        """The file as a list of buffers: protobuf's wire format, put together by hand around the arrays."""
        if not self.external:
            return [model.SerializeToString(deterministic=True)]
        import onnx

        arrays = dict(self.external)
        tensors: list[bytes | memoryview] = []
        for tensor in model.graph.initializer:
            if tensor.name not in arrays:
                body = tensor.SerializeToString(deterministic=True)
                tensors += [_header(_GRAPH_INITIALIZER, len(body)), body]
                continue
            array = arrays[tensor.name]
            head = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            body = head.SerializeToString(deterministic=True) + _header(_TENSOR_RAW_DATA, array.nbytes)
            tensors += [_header(_GRAPH_INITIALIZER, len(body) + array.nbytes), body, bytes_of(array)]
        frame = _without_initializers(model)
        graph = frame.graph.SerializeToString(deterministic=True)
        frame.ClearField("graph")
        size = len(graph) + sum(chunk.nbytes if isinstance(chunk, memoryview) else len(chunk) for chunk in tensors)
        return [frame.SerializeToString(deterministic=True), _header(_MODEL_GRAPH, size), graph, *tensors]


Emit = Callable[[Any, Mapping[str, str]], Emission]


@dataclass(frozen=True)
class Finished:
    """A compile that is done but for its package: what a backend's own files are made from.

    `options` are the backend's, checked; `feeds` is the first sample, by input name.
    """

    graph: QuantGraph
    integer: IntegerGraph
    profile: Profile
    result: CompileResult
    options: Mapping[str, str]
    feeds: Mapping[str, Array]


Companions = Callable[[Callable[[str], Stream], Finished], None]
Translate = Callable[[Sequence[str]], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Backend:
    """What writes models for a target.

    Attributes:
        name: what targets call it.
        description: one line for people.
        level: whether `emit` takes the IntegerGraph ("integer") or the QuantGraph ("float").
        emit: (graph, checked options) -> Emission. Raises CompileError with every operator it cannot express.
        options: the options it takes, by name.
        check: sees that what the (checked) options name is there, before any work; raises CompileError.
        companions: writes files of its own beside the model: (opens a file of the package, what was found).
        translate: takes the command line of the vendor's compiler: its arguments as those of `qatc compile`, and a
            line about each one that means something else here; raises ValueError or CompileError where it cannot.
    """

    name: str
    description: str
    level: Literal["integer", "float"]
    emit: Emit
    options: Mapping[str, BackendOption] = field(default_factory=dict[str, BackendOption])
    check: Callable[[Mapping[str, str]], None] | None = None
    companions: Companions | None = None
    translate: Translate | None = None

    def checked(self, given: Mapping[str, str]) -> dict[str, str]:
        """`given` completed by the defaults.

        Raises:
            CompileError: QAT007 with exit code 2 for unknown keys and values, all of them at once.
        """
        wrong: list[Diagnostic] = []
        for key, value in given.items():
            option = self.options.get(key)
            if option is None:
                known = f"{self.name} knows {', '.join(sorted(self.options)) or 'no options'}"
                hint = suggested(key, self.options, known)
                wrong.append(Diagnostic("QAT007", f"unknown option {printable(key)} of backend {self.name}", hint=hint))
            elif option.choices and value not in option.choices:
                message = f"option {key} of backend {self.name} cannot be {printable(value)!r}"
                wrong.append(Diagnostic("QAT007", message, hint=f"one of {', '.join(option.choices)}"))
        if wrong:
            raise CompileError(wrong, 2)
        complete = {name: given.get(name, option.default) for name, option in sorted(self.options.items())}
        if self.check is not None:
            self.check(complete)
        return complete


DATA_FILE: Final = "model.onnx.data"  # of large weights


def aligned(position: int) -> int:
    """The next place in a data file where a tensor may start."""
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def must_be_apart(size: int) -> bool:
    """Whether weights of `size` bytes need a file of their own (a tenth of the limit is left for the rest)."""
    return size > _PROTOBUF_LIMIT * 9 // 10


def bytes_of(array: Array) -> memoryview:
    """The elements in C order, without a copy where they lie so already; transposed matrices are copied by tiles.

    numpy walks a transposed matrix of bytes along one side, which takes three times as long.
    """
    flat = array.squeeze()
    if array.flags.c_contiguous or flat.ndim != 2:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    ordered = np.empty(flat.shape, flat.dtype)
    for row in range(0, flat.shape[0], _TILE):
        for column in range(0, flat.shape[1], _TILE):
            tile = slice(row, row + _TILE), slice(column, column + _TILE)
            ordered[tile] = flat[tile]
    return ordered.reshape(-1).view(np.uint8).data


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    frame = onnx.ModelProto()
    frame.CopyFrom(model)  # placeholders and small tensors only: the weights are not in it
    frame.graph.ClearField("initializer")
    return frame


def _header(field_number: int, length: int) -> bytes:
    """Tag and length of a length-delimited protobuf field."""
    return _varint(field_number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
