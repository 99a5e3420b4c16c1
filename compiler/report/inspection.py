"""`qatc inspect` on the terminal: what would run in integers and what not, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from qatc.compiler.diagnostics import escaped, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Column, Facts, listing
from qatc.compiler.report.summary import notes
from qatc.compiler.result import InspectedOp, Inspection

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_ROWS: Final = 120  # operators that are listed without -v; what stays in float always is
_ALL: Final = 1_000_000
_COLUMNS: Final = (
    Column("operator"),
    Column("runs in"),
    Column("MACs", numeric=True),
    Column("weights", numeric=True),
    Column("node"),
)
_RUNS: Final = {"integer": ("integers", "green"), "float": ("float", "yellow"), "moved": ("any", "dim")}


def inspection(found: Inspection, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print what an inspection found; `verbose` lists data movement and details too, `quiet` leaves operators out."""
    from rich.text import Text

    head = Text("inspected ", style="green") + Text(printable(found.source.name), style="bold")
    console.print(head, soft_wrap=True)
    if not quiet:
        shown = _listed(found.operators, verbose=verbose)
        if shown:
            listing(console, _COLUMNS, [_row(op, verbose=verbose) for op in shown])
            console.print()
        _print_rest(found.operators, shown, console)
    _print_facts(found, console, verbose=verbose)


def _listed(operators: Sequence[InspectedOp], *, verbose: bool) -> list[InspectedOp]:
    """What computes, in execution order; of very deep networks only what is not in integers."""
    if verbose:
        return list(operators)
    computing = [op for op in operators if op.kind != "moved"]
    return computing if len(computing) <= _ROWS else [op for op in computing if op.kind == "float"]


def _row(op: InspectedOp, *, verbose: bool) -> list[Text | str]:
    from rich.text import Text

    word, style = _RUNS.get(op.kind, (op.kind, ""))
    node = Text(printable(op.node)).append(f"  {escaped(op.note)}" if verbose and op.note else "", style="dim")
    if op.reason:
        node.append(f"\n{escaped(op.reason)}" + (f" ({printable(op.tensor)})" if op.tensor else ""))
    macs = text.scaled(op.macs) if op.macs else ""
    parameters = text.scaled(op.parameters) if op.parameters else ""
    return [printable(op.op_type), Text(word, style=style), macs, parameters, node]


def _print_rest(operators: Sequence[InspectedOp], shown: Sequence[InspectedOp], console: Console) -> None:
    hidden = [op for op in operators if op.kind == "integer"] if not any(o.kind == "integer" for o in shown) else []
    moved = [op for op in operators if op.kind == "moved"] if not any(o.kind == "moved" for o in shown) else []
    parts = [text.count(len(hidden), "more operator") + " in integers"] if hidden else []
    parts += (
        [f"{text.count(len(moved), 'operator')} that only {'moves' if len(moved) == 1 else 'move'} data"]
        if moved
        else []
    )
    if parts:
        console.print(f"  and {' and '.join(parts)} (-v lists them)\n", style="dim", soft_wrap=True)


def _print_facts(found: Inspection, console: Console, *, verbose: bool) -> None:
    from rich.text import Text

    facts = Facts(console)
    facts.row("dialect", Text(printable(found.dialect)).append(f" ({text.prose(found.evidence)})", style="dim"))
    facts.row("target", printable(found.target))
    for label, ports in (("inputs", found.inputs), ("outputs", found.outputs)):
        facts.row(label, *(_port(port.name, text.shape(port)) for port in ports[: _ALL if verbose else 6]))
    coverage = found.coverage
    macs = coverage.integer_macs + coverage.float_macs
    style = "bold green" if coverage.share == 1 else "bold yellow" if coverage.share >= 0.5 else "bold red"
    share = Text(f"{text.percent(coverage.share)} of {text.scaled(macs)} multiply-accumulates", style=style)
    operators = f"{text.count(coverage.integer_ops, 'operator')}, {coverage.float_ops:,} in float"
    facts.row("integers", (share if macs else Text("no multiply-accumulates")).append(f" ({operators})", style="dim"))
    weights = sum(op.parameters for op in found.operators)
    facts.row("weights", f"{text.scaled(weights)} in a file of {text.scaled(found.source_bytes, 'B')}")
    if found.missing:
        facts.row("no range", *_missing(found, verbose=verbose), style="yellow")
    notes(found.diagnostics, facts, verbose=verbose)


def _port(name: str, kind: str) -> Text:
    from rich.text import Text

    return Text(printable(name)).append(f" {kind}", style="dim")


def _missing(found: Inspection, *, verbose: bool) -> list[Text]:
    from rich.text import Text

    shown = _ALL if verbose else 5
    lines = [
        Text(printable(missing.tensor)).append(f": {text.prose(missing.reason)}", style="dim")
        for missing in found.missing[:shown]
    ]
    if len(found.missing) > shown:
        lines.append(Text(f"and {len(found.missing) - shown:,} more (-v lists them)", style="dim"))
    return lines
