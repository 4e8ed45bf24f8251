"""distgan on a real Slurm of two nodes, on loopback: stops, requeues, cancels and losses, with the shipped scripts."""

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

from shared import ROOT, TINY, launch, make_dataset, noise, weights

pytestmark = pytest.mark.slurm
LENGTH = 16 * 3_000  # images: some twenty seconds on two cores
RARELY = ["--checkpoint.every_epochs", 100, "--samples.every_epochs", 10_000, "--report.every_images", 800]
UP = ROOT / "tests" / "slurm" / "slurm_up.sh"


@pytest.fixture(scope="module")
def lab():
    """The environment of a running cluster."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("starting Slurm needs root and Debian's packages")
    folder = Path(tempfile.mkdtemp(prefix="distgan-slurm-"))
    folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot enter, as pytest's are
    env = os.environ | {
        "SLURM_LAB": str(folder / "lab"),
        "SLURM_LAB_KILLWAIT": "20",
        "SLURM_CONF": str(folder / "lab" / "slurm.conf"),
        "PYTHON": sys.executable,
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        subprocess.run([UP, "up"], env=env, check=True)
        yield env
    finally:
        subprocess.run([UP, "down"], env=env, check=True)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to submit from, a data set, and the files of an undisturbed run on two processes."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "distgan").symlink_to(ROOT / "distgan")
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("*.out", "control"))
    make_dataset(folder / "set", noise(80))
    words = ["--data.shards", folder / "set", *TINY, "--images", LENGTH, *RARELY]
    launch(2, *words, "--run_dir", folder / "whole")
    return folder


class Job:
    """One submitted job."""

    def __init__(
        self, lab: dict[str, str], place: Path, name: str, *sbatch: str, words: tuple[object, ...] = (), **env: str
    ):
        self.env, self.place, self.run = lab | env, place, place / name
        options = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=2", "--time=10", f"--job-name={name}", *sbatch]
        run = ["distgan/train.py", "--data.shards", place / "set", *TINY, "--images", LENGTH]
        run += [*RARELY, "--run_dir", self.run, *words]
        command = ["sbatch", "--parsable", *options, "launch/train.sbatch", *map(str, run)]
        done = subprocess.run(command, cwd=place, env=self.env, capture_output=True, text=True, check=True)
        self.id = done.stdout.strip()

    def call(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def facts(self) -> dict[str, str]:
        shown = self.call("scontrol", "show", "job", self.id)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait(self, *states: str, seconds: float = 240) -> dict[str, str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            facts = self.facts()
            if facts.get("JobState") in states:
                return facts
            time.sleep(0.3)
        raise AssertionError(f"job {self.id} is {self.facts()}\n{self.log()}")

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.place / "launch/logs").glob(f"*-{self.id}.out")))

    def training(self, start: int = 1) -> None:
        """Until the run's `start`-th start has written a line of the log."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            parts = self.log().split("train.sbatch: job")
            if len(parts) > start and "img/s" in parts[start]:
                return
            assert self.facts().get("JobState") not in ("FAILED", "TIMEOUT"), self.log()
            time.sleep(0.2)
        raise AssertionError(self.log())

    def saved(self) -> None:
        """Until there is a checkpoint."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((self.run / "checkpoints").glob("[0-9]*")):
            time.sleep(0.1)

    def ranks(self) -> list[int]:
        """The pids of the run's processes on both nodes, in the order of their ranks."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                env = dict(i.split(b"=", 1) for i in (path / "environ").read_bytes().split(b"\0") if b"=" in i)
            except OSError:
                continue
            script = b"distgan/train.py" in words and b"accelerate.commands.launch" not in words
            if script and env.get(b"SLURM_JOB_ID") == self.id.encode() and b"RANK" in env:
                found[int(env[b"RANK"])] = int(path.name)
        return [found[rank] for rank in sorted(found)]


def same_as_undisturbed(job: Job) -> bool:
    return weights(job.run) == weights(job.place / "whole")


