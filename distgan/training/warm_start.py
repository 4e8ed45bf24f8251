"""Fine-tuning: a run that begins anew takes the weights of another one, the key `init_from`."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from distgan.config.keys import Config
from distgan.distributed.processes import Distributed
from distgan.errors import DistganError, UsageError, format_os_error
from distgan.runs.checkpoint import Checkpoints, load_weights
from distgan.runs.schema import MOST_TEXT
from distgan.runs.weights import WeightFiles, find_files
from distgan.training.transfer import NAMES, Architecture, Copied, copy_weights, differing_keys

W_MEAN = "w_mean"
"""The mean of w of a converted network; of other networks it is computed from their weights."""


class WarmStart:
    """The weights that a run begins with. They are read when they are copied, and not kept."""

    def __init__(self, source: WeightFiles, sha256: dict[str, str]) -> None:
        self.source = source
        self.sha256 = sha256
        """Of the files, by network."""
        self.target: Architecture | None = None
        self.origins: list[str] = []
        """The provenance of weights of other projects."""
        self.lines = [f"init_from: {source.place}{source.note}"]
        """What was copied, for the first lines of a run."""

    def init_networks(self, G: nn.Module, D: nn.Module, target: Architecture) -> None:
        """Copy the source's weights into networks of `target` without their wrappers, in place. Raises UsageError."""
        self.target = target
        with naming_key():
            architecture = self.copy("generator", G)
            self.lines += describe_differences(architecture, target)
            if "discriminator" in self.source.files:
                self.copy("discriminator", D)
            else:
                self.lines.append(f"D begins anew: there is none in {self.source.place}")

    def init_ema(self, module: nn.Module) -> None:
        """Copy the source's EMA of G into that of this run, which is a copy of G, in place. Raises UsageError."""
        files = self.source.files
        if files["ema"] == files["generator"]:
            self.lines.append(f"EMA of G: a copy of G, from {files['ema'].name}")
            return
        with naming_key():
            self.copy("ema", module)

    def copy(self, kind: str, network: nn.Module) -> Architecture:
        """Copy one of the files, "generator", "discriminator" or "ema", and say what of it; what it is built from."""
        assert self.target is not None
        file = self.source.files[kind]
        weights, metadata = load_weights(file)
        source = Architecture.of(file, metadata)
        source = replace(source, options={name: value for name, value in source.options.items() if name != W_MEAN})
        if weights.pop(W_MEAN, None) is not None:
            self.lines.append(f"left out of {file.name}: {W_MEAN}, which training would not keep up to date")
        if metadata.provenance and metadata.provenance not in self.origins:
            self.origins.append(metadata.provenance[:MOST_TEXT])
            self.lines.append(metadata.provenance)
        copied = copy_weights(network, kind, weights, source, self.target, file)
        self.lines += describe_copied(kind, network, copied, source, self.target, file)
        return source


def open_warm_start(config: Config, processes: Distributed, fresh: bool = False) -> WarmStart | None:
    """What a run begins with; None for one that resumes, or has no `init_from`. Raises UsageError on all processes.

    The main process says which files they are; all processes read them.
    """
    path = config.init_from
    if path is None or not processes.run_on_main(lambda: fresh or not has_checkpoints(config)):
        return None
    with naming_key():
        source = processes.run_on_main(lambda: find_files(Path(path)))
        sha256 = processes.run_on_all(source.sha256)
    if config.freeze_d and "discriminator" not in source.files:
        fix = "give a folder that has discriminator.safetensors, or set freeze_d to 0"
        raise UsageError(f"freeze_d: D begins anew, since {source.place} has G alone; {fix}")
    processes.check_same_on_all_ranks(f"the files at {path} (init_from)", sha256)
    return WarmStart(source, sha256)


def has_checkpoints(config: Config) -> bool:
    """Whether the run's folder has a checkpoint to resume from."""
    with contextlib.closing(Checkpoints(Path(config.run_dir) / "checkpoints")) as checkpoints:
        return bool(checkpoints.all())


@contextlib.contextmanager
def naming_key() -> Iterator[None]:
    """Raises UsageError, which begins with the key, for what is wrong with its files."""
    try:
        yield
    except (DistganError, OSError) as error:
        reason = format_os_error(error) if isinstance(error, OSError) else str(error)
        named = UsageError(f"init_from: {reason}")
        named.on_all_ranks = getattr(error, "on_all_ranks", False)
        raise named from None


def describe_copied(
    kind: str, network: nn.Module, copied: Copied, source: Architecture, target: Architecture, file: Path
) -> Iterator[str]:
    """How much was copied, and each tensor that was not."""
    name = NAMES[kind]
    tensors = len(network.state_dict())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    yield (
        f"{name}: {copied.tensors} of {tensors} tensors, {copied.parameters:,} of {parameters:,} parameters "
        f"from {file.name}"
    )
    labels = f"depends on labels ({describe_labels(source)} there, {describe_labels(target)} here)"
    if copied.new:
        yield f"{name} begins anew where it {labels}: {', '.join(copied.new)}"
    if copied.left_out:
        yield f"left out of {file.name}, since it {labels}: {', '.join(copied.left_out)}"


def describe_labels(architecture: Architecture) -> str:
    """The labels of a network, in words."""
    count = architecture.spec.num_classes
    parts = [f"{count} classes"] if count else []
    parts += [condition.name for condition in architecture.spec.conditions]
    return ", ".join(parts) or "none"


def describe_differences(source: Architecture, target: Architecture) -> Iterator[str]:
    """What differs between networks of the same shapes: names of labels, and options."""
    if source.labels == target.labels and source.label_names != target.label_names:
        pairs = zip(source.label_names, target.label_names, strict=True)
        there, here = next(pair for pair in pairs if pair[0] != pair[1])
        yield f"labels have other names than there, and are taken in their order: {here} begins as {there}"
    for key, (there, here) in differing_keys(source, target).items():
        yield f"{key} is {here}, and {there} there; all tensors have the same shapes"
