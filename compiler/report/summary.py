"""The short summary that ends a compile: what was recognized, what runs in integers, what does not, the proof."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from qatc.compiler.diagnostics import CODES, Diagnostic, Severity, counted, few, one_line, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Facts
from qatc.compiler.result import CompileResult, Coverage, OutputCheck, ProfileDifference, TensorCheck, Verification

_GROUPS: Final = 6  # reasons for islands that are shown before "and more"
_ALL: Final = 1_000_000  # how many are few enough with -v
_EXPLAINED: Final = re.compile(r"(?P<what>.+? at )(?P<place>.+?)(?P<why>: .*)?", re.DOTALL)  # of `explanation`
_STYLES: Final = {Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def summary(result: CompileResult, console: Console, *, verbose: bool = False) -> None:
    """Print the summary of a compile; `verbose` lifts the limits on lists."""
    done = result.verification is None or result.verification.passed
    mark = Text("compiled ", style="green") if done else Text("failed ", style="bold red")
    console.print(mark + Text(printable(result.source.name), style="bold"), soft_wrap=True)
    facts = Facts(console)
    facts.row("dialect", _named(result.dialect, result.evidence))
    facts.row("target", _named(result.target, f"arithmetic {result.profile}"))
    facts.row("operators", _operators(result, _ALL if verbose else 4))
    facts.row("integers", integers(result.coverage))
    if result.islands:
        facts.row("in float", *_islands(result, verbose=verbose))
    if result.filled:
        facts.row("filled", *_filled(result, verbose=verbose))
    facts.row("size", _size(result))
    facts.row("verified", *_verification(result.verification, verbose=verbose))
    if verbose and result.profiles:
        facts.row("arithmetic", *_profiles(result.profiles))
    if verbose and result.timings:
        slowest = sorted(result.timings.items(), key=lambda item: -item[1])
        facts.row("time", ", ".join(f"{text.prose(step)} {seconds:.2f} s" for step, seconds in slowest))
    notes(result.diagnostics, facts, verbose=verbose)
    explanation(result.explanation, facts, verbose=verbose)
    if result.package is not None:
        facts.row("package", Text(one_line(str(result.package)), style="bold"), wrap=False)


def _profiles(found: Sequence[ProfileDifference]) -> Iterator[Text]:
    """How each profile rounds, against exact rounding, on the first sample."""
    for each in found:
        line = Text(f"{each.profile:<14}")
        if each.reason:
            yield line.append(text.prose(each.reason), style="dim")
            continue
        said = "rounds exactly" if not each.share else f"{text.percent(each.share)} off by {each.max_lsb} LSB"
        worst = f", at most {text.percent(each.worst_share)} of {printable(each.worst)}" if each.worst else ""
        yield line.append(said + worst)


def _named(name: str, more: str) -> Text:
    return Text(printable(name)).append(f" ({text.prose(more)})" if more else "", style="dim")


def _operators(result: CompileResult, shown: int) -> Text:
    before, after = sum(result.source_ops.values()), sum(result.package_ops.values())
    return Text(f"{before:,} -> {after:,}").append(f" ({text.kinds(result.package_ops, shown)})", style="dim")


def integers(found: Coverage) -> Text:
    """How much of a network runs in integers."""
    macs = found.integer_macs + found.float_macs
    operators = f"{counted(found.integer_ops, 'operator')}, {found.float_ops:,} in float"
    if not macs:
        return Text(f"{operators}; no multiply-accumulates")
    style = "bold green" if found.share == 1 else "bold yellow" if found.share >= 0.5 else "bold red"
    line = Text(text.percent(found.share), style=style)
    line.append(f" of {text.scaled(macs)} multiply-accumulates", style="not bold default")
    return line.append(f" ({operators})", style="dim not bold default")


def _size(result: CompileResult) -> Text:
    ratio = text.times(result.source_bytes, result.package_bytes)
    line = Text(f"{text.scaled(result.source_bytes, 'B')} -> {text.scaled(result.package_bytes, 'B')}")
    return line.append(f" ({ratio})" if ratio else "", style="dim")


def _islands(result: CompileResult, *, verbose: bool) -> Iterator[Text]:
    groups = text.islands_by_reason(result.islands)
    total = result.coverage.integer_macs + result.coverage.float_macs
    for reason, members in groups if verbose else groups[:_GROUPS]:
        kinds = few(sorted({island.op_type for island in members}))
        macs = sum(island.macs for island in members)
        cost = f" ({text.percent(macs / total)} of the multiply-accumulates)" if macs and total else ""
        yield Text(f"{len(members):,} {kinds}{cost}", style="yellow").append(f": {text.prose(reason)}", style="default")
        yield Text("  " + few([island.node for island in members], _ALL if verbose else 3), style="dim")
    if len(groups) > _GROUPS and not verbose:
        rest = sum(len(members) for _, members in groups[_GROUPS:])
        yield Text(f"{rest:,} more for {len(groups) - _GROUPS:,} other reasons: see report.html, or -v", style="yellow")


def _filled(result: CompileResult, *, verbose: bool) -> Iterator[Text]:
    methods = ", ".join(sorted({text.prose(range_.method) for range_ in result.filled}))
    yield Text(f"{counted(len(result.filled), 'range')} from calibration data ({methods})")
    yield Text("  " + few([range_.tensor for range_ in result.filled], _ALL if verbose else 3), style="dim")


def _verification(found: Verification | None, *, verbose: bool) -> Iterator[Text]:
    if found is None:
        yield Text("no: verification was switched off", style="yellow")
        return
    if not found.passed:
        where = f" at {printable(found.first_bad)}" if found.first_bad else ""
        yield Text(f"FAILED{where}", style="bold red")
    yield Text("package = reference: ") + _checks(found.package, "tensor")
    yield Text("reference = simulation: ") + _checks(found.local, "operator")
    shown = len(found.outputs) if verbose else 3
    for output in found.outputs[:shown]:
        yield _output(output, named=len(found.outputs) > 1)
    if len(found.outputs) > shown:
        yield Text(f"and {counted(len(found.outputs) - shown, 'more output')}", style="dim")
    yield Text(f"{counted(found.samples, 'sample')}; simulation: {text.prose(found.simulation)}", style="dim")


def _checks(checks: Sequence[TensorCheck], noun: str) -> Text:
    if not checks:
        return Text("nothing to compare", style="yellow")
    what = counted(len(checks), noun)
    failed = [check for check in checks if not check.passed]
    if failed:
        message = f": {text.prose(failed[0].message)}" if failed[0].message else ""
        fail = f"{len(failed):,} of {what} {'fails' if len(failed) == 1 else 'fail'}"
        return Text(f"{fail}, first {printable(failed[0].tensor)}{message}", style="bold red")
    worst = max(check.max_lsb for check in checks)
    floats = text.floats(checks)
    if not worst:
        return Text(f"{what}, ").append("bit-exact", style="green").append(floats, style="default")
    share = text.percent(text.equal_share(checks) or 0.0)
    rest = "rest 1 LSB" if worst == 1 else f"rest at most {worst:,} LSB"
    return Text(f"{what}, ").append(f"{share} equal", style="green").append(f", {rest}{floats}", style="default")


def _output(check: OutputCheck, *, named: bool) -> Text:
    name = f", {printable(check.name)}" if named else ""
    line = Text(f"end to end{name}: ")
    if check.max_abs == 0:
        line.append("equal", style="green")
    elif check.chosen_by and math.isinf(check.max_abs):
        line.append(f"another number of elements, which {check.chosen_by} chooses")
    else:
        line.append(f"off by at most {check.max_abs:.3g} ({text.percent(check.max_rel)})")
        if check.chosen_by:
            line.append(f", what {check.chosen_by} chooses otherwise included")
    if check.argmax_agreement is not None:
        line.append(f", argmax agrees {text.percent(check.argmax_agreement)}")
    return line


def notes(diagnostics: Iterable[Diagnostic], facts: Facts, *, verbose: bool = False) -> None:
    """Print notes and warnings, those of one code together: a summary has no room for a thousand lines."""
    groups: dict[tuple[int, str], list[Diagnostic]] = {}
    for found in diagnostics:
        groups.setdefault((-list(Severity).index(found.severity), found.code), []).append(found)
    for _, members in sorted(groups.items(), key=lambda group: group[0]):
        severity = members[0].severity
        facts.row(severity.value, *_note(members, verbose=verbose), style=_STYLES[severity])


def _note(members: Sequence[Diagnostic], *, verbose: bool) -> Iterator[Text]:
    """One code's findings: equal messages once, with their places; many different ones by their title and the first."""
    messages: dict[tuple[str, str | None], list[Diagnostic]] = {}
    for found in members:
        messages.setdefault((found.message, found.hint), []).append(found)
    code = members[0].code
    shown = len(messages) if verbose or len(messages) <= 3 else 1
    if shown < len(messages):
        yield Text(f"{code}: {CODES[code]}, {len(members):,} times; the first is:")
    told = list(messages.items())[:shown]
    for index, ((message, hint), alike) in enumerate(told):
        yield Text(f"{code}: {text.prose(message)}" if shown == len(messages) else f"  {text.prose(message)}")
        places = [place for place in map(_place, alike) if place]
        if places:
            yield Text(f"  at {few(places, _ALL if verbose else 3)}", style="dim")
        again = index + 1 < shown and told[index + 1][0][1] == hint  # the same advice once, at the end
        if hint and (verbose or not again):
            yield Text(f"  help: {text.prose(hint)}", style="dim")


def _place(found: Diagnostic) -> str:
    return " ".join(part for part in (found.node, found.tensor) if part)


def explanation(lines: Sequence[str], facts: Facts, *, verbose: bool = False) -> None:
    """Print what `--explain` found: which rule fired where, and why others did not; what is said of many, once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        found = _EXPLAINED.fullmatch(line)
        what, why, place = (found["what"], found["why"] or "", found["place"]) if found else (line, "", "")
        groups.setdefault((what, why), []).append(place)
    shown = _ALL if verbose else 3
    rows = [f"{what}{few(places, shown) if places[0] else ''}{why}" for (what, why), places in groups.items()]
    if rows:
        facts.row("explained", *map(text.prose, rows))
