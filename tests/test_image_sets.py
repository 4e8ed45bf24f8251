"""`distgan evaluate --generated` and `--data` of folders, zips, .npz and datasets: equal numbers, labels, refusals."""

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distgan.commands.evaluate
import distgan.commands.sample
import distgan.commands.shards
from distgan.commands.image_sets import open_images
from distgan.config.keys import Config
from distgan.dataset_tool import workers
from distgan.distributed.processes import Distributed
from distgan.evaluation import image_set
from helpers import ROOT, TINY, launch, launch_command, launch_env, make_arrays, reset_accelerate, showers, train

SLOW_CONVERSION = """
import time
from distgan.commands import image_sets
from distgan.config.keys import Config
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError

image_sets.BEAT_SECONDS = 0.2
processes = Distributed(Config())


def fail():
    time.sleep(1)
    raise UsageError("no images")


print(image_sets.run_long_on_main(processes, lambda: time.sleep(12) or "done"))
try:
    image_sets.run_long_on_main(processes, fail)
except UsageError as error:
    print(error)
processes.shutdown()
"""
CLASSES = ("dark", "grey", "light")


def run(door, *words: object) -> int:
    reset_accelerate()
    return door.main([str(word) for word in words])


def evaluate(*words: object) -> int:
    return run(distgan.commands.evaluate, *words)


