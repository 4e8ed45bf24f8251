"""Images by conditions: `distgan sample --condition`, and labels of numbers, flags and classes in Python."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distgan
from distgan.commands import sample as sample_command
from distgan.generators.conditions import spread
from distgan.images import grid
from distgan.pixels import to_picture, to_stored
from distgan.samples import Condition, SampleSpec
from helpers import ROOT, save_generator

ENERGY = Condition("energy", "number", 40.0, 20.0, 1.0, 100.0)
ANGLE = Condition("angle", "number", 0.5, 0.25, 0.1, 0.9)
FLAG = Condition("smiling", "flag")
NUMBERS = SampleSpec(8, 12, 3, 0, (ENERGY, ANGLE))
ALL = SampleSpec(8, 12, 3, 2, (ENERGY, FLAG))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    """A generator with two numbers as conditions."""
    return save_generator(tmp_path_factory.mktemp("numbers") / "G.safetensors", NUMBERS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A generator with classes a and b, a number and a flag."""
    return save_generator(tmp_path_factory.mktemp("mixed") / "G.safetensors", ALL, ["a", "b"])


def sample(*words: object) -> int:
    return sample_command.main([str(word) for word in words])


def arrays(path: Path, *words: object) -> dict[str, np.ndarray]:
    """What `distgan sample --out .npz` writes."""
    out = path.with_name("out.npz")
    assert sample(path, "--out", out, *words) == 0
    with np.load(out) as found:
        return dict(found)


def test_labels(mixed, numbers):
    G = distgan.load(mixed)
    labels = G.labels(["b", 0, 1], {"energy": [40, 60, 20], "smiling": 1})
    assert labels is not None and labels.dtype == torch.float32
    assert labels.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, -1, 1]]
    one = distgan.load(numbers).labels(conditions={"energy": 80, "angle": 0.25})
    assert one is not None and one.tolist() == [[2, -1]]
    with pytest.raises(distgan.UsageError, match="needs a class; choose from a, b"):
        G.labels(None, {"energy": 1, "smiling": 0})
    with pytest.raises(distgan.UsageError, match="needs values of smiling"):
        G.labels(0, {"energy": 1})
    with pytest.raises(ValueError, match="one value of each, or N, .* there are classes 3, energy 2, smiling 1"):
        G.labels([0, 1, 1], {"energy": [1, 2], "smiling": 0})
    for value in (float("nan"), 1e39):
        with pytest.raises(distgan.UsageError, match="a value of energy is not a finite number of 32 bits"):
            G.labels(0, {"energy": value, "smiling": 0})
    with pytest.raises(ValueError, match="trained with 2 classes and the conditions energy, smiling needs labels"):
        G(G.draw(2), torch.tensor([0, 1]))


def test_labels_as_the_manual_makes_them(numbers):
    (code,) = re.findall(
        r"```python\n(labels = G\.labels.*?)```", (ROOT / "distgan/generators/README.md").read_text(), re.S
    )
    names = {"G": distgan.load(numbers)}
    exec(code, names)
    assert [names[name].shape for name in ("labels", "showers", "more")] == [(3, 2), (3, 3, 8, 12), (100, 3, 8, 12)]


def test_labels_of_classes_alone_and_of_none(tmp_path):
    G = distgan.load(save_generator(tmp_path / "classes.safetensors", SampleSpec(8, 8, 1, 3), ["a", "b", "c"]))
    labels = G.labels(np.array([2, 0]))
    assert labels is not None and labels.dtype == torch.int64 and labels.tolist() == [2, 0]
    with pytest.raises(distgan.UsageError, match="unknown condition 'energy'; the generator was trained without"):
        G.labels([0], {"energy": 1})
    none = distgan.load(save_generator(tmp_path / "none.safetensors", SampleSpec(8, 8, 1)))
    assert none.labels() is None and none(none.draw(2), None).shape == (2, 1, 8, 8)


