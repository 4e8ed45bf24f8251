"""Alarms: signs in the log that a run is going wrong, each a warning with its number and what to try."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LINES = 3
"""Lines of the log in a row that must agree before an alarm is raised."""
GAP = 0.98
"""Of D(x) - D(G(z)): above it, D tells real from generated images perfectly."""
SIGN = 0.995
"""Of the mean of sign(D(x)): above it, D classifies every real image as real."""
DIVERSITY = 0.25
"""Of the spread of generated images relative to that of real ones: below it, they are alike."""
SHARE = 0.9
"""Of penalties in D's loss: above it, they outweigh the rest."""
EXPLOSION = 100.0
"""Times the usual norm of a gradient: above it, gradients explode."""
COPIED = 5.0
"""Times the share of generated images that are expected to be closer to a training image than 99 % of held-out images
are: above it, G copies. Measured with pixels or a classifier as features: 0 to 0.3 times for runs that do not, 10 to 42
times for one that does (distgan/evaluation/README.md)."""
GRADIENT_NORMS = ("d_grad_norm", "g_grad_norm", "d_penalty_grad_norm", "g_penalty_grad_norm")
COLLAPSE = ("gap", "diversity")
"""Alarms that mean a collapse."""


class Alarms:
    """Watches the lines of the log, and depends on them alone. An alarm is raised once, and again after it cleared."""

    def __init__(self, penalties: Sequence[str], absolute: bool) -> None:
        """`penalties` by name; `absolute`: whether D(x) itself means something, not only differences of logits."""
        self.penalties = penalties
        self.absolute = absolute
        self.clear()

    def clear(self) -> None:
        """Forget all lines."""
        self.recent: deque[Mapping[str, float]] = deque(maxlen=LINES)
        self.norms: dict[str, deque[float]] = {name: deque(maxlen=50) for name in GRADIENT_NORMS}
        self.diversities: list[float] = []
        """Spread of the generated images of each grid, relative to that of real ones."""
        self.copied: Mapping[str, float] = {}
        """The line of the last evaluation that looked for copies."""
        self.raised: set[str] = set()

    def check(self, record: Mapping[str, float]) -> list[str]:
        """Take in a line of the log; the warnings that are new."""
        self.recent.append(record)
        if "diversity" in record:
            self.diversities.append(record["diversity"])
        alarms = self.gap() | self.sign() | self.alike() | self.share() | self.gradients(record) | self.copies()
        new = [text for name, text in alarms.items() if name not in self.raised]
        self.raised = set(alarms)
        return new

    def check_copying(self, record: Mapping[str, float]) -> list[str]:
        """Take in the line of an evaluation that looked for copies; the warning, if it is new."""
        self.copied = record
        new = [text for name, text in self.copies().items() if name not in self.raised]
        self.raised = self.raised - {"copied"} | set(self.copies())
        return new

    @property
    def collapsed(self) -> bool:
        """Whether an alarm that means a collapse is raised now."""
        return bool(self.raised & set(COLLAPSE))

    def copies(self) -> dict[str, str]:
        share = self.copied.get("copied", 0.0)
        if share <= COPIED * self.copied.get("copied_expected", 0.0):
            return {}
        return {
            "copied": f"generated images copy the training set: {share:.0%} are closer to a training image "
            "than 99% of held-out images are; augment (augment, and augment_p with a target), or use more images"
        }

    def gap(self) -> dict[str, str]:
        gaps = [record["d_real"] - record["d_fake"] for record in self.recent]
        if not self.absolute or len(gaps) < LINES or min(gaps) < GAP:
            return {}
        return {
            "gap": f"D tells real from generated images perfectly: D(x) - D(G(z)) is {gaps[-1]:.3f}, so that G "
            "learns little; lower d_optimizer.lr, or add a penalty or augmentation"
        }

    def sign(self) -> dict[str, str]:
        signs = [record.get("d_sign", 0.0) for record in self.recent]
        if len(signs) < LINES or min(signs) < SIGN:
            return {}
        return {
            "sign": f"D classifies every real image as real: the mean of sign(D(x)) is {signs[-1]:.3f}. It may have "
            "memorized the training set; augment it (augment, and augment_p with a target), or use more"
        }

    def alike(self) -> dict[str, str]:
        # an untrained G makes images that are alike, too, and a slow one for long
        learned = max(self.diversities, default=0.0) > 2 * DIVERSITY
        if not learned or self.diversities[-1] > DIVERSITY:
            return {}
        return {
            "diversity": f"generated images look alike: their spread is {self.diversities[-1]:.0%} of that of real "
            "ones (mode collapse); lower the learning rates, or use rpgan with r1 and r2"
        }

    def share(self) -> dict[str, str]:
        shares = []
        for record in self.recent:
            penalty = sum(record.get(name, 0.0) for name in self.penalties)
            shares.append(penalty / max(abs(record["d_loss"]) + penalty, 1e-12))
        if not self.penalties or len(shares) < LINES or min(shares) < SHARE:
            return {}
        return {"share": f"penalties are {shares[-1]:.0%} of D's loss: lower their weight"}

    def gradients(self, record: Mapping[str, float]) -> dict[str, str]:
        explosions = {}
        for name, history in self.norms.items():
            value = record.get(name)
            if value is None:
                continue
            if len(history) >= 5 and value > EXPLOSION * (usual := statistics.median(history)):
                explosions[name] = f"{name} is {value:.3g}, usually {usual:.3g}: try {name[0]}_optimizer.clip"
            history.append(value)
        return explosions


@torch.no_grad()
def spread(images: Tensor) -> float:
    """The standard deviation over images [N, C, S, S], averaged over pixels; 0 if all are equal."""
    return float(images.float().std(0).mean())
