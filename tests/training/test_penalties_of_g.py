"""Runs with path length and with updates for penalties alone, on every path; and what is refused of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distgan.config.entries import PenaltyEntry, parse_penalty
from distgan.config.keys import Config, ModelConfig, OptimizerConfig
from distgan.errors import UsageError
from distgan.gan.g_penalties import G_PENALTIES, GPenalty
from distgan.models import MODELS
from distgan.samples import SampleSpec
from distgan.training.checks import check_config
from distgan.training.noise_checks import check_shares
from distgan.training.optimizers import adam, lazy_factor
from distgan.training.penalty_checks import check_g_penalties, check_penalized_g
from helpers import computed, launch, metrics, train, weights

R1 = "{r1: {weight: 1, every: 4, separate: true}}"
PATH_LENGTH = "{path_length: {weight: 2, every: 2, separate: true, share: 0.5}}"
OPTIONS = "{w_dim: 8, mapping_layers: 2, channel_base: 64, channel_max: 16, group: 2}"
# with so large an eps Adam does not take rounding for a direction
ADAM = [f"--{network}_optimizer.{key}" for network in "gd" for key in ("lr=1e-3", "betas=[0,0.99]", "eps=1e-3")]
WORDS = [
    *("--model.name=stylegan2", f"--model.options={OPTIONS}", "--model.latent=8", "--batch=16", "--data.lanes=8"),
    *(f"--penalties={R1}", f"--g_penalties={PATH_LENGTH}", "--report.every_images=16", "--samples.count=16", *ADAM),
]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Callable[..., Path]:
    """Trains 6 iterations, or with more words; returns the folder, the same one for the same name."""
    root = tmp_path_factory.mktemp("runs")

    def train_named(name: str, *words: object, images: int = 96) -> Path:
        assert train(f"--data.shards={tiny}", *WORDS, f"--images={images}", f"--run_dir={root / name}", *words) == 0
        return root / name

    return train_named


@pytest.fixture(scope="module")
def whole(run) -> Path:
    return run("whole")


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))


def tensors(run: Path) -> dict[str, Tensor]:
    """Weights of both networks and of the EMA, optimizers' state."""
    files = ("generator", "discriminator", "ema", "optimizers")
    found = {f"{file}.{key}": t for file in files for key, t in load_file(newest(run) / f"{file}.safetensors").items()}
    return {key: value for key, value in found.items() if not key.endswith("exp_avg_sq")}


def running_mean(run: Path) -> float:
    return json.loads((newest(run) / "state.json").read_text())["g_penalty_means"]["path_length"]


def check_same(run: Path, expected: Path, tolerance: float) -> None:
    """Scalars, weights and the running mean agree within the tolerance of their largest."""
    for row, other in zip(metrics(expected), metrics(run), strict=True):
        names = [name for name in row if name.startswith(("d_", "g_", "r1", "path_length"))]
        values = {name: row[name] for name in names}
        assert {name: other[name] for name in names} == pytest.approx(values, rel=tolerance, abs=tolerance)
    ours = tensors(run)
    for key, value in tensors(expected).items():
        assert (ours[key] - value).abs().max() <= tolerance * max(float(value.abs().max()), 1e-2), key
    assert running_mean(run) == pytest.approx(running_mean(expected), rel=tolerance)


def test_what_is_due_and_what_is_logged(whole):
    """Path length in every second iteration, r1 in every fourth, each with the norm of its gradient."""
    for i, row in enumerate(metrics(whole)):
        assert ({"r1", "d_penalty_grad_norm"} <= row.keys()) == (i % 4 == 0)
        assert ({"path_length", "path_length_mean", "g_penalty_grad_norm"} <= row.keys()) == (i % 2 == 0)
        assert row["g_lr"] == pytest.approx(1e-3 * 2 / 3) and row["d_lr"] == pytest.approx(1e-3 * 4 / 5)
    steps = {name: float(value) for name, value in tensors(whole).items() if name.endswith(".step")}
    assert {value for name, value in steps.items() if ".generator." in name} == {6 + 3}
    assert {value for name, value in steps.items() if ".discriminator." in name} == {6 + 2}


def test_the_running_mean_follows_the_lengths(whole):
    """With the decay 0.99 from 0; the penalty of an update compares with the mean before it, at first 0."""
    rows = [row for row in metrics(whole) if "path_length" in row]
    means = [row["path_length_mean"] for row in rows]
    assert 0 < means[0] < means[1] < means[2] == running_mean(whole)
    first_length = means[0] / 0.01
    # the mean of squares is at least the square of the mean
    assert 1 <= rows[0]["path_length"] / (2 * first_length**2) < 1.5


