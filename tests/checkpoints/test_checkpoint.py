"""Sampling checkpoints: what is saved comes back, and what is not one is refused in one line."""

import dataclasses
import gc
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.atomic import MARKER
from animate_jax.checkpoints import checkpoint
from animate_jax.commands import doctor
from animate_jax.config import to_dict
from animate_jax.errors import UserError
from animate_jax.presets import presets
from animate_jax.torch_weights.fetching import BUNDLED

pytestmark = pytest.mark.compiles


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path in theirs:
        assert ours[path].dtype == theirs[path].dtype
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def refused(path, preset=None):
    """The one line that says why."""
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, preset)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.fixture
def copy(micro_checkpoint, tmp_path):
    """One's own checkpoint, to be damaged."""
    return shutil.copytree(micro_checkpoint, tmp_path / "copy")


def test_parameters_and_preset_come_back(micro, micro_params, micro_checkpoint):
    params, preset = checkpoint.load(micro_checkpoint)
    assert preset == micro
    assert_equal(params, micro_params)
    assert all(isinstance(array, jax.Array) for array in params.values())


def test_half_precision_halves_the_size_and_comes_back_in_any(micro, micro_params, micro_checkpoint, tmp_path):
    checkpoint.save(tmp_path / "half", micro_params, micro, jnp.bfloat16)
    rounded = {path: array.astype(jnp.bfloat16) for path, array in micro_params.items()}
    assert_equal(checkpoint.load(tmp_path / "half", dtype=jnp.bfloat16)[0], rounded)
    widened = {path: array.astype(jnp.float32) for path, array in rounded.items()}
    assert_equal(checkpoint.load(tmp_path / "half")[0], widened)


def test_numpy_arrays_are_saved_too(micro, micro_params, tmp_path):
    checkpoint.save(tmp_path / "new folder" / "numpy", jax.device_get(micro_params), micro)
    assert_equal(checkpoint.load(tmp_path / "new folder" / "numpy")[0], micro_params)


def test_a_preset_of_the_same_shapes_replaces_the_carried_one(micro, micro_checkpoint):
    other = dataclasses.replace(micro, name="other", schedule=dataclasses.replace(micro.schedule, prediction="v"))
    assert checkpoint.load(micro_checkpoint, other)[1] == other


def test_saving_again_replaces_the_whole_checkpoint(micro, micro_params, copy):
    fresh = {path: array + 1 for path, array in micro_params.items()}
    checkpoint.save(copy, fresh, micro)
    assert_equal(checkpoint.load(copy)[0], fresh)
    assert [child.name for child in copy.parent.iterdir()] == ["copy"]


