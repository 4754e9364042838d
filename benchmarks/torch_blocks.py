"""Animate Anyone's denoising UNet out of diffusers' PyTorch modules, run as the PyTorch implementations run it.

Stock modules throughout; only what diffusers lacks is written here: the reference's tokens in self-attention, and the
temporal layers between the blocks. `tests/parity/test_torch_blocks.py` shows that it computes what ours computes.
"""

from __future__ import annotations

import diffusers
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from animate_jax.config import UNetConfig


class WithReference(nn.Module):
    """Self-attention that lends its input to a bank, or borrows from it: every row attends to [own | reference], then
    the unconditional half is computed again without. The peers' order of work."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.bank: torch.Tensor | None = None  # [1, tokens, channels]
        self.lends = False

    def forward(self, x: torch.Tensor, **_) -> torch.Tensor:
        if self.lends:
            self.bank = x
            return self.attention(x)
        if self.bank is None:
            return self.attention(x)
        mixed = self.attention(x, encoder_hidden_states=torch.cat([x, self.bank.expand(len(x), -1, -1)], 1))
        half = len(x) // 2
        mixed[:half] = self.attention(x[:half])
        return mixed


class TemporalLayer(nn.Module):
    """AnimateDiff's: statistics per frame, two self-attentions over the frames of each pixel, feed-forward."""

    def __init__(self, channels: int, heads: int, groups: int, max_length: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.block = BasicTransformerBlock(
            channels,
            heads,
            channels // heads,
            double_self_attention=True,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=max_length,
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        rows, channels, height, width = x.shape
        hidden = self.norm(x).reshape(rows // frames, frames, channels, height * width)
        hidden = self.proj_in(hidden.permute(0, 3, 1, 2).reshape(-1, frames, channels))
        hidden = self.feed_forward(hidden)
        hidden = self.proj_out(hidden).reshape(-1, height * width, frames, channels)
        return x + hidden.permute(0, 2, 3, 1).reshape(x.shape)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's layers; the position enters before both attentions, not before the feed-forward."""
        block = self.block
        x = x + block.attn1(block.pos_embed(block.norm1(x)))
        x = x + block.attn2(block.pos_embed(block.norm2(x)))
        return x + block.ff(block.norm3(x))


class TorchUNet(nn.Module):
    """`motion` adds temporal layers; without them it is ReferenceNet."""

    def __init__(self, config: UNetConfig, motion: bool = True):
        super().__init__()
        levels = config.attention_levels
        self.unet = diffusers.UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in levels],
            up_block_types=["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(levels)],
            attention_head_dim=config.num_attention_heads,
            cross_attention_dim=config.cross_attention_dim,
            norm_num_groups=config.norm_num_groups,
        )
        self.attentions: list[WithReference] = []
        for module in list(self.unet.modules()):
            if isinstance(module, BasicTransformerBlock):
                module.attn1 = WithReference(module.attn1)
                self.attentions.append(module.attn1)

        def temporal(channels: int, count: int) -> nn.ModuleList:
            sizes = (channels, config.motion_num_attention_heads, config.motion_norm_num_groups)
            return nn.ModuleList([TemporalLayer(*sizes, config.motion_max_length) for _ in range(count * motion)])

        widths, layers = config.block_out_channels, config.layers_per_block
        self.down_motion = nn.ModuleList([temporal(width, layers) for width in widths])
        self.mid_motion = temporal(widths[-1], int(config.motion_mid_block))
        self.up_motion = nn.ModuleList([temporal(width, layers + 1) for width in reversed(widths)])

    def lend(self, latents: torch.Tensor, token: torch.Tensor, other: TorchUNet) -> None:
        """Fills the other network's bank. latents [1, C, h, w] at timestep 0, token [1, 1, D]."""
        for attention in self.attentions:
            attention.lends = True
        self(latents, 0, token, frames=1)
        for mine, theirs in zip(self.attentions, other.attentions, strict=True):
            theirs.bank, mine.bank = mine.bank, None

    def forward(
        self, x: torch.Tensor, timestep: int, token: torch.Tensor, pose: torch.Tensor | float = 0.0, frames: int = 8
    ) -> torch.Tensor:
        """x [rows * frames, C, h, w], token [rows * frames, 1, D]."""
        unet = self.unet
        time = torch.full((len(x),), timestep, device=x.device)
        time = unet.time_embedding(unet.time_proj(time).to(x.dtype))

        def layers(block, motion, x, skips=None):
            attentions, outputs = getattr(block, "attentions", [None] * len(block.resnets)), []
            for i, (resnet, attention) in enumerate(zip(block.resnets, attentions, strict=True)):
                x = resnet(x if skips is None else torch.cat([x, skips.pop()], 1), time)
                if attention is not None:
                    x = attention(x, encoder_hidden_states=token, return_dict=False)[0]
                if len(motion):
                    x = motion[i](x, frames)
                outputs.append(x)
            return outputs

        x = unet.conv_in(x) + pose
        skips = [x]
        for block, motion in zip(unet.down_blocks, self.down_motion, strict=True):
            skips += layers(block, motion, x)
            x = skips[-1]
            for downsample in block.downsamplers or []:
                x = downsample(x)
                skips.append(x)
        middle = unet.mid_block
        x = middle.attentions[0](middle.resnets[0](x, time), encoder_hidden_states=token, return_dict=False)[0]
        for motion in self.mid_motion:
            x = motion(x, frames)
        x = middle.resnets[1](x, time)
        for block, motion in zip(unet.up_blocks, self.up_motion, strict=True):
            x = layers(block, motion, x, skips)[-1]
            for upsample in block.upsamplers or []:
                x = upsample(x, skips[-1].shape[2:])
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
