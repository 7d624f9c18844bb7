"""Tasks of text files, for tests of caching: importable by worker processes."""

import functools
import pathlib
import time

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.errors import UserError


def write_task_file(folder: pathlib.Path, name: str, num_lines: int = 12) -> pathlib.Path:
    """A file of `input<TAB>target` lines."""
    path = folder / f"{name}.tsv"
    lines = [f"{name} says number {i} is\t{i * 7}" for i in range(num_lines)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read_lines(path: str, pause: float, split: str, drops: Drops):
    """The first two lines are the test split. A line without a tab is dropped."""
    lines = pathlib.Path(path).read_text("utf-8").splitlines()
    for i, line in enumerate(lines):
        if (i < 2) != (split == "test"):
            continue
        time.sleep(pause)
        if line == "CUT":
            raise UserError(f"{path}, line {i + 1}: the file is cut in half")
        if "\t" not in line:
            drops["no target"] += 1
            continue
        if "\t\t" in line:
            drops["warning: two tabs"] += 1
        text, target = line.replace("\t\t", "\t").split("\t")
        yield Example(
            benchmark="toy",
            task=f"toy/{pathlib.Path(path).stem}",
            category="Numbers",
            prompt_id="1",
            example_id=str(i),
            split=split,
            instruction="Say the number.",
            input=text,
            target=target,
            references=(target, f"{target}."),
            options=(target, "none") if i % 2 else None,
        )


def no_demonstrations() -> list[Example]:
    return []


def toy_source(path: pathlib.Path, pause: float = 0.0, **settings) -> TaskSource:
    return TaskSource(
        name=f"toy/{path.stem}",
        splits=("train", "test"),
        files=(str(path),),
        read=functools.partial(read_lines, str(path), pause),
        demonstrations=no_demonstrations,
        settings=settings,
    )
