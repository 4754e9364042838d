"""A folder of videos -> a TFDS data set of clips: Beam runs it, ArrayRecord shards hold it.

Every video's clips are first written to a file of its own, named after the state of the video and the options, in
`.NAME.partial` beside the output `NAME`. A build that was killed finds them there. When all are done, TFDS gathers
them into shards and one renaming puts the data set into its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from tqdm import tqdm

from animate_jax.atomic import FULL, atomic_file, atomic_folder, check_folder
from animate_jax.data.build.clips import ClipOptions, Segment, Video, extract_clips, load_detector
from animate_jax.data.build.report import write_report
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.open import VIDEO_SUFFIXES

RUNNERS = {"direct": "DirectRunner", "dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}
CACHE_VERSION = 1  # of a video's file; another number makes old files useless

Runner = Literal["direct", "dataflow", "flink", "spark"]


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    workers: int = 1  # processes of the direct runner; other runners take their number from --beam-options
    runner: Runner = "direct"  # Beam's; all but "direct" need folders that every worker sees
    beam_options: str = ""  # handed to Beam, such as "--project=p --region=r --temp_location=gs://b/tmp"


def find_videos(folder: Path) -> list[Video]:
    """Every file below `folder` that is named like a video, by its path from there.

    Raises:
        UserError: there is no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder: check the path")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"--videos {folder}: no videos in it: give a folder of {', '.join(VIDEO_SUFFIXES)} files")
    return [Video(relative_name(path, folder), path) for path in paths]


def relative_name(path: Path, folder: Path) -> str:
    """A file's path below `folder`, as text that can be written anywhere: a file's name may be any bytes."""
    return _printable(path.relative_to(folder).as_posix())


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def build_dataset(
    name: str, videos: list[Video], output: Path, options: ClipOptions, beam: BeamOptions
) -> dict[str, Any]:
    """Builds the data set `name`, version 1.0.0, in the new folder `output`, with report.html and build.json.

    Args:
        videos: what to read; their names are unique, their splits become the data set's.

    Returns:
        What build.json holds: counts and seconds of what was kept and dropped.

    Raises:
        UserError: the output exists or cannot be written, Beam is missing, or nothing was worth keeping.
    """
    if beam.workers < 1:
        raise UserError(f"--workers {beam.workers}: must be at least 1")
    load_detector(options)  # a mistake in its options is no damage of a video
    check_folder(output, "data set", replace=False)
    for package in ("apache_beam", "array_record", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"building needs {package}: pip install 'animate-jax[build]'")
    with atomic_folder(output, "data set", replace=False, resume=True) as data:
        work = data.parent
        results = work / _signature(options)
        results.mkdir(exist_ok=True)
        with _one_line_errors(output), _quiet() as terminal, _progress(results, len(videos), terminal):
            empty = _run_beam(name, videos, results, data, options, beam)
        read = [video for video in videos if _result_path(results, video).exists()]  # all, unless a split is empty
        summaries = [json.loads(str(_load(results, video)["summary"])) for video in read]
        place = work if empty else data
        report = write_report(place, name, options, read, summaries, lambda video: _load(results, video))
        if empty:
            raise UserError(f"{output}: nothing of a split was worth keeping: see why in {place / 'report.html'}")
    return report


def _run_beam(
    name: str, videos: list[Video], results: Path, data: Path, options: ClipOptions, beam_options: BeamOptions
) -> bool:
    """Builds the data set in `data`; says whether a split got no clip, which TFDS does not write."""
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from apache_beam.options.pipeline_options import PipelineOptions

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path: Path | None = data  # holds no metadata files; without it TFDS would look beside this file

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=_features(), description=f"Clips of people: {name}.")

        def _example_writer(self):
            return _DeterministicWriter()

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in sorted({video.split for video in videos})}

        def _generate_examples(self, split):
            chosen = [video for video in videos if video.split == split]
            examples = functools.partial(_examples, results=results, options=options)
            return beam.Create(chosen) | beam.Reshuffle() | beam.FlatMap(examples)

    Builder.name = name
    flags = [f"--runner={RUNNERS[beam_options.runner]}", *beam_options.beam_options.split()]
    if beam_options.runner == "direct":
        mode = "multi_processing" if beam_options.workers > 1 else "in_memory"
        flags += [f"--direct_num_workers={beam_options.workers}", f"--direct_running_mode={mode}"]
    config = tfds.download.DownloadConfig(beam_options=PipelineOptions(flags))
    builder = Builder(data_dir=data, file_format="array_record")
    try:
        builder.download_and_prepare(download_dir=results.parent / "downloads", download_config=config)
    except Exception as error:
        if "number of generated examples is 0" not in str(error):
            raise
        return True
    return False


class _DeterministicWriter:
    """TFDS' writer of a shard, with the parts of a record in one order; Protocol Buffers leave it open."""

    def write(self, path, examples):
        from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter
        from tensorflow_datasets.proto import tf_example_pb2

        messages: Any = tf_example_pb2  # its classes are made at run time
        parse = messages.Example.FromString
        ordered = ((key, parse(example).SerializeToString(deterministic=True)) for key, example in examples)
        return ArrayRecordFileAdapter.write_examples(path, ordered)


