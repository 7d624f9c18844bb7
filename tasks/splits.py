"""The split manifest: which task is trained on, evaluated at which level, and scored how.

The facts are in `data/split_manifest.yaml`; here they are read, checked and looked up. Reading the
tasks themselves and choosing a mixture's tasks happen elsewhere.
"""

import dataclasses
import fnmatch
import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.settings import configurable
from optiml_jax.yaml_files import read_yaml
from tasks.decisions import Decisions
from tasks.patterns import expand, matcher
from tasks.provenance import Provenance

LEVELS = (
    "fully_held_out",
    "partially_held_out",
    "fully_supervised",
    "train_only",
    "held_out_unspecified",
)
ROLES = ("train", "dev", "test", "test_max", "test_extra", "exclude")
# At a held-out level, the data of tasks with these roles is never trained on.
PROTECTED = ("test", "dev", "test_max")
DEFAULT_MANIFEST = pathlib.Path(__file__).parent / "data" / "split_manifest.yaml"

logger = logging.getLogger(__name__)

SELECTORS = ("tasks", "upstream_split", "only_with")
_FIELDS = (
    *("level", "role", "metric", "options", "category", "aggregate_as", "shots", "instances"),
    *("prompts", "keep", "src", "why"),
)
_TEXTS = ("upstream_split", "category", "aggregate_as", "keep", "why")
_PROTOCOL = tuple(field.name for field in dataclasses.fields(Protocol))


