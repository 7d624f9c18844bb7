"""The verbs' own settings; other modules define theirs.

One gin file serves every verb: each verb reads the settings it needs and ignores the others. The
library's own configurables (Mixture, PromptConfig, PlanConfig, model_config, MeshConfig,
OptimizerConfig, TrainConfig, EvalConfig) are imported here, so that a misspelt name is an error for
every verb.
"""

# ruff: noqa: F401 - importing a module makes its settings known to gin

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Literal

import gin

import optiml_jax.audit.words
import optiml_jax.data.mixture
import optiml_jax.data.plan
import optiml_jax.data.prompts
import optiml_jax.evaluate.config
import optiml_jax.model.architectures
import optiml_jax.sharding.mesh
import optiml_jax.train.config
import optiml_jax.train.optimizer
import tasks.flan.templates
import tasks.promptsource.templates
import tasks.splits
import tasks.templates.chat
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.protocol import RULE_NAMES
from optiml_jax.paths import path_of, plain_path
from optiml_jax.settings import (
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveProbability,
    Seed,
    Share,
    configurable,
)
from optiml_jax.study.spec import Chain, Launch, Study


@configurable
@dataclasses.dataclass(frozen=True)
class Run:
    """Paths. They may contain environment variables: "$OPTIML_DATA/natural-instructions".

    Attributes:
      data: benchmark -> folder of the user's own copy of it.
      vocabulary: `opt:<folder or Hub name>` or `sentencepiece:<model file>`.
      cache_dir: prepared tasks; shared by all runs with the same vocabulary and prompts.
      run_dir: everything of this run: plan/, checkpoints/, tensorboard/, evaluation/, report/.
      distributed: training and evaluation join the job's other processes (SLURM, Open MPI, a TPU
        pod, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).
    """

    data: dict[str, str]
    vocabulary: str
    cache_dir: str
    run_dir: str
    distributed: bool = False

    def __post_init__(self):
        expanded = {k: expand(v, f"Run.data[{k!r}]") for k, v in self.data.items()}
        for collection, folder in expanded.items():
            plain_path(folder, f"Run.data[{collection!r}]")
        object.__setattr__(self, "data", expanded)
        for name in ("vocabulary", "cache_dir", "run_dir"):
            object.__setattr__(self, name, expand(getattr(self, name), f"Run.{name}"))

    def plan_dir(self, split: str) -> pathlib.Path:
        """The folder of the plan of `split`: "train" or "validation"."""
        return path_of(self.run_dir) / "plan" / split

    @property
    def evaluation_dir(self) -> pathlib.Path:
        """The folder that holds one folder per evaluated checkpoint."""
        return path_of(self.run_dir) / "evaluation"


@configurable
@dataclasses.dataclass(frozen=True)
class Prepare:
    """Attributes:
    num_workers: processes; 0 means one per core.
    runner: None for the process pool, else an Apache Beam runner, e.g. "DirectRunner".
    beam_options: Beam pipeline options, e.g. ("--project=...",).
    part: (i, n): this run caches the i-th of n parts of the tasks, counted from 0; the others may
      be cached at the same time by other machines that share the cache folder.
    verify: verifies what is cached already, and redoes what has changed on disk.
    """

    num_workers: NotNegative = 0
    runner: str | None = None
    beam_options: tuple[str, ...] = ()
    part: tuple[NotNegative, Positive] = (0, 1)
    verify: bool = True

    def __post_init__(self):
        index, number = self.part
        if index >= number:
            raise UserError(f"Prepare.part = {self.part}: parts are 0 ... {number - 1} of {number}")


