"""Few shapes for rows of all lengths and numbers."""

import pytest
import tiny_models

from optiml_jax.errors import UserError
from optiml_jax.evaluate.batching import cut, same_shapes


@pytest.mark.parametrize("most", [1, 3, 8, 32, 128])
def test_batches_of_three_sizes_hold_every_row_and_little_padding(most):
    seen = set()
    for number in range(1, 300):
        parts = list(cut(number, most))
        assert sum(rows for rows, _ in parts) == number
        assert all(1 <= rows <= size for rows, size in parts)
        assert sum(size for _, size in parts) < 2 * number + (number == 1)
        seen |= {size for _, size in parts}
    assert seen == {n for n in (1, 8, most) if n <= most}


def test_caches_have_few_capacities_and_hold_what_fits_the_model():
    engine = tiny_models.engine()
    limit = engine.config.max_positions
    assert {engine.capacity(n) for n in range(1, limit + 1)} == {limit}  # 128
    with pytest.raises(UserError, match=f"{limit} positions"):
        engine.capacity(limit + 1)


def test_rows_of_one_shape_are_together_and_the_largest_come_first():
    shapes = [(64, 1), (256, 2), (64, 1), (256, 1)]
    assert same_shapes(shapes) == [((256, 2), [1]), ((256, 1), [3]), ((64, 1), [0, 2])]
