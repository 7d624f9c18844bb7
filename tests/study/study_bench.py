"""Studies whose runs are made by a stand-in for the verbs: it writes what the verbs would write."""

import json
import pathlib

from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.files import write_sealed
from optiml_jax.study.runs import Plan, StudyRun, plan_study, write_runs
from optiml_jax.study.spec import Study
from optiml_jax.study.state import describe, run_state

SUMMARY = {
    "metric": "rougeL",
    "num_instances": 20,
    "best_constant": {"answer": "a", "score": 0.1},
    "effective_shots": {"mean": 0.0, "min": 0},
    "num_truncated": 0,
    "num_ties": 0,
    "num_unfinished": 0,
    "metrics": {},
}
LEVELS = ("fully_held_out", "fully_supervised")
# Stands in the place of `optiml`; calls are noted in the folder STATE.
VERBS = """
import os, pathlib, re, sys, time
from optiml_jax.files import write_sealed
verb, gin = sys.argv[1], pathlib.Path(sys.argv[2].removeprefix("--gin_file=")).resolve()
state, folder = pathlib.Path(os.environ["STATE"]), gin.parent
with (state / "calls").open("a") as calls:
    calls.write(f"{verb} {folder.name}\\n")
if verb == "prepare" and (state / "no_data").exists():
    print("error: no data")
    sys.exit(2)
if verb == "prepare":  # one writer for each cache
    (cache,) = re.findall(r"Run.cache_dir = '(.*)'", gin.read_text())
    writer = state / f"writer of {cache}"
    writer.mkdir()
    time.sleep(0.3)
    writer.rmdir()
if verb == "plan":
    (folder / "plan/train").mkdir(parents=True, exist_ok=True)
    (folder / "plan/train/plan.json").write_text("{}")
if verb == "train":
    print("INFO: step 2/4: loss 1", flush=True)
    if "Mixture.eps = 666" in gin.read_text():
        print("error: the loss is not finite")
        sys.exit(2)
    if (state / "preempted").exists():
        (state / "preempted").unlink()
        (folder / "checkpoints/2").mkdir(parents=True)
        sys.exit(75)
    while (state / "hold").exists():
        time.sleep(0.05)
    (folder / "checkpoints/4").mkdir(parents=True, exist_ok=True)
if verb == "evaluate":
    (name,) = re.findall(r"Evaluate.name = '(.*)'", gin.read_text())
    place = folder / "evaluation" / name.replace("{checkpoint}", "step_4")
    place.mkdir(parents=True, exist_ok=True)
    if (state / "no_rows").exists():
        from optiml_jax.evaluate.records import RunFolder, TaskInfo
        run = RunFolder(place)
        run.open({}, [TaskInfo("b/t", "b", "C", "fully_held_out", "em")])
        run.fail("b/t", 0, "no usable row")
        print("failed: step_4: b/t at 0 shots: no usable row")
        sys.exit(int((state / "no_rows").read_text()))
    write_sealed(place / "tasks.json", {"run": {}, "tasks": []})
"""


def resolve(files, lines) -> dict:
    """Lines "NAME = VALUE" alone, so that these tests need no gin files."""
    settings = {"Run.cache_dir": "cache", "TrainConfig.num_steps": 4, "Mixture.name": "x"}
    for line in lines:
        name, _, value = line.partition(" = ")
        settings[name] = json.loads(value)
    return settings


def study_of(folder: pathlib.Path, **more) -> Study:
    settings = {
        "name": "eps",
        "base": ("base.gin",),
        "variants": {"10": ("Mixture.eps = 10",), "20": (), "40": ("Mixture.eps = 40",)},
        "factor": "EPS",
        "folder": str(folder),
        "replicates": 200,
    }
    return Study(**(settings | more))


def planned(folder: pathlib.Path, chosen=None, **more) -> Plan:
    plan = plan_study(study_of(folder, **more), resolve, chosen)
    write_runs(plan)
    return plan


def states(plan: Plan) -> dict[str, str]:
    """Variant -> the state of its run in words."""
    return {
        variant: describe(run_state(run), run.num_steps) for (variant, _), run in plan.runs.items()
    }


def write_evaluation(folder: pathlib.Path, seed: int, scores: dict[str, float], order: int) -> None:
    """An evaluation with two tasks per level, each with the level's score.

    Args:
      order: runs of another order differ instance by instance, not in their means.
    """
    infos = [
        TaskInfo(f"b/{level}_{i}", "b", f"Category {i}", level, "rougeL", shots=(0, 2))
        for level in LEVELS
        for i in (1, 2)
    ]
    run = RunFolder(folder)
    run.open({"step": 4, "seed": seed, "checkpoint": str(folder)}, infos)
    for info in infos:
        for shots in info.shots:
            records = [
                Record(
                    *(f"e{i}", "p", f"{info.task}:{i}", ("a",), "a"),
                    scores[info.level] + (i * order % 20 - 9.5) / 50 + shots / 100,
                )
                for i in range(20)
            ]
            run.write(info.task, shots, records, SUMMARY)


def look_done(run: StudyRun) -> None:
    """Writes what a run with an empty evaluation leaves."""
    for folder in (run.folder / "plan/train", run.folder / f"checkpoints/{run.num_steps}"):
        folder.mkdir(parents=True)
    (run.folder / "plan/train/plan.json").write_text("{}")
    write_sealed(run.evaluation / "tasks.json", {"run": {}, "tasks": []})


def finish(plan: Plan, scores: dict[str, dict[str, float]]) -> None:
    """Makes all runs look done; each seed shifts the scores by a point."""
    orders = dict(zip(plan.study.variants, (1, 3, 7), strict=True))  # none divides 20
    for (variant, seed), run in plan.runs.items():
        (run.folder / "plan/train").mkdir(parents=True)
        (run.folder / "plan/train/plan.json").write_text("{}")
        (run.folder / "checkpoints/4").mkdir(parents=True)
        shifted = {level: score + seed / 100 for level, score in scores[variant].items()}
        write_evaluation(run.evaluation, seed, shifted, orders[variant])
