"""Evaluations that differ in their seeds alone, as one configuration each."""

import itertools
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.evaluate.rollup import Rollup, mean_of_seeds
from optiml_jax.files import fingerprint

# Settings of an evaluation that are seeds, or only say where and which of the seeds it is.
_SEEDS = ("seed", "plan_seed", "prompt_seed")
_NAMES = ("checkpoint", "plan")


def joined_seeds(runs: Mapping[str, Rollup]) -> dict[str, Rollup]:
    """The runs, with those of one configuration as their mean, in the place of its first.

    Evaluations that do not say what their model was trained with stay alone.
    """
    groups: dict[str, list[str]] = {}
    for name, tree in runs.items():
        groups.setdefault(_configuration(name, tree.run), []).append(name)
    found = {}
    for names in groups.values():
        trees = [runs[name] for name in names]
        seeds = {fingerprint([tree.run.get(seed) for seed in _SEEDS]) for tree in trees}
        if len(names) == 1 or len(seeds) < len(names):  # the same seed twice is no other seed
            found |= {name: runs[name] for name in names}
            continue
        try:
            found[joined_name(names)] = mean_of_seeds(trees)
        except UserError:  # other examples: nothing to average
            found |= {name: runs[name] for name in names}
    return found


def _configuration(name: str, run: Mapping[str, Any]) -> str:
    if run.get("configuration") is None:
        return name
    return fingerprint({k: v for k, v in run.items() if k not in (*_SEEDS, *_NAMES)})


def joined_name(names: list[str]) -> str:
    """What the names have in common, and how many they are: "seed*/step_100 (3 seeds)"."""
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end} ({len(names)} seeds)"


def _common_start(names: list[str]) -> str:
    alike = itertools.takewhile(lambda chars: len({*chars}) == 1, zip(*names, strict=False))
    return "".join(chars[0] for chars in alike)
