"""The extractors dinov2 and inception: their weights, how images reach their input size, and what they are called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
from PIL import Image
from torch import Tensor, nn

from distgan.commands.evaluate_options import Options
from distgan.config.keys import Config
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation import dinov2, inception
from distgan.evaluation.describe import describe_extractor
from distgan.evaluation.dinov2 import interpolate_positions
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract, open_extractor, prefetch_weights
from distgan.evaluation.scores import value_names
from distgan.evaluation.settings import Settings
from distgan.files import sha256_file
from distgan.frozen.vision import DINOV2, load_dinov2
from distgan.training.evaluation import measured_by
from helpers import make_arrays, make_dinov2, noise, reset_accelerate, save_dinov2_file, save_inception, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


@pytest.fixture(scope="module")
def dataset(tiny) -> ShardSet:
    return open_shardset(LocalStorage(tiny), str(tiny))


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> Path:
    """A random DINOv2 with two heads of 64 features, trained on 3x3 patches of 14x14 pixels."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "patch_size": 14, "image_size": 42}
    folder = make_dinov2(tmp_path_factory.mktemp("vision") / "dinov2", **sizes, initializer_range=0.1)
    tensors = torch.load(save_dinov2_file(folder, folder / "own.pth"), weights_only=True)
    assert "blocks.0.attn.qkv.weight" in tensors and "norm.weight" in tensors
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Those of an Inception with random weights."""
    return save_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def opened(dataset, weights, tmp_path_factory) -> Callable[..., Extractor]:
    cache = tmp_path_factory.mktemp("cache")
    return lambda **options: open_extractor("inception", dataset, CPU, cache, weights=str(weights), **options)


def to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_dinov2_computes_what_the_code_of_its_authors_and_of_the_metric_do(vision, dataset, tmp_path):
    """dgm-eval's transforms, by torchvision on Pillow's images, and positions as facebookresearch/dinov2 has them."""
    images = noise(3, 32)
    steps = [transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC), transforms.ToTensor()]
    prepare: Any = transforms.Compose([*steps, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    network = load_dinov2(vision, "path").network
    positions = network.embeddings.position_embeddings
    grid = positions[:, 1:].reshape(1, 3, 3, 128).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, scale_factor=(16 + 0.1) / 3, mode="bicubic")
    positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, 128)], 1)
    network.embeddings.interpolate_pos_encoding = lambda *_: positions
    expected = network(torch.stack([prepare(Image.fromarray(image)) for image in images])).pooler_output
    extractor = open_extractor("dinov2", dataset, CPU, tmp_path, weights=str(vision))
    found, logits = extract(extractor, to_tensor(images))
    assert logits is None and found.shape == (3, 128) and found.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    grey = to_tensor(images[..., :1])
    torch.testing.assert_close(extract(extractor, grey)[0], extract(extractor, grey.expand(-1, 3, -1, -1))[0])


def test_positions_of_the_own_grid_stay(vision):
    positions = torch.randn(1, 1 + 16 * 16, 4)
    assert interpolate_positions(positions, 16) is positions


@pytest.mark.parametrize("swiglu", [False, True])
def test_the_file_of_dinov2_is_the_network_of_transformers(swiglu, vision, dataset, tmp_path):
    folder = vision
    if swiglu:
        sizes = {"hidden_size": 64, "num_attention_heads": 1, "patch_size": 14, "image_size": 42}
        folder = make_dinov2(tmp_path / "dinov2", **sizes, initializer_range=0.1, use_swiglu_ffn=True)
    file = save_dinov2_file(folder, tmp_path / "dinov2_vitl14_pretrain.pth")
    images = to_tensor(noise(3, 16))
    one, two = (open_extractor("dinov2", dataset, CPU, tmp_path, weights=str(place)) for place in (folder, file))
    assert torch.equal(extract(one, images)[0], extract(two, images)[0])
    assert two.sha256 == sha256_file(file) and one.sha256 == sha256_file(folder / DINOV2.weights)
    assert two.architecture == one.architecture and two.num_features == one.num_features


def test_a_card_says_which_dinov2_it_is(processes, dataset, vision, tmp_path):
    metrics = ["fid", "kid", "precision_recall"]
    settings = Settings(extractor="dinov2", extractor_weights=str(vision), metrics=metrics, samples=40, cache=tmp_path)
    card = Evaluator(processes, dataset, settings)(Noise(), z_dim=192)
    assert list(card.metrics) == ["fd_dinov2", "kd_dinov2", "kd_std_dinov2", "precision", "recall"]
    assert card.extractor["resize"] == "224 bicubic as Pillow, rounded to 8 bits" == dinov2.RESIZE
    assert card.extractor["architecture"] == "ViT/14, 128 features, 1 layers of 2 heads"
    assert card.extractor["sha256"] == sha256_file(vision / DINOV2.weights)
    assert "(ViT/14, 128 features, 1 layers of 2 heads)" in card.line()


class Noise(nn.Module):
    """A generator whose images 8x8x3 are its latents."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return z.reshape(-1, 3, 8, 8) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register_tokens": torch.zeros(1, 4, 128)}, "is of a DINOv2 with registers; give one without"),
        ({"cls_token": torch.zeros(1, 1, 100)}, "is not of a DINOv2 .100 features are not heads of 64"),
        ({"head.weight": torch.zeros(1)}, "is not of a DINOv2 .'head'"),
        ({"norm.bias": None}, "is not of a DINOv2 .layernorm.bias"),
        ({"norm.bias": torch.zeros(3)}, "is not of a DINOv2 "),
        ({"pos_embed": None}, "is not of a DINOv2 .'pos_embed'"),
        ({"cls_token": [1.0]}, "holds no weights by name; give dinov2_vitl14_pretrain.pth"),
    ],
)
def test_other_files_than_dinov2s_are_refused(change, message, vision, tmp_path):
    tensors = torch.load(vision / "own.pth", weights_only=True) | change
    torch.save({name: each for name, each in tensors.items() if each is not None}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=f"^extractor_weights: .*{message}") as raised:
        load_dinov2(tmp_path / "other.pth", "extractor_weights")
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_weights_that_cannot_be_used_are_refused(dataset, tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"name": print}, tmp_path / "code.pth")
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "small.pth")
    program: Any = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(str(tmp_path / "inception-2015-12-05.pt"))
    take = "give weights-inception-2015-12-05-6726825d.pth of torch-fidelity, or pt_inception-2015-12-05-6726825d.pth"
    wide = make_dinov2(tmp_path / "wide", patch_size=5, image_size=10)
    cases = [
        ("inception", tmp_path / "text.pth", f"is no file of weights that torch.save wrote .*{take}"),
        ("inception", tmp_path / "code.pth", f"is no file of weights that torch.save wrote .*{take}"),
        ("inception", tmp_path / "none.pth", "No such file"),
        ("inception", tmp_path / "small.pth", f"is not of the Inception of FID .*{take}"),
        ("inception", tmp_path / "inception-2015-12-05.pt", f"TorchScript program, which cannot be read .*{take}"),
        ("dinov2", tmp_path / "none.pth", "No such file"),
        ("dinov2", tmp_path / "text.pth", "is no file of weights .*; give dinov2_vitl14_pretrain.pth, or a folder"),
        ("dinov2", tmp_path, "config.json: No such file.*; give a folder that transformers'"),
        ("dinov2", wide, "has patches of 5 pixels, which do not divide 224; take a ViT-L/14"),
        ("dinov2", None, "the weights of dinov2 are missing; give dinov2_vitl14_pretrain.pth, a folder"),
        ("pixels", tmp_path, "the extractor pixels takes none; it is for dinov2 and inception"),
        (str(tmp_path / "a.safetensors"), tmp_path, "takes none; it is for dinov2 and inception"),
    ]
    for name, place, message in cases:
        with pytest.raises(UsageError, match=f"^extractor_weights: .*{message}") as raised:
            open_extractor(name, dataset, CPU, tmp_path, weights=None if place is None else str(place))
        assert "\n" not in str(raised.value)
    for name in ("dinov2", "pixels", "efficientnet-lite0", "classifier"):
        with pytest.raises(UsageError, match=f"^resize: the extractor {name} takes none; it is for inception"):
            open_extractor(name, dataset, CPU, tmp_path, resize="clean")


