"""The published weights of `animate-jax weights fetch`: where they lie on the hub, how large, under which license.

Nothing here was downloaded when it was written. Revisions, sizes and SHA-256 are those that the hub's pages of these
repositories showed; sizes of three digits are as they were shown there, and a file without SHA-256 had none that could
be read on a page of its own repository. A revision is a commit, so what it names cannot change.

New weights are a row of `PUBLISHED`, and their name in `config.PublishedName`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from animate_jax.config import PublishedName


@dataclasses.dataclass(frozen=True)
class Repository:
    """One on the hub, at one commit."""

    name: str  # owner/repository
    revision: str
    license: str  # as the hub or its authors say it


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    repository: Repository
    path: str
    bytes: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint's files."""

    preset: str
    bytes: int  # of the checkpoint made of them: parameters x 4 bytes, MusePose's own four parts x 2
    files: Mapping[str, PublishedFile]  # part -> file


_VAE = PublishedFile(
    Repository("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493", "MIT"),
    "diffusion_pytorch_model.safetensors",
    334_643_276,
    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
)
# Its owner is called "lambda" by now; the hub forwards the old name.
_IMAGE_ENCODER = PublishedFile(
    Repository(
        "lambdalabs/sd-image-variations-diffusers",
        "f0c29c067d5cf5ac9997bd75ea6cd0732383b4b5",
        "CreativeML Open RAIL-M (forbids some uses)",
    ),
    "image_encoder/pytorch_model.bin",
    1_215_993_967,
    "89d2aa29b5fdf64f3ad4f45fb4227ea98bc45156bbae673b85be1af7783dbabb",
)
# The mirror of runwayml/stable-diffusion-v1-5, which is gone.
_UNET = PublishedFile(
    Repository(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "CreativeML Open RAIL-M (forbids some uses)",
    ),
    "unet/diffusion_pytorch_model.safetensors",
    3_438_167_540,
    "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
)
_MOTION = PublishedFile(
    Repository("guoyww/animatediff", "fdfe36afa161e51b3e9c24022b0e368d59e7345e", "Apache-2.0"),
    "mm_sd_v15_v2.ckpt",
    1_817_888_431,
    "69ed0f5fef82b110aca51bcab73b21104242bc65d6ab4b8b2a2a94d31cad1bf0",
)
_MOORE = Repository(
    "patrolli/AnimateAnyone",
    "7fd8ff9dfb0e75c7b7fa2689e4795347b5996b9a",
    "Apache-2.0 (its authors: for academic research)",
)
_MUSEPOSE = Repository(
    "TMElyralab/MusePose",
    "f09907a7ea4d9675811035f96ce9b28b8451e6a0",
    "MusePose's own: NON-COMMERCIAL research only",
)
_NOVITA = Repository("novita-ai/AnimateAnyone", "0d0ae6960ec0484cacddcb6ba6d4fcc0e33f554b", "Apache-2.0")

_SD15 = {"denoising_unet": _UNET, "reference_unet": _UNET, "vae": _VAE, "image_encoder": _IMAGE_ENCODER}
PUBLISHED: dict[PublishedName, Published] = {
    "moore": Published(
        preset="moore",
        bytes=10_243_782_380,
        files={
            "denoising_unet": PublishedFile(_MOORE, "denoising_unet.pth", 3_440_000_000),
            "reference_unet": PublishedFile(_MOORE, "reference_unet.pth", 3_440_000_000),
            "motion_module": PublishedFile(
                _MOORE,
                "motion_module.pth",
                1_820_000_000,
                "0d11e01a281b39880da2efeea892215c1313e5713fca3d100a7fbb72ee312ef9",
            ),
            "pose_guider": PublishedFile(_MOORE, "pose_guider.pth", 4_350_000),
            "vae": _VAE,
            "image_encoder": _IMAGE_ENCODER,
        },
    ),
    "musepose": Published(
        preset="musepose",
        bytes=5_897_131_332,
        files={
            "denoising_unet": PublishedFile(
                _MUSEPOSE,
                "MusePose/denoising_unet.pth",
                3_402_758_813,
                "3851e59b6c6106219e5197730747e5c3f26a1582e807e08e2b23fa879c435b36",
            ),
            "reference_unet": PublishedFile(
                _MUSEPOSE,
                "MusePose/reference_unet.pth",
                3_440_402_647,
                "e80019162d586dac73e5e67e47c9d456c4a78292a127bb3de844ae47aff558c9",
            ),
            "motion_module": PublishedFile(
                _MUSEPOSE,
                "MusePose/motion_module.pth",
                916_202_377,
                "8427f8b660647834d6cbfcce7400ce7f48119c823ef6aad470a6d3a5b3720fd2",
            ),
            "pose_guider": PublishedFile(  # of 1.1 M parameters: a view of a buffer with all of them
                _MUSEPOSE,
                "MusePose/pose_guider.pth",
                3_402_614_286,
                "162c43ec616965e1df65ff818aec42acd0d699310e95939b74cbd70b56396234",
            ),
            "vae": _VAE,
            "image_encoder": _IMAGE_ENCODER,
        },
    ),
    "novita": Published(
        preset="novita",
        bytes=10_241_496_044,
        files={
            "denoising_unet": PublishedFile(
                _NOVITA,
                "denoising_unet.pth",
                3_438_374_752,
                "0158527e3a40405a5452c12d9a111c2a948386b47300771b5316750a8f14534e",
            ),
            "reference_unet": PublishedFile(
                _NOVITA,
                "reference_unet.pth",
                3_438_324_340,
                "e2e095fe571a296a1759bf682345ad0c2a833304fa90afa5b28fc10738197ab5",
            ),
            "motion_module": PublishedFile(
                _NOVITA,
                "motion_module.pth",
                1_820_000_000,
                "4d5d683c19d54c355eceacf35db8591d25c5f80433926535d38673199f6006ab",
            ),
            "pose_guider": PublishedFile(
                _NOVITA,
                "pose_guider.pth",
                2_065_454,
                "b4bf7505b63e28fc25e06412127acfd12ae8dcb01539ef70534cf2e4bb75d7ae",
            ),
            "vae": _VAE,
            "image_encoder": _IMAGE_ENCODER,
        },
    ),
    # Where training starts: stage 1, and stage 2 with AnimateDiff's temporal layers.
    "sd15": Published(preset="paper", bytes=8_426_599_340, files=_SD15),
    "animatediff": Published(preset="paper", bytes=10_239_436_460, files={**_SD15, "motion_module": _MOTION}),
}
