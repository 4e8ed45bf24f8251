"""The metric card: the numbers of an evaluation, and all that must be known to compare them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

SHOWN_CLASSES = 10
BALANCED = "balanced"
AS_IN_THE_DATASET = "as in the dataset"
OPTIONAL = ("image_sum", "by", "classes_from", "bins", "repeated")
"""Keys that are not on a card where they are empty."""


class ImageSum(NamedTuple):
    """The sum of an image's values, in stored units, over a set of images: of a calorimeter, the energy deposited."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:.5g} +- {self.std:.4g}"


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
    """name, sha256, resize, accuracy on held-out images and the hash of the dataset it was trained on; architecture,
    of a network of which there are several sizes"""
    data: dict[str, Any]
    """The reference: path, sha256 of the manifest, spec and resize filter of its images, and what KL compares with"""
    generator: dict[str, Any]
    """file, images seen in training, whether it is an EMA, ema_width of an average by a power function; truncation_psi
    of w, 1: none; labels: balanced or as in the dataset; None where not known, and for a G without labels. Of a set of
    images: address, sha256 of its manifest, count, spec of its images"""
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
    """Of the evaluation, without that of the reference of all images"""
    image_sum: dict[str, dict[str, float]] = field(default_factory=dict)
    """With pixels as features: mean and std, over generated and over real images, of the sum of an image's values, in
    stored units"""
    by: str | None = None
    """What `bins` are made by: a condition, or `class`"""
    classes_from: str | None = None
    """Of bins by class, what tells the class of a generated image: `labels`, or `classifier`"""
    bins: list[dict[str, Any]] = field(default_factory=list)
    """For the images of each bin: low, high (and class), and metrics, floor, counts, image_sum and repeated as above;
    where there are too few images for metrics, too_few is how many they need"""
    repeated: dict[str, float] = field(default_factory=dict)
    """generated, real: the share of the images that are compared one by one whose features equal those of another of
    them; {}: of none"""

    def to_json(self) -> str:
        keys = {name: value for name, value in asdict(self).items() if value or name not in OPTIONAL}
        return json.dumps(keys, indent=1) + "\n"

    def line(self) -> str:
        """The card in one line of text, and one more for each bin."""
        accuracy = self.extractor.get("accuracy")
        architecture = self.extractor.get("architecture")
        parts = [
            self.describe_generator(),
            format_counts(self.counts),
            f"extractor {self.extractor['name']} {self.extractor['sha256'][:8]}"
            + (f" (accuracy {accuracy:.2%})" if accuracy is not None else "")
            + (f" ({architecture})" if architecture is not None else ""),
            f"resize {self.extractor['resize']}",
            f"data {self.data['manifest'][:8]}",
            format_repeated(self.repeated),
            *self.sampling(),
            f"seed {self.seed}",
            f"distgan {self.code['version']} {(self.code['commit'] or 'unknown')[:8]}",
            self.time,
        ]
        missing = self.missing[:SHOWN_CLASSES] + ["..."] * (len(self.missing) > SHOWN_CLASSES)
        shown = f"; missing classes: {', '.join(missing)}" if missing else ""
        about = "; ".join(part for part in parts if part)
        values = format_values(self.metrics, self.floor, self.image_sum, shown)
        seen = ["generated images by the class that the classifier sees:"] * (self.classes_from == "classifier")
        return "\n".join([f"{values} | {about}", *seen, *(self.bin_line(row) for row in self.bins)])

    def describe_generator(self) -> str:
        """What the images are of: a generator, or a set, with their size where the real ones have another."""
        if "address" in self.generator:
            spec = self.generator["spec"]
            sizes = f", {spec} against {self.data['spec']}" if spec != self.data["spec"] else ""
            return f"images of {self.generator['address']} ({self.generator['sha256'][:8]}{sizes})"
        return format_generator(self.generator)

    def sampling(self) -> list[str]:
        """How the generated images were drawn, if not as they are by default."""
        psi = self.generator.get("truncation_psi", 1.0)
        labels = ["labels balanced"] if self.generator.get("labels") == BALANCED else []
        return ([f"truncation psi {psi:g}"] if psi != 1 else []) + labels

    def bin_line(self, row: Mapping[str, Any]) -> str:
        """A bin in one line of text."""
        low = row["low"]
        high = row["high"]
        values = f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"
        name = f"{self.by} {row.get('class', values)}"
        repeated = format_repeated(row.get("repeated", {}))
        counts = format_counts(row["counts"]) + (f"; {repeated}" if repeated else "")
        if "too_few" in row:
            return f"{name}: too few images, metrics need {row['too_few']} | {counts}"
        return f"{name}: {format_values(row['metrics'], row['floor'], row.get('image_sum', {}))} | {counts}"


def format_generator(generator: Mapping[str, Any]) -> str:
    """What a line says of G: whether it is an EMA, and the images it has seen; empty where neither is known."""
    images = generator.get("images")
    ema = generator.get("ema")
    width = generator.get("ema_width")
    of_width = "" if width is None else f" of width {width:g}"
    network = [f"EMA of G{of_width}" if ema else "G"] if ema is not None else []
    return " ".join(network + ([f"at {images:,} images"] if images is not None else []))


def describe_sums(generated: ImageSum | None, real: ImageSum | None) -> dict[str, dict[str, Any]]:
    """What a card says of the sums of images, if anything."""
    if generated is None or real is None:
        return {}
    return {"image_sum": {"generated": generated._asdict(), "real": real._asdict()}}


def describe_repeated(generated: float, real: float) -> dict[str, Any]:
    """What a card says of images that equal another one of their set, if there are any."""
    return {"repeated": {"generated": generated, "real": real}} if generated or real else {}


def format_repeated(repeated: Mapping[str, float]) -> str:
    """As text; empty unless a hundredth of them are."""
    if max(repeated.values(), default=0) < 0.01:
        return ""
    return f"repeated: {repeated['generated']:.0%} of generated, {repeated['real']:.0%} of real images"


def format_counts(counts: Mapping[str, int]) -> str:
    return f"{counts['generated']:,} generated, {counts['reference']:,} real"


def format_values(
    metrics: Mapping[str, float], floor: Mapping[str, float], sums: Mapping[str, Mapping[str, float]], more: str = ""
) -> str:
    """The values of generated images and of real ones, as text."""
    values = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
    real_vs_real = ", ".join(f"{name} {value:.5g}" for name, value in floor.items() if "_std" not in name)
    shown = ""
    if sums:
        generated, real = (ImageSum(**sums[name]) for name in ("generated", "real"))
        shown = f"; sum of an image {generated}, of a real one {real}"
    floor_shown = f" | real against real: {real_vs_real}" if real_vs_real else ""
    return f"{values}{more}{shown}{floor_shown}"


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


def measured_by(card: Mapping[str, Any]) -> list[Any]:
    """What two cards must agree in to be compared; of a card as JSON, also one that lacks some of it."""
    generator = card.get("generator") or {}
    data = card.get("data") or {}
    sampling = [generator.get("truncation_psi", 1.0), generator.get("labels") == BALANCED]
    return [card.get("extractor"), data.get("manifest"), card.get("counts"), card.get("seed"), *sampling]
