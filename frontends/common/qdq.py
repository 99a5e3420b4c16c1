"""What every dialect shares: preparing a graph, turning vendor nodes into FakeQuant, stated ranges.

A dialect's `normalize` is `prepare`, its own rewriting into FakeQuant (`to_fake_quant`) or into standard Q/DQ, then
`standard.finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import suggested
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, is_constant
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.branches import inline_branches
from qatc.compiler.passes.constants import fold_constants
from qatc.compiler.passes.modernize import element_type, infer_if_possible, modernize
from qatc.compiler.passes.sizes import gather_known_parts, take_sizes
from qatc.compiler.passes.spread import unspread
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.frontends.common.integers import clips_weight, fold_fills

_SINGLE: Final = int(onnx.TensorProto.FLOAT)
_DOUBLE: Final = int(onnx.TensorProto.DOUBLE)
_ROUNDS: Final = 32  # of branches whose sizes decide another: each LSTM of PyTorch has two
_CLAMPED: Final = 0.1  # more weights than a learned range clamps
_STEERED: Final = frozenset(
    {"Resize", "Upsample", "Reshape", "Expand", "Tile", "Pad", "Slice", "Clip", "TopK", "OneHot", "QuantizeLinear",
     "DequantizeLinear", "ReduceSum", "Squeeze", "Unsqueeze", "Split", "Dropout"}
)  # fmt: skip


def prepare(graph: QuantGraph, *, keep: Callable[[Node], bool] | None = None) -> None:
    """What every dialect starts with: modern operators, folded constants. `keep` says which nodes are not folded."""
    modernize(graph)
    settle(graph, keep=keep)


def settle(graph: QuantGraph, *, keep: Callable[[Node], bool] | None = None) -> None:
    """The rest of `prepare`, for a graph whose operators are modern."""
    fold(graph, keep=keep)
    if unspread(graph):
        fold(graph, keep=keep)
    is_news = True
    for _ in range(_ROUNDS):
        while inline_branches(graph):  # what a branch holds may decide another
            is_news = True
            modernize(graph)
            fold(graph, keep=keep)
        if not is_news or not graph.of("If", "Compress"):
            return
        infer_if_possible(graph)  # so may sizes that the file does not state, those of what a branch makes, too
        is_news = take_sizes(graph)  # a batch of any size beside them is no reason not to
        fold(graph, keep=keep)


def fold(graph: QuantGraph, *, keep: Callable[[Node], bool] | None = None) -> int:
    """Fold constants, except for what a weight's quantization says (and what `keep` says); how many nodes went."""
    gone = fold_constants(graph, keep=lambda node: clips_weight(node) or (keep is not None and keep(node)))
    fold_fills(graph)
    gather_known_parts(graph)
    return gone


def to_fake_quant(graph: QuantGraph, node: Node, params: QuantParams, offset: float = 0.0) -> None:
    """Turn a vendor's node (its first input is the tensor, its first output the result) into a FakeQuant in place.

    With `offset` the grid is `params` moved by so much: round(x - offset) + offset, which is exact. Quantized tensors
    are float32: what computes in double precision around one reads and writes it through Casts, new nodes (`insert`).
    """
    node.inputs[0] = in_single(graph, node.inputs[0])
    _out_in_single(graph, node)
    if offset:
        _shift(graph, node, offset)
    node.op, node.domain = FAKE_QUANT, None
    node.inputs = [node.inputs[0]]
    node.attrs.clear()
    node.attrs["params"] = params
    y = node.outputs[0]
    if not offset:
        graph.origin[y.name] = y.name


def in_single(graph: QuantGraph, x: Tensor) -> Tensor:
    """A tensor of double precision in float32, which it may have been before; others, and constants, as they are."""
    if is_constant(x) or element_type(x) != _DOUBLE:
        return x
    maker = graph.producer(x)
    if is_op(maker, "Cast") and element_type(maker.inputs[0]) == _SINGLE:
        return maker.inputs[0]
    return graph.apply("Cast", [x], f"{x.name}_single", _SINGLE, x.shape, attrs={"to": _SINGLE})


def _out_in_single(graph: QuantGraph, node: Node) -> None:
    """Let a node that made a tensor of double precision make it in float32."""
    y = node.outputs[0]
    if element_type(y) == _DOUBLE:
        node.outputs[0] = single = graph.variable(f"{y.name}_single", _SINGLE, y.shape)
        make_double(graph, single, y)


def make_double(graph: QuantGraph, single: Tensor, y: Tensor) -> None:
    """Make a tensor of double precision, which nothing makes, of one in float32; who casts it to that reads that."""
    for reader in graph.consumers(y):
        if is_op(reader, "Cast") and reader.attr("to") == _SINGLE:
            graph.replace(reader.outputs[0], single)
    graph.insert("Cast", [single], [y], attrs={"to": _DOUBLE})


