"""What a worker of `prepare.py` needs, imported once by the server that workers are forked from.

The notes that TensorFlow's libraries print at import, whatever one sets, are kept off the terminal.
If something is missing, the server goes on without, and every worker fails with the error.
"""

import os

_stderr = os.dup(2)
with open(os.devnull, "w") as _nothing:
    os.dup2(_nothing.fileno(), 2)
try:
    import optiml_jax.data.cache_task  # noqa: F401
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
