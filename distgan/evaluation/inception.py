"""The extractor `inception`: the network of FID, its weights, and how images reach its input size."""

import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.extractor import Extractor, check_8bit
from distgan.evaluation.resizing import resize_float
from distgan.files import sha256_file
from distgan.frozen.state_dict import check_sha256, read_state_dict

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of torch-fidelity's file, and of pytorch-fid's pt_inception-2015-12-05-6726825d.pth: they are one file."""
FIX = f"give {FILE} of torch-fidelity, or pt_inception-2015-12-05-6726825d.pth of pytorch-fid"

Resize = Literal["tensorflow", "clean"]
RESIZES: dict[Resize, str] = {
    "tensorflow": "299 bilinear as TensorFlow 1",
    "clean": "299 bicubic as Pillow, not rounded (clean-fid)",
}
"""What a card says of them. tensorflow: FID as it is published (Heusel et al. 2017); clean: Parmar et al. 2022."""
SIDE = 299
LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
"""Of torch-fidelity's network, in the order of its forward pass."""


class InceptionFeatures(nn.Module):
    """The network of FID (Heusel et al. 2017, arXiv 1706.08500), by torch-fidelity: 2048 features, 1008 logits."""

    def __init__(self, weights: dict[str, Tensor], resize: Resize = "tensorflow") -> None:
        """Raises RuntimeError if the weights are not those of the network."""
        from torch_fidelity import FeatureExtractorInceptionV3

        super().__init__()
        # torch-fidelity unpickles whatever is in its file; it gets a copy of the tensors alone
        copy = io.BytesIO()
        torch.save(weights, copy)
        copy.seek(0)
        self.network: Any = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], copy)
        self.resize = resize

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, 1 or 3, H, W] -> features [N, 2048], logits [N, 1, 1008] without their bias, as IS has them."""
        if self.resize == "tensorflow":
            features, logits = self.network(images.expand(-1, 3, -1, -1))
            return features, logits[:, None]
        # its own forward pass begins with the resize of TensorFlow
        x = ((resize_float(images, SIDE) - 128) / 128).expand(-1, 3, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)
        for name in LAYERS:
            x = getattr(self.network, name)(x)
        features = x.flatten(1)
        return features, (features @ self.network.fc.weight.T)[:, None]


def open_inception(
    dataset: ShardSet, cache: Path, *, weights: str | None = None, resize: Resize = "tensorflow"
) -> Extractor:
    """The Inception of FID, from a file, by default one in `cache` or where torch.hub keeps its own. Raises UsageError.

    With other weights than those of FID its values have names of their own.
    """
    check_8bit("inception", dataset)
    import torch_fidelity  # noqa: F401 - a missing package is reported before a missing file

    file = find_weights(cache) if weights is None else Path(weights)
    network = load_network(file, resize)
    sha256 = sha256_file(file)
    known = sha256 == SHA256
    name = "inception" if known else f"inception-{sha256[:8]}"
    note = f"extractor_weights: {file} is not the Inception of FID: its values are called fd_{name}, not fid"
    return Extractor(
        name=name,
        sha256=sha256,
        resize=RESIZES[resize],
        network=network,
        num_features=2048,
        gives=("features", "logits"),
        any_size=True,
        variant=None if resize == "tensorflow" else RESIZES[resize],
        note=None if known else note,
    )


def find_weights(cache: Path) -> Path:
    """The file in `cache`, or where torch.hub keeps its own. Raises UsageError."""
    places = [cache / "extractors" / FILE, Path(torch.hub.get_dir()) / "checkpoints" / FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(
            f"extractor: the weights of inception are missing; run `distgan evaluate --prefetch` on a machine with "
            f"network, copy {FILE} to {places[0].parent}, or give its path as extractor_weights"
        )
    check_sha256(file, SHA256, "extractor")
    return file


def load_network(file: Path, resize: Resize) -> InceptionFeatures:
    """The network with the weights in a file. Raises UsageError, which names `extractor_weights`."""
    weights = read_state_dict(file, "extractor_weights", FIX)
    try:
        return InceptionFeatures(weights, resize)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"extractor_weights: {file} is not of the Inception of FID ({reason}...); {FIX}") from None


def prefetch_inception(cache: Path) -> Path:
    """Download the weights of Inception into `cache`, unless they are there; returns the file. Raises UsageError."""
    file = cache / "extractors" / FILE
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:  # to a temporary file, renamed once its hash is right
            torch.hub.download_url_to_file(URL, str(file), SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise UsageError(f"prefetch: {URL}: {message}; or copy the file to {file.parent}") from None
    check_sha256(file, SHA256, "extractor")
    return file
