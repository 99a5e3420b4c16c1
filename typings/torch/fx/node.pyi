from collections.abc import Callable, Mapping
from typing import Any

class Node:
    name: str
    op: str
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    meta: dict[str, Any]
    users: dict[Node, None]
    @property
    def all_input_nodes(self) -> list[Node]: ...
    def replace_all_uses_with(self, other: Node) -> list[Node]: ...
    def replace_input_with(self, old: Node, new: Node) -> None: ...

def map_arg(a: Any, fn: Callable[[Node], Any]) -> Any: ...
