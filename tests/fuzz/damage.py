"""Random damage to the contents of files. The same generator gives the same damage."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Iterator


def damage_bytes(contents: bytes, rng: random.Random) -> bytes:
    """Overwrites, removes, repeats and exchanges bytes, or truncates the file; mostly near the start."""
    data = bytearray(contents or b"x")  # some files of a checkpoint are empty
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = int(len(data) * rng.random() ** 2)
        match rng.randrange(7):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                data[place : place + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case 2:
                data[place : place + 8] = rng.randbytes(8)
            case 3:
                del data[place : place + rng.randrange(1, 40)]
            case 4:
                data[place:place] = data[place : place + rng.randrange(1, 400)]
            case 5:
                other = rng.randrange(len(data))
                data[place : place + 8], data[other : other + 8] = data[other : other + 8], data[place : place + 8]
            case 6:
                del data[max(place, len(data) // 8) :]
        data = data or bytearray(b"x")
    return bytes(data)


ODD_VALUES = (
    None,
    True,
    0,
    -1,
    1,
    0.5,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 300,
    "\0",
    [],
    {},
    [[]],
    [0] * 1000,
    {"": None},
)


def damage_json(contents: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, copies and nests a few values of a JSON file."""
    value = [json.loads(contents)]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = list(_all_values(value))
        owner, key = rng.choice(places)
        match rng.randrange(8):
            case 0 if owner is not value:
                del owner[key]
            case 1:
                owner[key] = [owner[key]]
            case 2:
                owner[key] = {"people": owner[key], "shape": owner[key]}
            case 3:
                other, name = rng.choice(places)
                owner[key] = json.loads(json.dumps(other[name]))
            case 4 if isinstance(owner[key], int | float):
                owner[key] *= rng.choice([-1, 0, 0.5, 2, 100, 1e9])
            case _:
                owner[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # later damage may change it in place
    return json.dumps(value[0]).encode()


def _all_values(value) -> Iterator[tuple[list | dict, int | str]]:
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _all_values(value[key])


def damage_zip(contents: bytes, rng: random.Random) -> bytes:
    """Damages one member of a zip archive, and corrects its checksum."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        victim = rng.choice([name for name in names if name.endswith((".pkl", ".npy"))])
        for name in names:
            new.writestr(name, damage_bytes(old.read(name), rng) if name == victim else old.read(name))
    return result.getvalue()


def damage_safetensors(contents: bytes, rng: random.Random) -> bytes:
    """Damages the values in the header of a safetensors file."""
    length = int.from_bytes(contents[:8], "little")
    header = damage_json(contents[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + contents[8 + length :]


def damage(name: str, contents: bytes, rng: random.Random) -> bytes:
    """Damages a file in one of the ways that suit its format."""
    kinds = [damage_bytes]
    if contents[:1] in (b"{", b"["):
        kinds.append(damage_json)
    if name.endswith((".npz", ".pth")):
        kinds.append(damage_zip)
    if name.endswith(".safetensors"):
        kinds.append(damage_safetensors)
    return rng.choice(kinds)(contents, rng)
