"""Whether a node has the inputs, outputs and attributes that its operator asks for.

Everything behind the loader may rely on it. Operators that onnx does not know are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import onnx
import onnx.defs
from onnx import AttributeProto

from qatc.compiler.protos import BODIES

_SPARSE: Final = ("Loop", "Scan")  # their states may be absent
_KINDS: Final = {number: name.lower() for name, number in AttributeProto.AttributeType.items()}


@dataclass(frozen=True)
class _Form:
    """What an operator's schema says, in plain Python: asking onnx for it is slow."""

    inputs: tuple[int, int]  # fewest and most
    outputs: int  # most
    needed: tuple[tuple[int, str], ...]  # inputs that may not be absent: index and name
    variadic: int | None  # the first of any number of inputs, none of which may be absent
    required: frozenset[str]
    kinds: Mapping[str, int]  # attribute -> AttributeProto type


class NodeRecord(NamedTuple):
    """A node of the file, taken out of its protobuf once: each look into one takes as long as a look-up in a dict."""

    proto: onnx.NodeProto
    op: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: list[AttributeProto]
    has_bodies: bool  # subgraphs, which may read tensors from outside

    @classmethod
    def of(cls, proto: onnx.NodeProto) -> NodeRecord:
        """Everything but the name, which only messages need."""
        domain = proto.domain
        domain = "" if domain == "ai.onnx" else domain
        attributes = list(proto.attribute)
        has_bodies = not BODIES.isdisjoint([a.type for a in attributes])
        return cls(proto, proto.op_type, domain, list(proto.input), list(proto.output), attributes, has_bodies)


class NodeChecker:
    """Checks nodes of one model; `opsets` are the versions of the domains that it imports."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self._forms: dict[str, _Form | None] = {}

    def _form_of(self, op: str) -> _Form | None:
        if op not in self._forms:
            self._forms[op] = _form(op, self.opsets.get("", 1))
        return self._forms[op]

    def findings(self, node: NodeRecord) -> Iterator[str]:
        """What is wrong with a node, in words; nothing where it is as its operator is defined."""
        op = node.op
        if not op:
            yield "the node has no operator"
        form = None if node.domain else self._form_of(op)
        if form is None:
            if node.inputs and not node.inputs[0]:  # the data, of every operator that is known here
                yield f"{op} needs its first input"
            return
        fewest, most = form.inputs
        count = len(node.inputs)
        if not fewest <= count <= most:
            span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            yield f"{op} takes {span} inputs, not {count}"
        for index, name in form.needed:
            if index < count and not node.inputs[index]:
                yield f"{op} needs its input {name}"
                break
        if form.variadic is not None and "" in node.inputs[form.variadic :]:
            yield f"{op} has an input without a name"
        if len(node.outputs) > form.outputs:
            yield f"{op} has {form.outputs} outputs, not {len(node.outputs)}"
        kinds = [(a.name, a.type) for a in node.attributes]
        names = {name for name, _ in kinds}
        if missing := form.required - names:
            yield f"{op} needs the attribute {min(missing)}"
        if len(names) < len(kinds):
            yield f"{op} has an attribute twice"
        for name, kind in kinds:
            wanted = form.kinds.get(name, kind)
            if kind not in (wanted, AttributeProto.UNDEFINED):
                found = _KINDS.get(kind, "?")
                yield f"the attribute {name} of {op} is of type {found}, not {_KINDS[wanted]}"


def _form(op: str, opset: int) -> _Form | None:
    if not onnx.defs.has(op, opset, ""):
        return None
    schema = onnx.defs.get_schema(op, opset, "")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return _Form(
        (schema.min_input, schema.max_input),
        schema.max_output,
        tuple((i, p.name) for i, p in enumerate(schema.inputs) if p.option == single),
        next((i for i, p in enumerate(schema.inputs) if p.option == variadic and op not in _SPARSE), None),
        frozenset(name for name, a in schema.attributes.items() if a.required),
        {
            name: AttributeProto.AttributeType.Value(str(a.type).rpartition(".")[2])
            for name, a in schema.attributes.items()
        },
    )
