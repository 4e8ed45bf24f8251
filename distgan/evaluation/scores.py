"""The metrics on features and logits: distances of distributions, shares of images in balls, and those of classes."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.evaluation.extractor import Given
from distgan.evaluation.neighbours import compared
from distgan.evaluation.statistics import Statistics

Values = dict[str, float]
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
IS_SPLITS = 10
IS_SEED = 2020
"""Of the permutation before images are split, as in torch-fidelity."""
NEAREST_PR = 3
"""Neighbours of precision and recall, as in the paper."""
NEAREST_DC = 5
"""Neighbours of density and coverage, as in the paper."""
CONFIDENT = 0.9
"""An image is classified with confidence above this probability."""


class Reference(NamedTuple):
    """Real images."""

    statistics: Statistics
    frequencies: Tensor
    """float64 [classes], what the classes of generated images are compared with; empty without labels"""


def frechet_distance(generated: Statistics, reference: Reference) -> Values:
    """FID: the Frechet distance of two Gaussians fitted to the features (Heusel et al. 2017, eq. 6)."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    a, b = ({"mu": s.mean, "sigma": s.covariance} for s in (generated, reference.statistics))
    return {"fid": fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]}


def kernel_distance(generated: Statistics, reference: Reference) -> Values:
    """KID: squared MMD with a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401), mean and std of 100 subsets.

    Subsets are of 1,000 images, or as many as there are, of the first 10,000. About 0 for equal distributions, and
    may be negative.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    # in float64: a float32 product depends on the number of threads
    a = generated.rows.double()
    b = reference.statistics.rows.double()
    size = min(KID_SUBSET_SIZE, len(a), len(b))
    kid = kid_features_to_metric(a, b, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return {"kid": kid["kernel_inception_distance_mean"], "kid_std": kid["kernel_inception_distance_std"]}


def inception_score(generated: Statistics, reference: Reference) -> Values:
    """IS: exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, arXiv 1606.03498), mean and std of 10 splits.

    Images are split after torch-fidelity's permutation. A class whose probability is 0 in float64 adds nothing to a KL,
    where torch-fidelity's score is NaN.
    """
    assert generated.logits is not None
    logits = joint_logits(generated.logits)
    order = np.random.RandomState(IS_SEED).permutation(len(logits))
    log_p = logits[torch.from_numpy(order)].double().log_softmax(1)
    p = log_p.exp()
    splits = min(IS_SPLITS, len(p))
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = [split_score(p[start:end], log_p[start:end]) for start, end in itertools.pairwise(edges)]
    return {"is": float(np.mean(scores)), "is_std": float(np.std(scores))}


def split_score(p: Tensor, log_p: Tensor) -> float:
    """IS of one split, of probabilities float64 [N, classes] and their logarithms."""
    marginal = p.mean(0)
    terms = torch.where((p > 0) & (marginal > 0), p * (log_p - marginal.log()), 0)
    return float(terms.sum(1).mean().exp())


def precision_recall(generated: Statistics, reference: Reference) -> Values:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2), k = 3.

    Of the first 10,000 images. An image at exactly the radius counts as inside, as in the authors' code: around an
    image with 3 equal ones, whose radius is 0, those that are equal to it.
    """
    fake, real = compared(generated.rows, reference.statistics.rows)
    fake_radii = fake.radii(NEAREST_PR)
    real_radii = real.radii(NEAREST_PR)
    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    for block in real.blocks():
        distances = real.distances(block, fake)
        precise |= (distances <= real_radii[block, None]).any(0)
        recalled[block] = (distances <= fake_radii).any(1)
    return {"precision": float(precise.double().mean()), "recall": float(recalled.double().mean())}