@pytest.mark.parametrize("launcher", ["accelerate", "srun"])
def test_stopped_and_requeued_it_goes_on_to_the_end(lab, place, launcher):
    job = Job(lab, place, f"stop-{launcher}", LAUNCHER=launcher)
    job.training()
    job.call("scancel", "--batch", "--signal=USR1", job.id)
    facts = job.wait("COMPLETED")
    log = job.log()
    assert facts["Restarts"] == "1" and "asking the run to stop" in log and "2 process(es)" in log
    assert re.search(r"stopped at \d+ images with a checkpoint: requeue", log) and "continuing" in log
    assert same_as_undisturbed(job)
    if launcher == "accelerate":
        print(log)


def test_a_cancelled_job_stays_cancelled_with_a_checkpoint(lab, place):
    job = Job(lab, place, "cancel")
    job.training()
    job.call("scancel", job.id)
    facts = job.wait("CANCELLED")
    time.sleep(8)  # a requeued job would start again after five seconds
    assert facts["Restarts"] == "0" and job.facts()["JobState"] == "CANCELLED"
    stopped = weights(job.run)["images"]
    assert 0 < int(stopped) < LENGTH
    again = Job(lab, place, "cancel")
    again.wait("COMPLETED")
    assert f"continuing {job.run}/checkpoints/{stopped}" in again.log() and same_as_undisturbed(again)


def test_preempted_it_goes_on_afterwards(lab, place):
    job = Job(lab, place, "preempted", "--partition=low")
    job.training()
    words = ["--parsable", "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null"]
    subprocess.run(["sbatch", *words, "--wrap=sleep 2"], env=lab, cwd=place, check=True, capture_output=True)
    facts = job.wait("COMPLETED")
    assert facts["Restarts"] == "1" and "continuing" in job.log() and same_as_undisturbed(job)


def test_one_task_of_an_array_restarts_alone(lab, place):
    """The last task has the array's own id: requeueing that would start all of them again."""
    options = ["--array=0-1", "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=10", "--parsable"]
    script = ["launch/sweep.sbatch", "distgan/train.py", "--data.shards", str(place / "set"), *TINY]
    env = lab | {"RUNS": str(place / "sweep")}
    command = ["sbatch", *options, *script, "--images", str(LENGTH), *map(str, RARELY)]
    array = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=True).stdout.strip()
    logs = [place / "launch/logs" / f"distgan-sweep-{array}_{task}.out" for task in range(2)]
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
    seeds = {task: (place / "sweep" / task / "config.yaml").read_text().split("seed: ")[1][0] for task in "01"}
    assert seeds == {"0": "0", "1": "1"} and weights(place / "sweep" / "0") != weights(place / "sweep" / "1")


