"""Every script of tools/ finds what it imports: most are run by hand, long after a change."""

import ast
import importlib
import importlib.util
import pathlib

TOOLS = pathlib.Path(__file__).parents[2] / "tools"
OURS = ("optiml_jax", "tasks", "tools")


def imported(script: pathlib.Path) -> list[tuple[str, str]]:
    """(module, name) of what it takes from this project, also inside functions."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
        for alias in node.names
    ]


def is_there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


def test_every_tool_finds_what_it_imports():
    pairs = {
        (str(script.relative_to(TOOLS)), *pair)
        for script in TOOLS.rglob("*.py")
        for pair in imported(script)
    }
    assert len(pairs) > 50
    assert [p for p in sorted(pairs) if not is_there(*p[1:])] == []
