"""Prints the completion script of a shell:

    animate-jax completion bash > ~/.local/share/bash-completion/completions/animate-jax
    animate-jax completion zsh > ~/.zfunc/_animate-jax
    animate-jax completion fish > ~/.config/fish/completions/animate-jax.fish

It works in the next shell that is opened.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from animate_jax.commands import doctor, goodput, sample, train
from animate_jax.commands.data import DATASETS
from animate_jax.commands.evaluate import Arguments as Evaluation
from animate_jax.commands.options import parse
from animate_jax.commands.web import Arguments as Web
from animate_jax.commands.weights import Command as Weights


@dataclasses.dataclass(frozen=True)
class Arguments:
    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]  # whose script is printed


named = tyro.conf.subcommand
Configurations = tyro.extras.subcommand_type_from_defaults(
    {name: train.load_config(name) for name in train.config_names()}
)
DataSets = tyro.extras.subcommand_type_from_defaults(
    {name: options(pathlib.Path(), pathlib.Path()) for name, options in DATASETS.items()}
)


@dataclasses.dataclass(frozen=True)
class Build:
    dataset: DataSets  # pyright: ignore[reportInvalidTypeForm]  # made at run time


Everything = (
    Annotated[sample.Arguments, named("sample")]
    | Annotated[Configurations, named("train")]
    | Annotated[Weights, named("weights")]
    | Annotated[Annotated[Build, named("build")] | Annotated[Arguments, named("--help")], named("data")]
    | Annotated[Evaluation, named("evaluate")]
    | Annotated[Web, named("web")]
    | Annotated[doctor.Arguments, named("doctor")]
    | Annotated[goodput.Arguments, named("goodput")]
    | Annotated[Arguments, named("completion")]
)


def main(arguments: list[str], program: str = "animate-jax completion") -> int:
    args = parse(Arguments, arguments, program, __doc__)
    parse(Everything, ["--tyro-print-completion", args.shell], "animate-jax")
    return 0
