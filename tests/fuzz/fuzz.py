"""Damages files at random and gives them to the program's own entry points:

    python -m tests.fuzz.fuzz                       # a few cases of every kind, and all that ever failed
    python -m tests.fuzz.fuzz videos --cases 500 --seed 3
    python -m tests.fuzz.fuzz videos --seed 3 --only 217      # that case again; its file is kept

Each is taken, or refused by a `UserError` of one line: without a traceback, noise, a file left behind, much memory or
much time. A process of its own, without the type checks of the tests: what a user would meet.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import pathlib
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator

import av
import jax
import numpy as np
import PIL.Image

from animate_jax.checkpoints import checkpoint
from animate_jax.commands import sample
from animate_jax.config import DataConfig, TrainConfig
from animate_jax.data.records import RecordedClips
from animate_jax.data.samples import RecordedSamples
from animate_jax.errors import InputWarning, UserError
from animate_jax.models.params import Params, abstract_model
from animate_jax.pose.files import write_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.inputs import EXAMPLE, crop_reference, draw_motion
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights.inspect import inspect
from animate_jax.torch_weights.read import read_state_dict
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video

TESTS = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 30  # of one case
HANGS = 120  # seconds after which even code that no signal reaches is ended
MEGABYTES = 700  # that one case may add
ADDRESSES = 6 << 30  # bytes of address space that one case may add: asking for more fails at once
MICRO = runpy.run_path(str(TESTS / "conftest.py"))["MICRO"]


# Damage


def damaged(contents: bytes, chance: random.Random) -> bytes:
    """Flipped, overwritten, lost, doubled and exchanged bytes, and numbers made extreme; mostly near the start."""
    data = bytearray(contents)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        place = int(len(data) * chance.random() ** 2)
        match chance.randrange(7):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place : place + 4] = chance.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case 2:
                data[place : place + 8] = chance.randbytes(8)
            case 3:
                del data[place : place + chance.randrange(1, 40)]
            case 4:
                data[place:place] = data[place : place + chance.randrange(1, 400)]
            case 5:
                other = chance.randrange(len(data))
                data[place : place + 8], data[other : other + 8] = data[other : other + 8], data[place : place + 8]
            case 6:
                del data[max(place, len(data) // 8) :]
        data = data or bytearray(b"x")
    return bytes(data)


ODD = (None, True, 0, -1, 1, 0.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 300, "\0", [], {},
       [[]], [0] * 1000, {"": None})  # fmt: skip


def bent(contents: bytes, chance: random.Random) -> bytes:
    """JSON in which a few values are others, missing, double or deeper."""
    value = [json.loads(contents)]
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        places = list(_places(value))
        owner, key = chance.choice(places)
        match chance.randrange(8):
            case 0 if owner is not value:
                del owner[key]
            case 1:
                owner[key] = [owner[key]]
            case 2:
                owner[key] = {"people": owner[key], "shape": owner[key]}
            case 3:
                other, name = chance.choice(places)
                owner[key] = json.loads(json.dumps(other[name]))
            case 4 if isinstance(owner[key], int | float):
                owner[key] *= chance.choice([-1, 0, 0.5, 2, 100, 1e9])
            case _:
                owner[key] = chance.choice(ODD)
    return json.dumps(value[0]).encode()


def _places(value) -> Iterator[tuple[list | dict, int | str]]:
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def repacked(contents: bytes, chance: random.Random) -> bytes:
    """A zip archive with one damaged member, whose checksum is right."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        victim = chance.choice([name for name in names if name.endswith((".pkl", ".npy"))])
        for name in names:
            new.writestr(name, damaged(old.read(name), chance) if name == victim else old.read(name))
    return result.getvalue()


