"""The one exception of the project that is meant for the person at the terminal."""

import re

# What a terminal would obey: control characters, and those that turn the direction of writing.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with what a terminal would obey spelled out; line feeds and tabs stay."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Something the user can put right: bad input, bad configuration, a full disk.

    The message is one line: what is wrong, where (file, line, task, parameter), and what to do.
    The command line prints it as ``error: <message>`` and exits with status 2, without a traceback.
    Names and texts of files may stand in it: control characters are spelled out.
    """

    def __init__(self, message: object):
        super().__init__(printable(str(message)))
