"""What a compile or a check found as JUnit XML, which every CI service shows: a case for each stage and finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from qatc.compiler.diagnostics import Diagnostic, Severity, counted, escaped, has_errors, printable
from qatc.compiler.report import text
from qatc.compiler.result import CompileResult, TensorCheck, Verification

if TYPE_CHECKING:
    from qatc.compiler.verify.package import PackageCheck


@dataclass(frozen=True)
class Case:
    """A test case: `failure` says what went wrong ("" passed), `output` what there is to know, `seconds` how long."""

    name: str
    failure: str = ""
    output: str = ""
    seconds: float = 0.0
    kind: str = "failure"


def compile_cases(result: CompileResult) -> list[Case]:
    """A finished compile: the compile itself, and what was compared in which stage of its verification."""
    coverage = result.coverage
    macs = coverage.integer_macs + coverage.float_macs
    share = (
        f"{text.percent(coverage.share)} of the multiply-accumulates in integers" if macs else "no multiply-accumulates"
    )
    said = f"{share}, {len(result.islands):,} in float"
    cases = [Case("compile", output=said, seconds=sum(result.timings.values()) - result.timings.get("verify", 0.0))]
    if result.verification is not None:
        cases += verification_cases(result.verification, result.timings.get("verify", 0.0))
    return cases


def verification_cases(found: Verification, seconds: float = 0.0) -> list[Case]:
    """A verification, passed or failed: what was compared in each of its stages."""
    return [
        _stage("package = reference", found.package, seconds),
        _stage("reference = simulation", found.local),
        _stage("end to end", found.tensors),
    ]


def package_cases(found: PackageCheck) -> list[Case]:
    """A package's check: its files, and each output of each sample."""
    whole = not has_errors(found.diagnostics)  # else those say what is damaged
    cases = [Case("files", output=f"{counted(found.files, 'file')}, {text.scaled(found.size, 'B')}")] * whole
    for check in found.samples:
        said = f"{check.different:,} of {check.elements:,} differ, by at most {check.largest:.3g}"
        name = f"sample {check.sample}, {printable(check.output)}"
        cases.append(Case(name, "" if check.passed else said, said))
    if found.tensors:
        cases.append(_stage("package = reference", found.tensors))
    return cases


def junit(name: str, cases: Iterable[Case], diagnostics: Sequence[Diagnostic], exit_code: int) -> bytes:
    """A JUnit report (UTF-8 XML) with one suite, named by the model or package `name`.

    Diagnostics are test cases, too: errors fail, warnings and notes pass and say what they found. Where the command
    fails without an error of its own (`exit_code`), a last case does.
    """
    listed = [*cases, *(_finding(found) for found in diagnostics)]
    if exit_code and not any(case.failure for case in listed):
        listed.append(Case("exit code", f"exit code {exit_code}"))
    counts = {kind: sum(1 for case in listed if case.failure and case.kind == kind) for kind in ("failure", "error")}
    numbers = {
        "tests": str(len(listed)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "time": f"{sum(case.seconds for case in listed):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "qatc", **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": printable(name), "skipped": "0", **numbers})
    for case in listed:
        _append(suite, case, printable(name))
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _stage(name: str, checks: Sequence[TensorCheck], seconds: float = 0.0) -> Case:
    failed = [f"{printable(check.tensor)}: {text.prose(check.message)}" for check in checks if not check.passed]
    worst = max((check.max_lsb for check in checks), default=0)
    said = f"{counted(len(checks), 'tensor')}, off by at most {worst} LSB" if checks else "nothing to compare"
    return Case(f"verification: {name}", "\n".join(failed), said, seconds)


def _finding(found: Diagnostic) -> Case:
    place = " ".join(printable(part) for part in (found.node, found.tensor) if part)
    name = f"{found.code} {place}" if place else f"{found.code}: {found.title}"
    failed = found.severity is Severity.ERROR
    return Case(name, str(found) if failed else "", "" if failed else str(found),
                kind="error" if found.code.startswith("QAT9") else "failure")  # fmt: skip


def _append(suite: ElementTree.Element, case: Case, name: str) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", {"classname": f"qatc.{name}", "name": case.name, "time": f"{case.seconds:.3f}"}
    )
    if case.failure:
        message = escaped(case.failure)
        failure = ElementTree.SubElement(element, case.kind, {"message": message.split("\n")[0], "type": "qatc"})
        failure.text = message
    if case.output:
        ElementTree.SubElement(element, "system-out").text = escaped(case.output)
