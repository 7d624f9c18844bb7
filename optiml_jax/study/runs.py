"""The runs of a study: the settings of each, as one flat gin file, and its folder.

A run's folder is named after a fingerprint of its settings, so that a variant of two studies is
trained once, and a changed setting makes a different run. Variants that differ only in evaluation
share a folder, each with its own evaluation.
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors, fingerprint
from optiml_jax.paths import plain_path
from optiml_jax.study.spec import Study

Settings = dict[str, Any]  # name of a gin parameter -> value; its `repr` is gin
Resolve = Callable[[Sequence[str], Sequence[str]], Settings]  # of gin files, then lines

# What may change when a run is resumed (WORKSPACE.md, "Which setting is frozen where"), and paths.
_FREE = re.compile(
    r"Run\.(run_dir|distributed)$|Mixture\.name$|MeshConfig\.|Prepare\.|Report\.|Inspect\.|Audit\."
    r"|CompilationCache\.|model_config\.remat$|TrainConfig\.(num_microbatches|log_every"
    r"|checkpoint_every|keep|grace_seconds|peak_flops|validat\w+)$"
)
# What `optiml prepare` does not use, or what only selects among the tasks that it caches.
_AFTER_PREPARE = re.compile(
    r"(TrainConfig|OptimizerConfig|EvalConfig|MeshConfig|model_config|Report|Audit|Inspect)\."
    r"|Run\.(run_dir|distributed)$|PlanConfig\.(seed|num_rows)$|Evaluate\.(?!roles$)"
    r"|Mixture\.(name|eps|proportions|shares|row_shares|num_tasks|num_categories"
    r"|always_categories)$"
)
_EVALUATION = re.compile(r"(EvalConfig|Evaluate)\.")
# What the prompts in a cache depend on, besides the vocabulary and the data.
_PROMPTS = re.compile(r"(PromptConfig|zipf_shots|chat_frame)\.|PlanConfig\.sequence_length$")


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One training run with its evaluation.

    Attributes:
      folder: its `Run.run_dir`.
      settings: all of its gin parameters.
      prepare: name of the `Preparation` that it needs.
      evaluated: name of its evaluation if one training has several; "": that of the base.
    """

    folder: pathlib.Path
    settings: Settings
    prepare: str
    evaluated: str = ""

    @property
    def gin_file(self) -> pathlib.Path:
        return self.folder / (f"evaluate_{self.evaluated}.gin" if self.evaluated else "run.gin")

    def log(self, verb: str) -> pathlib.Path:
        """The log of a verb."""
        name = self.gin_file.stem if self.evaluated and verb == "evaluate" else verb
        return self.folder / "logs" / f"{name}.log"

    @property
    def num_steps(self) -> int:
        return int(self.settings["TrainConfig.num_steps"])

    @property
    def evaluation(self) -> pathlib.Path:
        """The folder of its last step's evaluation."""
        name = self.settings["Evaluate.name"].replace("{checkpoint}", f"step_{self.num_steps}")
        return self.folder / "evaluation" / name


@dataclasses.dataclass(frozen=True)
class Preparation:
    """One call of `optiml prepare`, which serves several runs."""

    folder: pathlib.Path
    settings: Settings

    @property
    def gin_file(self) -> pathlib.Path:
        return self.folder / "prepare.gin"

    @property
    def cache(self) -> str:
        """The cache that it writes, to which one process writes at a time."""
        return str(self.settings["Run.cache_dir"])

    def log(self, verb: str) -> pathlib.Path:
        """The log of a verb."""
        return self.folder / "logs" / f"{verb}.log"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a study.

    Attributes:
      study: the study.
      runs: (variant, seed) -> run.
      preparations: name -> preparation.
      changes: variant -> its changes to the base run: setting -> value.
      varied: the settings in which variants differ.
    """

    study: Study
    runs: Mapping[tuple[str, int], StudyRun]
    preparations: Mapping[str, Preparation]
    changes: Mapping[str, Settings]
    varied: frozenset[str]

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the study's report and choice."""
        return pathlib.Path(self.study.folder) / self.study.name

    def of_variant(self, variant: str) -> dict[int, StudyRun]:
        """Seed -> run."""
        return {seed: run for (name, seed), run in self.runs.items() if name == variant}


def plan_study(study: Study, resolve: Resolve, chosen: Mapping[str, Any] | None = None) -> Plan:
    """Derives the runs of a study; writes nothing.

    Args:
      study: the study.
      resolve: turns gin files and lines into settings.
      chosen: settings chosen by earlier studies.

    Raises:
      UserError: a file or setting of a variant is wrong, a run lacks a setting, or two variants
        have equal settings.
    """
    plain_path(study.folder, "Study.folder")
    common = list(study.bindings)
    base = resolve(study.base, common)
    variants = {
        name: resolve([*study.base, *_files(parts)], [*_lines(parts), *common])
        for name, parts in study.variants.items()
    }
    changes = {name: _difference(own, base) for name, own in variants.items()}
    varied = {setting for own in changes.values() for setting in own if _differs(setting, variants)}
    taken = {k: v for k, v in (chosen or {}).items() if k not in varied}
    runs, preparations = {}, {}
    for name, own in variants.items():
        settings = own | taken
        _give_cache(settings, base | taken)
        for seed in study.seeds:
            run, preparation = _run(study, name, settings, base | taken, seed)
            runs[name, seed] = run
            preparations[run.prepare] = preparation
    owners = collections.defaultdict(list)
    for (name, seed), run in runs.items():
        owners[run.evaluation].append(f"{name} (seed {seed})")
    for same in owners.values():
        if len(same) > 1:
            raise UserError(
                f"study {study.name!r}: {' and '.join(same)} are the same run: they have the same "
                "settings"
            )
    return Plan(study, runs, preparations, changes, frozenset(varied))


