"""ONNX Runtime as qatc uses it: sessions of a model held in memory, any tensor of it readable, and single operators.

The model's file is never rewritten: what ONNX Runtime needs changed is changed on a copy of the proto, external data
stay where they are and are mapped (`compiler/model/tensors.py`).
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.graph import Node, Variable
from qatc.compiler.model.protos import all_bodies, all_nodes, opsets_of, tensors_of
from qatc.compiler.model.tensors import TensorError, TensorReader, put_outside
from qatc.compiler.model_io import node_proto
from qatc.compiler.quant import Array
from qatc.compiler.runtime.parts import Part, cut
from qatc.compiler.storage import scratch_folder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

_IR_VERSION: Final = 10  # read by every ONNX Runtime since 1.18; newer stamps (onnx 1.23 writes 14) are refused by some
_SEPARATE: Final = 4  # the IR version from which constants need not be inputs as well
_KEPT: Final = 2  # lists of names whose sessions are kept: they hold a copy of the weights
PATIENCE: Final = 600.0  # seconds that one run of a model may take
_NO_MEMORY: Final = ("bad allocation", "bad_alloc", "Failed to allocate memory", "Available memory of")
_MAX_PROTO: Final = 2**31 - 1
_DEEP: Final = 2048  # operators
_PART: Final = 1024  # operators of a model that are run at a time
_FEW: Final = 16  # elements
_HEAVY: Final = 256 << 20  # bytes
_PACKING: Final = frozenset({"GRU", "LSTM", "RNN"})  # pack weights that the model holds, and add in another order then
_TABLES: Final = ("QLinearLeakyRelu", "QLinearSigmoid")
_WITHOUT_ZERO: Final = 4  # inputs: all but the zero point of the result
_LARGE: Final = 1 << 12  # bytes of a constant from which its data are lifted out of the proto
_PLAIN: Final = {
    int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))): np.dtype(kind)
    for kind in ("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool")
}


class ForRuntime(os.PathLike[bytes]):
    """A path as ONNX Runtime takes it: the file system's own bytes, since not all of them are text in UTF-8."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


def version() -> str:
    """ONNX Runtime's version."""
    import onnxruntime

    return onnxruntime.__version__


def errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exceptions share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (
        state.EPFail,
        state.EngineError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NotImplemented,
        state.RuntimeException,
    )
    return (*own, RuntimeError, ValueError, TypeError)


def memory_ran_out(error: Exception) -> bool:
    """Whether an error of ONNX Runtime says that it could not allocate; it has no type of its own for that."""
    text = str(error)
    return any(sign in text for sign in _NO_MEMORY)


def _out_of_memory(error: Exception) -> CompileError:
    message = f"ONNX Runtime {version()} ran out of memory: {error}"
    hint = "use smaller samples (-s NAME=SHAPE), leave the verification out (--no-verify), or allow more memory"
    return fail("QAT011", message, hint=hint)


def _session_of(model: ForRuntime | bytes, options: SessionOptions) -> InferenceSession:
    """A session on the CPU; QAT011 where there is no memory for it, one of `errors()` for all else."""
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except errors() as error:
        if memory_ran_out(error):
            raise _out_of_memory(error) from error
        raise


def run_session(
    session: InferenceSession, names: Sequence[str] | None, feeds: Mapping[str, Array], *, bounded: bool = True
) -> list[Array]:
    """The outputs `names` of a session (None: all); a model that does not come to an end is stopped.

    Args:
        session: the model.
        names: which outputs.
        feeds: one array per input.
        bounded: stop after ten minutes. ONNX Runtime looks at the clock between operators, so one operator alone runs
            to its end.

    Raises:
        CompileError: QAT011 where memory runs out, QAT005 where time does.
        Exception: one of `errors()` where ONNX Runtime cannot run the model.
    """
    import onnxruntime as ort

    options = ort.RunOptions()
    clock = threading.Timer(PATIENCE, setattr, (options, "terminate", True))
    clock.daemon = True
    if bounded:
        clock.start()
    try:
        return session.run(names, dict(feeds), options)
    except errors() as error:
        if memory_ran_out(error):
            raise _out_of_memory(error) from error
        if options.terminate:
            message = f"the model was still running after {PATIENCE:,} s; it may never end"
            hint = "--no-verify compiles without running it, where its samples are given with --input"
            raise fail("QAT005", message, hint=hint) from error
        raise
    finally:
        clock.cancel()