def test_what_prefetch_downloads(tmp_path):
    """The weights of inception, unless others are given, and what is on the hub."""
    assert prefetch_weights("pixels", tmp_path, None) is None
    assert prefetch_weights("dinov2", tmp_path, "dinov2_vitl14_pretrain.pth") is None
    with pytest.raises(UsageError, match="^extractor_weights: hf://dinov2: a DINOv2 on the hub is hf://OWNER/NAME"):
        prefetch_weights("dinov2", tmp_path, "hf://dinov2")


def test_only_the_weights_of_fid_give_a_fid(opened, weights, monkeypatch):
    """Others are named after their hash; the file is checked, and not its name."""
    sha256 = sha256_file(weights)
    other = opened()
    assert value_names(["fid", "kid", "is"], other.name) == [
        f"{value}_inception-{sha256[:8]}" for value in ("fd", "kd", "kd_std", "is", "is_std")
    ]
    assert f"its values are called fd_inception-{sha256[:8]}, not fid" in (other.note or "")
    monkeypatch.setattr(inception, "SHA256", sha256)
    known = opened()
    assert value_names(["fid"], known.name) == ["fid"] and known.note is None


def test_the_networks_of_both_resizes_are_one(opened):
    """An image of 299x299 is not resized by either; another one is by one of them as by Pillow."""
    clean, tensorflow = opened(resize="clean"), opened()
    images = to_tensor(noise(1, 299))
    for one, two in zip(extract(clean, images), extract(tensorflow, images), strict=True):
        assert one is not None and two is not None and torch.equal(one, two) and one.std() > 0.1
    small = to_tensor(noise(2, 8)).contiguous()
    assert (extract(clean, small)[0] - extract(tensorflow, small)[0]).abs().max() > 0.1
    channel = Image.fromarray(small[0, 1].float().numpy()).resize((299, 299), Image.Resampling.BICUBIC)
    resized = inception.resize_float(small, 299)
    assert np.abs(resized[0, 1].numpy() - np.asarray(channel).clip(0, 255)).max() < 1e-4


