"""Finding and registering tasks is quick, and opens no file of data."""

import pathlib
import sys

import pytest
import seqio

from optiml_jax.data.mixture import Mixture
from optiml_jax.data.prompts import PromptConfig
from tasks.mixtures import register_mixture, select
from tasks.registry import COLLECTIONS, find_sources, register
from tasks.splits import Manifest

FOLDERS = {"superni": "super_natural_instructions"}  # of the real data, where not the benchmark's
_listeners = []
sys.addaudithook(lambda event, args: [heard(args[0]) for heard in _listeners if event == "open"])


@pytest.fixture
def opened():
    """The paths that Python opens during the test."""
    paths = set()
    _listeners.append(lambda path: paths.add(str(path)))
    yield paths
    _listeners.pop()


def register_all(data: dict[str, str]):
    """Finds, selects and registers all training tasks of the given data."""
    manifest = Manifest.load()
    mixture = Mixture(name="registered")
    sources = select(find_sources(data, manifest), mixture, manifest)
    for source in sources:
        register(source, seqio.PassThroughVocabulary(300), PromptConfig())
    register_mixture(mixture, {s.name: 100 for s in sources})
    return sources


def test_two_thousand_tasks_are_registered_unopened(tmp_path, write_bench, opened):
    stems = [f"task{n:04}_made" for n in range(3000, 5000)]  # numbers that no rule of data names
    root = write_bench(dict.fromkeys(stems, "not even JSON"))
    rows = "".join(f"{stem}\tMathematics\n" for stem in stems)
    (root / "categories.tsv").write_text("task\tcategory\n" + rows)
    opened.clear()
    sources = register_all({"superni": str(root)})
    assert len(sources) == 2000
    assert str(root / "categories.tsv") in opened  # the test would see it
    assert not opened & {file for source in sources for file in source.files}


def test_registering_the_real_data_opens_templates_and_lists_only(real_data, opened):
    folders = {b: real_data / FOLDERS.get(b, b) for b in COLLECTIONS}
    data = {b: str(folder) for b, folder in folders.items() if folder.is_dir()}
    sources = register_all(data)
    assert {s.benchmark for s in sources} == set(data)
    files = {pathlib.Path(file) for source in sources for file in source.files}
    seen = {path.name for path in files if str(path) in opened}
    assert seen <= {"templates.yaml", "templates.py"}
