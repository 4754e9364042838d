#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that XPK made; --num-slices for several slices (one gradient exchange a step).
#   CLUSTER, PROJECT, ZONE and BUCKET must be set.
set -euo pipefail
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"

xpk workload create --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" --workload "${NAME:-animate-jax-stage1}" \
    --tpu-type "${TYPE:-v5litepod-16}" --num-slices "${SLICES:-1}" --max-restarts 100 \
    --base-docker-image python:3.12-slim --script-dir . \
    --env JAX_COMPILATION_CACHE_DIR="gs://$BUCKET/compiled" \
    --command "pip install '.[tpu]' && animate-jax train stage1 --init gs://$BUCKET/weights/sd15 \
        --data.root gs://$BUCKET/clips --output gs://$BUCKET/runs/stage1 --mesh.fsdp 16 --accumulate 4"
