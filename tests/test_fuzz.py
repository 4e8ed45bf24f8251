"""Damaged files: one line and an exit code, no hang, no file touched outside, and what `verify` accepts is right.

FUZZ_CASES=20000 FUZZ_SEED=1 pytest tests/test_fuzz.py          # by hand: more cases
"""

import bz2
import contextlib
import copy
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
from PIL import Image

from distgan import models
from distgan.commands import shards
from distgan.commands.run import run_command
from distgan.commands.sample import Options, sample
from distgan.data.stream import Reader
from distgan.dataset_tool import sources
from distgan.runs.checkpoint import METADATA, Checkpoints
from distgan.samples import SampleSpec
from helpers import make_dataset, noise

CASES, SEED = int(os.environ.get("FUZZ_CASES", "300")), int(os.environ.get("FUZZ_SEED", "0"))
BLOCK = 50  # cases of a test
HANGS = 60  # seconds
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 2**31, 2**32, 2**63 - 1, 2**63, 10**30, 10**400, -(10**30), 0.5, 1e300]
WORDS = [
    "",
    "x",
    "3",
    "npy",
    "jpg",
    "a\0b",
    "\n",
    "\u0661",
    "..",
    "/",
    "../outside/secret.tar",
    "a" * 10_000,
    "1" * 5000,
]
OPTIONS: dict[str, Any] = {"split": "train", "files": None, "samples": 1, "seed": 0}
OTHERS = [None, True, False, [], {}, [1], {"a": 1}, [[[[]]]], [None] * 3]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bits flipped, a piece cut out, doubled, zeroed, or written over with numbers."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 2, 8, 100, 512, 2000))
        kind = rng.randrange(7)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        elif kind == 4:
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif kind == 5:
            changed[at : at + 8] = struct.pack("<q", rng.choice((-1, 2**31, 2**62, 0)))
        else:
            del changed[at:]
    return bytes(changed)


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """A header with another value in one of its fields, and the checksum that fits."""
    changed = bytearray(data)
    at = 512 * rng.randrange(len(changed) // 512)
    start, stop = rng.choice(((0, 100), (124, 136), (156, 157), (257, 263), (345, 500)))
    values = [b"-00000001", b"77777777777", b"\x80" + b"\xff" * 11, b"x", b"g", b"L", b"S", b"K", b"5", b"2", b"\0"]
    changed[at + start : at + stop] = rng.choice(values)[: stop - start].ljust(stop - start, b"\0")
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def mutate_json(text: str | bytes, rng: random.Random) -> str:
    """A key that is missing, doubled or renamed, or a value that is another one."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        found = list(places(value))
        if not found:
            break
        container, key = rng.choice(found)
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 2 and isinstance(container[key], int) and not isinstance(container[key], bool):
            container[key] += rng.choice((-1, 1))
        elif kind == 3:
            other, there = rng.choice(found)
            with contextlib.suppress(KeyError, IndexError, ValueError, RecursionError):
                container[key] = copy.deepcopy(other[there])
        else:
            container[key] = rng.choice(rng.choice((NUMBERS, WORDS, OTHERS)))
    return json.dumps(value)


class Originals:
    """The files that are damaged, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = {}
        for name in ("npy", "png"):
            make_dataset(folder / name, noise(8), shards=2, format=name)
            self.images[name] = read(folder / name)
        (folder / "png" / "classes.json").write_text(json.dumps(["a", "b", "c"]))
        (folder / "labels").mkdir()
        names = [f"{i}.png" for i in range(3)]
        for name, image in zip(names, noise(3), strict=True):
            Image.fromarray(image).save(folder / "labels" / name)
        rows = [[name, i] for i, name in enumerate(names)]
        (folder / "labels" / "dataset.json").write_text(json.dumps({"labels": rows}))
        lines = [json.dumps({"file_name": name, "label": i}) for name, i in rows]
        (folder / "labels" / "labels.jsonl").write_text("\n".join(lines))
        (folder / "labels" / "labels.csv").write_text("file_name,label\n" + "".join(f"{n},{i}\n" for n, i in rows))
        numbers = [f"{name},{i / 2},{i % 2},{'ab'[i % 2]}\n" for name, i in rows]
        (folder / "labels" / "numbers.csv").write_text("file_name,energy,on,kind\n" + "".join(numbers))
        vectors = [[name, [i / 2, i % 2]] for name, i in rows]
        (folder / "labels" / "vectors.json").write_text(json.dumps({"labels": vectors}))
        self.members = foreign_members(folder / "labels")
        options = {"width": 2, "norm": "group"}
        G, _ = models.build("dcgan", SampleSpec(8, 8, 3, 2), z_dim=4, options=options, seed=0)
        model = {"name": "dcgan", "latent": 4, "options": options}
        metadata = {"config": {"model": model}, "size": 8, "channels": 3, "classes": ["a", "b"], "images": 16}
        state = {"images": 16, "config": {"model": model}, "manifest": "0" * 64, "skipped": 0, "rollbacks": 0}
        with contextlib.closing(Checkpoints(folder / "run" / "checkpoints")) as checkpoints:
            checkpoints.save({"generator": G.state_dict()}, state, metadata)
        (folder / "outside").mkdir()
        shutil.copy(folder / "npy" / "shard-000000.tar", folder / "outside" / "secret.tar")


def foreign_members(folder: Path) -> dict[str, bytes]:
    """What another program's tar may hold: images of several formats, labels, a caption, what macOS adds."""
    members = {f"{i}.png": (folder / f"{i}.png").read_bytes() for i in range(3)}
    members |= {f"{i}.json": json.dumps({"label": i, "energy": i / 2, "v": [i, 1]}).encode() for i in range(3)}
    members |= {f"{i}.cls": str(i).encode() for i in range(3)}
    members |= {f"3.05.{extension}": members[f"0.{extension}"] for extension in ("png", "json", "cls")}
    return members | {"lone.txt": b"a caption", "._0.png": b"macOS"}


def pack(members: dict[str, bytes]) -> bytes:
    """A tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(folder: Path) -> tuple[bytes, list[int]]:
    dataset = shards.open_dataset(str(folder), None)
    batch = Reader(dataset).read(np.arange(dataset.manifest.samples))
    return batch.images.tobytes(), batch.labels.tolist()


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Originals:
    return Originals(tmp_path_factory.mktemp("originals"))


def run(command: Callable[[], object]) -> int:
    """The exit code of a command; asserts that it says one line, or the list of `verify`, and no traceback."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run_command(lambda argv: (command(), None)[1], [])
    lines = error.getvalue().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(("note: ", "warning: ")))
    assert code in (0, 1, 2), text
    assert all(len(line) <= 700 for line in lines), lines
    assert (code == 0) == (text == ""), text
    assert all(len(line) <= 700 for line in text.splitlines()), text
    return code


