"""`optiml evaluate`: scores the evaluation tasks with one checkpoint or many; resumes itself."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from optiml_jax.cli import main as command_line
from optiml_jax.cli.checkpoints import (
    Model,
    cast_params,
    checkpoints_dir,
    find_places,
    load_model,
    params_dtype,
)
from optiml_jax.cli.evaluation_tasks import evaluation_tasks, request_tokens, warn_of_trained
from optiml_jax.cli.settings import Evaluate, Export, Run, configured, expand
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError, may_pass, status_of
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import Failure, evaluate, evaluate_with
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.exchange.answer_files import model_name, read_answers
from optiml_jax.exchange.answers import StoredAnswers
from optiml_jax.files import write_json
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.lora import merge_params
from optiml_jax.one_writer import one_writer
from optiml_jax.paths import path_of
from optiml_jax.sharding import processes
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.train.duties import EvaluationHook
from optiml_jax.train.metrics import SummaryWriter
from optiml_jax.words import counted

_log = logging.getLogger(__name__)
Said = tuple[str, bool]  # a failure in words, and whether a retry may help


def main() -> int:
    run, settings = configured(Run), Evaluate()
    if settings.answers:
        return report_failures(of_answers(run, settings))
    if run.distributed:
        processes.join()
    with processes.ending_together():
        return _evaluate(run, settings)


def _evaluate(run: Run, settings: Evaluate) -> int:
    evaluation = Evaluation(run, settings)
    places = processes.on_first(lambda: find_places(run, settings))
    if len(places) > 1:
        check_name(settings)
    failures = []
    for place in places:
        try:
            failures += evaluation.of_checkpoint(place)
        except Exception as e:
            # Concurrent training removes old checkpoints (TrainConfig.keep).
            gone = "/" in place and not path_of(place).exists()
            if not (gone or isinstance(e, UserError)) or (len(places) == 1 and not gone):
                raise
            why = "it was deleted while being read" if gone else e
            if len(places) == 1:
                raise UserError(f"checkpoint {place}: {why}; choose another one") from e
            failures.append((f"checkpoint {place}: {why}", bool(gone) or may_pass(e)))
            _log.warning("%s", failures[-1][0])
    processes.on_first(lambda: write_scalars(run))
    return report_failures(failures)


def report_failures(failures: Sequence[Said]) -> int:
    """Prints the failures; returns the exit status."""
    for failure, _ in failures if processes.is_first() else ():
        print(f"failed: {failure}", file=sys.stderr)
    return status_of(passing for _, passing in failures)


def in_words(name: str, failures: Sequence[Failure]) -> list[Said]:
    """The failures of a checkpoint, or of the answers of a model."""
    return [(f"{name}: {f.task} at {f.shots} shots: {f.reason}", f.may_pass) for f in failures]


def of_answers(run: Run, settings: Evaluate) -> list[Said]:
    """Evaluates answers of other models; returns the failures.

    No model runs, so all tasks are evaluated again at each call.
    """
    vocabulary, config = load_run_vocabulary(run), EvalConfig()
    files = read_answers([expand(place, "Evaluate.answers") for place in settings.answers])
    answers = StoredAnswers(files, request_tokens(vocabulary, Export()), settings.missing_answers)
    tasks = evaluation_tasks(run, settings)
    name = settings.name.replace("{checkpoint}", settings.model or model_name(files))
    folder = RunFolder(run.evaluation_dir / name)
    with one_writer(folder.path, "optiml evaluate"):
        for task in tasks:
            for shots in task.info.shots:
                folder.forget(task.info.task, shots)
        found = counted(len(tasks), "task")
        print(f"{counted(len(files.answers), 'answer')} of {name}, {found}: {folder.path}")
        identity = {"checkpoint": name, "answers": files.sha256, "step": None}
        failed = evaluate_with(
            answers, tasks, config, str(folder.path), prompts=PromptConfig(), run=identity
        )
        summary = answers.summary()
        write_json(folder.path / "answers.json", summary)
    for line in answers.remarks():
        _log.warning("%s", line)
    return in_words(name, failed)


def check_name(settings: Evaluate) -> None:
    """UserError when several checkpoints would share a folder."""
    if "{checkpoint}" not in settings.name:
        raise UserError(
            f"Evaluate.name = {settings.name!r} names one folder for several checkpoints; "
            "include {checkpoint} in it"
        )


class Evaluation:
    """The evaluation tasks of a run, for one model after another.

    Raises:
      UserError: no task matches the settings.
    """

    def __init__(self, run: Run, settings: Evaluate):
        self._run, self._settings, self._config = run, settings, EvalConfig()
        self._vocabulary = load_run_vocabulary(run, find_places(run, settings))
        self._tasks = evaluation_tasks(run, settings)
        self._mesh_config = MeshConfig()
        self._mesh = make_mesh(self._mesh_config)

    def of_checkpoint(self, place: str) -> list[Said]:
        """Evaluates one of `find_places`; returns the failures."""
        mesh, preset = self._mesh, self._mesh_config.preset
        return self.of_model(load_model(self._run, self._settings, place, mesh, preset))

    def of_model(self, model: Model) -> list[Said]:
        """Evaluates a model on the tasks that its folder lacks."""
        name, num_tasks = model.name, len(self._tasks)
        warn_of_trained(self._tasks, model.metadata.get("trained_tasks", ()))
        folder = self._run.evaluation_dir / self._settings.name.replace("{checkpoint}", name)
        num_cells = sum(len(t.info.shots) for t in self._tasks)
        if processes.is_first():
            weights = jax.tree.leaves(model.params)[0].dtype.name
            print(
                f"checkpoint {name}: {counted(num_tasks, 'task')}, {counted(num_cells, 'cell')} "
                f"(task x shots), weights {weights}, computed in {model.config.dtype}: {folder}"
            )
        with held_for_all(folder):
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
        return in_words(name, failed)


@contextlib.contextmanager
def held_for_all(folder: pathlib.Path) -> Iterator[None]:
    """Process 0 holds the folder while the block runs. Called by all.

    Raises:
      UserError: it cannot; raised on all processes, which may then go on together.
    """
    with contextlib.ExitStack() as claim:
        processes.on_first(lambda: claim.enter_context(one_writer(folder, "optiml evaluate")))
        yield


def evaluation_hook(config: DecoderConfig, metadata: Mapping[str, Any]) -> EvaluationHook:
    """The hook with which `optiml train` evaluates as `optiml evaluate` would.

    Args:
      config: of the model.
      metadata: of the run's checkpoints, without the step.
    """
    run, settings = configured(Run), Evaluate()
    check_name(settings)
    evaluation = Evaluation(run, settings)

    plain = config.as_evaluated()

    def hook(step: int, graphdef: Any, params: Any) -> None:
        if plain != config:  # as `optiml evaluate` loads them
            graphdef = abstract_model(plain)[0]
        if config.lora_rank:
            params = merge_params(params, config.lora_scale)
        own = {**metadata, "step": step, "checkpoint": str(checkpoints_dir(run) / str(step))}
        params = cast_params(params, params_dtype(settings, config))
        try:
            evaluation.of_model(Model(f"step_{step}", plain, graphdef, params, own))
            processes.on_first(lambda: write_scalars(run, since=step))
        except UserError as e:
            _log.warning("evaluation after step %d failed, training continues: %s", step, e)

    return hook


def write_scalars(run: Run, since: int = 0) -> None:
    """The evaluations of step `since` and later as TensorBoard scalars, replacing older ones."""
    runs = {
        p.parent: RunFolder(p.parent).load()[0] for p in run.evaluation_dir.glob("*/tasks.json")
    }
    # Answers of other models belong to no step of this run.
    steps = {path: own["step"] or 0 for path, own in runs.items() if "answers" not in own}
    folder = path_of(run.run_dir) / "tensorboard" / "evaluation"
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
