"""`animate-jax data encode`: encodes every frame of a data set once, with the frozen autoencoder and CLIP."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8
from tqdm import tqdm

from animate_jax.checkpoints import checkpoint
from animate_jax.config import TrainConfig, to_dict
from animate_jax.data.latents import AGAIN, FILE, Encoding, encoding_of, frames_split, shard_name, write_shard
from animate_jax.data.records import INFO, RecordedClips, find_data_set
from animate_jax.data.samples import BoxXYWH, flip_horizontally, read_crop
from animate_jax.errors import UserError
from animate_jax.images import center_crop_box, to_signed
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.parallel.mesh import batch_sharding, make_mesh
from animate_jax.storage import Address, Folder, check_writable, to_path
from animate_jax.training.progress import say
from animate_jax.video.clip_image import clip_pixels

ENCODER_PARTS = ("vae", "image_encoder")
ENCODERS = re.compile(r"(vae\.(encoder|quant_conv)|image_encoder)\.")
MAX_COMPARED_SIZE = 2**14  # elements of the arrays by which encoders are compared: biases and scales of norms
TOLERANCE = 2**-8  # relative change of a root mean square that rounding to bfloat16 cannot exceed


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """How frames are encoded, which training on them has to agree with."""

    split: str = "train"  # the others are copied as they are
    size: tuple[int, int] | None = None  # width and height; none: those of the checkpoint's preset
    mirrored: bool = False  # every frame a second time, mirrored: twice the work and bytes, for --data.flip
    dtype: Literal["float16", "float32"] = "float16"  # of the encoded frames
    batch: int = 16  # frames at a time, over the devices of this process


@dataclasses.dataclass(frozen=True)
class EncodeArguments:
    """Of `animate-jax data encode`."""

    data: str  # a data set of videos: its folder, or gs:// address
    checkpoint: str  # whose autoencoder and CLIP encode
    output: str  # new folder, or gs:// address
    options: tyro.conf.OmitArgPrefixes[EncodeOptions] = dataclasses.field(default_factory=EncodeOptions)


def encode(root: str, weights: Address, output: Address, options: EncodeOptions) -> None:
    """Writes a copy of the data set `root` whose `options.split` is encoded by autoencoder and CLIP of a checkpoint.
    Several processes divide the shards. After an interruption, the same call goes on after the last complete shard.

    Raises:
        UserError: no such data set or checkpoint, an impossible size, or `output` has other contents.
    """
    source, target, weights = find_data_set(root), epath.Path(to_path(output)), checkpoint.find(weights)
    if (target / INFO).exists():
        raise UserError(f"{output}: is there already: choose another name, or delete it first")
    if encoding_of(root, options.split):
        raise UserError(f"--data {root}: is encoded already: give the data set of videos")
    clips, encoder = RecordedClips(root, options.split), Encoder(weights, options)
    target.mkdir(parents=True, exist_ok=True)
    check_writable(output)
    _begin(target, encoder.encoding)
    info = json.loads((source / INFO).read_text())
    count, starts = len(clips.shards), itertools.accumulate((n for _, n in clips.shards), initial=0)
    places = {
        split: [target / shard_name(info["name"], split, number, count) for number in range(count)]
        for split in (options.split, frames_split(options.split))
    }
    is_main_process, mine = jax.process_index() == 0, range(jax.process_index(), count, jax.process_count())
    with tqdm(desc="clips of this process", unit="clip", disable=not is_main_process) as bar:

        def counted(numbers: range) -> Iterator[int]:
            for number in numbers:
                yield number
                bar.update()

        for number, ((_, length), first, *files) in enumerate(
            zip(clips.shards, starts, *places.values(), strict=False)
        ):
            if number in mine and not files[0].exists():
                write_shard(encoder(clips, counted(range(first, first + length))), *files)
    multihost_utils.sync_global_devices("all shards are written")
    if is_main_process:
        for file in source.iterdir():
            if ".array_record" in file.name and file.name not in dict(clips.shards):
                file.copy(target / file.name, overwrite=True)
        _finish(target, info, places)


def _begin(target: epath.Path, encoding: Encoding) -> None:
    values = json.dumps(to_dict(encoding), indent=1)
    if not (target / FILE).exists():
        (target / FILE).write_text(values)
    elif json.loads((target / FILE).read_text()) != json.loads(values):
        raise UserError(f"{target}: was begun with other options: give them again, or choose another name")


def _finish(target: epath.Path, info: dict[str, Any], places: dict[str, list[epath.Path]]) -> None:
    lengths = {
        split: [len(grain.sources.ArrayRecordDataSource([str(file)])) for file in files]  # pyright: ignore[reportArgumentType]
        for split, files in places.items()
    }
    if not all(map(sum, lengths.values())):
        raise UserError(f"{target}: no clip could be encoded")
    kept = [split for split in info["splits"] if split["name"] not in lengths]
    encoded = [{"name": split, "shardLengths": [*map(str, each)]} for split, each in lengths.items()]
    (target / INFO).write_text(json.dumps(info | {"splits": kept + encoded}, indent=1))


class Encoder:
    """The frozen parts of a checkpoint in float32, on every device of this process.

    Raises:
        UserError: impossible options, or a checkpoint without these parts.
    """

    def __init__(self, path: Folder, options: EncodeOptions):
        preset, stored = checkpoint.read_preset(path), checkpoint.stored_arrays(path)
        model, frames = preset.model, preset.frames
        width, height = options.size or (frames.width, frames.height)
        scale = model.vae.downscale
        if options.batch < 1:
            raise UserError(f"--batch {options.batch}: must be at least 1")
        if min(width, height) < scale or width % scale or height % scale:
            raise UserError(f"--size {width} {height}: width and height must be multiples of {scale}")
        if lacking := [part for part in ENCODER_PARTS if part in checkpoint.missing_parts_of(path, preset)]:
            raise UserError(f"{path}: lacks {', '.join(lacking)}: {checkpoint.import_advice(path, lacking)}")
        self._clip_side, devices = model.image_encoder.image_size, jax.local_devices()
        mesh = make_mesh(devices=devices)
        self._batch, self._rows = -(-options.batch // len(devices)) * len(devices), batch_sharding(mesh)
        arrays = checkpoint.read_arrays(
            path, {key: leaf for key, leaf in stored.items() if key.partition(".")[0] in ENCODER_PARTS}
        )
        self._params = jax.device_put(
            {key: array.astype(jnp.float32) for key, array in arrays.items()}, NamedSharding(mesh, PartitionSpec())
        )
        graphdef, shapes = abstract_model(model)

        def run(params: Params, images: Array, pixels: Array) -> Array:
            # Only these parts of the model are computed; the others need no arrays.
            model = merge_model(graphdef, {key: params.get(key, leaf) for key, leaf in shapes.items()})
            moments = jnp.concatenate(model.vae.encode(to_signed(images)), -1)
            rows = jnp.concatenate([moments.reshape(len(images), -1), model.image_encoder(pixels)], -1)
            return rows.astype(options.dtype)

        self._run = jax.jit(run)
        self.encoding = Encoding(
            options.split,
            width,
            height,
            frames.clip_resize,
            options.mirrored,
            options.dtype,
            moments=(height // scale, width // scale, 2 * model.vae.latent_channels),
            embedding=model.image_encoder.projection_dim,
            encoders=encoders_of(path, stored),
        )

    def __call__(
        self, clips: RecordedClips, numbers: Iterable[int]
    ) -> Iterator[tuple[bytes, BoxXYWH, Iterator[bytes]]]:
        """The clips with these numbers as `write_shard` takes them; damaged ones are reported and left out."""
        width, height = self.encoding.width, self.encoding.height

        def decode(number: int) -> tuple[bytes, BoxXYWH, UInt8[np.ndarray, "f h w 3"]] | None:
            try:
                clip = clips[number]
                box = center_crop_box(clip.width, clip.height, width, height)
                images = read_crop(clip, range(len(clip)), box, width, height)
            except UserError as error:
                say(f"left out: {error}")
                return None
            return clips.records[number], box, images

        for record, box, images in filter(None, map_ahead(decode, numbers)):
            if self.encoding.mirrored:
                images = np.concatenate([images, flip_horizontally(images)])
            yield record, box, self._frames(images)

    def _frames(self, images: UInt8[np.ndarray, "f h w 3"]) -> Iterator[bytes]:
        running = []
        for first in range(0, len(images), self._batch):
            part = images[first : first + self._batch]
            part = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), 0)])  # compiled once
            pixels = np.stack([clip_pixels(each, self._clip_side, self.encoding.clip_resize) for each in part])
            running.append(self._run(self._params, *jax.device_put((part, pixels), self._rows)))
        return (row.tobytes() for row in np.concatenate(running)[: len(images)])


def map_ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map`, computed in a thread that is one item ahead."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for item in items:
            ready, coming = coming, thread.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def encoders_of(path: Folder, stored: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, float]:
    """Path -> root mean square of small arrays of a checkpoint's autoencoder and CLIP, which identify them also when
    rounded to bfloat16."""
    small = {
        key: leaf for key, leaf in stored.items() if ENCODERS.match(key) and math.prod(leaf.shape) <= MAX_COMPARED_SIZE
    }
    arrays = checkpoint.read_arrays(path, small)
    return {key: float(np.sqrt(np.mean(np.square(array.astype(np.float64))))) for key, array in sorted(arrays.items())}


def check_encoded(config: TrainConfig, encoding: Encoding) -> None:
    """Checks that a run can be trained on encoded frames.

    Raises:
        UserError: it needs images, trains the encoders, or starts from other ones.
    """
    root = f"--data.root {config.data.root}: holds encoded frames"
    options = {name: getattr(config.loss, name) for name in ("flicker_weight", "perceptual_weight", "pixels_weight")}
    needs = [f"--loss.{name.replace('_', '-')} {value}" for name, value in options.items() if value]
    if config.stage == "vae":
        needs.append("training an autoencoder")
    if needs:
        raise UserError(f"{root}, and {needs[0]} needs pixels: give the data set of videos")
    trained = [
        path
        for path in encoding.encoders
        if not config.lora.rank
        and re.match(config.trainable, path)
        and not (config.frozen and re.match(config.frozen, path))
    ]
    if trained:
        raise UserError(f"{root}, and --trainable matches {trained[0]!r}: give the data set of videos")
    if config.init is None:
        raise UserError(f"{root}, and the weights that encoded them are needed: give --init")
    path = checkpoint.find(config.init)
    own = encoders_of(path, checkpoint.stored_arrays(path))
    other = [
        key for key, value in encoding.encoders.items() if not math.isclose(own.get(key, -1), value, rel_tol=TOLERANCE)
    ]
    if other:
        raise UserError(f"{root} of another autoencoder or CLIP than {path}'s ({other[0]!r} differs): {AGAIN}")
