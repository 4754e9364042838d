"""The report: metrics.json, metrics.md, clips.csv, contact_sheet.png, and videos side by side."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from animate_jax.atomic import atomic_folder
from animate_jax.evaluation.protocols import Protocol
from animate_jax.evaluation.scores import Measured
from animate_jax.evaluation.summary import Figure
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.files import write_image, write_video

Figures = Mapping[str, Figure]
Frames = UInt8[np.ndarray, "frames height width 3"]
Picture = UInt8[np.ndarray, "_ _ 3"]

RESULT, REPEATED, AUTOENCODER = "result", "repeat the reference", "autoencoder (upper bound)"
WARPED = "warp the reference"
SHOWN = 2  # clips per group of the sheet
MOMENTS = (0.15, 0.5, 0.95)  # parts of a clip that the sheet shows
SMALLEST = 192  # pixels: smaller videos are enlarged to look at

# Tables: title -> {figure: (column's title, decimals)}; the arrow says which way is better.
TABLES = {
    "Full frames": {
        "psnr": ("PSNR ↑", 2), "ssim": ("SSIM ↑", 3), "l1": ("L1 ↓", 4), "lpips": ("LPIPS ↓", 3),
        "lpips_alex": ("LPIPS alex ↓", 3), "fvd": ("FVD ↓", 0), "frame_distance": ("frame distance ↓", 2),
    },
    "The person's box": {
        "box_psnr": ("PSNR ↑", 2), "box_ssim": ("SSIM ↑", 3), "box_l1": ("L1 ↓", 4), "box_lpips": ("LPIPS ↓", 3),
        "box_lpips_alex": ("LPIPS alex ↓", 3), "box_fvd": ("FVD ↓", 0),
        "box_frame_distance": ("frame distance ↓", 2),
    },
    "Pose, person, stillness": {
        "found": ("person found ↑", 2),
        "pck_10": ("PCK@0.1 ↑", 3), "pck_20": ("PCK@0.2 ↑", 3), "pck_ratio_10": ("PCK@0.1 / true ↑", 3),
        "pck_ratio_20": ("PCK@0.2 / true ↑", 3), "identity": ("identity ↑", 3),
        "identity_first": ("own reference nearest ↑", 2), "flicker": ("flicker ↓", 2),
    },
    "As the field's shared code counts (only to read published tables; see docs/evaluation.md)": {
        "disco_psnr": ("uint8-overflow PSNR", 2), "disco_ssim": ("grey SSIM ↑", 3),
        "disco_lpips": ("LPIPS of [0, 1] ↓", 3),
    },
}  # fmt: skip
PAPER = {"ssim": ("SSIM ↑", 3), "psnr": ("PSNR ↑", 2), "lpips": ("LPIPS ↓", 3), "fvd": ("FVD ↓", 1)}


class Report:
    """A report in the making, in a folder that becomes `output` when it is complete.

    Use as a context; nothing is left behind when the work fails. An older report gives way; other files never do.

    Raises:
        UserError: the place cannot be written, or something else than a report is there.
    """

    def __init__(self, output: Path):
        self._making = atomic_folder(output, "report")

    def __enter__(self) -> Report:
        self.folder = self._making.__enter__()
        (self.folder / "videos").mkdir(parents=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._making.__exit__(*error)

    def add_video(self, name: str, fps: float, columns: Mapping[str, Frames]) -> None:
        """Writes videos/NAME.mp4, the columns side by side under their titles."""
        zoom = max(1, math.ceil(SMALLEST / next(iter(columns.values())).shape[1]))
        rows = zip(*(enlarged(video, zoom) for video in columns.values()), strict=True)
        write_video(self.folder / "videos" / f"{name}.mp4", (contact_sheet([row], list(columns)) for row in rows), fps)

    def add_sheet(self, groups: Mapping[str, Sequence[Sequence[Picture]]], labels: Sequence[str]) -> None:
        """Writes contact_sheet.png: the group's name, then a row of pictures, clip below clip."""
        rows = [[_title(group), *row] for group, rows in groups.items() for row in rows]
        write_image(self.folder / "contact_sheet.png", contact_sheet(rows, labels))

    def add_figures(
        self,
        figures: Mapping[str, Figures],
        clips: Mapping[str, Mapping[str, Measured]],
        settings: Mapping[str, Any],
        protocol: Protocol | None,
    ) -> str:
        """Writes metrics.json, metrics.md and clips.csv; returns the Markdown.

        Args:
            figures: method -> figure -> value.
            clips: method -> clip -> its scores.
        """
        values = {method: {name: _plain(figure) for name, figure in row.items()} for method, row in figures.items()}
        each = {method: {clip: _finite(m.scores) for clip, m in row.items()} for method, row in clips.items()}
        document = {"settings": {name: str(value) for name, value in settings.items()}, "figures": values,
                    "clips": each}  # fmt: skip
        if protocol:
            document["paper"] = {"title": protocol.title, "rows": protocol.rows}
        (self.folder / "metrics.json").write_text(json.dumps(document, indent=1, allow_nan=False))
        with (self.folder / "clips.csv").open("w", newline="") as file:
            names = list(dict.fromkeys(name for row in clips.values() for m in row.values() for name in m.scores))
            writer = csv.writer(file)
            writer.writerow(["clip", "method", *names])
            for method, row in each.items():
                for clip, scores in row.items():
                    writer.writerow([clip, method, *("" if scores.get(n) is None else scores[n] for n in names)])
        text = markdown(figures, settings, protocol)
        (self.folder / "metrics.md").write_text(text)
        return text


