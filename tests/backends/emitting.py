"""Small IntegerGraphs, emitted and run in ONNX Runtime beside the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.backend import Emission
from qatc.compiler.integer import Clamped, IntegerGraph, Op, Shape, Tensor
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import execute

DOMAINS = ("auto", "standard")
FORMS = (*DOMAINS, "uint8")
UNSET = Tensor("", "")


class Net:
    """An IntegerGraph under construction; every method returns a tensor's name."""

    def __init__(self, opset: int = 17) -> None:
        self.graph = IntegerGraph("net", [], [], [], {}, {}, opset)
        self.feeds: dict[str, Array] = {}

    def tensor(self, name: str, params: QuantParams | None, shape: Shape | None, dtype: str = "float32") -> str:
        self.graph.tensors[name] = Tensor(name, params.container.name if params else dtype, shape, params)
        return name

    def input(self, value: Array, params: QuantParams | None = None, shape: Shape | None = UNSET) -> str:  # type: ignore[assignment]
        """A graph input that is fed `value`; `shape` is what the graph knows of it (default: everything)."""
        name = f"x{len(self.graph.inputs)}"
        self.graph.inputs.append(self.tensor(name, params, value.shape if shape is UNSET else shape, value.dtype.name))
        self.feeds[name] = value
        return name

    def constant(self, value: Any, params: QuantParams | None = None, name: str = "") -> str:
        value = np.asarray(value)
        name = name or f"c{len(self.graph.constants)}"
        self.graph.constants[name] = value
        return self.tensor(name, params, value.shape, value.dtype.name)

    def add(
        self,
        kind: type[Op],
        inputs: Sequence[str],
        params: QuantParams | None = None,
        shape: Shape | None = None,
        dtype: str = "float32",
        **fields: Any,
    ) -> str:
        count = len(self.graph.ops)
        out = self.tensor(f"t{count}", params, shape, dtype)
        if issubclass(kind, Clamped) and params is not None:
            fields = {"lo": params.qmin, "hi": params.qmax, **fields}
        self.graph.ops.append(kind(f"op{count}", tuple(inputs), (out,), **fields))
        return out


@dataclass(frozen=True)
class Result:
    """One output: what the reference and ONNX Runtime made of it, and of which operators the model consists."""

    expected: Array
    found: Array
    ops: Counter[str]
    domains: frozenset[str]

    @property
    def worst(self) -> float:
        return float(np.abs(self.found.astype(np.float64) - self.expected.astype(np.float64)).max(initial=0))

    @property
    def share(self) -> float:
        """Share of elements that differ."""
        return float((self.found != self.expected).mean()) if self.found.size else 0.0


def emitted(graph: IntegerGraph, **options: str) -> Emission:
    return BACKEND.emit(graph, BACKEND.checked(options))


def run_model(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """What a user gets: ONNX Runtime with its default optimizations, one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def outcome(net: Net, output: str, domain: str) -> Result:
    """Emit `net` with one output and run it both ways."""
    net.graph.outputs = [output]
    net.graph.verify()
    expected = execute(net.graph, net.feeds, get_profile("onnx"))[output]
    chosen = {"fast": {"accumulators": "fast", "tables": "fast"}, "uint8": {"weights": "uint8"}}.get(domain) or {
        "domain": domain
    }
    emission = emitted(net.graph, **chosen)
    nodes = emission.model.graph.node
    (found,) = run_model(emission.complete(), net.feeds)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    return Result(expected, found, Counter(n.op_type for n in nodes), frozenset(n.domain for n in nodes))


def same(net: Net, output: str, domains: Sequence[str] = FORMS, within: float = 0) -> dict[str, Result]:
    """Assert that all forms give the reference's result, bit for bit or `within` so many units; their results."""
    results = {domain: outcome(net, output, domain) for domain in domains}
    for domain, result in results.items():
        assert result.worst <= within, (domain, result.worst, dict(result.ops))
        assert domain != "standard" or result.domains <= {""}, result.domains
    return results


def grid(dice: np.random.Generator, dtype: str = "uint8", scale: float | None = None) -> QuantParams:
    """A random per-tensor grid."""
    info = np.iinfo(dtype)
    return QuantParams.per_tensor(
        scale or float(dice.uniform(0.01, 0.2)), int(dice.integers(info.min, info.max)), dtype
    )


def integers(dice: np.random.Generator, params: QuantParams, shape: Sequence[int]) -> Array:
    """Random integers of a grid's whole range."""
    return dice.integers(params.qmin, params.qmax + 1, tuple(shape)).astype(params.container)
