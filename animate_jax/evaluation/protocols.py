"""The settings of the paper's benchmarks (Hu et al. 2023), and its published figures.

The paper trains on each benchmark separately, and states neither the size nor the code of its metrics. Its PSNR (38 dB
where SSIM is .93) suggests 8-bit arithmetic with overflow, see `disco_metrics`. Sizes here are those of the first
papers that used the data sets: DreamPose for UBC fashion, DisCo for TikTok, MRAA for TED-talks.

A new benchmark is a row of `PROTOCOLS`, and its data set a row of `PUBLIC_DATASETS` in `data.build.public_datasets`.
"""

from __future__ import annotations

import dataclasses

Row = dict[str, float]  # figure -> value


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One benchmark. Every clip's first frame is the reference; all later frames are generated and measured.

    The reference is cropped around its center to the aspect ratio of `size`, and results are measured at that size.
    """

    title: str
    clips: int  # in the test split
    width: int
    height: int
    split: str  # how the data set is split
    rows: dict[str, Row]  # the paper's
    note: str = ""


def _row(ssim: float, psnr: float | None, lpips: float, fvd: float) -> Row:
    row = {"ssim": ssim, "psnr": psnr, "lpips": lpips, "fvd": fvd}
    return {name: value for name, value in row.items() if value is not None}


PROTOCOLS = {
    "ubc_fashion": Protocol(
        "Table 1: UBC fashion videos",
        100,
        512,
        640,
        "500 videos to train, 100 to test (the data set's own)",
        {
            "MRAA": _row(0.749, None, 0.212, 253.6),
            "TPSMM": _row(0.746, None, 0.213, 247.5),
            "BDMM": _row(0.918, 24.07, 0.048, 148.3),
            "DreamPose": _row(0.885, None, 0.068, 238.7),
            "DreamPose without finetuning": _row(0.879, 34.75, 0.111, 279.6),
            "Animate Anyone": _row(0.931, 38.49, 0.044, 81.6),
            "Animate Anyone, CLIP only": _row(0.897, 36.09, 0.089, 208.5),
            "Animate Anyone, ControlNet": _row(0.892, 35.89, 0.105, 213.9),
            "Animate Anyone, CLIP and ControlNet": _row(0.898, 36.03, 0.086, 205.4),
        },
        "The last three rows are the paper's ablation, on the same data.",
    ),
    "tiktok": Protocol(
        "Table 2: TikTok",
        6,
        256,
        256,
        "sequences 1 to 334 to train, 335 to 340 to test (DisCo)",
        {
            "FOMM": _row(0.648, 29.01, 0.335, 405.2),
            "MRAA": _row(0.672, 29.39, 0.296, 284.8),
            "TPSMM": _row(0.673, 29.18, 0.299, 306.1),
            "DisCo": _row(0.668, 29.03, 0.292, 292.8),
            "Animate Anyone": _row(0.718, 29.56, 0.285, 171.9),
        },
        "DisCo tests on ten videos, four of which are not public, at 256x256 pixels; the paper follows its split.",
    ),
    "ted_talk": Protocol(
        "Table 3: TED-talks",
        131,
        384,
        384,
        "1132 videos to train, 131 to test (MRAA)",
        {"Animate Anyone": _row(0.832, 33.91, 0.159, 80.5)},
        "This row has not been checked against the paper.",
    ),
}
