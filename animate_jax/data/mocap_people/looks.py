"""Random appearances of people: skin, hair, garments and their patterns."""

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Float

from animate_jax.data.mocap_people import raster

SKIN_TONES = (
    (0.96, 0.80, 0.70), (0.90, 0.70, 0.57), (0.80, 0.60, 0.46), (0.65, 0.46, 0.33), (0.48, 0.32, 0.22),
    (0.34, 0.22, 0.16),
)  # fmt: skip
HAIR_COLORS = (
    (0.07, 0.06, 0.06), (0.13, 0.08, 0.05), (0.27, 0.16, 0.09), (0.45, 0.28, 0.14), (0.75, 0.58, 0.32),
    (0.45, 0.16, 0.07), (0.6, 0.6, 0.6),
)  # fmt: skip
TOP_PATTERNS = {
    raster.PLAIN: 0.28, raster.STRIPES: 0.15, raster.VERTICAL_STRIPES: 0.06, raster.CHECKS: 0.08, raster.PRINT: 0.15,
    raster.BAND: 0.07, raster.RAGLAN: 0.08, raster.DOTS: 0.05, raster.HALVES: 0.04, raster.GRADIENT: 0.04,
}  # fmt: skip
BOTTOM_PATTERNS = {
    raster.PLAIN: 0.66,
    raster.SIDE_STRIPE: 0.14,
    raster.CHECKS: 0.07,
    raster.STRIPES: 0.04,
    raster.HALVES: 0.04,
    raster.GRADIENT: 0.05,
}
IRIS_COLORS = ((0.22, 0.13, 0.06), (0.15, 0.09, 0.05), (0.25, 0.42, 0.6), (0.25, 0.42, 0.25))
# How often a hair style is worn: (by men, by women).
HAIR_STYLES = {
    "bald": (0.07, 0.0), "buzz": (0.15, 0.02), "short": (0.4, 0.18), "full": (0.14, 0.12),
    "afro": (0.07, 0.08), "bun": (0.02, 0.18), "bob": (0.03, 0.18), "long": (0.02, 0.2), "cap": (0.1, 0.04),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Look:
    """A person's appearance. Heights are z on the average body (meters, 0 near the hips), colors r, g, b in 0..1."""

    hair: str
    sleeve: float  # position along the arm where the sleeve ends: 0 shoulder, 1 elbow, 2 wrist
    hem: float  # z of the top's lower edge
    neckline: float  # depth of the neckline at the front
    looseness: float  # distance in meters of the top from the body at its hem
    tucked: bool  # the top into the trousers or the skirt
    waist: float  # z of the upper edge of the trousers or the skirt
    trouser: float  # z of the lower edge of the trousers, or of the shorts under a skirt
    flare: float  # distance in meters of the trousers from the leg at their lower edge
    skirt: float | None  # z of the skirt's lower edge
    shoe: float  # z of the shoe's upper edge
    materials: Float[np.ndarray, "6 9"]  # see `raster.material_color`
    face_colors: Float[np.ndarray, "4 3"]  # see `raster.face`
    chest_print: Float[np.ndarray, "size size 4"]  # RGBA


def sample_cloth_color(rng: np.random.Generator, avoid: list[np.ndarray]) -> np.ndarray:
    """A random cloth color that differs clearly from all colors of `avoid`."""
    while True:
        if rng.random() < 0.3:
            color = np.full(3, rng.uniform(0.06, 0.95)) + rng.uniform(-0.03, 0.03, 3)
        else:
            hue, saturation, value = rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.25, 0.95)
            if hue < 0.13:  # the hues of skin: only as bright red, orange and yellow
                saturation, value = rng.uniform(0.9, 1), rng.uniform(0.8, 1)
            color = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        color = np.clip(color, 0.03, 0.97)
        if all(np.linalg.norm(color - other) > 0.36 for other in avoid):
            return color


def sample_chest_print(rng: np.random.Generator, colors: list[np.ndarray], photo: np.ndarray) -> np.ndarray:
    """A random square motif, RGBA: a disc, a ring, a star, letter-like blocks or a part of a photograph."""
    size = 32
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    out = np.zeros((size, size, 4), np.float32)
    out[..., :3] = colors[0]
    kind = rng.integers(5)
    if kind == 0:
        out[..., 3] = radius < 0.8
    elif kind == 1:
        out[..., 3] = (radius < 0.9) & (radius > 0.5)
        out[radius < 0.5] = (*colors[1], 1)
    elif kind == 2:
        out[..., 3] = radius < 0.62 + 0.3 * np.cos(5 * angle)
    elif kind == 3:
        cells = rng.random((5, 3)) < 0.6
        blocks = np.kron(np.concatenate([cells, cells[:, 1::-1]], 1), np.ones((6, 6)))
        out[1:31, 1:31, 3] = blocks
    else:
        top, left = rng.integers(photo.shape[0] - 96), rng.integers(photo.shape[1] - 96)
        out[..., :3] = photo[top : top + 96 : 3, left : left + 96 : 3] / 255
        out[..., 3] = (np.abs(x) < 0.85) & (np.abs(y) < 0.85)
    return out


