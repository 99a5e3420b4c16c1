"""A folder of images: `DIR/<class>/<file>`, or images without classes right in it. Needs Pillow (qatc[images]).

Each image is decoded, brought to the size of the model's input and scaled:

    value = (channel / scale - mean) / std        channel from 0 to 255, float32

An integer input gets the channels as they are. The order of axes is that of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from qatc.compiler.damaged import IMAGE, MOST_PIXELS, PICTURES, check_enlarged
from qatc.compiler.diagnostics import CompileError, fail, misused, printable
from qatc.compiler.evaluation.values import Dataset, Item, Loader, Ports
from qatc.compiler.quant import Array
from qatc.compiler.result import Port

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_FILTERS: Final = ("nearest", "bilinear", "bicubic", "lanczos")
_CLASSES: Final = "classes.txt"
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_OPTIONS: Final = {
    "layout": "nchw or nhwc; default: the input's, as far as the package knows it, else where 1, 3 or 4 channels lie",
    "scale": "what channels are divided by; default 255 for inputs of floats, 1 for integers",
    "mean": "what is subtracted then, one number or one a channel; default 0",
    "std": "what is divided by then, one number or one a channel; default 1",
    "resize": "length of the shorter side before the middle is cut out; default: that of the input",
    "fit": "crop: keep the proportions and cut the middle out (default); stretch: do not keep them",
    "filter": f"how pixels are interpolated: {', '.join(_FILTERS)}; default bilinear",
    "channels": "rgb (default) or bgr",
}


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input: see the module; `height` and `width` in pixels, `short` the shorter side first."""

    height: int
    width: int
    channels: int
    channels_last: bool
    dtype: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    short: int
    stretch: bool
    filter: str
    reverse: bool

    def of(self, image: Image) -> Array:
        """The input of one image, without the batch axis."""
        pixels = np.asarray(self._sized(image.convert(_MODES[self.channels])), np.uint8)
        pixels = pixels.reshape(self.height, self.width, self.channels)
        if self.reverse:
            pixels = pixels[..., ::-1]
        with np.errstate(all="ignore"):  # what is not finite is refused as data of arrays are
            real = pixels / np.float32(self.scale)
            real = (real - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        if np.dtype(self.dtype).kind in "iu":
            info = np.iinfo(self.dtype)
            real = np.clip(np.rint(real), info.min, info.max)
        value: Array = real if self.channels_last else np.moveaxis(real, -1, 0)
        return np.ascontiguousarray(value, self.dtype)

    def _sized(self, image: Image) -> Image:
        how = getattr(_pillow().Resampling, self.filter.upper())
        if self.stretch:
            return image.resize((self.width, self.height), how)
        factor = max(self.short / min(image.size), self.height / image.height, self.width / image.width)
        size = max(self.width, round(image.width * factor)), max(self.height, round(image.height * factor))
        check_enlarged(image.size, size)
        image = image if size == image.size else image.resize(size, how)
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))


@dataclass(frozen=True)
class ImageData:
    """Images and their classes, decoded one at a time."""

    files: tuple[tuple[Path, int | None], ...]
    input: str
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Item]:
        pillow = _pillow()
        for path, label in self.files:
            try:
                with pillow.open(path, formats=PICTURES) as image:
                    if image.mode.startswith(("I", "F")):  # Pillow would cut them off at 255
                        raise ValueError("its pixels are integers or floats of more than 8 bits")
                    value = self.preparation.of(image)
            except (*IMAGE, pillow.DecompressionBombError) as error:
                reason = printable(str(error) or type(error).__name__)
                hint = "remove the file, or save it again as png with 8 bits a channel"
                raise fail("QAT008", f"cannot read the image {printable(str(path))}: {reason}", hint=hint) from error
            yield Item({self.input: value}, label)


def _pillow() -> ModuleType:
    try:
        import PIL.Image
    except ImportError as error:
        hint = "pip install pillow, or the extra: pip install 'qatc[images]'"
        raise fail("QAT010", "folders of images are read with Pillow, which is missing", hint=hint) from error
    return PIL.Image


# -- opening --------------------------------------------------------------------------------------------------------
def _open(path: Path, ports: Ports, options: Mapping[str, str]) -> Dataset:
    _pillow()
    if len(ports.inputs) != 1:
        raise fail("QAT008", f"images are for models of one input; this one has {len(ports.inputs)}", hint="use .npz")
    port = ports.inputs[0]
    return ImageData(tuple(_files(path)), port.name, _preparation(port, ports.layouts.get(port.name), options))