def damage_dataset(case: Path, originals: Originals, rng: random.Random) -> str:
    """Damage a file of a dataset, and run the commands that read it."""
    name = rng.choice(("npy", "png"))
    folder = case / "dataset"
    shutil.copytree(originals.folder / name, folder)
    file = rng.choice(("manifest.json", "manifest.json", *(path.name for path in sorted(folder.iterdir()))))
    data, path = (folder / file).read_bytes(), folder / file
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(mutate_json(data, rng))
    elif path.suffix == ".tar" and rng.random() < 0.5:
        path.write_bytes(mutate_tar(data, rng))
    else:
        path.write_bytes(mutate_bytes(data, rng))
    done = {"verify": run(lambda: shards.verify(str(folder)))}
    if done["verify"] == 0:
        assert read(folder) == originals.images[name], "verify accepts what reads back otherwise"
    run(lambda: shards.order(str(folder), batch=4))
    run(lambda: shards.stats(str(folder)))
    if rng.random() < 0.5:
        (folder / "manifest.json").unlink()
    done["index"] = run(lambda: shards.index(str(folder)))
    if done["index"] == 0:
        assert run(lambda: shards.verify(str(folder))) in (0, 1)  # 1: an image whose header is right, and no more
    return f"{name} {file} {done}"


def damage_weights(case: Path, originals: Originals, rng: random.Random) -> str:
    """Damage a checkpoint, and sample from the run."""
    shutil.copytree(originals.folder / "run", case / "run")
    path = case / "run" / "checkpoints" / "16" / rng.choice(("generator.safetensors", "state.json"))
    if path.suffix == ".json":
        path.write_text(mutate_json(path.read_bytes(), rng))
        target = case / "run"
    elif rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        target = path
    else:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = mutate_json(file.metadata()[METADATA], rng)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        with contextlib.suppress(UnicodeEncodeError):
            safetensors.torch.save_file(tensors, path, {METADATA: metadata})
        target = path
    code = run(lambda: sample(str(target), Options(count=2, out=str(case / "out.npz"))))
    return f"{path.name} {code}"