def _options(*, optimize: bool) -> SessionOptions:
    import onnxruntime as ort

    ort.set_default_logger_severity(4)  # kernels warn about deprecated attributes through the logger of the process
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Idle threads otherwise spin: each of the many small sessions of a proof takes the processor from its neighbors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return options


# -- a model ------------------------------------------------------------------------------------------------------


class RunnableModel:
    """A model in memory of which any tensor can be read.

    Args:
        model: the model; it is not changed. External data are looked up in `folder`.
        folder: where the external data are.
        optimize: whether ONNX Runtime may rewrite the graph; it does not rewrite very deep ones (see `open_file`).
        weights: data of initializers that the model declares as external, by name; they are not copied.

    Raises:
        CompileError: QAT003 to QAT005 where external data are not what the model says.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None = None,
        *,
        optimize: bool = False,
        weights: Iterable[tuple[str, Array]] = (),
    ) -> None:
        self.model, lifted = tidy(model)
        self.weights = {**lifted, **dict(weights)}
        if folder is not None:
            self.weights.update(_external(self.model, folder, self.weights))
        self.optimize = optimize and _depth(self.model) <= _DEEP
        self.constants: frozenset[str] = frozenset(i.name for i in self.model.graph.initializer)
        self.inputs: tuple[str, ...] = tuple(i.name for i in self.model.graph.input if i.name not in self.constants)
        self.outputs: tuple[str, ...] = tuple(o.name for o in self.model.graph.output)
        self.makers: dict[str, onnx.NodeProto] = {
            name: node for node in self.model.graph.node for name in node.output if name
        }
        self._size = _DEEP if self.optimize else _PART  # what is optimized is the whole
        self._kept: OrderedDict[tuple[str, ...], list[Part]] = OrderedDict()

    def has(self, name: str) -> bool:
        """Whether `name` is a tensor of the model's main graph."""
        return name in self.makers or name in self.inputs or name in self.constants

    def run(self, feeds: Mapping[str, Array], names: Iterable[str] | None = None) -> dict[str, Array]:
        """The values of `names` (default: the model's outputs). Nodes that no name needs are not run.

        Raises:
            KeyError: for a name that the model does not have.
            Exception: one of `errors()` where ONNX Runtime cannot load or run the model.
        """
        wanted = tuple(dict.fromkeys(self.outputs if names is None else names))
        result = {n: np.asarray(feeds[n]) for n in wanted if n in feeds}
        rest = tuple(n for n in wanted if n not in result)
        if missing := [n for n in rest if not self.has(n)]:
            raise KeyError(missing[0])
        if not rest:
            return result
        try:
            values = self._run(feeds, rest)
        except errors():
            nodes = len(self.model.graph.node)
            if nodes <= self._size:
                raise
            self._size = nodes  # a cut may go through what no array holds (sequences, 4-bit integers)
            self._kept.clear()
            values = self._run(feeds, rest)
        result.update((name, values[name]) for name in rest)
        return result

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        """The tensors `names`, among others."""
        values = dict(feeds)
        parts = self._parts(names)
        for part in parts:
            if part.session is None:
                whole = len(parts) == 1 and names == self.outputs
                model = self.model if whole else part.model(self.model, values)
                part.session = open_session(model, optimize=self.optimize, weights=self.weights)
                if part is not parts[-1]:
                    part.check_results()
            needed = [i.name for i in part.session.get_inputs()]
            made = run_session(part.session, part.makes, {n: values[n] for n in needed if n in values})
            values.update(zip(part.makes, made, strict=True))
        return values

    def _parts(self, names: tuple[str, ...]) -> list[Part]:
        parts = self._kept.pop(names, None)
        if parts is None:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            parts = cut(self.model.graph, names, self._size)
        self._kept[names] = parts
        return parts


def file_options(*, optimize: bool) -> SessionOptions:
    """How a package's model is opened, to record its samples and to replay them: float sums depend on the threads."""
    options = _options(optimize=optimize)
    options.intra_op_num_threads = 1
    return options


def open_file(path: Path, *, nodes: int = 0, weights: int = 0, optimize: bool = True) -> InferenceSession:
    """A CPU session of a model file with default optimizations, on one thread: results do not depend on the machine.

    Args:
        path: the file.
        nodes: how many operators it has. ONNX Runtime's layout optimizations take quadratic time (18,000 QLinearConv:
            40 s of 43), so that deep models run without optimizations; the integers are the same.
        weights: how many bytes of weights. The kernels pack them once more in memory, so that large ones are left as
            they are: running slower saves half the memory.
        optimize: whether ONNX Runtime may rewrite the graph at all.

    Raises:
        CompileError: QAT401 where ONNX Runtime does not take the model that we made.
    """
    options = file_options(optimize=optimize and nodes <= _DEEP)
    if weights > _HEAVY:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return _session_of(ForRuntime(path), options)
    except errors() as error:
        raise fail("QAT401", f"ONNX Runtime {version()} does not load the package's model: {error}") from error


