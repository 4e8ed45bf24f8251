"""The configuration of a run: dataclasses, read from YAML, then the command line. The docstrings are the help."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from distgan.config.entries import (
    BETA,
    AdaptiveProbability,
    AugmentEntry,
    PenaltyEntry,
    parse_augmentation,
    parse_penalty,
    parse_probability,
    parse_schedule,
)
from distgan.config.types import (
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Schedule,
)
from distgan.errors import UsageError


def free(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A field for a key of speed, length, place or reporting, which a resumed run may change."""
    return field(default=default, default_factory=factory, metadata={"free": True})


@dataclass(frozen=True)
class DataConfig:
    shards: str = free("data/digits")
    """Dataset written by `distgan shards make`: a folder, or an http(s)://, s3://, gs:// or az:// URL
    (pip install 'distgan[remote]')."""
    threads: NonNegativeInt = free(2)
    """Threads that read and decode, in each process; raw datasets use one at most. 0: read in the loop. Changes the
    speed only."""
    flip: bool = False
    """Flip half of the real images horizontally."""
    labels: bool = False
    """Condition G and D on the class labels of the dataset."""
    lanes: PositiveInt | None = None
    """Interleaved partitions of an epoch; a divisor of `batch`, and a multiple of the number of processes.
    null: the largest divisor of `batch` up to 64 and up to the number of images."""
    skip_bad: NonNegativeInt = free(0)
    """Corrupt images to skip (and report) in the whole run before it stops, counted each time one is read; the next
    good image is read in its place. 0: stop at the first."""
    cache_dir: str | None = free(None)
    """Folder for the shards of a remote dataset. null: ~/.cache/distgan/shards."""
    cache_gb: NonNegativeFloat = free(0.0)
    """Size limit of that folder in GB (10^9 bytes): the least recently used shards are evicted, if no run reads them.
    0: no limit."""
    fetch_ahead: NonNegativeInt = free(2)
    """Shards of each lane to fetch before they are needed, as far as `cache_gb` allows. 0: fetch what is needed."""
    fetch_threads: PositiveInt = free(32)
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
    lr: PositiveFloat | Schedule = 2e-4
    """Adam learning rate: a number or a schedule {from: 2e-4, to: 5e-5, images: 1e6, shape: cosine, start: 0}."""
    betas: tuple[Decay, Decay | Schedule] = (0.5, 0.999)
    """Adam betas, per update; the second may be a schedule."""
    eps: PositiveFloat = 1e-8
    """Adam epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on the weights, added to the gradient."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of a network's gradient; larger ones are scaled down to it. 0: no clipping."""


@dataclass(frozen=True)
class EMAConfig:
    half_life_images: NonNegativeFloat | Schedule = 10_000
    """Half-life of the exponential moving average of G's weights, in images; a number or a schedule. 0: no EMA."""
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
class EvaluateConfig:
    every_epochs: NonNegativeFloat = 0.0
    """Epochs between evaluations, each with a checkpoint; fractions are allowed. One more at the end of the run.
    0: none."""
    metrics: list[str] = field(default_factory=list)
    """Entries of METRICS in distgan/metrics/scores.py. []: fid, precision_recall, and modes where the extractor gives
    classes."""
    extractor: str = "classifier"
    """Network whose features are compared: classifier (distgan evaluate --train_extractor makes it),
    efficientnet-lite0, inception, or a classifier's .safetensors file."""
    samples: PositiveInt | None = None
    """Generated images. null: 26,000 for stacked-mnist, else as many as the dataset has, up to 50,000."""
    reference_images: PositiveInt | None = None
    """Real images to compare with. null: all."""
    best: str | None = None
    """Keep the checkpoint with the best value of this metric, as a card names it, beside the newest ones.
    null: the card's first."""
    cache_dir: str | None = None
    """Folder of extractors and statistics. null: ~/.cache/distgan."""


@dataclass(frozen=True)
class ReportConfig:
    every_images: PositiveInt = 5_000
    """Images between two lines of the log and of metrics.jsonl."""
    digests: bool = False
    """Add to each line a hash of the images and latents since the previous line: equal for equal data."""
    page: bool = True
    """Write report.html, the page of the run, at each grid."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers that get scalars, grids and metric cards too, by their names in Accelerate, such as
    [tensorboard, wandb]. TensorBoard (pip install 'distgan[tensorboard]') needs no account and no network."""


@dataclass(frozen=True)
class GuardConfig:
    rollbacks: NonNegativeInt = 0
    """Times that a run with NaN or Inf in its losses or weights returns to its latest checkpoint and continues with
    other latents. 0: it stops."""
    stop_on_collapse: bool = False
    """End the run, with exit code 1, when generated images are all alike or D tells all of them from real ones."""


@dataclass(frozen=True)
class ResumeConfig:
    override: bool = False
    """Resume although keys that alter the run were changed."""


