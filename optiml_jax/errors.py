"""The one exception of the project that is meant for the person at the terminal."""


class UserError(Exception):
    """Something the user can put right: bad input, bad configuration, a full disk.

    The message is one line: what is wrong, where (file, line, task, parameter), and what to do.
    The command line prints it as ``error: <message>`` and exits with status 2, without a traceback.
    """