def open_session(
    model: onnx.ModelProto, *, optimize: bool = False, weights: Mapping[str, Array] | None = None
) -> InferenceSession:
    """A CPU session of a model in memory (of more than 2 GiB through a temporary file); see `RunnableModel`.

    Raises:
        Exception: one of `errors()` where ONNX Runtime does not take the model.
    """
    import onnxruntime as ort

    try:
        content = model.SerializeToString()
    except (EncodeError, ValueError):  # beyond what protobuf can write
        content = b""
    options = _options(optimize=optimize)
    if weights:
        apart = [i.name for i in model.graph.initializer if i.name in weights]
        options.add_external_initializers(apart, [ort.OrtValue.ortvalue_from_numpy(weights[n]) for n in apart])
    if content and len(content) <= _MAX_PROTO:
        return _session_of(content, options)
    with scratch_folder() as scratch:
        path = scratch / "model.onnx"
        moved = onnx.ModelProto()
        moved.CopyFrom(model)  # saving takes the data out of the proto
        onnx.save(moved, path, save_as_external_data=True, location="model.bin")  # pyright: ignore[reportUnknownMemberType]
        return _session_of(ForRuntime(path), options)


def tidy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A copy that ONNX Runtime loads where the original fails for its form alone, and the data of its large constants.

    One opset a domain (exporters list domains several times and import ones that no node uses), `ai.onnx` written as
    the default domain, unique node names, an IR version that every release reads, constants that are no inputs (before
    IR version 4 they had to be both), and none of the stored intermediate shapes, which are often stale. (ONNX Runtime
    sorts the nodes itself.) A table's last zero point that is left out is said to be absent: ONNX Runtime (1.32) ends
    the process where it is not even named. The large constants are only declared: ONNX Runtime takes their arrays as
    they are, so that no further copy of the weights is made for each session.
    """
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    graph = model.graph
    version = max(_SEPARATE, min(model.ir_version, _IR_VERSION))
    copy = onnx.ModelProto(ir_version=version, opset_import=model.opset_import)
    copy.graph.name = graph.name or "graph"
    copy.graph.node.extend(graph.node)
    constants = {t.name for t in graph.initializer}
    copy.graph.input.extend(i for i in graph.input if i.name not in constants)
    copy.graph.output.extend(graph.output)
    copy.graph.sparse_initializer.extend(graph.sparse_initializer)
    weights = _lift(graph.initializer, copy.graph)
    seen: set[str] = set()
    for node in all_nodes(copy.graph.node):
        if node.name in seen:
            node.ClearField("name")
        seen.add(node.name)
        if node.domain == "ai.onnx":
            node.ClearField("domain")
        if node.op_type in _TABLES and len(node.input) == _WITHOUT_ZERO:
            node.input.append("")
    _tidy_imports(copy)
    return copy, weights


def _lift(tensors: Iterable[onnx.TensorProto], graph: onnx.GraphProto) -> dict[str, Array]:
    """Add `tensors` to `graph`, large ones without their data, which are returned."""
    lifted: dict[str, Array] = {}
    for tensor in tensors:
        dtype = _PLAIN.get(tensor.data_type)
        size = math.prod(tensor.dims) * (dtype.itemsize if dtype is not None else 0)
        if size < _LARGE or dtype is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
            continue
        data = tensor.raw_data
        if len(data) != size:  # in one of the typed fields, or malformed: ONNX Runtime's to say
            graph.initializer.append(tensor)
            continue
        lifted[tensor.name] = np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
        declared = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        put_outside(declared, "memory", 0, size)
    return lifted


def _external(model: onnx.ModelProto, folder: Path, given: Container[str]) -> dict[str, Array]:
    """The data of constants that lie in files of `folder`, but for those `given`; operators get theirs put into them.

    ONNX Runtime before 1.21 does not find them by itself where the model is in memory.
    """
    reader, found = TensorReader(folder), dict[str, Array]()
    for tensor, is_constant in _external_tensors(model.graph):
        if is_constant and tensor.name in given:
            continue
        try:
            if is_constant and tensor.data_type in _PLAIN:
                found[tensor.name] = reader.array(tensor)
            else:
                reader.inside(tensor)
        except TensorError as bad:
            raise fail(bad.code, bad.message, tensor=tensor.name, hint=bad.hint) from bad
    return found


def _external_tensors(graph: onnx.GraphProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Every tensor that has its data in a file, and whether it is a constant of `graph` itself."""
    outside = onnx.TensorProto.EXTERNAL
    yield from ((t, True) for t in graph.initializer if t.data_location == outside)
    held = [t for node in all_nodes(graph.node) for a in node.attribute for t in tensors_of(a)]
    held += [t for body in all_bodies(graph.node) for t in body.initializer]
    yield from ((t, False) for t in held if t.data_location == outside)


