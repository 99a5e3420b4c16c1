"""Lowering: QuantGraph -> IntegerGraph."""

from qatc.compiler.lowering.lower import lower
from qatc.compiler.lowering.state import LoweringOptions

__all__ = ["LoweringOptions", "lower"]
