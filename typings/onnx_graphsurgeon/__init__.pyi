"""The part of onnx-graphsurgeon that qatc uses, typed (the package itself ships no types)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

# A NumPy dtype or an `onnx.TensorProto.DataType` number, for types that NumPy does not have.
_DType: TypeAlias = np.dtype[Any] | type[np.generic] | int
# A dimension is a number, a symbol, or None where the model says nothing.
_Shape: TypeAlias = Sequence[int | str | None]
_Array: TypeAlias = npt.NDArray[Any]
# Tensor is abstract: each tensor is one of these.
_Tensor: TypeAlias = Variable | Constant

class Tensor:
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
    def __eq__(self, other: object) -> bool: ...
    # Compared by name, so not hashable.
    __hash__: ClassVar[None]  # type: ignore[assignment]

class Variable(Tensor):
    type: str
    def __init__(
        self, name: str, dtype: _DType | None = None, shape: _Shape | None = None, type: str = "tensor_type"
    ) -> None: ...
    @property
    def dtype(self) -> _DType | None: ...
    @dtype.setter
    def dtype(self, value: _DType | None) -> None: ...
    @property
    def shape(self) -> _Shape | None: ...
    @shape.setter
    def shape(self, value: _Shape | None) -> None: ...

class Constant(Tensor):
    data_location: int | None
    export_dtype: _DType | None
    def __init__(
        self, name: str, values: _Array, data_location: int | None = None, export_dtype: _DType | None = None
    ) -> None: ...
    @property
    def values(self) -> _Array: ...
    @values.setter
    def values(self, values: _Array) -> None: ...
    @property
    def dtype(self) -> _DType: ...
    @property
    def shape(self) -> Sequence[int]: ...

class Node:
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
