"""Command lines from dataclasses (tyro), with types, defaults and mistakes in words."""

from __future__ import annotations

import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from tyro import cli
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

from animate_jax.config import Preset, Switch

T = TypeVar("T")
NUMBERS = {int: ("INT", "a whole number"), float: ("NUMBER", "a number")}
NONE = ("none", "None")
RULES = ConstructorRegistry()


class ChoicesOrNone(tuple[str, ...]):
    """Also takes `NONE`, which help and mistakes do not list."""

    def __contains__(self, word: object) -> bool:
        return word in NONE or super().__contains__(word)


def parse(options: type[T] | Any, arguments: Sequence[str], program: str, about: str | None = None, **more: Any) -> T:
    """The options of a command; ends the process after `--help` (status 0) and wrong ones (status 2).

    Args:
        options: their dataclass, or a union of subcommands.
        about: of the command, for `--help`.
        more: as of `tyro.cli`.
    """
    return cli(options, args=arguments, prog=program, description=about, registry=RULES, **more)


def lora_of(text: str) -> tuple[str, float]:
    """File and strength of --lora FILE:STRENGTH."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon and not pathlib.Path(text).exists() else (text, 1.0)
    except ValueError:
        return text, 1.0


def load_loras(pipeline: Any, texts: Sequence[str]) -> None:
    """Adds every --lora FILE:STRENGTH to a `Pipeline`, whose module is not imported for commands that have none."""
    for path, scale in map(lora_of, texts):
        pipeline.load_lora(path, scale)


@RULES.primitive_rule
def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if info.type not in NUMBERS:
        return None
    kind = typing.cast(type, info.type)
    metavar, words = NUMBERS[kind]

    def parsed(strings: list[str]) -> int | float:
        try:
            return kind(strings[0])
        except ValueError:
            raise ValueError(f"{strings[0]!r} is not {words}") from None

    return _one_word(metavar, parsed, lambda value: isinstance(value, kind), str)


@RULES.primitive_rule
def text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if info.type is not str:
        return None
    return _one_word("TEXT", lambda strings: strings[0], lambda value: isinstance(value, str), str)


@RULES.primitive_rule
def switch(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """ "on" is what those say who want it, and "auto" is all they can get."""
    if info.type != Switch:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{auto,off}",
        instance_from_str=lambda strings: {"on": "auto"}.get(strings[0], strings[0]),
        is_instance=lambda value: value in typing.get_args(Switch),
        str_from_instance=lambda value: [value],
        choices=(*typing.get_args(Switch), "on"),
    )


@RULES.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    """What may be None is none by default, and "None" on the command line."""
    members = typing.get_args(info.type)
    if info.type_origin not in (typing.Union, types.UnionType) or len(members) != 2 or members[1] is not type(None):
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(members[0], info.markers))
    if isinstance(inner, UnsupportedTypeAnnotationError):
        return inner
    return PrimitiveConstructorSpec(
        nargs=inner.nargs,
        metavar=inner.metavar,
        instance_from_str=lambda words: None if words[0] in NONE else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else inner.str_from_instance(value),
        choices=inner.choices and ChoicesOrNone(inner.choices),
    )


@RULES.primitive_rule
def preset(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """--preset takes a name; a configuration file may also give a whole preset."""
    if info.type != str | Preset:
        return None
    return _one_word(
        "NAME",
        lambda words: words[0],
        lambda value: isinstance(value, str | Preset),
        lambda value: value if isinstance(value, str) else value.name,
    )


def _one_word(metavar: str, parse: Any, is_instance: Any, to_text: Any) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=is_instance,
        str_from_instance=lambda value: [to_text(value)],
    )
