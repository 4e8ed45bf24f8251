"""Fine-tuning: what is copied of a source, bit for bit, what begins anew, what is refused, and what a resume needs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.models import MODELS
from distgan.runs.checkpoint import METADATA, load
from distgan.runs.weights import find_files
from distgan.samples import Condition, LatentSpec, SampleSpec
from distgan.training.transfer import Architecture, copy_weights
from helpers import TINY, launch, make_arrays, noise, train, weights

TRANSFORMER = {"width": 16, "depth": 4, "heads": 2, "patch": 4, "embedding": 8}
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "cat": (8, TRANSFORMER | {"d_width": 16, "d_depth": 4, "d_heads": 2}),
    "dcgan": (8, {"width": 4}),
    "gat": (8, TRANSFORMER),
    "mlp": (8, {"width": 16}),
    "r3gan": (8, {"widths": [16, 16]}),
    "sngan": (32, {"width": 4}),
    "stylegan2": (8, {"channel_base": 64, "w_dim": 8, "mapping_layers": 2, "d_mapping_layers": 2}),
}
"""The side of the images and the options of every network."""
NUMBERS = (Condition("energy"), Condition("angle"), Condition("tagged", "flag"))
LABELS: dict[str, dict[str, Any]] = {
    "none": {},
    "3 classes": {"num_classes": 3},
    "5 classes": {"num_classes": 5},
    "numbers": {"conditions": NUMBERS},
    "mixed": {"num_classes": 3, "conditions": NUMBERS[:1]},
}
Z = 8
FILE = Path("source.safetensors")


def architecture(name: str, labels: str = "none", **changes: Any) -> Architecture:
    size, options = SMALL[name]
    spec = SampleSpec(size, size, 3, **LABELS[labels])
    classes = [f"c{k}" for k in range(spec.num_classes)]
    return replace(Architecture(name, Z, options, spec, classes), **changes)


def build(about: Architecture, seed: int) -> tuple[Any, Any]:
    return models.build(about.name, about.spec, z_dim=about.z_dim, options=about.options, seed=seed)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_every_network_is_tested():
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", SMALL)
def test_the_same_networks_are_copied_bit_for_bit(name, labels):
    """Weights and buffers, of G and of D."""
    about = architecture(name, labels)
    for kind, network, source in zip(("generator", "discriminator"), build(about, 0), build(about, 1), strict=True):
        expected = state(source)
        copied = copy_weights(network, kind, expected, about, about, FILE)
        assert copied.tensors == len(expected) and not copied.new and not copied.left_out
        assert copied.parameters == models.count_parameters(network)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


PAIRS = [
    *[("none", "3 classes"), ("3 classes", "none"), ("5 classes", "3 classes"), ("none", "mixed")],
    *[("3 classes", "mixed"), ("numbers", "none"), ("mixed", "numbers")],
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("name", SMALL)
def test_what_depends_on_labels_begins_anew(name, before, after):
    """What unconditional networks have too is copied, and nothing else changes but what z meets."""
    source = architecture(name, before)
    target = architecture(name, after)
    plain = architecture(name)
    kinds = ("generator", "discriminator")
    for kind, network, other, bare in zip(kinds, build(target, 0), build(source, 1), build(plain, 2), strict=True):
        initial = state(network)
        theirs = state(other)
        copied = copy_weights(network, kind, theirs, source, target, FILE)
        new = {text.split(" ")[0] for text in copied.new}
        for key, tensor in network.state_dict().items():
            everywhere = {tuple(each[key].shape) if key in each else None for each in (initial, theirs)}
            free = key in bare.state_dict() and everywhere == {tuple(bare.state_dict()[key].shape)}
            if free:
                assert torch.equal(tensor, theirs[key]) and key not in new, key
            elif key in new and not any(text.startswith(key) and "z" in text for text in copied.new):
                assert torch.equal(tensor, initial[key]), key
        left = {text.split(" ")[0] for text in copied.left_out}
        assert left >= theirs.keys() - initial.keys() and (before != "none" or left == theirs.keys() - initial.keys())
        assert copied.tensors + len(copied.new) == len(initial)


@pytest.mark.parametrize("name", ["cat", "dcgan", "gat", "mlp", "r3gan", "stylegan2"])
@pytest.mark.parametrize(("before", "after"), [("none", "3 classes"), ("5 classes", "3 classes"), ("numbers", "none")])
def test_the_weights_that_z_meets_are_copied(name, before, after):
    """Where labels stand beside z: with the labels' part at 0, G of an unconditional source makes the same images."""
    source, target = architecture(name, before), architecture(name, after)
    G, other = build(target, 0)[0], build(source, 1)[0]
    initial = G.z_weights.clone()
    copied = copy_weights(G, "generator", state(other), source, target, FILE)
    gain = {network: getattr(network, "z_gain", 1.0) for network in (G, other)}
    assert torch.allclose(G.z_weights * gain[G], other.z_weights * gain[other], rtol=1e-6)
    assert not torch.equal(G.z_weights, initial)
    assert G.z_weights.numel() == other.z_weights.numel()
    part = [text for text in [*copied.new, *copied.left_out] if text.endswith("but for the weights of z")]
    embedded = name not in ("dcgan", "mlp") and before == "5 classes"  # in as many features as before
    assert bool(part) != embedded
    if before == "none":
        silence_labels(G)
        z = torch.randn(4, Z)
        labels = torch.zeros(4, dtype=torch.long)
        G.eval()
        other.eval()
        assert torch.allclose(images(G(z, labels)), images(other(z, None)), atol=1e-6)
        if hasattr(G, "mapping"):
            assert torch.allclose(G.mapping(z, labels), other.mapping(z), atol=1e-6)


