"""Model-local functions: their calls are replaced by their bodies, once it is known what that comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import onnx

from qatc.compiler.budget import active
from qatc.compiler.diagnostics import fail, printable
from qatc.compiler.model.protos import all_nodes, domain_of

_MAX_NODES: Final = 1_000_000  # after all calls are replaced
_MAX_BYTES: Final = 2**31 - 1  # likewise: what protobuf can hold
_MAX_CALLS: Final = 64  # functions that call functions that call functions
_COPIES: Final = 3  # of the expanded model that are held at once
_HINT: Final = "export the model without local functions"

_Name: TypeAlias = "tuple[str, str, str]"  # domain, name, overload


@dataclass(frozen=True)
class _Size:
    """What a node becomes when all calls are replaced."""

    nodes: int
    size: int  # bytes


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions of its own.

    Raises:
        CompileError: QAT004 for functions that call themselves, are nested too deeply or share a name; QAT005 and
            QAT011 where the bodies would come to too much.
    """
    bodies: dict[_Name, Counter[_Name]] = {}
    own: dict[_Name, _Size] = {}
    for function in model.functions:
        name = (domain_of(function.domain), function.name, function.overload)
        if name in bodies:
            raise fail("QAT004", f"two functions of the model are called {_shown(name)}", hint=_HINT)
        calls = Counter(map(_called, all_nodes(function.node)))
        bodies[name], own[name] = calls, _Size(calls.total(), function.ByteSize())
    sizes = _expanded(bodies, own)
    total = _sum(Counter(map(_called, all_nodes(model.graph.node))), sizes)
    if total.nodes > _MAX_NODES:
        message = f"the model's functions expand to {total.nodes:,} operators, more than {_MAX_NODES:,}"
        raise fail("QAT005", message, hint=_HINT)
    size = total.size + model.ByteSize()
    if size > _MAX_BYTES:
        message = f"the model's functions expand to {size:,} bytes, more than {_MAX_BYTES:,}"
        raise fail("QAT005", message, hint=_HINT)
    active().ask(_COPIES * size, "replacing the model's functions by their bodies", _HINT)
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        message = f"the model's functions cannot be replaced by their bodies: {error}"
        raise fail("QAT004", message, hint=_HINT) from error


def _expanded(bodies: Mapping[_Name, Counter[_Name]], own: Mapping[_Name, _Size]) -> dict[_Name, _Size]:
    """What a call of each function becomes."""
    sizes: dict[_Name, _Size] = {}
    for _ in range(_MAX_CALLS):
        ready = [k for k, used in bodies.items() if k not in sizes and all(u in sizes or u not in bodies for u in used)]
        for name in ready:
            inner = _sum(bodies[name], sizes)
            sizes[name] = _Size(inner.nodes, inner.size + own[name].size)
        if not ready:
            break
    stuck = sorted(bodies.keys() - sizes.keys())
    if stuck:
        message = f"model function {_shown(stuck[0])} calls itself, or calls are nested too deeply"
        raise fail("QAT004", message, hint=_HINT)
    return sizes


def _sum(calls: Mapping[_Name, int], sizes: Mapping[_Name, _Size]) -> _Size:
    """What calls become; nodes that call no function count as nodes alone, their bytes as part of what holds them."""
    plain = _Size(1, 0)
    found = [(count, sizes.get(name, plain)) for name, count in calls.items()]
    return _Size(sum(count * each.nodes for count, each in found), sum(count * each.size for count, each in found))


def _called(node: onnx.NodeProto) -> _Name:
    return domain_of(node.domain), node.op_type, node.overload


def _shown(name: _Name) -> str:
    return printable("::".join(part for part in name if part))
