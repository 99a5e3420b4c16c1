r"""Strip: FakeQuant nodes disappear; what they said stays as QuantParams on tensors.

    x -> FakeQuant(P) -> y -> reader          x<P> -> reader            every reader of x saw the same rounding
    x -> FakeQuant(P) -> y -> reader          x -> Requantize -> y<P> -> reader
     \-> other reader                          \-> other reader         one reads x unrounded (or rounded onto Q)
    w -> FakeQuant(P) -> y                    y = round(w)<P>           constants: the integers become the truth
    v -> FakeQuant(P) -> Pad(x, n, .)         round(v) -> Pad(x, n, .)  how a tensor is moved is said in real numbers

A FakeQuant onto the grid its input already lies on is dropped: rounding twice is rounding once. Not so where a port of
the file has these integers in another type.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import FAKE_QUANT, REQUANTIZE, Constant, Node, QuantGraph, Tensor
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.movement import is_value_blind
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.storage import release

_SAID_HOW: Final = frozenset({"Pad", "Resize"})  # by operands of real numbers


def strip(graph: QuantGraph) -> None:
    """Remove every FakeQuant node of a canonical graph (see `compiler/frontend.py`), in one sweep."""
    rounded: dict[int, dict[QuantParams, Tensor]] = {}  # id of an input -> what it becomes under which parameters
    for node in graph.nodes:
        if node.op in _SAID_HOW:
            _say_how(graph, node)
        if node.op != FAKE_QUANT:
            continue
        x, y = node.inputs[0], node.outputs[0]
        params: QuantParams = node.attrs["params"]
        known = rounded.setdefault(id(x), {})
        if params not in known:
            known[params] = _rounded(graph, node, x, y, params)
        result = known[params]
        if result is not y:
            if y.name in graph.origin and not isinstance(result, Constant):
                graph.origin.setdefault(result.name, graph.origin[y.name])
            if y.name in graph.shifted:
                graph.shifted.setdefault(result.name, graph.shifted[y.name])
            graph.replace(y, result)
    graph.sort()
    graph.clean()


def _say_how(graph: QuantGraph, node: Node) -> None:
    """Let a node read the real numbers of quantized constants behind its first operand: they say how it moves that."""
    for index, tensor in enumerate(node.inputs):
        if index and isinstance(tensor, Constant) and tensor.name in graph.params:
            node.inputs[index] = graph.constant(f"{tensor.name}_real", np.asarray(graph.real(tensor)))


def _rounded(graph: QuantGraph, node: Node, x: Tensor, y: Tensor, params: QuantParams) -> Tensor:
    """The tensor that holds x rounded onto `params`; turns `node` into a Requantize where x stays as it is."""
    if isinstance(x, Constant):
        return _constant(graph, node, x, params)
    have = graph.quant(x)
    typed = y.name not in graph.integer_ports or (have is not None and have.dtype == params.dtype)
    if have is not None and have.same_grid(params) and params.qmin <= have.qmin <= have.qmax <= params.qmax and typed:
        return x
    if have is None and _one_rounding(graph, x, params):
        graph.params[x.name] = params
        graph.origin.pop(x.name, None)  # the source has it before this rounding
        return x
    place = printable(label_of(node))
    graph.explain("strip", f"requantized at {place}: {printable(x.name)} is read unrounded or on another grid, too")
    node.op, node.domain = REQUANTIZE, "qatc"
    del node.attrs["params"]
    graph.params[y.name] = params
    return y


def _one_rounding(graph: QuantGraph, x: Tensor, params: QuantParams) -> bool:
    """Whether every reader of x rounds it onto the same grid."""
    if graph.is_output(x):
        return False
    readers = [n for n in graph.consumers(x) if not is_value_blind(n)]
    return all(n.op == FAKE_QUANT and n.attrs["params"] == params for n in readers)


def _constant(graph: QuantGraph, node: Node, x: Constant, params: QuantParams) -> Constant:
    value = graph.real(x)
    have = graph.quant(x)
    if value is None or value.dtype.kind != "f":
        graph.diagnostics.error(
            "QAT104", "a constant that is not floating point is fake-quantized", node=label_of(node), tensor=x.name
        )
        return x
    if have is not None and have.same_grid(params):
        integers: Array = np.clip(x.values, params.qmin, params.qmax).astype(params.container)
    else:
        try:
            integers = params.quantize(value, graph.storage.empty(value.shape, params.container))
            release(value)  # nobody reads the floats of a memory-mapped weight again, and its integers not soon
            release(integers)
        except ValueError as error:
            graph.diagnostics.error(
                "QAT104",
                f"the constant cannot be quantized: {error}",
                node=label_of(node),
                tensor=x.name,
                hint="the training diverged, or the file is damaged",
            )
            return x
    return graph.constant(f"{x.name}_{params.dtype}", integers, params)
