# ruff: noqa: E402
"""A training run in a process of its own, to be killed, or to be one of several: python child.py '{"output": ...}'."""

import json
import os
import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from conftest import MICRO

from animate_jax.config import DataConfig, MeshConfig, OptimConfig, PreviewConfig, TrainConfig
from animate_jax.errors import UserError
from animate_jax.parallel import processes
from animate_jax.parallel.mesh import make_mesh, rows_of_process
from animate_jax.training.loop import run

BATCH = 8


def pull(model, batch, key):
    """Quickly compiled: a bias is pulled to numbers that depend on every row's place, number and noise."""
    bias = model.vae.quant_conv.bias[...]
    rows = jnp.tanh(batch["number"])[:, None] + jax.random.normal(key, (BATCH, *bias.shape))
    return jnp.mean((1 + jnp.arange(BATCH))[:, None] * jnp.square(bias - rows)), {"number": batch["number"].mean()}


def total(params, step):
    return {"preview/total": float(jax.jit(lambda params: sum(jnp.abs(x).sum() for x in params.values()))(params))}


class Numbers:
    """Batches of this process's rows of 0..7, 8..15, ...; takes its time, and writes down what was read."""

    def __init__(self, index, count, delay, log):
        dataset = grain.MapDataset.range(1 << 20).map(np.float32).batch(BATCH // count)[index::count]
        self._stream, self._delay, self._log = iter(dataset.to_iter_dataset()), delay, log
        self.save, self.load, self.set_state = self._stream.save, self._stream.load, self._stream.set_state

    def __next__(self):
        time.sleep(self._delay)
        rows = next(self._stream)
        print(*map(int, rows), file=self._log, flush=True)
        return {"number": rows}


def train(options):
    output = Path(options["output"])
    output.mkdir(parents=True, exist_ok=True)
    data = DataConfig(batch=BATCH)
    if real := options.get("real", False):
        data = DataConfig(batch=2, frames=1, clip_frames=4, num_workers=1)
    config = TrainConfig(
        preset=MICRO,
        stage="stage1",
        output=str(output),
        init=options["init"],
        log_every=1,
        save_every=options["save_every"],
        trainable=r"(?!vae\.)(?!.*motion_modules)" if real else r"vae\.quant_conv",
        steps=options["steps"],
        data=data,
        optim=OptimConfig(learning_rate=0.01),
        mesh=MeshConfig(fsdp=options.get("fsdp", 1)),
        preview=PreviewConfig(every=options.get("preview_every", 4), clips=2, frames=4),
    )
    mesh = make_mesh(config.mesh)
    preview = total
    if options.get("previews", False):
        from animate_jax.training.preview import Preview

        preview = Preview(config)
    with (output / f"read_{jax.process_index()}.txt").open("a") as log:
        if real:
            from animate_jax.data.loader import batches
            from animate_jax.training.losses import DiffusionLoss

            state = run(config, DiffusionLoss(config), batches(config), mesh)
        else:
            stream = Numbers(*rows_of_process(mesh), options.get("delay", 0), log)
            state = run(config, pull, stream, mesh, preview)
    if jax.process_index() == 0 and int(state.step) == config.steps:
        np.savez(output / "final.npz", **{path: np.asarray(array) for path, array in state.trainable.items()})


def main(options):
    jax.config.update("jax_compilation_cache_dir", os.environ["CHILD_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with processes.distributed():
            train(options)
    except UserError as error:
        print(f"child: {error}", file=sys.stderr)
        return processes.exit_now(2)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
