"""Which benchmarks there are, finding their tasks, and registering them with SeqIO.

A reader is a module with `find_tasks(root, manifest, benchmark)`; that of a collection is the
`reader.py` of its package. What a task is used for is in `splits.py`, which tasks make a mixture in
`mixtures.py`.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optiml_jax.data.example import TaskSource, check_unique_names, seqio_name
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from tasks.crossfit import reader as crossfit
from tasks.exmix import reader as exmix
from tasks.files.promises import check_folder
from tasks.flan import dialog_reader as flan_dialog
from tasks.flan import reader as flan
from tasks.flan.wrapped import Wrapper
from tasks.own import reader as own
from tasks.promptsource import reader as promptsource
from tasks.reasoning import reader as reasoning
from tasks.splits import Manifest
from tasks.suites import bbh, mgsm, mmlu, mmlu_cot, opt_suite, raft, tydiqa, word_problems
from tasks.superni import reader as superni
from tasks.t5 import reader as t5
from tasks.text import dialogue, pretraining
from tasks.unifiedskg import reader as unifiedskg

if TYPE_CHECKING:
    import seqio

# Packages offer collections of their own here: name -> a module with `find_tasks`, or the function.
ENTRY_POINTS = "optiml_jax.collections"
# Collection -> its reader.
COLLECTIONS = {
    "crossfit": crossfit,
    "dialogue": dialogue,
    "exmix": exmix,
    "flan": flan,
    "pretrain": pretraining,
    "promptsource": promptsource,
    "reasoning": reasoning,
    "superni": superni,
    "t5": t5,
    "unifiedskg": unifiedskg,
}
# Of other recipes than OPT-IML's; the demo bench does not have them.
OTHER_COLLECTIONS = {"flan_dialog": flan_dialog}
# Evaluation suites: no mixture trains on them.
SUITES = {
    "bbh": bbh,
    "bbh_cot": bbh,
    "bbh_cot_sc": bbh,
    "mgsm": mgsm,
    "mgsm_direct": mgsm,
    "mgsm_sc": mgsm,
    "mmlu": mmlu,
    "mmlu_cot": mmlu_cot,
    "mmlu_cot_sc": mmlu_cot,
    "mmlu_val": mmlu,
    "opt14": opt_suite,
    "raft": raft,
    "tydiqa_goldp": tydiqa,
    "word_problems": word_problems,
    "word_problems_sc": word_problems,
}
# The demo bench (tasks/demo) has every collection once more, with content of its own.
BENCHMARKS = COLLECTIONS | OTHER_COLLECTIONS | SUITES
BENCHMARKS |= {f"demo_{name}": reader for name, reader in COLLECTIONS.items()}


def find_sources(data: Mapping[str, str], manifest: Manifest) -> list[TaskSource]:
    """All tasks of the given benchmarks, whatever their role.

    Args:
      data: benchmark -> root folder of its files, or what `reader_of` takes.
      manifest: the split manifest.

    Raises:
      UserError: an unknown benchmark, a missing folder, a broken link in one, two tasks of one
        name, or no clone of FLAN for `FlanConfig.wrapped`.
    """
    if not data:
        raise UserError(f"no data given; name a folder for one of: {', '.join(BENCHMARKS)}")
    sources, wrapper = [], Wrapper(data)
    for benchmark, root in data.items():
        if not root:
            raise UserError(f"no folder given for the data of benchmark {benchmark!r}")
        find, folder = reader_of(benchmark, root)
        check_folder(folder)
        found = _made_of(find(folder, manifest, benchmark), find)
        sources += wrapper(found, benchmark)
    check_unique_names([s.name for s in sources])
    manifest.warn_of_unmatched_rows(sources)
    return [dataclasses.replace(s, metric=manifest.row(s).metric) for s in sources]


def _made_of(sources: list[TaskSource], find: Callable[..., list[TaskSource]]) -> list[TaskSource]:
    """The tasks of a reader, with the file of its code among theirs if it is the user's own.

    What is stored of them is then stale when the code changes; the project's readers have versions.
    """
    module = find.__module__ or ""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] == __package__:
        return sources
    return [dataclasses.replace(s, files=(*s.files, file)) for s in sources]


def reader_of(benchmark: str, place: str) -> tuple[Callable[..., list[TaskSource]], str]:
    """The `find_tasks` of a benchmark, and its folder.

    Args:
      benchmark: one of `BENCHMARKS`; or a name of the user's own.
      place: the folder; of a name of the user's own also "<module>:<folder>" or
        "<file.py>:<folder>", where the module has `find_tasks(root, manifest, benchmark)`, or a
        folder of task files (`tasks/own/reader.py`), or the folder for an entry point of that name
        in the group `ENTRY_POINTS`.

    Raises:
      UserError: none of these.
    """
    if benchmark in BENCHMARKS:
        return BENCHMARKS[benchmark].find_tasks, place
    if "/" in benchmark:
        raise UserError(f"benchmark {benchmark!r} in Run.data: a name has no slash")
    module, separator, folder = place.partition(":")
    if separator:
        return _find_tasks(_imported(module, benchmark), benchmark), folder
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=benchmark):
        loaded = _loaded(point.load, point.value, benchmark)
        return loaded if callable(loaded) else _find_tasks(loaded, benchmark), place
    if own.task_files(place):
        return own.find_tasks, place
    found = "" if os.path.isdir(place) else f", and folder not found: {place}"
    raise UserError(
        f"unknown benchmark {benchmark!r}{found}; known: {', '.join(BENCHMARKS)}. Your own is a "
        "folder of task files (*.yaml), '<module>:<folder>' or '<file.py>:<folder>' with a "
        f"function find_tasks, or an entry point of the group {ENTRY_POINTS}"
    )


def _imported(name: str, benchmark: str) -> types.ModuleType:
    """A module by its dotted name or its file; worker processes find it on the same path."""
    path = None
    if name.endswith(".py"):
        path = pathlib.Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"Run.data[{benchmark!r}]: reader not found: {path}")
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        name = path.stem
    elif os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = _loaded(functools.partial(importlib.import_module, name), path or name, benchmark)
    taken = getattr(module, "__file__", None) or f"Python's own module {name}"
    if path and pathlib.Path(taken).resolve() != path:
        raise UserError(
            f"Run.data[{benchmark!r}]: the reader {path} cannot be imported by its name {name}: "
            f"that is {taken} already; rename one of them"
        )
    return module


def _loaded(load: Callable[[], Any], reader: str | os.PathLike, benchmark: str) -> Any:
    """What `load` returns; a UserError names the line of a reader that cannot be imported."""
    try:
        return load()
    except Exception as e:  # the code is the user's
        why = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise UserError(
            f"Run.data[{benchmark!r}]: cannot import the reader {reader}: {why}{_line_of(e)}"
        ) from e


def _line_of(error: Exception) -> str:
    """Where an import failed, for a message: the line of the module that was imported."""
    if isinstance(error, SyntaxError):  # its text names the last part of the path and the line
        return f" (in {error.filename})" if error.filename else ""
    ours = (__file__, importlib.__file__, importlib.metadata.__file__)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in ours and not frame.filename.startswith("<frozen"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def _find_tasks(module: types.ModuleType, benchmark: str) -> Callable[..., list[TaskSource]]:
    if not callable(getattr(module, "find_tasks", None)):
        raise UserError(
            f"Run.data[{benchmark!r}]: {module.__name__} has no find_tasks; it must have "
            "find_tasks(root, manifest, benchmark)"
        )
    return module.find_tasks


def registered_name(task: str, shots: int | None = None) -> str:
    """The SeqIO name of a task, or of its evaluation with `shots` demonstrations."""
    return seqio_name(task) if shots is None else f"{seqio_name(task)}.{shots}shot"


def metric_functions(source: TaskSource) -> list[Callable]:
    """The SeqIO metric functions of a task; those that a registered task has."""
    metric = METRICS.get(source.metric)
    return [] if metric is None else [metric.fn]


def register(
    source: TaskSource,
    vocabulary: "TextVocabulary | seqio.Vocabulary",
    prompt_config: PromptConfig,
    sequence_length: int = 2048,
    metric_fns: Sequence[Callable] | None = None,
    shots: int | None = None,
) -> "seqio.Task":
    """Registers a task with SeqIO under `registered_name`, in the place of one of that name.

    Args:
      source: the task.
      vocabulary: of inputs and targets.
      prompt_config: how prompts are rendered.
      sequence_length: tokens of source and target together, `</s>` included.
      metric_fns: SeqIO metric functions; None: those of the source's metric.
      shots: None for the training task, whose cache `optiml prepare` writes; a number for an
        evaluation variant with so many demonstrations. Where candidates are ranked, the variant has
        a record for each candidate, and so has the split "test" of the training task.
    """
    import seqio  # here, since it brings TensorFlow: seconds, and most of a gigabyte

    from optiml_jax.data.preprocessors import seqio_task

    name = registered_name(source.name, shots)
    metric = METRICS.get(source.metric)
    ranked = metric is not None and metric.ranked and metric_fns is None
    if metric_fns is None:
        metric_fns = metric_functions(source)
    seqio.TaskRegistry.remove(name)
    task = seqio_task(
        name,
        source,
        vocabulary,
        prompt_config,
        sequence_length,
        metric_fns,
        shots,
        by_candidate=ranked,
    )
    seqio.TaskRegistry.add_provider(name, task)
    return task
