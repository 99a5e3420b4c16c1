"""Where the largest of exact results lies: what is rounded in front of pooling, and judged behind it.

Rounding is monotone, so the largest of a window's integers is the rounding of the window's largest value. The float
error of a maximum is no larger than that of the worst of its operands.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qatc.compiler.integer import IntegerGraph, Op, Pool
from qatc.compiler.quant import Array
from qatc.compiler.verify.boundary import Exact, ExactSign, exact_at, read_positions


def exact_maxima(graph: IntegerGraph, pool: Pool, maker: Op, values: Mapping[str, Array], where: Array) -> Exact | None:
    """The exact results of `pool`, as if `maker` had not rounded what it reads; None where `maker` does not round.

    Args:
        graph: the operators' graph.
        pool: pooling for the largest.
        maker: what makes its input.
        values: what both read and make, constants included.
        where: flat indices into the result of `pool`, [E].
    """
    shape = values[pool.inputs[0]].shape
    pool = pool.over(shape[2:])
    n, c, *rest = np.unravel_index(where, values[pool.output].shape)
    positions = read_positions(pool, pool.kernel, rest or [np.zeros_like(n)] * len(pool.kernel))
    best: Exact | None = None
    for taps in itertools.product(*map(range, pool.kernel)):
        at = [position[:, tap] for position, tap in zip(positions, taps, strict=True)]
        inside = np.all([(a >= 0) & (a < size) for a, size in zip(at, shape[2:], strict=True)], axis=0)
        clipped = [np.clip(a, 0, size - 1) for a, size in zip(at, shape[2:], strict=True)]
        found = exact_at(graph, maker, values, np.ravel_multi_index((n, c, *clipped), shape))
        if found is None:
            return None
        found = replace(found, value=np.where(inside, found.value, -np.inf), error=np.where(inside, found.error, 0.0))
        best = found if best is None else _larger(best, found)
    return best


def _larger(a: Exact, b: Exact) -> Exact:
    """Element by element; the bias moves all of a channel alike."""
    both = replace(a, value=np.maximum(a.value, b.value), error=np.maximum(a.error, b.error))
    if isinstance(both, ExactSign) and isinstance(b, ExactSign):
        return replace(both, size=np.maximum(both.size, b.size))
    return both
