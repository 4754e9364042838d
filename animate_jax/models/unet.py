"""Stable Diffusion's UNet over clips, shared by the denoising UNet and ReferenceNet."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.config import Remat, UNetConfig
from animate_jax.models.conditioning import Conditioning
from animate_jax.models.embeddings import TimestepEmbedding, timestep_embedding
from animate_jax.models.remat import remat
from animate_jax.models.resnet import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D
from animate_jax.models.sharding import shard_frames
from animate_jax.models.spatial import Transformer2DModel
from animate_jax.models.temporal import MotionModule


class Block(nnx.Module):
    """One level's layers: `resnets`, and optionally `attentions`, `motion_modules` and a down- or upsampler."""

    def __init__(
        self,
        config: UNetConfig,
        widths: list[tuple[int, int]],
        *,
        attention: bool,
        motion: bool,
        downsample: bool = False,
        upsample: bool = False,
        attentions: int | None = None,
        rngs: nnx.Rngs,
    ):
        time_channels, groups = 4 * config.block_out_channels[0], config.norm_num_groups
        channels = widths[-1][1]
        count = len(widths) if attentions is None else attentions
        self.resnets = nnx.List(
            [
                ResnetBlock2D(*width, time_channels, groups, over_frames=config.pool_norm_over_frames, rngs=rngs)
                for width in widths
            ]
        )
        self.attentions = nnx.List(
            [
                Transformer2DModel(
                    channels,
                    config.num_attention_heads,
                    config.cross_attention_dim,
                    groups,
                    position_embedding=config.position_embedding,
                    reference=config.reference,
                    rngs=rngs,
                )
                for _ in range(count if attention else 0)
            ]
        )
        self.motion_modules = nnx.List(
            [
                MotionModule(channels, config.motion_num_attention_heads, config.motion_norm_num_groups, rngs=rngs)
                for _ in range(count if motion else 0)
            ]
        )
        self.downsamplers = nnx.List([Downsample2D(channels, rngs=rngs)] if downsample else [])
        self.upsamplers = nnx.List([Upsample2D(channels, rngs=rngs)] if upsample else [])


