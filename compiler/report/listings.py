"""What the smaller commands print: a checked package, targets, dialects, codes and their pages; as text and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from qatc.compiler.diagnostics import counted, escaped, one_line, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Column, Facts, listing
from qatc.compiler.result import Json

if TYPE_CHECKING:
    from qatc.compiler.backend import Backend
    from qatc.compiler.frontend import Frontend
    from qatc.compiler.target import Target
    from qatc.compiler.verify.package import PackageCheck, SampleCheck


# -- verify --------------------------------------------------------------------------------------------------------
def package_check(found: PackageCheck, console: Console, *, verbose: bool = False) -> None:
    """Print what became of a package's check; its diagnostics are printed elsewhere."""
    mark = Text("verified ", style="green") if found.passed else Text("failed ", style="bold red")
    console.print(mark + Text(one_line(str(found.path)), style="bold"), soft_wrap=True)
    facts = Facts(console)
    if found.files:
        facts.row("files", _matched(found), style="red" if found.damaged else "dim")
    if found.samples:
        bad = [check for check in found.samples if not check.passed]
        lines = [Text(_replayed(check)) for check in (found.samples if verbose else bad[:5])]
        facts.row("samples", _replays(found.samples), *lines, style="red" if bad else "dim")
    else:
        facts.row("samples", Text("not replayed", style="yellow"))
    if found.tensors:
        facts.row("reference", _referred(found), style="dim" if all(c.passed for c in found.tensors) else "red")
    elif found.samples:
        facts.row("reference", Text("not compared", style="yellow"))


def _replayed(check: SampleCheck) -> str:
    said = f"sample {check.sample}, {printable(check.output)}: {check.different:,} of {check.elements:,} differ"
    return said + (f", by at most {check.largest:.3g}" if check.different else "")


def _matched(found: PackageCheck) -> str:
    """How many files are what the manifest says."""
    number = counted(found.files, "file")
    if found.damaged:
        return f"{found.damaged:,} of {number} {'is' if found.damaged == 1 else 'are'} not what the manifest says"
    return f"{number}, {text.scaled(found.size, 'B')} match the manifest"


def _replays(checks: Sequence[SampleCheck]) -> str:
    """How the outputs compare with those of the samples."""
    number = counted(len({check.sample for check in checks}), "sample")
    said = "equal"
    if any(check.different for check in checks):
        allowed = ", as allowed" if all(check.passed for check in checks) else ""
        said = f"off by at most {max(check.largest for check in checks):.3g}{allowed}"
    return f"{number} replayed, {counted(len(checks), 'output')}: {said}"


def _referred(found: PackageCheck) -> str:
    """How the tensors compare with those of the reference executor."""
    worst = max(check.max_lsb for check in found.tensors)
    failed = sum(not check.passed for check in found.tensors)
    differ = 1 - (text.equal_share(found.tensors) or 0.0)
    said = f"{text.percent(differ)} differ, by at most {worst} LSB" if worst else "equal bit for bit"
    floats = text.floats(found.tensors)
    said = f"integers {said}{floats}" if floats and not worst else said + floats
    if not found.judged:
        outputs = counted(len(found.tensors), "output")
        return f"{outputs} end to end: {said}; not judged, since the model computes in floats"
    what = counted(len(found.tensors), "tensor")
    return f"{what}, operator by operator: {said}" + (f", {failed} of them where none may" if failed else "")


def package_check_json(found: PackageCheck) -> dict[str, Json]:
    """A package's check as JSON data."""
    return {
        "package": str(found.path),
        "passed": found.passed,
        "files": found.files,
        "size": found.size,
        "samples": [{**asdict(check), "largest": text.finite(check.largest)} for check in found.samples],
        "reference": {
            "judged": found.judged,
            "tensors": [
                {
                    "tensor": check.tensor,
                    "op": check.op,
                    "elements": check.elements,
                    "different": check.elements - check.histogram.get(0, 0),
                    "max_lsb": check.max_lsb,
                    "passed": check.passed,
                    "message": check.message,
                }
                for check in found.tensors
            ],
        },
    }


