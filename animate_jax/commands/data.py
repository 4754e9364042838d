"""Builds a data set of clips from videos:

    animate-jax data build video_folder --videos DIR --output data/mine --workers 2

and encodes its frames once, for long training at one size and framing:

    animate-jax data encode --data data/mine --checkpoint weights/sd15 --output data/mine_768 --size 768 768

Interrupted, both go on where they stopped when the same command is given again. `--help` after `encode` or the data
set's name lists every option; docs/data.md explains them.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import tyro

from animate_jax.data.build.clips import ClipOptions
from animate_jax.data.build.dataset import Engine, build, videos_in
from animate_jax.data.build.public_datasets import BENCHMARKS
from animate_jax.errors import exit_status

DATASETS = ("video_folder", *BENCHMARKS)
USAGE = (
    f"usage: animate-jax data build {{{','.join(DATASETS)}}} --videos DIR --output DIR [options]\n"
    "       animate-jax data encode --data DIR --checkpoint CHECKPOINT --output DIR [options]"
)


@dataclasses.dataclass(frozen=True)
class VideoFolder:
    videos: pathlib.Path  # folder of videos, searched with its subfolders
    output: pathlib.Path  # new folder for the data set
    clips: tyro.conf.OmitArgPrefixes[ClipOptions] = dataclasses.field(default_factory=ClipOptions)
    engine: tyro.conf.OmitArgPrefixes[Engine] = dataclasses.field(default_factory=Engine)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    videos: pathlib.Path  # folder of the benchmark in its official layout
    output: pathlib.Path  # new folder for the data set
    incomplete: bool = False  # build although videos are missing
    clips: tyro.conf.OmitArgPrefixes[ClipOptions] = dataclasses.field(default_factory=lambda: ClipOptions(whole=True))
    engine: tyro.conf.OmitArgPrefixes[Engine] = dataclasses.field(default_factory=Engine)


def main(arguments: list[str], program: str = "animate-jax data") -> int:
    if arguments[:1] == ["encode"]:
        return exit_status(program, lambda: _encode(*arguments[1:]), "give the same command again to go on")
    if len(arguments) < 2 or arguments[0] != "build" or arguments[1] not in DATASETS:
        print(__doc__ if "--help" in arguments else USAGE, file=sys.stderr)
        return 0 if "--help" in arguments else 2
    return exit_status(program, lambda: _build(*arguments[1:]), "give the same command again to go on")


def _build(name: str, *options: str) -> None:
    kind = VideoFolder if name == "video_folder" else Benchmark
    args = tyro.cli(kind, args=options, prog=f"animate_jax.data build {name}")
    if name == "video_folder":
        videos = videos_in(args.videos)
    else:
        videos = BENCHMARKS[name].videos(args.videos, args.incomplete)
    _tell(build(name, videos, args.output, args.clips, args.engine), args.output)


def _encode(*options: str) -> None:
    from animate_jax.parallel import processes
    from animate_jax.training.encoding import EncodeOptions, encode

    @dataclasses.dataclass(frozen=True)
    class Encode:
        data: str  # a data set of videos: its folder, or gs:// address
        checkpoint: str  # whose autoencoder and CLIP encode
        output: str  # new folder, or gs:// address
        options: tyro.conf.OmitArgPrefixes[EncodeOptions] = dataclasses.field(default_factory=EncodeOptions)

    args = tyro.cli(Encode, args=options, prog="animate-jax data encode")
    with processes.joined():
        encode(args.data, args.checkpoint, args.output, args.options)


def _tell(report: dict, output: pathlib.Path) -> None:
    for reason, row in {"kept": report["kept"], **report["dropped"]}.items():
        print(f"{reason:>20}: {row['clips']:6} pieces, {row['seconds']:10.1f} s")
    for name, damage in report["damaged"].items():
        print(f"{'skipped':>20}: {name}: {damage}")
    print(f"{output}: see report.html")
