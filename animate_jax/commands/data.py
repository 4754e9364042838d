"""Builds a data set of clips from videos:

    animate-jax data build video_folder --videos DIR --output data/mine --workers 2

and encodes its frames once, for long training at one size and framing:

    animate-jax data encode --data data/mine --checkpoint weights/sd15 --output data/mine_768 --size 768 768

An interrupted command continues when it is given again. `--help` after `encode` or the data
set's name lists every option; docs/data.md explains them.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import tyro

from animate_jax.commands.options import parse
from animate_jax.data.build.clips import REMEDIES, ClipOptions
from animate_jax.data.build.dataset import BeamOptions, Video, build_dataset, find_videos
from animate_jax.data.build.public_datasets import PUBLIC_DATASETS
from animate_jax.errors import exit_status


@dataclasses.dataclass(frozen=True)
class VideoFolder:
    videos: pathlib.Path  # folder of videos, searched with its subfolders
    output: pathlib.Path  # new folder for the data set
    clips: tyro.conf.OmitArgPrefixes[ClipOptions] = dataclasses.field(default_factory=ClipOptions)
    beam: tyro.conf.OmitArgPrefixes[BeamOptions] = dataclasses.field(default_factory=BeamOptions)

    def find_videos(self, name: str) -> list[Video]:
        return find_videos(self.videos)


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    videos: pathlib.Path  # folder of the data set in its official layout
    output: pathlib.Path  # new folder for the data set
    incomplete: bool = False  # build although videos are missing
    clips: tyro.conf.OmitArgPrefixes[ClipOptions] = dataclasses.field(default_factory=lambda: ClipOptions(whole=True))
    beam: tyro.conf.OmitArgPrefixes[BeamOptions] = dataclasses.field(default_factory=BeamOptions)

    def find_videos(self, name: str) -> list[Video]:
        return PUBLIC_DATASETS[name].find_videos(self.videos, self.incomplete)


# Name of a data set -> its options.
DATASETS: dict[str, type[VideoFolder | PublicDataset]] = {
    "video_folder": VideoFolder,
    **dict.fromkeys(PUBLIC_DATASETS, PublicDataset),
}
USAGE = (
    f"usage: animate-jax data build {{{','.join(DATASETS)}}} --videos DIR --output DIR [options]\n"
    "       animate-jax data encode --data DIR --checkpoint CHECKPOINT --output DIR [options]"
)


def main(arguments: list[str], program: str = "animate-jax data") -> int:
    if arguments[:1] == ["encode"]:
        return exit_status(program, lambda: _encode(arguments[1:], program), "give the same command again to go on")
    if len(arguments) < 2 or arguments[0] != "build" or arguments[1] not in DATASETS:
        if {"--help", "-h"} & set(arguments):
            print(f"{__doc__}\nData sets of `build`: {', '.join(DATASETS)}.")
            return 0
        print(USAGE, file=sys.stderr)
        return 2
    _, name, *options = arguments
    return exit_status(program, lambda: _build(name, options, program), "give the same command again to go on")


def _build(name: str, options: list[str], program: str) -> None:
    args = parse(DATASETS[name], options, f"{program} build {name}")
    _print_report(build_dataset(name, args.find_videos(name), args.output, args.clips, args.beam), args.output)


def _encode(options: list[str], program: str) -> None:
    from animate_jax.parallel import processes  # JAX, which building a data set does not need
    from animate_jax.torch_weights.fetching import localize
    from animate_jax.training.encoding import EncodeArguments, encode

    args = parse(EncodeArguments, options, f"{program} encode")
    with processes.distributed():
        encode(args.data, localize(args.checkpoint), args.output, args.options)


def _print_report(report: dict[str, Any], output: pathlib.Path) -> None:
    for reason, row in {"kept": report["kept"], **report["dropped"]}.items():
        remedy = f" ({REMEDIES[reason]} keeps more)" if reason in REMEDIES else ""
        print(f"{reason:>20}: {row['clips']:6} pieces, {row['seconds']:10.1f} s{remedy}")
    for name, damage in report["damaged"].items():
        print(f"{'skipped':>20}: {name}: {damage}")
    print(f"see {output}/report.html")