@configurable
@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Which optional rows of the manifest hold.

    Attributes:
      unique_tasks: trains on a task of CrossFit and T5 only if no other collection has it, as the
        paper does (section 2.1); for who has all collections.
      as_published: keeps the training sets that the paper kept although they are made of held-out
        data (e-SNLI and WinoWhy among the reasoning sets).
      bbh_23: BIG-Bench Hard is the mean of 23 tasks, not of 27 files.
      decisions: a file of your own with decisions about pairs of an audit; None: the project's.
      manifests: files of rows (as data/split_manifest.yaml) that come after the project's own, in
        this order: later rows win, field by field.
      taxonomies: files (as data/taxonomy.tsv) whose rows win over the project's own, later files
        over earlier ones.
    """

    unique_tasks: bool = False
    as_published: bool = False
    bbh_23: bool = False
    decisions: str | None = None
    manifests: tuple[str, ...] = ()
    taxonomies: tuple[str, ...] = ()


_SWITCHES = [f.name for f in dataclasses.fields(SplitConfig) if f.type is bool]


@dataclasses.dataclass(frozen=True)
class Row:
    """What the manifest says about one task, all matching rows merged.

    Attributes:
      level: one of `LEVELS`.
      role: of `ROLES`; ("exclude",) stands alone.
      metric: a name of `METRICS`.
      options: "labels" (the task's distinct outputs are the candidates), "listed" (each instance
        lists its own) or None (generation, or what the reader knows).
      category: replaces the upstream category; None keeps it.
      aggregate_as: tasks of one name are averaged before they count as one task.
      shots: numbers of demonstrations in evaluation.
      instances: the test part is at most the first `instances` of the task; None: no such limit.
      prompts: how many prompts an evaluation is expected to have, or the names of those it has, or
        "all": those too that the reader would leave out.
      keep: why it is trained on although it is made of held-out data.
      protocol: how it is asked and scored; its fields are keys of the manifest.
      src: "paper" or "inferred", and
      why: free text, both of the row that gave the role.
      held_by: the roles under which its data is held out, by this or another task.
      withheld: the roles it would have, were its data not held out.
    """

    level: str
    role: tuple[str, ...]
    metric: str = "rougeL"
    options: str | None = None
    category: str | None = None
    aggregate_as: str | None = None
    shots: tuple[int, ...] = (0,)
    instances: int | None = None
    prompts: int | tuple[str, ...] | Literal["all"] | None = None
    keep: str | None = None
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    src: str | None = None
    why: str | None = None
    held_by: frozenset[str] = frozenset()
    withheld: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        return "train" in self.role

    def trained_by(self, roles: Iterable[str]) -> bool:
        """Whether a mixture of these roles trains on the task.

        OPT-IML-Max trains on dev and test tasks too; what it is tested on itself stays out, with
        all that is made of the same data.
        """
        own = self.withheld or self.role
        kept = self.keep is not None or self.held_by <= {*roles}
        return not {*roles}.isdisjoint(own) and "test_max" not in own and kept

    @property
    def evaluated(self) -> bool:
        return not {"train", "exclude"}.issuperset(self.role)

    def check_prompts(self, task: str, number: int) -> None:
        """Logs it if an evaluation has another number of prompts than the manifest expects."""
        expected = len(self.prompts) if isinstance(self.prompts, tuple) else self.prompts
        if expected not in (None, "all", number):
            logger.warning("%s has %d prompts, not the expected %d", task, number, expected)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """One row of the file: compiled selectors and the checked fields it sets."""

    where: str
    patterns: tuple[str, ...]
    expression: re.Pattern[str]
    upstream_split: str | None
    only_with: str | None
    fields: dict[str, Any]

    def matches(self, task: str, upstream_split: str | None) -> bool:
        if self.upstream_split not in (None, upstream_split):
            return False
        return self.expression.fullmatch(task) is not None


class Manifest:
    """The rows of one manifest file, in order; later rows win, field by field."""

    def __init__(
        self,
        path: pathlib.Path,
        rules: Sequence[_Rule],
        provenance: Provenance,
        decisions: Decisions,
    ):
        self._path = path
        self._rules = tuple(rules)
        self.provenance = provenance
        self.decisions = decisions

    @classmethod
    def load(cls, path: str | pathlib.Path | None = None) -> "Manifest":
        """Reads a manifest (None: the project's own), with the rows that `SplitConfig` asks for.

        Raises:
          UserError: the file is missing or damaged, or a row has an unknown key, level, role or
            metric, or a broken pattern; the message names file and row.
        """
        config = SplitConfig()
        path = pathlib.Path(path or DEFAULT_MANIFEST)
        rules = _read_rules(path, config)
        for layer in config.manifests:
            rules += _read_rules(user_file(layer, "SplitConfig.manifests"), config, src="inferred")
        return cls(path, rules, Provenance.load(), Decisions.load(config.decisions))

    def declare(self, task: str, fields: Mapping[str, Any], where: str) -> None:
        """Adds a row for one task before all others; a reader does so for what its files say.

        Args:
          fields: keys of a row but `tasks`; `src` may be left out.
          where: the file, for messages. What it declared of the task earlier is replaced.
        """
        rule = _parse_row({"tasks": task, "src": "inferred", **fields}, where)
        others = [r for r in self._rules if (r.where, r.patterns) != (where, rule.patterns)]
        self._rules = (rule, *others)
        self.__dict__.pop("_held_out_data", None)  # it was made of the rows

    def lookup(self, task: str, upstream_split: str | None) -> Row:
        """The merged row of a task; one that is made of held-out data has role exclude.

        Raises:
          UserError: no row gives it a level and a role, it is trained on and tested without being
            fully supervised, or it is trained on and tested and made of held-out data.
        """
        row = self._decided(task, self._merged(task, upstream_split))
        held = self._held(task)
        if not held:
            return row
        row = dataclasses.replace(row, held_by=frozenset(held))
        if not row.trained or row.keep is not None:
            return row
        why = held[next(role for role in PROTECTED if role in held)]
        if not {*PROTECTED}.isdisjoint(row.role):
            raise UserError(
                f"{self._path} trains on task {task!r} and tests on it, but it is {why}; give it "
                "another role, or `keep` with a reason"
            )
        return dataclasses.replace(
            row, level="train_only", role=("exclude",), withheld=row.role, src="inferred", why=why
        )

    def _decided(self, task: str, row: Row) -> Row:
        """The row without the roles that a decision about a pair takes from the task."""
        for side, lost in (("train", ("train",)), ("eval", (*PROTECTED, "test_extra"))):
            decision = self.decisions.removal(side, task)
            left = tuple(role for role in row.role if role not in lost)
            if decision and left != row.role:
                why = f"{decision.decision} by {decision.reviewer}: {decision.reason}"
                level = row.level if left and side == "train" else "train_only"
                if side == "train" and row.level == "fully_supervised":
                    level = "held_out_unspecified" if left else "train_only"
                row = dataclasses.replace(row, level=level, role=left or ("exclude",), why=why)
        return row

    def _held(self, task: str) -> dict[str, str]:
        """Role -> what the task is made of that a task of this role holds out, in words."""
        held: dict[str, str] = {}
        for dataset, way in self.provenance.items_of(task).items():
            for role, holder in self._held_out_data.get(dataset, {}).items():
                if role not in held:
                    steps = ", which is made of ".join(way)
                    held[role] = f"made of {steps}: held out by {holder}"
        return held

    @functools.cached_property
    def _held_out_data(self) -> dict[str, dict[str, str]]:
        """Data set -> role -> the first evaluation task that holds it out."""
        data: dict[str, dict[str, str]] = {}
        for pattern, row in self._evaluated_patterns():
            if row.level == "fully_supervised":
                continue
            for dataset in self.provenance.items_of(pattern):
                for role in {*PROTECTED}.intersection(row.role):
                    data.setdefault(dataset, {}).setdefault(role, pattern)
        return data

    def _merged(self, task: str, upstream_split: str | None) -> Row:
        merged: dict[str, Any] = {}
        rules = [rule for rule in self._rules if rule.matches(task, upstream_split)]
        for rule in rules:
            merged.update(rule.fields)
        if "level" not in merged or "role" not in merged:
            raise UserError(f"{self._path} gives task {task!r} no level and role; add a row for it")
        protocol = {name: merged.pop(name) for name in _PROTOCOL if name in merged}
        row = Row(**merged, protocol=Protocol(**protocol))
        where = "; ".join(dict.fromkeys(rule.where for rule in rules))
        if row.trained and len(row.role) > 1 and row.level != "fully_supervised":
            raise UserError(
                f"{where}: task {task!r} is both trained on and evaluated at level {row.level}; "
                "only fully_supervised tasks may be both"
            )
        if row.options and row.metric != "acc_rank":
            raise UserError(
                f"{where}: task {task!r} has options but metric {row.metric}; options need acc_rank"
            )
        return row

    def row(self, source: TaskSource) -> Row:
        """The merged row of a task that was found; see `lookup`."""
        return self.lookup(source.name, source.upstream_split)

    def check_held_out(
        self, sources: Iterable[TaskSource], roles: Sequence[str] = ("train",)
    ) -> None:
        """Raises a UserError if a training task has the category of a fully held-out task.

        Training tasks are those that a mixture of `roles` trains on, the others are held out unless
        they are excluded. What is made of held-out data is no training task to begin with.
        """
        rows = {s.name: (self.row(s), category(s)) for s in sources}
        by_category = {}
        for name, (row, c) in reversed(rows.items()):
            if row.trained_by(roles):
                by_category[c] = name
        for name, (row, c) in rows.items():
            if row.trained_by((*roles, "exclude")):
                continue
            if row.level == "fully_held_out" and c in by_category:
                raise UserError(
                    f"training task {by_category[c]!r} has category {c!r} of the fully held-out "
                    f"task {name!r}; leave one of them out, or give it another level in "
                    f"{self._path}"
                )

    def evaluation_tasks(self) -> dict[str, Row]:
        """The tasks that the manifest wants evaluated, whatever data there is, in its order.

        A name is a glob where the manifest has one. What holds for a whole benchmark is left out.
        """
        return dict(self._evaluated_patterns())

    def _evaluated_patterns(self) -> Iterator[tuple[str, Row]]:
        patterns = {
            pattern: rule.upstream_split for rule in self._rules for pattern in rule.patterns
        }
        for pattern, split in patterns.items():
            # A layer may change a field of a task that its own file declares, perhaps later.
            if pattern.split("/", 1)[1] != "*" and self._has_role(pattern, split):
                row = self._merged(pattern, split)  # a glob matches itself
                if row.evaluated:
                    yield pattern, row

    def _has_role(self, task: str, upstream_split: str | None) -> bool:
        fields = [r.fields for r in self._rules if r.matches(task, upstream_split)]
        return all(any(name in f for f in fields) for name in ("level", "role"))

    def warn_of_unmatched_rows(self, sources: Sequence[TaskSource]) -> None:
        """Logs the patterns of present benchmarks that match no task of the user's copy."""
        present = {s.benchmark for s in sources}
        unmatched = [
            pattern
            for rule in self._rules
            for pattern in rule.patterns
            if pattern.split("/", 1)[0] in present
            and not any(fnmatch.fnmatchcase(s.name, pattern) for s in sources)
        ]
        if unmatched:
            shown = ", ".join(unmatched[:3]) + (" ..." if len(unmatched) > 3 else "")
            logger.warning(
                "%d patterns of %s match no task: %s", len(unmatched), self._path.name, shown
            )


def category(source: TaskSource) -> str:
    """The category of a task: every reader puts it (the manifest's, if any) into its settings.

    Raises:
      UserError: the reader, perhaps a user's own, did not.
    """
    if "category" not in source.settings:
        raise UserError(f"{source.name}: its reader must put `category` into TaskSource.settings")
    return source.settings["category"]


def check_roles(roles: Iterable[str], setting: str) -> None:
    """Raises a UserError if one of the roles that a setting names is none of the manifest's."""
    for role in roles:
        if role not in ROLES:
            raise UserError(f"{setting}: there is no role {role!r}; known: {', '.join(ROLES)}")


def user_file(name: str, setting: str) -> pathlib.Path:
    """The path of a file that a setting names, its variables expanded."""
    path = pathlib.Path(os.path.expandvars(name)).expanduser()
    if not path.is_file():
        raise UserError(f"{setting}: file not found: {path}")
    return path


def _read_rules(path: pathlib.Path, config: SplitConfig, src: str | None = None) -> list[_Rule]:
    """The rows of a file that hold under `config`; `src` is that of rows that do not say."""
    content = read_yaml(path, "split manifest")
    if not isinstance(content.get("rows"), list):
        raise UserError(f"split manifest has no list of rows: {path}")
    rows = [{"src": src, **r} if src and isinstance(r, dict) else r for r in content["rows"]]
    rules = [_parse_row(r, f"{path}, row {i}") for i, r in enumerate(rows, 1)]
    return [r for r in rules if r.only_with is None or getattr(config, r.only_with)]


def _parse_row(row: Any, where: str) -> _Rule:
    if not isinstance(row, dict) or "tasks" not in row:
        raise UserError(f"{where}: a row must be a mapping with `tasks`, not {row!r}")
    known = (*SELECTORS, *_FIELDS, *_PROTOCOL)
    unknown = [k for k in row if k not in known]
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    _check_known(row, "only_with", _SWITCHES, where)
    if row.get("src") not in ("paper", "inferred"):
        raise UserError(f"{where}: src must be paper or inferred, not {row.get('src')!r}")
    for key in _TEXTS:
        text = row.get(key)
        if text is not None and not (isinstance(text, str) and text.strip()):
            raise UserError(f"{where}: {key} must be text, in quotation marks, not {text!r}")
    patterns = expand(row["tasks"], where)
    return _Rule(
        where=where,
        patterns=tuple(patterns),
        expression=matcher(patterns),
        upstream_split=row.get("upstream_split"),
        only_with=row.get("only_with"),
        fields=_parse_fields(row, where),
    )


def _parse_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    fields = {
        k: v for k, v in row.items() if k in (*_FIELDS, *_PROTOCOL) and k not in ("src", "why")
    }
    try:
        Protocol(**{k: v for k, v in fields.items() if k in _PROTOCOL})
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    if "role" in fields:  # what other rows say does not explain it
        fields |= {"src": row["src"], "why": row.get("why")}
    _check_known(fields, "level", LEVELS, where)
    _check_known(fields, "metric", tuple(METRICS), where)
    _check_known(fields, "options", ("labels", "listed", None), where)
    if "role" in fields:
        role = fields["role"]
        if not isinstance(role, list) or not role:
            raise UserError(f"{where}: role must be a list of {', '.join(ROLES)}, not {role!r}")
        for one in role:
            _check_known({"role": one}, "role", ROLES, where)
        if "exclude" in role and len(role) > 1:
            raise UserError(f"{where}: role exclude stands alone, not {role}")
        fields["role"] = tuple(role)
    if "shots" in fields:
        shots = fields["shots"]
        if not isinstance(shots, list) or not all(_is_number(k, 0) for k in shots):
            raise UserError(f"{where}: shots must be a list of numbers >= 0, not {shots!r}")
        fields["shots"] = tuple(shots)
    if "instances" in fields:
        match = re.fullmatch(r"first([1-9]\d*)", str(fields["instances"]))
        if not match:
            raise UserError(
                f"{where}: instances must be first<number>, not {fields['instances']!r}"
            )
        fields["instances"] = int(match[1])
    if "prompts" in fields:
        fields["prompts"] = _parse_prompts(fields["prompts"], where)
    return fields


def _parse_prompts(prompts: Any, where: str) -> int | tuple[str, ...] | str:
    if isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts):
        return tuple(prompts)
    if _is_number(prompts, 1) or prompts == "all":
        return prompts
    raise UserError(
        f"{where}: prompts must be a number, a list of names, or 'all', not {prompts!r}"
    )


def _is_number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_known(fields: dict[str, Any], key: str, known: Sequence[Any], where: str) -> None:
    if key in fields and fields[key] not in known:
        names = ", ".join("null" if k is None else k for k in known)
        raise UserError(f"{where}: unknown {key} {fields[key]!r}; known: {names}")
