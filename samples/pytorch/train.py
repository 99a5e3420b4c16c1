"""Train a float network: writes pretrained_<model>.pth and pretrained_<model>.onnx.

python samples/pytorch/train.py --model resnet8 --data digits
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a program: the repository's root is where imports start
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from rich.console import Console

from samples.common.data import load
from samples.common.report import parser
from samples.pytorch.networks import NETWORKS, load_weights
from samples.pytorch.training import fit, seed_everything


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, keep the best epoch, save and export it."""
    command = parser(str(__doc__), learning_rate=0.02, max_epochs=5)
    command.add_argument("--weights", type=Path, help="start from a state dict, such as torchvision's resnet50")
    args = command.parse_args(arguments)
    if args.model not in NETWORKS:
        raise SystemExit(f"unknown model {args.model!r}: one of {', '.join(NETWORKS)}")
    entry = NETWORKS[args.model]
    rng = seed_everything(args.seed)
    data = load(args.data, entry.task, args.limit)
    example = torch.from_numpy(data.train.take(np.arange(1)))
    model = entry.make(example.shape[1], len(data.classes))
    if args.weights is not None:
        left = load_weights(model, args.weights)
        Console().print(f"weights of {args.weights}" + (f", but for {', '.join(left)}" if left else ""))
    best = fit(model, data, args, rng, name="train", adam=entry.adam)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    stem = args.output_dir / f"pretrained_{args.model}"
    torch.save({"state": model.state_dict(), "classes": data.classes, "accuracy": best}, stem.with_suffix(".pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (example,), str(stem.with_suffix(".onnx")), opset_version=13, dynamo=False,
            input_names=["input"], output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )  # fmt: skip
    Console().print(f"float accuracy {best:.2f} %; wrote {stem}.pth and .onnx", highlight=False)


if __name__ == "__main__":
    main()
