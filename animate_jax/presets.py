"""The presets of the checkpoint families, of a training run, and of a checkpoint's file."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from animate_jax.config import (
    Appearance,
    FrameConfig,
    ModelConfig,
    PoseGuiderConfig,
    PoseStyle,
    Preset,
    ReferenceUse,
    SamplingConfig,
    ScheduleConfig,
    Speed,
    TrainConfig,
    UNetConfig,
)
from animate_jax.errors import UserError
from animate_jax.renamed import current_preset
from animate_jax.validation import field_problem, problem


@functools.cache
def presets() -> dict[str, Preset]:
    """The named families.

    `paper` follows Hu et al. 2023 where the text is explicit, but with ControlNet's Pose Guider: the text's four
    convolutions of stride 2 make half the latent's size (docs/training.md). `moore` is the PyTorch implementation
    Moore-AnimateAnyone bit for bit (its sampling betas differ from its training's), `moore-fixed` mends that and its
    closed loop, `musepose` and `novita` are MusePose (every second frame of a 30 fps video, windows of 48) and
    novitalabs/AnimateAnyone (Moore's numerics, a smaller Pose Guider, no face). `tiny` is the paper's method at a size
    that two CPU cores train, and `tiny-clip-only`, `tiny-controlnet`, `tiny-no-pose` the paper's ablations of it.
    `tiny-warp`, the model that ships with the package, also sees the reference warped into every pose; `paper-warp` is
    that at Stable Diffusion's size, which predicts x0, too. Nobody has trained it.
    """
    sd15 = ModelConfig.sd15()
    epsilon = ScheduleConfig(zero_terminal_snr=False, prediction="epsilon", timestep_spacing="leading")
    linear = ScheduleConfig(beta_schedule="linear")
    moore_frames = FrameConfig(512, 784, pose_style="moore")
    moore = SamplingConfig(steps=30, closed_loop=True, blend="flat")
    musepose_frames = FrameConfig(768, 768, fps=15.0, pose_style="musepose")
    musepose = SamplingConfig(steps=20, window=48, overlap=4, blend="flat")
    long = dataclasses.replace(sd15, unet=UNetConfig(motion_max_length=128))
    warp = dataclasses.replace(sd15, unet=dataclasses.replace(sd15.unet, appearance="warp"))
    small_guider = dataclasses.replace(sd15, pose_guider=PoseGuiderConfig(block_out_channels=(16, 32, 64, 128)))
    novita_frames = FrameConfig(512, 784, clip_resize="pad")
    families = [
        Preset("paper", sd15, epsilon, FrameConfig(), SamplingConfig()),
        Preset("moore", sd15, linear, moore_frames, moore),
        Preset("moore-fixed", sd15, ScheduleConfig(), moore_frames, dataclasses.replace(moore, closed_loop=False)),
        Preset("musepose", long, ScheduleConfig(), musepose_frames, musepose),
        Preset("novita", small_guider, linear, novita_frames, moore),
        _tiny("tiny"),
        _tiny("tiny-clip-only", reference="none"),
        _tiny("tiny-controlnet", reference="addition"),
        _tiny("tiny-no-pose", pose_style="none"),
        _tiny("tiny-warp", appearance="warp"),
        Preset("paper-warp", warp, ScheduleConfig(prediction="x0"), FrameConfig(), SamplingConfig()),
    ]
    return {family.name: family for family in families}


def _tiny(
    name: str,
    reference: ReferenceUse = "attention",
    pose_style: PoseStyle = "tiny",
    appearance: Appearance = "none",
) -> Preset:
    model = ModelConfig.tiny()
    unet = dataclasses.replace(model.unet, reference=reference, appearance=appearance)
    return Preset(
        name,
        dataclasses.replace(model, unet=unet),
        ScheduleConfig(prediction="x0"),
        FrameConfig(96, 128, fps=10.0, pose_style=pose_style),
        SamplingConfig(steps=2, guidance=1.0, window=16, overlap=4, shared_noise=True, deflicker=6.0),
    )


def find_preset(name: str) -> Preset:
    """
    Raises:
        UserError: there is none of that name.
    """
    if name not in presets():
        raise UserError(f"--preset {name!r}: choose one of {', '.join(presets())}")
    return presets()[name]


def speeds(sampling: SamplingConfig) -> dict[Speed, dict[str, Any]]:
    """The fields of a family's sampling that `--speed` replaces. docs/speed.md has the loss of quality of each."""
    return {
        "exact": {},
        "fast": {"deepcache_interval": 2},
        "fastest": {"deepcache_interval": 2, "sampler": "unipc", "steps": max(sampling.steps // 2, 1)},
    }


def composes(preset: Preset) -> bool:
    """Whether results are composed when nothing else is asked for: those of the small model that ships with the
    package, whose own pictures are too small to show a face (docs/sampling.md)."""
    return preset.name in ("tiny", "tiny-warp")


def preset_of(config: TrainConfig) -> Preset:
    """A run's preset with the fields that its options replace, and with a student's few steps where one is trained.

    Raises:
        UserError: there is none of that name.
    """
    return student_of(starting_preset(config)) if config.stage == "distill" else starting_preset(config)


def student_of(teacher: Preset) -> Preset:
    """The preset of a student that is distilled from a model: four DDIM steps without guidance, the first at the very
    last timestep."""
    return dataclasses.replace(
        teacher,
        schedule=dataclasses.replace(teacher.schedule, timestep_spacing="trailing"),
        sampling=dataclasses.replace(teacher.sampling, steps=4, guidance=1.0, sampler="ddim"),
    )


def starting_preset(config: TrainConfig) -> Preset:
    """`preset_of` before anything is distilled: the teacher's.

    Raises:
        UserError: there is none of that name.
    """
    preset = find_preset(config.preset) if isinstance(config.preset, str) else config.preset
    width, height = config.size or (preset.frames.width, preset.frames.height)
    schedule = {"prediction": config.prediction, "zero_terminal_snr": config.zero_terminal_snr}
    schedule = {name: value for name, value in schedule.items() if value is not None}
    return dataclasses.replace(
        preset,
        frames=dataclasses.replace(preset.frames, width=width, height=height),
        schedule=dataclasses.replace(preset.schedule, **schedule),
    )


def preset_from_dict(values: Any) -> Preset:
    """The inverse of `config.to_dict` for a `Preset`, also of one stored by an earlier version: missing fields take
    their defaults.

    Raises:
        ValueError: a field that is unknown, missing, of another type or out of its range: the message names it.
    """
    preset = _build(Preset, current_preset(values), "")
    if found := problem(preset):
        path, value, rule = found
        raise ValueError(f"{path} is {value!r:.80} and must be {rule}")
    return preset


def _build(cls: type, fields: Any, path: str) -> Any:
    """A dataclass from its fields; `path` is its own within the preset, for messages."""
    if not isinstance(fields, dict):
        raise ValueError(f"{path or 'preset'} is no group of fields")
    hints = typing.get_type_hints(cls)
    if unknown := [name for name in fields if name not in hints]:
        raise ValueError(f"{path}{unknown[0]!r:.80} is unknown")
    built = {}
    for name, value in fields.items():
        if dataclasses.is_dataclass(hints[name]):
            built[name] = _build(typing.cast(type, hints[name]), value, f"{path}{name}.")
            continue
        built[name] = tuple(value) if isinstance(value, list) else value
        if rule := field_problem(name, built[name], hints[name]):
            raise ValueError(f"{path}{name} is {value!r:.80} and must be {rule}")
    try:
        return cls(**built)
    except TypeError:
        raise ValueError(f"{path or 'preset'} is incomplete") from None
