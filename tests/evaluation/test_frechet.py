"""The Fréchet distance against SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from animate_jax.evaluation.frechet import frechet_distance, frechet_distance_of_clips


def with_sqrtm(a, b):
    """The textbook form."""
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    return rng.normal(size=(50, 6)) @ mix, rng.normal(size=(40, 6)) @ mix.T + 0.3


def test_equals_scipy(features):
    assert frechet_distance(*features) == pytest.approx(with_sqrtm(*features), rel=1e-9)
    assert frechet_distance(*features) == pytest.approx(frechet_distance(*features[::-1]), rel=1e-9)


def test_fewer_samples_than_dimensions():
    """Covariances without full rank: in the space that the samples span, where SciPy's root exists, it is the same."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(300, 8)))[0].T
    a, b = rng.normal(size=(20, 8)), rng.normal(size=(12, 8)) * 2 + 1
    assert frechet_distance(a @ basis, b @ basis) == pytest.approx(with_sqrtm(a, b), rel=1e-9)


def test_known_values(features):
    a, _ = features
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 6)
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a.T)))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a[:1], a)


def test_clips_are_put_together(features):
    a, b = features
    clips = [a[:10], a[10:30], a[30:40]], [b[:10], b[10:25], b[25:40]]
    distance, error = frechet_distance_of_clips(*clips)
    assert distance == frechet_distance(a[:40], b)
    without = [
        frechet_distance(
            np.concatenate(clips[0][:i] + clips[0][i + 1 :]), np.concatenate(clips[1][:i] + clips[1][i + 1 :])
        )
        for i in range(3)
    ]
    assert error == pytest.approx(np.sqrt(2 / 3 * np.square(without - np.mean(without)).sum()))


def test_too_few_clips_have_no_distance_or_no_error(features):
    a, b = features
    assert np.isnan(frechet_distance_of_clips([a[:1]], [b[:1]])).all()
    distance, error = frechet_distance_of_clips([a], [b])
    assert distance == frechet_distance(a, b) and np.isnan(error)
