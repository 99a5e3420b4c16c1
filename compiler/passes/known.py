"""What a dialect leaves behind: operators that nobody knows, and standard ones that a vendor's numbers made wrong."""

from __future__ import annotations

from typing import Final

import onnx.defs

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import FAKE_QUANT, REQUANTIZE, Node, QuantGraph
from qatc.compiler.model.links import label_of
from qatc.compiler.model.node_check import NodeChecker
from qatc.compiler.model.protos import MICROSOFT, domain_of
from qatc.compiler.passes.bodies import nodes_in_bodies

_DOMAINS: Final = frozenset({"ai.onnx.ml", MICROSOFT, "com.microsoft.nchwc", "com.ms.internal.nhwc"})
_OWN: Final = frozenset({FAKE_QUANT, REQUANTIZE})
_HINT: Final = "no dialect knows it, nor does ONNX Runtime; export it as standard operators"


def unknown(graph: QuantGraph) -> list[Node]:
    """The nodes whose operators nobody defines, in order.

    An operator of ai.onnx counts as defined where the installed onnx is older than the file.
    """
    kinds = {(n.domain, n.op) for n in graph.nodes}
    undefined = {(domain, op) for domain, op in kinds if not _is_defined(graph, domain or "", op)}
    return [n for n in graph.nodes if (n.domain, n.op) in undefined] if undefined else []


def _is_defined(graph: QuantGraph, domain: str, op: str) -> bool:
    if domain_of(domain):
        return domain in _DOMAINS
    return graph.opset > onnx.defs.onnx_opset_version() or op in _OWN or onnx.defs.has(op)


def report_unknown(graph: QuantGraph) -> None:
    """Record QAT106 for every unknown operator of a normalized graph, those in bodies by the node that holds them."""
    for node in unknown(graph):
        name = f"{node.domain}::{node.op}" if node.domain else node.op
        graph.diagnostics.error("QAT106", f"{printable(name)} is unknown", node=label_of(node), hint=_HINT)
    for node, inner in nodes_in_bodies(graph):
        kinds = dict.fromkeys((n.domain, n.op_type) for n in inner)
        for domain, op in [kind for kind in kinds if not _is_defined(graph, *kind)]:
            name = f"{domain}::{op}" if domain else op
            message = f"{printable(name)} in the body of this {node.op} is unknown"
            graph.diagnostics.error("QAT106", message, node=label_of(node), hint=_HINT)


def report_malformed(graph: QuantGraph) -> None:
    """Record QAT004 for every standard operator that is not as ONNX defines it."""
    checker = NodeChecker({"": graph.opset})
    for node in graph.nodes:
        for message in checker.findings_in(node):
            graph.diagnostics.error("QAT004", message, node=label_of(node))