def images(output: Any) -> Tensor:
    return output["images"] if isinstance(output, dict) else output


@torch.no_grad()
def silence_labels(G: Any) -> None:
    """Set to 0 the weights of the first layer that labels meet."""
    kept = G.z_weights.clone()
    storage = G.z_weights.untyped_storage().data_ptr()
    for parameter in G.parameters():
        if parameter.untyped_storage().data_ptr() == storage:
            parameter.zero_()
    G.z_weights.copy_(kept)


def test_labels_of_another_kind_do_not_pass_for_each_other():
    """3 classes and 2 numbers with a flag have the same shapes in dcgan's G: their columns mean other things."""
    source, target = architecture("dcgan", "3 classes"), architecture("dcgan", "numbers")
    G, other = build(target, 0)[0], build(source, 1)[0]
    before = G.layers[0].weight.detach().clone()
    assert before.shape == other.layers[0].weight.shape
    copy_weights(G, "generator", state(other), source, target, FILE)
    assert torch.equal(G.layers[0].weight[Z:], before[Z:]) and torch.equal(G.z_weights, other.z_weights)


LATENTS = LatentSpec("a" * 64, 0.5, 0.0, 16, 16, 3)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": SampleSpec(64, 64, 3)}, r"images {size}x{size}x3 there, 64x64x3 here"),
        ({"spec": "channels"}, r"images {size}x{size}x3 there, {size}x{size}x1 here"),
        ({"z_dim": 9}, r"model.latent 8 there, 9 here"),
        ({"spec": "latents"}, r"latents none there, of the VAE aaaaaaaaaaaa"),
    ],
)
def test_other_images_and_latents_are_refused(name, changes, message):
    """With what differs and what to do, also where all shapes are the same."""
    size, _ = SMALL[name]
    specs = {"channels": SampleSpec(size, size, 1), "latents": SampleSpec(size, size, 3, latents=LATENTS)}
    if isinstance(changes.get("spec"), str):
        changes = {"spec": specs[changes["spec"]]}
    if name == "r3gan" and changes.get("spec") == SampleSpec(64, 64, 3):
        changes = changes | {"options": {"widths": [16] * 5}}
    source = architecture(name)
    target = replace(source, **changes)
    G, other = build(target, 0)[0], build(source, 1)[0]
    before = state(G)
    with pytest.raises(UsageError) as error:
        copy_weights(G, "generator", state(other), source, target, FILE)
    assert message.format(size=size) in str(error.value) and "\n" not in str(error.value)
    assert any(fix in str(error.value) for fix in ("distgan shards make --size", "encode the dataset", "--model '{"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in G.state_dict().items())


def test_other_options_are_refused_with_the_first_layers_that_differ():
    source = architecture("dcgan", options={"width": 8})
    target = architecture("dcgan")
    with pytest.raises(UsageError) as error:
        copy_weights(build(target, 0)[0], "generator", state(build(source, 1)[0]), source, target, FILE)
    assert str(error.value) == (
        "source.safetensors holds G of other networks (model.options.width 8 there, 4 here); tensors that differ: "
        "layers.0.weight [8, 8, 4, 4] there, [8, 4, 4, 4] here, layers.1.weight [8] there, [4] here, "
        "layers.1.bias [8] there, [4] here, and 3 more; give this run the model there, --model "
        """'{"name": "dcgan", "latent": 8, "options": {"width": 8}}'"""
    )


def test_another_architecture_is_refused():
    source, target = architecture("mlp"), architecture("dcgan")
    with pytest.raises(UsageError, match="model.name mlp there, dcgan here.*begin|tensors that differ"):
        copy_weights(build(target, 0)[1], "discriminator", state(build(source, 1)[1]), source, target, FILE)


def run_lines(capsys) -> list[str]:
    """What was printed since the last call, without the configuration."""
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]


