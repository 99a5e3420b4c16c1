"""The likely cause of a tensor that differs: all hypotheses are tried, the one that explains most is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from qatc.compiler.arithmetic import Profile
from qatc.compiler.compare.faults import guesses
from qatc.compiler.compare.forms import Guess, Score, hidden_forms, number_forms, place_forms, score, unwritten
from qatc.compiler.compare.interpret import Dumped, Place
from qatc.compiler.compare.result import Cause
from qatc.compiler.compare.setting import Setting, contained
from qatc.compiler.diagnostics import CompileError, printable
from qatc.compiler.integer import IntegerGraph, Op
from qatc.compiler.quant import Array
from qatc.compiler.reference import OnnxEvaluator, execute_op

_CLOSE: Final = 2  # LSB that another rounding may make of a difference
_EXPLAINED: Final = 0.75  # of the differing elements, or it is no explanation
_SAME: Final = 0.99  # equal elements of what is the same in another form
_LONGEST: Final = 8  # operators between dumped tensors that are looked at


@dataclass(frozen=True)
class Evidence:
    """A tensor of the dump, `base` what it should be (given the dump's own inputs), in the graph's axes."""

    dumped: Dumped
    base: Array
    place: Place


@dataclass(frozen=True)
class Segment:
    """The operators that make a tensor of what the dump has: in execution order, the last one makes the tensor. An
    input of the graph has none.

    `values` hold what each of them reads and made; `name` is the tensor.
    """

    graph: IntegerGraph
    name: str
    ops: Sequence[Op]
    values: Mapping[str, Array]
    profile: Profile
    evaluate: OnnxEvaluator


def form_of(evidence: Evidence) -> tuple[Cause, Guess] | None:
    """The cause where the tensor is right but held in another form, and what the dump would then hold."""
    best = _best(_forms(evidence), evidence)
    return None if best is None or best[1].equal < _SAME else (_cause(*best), best[0])


def find_cause(evidence: Evidence, segment: Segment) -> Cause | None:
    """The likely cause of a local error, or None where nothing explains it."""
    if not segment.ops:  # an input: nothing makes it
        form = _best(_forms(evidence), evidence)
        return _another(evidence, segment) if form is None else _cause(*form)
    best: tuple[Guess, Score, str | None] | None = None
    for op in reversed(segment.ops[-_LONGEST:]):
        own = op.output == segment.name
        candidates = _faults(evidence, segment, op)
        if own:  # whatever lies everywhere may be made by many a fault, too
            candidates = chain(_unwritten(evidence), candidates, _forms(evidence))
        found = _best(candidates, evidence)
        if found is not None and (best is None or found[1].equal > best[1].equal):
            best = (*found, None if own else printable(op.source or op.name))
        if best is not None and best[1].equal == 1:
            break
    return _another(evidence, segment) if best is None else _cause(*best)


def _another(evidence: Evidence, segment: Segment) -> Cause | None:
    """Another tensor that the dump holds instead."""
    value, stored = evidence.dumped.value, evidence.dumped.stored.reshape(-1)
    if stored.size < 2 or (stored == stored[0]).all():
        return None
    for name, other in segment.values.items():
        if name != segment.name and other.size == stored.size:
            found = value if value.shape == other.shape else stored.reshape(other.shape)
            if np.array_equal(found, other):
                read = bool(segment.ops) and name in segment.ops[-1].inputs
                why = "nothing was done to it" if read else "that was written over it, or it is dumped from there"
                text = f"it holds the tensor {name}: {why}"
                return Cause("memory", printable(text), 1.0)
    return None


def _cause(guess: Guess, scored: Score, operator: str | None = None) -> Cause:
    return Cause(guess.kind, printable(guess.detail), scored.explained, operator)


def _best(candidates: Iterator[Guess], evidence: Evidence) -> tuple[Guess, Score] | None:
    """The guess that equals the dump in most elements; the first of equals, and none that explains too little."""
    before = _equal(evidence)
    best: tuple[Guess, Score] | None = None
    for guess in candidates:
        found, base = _comparable(guess, evidence)
        if found is None:
            continue
        scored = score(guess.value, base, found)
        if scored.explained < _EXPLAINED or scored.equal <= before:
            continue
        if best is None or scored.equal > best[1].equal:
            best = (guess, scored)
        if scored.equal == 1:
            break
    return best


def _equal(evidence: Evidence) -> float:
    value, base = evidence.dumped.value, evidence.base
    return float((value == base).mean()) if value.shape == base.shape and value.size else 0.0


def _comparable(guess: Guess, evidence: Evidence) -> tuple[Array | None, Array]:
    """The dump in the shape of a guess and the base in that shape; None where they cannot be compared."""
    dumped, base = evidence.dumped, evidence.base
    if guess.value.shape == dumped.value.shape == base.shape:
        return dumped.value, base
    if guess.value.shape == dumped.stored.shape:  # of another shape than the files': nothing is in its place
        return dumped.stored, np.full_like(dumped.stored, np.iinfo(np.int64).min) if base.dtype.kind in "iu" else (
            np.full(dumped.stored.shape, np.nan)
        )
    return None, base


def _forms(evidence: Evidence) -> Iterator[Guess]:
    dumped, base, params = evidence.dumped, evidence.base, evidence.place.params
    yield from _unwritten(evidence)
    if params is not None and dumped.value.shape == base.shape:
        yield from number_forms(base, dumped.value, params)
    yield from place_forms(base, dumped.stored, evidence.place)


def _unwritten(evidence: Evidence) -> Iterator[Guess]:
    return unwritten(evidence.base, evidence.dumped.stored, evidence.place)


def _faults(evidence: Evidence, segment: Segment, op: Op) -> Iterator[Guess]:
    """What the tensor would be if `op` were wrong in some way."""
    last = op.output == segment.name
    found = evidence.dumped.value if last and evidence.dumped.value.shape == evidence.base.shape else None
    base = segment.values[op.output] if not last else evidence.base
    base = base.astype(np.int64) if base.dtype.kind in "iu" else base
    setting = Setting(segment.graph, op, segment.values, segment.profile, segment.evaluate, base)
    made = guesses(setting, found, close=not last or _is_close(evidence))  # what follows may make more of one LSB
    if not last:
        params = segment.graph.tensors[op.output].params
        axes = tuple(range(base.ndim))
        made = chain(made, hidden_forms(base, params, Place(axes, params, segment.values[op.output].dtype)))
    for guess in made:
        if last:
            yield guess
            continue
        passed = _passed_on(segment, op, guess)
        if passed is not None:
            yield Guess(guess.kind, guess.detail, passed)


def _is_close(evidence: Evidence) -> bool:
    value, base = evidence.dumped.value, evidence.base
    if value.shape != base.shape or not value.size:
        return False
    if base.dtype.kind not in "iu":
        return True  # a float behind the rounding: one LSB of it may be anything
    return int(np.abs(value.astype(np.int64) - base).max()) <= _CLOSE


def _passed_on(segment: Segment, op: Op, guess: Guess) -> Array | None:
    """What the later operators of the segment make of a guess about an earlier one."""
    graph = segment.graph
    dtype = np.dtype(graph.tensors[op.output].dtype)
    values = {**segment.values, op.output: contained(guess.value, dtype)}
    start = list(segment.ops).index(op) + 1
    try:
        for later in segment.ops[start:]:
            results = execute_op(graph, later, values, segment.profile, segment.evaluate)
            values.update({n: v for n, v in zip(later.outputs, results, strict=True) if n})
    except (ValueError, CompileError):  # what the guess makes cannot be read on: then it is not the cause
        return None
    result = values[segment.name]
    return result.astype(np.int64) if result.dtype.kind in "iu" else result
