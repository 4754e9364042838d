"""The training step: gradients of the loss, the optimizer's update, the average; and the program that it belongs to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PyTree

from animate_jax.config import Gather, TrainConfig
from animate_jax.errors import UserError
from animate_jax.models import lora
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.parallel import gather as gathering
from animate_jax.parallel.chips import find_chip
from animate_jax.parallel.mesh import check_batch, compiler_options
from animate_jax.parallel.rules import param_spec, shardings
from animate_jax.presets import preset_of
from animate_jax.training.losses import Loss, LossAndMetrics, Metrics
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import TrainState, make_state, split_teacher, update_ema
from animate_jax.validation import problem

# Of a model, a batch (a `Batch`, or whatever the data gives) and a key.
LossFunction = Callable[[AnimateAnyone, Any, Key[Array, ""]], LossAndMetrics]
Step = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]]


class Program(NamedTuple):
    """What a configuration means on a mesh, before any array exists. Call both functions under `jax.set_mesh(mesh)`."""

    step: Step  # jitted; (state, batch, key) -> (state, metrics); the memory of the state given is reused
    init: Callable[[Params], TrainState]  # jitted; the state of step 0
    abstract: TrainState  # shapes, dtypes and shardings


def make_program(config: TrainConfig, loss: Loss | LossFunction, mesh: Mesh) -> Program:
    """
    Raises:
        UserError: an impossible size, a batch that the mesh does not divide, or nothing to train.
    """
    preset = preset_of(config)
    if found := problem(preset):
        raise UserError(f"preset {preset.name}: {found[0]} is {found[1]} and must be {found[2]}: see --size")
    # The autoencoder sees single images.
    check_batch(mesh, config.data.batch // config.accumulate, 1 if config.stage == "vae" else config.data.frames)
    graphdef, params = abstract_model(preset.model, config.remat)
    tx = make_optimizer(config.optim, config.steps)
    state_of = functools.partial(
        make_state,
        trainable=lora.PATHS if config.lora.rank else config.trainable,
        tx=tx,
        ema=config.optim.ema > 0,
        frozen=config.frozen,
        frozen_bf16=config.frozen_bf16,
        # The passes see it in their dtype anyway. Beside adapters, the base is the teacher.
        teacher=config.compute_dtype if config.stage == "distill" and not config.lora.rank else None,
    )

    def init(params: Params) -> TrainState:
        return state_of(params | lora.make_adapter(params, config.lora, config.seed) if config.lora.rank else params)

    abstract = jax.eval_shape(init, params)
    layout = shardings(abstract, mesh)
    step = make_step(
        graphdef,
        loss,
        tx,
        config.optim.ema,
        config.accumulate,
        config.compute_dtype,
        choose_gather(config, loss, mesh, abstract),
        config.optim.gradient_dtype,
        lora.scale_of(config.lora),
    )
    return Program(
        jax.jit(step, donate_argnums=0, out_shardings=(layout, None), compiler_options=compiler_options(mesh) or None),
        jax.jit(init, out_shardings=layout),
        jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), abstract, layout),
    )


def choose_gather(config: TrainConfig, loss: Loss | LossFunction, mesh: Mesh, state: TrainState) -> Gather:
    """What `--mesh.gather` comes to: "step", "weights" or "layer". It is "layer", where the compiler decides, if all
    devices have the same clips and for losses that are not a mean over rows.

    "auto" is the first of them whose whole weights and gradients take at most a third of a TPU's memory, if it sends
    less. With "layer" the compiler gathers every layer
    forward and again backward, and sums gradients in the dtype of the passes, for every micro-batch: only where nothing
    is gathered and there is one micro-batch does it send less, in bfloat16.

    Raises:
        UserError: "step" or "weights" is asked of the autoencoder's loss.
    """
    asked, possible = config.mesh.gather, isinstance(loss, Loss) and loss.mean_over_rows
    if asked in ("step", "weights") and isinstance(loss, Loss) and not possible:
        raise UserError(
            f"--mesh.gather {asked}: not for the autoencoder, whose loss looks at all crops of a batch at once"
        )
    if not possible or mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return "layer"
    if asked != "auto":
        return asked
    chip = find_chip(mesh.devices.flat[0].device_kind)
    width, summed = (jnp.dtype(dtype).itemsize for dtype in (config.compute_dtype, config.optim.gradient_dtype))
    if chip is None or (mesh.shape["fsdp"] == 1 and config.accumulate * width < summed):
        return "layer"
    trained, frozen = (sum(leaf.size for leaf in params.values()) for params in (state.trainable, state.frozen))
    room = chip.memory / 3 - (trained + frozen) * width
    if trained * 4 <= room:  # gradients add up in float32
        return "step"
    return "weights" if mesh.shape["fsdp"] > 1 and trained * width <= room else "layer"


def make_step(
    graphdef: nnx.GraphDef,
    loss: Loss | LossFunction,
    tx: optax.GradientTransformation,
    ema: float,
    accumulate: int = 1,
    compute_dtype: DTypeLike = jnp.float32,
    gather: Gather = "layer",
    gradient_dtype: DTypeLike = jnp.float32,
    lora_scale: float = 1.0,
) -> Step:
    """`step(state, batch, key) -> (state, metrics)`, a pure function.

    Only trainable parameters have gradients and moments; parameters, gradients and moments keep the dtypes of the
    state. The key is folded with the step, so that a resumed run draws the same noise. A step whose loss or gradient is
    not finite leaves everything but the count of steps as it is, and the metric `skipped` is 1.

    Args:
        loss: a `Loss`; without accumulation any function (model, batch, key) -> (value, metrics).
        accumulate: micro-batches. The sum of their gradients is that of the batch, in the memory of one.
        compute_dtype: what the parameters are cast to for the passes.
        gather: what `choose_gather` found. "step" and "weights" (parallel/gather.py) need a `Loss` that is a mean over
            rows; with "layer" the compiler gathers weights and sums gradients, for every micro-batch.
        gradient_dtype: with "step" and "weights", that of the sum over devices.
        lora_scale: adapters among the parameters are added to their kernels so many times, see `models.lora.merge`.
    """

    def build(params: Params) -> AnimateAnyone:
        params = lora.merge(params, lora_scale)
        return merge_model(graphdef, {path: array.astype(compute_dtype) for path, array in params.items()})

    def build_all(params: Params) -> Any:
        """What the loss is given: the model, or student and teacher."""
        if isinstance(loss, Loss) and loss.has_teacher:
            return tuple(map(build, split_teacher(params)))
        return build(params)

    def mean_gradients(
        trainable: Params,
        frozen: Params,
        inputs: PyTree,
        compute: Callable[[Any, Any], LossAndMetrics],
        reduce: Callable[[Params], Params] = lambda grads: grads,
    ) -> tuple[LossAndMetrics, Params]:
        """`reduce` is applied to the gradients of every micro-batch."""

        def value_and_grads(part: PyTree) -> tuple[LossAndMetrics, Params]:
            def objective(trainable: Params) -> LossAndMetrics:
                return compute(build_all({**frozen, **trainable}), part)

            value, grads = jax.value_and_grad(objective, has_aux=True)(trainable)
            return value, reduce(grads)

        if accumulate == 1:
            return value_and_grads(inputs)

        def add(total: Params, part: PyTree) -> tuple[Params, LossAndMetrics]:
            value, grads = value_and_grads(part)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype) / accumulate, total, grads), value

        reduced = jax.eval_shape(reduce, trainable)
        zeros = {path: jnp.zeros(array.shape, jnp.float32) for path, array in reduced.items()}
        grads, (values, metrics) = jax.lax.scan(add, zeros, micro_batches(inputs, accumulate))
        # NaN: a metric that this micro-batch has no sample for
        return (values.mean(), {name: jnp.nanmean(each) for name, each in metrics.items()}), grads

    def gathered_gradients(
        trainable: Params, frozen: Params, inputs: PyTree, compute: Callable[[Any, Any], LossAndMetrics]
    ) -> tuple[LossAndMetrics, Params]:
        mesh = jax.sharding.get_abstract_mesh()
        trained, others = (
            {path: param_spec(path, array.shape, mesh) for path, array in params.items()}
            for params in (trainable, frozen)
        )

        def local(trainable: Params, frozen: Params, inputs: PyTree) -> tuple[LossAndMetrics, Params]:
            whole = gathering.gather(trainable, trained, compute_dtype), gathering.gather(frozen, others, compute_dtype)
            reduce = functools.partial(gathering.mean_shards, specs=trained, dtype=gradient_dtype)
            if gather == "weights":
                value_and_metrics, grads = mean_gradients(*whole, inputs, compute, reduce)
            else:
                value_and_metrics, grads = mean_gradients(*whole, inputs, compute)
                grads = reduce(grads)
            return jax.lax.pmean(value_and_metrics, BATCH_AXES), grads

        return jax.shard_map(
            local,
            in_specs=(trained, others, PartitionSpec(BATCH_AXES)),
            out_specs=(PartitionSpec(), trained),
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )(trainable, frozen, inputs)

    def step(state: TrainState, batch: PyTree, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        weights = state.trainable, state.frozen
        if isinstance(loss, Loss):
            gradients = mean_gradients if gather == "layer" else gathered_gradients
            inputs = batch, loss.sample_randomness(batch, key)
            (value, metrics), grads = gradients(*weights, inputs, lambda model, inputs: loss.compute(model, *inputs))
        else:
            (value, metrics), grads = mean_gradients(*weights, batch, lambda model, batch: loss(model, batch, key))
        updates, opt = tx.update(grads, state.opt, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)  # the same on all devices
        new = trainable, opt, update_ema(state.ema, trainable, state.step, ema)
        old = state.trainable, state.opt, state.ema
        trainable, opt, averages = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        norms = {
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(trainable),
        }
        state = TrainState(state.step + 1, trainable, state.frozen, opt, averages)
        return state, {"loss": value, **norms, **metrics, "skipped": 1.0 - finite}

    return step


def micro_batches(inputs: PyTree[Array], count: int) -> PyTree[Array]:
    """Rows i::count of every array as [count, rows / count, ...], so that rows stay on their devices.

    Raises:
        UserError: the batch does not divide.
    """
    rows = jax.tree.leaves(inputs)[0].shape[0]
    if rows % count:
        raise UserError(f"--accumulate {count}: must divide --data.batch {rows}")
    return jax.tree.map(lambda array: array.reshape(rows // count, count, *array.shape[1:]).swapaxes(0, 1), inputs)
