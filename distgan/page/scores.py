"""The metrics of a run over its evaluations: only values of comparable cards form a curve."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distgan.evaluation.card import BALANCED, measured_by
from distgan.runs.cards import Cards
from distgan.runs.metrics_file import Curve, is_number


@dataclass(frozen=True)
class Scores:
    """A metric of a run."""

    curve: Curve
    """Over images seen; of comparable cards."""
    card: dict[str, Any]
    """The newest of them."""
    left_out: int
    """Values of other cards, which are not comparable with these."""

    @property
    def key(self) -> str:
        """Equal for two cards that are comparable."""
        return card_key(self.card)


def card_key(card: Mapping[str, Any]) -> str:
    """What a card was measured by, as text."""
    return json.dumps(measured_by(card), sort_keys=True)


def scores_of(cards: Cards) -> dict[str, Scores]:
    """Each metric by name: of the kind of card that has it most often, at a tie of the newest kind.

    Of several comparable cards at as many images seen, the first counts: the one that the run itself made.
    """
    kinds: dict[str, dict[str, list[tuple[int, float, dict[str, Any]]]]] = {}
    for images, card in cards:
        for name, value in metrics_of(card).items():
            kinds.setdefault(name, {}).setdefault(card_key(card), []).append((images, value, card))
    scores = {}
    for name, by_kind in kinds.items():
        chosen = max(by_kind.values(), key=lambda points: (len(points), points[-1][0]))
        values = {images: value for images, value, _ in reversed(chosen)}
        at = sorted(values)
        left_out = sum(map(len, by_kind.values())) - len(chosen)
        scores[name] = Scores((at, [values[images] for images in at]), chosen[-1][2], left_out)
    return scores


def metrics_of(card: Mapping[str, Any]) -> dict[str, float]:
    """The values of a card by name: a number, or an object with a number as `value`."""
    metrics = card.get("metrics")
    if not isinstance(metrics, dict):
        return {}
    values = {name: value.get("value") if isinstance(value, dict) else value for name, value in metrics.items()}
    return {name: value for name, value in values.items() if is_number(value)}


def describe_card(card: Mapping[str, Any]) -> str:
    """What must be known to compare a card's values, in one line."""
    extractor = card.get("extractor") or {}
    counts = card.get("counts") or {}
    data = card.get("data") or {}
    generator = card.get("generator") or {}
    code = card.get("code") or {}
    ema = generator.get("ema")
    balanced = generator.get("labels") == BALANCED
    parts = [
        f"extractor {extractor.get('name', 'unknown')} {str(extractor.get('sha256', ''))[:8]}".strip(),
        f"resize {extractor['resize']}" if "resize" in extractor else None,
        f"{counts['generated']:,} generated and {counts['reference']:,} real images" if "reference" in counts else None,
        f"data {data['manifest'][:8]}" if data.get("manifest") else None,
        None if ema is None else "EMA of G" if ema else "G without EMA",
        f"psi {generator.get('truncation_psi', 1.0):g}",
        "labels balanced" if balanced else None,
        f"seed {card['seed']}" if "seed" in card else None,
        f"distgan {code['version']} {(code.get('commit') or 'unknown')[:8]}" if "version" in code else None,
    ]
    return ", ".join(part for part in parts if part)
