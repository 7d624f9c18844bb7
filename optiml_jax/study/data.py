"""Whether the data of a run is what it was: read from what plan, cache and evaluation recorded.

Nothing is known of files that are not on this machine, and of a cache that was removed: then the
data counts as unchanged.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from optiml_jax.data.example import seqio_name
from optiml_jax.data.made_of import Key, change, stat_key
from optiml_jax.data.plan import PLAN_FILE, Plan
from optiml_jax.data.store import INFO_FILE, Store
from optiml_jax.errors import UserError
from optiml_jax.evaluate.origin import files_changed
from optiml_jax.paths import path_of


def training_data_changed(plan_dir: pathlib.Path, trained_with: str | None) -> str:
    """What is no longer as it was when a run was trained, in words; "": nothing.

    Args:
      plan_dir: of the run's training rows.
      trained_with: fingerprint of the plan that its checkpoint was trained with, if known.
    """
    key = stat_key(str(plan_dir / PLAN_FILE))
    plan = key and _plan(key)
    if not plan:
        return ""
    if trained_with not in (None, plan.fingerprint):
        return f"the plan in {plan.folder} was made again"
    cache = path_of(plan.meta["cache_dir"])
    changed = {
        row["task"]: what
        for row in plan.meta["tasks"]
        if row["rate"] and (what := _task_changed(cache, row["task"], row["fingerprint"]))
    }
    if not changed:
        return ""
    task, what = next(iter(changed.items()))
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"task {task}{more}: {what}"


def evaluated_data_changed(summary: Mapping[str, Any]) -> bool:
    """Whether the records with this summary may be of other examples than those of now."""
    source = summary.get("source")
    return bool(source) and files_changed(source)


@functools.lru_cache(maxsize=1024)
def _plan(key: Key) -> Plan | None:
    """The plan of a file at a time; None: this version of the program cannot read it."""
    try:
        return Plan.load(pathlib.Path(key[0]).parent)
    except UserError:
        return None


def _task_changed(cache: pathlib.Path, task: str, planned: str) -> str:
    key = stat_key(str(cache / seqio_name(task) / INFO_FILE))
    info = key and _cached(key, task)
    if not info:
        return ""
    if info["fingerprint"] != planned:
        return "it was cached again with other contents"
    files = tuple(file["path"] for file in info["files"])
    if not all(map(os.path.exists, files)):
        return ""
    return _files_changed(key, task, tuple(map(stat_key, files)))


@functools.lru_cache(maxsize=1 << 16)
def _cached(key: Key, task: str) -> dict[str, Any] | None:
    """What a cached task was made of, at a time; None: it is damaged."""
    try:
        info = Store(pathlib.Path(key[0]).parents[1]).task(task).info
    except UserError:
        return None
    return {name: info[name] for name in ("fingerprint", "files")}


@functools.lru_cache(maxsize=1 << 16)
def _files_changed(key: Key, task: str, now: tuple[Key | None, ...]) -> str:
    """`change` of a cached task's files, which reads some; once for each state of them."""
    info = _cached(key, task)
    return change([file["path"] for file in info["files"]], info["files"]) or ""
