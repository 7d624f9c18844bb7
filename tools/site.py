"""What the documentation site adds to docs/: the files of the root, the reference, all messages.

`mkdocs.yml` names this file; mkdocs calls the functions `on_...`.
"""

import ast
import pathlib
import posixpath
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOT_PAGES = {"README.md": "index.md", "WORKSPACE.md": "WORKSPACE.md"}
ROOT_PAGES["CONTRIBUTING.md"] = "CONTRIBUTING.md"
PACKAGES = {  # pages of the reference, from what a user calls down to the foundations
    "optiml_jax": "settings errors frozen files one_writer quiet",
    **{f"optiml_jax.{name}": "" for name in ("data", "evaluate", "report", "exchange", "fetch")},
    **{
        f"optiml_jax.{name}": ""
        for name in ("train", "study", "checkpoint", "sharding", "model", "audit")
    },
    **{f"optiml_jax.{name}": "" for name in ("ahead", "cli")},
    "tasks": "registry mixtures splits provenance decisions audit taxonomy",
}
ERRORS = ("UserError", "AuditError", "FetchError", "PrepareError")
_LINK = re.compile(r"\]\(([^)#:\s]+)((?:#[^)]*)?)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the reference, and pages that no section names, into the navigation."""
    named = {page for section in config.nav for pages in section.values() for page in pages}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    if more := sorted(there - named):
        config.nav.append({"More": more})
    config.nav.append({"Reference": [f"reference/{package}.md" for package in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files of docs/."""
    pages = {page: (ROOT / name).read_text("utf-8") for name, page in ROOT_PAGES.items()}
    pages |= {f"reference/{p}.md": reference(p, some.split()) for p, some in PACKAGES.items()}
    pages["messages.md"] = messages()
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to repository files that are not pages into their names."""
    source = page.file.src_uri
    origin = {page: name for name, page in ROOT_PAGES.items()}.get(source, f"docs/{source}")

    def replaced(match: re.Match) -> str:
        path, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        place = ROOT_PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(place):
            return f"]({posixpath.relpath(place, posixpath.dirname(source) or '.')}{anchor})"
        if not (ROOT / target).exists():
            return match.group(0)  # the strict build says so
        return f'](# "{target} of the repository")'

    parts = _FENCE.split(markdown)
    return "".join(p if p.startswith("```") else _LINK.sub(replaced, p) for p in parts)


def reference(package: str, names: list[str]) -> str:
    """A page with the public API of a package's modules, from their docstrings."""
    folder = ROOT / package.replace(".", "/")
    found = names or sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")
    found += sorted(
        f"{path.parent.name}.{path.stem}"
        for path in folder.glob("*/*.py")
        if package == "optiml_jax.model" and path.stem[0] != "_"
    )
    return "\n".join([f"# {package}\n", *(f"::: {package}.{name}" for name in found)])


def messages() -> str:
    """Every message about a user's error or a broken file, by the module it is from.

    Braces stand for values that are filled in.
    """
    lines = [
        "# All messages\n",
        "Every error that ends a verb with one line and status 2. `{}` is filled in.",
        "[Troubleshooting](troubleshooting.md) explains the kinds.\n",
    ]
    for top in ("optiml_jax", "tasks"):
        for folder in sorted(path for path in (ROOT / top).iterdir() if path.is_dir()):
            rows = [
                f"| {text} | `{path.relative_to(ROOT)}` |"
                for path in sorted(folder.rglob("*.py"))
                for text in _messages_of(path)
            ]
            if rows:
                lines += [f"\n## {folder.relative_to(ROOT)}\n", "| message | from |", "|---|---|"]
                lines += rows
    return "\n".join(lines) + "\n"


def _messages_of(path: pathlib.Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        error = ast.unparse(node.exc.func).rsplit(".", 1)[-1]
        text = " ".join(_text(node.exc.args[0]).split())
        if error in ERRORS and text:
            yield "`" + text.replace("|", "\\|").replace("`", "'") + "`"


def _text(node: ast.expr) -> str:
    """The text of a string or f-string, {} for each value; "": built elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(x.value if isinstance(x, ast.Constant) else "{}" for x in node.values)
    return ""
