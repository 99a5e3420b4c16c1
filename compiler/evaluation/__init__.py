"""Evaluation: how well a package does on a data set, beside the simulation that was trained and the reference.

    evaluate_package("model.qatc", "data.npz", ["top1", "mse"]).scores

docs/evaluation.md describes the metrics and data sets that are built in, and how to bring others: `Metric`,
`TaskMetric`, `mean_metric` and `Loader` in a Python file or an installed package.
"""

from __future__ import annotations

from qatc.compiler.evaluation.evaluate import evaluate_package
from qatc.compiler.evaluation.metrics import mean_metric
from qatc.compiler.evaluation.values import Dataset, Item, Loader, Metric, Ports, Scorer, TaskMetric, TaskScorer

__all__ = [
    "Dataset",
    "Item",
    "Loader",
    "Metric",
    "Ports",
    "Scorer",
    "TaskMetric",
    "TaskScorer",
    "evaluate_package",
    "mean_metric",
]
