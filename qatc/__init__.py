"""Compile quantization-aware-trained ONNX models into verified INT8 deployment packages.

The public names load on first use, so that `import qatc` stays cheap:

    from qatc import compile_model

    result = compile_model("model.onnx", dialect="pytorch", output="model.qatc")
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from qatc._version import __version__ as __version__

if TYPE_CHECKING:
    from qatc.compiler.compare import Comparison as Comparison
    from qatc.compiler.compare import compare_package as compare_package
    from qatc.compiler.diagnostics import CompileError as CompileError
    from qatc.compiler.diagnostics import Diagnostic as Diagnostic
    from qatc.compiler.diagnostics import Severity as Severity
    from qatc.compiler.driver.compile import compile_model as compile_model
    from qatc.compiler.driver.compile import inspect_model as inspect_model
    from qatc.compiler.evaluation import evaluate_package as evaluate_package
    from qatc.compiler.result import CompileResult as CompileResult
    from qatc.compiler.result import Evaluation as Evaluation
    from qatc.compiler.result import Inspection as Inspection
    from qatc.compiler.verify.package import PackageCheck as PackageCheck
    from qatc.compiler.verify.package import verify_package as verify_package

_ROOT = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib takes longer to load than all of this
if not os.path.isdir(os.path.join(_ROOT, "compiler")):  # noqa: PTH112, PTH118
    __path__.insert(0, os.path.dirname(_ROOT))  # noqa: PTH120 - a checkout without symbolic links: beside qatc/ too

# ONNX Runtime (from 1.29 on) reports names and hashes of the models that it loads to its vendor, and stores an
# identifier of the machine, unless this is set before it is imported. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Comparison": "qatc.compiler.compare",
    "CompileError": "qatc.compiler.diagnostics",
    "CompileResult": "qatc.compiler.result",
    "Diagnostic": "qatc.compiler.diagnostics",
    "Evaluation": "qatc.compiler.result",
    "Inspection": "qatc.compiler.result",
    "PackageCheck": "qatc.compiler.verify.package",
    "Severity": "qatc.compiler.diagnostics",
    "compare_package": "qatc.compiler.compare",
    "compile_model": "qatc.compiler.driver.compile",
    "evaluate_package": "qatc.compiler.evaluation",
    "inspect_model": "qatc.compiler.driver.compile",
    "verify_package": "qatc.compiler.verify.package",
}

__all__ = [
    "Comparison",
    "CompileError",
    "CompileResult",
    "Diagnostic",
    "Evaluation",
    "Inspection",
    "PackageCheck",
    "Severity",
    "__version__",
    "compare_package",
    "compile_model",
    "evaluate_package",
    "inspect_model",
    "verify_package",
]


def __getattr__(name: str) -> object:
    """Load a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
