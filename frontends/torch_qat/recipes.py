"""Recipes: which fake quantizers a training gets, as values.

| recipe | activations | weights | meant for |
|---|---|---|---|
| `default` | uint8, asymmetric, 0..255 | int8 per channel, -128..127 | ONNX Runtime, OpenVINO |
| `drpai` | uint8, asymmetric, 0..127 (`reduce_range`) | int8 per channel, -128..127 | the guide of DRP-AI TVM |
| `symmetric` | int8, zero point 0, -127..127 | int8 per channel, -127..127 | TensorRT and chips without zero points |
| `power-of-two` | int8, zero point 0, scales 2^k | int8 per tensor, scales 2^k | DPUs that only shift |
| `lsq` | uint8, asymmetric, scale and zero point learned | int8 per channel, scale learned | few bits, small networks |
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import torch
from torch.ao.quantization import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
)

from qatc.compiler.diagnostics import misused, suggested

_MIN_BITS: Final = 2
_MAX_BITS: Final = 8
_WARM_UP: Final = 20  # batches after which a learned scale takes over from the observer
_DRIFT: Final = 4.0  # a learned scale stays within this factor of the observed one: one large step must not end it

Widths = int | tuple[int, int]


def _power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The smallest powers of two that are at least `scale`: rounding up never clips."""
    return torch.exp2(torch.ceil(torch.log2(scale)))


class PowerOfTwoObserver(MovingAverageMinMaxObserver):
    """A range whose scale is a power of two (per tensor, symmetric)."""

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, each of shape [1]."""
        scale, zero_point = super().calculate_qparams()
        return _power_of_two(scale), zero_point


class TrainedFakeQuantize(FakeQuantize):
    """PyTorch's, but only training moves its range: its own would follow the images that accuracy is measured on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.looked = False  # has seen anything yet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, rounded, same shape."""
        watches = int(self.observer_enabled[0])
        if self.training or not self.looked or not watches:
            self.looked = True
            return super().forward(x)
        self.observer_enabled[0] = 0
        result = super().forward(x)
        self.observer_enabled[0] = watches
        return result


class LearnedFakeQuantize(FakeQuantize):
    """Learned step size (LSQ, and LSQ+ for the zero point): what the observer finds first, gradients improve.

    The gradients are scaled by 1 / sqrt(elements * qmax), as the paper has it. Symmetric schemes keep zero point 0.
    """

    seen: torch.Tensor
    observed: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        scale, zero_point = self.scale.detach().clone(), self.zero_point.detach().float()
        del self.scale, self.zero_point
        self.scale = torch.nn.Parameter(scale)
        affine = self.qscheme == torch.per_tensor_affine
        self.zero_point = torch.nn.Parameter(zero_point, requires_grad=affine)
        self.register_buffer("observed", scale.clone())
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, rounded; while training, the first batches set the scale from the observed range."""
        if int(self.observer_enabled[0]) == 1 and (self.training or int(self.seen) == 0):
            self.observe(x)
        if int(self.fake_quant_enabled[0]) == 0:
            return x
        learning = int(self.seen) >= _WARM_UP
        scale = self.scale if learning else self.scale.detach()
        zero_point = self.zero_point if learning and self.zero_point.requires_grad else self.zero_point.detach()
        factor = 1.0 / (x.numel() * self.quant_max) ** 0.5
        self.settle()
        # rounded here so that what is trained, exported and deployed are the same; the gradient passes straight through
        zero_point = zero_point + (zero_point.round() - zero_point).detach()
        if self.is_per_channel:
            return torch._fake_quantize_learnable_per_channel_affine(  # pyright: ignore[reportPrivateUsage]
                x, scale, zero_point, self.ch_axis, self.quant_min, self.quant_max, factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(  # pyright: ignore[reportPrivateUsage]
            x, scale, zero_point, self.quant_min, self.quant_max, factor
        )

    def settle(self) -> None:
        """Take back what the optimizer's last step did too much."""
        # through .data: a shared quantizer is called again before the gradients of its first call are computed
        self.scale.data.clamp_(self.observed / _DRIFT, self.observed * _DRIFT)
        self.zero_point.data.clamp_(self.quant_min, self.quant_max)

    def _load_from_state_dict(self, state_dict: Mapping[str, torch.Tensor], prefix: str, *rest: Any) -> None:
        """Take shapes from the state: what is per channel is a single number before the first batch."""
        for name in ("scale", "zero_point", "observed"):
            value = state_dict.get(prefix + name)
            if value is not None:
                getattr(self, name).data = value.detach().clone()
        torch.nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """Take scale and zero point from the observer, for as long as it warms up."""
        if int(self.seen) >= _WARM_UP:
            return
        self.activation_post_process(x.detach())
        scale, zero_point = self.activation_post_process.calculate_qparams()
        self.scale.data = scale.to(self.scale).reshape(-1).contiguous()
        self.observed = self.scale.data.clone()
        self.zero_point.data = zero_point.to(self.scale).reshape(-1).contiguous()
        if self.training:
            self.seen += 1


