"""Train a float network: writes pretrained_<model>.h5 and pretrained_<model>.onnx.

python samples/tensorflow/train.py --model resnet8 --data digits
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a program: the repository's root is where imports start
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from rich.console import Console

from qatc.frontends.tf_qat import export
from samples.common.data import load
from samples.common.report import parser
from samples.tensorflow.networks import entry_of
from samples.tensorflow.training import channels_last, fit, save, seed_everything


def main() -> None:
    """Train, keep the best epoch, save and export it."""
    args = parser(str(__doc__), learning_rate=0.02, max_epochs=5).parse_args()
    entry = entry_of(args.model)
    rng = seed_everything(args.seed)
    data = load(args.data, entry.task, args.limit)
    shape = channels_last(data.train.take(np.arange(1))).shape[1:]
    model = entry.make(shape, len(data.classes))
    best = fit(model, data, args, rng, name="train")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    stem = args.output_dir / f"pretrained_{args.model}"
    save(model, stem.with_suffix(".h5"))
    export(model, f"{stem}.onnx")
    Console().print(f"float accuracy {best:.2f} %; wrote {stem}.h5 and .onnx", highlight=False)


if __name__ == "__main__":
    main()
