"""Simulation: the input file itself in ONNX Runtime, unoptimized, with any of its tensors readable.

With its optimizations on, ONNX Runtime fuses fake quantization into integer kernels and re-quantizes weights: it then
is no reference for what was trained. A Cast of rounded floats to bytes saturates, as frameworks have it: ONNX leaves
open what becomes of larger ones, and ONNX Runtime cuts off their high bits. Where it cannot run the file at all (vendor
nodes), where the processor saturates the file's own integer products, where pools have SAME padding and dilations, and
where ranges were filled from calibration data (the file does not have them), the simulation is a graph of ours with its
Q/DQ written back (`compiler/qdq.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import CompileError, Diagnostic, fail, file_name, printable
from qatc.compiler.graph import QuantGraph
from qatc.compiler.integer import Tensor
from qatc.compiler.model_io import read_proto
from qatc.compiler.qdq import QdqModel, to_qdq
from qatc.compiler.quant import Array, dtype_range
from qatc.compiler.runtime.processor import may_saturate
from qatc.compiler.runtime.sessions import RunnableModel, errors, version

# Between a rounding and the tensor that carries the rounded value: operators that do not change the shape.
_AFTER_ROUNDING: Final = frozenset(
    {"DequantizeLinear", "Clip", "Cast", "Identity", "Sub", "Add", "Mul", "Div", "Min", "Max"}
)
_FINAL: Final = ("QAT005", "QAT011")  # time and memory: the graph takes as much as the file
_INTEGERS: Final = "_quantized"
_STOPPED: Final = "while running"  # what ONNX Runtime says of an operator that it knows and that its operands stopped
_NEWER: Final = "a newer onnxruntime may know the operator"
_MISFITS: Final = ("ShapeInferenceError", ", input shape = ")
_AGAIN: Final = "shapes in the file do not fit each other: export it again, of a fixed size or by another exporter"
_VALUES: Final = "generated samples may not be what it takes (boxes, indices): give real ones, --input NAME=FILE.npy"
_ROUNDINGS: Final = frozenset({"Round", "Floor", "Ceil"})
_BYTES: Final[dict[int, str]] = {
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "uint4",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
}
_CLIP_WITH_INPUTS: Final = 11  # opset


@dataclass(frozen=True)
class Unrounded:
    """Where the simulation holds a value before it is rounded: `tensor`, in units of the grid's step where `scaled`."""

    tensor: str
    scaled: bool


