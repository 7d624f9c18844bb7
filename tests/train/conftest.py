import jax
import pytest
import tiny_run
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session")
def plan_dir(tmp_path_factory):
    """A plan of 400 rows of 32 tokens over two tiny tasks."""
    return tiny_run.make_plan(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """Keeps what is compiled, here and in programs started in the environment that it gives."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    settings["jax_disable_most_optimizations"] = 1  # compiling is most of the time of a test
    environment = {name.upper(): str(value) for name, value in settings.items()}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield environment
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
