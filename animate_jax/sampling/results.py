"""Results of the pipeline: an animation in memory, or one whose frames are decoded as they are written."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from animate_jax.atomic import atomic_folder, check_folder
from animate_jax.errors import UserError
from animate_jax.images import Image, Images
from animate_jax.pose.draw import LazyPoseImages
from animate_jax.pose.files import write_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.inputs import DrivingMotion
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.images import write_image
from animate_jax.video.write import encode_mp4, same_file, video_writer

POSES_FOLDER = "debug folder"  # what `AnimationStream.save_poses` writes, in messages
FRAMES_FOLDER = "folder of frames"  # what `save` writes for a name without an ending, in messages
SHEET_HEIGHT = 192  # pixels; smaller images of a contact sheet are enlarged
SHOWN_HEIGHT = 256  # pixels; smaller videos in a notebook are


class NotebookVideo(str):
    """The HTML of a video, which a notebook plays. Elsewhere it says so."""

    def __repr__(self) -> str:
        return "<a video: a notebook plays it, save() writes it>"

    def _repr_html_(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Animation:
    """The result, with its inputs at the same size. A notebook shows it as a video."""

    frames: Images
    fps: float
    reference: Image
    poses: Images
    audio: bytes | None = None  # as in `DrivingMotion`

    def __repr__(self) -> str:
        return f"Animation({describe(len(self.frames), self.reference, self.fps)})"

    def _repr_html_(self) -> str:
        return self._html()

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.frames)

    def save(self, path: str | os.PathLike, side_by_side: bool = False) -> None:
        """Writes an .mp4, .webm (without sound) or .gif or, if the name has no such ending, a folder of PNG files."""
        with frames_writer(path, self.fps, self.audio) as write:
            for frame in self.side_by_side() if side_by_side else self.frames:
                write(frame)

    def side_by_side(self) -> Images:
        """Frames with reference, pose and result side by side."""
        return np.stack([hconcat(self.reference, *pair) for pair in zip(self.poses, self.frames, strict=True)])

    def contact_sheet(self, columns: int = 8, zoom: int = 1) -> Image:
        """Reference, driving poses and results of evenly spaced frames, enlarged `zoom` times."""
        chosen = evenly_spaced(len(self.frames), columns)
        return make_contact_sheet(self.reference, chosen, self.poses[chosen], self.frames[chosen], self.fps, zoom)

    def save_contact_sheet(self, path: str | os.PathLike, columns: int = 8) -> None:
        write_image(path, self.contact_sheet(columns, zoom_factor(self.reference)))

    def show(self, zoom: int | None = None, side_by_side: bool = False) -> NotebookVideo:
        """Plays in a notebook, in a loop, enlarged `zoom` times: by default only what is small."""
        return NotebookVideo(self._html(zoom, side_by_side))

    def _html(self, zoom: int | None = None, side_by_side: bool = False) -> str:
        zoom = zoom or max(1, SHOWN_HEIGHT // self.frames.shape[1])
        frames = (self.side_by_side() if side_by_side else self.frames).repeat(zoom, 1).repeat(zoom, 2)
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        video = base64.b64encode(encode_mp4(even, self.fps, keyframes=len(even))).decode()
        return f'<video autoplay loop muted controls src="data:video/mp4;base64,{video}"></video>'


@dataclasses.dataclass(frozen=True, repr=False)
class AnimationStream:
    """An animation whose frames are decoded while they are iterated: once, in order, a few at a time.

    Attributes:
        chunks: the frames.
        fps: frames/s.
        reference, reference_keypoints: the cropped image, and its person.
        motion: the driving motion, before it was fitted to the reference.
        poses: its pose images; a `LazyPoseImages` has the fitted keypoints.
    """

    chunks: Iterator[Images]
    fps: float
    reference: Image
    reference_keypoints: Keypoints
    motion: DrivingMotion
    poses: Images | LazyPoseImages

    def __repr__(self) -> str:
        return f"AnimationStream({describe(len(self), self.reference, self.fps)})"

    def __len__(self) -> int:
        return len(self.poses)

    def __iter__(self) -> Iterator[Image]:
        return (frame for chunk in self.chunks for frame in chunk)

    def animation(self) -> Animation:
        """All of it in memory."""
        frames = np.concatenate(list(self.chunks))
        return Animation(frames, self.fps, self.reference, self.poses[:], self.motion.audio)

    def save(
        self,
        path: str | os.PathLike,
        side_by_side: str | os.PathLike | None = None,
        contact_sheet: str | os.PathLike | None = None,
        columns: int = 8,
    ) -> None:
        """Writes what `Animation.save` does while frames are decoded, and optionally a video of reference, pose and
        result side by side, and a contact sheet. A file gets its name when it is complete."""
        chosen, shown = evenly_spaced(len(self), columns), []
        with contextlib.ExitStack() as files:
            writers = [
                files.enter_context(frames_writer(file, self.fps, self.motion.audio))
                for file in (path, side_by_side)
                if file
            ]
            for index, frame in enumerate(self):
                writers[0](frame)
                if side_by_side:
                    writers[1](hconcat(self.reference, self.poses[index], frame))
                if index in chosen:
                    shown.append(frame)
        if contact_sheet:
            zoom = zoom_factor(self.reference)
            sheet = make_contact_sheet(self.reference, chosen, self.poses[chosen], np.stack(shown), self.fps, zoom)
            write_image(contact_sheet, sheet)

    def save_poses(self, folder: str | os.PathLike) -> None:
        """Writes the keypoints before and after they were fitted to the reference (`driving.npz`, `fitted.npz`), the
        reference (`reference.npz`, `.png`), and the pose images (`poses/00000.png`, ...).

        Raises:
            UserError: the folder cannot be written, or see `check_poses_folder`.
        """
        size = self.reference.shape[:2]
        with atomic_folder(folder, POSES_FOLDER) as fresh:
            write_image(fresh / "reference.png", self.reference)
            write_poses(fresh / "reference.npz", Keypoints.stack([self.reference_keypoints]), size)
            if isinstance(self.poses, LazyPoseImages) and self.motion.keypoints is not None:
                write_poses(fresh / "driving.npz", self.motion.keypoints, self.motion.canvas)
                write_poses(fresh / "fitted.npz", self.poses.keypoints, size)
            for index in range(len(self)):
                write_image(fresh / "poses" / f"{index:05d}.png", self.poses[index])


@contextlib.contextmanager
def frames_writer(path: str | os.PathLike, fps: float, audio: bytes | None) -> Iterator[Callable[[Image], None]]:
    """A `video_writer` or, for a name without an ending, what writes the frames into a new folder: 00000.png, ..."""
    if pathlib.Path(path).suffix:
        with video_writer(path, fps, audio) as write:
            yield write
        return
    with atomic_folder(path, FRAMES_FOLDER) as fresh:
        numbers = itertools.count()
        yield lambda frame: write_image(fresh / f"{next(numbers):05d}.png", frame)


def describe(frames: int, picture: Image, fps: float) -> str:
    height, width, _ = picture.shape
    return f"{frames} frames of {width} x {height} pixels at {fps:g} frames/s"


def check_poses_folder(
    folder: pathlib.Path, inputs: Iterable[pathlib.Path] = (), outputs: Iterable[pathlib.Path] = ()
) -> None:
    """Makes sure that the folder of `AnimationStream.save_poses` is new, empty, or complete from an earlier call.

    Raises:
        UserError: it is not, cannot be written, or one of this call's inputs and outputs lies in it.
    """
    for kind, paths in (("an input", inputs), ("an output", outputs)):
        for path in paths:
            if any(same_file(folder, parent) for parent in pathlib.Path(os.path.realpath(path)).parents):
                raise UserError(f"{path}: is {kind} inside the {POSES_FOLDER} {folder}: give another folder")
    check_folder(folder, POSES_FOLDER)


def hconcat(*images: Image) -> Image:
    return np.concatenate(images, axis=1)


def evenly_spaced(frames: int, columns: int) -> list[int]:
    """Indices of evenly spaced frames, including the first and the last."""
    return np.unique(np.linspace(0, frames - 1, columns).round().astype(int)).tolist()


def zoom_factor(image: Image) -> int:
    return max(1, SHEET_HEIGHT // image.shape[0])


def make_contact_sheet(
    reference: Image, chosen: list[int], poses: Iterable[Image], frames: Iterable[Image], fps: float, zoom: int
) -> Image:
    """The reference; driving poses above results, under their times."""

    def enlarge(image: Image) -> Image:
        return image.repeat(zoom, 0).repeat(zoom, 1)

    rows = [reference, *poses], [np.full_like(reference, 255), *frames]
    labels = ["reference", *(f"{i / fps:.1f} s" for i in chosen)]
    return contact_sheet([[enlarge(image) for image in row] for row in rows], labels)
