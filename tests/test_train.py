"""A run on one process: what it writes, bit-exact resume, what it refuses, sampling from it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distgan.commands.plot
import distgan.commands.sample
import distgan.commands.train
import distgan.logs.log
from distgan import models
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.gan.step import generate
from distgan.images import grid, to_uint8
from distgan.rng import rng
from distgan.runs.checkpoint import load
from distgan.samples import SampleSpec
from helpers import (
    ROOT,
    TINY,
    children,
    computed,
    launch,
    launch_env,
    make_dataset,
    metrics,
    noise,
    start,
    train,
    weights,
)


def test_files_of_a_run(trained):
    run = trained("--epochs", 2, "--report.every_images", 32)
    assert {p.name for p in run.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "samples", "checkpoints"),
    }
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["fake-0001.png", "fake-0002.png", "real.png"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["160", "80"]
    assert {p.name for p in (run / "checkpoints" / "160").iterdir()} == {
        *("generator.safetensors", "discriminator.safetensors", "ema.safetensors", "optimizers.safetensors"),
        "state.json",
    }
    rows = metrics(run)
    keys = {"images", "epoch", "d_loss", "g_loss", "d_real", "d_fake", "images_per_second", "skipped"}
    assert all(keys <= row.keys() for row in rows)
    assert [(row["images"], row["epoch"]) for row in rows] == [(32, 1), (64, 1), (80, 1), (96, 2), (128, 2), (160, 2)]
    assert all(0 < row["d_real"] < 1 and 0 < row["d_fake"] < 1 for row in rows)
    facts = json.loads((run / "environment.json").read_text())
    assert facts["libraries"]["torch"] == torch.__version__.split("+")[0] and facts["processes"] == 1


def test_the_grid_of_real_images(trained, tiny):
    run = trained("--epochs", 1)
    with Image.open(run / "samples" / "real.png") as image:
        picture = np.asarray(image)
    assert picture.shape == (4 * 10 + 2, 4 * 10 + 2, 3)
    found = open_shardset(LocalStorage(tiny), "tiny")
    originals = {image.tobytes() for image in noise(80)}
    tiles = {picture[2 + 10 * y : 10 + 10 * y, 2 + 10 * x : 10 + 10 * x].tobytes() for x in range(4) for y in range(4)}
    assert len(tiles) == 16 and tiles <= originals and found.spec.height == 8


def test_the_same_config_gives_the_same_run(trained):
    a, b = trained("--epochs", 1, name="a"), trained("--epochs", 1, name="b")
    assert weights(a) == weights(b)
    assert weights(trained("--epochs", 1, "--seed", 1, name="c")) != weights(a)


@pytest.mark.parametrize(
    "words", [[], ["--data.labels", "true", "--data.flip", "true"], ["--ema.half_life_images", "0"]]
)
def test_a_resumed_run_is_bit_identical(trained, words):
    uninterrupted = trained("--epochs", 4, "--report.every_images", 16, *words, name="uninterrupted")
    for epochs in (1, 2, 4):
        resumed = trained("--epochs", epochs, "--report.every_images", 16, *words, name="resumed")
    assert weights(resumed) == weights(uninterrupted)
    assert computed(resumed) == computed(uninterrupted)
    for name in ("real.png", "fake-0001.png", "fake-0004.png"):
        assert (uninterrupted / "samples" / name).read_bytes() == (resumed / "samples" / name).read_bytes()


def test_a_killed_run_resumes_bit_identically(trained, tiny, tmp_path):
    uninterrupted = trained("--epochs", 30, name="uninterrupted")
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "killed", *TINY, "--epochs", 30]
    process = start(1, *words)
    while process.poll() is None and len(list((tmp_path / "killed" / "checkpoints").glob("[0-9]*"))) < 2:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert trained("--epochs", 30, name="killed") and weights(tmp_path / "killed") == weights(uninterrupted)


@pytest.mark.parametrize("words", [["--precision", "bf16"], ["--micro_batch", "4"], ["--channels_last", "false"]])
def test_precision_micro_batches_and_memory_format(trained, words):
    run, plain = trained("--epochs", 2, *words, name="this"), trained("--epochs", 2, name="plain")
    a, b = metrics(run)[-1], metrics(plain)[-1]
    assert weights(run) != weights(plain)
    assert a["d_loss"] == pytest.approx(b["d_loss"], rel=0.1) and a["g_loss"] == pytest.approx(b["g_loss"], rel=0.1)


def test_the_ema_of_g_and_its_grid(trained):
    """After an iteration of 16 images with a half-life of 16 it is halfway between G before and after."""
    run = trained("--images", 16, "--ema.half_life_images", 16, "--ema.warmup", 0)
    files, _ = load(run / "checkpoints" / "16")
    G, _ = models.build("dcgan", SampleSpec(8, 8, 3, 0), z_dim=8, options={"width": 4}, seed=0)
    for name, before in G.named_parameters():
        torch.testing.assert_close(files["ema"][name], (before.data + files["generator"][name]) / 2)
    run = trained("--epochs", 1, name="grid")
    G = distgan.load(run / "checkpoints" / "80" / "ema.safetensors")
    z = torch.from_numpy(rng(0, "samples").standard_normal((16, 8), np.float32))
    with Image.open(run / "samples" / "fake-0001.png") as image:
        assert np.array_equal(np.asarray(image), grid(to_uint8(generate(G, z, None).numpy())))


def test_rerunning_a_finished_run_does_nothing(trained, capsys):
    before = weights(trained("--epochs", 1))
    assert weights(trained("--epochs", 1)) == before
    assert "done: 80 images" in capsys.readouterr().out.splitlines()[-1]


def test_length_in_images(trained):
    assert weights(trained("--images", 100))["images"] == 112  # the first minibatch that reaches it


def test_old_checkpoints_are_removed(trained):
    run = trained("--epochs", 5, "--checkpoint.keep", 2)
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [320, 400]


def test_learning_rates_reach_the_optimizers(trained):
    slow = trained("--epochs", 1, "--g_optimizer.lr", 1e-9, name="slow")
    files, _ = load(slow / "checkpoints" / "80")
    G, _ = models.build("dcgan", SampleSpec(8, 8, 3, 0), z_dim=8, options={"width": 4}, seed=0)
    for name, parameter in G.named_parameters():
        torch.testing.assert_close(files["generator"][name], parameter.data, atol=1e-7, rtol=0)


def bad(*words: object, capsys) -> str:
    """The one line that a refused command prints."""
    assert train(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("distgan: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "wasserstein"], "loss: unknown loss 'wasserstein'; choose from bce"),
        (["--model.name", "dcgam"], "model.name: unknown model 'dcgam'; choose from cat, dcgan"),
        (["--model.options.depth", "3"], "model.options.depth: unknown option of dcgan; choose from width, norm"),
        (["--data.shards", "nowhere"], "there is nothing at nowhere"),
        (["--data.shards", "EMPTY"], "has no manifest.json"),
        (["--data.shards", "ODD"], "dcgan does not support 11x11 images; `distgan shards make --size 10x10 or 12x12`"),
        (["--micro_batch", "5"], "micro_batch: 5 does not divide the 16 images of a process"),
        (["--batch", "128", "--data.lanes", "64"], "64 lanes need at least 64 images"),
        (["--data.labels", "true", "--data.shards", "PLAIN"], "data.labels: .* has no labels"),
        (["--data.decoder", "simplejpeg"], "simplejpeg reads JPEG; the dataset is npy"),
        (["--precision", "fp16"], "fp16 needs a CUDA GPU, and this run is on cpu; use bf16"),
        (["--run_dir", "/proc/run"], "/proc/run cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words, message, tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    odd = make_dataset(tmp_path / "odd", noise(20, 11)) if "ODD" in words else None
    plain = tmp_path / "plain"
    if "PLAIN" in words:
        shutil.copytree(tiny, plain)
        manifest = json.loads((plain / "manifest.json").read_text())
        (plain / "manifest.json").write_text(json.dumps(manifest | {"classes": []}))
    if "128" in words:
        words = [*words, "--data.shards", str(make_dataset(tmp_path / "few", noise(20)))]
    places = {"EMPTY": tmp_path / "empty", "ODD": odd, "PLAIN": plain}
    words = [places.get(word, word) for word in words]
    error = bad("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, *words, capsys=capsys)
    assert re.search(message, error) and not (tmp_path / "run").exists()


def test_a_changed_config_is_refused_and_shown(trained, tiny, tmp_path, capsys):
    before = weights(trained("--epochs", 1))
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 2]
    files = sorted(p for p in (tmp_path / "run").rglob("*") if p.is_file())
    stamps = [p.stat().st_mtime_ns for p in files]
    error = bad(*words, "--g_optimizer.lr", 1e-3, "--seed", 5, capsys=capsys)
    assert "g_optimizer.lr 0.0002 -> 0.001; seed 0 -> 5" in error and "--resume.override true" in error
    other = make_dataset(tmp_path / "other", noise(80, seed=9))
    assert "the images of data.shards" in bad(*words, "--data.shards", other, capsys=capsys)
    assert weights(tmp_path / "run") == before and [p.stat().st_mtime_ns for p in files] == stamps
    assert train(*words, "--seed", 5, "--resume.override", "true") == 0
    assert weights(tmp_path / "run")["images"] == 160


def test_a_config_that_does_not_fit_the_checkpoint_leaves_the_run_unchanged(trained, tiny, tmp_path, capsys):
    trained("--epochs", 1)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 2]
    error = bad(*words, "--model.options.width", 8, "--resume.override", "true", capsys=capsys)
    assert "do not match this configuration" in error and "size mismatch" in error
    assert weights(trained("--epochs", 2)) == weights(trained("--epochs", 2, name="uninterrupted"))


def test_the_config_is_compared_with_the_checkpoints(trained, tiny, tmp_path, capsys):
    """Not with config.yaml, which users may edit or remove."""
    run = trained("--epochs", 1)
    (run / "config.yaml").unlink()
    words = ["--data.shards", tiny, "--run_dir", run, *TINY, "--epochs", 2]
    assert "seed 0 -> 4" in bad(*words, "--seed", 4, capsys=capsys)
    assert train(*words) == 0


def test_a_copied_checkpoint_folder_is_ignored(trained):
    run = trained("--epochs", 1)
    shutil.copytree(run / "checkpoints" / "80", run / "checkpoints" / "80-best")
    assert (
        load(trained("--epochs", 2) / "checkpoints" / "160")[1]
        == load(trained("--epochs", 2, name="uninterrupted") / "checkpoints" / "160")[1]
    )


def test_a_stop_file_from_before_the_start_stops_the_run_once(trained):
    run = trained("--epochs", 1)
    (run / "stop").touch()
    words = ["--images", 10_000_000, "--checkpoint.every_epochs", 1_000_000, "--samples.every_epochs", 1_000_000]
    stopped = weights(trained(*words))["images"]
    assert 80 < int(stopped) < 10_000_000 and not (run / "stop").exists()


def test_keys_that_are_free_to_change(trained, tiny, tmp_path):
    trained("--epochs", 1)
    shutil.copytree(tiny, tmp_path / "moved")
    words = ["--epochs", 2, "--data.threads", 0, "--samples.count", 4, "--data.shards", tmp_path / "moved"]
    assert weights(trained(*words)) == weights(trained("--epochs", 2, name="uninterrupted"))


def test_fresh_moves_the_old_run_aside(trained, tmp_path):
    before = weights(trained("--epochs", 1))
    assert weights(trained("--epochs", 2, "--seed", 1, "--fresh"))["images"] == 160
    assert weights(tmp_path / "run.1") == before
    trained("--epochs", 1, "--fresh")
    assert weights(tmp_path / "run.2")["images"] == 160


def test_a_second_run_in_the_folder_is_refused(trained, tiny, tmp_path, capsys):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 100_000]
    process = start(1, *words)
    try:
        while process.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
            time.sleep(0.01)
        assert "another run is writing to" in bad(*words, capsys=capsys)
        assert "another run is writing to" in bad(*words, "--fresh", capsys=capsys)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "run.1").exists()
    trained("--images", 16)  # the lock of the killed run is released


def test_dry_run_writes_nothing(tiny, tmp_path, capsys):
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "two iterations of 16 images on 1 process(es): d_real" in out and "peak memory per process" in out
    assert re.search(r"estimated peak memory per process on a GPU: \d+\.\d\d GB of tensors; in addition", out)
    assert re.search(r"parameters: G \d\.\d+ M, D \d\.\d+ M\nFLOPs of an iteration: \d+\.\d G for 16 images", out)
    assert "largest micro_batch that fits: unknown; it is found on one process with a GPU" in out
    assert not (tmp_path / "run").exists()


def test_ways_to_start_a_run(tiny, tmp_path):
    """By path and as a module, from another folder with a file named like a library."""
    (tmp_path / "queue.py").write_text("raise SystemExit('shadowed')")
    words = ["--data.shards", str(tiny), *TINY, "--images", "16", "--run_dir"]
    env, running = launch_env(PYTHONPATH=str(ROOT)), []
    for name, first in {
        "path": [sys.executable, str(ROOT / "distgan" / "train.py")],
        "module": [sys.executable, "-P", "-m", "distgan.train"],
        "command": [sys.executable, "-P", "-m", "distgan", "train"],
        "launched": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(ROOT / "distgan" / "train.py")],
    }.items():
        cwd = ROOT if name == "launched" else tmp_path
        command = [*first, *words, str(tmp_path / name)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=cwd, env=env))
    assert [process.wait() for process in running] == [0] * 4
    assert len({json.dumps(weights(tmp_path / name)) for name in ("path", "module", "command", "launched")}) == 1


@pytest.mark.signals
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_run_whose_launcher_dies_saves_a_checkpoint(tiny, tmp_path, number):
    """`accelerate launch` of one process passes no signals on."""
    run = tmp_path / "run"
    first = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    words = ["distgan/train.py", "--data.shards", tiny, *TINY, "--run_dir", run, "--images", 10**9]
    words += ["--checkpoint.every_epochs", 10**6, "--samples.every_epochs", 10**6]
    command = [*first, *map(str, words)]
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=launch_env(), cwd=ROOT)
    while launcher.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    processes = children(launcher.pid)
    launcher.send_signal(number)
    try:
        out, _ = launcher.communicate(timeout=60)  # until the run has closed the pipe too
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    stopped = re.search(r"stopped at ([\d,]+) of .* \(SIGTERM\)", out)
    assert stopped and weights(run)["images"] == int(stopped[1].replace(",", ""))


def test_bad_input_is_printed_once_per_node(tmp_path):
    words = ["--config", tmp_path / "none.yaml"]
    first, second = (launch(1, *words, check=False, RANK="3", LOCAL_RANK=local) for local in "01")
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.count("no such file") == 1 and second.stderr == ""


def test_a_wrong_world_size_is_refused(tiny, tmp_path, monkeypatch, capsys):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    done = launch(1, *words, check=False, WORLD_SIZE="2")  # only some of a launcher's variables
    assert done.returncode == 2 and "distgan: the launch: " in done.stderr and "MASTER_ADDR" in done.stderr
    assert train(*words, "--dry_run") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")  # Accelerate is already initialized for one process
    capsys.readouterr()
    assert distgan.commands.train.main([str(word) for word in words]) == 2
    assert "the launcher started 2 processes, but Accelerate sees 1" in capsys.readouterr().err


def test_accelerates_environment_variables_have_no_effect(trained, monkeypatch):
    before = weights(trained("--epochs", 1, name="a"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert weights(trained("--epochs", 1, name="b")) == before


def test_a_grid_at_the_end_at_a_stop_and_within_an_epoch(trained, tmp_path, capsys):
    run = trained("--images", 96, "--samples.every_epochs", 0.4)
    grids = ["fake-0000_4.png", "fake-0000_8.png", "fake-0001_2.png"]  # 80 images per epoch, 16 per iteration
    assert sorted(p.name for p in (run / "samples").iterdir()) == [*grids, "real.png"]
    assert f"done: 96 images; {run}/samples/fake-0001_2.png (EMA of G), {run}/checkpoints/96" in capsys.readouterr().out
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "stop").touch()
    stopped = trained(
        "--images", 10_000_000, "--samples.every_epochs", 1e6, "--checkpoint.every_epochs", 1e6, name="stopped"
    )
    assert len(list((stopped / "samples").glob("fake-*.png"))) == 1


def test_an_override_is_logged_and_a_shorter_run_says_so(trained, capsys):
    trained("--epochs", 2)
    capsys.readouterr()
    run = trained("--epochs", 1, "--g_optimizer.lr", 1e-3, "--resume.override", "true")
    assert "nothing to do: epochs 1 is less than this run has done" in capsys.readouterr().out
    row = metrics(run)[-1]
    assert row["images"] == 160 and row["override"] == {"g_optimizer.lr": [0.0002, 0.001]}
    trained("--epochs", 1, "--g_optimizer.lr", 1e-3, "--resume.override", "true")  # from the same checkpoint again
    assert sum("override" in record for record in metrics(run)) == 1
    trained("--epochs", 3, "--g_optimizer.lr", 1e-3, "--resume.override", "true")
    row = metrics(run)[-1]
    assert (row["g_lr"], row["d_lr"], row["images"]) == (1e-3, 2e-4, 240) and row["time"] > 1.7e9


def test_a_run_folder_without_a_checkpoint_has_nothing_to_protect(tiny, tmp_path):
    """A corrected command is not refused where a first one was interrupted early."""
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    assert train(*words, "--epochs", 1) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train(*words, "--epochs", 1, "--seed", 5, "--batch", 8) == 0
    assert weights(tmp_path / "run")["images"] == 80


def test_fewer_images_than_lanes_take_fewer_lanes(tmp_path, capsys):
    few = make_dataset(tmp_path / "few", noise(20))
    words = ["--data.shards", few, "--run_dir", tmp_path / "run", *TINY, "--batch", 64, "--epochs", 1]
    assert train(*words) == 0
    assert "16 lanes, 16 images per epoch" in capsys.readouterr().out
    assert train(*words, "--data.lanes", 64, "--fresh") == 2
    assert "64 lanes need at least 64 images; the dataset has 20" in capsys.readouterr().err


def test_settings_of_the_launcher_that_are_not_used_are_named(trained, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    trained("--images", 16)
    out = capsys.readouterr().out
    assert "precision no overrides mixed_precision bf16 of accelerate launch" in out
    assert "dynamo backend inductor of accelerate launch is not used" in out


def test_a_launcher_that_starts_one_process_of_many_is_refused(tiny, tmp_path):
    """As `accelerate launch` does with --cpu, and with the MULTI_CPU that `accelerate config` writes."""
    config = tmp_path / "default_config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\n"
        "machine_rank: 0\nmixed_precision: 'no'\nuse_cpu: true\n"
    )
    script = [str(ROOT / "distgan/train.py"), "--data.shards", str(tiny), "--run_dir", str(tmp_path / "run"), *TINY]
    for options in (["--cpu", "--num_processes", "2"], ["--config_file", str(config)]):
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, *script]
        done = subprocess.run(command, capture_output=True, text=True, env=launch_env())
        assert done.returncode != 0 and not (tmp_path / "run").exists()
        assert done.stderr.count("distgan: the launch: accelerate launch was told to start several") == 1
        assert "launch/accelerate/cpu.yaml --num_processes N" in done.stderr


@pytest.mark.signals
@pytest.mark.parametrize("while_starting", [True, False])
def test_a_second_interrupt_ends_the_run_without_a_traceback(tiny, tmp_path, while_starting):
    words = [
        "--data.shards",
        tiny,
        "--run_dir",
        tmp_path / "run",
        *TINY,
        "--model.options.width",
        64,
        "--epochs",
        10**6,
    ]
    process = start(1, *words, "--checkpoint.every_epochs", 10**6, "--batch", 64)
    if while_starting:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "libtorch" not in maps.read_text():  # while torch is imported
            time.sleep(0.01)
    else:
        while process.poll() is None and not (tmp_path / "run" / "samples" / "real.png").exists():
            time.sleep(0.02)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert "distgan: interrupted" in out and "Traceback" not in out


def test_plot(trained, tmp_path, capsys):
    runs = [str(trained("--epochs", 1, "--seed", seed, name=f"run{seed}")) for seed in (0, 1)]
    assert distgan.commands.plot.main([*runs, "--out", str(tmp_path / "losses.png")]) == 0
    with Image.open(tmp_path / "losses.png") as image:
        assert image.width > 400
    capsys.readouterr()
    assert distgan.commands.plot.main([str(tmp_path)]) == 2
    assert "metrics.jsonl: No such file or directory; give a run folder" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"images": 16, "d_loss": 1}\nd_loss 1\n')
    assert distgan.commands.plot.main([str(tmp_path)]) == 2
    assert "metrics.jsonl: line 2 is not a line of distgan's" in capsys.readouterr().err