@dataclass(frozen=True)
class Config:
    imports: list[str] = free(factory=list)
    """The key `import`: your modules that add entries to LOSSES or MODELS; imported before the run is built."""
    run_dir: str = free("runs/dcgan")
    """Folder for everything the run writes. Running the same command again resumes the run in it."""
    seed: NonNegativeInt = 0
    """Seed of weights, latents, labels, flips and the order of the images."""
    epochs: PositiveInt | None = free(None)
    """Length of the run in passes through the dataset; 25 if neither this nor `images` is given."""
    images: PositiveInt | None = free(None)
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
    n_critic: PositiveInt = 1
    """Updates of D, each on a minibatch of its own, for one of G."""
    penalties: dict[str, Any] = field(default_factory=dict)
    """Gradient penalties of D: entries of PENALTIES in distgan/gan/penalties.py, with a weight, a schedule, or
    {weight: weight or schedule, every: iterations}, which applies it less often and as many times stronger.
    The weight of r1 and r2 is gamma."""
    augment: list[Any] = field(default_factory=list)
    """Augmentations of what D sees, in order: entries of AUGMENTATIONS in distgan/gan/augment.py, or {name: factor},
    which multiplies its probability."""
    augment_p: NonNegativeFloat | Schedule = 1.0
    """Probability of each augmentation, in [0, 1]: a number, a schedule, or {target: 0.6, images: 500_000}, which holds
    the mean of sign(D(x)), averaged over four iterations and at least 256 images, at `target` by moving it by at most 1
    in `images` images, from 0."""
    g_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    d_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    samples: SamplesConfig = free(factory=SamplesConfig)
    checkpoint: CheckpointConfig = free(factory=CheckpointConfig)
    evaluate: EvaluateConfig = free(factory=EvaluateConfig)
    report: ReportConfig = free(factory=ReportConfig)
    guard: GuardConfig = free(factory=GuardConfig)
    resume: ResumeConfig = free(factory=ResumeConfig)

    def __post_init__(self) -> None:
        if self.epochs is None and self.images is None:
            object.__setattr__(self, "epochs", 25)
        elif self.epochs is not None and self.images is not None:
            raise UsageError("epochs and images are both given; give one, and null for the other")
        if self.lanes and self.batch % self.lanes:
            raise UsageError(f"data.lanes: {self.lanes} does not divide batch {self.batch}")
        for key, optimizer in (("g_optimizer", self.g_optimizer), ("d_optimizer", self.d_optimizer)):
            parse_schedule(f"{key}.lr", optimizer.lr)
            parse_schedule(f"{key}.betas", optimizer.betas[1], BETA)
        parse_schedule("ema.half_life_images", self.ema.half_life_images)
        for entries in ("penalty_entries", "augment_entries", "adaptive_p"):
            getattr(self, entries)  # parsed now, so that a mistake is found now
        if not self.augment and self.augment_p != 1:
            raise UsageError("augment_p: no augmentation is given in augment, e.g. [color, translation, cutout]")

    @cached_property
    def penalty_entries(self) -> dict[str, PenaltyEntry]:
        """The penalties by name, in order."""
        return {name: parse_penalty(f"penalties.{name}", value) for name, value in self.penalties.items()}

    @cached_property
    def augment_entries(self) -> list[AugmentEntry]:
        """The augmentations, in order."""
        return [parse_augmentation(value) for value in self.augment]

    @cached_property
    def adaptive_p(self) -> AdaptiveProbability | None:
        """The rule by which `augment_p` follows sign(D(x)), if it does."""
        probability = parse_probability(self.augment_p)
        return probability if isinstance(probability, AdaptiveProbability) else None

    @property
    def lanes(self) -> int:
        """The lanes of the data order: `data.lanes`, or the largest divisor of `batch` up to 64.

        A dataset with fewer images has fewer: `Run.order.lanes` are those of the run.
        """
        return self.data.lanes or default_lanes(self.batch)

    @property
    def iteration_images(self) -> int:
        """Images that D sees in one iteration, over all processes."""
        return self.batch * self.n_critic

    def fingerprint(self) -> dict[str, Any]:
        """The keys that decide what the run computes, as plain JSON values: those that are not `free`."""
        keys = plain(fixed_keys(self))
        keys["data"]["lanes"] = self.lanes
        return keys


def default_lanes(batch: int, samples: int | None = None) -> int:
    """The largest divisor of `batch` up to 64 and up to the dataset's `samples`."""
    limit = min(64, batch, samples or batch)
    return max(n for n in range(1, limit + 1) if batch % n == 0)


def fixed_keys(section: Any) -> dict[str, Any]:
    """The values of a dataclass and of those in it by name, without its `free` fields."""
    values = {key.name: getattr(section, key.name) for key in dataclasses.fields(section) if "free" not in key.metadata}
    return {name: fixed_keys(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of JSON values whose tuples are lists."""
    return json.loads(json.dumps(values))


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, by the keys of YAML."""
    values = plain(dataclasses.asdict(config))
    return {"import": values.pop("imports"), **values}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat
