"""Verification: simulation, reference and package, tensor by tensor, in LSB.

    package vs reference     each operator fed the package's own inputs: equal bit for bit (verify/deployed.py);
                             optimized by ONNX Runtime, its outputs do not change (verify/optimized.py)
    reference vs simulation  each operator fed the simulation's own inputs: at most one LSB, and that only where the
                             exact value lies within float error of a rounding boundary (verify/local.py, boundary.py)
    package vs simulation    end to end: histograms, SQNR, arg-max agreement (verify/proof.py)

`docs/verification.md` derives the bounds and lists what ONNX Runtime does not compute exactly.
"""

from qatc.compiler.verify.limits import Limits
from qatc.compiler.verify.proof import VerificationError, check, verify

__all__ = ["Limits", "VerificationError", "check", "verify"]
