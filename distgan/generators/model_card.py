"""The model card of a published generator: README.md with the header that the Hugging Face hub reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distgan.evaluation.card import better

SHOWN_CLASSES = 20
DEFINED_BY_INCEPTION = ("fid", "kid", "is")
"""The values that only the Inception network defines."""


@dataclass(frozen=True)
class Training:
    """How a run was trained."""

    processes: int
    device: str
    commit: str | None
    version: str | None
    torch: str
    rate: float | None
    """Images per second, the median."""


@dataclass(frozen=True)
class Facts:
    """What the card is written from."""

    repository: str
    title: str
    licence: str | None
    """Identifier of the hub, such as apache-2.0."""
    model: Mapping[str, Any]
    """The configuration of the networks."""
    spec: str
    parameters: int
    trained_with: str
    classes: Sequence[str]
    latents: Mapping[str, Any] | None
    """Of a G of latents, the autoencoder."""
    dataset: str | None
    manifest: str | None
    """The sha256 of the dataset's manifest."""
    ema: bool
    images: int | None
    """Seen in training."""
    provenance: str
    """Of weights of another project, or of those that the run began with."""
    differences: Mapping[str, Any]
    """The keys of the configuration that are not at their defaults."""
    training: Training | None
    cards: Sequence[Mapping[str, Any]]


def model_card(facts: Facts) -> str:
    """The file, in Markdown."""
    return "\n".join([*header(facts), *body(facts)]) + "\n"


def header(facts: Facts) -> Iterator[str]:
    """What the hub reads, in YAML."""
    tags = ["gan", "image-generation", "distgan", facts.model["name"]]
    keys: dict[str, Any] = {"library_name": "distgan", "pipeline_tag": "unconditional-image-generation", "tags": tags}
    if facts.licence is not None:
        keys = {"license": facts.licence} | keys
    yield "---"
    yield yaml.safe_dump(keys, sort_keys=False).rstrip()
    yield "---"


def body(facts: Facts) -> Iterator[str]:
    """The sections, from what it is to what it is not."""
    yield f"# {facts.title}\n"
    weights = "The EMA of a generator" if facts.ema else "A generator"
    yield f"{weights} of {facts.spec} images, trained with distgan, a GAN trainer for PyTorch.\n"
    yield "![64 generated images, seed 0](samples.png)\n"
    yield from usage(facts)
    yield from data(facts)
    yield from recipe(facts)
    yield from metrics(facts)
    yield from limits(facts)


def usage(facts: Facts) -> Iterator[str]:
    yield "## Use\n"
    vae = ', vae="path/to/the/autoencoder"' if facts.latents else ""
    yield "```python\nimport distgan\n"
    yield f'G = distgan.load("hf://{facts.repository}"{vae})'
    yield "images = G.sample(16, seed=0)  # [16, C, H, W] in [-1, 1]; the same for the same seed\n```\n"
    yield f"`distgan sample hf://{facts.repository} --count 64 --out grid.png` writes a grid.\n"


def data(facts: Facts) -> Iterator[str]:
    yield "## Data\n"
    name = f"`{facts.dataset}`" if facts.dataset else "not recorded"
    yield f"- dataset: {name}" + (f", sha256 of its manifest {facts.manifest[:12]}" if facts.manifest else "")
    yield f"- labels: {facts.trained_with}"
    if facts.classes:
        more = [f"... ({len(facts.classes):,} in all)"] if len(facts.classes) > SHOWN_CLASSES else []
        yield f"- classes: {', '.join([*facts.classes[:SHOWN_CLASSES], *more])}"
    if facts.latents:
        yield f"- G makes latents, which the autoencoder with the sha256 {facts.latents['vae'][:12]} decodes"
    yield ""


def recipe(facts: Facts) -> Iterator[str]:
    yield "## Training\n"
    seen = f"{facts.images:,} images seen" if facts.images is not None else "images seen: not recorded"
    yield f"- {facts.model['name']}, {facts.parameters:,} parameters of G; {seen}"
    run = facts.training
    if run is not None:
        rate = f", {run.rate:,.0f} images/s (median)" if run.rate else ""
        time = f", {format_time(facts.images / run.rate)}" if run.rate and facts.images else ""
        processes = "1 process" if run.processes == 1 else f"{run.processes} processes"
        yield f"- {processes}, {run.device}{rate}{time}"
        yield f"- distgan {run.version}, commit {run.commit or 'unknown'}, torch {run.torch}"
    yield "\nThe configuration (`config.yaml`) where it differs from the defaults:\n"
    yield "```yaml"
    yield yaml.safe_dump(dict(facts.differences), sort_keys=False, default_flow_style=False).rstrip()
    yield "```\n"


def format_time(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds < 7200 else f"about {seconds / 3600:.1f} hours"


def metrics(facts: Facts) -> Iterator[str]:
    yield "## Metrics\n"
    if not facts.cards:
        yield "This checkpoint was not evaluated.\n"
    for card in facts.cards:
        extractor = card["extractor"]
        counts = card["counts"]
        yield "| metric | value | real against real | better |\n|---|---|---|---|"
        for name, value in card["metrics"].items():
            floor = card["floor"].get(name)
            shown = "" if floor is None else f"{floor:.5g}"
            yield f"| {name} | {value:.5g} | {shown} | {better(name) or ''} |"
        accuracy = f", accuracy {extractor['accuracy']:.2%}" if extractor.get("accuracy") is not None else ""
        yield (
            f"\n{evaluated(card)}. Extractor {extractor['name']}, sha256 {extractor['sha256']}{accuracy}, resize "
            f"{extractor['resize']}; {counts['generated']:,} generated and {counts['reference']:,} real images"
            f"{halves(counts)}; dataset {card['data']['manifest'][:12]}{sampling(card)}.\n"
        )


def evaluated(card: Mapping[str, Any]) -> str:
    """Which weights, with which latents, by which code."""
    weights = "EMA of G" if (card.get("generator") or {}).get("ema") else "G"
    code = card.get("code") or {}
    return f"{weights}, seed {card.get('seed')}, distgan {code.get('version')} {(code.get('commit') or 'unknown')[:12]}"


def halves(counts: Mapping[str, Any]) -> str:
    """The images of each side of real against real, which are fewer than those of the value."""
    return f" (real against real: {counts['floor']:,} against as many)" if counts.get("floor") else ""


def sampling(card: Mapping[str, Any]) -> str:
    """How the generated images were drawn, if not as they are by default."""
    generator = card.get("generator") or {}
    psi = generator.get("truncation_psi", 1.0)
    return (f"; truncation psi {psi:g}" if psi != 1 else "") + (
        "; classes balanced" if generator.get("labels") == "balanced" else ""
    )


def limits(facts: Facts) -> Iterator[str]:
    yield "## Limits\n"
    names = sorted({name for card in facts.cards for name in card["metrics"] if name.startswith(("fd_", "kd_", "is_"))})
    names = [name for name in names if name not in ("is_std",) and not name.endswith("_std")]
    if names:
        yield (
            f"- {', '.join(names)}: of the features of the extractor above. They are not FID, KID or IS, and must not "
            "be called so or be compared with published ones."
        )
    yield "- Two numbers are comparable if extractor, resize, dataset and counts are the same."
    yield "- Generated images can resemble training images; `distgan nearest` finds the nearest ones."
    yield "- The images follow the training data, with what is frequent, rare and missing there."
    if facts.provenance:
        yield f"- Not trained from scratch: {facts.provenance}. The licence of these weights applies."
