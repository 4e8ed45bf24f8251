"""The configuration of a run: dataclasses, read from YAML and then the command line. The docstrings are the help."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from distgan import UsageError
from distgan.cli import Parser


@dataclass(frozen=True)
class DataConfig:
    shards: str = "data/digits"
    """Where `distgan shards make` wrote the set: a folder, or an http(s):// or s3:// address."""
    threads: int = 2
    """Threads that read and decode, on each device; raw sets take one at most. 0: read in the loop. Changes the
    speed only."""
    flip: bool = False
    """Mirror half of the real images left to right."""
    labels: bool = False
    """Condition G and D on the class labels of the set."""
    lanes: int | None = None
    """Streams in which an epoch is read; a divisor of `batch`, and the device count must divide it.
    null: the largest divisor of `batch` up to 64."""
    skip_bad: int = 0
    """Damaged images to step over (and report) in the whole run before it stops; 0: stop at the first."""
    cache_dir: str | None = None
    """Folder for the shards of a remote set. null: ~/.cache/distgan."""
    cache_gb: float = 0.0
    """Size of that folder in GB (10^9 bytes), oldest shards leave first. 0: no limit."""
    decoder: Literal["pillow", "simplejpeg"] = "pillow"
    """What decodes JPEG; simplejpeg (pip install 'distgan[fast]') is faster."""


@dataclass(frozen=True)
class ModelConfig:
    name: str = "dcgan"
    """A row of MODELS in distgan/models. Image size and channels come from the data set."""
    latent: int = 100
    """Dimensions of z, drawn from N(0, 1)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture, e.g. {width: 64, norm: batch}."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 2e-4
    """Learning rate of Adam."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay rates of Adam's two averages, per update."""


@dataclass(frozen=True)
class EMAConfig:
    half_life_images: float = 10_000
    """Images after which a weight of G counts half in the averaged generator. 0: no averaged generator."""