def _features():
    """TFDS' description of a record; see docs/data.md."""
    import tensorflow_datasets as tfds

    points = {"body": (18,), "hands": (2, 21), "face": (68,)}
    features = {"video": tfds.features.Tensor(shape=(), dtype=np.object_)}
    for part, shape in points.items():
        features[part] = tfds.features.Tensor(shape=(None, *shape, 2), dtype=np.float32)
        features[f"{part}_confidence"] = tfds.features.Tensor(shape=(None, *shape), dtype=np.float32)
    features |= {key: tfds.features.Scalar(np.float32) for key in ("fps", "start")}
    features |= {key: tfds.features.Scalar(np.int32) for key in ("width", "height", "frames")}
    features |= {key: tfds.features.Text() for key in ("source", "id")}
    return tfds.features.FeaturesDict(features)


def _examples(video: Video, results: Path, options: ClipOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and record of every clip of a video, which is read now unless it was before."""
    path = _result_path(results, video)
    if not _is_intact(path):
        _save(path, _read_video(video, options))
    with np.load(path) as arrays:
        summary = json.loads(str(arrays["summary"]))
        for index, segment in enumerate(summary["pieces"]):
            if segment["reason"]:
                continue
            key = f"{video.name}:{segment['start']:06d}"
            record = {part: arrays[f"{index}/{part}"] for part in Keypoints.names()}
            record |= {
                "video": arrays[f"{index}/video"].tobytes(),
                "fps": summary["fps"],
                "source": video.name,
                "id": key,
            }
            record |= {part: segment[part] for part in ("width", "height", "frames")}
            yield key, record | {"start": segment["start"] / summary["fps"]}


def _read_video(video: Video, options: ClipOptions) -> dict[str, np.ndarray]:
    """What is kept of a video between its reading and the writing of shards."""
    arrays: dict[str, Any] = {}
    summary: dict[str, Any] = {"fps": 0.0, "damage": "", "pieces": []}
    try:
        summary["fps"], results, jpegs = extract_clips(video, options)
    except Exception as error:  # whatever it is, the other videos are worth having
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        summary["damage"] = _printable(reason.removeprefix(f"{video.path}: ").partition("\n")[0])
        results, jpegs = [], []
    for index, (result, jpeg) in enumerate(zip(results, jpegs, strict=True)):
        segment = result if isinstance(result, Segment) else result.segment
        row = {key: getattr(segment, key) for key in ("start", "frames", "reason", "motion", "height")}
        row["person"] = row.pop("height")
        if not isinstance(result, Segment):
            arrays[f"{index}/video"] = np.frombuffer(result.video, np.uint8)
            arrays |= {f"{index}/{part}": getattr(result.keypoints, part) for part in Keypoints.names()}
            row |= {"width": result.width, "height": result.height}
        arrays[f"{index}/picture"] = np.frombuffer(jpeg, np.uint8)
        summary["pieces"].append(row)
    return arrays | {"summary": np.array(json.dumps(summary))}


def _signature(options: ClipOptions) -> str:
    return hashlib.sha256(json.dumps([CACHE_VERSION, dataclasses.asdict(options)]).encode()).hexdigest()[:16]


def _result_path(results: Path, video: Video) -> Path:
    """Another name as soon as the video is another: its name, its time or its size."""
    paths = video.images() if video.path.is_dir() else [video.path]
    state = [video.name, video.fps, [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]]
    return results / f"{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]}.npz"


def _is_intact(path: Path) -> bool:
    """Whether a video's file is there and undamaged; after a power loss it may be empty."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:
        return False


def _load(results: Path, video: Video):
    return np.load(_result_path(results, video))


def _save(path: Path, arrays: dict[str, Any]) -> None:
    """All or nothing; two processes may write the same file."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _one_line_errors(output: Path) -> Iterator[None]:
    """Beam and TFDS wrap what went wrong in a worker into pages of text."""
    try:
        yield
    except Exception as error:
        text = "\n".join(str(e) for e in (error, error.__cause__, error.__context__) if e)
        if found := FULL.search(text):
            raise UserError(f"{output}: cannot be written ({found[0].lower()}): make room") from error
        if isinstance(error, UserError):
            raise UserError(text.partition(" [while running")[0]) from error
        if "Permission denied" in text:
            raise UserError(f"{output}: cannot be written (permission denied): choose another place") from error
        last = [line for line in text.splitlines() if re.match(r"\s*\w[\w.]*(Error|Exception)\b", line)]
        reason = (last or text.splitlines() or [repr(error)])[-1].strip()
        raise UserError(f"{output}: the build failed ({reason}): give the same command again to go on") from error


@contextlib.contextmanager
def _quiet() -> Iterator[TextIO]:
    """Beam, its workers and TFDS print a lot, and what matters arrives as an exception; yields the real stderr."""
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(open(os.dup(2), "w"))
        nowhere = stack.enter_context(open(os.devnull, "w"))
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(nowhere.fileno(), number)
        yield terminal


@contextlib.contextmanager
def _progress(results: Path, total: int, terminal: TextIO) -> Iterator[None]:
    """A bar over finished videos, wherever they are worked on."""
    done = threading.Event()

    def finished() -> int:
        return sum(1 for _ in results.glob("[!.]*.npz"))

    options = {"desc": "videos", "unit": "video", "dynamic_ncols": True, "file": terminal}
    with tqdm(total=total, initial=min(finished(), total), **options) as bar:

        def watch():
            while not done.wait(0.5):
                bar.update(min(finished(), total) - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(total - bar.n)
        finally:
            done.set()
            watcher.join()
