"""One pure training step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from animate_jax.errors import UserError
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.params import Params, merge_model
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.parallel import gather as gathering
from animate_jax.parallel.rules import spec
from animate_jax.training.losses import Batch, Loss, LossAndMetrics, Metrics
from animate_jax.training.state import State, update_ema


def make_step(
    graphdef: nnx.GraphDef,
    loss: Loss | Callable[[AnimateAnyone, Batch, Key[Array, ""]], LossAndMetrics],
    tx: optax.GradientTransformation,
    ema: float,
    accumulate: int = 1,
    compute_dtype: DTypeLike = jnp.float32,
    gather: bool = False,
    gradient_dtype: DTypeLike = jnp.float32,
) -> Callable[[State, Batch, Key[Array, ""]], tuple[State, Metrics]]:
    """`step(state, batch, key) -> (state, metrics)`; pure, to be jitted with the state donated.

    Only trainable parameters have gradients and moments; parameters, gradients and moments keep the dtypes of the
    state. The key is folded with the step, so that a resumed run draws the same noise. A step whose loss or gradient is
    not finite leaves everything but the count of steps as it is, and the metric `skipped` is 1.

    Args:
        loss: a `Loss`; without accumulation any function (model, batch, key) -> (value, metrics).
        accumulate: micro-batches. The sum of their gradients is that of the batch, in the memory of one.
        compute_dtype: what the parameters are cast to for the passes.
        gather: on a mesh, gather the weights and sum the gradients once per step (parallel/gather.py); needs a `Loss`
            that is a mean over rows. Otherwise the compiler does both layer by layer, for every micro-batch.
        gradient_dtype: with `gather`, that of the sum over devices.
    """

    def mean_gradients(
        trainable: Params, frozen: Params, batch: Batch, compute: Callable[[AnimateAnyone, Batch], LossAndMetrics]
    ) -> tuple[LossAndMetrics, Params]:
        def value_and_grads(part: Batch) -> tuple[LossAndMetrics, Params]:
            def objective(trainable: Params) -> LossAndMetrics:
                params = {path: array.astype(compute_dtype) for path, array in {**frozen, **trainable}.items()}
                return compute(merge_model(graphdef, params), part)

            return jax.value_and_grad(objective, has_aux=True)(trainable)

        if accumulate == 1:
            return value_and_grads(batch)

        def add(total: Params, part: Batch) -> tuple[Params, LossAndMetrics]:
            value, grads = value_and_grads(part)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype) / accumulate, total, grads), value

        zeros = {path: jnp.zeros(array.shape, jnp.float32) for path, array in trainable.items()}
        grads, (values, metrics) = jax.lax.scan(add, zeros, micro_batches(batch, accumulate))
        # NaN: a metric that this micro-batch has no sample for
        return (values.mean(), {name: jnp.nanmean(each) for name, each in metrics.items()}), grads

    def gathered_gradients(trainable: Params, frozen: Params, batch: Batch) -> tuple[LossAndMetrics, Params]:
        mesh = jax.sharding.get_abstract_mesh()
        shards = {path: spec(path, array.shape, mesh) for path, array in {**frozen, **trainable}.items()}
        own, others = ({path: shards[path] for path in each} for each in (trainable, frozen))

        def local(trainable: Params, frozen: Params, batch: Batch) -> tuple[LossAndMetrics, Params]:
            whole = gathering.gather(trainable, own, compute_dtype), gathering.gather(frozen, others, compute_dtype)
            told, grads = mean_gradients(*whole, batch, loss.compute)
            return jax.lax.pmean(told, BATCH_AXES), gathering.mean_shards(grads, own, gradient_dtype)

        return jax.shard_map(
            local, in_specs=(own, others, PartitionSpec(BATCH_AXES)), out_specs=(PartitionSpec(), own),
            axis_names=set(BATCH_AXES), check_vma=False,
        )(trainable, frozen, batch)  # fmt: skip

    def step(state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state["step"])
        weights = state["trainable"], state["frozen"]
        if not isinstance(loss, Loss):
            (value, metrics), grads = mean_gradients(*weights, batch, lambda model, batch: loss(model, batch, key))
        else:
            batch = {**batch, **loss.sample_randomness(batch, key)}
            (value, metrics), grads = (
                gathered_gradients(*weights, batch) if gather else mean_gradients(*weights, batch, loss.compute)
            )
        updates, opt = tx.update(grads, state["opt"], state["trainable"])
        trainable = optax.apply_updates(state["trainable"], updates)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        updated = {"trainable": trainable, "opt": opt, "ema": update_ema(state["ema"], trainable, state["step"], ema)}
        finite = jnp.isfinite(value) & jnp.isfinite(norms["grad_norm"])  # of the whole batch: the same everywhere
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, {name: state[name] for name in updated}
        )
        metrics = {"loss": value, **norms, "param_norm": optax.tree.norm(kept["trainable"]), **metrics}
        return {**state, "step": state["step"] + 1, **kept}, {**metrics, "skipped": 1.0 - finite}

    return step


def micro_batches(batch: Batch, count: int) -> Batch:
    """Rows i::count of a batch as [count, rows / count, ...], so that rows that lie on different devices stay there.

    Raises:
        UserError: the batch does not divide.
    """
    rows = next(iter(batch.values())).shape[0]
    if rows % count:
        raise UserError(f"--accumulate {count}: must divide --data.batch {rows}")
    return {name: array.reshape(rows // count, count, *array.shape[1:]).swapaxes(0, 1) for name, array in batch.items()}
