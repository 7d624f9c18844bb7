"""`optiml audit`: evaluation examples in the training data, and the decisions about them."""

import collections
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from optiml_jax.audit import pairs
from optiml_jax.audit.flags import read_flags, write_trained
from optiml_jax.audit.index import Index
from optiml_jax.audit.pipeline import EvaluationTask, audit
from optiml_jax.audit.scan import read_scan, scan_file
from optiml_jax.audit.words import AuditWords
from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Audit, Run, configured
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.mixture import Mixture, benchmark_of
from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.paths import plain_path
from optiml_jax.report.audit_report import Example, Section, marked, write_report
from optiml_jax.report.tables import Table, render
from optiml_jax.words import counted
from tasks import mixtures
from tasks.audit import Judged, judge
from tasks.decisions import CHOICES, DEFAULT_DECISIONS, Decision
from tasks.registry import find_sources
from tasks.splits import Manifest

_MOST_SHOWN = 40  # rows of a table in the terminal


def main() -> int:
    run, settings, mixture = configured(Run), Audit(), configured(Mixture)
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    by_name, folder = {s.name: s for s in sources}, settings.folder_of(run)
    plain_path(folder, "Audit.folder")
    training = list(mixtures.select(sources, mixture, manifest))
    if settings.training == "all":
        training = [s for s in sources if "train" in s.splits]
    evaluation, empty = evaluation_tasks(sources, manifest, settings.roles)
    both = ((training, "training task"), (evaluation, "evaluation task"))
    print(f"{', '.join(counted(len(tasks), noun) for tasks, noun in both)}: {folder}")
    for name, why in empty:
        print(f"  not audited: {name}: {why}")
    summary = audit(
        training,
        evaluation,
        folder,
        AuditWords(),
        settings.num_workers or None,
        settings.runner,
        settings.beam_options,
    )
    write_trained(folder, [s.name for s in mixtures.select(sources, mixture, manifest)])
    flag_records(run, folder)
    counts = [o.status for o in summary.outcomes.values()]
    scanned = counted(counts.count("scanned"), "task")
    print(
        f"{scanned} scanned, {counts.count('unchanged')} unchanged; "
        f"{counted(summary.evaluation_examples, 'evaluation example')}"
    )
    judged = judge(pairs.read_pairs(folder), by_name, manifest, settings.threshold, mixture.roles)
    if settings.review:
        review(judged, manifest, folder, settings.reviewer)
        manifest = Manifest.load()
        overlaps = pairs.read_pairs(folder)
        judged = judge(overlaps, by_name, manifest, settings.threshold, mixture.roles)
    tables = [pair_table(judged, settings.threshold), benchmark_table(folder), task_table(folder)]
    head = head_lines(judged, folder, settings.threshold)
    paths = write_report(folder, head, tables, sections(judged, folder))
    print("\n".join(head))
    for table in tables[:2]:
        print(render(shortened(table), "terminal"))
    print("report: " + ", ".join(map(str, paths)))
    return 0


def flag_records(run: Run, folder: pathlib.Path) -> None:
    """Adds the overlaps to the records of evaluations made before the audit."""
    flags = read_flags(folder) or {}
    for place in sorted(p.parent for p in run.evaluation_dir.glob("*/tasks.json")):
        evaluation = RunFolder(place)
        for info in evaluation.load()[1]:
            for shots in info.shots:
                if info.task in flags and evaluation.status(info, shots)[0] == "done":
                    records, summary = evaluation.read(info.task, shots)
                    own = flags[info.task]
                    new = [
                        dataclasses.replace(r, overlap=(r.example_id, r.prompt_id) in own)
                        for r in records
                    ]
                    if new != records:
                        evaluation.write(info.task, shots, new, summary)


def evaluation_tasks(
    sources: Sequence[TaskSource], manifest: Manifest, roles: Sequence[str]
) -> tuple[list[EvaluationTask], list[tuple[str, str]]]:
    """The tasks of these roles with a test split, and those without, with the reason."""
    found, empty = [], []
    for source in sources:
        row = manifest.row(source)
        if {*roles}.isdisjoint(row.role) or not row.evaluated:
            continue
        if "test" not in source.splits:
            empty.append((source.name, "it has no test split"))
            continue
        read = functools.partial(source.read, "test", Drops())
        found.append(EvaluationTask(source, read, row.instances))
    if not found:
        raise UserError(f"nothing to audit against: no task has the role {' or '.join(roles)}")
    return found, empty


