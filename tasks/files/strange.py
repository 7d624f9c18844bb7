"""What lies in the place of a file of data and is none: readers would pass over it in silence."""

import logging
import os
import stat

from tasks.files.formats import format_of

logger = logging.getLogger(__name__)

_SHOWN = 5


def warn_of_strange(root: str) -> None:
    """Names pipes, empty files of data and folders called like one, below `root`."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in folders if format_of(name)]
        for name in files:
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
                empty = not status.st_size and format_of(name)
                if not stat.S_ISREG(status.st_mode) or empty:
                    found.append(path)
            except OSError:
                continue  # a broken link, which promises.py refuses
    if found:
        more = ", ..." if len(found) > _SHOWN else ""
        shown = ", ".join(sorted(found)[:_SHOWN]) + more
        logger.warning("pipes, folders or empty files in the place of data: %s", shown)
