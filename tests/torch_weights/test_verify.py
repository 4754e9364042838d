"""`verify`: a family's files in PyTorch and the checkpoint made of them give the same; a changed weight shows."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.checkpoints import checkpoint
from animate_jax.errors import UserError
from animate_jax.torch_weights.families import find_files
from animate_jax.torch_weights.importing import import_checkpoint
from animate_jax.torch_weights.verify import verify

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


def test_every_part_equals_pytorch(moore_directory, small, tmp_path):
    files = find_files(moore_directory, "moore")
    import_checkpoint(files, tmp_path / "ckpt", small)
    worst = verify(tmp_path / "ckpt", files)
    assert worst.keys() == files.keys()
    assert {part: error for part, error in worst.items() if not error < 1e-5} == {}


def test_a_changed_weight_shows(moore_directory, torch_parts, small, tmp_path):
    """One weight of each part, the least likely to matter: a key projection where there is one."""
    files = find_files(moore_directory, "moore")
    import_checkpoint(files, tmp_path / "ckpt", small)
    params, preset = checkpoint.load(tmp_path / "ckpt")
    changes = {
        "motion_module": "denoising_unet.up_blocks.1.motion_modules.2.temporal_transformer.transformer_blocks.0"
        ".attention_blocks.1.to_k.kernel",
        "reference_unet": "reference_unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.kernel",
        "pose_guider": "pose_guider.blocks.0.bias",
        "vae": "vae.encoder.mid_block.attentions.0.to_k.kernel",
    }
    for path in changes.values():
        params[path] = jnp.flip(params[path], 0)
    checkpoint.save(tmp_path / "changed", params, preset)
    worst = verify(tmp_path / "changed", {part: files[part] for part in changes})
    assert all(error > 1e-4 for error in worst.values()), worst


def test_what_cannot_be_verified_is_one_line(moore_directory, small, tmp_path):
    files = find_files(moore_directory, "moore")
    import_checkpoint({"vae": files["vae"]}, tmp_path / "ckpt", small)
    with pytest.raises(UserError, match="lacks pose_guider"):
        verify(tmp_path / "ckpt", {"pose_guider": files["pose_guider"]})
    torch.save(
        {"first_stage_model.decoder.mid.block_1.conv1.weight": torch.from_numpy(np.ones(1))}
        | {f"model.diffusion_model.{n}": torch.ones(1) for n in range(2)},
        tmp_path / "single.ckpt",
    )
    with pytest.raises(UserError, match="verify reads diffusers' or AnimateDiff's layout"):
        verify(tmp_path / "ckpt", {"vae": tmp_path / "single.ckpt"})
