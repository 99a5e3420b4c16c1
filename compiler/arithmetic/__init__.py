"""Arithmetic profiles: how an accumulator becomes an output integer, to the last bit.

The meaning of every integer operator is exact real arithmetic (`integer.py`); a profile says how a target computes the
final `round`. `docs/arithmetic.md` holds the formulas and what was measured against the real implementations.

    onnx           float32 multiplier, half to even: ONNX Runtime on x86
    tflite         31-bit mantissa and shift, rounds twice: gemmlowp, TensorFlow Lite
    tflite-single  the same, rounds once, half up: TensorFlow Lite and CMSIS-NN built with single rounding
    cmsis-nn       as tflite, in int32 registers that wrap: CMSIS-NN
    tosa           31-bit mantissa and shift, one rounding, half up: TOSA apply_scale_32
    tosa-double    the same with its double rounding
    pow2           power-of-two scales, half up (constants half away from zero): shift-only accelerators
    exact          rational arithmetic, half to even: the yardstick
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qatc.compiler.arithmetic.base import OPS, Profile
from qatc.compiler.arithmetic.fixedpoint import CmsisNn, Tflite, TfliteSingle, Tosa, TosaDouble
from qatc.compiler.arithmetic.gemmlowp import quantize_multiplier
from qatc.compiler.arithmetic.ort import (
    Onnx,
    mirrored,
    ort_interpolation_step,
    ort_multipliers,
    ort_softmax_factor,
    ort_weight_scales,
)
from qatc.compiler.arithmetic.rational import Rational, round_ratio
from qatc.compiler.diagnostics import misused, printable, suggested

__all__ = [
    "OPS",
    "PROFILES",
    "Profile",
    "get_profile",
    "mirrored",
    "ort_interpolation_step",
    "ort_multipliers",
    "ort_softmax_factor",
    "ort_weight_scales",
    "quantize_multiplier",
    "round_ratio",
]

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Onnx(),
            Tflite(),
            TfliteSingle(),
            CmsisNn(),
            Tosa(),
            TosaDouble(),
            Rational("pow2", "power-of-two scales, shift with round half up", half_up=True, power_of_two=True),
            Rational("exact", "rational arithmetic, round half to even"),
        )
    }
)


def get_profile(name: str) -> Profile:
    """The profile called `name`.

    Raises:
        CompileError: QAT007 with exit code 2, and a suggestion, when there is none.
    """
    if name in PROFILES:
        return PROFILES[name]
    hint = suggested(name.lower(), PROFILES, f"known profiles are {', '.join(PROFILES)}")
    raise misused(f"unknown arithmetic profile {printable(name)!r}", hint)
