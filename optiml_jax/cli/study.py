"""`optiml study`: runs or continues a study, and reports its results."""

import collections
import logging
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

import gin

from optiml_jax.cli import main as command_line
from optiml_jax.cli.gin_files import read_settings, without_macros
from optiml_jax.cli.printed import FIGURES, PUBLISHED, printed_results
from optiml_jax.cli.report import revision
from optiml_jax.cli.settings import Chain, Launch, Study, configured
from optiml_jax.errors import UserError, status_of
from optiml_jax.one_writer import one_writer
from optiml_jax.report.tables import Table, render
from optiml_jax.study.choice import CHOICE
from optiml_jax.study.local import Failure, make_runs, printed
from optiml_jax.study.queue import Queue, state_in
from optiml_jax.study.report import write_report
from optiml_jax.study.results import unknown_rows
from optiml_jax.study.runs import Plan, Settings, plan_study, write_runs
from optiml_jax.study.slurm import submit
from optiml_jax.study.state import OTHER_DATA, RunState, describe, run_state, seconds_left
from optiml_jax.words import counted
from tasks.splits import Manifest

_log = logging.getLogger(__name__)


def main() -> int:
    launch, studies = Launch(), read_studies()
    if launch.status:
        show_status(studies, launch)
        return 0
    failures: dict[str, Failure] = {}
    names = [study.name for study, _ in studies]
    if launch.after is not None and launch.after not in names:
        raise UserError(f"Launch.after = {launch.after!r} is not one of {', '.join(names)}")
    ended = names[: names.index(launch.after) + 1] if launch.after else []
    incomplete: set[str] = set()  # studies that the same command may complete
    for study, takes in studies:
        if waits := [name for name in takes if name in incomplete]:
            why = f"waits for runs of {', '.join(waits)}, whose choice they may change"
            failures[study.name] = Failure(f"{why}; the same command continues", may_pass=True)
            incomplete.add(study.name)
            continue
        missing = missing_choices(study, takes)
        if missing:
            raise UserError(f"study {study.name!r} waits for the choice of {', '.join(missing)}")
        plan = plan_of(study, takes)
        if launch.report or study.name in ended:
            report(plan)
            if study.name == launch.after and continued_later(plan):
                return 0
            continue
        write_runs(plan)
        failures |= outdated(plan)
        if launch.launcher == "slurm":
            if submitted(plan, launch):
                break
            report(plan)
        elif launch.launcher == "print":
            print("\n".join(printed([plan], left_to_slurm(plan, Queue(study.folder)))))
        else:
            failed = made_here(plan, launch)
            failures |= failed
            if any(failure.may_pass for failure in failed.values()):
                incomplete.add(study.name)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure.reason}", file=sys.stderr)
    return status_of(failure.may_pass for failure in failures.values())


def outdated(plan: Plan) -> dict[str, Failure]:
    """The runs that were made from other data than there is now, as failures: they are not done."""
    found = {}
    for (variant, seed), run in plan.runs.items():
        state = run_state(run)
        if state.status == OTHER_DATA:
            mend = f"restore the data, or remove {run.folder} to make the run from what is there"
            why = f"{OTHER_DATA}: {state.reason}; {mend}"
            found[f"{plan.study.name}: {variant}, seed {seed}"] = Failure(why, may_pass=False)
    return found


def made_here(plan: Plan, launch: Launch) -> dict[str, Failure]:
    """Executes the runs on this machine and writes the report; returns the failures."""
    queues = {plan.study.folder: Queue(plan.study.folder)}

    def say(more: str = "") -> None:
        print(f"{summary([plan], launch, queues)}{more}", flush=True)

    with one_writer(plan.folder, "optiml study"):
        begun = time.monotonic()
        print(f"{plan.study.name}: {plan.study.title}", flush=True)
        left = left_to_slurm(plan, queues[plan.study.folder])
        failed = make_runs(plan, launch.at_once or 1, launch.threads, done=say, elsewhere=left)
        say(f"; {(time.monotonic() - begun) / 60:.1f} min now")
        report(plan)
    return failed


def submitted(plan: Plan, launch: Launch) -> bool:
    """Submits what is neither done nor queued; whether anything is left to wait for."""
    arguments = [a for a in sys.argv[1:] if a != "study" and "Launch.after=" not in a]
    with one_writer(plan.study.folder, "optiml study"):
        done = submit(plan, launch, arguments)
    name, waiting = plan.study.name, collections.Counter(s.status for s in done.waiting)
    if waiting:
        said = " and ".join(f"{n} {status}" for status, n in sorted(waiting.items()))
        print(f"{name}: {said} already, which are left as they are (--status lists them)")
    if done.commands:
        jobs, runs = counted(len(done.commands), "job"), counted(done.runs, "run")
        said = f"{jobs} submitted for {runs}"
        print(f"{name}: {said}; the last one writes the report and continues")
    elif waiting:
        print(f"{name}: nothing to submit")
    return bool(done.commands or waiting)


def continued_later(plan: Plan) -> bool:
    """Whether runs of the study were submitted after this job, and so was another last job."""
    if queued := queued_runs(plan, Queue(plan.study.folder)):
        print(f"{plan.study.name}: {listed(queued)} came later; a job after that continues")
    return bool(queued)


def left_to_slurm(plan: Plan, queue: Queue) -> dict[pathlib.Path, str]:
    """`queued_runs`, and says so."""
    if queue.problem:
        _log.warning("whether runs are in SLURM's queue is unknown: %s", queue.problem)
    if queued := queued_runs(plan, queue):
        print(f"# {plan.study.name}: left to SLURM: {listed(queued)}", flush=True)
    return queued


