"""`distgan publish`, and generators on the hub: against a stand-in server, and without network."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import distgan
import distgan.commands.publish
from distgan.commands import evaluate
from distgan.errors import UsageError
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.publication import without_paths
from distgan.hub import parse_address
from distgan.runs.checkpoint import load_weights
from distgan.samples import SampleSpec
from helpers import ROOT, TINY, save_generator, train
from hub_server import Hub

SAMPLE = "import distgan, sys; G = distgan.load(sys.argv[1]); print(G.sample(4).sum().item())"
WITHOUT_NETWORK = """
import socket
def refuse(*arguments): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
TRAINER = ("distgan.training", "distgan.commands", "distgan.config", "distgan.evaluation", "distgan.distributed")
TRAINER += ("accelerate", "webdataset", "torch_fidelity", "torchvision", "huggingface_hub")


def publish(*words: object) -> int:
    return distgan.commands.publish.main([str(word) for word in words])


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: the hub's client reads its environment once."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run of two evaluations, in a folder whose name is not to be told."""
    folder = tmp_path_factory.mktemp("secret-place") / "tiny-run"
    words = ["--data.shards", tiny, "--run_dir", folder, *TINY, "--epochs", 2, "--data.labels", "true"]
    evaluate = ["--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels", "--evaluate.samples", 40]
    assert train(*words, *evaluate, "--evaluate.cache_dir", folder.parent / "cache") == 0
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    assert publish(run, "me/tiny", "--out", folder, "--licence", "apache-2.0") == 0
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


