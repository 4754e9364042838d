"""What an option's type lists is what its registry has, and registries that belong together agree."""

from typing import get_args

import pytest

from animate_jax.config import FamilyName, PoseStyle, PublishedName, SamplerName
from animate_jax.data.build.public_datasets import PUBLIC_DATASETS
from animate_jax.diffusion.samplers import SAMPLERS
from animate_jax.evaluation.protocols import PROTOCOLS
from animate_jax.pose.draw import STYLES
from animate_jax.presets import presets
from animate_jax.torch_weights.families import FAMILIES
from animate_jax.torch_weights.published import PUBLISHED


@pytest.mark.parametrize(
    "names, registry",
    [(SamplerName, SAMPLERS), (PoseStyle, STYLES), (FamilyName, FAMILIES), (PublishedName, PUBLISHED)],
)
def test_every_name_has_its_row(names, registry):
    assert set(registry) == set(get_args(names))


@pytest.mark.parametrize("registry", [FAMILIES, PUBLISHED])
def test_presets_of_weights_exist(registry):
    assert {row.preset for row in registry.values()} <= set(presets())


def test_benchmarks_are_the_public_data_sets():
    assert {name: protocol.clips for name, protocol in PROTOCOLS.items()} == {
        name: data_set.counts["test"] for name, data_set in PUBLIC_DATASETS.items()
    }
