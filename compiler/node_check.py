"""Whether a node has the inputs, outputs and attributes that its operator asks for.

Everything behind the loader may rely on it. Operators that onnx does not know are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import onnx
import onnx.defs
from onnx import AttributeProto

_KINDS: Final = {number: name.lower() for name, number in AttributeProto.AttributeType.items()}


@dataclass(frozen=True)
class _Form:
    """What an operator's schema says, in plain Python: asking onnx for it is slow."""

    inputs: tuple[int, int]  # fewest and most
    outputs: int  # most
    needed: tuple[tuple[int, str], ...]  # inputs that may not be absent: index and name
    required: frozenset[str]
    kinds: Mapping[str, int]  # attribute -> AttributeProto type


class NodeChecker:
    """Checks nodes of one model; `opsets` are the versions of the domains that it imports."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self._forms: dict[str, _Form | None] = {}

    def findings(self, node: onnx.NodeProto) -> Iterator[str]:
        """What is wrong with a node, in words; nothing where it is as its operator is defined."""
        if node.domain not in ("", "ai.onnx"):
            return
        if node.op_type not in self._forms:
            self._forms[node.op_type] = _form(node.op_type, self.opsets.get("", 1))
        form = self._forms[node.op_type]
        if form is None:
            return
        fewest, most = form.inputs
        if not fewest <= len(node.input) <= most:
            span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            yield f"{node.op_type} takes {span} inputs, not {len(node.input)}"
        absent = [name for index, name in form.needed if index < len(node.input) and not node.input[index]]
        if absent:
            yield f"{node.op_type} needs its input {absent[0]}"
        if len(node.output) > form.outputs:
            yield f"{node.op_type} has {form.outputs} outputs, not {len(node.output)}"
        missing = form.required - {a.name for a in node.attribute}
        if missing:
            yield f"{node.op_type} needs the attribute {min(missing)}"
        for attribute in node.attribute:
            wanted = form.kinds.get(attribute.name, attribute.type)
            if attribute.type not in (wanted, AttributeProto.UNDEFINED):
                found = _KINDS.get(attribute.type, "?")
                yield f"the attribute {attribute.name} of {node.op_type} is of type {found}, not {_KINDS[wanted]}"


def _form(op: str, opset: int) -> _Form | None:
    if not onnx.defs.has(op, opset, ""):
        return None
    schema = onnx.defs.get_schema(op, opset, "")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Form(
        (schema.min_input, schema.max_input),
        schema.max_output,
        tuple((i, p.name) for i, p in enumerate(schema.inputs) if p.option == single),
        frozenset(name for name, a in schema.attributes.items() if a.required),
        {
            name: AttributeProto.AttributeType.Value(str(a.type).rpartition(".")[2])
            for name, a in schema.attributes.items()
        },
    )
