"""Your own losses and networks: `import`, and what is checked before anything is written."""

import re
import sys
from pathlib import Path

import pytest
import torch

import distgan
import distgan.runs.checkpoint
from distgan.commands import sample
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES
from distgan.models import MODELS
from helpers import TINY, metrics, train

PARTS = """
import torch
from torch import nn
from distgan.gan.losses import LOSSES, Loss
from distgan.gan.penalties import PENALTIES, Penalty
from distgan.models import MODELS

LOSSES["squared_hinge"] = Loss(
    d=lambda real, fake: (1 - real).relu() ** 2 + (1 + fake).relu() ** 2, g=lambda fake, real: -fake
)

PENALTIES["logit"] = Penalty(lambda forward: forward.real_logits.square())

class G(nn.Module):
    def __init__(self, size, channels, z_dim):
        super().__init__()
        self.shape = channels, size, size
        self.layer = nn.Linear(z_dim, channels * size**2)

    def forward(self, z, labels=None):
        return self.layer(z).tanh().view(-1, *self.shape)

class D(nn.Module):
    def __init__(self, size, channels):
        super().__init__()
        self.layer = nn.Linear(channels * size**2, 1)

    def forward(self, images, labels=None):
        return self.layer(images.flatten(1)).flatten()

def build(spec, *, z_dim, scale=1.0):
    return G(spec.height, spec.channels, z_dim), D(spec.height, spec.channels)

MODELS["linear"] = build
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Writes the module my_parts into the current folder, with a replacement in its text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(old: str = "", new: str = "") -> None:
        assert old in PARTS
        (tmp_path / "my_parts.py").write_text(PARTS.replace(old, new) if old else PARTS)

    yield write
    sys.modules.pop("my_parts", None)
    LOSSES.pop("squared_hinge", None)
    PENALTIES.pop("logit", None)
    MODELS.pop("linear", None)


OWN = [
    "--import",
    "my_parts",
    "--model.name",
    "linear",
    "--loss",
    "squared_hinge",
    "--model.options",
    "{}",
    "--penalties.logit",
    "0.1",
]


def test_own_parts_without_a_fork(parts, tiny, tmp_path, capsys):
    """A loss and a network by `import`; sampling asks for the same word again."""
    parts()
    words = ["--data.shards", tiny, "--run_dir", "run", *TINY, *OWN]
    assert train(*words, "--epochs", 1) == 0
    assert metrics(Path("run"))[-1]["logit"] > 0 and "logit " in capsys.readouterr().out
    assert "import:\n- my_parts" in Path("run/config.yaml").read_text()
    assert train(*words, "--epochs", 2) == 0  # resumes
    assert sample.main(["run", "--import", "my_parts", "--out", "a.png"]) == 0
    sys.modules.pop("my_parts")
    MODELS.pop("linear")
    assert sample.main(["run", "--out", "b.png"]) == 2  # never taken from the checkpoint
    assert "unknown model 'linear'; choose from cat, dcgan, " in capsys.readouterr().err
    assert "my_parts" not in sys.modules
    with pytest.raises(distgan.UsageError, match="unknown model"):
        distgan.load("run")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d=lambda real, fake:", "d=lambda real:", r"loss: d\(real, fake\) of squared_hinge raises TypeError"),
        (
            "g=lambda fake, real: -fake",
            "g=lambda fake, real: fake.mean()",
            r"returns \[\] for 3 logits; it must return \[3\]",
        ),
        ("real_logits.square()", "real.square()", r"penalties: logit returns \[3, 1, 2, 2\] for 3 images"),
        (
            "(spec, *, z_dim",
            "(*, size, channels, z_dim",
            r"the builder of linear raises TypeError: build.*; it is called as build\(spec, z",
        ),
        ("def forward(self, z, labels=None)", "def forward(self, z)", r"model.name: G\(z, labels\) raises TypeError"),
        (".tanh().view(-1, *self.shape)", "", r"for 2 inputs G returns \[2, 192\]; it must return \[2, 3, 8, 8\]"),
        ("self.layer(images.flatten(1)).flatten()", "self.layer(images)", r"D\(images, labels\) raises RuntimeError"),
        ("self.layer(images.flatten(1)).flatten()", "self.layer(images.flatten(1))[None]", r"D returns \[1, 2, 1\]"),
        ("return self.layer(images.flatten(1)).flatten()", "return None", "D returns NoneType"),
        (
            "return G(spec.height, spec.channels, z_dim), D(spec.height, spec.channels)",
            "return G(spec.height, spec.channels, z_dim)",
            "must return G and D",
        ),
        ("    def forward(self, z, labels=None)", "    def forward(self, z, labels)", "ok"),
    ],
)
def test_the_contract_of_a_network_is_checked_first(parts, tiny, capsys, old, new, message):
    parts(old, new)
    code = train("--data.shards", tiny, "--run_dir", "run", *TINY, *OWN, "--epochs", 1)
    error = capsys.readouterr().err
    if message == "ok":
        assert code == 0
        return
    assert code == 2 and error.count("\n") == 1 and not Path("run").exists()
    assert re.search(message, error), error


def test_own_networks_are_fine_tuned(parts, tiny, capsys):
    """Copied by name like others; `freeze_d` needs an attribute."""
    parts()
    words = ["--data.shards", tiny, *TINY, *OWN, "--epochs", 1]
    assert train(*words, "--run_dir", "source") == 0
    assert train(*words, "--run_dir", "run", "--init_from", "source") == 0
    assert "G: 2 of 2 tensors, 1,728 of 1,728 parameters from generator.safetensors" in capsys.readouterr().out
    assert train(*words, "--run_dir", "frozen", "--init_from", "source", "--freeze_d", 1) == 2
    assert "freeze_d: D has no attribute `layers_from_image`, the list of its layers" in capsys.readouterr().err


def test_a_network_that_ignores_labels_is_refused(parts, tiny, capsys):
    parts()
    words = ["--data.shards", tiny, "--run_dir", "run", *TINY, *OWN, "--data.labels", "true"]
    assert train(*words) == 2
    assert "data.labels: G ignores labels" in capsys.readouterr().err and not Path("run").exists()


def test_a_module_that_cannot_be_imported(parts, tiny, capsys):
    assert train("--data.shards", tiny, "--run_dir", "run", *TINY, "--import", "[nowhere]") == 2
    assert "import: nowhere cannot be imported: No module named" in capsys.readouterr().err


def test_options_of_the_optimizers(trained, tiny):
    """eps, weight_decay and clip reach the update; a large clip changes nothing."""
    runs = {
        "plain": [],
        "wide": ["--d_optimizer.clip", 1e6],
        "clip": ["--d_optimizer.clip", 1e-3],
        "eps": ["--d_optimizer.eps", 1e-2],
        "decay": ["--d_optimizer.weight_decay", 0.1],
    }
    weights = {}
    for name, words in runs.items():
        run = trained("--images", 32, *words, name=name)
        weights[name] = distgan.runs.checkpoint.load(run / "checkpoints" / "32")[0]["discriminator"]["head.weight"]
    assert torch.equal(weights["plain"], weights["wide"])
    assert not any(torch.equal(weights["plain"], weights[name]) for name in ("clip", "eps", "decay"))
