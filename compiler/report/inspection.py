"""`qatc inspect` on the terminal: what would run in integers and what not, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from qatc.compiler.diagnostics import counted, escaped, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Column, Facts, listing
from qatc.compiler.report.summary import integers, notes
from qatc.compiler.result import InspectedOp, Inspection

_ROWS: Final = 120  # operators that are listed without -v; what stays in float always is
_COLUMNS: Final = (
    Column("operator"),
    Column("runs in"),
    Column("MACs", numeric=True),
    Column("weights", numeric=True),
    Column("result", numeric=True),
    Column("node"),
)
_RUNS: Final = {"integer": ("integers", "green"), "float": ("float", "yellow"), "moved": ("any", "dim")}


def inspection(found: Inspection, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print what an inspection found; `verbose` lists data movement and details too, `quiet` leaves operators out."""
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
    word, style = _RUNS.get(op.kind, (op.kind, ""))
    more = ", ".join(part for part in (escaped(op.note), *_numbers(op)) if part) if verbose else ""
    node = Text(printable(op.node)).append(f"  {more}" if more else "", style="dim")
    if op.reason:
        node.append(f"\n{escaped(op.reason)}" + (f" ({printable(op.tensor)})" if op.tensor else ""))
    macs = text.scaled(op.macs) if op.macs else ""
    parameters = text.scaled(op.parameters) if op.parameters else ""
    size = text.scaled(op.activation_bytes, "B") if op.activation_bytes else ""
    return [printable(op.op_type), Text(word, style=style), macs, parameters, size, node]


def _numbers(op: InspectedOp) -> Iterator[str]:
    """What is proven of an operator's weights and sums."""
    if op.weights is not None:
        yield f"{op.weights.bits}-bit weights"
        if op.weights.weak:
            yield f"{op.weights.weak} of {op.weights.channels} channels weak"
        if op.weights.dead:
            yield f"{op.weights.dead} of {op.weights.channels} channels zero"
    if op.sums is not None:
        yield f"sums of {counted(bits(op.sums.largest), 'bit')}"
        if op.sums.saturating:
            yield f"pairs up to {op.sums.largest_pair:,} in {op.sums.saturating} of {op.sums.channels} channels"


def bits(magnitude: int) -> int:
    """The bits that a signed integer of this magnitude takes."""
    return magnitude.bit_length() + 1


def _print_rest(operators: Sequence[InspectedOp], shown: Sequence[InspectedOp], console: Console) -> None:
    hidden = [op for op in operators if op.kind == "integer"] if not any(o.kind == "integer" for o in shown) else []
    moved = [op for op in operators if op.kind == "moved"] if not any(o.kind == "moved" for o in shown) else []
    parts = [counted(len(hidden), "more operator") + " in integers"] if hidden else []
    parts += [counted(len(moved), "operator", "that only move") + " data"] if moved else []
    if parts:
        console.print(f"  and {' and '.join(parts)} (-v lists them)\n", style="dim", soft_wrap=True)


def _print_facts(found: Inspection, console: Console, *, verbose: bool) -> None:
    facts = Facts(console)
    facts.row("dialect", Text(printable(found.dialect)).append(f" ({text.prose(found.evidence)})", style="dim"))
    facts.row("target", printable(found.target))
    for label, ports in (("inputs", found.inputs), ("outputs", found.outputs)):
        facts.row(label, *_shown([[_port(port.name, text.shape(port))] for port in ports], 6, verbose=verbose))
    facts.row("integers", integers(found.coverage))
    weights = sum(op.parameters for op in found.operators)
    facts.row("weights", f"{text.scaled(weights)} in a file of {text.scaled(found.source_bytes, 'B')}")
    facts.row("activations", f"{text.scaled(found.peak_bytes, 'B')} at once for one sample")
    _print_sums(found, facts)
    if found.missing:
        facts.row("no range", *_missing(found, verbose=verbose), style="yellow")
    if found.disagreeing:
        facts.row("two grids", *_disagreeing(found, verbose=verbose), style="yellow")
    notes(found.diagnostics, facts, verbose=verbose)
    if found.advice:
        facts.row("advice", *map(text.prose, found.advice), style="cyan")


def _print_sums(found: Inspection, facts: Facts) -> None:
    """The largest accumulator, and what processors without VNNI would make of pairs of products."""
    sums = [(op.sums, op) for op in found.operators if op.sums is not None]
    if not sums:
        return
    largest, op = max(sums, key=lambda pair: pair[0].largest)
    over = sum(1 for bounds, _ in sums if bounds.overflowing)
    said = f"at most {counted(bits(largest.largest), 'bit')}, in {printable(op.node)}"
    facts.row("sums", f"{said}: {counted(over, 'operator')} may overflow 32" if over else said,
              style="yellow" if over else "dim")  # fmt: skip
    pairs = [(bounds, op) for bounds, op in sums if bounds.saturating]
    if pairs:
        worst, op = max(pairs, key=lambda pair: pair[0].largest_pair)
        line = f"{len(pairs):,} of {counted(len(sums), 'operator')} may saturate 16 bits on x86 without VNNI"
        facts.row("pairs", f"{line}; worst {worst.largest_pair:,} of 32,767 in {printable(op.node)}")


def _port(name: str, kind: str) -> Text:
    return Text(printable(name)).append(f" {kind}", style="dim")


def _disagreeing(found: Inspection, *, verbose: bool) -> list[Text]:
    entries: list[list[Text]] = []
    for apart in found.disagreeing:
        head = Text(printable(apart.tensor)).append(f" {text.prose(apart.reason)}", style="dim")
        grids = [[Text(f"  {text.grid(params)}", style="dim")] for params in apart.grids]
        entries.append([head, *_shown(grids, 2, verbose=verbose, indent="  ")])
    return _shown(entries, 5, verbose=verbose)


def _missing(found: Inspection, *, verbose: bool) -> list[Text]:
    lines = [
        Text(printable(missing.tensor)).append(f": {text.prose(missing.reason)}", style="dim")
        for missing in found.missing
    ]
    return _shown([[line] for line in lines], 5, verbose=verbose)


def _shown(entries: Sequence[list[Text]], most: int, *, verbose: bool, indent: str = "") -> list[Text]:
    """The lines of the first entries, and how many more there are; with `verbose` of all."""
    shown = len(entries) if verbose else most
    lines = [line for entry in entries[:shown] for line in entry]
    if len(entries) > shown:
        lines.append(Text(f"{indent}and {len(entries) - shown:,} more (-v lists them)", style="dim"))
    return lines
