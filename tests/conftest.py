"""Settings of the whole test run: 8 simulated devices, quiet TensorFlow, where real data lies."""

import collections
import os
import pathlib
import signal
import socket

# Before anything imports jax: multi-device code is tested on 8 simulated CPU devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Libraries that ask the Hugging Face Hub, some at every call, are refused here and at once.
os.environ["HF_ENDPOINT"] = "http://localhost:9"
# Tests and the processes they start compile each program once for all of them.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parent.parent / "build" / "test_programs"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import psutil
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# The background jobs of a shell are born deaf to Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The longest first: they are started in this order, and short files fill the end of a run.
SLOW_FILES = (REPOSITORY / "tests" / "slow.txt").read_text().split()
_SLOW = 10.0  # seconds of one file; `-m "not slow"` is what is below
_WORKER_MEMORY = 4 << 30
_HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one process per processor where memory allows, at most 8."""
    processors, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    workers = min(processors, memory // _WORKER_MEMORY, 8)
    return workers if workers > 1 else 0  # 0: in this process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {file: place for place, file in enumerate(SLOW_FILES)}

    def place(item: pytest.Item) -> int:
        return places.get(item.nodeid.split("::")[0], len(places))

    for item in items:
        if place(item) < len(places):
            item.add_marker(pytest.mark.slow)
    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the files that took long and are not marked so."""
    seconds: collections.Counter = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0]] += report.duration
    for file, total in seconds.most_common():
        if total > _SLOW and file not in SLOW_FILES:
            terminalreporter.write_line(f"slow, and not in tests/slow.txt: {file} ({total:.0f} s)")


def real_data_root() -> pathlib.Path | None:
    """The folder of real upstream data: $OPTIML_REAL_DATA, else ../shared/data if it exists."""
    if "OPTIML_REAL_DATA" in os.environ:
        return pathlib.Path(os.environ["OPTIML_REAL_DATA"])
    default = REPOSITORY.parent / "shared" / "data"
    return default if default.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real upstream data; skips the test when there is none on this machine."""
    root = real_data_root()
    if root is None:
        pytest.skip("no real data here: set OPTIML_REAL_DATA to a folder that holds it")
    return root


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """No test asks another machine, where it might wait for ever for an answer."""
    find, asked = socket.getaddrinfo, []

    def find_here(host, *arguments, **named):
        if host in _HERE:
            return find(host, *arguments, **named)
        asked.append(host)
        raise socket.gaierror(f"a test asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", find_here)
    yield
    assert not asked, f"hosts that were asked for: {asked}"


@pytest.fixture(autouse=True)
def _fresh_gin():
    """Gin's bindings are global: no test sees those of another."""
    yield
    import gin

    gin.clear_config()
