import numpy as np
import pytest

from animate_jax.evaluation.frechet import frechet_distance
from animate_jax.evaluation.scores import ClipScores
from animate_jax.evaluation.summary import bootstrap, identity, summarize


def test_bootstrap_covers_the_mean():
    """Of 100 samples of 30 clips, about 95 intervals should hold the true mean."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(3, 1, 30)) for _ in range(100)]
    assert 88 <= sum(x.low < 3 < x.high for x in intervals) <= 99
    widths = [x.high - x.low for x in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(30), rel=0.1)


def test_bootstrap_of_few():
    assert bootstrap([2.0, np.nan]).value == 2 and np.isnan(bootstrap([2.0]).low)
    assert np.isnan(bootstrap([np.nan]).value)
    assert bootstrap([1.0, 1.0, 4.0]) == bootstrap([1.0, 1.0, 4.0])


def test_ratios_are_paired():
    truth = np.random.default_rng(0).uniform(0.2, 1, 20)
    half = bootstrap(truth / 2, truth)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap([1.0, 1.0, np.nan], [0.5, 1.0, 0.1]).value == pytest.approx(2 / 1.5)
    assert np.isnan(bootstrap([0.0, 0.0], [0.0, 0.0]).value)


def test_identity_tells_people_apart():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(6, 20))
    common = 100 * np.ones(20)  # what all pictures share must not make everybody alike

    def look(noise):
        return common + people + noise * rng.normal(size=people.shape)

    references, truths = look(0.05), look(0.05)
    similar, first = identity(look(0.05), references, truths)
    assert similar.min() > 0.95 and first.tolist() == [1] * 6
    similar, first = identity(look(0.05)[::-1], references, truths)
    assert similar.max() < 0.6 and first.sum() == 0


def test_summary_of_two_methods():
    rng = np.random.default_rng(0)

    def clips(shift, person):
        return [
            ClipScores(
                {"psnr": 20.0 + i + shift, "pck_10": 0.2, "pck_20": 0.4 + shift / 10},
                {"frames": rng.normal(shift, 1, (8, 3)), "person": np.eye(4)[[person(i)]]},
            )
            for i in range(4)
        ]

    truth, references = clips(0, lambda i: i), clips(0, lambda i: i)
    methods = {"good": clips(1, lambda i: i), "bad": clips(3, lambda i: 0)}
    got = summarize(methods, truth, references)
    assert list(got) == ["good", "bad", "true video"]
    assert got["good"]["psnr"].value == pytest.approx(22.5)
    assert 21 <= got["good"]["psnr"].low < 22.5 < got["good"]["psnr"].high <= 24
    assert got["bad"]["pck_ratio_20"].value == pytest.approx(0.7 / 0.4)
    distance = got["bad"]["frame_distance"]
    together = [np.concatenate([c.features["frames"] for c in side]) for side in (methods["bad"], truth)]
    assert distance.value == pytest.approx(frechet_distance(*together))
    assert distance.low < distance.value < distance.high
    assert got["good"]["frame_distance"].value < distance.value
    assert got["good"]["identity_first"].value == 1 and got["bad"]["identity_first"].value == 0.25
    assert "frame_distance" not in got["true video"] and got["true video"]["pck_ratio_10"].value == 1