def test_a_resize_is_on_the_card_and_in_the_key_of_the_cache(opened):
    """With that of TensorFlow keys are as ever: caches of older versions are used."""
    clean, tensorflow = opened(resize="clean"), opened(resize="tensorflow")
    assert tensorflow.identity == {"extractor": tensorflow.sha256} == opened().identity
    assert clean.identity == tensorflow.identity | {"variant": "299 bicubic as Pillow, not rounded (clean-fid)"}
    assert describe_extractor(tensorflow)["resize"] == "299 bilinear as TensorFlow 1"
    assert describe_extractor(clean)["resize"] == clean.variant


@pytest.mark.slow
def test_resizes_share_neither_statistics_nor_values(processes, dataset, weights, tmp_path, capsys):
    cards = {}
    for resize in (None, "tensorflow", "clean"):
        few = {"metrics": ["fid"], "samples": 20, "reference_images": 20}
        options = {"extractor": "inception", "extractor_weights": str(weights), "resize": resize, "cache": tmp_path}
        cards[resize] = Evaluator(processes, dataset, Settings(**few, **options))(Noise(), z_dim=192)
    assert len(list((tmp_path / "statistics").glob("*.safetensors"))) == 2
    described = {resize: measured_by(vars(card)) for resize, card in cards.items()}
    assert described[None] == described["tensorflow"] != described["clean"]
    name, other = (next(iter(cards[resize].metrics.items())) for resize in ("clean", None))
    assert name[0] == other[0] and name[1] != pytest.approx(other[1], rel=1e-3)
    assert capsys.readouterr().out.count("is not the Inception of FID: its values are called fd_inception-") == 3


def test_cards_of_weights_and_resizes_have_names_of_their_own():
    choices = {
        "-clean": Options(resize="clean"),
        "": Options(resize="tensorflow"),
        "-dinov2_large": Options(extractor_weights="hf://facebook/dinov2-large"),
        "-dinov2_vitl14_pretrain-fid": Options(extractor_weights="a/dinov2_vitl14_pretrain.pth", metrics="fid"),
    }
    for name, options in choices.items():
        assert options.card_name(320, "dinov2", "0" * 64) == f"320-dinov2{name}.json"


def test_the_keys_of_a_run(tiny, tmp_path, capsys):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", "--evaluate.every_epochs", 1, "--images", 80]
    for more, message in (
        (["--evaluate.extractor", "dinov2"], "evaluate.extractor_weights: the weights of dinov2 are missing"),
        (["--evaluate.resize", "clean"], "evaluate.resize: the extractor classifier takes none"),
    ):
        assert train(*words, *more) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_images_of_other_kinds_have_no_dinov2(vision, tmp_path):
    folder = make_arrays(tmp_path / "set", noise(20, 8, channels=2))
    with pytest.raises(UsageError, match="dinov2 takes 8-bit grey or RGB images"):
        open_extractor("dinov2", folder, CPU, tmp_path, weights=str(vision))
