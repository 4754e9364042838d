#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster with Cluster Toolkit; Kueue starts the job again after a preemption, and it goes on.
#   CLUSTER, LOCATION, BUCKET and GCLUSTER_IMAGE_REPO (an Artifact Registry repository) must be set.
set -euo pipefail
: "${CLUSTER:?}" "${LOCATION:?}" "${BUCKET:?}" "${GCLUSTER_IMAGE_REPO:?}"

gcluster job submit --cluster "$CLUSTER" --location "$LOCATION" --name "${NAME:-animate-jax-stage1}" \
    --compute-type "${TYPE:-v5litepod-16}" --base-image python:3.12-slim --build-context . \
    --env JAX_COMPILATION_CACHE_DIR="gs://$BUCKET/compiled" \
    --command "pip install '.[tpu]' && animate-jax train stage1 --init gs://$BUCKET/weights/sd15 \
        --data.root gs://$BUCKET/clips --output gs://$BUCKET/runs/stage1 --mesh.fsdp 16 --accumulate 4"