@dataclass(frozen=True)
class Recipe:
    """What fake quantizers a training gets.

    Attributes:
        name: what `prepare_qat` calls it.
        signed: activations are int8 with zero point 0, not uint8 with any.
        narrow: the lowest integer is left out, in activations and weights.
        reduce_range: activations use one bit less.
        per_channel: weights have a scale per output channel.
        power_of_two: scales are powers of two.
        learned: scales are learned.
    """

    name: str
    signed: bool = False
    narrow: bool = False
    reduce_range: bool = False
    per_channel: bool = True
    power_of_two: bool = False
    learned: bool = False

    def activation(self, bits: int = 8) -> Callable[[], torch.nn.Module]:
        """A factory of fake quantizers for activations of `bits` bits."""
        if self.reduce_range:  # the observer halves the range itself, as the guide has it
            low, high = 0, (1 << bits) - 1
        else:
            low, high = self._range(bits, self.signed)
        return self._quantizer(
            self._observer(),
            quant_min=low,
            quant_max=high,
            dtype=torch.qint8 if self.signed else torch.quint8,
            qscheme=torch.per_tensor_symmetric if self.signed else torch.per_tensor_affine,
            reduce_range=self.reduce_range,
        )

    def weight(self, bits: int = 8, axis: int = 0) -> Callable[[], torch.nn.Module]:
        """A factory of fake quantizers for weights of `bits` bits, output channels along `axis`."""
        low, high = self._range(bits, signed=True)
        options: dict[str, Any] = {"quant_min": low, "quant_max": high, "dtype": torch.qint8, "reduce_range": False}
        if self.per_channel:
            options |= {"qscheme": torch.per_channel_symmetric, "ch_axis": axis}
            return self._quantizer(MovingAveragePerChannelMinMaxObserver, **options)
        return self._quantizer(self._observer(), qscheme=torch.per_tensor_symmetric, **options)

    def unit_interval(self) -> Callable[[], torch.nn.Module]:
        """A factory for results between 0 and 1 (Softmax, Sigmoid): their range needs no observer."""
        top = 7 if self.signed or self.reduce_range else 8
        observer = partial(
            FixedQParamsObserver,
            scale=1.0 / (1 << top),
            zero_point=0,
            dtype=torch.qint8 if self.signed else torch.quint8,
            quant_min=-127 if self.signed else 0,
            quant_max=(1 << top) - 1,
        )
        return partial(FixedQParamsFakeQuantize, observer=observer)

    def qconfig(self, bits: Widths = 8, axis: int = 0) -> Any:
        """Both factories as PyTorch's QConfig."""
        weight, activation = bits if isinstance(bits, tuple) else (bits, 8)
        return QConfig(activation=self.activation(activation), weight=self.weight(weight, axis))

    def _range(self, bits: int, signed: bool) -> tuple[int, int]:
        if not _MIN_BITS <= bits <= _MAX_BITS:
            raise misused(f"{bits} bits cannot be trained", f"from {_MIN_BITS} to {_MAX_BITS}")
        half = 1 << (bits - 1)
        return (-half + self.narrow, half - 1) if signed else (0, 2 * half - 1)

    def _observer(self) -> type:
        return PowerOfTwoObserver if self.power_of_two else MovingAverageMinMaxObserver

    def _quantizer(self, observer: type, **options: Any) -> Callable[[], torch.nn.Module]:
        kind = LearnedFakeQuantize if self.learned else TrainedFakeQuantize
        return cast("Callable[[], torch.nn.Module]", partial(kind, observer=observer, **options))


RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe("default"),
        Recipe("drpai", reduce_range=True),
        Recipe("symmetric", signed=True, narrow=True),
        Recipe("power-of-two", signed=True, per_channel=False, power_of_two=True),
        Recipe("lsq", learned=True),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe `name`.

    Raises:
        CompileError: QAT007 with exit code 2 for an unknown name.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise misused(f"unknown recipe {name!r}", suggested(name, RECIPES, f"known are {', '.join(RECIPES)}"))
