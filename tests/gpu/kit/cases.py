"""What the sections about speed measure: networks, minibatches, precisions, and how an iteration is run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import BATCH, DRY, ROOT, WIDTH, WORK, build_run, record, seconds_left

MODES: dict[str, list[str]] = {
    "eager": [],
    "captured": ["--graph=true"],
    "compiled": ["--compile=true"],
    "both": ["--compile=true", "--graph=true"],
}
"""How an iteration is run, and the words that say so. Both: compiled, and then captured."""

ARITHMETIC: dict[str, list[str]] = {
    "float32": ["--precision=no", "--tf32=false"],
    "TF32": ["--precision=no", "--tf32=true"],
    "bf16": ["--precision=bf16"],
    "fp16": ["--precision=fp16"],
}

R3GAN_PENALTIES = {
    "r1 + r2": [],  # those of the configuration
    "r1_fd + r2_fd": ['--penalties={"r1_fd": {"weight": 2, "sigma": 0.1}, "r2_fd": {"weight": 2, "sigma": 0.1}}'],
}


@dataclass(frozen=True)
class Case:
    """A run without its mode."""

    name: str
    batch: int
    arithmetic: str
    """A key of ARITHMETIC."""
    recipe: tuple[str, ...] = ()
    """Words of the networks, the loss and the penalties; none: those of DCGAN."""
    compile_seconds: int = 70
    """What a compilation takes on a GPU, about, if its code is not in the cache yet."""

    def words(self, mode: str) -> list[str]:
        return [*ARITHMETIC[self.arithmetic], *MODES[mode]]

    def build(self, mode: str) -> Any:
        """The run, as a `training.loop.Trainer`."""
        recipe = self.recipe or ("--model.options.width", str(WIDTH))
        return build_run(*self.words(mode), recipe=recipe, batch=self.batch)

    @property
    def marker(self) -> Path:
        """A file that exists if the compiler's cache has the code of this case."""
        return WORK / f"compiled-{''.join(c if c.isalnum() else '-' for c in self.name)}"

    def skipped(self, mode: str) -> bool:
        """Whether the row does not apply, or has no time left; the reason becomes the row."""
        reason = self.reason_to_skip(mode)
        if reason:
            record(f"{self.name}, {mode}", f"skipped: {reason}")
        return reason is not None

    def reason_to_skip(self, mode: str) -> str | None:
        needs_cuda = "--graph=true" in MODES[mode] or self.arithmetic == "fp16"
        needed = 10
        if "--compile=true" in MODES[mode]:
            needed = self.compile_seconds // (3 if self.marker.exists() else 1)  # tracing is not cached
        if DRY and needs_cuda:
            return "needs CUDA"
        if seconds_left() < needed:
            return f"no time left; --only {sys.argv[-1]}"
        return None


BATCHES = (BATCH,) if DRY else (64, 256, 1024)


def dcgan(batch: int, arithmetic: str) -> Case:
    return Case(f"{batch} {arithmetic}", batch, arithmetic)


COMPILED_DCGAN = [dcgan(BATCH, "float32")] if DRY else [dcgan(256, "bf16"), dcgan(64, "bf16"), dcgan(256, "TF32")]
"""Few: each takes a minute to compile. At 64 images the host is likely the limit, at 256 in bf16 memory is."""


def r3gan(network: str, penalties: str) -> Case:
    """R3GAN at 64x64 with its augmentations, in bf16: the small networks, or those of the paper for FFHQ.

    The minibatch is that of the small configuration, and for FFHQ the share of one of its eight GPUs.
    """
    config = {"small": "r3gan-64-small", "FFHQ-64": "r3gan-ffhq-64"}[network]
    batch = {"small": 128, "FFHQ-64": 32}[network]
    tiny = ['--model.options={"widths": [8, 8, 8], "group_width": 4}'] if DRY else []
    recipe = ("--config", str(ROOT / "configs" / f"{config}.yaml"), *tiny, *R3GAN_PENALTIES[penalties])
    name = f"{network}, {penalties}"
    return Case(name, 8 if DRY else batch, "bf16", recipe, compile_seconds=200)


R3GAN = [r3gan(network, penalties) for network in ("small", "FFHQ-64") for penalties in R3GAN_PENALTIES]
COMPILED_R3GAN = [] if DRY else R3GAN[:3]
