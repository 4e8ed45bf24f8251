"""Labels in networks: classes, numbers and flags as columns beside z, or embedded."""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.samples import SampleSpec

HIDDEN = 64
"""Features of the hidden layer that numbers pass."""


def has_classes_only(spec: SampleSpec) -> bool:
    """Whether labels are int64 [N], classes, and not float32 [N, label_width]."""
    return 0 < spec.num_classes == spec.label_width


def label_columns(labels: Tensor, spec: SampleSpec) -> Tensor:
    """Labels as networks get them -> [N, label_width]: a one-hot vector of the class, then the conditions."""
    return F.one_hot(labels, spec.num_classes) if has_classes_only(spec) else labels


def embed_labels(spec: SampleSpec, features: int) -> "nn.Embedding | LabelEmbedding | None":
    """What maps labels to [N, features]: nn.Embedding of classes alone; None if G and D take no labels."""
    if has_classes_only(spec):
        return nn.Embedding(spec.num_classes, features)
    return LabelEmbedding(spec, features) if spec.conditional else None


class LabelEmbedding(nn.Module):
    """Labels float32 [N, label_width] -> [N, features], in float32 under autocast too.

    A sum: a vector for each class and flag, times 1 or 0; a perceptron with one hidden layer of the numbers, since a
    projection's logit (Miyato & Koyama 2018, arXiv 1802.05637) is linear in the embedding, and images are seldom linear
    in a number; and, unless there are classes, a bias, which stands for the label where no flag is set.
    """

    def __init__(self, spec: SampleSpec, features: int) -> None:
        super().__init__()
        kinds = ["flag"] * spec.num_classes + [condition.kind for condition in spec.conditions]
        numbers = kinds.count("number")
        self.num_classes = spec.num_classes
        self.flag_runs = runs(kinds, "flag")
        self.number_runs = runs(kinds, "number")
        self.flags = nn.Linear(len(kinds) - numbers, features, bias=False) if self.flag_runs else None
        self.hidden = nn.Linear(numbers, HIDDEN) if numbers else None
        self.numbers = nn.Linear(HIDDEN, features, bias=False) if numbers else None
        self.bias = nn.Parameter(torch.empty(features)) if not spec.num_classes else None
        init_embedding(self, 1.0)

    def forward(self, labels: Tensor) -> Tensor:
        with torch.autocast(labels.device.type, enabled=False):
            terms = [] if self.bias is None else [self.bias]
            if self.flags is not None:
                terms.append(self.flags(select(labels, self.flag_runs)))
            if self.hidden is not None and self.numbers is not None:
                terms.append(self.numbers(F.leaky_relu(self.hidden(select(labels, self.number_runs)), 0.2)))
            return sum(terms[1:], terms[0])


def runs(kinds: list[str], kind: str) -> list[tuple[int, int]]:
    """The first column and the number of columns of each run of `kind`."""
    found = []
    start = 0
    for each, group in groupby(kinds):
        length = len(list(group))
        if each == kind:
            found.append((start, length))
        start += length
    return found


def select(labels: Tensor, columns: list[tuple[int, int]]) -> Tensor:
    """The columns of some runs; views and a copy, since an index would be a tensor to send to the device."""
    return torch.cat([labels.narrow(1, start, length) for start, length in columns], dim=1)


def init_embedding(embed: nn.Embedding | LabelEmbedding, std: float) -> None:
    """Vectors N(0, std^2) for each class, flag and bias, and for numbers of unit variance; in place.

    The hidden layer has weights and biases N(0, 1 / HIDDEN): its functions bend where the numbers are, and its largest
    singular value is near 1, so that spectral normalization hardly changes them.
    """
    if isinstance(embed, nn.Embedding):
        nn.init.normal_(embed.weight, 0.0, std)
        return
    if embed.flags is not None:
        nn.init.normal_(embed.flags.weight, 0.0, std)
    if embed.hidden is not None and embed.numbers is not None:
        nn.init.normal_(embed.hidden.weight, 0.0, HIDDEN**-0.5)
        nn.init.normal_(embed.hidden.bias, 0.0, HIDDEN**-0.5)
        squares = (1 + 0.2**2) / 2 * (embed.hidden.in_features + 1)  # the sum of those of the hidden features
        nn.init.normal_(embed.numbers.weight, 0.0, std * squares**-0.5)
    if embed.bias is not None:
        nn.init.normal_(embed.bias, 0.0, std)


def init_constant(embed: nn.Embedding | LabelEmbedding, value: float) -> None:
    """The same vector, of `value`s, for every label; in place."""
    if isinstance(embed, nn.Embedding):
        nn.init.constant_(embed.weight, value)
        return
    init_embedding(embed, 0.0)
    if embed.bias is not None:
        nn.init.constant_(embed.bias, value)
    else:
        assert embed.flags is not None, "classes are columns of it"
        nn.init.constant_(embed.flags.weight[:, : embed.num_classes], value)