def queued_runs(plan: Plan, queue: Queue) -> dict[pathlib.Path, str]:
    """The runs that a job of SLURM is there for: evaluation -> id of the job."""
    states = {run.evaluation: state_in(queue, plan, run) for run in plan.runs.values()}
    return {place: state.job.split()[0] for place, state in states.items() if state.job}


def listed(queued: Mapping[pathlib.Path, str]) -> str:
    """Their number, and the ids of the jobs."""
    jobs = "jobs" if len(queued) > 1 else "job"
    return f"{counted(len(queued), 'run')} ({jobs} {', '.join(queued.values())})"


def read_studies() -> list[tuple[Study, tuple[str, ...]]]:
    """The studies that gin names, each with the studies whose choice it takes."""
    chain = Chain()
    if not chain.studies:
        return [(configured(Study), ())]
    given = dict(gin.get_bindings("Study", resolve_references=False, inherit_scopes=False))
    studies = []
    for file in chain.studies:
        gin.clear_config()
        read_settings([file], [])
        study = configured(Study, **given)
        studies.append((study, tuple(chain.takes.get(study.name, ()))))
    gin.clear_config()
    names = [study.name for study, _ in studies]
    for i, (study, takes) in enumerate(studies):
        if late := [name for name in takes if name not in names[:i]]:
            raise UserError(
                f"Chain.takes: study {study.name!r} takes the choice of {late[0]!r}, which is not "
                f"listed before it; the order is {', '.join(names)}"
            )
    if unknown := [name for name in chain.takes if name not in names]:
        raise UserError(f"Chain.takes names {unknown[0]!r}; the studies are {', '.join(names)}")
    return studies


def resolve(files: Sequence[str], lines: Sequence[str]) -> Settings:
    """The settings of gin files and lines, without macros; gin itself is left unchanged."""
    gin.clear_config()
    try:
        return without_macros(read_settings(files, lines))
    finally:
        gin.clear_config()


def plan_of(study: Study, takes: Sequence[str]) -> Plan:
    """The runs of a study, starting from the choices of earlier ones."""
    files = [str(choice_file(study, name)) for name in takes]
    return plan_study(study, resolve, resolve(files, []) if files else {})


def choice_file(study: Study, other: str) -> pathlib.Path:
    return pathlib.Path(study.folder) / other / CHOICE


def missing_choices(study: Study, takes: Sequence[str]) -> list[str]:
    return [name for name in takes if not choice_file(study, name).exists()]


def show_status(studies: Sequence[tuple[Study, tuple[str, ...]]], launch: Launch) -> None:
    """Prints the progress of every run, and the time left."""
    plans, rows, waiting = [], [], []
    queues = {folder: Queue(folder) for folder in {study.folder for study, _ in studies}}
    for study, takes in studies:
        if missing := missing_choices(study, takes):
            waiting.append(f"{study.name} waits for the choice of {', '.join(missing)}")
            continue
        plans.append(plan_of(study, takes))
        for (variant, seed), run in plans[-1].runs.items():
            state = describe(state_in(queues[study.folder], plans[-1], run), run.num_steps)
            rows.append((study.name, variant, str(seed), state, str(run.folder)))
    waiting += [
        f"{q.problem}: jobs in {q.file} are not shown" for q in queues.values() if q.problem
    ]
    columns = ("study", "variant", "seed", "state", "folder")
    print(render(Table("Runs", columns, tuple(rows), 5, tuple(waiting)), "terminal"))
    print(summary(plans, launch, queues))


def summary(plans: Sequence[Plan], launch: Launch, queues: Mapping[str, Queue]) -> str:
    """The number of finished runs, and the time left; a run shared by studies counts once.

    Args:
      queues: by `Study.folder`.
    """
    pairs = [(plan, run) for plan in plans for run in plan.runs.values()]
    runs = {run.evaluation: run for _, run in pairs}
    states = {r.evaluation: state_in(queues[plan.study.folder], plan, r) for plan, r in pairs}
    counts = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    return f"{counted(len(runs), 'run')}: {said}{time_left(runs, states, launch)}"


def time_left(runs: dict, states: dict[pathlib.Path, RunState], launch: Launch) -> str:
    pairs = [(run, states[place]) for place, run in runs.items()]
    if all(not state.stage or state.status == "failed" for _, state in pairs):
        return ""
    seconds = seconds_left(pairs, launch.at_once or 1)
    if seconds is None:
        return "; time left unknown"
    return f"; about {seconds / 60:.0f} min left" if seconds < 5400 else f"; {seconds / 3600:.1f} h"


def report(plan: Plan) -> None:
    """Writes the study's report and choice from the evaluations, and prints the main tables."""
    folder, printed = plan.folder / "report", printed_results([PUBLISHED, FIGURES], Manifest.load())
    if unknown := unknown_rows(plan.study, printed):
        raise UserError(
            f"study {plan.study.name!r}: {unknown[0]!r} is not a row of the published results "
            f"{plan.study.published!r}; name it in Study.rows, or in Study.unpublished"
        )
    if (written := write_report(plan, printed, revision())) is None:
        print(f"{plan.study.name}: nothing is evaluated yet, so there is no report")
        return
    made, choice = written
    for table in made:
        print(render(table, "terminal"))
    print(choice.sentence)
    print(f"written: {folder}/report.html (interactive), .md and .tex (all tables),")
    print(
        "levels and categories .svg, .pdf and .png (figures), figures.csv and .json (their data);"
    )
    print(f"{plan.folder / CHOICE} (for the next study)")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
