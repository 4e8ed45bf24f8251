"""Numbers, times and values as text for tables."""

import json
import math
from collections.abc import Mapping
from typing import Any


def number(value: float | None) -> str:
    """Four significant digits, whole numbers in full; as static/format.js."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if float(value).is_integer() and size < 1e15:
        return f"{int(value):,}"
    if size < 1e-3 or size >= 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def mean_and_deviation(mean: float, deviation: float) -> str:
    """Both to the second significant digit of the standard deviation: 9.871 ± 0.012."""
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        return "–"
    if not deviation:
        return f"{number(mean)} ± 0"
    decimals = 1 - math.floor(math.log10(deviation))
    if decimals > 6:
        return f"{mean:.3e} ± {deviation:.1e}"
    return f"{mean:,.{max(decimals, 0)}f} ± {deviation:,.{max(decimals, 0)}f}"


def duration(minutes: float) -> str:
    """As static/page.js."""
    if minutes < 1:
        return f"{round(minutes * 60)} s"
    whole = round(minutes)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60:02d} min"


def place(point: Mapping[str, Any]) -> str:
    """Where a point of a curve is."""
    if point.get("epoch"):
        return f"epoch {number(point['epoch'])}"
    return f"{number(point['images'])} images"


def value_text(value: Any) -> str:
    """The value of a key."""
    if value is None:
        return "–"
    return value or '""' if isinstance(value, str) else json.dumps(value)