def _files(path: Path) -> Iterator[tuple[Path, int | None]]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and _images(entry))
    beside = _images(path)
    if not folders:
        yield from ((file, None) for file in beside)
        return
    if beside:
        message = f"{printable(beside[0].name)} lies beside the folders of classes"
        raise fail("QAT008", message, hint="move it into the folder of its class, or out of the data")
    numbers = _numbers(path, [folder.name for folder in folders])
    for folder in folders:
        yield from ((file, numbers[folder.name]) for file in _images(folder))


def _numbers(path: Path, names: Sequence[str]) -> dict[str, int]:
    """The class of each folder: its line in classes.txt; else its name where all are numbers; else its place."""
    listing = path / _CLASSES
    if listing.is_file():
        lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        listed = {name.strip(): number for number, name in reversed(list(enumerate(lines))) if name.strip()}
        missing = [name for name in names if name not in listed]
        if missing:
            message = f"{_CLASSES} does not list the folder {printable(missing[0])}"
            raise fail("QAT008", message, hint="write one folder's name a line, in the order of the model's classes")
        return {name: listed[name] for name in names}
    if all(name.isascii() and name.isdecimal() and len(name) < 7 for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(names)}


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())


def _accepts(path: Path) -> bool:
    return path.is_dir() and bool(_images(path) or any(_images(entry) for entry in path.iterdir() if entry.is_dir()))


# -- options --------------------------------------------------------------------------------------------------------
def _preparation(port: Port, layout: str | None, options: Mapping[str, str]) -> Preparation:
    height, width, channels, last = _size(port, options.get("layout", layout or "").lower())
    fit, how = options.get("fit", "crop"), options.get("filter", "bilinear")
    order = options.get("channels", "rgb")
    for key, value, choices in (("fit", fit, ("crop", "stretch")), ("filter", how, _FILTERS),
                                ("channels", order, ("rgb", "bgr"))):  # fmt: skip
        if value not in choices:
            raise _wrong(key, value, f"one of {', '.join(choices)}")
    is_integer = np.dtype(port.dtype).kind in "iu"
    short = _numbers_of("resize", options.get("resize", "1"), 1)[0]  # the shorter side of the input is the least
    if not short.is_integer() or not 1 <= short <= MOST_PIXELS:
        raise _wrong("resize", options["resize"], "a whole number of pixels")
    scale = _numbers_of("scale", options.get("scale", "1" if is_integer else "255"), 1)[0]
    std = _numbers_of("std", options.get("std", "1"), channels)
    if not scale or not all(std):
        raise _wrong("scale" if not scale else "std", "0", "another number")
    return Preparation(
        height, width, channels, last, port.dtype, scale, _numbers_of("mean", options.get("mean", "0"), channels), std,
        int(short), fit == "stretch", how, order == "bgr",
    )  # fmt: skip


def _size(port: Port, layout: str) -> tuple[int, int, int, bool]:
    """Height, width, channels of an input, and whether its channels come last."""
    shape = port.shape or ()
    dims = [d if isinstance(d, int) else 0 for d in shape]
    if layout not in ("", "nchw", "nhwc"):
        raise _wrong("layout", layout, "nchw or nhwc")
    if len(dims) == 4:
        last = layout == "nhwc" or (not layout and dims[1] not in _MODES and dims[3] in _MODES)
        height, width, channels = (dims[1], dims[2], dims[3]) if last else (dims[2], dims[3], dims[1])
        if height > 0 and width > 0 and channels in _MODES:
            return height, width, channels, last
    shown = "of unknown shape" if port.shape is None else str(["?" if d is None else d for d in port.shape])
    raise fail(
        "QAT008",
        f"the input {printable(port.name)} {shown} is no image of fixed size with 1, 3 or 4 channels",
        hint="pin its size when compiling (-s), or prepare the data as .npz",
    )


def _numbers_of(key: str, content: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in content.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, count) or not all(math.isfinite(value) for value in found):
        raise _wrong(key, content, f"one number, or {count} with commas between" if count > 1 else "a number")
    return found


def _wrong(key: str, value: str, wanted: str) -> CompileError:
    message = f"the data option {key} is {printable(value)!r}, not {wanted}"
    return misused(message, f"{key}: {_OPTIONS[key]}")


IMAGES: Final = Loader(
    "images", "images in a folder a class, or right in the folder (Pillow)", _accepts, _open, _OPTIONS
)
