"""The Fréchet distance between two sets of features: FVD on videos, FID-VID-like figures on frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "_ dimensions"]


def frechet_distance(a: Features, b: Features) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), S the covariances (Heusel et al. 2017).

    With S = R'R from a QR decomposition of the centered features, the trace of the root is the sum of the singular
    values of R_a R_b', which is exact with fewer samples than dimensions and never complex. It is computed in float64,
    as the terms cancel. The distance of few samples is biased upwards, by the same amount for every method compared on
    the same clips.

    Raises:
        ValueError: fewer than two samples.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least two samples, not {len(a)} and {len(b)}")
    mean_a, root_a = _moments(a)
    mean_b, root_b = _moments(b)
    trace = np.square(root_a).sum() + np.square(root_b).sum()
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(max(np.square(mean_a - mean_b).sum() + trace - 2 * cross, 0.0))


def frechet_distance_of_clips(a: Sequence[Features], b: Sequence[Features]) -> tuple[float, float]:
    """The distance between the features of all clips together, and its standard error.

    The error is a jackknife estimate (leaving out one clip at a time): a bootstrap repeats clips, which makes
    covariances too small. NaN with too few clips.

    Args:
        a, b: the features of every clip, [samples, dimensions] each; both of the same number of clips.
    """
    all_features = np.concatenate(list(a)), np.concatenate(list(b))
    if min(map(len, all_features)) < 2:
        return np.nan, np.nan
    without = []
    for left_out in range(len(a)):
        rest = [[x for i, x in enumerate(clips) if i != left_out] for clips in (a, b)]
        if not rest[0] or min(sum(map(len, clips)) for clips in rest) < 2:
            return frechet_distance(*all_features), np.nan
        without.append(frechet_distance(*(np.concatenate(clips) for clips in rest)))
    count = len(without)
    return frechet_distance(*all_features), float(np.sqrt((count - 1) * np.var(without)))


def _moments(features: Features) -> tuple[Float[np.ndarray, " dimensions"], Float[np.ndarray, "_ dimensions"]]:
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    root = np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
    return mean, np.asarray(root)
