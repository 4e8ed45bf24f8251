"""What a card says of the extractor, the dataset and the code; and the metrics that it holds."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from distgan import __version__
from distgan.data.shardset import ShardSet
from distgan.environment import git_commit
from distgan.errors import UsageError
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.scores import METRICS


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """What a card says of the extractor."""
    about = {
        "name": extractor.name,
        "sha256": extractor.sha256,
        "resize": extractor.resize,
        "accuracy": extractor.accuracy,
        "trained_on": extractor.trained_on,
    }
    return about if extractor.architecture is None else about | {"architecture": extractor.architecture}


def describe_dataset(dataset: ShardSet) -> dict[str, Any]:
    """What a card says of the dataset of the real images, beside its path."""
    return {
        "manifest": dataset.digest,
        "spec": str(dataset.spec.unconditional()),
        "resize": (dataset.manifest.options or {}).get("resize"),
        "kl_to": "uniform" if is_stacked(dataset) else "the dataset's labels",
    }


def code_versions() -> dict[str, Any]:
    """Of distgan and of the libraries that the numbers depend on."""
    fidelity = importlib.metadata.version("torch-fidelity")
    return {"version": __version__, "commit": git_commit(), "torch": torch.__version__, "torch_fidelity": fidelity}


def choose_metrics(metrics: Sequence[str], extractor: Extractor) -> list[str]:
    """The metrics to compute, in the order of METRICS. Raises UsageError."""
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"metrics: unknown metric {name!r}; choose from {', '.join(METRICS)}")
        if METRICS[name].needs not in extractor.gives:
            need = {"logits": "classes", "labels": "a classifier of the dataset's own labels"}[METRICS[name].needs]
            raise UsageError(f"metrics: {name} needs {need}, which the extractor {extractor.name} does not give")
    chosen = set(metrics) or {"fid", "precision_recall", *(["modes"] if "labels" in extractor.gives else [])}
    return [name for name in METRICS if name in chosen]
