"""Captured iterations equal eager ones; on a CPU, where a graph is the recorded operations of an iteration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distgan.config.keys import Config, OptimizerConfig
from distgan.errors import UsageError
from distgan.gan.adam import TensorAdam
from distgan.gan.ema import EMA
from distgan.training import captured
from distgan.training.captured import CapturedIteration
from distgan.training.checks import check_graph
from helpers import metrics, train, weights

FALLING = "{from: 0.01, to: 0.0001, images: 200}"
SCHEDULES = [
    *("--g_optimizer.lr", FALLING, "--g_optimizer.betas", "[0, {from: 0.9, to: 0.99, images: 200}]"),
    *("--augment", "[color, translation]", "--augment_p", "{from: 0.0, to: 1.0, images: 100}"),
]
CASES: dict[str, list[str]] = {
    "classic": ["--data.labels", "true", "--data.flip", "true", "--ema.power_widths", "[0.05, 0.1]"],
    "schedules": [
        *("--model.options.norm", "none", "--loss", "rpgan"),
        *("--penalties", f"{{r1: {FALLING}, r2: {{weight: 0.1, every: 3}}}}", *SCHEDULES),
    ],
    "adaptive p": ["--augment", "[cutout]", "--augment_p", "{target: 0.0, images: 100}", "--d_optimizer.clip", "0.1"],
    "micro-batches": [
        *("--micro_batch", "8", "--n_critic", "2", "--loss", "wgan", "--penalties.wgan_gp", "10"),
        *("--model.options.d_norm", "group", "--d_optimizer.weight_decay", "0.1", *SCHEDULES[:4]),
    ],
    "bf16": ["--precision", "bf16", "--model.options.d_norm", "spectral"],
    "frozen network": [
        *(
            "--model.name",
            "gat",
            "--model.options",
            "{width: 16, depth: 2, heads: 2, stages: 2, patch: 4, embedding: 8}",
        ),
        *("--loss", "rpgan", "--g_minibatch", "same", "--penalties", "{r1_fd: {weight: 100, sigma: 0.1, share: 0.5}}"),
        *("--augment", "[color, flip]", "--terms", "{align: {weight: 0.01, path: DINOV2}, consistency: 0.1}"),
    ],
}


def newest(run: Path, name: str) -> dict[str, torch.Tensor]:
    folder = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_captured_equals_eager(trained, captures, tiny_dinov2, case):
    """After 15 iterations, up to rounding: running statistics and the EMA are computed by other operations."""
    words = [*(word.replace("DINOV2", str(tiny_dinov2)) for word in CASES[case]), "--epochs", 3]
    words += ["--report.every_images", 16]
    runs = [trained(*words, "--graph", value, name=value) for value in ("false", "true")]
    for name in ("generator", "discriminator", "ema", *(["power_ema"] if case == "classic" else [])):
        eager, replayed = (newest(run, name) for run in runs)
        for key, expected in eager.items():
            scale = float(expected.abs().max()) if expected.is_floating_point() else 1
            assert (replayed[key] - expected).abs().max() <= 2e-5 * scale, (name, key)
    rows = [
        [
            {k: row[k] for k in row if k.startswith(("d_", "g_", "r1", "r2", "augment", "align", "consistency"))}
            for row in metrics(run)
        ]
        for run in runs
    ]
    for expected, row in zip(*rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert [capture.captures for capture in captures] == [2 if case == "schedules" else 1]


@pytest.mark.parametrize("case", ["classic", "schedules"])
def test_resumed_equals_undisturbed(trained, captures, case):
    words = [*CASES[case], "--graph", "true"]
    undisturbed = trained(*words, "--epochs", 2, name="undisturbed")
    trained(*words, "--epochs", 1, name="resumed")
    assert weights(trained(*words, "--epochs", 2, name="resumed")) == weights(undisturbed)
    assert len(captures) == 3


def test_warm_up_and_capture_change_nothing(trained, captures, monkeypatch):
    """One iteration with many warm-ups is one iteration with few."""
    runs = []
    for count in (1, 5):
        monkeypatch.setattr(captured, "WARM_UP", count)
        runs.append(weights(trained("--images", 16, "--graph", "true", name=str(count))))
    assert runs[0] == runs[1]


def test_a_number_of_the_host_is_noticed(trained, captures, monkeypatch):
    """What Python computes in an iteration stays as it was when it was captured."""

    def update(self: EMA, G: torch.nn.Module, weight: Any) -> None:
        moves.append(0.5 ** len(moves))
        plain(self, G, moves[-1])

    moves: list[float] = []
    plain = EMA.update
    monkeypatch.setattr(EMA, "update", update)
    runs = []
    for value in ("false", "true"):
        moves.clear()
        runs.append(newest(trained("--epochs", 1, "--graph", value, "--g_optimizer.lr", 0.1, name=value), "ema"))
    assert any((runs[0][key] - runs[1][key]).abs().max() > 1e-3 for key in runs[0])


def test_a_rollback_captures_anew(trained, captures, monkeypatch):
    """The restored optimizer has other tensors than the captured one."""
    poisoned: list[int] = []
    call: Callable = CapturedIteration.__call__

    def poison(self: CapturedIteration, *arguments: Any) -> Any:
        outcome = call(self, *arguments)
        poisoned.append(1)
        return outcome._replace(norms=outcome.norms * float("nan")) if len(poisoned) == 8 else outcome

    monkeypatch.setattr(CapturedIteration, "__call__", poison)
    words = ["--graph", "true", "--guard.rollbacks", 1, "--checkpoint.wait", "true"]
    run = trained(*words, "--epochs", 2)
    assert weights(run)["images"] == 160 and len(captures) == 2 and len(poisoned) > 10
    assert captures[1].captures == 1


def test_refusals(tiny, tmp_path, capsys):
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", "--graph", "true") == 2
    assert "graph: CUDA graphs need a CUDA GPU, and this run is on cpu" in capsys.readouterr().err
    beta2 = {"from": 0.9, "to": 0.99, "images": 200}
    optimizer = OptimizerConfig(betas=(0.0, beta2))
    with pytest.raises(UsageError, match="g_optimizer"):
        check_graph(Config(graph=True, precision="fp16", g_optimizer=optimizer), torch.device("cuda"))
    check_graph(Config(graph=True, precision="bf16", g_optimizer=optimizer), torch.device("cuda"))


@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
def test_adam_with_tensors_equals_torchs(weight_decay, decoupled):
    """In float64, while beta2 and the learning rate change."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    kinds = (torch.optim.Adam, TensorAdam)
    numbers: Any = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": weight_decay}
    numbers["decoupled_weight_decay"] = decoupled
    optimizers = [kind(layer.parameters(), **numbers) for kind, layer in zip(kinds, layers, strict=True)]
    lr = torch.tensor(0.0, dtype=torch.float64)
    beta2 = torch.tensor(0.0, dtype=torch.float64)
    for i in range(10):
        lr.fill_(0.1 / (i + 1))
        beta2.fill_(0.9 + 0.005 * i)
        optimizers[0].param_groups[0].update(lr=float(lr), betas=(0.5, float(beta2)))
        optimizers[1].param_groups[0].update(lr=lr, betas=(0.5, beta2))
        x = torch.randn(5, 3, dtype=torch.float64)
        for optimizer, layer in zip(optimizers, layers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    for expected, parameter in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.allclose(parameter, expected, rtol=1e-12, atol=0)
