"""One training step against PyTorch: the same weights, pictures, noise and timesteps, gradients by autograd.

The torch side is composed of diffusers' UNets and autoencoder and transformers' CLIP, in float64: ReferenceNet lends
the inputs of its self-attentions, the denoising UNet's attend to them too, and temporal layers follow. Weights go
over by the same names that import checkpoints, so gradients come back by them.
"""

import dataclasses
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
import transformers

from animate_jax.config import (
    DiffusionLossConfig,
    FrameConfig,
    ModelConfig,
    OptimConfig,
    PoseGuiderConfig,
    Preset,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
    UNetConfig,
    VAEConfig,
)
from animate_jax.data.batch import Batch
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.torch_weights import names
from animate_jax.torch_weights.convert import from_torch, to_torch
from animate_jax.torch_weights.importing import match_part
from animate_jax.training import losses
from animate_jax.training.losses import Randomness
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import make_state
from tests.conftest import MICRO

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

CLIPS, FRAMES, HEIGHT, WIDTH = 2, 2, 20, 12  # latents of 10 x 6 and 5 x 3
MODEL = ModelConfig(
    unet=UNetConfig(
        block_out_channels=(16, 24),
        attention_levels=(True, False),
        layers_per_block=1,
        num_attention_heads=4,
        cross_attention_dim=12,
        norm_num_groups=8,
        motion_max_length=8,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
    ),
    vae=VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4),
    image_encoder=dataclasses.replace(MICRO.model.image_encoder, projection_dim=12),
    pose_guider=PoseGuiderConfig(block_out_channels=(4, 8), conditioning_channels=16),
)
PAPER = ScheduleConfig(zero_terminal_snr=False, prediction="epsilon")
PEERS = ScheduleConfig(zero_terminal_snr=True, prediction="v")
PEERS_LOSS = DiffusionLossConfig(weighting="min_snr", noise_offset=0.05, condition_dropout=0.5)
CASES = {
    "stage 1": ("stage1", PAPER, DiffusionLossConfig()),
    "stage 1 of the peers": ("stage1", PEERS, PEERS_LOSS),
    "stage 2": ("stage2", PAPER, DiffusionLossConfig()),
    "stage 2 of the peers": ("stage2", PEERS, PEERS_LOSS),
}
SLOW = ("stage 1", "stage 2 of the peers")  # the other two cover both stages and both recipes
TRAINED = {"stage1": r"(?!vae\.)(?!image_encoder\.)(?!.*motion_modules)", "stage2": r".*motion_modules"}


# The torch side


