from typing import Any

from torch.fx import Graph, Tracer
from torch.fx.node import Node

class TraceError(ValueError): ...

class GraphAppendingTracer:
    def __init__(self, graph: Graph) -> None: ...

class Proxy:
    node: Node
    def __init__(self, node: Node, tracer: GraphAppendingTracer | Tracer) -> None: ...
    def __getitem__(self, index: int) -> Any: ...

class Attribute(Proxy):
    def __init__(self, root: Proxy, attr: str) -> None: ...