def test_spread():
    """One value in each part of a number's range, and each flag in half of the images, all in orders of their own."""
    values = spread((ENERGY, ANGLE, FLAG), 40, seed=1)
    parts = {
        name: np.floor((values[name] - one.low) / (one.high - one.low) * 40)
        for name, one in (("energy", ENERGY), ("angle", ANGLE))
    }
    assert all(sorted(each) == list(range(40)) for each in parts.values())
    assert (parts["energy"] != parts["angle"]).any() and values["smiling"].sum() == 20
    assert all(np.array_equal(values[name], spread((ENERGY, ANGLE, FLAG), 40, seed=1)[name]) for name in values)
    assert not np.array_equal(values["energy"], spread((ENERGY,), 40, seed=2)["energy"])
    never = Condition("never", "flag", low=0.0, high=0.0)
    assert not spread((never,), 4, seed=0)["never"].any()


def test_sample_in_python(mixed):
    G = distgan.load(mixed)
    images = G.sample(6, seed=3, label="b", conditions={"energy": 50.0})
    smiling = spread(ALL.conditions, 6, seed=3)["smiling"]
    torch.testing.assert_close(images, G(G.draw(6, 3), G.labels([1] * 6, {"energy": 50.0, "smiling": smiling})))
    assert torch.equal(G.sample(6, seed=3, label=1, conditions={"energy": [50.0] * 6}), images)
    given = {"energy": 50.0, "smiling": 1}
    labels = G.labels([0, 1, 0], given)
    torch.testing.assert_close(G.sample(3, conditions=given), G(G.draw(3), labels))
    assert G.sample(3, label=0, conditions=given).shape == (3, 3, 8, 12)
    with pytest.raises(ValueError, match="one value of each, or 3; there are 2"):
        G.sample(3, label=0, conditions={"energy": [50.0, 60.0], "smiling": 1})


def test_values_of_conditions(numbers, capsys):
    found = arrays(numbers, "--count", 10, "--condition", "energy=50, angle=.3")
    assert found["energy"].tolist() == [50.0] * 10 and found["angle"].tolist() == [0.3] * 10
    assert found["labels"].shape == (0,)
    G = distgan.load(numbers)
    expected = G.sample(10, conditions={"energy": 50, "angle": 0.3})
    np.testing.assert_array_equal(found["images"], to_stored(expected, NUMBERS))
    output = capsys.readouterr()
    assert output.out.endswith("; energy=50, angle=0.3\n") and not output.err


def test_conditions_that_are_not_given(numbers, capsys):
    """They are spread over the training set's range, as in Python, and the line says so."""
    found = arrays(numbers, "--count", 10, "--seed", 4)
    expected = spread(NUMBERS.conditions, 10, seed=4)
    for name in ("energy", "angle"):
        np.testing.assert_array_equal(found[name], expected[name])
    G = distgan.load(numbers)
    np.testing.assert_array_equal(found["images"], to_stored(G.sample(10, seed=4), NUMBERS))
    assert capsys.readouterr().out.endswith("; energy spread over 1 to 100, angle spread over 0.1 to 0.9\n")


def test_a_range_of_a_condition(numbers, tmp_path, capsys):
    """A column for each step, each row one latent; other conditions and classes change from row to row."""
    found = arrays(numbers, "--count", 3, "--condition", "energy=1:100:4")
    assert found["energy"].tolist() == [1, 34, 67, 100] * 3
    z, angle = found["z"].reshape(3, 4, -1), found["angle"].reshape(3, 4)
    assert (z == z[:, :1]).all() and (z[0] != z[1]).any()
    assert (angle == angle[:, :1]).all() and len(np.unique(angle)) == 3
    assert capsys.readouterr().out.endswith("; energy from 1 to 100, angle spread over 0.1 to 0.9\n")
    assert sample(numbers, "--condition", "energy=1:100:4", "--out", tmp_path / "a.png", "--count", 3) == 0
    G = distgan.load(numbers)
    labels = G.labels(None, {"energy": found["energy"], "angle": found["angle"]})
    images = G(torch.from_numpy(found["z"]), labels)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), grid(to_picture(images.numpy()), 4))