@dataclass(frozen=True)
class SamplesConfig:
    count: int = 64
    """Images in a grid, real and generated."""
    every_epochs: int = 1
    """Epochs between grids."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_epochs: float = 1
    """Epochs between checkpoints; fractions are allowed. One more is written at the end of the run."""
    keep: int = 3
    """Newest checkpoints to keep; 0: all."""
    wait: bool = False
    """Hold the loop until a checkpoint is on disk, in place of writing it behind the loop."""


@dataclass(frozen=True)
class ReportConfig:
    every_images: int = 5_000
    """Images between two lines of the log and of metrics.jsonl."""
    digests: bool = False
    """Add to each line a digest of the images and latents since the line before: equal for equal data."""
    tensorboard: bool = False
    """Write scalars and grids for TensorBoard too (pip install 'distgan[tensorboard]')."""


@dataclass(frozen=True)
class GuardConfig:
    rollbacks: int = 0
    """Times that a run whose losses are not finite goes back to its newest checkpoint and on with other latents.
    0: it stops."""


@dataclass(frozen=True)
class ResumeConfig:
    override: bool = False
    """Continue a run although keys that alter it were changed."""


@dataclass(frozen=True)
class Config:
    run_dir: str = "runs/dcgan"
    """Folder for everything the run writes. The same command continues the run that is in it."""
    seed: int = 0
    """Seed of weights, latents, labels, flips and the order of the images."""
    epochs: int | None = None
    """Length of the run in passes through the set; 25 where neither this nor `images` is given."""
    images: int | None = None
    """Length of the run in images; excludes `epochs`."""
    batch: int = 64
    """Global minibatch in images, split over the devices."""
    micro_batch: int | None = None
    """Images a device takes through the networks at once; null: its whole share of the minibatch."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the networks; losses and logits are always float32."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory order. Changes the speed, and rounding."""
    deterministic: bool = True
    """Only GPU kernels that give the same bits every time; false: the fastest ones. A CPU's do so anyway."""
    sync_batchnorm: bool = True
    """BatchNorm statistics of the images of all devices (of a micro-batch); false: each normalises by its own."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: str = "bce"
    """A row of LOSSES in distgan/losses.py."""
    penalties: dict[str, float] = field(default_factory=dict)
    """Gradient penalties: name and weight."""
    augment: list[str] = field(default_factory=list)
    """Augmentations of what D sees, in order."""
    g_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    d_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        if self.epochs is None and self.images is None:
            object.__setattr__(self, "epochs", 25)
        elif self.epochs is not None and self.images is not None:
            raise UsageError("epochs and images are both given; give one, and null for the other")
        for key, number in flatten(to_dict(self)).items():
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{key}: {number} is not a finite number")
        for key, least in LEAST.items():
            value: Any = self
            for name in key.split("."):
                value = getattr(value, name)
            if value is not None and value < least:
                raise UsageError(f"{key}: {value} is too small; at least {least}")
        for net in ("g_optimizer", "d_optimizer"):
            optimizer = getattr(self, net)
            if not all(0 <= beta < 1 for beta in optimizer.betas):
                raise UsageError(f"{net}.betas: {list(optimizer.betas)} must both lie in [0, 1)")
            if not optimizer.lr > 0:
                raise UsageError(f"{net}.lr: {optimizer.lr} must be above 0")
        if self.lanes and self.batch % self.lanes:
            raise UsageError(f"data.lanes: {self.lanes} does not divide batch {self.batch}")
        for key, names in (("penalties", self.penalties), ("augment", self.augment)):
            for name in names:
                raise UsageError(f"{key}: there is no {name!r}; this version has none")

    @property
    def lanes(self) -> int:
        """The lanes of the data order: `data.lanes`, or the largest divisor of `batch` up to 64."""
        return self.data.lanes or default_lanes(self.batch)

    def identity(self) -> dict[str, Any]:
        """The keys that decide what the run computes; those of speed, length, place and reporting are left out."""
        every = to_dict(self)
        for key in NOT_IDENTITY:
            *path, last = key.split(".")
            inner = every
            for name in path:
                inner = inner[name]
            del inner[last]
        every["data"]["lanes"] = self.lanes
        return every


LEAST: dict[str, float] = {
    "seed": 0,
    "epochs": 1,
    "images": 1,
    "batch": 1,
    "micro_batch": 1,
    "data.threads": 0,
    "data.lanes": 1,
    "data.skip_bad": 0,
    "data.cache_gb": 0,
    "model.latent": 1,
    "ema.half_life_images": 0,
    "samples.count": 1,
    "samples.every_epochs": 1,
    "checkpoint.every_epochs": 1e-6,
    "checkpoint.keep": 0,
    "report.every_images": 1,
    "guard.rollbacks": 0,
}

NOT_IDENTITY = (
    "run_dir",
    "epochs",
    "images",
    "data.shards",
    "data.threads",
    "data.skip_bad",
    "data.cache_dir",
    "data.cache_gb",
    "samples",
    "checkpoint",
    "report",
    "guard",
    "resume",
)


def default_lanes(batch: int) -> int:
    """The largest divisor of `batch` up to 64."""
    return max(n for n in range(1, min(64, batch) + 1) if batch % n == 0)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def read(argv: Sequence[str], *, prog: str, description: str) -> tuple[Config, jsonargparse.Namespace]:
    """The configuration of `--config FILE` and the command line, and the flags that are no part of it.

    `--help` and `--print_config` print and exit 0. Raises UsageError.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file; what follows on the command line overrides it.")
    parser.add_class_arguments(Config, nested_key=None, as_group=False)
    parser.add_argument("--fresh", action="store_true", help="Move the run that is in run_dir aside and start over.")
    parser.add_argument("--dry_run", action="store_true", help="Build everything, do one iteration, write nothing.")
    for path in (argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"):
        if not Path(path).is_file():
            raise UsageError(f"--config: there is no file {path}")
    namespace = parser.parse_args(list(argv))
    for section in dataclasses.fields(Config):
        value, kind = namespace[section.name], section.default_factory
        if dataclasses.is_dataclass(kind) and not isinstance(value, jsonargparse.Namespace):
            keys = ", ".join(key.name for key in dataclasses.fields(kind))
            raise UsageError(f"{section.name}: {value!r} is no section; its keys are {keys}")
    flags = jsonargparse.Namespace(fresh=namespace.pop("fresh"), dry_run=namespace.pop("dry_run"))
    namespace.pop("config", None)
    given = {key for key in ("epochs", "images") if any(word.split("=")[0] == f"--{key}" for word in argv)}
    if len(given) == 1:  # a length on the command line overrides the file's, whichever way that one is said
        namespace["images" if given == {"epochs"} else "epochs"] = None
    fields = parser.instantiate(namespace)
    return Config(**dict(vars(fields))), flags
