"""Retrain with fake quantization, export, compile: writes QAT_<model>_fp32.pth, .onnx and the package .qatc.

    python samples/pytorch/qat_retrain.py --model resnet8 --recipe default

Starts from pretrained_<model>.pth in the output folder. The last third of the epochs runs with frozen ranges and
batch-norm statistics, and the best of those is kept. `--recipe all` retrains with each recipe and prints one table.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a program: the repository's root is where imports start
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import nn

from qatc.compiler.target import load_target
from qatc.frontends.torch_qat import RECIPES, export, freeze, prepare_qat, stateless_copy
from samples.common.data import Data, load
from samples.common.report import Scores, compile_and_score, parser, show
from samples.common.scoring import accuracy
from samples.pytorch.networks import NETWORKS
from samples.pytorch.training import fit, predictor, seed_everything


def main(arguments: Sequence[str] | None = None) -> None:
    """Retrain, keep the best epoch, export, compile, measure."""
    command = parser(str(__doc__), learning_rate=0.002, max_epochs=3)
    command.add_argument("--recipe", default="default", choices=[*RECIPES, "all"], help="which fake quantizers")
    command.add_argument("--target", default="onnx", help="what to compile for, see `qatc targets`")
    command.add_argument("--pretrained", type=Path, help="another checkpoint of train.py")
    args = command.parse_args(arguments)
    entry = NETWORKS.get(args.model)
    if entry is None:
        raise SystemExit(f"unknown model {args.model!r}: one of {', '.join(NETWORKS)}")
    checkpoint = args.pretrained or args.output_dir / f"pretrained_{args.model}.pth"
    if not checkpoint.is_file():
        raise SystemExit(f"{checkpoint} is missing: run train.py --model {args.model} first")
    data = load(args.data, entry.task, args.limit)
    saved = torch.load(checkpoint, weights_only=True)
    example = torch.from_numpy(data.train.take(np.arange(1)))
    model = entry.make(example.shape[1], len(data.classes))
    model.load_state_dict(saved["state"])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    recipes = list(RECIPES) if args.recipe == "all" else [args.recipe]
    names = {"default": load_target(args.target).recipe}  # a target may bring its own
    rows = [(f"{args.model}, {names.get(r, r)}", retrain(model, data, args, r, saved["accuracy"])) for r in recipes]
    show(rows, args.output_dir / f"QAT_{args.model}_scores.json")


def retrain(model: nn.Module, data: Data, args: Namespace, recipe: str, before: float) -> Scores:
    """One recipe, from the float network to the scores of its package."""
    rng = seed_everything(args.seed)
    several = args.recipe == "all"
    examples = torch.from_numpy(data.train.take(np.arange(min(args.batch_size, len(data.train)))))
    network = prepare_qat(model, examples, target=args.target, recipe=recipe)
    frozen = max(args.max_epochs // 3, min(1, args.max_epochs - 1))  # a single epoch is needed to find the ranges
    from_here = args.max_epochs - frozen

    def settle(epoch: int) -> None:
        if epoch >= from_here:
            freeze(network)

    adam = NETWORKS[args.model].adam
    last = min(from_here, args.max_epochs - 1)
    fit(network, data, args, rng, name=recipe, adam=adam, before_epoch=settle, keep=lambda epoch: epoch >= last)
    freeze(network)
    # measured on what is exported, whose biases are the integers of the deployed network
    best = accuracy(predictor(stateless_copy(network.eval())), data)
    stem = args.output_dir / (f"QAT_{args.model}_{recipe}_fp32" if several else f"QAT_{args.model}_fp32")
    torch.save({"state": network.state_dict(), "recipe": recipe, "accuracy": best}, f"{stem}.pth")
    path = export(network.eval(), f"{stem}.onnx", examples[:1], opset=13)
    return compile_and_score(path, data, dialect="pytorch", before=before, trained=best, target=args.target)


if __name__ == "__main__":
    main()
