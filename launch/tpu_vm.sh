#!/usr/bin/env bash
# Trains on a TPU slice without a cluster: asks for it, installs on every host, starts the same command on all.
#   PROJECT, ZONE, BUCKET and REPOSITORY must be set; TYPE, RUNTIME and CONFIG may be.
# The command is safe to give again: after a preemption it goes on from the last checkpoint in the bucket.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}" "${REPOSITORY:?the address to clone this repository from}"
NAME=${NAME:-animate-jax}
TYPE=${TYPE:-v5litepod-16}                # v6e-16, v5p-32, ...
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5
on_every_host() {
    gcloud compute tpus tpu-vm ssh "$NAME" --project "$PROJECT" --zone "$ZONE" --worker all --command "$1"
}

gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" --project "$PROJECT" --zone "$ZONE" --spot \
    --accelerator-type "$TYPE" --runtime-version "$RUNTIME"
until [ "$(gcloud compute tpus queued-resources describe "$NAME" --project "$PROJECT" --zone "$ZONE" \
    --format 'value(state.state)')" = ACTIVE ]; do sleep 30; done

# The images' own Python is 3.10; uv brings a newer one.
on_every_host "git clone --depth 1 $REPOSITORY animate_jax; curl -LsSf https://astral.sh/uv/install.sh | sh &&
    ~/.local/bin/uv venv --allow-existing --python 3.12 venv && ~/.local/bin/uv pip install --python venv './animate_jax[tpu]'"
on_every_host "JAX_COMPILATION_CACHE_DIR=gs://$BUCKET/compiled venv/bin/animate-jax train stage1 \
    --init gs://$BUCKET/weights/sd15 --data.root gs://$BUCKET/clips --output gs://$BUCKET/runs/stage1 \
    --mesh.fsdp 16 --accumulate 4"
