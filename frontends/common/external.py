"""Parameters from a file beside the model: which tensor an entry names, and how they become FakeQuant nodes.

    x -> readers                      x -> FakeQuant -> readers          x has an entry
    Conv(x, w)                        Conv(x, w -> FakeQuant)            w has an entry

A file that holds ranges of activations alone leaves the weights to the deployment: they are quantized as TensorRT and
its kind do, symmetric and per output channel, and a warning says so (`standard.finish`).
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from qatc.compiler.diagnostics import CompileError, counted, fail, few, printable
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, Node, QuantGraph, Tensor, rank_of, shape_of
from qatc.compiler.passes.modernize import element_type, infer_if_possible
from qatc.compiler.passes.products import is_product
from qatc.compiler.quant import LARGEST, SMALLEST, QuantParams
from qatc.frontends.common import qdq
from qatc.frontends.common.integers import is_dq
from qatc.frontends.common.standard import finish
from qatc.frontends.common.vendor import container, has_channels, implied_axis

_INERT: Final = frozenset({"Identity", "Dropout"})  # modernizing takes them out, and their outputs' names with them
_MISFIT: Final = "the file belongs to another export of the model, or states scales for blocks of weights"
_REAL: Final = (  # None: nobody knows
    None, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE
)  # fmt: skip
FORMATS: Final = 'the simplest form is JSON, {"tensor": [min, max]}; docs/dialects.md lists those that are read'
_SHOWN: Final = 5
_COMPARED: Final = 5_000  # names that a misspelled one is compared with, and how long they may be: it takes long
_LONGEST: Final = 200


@dataclass(frozen=True)
class Entry:
    """One tensor's grid as a file states it: real = scale * (q - zero_point), qmin <= q <= qmax.

    `axis` is None where the file does not say: then channels are the output channels of the operator that reads it.
    """

    name: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    qmin: int = -128
    qmax: int = 127
    axis: int | None = None


# -- ranges to grids ----------------------------------------------------------------------------------------------


def symmetric(name: str, largest: float, bits: int = 8) -> Entry:
    """-largest..largest on signed integers: the step is largest / (2^(bits-1) - 1), the lowest integer may be used."""
    half = 1 << (bits - 1)
    return Entry(name, (largest / (half - 1),), (0,), -half, half - 1)


def asymmetric(name: str, low: float, high: float, bits: int = 8) -> Entry:
    """low..high on 2^bits integers; where zero or a symmetric grid is meant, that is what comes out.

    >>> asymmetric("x", -1.28, 1.27).zero_point, asymmetric("x", -1.27, 1.27).qmin, asymmetric("x", 0.0, 2.55).qmax
    ((0,), -127, 255)
    """
    if low > high:
        hint = "state the smallest number first, then the largest"
        raise fail("QAT007", f"the range begins at {low:g}, above its end {high:g}", tensor=name, hint=hint)
    low, high = min(low, 0.0), max(high, 0.0)
    half, steps = 1 << (bits - 1), (1 << bits) - 1
    if low < 0 and abs(low + high) <= 1e-6 * high:
        return Entry(name, (high / (half - 1),), (0,), 1 - half, half - 1)
    scale = (high - low) / steps
    zero = round(-low / scale) if scale else 0
    if zero == half:
        return Entry(name, (scale,), (0,), -half, half - 1)
    return Entry(name, (scale,), (zero,), 0, steps)


def collected(path: Path, entries: Callable[[], Iterable[Entry]]) -> list[Entry]:
    """The entries of a file; what is wrong with one names the file, QAT007 where numbers are none of a range."""
    try:
        return list(entries())
    except ArithmeticError as error:  # a step of zero, a magnitude beyond all floats
        message = f"{printable(path.name)} holds numbers that are no ranges: {error}"
        raise fail("QAT007", message, hint=FORMATS) from error
    except CompileError as error:
        told = [replace(d, message=f"{printable(path.name)}: {d.message}") for d in error.diagnostics]
        raise CompileError(told, error.exit_code) from error


# -- names --------------------------------------------------------------------------------------------------------


def tensors_by_name(graph: QuantGraph) -> dict[str, Tensor]:
    """Every tensor by its name and by the names that compilers derive from it.

    tpu-mlir calls a tensor `<tensor>_<operator that makes it>`, and a weight `<output of its operator, or of the Relu
    fused into it>_<that operator>_weight`.
    """
    found: dict[str, Tensor] = {t.name: t for t in graph.tensors()}
    for node in graph.nodes:
        for output in node.outputs:
            found.setdefault(f"{output.name}_{node.op}", output)
        if not is_product(node):
            continue
        last = node
        reader = graph.only_consumer(node.outputs[0])
        if reader is not None and reader.op == "Relu":
            last = reader
        for index, suffix in ((1, "weight"), (2, "bias")):
            if index < len(node.inputs):
                found.setdefault(f"{last.outputs[0].name}_{last.op}_{suffix}", node.inputs[index])
    return found


def resolve(graph: QuantGraph, entries: Iterable[Entry], path: Path) -> dict[str, QuantParams]:
    """The parameters by the names of the graph's own tensors; entries that name nothing are a warning.

    Raises:
        CompileError: QAT007 where no entry names a tensor of the model, QAT20x where a grid is illegal.
    """
    known = tensors_by_name(graph)
    params: dict[str, QuantParams] = {}
    missed: list[str] = []
    for entry in entries:
        tensor = known.get(entry.name)
        if tensor is None:
            missed.append(entry.name)
            continue
        made = _params(graph, tensor, entry)
        if made is not None:
            params[tensor.name] = made
    if not params and not graph.diagnostics.errors:
        raise fail("QAT007", f"{path.name} names no tensor of the model", hint=_closest(missed, known))
    if missed:
        shown = few(missed, _SHOWN)
        graph.diagnostics.warning(
            "QAT208",
            f"{counted(len(missed), 'entry', plural='entries')} of {path.name} without a tensor of the model: {shown}",
            hint=_closest(missed, known),
        )
    return params


def _closest(missed: list[str], known: Mapping[str, Tensor]) -> str | None:
    likely = [name for name in itertools.islice(known, _COMPARED) if len(name) <= _LONGEST]
    for name in [name for name in missed[:_SHOWN] if len(name) <= _LONGEST]:
        near = difflib.get_close_matches(name, likely, 1)
        if near:
            return f"the tensor closest to {printable(name)} is {printable(near[0])}"
    return (
        "the file belongs to another export of the model"
        if missed
        else "it holds no ranges; qatc dialects lists the files that are read"
    )


def _params(graph: QuantGraph, tensor: Tensor, entry: Entry) -> QuantParams | None:
    count = len(entry.scale)
    zeros = entry.zero_point * (count if len(entry.zero_point) == 1 else 1)
    dtype = container(entry.qmin, entry.qmax, zeros)
    axis = _axis(graph, tensor, entry) if count > 1 else None
    if dtype is None:
        code, why = "QAT202", f"no integer type holds {entry.qmin}..{entry.qmax} and the zero points"
    elif count > 1 and axis is None:
        code, why = "QAT204", f"nothing tells which axis the {count} scales belong to"
    elif len(zeros) != count:
        code, why = "QAT204", f"{count} scales but {len(zeros)} zero points"
    elif axis is not None and not has_channels(shape_of(tensor), axis, count):
        code, why = "QAT204", f"{count} channels along axis {axis} do not fit the shape {list(shape_of(tensor) or ())}"
    else:
        try:
            return QuantParams(entry.scale, zeros, dtype, axis, entry.qmin, entry.qmax)
        except ValueError as error:  # a scale that is none, an empty range, an axis from the end of an unknown rank
            legal = all(SMALLEST <= scale <= LARGEST for scale in entry.scale)
            code, why = "QAT204" if legal else "QAT201", str(error)
    hint = _MISFIT if code == "QAT204" else None
    graph.diagnostics.error(code, f"the entry of this tensor is illegal: {why}", tensor=tensor.name, hint=hint)
    return None


def _axis(graph: QuantGraph, tensor: Tensor, entry: Entry) -> int | None:
    if entry.axis is None:
        return implied_axis(graph, tensor, len(entry.scale))
    return entry.axis + ((rank_of(tensor) or 0) if entry.axis < 0 else 0)


# -- into the graph -----------------------------------------------------------------------------------------------


def normalize(graph: QuantGraph, options: FrontendOptions) -> None:
    """Fake-quantize the tensors that `options.external` names, then whatever else a dialect's `normalize` does."""
    settled = list(_settled(graph, options.external))
    qdq.prepare(graph)
    if not settled:
        if not graph.diagnostics.errors:  # else the file's entries are illegal, which has been said
            graph.diagnostics.error("QAT101", "no ranges are given", hint="give them with --ranges FILE")
        return
    here = {t.name: t for t in graph.tensors()}
    present = {id(t) for t in here.values()}
    named: dict[int, tuple[Tensor, QuantParams]] = {}
    for old, params in settled:
        tensor = old if id(old) in present else here.get(old.name)  # folding makes new tensors, of the same names
        if tensor is not None and not _is_quantized(graph.producer(tensor)):
            named.setdefault(id(tensor), (tensor, params))
    if any(element_type(tensor) is None for tensor, _ in named.values()):
        infer_if_possible(graph)
    whole = [tensor.name for tensor, _ in named.values() if element_type(tensor) not in _REAL]
    for tensor, params in named.values():
        if element_type(tensor) in _REAL:
            qdq.fake_quantize(graph, tensor, params)
    if whole:
        entries = counted(len(whole), "entry", "name", plural="entries")
        message = f"{entries} what holds no real numbers, and is left alone: {few(whole, _SHOWN)}"
        graph.diagnostics.note("QAT208", message, tensor=whole[0])
    graph.sort()
    graph.restated.append("with the ranges of --ranges")
    finish(graph, options)


def _settled(graph: QuantGraph, external: Mapping[str, QuantParams]) -> Iterator[tuple[Tensor, QuantParams]]:
    """The parameters by tensors that survive the removal of operators that do nothing."""
    here = {t.name: t for t in graph.tensors()}
    for name, params in external.items():
        tensor = here.get(name)
        while tensor is not None and (maker := graph.producer(tensor)) is not None and maker.op in _INERT:
            if graph.is_output(tensor):
                break  # an output keeps its name
            tensor = maker.inputs[0]
        if tensor is not None:
            yield tensor, params


def _is_quantized(node: Node | None) -> bool:
    return node is not None and (node.op == FAKE_QUANT or is_dq(node))