def parameters_of(tensors: dict[str, Tensor]) -> list[str]:
    """The names without those of BatchNorm's buffers."""
    return [name for name in tensors if "running" not in name and "num_batches" not in name]


def test_a_run_begins_with_the_weights_of_another(trained, capsys):
    """G, D and the EMA each from its own file; a fresh clock; what was copied is said."""
    source = trained("--epochs", 2, name="source")
    files, _ = load(source / "checkpoints" / "160")
    run_lines(capsys)
    words = ["--init_from", source, "--ema.warmup", 0, "--g_optimizer.lr", 1e-30, "--d_optimizer.lr", 1e-30]
    run = trained("--images", 16, "--seed", 1, *words)
    lines = run_lines(capsys)
    after, saved = load(run / "checkpoints" / "16")
    share = 1 - 0.5 ** (16 / 10_000)  # of G in its EMA, after an iteration
    files["ema"] = {key: files["ema"][key].lerp(files["generator"][key], share) for key in parameters_of(files["ema"])}
    for name in ("generator", "discriminator", "ema"):
        for key in parameters_of(after[name]):
            torch.testing.assert_close(after[name][key], files[name][key], rtol=0, atol=1e-7, msg=f"{name} {key}")
    assert not torch.equal(files["ema"]["layers.0.weight"], files["generator"]["layers.0.weight"])
    assert str(source).encode() not in (run / "checkpoints" / "16" / "generator.safetensors").read_bytes()
    assert saved.images == 16 and saved.init_from == find_files(source).sha256()
    assert f"init_from: {source / 'checkpoints' / '160'}" in lines
    assert "G: 7 of 7 tensors, 712 of 712 parameters from generator.safetensors" in lines
    assert "D: 2 of 2 tensors, 256 of 256 parameters from discriminator.safetensors" in lines
    assert "EMA of G: 7 of 7 tensors, 712 of 712 parameters from ema.safetensors" in lines


def test_labels_are_added_and_said(trained, capsys):
    source = trained("--epochs", 1, name="source")
    run_lines(capsys)
    trained("--images", 16, "--init_from", source, "--data.labels", "true")
    lines = run_lines(capsys)
    because = "begins anew where it depends on labels (none there, 3 classes here)"
    assert f"G {because}: layers.0.weight [11, 4, 4, 4], but for the weights of z" in lines
    assert f"D {because}: embed.weight [3, 4]" in lines


def test_one_file_is_g_and_its_ema_and_d_begins_anew(trained, capsys):
    source = trained("--epochs", 1, name="source")
    file = source / "checkpoints" / "80" / "ema.safetensors"
    run_lines(capsys)
    run = trained("--images", 16, "--init_from", file)
    lines = run_lines(capsys)
    assert f"D begins anew: there is none in {file}" in lines
    assert "EMA of G: a copy of G, from ema.safetensors" in lines
    _, saved = load(run / "checkpoints" / "16")
    assert saved.init_from.keys() == {"generator", "ema"} and len(set(saved.init_from.values())) == 1


def test_a_source_without_ema_gives_g(trained, capsys):
    source = trained("--epochs", 1, "--ema.half_life_images", 0, name="source")
    run_lines(capsys)
    trained("--images", 16, "--init_from", source / "checkpoints" / "80")
    assert "EMA of G: a copy of G, from generator.safetensors" in run_lines(capsys)


def test_the_best_checkpoint_of_a_run_else_the_newest(trained):
    source = trained("--epochs", 2, name="source")
    assert find_files(source).place == source / "checkpoints" / "160"
    (source / "best.json").write_text(json.dumps({"images": 80, "metric": "fid", "value": 1.0}))
    found = find_files(source)
    assert found.place == source / "checkpoints" / "80" and found.note == " (best by fid, 1, at 80 images)"


def test_a_resumed_run_needs_no_source(trained):
    """Killed and resumed, and the source gone: bit for bit the same as at once."""
    source = trained("--epochs", 2, name="source")
    words = ["--init_from", source, "--seed", 1]
    expected = weights(trained("--epochs", 3, *words, name="uninterrupted"))
    for epochs in (1, 2):
        trained("--epochs", epochs, *words, name="resumed")
    digests = find_files(source).sha256()
    shutil.rmtree(source)
    run = trained("--epochs", 3, *words, name="resumed")
    found = weights(run)
    assert {key: found[key] for key in found if key != "state.json"} == expected
    assert load(run / "checkpoints" / "240")[1].init_from == digests