class MotionModule(torch.nn.Module):
    """AnimateDiff's temporal layer, with its parameter names; x is [B * F, C, H, W]."""

    def __init__(self, weights: dict[str, torch.Tensor], config: UNetConfig):
        super().__init__()
        self.names = {name: name.replace(".", "/") for name in weights}
        for name, weight in weights.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(weight))
        self.heads, self.groups = config.motion_num_attention_heads, config.motion_norm_num_groups

    def weight(self, name):
        name = f"temporal_transformer.{name}"
        return getattr(self, self.names[name]) if name in self.names else None

    def linear(self, name, x):
        return F.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def forward(self, x):
        _, c, h, w = x.shape
        normed = F.group_norm(x, self.groups, self.weight("norm.weight"), self.weight("norm.bias"), 1e-6)
        tokens = normed.reshape(CLIPS, FRAMES, c, h * w).permute(0, 3, 1, 2).reshape(-1, FRAMES, c)
        tokens = self.linear("proj_in", tokens)
        angles = torch.arange(FRAMES)[:, None] * 10000.0 ** (-torch.arange(0, c, 2) / c)
        positions = torch.stack([angles.sin(), angles.cos()], -1).reshape(FRAMES, c).to(tokens)
        block = "transformer_blocks.0"
        for i in range(2):
            name = f"{block}.attention_blocks.{i}"
            y = self.layer_norm(f"{block}.norms.{i}", tokens) + positions
            q, k, v = (self.linear(f"{name}.to_{n}", y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            tokens = tokens + self.linear(f"{name}.to_out.0", mixed)
        hidden, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.ff_norm", tokens)).chunk(2, -1)
        tokens = self.linear("proj_out", tokens + self.linear(f"{block}.ff.net.2", hidden * F.gelu(gate)))
        return x + tokens.reshape(CLIPS, h * w, FRAMES, c).permute(0, 2, 3, 1).reshape(x.shape)


class AttendToReference:
    """An attention processor of diffusers: keys and values [own | reference], the reference only where kept."""

    def __init__(self, bank: dict[str, torch.Tensor], path: str):
        self.bank, self.path = bank, path

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        lent = self.bank[self.path].repeat_interleave(FRAMES, 0)
        both = torch.cat([hidden_states, lent], 1)
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, both), (attn.to_v, both))
        )
        keep = self.bank["keep"].repeat_interleave(FRAMES, 0)
        seen = torch.cat(
            [torch.ones(len(keep), hidden_states.shape[1], dtype=torch.bool), keep[:, None].expand(-1, lent.shape[1])],
            1,
        )[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(-2)
        return attn.to_out[0](mixed)


class Torch:
    """The whole model and its losses in torch, with our `params`."""

    def __init__(self, params: Params, temporal: bool):
        unet, vae, clip = MODEL.unet, MODEL.vae, MODEL.image_encoder
        self.temporal = temporal
        levels = list(zip(("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D"), strict=True))
        options = dict(
            block_out_channels=unet.block_out_channels,
            layers_per_block=unet.layers_per_block,
            attention_head_dim=unet.num_attention_heads,
            cross_attention_dim=unet.cross_attention_dim,
            norm_num_groups=unet.norm_num_groups,
            down_block_types=[down for down, _ in levels],
            up_block_types=[up for _, up in levels][::-1],
        )
        self.parts = {
            "denoising_unet": diffusers.UNet2DConditionModel(**options),
            "reference_unet": diffusers.UNet2DConditionModel(**options),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=vae.block_out_channels,
                layers_per_block=vae.layers_per_block,
                norm_num_groups=vae.norm_num_groups,
                latent_channels=vae.latent_channels,
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
            ),
            "image_encoder": transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(**dataclasses.asdict(clip), hidden_act="quick_gelu")
            ),
            "pose_guider": torch.nn.Module(),
        }
        self.motion = {}
        for name, part in self.parts.items():
            prefix = f"{name}."
            ours = to_torch({p.removeprefix(prefix): a for p, a in params.items() if p.startswith(prefix)})
            weights = {key: torch.tensor(array, dtype=torch.float64) for key, array in ours.items()}
            if name == "pose_guider":
                self.pose_weights = {key: weight.requires_grad_() for key, weight in weights.items()}
                continue
            places = {key.split(".temporal_transformer.")[0] for key in weights if ".temporal_transformer." in key}
            for place in places:
                inside = {k.removeprefix(f"{place}."): w for k, w in weights.items() if k.startswith(f"{place}.")}
                self.motion[place] = MotionModule(inside, unet)
            weights = {key: weight for key, weight in weights.items() if "motion_modules" not in key}
            part.double().train()  # as training runs; no layer here behaves differently
            missing, unexpected = part.load_state_dict(weights, strict=False)
            assert not unexpected
            assert all(key.startswith(("conv_norm_out", "conv_out")) or "position_ids" in key for key in missing)

        self.bank = {}
        reference, denoising = self.parts["reference_unet"], self.parts["denoising_unet"]
        for name, module in reference.named_modules():
            if name.endswith("transformer_blocks.0.norm1"):
                path = name.removesuffix(".norm1")
                module.register_forward_hook(lambda _, __, out, path=path: self.bank.__setitem__(path, out))
        for name, module in denoising.named_modules():
            if name.endswith("transformer_blocks.0"):
                module.attn1.set_processor(AttendToReference(self.bank, name))
        if temporal:
            for place, layer in self.motion.items():
                block, _, index = place.partition(".motion_modules.")
                block = denoising.get_submodule(block)
                last = block.attentions[int(index)] if getattr(block, "attentions", None) else block.resnets[int(index)]
                last.register_forward_hook(
                    lambda _, __, out, layer=layer: (layer(out[0]),) if isinstance(out, tuple) else layer(out)
                )

    def latents(self, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            posterior = self.parts["vae"].encode(pictures).latent_dist
        return (posterior.mean + posterior.std * noise) * MODEL.vae.scaling_factor

    def pose_features(self, x: torch.Tensor) -> torch.Tensor:
        w = self.pose_weights
        names = ["conv_in", *(f"blocks.{i}" for i in range(2 * len(MODEL.pose_guider.block_out_channels) - 2))]
        for name in names:
            stride = 2 if name.startswith("blocks") and int(name[-1]) % 2 else 1
            x = F.silu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1))
        return F.conv2d(x, w["conv_out.weight"], w["conv_out.bias"], padding=1)

    def loss(self, batch: Batch, randomness: Randomness, config: ScheduleConfig, min_snr: bool) -> torch.Tensor:
        def pictures(x):  # [B, (F,) H, W, C] -> [B * F, C, H, W]
            return torch.tensor(np.asarray(x), dtype=torch.float64).reshape(-1, *x.shape[-3:]).permute(0, 3, 1, 2)

        reference = self.latents(pictures(batch.reference) / 127.5 - 1, pictures(randomness["posterior"][:, 0]))
        x0 = self.latents(pictures(batch.frames) / 127.5 - 1, pictures(randomness["posterior"][:, 1:]))
        keep = torch.tensor(np.asarray(randomness["keep_condition"]))
        with torch.no_grad():
            token = self.parts["image_encoder"](pictures(batch.clip_pixels)).image_embeds

        self.bank["keep"] = keep
        self.parts["reference_unet"](reference, 0, token[:, None])
        token = torch.where(keep[:, None], token, 0).repeat_interleave(FRAMES, 0)[:, None]

        # diffusers' own schedule; one timestep per clip in stage 2, one per frame in stage 1
        scheduler = diffusers.DDIMScheduler(
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            rescale_betas_zero_snr=config.zero_terminal_snr,
            prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[config.prediction],
        )
        t = torch.tensor(np.broadcast_to(randomness["t"], (CLIPS, FRAMES)).ravel(), dtype=torch.long)
        noise = pictures(randomness["noise"])
        x_t = scheduler.add_noise(x0, noise, t)
        target = noise if config.prediction == "epsilon" else scheduler.get_velocity(x0, noise, t)

        denoising, pose = self.parts["denoising_unet"], self.pose_features(pictures(batch.poses) / 255)
        hook = denoising.conv_in.register_forward_hook(lambda _, __, out: out + pose)
        prediction = denoising(x_t, t, token).sample
        hook.remove()
        error = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
        if min_snr:  # the peers': of velocity prediction
            alpha_bar = scheduler.alphas_cumprod[t].double()
            snr = alpha_bar / (1 - alpha_bar)
            error = error * torch.clamp(snr + 1, max=5) / (snr + 1)
        return error.mean()

    def gradients(self) -> dict[str, dict[str, np.ndarray]]:
        """By part, in torch's names; what has none was not reached."""
        found = {name: dict(part.named_parameters()) for name, part in self.parts.items()}
        found["pose_guider"] = self.pose_weights
        for place, layer in self.motion.items():
            found["denoising_unet"] |= {f"{place}.{name}": getattr(layer, own) for name, own in layer.names.items()}
        return {
            part: {key: np.zeros(w.shape) if w.grad is None else w.grad.numpy() for key, w in weights.items()}
            for part, weights in found.items()
        }


