"""ONNX Runtime's range calibrators."""

import abc
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

class CalibrationDataReader(abc.ABC):
    @abc.abstractmethod
    def get_next(self) -> dict[str, npt.NDArray[Any]] | None: ...
    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]: ...
    def __next__(self) -> dict[str, npt.NDArray[Any]]: ...
    def __len__(self) -> int: ...