def test_another_source_is_refused_and_a_moved_one_is_not(trained, tiny, tmp_path, capsys):
    first = trained("--epochs", 1, name="first")
    second = trained("--epochs", 1, "--seed", 2, name="second")
    trained("--images", 16, "--init_from", first)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--images", 32]
    capsys.readouterr()
    for other, shown in ((second, f"{first} -> {second}"), ("null", f"{first} -> None"), ("gone", f"{first} -> gone")):
        assert train(*words, "--init_from", other) == 2
        assert f"holds a run with another configuration: init_from {shown}." in capsys.readouterr().err
    moved = first.rename(tmp_path / "moved")
    assert train(*words, "--init_from", moved) == 0
    assert train(*words, "--init_from", second, "--resume.override", "true", "--images", 48) == 0
    _, saved = load(tmp_path / "run" / "checkpoints" / "48")
    assert saved.init_from == find_files(moved).sha256()  # what it began with, whatever the key says now


def damage(path: Path) -> str:
    data = bytearray((path / "generator.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "generator.safetensors").write_bytes(data)
    return f"{path / 'generator.safetensors'} is damaged: its sha256 is not that in state.json; copy it once more"


def truncate(path: Path) -> str:
    (path / "state.json").unlink()
    data = (path / "discriminator.safetensors").read_bytes()
    (path / "discriminator.safetensors").write_bytes(data[:-20])
    return f"{path / 'discriminator.safetensors'} is not a complete .safetensors file"


def without_metadata(path: Path) -> str:
    (path / "state.json").unlink()
    save_file({"weight": torch.zeros(2)}, path / "generator.safetensors")
    return f"{path / 'generator.safetensors'} is not a distgan checkpoint (its metadata has no '{METADATA}')"


def empty(path: Path) -> str:
    for file in path.iterdir():
        file.unlink()
    return f"{path} holds no checkpoint, and no generator.safetensors, ema.safetensors or model.safetensors"


def remove(path: Path) -> str:
    shutil.rmtree(path)
    return f"{path} is not there; give a run, a checkpoint, or a .safetensors file"


@pytest.mark.parametrize("break_it", [damage, truncate, without_metadata, empty, remove])
def test_a_damaged_source_is_one_line(trained, tiny, tmp_path, capsys, break_it):
    source = trained("--epochs", 1, name="source") / "checkpoints" / "80"
    message = break_it(source)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    capsys.readouterr()
    assert train(*words, "--init_from", source) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: init_from: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_file_of_something_else_is_refused(trained, tiny, tmp_path, capsys):
    source = trained("--epochs", 1, name="source") / "checkpoints" / "80" / "optimizers.safetensors"
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    capsys.readouterr()
    assert train(*words, "--init_from", source) == 2
    assert "does not hold G of a dcgan as this version builds it" in capsys.readouterr().err


def test_fresh_with_an_unfit_source_leaves_the_old_run(trained, tiny, tmp_path, capsys):
    """What is refused is refused before the old run is moved aside."""
    source = trained("--epochs", 1, name="source")
    before = weights(trained("--epochs", 1))
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--fresh", "--model.latent", 9]
    assert train(*words, "--init_from", source) == 2
    assert weights(tmp_path / "run") == before and not (tmp_path / "run.1").exists()


def test_the_dry_run_says_what_is_copied(trained, tiny, tmp_path, capsys):
    source = trained("--epochs", 1, name="source")
    run_lines(capsys)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    assert train(*words, "--init_from", source, "--dry_run") == 0
    assert "D: 2 of 2 tensors, 256 of 256 parameters from discriminator.safetensors" in run_lines(capsys)
    assert not (tmp_path / "run").exists()


def test_labels_with_other_names_are_said(trained, tmp_path, capsys):
    source = trained("--epochs", 1, "--data.labels", "true", name="source")
    other = tmp_path / "other"
    make_arrays(other, noise(48), labels=torch.arange(48).numpy() % 3)
    run_lines(capsys)
    words = ["--data.shards", other, "--run_dir", tmp_path / "run", *TINY, "--images", 16, "--data.labels", "true"]
    assert train(*words, "--init_from", source) == 0
    expected = "labels have other names than there, and are taken in their order: class0 begins as a"
    assert expected in run_lines(capsys)


@pytest.mark.slow
def test_two_processes_begin_as_one_does(trained, tiny, tmp_path):
    """With a learning rate of nearly 0 they save the source's weights bit for bit, from the same files."""
    group = ["--model.options.norm", "group"]
    source = trained("--epochs", 1, *group, name="source")
    still = ["--g_optimizer.lr", 1e-30, "--d_optimizer.lr", 1e-30]
    words = ["--init_from", source, "--images", 16, "--seed", 1, *group, *still]
    one = trained(*words, name="one")
    launch(2, "--data.shards", tiny, "--run_dir", tmp_path / "two", *TINY, *words)
    a, b = (load(run / "checkpoints" / "16")[0] for run in (one, tmp_path / "two"))
    for name in ("generator", "discriminator", "ema"):
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name])
