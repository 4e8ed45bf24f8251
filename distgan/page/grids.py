"""The grids of a run on its page: pictures inside of the HTML, reduced where they are many or large."""

import base64
import functools
import io
import math
import re
from pathlib import Path
from typing import Any

from PIL import Image

WHOLE_GRIDS = 20
"""More grids are reduced."""
WHOLE_BYTES = 8_000_000
"""Grids of more bytes, together or one alone, are reduced."""
MAX_GRIDS = 100
"""Reduced grids, about."""
THUMBNAIL = 384
"""Pixels of the longer side of a reduced grid."""


def read_grids(folder: Path) -> dict[str, Any]:
    """The grids of a run as data: URIs, and a note if not all of them are there in full.

    More than 20 grids, or more than 8 MB, are reduced to 384 pixels, the newest excepted; of more than 100, every
    second is shown (every fourth, ...), so that a run that goes on reduces each grid once.
    """
    grids = find_grids(folder)
    real = folder / "real.png"
    reduced = len(grids) > WHOLE_GRIDS or sum(path.stat().st_size for _, path in grids) > WHOLE_BYTES
    shown = grids
    note = ""
    if reduced:
        step = 2 ** max(0, math.ceil(math.log2(len(grids) / MAX_GRIDS)))
        shown = grids[:-1:step] + grids[-1:]
        number = f"{len(shown)} of {len(grids):,}" if step > 1 else f"All {len(grids)}"
        note = f"{number} grids, all but the newest reduced to {THUMBNAIL} pixels; the full ones are in {folder}."
    return {
        "real": data_uri(real) if real.exists() else None,
        "fakes": [{"epoch": epoch, "src": data_uri(path, reduced and path != shown[-1][1])} for epoch, path in shown],
        "note": note,
    }


def find_grids(folder: Path) -> list[tuple[float, Path]]:
    """The files fake-EPOCH.png with their epochs, in which "_" stands for the point, from the first epoch on."""
    names = {path: re.fullmatch(r"fake-(\d+(?:_\d+)?)\.png", path.name) for path in folder.glob("fake-*.png")}
    return sorted((float(name[1].replace("_", ".")), path) for path, name in names.items() if name)


def data_uri(path: Path, reduced: bool = False) -> str:
    """A picture as a data: URI: its file, or a thumbnail; of a file above 8 MB always a thumbnail."""
    status = path.stat()
    if reduced or status.st_size > WHOLE_BYTES:
        return f"data:image/webp;base64,{thumbnail(path, status.st_mtime_ns)}"
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


@functools.lru_cache(maxsize=256)
def thumbnail(path: Path, written: int) -> str:
    """A WebP of at most THUMBNAIL pixels, base64; kept for the picture that was written at that time."""
    out = io.BytesIO()
    with Image.open(path, formats=["PNG"]) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(out, "WEBP", quality=85)
    return base64.b64encode(out.getvalue()).decode()
