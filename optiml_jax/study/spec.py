"""What a study is: a base run, variants that differ in one factor, seeds, and the axis of a figure.

A study is a gin file that binds `Study`; a file that binds `Chain` names several in order. This
module has only the settings; `runs.py` derives the runs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from optiml_jax.errors import UserError
from optiml_jax.settings import NotNegative, Positive, Seed, configurable


@configurable
@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Runs that differ in one factor.

    Settings of a run come from the files of `base`, then those of its variant, then `bindings`,
    then choices of earlier studies (`Chain.takes`), then its seed; later ones take precedence.

    Attributes:
      name: of the study, its folder and files.
      title: for headings.
      base: gin files of the base run.
      variants: name -> gin files (they end in ".gin") and lines "NAME = VALUE"; () is the base run.
      bindings: lines "NAME = VALUE" for all runs.
      seeds: each variant is run with each seed.
      seeded: settings that are set to the seed.
      factor: what varies; the x axis of the figure.
      positions: variant -> its position on the axis; empty: side by side, in the order listed.
      logarithmic: whether the axis is.
      series: variant -> its line in the figure, if a second factor varies.
      fit: fits scores against the (logarithm of the) position, with an interval for the slope.
      by: unit of averaging within a level: "category" or "benchmark".
      roles: of the evaluation tasks; the paper chooses on "dev".
      replicates: of the bootstrap.
      published: number of the paper's table, or name of its figure, to compare with.
      rows: variant -> name of its row there; default: the variant's name.
      unpublished: variants whose row may be missing there.
      folder: common to all studies that share runs: a run that two studies need is made once.
    """

    name: str
    title: str = ""
    base: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    bindings: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = (1234,)
    seeded: tuple[str, ...] = ("TrainConfig.seed", "PlanConfig.seed")
    factor: str = "variant"
    positions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    series: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fit: bool = False
    by: Literal["category", "benchmark"] = "category"
    roles: tuple[str, ...] = ("dev",)
    replicates: Positive = 10_000
    published: int | str | None = None
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unpublished: tuple[str, ...] = ()
    folder: str = "runs/studies"

    def __post_init__(self):
        if not self.variants:
            self._refuse("it has no variants")
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            self._refuse(f"seeds {self.seeds} must be one or more different numbers")
        for name in ("positions", "series", "rows"):
            if unknown := [v for v in getattr(self, name) if v not in self.variants]:
                known = ", ".join(self.variants)
                self._refuse(f"{name} names {unknown[0]!r}, which is not one of {known}")
        if self.positions and (lacking := [v for v in self.variants if v not in self.positions]):
            self._refuse(f"positions lacks {lacking[0]!r}")
        if self.logarithmic and any(x <= 0 for x in self.positions.values()):
            self._refuse("a logarithmic axis has positions above 0 only")
        if self.fit and len({*self.positions.values()}) < 3:
            self._refuse("a fit needs three different positions")

    def _refuse(self, what: str) -> None:
        raise UserError(f"study {self.name!r}: {what}")


@configurable
@dataclasses.dataclass(frozen=True)
class Chain:
    """Studies in order.

    Attributes:
      studies: gin files, each of one `Study`.
      takes: name of a study -> names of earlier ones whose choice its runs start from, except for
        settings that the study varies itself.
    """

    studies: tuple[str, ...] = ()
    takes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@configurable
@dataclasses.dataclass(frozen=True)
class Launch:
    """Where and how the runs of a study are executed.

    Attributes:
      launcher: "local": on this machine; "slurm": submits an array job; "print": prints the
        commands.
      at_once: concurrent runs; 0: one locally, all under SLURM.
      threads: CPU threads of one local run; 0: JAX's default.
      sbatch: options of `sbatch` for the array job, e.g. ("--nodes=8", "--partition=gpu").
      sbatch_light: options for the jobs without accelerators: preparation and the report.
      after: under SLURM, the study whose jobs have ended: studies up to it are reported and not
        submitted again.
      status: only shows progress (also: `--status`).
      report: only writes the report of existing results (also: `--report`).
    """

    launcher: Literal["local", "slurm", "print"] = "local"
    at_once: NotNegative = 0
    threads: NotNegative = 0
    sbatch: tuple[str, ...] = ()
    sbatch_light: tuple[str, ...] = ("--ntasks=1",)
    after: str | None = None
    status: bool = False
    report: bool = False
