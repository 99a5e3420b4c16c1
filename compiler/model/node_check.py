"""Whether a node has the inputs, outputs and attributes that its operator asks for.

Everything behind the loader may rely on it. Operators that onnx does not know are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import numpy as np
import onnx
import onnx.defs
from onnx import AttributeProto

from qatc.compiler.model.links import Node, captures_of
from qatc.compiler.model.protos import BODIES, MICROSOFT, domain_of

_SPARSE: Final = ("Loop", "Scan")  # their states may be absent
_PYTHON: Final[dict[int, type | tuple[type, ...]]] = {
    AttributeProto.FLOAT: (int, float),
    AttributeProto.INT: int,
    AttributeProto.STRING: (str, bytes),
    AttributeProto.TENSOR: np.ndarray,
    AttributeProto.GRAPH: onnx.GraphProto,
}
_LISTS: Final[dict[int, int]] = {
    AttributeProto.FLOATS: AttributeProto.FLOAT,
    AttributeProto.INTS: AttributeProto.INT,
    AttributeProto.STRINGS: AttributeProto.STRING,
}
_LEAST: Final = {  # of what moves over its input
    "kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0, "output_shape": 1,
}  # fmt: skip
_PADDINGS: Final = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_MOST: Final = 2**31 - 1
_UNBOUNDED: Final = frozenset({"Constant", "Shape", "Slice"})  # any other number of 64 bits is a size, or a mistake
_RUNTIMES: Final = frozenset({"", MICROSOFT})  # whose operators ONNX Runtime has
# Operators of ONNX Runtime's optimizer that are taken apart (`passes/fused.py`), and how many inputs they have.
_FUSED: Final = {
    "BiasGelu": (2, 2), "FusedConv": (2, 4), "FusedGemm": (2, 3), "FusedMatMul": (2, 2),
    "SkipLayerNormalization": (3, 5),
}  # fmt: skip
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
    sizes: frozenset[str]  # attributes with the sizes of a window


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
        domain = domain_of(proto.domain)
        attributes = list(proto.attribute)
        has_bodies = bool(attributes) and not BODIES.isdisjoint([a.type for a in attributes])
        return cls(proto, proto.op_type, domain, list(proto.input), list(proto.output), attributes, has_bodies)


class NodeChecker:
    """Checks nodes of one model; `opsets` are the versions of the domains that it imports."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self._forms: dict[str, _Form | None] = {}

    def _form_of(self, domain: str | None, op: str) -> _Form | None:
        if domain:
            return _fused_form(op) if domain == MICROSOFT and op in _FUSED else None
        if op not in self._forms:
            self._forms[op] = _form(op, self.opsets.get("", 1))
        return self._forms[op]

    def findings(self, node: NodeRecord) -> Iterator[str]:
        """What is wrong with a node, in words; nothing where it is as its operator is defined."""
        op = node.op
        if not op:
            yield "the node has no operator"
        if node.domain in _RUNTIMES and op not in _UNBOUNDED:
            for attribute in node.attributes:
                if not -_MOST <= attribute.i <= _MOST:  # divided by or multiplied, some end ONNX Runtime's process
                    yield f"the attribute {attribute.name} of {op} is {attribute.i}"
        form = self._form_of(node.domain, op)
        if form is None:
            if not (node.inputs and node.inputs[0]):  # the data, of every operator that a dialect knows
                yield f"{op} needs its first input"
            return
        yield from _wiring(form, op, node.inputs, len(node.outputs))
        if node.attributes or form.required:
            yield from _attributes(form, node)

    def findings_in(self, node: Node) -> Iterator[str]:
        """The same for a node of the graph, which a frontend may have made of a vendor's."""
        form = self._form_of(node.domain, node.op)
        if form is None:
            return
        own = len(node.inputs) - len(captures_of(node.attrs))
        yield from _wiring(form, node.op, [t.name for t in node.inputs[:own]], len(node.outputs))
        if missing := form.required - node.attrs.keys():
            yield f"{node.op} needs the attribute {min(missing)}"
        for name, value in node.attrs.items():
            wanted = form.kinds.get(name)
            if wanted is not None and not _is_of(value, wanted):
                yield f"the attribute {name} of {node.op} is not of type {_KINDS[wanted]}"
        stated = {name: node.attrs[name] for name in form.sizes & node.attrs.keys()}
        yield from _sizes(node.op, {name: v for name, v in stated.items() if _is_of(v, form.kinds[name])})
        if form.sizes:
            yield from _padding(node.op, [str(node.attr("auto_pad"))] if "auto_pad" in node.attrs else [])
            yield from _grouping(node.op, [v for v in (node.attrs.get("group"),) if isinstance(v, int)])