def reheaded(contents: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says other things."""
    length = int.from_bytes(contents[:8], "little")
    header = bent(contents[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + contents[8 + length :]


def spoilt(name: str, contents: bytes, chance: random.Random) -> bytes:
    """Damage as the kind of file invites it."""
    kinds = [damaged]
    if contents[:1] in (b"{", b"["):
        kinds.append(bent)
    if name.endswith((".npz", ".pth")):
        kinds.append(repacked)
    if name.endswith(".safetensors"):
        kinds.append(reheaded)
    return chance.choice(kinds)(contents, chance)


# Whole files, and what reads them


class Kind:
    """One kind of input.

    Attributes:
        files: whole files by name; a name with folders is one file of a tree, in which one file is damaged at a time.
    """

    files: dict[str, bytes]
    tree = False

    def read(self, path: pathlib.Path) -> None:
        """Gives a file, or a tree's folder, to the program."""
        raise NotImplementedError

    def leaves(self, path: pathlib.Path) -> bool:
        """Whether a file that was not there before may be there now."""
        return False


def moving(frames: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    """A white bar that moves over gray."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for index, frame in enumerate(video):
        frame[:, 4 * index : 4 * index + 8] = 250
    return video


class Pictures(Kind):
    """Of all formats, with the parts that readers stumble over: EXIF, palettes, transparency."""

    def __init__(self, folder: pathlib.Path):
        image = PIL.Image.fromarray(moving(1, 24, 32)[0])
        exif = image.getexif()
        exif[0x0112] = 6
        self.files = {}
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"):
            for mode in ("RGB", "P", "RGBA"):
                file = io.BytesIO()
                with contextlib.suppress(OSError, KeyError, ValueError):  # a kind without this mode, or not built in
                    image.convert(mode).save(file, format=kind, exif=exif)
                    self.files[f"{mode}.{kind.lower()}"] = file.getvalue()
        with PIL.Image.open(EXAMPLE / "reference.png") as person:
            file = io.BytesIO()
            person.convert("RGB").resize((96, 128)).save(file, format="JPEG")
        self.files["person.jpeg"] = file.getvalue()

    def read(self, path):
        read_image(path)
        if path.stem == "person":
            crop_reference(path, pipeline().options())


class Videos(Kind):
    def __init__(self, folder: pathlib.Path):
        codecs = {
            "a.mp4": "libx264", "b.mp4": "mpeg4", "a.mov": "mjpeg", "a.mkv": "ffv1", "a.webm": "libvpx-vp9",
            "a.avi": "mpeg4", "a.ts": "mpeg2video", "a.flv": "flv1", "a.asf": "wmv2", "a.ogv": "libvpx",
            "a.mpg": "mpeg1video", "a.gif": "gif",
        }  # fmt: skip
        self.files = {}
        for name, codec in codecs.items():
            pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
            with av.open(str(folder / name), "w") as container:
                stream = container.add_stream(codec, rate=25)
                stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
                for picture in moving(12 if name == "a.ts" else 5):  # FFmpeg takes a shorter one for text
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            self.files[name] = (folder / name).read_bytes()

    def read(self, path):
        read_video(path, frames=200)
        with contextlib.suppress(UserError):  # nobody is in them
            pipeline().read_motion(path, frames=200, progress=False, size=(64, 48))


def some_keypoints(frames: int = 3) -> Keypoints:
    chance, points = np.random.default_rng(0), Keypoints.empty(frames)
    for name in Keypoints.names():
        getattr(points, name)[:] = chance.uniform(0.2, 0.8, getattr(points, name).shape)
    return points


class Poses(Kind):
    def __init__(self, folder: pathlib.Path):
        for name in ("a.json", "a.npz"):
            write_poses(folder / name, some_keypoints(), (64, 48))
        chance = np.random.default_rng(0)
        people = {"bodies": {"candidate": chance.random((18, 2)), "subset": np.arange(18.0)[None]},
                  "hands": chance.random((2, 21, 2)), "faces": chance.random((1, 68, 2)),
                  "hands_score": chance.random((2, 21)), "faces_score": chance.random((1, 68))}  # fmt: skip
        np.save(folder / "a.npy", np.array([people] * 3, object), allow_pickle=True)
        self.files = {name: (folder / name).read_bytes() for name in ("a.json", "a.npz", "a.npy")}

    def read(self, path):
        options, reference = pipeline().options(), some_keypoints(1)[0]
        motion = pipeline().read_motion(path, frames=4, progress=False, canvas=(64, 48))
        for align in ("bones", "global", "musepose", "none"):
            draw_motion(motion, reference, options, align)[:]


class Weights(Kind):
    def __init__(self, folder: pathlib.Path):
        import torch
        from safetensors.torch import save_file

        shapes = {"conv_in.weight": (4, 4, 3, 3), "conv_in.bias": (4,), "time_embedding.linear_1.weight": (8, 4),
                  "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (4,)}  # fmt: skip
        state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
        save_file(state, folder / "a.safetensors")
        torch.save({"state_dict": state, "step": 3}, folder / "a.pth")
        torch.save(state, folder / "old.pth.bin", _use_new_zipfile_serialization=False)
        names = ("a.safetensors", "a.pth", "old.pth.bin")
        self.files = {name: (folder / name).read_bytes() for name in names}

    def read(self, path):
        for tensor in read_state_dict(path).values():
            np.asarray(tensor)
        inspect(str(path))


class DataSets(Kind):
    tree = True

    def __init__(self, folder: pathlib.Path):
        made = runpy.run_path(str(TESTS / "data" / "conftest.py"))
        self.records = [made["serialise"](made["made_up_clip"](number, 12)) for number in range(2)]
        self.write, self.preset = made["write_data_set"], MICRO
        self.write(folder / "clips" / "1.0.0", self.records)
        self.files = _tree(folder) | {"record": self.records[0]}

    def read(self, path):
        record = path / "record"
        if record.read_bytes() != self.records[0]:
            shutil.rmtree(path / "clips")
            self.write(path / "clips" / "1.0.0", [record.read_bytes(), self.records[1]])
        recorded = RecordedClips(str(path), "train")
        samples = RecordedSamples(TrainConfig("stage1", "", self.preset, data=DataConfig(frames=2, num_workers=0)))
        for index in range(len(recorded)):
            samples(index, recorded[index])

    def leaves(self, path):
        return path.name.startswith("clips-train")


class Checkpoints(Kind):
    tree = True

    def __init__(self, folder: pathlib.Path):
        checkpoint.save(folder / "checkpoint", micro_params(), MICRO)
        self.files = _tree(folder)

    def read(self, path):
        params, preset = checkpoint.load(path / "checkpoint")
        Pipeline(params, preset).options()


class Presets(Checkpoints):
    """Checkpoints whose preset says other things."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        self.kept = self.files
        metadata = json.loads(self.files["checkpoint/_CHECKPOINT_METADATA"])
        self.preset = metadata["custom_metadata"].pop("preset")
        self.metadata, self.files = metadata, self.files | {"preset": json.dumps(self.preset).encode()}

    def read(self, path):
        with contextlib.suppress(ValueError):  # the file of ours, not what is tested
            preset = json.loads((path / "preset").read_bytes())
            self.metadata["custom_metadata"]["preset"] = preset
            (path / "checkpoint" / "_CHECKPOINT_METADATA").write_text(json.dumps(self.metadata))
        super().read(path)


class Samples(Kind):
    """The whole program, with damaged pictures, videos, keypoints and presets."""

    tree = True

    def __init__(self, folder: pathlib.Path):
        self.checkpoint = folder.with_name("whole") / "checkpoint"
        checkpoint.save(self.checkpoint, micro_params(), MICRO)
        shutil.copy(TESTS / "data" / "astronaut.jpg", folder / "reference.jpg")
        with PIL.Image.open(folder / "reference.jpg") as picture:
            picture.resize((128, 128)).save(folder / "reference.jpg")
        write_poses(folder / "driving.json", some_keypoints(2), (64, 48))
        write_poses(folder / "driving.npz", some_keypoints(2), (64, 48))
        (folder / "driving.mp4").write_bytes(Videos(folder).files["a.mp4"])
        self.files = {name: (folder / name).read_bytes() for name in
                      ("reference.jpg", "driving.json", "driving.npz", "driving.mp4")}  # fmt: skip
        self.whole = dict(self.files)

    def read(self, path):
        driving = next((name for name, contents in self.whole.items() if name != "reference.jpg"
                        and (path / name).read_bytes() != contents), "driving.json")  # fmt: skip
        told, output = io.StringIO(), path / "made" / "out.mp4"
        options = {"reference": path / "reference.jpg", "driving": path / driving, "output": output, "steps": 1,
                   "frames": 2, "guidance": 1, "checkpoint": self.checkpoint}  # fmt: skip
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            status = sample.main(arguments, "sample")
        lines = told.getvalue().splitlines()
        made = sorted(file.name for file in path.rglob("made/*"))
        if status == 0:
            assert made == ["out.mp4", "out_sheet.png"], made
        else:
            assert status == 2 and not made, (status, made)
            assert len(lines) == 1 and lines[0].startswith("sample: "), told.getvalue()
            raise UserError(lines[0])

    def leaves(self, path):
        return path.parent.name == "made"


KINDS: dict[str, type[Kind]] = {
    "pictures": Pictures, "videos": Videos, "poses": Poses, "weights": Weights, "data": DataSets,
    "checkpoints": Checkpoints, "presets": Presets, "sample": Samples,
}  # fmt: skip
FEW = {"pictures": 250, "videos": 150, "poses": 250, "weights": 250, "data": 60, "checkpoints": 15, "presets": 25,
       "sample": 12}  # fmt: skip


def _tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def micro_params() -> Params:
    chance = np.random.default_rng(0)
    return {path: 0.1 * chance.normal(size=leaf.shape).astype(leaf.dtype)
            for path, leaf in abstract_model(MICRO.model)[1].items()}  # fmt: skip


_PIPELINE: list[Pipeline] = []


def pipeline() -> Pipeline:
    if not _PIPELINE:
        _PIPELINE.append(Pipeline({path: jax.numpy.asarray(leaf) for path, leaf in micro_params().items()}, MICRO))
    return _PIPELINE[0]


# What once failed


def canvas(width: str) -> Callable[[dict[str, bytes]], bytes]:
    return lambda files: files["a.json"].replace(b'"canvas_width": 48', f'"canvas_width": {width}'.encode())


def tensors(shape: list[int | float], *names: str) -> Callable[[dict[str, bytes]], bytes]:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]} for name in names}
    return lambda files: safetensors(json.dumps(header).encode())


