"""Images as calibration data, prepared as the vendor's script does: resize 256, center crop, normalize."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from qatc.compiler.damaged import IMAGE, PICTURES, check_enlarged
from qatc.compiler.diagnostics import misused, printable
from qatc.compiler.quant import Array

_MEAN: Final = (0.485, 0.456, 0.406)  # of the training images, red first, as the vendor's script has them
_STD: Final = (0.229, 0.224, 0.225)
_MARGIN: Final = 256 / 224  # the shorter side before the crop, in sides of the crop
_IMAGES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's pixels, 0..1; gray ones are the mean of the three colors'."""
    if channels == len(_MEAN):
        return _MEAN, _STD
    return (float(np.asarray(_MEAN, np.float32).mean()),), (float(np.asarray(_STD, np.float32).mean()),)


def first_input(model: Path) -> tuple[str, list[int]] | None:
    """Name and shape of a model's first input; symbolic dimensions are 1.

    None where it has none or cannot be read: whoever compiles it says so.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if not model.is_file():  # a pipe would be waited for
            return None
        graph = onnx.ModelProto.FromString(model.read_bytes()).graph
    except (OSError, DecodeError):
        return None
    constants = {tensor.name for tensor in graph.initializer}
    for port in graph.input:
        if port.name not in constants:
            return port.name, [d.dim_value or 1 for d in port.type.tensor_type.shape.dim]
    return None


def has_arrays(folder: Path) -> bool:
    """Whether the folder holds arrays, which need no preparation."""
    try:
        return any(path.suffix in (".npy", ".npz") for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def frames_file(folder: Path, shape: list[int]) -> tuple[str, int]:
    """A temporary .npy file of float32 [N,C,H,W] made from the images in `folder`, and N.

    Raises:
        CompileError: QAT008 where there are none, one is damaged, or the input is no image; QAT010 without Pillow; exit
            code 2.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES) if folder.is_dir() else []
    if not files:
        raise misused(f"no images in {folder}", "give a folder of .jpg, .png, ... or of .npy files", "QAT008")
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise misused(f"an input of shape {shape} takes no images", "give arrays with --calibrate", "QAT008")
    try:
        pillow = import_module("PIL.Image")
    except ImportError as error:
        raise misused("reading images needs Pillow", "pip install pillow, or give .npy files", "QAT010") from error
    frames = np.stack([_frame(pillow, path, shape) for path in files])
    scratch = tempfile.mkdtemp(prefix="qatc-frames-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    place = Path(scratch) / "frames.npy"
    np.save(place, frames)
    return str(place), len(files)


def _frame(pillow: Any, path: Path, shape: list[int]) -> Array:
    _, channels, height, width = shape
    try:
        with pillow.open(path, formats=PICTURES) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
        scale = max(width * _MARGIN / image.width, height * _MARGIN / image.height)
        size = round(image.width * scale), round(image.height * scale)
        check_enlarged(image.size, size)
    except (*IMAGE, pillow.DecompressionBombError) as error:
        reason = printable(str(error) or type(error).__name__)
        message = f"cannot read the image {printable(str(path))}: {reason}"
        raise misused(message, "remove the file, or save it again as png", "QAT008") from error
    image = image.resize(size, pillow.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    pixels = pixels.reshape(height, width, channels)
    mean, std = (np.asarray(values, np.float32) for values in statistics(channels))
    return np.ascontiguousarray(((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1))
