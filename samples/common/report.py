"""Compile an exported model with qatc, measure it, and print what the training, its export and the package score."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qatc import compile_model
from samples.common.data import Data
from samples.common.scoring import Predict, accuracy, package_predict


@dataclasses.dataclass(frozen=True)
class Scores:
    """Percent right of the float network, the fake-quantized one, and the INT8 package."""

    float: float
    fake_quantized: float
    int8: float
    integer_share: float
    interface: tuple[str, ...]


def parser(description: str, *, learning_rate: float, max_epochs: int) -> argparse.ArgumentParser:
    """The command line that all four programs share."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("-lr", "--learning_rate", type=float, default=learning_rate, help="of the optimizer")
    result.add_argument("--max_epochs", type=int, default=max_epochs, help="the best of them is kept")
    result.add_argument("--data", default="digits", help="digits, or a folder: ImageFolder, Food-101, CIFAR-10")
    result.add_argument("--model", default="resnet8", help="the network; resnet50 is for 224x224 images")
    result.add_argument("--batch_size", type=int, default=32)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--output_dir", type=Path, default=Path("out"), help="where checkpoints and ONNX files go")
    result.add_argument("--limit", type=int, default=0, help="use only so many training images (0: all)")
    return result


def compile_and_score(
    model: Path,
    data: Data,
    *,
    dialect: str,
    before: float,
    trained: float,
    io: str = "integer",
    target: str = "onnx",
    adapt: Callable[[Predict], Predict] = lambda predict: predict,
) -> Scores:
    """Compile `model` to a package beside it and measure that on the held-out set; `adapt` gives it our layout."""
    package = model.with_suffix(".qatc")
    result = compile_model(model, qat=True, dialect=dialect, io=io, target=target, output=package)
    interface = tuple(port.dtype for port in (*result.inputs, *result.outputs))
    score = accuracy(adapt(package_predict(package)), data)
    return Scores(before, trained, score, 100 * result.coverage.share, interface)


def show(rows: Sequence[tuple[str, Scores]], path: Path | None = None) -> None:
    """Print the scores side by side; write them as JSON too where `path` is given."""
    table = Table(title="accuracy on the held-out set, in percent")
    for name in ("model", "float", "fake-quantized", "INT8", "integer MACs", "interface"):
        table.add_column(name, justify="left" if name in ("model", "interface") else "right")
    for name, s in rows:
        numbers = (f"{n:.2f}" for n in (s.float, s.fake_quantized, s.int8))
        table.add_row(name, *numbers, f"{s.integer_share:.1f} %", " -> ".join(s.interface))
    Console(width=100).print(table)
    if path is not None:
        content = {name: dataclasses.asdict(s) for name, s in rows}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
