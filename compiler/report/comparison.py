"""What `qatc compare` prints: the first tensor that differs, its cause, every tensor's figures; as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.text import Text

from qatc.compiler.compare.result import CAUSES, Cause, Comparison, MissingTensor, TensorComparison
from qatc.compiler.diagnostics import counted, one_line, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Column, Facts, listing
from qatc.compiler.result import Json

_ROWS: Final = 40  # tensors listed without -v
_NAMES: Final = 5
_ERRORS: Final = {"none": "", "local": "its own", "accumulated": "from before"}


def comparison(found: Comparison, console: Console, *, verbose: bool = False) -> None:
    """Print a comparison; its diagnostics are printed elsewhere. `verbose` lists all tensors, however many."""
    mark = Text(f"{_verdict(found)} ", style="green" if found.passed else "bold red")
    console.print(mark + Text(one_line(str(found.dump)), style="bold"), soft_wrap=True)
    facts = Facts(console)
    facts.row("package", f"{one_line(str(found.package))} (arithmetic {found.profile})")
    facts.row("tensors", _counts(found))
    first = found.first
    if first is not None:
        facts.row("first", *_first(first), style="bold red")
        cause = first.cause
        if cause is not None:
            facts.row("likely cause", *_cause(cause), style="bold")
    if found.missing:
        facts.row("not dumped", *_missing(found.missing, verbose=verbose), style="yellow")
    console.print()
    _table(found, console, verbose=verbose)


def _verdict(found: Comparison) -> str:
    """`equal` is said where nothing differs at all, `failed` where something could not be compared."""
    if not found.passed:
        return "differs" if found.first is not None else "failed"
    return "equal" if all(t.equal_share == 1 for t in found.tensors) else "passed"


def _counts(found: Comparison) -> str:
    bad = [t for t in found.tensors if not t.passed]
    samples = len({t.sample for t in found.tensors})
    limit = f"within {found.tolerance} LSB" if found.tolerance else "equal"
    parts = [f"{len(found.tensors) - len(bad)} of {len(found.tensors)} {limit}"]
    local = sum(t.error == "local" for t in bad)
    if local:
        parts.append(f"{local} with an error of {'its' if local == 1 else 'their'} own")
    if len(bad) > local:
        follow = len(bad) - local
        cause = "that" if local == 1 else "those" if local else "what is within"
        parts.append(f"{follow} that {'follows' if follow == 1 else 'follow'} from {cause}")
    if samples > 1:
        parts.append(f"in {samples} samples")
    return ", ".join(parts)


def _first(first: TensorComparison) -> list[str]:
    node = f" at node {printable(first.node)}" if first.node else ""
    off = "" if first.max_lsb is None else f", by up to {first.max_lsb} LSB ({first.mean_lsb:.3g} on average)"
    share = text.percent(1 - first.equal_share)
    lines = [printable(first.tensor), f"sample {first.sample}, made by {first.op}{node}", f"{share} differ{off}"]
    if first.message:
        lines.append(text.prose(first.message))
    return lines


def _cause(cause: Cause) -> list[str]:
    where = f" (in {printable(cause.operator)})" if cause.operator else ""
    lines = [f"{CAUSES[cause.kind]}{where}", text.prose(cause.detail)]
    if cause.kind not in ("unknown", "shape"):
        lines.append(f"explains {text.percent(cause.explained)} of what differs")
    return lines


def _missing(missing: Sequence[MissingTensor], *, verbose: bool) -> list[str]:
    lines = [f"{counted(len(missing), 'tensor')} of the package"]
    shown = missing if verbose else missing[:_NAMES]
    lines += [f"  {_number(m.index)} {printable(m.tensor)}" for m in shown]
    if len(missing) > len(shown):
        lines.append(f"  and {len(missing) - len(shown)} more (-v lists them)")
    return lines


def _number(index: int | None) -> str:
    return "" if index is None else f"#{index}"


def _table(found: Comparison, console: Console, *, verbose: bool) -> None:
    tensors = found.tensors
    if not verbose and len(tensors) > _ROWS:
        tensors = tuple(t for t in tensors if not t.passed)[:_ROWS]
    columns = (
        Column("#", numeric=True),
        Column("op"),
        Column("equal", numeric=True),
        Column("max", numeric=True),
        Column("mean LSB", numeric=True),
        Column("SQNR", numeric=True),
        Column("cosine", numeric=True),
        Column("error"),
        Column("tensor"),
    )
    if tensors:
        several = len({t.sample for t in found.tensors}) > 1
        listing(console, columns, [_row(t, several=several) for t in tensors])
    left = len(found.tensors) - len(tensors)
    if left:
        console.print(f"  {counted(left, 'more tensor' if tensors else 'tensor')} (-v lists them)")


def _row(tensor: TensorComparison, *, several: bool) -> list[Text | str]:
    name = f"{f'sample {tensor.sample}: ' if several else ''}{printable(tensor.tensor)}"
    if tensor.cause is not None and not tensor.passed:
        name += f"\n{CAUSES[tensor.cause.kind]}"
    style = "" if tensor.passed else "red" if tensor.error == "local" else "yellow"
    return [
        "" if tensor.index is None else str(tensor.index),
        tensor.op,
        Text(text.percent(tensor.equal_share), style=style),
        "" if tensor.max_lsb is None else str(tensor.max_lsb),
        "" if tensor.mean_lsb is None else f"{tensor.mean_lsb:.3g}",
        text.decibels(tensor.sqnr_db),
        f"{tensor.cosine:.6f}",
        Text(_ERRORS[tensor.error], style=style),
        Text(name, style=style),
    ]


def comparison_json(found: Comparison) -> dict[str, Json]:
    """A comparison as JSON data; infinite ratios are null."""
    return {
        "package": str(found.package),
        "dump": str(found.dump),
        "passed": found.passed,
        "arithmetic": found.profile,
        "tolerance": found.tolerance,
        "first": None if found.first is None else found.first.tensor,
        "tensors": [{**asdict(t), "sqnr_db": text.finite(t.sqnr_db)} for t in found.tensors],
        "missing": [asdict(missing) for missing in found.missing],
    }
