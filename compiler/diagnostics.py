"""Diagnostics: what qatc tells a user, with a stable code, the place, the finding and the next step.

Diagnostics are collected while a step runs and raised once, all together, as a `CompileError`. The text of every code
lives in `CODES`; its long explanation is a page beside this module (`qatc explain QAT203`). Codes are never reused.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_LONGEST_NAME: Final = 120


class Severity(enum.Enum):
    """How bad a diagnostic is: only an `ERROR` stops a compile."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


# One line a code: the title that `qatc explain` lists. QAT0xx input and usage, 1xx dialect, 2xx parameters,
# 3xx lowering, 4xx verification, 5xx package, 9xx a bug of ours.
CODES: Final[dict[str, str]] = {
    "QAT001": "the file is not a readable ONNX model",
    "QAT002": "the model file does not exist",
    "QAT003": "external data is missing, unsafe or out of bounds",
    "QAT004": "the model is malformed",
    "QAT005": "the model exceeds a safety limit",
    "QAT006": "the opset or IR version is not supported",
    "QAT007": "an option is wrong",
    "QAT008": "a sample or calibration input does not fit the model",
    "QAT009": "a tensor has no known rank or shape where one is needed",
    "QAT010": "an optional dependency is missing",
    "QAT011": "the compile would need more memory than allowed",
    "QAT012": "the file cannot be converted to ONNX",
    "QAT013": "loading the file would run code",
    "QAT014": "the converted model may be another network",
    "QAT015": "standard output or a temporary file cannot be written",
    "QAT016": "variables of the network became inputs and outputs",
    "QAT101": "the model has no fake quantization",
    "QAT102": "unknown dialect",
    "QAT103": "the quantization is not affine integer quantization",
    "QAT104": "a fake-quantization node is malformed",
    "QAT105": "-a or -m says something else than the file",
    "QAT106": "an operator is unknown",
    "QAT107": "the quantization range may have been lost by the exporter",
    "QAT108": "half or double precision is computed in float32",
    "QAT109": "a rounding that looks like a quantizer has no integer form",
    "QAT110": "fake quantization in the body of a loop or branch stays in float",
    "QAT111": "an operator is random or in training mode",
    "QAT112": "ranges are those of the exporter's metadata",
    "QAT201": "a scale is not a positive finite number",
    "QAT202": "a zero point is outside its type's range",
    "QAT203": "one tensor has parameters that disagree",
    "QAT204": "per-channel parameters do not match the tensor",
    "QAT205": "quantization parameters are computed at run time",
    "QAT206": "weights were quantized after training",
    "QAT207": "a range was filled from calibration data",
    "QAT208": "a range is missing",
    "QAT209": "a value that should be on its quantization grid is not",
    "QAT210": "batch-norm scale is zero",
    "QAT302": "an operator is not supported",
    "QAT303": "a bias is off the grid of its accumulator",
    "QAT304": "an accumulator may overflow",
    "QAT305": "the target is unknown or its description is wrong",
    "QAT306": "the package must be integer but has float islands",
    "QAT307": "an 8-bit form of an operator costs precision",
    "QAT401": "the package differs from the reference",
    "QAT402": "the reference differs from the simulation",
    "QAT403": "the simulation cannot be run",
    "QAT404": "a sample's result does not match",
    "QAT405": "a device computes a tensor otherwise than the package",
    "QAT406": "a dump cannot be read",
    "QAT407": "an array of a dump is no tensor of the package",
    "QAT408": "the package scores worse than required",
    "QAT409": "the simulation lacks a part of the package's quantization",
    "QAT501": "the package cannot be written",
    "QAT502": "the package is damaged",
    "QAT503": "another compile is writing this package",
    "QAT504": "the signature of a package does not hold",
    "QAT901": "internal error",
}


def escaped(text: str) -> str:
    """`text` made safe for a terminal: control characters, direction marks and lone surrogates escaped; lines stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(name: str) -> str:
    """`name` made safe for a terminal as `escaped` does, line breaks too: a path that may be copied from there."""
    return escaped(name).replace("\n", "\\n")


def printable(name: str) -> str:
    """`name` made safe for a terminal or a log: control characters escaped, over-long names cut in the middle."""
    text = one_line(name)
    if len(text) <= _LONGEST_NAME:
        return text
    half = _LONGEST_NAME // 2
    return f"{text[:half]}...{text[-half:]} ({len(name)} characters)"


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, printable, and how many more there are: `a, b, c and 2 more`."""
    rest = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {rest:,} more" if rest > 0 else "")


def counted(number: int, noun: str, verb: str = "", *, plural: str = "") -> str:
    """`1 file`, `12,345 files`; with a verb the start of a sentence: `1 entry names`, `3 entries name`."""
    one = number == 1
    said = f"{number:,} {noun if one else plural or noun + 's'}"
    return f"{said} {verb}{'s' if one else ''}" if verb else said


