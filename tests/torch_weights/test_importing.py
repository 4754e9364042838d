"""Families of files go in and come out again, bit for bit; parts may come one by one."""

import dataclasses
import json
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from animate_jax.checkpoints import batches, checkpoint
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model
from animate_jax.torch_weights.exporting import export_checkpoint
from animate_jax.torch_weights.families import find_files
from animate_jax.torch_weights.importing import import_checkpoint
from animate_jax.torch_weights.key_layouts import animatediff_to_adapter

pytestmark = pytest.mark.compiles


def same(ours, theirs, tables=0.0):
    """Bit for bit; position tables are computed anew, and may differ in the last bit."""
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        if key.endswith("pos_encoder.pe"):
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=tables)
        else:
            assert torch.equal(ours[key], tensor), key


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_moore_in_and_out(moore_directory, torch_parts, small, tmp_path, form):
    reports, missing = import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    assert missing == []
    for report in reports:
        assert report.keys == len(torch_parts[report.part]) == report.used + sum(report.ignored.values())
    export_checkpoint(tmp_path / "ckpt", "moore", tmp_path / "out", form)
    for part in ("denoising_unet", "reference_unet", "motion_module", "pose_guider"):
        same(load(tmp_path / "out" / f"{part}.{form}"), torch_parts[part])
    same(load(tmp_path / "out/sd-vae-ft-mse/diffusion_pytorch_model.safetensors"), torch_parts["vae"])
    same(load(tmp_path / "out/image_encoder/model.safetensors"), torch_parts["image_encoder"])
    # and what came out goes in again
    import_checkpoint(find_files(tmp_path / "out", "moore"), tmp_path / "again", small)
    first, second = (checkpoint.load(tmp_path / name) for name in ("ckpt", "again"))
    assert first[1] == second[1] == small
    for path, array in first[0].items():
        np.testing.assert_array_equal(array, second[0][path], err_msg=path)


def test_parts_come_one_by_one(moore_directory, small, tmp_path):
    files = find_files(moore_directory, "moore")
    late = {part: files.pop(part) for part in ("vae", "image_encoder")}
    _, missing = import_checkpoint(files, tmp_path / "ckpt", small)
    assert missing == ["image_encoder", "vae"]
    with pytest.raises(UserError, match=r"lacks image_encoder, vae: add it with .*--image-encoder FILE --vae FILE"):
        checkpoint.load(tmp_path / "ckpt")
    assert import_checkpoint({"vae": late["vae"]}, tmp_path / "ckpt", small)[1] == ["image_encoder"]
    assert import_checkpoint({"image_encoder": late["image_encoder"]}, tmp_path / "ckpt", small)[1] == []
    import_checkpoint(files | late, tmp_path / "at once", small)
    parts, whole = (checkpoint.load(tmp_path / name)[0] for name in ("ckpt", "at once"))
    assert all(np.array_equal(parts[path], whole[path]) for path in whole)
    # a part given again replaces the old one
    other = {key: tensor + 1 for key, tensor in torch.load(files["pose_guider"], weights_only=True).items()}
    torch.save(other, tmp_path / "other.pth")
    import_checkpoint({"pose_guider": tmp_path / "other.pth"}, tmp_path / "ckpt", small)
    changed = checkpoint.load(tmp_path / "ckpt")[0]
    assert {path.partition(".")[0] for path in whole if not np.array_equal(changed[path], whole[path])} == {
        "pose_guider"
    }


def test_no_path_of_the_machine_remains(moore_directory, small, tmp_path):
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    checkpoint.save(tmp_path / "saved", *checkpoint.load(tmp_path / "ckpt"))
    for file in [*(tmp_path / "ckpt").rglob("*"), *(tmp_path / "saved").rglob("*")]:
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file


def test_stable_diffusion_unet_is_both_unets(torch_parts, small, tmp_path):
    torch.save({"state_dict": torch_parts["denoising_unet"]}, tmp_path / "unet.ckpt")
    reports, missing = import_checkpoint(
        dict.fromkeys(("denoising_unet", "reference_unet"), tmp_path / "unet.ckpt"), tmp_path / "ckpt", small
    )
    assert sorted(missing) == ["image_encoder", "motion_module", "pose_guider", "vae"]
    assert reports[1].ignored == {"output convolution, which ReferenceNet has not": 4}
    export_checkpoint(tmp_path / "ckpt", "sd15", tmp_path / "out")
    same(load(tmp_path / "out/unet/diffusion_pytorch_model.safetensors"), torch_parts["denoising_unet"])


