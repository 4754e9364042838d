"""Addresses in a bucket: read, written, mirrored, and what is said when the store fails."""

import sys
from pathlib import Path

import pytest

from animate_jax.data.records import RecordedClips
from animate_jax.errors import UserError
from animate_jax.storage import Mirror, to_path

pytestmark = pytest.mark.compiles


def test_a_local_mirror_is_the_folder_itself(tmp_path):
    with Mirror(tmp_path / "run") as mirror:
        (mirror.path / "log").write_text("line")
        mirror.sync()
    assert (tmp_path / "run" / "log").read_text() == "line"


def test_unknown_addresses_are_refused(monkeypatch):
    """Orbax would write into a local folder named `s3:`, and call what it finds in a bucket damaged."""
    for address in ("ftp://host/folder", "s3://bucket/folder", "az://container/folder"):
        with pytest.raises(UserError, match="unknown kind of address"):
            to_path(address)
        with pytest.raises(UserError, match="unknown kind of address"):
            RecordedClips(address, "train")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="needs the package gcsfs"):
        to_path("gs://bucket/folder")


MIRROR = """
    import sys
    from animate_jax.storage import Mirror
    with Mirror("gs://bucket/run", fetch=["log"]) as mirror:
        with (mirror.path / "log").open("a") as file:
            file.write("one more\\n")
        (mirror.path / "previews").mkdir()
        (mirror.path / "previews" / "1.png").write_bytes(b"picture")
        (mirror.path / ".half").write_text("being written")
        mirror.sync()
"""


def test_a_mirror_uploads_what_changed_and_continues_what_was_there(bucket, python):
    python(bucket, MIRROR)
    python(bucket, MIRROR)
    assert bucket.names() == ["run/log", "run/previews/1.png", "run/run.lock"]
    assert bucket.read("run/log") == b"one more\n" * 2


def test_of_two_runs_in_one_folder_the_later_one_goes_on(bucket, python):
    """And nothing of the earlier one is uploaded any more."""
    told, _ = python(
        bucket,
        """
        from animate_jax.storage import Mirror, Overtaken
        try:
            with Mirror("gs://bucket/run", every=0) as first:
                with Mirror("gs://bucket/run") as second:
                    (first.path / "log").write_text("first")
                    (second.path / "log").write_text("second")
                    first.sync()
                    first._running.exception()
                    first.sync()
        except Overtaken as error:
            print(error)
    """,
    )
    assert told.startswith("gs://bucket/run: another run writes there now (process ") and told.count("\n") == 1
    assert bucket.read("run/log") == b"second"


def test_a_store_that_fails_now_and_then_is_asked_again(bucket, python):
    bucket.unavailable = 3
    python(bucket, MIRROR)
    assert bucket.read("run/log") == b"one more\n"


def test_a_wrong_key_is_one_line(bucket, python):
    bucket.refused = True
    code = """
        from animate_jax.errors import exit_status
        from animate_jax.storage import check_writable
        raise SystemExit(exit_status("train", lambda: check_writable("gs://bucket/run"), ""))
    """
    _, told = python(bucket, code, status=2)
    assert told.count("\n") == 1 and "gs://bucket/run" in told and "Forbidden" in told


def test_a_checkpoint_is_saved_found_and_loaded(bucket, python, micro_checkpoint):
    """`animate-jax weights export` and sampling read from the bucket what was written there; half a step is no step."""
    code = f"""
        import jax
        from animate_jax.checkpoints import checkpoint
        params, preset = checkpoint.load({str(micro_checkpoint)!r})
        checkpoint.save("gs://bucket/run/checkpoints/3", params, preset)
        half = checkpoint.to_path("gs://bucket/run/checkpoints/5/params/_METADATA")
        half.write_text("a run was killed while it wrote this")
        found = checkpoint.find("gs://bucket/run")
        assert str(found) == "gs://bucket/run/checkpoints/3", found
        again, carried = checkpoint.load("gs://bucket/run")
        assert carried == preset
        assert all((again[key] == params[key]).all() for key in params)
        assert set(checkpoint.stored_arrays(found)) == set(params)
        (key,) = list(params)[:1]
        arrays = checkpoint.read_arrays(found, {{key: checkpoint.stored_arrays(found)[key]}})
        assert (arrays[key] == params[key]).all()
        try:
            checkpoint.save("gs://bucket/run/checkpoints/3", params, preset)
        except checkpoint.UserError as error:
            print(error)
    """
    told, _ = python(bucket, code)
    assert told == "gs://bucket/run/checkpoints/3: is there already: choose another name, or delete it first\n"