class Simulation:
    """A float model that fake-quantizes, run without optimizations.

    Attributes:
        description: what is run, for reports.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        description: str,
        *,
        folder: Path | None = None,
        written: QdqModel | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        self.description = description
        self._runnable = RunnableModel(model, folder, weights=written.external if written is not None else ())
        self._written = written
        self._names = dict(written.rounded) if written is not None else {}
        for name, source in (origin or {}).items():
            self._names.setdefault(source, self._names.get(name, name))
        self.inputs = self._runnable.inputs
        self.outputs = self._runnable.outputs

    @classmethod
    def of_file(cls, path: Path) -> Simulation:
        """The simulation of a model file (CompileError as `model_io.read_proto` where it cannot be read)."""
        model, _ = read_proto(path)
        _saturate_casts(model)
        return cls(model, f"{printable(file_name(path))} in ONNX Runtime {version()}, unoptimized", folder=path.parent)

    @classmethod
    def of_graph(cls, graph: QuantGraph, why: str = "") -> Simulation:
        """The simulation of a stripped graph: its Q/DQ written back; biases stay float. `why` not the file itself."""
        written = to_qdq(graph, bias="float", portable=False)
        what = f"the normalized graph with Q/DQ in ONNX Runtime {version()}, unoptimized"
        what += f" ({why})" if why else ""
        return cls(written.model, what, written=written, origin=graph.origin)

    def may_saturate(self) -> bool:
        """Whether the processor makes something else of the file's integer products than they are."""
        return may_saturate(self._runnable.model)

    def forgets_dilations(self) -> bool:
        """Whether the file has pools with SAME padding and dilations: ONNX Runtime pads them as if there were none."""
        return any(
            node.op_type in ("AveragePool", "MaxPool")
            and {"SAME_LOWER", "SAME_UPPER"}
            & {a.s.decode("utf-8", "replace") for a in node.attribute if a.name == "auto_pad"}
            and any(max(a.ints, default=1) > 1 for a in node.attribute if a.name == "dilations")
            for node in self._runnable.model.graph.node
        )

    def interpolated(self) -> list[str]:
        """What its Resize nodes make that choose no nearest element."""
        makers = self._runnable.makers.items()
        resized = {name: node for name, node in makers if node.op_type == "Resize" and not node.domain}
        return [n for n, node in resized.items() if any(a.name == "mode" and a.s != b"nearest" for a in node.attribute)]

    def reads_integers(self, name: str) -> bool:
        """Whether the input `name` is one of integers."""
        for port in self._runnable.model.graph.input:
            if port.name == name:
                return onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type).kind in "iu"
        return False

    def locate(self, tensor: Tensor) -> str | None:
        """The simulation's tensor with the same real values as `tensor`, None where it has none.

        Those are the values after rounding for a quantized tensor; for a float one, the values as they are computed.
        """
        found = self._in_file(tensor) if self._written is None else self._in_graph(tensor, self._written)
        return found if found is not None and self._runnable.has(found) else None

    def _in_file(self, tensor: Tensor) -> str | None:
        place = tensor.source
        if place is None or tensor.params is not None:
            return place
        # a graph output keeps its name through the passes, also where the file rounds it and the pass does not
        maker = self._runnable.makers.get(place)
        if maker is None or maker.op_type != "DequantizeLinear":
            return place
        before = self.unrounded(place)
        return before.tensor if before is not None and not before.scaled else None

    def _in_graph(self, tensor: Tensor, written: QdqModel) -> str | None:
        if tensor.params is None:
            return written.unrounded.get(tensor.name)
        if tensor.source is not None:  # what no pass rounds lies on the grid already
            return self._names.get(tensor.source, tensor.source)
        # the lowering calls the integers of x "x_quantized"
        return self._names.get(tensor.name) or self._names.get(tensor.name.removesuffix(_INTEGERS))

    def unrounded(self, name: str) -> Unrounded | None:
        """Where the value of the fake-quantized tensor `name` can be read before its rounding, if that is visible."""
        makers = self._runnable.makers
        for _ in range(16):
            node = makers.get(name)
            if node is None or not node.input:
                return None
            if node.op_type == "QuantizeLinear":
                return Unrounded(node.input[0], scaled=False)
            if node.op_type == "Round":
                return Unrounded(node.input[0], scaled=True)
            if node.op_type not in _AFTER_ROUNDING:
                return None
            variable = [n for n in node.input if n and n not in self._runnable.constants]
            name = node.input[0] if node.op_type == "DequantizeLinear" or not variable else variable[0]
        return None

    def run(self, feeds: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        """The values of the tensors `names` for one sample.

        Raises:
            CompileError: QAT403 where ONNX Runtime cannot load or run the model.
        """
        try:
            return self._runnable.run(feeds, names)
        except KeyError as error:
            raise fail("QAT403", f"the simulation has no tensor {error.args[0]}") from error
        except errors() as error:
            hint = _VALUES if _STOPPED in str(error) else _AGAIN if any(m in str(error) for m in _MISFITS) else _NEWER
            hint += "; --no-verify compiles without the comparison"
            raise fail("QAT403", f"{self.description}, does not run: {error}", hint=hint) from error


def open_simulation(path: Path, graph: QuantGraph, sample: Mapping[str, Array]) -> Simulation:
    """The file's simulation where ONNX Runtime runs it on `sample`, rightly, else the one of the stripped graph.

    Args:
        path: the input file.
        graph: the same model, normalized and stripped, before anything is folded.
        sample: one sample for the file's inputs.

    Raises:
        CompileError: QAT403 where neither runs.
    """
    simulation = Simulation.of_file(path)
    refused, reason = list[Diagnostic](), ""
    if simulation.may_saturate():
        why = "this processor saturates its integer products"
    elif simulation.forgets_dilations():
        why = "ONNX Runtime pads its pools as if they had no dilations"
    else:
        try:
            resized = simulation.interpolated()
            made = simulation.run({n: np.asarray(a) for n, a in sample.items()}, [*simulation.outputs, *resized])
            if not any(made[name].dtype.kind in "iu" for name in resized):
                return simulation
            why = "ONNX Runtime cuts off what a Resize finds between two integers"
        except CompileError as error:
            if any(d.code in _FINAL for d in error.diagnostics):
                raise
            refused, reason = list(error.diagnostics), _reason(error)
            why = f"the file itself does not run: {reason}"
    fallback = Simulation.of_graph(graph, why)
    try:
        fallback.run(sample, fallback.outputs)
    except CompileError as error:
        told = refused if _reason(error) == reason else [*refused, *error.diagnostics]  # the same needs no second word
        raise CompileError(told) from error
    return fallback


def _saturate_casts(model: onnx.ModelProto) -> None:
    """Put a Clip between every rounding and the Cast that makes bytes of it, in place."""
    version_of = {imported.domain: imported.version for imported in model.opset_import}
    rounded = {name for n in model.graph.node if n.op_type in _ROUNDINGS and not n.domain for name in n.output[:1]}
    if version_of.get("", 0) < _CLIP_WITH_INPUTS:
        return
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        kind = next((int(a.i) for a in node.attribute if a.name == "to"), 0)
        if node.op_type == "Cast" and kind in _BYTES and node.output and not rounded.isdisjoint(node.input[:1]):
            name, (low, high) = f"{node.output[0]}_saturated", dtype_range(_BYTES[kind])
            bounds = {f"{name}_low": low, f"{name}_high": high}
            for bound, value in bounds.items():
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), bound))
            nodes.append(onnx.helper.make_node("Clip", [node.input[0], *bounds], [name], name=name))
            node.input[0] = name
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _reason(error: CompileError) -> str:
    """What ONNX Runtime said, in one line without its own prefix, and without the place in its source."""
    lines = str(error.__cause__ or error).strip().splitlines()
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Fatal error: )?", "", lines[0]) if lines else ""
    return re.sub(r"/\S+\.(?:cc|h):\d+ .*?\)(?: const)? ", "", said)[:200]
