"""Few shapes for rows of all lengths and numbers."""

import dataclasses

import pytest
import tiny_models

from optiml_jax.errors import UserError
from optiml_jax.evaluate.batching import cut, same_shapes


@pytest.mark.parametrize("most", [1, 3, 8, 32, 128])
def test_batches_of_few_sizes_hold_every_row_and_little_padding(most):
    seen = set()
    for number in range(1, 300):
        parts = list(cut(number, most))
        assert sum(rows for rows, _ in parts) == number
        assert all(1 <= rows <= size for rows, size in parts)
        assert sum(size for _, size in parts) < 2 * number + (number == 1)
        seen |= {size for _, size in parts}
    assert seen == {n for n in (1, 8, 64, most) if n <= most}


def test_caches_have_few_capacities_and_hold_what_fits_the_model():
    engine = tiny_models.engine(dataclasses.replace(tiny_models.PRE_NORM, max_positions=2000))
    of_answers, of_prefixes = {128, 256, 512, 1024, 2000}, {256, 1024, 2000}
    for options, capacities in (((), of_answers), ((4, 256), of_prefixes)):
        found = [engine.capacity(n, *options) for n in range(1, 2001)]
        assert set(found) == capacities
        assert all(n <= capacity for n, capacity in enumerate(found, 1))
    with pytest.raises(UserError, match="2000 positions"):
        engine.capacity(2001)


def test_answers_with_the_smallest_cache_are_as_many_as_with_the_next():
    """So prompts are read in the same numbers of rows; a short model has one cache anyway."""
    longer = dataclasses.replace(tiny_models.PRE_NORM, max_positions=2048)
    for config, numbers in ((longer, [4, 4, 2, 1]), (tiny_models.PRE_NORM, [8])):
        engine = tiny_models.engine(config, tokens_per_batch=1024)
        capacities = [n for n in (128, 256, 512, 1024) if n <= config.max_positions]
        assert [engine.num_answers(n) for n in capacities] == numbers


def test_rows_of_one_shape_are_together_and_the_largest_come_first():
    shapes = [(64, 1), (256, 2), (64, 1), (256, 1)]
    assert same_shapes(shapes) == [((256, 2), [1]), ((256, 1), [3]), ((64, 1), [0, 2])]