def test_a_folder_has_the_weights_and_no_path(run, published):
    """Nothing of the machine is in it: neither where the run is nor where its data is."""
    assert {path.name for path in published.iterdir()} == {
        "README.md",
        "config.json",
        "config.yaml",
        "model.safetensors",
        "samples.png",
    }
    best = json.loads((run / "best.json").read_text())["images"]
    expected = load_file(run / "checkpoints" / str(best) / "ema.safetensors")
    weights = load_file(published / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    everything = b"".join(path.read_bytes() for path in published.iterdir())
    assert b"secret-place" not in everything and str(run.parent.parent).encode() not in everything
    config = json.loads((published / "config.json").read_text())
    assert config["library_name"] == "distgan" and config["config"]["model"]["name"] == "dcgan"
    assert yaml.safe_load((published / "config.yaml").read_text())["run_dir"] == "tiny-run"


def test_the_card_says_what_others_need(published, run):
    text = (published / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "apache-2.0" and header["library_name"] == "distgan"
    assert header["pipeline_tag"] == "unconditional-image-generation" and "dcgan" in header["tags"]
    best = json.loads((run / "best.json").read_text())
    assert f"{best['images']:,} images seen" in text and 'distgan.load("hf://me/tiny")' in text
    assert re.search(rf"\| fd_pixels \| {best['value']:.5g} \| [\d.]+ \| lower \|", text)
    assert f"EMA of G, seed 0, distgan {distgan.__version__} " in text and "(real against real: 40 against" in text
    assert "40 generated and 80 real images" in text and "must not be called so" in text
    assert "data.labels: true" in text and "classes: a, b, c" in text
    assert "licence of these weights" not in text
    # its block of YAML is the configuration where it is not the default
    block = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    assert block["model.latent"] == 8 and "loss" not in block


def test_the_folder_is_loaded_and_saved_again(published, run, tmp_path):
    images = distgan.load(run).sample(4)
    G = PretrainedGenerator.from_pretrained(published)
    assert load_weights(published / "model.safetensors")[1].is_ema("model")
    assert torch.equal(G.sample(4), images)
    G.save_pretrained(tmp_path / "again")
    assert torch.equal(distgan.load(tmp_path / "again").sample(4), images)
    # a run can begin with it
    words = ["--data.labels", "true", "--images", 16, "--init_from", tmp_path / "again"]
    shards = yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"]
    assert train("--data.shards", shards, "--run_dir", tmp_path / "tuned", *TINY, *words) == 0


@pytest.mark.slow  # ten processes
def test_pushed_and_loaded_again_also_without_network(run, hub, tmp_path):
    environment = hub.environment(tmp_path / "cache")
    code = "import sys; from distgan.commands.publish import main; sys.exit(main(sys.argv[1:]))"
    words = [str(run), "me/tiny", "--licence", "mit", "--out"]
    done = python(code, *words, str(tmp_path / "dry"), **environment)
    assert done.returncode == 0 and "nothing was sent; --push sends these files to hf://me/tiny, public" in done.stdout
    assert not hub.repositories
    done = python(code, *words, str(tmp_path / "sent"), "--push", "--private", **environment)
    assert done.returncode == 0, done.stderr
    assert f"sent: {hub.endpoint}/me/tiny" in done.stdout and not done.stderr
    assert hub.repositories["me/tiny"].keys() == {path.name for path in (tmp_path / "sent").iterdir()}
    assert hub.visibility["me/tiny"] == "private" and hub.commits == ["tiny, by distgan publish"]
    expected = python(SAMPLE, str(run)).stdout
    for address in ("hf://me/tiny", "hf://me/tiny@main", f"hf://me/tiny@{hub.sha('me/tiny')}"):
        done = python(SAMPLE, address, **environment)
        assert done.stdout == expected and not done.stderr
    hub.close()
    done = python(SAMPLE, "hf://me/tiny", **environment, HF_HUB_OFFLINE="1")
    assert done.stdout == expected and not done.stderr
    done = python(WITHOUT_NETWORK + SAMPLE, "hf://me/tiny", **environment, HF_HUB_OFFLINE="1")
    assert done.stdout == expected and not done.stderr


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("POST /api/repos", 403, "403"),
        pytest.param("POST /api/models/me/tiny/preupload", 500, "500", marks=pytest.mark.slow),  # it tries again
        ("PUT /objects", 400, "400"),
        ("POST /api/models/me/tiny/commit", 412, "412"),
    ],
)
def test_what_fails_is_one_line_and_nothing_is_published(published, hub, fault, status, words, tmp_path):
    hub.faults[fault] = status
    code = "import sys; from pathlib import Path; from distgan.hub import upload\n" + (
        "try: upload(Path(sys.argv[1]), 'me/tiny', private=False, message='x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = python(code, str(published), **hub.environment(tmp_path / "cache"))
    assert not hub.commits and not hub.repositories.get("me/tiny")
    line = done.stdout
    assert line.startswith("RunError hf://me/tiny: ") and words in line and "nothing was published" in line
    assert line.count("\n") == 1


@pytest.mark.slow  # a process that imports torch and the client
def test_without_a_token_the_line_says_what_to_do(published, hub, tmp_path):
    code = "import sys; from distgan.commands.publish import main; sys.exit(main(sys.argv[1:]))"
    words = [str(published), "me/tiny", "--out", str(tmp_path / "out"), "--push"]
    done = python(code, *words, **hub.environment(tmp_path / "cache", token=None))
    assert done.returncode == 1 and not hub.repositories
    assert "hf auth login" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow  # three processes, and the client tries again
def test_a_repository_that_cannot_be_read_is_one_line(hub, tmp_path):
    hub.repositories["me/other"] = {"README.md": b"# of another library"}
    hub.repositories["me/foreign"] = {"model.safetensors": foreign_weights(tmp_path)}
    environment = hub.environment(tmp_path / "cache")
    code = "import sys, distgan\nfor address in sys.argv[1:]:\n" + (
        " try: distgan.load(address)\n except distgan.UsageError as error: print(error)"
    )
    addresses = ["hf://me/missing", "hf://me/other", "hf://me/foreign", "hf://me/other@v9", "hf://nobody"]
    lines = python(code, *addresses, **environment).stdout.splitlines()
    assert len(lines) == 5
    assert "hf://me/missing: RepositoryNotFoundError" in lines[0]
    assert "has no model.safetensors; give a repository that `distgan publish` wrote" in lines[1]
    assert "is not a distgan checkpoint" in lines[2]
    assert "hf://me/other@v9: RevisionNotFoundError" in lines[3]
    assert "hf://nobody: a generator on the hub is hf://OWNER/NAME" in lines[4]
    hub.truncated = True
    done = python(code, "hf://me/foreign", **hub.environment(tmp_path / "empty"), HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert len(done.stdout.splitlines()) == 1 and "hf://me/foreign: " in done.stdout
    hub.close()
    done = python(code, "hf://me/other", **hub.environment(tmp_path / "third"))
    assert len(done.stdout.splitlines()) == 1 and "hf://me/other: " in done.stdout


def foreign_weights(folder: Path) -> bytes:
    save_file({"weight": torch.zeros(2)}, folder / "foreign.safetensors")
    return (folder / "foreign.safetensors").read_bytes()


def test_loading_imports_no_part_of_the_trainer(published):
    code = "import sys; from distgan.generators.pretrained import PretrainedGenerator\n" + (
        "PretrainedGenerator.from_pretrained(sys.argv[1]).sample(2)\n"
        f"print([name for name in sys.modules if name.startswith({TRAINER!r})])"
    )
    done = python(code, str(published))
    assert done.stdout == "[]\n", done.stderr


def test_the_licence_of_other_weights_stays_with_a_run_that_begins_with_them(tiny, tmp_path, capsys):
    """Through a resume and into the card; they are sent with a licence that is given only."""
    spec = SampleSpec(8, 8, 3)
    source = {"name": "faces.pkl", "sha256": "0" * 64, "format": "official"}
    model = {"name": "dcgan", "latent": 8, "options": {"width": 4}}
    given = save_generator(tmp_path / "faces.safetensors", spec, model=model, licence="for research", source=source)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "tuned", *TINY, "--init_from", given, "--images"]
    assert train(*words, 16) == 0
    assert train(*words, 32) == 0
    _, metadata = load_weights(tmp_path / "tuned" / "checkpoints" / "32" / "ema.safetensors")
    origin = "weights of faces.pkl (official); licence: for research"
    assert metadata.origins == [origin] and metadata.provenance == f"fine-tuned from {origin}"
    assert train(*words[:3], tmp_path / "twice", *TINY, "--init_from", tmp_path / "tuned", "--images", 16) == 0
    _, metadata = load_weights(tmp_path / "twice" / "checkpoints" / "16" / "ema.safetensors")
    assert metadata.provenance == f"fine-tuned from {origin}"
    capsys.readouterr()
    assert publish(tmp_path / "tuned", "me/faces", "--out", tmp_path / "out", "--push") == 2
    error = capsys.readouterr().err
    assert "licence: these weights are not only yours" in error and "for research" in error
    assert not (tmp_path / "out").exists()
    assert publish(tmp_path / "tuned", "me/faces", "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Not trained from scratch: fine-tuned from {origin}" in card


def test_a_folder_is_sent_as_it_was_written_or_not_at_all(published, run, tmp_path, monkeypatch, capsys):
    """The command that failed, or only wrote, is run again; what was edited by hand is not replaced."""
    sent: list[Path] = []
    monkeypatch.setattr(distgan.commands.publish, "upload", lambda folder, *_, **options: sent.append(folder))
    words = [run, "me/tiny", "--out", published, "--licence", "apache-2.0", "--push"]
    assert publish(*words) == 0 and sent == [published]
    edited = tmp_path / "edited"
    shutil.copytree(published, edited)
    (edited / "README.md").write_text("by hand")
    words[3] = edited
    assert publish(*words) == 2 and sent == [published]
    assert "its README.md is not what would be written now; give a new folder, or delete it" in capsys.readouterr().err
    assert (edited / "README.md").read_text() == "by hand"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited"]


def test_a_corrupt_card_of_the_run_is_named(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "cards").mkdir(exist_ok=True)
    (copy / "cards" / "16-pixels.json").write_text('{"metrics": ')
    assert publish(copy, "me/x", "--out", tmp_path / "out") == 2
    assert "16-pixels.json is not a metric card; remove it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_refusals(published, tmp_path, capsys):
    for words, message in (
        ([published, "tiny"], "repository: 'tiny' is not OWNER/NAME"),
        ([published, "me/x", "--out", published], "is there already, and its README.md is not"),
        ([tmp_path / "nothing.safetensors", "me/x", "--out", tmp_path / "a"], "no such file"),
    ):
        assert publish(*words) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="a VAE on the hub is hf://OWNER/NAME"):
        parse_address("hf://x", "a VAE")


def test_without_the_client_the_extra_is_named():
    with mock.patch.dict(sys.modules, {"huggingface_hub": None}), pytest.raises(UsageError, match=r"distgan\[hub\]"):
        distgan.load("hf://me/tiny")


def test_paths_are_cut_to_their_last_part():
    keys = {
        "a": ["/home/me/x.py", "C:\\me\\y", "hf://owner/name"],
        "b": {"c": "s3://bucket/set/", "d": 1},
        "e": "rpgan",
    }
    assert without_paths(keys) == {"a": ["x.py", "y", "hf://owner/name"], "b": {"c": "set", "d": 1}, "e": "rpgan"}


def test_a_published_folder_is_evaluated_as_a_file_of_weights_is(published, run, tmp_path, capsys):
    """It is no run: no card is written into it, and its configuration names no dataset that is here."""
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    assert evaluate.main([str(published)]) == 2
    assert "data: give the dataset of the real images" in capsys.readouterr().err
    shards = yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"]
    words = ["--data", shards, "--extractor", "pixels", "--samples", "40", "--cache_dir", str(tmp_path)]
    assert evaluate.main([str(published), *words]) == 0
    assert "EMA of G at" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before
