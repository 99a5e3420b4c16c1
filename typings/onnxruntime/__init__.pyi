"""The part of ONNX Runtime that qatc uses, typed (the package itself ships no types)."""

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy.typing as npt

__version__: str

class GraphOptimizationLevel(Enum):
    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99

class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(numpy_obj: npt.NDArray[Any], device_type: str = "cpu", device_id: int = 0) -> OrtValue: ...

class SessionOptions:
    graph_optimization_level: GraphOptimizationLevel
    intra_op_num_threads: int
    log_severity_level: int
    optimized_model_filepath: str
    def __init__(self) -> None: ...
    def add_session_config_entry(self, key: str, value: str | bytes, /) -> None: ...
    def add_external_initializers(self, names: Sequence[str], values: Sequence[OrtValue], /) -> None: ...

class RunOptions:
    log_severity_level: int
    terminate: bool
    def __init__(self) -> None: ...

class NodeArg:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[int | str | None]: ...

class InferenceSession:
    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, object]]] | None = None,
        provider_options: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    # Tensors alone: sequences, maps and sparse tensors are not quantized networks' outputs.
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, npt.NDArray[Any]],
        run_options: RunOptions | None = None,
    ) -> list[npt.NDArray[Any]]: ...

def set_default_logger_severity(severity: int, /) -> None: ...
