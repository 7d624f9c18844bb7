"""The house rules that can be checked by reading files: who may import whom, how long files are."""

import ast
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FLOORS = [  # from the top; a package imports only from floors below its own
    {"optiml_jax.cli"},
    {"optiml_jax.study"},
    {"optiml_jax.report", "tasks"},
    {"optiml_jax.ahead"},
    {"optiml_jax.train", "optiml_jax.exchange"},
    {"optiml_jax.checkpoint", "optiml_jax.evaluate", "optiml_jax.audit"},
    {"optiml_jax.sharding", "optiml_jax.data"},
    {"optiml_jax.model", "optiml_jax.fetch"},
    {"optiml_jax.one_writer"},
    {"optiml_jax.yaml_files"},
    {"optiml_jax.bucket_claim", "optiml_jax.files", "optiml_jax.frozen", "optiml_jax.settings"},
    {"optiml_jax.paths"},
    {"optiml_jax.buckets"},
    {"optiml_jax.errors", "optiml_jax.interrupt", "optiml_jax.quiet", "optiml_jax.words"},
]
WITHOUT_TENSORFLOW = [
    "optiml_jax.model.decoder",
    "optiml_jax.sharding.rules",
    "optiml_jax.train.loop",
    "optiml_jax.checkpoint.manager",
    "optiml_jax.checkpoint.conversion",
    "optiml_jax.checkpoint.huggingface",
    "optiml_jax.data.loader",
    "optiml_jax.cli.train",
    "optiml_jax.cli.report",
    "optiml_jax.evaluate.scoring",
    "optiml_jax.evaluate.decoding",
    "optiml_jax.evaluate.records",
    "optiml_jax.evaluate.rollup",
    "optiml_jax.evaluate.statistics",
    "optiml_jax.audit.pipeline",
]


def python_files() -> list[pathlib.Path]:
    folders = ["optiml_jax", "tasks", "tools", "tests"]
    return sorted(p for f in folders for p in (REPOSITORY / f).rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: pathlib.Path) -> set[str]:
    """Every module of the project that the file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.split(".")[0] in ("optiml_jax", "tasks")}


def package_of(module: str) -> str | None:
    for floor in FLOORS:
        for package in floor:
            if module == package or module.startswith(package + "."):
                return package
    return None


def floor_of(package: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if package in floor)


def test_packages_import_only_from_floors_below():
    offences = []
    for path in python_files():
        here = package_of(module_name(path))
        if here is None:
            continue
        for module in imported_modules(path):
            there = package_of(module)
            if there is None or there == here or here == "optiml_jax.cli":
                continue
            if floor_of(there) <= floor_of(here):
                offences.append(f"{module_name(path)} imports {module}")
    assert not offences


def test_the_library_knows_no_benchmark():
    for path in python_files():
        module = module_name(path)
        if module.startswith("optiml_jax") and not module.startswith("optiml_jax.cli"):
            assert not any(n.split(".")[0] == "tasks" for n in imported_modules(path)), path


def test_nothing_outside_of_the_models_knows_an_architecture():
    """Neither by import nor by name; metaseq's files are OPT's own form."""
    models = REPOSITORY / "optiml_jax" / "model"
    rooms = {path.parent.name for path in models.glob("*/config.py")}
    assert {"opt", "llama"} <= rooms
    for path in (REPOSITORY / "optiml_jax").rglob("*.py"):
        if path.is_relative_to(models) or path.stem == "metaseq":
            continue
        for module in imported_modules(path):
            assert not any(module.startswith(f"optiml_jax.model.{room}") for room in rooms), path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                asked = any(
                    getattr(p, "attr", getattr(p, "id", "")) == "architecture" for p in parts
                )
                named = any(isinstance(p, ast.Constant) and p.value in rooms for p in parts)
                assert not (asked and named), f"{path}:{node.lineno}"


def test_tasks_use_only_the_data_contract_and_the_metrics():
    allowed = (
        "optiml_jax.data",
        "optiml_jax.evaluate.answers",
        "optiml_jax.evaluate.metrics",
        "optiml_jax.evaluate.protocol",
        "optiml_jax.errors",
        "optiml_jax.fetch.provenance",  # what a folder of data holds
        "optiml_jax.settings",
        "optiml_jax.yaml_files",
    )
    for path in python_files():
        if module_name(path).startswith("tasks"):
            for name in imported_modules(path):
                if name.startswith("optiml_jax."):
                    inside = name.startswith((*allowed, "optiml_jax.files"))
                    assert inside or name == "optiml_jax.evaluate", f"{path} imports {name}"


TASK_FLOORS = [  # the same inside tasks/; packages of collections also know nothing of each other
    {"demo"},
    {"mixtures"},
    {"registry"},
    {
        *("crossfit", "exmix", "flan", "own", "promptsource", "reasoning", "suites"),
        *("superni", "t5", "text", "unifiedskg"),
    },
    {"files", "templates"},
    {"audit"},
    {"taxonomy"},
    {"splits"},
    {"decisions", "provenance"},
    {"patterns"},
]


def test_collections_import_only_what_readers_share():
    floor_of_room = {room: i for i, rooms in enumerate(TASK_FLOORS) for room in rooms}
    for path in (REPOSITORY / "tasks").rglob("*.py"):
        names = module_name(path).split(".")
        if len(names) == 1:
            continue
        here = names[1]
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "tasks" or len(parts) == 1 or parts[1] == here:
                continue
            assert floor_of_room[parts[1]] > floor_of_room[here], f"{path} imports {module}"


def test_no_import_cycles():
    graph = {}
    modules = {module_name(p): p for p in python_files() if "tests" not in p.parts}
    for name, path in modules.items():
        graph[name] = {m for m in imported_modules(path) if m in modules and m != name}
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name in done:
            return
        active.append(name)
        for other in graph[name]:
            visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_training_and_scoring_run_without_tensorflow():
    """Imports the modules in a process in which importing TensorFlow or SeqIO fails."""
    code = (
        "import importlib, sys\n"
        "for name in ('tensorflow', 'seqio', 'tensorflow_datasets', 't5'):\n"
        "    sys.modules[name] = None\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_TENSORFLOW],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr  # its last frames name the module


def test_no_file_is_longer_than_500_lines():
    long = {p: n for p in python_files() if (n := len(p.read_text("utf-8").splitlines())) > 500}
    assert not long


def test_gin_folder_holds_no_python():
    assert not list((REPOSITORY / "gin").rglob("*.py"))


def test_the_list_of_slow_tests_names_files_that_exist():
    names = (REPOSITORY / "tests" / "slow.txt").read_text("utf-8").split()
    assert len(names) == len({*names})
    assert all((REPOSITORY / name).is_file() for name in names)
