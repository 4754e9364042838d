import csv
import json

import numpy as np
import PIL.Image
import pytest

from animate_jax.errors import UserError
from animate_jax.evaluation.protocols import PROTOCOLS
from animate_jax.evaluation.report import REPEATED, RESULT, Report, cell, markdown, sheet_row, table, worst_median_best
from animate_jax.evaluation.scores import ClipScores
from animate_jax.evaluation.summary import Estimate
from animate_jax.video.read import read_video

ESTIMATES = {
    REPEATED: {"psnr": Estimate(19.184, 18.5, 20.0), "disco_psnr": Estimate(28.0), "fvd": Estimate(900.4)},
    RESULT: {"psnr": Estimate(21.8, 20.0, 23.0), "disco_psnr": Estimate(30.5), "fvd": Estimate(500.2, 400.0, 600.0)},
}
CLIPS = {REPEATED: {"a": ClipScores({"psnr": 19.0, "flicker": float("nan")}, {})}, RESULT: {"a": ClipScores({}, {})}}


def test_table():
    assert table(["PSNR"], {"ours": ["21.80"]}) == "|  | PSNR |\n| --- | --- |\n| ours | 21.80 |\n"
    assert cell(Estimate(21.8049, 20.0, 23.0), 2) == "21.80 [20.00, 23.00]"
    assert cell(Estimate(3.0), 1) == "3.0" and cell(Estimate(np.nan), 1) == cell(None, 1) == "–"


def test_markdown_has_what_was_measured():
    text = markdown(ESTIMATES, {"clips": 4, "protocol": None}, None)
    assert "clips 4\n" in text and "protocol" not in text
    assert f"| {REPEATED} | 19.18 [18.50, 20.00] | 900 |" in text
    assert "| result | 30.50 |" in text and "person's box" not in text


def test_the_papers_rows_stand_beside_ours():
    text = markdown(ESTIMATES, {}, PROTOCOLS["ubc_fashion"])
    assert "| Animate Anyone (paper) | 0.931 | 38.49 | 0.044 | 81.6 |" in text
    assert "| MRAA (paper) | 0.749 | – | 0.212 | 253.6 |" in text
    assert "| result | – | 21.80 [20.00, 23.00] | – | 500.2 [400.0, 600.0] |" in text
    assert "| result, DisCo's code | – | 30.50 | – | 500.2 [400.0, 600.0] |" in text


def test_worst_median_best():
    assert worst_median_best([5, 1, 4, 2, 3, 9, 7], True) == {"worst": [1, 3], "median": [4, 2], "best": [6, 5]}
    assert worst_median_best([5, 1, 4, 2, 3, 9, 7], False)["best"] == [3, 1]
    assert worst_median_best([1.0], True) == {"worst": [0], "median": [], "best": []}
    shown = worst_median_best([1, 2, 3], True)
    assert sorted([*shown["worst"], *shown["median"], *shown["best"]]) == [0, 1, 2]


def fill(report):
    video = np.full((5, 64, 48, 3), 128, np.uint8)
    report.add_video("a", 10.0, {"reference": video, "result": video})
    report.add_sheet({"worst": [sheet_row(video, video, video, video[0])]}, ["", "reference"])
    return report.add_estimates(ESTIMATES, CLIPS, {"clips": 1}, PROTOCOLS["tiktok"])


def test_a_whole_report(tmp_path):
    with Report(tmp_path / "deep" / "report") as report:
        text = fill(report)
        assert not (tmp_path / "deep" / "report").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report"]
    output = tmp_path / "deep" / "report"
    assert (output / "metrics.md").read_text() == text
    document = json.loads((output / "metrics.json").read_text())
    assert document["figures"][RESULT]["psnr"] == {"value": 21.8, "low": 20.0, "high": 23.0}
    assert document["figures"][RESULT]["disco_psnr"]["low"] is None
    assert document["clips"][REPEATED]["a"] == {"psnr": 19.0, "flicker": None}
    assert document["paper"]["rows"]["DisCo"]["fvd"] == 292.8
    rows = list(csv.reader((output / "clips.csv").open()))
    assert rows == [["clip", "method", "psnr", "flicker"], ["a", REPEATED, "19.0", ""], ["a", RESULT, "", ""]]
    video, fps = read_video(output / "videos" / "a.mp4")
    assert len(video) == 5 and fps == 10 and video.shape[1] > 192 and video.shape[2] > 2 * 144
    assert PIL.Image.open(output / "contact_sheet.png").width > 10 * 96


def test_an_older_report_is_replaced_when_the_new_one_is_complete(tmp_path):
    for content in ("old", "new"):
        with Report(tmp_path / "report") as report:
            fill(report)
            (report.folder / content).touch()
    assert (tmp_path / "report" / "new").exists() and not (tmp_path / "report" / "old").exists()
    with pytest.raises(KeyboardInterrupt), Report(tmp_path / "report") as report:
        fill(report)
        raise KeyboardInterrupt
    assert (tmp_path / "report" / "new").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_other_folders_are_left_alone(tmp_path):
    """Also one with another program's metrics.json, and a report to which something was added."""
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "metrics.json").write_text("another program's")
    with pytest.raises(UserError, match="no report of animate_jax: choose another name"), Report(tmp_path):
        pass
    with pytest.raises(UserError, match="no report"), Report(tmp_path / "thesis.tex"):
        pass
    with pytest.raises(UserError, match="cannot be written"), Report(tmp_path / "thesis.tex" / "report"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "metrics.json"}
    with Report(tmp_path / "report") as report:
        fill(report)
    (tmp_path / "report" / "videos" / "thoughts.md").touch()
    with pytest.raises(UserError, match=r"holds 'videos/thoughts\.md'"), Report(tmp_path / "report"):
        pass
    assert (tmp_path / "report" / "videos" / "thoughts.md").exists()