class UNet(nnx.Module):
    """Attribute names are diffusers' UNet2DConditionModel's, temporal layers AnimateDiff's `motion_modules`.

    `motion` builds temporal layers, `head` the output convolution (ReferenceNet has neither).
    """

    def __init__(self, config: UNetConfig, *, motion: bool = True, head: bool = True, rngs: nnx.Rngs):
        self.config = config
        self.remat: Remat = "none"  # set by `abstract_model`
        widths, levels, layers = config.block_out_channels, config.attention_levels, config.layers_per_block
        last = len(widths) - 1
        self.conv_in = nnx.Conv(config.in_channels, widths[0], (3, 3), padding=1, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], rngs=rngs)

        down, skips = [], [widths[0]]
        for i, width in enumerate(widths):
            entry = widths[max(i - 1, 0)]
            pairs = [(entry if j == 0 else width, width) for j in range(layers)]
            down.append(Block(config, pairs, attention=levels[i], motion=motion, downsample=i < last, rngs=rngs))
            skips += [width] * (layers + (i < last))
        self.down_blocks = nnx.List(down)

        middle = [(widths[-1], widths[-1])] * 2
        motion_in_middle = motion and config.motion_mid_block
        self.mid_block = Block(config, middle, attention=True, motion=motion_in_middle, attentions=1, rngs=rngs)

        up, current = [], widths[-1]
        for i, width in enumerate(reversed(widths)):
            pairs = []
            for _ in range(layers + 1):
                pairs.append((current + skips.pop(), width))
                current = width
            up.append(Block(config, pairs, attention=levels[last - i], motion=motion, upsample=i < last, rngs=rngs))
        self.up_blocks = nnx.List(up)

        self.head = head
        if head:
            self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, over_frames=config.pool_norm_over_frames)
            self.conv_out = nnx.Conv(widths[0], config.out_channels, (3, 3), padding=1, rngs=rngs)
        self.copies_reference = head and config.appearance == "warp"
        if self.copies_reference:
            self.appearance_conv_out = nnx.Conv(
                widths[0], config.out_channels, (3, 3), padding=1, kernel_init=nnx.initializers.zeros, rngs=rngs
            )

    def spatial_transformers(self) -> dict[str, Transformer2DModel]:
        """Every spatial transformer by its path, in the order of execution."""
        blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(self.down_blocks)]
        blocks.append(("mid_block", self.mid_block))
        blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(self.up_blocks)]
        return {f"{path}.attentions.{j}": a for path, block in blocks for j, a in enumerate(block.attentions)}

    def precompute_conditioning(
        self,
        token: Float[Array, "b d"],
        reference_features: dict[str, Float[Array, "b _ _"]] | None = None,
        mask: Bool[Array, " b"] | None = None,
    ) -> Conditioning:
        """Projects the CLIP token and ReferenceNet's features once, for every frame, step and window.

        `mask` (training) drops both for the rows where it is False.
        """
        features = None if self.config.reference == "none" else reference_features
        return {
            path: transformer.transformer_blocks[0].precompute_conditioning(
                token, None if features is None else features[path], mask
            )
            for path, transformer in self.spatial_transformers().items()
        }

    def __call__(
        self,
        x: Float[Array, "r f h w c"],
        timesteps: Float[Array, " r #f"],
        conditioning: Conditioning,
        pose: Float[Array, "#r #f h w d"] | None = None,
        temporal: bool = True,
        deep_features: Float[Array, "r f h w e"] | None = None,
    ) -> tuple[Float[Array, "r f h w o"], dict[str, Float[Array, "r f _ _"]], Float[Array, "r f h w e"]]:
        """One denoising evaluation.

        Args:
            x: noisy latents. With classifier-free guidance the rows are pairs, see `guidance_pairs`.
            timesteps: 0..999, one per clip (f = 1) or per frame.
            conditioning: from `precompute_conditioning`, of the conditional rows only.
            pose: the Pose Guider's features, added after the first convolution; in models with `appearance` followed by
                the warped reference's latents, from which the prediction may copy.
            temporal: False skips the temporal layers (stage 1, single images).
            deep_features: the last up block's input of an earlier step; the levels below the first are then skipped
                (DeepCache, Ma et al. 2023): an approximation.

        Returns:
            The prediction (hidden states without a head), the input of each spatial transformer's self-attention (in
            ReferenceNet, the reference features), and the deep features.

        Raises:
            ValueError: more frames than the temporal layers were built for.
        """
        if temporal and self.down_blocks[0].motion_modules and x.shape[1] > self.config.motion_max_length:
            raise ValueError(
                f"{x.shape[1]} frames in one window; the temporal layers take {self.config.motion_max_length}"
            )
        attention_inputs: dict[str, Array] = {}
        time = timestep_embedding(timesteps, self.config.block_out_channels[0]).astype(x.dtype)
        time = self.time_embedding(time)

        def run(layer: nnx.Module, *inputs: Any) -> Any:
            return remat(self.remat, lambda *inputs: layer(*inputs))(*inputs)

        def layer(path: str, block: Block, j: int, x: Array) -> Array:
            x = shard_frames(x)
            if block.attentions:
                name = f"{path}.attentions.{j}"
                x, attention_inputs[name] = run(block.attentions[j], x, conditioning[name])
            if temporal and block.motion_modules:
                x = run(block.motion_modules[j], x)
            return x

        x = self.conv_in(shard_frames(x))
        if self.copies_reference:
            assert pose is not None, "the warped reference comes with the pose"
            pose, warped = jnp.split(pose, [x.shape[-1]], -1)
        if pose is not None:
            x = x + pose
        skips = [x]
        cached = deep_features is not None
        for i, block in enumerate(self.down_blocks[:1] if cached else self.down_blocks):
            for j, resnet in enumerate(block.resnets):
                x = layer(f"down_blocks.{i}", block, j, run(resnet, x, time))
                skips.append(x)
            for downsample in () if cached else block.downsamplers:
                x = downsample(x)
                skips.append(x)

        def up(i: int, x: Array) -> Array:
            block = self.up_blocks[i]
            for j, resnet in enumerate(block.resnets):
                x = run(resnet, jnp.concatenate([x, skips.pop()], -1), time)
                x = layer(f"up_blocks.{i}", block, j, x)
            for upsample in block.upsamplers:
                x = upsample(x, skips[-1].shape[2:4])
            return x

        last = len(self.up_blocks) - 1
        if deep_features is None:
            x = layer("mid_block", self.mid_block, 0, run(self.mid_block.resnets[0], x, time))
            deep: Array = run(self.mid_block.resnets[1], x, time)
            for i in range(last):
                deep = up(i, deep)
        else:
            deep = deep_features
        x = up(last, deep)

        if self.head:
            hidden = nnx.silu(self.conv_norm_out(x))
            x = self.conv_out(hidden)
            if self.copies_reference:
                # The share of each value that is copied: 0 before training, and unbounded, so that it has a gradient.
                x = x + self.appearance_conv_out(hidden) * (warped - x)
        return x, attention_inputs, deep
