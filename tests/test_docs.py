"""The manuals: links and pictures, the length of the first page, and the paths, keys and commands that they name."""

import contextlib
import functools
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgan.config.keys import Config, flatten, to_dict
from distgan.config.read import read_config
from distgan.errors import UsageError
from distgan.evaluation.features import EXTRACTORS
from distgan.evaluation.scores import METRICS
from distgan.gan.augment import AUGMENTATIONS
from distgan.gan.g_penalties import G_PENALTIES
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES
from distgan.models import MODELS
from distgan.training.checks import check_config, check_loss, check_penalties
from helpers import ROOT, make_dataset, noise, train

FOLDERS = ("distgan", "launch", "configs", "tests")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("README.md"))]
MOST_WORDS = 1000
KEYS = set(flatten(to_dict(Config())))
TRAIN_OPTIONS = {"config", "fresh", "dry_run", "profile", "print_config", "help"}
"""Those of `distgan train` that are no keys."""
MISTYPED = {"bach"}
"""In a measurement of what a refusal costs."""
SUFFIXES = {"py", "json", "jsonl", "html", "png", "txt", "safetensors"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str | None = None) -> list[str]:
    """The code blocks of a page; of one language, or all."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if language in (None, name)]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page, without those on the web."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith("https://")]


def anchors(page: Path) -> set[str]:
    """The #anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_and_pictures_exist(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_first_page_links_to_every_other():
    first = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(first)}
    assert linked >= set(PAGES) - {first}


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


def test_the_first_page_begins_with_the_two_commands_of_make():
    lines = blocks(ROOT / "README.md")[0].splitlines()
    assert [line.split("#")[0].strip() for line in lines] == ["make demo", "make test"]


@every_page
def test_paths_exist(page):
    """Those of files in the repository, also in commands."""
    paths = re.findall(
        r"(?<![\w./-])((?:distgan|tests|configs|launch)/[\w./-]*\.(?:py|sbatch|sh|yaml|md|png))\b", page.read_text()
    )
    for path in paths:
        assert (ROOT / path).exists(), path


@every_page
def test_yaml_is_a_configuration(page, tmp_path):
    for number, text in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        check_config(read_config(["--config", str(file)], prog="distgan train", description="")[0])


def is_key(name: str) -> bool:
    """Whether `name` is a key of the configuration, a section, or inside of a key that is a mapping."""
    parts = name.split(".")
    prefixes = {".".join(parts[: n + 1]) for n in range(len(parts))}
    return bool(prefixes & KEYS) or any(key.startswith(f"{name}.") for key in KEYS)


@every_page
def test_dotted_options_are_keys(page):
    for name in re.findall(r"--(\w+\.[\w.]+\w)", page.read_text()):
        assert is_key(name), name


@every_page
def test_keys_in_the_text_are_keys(page):
    """`data.lanes`: what begins with the name of a section, and is no file."""
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    for section, name in re.findall(r"`(\w+)\.(\w+)[ `]", prose(page)):
        if section in sections and name not in SUFFIXES:
            assert is_key(f"{section}.{name}"), f"{section}.{name}"