# --- the report -----------------------------------------------------------------------------------


def head_lines(judged: Sequence[Judged], folder: pathlib.Path, threshold: float) -> list[str]:
    rows = pairs.read_rows(folder, "eval_tasks")
    examples, overlap, short = (sum(r[n] for r in rows) for n in ("examples", "overlap", "short"))
    states = [j.state for j in judged]
    kinds = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states))) or "none"
    return [
        f"{overlap:,} of {examples:,} evaluation examples ({percent(overlap / examples)} %) share "
        f"an n-gram of content with training data; {short:,} are shorter than an n-gram and were "
        "compared as a whole.",
        f"Pairs of tasks above {percent(threshold)} %: {len(judged)} ({kinds}).",
    ]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def pair_table(judged: Sequence[Judged], threshold: float) -> Table:
    rows = tuple(
        (
            j.overlap.train_task,
            j.overlap.eval_task,
            j.decision.decision if j.decision else j.state,
            j.relation,
            f"{j.overlap.train_examples:,}",
            f"{j.overlap.eval_examples:,}",
            percent(j.overlap.share),
            percent(j.overlap.instantiated_share),
            f"{j.overlap.short:,}",
        )
        for j in judged
    )
    columns = ("training task", "evaluation task", "state", "data", "train", "eval")
    return Table(
        f"Pairs above {percent(threshold)} % of the evaluation examples",
        (*columns, "% content", "% whole sequence", "short"),
        rows,
        text_columns=4,
        notes=(
            "% content: examples that share an n-gram not from the prompt, or whose short "
            "content occurs as a whole; % whole sequence: the paper's measure, prompts included",
        ),
    )


def task_table(folder: pathlib.Path) -> Table:
    rows = tuple(
        (
            row["eval_task"],
            *(f"{row[n]:,}" for n in ("examples", "short", "instantiated", "overlap")),
            percent(row["overlap"] / row["examples"]) if row["examples"] else "",
            f"{row['train_tasks']:,}",
        )
        for row in pairs.read_rows(folder, "eval_tasks")
    )
    columns = ("evaluation task", "examples", "short", "whole sequence", "content", "%", "tasks")
    notes = ("tasks: training tasks with any overlap of content",)
    return Table("Evaluation tasks against all training tasks", columns, rows, notes=notes)


def benchmark_table(folder: pathlib.Path) -> Table:
    """Evaluation benchmarks by training benchmarks: examples that overlap, each counted once."""
    rows = pairs.read_rows(folder, "eval_tasks")
    found = collections.defaultdict(set)
    for row in pairs.read_rows(folder, "instances"):
        key = benchmark_of(row["eval_task"]), benchmark_of(row["train_task"])
        found[key].add((row["eval_task"], row["example_id"], row["prompt_id"]))
    training = sorted({benchmark_of(name) for name in pairs.scanned_tasks(folder)})
    lines = []
    for benchmark in sorted({benchmark_of(row["eval_task"]) for row in rows}):
        own = [row for row in rows if benchmark_of(row["eval_task"]) == benchmark]
        examples, overlap = (sum(row[n] for row in own) for n in ("examples", "overlap"))
        share = percent(overlap / examples) if examples else ""
        counts = (f"{n:,}" if (n := len(found[benchmark, t])) else "" for t in training)
        lines.append((benchmark, f"{len(own):,}", f"{examples:,}", f"{overlap:,}", share, *counts))
    columns = ("evaluation benchmark", "tasks", "examples", "overlap", "%")
    notes = ("further columns: how many of them overlap with the benchmark's training tasks",)
    return Table("By benchmark", (*columns, *training), tuple(lines), notes=notes)


