"""What enters from outside: manifests, indexes, checkpoints and tars with values that no program of ours writes."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distgan.commands import shards
from distgan.data.index_file import write_index
from distgan.data.schema import decode
from distgan.data.tar import members
from distgan.errors import CorruptDataError, UsageError
from distgan.runs.schema import CheckpointState


def edit(folder: Path, keys: list, value: object) -> None:
    """Put `value` into manifest.json."""
    manifest = inner = json.loads((folder / "manifest.json").read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A copy of 80 images in 8 shards."""
    return shutil.copytree(tiny, tmp_path / "dataset")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["shards", 0, "bytes"], -1, "Expected `int` >= 0 - at `$.shards[0].bytes`"),
        (["shards", 0, "bytes"], 10**30, "Expected `int` <= 9223372036854775807 - at `$.shards[0].bytes`"),
        (["shards", 0, "samples"], 9, "its shards do not have 80 samples"),
        (["shards", 0, "name"], "a/../../x.tar", "at `$.shards[0].name`"),
        (["shards", 0, "name"], "/x.tar", "at `$.shards[0].name`"),
        (["shards", 0, "name"], "x\0.tar", "at `$.shards[0].name`"),
        (["shards", 0, "name"], "x.zip", "at `$.shards[0].name`"),
        (["fields", "image", "height"], 8.5, "Expected `int`, got `float` - at `$.fields.image.height`"),
        (["fields", "image", "width"], True, "Expected `int`, got `bool` - at `$.fields.image.width`"),
        (["fields", "image", "height"], 10**6, "Expected `int` <= 4096 - at `$.fields.image.height`"),
        (["fields", "image", "channels"], 65, "at `$.fields.image.channels`"),
        (["fields", "image", "encoding"], "webp", "at `$.fields.image.encoding`"),
        (["fields", "image", "dtype"], "int64", "at `$.fields.image.dtype`"),
        (["fields", "image", "range"], [0, 256], "its range (0.0, 256.0) is none of uint8 pixels"),
        (["fields", "image", "range"], [5, 5], "its range (5.0, 5.0) is none of uint8 pixels"),
        (["fields", "image"], {}, "missing required field `height` - at `$.fields.image`"),
        (["conditions"], [{"name": "energy"}], "missing required field `kind` - at `$.conditions[0]`"),
        (["format"], 1, "manifest.json has format 1; this version reads 'distgan-shards-1' and 'distgan-shards-2'"),
        (["classes", 0, "samples"], 0, "its classes do not have 80 samples"),
        (["index"], {}, "missing required field `bytes` - at `$.index`"),
    ],
)
def test_a_manifest_out_of_range_is_bad_input(folder, keys, value, message):
    edit(folder, keys, value)
    with pytest.raises(UsageError) as error:
        shards.open_dataset(str(folder), None)
    assert ("manifest.json is corrupt" in str(error.value) or keys == ["format"]) and message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["fields"], {}, "its fields have neither an image nor latents"),
        (["fields", "latents", "vae"], "a/../b", "at `$.fields.latents.vae`"),
        (["fields", "latents", "scale"], 0, "Expected `float` > 0.0 - at `$.fields.latents.scale`"),
        (["fields", "latents", "scale"], 5e-324, "the scale or shift of its latents is not finite"),
        (["fields", "latents", "channels"], 65, "at `$.fields.latents.channels`"),
        (["fields", "latents", "image_height"], 16, "its images are not those that its latents are decoded to"),
        (["fields", "image", "range"], [0, 100], "its images are not those that its latents are decoded to"),
    ],
)
def test_a_manifest_of_latents_out_of_range_is_bad_input(latents, tmp_path, keys, value, message):
    folder = shutil.copytree(latents, tmp_path / "dataset")
    edit(folder, keys, value)
    with pytest.raises(UsageError) as error:
        shards.open_dataset(str(folder), None)
    assert "manifest.json is corrupt" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("size", 1, "an image does not have the size in the manifest"),
        ("image_size", 1, "an image does not have the size in the manifest"),
        ("image_offset", 2**62, "an image is outside of its shard"),
    ],
)
def test_an_index_of_latents_out_of_bounds_is_bad_input(latents, tmp_path, column, value, message):
    folder = shutil.copytree(latents, tmp_path / "dataset")
    columns = {name: np.array(values) for name, values in shards.open_dataset(str(folder), None).columns.items()}
    columns[column][7] = value
    write_index(folder, columns)
    with pytest.raises(UsageError, match=message):
        shards.open_dataset(str(folder), None)
    del columns["image_check"]
    write_index(folder, columns)
    with pytest.raises(UsageError, match="index.npz is missing or corrupt"):
        shards.open_dataset(str(folder), None)


