"""The dataset that generated images are compared with: of latents, the images that were encoded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distgan.data.dataset import open_dataset
from distgan.data.shardset import ShardSet
from distgan.errors import DistganError, UsageError
from distgan.samples import SampleSpec


class RealImageSet(NamedTuple):
    """A dataset of images, and its address."""

    dataset: ShardSet
    address: str


def real_images_of(dataset: ShardSet, address: str, keys: Mapping[str, Any] | None = None) -> RealImageSet:
    """The images of the dataset at `address`; of latents, those that were encoded.

    They are beside the latents (`distgan shards encode --keep_images`), or in the dataset that the manifest names as
    the source, if it is there and unchanged. Raises UsageError, which names `data`, where they are in neither.
    """
    if dataset.spec.latents is None:
        return RealImageSet(dataset, address)
    if (images := dataset.images) is not None:
        return RealImageSet(images, address)
    source = dataset.manifest.source or {}
    where, recorded = str(source.get("name")), source.get("manifest")
    fix = "give the dataset that was encoded"
    try:
        original = open_dataset(where, keys)
    except (DistganError, OSError) as error:
        raise UsageError(
            f"data: {address} has latents without their images, and the dataset {where} that they were encoded from "
            f"cannot be opened ({error}); {fix}"
        ) from None
    if original.digest != recorded:
        raise UsageError(
            f"data: {address} has latents without their images, and {where} is not the dataset that they were encoded "
            f"from any more: its manifest is {original.digest[:12]}, not {str(recorded)[:12]}; {fix}"
        )
    if original.spec.channels != dataset.spec.pixels.channels:
        raise UsageError(
            f"data: {where} has grey images, and the latents of {address} are decoded to RGB; encode it again with "
            "--keep_images"
        )
    return RealImageSet(original, where)


def check_same_kind(spec: SampleSpec, classes: Sequence[str], dataset: ShardSet, address: str) -> None:
    """Raises UsageError, which names `data`, for a dataset of other images, classes or conditions than G's.

    G makes images of `spec`, of classes with these names.
    """
    if not spec.same_images(dataset.spec):
        raise UsageError(f"data: {address} has images {dataset.spec}, the generator makes {spec}")
    conditions = {one.name: one for one in dataset.spec.conditions}
    if spec.conditions and conditions.keys() != {one.name for one in spec.conditions}:
        theirs = ", ".join(conditions) or "none"
        trained = ", ".join(one.name for one in spec.conditions)
        raise UsageError(f"data: the conditions of {address} are {theirs}; the generator was trained with {trained}")
    for one in spec.conditions:
        if one.kind == "flag" and conditions[one.name].kind != "flag":
            raise UsageError(
                f"data: {one.name} of {address} is not 0 or 1 everywhere, as the generator was trained with"
            )
    if classes and list(classes) != [label.name for label in dataset.classes]:
        raise UsageError(f"data: the classes of {address} are not those that the generator was trained with")
