"""What a compile tells: plain frozen data, filled by the driver, read by the report, the command line and callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from qatc.compiler.diagnostics import Diagnostic
from qatc.compiler.quant import QuantParams

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True)
class Island:
    """A node that stays in float: `node` and `op_type` as in the source, `reason` why, `macs` multiply-accumulates.

    `tensor` is the one that the reason speaks of ("its input is not quantized by the model"), "" where there is none.
    """

    node: str
    op_type: str
    reason: str
    macs: int = 0
    tensor: str = ""


@dataclass(frozen=True)
class Coverage:
    """How much of the network runs in integers; multiply-accumulates count for batch 1 where the batch is symbolic."""

    integer_macs: int
    float_macs: int
    integer_ops: int
    float_ops: int
    moved_ops: int

    @property
    def share(self) -> float:
        """Integer share of the multiply-accumulates; 1.0 for a network that has none."""
        total = self.integer_macs + self.float_macs
        return self.integer_macs / total if total else 1.0


@dataclass(frozen=True)
class FilledRange:
    """Parameters that the exporter left out, found from calibration data by `method`."""

    tensor: str
    params: QuantParams
    method: str


@dataclass(frozen=True)
class TensorCheck:
    """One tensor compared in LSB of its own grid; `histogram` maps |difference| in LSB (0, 1, 2) to element counts.

    `excused` counts elements that differ where the exact value lies within float error of a rounding boundary;
    `sqnr_db` is the signal to quantisation-noise ratio of the comparison (inf when equal).
    """

    tensor: str
    op: str
    kind: str
    elements: int
    histogram: Mapping[int, int]
    excused: int = 0
    sqnr_db: float = float("inf")
    passed: bool = True
    message: str = ""

    @property
    def equal_share(self) -> float:
        """Share of elements that are equal, 0..1."""
        return self.histogram.get(0, 0) / self.elements if self.elements else 1.0

    @property
    def max_lsb(self) -> int:
        """The largest difference in LSB."""
        return max((lsb for lsb, count in self.histogram.items() if count), default=0)


@dataclass(frozen=True)
class OutputCheck:
    """One graph output, package against simulation, end to end: largest differences and argmax agreement."""

    name: str
    max_abs: float
    max_rel: float
    argmax_agreement: float | None


@dataclass(frozen=True)
class Verification:
    """The three comparisons: package against reference (`package`), reference against simulation, operator by operator
    fed the simulation's own inputs (`local`), and end to end (`tensors`, `outputs`).
    """

    samples: int
    simulation: str
    package: tuple[TensorCheck, ...]
    local: tuple[TensorCheck, ...]
    tensors: tuple[TensorCheck, ...]
    outputs: tuple[OutputCheck, ...]
    passed: bool
    first_bad: str | None = None


@dataclass(frozen=True)
class Port:
    """A graph input or output: element type as numpy names it, symbolic dimensions as strings, params if quantized."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    params: QuantParams | None = None


@dataclass(frozen=True)
class TensorRecord:
    """A line of quantization.json: a tensor's name in the source and in the package, its role and its parameters."""

    source: str | None
    name: str
    role: str  # "input", "output", "activation", "weight", "bias", "accumulator"
    params: QuantParams


@dataclass(frozen=True)
class CompileResult:
    """Everything a compile found. `package` is None only where nothing was written (dry runs)."""

    package: Path | None
    source: Path
    source_bytes: int
    package_bytes: int
    dialect: str
    evidence: str
    target: str
    profile: str
    source_ops: Mapping[str, int]
    package_ops: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    coverage: Coverage
    islands: tuple[Island, ...]
    filled: tuple[FilledRange, ...]
    tensors: tuple[TensorRecord, ...]
    diagnostics: tuple[Diagnostic, ...]
    verification: Verification | None
    explanation: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    options: Mapping[str, Json] = field(default_factory=dict[str, "Json"])
    """What was asked for, by the parameter names of `compile_model`; files by their bare names, `output` left out."""


@dataclass(frozen=True)
class InspectedOp:
    """A node of the source model and what would become of it.

    `kind` is "integer", "float" (then `reason` says why, and `tensor` of which tensor it speaks) or "moved" (data
    movement, shape arithmetic, quantization itself). `parameters` counts the elements of its weights, `note` says more
    ("per channel, uint8 x int8").
    """

    node: str
    op_type: str
    kind: str
    reason: str = ""
    macs: int = 0
    parameters: int = 0
    note: str = ""
    tensor: str = ""


@dataclass(frozen=True)
class MissingRange:
    """A tensor that would have to be quantized for its readers to run in integers, but has no range."""

    tensor: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What a compile would do with a model, found without doing it. `dump` is the stable text of its graph."""

    source: Path
    source_bytes: int
    dialect: str
    evidence: str
    target: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: tuple[InspectedOp, ...]
    coverage: Coverage
    missing: tuple[MissingRange, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    dump: str = ""
