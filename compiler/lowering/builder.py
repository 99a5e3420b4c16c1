"""Builds an IntegerGraph: names, tensors, constants, operators in order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Concatenate, ParamSpec

from qatc.compiler.integer import IntegerGraph, Op, Shape, Tensor, integer_tensor
from qatc.compiler.model.names import Names
from qatc.compiler.quant import Array, QuantParams, dtype_name

_P = ParamSpec("_P")


class Builder:
    """The graph under construction. Names are unique over tensors and operators; `reserved` ones are never invented."""

    def __init__(self, name: str, opset: int, domains: dict[str, int], reserved: Collection[str]) -> None:
        self.graph = IntegerGraph(name, [], [], [], {}, {}, opset, domains)
        self._names = Names(reserved)
        self._shared: dict[tuple[object, ...], str] = {}

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet, `hint` itself where it is free."""
        return self._names.fresh(hint)

    def quantized(
        self,
        hint: str,
        params: QuantParams,
        shape: Shape | None,
        source: str | None = None,
        *,
        exact: bool = False,
        sample_shape: tuple[int, ...] | None = None,
    ) -> str:
        """Describe a new quantized tensor and return its name (`exact`: the name is `hint` itself)."""
        name = hint if exact else self.fresh(hint)
        self.graph.tensors[name] = integer_tensor(name, params, shape, source, sample_shape)
        return name

    def plain(
        self,
        name: str,
        dtype: str,
        shape: Shape | None,
        source: str | None = None,
        sample_shape: tuple[int, ...] | None = None,
    ) -> str:
        """Describe a tensor that is not quantized."""
        self.graph.tensors[name] = Tensor(name, dtype, shape, None, source, sample_shape)
        return name

    def constant(self, hint: str, value: Array, params: QuantParams | None = None) -> str:
        """A constant; small equal ones are shared."""
        key = (value.dtype, value.shape, params, value.tobytes()) if value.size <= 64 else None
        if key is not None and key in self._shared:
            return self._shared[key]
        name = self.fresh(hint)
        self.graph.constants[name] = value
        self.graph.tensors[name] = Tensor(name, dtype_name(value.dtype), value.shape, params)
        if key is not None:
            self._shared[key] = name
        return name

    def add(
        self,
        kind: Callable[Concatenate[str, _P], Op],
        hint: str,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> str:
        """Append `kind(name, ...)`, whose name is `hint` where that is free; its first output's name."""
        op = kind(self.fresh(hint), *args, **kwargs)
        self.graph.ops.append(op)
        return op.outputs[0]

    def finish(self) -> IntegerGraph:
        """The graph without operators whose results nobody reads, and without constants nobody reads."""
        graph = self.graph
        needed = set(graph.outputs)
        kept: list[Op] = []
        for op in reversed(graph.ops):
            if any(o in needed for o in op.outputs):
                kept.append(op)
                needed.update(op.inputs)
        graph.ops = kept[::-1]
        made = {o for op in graph.ops for o in op.outputs}
        graph.constants = {n: v for n, v in graph.constants.items() if n in needed}
        alive = made | set(graph.inputs) | graph.constants.keys()
        graph.tensors = {n: t for n, t in graph.tensors.items() if n in alive}
        return graph
