"""Decisions about pairs of a training and an evaluation task that share examples.

A file of decisions: `data/decisions.yaml`, or one of the user's own. Later rows do not win: two
rows that say different things of one pair are an error.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import yaml

from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.yaml_files import read_yaml
from tasks.patterns import expand, matcher

DEFAULT_DECISIONS = pathlib.Path(__file__).parent / "data" / "decisions.yaml"
CHOICES = ("remove_train", "remove_eval", "keep")
_KEYS = ("train", "eval", "decision", "reason", "reviewer")
_HEAD = """\
# What was decided about pairs of tasks with common examples (optiml audit --review).
# decision: remove_train: the training task is not trained on; remove_eval: the evaluation task is
# not evaluated; keep: both stay. train and eval are task names or globs with {a,b}.
version: 1
decisions:
"""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One row.

    Attributes:
      train, eval: globs over task names.
      decision: one of `CHOICES`.
      reason, reviewer: why, and who says so.
      where: file and row.
    """

    train: tuple[str, ...]
    eval: tuple[str, ...]
    decision: str
    reason: str
    reviewer: str
    where: str = ""
    _train: re.Pattern[str] = dataclasses.field(init=False, repr=False, compare=False)
    _eval: re.Pattern[str] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_train", matcher(self.train))
        object.__setattr__(self, "_eval", matcher(self.eval))

    def removes(self, side: str, task: str) -> bool:
        """Whether it removes the task from a side, "train" or "eval"."""
        own = self._train if side == "train" else self._eval
        return self.decision == f"remove_{side}" and own.fullmatch(task) is not None

    def matches(self, train_task: str, eval_task: str) -> bool:
        return bool(self._train.fullmatch(train_task) and self._eval.fullmatch(eval_task))


class Decisions:
    """The rows of a file of decisions."""

    def __init__(self, path: pathlib.Path, rows: Sequence[Decision]):
        self.path = path
        self.rows = tuple(rows)

    @classmethod
    def load(cls, path: str | pathlib.Path | None = None) -> "Decisions":
        """Reads a file of decisions; None: the project's own. A file that is not there has no rows.

        Raises:
          UserError: the file is damaged, or a row is wrong; the message names file and row.
        """
        path = pathlib.Path(path or DEFAULT_DECISIONS)
        if not path.exists():
            return cls(path, ())
        content = read_yaml(path, "the file of decisions")
        if "decisions" not in content:
            raise UserError(f"{path} has no list of decisions")
        rows = content["decisions"] or []
        if not isinstance(rows, list):
            raise UserError(f"{path} has no list of decisions")
        return cls(path, [_parse(row, f"{path}, row {i}") for i, row in enumerate(rows, 1)])

    def of(self, train_task: str, eval_task: str) -> Decision | None:
        """The decision about a pair.

        Raises:
          UserError: two rows contradict each other about it.
        """
        found = [row for row in self.rows if row.matches(train_task, eval_task)]
        for row in found[1:]:
            if row.decision != found[0].decision:
                raise UserError(
                    f"{row.where} says {row.decision} of {train_task} and {eval_task}, "
                    f"{found[0].where} says {found[0].decision}; delete one of them"
                )
        return found[0] if found else None

    def removal(self, side: str, task: str) -> Decision | None:
        """The decision, if any, that removes a task from a side, "train" or "eval"."""
        return next((row for row in self.rows if row.removes(side, task)), None)

    def with_row(self, row: Decision) -> "Decisions":
        """These and one more, which is appended to the file at once."""
        text = self.path.read_text("utf-8") if self.path.exists() else _HEAD
        if not self.rows:
            text = text.replace("decisions: []", "decisions:")
        fields = {name: getattr(row, name) for name in _KEYS}
        fields |= {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
        fields |= {n: v[0] for n, v in fields.items() if isinstance(v, list) and len(v) == 1}
        line = yaml.safe_dump([fields], sort_keys=False, allow_unicode=True, width=96)
        with disk_errors(self.path, "the decisions"), atomic_path(self.path) as temporary:
            temporary.write_text(text.rstrip("\n") + "\n" + line, "utf-8")
        row = dataclasses.replace(row, where=f"{self.path}, row {len(self.rows) + 1}")
        return Decisions(self.path, (*self.rows, row))


def _parse(row: Any, where: str) -> Decision:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a decision must be a mapping, not {row!r}")
    unknown = [k for k in row if k not in _KEYS]
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    missing = [k for k in _KEYS if not row.get(k)]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing")
    if row["decision"] not in CHOICES:
        raise UserError(
            f"{where}: unknown decision {row['decision']!r}; known: {', '.join(CHOICES)}"
        )
    return Decision(
        train=tuple(expand(row["train"], where)),
        eval=tuple(expand(row["eval"], where)),
        decision=row["decision"],
        reason=str(row["reason"]),
        reviewer=str(row["reviewer"]),
        where=where,
    )
