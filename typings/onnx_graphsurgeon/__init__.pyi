"""The part of onnx-graphsurgeon that qatc uses, typed (the package itself ships no types)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, type_check_only

import numpy as np
import numpy.typing as npt
import onnx

# A NumPy dtype or an `onnx.TensorProto.DataType` number, for types that NumPy does not have.
_DType: TypeAlias = np.dtype[Any] | type[np.generic] | int
# A dimension is a number, a symbol, or None where the model says nothing.
_Shape: TypeAlias = Sequence[int | str | None]
_Array: TypeAlias = npt.NDArray[Any]
# Tensor is abstract: each tensor is one of these.
_Tensor: TypeAlias = Variable | Constant

@type_check_only
class _LazyValues:
    """A constant whose data is read on first use of `Constant.values`."""

    shape: Sequence[int]
    dtype: _DType
    nbytes: int
    tensor: onnx.TensorProto
    def load(self) -> _Array: ...

class Tensor:
    DYNAMIC: int
    name: str
    # Assigning replaces the contents; the list keeps the nodes on the other side in step.
    @property
    def inputs(self) -> list[Node]: ...
    @inputs.setter
    def inputs(self, value: Sequence[Node]) -> None: ...
    @property
    def outputs(self) -> list[Node]: ...
    @outputs.setter
    def outputs(self, value: Sequence[Node]) -> None: ...
    @property
    def dtype(self) -> _DType | None: ...
    @property
    def shape(self) -> _Shape | None: ...
    def is_empty(self) -> bool: ...
    def to_constant(
        self, values: _Array, data_location: int | None = None, export_dtype: _DType | None = None
    ) -> Constant: ...
    def to_variable(self, dtype: _DType | None = None, shape: _Shape = ...) -> Variable: ...
    def i(self, tensor_idx: int = 0, producer_idx: int = 0) -> _Tensor: ...
    def o(self, consumer_idx: int = 0, tensor_idx: int = 0) -> _Tensor: ...
    def __eq__(self, other: object) -> bool: ...
    # Compared by name, so not hashable.
    __hash__: ClassVar[None]  # type: ignore[assignment]

class Variable(Tensor):
    type: str
    def __init__(
        self, name: str, dtype: _DType | None = None, shape: _Shape | None = None, type: str = "tensor_type"
    ) -> None: ...
    @staticmethod
    def empty() -> Variable: ...
    @property
    def dtype(self) -> _DType | None: ...
    @dtype.setter
    def dtype(self, value: _DType | None) -> None: ...
    @property
    def shape(self) -> _Shape | None: ...
    @shape.setter
    def shape(self, value: _Shape | None) -> None: ...
    def copy(self) -> Variable: ...

class Constant(Tensor):
    data_location: int | None
    export_dtype: _DType | None
    def __init__(
        self,
        name: str,
        values: _Array | _LazyValues,
        data_location: int | None = None,
        export_dtype: _DType | None = None,
    ) -> None: ...
    @property
    def values(self) -> _Array: ...
    @values.setter
    def values(self, values: _Array | _LazyValues) -> None: ...
    @property
    def dtype(self) -> _DType: ...
    @property
    def shape(self) -> Sequence[int]: ...
    def copy(self) -> Constant: ...

class Node:
    class AttributeRef:
        """Stands for an attribute of the function that the node is in."""

        name: str
        def __init__(self, name: str, type: type) -> None: ...

    op: str
    name: str
    attrs: dict[str, Any]
    domain: str | None
    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: Mapping[str, object] | None = None,
        inputs: Sequence[_Tensor] | None = None,
        outputs: Sequence[_Tensor] | None = None,
        domain: str | None = None,
    ) -> None: ...
    @property
    def inputs(self) -> list[_Tensor]: ...
    @inputs.setter
    def inputs(self, value: Sequence[_Tensor]) -> None: ...
    @property
    def outputs(self) -> list[_Tensor]: ...
    @outputs.setter
    def outputs(self, value: Sequence[_Tensor]) -> None: ...
    def i(self, tensor_idx: int = 0, producer_idx: int = 0) -> Node: ...
    def o(self, consumer_idx: int = 0, tensor_idx: int = 0) -> Node: ...
    def subgraphs(self, recursive: bool = False) -> Iterator[Graph]: ...
    def copy(
        self,
        inputs: Sequence[_Tensor] | None = None,
        outputs: Sequence[_Tensor] | None = None,
        tensor_map: dict[str, _Tensor] | None = None,
    ) -> Node: ...

class Function:
    name: str
    domain: str
    nodes: list[Node]
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    attrs: dict[str, Any]
    opset: int
    import_domains: Sequence[onnx.OperatorSetIdProto] | None

class Graph:
    DEFAULT_OPSET: int
    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[_Tensor]
    name: str
    doc_string: str
    opset: int
    import_domains: Sequence[onnx.OperatorSetIdProto] | None
    producer_name: str
    producer_version: str
    ir_version: int | None
    functions: list[Function]
    def __init__(
        self,
        nodes: Sequence[Node] | None = None,
        inputs: Sequence[Variable] | None = None,
        outputs: Sequence[_Tensor] | None = None,
        name: str | None = None,
        doc_string: str | None = None,
        opset: int | None = None,
        import_domains: Sequence[onnx.OperatorSetIdProto] | None = None,
        producer_name: str | None = None,
        producer_version: str | None = None,
        functions: Sequence[Function] | None = None,
        ir_version: int | None = None,
    ) -> None: ...
    def subgraphs(self, recursive: bool = False) -> Iterator[Graph]: ...
    def cleanup(
        self,
        remove_unused_node_outputs: bool = False,
        recurse_subgraphs: bool = True,
        remove_unused_graph_inputs: bool = False,
        recurse_functions: bool = True,
    ) -> Graph: ...
    def toposort(
        self,
        recurse_subgraphs: bool = True,
        recurse_functions: bool = True,
        mode: Literal["full", "nodes", "functions"] = "full",
    ) -> Graph: ...
    def tensors(self, check_duplicates: bool = False) -> dict[str, _Tensor]: ...
    def copy(self, tensor_map: dict[str, _Tensor] | None = None) -> Graph: ...

class OnnxGraphSurgeonException(Exception): ...

def import_onnx(onnx_model: onnx.ModelProto) -> Graph: ...
def export_onnx(graph: Graph, do_type_check: bool = True, **kwargs: object) -> onnx.ModelProto: ...