def damage_labels(case: Path, originals: Originals, rng: random.Random) -> str:
    """Damage a file of labels, and open the images with it."""
    folder = case / "labels"
    shutil.copytree(originals.folder / "labels", folder)
    name = rng.choice(("dataset.json", "labels.jsonl", "labels.csv", "numbers.csv", "vectors.json"))
    columns = {"numbers.csv": "energy,on,kind", "vectors.json": "label:number"}.get(name)
    path = folder / name
    if path.suffix == ".csv" or rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    else:
        lines = path.read_text().splitlines()
        at = rng.randrange(len(lines))
        path.write_text("\n".join([*lines[:at], mutate_json(lines[at], rng), *lines[at + 1 :]]))
    words = OPTIONS | {"labels": str(path), "label_columns": rng.choice((columns, "label,energy:flag", None))}
    return f"{path.name} {run(lambda: sources.open_source(str(folder), **words))}"


def damage_tars(case: Path, originals: Originals, rng: random.Random) -> str:
    """Damage a tar of another program, perhaps a compressed one; open it, and load its images."""
    members = dict(originals.members)
    name = rng.choice(list(members))
    kind = rng.choice(("member", "json", "name", "header", "bytes", "compressed"))
    if kind == "json":
        members["1.json"] = mutate_json(members["1.json"], rng).encode()
    elif kind == "name":
        members[rng.choice(("2.06.png", "0.jpg", "0.x.png", "a/b/../c.png", "/x.png", "x" * 90 + ".gif"))] = members[
            name
        ]
    elif kind == "member":
        members[name] = mutate_bytes(members[name], rng)
    data = pack(members)
    if kind == "header":
        data = mutate_tar(data, rng)
    elif kind == "bytes":
        data = mutate_bytes(data, rng)
    elif kind == "compressed":
        data = mutate_bytes(rng.choice((gzip, bz2, lzma)).compress(data), rng)
    (case / "tars").mkdir()
    (case / "tars" / "0.tar").write_bytes(data)
    words = OPTIONS | {
        "labels": rng.choice(("auto", "auto", "none", "folders")),
        "label_columns": rng.choice((None, None, "energy,cls:class", "v_1", "label")),
        "image_key": rng.choice((None, None, "png", "05.png")),
    }

    def open_all() -> None:
        source = sources.open_source(str(case / "tars"), **words)
        for i in range(len(source)):
            with contextlib.suppress(Exception):  # as `make`, which lists what cannot be used
                np.asarray(source.load(i))

    return f"{kind} {name} {run(open_all)}"


KINDS = (damage_dataset, damage_dataset, damage_weights, damage_labels, damage_tars)


@pytest.fixture(scope="module")
def opened(originals) -> list[str]:
    """The files outside of a case's folder that were opened since it was cleared."""
    paths: list[str] = []
    outside = str(originals.folder / "outside")

    def watch(event: str, args: tuple) -> None:
        if (
            event == "open"
            and isinstance(args[0], str)
            and (outside in os.path.realpath(args[0]) or "/etc/" in args[0])
        ):
            paths.append(args[0])

    sys.addaudithook(watch)
    return paths


@pytest.mark.parametrize("block", range(-(-CASES // BLOCK)))
def test_damaged_files(originals, opened, tmp_path, block):
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    for number in range(block * BLOCK, min((block + 1) * BLOCK, CASES)):
        rng = random.Random(f"{SEED} {number}")
        case = originals.folder / "case"  # beside `outside`, which damaged names point to
        case.mkdir()
        opened.clear()
        signal.alarm(HANGS)
        try:
            report = rng.choice(KINDS)(case, originals, rng)
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={SEED}, case {number}; its files are in {tmp_path}/case")
            shutil.copytree(case, tmp_path / "case")
            raise
        finally:
            signal.alarm(0)
            shutil.rmtree(case)
        assert not opened, f"case {number} ({report}) opened {opened}"
    names = {path.name for path in originals.folder.iterdir()}
    assert names == {"npy", "png", "labels", "run", "outside"}
