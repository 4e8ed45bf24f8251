"""Labels of `shards make`: which columns become the class and the numbers, and what is refused with what to type."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distgan.commands import shards
from distgan.dataset_tool.label_files import read_table
from distgan.dataset_tool.labels import NO_LABELS, labels_of_columns
from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError
from helpers import noise

OPTIONS: dict[str, Any] = {"split": "train", "files": None, "samples": 1, "seed": 0}


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


@pytest.fixture
def images(tmp_path) -> Path:
    """0.png, 1.png, 2.png, 3.png."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(noise(4)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def open_with(images: Path, name: str, text: str, columns: str | None = None) -> Source:
    """The images with a file of labels."""
    path = images.parent / name
    path.write_text(text)
    return open_source(str(images), labels=str(path), label_columns=columns, **OPTIONS)


def csv(*rows: str, header: str = "") -> str:
    lines = [f"{i}.png,{row}" for i, row in enumerate(rows)]
    return "".join(f"{line}\n" for line in ([header] if header else []) + lines)


def test_text_is_a_class():
    labels = labels_of_columns({"kind": ["cat", "dog", "cat"]}, None, "here")
    assert labels.labels is not None and labels.labels.tolist() == [0, 1, 0]
    assert labels.labels.dtype == np.int64 and labels[1:] == (["cat", "dog"], None, [])


def test_a_table_without_columns_has_no_labels():
    assert labels_of_columns({}, None, "here") == NO_LABELS


@pytest.mark.parametrize("values", [[0, 1, 0, 1], ["0", "1", "0", "1"], np.array([0, 1, 0, 1])])
def test_integers_alone_are_a_class(values):
    labels = labels_of_columns({"a": values}, None, "here")
    assert labels.labels is not None and labels.labels.tolist() == [0, 1, 0, 1] and labels.classes == ["0", "1"]


def test_integers_in_float_columns_are_a_class_if_asked_for():
    labels = labels_of_columns({"a": [3.0, 4.0]}, "a:class", "here")
    assert labels.classes == ["3", "4"]


def test_class_numbers_that_occur_are_the_classes(capsys):
    """Of 1 and 2 there are two classes, not three with an empty one."""
    labels = labels_of_columns({"a": [1, 2, 1]}, None, "dataset.json")
    assert labels.labels is not None and labels.labels.tolist() == [0, 1, 0] and labels.classes == ["1", "2"]
    assert "note: dataset.json: no image has the label 0, and some have 2; the 2 that occur" in capsys.readouterr().err
    assert labels_of_columns({"a": [0, 1, 0]}, None, "here").classes == ["0", "1"]
    assert capsys.readouterr().err == ""


def test_class_names_of_the_source_are_kept():
    names = {"a": ["ant", "bee", "cow"]}
    labels = labels_of_columns({"a": [2, 1]}, None, "here", names)
    assert labels.labels is not None and labels.labels.tolist() == [2, 1] and labels.classes == names["a"]
    with pytest.raises(UsageError, match=r"here: column 'a': the label 3 is not in \[0, 3\)"):
        labels_of_columns({"a": [2, 3]}, None, "here", names)


def test_of_several_columns_the_one_with_class_names_or_called_label_is_taken():
    columns = {"caption": ["x", "y"], "species": [0, 1], "label": [1, 0]}
    assert labels_of_columns(columns, None, "here", {"species": ["a", "b"]}).classes == ["a", "b"]
    assert labels_of_columns(columns, None, "here", {}).classes == ["0", "1"]
    with pytest.raises(UsageError, match="here has the columns 'caption', 'species', 'label'; say which"):
        labels_of_columns(columns, None, "here")


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([0, 1, 1], [0, 1, 1]),
        ([-1, 1, 1], [0, 1, 1]),
        (["-1", "1", "1"], [0, 1, 1]),
        ([False, True, True], [0, 1, 1]),
        (["False", "true", "TRUE"], [0, 1, 1]),
        ([1, 1, 1], [1, 1, 1]),
        (np.array([False, True, True]), [0, 1, 1]),
    ],
)
def test_flags_beside_another_column_are_0_and_1(values, numbers):
    labels = labels_of_columns({"flag": values, "kind": ["b", "a", "b"]}, "flag,kind", "here")
    assert labels.labels is not None and labels.labels.tolist() == [1, 0, 1] and labels.classes == ["a", "b"]
    assert labels.numbers is not None and labels.numbers.dtype == np.float64
    assert labels.numbers.tolist() == [[value] for value in numbers] and labels.number_names == ["flag"]


def test_fractions_are_numbers_in_the_order_that_is_asked_for():
    columns = {"energy": ["0.5", "1e3", "-2."], "angle": [1.25, 2, 3], "kind": ["a", "b", "a"]}
    labels = labels_of_columns(columns, "angle,kind,energy", "here")
    assert labels.numbers is not None and labels.numbers.tolist() == [[1.25, 0.5], [2, 1000], [3, -2]]
    assert labels.number_names == ["angle", "energy"] and labels.classes == ["a", "b"]