def test_a_range_with_classes_and_flags(mixed, capsys):
    found = arrays(mixed, "--condition", "smiling=0:1:2,energy=7", "--label", "b,a", "--count", 4)
    assert found["smiling"].tolist() == [0, 1] * 4 and found["labels"].tolist() == [1, 1, 0, 0] * 2
    assert found["energy"].tolist() == [7] * 8
    assert capsys.readouterr().out.endswith("; energy=7, smiling from 0 to 1\n")
    arrays(mixed, "--condition", "energy=7")
    assert capsys.readouterr().out.endswith("; energy=7, smiling 0 or 1\n")


def test_conditions_of_rows_and_loops(mixed, tmp_path):
    """An image keeps its labels from latent to latent."""
    found = arrays(mixed, "--interpolate", 3, "--count", 4)
    for name in ("energy", "smiling", "labels"):
        rows = found[name].reshape(4, 3)
        assert (rows == rows[:, :1]).all(), name
    assert sample(mixed, "--out", tmp_path / "a.gif", "--condition", "energy=5", "--count", 4, "--interpolate", 3) == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (30, 22)


def test_a_value_outside_of_the_training_set_is_a_warning(numbers, capsys):
    arrays(numbers, "--condition", "energy=500,angle=0.1")
    assert capsys.readouterr().err == "warning: condition: energy=500 is outside of the training set's 1 to 100\n"
    arrays(numbers, "--condition", "angle=0:0.9:3")
    assert capsys.readouterr().err == "warning: condition: angle=0 is outside of the training set's 0.1 to 0.9\n"


def test_a_bound_that_was_stored_as_float32_is_inside(tmp_path, capsys):
    low, high = (float(np.float32(value)) for value in (0.1, 0.7))
    assert low > 0.1 and high < 0.7
    spec = SampleSpec(8, 8, 1, 0, (Condition("x", "number", 0.3, 0.1, low, high),))
    arrays(save_generator(tmp_path / "G.safetensors", spec), "--condition", "x=0.1:0.7:2")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--condition", "energy"],
            "condition: 'energy' is not NAME=VALUE; write energy=50,angle=0.3, or energy=1:100:8",
        ),
        (["--condition", ""], "condition: '' is not NAME=VALUE"),
        (["--condition", "energy=1,"], "condition: '' is not NAME=VALUE"),
        (["--condition", "particle=a"], "condition: the value 'a' of particle is no number; --label chooses a class"),
        (["--condition", "energy=inf"], "condition: the value 'inf' of energy is not a finite number"),
        (["--condition", "energy=1e39"], "condition: a value of energy is not a finite number of 32 bits"),
        (["--condition", "energy=1:2"], "condition: energy=1:2 is neither a value nor FROM:TO:STEPS"),
        (["--condition", "energy=1:2:1"], "condition: the steps of energy are '1'; give an integer from 2 to 1000"),
        (["--condition", "energy=1:2:99999"], "condition: the steps of energy are '99999'; give an integer from 2 to"),
        (["--condition", "energy=1,energy=2"], "condition: energy is given twice; keep one"),
        (["--condition", "energy=1:2:3,smiling=0:1:2"], "condition: energy and smiling are ranges; give one range"),
        (["--condition", "mass=1"], "condition: unknown condition 'mass'; choose from energy, smiling"),
        (["--condition", "smiling=0.5"], "condition: smiling is a flag, which is 0 or 1"),
        (
            ["--condition", "energy=1:2:3", "--interpolate", "4"],
            "condition: energy is a range, which --interpolate does",
        ),
        (["--condition", "energy=1:2:3", "--out", "x.gif"], "condition: energy is a range, which a loop does not have"),
        (
            ["--condition", "energy=1:2:3", "--columns", "4"],
            "columns: the range of energy has a column for each of its",
        ),
        (["--label", "c", "--condition", "energy=500"], "label: unknown class 'c'; choose from a, b (or 0 to 1)"),
    ],
)
def test_refusals(mixed, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sample(mixed, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_class_of_a_generator_that_has_conditions_alone(numbers, capsys):
    assert sample(numbers, "--label", 1) == 2
    assert "was trained with the conditions energy, angle, and without classes" in capsys.readouterr().err


def test_syntax_is_checked_before_a_generator_is_loaded(capsys):
    assert sample("nowhere", "--condition", "energy") == 2
    assert "'energy' is not NAME=VALUE" in capsys.readouterr().err
