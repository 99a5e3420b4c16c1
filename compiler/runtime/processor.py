"""Models that choose by processor: one form where 8-bit products are exact, another where they saturate.

x86 processors without VNNI add neighboring products of unsigned by signed bytes in 16 bits, and saturate. Products of
unsigned bytes do not, but take longer everywhere. A model that has to be both exact and fast holds both forms in the
branches of an If whose condition is such a product of constants:

    MatMulInteger(255, 127) -> ReduceMin -> Equal(what it should be) -> If: the fast form, or else the wide one

ONNX Runtime computes the condition when it loads the model and puts the branch in place of the If before it optimizes
anything else, so that neither costs time afterwards (docs/adr/0009).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from qatc.compiler.model.names import Names
from qatc.compiler.quant import Array
from qatc.compiler.runtime.parts import with_outputs
from qatc.compiler.runtime.sessions import open_session, tidy

_DEPTH: Final = 16  # products in a sum: whole vectors of every kernel
_EXACT: Final = _DEPTH * 255 * 127
_PROBE: Final = "exact_8bit_products"  # the condition; what it is made of is named after it
_PRODUCTS: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)


def by_processor(fast: ModelProto, wide: GraphProto) -> ModelProto:
    """`fast` where 8-bit products are exact, and the nodes of `wide` in the place of its own where they saturate.

    Args:
        fast: the model; its inputs, outputs and initializers stay outside. It is not changed.
        wide: other nodes for the same tensors, and the further initializers that they read.
    """
    made = {name for node in fast.graph.node for name in node.output}
    outputs = [port for port in fast.graph.output if port.name in made]
    taken = made | {t.name for t in fast.graph.initializer} | {p.name for p in fast.graph.input}
    taken |= {name for node in wide.node for name in node.output} | {t.name for t in wide.initializer}
    names = Names(taken)
    model = ModelProto(ir_version=fast.ir_version, producer_name=fast.producer_name, opset_import=fast.opset_import)
    graph = model.graph
    graph.name = fast.graph.name
    graph.input.extend(fast.graph.input)
    graph.output.extend(fast.graph.output)
    graph.initializer.extend(fast.graph.initializer)
    condition = _probe(graph, names)
    inner = {port.name: names.fresh(f"{port.name}_chosen") for port in outputs}
    choice = graph.node.add(op_type="If", name=names.fresh("by_processor"), input=[condition], output=list(inner))
    for branch, nodes in (("then_branch", fast.graph.node), ("else_branch", wide.node)):
        attribute = choice.attribute.add(name=branch, type=onnx.AttributeProto.GRAPH)
        body = attribute.g
        body.name = branch
        if branch == "else_branch":
            body.initializer.extend(wide.initializer)
        body.node.extend(nodes)
        _rename(body.node, inner)
        for port in outputs:
            declared = body.output.add()
            declared.CopyFrom(port)
            declared.name = inner[port.name]
    return model


def flattened(model: ModelProto, *, exact: bool | None = None) -> ModelProto:
    """The plain model that a processor runs: the chosen branch in the place of a model's only If.

    A model without one, or whose choice depends on its inputs, is returned as it is.

    Args:
        model: the model; it is not changed.
        exact: whether 8-bit products are exact there; None for this processor.

    Raises:
        Exception: one of `runtime.errors()` where ONNX Runtime cannot compute the condition.
    """
    choices = [node for node in model.graph.node if node.op_type == "If" and not node.domain]
    if len(choices) != 1 or not choices[0].input:
        return model
    (choice,) = choices
    question = with_outputs(model, choice.input)
    constants = {t.name for t in question.graph.initializer}
    read = {*choice.input, *(name for node in question.graph.node for name in node.input)}
    if read & ({port.name for port in model.graph.input} - constants):
        return model
    if exact is None:
        del question.graph.input[:]
        exact = bool(np.asarray(open_session(tidy(question)[0]).run(None, {})[0]).all())
    body = next(a.g for a in choice.attribute if a.name == ("then_branch" if exact else "else_branch"))
    asked = {name for node in question.graph.node for name in node.output}
    flat = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, opset_import=model.opset_import)
    flat.graph.name = model.graph.name
    flat.graph.input.extend(model.graph.input)
    flat.graph.output.extend(model.graph.output)
    flat.graph.initializer.extend(model.graph.initializer)
    flat.graph.initializer.extend(body.initializer)
    flat.graph.node.extend(n for n in model.graph.node if n is not choice and not asked.intersection(n.output))
    flat.graph.node.extend(body.node)
    _rename(flat.graph.node, dict(zip((o.name for o in body.output), choice.output, strict=True)))
    return flat


@functools.cache
def is_exact() -> bool:
    """Whether ONNX Runtime computes 8-bit products exactly on this processor.

    Raises:
        Exception: one of `runtime.errors()` where ONNX Runtime cannot compute one.
    """
    return bool(np.asarray(open_session(probe()).run(None, {})[0]).all())


def probe() -> ModelProto:
    """A model without inputs that says whether 8-bit products are exact; check.py in packages carries it, too."""
    model = ModelProto(ir_version=8, opset_import=[onnx.helper.make_opsetid("", 13)])
    model.graph.name = _PROBE
    condition = _probe(model.graph, Names())
    model.graph.output.append(onnx.helper.make_tensor_value_info(condition, onnx.TensorProto.BOOL, ()))
    return model


def may_saturate(model: ModelProto) -> bool:
    """Whether a model has products of 8-bit integers, and this processor is one that saturates them."""
    return any(node.op_type in _PRODUCTS for node in model.graph.node) and not is_exact()


def _probe(graph: GraphProto, taken: Names) -> str:
    """Add a product that saturates wherever any does; the name of whether it is what it should be."""
    constants: tuple[Array, ...] = (
        np.full((4, _DEPTH), 255, np.uint8),
        np.full((_DEPTH, 16), 127, np.int8),
        np.asarray(_EXACT, np.int32),
    )
    names = [taken.fresh(f"{_PROBE}_{part}") for part in ("bytes", "weights", "sum")]
    graph.initializer.extend(onnx.numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True))
    product, least, condition = map(taken.fresh, (f"{_PROBE}_product", f"{_PROBE}_least", _PROBE))
    graph.node.add(op_type="MatMulInteger", name=product, input=names[:2], output=[product])
    lowest = graph.node.add(op_type="ReduceMin", name=least, input=[product], output=[least])
    lowest.attribute.append(onnx.helper.make_attribute("keepdims", 0))
    graph.node.add(op_type="Equal", name=condition, input=[least, names[2]], output=[condition])
    return condition


def _rename(nodes: Iterable[NodeProto], names: dict[str, str]) -> None:
    """Rename tensors that nodes read and make; what their subgraphs read of them, too."""
    if not names:
        return
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                if name in names:
                    ends[index] = names[name]
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                waiting.extend(graph.node)
                for port in graph.output:
                    if port.name in names:
                        port.name = names[port.name]
