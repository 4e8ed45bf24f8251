"""Files of pretrained networks: config.json and safetensors, in a folder or on the Hugging Face hub."""

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from distgan.errors import UsageError
from distgan.hub import HUB, download, is_address, parse_address

CONFIG = "config.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A kind of network, and the package that reads its files."""

    name: str
    """What messages call the network."""
    package: str
    network: str
    """The class of the package."""
    weights: str
    """The file of the weights."""
    extra: str
    """What pip installs the package with: distgan[EXTRA]."""

    @property
    def fix(self) -> str:
        """What to do about a folder without the files."""
        return f"give a folder that {self.package}' save_pretrained wrote"


def find_folder(source: Source, path: str | Path, key: str) -> Path:
    """The folder of the files: `path`, or where hf://OWNER/NAME[@REVISION] is kept in the hub's cache.

    What is there is not downloaded again. Raises UsageError, which names `key`.
    """
    if not is_address(path):
        return Path(path)
    try:
        address = parse_address(path, f"a {source.name}")
        return download(address, [CONFIG, source.weights], extra=source.extra)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None


def decode_config(source: Source, folder: Path, config: type[T], key: str) -> T:
    """config.json as a typed struct. Raises UsageError, which names `key`."""
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=config)
    except OSError as error:
        fix = f"{source.fix}, or {HUB}OWNER/NAME"
        raise UsageError(f"{key}: {folder / CONFIG}: {error.strerror}; {fix}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{key}: {folder / CONFIG} is not one of {source.network} ({error})") from None


def check_weights(source: Source, folder: Path, key: str) -> None:
    """Raises UsageError, which names `key`, unless the folder has weights as safetensors."""
    if (folder / source.weights).exists():
        return
    fix = source.fix
    if any(folder.glob("*.bin")):
        fix = "its .bin is a pickle, which can run code when it is read; convert it to safetensors"
    raise UsageError(f"{key}: {folder} has no {source.weights}; {fix}")


def load_network(source: Source, folder: Path, key: str, **options: Any) -> Any:
    """The network in a folder, on the CPU, as its package reads it. Raises UsageError, which names `key`.

    `options` are more arguments of the package's from_pretrained.
    """
    with warnings.catch_warnings():  # packages warn of others that they do not need here
        warnings.simplefilter("ignore")
        package = import_package(source, key)
        options = {"local_files_only": True, "use_safetensors": True, **options}
        try:
            # by this door and not by load_state_dict: it renames weights in files of older versions
            kind = getattr(package, source.network)
            network, info = kind.from_pretrained(folder, output_loading_info=True, **options)
        except Exception as error:  # it documents none
            reason = " ".join(str(error).split())
            raise UsageError(f"{key}: {folder / source.weights} cannot be read ({reason}); copy it once more") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        name = source.name
        raise UsageError(
            f"{key}: {folder / source.weights} does not match {CONFIG} ({wrong[0]}); use both of one {name}"
        )
    # else they stay mapped to the file: who overwrites it would change them, or end the process
    network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)
    return network


def import_package(source: Source, key: str) -> Any:
    """The package, which says nothing but errors; it takes seconds. Raises UsageError, which names `key`."""
    try:
        package: Any = importlib.import_module(source.package)
    except ImportError as error:
        missing = f"{key} needs {error.name or source.package}, which is not installed"
        raise UsageError(f"{missing}; pip install 'distgan[{source.extra}]'") from None
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    return package
