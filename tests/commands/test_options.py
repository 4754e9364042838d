"""What `--help` shows of every option, and what is said of wrong values."""

import ast
import dataclasses
import inspect
import typing

import pytest

from animate_jax.commands import completion, doctor, evaluate, goodput, sample, web, weights
from animate_jax.commands.data import PublicDataset, VideoFolder
from animate_jax.commands.options import parse
from animate_jax.config import TrainConfig
from animate_jax.training.encoding import EncodeArguments

pytestmark = pytest.mark.compiles

COMMANDS = [
    *(module.Arguments for module in (completion, doctor, evaluate, goodput, sample, web)),
    *(weights.Fetch, weights.Import, weights.Export, weights.Inspect, weights.Verify),
    *(VideoFolder, PublicDataset, EncodeArguments, TrainConfig),
]


def with_groups(options):
    """A dataclass of options and those of its groups."""
    hints = typing.get_type_hints(options)
    groups = [hints[field.name] for field in dataclasses.fields(options) if dataclasses.is_dataclass(hints[field.name])]
    return [options, *(inner for group in groups for inner in with_groups(group))]


# A dict and no set: workers side by side collect tests in one order.
GROUPS = dict.fromkeys(group for command in COMMANDS for group in with_groups(command))


@pytest.mark.parametrize("options", GROUPS, ids=lambda options: options.__qualname__)
def test_every_option_has_a_text_of_its_own(options):
    """tyro shows a comment at the end of a line, that line only, or a docstring below; of comments above, all
    following options get the last."""
    lines = inspect.getsource(options).splitlines()
    statements = ast.parse("\n".join(lines)).body[0].body
    groups = [hint for name, hint in typing.get_type_hints(options).items() if dataclasses.is_dataclass(hint)]
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name, line = statement.target.id, lines[statement.end_lineno - 1][statement.end_col_offset :]
        after = lines[statement.end_lineno].strip() if statement.end_lineno < len(lines) else ""
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        is_group = typing.get_type_hints(options)[name] in groups
        assert documented or "# " in line or is_group, name
        assert documented or "# " not in line or not after.startswith("#"), f"{name}: only the first line is shown"


@pytest.mark.parametrize("options", GROUPS, ids=lambda options: options.__qualname__)
def test_help_names_one_default(options):
    """`--help` adds "(default: none)" itself, so texts say what none means."""
    texts = [line for line in inspect.getsource(options).splitlines() if "default: " in line.lower()]
    assert not texts


def test_sampling_shows_no_option_of_training(capsys):
    for command in (sample.Arguments, web.Arguments):
        with pytest.raises(SystemExit):
            parse(command, ["--help"], "program")
        shown = capsys.readouterr().out
        assert "--mesh.frames" in shown and "gather" not in shown


def parsed(capsys, *arguments):
    try:
        return parse(sample.Arguments, arguments, "animate-jax sample")
    except SystemExit as ended:
        assert ended.code == 2
        return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fps", "abc"], "Error parsing --fps: 'abc' is not a number"),
        (["--seed", "1.5"], "Error parsing --seed: '1.5' is not a whole number"),
        (["--hands", "maybe"], "invalid choice 'maybe' for argument '--hands'"),
        (["--sampler", "dim"], "invalid choice 'dim' for argument '--sampler'"),
        (["--sampler", "dim"], "'euler_ancestral', 'lcm')."),
    ],
)
def test_wrong_values_are_told_in_words(arguments, message, capsys):
    assert message in parsed(capsys, *arguments)


def test_what_may_be_none(capsys):
    nothing = [word for name in ("steps", "fps", "dwpose", "preset", "sampler") for word in (f"--{name}", "none")]
    assert parsed(capsys, *nothing) == sample.Arguments()
    given = parsed(capsys, "--steps", "None", "--fps", "12", "--canvas", "3", "4", "--guidance-interval", "0", "0.8")
    assert (given.steps, given.fps, given.canvas, given.guidance_interval) == (None, 12.0, (3, 4), (0.0, 0.8))


def test_switches_are_alike(capsys):
    names = ("hands", "face", "audio", "keep_inside")
    for word, value in (("on", "auto"), ("auto", "auto"), ("off", "off")):
        given = parsed(capsys, *(text for name in names for text in (f"--{name.replace('_', '-')}", word)))
        assert [getattr(given, name) for name in names] == [value] * 4
