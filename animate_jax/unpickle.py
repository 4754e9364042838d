"""Reads pickles as data: torch's files, NumPy's arrays. A pickle is a program that may call anything; here nothing of
it is called, imported or changed.

`load` turns it into dictionaries, lists, tuples, text, bytes and numbers, with a `Call` for every call that it asks
for and a `Name` for every global. `build` then replaces the calls by what a reader's own table makes of them; a name
that is not in the table is refused when it is read. Of the opcodes, those are known that protocols 2 to 5 need for
such files. Depth, size and keys are bounded (`animate_jax.limits`), so that readers may walk the result.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import re
import struct
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal, cast

import numpy as np

from animate_jax import limits


class Name(str):
    """A global that a pickle names, "module.name"; nothing was looked up."""

    __slots__ = ()


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """A call that a pickle asks for, and what it then sets on the result."""

    name: str
    args: tuple
    state: Any = None  # of BUILD, which would be __setstate__
    items: dict = dataclasses.field(default_factory=dict)  # which would be __setitem__


PERSISTENT = "persistent id"  # name of the `Call` that stands for one; its argument is the id
_HOLDERS = frozenset((list, tuple, dict, Call))  # the only kinds of values that hold others
Makers = Mapping[str, Callable[[Call], Any]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    value: Any
    end: int  # position behind the pickle
    persistent: list[Call]


def load(data: bytes, names: Container[str], at: int = 0) -> Loaded:
    """The pickle that begins at `at`, with nothing built.

    Args:
        names: globals that it may name, and `PERSISTENT` if it may hold persistent ids.

    Raises:
        ValueError: damaged, too large, or it uses other names or opcodes.
    """
    reader = _Reader(data, names, at)
    try:
        return Loaded(reader.run(), reader.at, reader.persistent)
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("its pickle is damaged or cut short") from error


def build(value: Any, makers: Makers) -> Any:
    """What `load` gave, with each call replaced by what its maker returns; the makers see finished arguments. What was
    shared stays shared.

    Raises:
        ValueError: the value holds itself or is nested too deeply, or a maker raised it.
    """
    done: dict[int, tuple[Any, int] | None] = {}

    def built(value: Any, kind: Any, depth: int) -> tuple[Any, int]:
        """Also the depth below the value: through shared parts it can exceed that of the recursion."""
        if id(value) in done:
            if (known := done[id(value)]) is None:
                raise ValueError("it holds itself")
            return known
        done[id(value)] = None
        if kind is Call:
            parts = value.args, value.state, value.items
        else:
            parts = value.values() if kind is dict else value
        finished, height = [], 0
        for part in parts:
            if (inner := type(part)) in _HOLDERS:
                if depth >= limits.NESTING:
                    raise ValueError("it is nested too deeply")
                part, below = built(part, inner, depth + 1)
                height = max(height, below)
            finished.append(part)
        if height >= limits.NESTING:
            raise ValueError("it is nested too deeply")
        if kind is dict:
            made = dict(zip(value, finished, strict=True))
        elif kind is Call:
            args, state, items = finished
            made = makers[value.name](Call(value.name, args, state, items))
        else:
            made = tuple(finished) if kind is tuple else finished
        result = done[id(value)] = made, height + 1
        return result

    return built(value, type(value), 0)[0] if type(value) in _HOLDERS else value


def read(data: bytes, makers: Makers, at: int = 0) -> Any:
    """`load` and `build`."""
    return build(load(data, makers, at).value, makers)


class _Reader:
    """Pickle's stack machine. Below a mark, the stack is another list, so that nothing reaches beneath it."""

    def __init__(self, data: bytes, names: Container[str], at: int):
        self.data, self.names, self.at = data, names, at
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Call] = []

    def run(self) -> Any:
        for _ in range(limits.PICKLE_VALUES):
            code = self.byte()
            if make := _VALUES.get(code):
                value = make(self)  # may change which list is the stack
                self.stack.append(value)
            elif act := _ACTIONS.get(code):
                act(self)
            elif code == _STOP:
                if len(self.stack) != 1 or self.marked:
                    raise ValueError("its pickle leaves more or less than one value")
                return self.stack[0]
            else:
                raise ValueError(f"its pickle uses the opcode {_NAMES.get(code, code)}, which no such file needs")
        raise ValueError(f"its pickle has more than {limits.PICKLE_VALUES:,} parts")

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise ValueError("it ends too early")
        self.at += count
        return part

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self, count: int, signed: bool = False) -> int:
        if count > limits.INTEGER_BYTES:
            raise ValueError(f"an integer of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=signed)

    def text(self, length: int) -> str:
        return self.take(length).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        line = self.data[self.at : self.at + limits.NAME_LENGTH].partition(b"\n")[0]
        return self.take(len(line) + 1)[:-1].decode()

    def pop(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise IndexError
        popped = tuple(self.stack[-count:])
        del self.stack[-count:]
        return popped

    def since_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.marked.pop()
        return above

    def mark(self) -> None:
        if len(self.marked) > limits.NESTING:
            raise ValueError("it is nested too deeply")
        self.marked.append(self.stack)
        self.stack = []

    def name(self, module: Any, name: Any) -> Name:
        if type(module) is not str or type(name) is not str:
            raise IndexError
        full = f"{module}.{name}"
        if full not in self.names or full == PERSISTENT:
            shown = full if re.fullmatch(r"[\w.]{1,100}", full) else ascii(full)[:100]
            raise ValueError(f"it names {shown}, refused as something which may run code")
        return Name(full)

    def call(self) -> Call:
        name, args = self.pop(2)
        if type(name) is not Name or type(args) is not tuple:
            raise ValueError("it calls something without a name")
        return Call(str(name), args)

    def persistent_id(self) -> Call:
        if PERSISTENT not in self.names:
            raise ValueError("it refers to something outside of itself")
        self.persistent.append(Call(PERSISTENT, self.pop(1)))
        return self.persistent[-1]

    def append(self, values: list[Any] | tuple) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to something else than a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any] | tuple) -> None:
        into = self.stack[-1]
        into = into.items if type(into) is Call else into
        if type(into) is not dict or len(values) % 2:
            raise ValueError("it sets items of something else than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            into[checked_key(key)] = value

    def set_state(self) -> None:
        (state,) = self.pop(1)
        if type(self.stack[-1]) is not Call:
            raise ValueError("it changes something else than what it made")
        self.stack[-1].state = state

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        if not 2 <= self.byte() <= 5:
            raise ValueError("an unknown protocol of pickle")


def checked_key(key: Any) -> Any:
    """A dictionary's key. Only those that are quickly hashed, and that a file cannot make collide.

    Raises:
        ValueError: neither text nor a small integer.
    """
    if type(key) in (str, Name) or (type(key) is int and abs(key) < 1 << 32):
        return key
    raise ValueError(f"a dictionary has a key that is neither text nor a small integer ({type(key).__name__})")


# By pickletools' names: opcodes that push a value, and those that do something else.
_VALUES_BY_NAME = {
    "NONE": lambda r: None,
    "NEWTRUE": lambda r: True,
    "NEWFALSE": lambda r: False,
    "BININT": lambda r: r.number(4, signed=True),
    "BININT1": lambda r: r.byte(),
    "BININT2": lambda r: r.number(2),
    "LONG1": lambda r: r.number(r.byte(), signed=True),
    "BINFLOAT": lambda r: struct.unpack(">d", r.take(8))[0],
    "BINUNICODE": lambda r: r.text(r.number(4)),
    "SHORT_BINUNICODE": lambda r: r.text(r.byte()),
    "BINSTRING": lambda r: r.text(r.number(4)),  # of Python 2
    "SHORT_BINSTRING": lambda r: r.text(r.byte()),
    "BINBYTES": lambda r: r.take(r.number(4)),
    "SHORT_BINBYTES": lambda r: r.take(r.byte()),
    "BINBYTES8": lambda r: r.take(r.number(8)),
    "BYTEARRAY8": lambda r: r.take(r.number(8)),
    "EMPTY_TUPLE": lambda r: (),
    "TUPLE1": lambda r: r.pop(1),
    "TUPLE2": lambda r: r.pop(2),
    "TUPLE3": lambda r: r.pop(3),
    "TUPLE": lambda r: tuple(r.since_mark()),
    "EMPTY_LIST": lambda r: [],
    "EMPTY_DICT": lambda r: {},
    "BINGET": lambda r: r.memo[r.byte()],
    "LONG_BINGET": lambda r: r.memo[r.number(4)],
    "GLOBAL": lambda r: r.name(r.line(), r.line()),
    "STACK_GLOBAL": lambda r: r.name(*r.pop(2)),
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BINPERSID": _Reader.persistent_id,
}
_ACTIONS_BY_NAME = {
    "PROTO": _Reader.protocol,
    "FRAME": lambda r: r.take(8),
    "MARK": _Reader.mark,
    "APPEND": lambda r: r.append(r.pop(1)),
    "APPENDS": lambda r: r.append(r.since_mark()),
    "SETITEM": lambda r: r.set_items(r.pop(2)),
    "SETITEMS": lambda r: r.set_items(r.since_mark()),
    "BUILD": _Reader.set_state,
    "BINPUT": lambda r: r.memoize(r.byte()),
    "LONG_BINPUT": lambda r: r.memoize(r.number(4)),
    "MEMOIZE": lambda r: r.memoize(len(r.memo)),
}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_STOP = ord(".")
_VALUES = {code: _VALUES_BY_NAME[name] for code, name in _NAMES.items() if name in _VALUES_BY_NAME}
_ACTIONS = {code: _ACTIONS_BY_NAME[name] for code, name in _NAMES.items() if name in _ACTIONS_BY_NAME}


# NumPy's arrays. Names of types are NumPy's own, "f4" with a sign for the order of bytes.
_PLAIN = {*(f"f{size}" for size in (2, 4, 8)), *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "b1"}


def _dtype(call: Call) -> np.dtype:
    """numpy.dtype("f4", False, True), then its state (version, order of bytes, subarray, names, fields, ...)."""
    (code, *_), state = call.args, call.state or (3, "=", None, None, None)
    if type(code) is str and code in ("O", "O8"):
        return np.dtype(object)
    if type(code) is not str or code not in _PLAIN or type(state) is not tuple or state[2:5] != (None, None, None):
        raise ValueError("an array of something else than plain numbers")
    return np.dtype(code).newbyteorder("<" if state[1] == "<" else ">" if state[1] == ">" else "=")


def _array(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray | list:
    """An array over the pickle's bytes; one of objects is a list."""
    lengths = type(shape) is tuple and len(shape) <= limits.TENSOR_DIMENSIONS
    if not isinstance(dtype, np.dtype) or not lengths or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError("an array of an impossible type or shape")
    count = math.prod(shape)
    if dtype.hasobject:
        if type(data) is not list or len(data) != count or len(shape) > 1:
            raise ValueError("an array of objects is damaged")
        return data
    if type(data) is not bytes or len(data) != count * dtype.itemsize:
        raise ValueError("an array has more or fewer bytes than its shape wants")
    if dtype.kind == "b":  # any byte but 0 and 1 is no bool
        return np.asarray(np.ndarray(shape, np.uint8, data, order=order) != 0)
    return np.ndarray(shape, dtype, data, order=order)


def _reconstructed(call: Call) -> np.ndarray | list:
    """_reconstruct(numpy.ndarray, ...), then its state (version, shape, dtype, is it in Fortran's order, data)."""
    if type(call.state) is not tuple or len(call.state) != 5 or call.args[:1] != ("numpy.ndarray",):
        raise ValueError("an array is damaged")
    _, shape, dtype, fortran, data = call.state
    return _array(data, dtype, shape, "F" if fortran is True else "C")


def _from_buffer(call: Call) -> np.ndarray | list:
    data, dtype, shape, order = call.args if len(call.args) == 4 else (None,) * 4
    return _array(data, dtype, shape, "F" if order == "F" else "C")


def _scalar(call: Call) -> np.generic:
    dtype, data = call.args if len(call.args) == 2 else (None, None)
    if type(data) is not bytes:
        raise ValueError("a number is damaged")
    number = _array(data, dtype, (), "C")
    assert isinstance(number, np.ndarray)  # no list, as the data are bytes
    return cast(np.generic, number[()])


def never(call: Call) -> Any:
    """Maker of names that are only arguments."""
    raise ValueError(f"it calls {call.name}")


_MULTIARRAY = {
    "multiarray._reconstruct": _reconstructed,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}
# What arrays need; NumPy 2 renamed the module, and files have either name.
NUMPY: Makers = {
    "numpy.dtype": _dtype,
    "numpy.ndarray": never,
    **{f"numpy.{core}.{name}": make for core in ("core", "_core") for name, make in _MULTIARRAY.items()},
}
