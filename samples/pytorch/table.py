"""The table of samples/README.md, measured: train every network, retrain it with every recipe, compile, compare.

    python samples/pytorch/table.py

Prints the table as Markdown. Ends with status 1 where INT8 is more than 0.1 point from fake-quantized (vit: 0.2), where
a multiply-accumulate is not integer without calibration data, or where the input or output of the network is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):  # run as a program: the repository's root is where imports start
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from samples.pytorch import qat_retrain, train

_PLAN: Final = {"resnet8": "all", "mobilenetv2": "all"} | dict.fromkeys(("kws", "vit", "unet", "yolo"), "default")
_LIMIT: Final = 0.1  # points between fake-quantized and INT8
_LIMITS: Final = {"vit": 0.2}  # its normalizations and softmax are float: an image may fall on the other side of a tie
_HEADER: Final = (
    "| model, recipe | float | fake-quantized | INT8 | integer multiply-accumulates |",
    "|---|---|---|---|---|",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--models", nargs="+", choices=[*_PLAN], default=[*_PLAN])
    command.add_argument("--train_epochs", default="5", metavar="N")
    command.add_argument("--qat_epochs", default="2", metavar="N")
    command.add_argument("--least", type=float, default=0.0, metavar="PERCENT", help="what INT8 must reach")
    command.add_argument("--output_dir", default="out", metavar="DIR")
    args = command.parse_args(arguments)
    rows = list(_HEADER)
    wrong: list[str] = []
    for model in args.models:
        common = ["--model", model, "--output_dir", args.output_dir]
        train.main([*common, "--max_epochs", args.train_epochs])
        qat_retrain.main([*common, "--max_epochs", args.qat_epochs, "--recipe", _PLAN[model]])
        scores = json.loads(Path(args.output_dir, f"QAT_{model}_scores.json").read_text("utf-8"))
        for name, score in scores.items():
            rows.append(_row(name, score))
            wrong += [f"{name}: {fault}" for fault in _faults(score, _LIMITS.get(model, _LIMIT), args.least)]
    console = Console(soft_wrap=True)
    console.print("\n".join(["", *rows, *wrong]), highlight=False, markup=False)
    return 1 if wrong else 0


def _row(name: str, score: dict[str, Any]) -> str:
    numbers = " | ".join(f"{score[kind]:.2f}" for kind in ("float", "fake_quantized", "int8"))
    return f"| {name} | {numbers} | {score['integer_share']:.1f} % |"


def _faults(score: dict[str, Any], limit: float, least: float) -> list[str]:
    found: list[str] = []
    if abs(score["int8"] - score["fake_quantized"]) > limit:
        found.append(f"INT8 is more than {limit} points from fake-quantized")
    if score["int8"] < least:
        found.append(f"INT8 does not reach {least} %")
    if score["integer_share"] < 100:
        found.append("not all multiply-accumulates are integer")
    if not all(dtype.startswith(("int", "uint")) for dtype in score["interface"]):
        found.append(f"the interface is {' -> '.join(score['interface'])}")
    return found


if __name__ == "__main__":
    sys.exit(main())
