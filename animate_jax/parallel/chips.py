"""Published peaks of accelerators, per chip: what utilisation and plans are measured against."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    links: float  # bytes/s to other chips of the same slice or node
    kinds: tuple[str, ...]  # beginnings of `jax.Device.device_kind`


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; GPUs: NVIDIA's data sheets, SXM, without sparsity.
CHIPS = (
    Chip("v4", 275e12, 32e9, 1228e9, 300e9, ("TPU v4",)),
    Chip("v5e", 197e12, 16e9, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p", 459e12, 95e9, 2765e9, 600e9, ("TPU v5",)),
    Chip("v6e", 918e12, 32e9, 1640e9, 400e9, ("TPU v6 lite", "TPU v6e")),
    Chip("A100-40GB", 312e12, 40e9, 1555e9, 600e9, ("NVIDIA A100-SXM4-40GB",)),
    Chip("A100-80GB", 312e12, 80e9, 2039e9, 600e9, ("NVIDIA A100",)),
    Chip("H100", 989e12, 80e9, 3350e9, 900e9, ("NVIDIA H100",)),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when its peak is not known, as with CPUs."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kinds)), None)
