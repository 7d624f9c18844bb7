"""Groups of prompts with a common beginning, and items in rows."""

import itertools

import numpy as np
import pytest

from optiml_jax.evaluate import prefixes
from optiml_jax.evaluate.prefixes import Group, pack, shared_prefixes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(prefixes, "_WORTH", 32)


def ids(rng, n):
    return rng.integers(0, 50, n).tolist()


def saved(groups):
    return sum(group.length * (len(group.members) - 1) for group in groups)


def test_prompts_of_two_tasks_share_the_beginning_of_each():
    rng = np.random.default_rng(0)
    first, second = [2, *ids(rng, 70)], [2, *ids(rng, 40)]
    prompts = [[*first, 50, *ids(rng, 5)], [*second, 50], [*first, 51], [*second, 51, 9], [2, 3]]
    groups = {tuple(sorted(g.members)): g.length for g in shared_prefixes(prompts)}
    # 71 and 41 tokens in common, in steps of 16.
    assert groups == {(0, 2): 64, (1, 3): 32, (4,): 0}


def test_every_prompt_keeps_a_token_of_its_own():
    same = list(range(64))
    assert shared_prefixes([same, same, same]) == [Group(48, [0, 1, 2])]


def test_what_saves_less_than_a_call_costs_is_not_shared():
    prompts = [[*range(20), 50 + i] for i in range(3)]
    assert shared_prefixes(prompts[:2]) == [Group(0, [0, 1])]  # 16 tokens saved
    assert shared_prefixes(prompts) == [Group(16, [0, 1, 2])]  # 32


def test_the_division_saves_as_much_as_any_other():
    """Against the best of all divisions of the sorted prompts into runs, by trying each."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        stems = [ids(rng, 16 * rng.integers(1, 5)) for _ in range(3)]
        prompts = [
            [*stems[rng.integers(3)], *stems[rng.integers(3)], *ids(rng, rng.integers(1, 9))]
            for _ in range(7)
        ]
        prompts.sort()
        common = [prefixes._common_length(a, b) // 16 * 16 for a, b in itertools.pairwise(prompts)]
        best = 0
        for cuts in itertools.product([False, True], repeat=6):
            bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 7]
            runs = itertools.pairwise(bounds)
            gains = [min(common[a : b - 1], default=0) * (b - a - 1) for a, b in runs]
            best = max(best, sum(gain for gain in gains if gain >= 32))
        assert saved(shared_prefixes(prompts)) >= best - 31 * 3  # what is not worth a call is left
        members = [i for group in shared_prefixes(prompts) for i in group.members]
        assert sorted(members) == list(range(7))


def test_many_prompts_that_are_beginnings_of_each_other():
    prompts = [list(range(n)) for n in range(1, 1500)]
    groups = shared_prefixes(prompts)
    assert sorted(i for g in groups for i in g.members) == list(range(1499))
    for group in groups:
        assert all(len(prompts[i]) > group.length for i in group.members)


def test_rows_hold_every_item_once_and_are_filled():
    rng = np.random.default_rng(2)
    sizes = [*rng.lognormal(4, 0.8, 500).astype(int) + 1, 2500]
    rows = pack(sizes)
    assert sorted(i for _, items in rows for i in items) == list(range(501))
    for length, items in rows:
        assert sum(sizes[i] for i in items) <= length
    assert rows[0][0] == 2560
    assert sum(sizes) / sum(length for length, _ in rows) > 0.95


def test_a_few_short_items_get_a_short_row():
    assert pack([10, 20, 30]) == [(64, [2, 1, 0])]
    assert pack([]) == []
