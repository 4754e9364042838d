"""A run whose everything lies in a bucket: killed, gone on with, looked at, sampled from."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.compiles

CHILD = """
    import sys, time
    from collections.abc import Iterator

    import grain, jax, jax.numpy as jnp, numpy as np

    from animate_jax.config import DataConfig, OptimConfig, PreviewConfig, TrainConfig
    from animate_jax.training.loop import open_folder, run
    from animate_jax.checkpoints import checkpoint

    jax.config.update("jax_disable_most_optimizations", True)
    stuck, output = int(sys.argv[1]), sys.argv[2]

    class Numbers(Iterator):
        def __init__(self):
            dataset = grain.MapDataset.range(0, 1000).map(lambda i: {"number": np.float32(i)})
            self._stream = iter(dataset.batch(2).to_iter_dataset())
            self.read = 0

        def __next__(self):
            self.read += 1
            if self.read == stuck:
                time.sleep(1000)
            return next(self._stream)

        async def save(self, directory):
            return await self._stream.save(directory)

        async def load(self, directory):
            return await self._stream.load(directory)

    def pull(model, batch, key):
        bias = model.vae.quant_conv.bias[...]
        number = batch["number"].mean()
        return jnp.square(bias - number - jax.random.normal(key, bias.shape)).mean(), {"number": number}

    preset = checkpoint.read_preset(checkpoint.find(sys.argv[3]))
    config = TrainConfig(
        stage="vae", output=output, preset=preset,
        init=sys.argv[3], trainable="vae.quant_conv.bias", steps=8, log_every=1,
        save_every=3, data=DataConfig(batch=2), optim=OptimConfig(learning_rate=0.1), preview=PreviewConfig(every=4),
    )
    with open_folder(config) as folder:
        def preview(params, step):
            (folder.path / "previews").mkdir(exist_ok=True)
            (folder.path / "previews" / f"{step}.txt").write_text("seen")
            return {}
        run(config, pull, Numbers(), preview=preview, folder=folder)
    print(*checkpoint.load(output)[0]["vae.quant_conv.bias"].tolist())
"""


def test_a_run_in_a_bucket_is_killed_and_goes_on(bucket, python, micro_checkpoint, tmp_path):
    """While the store fails now and then and lists three names at a time. The result is that of a run on a disk."""
    init = "gs://bucket/weights"
    python(
        bucket,
        f"""
        from animate_jax.checkpoints import checkpoint
        checkpoint.save("{init}", *checkpoint.load({str(micro_checkpoint)!r}))
    """,
    )
    undisturbed, _ = python(bucket, CHILD, 0, "0", str(tmp_path / "run"), init)

    bucket.unavailable, bucket.page = 31, 3
    command = [sys.executable, "-c", textwrap.dedent(CHILD), "6", "gs://bucket/run", init]
    killed = subprocess.Popen(command, env=os.environ | bucket.environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while "run/checkpoints/3/commit_success.txt" not in bucket.names() and time.monotonic() < deadline:
        time.sleep(0.2)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    result, told = python(bucket, CHILD, 0, "0", "gs://bucket/run", init)
    assert result == undisturbed
    assert "goes on after step 3" in told

    steps = [json.loads(line)["step"] for line in bucket.read("run/metrics.jsonl").splitlines()]
    assert steps[-5:] == [4, 5, 6, 7, 8] and len(steps) == len(set(steps))
    names = bucket.names()
    assert "run/previews/4.txt" in names and "run/previews/8.txt" in names
    assert any(name.startswith("run/events.out.tfevents") for name in names)
    kept = {name.split("/")[2] for name in names if name.startswith("run/checkpoints/")}
    assert kept == {"6", "8"}
    assert all(f"run/checkpoints/{step}/commit_success.txt" in names for step in kept)
