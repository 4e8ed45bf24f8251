"""What a card says of generated images and of the real ones they are compared with."""

from collections.abc import Sequence
from typing import Any

from distgan.evaluation.card import describe_repeated, describe_sums
from distgan.evaluation.generated import Generated
from distgan.evaluation.neighbours import share_repeated
from distgan.evaluation.reference import RealImages
from distgan.evaluation.scores import compute
from distgan.evaluation.statistics import ROWS


def score(metrics: Sequence[str], generated: Generated, real: RealImages, extractor: str) -> dict[str, Any]:
    """The values of the metrics, of generated and of real images, their counts, and what else a card has of them."""
    values = compute(metrics, generated.statistics, real.reference, extractor)
    images = real.reference.statistics.n
    counts = {
        "generated": generated.statistics.n,
        "reference": images,
        "rows": min(ROWS, generated.statistics.n, images),
        "floor": real.stand_ins,
    }
    floor = {name: value for name, value in real.real_vs_real.items() if name in values}
    sums = describe_sums(generated.image_sum, real.image_sum)
    shares = (share_repeated(images.rows) for images in (generated.statistics, real.reference.statistics))
    return {"metrics": values, "floor": floor, "counts": counts} | sums | describe_repeated(*shares)
