"""`distgan shards encode`: the latents of a dataset by an autoencoder, on all processes."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import UsageError

if TYPE_CHECKING:
    from distgan.dataset_tool.encode import Result


def encode(
    src: str,
    dest: str,
    vae: str | None = None,
    keep_images: bool = False,
    flips: bool = False,
    batch: int = 16,
    part: str | None = None,
    cache_dir: str | None = None,
) -> None:
    """Encode the images of the dataset SRC by a VAE into the dataset DEST of latents; on all processes that
    `accelerate launch -m distgan.shards encode ...` starts.

    Args:
        src: A folder, or an http(s)://, s3://, gs:// or az:// address of a dataset of 8-bit RGB or grey images.
        dest: The folder to write; re-run the same command to resume an unfinished one.
        vae: An AutoencoderKL of diffusers (pip install 'distgan[latents]'): a folder with its config.json and
            diffusion_pytorch_model.safetensors, or hf://OWNER/NAME[@REVISION], which is downloaded.
        keep_images: Write the images, as RGB, beside their latents.
        flips: Write a second encoding of each image, flipped horizontally; data.flip needs it.
        batch: Images that are encoded at once; the latents may depend on it in the last bit.
        part: I/N: write only the I-th of N parts of the shards, from 1; the other parts on other machines, in any
            order; `shards join` completes the dataset.
        cache_dir: Folder for the shards of a remote dataset.
    """
    which = parse_part(part)
    if vae is None:
        raise UsageError("--vae: give the folder of an AutoencoderKL of diffusers, or hf://OWNER/NAME")
    if batch < 1:
        raise UsageError(f"--batch: {batch} is too small; at least 1")
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.config.keys import Config
    from distgan.data.dataset import open_dataset
    from distgan.dataset_tool.encode import encode
    from distgan.dataset_tool.latent_writer import EncodeOptions, open_writer
    from distgan.distributed.processes import Distributed
    from distgan.frozen.vae import load_vae
    from distgan.training.stop import exit_with_launcher

    exit_with_launcher()
    processes = Distributed(Config())
    shards = processes.run_on_all(lambda: open_dataset(src, {"cache_dir": cache_dir}))
    loaded = processes.run_on_all(lambda: load_vae(vae, "--vae"))
    options = EncodeOptions(keep_images, flips, batch)
    writer = processes.run_on_all(lambda: open_writer(Path(dest), shards, src, loaded, options))
    result = encode(processes, shards, loaded, writer, which)
    if result is not None:
        print_result(dest, result, part)
    processes.shutdown()


def print_result(dest: str, result: "Result", part: str | None) -> None:
    """What was written, and how well it is decoded."""
    from distgan.commands.shards import summary

    if result.encoded:
        rate = result.encoded / max(result.seconds, 1e-9)
        print(f"encoded {result.encoded:,} images in {result.seconds:.1f} s, {rate:.1f} images/s")
    if result.error is not None:
        images, psnr, mean_absolute = result.error
        error = f"PSNR {psnr:.2f} dB, mean absolute error {mean_absolute:.2f} of 255"
        print(f"decoded {images:,} images of the means of their latents: {error}")
    if result.manifest is None:
        print(f"{dest}: part {part} is written; when all are, `distgan shards join {dest}`")
    else:
        print(f"{dest}: {summary(result.manifest)}")


def parse_part(part: str | None) -> tuple[int, int] | None:
    """I and N of `I/N`. Raises UsageError."""
    if part is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part: {part!r} is not I/N with I from 1 to N, such as 2/4")
    return int(match[1]), int(match[2])