def test_a_suffix_says_what_a_column_is():
    columns = {"age": [31, 7, 31], "on": ["1", "0", "1"]}
    labels = labels_of_columns(columns, "age:class,on:number", "here")
    assert labels.classes == ["7", "31"] and labels.numbers is not None and labels.numbers.tolist() == [[1], [0], [1]]
    assert labels_of_columns(columns, "age:number", "here").number_names == ["age"]
    assert labels_of_columns(columns, "on:flag", "here").labels is None
    assert labels_of_columns({"a:b": [0.5]}, "a:b", "here").number_names == ["a:b"]


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"a": [0.5, 1]}, None, "here: 'a' has fractions, .*; --label_columns a:number takes them as a condition"),
        ({"a": ["x", "y"], "b": [1, 2]}, None, "here has the columns 'a', 'b'; say which: --label_columns a, or"),
        ({"a": [1, 7], "b": [0, 1]}, "a,b", "'a' of here: is it a class or a number. write a:class or a:number"),
        ({"a": ["x", "y"], "b": ["x", "y"]}, "a,b", "'a' and 'b' of here are classes, .* one class; choose one"),
        ({"a": [1]}, "c", "--label_columns: here has no column 'c'; it has 'a'"),
        ({"a": [1]}, "a,a:flag", "'a' is in it twice"),
        ({"a": [1]}, "", "no column ''"),
        ({"a": [0.5, float("nan")]}, "a", "here: row 2, column 'a': NaN"),
        ({"a": ["x", " NaN "]}, "a", "here: row 2, column 'a': NaN"),
        ({"a": ["x", " "]}, "a", "here: row 2, column 'a': an empty cell"),
        ({"a": ["x", None]}, "a", "here: row 2, column 'a': an empty cell"),
        ({"a": ["x", {"b": 1}]}, "a", "here: row 2, column 'a': neither text nor a number"),
        ({"a": [0.5, "x"]}, "a:number", "here: row 2, column 'a': 'x' is not a number of float32"),
        ({"a": [0.5, "1e999"]}, "a:number", "here: row 2, column 'a': '1e999' is not a number of float32"),
        ({"a": [1, 2]}, "a:flag", "here: row 2, column 'a': '2' is not 0 or 1"),
        ({"a": [1, 0, -1]}, "a:flag", "column 'a' has -1 and 0; flags are 0 and 1, or -1 and 1"),
        ({"a": [[0.5, 1], [2, 3]]}, None, "'a' is a list of numbers; --label_columns a:number"),
        ({"a": [[0.5, 1], [2]]}, "a", "'a' is not a list of 2 numbers in all rows"),
        ({"a": [-2, 1]}, None, "the label -2 is not in"),
    ],
)
def test_what_is_no_label_is_refused_with_what_to_type(columns, wanted, message):
    with pytest.raises(UsageError, match=message):
        labels_of_columns(columns, wanted, "here")


def test_lists_of_numbers_are_a_column_each():
    columns = {"label": [[0.5, 1, 10], [2.5, 0, 11]]}
    labels = labels_of_columns(columns, "label:number", "here")
    assert labels.numbers is not None and labels.numbers.tolist() == [[0.5, 1, 10], [2.5, 0, 11]]
    assert labels.number_names == ["label_0", "label_1", "label_2"]
    labels = labels_of_columns(columns, "label_2:class,label_0", "here")
    assert labels.classes == ["10", "11"] and labels.number_names == ["label_0"]
    labels = labels_of_columns(columns, "energy,on,charge:number", "here")
    assert labels.number_names == ["energy", "on", "charge"]
    assert labels.numbers is not None and labels.numbers.tolist() == [[0.5, 1, 10], [2.5, 0, 11]]


def test_captions_are_many_classes_and_said(capsys):
    labels_of_columns({"text": [f"picture {i}" for i in range(30)]}, None, "here")
    assert "warning: here: 30 classes for 30 images, such as 'picture 0'" in capsys.readouterr().err


def test_csv_of_several_columns(images, capsys):
    """As CelebA's, whose second column was taken in silence."""
    text = csv("1,-1", "-1,1", "1,1", "-1,-1", header="Image_Name,Male,Hair_Black")
    with pytest.raises(UsageError, match="labels.csv has the columns 'Male', 'Hair_Black'; say which: --label_columns"):
        open_with(images, "labels.csv", text)
    source = open_with(images, "labels.csv", text, "Male,Hair_Black")
    assert source.labels is None and source.number_names == ["Male", "Hair_Black"]
    assert source.numbers is not None and source.numbers.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert open_with(images, "labels.csv", text, "Male").classes == ["-1", "1"]
    assert capsys.readouterr().err == ""


def test_the_list_of_labels_is_not_said_to_be_left_out(images, capsys):
    """It lies among the images where `distgan sample` wrote them; other files are said."""
    (images / "labels.csv").write_text(csv("a", "b", "a", "b"))
    for others in ("", ".txt 1"):
        assert open_source(str(images), labels=str(images / "labels.csv"), **OPTIONS).classes == ["a", "b"]
        note = f"note: left out, since they are no images: {others}\n" if others else ""
        assert capsys.readouterr().err == note
        (images / "more.txt").touch()


