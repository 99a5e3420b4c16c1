"""Rules and sweeps: a rule is a plain function on a node, a sweep tries the rules on every node once.

    RULES = Rules("modernize")

    @RULES.on("Squeeze", "Unsqueeze")
    def axes_become_an_input(graph: QuantGraph, node: Node) -> bool:
        if "axes" not in node.attrs:
            return False                      # nothing to do: silent
        if not known(node):
            raise NoMatch("its rank is unknown")   # almost matched: `--explain` says so
        ...
        return True

    sweep(graph, RULES)

A sweep is linear in the graph: there is no worklist, and a rule must leave behind what no rule wants to see again.
Rules unlink nodes (`graph.bypass`) and insert new ones; the sweep removes the dead and restores the order at its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import Node, QuantGraph
from qatc.compiler.model.links import label_of

Rule = Callable[[QuantGraph, Node], bool]


class NoMatch(Exception):  # noqa: N818  # not an error: the reason why a rule that nearly applied does not
    """Raised by a rule that recognized its pattern but may not rewrite it; `reason` goes into the explanation."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Rules:
    """Rules by the operator they start from; several rules of one operator are tried in the order of registration."""

    name: str
    by_op: dict[tuple[str, str], list[Rule]] = field(default_factory=dict[tuple[str, str], list[Rule]])

    def on(self, *ops: str, domain: str | tuple[str, ...] = "") -> Callable[[Rule], Rule]:
        """Register a rule for operators of a domain, or of several; it returns whether it rewrote the node."""

        def register(rule: Rule) -> Rule:
            for key in itertools.product((domain,) if isinstance(domain, str) else domain, ops):
                self.by_op.setdefault(key, []).append(rule)
            return rule

        return register

    def of(self, node: Node) -> list[Rule]:
        """The rules that start from this node's operator."""
        return self.by_op.get((node.domain or "", node.op), [])

    def starts(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that a rule may start from, by their operator's name."""
        names = {op for _, op in self.by_op}
        return [node for node in nodes if node.op in names]


def sweep(graph: QuantGraph, rules: Rules, nodes: Iterable[Node] | None = None) -> int:
    """Try the rules on every node once (or on some), in order; the first that rewrites a node ends that node's turn.

    Returns how many nodes were rewritten. What fired and what nearly did goes to `graph.explain`.
    """
    fired = 0
    for node in rules.starts(graph.nodes if nodes is None else nodes):
        for rule in rules.of(node):
            label = label_of(node) if graph.explains else ""  # before the rule unlinks what the label names
            try:
                matched = rule(graph, node)
            except NoMatch as no:
                graph.explain(rules.name, f"{_title(rule)} not at {printable(label)}: {no.reason}")
                continue
            if matched:
                fired += 1
                graph.explain(rules.name, f"{_title(rule)} at {printable(label)}")
                break
    if fired:
        graph.sort()
        graph.clean()
    return fired


def _title(rule: Rule) -> str:
    return rule.__name__.strip("_").replace("_", " ")
