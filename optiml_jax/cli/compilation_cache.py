"""Compiled programs are kept between processes: only the first run of a program compiles it.

JAX does the work; here is where they lie, how many, and for which machine.
"""

import dataclasses
import hashlib
import os
import pathlib
import platform

import jax
import jaxlib

from optiml_jax.settings import Bytes, configurable

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


@configurable
@dataclasses.dataclass(frozen=True)
class CompilationCache:
    """Where compiled programs are kept; a JAX_COMPILATION_CACHE_DIR in the environment goes first.

    Attributes:
      folder: None: $XDG_CACHE_HOME/optiml_jax/compiled, else ~/.cache/optiml_jax/compiled; "":
        nothing is kept.
      max_bytes: the programs that were used longest ago go when there is more than this.
    """

    folder: str | None = None
    max_bytes: Bytes = 2 << 30

    def place(self) -> pathlib.Path | None:
        """The folder of this machine's programs; None: nothing is kept."""
        if os.environ.get(VARIABLE):
            return pathlib.Path(os.environ[VARIABLE])
        if self.folder == "":
            return None
        base = self.folder or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
            *("optiml_jax", "compiled"),
        )
        return pathlib.Path(base) / machine()

    def enable(self) -> None:
        """Makes JAX use the folder. Call it before anything is compiled."""
        place = self.place()
        if place is None or os.environ.get(VARIABLE):
            return
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_compilation_cache_max_size", self.max_bytes)
        # An evaluation compiles hundreds of small programs; none of them takes JAX's default, 1 s.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def machine() -> str:
    """A folder name for processors that run each other's programs.

    JAX's key of a program does not hold the instruction set, and a home folder may be shared by
    machines of several kinds.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    digest = hashlib.sha256(f"{jaxlib.__version__}\0{features}".encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"
