#!/usr/bin/env bash
# Debugging: one process in the foreground, synchronous CUDA, no reader threads.
#
#   launch/debug.sh --config configs/demo.yaml [--key value]
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${PYTHON:-} ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
# Left over from a Slurm allocation, these would make the process wait for other ranks.
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
export CUDA_LAUNCH_BLOCKING=1 NCCL_DEBUG=WARN PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
exec "$PYTHON" distgan/train.py --data.threads 0 "$@"