def test_half_precision_in_flat_buffers(torch_parts, small, tmp_path):
    """MusePose's files: fp16 tensors that are windows on one buffer of everything, saved whole with each part."""
    states = {
        part: {key: tensor.half() for key, tensor in torch_parts[part].items()}
        for part in ("pose_guider", "motion_module")
    }
    flat = torch.cat([tensor.flatten() for state in states.values() for tensor in state.values()])
    start = 0
    for part, state in states.items():
        windows = {}
        for key, tensor in state.items():
            windows[key] = flat[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
        torch.save(windows, tmp_path / f"{part}.pth")
        assert (tmp_path / f"{part}.pth").stat().st_size > flat.nbytes  # the whole buffer
    import_checkpoint(find_files(tmp_path, "musepose"), tmp_path / "ckpt", small)
    export_checkpoint(tmp_path / "ckpt", "musepose", tmp_path / "out")
    for part, state in states.items():
        same(load(tmp_path / f"out/{part}.pth"), state, tables=1e-3)


def test_dtype_on_request(moore_directory, torch_parts, small, tmp_path):
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small, jnp.bfloat16)
    assert {leaf.dtype for leaf in checkpoint.stored_arrays(tmp_path / "ckpt").values()} == {jnp.dtype(jnp.bfloat16)}
    export_checkpoint(tmp_path / "ckpt", "moore", tmp_path / "out")
    same(
        load(tmp_path / "out/pose_guider.pth"),
        {key: tensor.bfloat16() for key, tensor in torch_parts["pose_guider"].items()},
    )


