"""Fingerprints of saturation: wrapped, missing, too early, in the accumulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qatc.compiler.compare.forms import Guess
from qatc.compiler.quant import Array, QuantParams, dtype_range


def saturated(wide: Array, base: Array, params: QuantParams, lo: int, hi: int, found: Array | None) -> Iterator[Guess]:
    """Guesses about the clamp at the end of an operator.

    Args:
        wide: the result before it is clamped, zero point included, int64.
        base: the result, clamped to [lo, hi].
        params: its grid.
        lo: the lower bound that should be.
        hi: the upper bound that should be.
        found: the dump, where there is one.
    """
    wide = np.where(np.clip(wide, lo, hi) == base, wide, base)  # another rounding of the same value is no evidence
    low, high = dtype_range(params.container.name)
    span = high - low + 1
    bits = 8 * params.container.itemsize
    if (lo, hi) != (low, high):  # before what wraps around: of values within 8 bits both are the same
        yield Guess("saturation", f"the clamp to [{lo}, {hi}] is missing", np.clip(wide, low, high))
    yield Guess(
        "saturation", f"the result wraps around to {bits} bits where it should saturate", (wide - low) % span + low
    )
    clipped = np.clip((wide - low) % span + low, lo, hi)
    yield Guess("saturation", f"the result wraps around to {bits} bits before it is clamped", clipped)
    zero = params.zero_point[0]
    if lo < zero <= hi:
        yield Guess(
            "saturation", f"there is a Relu that should not be: nothing is below {zero}", np.clip(wide, zero, hi)
        )
    for bottom, top in ((low + 1, high), (low // 2, high // 2)):
        if (bottom, top) != (lo, hi):
            yield Guess(
                "saturation", f"it is clamped to [{bottom}, {top}], not to [{lo}, {hi}]", np.clip(wide, bottom, top)
            )
    if found is None or not found.size:
        return
    bottom, top = int(found.min()), int(found.max())
    if bottom == top:  # one number everywhere is no clamp
        return
    if bottom > int(base.min()) or top < int(base.max()) or bottom < lo or top > hi:
        text = f"it is clamped to [{bottom}, {top}], not to [{lo}, {hi}]"
        yield Guess("saturation", text, np.clip(wide, bottom, top))
    difference = (found - base).reshape(-1)
    values, counts = np.unique(difference[difference != 0], return_counts=True)
    if values.size:
        shift = int(values[np.argmax(counts)])
        text = f"every value is {shift:+d}: the zero point {zero} was not used as it should"
        yield Guess("zero-point", text, np.clip(wide + shift, low, high))
        yield Guess("zero-point", text, np.clip(wide + shift, lo, hi))
