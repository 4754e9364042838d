"""Contact sheets: rows of reference, poses and results in one image, under column titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

MARGIN = 8  # pixels around every cell
PAPER, INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], labels: Sequence[str] = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Arranges images in a grid on white, each centered in its cell at its own size.

    Args:
        rows: rows of images; rows may differ in length, images in size.
        labels: titles of the columns, shortened to the column's width; none leaves the title line out.
    """
    columns = max([len(row) for row in rows] + [len(labels)])
    widths = [max([row[i].shape[1] for row in rows if i < len(row)], default=0) for i in range(columns)]
    heights = [max([picture.shape[0] for picture in row], default=0) for row in rows]
    font = PIL.ImageFont.load_default(size=float(np.clip(max(widths) / 12, 9, 24)))
    assert isinstance(font, PIL.ImageFont.FreeTypeFont)  # as it has a size
    title = sum(font.getmetrics()) + MARGIN if any(labels) else 0

    lefts = MARGIN + np.cumsum([0] + [width + MARGIN for width in widths])
    tops = MARGIN + title + np.cumsum([0] + [height + MARGIN for height in heights])
    sheet = PIL.Image.new("RGB", (int(lefts[-1]), int(tops[-1])), PAPER)
    pen = PIL.ImageDraw.Draw(sheet)
    for left, width, label in zip(lefts, widths, labels, strict=False):
        while label and font.getlength(label) > width:
            label = label[:-1]
        pen.text((left + width / 2, MARGIN), label, INK, font, anchor="ma")
    for top, height, row in zip(tops, heights, rows, strict=False):
        for left, width, picture in zip(lefts, widths, row, strict=False):
            place = int(left) + (width - picture.shape[1]) // 2, int(top) + (height - picture.shape[0]) // 2
            sheet.paste(PIL.Image.fromarray(picture), place)
    return np.array(sheet)
