"""The kinds of input: undamaged files, and the entry points that read them. A new kind is a new class here."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import runpy
import shutil

import av
import jax
import numpy as np
import PIL.Image

from animate_jax.checkpoints import checkpoint
from animate_jax.commands import sample
from animate_jax.config import DataConfig, TrainConfig
from animate_jax.data.records import RecordedClips
from animate_jax.data.samples import RecordedSamples
from animate_jax.errors import UserError
from animate_jax.models.params import Params, abstract_model
from animate_jax.pose.files import write_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.inputs import EXAMPLE, crop_reference, draw_motion
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights.inspect import inspect
from animate_jax.torch_weights.read import read_state_dict
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video
from tests.fuzz.harness import Kind

TESTS = pathlib.Path(__file__).resolve().parents[1]
MICRO = runpy.run_path(str(TESTS / "conftest.py"))["MICRO"]


def moving_bar(frames: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    """A video of a white bar that moves over gray."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for index, frame in enumerate(video):
        frame[:, 4 * index : 4 * index + 8] = 250
    return video


class Pictures(Kind):
    """Images of all formats, with EXIF, palettes and transparency."""

    def __init__(self, folder: pathlib.Path):
        image = PIL.Image.fromarray(moving_bar(1, 24, 32)[0])
        exif = image.getexif()
        exif[0x0112] = 6
        self.files = {}
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"):
            for mode in ("RGB", "P", "RGBA"):
                file = io.BytesIO()
                with contextlib.suppress(OSError, KeyError, ValueError):  # a format without this mode, or not built in
                    image.convert(mode).save(file, format=kind, exif=exif)
                    self.files[f"{mode}.{kind.lower()}"] = file.getvalue()
        with PIL.Image.open(EXAMPLE / "reference.png") as person:
            file = io.BytesIO()
            person.convert("RGB").resize((96, 128)).save(file, format="JPEG")
        self.files["person.jpeg"] = file.getvalue()

    def read(self, path):
        read_image(path)
        if path.stem == "person":
            crop_reference(path, pipeline().animation_config())


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
                for picture in moving_bar(12 if name == "a.ts" else 5):  # FFmpeg takes shorter ones for text
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            self.files[name] = (folder / name).read_bytes()

    def read(self, path):
        read_video(path, frames=200)
        with contextlib.suppress(UserError):  # they show no person
            pipeline().read_motion(path, frames=200, progress=False, size=(64, 48))


def random_keypoints(frames: int = 3) -> Keypoints:
    rng, points = np.random.default_rng(0), Keypoints.empty(frames)
    for name in Keypoints.names():
        getattr(points, name)[:] = rng.uniform(0.2, 0.8, getattr(points, name).shape)
    return points


class Poses(Kind):
    def __init__(self, folder: pathlib.Path):
        for name in ("a.json", "a.npz"):
            write_poses(folder / name, random_keypoints(), (64, 48))
        rng = np.random.default_rng(0)
        people = {
            "bodies": {"candidate": rng.random((18, 2)), "subset": np.arange(18.0)[None]},
            "hands": rng.random((2, 21, 2)),
            "faces": rng.random((1, 68, 2)),
            "hands_score": rng.random((2, 21)),
            "faces_score": rng.random((1, 68)),
        }
        np.save(folder / "a.npy", np.array([people] * 3, object), allow_pickle=True)
        self.files = {name: (folder / name).read_bytes() for name in ("a.json", "a.npz", "a.npy")}

    def read(self, path):
        options, reference = pipeline().animation_config(), random_keypoints(1)[0]
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
        self.records = [made["serialize"](made["made_up_clip"](number, 12)) for number in range(2)]
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
        Pipeline(params, preset).animation_config()


class Presets(Checkpoints):
    """Checkpoints with a damaged preset."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        metadata = json.loads(self.files["checkpoint/_CHECKPOINT_METADATA"])
        self.preset = metadata["custom_metadata"].pop("preset")
        self.metadata, self.files = metadata, self.files | {"preset": json.dumps(self.preset).encode()}

    def read(self, path):
        with contextlib.suppress(ValueError):  # the fuzzer's own file is not tested
            preset = json.loads((path / "preset").read_bytes())
            self.metadata["custom_metadata"]["preset"] = preset
            (path / "checkpoint" / "_CHECKPOINT_METADATA").write_text(json.dumps(self.metadata))
        super().read(path)


class Samples(Kind):
    """The whole program, with a damaged reference image or driving file."""

    tree = True

    def __init__(self, folder: pathlib.Path):
        self.checkpoint = folder.with_name("whole") / "checkpoint"
        checkpoint.save(self.checkpoint, micro_params(), MICRO)
        shutil.copy(TESTS / "data" / "astronaut.jpg", folder / "reference.jpg")
        with PIL.Image.open(folder / "reference.jpg") as picture:
            picture.resize((128, 128)).save(folder / "reference.jpg")
        write_poses(folder / "driving.json", random_keypoints(2), (64, 48))
        write_poses(folder / "driving.npz", random_keypoints(2), (64, 48))
        (folder / "driving.mp4").write_bytes(Videos(folder).files["a.mp4"])
        self.files = {
            name: (folder / name).read_bytes()
            for name in ("reference.jpg", "driving.json", "driving.npz", "driving.mp4")
        }
        self.undamaged = dict(self.files)

    def read(self, path):
        driving = next(
            (
                name
                for name, contents in self.undamaged.items()
                if name != "reference.jpg" and (path / name).read_bytes() != contents
            ),
            "driving.json",
        )
        stderr, output = io.StringIO(), path / "made" / "out.mp4"
        options = {"reference": path / "reference.jpg", "driving": path / driving, "output": output, "steps": 1,
                   "frames": 2, "guidance": 1, "checkpoint": self.checkpoint}  # fmt: skip
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            status = sample.main(arguments, "sample")
        signs_of_life = "sample: loading ", "sample: reading poses", "sample: compiling "
        lines = [line for line in stderr.getvalue().splitlines() if not line.startswith(signs_of_life)]
        made = sorted(file.name for file in path.rglob("made/*"))
        if status == 0:
            assert made == ["out.mp4", "out_sheet.png"], made
        else:
            assert status == 2 and not made, (status, made)
            assert len(lines) == 1 and lines[0].startswith("sample: "), stderr.getvalue()
            raise UserError(lines[0])

    def leaves(self, path):
        return path.parent.name == "made"


KINDS: dict[str, type[Kind]] = {
    "pictures": Pictures,
    "videos": Videos,
    "poses": Poses,
    "weights": Weights,
    "data": DataSets,
    "checkpoints": Checkpoints,
    "presets": Presets,
    "sample": Samples,
}
DEFAULT_CASES = {
    "pictures": 250, "videos": 150, "poses": 250, "weights": 250, "data": 60, "checkpoints": 15, "presets": 25,
    "sample": 12,
}  # fmt: skip


def _tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def micro_params() -> Params:
    rng = np.random.default_rng(0)
    return {
        path: 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
        for path, leaf in abstract_model(MICRO.model)[1].items()
    }


_PIPELINE: list[Pipeline] = []


def pipeline() -> Pipeline:
    if not _PIPELINE:
        _PIPELINE.append(Pipeline({path: jax.numpy.asarray(leaf) for path, leaf in micro_params().items()}, MICRO))
    return _PIPELINE[0]
