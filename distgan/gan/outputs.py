"""What networks return: one tensor, or several by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Output = Tensor | Mapping[str, Tensor]
"""Of G: images [N, C, H, W], or {"images": those, "stages": [N, K, C, H, W], ...}, where the last stage is the image.

Of D: logits [N] or [N, K], or {"logits": those, "features": [N, tokens, F], ...}.
"""


def images_of(output: Any) -> Tensor:
    """The images [N, C, H, W] of what G returned."""
    return output["images"] if isinstance(output, Mapping) else output


def shown_to_d(output: Any) -> Tensor:
    """What D is to see of what G returned: its stages [N, K, C, H, W] where it has several, else its images."""
    return output.get("stages", output["images"]) if isinstance(output, Mapping) else output


def logits_of(output: Any) -> Tensor:
    """The logits [N] or [N, K] of what D returned."""
    return output["logits"] if isinstance(output, Mapping) else output