def _tidy_imports(model: onnx.ModelProto) -> None:
    used = {n.domain for n in all_nodes(model.graph.node)} | {""}
    versions = opsets_of(model)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in versions.items() if d in used)


def _depth(model: onnx.ModelProto) -> int:
    """How many nodes the largest graph has: the model's own, or one of its bodies."""
    return max(len(graph.node) for graph in (model.graph, *all_bodies(model.graph.node)))


# -- one operator -------------------------------------------------------------------------------------------------


class OrtEvaluator:
    """Runs single ONNX operators in ONNX Runtime: what the reference executor does with float islands.

    Sessions are kept, one for each operator with its attributes and element types.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[object, ...], InferenceSession] = {}

    def __call__(
        self,
        op_type: str,
        domain: str,
        opset: int,
        inputs: Sequence[Array | None],
        attrs: Mapping[str, Any],
        n_outputs: int,
        *,
        fixed: frozenset[int] = frozenset(),
    ) -> list[Array]:
        """The operator's outputs.

        Args:
            op_type: the operator.
            domain: its domain, "" for ai.onnx.
            opset: the version of that domain.
            inputs: arrays of any dtype that ONNX Runtime knows; None for an absent optional input.
            attrs: its attributes as Python values.
            n_outputs: how many outputs to compute.
            fixed: the places of inputs that the model holds: kernels that pack such weights add in another order.

        Raises:
            CompileError: QAT403 where ONNX Runtime cannot run the operator.
        """
        arrays = [None if a is None else np.asarray(a) for a in inputs]
        names = [f"i{i}" if a is not None else "" for i, a in enumerate(arrays)]
        node = Node(
            op_type,
            "",
            dict(attrs),
            [Variable(n) for n in names],
            [Variable(f"o{i}") for i in range(n_outputs)],
            domain or None,
        )
        proto = node_proto(node)
        held = {i: a for i in fixed if node.op in _PACKING and not node.domain and (a := arrays[i]) is not None}
        kinds = tuple(None if a is None else (a.dtype.str, *_declared(a)) for a in arrays)
        weights = tuple((i, a.shape, hashlib.sha256(a.tobytes()).digest()) for i, a in sorted(held.items()))
        key = (proto.SerializeToString(deterministic=True), opset, kinds, weights)
        try:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = open_session(_single(proto, opset, arrays, held))
            feeds = {
                n: a for i, (n, a) in enumerate(zip(names, arrays, strict=True)) if a is not None and i not in held
            }
            body = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in proto.attribute)
            return run_session(session, None, feeds, bounded=body)
        except errors() as error:
            raise fail(
                "QAT403",
                f"ONNX Runtime cannot run the operator {f'{domain}::' if domain else ''}{op_type}: {error}",
                hint="the float island needs an operator that ONNX Runtime has on the CPU",
            ) from error


def _declared(array: Array) -> list[int | None]:
    """The shape that an operand is declared with: that of a list of sizes counts in shape inference."""
    return [array.size] if array.ndim == 1 and array.size <= _FEW else [None] * array.ndim


def _single(
    node: onnx.NodeProto, opset: int, arrays: Sequence[Array | None], held: Mapping[int, Array]
) -> onnx.ModelProto:
    # inputs beyond the node's own are read by its subgraphs alone
    inputs = [
        onnx.helper.make_tensor_value_info(f"i{i}", onnx.helper.np_dtype_to_tensor_dtype(a.dtype), _declared(a))
        for i, a in enumerate(arrays)
        if a is not None and i not in held
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output]
    weights = [onnx.numpy_helper.from_array(a, f"i{i}") for i, a in held.items()]
    graph = onnx.helper.make_graph([node], "operator", inputs, outputs, weights)
    imports = [onnx.helper.make_opsetid(node.domain, opset)]
    if node.domain:
        imports.append(onnx.helper.make_opsetid("", 17))
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
