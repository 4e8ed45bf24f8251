#!/usr/bin/env bash
# Debugging: one process in the foreground, synchronous CUDA, no reader threads.
#
#   launch/debug.sh --config configs/demo.yaml [--key value]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/python.sh
source launch/python.sh
echo "python: ${python[*]} ($python_from)" >&2
# Left over from a Slurm allocation, these would make the process wait for other ranks.
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
export CUDA_LAUNCH_BLOCKING=1 NCCL_DEBUG=WARN PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1
exec "${python[@]}" distgan/train.py --data.threads 0 "$@"
