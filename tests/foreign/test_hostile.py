"""Files that would execute something, claim too much, or are of something else: a line, exit code 2, nothing done."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from distgan.commands.convert import main
from distgan.errors import UsageError
from distgan.foreign.contents import of_module
from distgan.foreign.stored import Storage, rebuild_tensor
from distgan.foreign.torch_files import LEGACY, read_pickle
from foreign_files import build, flax_d, flax_g, rosinality_g, write_hdf5, write_official, write_rosinality


def refused(file: Path, capsys: Any, *expected: str) -> str:
    """What is said of a file that is refused."""
    out = file.parent / "out"
    assert main([str(file), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file) in said
    assert all(words in said for words in expected), said
    assert not out.exists() and not [path for path in file.parent.iterdir() if path.name.startswith(".")]
    return said


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text_call(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(X".encode() + struct.pack("<I", len(argument)) + argument.encode() + b"tR."


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that create the file `marker` where they are executed."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Calls(os.system, touch))
    return {
        "os.system": inner,
        "protocol 2": pickle.dumps({"g_ema": Calls(os.system, touch)}, protocol=2),
        "builtins.eval": pickle.dumps(Calls(eval, code)),
        "builtins.getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "STACK_GLOBAL of a dotted name": b"\x80\x04\x8c\x02os\x8c\x09path.exit\x93.",
        "torch.load": b"\x80\x02" + text_call("torch", "load", str(marker)),
        "numpy.load": b"\x80\x02" + text_call("numpy", "load", str(marker)),
        "inside of _load_from_bytes": pickle.dumps({"g_ema": Calls(torch.storage._load_from_bytes, inner)}),
        "INST": b"\x80\x02(X" + struct.pack("<I", len(touch)) + touch.encode() + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nX" + struct.pack("<I", len(touch)) + touch.encode() + b"o.",
        "EXT1": b"\x80\x02\x82\x01.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
        "a global under a name that is known": b"\x80\x02" + text_call("collections", "OrderedDict.fromkeys", "a"),
        "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        "attributes of a class": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        "an id of another file": b"\x80\x02X\x01\x00\x00\x00aQ.",
    }


def as_pickle(payload: bytes, file: Path) -> None:
    file.write_bytes(payload)


def as_zip(payload: bytes, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")


def as_legacy(payload: bytes, file: Path) -> None:
    file.write_bytes(LEGACY + pickle.dumps(1001) + pickle.dumps({"little_endian": True}) + payload + pickle.dumps([]))


@pytest.mark.parametrize("write", [as_pickle, as_zip, as_legacy])
@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_nothing_is_executed(tmp_path, capsys, name, write):
    marker = tmp_path / "marker"
    file = tmp_path / "network.pkl"
    write(payloads(marker)[name], file)
    refused(file, capsys)
    assert not marker.exists()


def test_the_payloads_would_be_executed(tmp_path):
    marker = tmp_path / "marker"
    for name in ("os.system", "protocol 2", "builtins.eval", "INST", "OBJ"):
        pickle.loads(payloads(marker)[name])  # noqa: S301
        marker.unlink()


def test_the_name_that_is_refused_is_said(tmp_path, capsys):
    file = tmp_path / "network.pkl"
    as_pickle(payloads(tmp_path / "marker")["os.system"], file)
    refused(file, capsys, "'posix.system'", "nothing was executed")
    file.write_bytes(b"\x80\x02" + text_call("dnnlib.tflib.network", "Network", "G"))
    refused(file, capsys, "TensorFlow")


def test_the_source_inside_of_an_official_pickle_stays_text(tmp_path):
    G, D = build()
    marker = tmp_path / "marker"
    write_official(tmp_path / "g.pkl", G, G, D, source=f"open({str(marker)!r}, 'w')")
    assert main([str(tmp_path / "g.pkl"), str(tmp_path / "out")]) == 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "neither"),
        (b"\x80", "neither"),
        (b"\x80\x04", "no pickle"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x89HDF\r\n\x1a\n", "damaged"),
        (LEGACY, "no pickle"),
        (pickle.dumps([1, 2]), "no networks"),
        (pickle.dumps({"a": 1}), "no network"),
        (pickle.dumps({"g_ema": {"a": 1}}), "no tensor"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "no networks"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memory is skipped"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"a.", "no pickle"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a.", "BYTEARRAY8"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"a.", "no pickle"),
    ],
)
def test_files_of_something_else(tmp_path, capsys, data, reason):
    file = tmp_path / "file"
    file.write_bytes(data)
    refused(file, capsys, reason)


def refused_state(tmp_path: Path, capsys: Any, change: Callable[[dict[str, Any]], Any], *expected: str) -> None:
    """A state of g_ema that `change` changes is refused."""
    state = {name: tensor.clone() for name, tensor in rosinality_g(build()[0]).items()}
    change(state)
    torch.save({"g_ema": state}, tmp_path / "g.pt")
    refused(tmp_path / "g.pt", capsys, *expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("convs.1.conv.weight"), "it has no convs.1.conv.weight"),
        (lambda state: state.pop("noises.noise_2"), "it has no noises.noise_2"),
        (lambda state: state.update(more=torch.zeros(1)), "StyleGAN2 has not: more"),
        (lambda state: state["conv1.activate.bias"].fill_(torch.nan), "conv1.activate.bias has values that are not"),
        (lambda state: state.update({"style.1.bias": torch.zeros(7, dtype=torch.int64)}), "torch.int64"),
        (lambda state: state.update({"style.1.bias": torch.zeros(6)}), "style.1.bias of shape [6]"),
        (lambda state: state.update({"noises.noise_0": torch.zeros(4)}), "noises.noise_0 of shape [4]"),
        (lambda state: state.update({"input.input": torch.zeros(1, 6, 4)}), "constant is none of StyleGAN2"),
        (lambda state: state.update({"input.input": torch.zeros(1, 6, 9, 9)}), "36x36"),
        (lambda state: state.update({"to_rgb1.conv.weight": torch.zeros(1, 3, 6, 3, 3)}), "to_rgb1.conv.weight"),
        (lambda state: state.update({"convs.1.activate.bias": torch.zeros(5)}), "[6, 5, 4] features"),
        (lambda state: state.update({"convs.0.conv.blur.kernel": torch.ones(4, 4)}), "[1, 3, 3, 1]"),
        (lambda state: state.update({"synthesis.L0_36_512.weight": torch.ones(4)}), "StyleGAN3"),
        (lambda state: state.pop("input.input"), "not StyleGAN2 of a known project"),
    ],
)
def test_other_tensors_are_named(tmp_path, capsys, change, expected):
    refused_state(tmp_path, capsys, change, "g.pt: ", expected)


def test_d_of_another_network(tmp_path, capsys):
    G, D = build()
    write_rosinality(tmp_path / "g.pt", G, G, build(channel_max=4)[1])
    refused(tmp_path / "g.pt", capsys, "[4, 4, 4] features at its resolutions, and G [6, 6, 4]")
    write_hdf5(tmp_path / "d.h5", flax_d(D))
    refused(tmp_path / "d.h5", capsys, "discriminator alone")
    file = write_rosinality(tmp_path / "ok.pt", G, G, D)
    assert main([str(file), str(tmp_path / "out"), "--discriminator", str(tmp_path / "d.h5")]) == 2
    assert "it is of matthias-wright/flaxmodels, and G of rosinality" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (1 << 40,), (1,)),
        (0, (1 << 40,), (0,)),
        (0, (2, 2), (1, 3)),
        (3, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (True,), (1,)),
        (0, (2,), (1, 1)),
        (0, 4, 1),
        (0, (1,) * 9, (1,) * 9),
    ],
)
def test_tensors_beyond_their_storage(offset, size, stride):
    storage = Storage(torch.float32, 4, lambda: bytes(16))
    assert rebuild_tensor(storage, 1, (3,), (1,)).read().shape == (3,)
    with pytest.raises(UsageError):
        rebuild_tensor(storage, offset, size, stride)


def rewrite(file: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The zip archive with changed members."""
    with zipfile.ZipFile(file) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_zip_archives_that_claim_more(tmp_path, capsys):
    G, D = build()
    file = write_rosinality(tmp_path / "g.pt", G, G, D)
    good = file.read_bytes()
    rewrite(file, lambda name, data: data, zipfile.ZIP_DEFLATED)
    refused(file, capsys, "is compressed")
    file.write_bytes(good)
    rewrite(file, lambda name, data: data[:-4] if "/data/" in name else data)
    refused(file, capsys, "fewer numbers than it says")
    file.write_bytes(good)
    rewrite(file, lambda name, data: b"big" if name.endswith("byteorder") else data)
    refused(file, capsys, "big-endian")
    place = good.index(G.const.numpy().tobytes())
    file.write_bytes(good[:place] + b"\x01" + good[place + 1 :])
    refused(file, capsys, "damaged at")


