"""A run and its folder: enter it, save what a run needs to go on, and go on from that."""

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml

from distgan import UsageError
from distgan.config import Config, flatten, read, to_dict
from distgan.files import atomic_write
from distgan.training.build import Run
from distgan.training.checkpoint import Checkpoints, RunFolder, load, optimizer_restore, optimizer_snapshot, snapshot
from distgan.training.logger import environment


def save(run: Run, checkpoints: Checkpoints) -> None:
    """Hand a copy of the run's state to the writer; the main process calls it."""
    accelerator, gan = run.processes.accelerator, run.gan
    G = accelerator.unwrap_model(gan.G)
    files = {"generator": snapshot(G), "discriminator": snapshot(gan.critic)}
    if run.ema:
        files["ema"] = snapshot(run.ema.module)
    files["optimizers"] = optimizer_snapshot("generator", G, gan.g_optimizer) | optimizer_snapshot(
        "discriminator", gan.critic, gan.d_optimizer
    )
    shards = run.shards
    metadata = {
        "config": run.config.identity(),
        "size": shards.size,
        "channels": shards.channels,
        "classes": [row["name"] for row in shards.classes] if run.config.data.labels else [],
        "manifest": shards.digest,
        "images": run.images,
    }
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    state = {key: metadata[key] for key in ("images", "config", "manifest")}
    checkpoints.save(files, state | {"skipped": run.skipped, "rollbacks": run.rollbacks, "scaler": scaler}, metadata)


def restore(run: Run, path: Path) -> None:
    """Continue from a checkpoint; every process reads it. Raises UsageError where it holds other networks."""
    accelerator, gan = run.processes.accelerator, run.gan
    files, state = load(path)
    G = accelerator.unwrap_model(gan.G)
    try:
        G.load_state_dict(files["generator"])
        gan.critic.load_state_dict(files["discriminator"])
        if run.ema:
            run.ema.module.load_state_dict(files.get("ema", files["generator"]))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UsageError(f"run_dir: the networks in {path} are not those of these settings: {first}") from None
    optimizer_restore(files["optimizers"], "generator", G, gan.g_optimizer)
    optimizer_restore(files["optimizers"], "discriminator", gan.critic, gan.d_optimizer)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.images, run.skipped, run.rollbacks = state["images"], state["skipped"], state["rollbacks"]
    run.bad.clear()
    run.digest = 0


def enter(run: Run, fresh: bool, held: contextlib.ExitStack) -> Path | None:
    """Take the run folder and find what to continue from; the main process calls it. Raises UsageError.

    A used folder with other settings is refused before anything in it is touched. What was taken is in `held`.
    """
    config, root = run.config, Path(run.config.run_dir)
    if not fresh:
        refuse_changes(run, root)
    folder = held.enter_context(contextlib.closing(RunFolder(root)))
    if fresh and any(path.name != ".lock" for path in root.iterdir()):
        print(f"moved the run that was here to {folder.move_aside()}", flush=True)
        held.enter_context(contextlib.closing(RunFolder(root)))
    with contextlib.closing(Checkpoints(root / "checkpoints", config.checkpoint.keep)) as checkpoints:
        checkpoints.clear_up()
        return checkpoints.newest()


def sign(run: Run) -> None:
    """Write what the run is and what it runs on; once it is known to go on from what is in its folder."""
    root = Path(run.config.run_dir)
    atomic_write(root / "config.yaml", yaml.safe_dump(to_dict(run.config), sort_keys=False).encode())
    facts = environment(run.processes.device, run.processes.world)
    atomic_write(root / "environment.json", (json.dumps(facts, indent=1) + "\n").encode())


def refuse_changes(run: Run, root: Path) -> None:
    """Raises UsageError where the folder's run was started with other settings, or on other images."""
    found = None if run.config.resume.override else settings(root)
    if found is None:
        return
    default = flatten(Config().identity())  # of a key that this version has and that one had not
    then, now = default | flatten(found[0]), flatten(run.config.identity())
    keys = [key for key in sorted(set(flatten(found[0])) | set(now)) if then.get(key) != now.get(key)]
    changed = [f"{key} {then.get(key)} -> {now.get(key)}" for key in keys]
    if found[1] not in (None, run.shards.digest):
        changed.append(f"the images of data.shards (now {run.config.data.shards})")
    if changed:
        raise UsageError(
            f"run_dir: {root} holds a run with other settings: {'; '.join(changed)}. Give another run_dir, or --fresh "
            "to move that run aside, or --resume.override true to continue it with the new ones"
        )


def settings(root: Path) -> tuple[dict[str, Any], str | None] | None:
    """What the newest checkpoint was computed with: the deciding keys and the manifest's digest.

    Of a run without checkpoints, what it was started with; None in an unused folder.
    """
    checkpoints = Checkpoints(root / "checkpoints", 0)
    for images in reversed(checkpoints.all()):
        try:
            state = json.loads((checkpoints.folder / str(images) / "state.json").read_text())
            return state["config"], state["manifest"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged one is named when it comes to be read
    if not (root / "config.yaml").exists():
        return None
    return read(["--config", str(root / "config.yaml")], prog="distgan train", description="")[0].identity(), None
