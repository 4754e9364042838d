"""Published peaks of accelerators, per device that JAX sees, for utilization and plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    kinds: tuple[str, ...]  # beginnings of `jax.Device.device_kind`
    flops: float  # dense bf16 FLOP/s
    # Of TPUs, which is what can be planned for:
    memory: float = 0.0  # bytes
    bandwidth: float = 0.0  # bytes/s of that memory
    links: float = 0.0  # bytes/s from other chips of the same slice


# The first whose kind fits counts.
CHIPS = (
    # Google's pages docs.cloud.google.com/tpu/docs/{v4,v5e,tpu7x}, the last of which has v5p and v6e as well, read in
    # November 2026. Links are half of the bidirectional bandwidth given there; of v4 Jouppi et al. 2023, table 4 (6
    # links of 50 GB/s), which was not at hand. Where a page says GiB, the same number of GB is counted.
    Chip("v4", ("TPU v4",), 275e12, 32e9, 1200e9, 300e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9),
    Chip("v5p", ("TPU v5",), 459e12, 95e9, 2765e9, 600e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1638e9, 400e9),
    # A chip's two chiplets are a device each: halves of 2307 TFLOP/s, 192 GB, 7380 GB/s and 600 GB/s.
    Chip("half a TPU7x", ("TPU7x",), 1153.5e12, 96e9, 3690e9, 300e9),
    # NVIDIA's data sheets, halved where they count sparsity: A100 (nvidia-a100-datasheet), H100 and H200 (2 x 989.5;
    # PCIe 1513), L40 (181), L40S (362), L4 (242), Blackwell (architecture datasheet: HGX B200 2250, GB200 2500). The
    # NVL cards' 1671 were found only in others' tables.
    Chip("A100", ("NVIDIA A100",), 312e12),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12),
    Chip("H100 NVL", ("NVIDIA H100 NVL",), 835e12),
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989e12),
    Chip("H200 NVL", ("NVIDIA H200 NVL",), 835e12),
    Chip("H200", ("NVIDIA H200",), 989e12),
    Chip("GB200", ("NVIDIA GB200",), 2500e12),
    Chip("B200", ("NVIDIA B200",), 2250e12),
    Chip("L40S", ("NVIDIA L40S",), 362e12),
    Chip("L40", ("NVIDIA L40",), 181e12),
    Chip("L4", ("NVIDIA L4",), 121e12),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when its peak is not known, as with CPUs."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kinds)), None)
