"""The loader: batches of training samples in an endless, resumable order, shared out among processes.

grain brings the order, the worker processes and the prefetching; samples are made in `data/samples.py`.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grain
from absl import flags
from tqdm import tqdm

from animate_jax.config import TrainConfig
from animate_jax.data.batch import Batch
from animate_jax.data.samples import RecordedSamples, RenderedSamples, SkipDamaged, open_source
from animate_jax.errors import UserError

NUM_VIRTUAL_CLIPS = 1 << 40  # of rendered data, which never end


def recorded_dataset(config: TrainConfig) -> tuple[grain.MapDataset, int]:
    """The endless samples of a recorded data set, shuffled anew in every epoch, and how many clips may be damaged.

    Raises:
        UserError: impossible options, or no such data set.
    """
    from animate_jax.data.latents import EncodedSamples, encoding_of
    from animate_jax.data.records import RecordedClips  # protobuf and array_record; only programs that read clips

    data = config.data
    if data.frames < 1:
        raise UserError(f"--data.frames {data.frames}: must be at least 1")
    if data.min_reference_distance < 0:
        raise UserError(f"--data.min-reference-distance {data.min_reference_distance}: must be at least 0")
    if data.stride is not None and data.stride < 1:
        raise UserError(f"--data.stride {data.stride}: must be at least 1")
    if data.fps is not None and not data.fps > 0:
        raise UserError(f"--data.fps {data.fps}: must be greater than 0")
    for flag, share in (("flip", data.flip), ("max-bad", data.max_bad)):
        if not 0 <= share <= 1:
            raise UserError(f"--data.{flag} {share}: must be between 0 and 1")
    assert data.root is not None  # else people are rendered
    clips, encoding = RecordedClips(data.root, data.split), encoding_of(data.root, data.split)
    samples = EncodedSamples(config, encoding) if encoding else RecordedSamples(config)
    max_damaged = math.ceil(data.max_bad * len(clips))
    numbers = grain.MapDataset.range(len(clips)).seed(data.seed).shuffle().repeat()
    return numbers.map_with_index(SkipDamaged(clips, samples, max_damaged)), max_damaged


class BatchIterator(grain.DatasetIterator):
    """Endless batches, each this process's rows of it.

    The position is one number, the same in all processes, so that a run can go on with another number of processes and
    workers. Like any grain iterator's it is read by `get_state`, and saved by Orbax.

    Args:
        make_iterator: position -> grain's iterator of this process's rows of the batches from there. The position
            counts the samples that all processes together have taken.
        batch: samples in a batch of all processes together.
        max_damaged: how many clips may be damaged.

    Attributes:
        damaged: numbers of the damaged clips that this process has replaced.
    """

    def __init__(self, make_iterator: Callable[[int], grain.DatasetIterator], batch: int, max_damaged: int = 0):
        super().__init__()
        self._make_iterator, self._batch, self._max_damaged = make_iterator, batch, max_damaged
        self._position, self._iterator = 0, None
        self.damaged: set[int] = set()

    def __next__(self) -> Batch:
        """
        Raises:
            UserError: too many clips are damaged.
        """
        if self._iterator is None:
            self._iterator = self._make_iterator(self._position)
        batch = next(self._iterator)
        self._position += self._batch
        for message in filter(None, batch.pop("damaged", ())):
            self._count_damaged(*message.decode(errors="ignore").split("\t", 1))
        return Batch(**batch)

    def _count_damaged(self, number: str, message: str) -> None:
        if int(number) in self.damaged:
            return
        self.damaged.add(int(number))
        tqdm.write(f"damaged clip number {len(self.damaged)}, replaced by the next: {message}", file=sys.stderr)
        if len(self.damaged) > self._max_damaged:
            raise UserError(
                f"{len(self.damaged)} damaged clips, the last: {message}; or raise --data.max-bad, the share of all "
                "clips that may be damaged"
            )

    def get_state(self) -> dict[str, int]:
        return {"global_next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        position = state.get("global_next_index")
        if position is None:  # written by an older version for rendered data: batches that each worker has made
            workers = state.get("iterators_in_use_states", [state])
            position = self._batch * sum(worker["next_index"] for worker in workers)
        self._position = position

    def close(self) -> None:
        """Ends the worker processes."""
        if self._iterator is not None:
            gc.collect()  # makes JAX release arrays in the workers' shared memory, which is freed while they end
            self._iterator.close()
            self._iterator = None


def batches(config: TrainConfig, process: int = 0, processes: int = 1) -> BatchIterator:
    """An endless iterator of this process's rows of every batch. To be closed when it has workers.

    Every recorded clip comes once per epoch, in an order that is shuffled anew. Rendered clips never come twice.

    Args:
        process, processes: this process's index and the number of processes, as `rows_of_process` gives them. No two
            processes get the same clip.

    Raises:
        UserError: a batch that does not divide among the processes, impossible options, or no such data set.
    """
    data = config.data
    if not data.batch or data.batch % processes:
        raise UserError(f"--data.batch {data.batch}: must be a multiple of the {processes} processes")
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    workers = None
    if data.num_workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, and we parse with tyro
        # Grain's shared memory outlives its workers; Python removes it when the process ends, and would say so.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # which that helper process inherits
        workers = grain.MultiprocessingOptions(num_workers=data.num_workers, per_worker_buffer_size=4)

    def read(dataset: grain.MapDataset) -> grain.DatasetIterator:
        stream = dataset.to_iter_dataset(threads)
        return iter(stream.mp_prefetch(workers, worker_init_fn=begin_worker) if workers else stream)

    share = data.batch // processes
    if data.root is not None:
        clips, max_damaged = recorded_dataset(config)

        def read_from(position: int) -> grain.DatasetIterator:
            return read(clips[position + process :: processes].batch(share, drop_remainder=True))

        return BatchIterator(read_from, data.batch, max_damaged)

    needed = data.frames if data.consecutive else data.frames + 1  # single targets are other frames than the reference
    if not 1 <= data.frames <= needed <= data.clip_frames:
        raise UserError(
            f"--data.frames {data.frames}: must be at least 1 and fit into --data.clip-frames {data.clip_frames}"
        )
    dataset = grain.MapDataset.range(NUM_VIRTUAL_CLIPS).map(RenderedSamples(open_source(config), config))
    # Sliced after batching: each process has consecutive rows of the batch that a single process would have.
    dataset = dataset.batch(share, drop_remainder=True)
    return BatchIterator(lambda position: read(dataset[position // share + process :: processes]), data.batch)


def begin_worker(*_) -> None:
    """Run in a worker when it starts. Ctrl-C and `timeout` signal a whole process group, and a worker that ended then
    would end the training process before it has saved. A killed training process takes its workers with it."""
    os.setpgrp()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
