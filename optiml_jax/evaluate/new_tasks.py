"""The uncertainty of a mean of category means over other tasks of the same categories.

The tasks of a category count as a sample of those it could have; categories are fixed. With the
variance s_c^2 of the tasks of category c and task weights u the variance of the mean is
sum_c s_c^2 sum_t u_t^2, and Student's t gives the interval. It is estimated twice, and the wider
interval holds: with a variance for each category and Satterthwaite's degrees of freedom (Biometrics
Bulletin 2, 1946), and with the pooled variance of all, for two or three tasks often lie close by
chance. A category of one task has no variance of its own:

- it gets the pooled variance of the others, as long as these know more about variances than the
  spread of the category means does;
- else the categories are redrawn too: the t statistic of the category means (Ibragimov and Mueller,
  Journal of Business & Economic Statistics 28, 2010), which is wider where categories truly differ.

One task alone says nothing about others, so there is no interval.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Error:
    """The standard error of a mean, in its unit, and the degrees of freedom it is known with."""

    value: float
    df: float

    def half_width(self, coverage: float = 0.95) -> float:
        """Of the interval around the mean."""
        return float(scipy.stats.t.ppf((1 + coverage) / 2, self.df)) * self.value

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float | None:
        """The smallest true mean that a two-sided test at `alpha` finds with `power`.

        None where the error is 0, for then nothing is known about it.
        """
        quantiles = scipy.stats.t.ppf((1 - alpha / 2, power), self.df)
        return float(sum(quantiles)) * self.value if self.value > 1e-9 else None


@dataclasses.dataclass(frozen=True)
class Group:
    """The tasks of one category.

    Attributes:
      weights: float[n], of each task in the mean; over all groups they sum to 1.
      values: float[n], of the tasks.
      noise: float[n], variance of each value over other instances of the same task.
    """

    weights: np.ndarray
    values: np.ndarray
    noise: np.ndarray


def error_of_mean(groups: Sequence[Group]) -> Error | None:
    """The error of `sum of weights * values`; None for a single task.

    Other tasks come with other instances, so it is at least that of other instances.
    """
    several = [g for g in groups if len(g.values) > 1]
    single = [g for g in groups if len(g.values) == 1]
    known = sum(len(g.values) - 1 for g in several)
    if not several and len(single) < 2:
        return None
    if single and known < len(groups) - 1:
        found = [_between_categories(groups)]
    else:
        found = _within_categories(several, single)
    floor = sum(float(np.sum(g.weights**2 * g.noise)) for g in groups)
    errors = [Error(math.sqrt(max(variance, floor)), df) for variance, df in found]
    return max(errors, key=Error.half_width)


def _between_categories(groups: Sequence[Group]) -> tuple[float, float]:
    """The variance of the mean, and its degrees of freedom, from the spread of the categories."""
    weights = np.array([g.weights.sum() for g in groups])
    means = np.array([np.sum(g.weights * g.values) for g in groups]) / weights
    return float(_variance(weights, means) * np.sum(weights**2)), len(groups) - 1.0


def _within_categories(
    several: Sequence[Group], single: Sequence[Group]
) -> list[tuple[float, float]]:
    """The same from the tasks within them: with separate variances, and with the pooled one."""
    degrees = np.array([len(g.values) - 1.0 for g in several])
    variances = np.array([_variance(g.weights, g.values) for g in several])
    factors = np.array([np.sum(g.weights**2) for g in several])
    lent = sum(float(g.weights[0] ** 2) for g in single)
    # A task of fewer instances than usual scatters by more than the variance that it is lent.
    usual = float(np.mean(np.concatenate([g.noise for g in several])))
    more = sum(float(g.weights[0] ** 2 * max(0.0, g.noise[0] - usual)) for g in single)
    known = float(degrees.sum())
    parts = (factors + lent * degrees / known) * variances
    separate = float(parts.sum())
    df = separate**2 / float(np.sum(parts**2 / degrees)) if separate > 0 else known
    pooled = float(np.sum(degrees * variances) / known * (factors.sum() + lent))
    return [(separate + more, df), (pooled + more, known)]


def _variance(weights: np.ndarray, values: np.ndarray) -> float:
    """The unbiased variance of values that count with `weights`."""
    total = weights.sum()
    mean = np.sum(weights * values) / total
    return float(np.sum(weights * (values - mean) ** 2) / (total - np.sum(weights**2) / total))
