"""The networks of the samples: small ones for the digits, ResNet-50 for 224x224 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias and batch norm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, stride=stride)
        self.second = conv_bn(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet8(nn.Module):
    """ResNet-8 (MLPerf Tiny), a third of its width."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(channels, 16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        return self.fc(self.pool(self.blocks(torch.relu(self.stem(x)))).flatten(1))


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.narrow = conv_bn(inputs, width, 1)
        self.middle = conv_bn(width, width, 3, stride)
        self.wide = conv_bn(width, 4 * width, 1)
        self.shortcut = nn.Identity() if inputs == 4 * width else conv_bn(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        inner = torch.relu(self.middle(torch.relu(self.narrow(x))))
        return torch.relu(self.wide(inner) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 for images of 224x224."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(channels, 64, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        inputs = 64
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for i in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if i == 0 and width > 64 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        x = self.pool(torch.relu(self.stem(x)))
        return self.fc(self.average(self.blocks(x)).flatten(1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, depthwise, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        width = inputs * factor
        self.widen = conv_bn(inputs, width, 1)
        self.depthwise = conv_bn(width, width, 3, stride, groups=width)
        self.narrow = conv_bn(width, outputs, 1)
        self.act = nn.ReLU6()
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        result = self.narrow(self.act(self.depthwise(self.act(self.widen(x)))))
        return result + x if self.adds else result


class MobileNetV2(nn.Module):
    """MobileNetV2, narrow and short."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(channels, 16)
        plan = ((16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 32, 2, 4), (32, 32, 1, 4))
        self.blocks = nn.Sequential(*(InvertedResidual(*p) for p in plan))
        self.last = conv_bn(32, 96, 1)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(96, classes))

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        x = self.act(self.last(self.blocks(self.act(self.stem(x)))))
        return self.fc(self.pool(x).flatten(1))


class Kws(nn.Module):
    """A keyword spotter's one-dimensional separable convolutions: rows are frequencies, columns are time."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv1d(16 * channels, 48, 5, padding=2, bias=False),
            nn.BatchNorm1d(48),
            nn.ReLU(),
        ]
        for _ in range(3):
            layers += [nn.Conv1d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm1d(48), nn.ReLU()]
            layers += [nn.Conv1d(48, 48, 1, bias=False), nn.BatchNorm1d(48), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        return self.fc(self.pool(self.layers(x.flatten(1, 2))).flatten(1))


class Attention(nn.Module):
    """A transformer's block: attention and a small perceptron, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.grow, self.act, self.shrink = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        y = self.norm(x)
        q, k, v = (self.split(layer(y)) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(2, 3) * self.size**-0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.shrink(self.act(self.grow(self.norm2(x))))

    def split(self, x: Tensor) -> Tensor:
        """[N,tokens,width] -> [N,heads,tokens,size]."""
        return x.unflatten(2, (self.heads, self.size)).transpose(1, 2)


class ViT(nn.Module):
    """A vision transformer on patches of 4x4."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 32, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        self.blocks = nn.Sequential(Attention(32, 4), Attention(32, 4))
        self.norm = nn.LayerNorm(32)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.blocks(x)).mean(1))


class UNet(nn.Module):
    """Two levels down and up again, with concatenated shortcuts; [N,2,H,W] of background and stroke."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second, self.bottom = conv_bn(channels, 8), conv_bn(8, 16), conv_bn(16, 32)
        self.up_second, self.up_first = conv_bn(48, 16), conv_bn(24, 8)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(self.pool(first)))
        bottom = torch.relu(self.bottom(self.pool(second)))
        x = torch.relu(self.up_second(torch.cat([self.grow(bottom), second], 1)))
        return self.head(torch.relu(self.up_first(torch.cat([self.grow(x), first], 1))))


class Yolo(nn.Module):
    """One box a cell: [N,15,4,4] of objectness, x, y, width, height (0 to 1) and ten class scores."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(channels, 16), conv_bn(16, 32, stride=2), conv_bn(32, 48, stride=2)])
        self.left, self.right = conv_bn(48, 32, 3), conv_bn(48, 32, 1)
        self.down = conv_bn(64, 64, stride=2)
        self.act = nn.SiLU()
        self.box, self.cls = nn.Conv2d(64, 5, 1), nn.Conv2d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The result for `x`, batch first."""
        for stage in self.stages:
            x = self.act(stage(x))
        x = torch.cat([self.act(self.left(x)), self.act(self.right(x))], 1)
        x = self.act(self.down(x))
        return torch.cat([torch.sigmoid(self.box(x)), self.cls(x)], 1)


@dataclass(frozen=True)
class Entry:
    """A network: `make(channels, classes)`, what it is for, and whether Adam trains it (transformers want that)."""

    make: Callable[[int, int], nn.Module]
    task: str = "classify"
    adam: bool = False


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Take the weights of a state dict whose layers come in the same order, such as torchvision's resnet50.

    A tensor of another shape (the last layer, for other classes) keeps what it has; their names are returned.
    """
    saved: dict[str, Tensor] = torch.load(path, weights_only=True)
    own = model.state_dict()
    if len(saved) != len(own):
        raise SystemExit(f"{path} has {len(saved)} tensors, the network {len(own)}: these are not the same layers")
    pairs = list(zip(own.items(), saved.values(), strict=True))
    left = [name for (name, value), given in pairs if value.shape != given.shape]
    if len(left) > 2:
        raise SystemExit(f"{path} does not fit: {left[0]} and {len(left) - 1} others have another shape")
    model.load_state_dict({name: value if name in left else given for (name, value), given in pairs})
    return left


NETWORKS: Final = {
    "resnet8": Entry(ResNet8),
    "resnet50": Entry(ResNet50),
    "mobilenetv2": Entry(MobileNetV2),
    "kws": Entry(Kws),
    "vit": Entry(ViT, adam=True),
    "unet": Entry(UNet, "segment"),
    "yolo": Entry(Yolo, "detect"),
}