@pytest.mark.parametrize(
    ("mid", "length", "version", "wrapped"),
    [(True, 32, "v2", False), (False, 24, "v1", True), (False, 32, "v3", False), (True, 128, "v2", True)],
)
def test_motion_modules(small, motion_state, tmp_path, mid, length, version, wrapped):
    unet = dataclasses.replace(small.model.unet, motion_mid_block=mid, motion_max_length=length)
    made_for = dataclasses.replace(small, model=dataclasses.replace(small.model, unet=unet))
    state = motion_state(made_for)
    if wrapped:
        saved = {"epoch": 1, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    else:
        saved = state
    torch.save(saved, tmp_path / "mm.ckpt")
    reports, _ = import_checkpoint({"motion_module": tmp_path / "mm.ckpt"}, tmp_path / "ckpt", small)
    assert version in reports[0].kind
    assert reports[0].ignored == {"tables computed here": 2 * sum(key.endswith("proj_in.weight") for key in state)}
    model = checkpoint.read_preset(tmp_path / "ckpt").model.unet
    assert (model.motion_mid_block, model.motion_max_length) == (mid, length)
    assert model.pool_norm_over_frames == (version == "v1")
    export_checkpoint(tmp_path / "ckpt", "moore", tmp_path / "out")
    same(load(tmp_path / "out/motion_module.pth"), state)


def test_motion_adapter_equals_the_original(small, motion_state, tmp_path):
    state = motion_state(small)
    adapter = {
        animatediff_to_adapter(key): tensor
        for key, tensor in state.items()
        if ".attention_blocks.1.pos_encoder" not in key
    }
    adapter = {key.replace("attn1.pos_encoder", "pos_embed"): tensor.contiguous() for key, tensor in adapter.items()}
    expected = convert_animatediff_checkpoint_to_diffusers(state)
    assert expected.keys() == {key for key in adapter if not key.endswith(".pe")}
    save_file(adapter, tmp_path / "adapter.safetensors")
    torch.save(state, tmp_path / "mm.ckpt")
    for name in ("adapter.safetensors", "mm.ckpt"):
        import_checkpoint({"motion_module": tmp_path / name}, tmp_path / f"ckpt of {name}", small)
    export_checkpoint(tmp_path / "ckpt of adapter.safetensors", "moore", tmp_path / "out")
    same(load(tmp_path / "out/motion_module.pth"), state)


def test_shards_with_an_index(torch_parts, small, tmp_path):
    keys = list(torch_parts["vae"])
    halves = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, half in halves.items():
        save_file({key: torch_parts["vae"][key] for key in half}, tmp_path / name)
    index = {"weight_map": {key: name for name, half in halves.items() for key in half}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    import_checkpoint({"vae": tmp_path}, tmp_path / "ckpt", small)
    export_checkpoint(tmp_path / "ckpt", "moore", tmp_path / "out")
    same(load(tmp_path / "out/sd-vae-ft-mse/diffusion_pytorch_model.safetensors"), torch_parts["vae"])


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import SMALL
from animate_jax.checkpoints import batches
from animate_jax.torch_weights import families, importing
batches.BATCH_BYTES = 20_000
group = importing.group_by_bytes
def dying(sizes):
    for number, batch in enumerate(group(sizes)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
importing.group_by_bytes = dying
importing.import_checkpoint(families.find_files(sys.argv[2], "moore"), sys.argv[3], SMALL)
"""


def test_a_killed_import_leaves_no_checkpoint(moore_directory, small, tmp_path):
    target = tmp_path / "ckpt"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(pathlib.Path(__file__).parents[1]), moore_directory, target],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(target)
    import_checkpoint(find_files(moore_directory, "moore"), target, small)  # what the other left is cleared away
    checkpoint.load(target)
    assert {child.name for child in tmp_path.iterdir()} == {"pretrained_weights", "ckpt"}


def test_an_import_that_fails_leaves_the_old_checkpoint(moore_directory, small, tmp_path, monkeypatch):
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    vae = moore_directory / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin"
    monkeypatch.setattr(batches, "BATCH_BYTES", 20_000)
    monkeypatch.setattr("orbax.checkpoint.v1.partial.finalize", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_checkpoint({"vae": vae}, tmp_path / "ckpt", small)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "ckpt")[1] == small
    assert {child.name for child in tmp_path.iterdir()} == {"pretrained_weights", "ckpt"}


def test_sharded_restore(moore_directory, small, tmp_path):
    """The checkpoint restores into any sharding: here each kernel over the first axis of a mesh."""
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    expected = abstract_model(small.model)[1]
    params, _ = checkpoint.load(tmp_path / "ckpt", shardings=dict.fromkeys(expected, layout))
    assert all(array.sharding == layout for array in params.values())


def test_nothing_of_the_family(tmp_path):
    with pytest.raises(UserError, match=r"nothing of moore in it: expected denoising_unet\.pth"):
        find_files(tmp_path, "moore")
    with pytest.raises(UserError, match="no such directory"):
        find_files(tmp_path / "missing", "moore")


def test_export_never_replaces(moore_directory, small, tmp_path):
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    with pytest.raises(UserError, match="is there already"):
        export_checkpoint(tmp_path / "ckpt", "moore", moore_directory)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_an_export_onto_a_full_disk(form, moore_directory, small, tmp_path):
    import_checkpoint(find_files(moore_directory, "moore"), tmp_path / "ckpt", small)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"out: cannot be written \(file too large\): make room$"):
            export_checkpoint(tmp_path / "ckpt", "moore", tmp_path / "out", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {child.name for child in tmp_path.iterdir()} == {"pretrained_weights", "ckpt"}


def test_without_torch(torch_parts, small, tmp_path):
    """Neither .safetensors nor today's .pth needs torch."""
    save_file(torch_parts["vae"], tmp_path / "vae.safetensors")
    torch.save(torch_parts["pose_guider"], tmp_path / "pose_guider.pth")
    code = "import sys; sys.modules['torch'] = None; import numpy as np; "
    code += "from animate_jax.torch_weights.read import read_state_dict; "
    code += "print([len([np.asarray(t) for t in read_state_dict(path).values()]) for path in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "vae.safetensors", tmp_path / "pose_guider.pth"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str([len(torch_parts[part]) for part in ("vae", "pose_guider")]), done.stderr
