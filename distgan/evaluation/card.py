"""The metric card: the numbers of an evaluation, and all that must be known to compare them."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Card:
    """What `distgan evaluate` prints and writes. Two cards are comparable if extractor, reference and counts agree."""

    metrics: dict[str, float]
    floor: dict[str, float]
    """Real-vs-real: the same metrics of real images against others of the dataset, what a perfect generator scores."""
    counts: dict[str, int]
    """Numbers of images. generated; reference: real ones; rows: of each, for metrics that compare single images;
    floor: real ones in the place of generated ones."""
    extractor: dict[str, Any]
    """name, sha256, resize, accuracy on held-out images and the hash of the dataset it was trained on"""
    data: dict[str, Any]
    """The reference: path, sha256 of the manifest, the resize filter of its images, and what KL compares with"""
    generator: dict[str, Any]
    """file, images seen in training, whether it is an EMA; None where not known"""
    seed: int
    """Of the latents"""
    histogram: list[int]
    """Generated images by class; [] without `modes`"""
    missing: list[str]
    """Names of the classes that no generated image has"""
    code: dict[str, Any]
    """version, commit, torch, torch_fidelity, device, processes"""
    time: str
    """UTC, ISO 8601"""
    seconds: float
    """Of the evaluation, without that of the reference"""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def line(self) -> str:
        """The card in one line of text."""
        values = ", ".join(f"{name} {value:.5g}" for name, value in self.metrics.items())
        real_vs_real = ", ".join(f"{name} {value:.5g}" for name, value in self.floor.items() if "_std" not in name)
        images = self.generator.get("images")
        ema = self.generator.get("ema")
        generator = ["EMA of G" if ema else "G"] if ema is not None else []
        generator += [f"at {images:,} images"] if images is not None else []
        accuracy = self.extractor.get("accuracy")
        parts = [
            " ".join(generator),
            f"{self.counts['generated']:,} generated, {self.counts['reference']:,} real",
            f"extractor {self.extractor['name']} {self.extractor['sha256'][:8]}"
            + (f" (accuracy {accuracy:.2%})" if accuracy is not None else ""),
            f"resize {self.extractor['resize']}",
            f"data {self.data['manifest'][:8]}",
            f"seed {self.seed}",
            f"distgan {self.code['version']} {(self.code['commit'] or 'unknown')[:8]}",
            self.time,
        ]
        missing = self.missing[:SHOWN_CLASSES] + ["..."] * (len(self.missing) > SHOWN_CLASSES)
        shown = f"; missing classes: {', '.join(missing)}" if missing else ""
        return f"{values}{shown} | real against real: {real_vs_real} | {'; '.join(part for part in parts if part)}"


LOWER_IS_BETTER = set("fid kid fd kd frechet kl mmd missing error distance".split())
HIGHER_IS_BETTER = set(
    "is inception precision recall density coverage modes confident accuracy share diversity".split()
)


def better(name: str) -> str | None:
    """ "lower" or "higher", from the words of a metric's name; None if unknown, or for a standard deviation."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    if "std" in words:
        return None
    for word in words:
        if word in LOWER_IS_BETTER or word in HIGHER_IS_BETTER:
            return "lower" if word in LOWER_IS_BETTER else "higher"
    return None
