"""The loader: from clips to batches of pictures, poses drawn on the fly. grain gives order, processes and position."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from animate_jax.config import DataConfig, Preset
from animate_jax.errors import UserError
from animate_jax.pose.draw import draw
from animate_jax.video.preprocess import clip_pixels

ENDLESS = 1 << 40


@runtime_checkable
class ClipSource(Protocol):
    """What the loader asks of a data set: any frames of the clip with a given number."""

    def clip(self, index: int, frames: int, pick: list[int] | None = None) -> Any: ...


@dataclasses.dataclass
class Samples:
    """A clip number -> one training sample; the same number always gives the same sample.

    reference, reference_pose [H, W, 3] uint8; clip_pixels [S, S, 3] float32; frames, poses [F, H, W, 3] uint8;
    masks [F, H, W] uint8, the person's share of each pixel.
    """

    source: ClipSource
    data: DataConfig
    preset: Preset

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        data, model, sampling = self.data, self.preset.model, self.preset.sampling
        rng = np.random.Generator(np.random.PCG64([data.seed, 1, int(index)]))
        if data.consecutive:
            first = int(rng.integers(data.span - data.frames + 1))
            targets = list(range(first, first + data.frames))
            reference = int(rng.integers(data.span))
        else:
            reference, *targets = map(int, rng.permutation(data.span)[: data.frames + 1])
        picked = self.source.clip(int(index), data.span, [reference, *targets])
        poses = draw(picked.keypoints, *picked.frames.shape[1:3], sampling.pose_style)
        return {
            "reference": picked.frames[0],
            "reference_pose": poses[0],
            "clip_pixels": clip_pixels(picked.frames[0], model.image_encoder.image_size, sampling.clip_resize),
            "frames": picked.frames[1:],
            "poses": poses[1:],
            "masks": picked.mask[1:],
        }


def open_source(data: DataConfig, preset: Preset) -> ClipSource:
    """The data set that a configuration names, at the preset's size and frame rate.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    sampling = preset.sampling
    return MocapPeople(data.split, data.seed, sampling.height, sampling.width, sampling.fps or 10.0)


def batches(data: DataConfig, preset: Preset, process: int = 0, processes: int = 1) -> Any:
    """An endless iterator of this process's share of every batch, with `get_state` and `set_state` (grain).

    Args:
        process, processes: clip numbers are dealt out in turn, so the processes never see the same clip.

    Raises:
        UserError: a batch that does not divide among the processes, or more frames than the span has.
    """
    if not data.batch or data.batch % processes:
        raise UserError(f"--data.batch {data.batch}: must be a multiple of the {processes} processes")
    needed = data.frames if data.consecutive else data.frames + 1  # the reference is none of the targets
    if not 1 <= data.frames <= needed <= data.span:
        raise UserError(f"--data.frames {data.frames}: must be at least 1 and fit into --data.span {data.span}")
    dataset = grain.MapDataset.range(ENDLESS)[process::processes]
    dataset = dataset.map(Samples(open_source(data, preset), data, preset))
    dataset = dataset.batch(data.batch // processes, drop_remainder=True)
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if data.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, and we parse with tyro
        options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=4)
        stream = stream.mp_prefetch(options, worker_init_fn=leave_group)
    return iter(stream)


def leave_group(worker: int, workers: int) -> None:
    """Ctrl-C and `timeout` signal a whole process group. Workers that ended then would take the training process, which
    wants to finish its step and save, with them."""
    os.setpgrp()
