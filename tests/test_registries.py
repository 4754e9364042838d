"""What an option's type lists is what its registry has."""

from typing import get_args

from animate_jax.config import PoseStyle, SamplerName
from animate_jax.diffusion.samplers import SAMPLERS
from animate_jax.pose.draw import PARTS
from animate_jax.torch_weights.families import FAMILIES, FamilyName


def test_samplers():
    assert set(SAMPLERS) == set(get_args(SamplerName))


def test_pose_styles():
    assert set(PARTS) == set(get_args(PoseStyle))


def test_families_of_weights():
    assert set(FAMILIES) == set(get_args(FamilyName))
