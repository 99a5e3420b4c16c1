"""Data sets as numpy arrays or lazily read folders, the same for both frameworks.

| `--data` | what |
|---|---|
| `digits` | scikit-learn's handwritten digits, 16x16, in the package itself: nothing to download |
| a folder with `train/` and `val/` (or `test/`) | ImageFolder: one folder per class |
| a folder with `images/` and `meta/train.txt` | Food-101 as it is unpacked |
| a folder with `data_batch_1` ... `test_batch` | CIFAR-10, its Python version, as it is unpacked |
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
_STD: Final = np.array([0.229, 0.224, 0.225], np.float32)
_RESIZE, _CROP = 256, 224
_HELD_OUT: Final = 597  # of 1797 digits
_CANVAS, _CELLS, _DIGIT = 32, 4, 16
_IMAGES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class Split:
    """Half of a data set: `images` float32 [N,C,H,W] and `labels`, or files that are read batch by batch."""

    labels: Array
    images: Array | None = None
    files: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
        """(images, labels) in batches of `size`; shuffled where `rng` is given, the last incomplete one left out."""
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        end = len(self) if rng is None or len(self) < size else len(self) - len(self) % size
        for start in range(0, end, size):
            chosen = order[start : start + size]
            yield self.take(chosen), self.labels[chosen]

    def take(self, chosen: Array) -> Array:
        """The images of these indices, float32 [N,C,H,W]."""
        if self.images is not None:
            return self.images[chosen]
        return np.stack([read_image(self.files[i]) for i in chosen])


@dataclass(frozen=True)
class Data:
    """A data set: `classes` names them; `task` is "classify", "segment" or "detect"."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    task: str = "classify"


def load(name: str, task: str = "classify", limit: int = 0) -> Data:
    """The data set `name` (see the module's table) for a task; `limit` keeps only so many training images.

    Raises:
        SystemExit: where there is no such data set, or it cannot serve the task.
    """
    if name == "digits":
        data = _digits(task)
    elif task != "classify":
        raise SystemExit(f"only --data digits has what the task {task!r} needs")
    else:
        data = _folder(Path(name))
    return Data(_first(data.train, limit), data.test, data.classes, task) if limit else data


def _first(split: Split, count: int) -> Split:
    images = None if split.images is None else split.images[:count]
    return Split(split.labels[:count], images, split.files[:count])


# -- digits ---------------------------------------------------------------------------------------------------------
def _digits(task: str) -> Data:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = np.asarray(found.images, np.float32) / 16
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    right = np.roll(images, 1, axis=2)
    images = (2 * images + right + np.roll(right, 1, axis=1)) / 4  # smooth the steps
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order, None], np.asarray(found.target, np.int64)[order]
    classes = tuple(str(i) for i in range(10))
    if task == "segment":
        noise = np.random.default_rng(1).normal(0, 0.25, images.shape).astype(np.float32)
        images, labels = np.clip(images + noise, 0, 1), (images[:, 0] > 0.4).astype(np.int64)
    elif task == "detect":
        images, labels = _scenes(images, labels)
    images = images * 2 - 1
    cut = len(images) - _HELD_OUT
    return Data(Split(labels[:cut], images[:cut]), Split(labels[cut:], images[cut:]), classes, task)


def _scenes(images: Array, digits: Array) -> tuple[Array, Array]:
    """Each digit somewhere on a larger canvas; labels are [class, x, y, width, height] in pixels."""
    rng = np.random.default_rng(2)
    scenes = rng.uniform(0, 0.2, (len(images), 1, _CANVAS, _CANVAS)).astype(np.float32)
    labels = np.zeros((len(images), 5), np.float32)
    for i, image in enumerate(images[:, 0]):
        x, y = rng.integers(0, _CANVAS - _DIGIT, 2)
        scenes[i, 0, y : y + _DIGIT, x : x + _DIGIT] += image * 0.8
        rows, columns = np.nonzero(image.max(1) > 0.2)[0], np.nonzero(image.max(0) > 0.2)[0]
        left, top = x + columns[0], y + rows[0]
        labels[i] = digits[i], left, top, columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return scenes, labels


def detection_targets(labels: Array) -> Array:
    """[N,5] labels -> [N,6,4,4]: objectness, center x and y in the cell, width and height of the canvas, class."""
    targets = np.zeros((len(labels), 6, _CELLS, _CELLS), np.float32)
    side = _CANVAS / _CELLS
    for i, (digit, left, top, width, height) in enumerate(labels):
        x, y = (left + width / 2) / side, (top + height / 2) / side
        column, row = int(x), int(y)
        targets[i, :, row, column] = 1, x - column, y - row, width / _CANVAS, height / _CANVAS, digit
    return targets


# -- folders --------------------------------------------------------------------------------------------------------
def _folder(path: Path) -> Data:
    if (path / "meta" / "train.txt").is_file():
        return _food101(path)
    if (path / "data_batch_1").is_file():
        return _cifar10(path)
    test = next((path / n for n in ("val", "test") if (path / n).is_dir()), None)
    if (path / "train").is_dir() and test is not None:
        classes = tuple(sorted(p.name for p in (path / "train").iterdir() if p.is_dir()))
        return Data(_image_folder(path / "train", classes), _image_folder(test, classes), classes)
    raise SystemExit(f"{path} is no data set that this sample knows: digits, ImageFolder, Food-101 or CIFAR-10")


def _image_folder(path: Path, classes: Sequence[str]) -> Split:
    files = [
        (p, i) for i, c in enumerate(classes) for p in sorted((path / c).rglob("*")) if p.suffix.lower() in _IMAGES
    ]
    return Split(np.array([i for _, i in files], np.int64), files=[p for p, _ in files])


def _food101(path: Path) -> Data:
    classes = tuple((path / "meta" / "classes.txt").read_text("utf-8").split())
    splits: list[Split] = []
    for name in ("train", "test"):
        lines = (path / "meta" / f"{name}.txt").read_text("utf-8").split()
        labels = np.array([classes.index(line.split("/")[0]) for line in lines], np.int64)
        splits.append(Split(labels, files=[path / "images" / f"{line}.jpg" for line in lines]))
    return Data(splits[0], splits[1], classes)


def _cifar10(path: Path) -> Data:
    def read(*names: str) -> Split:
        images: list[Array] = []
        labels: list[int] = []
        for name in names:
            with (path / name).open("rb") as stream:  # the data set's own format; only read what you downloaded
                batch: dict[bytes, Any] = pickle.load(stream, encoding="bytes")
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels += list(batch[b"labels"])
        whole = np.concatenate(images).astype(np.float32) / 255
        return Split(np.array(labels, np.int64), (whole - _MEAN[:, None, None]) / _STD[:, None, None])

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return Data(read(*(f"data_batch_{i}" for i in range(1, 6))), read("test_batch"), names)


def read_image(path: Path) -> Array:
    """An image file, its shorter side resized to 256, the middle 224x224, normalized: float32 [3,224,224]."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = _RESIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - _CROP) // 2, (image.height - _CROP) // 2
    pixels = np.asarray(image.crop((left, top, left + _CROP, top + _CROP)), np.float32) / 255
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))
