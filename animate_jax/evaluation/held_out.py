"""How good generated clips are, beside the trivial answer: the reference picture, repeated."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from animate_jax.evaluation.image_quality import enlarge, person_box, psnr, ssim
from animate_jax.evaluation.lpips import Net, Params, lpips

Videos = UInt8[np.ndarray, "clips frames height width 3"]
Scores = dict[str, float]

# Score -> title and decimals of its column.
COLUMNS = {
    "psnr": ("PSNR", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3),
    "box_psnr": ("box PSNR", 2), "box_ssim": ("box SSIM", 3), "box_lpips": ("box LPIPS", 3),
}  # fmt: skip


def held_out(
    results: Videos,
    truths: Videos,
    references: UInt8[np.ndarray, "clips height width 3"],
    masks: Shaped[np.ndarray, "clips frames height width"],
    lpips_params: Params | None = None,
    net: Net = "vgg",
) -> dict[str, Scores]:
    """The scores of `results` and of the repeated reference pictures, ready for `table`.

    Args:
        truths: without the frame that the reference was taken from: there the trivial answer is perfect.
        masks: non-zero where the person is in the true frames.
        lpips_params: weights of `net` from `lpips.load`; None leaves LPIPS out.
    """
    repeated = np.broadcast_to(references[:, None], truths.shape)
    return {
        "repeat the reference": scores(repeated, truths, masks, lpips_params, net),
        "result": scores(results, truths, masks, lpips_params, net),
    }


def scores(
    videos: Videos,
    truths: Videos,
    masks: Shaped[np.ndarray, "clips frames height width"],
    lpips_params: Params | None = None,
    net: Net = "vgg",
) -> Scores:
    """Means over all frames of psnr, ssim, lpips, and of the same inside the person's box (box_psnr, ...).

    LPIPS of a box is that of the box resized to 7/8 of the picture's height and 2/3 of its width.
    """
    clips = [
        _frame_scores(video, truth, boxes, lpips_params, net)
        for video, truth, boxes in zip(videos, truths, person_box(masks), strict=True)
    ]
    return {name: float(np.mean([clip[name] for clip in clips])) for name in clips[0]}


@functools.partial(jax.jit, static_argnames="net")
def _frame_scores(
    video: UInt8[Array, "frames height width 3"],
    truth: UInt8[Array, "frames height width 3"],
    boxes: Int[Array, "frames 4"],
    lpips_params: Params | None,
    net: Net,
) -> dict[str, Float[Array, " frames"]]:
    def frame(inputs: tuple[Array, Array, Array]) -> dict[str, Float[Array, ""]]:
        pair, box = [x.astype(jnp.float32) / 255 for x in inputs[:2]], inputs[2]
        out = {"psnr": psnr(*pair), "ssim": ssim(*pair)}
        out |= {"box_psnr": psnr(*pair, box), "box_ssim": ssim(*pair, box)}
        if lpips_params is not None:
            height, width, _ = pair[0].shape
            boxed = [enlarge(x, box, height * 7 // 8, width * 2 // 3) for x in pair]
            for name, (a, b) in (("lpips", pair), ("box_lpips", boxed)):
                out[name] = lpips(lpips_params, a[None] * 2 - 1, b[None] * 2 - 1, net)[0]
        return out

    return jax.lax.map(frame, (video, truth, boxes))  # one frame at a time: VGG's features are large


def table(rows: Mapping[str, Scores]) -> str:
    """A Markdown table, one row per method; the rows have the same scores."""
    names = [name for name in COLUMNS if name in next(iter(rows.values()))]
    lines = [["", *(COLUMNS[name][0] for name in names)], ["---"] * (len(names) + 1)]
    for method, row in rows.items():
        lines.append([method, *(f"{row[name]:.{COLUMNS[name][1]}f}" for name in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