@pytest.mark.parametrize("images", [16, 48])
def test_killed_in_the_middle_of_lazy_intervals_the_run_resumes_bit_for_bit(run, whole, images):
    parts = run(f"parts {images}", images=images)
    assert running_mean(parts) > 0
    run(f"parts {images}")
    assert weights(parts) == weights(whole) and computed(parts) == computed(whole)
    assert running_mean(parts) == running_mean(whole)


def test_an_older_checkpoint_without_running_means_is_resumed(run):
    """They are 0 then: no run of that version had penalties of G."""
    older = run("older", images=32)
    state = newest(older) / "state.json"
    content = json.loads(state.read_text())
    del content["g_penalty_means"]
    state.write_text(json.dumps(content))
    run("older", images=48)
    assert 0 < running_mean(older) < metrics(older)[0]["path_length_mean"] * 1.5


@pytest.mark.slow
def test_two_processes_compute_the_same_as_one(tiny, whole, tmp_path):
    done = launch(2, f"--data.shards={tiny}", *WORDS, "--images=96", f"--run_dir={tmp_path / 'two'}")
    assert "2 process(es), cpu" in done.stdout
    check_same(tmp_path / "two", whole, 1e-4)


def test_micro_batches_add_up(run, whole):
    check_same(run("micro", "--micro_batch=4"), whole, 1e-4)


def test_bf16_is_close(run, whole):
    for row, half in zip(metrics(whole), metrics(run("bf16", "--precision=bf16")), strict=True):
        assert half["g_loss"] == pytest.approx(row["g_loss"], abs=0.05)
        if "path_length" in row:
            assert half["path_length_mean"] == pytest.approx(row["path_length_mean"], rel=0.1)


def test_g_sees_no_augmentation_in_its_path_length(run, whole):
    """The first path length is that of a run without."""
    augmented = metrics(run("augmented", "--augment=[cutout]", images=16))[0]
    assert augmented["g_loss"] != metrics(whole)[0]["g_loss"]
    assert augmented["path_length_mean"] == pytest.approx(metrics(whole)[0]["path_length_mean"], rel=0.05)


def test_separate_in_every_iteration_changes_nothing(run):
    """Bit for bit: the penalty is a part of the loss, and lr and betas stay."""
    runs = []
    for separate in ("", ", separate: true"):
        d, g = (f"{{{name}: {{weight: 1, every: 1{separate}}}}}" for name in ("r1", "path_length"))
        runs.append(run(f"every 1{separate}", f"--penalties={d}", f"--g_penalties={g}", images=48))
    plain, separated = (tensors(each) for each in runs)
    assert all(torch.equal(plain[name], separated[name]) for name in plain) and computed(runs[0]) == computed(runs[1])


def test_captured_equals_eager(run, whole, captures):
    """One graph for each set of due penalties of both networks; the warm-up leaves the running mean as it was."""
    check_same(run("captured", "--graph=true"), whole, 2e-5)
    assert [each.captures for each in captures] == [3]  # both, none, path length alone


class LinearG(nn.Module):
    """images = A w with w = B z: what torch compiles in seconds."""

    def __init__(self, spec: SampleSpec, z_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.mapping = nn.Linear(z_dim, 4)
        self.synthesis = nn.Linear(4, spec.channels * spec.height * spec.width)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        w = self.mapping(z)[:, None].repeat(1, 2, 1)
        return {"images": self.synthesis(w.mean(1)).tanh().view(-1, *self.spec.shape), "w": w}


@pytest.mark.slow
def test_compiled_equals_eager_and_is_compiled_once(run, graphs, monkeypatch, capsys):
    """G with and without its graph; the objectives; those of the penalties; joint, a variant of G's objective."""
    monkeypatch.setitem(
        MODELS, "linear", lambda spec, *, z_dim: (LinearG(spec, z_dim), MODELS["mlp"](spec, z_dim=z_dim, width=4)[1])
    )
    words = ["--model.name=linear", "--model.options={}", "--penalties={r1: {weight: 1, every: 2, separate: true}}"]
    expected = run("linear", *words)
    graphs.clear()
    compiled = run("linear compiled", *words, "--compile=true")
    assert "compiled in" in capsys.readouterr().out
    assert graphs == [graphs[0]] * 6 and 4 <= graphs[0] <= 6
    check_same(compiled, expected, 1e-4)


def test_the_correction_of_the_optimizers():
    """c = N / (N + 1) of lr, beta1 and beta2; none for penalties of the loss."""
    network, keys = nn.Linear(2, 2), OptimizerConfig(lr=0.002, betas=(0.9, 0.99))
    for every, c in ((1, 1.0), (4, 4 / 5), (16, 16 / 17)):
        entries = {"r1": parse_penalty("r1", {"weight": 1, "every": every, "separate": True})}
        assert lazy_factor(entries) == pytest.approx(c, rel=1e-15)
        (group,) = adam(network, keys, lazy=lazy_factor(entries)).param_groups
        assert group["lr"] == pytest.approx(0.002 * c, rel=1e-15)
        assert group["betas"] == pytest.approx((0.9**c, 0.99**c), rel=1e-15)
    assert lazy_factor({"r1": PenaltyEntry(1, 16)}) == 1


def with_penalties(**keys: Any) -> Config:
    return Config(batch=16, **keys)


LAZY = {"weight": 1, "every": 4, "separate": True}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"penalties": {"r1": LAZY, "r2": {**LAZY, "every": 8}}},
            "penalties.r2.every: 8 iterations, and 4 of r1, which is separate too",
        ),
        ({"g_penalties": {"lenght": 1}}, "g_penalties: unknown penalty of G 'lenght'; choose from path_length"),
        (
            {"precision": "fp16", "g_penalties": {"path_length": 2}},
            "g_penalties: gradients of gradients overflow and underflow in fp16; use precision bf16 or no",
        ),
        (
            {"g_penalties": {"r1": 1}, "penalties": {"r1": 1}},
            "g_penalties.r1: an entry of penalties has the same name; rename one of yours",
        ),
    ],
)
def test_configurations_that_are_refused(monkeypatch, config, message):
    if "r1" in config.get("g_penalties", ()):
        monkeypatch.setitem(G_PENALTIES, "r1", G_PENALTIES["path_length"])
    with pytest.raises(UsageError, match=message):
        check_config(with_penalties(**config))


