"""`optiml evaluate`: scores the evaluation tasks with one checkpoint; resumes itself."""

import fnmatch
import functools
import pathlib
import sys
from typing import Any

import jax

from optiml_jax.checkpoint.manager import find_checkpoint, load_metadata, load_params
from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Evaluate, Run, configured
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import (
    load_vocabulary,
    padded_size,
    vocabulary_fingerprint,
)
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, evaluate
from optiml_jax.evaluate.instances import subsample
from optiml_jax.evaluate.metrics import METRIC_FNS
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.model.config import OPTConfig, model_config
from optiml_jax.model.opt import abstract_model, init_params
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import abstract_params, param_shardings
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.metrics import SummaryWriter
from tasks.registry import find_sources, register
from tasks.splits import Manifest, Row, category

NUM_DEV = 250  # (example, prompt) pairs of a task that is for validation only; paper, section 4.1


def main() -> int:
    run, settings = configured(Run), Evaluate()
    manifest, vocabulary = Manifest.load(), load_vocabulary(run.vocabulary)
    sources = find_sources(run.data, manifest)
    tasks = [evaluation_task(s, manifest.row(s), settings, vocabulary) for s in sources]
    tasks = [t for t in tasks if t is not None and t.info.shots]
    if not tasks:
        raise UserError(
            f"nothing to evaluate: no task of {', '.join(run.data)} with the role "
            f"{' or '.join(settings.roles)} "
            f"matches Evaluate.tasks={settings.tasks} and Evaluate.shots={settings.shots}"
        )
    mesh_config = MeshConfig()
    mesh = make_mesh(mesh_config)
    name, model, graphdef, params, metadata = load_model(run, settings, mesh, mesh_config.preset)
    folder = run.evaluation_dir / settings.name.replace("{checkpoint}", name)
    num_cells = sum(len(t.info.shots) for t in tasks)
    print(f"checkpoint {name}: {len(tasks)} tasks, {num_cells} cells (task x shots): {folder}")
    failed = evaluate(
        tasks,
        graphdef,
        params,
        model,
        vocabulary,
        EvalConfig(),
        str(folder),
        prompts=PromptConfig(),
        metadata=metadata,
        mesh=mesh,
        preset=mesh_config.preset,
        run={"checkpoint": metadata.get("checkpoint", name)},
    )
    write_scalars(run)
    for task, shots, reason in failed:
        print(f"failed: {task} at {shots} shots: {reason}", file=sys.stderr)
    return 1 if failed else 0


def evaluation_task(
    source: TaskSource, row: Row, settings: Evaluate, vocabulary: Any
) -> EvalTask | None:
    """The task as the evaluator wants it, its metrics taken from SeqIO; None: not asked for."""
    asked = any(fnmatch.fnmatchcase(source.name, pattern) for pattern in settings.tasks)
    if not asked or {*settings.roles}.isdisjoint(row.role):
        return None
    tested = any(role.startswith("test") for role in row.role)
    info = TaskInfo(
        task=source.name,
        benchmark=source.benchmark,
        category=category(source),
        level=row.level,
        metric=row.metric,
        aggregate_as=row.aggregate_as,
        protocol=row.protocol,
        shots=tuple(k for k in settings.shots if k in row.shots),
        prompts="crossed" if tested else "pooled",
    )
    registered = register(
        source, vocabulary, PromptConfig(), metric_fns=METRIC_FNS[row.metric], shots=0
    )
    return EvalTask(
        info=info,
        examples=functools.partial(read_test_split, source, None if tested else NUM_DEV),
        demonstrations=source.demonstrations,
        metric_fns=registered.metric_fns,
        instruction_level=source.instruction_level,
    )


def read_test_split(source: TaskSource, limit: int | None) -> list:
    """The evaluated examples, `limit` of them at most, drawn by hash.

    An empty test part is a UserError, so the task counts as failed.
    """
    drops = Drops()
    examples = list(source.read("test", drops))
    if not examples:
        reasons = ", ".join(f"{n} {reason}" for reason, n in drops.items()) or "it is too small"
        raise UserError(f"task {source.name} has no test instances ({reasons})")
    return subsample(examples, limit, EvalConfig().seed)


def load_model(
    run: Run, settings: Evaluate, mesh: jax.sharding.Mesh, preset: str
) -> tuple[str, OPTConfig, Any, Any, dict[str, Any]]:
    """The checkpoint that `settings` names: (name, config, graphdef, params, metadata)."""
    if settings.checkpoint == "init":
        return "init", *untrained_model(run, mesh, preset)
    folder = pathlib.Path(run.run_dir) / "checkpoints"
    if settings.checkpoint != "latest":
        place = str(settings.checkpoint)
        folder = folder / place if place.isdigit() else pathlib.Path(place)
    step_folder = find_checkpoint(folder)
    metadata = {**load_metadata(step_folder), "checkpoint": str(step_folder)}
    model = OPTConfig.from_dict(metadata["model"])
    params = load_params(step_folder, abstract_params(model, mesh, preset))
    return f"step_{step_folder.name}", model, abstract_model(model)[0], params, metadata


def untrained_model(
    run: Run, mesh: jax.sharding.Mesh, preset: str
) -> tuple[OPTConfig, Any, Any, dict[str, Any]]:
    """The weights that `optiml train` of this run starts from, before its first step."""
    vocabulary = load_vocabulary(run.vocabulary)
    model = model_config(vocab_size=padded_size(vocabulary))
    train = configured(TrainConfig, plan_dir="", run_dir="")
    metadata = {"vocabulary": {"fingerprint": vocabulary_fingerprint(vocabulary)}, "step": 0}
    if train.init_from:
        step_folder = find_checkpoint(train.init_from)
        params = load_params(step_folder, abstract_params(model, mesh, preset))
        metadata = {**load_metadata(step_folder), "checkpoint": str(step_folder)}
        return model, abstract_model(model)[0], params, metadata
    shardings = param_shardings(abstract_model(model)[1], mesh, preset)
    graphdef, params = init_params(model, train.seed, shardings)
    return model, graphdef, params, metadata


def write_scalars(run: Run) -> None:
    """Every evaluation of the run as TensorBoard scalars by step; written anew each time."""
    evaluations = {}
    for tasks_file in run.evaluation_dir.glob("*/tasks.json"):
        tree = rollup(tasks_file.parent)
        evaluations[tree.run["step"] or 0, tasks_file.parent.name] = tree.scalars()
    folder = pathlib.Path(run.run_dir) / "tensorboard" / "evaluation"
    old = list(folder.glob("events.out.*"))
    writer = SummaryWriter(folder, first_step=0)
    for (step, _), scalars in sorted(evaluations.items()):
        writer.scalars(step, scalars)
    writer.close()
    for path in old:
        path.unlink()


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
