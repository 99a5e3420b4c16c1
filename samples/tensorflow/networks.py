"""The networks of the TensorFlow samples (Keras 2, channels last), without a softmax at the end.

tfmot decides what they are made of: it has no quantizers for one-dimensional convolutions (`kws` is two-dimensional
here), none between batch norm and SiLU (`yolo` has ReLU6), and none for layer normalization and attention (no `vit`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tf_keras as keras

layers: Any = keras.layers
Shape = tuple[int, int, int]


def conv_bn(x: Any, filters: int, size: int = 3, stride: int = 1, act: str = "relu") -> Any:
    """Convolution, batch norm, and the activation if there is one."""
    x = layers.Conv2D(filters, size, stride, "same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU(6.0 if act == "relu6" else None)(x) if act else x


def depthwise_bn(x: Any, stride: int = 1, act: str = "relu") -> Any:
    """Depthwise convolution, batch norm, activation."""
    x = layers.BatchNormalization(momentum=0.9)(layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(x))
    return layers.ReLU(6.0 if act == "relu6" else None)(x)


def resnet8(shape: Shape, classes: int) -> Any:
    """ResNet-8 (MLPerf Tiny)."""
    given = layers.Input(shape)
    x = conv_bn(given, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = conv_bn(conv_bn(x, filters, 3, stride), filters, act="")
        shortcut = x if stride == 1 else conv_bn(x, filters, 1, stride, act="")
        x = layers.ReLU()(layers.Add()([inner, shortcut]))
    return keras.Model(given, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def mobilenetv2(shape: Shape, classes: int) -> Any:
    """MobileNetV2, narrow and short."""
    given = layers.Input(shape)
    x = conv_bn(given, 16, act="relu6")
    for filters, stride, factor in ((16, 1, 1), (24, 2, 4), (24, 1, 4), (32, 2, 4), (32, 1, 4)):
        inner = conv_bn(x, x.shape[-1] * factor, 1, act="relu6")
        inner = conv_bn(depthwise_bn(inner, stride, "relu6"), filters, 1, act="")
        x = layers.Add()([inner, x]) if stride == 1 and x.shape[-1] == filters else inner
    x = conv_bn(x, 96, 1, act="relu6")
    return keras.Model(given, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def kws(shape: Shape, classes: int) -> Any:
    """A keyword spotter's separable convolutions."""
    given = layers.Input(shape)
    x = conv_bn(given, 48, 5, 2)
    for _ in range(3):
        x = conv_bn(depthwise_bn(x), 48, 1)
    return keras.Model(given, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def unet(shape: Shape, classes: int) -> Any:
    """Two levels down and up again; two classes of pixels."""
    given = layers.Input(shape)
    first = conv_bn(given, 8)
    second = conv_bn(layers.MaxPooling2D()(first), 16)
    bottom = conv_bn(layers.MaxPooling2D()(second), 32)
    x = conv_bn(layers.Concatenate()([layers.UpSampling2D()(bottom), second]), 16)
    x = conv_bn(layers.Concatenate()([layers.UpSampling2D()(x), first]), 8)
    return keras.Model(given, layers.Conv2D(2, 1)(x))


def yolo(shape: Shape, classes: int) -> Any:
    """One box a cell: [N,4,4,15], objectness, x, y, width, height as logits, and ten class scores."""
    given = layers.Input(shape)
    x = conv_bn(conv_bn(conv_bn(given, 16, act="relu6"), 32, 3, 2, "relu6"), 48, 3, 2, "relu6")
    x = layers.Concatenate()([conv_bn(x, 32, 3, act="relu6"), conv_bn(x, 32, 1, act="relu6")])
    return keras.Model(given, layers.Conv2D(5 + classes, 1)(conv_bn(x, 64, 3, 2, "relu6")))


def resnet50(shape: Shape, classes: int) -> Any:
    """ResNet-50 with the head of the guide, but for its softmax."""
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape)
    x = layers.Dense(1024, activation="relu")(layers.GlobalAveragePooling2D()(base.output))
    return keras.Model(base.input, layers.Dense(classes)(x))


@dataclass(frozen=True)
class Entry:
    """A network: `make(shape, classes)`, and what it is for."""

    make: Callable[[Shape, int], Any]
    task: str = "classify"


NETWORKS: Final = {
    "resnet8": Entry(resnet8),
    "resnet50": Entry(resnet50),
    "mobilenetv2": Entry(mobilenetv2),
    "kws": Entry(kws),
    "unet": Entry(unet, "segment"),
    "yolo": Entry(yolo, "detect"),
}
MISSING: Final = {"vit": "tfmot has no quantizers for layer normalization and attention; samples/pytorch has them"}


def entry_of(name: str) -> Entry:
    """The network `name`. SystemExit with the reason where there is none."""
    if name in NETWORKS:
        return NETWORKS[name]
    reason = f" ({MISSING[name]})" if name in MISSING else ""
    raise SystemExit(f"no model {name!r} in TensorFlow{reason}: one of {', '.join(NETWORKS)}")
