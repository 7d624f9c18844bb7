"""`optiml evaluate`: scores the evaluation tasks with one checkpoint or many; resumes itself."""

import fnmatch
import functools
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from optiml_jax.cli import main as command_line
from optiml_jax.cli.checkpoints import Model, checkpoints_dir, find_places, load_model
from optiml_jax.cli.settings import Evaluate, Run, configured
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, evaluate
from optiml_jax.evaluate.instances import subsample
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.train.duties import EvaluationHook
from optiml_jax.train.metrics import SummaryWriter
from tasks.registry import find_sources, register
from tasks.splits import Manifest, Row, category

_log = logging.getLogger(__name__)
NUM_DEV = 250  # (example, prompt) pairs of a task that is for validation only; paper, section 4.1


def main() -> int:
    run, settings = configured(Run), Evaluate()
    evaluation = Evaluation(run, settings)
    places = find_places(run, settings)
    if len(places) > 1:
        check_name(settings)
    failures = []
    for place in places:
        try:
            failures += evaluation.of_checkpoint(place)
        except UserError as e:
            if len(places) == 1:
                raise
            failures.append(f"checkpoint {place}: {e}")
            _log.warning("%s", failures[-1])
    write_scalars(run)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def check_name(settings: Evaluate) -> None:
    """UserError when several checkpoints would share a folder."""
    if "{checkpoint}" not in settings.name:
        raise UserError(
            f"Evaluate.name = {settings.name!r} is one folder for several checkpoints; "
            "put {checkpoint} into it"
        )


class Evaluation:
    """The evaluation tasks of a run, for one model after the other.

    Raises:
      UserError: no task matches the settings.
    """

    def __init__(self, run: Run, settings: Evaluate):
        self._run, self._settings, self._config = run, settings, EvalConfig()
        manifest, self._vocabulary = Manifest.load(), load_vocabulary(run.vocabulary)
        sources = find_sources(run.data, manifest)
        tasks = [evaluation_task(s, manifest.row(s), settings, self._vocabulary) for s in sources]
        self._tasks = [t for t in tasks if t is not None and t.info.shots]
        if not self._tasks:
            raise UserError(
                f"nothing to evaluate: no task of {', '.join(run.data)} with the role "
                f"{' or '.join(settings.roles)} "
                f"matches Evaluate.tasks={settings.tasks} and Evaluate.shots={settings.shots}"
            )
        self._mesh_config = MeshConfig()
        self._mesh = make_mesh(self._mesh_config)

    def of_checkpoint(self, place: str) -> list[str]:
        """Evaluates one of `find_places`; returns what failed, in words."""
        return self.of_model(load_model(self._run, place, self._mesh, self._mesh_config.preset))

    def of_model(self, model: Model) -> list[str]:
        """Evaluates a model, or what its folder does not hold yet."""
        name, num_tasks = model.name, len(self._tasks)
        folder = self._run.evaluation_dir / self._settings.name.replace("{checkpoint}", name)
        num_cells = sum(len(t.info.shots) for t in self._tasks)
        print(f"checkpoint {name}: {num_tasks} tasks, {num_cells} cells (task x shots): {folder}")
        failed = evaluate(
            self._tasks,
            model.graphdef,
            model.params,
            model.config,
            self._vocabulary,
            self._config,
            str(folder),
            prompts=PromptConfig(),
            metadata=model.metadata,
            mesh=self._mesh,
            preset=self._mesh_config.preset,
            run={"checkpoint": model.metadata.get("checkpoint", name)},
        )
        return [f"{name}: {task} at {shots} shots: {why}" for task, shots, why in failed]


def evaluation_hook(config: DecoderConfig, metadata: Mapping[str, Any]) -> EvaluationHook:
    """What `optiml train` calls to evaluate its parameters as `optiml evaluate` would.

    Args:
      config: of the model.
      metadata: of the run's checkpoints, without their step.
    """
    run, settings = configured(Run), Evaluate()
    check_name(settings)
    evaluation = Evaluation(run, settings)

    def hook(step: int, graphdef: Any, params: Any) -> None:
        own = {**metadata, "step": step, "checkpoint": str(checkpoints_dir(run) / str(step))}
        try:
            evaluation.of_model(Model(f"step_{step}", config, graphdef, params, own))
            write_scalars(run, since=step)
        except UserError as e:
            _log.warning("evaluation after step %d failed, training goes on: %s", step, e)

    return hook


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
        source, vocabulary, PromptConfig(), metric_fns=[METRICS[row.metric].fn], shots=0
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


def write_scalars(run: Run, since: int = 0) -> None:
    """The evaluations of step `since` and later as TensorBoard scalars, in place of older ones."""
    steps = {
        p.parent: RunFolder(p.parent).load()[0]["step"] or 0
        for p in run.evaluation_dir.glob("*/tasks.json")
    }
    folder = pathlib.Path(run.run_dir) / "tensorboard" / "evaluation"
    old = list(folder.glob("events.out.*"))
    writer = SummaryWriter(folder, first_step=since)
    for path, step in sorted(steps.items(), key=lambda item: (item[1], item[0].name)):
        if step >= since:
            suite = path.name.partition(f"step_{step}_")[2]  # two of one step must not mix
            scalars = rollup(path).scalars()
            writer.scalars(step, {f"{suite}/{k}" if suite else k: v for k, v in scalars.items()})
    writer.close()
    for path in old if since == 0 else ():
        path.unlink()


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
