"""Work in chunks on two processes: both end together when one fails or is asked to stop."""

import ast
import subprocess

from helpers import ROOT, launch_command, launch_env

SCRIPT = """
import sys
from distgan.errors import UsageError
from distgan.config.keys import Config
from distgan.distributed.processes import Distributed
from distgan.evaluation.chunks import Stopped, run_chunks

processes = Distributed(Config())


def run(count, fails=-1, stops=-1):
    done = []

    def work(i):
        if i == fails:
            raise UsageError(f"chunk {i}")
        done.append(i)

    try:
        run_chunks(processes, count, work, lambda: stops in done)
        outcome = "done"
    except Stopped:
        outcome = "stopped"
    except UsageError as error:
        outcome = f"failed: {error}"
    return processes.all_gather_object((outcome, len(done)))


found = [run(21), run(0), run(101, fails=9), run(21, fails=20), run(101, stops=9), run(101, stops=100)]
if processes.is_main_process:
    print(found)
processes.shutdown()
"""


def test_two_processes_end_together(tmp_path):
    (tmp_path / "chunks.py").write_text(SCRIPT)
    command = [word.replace(str(ROOT / "distgan/train.py"), str(tmp_path / "chunks.py")) for word in launch_command(2)]
    env = launch_env(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == [
        [("done", 11), ("done", 10)],
        [("done", 0), ("done", 0)],
        [("failed: process 1: chunk 9", 8), ("failed: process 1: chunk 9", 4)],
        [("failed: chunk 20", 10), ("failed: chunk 20", 10)],
        [("stopped", 8), ("stopped", 8)],
        [("done", 51), ("done", 50)],  # the last chunk: there is nothing left to give up
    ]
