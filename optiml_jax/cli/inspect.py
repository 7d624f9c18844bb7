"""`optiml inspect`: shows prompts, training rows, the mixture's composition and Table 1."""

import dataclasses
import difflib
import fnmatch
import functools
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Evaluate, Inspect, Run, configured
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.cache_records import RecordIds
from optiml_jax.data.example import TaskSource
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import PLAN_FILE, Plan, PlanConfig
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import encode_batch
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import prompts_of_evaluation
from optiml_jax.paths import path_of
from optiml_jax.report import composition, page, table1
from optiml_jax.report import inspect_terminal as terminal
from optiml_jax.report.inspect_prompts import (
    Renderer,
    TaskFacts,
    first_per_prompt,
    row_segments,
)
from optiml_jax.report.tables import Table, render
from optiml_jax.train.config import TrainConfig
from optiml_jax.words import counted
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest, category

TABLE1_FILE = pathlib.Path(mixtures.__file__).parent / "data" / "table1.yaml"
MOST_ROWS_PRINTED = 30

logger = logging.getLogger(__name__)


def main() -> None:
    run, settings = configured(Run), Inspect()
    if settings.step is not None or settings.row is not None:
        show_rows(run, settings)
        return
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    shown = matching(sources, settings.tasks or ("*",))
    facts = {s.name: task_facts(s, manifest) for s in sources}
    table1 = count(run, shown, facts, settings) if settings.table1 else None
    if settings.html:
        made = mixture_parts(run, sources, manifest)
        write_page(run, shown, facts, settings, made, table1)
    elif settings.tasks and not settings.table1:
        show_prompts(shown, facts, renderer(run), settings)
    elif not settings.table1:
        show_overview(facts, mixture_parts(run, sources, manifest))
    if table1:
        print(render(table1, "terminal"))


# --- which tasks ----------------------------------------------------------------------------------


def matching(sources: Sequence[TaskSource], globs: Sequence[str]) -> list[TaskSource]:
    """The tasks whose names match one of the globs; a glob that matches none is a UserError."""
    names = [s.name for s in sources]
    # A task may be given without its benchmark.
    known = {name: name for name in names} | {name.split("/", 1)[1]: name for name in names}
    for glob in globs:
        if not fnmatch.filter(names, glob):
            close = difflib.get_close_matches(glob.replace("*", ""), known, 3, cutoff=0.5)
            found = dict.fromkeys(known[name] for name in close)
            hint = f"did you mean {' or '.join(found)}?" if found else f"there are {len(names)}"
            raise UserError(f"Inspect.tasks: no task matches {glob!r}; {hint}")
    return [s for s in sources if any(fnmatch.fnmatchcase(s.name, g) for g in globs)]


def task_facts(source: TaskSource, manifest: Manifest) -> TaskFacts:
    """The split manifest's entry of a task, in words."""
    row = manifest.row(source)
    usual = prompts_of_evaluation(PromptConfig(), EvalConfig())
    evaluation = {name: getattr(usual, name) for name in ("delimiter", "separator")}
    own = {name: getattr(row.protocol, name) for name in evaluation}
    return TaskFacts(
        task=source.name,
        benchmark=source.benchmark,
        category=category(source),
        level=row.level,
        role=row.role,
        trained=row.trained_by(configured(Mixture, name="").roles),
        metric=row.metric,
        shots=row.shots,
        evaluation=evaluation | {name: text for name, text in own.items() if text is not None},
    )


def shown_split(source: TaskSource, facts: TaskFacts, settings: Inspect) -> str:
    """The split to show of a task: see `Inspect.split`."""
    split = settings.split or ("train" if facts.trained else "test")
    if split in source.splits:
        return split
    if settings.split:
        raise UserError(
            f"task {source.name} has no split {split!r}; it has {', '.join(source.splits)}"
        )
    return source.splits[0]


def shown_shots(
    facts: TaskFacts, settings: Inspect, evaluated: Sequence[int] = ()
) -> tuple[int | None, ...]:
    """The requested numbers of demonstrations, else as in training (None) and `evaluated`."""
    return settings.shots or tuple(dict.fromkeys((None if facts.trained else 0, *evaluated)))


# --- prompts and rows -----------------------------------------------------------------------------


def renderer(run: Run) -> Renderer:
    """Renders prompts as `optiml prepare` does."""
    vocabulary = load_run_vocabulary(run)
    return Renderer(
        config=PromptConfig(),
        encode=lambda text: encode_batch(vocabulary, [text])[0],
        decode=vocabulary.spell,
        sequence_length=PlanConfig(num_rows=1).sequence_length,
        end=vocabulary.spell([vocabulary.eos_id]),
    )


def show_prompts(
    sources: Sequence[TaskSource],
    facts: dict[str, TaskFacts],
    make: Renderer,
    settings: Inspect,
) -> None:
    """Prints rendered examples of every task."""
    colour = terminal.colours_wanted(sys.stdout)
    print(f"{terminal.LEGEND}\n")
    for source in sources:
        own = facts[source.name]
        print(terminal.task_heading(own, colour))
        split = shown_split(source, own, settings)
        examples, left_out = first_per_prompt(source, split, settings.examples, settings.prompts)
        shots = shown_shots(own, settings)
        for view in make.views(source, examples, shots, own.evaluation):
            print(terminal.prompt_text(view, make.sequence_length, colour))
        if not examples:
            print(f"  no example in split {split!r}\n")
        if left_out:
            wanted = left_out + settings.prompts
            print(f"  and {counted(left_out, 'more prompt')}: --gin.Inspect.prompts={wanted}\n")


