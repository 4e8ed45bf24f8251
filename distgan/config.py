"""The configuration of a run: dataclasses, read from YAML, then the command line. The docstrings are the help."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from distgan import UsageError
from distgan.cli import Decay, NonNegativeFloat, NonNegativeInt, Parser, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class DataConfig:
    shards: str = "data/digits"
    """Dataset written by `distgan shards make`: a folder, or an http(s)://, s3://, gs:// or az:// URL
    (pip install 'distgan[remote]')."""
    threads: NonNegativeInt = 2
    """Threads that read and decode, in each process; raw datasets use one at most. 0: read in the loop. Changes the
    speed only."""
    flip: bool = False
    """Flip half of the real images horizontally."""
    labels: bool = False
    """Condition G and D on the class labels of the dataset."""
    lanes: PositiveInt | None = None
    """Interleaved partitions of an epoch; a divisor of `batch`, and a multiple of the number of processes.
    null: the largest divisor of `batch` up to 64 and up to the number of images."""
    skip_bad: NonNegativeInt = 0
    """Corrupt images to skip (and report) in the whole run before it stops, counted each time one is read; the next
    good image is read in its place. 0: stop at the first."""
    cache_dir: str | None = None
    """Folder for the shards of a remote dataset. null: ~/.cache/distgan/shards."""
    cache_gb: NonNegativeFloat = 0.0
    """Size limit of that folder in GB (10^9 bytes): the least recently used shards are evicted, if no run reads them.
    0: no limit."""
    fetch_ahead: NonNegativeInt = 2
    """Shards of each lane to fetch before they are needed, as far as `cache_gb` allows. 0: fetch what is needed."""
    fetch_threads: PositiveInt = 16
    """Shards to fetch at a time on each node, by all of its processes together."""
    decoder: Literal["pillow", "simplejpeg"] = "pillow"
    """JPEG decoder; simplejpeg (pip install 'distgan[fast]') is faster."""


@dataclass(frozen=True)
class ModelConfig:
    name: str = "dcgan"
    """An entry of MODELS in distgan/models, or one that a module in `import` adds. Image size and channels are the
    dataset's."""
    latent: PositiveInt = 100
    """Dimensions of z, drawn from N(0, 1)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture, e.g. {width: 64, norm: batch}."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: PositiveFloat = 2e-4
    """Adam learning rate."""
    betas: tuple[Decay, Decay] = (0.5, 0.999)
    """Adam betas, per update."""
    eps: PositiveFloat = 1e-8
    """Adam epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on the weights, added to the gradient."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of a network's gradient; larger ones are scaled down to it. 0: no clipping."""


@dataclass(frozen=True)
class EMAConfig:
    half_life_images: NonNegativeFloat = 10_000
    """Half-life of the exponential moving average of G's weights, in images. 0: no EMA."""
    warmup: NonNegativeFloat = 0.05
    """The half-life is at most this share of the images seen. 0: no warm-up."""


