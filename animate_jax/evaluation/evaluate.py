"""Evaluates a model, or videos made by any model, on clips with known true frames.

    from animate_jax import Pipeline
    from animate_jax.evaluation.clips import open_clips
    from animate_jax.evaluation.evaluate import evaluate
    from animate_jax.evaluation.scores import Networks

    evaluation = evaluate(open_clips("mocap_people:test_both", clips=4), "report", Pipeline.from_pretrained("tiny"))
    evaluation.estimates["result"]["box_psnr"]

Without `networks=Networks.load()`, LPIPS and FVD are not measured. docs/evaluation.md explains the figures.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from animate_jax.config import AnimationConfig
from animate_jax.evaluation.clips import EvalClip
from animate_jax.evaluation.features import person_features
from animate_jax.evaluation.image_quality import person_box
from animate_jax.evaluation.protocols import Protocol
from animate_jax.evaluation.report import (
    AUTOENCODER,
    REPEATED,
    RESULT,
    SHEET_COLUMNS,
    WARPED,
    Frames,
    Report,
    sheet_row,
    worst_median_best,
)
from animate_jax.evaluation.scores import ClipScores, Networks, measure
from animate_jax.evaluation.summary import Estimate, summarize
from animate_jax.pose.detect import segment
from animate_jax.pose.draw import draw
from animate_jax.pose.warp import warp
from animate_jax.sampling.pipeline import Pipeline


class Evaluation(NamedTuple):
    estimates: dict[str, dict[str, Estimate]]  # method -> figure -> its mean over clips and 95 % interval
    clips: dict[str, dict[str, ClipScores]]  # method -> clip -> scores and features
    markdown: str  # the report's tables


def evaluate(
    clips: Iterable[EvalClip],
    output: str | os.PathLike,
    pipeline: Pipeline | None = None,
    config: AnimationConfig | None = None,
    *,
    networks: Networks | None = None,
    protocol: Protocol | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Animates every clip's reference, measures the result and baselines that need no model, and writes the report.

    Args:
        clips: with a pipeline, they must have the size of `config` (`open_clips(..., size=)`).
        output: folder of the report; an older report in it is replaced.
        pipeline: None measures the clips' own `result`.
        config: sampling options; None: those of the pipeline's preset.
        networks: for LPIPS, FVD and identity; figures of missing ones are left out.
        protocol: a benchmark of the paper, whose published figures the report includes.
        settings: further settings that the report lists.
        seed: of the pipeline's noise.

    Raises:
        UserError: a clip cannot be used, the report cannot be written, or `output` contains something else.
    """
    networks = networks or Networks()
    if pipeline is not None:
        config = config or pipeline.animation_config()
    scores: dict[str, dict[str, ClipScores]] = {}
    truths, references, sheet = [], [], []
    with Report(output) as report:
        for clip in tqdm(clips, desc="clips", unit="clip", dynamic_ncols=True):
            height, width = clip.reference.shape[:2]
            poses = draw(clip.keypoints, height, width, config.pose_style if config else "paper")
            videos = videos_of(clip, poses, pipeline, config, seed)
            score = functools.partial(
                measure, truth=clip.frames, masks=clip.masks[1:], driven=clip.keypoints[1:], networks=networks
            )
            for method, video in videos.items():
                scores.setdefault(method, {})[clip.name] = score(video)
            truths.append(score(clip.frames))
            references.append(reference_scores(clip, networks))
            sheet.append(sheet_row(videos[RESULT], poses[1:], clip.frames, clip.reference))
            columns = {"reference": videos[REPEATED], "pose": poses[1:], "result": videos[RESULT]}
            report.add_video(clip.name, clip.fps, {**columns, "truth": clip.frames})

        estimates = summarize({method: list(row.values()) for method, row in scores.items()}, truths, references)
        text = report.add_estimates(estimates, scores, {"clips": len(truths), **(settings or {})}, protocol)
        figure = "box_psnr" if networks.vgg is None else "box_lpips"
        order = worst_median_best([s.scores[figure] for s in scores[RESULT].values()], figure == "box_psnr")
        rows = {name: [sheet[index] for index in indices] for name, indices in order.items()}
        report.add_sheet(rows, [figure.replace("_", " "), *SHEET_COLUMNS])
    return Evaluation(estimates, scores, text)


def videos_of(
    clip: EvalClip,
    poses: UInt8[np.ndarray, "_ height width 3"],
    pipeline: Pipeline | None,
    config: AnimationConfig | None,
    seed: int,
) -> dict[str, Frames]:
    """Method -> its video of the clip. `poses` are the pose images, the reference's first."""
    reference_keypoints, driven = clip.keypoints[0], clip.keypoints[1:]
    warped = warp(clip.reference, segment(clip.reference, reference_keypoints), reference_keypoints, driven)
    videos = {REPEATED: np.broadcast_to(clip.reference, clip.frames.shape), WARPED: warped[:][0]}
    if pipeline is None or config is None:
        if clip.result is None:
            raise ValueError(f"{clip.name}: without a pipeline, clips must have results")
        return videos | {RESULT: clip.result}
    videos[AUTOENCODER] = pipeline.decode(pipeline.encode(clip.frames))
    conditioning = pipeline.precompute_conditioning(clip.reference, poses[0], config)
    latents = pipeline.sample(conditioning, poses[1:], config, seed, progress=False, warped=warped)
    return videos | {RESULT: pipeline.decode(latents, warped, config.deflicker)}


def reference_scores(clip: EvalClip, networks: Networks) -> ClipScores:
    """The features of the person in the reference image."""
    if networks.vgg is None:
        return ClipScores({}, {})
    mask = clip.masks[:1]
    return ClipScores({}, {"person": person_features(networks.vgg, clip.reference[None], mask, person_box(mask))})
