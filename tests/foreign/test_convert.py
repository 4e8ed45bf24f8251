"""Tiny networks in the formats of other projects: converted, they make the same images."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor

import distgan
from distgan import models
from distgan.commands.convert import main
from distgan.commands.sample import main as sample
from distgan.runs.checkpoint import load_weights
from foreign_files import (
    Z_DIM,
    build,
    flax_d,
    flax_g,
    rosinality_d,
    rosinality_g,
    write_hdf5,
    write_official,
    write_rosinality,
)

PLAIN = {"d_architecture": "plain", "d_mapping_layers": 0}
CONDITIONAL = {"classes": 3, "channels": 1, "d_mapping_layers": 3}


def convert(*words: object) -> int:
    return main([str(word) for word in words])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def load(file: Path) -> tuple[Any, Any]:
    """G and D as the metadata of a file describe them; one of them has its weights."""
    weights, metadata = load_weights(file)
    model = metadata.config.model
    networks = models.build(model.name, metadata.spec, z_dim=model.latent, options=model.options, seed=0)
    network = networks[1] if file.stem == "discriminator" else networks[0]
    network.load_state_dict(weights)
    return networks


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def check_same(out: Path, place: str, network: Any, classes: int = 0) -> None:
    """The same tensors, and the same output."""
    G, D = load(out / f"{place}.safetensors")
    found = D if place == "discriminator" else G
    expected = network.state_dict()
    for name, tensor in found.state_dict().items():
        close(tensor, expected[name])
    labels = torch.arange(4) % classes if classes else None
    with torch.no_grad():
        if place == "discriminator":
            images = random(4, network.from_image.weight.shape[1], 16, 16)
            close(found.eval()(images, labels), network(images, labels))
        else:
            G.noise = "const"
            z = random(4, Z_DIM)
            close(G.eval()(z, labels)["images"], network(z, labels)["images"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_rosinality(tmp_path, capsys, zipped):
    (ema, D), (G, _) = build(), build(seed=1)
    file = write_rosinality(tmp_path / "100000.pt", ema, G, D, zipped=zipped)
    assert convert(file, tmp_path / "out") == 0
    check_same(tmp_path / "out", "ema", ema)
    check_same(tmp_path / "out", "discriminator", D)
    del G.w_mean
    check_same(tmp_path / "out", "generator", G)
    said = capsys.readouterr().out
    assert "stylegan2, 16x16x3, z of 5" in said and "left out: g_optim, args" in said
    assert f"ema.safetensors: {models.count_parameters(ema):,} parameters" in said


@pytest.mark.parametrize("options", [{}, PLAIN, CONDITIONAL])
def test_an_official_pickle(tmp_path, options):
    (ema, D), (G, _) = build(**options), build(seed=1, **options)
    file = write_official(tmp_path / "network.pkl", ema, G, D, conv_clamp=256, group_size=2)
    assert convert(file, tmp_path / "out") == 0
    classes = options.get("classes", 0)
    for place, network in (("ema", ema), ("generator", G)):
        check_same(tmp_path / "out", place, network, classes)
    D.minibatch_group = 2
    check_same(tmp_path / "out", "discriminator", D, classes)
    _, metadata = load_weights(tmp_path / "out" / "ema.safetensors")
    assert metadata.config.model.options["clamp"] == 256
    assert metadata.classes == [str(k) for k in range(classes)]


@pytest.mark.parametrize("options", [{}, {**CONDITIONAL, **PLAIN}])
def test_two_hdf5_files(tmp_path, options):
    G, D = build(**options)
    g_file = write_hdf5(tmp_path / "g.h5", flax_g(G))
    d_file = write_hdf5(tmp_path / "d.h5", flax_d(D))
    assert convert(g_file, tmp_path / "out", "--discriminator", d_file) == 0
    check_same(tmp_path / "out", "ema", G, options.get("classes", 0))
    check_same(tmp_path / "out", "discriminator", D, options.get("classes", 0))
    assert convert(g_file, tmp_path / "alone") == 0
    assert [file.name for file in (tmp_path / "alone").iterdir()] == ["ema.safetensors"]


def test_the_kind_is_found_from_what_is_in_the_file(tmp_path):
    G, D = build()
    file = write_official(tmp_path / "network.h5", G, G, D)
    assert convert(file, tmp_path / "out") == 0
    assert convert(file.rename(tmp_path / "network"), tmp_path / "again") == 0


def test_what_is_said_of_the_source_and_the_licence(tmp_path, capsys):
    G, D = build()
    file = write_rosinality(tmp_path / "faces.pt", G, G, D)
    assert convert(file, tmp_path / "out") == 0
    said = capsys.readouterr().out
    distgan.load(tmp_path / "out" / "ema.safetensors")
    loaded = capsys.readouterr().err
    assert "faces.pt" in loaded and "research or evaluation only" in loaded and "research or evaluation only" in said
    words = ["--licence", "CC0", "--source", "https://example.org/faces.pt"]
    assert convert(file, tmp_path / "mine", *words) == 0
    capsys.readouterr()
    assert sample([str(tmp_path / "mine"), "--count", "2", "--out", str(tmp_path / "sheet.png")]) == 0
    line = "weights of https://example.org/faces.pt (file of torch.save, rosinality/stylegan2-pytorch); licence: CC0"
    assert line in capsys.readouterr().err
    with safetensors.safe_open(tmp_path / "mine" / "ema.safetensors", "pt") as opened:
        metadata = json.loads(opened.metadata()["distgan"])
    assert metadata["licence"] == "CC0" and len(metadata["source"]["sha256"]) == 64


def test_truncation_takes_the_mean_of_the_file(tmp_path):
    G, D = build()
    assert convert(write_rosinality(tmp_path / "g.pt", G, G, D), tmp_path / "out") == 0
    loaded: Any = distgan.load(tmp_path / "out", truncation_psi=0.3)
    loaded.network.G.noise = "const"
    z = random(4, Z_DIM)
    with torch.no_grad():
        w = G.w_mean + 0.3 * (G.mapping(z) - G.w_mean)
        close(loaded(z), G.synthesis(w)["images"])


def test_what_a_file_does_not_have_is_said(tmp_path, capsys):
    G, D = build()
    state = {name: tensor for name, tensor in rosinality_g(G).items() if not name.startswith("noises.")}
    file = tmp_path / "g.pt"
    torch.save({"g_ema": state}, file)
    assert convert(file, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "the file has no constant noise" in said and "no mean of w" in said
    found = load(tmp_path / "out" / "ema.safetensors")[0]
    found.noise = G.noise = "none"
    with torch.no_grad():
        close(found.eval()(random(4, Z_DIM))["images"], G(random(4, Z_DIM))["images"])


def test_without_the_standard_deviation_of_a_group(tmp_path):
    G, D = build(group=0)
    file = tmp_path / "g.pt"
    torch.save({"g_ema": rosinality_g(G), "d": rosinality_d(D)}, file)
    assert convert(file, tmp_path / "out") == 0
    check_same(tmp_path / "out", "discriminator", D)


def test_half_precision_and_other_strides(tmp_path):
    G, _ = build()
    state = {name: tensor.half() for name, tensor in rosinality_g(G).items()}
    weight = state["convs.0.conv.weight"]
    state["convs.0.conv.weight"] = weight[0].to(memory_format=torch.channels_last)[None]
    assert not state["convs.0.conv.weight"].is_contiguous()
    torch.save({"g_ema": state}, tmp_path / "g.pt")
    assert convert(tmp_path / "g.pt", tmp_path / "out") == 0
    found = load(tmp_path / "out" / "ema.safetensors")[0].state_dict()
    assert torch.equal(found["blocks.1.conv0.weight"], weight[0].float())


def test_a_folder_that_is_there_is_not_touched(tmp_path, capsys):
    G, D = build()
    file = write_rosinality(tmp_path / "g.pt", G, G, D)
    assert convert(file, tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.pt"]
    assert convert(tmp_path / "none.pt", tmp_path / "out") == 2
    assert "none.pt" in capsys.readouterr().err
