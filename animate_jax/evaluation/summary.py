"""Aggregates the scores of clips to figures of a method, with 95 % confidence intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from animate_jax.evaluation import frechet
from animate_jax.evaluation.scores import ClipScores

RESAMPLES = 2000

# Feature of a clip -> figure of a method.
DISTANCES = {"fvd": "fvd", "box_fvd": "box_fvd", "frames": "frame_distance", "box_frames": "box_frame_distance"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval; NaN if there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan


def summarize(
    methods: dict[str, Sequence[ClipScores]], truth: Sequence[ClipScores], references: Sequence[ClipScores]
) -> dict[str, dict[str, Estimate]]:
    """The figures of every method and, as far as they apply, of the true videos under "true video".

    Means over clips have percentile bootstrap intervals over clips (with the same resamples for every method), Fréchet
    distances between all clips have jackknife intervals. `pck_ratio_...` is PCK divided by that of the true videos;
    `identity` the cosine similarity between the features of the person and of the reference, after subtracting the mean
    over the data set; `identity_first` the share of clips whose own reference is the most similar of all.

    Args:
        methods: name -> its clips, in the same order for all.
        truth: the true videos, measured against themselves.
        references: the reference images, as videos of one frame.
    """
    out = {}
    for name, clips in {**methods, "true video": truth}.items():
        estimates = {}
        for score in clips[0].scores:
            estimates[score] = bootstrap([clip.scores[score] for clip in clips])
        for percent in (10, 20):
            score = f"pck_{percent}"
            estimates[f"pck_ratio_{percent}"] = bootstrap(
                [clip.scores[score] for clip in clips], [clip.scores[score] for clip in truth]
            )
        for feature, figure in DISTANCES.items():
            if name != "true video" and feature in clips[0].features:
                pairs = [[clip.features[feature] for clip in side] for side in (clips, truth)]
                value, error = frechet.frechet_distance_of_clips(*pairs)
                estimates[figure] = Estimate(value, max(value - 1.96 * error, 0.0), value + 1.96 * error)
        if "person" in clips[0].features and len(clips) > 1:
            people = [np.concatenate([clip.features["person"] for clip in side]) for side in (clips, references, truth)]
            similar, first = identity(*people)
            estimates["identity"], estimates["identity_first"] = bootstrap(similar), bootstrap(first)
        out[name] = estimates
    return out


def identity(
    people: Float[np.ndarray, "clips dimensions"],
    references: Float[np.ndarray, "clips dimensions"],
    truths: Float[np.ndarray, "clips dimensions"],
) -> tuple[Float[np.ndarray, " clips"], Float[np.ndarray, " clips"]]:
    """Cosine similarity of every clip's person to its own reference, and whether no other reference is closer.

    The mean over references and true videos is subtracted first, as all people's features are similar in direction.
    """
    center = np.concatenate([references, truths]).mean(0)
    people, references = (x - center for x in (people, references))
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (people, references)]
    similar = (people / norms[0]) @ (references / norms[1]).T
    return np.diag(similar), (similar.argmax(1) == np.arange(len(people))).astype(float)


def bootstrap(
    values: Sequence[float] | Float[np.ndarray, " clips"],
    divisor: Sequence[float] | Float[np.ndarray, " clips"] | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean over clips (divided by that of `divisor`, paired) and its percentile bootstrap interval.

    Clips without a value (NaN) are left out.
    """
    columns = np.array([values, np.ones(len(values)) if divisor is None else divisor], np.float64)
    columns = columns[:, np.isfinite(columns).all(0)]
    count = columns.shape[1]
    if not count or not columns[1].sum():
        return Estimate(np.nan)
    value = float(columns[0].mean() / columns[1].mean())
    if count == 1:
        return Estimate(value)
    drawn = columns[:, np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))].mean(-1)
    means = drawn[0, drawn[1] > 0] / drawn[1, drawn[1] > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
