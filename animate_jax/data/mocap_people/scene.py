"""Clips: one person, one motion, one camera, one background."""

import dataclasses
from importlib import resources

import numpy as np
from jaxtyping import Float, UInt8

from animate_jax.data.mocap_people import raster
from animate_jax.data.mocap_people.body import Body, BodyModel
from animate_jax.data.mocap_people.looks import Look, sample_look
from animate_jax.data.mocap_people.motion import Motions, Segment, heading
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import Keypoints

# split -> (identities, motions)
SPLITS = {
    "train": ("train", "train"),
    "test_identity": ("test", "train"),
    "test_motion": ("train", "test"),
    "test_both": ("test", "test"),
}
TEST_BODIES = 40  # the last bodies of the asset are never trained on
NUM_IDENTITIES = {"train": 100_000, "test": 2_000}  # in each split of identities
PHOTOS = {
    "train": ("china", "coffee", "rocket", "brick", "gravel", "hubble"),
    "test": ("flower", "chelsea", "grass"),
}
SUPERSAMPLING = 2  # samples per pixel along each axis
# OpenPose-18 out of COCO-17; the neck (1) is the middle of the shoulders.
BODY_FROM_COCO = (0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
FACE_POINTS = (0, 14, 15, 16, 17)


@dataclasses.dataclass(frozen=True)
class RenderedClip:
    frames: UInt8[np.ndarray, "frames height width 3"]
    keypoints: Keypoints  # body and hands; the 68 face points are missing
    mask: UInt8[np.ndarray, "frames height width"]  # the person's share of each pixel
    depth: Float[np.ndarray, "frames height width"]  # meters from the camera to the person; 0 where it is not
    identity: str
    motion: str


@dataclasses.dataclass(frozen=True)
class Camera:
    views: Float[np.ndarray, "frames 3 4"]  # world -> right, down, ahead
    eyes: Float[np.ndarray, "frames 3"]
    lens: Float[np.ndarray, "3"]  # focal length and principal point, in pixels


def load_asset() -> dict[str, np.ndarray]:
    with resources.files("animate_jax.assets").joinpath("mocap_people.npz").open("rb") as file:
        return dict(np.load(file))


class MocapPeople:
    """Rendered clothed adults doing motion-captured motion, with exact keypoints.

    A seeded, endless sequence with random access: the same (seed, split, index) is always the same clip.
    Splits: "train", "test_identity" (bodies, clothes and photographs never trained on), "test_motion"
    (motions never trained on), "test_both". `height`, `width` in pixels; `fps`: frames a second; `orbits`: the
    share of clips whose camera circles the person, so that the background moves; `close_ups`: the share of clips in
    which only the torso is certain to be in the picture.

    Raises UserError for an unknown split.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        height: int = 128,
        width: int = 96,
        fps: float = 10.0,
        orbits: float = 0.0,
        close_ups: float = 0.15,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"mocap_people: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        asset = load_asset()
        self._body_model, self._motions = BodyModel(asset), Motions(asset)
        self._identity_split, self._motion_split = SPLITS[split]
        self._photos = [asset[f"picture_{name}"] for name in PHOTOS[self._identity_split]]
        self._entropy = (seed, list(SPLITS).index(split))
        self.height, self.width, self.fps = height, width, fps
        self.orbits, self.close_ups = orbits, close_ups

    def clip(self, index: int, frames: int = 24, pick: list[int] | None = None) -> RenderedClip:
        """A clip of that many frames, or those of its frames that `pick` lists (only they are rendered)."""
        rng = np.random.Generator(np.random.PCG64([*self._entropy, index]))
        identity, body, look = self._make_person(int(rng.integers(NUM_IDENTITIES[self._identity_split])))
        segment = self._motions.sample_segment(self._motion_split, rng, frames, self.fps)
        matrices = self._body_model.skinning_matrices(body, segment)
        points = raster.skin(body.rest, body.bones, body.weights, matrices)
        rest, bones, weights, regressor = body.joints
        joints = raster.skin(rest, bones, weights, matrices)
        coco = (joints[:, :-42].reshape(frames, 17, -1, 3) * regressor[..., None]).sum(2)
        hands = joints[:, -42:]
        # A generator of its own: the share of orbits changes nothing else of a clip.
        orbit = self._sample_orbit(np.random.Generator(np.random.PCG64([*self._entropy, index, 1])), frames)
        camera = self._sample_camera(rng, segment, points, coco, orbit)
        background = self._sample_background(rng, camera, orbit)
        light = self._sample_light(rng, camera)
        chosen = range(frames) if pick is None else pick
        pictures = np.empty((len(chosen), self.height, self.width, 3), np.uint8)
        masks = np.empty((len(chosen), self.height, self.width), np.uint8)
        depth = np.zeros(masks.shape, np.float32)
        inverse_depths = []
        for i, f in enumerate(chosen):
            picture, mask, inverse_depth = self._render(body, look, points[f], coco[f], camera, f, background[f], light)
            pictures[i] = np.clip(picture * 255 + 0.5, 0, 255)
            masks[i] = mask * 255 + 0.5
            nearest = inverse_depth.reshape(self.height, SUPERSAMPLING, self.width, SUPERSAMPLING).max((1, 3))
            np.divide(1, nearest, out=depth[i], where=nearest > 0)
            inverse_depths.append(inverse_depth)
        shown = list(chosen)
        camera = dataclasses.replace(camera, views=camera.views[shown], eyes=camera.eyes[shown])
        keypoints = self._keypoints(coco[shown], hands[shown], camera, inverse_depths)
        return RenderedClip(pictures, keypoints, masks, depth, identity, segment.name)

    def _make_person(self, number: int) -> tuple[str, Body, Look]:
        """Name, body and look of an identity; they depend only on the split of identities and on the number."""
        side = list(NUM_IDENTITIES).index(self._identity_split)
        rng = np.random.Generator(np.random.PCG64([7919, side, number]))
        bodies = range(self._body_model.num_bodies - TEST_BODIES)
        if self._identity_split == "test":
            bodies = range(self._body_model.num_bodies - TEST_BODIES, self._body_model.num_bodies)
        body_index = bodies[number % len(bodies)]
        look = sample_look(rng, body_index % 2 == 1, self._photos)
        return f"{self._identity_split}-{number:06d}", self._body_model.dress(body_index, look), look

    def _sample_orbit(self, rng: np.random.Generator, frames: int) -> Float[np.ndarray, " frames"]:
        """The angle of the camera on its orbit in each frame, in radians; all zero for a camera that does not orbit."""
        if rng.random() >= self.orbits:
            return np.zeros(frames)
        return np.arange(frames) / self.fps * rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)

    def _sample_camera(self, rng: np.random.Generator, segment: Segment, points, coco, orbit) -> Camera:
        """A random camera that keeps all vertices `points` [frames, n, 3] (in a close-up: the torso) in the picture."""
        frames = len(points)
        facing = heading(segment.rotations[:, 0])[rng.integers(frames)]
        yaw = facing + (rng.uniform(-1, 1) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi))
        pitch = rng.normal(0.08, 0.07)
        yaw = yaw + orbit
        ahead = np.stack([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), 0 * yaw - np.sin(pitch)], -1)
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right, axis=-1, keepdims=True)
        axes = np.stack([right, np.cross(ahead, right), ahead], 1)  # [frames, 3, 3]
        # Follows the smoothed root, or keeps its target where the person travels little.
        root = points.mean(1).astype(np.float64)
        travel = np.ptp(root[:, :2], axis=0).max()
        follows = travel > 1.2 or rng.random() < 0.5
        time = np.arange(frames) / self.fps
        kernel = np.exp(-0.5 * ((time[:, None] - time) / 0.45) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        smooth = (kernel[..., None] * root).sum(1) if follows else np.broadcast_to(root.mean(0), root.shape)
        target = np.concatenate([smooth[:, :2], np.broadcast_to(root[:, 2:].mean(0), (frames, 1))], 1)
        # The distance at which every part of the person stays inside the margins in all frames.
        close = rng.random() < self.close_ups
        part = coco[:, [0, 5, 6, 11, 12]] if close else points[:, ::8]
        local = (part - target[:, None]) @ axes.swapaxes(1, 2)
        middle = (local.min((0, 1)) + local.max((0, 1))) / 2
        target = target + middle[0] * right + middle[1] * axes[:, 1]
        local = local - middle * [1, 1, 0]
        focal = self.height / 2 / np.tan(np.radians(rng.uniform(20, 38)) / 2)
        fill = rng.uniform(0.55, 0.75) if close else rng.uniform(0.78, 0.96)
        half = np.array([self.width, self.height]) / 2 * fill
        distance = (focal * np.abs(local[..., :2]) / half - local[..., 2:]).max()
        distance = max(distance, 0.5 - local[..., 2].min())
        eyes = target - distance * ahead
        views = np.concatenate([axes, -(axes @ eyes[..., None])], -1)
        lens = np.array([focal, self.width / 2, self.height / 2])
        return Camera(views.astype(np.float32), eyes, lens.astype(np.float32))

    def _sample_background(
        self, rng: np.random.Generator, camera: Camera, orbit
    ) -> Float[np.ndarray, "frames height width 3"]:
        """A random picture at an infinite distance: shifted by the camera's rotation, and mirrored at its ends."""
        picture = self._sample_backdrop(rng, camera)
        if not orbit.any():
            return np.broadcast_to(picture, (len(orbit), *picture.shape))
        strip = np.concatenate([picture, picture[:, ::-1]], 1)
        shift = np.round(np.tan(orbit) * camera.lens[0]).astype(int)
        return np.stack([np.roll(strip, s, 1)[:, : self.width] for s in shift])

    def _sample_backdrop(self, rng: np.random.Generator, camera: Camera) -> Float[np.ndarray, "height width 3"]:
        height, width = self.height, self.width
        y, x = np.mgrid[:height, :width] + 0.5
        kind = rng.choice(["plain", "gradient", "room", "photo", "noise"], p=[0.22, 0.22, 0.22, 0.24, 0.1])
        if kind == "plain":
            picture = np.broadcast_to(_sample_color(rng), (height, width, 3)).copy()
        elif kind == "gradient":
            angle = rng.uniform(0, 2 * np.pi)
            t = 0.5 + (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)) / 1.2
            a, b = _sample_color(rng), _sample_color(rng)
            picture = a + (b - a) * np.clip(t, 0, 1)[..., None]
        elif kind == "room":
            wall, floor = _sample_color(rng), _sample_color(rng)
            ahead = camera.views[0, 2, :3]
            eye = camera.eyes[0]
            edge = self._floor_edge(camera, eye + np.array([*ahead[:2], 0]) * (eye[2] + rng.uniform(4, 9)))
            t = np.clip((y - edge) / max(1.0, 0.01 * height), 0, 1)[..., None]
            picture = wall * (1 - 0.15 * y / height)[..., None] * (1 - t) + floor * t
        elif kind == "photo":
            photo = self._photos[rng.integers(len(self._photos))].astype(np.float64) / 255
            scale = rng.uniform(0.5, 1.0) * min(photo.shape[0] / height, photo.shape[1] / width)
            top = rng.uniform(0, photo.shape[0] - scale * height)
            left = rng.uniform(0, photo.shape[1] - scale * width)
            picture = self._bilinear(photo, top + y * scale - 0.5, left + x * scale - 0.5)
            picture = picture[:, ::-1] if rng.random() < 0.5 else picture
            picture = picture * rng.uniform(0.6, 1.0) + rng.uniform(0, 0.15)
        else:
            a, b = _sample_color(rng), _sample_color(rng)
            t = np.zeros((height, width))
            for octave in range(3):
                grid = rng.random((3 * 2**octave + 2, 3 * 2**octave + 2, 1))
                cells = 3 * 2**octave
                t += self._bilinear(grid, y / height * cells, x / width * cells)[..., 0] * 0.55**octave
            picture = a + (b - a) * (t / 1.85)[..., None]
        vignette = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2)[..., None]
        return np.clip(picture * (1 - rng.uniform(0, 0.35) * vignette), 0, 1).astype(np.float32)

    def _floor_edge(self, camera: Camera, point: np.ndarray) -> float:
        point = np.array([[point[0], point[1], 0]], np.float32)
        return float(raster.project(point, camera.views[0], camera.lens)[0, 1])

    @staticmethod
    def _bilinear(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = np.clip(y, 0, picture.shape[0] - 1.001), np.clip(x, 0, picture.shape[1] - 1.001)
        i, j = y.astype(int), x.astype(int)
        v, u = (y - i)[..., None], (x - j)[..., None]
        return (picture[i, j] * (1 - u) + picture[i, j + 1] * u) * (1 - v) + (
            picture[i + 1, j] * (1 - u) + picture[i + 1, j + 1] * u
        ) * v

    def _sample_light(self, rng: np.random.Generator, camera: Camera) -> Float[np.ndarray, "4 3"]:
        """Random direction to the sun (on the camera's side), and colors of sun, sky and ground."""
        right, _, ahead = camera.views[0, :, :3].astype(np.float64)
        side, height = rng.uniform(-1.2, 1.2), rng.uniform(0.5, 1.2)
        sun = right * np.sin(side) - ahead * np.cos(side)
        sun = np.array([sun[0] * np.cos(height), sun[1] * np.cos(height), np.sin(height)])
        sun /= np.linalg.norm(sun)
        warm = rng.uniform(-0.06, 0.06) * np.array([1, 0, -1])
        strength = rng.uniform(0.45, 0.75)
        sky, ground = rng.uniform(0.5, 0.62), rng.uniform(0.25, 0.38)
        return np.array([sun, strength * (1 + warm), sky * (1 - warm), ground * (1 + warm)], np.float32)

    def _render(self, body: Body, look: Look, points, coco, camera: Camera, f: int, background, light):
        """Frame f: picture 0..1, the person's share of each pixel, and 1 / depth of each sample."""
        height, width = self.height * SUPERSAMPLING, self.width * SUPERSAMPLING
        view = camera.views[f]
        screen = raster.project(points, view, camera.lens * SUPERSAMPLING)
        inverse_depth = np.empty((height, width), np.float32)
        triangle_index = np.empty((height, width), np.int32)
        barycentric = np.empty((height, width, 2), np.float32)
        raster.rasterize(
            screen, body.triangles, body.material, body.edge_distance, inverse_depth, triangle_index, barycentric
        )
        picture = background.copy()
        feet, hips = coco[[15, 16]], coco[[11, 12]].mean(0)
        blobs = [(x, y, 0.16, 0.55 * np.exp(-max(z - 0.1, 0) / 0.15)) for x, y, z in feet]
        blobs.append((hips[0], hips[1], 0.4, 0.4 * np.exp(-max(hips[2] - 0.9, 0) / 0.5)))
        raster.cast_shadow(picture, view, camera.lens, np.array(blobs, np.float32))
        normals = raster.vertex_normals(points, body.triangles)
        mask = np.empty((self.height, self.width), np.float32)
        raster.shade(
            triangle_index,
            barycentric,
            body.triangles,
            body.material,
            normals,
            points,
            body.attributes,
            look.materials,
            look.chest_print,
            look.face_colors,
            light,
            camera.eyes[f].astype(np.float32),
            SUPERSAMPLING,
            picture,
            mask,
        )
        return picture, mask, inverse_depth

    def _keypoints(self, coco, hands, camera: Camera, inverse_depths: list[np.ndarray]) -> Keypoints:
        frames = len(coco)
        body = coco[:, BODY_FROM_COCO]
        body[:, 1] = (coco[:, 5] + coco[:, 6]) / 2
        points = np.concatenate([body, hands], 1).astype(np.float32)
        screen = np.stack([raster.project(points[f], camera.views[f], camera.lens) for f in range(frames)])
        size = np.array([self.width, self.height], np.float32)
        place = screen[..., :2] / size
        seen = (screen[..., 2] > 0) & (place >= 0).all(-1) & (place < 1).all(-1)
        # A point of the face or of a hand is missing where a surface lies clearly in front of it.
        column = np.clip(screen[..., 0] * SUPERSAMPLING, 0, self.width * SUPERSAMPLING - 1).astype(int)
        row = np.clip(screen[..., 1] * SUPERSAMPLING, 0, self.height * SUPERSAMPLING - 1).astype(int)
        surface = np.stack([image[r, c] for image, r, c in zip(inverse_depths, row, column, strict=True)])
        depth = 1 / np.maximum(screen[..., 2], 1e-3)
        hidden = 1 / np.maximum(surface, 1e-3) < depth - 0.05
        body_seen = seen[:, :18].copy()
        body_seen[:, FACE_POINTS] &= ~hidden[:, FACE_POINTS]
        hand_hidden = hidden[:, 18:].reshape(frames, 2, 21).mean(-1, keepdims=True) > 0.5
        hand_seen = seen[:, 18:].reshape(frames, 2, 21) & ~hand_hidden
        return dataclasses.replace(
            Keypoints.empty(frames),
            body=place[:, :18],
            body_confidence=body_seen.astype(np.float32),
            hands=place[:, 18:].reshape(frames, 2, 21, 2),
            hands_confidence=hand_seen.astype(np.float32),
        )


def _sample_color(rng: np.random.Generator) -> Float[np.ndarray, "rgb=3"]:
    return rng.uniform(0.1, 0.95, 3) * 0.5 + rng.uniform(0.1, 0.9) * 0.5
