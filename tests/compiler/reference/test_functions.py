"""Tables of element-wise functions agree with ONNX Runtime on every one of the 256 inputs."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.graph import Constant, Node, Variable
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference.functions import evaluate, is_elementwise
from qatc.compiler.runtime.sessions import OrtEvaluator
from tests.agreeing import agrees, kinds
from tests.graphs import net

RUN = OrtEvaluator()
CASES: list[tuple[str, str, dict[str, object], list[float | None], int]] = [
    *((op, "", {}, [], 17) for op in
      ("Abs", "Atan", "Asinh", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Neg", "Relu", "Round",
       "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh")),
    ("Sinh", "", {}, [], 17),
    ("Cosh", "", {}, [], 17),
    ("Mish", "", {}, [], 18),
    ("Gelu", "", {}, [], 20),
    ("Gelu", "", {"approximate": "tanh"}, [], 20),
    ("Gelu", "com.microsoft", {}, [], 1),
    ("QuickGelu", "com.microsoft", {"alpha": 1.5}, [], 1),
    ("Celu", "", {"alpha": 0.7}, [], 17),
    ("Elu", "", {"alpha": 0.7}, [], 17),
    ("Selu", "", {}, [], 17),
    ("HardSigmoid", "", {"alpha": 0.3, "beta": 0.4}, [], 17),
    ("LeakyRelu", "", {"alpha": 0.3}, [], 17),
    ("ThresholdedRelu", "", {"alpha": 0.5}, [], 17),
    ("Shrink", "", {"bias": 0.2, "lambd": 0.6}, [], 17),
    ("Clip", "", {}, [-1.0, 2.0], 17),
    ("Clip", "", {}, [None, 2.0], 17),
    ("Clip", "", {}, [-1.0], 17),
    ("Add", "", {}, [1.5], 17),
    ("Sub", "", {}, [1.5], 17),
    ("Mul", "", {}, [-1.5], 17),
    ("Div", "", {}, [3.0], 17),
    ("Pow", "", {}, [2.0], 17),
    ("Pow", "", {}, [3.0], 17),
    ("Min", "", {}, [0.5], 17),
    ("Max", "", {}, [0.5, 1.0, -3.0], 17),
    ("PRelu", "", {}, [0.25], 17),
]  # fmt: skip
GRIDS = [QuantParams.per_tensor(0.03, 120, "uint8"), QuantParams.per_tensor(0.1, 0, "int8")]


def node_of(op: str, domain: str, attrs: dict[str, object], constants: list[float | None]) -> Node:
    others = [
        Variable("") if c is None else Constant(f"c{i}", np.asarray(c, np.float32)) for i, c in enumerate(constants)
    ]
    return Node(op, "n", attrs, [Variable("x"), *others], [Variable("y")], domain or None)


@pytest.mark.parametrize("grid", GRIDS, ids=["uint8", "int8"])
@pytest.mark.parametrize(
    ("op", "domain", "attrs", "constants", "opset"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_tables_agree_with_onnx_runtime(
    op: str, domain: str, attrs: dict[str, object], constants: list[float | None], opset: int, grid: QuantParams
) -> None:
    attrs = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in attrs.items()}  # as a file holds them
    node = node_of(op, domain, attrs, constants)
    assert is_elementwise(node)
    codes = np.arange(*{"uint8": (0, 256), "int8": (-128, 128)}[grid.dtype])
    x = grid.dequantize(codes)
    found = evaluate(node, [x.astype(np.float64), *(None if c is None else np.float64(c) for c in constants)])  # type: ignore[list-item]
    want = RUN(op, domain, opset, [x, *(None if c is None else np.float32(c) for c in constants)], attrs, 1)[0]
    assert found is not None
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    out = QuantParams.per_tensor(max(float(np.abs(want[np.isfinite(want)]).max()), 1e-3) / 127, 0, "int8")
    off = out.quantize(found).astype(int) - out.quantize(want)
    assert np.abs(off).max() <= 1
    assert np.mean(off != 0) < 0.05  # where the exact value lies on a boundary


@pytest.mark.parametrize(("op", "constants"), [("Log", []), ("Sqrt", []), ("Acos", []), ("Pow", [0.5]), ("Div", [0.0])])
def test_functions_with_holes_are_none(op: str, constants: list[float | None]) -> None:
    x = np.arange(-128, 128) * 0.1
    assert evaluate(node_of(op, "", {}, constants), [x, *(np.float64(c or 0) for c in constants)]) is None  # type: ignore[list-item]


def test_infinities_are_values() -> None:
    """They are clamped like every number beyond the grid."""
    x = np.arange(256) * 0.1
    found = evaluate(node_of("Log", "", {}, []), [x])
    assert found is not None
    assert found[0] == -np.inf


@pytest.mark.parametrize(
    ("op", "domain"),
    [("Softmax", ""), ("Add", "com.example"), ("Relu", "com.microsoft"), ("QuickGelu", ""), ("Requantize", "")],
)
def test_what_is_elementwise(op: str, domain: str) -> None:
    assert is_elementwise(node_of(op, domain, {}, [])) == (op == "Requantize")


def test_missing_operands_are_no_function() -> None:
    assert evaluate(node_of("Add", "", {}, [None]), [np.zeros(256), None]) is None
    assert evaluate(node_of("Relu", "", {}, []), [None]) is None
    assert evaluate(node_of("Clip", "", {}, []), [None]) is None


@pytest.mark.parametrize(
    ("entries", "places", "want"),
    [(3, [0, -1, 2, -3], [0, 2, 2, 0]), (3, [0, 3], None), (3, [0, -4], None), (0, [0], None)],
)
def test_a_list_is_read_from_both_ends_and_nowhere_else(
    entries: int, places: list[int], want: list[int] | None
) -> None:
    table = Constant("t", np.arange(entries, dtype=np.float32))
    node = Node("Gather", "g", {}, [table, Variable("i")], [Variable("y")])
    assert is_elementwise(node)
    found = evaluate(node, [np.arange(entries, dtype=np.float64), np.asarray(places, np.float64)])
    assert (None if found is None else found.tolist()) == want


@pytest.mark.parametrize("divisor", [3, -3])
def test_integers_are_divided_as_integers(divisor: int) -> None:
    """What is left over is cut off, as ONNX Runtime does: a number that is divided and multiplied again is a step."""
    entries = ", ".join(str(i / 4) for i in range(256))
    body = "a = C(x)\ni = Cast<to = 7>(a)\nd = Div(i, k)\nm = Mul(d, k)\ng = Gather(t, m)\ny = A(g)"
    constants = f"float[256] t = {{{entries}}}, int64 k = {{{divisor}}}"
    graph = agrees(net("(float[64] x) => (float[64] y)", body, constants, opset=21))
    assert kinds(graph) == ["Lookup"]


@pytest.mark.parametrize("attrs", [{}, {"detect_negative": 0}, {"detect_positive": 0}])
def test_infinities_are_told_apart(attrs: dict[str, object]) -> None:
    x = np.asarray([-np.inf, -1, 0, 1, np.inf], np.float32)
    found = evaluate(node_of("IsInf", "", attrs, []), [x.astype(np.float64)])
    assert found is not None
    np.testing.assert_array_equal(found != 0, RUN("IsInf", "", 20, [x], attrs, 1)[0])


@pytest.mark.parametrize(("kind", "beyond"), [(6, 2.0**31), (7, 2.0**63), (7, np.inf)])
def test_numbers_beyond_an_integer_make_no_table(kind: int, beyond: float) -> None:
    """Processors make different integers of them, a Reciprocal of zero for one; tables held infinity."""
    node = Node("Cast", "cast", {"to": kind}, [Variable("x")], [Variable("y")])
    assert evaluate(node, [np.asarray([0.5, -beyond])]) is None
    np.testing.assert_array_equal(evaluate(node, [np.asarray([2.5, -2.5])]), [2, -2])
