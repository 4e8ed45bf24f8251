"""The checkpoints of a run as they appear on disk, for a process beside the run that reads each of them once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distgan.files import sha256_file
from distgan.runs.checkpoint import Checkpoints, read_state

WEIGHTS = ("ema.safetensors", "generator.safetensors")
"""What is read of a checkpoint: the first that it has."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that is to be read."""

    images: int
    file: Path
    """Its EMA, or G."""


@dataclass(frozen=True)
class Ended:
    """Nothing more is to come."""

    reason: str


@dataclass
class Watch:
    """What there is to read in a run folder, newest first; used on one process.

    A run without news for `idle_seconds` has ended too: it was stopped, and may go on in another job.
    """

    run: Path
    length: Callable[[], int | None]
    """Images at which the run ends; None while that is not known."""
    is_read: Callable[[int], bool]
    """Whether the checkpoint at so many images was read, now or by an earlier process."""
    idle_seconds: float
    say: Callable[[str], None]
    waiting: set[int] = field(default_factory=set)
    """Checkpoints that were seen and not read yet."""
    skipped: dict[int, int] = field(default_factory=dict)
    """Those that cannot be read, with the time when they were written."""
    news: object = None
    news_at: float = field(default_factory=time.monotonic)

    def look(self) -> Found | Ended | None:
        """The newest checkpoint that was not read; why there will be none; or None: there may be one later."""
        listed = Checkpoints(self.run / "checkpoints").all()
        self.forget_deleted(set(listed))
        for images in reversed(listed):
            if self.is_read(images) or self.is_skipped(images):
                self.waiting.discard(images)
                continue
            self.waiting.add(images)
            if (file := self.weights_of(images)) is not None:
                return Found(images, file)
        return self.ended(listed)

    def forget_deleted(self, listed: set[int]) -> None:
        """Say which checkpoints the run deleted before they were read."""
        for images in sorted(self.waiting - listed):
            if not self.is_read(images):
                self.say(
                    f"the checkpoint at {images:,} images was deleted before it was read: skipped (checkpoint.keep)"
                )
        self.waiting &= listed

    def is_skipped(self, images: int) -> bool:
        """Whether this checkpoint was skipped; not one that was written again since."""
        return images in self.skipped and self.skipped[images] == self.written(images)

    def skip(self, images: int) -> None:
        """Leave out a checkpoint until it is written again; one that is gone is reported by the next look."""
        self.skipped[images] = self.written(images)

    def written(self, images: int) -> int:
        """When a checkpoint was put in its place, in ns; 0 if it is gone."""
        try:
            return (self.run / "checkpoints" / str(images)).stat().st_ctime_ns
        except FileNotFoundError:
            return 0

    def weights_of(self, images: int) -> Path | None:
        """The file to read, complete by its sha256; None of a checkpoint that is corrupt, or is being deleted.

        The name is that of state.json: of a checkpoint that is being deleted the EMA may be gone, and G still there.
        """
        folder = self.run / "checkpoints" / str(images)
        try:
            files = read_state(folder).files
            file = folder / next(name for name in WEIGHTS if name in files)
            if sha256_file(file) == files[file.name]:
                return file
            fault = f"the sha256 of {file.name} does not match state.json"
        except FileNotFoundError as error:
            if self.is_going(folder):
                return None
            fault = f"{Path(error.filename).name} is missing"
        except StopIteration:
            fault = "it holds no generator"
        except (OSError, ValueError) as error:
            fault = str(error)
        self.say(f"checkpoint {folder} is corrupt ({fault}): skipped")
        self.skip(images)
        return None

    def is_going(self, folder: Path, seconds: float = 1.0) -> bool:
        """Whether a checkpoint from which files are missing is gone after a moment."""
        deadline = time.monotonic() + seconds
        while folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not folder.is_dir()

    def ended(self, listed: list[int]) -> Ended | None:
        length = self.length()
        newest = listed[-1] if listed else 0
        if length is not None and listed and newest >= length:
            return Ended(f"the run is at its end, {length:,} images")
        now = time.monotonic()
        if (news := (listed, self.log_size())) != self.news:
            self.news = news
            self.news_at = now
        if now - self.news_at < self.idle_seconds:
            return None
        where = f"at {newest:,} of {length:,} images" if length is not None else f"at {newest:,} images"
        return Ended(f"the run wrote nothing for {self.idle_seconds / 60:g} minutes, {where}")

    def log_size(self) -> int:
        """Bytes of metrics.jsonl."""
        try:
            return (self.run / "metrics.jsonl").stat().st_size
        except FileNotFoundError:
            return 0