COMMAND = re.compile(r"\bdistgan[ /](train|evaluate|sample|ema|project|convert|shards|report|plot)(?:\.py)?\b(.*)")


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of distgan in the code of a page: (train, [config, ...]), (shards make, [size, ...]), ..."""
    code = [*blocks(page), *re.findall(r"`([^`\n]+)`", prose(page))]
    for line in re.sub(r"\\\n", " ", "\n".join(code)).splitlines():
        found = COMMAND.search(line.split("  #")[0])
        if found:
            name = f"shards {found[2].split()[0]}" if found[1] == "shards" and found[2].strip() else found[1]
            yield name, re.findall(r" --([\w.]+)", found[2])


@functools.cache
def options(command: str) -> set[str]:
    """The options that the help of a command lists."""
    name, *subcommand = command.split()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(f"distgan.{name}").main([*subcommand, "--help"])
    return {"help", *re.findall(r"--([\w.]+)", out.getvalue())}


@every_page
def test_options_exist(page):
    for command, names in commands(page):
        for name in set(names) - MISTYPED:
            exists = is_key(name) or name in TRAIN_OPTIONS if command == "train" else name in options(command)
            assert exists, f"{command} --{name}"


def test_options_are_found():
    """What the test above reads: the pages have commands of every kind, with options."""
    found = {command for page in PAGES for command, names in commands(page) if names}
    assert {"train", "evaluate", "sample", "convert", "shards make", "report", "plot"} <= found


@pytest.mark.parametrize(
    ("page", "column", "entries"),
    [
        ("gan", "loss", LOSSES),
        ("gan", "penalties", PENALTIES),
        ("gan", "g_penalties", G_PENALTIES),
        ("gan", "augment", AUGMENTATIONS),
        ("models", "model.name", MODELS),
        ("evaluation", "--metrics", METRICS),
        ("evaluation", "--extractor", EXTRACTORS),
    ],
)
def test_tables_have_every_entry(page, column, entries):
    text = (ROOT / "distgan" / page / "README.md").read_text()
    table = re.search(rf"^\| `{re.escape(column)}` \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    names = [name for row in table[1].splitlines() for name in re.findall(r"`(\w[\w-]*)`", row.split("|")[1])]
    assert sorted(names) == sorted(entries)


REFUSED = [
    ["--penalties.r1", "1"],
    ["--penalties.r1", "1", "--model.options.d_norm", "none", "--precision", "fp16"],
    ["--penalties.r1_fd", "1", "--precision", "bf16"],
    ["--penalties", "{r1: {weight: 1, sigma: 0.1}}"],
    ["--penalties", "{r1: {weight: 1, every: 4, separate: true}, r2: {weight: 1, every: 8, separate: true}}"],
    ["--g_penalties.path_length", "2"],
    ["--penalties", "{r1_fd: {weight: 1, share: 0.0625}}", "--batch", "16", "--data.lanes", "8"],
    ["--loss", "wgan"],
    ["--loss", "rpgan", "--augment", "[color]", "--augment_p", "{target: 0.6, images: 1000}"],
    ["--augment_p", "0.5"],
    ["--model.options.norm", "spectral"],
    ["--terms", "{align: 1}"],
    ["--terms", "{consistency: 0.1}"],
    ["--g_optimizer.base_width", "768"],
    ["--model.name", "sngan"],
]
"""What gives the messages in the manual's table of invalid combinations, row by row; of images of 16x16 pixels."""


def test_invalid_combinations_have_the_messages_of_the_manual(tmp_path, capsys):
    text = (ROOT / "distgan" / "gan" / "README.md").read_text().split("## Invalid combinations")[1].split("\n## ")[0]
    messages = re.findall(r"^\| .* \| `([^`]+)` \|$", text, re.MULTILINE)
    data = make_dataset(tmp_path / "data", noise(64, 16), shards=1)
    for message, words in zip(messages, REFUSED, strict=True):
        try:
            check_config(read_config(words, prog="distgan train", description="")[0])
            assert train("--data.shards", data, "--run_dir", tmp_path / "run", *words) == 2
            found = capsys.readouterr().err.removeprefix("distgan: ").strip()
        except UsageError as error:
            found = str(error)
        assert found.startswith(message.removesuffix("...").strip()), found


def test_the_loss_and_the_penalty_of_the_manual():
    """They register as the manual says, and pass the checks at start-up."""
    (code,) = blocks(ROOT / "distgan" / "gan" / "README.md", "python")
    losses, penalties = set(LOSSES), set(PENALTIES)
    try:
        exec(code, {})
        assert set(LOSSES) - losses == {"squared_hinge"} and set(PENALTIES) - penalties == {"r3"}
        check_loss("squared_hinge")
        check_penalties(["r3"])
    finally:
        LOSSES.pop("squared_hinge", None)
        PENALTIES.pop("r3", None)