def test_different_intervals_of_both_networks_or_of_the_loss_are_not_refused():
    check_config(
        with_penalties(
            penalties={"r1": LAZY, "r2": {"weight": 1, "every": 8}}, g_penalties={"path_length": {**LAZY, "every": 8}}
        )
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weight": 1, "separate": 1}, "g_penalties.path_length.separate: expected true or false, got 1"),
        ({"weight": 1, "sigma": 1}, "g_penalties.path_length.sigma: no such key; expected {weight: .*, separate: "),
        ({"weight": 1, "share": 0.3}, "g_penalties.path_length.share: expected 1, or a unit fraction"),
    ],
)
def test_options_that_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        with_penalties(g_penalties={"path_length": value})


def test_shares_that_depend_on_the_processes_are_refused():
    config = with_penalties(g_penalties={"path_length": {"weight": 1, "share": 0.25}})
    check_shares(config, 16, 4)
    with pytest.raises(UsageError, match="g_penalties.path_length.share: one image of 4 would depend on the number"):
        check_shares(config, 8, 4)


class Detached(LinearG):
    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        output = super().forward(z, labels)
        return {"images": output["images"], "w": output["w"].clone()}


class Normalized(LinearG):
    def __init__(self, spec: SampleSpec, z_dim: int) -> None:
        super().__init__(spec, z_dim)
        self.mapping = nn.Sequential(nn.Linear(z_dim, 4), nn.BatchNorm1d(4))  # type: ignore[assignment]


class WithoutW(LinearG):
    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(z, labels)["images"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (WithoutW, "g_penalties.path_length: G of the model mine returns no w, .* take the model stylegan2"),
        (Detached, "g_penalties.path_length: the images that G returns do not depend on the w that it returns"),
        (Normalized, "g_penalties.path_length: G has BatchNorm, through which an image depends on the w of the others"),
    ],
)
def test_generators_that_are_refused(network, message):
    spec = SampleSpec(4, 4, 1)
    config = with_penalties(model=ModelConfig(name="mine", latent=3), g_penalties={"path_length": 1})
    check_penalized_g(config, LinearG(spec, 3), spec)
    G = network(spec, 3)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        check_penalized_g(config, G, spec)
    assert all(torch.equal(before[name], value) for name, value in G.state_dict().items())


def test_a_penalty_of_the_users_that_is_not_per_sample_is_refused(monkeypatch):
    monkeypatch.setitem(G_PENALTIES, "mine", GPenalty(lambda sample: sample.w.mean(), lambda value, mean: value))
    with pytest.raises(UsageError, match=r"g_penalties: mine returns \[\] for 3 images; it must return \[3\]"):
        check_g_penalties(["mine"])
    monkeypatch.setitem(G_PENALTIES, "mine", GPenalty(lambda sample: sample.v, lambda value, mean: value))  # type: ignore
    with pytest.raises(UsageError, match="g_penalties: mine raises AttributeError"):
        check_g_penalties(["mine"])
    check_g_penalties(["path_length"])


def test_a_dry_run_counts_penalties_of_g(tiny, tmp_path, capsys):
    flops = []
    for more in ([], ["--g_penalties={}"]):
        assert train(f"--data.shards={tiny}", *WORDS, f"--run_dir={tmp_path}", "--dry_run", *more) == 0
        out = capsys.readouterr().out
        assert ("path_length_mean" in out) == (not more)
        flops.append(float(out.split("FLOPs of an iteration: ")[1].split(" G")[0]))
    assert flops[0] >= flops[1]
