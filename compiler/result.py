"""What a compile tells: plain frozen data, filled by the driver, read by the report, the command line and callers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from qatc.compiler.diagnostics import Diagnostic, has_errors
from qatc.compiler.quant import Array, QuantParams

Progress: TypeAlias = Callable[[str, float], None]  # called with what is done, and how much of it
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
    `sqnr_db` is the signal to quantization-noise ratio of the comparison (inf when equal).
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
    def rounded(self) -> int:
        """How many elements are floats that are not equal, but within tolerance: they have no LSB to count in."""
        return self.elements - sum(self.histogram.values())

    @property
    def max_lsb(self) -> int:
        """The largest difference in LSB."""
        return max((lsb for lsb, count in self.histogram.items() if count), default=0)


@dataclass(frozen=True)
class OutputCheck:
    """One graph output, package against simulation, end to end: largest differences and argmax agreement.

    `chosen_by` names the operator (TopK, NonMaxSuppression, ...) that chooses what an output holds which is not equal:
    another choice counts as a difference. Where it is another number of elements, the difference is infinite.
    """

    name: str
    max_abs: float
    max_rel: float
    argmax_agreement: float | None
    chosen_by: str = ""


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
    why: str = ""  # what an output breaks, where no tensor does


@dataclass(frozen=True)
class Port:
    """A graph input or output: element type as numpy names it, symbolic dimensions as strings, params if quantized."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    params: QuantParams | None = None

    def rounded(self, value: Array) -> Array:
        """A sample as the deployed graph reads it: rounded onto the grid of an integer input."""
        if self.params is not None and self.dtype == self.params.container.name and value.dtype.kind == "f":
            return self.params.quantize(value)
        return value


@dataclass(frozen=True)
class TensorRecord:
    """A line of quantization.json: a tensor's name in the source and in the package, its role and its parameters."""

    source: str | None
    name: str
    role: str  # "input", "output", "activation", "weight", "bias", "accumulator"
    params: QuantParams


@dataclass(frozen=True)
class ProfileDifference:
    """How an arithmetic profile rounds the samples, against `exact`, each operator fed what `exact` computes.

    `share` (0..1) of the `elements` differs, by up to `max_lsb`, in `operators` runs of operators; `worst` is the
    tensor that differs most, in `worst_share` of its elements. `reason` says why there are no figures, if so.
    """

    profile: str
    elements: int
    share: float
    max_lsb: int
    operators: int
    worst: str = ""
    worst_share: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class EvaluationRun:
    """One form of the network in an evaluation: "float", "simulation", "reference" or "package"; what it is in a line;
    `seconds` it took.
    """

    name: str
    description: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Score:
    """One metric of one output, for each run by name; `output` is "" where a metric takes them all.

    `against` is "labels", "targets" (both of the data set) or the run that the others are compared with, "" for metrics
    that take all outputs; `better` is "higher" or "lower", `unit` "share", "dB" or "". Values may be NaN or infinite.
    """

    metric: str
    output: str
    against: str
    better: str
    unit: str
    values: Mapping[str, float]

    def loss(self, run: str, of: str) -> float:
        """How much worse `run` scores than `of`: positive where it does, NaN where one of them has no score."""
        ours, theirs = self.values.get(run, float("nan")), self.values.get(of, float("nan"))
        if ours == theirs:
            return 0.0
        return theirs - ours if self.better == "higher" else ours - theirs


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `package` and `data` are paths, `loader` is what read the data, `samples` their number.

    `absent` says of each run that did not take part why; `diagnostics` holds breaches of what was required.
    """

    package: Path
    data: Path
    loader: str
    samples: int
    runs: tuple[EvaluationRun, ...]
    scores: tuple[Score, ...]
    absent: tuple[tuple[str, str], ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    reported: bool = False
    """Whether it was written into the package's report."""

    @property
    def passed(self) -> bool:
        """Whether the package scores what was required."""
        return not has_errors(self.diagnostics)


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
    profiles: tuple[ProfileDifference, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    view: GraphView | None = None
    """The integer graph, for drawing."""
    options: Mapping[str, Json] = field(default_factory=dict[str, "Json"])
    """What was asked for, by the parameter names of `compile_model`; files by their bare names, `output` left out."""


@dataclass(frozen=True)
class SumBounds:
    """How large the sums of a convolution or matrix product can become, whatever the input.

    `largest` is the largest magnitude of an accumulator, `overflowing` of the `channels` may leave 32 bits. On
    processors without VNNI, where neighboring unsigned-by-signed products are added in 16 bits, `pairs` of neighbors in
    `saturating` channels may saturate; `largest_pair` is the largest magnitude of such a sum.
    """

    channels: int
    largest: int
    overflowing: int = 0
    largest_pair: int = 0
    pairs: int = 0
    saturating: int = 0


@dataclass(frozen=True)
class WeightFacts:
    """What the integers of a weight show: `bits` are those of its values without their common factor.

    Under one scale for all `channels`, `weak` ones use less than an eighth of the largest channel's range; the weights
    of `dead` ones are all zero.
    """

    channels: int
    bits: int
    weak: int = 0
    dead: int = 0


@dataclass(frozen=True)
class InspectedOp:
    """A node of the source model and what would become of it.

    `kind` is "integer", "float" (then `reason` says why, and `tensor` of which tensor it speaks) or "moved" (data
    movement, shape arithmetic, quantization itself). `parameters` counts the elements of its weights,
    `activation_bytes` the size of its results for one sample, `note` says more ("per channel, uint8 x int8").
    """

    node: str
    op_type: str
    kind: str
    reason: str = ""
    macs: int = 0
    parameters: int = 0
    note: str = ""
    tensor: str = ""
    activation_bytes: int = 0
    weights: WeightFacts | None = None
    sums: SumBounds | None = None


@dataclass(frozen=True)
class MissingRange:
    """A tensor that would have to be quantized for its readers to run in integers, but has no range.

    `maker` is the operator type that makes it, "" for an input of the graph.
    """

    tensor: str
    reason: str
    maker: str = ""


@dataclass(frozen=True)
class Disagreement:
    """A tensor that is rounded onto several grids, one after the other, or read rounded and unrounded; `op_type` of the
    node that makes the second one.
    """

    tensor: str
    op_type: str
    reason: str
    grids: tuple[QuantParams, ...]


@dataclass(frozen=True)
class ViewNode:
    """A box of a drawing. `kind` is "input", "output", "integer", "moved" (data movement, quantization), "island" (in
    float since something is not quantized) or "fallback" (in float since there is no integer form); `detail` says more.
    """

    name: str
    op_type: str
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class GraphView:
    """A graph for drawing: boxes in execution order, and edges as pairs of their indices, each from lower to higher."""

    nodes: tuple[ViewNode, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Inspection:
    """What a compile would do with a model, found without doing it.

    `peak_bytes` is the memory for activations of one sample, run operator by operator and freed as soon as possible.
    `advice` says what to change in training, `dump` is the stable text of the graph, `view` its drawing.
    """

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
    disagreeing: tuple[Disagreement, ...] = ()
    peak_bytes: int = 0
    advice: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    dump: str = ""
    view: GraphView | None = None
