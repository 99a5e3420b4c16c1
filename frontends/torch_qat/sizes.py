"""A tracer for which sizes are known: `for i in range(x.size(1))`, `math.sqrt(k.size(-1))` and `if x.dim() == 3` work.

What an example call computes is looked up only where Python needs a number, a truth or a length; everything else stays
symbolic, so that the size of a batch does. Where the contents of a tensor decide, the network cannot be traced.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from qatc.frontends.torch_qat.recurrent import Grid

_CONTENTS: Final = frozenset({"item", "tolist", "numpy"})


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode without gradients; afterwards each module is in its own mode again."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


class Known(fx.Proxy):
    """Stands for a result; turns into a number where Python needs one."""

    tracer: SizeTracer

    def __getattr__(self, k: str) -> KnownAttribute:
        return KnownAttribute(self, k)

    def __index__(self) -> int:
        return int(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __len__(self) -> int:
        return self.tracer.length(self)


class KnownAttribute(fx.proxy.Attribute, Known):
    """An attribute, such as a shape, or a method that is about to be called."""


class SizeTracer(fx.Tracer):
    """Traces a network for which `inputs` are an example."""

    proxy_buffer_attributes = True  # masks and the like are cut to sizes that are not known while tracing

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._inputs = list(inputs)
        self._values: dict[fx.Node, Any] = {}
        self._computes = False

    def proxy(self, node: fx.Node) -> Known:
        """What stands for the result of a node."""
        return Known(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operator: PyTorch's own are, and grids."""
        return isinstance(m, Grid) or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Which way to go, where sizes decide."""
        return bool(self.number(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a tensor, of a tuple or of a shape."""
        return iter([obj[i] for i in range(self.length(obj))])

    def number(self, proxy: fx.Proxy) -> Any:
        """The number or truth that a proxy stands for."""
        value = self._value(proxy.node)
        if not isinstance(value, int | float):
            raise fx.proxy.TraceError("the contents of a tensor decide what is computed")
        return value

    def length(self, proxy: fx.Proxy) -> int:
        """The length of what a proxy stands for."""
        return len(self._value(proxy.node))

    # -- while values are computed, modules are called as if nobody traced them ---------------------------------------
    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """A module is called."""
        return forward(*args, **kwargs) if self._computes else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A module's attribute is read."""
        return attr_val if self._computes else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, wanted: fx.Node) -> Any:
        """What the example gives at a node: its ancestors are computed, each once."""
        needed, waiting = {wanted}, [wanted]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in needed and source not in self._values:
                    needed.add(source)
                    waiting.append(source)
        self._computes = True
        try:
            with evaluating(self.root):
                for node in self.graph.nodes:
                    if node in needed and node not in self._values:
                        self._values[node] = self._compute(node)
        finally:
            self._computes = False
        return self._values[wanted]

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
            return self._inputs[placeholders.index(node)]
        if node.op == "call_method" and node.target in _CONTENTS:
            raise fx.proxy.TraceError(f"{node.target}() makes a number of a tensor's contents")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        run: Any = fx.Interpreter(self.root, graph=self.graph)
        return getattr(run, node.op)(node.target, args, kwargs)
