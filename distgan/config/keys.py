"""The configuration of a run: dataclasses, read from YAML, then the command line. The docstrings are the help."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from distgan.config.entries import (
    BETA,
    G_PENALTY_OPTIONS,
    AdaptiveProbability,
    AugmentEntry,
    PenaltyEntry,
    TermEntry,
    parse_augmentation,
    parse_penalty,
    parse_probability,
    parse_schedule,
    parse_term,
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
    """The dataset, and how it is read."""

    shards: str = free("data/digits")
    """Dataset written by `distgan shards make`: a folder, or an http(s)://, s3://, gs:// or az:// URL
    (pip install 'distgan[remote]')."""
    threads: NonNegativeInt = free(2)
    """Threads per process that read and decode; raw (npy) datasets use at most one. 0: read in the training loop.
    Affects only the speed."""
    flip: bool = False
    """Flip half of the real images horizontally."""
    labels: bool = False
    """Condition G and D on the labels of the dataset: its classes, its numbers, or both."""
    lanes: PositiveInt | None = None
    """Interleaved partitions of an epoch: a divisor of `batch` and a multiple of the number of processes. null: the
    largest divisor of `batch` up to 64 and up to the number of images."""
    skip_bad: NonNegativeInt = free(0)
    """Corrupt images to skip (and report) in the whole run before it stops; each time that one is read counts. The
    next good image takes its place. 0: stop at the first."""
    cache_dir: str | None = free(None)
    """Folder for the shards of a remote dataset. null: ~/.cache/distgan/shards."""
    cache_gb: NonNegativeFloat = free(0.0)
    """Size limit of that folder in GB (10^9 bytes); the least recently used shards that no run is reading are
    evicted. 0: no limit."""
    fetch_ahead: NonNegativeInt = free(2)
    """Shards per lane to fetch before they are needed, as far as `cache_gb` allows. 0: fetch each when it is
    needed."""
    fetch_threads: PositiveInt = free(32)
    """Shards fetched concurrently on each node, by all of its processes together."""
    vae: str | None = free(None)
    """Of a dataset of latents, the VAE that decodes them: a folder with its config.json and
    diffusion_pytorch_model.safetensors, or hf://OWNER/NAME, which is downloaded. null: the one that `distgan shards
    encode` kept in ~/.cache/distgan/vae. It must be the one that encoded the dataset."""
    decoder: Literal["pillow", "simplejpeg"] = "pillow"
    """JPEG decoder; simplejpeg (pip install 'distgan[fast]') is faster."""


@dataclass(frozen=True)
class ModelConfig:
    """The networks G and D."""

    name: str = "dcgan"
    """An entry of MODELS in distgan/models, or one added by a module in `import`. Image size and channels come from
    the dataset."""
    latent: PositiveInt = 100
    """Dimension of z, which is drawn from N(0, I)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the networks, e.g. {width: 64, norm: batch}."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, of G or of D."""

    lr: PositiveFloat | Schedule = 2e-4
    """Adam learning rate: a number or a schedule {from: 2e-4, to: 5e-5, images: 1e6, shape: cosine, start: 0}."""
    betas: tuple[Decay, Decay | Schedule] = (0.5, 0.999)
    """Adam betas, per update; the second may be a schedule."""
    eps: PositiveFloat = 1e-8
    """Adam epsilon."""
    base_width: PositiveInt | None = None
    """Width of the network that `lr` is meant for: it is multiplied by base_width / the network's width. null: `lr` as
    it is. For networks that have a width, gat and cat."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on the weights, added to the gradient, or see `decoupled`."""
    decoupled: bool = False
    """Subtract lr * weight_decay * weight from each weight instead, as AdamW does."""
    clip: NonNegativeFloat = 0.0
    """Maximum norm of the network's gradient; a larger one is scaled down to it. 0: no clipping."""


@dataclass(frozen=True)
class EMAConfig:
    """The exponential moving average of G's weights, from which samples are drawn."""

    half_life_images: NonNegativeFloat | Schedule = 10_000
    """Half-life of the exponential moving average of G's weights, in images; a number or a schedule. 0: no EMA."""
    warmup: NonNegativeFloat = 0.05
    """Upper limit of the half-life, as a fraction of the images seen so far. 0: no warm-up."""
    power_widths: list[PositiveFloat] = field(default_factory=list)
    """Widths of further averages, by power functions of the images seen, relative to them; below 0.28867. `distgan ema`
    puts averages of other widths together from their snapshots, if there are two, such as [0.05, 0.1]. []: none."""
    snapshot_epochs: PositiveFloat = free(1)
    """Epochs between snapshots of these averages, fractions allowed. One more is written at the end of the run."""


@dataclass(frozen=True)
class SamplesConfig:
    """Grids of images."""

    count: PositiveInt = 64
    """Images per grid, real and generated."""
    every_epochs: PositiveFloat = 1
    """Epochs between grids, fractions allowed. One more is saved at the end of the run and at a stop."""
    show: tuple[PositiveInt, ...] = ()
    """Channels that grids show, from 1: three as red, green and blue, or one as grey. Default: the first."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    every_epochs: PositiveFloat = 1
    """Epochs between checkpoints, fractions allowed. One more is written at the end of the run and at a stop."""
    keep: NonNegativeInt = 3
    """How many of the newest checkpoints to keep. 0: all."""
    wait: bool = False
    """Block the loop until a checkpoint is on disk, instead of writing it asynchronously."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Metrics of generated images during the run."""

    every_epochs: NonNegativeFloat = 0.0
    """Epochs between evaluations, fractions allowed; each comes with a checkpoint. One more at the end of the run.
    0: none."""
    metrics: list[str] = field(default_factory=list)
    """Entries of METRICS in distgan/evaluation/scores.py. []: fid, precision_recall, and modes if the extractor
    predicts classes."""
    extractor: str = "classifier"
    """Feature network: classifier (trained by `distgan evaluate --train_extractor`), dinov2, efficientnet-lite0,
    inception, pixels (averages of an image's parts: for images of any kind), or the .safetensors file of a
    classifier."""
    extractor_weights: str | None = None
    """Weights of dinov2 (dinov2_vitl14_pretrain.pth, a folder of transformers' Dinov2Model, or hf://OWNER/NAME), or of
    inception (a .pth file). null: for inception, the file of `distgan evaluate --prefetch`."""
    resize: Literal["clean", "tensorflow"] | None = None
    """How images reach the input size of inception: tensorflow, as FID is published, or clean, as clean-fid does.
    null: tensorflow."""
    samples: PositiveInt | None = None
    """Generated images. null: 26,000 for stacked-mnist, else as many as the dataset has, up to 50,000."""
    reference_images: PositiveInt | None = None
    """Real images to compare with. null: all."""
    best: str | None = None
    """Metric, named as on the card, whose best checkpoint is kept besides the newest ones. null: the first on the
    card."""
    data: str | None = None
    """Dataset of the real images. null: the dataset of the run; of latents, the images that are kept beside them, or
    the dataset that they were encoded from."""
    by: str | None = None
    """A condition that G takes, or class: cards have the metrics of the images of each bin of it too, of class also for
    a G without labels, by what the extractor classifier sees. null: of all images only."""
    balanced: bool = False
    """Generate as many images of each class; false: at the frequencies of the dataset."""
    truncation_psi: NonNegativeFloat = 1.0
    """Truncation of w, for G with a mapping network: w_mean + psi (w - w_mean), with the mean of each label. 1: off."""
    nearest: NonNegativeInt = 0
    """Generated images whose nearest training images each evaluation looks for, to see whether G copies them; the
    first are those of the grids. 20 or more; 0: none."""
    held_out: str | None = None
    """Dataset of images that were not trained on, for evaluate.nearest to compare with. null: training images, each
    against the others that are not equal to it."""
    cache_dir: str | None = None
    """Folder of extractors and statistics. null: ~/.cache/distgan."""


@dataclass(frozen=True)
class ReportConfig:
    """The log, metrics.jsonl, the page and trackers."""

    every_images: PositiveInt = 5_000
    """Images between two lines of the log and of metrics.jsonl."""
    digests: bool = False
    """Add to each line a hash of the images and latents since the previous line: equal data, equal hashes."""
    page: bool = True
    """Write report.html, the page of the run, whenever a grid is saved."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers for scalars, grids and metric cards: any Accelerate tracker, by name, e.g. [tensorboard,
    wandb]. TensorBoard (pip install 'distgan[tensorboard]') needs no account and no network."""


@dataclass(frozen=True)
class GuardConfig:
    """What is done when the training fails."""

    rollbacks: NonNegativeInt = 0
    """How often a run with NaN or Inf in its losses or weights may return to its latest checkpoint and continue
    with other latents. 0: it stops at the first."""
    stop_on_collapse: bool = False
    """Stop, with exit code 1, when all generated images are alike or D tells every one of them from the real
    ones."""


@dataclass(frozen=True)
class ResumeConfig:
    """Resuming."""

    override: bool = False
    """Resume even if keys that decide what the run computes were changed."""


@dataclass(frozen=True)
class Config:
    """Every key of a run."""

    imports: list[str] = free(factory=list)
    """The key `import`: your modules that add entries to LOSSES, MODELS and the like; imported before the run is
    built."""
    run_dir: str = free("runs/dcgan")
    """Folder for everything the run writes. Rerunning the same command resumes the run in it."""
    seed: NonNegativeInt = 0
    """Seed of weights, latents, labels, flips and the order of the images."""
    epochs: PositiveInt | None = free(None)
    """Length of the run in passes through the dataset; 25 if neither this nor `images` is given."""
    images: PositiveInt | None = free(None)
    """Length of the run in images; excludes `epochs`."""
    batch: PositiveInt = 64
    """Global minibatch in images, split over the processes."""
    micro_batch: PositiveInt | None = None
    """Images per forward pass of a process; gradients are accumulated over its share of the minibatch. null: the
    whole share at once."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the networks; "no" is float32 (see tf32). Logits and losses are always float32."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory format. Affects speed and rounding."""
    deterministic: bool = True
    """Use deterministic algorithms only. false: the fastest ones; a resumed run may then differ in the last
    bits."""
    tf32: bool = True
    """On GPUs, let float32 convolutions and matrix products use TF32 (10-bit mantissa); logits and losses do
    not."""
    compile: bool = False
    """Compile G, and the objectives of D and of G with their gradients, by torch.compile. It takes a minute or more at
    the start; what it gains depends on the networks and the device. Affects speed and rounding."""
    graph: bool = False
    """Capture each iteration as a CUDA graph, which the host starts as a whole; needs a GPU. Affects speed and
    rounding."""
    sync_batchnorm: bool = True
    """Compute BatchNorm statistics over the images of all processes (of a micro-batch). false: each process over
    its own."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init_from: str | None = free(None)  # compared by its files, in `distgan.runs.folder`
    """Begin with weights of another run, to fine-tune it: a run (its best checkpoint, else the newest), a checkpoint, a
    folder of generator, discriminator and ema.safetensors, or one such file for G and its EMA. The networks must be
    those of `model`; what depends on labels may differ. A resumed run does not look there."""
    freeze_d: NonNegativeInt = 0
    """How many of D's layers, from the image on, keep the weights that they have from `init_from`."""
    loss: str = "bce"
    """An entry of LOSSES in distgan/gan/losses.py, or one added by a module in `import`."""
    terms: dict[str, Any] = field(default_factory=dict)
    """Further terms of the objectives: entries of TERMS in distgan/gan/terms.py, each with a weight, a schedule, or
    {weight: weight or schedule, network: dinov2, path: FOLDER} where D's features are compared with those of a frozen
    network. FOLDER has its config.json and model.safetensors, or is hf://OWNER/NAME, which is downloaded; a resumed run
    may find it elsewhere."""
    g_minibatch: Literal["same", "next"] | None = None
    """Minibatch of G's update: `same`, the last that D saw, with the same fakes; `next`, new latents, and for a paired
    loss the real images that D sees next. null: `next` for a paired loss, else `same`."""
    n_critic: PositiveInt = 1
    """Updates of D per update of G, each on a minibatch of its own."""
    penalties: dict[str, Any] = field(default_factory=dict)
    """Gradient penalties of D: entries of PENALTIES in distgan/gan/penalties.py, each with a weight, a schedule, or
    {weight: weight or schedule, every: N}, which applies it once every N iterations with N times the weight. The weight
    of r1 and r2 is gamma. With {weight: ..., every: N, separate: true} it is applied in an update of its own, and the
    optimizer's lr and betas are corrected for the additional updates. r1_fd and r2_fd estimate r1 and r2 by finite
    differences, and take {weight: ..., sigma: 0.01, share: 1}: the standard deviation of the noise, and the share of
    the images that it is added to (1, 0.5, 0.25, ...)."""
    g_penalties: dict[str, Any] = field(default_factory=dict)
    """Penalties of G, whose network returns its w: entries of G_PENALTIES in distgan/gan/g_penalties.py, each with a
    weight, a schedule, or {weight: weight or schedule, every: N, separate: false, share: 1} as for D. `share` is that
    of the minibatch's latents that it generates images of (1, 0.5, 0.25, ...). StyleGAN2 has {path_length: {weight: 2,
    every: 4, separate: true, share: 0.5}}."""
    augment: list[Any] = field(default_factory=list)
    """Augmentations of the images that D sees, in order: entries of AUGMENTATIONS in distgan/gan/augment.py, or
    {name: factor}, which multiplies the probability of that one."""
    augment_p: NonNegativeFloat | Schedule = 1.0
    """Probability of each augmentation, in [0, 1]: a number, a schedule, or {target: 0.6, images: 500_000} (ADA).
    This starts at 0 and moves, by at most 1 in `images` images, so as to hold the mean of sign(D(x)) at `target`;
    the mean is taken over at least four iterations and 256 images."""
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
        for entries in ("penalty_entries", "g_penalty_entries", "term_entries", "augment_entries", "adaptive_p"):
            getattr(self, entries)  # parsed now, so that a mistake is found now
        if not self.augment and self.augment_p != 1:
            raise UsageError("augment_p: no augmentation is given in augment, e.g. [color, translation, cutout]")

    @cached_property
    def penalty_entries(self) -> dict[str, PenaltyEntry]:
        """The penalties of D by name, in order."""
        return {name: parse_penalty(f"penalties.{name}", value) for name, value in self.penalties.items()}

    @cached_property
    def g_penalty_entries(self) -> dict[str, PenaltyEntry]:
        """Those of G by name, in order."""
        return {
            name: parse_penalty(f"g_penalties.{name}", value, G_PENALTY_OPTIONS)
            for name, value in self.g_penalties.items()
        }

    @cached_property
    def term_entries(self) -> dict[str, TermEntry]:
        """The terms by name, in order."""
        return {name: parse_term(f"terms.{name}", value) for name, value in self.terms.items()}

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

        A dataset with fewer images has fewer: `Data.order.lanes` are those of the run.
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
        for term in keys["terms"].values():
            if isinstance(term, dict):
                term.pop("path", None)  # the hash of what is there counts, which checkpoints hold
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
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
