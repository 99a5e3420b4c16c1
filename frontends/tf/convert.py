"""TensorFlow models as ONNX, through tf2onnx: Keras networks, SavedModels, TFLite.

`main([MODEL, OUT.onnx, RESULT.json])` converts one file. `frontends/tf/importer.py` runs that in a process of its own:
TensorFlow writes to the terminal as it likes, wants variables of the environment before it is imported, and a damaged
TFLite file ends it with a signal.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from qatc.compiler.diagnostics import CompileError, Diagnostic, fail
from qatc.compiler.model_io import read_proto
from qatc.compiler.quant import Array
from qatc.frontends.tf import lstm
from qatc.frontends.tf.load import first_words, load_keras, needed
from qatc.frontends.tf.tflite_form import readable_tflite, unread_operators
from qatc.frontends.tf.tflite_states import states_as_ports
from qatc.frontends.tf.witness import Answer, NoWitnessError, compare

OPSET: Final = 17
_KERAS: Final = frozenset({".h5", ".hdf5", ".keras"})
_PLAIN: Final = ".plain.tflite"  # what a TFLite file is without variables
_FOR_XLA: Final = "_XlaMustCompile"
_BEFORE_INLINING: Final = "disable_lower_using_switch_merge"  # what TensorFlow calls with the graph to inline
_DEFAULT_SIGNATURE: Final = "serving_default"
_OUTSIDE: Final = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "XlaCustomCallV2"})


def write_keras(model: Any, path: Path, *, opset: int = OPSET, names: Sequence[str] = ()) -> None:
    """Write a Keras model as ONNX: inputs called `names` (default: as in the model), outputs as in the model.

    Symbolic sizes, the batch for one, stay symbolic; the layout stays channels last.

    Raises:
        CompileError: QAT010 without TensorFlow and tf2onnx.
    """
    tensorflow, converter = needed("tensorflow"), needed("tf2onnx.convert")
    tfmot = needed("tensorflow_model_optimization")
    inputs = list(model.inputs)
    given = list(names) or [str(n) for n in model.input_names]
    results = _distinct([str(n) for n in model.output_names])
    signature = [tensorflow.TensorSpec(t.shape, t.dtype, n) for t, n in zip(inputs, given, strict=True)]

    def network(*tensors: Any) -> dict[str, Any]:
        found: Any = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
        return {results[0]: found} if len(results) == 1 else dict(zip(results, found, strict=True))

    with tfmot.quantization.keras.quantize_scope(), _inlined():
        proto, _ = converter.from_function(tensorflow.function(network), input_signature=signature, opset=opset)
    order = {name: i for i, name in enumerate(results)}  # a dictionary's outputs come sorted by name
    outputs = sorted(proto.graph.output, key=lambda o: order.get(o.name, len(order)))
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def convert(source: Path, destination: Path) -> tuple[Diagnostic, ...]:
    """Write the TensorFlow model `source` as ONNX; returns warnings.

    Raises:
        CompileError: QAT010 without TensorFlow, QAT012 where it or tf2onnx cannot read the model, QAT013 where loading
            the model would run code, QAT103 for another way to quantize.
    """
    try:
        _in_order()
        if source.is_dir():
            _by_program(["--saved-model", str(source), *_signature(source)], destination)
            witness = signed(source, destination)
            return () if witness is None else compare(destination, witness)
        if source.suffix.lower() in _KERAS:
            model = load_keras(source)
            write_keras(model, destination)
            return compare(destination, _asked(model))
        return _from_tflite(source, destination)
    except CompileError:
        raise
    except (Exception, SystemExit) as error:  # tf2onnx raises anything
        if source.is_dir():
            _loadable(source)
        hint = "convert it with tf2onnx yourself, which shows more, and give qatc the .onnx file"
        why = first_words(error)
        if source.suffix.lower() == ".tflite":
            hint = "give the Keras file or the SavedModel behind it"
            plain = destination.with_suffix(_PLAIN)
            unread = unread_operators(plain if plain.is_file() else source)
            why = f"it does not read {', '.join(unread)}" if unread else why
        raise fail("QAT012", f"tf2onnx cannot convert {source.name}: {why}", hint=hint) from error


def _from_tflite(source: Path, destination: Path) -> tuple[Diagnostic, ...]:
    plain, states = states_as_ports(source, destination.with_suffix(_PLAIN))
    _by_program(["--tflite", str(readable_tflite(plain, destination.with_suffix(".tflite")))], destination)
    return (*states.told(destination), *lstm.write_out(destination), *compare(destination, _interpreter(plain)))


def _loadable(folder: Path) -> None:
    """Refuse a SavedModel that TensorFlow itself cannot load: QAT012."""
    try:
        needed("tensorflow").saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises anything as well
        hint = "save it again, whole (with its folder variables), by a TensorFlow that this one reads"
        raise fail("QAT012", f"TensorFlow cannot load {folder.name}: {first_words(error)}", hint=hint) from error


def _asked(model: Any) -> Answer:
    """A Keras model as a function of arrays."""

    def answer(arrays: Sequence[Array]) -> Sequence[Any]:
        found: Any = model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)
        return [found] if len(model.outputs) == 1 else list(found)

    return answer


def signed(folder: Path, destination: Path) -> Answer | None:
    """A SavedModel's default signature as a function of arrays; None without one, or with names that tf2onnx lost."""
    network = needed("tensorflow").saved_model.load(str(folder)).signatures.get(_DEFAULT_SIGNATURE)
    graph = read_proto(destination)[0].graph
    inputs, outputs = ([port.name.split(":")[0] for port in ports] for ports in (graph.input, graph.output))
    if network is None:
        return None
    named = _matched(inputs, network.structured_input_signature[1]), _matched(outputs, network.structured_outputs)
    if any(names is None for names in named):
        return None
    takes, gives = (names or [] for names in named)

    def answer(arrays: Sequence[Array]) -> Sequence[Any]:
        tensor: Any = needed("tensorflow").constant
        found: Any = network(**{name: tensor(array) for name, array in zip(takes, arrays, strict=True)})
        return [found[name] for name in gives]

    return answer


def _matched(names: Sequence[str], known: Iterable[str]) -> list[str] | None:
    """The names as a signature has them; a lone one needs no name. None where they are others."""
    found = list(known)
    if len(names) == len(found) == 1:
        return found
    return list(names) if sorted(names) == sorted(found) else None


def _interpreter(path: Path) -> Answer:
    """A TFLite file as a function of arrays, in TensorFlow's interpreter with the kernels that take every operator."""

    def answer(arrays: Sequence[Array]) -> Sequence[Any]:
        lite = needed("tensorflow").lite
        kernels = lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            network = lite.Interpreter(model_path=str(path), experimental_op_resolver_type=kernels)
            network.allocate_tensors()
        except (RuntimeError, ValueError) as error:  # operators that a program of its own would bring
            raise NoWitnessError(first_words(error)) from error
        for port, array in zip(network.get_input_details(), arrays, strict=True):
            network.set_tensor(port["index"], array)
        network.invoke()
        return [network.get_tensor(port["index"]) for port in network.get_output_details()]

    return answer


def _in_order() -> None:
    """Let tf2onnx walk over its sets of nodes in the order in which it made them, not in that of memory addresses.

    Node order and names in the ONNX file hang on it: without this, equal files would give packages that differ.
    """
    node, made = needed("tf2onnx.graph").Node, itertools.count()
    plain = node.__init__

    def numbered(self: Any, *arguments: Any, **named: Any) -> None:
        self._made = next(made)
        plain(self, *arguments, **named)

    def number(self: Any) -> int:
        return int(self._made)

    node.__init__, node.__hash__ = numbered, number


def _by_program(arguments: Sequence[str], destination: Path) -> None:
    """Run tf2onnx's own command line, its documented way in for these formats."""
    program = needed("tf2onnx.convert")
    before, sys.argv = sys.argv, ["tf2onnx", *arguments, "--opset", str(OPSET), "--output", str(destination)]
    try:
        with _inlined():
            program.main()
    finally:
        sys.argv = before
    _name_apart(destination)


def _name_apart(path: Path) -> None:
    """Give what a network returns several times a name for each: a TFLite file lists its outputs by number."""
    proto = read_proto(path)[0]
    graph = proto.graph
    once = {port.name for port in graph.output}
    if len(once) == len(graph.output):
        return
    taken = [name for node in graph.node for name in node.output if name and name not in once]
    names = _distinct([*taken, *(port.name for port in graph.output)])[len(taken) :]
    for port, name in zip(graph.output, names, strict=True):
        if port.name != name:
            graph.node.add(op_type="Identity", name=f"{name}_again", input=[port.name], output=[name])
            port.name = name
    path.write_bytes(proto.SerializeToString(deterministic=True))


@contextmanager
def _inlined() -> Generator[None, None, None]:
    """Let TensorFlow inline the functions, too, that are marked for XLA: tf2onnx would leave their calls as they are.

    Keras compiles grouped convolutions so, since TensorFlow itself has none on CPUs; ONNX has.
    """
    module = needed("tensorflow.python.framework.convert_to_constants")
    plain: Any = getattr(module, _BEFORE_INLINING, None)

    def unmarked(graph: Any) -> Any:
        found = plain(graph)
        functions = found.library.function
        nodes = itertools.chain(found.node, *(function.node_def for function in functions))
        for attributes in (each.attr for each in (*nodes, *functions)):
            if _FOR_XLA in attributes:
                del attributes[_FOR_XLA]
        return found

    if plain is None:  # another TensorFlow: as it comes
        yield
        return
    setattr(module, _BEFORE_INLINING, unmarked)
    try:
        yield
    finally:
        setattr(module, _BEFORE_INLINING, plain)


def _signature(folder: Path) -> list[str]:
    """The arguments that choose a SavedModel's signature; nodes that read, write or call Python are refused."""
    needed("tensorflow")
    schema: Any = needed("tensorflow.core.protobuf.saved_model_pb2")
    model = schema.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    names: list[str] = []
    for graph in model.meta_graphs:
        names += graph.signature_def
        bodies = [graph.graph_def.node, *(f.node_def for f in graph.graph_def.library.function)]
        bad = sorted({n.op for nodes in bodies for n in nodes} & _OUTSIDE)
        if bad:
            hint = "save the network without it; what reads files belongs in front of the network"
            raise fail("QAT013", f"running {folder.name} would run code: the operator {bad[0]}", hint=hint)
    return ["--signature_def", _DEFAULT_SIGNATURE] if _DEFAULT_SIGNATURE in names else []


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before."""
    found: dict[str, None] = {}
    for name in names:
        new, i = name, 0
        while new in found:
            i += 1
            new = f"{name}_{i}"
        found[new] = None
    return list(found)


def main(arguments: Sequence[str]) -> None:
    """Convert arguments[0] to arguments[1]; arguments[2] gets the diagnostics as JSON."""
    source, destination, result = map(Path, arguments)
    found: Sequence[Diagnostic] = ()
    try:
        found = convert(source, destination)
    except CompileError as error:
        found = error.diagnostics
    rows = [{**asdict(d), "severity": d.severity.value} for d in found]
    result.write_text(json.dumps(rows), encoding="utf-8")
