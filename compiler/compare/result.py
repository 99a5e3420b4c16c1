"""What a comparison tells: plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qatc.compiler.diagnostics import Diagnostic, Severity, counted, has_errors

#: Kinds of causes that leave a fingerprint.
CAUSES: Final[dict[str, str]] = {
    "rounding": "another rounding mode",
    "saturation": "saturation",
    "signedness": "signedness",
    "zero-point": "a zero-point shift",
    "layout": "another layout",
    "channel-order": "permuted channels",
    "scale": "the scale of another channel or operand",
    "bias": "a missing bias",
    "axis": "a sum along another axis",
    "coordinates": "an interpolation at other places",
    "epsilon": "a missing constant",
    "padding": "a wrong padding value",
    "byte-order": "byte order",
    "memory": "memory that was not written, or written over",
    "shape": "another shape",
    "unknown": "no known cause",
}


@dataclass(frozen=True)
class Cause:
    """A likely cause: `kind` one of `CAUSES`, `detail` a sentence, `explained` the share (0..1) of the differing
    elements that it explains, `operator` where it acts when that is not the tensor's own producer.
    """

    kind: str
    detail: str
    explained: float
    operator: str | None = None


@dataclass(frozen=True)
class TensorComparison:
    """One dumped tensor against what the package computes.

    Attributes:
        sample: which sample.
        index: the tensor's number in execution order, as the golden files have it; None for one that is not quantized.
        tensor: its name in the package's model, or in integer.json where the model does not have it.
        source: its name in the compiled file, None where it has none.
        op: the kind of the operator that makes it, "Input" for an input of the graph.
        node: the compiled file's node that the operator came from, "" where there is none.
        file: where in the dump it was found.
        elements: how many elements it has.
        equal_share: share of equal elements, 0..1.
        max_lsb: largest difference in LSB; None for floats, but for those that an integer was dequantized to.
        mean_lsb: mean magnitude of the differences in LSB; None likewise.
        sqnr_db: signal to error ratio of the real values; inf where there is no error.
        cosine: cosine similarity of the real values; 1.0 where both are zero.
        passed: whether every element is equal or within the tolerance; of floats, with one, also whether they are
            right about tensors that are.
        error: "none", "local" (given what the dump has before it, it should be something else) or "accumulated" (it
            is right about inputs that are wrong already).
        local_equal_share: as `equal_share`, against what the operator makes of the dump's own inputs.
        cause: the likely cause of a local error, None where there is none or it was not looked for.
        message: what else there is to say.
    """

    sample: int
    index: int | None
    tensor: str
    source: str | None
    op: str
    node: str
    file: str
    elements: int
    equal_share: float
    max_lsb: int | None
    mean_lsb: float | None
    sqnr_db: float
    cosine: float
    passed: bool
    error: str = "none"
    local_equal_share: float = 1.0
    cause: Cause | None = None
    message: str = ""


@dataclass(frozen=True)
class MissingTensor:
    """A tensor of the package that the dump does not have: its sample, number in execution order and names."""

    sample: int
    index: int | None
    tensor: str
    source: str | None


@dataclass(frozen=True)
class Comparison:
    """What `compare_package` found. Tensors are in execution order, sample by sample."""

    package: Path
    dump: Path
    profile: str
    tolerance: int
    tensors: tuple[TensorComparison, ...]
    missing: tuple[MissingTensor, ...]
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def first(self) -> TensorComparison | None:
        """The first tensor in execution order that differs by more than the tolerance (of the first such sample)."""
        return next((t for t in self.tensors if not t.passed), None)

    @property
    def passed(self) -> bool:
        """Whether everything in the dump could be read and nothing differs by more than the tolerance."""
        return self.first is None and not has_errors(self.diagnostics)

    @property
    def verdict(self) -> Diagnostic | None:
        """QAT405 about the first tensor that differs, None where none does."""
        first = self.first
        if first is None:
            return None
        many = len([t for t in self.tensors if not t.passed])
        off = "" if first.max_lsb is None else f", by up to {first.max_lsb} LSB"
        which = f"the first of {many} tensors that do" if many > 1 else "the only tensor that does"
        differ = first.elements - round(first.equal_share * first.elements)
        message = f"{differ:,} of {counted(first.elements, 'element')} differ{off}; it is {which}"
        cause = first.cause
        hint = None if cause is None else f"{CAUSES[cause.kind]}: {cause.detail}"
        return Diagnostic("QAT405", message, Severity.ERROR, first.node or None, first.tensor, hint)
