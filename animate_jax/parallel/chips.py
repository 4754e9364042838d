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


# The first whose kind fits counts. TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. GPUs: NVIDIA's data
# sheets, without sparsity; resources.nvidia.com: a100-80gb-datasheet, h100-datasheet, h100-nvl-datasheet,
# h200-datasheet, blackwell-architecture-datasheet (HGX B200, GB200 NVL72), l4-datasheet, l40s-datasheet. Cards
# without NVLink have PCIe's links.
CHIPS = (
    Chip("v4", 275e12, 32e9, 1228e9, 300e9, ("TPU v4",)),
    Chip("v5e", 197e12, 16e9, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p", 459e12, 95e9, 2765e9, 600e9, ("TPU v5",)),
    Chip("v6e", 918e12, 32e9, 1640e9, 400e9, ("TPU v6 lite", "TPU v6e")),
    # JAX sees each of a chip's two cores as a device: halves of 2307 TFLOP/s, 192 GB, 7380 GB/s and 600 GB/s.
    Chip("half a TPU7x", 1153.5e12, 96e9, 3690e9, 300e9, ("TPU7x",)),
    Chip("A100-40GB", 312e12, 40e9, 1555e9, 600e9, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    Chip("A100-80GB PCIe", 312e12, 80e9, 1935e9, 600e9, ("NVIDIA A100 80GB PCIe",)),
    Chip("A100-80GB", 312e12, 80e9, 2039e9, 600e9, ("NVIDIA A100-SXM4-80GB",)),
    Chip("H100 PCIe", 756e12, 80e9, 2000e9, 600e9, ("NVIDIA H100 PCIe",)),
    Chip("H100 NVL", 835e12, 94e9, 3938e9, 600e9, ("NVIDIA H100 NVL",)),
    Chip("H100", 989e12, 80e9, 3350e9, 900e9, ("NVIDIA H100 80GB HBM3",)),
    Chip("H200 NVL", 835e12, 141e9, 4800e9, 900e9, ("NVIDIA H200 NVL",)),
    Chip("H200", 989e12, 141e9, 4800e9, 900e9, ("NVIDIA H200",)),
    Chip("GB200", 2500e12, 186e9, 8000e9, 1800e9, ("NVIDIA GB200",)),
    Chip("B200", 2250e12, 180e9, 7700e9, 1800e9, ("NVIDIA B200",)),
    Chip("L40S", 362e12, 48e9, 864e9, 64e9, ("NVIDIA L40S",)),
    Chip("L40", 181e12, 48e9, 864e9, 64e9, ("NVIDIA L40",)),
    Chip("L4", 121e12, 24e9, 300e9, 64e9, ("NVIDIA L4",)),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when its peak is not known, as with CPUs."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kinds)), None)
