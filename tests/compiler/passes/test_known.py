"""Operators that nobody knows are reported, each at its node."""

from __future__ import annotations

import onnx.defs

from qatc.compiler.graph import FAKE_QUANT
from qatc.compiler.passes.known import report_malformed, report_unknown, unknown
from tests.graphs import loaded

BODY = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "vendor" : 1]>
g (float[2] x) => (float[2] y) {
    a = Relu(x)  b = com.microsoft.QuickGelu(a)  c = vendor.FancyPool(b)  d = Rleu(c)  y = vendor.FancyPool(d) }"""


def test_each_unknown_operator_is_an_error_at_its_node() -> None:
    graph = loaded(BODY)
    assert [n.op for n in unknown(graph)] == ["FancyPool", "Rleu", "FancyPool"]
    report_unknown(graph)
    found = list(graph.diagnostics)
    assert [d.code for d in found] == ["QAT106"] * 3
    assert [d.message for d in found] == [
        "vendor::FancyPool is unknown",
        "Rleu is unknown",
        "vendor::FancyPool is unknown",
    ]
    assert all(d.node for d in found)


def test_nodes_of_our_own_are_known() -> None:
    graph = loaded(BODY)
    for node in graph.nodes:
        node.op, node.domain = FAKE_QUANT, None
    assert unknown(graph) == []


def test_files_newer_than_onnx_are_not_judged() -> None:
    """What the installed onnx cannot know may be defined all the same."""
    graph = loaded(BODY)
    graph.opset = onnx.defs.onnx_opset_version() + 1
    assert [n.op for n in unknown(graph)] == ["FancyPool", "FancyPool"]


def test_what_a_body_captures_is_no_input_of_its_node() -> None:
    """An If beside any vendor's node was refused: "If takes 1 inputs, not 2"."""
    graph = loaded(
        BODY.replace("[2] x)", "[2] x, bool k)").replace("d = Rleu(c)", "d = If(k) <then_branch = t () => (float[2] e)"
        " { e = Neg(a) }, else_branch = f () => (float[2] h) { h = Add(a, c) }>")
    )  # fmt: skip
    assert [len(n.inputs) for n in graph.nodes if n.op == "If"] == [3]
    report_malformed(graph)
    graph.diagnostics.check()
