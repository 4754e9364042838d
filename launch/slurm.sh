#!/usr/bin/env bash
# Trains on GPU nodes under Slurm:  sbatch launch/slurm.sh    (JAX learns from Slurm who the others are)
# Preempted or out of time, it saves and is queued again; the same command goes on from the last checkpoint.
#SBATCH --job-name=animate-jax-stage1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -uo pipefail
source .venv/bin/activate  # python3.12 -m venv .venv && .venv/bin/pip install '.[cuda]'

srun --kill-on-bad-exit=1 animate-jax train stage1 --init weights/sd15 --data.root data/mine --output runs/stage1 \
    --mesh.fsdp 8 --accumulate 4 --compute-dtype bfloat16
status=$?
[ $status -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"  # stopped by a signal, with everything saved
exit $status
