"""Slurm tests: stop, requeue, cancel, preemption and node failure on a two-node cluster on loopback."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from distgan.commands import shards
from distgan.files import sha256_file
from helpers import ROOT, TINY, launch, make_dataset, noise, weights

pytestmark = pytest.mark.slurm
IMAGES = 16 * 3_000  # about twenty seconds on two cores
RARE_OUTPUT = ["--checkpoint.every_epochs", 100, "--samples.every_epochs", 10_000, "--report.every_images", 800]
SLURM_UP = ROOT / "tests" / "slurm" / "slurm_up.sh"


@pytest.fixture(scope="module")
def slurm_env():
    """The environment variables for commands on a running cluster."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("starting Slurm requires root and apt-get")
    folder = Path(tempfile.mkdtemp(prefix="distgan-slurm-"))
    folder.chmod(0o755)  # munged refuses a socket in a directory that others cannot enter, such as tmp_path
    env = os.environ | {
        "SLURM_LAB": str(folder / "lab"),
        "SLURM_LAB_KILLWAIT": "20",
        "SLURM_LAB_CPUS": "16",  # the scripts request 8 per GPU
        "SLURM_CONF": str(folder / "lab" / "slurm.conf"),
        "PYTHON": sys.executable,
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        subprocess.run([SLURM_UP, "up"], env=env, check=True)
        yield env
    finally:
        subprocess.run([SLURM_UP, "down"], env=env, check=True)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def submit_dir(tmp_path_factory):
    """The directory to submit from, with a dataset and `reference`, an uninterrupted run on two processes."""
    folder = copy_launch(tmp_path_factory.mktemp("submit"))
    make_dataset(folder / "dataset", noise(80))
    args = ["--data.shards", folder / "dataset", *TINY, "--images", IMAGES, *RARE_OUTPUT]
    launch(2, *args, "--run_dir", folder / "reference")
    return folder


def copy_launch(folder: Path) -> Path:
    """Make `folder` one to submit from."""
    (folder / "distgan").symlink_to(ROOT / "distgan")
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("*.out", "control"))
    return folder


class Job:
    """A submitted job; `args` are added to the command line of the run, `env` to its environment."""

    def __init__(
        self,
        slurm_env: dict[str, str],
        submit_dir: Path,
        name: str,
        *sbatch_options: str,
        args: tuple[object, ...] = (),
        **env: str,
    ):
        self.env, self.submit_dir, self.run_dir = slurm_env | env, submit_dir, submit_dir / name
        options = ["--nodes=2", "--gpus-per-node=1", "--time=10", f"--job-name={name}"]
        script = ["launch/train.sbatch", "distgan/train.py", "--data.shards", submit_dir / "dataset", *TINY]
        script += ["--images", IMAGES, *RARE_OUTPUT, "--run_dir", self.run_dir, *args]
        command = ["sbatch", "--parsable", *options, *sbatch_options, *map(str, script)]
        done = subprocess.run(command, cwd=submit_dir, env=self.env, capture_output=True, text=True, check=True)
        self.id = done.stdout.strip()

    def command(self, *command: str) -> str:
        """Run a Slurm command; returns its stdout."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def show(self) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "show", "job", self.id)))

    def wait(self, *states: str, seconds: float = 240) -> dict[str, str]:
        """Wait until the job is in one of `states`; returns show()."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            fields = self.show()
            if fields.get("JobState") in states:
                return fields
            time.sleep(0.3)
        raise AssertionError(f"job {self.id} is {self.show()}\n{self.log()}")

    def log(self) -> str:
        files = sorted((self.submit_dir / "launch/logs").glob(f"*-{self.id}.out"))
        return "\n".join(file.read_text() for file in files)

    def wait_for_training(self) -> None:
        """Wait until the first status line of the run is in the log."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            starts = self.log().split("train.sbatch: job")
            if len(starts) > 1 and "img/s" in starts[1]:
                return
            assert self.show().get("JobState") not in ("FAILED", "TIMEOUT"), self.log()
            time.sleep(0.2)
        raise AssertionError(self.log())

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((self.run_dir / "checkpoints").glob("[0-9]*")):
            time.sleep(0.1)

    def rank_pids(self) -> list[int]:
        """The pids of the run's processes on both nodes, by rank."""
        pids = {}
        for pid, argv, env in processes():
            is_rank = b"distgan/train.py" in argv and b"accelerate.commands.launch" not in argv and b"RANK" in env
            if is_rank and env.get(b"SLURM_JOB_ID") == self.id.encode():
                pids[int(env[b"RANK"])] = pid
        return [pids[rank] for rank in sorted(pids)]


