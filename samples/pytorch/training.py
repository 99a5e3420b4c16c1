"""The training loop that both programs share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from samples.common.data import Array, Data, detection_targets
from samples.common.scoring import Predict, accuracy


def seed_everything(seed: int) -> np.random.Generator:
    """Equal seeds, equal runs."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return np.random.default_rng(seed)


def predictor(model: nn.Module) -> Predict:
    """The network in evaluation mode as a function of arrays."""

    @torch.no_grad()
    def predict(images: Array) -> Array:
        return model.eval()(torch.from_numpy(images)).numpy()

    return predict


def loss_of(output: Tensor, labels: Array, task: str) -> Tensor:
    """Cross entropy; for boxes also their error where there is one."""
    if task != "detect":
        return F.cross_entropy(output, torch.from_numpy(labels))
    target = torch.from_numpy(detection_targets(labels))
    here = target[:, 0] > 0
    box = F.mse_loss(output[:, 1:5].movedim(1, -1)[here], target[:, 1:5].movedim(1, -1)[here])
    kind = F.cross_entropy(output[:, 5:].movedim(1, -1)[here], target[:, 5][here].long())
    return 4 * F.binary_cross_entropy(output[:, 0].clamp(1e-6, 1 - 1e-6), target[:, 0]) + 20 * box + kind


def fit(
    model: nn.Module,
    data: Data,
    args: Any,
    rng: np.random.Generator,
    *,
    name: str,
    adam: bool = False,
    before_epoch: Callable[[int], None] | None = None,
    keep: Callable[[int], bool] = lambda epoch: True,
) -> float:
    """Train in place, leave the best epoch's weights in `model`, return its accuracy in percent.

    With `adam` a tenth of the learning rate is used, which suits AdamW as the whole suits SGD.
    `before_epoch` is called with each epoch's number, from 0; `keep` says which epochs may be the best one.
    """
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate / 10)
    else:
        optimizer = torch.optim.SGD(model.parameters(), args.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_epochs)
    console = Console()
    best, state = -1.0, copy.deepcopy(model.state_dict())
    for epoch in range(args.max_epochs):
        model.train()
        if before_epoch is not None:
            before_epoch(epoch)
        steps = max(1, len(data.train) // args.batch_size)
        label = f"{name} {epoch + 1}/{args.max_epochs}"
        for images, labels in track(
            data.train.batches(args.batch_size, rng),
            label,
            total=steps,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            optimizer.zero_grad()
            loss = loss_of(model(torch.from_numpy(images)), labels, data.task)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        schedule.step()
        score = accuracy(predictor(model), data)
        console.print(f"{label}: {score:.2f} % right", highlight=False)
        if keep(epoch) and score > best:
            best, state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return best
