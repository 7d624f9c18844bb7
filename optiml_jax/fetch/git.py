"""Parts of a git repository at a pinned revision, by the `git` program."""

import os
import pathlib
import re
import shutil
import subprocess

from optiml_jax.fetch.http import FetchError
from optiml_jax.fetch.sources import Source

# What git says of a network or server that may be there again later.
_PASSES = re.compile(
    "resolve host|timed out|failed to connect|connection (reset|refused|closed)|early eof|hung up|"
    "returned error: (5|429)",
    re.IGNORECASE,
)


def checkout(source: Source, address: str, staging: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Brings the wanted files of a repository into a folder below `staging`.

    Objects that came before an interruption are kept; git verifies each by its id.

    Args:
      address: of the repository, mirrors applied.

    Returns:
      The folder that holds `source.start`, and the id of the commit.

    Raises:
      FetchError: git is missing, or says no.
    """
    repository, tree = staging / "repository.git", staging / "tree"
    repository.mkdir(parents=True, exist_ok=True)
    for lock in repository.rglob("*.lock"):  # of a git that was killed
        lock.unlink(missing_ok=True)
    _git(repository, "init", "--quiet", "--bare")
    _git(repository, "config", "remote.origin.url", address)
    # Only blobs that the checkout needs, where the server can do that.
    wanted = ["--depth=1", "--filter=blob:none", "origin", source.revision]
    _git(repository, "fetch", "--quiet", "--no-tags", *wanted)
    commit = _git(repository, "rev-parse", "FETCH_HEAD^{commit}").strip()
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    names = _git(repository, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")
    wanted = [name for name in names if name and source.wants(name)]
    if not wanted:
        raise FetchError(f"{address} at {commit} has none of the wanted files")
    checkout = ["checkout", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", commit]
    literally = ["--literal-pathspecs", f"--work-tree={tree}"]
    _git(repository, *literally, *checkout, said="\0".join(wanted))
    return tree / source.start.strip("/"), commit


def _git(repository: pathlib.Path, *arguments: str, said: str = "") -> str:
    command = ["git", f"--git-dir={repository}", *arguments]
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
    environment |= {"LC_ALL": "C"}  # its words are read below
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError as e:
        raise FetchError("the program git is not installed") from e
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise FetchError(f"git says: {said[-300:]}", bool(_PASSES.search(said)))
    return done.stdout