def write_gin(path: pathlib.Path, settings: Mapping[str, Any], comment: str) -> None:
    """Writes settings as a gin file, unless it is up to date."""
    lines = [f"{name} = {value!r}\n" for name, value in sorted(settings.items())]
    text = f"# {comment}\n" + "".join(lines)
    if path.exists() and path.read_text("utf-8") == text:
        return
    with disk_errors(path, "the settings of a run"), atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_runs(plan: Plan) -> None:
    """Writes the gin files of all runs, and links to them by study, variant and seed."""
    for preparation in plan.preparations.values():
        comment = "Written by `optiml study`: the settings of a cache that its runs share."
        write_gin(preparation.gin_file, preparation.settings, comment)
    for (variant, seed), run in plan.runs.items():
        comment = "Written by `optiml study`: all settings of a run."
        write_gin(run.gin_file, run.settings, comment)
        link = plan.folder / slug(variant) / f"seed_{seed}"
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(run.folder, link.parent)
        if link.is_symlink() and os.readlink(link) != target:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(target)


def slug(name: str) -> str:
    """A variant's name as a file name: "2/1/5" becomes "2_1_5"."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_") or "_"


def _run(
    study: Study, name: str, settings: Settings, base: Settings, seed: int
) -> tuple[StudyRun, Preparation]:
    own = settings | dict.fromkeys(study.seeded, seed) | {"Evaluate.roles": study.roles}
    for needed in ("Run.cache_dir", "TrainConfig.num_steps"):
        if needed not in own:
            raise UserError(f"study {study.name!r}, variant {name!r}: {needed} is not set")
    own["Evaluate.checkpoint"] = int(own["TrainConfig.num_steps"])
    asked, usual = (_evaluation(s) for s in (settings, base))
    evaluated = "" if asked == usual else fingerprint(asked)[:8]
    own["Evaluate.name"] = f"{{checkpoint}}_{evaluated}" if evaluated else "{checkpoint}"
    prepared = {k: v for k, v in own.items() if not _AFTER_PREPARE.match(k)}
    key = fingerprint({k: repr(v) for k, v in prepared.items()})
    kept = {k: repr(v) for k, v in own.items() if not (_FREE.match(k) or _EVALUATION.match(k))}
    common = {k: repr(own[k]) for k in ("Evaluate.roles", "Evaluate.checkpoint")}
    identity = fingerprint(kept | usual | common | {"Evaluate.name": repr("{checkpoint}")})
    root = pathlib.Path(study.folder)
    folder = root / "runs" / identity
    # A name stored in the plan, the same for every study that needs the run.
    own |= {"Run.run_dir": str(folder), "Mixture.name": f"run {identity}"}
    # Rates do not affect the cache; a mixture of all of its tasks needs no proportions.
    prepared |= {"Mixture.name": f"preparation {key}", "Run.run_dir": str(root / "prepare" / key)}
    prepared |= {"TrainConfig.num_steps": 1, "TrainConfig.global_batch_size": 1}
    return StudyRun(folder, own, key, evaluated), Preparation(root / "prepare" / key, prepared)


def _evaluation(settings: Settings) -> dict[str, str]:
    """The evaluation settings in which a variant may differ from the base, as text."""
    set_here = ("Evaluate.roles", "Evaluate.checkpoint", "Evaluate.name")
    return {k: repr(v) for k, v in settings.items() if _EVALUATION.match(k) and k not in set_here}


def _give_cache(settings: Settings, base: Mapping[str, Any]) -> None:
    """Gives runs whose prompts differ from the base's a separate cache, if none is set."""
    prompts, usual = ({k: v for k, v in s.items() if _PROMPTS.match(k)} for s in (settings, base))
    differ = {k: repr(v) for k, v in prompts.items()} != {k: repr(v) for k, v in usual.items()}
    if differ and settings.get("Run.cache_dir") == base.get("Run.cache_dir"):
        own = fingerprint({k: repr(v) for k, v in prompts.items()})[:8]
        settings["Run.cache_dir"] = f"{settings.get('Run.cache_dir')}_{own}"


def _files(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if part.endswith(".gin")]


def _lines(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if not part.endswith(".gin")]


def _difference(own: Settings, base: Settings) -> Settings:
    """What `own` sets differently from `base`, except the name of the mixture."""
    return {
        k: v
        for k, v in own.items()
        if k != "Mixture.name" and (k not in base or repr(base[k]) != repr(v))
    }


def _differs(setting: str, variants: Mapping[str, Settings]) -> bool:
    return len({repr(own.get(setting, "not set")) for own in variants.values()}) > 1
