from typing import Any

from torch import Tensor, dtype, qscheme
from torch.nn import Module

class ObserverBase(Module):
    def __init__(self, **options: Any) -> None: ...
    quant_min: int
    quant_max: int
    def calculate_qparams(self) -> tuple[Tensor, Tensor]: ...

class MovingAverageMinMaxObserver(ObserverBase): ...
class MovingAveragePerChannelMinMaxObserver(ObserverBase): ...
class FixedQParamsObserver(ObserverBase): ...

class FakeQuantize(Module):
    scale: Tensor
    zero_point: Tensor
    fake_quant_enabled: Tensor
    observer_enabled: Tensor
    activation_post_process: Module
    quant_min: int
    quant_max: int
    dtype: dtype
    qscheme: qscheme
    ch_axis: int
    is_per_channel: bool
    def __init__(self, **options: Any) -> None: ...
    def forward(self, x: Tensor) -> Tensor: ...

class FixedQParamsFakeQuantize(FakeQuantize): ...

class QConfig:
    def __init__(self, activation: Any, weight: Any) -> None: ...