@pytest.mark.parametrize("launcher", ["accelerate", "srun"])
@pytest.mark.parametrize("death", ["killed", "exits-7"])
def test_a_process_that_dies_fails_the_job_and_is_not_requeued(lab, place, tmp_path, launcher, death):
    """The second death is arranged from outside the program: Python imports a sitecustomize where it finds one."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nsignal.signal(signal.SIGUSR2, lambda *_: os._exit(7))\n"
    )
    job = Job(lab, place, f"{death}-{launcher}", LAUNCHER=launcher, PYTHONPATH=str(tmp_path))
    job.training()
    os.kill(job.ranks()[-1], signal.SIGKILL if death == "killed" else signal.SIGUSR2)
    facts = job.wait("FAILED", seconds=90)
    log = job.log()
    assert facts["Restarts"] == "0" and "requeue" not in log.split("train.sbatch: job")[-1]
    if launcher == "accelerate":  # which has an exit code of its own, 1, and names the process's
        assert re.search(r"exitcode +: " + ("-9" if death == "killed" else "7"), log), log
    else:
        assert facts["ExitCode"] == ("137:0" if death == "killed" else "7:0"), log


def test_with_retry_it_is_requeued_after_progress_only(lab, place):
    job = Job(lab, place, "retry", words=("--checkpoint.every_epochs", 20), DISTGAN_RETRY="1")
    job.training()
    job.saved()
    os.kill(job.ranks()[-1], signal.SIGKILL)
    facts = job.wait("COMPLETED")
    assert facts["Restarts"] == "1" and "came in this start: requeue" in job.log() and same_as_undisturbed(job)
    none = Job(lab, place, "retry-none", words=("--checkpoint.every_epochs", 100_000), DISTGAN_RETRY="1")
    none.training()
    os.kill(none.ranks()[-1], signal.SIGKILL)
    assert none.wait("FAILED", seconds=90)["Restarts"] == "0"


def test_a_chain_goes_on_where_the_cluster_does_not_requeue(lab, place):
    """Each task of the chain starts after a success and continues the run; when it is done the rest leave at once."""
    options = ["--array=1-3%1", "--no-requeue", "--output=launch/logs/chain-%a.out"]
    job = Job(lab, place, "chain", *options, words=("--fresh",))  # the first task's alone
    logs = [place / "launch/logs" / f"chain-{task}.out" for task in (1, 2, 3)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (logs[0].exists() and "img/s" in logs[0].read_text()):
        time.sleep(0.2)
    job.call("scancel", "--batch", "--signal=USR1", f"{job.id}_1")
    shown = ""
    while time.monotonic() < deadline + 120:
        shown = job.call("scontrol", "show", "job", job.id)
        if re.findall(r"JobState=(\w+)", shown) == ["COMPLETED"] * 3:
            break
        time.sleep(0.5)
    first, second, third = (log.read_text() if log.exists() else "" for log in logs)
    assert "submit as a chain" in first and "continuing" in second and "done: " in second, shown + first + second
    assert f"continuing {job.run}/checkpoints/{LENGTH}" in third and same_as_undisturbed(job)
    assert set(re.findall(r"Restarts=(\d)", shown)) == {"0"}


def test_a_stop_file_of_a_person_ends_the_job(lab, place):
    job = Job(lab, place, "person")
    job.training()
    (job.run / "stop").touch()
    facts = job.wait("COMPLETED")
    assert facts["Restarts"] == "0" and int(weights(job.run)["images"]) < LENGTH


def test_the_time_limit(lab, place):
    """A real one, of a minute, and Slurm's own signal before it."""
    job = Job(lab, place, "limit", "--time=1", "--signal=B:USR1@40", words=("--images", 16 * 2_000))
    facts = job.wait("COMPLETED", seconds=420)
    assert int(facts["Restarts"]) >= 1 and "stopped at" in job.log()
    whole = job.place / "whole-long"
    words = ["--data.shards", place / "set", *TINY, "--images", 16 * 2_000, *RARELY]
    launch(2, *words, "--run_dir", whole)
    assert weights(job.run) == weights(whole)


def test_a_node_that_dies(lab, place):
    """slurmd, its helpers and the run's process on node 2 are gone at once; the job is requeued, and goes on.

    By Slurm, when it notices, or by the batch shell, when the process that is left ends first.
    """
    job = Job(lab, place, "node", words=("--checkpoint.every_epochs", 20), DISTGAN_RETRY="1")
    job.training()
    job.saved()
    doomed: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ")
            env = dict(i.split(b"=", 1) for i in (path / "environ").read_bytes().split(b"\0") if b"=" in i)
        except OSError:
            continue
        if env.get(b"SLURM_CONF") != lab["SLURM_CONF"].encode():
            continue
        if b"slurmd -N 127.0.0.12" in line:
            doomed[int(path.name)] = 0
        elif b"slurmstepd" in line and env.get(b"SLURMD_NODENAME", b"127.0.0.12") == b"127.0.0.12":
            doomed[int(path.name)] = 1
        elif env.get(b"SLURMD_NODENAME") == b"127.0.0.12" and env.get(b"SLURM_JOB_ID") == job.id.encode():
            doomed[int(path.name)] = 2
    for pid in sorted(doomed, key=doomed.__getitem__):  # who would report the others' deaths goes first
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and job.facts().get("Restarts") == "0":
        time.sleep(1)
    subprocess.run(["slurmd", "-N", "127.0.0.12"], env=lab | {"PATH": lab["PATH"] + ":/usr/sbin"}, check=True)
    facts = job.wait("COMPLETED", seconds=200)
    assert int(facts["Restarts"]) >= 1 and "continuing" in job.log() and same_as_undisturbed(job)
