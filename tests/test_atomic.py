"""Complete or not at all, and nothing of anybody else's is touched."""

import json
import os
import signal
import subprocess
import sys

import pytest

from animate_jax.atomic import MARKER, atomic_file, atomic_folder, check_file, entries
from animate_jax.errors import UserError


def write(path, content="new", **options):
    with atomic_folder(path, "report", **options) as fresh:
        (fresh / "deep").mkdir(parents=True)
        (fresh / "deep" / content).touch()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def refused(path, reason, **options):
    before = names(path.parent)
    with pytest.raises(UserError) as caught:
        write(path, **options)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert names(path.parent) == before


def test_a_folder_gives_way_to_a_newer_one(tmp_path, monkeypatch):
    for path in (tmp_path / "a", "a"):  # relative, too
        monkeypatch.chdir(tmp_path)
        write(path, "old")
        (tmp_path / "a" / ".DS_Store").touch()
        write(path)
        assert names(tmp_path) == {"a", "a/deep", "a/deep/new", f"a/{MARKER}"}


def test_what_is_not_ours_stays(tmp_path):
    write(tmp_path / "a")
    for entry in ("thesis.tex", "deep/.hidden", "empty folder"):
        path = tmp_path / "a" / entry
        path.mkdir() if entry == "empty folder" else path.touch()
        refused(tmp_path / "a", f"holds {entry!r}, which is no part of a report: move it away")
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "a" / MARKER).unlink()
    refused(tmp_path / "a", "no report of animate_jax: choose another name")
    (tmp_path / "a" / MARKER).write_text(json.dumps({"program": "animate_jax", "kind": "checkpoint", "entries": []}))
    refused(tmp_path / "a", "no report of animate_jax")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no report of animate_jax")
    write(tmp_path / "b")
    refused(tmp_path / "b", "is there already: choose another name, or delete it first", replace=False)


def test_what_comes_in_while_we_work_stays(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(UserError, match="'notes'"), atomic_folder(tmp_path / "a", "report") as fresh:
        fresh.mkdir()
        (tmp_path / "a" / "notes").touch()
    assert names(tmp_path) == {"a", "a/deep", "a/deep/old", "a/notes", f"a/{MARKER}"}


@pytest.mark.parametrize("content", ["", "x", '{"program": "another"}', "[" * 100_000], ids=len)
def test_a_neighbor_that_only_has_our_working_folders_name_stays(content, tmp_path):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "precious").touch()
    if content:
        (tmp_path / ".a.partial" / MARKER).write_text(content)
    refused(tmp_path / "a", "is in the way and not of animate_jax: move it away")


def test_failures_leave_nothing(tmp_path):
    write(tmp_path / "a", "old")
    before = names(tmp_path)
    for error in (RuntimeError("bug"), KeyboardInterrupt(), FileNotFoundError(2, "no such file", "/an/input")):
        with pytest.raises(type(error)), atomic_folder(tmp_path / "a", "report") as fresh:
            fresh.mkdir()
            raise error
        assert names(tmp_path) == before
    nested = ValueError("wrapped")
    nested.__cause__ = ExceptionGroup("two", [ValueError("x"), ValueError("write: No space left on device")])
    with pytest.raises(UserError, match=r"a: cannot be written \(no space left on device\): make room"):
        with atomic_folder(tmp_path / "a", "report") as fresh:
            fresh.mkdir()
            raise nested
    assert names(tmp_path) == before


def test_unfinished_work_is_kept_for_the_next_attempt(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a", "data set", resume=True) as fresh:
        fresh.mkdir()
        (fresh.parent / "cache").write_text("hours")
        raise KeyboardInterrupt
    assert names(tmp_path) == {".a.partial", ".a.partial/cache", f".a.partial/{MARKER}"}
    refused(tmp_path / "a", "is in the way and an unfinished data set")
    with atomic_folder(tmp_path / "a", "data set", resume=True) as fresh:
        assert (fresh.parent / "cache").read_text() == "hours"
        fresh.mkdir()
    assert names(tmp_path) == {"a", f"a/{MARKER}"}


def test_two_at_once(tmp_path):
    with atomic_folder(tmp_path / "a", "report") as fresh:
        fresh.mkdir()
        refused(tmp_path / "a", "another process is writing there")
    assert names(tmp_path) == {"a", f"a/{MARKER}"}


KILLED = """
import os, pathlib, signal, sys
from animate_jax import atomic
rename, count = os.rename, int(sys.argv[2])
def renames(*paths):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
os.rename = renames
with atomic.atomic_folder(sys.argv[1], "report") as fresh:
    fresh.mkdir()
    (fresh / "killed").touch()
"""


@pytest.mark.parametrize("renamings", [0, 1])
def test_killed_between_the_renamings(tmp_path, renamings):
    """What was there is there again as soon as the same place is written."""
    write(tmp_path / "a", "old")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a", str(renamings)])
    assert done.returncode == -signal.SIGKILL and (tmp_path / ".a.partial").exists()
    assert (tmp_path / "a").exists() == (renamings == 0)
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a", "report"):
        raise ZeroDivisionError
    assert names(tmp_path) == {"a", "a/deep", "a/deep/old", f"a/{MARKER}"}


def test_the_marker_lists_what_was_written(tmp_path):
    write(tmp_path / "a")
    marker = json.loads((tmp_path / "a" / MARKER).read_text())
    assert marker["program"] == "animate_jax" and marker["kind"] == "report" and marker["version"]
    assert marker["entries"] == entries(tmp_path / "a") == ["deep", "deep/new"]


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("new/a.txt", tmp_path / "new" / "a.txt"):
        with atomic_file(path) as partial:
            assert partial.suffix == ".txt" and partial.parent == tmp_path / "new"
            partial.write_text("whole")
        with pytest.raises(ZeroDivisionError), atomic_file(path) as partial:
            partial.write_text("ha")
            raise ZeroDivisionError
        assert names(tmp_path) == {"new", "new/a.txt"} and (tmp_path / "new" / "a.txt").read_text() == "whole"


def test_leftovers_of_killed_writers_go_and_lookalikes_stay(tmp_path):
    mine = [".a.txt.0123abcd.partial.txt"]
    others = [".a.txt.mine.partial.txt", ".b.txt.0123abcd.partial.txt", ".a.txt.0123abcd.partial.txt.bak", "a.txt.bak"]
    for name in mine + others:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "a.txt") as partial:
        partial.touch()
    assert names(tmp_path) == {"a.txt", *others}


def test_files_through_links(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_text("old")
    (tmp_path / "a.txt").symlink_to("store/blob")
    with atomic_file(tmp_path / "a.txt") as partial:
        assert partial.suffix == ".txt"
        partial.write_text("new")
    assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "store" / "blob").read_text() == "new"


def test_places_for_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, reason in [
        ("pipe", "no ordinary file"),
        ("", "is a folder"),
        ("file/a", "cannot be written"),
        ("x" * 300, "cannot be written"),
    ]:
        with pytest.raises(UserError, match=reason):
            check_file(tmp_path / name)
        with pytest.raises(UserError, match=reason), atomic_file(tmp_path / name):
            raise AssertionError
    assert names(tmp_path) == {"pipe", "file"}