def shortened(table: Table) -> Table:
    more = len(table.rows) - _MOST_SHOWN
    note = (f"{more} more in the report",) if more > 0 else ()
    rows = table.rows[:_MOST_SHOWN]
    return Table(table.title, table.columns, rows, table.text_columns, (*table.notes, *note))


def sections(judged: Sequence[Judged], folder: pathlib.Path) -> Iterator[Section]:
    """The pairs with examples."""
    index = Index(folder / "index")
    for j in judged:
        facts = [
            ("state", j.decision.decision if j.decision else j.state),
            ("data", j.relation),
            ("content", f"{percent(j.overlap.share)} %"),
            ("whole sequence", f"{percent(j.overlap.instantiated_share)} %"),
        ]
        if j.decision:
            facts.append(("reason", f"{j.decision.reason} ({j.decision.reviewer})"))
        title = f"{j.overlap.train_task} → {j.overlap.eval_task}"
        yield Section(title, tuple(facts), tuple(witnesses(j, folder, index)))


def witnesses(judged: Judged, folder: pathlib.Path, index: Index) -> Iterator[Example]:
    """The examples of a pair that the scan kept."""
    about = read_scan(scan_file(folder, judged.overlap.train_task))[1]
    first, count = index.tasks[judged.overlap.eval_task]
    own = [w for w in about["witnesses"] if first <= w["eval_example"] < first + count]
    for witness in own:
        row = example_row(index, witness["eval_example"])
        text = f"{row['input']}\n{row['target']}"
        yield Example(
            witness["train_example_id"],
            row["example_id"],
            marked(witness["train_text"], witness["ngram"], index.rules),
            marked(text, witness["ngram"], index.rules),
        )


def example_row(index: Index, number: int) -> dict[str, Any]:
    """One evaluation example of the index."""
    return {name: column[number].as_py() for name, column in columns_of(str(index.folder)).items()}


@functools.lru_cache(maxsize=1)
def columns_of(folder: str) -> dict[str, Any]:
    table = Index(folder).examples(["example_id", "input", "target"])
    return {name: table[name] for name in table.column_names}


# --- decisions ------------------------------------------------------------------------------------


def review(
    judged: Sequence[Judged], manifest: Manifest, folder: pathlib.Path, reviewer: str
) -> None:
    """Asks about every undecided pair and saves each answer at once."""
    undecided = [j for j in judged if j.state == "undecided"]
    if manifest.decisions.path == DEFAULT_DECISIONS and undecided:
        print(f"answers go to {DEFAULT_DECISIONS}; SplitConfig.decisions names a file of your own")
    decisions, index = manifest.decisions, Index(folder / "index")
    reviewer = reviewer or (ask("your name: ") if undecided else "")
    for i, j in enumerate(undecided, 1):
        print(f"\n[{i} of {len(undecided)}] {j.overlap.train_task} -> {j.overlap.eval_task}")
        print(
            f"  {percent(j.overlap.share)} % of {j.overlap.eval_examples:,} examples "
            f"({percent(j.overlap.instantiated_share)} % with prompts); data: {j.relation}"
        )
        for example in witnesses(j, folder, index):
            for side, parts in (("train", example.train), ("eval", example.eval)):
                before, span, after = (" ".join(part.split()) for part in parts)
                print(f"  {side}: {before} >>>{span}<<< {after}")
        answer = ask_choice()
        if answer is None:
            continue
        reason = ask("reason: ")
        row = Decision((j.overlap.train_task,), (j.overlap.eval_task,), answer, reason, reviewer)
        decisions = decisions.with_row(row)


def ask_choice() -> str | None:
    letters = {"t": "remove_train", "e": "remove_eval", "k": "keep", "s": None}
    assert {*letters.values()} == {*CHOICES, None}
    while True:
        answer = ask("remove [t]rain, remove [e]val, [k]eep, [s]kip: ").lower()[:1]
        if answer in letters:
            return letters[answer]


def ask(question: str) -> str:
    """A non-empty answer; the end of the input ends the review."""
    while True:
        try:
            answer = input(question).strip()
        except EOFError as e:
            raise UserError("the input ended; answers so far are saved") from e
        if answer:
            return answer


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
