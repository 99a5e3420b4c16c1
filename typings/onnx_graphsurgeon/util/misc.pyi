"""The lists that keep nodes and tensors in step."""

from typing import Any

class SynchronizedList(list[Any]):
    parent_obj: object
    field_name: str
    def __init__(self, parent_obj: object, field_name: str, initial: list[Any]) -> None: ...