def file_name(path: Path) -> str:
    """The name of a file or folder as packages hold it: its bytes on the disk, as UTF-8 whatever the locale; what is
    none is escaped. That of `.` and `..` is where they lead.
    """
    if path.name in ("", ".."):
        with contextlib.suppress(OSError):  # nowhere any more
            path = path.resolve()
    return os.fsencode(path.name or path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Diagnostic:
    """One finding: `message` says what was found, `hint` what to do; `node` and `tensor` as model viewers show them."""

    code: str
    message: str
    severity: Severity = Severity.ERROR
    node: str | None = None
    tensor: str | None = None
    hint: str | None = None

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown diagnostic code {self.code}")

    @property
    def title(self) -> str:
        """The code's one-line title."""
        return CODES[self.code]

    def __str__(self) -> str:
        where = [f"node {printable(self.node)}"] if self.node else []
        where += [f"tensor {printable(self.tensor)}"] if self.tensor else []
        lines = [f"{self.severity.value}[{self.code}]: {escaped(self.message)}"]
        if where:
            lines.append(f"  at {', '.join(where)}")
        if self.hint:
            lines.append(f"  help: {escaped(self.hint)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | None]:
        """The diagnostic as plain JSON data."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "node": self.node,
            "tensor": self.tensor,
            "hint": self.hint,
        }


class CompileError(Exception):
    """A step failed; `diagnostics` holds everything that was found, `exit_code` what the command line returns.

    Unless it is given, that is 2 where nothing is wrong but an option, or a file that one names (QAT007), else 1.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic], exit_code: int | None = None) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        codes = {d.code for d in self.diagnostics if d.severity is Severity.ERROR}
        self.exit_code = exit_code or (2 if codes == {"QAT007"} else 1)
        super().__init__("\n".join(str(d) for d in self.diagnostics))

    def after(self, earlier: Iterable[Diagnostic]) -> None:
        """Put what was found before the step failed in front: notes and warnings often hold the reason."""
        known = set(self.diagnostics)
        self.diagnostics = (*(d for d in earlier if d not in known), *self.diagnostics)
        self.args = ("\n".join(str(d) for d in self.diagnostics),)


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether one of them is an error."""
    return any(d.severity is Severity.ERROR for d in diagnostics)


@dataclass
class Diagnostics:
    """A collector: steps add to it, `check()` raises all errors at once; the error number `most` does so, too."""

    items: list[Diagnostic] = field(default_factory=list[Diagnostic])
    most: int | None = None
    _known: set[Diagnostic] = field(default_factory=set[Diagnostic], init=False, repr=False, compare=False)

    def add(self, diagnostic: Diagnostic) -> None:
        """Record a diagnostic once; repeats of the same finding are dropped. CompileError where it is one too many."""
        if diagnostic not in self._known:
            self._known.add(diagnostic)
            self.items.append(diagnostic)
            if self.most is not None and len(self.errors) >= self.most:
                self.check()

    def error(
        self, code: str, message: str, *, node: str | None = None, tensor: str | None = None, hint: str | None = None
    ) -> None:
        """Record an error."""
        self.add(Diagnostic(code, message, Severity.ERROR, node, tensor, hint))

    def warning(
        self, code: str, message: str, *, node: str | None = None, tensor: str | None = None, hint: str | None = None
    ) -> None:
        """Record a warning."""
        self.add(Diagnostic(code, message, Severity.WARNING, node, tensor, hint))

    def note(
        self, code: str, message: str, *, node: str | None = None, tensor: str | None = None, hint: str | None = None
    ) -> None:
        """Record a note."""
        self.add(Diagnostic(code, message, Severity.NOTE, node, tensor, hint))

    @property
    def errors(self) -> list[Diagnostic]:
        """The errors among the items."""
        return [d for d in self.items if d.severity is Severity.ERROR]

    def check(self) -> None:
        """Raise `CompileError` with every error found so far, if there is one."""
        if self.errors:
            raise CompileError(self.errors)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.items)


def fail(
    code: str, message: str, *, node: str | None = None, tensor: str | None = None, hint: str | None = None
) -> CompileError:
    """Make a `CompileError` of one error, to be raised where nothing more can be collected."""
    return CompileError([Diagnostic(code, message, Severity.ERROR, node, tensor, hint)])


def misused(message: str, hint: str, code: str = "QAT007") -> CompileError:
    """Make the error of a call that asks for what there is not: exit code 2."""
    return CompileError([Diagnostic(code, message, hint=hint)], 2)


def suggested(name: str, known: Iterable[str], hint: str) -> str:
    """`hint` behind the name that somebody may have meant with an unknown one, where one is close.

    >>> suggested("tensorflwo", ["pytorch", "tensorflow"], "qatc dialects lists them")
    'did you mean tensorflow? qatc dialects lists them'
    """
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {printable(close[0])}? {hint}" if close else hint