def _attributes(form: _Form, node: NodeRecord) -> Iterator[str]:
    op = node.op
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
    if form.sizes:
        yield from _sizes(op, {a.name: a.ints for a in node.attributes if a.name in form.sizes})
        yield from _padding(op, [a.s.decode("utf-8", "replace") for a in node.attributes if a.name == "auto_pad"])
        yield from _grouping(op, [a.i for a in node.attributes if a.name == "group"])


def _wiring(form: _Form, op: str, inputs: Sequence[str], outputs: int) -> Iterator[str]:
    fewest, most = form.inputs
    count = len(inputs)
    if not fewest <= count <= most:
        span = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most < _MOST else f"at least {fewest}"
        yield f"{op} takes {span} inputs, not {count}"
    for index, name in form.needed:
        if index < count and not inputs[index]:
            yield f"{op} needs its input {name}"
            break
    if form.variadic is not None and "" in inputs[form.variadic :]:
        yield f"{op} has an input without a name"
    if outputs > form.outputs:
        yield f"{op} has {form.outputs} outputs, not {outputs}"


def _sizes(op: str, stated: Mapping[str, Sequence[int]]) -> Iterator[str]:
    axes: dict[str, int] = {}
    for name, values in sorted(stated.items()):
        bad = next((v for v in values if not _LEAST[name] <= v <= _MOST), None)
        if bad is not None:
            yield f"the attribute {name} of {op} holds {bad}"
        if len(values) and name != "output_shape":  # which may have all dimensions
            axes[name] = len(values) if name != "pads" else -(-len(values) // 2)
    if len(set(axes.values())) > 1 or len(stated.get("pads", ())) % 2:
        yield f"the attributes {', '.join(axes)} of {op} are not for the same number of axes"


def _padding(op: str, stated: Sequence[str]) -> Iterator[str]:
    for mode in stated:
        if mode not in _PADDINGS:
            yield f"the attribute auto_pad of {op} is {mode!r}, none of {', '.join(_PADDINGS)}"


def _grouping(op: str, stated: Sequence[int]) -> Iterator[str]:
    for groups in stated:
        if groups < 1:  # ONNX Runtime divides by it, before 1.23 without a look
            yield f"the attribute group of {op} is {groups}"


def _is_of(value: object, wanted: int) -> bool:
    """Whether the Python value of an attribute may be written as an AttributeProto of type `wanted`."""
    if wanted in _LISTS:
        return isinstance(value, (list, tuple)) and all(
            _is_of(element, _LISTS[wanted]) for element in cast("Sequence[object]", value)
        )
    return isinstance(value, _PYTHON.get(wanted, object))


def _fused_form(op: str) -> _Form:
    """What an operator of ONNX Runtime's optimizer cannot do without: onnx has no schema of it."""
    fewest, most = _FUSED[op]
    needed = tuple((index, f"number {index}") for index in range(fewest))
    return _Form((fewest, most), _MOST, needed, None, frozenset(), {}, frozenset())


def _form(op: str, opset: int) -> _Form | None:
    """The form of an operator in an opset; of one that came later, what the first that has it cannot do without.

    An exporter's own operator may be called so, with more inputs and attributes than the one that was standardized.
    """
    newest = max(opset, onnx.defs.onnx_opset_version())
    since = next((v for v in range(opset, newest + 1) if onnx.defs.has(op, v, "")), None)
    if since is None:
        return None
    schema = onnx.defs.get_schema(op, since, "")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    needed = tuple((i, p.name) for i, p in enumerate(schema.inputs) if p.option == single)
    if since > opset:
        return _Form((schema.min_input, _MOST), _MOST, needed, None, frozenset(), {}, frozenset())
    attributes = schema.attributes.keys()
    return _Form(
        (schema.min_input, schema.max_input),
        schema.max_output,
        needed,
        next((i for i, p in enumerate(schema.inputs) if p.option == variadic and op not in _SPARSE), None),
        frozenset(name for name, a in schema.attributes.items() if a.required),
        {
            name: AttributeProto.AttributeType.Value(str(a.type).rpartition(".")[2])
            for name, a in schema.attributes.items()
        },
        frozenset(_LEAST.keys() & attributes if "strides" in attributes else ()),  # a Pad may take away
    )