def test_saving_that_fails_leaves_the_old_checkpoint(micro, micro_params, copy, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("orbax.checkpoint.v1.save_checkpointables", full)
    with pytest.raises(UserError, match=r"no space left on device\): make room"):
        checkpoint.save(copy, {path: array + 1 for path, array in micro_params.items()}, micro)
    assert_equal(checkpoint.load(copy)[0], micro_params)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_never_replaces_something_else(micro, micro_params, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="no checkpoint of animate_jax: choose another name"):
            checkpoint.save(path, micro_params, micro)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("marker", [True, False], ids=["marked", "older"])
@pytest.mark.parametrize("entry", ["README.md", "train/x", "params/ocdbt.process_0/notes", "data", "params/d/mine.txt"])
def test_what_else_is_in_a_checkpoint_stays(micro, micro_params, copy, entry, marker):
    """As in a run's checkpoint, which holds what training goes on from."""
    if not marker:
        (copy / MARKER).unlink()
    (copy / entry).parent.mkdir(exist_ok=True)
    (copy / entry).write_text("mine")
    before = files(copy)
    with pytest.raises(UserError, match=r"holds '.*', which is no part of a checkpoint: move it away"):
        checkpoint.save(copy, micro_params, micro)
    assert files(copy) == before


def test_what_is_beside_a_checkpoint_stays(micro, micro_params, copy):
    names = ("copy.saving_backup", "copy.replaced", "copy.saving", ".copy.partial_too")
    for name in names:
        copy.with_name(name).mkdir()
        (copy.with_name(name) / "precious").touch()
    checkpoint.save(copy, micro_params, micro)
    assert all((copy.with_name(name) / "precious").exists() for name in names)


@pytest.mark.parametrize("written", ["save", "write", "bundled"])
def test_checkpoints_from_before_there_were_markers_are_replaced(micro, micro_params, tmp_path, written):
    path = tmp_path / "old"
    if written == "bundled":
        shutil.copytree(BUNDLED, path)
    elif written == "save":
        checkpoint.save(path, micro_params, micro)
    else:
        checkpoint.save_batches(path, [jax.device_get(micro_params)], micro)
    (path / MARKER).unlink(missing_ok=True)
    checkpoint.save(path, micro_params, micro)
    assert_equal(checkpoint.load(path)[0], micro_params)


def test_through_a_link(micro, micro_params, copy):
    """The checkpoint is replaced; the link goes on leading to it."""
    link = copy.with_name("link")
    link.symlink_to(copy, target_is_directory=True)
    for add in (1, 2):
        checkpoint.save(link, {path: array + add for path, array in micro_params.items()}, micro)
        assert link.is_symlink() and sorted(child.name for child in copy.parent.iterdir()) == ["copy", "link"]
        assert_equal(checkpoint.load(copy)[0], {path: array + add for path, array in micro_params.items()})


@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_the_latest_of_a_run_is_found(inside, tmp_path):
    root = tmp_path / inside
    for step in ("900", "1000", "1100.orbax-checkpoint-tmp", "best", "2000"):
        (root / step).mkdir(parents=True)
    for step in ("900", "1000", "1100.orbax-checkpoint-tmp", "best"):  # 2000 has no params
        (root / step / "params").mkdir()
    assert checkpoint.find(tmp_path) == root / "1000"
    assert checkpoint.find(root / "900") == root / "900"


def test_no_checkpoint_there(tmp_path):
    assert "no such checkpoint" in refused(tmp_path / "missing")
    assert "holds no checkpoint" in refused(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"torch")
    assert "no such checkpoint: give the directory" in refused(file)


def test_a_folder_that_only_looks_like_a_checkpoint(tmp_path):
    (tmp_path / "params").mkdir()
    assert "take a whole checkpoint of animate_jax" in refused(tmp_path)


def test_another_shape(micro, micro_checkpoint):
    message = refused(micro_checkpoint, presets()["tiny"])
    assert "does not fit the model of preset 'tiny'" in message
    wider = dataclasses.replace(micro.model.unet, cross_attention_dim=16)
    encoder = dataclasses.replace(micro.model.image_encoder, projection_dim=16)
    model = dataclasses.replace(micro.model, unet=wider, image_encoder=encoder)
    message = refused(micro_checkpoint, dataclasses.replace(micro, model=model))
    assert "0 unknown" in message and "attn2.to_k.kernel" in message


def test_arrays_missing_or_unknown(micro, micro_params, tmp_path):
    params = dict(micro_params)
    params["vae.invented"] = params.pop("vae.quant_conv.bias")
    checkpoint.save(tmp_path / "odd", params, micro)
    message = refused(tmp_path / "odd")
    assert "1 arrays missing or of another shape, 1 unknown, first 'vae.quant_conv.bias'" in message


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "null", "{}", '{"custom_metadata": {"preset": {"name": "x", "model": 3}}}'],
    ids=["empty", "text", "list", "null", "no preset", "nonsense"],
)
def test_unreadable_presets(copy, text):
    (copy / "_CHECKPOINT_METADATA").write_text(text)
    assert "its preset cannot be read" in refused(copy)


