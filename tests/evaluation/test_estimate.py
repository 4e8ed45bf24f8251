"""The estimate of an evaluation's time: what it counts, what it says, and that it changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.dataset import open_dataset
from distgan.distributed.processes import Distributed
from distgan.evaluation import estimate as estimates
from distgan.evaluation.estimate import Estimate, about, estimate
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.settings import Settings
from helpers import make_dataset, metrics, noise, reset_accelerate, train


class Random(nn.Module):
    """Images that torch's own generator draws, whatever the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        self.batches.append(len(z))
        return torch.rand(len(z), 3, 8, 8) * 2 - 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("estimated") / "set", noise(300), shards=1)


def make_evaluator(dataset: Path, cache: Path, log=None, **changes) -> Evaluator:
    reset_accelerate()
    processes = Distributed(Config())
    settings = Settings(extractor="pixels", metrics=["fid"], cache=cache, **changes)
    return Evaluator(processes, open_dataset(str(dataset)), settings, log=log)


def test_the_time_of_a_chunk_counts_for_all_images_of_its_kind(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "seconds_of", lambda probe: probe() or 0.32)
    evaluator = make_evaluator(dataset, tmp_path, samples=1000, log=lambda line: None)
    if evaluator.processes.device.type != "cpu":
        pytest.skip("on a GPU a whole chunk is timed")
    G = Random()
    found = estimate(evaluator, G, z_dim=8, spec=None)
    assert (found.generated, found.real, found.to_measure) == (1000, 300, 300)
    assert found.seconds == pytest.approx((1000 + 300) * 0.32 / 32) and G.batches == [32]
    evaluator.prepare()
    assert estimate(evaluator, G, z_dim=8, spec=None).seconds == pytest.approx(1000 * 0.32 / 32)
    again = make_evaluator(dataset, tmp_path, samples=900, reference_images=100, by="class")
    found = estimate(again, G, z_dim=8, spec=again.dataset.spec)
    assert found.generated == 1800, "and as many for the bins"
    assert (found.real, found.to_measure) == (100, 250 + 3 * 83), (
        "in place of half of the images, and 100 or 33 of them"
    )


def test_it_leaves_the_network_and_the_random_numbers_as_they_are(dataset, tmp_path):
    evaluator = make_evaluator(dataset, tmp_path, samples=100)
    G = Random().train()
    before = torch.get_rng_state()
    found = estimate(evaluator, G, z_dim=8, spec=None)
    assert torch.equal(torch.get_rng_state(), before) and G.training and found.seconds > 0
    assert not (tmp_path / "statistics").exists()


def test_what_it_says():
    short = Estimate(40, 5000, 1797, 0, 1, on_cpu=True)
    assert short.line() == "about 40 s on 1 process: 5,000 generated, 1,797 real images (statistics cached)"
    long = Estimate(850, 50_000, 10_000, 20_000, 2, on_cpu=True)
    assert long.line("evaluate.") == (
        "about 14 minutes on 2 processes: 50,000 generated, 10,000 real images (20,000 to read first); shorter with "
        "fewer evaluate.samples, another evaluate.extractor, more processes or a GPU"
    )
    gpu = Estimate(850, 50_000, 10_000, 0, 2, on_cpu=False).line()
    assert gpu is not None and gpu.endswith("another --extractor, more processes")
    assert Estimate(59, 50_000, 10_000, 0, 2, on_cpu=False).line() is None
    assert [about(seconds) for seconds in (0.1, 89, 91, 5000, 9000)] == [
        "1 s",
        "89 s",
        "2 minutes",
        "83 minutes",
        "2.5 hours",
    ]


def test_a_run_says_it_once(dataset, tmp_path, capsys):
    words = ["--data.shards", dataset, "--run_dir", tmp_path / "run", "--model.name", "mlp", "--batch", 20]
    words += ["--images", 600, "--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels"]
    words += ["--evaluate.metrics", "[fid]"]
    assert train(*words, "--evaluate.cache_dir", tmp_path, "--report.page", "false") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "an evaluation takes about" in line]
    assert len(said) == 1 and said[0].endswith("300 generated, 300 real images (300 to read first)")
    assert len([row for row in metrics(tmp_path / "run") if "card" in row]) == 2
