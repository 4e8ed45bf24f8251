"""Fine-tuning a network of another project, from its file to a run that resumes."""

import json

from safetensors.torch import load_file

from distgan.commands.convert import main as convert
from foreign_files import Z_DIM, build, write_rosinality
from helpers import make_dataset, noise, train

OPTIONS = {"channel_base": 64, "channel_max": 6, "w_dim": 7, "mapping_layers": 2}


def test_a_converted_network_is_fine_tuned(tmp_path, capsys):
    G, D = build()
    write_rosinality(tmp_path / "g.pt", G, G, D)
    assert convert([str(tmp_path / "g.pt"), str(tmp_path / "there"), "--licence", "for research"]) == 0
    data = make_dataset(tmp_path / "set", noise(16, size=16, channels=3))
    model = {"name": "stylegan2", "latent": Z_DIM, "options": OPTIONS}
    words = ["--data.shards", data, "--model", json.dumps(model), "--batch", 4, "--images", 8, "--ema.warmup", 0]
    words += ["--init_from", tmp_path / "there", "--freeze_d", 1, "--run_dir", tmp_path / "run"]
    assert train(*words) == 0
    said = capsys.readouterr().out
    assert "licence: for research" in said and "w_mean, which training would not keep up to date" in said
    before = load_file(tmp_path / "there/discriminator.safetensors")
    after = load_file(tmp_path / "run/checkpoints/8/discriminator.safetensors")
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == {name for name in before if not name.startswith("from_image.")}
    ema = load_file(tmp_path / "run/checkpoints/8/ema.safetensors")
    theirs = load_file(tmp_path / "there/ema.safetensors")
    assert all((ema[name] - theirs[name]).abs().max() < 0.1 for name in ema) and theirs.keys() - ema.keys() == {
        "w_mean"
    }


def test_a_mean_that_training_does_not_update_is_refused(tmp_path, capsys):
    data = make_dataset(tmp_path / "set", noise(16, size=16, channels=3))
    model = {"name": "stylegan2", "latent": Z_DIM, "options": OPTIONS | {"w_mean": True}}
    assert train("--data.shards", data, "--model", json.dumps(model), "--run_dir", tmp_path / "run") == 2
    assert "model.options.w_mean: it is of converted networks" in capsys.readouterr().err