# Both sides


@pytest.fixture(scope="module")
def params() -> Params:
    """Random weights, none zero."""
    random, params = np.random.default_rng(0), {}
    for path, leaf in abstract_model(MODEL)[1].items():
        array = random.normal(size=leaf.shape)
        array = array / np.sqrt(array[..., 0].size) if path.endswith("kernel") else 0.1 * array + path.endswith("scale")
        params[path] = jnp.asarray(array, jnp.float32)
    return params


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(1)

    def pictures(*shape):
        return jnp.asarray(random.integers(0, 256, (CLIPS, *shape, 3)), jnp.uint8)

    return Batch(
        reference=pictures(HEIGHT, WIDTH),
        reference_pose=pictures(HEIGHT, WIDTH),
        clip_pixels=jnp.asarray(random.normal(size=(CLIPS, 16, 16, 3)), jnp.float32),
        frames=pictures(FRAMES, HEIGHT, WIDTH),
        poses=pictures(FRAMES, HEIGHT, WIDTH),
        masks=jnp.zeros((CLIPS, FRAMES, HEIGHT, WIDTH), jnp.uint8),
    )


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES])
def test_loss_and_gradients(case, params, batch):
    stage, schedule, options = CASES[case]
    preset = Preset("test", MODEL, schedule, FrameConfig(), SamplingConfig())
    loss = losses.DiffusionLoss(TrainConfig(stage=stage, output="runs/test", preset=preset, loss=options))
    randomness = loss.sample_randomness(batch, jax.random.key(3))
    if options.condition_dropout:
        randomness["keep_condition"] = jnp.array([True, False])

    state = make_state(params, TRAINED[stage], optax.identity(), ema=False)
    graphdef = abstract_model(MODEL)[0]

    def objective(trainable):
        return loss.compute(merge_model(graphdef, {**state.frozen, **trainable}), batch, randomness)[0]

    value, found = jax.jit(jax.value_and_grad(objective))(state.trainable)

    theirs = Torch(params, temporal=stage == "stage2")
    expected = theirs.loss(batch, randomness, schedule, options.weighting == "min_snr")
    expected.backward()
    gradients = {}
    for part, weights in theirs.gradients().items():
        if part == "reference_unet":
            weights = {key: gradient for key, gradient in weights.items() if not re.match(names.HEAD, key)}
        matched = match_part(weights, part, abstract_model(MODEL)[1], with_motion=part == "denoising_unet")
        gradients |= from_torch(matched)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    top = max(np.abs(gradients[path]).max() for path in found)
    errors = {
        path: np.abs(array - gradients[path]).max() / max(np.abs(gradients[path]).max(), 1e-4 * top)
        for path, array in found.items()
    }
    assert {path: error for path, error in errors.items() if not error < 1e-4} == {}
    reached = [path for path in found if np.abs(gradients[path]).max() > 1e-4 * top]
    assert len(reached) > 0.6 * len(found)  # else the comparison would say little


