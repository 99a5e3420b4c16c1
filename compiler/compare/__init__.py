"""`qatc compare PACKAGE DUMP`: the first tensor of a device that differs from the package, and the likely cause.

package.py    opens a package: hashes, integer graph, samples
dump.py       lists what a device team handed in
match.py      which tensor each array is
interpret.py  from its bytes to a tensor
measure.py    equal share, LSB, SQNR, cosine
engine.py     expected, found, local: tensor by tensor
cause.py      tries hypotheses: forms.py (right, but in another form), faults.py and products.py (computed wrongly)
"""

from __future__ import annotations

from qatc.compiler.compare.engine import compare_package
from qatc.compiler.compare.result import CAUSES, Cause, Comparison, MissingTensor, TensorComparison

__all__ = ["CAUSES", "Cause", "Comparison", "MissingTensor", "TensorComparison", "compare_package"]
