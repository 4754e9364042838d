"""Random weights of the golden runs, regenerated from names and shapes alone (numpy only).

`specs.json` lists, for each module of the PyTorch peer's tiny configuration, every state-dict key with its torch shape
and its kind. `state_dict(module, specs)` returns the same float32 arrays the golden runs used; `checksums.json` proves
it.

    weight (2-d or more)   normal(0, 1/sqrt(fan_in)),  fan_in = product of all dims but the first
    norm scale             1 + 0.1 normal
    other vector           0.1 normal
    buffer                 the sinusoidal table of the temporal layers (in specs as kind "pe")
"""
import hashlib
import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def sinusoidal(shape):
    _, length, dim = shape
    position = np.arange(length)[:, None].astype(np.float32)
    rate = np.exp(np.arange(0, dim, 2).astype(np.float32) * np.float32(-np.log(10000.0) / dim))
    table = np.zeros((1, length, dim), np.float32)
    table[0, :, 0::2] = np.sin(position * rate)
    table[0, :, 1::2] = np.cos(position * rate)
    return table


def parameter(module, key, shape, kind):
    if kind == "pe":
        return sinusoidal(shape)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{module}/{key}".encode())))
    noise = rng.standard_normal(tuple(shape), dtype=np.float32)
    if kind == "norm":
        return 1 + np.float32(0.1) * noise
    if len(shape) >= 2:
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(0.1) * noise


def state_dict(module, specs=None):
    """Torch-layout float32 arrays of one module: reference_unet, denoising_unet_v1, denoising_unet_v2, pose_guider,
    vae, image_encoder."""
    specs = specs or json.loads((HERE / "specs.json").read_text())
    return {key: parameter(module, key, shape, kind) for key, (shape, kind) in specs[module].items()}


def checksum(arrays):
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(key.encode() + np.round(arrays[key].astype(np.float64), 5).astype(np.float32).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    expected = json.loads((HERE / "checksums.json").read_text())
    for name, digest in expected.items():
        print(name, "ok" if checksum(state_dict(name)) == digest else "DIFFERS")
