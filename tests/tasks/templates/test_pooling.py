import collections
import itertools

import pytest

from tasks.templates.pooling import in_turn, pooled


@pytest.mark.parametrize(
    ("num_examples", "num_prompts", "num_items", "expected"),
    [(100, 7, 100, 100), (100, 1, 100, 100), (50, 3, 250, 150), (9, 4, 0, 0), (0, 3, 5, 0)],
)
def test_a_pool_gives_as_many_pairs_as_wanted_and_none_twice(
    num_examples, num_prompts, num_items, expected
):
    draws = list(pooled(num_examples, num_prompts, num_items, "k"))
    assert len(draws) == num_examples
    assert sum(map(len, draws)) == expected
    assert all(len(set(d)) == len(d) and set(d) <= set(range(num_prompts)) for d in draws)


def test_the_draw_is_a_function_of_its_key():
    assert list(pooled(50, 4, 50, "a")) == list(pooled(50, 4, 50, "a"))
    assert list(pooled(50, 4, 50, "a")) != list(pooled(50, 4, 50, "b"))


def test_every_set_of_pairs_is_equally_likely():
    draws = collections.Counter(tuple(pooled(2, 2, 2, f"key {i}")) for i in range(3000))
    pairs = list(itertools.product(range(2), range(2)))
    sets = {
        tuple(tuple(p for e, p in chosen if e == example) for example in range(2))
        for chosen in itertools.combinations(pairs, 2)
    }
    assert set(draws) == sets
    assert all(abs(n - 500) < 100 for n in draws.values())  # 5 standard deviations


def test_prompts_that_step_in_come_last_in_an_order_of_their_own():
    orders = {tuple(in_turn((2,), 5, f"row {i}")) for i in range(200)}
    assert all(o[0] == 2 and sorted(o) == [0, 1, 2, 3, 4] for o in orders)
    assert len(orders) == 24
    assert in_turn((2,), 5, "row 1") == in_turn((2,), 5, "row 1")
