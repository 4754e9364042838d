"""Public data sets in made-up folders of their official layouts."""

import collections

import pytest

from animate_jax.commands.data import main
from animate_jax.data.build.public_datasets import PUBLIC_DATASETS
from animate_jax.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def split_folders(folder, train, test):
    touch(*(folder / "train" / f"{i:04d}.mp4" for i in range(train)))
    touch(*(folder / "test" / f"{i:04d}.mp4" for i in range(test)))


def counts(videos):
    return dict(collections.Counter(video.split for video in videos))


@pytest.mark.parametrize("name, train, test", [("ubc_fashion", 500, 100), ("ted_talk", 1132, 131)])
def test_split_folders(tmp_path, name, train, test):
    split_folders(tmp_path, train, test)
    touch(tmp_path / "train" / "notes.txt")
    videos = PUBLIC_DATASETS[name].find_videos(tmp_path)
    assert counts(videos) == {"train": train, "test": test}
    assert len({video.name for video in videos}) == train + test  # the two splits share file names
    assert all(video.path.parent.name == video.split and video.fps is None for video in videos)


def test_ubc_fashion_from_its_lists(tmp_path):
    for split, count in {"train": 500, "test": 100}.items():
        names = [f"{split}+{i}S.mp4" for i in range(count)]
        touch(*(tmp_path / "videos" / name for name in names))
        (tmp_path / f"fashion_{split}.txt").write_text("".join(f"https://example.org/vse/{name}\n" for name in names))
    videos = PUBLIC_DATASETS["ubc_fashion"].find_videos(tmp_path)
    assert counts(videos) == {"train": 500, "test": 100}
    assert all(video.path.name.startswith(video.split) and video.path.is_file() for video in videos)


@pytest.mark.parametrize("inner", ["", "TikTok_dataset"])
def test_tiktok(tmp_path, inner):
    for number in range(1, 341):
        folder = tmp_path / inner / f"{number:05d}"
        touch(folder / "images" / "0001.png", folder / "images" / "0002.png", folder / "masks" / "0001.png")
    videos = PUBLIC_DATASETS["tiktok"].find_videos(tmp_path)
    assert counts(videos) == {"train": 334, "test": 6}
    assert [video.name for video in videos if video.split == "test"] == [f"00{number}" for number in range(335, 341)]
    assert videos[0].rate() == 30 and [path.name for path in videos[0].images()] == ["0001.png", "0002.png"]


@pytest.mark.parametrize(
    "train, test, incomplete, message",
    [
        (499, 100, False, "499 videos of the train split instead of 500: .*vision.cs.ubc.ca.*--incomplete"),
        (500, 0, True, "0 videos of the test split instead of 100: it must hold train/"),
        (500, 101, True, "101 videos of the test split instead of 100"),
    ],
)
def test_wrong_counts(tmp_path, train, test, incomplete, message):
    split_folders(tmp_path, train, test)
    with pytest.raises(UserError, match=message):
        PUBLIC_DATASETS["ubc_fashion"].find_videos(tmp_path, incomplete)


def test_missing_videos_may_be_accepted(tmp_path):
    split_folders(tmp_path, 3, 1)
    assert counts(PUBLIC_DATASETS["ted_talk"].find_videos(tmp_path, incomplete=True)) == {"train": 3, "test": 1}


@pytest.mark.parametrize("name", PUBLIC_DATASETS)
def test_no_folder_says_where_to_get_it(tmp_path, capsys, name):
    arguments = ["--videos", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    assert main(["build", name, *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "no such folder" in printed and PUBLIC_DATASETS[name].source in printed