def sample_look(rng: np.random.Generator, feminine: bool, photos: list[np.ndarray]) -> Look:
    """A random appearance; `photos` are cut for prints on the chest."""
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    low = min(int(tone), len(SKIN_TONES) - 2)
    skin = np.array(SKIN_TONES[low]) + (tone - low) * (np.array(SKIN_TONES[low + 1]) - np.array(SKIN_TONES[low]))
    natural = HAIR_COLORS[rng.integers(3)] if tone > 2.5 else HAIR_COLORS[rng.integers(len(HAIR_COLORS))]
    natural = np.array(natural) * rng.uniform(0.85, 1.15)
    hair = str(rng.choice(list(HAIR_STYLES), p=[chance[feminine] for chance in HAIR_STYLES.values()]))
    hair_color = sample_cloth_color(rng, [skin]) if hair == "cap" or rng.random() < 0.08 else natural

    top = sample_cloth_color(rng, [skin])
    top_second = sample_cloth_color(rng, [skin, top])
    bottom = sample_cloth_color(rng, [skin, top])
    bottom_second = sample_cloth_color(rng, [skin, bottom])
    shoe, sole = sample_cloth_color(rng, [skin, bottom]), np.full(3, rng.choice([0.08, 0.5, 0.92]))
    skirted = feminine and rng.random() < 0.4
    dress = skirted and rng.random() < 0.45
    pattern = rng.choice(list(TOP_PATTERNS), p=list(TOP_PATTERNS.values()))
    bottom_pattern = rng.choice(list(BOTTOM_PATTERNS), p=list(BOTTOM_PATTERNS.values()))
    if skirted and bottom_pattern == raster.SIDE_STRIPE:
        bottom_pattern = raster.STRIPES
    materials = np.zeros((6, 9), np.float32)
    materials[raster.TOP] = (*top, *top_second, pattern, rng.uniform(6, 16), rng.random())
    materials[raster.BOTTOM] = (*bottom, *bottom_second, bottom_pattern, rng.uniform(6, 14), rng.random())
    if dress:
        materials[raster.BOTTOM] = materials[raster.TOP]
    materials[raster.SHOE, :6] = (*shoe, *sole)
    materials[raster.HAIR, :4] = (*hair_color, 0.03 if hair == "cap" else 0.12)
    beard = 0.0 if feminine else rng.choice([0.0, 0.25, 0.75], p=[0.65, 0.18, 0.17])
    features = (0.0, 0.0035, 1.0) if feminine else (beard, 0.005, 0.5)
    face_colors = np.array([skin, natural, IRIS_COLORS[rng.integers(len(IRIS_COLORS))], features], np.float32)
    short = not skirted and rng.random() < 0.28
    sleeve = rng.choice([0.02, 0.45, 0.95, 1.85], p=[0.12, 0.45, 0.08, 0.35]) + rng.uniform(-0.05, 0.08)
    tucked = skirted or rng.random() < 0.2
    skirt = rng.uniform(-0.55, -0.05) if skirted else None
    trouser = rng.uniform(-0.3, -0.02) if short else rng.uniform(-0.76, -0.66)
    if skirt is not None:
        trouser = skirt + 0.02
    photo = photos[rng.integers(len(photos))]
    return Look(
        hair=hair,
        sleeve=float(sleeve),
        hem=0.255 if tucked else rng.uniform(0.06, 0.19),
        neckline=rng.choice([0.0, 0.03, 0.07, 0.11]),
        looseness=0.0 if tucked else rng.uniform(0.006, 0.03),
        tucked=tucked,
        waist=0.29 if tucked else 0.25,
        trouser=trouser,
        flare=rng.uniform(0.002, 0.03) if short else rng.uniform(0.0, 0.022),
        skirt=skirt,
        shoe=float(rng.choice([-0.745, -0.70, -0.56], p=[0.6, 0.25, 0.15])),
        materials=materials,
        face_colors=face_colors,
        chest_print=sample_chest_print(rng, [top_second, sample_cloth_color(rng, [skin, top, top_second])], photo),
    )
