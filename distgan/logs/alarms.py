"""Alarms: signs in the log that a run is going wrong, each a warning with its number and what to try."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LINES = 3
"""Lines of the log in a row that must agree before an alarm is raised."""
GAP, SIGN, DIVERSITY, SHARE, EXPLOSION = 0.98, 0.995, 0.25, 0.9, 100.0
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
        self.norms: dict[str, deque[float]] = {name: deque(maxlen=50) for name in ("d_grad_norm", "g_grad_norm")}
        self.diversities: list[float] = []
        """Spread of the generated images of each grid, relative to that of real ones."""
        self.raised: set[str] = set()

    def check(self, row: Mapping[str, float]) -> list[str]:
        """Take in a line of the log; the warnings that are new."""
        self.recent.append(row)
        if "diversity" in row:
            self.diversities.append(row["diversity"])
        found = self.gap() | self.sign() | self.alike() | self.share() | self.gradients(row)
        new = [text for name, text in found.items() if name not in self.raised]
        self.raised = set(found)
        return new

    @property
    def collapsed(self) -> bool:
        """Whether an alarm that means a collapse is raised now."""
        return bool(self.raised & set(COLLAPSE))

    def gap(self) -> dict[str, str]:
        gaps = [row["d_real"] - row["d_fake"] for row in self.recent]
        if not self.absolute or len(gaps) < LINES or min(gaps) < GAP:
            return {}
        return {
            "gap": f"D tells real from generated images without error: D(x) - D(G(z)) is {gaps[-1]:.3f}, so that G "
            "learns little; lower d_optimizer.lr, or add a penalty or augmentation"
        }

    def sign(self) -> dict[str, str]:
        signs = [row.get("d_sign", 0.0) for row in self.recent]
        if len(signs) < LINES or min(signs) < SIGN:
            return {}
        return {
            "sign": f"D takes every real image for real: the mean of sign(D(x)) is {signs[-1]:.3f}. It may know the "
            "training images by heart; augment them (augment, and augment_p with a target), or use more"
        }

    def alike(self) -> dict[str, str]:
        # an untrained G makes images that are alike, too, and a slow one for long
        learned = max(self.diversities, default=0.0) > 2 * DIVERSITY
        if not learned or self.diversities[-1] > DIVERSITY:
            return {}
        return {
            "diversity": f"generated images are alike: their spread is {self.diversities[-1]:.0%} of that of real "
            "ones (mode collapse); lower the learning rates, or use rpgan with r1 and r2"
        }

    def share(self) -> dict[str, str]:
        shares = []
        for row in self.recent:
            penalty = sum(row.get(name, 0.0) for name in self.penalties)
            shares.append(penalty / max(abs(row["d_loss"]) + penalty, 1e-12))
        if not self.penalties or len(shares) < LINES or min(shares) < SHARE:
            return {}
        return {"share": f"penalties are {shares[-1]:.0%} of D's loss: lower their weight"}

    def gradients(self, row: Mapping[str, float]) -> dict[str, str]:
        found = {}
        for name, history in self.norms.items():
            value = row.get(name)
            if value is None:
                continue
            if len(history) >= 5 and value > EXPLOSION * (usual := statistics.median(history)):
                found[name] = f"{name} is {value:.3g}, usually {usual:.3g}: try {name[0]}_optimizer.clip"
            history.append(value)
        return found


@torch.no_grad()
def spread(images: Tensor) -> float:
    """The standard deviation over images [N, C, S, S], averaged over pixels; 0 if all are equal."""
    return float(images.float().std(0).mean())
