"""A folder of converted networks, as a checkpoint has them."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distgan.errors import UsageError
from distgan.files import fsync_dir
from distgan.foreign.convert import Converted
from distgan.runs.checkpoint import save_weights


def check_out(out: Path) -> None:
    """Raises UsageError for a folder that is there and not empty."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"out: {out} is there already; give a new folder")


def metadata_of(converted: Converted, place: str, about: dict[str, Any]) -> dict[str, Any]:
    """What `distgan.load`, `sample` and `init_from` need of a file; `about` are its licence and source."""
    kind = {name: value for name, value in asdict(converted.spec).items() if name not in ("num_classes", "latents")}
    model = {"name": "stylegan2", "latent": converted.z_dim, "options": converted.options_of(place)}
    classes = [str(number) for number in range(converted.spec.num_classes)]
    return {"config": {"model": model}, "classes": classes, **kind, **about}


def write(converted: Converted, out: Path, about: dict[str, Any]) -> None:
    """Write a file for each network, all or none. Raises OSError."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for place, weights in converted.weights.items():
            save_weights(temporary / f"{place}.safetensors", weights, metadata_of(converted, place, about))
        fsync_dir(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