@pytest.mark.parametrize("warmup", [0, 3])
def test_adamw_is_torchs(warmup):
    """Five steps on gradients of very different sizes; clipped as torch's `clip_grad_norm_` does."""
    config = OptimConfig(learning_rate=1e-3, warmup=warmup, weight_decay=0.01, clip_norm=1.0)
    random = np.random.default_rng(0)
    # As small as the steps, or the rounding of the parameters would hide them.
    start = {name: (0.01 * random.normal(size=(7, 5))).astype(np.float32) for name in "ab"}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    adamw = torch.optim.AdamW(theirs.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min(step / warmup, 1) if warmup else 1.0)
    tx = make_optimizer(config, 5)
    ours, opt = jax.tree.map(jnp.asarray, start), None
    for scale in (1e-3, 1.0, 10.0, 1e-5, 0.1):
        gradient = {name: (scale * random.normal(size=(7, 5))).astype(np.float32) for name in "ab"}
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        adamw.step()
        rate.step()
        opt = tx.init(ours) if opt is None else opt
        updates, opt = tx.update(jax.tree.map(jnp.asarray, gradient), opt, ours)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        moved = parameter.detach().numpy() - start[name]
        assert np.abs(ours[name] - parameter.detach().numpy()).max() < 1e-5 * np.abs(moved).max()
