"""Counting differences of one tensor over all samples, in LSB of its own grid."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.result import TensorCheck


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies in dB: infinite without noise, minus infinity where there is nothing beside it."""
    if not noise:
        return math.inf
    ratio = signal / noise  # 0 where the noise is infinite
    return 10 * math.log10(ratio) if ratio else -math.inf


@dataclass
class Tally:
    """The running comparison of one tensor; `tensor` as the simulation or, failing that, the integer graph calls it."""

    tensor: str
    op: str
    kind: str
    elements: int = 0
    excused: int = 0
    rerounded: int = 0
    unsure: float = 0.0
    histogram: Counter[int] = field(default_factory=Counter[int])
    signal: float = 0.0
    noise: float = 0.0
    problems: list[str] = field(default_factory=list[str])
    remarks: list[str] = field(default_factory=list[str])

    def integers(self, found: Array, expected: Array, params: QuantParams) -> Array:
        """Count a pair of integer tensors; the flat indices of the elements that differ."""
        if found.shape != expected.shape:
            self.problem(f"the shape is {list(found.shape)}, not {list(expected.shape)}")
            return np.zeros(0, np.intp)
        self.elements += found.size
        if params.is_8bit and found.dtype == expected.dtype:
            where = np.flatnonzero(found.view(np.uint8).reshape(-1) != expected.view(np.uint8).reshape(-1))
        else:
            where = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
        zero = params.zero_array(expected.ndim)
        centered = expected.astype(np.float32) - zero
        self.signal += _energy(centered)
        self.histogram[0] += found.size - where.size
        if where.size:
            difference = found.reshape(-1)[where].astype(np.int64) - expected.reshape(-1)[where]
            self.noise += _energy(difference)
            sizes, counts = np.unique(np.abs(difference), return_counts=True)
            self.histogram.update(dict(zip(sizes.tolist(), counts.tolist(), strict=True)))
        return where

    def floats(self, found: Array, expected: Array, tolerance: float) -> None:
        """Count a pair of tensors that are not quantized; `tolerance` is relative to the largest magnitude."""
        if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
            self.problem(f"it is {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}")
            return
        self.elements += found.size
        same = (found == expected) | ((found != found) & (expected != expected))
        equal = int(np.count_nonzero(same))
        self.histogram[0] += equal
        if found.dtype.kind != "f":
            self.signal += 1.0
            if equal != found.size:
                self.problem(f"{found.size - equal} of {found.size} values differ")
            return
        with np.errstate(invalid="ignore"):  # equal infinities
            difference = np.where(same, 0.0, found.astype(np.float64) - expected)
        reference = expected.astype(np.float64)
        largest = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
        self.signal += _energy(reference) if np.isfinite(largest) else 0.0
        self.noise += _energy(difference)
        worst = float(np.abs(difference).max(initial=0.0))
        if not worst <= tolerance * largest:
            self.problem(f"a value is {worst:.3g} away, where {largest:.3g} is the largest")

    def absorb(self, other: Tally) -> None:
        """Add what another tally of the same tensor counted."""
        self.elements += other.elements
        self.excused += other.excused
        self.histogram.update(other.histogram)
        self.signal += other.signal
        self.noise += other.noise
        for text in other.problems:
            self.problem(text)

    def problem(self, text: str) -> None:
        """The check fails, and why."""
        if text not in self.problems:
            self.problems.append(text)

    def remark(self, text: str) -> None:
        """Something to know that is no failure."""
        if text not in self.remarks:
            self.remarks.append(text)

    @property
    def different(self) -> int:
        """How many elements differ."""
        return self.elements - self.histogram[0]

    def check(self) -> TensorCheck:
        """The result."""
        return TensorCheck(
            self.tensor,
            self.op,
            self.kind,
            self.elements,
            dict(sorted((lsb, count) for lsb, count in self.histogram.items() if count or not lsb)),
            self.excused,
            decibels(self.signal, self.noise),
            not self.problems,
            "; ".join([*self.problems, *self.remarks]),
        )


def _energy(values: Array) -> float:
    """The sum of squares. Not by BLAS, whose threads wait for each other longer than this takes."""
    return float(np.square(values).sum(dtype=np.float64))


def position(flat: int, shape: tuple[int, ...]) -> list[int]:
    """Where an element is in a tensor, from its place in memory."""
    return [int(i) for i in np.unravel_index(flat, shape)]
