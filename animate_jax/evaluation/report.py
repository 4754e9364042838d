"""The report: metrics.json, metrics.md, clips.csv, contact_sheet.png, and videos side by side."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from animate_jax.atomic import atomic_folder, check_folder
from animate_jax.evaluation.protocols import Protocol
from animate_jax.evaluation.scores import ClipScores
from animate_jax.evaluation.summary import Estimate
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.images import write_image
from animate_jax.video.write import write_video

Estimates = Mapping[str, Estimate]
Frames = UInt8[np.ndarray, "frames height width 3"]
Image = UInt8[np.ndarray, "_ _ 3"]

KIND = "report"  # in the marker file of the folder
RESULT, REPEATED, AUTOENCODER = "result", "repeat the reference", "autoencoder (upper bound)"
WARPED = "warp the reference"
CLIPS_PER_GROUP = 2  # of the contact sheet
MOMENTS = (0.15, 0.5, 0.95)  # times of the frames on the contact sheet, as shares of the clip's duration
SHEET_COLUMNS = ("reference", *("pose", "result", "truth") * len(MOMENTS))
MIN_VIDEO_HEIGHT, MIN_SHEET_HEIGHT = 192, 128  # pixels: smaller videos and images are enlarged

# Tables: title -> {figure: (column's title, decimals)}; the arrow points in the direction of better values.
TABLES = {
    "Full frames": {
        "psnr": ("PSNR ↑", 2),
        "ssim": ("SSIM ↑", 3),
        "l1": ("L1 ↓", 4),
        "lpips": ("LPIPS ↓", 3),
        "lpips_alex": ("LPIPS alex ↓", 3),
        "fvd": ("FVD ↓", 0),
        "frame_distance": ("frame distance ↓", 2),
    },
    "The person's box": {
        "box_psnr": ("PSNR ↑", 2),
        "box_ssim": ("SSIM ↑", 3),
        "box_l1": ("L1 ↓", 4),
        "box_lpips": ("LPIPS ↓", 3),
        "box_lpips_alex": ("LPIPS alex ↓", 3),
        "box_fvd": ("FVD ↓", 0),
        "box_frame_distance": ("frame distance ↓", 2),
    },
    "Pose, person, stillness": {
        "found": ("person found ↑", 2),
        "pck_10": ("PCK@0.1 ↑", 3),
        "pck_20": ("PCK@0.2 ↑", 3),
        "pck_ratio_10": ("PCK@0.1 / true ↑", 3),
        "pck_ratio_20": ("PCK@0.2 / true ↑", 3),
        "identity": ("identity ↑", 3),
        "identity_first": ("own reference nearest ↑", 2),
        "flicker": ("flicker ↓", 2),
        "background_drift": ("background drift ↓", 2),
        "person_drift": ("person drift ↓", 2),
    },
    "As DisCo's code computes them (only to read published tables; see docs/evaluation.md)": {
        "disco_psnr": ("uint8-overflow PSNR", 2),
        "disco_ssim": ("gray SSIM ↑", 3),
        "disco_lpips": ("LPIPS of [0, 1] ↓", 3),
    },
}
PAPER = {"ssim": ("SSIM ↑", 3), "psnr": ("PSNR ↑", 2), "lpips": ("LPIPS ↓", 3), "fvd": ("FVD ↓", 1)}


def check_output(output: str | os.PathLike) -> None:
    """Checks that a report can be written there, before any long work.

    Raises:
        UserError: the path cannot be written, or contains something else than a report.
    """
    check_folder(output, KIND)


class Report:
    """Writes a report to a temporary folder, which becomes `output` when it is complete.

    A context manager; an error leaves nothing behind. An older report is replaced, other files never are.

    Raises:
        UserError: the path cannot be written, or contains something else than a report.
    """

    def __init__(self, output: str | os.PathLike):
        self._writing = atomic_folder(output, KIND)

    def __enter__(self) -> Report:
        self.folder = self._writing.__enter__()
        (self.folder / "videos").mkdir(parents=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._writing.__exit__(*error)

    def add_video(self, name: str, fps: float, columns: Mapping[str, Frames]) -> None:
        """Writes videos/NAME.mp4, the columns side by side under their titles."""
        zoom = max(1, math.ceil(MIN_VIDEO_HEIGHT / next(iter(columns.values())).shape[1]))
        rows = zip(*(enlarged(video, zoom) for video in columns.values()), strict=True)
        write_video(self.folder / "videos" / f"{name}.mp4", (contact_sheet([row], list(columns)) for row in rows), fps)

    def add_sheet(self, groups: Mapping[str, Sequence[Sequence[Image]]], labels: Sequence[str]) -> None:
        """Writes contact_sheet.png: one row of images per clip, with the name of its group first."""
        rows = [[_title(group), *row] for group, rows in groups.items() for row in rows]
        write_image(self.folder / "contact_sheet.png", contact_sheet(rows, labels))

    def add_estimates(
        self,
        estimates: Mapping[str, Estimates],
        clips: Mapping[str, Mapping[str, ClipScores]],
        settings: Mapping[str, Any],
        protocol: Protocol | None,
    ) -> str:
        """Writes metrics.json, metrics.md and clips.csv; returns the Markdown.

        Args:
            estimates: method -> figure -> value.
            clips: method -> clip -> its scores.
        """
        clip_scores = {m: {clip: _without_nan(s.scores) for clip, s in row.items()} for m, row in clips.items()}
        document: dict[str, Any] = {
            "settings": {name: str(value) for name, value in settings.items()},
            "figures": {
                method: {name: _without_nan(dataclasses.asdict(estimate)) for name, estimate in row.items()}
                for method, row in estimates.items()
            },
            "clips": clip_scores,
        }
        if protocol:
            document["paper"] = {"title": protocol.title, "rows": protocol.rows}
        (self.folder / "metrics.json").write_text(json.dumps(document, indent=1, allow_nan=False))
        self._write_csv(clip_scores)
        text = markdown(estimates, settings, protocol)
        (self.folder / "metrics.md").write_text(text)
        return text

    def _write_csv(self, clip_scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
        names = list(dict.fromkeys(name for row in clip_scores.values() for scores in row.values() for name in scores))
        with (self.folder / "clips.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "method", *names])
            for method, row in clip_scores.items():
                for clip, scores in row.items():
                    writer.writerow([clip, method, *(scores.get(name) for name in names)])  # None becomes ""


def markdown(estimates: Mapping[str, Estimates], settings: Mapping[str, Any], protocol: Protocol | None) -> str:
    """The tables, each with the columns that were measured; `value [low, high]` is a 95 % interval over clips."""
    described = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    parts = [
        f"# Evaluation\n\n{described}\n\nIntervals: 95 %, bootstrap over clips; FVD and frame distance: jackknife.\n"
    ]
    if protocol:
        parts.append(_paper_table(estimates, protocol))
    for title, columns in TABLES.items():
        columns = {name: column for name, column in columns.items() if any(name in row for row in estimates.values())}
        rows = {method: row for method, row in estimates.items() if set(row) & set(columns)}
        if columns:
            cells = {m: [cell(row.get(name), columns[name][1]) for name in columns] for m, row in rows.items()}
            parts.append(f"## {title}\n\n" + table([title for title, _ in columns.values()], cells))
    return "\n".join(parts)


def _paper_table(estimates: Mapping[str, Estimates], protocol: Protocol) -> str:
    """The paper's figures and ours, with the metrics as defined and as DisCo's code computes them."""
    cells = {
        f"{name} (paper)": [f"{row[key]:.{decimals}f}" if key in row else "–" for key, (_, decimals) in PAPER.items()]
        for name, row in protocol.rows.items()
    }
    for method in (REPEATED, WARPED, AUTOENCODER, RESULT):
        if method in estimates:
            for label, prefix in (("", ""), (", DisCo's code", "disco_")):
                row = [estimates[method].get(key if key == "fvd" else prefix + key) for key in PAPER]
                cells[f"{method}{label}"] = [
                    cell(estimate, decimals) for estimate, (_, decimals) in zip(row, PAPER.values(), strict=True)
                ]
    note = f"Split: {protocol.split}; {protocol.clips} test videos. {protocol.note}\n"
    return f"## {protocol.title}\n\n{table([title for title, _ in PAPER.values()], cells)}\n{note}"


def cell(estimate: Estimate | None, decimals: int) -> str:
    if estimate is None or not math.isfinite(estimate.value):
        return "–"
    value = f"{estimate.value:.{decimals}f}"
    if not math.isfinite(estimate.low):
        return value
    return f"{value} [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table; the rows' names are its first column."""
    lines = [["", *titles], ["---"] * (len(titles) + 1), *([name, *cells] for name, cells in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def worst_median_best(scores: Sequence[float | int], higher_is_better: bool) -> dict[str, list[int]]:
    """Indices of the worst, the median and the best clips; none appears twice."""
    order = [int(i) for i in np.argsort(scores)]
    if not higher_is_better:
        order.reverse()
    shown = min(CLIPS_PER_GROUP, max(len(order) // 3, 1))
    middle = max((len(order) - shown) // 2, 0)
    picked = {"worst": order[:shown], "median": order[middle : middle + shown], "best": order[-shown:]}
    seen: set[int] = set()
    out = {}
    for name, indices in picked.items():
        out[name] = [i for i in indices if i not in seen]
        seen.update(indices)
    return out


def sheet_row(video: Frames, poses: Frames, truth: Frames, reference: Image) -> list[Image]:
    """A clip's row of the contact sheet: the reference, then pose, result and true frame at three times."""
    zoom = max(1, math.ceil(MIN_SHEET_HEIGHT / reference.shape[0]))
    indices = [round(share * (len(video) - 1)) for share in MOMENTS]
    images = np.stack([reference, *(x[index] for index in indices for x in (poses, video, truth))])
    return list(enlarged(images, zoom))


def enlarged(images: UInt8[np.ndarray, "*n height width 3"], zoom: int) -> UInt8[np.ndarray, "*n _ _ 3"]:
    return images.repeat(zoom, -3).repeat(zoom, -2)


def _title(text: str) -> Image:
    """A white cell with `text`."""
    return contact_sheet([[np.full((32, 80, 3), 255, np.uint8)]], [text])


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN becomes None, as JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
