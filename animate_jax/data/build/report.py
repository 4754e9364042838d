"""What a build kept and dropped, and why: build.json for programs, report.html with pictures for people."""

from __future__ import annotations

import base64
import collections
import dataclasses
import html
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from animate_jax.data.build.clips import REMEDIES, ClipOptions, Video

KEPT_SHOWN, DROPPED_SHOWN = 200, 20  # pictures of clips, and of every reason to drop one

STYLE = """
body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .3em 1em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } code { color: #555 }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top } figcaption { color: #555 }
img { height: 240px; max-width: 100%; object-fit: contain; object-position: left }
"""


Load = Callable[[Video], AbstractContextManager[Mapping[str, Any]]]


class Row(NamedTuple):
    """A segment of a video."""

    video: Video
    number: int  # of the segment
    segment: dict[str, Any]  # start, frames, reason, ...
    fps: float

    @property
    def seconds(self) -> float:
        return self.segment["frames"] / self.fps


def write_report(
    folder: Path,
    name: str,
    options: ClipOptions,
    videos: list[Video],
    summaries: list[dict[str, Any]],
    load: Load,
) -> dict[str, Any]:
    """Writes both files into `folder` and returns what build.json holds.

    Args:
        summaries: of every video: fps, damage (empty, or what is wrong with it), pieces (segments: start, frames,
            reason, ...).
        load: the thumbnails of a video, JPEG bytes as uint8 arrays named "{number of the segment}/picture".
    """
    rows = [
        Row(video, number, segment, summary["fps"])
        for video, summary in zip(videos, summaries, strict=True)
        for number, segment in enumerate(summary["pieces"])
    ]
    kept, dropped = [], collections.defaultdict(list)
    for row in rows:
        (dropped[row.segment["reason"]] if row.segment["reason"] else kept).append(row)
    report = {
        "name": name,
        "options": dataclasses.asdict(options),
        "videos": len(videos),
        "kept": _totals(kept),
        "dropped": {reason: _totals(rows) for reason, rows in sorted(dropped.items())},
        "damaged": {v.name: s["damage"] for v, s in zip(videos, summaries, strict=True) if s["damage"]},
    }

    (folder / "report.html").write_text(_html(report, kept, dropped, load), encoding="utf-8")
    (folder / "build.json").write_text(json.dumps(report, indent=1))
    return report


def _totals(rows: list[Row]) -> dict[str, Any]:
    return {"clips": len(rows), "seconds": round(sum(row.seconds for row in rows), 2)}


def _html(report: dict[str, Any], kept: list[Row], dropped: Mapping[str, list[Row]], load: Load) -> str:
    title = html.escape(report["name"])
    options = " ".join(f"<code>{key}={html.escape(str(value))}</code>" for key, value in report["options"].items())
    totals = {"kept": report["kept"], **{f"dropped: {reason}": total for reason, total in report["dropped"].items()}}
    if report["damaged"]:
        totals["damaged videos"] = {"clips": len(report["damaged"]), "seconds": "?"}
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><p>{report['videos']} videos, built with",
        f"{options}</p>",
        "<table><tr><th><th>pieces<th>seconds</tr>",
        *(f"<tr><td>{key}<td>{total['clips']}<td>{total['seconds']}</tr>" for key, total in totals.items()),
        "</table>",
    ]
    if report["damaged"]:
        lines = (f"<li>{html.escape(key)}: {html.escape(text)}" for key, text in report["damaged"].items())
        parts += ["<h2>Damaged videos, skipped</h2><ul>", *lines, "</ul>"]
    parts += [f"<h2>Kept{_first(kept, KEPT_SHOWN)}</h2>", *(_figure(row, load) for row in kept[:KEPT_SHOWN])]
    for reason, rows in sorted(dropped.items()):
        longest = sorted(rows, key=lambda row: -row.seconds)
        parts += [f"<h2>Dropped: {reason}{_first(longest, DROPPED_SHOWN, 'longest')}</h2>"]
        if reason in REMEDIES:
            parts += [f"<p>{REMEDIES[reason]} keeps more</p>"]
        parts += [_figure(row, load) for row in longest[:DROPPED_SHOWN]]
    return "\n".join(parts)


def _figure(row: Row, load: Load) -> str:
    segment, fps = row.segment, row.fps
    with load(row.video) as arrays:
        image = base64.b64encode(arrays[f"{row.number}/picture"].tobytes()).decode()
    start, end = segment["start"] / fps, (segment["start"] + segment["frames"]) / fps
    text = f"{html.escape(row.video.name)}, {start:.2f} to {end:.2f} s"
    if segment["person"]:
        text += f"<br>person {segment['person']:.0f} pixels high, motion {segment['motion']:.3f}"
    if not segment["reason"]:
        text += f", {segment['width']} × {segment['height']} pixels, {fps:.4g} frames/s"
    return f'<figure><img src="data:image/jpeg;base64,{image}"><figcaption>{text}</figcaption></figure>'


def _first(rows: list, shown: int, which: str = "first") -> str:
    return f", the {which} {shown} of {len(rows)}" if len(rows) > shown else ""