def _shift(graph: QuantGraph, node: Node, offset: float) -> None:
    """Take an offset off in front of a node, and add it again behind."""
    x, y = node.inputs[0], node.outputs[0]
    below, rounded = graph.variable(f"{y.name}_below", 1), graph.variable(f"{y.name}_rounded", 1)
    ends = [graph.constant(f"{y.name}_offset", np.asarray(v, np.float32)) for v in (-offset, offset)]
    graph.insert("Add", [x, ends[0]], [below])
    node.inputs[0], node.outputs[0] = below, rounded
    graph.insert("Add", [rounded, ends[1]], [y])
    graph.shifted[rounded.name] = (y.name, float(ends[1].values))


def fake_quantize(graph: QuantGraph, tensor: Tensor, params: QuantParams) -> None:
    """Let all readers of a tensor's values, and the graph's outputs, read it rounded.

    Operands that steer an operator (the scales of a Resize, say) stay as they are, whatever the file says of them.
    """
    rounded = graph.variable(f"{tensor.name}_rounded", 1, tensor.shape)
    steered = [
        (n, i)
        for n in dict.fromkeys(graph.consumers(tensor))
        for i, t in enumerate(n.inputs)
        if t is tensor and i and n.op in _STEERED
    ]
    graph.replace(tensor, rounded)
    for node, index in steered:
        node.inputs[index] = tensor
    if rounded.outputs or graph.is_output(rounded):
        graph.insert(FAKE_QUANT, [tensor], [rounded], hint=f"{tensor.name}_fake_quant", attrs={"params": params})


def fake_quants(graph: QuantGraph) -> Iterator[Node]:
    """The FakeQuant nodes, in order."""
    return (n for n in graph.nodes if n.op == FAKE_QUANT)


def apply_ranges(graph: QuantGraph, options: FrontendOptions) -> None:
    """Apply the ranges that the user states: to named tensors, and to all that the exporter wrote without one."""
    stated = options.ranges
    spans = {"act": stated.activations, "weight": stated.weights}
    if not stated.tensors and not any(spans.values()):
        return
    seen: set[str] = set()
    applied: set[str] = set()
    for node in fake_quants(graph):
        x, y, params = node.inputs[0], node.outputs[0], node.attrs["params"]
        seen.update((x.name, y.name))
        name = next((n for n in (y.name, x.name) if n in stated.tensors), None)
        kind = "weight" if is_constant(x) else "act"
        general = spans[kind] if params.is_full_range else None
        if name is not None:
            applied.add(name)
            _restate(graph, node, stated.tensors[name])
        elif general is not None:
            applied.add(kind)
            _restate(graph, node, general)
    for name in sorted(stated.tensors.keys() - applied):
        hint = suggested(name, seen, "qatc inspect MODEL lists the quantized tensors")
        message = "a range is stated for a tensor that is not fake-quantized"
        graph.diagnostics.error("QAT007", message, tensor=name, hint=hint)
    for kind, span in spans.items():
        if span is not None and kind not in applied:
            message = (
                f"the stated range {kind}={span[0]}..{span[1]} changes nothing: the file states one for each of them"
            )
            hint = "name the tensors in the table [tensors] of a TOML file to state another one"
            graph.diagnostics.warning("QAT007", message, hint=hint)


def _restate(graph: QuantGraph, node: Node, stated: tuple[int, int]) -> None:
    """Give a FakeQuant the range that the user states."""
    params = node.attrs["params"]
    low, high = dtype_range(params.dtype)
    if low <= stated[0] <= stated[1] <= high:
        _check_weights(graph, node, params, stated)
        if stated != (params.qmin, params.qmax):
            node.attrs["params"] = params.with_range(*stated)
            graph.restated.append("with the ranges of --quant-range")
        return
    graph.diagnostics.error(
        "QAT007",
        f"the stated range {stated[0]}..{stated[1]} does not fit {params.dtype}",
        node=label_of(node),
        tensor=node.outputs[0].name,
        hint="state a range for this tensor by name",
    )


def _check_weights(graph: QuantGraph, node: Node, params: QuantParams, stated: tuple[int, int]) -> None:
    """Warn where many weights lie beyond a stated range: training would not have clamped them all."""
    tensor = node.inputs[0]
    if not isinstance(tensor, Constant) or tensor.values.dtype.kind != "f" or not tensor.values.size:
        return
    integers = params.quantize(tensor.values)
    share = float(((integers < stated[0]) | (integers > stated[1])).mean())
    if share > _CLAMPED:
        graph.diagnostics.warning(
            "QAT107",
            f"the stated range {stated[0]}..{stated[1]} cuts off {share:.0%} of these weights, "
            f"which reach {int(integers.min())}..{int(integers.max())}",
            node=label_of(node),
            tensor=tensor.name,
            hint="state the range that they were trained with",
        )