@configurable
@dataclasses.dataclass(frozen=True)
class Audit:
    """Attributes:
    training: "mixture" scans the mixture's training tasks; "all" every task with a training split,
      including those left out, to check what the manifest keeps apart.
    roles: of the evaluation tasks.
    threshold: a pair of tasks with a larger share of overlapping evaluation examples needs a
      decision (paper, section 2.3: 1 %).
    paper_mode: `plan`, `train`, `evaluate` and `export` refuse to run while a pair is undecided or
      a task was not audited.
    allow_undecided: they print the undecided pairs and continue.
    review: asks about the undecided pairs in the terminal.
    reviewer: name of the person who decides.
    folder: None means <run_dir>/audit.
    num_workers: processes; 0 means one per core.
    runner: None for the process pool, else an Apache Beam runner, e.g. "DirectRunner".
    beam_options: Beam pipeline options.
    """

    training: Literal["mixture", "all"] = "mixture"
    roles: tuple[str, ...] = ("dev", "test", "test_max", "test_extra")
    threshold: Share = 0.01
    paper_mode: bool = False
    allow_undecided: bool = False
    review: bool = False
    reviewer: str = ""
    folder: str | None = None
    num_workers: NotNegative = 0
    runner: str | None = None
    beam_options: tuple[str, ...] = ()

    def __post_init__(self):
        tasks.splits.check_roles(self.roles, "Audit.roles")

    def folder_of(self, run: Run) -> pathlib.Path:
        """The folder of the run's audit."""
        return path_of(self.folder or path_of(run.run_dir) / "audit")