def test_columns_of_a_csv_without_a_header_have_numbers(images):
    text = csv("0.5,cat", "0.25,dog", "1,cat", "2,dog")
    source = open_with(images, "labels.csv", text, "2,3")
    assert source.number_names == ["2"] and source.classes == ["cat", "dog"]
    with pytest.raises(UsageError, match="no column '4'; it has '2', '3'"):
        open_with(images, "labels.csv", text, "4")


def test_names_of_images_are_in_the_column_file_name_or_in_the_first(images):
    """pandas writes its index in front, without a name."""
    text = ",label,file_name\n" + "".join(f"{i},{'ab'[i % 2]},{i}.png\n" for i in range(4))
    assert open_with(images, "labels.csv", text, "label").classes == ["a", "b"]
    assert open_with(images, "labels.csv", csv("a", "b", "a", "b", header="path,kind")).classes == ["a", "b"]


def test_csv_of_fractions_is_no_list_of_classes(images):
    text = csv("0.5", "0.25", "0.125", "1")
    with pytest.raises(UsageError, match="'2' has fractions, .* --label_columns 2:number"):
        open_with(images, "labels.csv", text)
    numbers = open_with(images, "labels.csv", text, "2:number").numbers
    assert numbers is not None and numbers.tolist() == [[0.5], [0.25], [0.125], [1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (csv("a", "b", "", "a"), r"labels.csv: line 3 \(2.png\), column '2': an empty cell"),
        (csv("0.5", "nan", "1", "2", header="file_name,e"), r"labels.csv: line 3 \(1.png\), column 'e': NaN"),
        (csv("a", "b,c", "a", "a"), "labels.csv: .*line 2 has another number of cells than the first line, which has"),
        ("0.png\n", "it has one column"),
        ("0.png;a\n", "it has one column"),
        ("", "it is empty"),
        ("file_name,a,a\n0.png,1,2\n", "two columns are called 'a'"),
    ],
)
def test_bad_csv_names_the_line_and_the_column(images, text, message):
    with pytest.raises(UsageError, match=message):
        open_with(images, "labels.csv", text)


def test_jsonl_with_other_keys_than_label(images):
    rows = [{"file_name": f"{i}.png", "species": "ab"[i % 2], "age": i / 2} for i in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    source = open_with(images, "labels.jsonl", text, "species,age")
    assert source.classes == ["a", "b"] and source.number_names == ["age"]
    with pytest.raises(UsageError, match="has the columns 'species', 'age'"):
        open_with(images, "labels.jsonl", text)
    del rows[2]["age"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(UsageError, match=r"labels.jsonl: line 3 \(2.png\), column 'age': an empty cell"):
        open_with(images, "labels.jsonl", text, "age")
    assert open_with(images, "labels.jsonl", text, "species").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "0.png"}\nx\n', "line 2: "),
        ('{"label": 1}\n', 'line 1: it has no "file_name"'),
        ("[1]\n", "line 1: Expected `object`"),
    ],
)
def test_bad_jsonl_names_the_line(images, text, message):
    with pytest.raises(UsageError, match=message):
        open_with(images, "labels.jsonl", text)


def test_dataset_json_with_vectors(images):
    text = json.dumps({"labels": [[f"{i}.png", [i / 2, i % 2]] for i in range(4)]})
    with pytest.raises(UsageError, match="'label' is a list of numbers; --label_columns label:number"):
        open_with(images, "dataset.json", text)
    source = open_with(images, "dataset.json", text, "energy,on")
    assert source.number_names == ["energy", "on"]
    (images / "dataset.json").write_text(text)
    inside = open_source(str(images), labels="auto", label_columns="label:number", **OPTIONS)
    assert inside.numbers is not None and inside.numbers.tolist() == [[i / 2, i % 2] for i in range(4)]


def test_images_that_are_listed_but_absent_are_counted(images, capsys):
    source = open_with(images, "labels.csv", csv("a", "b", "a", "b", "c", "c"))
    assert source.classes == ["a", "b"]
    error = capsys.readouterr().err
    assert re.search("note: .*labels.csv: 2 files that it lists are not in the source, the first is 4.png\n", error)
    with pytest.raises(UsageError, match="2 images have no label, the first is 2.png"):
        open_with(images, "labels.csv", csv("a", "b"))


def test_a_key_without_a_suffix_is_no_header():
    table = read_table(".csv", b"0001,cat\n0002,dog\n", "labels.csv", {"0001", "0002"})
    assert table.names == ["0001", "0002"] and table.columns == {"2": ["cat", "dog"]}
    assert read_table(".csv", b"key,cat\n0002,dog\n", "labels.csv").columns == {"cat": ["dog"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "none", "--label_columns", "a"], "--labels none reads no columns"),
        (["--label_columns", "a"], "--label_columns: there is no dataset.json in the source; give --labels FILE"),
    ],
)
def test_columns_need_a_file(images, tmp_path, capsys, words, message):
    assert command("make", images, tmp_path / "dataset", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "dataset").exists()
