"""Coverage of the 95 % intervals in simulation, over the shapes that evaluations have.

For each shape - tasks per category - evaluations are drawn whose truth is known: category effects,
task effects, instances right or wrong in a paired comparison. An interval for new tasks should
cover the mean of the categories' true means, one for fixed tasks the mean of the true task means,
in 95 % of the trials. Prints a Markdown table; every number is coverage in percent.

    python tools/bench/interval_coverage.py --trials 1000
"""

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from optiml_jax.evaluate import statistics
from optiml_jax.evaluate.leaves import Key, Leaf, Part
from optiml_jax.evaluate.new_tasks import Group, error_of_mean
from optiml_jax.evaluate.resampling import Resampling
from optiml_jax.evaluate.rollup import rollup_of_leaves

SHAPES: dict[str, Sequence[int]] = {
    "1 category of 2": [2],
    "1 of 3": [3],
    "1 of 5": [5],
    "1 of 44": [44],
    "2 of 1": [1, 1],
    "3 of 1": [1, 1, 1],
    "10 of 1": [1] * 10,
    "12 of 1": [1] * 12,
    "5 of 2": [2] * 5,
    "12 of 2": [2] * 12,
    "3 of 3": [3] * 3,
    "1 and 2": [1, 2],
    "1, 1, 1, 1, 2": [1, 1, 1, 1, 2],
    "1, 1, 2, 3": [1, 1, 2, 3],
    "1 and 5": [1, 5],
    "1 and 44": [1, 44],
    "2 and 44": [2, 44],
    "24, 13, 7 (table 12)": [24, 13, 7],
    "9 of 1, one of 10": [1] * 9 + [10],
    "12 of 1 to 44": [1, 1, 1, 2, 2, 3, 5, 7, 10, 14, 24, 44],
}
TASK_SPREAD = (0.0, 10.0)  # standard deviation of task effects within a category, percent points
CATEGORY_SPREAD = (0.0, 10.0)  # of category effects
SIZES = ((100, 100), (20, 1000))  # least and most instances of a task
_VARIANCE = 2500.0  # of one paired difference: half of the answers change


def new_tasks(shape: Sequence[int], tasks: float, categories: float, sizes, rng) -> bool | None:
    """Whether one interval for new tasks covers the truth; None: too few tasks."""
    groups, truth, value = [], 0.0, 0.0
    for n in shape:
        effect = categories * rng.standard_normal()
        instances = rng.integers(sizes[0], sizes[1] + 1, n)
        noise = _VARIANCE / instances
        values = effect + rng.standard_normal(n) * tasks + rng.standard_normal(n) * noise**0.5
        groups.append(Group(np.full(n, 1 / len(shape) / n), values, noise))
        truth += effect / len(shape)
        value += values.mean() / len(shape)
    error = error_of_mean(groups)
    return None if error is None else abs(value - truth) <= error.half_width()


def fixed_tasks(shape: Sequence[int], sizes, gain: float, replicates: int, rng) -> bool:
    """Whether one bootstrap interval for these tasks covers the true gain."""
    leaves = []
    for c, n in enumerate(shape):
        for t in range(n):
            size = int(rng.integers(sizes[0], sizes[1] + 1))
            lost = 0.2
            odds = (lost, 1 - 2 * lost - gain / 100, lost + gain / 100)
            scores = rng.choice((-100.0, 0.0, 100.0), size, p=odds)
            name = f"b/{c}.{t}"
            key = Key(0, "level", str(c), name, "b", name)
            ids = tuple((str(i), "p", 0) for i in range(size))
            clusters = tuple(f"{name}:{i}" for i in range(size))
            part = Part(1.0, scores[:, None])
            leaves.append(Leaf(key, "acc_rank", "", ids, clusters, scores, (part,), {}, "sum"))
    resampling = Resampling(rollup_of_leaves(leaves), replicates, int(rng.integers(1e9)))
    found = statistics.interval(resampling.values(Key(0)))
    return found.low <= gain <= found.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    cases = list(itertools.product(TASK_SPREAD, CATEGORY_SPREAD, SIZES))
    names = [f"{t:.0f} / {c:.0f} / {a}-{b}" for t, c, (a, b) in cases]
    fixed = [(gain, sizes) for gain in (0.0, 10.0) for sizes in SIZES]
    names += [f"fixed: {gain:.0f} / {a}-{b}" for gain, (a, b) in fixed]
    print("| tasks per category |", " | ".join(names), "|")
    print("|---" * (1 + len(names)) + "|")
    for name in arguments.shapes:
        shape = SHAPES[name]
        cells = []
        for case in cases:
            found = [new_tasks(shape, *case, rng) for _ in range(arguments.trials)]
            cells.append("too few" if None in found else f"{100 * np.mean(found):.1f}")
        for gain, sizes in fixed:
            # Many tasks make the mean normal; fewer trials say as much about them.
            trials = max(50, arguments.trials // (4 * len(shape)))
            found = [
                fixed_tasks(shape, sizes, gain, arguments.replicates, rng) for _ in range(trials)
            ]
            cells.append(f"{100 * np.mean(found):.1f}")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
