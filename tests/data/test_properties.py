"""Properties of packing and draws that hold for every input, searched for counter-examples."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optiml_jax.data import draws
from optiml_jax.data.packing import LookaheadPacker

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@QUICK
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=300),
    lookahead=st.integers(1, 40),
    cut=st.integers(0, 300),
)
def test_rows_fit_hold_each_example_once_and_do_not_depend_on_blocks(lengths, lookahead, cut):
    whole, pieces = LookaheadPacker(64, lookahead), LookaheadPacker(64, lookahead)
    whole.add(lengths)
    pieces.add(lengths[:cut])
    pieces.add(lengths[cut:])
    assert (whole.row_ends, whole.items) == (pieces.row_ends, pieces.items)
    starts = [0, *whole.row_ends[:-1]]
    rows = [whole.items[a:b] for a, b in zip(starts, whole.row_ends, strict=False)]
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)
    packed = [i for row in rows for i in row]
    assert len(set(packed)) == len(packed)
    assert len(lengths) - len(packed) <= lookahead + 1  # those that still wait


@QUICK
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_epoch_of_a_task_is_a_permutation_of_its_examples(sizes, seed):
    names = [f"t/{i}" for i in range(len(sizes))]
    pools = [np.arange(size) for size in sizes]
    tasks, examples = next(draws.draw_examples(names, pools, [1.0] * len(sizes), seed, ""))
    for task, size in enumerate(sizes):
        own = examples[tasks == task]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))
