"""The training loop that both programs share; arrays are channels first outside, channels last inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import tensorflow as tf
from samples.common.data import Array, Data, detection_targets
from samples.common.scoring import Predict, accuracy
from samples.tensorflow.networks import keras

_BOX = 5  # objectness, x, y, width, height


def seed_everything(seed: int) -> np.random.Generator:
    """Equal seeds, equal runs."""
    keras.utils.set_random_seed(seed)
    return np.random.default_rng(seed)


def channels_last(images: Array) -> Array:
    """[N,C,H,W] -> [N,H,W,C]."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def channels_first(output: Array) -> Array:
    """[N,H,W,C] -> [N,C,H,W]; other ranks as they are."""
    return output.transpose(0, 3, 1, 2) if output.ndim == 4 else output


def adapted(predict: Predict, task: str) -> Predict:
    """A network of channels last as one of channels first; boxes, which come as logits, between 0 and 1."""

    def run(images: Array) -> Array:
        output = channels_first(np.asarray(predict(channels_last(images)), np.float32))
        if task == "detect":
            output = np.concatenate([1 / (1 + np.exp(-output[:, :_BOX])), output[:, _BOX:]], 1)
        return output

    return run


def predictor(model: Any, task: str) -> Predict:
    """The network in evaluation mode as a function of arrays."""
    run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return adapted(lambda images: run(images).numpy(), task)


def save(model: Any, path: Path) -> None:
    """Write an `.h5`, without Keras's advice to use another format: it is the guide's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        model.save(path, include_optimizer=False)


def loss_of(output: Any, labels: Any, task: str) -> Any:
    """Cross entropy; for boxes also their error where there is one. `labels` are `detection_targets` then."""
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if task != "detect":
        return classes(labels, output)
    target = tf.transpose(labels, (0, 2, 3, 1))  # objectness, x, y, width, height, class
    here = target[..., 0] > 0
    box, kind = output[..., :_BOX], output[..., _BOX:]
    where = tf.sigmoid(tf.boolean_mask(box, here))[:, 1:]
    errors = tf.reduce_mean(tf.square(where - tf.boolean_mask(target, here)[:, 1:_BOX]))
    found = tf.nn.sigmoid_cross_entropy_with_logits(target[..., 0], box[..., 0])
    named = classes(tf.boolean_mask(target, here)[:, _BOX], tf.boolean_mask(kind, here))
    return 4 * tf.reduce_mean(found) + 20 * errors + named


def fit(
    model: Any,
    data: Data,
    args: Any,
    rng: np.random.Generator,
    *,
    name: str,
    frozen_from: int = 1 << 30,
    keep: Callable[[int], bool] = lambda epoch: True,
) -> float:
    """Train in place, leave the best epoch's weights in `model`, return its accuracy in percent.

    From the epoch `frozen_from` on the network runs as in evaluation: batch-norm statistics and ranges stay, weights
    learn on. `keep` says which epochs may be the best one.
    """
    console = Console()
    steps = max(1, len(data.train) // args.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.max_epochs * steps)
    optimizer = keras.optimizers.legacy.SGD(rate, momentum=0.9, clipnorm=5.0)
    best, state = -1.0, model.get_weights()

    def step(images: Any, labels: Any, training: bool) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(model(images, training=training), labels, data.task)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    compiled = tf.function(step)
    for epoch in range(args.max_epochs):
        label = f"{name} {epoch + 1}/{args.max_epochs}"
        batches = data.train.batches(args.batch_size, rng)
        for images, labels in track(batches, label, total=steps, console=console, transient=True):
            wanted = detection_targets(labels) if data.task == "detect" else labels
            compiled(tf.constant(channels_last(images)), tf.constant(wanted), epoch < frozen_from)
        score = accuracy(predictor(model, data.task), data)
        console.print(f"{label}: {score:.2f} % right", highlight=False)
        if keep(epoch) and score > best:
            best, state = score, model.get_weights()
    model.set_weights(state)
    return best