def density_coverage(generated: Statistics, reference: Reference) -> Values:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 5), of the first 10,000 images, k = 5.

    An image at exactly the radius counts as outside, as in the authors' code: nothing is inside around an image with 5
    equal ones, whose radius is 0.
    """
    fake, real = compared(generated.rows, reference.statistics.rows)
    radii = real.radii(NEAREST_DC)
    balls = torch.zeros(len(fake), dtype=torch.float64)  # of real images, that each generated one is in
    covered = torch.zeros(len(real), dtype=torch.bool)
    for block in real.blocks():
        within = real.distances(block, fake) < radii[block, None]
        balls += within.sum(0)
        covered[block] = within.any(1)
    return {"density": float(balls.mean()) / NEAREST_DC, "coverage": float(covered.double().mean())}


def class_coverage(generated: Statistics, reference: Reference) -> Values:
    """What classes the generated images are of.

    modes: classes with images; missing: classes without; kl: KL(generated || reference frequencies) in nats;
    confident: the share of images whose every unit is classified with a probability above 0.9.

    On StackedMNIST: modes and KL to uniform of Metz et al. 2017 (arXiv 1611.02163), of 26,000 images in PacGAN.
    """
    counts = class_histogram(generated)
    assert generated.logits is not None
    share = counts / counts.sum()
    hit = counts > 0
    confident = (generated.logits.softmax(2).amax(2) > CONFIDENT).all(1)
    return {
        "modes": int(hit.sum()),
        "missing": int((~hit).sum()),
        "kl": float((share[hit] * (share[hit] / reference.frequencies[hit]).log()).sum()),
        "confident": float(confident.double().mean()),
    }


def class_histogram(generated: Statistics) -> Tensor:
    """Images by the class they are classified as, float64 [classes]."""
    assert generated.logits is not None
    _, units, classes = generated.logits.shape
    return torch.bincount(predicted_classes(generated.logits), minlength=classes**units).double()


def predicted_classes(logits: Tensor) -> Tensor:
    """Logits [N, units, classes] -> the class of each image, int64 [N]; of several units, that of the tuple."""
    _, units, classes = logits.shape
    places = classes ** torch.arange(units - 1, -1, -1, device=logits.device)
    return (logits.argmax(2) * places).sum(1)


def joint_logits(logits: Tensor) -> Tensor:
    """Logits [N, units, classes] of independent units -> log-probabilities of their tuples [N, classes^units]."""
    joint = logits[:, 0]
    for unit in range(1, logits.shape[1]):
        joint = (joint[:, :, None] + logits[:, unit, None]).flatten(1)
    return joint


@dataclass(frozen=True)
class Metric:
    """(generated, reference) -> values by name, on the main process."""

    compute: Callable[[Statistics, Reference], Values]
    needs: Given
    """What the extractor must give."""
    values: tuple[str, ...]
    """What it computes."""


METRICS: dict[str, Metric] = {
    "fid": Metric(frechet_distance, "features", ("fid",)),
    "kid": Metric(kernel_distance, "features", ("kid", "kid_std")),
    "is": Metric(inception_score, "logits", ("is", "is_std")),
    "precision_recall": Metric(precision_recall, "features", ("precision", "recall")),
    "density_coverage": Metric(density_coverage, "features", ("density", "coverage")),
    "modes": Metric(class_coverage, "labels", ("modes", "missing", "kl", "confident")),
}

NAMES_WITHOUT_INCEPTION = {"fid": "fd", "kid": "kd", "kid_std": "kd_std", "is": "is", "is_std": "is_std"}
"""The values that are defined by the Inception network; with another extractor they are called fd_EXTRACTOR, ..."""


def compute(names: Sequence[str], generated: Statistics, reference: Reference, extractor: str) -> Values:
    """The values of metrics by name; they are named FID, KID and IS only with Inception features."""
    values: Values = {}
    for name in names:
        for key, value in METRICS[name].compute(generated, reference).items():
            values[value_name(key, extractor)] = value
    return values


def value_names(names: list[str], extractor: str) -> list[str]:
    """What `compute` gives for these metrics."""
    return [value_name(key, extractor) for name in names for key in METRICS[name].values]


def value_name(key: str, extractor: str) -> str:
    """The name of a value with the features of an extractor."""
    if extractor == "inception" or key not in NAMES_WITHOUT_INCEPTION:
        return key
    return f"{NAMES_WITHOUT_INCEPTION[key]}_{extractor}"


def check_library() -> None:
    """Raises UsageError if torch-fidelity is not installed."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        raise UsageError("metrics: torch-fidelity is not installed; pip install 'distgan[metrics]'") from None
