"""samples/ on folders of images, in the three layouts that it reads; and what samples/README.md says of its results."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra `samples`)")

from samples.common.data import load, read_image  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("apple", "bread")


def picture(path: Path, kind: int, seed: int) -> None:
    """A photograph of a class: red or blue, wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 80, (60, 90, 3), np.uint8)
    pixels[..., 2 * kind] += 150
    Image.fromarray(pixels).save(path)


def image_folder(root: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for kind, name in enumerate(CLASSES):
            for i in range(count):
                picture(root / split / name / f"{i}.png", kind, 10 * i + kind)


def food101(root: Path) -> None:
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "classes.txt").write_text("\n".join(CLASSES))
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        lines = [f"{name}/{number}" for name in CLASSES for number in numbers]
        (root / "meta" / f"{split}.txt").write_text("\n".join(lines))
    for kind, name in enumerate(CLASSES):
        for number in range(6):
            picture(root / "images" / name / f"{number}.jpg", kind, 10 * number + kind)


def cifar10(root: Path) -> None:
    root.mkdir()
    draw = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = [int(label) for label in draw.integers(0, 10, 8)]
        batch = {b"data": draw.integers(0, 256, (8, 3072), np.uint8), b"labels": labels}
        (root / name).write_bytes(pickle.dumps(batch))


LAYOUTS = {"ImageFolder": image_folder, "Food-101": food101, "CIFAR-10": cifar10}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "data")
    data = load(str(tmp_path / "data"))
    side = 32 if layout == "CIFAR-10" else 224
    images, labels = next(iter(data.train.batches(4, np.random.default_rng(0))))
    assert images.shape == (4, 3, side, side)
    assert images.dtype == np.float32
    assert -3 < images.min() < 0 < images.max() < 3
    assert len(data.train) == (40 if layout == "CIFAR-10" else 8)
    assert len(data.test) == (8 if layout == "CIFAR-10" else 4)
    assert data.classes[:2] == (("airplane", "automobile") if layout == "CIFAR-10" else CLASSES)
    if layout != "CIFAR-10":
        red = images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
        assert np.array_equal(red, labels == 0)  # every image has the label of its folder


def test_the_middle_of_an_image_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[16:-16, 144:-144] = 255  # the crop of 224x224
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = read_image(tmp_path / "wide.png")
    assert found.shape == (3, 224, 224)
    assert np.allclose(found, ((1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])[:, None, None])


def test_unknown_folders_and_tasks_are_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no data set that this sample knows"):
        load(str(tmp_path))
    image_folder(tmp_path / "data")
    with pytest.raises(SystemExit, match="only --data digits"):
        load(str(tmp_path / "data"), "detect")


def test_from_images_to_a_package(tmp_path: Path) -> None:
    """The two programs, on the guide's data set."""
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `torch`)")
    food101(tmp_path / "data")
    options = ["--data", "data", "--max_epochs", "1", "--batch_size", "4", "--output_dir", "out"]
    for program in ("train", "qat_retrain"):
        command = [sys.executable, str(ROOT / "samples" / "pytorch" / f"{program}.py"), *options]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    names = {"pretrained_resnet8.pth", "pretrained_resnet8.onnx", "QAT_resnet8_fp32.pth", "QAT_resnet8_fp32.onnx"}
    assert written >= names | {"QAT_resnet8_fp32.qatc"}
    (scores,) = json.loads((tmp_path / "out" / "QAT_resnet8_scores.json").read_text()).values()
    assert scores["integer_share"] == 100
    assert scores["interface"] == ["uint8", "uint8"]


def test_the_readmes_table_keeps_its_promise() -> None:
    """Each recipe on two networks; INT8 within 0.1 point of fake-quantized, all products in integers."""
    text = (ROOT / "samples" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+), ([\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| 100\.0 % \|$", text, re.MULTILINE)
    recipes = ("default", "drpai", "symmetric", "power-of-two", "lsq")
    assert {(network, recipe) for network, recipe, *_ in rows} >= {
        *((network, recipe) for network in ("resnet8", "mobilenetv2") for recipe in recipes),
        *((network, "default") for network in ("kws", "vit", "unet", "yolo")),
    }
    limits = {"vit": 0.2}  # one image of 597, see the page
    assert all(abs(float(int8) - float(fake)) <= limits.get(network, 0.1) for network, *_, fake, int8 in rows)
