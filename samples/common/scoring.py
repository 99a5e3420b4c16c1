"""Accuracy, the same for the network in training and for the compiled one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from samples.common.data import Array, Data

Predict = Callable[[Array], Array]
_CANVAS, _IOU = 32, 0.5


def accuracy(predict: Predict, data: Data, batch_size: int = 64) -> float:
    """Percent of the held-out set that `predict` (float32 [N,C,H,W] -> the network's output) gets right.

    "classify" counts images, "segment" pixels, "detect" images whose surest box has the right class and at least half
    its area right (intersection over union).
    """
    right = total = 0
    score = {"classify": _classified, "segment": _segmented, "detect": _detected}[data.task]
    for images, labels in data.test.batches(batch_size):
        correct = score(np.asarray(predict(images)), labels)
        right, total = right + int(correct.sum()), total + correct.size
    return 100 * right / total


def _classified(output: Array, labels: Array) -> Array:
    return output.argmax(1) == labels


_segmented = _classified  # the same, pixel by pixel


def _detected(output: Array, labels: Array) -> Array:
    """[N,15,R,C]: objectness, x, y, width, height, ten classes."""
    count, _, rows, columns = output.shape
    flat = output.reshape(count, output.shape[1], -1)
    best = flat[:, 0].argmax(1)
    chosen = flat[np.arange(count), :, best]
    x = (best % columns + chosen[:, 1]) * _CANVAS / columns
    y = (best // columns + chosen[:, 2]) * _CANVAS / rows
    width, height = chosen[:, 3] * _CANVAS, chosen[:, 4] * _CANVAS
    found = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    true = np.stack([labels[:, 1], labels[:, 2], labels[:, 1] + labels[:, 3], labels[:, 2] + labels[:, 4]], 1)
    low, high = np.maximum(found[:, :2], true[:, :2]), np.minimum(found[:, 2:], true[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = width * height + labels[:, 3] * labels[:, 4] - common
    return (common / np.maximum(union, 1e-6) >= _IOU) & (chosen[:, 5:].argmax(1) == labels[:, 0])


def package_predict(package: Path) -> Predict:
    """The INT8 model of a package, through ONNX Runtime; float in, float out, whatever its interface is."""
    import json

    import onnxruntime as ort

    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    session = ort.InferenceSession(package / "model.onnx")
    (given,), (wanted,) = manifest["inputs"][:1], manifest["outputs"][:1]

    def predict(images: Array) -> Array:
        if given["dtype"] != "float32":
            q = given["params"]
            images = np.clip(np.rint(images / np.float32(q["scale"][0])) + q["zero_point"][0], q["qmin"], q["qmax"])
            images = images.astype(given["dtype"])
        output = np.asarray(session.run([wanted["name"]], {given["name"]: images})[0])
        if wanted["dtype"] != "float32":
            q = wanted["params"]
            output = (output.astype(np.float32) - q["zero_point"][0]) * np.float32(q["scale"][0])
        return output

    return predict
