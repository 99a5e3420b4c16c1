"""Retrain with tfmot's fake quantization, export, compile: writes QAT_<model>_fp32.h5, .onnx and the package .qatc.

    python samples/tensorflow/qat_retrain.py --model resnet8

Starts from pretrained_<model>.h5 in the output folder. The last third of the epochs runs with frozen ranges and
batch-norm statistics, and the best of those is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a program: the repository's root is where imports start
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qatc.frontends.tf_qat import export, load, prepare_qat
from samples.common.data import load as load_data
from samples.common.report import compile_and_score, parser, show
from samples.common.scoring import accuracy
from samples.tensorflow.networks import entry_of
from samples.tensorflow.training import adapted, fit, predictor, save, seed_everything


def main() -> None:
    """Retrain, keep the best epoch, export, compile, measure."""
    command = parser(str(__doc__), learning_rate=0.002, max_epochs=3)
    command.add_argument("--target", default="onnx", help="what to compile for, see `qatc targets`")
    command.add_argument("--pretrained", type=Path, help="another model of train.py")
    args = command.parse_args()
    entry = entry_of(args.model)
    saved = args.pretrained or args.output_dir / f"pretrained_{args.model}.h5"
    if not saved.is_file():
        raise SystemExit(f"{saved} is missing: run train.py --model {args.model} first")
    rng = seed_everything(args.seed)
    data = load_data(args.data, entry.task, args.limit)
    model = load(saved)
    before = accuracy(predictor(model, data.task), data)
    network = prepare_qat(model)
    frozen = max(1, args.max_epochs - max(1, args.max_epochs // 3))  # the first epoch finds the ranges
    first = min(frozen, args.max_epochs - 1)
    best = fit(network, data, args, rng, name="tfmot", frozen_from=frozen, keep=lambda epoch: epoch >= first)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    stem = args.output_dir / f"QAT_{args.model}_fp32"
    save(network, stem.with_suffix(".h5"))
    path = export(network, stem.with_suffix(".onnx"))
    scores = compile_and_score(
        path, data, dialect="tensorflow", before=before, trained=best, target=args.target,
        adapt=lambda predict: adapted(predict, data.task),
    )  # fmt: skip
    show([(f"{args.model}, tfmot", scores)], args.output_dir / f"QAT_{args.model}_scores.json")


if __name__ == "__main__":
    main()