def as_format_1(folder: Path) -> bytes:
    """The folder's manifest as version 0.1 wrote it; its bytes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    image = manifest.pop("fields")["image"]
    rest = {name: value for name, value in manifest.items() if name not in ("format", "samples")}
    first = {"format": "distgan-shards-1", "samples": manifest["samples"], "size": image["height"]}
    old = first | {"channels": image["channels"], "encoding": image["encoding"]} | rest
    old["options"] = {"size": image["height"], "channels": image["channels"], "crop": "center", "resize": "none"}
    (folder / "manifest.json").write_text(json.dumps(old, indent=1) + "\n")
    return (folder / "manifest.json").read_bytes()


def test_a_dataset_of_format_1_is_read_on(folder):
    spec = shards.open_dataset(str(folder), None).spec
    before = as_format_1(folder)
    dataset = shards.open_dataset(str(folder), None)
    assert dataset.spec == spec and dataset.digest == hashlib.sha256(before).hexdigest()
    (folder / "index.npz").unlink()
    shards.index(str(folder))
    assert (folder / "manifest.json").read_bytes() == before  # runs on it go on
    shards.verify(str(folder))


@pytest.mark.parametrize(("key", "value"), [("channels", 2), ("size", 0), ("size", None), ("encoding", "webp")])
def test_a_manifest_of_format_1_out_of_range_is_bad_input(folder, key, value):
    as_format_1(folder)
    edit(folder, [key], value)
    with pytest.raises(UsageError, match="manifest.json is corrupt"):
        shards.open_dataset(str(folder), None)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", -1, "an image is outside of its shard"),
        ("offset", 2**62, "an image is outside of its shard"),
        ("size", 2**32 - 1, "an image is outside of its shard"),
        ("size", 1, "an image does not have the size in the manifest"),
        ("label", 3, "a label is not one of the 3 classes"),
        ("label", -1, "a label is not one of the 3 classes"),
    ],
)
def test_an_index_out_of_bounds_is_bad_input(folder, column, value, message):
    dataset = shards.open_dataset(str(folder), None)
    columns = {name: np.array(array) for name, array in dataset.columns.items()}
    columns[column][77] = value
    row = write_index(folder, columns)
    edit(folder, ["index"], {"bytes": row.bytes, "sha256": row.sha256})
    with pytest.raises(UsageError, match=f"index.npz: {message}"):
        shards.open_dataset(str(folder), None)


@pytest.mark.parametrize("change", [lambda c: c[:79], lambda c: c.astype("<f8"), lambda c: c[:, None]])
def test_an_index_of_another_dtype_or_length_is_bad_input(folder, change):
    columns = {name: np.array(array) for name, array in shards.open_dataset(str(folder), None).columns.items()}
    np.savez(folder / "index.npz", **columns | {"size": change(columns["size"])})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="index.npz is missing or corrupt .column size is"):
        shards.open_dataset(str(folder), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": 1, "config": ' + '{"a": ' * 3000 + "1" + "}" * 3001, "nested too deep"),
        ('{"files": {"../x.safetensors": "' + "0" * 64 + '"}}', "at `key` in `$.files`"),
        ('{"images": "1"}', "Expected `int`, got `str` - at `$.images`"),
        ('{"images": 1}', "missing required field `config`"),
        ("{", "truncated"),
    ],
)
def test_the_state_of_a_checkpoint_is_decoded_strictly(text, message):
    with pytest.raises(ValueError) as error:
        decode(text, CheckpointState)
    assert message in str(error.value)


def archive(folder: Path, format: int = tarfile.USTAR_FORMAT) -> bytearray:
    """A tar of three members of five bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for i in range(3):
            info = tarfile.TarInfo("long/" * 60 * (format != tarfile.USTAR_FORMAT) + f"{i}ü.png")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    return bytearray(out.getvalue())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_format(tmp_path, format):
    (tmp_path / "x.tar").write_bytes(data := archive(tmp_path, format))
    found = list(members(tmp_path / "x.tar"))
    assert [member.name[-6:] for member in found] == ["0ü.png", "1ü.png", "2ü.png"]
    assert all(data[member.offset :][: member.size] == b"12345" for member in found)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (slice(124, 136), b"-0000001000\0", "a member of -512 bytes"),
        (slice(124, 136), b"77777777777\0", "which runs past the end"),
        (slice(124, 136), b"\x80" + b"\xff" * 11, "which runs past the end"),
        (slice(156, 157), b"2", "shards hold regular files only"),
        (slice(156, 157), b"S", ""),
        (slice(0, 1), b"\xff", "bad checksum"),
    ],
)
def test_a_member_that_no_program_writes_is_refused(tmp_path, field, value, message):
    data = archive(tmp_path)
    header = data[1024:1536]
    header[field] = value
    if message != "bad checksum":
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(CorruptDataError, match=f"x.tar: header at byte 1024: .*{message}"):
        list(members(tmp_path / "x.tar"))


@pytest.mark.parametrize("length", [b"9x9", b"999", b"001", b"010", b"000"])
def test_a_pax_record_that_cannot_be_parsed_is_refused(tmp_path, length):
    """tarfile skips it, and with it the name of the member."""
    data = archive(tmp_path, tarfile.PAX_FORMAT)
    at = data.index(b"path=")
    data[at - 4 : at - 1] = length
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(CorruptDataError, match="header at byte 0: invalid"):
        list(members(tmp_path / "x.tar"))