@dataclass(frozen=True)
class SamplesConfig:
    count: PositiveInt = 64
    """Images in a grid, real and generated."""
    every_epochs: PositiveFloat = 1
    """Epochs between grids; fractions are allowed. One more is saved at the end of the run and at a stop."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_epochs: PositiveFloat = 1
    """Epochs between checkpoints; fractions are allowed. One more is written at the end of the run and at a stop."""
    keep: NonNegativeInt = 3
    """Newest checkpoints to keep; 0: all."""
    wait: bool = False
    """Block the loop until a checkpoint is on disk, instead of writing it asynchronously."""


@dataclass(frozen=True)
class ReportConfig:
    every_images: PositiveInt = 5_000
    """Images between two lines of the log and of metrics.jsonl."""
    digests: bool = False
    """Add to each line a hash of the images and latents since the previous line: equal for equal data."""
    tensorboard: bool = False
    """Write scalars and grids for TensorBoard too (pip install 'distgan[tensorboard]')."""


@dataclass(frozen=True)
class GuardConfig:
    rollbacks: NonNegativeInt = 0
    """Times that a run with NaN or Inf in its losses or weights returns to its latest checkpoint and continues with
    other latents. 0: it stops."""


@dataclass(frozen=True)
class ResumeConfig:
    override: bool = False
    """Resume although keys that alter the run were changed."""


@dataclass(frozen=True)
class Config:
    imports: list[str] = field(default_factory=list)
    """The key `import`: your modules that add entries to LOSSES or MODELS; imported before the run is built."""
    run_dir: str = "runs/dcgan"
    """Folder for everything the run writes. Running the same command again resumes the run in it."""
    seed: NonNegativeInt = 0
    """Seed of weights, latents, labels, flips and the order of the images."""
    epochs: PositiveInt | None = None
    """Length of the run in passes through the dataset; 25 if neither this nor `images` is given."""
    images: PositiveInt | None = None
    """Length of the run in images; excludes `epochs`."""
    batch: PositiveInt = 64
    """Global minibatch in images, split over the processes."""
    micro_batch: PositiveInt | None = None
    """Images per forward pass of a process; gradients accumulate over its share of the minibatch. null: all of it."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the networks; "no" is float32 (see tf32). Logits and losses are always float32."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory format. Changes the speed, and rounding."""
    deterministic: bool = True
    """Use only deterministic algorithms; false: the fastest ones, and a resumed run may differ in the last bits."""
    tf32: bool = True
    """On GPUs, let float32 convolutions and matrix products use TF32 (10 bits of mantissa); not logits and losses."""
    sync_batchnorm: bool = True
    """BatchNorm statistics over the images of all processes (of a micro-batch); false: each process uses its own."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: str = "bce"
    """An entry of LOSSES in distgan/gan/losses.py, or one that a module in `import` adds."""
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
        if self.lanes and self.batch % self.lanes:
            raise UsageError(f"data.lanes: {self.lanes} does not divide batch {self.batch}")
        for key in UNAVAILABLE:
            for name in getattr(self, key):
                raise UsageError(f"{key}: unknown {name!r}; this version has none")

    @property
    def lanes(self) -> int:
        """The lanes of the data order: `data.lanes`, or the largest divisor of `batch` up to 64.

        A dataset with fewer images has fewer: `Run.order.lanes` are those of the run.
        """
        return self.data.lanes or default_lanes(self.batch)

    def fingerprint(self) -> dict[str, Any]:
        """The keys that decide what the run computes, without those of FREE_TO_CHANGE."""
        keys = to_dict(self)
        for key in FREE_TO_CHANGE:
            *path, last = key.split(".")
            inner = keys
            for name in path:
                inner = inner[name]
            del inner[last]
        keys["data"]["lanes"] = self.lanes
        return keys


UNAVAILABLE = ("penalties", "augment")
"""Keys that only take their default yet: read, and left out of --help."""

FREE_TO_CHANGE = (
    "import",
    "run_dir",
    "epochs",
    "images",
    "data.shards",
    "data.threads",
    "data.skip_bad",
    "data.cache_dir",
    "data.cache_gb",
    "data.fetch_ahead",
    "data.fetch_threads",
    "samples",
    "checkpoint",
    "report",
    "guard",
    "resume",
)
"""Keys of speed, length, place and reporting, which a resumed run may change."""


def default_lanes(batch: int, samples: int | None = None) -> int:
    """The largest divisor of `batch` up to 64 and up to the dataset's `samples`."""
    limit = min(64, batch, samples or batch)
    return max(n for n in range(1, limit + 1) if batch % n == 0)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, by the keys of YAML."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"import": values.pop("imports"), **values}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def read_config(argv: Sequence[str], *, prog: str, description: str) -> tuple[Config, jsonargparse.Namespace]:
    """The configuration of `--config FILE` and the command line, and the flags that are no part of it.

    `--help` and `--print_config` print and exit 0. Raises UsageError.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file; the command line overrides it.")
    parser.add_argument(
        "--import",
        type=list[str] | str,
        default=[],
        help="Your modules that add entries to LOSSES or MODELS.",
    )
    parser.add_class_arguments(Config, nested_key=None, as_group=False, skip={"imports"})
    parser.add_argument("--fresh", action="store_true", help="Move the run that is in run_dir aside and start over.")
    parser.add_argument("--dry_run", action="store_true", help="Build everything, run two iterations, write nothing.")
    for action in parser._actions:
        if action.dest in UNAVAILABLE:
            action.help = argparse.SUPPRESS
    for path in (argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"):
        if not Path(path).is_file():
            raise UsageError(f"--config: no such file: {path}")
    namespace = parser.parse_args(list(argv))
    for section in dataclasses.fields(Config):
        value, kind = namespace.get(section.name), section.default_factory
        if dataclasses.is_dataclass(kind) and not isinstance(value, jsonargparse.Namespace):
            keys = ", ".join(key.name for key in dataclasses.fields(kind))
            raise UsageError(f"{section.name}: expected a section with the keys {keys}, got {value!r}")
    flags = jsonargparse.Namespace(fresh=namespace.pop("fresh"), dry_run=namespace.pop("dry_run"))
    namespace.pop("config", None)
    imports = namespace.pop("import")
    given = {key for key in ("epochs", "images") if any(word.split("=")[0] == f"--{key}" for word in argv)}
    if len(given) == 1:  # a length on the command line overrides the file's, in either unit
        namespace["images" if given == {"epochs"} else "epochs"] = None
    fields = parser.instantiate(namespace)
    return Config(imports=[imports] if isinstance(imports, str) else imports, **dict(vars(fields))), flags
