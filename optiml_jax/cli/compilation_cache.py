"""The persistent compilation cache: only the first run of a program compiles it.

JAX does the work; this module sets the folder, its size, and the machine it is for.
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
    """Where compiled programs are kept; JAX_COMPILATION_CACHE_DIR takes precedence.

    Attributes:
      folder: None: $XDG_CACHE_HOME/optiml_jax/compiled, else ~/.cache/optiml_jax/compiled; "":
        nothing is kept.
      max_bytes: above this size, the least recently used programs are deleted.
    """

    folder: str | None = None
    max_bytes: Bytes = 2 << 30

    def place(self) -> pathlib.Path | None:
        """The folder for this machine's programs; None: nothing is kept."""
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
        """Makes JAX use the folder. To be called before anything is compiled."""
        place = self.place()
        if place is None or os.environ.get(VARIABLE):
            return
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_compilation_cache_max_size", self.max_bytes)
        # An evaluation compiles hundreds of small programs, all faster than JAX's threshold of 1 s.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def machine() -> str:
    """A folder name common to CPUs that can run each other's programs.

    JAX's cache key does not include the instruction set, and a home folder may be shared by
    different machines.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    digest = hashlib.sha256(f"{jaxlib.__version__}\0{features}".encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"
