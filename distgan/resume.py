"""A run and its folder: enter it, save what a run needs to go on, and go on from that."""

import contextlib
import json
from pathlib import Path

import yaml

from distgan import BadInput
from distgan.checkpoint import Checkpoints, RunFolder, load, optimizer_restore, optimizer_snapshot, snapshot
from distgan.config import flatten, read, to_dict
from distgan.data.shardset import write_whole
from distgan.report import environment
from distgan.run import Run


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
    """Continue from a checkpoint; every process reads it."""
    accelerator, gan = run.processes.accelerator, run.gan
    files, state = load(path)
    G = accelerator.unwrap_model(gan.G)
    G.load_state_dict(files["generator"])
    gan.critic.load_state_dict(files["discriminator"])
    if run.ema:
        run.ema.module.load_state_dict(files.get("ema", files["generator"]))
    optimizer_restore(files["optimizers"], "generator", G, gan.g_optimizer)
    optimizer_restore(files["optimizers"], "discriminator", gan.critic, gan.d_optimizer)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.images, run.skipped, run.rollbacks = state["images"], state["skipped"], state["rollbacks"]
    run.bad.clear()
    run.digest = 0


def enter(run: Run, fresh: bool, held: contextlib.ExitStack) -> Path | None:
    """Take the run folder and find what to continue from; the main process calls it. Raises BadInput.

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
        newest = checkpoints.newest(lambda text: print(text, flush=True))
    try:
        (root / "stop").unlink(missing_ok=True)  # what stopped the run before
        write_whole(root / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())
        facts = environment(run.processes.device, run.processes.world)
        write_whole(root / "environment.json", (json.dumps(facts, indent=1) + "\n").encode())
    except OSError as error:
        raise BadInput(f"run_dir: {root} cannot be written: {error.strerror}") from None
    return newest


def refuse_changes(run: Run, root: Path) -> None:
    """Raises BadInput where the folder's run was started with other settings, or on other images."""
    if run.config.resume.override or not (root / "config.yaml").exists():
        return
    before, _ = read(["--config", str(root / "config.yaml")], prog="distgan train", description="")
    then, now = flatten(before.identity()), flatten(run.config.identity())
    keys = [key for key in sorted(then | now) if then.get(key) != now.get(key)]
    changed = [f"{key} {then.get(key)} -> {now.get(key)}" for key in keys]
    states = sorted((root / "checkpoints").glob("[0-9]*/state.json"), key=lambda path: int(path.parent.name))
    if states:
        try:
            if json.loads(states[-1].read_text())["manifest"] != run.shards.digest:
                changed.append(f"the images of data.shards (now {run.config.data.shards})")
        except (OSError, ValueError, KeyError):
            pass  # a damaged checkpoint is named when it comes to be read
    if changed:
        raise BadInput(
            f"run_dir: {root} holds a run with other settings: {'; '.join(changed)}. Give another run_dir, or --fresh "
            "to move that run aside, or --resume.override true to continue it with the new ones"
        )
