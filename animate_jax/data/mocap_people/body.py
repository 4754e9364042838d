"""A clothed person as one skinned mesh: body, garments, shoes, hair and eyes in one vertex array."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from animate_jax.data.mocap_people import raster
from animate_jax.data.mocap_people.looks import Look
from animate_jax.data.mocap_people.motion import Segment

# The hairline of the average head: z below which there is no hair, over y (front to back).
HAIRLINE = (
    (-0.16, -0.12, -0.09, -0.07, -0.06, -0.045, -0.01, 0.005, 0.03, 0.1),
    (0.965, 0.962, 0.945, 0.92, 0.895, 0.895, 0.912, 0.87, 0.83, 0.81),
)
HAIR_THICKNESS = {  # distance in meters of the hair's surface from the head
    "buzz": 0.003, "short": 0.014, "full": 0.026, "afro": 0.055, "bun": 0.008, "bob": 0.016, "long": 0.014,
    "cap": 0.016,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Body:
    """A clothed person in the rest pose, as `raster.skin` takes it. Attributes and materials as in `raster`.

    edge_distance: how far inside its garment's edge a vertex lies; negative where the garment has ended.
    heads: positions of the bones' heads.
    joints: rest positions, bones and weights of the vertices around joints and of the hands' points; the regressor of
        COCO's 17 joints [17, 32].
    hip_height: from the ground to the hips, in meters.
    """

    rest: Float[np.ndarray, "n 3"]
    bones: UInt8[np.ndarray, "n 4"]
    weights: Float[np.ndarray, "n 4"]
    attributes: Float[np.ndarray, "n 8"]
    edge_distance: Float[np.ndarray, " n"]
    triangles: UInt16[np.ndarray, "m 3"]
    material: UInt8[np.ndarray, " m"]
    heads: Float[np.ndarray, "bones 3"]
    joints: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    hip_height: float


class BodyModel:
    """A linear model of body shapes, and what all bodies share: skinning weights, mesh layers, garment coordinates."""

    def __init__(self, asset: dict[str, np.ndarray]):
        self.bones, self.parents = [str(b) for b in asset["bones"]], asset["parents"]
        self.num_bodies = len(asset["codes"])
        self._codes = asset["codes"].astype(np.float64)
        self._mean, self._basis = asset["mean"].astype(np.float64), asset["basis"].astype(np.float64)
        self._weight_bones = asset["weight_bones"]
        weights = asset["weights"].astype(np.float32)
        self._weights = weights / weights.sum(1, keepdims=True)
        self._layers = {k.removeprefix("layer_"): v for k, v in asset.items() if k.startswith("layer_")}
        n = len(weights)
        self._average = self._mean.reshape(-1, 3)[:n]
        self._garment = asset["garment"].astype(np.float64)
        self._joint_vertices, self._joint_weights = asset["joint_vertices"], asset["joint_weights"]
        driven = [str(b) for b in asset["driven"]]
        # Bones without a captured rotation (fingers, toes) move with their nearest ancestor that has one.
        self.driving_bone = []
        for bone, parent in zip(self.bones, self.parents, strict=True):
            self.driving_bone.append(driven.index(bone) if bone in driven else self.driving_bone[parent])

    def shape(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rest vertices [n, 3], hand points [2, 21, 3] and bone heads [bones, 3] of one sampled body."""
        points = (self._mean + (self._codes[index][:, None] * self._basis).sum(0)).reshape(-1, 3)
        n = len(self._average)
        return points[:n], points[n : n + 42].reshape(2, 21, 3), points[n + 42 :]

    def dress(self, index: int, look: Look) -> Body:
        """One of the sampled bodies with the garments and the hair of `look`."""
        rest, hands, heads = self.shape(index)
        q, arm = self._average, self._garment[:, 0]
        x, y, z = q.T
        # Distance in meters of a point on the body from each garment's edge, positive inside.
        front = np.clip((0.02 - y) / 0.1, 0, 1) * np.clip(1 - (np.abs(x) / 0.11) ** 2, 0, 1)
        collar = 0.742 - look.neckline * front - z
        cover_top = np.minimum(np.minimum((look.sleeve - arm) * 0.25, z - look.hem), collar)
        cover_bottom = np.minimum(look.waist - z, z - look.trouser)
        cover_bottom = np.minimum(cover_bottom, np.where(arm > 0.5, -1, 1))
        cover_shoe = look.shoe - z

        layers = self._layers
        parts = []

        def add(triangles, material, offset, edge_distance):
            triangles = triangles[(edge_distance[triangles] > 0).any(1)]
            used = np.unique(triangles)
            normal = raster.vertex_normals(rest.astype(np.float32), triangles)[used]
            new_index = np.zeros(len(rest), np.int64)
            new_index[used] = np.arange(len(used))
            attributes = np.concatenate([q, self._garment, np.stack([cover_top, cover_bottom], 1)], 1)[used]
            moved = rest[used] + normal * np.broadcast_to(offset, len(rest))[used, None]
            materials = np.full(len(triangles), material)
            parts.append((moved, used, attributes, edge_distance[used], new_index[triangles], materials))

        # The body without what garments surely hide. Legs under a skirt stay: they show when a knee is lifted.
        covered = cover_top if look.skirt is not None else np.maximum(cover_top, cover_bottom)
        hidden = np.maximum(covered - 0.02, cover_shoe)
        add(layers["body"], raster.SKIN, 0.0, np.where(hidden > 0, -1.0, 1.0))
        tights = layers["tights"]
        inner, outer = 0.004, 0.009  # which of top and bottom is worn over the other
        bottom, top = (outer, inner) if look.tucked else (inner, outer)
        down = np.clip((0.2 - z) / 0.9, 0, 1)
        if look.skirt is None:
            add(tights, raster.BOTTOM, bottom + look.flare * down, cover_bottom)
        else:
            sway = outer + 0.003 + 0.02 * np.clip((0.1 - z) / 0.5, 0, 1)
            add(layers["skirt"], raster.BOTTOM, sway, np.minimum(z - look.skirt, 0.29 - z))
        add(tights, raster.SHOE, np.where(z < -0.79, 0.012, 0.009), cover_shoe)
        low = np.clip((0.62 - z) / 0.4, 0, 1)
        ease = np.where(arm > 0, 0.3 * look.looseness * np.clip(arm / 0.4, 0, 1), look.looseness * low)
        add(tights, raster.TOP, top + ease, cover_top)
        self._add_hair(add, look, q)
        for eye in ("l-eye", "r-eye"):
            add(layers[eye], raster.EYE, 0.0, np.ones(len(q)))

        base = np.cumsum([0] + [len(part[0]) for part in parts[:-1]])
        columns = zip(*parts, strict=True)
        moved, used, attributes, edge_distance, _, materials = (np.concatenate(column) for column in columns)
        triangles = np.concatenate([part[4] + start for part, start in zip(parts, base, strict=True)])
        vertices = self._joint_vertices.ravel()
        hand_bones = np.repeat([self.bones.index("LeftHand"), self.bones.index("RightHand")], 21)
        hand_bones = np.repeat(hand_bones[:, None], 4, 1)
        hand_weights = np.tile(np.array([1, 0, 0, 0], np.float32), (42, 1))
        foot = self.bones.index("LeftToeBase")
        return Body(
            rest=moved.astype(np.float32),
            bones=self._weight_bones[used],
            weights=self._weights[used],
            attributes=attributes.astype(np.float32),
            edge_distance=edge_distance.astype(np.float32),
            triangles=triangles.astype(np.uint16),
            material=materials.astype(np.uint8),
            heads=heads,
            joints=(
                np.concatenate([rest[vertices], hands.reshape(-1, 3)]).astype(np.float32),
                np.concatenate([self._weight_bones[vertices], hand_bones]).astype(np.uint8),
                np.concatenate([self._weights[vertices], hand_weights]),
                self._joint_weights,
            ),
            hip_height=float(heads[0, 2] - heads[foot, 2] + 0.03),
        )

    def _add_hair(self, add, look: Look, q: np.ndarray) -> None:
        if look.hair == "bald":
            return
        x, y, z = q.T
        line = z - np.interp(y, *HAIRLINE)
        if look.hair == "cap":
            line = z - 0.935 - 0.1 * np.clip(y + 0.1, -1, 0)
        ear = (np.abs(x) > 0.072) & (z < 0.915)
        line = np.where(ear | (z < 0.8), -0.05, line)
        thickness = 0.002 + HAIR_THICKNESS[look.hair] * np.clip(line / 0.03, 0, 1)
        if look.hair == "bun":
            thickness = thickness + 0.08 * np.exp(-((q - [0, 0.095, 0.94]) ** 2).sum(1) / 0.04**2)
        add(self._layers["body"], raster.HAIR, thickness, line)
        if look.hair in ("bob", "long"):
            end = 0.79 if look.hair == "bob" else 0.6
            face = np.where((y < -0.06) & (z < 0.95), -0.02, 0.02)
            add(self._layers["hair"], raster.HAIR, 0.0, np.minimum(z - end, face))

    def skinning_matrices(self, body: Body, segment: Segment) -> Float[np.ndarray, "frames bones 3 4"]:
        """Skinning matrices from the rest pose to world positions, with the floor at z = 0."""
        rotations = segment.rotations[:, self.driving_bone]
        heads = np.empty((len(rotations), len(self.bones), 3))
        heads[:, 0] = segment.root * body.hip_height
        for bone in range(1, len(self.bones)):
            parent = self.parents[bone]
            reach = body.heads[bone] - body.heads[parent]
            heads[:, bone] = heads[:, parent] + (rotations[:, parent] * reach).sum(-1)
        moved = heads - (rotations * body.heads[:, None, :]).sum(-1)
        return np.concatenate([rotations, moved[..., None]], -1).astype(np.float32)
