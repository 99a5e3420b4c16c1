"""Reference against simulation, operator by operator, each fed the simulation's own inputs.

A tensor of the integer graph that the simulation also rounds (`Simulation.locate`) is *anchored*: its integers are
read off the simulation's value, and its readers get those. Operators without a counterpart there (raw accumulators,
pure clamps, dequantized values) pass on what the reference computed, which is exact. An operator whose input was
rounded where the simulation does not round is counted but not judged: the two cannot agree to the LSB.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.integer import (
    Clamped,
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Tensor,
)
from qatc.compiler.quant import FUNCTION_ERROR, SMALLEST, Array, QuantParams, dtype_range
from qatc.compiler.reference import OnnxEvaluator, evaluate_onnx, execute_op
from qatc.compiler.simulation import Simulation
from qatc.compiler.verify.boundary import UNIT, Exact, exact_at, index_of, kernel_error, product_sums, sum_error
from qatc.compiler.verify.jumps import Jumps
from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.maxima import exact_maxima
from qatc.compiler.verify.tally import Tally, position

Feeds = Mapping[str, Array]
_MOST_EXACT: Final = 100_000  # differing elements of a tensor that are looked at together, until one is wrong
# How far, beyond float error, a fixed-point profile's result may be from half an LSB around the exact one: those round
# twice, or up.
_OWN_ROUNDING: Final = 0.5
# What a channel of zeros may have held, whose scale float32 does not hold (QAT201).
_NOTHING: Final = SMALLEST * 2.0**32
# Movement whose effect on indices numpy computes.
_INDEXABLE: Final = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass
class Sample:
    """What is known while the operators of one sample are walked."""

    feeds: Feeds
    values: dict[str, Array]
    anchored: set[str] = field(default_factory=set[str])


@dataclass(frozen=True)
class _Judged:
    """The operator whose rounding is judged by another's result: that one itself, or one whose result it only moves.

    Parameters travel through layout operators and pooling for the largest: the integer graph may round before them, the
    file behind. `moves` are those between, last first, `pool` the pooling.
    """

    op: Op
    moves: tuple[Move, ...] = ()
    pool: Pool | None = None


@dataclass(frozen=True)
class _Place:
    """Differing elements of tensor `name` (in the simulation `source`): flat indices `where` of the operator's result.

    `moved` has their indices in `name` itself, where the operator's result was moved around since.
    """

    name: str
    where: Array
    source: str
    moved: Array | None = None


class LocalCheck:
    """The comparison over all samples."""

    def __init__(
        self,
        graph: IntegerGraph,
        profile: Profile,
        simulation: Simulation,
        limits: Limits,
        evaluate: OnnxEvaluator,
    ) -> None:
        self.graph, self.profile, self.simulation = graph, profile, simulation
        self.limits, self.evaluate = limits, evaluate
        self.tallies: dict[str, Tally] = {}
        self.producers = graph.producers()
        self.judged_at: dict[str, str] = {}  # what is judged behind moves or pooling -> where
        self.located = {
            t.name: place
            for op in graph.ops
            for t in (graph.tensors[o] for o in op.outputs if o)
            if (place := self._locate(op, t)) is not None
        }

    def _locate(self, op: Op, tensor: Tensor) -> str | None:
        """Where the simulation has what `op` makes; accumulators and plain dequantized values are exact as they are."""
        if tensor.dtype == "int32" and tensor.params is not None:
            return None
        if isinstance(op, Dequantize) and len(op.inputs) == 1 and self.graph.params(op.inputs[0]).dtype != "int32":
            return None
        source, *_ = self.graph.shifted.get(tensor.name) or self.graph.turned.get(tensor.name) or (tensor.source,)
        return self.simulation.locate(tensor if source == tensor.source else replace(tensor, source=source))

    def _seen(self, name: str, simulated: Array) -> Array:
        """What a tensor is in the simulation, which may have its axes in another order."""
        told = self.graph.turned.get(name)
        try:
            return simulated if told is None else told[1].of(simulated)
        except ValueError:  # other sizes: the comparison says so
            return simulated

    def places(self, op: Op) -> list[str]:
        """The simulation's tensors that `step` wants for `op`."""
        return [self.located[o] for o in op.outputs if o in self.located]

    def start(self, feeds: Feeds, inputs: Mapping[str, Array]) -> Sample:
        """Begin a sample: `feeds` are the simulation's inputs, `inputs` the integer graph's."""
        return Sample(feeds, {**self.graph.constants, **inputs}, {*self.graph.constants, *inputs})

    def step(self, op: Op, sample: Sample, simulated: Mapping[str, Array]) -> None:
        """Run `op` on what its inputs are in the simulation, compare, and pass the simulation's result on."""
        values = sample.values
        results = execute_op(self.graph, op, values, self.profile, self.evaluate)
        judged = self._judged(op, sample)
        if judged is not None and judged.op is not op:
            self.judged_at[judged.op.output] = op.output
        for name, computed in zip(op.outputs, results, strict=True):
            if not name:
                continue
            place = self.located.get(name)
            values[name] = computed
            if place is None:
                if judged is not None and judged.op is op and not self._rounds(op):
                    sample.anchored.add(name)
                continue
            values[name] = self._compare(op, name, place, sample, self._seen(name, simulated[place]), computed, judged)
            if judged is not None or self.graph.tensors[name].params is not None:
                sample.anchored.add(name)

    def _judged(self, op: Op, sample: Sample) -> _Judged | None:
        """What is judged by the results of `op`; None where what it is made of was rounded otherwise."""
        moves: list[Move] = []
        root = op
        while isinstance(root, Move) and root.op_type in _INDEXABLE and root.inputs[0] not in sample.anchored:
            maker = self.producers.get(root.inputs[0])
            if maker is None or any(n not in sample.anchored for n in root.inputs[1:] if n):
                return None
            moves.append(root)
            root = maker
        if not moves and isinstance(op, Pool) and op.mode == "max" and op.inputs[0] not in sample.anchored:
            maker = self.producers.get(op.inputs[0])
            found = _Judged(maker, pool=op) if isinstance(maker, Conv | Elementwise) else None
        else:
            found = None if moves and isinstance(root, Move) else _Judged(root, tuple(moves))
        return found if found is not None and all(n in sample.anchored for n in found.op.inputs if n) else None

    def _before_moves(self, judged: _Judged, name: str, sample: Sample) -> Array:
        """For each element of `name`, the flat index of the judged operator's element that it is."""
        shape, moves = sample.values[judged.op.output].shape, judged.moves
        indices = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        wanted = [*(m.inputs[0] for m in moves[-2::-1]), name]
        for move, output in zip(reversed(moves), wanted, strict=True):
            rest = [sample.values[n] if n else None for n in move.inputs[1:]]
            made = evaluate_onnx(move.op_type, "", self.graph.opset, [indices, *rest], move.attrs, len(move.outputs))
            indices = made[move.outputs.index(output)]
        return indices.reshape(-1)

    def _rounds(self, op: Op) -> bool:
        """Whether `op` rounds in a way that a simulation without a counterpart of its output does not."""
        if not isinstance(op, Clamped) or self.graph.params(op.output).dtype == "int32":
            return False
        if isinstance(op, Pool) and op.mode == "max":
            return False
        if isinstance(op, Rescale | Concat):
            out = self.graph.params(op.output)
            return any(not _same_steps(self.graph.params(n), out) for n in op.inputs)
        return True

    # -- one tensor -----------------------------------------------------------------------------------------------
    def _compare(
        self, op: Op, name: str, place: str, sample: Sample, simulated: Array, computed: Array, judged: _Judged | None
    ) -> Array:
        """Compare and return what readers get: the simulation's value, on the tensor's grid where it has one."""
        tensor = self.graph.tensors[name]
        tally = self.tallies.setdefault(name, Tally(place, op.title, "local"))
        if tensor.params is None:
            return computed if judged is None else self._compare_floats(op, name, tally, sample, computed, simulated)
        if simulated.shape != computed.shape or simulated.dtype.kind not in "fiu":
            tally.problem(
                f"the simulation has {simulated.dtype} {list(simulated.shape)}, the reference {list(computed.shape)}"
            )
            return computed
        if simulated.dtype.kind == "f":
            _, offset = self.graph.shifted.get(name, ("", 0.0))
            expected = on_grid(simulated - np.float32(offset) if offset else simulated, tensor.params, tally)
        else:
            expected = _retyped(simulated, computed.dtype, self.graph.lowered.get(name, 0))
        if expected is None:
            return computed
        where = tally.integers(computed, expected, tensor.params)
        if judged is None:
            tally.excused += where.size
            tally.remark("not judged: an input is rounded where the simulation does not round")
        elif where.size:
            self._judge(judged, _Place(name, where, place), sample, tally, computed, expected)
        return expected

    def _judge(
        self, judged: _Judged, place: _Place, sample: Sample, tally: Tally, computed: Array, expected: Array
    ) -> None:
        """Which of the differing elements are float error at a rounding boundary, and which are wrong."""
        where = place.where
        found, wanted = computed.reshape(-1)[where].astype(np.int64), expected.reshape(-1)[where].astype(np.int64)
        before = self._before_moves(judged, place.name, sample)[where] if judged.moves else where
        fine, exact, start = np.zeros(where.size, np.bool_), None, 0
        # a table's values are read off the simulation, all at once
        most = where.size if isinstance(judged.op, Lookup) else _MOST_EXACT
        for start in range(0, where.size, most):
            part = slice(start, start + most)
            exact = self._exact_of(judged, place, before[part], where[part], sample)
            fine[part] = self._are_fine(judged.op, place, exact, found[part], wanted[part], before[part], sample, tally)
            if not fine[part].all():
                break
        tally.excused += int(np.count_nonzero(fine))
        wrong = np.flatnonzero(~fine)
        if wrong.size:
            first = int(wrong[0])
            text = f"element {position(int(where[first]), computed.shape)} is {found[first]}, not {wanted[first]}"
            if exact is not None:
                value, error = exact.value[first - start], exact.error[first - start]
                text += f" (exactly {value:.6f}, float error at most {error:.2g})"
            tally.problem(text)

    def _exact_of(self, judged: _Judged, place: _Place, before: Array, where: Array, sample: Sample) -> Exact | None:
        """The exact results that some elements of a place are, `before` and behind moves or pooling."""
        if judged.pool is not None:
            return exact_maxima(self.graph, judged.pool, judged.op, sample.values, where)
        moved = where if judged.moves else None
        return self._exact(judged.op, replace(place, where=before, moved=moved), sample)

    def _are_fine(
        self,
        op: Op,
        place: _Place,
        exact: Exact | None,
        found: Array,
        wanted: Array,
        where: Array,
        sample: Sample,
        tally: Tally,
    ) -> Array:
        """Which results of `op` at flat indices `where` may differ so, `wanted` being what the simulation has."""
        if exact is None:
            if not isinstance(op, Lookup):
                return np.zeros(where.size, np.bool_)
            tally.remark("the simulation does not show the value before its rounding")
            return np.asarray(np.abs(found - wanted) <= self.limits.max_lsb)
        low, high = self._bounds(op)
        mine = exact.integers_may_give(found, low, high, self._slack(op))
        theirs = exact.float_may_give(wanted, low, high)
        fine = exact.are_near(found, wanted, self.limits.max_lsb) & theirs & mine
        if op.output in self.graph.doubts:
            elsewhere = self._on_other_side(op, where, sample) == wanted
            fine |= elsewhere & theirs & (self.limits.max_lsb > 0)
        if isinstance(op, Quantize) and not fine.all() and self.limits.max_lsb > 0:
            fine |= self._jumped(op, where, sample, wanted) & mine
        by_design = exact.are_by_design(wanted, low, high, self.graph.params(place.name).zero_point[0])
        tally.rerounded += int(np.count_nonzero(fine & by_design))
        tally.unsure += float(exact.unsure[fine & ~by_design].sum())
        return fine

    def _slack(self, op: Op) -> float:
        """How far from half an LSB around the exact result the profile's own rounding of `op` may be."""
        name = self.profile.name
        return 0.0 if name == "exact" else kernel_error(self.graph, op) if name == "onnx" else _OWN_ROUNDING

    def _bounds(self, op: Op) -> tuple[float, float]:
        """The clamp of an operator's results; that of a table is what its entries happen to be."""
        if isinstance(op, Lookup):
            params = self.graph.params(op.output)
            return params.qmin, params.qmax
        return (op.lo, op.hi) if isinstance(op, Clamped) else (-np.inf, np.inf)

    def _exact(self, op: Op, place: _Place, sample: Sample) -> Exact | None:
        if isinstance(op, Lookup):
            return self._unrounded(place, sample)
        if isinstance(op, Float | Move):
            return None
        exact = exact_at(self.graph, op, sample.values, place.where)
        if exact is not None and isinstance(op, Quantize):
            step = float(self.graph.params(op.output).scale[0])
            exact = Exact(exact.value, exact.error + self._float_error(op.inputs[0], sample, place.where) / step)
        return exact

    def _on_other_side(self, op: Op, where: Array, sample: Sample) -> Array:
        """A table's results at some places, had ties that it rounds on the way fallen to the other side."""
        codes = sample.values[op.inputs[0]].reshape(-1)[where].astype(np.int64)
        return self.graph.doubts[op.output][codes - dtype_range(self.graph.params(op.inputs[0]).dtype)[0]]

    def _jumped(self, op: Quantize, where: Array, sample: Sample, wanted: Array) -> Array:
        """Which results are as wanted, had roundings in the float island before `op` fallen to the other side."""
        name = op.inputs[0]
        mine, jumped = sample.values[name].reshape(-1)[where], np.zeros(where.size, np.bool_)
        for other in self._jumps(sample).other_sides(name):
            exact = exact_at(self.graph, op, {**sample.values, name: other}, where)
            if exact is not None:
                jumped |= (other.reshape(-1)[where] != mine) & exact.float_may_give(wanted, op.lo, op.hi)
        return jumped

    def _jumps(self, sample: Sample) -> Jumps:
        return Jumps(
            graph=self.graph,
            producers=self.producers,
            values=sample.values,
            shown=ChainMap(self.located, dict.fromkeys(self.graph.inputs, "")),
            execute=lambda op, values: execute_op(self.graph, op, values, self.profile, self.evaluate),
            error_of=lambda name, where: self._float_error(name, sample, where),
            tolerance=self.limits.float_tolerance,
        )

    def _unrounded(self, place: _Place, sample: Sample) -> Exact | None:
        """A table's exact value is the function's: read off the simulation before its rounding."""
        source = self.simulation.unrounded(place.source)
        if source is None:
            return None
        found = self.simulation.run(sample.feeds, [source.tensor, place.source])
        real, rounded = (self._seen(place.name, found[n]).reshape(-1) for n in (source.tensor, place.source))
        params = self.graph.params(place.name)
        if not real.size == rounded.size == sample.values[place.name].size:
            return None
        steps = real[place.where if place.moved is None else place.moved].astype(np.float64)
        if source.scaled:  # the file may add its zero point before it rounds
            steps = steps - np.rint(np.median(np.rint(real) - rounded.astype(np.float64) / params.scale[0]))
        else:
            steps = steps / params.scale[0]
        largest = np.maximum(np.abs(steps), 1.0 / params.scale[0])  # the terms that cancel in 1 + tanh, x - mean, ...
        return Exact(steps + params.zero_point[0], FUNCTION_ERROR * largest)

    def _float_error(self, name: str, sample: Sample, where: Array) -> Array:
        """How far the simulation's float32 may be from a float value that the reference computed."""
        if name in self.located or name in self.graph.inputs or not where.size:
            return np.zeros(where.size)
        maker = self.producers.get(name)
        if isinstance(maker, Dequantize):
            error = self._accumulator_error(maker, sample, where)
            return np.zeros(where.size) if error is None else error
        largest = float(np.abs(sample.values[name]).max(initial=0.0))
        return np.full(where.size, largest * self.limits.float_tolerance)

    def _accumulator_error(self, maker: Dequantize, sample: Sample, where: Array) -> Array | None:
        """The float error of real numbers that stand for a product's accumulators; None for others."""
        values, product = sample.values, self.producers.get(maker.inputs[0])
        if not isinstance(product, Conv | MatMul):
            return None
        index = index_of(where, values[maker.inputs[0]].shape)
        _, magnitude = product_sums(self.graph, product, values, index)
        params = self.graph.params(maker.inputs[0])
        scales = np.asarray(params.scale)
        unit = scales[index[params.axis]] if params.axis is not None else scales[0]
        error: Array = magnitude * unit * sum_error(int(values[product.inputs[1]].size // scales.size))
        error[magnitude == 0] = _NOTHING
        if len(maker.inputs) > 1:
            error = error + float(np.abs(values[maker.inputs[1]]).max(initial=0.0)) * 4 * UNIT
        return error

    def _compare_floats(
        self, op: Op, name: str, tally: Tally, sample: Sample, computed: Array, simulated: Array
    ) -> Array:
        """Float values: equal up to float error where they come from an accumulator, else up to a stated tolerance.

        A tensor in the middle that does not agree may only share its name with the simulation's (a batch norm folded
        into it): readers then get what the reference computed, and what they round or put out is judged.
        """
        attempt = Tally(tally.tensor, tally.op, tally.kind)
        attempt.floats(computed, simulated, self.limits.float_tolerance)
        if attempt.problems and computed.shape == simulated.shape:
            attempt = self._floats_but_for_jumps(name, tally, sample, computed, simulated) or attempt
        if isinstance(op, Dequantize) and not attempt.problems and computed.size:
            difference = np.abs(computed.astype(np.float64) - simulated).reshape(-1)
            worst = np.argpartition(difference, -min(64, difference.size))[-64:]
            allowed = self._accumulator_error(op, sample, worst)
            if allowed is not None and (wrong := difference[worst] > allowed).any():
                attempt.problem(f"a value is {difference[worst][wrong].max():.3g} away, beyond float error")
        if attempt.problems and name not in self.graph.outputs:
            del self.tallies[name]
            self.located.pop(name)
            return computed
        tally.absorb(attempt)
        return simulated.astype(computed.dtype, copy=False)

    def _floats_but_for_jumps(
        self, name: str, tally: Tally, sample: Sample, computed: Array, simulated: Array
    ) -> Tally | None:
        """The comparison of float values that agree but for roundings which fell to the other side; None for others."""
        chosen = computed
        for other in self._jumps(sample).other_sides(name) if self.limits.max_lsb > 0 else ():
            with np.errstate(invalid="ignore"):
                closer = np.abs(other - simulated) < np.abs(chosen - simulated)
            chosen = np.where(closer, other, chosen)
        attempt = Tally(tally.tensor, tally.op, tally.kind)
        attempt.floats(chosen, simulated, self.limits.float_tolerance)
        if attempt.problems:
            return None
        attempt.excused = int(np.count_nonzero(chosen != computed))
        return attempt

    def finish(self) -> list[Tally]:
        """The tallies in execution order, the demanded share of equal elements checked."""
        for op in self.graph.ops:
            place = self.judged_at.get(op.output, op.output)
            tally = self.tallies.get(place)
            if tally is None or not isinstance(op, Conv | MatMul):
                continue
            self._check_bias(op, tally)
            if place != op.output:
                continue
            different = tally.different - tally.rerounded
            # as many as float32 rounds otherwise by itself, where what it adds up is far larger than a step
            share = 1 - self.limits.equal_share + tally.unsure / max(different, 1) * (self.limits.equal_share < 1)
            # fewer than four elements are no statistic: a classifier has ten outputs
            if different > max(3, share * tally.elements) and not tally.remarks:
                tally.problem(f"{different:,} of {tally.elements:,} elements differ")
        order = [o for op in self.graph.ops for o in op.outputs]
        return [self.tallies[o] for o in order if o in self.tallies]

    def _check_bias(self, op: Conv | MatMul, tally: Tally) -> None:
        """The stored bias must be the integers nearest to the real one, from which the exact results are computed."""
        real = self.graph.real_biases.get(op.output)
        if real is not None and len(op.inputs) > 2:
            distance = float(np.abs(self.graph.constants[op.inputs[2]] - real).max(initial=0.0))
            if not distance <= 0.5 + float(np.abs(real).max(initial=0.0)) * 2.0**-50:
                tally.problem(f"the stored bias is {distance:.3g} units off")


def on_grid(real: Array, params: QuantParams, tally: Tally) -> Array | None:
    """The integers that a fake-quantized value stands for; None, and a problem in `tally`, where it is off its grid."""
    if np.isnan(real).any():
        tally.problem("the simulation computes NaN")
        return None
    integers = params.quantize(real)
    distance = np.abs(params.dequantize(integers) - real)
    # scale * (q - zero) takes at most four float operations, however the exporter writes it
    largest = max(abs(params.qmin - z) for z in params.zero_point), max(abs(params.qmax - z) for z in params.zero_point)
    allowed = 4 * UNIT * max(largest) * params.scale_array(real.ndim) * 2
    if (distance > allowed).any():
        worst = float((distance / params.scale_array(real.ndim)).max())
        tally.problem(f"QAT209: the simulation's value is {worst:.3g} LSB off the tensor's grid")
        return None
    return integers


def _retyped(integers: Array, dtype: np.dtype[Any], lowered: int) -> Array:
    """What a file of integer operators holds, in the graph's type: signed and unsigned differ by half their range.

    Those that the graph stores from 0 on are smaller by `lowered`.
    """
    shift = int(np.iinfo(dtype).min) - int(np.iinfo(integers.dtype).min) - lowered
    return (integers.astype(np.int32) + shift).astype(dtype) if shift else integers.astype(dtype, copy=False)


def _same_steps(a: QuantParams, b: QuantParams) -> bool:
    return a.scale == b.scale and a.axis == b.axis
