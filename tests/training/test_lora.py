"""Runs that train an adapter: only it learns, only it is saved, and it is sampled with as it was trained."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import LoraConfig
from animate_jax.errors import UserError
from animate_jax.models.lora import is_adapter
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.training.loop import run
from animate_jax.training.state import sampling_params
from tests.conftest import MICRO
from tests.training.conftest import Numbers, assert_equal, changed, log, pulling, refusal, saved

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

LAYER = "denoising_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LORA = LoraConfig(rank=2, alpha=6.0)


def pull(model, batch, key):
    """One kernel is pulled to numbers."""
    kernel = model.denoising_unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.kernel[...]
    number = batch["number"].mean()
    noise = 1e-3 * jax.random.normal(key, kernel.shape)
    return jnp.square(kernel - 1 + noise + 0 * number).mean(), {"number": number}


def adapting(output, init):
    return changed(pulling(output, init), lora=LORA, steps=8, log_every=1, trainable=r".*")


@pytest.fixture
def config(tmp_path, micro_checkpoint):
    return adapting(tmp_path / "run", micro_checkpoint)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, micro_checkpoint, compile_fast):
    config = adapting(tmp_path_factory.mktemp("finished"), micro_checkpoint)
    return config, run(config, pull, Numbers())


def test_only_the_adapter_learns_and_the_loss_falls(finished, micro_params):
    config, state = finished
    assert state.trainable and all(map(is_adapter, state.trainable))
    assert_equal(state.frozen, dict(micro_params))
    moments = [leaf for leaf in jax.tree.leaves(state.opt) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(array.size for array in state.trainable.values())
    losses = [line["loss"] for line in log(config)]
    kernel = np.asarray(micro_params[f"{LAYER}.kernel"])
    assert losses[0] == pytest.approx(np.square(kernel - 1).mean(), rel=1e-2)  # begins as the base
    assert losses[-1] < 0.7 * losses[0]


def test_a_stopped_run_goes_on_exactly_where_it_stopped(config, finished):
    stopped = run(config, pull, Numbers(stop=3))
    assert int(stopped.step) == 3 and saved(config) == [3]
    assert_equal(run(config, pull, Numbers()), finished[1])


def test_checkpoints_hold_the_adapter_alone_and_name_the_base(finished):
    config, state = finished
    found = checkpoint.find(config.output)
    assert checkpoint.stored_arrays(found).keys() == state.trainable.keys()
    metadata = json.loads((found / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert metadata["base"]["checkpoint"] == config.init and metadata["base"]["checksum"]
    with pytest.raises(UserError) as caught:
        checkpoint.load(config.output)
    assert f"give --checkpoint {config.init} --lora {config.output}" in str(caught.value)


def test_it_is_sampled_with_as_it_was_trained(finished, micro):
    config, state = finished
    pipeline = Pipeline.from_pretrained(config.init)
    base = dict(pipeline.params)
    pipeline.load_lora(config.output)
    merged = sampling_params(state, 3.0)
    for path, array in pipeline.params.items():
        np.testing.assert_allclose(array, merged[path], atol=1e-6, err_msg=path)
    assert not np.allclose(pipeline.params[f"{LAYER}.kernel"], base[f"{LAYER}.kernel"], atol=1e-2)


def test_the_base_may_be_held_in_bfloat16(config, micro_params):
    state = run(changed(config, frozen_bf16=".*", steps=2), pull, Numbers())
    assert {array.dtype.name for array in state.frozen.values()} == {"bfloat16"}
    assert {array.dtype.name for array in state.trainable.values()} == {"float32"}
    again = run(changed(config, frozen_bf16=".*", steps=2), pull, Numbers())
    assert_equal(again.frozen, state.frozen)


def test_some_of_the_adapters_may_stay_as_they_are(config):
    partly = changed(config, frozen=r".*\.attn2\.", steps=2)
    state = run(partly, pull, Numbers())
    still = {path for path in state.frozen if is_adapter(path)}
    assert still and all(".attn2." in path for path in still)
    assert_equal(run(partly, pull, Numbers()), state)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"init": None}, "--lora.rank 2: adapts a checkpoint: give it with --init"),
        ({"stage": "vae"}, "--lora.rank 2: adapts the UNets"),
        ({"lora": LoraConfig(rank=2, target_modules="vae.*")}, "matches no linear layer"),
    ],
)
def test_impossible_runs_are_refused(config, fields, message):
    assert message in refusal(changed(config, **fields), pull, Numbers())


def test_another_base_or_adapter_is_refused(finished, tmp_path, micro_params):
    config, state = finished
    other = {path: 2 * np.asarray(array) for path, array in micro_params.items()}
    checkpoint.save(tmp_path / "other", other, MICRO)
    message = refusal(changed(config, init=str(tmp_path / "other")), pull, Numbers())
    assert f"--init {config.init} -> other weights, {tmp_path / 'other'}" in message
    message = refusal(changed(config, lora=LoraConfig(rank=3)), pull, Numbers())
    assert "--lora.rank 2 -> 3" in message
    checkpoint.save(tmp_path / "moved", dict(micro_params), MICRO)
    assert_equal(run(changed(config, init=str(tmp_path / "moved")), pull, Numbers()), state)
    assert Path(config.output, "pytorch_lora_weights.safetensors").exists()