def processes() -> list[tuple[int, list[bytes], dict[bytes, bytes]]]:
    """The pid, argv and environment of every process on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            argv = (path / "cmdline").read_bytes().split(b"\0")
            env = dict(item.split(b"=", 1) for item in (path / "environ").read_bytes().split(b"\0") if b"=" in item)
        except OSError:
            continue  # it has exited
        found.append((int(path.name), argv, env))
    return found


def equals_reference(job: Job) -> bool:
    return weights(job.run_dir) == weights(job.submit_dir / "reference")


def tasks(slurm_env: dict[str, str], submit_dir: Path, launcher: str, options: str) -> list[str]:
    """Runs train.sbatch, or sweep.sbatch, on a script that prints what each task has; returns its lines, sorted."""
    (submit_dir / "show.sh").write_text('echo "cpus $SLURM_CPUS_PER_TASK gpus ${CUDA_VISIBLE_DEVICES:-none} $WORD"\n')
    env = slurm_env | {"PYTHON": "env WORD=here bash show.sh", "LAUNCHER": launcher}
    env = {name: value for name, value in env.items() if name != "GPUS"}
    command = f"sbatch --wait --time=5 --output=show.out --open-mode=truncate {options}"
    done = subprocess.run(["bash", "-c", command], cwd=submit_dir, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(line for line in (submit_dir / "show.out").read_text().splitlines() if line.startswith("cpus"))


@pytest.mark.parametrize("script", ["train", "sweep"])
def test_cpus_follow_gpus(slurm_env, submit_dir, script):
    batch = f"launch/{script}.sbatch" if script == "train" else f"--array=0 launch/{script}.sbatch"
    assert tasks(slurm_env, submit_dir, "accelerate", batch) == ["cpus 8 gpus 0 here"]
    two_nodes = f"--nodes=2 --gpus-per-node=2 {batch}"
    assert tasks(slurm_env, submit_dir, "accelerate", two_nodes) == ["cpus 16 gpus 0,1 here"] * 2
    assert tasks(slurm_env, submit_dir, "srun", two_nodes) == ["cpus 8 gpus 0,1 here"] * 4
    own = f"--gpus-per-node=2 --cpus-per-gpu=3 {batch}"
    assert tasks(slurm_env, submit_dir, "accelerate", own) == ["cpus 6 gpus 0,1 here"]
    assert tasks(slurm_env, submit_dir, "srun", own) == ["cpus 3 gpus 0,1 here"] * 2


def test_cpus_per_task(slurm_env, submit_dir):
    """It excludes --cpus-per-gpu, which is in the script; the command of launch/README.md leaves that line out."""
    options = ["--cpus-per-task=5", "launch/train.sbatch"]
    refused = subprocess.run(["sbatch", *options], cwd=submit_dir, env=slurm_env, capture_output=True, text=True)
    assert refused.returncode == 1 and "--cpus-per-gpu is mutually exclusive with --cpus-per-task" in refused.stderr
    batch = "<(sed /cpus-per-gpu/d launch/train.sbatch)"
    own = f"--gpus-per-node=2 --cpus-per-task=5 {batch}"
    assert tasks(slurm_env, submit_dir, "accelerate", own) == ["cpus 5 gpus 0,1 here"]
    assert tasks(slurm_env, submit_dir, "srun", own) == ["cpus 2 gpus 0,1 here"] * 2
    no_gpu = f"--gpus-per-node=0 --cpus-per-task=5 {batch}"
    assert tasks(slurm_env, submit_dir, "accelerate", no_gpu) == ["cpus 5 gpus none here"]


@pytest.mark.parametrize("options", ["--exclusive", "--gres=gpu:2"])
def test_tasks_have_all_gpus_of_the_node(slurm_env, submit_dir, options):
    """They are more than the script requests, and there is a process for each."""
    lines = tasks(slurm_env, submit_dir, "srun", f"{options} launch/train.sbatch")
    assert lines == ["cpus 8 gpus 0,1 here"] * 2


@pytest.mark.parametrize("launcher", ["accelerate", "srun"])
def test_stop_and_requeue(slurm_env, submit_dir, launcher):
    job = Job(slurm_env, submit_dir, f"stop-{launcher}", LAUNCHER=launcher)
    job.wait_for_training()
    job.command("scancel", "--batch", "--signal=USR1", job.id)
    fields = job.wait("COMPLETED")
    log = job.log()
    assert fields["Restarts"] == "1" and "SIGUSR1: requesting a stop" in log and "2 process(es)" in log
    assert re.search(r"stopped at \d+ images, checkpoint saved: requeueing", log) and "resuming from" in log
    assert equals_reference(job)


def test_cancel_saves_a_checkpoint_without_requeue(slurm_env, submit_dir):
    job = Job(slurm_env, submit_dir, "cancel")
    job.wait_for_training()
    job.command("scancel", job.id)
    fields = job.wait("CANCELLED")
    time.sleep(8)  # a requeued job would start again after five seconds
    assert fields["Restarts"] == "0" and job.show()["JobState"] == "CANCELLED"
    images_seen = weights(job.run_dir)["images"]
    assert 0 < int(images_seen) < IMAGES
    second = Job(slurm_env, submit_dir, "cancel")
    second.wait("COMPLETED")
    assert f"resuming from {job.run_dir}/checkpoints/{images_seen}" in second.log() and equals_reference(second)


def test_preemption(slurm_env, submit_dir):
    job = Job(slurm_env, submit_dir, "preempted", "--partition=low")
    job.wait_for_training()
    options = ["--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 2"]
    subprocess.run(["sbatch", *options], env=slurm_env, cwd=submit_dir, check=True, capture_output=True)
    fields = job.wait("COMPLETED")
    assert fields["Restarts"] == "1" and "resuming from" in job.log() and equals_reference(job)


def test_array_task_is_requeued_alone(slurm_env, submit_dir):
    """The last task has the id of the array; requeueing that id would restart all tasks."""
    options = ["--array=0-1", "--nodes=1", "--gpus-per-node=1", "--time=10", "--parsable"]
    script = ["launch/sweep.sbatch", "distgan/train.py", "--data.shards", str(submit_dir / "dataset"), *TINY]
    env = slurm_env | {"RUNS": str(submit_dir / "sweep")}
    command = ["sbatch", *options, *script, "--images", str(IMAGES), *map(str, RARE_OUTPUT)]
    done = subprocess.run(command, cwd=submit_dir, env=env, capture_output=True, text=True, check=True)
    array = done.stdout.strip()
    logs = [submit_dir / "launch/logs" / f"distgan-sweep-{array}_{task}.out" for task in range(2)]
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not all(log.exists() and "img/s" in log.read_text() for log in logs):
        time.sleep(0.2)
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{array}_1"], env=env, check=True)
    shown = ""
    while time.monotonic() < deadline + 120:
        shown = subprocess.run(["scontrol", "show", "job", array], env=env, capture_output=True, text=True).stdout
        if re.findall(r"JobState=(\w+)", shown).count("COMPLETED") == 2:
            break
        time.sleep(0.5)
    restarts = dict(zip(re.findall(r"ArrayTaskId=(\d)", shown), re.findall(r"Restarts=(\d)", shown), strict=True))
    assert restarts == {"0": "0", "1": "1"}, shown + "".join(log.read_text() for log in logs)
    runs = {task: submit_dir / "sweep" / task for task in "01"}
    seeds = {task: (run / "config.yaml").read_text().split("seed: ")[1][0] for task, run in runs.items()}
    assert seeds == {"0": "0", "1": "1"} and weights(runs["0"]) != weights(runs["1"])


@pytest.mark.parametrize("launcher", ["accelerate", "srun"])
@pytest.mark.parametrize("death", ["killed", "exits-7"])
def test_dead_process_fails_the_job_without_requeue(slurm_env, submit_dir, tmp_path, launcher, death):
    (tmp_path / "sitecustomize.py").write_text(  # imported by Python at start-up: makes a process exit with 7
        "import os, signal\nsignal.signal(signal.SIGUSR2, lambda *_: os._exit(7))\n"
    )
    job = Job(slurm_env, submit_dir, f"{death}-{launcher}", LAUNCHER=launcher, PYTHONPATH=str(tmp_path))
    job.wait_for_training()
    os.kill(job.rank_pids()[-1], signal.SIGKILL if death == "killed" else signal.SIGUSR2)
    fields = job.wait("FAILED", seconds=90)
    log = job.log()
    assert fields["Restarts"] == "0" and "requeue" not in log.split("train.sbatch: job")[-1]
    if launcher == "accelerate":  # it exits with 1 and prints the exit code of the process
        assert re.search(r"exitcode +: " + ("-9" if death == "killed" else "7"), log), log
    else:
        assert fields["ExitCode"] == ("137:0" if death == "killed" else "7:0"), log


def test_retry_only_after_a_new_checkpoint(slurm_env, submit_dir):
    job = Job(slurm_env, submit_dir, "retry", args=("--checkpoint.every_epochs", 20), DISTGAN_RETRY="1")
    job.wait_for_training()
    job.wait_for_checkpoint()
    os.kill(job.rank_pids()[-1], signal.SIGKILL)
    fields = job.wait("COMPLETED")
    assert fields["Restarts"] == "1" and "this start saved a checkpoint" in job.log() and equals_reference(job)
    no_progress = Job(
        slurm_env, submit_dir, "retry-none", args=("--checkpoint.every_epochs", 100_000), DISTGAN_RETRY="1"
    )
    no_progress.wait_for_training()
    os.kill(no_progress.rank_pids()[-1], signal.SIGKILL)
    assert no_progress.wait("FAILED", seconds=90)["Restarts"] == "0"


def test_chain_where_requeue_is_disabled(slurm_env, submit_dir):
    """Each task starts after the previous one and resumes the run; once it is done, the remaining tasks exit."""
    options = ["--array=1-3%1", "--no-requeue", "--output=launch/logs/chain-%a.out"]
    job = Job(slurm_env, submit_dir, "chain", *options, args=("--fresh",))  # applies to the first task only
    logs = [submit_dir / "launch/logs" / f"chain-{task}.out" for task in (1, 2, 3)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (logs[0].exists() and "img/s" in logs[0].read_text()):
        time.sleep(0.2)
    job.command("scancel", "--batch", "--signal=USR1", f"{job.id}_1")
    shown = ""
    while time.monotonic() < deadline + 120:
        shown = job.command("scontrol", "show", "job", job.id)
        if re.findall(r"JobState=(\w+)", shown) == ["COMPLETED"] * 3:
            break
        time.sleep(0.5)
    first, second, third = (log.read_text() if log.exists() else "" for log in logs)
    assert "submit a chain" in first and "resuming from" in second and "done: " in second, shown + first + second
    assert f"resuming from {job.run_dir}/checkpoints/{IMAGES}" in third and equals_reference(job)
    assert set(re.findall(r"Restarts=(\d)", shown)) == {"0"}


def test_stop_file_in_the_run_folder_ends_the_job(slurm_env, submit_dir):
    job = Job(slurm_env, submit_dir, "stop-file")
    job.wait_for_training()
    (job.run_dir / "stop").touch()
    fields = job.wait("COMPLETED")
    assert fields["Restarts"] == "0" and int(weights(job.run_dir)["images"]) < IMAGES


def test_time_limit(slurm_env, submit_dir):
    """A limit of one minute, and the signal that Slurm sends before it: however fast the machine, the run is longer."""
    args = ("--images", 16 * 10**9)
    job = Job(slurm_env, submit_dir, "limit", "--time=1", "--signal=B:USR1@40", args=args)
    deadline = time.monotonic() + 360
    while "resuming from" not in job.log():
        assert time.monotonic() < deadline, f"{job.show()}\n{job.log()}"
        time.sleep(0.3)
    assert "stopped at" in job.log()
    (job.run_dir / "stop").touch()
    fields = job.wait("COMPLETED", seconds=120)
    assert int(fields["Restarts"]) >= 1
    images = weights(job.run_dir)["images"]
    reference = submit_dir / "reference-limit"
    args = ["--data.shards", submit_dir / "dataset", *TINY, "--images", images, *RARE_OUTPUT]
    launch(2, *args, "--run_dir", reference)
    assert weights(job.run_dir) == weights(reference)


def test_node_failure(slurm_env, submit_dir):
    """slurmd, slurmstepd and the run's processes on node 2 are killed at once; the job is requeued and resumes.

    It is requeued by Slurm if Slurm notices first, otherwise by the batch shell, after the other process has failed.
    """
    job = Job(slurm_env, submit_dir, "node", args=("--checkpoint.every_epochs", 20), DISTGAN_RETRY="1")
    job.wait_for_training()
    job.wait_for_checkpoint()
    kill_order: dict[int, int] = {}  # parents first, so that none reports the death of its children
    for pid, argv, env in processes():
        if env.get(b"SLURM_CONF") != slurm_env["SLURM_CONF"].encode():
            continue
        command = b" ".join(argv)
        if b"slurmd -N 127.0.0.12" in command:
            kill_order[pid] = 0
        elif b"slurmstepd" in command and env.get(b"SLURMD_NODENAME", b"127.0.0.12") == b"127.0.0.12":
            kill_order[pid] = 1
        elif env.get(b"SLURMD_NODENAME") == b"127.0.0.12" and env.get(b"SLURM_JOB_ID") == job.id.encode():
            kill_order[pid] = 2
    for pid in sorted(kill_order, key=kill_order.__getitem__):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and job.show().get("Restarts") == "0":
        time.sleep(1)
    env = slurm_env | {"PATH": slurm_env["PATH"] + ":/usr/sbin"}
    subprocess.run(["slurmd", "-N", "127.0.0.12"], env=env, check=True)
    fields = job.wait("COMPLETED", seconds=200)
    assert int(fields["Restarts"]) >= 1 and "resuming from" in job.log() and equals_reference(job)


def test_parts_of_a_dataset(slurm_env, tmp_path):
    """Four parts on two nodes, one of them killed and requeued: joined, the files are those of a set made in one go."""
    folder = copy_launch(tmp_path)
    (folder / "images").mkdir()
    for i, image in enumerate(noise(400, 128)):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    words = [str(folder / "images"), str(folder / "dataset"), "--size", "256", "--format", "png", "--shard_mb", "2"]
    options = ["--array=1-4", "--exclusive", "--cpus-per-task=1", "--ntasks-per-node=1", "--time=10", "--parsable"]
    command = ["sbatch", *options, "launch/make.sbatch", *words]
    done = subprocess.run(command, cwd=folder, env=slurm_env, capture_output=True, text=True, check=True)
    array, making = done.stdout.strip(), folder / "dataset" / ".making"
    deadline = time.monotonic() + 240

    def mine() -> int:
        """The shards of part 2 that are written: every fourth, from the second on."""
        return sum(int(path.name[6:12]) % 4 == 1 for path in making.glob("shard-*.npz"))

    while time.monotonic() < deadline and not mine():
        time.sleep(0.05)
    subprocess.run(["scontrol", "requeue", f"{array}_2"], env=slurm_env, check=True)
    written, shown = mine(), ""
    while time.monotonic() < deadline:
        shown = subprocess.run(["scontrol", "show", "job", array], env=slurm_env, capture_output=True, text=True).stdout
        if re.findall(r"JobState=(\w+)", shown).count("COMPLETED") == 4:
            break
        time.sleep(0.5)
    logs = "".join(path.read_text() for path in (folder / "launch/logs").glob(f"distgan-make-{array}_*.out"))
    restarts = dict(zip(re.findall(r"ArrayTaskId=(\d)", shown), re.findall(r"Restarts=(\d)", shown), strict=True))
    assert restarts == {"1": "0", "2": "1", "3": "0", "4": "0"}, shown + logs
    total = len(list((folder / "dataset").glob("*.tar")))
    assert 0 < written < total / 4 and {"on 127.0.0.11", "on 127.0.0.12"} <= set(re.findall(r"on 127[\d.]+\d", logs))
    assert (
        shards.main(["join", words[1]]) == 0 and shards.main(["make", words[0], str(folder / "whole"), *words[2:]]) == 0
    )
    joined, whole = (
        {path.name: sha256_file(path) for path in (folder / name).iterdir()} for name in ("dataset", "whole")
    )
    assert joined == whole and len(whole) == total + 4