def test_views_of_the_same_numbers_that_claim_more_than_the_file(tmp_path, capsys):
    numbers = torch.zeros(100_000)
    torch.save({"g_ema": {str(k): numbers[k:] for k in range(10)}}, tmp_path / "g.pt")
    refused(tmp_path / "g.pt", capsys, "it claims")


def test_a_module_in_two_places(tmp_path, capsys):
    G, D = build()
    file = write_official(tmp_path / "g.pkl", G, G, D)
    found = read_pickle(file.read_bytes())["G_ema"]
    synthesis = found.state["_modules"]["synthesis"]
    synthesis.state["_modules"]["again"] = synthesis.state["_modules"]["b4"]
    with pytest.raises(UsageError, match="two places"):
        of_module(found)


def hdf5_changes() -> dict[str, Callable[[h5py.File, Path], Any]]:
    """By what is said of a file that is changed so; `other` is a file with the dataset "secret"."""
    place = "synthesis_network/const"

    def replaced(file: h5py.File, *words: Any, **options: Any) -> None:
        del file[place]
        file.create_dataset(place, *words, **options)

    def linked(file: h5py.File, link: Any) -> None:
        del file[place]
        file[place] = link

    def virtual(file: h5py.File, other: Path) -> None:
        del file[place]
        layout = h5py.VirtualLayout((1, 4, 4, 6), "f4")
        layout[:] = h5py.VirtualSource(str(other), "secret", (1, 4, 4, 6))
        file.create_virtual_dataset(place, layout)

    return {
        "synthesis_network/const is not in the file itself": lambda file, other: linked(
            file, h5py.ExternalLink(str(other), "secret")
        ),
        "const is not in the file itself": lambda file, other: linked(file, h5py.SoftLink("/mapping_network/w_avg")),
        "is not in the file itself": virtual,
        "not in the file itself": lambda file, other: replaced(
            file, (1, 4, 4, 6), "f4", external=[(str(other), 0, 4 * 96)]
        ),
        "it claims 4,": lambda file, other: replaced(file, (1000, 1000), "f4", chunks=(100, 100), compression="gzip"),
        "of type int64": lambda file, other: replaced(file, data=np.zeros((1, 4, 4, 6), "i8")),
        "of type object": lambda file, other: replaced(file, data="text"),
        "nested too deep": lambda file, other: file.__setitem__("synthesis_network/again", file["synthesis_network"]),
        "of type float32": lambda file, other: replaced(file, data=h5py.Empty("f4")),
    }