def show_rows(run: Run, settings: Inspect) -> None:
    """Prints the rows of a training step."""
    plan = Plan.load(run.plan_dir(settings.rows))
    first, number = settings.row, 1
    asked = f"row {settings.row}"
    if first is None:
        number = configured(TrainConfig, plan_dir="", run_dir="").global_batch_size
        first, asked = settings.step * number, f"step {settings.step} ({counted(number, 'row')})"
    if first < 0 or first + number > plan.num_rows:
        raise UserError(
            f"{asked} is outside the plan in {plan.folder}, which has rows 0 to "
            f"{plan.num_rows - 1}; plan more with TrainConfig.num_steps"
        )
    vocabulary = load_run_vocabulary(run)
    cached = {task.name: task for task in plan.cached_tasks if task}
    colour = terminal.colours_wanted(sys.stdout)
    print(f"{terminal.LEGEND}\n")
    record_ids = RecordIds(plan.meta["cache_dir"])
    for row in range(first, first + number):
        segments = row_segments(plan, row, vocabulary.spell)
        tokens, loss = (sum(s.tokens[i] for s in segments) for i in (0, 1))
        print(
            f"row {row}: {counted(len(segments), 'example')}, {tokens} of "
            f"{plan.config.sequence_length} slots filled, {loss} with loss\n"
        )
        for i, segment in enumerate(segments, 1):
            split, task = plan.meta["split"], cached[segment.task]
            ids = record_ids.get(task, split, segment.index)
            print(terminal.segment_text(segment, ids, i, colour))


# --- the mixture, Table 1 and the page ------------------------------------------------------------


def mixture_parts(
    run: Run, sources: Sequence[TaskSource], manifest: Manifest
) -> composition.Composition | str:
    """The mixture's composition from its plan, else from its cache, else why there is none."""
    mixture, plan_dir = configured(Mixture), run.plan_dir("train")
    try:
        if (plan_dir / PLAN_FILE).exists():
            return composition.of_plan(Plan.load(plan_dir), mixture.name)
        names = [s.name for s in mixtures.select(sources, mixture, manifest)]
        return composition.of_cache(run.cache_dir, names, mixture)
    except UserError as e:
        return f"the shares of the mixture {mixture.name!r} are unknown: {e}"


def show_overview(facts: dict[str, TaskFacts], parts: composition.Composition | str) -> None:
    """Prints the number of tasks of each benchmark by role and level, and the shares."""
    print(render(composition.task_table(list(facts.values())), "terminal"))
    if isinstance(parts, str):
        print(parts)
        return
    for made in parts.tables():
        more = len(made.rows) - MOST_ROWS_PRINTED
        if more > 0:
            note = f"and {more} more: --gin.Inspect.html=FILE has them all"
            rows, notes = made.rows[:MOST_ROWS_PRINTED], (note, *made.notes)
            made = dataclasses.replace(made, rows=rows, notes=notes)
        print(render(made, "terminal"))


def count(
    run: Run, sources: Sequence[TaskSource], facts: dict[str, TaskFacts], settings: Inspect
) -> Table:
    """Table 1 of the tasks, counted from the cache for cached tasks."""
    config, vocabulary = PromptConfig(), load_run_vocabulary(run)
    # A cached training prompt may include demonstrations, so its length is not that of the example.
    use_cache = not settings.recount and len(config.shots) == 1 and path_of(run.cache_dir).is_dir()
    counts, notes = table1.count_tasks(
        sources,
        facts,
        Store(run.cache_dir) if use_cache else None,
        config.for_evaluation(),
        functools.partial(encode_batch, vocabulary),
    )
    paper = yaml.safe_load(TABLE1_FILE.read_text("utf-8"))
    notes.append(f"tokens of {run.vocabulary}")
    return table1.table(counts, paper, configured(Mixture).max_examples_of, notes)


def write_page(
    run: Run,
    sources: Sequence[TaskSource],
    facts: dict[str, TaskFacts],
    settings: Inspect,
    parts: composition.Composition | str,
    table1: Table | None,
) -> None:
    """Writes the page of the tasks."""
    make = renderer(run)
    evaluated = Evaluate().shots
    variants = len(settings.shots) or 1 + len(evaluated)
    room = page.MOST_EXAMPLES // (len(sources) * variants * settings.examples)
    prompts = max(1, min(settings.prompts, room))
    tasks: list[dict[str, Any]] = []
    for i, source in enumerate(sources, 1):
        if i % 50 == 1:
            logger.info("rendering task %d of %d: %s", i, len(sources), source.name)
        own = facts[source.name]
        try:
            split = shown_split(source, own, settings)
            examples, left_out = first_per_prompt(source, split, settings.examples, prompts)
            shots = shown_shots(own, settings, evaluated)
            views = list(make.views(source, examples, shots, own.evaluation))
            problem = "" if views else f"no example in split {split}"
        except UserError as e:  # one damaged file must not hide the other tasks
            views, left_out, problem = [], 0, str(e)
        tasks.append(page.task_data(own, views, left_out, problem))
    title = f"{configured(Mixture).name}: tasks and mixture"
    page.write_page(settings.html, title, tasks, make.sequence_length, parts, table1)
    left_out = sum(task["left_out"] for task in tasks)
    size = path_of(settings.html).stat().st_size / 2**20
    rendered = counted(sum(len(t["views"]) for t in tasks), "rendered example")
    print(
        f"written: {settings.html} ({size:.1f} MiB): {rendered} of {counted(len(tasks), 'task')}, "
        f"{counted(left_out, 'prompt')} left out"
    )


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