def test_weights_are_imported_into_a_bucket_and_exported_from_it(bucket, python, micro_checkpoint, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code = f"""
        from animate_jax.checkpoints import checkpoint
        from animate_jax.commands.weights import Command, _run
        from animate_jax.torch_weights.families import find_files
        from animate_jax.torch_weights.importing import import_checkpoint
        import tyro
        def run(*arguments):
            assert _run(tyro.cli(Command, args=arguments)) == 0
        run("export", "moore", {str(micro_checkpoint)!r}, "--format", "safetensors", "--output", {str(first)!r})
        files = {{"vae": find_files({str(first)!r}, "moore")["vae"]}}
        preset = checkpoint.read_preset(checkpoint.find({str(micro_checkpoint)!r}))
        import_checkpoint(files, "gs://bucket/weights", preset)
        run("export", "moore", "gs://bucket/weights", "--format", "safetensors", "--output", {str(second)!r})
    """
    python(bucket, code)
    name = "sd-vae-ft-mse/diffusion_pytorch_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_no_checkpoint_is_one_line(bucket, python):
    _, told = python(
        bucket,
        "from animate_jax.__main__ import main; raise SystemExit(main())",
        2,
        "sample",
        "--checkpoint",
        "gs://bucket/nothing",
    )
    assert told.splitlines()[-1].startswith("animate-jax sample: gs://bucket/nothing: no such checkpoint"), told


def test_a_data_set_is_read_from_a_bucket_and_encoded_into_it(bucket, python, micro_checkpoint, tmp_path):
    """By array_record's own client, the listings of the folder being cut to two names."""
    bucket.page = 2
    code = f"""
        import pathlib, sys
        from etils import epath
        sys.path.insert(0, {str(Path(__file__).parents[1] / "data")!r})
        from conftest import made_up_clip, write_data_set
        from animate_jax.checkpoints import checkpoint
        from animate_jax.config import DataConfig, TrainConfig
        from animate_jax.data.loader import batches
        from animate_jax.errors import UserError
        from animate_jax.training.encoding import EncodeOptions, encode

        local = pathlib.Path({str(tmp_path)!r}) / "clips" / "1.0.0"
        write_data_set(local, [made_up_clip(n, 12) for n in range(5)])
        for file in epath.Path(local).iterdir():
            file.copy(epath.Path("gs://bucket/data/clips/1.0.0") / file.name)
        encode("gs://bucket/data", {str(micro_checkpoint)!r}, "gs://bucket/encoded", EncodeOptions())
        preset = checkpoint.read_preset(checkpoint.find({str(micro_checkpoint)!r}))
        def run(**data):
            return TrainConfig("stage1", "", preset, data=DataConfig(**data))
        for root in (str(local), "gs://bucket/data", "gs://bucket/encoded"):
            batch = next(batches(run(root=root, num_workers=0, framing="frame", flip=0.0)))
            print(batch.poses.sum(), *sorted(name for name, array in batch._asdict().items() if array is not None))
        try:
            batches(run(root="gs://bucket/nothing"))
        except UserError as error:
            print(error)
    """
    told, _ = python(bucket, code)
    local, remote, encoded, missing = told.splitlines()
    assert local == remote and "frames" in local
    assert encoded.split()[0] == local.split()[0] and "moments" in encoded
    assert missing == "--data.root gs://bucket/nothing: no such folder: check the path"


def test_listings_of_several_pages(bucket, python):
    write = """
        from animate_jax.storage import to_path
        for i in range(8):
            (to_path("gs://bucket/x") / f"f{i}").write_text("a")
    """
    python(bucket, write)
    bucket.page = 3
    told, _ = python(
        bucket,
        """
        from animate_jax.storage import to_path
        print(sum(1 for _ in to_path("gs://bucket/x").iterdir()))
    """,
    )
    assert told == "8\n"
