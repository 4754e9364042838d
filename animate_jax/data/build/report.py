"""What a build kept and dropped, and why: build.json for programs, report.html with pictures for people."""

from __future__ import annotations

import base64
import collections
import dataclasses
import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from animate_jax.data.build.clips import ClipOptions, Video

KEPT_SHOWN, DROPPED_SHOWN = 200, 20  # pictures of clips, and of every reason to drop one

STYLE = """
body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .3em 1em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } code { color: #555 }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top } figcaption { color: #555 }
img { height: 240px; max-width: 100%; object-fit: contain; object-position: left }
"""


def write_report(
    folder: Path,
    name: str,
    options: ClipOptions,
    videos: list[Video],
    summaries: list[dict[str, Any]],
    load: Callable[[Video], Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes both files into `folder` and returns what build.json holds.

    Args:
        summaries: of every video: fps, damage (empty, or what is wrong with it), pieces (start, frames, reason, ...).
        load: the pictures of a video, JPEG bytes as uint8 arrays named "{number of the piece}/picture".
    """
    kept, dropped = [], collections.defaultdict(list)
    for video, summary in zip(videos, summaries, strict=True):
        for index, piece in enumerate(summary["pieces"]):
            row = (piece["frames"] / summary["fps"], video, index, piece, summary["fps"])
            (dropped[piece["reason"]] if piece["reason"] else kept).append(row)
    total = lambda rows: {"clips": len(rows), "seconds": round(sum(row[0] for row in rows), 2)}  # noqa: E731
    report = {
        "name": name,
        "options": dataclasses.asdict(options),
        "videos": len(videos),
        "kept": total(kept),
        "dropped": {reason: total(rows) for reason, rows in sorted(dropped.items())},
        "damaged": {v.name: s["damage"] for v, s in zip(videos, summaries, strict=True) if s["damage"]},
    }

    def figure(row) -> str:
        _, video, index, piece, fps = row
        with load(video) as arrays:
            picture = base64.b64encode(arrays[f"{index}/picture"].tobytes()).decode()
        text = (
            f"{html.escape(video.name)}, {piece['start'] / fps:.2f} to {(piece['start'] + piece['frames']) / fps:.2f} s"
        )
        if piece["person"]:
            text += f"<br>person {piece['person']:.0f} pixels high, motion {piece['motion']:.3f}"
        if not piece["reason"]:
            text += f", {piece['width']} × {piece['height']} pixels, {fps:.4g} frames/s"
        return f'<figure><img src="data:image/jpeg;base64,{picture}"><figcaption>{text}</figcaption></figure>'

    rows = {"kept": report["kept"], **{f"dropped: {reason}": row for reason, row in report["dropped"].items()}}
    if report["damaged"]:
        rows["damaged videos"] = {"clips": len(report["damaged"]), "seconds": "?"}
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(name)}</h1><p>{len(videos)} videos, built with",
        " ".join(f"<code>{key}={html.escape(str(value))}</code>" for key, value in report["options"].items()) + "</p>",
        "<table><tr><th><th>pieces<th>seconds</tr>",
        *(f"<tr><td>{key}<td>{row['clips']}<td>{row['seconds']}</tr>" for key, row in rows.items()),
        "</table>",
    ]
    if report["damaged"]:
        lines = (f"<li>{html.escape(key)}: {html.escape(text)}" for key, text in report["damaged"].items())
        parts += ["<h2>Damaged videos, skipped</h2><ul>", *lines, "</ul>"]
    parts += [f"<h2>Kept{_first(kept, KEPT_SHOWN)}</h2>", *(figure(row) for row in kept[:KEPT_SHOWN])]
    for reason, dropped_rows in sorted(dropped.items()):
        longest = sorted(dropped_rows, key=lambda row: -row[0])
        parts += [f"<h2>Dropped: {reason}{_first(longest, DROPPED_SHOWN, 'longest')}</h2>"]
        parts += [figure(row) for row in longest[:DROPPED_SHOWN]]
    (folder / "report.html").write_text("\n".join(parts), encoding="utf-8")
    (folder / "build.json").write_text(json.dumps(report, indent=1))
    return report


def _first(rows: list, shown: int, which: str = "first") -> str:
    return f", the {which} {shown} of {len(rows)}" if len(rows) > shown else ""