def test_a_preset_from_the_future(copy, micro):
    values = to_dict(micro)
    values["model"]["unet"]["invented"] = 1
    (copy / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": {"preset": values}}))
    assert "its preset cannot be read (model.unet.'invented' is unknown)" in refused(copy)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_incomplete_copies(copy, damage, capfd):
    """Only the line is printed, although Orbax abandons hundreds of reads."""
    files = [path for path in (copy / "params").rglob("d/*") if path.stat().st_size > 10_000]
    assert files
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        if damage == "truncate":
            path.write_bytes(whole[: len(whole) // 2])
    assert "damaged or incomplete" in refused(copy)
    gc.collect()
    assert capfd.readouterr() == ("", "")


def metadata(path):
    return json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]


def test_flipped_bits_are_noticed(micro_params, copy):
    """In every data file: either they are told, or they are in no array."""
    files, told = [path for path in (copy / "params").rglob("d/*") if path.is_file()], 0
    for path in files:
        whole = bytearray(path.read_bytes())
        for place in np.linspace(0, len(whole) - 1, 5).astype(int):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                assert_equal(checkpoint.load(copy)[0], micro_params)
            except UserError as error:
                assert "damaged" in str(error) and "\n" not in str(error)
                told += 1
        path.write_bytes(whole)
    assert files and told > len(files)
    assert_equal(checkpoint.load(copy)[0], micro_params)


def test_a_value_that_is_not_what_was_saved_is_named(copy, micro_params):
    values = metadata(copy)
    values["checksums"]["vae.quant_conv.bias"] = "00000000"
    (copy / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": values}))
    reason = "damaged: 1 arrays are not what was saved, first 'vae.quant_conv.bias': take a whole copy"
    assert refused(copy).endswith(reason) and not checkpoint.is_whole(copy)
    run = copy.rename(copy.parent / "12").parent
    (run / "9" / "params").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"first 'vae.*': take a whole copy, or the one before, {run / '9'}$"):
        checkpoint.load(run)


def test_checkpoints_without_checksums_load(copy, micro_params):
    values = metadata(copy)
    assert values.pop("checksums").keys() == micro_params.keys()
    (copy / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": values}))
    assert_equal(checkpoint.load(copy)[0], micro_params)


def test_every_way_of_saving_sums_the_same(micro, micro_params, micro_checkpoint, tmp_path):
    arrays = jax.device_get(micro_params)
    halves = [{key: arrays[key] for key in list(arrays)[part::2]} for part in (0, 1)]
    checkpoint.save_batches(tmp_path / "pieces", halves, micro)
    assert metadata(tmp_path / "pieces")["checksums"] == metadata(micro_checkpoint)["checksums"]
    assert checkpoint.is_whole(tmp_path / "pieces")


def test_the_bundled_checkpoint_has_checksums():
    stored = checkpoint.stored_arrays(BUNDLED)
    assert metadata(BUNDLED)["checksums"].keys() == stored.keys()
    assert checkpoint.is_whole(BUNDLED)


@pytest.mark.parametrize("content", ["[" * 100_000, " " * (65 << 20)], ids=["nested", "large"])
def test_descriptions_that_are_no_documents(copy, content):
    (copy / "_CHECKPOINT_METADATA").write_text(content)
    assert "its preset cannot be read" in refused(copy)


def test_what_is_missing_is_added_by_a_command():
    advice = checkpoint.import_advice(pathlib.Path("ckpt"), ["vae", "motion_module", "appearance"])
    assert advice == "add it with animate-jax weights import --vae FILE --motion-module FILE --output ckpt"
    assert checkpoint.import_advice(pathlib.Path("ckpt"), ["appearance"]) == "take a whole copy"


def test_doctor_is_red_where_parts_are_missing(micro, micro_params, tmp_path):
    checkpoint.save(tmp_path / "part", {k: v for k, v in micro_params.items() if k.startswith("vae.")}, micro)
    finding = doctor.weights(str(tmp_path / "part"))
    assert finding.state == "bad" and "lacks denoising_unet, motion_module" in finding.text
    assert "weights import --denoising-unet FILE --motion-module FILE" in finding.text
    assert doctor.weights("tiny").state == "ok"
