"""What the verification demands; `docs/verification.md` says why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits; the defaults are what the design promises, `--tolerance NAME=VALUE` changes one.

    Attributes:
        max_lsb: the largest difference of one operator from the simulation, fed the same inputs.
        equal_share: the share of a convolution's or matrix product's elements that must be equal to the simulation's.
        float_tolerance: the largest difference of a float island's result, relative to its largest magnitude.
        output_lsb: the largest difference of an output of the package from the simulation, end to end; None: any.
        agreement: the smallest share of samples whose arg-max agrees, end to end; None: any.
    """

    max_lsb: float = 1
    equal_share: float = 0.999
    float_tolerance: float = 1e-4
    output_lsb: float | None = None
    agreement: float | None = None
