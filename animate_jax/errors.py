"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Bad input: the message says in one line what is wrong, where, and what to do.

    Command-line programs print it without a traceback and exit with status 2.
    """