def markdown(figures: Mapping[str, Figures], settings: Mapping[str, Any], protocol: Protocol | None) -> str:
    """The tables, each with the columns that were measured; `value [low, high]` is a 95 % interval over clips."""
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    parts = [f"# Evaluation\n\n{said}\n\nIntervals: 95 %, bootstrap over clips; FVD and frame distance: jackknife.\n"]
    if protocol:
        parts.append(_paper_table(figures, protocol))
    for title, columns in TABLES.items():
        columns = {name: column for name, column in columns.items() if any(name in row for row in figures.values())}
        rows = {method: row for method, row in figures.items() if set(row) & set(columns)}
        if columns:
            cells = {m: [cell(row.get(name), columns[name][1]) for name in columns] for m, row in rows.items()}
            parts.append(f"## {title}\n\n" + table([title for title, _ in columns.values()], cells))
    return "\n".join(parts)


def _paper_table(figures: Mapping[str, Figures], protocol: Protocol) -> str:
    """The paper's rows and ours: with the metrics as defined, and as the field's shared code counts."""
    cells = {
        f"{name} (paper)": ["–" if value is None else f"{value:.{PAPER[key][1]}f}"
                            for key, value in ((key, row.get(key)) for key in PAPER)]
        for name, row in protocol.rows.items()
    }  # fmt: skip
    for method in (REPEATED, WARPED, AUTOENCODER, RESULT):
        if method in figures:
            for label, prefix in (("", ""), (", the field's code", "disco_")):
                row = [figures[method].get(key if key == "fvd" else prefix + key) for key in PAPER]
                cells[f"{method}{label}"] = [
                    cell(figure, decimals) for figure, (_, decimals) in zip(row, PAPER.values(), strict=True)
                ]
    note = f"Split: {protocol.split}; {protocol.clips} test videos. {protocol.note}\n"
    return f"## {protocol.title}\n\n{table([title for title, _ in PAPER.values()], cells)}\n{note}"


def cell(figure: Figure | None, decimals: int) -> str:
    if figure is None or not math.isfinite(figure.value):
        return "–"
    value = f"{figure.value:.{decimals}f}"
    if not math.isfinite(figure.low):
        return value
    return f"{value} [{figure.low:.{decimals}f}, {figure.high:.{decimals}f}]"


def table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table; the rows' names are its first column."""
    lines = [["", *titles], ["---"] * (len(titles) + 1), *([name, *cells] for name, cells in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def groups(scores: Sequence[Real], higher_is_better: bool) -> dict[str, list[int]]:
    """Indices of the worst, the middle and the best clips; none twice when there are few."""
    order = [int(i) for i in np.argsort(scores)]
    if not higher_is_better:
        order.reverse()
    shown = min(SHOWN, max(len(order) // 3, 1))
    middle = max((len(order) - shown) // 2, 0)
    picked = {"worst": order[:shown], "median": order[middle : middle + shown], "best": order[-shown:]}
    seen: set[int] = set()
    out = {}
    for name, indices in picked.items():
        out[name] = [i for i in indices if i not in seen]
        seen.update(indices)
    return out


def strip(video: Frames, poses: Frames, truth: Frames, reference: Picture) -> list[Picture]:
    """A clip's row of the sheet: the reference, then pose, result and truth at three moments."""
    zoom = max(1, math.ceil(128 / reference.shape[0]))
    chosen = [round(part * (len(video) - 1)) for part in MOMENTS]
    pictures = np.stack([reference, *(x[i] for i in chosen for x in (poses, video, truth))])
    return list(enlarged(pictures, zoom))


def enlarged(pictures: UInt8[np.ndarray, "*n height width 3"], zoom: int) -> UInt8[np.ndarray, "*n _ _ 3"]:
    return pictures.repeat(zoom, -3).repeat(zoom, -2)


def _title(text: str) -> Picture:
    """A white cell that says `text`."""
    return contact_sheet([[np.full((32, 80, 3), 255, np.uint8)]], [text])


def _plain(figure: Figure) -> dict[str, float | None]:
    return _finite({"value": figure.value, "low": figure.low, "high": figure.high})


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
