"""`distgan train` over gloo, so that two processes can share one GPU, which NCCL refuses.

Accelerate uses a process group that exists already.
"""

import sys

import torch.distributed as dist

from distgan.commands.train import main

if __name__ == "__main__":
    dist.init_process_group("gloo")
    sys.exit(main())
