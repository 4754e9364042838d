"""Addresses in a bucket: read, written, mirrored, and what is said when the store fails."""

import sys

import pytest

from animate_jax.errors import UserError
from animate_jax.storage import Mirror, to_path


def test_a_local_mirror_is_the_folder_itself(tmp_path):
    with Mirror(tmp_path / "run") as mirror:
        (mirror.path / "log").write_text("line")
        mirror.sync()
    assert (tmp_path / "run" / "log").read_text() == "line"


def test_unknown_addresses_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="unknown kind of address"):
        to_path("ftp://host/folder")
    with pytest.raises(UserError, match="needs the package s3fs"):
        to_path("s3://bucket/folder")


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
    assert bucket.names() == ["run/log", "run/previews/1.png"]
    assert bucket.read("run/log") == b"one more\n" * 2


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
        arrays = checkpoint.read_some(found, {{key: checkpoint.stored_arrays(found)[key]}})
        assert (arrays[key] == params[key]).all()
        try:
            checkpoint.save("gs://bucket/run/checkpoints/3", params, preset)
        except checkpoint.UserError as error:
            print(error)
    """
    told, _ = python(bucket, code)
    assert told == "gs://bucket/run/checkpoints/3: is there already: choose another name, or delete it first\n"


def test_no_checkpoint_is_one_line(bucket, python):
    _, told = python(bucket, "from animate_jax.__main__ import main; raise SystemExit(main())", 2, "sample",
                     "--checkpoint", "gs://bucket/nothing")  # fmt: skip
    assert told.splitlines()[-1].startswith("animate-jax sample: gs://bucket/nothing: no such checkpoint"), told


def test_listings_of_several_pages(bucket, python):
    write = """
        from animate_jax.storage import to_path
        for i in range(8):
            (to_path("gs://bucket/x") / f"f{i}").write_text("a")
    """
    python(bucket, write)
    bucket.page = 3
    told, _ = python(bucket, """
        from animate_jax.storage import to_path
        print(sum(1 for _ in to_path("gs://bucket/x").iterdir()))
    """)  # fmt: skip
    assert told == "8\n"