def shades(count: int, seed: int, *, channels: int = 3, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, size, size, channels], and their classes, told apart by their brightness."""
    labels = np.arange(count) % 3
    pixels = np.random.default_rng(seed).integers(0, 80, (count, size, size, channels), dtype=np.uint8)
    return pixels + (80 * labels[:, None, None, None]).astype(np.uint8), labels


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """PNG files, in class folders if there are labels."""
    for i, image in enumerate(images):
        path = folder / ("." if labels is None else CLASSES[labels[i]]) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """real/ and made/ in class folders, the dataset `made` of the latter by hand, a zip, an .npz, and a cache."""
    root = tmp_path_factory.mktemp("sets")
    write_folder(root / "real", *shades(240, 0))
    images, labels = shades(150, 1)
    images[labels == 2] //= 2  # one class is bad
    write_folder(root / "made", images, labels)
    assert run(distgan.commands.shards, "make", root / "made", root / "dataset") == 0
    with zipfile.ZipFile(root / "made.zip", "w") as archive:
        for path in sorted((root / "made").rglob("*.png")):
            archive.write(path, path.relative_to(root / "made"))
    np.savez(root / "arrays.npz", images, np.full((150, 3), 0.5))  # arr_0 and arr_1, as of ADM and EDM
    words = ["--train_extractor", root / "real-set", "--train_images", 6000, "--cache_dir", root / "cache"]
    assert run(distgan.commands.shards, "make", root / "real", root / "real-set") == 0
    assert evaluate(*words) == 0
    return root


def card_of(root: Path, generated: object, *words: object, data: object = None) -> dict:
    """The card, without what differs between two evaluations of the same images."""
    out = root / "card.json"
    shared = ["--data", data or root / "real", "--cache_dir", root / "cache", "--out", out]
    assert evaluate("--generated", generated, *shared, *words) == 0
    return comparable(out)


def comparable(file: Path) -> dict:
    card = json.loads(file.read_text())
    del card["time"], card["seconds"], card["code"]
    return card


def test_a_folder_has_the_numbers_of_the_dataset_that_is_made_of_it(root, capsys):
    capsys.readouterr()
    card = card_of(root, root / "made")
    lines = capsys.readouterr().out.splitlines()
    converted = [line for line in lines if ", converted into " in line]
    assert len(converted) == 2 and f"{root / 'made'}: 150 images 8x8x3, 3 classes, converted into" in converted[1]
    dataset = card_of(root, root / "dataset", data=root / "real-set")
    manifest = (root / "dataset/manifest.json").read_bytes()
    made = Path(converted[1].split()[-1]) / "manifest.json"
    assert made.read_bytes() == manifest and made.parent.parent == root / "cache/datasets"
    about = card["generator"]
    sha256 = dataset["generator"]["sha256"]
    assert about == {"address": str(root / "made"), "sha256": sha256, "count": 150, "spec": "8x8x3"}
    for changed in ("generator", "data"):
        del card[changed], dataset[changed]
    assert card == dataset
    assert card["counts"] == {"generated": 150, "reference": 240, "rows": 150, "floor": 120}
    assert card["metrics"].keys() == {"fd_classifier", "precision", "recall", "modes", "missing", "kl", "confident"}
    card_of(root, root / "made")
    out = capsys.readouterr().out
    assert "converted" not in out and f"images of {root / 'made'} ({about['sha256'][:8]})" in out


def test_zips_and_arrays_have_those_of_the_datasets_made_of_them(root, tmp_path):
    for name in ("made.zip", "arrays.npz"):
        assert run(distgan.commands.shards, "make", root / name, tmp_path / name) == 0
        mine = card_of(root, root / name, "--extractor", "pixels")
        by_hand = card_of(root, tmp_path / name, "--extractor", "pixels")
        assert mine["generator"].pop("address") != by_hand["generator"].pop("address")
        assert mine == by_hand and mine["counts"]["generated"] == 150, name


def test_samples_of_a_run_have_the_numbers_of_their_file(root, tmp_path, capsys):
    words = ["--data.shards", root / "real-set", "--run_dir", tmp_path / "run", *TINY, "--images", 160]
    assert train(*words, "--data.labels", "true") == 0
    sampled = [tmp_path / "run", "--count", 60, "--out", tmp_path / "samples.npz"]
    assert run(distgan.commands.sample, *sampled) == 0
    assert card_of(root, tmp_path / "samples.npz")["counts"]["generated"] == 60
    out = tmp_path / "card.json"
    words = [tmp_path / "run", "--data", root / "real", "--samples", 60, "--cache_dir", root / "cache"]
    assert evaluate(*words, "--out", out) == 0
    folder = comparable(out)
    assert evaluate(*words[:2], root / "real-set", *words[3:], "--out", out) == 0
    dataset = comparable(out)
    assert folder["data"].pop("path") != dataset["data"].pop("path") and folder == dataset
    assert evaluate(*words, "--generated", root / "made") == 2
    assert "generated: " in (error := capsys.readouterr().err) and "is given too" in error


def test_the_seed_draws_some_of_the_images(root):
    words = ["--extractor", "pixels", "--samples", 40]
    first, second, other = (card_of(root, root / "made", *words, "--seed", seed) for seed in (0, 0, 1))
    assert first == second and first["metrics"] != other["metrics"]
    assert first["generator"]["count"] == first["counts"]["generated"] == 40


@pytest.mark.slow
def test_two_processes_convert_once_and_give_the_numbers_of_one(root, tmp_path):
    shutil.copytree(root / "cache/extractors", tmp_path / "cache/extractors")
    words = ["--generated", root / "made", "--data", root / "real", "--by", "class", "--cache_dir", tmp_path / "cache"]
    done = launch(2, *words, "--out", tmp_path / "two.json", script="evaluate.py")
    assert done.stdout.count("converted into") == 2
    one = card_of(root, root / "made", "--by", "class")
    two = comparable(tmp_path / "two.json")
    for first, second in zip([one, *one.pop("bins")], [two, *two.pop("bins")], strict=True):
        assert first.pop("metrics") == pytest.approx(second.pop("metrics"), rel=1e-9)
        assert first.pop("floor") == pytest.approx(second.pop("floor"), rel=1e-9)
        assert first == second


@pytest.mark.slow
def test_the_others_wait_for_a_conversion_longer_than_a_time_out(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_CONVERSION)
    command = [word.replace(str(ROOT / "distgan/train.py"), str(tmp_path / "slow.py")) for word in launch_command(2)]
    env = launch_env(PYTHONPATH=str(ROOT), DISTGAN_TIMEOUT_SECONDS="8")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["done", "done", "no images", "no images"]


def test_classes_are_those_of_the_folders_else_what_the_classifier_sees(root, tmp_path, capsys):
    labelled = card_of(root, root / "made", "--by", "class")
    assert (labelled["by"], labelled["classes_from"]) == ("class", "labels")
    assert [row["counts"]["generated"] for row in labelled["bins"]] == [50, 50, 50]
    ratios = [row["metrics"]["fd_classifier"] / row["floor"]["fd_classifier"] for row in labelled["bins"]]
    assert ratios[2] > 5 * max(ratios[:2]), "the class that is bad"
    plain = write_folder(tmp_path / "plain", shades(150, 1)[0])
    seen = card_of(root, plain, "--by", "class")
    assert seen["classes_from"] == "classifier"
    assert [row["counts"]["generated"] for row in seen["bins"]] == seen["histogram"]
    assert "by the class that the classifier sees" in capsys.readouterr().out
    # the same images, sorted by the same classes: all are classified rightly
    by_label = card_of(root, write_folder(tmp_path / "folders", *shades(150, 1)), "--by", "class")
    for one, other in zip(seen["bins"], by_label["bins"], strict=True):
        assert one["counts"] == other["counts"]
        assert one["metrics"]["fd_classifier"] == pytest.approx(other["metrics"]["fd_classifier"], rel=1e-4)


def test_an_ambiguous_tree_is_read_without_labels(root, tmp_path, capsys):
    for part in ("train", "test"):
        write_folder(tmp_path / "tree" / part, shades(30, 2)[0])
    assert card_of(root, tmp_path / "tree", "--extractor", "pixels")["counts"]["generated"] == 60
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "is read without labels" in notes[0] and "are splits, not classes" in notes[0]


@pytest.mark.slow
def test_grey_against_rgb_and_sizes_where_the_extractor_resizes(root, tmp_path, capsys):
    grey = shades(24, 3, channels=1)[0]
    np.save(tmp_path / "grey.npy", grey)
    write_folder(tmp_path / "rgb", grey.repeat(3, axis=3))
    np.save(tmp_path / "large.npy", shades(24, 3, size=12)[0])
    words = ["--extractor", "efficientnet-lite0", "--metrics", "kid", "--reference_images", 24]
    one = card_of(root, tmp_path / "grey.npy", *words)
    assert "8x8x1 against 8x8x3" in capsys.readouterr().out
    rgb = card_of(root, tmp_path / "rgb", *words)  # in another order
    assert one["metrics"] == pytest.approx(rgb["metrics"], rel=1e-5, abs=1e-9)
    assert (one["generator"]["spec"], one["data"]["spec"]) == ("8x8x1", "8x8x3")
    assert card_of(root, tmp_path / "large.npy", *words)["generator"]["spec"] == "12x12x3"


def test_a_conversion_that_was_killed_goes_on_and_a_cleaned_cache_is_made_again(root, tmp_path, monkeypatch):
    reset_accelerate()
    processes = Distributed(Config())
    source = write_folder(tmp_path / "images", shades(30, 4)[0])
    whole = open_images(str(source), processes, tmp_path / "cache", "data").dataset
    (folder,) = [path for path in (tmp_path / "cache/datasets").iterdir() if path.is_dir()]
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(workers.DatasetWriter, "finish", None)
        with pytest.raises(TypeError):
            open_images(str(source), processes, tmp_path / "cache", "data")
    assert (folder / ".making").is_dir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert open_images(str(source), processes, tmp_path / "cache", "data").dataset.digest == whole.digest
    assert written == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    next(folder.glob("*.tar")).unlink()
    assert open_images(str(source), processes, tmp_path / "cache", "data").dataset.digest == whole.digest
    stat = (source / "0000.png").stat()
    os.utime(source / "0000.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    open_images(str(source), processes, tmp_path / "cache", "data")
    assert len([path for path in (tmp_path / "cache/datasets").iterdir() if path.is_dir()]) == 2


def test_what_is_refused(root, tmp_path, capsys):
    images = write_folder(tmp_path / "sizes", shades(30, 5)[0])
    Image.new("RGB", (9, 8)).save(images / "wide.png")
    write_folder(tmp_path / "grey", shades(24, 3, channels=1)[0])
    np.save(tmp_path / "grey.npy", shades(24, 3, channels=1)[0])
    np.save(tmp_path / "floats.npy", np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32))
    plain = write_folder(tmp_path / "plain", shades(30, 1)[0])
    showers_set = tmp_path / "showers"
    make_arrays(showers_set, showers(40)[0], numbers=showers(40)[1], range="0,20")
    made = root / "made"
    cases = [
        ([made], "data: give the real images that --generated is compared with, as --data ADDRESS"),
        ([tmp_path / "nothing", "--data", root / "real"], f"generated: there is nothing at {tmp_path / 'nothing'}"),
        ([made, "--data", tmp_path / "nothing"], f"data: there is nothing at {tmp_path / 'nothing'}"),
        ([images, "--data", root / "real"], f"`distgan shards make {images} DEST --size N`"),
        ([tmp_path / "grey.npy", "--data", root / "real"], "has images 8x8x1, the dataset has 8x8x3, and classifier"),
        ([tmp_path / "grey.npy", "--data", root / "real"], "DEST --size 8x8 --channels 3`"),
        ([tmp_path / "floats.npy", "--data", root / "real"], "classifier compares images of one size and kind; give"),
        ([made, "--data", root / "real", "--samples", 151], "has 150 images; give at most so many"),
        ([made, "--data", root / "real", "--samples", 19], "samples: metrics need 20 images or more"),
        ([made, "--data", root / "real", "--balanced"], "balanced: --generated has images, of which no generator"),
        ([made, "--data", root / "real", "--truncation_psi", 0.5], "truncation_psi: --generated has images"),
        ([made, "--data", root / "real", "--vae", "a"], "vae: --generated has images"),
        ([made, "--data", root / "real", "--by", "class", "--bins", 2], "bins: --generated has images"),
        ([made, "--data", root / "real", "--out", "a.txt"], "out: a.txt must end in .json"),
        (
            [plain, "--data", root / "real", "--by", "class", "--extractor", "pixels"],
            "has no labels of the dataset's classes, and pixels does not tell the classes of the dataset",
        ),
        (
            [showers_set, "--data", showers_set, "--by", "energy", "--extractor", "pixels"],
            "by: the images of a set are told apart by class only, not by 'energy'",
        ),
    ]
    for words, message in cases:
        assert evaluate("--generated", *words, "--cache_dir", root / "cache") == 2, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("distgan: ") and message in error, error


def test_labels_of_other_names_are_not_the_classes(root, tmp_path):
    """A set may lack classes; one of another name is none."""
    images, labels = shades(60, 6)
    few = write_folder(tmp_path / "few", images[labels != 1], labels[labels != 1])
    card = card_of(root, few, "--by", "class")
    assert card["classes_from"] == "labels"
    assert [row["counts"]["generated"] for row in card["bins"]] == [20, 0, 20]
    assert card["bins"][1]["too_few"] == 20
    (few / "dark").rename(few / "black")
    assert card_of(root, few, "--by", "class")["classes_from"] == "classifier"


def test_images_are_numbered_in_a_random_order(root):
    """The first 10,000 are compared one by one: of a set that is sorted by class they would be of some classes."""
    reset_accelerate()
    processes = Distributed(Config())
    dataset = open_images(str(root / "made"), processes, root / "cache", "generated").dataset
    stored = image_set.StoredImages(processes, dataset, np.arange(150), 0, "images", lambda line: None)
    drawn = image_set.ImageSet.draw(stored, "made", 100, 0)
    assert sorted(drawn.numbers[drawn.numbers >= 0]) == list(range(100)) and drawn.count == 100
    assert (drawn.numbers[drawn.ids] == np.arange(100)).all() and (np.diff(drawn.ids) < 0).any()
