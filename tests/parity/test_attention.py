"""Attention against torch's, with the peers' concatenated keys; values and gradients, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from animate_jax.models.attention import Attention, FeedForward, attend, attend_with_reference
from animate_jax.models.params import merge_model, split_model
from animate_jax.torch_weights.convert import to_torch

pytestmark = pytest.mark.compiles

HEADS, WIDTH = 4, 40
B, FRAMES, TOKENS, REFERENCE = 3, 2, 35, 24


def random_arrays(*shapes: tuple[int, ...], scale: float = 2.0) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [np.float32(scale) * random.standard_normal(shape, np.float32) for shape in shapes]


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


def error(ours, theirs: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_attend(batch):
    q, k, v = random_arrays((*batch, 7, WIDTH), (*batch, 11, WIDTH), (*batch, 11, WIDTH))
    ours = jax.jit(attend, static_argnums=3)(q, k, v, HEADS)
    assert error(ours, torch_attention(*map(torch.from_numpy, (q, k, v)))) < 1e-5


@pytest.mark.parametrize("mask", [None, np.array([True, False, True])], ids=["all rows", "masked"])
def test_attend_with_reference(mask):
    own, lent = (B, FRAMES, TOKENS, WIDTH), (B, REFERENCE, WIDTH)
    *arrays, weight = random_arrays(own, own, own, lent, lent, own)
    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
    q, k, v, rk, rv = tensors
    per_frame = (-1, FRAMES, -1, -1)
    theirs = torch_attention(
        q, torch.cat([k, rk[:, None].expand(per_frame)], 2), torch.cat([v, rv[:, None].expand(per_frame)], 2)
    )
    if mask is not None:
        theirs = torch.where(torch.from_numpy(mask)[:, None, None, None], theirs, torch_attention(q, k, v))
    (theirs * torch.from_numpy(weight)).sum().backward()

    def objective(*arrays):
        mixed = attend_with_reference(*arrays, HEADS, None if mask is None else jnp.asarray(mask))
        return (mixed * weight).sum(), mixed

    arrays = [jnp.asarray(x) for x in arrays]
    (_, mixed), gradients = jax.jit(jax.value_and_grad(objective, tuple(range(5)), has_aux=True))(*arrays)
    assert error(mixed, theirs) < 1e-5
    for name, ours, tensor in zip(("q", "k", "v", "rk", "rv"), gradients, tensors, strict=True):
        assert error(ours, tensor.grad) < 1e-5, name


def test_large_scores_do_not_overflow():
    own, lent = (1, 1, 5, WIDTH), (1, 4, WIDTH)
    arrays = random_arrays(own, own, own, lent, lent, scale=100.0)
    q, k, v, rk, rv = map(torch.from_numpy, arrays)
    theirs = torch_attention(q, torch.cat([k, rk[:, None]], 2), torch.cat([v, rv[:, None]], 2))
    ours = jax.jit(attend_with_reference, static_argnums=5)(*arrays, HEADS)
    assert error(ours, theirs) < 1e-5


def test_attention_to_one_token_is_exact():
    graphdef, abstract = split_model(Attention(WIDTH, 24, HEADS, rngs=nnx.Rngs(0)))
    names = list(abstract)
    *arrays, x, token = random_arrays(*[abstract[name].shape for name in names], (2, 6, WIDTH), (2, 1, 24), scale=0.5)
    params = dict(zip(names, arrays, strict=True))
    weights = {key: torch.from_numpy(array) for key, array in to_torch(params).items()}
    q = F.linear(torch.from_numpy(x), weights["to_q.weight"])
    k, v = (F.linear(torch.from_numpy(token), weights[f"to_{name}.weight"]) for name in "kv")
    theirs = F.linear(torch_attention(q, k, v), weights["to_out.0.weight"], weights["to_out.0.bias"])
    ours = merge_model(graphdef, jax.tree.map(jnp.asarray, params)).attend_single_token(jnp.asarray(token[:, 0]))
    assert error(np.broadcast_to(ours[:, None], x.shape), theirs) < 1e-5


def test_feed_forward_uses_the_exact_gelu():
    graphdef, abstract = split_model(FeedForward(8, rngs=nnx.Rngs(0)))
    *arrays, x = random_arrays(*[leaf.shape for leaf in abstract.values()], (3, 5, 8), scale=1.0)
    params = dict(zip(abstract, arrays, strict=True))
    weights = {key: torch.from_numpy(array) for key, array in to_torch(params).items()}
    hidden, gate = F.linear(torch.from_numpy(x), weights["net.0.proj.weight"], weights["net.0.proj.bias"]).chunk(2, -1)
    theirs = F.linear(hidden * F.gelu(gate), weights["net.2.weight"], weights["net.2.bias"])
    ours = merge_model(graphdef, jax.tree.map(jnp.asarray, params))
    assert error(jax.jit(ours)(x), theirs) < 1e-5