@pytest.mark.parametrize("reason", list(hdf5_changes()))
def test_hdf5_that_points_elsewhere_or_claims_more(tmp_path, capsys, reason):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.zeros((1, 4, 4, 6), "f4")
    path = write_hdf5(tmp_path / "g.h5", flax_g(build()[0]))
    with h5py.File(path, "r+") as file:
        hdf5_changes()[reason](file, other)
    refused(path, capsys, reason)


@pytest.mark.parametrize("kind", ["pkl", "pt", "legacy", "h5"])
def test_cut_off_and_flipped_bytes(tmp_path, capsys, kind):
    """Refused, or converted where they are no part of a network: no traceback, no file beside."""
    G, D = build()
    path = tmp_path / "file"
    if kind == "h5":
        write_hdf5(path, flax_g(G))
    elif kind == "pkl":
        write_official(path, G, G, D)
    else:
        write_rosinality(path, G, G, D, zipped=kind == "pt")
    good = path.read_bytes()
    numbers = random.Random(0)
    codes = []
    for turn in range(16 if kind == "h5" else 60):
        data = bytearray(good)
        if turn % 3 == 0:
            data = data[: numbers.randrange(len(data))]
        elif turn % 3 == 1:
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        else:
            start = numbers.randrange(len(data) - 8)
            data[start : start + 8] = numbers.randbytes(8)
        path.write_bytes(data)
        out = tmp_path / f"out{turn}"
        codes.append(main([str(path), str(out)]))
        assert out.exists() == (codes[-1] == 0)
    assert set(codes) <= {0, 2} and codes.count(2) >= len(codes) // 3
    assert "Traceback" not in capsys.readouterr().err


def test_streams_that_are_none():
    with pytest.raises(UsageError):
        read_pickle(pickle.dumps(Calls(torch.storage._load_from_bytes, 3)))
    buffer = io.BytesIO()
    torch.save(torch.zeros(2), buffer, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="a storage that is none"):
        read_pickle(pickle.dumps(Calls(torch.storage._load_from_bytes, buffer.getvalue())))
