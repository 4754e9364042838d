"""The two programs: what they make, and that bad input ends in one line, status 2, and nothing written."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from animate_jax.__main__ import run
from animate_jax.commands import sample
from animate_jax.commands.options import lora_of
from animate_jax.pose.draw import draw
from animate_jax.pose.files import read_poses, write_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.images import read_image, write_image
from animate_jax.video.read import read_video
from animate_jax.video.write import made_here, write_video
from tests.commands.conftest import one_line, without_signs_of_life

ROOT = Path(__file__).parents[2]
ASTRONAUT = ROOT / "tests" / "data" / "astronaut.jpg"

pytestmark = [pytest.mark.usefixtures("compile_fast", "own_home"), pytest.mark.compiles]


def test_a_plan_fetches_no_weights(monkeypatch):
    planned = []

    def stop(preset, *args, **options):
        planned.append(preset.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("animate_jax.sampling.forecast.plan", stop)
    for preset in (None, "paper"):
        with pytest.raises(KeyboardInterrupt):
            sample.animate(sample.Arguments(checkpoint="moore", preset=preset, plan="v5e:1x1"))
    assert planned == ["moore", "paper"]


@pytest.fixture
def files(tmp_path):
    """Good and bad input, by name."""
    gray = np.full((4, 96, 96, 3), 127, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    write_video(tmp_path / "nobody.mp4", gray, 10)
    write_video(tmp_path / "whole.mp4", noise, 10)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "broken.json").write_text('{"people": [')
    (tmp_path / "odd.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": [1, 2]}]}))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    write_image(tmp_path / "nobody.png", gray[0])
    write_image(tmp_path / "own_sheet.png", gray[0])
    PIL.Image.fromarray(gray[0]).save(tmp_path / "other_sheet.png")
    (tmp_path / "link.png").symlink_to("own_sheet.png")
    (tmp_path / "mine").mkdir()
    write_image(tmp_path / "mine" / "reference.png", gray[0])
    (tmp_path / "mine" / "driving.npz").write_bytes(b"precious")
    (tmp_path / "loop.png").symlink_to("loop.png")
    write_poses(tmp_path / "empty.json", Keypoints.empty(3), (320, 240))
    body = np.random.default_rng(0).uniform(0.2, 0.8, (3, 18, 2)).astype(np.float32)
    poses = dataclasses.replace(Keypoints.empty(3), body=body, body_confidence=np.ones((3, 18), np.float32))
    write_poses(tmp_path / "poses.json", poses, (320, 240))
    return tmp_path


def arguments(files, trained, **changes):
    values = {"reference": ASTRONAUT, "driving": files / "poses.json", "output": files / "out.mp4"}
    values |= {"checkpoint": trained, "steps": 1} | changes
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    "changes, culprit, remedy",
    [
        ({"reference": "nowhere.png"}, "nowhere.png", "no such file: check the path"),
        ({"reference": "text.png"}, "text.png", "not a readable picture: give a whole"),
        ({"reference": "nobody.png"}, "nobody.png", "no person found: use one that shows"),
        ({"reference": "loop.png"}, "loop.png", "no such file: check the path"),
        ({"reference": "a" * 300 + ".png"}, "a.png", "name too long.*: check the path"),
        ({"driving": "nowhere.mp4"}, "nowhere.mp4", "no such file: check the path"),
        ({"driving": "empty.mp4"}, "empty.mp4", "is empty: take a whole copy"),
        ({"driving": "own_sheet.png"}, "own_sheet.png", "is a picture, not a motion: give a video"),
        ({"driving": "text.mp4"}, "text.mp4", "not a readable video .*: give a whole"),
        ({"driving": "truncated.mp4"}, "truncated.mp4", "(give|take) a whole"),
        ({"driving": "nobody.mp4"}, "nobody.mp4", "no person found: use one that shows"),
        ({"driving": "nowhere.json"}, "nowhere.json", "no such file or folder: check the path"),
        ({"driving": "broken.json"}, "broken.json", "not a readable JSON file .*: give OpenPose keypoints"),
        ({"driving": "odd.json"}, "odd.json", "add .canvas_width"),
        ({"driving": "broken.npz"}, "broken.npz", "not a readable keypoint file of ours .*: write it anew"),
        ({"driving": "home"}, "home", "no .json files in this folder: give"),
        ({"width": 102}, "--width 102", "must be a multiple of 4"),
        ({"height": 8}, "--height 8", "between 32 and 4096"),
        ({"frames": 0}, "--frames 0", "must be greater than 0"),
        ({"frames": -3}, "--frames -3", "must be greater than 0"),
        *(
            ({"fps": rate}, f"--fps {float(rate):g}", "must be 0.017 to 1000 frames/s")
            for rate in (0, "nan", "inf", "1e300", 1e-9, 0.0001)
        ),
        *(
            ({"guidance": scale}, f"--guidance {float(scale)}", "must be a number from -100 to 100")
            for scale in ("inf", "nan", 1e30, "-inf")
        ),
        *(
            ({"seed": seed}, f"--seed {seed}", "must be a whole number from 0 to 4294967295")
            for seed in (2**32, 2**64, 2**70, -1)
        ),
        *(
            ({"person": who}, f"--person {who}", "must be largest, center, or a number")
            for who in ("nonsense", "²", "0", "9" * 30)
        ),
        ({"mesh.frames": 3}, "--mesh.frames 3", "do not divide"),
        ({"mesh.fsdp": 0}, "--mesh.fsdp 0", "do not divide"),
        ({"output": "a" * 300 + ".mp4"}, "aaa.mp4", "cannot be written .*: choose"),
        ({"steps": 0}, "--steps 0", "must be greater than 0"),
        ({"person": "left", "driving": "whole.mp4"}, "--person left", "must be largest, center, or a number"),
        ({"dwpose": "home"}, "yolox_l.onnx", "no such file: --dwpose needs a folder"),
        ({"steps": 2000}, "--steps 2000", "must be 1 to 1000"),
        ({"preset": "stable"}, "--preset 'stable'", "choose one of paper, moore, moore-fixed, musepose, novita, tiny"),
        ({"preset": "tiny"}, "micro", "does not fit the model of preset 'tiny': .*: choose the checkpoint's own"),
        ({"checkpoint": "nowhere"}, "nowhere", "no such checkpoint: give the directory .* or one of tiny, moore"),
        ({"checkpoint": "home"}, "home", "holds no checkpoint: expected"),
        ({"output": "out.avi"}, "out.avi", "let the name end in .mp4, .webm or .gif"),
        ({"output": "home.mp4"}, "home.mp4", "is a folder: give a file name"),
        ({"output": "text.png/out.mp4"}, "out.mp4", "cannot be written .*: choose another"),
        ({"output": "whole.mp4", "driving": "whole.mp4"}, "whole.mp4", "would replace an input: rename it"),
        ({"output": "own.mp4", "reference": "own_sheet.png"}, "own_sheet.png", "would replace an input: rename it"),
        ({"output": "own.mp4", "reference": "link.png"}, "own_sheet.png", "would replace an input: rename it"),
        ({"output": "other.mp4"}, "other_sheet.png", "would replace a file of yours, .*: rename it"),
        ({"driving": "empty.json"}, "empty.json", "no person found: use one that shows"),
        ({"debug-dir": "text.png"}, "text.png", "is there already and no debug folder .*: choose another"),
        ({"debug-dir": "mine"}, "mine", "is there already and no debug folder .*: choose another"),
        ({"debug-dir": ".", "output": "x/y.mp4"}, "poses.json", "is an input inside the debug folder"),
        ({"debug-dir": "x", "output": "x/y.mp4"}, "y.mp4", "is an output inside the debug folder"),
    ],
    ids=lambda value: "-".join(f"{k}-{v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input(changes, culprit, remedy, files, micro_checkpoint, capfd):
    (files / "home").mkdir()
    (files / "home.mp4").mkdir()
    paths = {"reference", "driving", "output", "checkpoint", "debug-dir"}
    changes = {name: files / value if name in paths else value for name, value in changes.items()}
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file() and "home" not in path.parts}
    assert sample.main(arguments(files, micro_checkpoint, **changes)) == 2
    line = one_line(capfd.readouterr(), "animate-jax sample: ")
    assert culprit in line
    assert re.search(remedy, line), line
    after = {path: path.read_bytes() for path in files.rglob("*") if path.is_file() and "home" not in path.parts}
    assert after == before


def test_a_video_and_its_contact_sheet(files, micro_checkpoint, capfd):
    output = files / "new" / "out.mp4"
    assert sample.main(arguments(files, micro_checkpoint, output=output, frames=2)) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("2 frames in ") and captured.out.count("\n") == 1
    signs = captured.err.splitlines()
    starts = "loading ", "denoising step 1 of 1", "compiling the denoising UNet: ", "decoding: 1 of 1"
    for line, start in zip(signs, starts, strict=True):
        assert line.startswith(f"animate-jax sample: {start}"), signs
    assert without_signs_of_life(captured.err) == "" and re.search(r": loading \S+ \([\d.]+ MB\)$", signs[0])
    sheet = output.with_name("out_sheet.png")
    assert str(output) in captured.out and str(sheet) in captured.out
    frames, fps = read_video(output)
    assert frames.shape == (2, 64, 48, 3) and fps == pytest.approx(10)
    assert read_image(sheet).shape[0] > 2 * 64
    assert {path.name for path in output.parent.iterdir() if "out" in path.name} == {output.name, sheet.name}
    # The next process reads the compiled program, and says nothing of compiling.
    assert sample.main(arguments(files, micro_checkpoint, output=output, frames=2)) == 0
    again = capfd.readouterr().err.splitlines()
    assert len(again) == 3 and not any("compiling" in line for line in again), again


def test_everything_that_can_be_kept(files, micro_checkpoint, capfd):
    output, kept = files / "out.gif", files / "kept"
    flags = ["--side-by-side", "--debug-dir", str(kept)]
    assert sample.main([*arguments(files, micro_checkpoint, output=output), *flags]) == 0
    assert f"side-by-side video {files / 'out_side_by_side.gif'}\n" in capfd.readouterr().out
    assert read_video(files / "out_side_by_side.gif")[0].shape == (3, 64, 144, 3)
    assert {path.name for path in kept.iterdir()} == {
        "driving.npz",
        "fitted.npz",
        "reference.npz",
        "reference.png",
        "poses",
        "animate_jax.json",
    }
    assert len(list((kept / "poses").iterdir())) == 3


@pytest.mark.parametrize("output", ["", "."])
def test_an_output_without_a_name(output, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--output", output]) == 2
    assert "let the name end in .mp4, .webm or .gif" in one_line(capfd.readouterr(), "animate-jax sample: ")


@pytest.mark.parametrize("option", ["reference", "driving"])
def test_a_pattern_that_matches_nothing(option, files, micro_checkpoint, capfd):
    assert sample.main([*arguments(files, micro_checkpoint), f"--{option}"]) == 2
    assert f"--{option}: no file is given" in one_line(capfd.readouterr(), "animate-jax sample: ")


def test_names_that_some_file_systems_take_for_one(files, micro_checkpoint, capfd):
    (files / "A").mkdir()
    for name in ("a.png", "A/A.png"):
        write_image(files / name, read_image(ASTRONAUT))
    command = [*arguments(files, micro_checkpoint), "--reference", str(files / "a.png"), str(files / "A/A.png")]
    assert sample.main(command) == 2
    assert "two files have one name" in one_line(capfd.readouterr(), "animate-jax sample: ")


@pytest.mark.parametrize("name", ["reference.png", "driving.npz", "poses/00000.png", "notes.txt"])
def test_kept_poses_replace_nothing_of_the_users(name, files, micro_checkpoint, capfd):
    """A file that happens to have the name, also beside those of an earlier run."""
    folder = files / "kept"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"precious")
    assert sample.main([*arguments(files, micro_checkpoint), "--debug-dir", str(folder)]) == 2
    assert "is there already and no debug folder" in one_line(capfd.readouterr(), "animate-jax sample: ")
    assert [path.read_bytes() for path in folder.rglob("*") if path.is_file()] == [b"precious"]


def test_a_side_by_side_video_replaces_only_the_programs_own(files, micro_checkpoint, capfd):
    video = files / "out_side_by_side.mp4"
    command = [*arguments(files, micro_checkpoint), "--side-by-side"]
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    for name in ("foreign.mp4", "foreign.gif"):  # as another program writes it
        with av.open(files / name, "w") as container:
            stream = container.add_stream(*(("libx264", 10) if name.endswith("mp4") else ("gif", 10)))
            stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p" if name.endswith("mp4") else "rgb8"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    for precious in ((files / "foreign.mp4").read_bytes(), b"no video"):
        video.write_bytes(precious)
        assert sample.main(command) == 2
        line = one_line(capfd.readouterr(), "animate-jax sample: ")
        assert "its side-by-side video would replace a file of yours" in line
        assert video.read_bytes() == precious and not (files / "out.mp4").exists()
    assert not made_here(files / "foreign.gif")
    for suffix in ("mp4", "gif"):
        write_video(files / f"ours.{suffix}", frames, 10)
        assert made_here(files / f"ours.{suffix}")
    video.write_bytes((files / "ours.mp4").read_bytes())
    assert sample.main(command) == 0
    assert read_video(video)[0].shape == (3, 64, 144, 3)
    assert sample.main([*arguments(files, micro_checkpoint, output=files / f"{'a' * 222}.mp4"), "--side-by-side"]) == 2
    assert "_side_by_side.mp4: cannot be written (File name too long)" in capfd.readouterr().err


def test_kept_poses_replace_those_of_an_earlier_run_but_no_input(files, micro_checkpoint, capfd):
    folder = files / "kept"
    for _ in range(2):
        assert sample.main([*arguments(files, micro_checkpoint), "--debug-dir", str(folder)]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (files / "link.npz").symlink_to(folder / "driving.npz")
    for option, value in (
        ("reference", folder / "reference.png"),
        ("reference", folder / "poses/00001.png"),
        ("driving", folder / "driving.npz"),
        ("driving", files / "link.npz"),
    ):
        capfd.readouterr()
        changed = arguments(files, micro_checkpoint, **{option: value})
        assert sample.main([*changed, "--debug-dir", str(folder)]) == 2
        assert "is an input inside the debug folder" in one_line(capfd.readouterr(), "animate-jax sample: ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_was_taken_for_what_is_told(files, micro_checkpoint, capfd):
    """On a line of standard error each; what is odd as well."""
    poses = read_poses(files / "poses.json")[0]
    write_video(files / "poses.mp4", draw(poses, 128, 96, "tiny"), 10)
    assert sample.main(arguments(files, micro_checkpoint, driving=files / "poses.mp4")) == 0
    told = without_signs_of_life(capfd.readouterr().err)
    assert told == f"animate-jax sample: {files}/poses.mp4: drawn poses\n"
    command = [*arguments(files, micro_checkpoint, driving=files / "poses.mp4"), "--driving-kind", "video"]
    assert sample.main(command) == 2
    assert "poses.mp4: no person found" in one_line(capfd.readouterr(), "animate-jax sample: ")
    still = np.stack([read_image(ASTRONAUT)] * 2)
    write_video(files / "astronaut.mp4", still, 10)
    assert sample.main(arguments(files, micro_checkpoint, driving=files / "astronaut.mp4")) == 0
    assert f"animate-jax sample: {files}/astronaut.mp4: a video of a person\n" in capfd.readouterr().err
    assert sample.main([*arguments(files, micro_checkpoint), "--person", "2"]) == 0
    assert "poses.json: keypoints of one person: --person 2 has no effect" in capfd.readouterr().err


def test_several_characters_and_motions(files, micro_checkpoint, capfd):
    write_poses(files / "b.json", read_poses(files / "poses.json")[0][:2], (320, 240))
    write_image(files / "copy.png", read_image(ASTRONAUT))
    motions = ["--driving", str(files / "poses.json"), str(files / "b.json")]
    command = [*arguments(files, micro_checkpoint), *motions, "--reference", str(ASTRONAUT)]
    assert sample.main([*command, str(ASTRONAUT)]) == 2
    assert "two files have one name" in one_line(capfd.readouterr(), "animate-jax sample: ")
    assert sample.main([*command, str(files / "copy.png")]) == 0
    assert capfd.readouterr().out.count("\n") == 4
    for name, frames in (("astronaut_poses", 3), ("astronaut_b", 2), ("copy_poses", 3), ("copy_b", 2)):
        assert len(read_video(files / f"out_{name}.mp4")[0]) == frames and (files / f"out_{name}_sheet.png").exists()


def test_a_wrong_option_shows_its_name(files, micro_checkpoint, capfd):
    with pytest.raises(SystemExit) as caught:
        sample.main([*arguments(files, micro_checkpoint), "--stpes", "3"])
    assert caught.value.code == 2 and "--stpes" in capfd.readouterr().err


def test_files_without_options(capfd):
    assert sample.main(["person.png", "dance.mp4"]) == 2
    expected = "animate-jax sample: person.png: give it as --reference PICTURE or --driving VIDEO\n"
    assert capfd.readouterr().err == expected


def test_interrupted(files, micro_checkpoint, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample.Pipeline, "from_pretrained", interrupted)
    assert sample.main(arguments(files, micro_checkpoint)) == 130
    assert "interrupted; no half video is left" in one_line(capfd.readouterr(), "animate-jax sample: ")


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("program", ["sample", "train"])
def test_interrupted_while_libraries_are_imported(program, swallowed, tmp_path):
    """Some of which swallow it."""
    interrupt = "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"
    if swallowed:
        interrupt = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass"
    (tmp_path / f"{program}.py").write_text(f"import os, signal, time\n{interrupt}\nmain = lambda *_: 0")
    code = (
        f"import animate_jax.__main__ as m, animate_jax.commands as c; c.__path__ = [{str(tmp_path)!r}]; "
        f"raise SystemExit(m.main(['{program}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"animate-jax {program}: interrupted\n")


def test_a_slow_start_says_so(tmp_path, monkeypatch, capfd):
    (tmp_path / "goodput.py").write_text("import time\ntime.sleep(0.5)\nmain = lambda *_: 0")
    monkeypatch.setattr("animate_jax.__main__.SLOW_IMPORT", 0.05)
    monkeypatch.setattr("animate_jax.commands.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "animate_jax.commands.goodput", raising=False)
    assert run("goodput", [], "animate-jax goodput") == 0
    assert capfd.readouterr().err == "animate-jax goodput: starting\n"


def test_interrupted_while_options_are_read(monkeypatch, capfd):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("animate_jax.commands.options.cli", interrupted)
    assert run("sample", [], "sample.py") == 130
    assert capfd.readouterr().err == "sample.py: interrupted\n"


def test_as_a_process(files):
    """No traceback, and no library that adds lines of its own."""
    command = [sys.executable, "sample.py", "--reference", str(files / "text.png"), "--checkpoint", str(files / "gone")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.removeprefix("sample.py: starting\n").splitlines()
    assert line.startswith(f"sample.py: {files / 'gone'}: no such checkpoint")


def test_a_lora_may_have_a_strength(tmp_path):
    assert lora_of("runs/mine") == ("runs/mine", 1.0)
    assert lora_of("mine.safetensors:0.8") == ("mine.safetensors", 0.8)
    assert lora_of("owner/name:-1") == ("owner/name", -1.0)
    assert lora_of("odd:name") == ("odd:name", 1.0)
    (tmp_path / "v:2").write_text("")
    assert lora_of(str(tmp_path / "v:2")) == (str(tmp_path / "v:2"), 1.0)
