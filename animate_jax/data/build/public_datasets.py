"""The paper's benchmarks, from their official layouts: which videos there are, and which are for testing.

Every video stays whole and uncropped: the metrics are taken over all of its frames.

A new data set is a row of `PUBLIC_DATASETS`; one that is also a benchmark has a row in `evaluation.protocols`, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from animate_jax.data.build.clips import Video
from animate_jax.data.build.dataset import relative_name
from animate_jax.errors import UserError
from animate_jax.video.open import VIDEO_SUFFIXES

TIKTOK_RATE = 30.0  # frames/s of its images
TIKTOK_TEST = range(335, 341)  # DisCo's split of the public sequences; the paper follows it


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    counts: dict[str, int]  # split -> number of videos
    layout: str
    source: str  # where to get the files
    find: Callable[[Path], list[Video]]

    def find_videos(self, folder: Path, incomplete: bool = False) -> list[Video]:
        """All videos of the data set.

        Args:
            incomplete: accept that videos are missing; each split must still have one.

        Raises:
            UserError: the folder or videos are missing, or there are too many.
        """
        if not folder.is_dir():
            raise UserError(f"--videos {folder}: no such folder: {self.advice()}")
        videos = self.find(folder)
        for split, expected in self.counts.items():
            found = sum(video.split == split for video in videos)
            if not found or found > expected or (found < expected and not incomplete):
                hint = "" if incomplete or not 0 < found < expected else ", or accept it with --incomplete"
                wrong = f"{found} videos of the {split} split instead of {expected}"
                raise UserError(f"--videos {folder}: {wrong}: {self.advice()}{hint}")
        return videos

    def advice(self) -> str:
        return f"it must hold {self.layout}; get them from {self.source}"


def _split_folders(folder: Path) -> list[Video]:
    """train/*.mp4 and test/*.mp4."""
    return [
        Video(relative_name(path, folder), path, split)
        for split in ("train", "test")
        for path in sorted((folder / split).glob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES
    ]


def _ubc_fashion(folder: Path) -> list[Video]:
    """Split folders, or the two official lists of addresses with the videos anywhere in the folder."""
    lists = {split: folder / f"fashion_{split}.txt" for split in ("train", "test")}
    if not all(path.is_file() for path in lists.values()):
        return _split_folders(folder)
    paths = {path.name: path for path in sorted(folder.rglob("*.mp4"))}
    names = {split: [line.strip().rpartition("/")[2] for line in open(path)] for split, path in lists.items()}
    return [
        Video(relative_name(paths[name], folder), paths[name], split)
        for split in names
        for name in dict.fromkeys(names[split])
        if name in paths
    ]


def _tiktok(folder: Path) -> list[Video]:
    """00001/images/0001.png and so on, perhaps in a folder TikTok_dataset."""
    inner = folder / "TikTok_dataset"
    folders = sorted((inner if inner.is_dir() else folder).glob("[0-9][0-9][0-9][0-9][0-9]"))
    return [
        Video(path.name, path / "images", "test" if int(path.name) in TIKTOK_TEST else "train", TIKTOK_RATE)
        for path in folders
        if (path / "images").is_dir()
    ]


PUBLIC_DATASETS = {
    # Zablotskaia et al., "DwNet", 2019.
    "ubc_fashion": PublicDataset(
        {"train": 500, "test": 100},
        "train/*.mp4 and test/*.mp4, or fashion_train.txt, fashion_test.txt and the videos they name",
        "https://vision.cs.ubc.ca/datasets/fashion",
        _ubc_fashion,
    ),
    # Jafarian and Park, "Learning High Fidelity Depths of Dressed Humans by Watching Social Media Dance Videos", 2021.
    "tiktok": PublicDataset(
        {"train": 334, "test": 6},
        "the folders 00001 to 00340, each with images/*.png",
        "https://www.yasamin.page/hdnet_tiktok",
        _tiktok,
    ),
    # Siarohin et al., "Motion Representations for Articulated Animation", 2021.
    "ted_talk": PublicDataset(
        {"train": 1132, "test": 131},
        "train/*.mp4 and test/*.mp4",
        "https://github.com/snap-research/articulated-animation (TED dataset)",
        _split_folders,
    ),
}