# -- targets and dialects ------------------------------------------------------------------------------------------
def targets(found: Sequence[tuple[Target, Backend]], console: Console, *, verbose: bool = False) -> None:
    """Print the targets; `verbose` adds each backend's options."""
    rows: list[list[Text | str]] = []
    for target, backend in found:
        last = Text(text.prose(target.description))
        for option in backend.options.values() if verbose else ():
            choices = "|".join(option.choices) or "TEXT"
            default = f" (default {option.default})" if option.default else ""
            last.append(f"\n-p {escaped(option.name)}={escaped(choices + default)}\n{text.prose(option.help)}")
        rows.append([Text(printable(target.name), style="bold"), printable(target.arithmetic), last])
    listing(console, (Column("target"), Column("arithmetic"), Column("what it is")), rows)
    if not verbose:
        console.print("\n  -v adds the options that -p takes for each", soft_wrap=True)


def targets_json(found: Sequence[tuple[Target, Backend]]) -> list[Json]:
    """The targets as JSON data."""
    return [
        {
            "name": target.name,
            "backend": target.backend,
            "description": target.description,
            "arithmetic": target.arithmetic,
            "operators": list(target.operators),
            "options": [
                {"name": o.name, "help": o.help, "choices": list(o.choices), "default": o.default}
                for o in backend.options.values()
            ],
        }
        for target, backend in found
    ]


def dialects(found: Sequence[tuple[Frontend, str]], console: Console, *, verbose: bool = False) -> None:
    """Print the dialects with their exporters and known limits, and who brings them where it is not qatc."""
    rows: list[list[Text | str]] = []
    for frontend, owner in found:
        last = Text(text.prose(frontend.description))
        for exporter in frontend.exporters:
            last.append(f"\ntried: {text.prose(exporter)}")
        for limit in frontend.limits:
            last.append(f"\nlimit: {text.prose(limit)}")
        if owner != "qatc" or verbose:
            last.append(f"\nfrom {text.prose(owner)}")
        rows.append([Text(printable(frontend.name), style="bold"), last])
    listing(console, (Column("dialect"), Column("what it reads")), rows, apart=True)


def dialects_json(found: Sequence[tuple[Frontend, str]]) -> list[Json]:
    """The dialects as JSON data."""
    return [
        {
            "name": frontend.name,
            "description": frontend.description,
            "exporters": list(frontend.exporters),
            "limits": list(frontend.limits),
            "from": owner,
        }
        for frontend, owner in found
    ]


# -- explain -------------------------------------------------------------------------------------------------------
def codes(titles: Mapping[str, str], console: Console) -> None:
    """Print every code with its title."""
    listing(
        console, (Column("code"), Column("what it says")), [[code, title] for code, title in sorted(titles.items())]
    )


def page(content: str, console: Console) -> None:
    """Print a page of Markdown; on a terminal it is wrapped to its width, headings are bold and code is set off."""
    safe = escaped(content.rstrip("\n"))
    if not console.is_terminal:
        console.print(safe, soft_wrap=True)
        return
    for number, part in enumerate(safe.split("```")):
        if number % 2:
            _, *code, _ = part.split("\n")  # the first line names the language
            console.print("\n".join(["", *(f"  {line}" for line in code), ""]), style="cyan", soft_wrap=True)
            continue
        for line in _whole_lines(part.strip("\n")):
            hanging = "  " if line.startswith("- ") else ""
            wrapped = textwrap.wrap(
                line.lstrip("# "), console.width, subsequent_indent=hanging, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
            console.print("\n".join(wrapped), style="bold" if line.startswith("#") else None, soft_wrap=True)


def _whole_lines(content: str) -> list[str]:
    """Markdown with a line for each paragraph and each item of a list, which its source breaks at some width."""
    lines: list[str] = []
    for line in content.split("\n"):
        begins = not line or line.startswith(("#", "- ")) or not lines or not lines[-1] or lines[-1].startswith("#")
        if begins:
            lines.append(line)
        else:
            lines[-1] += f" {line.strip()}"
    return lines