@configurable
@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Attributes:
    checkpoint: "latest", "init" (the untrained model with the same seed), a step, a folder, "all"
      (those that the run keeps), a glob over steps ("*000") or folders, or several of these.
    during_training: updates after which `optiml train` evaluates in its own process, with the same
      results; a number N: every N-th and the last; 0: never.
    params_dtype: of the weights, "float32" or "bfloat16"; None: bfloat16 if that is
      `model_config.dtype` (the checkpoint's if gin sets none), else float32.
    name: folder name under <run_dir>/evaluation; "{checkpoint}" stands for the step, or "init".
    tasks: globs over task names.
    roles: an evaluated task has one of these in the split manifest: "test" and "dev" are the
      paper's sets, "test_max" is for OPT-IML-Max too, "test_extra" is not in the paper.
    shots: numbers of demonstrations; those that the manifest also lists for a task are run.
    answers: files, folders or globs with answers of other models, by request id, in a format of
      docs/exchange.md; they are evaluated instead of a checkpoint.
    missing_answers: "fail": a task that lacks answers is not evaluated; "wrong": empty answers.
    model: that gave the answers; None: the name of their folder or file.
    """

    checkpoint: str | int | Sequence[str | int] = "latest"
    during_training: int | Sequence[Positive] = 0
    params_dtype: Literal["float32", "bfloat16"] | None = None
    name: str = "{checkpoint}"
    tasks: tuple[str, ...] = ("*",)
    roles: tuple[str, ...] = ("test",)
    shots: tuple[NotNegative, ...] = (0, 2)
    answers: tuple[str, ...] = ()
    missing_answers: Literal["fail", "wrong"] = "fail"
    model: str | None = None

    def __post_init__(self):
        tasks.splits.check_roles(self.roles, "Evaluate.roles")


@configurable
@dataclasses.dataclass(frozen=True)
class Export:
    """Attributes:
    what: "requests" of an evaluation (`Evaluate` selects tasks and shots), or "training" data of
      the mixture.
    form: for requests "jsonl", "openai" (batch files) or "lm_eval" (tasks for `--include_path`);
      for training data "jsonl" or "parquet".
    output: the folder to write, new or empty; None means <run_dir>/export/<what>_<form>.
    max_tokens: maximum length of prompt and answer; None: the positions of the run's model; 0:
      prompts are not truncated, which is left to another tokenizer.
    model: the model's name in the requests of "openai".
    rows: format of training data: "prompt_completion" or "chat" (user and assistant messages).
    order: of training data: "plan", as the run trains on it, or "task", every example once.
    split: of training data.
    shard_rows: rows per file of training data.
    """

    what: Literal["requests", "training"] = "requests"
    form: str = "jsonl"
    output: str | None = None
    max_tokens: NotNegative | None = None
    model: str = "model"
    rows: Literal["prompt_completion", "chat"] = "prompt_completion"
    order: Literal["plan", "task"] = "plan"
    split: str = "train"
    shard_rows: Positive = 50_000

    def __post_init__(self):
        forms = {"requests": ("jsonl", "openai", "lm_eval"), "training": ("jsonl", "parquet")}
        if self.form not in forms[self.what]:
            known = ", ".join(forms[self.what])
            raise UserError(f"Export.form of {self.what} is {self.form!r}; choose one of {known}")


@configurable
@dataclasses.dataclass(frozen=True)
class Generate:
    """Attributes:
    checkpoint: as in `Evaluate`, but only one.
    prompt: a prompt to continue; the answer is printed.
    prompts: a file of prompts: JSON lines with `prompt` and optionally `id`, `stop`,
      `max_new_tokens`, `seed`; `optiml export` writes such files. With neither of the two, prompts
      are read interactively.
    output: file of the answers to `prompts`, JSON lines that `Evaluate.answers` reads.
    max_new_tokens: of an answer, end of text included, unless its prompt sets it.
    temperature: 0: greedy decoding; else tokens are sampled.
    top_p: nucleus sampling: from the most probable tokens that together reach this probability.
    stop: strings at which an answer ends, excluded from it.
    seed: for sampling.
    history: in interactive use, whether earlier prompts and answers are prepended.
    separator: between those.
    """

    checkpoint: str | int = "latest"
    prompt: str | None = None
    prompts: str | None = None
    output: str | None = None
    max_new_tokens: Positive = 256
    temperature: NotNegativeFloat = 0.0
    top_p: PositiveProbability = 1.0
    stop: tuple[str, ...] = ()
    seed: Seed = 1234
    history: bool = True
    separator: str = "\n\n"

    def __post_init__(self):
        if isinstance(self.stop, str):  # one string, not a sequence of characters
            object.__setattr__(self, "stop", (self.stop,))
        if self.prompt is not None and self.prompts is not None:
            raise UserError("give Generate.prompt or Generate.prompts, not both")
        if self.prompts is not None and self.output is None:
            raise UserError("set Generate.output, the file for the answers to Generate.prompts")


@configurable
@dataclasses.dataclass(frozen=True)
class Fetch:
    """Attributes:
    collections: collections and suites of `sources`, or globs over "<collection>/<source>".
    root: the folder for all data.
    sources: the file that lists them.
    accept: restrictive licences that you accept, as `--dry_run` names them, or "all".
    mirrors: prefix of an address -> its replacement, e.g. a folder as file:///...
    workers: concurrent downloads.
    retries: of a file, after 1, 2, 4, ... seconds.
    verify: compares the hashes of existing files, not only their sizes.
    dry_run: only prints what would be downloaded, its size and licence (also: `--dry_run`).
    """

    collections: tuple[str, ...] = ()
    root: str = "$OPTIML_DATA"
    sources: str = "tasks/data/sources.yaml"
    accept: tuple[str, ...] = ()
    mirrors: dict[str, str] = dataclasses.field(default_factory=dict)
    workers: Positive = 8
    retries: NotNegative = 5
    verify: bool = True
    dry_run: bool = False


@configurable
@dataclasses.dataclass(frozen=True)
class Report:
    """Attributes:
    runs: evaluation folders, or globs of them, to print side by side; empty means all of this run,
      oldest first. The others are compared with the first.
    names: of `runs`, in order; empty: the differing parts of their paths.
    axis: x axis of the page's plots, e.g. "training tasks".
    positions: of the runs on that axis (seeds are then not joined); empty: their training steps.
    replicates: of the bootstrap.
    output: folder of the report's files; None means <run_dir>/report.
    by: what the columns within a level are: "category" or "benchmark".
    rule: score rule for ranked candidates instead of each task's own.
    metric: metric for all tasks of its kind (ranking or generation) instead of their own.
    join_seeds: treats evaluations that differ only in their seeds as one run.
    published: files of further published results, in the format of
      tasks/data/published_results.yaml.
    answers: individual answers per task and run on the page; 0: none.
    """

    runs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    axis: str = "training step"
    positions: tuple[float, ...] = ()
    replicates: Positive = 10_000
    output: str | None = None
    by: Literal["category", "benchmark"] = "category"
    rule: str | None = None
    metric: str | None = None
    join_seeds: bool = True
    published: tuple[str, ...] = ()
    answers: NotNegative = 100

    def __post_init__(self):
        known = {"rule": RULE_NAMES, "metric": tuple(METRICS)}
        for name, values in known.items():
            if (value := getattr(self, name)) is not None and value not in values:
                raise UserError(f"Report.{name} = {value!r} is not one of {', '.join(values)}")


@configurable
@dataclasses.dataclass(frozen=True)
class Splits:
    """Attributes:
    most_names: maximum number of tasks named per line.
    """

    most_names: Positive = 6


@configurable
@dataclasses.dataclass(frozen=True)
class Inspect:
    """Attributes:
    tasks: globs over names of tasks to show; empty: an overview, or all tasks in the page.
    split: of the examples shown; None: "train" for training tasks, "test" for others.
    examples: shown per prompt.
    prompts: shown per task.
    shots: numbers of demonstrations; empty: as sampled for training (and, in the page, those of
      `Evaluate.shots`).
    step: shows the packed rows of this training step instead.
    row: shows this packed row instead.
    rows: split of the plan for `step` and `row`: "train" or "validation".
    html: file to write the page to.
    table1: counts the data as Table 1 of the paper does, from the cache for cached tasks.
    recount: Table 1 reads the source files even if there is a cache.
    """

    tasks: tuple[str, ...] = ()
    split: str | None = None
    examples: Positive = 1
    prompts: Positive = 3
    shots: tuple[NotNegative, ...] = ()
    step: NotNegative | None = None
    row: NotNegative | None = None
    rows: Literal["train", "validation"] = "train"
    html: str | None = None
    table1: bool = False
    recount: bool = False


@configurable
@dataclasses.dataclass(frozen=True)
class Compile:
    """Attributes:
    target: `tpu:v5p:4x4x8`, `gpu:a100-40g:8x8` (nodes x GPUs per node) or `cpu:64`.
    program: "train" (one update), "validate", "score" (a batch of candidates), "prefill" (a batch
      of prompts) or "decode" (one new token for every answer).
    length: slots of a row; None: `PlanConfig.sequence_length`.
    search: if the settings do not fit, searches for some that do.
    output: file for the findings as JSON.
    """

    target: str
    program: str = "train"
    length: Positive | None = None
    search: bool = True
    output: str | None = None


@configurable
@dataclasses.dataclass(frozen=True)
class Convert:
    """Attributes:
    source: a Hugging Face folder or Hub name, metaseq's files, a .gguf file or a PEFT folder to
      import, or a checkpoint of this project to export.
    destination: the folder to create.
    to: "optiml"; "huggingface": the whole model, adapters merged; "peft": the adapters alone.
    base: the checkpoint that a PEFT folder adapts.
    vocabulary: spec stored with a new checkpoint; None: the source's own.
    dtype: of the tensors written: float32, bfloat16 or float16; None: that of the source.
    """

    source: str
    destination: str
    to: Literal["optiml", "huggingface", "peft"] = "optiml"
    base: str | None = None
    vocabulary: str | None = None
    dtype: str | None = None


def expand(text: str, name: str) -> str:
    """Expands `$VARIABLE` and `~`; a variable that is not set is a UserError that names it."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    missing = re.search(r"\$\{?(\w+)\}?", expanded)
    if missing:
        raise UserError(
            f"{name} = {text!r}: the environment variable {missing[1]} is not set; "
            f"run: export {missing[1]}=/folder/of/your/data"
        )
    return expanded


def is_bound(name: str) -> bool:
    """Whether gin sets a parameter, "PlanConfig.bos_id"."""
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True


def configured(settings: type, **given):
    """Creates a settings object; a parameter that neither gin nor `given` sets is a UserError."""
    try:
        return settings(**given)
    except TypeError as e:
        names = re.findall(r"'(\w+)'", str(e).split("\n")[0])
        if "missing" not in str(e) or not names:
            raise
        wanted = " and ".join(f"{settings.__name__}.{n}" for n in names)
        raise UserError(
            f"{wanted} not set: give a --gin_file that sets it, or --gin.{settings.__name__}."
            f"{names[0]}=VALUE"
        ) from e
