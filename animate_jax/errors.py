"""The one exception that is meant for the user's eyes, and how command lines show it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message says in one line what is wrong, where, and what to do.

    Command-line programs print it without a traceback and exit with status 2.
    """


def exit_status(program: str, work: Callable[[], int | None], interrupted: str) -> int:
    """Does the work of a command line: its status or 0; 2 after a `UserError`, 130 after Ctrl-C, told in a line."""
    try:
        return work() or 0
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130