def member(contents: bytes) -> Callable[[dict[str, bytes]], bytes]:
    return lambda files: zipped(files["a.npz"], "body.npy", contents)


def safetensors(header: bytes, data: bytes = bytes(64)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def zipped(contents: bytes, name: str, member: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, member if each == name else old.read(each))
    return result.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


# What once failed: kind, name of the file, and its contents made from those of the whole files.
REGRESSIONS: dict[str, tuple[str, str, Callable[[dict[str, bytes]], bytes]]] = {
    "nested deeply": ("poses", "a.json", lambda files: b"[" * 100_000 + b"]" * 100_000),
    "no canvas": ("poses", "a.json", canvas("0")),
    "endless canvas": ("poses", "a.json", canvas("Infinity")),
    "canvas like a line": ("poses", "a.json", canvas("999999")),
    "claims a terabyte": ("poses", "a.npz", member(npy_header((2**38, 1)))),
    "no array": ("poses", "a.npz", member(b"hello")),
    "negative lengths": ("weights", "a.safetensors", tensors([-2, -2], "x")),
    "half a length": ("weights", "a.safetensors", tensors([4.0], "x")),
    "convolution of one dimension": ("weights", "a.safetensors",
                                     tensors([4], "conv_in.weight", "time_embedding.linear_1.weight")),
    "header of 4 GB": ("weights", "a.safetensors", lambda files: (2**32).to_bytes(8, "little") + b"{}"),
}  # fmt: skip


# One case


class Failed(Exception):
    """A case did not end as it should."""


class TooLong(BaseException):
    pass


def peak() -> float:
    """MB that this process has had at once since `forget_peak`."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except OSError:
        return 0.0


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def watched(noise: pathlib.Path) -> Iterator[None]:
    """The block ends soon, takes little memory, and says nothing; what comes from C is heard, too."""

    def late(*_):
        raise TooLong

    forget_peak()
    before, addresses = peak(), int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with noise.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES, old_limit[1]))
    faulthandler.dump_traceback_later(HANGS, exit=True, file=os.fdopen(os.dup(kept[1]), "w"))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
        signal.signal(signal.SIGALRM, old_handler)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
            os.close(handle)
    if peak() - before > MEGABYTES:
        raise Failed(f"took {peak() - before:.0f} MB")
    if said := noise.read_bytes():
        raise Failed(f"said: {said.decode(errors='replace')[:500]}")


def attempt(kind: Kind, name: str, contents: bytes, folder: pathlib.Path, noise: pathlib.Path) -> bool:
    """Whether a file was taken.

    Raises:
        Failed: neither that nor refused in a line.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for each, whole in (kind.files if kind.tree else {}).items():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(whole)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)
    around = folder.parent
    before, taken = set(around.rglob("*")), False
    try:
        with watched(noise):
            try:
                kind.read(folder if kind.tree else folder / name)
                taken = True
            except UserError as error:
                if "\n" in str(error) or not str(error):
                    raise Failed(f"no single line: {error}") from error
    except Failed:
        raise
    except TooLong as error:
        raise Failed(f"took more than {SECONDS} s") from error
    except BaseException as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    if left := [path for path in set(around.rglob("*")) - before - {noise} if path.is_file() and not kind.leaves(path)]:
        raise Failed(f"left {left}")
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--cases", type=int, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--folder", type=pathlib.Path, help="where cases lie; default: a new temporary one")
    args = parser.parse_args()
    base = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="fuzz_"))
    base.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"], failures = str(base), 0
    os.chdir(base)
    jax.config.update("jax_disable_most_optimizations", True)

    def report(kind: str, case: str, name: str, error: Failed) -> None:
        nonlocal failures
        failures += 1
        shutil.copytree(base / "cases" / "x", base / "failed" / f"{kind}-{case}", dirs_exist_ok=True)
        print(f"{kind}, {case}, {name}: {error}\n  {base / 'failed' / f'{kind}-{case}'}", flush=True)

    warnings.simplefilter("ignore", InputWarning)  # advice about a file that is taken is no noise
    for label in args.kinds:
        (base / "sources" / label).mkdir(parents=True, exist_ok=True)
        kind, started, taken = KINDS[label](base / "sources" / label), time.monotonic(), 0
        # What is loaded once counts for no case; and a kind whose whole files are refused tries nothing.
        for name, contents in list(kind.files.items())[: 1 if kind.tree else None]:
            with contextlib.suppress(Failed):
                if not attempt(kind, name, contents, base / "cases" / "x", base / "noise"):
                    report(label, "whole", name, Failed("refused"))
        for title, (of, name, build) in REGRESSIONS.items() if args.only is None else ():
            if of == label:
                try:
                    attempt(kind, name, build(kind.files), base / "cases" / "x", base / "noise")
                except Failed as error:
                    report(label, title, name, error)
        cases = [args.only] if args.only is not None else range(args.cases or FEW[label])
        for case in cases:
            chance = random.Random(zlib.crc32(f"{label} {args.seed} {case}".encode()))
            name = chance.choice([name for name in kind.files if label != "presets" or name == "preset"])
            contents = spoilt(name, kind.files[name], chance)
            try:
                taken += attempt(kind, name, contents, base / "cases" / "x", base / "noise")
            except Failed as error:
                report(label, f"seed {args.seed} case {case}", name, error)
                if args.only is not None:
                    raise
        print(f"{label}: {len(cases)} cases in {time.monotonic() - started:.0f} s, {taken} taken", flush=True)
    if not failures and not args.folder and args.only is None:
        shutil.rmtree(base)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
